"""The comparison's other rows: several sessions of an application at once.

A and B are on connections of their own in production; on one real connection the one that begins
later lies inside the other.
"""

from __future__ import annotations

import threading

from tests.fidelity.rows import ADD, SAME, Row
from tests.fidelity.worlds import World, attempt

__all__ = ("INTERLEAVING",)


def rollback_over_a_commit(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run(ADD.format("a"))
        b.run(ADD.format("b"))
        b.commit()
        a.rollback()
        return _kept(a.names())


def both_commit(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run(ADD.format("a"))
        b.run(ADD.format("b"))
        b.commit()
        a.commit()
        return _kept(a.names())


def commit_below_the_top(world: World) -> str:
    """The one that began first ends first."""
    with world.session() as a, world.session() as b:
        a.run(ADD.format("a"))
        b.run(ADD.format("b"))
        a.commit()
        b.commit()
        return _kept(a.names())


def commit_below_then_rollback_above(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run(ADD.format("a"))
        b.run(ADD.format("b"))
        a.commit()
        b.rollback()
        return _kept(b.names())


def write_below_the_top(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run(ADD.format("a"))
        b.run(ADD.format("b"))
        a.run(ADD.format("c"))
        b.rollback()
        a.commit()
        return _kept(a.names())


def reader_rolls_back(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.names()
        b.run(ADD.format("b"))
        b.commit()
        a.rollback()
        return _kept(a.names())


def reader_reads_again(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.names()
        b.run(ADD.format("b"))
        seen = a.names()
        b.rollback()
        again = a.names()
        a.rollback()
        return "uncommitted rows seen" if seen and not again else "uncommitted rows not seen"


def savepoint_names(world: World) -> str:
    """Both call a savepoint by the same name; the other's is the last one made."""
    with world.session() as a, world.session() as b:
        a.names()
        a.run("SAVEPOINT here")
        b.run(ADD.format("b0"))
        b.run("SAVEPOINT here")
        b.run(ADD.format("b1"))
        b.run("ROLLBACK TO SAVEPOINT here")
        b.commit()
        a.run(ADD.format("a"))
        a.run("ROLLBACK TO SAVEPOINT here")
        a.commit()
        return _kept(a.names())


def savepoint_below_the_top(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run("SAVEPOINT here")
        a.run(ADD.format("a"))
        b.run("SAVEPOINT here")
        b.names()
        a.run("ROLLBACK TO SAVEPOINT here")
        b.run(ADD.format("b"))
        b.commit()
        a.commit()
        return _kept(a.names())


def failure_beside_a_healthy_one(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.fails("SELECT * FROM nowhere")
        b.run(ADD.format("b"))
        b.commit()
        error = a.fails("SELECT 1")
        a.rollback()
        return _kept(a.names()) + f", {error or 'no error'} in the failed one"


def parent_waits_for_a_child(world: World) -> str:
    """A session holds its transaction while a thread commits and is waited for."""
    with world.session() as a:
        a.run(ADD.format("a"))

        def child() -> None:
            with world.session() as b:
                b.run(ADD.format("b"))
                b.commit()

        world.in_thread(child)
        a.commit()
        return _kept(a.names())


def parent_rolls_back_after_the_child(world: World) -> str:
    with world.session() as a:
        a.run(ADD.format("a"))

        def child() -> None:
            with world.session() as b:
                b.run(ADD.format("b"))
                b.commit()

        world.in_thread(child)
        a.rollback()
        return _kept(a.names())


def parent_only_reads(world: World) -> str:
    with world.session() as a:
        a.names()

        def child() -> None:
            with world.session() as b:
                b.run(ADD.format("b"))
                b.commit()

        world.in_thread(child)
        a.rollback()
        return _kept(a.names())


def threads_in_turn(world: World) -> str:
    """Four threads, each with sessions of its own, all at once."""

    def worker(number: int) -> None:
        for step in range(5):
            with world.session() as a:
                a.run(ADD.format(f"{number}-{step}"))
                a.commit()

    def all_of_them() -> None:
        failures: list[BaseException] = []

        def guarded(number: int) -> None:
            try:
                worker(number)
            except BaseException as error:
                failures.append(error)
            finally:
                world.thread_ends()

        threads = [
            threading.Thread(target=guarded, args=(number,), name="worker", daemon=True)
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        if failures:
            raise failures[0]

    try:
        all_of_them()
    except Exception:
        return "errors"
    with world.session() as a:
        count = len(a.names())
        return "all kept" if count == 20 else f"{count} of 20 seen"


def pending_violation_while_another_commits(world: World) -> str:
    """What one session will repair before its own commit is no business of another's commit."""
    with world.session() as a, world.session() as b:
        a.run("INSERT INTO children VALUES (1, 1)")
        b.run(ADD.format("b"))
        b.commit()
        a.run("INSERT INTO parents VALUES (1)")
        if error := attempt(a.commit):
            return f"{error} at commit"
        return "both commit"


def same_key_twice(world: World) -> str:
    """Both insert the same key; the first rolls back while the second waits for it."""
    with world.session() as a, world.session() as b:
        b.run("SET LOCAL lock_timeout = '100ms'")
        a.run(ADD.format("a"))
        error = b.fails(ADD.format("a"))
        b.rollback()
        a.rollback()
        return {"LockNotAvailable": "waits for the other"}.get(error, error or "both insert")


def skip_locked(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run(ADD.format("a"))
        a.commit()
        a.run("SELECT name FROM items FOR UPDATE")
        seen = b.names()
        found = b.run("SELECT name FROM items FOR UPDATE SKIP LOCKED")
        b.rollback()
        a.rollback()
        return "takes the row too" if found else "skips the row" if seen else "sees no row"


def repeatable_read(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        a.names()
        b.run(ADD.format("b"))
        b.commit()
        seen = a.names()
        a.rollback()
        return "sees the later commit" if seen else "keeps its snapshot"


def _kept(names: list[str]) -> str:
    return f"{', '.join(names)} kept" if names else "nothing kept"


INTERLEAVING = (
    Row(
        "A writes, B commits, A rolls back",
        rollback_over_a_commit,
        "b kept",
        "nothing kept",
        "b kept; LEAK",
        "InterleavedTransactionError",
    ),
    Row("A writes, B commits, A commits", both_commit, "a, b kept", SAME, "a, b kept; LEAK"),
    Row(
        "A and B write, A commits first",
        commit_below_the_top,
        "a, b kept",
        "InvalidSavepointSpecification",
        "a, b kept; LEAK",
    ),
    Row(
        "A and B write, A commits first, B rolls back",
        commit_below_then_rollback_above,
        "a kept",
        "InvalidSavepointSpecification",
        "nothing kept",
    ),
    Row(
        "A and B write, A writes again",
        write_below_the_top,
        "a, c kept",
        "a kept",
        SAME,
        "SandboxBusyError",
    ),
    Row(
        "A reads, B commits, A rolls back",
        reader_rolls_back,
        "b kept",
        "nothing kept",
        "b kept; LEAK",
    ),
    Row(
        "A fails, B commits, A goes on",
        failure_beside_a_healthy_one,
        "b kept, InFailedSqlTransaction in the failed one",
        "InFailedSqlTransaction",
        "b kept, InFailedSqlTransaction in the failed one; LEAK",
    ),
    Row(
        "savepoints of one name, B's ends first",
        savepoint_names,
        "b0 kept",
        "nothing kept",
        "b0 kept; LEAK",
    ),
    Row(
        "savepoints of one name, A rolls back to its own below B's",
        savepoint_below_the_top,
        "b kept",
        "a, b kept",
        "b kept; LEAK",
    ),
    Row(
        "A writes and waits for a thread that commits",
        parent_waits_for_a_child,
        "a, b kept",
        SAME,
        "a, b kept; LEAK",
    ),
    Row(
        "A writes, waits for a thread that commits, rolls back",
        parent_rolls_back_after_the_child,
        "b kept",
        "nothing kept",
        "b kept; LEAK",
        "InterleavedTransactionError",
    ),
    Row(
        "A reads, waits for a thread that commits, rolls back",
        parent_only_reads,
        "b kept",
        "nothing kept",
        "b kept; LEAK",
    ),
    Row(
        "four threads, five commits each",
        threads_in_turn,
        "all kept",
        "errors",
        "all kept; LEAK",
    ),
    Row(
        "B commits while A has a deferred violation that it repairs",
        pending_violation_while_another_commits,
        "both commit",
        SAME,
        "both commit; LEAK",
    ),
    Row(
        "A writes, does B see it?",
        reader_reads_again,
        "uncommitted rows not seen",
        "uncommitted rows seen",
        SAME,
        "uncommitted rows seen",
    ),
    Row(
        "A and B insert the same key",
        same_key_twice,
        "waits for the other",
        "InvalidSavepointSpecification",
        SAME,
        "UniqueViolation",
    ),
    Row(
        "B says `SKIP LOCKED` where A holds the row",
        skip_locked,
        "skips the row",
        "takes the row too",
        "sees no row",
        "takes the row too",
    ),
    Row(
        "A is `REPEATABLE READ`, B commits, A reads again",
        repeatable_read,
        "keeps its snapshot",
        "ActiveSqlTransaction",
        "ActiveSqlTransaction",
        "sees the later commit",
    ),
)
