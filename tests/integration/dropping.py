"""A reverse proxy that drops the answers that a test names, in each of the ways in which networks do."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from .proxy import Listener, hang_up, reset

Way = Literal["rst", "fin", "clean", "silence"]
WAYS: tuple[Way, ...] = ("rst", "fin", "clean", "silence")


class Seen(NamedTuple):
    """A request that came, as far as tests ask."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class DroppingProxy(Listener):
    """
    Pass requests on to a server of this machine, one for each connection, and drop the bodies of answers that were named.

    Unlike `CuttingProxy` it knows requests, since a client that keeps several streams is to lose a certain one, and
    it ends a body cleanly, as a proxy does that is restarted: its position is one of the body without its chunk sizes.

    Args:
        upstream: Port of the server.
        pause: Seconds that the requests wait that are named, but for the first.
        late: Seconds after the head of an answer in which a server that has nothing to say counts as back. `None`: never, for one
            that always begins with something.
    """

    def __init__(self, upstream: int, *, pause: float = 0.0, late: float | None = 0.03) -> None:
        self.requests: list[Seen] = []
        # Bodies of the answers that were named, as they were passed on, without chunk sizes.
        self.bodies: list[bytearray] = []
        # And their heads.
        self.heads: list[dict[str, str]] = []
        # False from a drop until the next request of that kind is being answered: who has more to say may wait for that.
        self.settled = True
        # Set once somebody has waited for that for a while, and what was said before is on its way.
        self.holding = threading.Event()
        self._upstream = upstream
        self._pause = pause
        self._late = late
        self._wanted: Callable[[Seen], bool] = lambda seen: False
        self._drops: list[tuple[int, Way]] = []
        self._lock = threading.Lock()
        # How many drops there were: an answer from before the latest one settles nothing.
        self._turn = 0
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drop(self, wanted: Callable[[Seen], bool], *drops: tuple[int, Way]) -> None:
        """Forget what was seen. Of the next answers to requests that are `wanted` drop one for each position and way."""
        with self._lock:
            self.requests, self.bodies, self.heads, self.settled = [], [], [], True
            self._wanted, self._drops = wanted, list(drops)

    def hold(self) -> None:
        """Who has more to say waits until the next request that is `wanted` is being answered."""
        with self._lock:
            self._turn += 1
            self.settled = False
            self.holding.clear()

    def _settle(self, turn: int) -> None:
        with self._lock:
            if turn == self._turn:
                self.settled = True

    def take(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            reader = client.makefile("rb")
            first, fields = head_of(reader)
            body = reader.read(int(fields.get("content-length", 0)))
            method, path, _ = first.split(" ", 2)
            seen = Seen(method, path, fields, body)
            with self._lock:
                self.requests.append(seen)
                named = self._wanted(seen)
                drop = self._drops.pop(0) if named and self._drops else None
                again, passed = bool(self.bodies), bytearray()
                if named:
                    self.bodies.append(passed)
            if named and again:
                time.sleep(self._pause)
            with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                server.sendall(joined(first, fields) + body)
                try:
                    with watching(client, server):
                        self._answer(server, client, drop, passed, named)
                finally:
                    if drop is not None and drop[1] == "rst":
                        reset(client)

    def _answer(
        self, server: socket.socket, client: socket.socket, drop: tuple[int, Way] | None, passed: bytearray, named: bool
    ) -> None:
        reader = server.makefile("rb")
        first, fields = head_of(reader)
        chunked = fields.get("transfer-encoding") == "chunked"
        client.sendall(joined(first, fields))
        if named:
            self.heads.append(fields)
            if self._late is not None:
                # A server that has nothing to say yet is back soon too.
                late = threading.Timer(self._late, self._settle, (self._turn,))
                late.daemon = True
                late.start()
        if not chunked:
            client.sendall(reader.read(int(fields["content-length"])) if "content-length" in fields else reader.read())
            return
        for data in pieces_of(reader):
            if named and not passed:
                # What it says first, a task as it stands, is said: the rest is live.
                self._settle(self._turn)
            part = data if drop is None else data[: drop[0] - len(passed)]
            if part:
                client.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            passed += part
            if drop is not None and len(passed) == drop[0]:
                self.hold()
                match drop[1]:
                    case "clean":
                        client.sendall(b"0\r\n\r\n")
                    case "silence":
                        # Until the client has enough of it; `_hang_up` sees that.
                        while server.recv(65536):
                            pass
                return
        client.sendall(b"0\r\n\r\n")


@contextlib.contextmanager
def watching(client: socket.socket, server: socket.socket) -> Iterator[None]:
    """Until this is left a client that goes away is seen by the server at once, and then both are hung up on."""
    watch = threading.Thread(target=_leave_with, args=(client, server), daemon=True)
    watch.start()
    try:
        yield
    finally:
        hang_up(server, client)
        watch.join()


def _leave_with(client: socket.socket, server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while client.recv(65536):
            pass
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)


def head_of(reader: object) -> tuple[str, dict[str, str]]:
    first = reader.readline().decode().rstrip()  # type: ignore[attr-defined]
    if not first:
        raise EOFError
    fields = {}
    while line := reader.readline().decode().strip():  # type: ignore[attr-defined]
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return first, fields


def joined(first: str, fields: dict[str, str]) -> bytes:
    # One request for each connection: so each is seen, and a drop is that of one answer.
    lines = [first, *(f"{name}: {value}" for name, value in fields.items() if name != "connection"), "connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def pieces_of(reader: object) -> Iterator[bytes]:
    """
    The chunks of a body.

    Raises:
        EOFError: It broke off; whoever passes it on has to break off too.
    """
    while size := _size(reader):
        yield reader.read(size)  # type: ignore[attr-defined]
        reader.readline()  # type: ignore[attr-defined]
    reader.readline()  # type: ignore[attr-defined]


def _size(reader: object) -> int:
    line: bytes = reader.readline()  # type: ignore[attr-defined]
    if not line.endswith(b"\n"):
        raise EOFError
    return int(line, 16)
