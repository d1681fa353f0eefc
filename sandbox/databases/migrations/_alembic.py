"""``alembic:``: the project's own migrations, through its own ``env.py``."""

from __future__ import annotations

import inspect
import re
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.databases import urls
from sandbox.databases.migrations._connect import has_tables
from sandbox.databases.migrations._logging import logging_preserved
from sandbox.databases.migrations._source import (
    failed,
    invalid_spec,
    make_importable,
    outside_event_loop,
)
from sandbox.errors import ConfigurationError, MigrationError, SandboxError

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script, ScriptDirectory

__all__ = ("AlembicSource",)

# Alembic's `context` and `op` are module-level proxies: one migration at a time in a process.
_ONE_AT_A_TIME = threading.Lock()
_ASYNC_ENV = re.compile(r"\b(?:async_engine_from_config|create_async_engine|AsyncEngine)\b")


@dataclass(frozen=True, slots=True)
class AlembicSource:
    """``alembic upgrade`` to `target` with the configuration in `file`."""

    description: str
    file: Path
    target: str

    @classmethod
    def parse(cls, spec: str, argument: str, root: Path) -> AlembicSource:
        """Read ``file@target``, both of which may be left out."""
        name, _, target = argument.partition("@")
        file = (root / (name or "alembic.ini")).absolute()
        if not file.is_file():
            raise invalid_spec(
                spec,
                f"there is no file {file}\n"
                "  it is Alembic's configuration, as made by `alembic init`; its path is relative\n"
                "  to the directory of the project's pytest configuration",
            )
        return cls(spec, file, target or "head")

    def run(self, url: str) -> None:
        """Upgrade the database, in the way of MigrationSource.run.

        ``sqlalchemy.url`` is set for an ``env.py`` that reads the configuration, with a driver
        of the kind it needs. One that reads the environment finds what the caller put there.
        """
        try:
            import alembic.command  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                f"migrations {self.description!r} need Alembic, which is not installed\n"
                '  install it: pip install "sandbox-orm[migrations]"'
            ) from error
        outside_event_loop(lambda: self._upgrade(url))

    def _upgrade(self, url: str) -> None:
        from alembic import command
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        with _ONE_AT_A_TIME, logging_preserved():
            script: ScriptDirectory | None = None
            try:
                config = self._config()
                script = ScriptDirectory.from_config(config)
                self._check_heads(script)
                self._set_url(config, script, url)
                command.upgrade(config, self.target)
                self._check_arrival(script, url)
            except SandboxError:
                raise
            except CommandError as error:
                raise failed(self.description, f" ({self.file})", error) from error
            except (Exception, SystemExit) as error:
                raise failed(self.description, self._where(script, error), error) from error

    def _config(self) -> Config:
        from alembic.config import Config

        if self.file.suffix != ".toml":
            config = Config(str(self.file))
        elif "toml_file" in inspect.signature(Config).parameters:
            config = Config(toml_file=str(self.file))
        else:
            raise ConfigurationError(
                f"migrations {self.description!r}: this Alembic does not read pyproject.toml\n"
                '  install a newer one: pip install --upgrade "alembic>=1.16"'
            )
        base = self.file.parent
        make_importable(base)
        # Alembic resolves it against the working directory, which need not be the project's.
        location = config.get_main_option("script_location") or _toml_location(config)
        if location and not Path(location).is_absolute() and (base / location).is_dir():
            config.set_main_option("script_location", str(base / location).replace("%", "%%"))
        return config

    def _check_heads(self, script: ScriptDirectory) -> None:
        heads = script.get_heads()
        if self.target == "head" and len(heads) > 1:
            named = "\n".join(f"    {_shown(script.get_revision(head))}" for head in heads)
            raise MigrationError(
                f"migrations {self.description!r} have {len(heads)} heads:\n{named}\n"
                f"  join them with `alembic merge heads`, or migrate to all of them with\n"
                f"  alembic:{self.file.name}@heads"
            )

    def _set_url(self, config: Config, script: ScriptDirectory, url: str) -> None:
        env = Path(script.dir, "env.py")
        asynchronous = _ASYNC_ENV.search(env.read_text(encoding="utf-8", errors="replace"))
        url = urls.async_url(url) if asynchronous else urls.sync_url(url)
        config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))

    def _check_arrival(self, script: ScriptDirectory, url: str) -> None:
        # An env.py with an address of its own has now migrated some other database, and every
        # test would fail with "no such table".
        if not script.get_heads():
            return
        if not has_tables(url):
            raise MigrationError(
                f"migrations {self.description!r} ran, and left {urls.hide_password(url)} empty:\n"
                f"  {script.dir}/env.py takes its URL from somewhere else.\n"
                "  Let it read config.get_main_option('sqlalchemy.url'), or the environment\n"
                "  variable that the setting sandbox_env names"
            )

    def _where(self, script: ScriptDirectory | None, error: BaseException) -> str:
        revision = _running(script, error) if script is not None else None
        if revision is None:
            return f" ({self.file}), outside any revision: in env.py or at its commit"
        before = revision.down_revision or "an empty database"
        if not isinstance(before, str):
            before = " and ".join(before)
        return f" in revision {_shown(revision)}\n  after {before}:"


def _running(script: ScriptDirectory, error: BaseException) -> Script | None:
    """The revision whose file the error came through, innermost first."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    try:
        revisions = {str(Path(each.path)): each for each in script.walk_revisions()}
    except Exception:  # noqa: BLE001  a broken history: there is no revision to name
        return None
    return next((revisions[file] for file in reversed(files) if file in revisions), None)


def _shown(revision: Script | None) -> str:
    assert revision is not None
    return f"{revision.revision} ({revision.doc}), {revision.path}"


def _toml_location(config: Config) -> str | None:
    # Alembic 1.16 reads pyproject.toml too.
    read: Any = getattr(config, "get_alembic_option", lambda _: None)
    location = read("script_location")
    return location if isinstance(location, str) else None
