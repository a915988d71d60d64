"""
Under an SDK: a client with `ResumableTransport` against the same client without, both read by `iter_raw()`.

The same bytes go in and come out, so the row measures what the transport adds: finding the events, keeping the place, watching
the clocks.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import process_time
from typing import Any

import httpx
from measure import Measured, Size, cpu_seconds, in_turn, ratio, ratios

from resumable_stream.transports.httpx import AsyncResumableTransport, ResumableTransport

__all__ = ["asynchronous", "synchronous"]


def _read(client: httpx.Client, url: str) -> int:
    size = 0
    with client.stream("GET", url) as response:
        for chunk in response.iter_raw():
            size += len(chunk)
    return size


async def _read_async(client: httpx.AsyncClient, url: str) -> int:
    size = 0
    async with client.stream("GET", url) as response:
        async for chunk in response.aiter_raw():
            size += len(chunk)
    return size


def synchronous(server: str, how: str, size: Size) -> Measured:
    url = f"{server}/stream/langgraph/{how}/{size.streamed}"
    with httpx.Client(transport=httpx.HTTPTransport()) as bare, httpx.Client(transport=ResumableTransport()) as ours:
        assert _read(bare, url) == _read(ours, url)
        taken = in_turn(
            {name: partial(cpu_seconds, partial(_read, client, url)) for name, client in _named(bare, ours)}, size.rounds
        )
    return _result(taken, size)


def asynchronous(server: str, how: str, size: Size) -> Measured:
    url = f"{server}/stream/langgraph/{how}/{size.streamed}"
    with asyncio.Runner() as runner:
        bare = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport())
        ours = httpx.AsyncClient(transport=AsyncResumableTransport())
        wanted = runner.run(_read_async(bare, url))

        async def timed(client: httpx.AsyncClient) -> float:
            begun = process_time()
            assert await _read_async(client, url) == wanted
            return process_time() - begun

        def sample(client: httpx.AsyncClient) -> float:
            return runner.run(timed(client))

        taken = in_turn({name: partial(sample, client) for name, client in _named(bare, ours)}, size.rounds)
        for client in (bare, ours):
            runner.run(client.aclose())
    return _result(taken, size)


def _named(bare: Any, ours: Any) -> list[tuple[str, Any]]:
    return [("bare", bare), ("ours", ours)]


def _result(taken: dict[str, list[float]], size: Size) -> Measured:
    found = ratios({"langgraph": ratio(taken["ours"], taken["bare"])})
    costs = {f"{name}, µs of CPU per event": min(seconds) / size.streamed * 1e6 for name, seconds in taken.items()}
    return Measured(found.value, found.low, found.high, costs)
