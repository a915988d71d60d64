"""The log fails under a living producer, in every way a log can: readers get every event once, or are told the truth."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Ending, Generation, Hub, HubLimits, MemoryLog
from resumable_stream.server.log import Append, Bell, Control, Gone, Head, Message, Span, SpanRefused, Unknown, Writer
from resumable_stream.server.memory import _size_of
from resumable_stream.testing.faulty_log import FaultyLog

from .test_hub import data_of, read_all, words
from .virtual import run

COMPLETED = Ending(outcome=rs.Outcome.COMPLETED)


class Moody(MemoryLog):
    """
    A log that fails at random.

    `before`: the command never arrives. `after`: it does, and the reply is lost. `tail`: a failover loses the last spans.
    `all`: it comes back empty.
    """

    def __init__(self, chance: random.Random, *faults: str, p: float = 0.3) -> None:
        super().__init__()
        self.chance, self.faults, self.p = chance, faults, p
        self.hit: dict[str, int] = dict.fromkeys(faults, 0)

    async def append(self, batch: Any) -> Any:
        return await self._perhaps(super().append, batch)

    async def finish(self, *args: Any) -> Any:
        return await self._perhaps(super().finish, *args)

    async def renew(self, writers: Any) -> Any:
        return await self._perhaps(super().renew, writers)

    async def _perhaps(self, command: Any, *args: Any) -> Any:
        await asyncio.sleep(0)
        fault = self.chance.choice(self.faults) if self.chance.random() < self.p else None
        if fault is not None:
            self.hit[fault] += 1
        match fault:
            case "before":
                raise rs.LogUnavailable("the command got lost")
            case "after":
                await command(*args)
                raise rs.LogUnavailable("the reply got lost")
            case "tail":
                for stream in self._streams.values():
                    if stream.record.ending is None and stream.spans:
                        keep = self.chance.randrange(len(stream.spans))
                        lost = stream.spans[keep:]
                        del stream.spans[keep:]
                        self._grow(stream, -sum(map(_size_of, lost)), spans=True)
                        record = stream.record
                        record.c = keep
                        record.n -= sum(len(span.lengths) for span in lost)
                        record.b -= sum(len(span.data) for span in lost)
            case "all":
                for key in [key for key, stream in self._streams.items() if stream.record.ending is None]:
                    await self.delete(key)
        return await command(*args)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server._backoff.FIRST_RETRY", 0.001)
    monkeypatch.setattr("resumable_stream.server._backoff.LAST_RETRY", 0.002)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("faults", ["before", "after", "tail", "all", "before after tail all"])
def test_a_living_producer_mends_the_log(faults: str, seed: int) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        log = Moody(chance, *faults.split())
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                for n in range(60):
                    await gen.send(f"word {n}")
                    if chance.random() < 0.5:
                        await asyncio.sleep(0)
                    if n % 7 == 0:
                        await gen.flush(note=str(n))

            stream = await hub.start("s", agent)
            readers = [asyncio.create_task(read_all(hub, "s")) for _ in range(3)]
            await asyncio.sleep(0.005)
            late = await read_all(hub, "s")
            for body, reader in [late, *[await task for task in readers]]:
                assert data_of(body) == [f"word {n}" for n in range(60)]
                assert reader.ending == COMPLETED
                assert [event.id for event in SSEDecoder().feed(body)] == [f"{stream.epoch}.{n}" for n in range(1, 61)]
            # The log itself has it too.
            assert (await log.read("s")).n == 60  # type: ignore[union-attr]
            assert sum(log.hit.values()) > 0

    run(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_readers_of_another_process_get_every_event_once(seed: int) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        log = Moody(chance, "before", "after", "tail", p=0.2)
        bells = FaultyLog(log, seed=seed)
        async with Hub(log, flush=0.0) as one, Hub(bells, poll=0.05, lease=5.0) as two:
            await one.start("s", words(100, 0.001))
            bodies = await asyncio.gather(*(read_all(two, "s") for _ in range(5)))
            for body, reader in bodies:
                assert data_of(body) == [f"word {n}" for n in range(100)]
                assert reader.ending == COMPLETED

    run(scenario)


def test_a_log_that_stays_away_ends_the_stream_here_and_says_why() -> None:
    async def scenario() -> None:
        log = Moody(random.Random(1), "before", p=1.0)
        async with Hub(log, log_timeout=0.1) as hub:
            await hub.start("s", words(10_000, 0.001))
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")

    run(scenario)


def test_a_producer_that_was_superseded_writes_nothing_more() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, lease=0.05) as hub:
            stopped = asyncio.Event()

            async def agent(gen: Generation) -> None:
                try:
                    while True:
                        await gen.send("mine")
                        await asyncio.sleep(0.01)
                finally:
                    stopped.set()

            await hub.start("s", agent)
            await asyncio.sleep(0.03)
            # As after a pause: nobody renewed, and somebody else took it.
            log._streams["s"].record.until = 0.0
            other = await log.claim("s", lease=60.0)
            assert isinstance(other, Writer) and other.handover is not None
            n = other.handover.n
            await stopped.wait()
            await asyncio.sleep(0.1)
            page = await log.read("s")
            assert page.n == n  # type: ignore[union-attr]
            await log.finish(other, n, COMPLETED)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["mine"] * n and reader.ending == COMPLETED

    run(scenario)


def test_a_note_that_was_lost_with_its_events_is_stored_again() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        gate = asyncio.Event()
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                await gen.send("two")
                await gen.flush(note="at two")
                stream = log._streams["s"]
                stream.record.n, stream.record.b, stream.record.c = 1, len(stream.spans[0].data), 1
                stream.record.note, stream.record.note_n = None, 0
                del stream.spans[1:]
                await gen.send("three")
                await gen.flush()
                gate.set()
                await asyncio.Event().wait()

            await hub.start("s", agent)
            await gate.wait()
            record = log._streams["s"].record
            assert (record.n, record.note, record.note_n) == (3, "at two", 2)

    run(scenario)


@pytest.mark.parametrize("at", range(4))
def test_a_message_is_handed_on_until_an_event_shows_that_it_was_applied(at: int) -> None:
    """The first producer dies at each moment around a message; the second one applies what the first did not."""

    async def scenario() -> None:
        log = MemoryLog()

        async def agent(gen: Generation) -> None:
            first = gen.resumed_from is None
            await gen.send("hello")
            if first and at == 0:
                await asyncio.Event().wait()
            while True:
                for message in await gen.wait_steered():
                    if first and at == 1:
                        await asyncio.Event().wait()
                    await gen.send(message.data, event="steered")
                    if first and at == 2:
                        await gen.flush()
                        await asyncio.Event().wait()
                    if message.data == "last":
                        return
                    if first and at == 3:
                        await asyncio.Event().wait()

        one = Hub(log, lease=0.3, on_lost=agent)
        await one.__aenter__()
        await one.start("s", agent)
        await one.say("s", "turn left", mid="1")
        await asyncio.sleep(0.05)
        async with Hub(log, lease=0.3, poll=0.05, on_lost=agent) as two:
            await one.aclose()
            await two.say("s", "last", mid="2")
            body, reader = await read_all(two, "s")
            steered = [event.data for event in SSEDecoder().feed(body) if event.event == "steered"]
            assert steered == ["turn left", "last"]
            assert reader.ending == COMPLETED

    run(scenario)


class Scripted(MemoryLog):
    """A log of which a test decides what each call meets: see `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.on: dict[str, Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]] = {}
        """Name of a method → a function that is given the call, to be made or not."""
        self.calls: Counter[str] = Counter()

    async def _meet(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        self.calls[name] += 1
        fault = self.on.get(name)
        return await (call() if fault is None else fault(call))

    async def create(self, *args: Any, **more: Any) -> Any:
        return await self._meet("create", lambda: MemoryLog.create(self, *args, **more))

    async def append(self, batch: Any) -> Any:
        return await self._meet("append", lambda: MemoryLog.append(self, batch))

    async def restore(self, *args: Any, **more: Any) -> Any:
        return await self._meet("restore", lambda: MemoryLog.restore(self, *args, **more))

    async def finish(self, *args: Any, **more: Any) -> Any:
        return await self._meet("finish", lambda: MemoryLog.finish(self, *args, **more))

    async def read(self, *args: Any, **more: Any) -> Any:
        return await self._meet("read", lambda: MemoryLog.read(self, *args, **more))

    async def renew(self, writers: Any) -> Any:
        return await self._meet("renew", lambda: MemoryLog.renew(self, writers))

    async def claim(self, *args: Any, **more: Any) -> Any:
        return await self._meet("claim", lambda: MemoryLog.claim(self, *args, **more))

    async def inbox(self, *args: Any) -> Any:
        return await self._meet("inbox", lambda: MemoryLog.inbox(self, *args))

    async def orphans(self, *args: Any) -> Any:
        return await self._meet("orphans", lambda: MemoryLog.orphans(self, *args))

    def bells(self) -> Any:
        bells = super().bells()
        add = bells.add
        bells.add = lambda key: self._meet("add", lambda: add(key))  # type: ignore[method-assign]
        return bells


async def away(call: Any) -> Any:
    raise rs.LogUnavailable("the log is away")


def once(fault: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """This fault for the first call, and none for the others."""
    left = [fault]

    async def meet(call: Any) -> Any:
        return await (left.pop()(call) if left else call())

    return meet


async def reply_lost(call: Any) -> Any:
    await call()
    raise rs.LogUnavailable("the reply got lost")


def after(event: asyncio.Event, *, late: bool = False) -> Callable[[Any], Awaitable[Any]]:
    """The call is made when the event has come; `late`: it is made at once, and its reply comes then."""

    async def meet(call: Any) -> Any:
        if late:
            answer = await call()
            await event.wait()
            return answer
        await event.wait()
        return await call()

    return meet


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_is_written_again_although_the_reply_got_lost(whole: bool) -> None:
    async def scenario() -> None:
        log = Scripted()
        log.on["restore"] = once(reply_lost)
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                await gen.send("two")
                await gen.flush()
                if not whole:
                    mirror = hub._following.get("s").follower.mirror
                    assert mirror is not None and mirror.trim(12)
                await log.delete("s")
                await gen.send("three")
                await gen.flush()
                await gen.send("four")

            stream = await hub.start("s", agent)
            await until(lambda: "s" not in hub._generations)
            state = await hub.state("s")
            assert state.ending == COMPLETED and state.n == 4
            assert (state.epoch == stream.epoch) is whole
            assert log.calls["restore"] == 2

    run(scenario)


@pytest.mark.parametrize("late", [True, False], ids=["reply late", "sent late"])
def test_an_append_that_crosses_a_repair_fences_nobody(late: bool) -> None:
    """An append of the old writer is under way while the stream is written again: its answer says nothing of the new writer."""

    async def scenario() -> None:
        log = Scripted()
        repaired, sent = asyncio.Event(), asyncio.Event()

        async def restoring(call: Any) -> Any:
            sent.set()
            await asyncio.sleep(0.05)
            answer = await call()
            asyncio.get_running_loop().call_later(0.05, repaired.set)
            return answer

        log.on["restore"] = restoring
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                await log.delete("s")
                gen_lost = gen.send("two")
                await gen_lost
                await sent.wait()
                log.on["append"] = once(after(repaired, late=late))
                await gen.send("three")
                await gen.flush()
                await gen.send("four")

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["one", "two", "three", "four"]
            assert reader.ending == COMPLETED
            assert (await hub.state("s")).n == 4
            assert log.calls["restore"] == 1

    run(scenario)


@pytest.mark.parametrize("late", [True, False], ids=["reply late", "sent late"])
@pytest.mark.parametrize("verb", ["renew", "finish"])
def test_a_write_that_crosses_a_repair_fences_nobody(verb: str, late: bool) -> None:
    async def scenario() -> None:
        log = Scripted()
        repaired = asyncio.Event()
        gone = asyncio.Event()

        async def restoring(call: Any) -> Any:
            answer = await call()
            asyncio.get_running_loop().call_later(0.05, repaired.set)
            return answer

        log.on["restore"] = restoring
        async with Hub(log, flush=0.0, lease=0.3) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                await log.delete("s")
                if verb == "renew":
                    # The lease is renewed in vain while an append finds out.
                    log.on["renew"] = once(after(repaired, late=late))
                    await until(lambda: log.calls["renew"])
                    await gen.send("two")
                    await gen.flush()
                    await asyncio.sleep(0.2)
                else:
                    # The stream is finished in vain while a renewal finds out.
                    log.on["finish"] = once(after(repaired, late=late))
                gone.set()

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == (["one", "two"] if verb == "renew" else ["one"])
            assert reader.ending == COMPLETED and (await hub.state("s")).ending == COMPLETED
            assert log.calls["restore"] == 1

    run(scenario)


def test_a_log_that_stays_away_while_a_stream_is_written_again() -> None:
    async def scenario() -> None:
        log = Scripted()
        log.on["restore"] = away
        async with Hub(log, flush=0.0, log_timeout=0.2) as hub:
            stopped = asyncio.Event()

            async def agent(gen: Generation) -> None:
                try:
                    await gen.send("one")
                    await gen.flush()
                    await log.delete("s")
                    await gen.send("two")
                    await asyncio.Event().wait()
                finally:
                    stopped.set()

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["one"]
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")
            await stopped.wait()

    run(scenario)


@pytest.mark.parametrize("late", [True, False], ids=["reply late", "sent late"])
def test_a_note_that_crosses_a_repair_is_stored(late: bool) -> None:
    """A renewal finds that the stream is lost while a note is under way."""

    async def scenario() -> None:
        log = Scripted()
        repaired = asyncio.Event()

        async def restoring(call: Any) -> Any:
            answer = await call()
            asyncio.get_running_loop().call_later(0.05, repaired.set)
            return answer

        log.on["restore"] = restoring
        async with Hub(log, flush=0.0, lease=0.3) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                log.on["append"] = once(after(repaired, late=late))
                asyncio.get_running_loop().call_later(0.01, lambda: asyncio.ensure_future(log.delete("s")))
                await gen.flush(note="at one")

            await hub.start("s", agent)
            other = await hub.start("other", words(3))
            _, reader = await read_all(hub, "s")
            assert reader.ending == COMPLETED
            assert log._streams["s"].record.note == "at one"
            assert (await hub.state("other")).ending == COMPLETED and not other.joined

    run(scenario)


def test_a_span_that_the_log_refuses_ends_the_stream() -> None:
    async def scenario() -> None:
        log = Scripted()

        async def refused(call: Any) -> Any:
            raise SpanRefused("the bytes do not continue those of the log", stream_id="s")

        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await gen.flush()
                log.on["append"] = refused
                await gen.send("two")
                await asyncio.Event().wait()

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            ending = Ending(outcome=rs.Outcome.FAILED, reason="producer_error", error="SpanRefused")
            assert data_of(body) == ["one"] and reader.ending == ending
            await until(lambda: "s" not in hub._generations)
            assert (await hub.state("s")).ending == ending

    run(scenario)


def test_a_log_that_breaks_its_promises_at_the_end_leaves_no_reader_waiting() -> None:
    async def scenario() -> None:
        log = Scripted()

        async def broken(call: Any) -> Any:
            raise RuntimeError("a fault in the log")

        log.on["finish"] = broken
        async with Hub(log, flush=0.0, log_timeout=0.1) as hub:
            await hub.start("s", words(3))
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["word 0", "word 1", "word 2"]
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")

    run(scenario)


def test_readers_here_go_on_when_another_process_continues_what_this_one_released() -> None:
    async def scenario() -> None:
        log = MemoryLog()

        async def count(gen: Generation) -> None:
            for n in range(gen.n, 20):
                await gen.send(str(n))
                await gen.flush()
                if n == 9 and gen.resumed_from is None:
                    await asyncio.Event().wait()

        async with Hub(log, lease=5.0, poll=0.1, on_lost=count) as one, Hub(log, lease=5.0, poll=0.1, on_lost=count) as two:
            await one.start("s", count)
            reading = asyncio.create_task(read_all(one, "s"))
            await until(lambda: "s" in one._generations and one._generations._running["s"].generation.acked == 10)
            await asyncio.sleep(0.01)
            # Without sending the readers away.
            await one._generations.stop()
            body, reader = await reading
            assert data_of(body) == [str(n) for n in range(20)]
            assert reader.ending == COMPLETED
            assert not two._generations

    run(scenario)


def test_a_reader_one_event_ahead_of_a_log_that_ended_is_told_that_it_is_gone() -> None:
    """A failover lost the last event, and its producer with it: the ending has the number of the event that was lost."""

    async def scenario() -> None:
        log = MemoryLog()
        writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=0.3)
        assert isinstance(writer, Writer)
        await log.append([(writer, Span(n=1, b=11, lengths=(11,), data=b"data: one\n\n"), None)])
        await log.append([(writer, Span(n=2, b=22, lengths=(11,), data=b"data: two\n\n"), None)])
        async with Hub(log, lease=0.3, poll=0.05) as hub:
            with await hub.reader("s") as reader:
                chunk = await reader.next()
                assert chunk is not None and data_of(chunk) == ["one", "two"]
                stream = log._streams["s"]
                del stream.spans[1:]
                stream.record.n, stream.record.b, stream.record.c = 1, 11, 1
                await log.finish(writer, 1, Ending(outcome=rs.Outcome.FAILED, reason="producer_lost"))
                assert await reader.next() == b""
                assert reader.ending is None
                assert isinstance(reader.gone, Gone) and reader.gone.why == "went_back"

    run(scenario)


class Forgetful(MemoryLog):
    """
    A log that loses its tail without a trace.

    Args:
        knows: It knows that it may have, as after a failover. A log of the caller's may not.
    """

    def __init__(self, *, knows: bool) -> None:
        super().__init__()
        self.knows = knows

    def lose(self, key: str, keep: int) -> None:
        stream = self._streams[key]
        lost = stream.spans[keep:]
        del stream.spans[keep:]
        self._grow(stream, -sum(map(_size_of, lost)), spans=True)
        record = stream.record
        record.n, record.b, record.c = keep, record.b - sum(len(span.data) for span in lost), keep

    async def claim(self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None) -> Any:
        stream = self._streams.get(stream_id)
        if not (self.knows and go_on and stream) or stream.record.until > self._clock():
            return await super().claim(stream_id, lease=lease, go_on=go_on, claimant=claimant)
        writer = stream.record.claim(
            stream_id, lease=lease, now=self._clock(), entries=stream.entries, epoch=self._new_epoch(stream), doubtful=True
        )
        self._ring(stream_id, stream.record, None)
        return writer


async def five_events(log: MemoryLog, *, lease: float = 0.3) -> Writer:
    """A stream whose producer has written `one 1` to `one 5`, and is dead by now."""
    writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=lease)
    assert isinstance(writer, Writer)
    for n in range(1, 6):
        data = b"data: one %d\n\n" % n
        await log.append([(writer, Span(n=n, b=n * len(data), lengths=(len(data),), data=data), None)])
    return writer


# None, some and all of the five; every number in `make soak`.
@pytest.mark.parametrize(
    ("kept", "seen"),
    [
        pytest.param(kept, seen, marks=() if {kept, seen} <= {0, 2, 5} else pytest.mark.soak)
        for kept in range(6)
        for seen in range(6)
    ],
)
@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("on_lost", ["continue", "fail"])
def test_events_that_a_dead_producer_and_its_log_lost_are_never_replaced_under_their_numbers(
    kept: int, seen: int, knows: bool, on_lost: str
) -> None:
    """
    The producer died, the log came back with `kept` of its 5 events, and a reader of the process that takes over has `seen` some.

    What any reader has been given stays what it is. If this process has the lost events, the log gets them again: they were
    acknowledged, and are the only copy. A log that knows that it may have lost more than this process has seen begins another
    epoch, and whoever is ahead is told so. What no process has seen, and no log remembers, cannot be known by anybody.
    """

    async def scenario() -> None:
        log = Forgetful(knows=knows)
        writer = await five_events(log)
        log.lose("s", max(seen, kept))

        async def another(gen: Generation) -> None:
            assert gen.resumed_from == max(seen, kept)
            for n in range(gen.n + 1, 9):
                await gen.send(f"two {n}")

        async with Hub(log, lease=0.3, poll=0.05, on_lost=another if on_lost == "continue" else "fail") as hub:
            with await hub.reader("s") as reader:
                body = b""
                while reader.n < seen:
                    body += await reader.next() or b""
                log.lose("s", min(kept, len(log._streams["s"].spans)))
                while chunk := await reader.next():
                    body += chunk
            old = [f"one {n}" for n in range(1, max(seen, kept) + 1)]
            late, again = await read_all(hub, "s")
            if on_lost == "fail":
                assert data_of(late) == data_of(body) == old
                assert reader.ending == again.ending == Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")
                return
            whole = [*old, *(f"two {n}" for n in range(len(old) + 1, 9))]
            assert data_of(late) == whole
            assert again.ending == COMPLETED
            assert (again.cursor.epoch != writer.epoch) == knows
            if knows:
                assert isinstance(reader.gone, Gone) and reader.gone.why == "other_epoch"
                assert data_of(body) == old[: len(data_of(body))]
                for n in range(10):
                    with pytest.raises(rs.HistoryGone):
                        await hub.reader("s", Cursor(writer.epoch, n))
            else:
                assert data_of(body) == whole and reader.ending == COMPLETED

    run(scenario)


@pytest.mark.parametrize("on_lost", ["continue", "restart_if_empty"])
def test_a_log_that_is_behind_its_readers_and_cannot_be_mended_ends_honestly(on_lost: str) -> None:
    """
    This process has shown events that it no longer holds, and the log has lost them, and all before them.

    Nobody can write them again, and other events under their numbers would be taken for what follows them. So the stream fails,
    and whoever is ahead is told that it is gone.
    """

    async def scenario() -> None:
        log = Forgetful(knows=False)
        writer = await five_events(log)
        ran = []

        async def another(gen: Generation) -> None:
            ran.append(gen.resumed_from)

        lost: Any = another if on_lost == "continue" else on_lost
        async with Hub(log, lease=0.3, poll=60.0, on_lost=lost) as hub:
            with await hub.reader("s") as reader:
                while reader.n < 5:
                    await reader.next()
                mirror = hub._following.get("s").follower.mirror
                assert mirror is not None
                mirror.trim(0)
                log.lose("s", 0)
                await until(lambda: log._streams["s"].record.until < log._clock())
                if on_lost == "continue":
                    hub._generations.notice_orphan("s")
                else:
                    assert (await hub.start("s", another)).joined
                await until(lambda: log._streams["s"].record.ending is not None)
                hub._following.do(hub._following.get("s"), hub._following.get("s").follower.poll())
                assert await reader.next() == b""
                assert isinstance(reader.gone, Gone) and reader.gone.why == "went_back"
            assert not ran
            assert log._streams["s"].record.ending == Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")
            with pytest.raises(rs.HistoryGone):
                await hub.reader("s", Cursor(writer.epoch, 5))

    run(scenario)


def test_a_takeover_that_is_taken_over_gives_nothing_back() -> None:
    """The log gets lost events again under the token of the claim, so somebody who has claimed meanwhile is left alone."""

    async def scenario() -> None:
        log = Forgetful(knows=False)
        await five_events(log)

        async def another(gen: Generation) -> None:
            raise AssertionError("the stream is somebody else's")

        async with Hub(log, lease=0.3, poll=60.0, on_lost=another) as hub:
            with await hub.reader("s") as reader:
                while reader.n < 5:
                    await reader.next()
                log.lose("s", 2)
                log._streams["s"].record.until = 0.0
                claim, other = log.claim, []

                async def twice(*args: Any, **more: Any) -> Any:
                    verdict = await claim(*args, **more)
                    log._streams["s"].record.until = 0.0
                    other.append(await claim("s", lease=60.0))
                    return verdict

                log.claim = twice  # type: ignore[method-assign]
                await hub._generations._take_over("s")
                assert not hub._generations
                record = log._streams["s"].record
                assert (record.token, record.n, record.ending) == (other[0].token, 2, None)

    run(scenario)


def test_a_fenced_producer_that_lingers_does_not_take_its_successor_along() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        linger = asyncio.Event()
        async with Hub(log, lease=0.3, flush=0.0) as hub:

            async def stubborn(gen: Generation) -> None:
                try:
                    await gen.send("old")
                    await asyncio.Event().wait()
                finally:
                    await linger.wait()

            await hub.start("s", stubborn)
            with await hub.reader("s") as reader:
                await reader.next()
            log._streams["s"].record.until = 0.0
            other = await log.claim("s", lease=60.0)
            assert isinstance(other, Writer)
            await log.finish(other, 1, Ending(outcome=rs.Outcome.FAILED, reason="producer_lost"))
            old = hub._generations._running["s"]
            await until(lambda: old.fenced)

            go = asyncio.Event()

            async def fresh() -> AsyncIterator[str]:
                yield "new"
                await go.wait()
                yield "newer"

            assert not (await hub.start("s", fresh(), again="failed")).joined
            with await hub.reader("s") as reader:
                assert await reader.next()
                linger.set()
                await asyncio.wait([old.task])
                assert "s" in hub._generations
                go.set()
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["new", "newer"] and reader.ending == COMPLETED

    run(scenario)


def test_what_another_process_started_again_is_read_here_from_its_new_log() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        deaf = FaultyLog(log, lose=1.0, double=0.0, swap=0.0)
        async with Hub(log) as one, Hub(deaf, poll=0.2) as two:

            async def broken() -> AsyncIterator[str]:
                yield "old"
                raise RuntimeError

            await one.start("s", broken())
            assert data_of((await read_all(two, "s"))[0]) == ["old"]
            await one.start("s", words(2), again="failed")
            assert (await two.start("s", words(2))).joined
            body, reader = await read_all(two, "s")
            assert data_of(body) == ["word 0", "word 1"] and reader.ending == COMPLETED

    run(scenario)


def test_a_log_that_was_away_long_ago_is_given_its_time_again() -> None:
    async def scenario() -> None:
        log = Scripted()
        async with Hub(log, flush=0.0, log_timeout=0.1) as hub:
            log.on["append"] = away
            await hub.start("first", words(1))
            _, reader = await read_all(hub, "first")
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")
            await asyncio.sleep(0.15)
            # One blip much later is not the same absence.
            log.on["append"] = once(away)
            await hub.start("second", words(3))
            _, reader = await read_all(hub, "second")
            assert reader.ending == COMPLETED

    run(scenario)


def test_many_large_streams_do_not_starve_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server.flusher._BATCH_BYTES", 3000)

    async def scenario() -> None:
        log = Scripted()

        async def slow(call: Any) -> Any:
            await asyncio.sleep(0.002)
            return await call()

        log.on["append"] = slow
        async with Hub(log, flush=0.0, limits=HubLimits(pending_bytes=5000)) as hub:

            async def large() -> AsyncIterator[str]:
                while True:
                    yield "x" * 1000

            for n in range(8):
                await hub.start(f"large {n}".replace(" ", "-"), large())
            await asyncio.sleep(0.02)
            await hub.start("small", words(3))
            body, _ = await asyncio.wait_for(read_all(hub, "small"), 5.0)
            assert len(data_of(body)) == 3

    run(scenario)


def test_a_process_that_was_cut_off_lets_living_producers_come_back_before_it_claims() -> None:
    async def scenario() -> None:
        log, cut = MemoryLog(), Scripted()
        cut._streams, cut._bells = log._streams, log._bells
        async with Hub(log, flush=0.0, lease=60.0) as one, Hub(cut, poll=0.02, lease=10.0) as two:

            async def agent(gen: Generation) -> None:
                await gen.send("one")
                await asyncio.sleep(0.5)
                await gen.send("two")

            await one.start("s", agent)
            with await two.reader("s") as reader:
                await reader.next()
                cut.on["read"] = away
                await until(lambda: cut.calls["read"] > 3)
                # The log was away for everybody: the lease is over, although the producer lives.
                log._streams["s"].record.until = 0.0
                cut.on.clear()
                chunks = [await reader.next(), await reader.next()]
                assert data_of(chunks[0] or b"") == ["two"] and chunks[1] == b""
                assert reader.ending == COMPLETED

    run(scenario)


@pytest.mark.parametrize("verb", ["read", "renew", "claim", "inbox", "orphans", "add"])
def test_a_fault_in_the_log_stops_no_task_of_the_hub(verb: str) -> None:
    async def scenario() -> None:
        log = Scripted()

        async def broken(call: Any) -> Any:
            raise RuntimeError("a fault in the log")

        head = Head(content_type="text/event-stream", framing="sse")
        await log.create("lost", head, lease=0.01)
        log.on[verb] = once(broken)
        async with Hub(log, flush=0.0, lease=0.15, poll=0.05) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("ready")
                for message in await gen.wait_steered():
                    await gen.send(message.data)
                await asyncio.sleep(0.5)
                await gen.send("done")

            await hub.start("s", agent)
            reading = asyncio.create_task(read_all(hub, "s"))
            await asyncio.sleep(0.01)
            await hub.say("s", "turn left")
            body, reader = await reading
            assert data_of(body) == ["ready", "turn left", "done"]
            assert reader.ending == COMPLETED
            for _ in range(100):
                try:
                    _, reader = await read_all(hub, "lost")
                    break
                except rs.LogUnavailable:
                    await asyncio.sleep(0.02)
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="producer_lost")
            await until(lambda: log.calls[verb] > 1)

    run(scenario)


def test_a_message_that_comes_while_the_inbox_is_read_is_not_forgotten() -> None:
    async def scenario() -> None:
        log = Scripted()
        said = asyncio.Event()

        async def slow(call: Any) -> Any:
            messages = await call()
            if not messages:
                await said.wait()
            return messages

        log.on["inbox"] = slow
        async with Hub(log, flush=0.0, lease=60.0) as hub:

            async def agent(gen: Generation) -> None:
                await gen.send("ready")
                got = 0
                while got < 2:
                    for message in await gen.wait_steered():
                        got += 1
                        await gen.send(message.data)

            await hub.start("s", agent)
            await hub.say("s", "one")
            await until(lambda: log.calls["inbox"] == 2)
            await hub.say("s", "two")
            said.set()
            body, _ = await asyncio.wait_for(read_all(hub, "s"), 5.0)
            assert data_of(body) == ["ready", "one", "two"]

    run(scenario)


def hangs(how: str, at: int, late: list[asyncio.Task[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """
    The call number `at` never returns.

    Args:
        how: `"never"`: nothing is done. `"done"`: it was done, and only the reply hangs. `"late"`: it is done after the caller
            has given up, cancelled or not, as by a thread that hung on a disk.
        at: From 1.
        late: Takes the calls that are done late.
    """
    count = 0

    async def meet(call: Any) -> Any:
        nonlocal count
        count += 1
        if count != at:
            return await call()
        if how == "done":
            await call()

        async def later() -> Any:
            await asyncio.sleep(0.2)
            return await call()

        if how == "late":
            late.append(asyncio.get_running_loop().create_task(later()))
        await asyncio.Event().wait()
        return None

    return meet


# Each way to hang with the first call of each kind, and with one that follows; with every call in `make soak`.
@pytest.mark.parametrize(
    ("verb", "how", "at"),
    [
        pytest.param(verb, how, at, marks=() if at in (1, 2 + (row + 2 * column) % 6) else pytest.mark.soak)
        for row, verb in enumerate(("append", "finish", "renew", "read", "inbox", "restore", "add"))
        for column, how in enumerate(("never", "done", "late"))
        for at in range(1, 8)
    ],
)
def test_a_call_of_the_log_that_never_returns_is_made_again(verb: str, how: str, at: int) -> None:
    """
    A log that hangs is a log that is away: what was sent is kept, and sent again after `call_timeout`.

    A call that is done late, after others of the same stream, changes nothing: a span that the log is past is known, and what
    comes under the token of before is refused. So every event is there once, whichever call hangs and whatever becomes of it.
    """

    async def scenario() -> None:
        log, late = Scripted(), list[asyncio.Task[Any]]()
        log.on[verb] = hangs(how, at, late)
        async with Hub(log, flush=0.0, lease=0.15, poll=0.05, call_timeout=0.05) as hub, Hub(log, poll=0.05) as other:

            async def agent(gen: Generation) -> None:
                for n in range(8):
                    await gen.send(f"word {n}")
                    await gen.flush()
                    if n == 3:
                        for message in await gen.wait_steered(2.0):
                            await gen.send(message.data)
                    if n == 5:
                        # The log loses the stream, which is written again.
                        await log.delete("s")
                    await asyncio.sleep(0.02)

            await hub.start("s", agent)
            reading = asyncio.create_task(read_all(hub, "s"))
            await until(lambda: "s" in hub._generations and hub._generations._running["s"].generation.acked >= 4)
            await log.say("s", Message(id="1", data="turn left"))
            hub._generations.hear_control("s", Control(1))
            body, reader = await reading
            await asyncio.gather(*late)
            expected = [*(f"word {n}" for n in range(4)), "turn left", *(f"word {n}" for n in range(4, 8))]
            assert data_of(body) == expected and reader.ending == COMPLETED
            # What a process finds that has seen nothing of all this.
            log.on.clear()
            body, reader = await read_all(other, "s")
            assert data_of(body) == expected and reader.ending == COMPLETED

    run(scenario)


def test_a_log_that_hangs_for_good_ends_the_stream_here_and_says_why() -> None:
    """The time counts from when the log was asked: it is away for `log_timeout`, and not for one hung call longer."""

    async def scenario() -> None:
        log = Scripted()

        async def hang(call: Any) -> Any:
            await asyncio.Event().wait()

        log.on["append"] = hang
        async with Hub(log, log_timeout=0.3, call_timeout=0.2) as hub:
            await hub.start("s", words(10_000, 0.001))
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.FAILED, reason="log_unavailable")
            assert log.calls["append"] == 2

    run(scenario)


@pytest.mark.parametrize("how", ["never", "done", "late"])
def test_a_start_that_hangs_in_the_log_is_refused_in_time(how: str) -> None:
    """Whoever starts gets `LogUnavailable`, runs nothing, and may ask again; it runs once, also if it was done after all."""

    async def scenario() -> None:
        log, late, ran = Scripted(), list[asyncio.Task[Any]](), []
        log.on["create"] = hangs(how, 1, late)

        async def agent(gen: Generation) -> None:
            ran.append(gen.id)
            await gen.send("one")

        async with Hub(log, lease=0.3, poll=0.05, call_timeout=0.05) as hub:
            with pytest.raises(rs.LogUnavailable, match=r"create\(\) within 0.05 s"):
                await hub.start("s", agent)
            await asyncio.gather(*late)
            assert not ran and not hub._generations
            await hub.start("s", agent)
            _, reader = await read_all(hub, "s")
            assert reader.ending is not None and len(ran) <= 1
            assert (reader.ending == COMPLETED) == bool(ran)

    run(scenario)


@pytest.mark.parametrize("what", ["deleted", "expired", "started again", "started again and ended"])
@pytest.mark.parametrize("how", ["follow", "message", "look", "answer"])
def test_a_stream_that_was_deleted_is_served_for_a_poll_at_most_although_no_bell_says_so(what: str, how: str) -> None:
    """
    This process has all of a stream that has ended, and somebody comes to read it each moment, so the copy stays.

    Another process deletes it. Bells are hints, so the bell of that may be lost, and nothing else would ever ask the log: the
    answer that somebody wanted forgotten would be served as long as it is asked for. Whoever comes later than a poll after the
    last look gets what the log has. One look serves all who come within a poll.
    """
    poll = 0.3

    async def scenario() -> None:
        log = Scripted()
        bells = FaultyLog(log, lose=1.0, double=0.0, swap=0.0)
        async with Hub(log) as one, Hub(bells, poll=poll) as two:
            old = await one.start("s", words(3))
            await read_all(one, "s")
            body, _ = await read_all(two, "s")
            assert len(data_of(body)) == 3
            before, began = log.calls["read"], asyncio.get_running_loop().time()
            for _ in range(50):
                assert (await read_all(two, "s"))[0] == body
            assert log.calls["read"] - before <= 2 + (asyncio.get_running_loop().time() - began) / poll
            if what == "expired":
                log._streams["s"].record.expires = 0.0
            else:
                await one.forget("s")
            epoch = None
            if what.startswith("started again"):
                epoch = (await one.start("s", words(5, 0.0 if "ended" in what else 0.5))).epoch
                if "ended" in what:
                    await read_all(one, "s")
            gone = asyncio.get_running_loop().time()

            async def ask() -> str | None:
                """The epoch of what is served."""
                try:
                    match how:
                        case "follow":
                            with await two.reader("s") as reader:
                                return reader.cursor.epoch
                        case "message":
                            return (await two.message("s")).cursor.epoch
                        case "look":
                            page = await two.look("s")
                            return None if isinstance(page, Unknown) else page.epoch
                        case _:
                            tail = (await two.answer("HEAD", {}, id="s", path="/s")).header("stream-tail")
                            return None if tail is None else Cursor.parse(tail).epoch
                except rs.StreamUnknown:
                    return None

            while (asyncio.get_running_loop().time() - gone) < poll:
                assert await ask() in (old.epoch, epoch)
                await asyncio.sleep(0.02)
            assert await ask() == epoch

    run(scenario)


def test_a_log_that_is_away_does_not_say_that_a_stream_is_still_there() -> None:
    """Within a poll it is not asked; then whoever comes is told that the log is away, and served again when it is back."""

    async def scenario() -> None:
        log = Scripted()
        async with Hub(log) as one, Hub(log, poll=0.1) as two:
            await one.start("s", words(3))
            await read_all(one, "s")
            await read_all(two, "s")
            log.on["read"] = away

            async def read_on() -> None:
                while True:
                    await read_all(two, "s")
                    await asyncio.sleep(0.01)

            with pytest.raises(rs.LogUnavailable):
                await read_on()
            log.on.clear()
            body, _ = await read_all(two, "s")
            assert len(data_of(body)) == 3

    run(scenario)


@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("meanwhile", ["nobody", "another request", "another process", "the same again"])
def test_whoever_starts_again_after_a_lost_reply_has_the_stream_at_once(lost: int, meanwhile: str) -> None:
    """
    The log has made the stream, and did not get to say so: nobody runs it, and nobody else may for a whole lease.

    The process that asked asks again with the epoch that it chose the first time, so the log knows it. Others join, and wait for
    the events. If it asked late, or for something else, it is one of the others.
    """

    async def scenario() -> None:
        log, ran = Scripted(), []
        left = lost

        async def lossy(call: Any) -> Any:
            nonlocal left
            answer = await call()
            left -= 1
            if left >= 0:
                raise rs.LogUnavailable("the reply got lost")
            return answer

        log.on["create"] = lossy

        async def agent(gen: Generation) -> None:
            ran.append(gen.id)
            await gen.send("one")

        async with Hub(log) as hub, Hub(log) as other:
            for _ in range(lost):
                with pytest.raises(rs.LogUnavailable):
                    await hub.start("s", agent, request=b"1")
            if lost and meanwhile == "another request":
                with pytest.raises(rs.KeyReused):
                    await hub.start("s", agent, request=b"2")
            elif lost and meanwhile == "another process":
                assert (await other.start("s", agent, request=b"1")).joined
            starts = 5 if meanwhile == "the same again" else 1
            began = asyncio.get_running_loop().time()
            streams = await asyncio.gather(*(hub.start("s", agent, request=b"1") for _ in range(starts)))
            assert [stream.joined for stream in streams].count(False) == 1
            for each in (hub, other):
                body, reader = await read_all(each, "s")
                assert data_of(body) == ["one"] and reader.ending == COMPLETED
            assert asyncio.get_running_loop().time() - began < hub.lease
            assert ran == ["s"] and not hub._asked

    run(scenario)


def test_a_start_that_is_asked_again_after_a_lease_is_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then somebody may have claimed the stream and written to it, and it may be gone: its epoch must not be used again."""

    async def scenario() -> None:
        log = Scripted()
        log.on["create"] = once(reply_lost)

        async def agent(gen: Generation) -> None:
            await gen.send("one")

        async with Hub(log, lease=60.0) as hub:
            with pytest.raises(rs.LogUnavailable):
                await hub.start("s", agent)
            epoch = log._streams["s"].record.epoch
            await log.delete("s")
            now = hub._following.now()
            monkeypatch.setattr(hub._following, "now", lambda: now + 60.0)
            stream = await hub.start("s", agent)
            assert not stream.joined and stream.epoch != epoch

    run(scenario)


def test_starts_that_got_no_answer_are_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        log = Scripted()
        log.on["create"] = away

        async def agent(gen: Generation) -> None:
            await gen.send("one")

        async with Hub(log) as hub:
            for n in range(20):
                with pytest.raises(rs.LogUnavailable):
                    await hub.start(f"s{n}", agent, request=b"x" * 100_000)
            assert [key for key, _, _ in hub._asked] == [f"s{n}" for n in range(13, 20)]
            assert all(len(digest) == 16 for _, _, digest in hub._asked)

    monkeypatch.setattr("resumable_stream.server.hub._MOST_ASKED", 7)
    run(scenario)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_call_takes_a_time_that_makes_sense(seconds: float) -> None:
    with pytest.raises(ValueError, match="call_timeout"):
        Hub(MemoryLog(), call_timeout=seconds)


@pytest.mark.parametrize("how", ["drain", "aclose"])
@pytest.mark.parametrize("trouble", ["log", "producer"])
def test_a_shutdown_takes_its_time_and_no_more(how: str, trouble: str) -> None:
    async def scenario() -> None:
        log = Scripted()
        hub = Hub(log, flush=0.0, cancel_grace=0.1)
        await hub.__aenter__()
        at_last = asyncio.Event()

        async def agent(gen: Generation) -> None:
            await gen.send("one")
            while not at_last.is_set():
                try:
                    await at_last.wait()
                except asyncio.CancelledError:
                    if trouble == "log":
                        raise

        await hub.start("s", agent)
        with await hub.reader("s") as reader:
            await reader.next()
        if trouble == "log":
            log.on["append"] = log.on["finish"] = away
        async with asyncio.timeout(5.0):
            if how == "drain":
                await hub.drain(timeout=0.1, spread=0.0)
            await hub.aclose()
        at_last.set()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1

    run(scenario)


def test_a_producer_that_swallows_its_cancellation_is_stopped_at_its_next_event() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(), flush=0.0, cancel_grace=0.1) as hub:
            stopped = asyncio.Event()

            async def stubborn() -> AsyncIterator[str]:
                try:
                    while True:
                        try:
                            yield "tick"
                            await asyncio.sleep(0.01)
                        except asyncio.CancelledError:
                            pass
                finally:
                    stopped.set()

            await hub.start("s", stubborn())
            with await hub.reader("s") as reader:
                await reader.next()
            await hub.cancel("s", "bored")
            _, reader = await asyncio.wait_for(read_all(hub, "s"), 5.0)
            assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="bored")
            assert stopped.is_set()

    run(scenario)


def test_a_stream_that_is_claimed_during_the_shutdown_is_left_to_others() -> None:
    async def scenario() -> None:
        log = Scripted()
        head = Head(content_type="text/event-stream", framing="sse")
        await log.create("s", head, lease=0.01)
        claimed, go = asyncio.Event(), asyncio.Event()

        async def late(call: Any) -> Any:
            answer = await call()
            claimed.set()
            await go.wait()
            return answer

        log.on["claim"] = late

        async def never(gen: Generation) -> None:
            raise AssertionError("the process shuts down")

        async with Hub(log, lease=60.0, poll=0.02, on_lost=never) as hub:
            with await hub.reader("s"):
                await claimed.wait()
                await hub.drain(timeout=0.0, spread=0.0)
                go.set()
                await until(lambda: log._streams["s"].record.until == 0.0)
            assert not hub._generations

    run(scenario)


def test_an_end_that_a_producer_declares_while_it_is_released_is_its_end() -> None:
    async def scenario() -> None:
        log = MemoryLog()

        async def agent(gen: Generation) -> rs.Outcome:
            await gen.send("all there is")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
            return rs.Outcome.COMPLETED

        async with Hub(log, on_lost=agent) as hub:
            await hub.start("s", agent)
            with await hub.reader("s") as reader:
                await reader.next()
            await hub.drain(timeout=0.0, spread=0.0)
            assert (await hub.state("s")).ending == COMPLETED

    run(scenario)


def shorten(log: MemoryLog, keep: int) -> None:
    """What a failover does that loses the last events of stream `s`."""
    stream = log._streams["s"]
    lost = stream.spans[keep:]
    del stream.spans[keep:]
    log._grow(stream, -sum(map(_size_of, lost)), spans=True)
    record = stream.record
    record.n, record.b, record.c = stream.spans[-1].n, stream.spans[-1].b, keep


def test_a_reader_ahead_of_a_log_that_lost_its_end_waits_for_a_lease() -> None:
    """A process that holds only what the log has now: nobody repairs the log, since its producer is silent."""

    async def scenario() -> None:
        log = MemoryLog()
        writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=0.4)
        assert isinstance(writer, Writer)
        for n in range(1, 6):
            await log.append([(writer, Span(n=n, b=11 * n, lengths=(11,), data=b"data: one\n\n"), None)])
        shorten(log, 2)

        async def keep() -> None:
            while True:
                await log.renew([writer])
                await asyncio.sleep(0.05)

        async with Hub(log, lease=0.4, poll=0.05) as hub:
            keeping = asyncio.create_task(keep())
            with await hub.reader("s", Cursor(writer.epoch, 5)) as reader:
                assert await asyncio.wait_for(reader.next(), 5.0) == b""
                assert reader.ending is None
                assert isinstance(reader.gone, Gone) and reader.gone.why == "went_back"
            keeping.cancel()

    run(scenario)


def test_a_reader_ahead_of_a_log_that_lost_its_end_goes_on_when_it_is_repaired() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, flush=0.0) as one, Hub(log, poll=0.05) as two:
            go = asyncio.Event()

            async def agent(gen: Generation) -> None:
                for n in range(5):
                    await gen.send(str(n))
                    await gen.flush()
                await go.wait()
                await gen.send("last")

            stream = await one.start("s", agent)
            await until(lambda: log._streams["s"].record.n == 5)
            shorten(log, 2)
            with await two.reader("s", Cursor(stream.epoch, 5)) as reader:
                assert await reader.next(0.1) is None
                go.set()
                chunk = await reader.next()
                assert chunk is not None and data_of(chunk) == ["last"]
                assert await reader.next() == b"" and reader.ending == COMPLETED

    run(scenario)


def test_a_stream_that_is_taken_over_and_loses_its_end_at_once_is_given_up() -> None:
    """What is lost was in no copy of this process: nobody can write it again, and nobody tries for ever."""

    async def scenario() -> None:
        log = Scripted()
        writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=0.01)
        assert isinstance(writer, Writer)
        for n in range(1, 6):
            await log.append([(writer, Span(n=n, b=11 * n, lengths=(11,), data=b"data: one\n\n"), None)])

        async def agent(gen: Generation) -> None:
            await gen.send("more")

        async def claimed(call: Any) -> Any:
            answer = await call()
            shorten(log, 2)
            return answer

        log.on["claim"] = once(claimed)
        async with Hub(log, lease=0.2, poll=0.05, on_lost=agent) as hub:
            await until(lambda: log.calls["claim"] and not hub._generations)
            assert log.calls["append"] < 20

    run(scenario)


@pytest.mark.parametrize("precise", [2.0, 0.2], ids=["a timer of its own", "a shared one"])
def test_polls_of_the_log_put_no_heartbeat_off(precise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server.reading._PRECISE", precise)

    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as one, Hub(log, poll=0.05) as two:

            async def silent(gen: Generation) -> None:
                await gen.send("one")
                await asyncio.Event().wait()

            await one.start("s", silent)
            with await two.reader("s") as reader:
                assert await reader.next()
                for _ in range(2):
                    assert await asyncio.wait_for(reader.next(0.3), 6.0) is None

    run(scenario)


def test_an_end_that_meets_a_log_without_its_last_events_sends_them_again_once() -> None:
    async def scenario() -> None:
        log = Scripted()
        async with Hub(log, flush=0.0) as hub:

            async def agent(gen: Generation) -> None:
                for n in range(5):
                    await gen.send(str(n))
                    await gen.flush()
                shorten(log, 2)

            await hub.start("s", agent)
            body, reader = await read_all(hub, "s")
            assert data_of(body) == list("01234") and reader.ending == COMPLETED
            assert (await hub.state("s")).n == 5
            assert log.calls["finish"] == 2

    run(scenario)


def test_processes_that_start_or_recover_together_do_not_sweep_together() -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            hubs = [await stack.enter_async_context(Hub(MemoryLog(), lease=15.0)) for _ in range(50)]
            await asyncio.sleep(0)  # their tasks begin
            for back in (False, True):
                now = asyncio.get_running_loop().time()
                if back:
                    for hub in hubs:
                        hub._generations._sweeps_from = now
                        hub._generations.log_is_back("s")
                sweeps = sorted(hub._generations._sweeps_from - now for hub in hubs)
                # Not before a lease, in which those who were cut off may come back.
                assert sweeps[0] >= 14.0
                assert sweeps[-1] <= 22.5
                assert sweeps[-1] - sweeps[0] > 3.0

    run(scenario)


def test_a_stream_that_a_bell_has_led_to_is_not_read_again_by_the_one_that_backs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        waited = asyncio.Event()
        monkeypatch.setattr("resumable_stream.server.following.Backoff.wait", lambda self: waited.wait())
        log = Scripted()
        await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=60.0)
        async with Hub(log, poll=60.0) as hub:
            following = hub._following
            with await hub.reader("s"):
                followed = following.find("s")
                assert followed is not None
                # Two tasks hear bells and look at the clock; nothing is read, and nobody backs off.
                await until(lambda: len(following._tasks._tasks) == 2)
                log.on["read"] = once(away)
                following.do(followed, followed.follower.poll())
                await until(lambda: followed.trouble is not None)
                before = log.calls["read"]
                following._ring(Bell(id="s"))
                await until(lambda: followed.trouble is None)
                waited.set()
                await until(lambda: len(following._tasks._tasks) == 2)
                assert log.calls["read"] == before + 1

    run(scenario)


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("kind", ["the reply got lost", "it was not done", "it hangs, and is done"])
@pytest.mark.parametrize("on_lost", ["continue", "fail"])
def test_a_claim_whose_reply_got_lost_waits_for_no_lease(lost: int, kind: str, on_lost: str) -> None:
    """The log has granted the claim, and did not get to say so: it is asked again under the same name. A lease is ten minutes."""

    async def scenario() -> None:
        log, left = Scripted(), lost
        await five_events(log, lease=0.01)

        async def lossy(call: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                return await call()
            if kind == "it was not done":
                raise rs.LogUnavailable("the log is away")
            await call()
            if kind == "the reply got lost":
                raise rs.LogUnavailable("the reply got lost")
            return await asyncio.Event().wait()

        async def agent(gen: Generation) -> None:
            assert gen.resumed_from == 5
            await gen.send("two")

        log.on["claim"] = lossy
        continued = on_lost == "continue"
        async with Hub(log, lease=600.0, poll=0.05, call_timeout=0.05, on_lost=agent if continued else "fail") as hub:
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["one 1", "one 2", "one 3", "one 4", "one 5", *(["two"] if continued else [])]
            assert reader.ending == (COMPLETED if continued else Ending(outcome=rs.Outcome.FAILED, reason="producer_lost"))
            assert not hub._generations._asked
            await until(lambda: not hub._generations._claiming)

    run(scenario)


@pytest.mark.parametrize("late", range(3))
def test_a_note_that_comes_late_replaces_no_newer_one(late: int) -> None:
    """A call that was given up may be done all the same, when others have been done: no event tells the log how old it is."""

    async def scenario() -> None:
        log, kept = Scripted(), []
        notes = ["one", "two", "three"]

        async def agent(gen: Generation) -> None:
            await gen.send("first")
            await gen.flush("zero")
            for note in notes:
                log.on["append"] = once(held) if note == notes[late] else once(lambda call: call())
                await gen.flush(note)
            await asyncio.Event().wait()

        async def held(call: Any) -> Any:
            kept.append(call)
            raise rs.LogUnavailable("the log did not answer in time")

        async with Hub(log, lease=60.0) as hub:
            await hub.start("s", agent)
            await until(lambda: log._streams["s"].record.note == "three")
            for call in kept:
                await call()
            assert len(kept) == 1
            assert (log._streams["s"].record.note, log._streams["s"].record.note_n) == ("three", 1)

    run(scenario)


@pytest.mark.parametrize("cut", ["the reply got lost", "it was not done"])
@pytest.mark.parametrize("call", ["append", "finish"])
def test_the_end_counts_messages_right_although_the_log_stumbles(cut: str, call: str) -> None:
    async def scenario() -> None:
        log = Scripted()

        async def agent(gen: Generation) -> None:
            for message in await gen.wait_steered():
                log.on[call] = once(reply_lost if cut == "the reply got lost" else away)
                await gen.send(message.data, event="steered")

        async with Hub(log) as hub, Hub(log) as other:
            await hub.start("s", agent)
            assert await other.say("s", "left", mid="1") == 1
            body, reader = await read_all(hub, "s")
            assert data_of(body) == ["left"] and reader.ending == COMPLETED and reader.ending.applied == 1
            assert (await other.state("s")).ending.applied == 1  # type: ignore[union-attr]

    run(scenario)


def test_a_stream_that_lost_its_producer_says_which_messages_were_applied() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        writer = await five_events(log, lease=600.0)
        async with Hub(log, lease=0.3, poll=0.05) as hub:
            for n in range(1, 5):
                assert await hub.say("s", "left", mid=str(n)) == n
            await log.append([Append(writer, None, None, 2, 5)])
            await log.renew([replace(writer, lease=0.0)])
            _, reader = await read_all(hub, "s")
            assert reader.ending is not None and (reader.ending.reason, reader.ending.applied) == ("producer_lost", 2)
            assert await hub.say("s", "left", mid="2") == 2
            with pytest.raises(rs.StreamEnded, match="place 3"):
                await hub.say("s", "left", mid="3")

    run(scenario)


@pytest.mark.parametrize("session", [None, "chat"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_cancel_takes_few_trips(session: str | None, where: str) -> None:
    """Where the stream runs its head is known, and the log's answer to the cancel says whether it runs."""

    async def scenario() -> None:
        log = Scripted()

        async def agent(gen: Generation) -> None:
            await asyncio.Event().wait()

        async with Hub(log, cancel_grace=0.05) as hub, Hub(log) as other:
            await hub.start("s", agent, session=session)
            by = hub if where == "here" else other
            before = log.calls["read"]
            assert await by.cancel("s")
            # The feed of a session that is not known here is read, too.
            assert log.calls["read"] - before <= (0 if where == "here" else 1 if session is None else 2)
            _, reader = await read_all(hub, "s")
            assert reader.ending == Ending(outcome=rs.Outcome.CANCELLED, reason="cancelled_by_user")
            for each in (hub, other):
                assert not await each.cancel("s")

    run(scenario)


@pytest.mark.parametrize(
    "note", ["\ud800", "x" * ((256 << 10) + 1), RuntimeError("no place")], ids=["no text", "too long", "raises"]
)
def test_a_note_that_cannot_be_stored_ends_its_own_stream_and_no_other(note: str | Exception) -> None:
    def place() -> str:
        if isinstance(note, Exception):
            raise note
        return note

    async def bad(gen: Generation) -> None:
        await gen.pass_on([b"data: 0\n\n"], place)
        await gen.flush()

    async def going_on(gen: Generation) -> None:
        await gen.pass_on([b"data: 0\n\n"], place)
        while True:
            # Not at once: a note that events follow is not asked.
            await asyncio.sleep(0.05)
            await gen.send("more")

    async def scenario() -> None:
        async with Hub(MemoryLog(), flush=0.0) as hub:
            await hub.start("bad", bad)
            await hub.start("going-on", going_on)
            await asyncio.sleep(0.01)
            await hub.start("good", words(2))
            async with asyncio.timeout(10.0):
                body, reader = await read_all(hub, "good")
                assert (data_of(body)[:2], reader.ending) == (["word 0", "word 1"], replace(COMPLETED, applied=0))
                for id in ("bad", "going-on"):
                    body, reader = await read_all(hub, id)
                    assert data_of(body)[0] == "0"
                    assert (reader.ending.outcome, reader.ending.reason) == (rs.Outcome.FAILED, "producer_error")

    run(scenario)


def test_readers_of_a_stream_that_can_be_continued_are_sent_on_where_the_log_is_away() -> None:
    """Its producer is cut off. Another process goes on with it, so here it has not failed."""

    async def produce(gen: Generation) -> None:
        gen.continues = True
        await gen.send("0")
        await gen.flush()
        while True:
            await gen.send("more")
            await asyncio.sleep(0.001)

    async def scenario() -> None:
        away = False
        log = FaultyLog(MemoryLog(), lose=0.0, double=0.0, swap=0.0, reach=lambda verb, id: "not_done" if away else None)
        async with Hub(log, flush=0.0, log_timeout=0.05, lease=0.2) as hub:
            await hub.start("a", produce)
            with await hub.reader("a") as reader:
                assert await reader.next()
                away = True
                async with asyncio.timeout(30.0):
                    while await reader.next():
                        pass
                assert (reader.ending, reader.left) == (None, True)

    run(scenario)
