"""
Readers of a server: CPU time per event and reader, CPU time of a replay, and memory of a waiting reader.

The server is `served.py`, in a separate process; this file has its readers, as many sockets as needed. The readers set the pace:
an event is sent when every reader has the previous one, so each is a separate wake-up and send, even on a slow machine.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any

from measure import Measured, in_turn, ratio, ratios

__all__ = ["IDLE", "TICKS", "Readers", "Server", "bare_fanout", "fanout", "idle", "live", "replay", "served", "streams"]

TICKS = 40
SPAN = 4
"""Events that come together, in the row with many streams."""
TOKENS = 2_000
REPLAYS = 8
IDLE = 500
_PATIENCE = 60.0
_END = b"0\r\n\r\n"
_TOKEN = re.compile(rb" tok(\d+)")


class Server:
    """The process and its commands."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    def tell(self, name: str, **options: object) -> Any:
        """Send a command, and wait for its answer."""
        self.begin(name, **options)
        return self.answer()

    def begin(self, name: str, **options: object) -> None:
        """Send a command whose answer is taken later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, options]).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The answer to the oldest open command."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server of the benchmark has exited; see its error above")
        return json.loads(line)

    def cpu(self) -> float:
        return float(self.tell("usage")["cpu"])


@contextmanager
def running(script: str, *arguments: str) -> Iterator[Server]:
    """Run a server beside this file in another process, until the block ends."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def served(log: str = "") -> Iterator[Server]:
    """Run the server in another process. `log`: the path of a SQLite file; empty: a log in memory."""
    with running("served.py", log) as server:
        yield server


class Readers:
    """
    Sockets that read one body each.

    Args:
        port: Of the server.
        paths: The path that each requests.
        requests: Complete requests, instead of a GET of each path.

    Attributes:
        bodies: What each has received, including its head.
        reads: How many reads of a socket that took.
    """

    def __init__(self, port: int, paths: Sequence[str], *, requests: Sequence[bytes] = ()) -> None:
        requests = requests or [b"GET %b HTTP/1.1\r\nhost: benchmark\r\n\r\n" % path.encode() for path in paths]
        allow(len(requests))
        self._selector = selectors.DefaultSelector()
        self.bodies = [b""] * len(requests)
        self.reads = 0
        self._sockets = []
        for index, request in enumerate(requests):
            connection = socket.create_connection(("127.0.0.1", port), _PATIENCE)
            connection.sendall(request)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, index)
            self._sockets.append(connection)

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for connection in self._sockets:
            connection.close()

    def until(self, has: Callable[[bytes], bool]) -> None:
        """Read until every reader has received enough."""
        left = {index for index, body in enumerate(self.bodies) if not has(body)}
        deadline = time.monotonic() + _PATIENCE
        while left:
            for key, _ in self._selector.select(1.0):
                index = key.data
                data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
                if not data:
                    raise RuntimeError(f"the server cut a reader after {self.bodies[index][-200:]!r}")
                self.reads += 1
                self.bodies[index] += data
                if index in left and has(self.bodies[index]):
                    left.discard(index)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(left)} readers are stuck, one of them after {self.bodies[left.pop()][-200:]!r}")


def allow(readers: int) -> None:
    """Raise the limit of open files as needed, if the system allows it."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * readers + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


# --- events as they come

_opened = 0


def live(server: Server, kind: str, *, readers: int, many: bool, span: int, ticks: int) -> float:
    """CPU seconds of the server per event and reader. Every reader must get every event, in order."""
    global _opened
    _opened += 1
    ids = [f"stream-{_opened}-{number}" for number in range(readers if many else 1)]
    server.tell("open", kind=kind, ids=ids)
    paths = [f"/{kind}/{ids[number % len(ids)]}" for number in range(readers)]
    with Readers(server.port, paths) as group:
        group.until(lambda body: b"\r\n\r\n" in body)
        total, begun = 0, 0.0
        for tick in range(ticks + 1):
            if tick == 1:
                begun = server.cpu()
            server.begin("emit", events=span)
            total += span
            group.until(lambda body: body.count(b"data: ") >= total)  # noqa: B023 - not kept
            server.answer()
        taken = server.cpu() - begun
        server.tell("end")
        group.until(lambda body: body.endswith(_END))
        for body in group.bodies:
            if [int(number) for number in _TOKEN.findall(body)] != list(range(total)):
                raise AssertionError(f"{kind}: a reader got events that were not sent: {body!r}")
    return taken / (ticks * span * readers)


@lru_cache
def _fanout(readers: int, rounds: int) -> dict[str, list[float]]:
    with served() as server:
        one = partial(live, server, readers=readers, many=False, span=1, ticks=TICKS)
        return in_turn({kind: partial(one, kind) for kind in ("hub", "bare", "sse-starlette")}, rounds)


def _micro(taken: dict[str, list[float]]) -> dict[str, float]:
    return {f"{kind}, CPU µs per event and reader": median(values) * 1e6 for kind, values in taken.items()}


def _against(taken: dict[str, list[float]], peer: str) -> Measured:
    found = ratios({"hub": ratio(taken["hub"], taken[peer])})
    return Measured(found.value, found.low, found.high, _micro(taken))


def fanout(readers: int, rounds: int) -> Measured:
    """One stream, many readers, as a fraction of the time of sse-starlette."""
    return _against(_fanout(readers, rounds), "sse-starlette")


def bare_fanout(readers: int, rounds: int) -> Measured:
    """The same, as a multiple of a bare ASGI app."""
    return _against(_fanout(readers, rounds), "bare")


def streams(readers: int, rounds: int) -> Measured:
    """Many streams of one reader, as a multiple of a bare ASGI app."""
    with served() as server:
        one = partial(live, server, readers=readers, many=True, span=SPAN, ticks=TICKS // SPAN)
        return _against(in_turn({kind: partial(one, kind) for kind in ("hub", "bare")}, rounds), "bare")


# --- replay


def _replayed(server: Server, path: str, *, times: int, fresh: bool) -> float:
    """CPU seconds of the server per body."""
    taken = 0.0
    for _ in range(times):
        if fresh:
            server.tell("restart")
        begun = server.cpu()
        with Readers(server.port, [path]) as group:
            group.until(lambda body: body.endswith(_END))
        taken += server.cpu() - begun
    return taken / times


def replay(rounds: int) -> Measured:
    """A finished answer sent again, as a multiple of an app that has its bytes in memory."""
    with tempfile.TemporaryDirectory() as directory, served() as memory, served(str(Path(directory) / "streams.db")) as sqlite:
        size = memory.tell("finished", id="answer", tokens=TOKENS)
        sqlite.tell("finished", id="answer", tokens=TOKENS)
        samples = {
            "bare": partial(_replayed, memory, "/bytes/answer", times=REPLAYS, fresh=False),
            "held": partial(_replayed, memory, "/hub/answer", times=REPLAYS, fresh=False),
            "MemoryLog": partial(_replayed, memory, "/hub/answer", times=REPLAYS, fresh=True),
            "SQLiteLog": partial(_replayed, sqlite, "/hub/answer", times=REPLAYS, fresh=True),
        }
        taken = in_turn(samples, rounds)
    found = ratios({"held": ratio(taken["held"], taken["bare"])})
    speeds = {f"{name}, MB per CPU second": size / 1e6 / median(values) for name, values in taken.items()}
    return Measured(found.value, found.low, found.high, speeds)


# --- memory


def idle(readers: int) -> Measured:
    """KB of server memory per reader that waits for the next event."""
    parts = {}
    for kind in ("hub", "bare"):
        with served() as server:
            live(server, kind, readers=20, many=False, span=1, ticks=TICKS)
            server.tell("open", kind=kind, ids=["idle"])
            before = server.tell("usage")["memory"]
            with Readers(server.port, [f"/{kind}/idle"] * readers) as group:
                group.until(lambda body: b"\r\n\r\n" in body)
                server.tell("emit", events=1)
                group.until(lambda body: b"data: " in body)
                parts[kind] = (server.tell("usage")["memory"] - before) / 1e3 / readers
                server.tell("end")
    return Measured(parts["hub"], parts["hub"], parts["hub"], {f"{kind}, KB per reader": found for kind, found in parts.items()})
