"""The start of a session: from nothing to the first connection."""

from __future__ import annotations

from typing import Any

import psycopg

from sandbox.databases.backends import EmbeddedPostgres

GROUP = "start of a session"


def _connect(server: EmbeddedPostgres) -> None:
    psycopg.connect(server.url()).close()


def test_start_from_a_warm_cache(server: EmbeddedPostgres, benchmark: Any) -> None:
    # The run's own server has filled the cache.
    started: list[EmbeddedPostgres] = []

    def start() -> None:
        started.append(EmbeddedPostgres.start())
        _connect(started[-1])

    benchmark.group = GROUP
    benchmark.name = "start a server, warm cache"
    benchmark.pedantic(start, rounds=15, warmup_rounds=1, teardown=lambda: started.pop().close())


def test_attach(server: EmbeddedPostgres, benchmark: Any) -> None:
    attached: list[EmbeddedPostgres] = []

    def attach() -> None:
        attached.append(EmbeddedPostgres.attach(server.run_dir))
        _connect(attached[-1])

    benchmark.group = GROUP
    benchmark.name = "attach to a running one"
    benchmark.pedantic(attach, rounds=30, warmup_rounds=1, teardown=lambda: attached.pop().close())
