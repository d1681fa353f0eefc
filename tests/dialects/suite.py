"""SQLAlchemy's dialect suite, as its README.dialects.rst has third parties run it.

Not named test_*.py: only run.py collects it, with the plugins that it needs.
"""

from sqlalchemy.testing.suite import *  # noqa: F403
