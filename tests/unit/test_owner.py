"""Who carries the owner along, and who does not."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import anyio
import anyio.to_thread
import pytest

from sandbox.core.owner import Caller, Owner, current_owner, inherit_threads, run_as, set_owner

# From 3.14 on a thread may start with the context of who starts it; whether it does is a flag
# of the interpreter.
THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", 0))


@pytest.fixture
def owner() -> Owner:
    return Owner("this test")


@pytest.fixture
def inheriting() -> Iterator[None]:
    inherit_threads()
    yield
    inherit_threads(False)


def in_thread(call: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


# --- contexts --------------------------------------------------------------------------------


def test_nobody_is_an_owner_at_first() -> None:
    assert current_owner() is None


def test_tasks_and_their_threads_act_as_who_started_them(owner: Owner) -> None:
    found: dict[str, Owner | None] = {}

    async def look(name: str) -> None:
        found[name] = current_owner()

    async def main() -> None:
        with run_as(owner):
            task = asyncio.create_task(look("task"))
            await asyncio.gather(look("gathered"), look("gathered too"))
            found["to_thread"] = await asyncio.to_thread(current_owner)
            found["anyio"] = await anyio.to_thread.run_sync(current_owner)
            async with anyio.create_task_group() as group:
                group.start_soon(look, "group")
            asyncio.get_running_loop().call_soon(lambda: found.update(callback=current_owner()))
        await task
        found["afterwards"] = current_owner()

    asyncio.run(main())
    assert found.pop("afterwards") is None
    assert set(found) == {
        "task", "gathered", "gathered too", "to_thread", "anyio", "group", "callback"
    }  # fmt: skip
    assert set(found.values()) == {owner}


def test_tasks_that_were_there_before_do_not(owner: Owner) -> None:
    async def main() -> Owner | None:
        go = asyncio.Event()

        async def earlier() -> Owner | None:
            await go.wait()
            return current_owner()

        task = asyncio.create_task(earlier())
        with run_as(owner):
            go.set()
            return await task

    assert asyncio.run(main()) is None


@pytest.mark.skipif(THREADS_INHERIT, reason="this interpreter's threads inherit by themselves")
def test_threads_and_executors_do_not(owner: Owner) -> None:
    with run_as(owner), ThreadPoolExecutor(1) as executor:
        assert in_thread(current_owner) is None
        assert executor.submit(current_owner).result() is None
        assert list(executor.map(lambda _: current_owner(), "ab")) == [None, None]


def test_a_thread_acts_for_itself(owner: Owner) -> None:
    def become() -> Owner | None:
        set_owner(owner)
        return current_owner()

    assert in_thread(become) is owner
    assert current_owner() is None


# --- run_as ----------------------------------------------------------------------------------


def test_run_as_restores_what_was_before(owner: Owner) -> None:
    inner = Owner("inner")
    with run_as(owner) as acting:
        assert acting is current_owner() is owner
        with run_as(inner):
            assert current_owner() is inner
            with run_as(None):
                assert current_owner() is None
            assert current_owner() is inner
        assert current_owner() is owner
    assert current_owner() is None


def test_run_as_restores_after_an_error(owner: Owner) -> None:
    with pytest.raises(ZeroDivisionError), run_as(owner):
        _ = 1 / 0
    assert current_owner() is None


def test_run_as_takes_whatever_has_an_owner(owner: Owner) -> None:
    with run_as(SimpleNamespace(owner=owner)) as acting:  # type: ignore[arg-type]
        assert acting is current_owner() is owner


def test_run_as_decorates(owner: Owner) -> None:
    @run_as(owner)
    def work() -> Owner | None:
        return current_owner()

    assert (work(), work(), current_owner()) == (owner, owner, None)


def test_run_as_lasts_across_awaiting(owner: Owner) -> None:
    async def one(label: str, barrier: asyncio.Barrier) -> None:
        mine = Owner(label)
        with run_as(mine):
            for _ in range(3):
                await barrier.wait()
                assert current_owner() is mine
        assert current_owner() is None

    async def main() -> None:
        barrier = asyncio.Barrier(3)
        await asyncio.gather(*(one(f"task {n}", barrier) for n in range(3)))

    asyncio.run(main())


def test_run_as_may_be_left_in_another_context(owner: Owner) -> None:
    """As asynchronous generators are: fixtures, lifespans, dependencies."""

    async def fixture() -> AsyncIterator[None]:
        with run_as(owner):
            yield

    async def main() -> None:
        generator = fixture()
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        await loop.create_task(generator.__anext__(), context=context)  # type: ignore[arg-type]
        with pytest.raises(StopAsyncIteration):
            await loop.create_task(generator.__anext__())  # type: ignore[arg-type]
        assert current_owner() is None

    asyncio.run(main())


# --- inherit_threads -------------------------------------------------------------------------


@pytest.mark.usefixtures("inheriting")
def test_threads_and_timers_may_inherit(owner: Owner) -> None:
    found: list[Owner | None] = []
    timer = threading.Timer(0, lambda: found.append(current_owner()))
    with run_as(owner):
        assert in_thread(current_owner) is owner
        timer.start()
    timer.join()
    assert found == [owner]
    assert in_thread(current_owner) is None


@pytest.mark.usefixtures("inheriting")
def test_subclasses_of_thread_inherit(owner: Owner) -> None:
    class Worker(threading.Thread):
        found: Owner | None = None

        def run(self) -> None:
            self.found = current_owner()

    worker = Worker()
    with run_as(owner):
        worker.start()
    worker.join()
    assert worker.found is owner


@pytest.mark.usefixtures("inheriting")
def test_a_worker_acts_for_who_submitted_the_job(owner: Owner) -> None:
    """Not for who submitted the job that it was started for."""
    second = Owner("second")
    with ThreadPoolExecutor(1) as executor:
        workers: set[threading.Thread] = set()

        def job() -> Owner | None:
            workers.add(threading.current_thread())
            return current_owner()

        for who in owner, second, None, owner:
            with run_as(who):
                assert executor.submit(job).result() is who
        with run_as(second):
            assert list(executor.map(lambda _: current_owner(), "ab")) == [second, second]
        assert len(workers) == 1


@pytest.mark.usefixtures("inheriting")
def test_a_worker_itself_belongs_to_nobody(owner: Owner) -> None:
    prepared: list[Owner | None] = []
    with (
        ThreadPoolExecutor(1, initializer=lambda: prepared.append(current_owner())) as executor,
        run_as(owner),
    ):
        assert executor.submit(current_owner).result() is owner
        inherit_threads(False)
        assert executor.submit(current_owner).result() is None
    assert prepared == [None]


@pytest.mark.usefixtures("inheriting")
def test_jobs_keep_their_arguments_results_and_errors(owner: Owner) -> None:
    def job(*args: object, **kwargs: object) -> object:
        return args, kwargs

    with run_as(owner), ThreadPoolExecutor(1) as executor:
        assert executor.submit(job, 1, fn=2, self=3).result() == ((1,), {"fn": 2, "self": 3})
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 / 0).result()


def test_inheriting_ends_when_told(owner: Owner) -> None:
    before = threading.Thread.start, ThreadPoolExecutor.submit
    inherit_threads()
    patched = threading.Thread.start, ThreadPoolExecutor.submit
    inherit_threads()
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == patched != before
    inherit_threads(False)
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == before
    inherit_threads(False)
    if not THREADS_INHERIT:
        with run_as(owner):
            assert in_thread(current_owner) is None


@pytest.mark.usefixtures("inheriting")
def test_a_thread_that_inherited_is_collected_when_it_is_done(owner: Owner) -> None:
    gc.disable()
    try:
        thread = threading.Thread(target=current_owner)
        watched = weakref.ref(thread)
        with run_as(owner):
            thread.start()
        thread.join()
        assert "run" not in vars(thread)
        del thread
        assert watched() is None, "only the collector would have found it"
    finally:
        gc.enable()


@pytest.mark.usefixtures("inheriting")
def test_a_thread_keeps_a_run_of_its_own(owner: Owner) -> None:
    found: list[Owner | None] = []
    thread = threading.Thread()
    own = thread.run = lambda: found.append(current_owner())  # type: ignore[method-assign]
    with run_as(owner):
        thread.start()
    thread.join()
    assert found == [owner]
    assert thread.run is own


@pytest.mark.usefixtures("inheriting")
def test_a_thread_that_cannot_start_is_left_as_it_was(owner: Owner) -> None:
    thread = threading.Thread(target=current_owner)
    thread.start()
    thread.join()
    with run_as(owner), pytest.raises(RuntimeError, match="only be started once"):
        thread.start()
    assert "run" not in vars(thread)


# --- names -----------------------------------------------------------------------------------


def test_an_owner_is_named_after_the_test(request: pytest.FixtureRequest) -> None:
    assert Owner().label == request.node.nodeid
    assert Owner("mine").label == "mine"


def test_outside_of_tests_after_the_thread_or_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")

    async def main() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("poller")
        return Owner().label

    assert Owner().label == "thread 'MainThread'"
    assert asyncio.run(main()) == "task 'poller' of thread 'MainThread'"


def test_an_owner_says_whether_it_has_ended(owner: Owner) -> None:
    assert repr(owner) == "<Owner this test>"
    owner.ended = True
    assert repr(owner) == "<Owner this test (ended)>"


def test_an_owner_knows_who_made_it_and_keeps_nobody_alive() -> None:
    made: list[Owner] = []
    thread = threading.Thread(target=lambda: made.append(Owner("of the thread")))
    thread.start()
    thread.join()
    assert made[0].made_by(thread)
    assert not made[0].made_by(threading.current_thread())
    watched = weakref.ref(thread)
    del thread
    gc.collect()
    assert watched() is None
    assert not made[0].made_by(None)


def test_a_caller_is_who_asks(owner: Owner) -> None:
    with run_as(owner):
        caller = Caller()
    assert caller.owner is owner
    assert caller.thread is threading.current_thread()
    assert caller.task is None
