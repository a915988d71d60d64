"""
The other end of the loopback: a bare HTTP/1.1 server in a separate process, so that its CPU time is not counted.

    GET /stream/<corpus>/<how>/<events>   the corpus, one HTTP chunk for each event (`event`) or for 64 KiB (`64k`)
    GET /paced/<corpus>/<ms>/<events>     the corpus, one event alone every so many milliseconds
    GET /cut                              a few events with ids after `Last-Event-ID`, then the connection is cut

Bodies are made once and sent from memory. It prints its port and ends with its standard input.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from corpora import cut

__all__ = ["EVENTS_PER_CUT", "serve"]

EVENTS_PER_CUT = 5
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LAST_ID = re.compile(rb"last-event-id: *(\d+)", re.IGNORECASE)


@lru_cache
def _body(corpus: str, how: str, number: int) -> bytes:
    return _HEAD + _chunked(cut(corpus, number, how)) + b"0\r\n\r\n"


def _chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def _pace(connection: socket.socket, corpus: str, number: int, apart: float) -> None:
    connection.sendall(_HEAD)
    due = time.monotonic()
    for part in cut(corpus, number, "event"):
        # By the clock: a late thread must not slow its stream down.
        due += apart
        time.sleep(max(due - time.monotonic(), 0))
        connection.sendall(_chunked([part]))
    connection.sendall(b"0\r\n\r\n")


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while True:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    request += piece
                path = request.split(b" ", 2)[1].decode().partition("?")[0]
                if path == "/cut":
                    found = _LAST_ID.search(request)
                    start = int(found[1]) + 1 if found else 0
                    parts = [b"id: %d\ndata: %d\n\n" % (number, number) for number in range(start, start + EVENTS_PER_CUT)]
                    connection.sendall(_HEAD + _chunked(parts))
                    return
                _, kind, corpus, how, number = path.split("/")
                if kind == "paced":
                    _pace(connection, corpus, int(number), int(how) / 1000)
                    continue
                connection.sendall(_body(corpus, how, int(number)))
            except OSError:
                return  # a client that leaves early


@contextmanager
def serve() -> Iterator[str]:
    """Run the server in another process. Yields its URL."""
    process = subprocess.Popen([sys.executable, Path(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=_answer, args=(accepted,), daemon=True).start()
