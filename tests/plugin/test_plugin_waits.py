"""What tests wait for themselves: how long they may, and what is said of it."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Project

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
ORDER = ("-p", "no:randomly")

WAITS = """
import threading, app, pytest, sqlalchemy as sa
import sandbox

def in_thread(job, owner):
    def run():
        with sandbox.run_as(owner):
            job()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)

def reserve(connection):
    connection.execute(sa.text("INSERT INTO users (name) VALUES ('reserved')"))

def place():
    app.add("placed")

@pytest.mark.parametrize("n", range(2))
def test_waits(sandbox_owner, n):
    with app.engine.connect() as connection:
        reserve(connection)
        in_thread(place, sandbox_owner)
        connection.commit()

def test_does_not():
    app.add("ann")
"""


@pytest.mark.parametrize("options", [(), ("-n2",)], ids=["alone", "xdist"])
def test_the_summary_shows_who_waited_for_whom(project: Project, options: tuple[str, ...]) -> None:
    project.write("test_it.py", WAITS)
    result = project.run(*ORDER, *options)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*sandbox: transactions that waited for one another*",
            "test_it.py::test_waits* waited ??? ms",
            "  ??? ms: app.py:12 (add)",
            "      for the transaction of test_it.py:14 (reserve)",
            "test_it.py::test_waits* waited ??? ms",
            "sandbox: 3 tests isolated*slowest wait ??? ms*",
        ]
    )
    assert "test_does_not waited" not in result.stdout.str()


def test_waits_that_are_short_are_not_shown(project: Project) -> None:
    project.write("test_it.py", WAITS)
    result = project.run(*ORDER, "--sandbox-nest-after=0.001")
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*waited for one another*")
    result.stdout.fnmatch_lines(["*slowest wait * ms*"])


TIMES = """
import pytest

def options(sandboxed):
    o = sandboxed.options
    return o.nest_after, o.busy_after, o.lock_timeout, o.late_isolation

def test_settings(sandboxed):
    assert options(sandboxed) == (0.5, 10.0, 3.0, "warn")

@pytest.mark.sandbox(nest_after=1, busy_after=2.5, late_isolation="error")
class TestMarker:
    def test_the_marker_is_over_the_setting(self, sandboxed):
        assert options(sandboxed) == (1, 2.5, 3.0, "error")

    @pytest.mark.sandbox(lock_timeout=0, isolation_level="serializable")
    def test_the_closest_is_over_both(self, sandboxed):
        assert options(sandboxed) == (1, 2.5, 0, "error")
        assert sandboxed.options.isolation_level == "SERIALIZABLE"
"""

SETTINGS = [
    "-osandbox_nest_after=7",
    "-osandbox_lock_timeout=3",
    "-osandbox_late_isolation=warn",
    "--sandbox-nest-after=0.5",
]


def test_settings_markers_and_defaults(project: Project) -> None:
    project.passes(TIMES, 3, *SETTINGS)


def test_they_hold_for_engines_of_your_own_too(project: Project) -> None:
    project.settings("")
    project.write(
        "conftest.py",
        """
        import pytest, sqlalchemy as sa

        @pytest.fixture(scope="session")
        def sandbox_engines():
            engine = sa.create_engine("sqlite:///own.db")
            yield [engine]
            engine.dispose()
        """,
    )
    project.passes(TIMES, 3, *SETTINGS)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--sandbox-nest-after=soon", "sandbox_nest_after: 'soon' is no number of seconds"),
        ("--sandbox-busy-after=-1", "sandbox_busy_after=-1.0: seconds are needed, 0 or more"),
        ("--sandbox-lock-timeout=nan", "sandbox_lock_timeout=nan: seconds are needed"),
        ("--sandbox-late-isolation=hope", "sandbox_late_isolation='hope' is not known"),
    ],
)
def test_a_wrong_setting_ends_the_run_at_once(project: Project, option: str, said: str) -> None:
    project.write("test_it.py", TIMES)
    project.write("conftest.py", "raise RuntimeError('no conftest was to be imported')")
    result = project.run(option)
    assert result.ret == USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{said}*"])
    assert "Traceback" not in result.stderr.str()


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("nest_after='soon'", "nest_after='soon': seconds are needed, 0 or more"),
        ("lock_timeout=-1", "lock_timeout=-1: seconds are needed, 0 or more"),
        ("late_isolation='hope'", "late_isolation='hope' is not known"),
        ("isolation_level='hope'", "isolation level 'HOPE' is not known; use one of"),
    ],
)
def test_a_wrong_marker_ends_the_run(project: Project, marker: str, said: str) -> None:
    project.write(
        "test_it.py", f"import pytest\n\n@pytest.mark.sandbox({marker})\ndef test_it(): pass\n"
    )
    result = project.run()
    assert result.ret == USAGE_ERROR
    assert "passed" not in result.parseoutcomes()
    combined = pytest.LineMatcher([*result.outlines, *result.errlines])
    combined.fnmatch_lines([f"*test_it.py::test_it: @pytest.mark.sandbox(*{said}*"])
