"""Decisions without I/O: statements, transactions, owners."""
