"""Queries. A repository never commits: its caller knows where the transaction ends."""
