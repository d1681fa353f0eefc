"""The keeper of one embedded server: starts it, waits for its last user, takes everything away.

Not imported: it runs as ``python -S -E -I _watchdog.py RUN_DIR [SOCKET_DIR]``, in a session of its
own, as the parent of the server.  So it may import the standard library only, and as little of
that as it can: it starts while the data directory is being copied.

It reads commands, one JSON object a line, from its standard input, and answers in the same way:

- ``{"op": "run", "argv": …}`` runs a program to its end: ``{"exit": code}``;
- ``{"op": "serve", "argv": …}`` starts the server, ``{"pid": n}``, and is the last command:
  from then on it blocks in ``flock(RUN_DIR/alive, LOCK_EX)``, which every user of the server holds
  with ``LOCK_SH``.  The kernel gives the lock when the last of them is gone, however it went.
  A server that exits by itself is reported as ``{"exit": code}``.

The end of its input before ``serve`` means that the starter gave up or died.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from typing import Any, NoReturn

_child = 0
"""The process id of the program that runs now; 0 for none."""


def _reply(**answer: int) -> None:
    # The starter may be gone, and that is no reason to stop keeping.
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(answer).encode() + b"\n")


def _exec(command: dict[str, Any]) -> NoReturn:
    """Become the command, as the user it names, in a session of its own; never returns."""
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setsid()
        os.umask(0o077)
        if command["uid"] is not None:
            os.setgroups([])
            os.setgid(command["gid"])
            os.setuid(command["uid"])
        os.chdir(command["cwd"])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        os.execve(command["argv"][0], command["argv"], command["env"])  # noqa: S606
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"{command['argv'][0]}: {error}\n".encode())
    os._exit(127)


def _spawn(command: dict[str, Any]) -> None:
    global _child
    _child = os.fork()
    if not _child:
        _exec(command)


def _reap() -> int | None:
    """The exit code of the child if it has ended (minus the signal if killed), else None."""
    global _child
    if not _child:
        return None
    try:
        pid, status = os.waitpid(_child, os.WNOHANG)
    except ChildProcessError:
        return None  # the signal's handler was quicker
    if not pid:
        return None
    _child = 0
    return os.waitstatus_to_exitcode(status)


def _run(command: dict[str, Any]) -> bool:
    """Run a program to its end; False when the starter went away meanwhile."""
    _spawn(command)
    while (code := _reap()) is None:
        # While it waits for the answer, a living starter writes nothing: readable means gone.
        if select.select([0], [], [], 0.001)[0]:
            return False
    _reply(exit=code)
    return True


def _on_child_exit(*_: object) -> None:
    code = _reap()
    if code is not None:
        _reply(exit=code)


def _serve(command: dict[str, Any], alive: int) -> None:
    _spawn(command)
    _reply(pid=_child)
    signal.signal(signal.SIGCHLD, _on_child_exit)
    _on_child_exit()  # it may have ended before we listened
    os.close(0)
    fcntl.flock(alive, fcntl.LOCK_EX)


def _wait(seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _child and time.monotonic() < deadline:
        if _reap() is not None:
            break
        time.sleep(0.001)
    return not _child


def _stop() -> None:
    """End the child.  SIGQUIT first: a server that is killed leaves shared memory behind."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we are ending
    for name, patience in ((signal.SIGQUIT, 6.0), (signal.SIGKILL, 2.0)):
        pid = _child
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, name)
        if _wait(patience):
            return


def _remove(directory: str) -> None:
    # A killed initdb's children may still write for a moment.
    for _ in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        time.sleep(0.02)


def _obey(alive: int) -> None:
    buffer = b""
    while True:
        while b"\n" not in buffer:
            more = os.read(0, 65536)
            if not more:
                return
            buffer += more
        line, _, buffer = buffer.partition(b"\n")
        command = json.loads(line)
        if command["op"] == "serve":
            _serve(command, alive)
            return
        if not _run(command):
            return


def _terminated(*_: object) -> NoReturn:
    sys.exit(0)


def main(directories: list[str]) -> None:
    """Keep the server of this run directory until nobody uses it."""
    if os.fork():
        # The starter waits for this exit, so that the keeper is nobody's child and no zombie.
        os._exit(0)
    # Whoever started us may have blocked or ignored what we wait for.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminated)
    alive = os.open(os.path.join(directories[0], "alive"), os.O_RDWR)  # noqa: PTH118
    # Held as long as we live: so the others know that somebody will take the run away.
    keeper = os.open(os.path.join(directories[0], "keeper"), os.O_RDWR | os.O_CREAT, 0o600)  # noqa: PTH118
    fcntl.flock(keeper, fcntl.LOCK_EX)
    os.chdir("/")
    _reply(pid=os.getpid())
    try:
        _obey(alive)
    finally:
        _stop()
        for directory in reversed(directories):
            _remove(directory)
        base = os.path.dirname(directories[0])  # noqa: PTH120
        if os.path.basename(base).startswith("sandbox-"):  # noqa: PTH119
            # Fails while other runs are in it, and that is right.
            with contextlib.suppress(OSError):
                os.rmdir(base)  # noqa: PTH106
        os._exit(0)  # nothing is left to say good-bye to


if __name__ == "__main__":
    main(sys.argv[1:])
