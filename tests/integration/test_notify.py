"""NOTIFY and LISTEN in a sandbox, with each driver: as on a plain engine.

Each program is run twice, first on an engine that knows nothing of sandboxes, then inside one, and
has to see the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import select
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sandbox
from sandbox.adapters.sqlalchemy.pool import is_adopted
from sandbox.connection import channels
from sandbox.errors import OwnerExitedError, UndeliveredNotificationWarning
from tests.fix_db import App, items

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "notify.md"
PATIENCE = 20.0
MOMENT = 0.3
"""How long it is listened for what must not come."""


@pytest.fixture(autouse=True)
def nobody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_told", set())


# Some programs notify nobody, on purpose.
pytestmark = pytest.mark.filterwarnings(
    "ignore::sandbox.errors.UndeliveredNotificationWarning",
)


# -- threads: psycopg and psycopg2 -----------------------------------------------------------------


class Ear:
    """A connection of the pool that listens, as an application holds one for long."""

    def __init__(self, engine: sa.Engine, *channels_: str, autocommit: bool = True) -> None:
        self.pooled = engine.raw_connection()
        self.connection: Any = self.pooled.driver_connection
        assert self.connection is not None
        self.connection.autocommit = autocommit
        for channel in channels_:
            self.run(f"LISTEN {channel}")

    def run(self, sql: str, *parameters: Any) -> None:
        cursor = self.connection.cursor()
        cursor.execute(sql, *parameters)
        cursor.close()

    def heard(self, enough: int | None = None, patience: float | None = None) -> list[str]:
        """``channel:payload``, until there are enough, or for that long."""
        if patience is None:
            patience = PATIENCE if enough else MOMENT
        if hasattr(self.connection, "add_notify_handler"):
            found = self.connection.notifies(timeout=patience, stop_after=enough)
            return [f"{each.channel}:{each.payload}" for each in found]
        deadline = time.monotonic() + patience
        notifies = self.connection.notifies
        while enough is None or len(notifies) < enough:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.connection], [], [], left)[0]:
                break
            self.connection.poll()
        found, notifies[:] = list(notifies), []
        return [f"{each.channel}:{each.payload}" for each in found]

    def close(self) -> None:
        self.pooled.invalidate()

    def __enter__(self) -> Ear:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def delivered_at_commit_and_not_before(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as ear, Session(engine) as session:
        session.execute(sa.text("NOTIFY orders, 'one'"))
        session.execute(sa.text("NOTIFY orders"))
        before = ear.heard()
        session.commit()
        return before, ear.heard(2)


def not_on_rollback(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as ear, Session(engine) as session:
        session.execute(sa.text("NOTIFY orders, 'never'"))
        session.rollback()
        session.execute(sa.text("NOTIFY orders, 'then'"))
        session.commit()
        return ear.heard(1), ear.heard()


def not_after_a_failure(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as ear, engine.connect() as connection:
        connection.execute(sa.text("NOTIFY orders, 'never'"))
        with contextlib.suppress(sa.exc.DBAPIError):
            connection.execute(sa.text("SELECT 1/0"))
        connection.commit()
        return ear.heard()


def not_after_rollback_to(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as ear, engine.connect() as connection:
        connection.execute(sa.text("NOTIFY orders, 'one'"))
        nested = connection.begin_nested()
        connection.execute(sa.text("NOTIFY orders, 'never'"))
        nested.rollback()
        with connection.begin_nested():
            connection.execute(sa.text("NOTIFY orders, 'two'"))
        connection.commit()
        return ear.heard(2), ear.heard()


def duplicates_collapse(engine: sa.Engine) -> Any:
    with Ear(engine, "orders", "bills") as ear, engine.connect() as connection:
        for payload in ("x", "y", "x"):
            connection.execute(sa.text(f"NOTIFY orders, '{payload}'"))
        connection.execute(sa.text("NOTIFY bills, 'x'"))
        connection.commit()
        first = ear.heard(3)
        connection.execute(sa.text("NOTIFY orders, 'x'"))
        connection.commit()
        return first, ear.heard(1)


def own_notifications(engine: sa.Engine) -> Any:
    with Ear(engine, "orders", autocommit=False) as ear:
        ear.connection.commit()
        ear.run("NOTIFY orders, 'mine'")
        ear.connection.commit()
        return ear.heard(1, MOMENT)


def listen_is_effective_at_its_commit(engine: sa.Engine) -> Any:
    with Ear(engine, "orders", autocommit=False) as ear, engine.connect() as connection:
        connection.execute(sa.text("NOTIFY orders, 'too early'"))
        connection.commit()
        ear.connection.commit()
        early = ear.heard()
        connection.execute(sa.text("NOTIFY orders, 'in time'"))
        connection.commit()
        return early, ear.heard(1)


def listen_rolled_back(engine: sa.Engine) -> Any:
    with Ear(engine, "orders", autocommit=False) as ear, engine.connect() as connection:
        ear.connection.rollback()
        connection.execute(sa.text("NOTIFY orders, 'never'"))
        connection.commit()
        return ear.heard()


def notify_and_listen_in_one_transaction(engine: sa.Engine) -> Any:
    with Ear(engine, autocommit=False) as ear:
        ear.run("NOTIFY orders, 'before'")
        ear.run("LISTEN orders")
        ear.run("NOTIFY orders, 'after'")
        ear.connection.commit()
        return ear.heard(2, MOMENT)


def nothing_comes_inside_a_transaction(engine: sa.Engine) -> Any:
    with Ear(engine, "orders", autocommit=False) as ear, engine.connect() as connection:
        ear.connection.commit()
        ear.run("SELECT 1")
        connection.execute(sa.text("NOTIFY orders, 'later'"))
        connection.commit()
        inside = ear.heard()
        ear.connection.rollback()
        ear.run("SELECT 1")
        ear.connection.rollback()
        return inside, ear.heard(1)


def unlisten(engine: sa.Engine) -> Any:
    seen = []
    with Ear(engine, "orders", "bills", '"Odd ""Name"""') as ear, engine.connect() as connection:
        for command in ("UNLISTEN orders", "UNLISTEN *"):
            ear.run(command)
            for channel in ("orders", "bills", '"Odd ""Name"""'):
                connection.execute(sa.text(f"NOTIFY {channel}, '{command}'"))
            connection.commit()
            seen.append(ear.heard())
    return seen


def bound_parameters(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as ear, engine.connect() as connection:
        notify = sa.text("SELECT pg_notify(:channel, :payload)")
        connection.execute(notify, {"channel": "orders", "payload": "it's"})
        connection.execute(sa.select(sa.func.pg_notify("orders", "a function")))
        connection.exec_driver_sql("SELECT pg_notify(%s, %s)", ("orders", "by position"))
        connection.exec_driver_sql("SELECT pg_notify('orders', '')")
        connection.commit()
        return ear.heard(4)


def autocommit_notifies_at_once(engine: sa.Engine) -> Any:
    automatic = engine.execution_options(isolation_level="AUTOCOMMIT")
    with Ear(engine, "orders") as ear, automatic.connect() as connection:
        connection.execute(sa.text("NOTIFY orders, 'one'"))
        first = ear.heard(1)
        connection.execute(sa.select(sa.func.pg_notify("orders", "two")))
        return first, ear.heard(1)


def several_listeners(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as first, Ear(engine, "orders") as second:
        with Session(engine) as session:
            session.execute(sa.insert(items).values(name="pen"))
            session.execute(sa.text("NOTIFY orders, 'pen'"))
            session.commit()
        return first.heard(1), second.heard(1)


def what_came_while_it_was_busy(engine: sa.Engine) -> Any:
    with Ear(engine, "orders") as ear, engine.connect() as connection:
        connection.execute(sa.text("NOTIFY orders, 'one'"))
        connection.commit()
        ear.run("SELECT 1")
        # psycopg2's list; psycopg's is a method.
        found = ear.connection.notifies
        brought = [] if callable(found) else [each.payload for each in found]
        connection.execute(sa.text("NOTIFY orders, 'two'"))
        connection.commit()
        return brought, ear.heard(2)


def a_listener_in_a_thread(engine: sa.Engine) -> Any:
    ready = threading.Event()

    def listen() -> list[str]:
        with Ear(engine, "orders") as ear:
            ready.set()
            return ear.heard(1)

    with ThreadPoolExecutor(1, "listener") as pool:
        heard = pool.submit(listen)
        assert ready.wait(PATIENCE)
        with Session(engine) as session:
            session.execute(sa.insert(items).values(name="pen"))
            session.execute(sa.text("NOTIFY orders, 'pen'"))
            session.commit()
        return heard.result(PATIENCE)


PROGRAMS = (
    delivered_at_commit_and_not_before,
    not_on_rollback,
    not_after_a_failure,
    not_after_rollback_to,
    duplicates_collapse,
    own_notifications,
    listen_is_effective_at_its_commit,
    listen_rolled_back,
    notify_and_listen_in_one_transaction,
    nothing_comes_inside_a_transaction,
    unlisten,
    bound_parameters,
    autocommit_notifies_at_once,
    several_listeners,
    what_came_while_it_was_busy,
    a_listener_in_a_thread,
)


@pytest.fixture(params=("psycopg", "psycopg2"))
def sync_app(request: pytest.FixtureRequest, make_app: Callable[[str], App]) -> App:
    return make_app(request.param)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_it_sees_what_it_sees_on_a_plain_engine(
    sync_app: App, program: Callable[[sa.Engine], Any]
) -> None:
    plain = sync_app.make_engine()
    in_production = program(plain)
    assert not is_adopted(plain.pool)
    sync_app.empty()
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine) as ours:
        sandbox.allow(ours, "listener*")
        in_a_sandbox = program(engine)
    assert in_a_sandbox == in_production


def test_one_who_listened_in_the_last_sandbox_hears_nothing_in_the_next(sync_app: App) -> None:
    engine = sync_app.make_engine(pool_size=1)
    with sandbox.sandboxed(engine):
        ear = Ear(engine, "orders")
        ear.run("NOTIFY orders, 'one'")
        ear.pooled.close()
    with sandbox.sandboxed(engine):
        again = Ear(engine)
        again.run("NOTIFY orders, 'two'")
        assert again.heard() == []
        again.close()


def test_two_sandboxes_in_two_threads_do_not_hear_each_other(sync_app: App) -> None:
    engine = sync_app.make_engine()
    everybody = threading.Barrier(2, timeout=PATIENCE)

    def work(name: str) -> list[str]:
        with sandbox.sandboxed(engine), Ear(engine, "orders") as ear:
            everybody.wait()
            with Session(engine) as session:
                session.execute(sa.select(sa.func.pg_notify("orders", name)))
                session.commit()
            everybody.wait()
            return ear.heard()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, ["one", "two"])) == [["orders:one"], ["orders:two"]]


def test_nothing_is_sent_for_real(sync_app: App) -> None:
    engine, outside = sync_app.make_engine(), sync_app.make_engine()
    with Ear(outside, "orders") as ear:
        with sandbox.sandboxed(engine):
            with Ear(engine, "orders") as inside, engine.begin() as connection:
                connection.execute(sa.text("NOTIFY orders, 'one'"))
            assert inside.connection.closed
        assert ear.heard() == []


def test_a_waiting_listener_holds_nobody_up(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine) as ours, ThreadPoolExecutor(1, "listener") as pool:
        sandbox.allow(ours, "listener*")
        ear = Ear(engine, "orders")
        heard = pool.submit(ear.heard, 1)
        for number in range(20):
            with engine.begin() as connection:
                connection.execute(sa.insert(items).values(name=f"pen {number}"))
        assert ours.stats.waits == 0
        assert not heard.done()
        with engine.begin() as connection:
            connection.execute(sa.text("NOTIFY orders, 'done'"))
        assert heard.result(PATIENCE) == ["orders:done"]
        ear.close()


def test_the_check_in_ends_those_who_wait(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with ThreadPoolExecutor(1, "listener") as pool:
        with sandbox.sandboxed(engine) as ours:
            sandbox.allow(ours, "listener*")
            ear = Ear(engine, "orders")
            waits = threading.Event()
            target, session = ear.connection._memory
            inbox = target.sandbox.channels.inbox(session)

            def wait() -> list[str]:
                waits.set()
                return ear.heard(1)

            heard = pool.submit(wait)
            assert waits.wait(PATIENCE)
            deadline = time.monotonic() + PATIENCE
            while not (inbox._bells or inbox._sockets) and time.monotonic() < deadline:
                time.sleep(0)
        with pytest.raises(OwnerExitedError, match="has ended"):
            heard.result(PATIENCE)
    ear.close()


def test_a_listener_that_is_closed_under_its_reader_says_so(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine):
        ear = Ear(engine, "orders")
        ear.close()
        with pytest.raises((sa.exc.DBAPIError, *_errors(sync_app.driver))):
            ear.heard()


def _errors(driver: str) -> tuple[type[Exception], ...]:
    import psycopg
    import psycopg2

    return (psycopg.Error,) if driver == "psycopg" else (psycopg2.Error,)


def test_a_connection_that_is_forgotten_listens_no_more(sync_app: App) -> None:
    engine = sync_app.make_engine(poolclass=sa.NullPool)
    with sandbox.sandboxed(engine) as ours:
        ear = Ear(engine, "orders")
        ear.heard(patience=0)
        assert len(ours.channels._inboxes) == 1
        ear.pooled.close()
        with engine.begin() as connection:
            connection.execute(sa.text("NOTIFY orders, 'nobody'"))
        assert ours.channels._inboxes == {}


def test_a_connection_that_is_garbage_listens_no_more(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine) as ours:
        connection = sandbox.get_conn(engine)
        connection.autocommit = True
        connection.cursor().execute("LISTEN orders")
        assert len(ours.channels._inboxes) == 1
        cycle = [connection]
        cycle.append(cycle)
        del connection, cycle
        gc.collect()
        assert ours.channels._inboxes == {}


def test_an_application_that_never_notifies_makes_no_channels(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine) as ours:
        with engine.begin() as connection:
            connection.execute(sa.insert(items).values(name="pen"))
        assert ours._channels is None


def test_who_notifies_nobody_is_told_who_it_was(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine), engine.connect() as connection:
        connection.execute(sa.text("NOTIFY orders, 'one'"))
        with pytest.warns(UndeliveredNotificationWarning, match=r"NOTIFY orders .*test_notify\.py"):
            connection.commit()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            connection.execute(sa.text("NOTIFY orders, 'two'"))
            connection.commit()


def test_a_payload_that_the_server_computes_is_not_made_up(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine), Ear(engine, "orders") as ear, engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_notify('orders', upper('pen'))"))
        with pytest.warns(UndeliveredNotificationWarning, match="only the server can evaluate"):
            connection.commit()
        assert ear.heard() == []


# -- psycopg's handlers, psycopg2's list -----------------------------------------------------------


def test_psycopg_calls_handlers_between_transactions(make_app: Callable[[str], App]) -> None:
    app = make_app("psycopg")

    def program(engine: sa.Engine) -> Any:
        heard: list[str] = []
        log = []

        def note(each: Any) -> None:
            heard.append(f"{type(each).__module__}.{type(each).__name__} {each.payload}")

        with Ear(engine, "orders") as ear, engine.connect() as connection:
            ear.connection.add_notify_handler(note)
            connection.execute(sa.text("NOTIFY orders, 'one'"))
            connection.commit()
            ear.run("SELECT 1")
            log.append(tuple(heard))
            ear.run("NOTIFY orders, 'mine'")
            log.append(tuple(heard))
            ear.connection.remove_notify_handler(note)
            with pytest.raises(ValueError, match="not in list"):
                ear.connection.remove_notify_handler(note)
            connection.execute(sa.text("NOTIFY orders, 'two'"))
            connection.commit()
            ear.run("SELECT 1")
            log.append(tuple(heard))
            return log, ear.heard(1)

    in_production = program(app.make_engine())
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        assert program(engine) == in_production


def test_psycopg_can_be_waited_for_by_select(make_app: Callable[[str], App]) -> None:
    app = make_app("psycopg")

    def program(engine: sa.Engine) -> Any:
        with Ear(engine, "orders") as ear, engine.connect() as connection:
            before = select.select([ear.connection], [], [], 0)[0]
            connection.execute(sa.text("NOTIFY orders, 'one'"))
            connection.commit()
            after = select.select([ear.connection], [], [], PATIENCE)[0]
            return len(before), len(after), ear.heard(1), select.select([ear.connection], [], [], 0)

    in_production = program(app.make_engine())
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        assert program(engine) == in_production


def test_psycopg_keeps_what_a_reader_did_not_take(make_app: Callable[[str], App]) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine), Ear(engine, "orders") as ear:
        for number in range(3):
            ear.run("SELECT pg_notify('orders', %s)", [str(number)])
        reader = ear.connection.notifies(timeout=PATIENCE)
        assert next(reader).payload == "0"
        reader.close()
        assert ear.heard(2) == ["orders:1", "orders:2"]


def test_psycopg_tells_whose_process_it_was(make_app: Callable[[str], App]) -> None:
    engine = make_app("psycopg").make_engine()
    with sandbox.sandboxed(engine), Ear(engine, "orders") as ear:
        ear.run("NOTIFY orders, 'one'")
        (each,) = ear.connection.notifies(timeout=PATIENCE, stop_after=1)
        assert each.pid == ear.connection.info.backend_pid


def test_psycopg2_fills_the_list_that_the_application_has_put_there(
    make_app: Callable[[str], App],
) -> None:
    app = make_app("psycopg2")

    class Queue:
        def __init__(self) -> None:
            self.got: list[Any] = []

        def append(self, each: Any) -> None:
            self.got.append((type(each).__name__, each.channel, each.payload))

    def program(engine: sa.Engine) -> Any:
        with Ear(engine, "orders") as ear:
            queue = ear.connection.notifies = Queue()
            ear.run("NOTIFY orders, 'one'")
            state = ear.connection.poll()
            assert ear.connection.notifies is queue
            return state, queue.got

    in_production = program(app.make_engine())
    engine = app.make_engine()
    with sandbox.sandboxed(engine):
        assert program(engine) == in_production


async def test_a_loop_can_watch_a_connection_of_psycopg2(make_app: Callable[[str], App]) -> None:
    engine = make_app("psycopg2").make_engine()
    loop, heard = asyncio.get_running_loop(), asyncio.Queue[str]()
    with sandbox.sandboxed(engine):
        ear = Ear(engine, "orders")

        def read() -> None:
            ear.connection.poll()
            while ear.connection.notifies:
                heard.put_nowait(ear.connection.notifies.pop(0).payload)

        def send() -> None:
            with engine.begin() as connection:
                connection.execute(sa.text("NOTIFY orders, 'from a thread'"))

        loop.add_reader(ear.connection, read)
        await asyncio.to_thread(send)
        assert await asyncio.wait_for(heard.get(), PATIENCE) == "from a thread"
        loop.remove_reader(ear.connection)
        ear.close()


def test_outside_of_a_sandbox_they_are_the_real_connections(sync_app: App) -> None:
    """A plain program on an engine that was taken over, where nobody is sandboxed."""
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine), engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
    sandbox.mode(engine, "auto")
    assert is_adopted(engine.pool)

    def outside() -> list[Any]:
        # Of a thread that belongs to no test.
        return [
            delivered_at_commit_and_not_before(engine),
            own_notifications(engine),
            not_after_rollback_to(engine),
        ]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(outside).result(PATIENCE) == [
            ([], ["orders:one", "orders:"]),
            ["orders:mine"],
            (["orders:one", "orders:two"], []),
        ]


# -- gaps outside of this module, found here ---------------------------------------------------


def test_every_execution_of_executemany_notifies(sync_app: App) -> None:
    engine = sync_app.make_engine()
    with sandbox.sandboxed(engine), Ear(engine, "orders") as ear:
        with engine.begin() as connection:
            connection.execute(
                sa.text("SELECT pg_notify('orders', :payload)"),
                [{"payload": "one"}, {"payload": "two"}],
            )
        assert ear.heard(2, MOMENT) == ["orders:one", "orders:two"]


# -- what the guide says ---------------------------------------------------------------------------


def test_the_example_of_the_guide(pytester: pytest.Pytester) -> None:
    files = re.findall(
        r'^```python title="(\S+)"\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert [name for name, _ in files] == ["shop.py", "test_shop.py"]
    for name, content in files:
        (pytester.path / name).write_text(content)
    (pytester.path / "pytest.ini").write_text(
        "[pytest]\nsandbox_env = DATABASE_URL=postgresql+psycopg\n"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
