"""Bells that wait for a slow listener: in order, and within a bound."""

from __future__ import annotations

import asyncio
import random

import pytest

from resumable_stream.server import _bell_queue
from resumable_stream.server._bell_queue import BellQueue
from resumable_stream.server.log import Bell

from .virtual import run


async def heard(queue: BellQueue) -> list[Bell]:
    return [await queue.get() for _ in range(len(queue._waiting))]


@pytest.mark.parametrize("bound", ["bells", "bytes", "both"])
def test_what_piles_up_is_bounded_and_tells_of_every_stream(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """Whoever reads the log of each stream that rang, as far as its last bell says or to its end, has all of it."""
    monkeypatch.setattr(_bell_queue, "MOST_WAITING", 10 if bound != "bytes" else 10_000)
    monkeypatch.setattr(_bell_queue, "MOST_WAITING_BYTES", 500 if bound != "bells" else 1 << 30)

    async def scenario(seed: int) -> None:
        chance = random.Random(seed)
        queue, last, known = BellQueue(), dict[str, int](), dict[str, int]()
        for n in range(1, 400):
            name = chance.choice("abc")
            last[name] = n
            queue.put(Bell(id=name, n=n), chance.randrange(100), streams=3)
            assert bound == "bytes" or len(queue._waiting) <= 10
            assert bound == "bells" or sum(size for _, size in queue._waiting) == queue._bytes <= 500
            if chance.random() < 0.02:
                for bell in await heard(queue):
                    known[bell.id] = last[bell.id] if bell.n is None else bell.n
                assert known == last, seed
                assert queue._bytes == 0, seed

    async def scenarios() -> None:
        for seed in range(20):
            await scenario(seed)

    run(scenarios)


def test_two_bells_of_each_stream_are_taken_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one bell for each of so many streams would be gathered again and again, and never carry anything."""
    monkeypatch.setattr(_bell_queue, "MOST_WAITING", 3)

    async def scenario() -> None:
        queue = BellQueue()
        for n in range(40):
            queue.put(Bell(id=str(n % 20), n=n), streams=20)
        assert [bell.n for bell in await heard(queue)] == list(range(40))

    run(scenario)


def test_a_queue_that_is_closed_lets_its_listener_go() -> None:
    async def scenario() -> None:
        queue = BellQueue()
        waiting = asyncio.create_task(anext(_all(queue), None))
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.close()
        assert await waiting is None
        queue.put(Bell(id="s"), streams=1)
        assert await anext(_all(queue), None) is None

    run(scenario)


class _all:
    def __init__(self, queue: BellQueue) -> None:
        self._queue = queue

    def __aiter__(self) -> _all:
        return self

    async def __anext__(self) -> Bell:
        return await self._queue.get()
