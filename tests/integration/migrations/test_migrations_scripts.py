from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.databases.migrations._script import (
    ScriptError,
    postgresql_statements,
    sqlite_statements,
)

WHOLE = [
    "SELECT 'a;b''c;';",
    "SELECT E'it\\'s; one';",
    'SELECT ";";',
    "SELECT $$;$$, $x$ ; $$ ; $x$;",
    "SELECT /* ; /* nested ; */ ; */ 1;",
    "SELECT 1 -- ;\n + 1;",
    "SELECT a$1, price$ FROM t;",
    "CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM a; DELETE FROM b);",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;",
    "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC INSERT INTO t VALUES (1); END;",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RETURN 1; END $f$;",
    "BEGIN;",
    "COMMIT;",
    "SELECT name FROM name'x;';",
    "SELECT U&'d\\0061t;';",
]


@pytest.mark.parametrize("statement", WHOLE)
def test_what_is_one_statement_stays_one(statement):
    assert [each.text for each in postgresql_statements(statement)] == [statement]


@given(
    st.lists(st.sampled_from([*WHOLE, "SELECT 1;"]), max_size=8), st.sampled_from(["", " ", "\n\n"])
)
def test_a_script_is_cut_where_its_statements_end(statements, between):
    cut = list(postgresql_statements(between.join(statements)))
    assert [each.text for each in cut] == statements


@given(st.text(alphabet="ab;'\"$/*-()\\\n e", max_size=40))
def test_no_text_hangs_or_loses_a_character_that_counts(script):
    try:
        cut = list(postgresql_statements(script))
    except ScriptError:
        return
    for each in cut:
        assert each.text in script
        assert each.text.strip() not in ("", ";")


def test_a_statement_knows_its_line():
    script = "-- first\n\nSELECT 1;\n/* two\nlines */ SELECT\n 2;\nSELECT 3"
    assert [(each.line, each.text) for each in postgresql_statements(script)] == [
        (3, "SELECT 1;"),
        (5, "SELECT\n 2;"),
        (7, "SELECT 3"),
    ]


def test_comments_alone_are_no_statement():
    assert list(postgresql_statements("-- nothing;\n/* ; */ ;;\n")) == []
    assert list(sqlite_statements("\n \n")) == []


def test_the_rows_of_a_copy_are_no_sql():
    script = "COPY t (a, b) FROM stdin;\n1\ta;b'\n2\t\\N\n\\.\n\nSELECT 1;\n"
    copy, select = postgresql_statements(script)
    assert copy.rows == "1\ta;b'\n2\t\\N\n"
    assert (select.text, select.line) == ("SELECT 1;", 6)


def test_the_rows_of_a_copy_must_end():
    with pytest.raises(ScriptError, match="do not end") as caught:
        list(postgresql_statements("\nCOPY t FROM STDIN;\n1\n"))
    assert caught.value.line == 2


def test_a_copy_from_a_file_is_a_plain_statement():
    (copy,) = postgresql_statements("COPY t FROM '/data/x';")
    assert copy.rows is None


@pytest.mark.parametrize(
    "command", ["\\connect app", "\\i other.sql", "\\set x 1", "\\copy t from x"]
)
def test_commands_of_psql_are_refused_with_their_line(command):
    with pytest.raises(ScriptError, match="is a command of psql, not SQL") as caught:
        list(postgresql_statements(f"SELECT 1;\n\n{command}\n"))
    assert caught.value.line == 3


def test_the_guards_that_pg_dump_writes_are_passed_over():
    script = "\\restrict abc\n\nSELECT 1;\n\\unrestrict abc\n"
    assert [each.text for each in postgresql_statements(script)] == ["SELECT 1;"]
