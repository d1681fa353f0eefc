"""One lock, first come first served, for threads and for tasks of several loops."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sandbox.connection.mutex import Mutex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

DEADLINE = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Let the other threads run until it holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0)


@contextmanager
def loop_in_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.close()


@pytest.fixture
def mutex() -> Iterator[Mutex]:
    mutex = Mutex()
    yield mutex
    # Whatever happened, nobody is left in the queue and the lock was not lost.
    assert (mutex.waiting, mutex.locked) == (0, False)
    assert mutex.acquire(0)


def test_it_is_held_by_one_at_a_time(mutex: Mutex) -> None:
    assert repr(mutex) == "<Mutex free, 0 waiting>"
    assert mutex.acquire()
    assert repr(mutex) == "<Mutex locked, 0 waiting>"
    assert not mutex.acquire(0)
    mutex.release()
    assert mutex.acquire(0)
    mutex.release()


async def test_a_task_holds_it_against_threads_and_tasks(mutex: Mutex) -> None:
    assert await mutex.acquire_async()
    assert not await mutex.acquire_async(0)
    assert not await asyncio.to_thread(mutex.acquire, 0)
    await asyncio.to_thread(mutex.release)
    assert await mutex.acquire_async(0)
    mutex.release()


def test_what_nobody_holds_cannot_be_released(mutex: Mutex) -> None:
    with pytest.raises(RuntimeError):
        mutex.release()


async def test_a_waiter_gives_up_after_its_time(mutex: Mutex) -> None:
    assert mutex.acquire()
    started = time.monotonic()
    assert not mutex.acquire(0.01)
    assert not await mutex.acquire_async(0.01)
    assert time.monotonic() - started >= 0.02
    assert mutex.waiting == 0
    mutex.release()


async def test_a_waiter_with_time_left_gets_it(mutex: Mutex) -> None:
    assert mutex.acquire()
    thread = asyncio.create_task(asyncio.to_thread(mutex.acquire, 1e30))
    while mutex.waiting < 1:
        await asyncio.sleep(0)
    task = asyncio.create_task(mutex.acquire_async(DEADLINE))
    while mutex.waiting < 2:
        await asyncio.sleep(0)
    mutex.release()
    assert await thread
    mutex.release()
    assert await task
    mutex.release()


def test_threads_and_tasks_are_served_in_the_order_they_came(mutex: Mutex) -> None:
    served: list[int] = []

    def in_thread(number: int) -> None:
        assert mutex.acquire()
        served.append(number)
        mutex.release()

    async def in_task(number: int) -> None:
        assert await mutex.acquire_async()
        served.append(number)
        mutex.release()

    with loop_in_a_thread() as one, loop_in_a_thread() as two, ThreadPoolExecutor(10) as pool:
        assert mutex.acquire()
        futures = []
        for number in range(30):
            if number % 3 == 0:
                futures.append(pool.submit(in_thread, number))
            else:
                loop = one if number % 3 == 1 else two
                futures.append(asyncio.run_coroutine_threadsafe(in_task(number), loop))
            until(lambda: mutex.waiting == len(futures))
        mutex.release()
        for future in futures:
            future.result(DEADLINE)
    assert served == list(range(30))


def test_nobody_overtakes_the_one_whose_turn_it_is(mutex: Mutex) -> None:
    done = threading.Event()

    def waiter() -> None:
        assert mutex.acquire()
        assert done.wait(DEADLINE)
        mutex.release()

    assert mutex.acquire()
    thread = threading.Thread(target=waiter)
    thread.start()
    until(lambda: mutex.waiting == 1)
    mutex.release()
    # Handed over in the same moment, whether or not the thread has woken up.
    assert not mutex.acquire(0)
    done.set()
    thread.join(DEADLINE)


async def test_nobody_overtakes_a_task_that_has_not_run_yet(mutex: Mutex) -> None:
    assert mutex.acquire()
    task = asyncio.create_task(mutex.acquire_async())
    await asyncio.sleep(0)
    mutex.release()
    assert not await mutex.acquire_async(0)
    assert await task
    mutex.release()


async def test_a_cancelled_waiter_leaves_the_queue(mutex: Mutex) -> None:
    assert mutex.acquire()
    tasks = [asyncio.create_task(mutex.acquire_async()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    assert (await asyncio.gather(tasks[1], return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )
    assert mutex.waiting == 2
    mutex.release()
    assert await tasks[0]
    mutex.release()
    assert await tasks[2]
    mutex.release()


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_hand_over_that_meets_a_cancellation_goes_on_to_the_next(
    mutex: Mutex, cancelled_first: bool
) -> None:
    assert mutex.acquire()
    first = asyncio.create_task(mutex.acquire_async())
    await asyncio.sleep(0)
    second = asyncio.create_task(mutex.acquire_async())
    await asyncio.sleep(0)
    if cancelled_first:
        first.cancel()
        mutex.release()
    else:
        mutex.release()
        first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second
    mutex.release()


async def test_a_hand_over_from_a_thread_finds_its_task_cancelled(mutex: Mutex) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    assert mutex.acquire()
    task = asyncio.create_task(mutex.acquire_async())
    await asyncio.sleep(0)
    thread = threading.Thread(target=mutex.release)
    thread.start()
    thread.join(DEADLINE)  # blocks the loop: nothing of it runs before the cancellation
    assert mutex.waiting == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await mutex.acquire_async(0)
    mutex.release()
    assert complaints == []


def test_a_hand_over_that_meets_a_timeout_is_taken(mutex: Mutex) -> None:
    assert mutex.acquire()
    with ThreadPoolExecutor(1) as pool:
        ident = pool.submit(threading.get_ident).result(DEADLINE)
        waiter = pool.submit(mutex.acquire, 0.01)
        until(lambda: mutex.waiting == 1)
        with mutex._guard:
            # Its time is over, and it is about to say so.
            until(lambda: sys._current_frames()[ident].f_code is Mutex._gives_up.__code__)
            mutex._pass_on()
        assert waiter.result(DEADLINE)
    mutex.release()


@pytest.mark.parametrize("seed", range(5))
async def test_cancellations_at_random_moments_lose_nothing(mutex: Mutex, seed: int) -> None:
    rng = random.Random(seed)
    inside = 0

    async def use() -> None:
        nonlocal inside
        if not await mutex.acquire_async(rng.choice([None, None, DEADLINE, 0.0, 1e-6])):
            return
        try:
            assert inside == 0
            inside += 1
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            mutex.release()

    for _ in range(100):
        tasks = [asyncio.create_task(use()) for _ in range(6)]
        for _ in range(rng.randrange(12)):
            rng.choice(tasks).cancel()
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes
        )
        assert (mutex.locked, mutex.waiting) == (False, 0)


async def test_a_release_in_a_thread_may_race_with_a_cancellation(mutex: Mutex) -> None:
    rng = random.Random(1)
    start, stop = threading.Barrier(2), False

    def releasing() -> None:
        while True:
            start.wait(DEADLINE)
            if stop:
                return
            mutex.release()

    thread = threading.Thread(target=releasing)
    thread.start()
    taken = cancelled = 0
    for _ in range(500):
        assert mutex.acquire(0)
        task = asyncio.create_task(mutex.acquire_async())
        await asyncio.sleep(0)
        start.wait(DEADLINE)
        if rng.random() < 0.8:
            while mutex.waiting:  # until the very moment of the hand-over
                await asyncio.sleep(0)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if outcome is True:
            taken += 1
            mutex.release()
        else:
            assert isinstance(outcome, asyncio.CancelledError)
            cancelled += 1
        until(lambda: not mutex.locked)
    stop = True
    start.wait(DEADLINE)
    thread.join(DEADLINE)
    assert taken
    assert cancelled


def test_a_release_may_race_with_a_timeout(mutex: Mutex) -> None:
    rng = random.Random(2)
    start, stop = threading.Barrier(2), False

    def releasing() -> None:
        while True:
            start.wait(DEADLINE)
            if stop:
                return
            until(lambda: mutex.waiting == 1 or given_up.is_set())
            mutex.release()

    thread = threading.Thread(target=releasing)
    thread.start()
    given_up = threading.Event()
    for _ in range(500):
        assert mutex.acquire(0)
        given_up.clear()
        start.wait(DEADLINE)
        taken = mutex.acquire(rng.uniform(1e-6, 2e-4))
        given_up.set()
        if taken:
            mutex.release()
        until(lambda: not mutex.locked)
    stop = True
    start.wait(DEADLINE)
    thread.join(DEADLINE)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to one thread here")
@pytest.mark.parametrize("handed_over", [False, True])
def test_an_interrupted_thread_does_not_take_the_lock_along(
    mutex: Mutex, handed_over: bool
) -> None:
    armed = False

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        nonlocal armed
        while armed and frame is not None:
            if frame.f_code is Mutex.acquire.__code__:
                armed = False
                raise KeyboardInterrupt
            frame = frame.f_back

    main = threading.get_ident()
    returned = False

    def disturb() -> None:
        until(lambda: mutex.waiting == 1)
        if handed_over:
            mutex.release()
        while armed and not returned:
            # One that arrives just before the thread goes to sleep does not wake it.
            signal.pthread_kill(main, signal.SIGUSR1)
            time.sleep(0)

    before = signal.signal(signal.SIGUSR1, interrupt)
    interruptions = 0
    try:
        for _ in range(200):
            returned = False
            assert mutex.acquire(0)
            armed = True
            thread = threading.Thread(target=disturb)
            thread.start()
            try:
                assert mutex.acquire(DEADLINE)
            except KeyboardInterrupt:
                interruptions += 1
            else:
                mutex.release()
            returned = True
            thread.join(DEADLINE)
            armed = False
            assert mutex.waiting == 0
            if not handed_over:
                mutex.release()
            assert not mutex.locked
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handed_over or interruptions == 200


def a_waiter_on(loop: asyncio.AbstractEventLoop, mutex: Mutex) -> asyncio.Task[bool]:
    """A task that waits on a loop that has stopped."""
    before = mutex.waiting
    task = loop.create_task(mutex.acquire_async())
    loop.run_until_complete(asyncio.sleep(0))
    assert mutex.waiting == before + 1
    return task


def test_a_waiter_whose_loop_was_closed_is_skipped(mutex: Mutex) -> None:
    assert mutex.acquire()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    lost = a_waiter_on(loop, mutex)
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(mutex.acquire, DEADLINE)
        until(lambda: mutex.waiting == 2)
        loop.close()
        mutex.release()
        assert waiter.result(DEADLINE)
    del lost
    gc.collect()
    assert mutex.locked
    mutex.release()


def test_a_loop_closed_between_hand_over_and_wake_up_loses_nothing(mutex: Mutex) -> None:
    assert mutex.acquire()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    lost = a_waiter_on(loop, mutex)

    def release_and_stop() -> None:
        mutex.release()
        loop.stop()

    loop.call_soon(release_and_stop)
    loop.run_forever()
    loop.close()
    assert mutex.locked
    assert mutex.acquire(DEADLINE)
    del lost
    gc.collect()
    assert mutex.locked
    mutex.release()


def test_a_waiter_whose_loop_stands_still_holds_nobody_up(mutex: Mutex) -> None:
    assert mutex.acquire()
    loop = asyncio.new_event_loop()
    try:
        sleeper = a_waiter_on(loop, mutex)
        mutex.release()
        for _ in range(3):
            assert mutex.acquire(0)
            mutex.release()
        assert mutex.waiting == 1
        assert loop.run_until_complete(asyncio.wait_for(sleeper, DEADLINE))
        assert mutex.locked
        mutex.release()
    finally:
        loop.close()


def test_a_waiter_whose_loop_runs_again_has_kept_its_place(mutex: Mutex) -> None:
    assert mutex.acquire()
    loop = asyncio.new_event_loop()
    try:
        with ThreadPoolExecutor(2) as pool:
            first, second = a_waiter_on(loop, mutex), a_waiter_on(loop, mutex)
            third = pool.submit(mutex.acquire, DEADLINE)
            until(lambda: mutex.waiting == 3)
            fourth = pool.submit(mutex.acquire, DEADLINE)
            until(lambda: mutex.waiting == 4)
            mutex.release()
            assert third.result(DEADLINE)
            for task, later in ((first, second), (second, fourth)):
                loop.call_soon(mutex.release)
                assert loop.run_until_complete(asyncio.wait_for(task, DEADLINE))
                assert not later.done()
            mutex.release()
            assert fourth.result(DEADLINE)
        mutex.release()
    finally:
        loop.close()


def test_it_may_be_released_elsewhere_than_it_was_acquired(mutex: Mutex) -> None:
    with loop_in_a_thread() as one, loop_in_a_thread() as two:

        async def release() -> None:
            mutex.release()

        assert asyncio.run_coroutine_threadsafe(mutex.acquire_async(), one).result(DEADLINE)
        waiting = asyncio.run_coroutine_threadsafe(mutex.acquire_async(), one)
        until(lambda: mutex.waiting == 1)
        asyncio.run_coroutine_threadsafe(release(), two).result(DEADLINE)
        assert waiting.result(DEADLINE)
        mutex.release()
        assert mutex.acquire(0)
        asyncio.run_coroutine_threadsafe(release(), two).result(DEADLINE)


def test_threads_and_loops_at_once_lose_no_count(mutex: Mutex) -> None:
    rounds, tasks, threads = 150, 4, 4
    count = 0
    inside = False
    start = threading.Barrier(threads + 2)

    def in_thread() -> None:
        nonlocal count, inside
        start.wait(DEADLINE)
        for _ in range(rounds):
            assert mutex.acquire(DEADLINE)
            assert not inside
            inside = True
            seen = count
            time.sleep(0)  # let another thread see it, if it can
            count = seen + 1
            inside = False
            mutex.release()

    async def in_task() -> None:
        nonlocal count, inside
        for _ in range(rounds):
            assert await mutex.acquire_async(DEADLINE)
            assert not inside
            inside = True
            seen = count
            await asyncio.sleep(0)
            count = seen + 1
            inside = False
            mutex.release()

    def in_loop() -> None:
        async def all_tasks() -> None:
            start.wait(DEADLINE)
            await asyncio.gather(*(in_task() for _ in range(tasks)))

        asyncio.run(all_tasks())

    with ThreadPoolExecutor(threads + 2) as pool:
        workers = [pool.submit(in_thread) for _ in range(threads)]
        workers += [pool.submit(in_loop) for _ in range(2)]
        for worker in workers:
            worker.result(DEADLINE * 2)
    assert count == rounds * (threads + 2 * tasks)
