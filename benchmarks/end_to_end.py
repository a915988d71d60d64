"""
Over HTTP on the loopback: `httpx` with `httpx-sse` against `httpx` with `resumable_stream`, the same client for both.

The client is made before the clock starts, because its TLS context takes 17 ms and users keep it. The request is part of a
sample.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from functools import partial
from time import process_time
from typing import Any

import httpx
import httpx_sse
from measure import Measured, Size, cpu_seconds, in_turn, ratio, ratios

import resumable_stream as rs
from resumable_stream.stores import FileStore

__all__ = ["asynchronous", "kept", "synchronous"]


def _peer(client: httpx.Client, url: str) -> int:
    number = 0
    with httpx_sse.connect_sse(client, "GET", url) as source:
        for _ in source.iter_sse():
            number += 1
    return number


def _ours(client: httpx.Client, url: str, **options: Any) -> int:
    number = 0
    with rs.connect("GET", url, client=client, **options) as stream:
        for _ in stream:
            number += 1
    return number


async def _peer_async(client: httpx.AsyncClient, url: str) -> int:
    number = 0
    async with httpx_sse.aconnect_sse(client, "GET", url) as source:
        async for _ in source.aiter_sse():
            number += 1
    return number


async def _ours_async(client: httpx.AsyncClient, url: str) -> int:
    number = 0
    async with rs.aconnect("GET", url, client=client) as stream:
        async for _ in stream:
            number += 1
    return number


def synchronous(server: str, how: str, size: Size) -> Measured:
    url = f"{server}/stream/langgraph/{how}/{size.streamed}"
    with httpx.Client() as client:
        assert _peer(client, url) == _ours(client, url) == size.streamed
        taken = in_turn(
            {
                "peer": partial(cpu_seconds, partial(_peer, client, url)),
                "ours": partial(cpu_seconds, partial(_ours, client, url)),
            },
            size.rounds,
        )
    return _result(taken, size)


def kept(server: str, how: str, size: Size, *, asynchronously: bool = False) -> Measured:
    """Ours with a `FileStore` against ours without: the cost of a saved place and of kept events."""
    url = f"{server}/stream/langgraph/{how}/{size.streamed}"
    with tempfile.TemporaryDirectory() as directory, httpx.Client() as client, asyncio.Runner() as runner:
        keys = map(str, itertools.count())
        places, events = FileStore(directory), FileStore(directory, keep_events=True)
        client_async = httpx.AsyncClient()

        async def read_async(options: dict[str, Any]) -> int:
            number = 0
            async with rs.aconnect("GET", url, client=client_async, **options) as stream:
                async for _ in stream:
                    number += 1
            return number

        def read(store: FileStore | None) -> None:
            options = {} if store is None else {"store": store, "key": next(keys)}
            if asynchronously:
                number = runner.run(read_async(options))
            else:
                number = _ours(client, url, **options)
            assert number == size.streamed

        stores = {"without": None, "places": places, "events kept": events}
        taken = in_turn({name: partial(cpu_seconds, partial(read, store)) for name, store in stores.items()}, size.rounds)
        runner.run(client_async.aclose())
    # The more expensive of the two stores counts.
    found = ratios({"events kept": ratio(taken["events kept"], taken["without"])})
    costs = {f"{name}, µs of CPU per event": min(seconds) / size.streamed * 1e6 for name, seconds in taken.items()}
    costs["places, ratio"] = ratios({"places": ratio(taken["places"], taken["without"])}).value
    return Measured(found.value, found.low, found.high, costs)


def asynchronous(server: str, how: str, size: Size) -> Measured:
    url = f"{server}/stream/langgraph/{how}/{size.streamed}"
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient()

        async def timed(read: Any) -> float:
            begun = process_time()
            assert await read(client, url) == size.streamed
            return process_time() - begun

        def sample(read: Any) -> float:
            return runner.run(timed(read))

        taken = in_turn({"peer": partial(sample, _peer_async), "ours": partial(sample, _ours_async)}, size.rounds)
        runner.run(client.aclose())
    return _result(taken, size)


def _result(taken: dict[str, list[float]], size: Size) -> Measured:
    found = ratios({"langgraph": ratio(taken["peer"], taken["ours"])})
    costs = {f"{name}, µs of CPU per event": min(seconds) / size.streamed * 1e6 for name, seconds in taken.items()}
    return Measured(found.value, found.low, found.high, costs)
