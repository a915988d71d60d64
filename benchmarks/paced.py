"""
Each token alone, as a model sends them. Many streams at once, read over plain httpx (httpcore) or httpx-aiohttp.

Each token takes a turn of the event loop, a `recv` and a read, so most of the time goes to the HTTP client. All sides use one
client, made before the clock starts; the requests are part of a sample.
"""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from time import process_time
from typing import Any, Literal

import httpx
import httpx_sse
from measure import Measured, Skipped, in_turn, ratio, ratios

import resumable_stream as rs

__all__ = ["paced"]

STREAMS = 50
TOKENS = 100
APART = 20
"""Milliseconds: 50 tokens a second, as from many models."""
_LIMITS = httpx.Limits(max_connections=STREAMS, max_keepalive_connections=STREAMS)


async def _bare(client: httpx.AsyncClient, url: str) -> int:
    number = 0
    async with client.stream("GET", url) as response:
        async for chunk in response.aiter_raw():
            number += chunk.count(b"\n\n")
    return number


async def _peer(client: httpx.AsyncClient, url: str) -> int:
    number = 0
    async with httpx_sse.aconnect_sse(client, "GET", url) as source:
        async for _ in source.aiter_sse():
            number += 1
    return number


async def _ours(client: httpx.AsyncClient, url: str) -> int:
    number = 0
    async with rs.aconnect("GET", url, client=client) as stream:
        async for _ in stream:
            number += 1
    return number


def _transport(over: Literal["httpx", "httpx-aiohttp"]) -> httpx.AsyncBaseTransport:
    if over == "httpx":
        return httpx.AsyncHTTPTransport(limits=_LIMITS)
    try:
        from httpx_aiohttp import AiohttpTransport
    except ModuleNotFoundError:
        raise Skipped("httpx-aiohttp is not installed") from None
    return AiohttpTransport(limits=_LIMITS)  # type: ignore[no-any-return]


def paced(server: str, over: Literal["httpx", "httpx-aiohttp"], rounds: int) -> Measured:
    """Ours against httpx-sse; bare httpx is shown as a part."""
    url = f"{server}/paced/openai_chat/{APART}/{TOKENS}"
    transport = _transport(over)
    with asyncio.Runner() as runner:
        client = httpx.AsyncClient(transport=transport, timeout=60, trust_env=False)

        async def timed(read: Any) -> float:
            gc.collect()
            begun = process_time()
            found = await asyncio.gather(*(read(client, url) for _ in range(STREAMS)))
            taken = process_time() - begun
            assert found == [TOKENS] * STREAMS
            return taken

        def sample(read: Any) -> float:
            return runner.run(timed(read))

        taken = in_turn(
            {name: partial(sample, read) for name, read in (("bare", _bare), ("peer", _peer), ("ours", _ours))}, rounds
        )
        runner.run(client.aclose())
    found = ratios({over: ratio(taken["ours"], taken["peer"])})
    costs = {f"{name}, µs of CPU per token": min(seconds) / (STREAMS * TOKENS) * 1e6 for name, seconds in taken.items()}
    return Measured(found.value, found.low, found.high, costs)
