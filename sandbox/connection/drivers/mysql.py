"""What MySQL's drivers share: a session that keeps what no rollback takes back.

Sources: the manuals' pages of SET TRANSACTION and SAVEPOINT, and of the protocol's status flags.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sandbox.connection.dialect import MYSQL
from sandbox.connection.driver import Driver, Session
from sandbox.connection.shared import SharedConnection
from sandbox.connection.virtual import VirtualConnection
from sandbox.core.mysql import classify, why_refused
from sandbox.core.statements import Kind, Statement
from sandbox.errors import UnsupportedInSandboxError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sandbox.connection.cursor import VirtualCursor
    from sandbox.connection.dialect import Dialect
    from sandbox.core.frames import Transaction

__all__ = ("MySQLDriver", "VirtualMySQL")

# SERVER_STATUS_IN_TRANS
_IN_TRANSACTION: Final = 1
# CLIENT_MULTI_STATEMENTS
_MANY: Final = 1 << 16
# The whole transaction was rolled back: deadlock, a record changed under the snapshot (MariaDB).
_ROLLED_BACK: Final = frozenset({1213, 1020, 1614})
# ER_WARNING_NOT_COMPLETE_ROLLBACK
_NOT_UNDONE: Final = 1196
_APPLIED: Final = "_sandbox_applied"

_shows_level = re.compile(
    r"\s*SELECT\s+(@@(?:SESSION\.)?(?:TX|TRANSACTION)_ISOLATION)\s*;?\s*\Z", re.IGNORECASE
)


class MySQLDriver(Driver):
    """What is the same for every driver: the server's side of it."""

    dialect: ClassVar[Dialect] = MYSQL

    def native(self, real: Any) -> Any:
        """The driver's own connection, below SQLAlchemy's adapted one."""
        return real

    def refresh(self, real: Any) -> None:
        """Ping, for the status flags: error packets carry none. A lost connection is closed."""
        raise NotImplementedError

    def ping(self, cursor: Any) -> None:
        """Ask whether the connection of a driver's cursor is alive; raises what the driver does."""
        raise NotImplementedError

    def session(self, real: Any) -> Session:
        session = Session()
        session.autocommit = bool(self.native(real).get_autocommit())
        session.isolation, session.read_only = self._characteristics(real)
        return session

    def apply(self, real: Any, session: Session) -> None:
        native = self.native(real)
        if bool(self.native(real).get_autocommit()) != session.autocommit:
            real.autocommit(session.autocommit)
        wanted = (session.isolation, session.read_only)
        applied = getattr(native, _APPLIED, None) or self._characteristics(real)
        if applied != wanted:
            self._reset(real)
            if session.isolation:
                level = session.isolation
                self.send(real, [f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"])
            if session.read_only:
                self.send(real, ["SET SESSION TRANSACTION READ ONLY"])
        setattr(native, _APPLIED, wanted)

    def take_over(self, real: Any) -> None:
        if not self.native(real).get_autocommit():
            real.autocommit(True)
        # The level goes with each BEGIN: engines that share the connection differ in it.
        if getattr(self.native(real), _APPLIED, None) != (None, None):
            self._reset(real)
            setattr(self.native(real), _APPLIED, (None, None))

    def in_transaction(self, real: Any) -> bool:
        return bool(self.native(real).server_status & _IN_TRANSACTION)

    def aborted(self, real: Any, error: BaseException) -> bool:
        # A failing statement undoes itself and nothing else.
        del real, error
        return False

    def rolled_back(self, error: BaseException) -> bool:
        return bool(error.args) and error.args[0] in _ROLLED_BACK

    def no_savepoint(self, error: BaseException) -> bool:
        # ER_SP_DOES_NOT_EXIST
        return isinstance(error, _NotUndoneError) or error.args[:1] == (1305,)

    def culprit(self, error: BaseException) -> str:
        return str(error) if isinstance(error, _NotUndoneError) else super().culprit(error)

    def pid(self, real: Any) -> int:
        return int(self.native(real).thread_id())

    def holds_server_state(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        # Results that stay on the server would keep everybody else from the connection.
        del args, kwargs
        return False

    def _characteristics(self, real: Any) -> tuple[str | None, bool | None]:
        """The session's isolation level and access mode; None: the server's default."""
        name = self._variable(real)
        ((level, default, read_only),) = self.ask(
            real,
            f"SELECT @@session.{name}_isolation, @@global.{name}_isolation,"
            f" @@session.{name}_read_only",
        )
        return (level.replace("-", " ") if level != default else None), bool(read_only) or None

    def _reset(self, real: Any) -> None:
        name = self._variable(real)
        sql = f"SET SESSION {name}_isolation = DEFAULT, SESSION {name}_read_only = OFF"
        self.send(real, [sql])

    def _variable(self, real: Any) -> str:
        # MariaDB has had the short names always, MySQL 8 has only the long ones.
        return "tx" if "MariaDB" in str(self.native(real).get_server_info()) else "transaction"

    def joined(self, real: Any, statements: Sequence[str]) -> list[str]:
        """The texts to send, one round trip each."""
        ours = [piece for statement in statements for piece in _spelled(statement)]
        native = self.native(real)
        many = getattr(native, "client_flag", None) or native._client_flag
        if not many & _MANY:
            return ours
        # The warnings of a ROLLBACK can be read only right after it.
        end = ours.index("ROLLBACK") + 1 if "ROLLBACK" in ours else 0
        return ["; ".join(part) for part in (ours[:end], ours[end:]) if part]

    def check_undone(self, real: Any, text: str) -> None:
        """After each text of :meth:`joined`: whether a ROLLBACK has undone everything."""
        if not text.endswith("ROLLBACK") or not self.native(real)._result.warning_count:
            return
        if any(row[1] == _NOT_UNDONE for row in self.ask(real, "SHOW WARNINGS")):
            raise _NotUndoneError(
                "a write to a table that no rollback undoes (MyISAM, Aria or MEMORY; InnoDB's are"
                " undone)"
            )


class _NotUndoneError(Exception):
    """A ROLLBACK that left something, as its warning says."""


def _spelled(statement: str) -> list[str]:
    """BEGIN as MySQL spells it: the level of one transaction is set before it begins."""
    begin, _, level = statement.partition(" ISOLATION LEVEL ")
    if begin != "BEGIN" or not level:
        return [statement]
    return [f"SET TRANSACTION ISOLATION LEVEL {level}", "BEGIN"]


class VirtualMySQL(VirtualConnection):
    """What the connections of MySQL's drivers have beyond PEP 249, for all faces."""

    def autocommit(self, value: Any) -> None:
        """Whether each statement is its own transaction; turning it on commits, as on MySQL."""
        if value and not self._session.autocommit:
            self.commit()
        self._session.autocommit = bool(value)

    def get_autocommit(self) -> bool:
        """Whether each statement is its own transaction."""
        return self._session.autocommit

    def ping(self, reconnect: bool = False) -> None:
        """A virtual connection is alive; a real one of its own is asked."""
        del reconnect
        self._check_open()
        self._run(self.cursor(), "", lambda real, _: self._driver.ping(real))

    def select_db(self, db: str) -> None:
        """USE: refused where several connections share a real one."""
        self.cursor().execute(f"USE `{db}`")

    def _run(self, cursor: VirtualCursor, text: str, call: Callable[[Any, str | None], Any]) -> Any:
        shown = _shows_level.match(text)

        def asked(real: Any, replaced: str | None) -> Any:
            target = self._target
            if not isinstance(target, SharedConnection):
                result = call(real, replaced)
                self._note(text)
                return result
            if shown and self._session.isolation:
                level = self._session.isolation.replace(" ", "-")
                replaced = f"SELECT '{level}' AS `{shown[1]}`"
            try:
                return call(real, replaced)
            except Exception:
                self._driver.refresh(target.real)
                target.sandbox.stats.round_trips += 1
                raise

        return super()._run(cursor, text, asked)

    def _note(self, text: str) -> None:
        """What was SET on a real connection of its own is to last on the next one."""
        statement = classify(text)
        if statement.kind is Kind.SET_TRANSACTION and statement.name == "session":
            session = self._session
            session.isolation = statement.isolation or session.isolation
            if statement.read_only is not None:
                session.read_only = statement.read_only or None

    def _run_one(
        self,
        target: SharedConnection,
        cursor: VirtualCursor,
        statement: Statement,
        run: Callable[[Any], Any],
        run_text: Callable[[Any, str | None], Any],
    ) -> Any:
        if statement.kind is Kind.OUTSIDE:
            why, way_out = why_refused(statement)
            raise UnsupportedInSandboxError(
                f"{_shortened(statement.text)} {why}, and {target.sandbox.label} is inside a"
                f" transaction that must not end. The statement was not sent. {way_out}"
            )
        if statement.kind is Kind.BEGIN and self._transaction is not None:
            # It commits the one before it, as on MySQL.
            self.commit()
        if self._transaction is None and self._session.autocommit:
            if statement.kind is Kind.SAVEPOINT:
                # It ends with its statement, which is a transaction of its own.
                return cursor._nothing()
            if statement.kind in {Kind.RELEASE, Kind.ROLLBACK_TO}:
                # There is none, as the server will say.
                statement = Statement(Kind.WRITE, statement.text)
        if statement.kind is Kind.SAVEPOINT and self._transaction is not None:
            _forget(self._transaction, statement.name)
        if statement.kind is Kind.SET_TRANSACTION and self._keep(statement):
            return cursor._nothing()
        return super()._run_one(target, cursor, statement, run, run_text)

    def _keep(self, statement: Statement) -> bool:
        """SET TRANSACTION holds for transactions to come; False: the server is to refuse it."""
        session = self._session
        if statement.read_only:
            self._refuse_read_only()
        if statement.name == "session":
            session.isolation = statement.isolation or session.isolation
        elif self._transaction is not None:
            return False
        else:
            session.extra["next"] = statement.isolation
        return True

    def _new_transaction(self, target: SharedConnection, statement: Statement) -> Transaction:
        if statement.read_only or self._session.read_only:
            self._refuse_read_only()
        session = self._session
        lasting = session.isolation
        session.isolation = session.extra.pop("next", None) or lasting
        try:
            return super()._new_transaction(target, statement)
        finally:
            session.isolation = lasting

    def _refuse_read_only(self) -> None:
        raise UnsupportedInSandboxError(
            "A READ ONLY transaction cannot lie inside another on MySQL and MariaDB: the access"
            " mode is the outer one's. A test that needs it needs a database of its own:"
            ' isolation="database".'
        )

    def _set_isolation(
        self,
        target: SharedConnection,
        transaction: Transaction,
        statement: Statement,
        cursor: VirtualCursor,
        run_text: Callable[[Any, str | None], Any],
    ) -> Any:
        """Inside a transaction the server refuses it, in its own words."""
        return target.run(
            self._io,
            transaction,
            statement,
            lambda: run_text(cursor._open(target.real), statement.text),
        )


def _forget(transaction: Transaction, label: str | None) -> None:
    """A savepoint replaces one of the same name, which can be gone back to no more."""
    for frame in transaction.frames:
        if frame.label == label:
            frame.label = ""
    transaction.labels[:] = ["" if old == label else old for old in transaction.labels]


def _shortened(text: str) -> str:
    words = " ".join(text.split()[:6])
    return words if len(words) <= 80 else f"{words[:80]}…"
