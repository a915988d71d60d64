"""
From a lost connection to the first replayed event, against a raw socket that does the same. Wall time.

The clock of ours starts when the stream notices the loss (its `Disconnected` notice) and stops when the loop has the next event:
closing the old response, deciding, connecting anew, reading the head, dropping repeats. The random wait before a
reconnect is set to 0. The raw socket is cut off too; then it connects, sends its request and reads to the end of the first event.
"""

from __future__ import annotations

import asyncio
import socket
from statistics import median, quantiles
from time import perf_counter
from unittest import mock
from urllib.parse import urlsplit

import httpx
from measure import Measured
from server import EVENTS_PER_CUT

import resumable_stream as rs

__all__ = ["reconnect", "reconnect_async"]

_WARM_UP = 10


def _raw(server: str, last_id: int) -> float:
    """Be cut off and continue, with the least work possible."""
    host, port = urlsplit(server).hostname, urlsplit(server).port
    request = f"GET /cut HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\nLast-Event-ID: {last_id}\r\n\r\n".encode()

    def begin() -> socket.socket:
        connection = socket.create_connection((host, port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(request)
        received = b""
        while b"\n\n" not in received:
            received += connection.recv(65536)
        return connection

    with begin() as first:
        while first.recv(65536):
            pass
    lost = perf_counter()
    with begin() as second:
        taken = perf_counter() - lost
        while second.recv(65536):
            pass
    return taken


class _Watch:
    """An observer that remembers when the connection was lost."""

    def __init__(self) -> None:
        self.lost = 0.0

    def __call__(self, notice: rs.Notice) -> None:
        if isinstance(notice, rs.Disconnected):
            self.lost = perf_counter()


def reconnect(server: str, trials: int) -> Measured:
    """As a multiple of the raw socket's time."""
    watch = _Watch()
    ours: list[float] = []
    floor: list[float] = []
    with mock.patch("random.random", return_value=0.0), httpx.Client() as client:
        with rs.connect("GET", f"{server}/cut", client=client, observer=watch) as stream:
            for event in stream:
                if event.offset % EVENTS_PER_CUT == 0 and event.offset:
                    ours.append(perf_counter() - watch.lost)
                    floor.append(_raw(server, event.offset))
                if len(ours) == trials + _WARM_UP:
                    break
    return _result(ours, floor)


def reconnect_async(server: str, trials: int) -> Measured:
    """The same over `httpx.AsyncClient`, against the same raw socket."""

    async def run() -> Measured:
        watch = _Watch()
        ours: list[float] = []
        floor: list[float] = []
        async with httpx.AsyncClient() as client, rs.aconnect("GET", f"{server}/cut", client=client, observer=watch) as stream:
            async for event in stream:
                if event.offset % EVENTS_PER_CUT == 0 and event.offset:
                    ours.append(perf_counter() - watch.lost)
                    floor.append(_raw(server, event.offset))
                if len(ours) == trials + _WARM_UP:
                    break
        return _result(ours, floor)

    with mock.patch("random.random", return_value=0.0):
        return asyncio.run(run())


def _result(ours: list[float], floor: list[float]) -> Measured:
    ours, floor = ours[_WARM_UP:], floor[_WARM_UP:]
    low, _, high = quantiles([a / b for a, b in zip(ours, floor, strict=True)], n=4)
    parts = {"ours, µs": median(ours) * 1e6, "raw socket, µs": median(floor) * 1e6}
    return Measured(median(ours) / median(floor), low, high, parts)
