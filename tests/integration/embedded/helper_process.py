"""The other process of these tests: reads one command per line, answers with one line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from sandbox.databases.backends import EmbeddedPostgres
from sandbox.errors import SandboxError

server: EmbeddedPostgres | None = None
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    answer = "ok"
    try:
        if word == "start":
            server = EmbeddedPostgres.start(root=Path(rest) if rest else None)
            answer = f"{server.run_dir}"
        elif word == "start-from":
            root, bindir = rest.split()
            server = EmbeddedPostgres.start(root=Path(root), bindir=Path(bindir))
            answer = f"{server.run_dir}"
        elif word == "attach":
            server = EmbeddedPostgres.attach(Path(rest))
            answer = f"{server.pid}"
        elif word == "create":
            assert server is not None
            server.create_database(rest)
        elif word == "exists":
            assert server is not None
            answer = str(server.database_exists(rest))
        elif word == "close":
            assert server is not None
            server.close()
        elif word == "fork":
            # The child lives on and does nothing, with everything that it inherited.
            child = os.fork()
            if not child:
                signal.pause()
            answer = str(child)
        elif word == "fork-close":
            # The child leaves through its parent's `with` and its exit handlers.
            assert server is not None
            server.database_exists("postgres")
            child = os.fork()
            if not child:
                server.close()
                sys.exit(7)
            answer = str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        elif word == "uid":
            assert server is not None
            answer = str(Path(f"/proc/{server.pid}").stat().st_uid)
        elif word == "groups":
            assert server is not None
            status = Path(f"/proc/{server.pid}/status").read_text()
            answer = status.partition("Groups:")[2].partition("\n")[0].strip() or "none"
        elif word == "session":
            assert server is not None
            answer = str(server._admin._execute("SELECT pg_backend_pid()"))
        elif word == "exit":
            os._exit(3)
    except SandboxError as error:
        answer = "error: " + str(error).replace("\n", " ")
    print(answer, flush=True)
