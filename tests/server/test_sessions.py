"""Sessions over each log and several instances: one order of events, in which every stream begins and ends once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Generation, Hub, HubLimits, MemoryLog, SessionMessage, StreamLog
from resumable_stream.server.log import Page, Unknown
from resumable_stream.server.sessions import feed_id_of
from resumable_stream.testing.faulty_log import FaultyLog

from .test_hub import read_all, words
from .test_hub_over_logs import Make, hub_over, make, producer, shared, soon_quiet, text  # noqa: F401  fixtures
from .virtual import run, run_in_real_time

pytestmark = pytest.mark.usefixtures("soon_quiet")

Seen = list[tuple[str, Any]]
T = TypeVar("T")


async def waits() -> AsyncIterator[str]:
    yield "one"
    await asyncio.Event().wait()


async def feed_of(hub: Hub, session: str = "chat", *, until: Callable[[Seen], object], owner: str = "") -> Seen:
    """Follow a session from its beginning until something was seen."""
    seen: Seen = []
    decoder = SSEDecoder()
    chunks = hub.session(session, owner=owner).follow()
    try:
        async for chunk in chunks:
            for event in decoder.feed(chunk):
                seen.append((event.event, json.loads(event.data)))
                if until(seen):
                    return seen
    finally:
        await chunks.aclose()
    raise AssertionError(f"the feed ended after {seen}")


def names(seen: Seen) -> list[str]:
    return [f"{name} {data.get('id') or data.get('mid')}" for name, data in seen]


def ends(count: int) -> Callable[[Seen], bool]:
    return lambda seen: sum(name == "ended" for name, _ in seen) == count


def test_what_happens_in_a_session_is_seen_everywhere_in_one_order(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            following = [asyncio.create_task(feed_of(hub, until=ends(2))) for hub in (one, two)]
            await one.session("chat").publish("message", {"role": "user", "data": "Hi"}, mid="m1")
            await one.start("a", words(), session="chat", by="ann")
            await read_all(two, "a")
            await two.session("chat").edit("m1", "Hi there")
            await two.start("b", waits, session="chat")
            await one.cancel("b", by="bob")
            seen = [await each for each in following]
            assert seen[0] == seen[1]
            by_name = dict(seen[0])
            assert names(seen[0]).index("started a") < names(seen[0]).index("ended a")
            assert sorted(names(seen[0])) == sorted(
                ["message m1", "started a", "ended a", "edited m1", "started b", "cancelled b", "ended b"]
            )
            assert ("started", {"id": "a", "by": "ann"}) in seen[0]
            assert ("ended", {"id": "a", "outcome": "completed"}) in seen[0]
            assert by_name["cancelled"] == {"id": "b", "by": "bob"}
            assert by_name["ended"] == {"id": "b", "outcome": "cancelled", "reason": "cancelled_by_user"}
            for hub in (one, two):
                assert await hub.session("chat").messages() == [SessionMessage("m1", "user", "Hi there", edited=True)]
                assert await hub.active("chat") == []

    run_in_real_time(scenario)


@pytest.mark.parametrize("if_busy", ["parallel", "reject", "interrupt"])
def test_two_tabs_post_at_once(make: Make, if_busy: Any) -> None:  # noqa: F811
    """The log decides which one came first, and the feed says so."""

    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            for turn in range(3 if if_busy == "reject" else 2):
                session = f"chat{turn}"

                async def tab(hub: Hub, id: str, session: str = session) -> str | None:
                    try:
                        await hub.start(id, waits, session=session, if_busy=if_busy)
                    except rs.StreamBusy as exc:
                        return exc.active
                    return None

                found = await asyncio.gather(tab(one, f"a{turn}"), tab(two, f"b{turn}"))
                both = {f"a{turn}", f"b{turn}"}
                if if_busy == "reject":
                    (winner,) = await two.active(session)
                    assert set(found) == {None, winner}
                    (loser,) = both - {winner}
                    with pytest.raises(rs.StreamUnknown):
                        await one.state(loser)
                    seen = await feed_of(two, session, until=lambda seen: seen)
                    assert seen == [("started", {"id": winner})]
                    await one.cancel(winner)
                elif if_busy == "interrupt":
                    seen = await feed_of(one, session, until=ends(1))
                    (first, second) = [data["id"] for name, data in seen if name == "started"]
                    assert ("started", {"id": second, "supersedes": [first]}) in seen
                    assert seen[-1] == ("ended", {"id": first, "outcome": "cancelled", "reason": "superseded"})
                    assert await two.active(session) == [second]
                    await one.cancel(second)
                else:
                    assert set(await one.active(session)) == both
                    for id in both:
                        await two.cancel(id)
                seen = await feed_of(one, session, until=ends(1 if if_busy == "reject" else 2))
                assert len({data["id"] for name, data in seen if name == "ended"}) == sum(name == "ended" for name, _ in seen)

    run_in_real_time(scenario)


def test_one_prompt_sent_by_many_tabs_is_not_busy_with_itself(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            answers = await asyncio.gather(
                *([one, two][n % 2].start("a", waits, session="chat", if_busy="reject") for n in range(12))
            )
            assert [answer.joined for answer in answers].count(False) == 1
            with pytest.raises(rs.StreamBusy) as raised:
                await two.start("b", waits, session="chat", if_busy="reject")
            assert raised.value.active == "a"
            # Of one that is there already nobody asks what else runs.
            await one.start("c", waits, session="chat")
            assert (await two.start("a", waits, session="chat", if_busy="reject")).joined
            assert names(await feed_of(two, until=lambda seen: len(seen) == 2)) == ["started a", "started c"]

    run_in_real_time(scenario)


def test_what_supersedes_another_takes_its_place(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            await one.start("a", waits, session="chat", if_busy="reject")
            await two.start("b", waits, session="chat", if_busy="reject", supersedes="a")
            seen = await feed_of(one, until=ends(1))
            assert names(seen) == ["started a", "started b", "cancelled a", "ended a"]
            assert seen[1][1] == {"id": "b", "supersedes": ["a"]}
            assert await one.active("chat") == ["b"]

    run_in_real_time(scenario)


def test_one_event_of_many_that_publish_it_at_once(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two, hub_over(make()) as three:
            hubs = [one, two, three]
            cursors = await asyncio.gather(
                *(
                    hubs[n % 3].session("chat").publish("message", {"role": "user", "data": n % 5}, mid=f"m{n % 5}")
                    for n in range(30)
                )
            )
            assert max(cursor.n for cursor in cursors) == 5
            seen = await feed_of(two, until=lambda seen: len(seen) == 5)
            assert sorted(data["mid"] for _, data in seen) == [f"m{n}" for n in range(5)]
            messages = await three.session("chat").messages()
            assert [message.mid for message in messages] == [data["mid"] for _, data in seen]

    run_in_real_time(scenario)


def test_an_edit_and_a_deletion_from_two_devices(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            for turn in range(10):
                mid = f"m{turn}"
                await one.session("chat").publish("message", {"role": "user", "data": 1}, mid=mid)
                edited, deleted = await asyncio.gather(
                    one.session("chat").edit(mid, 2), two.session("chat").delete(mid), return_exceptions=True
                )
                assert isinstance(deleted, Cursor)
                assert isinstance(edited, Cursor | rs.MessageUnknown)
                assert await one.session("chat").messages() == await two.session("chat").messages() == []
                with pytest.raises(rs.MessageUnknown):
                    await two.session("chat").edit(mid, 3)
                assert (await one.session("chat").delete(mid)).n == (await two.session("chat").delete(mid)).n

    run_in_real_time(scenario)


def test_a_feed_stays_small_and_goes_on(make: Make) -> None:  # noqa: F811
    """Older events are put into one that stands for them; who follows notices nothing, who comes late gets the state."""

    async def scenario() -> None:
        limits = HubLimits(session_events=10)
        async with hub_over(make(), limits=limits) as one, hub_over(make(), limits=limits) as two:
            await one.start("a", waits, session="chat")
            there = 0

            def until(seen: Seen) -> bool:
                nonlocal there
                there = sum(name in ("started", "message") for name, _ in seen)
                return ("message", 29) in _numbers(seen)

            following = asyncio.create_task(feed_of(two, until=until))
            first = await one.session("chat").publish("message", {"role": "user", "data": -1})
            for n in range(30):
                while there < n - 2:  # noqa: ASYNC110  one that lags by all that is kept would be told so
                    await asyncio.sleep(0.001)
                hub = (one, two)[n % 2]
                await hub.session("chat").publish("message", {"role": "user", "data": n}, mid=f"m{n}")
            seen = await following
            assert [data["data"] for name, data in seen if name == "message"] == [-1, *range(30)]
            late = await feed_of(two, until=lambda seen: ("message", 29) in _numbers(seen))
            assert late[0][0] == "snapshot" and len(late) <= 10
            numbers = [message["data"] for message in late[0][1]["messages"]]
            assert numbers + [data["data"] for name, data in late[1:] if name == "message"] == list(range(numbers[0], 30))
            assert late[0][1]["streams"] == [{"id": "a"}]
            with pytest.raises(rs.HistoryGone) as raised:
                await anext(one.follow(feed_id_of("chat"), first))
            assert raised.value.gone.why == "trimmed"
            assert (await one.log.read(feed_id_key(one), first)).oldest > 15  # type: ignore[union-attr]
            await two.cancel("a")
            await feed_of(one, until=ends(1))
            assert await one.active("chat") == []

    run_in_real_time(scenario)


def _numbers(seen: Seen) -> list[tuple[str, Any]]:
    return [(name, data.get("data")) for name, data in seen]


def feed_id_key(hub: Hub, session: str = "chat", owner: str = "") -> str:
    from resumable_stream.server.hub import key_of

    return key_of(feed_id_of(session), owner)


def test_a_session_of_somebody_else_is_another_one(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as hub:
            await hub.session("chat", owner="ann").publish("message", {"role": "user", "data": "secret"})
            await hub.start("a", waits, session="chat", owner="ann")
            for owner in ("", "bob"):
                assert await hub.session("chat", owner=owner).messages() == []
                assert await hub.active("chat", owner=owner) == []
            assert await hub.active("chat", owner="ann") == ["a"]

    run_in_real_time(scenario)


def test_nobody_starts_stops_or_forgets_a_feed_as_a_stream(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as hub:
            await hub.session("chat").publish("note", 1)
            feed = feed_id_of("chat")
            with pytest.raises(ValueError, match="the id of a session's feed"):
                await hub.start(feed, words())
            for verb in (hub.cancel(feed), hub.say(feed, "x"), hub.forget(feed)):
                with pytest.raises(rs.StreamUnknown):
                    await verb
            assert (await hub.session("chat").publish("note", 2)).n == 2
            await hub.session("chat").forget()
            assert (await hub.session("chat").publish("note", 3)).n == 1

    run_in_real_time(scenario)


def test_a_process_that_is_killed_in_mid_answer_leaves_a_session_that_knows(text: str) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(shared_log(text), lease=3.0, poll=0.2) as hub:
            async with producer(text, 10_000, 0.002, 3.0, "chat") as process:
                process.kill()
                with pytest.raises(rs.StreamBusy):
                    await hub.start("b", words(), session="chat", if_busy="reject")
                seen = await feed_of(hub, until=ends(1))
            assert seen == [("started", {"id": "s"}), ("ended", {"id": "s", "outcome": "failed", "reason": "producer_lost"})]
            assert not (await hub.start("b", words(), session="chat", if_busy="reject")).joined

    run_in_real_time(scenario)


def shared_log(text: str) -> StreamLog:  # noqa: F811
    from .producing import log_at

    return log_at(text)


def test_who_goes_on_for_a_dead_process_has_the_name_that_readers_use(make: Make) -> None:  # noqa: F811
    """The key of an owner's stream in the log is another one."""

    async def scenario() -> None:
        ids: list[str] = []

        async def go_on(gen: Generation) -> None:
            ids.append(gen.id)
            await gen.send("two")

        async with hub_over(make(), lease=0.6, poll=0.1, on_lost=go_on) as one:
            async with hub_over(make(), lease=0.6, poll=0.1, on_lost=go_on) as two:
                await two.start("a", waits, session="chat", owner="ann")
                await two.drain(timeout=0.0, spread=0.0)
            seen = await feed_of(one, until=ends(1), owner="ann")
            assert names(seen) == ["started a", "ended a"] and seen[1][1]["outcome"] == "completed"
            assert ids == ["a"]

    run_in_real_time(scenario)


def test_a_stream_that_the_log_has_forgotten_does_not_keep_its_session_busy(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make(), lease=0.5) as one, hub_over(make(), lease=0.5) as two:
            await one.start("a", words(), session="chat")
            await read_all(one, "a")
            # As after a crash between two steps of a Cluster: begun in the feed, and never created.
            await one._sessions.append("chat", "", lambda feed: feed.started("ghost"))
            while await two.active("chat"):  # noqa: ASYNC110  there is nothing to wait for
                await asyncio.sleep(0.05)
            seen = await feed_of(one, until=ends(2))
            assert seen[-1] == ("ended", {"id": "ghost", "outcome": "failed", "reason": "producer_lost"})

    run_in_real_time(scenario)


def test_a_hub_that_shuts_down_takes_back_what_it_began(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        async with hub_over(make()) as one:
            await one.start("a", waits, session="chat")
            async with hub_over(make()) as two:
                await two.start("b", waits, session="chat")
                await two.drain(timeout=0.0, spread=0.0)
                with pytest.raises(rs.HubDraining):
                    await two.start("c", waits, session="chat")
            assert await one.active("chat") == ["a"]
            seen = await feed_of(one, until=ends(1))
            assert seen[-1] == ("ended", {"id": "b", "outcome": "failed", "reason": "shutdown"})

    run_in_real_time(scenario)


def test_a_feed_that_redis_has_lost_is_written_again(own_redis: Any) -> None:
    """Its state as this process knows it, under a new epoch: who follows asks for it again."""

    async def scenario() -> None:
        async with hub_over(shared_log(own_redis.url), lease=1.0) as hub:
            await hub.session("chat").publish("message", {"role": "user", "data": 1}, mid="m1")
            await hub.start("a", waits, session="chat")
            before = await hub.session("chat").snapshot()
            for what in ("some", "all"):
                if what == "some":
                    own_redis.command("DEL", f"rs:{{{feed_id_key(hub)}}}:s")
                else:
                    own_redis.command("FLUSHALL")
                await hub.session("chat").publish("note", what)
                snapshot, cursor = await hub.session("chat").snapshot()
                assert snapshot == before[0] and cursor.epoch != before[1].epoch
                before = (snapshot, cursor)
            # Its producer writes the stream again, too.
            while not isinstance(await hub.log.read("a"), Page):  # noqa: ASYNC110  likewise
                await asyncio.sleep(0.02)
            await hub.cancel("a")
            assert (await feed_of(hub, until=ends(1)))[-1][1]["id"] == "a"

    run_in_real_time(scenario)


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("verb", ["create", "append", "finish", "read"])
def test_a_log_that_stumbles_says_everything_once(verb: str, lost: str) -> None:
    """Each verb fails once, before or after it was done, at each of its calls."""

    async def scenario() -> None:
        for call in range(4):
            log = _Stumbling(MemoryLog(), verb, call, after=lost == "after")
            async with Hub(log, lease=1.0, poll=0.05) as hub:

                async def persistent(work: Callable[[], Awaitable[T]]) -> T:
                    while True:
                        try:
                            return await work()
                        except rs.LogUnavailable:
                            await asyncio.sleep(0.01)

                await persistent(partial(hub.session("chat").publish, "message", {"role": "user", "data": 1}, mid="m"))
                await persistent(partial(hub.start, "a", words, session="chat"))
                await persistent(partial(hub.session("chat").edit, "m", 2))
                seen = await persistent(partial(feed_of, hub, until=lambda seen: len(seen) == 4))
                assert sorted(names(seen)) == ["edited m", "ended a", "message m", "started a"], (verb, call)
                state = await log.log.read(feed_id_key(hub))
                assert not isinstance(state, Unknown) and state.n == 4

    run(scenario)


class _Stumbling(FaultyLog):
    """Fails one call of one verb."""

    def __init__(self, log: MemoryLog, verb: str, call: int, *, after: bool) -> None:
        super().__init__(log)
        self._left = call

        async def stumble(*args: Any, **options: Any) -> Any:
            self._left -= 1
            fails = self._left == -1
            if fails and not after:
                raise rs.LogUnavailable("lost on the way there")
            found = await getattr(log, verb)(*args, **options)
            if fails:
                raise rs.LogUnavailable("lost on the way back")
            return found

        setattr(self, verb, stumble)


def test_bad_input_is_refused_with_what_was_expected() -> None:
    async def scenario() -> None:
        async with Hub(MemoryLog()) as hub:
            for wrong in ("", "x" * 1025):
                with pytest.raises(ValueError, match="id of a session"):
                    hub.session(wrong)
            with pytest.raises(ValueError, match="needs the session"):
                await hub.start("a", words(), if_busy="reject")
            with pytest.raises(ValueError, match="parallel, reject, interrupt"):
                await hub.start("a", words(), session="chat", if_busy="wait")  # type: ignore[arg-type]
            session = hub.session("chat")
            for mid in ("", "x" * 257):
                with pytest.raises(ValueError, match="id of a message"):
                    await session.publish("note", 1, mid=mid)
            with pytest.raises(ValueError, match="reserved for the server"):
                await session.publish("ended", 1)
            with pytest.raises(ValueError, match="as in 'k7q2.1247'"):
                session.follow("nonsense")
            assert (await session.publish("note", 1)).n == 1

    run(scenario)


def test_whoever_asks_for_sessions_that_nobody_made_leaves_nothing(make: Make) -> None:  # noqa: F811
    """Anyone may ask for any number of ids. What is refused leaves nothing either."""

    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:

            async def asked(id: str, hub: Hub) -> None:
                session = hub.session(id)
                for method in ("GET", "HEAD"):
                    for query in ("", "view=snapshot", "control=1", "view=verbatim"):
                        assert (await session.answer(method, {}, query, path=f"/sessions/{id}/feed")).status == 200
                        gone = await session.answer(method, {"Last-Event-ID": "k7q2.5"}, query, path="/feed")
                        assert gone.status == 410
                # Somebody reads for a while.
                answer = await session.answer("GET", {}, "heartbeat=1", path="/feed")
                chunks = aiter(answer)
                assert (await anext(chunks)).startswith(b"retry:")
                waiting = asyncio.ensure_future(anext(chunks))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                await chunks.aclose()  # type: ignore[attr-defined]
                assert (await session.messages(), await session.active()) == ([], [])
                for refused in (session.edit("m", 1), session.delete("m")):
                    with pytest.raises(rs.MessageUnknown):
                        await refused
                with pytest.raises(ValueError):
                    await session.publish("note", float("nan"))
                await session.forget()

            await asyncio.gather(*(asked(f"random{n}", hub) for n in range(20) for hub in (one, two)))
            for n in range(20):
                assert await one.log.read(feed_id_key(one, f"random{n}"), None, limit_bytes=0) == Unknown()
            for hub in (one, two):
                assert not hub.readers and not len(hub._following)
            # To ask for the place of a feed is to want one.
            state, cursor = await one.session("chat").snapshot()
            assert state == {"messages": [], "streams": []} and cursor.n == 0
            assert isinstance(await two.log.read(feed_id_key(two), None, limit_bytes=0), Page)

    run_in_real_time(scenario)


@pytest.mark.parametrize("who", ["the same", "another", "both"])
def test_readers_wait_for_a_feed_until_somebody_begins_it(make: Make, who: str) -> None:  # noqa: F811
    """Those who came before the first event get all of it, also where others come and go meanwhile; each event once."""

    async def scenario() -> None:
        async with hub_over(make()) as one, hub_over(make()) as two:
            done = lambda seen: len(seen) == 10  # noqa: E731
            following = [asyncio.create_task(feed_of(hub, until=done)) for hub in (one, two) for _ in range(3)]
            while one.readers + two.readers < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            for hub in (one, two):
                assert (await hub.session("chat").answer("GET", {}, path="/feed")).status == 200
            for n in range(10):
                hub = one if who == "the same" or (who == "both" and n % 2) else two
                await hub.session("chat").publish("note", n, mid=f"m{n}")
                following.append(asyncio.create_task(feed_of(one, until=done)))
            expected = [("note", {"mid": f"m{n}", "data": n}) for n in range(10)]
            for each in following:
                assert await each == expected

    run_in_real_time(scenario)
