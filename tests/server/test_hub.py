"""Generations belong to no connection: started once, kept, read by anybody from any place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Ending, Generation, Hub, HubLimits, MemoryLog, wire
from resumable_stream.server.log import Head

from .virtual import run


async def words(count: int = 5, pause: float = 0.0) -> AsyncIterator[str]:
    for n in range(count):
        yield f"word {n}"
        await asyncio.sleep(pause)


async def read_all(hub: Hub, id: str, after: Cursor | None = None, *, view: Any = "events", owner: str = "") -> tuple[bytes, Any]:
    chunks = []
    with await hub.reader(id, after, view=view, owner=owner) as reader:
        while chunk := await reader.next():
            chunks.append(chunk)
    return b"".join(chunks), reader


def data_of(body: bytes) -> list[str]:
    return [event.data for event in SSEDecoder().feed(body)]


def test_a_stream_is_produced_once_and_read_by_two() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            stream = await hub.start("s", words())
            first, second = await asyncio.gather(read_all(hub, "s"), read_all(hub, "s"))
            assert not stream.joined
            assert first[0] == second[0]
            events = SSEDecoder().feed(first[0])
            assert [event.data for event in events] == [f"word {n}" for n in range(5)]
            assert [event.id for event in events] == [f"{stream.epoch}.{n}" for n in range(1, 6)]
            assert first[1].ending == Ending(outcome=rs.Outcome.COMPLETED)

    run(scenario)


def test_the_same_id_joins_and_starts_nothing() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            started = []

            async def once() -> AsyncIterator[str]:
                started.append(1)
                yield "x"

            answers = await asyncio.gather(*(hub.start("s", once()) for _ in range(20)))
            await read_all(hub, "s")
            assert [answer.joined for answer in answers].count(False) == 1
            assert started == [1]
            assert len({answer.epoch for answer in answers}) == 1

    run(scenario)


def test_another_request_under_the_same_id_is_refused() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("s", words(), request=b"one")
            assert (await hub.start("s", words(), request=b"one")).joined
            with pytest.raises(rs.KeyReused):
                await hub.start("s", words(), request=b"two")

    run(scenario)


def test_two_owners_have_ids_of_their_own() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("s", words(2), owner="ann")
            await hub.start("s", words(3), owner="bob")
            assert len(data_of((await read_all(hub, "s", owner="ann"))[0])) == 2
            assert len(data_of((await read_all(hub, "s", owner="bob"))[0])) == 3
            for owner in ("", "eve"):
                with pytest.raises(rs.StreamUnknown):
                    await hub.reader("s", owner=owner)

    run(scenario)


@pytest.mark.parametrize("n", range(6))
def test_a_reader_goes_on_behind_any_event(n: int) -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            stream = await hub.start("s", words(pause=0.001))
            body, _ = await read_all(hub, "s", Cursor(stream.epoch, n))
            assert data_of(body) == [f"word {each}" for each in range(n, 5)]

    run(scenario)


def test_leaving_is_not_stopping() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("s", words(50, 0.002))
            with await hub.reader("s") as reader:
                assert await reader.next()
            body, reader = await read_all(hub, "s")
            assert len(data_of(body)) == 50 and reader.ending.outcome is rs.Outcome.COMPLETED

    run(scenario)


def test_cancelling_stops_and_says_so() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            closed = asyncio.Event()

            async def endless() -> AsyncIterator[str]:
                try:
                    while True:
                        yield "tick"
                        await asyncio.sleep(0.001)
                finally:
                    closed.set()

            await hub.start("s", endless())
            with await hub.reader("s") as reader:
                await reader.next()
                assert await hub.cancel("s", "bored")
                while await reader.next():
                    pass
                assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="bored")
            assert closed.is_set()
            assert not await hub.cancel("s")

    run(scenario)


def test_a_producer_that_looks_ends_in_its_own_way() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(), cancel_grace=30.0) as hub:

            async def agent(gen: Generation) -> rs.Outcome | None:
                while not gen.cancelled:
                    await gen.send({"step": gen.n})
                    await asyncio.sleep(0.001)
                await gen.send("goodbye")
                return rs.Outcome.INCOMPLETE

            await hub.start("s", agent)
            with await hub.reader("s") as reader:
                await reader.next()
                await hub.cancel("s")
            body, reader = await read_all(hub, "s")
            assert data_of(body)[-1] == "goodbye"
            assert reader.ending == Ending(outcome=rs.Outcome.INCOMPLETE)

    run(scenario)


def test_a_producer_that_breaks_ends_as_failed_without_its_secrets() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def broken() -> AsyncIterator[str]:
                yield "one"
                raise RuntimeError("key sk-secret is wrong")

            await hub.start("s", broken())
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["one"]
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="producer_error", error="RuntimeError")

    run(scenario)


def test_a_producer_can_fail_in_its_own_words() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def agent(gen: Generation) -> None:
                gen.text("half")
                gen.fail("upstream_cut", "the model went away")

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ['{"text":"half"}']
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="upstream_cut", error="the model went away")

    run(scenario)


def test_messages_are_applied_once_in_the_order_accepted() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def agent(gen: Generation) -> None:
                seen = 0
                while seen < 40:
                    for message in await gen.wait_steered():
                        seen += 1
                        await gen.send(message.id, event="steered")

            await hub.start("s", agent)

            async def tab(name: int) -> list[int]:
                places = []
                for n in range(10):
                    first = await hub.say("s", "left", mid=f"{name}-{n}")
                    assert await hub.say("s", "left", mid=f"{name}-{n}") == first
                    places.append(first)
                return places

            places = await asyncio.gather(*(tab(name) for name in range(4)))
            body, _ = await read_all(hub, "s")
            order = {f"{name}-{n}": place for name, mine in enumerate(places) for n, place in enumerate(mine)}
            assert data_of(body) == sorted(order, key=order.__getitem__)
            with pytest.raises(rs.StreamEnded):
                await hub.say("s", "too late")

    run(scenario)


@pytest.mark.parametrize("taken", [0, 1, 7, 40])
@pytest.mark.parametrize("how", ["returns", "fails", "is cancelled", "took and said nothing"])
def test_the_end_says_which_messages_were_applied(taken: int, how: str) -> None:
    """
    A message that is accepted in the moment of the end is not applied, and whoever posted it learns that.

    Four tabs post while the producer takes some messages and ends. Each message is applied once, in the order accepted, and the
    end, which all readers and the session get, names the place of the last one. Each place up to that was applied, none after it.
    """

    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def agent(gen: Generation) -> rs.Outcome | None:
                seen = 0
                while seen < taken:
                    for message in await gen.wait_steered():
                        seen += 1
                        await gen.send(message.id, event="steered")
                await gen.flush()
                if how == "took and said nothing":
                    gen.steered()
                if how == "fails":
                    gen.fail("tired")
                if how == "is cancelled":
                    await asyncio.Event().wait()
                return None

            await hub.start("s", agent, session="chat")
            accepted: dict[str, int] = {}

            async def tab(name: int) -> None:
                for n in range(10):
                    mid = f"{name}-{n}"
                    try:
                        accepted[mid] = await hub.say("s", "left", mid=mid)
                    except rs.StreamEnded:
                        pass  # and what was accepted is looked at below
                    await asyncio.sleep(0)

            await asyncio.gather(*(tab(name) for name in range(4)))
            if how == "is cancelled":
                await hub.cancel("s")
            body, reader = await read_all(hub, "s")
            events = list(SSEDecoder().feed(body))
            steered = [event.data for event in events if event.event == "steered"]
            assert reader.ending is not None
            last = reader.ending.applied
            assert steered == sorted(accepted, key=accepted.__getitem__)[: len(steered)] and len(steered) >= taken
            assert last == (accepted[steered[-1]] if steered else 0)
            end = json.loads(wire.end_event("abcd", 1, reader.ending).decode().partition("data: ")[2])
            assert end.get("applied", 0) == last
            _, told = await ended_of(hub, "chat")
            assert told.get("applied", 0) == last
            for mid, place in accepted.items():
                if place <= last:
                    assert await hub.say("s", "left", mid=mid) == place
                else:
                    with pytest.raises(rs.StreamEnded):
                        await hub.say("s", "left", mid=mid)

    run(scenario)


async def ended_of(hub: Hub, session: str) -> tuple[str, Any]:
    """The event `ended` in the feed of a session."""
    async for chunk in hub.session(session).follow():
        for event in SSEDecoder().feed(chunk):
            if event.event == "ended":
                return event.event, json.loads(event.data)
    raise AssertionError("the feed has ended")


def test_nobody_sees_an_event_before_the_log_has_it() -> None:
    gate = asyncio.Event()

    class Slow(MemoryLog):
        async def append(self, batch: Any) -> Any:
            await gate.wait()
            return await super().append(batch)

    async def scenario() -> None:
        async with Hub(Slow()) as hub:
            sent = asyncio.Event()

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                sent.set()

            await hub.start("s", agent)
            with await hub.reader("s") as reader:
                await sent.wait()
                assert await reader.next(0.05) is None
                gate.set()
                chunk = await reader.next()
                assert chunk and data_of(chunk) == ["one"]

    run(scenario)


def test_a_large_producer_waits_for_the_log() -> None:
    class Slow(MemoryLog):
        async def append(self, batch: Any) -> Any:
            await gate.wait()
            return await super().append(batch)

    gate = asyncio.Event()

    async def scenario() -> None:
        async with Hub(Slow(), limits=HubLimits(pending_bytes=1000)) as hub:
            sent = 0

            async def agent(gen: Generation) -> None:
                nonlocal sent
                for _ in range(50):
                    await gen.send("x" * 100)
                    sent += 1

            await hub.start("s", agent)
            await asyncio.sleep(0.05)
            assert sent < 15
            gate.set()
            body, _ = await read_all(hub, "s")
            assert len(data_of(body)) == 50

    run(scenario)


def test_a_stream_that_grows_too_large_ends_as_failed() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(), limits=HubLimits(stream_bytes=1000)) as hub:
            await hub.start("s", words(1000))
            _, reader = await read_all(hub, "s")
            assert reader.ending.outcome is rs.Outcome.FAILED and reader.ending.reason == "too_long"
            assert (await hub.state("s")).b <= 1000

    run(scenario)


@pytest.mark.parametrize("view", ["events", "verbatim"])
def test_json_lines_are_read_in_both_views(view: str) -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def lines() -> AsyncIterator[dict[str, int]]:
                for n in range(3):
                    yield {"n": n}

            await hub.start("s", lines(), head=Head(content_type="application/x-ndjson", framing="ndjson"))
            body, _ = await read_all(hub, "s", view=view)
            if view == "verbatim":
                assert body == b'{"n":0}\n{"n":1}\n{"n":2}\n'
            else:
                assert data_of(body) == ['{"n":0}', '{"n":1}', '{"n":2}']

    run(scenario)


def test_two_hubs_over_one_log_run_one_generation_and_both_read_it() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as one, Hub(log) as two:
            first = await one.start("s", words(30, 0.002))
            second = await two.start("s", words(30, 0.002))
            assert (first.joined, second.joined) == (False, True)
            here, there = await asyncio.gather(read_all(one, "s"), read_all(two, "s"))
            assert here[0] == there[0] and len(data_of(here[0])) == 30
            assert there[1].ending == Ending(outcome=rs.Outcome.COMPLETED)

    run(scenario)


def test_a_stream_whose_process_died_fails_honestly_for_its_readers() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        dead = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=0.2)
        from resumable_stream.server.log import Span, Writer

        assert isinstance(dead, Writer)
        await log.append([(dead, Span(n=1, b=11, lengths=(11,), data=b"data: one\n\n"), None)])
        async with Hub(log, lease=0.3, poll=0.1) as hub:
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["one"]
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")

    run(scenario)


def test_a_stream_whose_process_died_is_continued_from_its_note() -> None:
    async def scenario() -> None:
        log = MemoryLog()

        async def count(gen: Generation) -> None:
            start = int(gen.note or 0)
            assert (gen.resumed_from or 0) == start
            for n in range(start, 20):
                await gen.send(str(n))
                await gen.flush(note=str(n + 1))
                await asyncio.sleep(0.005)

        one = Hub(log, lease=0.3, on_lost=count)
        await one.__aenter__()
        stream = await one.start("s", count)
        async with Hub(log, lease=0.3, poll=0.1, on_lost=count) as two:
            with await two.reader("s") as reader:
                chunks = [await reader.next()]
                await one.aclose()  # releases what it runs, as a deploy does
                while chunk := await reader.next():
                    chunks.append(chunk)
            assert data_of(b"".join(chunk for chunk in chunks if chunk)) == [str(n) for n in range(20)]
            assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED)
            assert (await two.state("s")).epoch == stream.epoch

    run(scenario)


def test_shutting_down_lets_generations_end_and_readers_go() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("short", words(20, 0.005))
            await hub.start("long", words(10_000, 0.005))
            readers = [asyncio.create_task(read_all(hub, "long")) for _ in range(5)]
            await asyncio.sleep(0.02)
            await hub.drain(timeout=0.5, spread=0.1)
            for task in readers:
                _, reader = await task
                assert reader.left and reader.ending is None
            assert (await hub.state("short")).ending == Ending(outcome=rs.Outcome.COMPLETED)
            assert (await hub.state("long")).ending == Ending(outcome=rs.Outcome.FAILED, reason="shutdown")
            with pytest.raises(rs.HubDraining):
                await hub.start("new", words())

    run(scenario)


def test_a_reader_that_comes_while_it_shuts_down_is_sent_away_too() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("long", words(10_000, 0.005))
            draining = asyncio.create_task(hub.drain(timeout=0.2, spread=0.0))
            await asyncio.sleep(0)
            assert hub.draining
            with await hub.reader("long") as reader:
                await draining
                assert reader.left

    run(scenario)


def test_sending_many_readers_away_takes_no_longer_than_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sleep takes longer than it should, on a busy machine much longer."""
    sleep = asyncio.sleep

    async def sleep_long(seconds: float) -> None:
        await sleep(seconds + 0.05 if seconds else 0)

    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("long", words(100_000, 0.0))
            readers = [await hub.reader("long") for _ in range(400)]
            monkeypatch.setattr("resumable_stream.server.hub.asyncio.sleep", sleep_long)
            began = asyncio.get_running_loop().time()
            await hub.drain(timeout=0.0, spread=0.4)
            took = asyncio.get_running_loop().time() - began
            monkeypatch.undo()
            assert all(reader.left for reader in readers)
            # 400 sleeps that are too long by 0.05 s each would be 20 s.
            assert 0.3 < took < 10
            for reader in readers:
                reader.close()

    run(scenario)


def test_a_failed_stream_is_started_again_only_when_asked_to() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def broken() -> AsyncIterator[str]:
                yield "half"
                raise RuntimeError

            first = await hub.start("s", broken())
            await read_all(hub, "s")
            joined = await hub.start("s", words(2))
            assert joined.joined and joined.ending is not None
            anew = await hub.start("s", words(2), again="failed")
            assert not anew.joined and anew.epoch != first.epoch
            assert data_of((await read_all(hub, "s"))[0]) == ["word 0", "word 1"]
            with pytest.raises(rs.HistoryGone):
                await hub.reader("s", Cursor(first.epoch, 1))

    run(scenario)


def test_what_is_deleted_is_unknown() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("s", words(1000, 0.01))
            await hub.forget("s")
            with pytest.raises(rs.StreamUnknown):
                await hub.reader("s")
            with pytest.raises(rs.StreamUnknown):
                await hub.state("s")

    run(scenario)


def test_a_producer_that_waits_for_messages_can_be_cancelled() -> None:
    """It does not look at `cancelled`: it must neither stop the event loop nor go on for ever."""

    async def scenario() -> None:
        async with Hub(MemoryLog(), cancel_grace=0.05) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("ready")
                while True:
                    for message in await gen.wait_steered():
                        await gen.send(message.data)

            await hub.start("s", agent)
            with await hub.reader("s") as reader:
                await reader.next()
            await hub.cancel("s", "bored")
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["ready"]
            assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="bored")

    run(scenario)


def test_a_producer_is_told_of_a_cancel_while_it_waits_for_messages() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(), cancel_grace=30.0) as hub:

            async def agent(gen: Generation) -> rs.Outcome:
                await gen.send("ready")
                while not gen.cancelled:
                    await gen.wait_steered()
                # Told once; messages that come afterwards are worth waiting for again.
                assert await gen.wait_steered(timeout=0.01) == []
                return rs.Outcome.INCOMPLETE

            await hub.start("s", agent)
            with await hub.reader("s") as reader:
                await reader.next()
            await hub.cancel("s")
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.INCOMPLETE)

    run(scenario)


def test_a_note_is_stored_although_a_message_waits_for_its_event() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        noted = asyncio.Event()
        async with Hub(log) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                assert await gen.wait_steered()
                await gen.flush(note="before the message")
                record = log._streams["s"].record
                assert (record.note, record.note_n, record.taken) == ("before the message", 1, 0)
                await gen.send("two")
                await gen.flush()
                assert (record.note, record.note_n, record.taken) == ("before the message", 1, 1)
                noted.set()

            await hub.start("s", agent)
            await hub.say("s", "turn left")
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED)
            assert noted.is_set()

    run(scenario)


def test_a_message_named_cancel_does_not_stand_in_the_way_of_a_cancel() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, lease=0.3) as one, Hub(log) as two:
            await one.start("s", words(10_000, 0.001))
            assert await two.say("s", "a message", mid="cancel") == 1
            assert await two.cancel("s", "bored")
            _, reader = await read_all(one, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="bored")
            with pytest.raises(rs.StreamEnded):
                await two.say("s", "too late", mid="cancel 2")

    run(scenario)


def test_a_message_is_not_a_cancel_in_disguise() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            await hub.start("s", words(3, 0.001))
            with pytest.raises(ValueError, match="hub.cancel"):
                await hub.say("s", "stop", kind="cancel")
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED)

    run(scenario)


def test_nobody_reaches_the_stream_of_an_owner_by_its_key() -> None:
    async def scenario() -> None:
        from resumable_stream.server.hub import key_of

        async with Hub(MemoryLog()) as hub:
            await hub.start("s", words(1000, 0.001), owner="ann")
            key = key_of("s", "ann")
            for verb in (hub.state, hub.reader, hub.cancel, hub.forget):
                with pytest.raises(rs.StreamUnknown):
                    await verb(key)
            with pytest.raises(rs.StreamUnknown):
                await hub.say(key, "turn left")
            # Nor is its place taken before it is there.
            await hub.start(key_of("t", "ann"), words(1))
            assert not (await hub.start("t", words(1), owner="ann")).joined

    run(scenario)


def test_a_stream_that_is_deleted_from_another_process_stays_deleted() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, lease=0.6) as one, Hub(log) as two:
            await one.start("s", words(10_000, 0.001))
            readers = [asyncio.create_task(read_all(hub, "s")) for hub in (one, two)]
            await asyncio.sleep(0.02)
            await two.forget("s")
            for task in readers:
                _, reader = await task
                assert reader.gone or reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="forgotten")
            assert not one._generations
            followed = one._following.find("s")
            while followed is not None and not followed.is_over:
                await followed.grown.wait()
            for hub in (one, two):
                with pytest.raises(rs.StreamUnknown):
                    await hub.state("s")
                with pytest.raises(rs.StreamUnknown):
                    await hub.reader("s")

    run(scenario)


def test_a_stream_that_is_deleted_before_its_producer_could_stop_is_not_written_again() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, cancel_grace=0.05) as hub:
            stop = asyncio.Event()

            async def slow(gen: Generation) -> None:
                try:
                    await gen.send("one")
                    await asyncio.Event().wait()
                finally:
                    await stop.wait()

            await hub.start("s", slow)
            with await hub.reader("s") as reader:
                await reader.next()
            await hub.forget("s")
            stop.set()
            while hub._generations:
                await hub._generations.changed.wait()
            with pytest.raises(rs.StreamUnknown):
                await hub.state("s")

    run(scenario)


def test_a_stream_supersedes_one_that_is_no_longer_known() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            assert not (await hub.start("s", words(1), supersedes="expired")).joined

    run(scenario)


def test_the_limit_of_streams_holds_for_those_that_start_at_one_moment() -> None:
    class Slow(MemoryLog):
        async def create(self, *args: Any, **more: Any) -> Any:
            await asyncio.sleep(0.01)
            return await super().create(*args, **more)

    async def scenario() -> None:
        async with Hub(Slow(), limits=HubLimits(streams=3)) as hub:
            answers = await asyncio.gather(*(hub.start(str(n), words(9, 0.01)) for n in range(5)), return_exceptions=True)
            assert [type(answer) for answer in answers].count(rs.LimitReached) == 2
            assert len(hub._generations) == 3
            # Who posts again what runs already, joins it.
            assert (await hub.start("0", words(1))).joined
            with pytest.raises(rs.LimitReached):
                await hub.start("5", words(1))
            await read_all(hub, "0")

    run(scenario)


@pytest.mark.parametrize("per", ["readers", "readers_per_stream"])
def test_the_limits_of_readers(per: str) -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(), limits=HubLimits(**{per: 2})) as hub:
            await hub.start("s", words(3))
            with await hub.reader("s"):
                with await hub.reader("s"):
                    with pytest.raises(rs.LimitReached):
                        await hub.reader("s")
                with await hub.reader("s"):
                    pass

    run(scenario)


def test_what_was_unknown_a_moment_ago_is_read_when_it_is_there() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as one, Hub(log) as two:
            await one.start("s", words(10_000, 0.001))
            with await two.reader("s") as reader:
                await reader.next()
                await one.forget("s")
                # The reader has not looked: the copy of this process is still there, and marked as gone.
                await asyncio.sleep(0.02)
                await one.start("s", words(2))
                body, other = await read_all(two, "s")
                assert data_of(body) == ["word 0", "word 1"]
                assert other.ending == Ending(outcome=rs.Outcome.COMPLETED)

    run(scenario)


def test_a_hub_that_was_closed_serves_nobody() -> None:
    async def scenario() -> None:
        hub = Hub(MemoryLog())
        async with hub:
            await hub.start("s", words(1))
        before = len(asyncio.all_tasks())
        with pytest.raises(RuntimeError, match="closed"):
            await hub.reader("s")
        with pytest.raises(RuntimeError, match="closed"):
            await hub.start("t", words(1))
        assert len(asyncio.all_tasks()) == before

    run(scenario)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "drained"])
def test_a_start_that_meets_the_shutdown_leaves_nothing(close: bool) -> None:
    class Slow(MemoryLog):
        async def create(self, *args: Any, **more: Any) -> Any:
            answer = await super().create(*args, **more)
            await asyncio.sleep(0.05)
            return answer

    async def scenario() -> None:
        log = Slow()
        hub = Hub(log)
        await hub.__aenter__()
        starting = asyncio.create_task(hub.start("s", words(10_000, 0.001)))
        await asyncio.sleep(0.01)
        await (hub.aclose() if close else hub.drain(timeout=0.0, spread=0.0))
        with pytest.raises(rs.HubDraining):
            await starting
        await hub.aclose()
        async with Hub(log) as next_one:
            assert not (await next_one.start("s", words(2))).joined
        assert len(asyncio.all_tasks()) == 1

    run(scenario)


def test_who_leaves_while_his_stream_is_created_leaves_it_running() -> None:
    class Slow(MemoryLog):
        async def create(self, *args: Any, **more: Any) -> Any:
            answer = await super().create(*args, **more)
            await asyncio.sleep(0.05)
            return answer

    async def scenario() -> None:
        async with Hub(Slow()) as hub:
            starting = asyncio.create_task(hub.start("s", words(3)))
            await asyncio.sleep(0.01)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            body, reader = await read_all(hub, "s")
            assert len(data_of(body)) == 3 and reader.ending == Ending(outcome=rs.Outcome.COMPLETED)

    run(scenario)


def test_what_cannot_be_a_producer_is_refused_before_anything_is_created() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def agent(gen: Generation | None = None) -> None:
                pass

            for wrong in (agent(), "text", None):
                with pytest.raises(TypeError, match="a producer must be"):
                    await hub.start("s", wrong)  # type: ignore[arg-type]
            with pytest.raises(rs.StreamUnknown):
                await hub.state("s")

    run(scenario)


def test_a_producer_with_defaults_keeps_them() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            for n in range(3):
                await hub.start(str(n), lambda count=n + 1: words(count))
            for n in range(3):
                assert len(data_of((await read_all(hub, str(n)))[0])) == n + 1

    run(scenario)


def test_a_stream_that_failed_before_its_first_event_is_run_by_who_starts_it_again() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        head = Head(content_type="text/event-stream", framing="sse")
        await log.create("s", head, lease=0.05)
        async with Hub(log, lease=0.3, poll=0.05, on_lost="restart_if_empty") as hub:
            # A reader notices that nobody produces it.
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")
            assert not (await hub.start("s", words(2))).joined
            assert len(data_of((await read_all(hub, "s"))[0])) == 2

    run(scenario)


def test_the_text_so_far_is_had_in_one_piece_at_any_moment() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        async with Hub(MemoryLog()) as hub:

            async def agent(gen: Generation) -> None:
                for word in ("a ", "wrong ", "start"):
                    await gen.text(word)
                await gen.send("not text", event="step")
                await gen.reset()
                await gen.text("Hel")
                await gen.flush()
                gate.set()
                await gen.wait_steered()
                await gen.text("lo")

            await hub.start("s", agent)
            await gate.wait()
            half = await hub.message("s")
            assert (half.text, half.cursor.n, half.ending) == ("Hel", 6, None)
            await hub.say("s", "go on")
            rest, _ = await read_all(hub, "s", half.cursor)
            assert data_of(rest) == ['{"text":"lo"}']
            whole, again = await asyncio.gather(hub.message("s"), hub.message("s"))
            assert whole == again
            assert (whole.text, whole.cursor.n, whole.ending) == ("Hello", 7, Ending(outcome=rs.Outcome.COMPLETED))
            with pytest.raises(rs.StreamUnknown):
                await hub.message("t")

    run(scenario)


def test_a_protocol_knows_the_text_in_the_events_of_its_provider() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(), text_of=rs.protocols.OpenAIChat()) as hub:

            async def chunks() -> AsyncIterator[dict[str, Any]]:
                for word in ("Hel", "lo"):
                    yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": word}}]}

            await hub.start("s", chunks())
            await read_all(hub, "s")
            assert (await hub.message("s")).text == "Hello"

    run(scenario)


def test_no_message_stands_in_the_way_of_a_cancel_from_another_process() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as hub, Hub(log) as other:

            async def waits(gen: Generation) -> None:
                while not gen.cancelled:
                    await gen.wait_steered(0.01)

            await hub.start("s", waits)
            await other.say("s", "x", mid="cancel")
            assert await other.cancel("s", "enough")
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="enough")

    run(scenario)


def test_half_a_character_is_carried_in_json() -> None:
    """Models that write in tokens cut an emoji in two, and their JSON says so."""

    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:

            async def agent(gen: Generation) -> None:
                gen.text("smile \ud83d")
                gen.text("\ude00 é")
                with pytest.raises(ValueError):
                    await gen.send("\ud83d")

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED)
            text = "".join(json.loads(data)["text"] for data in data_of(body))
            assert text.encode("utf-16", "surrogatepass").decode("utf-16") == "smile 😀 é"

    run(scenario)


def test_a_thousand_streams_at_once_and_a_reader_that_never_reads() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as hub:
            for n in range(1000):
                await hub.start(str(n), words(20, 0.001))
            lazy = await hub.reader("0")
            bodies = await asyncio.gather(*(read_all(hub, str(n)) for n in range(1000)))
            for body, reader in bodies:
                assert data_of(body) == [f"word {each}" for each in range(20)]
                assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED)
            assert await lazy.next()
            lazy.close()
            while hub._generations:
                await hub._generations.changed.wait()
        assert len(asyncio.all_tasks()) == 1

    run(scenario)


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_of_an_event_and_of_a_stream(over: int) -> None:
    size = len(b"data: \n\n")

    async def scenario() -> None:
        async with Hub(MemoryLog(), limits=HubLimits(event_bytes=100, stream_bytes=250)) as hub:

            async def event(gen: Generation) -> None:
                await gen.send("x" * (100 - size + over))

            async def stream(gen: Generation) -> None:
                await gen.send("x" * (100 - size))
                await gen.send("x" * (100 - size))
                await gen.send("x" * (50 - size + over))

            for name, run, held in (("event", event, 100), ("stream", stream, 250)):
                await hub.start(name, run)
                _, reader = await read_all(hub, name)
                state = await hub.state(name)
                if over:
                    assert reader.ending.outcome is rs.Outcome.FAILED and reader.ending.reason == "too_long"
                    assert state.b == (0 if name == "event" else 200)
                else:
                    assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED)
                    assert state.b == held

    run(scenario)


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_of_what_waits_for_the_log(over: int) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()

        class Slow(MemoryLog):
            async def append(self, batch: Any) -> Any:
                await gate.wait()
                return await super().append(batch)

        async with Hub(Slow(), limits=HubLimits(pending_bytes=100)) as hub:
            sent = asyncio.Event()

            async def agent(gen: Generation) -> None:
                await gen.send("x" * (100 - len(b"data: \n\n") + over))
                sent.set()

            await hub.start("s", agent)
            await asyncio.sleep(0.05)
            assert sent.is_set() is not bool(over)
            gate.set()
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.COMPLETED) and sent.is_set()

    run(scenario)
