"""What a sandbox asks of a database driver.

One subclass for each driver, in :mod:`sandbox.connection.drivers` and, for those that only
SQLAlchemy can make look like PEP 249, in its adapter. A driver object has no state: the same
one serves every connection.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sandbox.connection.facts import qualified

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from types import FrameType

    from sandbox.connection.dialect import Dialect
    from sandbox.connection.mutex import Mutex
    from sandbox.connection.virtual import VirtualConnection

__all__ = ("IO", "Driver", "Session", "ThreadIO")

T = TypeVar("T")


class Session:
    """The settings that a driver keeps on its connection object and applies at BEGIN.

    A virtual connection has its own, since the real one serves many.
    """

    __slots__ = ("autocommit", "deferrable", "extra", "isolation", "read_only")

    def __init__(self) -> None:
        self.autocommit = False
        self.isolation: str | None = None
        self.read_only: bool | None = None
        self.deferrable: bool | None = None
        self.extra: dict[str, Any] = {}

    def copy(self) -> Session:
        other = Session()
        for name in ("autocommit", "isolation", "read_only", "deferrable"):
            setattr(other, name, getattr(self, name))
        other.extra = dict(self.extra)
        return other


class IO:
    """How callers of one connection wait for it and where its calls run.

    The one difference between sync and async: what is decided is the same.
    """

    def lock(self, mutex: Mutex, timeout: float | None) -> bool:
        """Acquire the mutex, waiting as this kind of caller waits; False after the timeout."""
        raise NotImplementedError

    def call(self, real: Any, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run a driver call where the real connection lives."""
        raise NotImplementedError

    def run(self, real: Any, fn: Callable[..., T], /, *args: Any) -> T:
        """The same for a caller outside of any connection: a fixture's end, the exit."""
        raise NotImplementedError

    def reaches(self, real: Any) -> bool:
        """Whether :meth:`run` can get there from here."""
        del real
        return True

    def can_wait(self) -> bool:
        """Whether I/O is possible right here; it is not while garbage is collected."""
        return True

    def thread(self) -> threading.Thread | None:
        """The current thread where threads are the unit of concurrency, else None."""
        return None

    def outer_frame(self, frame: FrameType) -> FrameType | None:
        """What called the outermost frame, where the stack alone does not say."""
        del frame
        return None

    def home(self) -> Hashable:
        """Where a sandbox's connection should live for this caller; None: anywhere."""
        return None

    def shelter(self) -> Hashable:
        """Where a connection lives that must outlast every caller; None: anywhere."""
        return None

    def left(self) -> None:
        """A sandbox of this caller has ended; what ran it until now has outlived a test."""


class ThreadIO(IO):
    """Blocking drivers: threads wait, calls run right here."""

    def lock(self, mutex: Mutex, timeout: float | None) -> bool:
        return mutex.acquire(timeout)

    def thread(self) -> threading.Thread | None:
        return threading.current_thread()

    def call(self, real: Any, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:  # noqa: ARG002
        return fn(*args, **kwargs)

    def run(self, real: Any, fn: Callable[..., T], /, *args: Any) -> T:  # noqa: ARG002
        return fn(*args)


class Driver:
    """One database driver, seen from below the virtual connection."""

    name: ClassVar[str]
    dialect: ClassVar[Dialect]
    leaves_open: ClassVar[bool] = True
    """``with connection:`` ends the transaction but does not close."""

    natively_autocommits: ClassVar[bool] = False
    """Below its PEP 249 face a statement outside of any transaction commits by itself."""

    def connection_class(self) -> type:
        """The class that ``isinstance`` is to answer for."""
        raise NotImplementedError

    def virtual_class(self) -> type[VirtualConnection]:
        """The face of a virtual connection: this driver's settings and conveniences."""
        raise NotImplementedError

    def session(self, real: Any) -> Session:
        """Read the settings of a connection that the application's listeners have prepared."""
        raise NotImplementedError

    def apply(self, real: Any, session: Session) -> None:
        """Give a real connection of the virtual one's own its settings."""
        raise NotImplementedError

    def take_over(self, real: Any) -> None:
        """Keep the driver from beginning transactions: from now on the sandbox does."""
        raise NotImplementedError

    def send(self, real: Any, statements: Sequence[str]) -> int:
        """Send transaction control in as few round trips as possible; how many it took.

        All of it or, on a lost connection, nothing: a cancellation waits until it is done.
        """
        raise NotImplementedError

    def check(self, real: Any, statements: Sequence[str]) -> None:
        """Send what may fail for a reason of the application's, with an error as it knows them."""
        self.send(real, statements)

    def ask(self, real: Any, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query of ours, whatever row factory the application has chosen."""
        raise NotImplementedError

    def forget_plans(self, real: Any) -> list[str]:
        """After a rollback over changes of the schema: what to send so that no prepared statement
        of the driver's is used again that was planned for another table.
        """
        del real
        return []

    def pid(self, real: Any) -> int:
        """The number of the server's process; 0 where there is none."""
        del real
        return 0

    def application_name(self, real: Any) -> str | None:
        """What the server has last said that it is; it does so by itself whenever it changes.

        PostgreSQL's manual, 54.2.7 "Asynchronous Operations": a ParameterStatus message.
        """
        raise NotImplementedError

    def no_savepoint(self, error: BaseException) -> bool:
        """Whether the server says that there is no such savepoint."""
        # invalid_savepoint_specification, or no transaction for it to be in.
        return self.state(error) in {"3B001", "25P01"}

    def state(self, error: BaseException) -> str | None:
        """The SQLSTATE of a driver's error."""
        return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)

    def constraint(self, error: BaseException) -> str | None:
        """The constraint that the server says was violated, as SQL names it."""
        told: Any = getattr(error, "diag", None) or error.__cause__ or error
        schema = getattr(told, "schema_name", None)
        name = getattr(told, "constraint_name", None)
        return qualified(schema, name) if schema and name else None

    def culprit(self, error: BaseException) -> str:
        """What ended the transaction, where :meth:`no_savepoint` says that something did."""
        del error
        return "something the sandbox did not see"

    def server_cursor(self, cursor: Any) -> str | None:
        """The name on the server of a cursor that lives there and is to end with COMMIT."""
        del cursor
        return None

    def in_transaction(self, real: Any) -> bool:
        """Whether the server is in a transaction, as the client knows without asking."""
        raise NotImplementedError

    def aborted(self, real: Any, error: BaseException) -> bool:
        """Whether this error made the server refuse further statements."""
        raise NotImplementedError

    def rolled_back(self, error: BaseException) -> bool:
        """Whether the server says with this error that it undid the whole transaction."""
        del error
        return False

    def lost(self, real: Any) -> bool:
        """Whether the connection to the server is gone."""
        raise NotImplementedError

    def open_cursor(
        self, real: Any, session: Session, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Make a cursor that behaves as the virtual connection's settings say."""
        del session
        return real.cursor(*args, **kwargs)

    def holds_server_state(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a cursor made with these arguments lives on the server (fetches do I/O)."""
        return bool(args and args[0]) or bool(kwargs.get("name") or kwargs.get("server_side"))

    def forget_cursor(self, real: Any) -> None:
        """Mark a cursor closed that is on the server no more: no I/O, and no complaint later."""

    def text(self, query: Any, real: Any) -> str:
        """The SQL text of whatever the driver accepts as a query."""
        del real
        return query if isinstance(query, str) else bytes(query).decode()

    def closed_error(self) -> Exception:
        """What this driver raises for a connection that was closed."""
        raise NotImplementedError
