"""What is peculiar to the log in memory: its bound, its clock, its bells. The rest is in the contract of all logs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Head, MemoryLog, Message, Span
from resumable_stream.server._bell_queue import MOST_WAITING
from resumable_stream.server.log import Append, Appended, Bell, Done, Existing, Gone, Page, Said, SpanRefused, Unknown, Writer

HEAD = Head(content_type="text/event-stream", framing="sse", retention=1000.0)
OK = Ending(outcome=Outcome.COMPLETED)
SIZE = 10_000


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario

    asyncio.run(bounded())


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def event(n: int, size: int = SIZE) -> Span:
    return Span(n=n, b=n * size, lengths=(size,), data=(b"%0*d" % (size, n))[-size:])


async def create(log: MemoryLog, stream_id: str, **options: Any) -> Writer:
    writer = await log.create(stream_id, HEAD, lease=15.0, **options)
    assert isinstance(writer, Writer)
    return writer


async def fill(log: MemoryLog, writer: Writer, start: int, stop: int) -> None:
    for n in range(start, stop):
        assert await log.append([(writer, event(n), None)]) == [Appended(n)]


def test_the_oldest_ended_stream_is_forgotten_first() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=12 * SIZE)
        writers = [await create(log, f"s{number}") for number in range(3)]
        for writer in writers:
            await fill(log, writer, 1, 4)
        for writer in (writers[1], writers[0]):
            assert await log.finish(writer, 3, OK) == Done(3)
        await fill(log, writers[2], 4, 7)
        assert isinstance(await log.read("s1"), Unknown)
        assert isinstance(await log.read("s0"), Page)
        await fill(log, writers[2], 7, 10)
        assert isinstance(await log.read("s0"), Unknown)
        page = await log.read("s2")
        assert isinstance(page, Page)
        assert (page.oldest, page.n) == (1, 9)

    run(scenario())


def test_a_running_stream_loses_its_front_and_goes_on() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=10 * SIZE)
        writer = await create(log, "s")
        await fill(log, writer, 1, 101)
        assert log.size <= log.max_bytes
        gone = await log.read("s")
        assert isinstance(gone, Gone)
        assert (gone.why, gone.n, gone.head) == ("trimmed", 100, HEAD)
        assert 90 < gone.oldest <= 96
        assert isinstance(await log.read("s", Cursor(writer.epoch, gone.oldest - 2)), Gone)
        page = await log.read("s", Cursor(writer.epoch, gone.oldest - 1))
        assert isinstance(page, Page)
        assert (page.spans, page.oldest) == (tuple(event(n) for n in range(gone.oldest, 101)), gone.oldest)
        state = await log.read("s", limit_bytes=0)
        assert isinstance(state, Page)
        assert (state.spans, state.n, state.oldest) == ((), 100, gone.oldest)
        # A writer does not notice.
        assert await log.finish(writer, 100, OK) == Done(100)

    run(scenario())


def test_the_largest_running_stream_loses_first() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=20 * SIZE)
        large, small = await create(log, "large"), await create(log, "small")
        await fill(log, small, 1, 4)
        await fill(log, large, 1, 40)
        assert isinstance(await log.read("large"), Gone)
        page = await log.read("small")
        assert isinstance(page, Page)
        assert len(page.spans) == 3

    run(scenario())


def test_many_streams_share_the_room() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=200 * SIZE)
        writers = [await create(log, f"s{number}") for number in range(10)]
        for n in range(1, 101):
            assert await log.append([(writer, event(n), None) for writer in writers]) == [Appended(n)] * 10
            assert log.size <= log.max_bytes
        held = []
        for number in range(10):
            gone = await log.read(f"s{number}")
            assert isinstance(gone, Gone)
            held.append(100 - gone.oldest + 1)
        assert min(held) >= 10 and max(held) <= 25

    run(scenario())


def test_an_event_larger_than_the_log_is_gone_at_once_and_the_stream_goes_on() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=5 * SIZE)
        writer = await create(log, "s")
        assert await log.append([(writer, event(1, 6 * SIZE), None)]) == [Appended(1)]
        assert log.size <= log.max_bytes
        assert isinstance(await log.read("s"), Gone)
        page = await log.read("s", Cursor(writer.epoch, 1))
        assert isinstance(page, Page)
        assert (page.spans, page.oldest) == ((), 2)
        following = Span(n=2, b=6 * SIZE + 1, lengths=(1,), data=b"x")
        assert await log.append([(writer, following, None)]) == [Appended(2)]
        page = await log.read("s", Cursor(writer.epoch, 1))
        assert isinstance(page, Page) and page.spans == (following,)

    run(scenario())


def test_requests_notes_messages_and_heads_count() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        sizes = [log.size]
        writer = await create(log, "s", request=b"r" * SIZE)
        sizes.append(log.size)
        await log.append([(writer, event(1), "n" * SIZE)])
        sizes.append(log.size)
        await log.say("s", Message(id="m", data="d" * SIZE))
        sizes.append(log.size)
        headers = tuple((f"x-{number}", "h" * 1000) for number in range(10))
        await log.create("t", Head(content_type="a/b", framing="raw", headers=headers), lease=15.0)
        sizes.append(log.size)
        grown = [after - before for before, after in pairwise(sizes)]
        for number, contents in zip(grown, (1, 2, 1, 1), strict=True):
            assert contents * SIZE <= number < contents * SIZE + 4000
        # A note that replaces one counts once, and what is deleted counts no more.
        await log.append([Append(writer, None, "n", n=1)])
        assert log.size < sizes[-1] - SIZE + 10
        await log.delete("s")
        await log.delete("t")
        assert log.size == 0

    run(scenario())


def test_small_events_count_with_what_they_take() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=1 << 20)
        writer = await create(log, "s")
        for n in range(1, 10_001):
            await log.append([(writer, event(n, 1), None)])
        gone = await log.read("s")
        assert isinstance(gone, Gone)
        assert 10_000 - gone.oldest < 5000

    run(scenario())


def test_a_log_full_of_what_cannot_be_trimmed_says_so() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=10 * SIZE)
        writer = await create(log, "s", request=b"r" * 4 * SIZE)
        with pytest.raises(LogUnavailable, match="full.*max_bytes"):
            await log.create("t", HEAD, lease=15.0, request=b"r" * 6 * SIZE)
        assert isinstance(await log.read("t"), Unknown)
        for number in range(5):
            assert await log.say("s", Message(id=f"m{number}", data="d" * SIZE)) == Said(number + 1)
        with pytest.raises(LogUnavailable, match="full"):
            await log.say("s", Message(id="m5", data="d" * SIZE))
        # Nothing of it remains, and what was said before is still known.
        assert await log.say("s", Message(id="m4", data="d" * SIZE)) == Said(5)
        assert [message.id for message in await log.inbox("s", 0)] == [f"m{number}" for number in range(5)]
        await log.finish(writer, 0, OK)
        await create(log, "t", request=b"r" * 6 * SIZE)
        assert isinstance(await log.read("s"), Unknown)

    run(scenario())


def test_an_ended_stream_makes_room_for_one_that_begins() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=10 * SIZE)
        for number in range(50):
            writer = await create(log, f"s{number}", request=b"r" * SIZE)
            await fill(log, writer, 1, 3)
            await log.finish(writer, 2, OK)
        assert log.size <= log.max_bytes
        assert isinstance(await log.read("s49"), Page)

    run(scenario())


def test_a_stream_expires_after_its_retention_and_not_before() -> None:
    async def scenario() -> None:
        clock = Clock()
        log = MemoryLog(clock=clock)
        writer = await create(log, "s")
        clock.now += 1014.0
        await fill(log, writer, 1, 2)
        clock.now += 1014.0
        assert await log.renew([writer]) == [None]
        clock.now += 1014.0
        await log.finish(writer, 1, OK)
        clock.now += 999.0
        assert isinstance(await log.create("s", HEAD, lease=15.0), Existing)
        clock.now += 1.0
        assert isinstance(await log.read("s"), Unknown)
        assert log.size == 0
        await create(log, "s")

    run(scenario())


def test_a_running_stream_that_nobody_renews_expires_too() -> None:
    async def scenario() -> None:
        clock = Clock()
        log = MemoryLog(clock=clock)
        await create(log, "s")
        clock.now += 1014.0
        assert await log.orphans() == ["s"]
        clock.now += 1.0
        assert await log.orphans() == []
        assert log.size == 0

    run(scenario())


def test_what_is_kept_to_find_expired_streams_is_bounded() -> None:
    async def scenario() -> None:
        log = MemoryLog(clock=Clock())
        for _ in range(5000):
            await create(log, "s")
            await log.delete("s")
        assert len(log._expiries) <= 1002

    run(scenario())


def test_a_refused_span_does_not_keep_others_out() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        good, bad = await create(log, "good"), await create(log, "bad")
        wrong = Span(n=1, b=20, lengths=(10,), data=b"x" * 10)
        with pytest.raises(SpanRefused) as caught:
            await log.append([(bad, wrong, None), (good, event(1), None)])
        assert caught.value.stream_id == "bad"
        assert await log.append([(good, event(1), None)]) == [Appended(1)]
        page = await log.read("bad")
        assert isinstance(page, Page) and page.n == 0

    run(scenario())


def test_compaction_makes_it_small_in_a_thread_and_inline() -> None:
    async def scenario() -> None:
        for count in (10, 1000):
            log = MemoryLog()
            writer = await create(log, "s")
            spans = [
                Span(n=n, b=n * 200, lengths=(200,), data=(b"data: %0190d\n\n" % n)[:198] + b"\n\n") for n in range(1, count + 1)
            ]
            for span in spans:
                await log.append([(writer, span, None)])
            await log.finish(writer, count, OK)
            before = log.size
            await asyncio.gather(log.compact("s"), log.compact("s"))
            assert log.size < before / (1.5 if count == 10 else 20)
            await log.compact("s")
            page = await log.read("s")
            assert isinstance(page, Page)
            assert b"".join(span.data for span in page.spans) == b"".join(span.data for span in spans)
            await log.delete("s")
            assert log.size == 0

    run(scenario())


def test_a_stream_deleted_while_it_is_packed_stays_deleted() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        writer = await create(log, "s")
        await fill(log, writer, 1, 50)
        await log.finish(writer, 49, OK)
        packing = asyncio.create_task(log.compact("s"))
        await asyncio.sleep(0)
        await log.delete("s")
        await create(log, "s")
        await packing
        page = await log.read("s")
        assert isinstance(page, Page)
        assert (page.n, page.ending) == (0, None)

    run(scenario())


def test_bells_that_pile_up_become_one_for_each_stream() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        bells = log.bells()
        writers = [await create(log, stream_id) for stream_id in ("a", "b")]
        for writer in writers:
            await bells.add(writer.stream_id)
        for n in range(1, MOST_WAITING // 2 + 1):
            await log.append([(writer, event(n, 1), None) for writer in writers])
        await log.append([(writers[0], event(MOST_WAITING // 2 + 1, 1), None)])
        heard = [await anext(bells) for _ in range(3)]
        assert heard[:2] == [Bell(id="a"), Bell(id="b")]
        assert heard[2].item == event(MOST_WAITING // 2 + 1, 1)

    run(scenario())


def test_the_bell_of_a_trimmed_log_says_what_is_left() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=4 * SIZE)
        writer = await create(log, "s")
        await fill(log, writer, 1, 10)
        bells = log.bells()
        await bells.add("s")
        gone = await log.read("s")
        assert isinstance(gone, Gone)
        await fill(log, writer, 10, 11)
        assert (await anext(bells)).oldest == gone.oldest

    run(scenario())


def test_closed_bells_end_and_hear_nothing_more() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        bells = log.bells()
        await bells.add("s")
        waiting = asyncio.create_task(anext(bells, None))
        await asyncio.sleep(0)
        await log.aclose()
        assert await waiting is None
        await bells.aclose()
        with pytest.raises(LogUnavailable):
            await bells.add("s")
        assert [bell async for bell in bells] == []

    run(scenario())


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1"])
def test_a_bound_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError):
        MemoryLog(max_bytes=wrong)


def test_a_replaced_stream_counts_no_more() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=10 * SIZE)
        writer = await create(log, "s", request=b"r" * SIZE)
        size = log.size
        for _ in range(20):
            await fill(log, writer, 1, 4)
            await log.finish(writer, 3, OK)
            writer = await create(log, "s", request=b"r" * SIZE, replaces=writer.epoch)
            assert log.size == size
        # Running again, it is not among those that are forgotten first.
        other = await create(log, "t")
        await fill(log, other, 1, 20)
        assert isinstance(await log.read("s"), Page)

    run(scenario())
