"""What the package offers, and what importing it costs."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from types import FunctionType, ModuleType
from typing import Any

import pytest

import sandbox

# Run as ``python -m``; importing one runs it.
_PROGRAMS = ("__main__",)


def public_modules() -> list[str]:
    found = [
        info.name
        for info in pkgutil.walk_packages(sandbox.__path__, "sandbox.")
        if not any(part.startswith("_") for part in info.name.split("."))
    ]
    return ["sandbox", *found]


def defined(module: ModuleType) -> set[str]:
    """Public functions and classes at home in the module, or, of a package, inside it."""
    name = module.__name__
    inside = f"{name}." if hasattr(module, "__path__") else None
    return {
        key
        for key, value in vars(module).items()
        if isinstance(value, (type, FunctionType))
        and not key.startswith("_")
        and (value.__module__ == name or (inside and value.__module__.startswith(inside)))
    }


def constants(module: ModuleType) -> set[str]:
    """What may be public, too: a module's own data."""
    return {key for key, value in vars(module).items() if not isinstance(value, ModuleType)}


def isort_order(name: str) -> tuple[int, str]:
    """Constants, classes, the rest: the order that ruff keeps (RUF022)."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def fresh(code: str) -> Any:
    """What a new interpreter prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", public_modules())
def test_every_module_says_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    real = defined(module)
    if names is None:
        assert not real, "it has public names and no __all__"
        return
    assert isinstance(names, tuple)
    assert list(names) == sorted(set(names), key=isort_order)
    if hasattr(module, "__path__"):
        # A package may use what is inside it without offering it, and import it when it is asked.
        assert all(hasattr(module, offered) for offered in names)
    else:
        assert real <= set(names) <= real | constants(module)


def test_the_package_offers_what_it_says() -> None:
    assert set(sandbox.__all__) <= set(dir(sandbox))
    for name in sandbox.__all__:
        getattr(sandbox, name)
    assert set(sandbox.__all__) == {n for n in defined(sandbox) if n[0] != "_"}
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        sandbox.nothing_of_the_kind  # noqa: B018


def test_every_public_name_is_documented() -> None:
    bare = [name for name in sandbox.__all__ if not getattr(sandbox, name).__doc__]
    assert bare == []


def test_importing_sandbox_imports_no_framework() -> None:
    modules = fresh("import json, sys, sandbox; print(json.dumps(list(sys.modules)))")
    loaded = {name.partition(".")[0] for name in modules}
    ours = loaded - set(sys.stdlib_module_names) - {"__main__"}
    # What site-packages starts by itself, as editable installations and coverage do.
    bare = fresh("import json, sys; print(json.dumps(list(sys.modules)))")
    assert ours - {name.partition(".")[0] for name in bare} == {"sandbox"}
    assert "sqlite3" not in loaded
    assert not [name for name in modules if name.startswith(("sandbox.adapters", "sandbox.cli"))]


def test_importing_sandbox_starts_nothing() -> None:
    left = fresh(
        "import json, threading; from concurrent.futures import ThreadPoolExecutor as E\n"
        "before = threading.Thread.start, E.submit\n"
        "import sandbox\n"
        "same = (threading.Thread.start, E.submit) == before\n"
        "print(json.dumps([same, threading.active_count(), sandbox.current_owner()]))"
    )
    assert left == [True, 1, None]
