"""
A process that produces one stream, for tests that kill or stop it:

    python -m tests.server.producing LOG ID COUNT PAUSE LEASE [SESSION]

It prints `started` once the stream is there, and `done` at the end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from resumable_stream.server import Hub, RedisLog, SQLiteLog, StreamLog


def log_at(text: str) -> StreamLog:
    """A log of its own over the store that others use too."""
    return RedisLog(text) if text.startswith("redis:") else SQLiteLog(text)


async def main(text: str, id: str, count: int, pause: float, lease: float, session: str | None) -> None:
    async def words() -> AsyncIterator[str]:
        for n in range(count):
            yield f"word {n}"
            await asyncio.sleep(pause)

    log = log_at(text)
    async with Hub(log, lease=lease) as hub:
        await hub.start(id, words(), session=session)
        print("started", flush=True)
        with await hub.reader(id) as reader:
            while await reader.next():
                pass
        print("done", flush=True)
    await log.aclose()


if __name__ == "__main__":
    place, name, events, between, seconds, *more = sys.argv[1:]
    asyncio.run(main(place, name, int(events), float(between), float(seconds), more[0] if more else None))
