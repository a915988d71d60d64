"""What goes into one trip to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from resumable_stream.server import Span
from resumable_stream.server.flusher import Flusher
from resumable_stream.server.log import Append, Appended, Writer

from .virtual import run


class Stream:
    """As much of a generation as the flusher sees: one event, due at some time."""

    paused = is_due_now = False

    def __init__(self, name: str, due: float) -> None:
        self.due: float | None = due
        self.was_due = due
        self.item: Append | None = None
        self.taken_at: float | None = None
        self.id = name
        self.writer = Writer(name, "abcd", 1)

    def next_item(self, now: float) -> Append:
        self.taken_at = now
        self.item = Append(self.writer, Span(n=1, b=1, lengths=(1,), data=b"x"))
        return self.item

    def appended(self) -> None:
        self.item = self.due = None


class Trips:
    def __init__(self) -> None:
        self.made: list[list[str]] = []

    async def append(self, batch: Sequence[Append]) -> list[Appended]:
        self.made.append([item.writer.stream_id for item in batch])
        return [Appended(1) for _ in batch]


def first_trip(*offsets: float) -> tuple[list[str], list[Stream]]:
    async def scenario() -> tuple[list[str], list[Stream]]:
        log, loop = Trips(), asyncio.get_running_loop()
        arrived = asyncio.Event()
        flusher: Any = Flusher(
            log,  # type: ignore[arg-type]
            log_timeout=60.0,
            on_appended=lambda *_: arrived.set(),
            on_refused=lambda *_: None,
            on_away=lambda *_: None,
            on_back=lambda _: None,
        )
        streams = [Stream(f"s{number}", loop.time() + offset) for number, offset in enumerate(offsets)]
        for stream in streams:
            flusher.touch(stream)
        running = asyncio.create_task(flusher.run())
        await asyncio.wait_for(arrived.wait(), 30)
        running.cancel()
        return log.made[0], streams

    return run(scenario)


def test_what_is_due_within_a_moment_goes_along() -> None:
    trip, _ = first_trip(0.0, 0.004, 3600.0)
    assert trip == ["s0", "s1"]


def test_nothing_goes_before_its_time_alone() -> None:
    trip, streams = first_trip(0.05, 3600.0)
    assert trip == ["s0"]
    assert streams[0].taken_at is not None and streams[0].taken_at >= streams[0].was_due


def test_windows_that_end_in_one_trip_begin_together() -> None:
    trip, streams = first_trip(*(0.0 for _ in range(50)))
    assert len(trip) == 50
    assert len({stream.taken_at for stream in streams}) == 1


@pytest.mark.parametrize("fault", ["too few", "too many", "no verdict", "ours"])
def test_after_a_fault_in_a_trip_the_lane_goes_on(fault: str) -> None:
    """Whoever is at fault, none of its streams waits for ever."""

    async def scenario() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        found: list[str] = []

        class Log:
            trips = 0

            async def append(self, batch: Sequence[Append]) -> list[Any]:
                self.trips += 1
                verdicts: list[Any] = [Appended(1) for _ in batch]
                if self.trips > 2 or fault == "ours":
                    return verdicts
                return {"too few": verdicts[1:], "too many": [*verdicts, Appended(1)], "no verdict": [*verdicts[:-1], None]}[
                    fault
                ]

        log = Log()

        def appended(stream: Any, *_: Any) -> None:
            if fault == "ours" and log.trips == 1:
                raise RuntimeError("a fault")
            found.append(stream.id)
            if {"s0", "s1"} <= set(found) or (fault == "ours" and found):
                done.set()

        flusher: Any = Flusher(
            log,  # type: ignore[arg-type]
            log_timeout=60.0,
            on_appended=appended,
            on_refused=lambda *_: None,
            on_away=lambda *_: None,
            on_back=lambda _: None,
        )
        for name in ("s0", "s1"):
            flusher.touch(Stream(name, loop.time()))
        running = asyncio.create_task(flusher.run())
        await asyncio.wait_for(done.wait(), 30)
        running.cancel()
        assert log.trips >= 2 and len(found) == len(set(found))

    run(scenario)
