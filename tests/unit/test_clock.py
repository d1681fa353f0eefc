"""What time it is in a sandbox, without any database."""

from __future__ import annotations

import datetime as dt
import gc
import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import time_machine
from freezegun import freeze_time

import sandbox
from sandbox.core.clock import REAL, Clock, refuse_unless_follows, warn_unfollowed
from sandbox.errors import (
    ClockWarning,
    ConfigurationError,
    NotFoundError,
    OwnershipError,
    UnsupportedInSandboxError,
)

LONG_AGO = dt.datetime(2001, 2, 3, 4, 5, 6, 789, tzinfo=dt.UTC)
A_MINUTE = dt.timedelta(minutes=1)


def read(clock: Clock) -> dt.datetime:
    text = clock.reading()
    assert len(text) == len("2001-02-03 04:05:06.000789+00")
    return dt.datetime.fromisoformat(text)


def real_now() -> dt.datetime:
    """From a source that neither freezegun nor time-machine has under its hands here."""
    done = subprocess.run(["date", "+%s.%N"], capture_output=True, text=True, check=True)
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=float(done.stdout))


# -- clocks --------------------------------------------------------------------------------------


def test_a_fixed_clock_stands() -> None:
    clock = Clock.fixed(LONG_AGO)
    assert clock.reading() == "2001-02-03 04:05:06.000789+00"
    assert clock.reading() == clock.reading()


def test_a_time_of_another_zone_is_the_same_moment() -> None:
    at = LONG_AGO.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))
    assert Clock.fixed(at).reading() == "2001-02-03 04:05:06.000789+00"


@pytest.mark.parametrize("year", [1, 999, 9999])
def test_every_year_that_python_knows_has_four_digits(year: int) -> None:
    assert Clock.fixed(LONG_AGO.replace(year=year)).reading()[:5] == f"{year:04}-"


def test_a_moving_clock_goes_on_as_real_time_does() -> None:
    before = time.monotonic()
    clock = Clock.moving(LONG_AGO)
    first, second = read(clock), read(clock)
    elapsed = dt.timedelta(seconds=time.monotonic() - before)
    assert LONG_AGO <= first < second
    assert second - LONG_AGO <= elapsed + A_MINUTE


def test_the_default_clock_is_real_time() -> None:
    assert abs(read(REAL) - dt.datetime.now(dt.UTC)) < A_MINUTE
    assert read(REAL) < read(REAL)


def frozen(by: str) -> Any:
    return freeze_time(LONG_AGO) if by == "freezegun" else time_machine.travel(LONG_AGO, tick=False)


FREEZERS = ("freezegun", "time_machine")


@pytest.mark.parametrize("by", FREEZERS)
def test_the_default_clock_goes_on_while_python_is_frozen(by: str) -> None:
    with frozen(by):
        first = read(REAL)
        assert abs(first - real_now()) < A_MINUTE
        assert first < read(REAL)
    assert abs(read(REAL) - real_now()) < A_MINUTE


@pytest.mark.parametrize("by", FREEZERS)
def test_a_moving_clock_goes_on_while_python_is_frozen(by: str) -> None:
    with frozen(by):
        clock = Clock.moving(LONG_AGO)
        assert LONG_AGO <= read(clock) < read(clock) < LONG_AGO + A_MINUTE
    assert read(clock) < LONG_AGO + A_MINUTE


@pytest.mark.parametrize("by", FREEZERS)
def test_a_following_clock_says_what_python_says(by: str) -> None:
    clock = Clock.following()
    with frozen(by) as control:
        assert read(clock) == dt.datetime.now(dt.UTC) == LONG_AGO
        control.move_to(LONG_AGO + A_MINUTE)
        assert read(clock) == LONG_AGO + A_MINUTE
    assert abs(read(clock) - real_now()) < A_MINUTE


def test_two_ways_to_travel_at_once_leave_real_time_alone() -> None:
    with time_machine.travel(LONG_AGO, tick=False), freeze_time(LONG_AGO + A_MINUTE):
        assert abs(read(REAL) - real_now()) < A_MINUTE
        assert read(Clock.following()) == LONG_AGO + A_MINUTE


def fresh(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50
    )
    return json.loads(done.stdout)


def test_a_clock_that_is_imported_while_python_is_frozen_is_not_frozen() -> None:
    texts = fresh(
        "import json\n"
        "from freezegun import freeze_time\n"
        "with freeze_time('2001-02-03'):\n"
        "    from sandbox.core.clock import REAL, Clock\n"
        "    inside = [REAL.reading(), Clock.following().reading()]\n"
        "print(json.dumps([*inside, REAL.reading(), Clock.following().reading()]))"
    )
    years = [int(text[:4]) for text in texts]
    assert [year == 2001 for year in years] == [False, True, False, False]


def test_clocks_import_nothing_that_freezes() -> None:
    loaded = fresh(
        "import json, sys\n"
        "from sandbox.core.clock import REAL, Clock\n"
        "REAL.reading(), Clock.following().reading()\n"
        "print(json.dumps([name for name in ('freezegun', 'time_machine') if name in sys.modules]))"
    )
    assert loaded == []


# -- sandbox.clock() -----------------------------------------------------------------------------


@pytest.fixture
def nowhere() -> Iterator[sa.Engine]:
    """An engine that is never connected: a checkout asks no server."""
    engine = sa.create_engine("postgresql+psycopg://nobody@localhost:1/clock_test")
    yield engine
    sandbox.stop()
    engine.dispose()
    gc.collect()


def said(box: sandbox.Sandbox) -> str | None:
    return box.clock.reading() if box.clock is not None else None


FIXED = "2001-02-03 04:05:06.000789+00"
LATER = LONG_AGO + A_MINUTE
FIXED_LATER = "2001-02-03 04:06:06.000789+00"


def test_the_clock_is_set_in_the_block_and_nowhere_else(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box:
        assert said(box) is None
        with sandbox.clock(LONG_AGO):
            assert said(box) == FIXED
        assert said(box) is None


def test_a_block_that_fails_gives_the_time_back(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box:
        with pytest.raises(ZeroDivisionError), sandbox.clock(LONG_AGO):
            1 / 0  # noqa: B018
        assert said(box) is None


def test_the_innermost_of_nested_blocks_counts(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box:
        with sandbox.clock(LONG_AGO):
            with sandbox.clock(LATER):
                assert said(box) == FIXED_LATER
            assert said(box) == FIXED
        assert said(box) is None


def test_one_block_may_be_entered_again(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box:
        at = sandbox.clock(LONG_AGO)
        with at, at:
            assert said(box) == FIXED
        assert said(box) is None


def test_blocks_that_end_crosswise_leave_the_one_that_goes_on(nowhere: sa.Engine) -> None:
    """As those of two threads may."""
    with sandbox.sandboxed(nowhere) as box:
        first, second = sandbox.clock(LONG_AGO), sandbox.clock(LATER)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert said(box) == FIXED_LATER
        second.__exit__(None, None, None)
        assert said(box) is None


async def test_it_is_an_asynchronous_context_manager_too(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box:
        async with sandbox.clock(LONG_AGO):
            assert said(box) == FIXED
        assert said(box) is None


def test_a_moving_clock_begins_when_the_block_does(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box:
        at = sandbox.clock(LONG_AGO, moving=True)
        threading.Event().wait(0.02)
        with at:
            assert box.clock is not None
            assert read(box.clock) - LONG_AGO < dt.timedelta(milliseconds=20)


def test_without_a_time_it_follows_python(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as box, sandbox.clock():
        assert box.clock is not None
        assert abs(read(box.clock) - real_now()) < A_MINUTE
        with freeze_time(LONG_AGO):
            assert said(box) == FIXED


def test_all_that_the_caller_owns_or_only_the_target(nowhere: sa.Engine) -> None:
    other = sa.create_engine("postgresql+psycopg://nobody@localhost:1/other_test")
    with sandbox.sandboxed(nowhere) as first, sandbox.sandboxed(other) as second:
        with sandbox.clock(LONG_AGO):
            assert (said(first), said(second)) == (FIXED, FIXED)
        for target in (other, second):
            with sandbox.clock(LONG_AGO, target=target):
                assert (said(first), said(second)) == (None, FIXED)


def test_nobody_elses_sandbox_is_touched(nowhere: sa.Engine) -> None:
    with sandbox.sandboxed(nowhere) as mine:
        with sandbox.run_as(sandbox.Owner("the other test")):
            theirs = sandbox.checkout(nowhere)
        with sandbox.clock(LONG_AGO):
            assert (said(mine), said(theirs)) == (FIXED, None)
        sandbox.checkin(theirs)


def test_who_was_allowed_sets_the_time_of_the_sandbox_that_he_uses(nowhere: sa.Engine) -> None:
    seen: list[str | None] = []

    def work() -> None:
        with sandbox.clock(LONG_AGO):
            seen.append(said(box))

    with sandbox.sandboxed(nowhere) as box:
        thread = threading.Thread(target=work)
        sandbox.allow(box, thread)
        thread.start()
        thread.join()
    assert seen == [FIXED]


def test_without_a_sandbox_there_is_no_time_to_set(nowhere: sa.Engine) -> None:
    for target in (None, nowhere):
        with pytest.raises(NotFoundError, match="has no sandbox"):
            sandbox.clock(LONG_AGO, target=target).__enter__()
    with sandbox.run_as(sandbox.Owner("the other test")):
        box = sandbox.checkout(nowhere)
    with pytest.raises(NotFoundError, match="has no sandbox"):
        sandbox.clock(LONG_AGO).__enter__()
    with pytest.raises(OwnershipError):
        sandbox.clock(LONG_AGO, target=nowhere).__enter__()
    sandbox.checkin(box)
    with pytest.raises(NotFoundError, match="checked in already"):
        sandbox.clock(LONG_AGO, target=box).__enter__()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at": dt.datetime(2001, 2, 3)}, r"no time zone.*replace\(tzinfo=UTC\)"),
        ({"at": dt.date(2001, 2, 3)}, "a datetime with a time zone is needed"),
        ({"at": "2001-02-03"}, "a datetime with a time zone is needed"),
        ({"at": None, "moving": True}, "from when"),
        (
            {"at": dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(hours=2)))},
            "beyond what a datetime can hold",
        ),
    ],
)
def test_a_time_that_cannot_be_is_refused_at_once(arguments: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        sandbox.clock(**arguments)


def test_sqlite_says_that_it_cannot(tmp_path: Any) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db")
    with sandbox.sandboxed(engine) as box:
        with pytest.raises(UnsupportedInSandboxError, match="SQLite"):
            sandbox.clock(LONG_AGO).__enter__()
        assert said(box) is None
    sandbox.stop()
    engine.dispose()


def test_where_one_of_several_cannot_none_is_set(nowhere: sa.Engine, tmp_path: Any) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/app.db")
    with sandbox.sandboxed(nowhere) as box, sandbox.sandboxed(engine):
        with pytest.raises(UnsupportedInSandboxError, match="SQLite"):
            sandbox.clock(LONG_AGO).__enter__()
        assert said(box) is None
        with sandbox.clock(LONG_AGO, target=nowhere):
            assert said(box) == FIXED
    engine.dispose()


# -- what cannot follow --------------------------------------------------------------------------


class Box:
    label = "tests/test_it.py::test_it"


def test_a_statement_that_cannot_follow_is_warned_about_once_for_each_sandbox() -> None:
    first, second = Box(), Box()
    for box in (first, second):
        with pytest.warns(ClockWarning, match=r"app\.py:7 .*SELECT CURRENT_DATE") as caught:
            warn_unfollowed(box, "app.py:7 (work)", "SELECT  CURRENT_DATE")
        warn_unfollowed(box, "app.py:7 (work)", "SELECT  CURRENT_DATE")  # or it were an error
    assert str(caught[0].message).endswith("docs/reference/errors.md#clockwarning")


def test_the_warning_does_not_repeat_a_book() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_unfollowed(Box(), "", f"INSERT INTO t VALUES (CURRENT_DATE, '{'x' * 9999}')")
    (warning,) = caught
    assert len(str(warning.message)) < 1000
    assert str(warning.message).startswith("tests/test_it.py::test_it")


def test_a_database_that_cannot_follow_names_the_setting() -> None:
    refuse_unless_follows(True, "PostgreSQL", "database 'app_test'")
    with pytest.raises(UnsupportedInSandboxError, match=r"'app_test'.*sandbox_clock = replace"):
        refuse_unless_follows(False, "PostgreSQL", "database 'app_test'")
    with pytest.raises(UnsupportedInSandboxError, match="MariaDB"):
        refuse_unless_follows(False, "MariaDB", "database 'app_test'")
