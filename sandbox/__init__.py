"""Every test gets its own database, and the application does not notice."""

__version__ = "0.1.0"
