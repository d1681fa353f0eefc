"""Every run of pytest on a machine loads the plugin; hardly one of them wants it."""

from __future__ import annotations

import subprocess
import sys

from tests.plugin.conftest import Project


def test_importing_the_plugin_imports_no_other_package() -> None:
    program = """
import sys, pytest
before = set(sys.modules)
import sandbox.pytest_plugin
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
print([name for name in sys.modules if name.startswith(("sandbox.adapters", "sandbox.databases"))])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["['sandbox']", "[]"]


def test_a_run_that_asks_for_nothing_gets_nothing(project: Project) -> None:
    project.settings("")
    result = project.passes(
        """
        import os, sys

        def test_nothing_was_loaded():
            assert "sqlalchemy" not in sys.modules
            assert "sandbox.databases" not in sys.modules
            assert "DATABASE_URL" not in os.environ

        def test_nobody_owns_anything():
            import sandbox
            assert sandbox.current_owner() is None

        async def helper():
            pass
        """,
        2,
    )
    assert "sandbox:" not in result.stdout.str()


def test_markers_and_settings_are_declared(project: Project) -> None:
    project.settings("")
    result = project.run("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.sandbox(*", "@pytest.mark.no_sandbox: *"])
    result = project.run("--help")
    result.stdout.fnmatch_lines(["*--sandbox-url=URL*", "*sandbox_allow_any_database*"])
