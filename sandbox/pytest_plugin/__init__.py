"""The pytest plugin: two settings, and every test runs in its own database.

Loaded by every run of pytest on this machine, so it imports next to nothing and does nothing until
a setting or a test asks for it. Its hooks are in :mod:`.items`, its fixtures in :mod:`.fixtures`.
"""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.errors import SandboxError
from sandbox.pytest_plugin import fixtures
from sandbox.pytest_plugin.items import HOOKS, ItemHooks
from sandbox.pytest_plugin.run import RUN, Run
from sandbox.pytest_plugin.settings import Settings, add_options
from sandbox.pytest_plugin.tracebacks import hide_our_frames

__all__ = ()

_MARKERS = (
    "sandbox(**options): sandbox this test; isolation=, shared=, and those of sandbox.checkout().",
    "no_sandbox: leave the test out; what it commits is real, and later tests see it.",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the settings."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Make the database and name it in the environment, before the application is imported."""
    options = early_config.known_args_namespace
    try:
        run = Run(early_config, options, Settings.read(early_config, options))
        early_config.stash[RUN] = run
        if options.help or options.version:
            return
        run.check()
        if run.settings.env or (run.controller and run.settings.names_database):
            early_config.add_cleanup(run.close)
            run.start()
    except SandboxError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_configure(config: pytest.Config) -> None:
    """Register markers, hooks and fixtures."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    run = config.stash.get(RUN, None)
    if run is None:
        # Loaded too late for the hook above, by pytest_plugins in a conftest.
        run = Run(config, config.option, Settings.read(config, config.option))
        run.check()
        config.stash[RUN] = run
    hooks = config.stash[HOOKS] = ItemHooks(run)
    config.pluginmanager.register(hooks, "sandbox-items")
    config.pluginmanager.register(fixtures, "sandbox-fixtures")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing open."""
    run = config.stash.get(RUN, None)
    if run is not None:
        run.close()


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say where the tests run."""
    return config.stash[RUN].describe()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """Before the report of a failure is written."""
    if call.excinfo is not None:
        hide_our_frames()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The end of the last test; a worker hands what it has counted to the controller."""
    output = getattr(session.config, "workeroutput", None)
    hooks = session.config.stash.get(HOOKS, None)
    if hooks is None:
        return
    hooks.finish()
    if output is not None:
        output["sandbox_costs"] = hooks.costs.pack()
        output["sandbox_waits"] = hooks.waits.pack()
        output["sandbox_escapes"] = hooks.escapes.pack()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker says at its end; its failure to begin is that of the run."""
    output = getattr(node, "workeroutput", {})
    hooks = node.config.stash[HOOKS]
    hooks.costs.merge(output.get("sandbox_costs", {}))
    hooks.waits.merge(output.get("sandbox_waits", []))
    hooks.escapes.merge(output.get("sandbox_escapes", []))
    if "sandbox_error" in output:
        raise pytest.UsageError(output["sandbox_error"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what isolation has cost, and what it could not do."""
    hooks = terminalreporter.config.stash[HOOKS]
    hooks.waits.write(terminalreporter)
    hooks.escapes.write(terminalreporter)
    costs = hooks.costs
    if costs.tests and terminalreporter.verbosity >= -1:
        terminalreporter.write_line(costs.line())
