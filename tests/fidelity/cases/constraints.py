"""Deferred constraints and triggers."""

from __future__ import annotations

import contextlib

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.fidelity.cases.words import autocommit, one, run

__all__ = ("CASES",)


def deferred_foreign_key(engine: sa.Engine) -> None:
    with Session(engine) as session:
        run(session, "INSERT INTO children VALUES (1, -1)")
        with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
            session.commit()
        session.rollback()
        assert run(session, "SELECT id FROM children") == []
        run(session, "INSERT INTO parents VALUES (1)")
        run(session, "INSERT INTO children VALUES (1, 1)")
        session.commit()
        assert run(session, "SELECT id FROM children") == [1]


def deferred_unique(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "INSERT INTO late VALUES (1)")
        connection.commit()
        run(connection, "INSERT INTO late VALUES (1), (2)")
        with pytest.raises(sa.exc.IntegrityError, match="late_id"):
            connection.commit()
        connection.rollback()
        assert run(connection, "SELECT id FROM late") == [1]
        run(connection, "INSERT INTO late VALUES (3)")
        connection.commit()
        assert run(connection, "SELECT id FROM late ORDER BY id") == [1, 3]


def deferred_trigger_that_raises(engine: sa.Engine) -> None:
    with Session(engine) as session:
        run(session, "INSERT INTO accounts VALUES (1, 10)")
        with pytest.raises(sa.exc.IntegrityError, match="unbalanced"):
            session.commit()
        session.rollback()
        run(session, "INSERT INTO accounts VALUES (1, 10)")
        run(session, "INSERT INTO accounts VALUES (2, -10)")
        session.commit()
        assert one(session, "SELECT count(*) FROM accounts") == 2


def deferred_trigger_has_its_effects_once(engine: sa.Engine) -> None:
    with Session(engine) as session:
        run(session, "INSERT INTO watched VALUES ('one')")
        assert run(session, "SELECT note FROM audit") == []
        session.commit()
        assert run(session, "SELECT note FROM audit") == ["one"]
        session.commit()
        run(session, "INSERT INTO watched VALUES ('two')")
        session.commit()
        run(session, "INSERT INTO watched VALUES ('three')")
        session.rollback()
        assert run(session, "SELECT note FROM audit ORDER BY note") == ["one", "two"]


def violation_repaired_before_the_commit(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        run(connection, "INSERT INTO children VALUES (1, 1)")
        run(connection, "INSERT INTO parents VALUES (1)")
    with engine.connect() as connection:
        assert run(connection, "SELECT id FROM children") == [1]


def deferred_again_in_the_next_transaction(engine: sa.Engine) -> None:
    """The check at one commit does not make later ones immediate."""
    for number in (1, 2, 3):
        with engine.begin() as connection:
            run(connection, f"INSERT INTO children VALUES ({number}, {number})")
            run(connection, f"INSERT INTO parents VALUES ({number})")
    with engine.begin() as connection:
        run(connection, "UPDATE children SET parent = 9 WHERE id = 1")
        run(connection, "UPDATE children SET parent = 1 WHERE id = 1")


def initially_immediate_stays_so(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "INSERT INTO parents VALUES (1)")
        connection.commit()
        with pytest.raises(sa.exc.IntegrityError, match="pets_parent"):
            run(connection, "INSERT INTO pets VALUES (1, -1)")
        connection.rollback()
        with pytest.raises(sa.exc.IntegrityError, match="places_place"):
            run(connection, "INSERT INTO places VALUES ('a', 1), ('b', 1)")


def set_constraints_lasts_to_the_end_of_its_transaction(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        for what in ("ALL", "pets_parent", "places_place, pets_parent"):
            run(connection, f"SET CONSTRAINTS {what} DEFERRED")
            run(connection, "INSERT INTO pets VALUES (1, 1)")
            run(connection, "INSERT INTO parents VALUES (1)")
            connection.commit()
            with pytest.raises(sa.exc.IntegrityError, match="pets_parent"):
                run(connection, "INSERT INTO pets VALUES (2, -1)")
            connection.rollback()
            run(connection, "DELETE FROM pets")
            run(connection, "DELETE FROM parents")
            connection.commit()


def set_constraints_ends_at_a_rollback(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET CONSTRAINTS ALL DEFERRED")
        run(connection, "INSERT INTO pets VALUES (1, -1)")
        connection.rollback()
        with pytest.raises(sa.exc.IntegrityError, match="pets_parent"):
            run(connection, "INSERT INTO pets VALUES (2, -1)")


def set_constraints_is_checked_at_the_commit(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET CONSTRAINTS ALL DEFERRED")
        run(connection, "INSERT INTO pets VALUES (1, -1)")
        with pytest.raises(sa.exc.IntegrityError, match="pets_parent"):
            connection.commit()
        connection.rollback()
        assert run(connection, "SELECT id FROM pets") == []


def set_constraints_immediate(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        run(connection, "SET CONSTRAINTS ALL IMMEDIATE")
        with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
            run(connection, "INSERT INTO children VALUES (1, -1)")
        connection.rollback()
        run(connection, "SET CONSTRAINTS children_parent IMMEDIATE")
        connection.commit()
        run(connection, "INSERT INTO children VALUES (1, 1)")
        run(connection, "INSERT INTO parents VALUES (1)")
        connection.commit()


def autocommit_checks_each_statement(engine: sa.Engine) -> None:
    with autocommit(engine) as connection:
        with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
            run(connection, "INSERT INTO children VALUES (1, -1)")
        run(connection, "INSERT INTO parents VALUES (1)")
        run(connection, "INSERT INTO children VALUES (1, 1)")
        run(connection, "INSERT INTO watched VALUES ('w')")
        assert run(connection, "SELECT note FROM audit") == ["w"]
        assert run(connection, "SELECT id FROM children") == [1]


def engine_begin_raises_when_it_ends(engine: sa.Engine) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
        with engine.begin() as connection:
            run(connection, "INSERT INTO children VALUES (1, -1)")
    with engine.connect() as connection:
        assert run(connection, "SELECT id FROM children") == []


def raw_commit_raises_the_drivers_error(engine: sa.Engine) -> None:
    raw = engine.raw_connection()
    with contextlib.closing(raw):
        cursor = raw.cursor()
        cursor.execute("INSERT INTO children VALUES (1, -1)")
        with pytest.raises(engine.dialect.loaded_dbapi.IntegrityError, match="children_parent"):
            raw.commit()
        raw.rollback()
        cursor.execute("SELECT id FROM children")
        assert cursor.fetchall() == []


def a_savepoints_release_checks_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        with connection.begin_nested():
            run(connection, "INSERT INTO children VALUES (1, 1)")
        with connection.begin_nested():
            run(connection, "INSERT INTO watched VALUES ('w')")
        assert run(connection, "SELECT note FROM audit") == []
        run(connection, "INSERT INTO parents VALUES (1)")


def a_savepoints_rollback_forgets_the_violation(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        run(connection, "INSERT INTO parents VALUES (1)")
        nested = connection.begin_nested()
        run(connection, "INSERT INTO children VALUES (1, -1)")
        nested.rollback()
        run(connection, "INSERT INTO children VALUES (1, 1)")
    with engine.connect() as connection:
        assert run(connection, "SELECT parent FROM children") == [1]


def a_child_commits_while_nothing_is_violated(engine: sa.Engine) -> None:
    with Session(engine) as parent:
        run(parent, "INSERT INTO parents VALUES (1)")
        run(parent, "INSERT INTO children VALUES (1, 1)")
        with Session(engine) as child:
            run(child, "INSERT INTO watched VALUES ('child')")
            child.commit()
            assert run(child, "SELECT note FROM audit") == ["child"]
        run(parent, "INSERT INTO watched VALUES ('parent')")
        parent.commit()
        assert run(parent, "SELECT note FROM audit ORDER BY note") == ["child", "parent"]


def a_child_commits_while_the_parent_will_repair(engine: sa.Engine) -> None:
    with Session(engine) as parent:
        run(parent, "INSERT INTO children VALUES (1, 1)")
        with Session(engine) as child:
            run(child, "INSERT INTO watched VALUES ('child')")
            child.commit()
            assert run(child, "SELECT note FROM audit") == ["child"]
        run(parent, "INSERT INTO parents VALUES (1)")
        parent.commit()
        assert run(parent, "SELECT id FROM children") == [1]


def a_childs_violation_beside_the_parents_is_the_childs(engine: sa.Engine) -> None:
    with Session(engine) as parent:
        run(parent, "INSERT INTO children VALUES (1, 1)")
        with Session(engine) as child:
            run(child, "INSERT INTO late VALUES (1), (1)")
            with pytest.raises(sa.exc.IntegrityError, match="late_id"):
                child.commit()
            child.rollback()
        run(parent, "INSERT INTO parents VALUES (1)")
        parent.commit()
        assert run(parent, "SELECT id FROM children") == [1]
        assert run(parent, "SELECT id FROM late") == []


def a_childs_violation_is_the_childs(engine: sa.Engine) -> None:
    with Session(engine) as parent:
        run(parent, "INSERT INTO items (name) VALUES ('parent')")
        with Session(engine) as child:
            run(child, "INSERT INTO children VALUES (1, -1)")
            with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
                child.commit()
            child.rollback()
            run(child, "INSERT INTO items (name) VALUES ('child')")
            child.commit()
        parent.commit()
        assert run(parent, "SELECT name FROM items ORDER BY name") == ["child", "parent"]
        assert run(parent, "SELECT id FROM children") == []


def a_parents_violation_is_raised_at_its_own_commit(engine: sa.Engine) -> None:
    with Session(engine) as parent:
        run(parent, "INSERT INTO items (name) VALUES ('parent')")
        parent.commit()
        with Session(engine) as child:
            run(child, "INSERT INTO items (name) VALUES ('child')")
            child.commit()
        run(parent, "INSERT INTO children VALUES (1, -1)")
        with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
            parent.commit()
        parent.rollback()
        assert run(parent, "SELECT name FROM items ORDER BY name") == ["child", "parent"]


def constraints_made_by_the_test(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        run(
            connection,
            "CREATE TEMPORARY TABLE fresh"
            " (id integer CONSTRAINT fresh_id UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        )
    with engine.connect() as connection:
        run(connection, "INSERT INTO fresh VALUES (1), (1)")
        with pytest.raises(sa.exc.IntegrityError, match="fresh_id"):
            connection.commit()
        connection.rollback()
        run(connection, "DROP TABLE fresh")
        connection.commit()


def set_constraints_is_not_anothers(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        run(first, "SET CONSTRAINTS ALL DEFERRED")
        with pytest.raises(sa.exc.IntegrityError, match="pets_parent"):
            run(second, "INSERT INTO pets VALUES (1, -1)")
        second.rollback()
        run(first, "INSERT INTO pets VALUES (1, 1)")
        run(first, "INSERT INTO parents VALUES (1)")
        first.commit()


def a_write_after_a_failed_read_beside_another(engine: sa.Engine) -> None:
    with engine.connect() as healthy, engine.connect() as failed:
        run(healthy, "INSERT INTO items (name) VALUES ('a')")
        for sql in ("SELECT * FROM nowhere", "INSERT INTO items (name) VALUES ('b')"):
            with pytest.raises(sa.exc.DBAPIError):
                run(failed, sql)
        failed.rollback()
        healthy.commit()
        assert run(failed, "SELECT name FROM items") == ["a"]


def a_write_beside_a_violation_of_what_was_set_deferred(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        run(first, "SET CONSTRAINTS ALL DEFERRED")
        run(first, "INSERT INTO pets VALUES (1, 1)")
        run(second, "INSERT INTO items (name) VALUES ('b')")
        second.commit()
        run(first, "INSERT INTO parents VALUES (1)")
        first.commit()
        assert run(second, "SELECT name FROM items") == ["b"]


def a_commit_below_anothers_violation(engine: sa.Engine) -> None:
    with engine.connect() as first, engine.connect() as second:
        run(first, "INSERT INTO items (name) VALUES ('a')")
        run(second, "INSERT INTO children VALUES (1, -1)")
        first.commit()
        with pytest.raises(sa.exc.IntegrityError, match="children_parent"):
            second.commit()
        second.rollback()
        assert run(first, "SELECT name FROM items") == ["a"]


def a_parent_violates_after_the_child_has_set_something(engine: sa.Engine) -> None:
    with engine.connect() as parent, engine.connect() as child:
        run(parent, "INSERT INTO items (name) VALUES ('a')")
        run(child, "SET LOCAL app.tenant = 'child'")
        run(parent, "INSERT INTO children VALUES (1, 1)")
        run(child, "INSERT INTO items (name) VALUES ('b')")
        child.commit()
        run(parent, "INSERT INTO parents VALUES (1)")
        parent.commit()
        assert run(child, "SELECT name FROM items ORDER BY name") == ["a", "b"]


CASES = (
    deferred_foreign_key,
    deferred_unique,
    deferred_trigger_that_raises,
    deferred_trigger_has_its_effects_once,
    violation_repaired_before_the_commit,
    deferred_again_in_the_next_transaction,
    initially_immediate_stays_so,
    set_constraints_lasts_to_the_end_of_its_transaction,
    set_constraints_ends_at_a_rollback,
    set_constraints_is_checked_at_the_commit,
    set_constraints_immediate,
    autocommit_checks_each_statement,
    engine_begin_raises_when_it_ends,
    raw_commit_raises_the_drivers_error,
    a_savepoints_release_checks_nothing,
    a_savepoints_rollback_forgets_the_violation,
    a_child_commits_while_nothing_is_violated,
    a_child_commits_while_the_parent_will_repair,
    a_childs_violation_beside_the_parents_is_the_childs,
    a_childs_violation_is_the_childs,
    a_parents_violation_is_raised_at_its_own_commit,
    constraints_made_by_the_test,
    set_constraints_is_not_anothers,
    a_write_after_a_failed_read_beside_another,
    a_write_beside_a_violation_of_what_was_set_deferred,
    a_commit_below_anothers_violation,
    a_parent_violates_after_the_child_has_set_something,
)
