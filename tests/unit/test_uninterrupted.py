"""Awaiting to the end whatever happens, and being cancelled after it."""

from __future__ import annotations

import asyncio

import pytest

from sandbox.adapters.sqlalchemy.io import uninterrupted


async def test_the_result_and_the_error_come_through() -> None:
    async def work(fail: bool) -> str:
        await asyncio.sleep(0)
        if fail:
            raise ValueError("no")
        return "done"

    assert await uninterrupted(work(fail=False)) == "done"
    with pytest.raises(ValueError, match="no"):
        await uninterrupted(work(fail=True))


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_a_cancellation_waits_until_all_is_done(cancels: int) -> None:
    steps: list[str] = []
    gates = [asyncio.get_running_loop().create_future() for _ in range(3)]

    async def work() -> None:
        for number, gate in enumerate(gates):
            await gate
            await asyncio.sleep(0)
            steps.append(f"{number}")

    async def outer() -> None:
        await uninterrupted(work())
        steps.append("never reached")

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    for _ in range(cancels):
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    assert not task.done()
    assert not any(gate.cancelled() for gate in gates)
    for gate in gates:
        gate.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["0", "1", "2"]


async def test_it_works_in_a_timeout() -> None:
    gate = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.02, gate.set_result, "late")

    async def work() -> str:
        result: str = await gate
        return result

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await uninterrupted(work())
    assert gate.result() == "late"
