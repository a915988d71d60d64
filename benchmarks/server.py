"""
The other end of the loopback: a bare HTTP/1.1 server in a process of its own, so that its CPU is not counted.

    GET /stream/<corpus>/<how>/<events>   the corpus, one HTTP chunk for each event (`event`) or for 64 KiB (`64k`)
    GET /cut                              a few events with ids behind `Last-Event-ID`, then the connection is cut

Bodies are made once and sent from memory. It prints its port and ends with its standard input.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
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


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while True:
            request = b""
            while b"\r\n\r\n" not in request:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            path = request.split(b" ", 2)[1].decode().partition("?")[0]
            try:
                if path == "/cut":
                    found = _LAST_ID.search(request)
                    start = int(found[1]) + 1 if found else 0
                    parts = [b"id: %d\ndata: %d\n\n" % (number, number) for number in range(start, start + EVENTS_PER_CUT)]
                    connection.sendall(_HEAD + _chunked(parts))
                    return
                _, _, corpus, how, number = path.split("/")
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
