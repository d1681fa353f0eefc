"""The stack of savepoints on PostgreSQL itself: the same schedules and the same law."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from tests.stack_model import play, random_schedule
from tests.stack_servers import IllegalError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.databases.backends import EmbeddedPostgres

DATABASE = "test_stack"
SCHEDULES = 100


class PostgreSQL:
    aborts = True

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    @property
    def aborted(self) -> bool:
        return self._connection.info.transaction_status is TransactionStatus.INERROR

    def control(self, sql: str) -> None:
        try:
            self._connection.execute(sql.encode())
        except psycopg.Error as error:
            raise IllegalError(sql) from error

    def write(self, row: int) -> None:
        self._run("INSERT INTO work VALUES (%s)", row)

    def fail(self) -> None:
        self._run("INSERT INTO work VALUES (%s)", None)

    def read(self) -> list[int]:
        return self._run("SELECT row FROM work WHERE row > %s ORDER BY row", 0)

    def rows(self) -> list[int] | None:
        return None if self.aborted else self.read()

    def _run(self, sql: str, value: int | None) -> list[int]:
        try:
            cursor = self._connection.execute(sql.encode(), (value,))
        except psycopg.errors.Error as error:
            raise RefusedError from error
        return [row for (row,) in cursor] if cursor.description else []


@pytest.fixture
def connection(server: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    server.create_database(DATABASE)
    try:
        with psycopg.connect(server.url(DATABASE), autocommit=True) as connection:
            connection.execute("CREATE TABLE work (row integer NOT NULL)")
            yield connection
    finally:
        server.drop_database(DATABASE)


@pytest.mark.parametrize("seed", range(4))
def test_postgresql_holds_the_law(connection: psycopg.Connection, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(SCHEDULES):
        play(PostgreSQL(connection), random_schedule(chance, 30))
