"""The starter's side of the keeper process (``_watchdog.py``)."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import ServerStartError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from sandbox.databases.backends.storage import ServerUser

__all__ = ("Keeper",)

_PROGRAM = Path(__file__).with_name("_watchdog.py")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "NIX_LD", "NIX_LD_LIBRARY_PATH")


class Keeper:
    """The process that is the server's parent and outlives ours.

    Spoken to by the thread that starts the server only.
    """

    def __init__(self, run_dir: Path, sockets: Path, user: ServerUser | None) -> None:
        import subprocess

        outside = [] if sockets.parent == run_dir else [str(sockets)]
        if not sys.executable:
            raise ServerStartError(
                "The embedded server needs a Python interpreter to keep it, and sys.executable is"
                " empty: this Python is embedded in another program."
            )
        self._user = user
        self._run_dir = run_dir
        self._answers = b""
        self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603
            [sys.executable, "-S", "-E", "-I", str(_PROGRAM), str(run_dir), *outside],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        self.pid = 0

    def greet(self) -> None:
        """Wait until the keeper keeps: from here on nothing needs to be removed by us."""
        self.pid = self._answer("pid", 30.0)
        # What we started has forked and ended; the keeper itself is a child of nobody here.
        self._process.wait()

    def run(self, argv: Sequence[str | Path], *, log: Path, cwd: Path, timeout: float) -> int:
        """Run a program to its end as the server's user; return its exit code."""
        self._send("run", argv, log, cwd)
        return self._answer("exit", timeout)

    def serve(self, argv: Sequence[str | Path], *, log: Path, cwd: Path) -> int:
        """Start the server; return its process id."""
        self._send("serve", argv, log, cwd)
        return self._answer("pid", 30.0)

    def exited(self, wait: float) -> int | None:
        """Wait so many seconds; return the server's exit code if it has ended, else None."""
        if b"\n" not in self._answers and not self._readable(wait):
            return None
        return self._answer("exit", 1.0)

    def release(self) -> None:
        """Stop talking.  Before ``serve`` this makes the keeper remove everything and end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def abandon(self) -> None:
        """Make the keeper take everything away, and wait until it has.

        The caller has released its hold.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is not None:
            stdin.close()
        # It holds the other end of this pipe until it ends.
        deadline = time.monotonic() + 10.0
        while stdout is not None and self._readable(deadline - time.monotonic()):
            if not os.read(stdout.fileno(), 4096):
                break
        self.release()
        self._process.wait()

    def _send(self, op: str, argv: Sequence[str | Path], log: Path, cwd: Path) -> None:
        user = self._user
        command = {
            "op": op,
            "argv": [str(word) for word in argv],
            "log": str(log),
            "cwd": str(cwd),
            "env": self._environment(),
            "uid": user.uid if user else None,
            "gid": user.gid if user else None,
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except OSError as error:
            raise self._died() from error

    @staticmethod
    def _environment() -> dict[str, str]:
        """Nothing of the caller's PG* variables, locale or time zone: the same server anywhere."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return {**kept, "LC_ALL": "C", "TZ": "UTC"}

    def _answer(self, key: str, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        assert self._process.stdout is not None
        while b"\n" not in self._answers:
            if not self._readable(deadline - time.monotonic()):
                raise ServerStartError(
                    f"The embedded server did not get ready: no answer in {timeout:.0f} s. The"
                    " machine may be overloaded, or its disk blocked."
                )
            more = os.read(self._process.stdout.fileno(), 4096)
            if not more:
                raise self._died()
            self._answers += more
        line, _, self._answers = self._answers.partition(b"\n")
        answer = json.loads(line)
        if key not in answer:
            # The server ended before it was asked about.
            self._answers = line + b"\n" + self._answers
            raise self._died()
        return int(answer[key])

    def _readable(self, wait: float) -> bool:
        assert self._process.stdout is not None
        # Not select(): it refuses descriptors above 1023, and test processes have many.
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        return bool(poll.poll(max(0.0, wait) * 1000))

    def _died(self) -> ServerStartError:
        return ServerStartError(
            f"The process that keeps the embedded server ({sys.executable} {_PROGRAM.name}) ended"
            " early. Something on this machine ends processes in the background; its memory may"
            " be used up."
        )
