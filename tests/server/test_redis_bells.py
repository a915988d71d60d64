"""How the bells of Redis are heard: one connection, cut, silent, or too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Head, Message, RedisLog, Span
from resumable_stream.server import _redis_bells as implementation
from resumable_stream.server._redis_entries import bell_of
from resumable_stream.server.log import CANCEL, Appended, Bell, Control, Page, Writer

from ..redis_server import RedisServer
from .redis_proxy import RedisProxy

HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario

    asyncio.run(bounded())


def event(n: int, size: int = 10) -> Span:
    return Span(n=n, b=n * size, lengths=(size,), data=b"%0*d" % (size, n))


async def begin(log: RedisLog, stream_id: str = "s") -> Writer:
    writer = await log.create(stream_id, HEAD, lease=600.0)
    assert isinstance(writer, Writer)
    return writer


async def heard(bells: Any, fits: Callable[[Bell], bool]) -> Bell:
    while True:
        bell: Bell = await anext(bells)
        if fits(bell):
            return bell


def listeners(server: RedisServer) -> list[dict[str, str]]:
    with redis.Redis(port=server.port) as direct:
        found: Any = direct.client_list(_type="pubsub")
        return [each for each in found if each["sub"] != "0" or each["ssub"] != "0"] if found and "ssub" in found[0] else found


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  there is no event for what happens in a server
        await asyncio.sleep(0.01)


async def subscribed(server: RedisServer, count: int) -> None:
    """Wait until so many connections listen."""
    await until(lambda: len(listeners(server)) == count)


# --- what rings -------------------------------------------------------------------------------------------------------------


def test_a_bell_carries_what_was_appended_up_to_64_kib(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        bells = log.bells()
        await bells.add("s")
        size = 64 << 10
        small = Span(n=1, b=size, lengths=(size,), data=b"x" * size)
        large = Span(n=2, b=2 * size + 1, lengths=(size + 1,), data=b"y" * (size + 1))
        many = Span(n=102, b=2 * size + 1 + 500, lengths=(5,) * 100, data=b"abcd\n" * 100)
        for each in (small, large, many):
            await log.append([(writer, each, None)])
        await log.say("s", Message(id="m"))
        await log.say("s", Message(id="c", kind=CANCEL, data="é\n\nwhy"))
        await log.say("s", Message(id="c2", kind=CANCEL, data="later"))
        await log.finish(writer, 102, OK)
        await log.delete("s")
        rung = [await anext(bells) for _ in range(8)]
        assert rung == [
            Bell(id="s", item=small, epoch=writer.epoch, n=1),
            Bell(id="s", item=None, epoch=writer.epoch, n=2),
            Bell(id="s", item=many, epoch=writer.epoch, n=102),
            Bell(id="s", item=Control(1), epoch=writer.epoch, n=102),
            Bell(id="s", item=Control(2, "é\n\nwhy"), epoch=writer.epoch, n=102),
            Bell(id="s", item=Control(3, "é\n\nwhy"), epoch=writer.epoch, n=102),
            Bell(id="s", item=OK, epoch=writer.epoch, n=102),
            Bell(id="s"),
        ]
        await log.aclose()

    run(scenario())


def test_what_changes_nothing_does_not_ring(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        await log.append([(writer, event(1), None)])
        bells = log.bells()
        await bells.add("s")
        await log.append([(writer, event(1), "note"), (writer, event(3), None)])
        await log.renew([writer])
        await log.say("s", Message(id="m"))
        await log.say("s", Message(id="m"))
        await log.append([(writer, event(2), None)])
        assert [(await anext(bells)).item for _ in range(2)] == [Control(1), event(2)]
        await log.aclose()

    run(scenario())


def test_the_bell_of_a_trimmed_log_carries_its_oldest_event(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        await log.delete("s")
        bells = log.bells()
        await bells.add("s")
        again = await log.restore(writer, HEAD, "abcdefg", [event(4)])
        assert isinstance(again, Writer)
        await log.append([(again, event(5), None)])
        assert await anext(bells) == Bell(id="s", epoch="abcdefg", n=4, oldest=4)
        assert await anext(bells) == Bell(id="s", item=event(5), epoch="abcdefg", n=5, oldest=4)
        await log.aclose()

    run(scenario())


UNREADABLE = (
    *(b"", b"s", b"\xff\0", b"q abcd 1 1\nxyz", b"s abcd 1 1 5 5\nxyz", b"s abcd 1 1 x 3\nxyz"),
    *(b"e abcd 1 1\n{}", b"c abcd 1 1 x 0\n"),
)


@pytest.mark.parametrize("message", UNREADABLE)
def test_a_message_that_cannot_be_read_says_that_something_has_changed(message: bytes) -> None:
    bell = bell_of("s", message)
    assert (bell.id, bell.item) == ("s", None)


# --- one connection ---------------------------------------------------------------------------------------------------------


def test_one_connection_hears_any_number_of_streams_for_any_number_of_listeners(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writers = [await begin(log, f"s{number}") for number in range(120)]
        everything = [log.bells() for _ in range(3)]
        await asyncio.gather(*(bells.add(writer.stream_id) for bells in everything for writer in writers))
        (connection,) = listeners(redis_server)
        assert connection["sub"] == "120"
        await log.append([(writer, event(1), None) for writer in writers])
        for bells in everything:
            assert {(await anext(bells)).id for _ in range(120)} == {f"s{number}" for number in range(120)}
        # What nobody listens to any more is not sent any more.
        for bells in everything[:2]:
            await bells.aclose()
        assert listeners(redis_server)[0]["sub"] == "120"
        for number in range(1, 120):
            await everything[2].discard(f"s{number}")
        await until(lambda: listeners(redis_server)[0]["sub"] == "1")
        await log.append([(writer, event(2), None) for writer in writers])
        assert (await anext(everything[2])).id == "s0"
        await log.aclose()
        await subscribed(redis_server, 0)

    run(scenario())


def test_adding_and_discarding_in_any_order_ends_as_it_should(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        bells = log.bells()
        n = 0
        for round_ in range(30):
            adding = [asyncio.create_task(bells.add("s")) for _ in range(3)]
            for _ in range(round_ % 7):
                await asyncio.sleep(0)
            adding[0].cancel()
            await bells.discard("s")
            for task in adding:
                task.cancel()
            await asyncio.gather(*adding, return_exceptions=True)
            await bells.add("s")
            n += 1
            await log.append([(writer, event(n), None)])
            assert (await heard(bells, lambda bell: bell.n == n)).item == event(n)  # noqa: B023
        await bells.discard("s")
        await log.append([(writer, event(n + 1), None)])
        await bells.add("s")
        await log.append([(writer, event(n + 2), None)])
        assert (await anext(bells)).n == n + 2
        await log.aclose()

    run(scenario())


def test_a_connection_that_nobody_needs_is_closed(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        log._listening.ping = 0.05
        writer = await begin(log)
        bells = log.bells()
        await bells.add("s")
        await bells.discard("s")
        await subscribed(redis_server, 0)
        await until(lambda: not log._listening._links)
        await bells.add("s")
        await log.append([(writer, event(1), None)])
        assert (await anext(bells)).item == event(1)
        await log.aclose()

    run(scenario())


def test_a_reply_to_an_earlier_command_does_not_count_for_a_later_one(redis_server: RedisServer) -> None:
    """Somebody leaves and comes back before the first reply is there: only the reply to the second command is meant."""

    class Silent:
        is_connected = True

        async def send_command(self, *words: Any, check_health: bool) -> None:
            sent.append(words)

    sent: list[Any] = []

    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        listening, bells = log._listening, log.bells()
        link = implementation._Link(listening, "", None)
        link._connection = Silent()
        listening._links[""] = link
        first = asyncio.create_task(bells.add("s"))
        await until(lambda: len(sent) == 1)
        await bells.discard("s")
        first.cancel()
        second = asyncio.create_task(bells.add("s"))
        await until(lambda: len(sent) == 3)
        assert [words[0] for words in sent] == ["SUBSCRIBE", "UNSUBSCRIBE", "SUBSCRIBE"]
        for kind, heard_now in ((b"subscribe", False), (b"unsubscribe", False), (b"subscribe", True)):
            link._on_reply([kind, b"rs:{s}", 1])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert second.done() is heard_now
        await asyncio.gather(first, second, return_exceptions=True)
        await log.aclose()

    run(scenario())


def test_a_stream_added_to_a_connection_that_is_just_closing_finds_another(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        bells = log.bells()
        await bells.add("s")
        channel = log._listening._channels["s"]
        link = channel.link
        assert link is not None
        log._listening.on_lost(link, [channel], None)
        assert not channel.heard
        await until(lambda: channel.heard)
        assert channel.link is not link
        await log.append([(writer, event(1), None)])
        assert (await anext(bells)).item == event(1)
        await log.aclose()

    run(scenario())


# --- it is lost -------------------------------------------------------------------------------------------------------------


async def _follow(log: RedisLog, epoch: str, last: int) -> tuple[bytes, int]:
    """Read a stream by its bells alone, and count those without a content."""
    bells = log.bells()
    await bells.add("s")
    n, empty, found = 0, 0, b""
    while n < last:
        page = await log.read("s", Cursor(epoch, n))
        assert isinstance(page, Page)
        for span in page.spans:
            assert span.first == n + 1
            n, found = span.n, found + span.data
        if n < last:
            bell = await anext(bells)
            empty += bell.n is None
    await bells.aclose()
    return found, empty


def test_a_reader_stays_exact_while_its_connection_is_cut_again_and_again(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with RedisProxy(redis_server.port) as proxy:
            log, direct = RedisLog(proxy.url), RedisLog(redis_server.url)
            writer = await begin(direct)
            following = asyncio.create_task(_follow(log, writer.epoch, 150))
            with redis.Redis(port=redis_server.port) as admin:
                for n in range(1, 151):
                    await direct.append([(writer, event(n), None)])
                    if n in (30, 60, 90, 120):
                        await subscribed(redis_server, 1)
                        admin.client_kill_filter(_type="pubsub")
                    await asyncio.sleep(0.001)
            found, empty = await following
            assert found == b"".join(event(n).data for n in range(1, 151))
            assert empty >= 1
            for each in (log, direct):
                await each.aclose()

    run(scenario())


def test_every_stream_rings_once_it_is_heard_again(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writers = [await begin(log, f"s{number}") for number in range(1200)]
        bells, others = log.bells(), log.bells()
        await asyncio.gather(*(bells.add(writer.stream_id) for writer in writers))
        await others.add("s7")
        with redis.Redis(port=redis_server.port) as admin:
            admin.client_kill_filter(_type="pubsub")
        assert {(await anext(bells)).id for _ in range(1200)} == {writer.stream_id for writer in writers}
        assert await anext(others) == Bell(id="s7")
        # From then on it hears again.
        await log.append([(writers[5], event(1), None)])
        assert await anext(bells) == Bell(id="s5", item=event(1), epoch=writers[5].epoch, n=1)
        await log.aclose()

    run(scenario())


def test_a_connection_that_has_fallen_silent_is_replaced(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with RedisProxy(redis_server.port) as proxy:
            log, direct = RedisLog(proxy.url, socket_timeout=1.0), RedisLog(redis_server.url)
            log._listening.ping = 0.2
            writer = await begin(direct)
            bells = log.bells()
            await bells.add("s")
            proxy.hold(b"SUBSCRIBE")
            for n in range(1, 4):
                await direct.append([(writer, event(n), None)])
            # Nobody says that this connection is dead.
            connections = proxy.connections
            await until(lambda: proxy.connections > connections)
            proxy.flow()
            assert await anext(bells) == Bell(id="s")
            await direct.append([(writer, event(4), None)])
            assert (await heard(bells, lambda bell: bell.n == 4)).item == event(4)
            for each in (log, direct):
                await each.aclose()

    run(scenario())


def test_a_quiet_connection_is_kept(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with RedisProxy(redis_server.port) as proxy:
            log, direct = RedisLog(proxy.url), RedisLog(redis_server.url)
            log._listening.ping = 0.4
            writer = await begin(direct)
            bells = log.bells()
            await bells.add("s")
            connections = proxy.connections
            with redis.Redis(port=redis_server.port) as admin:
                before = pings(admin)
                while pings(admin) < before + 2:  # noqa: ASYNC110  Redis says nothing of it by itself
                    await asyncio.sleep(0.02)
            await direct.append([(writer, event(1), None)])
            assert (await anext(bells)).item == event(1)
            assert proxy.connections == connections
            for each in (log, direct):
                await each.aclose()

    run(scenario())


def pings(admin: redis.Redis) -> int:
    found: Any = admin.info("commandstats")
    calls: int = found.get("cmdstat_ping", {"calls": 0})["calls"]
    return calls


def test_who_cannot_be_heard_is_told_so(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url, socket_timeout=1.0)
        bells = log.bells()
        own_redis.kill()
        for _ in range(2):
            with pytest.raises(LogUnavailable, match=f"127.0.0.1:{own_redis.port}"):
                await bells.add("s")
        own_redis.start()
        writer = await begin(log)
        await bells.add("s")
        await log.append([(writer, event(1), None)])
        assert (await anext(bells)).item == event(1)
        await log.aclose()

    run(scenario())


def test_a_user_who_may_not_listen_is_told_so(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        assert own_redis.command("ACL", "SETUSER", "mute", "on", "nopass", "~*", "+@all", "resetchannels") == "+OK"
        log = RedisLog(f"redis://mute:none@127.0.0.1:{own_redis.port}")
        bells = log.bells()
        with pytest.raises(LogUnavailable, match="channel"):
            await bells.add("s")
        await log.aclose()

    run(scenario())


# --- it is slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count", "most_bytes"), [(10, 20, 1 << 30), (900, 1000, 10_000)])
def test_a_listener_that_is_too_slow_gets_one_bell_for_each_stream(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, size: int, count: int, most_bytes: int
) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writers = [await begin(log, name) for name in ("a", "b")]
        bells, marks = log.bells(), log.bells()
        for name in ("a", "b"):
            await bells.add(name)
        await marks.add("b")
        for n in range(1, 26):
            await log.append([(writer, event(n, size), None) for writer in writers])
        await heard(marks, lambda bell: bell.n == 25)
        waiting = [bell for bell, _ in bells._queue._waiting]
        assert len(waiting) <= 20
        assert sum(len(bell.item.data) for bell in waiting if isinstance(bell.item, Span)) <= most_bytes
        rung = [await anext(bells) for _ in waiting]
        assert {bell.id for bell in rung if bell.item is None} == {"a", "b"}
        # Whatever was gathered: who reads after each bell has all.
        assert rung[-1].item is None or rung[-1].n == 25
        await log.aclose()

    monkeypatch.setattr("resumable_stream.server._bell_queue.MOST_WAITING", count)
    monkeypatch.setattr("resumable_stream.server._bell_queue.MOST_WAITING_BYTES", most_bytes)
    run(scenario())


def test_a_subscriber_that_redis_drops_comes_back(own_redis: RedisServer) -> None:
    """Redis closes the connection of whoever does not read: here because the network holds everything back."""

    async def scenario() -> None:
        limit = "pubsub 262144 0 0"
        assert own_redis.command("CONFIG", "SET", "client-output-buffer-limit", limit) == "+OK"
        async with RedisProxy(own_redis.port) as proxy:
            log, direct = RedisLog(proxy.url), RedisLog(own_redis.url)
            writer = await begin(direct)
            bells = log.bells()
            await bells.add("s")
            proxy.hold(b"SUBSCRIBE")
            n = 0
            while listeners(own_redis):
                n += 1
                await direct.append([(writer, event(n, 60_000), None)])
            proxy.flow()
            await heard(bells, lambda bell: bell.n is None)
            page = await log.read("s", Cursor(writer.epoch, n - 1))
            assert isinstance(page, Page)
            assert page.spans == (event(n, 60_000),)
            assert await direct.append([(writer, event(n + 1, 60_000), None)]) == [Appended(n + 1)]
            await heard(bells, lambda bell: bell.n == n + 1)
            for each in (log, direct):
                await each.aclose()

    run(scenario())


# --- clients of the caller --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"protocol": 3, "decode_responses": True}])
def test_a_client_of_the_callers_is_used_as_it_is_and_left_open(redis_server: RedisServer, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        client = Redis(port=redis_server.port, encoding="latin-1", **options)
        log = RedisLog(client)
        writer = await begin(log)
        bells = log.bells()
        await bells.add("s")
        binary = Span(n=1, b=256, lengths=(256,), data=bytes(range(256)))
        await log.append([(writer, binary, "note é")])
        assert (await anext(bells)).item == binary
        page = await log.read("s")
        assert isinstance(page, Page)
        assert page.spans == (binary,)
        await log.aclose()
        await subscribed(redis_server, 0)
        assert await client.ping()
        await client.aclose()

    run(scenario())
