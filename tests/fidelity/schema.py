"""The database that each world of the comparison begins with, and what was left in it."""

from __future__ import annotations

import psycopg

__all__ = ("clean", "create", "left_behind")

TABLES = ("items", "parents", "children", "places", "watched", "audit")

_CREATE = """
CREATE TABLE items (name text PRIMARY KEY, made timestamptz DEFAULT now());
CREATE TABLE parents (id integer PRIMARY KEY);
CREATE TABLE children (
    id integer PRIMARY KEY,
    parent integer CONSTRAINT children_parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE places (
    name text PRIMARY KEY,
    place integer CONSTRAINT places_place UNIQUE DEFERRABLE INITIALLY IMMEDIATE
);
CREATE TABLE watched (name text);
CREATE TABLE audit (note text);
CREATE SEQUENCE numbers;
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO audit VALUES (NEW.name); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER watching AFTER INSERT ON watched
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE PROCEDURE add_and_commit(name text) LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO items VALUES (name); COMMIT; END $$;
"""

_OTHERS = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'i') AND c.relname LIKE 'made\\_%'
"""


def create(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(_CREATE)


def left_behind(url: str) -> list[str]:
    """Tables with rows, and relations that a scenario made, as somebody else sees them."""
    with psycopg.connect(url) as connection:
        found = [name for (name,) in connection.execute(_OTHERS)]
        for table in TABLES:
            row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            if row is not None and row[0]:
                found.append(table)
    return found


def clean(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET lock_timeout = '5s'")
        connection.execute(f"TRUNCATE {', '.join(TABLES)}")
        for (name,) in connection.execute(_OTHERS).fetchall():
            connection.execute(f"DROP INDEX IF EXISTS {name}")
