"""The log with faults does to bells and replies what it says, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Ending, Head, MemoryLog, StreamLog
from resumable_stream.server.log import Appended, Bells, Page, Span, Writer
from resumable_stream.testing.faulty_log import FaultyLog
from resumable_stream.testing.log_contract import LogContract, span_of

from . import virtual

HEAD = Head(content_type="text/event-stream", framing="sse")


class TestFaultyLogWithoutFaults(LogContract):
    """With probabilities of 0 it is the log below."""

    lease = 15.0

    def make_log(self) -> StreamLog:
        self.now = 1000.0
        self.memory = MemoryLog(clock=lambda: self.now)
        return FaultyLog(self.memory, lose=0.0, double=0.0, swap=0.0)

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        self.now += seconds


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    async def awaited() -> Any:
        return await scenario

    return virtual.run(awaited)


async def ring(seed: int, **faults: float) -> tuple[list[int], FaultyLog]:
    """The numbers of 500 events, as their bells arrive."""
    log = FaultyLog(MemoryLog(), seed=seed, **faults)
    writer = await log.create("s", HEAD, lease=600.0)
    assert isinstance(writer, Writer)
    bells = log.bells()
    assert isinstance(log, StreamLog) and isinstance(bells, Bells)
    await bells.add("s")
    for n in range(1, 501):
        await log.append([(writer, span_of(n, n), None)])
    await log.finish(writer, 500, Ending(outcome=Outcome.COMPLETED))
    heard: list[int] = []

    async def listen() -> None:
        async for bell in bells:
            if isinstance(bell.item, Span):
                heard.append(bell.item.n)

    listening = asyncio.create_task(listen())
    for _ in range(2000):
        await asyncio.sleep(0)
    await bells.aclose()
    await listening
    return heard, log


def test_the_same_seed_is_the_same_run() -> None:
    first, second, other = (run(ring(seed))[0] for seed in (1, 1, 2))
    assert first == second != other


def test_bells_are_lost() -> None:
    heard, log = run(ring(1, lose=0.2, double=0.0, swap=0.0))
    assert heard == sorted(set(heard))
    assert 60 < log.faults["lost"] < 140
    assert 500 - len(heard) in (log.faults["lost"], log.faults["lost"] - 1)  # the ending rings too


def test_bells_come_twice() -> None:
    heard, log = run(ring(1, lose=0.0, double=0.2, swap=0.0))
    assert set(heard) == set(range(1, 501))
    assert len(heard) - 500 in (log.faults["doubled"], log.faults["doubled"] - 1)
    assert 60 < log.faults["doubled"] < 140


def test_bells_are_swapped() -> None:
    heard, log = run(ring(1, lose=0.0, double=0.0, swap=0.2))
    assert set(heard) >= set(range(1, 500))
    assert len(heard) == len(set(heard))
    assert heard != sorted(heard)
    assert 60 < log.faults["swapped"] < 140
    # Only neighbours change places.
    assert all(abs(n - place) <= 1 for place, n in enumerate(heard, 1))


def test_a_lost_reply_is_answered_the_second_time() -> None:
    async def scenario() -> None:
        log = FaultyLog(MemoryLog(), seed=3, unavailable=0.5)
        while True:
            try:
                writer = await log.create("s", HEAD, lease=600.0)
                break
            except LogUnavailable:
                await log.log.delete("s")
        assert isinstance(writer, Writer)
        for n in range(1, 101):
            while True:
                try:
                    assert await log.append([(writer, span_of(n, n), None)]) == [Appended(n)]
                    break
                except LogUnavailable:
                    pass
        assert log.faults["not_done"] > 20
        assert log.faults["reply_lost"] > 20
        page = await log.log.read("s")
        assert isinstance(page, Page)
        assert b"".join(span.data for span in page.spans) == span_of(1, 100).data

    run(scenario())


@pytest.mark.parametrize("wrong", [{"lose": -0.1}, {"lose": 0.5, "double": 0.6}, {"unavailable": 1.1}, {"swap": 2.0}])
def test_probabilities_are_probabilities(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        FaultyLog(MemoryLog(), **wrong)
