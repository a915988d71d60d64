"""
A process whose readers follow the session "chat", for tests that kill or stop it:

    python -m tests.server.following LOG LEASE READERS
"""

from __future__ import annotations

import asyncio
import sys

from resumable_stream.server import Hub, Session

from .producing import log_at


async def main(text: str, lease: float, readers: int) -> None:
    async def follow(session: Session) -> None:
        async for _ in session.follow(presence=True):
            pass

    async with Hub(log_at(text), lease=lease, poll=0.1, presence=True) as hub:
        await asyncio.gather(*(follow(hub.session("chat")) for _ in range(readers)))


if __name__ == "__main__":
    place, seconds, count = sys.argv[1:]
    asyncio.run(main(place, float(seconds), int(count)))
