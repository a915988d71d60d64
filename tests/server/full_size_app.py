"""
An app for tests that need a server in processes of its own, over the log that the environment names:

    LOG=/tmp/streams.db STARTED=/tmp/started python -m uvicorn --factory tests.server.full_size_app:app

Each start of a producer is a line in the file STARTED, so that those of several processes can be counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette

from resumable_stream.server import Generation, Hub, HubLimits
from resumable_stream.server.asgi import create_app

from .producing import log_at

EVENTS = 40
DRAIN, SPREAD = 9.0, 6.0


def app() -> Starlette:
    log: Any = log_at(os.environ["LOG"])
    hub = Hub(log, limits=HubLimits(readers_per_stream=5_000))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            hub.drain_on(timeout=DRAIN, spread=SPREAD)
            yield
        await log.aclose()

    def started(gen: Generation) -> None:
        # One write of one short line in append mode: lines of several processes do not mix.
        with open(os.environ["STARTED"], "a", encoding="utf-8") as file:
            file.write(f"{gen.id}\n")

    async def answer(gen: Generation) -> None:
        started(gen)
        for n in range(EVENTS):
            await gen.send(f"word {n}")
            await asyncio.sleep(0.002)

    async def endless(gen: Generation) -> None:
        started(gen)
        n = 0
        while True:
            await gen.send(f"word {n}")
            n += 1
            await asyncio.sleep(0.2)

    hub.kind("answer")(answer)
    hub.kind("endless")(endless)
    served = Starlette(lifespan=lifespan)
    served.mount("/", create_app(hub))
    return served
