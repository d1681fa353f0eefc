"""The comparison's first rows: where a commit inside a test is not a COMMIT.

Each scenario is an application's code, in the words of :mod:`tests.fidelity.worlds`, and tells in
a few words what came of it.
"""

from __future__ import annotations

from tests.fidelity.rows import ADD
from tests.fidelity.worlds import World, attempt

# -- F1: the commit of a failed transaction --------------------------------------------------------


def failed_commit(world: World) -> str:
    with world.session() as a:
        a.run(ADD.format("a"))
        a.fails("SELECT * FROM nowhere")
        if error := attempt(a.commit):
            return f"{error} at commit"
        return "kept" if a.names() else "rolled back, no error"


# -- F2: deferred constraints ----------------------------------------------------------------------


def deferred_constraint(world: World) -> str:
    with world.session() as a:
        a.run("INSERT INTO children VALUES (1, -1)")
        if error := attempt(a.commit):
            a.rollback()
            return f"{error} at commit"
        return "passes"


def deferred_trigger(world: World) -> str:
    with world.session() as a:
        a.run("INSERT INTO watched VALUES ('w')")
        a.commit()
        return "fired at commit" if a.run("SELECT note FROM audit") else "not fired"


def immediate_again(world: World) -> str:
    with world.session() as a:
        a.run("INSERT INTO places VALUES ('a', 1), ('b', 2)")
        a.commit()
        a.run("SET CONSTRAINTS ALL DEFERRED")
        a.run("UPDATE places SET place = 2 WHERE name = 'a'")
        a.run("UPDATE places SET place = 1 WHERE name = 'b'")
        a.commit()
        error = a.fails("INSERT INTO places VALUES ('c', 1)")
        a.rollback()
        return f"{error} at the statement" if error else "no error at the statement"


def deferred_in_autocommit(world: World) -> str:
    with world.automatic() as automatic:
        error = automatic.fails("INSERT INTO children VALUES (1, -1)")
        return f"{error} at the statement" if error else "passes"


# -- F3: SET LOCAL ---------------------------------------------------------------------------------


def set_local(world: World) -> str:
    with world.session() as a:
        a.run("SET LOCAL app.tenant = 'one'")
        a.run(ADD.format("a"))
        a.commit()
        (value,) = a.run("SELECT current_setting('app.tenant', true)")
        return "still set" if value else "ended at commit"


def set_config_local(world: World) -> str:
    with world.session() as a:
        a.run("SELECT set_config('statement_timeout', '7s', true)")
        a.commit()
        (value,) = a.run("SHOW statement_timeout")
        return "still set" if value == "7s" else "ended at commit"


def set_local_seen_by_another(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run("SET LOCAL app.tenant = 'one'")
        (value,) = b.run("SELECT current_setting('app.tenant', true)")
        b.rollback()
        (own,) = a.run("SELECT current_setting('app.tenant', true)")
        a.rollback()
        return ("seen" if value else "not seen") + ("" if own == "one" else ", lost")


# -- F4: locks -------------------------------------------------------------------------------------


def advisory_lock(world: World) -> str:
    with world.session() as a:
        a.run("SELECT pg_advisory_xact_lock(4711)")
        a.commit()
        (free,) = world.outside("SELECT pg_try_advisory_xact_lock(4711)")
        return "released at commit" if free else "still held"


def advisory_lock_and_a_write(world: World) -> str:
    with world.session() as a:
        a.run(ADD.format("a"))
        a.run("SELECT pg_advisory_xact_lock(4711)")
        a.commit()
        (free,) = world.outside("SELECT pg_try_advisory_xact_lock(4711)")
        return "released at commit" if free else "still held"


def advisory_lock_against_another(world: World) -> str:
    with world.session() as a, world.session() as b:
        a.run("SELECT pg_advisory_xact_lock(4711)")
        (free,) = b.run("SELECT pg_try_advisory_xact_lock(4711)")
        b.rollback()
        a.rollback()
        return "not kept out" if free else "kept out"


# -- F5: NOTIFY ------------------------------------------------------------------------------------


def notify(world: World) -> str:
    with world.listener("orders") as heard:
        with world.session() as a:
            a.run("NOTIFY orders, 'hello'")
            a.commit()
        return "delivered at commit" if heard() == ["hello"] else "never delivered"


# -- F6: what a commit drops and closes ------------------------------------------------------------


def on_commit_drop(world: World) -> str:
    with world.session() as a:
        a.run("CREATE TEMPORARY TABLE passing (x integer) ON COMMIT DROP")
        a.commit()
        error = a.fails("SELECT * FROM passing")
        a.rollback()
        return "dropped" if error == "UndefinedTable" else error or "still there"


def on_commit_delete_rows(world: World) -> str:
    with world.session() as a:
        a.run("CREATE TEMPORARY TABLE passing (x integer) ON COMMIT DELETE ROWS")
        a.commit()
        a.run("INSERT INTO passing VALUES (1)")
        a.commit()
        rows = a.run("SELECT x FROM passing")
        a.run("DROP TABLE passing")
        a.commit()
        return "rows stay" if rows else "emptied"


def cursor_without_hold(world: World) -> str:
    with world.session() as a:
        a.run("DECLARE passing CURSOR FOR SELECT 1")
        a.commit()
        error = a.fails("FETCH passing")
        a.rollback()
        return "closed" if error == "InvalidCursorName" else error or "still open"


def cursor_with_hold(world: World) -> str:
    with world.session() as a:
        a.run("DECLARE kept CURSOR WITH HOLD FOR SELECT 1")
        a.commit()
        error = a.fails("FETCH kept")
        if not error:
            a.run("CLOSE kept")
        a.rollback()
        return "closed" if error else "stays open"


# -- F7: the clock ---------------------------------------------------------------------------------


def _moves(world: World, clock: str) -> str:
    with world.session() as a:
        (first,) = a.run(f"SELECT {clock}")
        a.commit()
        (second,) = a.run(f"SELECT {clock}")
        a.rollback()
        return "moves" if second > first else "stands still"


def clock_now(world: World) -> str:
    return _moves(world, "now()")


def clock_default(world: World) -> str:
    with world.session() as a:
        for name in "ab":
            a.run(ADD.format(name))
            a.commit()
        first, second = a.run("SELECT made FROM items ORDER BY name")
        return "moves" if second > first else "stands still"


def clock_current_timestamp(world: World) -> str:
    return _moves(world, "CURRENT_TIMESTAMP")


def transaction_id(world: World) -> str:
    with world.session() as a:
        (first,) = a.run("SELECT txid_current()")
        a.commit()
        (second,) = a.run("SELECT txid_current()")
        a.rollback()
        return "the same" if first == second else "another"


# -- F8: sequences ---------------------------------------------------------------------------------


def sequence(world: World) -> str:
    with world.session() as a:
        (first,) = a.run("SELECT nextval('numbers')")
        a.rollback()
        (second,) = a.run("SELECT nextval('numbers')")
        a.commit()
        return "goes on" if second > first else "goes back"


# -- F9: read only, and isolation levels -----------------------------------------------------------


def read_only(world: World) -> str:
    with world.session() as a:
        a.run("SET TRANSACTION READ ONLY")
        error = a.fails(ADD.format("a"))
        a.rollback()
        return error or "writes"


def after_read_only(world: World) -> str:
    with world.session() as a:
        a.run("SET TRANSACTION READ ONLY")
        a.names()
        a.commit()
        error = a.fails(ADD.format("a"))
        a.rollback()
        return error or "may write"


def serializable_first(world: World) -> str:
    with world.session() as a:
        a.run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        (level,) = a.run("SHOW transaction_isolation")
        a.commit()
        return str(level)


def serializable_later(world: World) -> str:
    with world.session() as a:
        a.run(ADD.format("a"))
        a.commit()
        a.run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        (level,) = a.run("SHOW transaction_isolation")
        a.commit()
        return str(level)


# -- F10: ways out ---------------------------------------------------------------------------------


def commit_as_text(world: World) -> str:
    with world.session() as a:
        a.run(ADD.format("a"))
        a.run("COMMIT")
        a.rollback()
        return "committed" if a.names() == ["a"] else "lost"


def commit_and_chain(world: World) -> str:
    with world.session() as a:
        a.run(ADD.format("a"))
        a.run("COMMIT AND CHAIN")
        a.run(ADD.format("b"))
        a.rollback()
        return "".join(a.names()) + " committed"


def procedure_that_commits(world: World) -> str:
    with world.automatic() as automatic:
        automatic.run("CALL add_and_commit('a')")
        return "committed" if automatic.names() == ["a"] else "lost"


def core_commit(world: World) -> str:
    with world.automatic() as automatic:
        automatic.run(ADD.format("a"))
        return "committed" if automatic.names() == ["a"] else "lost"


# -- F12: what no transaction can hold -------------------------------------------------------------


def vacuum(world: World) -> str:
    with world.automatic() as automatic:
        automatic.run("VACUUM items")
        return "done"


def index_concurrently(world: World) -> str:
    with world.automatic() as automatic:
        automatic.run("CREATE INDEX CONCURRENTLY made_index ON items (made)")
        return "done"
