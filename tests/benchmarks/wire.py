"""What a driver really sends: a proxy between it and the server that notes every request.

Source: PostgreSQL's manual, "Frontend/Backend Protocol", "Message Formats".
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = ("Wire",)

_ANSWERED: Final = frozenset(b"QSFH")
"""Query, Sync, FunctionCall, Flush: the client waits for an answer after these."""
_UNTYPED: Final = frozenset({80877103, 80877104})
"""SSLRequest and GSSENCRequest: the start-up message is still to come."""


class Wire:
    """Listens on a socket of its own in ``host`` and passes everything on.

    ``requests`` are the round trips so far, each by the SQL that it carried. A request is noted
    before the server gets it, so the list is complete as soon as a driver has its answer.
    """

    def __init__(self, host: str, port: int) -> None:
        self.requests: list[str] = []
        self._target = f"{host}/.s.PGSQL.{port}"
        self._directory = tempfile.TemporaryDirectory(prefix="wire-")
        self.host = self._directory.name
        self.port = port
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self.host) / f".s.PGSQL.{port}"))
        self._listener.listen()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="wire", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._wake.close()
        self._thread.join()
        self._directory.cleanup()

    def _serve(self) -> None:
        peers: dict[socket.socket, tuple[socket.socket, _Requests | None]] = {}
        while True:
            for key, _ in self._selector.select():
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._woken:
                    for each in [*peers, self._listener, self._woken]:
                        each.close()
                    self._selector.close()
                    return
                if ready is self._listener:
                    self._accept(peers)
                elif ready in peers:
                    self._pass_on(peers, ready)

    def _accept(self, peers: dict[socket.socket, tuple[socket.socket, _Requests | None]]) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        peers[client] = server, _Requests(self.requests)
        peers[server] = client, None
        self._selector.register(client, selectors.EVENT_READ)
        self._selector.register(server, selectors.EVENT_READ)

    def _pass_on(
        self,
        peers: dict[socket.socket, tuple[socket.socket, _Requests | None]],
        source: socket.socket,
    ) -> None:
        sink, requests = peers[source]
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(1 << 16)
            if requests is not None:
                requests.feed(data)
            sink.sendall(data)
        if not data:
            for each in (source, sink):
                self._selector.unregister(each)
                del peers[each]
                each.close()


class _Requests:
    """The requests in one client's stream of messages."""

    def __init__(self, found: list[str]) -> None:
        self._found = found
        self._buffer = b""
        self._started = False
        self._statements: dict[bytes, str] = {}
        self._pending: list[str] = []

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while (message := self._next()) is not None:
            kind, content = message
            self._note(kind, content)

    def _next(self) -> tuple[int, bytes] | None:
        start = 1 if self._started else 0
        if len(self._buffer) < start + 4:
            return None
        (length,) = struct.unpack_from("!i", self._buffer, start)
        if len(self._buffer) < start + length:
            return None
        kind = self._buffer[0] if self._started else 0
        content = self._buffer[start + 4 : start + length]
        self._buffer = self._buffer[start + length :]
        if not self._started:
            self._started = struct.unpack_from("!i", content)[0] not in _UNTYPED
        return kind, content

    def _note(self, kind: int, content: bytes) -> None:
        words = content.split(b"\0")
        if kind == ord("Q"):
            self._pending.append(words[0].decode())
        elif kind == ord("P"):
            self._statements[words[0]] = words[1].decode()
            self._pending.append(f"parse {words[1].decode()}")
        elif kind == ord("B"):
            # The portal's name, then the statement's.
            sql = self._statements.get(words[1], "?")
            self._pending = [text for text in self._pending if text != f"parse {sql}"] + [sql]
        elif kind == ord("C"):
            self._pending.append(f"close {words[0][1:].decode()}")
        if kind in _ANSWERED:
            self._found.append("; ".join(self._pending) or chr(kind))
            self._pending = []
