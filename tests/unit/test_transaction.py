"""What the stack of savepoints sends, case by case. Random schedules: ``test_stack_model.py``."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from sandbox.core.frames import Poison, Transaction
from sandbox.core.lineage import descends, enlist
from sandbox.core.statements import Kind
from sandbox.core.transaction import MARKER, Stack

MARK = f"SAVEPOINT {MARKER}"
END = [f"ROLLBACK TO {MARK}", "ROLLBACK"]


@pytest.fixture
def fresh() -> Stack:
    """Nothing has been sent."""
    return Stack()


@pytest.fixture
def stack(fresh: Stack) -> Stack:
    """One transaction has committed, so that those to come need savepoints."""
    committed(fresh)
    return fresh


def write(stack: Stack, transaction: Transaction) -> list[str]:
    return stack.enter(transaction, Kind.WRITE)


def read(stack: Stack, transaction: Transaction) -> list[str]:
    return stack.enter(transaction, Kind.READ)


def fail(stack: Stack, transaction: Transaction) -> None:
    """A statement of the transaction, refused by the server."""
    stack.enter(transaction, Kind.WRITE)
    stack.fail(transaction)


def savepoint(stack: Stack, transaction: Transaction, label: str) -> list[str]:
    return [*stack.enter(transaction, Kind.SAVEPOINT), stack.savepoint(transaction, label)]


def rollback_to(stack: Stack, transaction: Transaction, label: str) -> list[str]:
    sql = stack.enter(transaction, Kind.ROLLBACK_TO)
    frame = transaction.frame(label)
    assert frame is not None
    return [*sql, stack.rollback_to(transaction, frame)]


def release(stack: Stack, transaction: Transaction, label: str) -> list[str]:
    sql = stack.enter(transaction, Kind.RELEASE)
    frame = transaction.frame(label)
    assert frame is not None
    return [*sql, stack.release(transaction, frame)]


def committed(stack: Stack) -> Transaction:
    """A transaction that wrote and committed."""
    transaction = Transaction()
    stack.enter(transaction, Kind.WRITE)
    assert stack.commit(transaction) == []
    return transaction


# --- one after the other ---------------------------------------------------------------------


def test_the_first_transaction_is_the_outer_one_and_needs_no_savepoint(fresh: Stack) -> None:
    first = Transaction()
    assert read(fresh, first) == ["BEGIN", MARK]
    assert write(fresh, first) == []
    assert fresh.commit(first) == []
    assert write(fresh, Transaction()) == ["SAVEPOINT sandbox_1"]
    assert fresh.finish() == END


def test_the_rollback_of_the_first_is_a_rollback_and_the_next_begins_anew(fresh: Stack) -> None:
    first = Transaction()
    write(fresh, first)
    assert fresh.rollback(first) == END
    assert fresh.finish() == []
    second = Transaction(isolation="SERIALIZABLE")
    assert write(fresh, second) == ["BEGIN ISOLATION LEVEL SERIALIZABLE", MARK]
    fail(fresh, second)
    assert write(fresh, Transaction()) == [*END, "BEGIN", MARK]


def test_the_first_one_if_it_only_reads_gives_its_place_away(fresh: Stack) -> None:
    reader, writer = Transaction(), Transaction()
    read(fresh, reader)
    assert write(fresh, writer) == []
    fresh.commit(writer)
    assert read(fresh, reader) == ["SAVEPOINT sandbox_1"]
    assert fresh.rollback(reader) == []
    assert fresh.poison is None


def test_savepoints_of_the_first_are_released_by_the_next(fresh: Stack) -> None:
    first = Transaction()
    assert savepoint(fresh, first, "here") == ["BEGIN", MARK, "SAVEPOINT sandbox_1"]
    write(fresh, first)
    assert fresh.commit(first) == []
    assert write(fresh, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_2"]


def test_a_first_one_that_is_read_only_needs_a_savepoint(fresh: Stack) -> None:
    first = Transaction(read_only=True)
    assert read(fresh, first) == ["BEGIN", MARK, "SAVEPOINT sandbox_1", "SET TRANSACTION READ ONLY"]
    fresh.commit(first)
    assert write(fresh, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_2"]


def test_a_read_only_one_does_not_take_over_the_outer_transaction(fresh: Stack) -> None:
    read(fresh, Transaction())
    assert read(fresh, Transaction(read_only=True)) == [
        "SAVEPOINT sandbox_1",
        "SET TRANSACTION READ ONLY",
    ]


def test_a_commit_sends_nothing_and_its_release_rides_on_the_next_savepoint(stack: Stack) -> None:
    first = Transaction()
    write(stack, first)
    assert stack.commit(first) == []
    assert first.over
    assert write(stack, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_2"]


@pytest.mark.parametrize("end", [Stack.commit, Stack.rollback])
def test_the_frame_of_one_that_only_read_is_taken_over_at_no_cost(stack: Stack, end) -> None:
    first = Transaction()
    read(stack, first)
    assert end(stack, first) == []
    assert write(stack, Transaction()) == []


def test_the_rollback_of_one_that_wrote_is_one_statement(stack: Stack) -> None:
    first = Transaction()
    write(stack, first)
    assert stack.rollback(first) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert first.over
    assert write(stack, Transaction()) == [], "what was rolled back is free for the next"


def test_one_that_never_ran_a_statement_sends_nothing(fresh: Stack) -> None:
    assert fresh.commit(Transaction()) == []
    assert fresh.rollback(Transaction()) == []
    assert fresh.finish() == []
    assert not fresh.begun


def test_the_end_rolls_back_and_leaves_everybody_over(stack: Stack) -> None:
    first = Transaction()
    write(stack, first)
    assert stack.finish() == END
    assert first.over
    assert stack.finish() == []


def test_a_thousand_transactions_pile_nothing_up(stack: Stack) -> None:
    parent = Transaction()
    write(stack, parent)
    for number in range(1000):
        child = Transaction()
        savepoint(stack, child, "a")
        if number % 2:
            write(stack, child)
        stack.commit(child)
        stack.settle(parent)
        stack.guard()
    assert len(stack.frames) < 5


# --- what a transaction is ---------------------------------------------------------------------


def test_the_first_ones_isolation_level_is_that_of_the_outer_transaction(fresh: Stack) -> None:
    sent = read(fresh, Transaction(isolation="SERIALIZABLE"))
    assert sent == ["BEGIN ISOLATION LEVEL SERIALIZABLE", MARK]
    assert fresh.isolation == "SERIALIZABLE"
    assert fresh.finish() == END
    assert fresh.isolation is None


def test_read_only_is_set_inside_the_savepoint(stack: Stack) -> None:
    assert read(stack, Transaction(read_only=True)) == [
        "SAVEPOINT sandbox_1",
        "SET TRANSACTION READ ONLY",
    ]
    assert read(stack, Transaction(read_only=False)) == [
        "RELEASE SAVEPOINT sandbox_1",
        "SAVEPOINT sandbox_2",
    ]


@pytest.mark.parametrize("end", [Stack.commit, Stack.rollback])
def test_a_savepoint_that_is_read_only_is_not_taken_over(stack: Stack, end) -> None:
    reader = Transaction(read_only=True)
    read(stack, reader)
    assert end(stack, reader) == []
    assert write(stack, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_2"]


def test_a_guard_inside_a_read_only_savepoint_is_not_taken_over(stack: Stack) -> None:
    reader = Transaction(read_only=True)
    read(stack, reader)
    assert stack.guard()[0] == ["SAVEPOINT sandbox_2"]
    assert write(stack, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_3"]


def test_a_transaction_does_not_leave_its_savepoints_to_the_next(stack: Stack) -> None:
    first = Transaction()
    savepoint(stack, first, "a")
    stack.commit(first)
    assert write(stack, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_3"]


def test_what_a_read_only_one_calls_does_not_keep_others_inside_it(stack: Stack) -> None:
    """A function may write for all that its text tells, but READ ONLY lets it not."""
    reader, writer = Transaction(read_only=True), Transaction()
    write(stack, reader)
    assert stack.blocker(writer, Kind.WRITE) is None
    assert write(stack, writer) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_2"]


def test_the_rollback_of_a_read_only_one_ends_what_it_set(stack: Stack) -> None:
    reader = Transaction(read_only=True)
    stack.enter(reader, Kind.WRITE)
    assert stack.rollback(reader) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert write(stack, Transaction()) == [], "rolling back has ended READ ONLY, too"


# --- savepoints of the application -----------------------------------------------------------


def test_savepoints_get_names_of_their_own(stack: Stack) -> None:
    first = Transaction()
    assert savepoint(stack, first, "a")[-1] == "SAVEPOINT sandbox_2"
    assert savepoint(stack, first, "b") == ["SAVEPOINT sandbox_3"]
    assert rollback_to(stack, first, "a") == ["ROLLBACK TO SAVEPOINT sandbox_2"]
    assert first.frame("b") is None
    assert release(stack, first, "a") == ["RELEASE SAVEPOINT sandbox_2"]
    assert first.frame("a") is None


def test_of_the_same_name_the_innermost_is_meant(stack: Stack) -> None:
    first = Transaction()
    savepoint(stack, first, "a")
    savepoint(stack, first, "a")
    assert rollback_to(stack, first, "a") == ["ROLLBACK TO SAVEPOINT sandbox_3"]
    assert release(stack, first, "a") == ["RELEASE SAVEPOINT sandbox_3"]
    assert rollback_to(stack, first, "a") == ["ROLLBACK TO SAVEPOINT sandbox_2"]


def test_the_same_name_in_two_transactions_is_two_savepoints(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    savepoint(stack, parent, "a")
    write(stack, parent)
    savepoint(stack, child, "a")
    write(stack, child)
    assert release(stack, child, "a") == ["RELEASE SAVEPOINT sandbox_4"]
    stack.commit(child)
    assert rollback_to(stack, parent, "a")[-1] == "ROLLBACK TO SAVEPOINT sandbox_2"


def test_releasing_a_savepoint_keeps_what_was_written_in_it(stack: Stack) -> None:
    first = Transaction()
    savepoint(stack, first, "a")
    write(stack, first)
    release(stack, first, "a")
    assert stack.rollback(first) == ["ROLLBACK TO SAVEPOINT sandbox_1"]


def test_rolling_back_to_the_only_savepoint_written_in_leaves_nothing_to_undo(stack: Stack) -> None:
    first = Transaction()
    savepoint(stack, first, "a")
    write(stack, first)
    rollback_to(stack, first, "a")
    assert stack.rollback(first) == []


def test_savepoints_of_one_that_only_read_are_made_again_when_it_goes_on(stack: Stack) -> None:
    reader = Transaction()
    savepoint(stack, reader, "a")
    committed(stack)
    assert reader.frames == []
    assert read(stack, reader) == [
        "RELEASE SAVEPOINT sandbox_3",
        "SAVEPOINT sandbox_4",
        "SAVEPOINT sandbox_5",
    ]
    assert rollback_to(stack, reader, "a") == ["ROLLBACK TO SAVEPOINT sandbox_5"]


# --- failures --------------------------------------------------------------------------------


def test_rolling_back_to_a_savepoint_ends_a_failure(stack: Stack) -> None:
    first = Transaction()
    savepoint(stack, first, "a")
    fail(stack, first)
    assert (first.failed, stack.aborted_by) == (True, first)
    rollback_to(stack, first, "a")
    assert (first.failed, stack.aborted_by) == (False, None)
    assert write(stack, first) == []


def test_a_savepoint_that_the_server_refused_is_not_counted_on(stack: Stack) -> None:
    failed = Transaction()
    fail(stack, failed)
    assert savepoint(stack, failed, "a") == ["SAVEPOINT sandbox_2"]
    assert failed.frame("a") is None
    assert read(stack, Transaction()) == ["ROLLBACK TO SAVEPOINT sandbox_1"]


def test_the_commit_of_a_failed_one_is_a_rollback(stack: Stack) -> None:
    first = Transaction()
    fail(stack, first)
    assert stack.commit(first) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert stack.aborted_by is None


def test_a_failure_is_healed_when_another_comes(stack: Stack) -> None:
    failed, other = Transaction(), Transaction()
    fail(stack, failed)
    assert stack.blocker(other, Kind.WRITE) is None
    assert write(stack, other) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert (failed.failed, stack.aborted_by) == (True, None)
    assert stack.rollback(failed) == [], "there is nothing left of it"


def test_a_failure_is_healed_to_its_innermost_savepoint(stack: Stack) -> None:
    failed = Transaction()
    write(stack, failed)
    savepoint(stack, failed, "a")
    fail(stack, failed)
    assert read(stack, Transaction()) == [
        "ROLLBACK TO SAVEPOINT sandbox_2",
        "SAVEPOINT sandbox_3",
    ]
    assert rollback_to(stack, failed, "a") == [
        "RELEASE SAVEPOINT sandbox_3",
        "ROLLBACK TO SAVEPOINT sandbox_2",
    ]
    assert not failed.failed


def test_a_failure_hinders_nobody_below(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    fail(stack, child)
    assert stack.blocker(parent, Kind.WRITE) is None
    assert stack.blocker(parent, Kind.ROLLBACK) is None
    assert stack.rollback(parent) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert stack.aborted_by is None
    assert stack.poison is None, "what has failed was lost already"
    assert write(stack, Transaction()) == []
    assert stack.rollback(child) == []


def test_a_failure_with_work_below_its_savepoint_does(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    write(stack, child)
    savepoint(stack, child, "a")
    fail(stack, child)
    assert stack.blocker(parent, Kind.WRITE) is child


# --- two at once -----------------------------------------------------------------------------


def test_one_that_only_read_is_in_nobodys_way(stack: Stack) -> None:
    reader, writer = Transaction(), Transaction()
    read(stack, reader)
    assert stack.blocker(writer, Kind.WRITE) is None
    assert write(stack, writer) == []
    assert stack.rollback(reader) == []
    assert stack.commit(writer) == []


def test_a_second_one_nests_in_the_work_of_the_first(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    assert stack.blocker(child, Kind.WRITE) is parent
    assert write(stack, child) == ["SAVEPOINT sandbox_2"]
    assert stack.rollback(child) == ["ROLLBACK TO SAVEPOINT sandbox_2"]
    assert write(stack, parent) == ["RELEASE SAVEPOINT sandbox_2"]


def test_reading_never_waits(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    assert stack.blocker(child, Kind.READ) is None
    write(stack, child)
    assert stack.blocker(parent, Kind.READ) is None


def test_below_the_top_whatever_changes_something_waits(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    savepoint(stack, parent, "a")
    write(stack, parent)
    write(stack, child)
    for kind in Kind.WRITE, Kind.SAVEPOINT, Kind.ROLLBACK_TO, Kind.RELEASE, Kind.ROLLBACK:
        assert stack.blocker(parent, kind) is child
        assert stack.blocker(child, kind) is None
    stack.commit(child)
    assert stack.blocker(parent, Kind.WRITE) is None


def test_what_sends_nothing_does_not_wait(stack: Stack) -> None:
    parent, child, reader = Transaction(), Transaction(), Transaction()
    write(stack, parent)
    write(stack, child)
    assert stack.blocker(parent, Kind.COMMIT) is None
    assert stack.blocker(reader, Kind.ROLLBACK) is None


def test_the_commit_of_a_failed_one_waits_as_a_rollback_does(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    write(stack, child)
    parent.failed = True  # a guarded read
    assert stack.blocker(parent, Kind.COMMIT) is child
    stack.commit(child)
    assert stack.blocker(parent, Kind.COMMIT) is None


def test_a_read_below_the_top_is_guarded(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    write(stack, child)
    assert (stack.below_top(parent), stack.below_top(child)) == (True, False)
    assert stack.settle(parent) == []
    sql, guard = stack.guard()
    assert sql == ["SAVEPOINT sandbox_3"]
    assert stack.undo_guard(guard) == ["ROLLBACK TO SAVEPOINT sandbox_3"]
    assert stack.guard() == ([], guard), "one guard serves many reads"
    assert write(stack, child) == ["RELEASE SAVEPOINT sandbox_3"]


def test_a_commit_below_the_top_is_released_when_it_comes_free(stack: Stack) -> None:
    parent, child = Transaction(), Transaction()
    write(stack, parent)
    write(stack, child)
    assert stack.commit(parent) == []
    assert stack.rollback(child) == ["ROLLBACK TO SAVEPOINT sandbox_2"]
    assert write(stack, Transaction()) == ["RELEASE SAVEPOINT sandbox_1", "SAVEPOINT sandbox_3"]
    assert stack.poison is None


# --- poison ----------------------------------------------------------------------------------


def test_rolling_back_what_others_committed_inside_is_poison(stack: Stack) -> None:
    parent = Transaction()
    write(stack, parent)
    first, second = committed(stack), committed(stack)
    assert stack.rollback(parent) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert stack.poison == Poison(parent, (first, second))


def test_committing_passes_on_whose_work_it_holds(stack: Stack) -> None:
    outermost, parent = Transaction(), Transaction()
    write(stack, outermost)
    write(stack, parent)
    child = committed(stack)
    stack.commit(parent)
    stack.rollback(outermost)
    assert stack.poison is not None
    assert set(stack.poison.victims) == {parent, child}


def test_both_committing_is_no_poison(stack: Stack) -> None:
    parent = Transaction()
    write(stack, parent)
    committed(stack)
    stack.commit(parent)
    committed(stack)
    assert stack.finish() == END
    assert stack.poison is None


def test_what_did_not_write_is_no_victim(stack: Stack) -> None:
    parent, reader, undone = Transaction(), Transaction(), Transaction()
    write(stack, parent)
    read(stack, reader)
    stack.commit(reader)
    write(stack, undone)
    stack.rollback(undone)
    stack.rollback(parent)
    assert stack.poison is None


def test_a_parent_that_only_reads_never_poisons(stack: Stack) -> None:
    parent = Transaction()
    read(stack, parent)
    committed(stack)
    read(stack, parent)
    assert stack.rollback(parent) == []
    assert stack.poison is None


def test_a_savepoint_that_was_not_written_in_passes_on_what_others_committed(stack: Stack) -> None:
    parent = Transaction()
    write(stack, parent)
    savepoint(stack, parent, "a")
    committed(stack)
    assert rollback_to(stack, parent, "a") == [
        "RELEASE SAVEPOINT sandbox_2",
        "SAVEPOINT sandbox_4",
        "ROLLBACK TO SAVEPOINT sandbox_4",
    ]
    assert stack.poison is None
    stack.rollback(parent)
    assert stack.poison is not None, "the transaction itself has written before"


def test_a_failure_that_was_healed_harms_nobody_who_came_after(stack: Stack) -> None:
    parent = Transaction()
    write(stack, parent)
    savepoint(stack, parent, "a")
    fail(stack, parent)
    committed(stack)
    rollback_to(stack, parent, "a")
    assert stack.poison is None


def test_a_savepoint_that_was_written_in_takes_others_work_along(stack: Stack) -> None:
    parent = Transaction()
    savepoint(stack, parent, "a")
    write(stack, parent)
    child = committed(stack)
    rollback_to(stack, parent, "a")
    assert stack.poison == Poison(parent, (child,))


def test_releasing_a_savepoint_passes_on_what_others_committed_in_it(stack: Stack) -> None:
    parent = Transaction()
    savepoint(stack, parent, "a")
    write(stack, parent)
    child = committed(stack)
    release(stack, parent, "a")
    stack.rollback(parent)
    assert stack.poison == Poison(parent, (child,))


def test_healing_may_poison(stack: Stack) -> None:
    parent = Transaction()
    write(stack, parent)
    child = committed(stack)
    fail(stack, parent)
    assert stack.poison is None
    read(stack, Transaction())
    assert stack.poison == Poison(parent, (child,))


# --- abandoned -------------------------------------------------------------------------------


def test_an_abandoned_one_is_rolled_back_by_whoever_comes_next(stack: Stack) -> None:
    lost = Transaction()
    write(stack, lost)
    stack.abandon(lost)
    assert not lost.over
    newcomer = Transaction()
    assert stack.blocker(newcomer, Kind.WRITE) is None
    assert write(stack, newcomer) == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert lost.over


def test_several_are_rolled_back_from_the_top(stack: Stack) -> None:
    lower, upper = Transaction(), Transaction()
    write(stack, lower)
    write(stack, upper)
    stack.abandon(upper)
    stack.abandon(lower)
    assert stack.settle() == ["ROLLBACK TO SAVEPOINT sandbox_2", "ROLLBACK TO SAVEPOINT sandbox_1"]
    assert stack.poison is None


def test_an_abandoned_one_with_others_work_on_top_is_left_until_they_end(stack: Stack) -> None:
    lost, child = Transaction(), Transaction()
    write(stack, lost)
    write(stack, child)
    stack.abandon(lost)
    assert write(stack, child) == []
    stack.rollback(child)
    assert stack.settle() == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert stack.poison is None


def test_the_failure_of_an_abandoned_one_goes_with_it(stack: Stack) -> None:
    lost = Transaction()
    fail(stack, lost)
    stack.abandon(lost)
    assert stack.settle() == ["ROLLBACK TO SAVEPOINT sandbox_1"]
    assert stack.aborted_by is None


def test_a_failed_one_above_an_abandoned_one_keeps_its_failure(stack: Stack) -> None:
    lost, failed = Transaction(), Transaction()
    write(stack, lost)
    savepoint(stack, failed, "a")
    fail(stack, failed)
    stack.abandon(lost)
    assert read(stack, failed) == []
    assert stack.aborted_by is failed
    assert rollback_to(stack, failed, "a") == ["ROLLBACK TO SAVEPOINT sandbox_3"]


def test_the_rollback_of_a_parent_does_not_count_the_abandoned(stack: Stack) -> None:
    parent, lost = Transaction(), Transaction()
    write(stack, parent)
    write(stack, lost)
    stack.abandon(lost)
    assert stack.blocker(parent, Kind.ROLLBACK) is None
    stack.rollback(parent)
    assert stack.poison is None
    assert stack.settle() == []


def test_one_that_is_over_cannot_be_abandoned(stack: Stack) -> None:
    done = committed(stack)
    stack.abandon(done)
    assert stack.settle() == []


# --- who descends ----------------------------------------------------------------------------


def test_the_thread_that_began_it_descends(stack: Stack) -> None:
    mine = Transaction(thread=threading.current_thread())
    assert descends(mine)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(descends(mine)))
    thread.start()
    thread.join()
    assert found == [False]


def test_tasks_started_while_it_was_open_descend_and_siblings_do_not() -> None:
    found: dict[str, bool] = {}

    async def child(holder: Transaction, name: str) -> None:
        found[name] = descends(holder)

    async def parent(holder: Transaction, ready: asyncio.Event) -> None:
        enlist(holder)
        found["itself"] = descends(holder)
        await asyncio.create_task(child(holder, "child"))
        await asyncio.to_thread(lambda: found.update(worker=descends(holder)))
        ready.set()

    async def main() -> None:
        holder, ready = Transaction(), asyncio.Event()
        task = asyncio.create_task(parent(holder, ready))
        await ready.wait()
        await child(holder, "sibling")
        await task

    asyncio.run(main())
    assert found == {"itself": True, "child": True, "worker": True, "sibling": False}


def test_a_context_does_not_collect_transactions_that_are_over() -> None:
    def many() -> list[bool]:
        past = [Transaction() for _ in range(10)]
        for transaction in past:
            enlist(transaction)
            transaction.over = True
        enlist(Transaction())
        return [descends(transaction) for transaction in past]

    assert not any(contextvars.copy_context().run(many))
