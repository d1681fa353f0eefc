"""The command line, ``sandbox``."""

from __future__ import annotations

import sys

__all__ = ("main",)

_NEEDED = frozenset({"typer", "rich", "click"})


def main() -> None:
    """Run the command that ``sys.argv`` names; the entry point of ``sandbox``.

    Exits with 0, with 1 where the command failed, with 2 where it was called wrongly or its
    libraries are missing.
    """
    try:
        import rich.console  # noqa: F401  the commands need it, and only when they run

        from sandbox.cli._app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        print(
            f"sandbox: the command line needs {missing}, which is not installed: "
            'pip install "sandbox-orm[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    app(prog_name="sandbox")
