"""
The demo's server: it writes a text at a steady pace, and is unreachable once in the middle of it.

    listening ── GET /story ──► the text, one token per event, as it is written
        ▲                              │ at `cut_after`: half of the next event, and the port is closed
        └──── reopened after `outage` ─┘ meanwhile the writing continues

The outage is a real one: the port is closed, so the system refuses a client. Nothing is simulated on the client's side. One
connection at a time, in one thread: the demo needs no more, and a cut stops everything at once.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Sequence

from ..testing import ServerEvent

__all__ = ["StoryServer"]

_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n"
    b"connection: close\r\n"
    b"\r\n"
)
# Missed tokens come back quickly, but not in a blink: a person is watching.
_CATCH_UP = 8


class StoryServer:
    """
    Serves `tokens` as events with the ids 1, 2, 3 …; their type is `token`, that of the last one `last`.

    `GET /story` follows the writing, which starts with its first request, and has one outage. `GET /at-once` sends the same
    without a pause, cut at the same position every time. Both resume after `Last-Event-ID`, `/story` with one to three extra
    events: many servers are inexact here.

    Args:
        tokens: The text.
        seconds: How long the writing takes.
        cut_after: The id of the last complete event before the outage.
        outage: Seconds for which the port is closed.

    Attributes:
        resent: Events sent again so far.
    """

    def __init__(self, tokens: Sequence[str], *, seconds: float, cut_after: int, outage: float) -> None:
        last = len(tokens)
        self._events = [
            ServerEvent(id=str(number), event="last" if number == last else "token", data=token).encode()
            for number, token in enumerate(tokens, 1)
        ]
        self._interval = seconds / last
        self._cut_after = cut_after
        self._outage = outage
        self._was_out = False
        self._began: float | None = None
        self._closing = threading.Event()
        self._port = 0
        self._thread = threading.Thread(target=self._run, name="story-server", daemon=True)
        self.resent = 0

    @property
    def url(self) -> str:
        """URL of the story as it is written."""
        return f"http://127.0.0.1:{self._port}/story"

    @property
    def at_once_url(self) -> str:
        """URL of the story without a pause."""
        return f"http://127.0.0.1:{self._port}/at-once"

    def __enter__(self) -> StoryServer:
        self._listener = _listen(0)
        self._port = self._listener.getsockname()[1]
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._thread.join(2.0)

    # --- the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._listener:
                lost = self._serve_until_lost()
            if lost is not None:
                # Close the port first: a fast client must be refused, not queued.
                lost.close()
                self._closing.wait(self._outage)
                self._reopen()

    def _serve_until_lost(self) -> socket.socket | None:
        """Serve one connection after the other; returns the one on which the outage begins, still open."""
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(5.0)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if self._answer(connection):
                    return connection
            except OSError:
                pass  # the client left
            connection.close()
        return None

    def _reopen(self) -> None:
        while not self._closing.is_set():
            try:
                self._listener = _listen(self._port)
            except OSError:
                # Another program got the port for an outgoing connection; it will be free again.
                self._closing.wait(0.05)
            else:
                return

    def _answer(self, connection: socket.socket) -> bool:
        """Answer one request; True when the outage begins."""
        path, cursor = _read_request(connection)
        connection.sendall(_HEAD)
        if path == "/at-once":
            connection.sendall(b"".join(map(_chunk, self._events[cursor : self._cut_after])))
            connection.sendall(self._half())
            return False
        start = cursor
        if cursor:
            start = max(0, cursor - random.randint(1, 3))
            self.resent += cursor - start
        return self._follow(connection, start)

    def _follow(self, connection: socket.socket, sent: int) -> bool:
        """Send what is written but not yet sent, until the end or the outage."""
        if self._began is None:
            self._began = time.monotonic()
        limit = len(self._events) if self._was_out else self._cut_after
        while sent < limit:
            written = int((time.monotonic() - self._began) / self._interval)
            upto = min(written, limit, sent + _CATCH_UP)
            if upto > sent:
                connection.sendall(b"".join(map(_chunk, self._events[sent:upto])))
                sent = upto
            if self._closing.wait(self._interval):
                return False
        if not self._was_out:
            self._was_out = True
            connection.sendall(self._half())
            return True
        connection.sendall(b"0\r\n\r\n")
        return False

    def _half(self) -> bytes:
        """The first half of the event at the cut, in an HTTP chunk that promises all of it."""
        event = self._events[self._cut_after]
        return _chunk(event)[: -2 - len(event) // 2]


def _listen(port: int) -> socket.socket:
    listener = socket.create_server(("127.0.0.1", port))
    # The longest delay before `__exit__` is noticed.
    listener.settimeout(0.05)
    return listener


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _read_request(connection: socket.socket) -> tuple[str, int]:
    """The path, and the number of the event to start after."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            raise ConnectionAbortedError("the client left")
        head += data
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    cursor = fields.get("last-event-id", "")
    return first.split(" ")[1], int(cursor) if cursor.isdigit() else 0
