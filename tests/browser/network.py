"""The network between a browser and a server: it can be cut, it can answer in the server's place, and it keeps what was asked."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from typing import NamedTuple

from ..integration.proxy import Listener, hang_up, reset

_REQUEST = re.compile(rb"^(GET|HEAD|POST|PUT|DELETE) (\S+) HTTP/1\.1\r$", re.MULTILINE)
_STREAM = re.compile(rb"^content-type: text/event-stream", re.MULTILINE)
_STREAM_END = b"0\r\n\r\n"
_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Asked(NamedTuple):
    """A request that was passed on."""

    method: str
    path: str


class Network(Listener):
    """
    Passes bytes between a browser and a server of this machine.

    Args:
        upstream: Port of the server; it can be changed.

    Attributes:
        asked: The requests that came through, in their order.
        streams: How many event streams are open.
        is_cut: Connections are reset, also those that come.
        is_bad: A proxy is there, and its server is not: 502.
        loses: The answer to the next request with this method is lost, after the server has got the request: 502.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.asked: list[Asked] = []
        self.refused = self.streams = 0
        self.is_cut = self.is_bad = False
        self.loses: str | None = None
        self._open: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked_for(self, path: str) -> list[Asked]:
        return [each for each in self.asked if each.path.startswith(path)]

    def cut(self) -> None:
        """Reset every connection, and those that come until `mend()`."""
        self.is_cut = True
        self.hang_up()

    def mend(self) -> None:
        self.is_cut = False

    def hang_up(self) -> None:
        """Reset every connection that is open now."""
        with self._lock:
            pairs = list(self._open)
        for client, server in pairs:
            with contextlib.suppress(OSError):
                reset(client)
            hang_up(server, client)

    def close(self) -> None:
        super().close()
        self.hang_up()

    def take(self, client: socket.socket) -> None:
        if self.is_cut:
            self.refused += 1
            with client, contextlib.suppress(OSError):
                reset(client)
            return
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if self.is_bad:
                    client.recv(65536)
                    client.sendall(_BAD_GATEWAY)
                    self.refused += 1
                    return
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                self.refused += 1
                with contextlib.suppress(OSError):
                    reset(client)
                return
            with server:
                pair = (client, server)
                with self._lock:
                    self._open.add(pair)
                lost = threading.Event()
                up = threading.Thread(target=self._up, args=(client, server, lost), daemon=True)
                up.start()
                try:
                    self._down(client, server, lost)
                finally:
                    with self._lock:
                        self._open.discard(pair)
                    hang_up(server, client)
                    up.join()

    def _up(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                for method, path in _REQUEST.findall(data):
                    self.asked.append(Asked(method.decode(), path.decode()))
                    if self.loses == method.decode():
                        self.loses = None
                        lost.set()
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        streaming = False
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 20):
                if lost.is_set():
                    # A reset would not do: after one, Chromium sends the request again by itself.
                    client.sendall(_BAD_GATEWAY)
                    break
                if _STREAM.search(data):
                    streaming = True
                    self._count(1)
                client.sendall(data)
                if streaming and data.endswith(_STREAM_END):
                    streaming = False
                    self._count(-1)
        if streaming:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self.streams += more
