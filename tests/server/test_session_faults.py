"""What goes wrong around a session: whatever is retried, joined, lost or deleted, its feed says what is true."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Head, Hub, HubLimits, MemoryLog, SessionMessage
from resumable_stream.server.log import Append, Appended, Ending, Page, Unknown, Writer

from .producing import log_at
from .test_hub import read_all, words
from .test_hub_over_logs import Make, hub_over, make  # noqa: F401  a fixture
from .test_sessions import Seen, feed_id_key, names, waits
from .virtual import run, run_in_real_time


async def stored(hub: Hub, session: str = "chat") -> Seen:
    """The events of a feed as the log holds them."""
    page = await hub.log.read(feed_id_key(hub, session))
    assert isinstance(page, Page), page
    events = [event for span in page.spans for event in SSEDecoder().feed(span.data)]
    return [(event.event, json.loads(event.data)) for event in events]


async def ended(hub: Hub, id: str) -> Ending:
    while (ending := (await hub.state(id)).ending) is None:  # noqa: ASYNC110  there is nothing to wait for
        await asyncio.sleep(0.005)
    return ending


def test_who_joins_a_stream_that_has_ended_adds_nothing_to_the_feed() -> None:
    """The page was loaded anew, and sent its prompt again; meanwhile others go on elsewhere."""

    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as one, Hub(log) as two:
            await one.start("a", words(1), session="chat")
            await read_all(one, "a")
            for other in ("b", "longer"):
                assert (await one.start("a", words(1), session="chat")).joined
                await two.start(other, waits, session="chat")
                assert await one.active("chat") == await two.active("chat")
                await one.session("chat").publish("note", 1, mid=other)
            assert names(await stored(one)) == ["started a", "ended a", "started b", "note b", "started longer", "note longer"]

    run(scenario)


def test_a_log_that_went_back_and_was_gone_on_with_by_others_is_read_again() -> None:
    """As after a failover of Redis: as many events as are known here, and other ones."""

    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as one, Hub(log) as two:
            await one.session("chat").publish("note", 1, mid="a")
            before = [*log._streams[feed_id_key(one)].spans]
            await one.session("chat").publish("note", 2, mid="b")
            stream = log._streams[feed_id_key(one)]
            stream.spans, stream.record.n, stream.record.b, stream.record.c = before, 1, before[0].b, 1
            await two.session("chat").publish("note", 3, mid="longer")
            await one.session("chat").publish("note", 4, mid="c")
            assert names(await stored(one)) == ["note a", "note longer", "note c"]

    run(scenario)


def test_what_a_feed_had_said_keeps_its_number_when_its_log_goes_back() -> None:
    """Who has seen an event that is lost must not take another one with its number for it: the feed has another epoch then."""

    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as one, Hub(log) as two:
            await one.session("chat").publish("message", {"role": "user", "data": 1}, mid="a")
            before = [*log._streams[feed_id_key(one)].spans]
            seen = await one.session("chat").publish("message", {"role": "user", "data": 2}, mid="b")
            assert len(await two.session("chat").messages()) == 2
            stream = log._streams[feed_id_key(one)]
            stream.spans, stream.record.n, stream.record.b, stream.record.c = before, 1, before[0].b, 1
            message = {"role": "user", "data": 3}
            again = [(hub, f"c{n}") for n in (1, 2) for hub in (one, two)]
            after = await asyncio.gather(*(hub.session("chat").publish("message", message, mid=mid) for hub, mid in again))
            assert {cursor.epoch for cursor in after} != {seen.epoch} and len({cursor.epoch for cursor in after}) == 1
            for hub in (one, two):
                assert {message.mid for message in await hub.session("chat").messages()} == {"a", "b", "c1", "c2"}

    run(scenario)


def test_a_stream_that_was_begun_does_not_wait_until_its_feed_is_trimmed() -> None:
    """Nobody renews its lease meanwhile. What is old is put away before, and if that fails, before the next event."""

    async def scenario() -> None:
        log = _HungWhereItTrims()
        async with Hub(log, limits=HubLimits(session_events=4)) as hub:
            for n in range(3):
                await hub.session("chat").publish("note", n)
            log.seen = []
            await hub.start("a", waits, session="chat")
            assert log.seen == ["trim", "create"]

    run(scenario)


class _HungWhereItTrims(MemoryLog):
    seen: list[str] | None = None

    async def create(self, *args: Any, **options: Any) -> Any:
        if self.seen is not None:
            self.seen.append("create")
        return await super().create(*args, **options)

    async def append(self, batch: Any) -> Any:
        if self.seen is not None and any(isinstance(item, Append) and item.trims for item in batch):
            self.seen.append("trim")
            raise rs.LogUnavailable("hung")
        return await super().append(batch)


def test_a_prompt_that_is_sent_again_interrupts_nothing_that_came_after_it() -> None:
    """A tab that was cut sends its prompt again; the answer that the other tab is reading goes on."""

    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            for id in ("a", "b", "c"):
                await hub.start(id, waits, session="chat", if_busy="interrupt" if id != "b" else "parallel")
                if id == "a":
                    await hub.cancel("a")
                    await ended(hub, "a")
            # `b` ran when `c` began.
            assert (await ended(hub, "b")).reason == "superseded"
            await hub.start("d", waits, session="chat")
            for id in ("a", "b", "c"):
                assert (await hub.start(id, waits, session="chat", if_busy="interrupt")).joined
            assert await hub.active("chat") == ["c", "d"]
            assert not any(name == "cancelled" and data["id"] in "cd" for name, data in await stored(hub))

    run(scenario)


def test_a_start_that_could_not_cancel_the_others_cancels_them_when_it_is_sent_again() -> None:
    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log) as hub:
            await hub.start("a", waits, session="chat")
            say, log.say = log.say, None  # type: ignore[assignment, method-assign]
            with pytest.raises(TypeError):
                await hub.start("b", waits, session="chat", if_busy="interrupt")
            log.say = say  # type: ignore[method-assign]
            assert (await hub.start("b", waits, session="chat", if_busy="interrupt")).joined
            assert (await ended(hub, "a")).reason == "superseded"
            assert await hub.active("chat") == ["b"]

    run(scenario)


def test_a_start_with_a_wrong_name_starts_nothing() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            for wrong in ({"supersedes": "no id"}, {"supersedes": ""}, {"by": "x" * 257}, {"by": "\ud800"}):
                with pytest.raises(ValueError):
                    await hub.start("a", waits, session="chat", **wrong)  # type: ignore[arg-type]
            assert await hub.active("chat") == []
            with pytest.raises(rs.StreamUnknown):
                await hub.state("a")

    run(scenario)


class _FeedAway(MemoryLog):
    """A log whose feeds cannot be written, as if their node of a Cluster were down."""

    away = False

    async def finish(self, *args: Any, also: Any = None, **options: Any) -> Any:
        if self.away and also is not None:
            raise rs.LogUnavailable("the node of the feed is down")
        return await super().finish(*args, also=also, **options)


@pytest.mark.parametrize("log_timeout", [0.5, 60.0])
def test_a_stream_ends_though_the_feed_of_its_session_is_away(log_timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream.server.generations._FEED_PATIENCE", 0.5)

    async def scenario() -> None:
        log = _FeedAway()
        async with Hub(log, log_timeout=log_timeout, lease=60.0) as hub:
            await hub.start("a", words(1), session="chat")
            log.away = True
            assert (await read_all(hub, "a"))[1].ending == Ending(outcome=rs.Outcome.COMPLETED)
            assert (await ended(hub, "a")).outcome is rs.Outcome.COMPLETED
            log.away = False
            # Who asks next tells the feed.
            assert await hub.active("chat") == []
            assert (await stored(hub))[-1] == ("ended", {"id": "a", "outcome": "completed"})

    run(scenario)


def test_a_stream_without_a_producer_ends_though_the_feed_of_its_session_is_away() -> None:
    async def scenario() -> None:
        log = _FeedAway()
        async with Hub(log, lease=0.3) as one:
            await one.start("a", waits, session="chat")
            log.away = True
            (running,) = one._generations._running.values()
            running.release = True  # it no longer renews its lease, as after a crash
            async with Hub(log, lease=0.3) as two:
                assert (await ended(two, "a")).reason == "producer_lost"

    run(scenario)


def test_a_stream_that_is_started_again_is_not_taken_for_the_one_that_ended() -> None:
    """While somebody asks what runs, the stream ends as failed, and another process starts it anew."""

    async def scenario() -> None:
        log = _Slow()
        async with Hub(log) as one, Hub(log) as two:

            async def fails() -> AsyncIterator[str]:
                yield "one"
                await go.wait()
                raise rs.ResumableStreamError("no")

            go = asyncio.Event()
            await one.start("a", fails, session="chat")

            async def again() -> None:
                log.between = None
                go.set()
                await ended(one, "a")
                page = await log.read("a", limit_bytes=0)
                await two.start("a", waits, session="chat", again="failed")
                log.instead = page

            log.between = again
            assert await one.active("chat") == ["a"]
            assert names(await stored(one)) == ["started a", "ended a", "started a"]

    run(scenario)


class _Slow(MemoryLog):
    between: Callable[[], Awaitable[None]] | None = None
    instead: Any = None

    async def read(self, stream_id: str, *args: Any, **options: Any) -> Any:
        if stream_id == "a" and self.between is not None:
            await self.between()
            found, self.instead = self.instead, None
            return found
        return await super().read(stream_id, *args, **options)


def test_a_stream_that_is_away_once_is_not_lost_for_ever() -> None:
    """The time for which nothing is known of it counts anew."""

    async def scenario() -> None:
        async with Hub(MemoryLog(), lease=10.0) as hub:
            sessions = hub._sessions
            await sessions.append("chat", "", lambda feed: feed.started("a"))
            assert "a" in (await sessions.settle("chat", "", 0.0, 10.0, print)).streams
            head = Head(content_type="text/event-stream", framing="sse", session="chat")
            assert isinstance(await hub.log.create("a", head, lease=10.0), Writer)
            assert "a" in (await sessions.settle("chat", "", 5.0, 10.0, print)).streams
            await hub.log.delete("a")
            assert "a" in (await sessions.settle("chat", "", 12.0, 10.0, print)).streams
            assert "a" not in (await sessions.settle("chat", "", 23.0, 10.0, print)).streams

    run(scenario)


def test_what_is_published_again_after_the_feed_was_trimmed_is_the_same() -> None:
    """A reply was lost, and the event before it filled the feed."""

    async def scenario() -> None:
        log, limits = _Recording(), HubLimits(session_events=20)
        async with Hub(log, limits=limits) as one, Hub(log, limits=limits) as two:
            for n in range(40):
                event, data = ("note", n) if n % 3 else ("message", {"role": "user", "data": n})
                await one.session("chat").publish(event, data, mid=f"m{n}")
                if not n % 3:
                    await one.session("chat").delete(f"m{n}")
                for hub in (one, two):
                    await hub.session("chat").publish("note", 0, mid=f"m{max(0, n - 3)}")
        seen = names(log.seen)
        assert seen.count("snapshot None") > 3
        assert sorted(each for each in seen if each[0] in "nm") == sorted(
            f"{'note' if n % 3 else 'message'} m{n}" for n in range(40)
        )

    run(scenario)


class _Recording(MemoryLog):
    """Remembers what was appended, trimmed or not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Seen = []

    def _append(self, item: Append) -> Any:
        verdict = super()._append(item)
        if isinstance(verdict, Appended) and item.span is not None:
            self.seen += [(event.event, json.loads(event.data)) for event in SSEDecoder().feed(item.span.data)]
        return verdict


def test_data_that_a_browser_cannot_read_is_refused() -> None:
    async def scenario() -> None:
        deep: Any = 1
        for _ in range(100_000):
            deep = [deep]
        async with Hub(MemoryLog()) as hub:
            session = hub.session("chat")
            for wrong in (float("nan"), [float("inf")], deep):
                with pytest.raises(ValueError):
                    await session.publish("message", {"role": "user", "data": wrong}, mid="m")
            await session.publish("message", {"role": "user\n", "data": "NaN \ud800 Infinity"}, mid="m\n\0")
            assert await session.messages() == [SessionMessage("m\n\0", "user\n", "NaN \ud800 Infinity")]
            for data in (1, True, 1.0, {"a": 1}, {"a": True}):
                n = (await session.edit("m\n\0", data)).n
                assert (await session.edit("m\n\0", data)).n == n
                (message,) = await session.messages()
                assert repr(message.data) == repr(data)

    run(scenario)


def test_a_session_that_is_forgotten_is_not_brought_back_by_others(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            for hub in (one, two):
                await hub.session("chat").publish("message", {"role": "user", "data": "secret"}, mid="m")
                assert len(await hub.session("chat").messages()) == 1
            await one.session("chat").forget()
            await two.session("chat").publish("note", 1, mid="n")
            assert await one.session("chat").messages() == await two.session("chat").messages() == []
            assert names(await stored(one)) == ["note n"]
            with pytest.raises(rs.MessageUnknown):
                await two.session("chat").edit("m", 1)

    run_in_real_time(scenario)


def test_a_feed_that_was_lost_is_there_for_who_reads_it_first(own_redis: Any) -> None:
    """A look at the session must not make an empty one of it."""

    async def scenario() -> None:
        async with hub_over(log_at(own_redis.url)) as one, hub_over(log_at(own_redis.url)) as two:
            for hub in (one, two):
                await hub.session("chat").publish("message", {"role": "user", "data": 1}, mid="m")
            own_redis.command("FLUSHALL")
            for hub in (one, two):
                assert await hub.session("chat").messages() == [SessionMessage("m", "user", 1)]

    run_in_real_time(scenario)


def test_a_stream_without_a_producer_that_is_forgotten_has_ended_for_its_session() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog(clock=lambda: now), lease=10.0) as hub:
            now = 0.0
            head = Head(content_type="text/event-stream", framing="sse", session="chat")
            create = partial(hub.log.create, "a", head, lease=10.0)
            await hub._sessions.step("chat", "", lambda feed: feed.started("a"), lambda also: create(also=also))
            now = 10.5
            await hub.forget("a")
            assert (await stored(hub))[-1] == ("ended", {"id": "a", "outcome": "cancelled", "reason": "forgotten"})
            assert await hub.active("chat") == []

    run(scenario)


def test_who_follows_a_feed_whose_log_went_back_is_told_so() -> None:
    """No producer will send the lost events again: the follower asks for the state, and does not wait for 30 days."""

    async def scenario() -> None:
        log = MemoryLog()
        async with Hub(log, poll=0.05) as one, Hub(log, poll=0.05) as two:
            session = one.session("chat")
            await session.publish("note", 1)
            before = [*log._streams[feed_id_key(one)].spans]
            last = await session.publish("note", 2)
            live = two.session("chat").follow(last)
            waiting = asyncio.create_task(_all_of(live))
            while not two._readers:  # noqa: ASYNC110  there is nothing to wait for
                await asyncio.sleep(0.01)
            stream = log._streams[feed_id_key(one)]
            stream.spans, stream.record.n, stream.record.b, stream.record.c = before, 1, before[0].b, 1
            await asyncio.wait_for(waiting, 20)
            for hub in (one, two):
                with pytest.raises(rs.HistoryGone) as raised:
                    await asyncio.wait_for(_all_of(hub.session("chat").follow(last)), 20)
                # Whoever asks for the session first writes again what the log has lost, under another epoch.
                assert raised.value.gone.why == ("went_back" if hub is one else "other_epoch")
                answer = await hub.session("chat").answer("GET", {"Last-Event-ID": str(last)})
                assert answer.status == 410

    run(scenario)


async def _all_of(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def test_sessions_do_not_fill_a_log_in_memory_for_a_month() -> None:
    """The feeds of those that nobody has written to for the longest are dropped; who remembers one writes it again."""

    async def scenario() -> None:
        log = MemoryLog(max_bytes=200_000)
        async with Hub(log) as hub:
            for n in range(300):
                await hub.start(f"s{n}", words(1), session=f"chat{n}")
                await ended(hub, f"s{n}")
                await hub.session("kept").publish("message", {"role": "user", "data": n}, mid="m")
                await hub.session("kept").edit("m", n)
            assert log.size <= 200_000
            # Written to all the time, it was never dropped.
            assert (await stored(hub, "kept"))[0][0] == "message"
            assert isinstance(await log.read(feed_id_key(hub, "chat3")), Unknown)
            await hub.session("chat3").publish("note", 1, mid="n")
            assert names(await stored(hub, "chat3")) == ["snapshot None", "note n"]

    run(scenario)


def test_a_start_makes_room_that_its_own_feed_had() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=60_000)
        async with Hub(log) as hub:
            for session, size in (("chat", 15_000), ("other", 35_000)):
                await hub.session(session).publish("message", {"role": "user", "data": "x" * size}, mid="m")
            await hub.start("a", waits, session="chat", request=b"y" * 10_000)
            assert await hub.active("chat") == ["a"]
            await hub.cancel("a")
            await ended(hub, "a")
            assert names(await stored(hub)) == ["snapshot None", "started a", "cancelled a", "ended a"]

    run(scenario)


def test_a_failed_stream_makes_room_for_itself() -> None:
    async def scenario() -> None:
        log = MemoryLog(max_bytes=20_000)

        async def fails() -> AsyncIterator[str]:
            yield "x"
            raise rs.ResumableStreamError("no")

        async with Hub(log) as hub:
            await hub.start("a", fails, request=b"y" * 12_000)
            await ended(hub, "a")
            assert not (await hub.start("a", waits, request=b"y" * 12_000, again="failed")).joined

    run(scenario)
