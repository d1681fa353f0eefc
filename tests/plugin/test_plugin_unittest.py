from __future__ import annotations

from tests.plugin.conftest import Project


def test_unittest_classes_need_nothing(project: Project) -> None:
    project.asynchronous()
    project.write(
        "sync_app.py",
        """
        import os, sqlalchemy as sa
        from sqlalchemy.orm import Session
        from models import User

        engine = sa.create_engine(os.environ["SYNC_URL"])

        def add(name):
            with Session(engine) as session, session.begin():
                session.add(User(name=name))

        def names():
            with Session(engine) as session:
                return list(session.scalars(sa.select(User.name)))
        """,
    )
    project.passes(
        """
        import unittest
        import app, sync_app

        class Sync(unittest.TestCase):
            def setUp(self):
                sync_app.add("ann")

            def tearDown(self):
                assert "ann" in sync_app.names()

            def test_first(self):
                self.assertEqual(sync_app.names(), ["ann"])
                sync_app.add("bob")

            def test_second(self):
                self.assertEqual(sync_app.names(), ["ann"])
                sync_app.add("bob")

        class Async(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self):
                await app.add("ann")
                self.addAsyncCleanup(self.still_there)

            async def still_there(self):
                assert "ann" in await app.names()

            async def test_first(self):
                self.assertEqual(await app.names(), ["ann"])
                await app.add("bob")

            async def test_second(self):
                self.assertEqual(await app.names(), ["ann"])
                await app.add("bob")
        """,
        4,
        "-o",
        "sandbox_env=DATABASE_URL=postgresql+asyncpg\nSYNC_URL=postgresql+psycopg",
    )


def test_unittest_classes_may_check_out_by_themselves(project: Project) -> None:
    project.settings('sandbox_env = "DATABASE_URL"\nsandbox_migrations = "metadata:models:Base"\n')
    project.passes(
        """
        import unittest
        import app, sandbox

        class Sync(unittest.TestCase):
            def setUp(self):
                sandbox.checkout(app.engine)
                self.addCleanup(sandbox.checkin, app.engine)

            def test_first(self):
                self.assertEqual(app.names(), [])
                app.add("ann")

            def test_second(self):
                self.assertEqual(app.names(), [])
                app.add("ann")

        class Async(unittest.IsolatedAsyncioTestCase):
            def setUp(self):
                sandbox.checkout(app.engine)
                self.addCleanup(sandbox.checkin, app.engine)

            async def test_first(self):
                self.assertEqual(app.names(), [])
                app.add("ann")
        """,
        3,
    )


def test_they_may_do_so_without_any_setting(project: Project) -> None:
    project.settings("")
    result = project.passes(
        """
        import os, unittest
        os.environ["DATABASE_URL"] = "sqlite:///own.db"
        import app, models, sandbox

        class Sync(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                models.Base.metadata.create_all(app.engine)

            @classmethod
            def tearDownClass(cls):
                assert app.names() == []
                app.engine.dispose()

            def setUp(self):
                sandbox.checkout(app.engine)
                self.addCleanup(sandbox.checkin, app.engine)

            def test_first(self):
                app.add("ann")

            def test_second(self):
                app.add("ann")
        """,
        2,
    )
    assert "sandbox:" not in result.stdout.str()
