"""What the cases are written with, and the tables that they use."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

__all__ = ("SCHEMA", "TABLES", "autocommit", "one", "run", "tenant")

SCHEMA = """
CREATE TABLE parents (id integer PRIMARY KEY);
CREATE TABLE children (
    id integer PRIMARY KEY,
    parent integer CONSTRAINT children_parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE pets (
    id integer PRIMARY KEY,
    parent integer CONSTRAINT pets_parent REFERENCES parents DEFERRABLE INITIALLY IMMEDIATE
);
CREATE TABLE places (
    name text PRIMARY KEY,
    place integer CONSTRAINT places_place UNIQUE DEFERRABLE INITIALLY IMMEDIATE
);
CREATE TABLE late (id integer CONSTRAINT late_id UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE accounts (id integer PRIMARY KEY, amount integer);
CREATE TABLE watched (name text);
CREATE TABLE audit (note text);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO audit VALUES (NEW.name); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER watching AFTER INSERT ON watched
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE FUNCTION balanced() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT sum(amount) FROM accounts) <> 0 THEN
        RAISE EXCEPTION 'unbalanced' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER balance AFTER INSERT OR UPDATE ON accounts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION balanced();
CREATE SCHEMA other;
CREATE TABLE other.only_here (x integer);
"""

TABLES = "parents, children, pets, places, late, accounts, watched, audit, items, other.only_here"

Runner = sa.Connection | Session


def run(runner: Runner, sql: str) -> list[Any]:
    """Each row's first column."""
    connection = runner if isinstance(runner, sa.Connection) else runner.connection()
    result = connection.exec_driver_sql(sql)
    return [row[0] for row in result] if result.returns_rows else []


def one(runner: Runner, sql: str) -> Any:
    (value,) = run(runner, sql)
    return value


def tenant(runner: Runner) -> str:
    """A setting of the application's own; one that was never set is empty too."""
    return one(runner, "SELECT current_setting('app.tenant', true)") or ""


def autocommit(engine: sa.Engine) -> sa.Connection:
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")
