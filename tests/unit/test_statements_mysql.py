"""What a text does to its transaction, read as MySQL and MariaDB read it."""

from __future__ import annotations

import random

import pytest

from sandbox.connection.dialect import MYSQL, POSTGRESQL, SQLITE
from sandbox.core import statements
from sandbox.core.mysql import classify, skeleton, split, why_refused
from sandbox.core.statements import Kind

KINDS = {
    Kind.READ: [
        "SELECT 1",
        "select * from t where a = 'x'",
        "(SELECT 1) UNION (SELECT 2)",
        "SELECT 'COMMIT'",
        'SELECT "COMMIT"',
        "SELECT `update` FROM t",
        "SELECT 'it\\'s', 'UPDATE t'",
        "SELECT 'a''; DELETE FROM t; '",
        "SELECT '\\\\'",
        "SELECT 1 # UPDATE t",
        "SELECT 1 -- UPDATE t",
        "SELECT 1 --\nFROM t",
        "SELECT /* UPDATE t */ 1",
        "SELECT /*+ MAX_EXECUTION_TIME(10) */ 1",
        "SELECT 1 --",
        "SHOW TABLES",
        "DESCRIBE t",
        "EXPLAIN SELECT 1",
        "VALUES (1)",
        "SELECT 1;",
        ";SELECT 1; ;",
        "SET STATEMENT max_statement_time = 1 FOR SELECT 1",
    ],
    Kind.WRITE: [
        "INSERT INTO t VALUES (1)",
        "REPLACE INTO t VALUES (1)",
        "UPDATE t SET a = 1",
        "LOAD DATA INFILE 'x' INTO TABLE t",
        "SELECT * FROM t FOR UPDATE",
        "SELECT * FROM t LOCK IN SHARE MODE",
        "SELECT * FROM t FOR SHARE",
        "SELECT 1 INTO OUTFILE 'x'",
        "SELECT mine()",
        "SELECT 1 --1; UPDATE t",  # two minus signs, then a second statement
        "CALL p()",
        "DO p()",
        "ANALYZE UPDATE t SET a = 1",
        "EXPLAIN ANALYZE SELECT 1",
        # Words of other databases.
        "END",
        "ABORT",
        "VACUUM",
        "COPY t TO STDOUT",
        "ATTACH DATABASE 'x' AS y",
        "UNLOCK TABLES",
        "BEGIN NOT ATOMIC INSERT INTO t VALUES (1); SELECT 1; END",
        "IF 1 THEN SELECT 1; END IF",
    ],
    Kind.BEGIN: [
        "BEGIN",
        "BEGIN WORK",
        "START TRANSACTION",
        "start transaction with consistent snapshot",
        "# now\nBEGIN",
    ],
    Kind.COMMIT: [
        "COMMIT",
        "COMMIT WORK",
        "commit and no chain",
        "/*!40000 COMMIT */",
        "/*!COMMIT*/",
    ],
    Kind.ROLLBACK: ["ROLLBACK", "ROLLBACK WORK", "/*M!100000 ROLLBACK */"],
    Kind.SAVEPOINT: ["SAVEPOINT a", "SAVEPOINT `a b`"],
    Kind.RELEASE: ["RELEASE SAVEPOINT a"],
    Kind.ROLLBACK_TO: ["ROLLBACK TO a", "ROLLBACK WORK TO SAVEPOINT `a`"],
    Kind.SETTING: [
        "SET NAMES utf8mb4",
        "SET @a = 1, @b = 2",
        "SET SESSION sql_mode = ''",
        "SET sql_mode = 'GLOBAL'",
        "SET @autocommit_of_mine = 'SET autocommit = 0'",
    ],
    Kind.SET_TRANSACTION: [
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET SESSION TRANSACTION READ ONLY",
        "SET SESSION transaction_isolation = 'READ-COMMITTED'",
        "SET tx_isolation = 'READ-COMMITTED'",
        "SET @@session.transaction_isolation = 'READ-COMMITTED'",
        "SET @@transaction_isolation := 'READ-COMMITTED'",
    ],
    Kind.EMPTY: [
        "",
        " ; ",
        "-- x",
        "# x",
        "/* x */",
        "/*!40000 */",
        "--\n",
        "/* never closed; COMMIT",
    ],
    Kind.OUTSIDE: [
        "CREATE TABLE t (a int)",
        "CREATE DEFINER = CURRENT_USER PROCEDURE p() BEGIN COMMIT; INSERT INTO t VALUES (1); END",
        "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW BEGIN SET @a = 1; SET @b = 2; END",
        "DROP TABLE t",
        "ALTER TABLE t ADD b int",
        "RENAME TABLE t TO u",
        "TRUNCATE t",
        "GRANT ALL ON *.* TO x",
        "LOCK TABLES t READ",
        "LOCK INSTANCE FOR BACKUP",
        "ANALYZE TABLE t",
        "ANALYZE NO_WRITE_TO_BINLOG TABLE t",
        # Documented for MySQL; MariaDB lets the transaction be.
        "CACHE INDEX t IN hot",
        "LOAD INDEX INTO CACHE t",
        "CREATE SPATIAL REFERENCE SYSTEM 4120 NAME 'x' DEFINITION 'x'",
        "ALTER INSTANCE ROTATE INNODB MASTER KEY",
        "IMPORT TABLE FROM 'x'",
        "INSTALL PLUGIN x SONAME 'y'",
        "START REPLICA",
        "STOP SLAVE",
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = 'x'",
        "RESET MASTER",
        "XA START 'x'",
        "USE other",
        "SET autocommit = 1",
        "SET @@autocommit = 1",
        "SET SESSION autocommit = ON",
        "SET sql_mode = '', autocommit = 1",
        "SET GLOBAL x = 1",
        "SET @@GLOBAL.x = 1",
        "SET PERSIST x = 1",
        "SET PASSWORD = 'x'",
        "SET DEFAULT ROLE x TO y",
        "SET GLOBAL TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET sql_mode = '', tx_isolation = 'SERIALIZABLE'",
        "SET STATEMENT max_statement_time = 1 FOR CREATE TABLE t (a int)",
        "BEGIN NOT ATOMIC INSERT INTO t VALUES (1); COMMIT; END",
        "IF 1 THEN CREATE TABLE t (a int); END IF",
        "/*!50001 CREATE VIEW v AS SELECT 1 */",
        "/*!40000 ALTER TABLE t DISABLE KEYS */",
        "CREATE /*!40000 TEMPORARY is a comment /* within */ */ TABLE t (a int)",
        "INSERT INTO t VALUES (1); DROP TABLE t",
    ],
}
CASES = [(kind, sql) for kind, texts in KINDS.items() for sql in texts]


@pytest.mark.parametrize(("kind", "sql"), CASES, ids=[sql for _, sql in CASES])
def test_kinds(kind: Kind, sql: str) -> None:
    assert classify(sql).kind is kind


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMPORARY TABLE t (a int)",
        "CREATE OR REPLACE TEMPORARY TABLE t (a int)",
        "DROP TEMPORARY TABLE t",
        "DROP PREPARE p",
        "PREPARE p FROM 'SELECT 1'",
        "EXECUTE p",
        "CALL p(@a)",
        "SELECT @a := 1",
        "SELECT 1 INTO @a",
        "SELECT GET_LOCK('a', 1)",
        "SET @a = 1",
        "HANDLER t OPEN",
    ],
)
def test_what_stays_in_the_session_makes_its_connection_one_to_throw_away(sql: str) -> None:
    statement = classify(sql)
    assert statement.ddl
    assert statement.kind in {Kind.WRITE, Kind.SETTING}


def test_names_of_savepoints_are_compared_without_case() -> None:
    names = {classify(sql).name for sql in ("SAVEPOINT Mine", "RELEASE SAVEPOINT `MINE`")}
    assert names == {"mine"}


def test_levels_and_their_scope() -> None:
    session = classify("SET SESSION TRANSACTION ISOLATION LEVEL  READ   COMMITTED, READ ONLY")
    assert (session.name, session.isolation, session.read_only) == (
        "session",
        "READ COMMITTED",
        True,
    )
    following = classify("SET TRANSACTION READ WRITE")
    assert (following.name, following.isolation, following.read_only) == (None, None, False)
    assert classify("SET tx_isolation = 'READ-UNCOMMITTED'").isolation == "READ UNCOMMITTED"
    assert classify("SET @@tx_isolation = 'SERIALIZABLE'").name is None
    assert classify("SET @@local.tx_isolation = SERIALIZABLE").name == "session"


def test_a_script_is_as_dangerous_as_its_worst_statement() -> None:
    script = "INSERT INTO t VALUES ('a;b'); -- ;\nSELECT 1; # ;\nCOMMIT"
    assert classify(script).kind is Kind.COMMIT
    assert classify(script).many
    assert [piece.kind for piece in split(script)] == [Kind.WRITE, Kind.READ, Kind.COMMIT]


def test_the_body_of_a_procedure_is_one_statement() -> None:
    (only,) = split("CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END")
    assert only.kind is Kind.OUTSIDE


def test_delimiter_is_the_clients_affair() -> None:
    # mysql's shell knows it; a server says that it is wrong.
    assert classify("DELIMITER //").kind is Kind.WRITE


@pytest.mark.parametrize(
    ("sql", "shape"),
    [
        ("a 'b\\'c' D", 'A "____" D'),
        ('a "b""c" d', 'A "____" D'),
        ("a `b``c` d", 'A "____" D'),
        ("a -- b\nc", "A     \nC"),
        ("a --b", "A --B"),
        ("a # b\nc", "A    \nC"),
        ("a /* b /* c */ d", "A              D"),
        ("/*!50110 a */", "         A   "),
        ("/*M!100001 a /* b */ c */", "           A         C   "),
        ("é 'ß' straße", 'é "_" STRAßE'),
        ("a 'never closed", "A              "),
        ("*/ a", "*/ A"),
    ],
)
def test_skeletons(sql: str, shape: str) -> None:
    assert skeleton(sql) == shape


def test_a_skeleton_keeps_every_position() -> None:
    chance = random.Random(1)
    parts = [
        "'",
        '"',
        "`",
        "\\",
        "--",
        " ",
        "\n",
        "#",
        "/*",
        "/*!",
        "/*M!100100",
        "*/",
        ";",
        "a",
        "é",
    ]
    for _ in range(5000):
        sql = "".join(chance.choice(parts) for _ in range(chance.randrange(12)))
        assert len(skeleton(sql)) == len(sql), sql
        classify(sql)


def test_every_refusal_has_a_way_out() -> None:
    for sql in KINDS[Kind.OUTSIDE]:
        why, way_out = why_refused(classify(sql))
        assert why
        assert (
            'isolation="database"' in way_out
            or "connection.autocommit(" in way_out
            or ("Set it alone" in way_out)
        )


def test_a_bulk_insert_is_judged_by_its_first_word_unless_there_may_be_more() -> None:
    bulk = "INSERT INTO t VALUES " + ", ".join(f"('name {number}')" for number in range(5000))
    assert classify(bulk).kind is Kind.WRITE
    assert classify(f"{bulk}; COMMIT").kind is Kind.COMMIT
    assert classify(f"{bulk} /*!; DROP TABLE t */").kind is Kind.OUTSIDE
    assert classify(f"DROP TABLE t /* {bulk} */").kind is Kind.OUTSIDE


def test_each_dialect_reads_texts_its_own_way() -> None:
    sql = "SELECT 1 # COMMIT\n; END"
    assert MYSQL.classify(sql).kind is Kind.WRITE
    assert POSTGRESQL.classify(sql).kind is Kind.COMMIT
    assert SQLITE.classify is POSTGRESQL.classify is statements.classify
