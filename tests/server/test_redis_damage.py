"""What else may be wrong with a Redis: keys of another kind, evicted keys, no memory, an old version, wrong passwords."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Head, Message, RedisLog, Span, _redis_client
from resumable_stream.server import log as values
from resumable_stream.server.log import (
    CANCEL,
    Append,
    Appended,
    Behind,
    Control,
    Done,
    Existing,
    Fenced,
    Gone,
    Lost,
    Page,
    Said,
    SpanRefused,
    Unavailable,
    Unknown,
    Writer,
)

from ..redis_server import RedisServer

HEAD = Head(content_type="text/event-stream", framing="sse", retention=100.0)
OK = Ending(outcome=Outcome.COMPLETED)
FIELDS = ("v", "epoch", "fence", "n", "b", "c", "oldest", "until", "keep", "k", "head")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario

    asyncio.run(bounded())


def event(n: int, size: int = 10) -> Span:
    return Span(n=n, b=n * size, lengths=(size,), data=b"%0*d" % (size, n))


async def begin(log: RedisLog, stream_id: str = "s", *, last: int = 3, **options: Any) -> Writer:
    writer = await log.create(stream_id, HEAD, **{"lease": 600.0, **options})
    assert isinstance(writer, Writer)
    for n in range(1, last + 1):
        assert await log.append([(writer, event(n), None)]) == [Appended(n)]
    return writer


@pytest.fixture
def direct(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=redis_server.port) as client:
        yield client


Verb = Callable[[RedisLog, Writer], Awaitable[object]]
VERBS: dict[str, Verb] = {
    "create": lambda log, writer: log.create("s", HEAD, lease=15.0),
    "append": lambda log, writer: log.append([(writer, event(4), None)]),
    "note": lambda log, writer: log.append([Append(writer, None, "note", n=3)]),
    "restore": lambda log, writer: log.restore(writer, HEAD, writer.epoch, [event(1)]),
    "finish": lambda log, writer: log.finish(writer, 3, OK),
    "renew": lambda log, writer: log.renew([writer]),
    "claim": lambda log, writer: log.claim("s", lease=15.0),
    "say": lambda log, writer: log.say("s", Message(id="m")),
    "inbox": lambda log, writer: log.inbox("s", 0),
    "read": lambda log, writer: log.read("s"),
}


# --- keys of another kind, damaged fields -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_a_record_of_another_kind_is_an_error_that_names_the_stream(redis_server: RedisServer, direct: Any, verb: str) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        direct.set("rs:{s}", "something else")
        with pytest.raises(LogUnavailable, match="stream 's'") as caught:
            await VERBS[verb](log, writer)
        assert caught.value.stream_id == "s"
        assert direct.get("rs:{s}") == b"something else"
        # What the message advises is possible.
        await log.delete("s")
        assert await log.read("s") == Unknown()
        await begin(log)
        await log.aclose()

    run(scenario())


def test_spans_and_messages_of_another_kind_are_errors_that_name_the_stream(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        direct.set("rs:{s}:s", "something else")
        for verb in ("append", "finish", "read"):
            with pytest.raises(LogUnavailable, match="stream 's'"):
                await VERBS[verb](log, writer)
        for key, verb in (("i", "say"), ("x", "say"), ("i", "inbox")):
            await begin(log, f"t{key}{verb}")
            direct.set(f"rs:{{t{key}{verb}}}:{key}", "something else")
            with pytest.raises(LogUnavailable, match=f"stream 't{key}{verb}'"):
                await (log.say(f"t{key}{verb}", Message(id="m")) if verb == "say" else log.inbox(f"t{key}{verb}", 0))
            assert await log.renew([replace(writer, lease=600.0)]) == [None]
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, "", "x", "-1", "1.5", "99999999999999999999", "\udcff"])
def test_a_damaged_field_is_an_error_that_names_the_stream(
    redis_server: RedisServer, direct: Any, field: str, value: str | None
) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        await begin(log)
        if value is None:
            direct.hdel("rs:{s}", field)
        else:
            direct.hset("rs:{s}", field, value.encode(errors="surrogateescape"))
        before = direct.hgetall("rs:{s}"), direct.xrange("rs:{s}:s")
        asked = [log.read("s"), log.create("s", HEAD, lease=15.0)]
        if field != "head":
            asked += [log.say("s", Message(id="m")), log.claim("s", lease=15.0)]
        for call in asked:
            with pytest.raises(LogUnavailable, match="stream 's'") as caught:
                await call
            assert caught.value.stream_id == "s"
        assert (direct.hgetall("rs:{s}"), direct.xrange("rs:{s}:s")) == before
        await log.aclose()

    run(scenario())


def test_a_record_of_a_later_version_is_left_alone(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        direct.hset("rs:{s}", "v", 2)
        for verb in VERBS.values():
            with pytest.raises(LogUnavailable, match="stream 's'.*later version.*upgrade"):
                await verb(log, writer)
        direct.hset("rs:{s}", "v", 1)
        assert await log.append([(writer, event(4), None)]) == [Appended(4)]
        await log.aclose()

    run(scenario())


def test_damaged_entries_are_errors_that_name_the_stream(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        good = {"b": 10, "l": "10", "d": "x" * 10}
        wrong: list[dict[Any, Any]] = [
            {"q": "x"},
            {"b": "x", "l": "10", "d": "x" * 10},
            {"b": 10, "l": "9", "d": "x" * 10},
            {"b": 10, "l": "10"},
            {"b": 10, "l": b"\xff", "d": "x" * 10},
            {"b": 10, "l": "10", "z": "x" * 10},
        ]
        for number, fields in enumerate([*wrong, good]):
            name = f"s{number}"
            await begin(log, name, last=1)
            direct.delete(f"rs:{{{name}}}:s")
            direct.xadd(f"rs:{{{name}}}:s", fields, id="1-0" if fields is not good else "1-7")
            with pytest.raises(LogUnavailable, match=f"stream '{name}'"):
                await log.read(name)
        await begin(log, "inbox")
        await log.say("inbox", Message(id="m"))
        direct.delete("rs:{inbox}:i")
        direct.xadd("rs:{inbox}:i", {"m": "m"}, id="1-0")
        with pytest.raises(LogUnavailable, match="stream 'inbox'"):
            await log.inbox("inbox", 0)
        await log.aclose()

    run(scenario())


def test_one_damaged_stream_of_a_batch_harms_no_other(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writers = [await begin(log, name) for name in "abc"]
        direct.set("rs:{b}", "something else")
        verdicts = await log.append([(writer, event(4), None) for writer in writers])
        # It says whose fault it was, and the others are stored.
        assert [verdicts[0], verdicts[2]] == [Appended(4), Appended(4)]
        assert isinstance(verdicts[1], Unavailable) and verdicts[1].stream_id == "b"
        assert "'b': the log is damaged" in verdicts[1].why
        assert await log.append([(writer, event(4), None) for writer in writers[::2]]) == [Appended(4), Appended(4)]
        leases = await log.renew(writers)
        assert [leases[0], leases[2]] == [None, None] and isinstance(leases[1], Unavailable)
        for call in (log.append([(writers[1], event(4), None)] * 2), log.renew([writers[1]])):
            with pytest.raises(LogUnavailable) as caught:
                await call
            assert caught.value.stream_id == "b"
        # The fault of a writer is told first: what is sent again without it says the rest.
        with pytest.raises(SpanRefused):
            await log.append([(writers[0], replace(event(5), b=55), None), (writers[1], event(4), None)])
        with pytest.raises(SpanRefused):
            await log.append([(writers[0], replace(event(5), b=55), None), (writers[2], event(5), None)])
        assert await log.append([(writers[2], event(5), None)]) == [Appended(5)]
        await log.aclose()

    run(scenario())


# --- evicted keys, full memory ----------------------------------------------------------------------------------------------


def test_a_stream_whose_record_is_evicted_is_lost_and_comes_back(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        await log.say("s", Message(id="m"))
        assert direct.delete("rs:{s}") == 1
        assert await log.read("s", Cursor(writer.epoch, 2)) == Unknown()
        assert await log.append([(writer, event(4), None)]) == [Lost()]
        assert await log.finish(writer, 3, OK) == Lost()
        assert await log.renew([writer]) == [Lost()]
        again = await log.restore(writer, HEAD, writer.epoch, [event(1), event(2), event(3)], inbox=[Message(id="m", k=1)])
        assert isinstance(again, Writer)
        assert await log.append([(again, event(4), None)]) == [Appended(4, Control(1))]
        assert await log.say("s", Message(id="m")) == Said(1)
        # And what was left of it does not come back into a new one.
        assert direct.delete("rs:{s}") == 1
        new = await begin(log, last=0)
        assert await log.inbox("s", 0) == []
        assert await log.append([(new, event(1), None)]) == [Appended(1)]
        assert direct.xlen("rs:{s}:s") == 1
        await log.aclose()

    run(scenario())


def test_a_stream_that_lost_some_of_its_spans_is_lost(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        direct.xdel("rs:{s}:s", "2-0")
        assert await log.append([(writer, event(4), None)]) == [Lost()]
        with pytest.raises(LogUnavailable, match="event 2 is missing"):
            await log.read("s")
        again = await log.restore(writer, HEAD, writer.epoch, [event(1), event(2), event(3)])
        assert isinstance(again, Writer)
        page = await log.read("s")
        assert isinstance(page, Page)
        assert page.spans == (event(1), event(2), event(3))
        await log.aclose()

    run(scenario())


@pytest.mark.parametrize("key", ["i", "x"])
def test_an_inbox_that_lost_messages_says_so_and_still_takes_a_cancel(redis_server: RedisServer, direct: Any, key: str) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        for name in ("m1", "m2"):
            await log.say("s", Message(id=name))
        direct.delete(f"rs:{{s}}:{key}")
        # Without knowing which messages there were, one that is said again would be taken twice.
        with pytest.raises(LogUnavailable, match="stream 's'.*inbox"):
            await log.say("s", Message(id="m3"))
        if key == "i":
            with pytest.raises(LogUnavailable, match="stream 's'.*inbox"):
                await log.inbox("s", 0)
        assert await log.say("s", Message(id="c", kind=CANCEL, data="stop")) == Said(3)
        assert await log.append([(writer, event(4), None)]) == [Appended(4, Control(3, "stop"))]
        await log.aclose()

    run(scenario())


def test_a_full_server_refuses_events_and_lets_streams_end(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url)
        writers = [await begin(log, f"s{number}", last=3) for number in range(4)]
        released = await begin(log, "released")
        await log.renew([replace(released, lease=0.0)])
        with redis.Redis(port=own_redis.port) as direct:
            assert direct.config_set("maxmemory-policy", "noeviction")
            assert direct.config_set("maxmemory", 1)
            with pytest.raises(LogUnavailable, match="is full.*memory"):
                await log.append([(writer, event(4), "note") for writer in writers])
            for call in (
                log.create("new", HEAD, lease=15.0),
                log.say("s0", Message(id="m")),
                log.restore(replace(released, stream_id="gone"), HEAD, released.epoch, [event(1)]),
            ):
                with pytest.raises(LogUnavailable, match="is full"):
                    await call
            # Nothing of it was done in part.
            page = await log.read("s0")
            assert isinstance(page, Page)
            assert (page.n, len(page.spans)) == (3, 3)
            assert await log.read("new") == Unknown()
            # What needs next to nothing goes on: the lease, a takeover, a cancel, and the end.
            assert await log.renew(writers) == [None] * 4
            assert await log.say("s1", Message(id="c", kind=CANCEL, data="stop")) == Said(1)
            claimed = await log.claim("released", lease=15.0)
            assert isinstance(claimed, Writer)
            for writer in (*writers, claimed):
                assert await log.finish(writer, 3, OK) == Done(3)
            await log.delete("s2")
            direct.config_set("maxmemory", 0)
        assert await log.append([(writers[0], event(4), None)]) == [values.Ended(OK, 3)]
        await log.aclose()

    run(scenario())


def test_streams_that_redis_evicts_are_lost_or_gone_and_never_wrong(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url)
        with redis.Redis(port=own_redis.port) as direct:
            direct.config_set("maxmemory-policy", "allkeys-random")
            direct.config_set("maxmemory", int(direct.info("memory")["used_memory"]) + (2 << 20))  # type: ignore[index]
        epochs: dict[str, str] = {}
        lost = read = 0
        for number in range(60):
            name = f"s{number}"
            writer = await log.create(name, HEAD, lease=600.0)
            assert isinstance(writer, Writer)
            epochs[name] = writer.epoch
            for n in range(1, 5):
                (verdict,) = await log.append([(writer, event(n, 20_000), None)])
                if verdict == Lost():
                    lost += 1
                    break
                assert verdict == Appended(n)
        for name, epoch in epochs.items():
            found = await log.read(name, Cursor(epoch, 0))
            if isinstance(found, Page) and found.spans:
                read += 1
                assert [span.n for span in found.spans] == list(range(1, found.n + 1))
            else:
                assert isinstance(found, Unknown | Gone | Page)
                assert not isinstance(found, Page) or found.n == 0
        assert lost + (60 - read) > 0, "nothing was evicted"
        await log.aclose()

    run(scenario())


# --- what is left behind ----------------------------------------------------------------------------------------------------


def test_all_keys_of_a_stream_expire_together(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)

        def check(longest: float, keys: int = 4) -> None:
            # At one moment: what is left of one key and then of another differs by what a busy machine takes in between.
            found = direct.eval(
                "local found = {} for _, key in ipairs(redis.call('KEYS', 'rs:{s}*')) do "
                f"found[#found + 1] = redis.call('{'PEXPIRETIME' if redis7 else 'PTTL'}', key) end return found",
                0,
            )
            assert len(found) == keys
            assert min(found) > 0, "a key that never expires"
            assert max(found) - min(found) <= (0 if redis7 else 50)
            assert direct.pttl("rs:{s}") > (longest - 20.0) * 1000
            assert direct.pttl("rs:{s}") <= longest * 1000

        redis7 = int(direct.info("server")["redis_version"].split(".")[0]) >= 7
        writer = await begin(log, last=0, lease=15.0)
        check(115.0, keys=1)
        await log.append([(writer, event(1), "note")])
        check(115.0, keys=2)
        await log.say("s", Message(id="m"))
        check(115.0)
        longer = replace(writer, lease=600.0)
        for call in (
            log.append([(longer, event(2), None)]),
            log.renew([longer]),
            log.append([Append(longer, None, "note", n=2)]),
            log.say("s", Message(id="m2")),
        ):
            await call
            check(700.0)
        await log.renew([replace(writer, lease=0.0)])
        check(100.0)
        claimed = await log.claim("s", lease=300.0)
        assert isinstance(claimed, Writer)
        check(400.0)
        await log.finish(claimed, 2, OK)
        check(100.0)
        await log.compact("s")
        check(100.0)
        await log.delete("s")
        assert direct.keys("*") == []
        assert isinstance(
            await log.restore(writer, HEAD, writer.epoch, [event(1)], inbox=[Message(id="m", k=1)], note="n"), Writer
        )
        check(115.0)
        await log.aclose()

    run(scenario())


def test_nothing_is_left_after_the_retention(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        async def nothing_left() -> None:
            while direct.keys("*"):  # noqa: ASYNC110  there is no event for what happens in a server
                await asyncio.sleep(0.02)

        log = RedisLog(redis_server.url)
        head = replace(HEAD, retention=0.05)
        for number in range(5):
            writer = await log.create(f"s{number}", head, lease=0.05)
            assert isinstance(writer, Writer)
            await log.append([(writer, event(1), None)])
            await log.say(f"s{number}", Message(id="m"))
            if number % 2:
                await log.finish(writer, 1, OK)
                await log.compact(f"s{number}")
        await nothing_left()
        assert await log.orphans() == []
        # One that is kept for no time at all is gone at once, and whole.
        writer = await log.create("s", replace(HEAD, retention=0.0), lease=600.0)
        assert isinstance(writer, Writer)
        await log.append([(writer, event(1), None)])
        await log.finish(writer, 1, OK)
        await nothing_left()
        assert await log.read("s") == Unknown()
        await log.aclose()

    run(scenario())


def test_the_longest_lease_is_long(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await log.create("s", replace(HEAD, retention=1e300), lease=1e300)
        assert isinstance(writer, Writer)
        assert await log.append([(writer, event(1), None)]) == [Appended(1)]
        assert await log.renew([writer]) == [None]
        assert await log.finish(writer, 1, OK) == Done(1)
        assert isinstance(await log.read("s"), Page)
        await log.aclose()

    run(scenario())


def test_the_index_of_running_streams_heals(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writers = [await begin(log, f"s{number}", last=1) for number in range(30)]
        assert direct.zcard("rs:run") == 30
        direct.delete("rs:run")
        direct.zadd("rs:run", {"not an id": 1, "unknown": 2, "s29": 3})
        await log.renew([replace(writer, lease=0.0) for writer in writers[:20]])
        assert sorted(await log.orphans()) == sorted(f"s{number}" for number in range(20))
        assert len(await log.orphans(limit=7)) == 7
        # One that is alive is asked again when its lease should be over, and not at each sweep.
        assert direct.zscore("rs:run", "s29") > 10
        assert direct.zscore("rs:run", "unknown") is None
        for number in range(0, 20, 2):
            claimed = await log.claim(f"s{number}", lease=600.0)
            assert isinstance(claimed, Writer)
            assert await log.finish(claimed, 1, OK) == Done(1)
        direct.set("rs:{s1}", "something else")
        assert sorted(await log.orphans()) == sorted(f"s{number}" for number in range(3, 20, 2))
        count = direct.zcard("rs:run")
        await log.delete("s3")
        assert direct.zcard("rs:run") == count - 1
        await log.aclose()

    run(scenario())


def test_deployments_with_other_prefixes_do_not_meet(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        logs = [RedisLog(redis_server.url, prefix=prefix) for prefix in ("", "a:", "b:")]
        writers = [await begin(log, lease=0.0, last=number) for number, log in enumerate(logs)]
        for number, (log, writer) in enumerate(zip(logs, writers, strict=True)):
            page = await log.read("s")
            assert isinstance(page, Page)
            assert page.n == number
            assert await log.orphans() == ["s"]
            assert await log.finish(writer, number, OK) == Done(number)
        assert {key.decode().partition("{")[0] for key in direct.keys("*")} == {"", "a:", "b:"}
        for log in logs:
            await log.aclose()
        for prefix in ("a{b}:", "a b", "é", "x" * 65, "a\n"):
            with pytest.raises(ValueError, match="prefix"):
                RedisLog(redis_server.url, prefix=prefix)

    run(scenario())


# --- what it costs ----------------------------------------------------------------------------------------------------------


def test_trips_and_commands_are_few(redis_server: RedisServer, direct: Any) -> None:
    async def scenario() -> None:
        log, other = RedisLog(redis_server.url), RedisLog(redis_server.url)
        writers = [await begin(log, f"s{number}", last=0) for number in range(50)]
        bells = other.bells()
        for writer in writers:
            await bells.add(writer.stream_id)
        await log.append([(writer, event(1), None) for writer in writers])
        direct.config_resetstat()
        rounds, each = 20, 4
        for round_ in range(rounds):
            n = 1 + (round_ + 1) * each
            span = Span(n=n, b=n * 10, lengths=(10,) * each, data=b"x" * 10 * each)
            assert await log.append([(writer, span, None) for writer in writers]) == [Appended(n)] * 50
        stats = {name.removeprefix("cmdstat_"): found["calls"] for name, found in direct.info("commandstats").items()}
        # One script for each span, and in it what has to be done; nothing blocks, and nothing else is sent.
        assert stats.pop("evalsha") == 50 * rounds
        inside = {"time", "hmget", "xlen", "xadd", "hset", "pexpire", "publish"}
        assert set(stats) - inside <= {"info", "config", "config|resetstat", "ping"}
        reads = direct.info("stats").get("total_reads_processed", 0)
        if reads:
            # 4,000 events. What a trip sends has some 14 KB, and is read in a few pieces.
            assert reads / (50 * rounds * each) <= 0.05
        connections: Any = direct.client_list(_type="pubsub")
        assert len(connections) == 1
        for each_log in (log, other):
            await each_log.aclose()

    run(scenario())


def test_a_replica_is_waited_for_and_its_absence_is_said_once(
    own_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    replica_of: Callable[[RedisServer], RedisServer],
) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url, durability="replica")
        with caplog.at_level(logging.INFO, "resumable_stream.server"):
            writer = await begin(log, last=2)
            assert [record.levelname for record in caplog.records] == ["WARNING"]
            assert "no replica" in caplog.text
            replica = replica_of(own_redis)
            with redis.Redis(port=own_redis.port) as direct:
                while direct.wait(1, 100) < 1:  # noqa: ASYNC110  it waits itself
                    await asyncio.sleep(0)
                # Long enough for a busy machine.
                monkeypatch.setattr(_redis_client, "_REPLICA_MS", 3000)
                calls = direct.info("commandstats")["cmdstat_wait"]["calls"]  # type: ignore[index]
                for n in range(3, 8):
                    await log.append([(writer, event(n), None)])
                    with redis.Redis(port=replica.port) as copy:
                        # Whatever was acknowledged is there.
                        assert copy.hget("rs:{s}", "n") == b"%d" % n
                assert direct.info("commandstats")["cmdstat_wait"]["calls"] == calls + 5  # type: ignore[index]
            await log.finish(writer, 7, OK)
            assert isinstance(await log.read("s"), Page)
            assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
        await log.aclose()

    run(scenario())


@pytest.fixture
def replica_of() -> Iterator[Callable[[RedisServer], RedisServer]]:
    started: list[RedisServer] = []

    def start(primary: RedisServer) -> RedisServer:
        assert primary.command("CONFIG", "SET", "repl-diskless-sync-delay", 0) == "+OK"
        started.append(RedisServer("--replicaof", "127.0.0.1", str(primary.port)).start())
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_replica_takes_no_writes_and_says_so(own_redis: RedisServer, replica_of: Callable[[RedisServer], RedisServer]) -> None:
    async def scenario() -> None:
        replica = replica_of(own_redis)
        log = RedisLog(replica.url)
        with redis.Redis(port=replica.port) as direct:
            while direct.info("replication")["master_link_status"] != "up":  # type: ignore[index]  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for _ in range(2):
            with pytest.raises(LogUnavailable, match="replica"):
                await log.create("s", HEAD, lease=15.0)
        replica.command("REPLICAOF", "NO", "ONE")
        assert isinstance(await log.create("s", HEAD, lease=15.0), Writer)
        await log.aclose()

    run(scenario())


# --- versions and kinds of servers ------------------------------------------------------------------------------------------


async def _says(answers: dict[bytes, bytes]) -> asyncio.Server:
    """A server that knows a few commands."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                words.append(await reader.readexactly(int((await reader.readline())[1:]) + 2))
            name = words[0].strip().upper()
            writer.write(answers.get(name, b"-ERR unknown command `%s`, with args beginning with: \r\n" % name))
            await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def _hello(version: bytes, mode: bytes = b"standalone") -> bytes:
    words = [b"server", b"redis", b"version", version, b"mode", mode]
    return b"*6\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@pytest.mark.parametrize(
    ("hello", "said"),
    [
        (None, "needs Redis 6.2 or newer, but .* does not know HELLO"),
        (_hello(b"6.0.20"), "needs Redis 6.2 or newer, but .* is 6.0.20; upgrade it"),
        (_hello(b"7.2.4", b"cluster"), "node of a Redis Cluster"),
        (_hello(b"7.2.4", b"sentinel"), "is a Sentinel; use redis.sentinel://"),
    ],
)
def test_a_server_that_is_too_old_or_of_another_kind_is_refused_clearly(hello: bytes | None, said: str) -> None:
    async def scenario() -> None:
        async with await _says({b"CLIENT": b"+OK\r\n"} | ({b"HELLO": hello} if hello else {})) as server:
            log = RedisLog(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            for _ in range(2):
                with pytest.raises(LogUnavailable, match=said):
                    await log.read("s")
            await log.aclose()

    run(scenario())


@pytest.mark.parametrize("asks", [True, False])
def test_a_user_with_few_rights_is_enough(own_redis: RedisServer, asks: bool) -> None:
    """Also one that may not ask the server for its history; then a failover is not noticed, see the page on logs."""

    async def scenario() -> None:
        login = ["on", ">pass", "~app:*", "resetchannels", "&app:*", "-@all"]
        inside = "+time +hmget +hget +hset +hdel +exists +hexists +hlen +unlink +xadd +xlen +xrange +pexpire +pttl +publish"
        inside += " +zadd +zrem +zrangebyscore +rename +xtrim +persist"
        if asks:
            inside += " +info"
        outside = "+evalsha +eval +subscribe +unsubscribe +ping"
        assert own_redis.command("ACL", "SETUSER", "app", *login, *inside.split(), *outside.split()) == "+OK"
        log = RedisLog(f"redis://app:pass@127.0.0.1:{own_redis.port}", prefix="app:")
        writer = await begin(log)
        bells = log.bells()
        await bells.add("s")
        await log.say("s", Message(id="m"))
        assert (await anext(bells)).item == Control(1)
        assert await log.orphans() == []
        await log.renew([replace(writer, lease=0.0)])
        again = await log.claim("s", lease=15.0, go_on=True)
        assert isinstance(again, Writer) and again.epoch == writer.epoch
        with redis.Redis(port=own_redis.port) as direct:
            history = direct.hget("app:{s}", "at")
            assert history == (direct.info("replication")["master_replid"].encode() if asks else b"")
        # As the feeds of sessions do.
        assert await log.append([Append(again, event(4), exact=True, trims=4)]) == [Appended(4, Control(1))]
        assert await log.finish(again, 4, OK) == Done(4)
        await log.compact("s")
        await log.delete("s")
        await log.aclose()

    run(scenario())


# --- credentials ------------------------------------------------------------------------------------------------------------


SECRET, USER = "s3cr3t-pa55", "somebody"


def _all_of(error: BaseException) -> str:
    """Everything that an error shows to anybody."""
    shown = "".join(traceback.format_exception(error))
    current: BaseException | None = error
    while current is not None:
        shown += f"{current} {current!r} {current.args}"
        current = current.__cause__ or current.__context__
    return shown


def test_credentials_of_a_url_are_in_no_error_log_or_repr(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        caplog.set_level(logging.DEBUG)
        shown = ""
        port = own_redis.port
        assert own_redis.command("ACL", "SETUSER", USER, "on", f">{SECRET}", "~*", "&*", "-@all", "+hello", "+client") == "+OK"
        for login in (f"{USER}:{SECRET}", f"{USER}:wrong-{SECRET}", f"nobody-{USER}:{SECRET}", f":{SECRET}"):
            for place in (f"127.0.0.1:{port}/0", "127.0.0.1:1/0", f"127.0.0.1:{port}/99999"):
                log = RedisLog(f"redis://{login}@{place}", socket_timeout=1.0)
                shown += repr(log)
                bells = log.bells()
                for call in (log.read("s"), log.append([(Writer("s", "abcd", 1), event(1), SECRET)]), bells.add("s")):
                    with pytest.raises(LogUnavailable) as caught:
                        await call
                    shown += _all_of(caught.value)
                await log.aclose()
        assert f"127.0.0.1:{port}" in shown
        for secret in (SECRET, USER):
            assert secret not in shown
            assert secret not in caplog.text

    run(scenario())


def test_credentials_that_a_server_repeats_are_left_out() -> None:
    async def scenario() -> None:
        for said in (
            f"-WRONGPASS no user {USER} with {SECRET}\r\n",
            f"-ERR unknown command `AUTH`, with args beginning with: `{USER}`, `{SECRET}-and-more`\r\n",
            f"-DENIED {SECRET}\r\n",
        ):
            async with await _says({b"CLIENT": b"+OK\r\n", b"AUTH": said.encode()}) as server:
                log = RedisLog(f"redis://{USER}:{SECRET}@127.0.0.1:{server.sockets[0].getsockname()[1]}")
                for call in (log.read("s"), log.append([(Writer("s", "abcd", 1), event(1), None)]), log.bells().add("s")):
                    with pytest.raises(LogUnavailable) as caught:
                        await call
                    shown = _all_of(caught.value)
                    assert SECRET not in shown
                    assert USER not in shown
                await log.aclose()

    run(scenario())


@pytest.mark.parametrize(
    "url",
    [
        f"http://u:{SECRET}@host",
        f"{SECRET}",
        f"redis://:{SECRET}/x@host:6379",
        f"redis://:1234/{SECRET}@host:6379/0",
        f"redis://:{SECRET}#@host:6379",
        f"redis://host:{SECRET}",
        f"redis://u:p@host:6379/0?{SECRET}=1",
        f"redis://host/0?socket_timeout={SECRET}",
        f"redis://[{SECRET}",
        f"redis+sentinel://u:{SECRET}@host",
        f"redis+sentinel://u:p@host:{SECRET}/name",
        f"redis+sentinel://host/name/{SECRET}",
        f"redis+cluster://u:p@host:{SECRET}",
        f"redis+cluster://u:p@host/0?{SECRET}=1",
    ],
)
def test_a_url_that_cannot_be_read_is_not_in_the_error(url: str) -> None:
    with pytest.raises(ValueError, match="expected .*redis://host:6379/0") as caught:
        RedisLog(url)
    shown = _all_of(caught.value)
    # The frames of this test name it; what is raised must not.
    assert SECRET not in re.sub(r'RedisLog\(url\)|File ".*"', "", shown)


def test_what_is_no_client_is_refused_with_a_hint(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        with pytest.raises(TypeError, match=r"redis\.asyncio"):
            RedisLog(redis.Redis(port=redis_server.port))  # type: ignore[arg-type]
        sentinel = Sentinel([("127.0.0.1", 1)])
        with pytest.raises(TypeError, match="master_for"):
            RedisLog(sentinel)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="master_for"):
            RedisLog(sentinel.slave_for("name"))
        with pytest.raises(TypeError, match="URL"):
            RedisLog(None)  # type: ignore[arg-type]
        for each in sentinel.sentinels:
            await each.aclose()
        for wrong in ({"durability": "all"}, {"socket_timeout": 0}, {"timeout": -1.0}, {"max_connections": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                RedisLog(redis_server.url, **wrong)  # type: ignore[arg-type]

    run(scenario())


def test_without_redis_py_the_extra_is_named() -> None:
    code = "import sys; sys.modules['redis'] = None\nfrom resumable_stream.server import MemoryLog, RedisLog"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert "ImportError: RedisLog needs redis: pip install 'resumable-stream-sdk[redis]'" in done.stderr


def test_places_are_shown_without_what_is_secret() -> None:
    shown = {
        "redis://u:p@host": "redis://host:6379/0",
        "rediss://:p@[::1]:6380/2?ssl_ca_certs=x": "redis://[::1]:6380/2",
        "unix://u:p@/tmp/redis.sock?db=3": "unix:///tmp/redis.sock?db=3",
        "redis+sentinel://u:p@a:1,b/main/4": "redis+sentinel://main/4",
        "redis+cluster://u:p@1.2.3.4:7000,1.2.3.5": "redis+cluster://1.2.3.4:7000",
    }
    for url, place in shown.items():
        assert repr(RedisLog(url)) == f"RedisLog({place!r}, prefix='rs:')"


def test_a_log_of_a_unix_socket_works_and_is_closed_for_good(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.socket_url)
        writer = await begin(log)
        bells = log.bells()
        await bells.add("s")
        await log.append([(writer, event(4), None)])
        assert (await anext(bells)).item == event(4)
        await log.aclose()
        await log.aclose()
        with pytest.raises(LogUnavailable, match="closed"):
            await log.read("s")
        with pytest.raises(LogUnavailable, match="closed"):
            await bells.add("s")
        assert [bell async for bell in bells] == []

    run(scenario())


def test_a_caller_may_close_a_log_and_use_the_client(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with Redis(port=redis_server.port) as client:
            first, second = RedisLog(client), RedisLog(client)
            writer = await begin(first)
            await first.aclose()
            with pytest.raises(LogUnavailable, match="closed"):
                await first.read("s")
            with pytest.raises(LogUnavailable, match="closed"):
                await first.bells().add("s")
            assert await second.append([(writer, event(4), None), (writer, event(6), None)]) == [Appended(4), Behind(4)]
            assert isinstance(await second.create("s", HEAD, lease=1.0), Existing)
            assert await second.renew([replace(writer, fence=3)]) == [Fenced(writer.token)]
            await second.aclose()

    run(scenario())
