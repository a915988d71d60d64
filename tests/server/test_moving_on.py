"""Readers of a stream that is let go of, and of a process that is cut off from its log, get on elsewhere and miss nothing."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.server import Ending, Generation, Hub, MemoryLog, _backoff, following
from resumable_stream.server.following import Following
from resumable_stream.server.log import Bell, Head, Released, Span, Writer
from resumable_stream.server.mirror import Follower, Phase, Read
from resumable_stream.testing.faulty_log import FaultyLog

from .test_hub import data_of, read_all
from .virtual import run

HEAD = Head(content_type="text/event-stream", framing="sse")
COMPLETED = Ending(outcome=rs.Outcome.COMPLETED)
FAR = 3600.0


async def until(true: Any) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backoff, "FIRST_RETRY", 0.0005)
    monkeypatch.setattr(_backoff, "LAST_RETRY", 0.002)


def counting(last: int, go: asyncio.Event) -> Any:
    """Two events; the rest after `go`, by whoever has the stream then."""

    async def produce(gen: Generation) -> None:
        for n in range(gen.resumed_from or 0, last):
            if n == 2:
                await go.wait()
            await gen.send(f"event {n}")

    return produce


# --- a stream that is released -----------------------------------------------------------------------------------------------


def test_a_released_stream_is_taken_over_at_once_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no polls and no sweeps here: nothing but the bell says so."""
    monkeypatch.setattr(following, "_RELEASED", 0.01)

    async def scenario() -> None:
        log, go = FaultyLog(MemoryLog(), lose=0.0, double=1.0, swap=0.0), asyncio.Event()
        run_on = counting(5, go)
        hubs = [Hub(log, flush=0.0, poll=FAR, lease=FAR, on_lost=run_on) for _ in range(4)]
        for hub in hubs:
            await hub.__aenter__()
        first, *others = hubs
        await first.start("s", run_on)
        reading = [asyncio.create_task(read_all(hub, "s")) for hub in others]
        await until(lambda: all((followed := hub._following.find("s")) and followed.settled for hub in others))
        await first.drain(timeout=0.0, spread=0.0)
        await until(lambda: any("s" in hub._generations for hub in others))
        go.set()
        for body, reader in await asyncio.gather(*reading):
            assert data_of(body) == [f"event {n}" for n in range(5)]
            assert reader.ending == COMPLETED
        for hub in hubs:
            await hub.aclose()

    run(scenario)


def test_who_shuts_down_takes_no_released_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_RELEASED", 0.01)

    async def scenario() -> None:
        log, go = MemoryLog(), asyncio.Event()
        async with Hub(log, flush=0.0, poll=FAR, lease=FAR, on_lost=counting(5, go)) as hub:
            writer = await log.create("s", HEAD, lease=FAR)
            assert isinstance(writer, Writer)
            reading = asyncio.create_task(read_all(hub, "s"))
            await until(lambda: (followed := hub._following.find("s")) and followed.settled)
            hub._generations.closing = True
            read_at = hub._following.find("s").read_at  # type: ignore[union-attr]
            await log.renew([Writer("s", writer.epoch, writer.fence, 0.0, writer.retention)])
            await until(lambda: hub._following.find("s").read_at > read_at)  # type: ignore[union-attr]
            assert "s" not in hub._generations
            reading.cancel()

    run(scenario)


def test_a_released_stream_that_grows_again_is_not_read() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, poll=FAR) as hub:
            writer = await log.create("s", HEAD, lease=FAR)
            assert isinstance(writer, Writer)
            with await hub.reader("s") as reader:
                followed = reader.followed
                await until(lambda: followed.settled)
                before = followed.read_at
                span = Span(n=1, b=9, lengths=(9,), data=b"data: x\n\n")
                await log.append([(writer, span, None)])
                await until(lambda: followed.follower.mirror.n == 1)  # type: ignore[union-attr]
                hub._following._look_at_released(followed, 0)
                assert not followed.follower._reading and followed.read_at == before
                hub._following._look_at_released(followed, 1)
                assert followed.follower._reading
                await until(lambda: followed.read_at > before)

    run(scenario)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_follower_in_any_phase_reads_after_a_release_or_is_about_to(phase: Phase) -> None:
    follower = Follower()
    follower.phase = phase
    steps = follower.bell(Bell(id="s", item=Released(), epoch="aaaa", n=0))
    match phase:
        case Phase.COLD | Phase.STALE:
            # Whoever listens again, reads.
            assert steps == []
        case Phase.LISTENING | Phase.HYDRATING:
            assert steps == [] and follower._again
        case _:
            assert steps == [Read(None)]


# --- polls -------------------------------------------------------------------------------------------------------------------


def test_mirrors_that_fall_silent_together_do_not_poll_together() -> None:
    random.seed(7)

    async def scenario() -> None:
        log, count = MemoryLog(), 400
        for number in range(count):
            await log.create(f"s{number}", HEAD, lease=FAR)
        async with Hub(log, poll=8.0) as hub:
            readers = [await hub.reader(f"s{number}") for number in range(count)]
            polls = sorted(reader.followed.patience * 8.0 for reader in readers)
            assert polls[0] >= 4.0 and polls[-1] <= 8.0
            # A quarter of the time, and no more than a third of them.
            assert all(sum(at <= poll < at + 1.0 for poll in polls) < count / 3 for at in (4.0, 5.0, 6.0, 7.0))
            before = [reader.followed.patience for reader in readers]
            for reader in readers:
                reader.followed.heard_at -= FAR
            long_ago = [reader.followed.heard_at for reader in readers]
            await until(lambda: all(reader.followed.heard_at > at for reader, at in zip(readers, long_ago, strict=True)))
            assert before != [reader.followed.patience for reader in readers]
            for reader in readers:
                reader.close()

    run(scenario)


# --- a process that is cut off ---------------------------------------------------------------------------------------------


class Cut(MemoryLog):
    """A log that several hubs reach by ways of their own, see `way`."""

    def way(self) -> Any:
        return FaultyLog(self, lose=0.0, double=0.0, swap=0.0)


def all_away(verb: str, stream_id: str) -> Any:
    return "not_done"


@pytest.mark.parametrize("view", ["events", "verbatim"])
def test_readers_of_a_process_that_is_cut_off_are_asked_to_come_back_elsewhere(view: Any) -> None:
    async def scenario() -> None:
        log, go = Cut(), asyncio.Event()
        ways = [log.way(), log.way()]
        one = Hub(ways[0], flush=0.0, poll=0.02, lease=0.2, log_timeout=0.2)
        two = Hub(ways[1], flush=0.0, poll=0.02, lease=0.2, log_timeout=60.0)
        async with one, two:
            await two.start("s", counting(5, go))
            headers = {"sec-fetch-dest": "empty"}
            answers = [await one.answer("GET", headers, id="s", path="/s", query=f"view={view}") for _ in range(5)]

            async def body(answer: Any) -> tuple[bytes, bool]:
                found = b""
                try:
                    async for piece in answer:
                        found += piece
                except rs.ReaderCut:
                    return found, False
                return found, True

            reading = [asyncio.create_task(body(answer)) for answer in answers]
            await until(lambda: len(one._readers) == 5)
            ways[0].reach = all_away
            log_bells = one._following._bells
            assert log_bells is not None
            await log_bells.discard("s")
            go.set()
            for found, clean in await asyncio.gather(*reading):
                # With ids it closes politely, and says when to come back. Without, it is cut: a clean end reads as success.
                assert clean == (view == "events")
                assert [each for each in data_of(found) if each.startswith("event")] == ["event 0", "event 1"]
                assert b"event: end" not in found
                if view == "events":
                    assert found.rstrip().splitlines()[-1].startswith(b"retry: ")
            # Who comes now is told so at once.
            again = await one.answer("GET", headers, id="s", path="/s")
            told = b"".join([piece async for piece in again])
            assert int(told.removeprefix(b"retry: ")) >= 5000
            assert (await one.answer("GET", {}, id="s", path="/s")).status == 503
            with pytest.raises(rs.LogUnavailable):
                await one.reader("s")
            # Elsewhere they get the rest, and here, too, when the log is back.
            for hub in (two, one):
                ways[0].reach = None
                await until(lambda: one._following.find("s") is None or not one._following.is_cut_off(one._following.find("s")))
                assert data_of((await read_all(hub, "s"))[0]) == [f"event {n}" for n in range(5)]

    run(scenario)


def test_readers_stay_where_the_log_is_away_for_less_than_that() -> None:
    async def scenario() -> None:
        log, go = Cut(), asyncio.Event()
        ways = [log.way(), log.way()]
        async with Hub(ways[0], flush=0.0, poll=0.02, lease=0.2) as one, Hub(ways[1], flush=0.0, poll=0.02, lease=60.0) as two:
            await two.start("s", counting(5, go))
            reading = asyncio.create_task(read_all(one, "s"))
            await until(lambda: (followed := one._following.find("s")) and followed.settled)
            ways[0].reach = all_away
            await until(lambda: one._following.find("s").away_since is not None)  # type: ignore[union-attr]
            ways[0].reach = None
            go.set()
            body, reader = await reading
            assert (data_of(body), reader.ending) == ([f"event {n}" for n in range(5)], COMPLETED)
            assert one._following.find("s").away_since is None  # type: ignore[union-attr]

    run(scenario)


def test_readers_of_a_producer_that_is_cut_off_go_on_where_another_one_continues() -> None:
    """They are not told that the work has failed: it goes on elsewhere."""

    async def scenario() -> None:
        log, go = Cut(), asyncio.Event()
        ways = [log.way(), log.way()]
        run_on = counting(5, go)
        one = Hub(ways[0], flush=0.0, poll=0.05, lease=0.3, log_timeout=0.3, on_lost=run_on)
        two = Hub(ways[1], flush=0.0, poll=0.05, lease=0.3, log_timeout=60.0, on_lost=run_on)
        async with one, two:
            await one.start("s", run_on)
            reader = await one.reader("s")
            got = b""
            while len(data_of(got)) < 2:
                got += await reader.next() or b""
            ways[0].reach = all_away
            go.set()
            with reader:
                while chunk := await reader.next():
                    got += chunk
                assert reader.left and reader.ending is None and reader.gone is None
                after = reader.cursor
            body, other = await read_all(two, "s", after)
            assert data_of(got + body) == [f"event {n}" for n in range(5)]
            assert other.ending == COMPLETED

    run(scenario)


def test_an_owned_stream_is_never_cut_off_by_what_its_mirror_met_before() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            following_ = hub._following
            assert isinstance(following_, Following)
            followed = following_.get("s")
            followed.away_since = float("-inf")
            assert following_.is_cut_off(followed)
            followed.owned = True
            assert not following_.is_cut_off(followed)

    run(scenario)
