"""Servers with savepoints, for the model of the stack: one simulated in memory, and SQLite."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Protocol

import pytest


class RefusedError(Exception):
    """The server refused a statement of the application, as it would in production."""


class IllegalError(Exception):
    """The server refused a statement of the sandbox: the worst that can happen."""


class Server(Protocol):
    aborts: bool
    """A failing statement makes it refuse everything until a ROLLBACK TO."""

    @property
    def aborted(self) -> bool: ...
    def control(self, sql: str) -> None: ...
    def write(self, row: int) -> None: ...
    def fail(self) -> None: ...
    def read(self) -> list[int]: ...
    def rows(self) -> list[int] | None:
        """What is there now, without touching the transaction; None: cannot be told."""


@dataclass
class Savepoint:
    name: str
    rows: int
    read_only: bool


class Simulated:
    """PostgreSQL as far as savepoints go: its manual, "SAVEPOINT", and what 25P02 means."""

    aborts = True

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._savepoints: list[Savepoint] = []
        self._begun = self._read_only = False
        self.aborted = False

    def control(self, sql: str) -> None:
        verb, _, rest = sql.partition(" ")
        if verb == "BEGIN":
            self._insist(not self._begun, sql)
            self._begun = True
            return
        self._insist(self._begun, sql)
        if sql == "ROLLBACK":
            self.__init__()  # type: ignore[misc]
        elif verb == "ROLLBACK":
            position = self._find(rest.removeprefix("TO SAVEPOINT "), sql)
            there = self._savepoints[position]
            del self._savepoints[position + 1 :], self._rows[there.rows :]
            self._read_only, self.aborted = there.read_only, False
        else:
            self._insist(not self.aborted, sql)
            if verb == "SAVEPOINT":
                self._savepoints.append(Savepoint(rest, len(self._rows), self._read_only))
            elif verb == "RELEASE":
                position = self._find(rest.removeprefix("SAVEPOINT "), sql)
                self._read_only = self._savepoints[position].read_only
                del self._savepoints[position:]
            elif sql == "SET TRANSACTION READ ONLY":
                self._read_only = True
            else:
                raise IllegalError(sql)

    def write(self, row: int) -> None:
        if self._read_only:
            self.fail()
        self._check()
        self._rows.append(row)

    def fail(self) -> None:
        self._check()
        self.aborted = True
        raise RefusedError

    def read(self) -> list[int]:
        self._check()
        return list(self._rows)

    def rows(self) -> list[int] | None:
        return None if self.aborted else list(self._rows)

    @property
    def depth(self) -> int:
        return len(self._savepoints)

    def _check(self) -> None:
        if not self._begun:
            raise IllegalError("a statement outside of any transaction")
        if self.aborted:
            raise RefusedError

    def _find(self, name: str, sql: str) -> int:
        for position in range(len(self._savepoints) - 1, -1, -1):
            if self._savepoints[position].name == name:
                return position
        raise IllegalError(sql)

    @staticmethod
    def _insist(legal: bool, sql: str) -> None:
        if not legal:
            raise IllegalError(sql)


class Sqlite:
    """SQLite in memory: a failing statement undoes itself and nothing else."""

    aborts = False
    aborted = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def control(self, sql: str) -> None:
        if sql == "SET TRANSACTION READ ONLY":
            return
        try:
            self._connection.execute(sql)
        except sqlite3.Error as error:
            raise IllegalError(sql) from error

    def write(self, row: int) -> None:
        self._connection.execute("INSERT INTO work VALUES (?)", (row,))

    def fail(self) -> None:
        with pytest.raises(sqlite3.IntegrityError):
            self._connection.execute("INSERT INTO work VALUES (NULL)")
        raise RefusedError

    def read(self) -> list[int]:
        return [row for (row,) in self._connection.execute("SELECT row FROM work ORDER BY row")]

    rows = read
