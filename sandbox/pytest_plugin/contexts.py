"""Who acts while fixtures are set up and coroutines run.

pytest-asyncio copies the current context for every coroutine; anyio runs them all in one task,
whose context is that of the first. So what anyio runs is wrapped, and enters the owner by itself.
IsolatedAsyncioTestCase copied its context when pytest made the instance, before the test began.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import pytest

    from sandbox.core.owner import Owner

__all__ = ("acting", "acting_test", "as_nobody", "enter_unittest", "explain")

_XUNIT = {
    "_xunit_setup_module_fixture_": "setup_module()",
    "_xunit_setup_class_fixture_": "setup_class()",
    "_unittest_setUpClass_fixture_": "setUpClass()",
}


class _Holder(Protocol):
    """Who knows the running test. Asked at each call: a function may be wrapped by several."""

    @property
    def state(self) -> Any: ...


@contextlib.contextmanager
def as_nobody(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Set a fixture up, and later tear it down, as nobody.

    It outlives the test that needed it first. What it wrote through that test's sandbox would
    vanish with the test.
    """
    from sandbox.core.owner import current_owner, set_owner

    before = current_owner()
    owners: list[Owner | None] = []

    def leave() -> None:
        owners.append(current_owner())
        set_owner(None)

    def back() -> None:
        set_owner(owners.pop())

    # Finalizers run last in, first out: these two go around the fixture's own.
    fixturedef.addfinalizer(back)
    set_owner(None)
    try:
        yield
    finally:
        fixturedef.addfinalizer(leave)
        set_owner(before)


def explain(fixturedef: pytest.FixtureDef[Any]) -> str:
    """What to do about a wider fixture that was refused."""
    name = f"fixture `{fixturedef.argname}`"
    for prefix, called in _XUNIT.items():
        if fixturedef.argname.startswith(prefix):
            name = called
    return (
        f"The {name} of scope {fixturedef.scope!r} used the database. It outlives the test, so it"
        f" cannot use the test's sandbox: what it wrote would vanish with that test. Either"
        f"\n  - give it function scope, or"
        f"\n  - put the data into the schema: sandbox_migrations = call:module:function, or"
        f"\n  - mark the tests that need it @pytest.mark.no_sandbox: they write for real."
    )


@contextlib.contextmanager
def acting(
    holder: _Holder,
    fixturedef: pytest.FixtureDef[Any],
    request: pytest.FixtureRequest,
    *,
    wider: bool,
) -> Iterator[None]:
    """While the block lasts, the fixture's function is one that acts as the right owner."""
    func = fixturedef.func
    if "anyio_backend" not in request.fixturenames:
        yield
        return
    wrapped = _wrap(func, (lambda: None) if wider else _owner_of(holder))
    if wrapped is func:
        yield
        return
    fixturedef.func = wrapped  # type: ignore[misc]
    try:
        yield
    finally:
        fixturedef.func = func  # type: ignore[misc]


@contextlib.contextmanager
def acting_test(holder: _Holder, item: pytest.Function) -> Iterator[None]:
    """While the block lasts, the test's function is one that acts as the test's owner."""
    if "anyio_backend" not in item.fixturenames:
        yield
        return
    function = item.obj
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", None)
    if inner is not None:
        function.hypothesis.inner_test = _wrap(inner, _owner_of(holder))
        try:
            yield
        finally:
            function.hypothesis.inner_test = inner
        return
    item.obj = _wrap(function, _owner_of(holder))
    try:
        yield
    finally:
        item.obj = function


def enter_unittest(item: pytest.Item, owner: Owner) -> None:
    """Let an IsolatedAsyncioTestCase, whose context is its own, act as the owner."""
    from sandbox.core.owner import set_owner

    async_case = sys.modules.get("unittest.async_case")
    cls = getattr(item, "cls", None)
    if async_case is None or not isinstance(cls, type):
        return
    if issubclass(cls, async_case.IsolatedAsyncioTestCase):
        context = getattr(item.instance, "_asyncioTestContext", None)  # type: ignore[attr-defined]
        if context is not None:
            context.run(set_owner, owner)


def _owner_of(holder: _Holder) -> Callable[[], Owner | None]:
    def owner() -> Owner | None:
        state = holder.state
        found: Owner | None = state.owner if state is not None else None
        return found

    return owner


def _wrap(function: Any, owner: Callable[[], Owner | None]) -> Any:
    """The same, each of whose steps acts as that owner; what is no coroutine stays as it is."""
    if inspect.ismethod(function):
        wrapped = _wrap(function.__func__, owner)
        if wrapped is function.__func__:
            return function
        return types.MethodType(wrapped, function.__self__)
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, owner)
    if inspect.isasyncgenfunction(function):
        return _generator(function, owner)
    return function


def _coroutine(function: Any, owner: Callable[[], Owner | None]) -> Any:
    from sandbox.core.owner import run_as

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with run_as(owner()):
            return await function(*args, **kwargs)

    return wrapper


def _generator(function: Any, owner: Callable[[], Owner | None]) -> Any:
    from sandbox.core.owner import run_as

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        generator = function(*args, **kwargs)
        try:
            while True:
                # Not around the yield: the task goes on to run other things meanwhile.
                with run_as(owner()):
                    try:
                        value = await anext(generator)
                    except StopAsyncIteration:
                        return
                yield value
        finally:
            await generator.aclose()

    return wrapper
