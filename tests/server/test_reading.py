"""How a reader waits: without a timer of its own where the wait is long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Generation, Head, Hub, Span
from resumable_stream.server.log import Bell, Gone, Writer
from resumable_stream.server.memory import MemoryLog, _size_of
from resumable_stream.server.reading import Reader, View

from .virtual import run as run_virtually

FAILED = Ending(outcome=Outcome.FAILED, reason="producer_lost")
COMPLETED = Ending(outcome=Outcome.COMPLETED)


def run(scenario: Callable[[Hub, Reader], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with Hub(MemoryLog(), flush=0.0) as hub:
            await hub.start("s", waits)
            with await hub.reader("s") as reader:
                assert b"first" in (await reader.next() or b"")
                await scenario(hub, reader)

    run_virtually(bounded)


async def waits(gen: Generation) -> None:
    gen.text("first")
    await gen.wait_steered()
    gen.text("second")


async def begun(reader: Reader, timeout: float | None) -> asyncio.Task[bytes | None]:
    task = asyncio.create_task(reader.next(timeout))
    while reader._waiter is None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return task


def test_a_long_wait_ends_at_the_first_tick_after_its_timeout() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        before = asyncio.get_running_loop().time()
        task = await begun(reader, 1000.0)
        reader.tick(before + 999.0)
        await asyncio.sleep(0)
        assert not task.done()
        after = asyncio.get_running_loop().time()
        reader.tick(after + 1000.0)
        # A second tick before the reader has run changes nothing.
        reader.tick(after + 1001.0)
        assert await task is None
        assert not reader._followed.grown._waiters

    run(scenario)


def test_the_clock_of_the_process_ticks() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        reader.watch = lambda now: seen.done() or seen.set_result(now)
        task = await begun(reader, 2.0)
        assert await seen <= asyncio.get_running_loop().time()
        assert await task is None

    run(scenario)


def test_a_wait_without_a_timeout_ends_with_the_next_event() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        task = await begun(reader, None)
        reader.tick(asyncio.get_running_loop().time() + 1e9)
        await asyncio.sleep(0)
        assert not task.done()
        await hub.say("s", "go on")
        assert b"second" in (await task or b"")

    run(scenario)


def test_a_wait_that_is_given_up_leaves_nothing() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        task = await begun(reader, 1000.0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and reader._waiter is None and not reader._followed.grown._waiters
        reader.tick(asyncio.get_running_loop().time() + 1e9)

    run(scenario)


def test_a_closed_reader_is_not_looked_at() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        assert reader in hub._following.readers
        reader.close()
        reader.close()
        assert reader not in hub._following.readers

    run(scenario)


# --- to wait without a coroutine


def test_a_pause_ends_with_the_next_event() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None and not waiter.done()
        await hub.say("s", "go on")
        chunk = reader.resume(await waiter)
        assert chunk is not None and b"second" in chunk
        assert reader._waiter is None

    run(scenario)


def test_a_pause_ends_at_the_first_tick_after_its_timeout() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None
        reader.tick(asyncio.get_running_loop().time() + 1001.0)
        assert reader.resume(await waiter) is None
        assert reader._waiter is None and not reader._followed.grown._waiters

    run(scenario)


def test_a_pause_that_was_ended_for_nothing_is_told_so() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(None)
        assert waiter is not None
        reader._followed.grown.wake()
        assert reader.resume(await waiter) == b""
        assert reader.pause(None) is not None

    run(scenario)


def test_a_wake_for_nothing_does_not_put_the_timeout_off() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None
        due = reader._due
        reader._followed.grown.wake()
        assert reader.resume(await waiter) == b""
        waiter = reader.pause(1000.0)
        assert waiter is not None and reader._due == due
        reader.tick(due)
        assert reader.resume(await waiter) is None
        # After the timeout another one begins.
        assert reader.pause(1000.0) is not None
        assert reader._due > due - 1000.0 and reader._due != due

    run(scenario)


def test_there_is_no_pause_where_something_is_to_be_done() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        # A short timeout has a timer.
        assert reader.pause(1.9) is None
        with await hub.reader("s") as behind:
            assert behind.pause(1000.0) is None
        reader.leave()
        assert reader.pause(1000.0) is None

    run(scenario)


def test_there_is_no_pause_at_the_end_of_a_stream() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        await hub.say("s", "go on")
        while await reader.next():
            pass
        assert reader.ending is not None
        assert reader.pause(1000.0) is None

    run(scenario)


def test_a_pause_that_is_given_up_leaves_nothing_once_the_reader_is_closed() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        waiter = reader.pause(1000.0)
        assert waiter is not None
        waiter.cancel()
        reader.close()
        assert reader._waiter is None and not reader._followed.grown._waiters
        reader.tick(asyncio.get_running_loop().time() + 1e9)
        assert reader.pause(1000.0) is None

    run(scenario)


# --- to be handed what comes, without a task that wakes up


class Takes:
    """A sink."""

    def __init__(self, *, room: int = 1000, error: BaseException | None = None) -> None:
        self.got: list[bytes] = []
        self._room = room
        self._error = error

    def take(self, chunk: bytes) -> bool:
        assert asyncio.current_task() is None
        self.got.append(chunk)
        if self._error is not None:
            raise self._error
        return len(self.got) < self._room

    @property
    def numbers(self) -> list[int]:
        return [int(line[6:]) for line in b"".join(self.got).splitlines() if line.startswith(b"data: ")]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def handed(scenario: Callable[[Hub, MemoryLog, Writer, Reader], Awaitable[None]], view: View = "events") -> None:
    """With a stream of one event, and a reader that has it."""

    async def bounded() -> None:
        log = MemoryLog()
        async with asyncio.timeout(60), Hub(log, poll=60.0, lease=60.0) as hub:
            writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=600.0)
            assert isinstance(writer, Writer)
            await log.append([(writer, numbered(1), None)])
            with await hub.reader("s", view=view) as reader:
                assert b"data: 1" in (await reader.next() or b"")
                await scenario(hub, log, writer, reader)

    run_virtually(bounded)


@pytest.mark.parametrize("view", ["events", "verbatim", "raw"])
def test_a_sink_takes_each_event_while_its_task_sleeps(view: View) -> None:
    async def scenario(hub: Hub, log: MemoryLog, writer: Writer, reader: Reader) -> None:
        sink = Takes()
        waiter = reader.pause(1000.0, sink)
        assert waiter is not None
        for n in range(2, 7):
            await log.append([(writer, numbered(n), None)])
            await turns()
            assert sink.numbers == list(range(2, n + 1)) and not waiter.done()
        assert all(b"id: " in chunk for chunk in sink.got) is (view == "events")
        await log.finish(writer, 6, COMPLETED)
        assert await waiter
        assert reader.resume(True) == b"" and await reader.next() == b"" and reader.ending == COMPLETED
        assert not reader._followed.grown._listeners

    handed(scenario, view)


@pytest.mark.parametrize("room", range(1, 5))
def test_a_sink_that_can_take_no_more_wakes_its_task_which_misses_nothing(room: int) -> None:
    async def scenario(hub: Hub, log: MemoryLog, writer: Writer, reader: Reader) -> None:
        sink = Takes(room=room)
        waiter = reader.pause(1000.0, sink)
        assert waiter is not None
        for n in range(2, 7):
            await log.append([(writer, numbered(n), None)])
            await turns()
        assert sink.numbers == list(range(2, room + 2))
        assert await waiter and reader.resume(True) == b""
        assert reader.pause(1000.0, sink) is None
        assert await rest_of(reader, 0.0) == list(range(room + 2, 7))

    handed(scenario)


@pytest.mark.parametrize("error", [OSError("left"), RuntimeError("broken"), asyncio.CancelledError()], ids=repr)
def test_what_a_sink_raises_its_task_gets(error: BaseException) -> None:
    async def scenario(hub: Hub, log: MemoryLog, writer: Writer, reader: Reader) -> None:
        with await hub.reader("s", Cursor(writer.epoch, 1)) as other:
            sink = Takes()
            assert other.pause(1000.0, sink) is not None
            waiter = reader.pause(1000.0, Takes(error=error))
            assert waiter is not None
            await log.append([(writer, numbered(2), None)])
            with pytest.raises(type(error)):
                await waiter
            # Nobody else is concerned.
            await turns()
            assert sink.numbers == [2]

    handed(scenario)


def test_the_timeout_of_a_sink_begins_anew_with_each_event_and_with_nothing_else() -> None:
    async def scenario(hub: Hub, log: MemoryLog, writer: Writer, reader: Reader) -> None:
        sink = Takes()
        waiter = reader.pause(1000.0, sink)
        assert waiter is not None
        first = reader._due
        reader._followed.grown.wake()
        await turns()
        assert reader._due == first and not sink.got
        await log.append([(writer, numbered(2), None)])
        await turns()
        assert reader._due > first
        reader.tick(first)
        assert not waiter.done()
        reader.tick(reader._due)
        # What comes before its task has run is not lost.
        await log.append([(writer, numbered(3), None)])
        assert await waiter is False and reader.resume(False) is None
        assert sink.numbers == [2] and b"data: 3" in (await reader.next() or b"")

    handed(scenario)


@pytest.mark.parametrize("how", ["leave", "close", "forget", "lose"])
def test_a_sink_is_let_go_of(how: str) -> None:
    async def scenario(hub: Hub, log: MemoryLog, writer: Writer, reader: Reader) -> None:
        sink = Takes()
        waiter = reader.pause(1000.0, sink)
        assert waiter is not None
        followed = reader._followed
        match how:
            case "leave":
                reader.leave()
                assert await waiter and reader.resume(True) == b"" and await reader.next() == b"" and reader.left
            case "close":
                reader.close()
                reader.close()
                await log.append([(writer, numbered(2), None)])
                await turns()
            case "forget":
                await log.delete("s")
                hub._following.forget("s")
                assert await waiter and reader.resume(True) == b"" and await reader.next() == b"" and reader.gone is not None
            case "lose":
                # The mirror lets go of what this reader has not got yet.
                followed.follower.bell(Bell(id="s", item=numbered(2), epoch=writer.epoch, n=2))
                assert followed.follower.mirror is not None
                followed.follower.mirror.trim(0)
                followed.grown.wake()
                assert await waiter and reader.resume(True) == b""
        assert not sink.got and not followed.grown._listeners

    handed(scenario)


# --- a reader that is behind what its process holds, and ahead of, or at, what the log has left

LENGTH = len(b"data: 1\n\n")


class Shrinking(MemoryLog):
    """A log that counts its reads, and loses its tail."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.claims = True

    async def read(self, *args: Any, **more: Any) -> Any:
        self.reads += 1
        return await super().read(*args, **more)

    async def claim(self, *args: Any, **more: Any) -> Any:
        if not self.claims:
            raise LogUnavailable("nothing can be claimed now")
        return await super().claim(*args, **more)

    def lose(self, keep: int) -> None:
        stream = self._streams["s"]
        lost = stream.spans[keep:]
        del stream.spans[keep:]
        self._grow(stream, -sum(map(_size_of, lost)), spans=True)
        stream.record.n, stream.record.b, stream.record.c = keep, keep * LENGTH, keep


def numbered(n: int) -> Span:
    return Span(n=n, b=n * LENGTH, lengths=(LENGTH,), data=b"data: %d\n\n" % n)


async def begun_at(log: Shrinking, hub: Hub, view: View, place: int, *, lease: float) -> tuple[Writer, Reader]:
    """A reader behind five events, of which this process holds none any more."""
    writer = await log.create("s", Head(content_type="text/event-stream", framing="sse"), lease=lease)
    assert isinstance(writer, Writer)
    for n in range(1, 6):
        await log.append([(writer, numbered(n), None)])
    after = None if view == "raw" else Cursor(writer.epoch, place)
    reader = await hub.reader("s", after, view=view, from_byte=place * LENGTH)
    mirror = hub._following.get("s").follower.mirror
    assert mirror is not None and mirror.n == 5
    mirror.trim(0)
    return writer, reader


async def rest_of(reader: Reader, timeout: float | None) -> list[int]:
    """The numbers of the events up to the end, or the first silence."""
    found = b""
    while chunk := await reader.next(timeout):
        found += chunk
    return [int(line[6:]) for line in found.splitlines() if line.startswith(b"data: ")]


@pytest.mark.parametrize("view", ["events", "verbatim", "raw"])
@pytest.mark.parametrize("then", ["nothing", "mended", "ended", "taken over"])
def test_a_log_that_ends_before_what_this_process_has_seen_ends_no_reader_silently(view: View, then: str) -> None:
    """
    A failover left `kept` of five events; the process has seen all of them, holds none, and its reader is at `place`.

    The reader gets what is left. Then, as long as the stream runs, its producer may write the rest again, so the reader waits,
    and asks neither at full speed nor never. When the stream has ended it learns how, or, if it is ahead, that its place is gone.

    A reader exactly where the log ended was let go without an end or a reason: a body of bytes was cut "since the server is
    shutting down", and an EventSource came back at once, again and again.
    """

    async def scenario(place: int, kept: int) -> None:
        log = Shrinking()
        async with asyncio.timeout(60), Hub(log, poll=60.0, lease=60.0) as hub:
            writer, reader = await begun_at(log, hub, view, place, lease=600.0)
            with reader:
                log.lose(kept)
                before = log.reads
                assert await rest_of(reader, 0.5) == list(range(place + 1, kept + 1))
                assert reader.gone is None and reader.ending is None
                if kept < 5:
                    assert log.reads - before < 12
                if then == "nothing":
                    return
                reading = asyncio.create_task(rest_of(reader, None))
                await asyncio.sleep(0)
                if then == "mended":
                    for n in range(kept + 1, 6):
                        await log.append([(writer, numbered(n), None)])
                    await log.finish(writer, 5, COMPLETED)
                    assert await reading == list(range(max(place, kept) + 1, 6))
                    assert (reader.ending, reader.gone) == (COMPLETED, None)
                    return
                if then == "ended":
                    await log.finish(writer, kept, FAILED)
                else:
                    log._streams["s"].record.until = 0.0
                    await hub._generations._take_over("s")
                assert await reading == []
                # One event ahead is, in a log that ended, the place behind the ending; a position in bytes says more.
                ahead = place > kept if view == "raw" else place > kept + 1
                if ahead:
                    assert isinstance(reader.gone, Gone) and reader.gone.why == "went_back" and reader.ending is None
                else:
                    assert (reader.ending, reader.gone) == (FAILED, None)

    async def one(place: int, kept: int) -> None:
        try:
            await scenario(place, kept)
        except Exception as error:
            error.add_note(f"at {place}, and {kept} are left")
            raise

    async def all_at_once() -> None:
        await asyncio.gather(*(one(place, kept) for place in range(5) for kept in range(6)))

    run_virtually(all_at_once)


@pytest.mark.parametrize("view", ["events", "verbatim", "raw"])
@pytest.mark.parametrize("kept", range(5))
def test_a_reader_whose_next_events_nobody_writes_again_is_told_so_in_time(view: View, kept: int) -> None:
    """Nobody can claim the stream, so it never ends: after the lease, and the time that a claim takes, they are gone."""

    async def scenario() -> None:
        log = Shrinking()
        log.claims = False
        async with asyncio.timeout(60), Hub(log, poll=0.05, lease=0.2) as hub:
            _, reader = await begun_at(log, hub, view, 2, lease=0.2)
            with reader:
                log.lose(kept)
                assert await rest_of(reader, None) == list(range(3, kept + 1))
                assert isinstance(reader.gone, Gone) and reader.gone.why == "went_back" and reader.ending is None

    run_virtually(scenario)


def test_bytes_that_a_full_log_let_go_of_are_missed_by_who_counts_them() -> None:
    """The front of the stream is gone, up to its last byte, and then it ends well: who was in the middle misses some."""

    async def scenario() -> None:
        log = Shrinking()
        async with asyncio.timeout(60), Hub(log, poll=0.05) as hub:
            writer, reader = await begun_at(log, hub, "raw", 2, lease=600.0)
            with reader:
                stream = log._streams["s"]
                log._trim_front(stream, stream.held)
                # Somebody else comes, and this process has to look anew.
                hub._following.get("s").follower.mirror = None
                await log.finish(writer, 5, COMPLETED)
                assert await reader.next() == b""
                assert isinstance(reader.gone, Gone) and reader.gone.why == "trimmed" and reader.ending is None

    run_virtually(scenario)


def test_a_reader_that_is_sent_away_does_not_wake_the_others() -> None:
    async def scenario(hub: Hub, reader: Reader) -> None:
        with await hub.reader("s") as other:
            assert b"first" in (await other.next() or b"")
            leaving, staying = await begun(reader, 1000.0), await begun(other, 1000.0)
            stays = other._waiter
            reader.leave()
            assert await leaving == b""
            assert other._waiter is stays and stays is not None and not stays.done()
            assert reader._followed.grown._waiters == {stays}
            other.leave()
            assert await staying == b""

    run(scenario)


def test_readers_are_sent_away_within_the_spread_however_many_they_are() -> None:
    """A sleep takes a millisecond at least, so one for each of 2,000 readers would take 2 s."""

    class Leaving:
        def __init__(self) -> None:
            self.left_at = -1.0

        def leave(self) -> None:
            self.left_at = asyncio.get_running_loop().time()

    async def scenario(hub: Hub, reader: Reader) -> None:
        loop = asyncio.get_running_loop()
        readers: Any = [Leaving() for _ in range(2000)]
        slept = 0

        async def sleep(seconds: float, sleep: Any = asyncio.sleep) -> None:
            nonlocal slept
            slept += 1
            await sleep(seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("resumable_stream.server.hub.asyncio.sleep", sleep)
            began = loop.time()
            await hub._send_away(readers, 0.2)
        # By the clock: the n-th does not leave before its time, and there are no more sleeps than milliseconds.
        for index, each in enumerate(readers):
            assert each.left_at >= began + 0.2 * index / 2000 - 1e-6
        assert slept <= 205

    run(scenario)


# --- a reader of bytes whose place is no longer in the mirror


async def written(log: MemoryLog, events: int, *, size: Callable[[int], int], ended: bool, each: int = 50) -> bytes:
    """A raw stream of so many pieces, in spans of `each`; piece n has `size(n)` bytes."""
    writer = await log.create("s", Head(content_type="application/octet-stream", framing="raw"), lease=600.0)
    assert isinstance(writer, Writer)
    body = b""
    for first in range(1, events + 1, each):
        pieces = [(b"%d," % n).ljust(size(n), b".") for n in range(first, min(first + each, events + 1))]
        body += b"".join(pieces)
        span = Span(n=first + len(pieces) - 1, b=len(body), lengths=tuple(map(len, pieces)), data=b"".join(pieces))
        await log.append([(writer, span, None)])
    if ended:
        await log.finish(writer, events, COMPLETED)
    return body


@pytest.mark.parametrize("size", [lambda n: 64, lambda n: 3 << 20 if n == 7 else 40], ids=["alike", "one is large"])
@pytest.mark.parametrize("ended", [True, False])
def test_a_reader_of_bytes_behind_the_mirror_finds_its_place_in_few_trips(size: Callable[[int], int], ended: bool) -> None:
    """It used to read the log from its first event, for each piece anew."""

    async def scenario() -> None:
        log = Shrinking()
        body = await written(log, 2000, size=size, ended=ended)
        async with Hub(log, poll=600.0) as hub:
            places = [0, 1, 63, 64, 65, len(body) // 3, len(body) // 2 + 1, len(body) - 65, len(body) - 1]
            for place in places:
                with await hub.reader("s", view="raw", from_byte=place) as reader:
                    mirror = reader._mirror
                    mirror.trim(0)
                    before, got = log.reads, b""
                    while place + len(got) < len(body):
                        got += await reader.next() or b""
                    assert got == body[place:], place
                    assert reader.b == len(body)
                    # To find it by halving, and one for each page.
                    assert log.reads - before <= 3 + 11 + 1 + len(got) // (1 << 20) + 2

    run_virtually(scenario)


def test_a_reader_of_bytes_may_stand_anywhere_in_a_log_that_lost_its_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a page holds only a few events: each byte is found, or said to be gone."""
    monkeypatch.setattr("resumable_stream.server.reading._PAGE", 16)

    async def scenario() -> None:
        log = Shrinking()
        body = await written(log, 40, size=lambda n: 5 + n % 7, ended=True, each=3)
        async with Hub(log, poll=600.0) as hub:
            readers = [await hub.reader("s", view="raw", from_byte=place) for place in range(len(body))]
            readers[0]._mirror.trim(0)
            first = 4
            stream = log._streams["s"]
            log._trim_front(stream, sum(map(_size_of, stream.spans[:first])))
            kept = stream.spans[0].start
            assert 0 < kept < len(body)
            for place, reader in enumerate(readers):
                got = b""
                while chunk := await reader.next():
                    got += chunk
                if place < kept:
                    assert got == b"" and isinstance(reader.gone, Gone) and reader.gone.why == "trimmed", place
                else:
                    assert got == body[place:] and reader.ending == COMPLETED, place
                reader.close()

    run_virtually(scenario)
