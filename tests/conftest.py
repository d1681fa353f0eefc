from __future__ import annotations

pytest_plugins = ("pytester", "tests.fix_db", "tests.fix_leaks", "tests.fix_mariadb")
