"""The same with asyncio and your own client."""

import asyncio

import httpx

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, numbered


async def main() -> None:
    with FlakyServer(numbered(10), [Fault.cut(after_events=3), Fault.cut(after_events=4, how="clean")]) as server:
        async with httpx.AsyncClient() as client:
            async with rs.aconnect("GET", server.url, client=client) as stream:
                async for event in stream:
                    print(event.offset, event.id, event.data)

        print(stream.outcome, stream.stats)
        assert stream.stats.events == 10


asyncio.run(main())
