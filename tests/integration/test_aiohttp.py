"""
httpx-aiohttp, which is httpx over aiohttp's connections: below our transport, and below `aconnect()`.

It has no httpcore, so reads have a clock of ours there, and its errors are aiohttp's in httpx's words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, get_args

import anyio
import httpx
import pytest

import resumable_stream as rs
from resumable_stream import Outcome
from resumable_stream.testing import Fault, FlakyServer, ServerEvent, numbered
from resumable_stream.testing.faults import How
from resumable_stream.transports.httpx import AsyncResumableTransport

httpx_aiohttp = pytest.importorskip("httpx_aiohttp")

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("spotless")]

LOG = [*numbered(8), ServerEvent(id="9", data="[DONE]")]
ALL = [str(n) for n in range(1, 10)]
PATIENT = rs.Timeouts(idle=10.0)
QUICK = rs.RetryPolicy(attempts=1000, wait=lambda state: 0.0)
Start = Callable[..., FlakyServer]


def positions(how: str) -> Sequence[int]:
    """Before, inside and after each event. Silence takes its time, so it is rarer."""
    ends, at = [0], 0
    for event in LOG:
        at += len(event.encode())
        ends += [at - len(event.encode()) // 2, at]
    return ends[::5] if how == "silence" else ends


def clocks(how: str) -> rs.Timeouts:
    return rs.Timeouts(idle=0.2, first_event=0.2) if how == "silence" else PATIENT


@pytest.mark.parametrize("how", get_args(How))
def test_connect_over_aiohttp_is_exact_however_the_stream_is_cut(flaky_server: Start, how: How) -> None:
    async def scenario() -> None:
        async with httpx_aiohttp.HttpxAiohttpClient() as client:
            for position in positions(how):
                cut = Fault.cut(after_bytes=position, how=how)
                server = flaky_server(LOG, [cut, Fault.cut(after_events=2, how=how)])
                async with rs.aconnect("GET", server.url, client=client, retry=QUICK, timeouts=clocks(how)) as stream:
                    assert [event.id async for event in stream] == ALL, f"cut after {position} bytes"
                assert stream.outcome is Outcome.COMPLETED

    asyncio.run(scenario())


@pytest.mark.parametrize("how", get_args(How))
def test_our_transport_over_aiohttp_is_exact_however_the_stream_is_cut(flaky_server: Start, how: How) -> None:
    async def scenario() -> None:
        for position in positions(how):
            server = flaky_server(LOG, [Fault.cut(after_bytes=position, how=how), Fault.cut(after_events=2, how=how)])
            transport = AsyncResumableTransport(httpx_aiohttp.AiohttpTransport(), retry=QUICK, timeouts=clocks(how))
            async with httpx.AsyncClient(transport=transport) as client:
                headers = {"Accept": "text/event-stream"}
                response = await client.get(server.url, headers=headers)
            assert response.content == server.transcript, f"cut after {position} bytes"

    asyncio.run(scenario())


def test_polling_over_aiohttp_delivers_every_event(flaky_server: Start) -> None:
    """A read that is cancelled ends aiohttp's body too (inclusionAI/Avernet#2057)."""
    server = flaky_server(LOG, [Fault.cut(after_events=5, how="silence"), *[Fault.cut(after_bytes=0, how="silence")] * 12])

    async def scenario() -> None:
        seen: list[str] = []
        polls = 0
        async with (
            httpx_aiohttp.HttpxAiohttpClient() as client,
            rs.aconnect("GET", server.url, client=client, timeouts=PATIENT) as stream,
        ):
            while len(seen) < 9:
                try:
                    # On a busy machine an answer takes longer.
                    seconds = min(0.1 * 1.3 ** max(polls - 15, 0), 10.0)
                    seen.append((await asyncio.wait_for(anext(stream), seconds)).id)
                except TimeoutError:
                    polls += 1
        assert seen == ALL
        assert polls >= 12

    asyncio.run(scenario())


@pytest.mark.parametrize("by", ["aclose", "break", "cancel"])
def test_leaving_over_aiohttp_closes_the_connection(flaky_server: Start, by: str) -> None:
    server = flaky_server(LOG, [Fault.cut(after_events=5, how="silence")])
    seen: list[str] = []

    async def reader(stream: Any, five: anyio.Event) -> None:
        async with stream:
            async for event in stream:
                seen.append(event.id)
                if len(seen) == 5:
                    five.set()
                if by == "break" and len(seen) == 5:
                    break

    async def scenario() -> None:
        async with httpx_aiohttp.HttpxAiohttpClient() as client:
            stream = rs.aconnect("GET", server.url, client=client, timeouts=PATIENT)
            task = asyncio.create_task(reader(stream, five := anyio.Event()))
            await five.wait()
            await anyio.sleep(0.02)
            if by == "aclose":
                await stream.aclose()
                with pytest.raises(rs.StreamClosed):
                    await task
            elif by == "cancel":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                await task
            assert await anyio.to_thread.run_sync(server.wait_disconnected, 30.0)
        assert stream.checkpoint.offset == 5

    asyncio.run(scenario())
    assert seen == ALL[:5]
