"""What happens to a log in Redis when the server dies, comes back with less, or loses a reply."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis
from redis.exceptions import NoScriptError, ResponseError

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import Cursor, Ending, Head, Message, RedisLog, Span
from resumable_stream.server._redis_client import Call, _again
from resumable_stream.server._redis_scripts import Scripts
from resumable_stream.server.log import (
    CANCEL,
    Appended,
    Behind,
    Bell,
    Control,
    Done,
    Ended,
    Existing,
    Fenced,
    Gone,
    Held,
    Lost,
    Page,
    Said,
    Unknown,
    Writer,
)

from ..redis_server import RedisServer
from .redis_proxy import RedisProxy
from .serving import wait_until

HEAD = Head(content_type="text/event-stream", framing="sse", fingerprint="f")
OK = Ending(outcome=Outcome.COMPLETED)
LOST = Ending(outcome=Outcome.FAILED, reason="producer_lost")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(200):
            await scenario

    asyncio.run(bounded())


def event(n: int) -> bytes:
    return b"data: %d%s\n\n" % (n, b"x" * (n * 7 % 23))


def span(first: int, last: int | None = None) -> Span:
    events = [event(n) for n in range(first, (last or first) + 1)]
    b = sum(len(event(n)) for n in range(1, first)) + sum(map(len, events))
    return Span(n=last or first, b=b, lengths=tuple(map(len, events)), data=b"".join(events))


def whole(last: int) -> bytes:
    return b"".join(event(n) for n in range(1, last + 1))


async def begin(log: RedisLog, stream_id: str = "s", *, last: int = 0, lease: float = 600.0, head: Head = HEAD) -> Writer:
    writer = await log.create(stream_id, head, lease=lease)
    assert isinstance(writer, Writer)
    await go_on(log, writer, 1, last)
    return writer


async def go_on(log: RedisLog, writer: Writer, first: int, last: int) -> None:
    for n in range(first, last + 1):
        assert await log.append([(writer, span(n), None)]) == [Appended(n)]


async def text(log: RedisLog, stream_id: str = "s", after: Cursor | None = None) -> bytes:
    found = b""
    while True:
        page = await log.read(stream_id, after)
        assert isinstance(page, Page), page
        if not page.spans:
            return found
        found += b"".join(each.data for each in page.spans)
        after = Cursor(page.epoch, page.spans[-1].n)


async def claim(log: RedisLog) -> Writer:
    """Claim the stream as soon as its lease is over."""
    while True:
        found = await log.claim("s", lease=600.0)
        if isinstance(found, Writer):
            return found
        assert isinstance(found, Held)
        await asyncio.sleep(found.seconds)


async def until(question: Callable[[], Awaitable[object]]) -> None:
    """Ask until Redis is there."""
    while True:
        try:
            await question()
            return
        except LogUnavailable:
            await asyncio.sleep(0.02)


async def heard(bells: Any, fits: Callable[[Bell], bool]) -> Bell:
    while True:
        bell: Bell = await anext(bells)
        if fits(bell):
            return bell


@pytest.fixture
def kept_redis() -> Iterator[RedisServer]:
    server = RedisServer(persistent=True).start()
    yield server
    server.close()


# --- the server dies ------------------------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_kill_9_with_an_append_only_file(kept_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(kept_redis.url)
        writer = await begin(log, last=20)
        await log.say("s", Message(id="m"))
        bells = log.bells()
        await bells.add("s")
        kept_redis.restart()
        await until(lambda: log.read("s"))
        assert await text(log) == whole(20)
        assert await log.append([(writer, span(20), None)]) == [Appended(20, Control(1))]
        assert await log.append([(writer, span(21), None)]) == [Appended(21, Control(1))]
        # The bells are back by themselves, and say that some may be missing.
        assert (await heard(bells, lambda bell: bell.item is None)).id == "s"
        await log.append([(writer, span(22), None)])
        await heard(bells, lambda bell: bell.n == 22)
        assert await log.finish(writer, 22, OK) == Done(22)
        assert await text(log) == whole(22)
        await log.aclose()

    run(scenario())


def test_a_living_producer_writes_an_empty_server_again(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log, other = RedisLog(own_redis.url), RedisLog(own_redis.url)
        writer = await begin(log, last=20)
        bells = other.bells()
        await bells.add("s")
        reader = Cursor(writer.epoch, 12)
        own_redis.restart()
        await until(lambda: log.read("s"))
        assert await log.read("s", reader) == Unknown()
        assert await log.append([(writer, span(21), None)]) == [Lost()]
        again = await log.restore(writer, HEAD, writer.epoch, [span(n) for n in range(1, 21)], note="note", note_n=20)
        assert again == Writer("s", writer.epoch, 2)
        assert isinstance(again, Writer)
        assert await log.append([(again, span(21), None)]) == [Appended(21)]
        assert await text(other, after=reader) == whole(21)[len(whole(12)) :]
        assert (await heard(bells, lambda bell: True)).item is None
        for each in (log, other):
            await each.aclose()

    run(scenario())


def test_with_a_dead_producer_an_empty_server_knows_nothing(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url)
        writer = await begin(log, last=20)
        own_redis.restart()
        await until(lambda: log.read("s"))
        assert await log.read("s", Cursor(writer.epoch, 20)) == Unknown()
        assert await log.claim("s", lease=15.0) == Unknown()
        # Started anew: whoever read the old one is told so, and the old producer is refused if it is not dead after all.
        new = await begin(log, last=3)
        gone = await log.read("s", Cursor(writer.epoch, 2))
        assert isinstance(gone, Gone)
        assert gone.why == "other_epoch"
        assert await log.append([(writer, span(4), None)]) == [Fenced(new.token)]
        assert isinstance(await log.restore(writer, HEAD, writer.epoch, [span(1, 20)]), Existing)
        await log.aclose()

    run(scenario())


def test_a_server_that_comes_back_with_an_old_copy_is_brought_up_to_date(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url)
        writer = await begin(log, last=20)
        assert own_redis.command("SAVE") == "+OK"
        await go_on(log, writer, 21, 30)
        late = await begin(log, "late", last=5)
        ended = await begin(log, "ended", last=2)
        assert own_redis.command("SAVE") == "+OK"
        shutil.copy(own_redis.directory / "dump.rdb", own_redis.directory / "copy")
        await go_on(log, writer, 31, 40)
        assert await log.finish(ended, 2, OK) == Done(2)
        newest = await begin(log, "newest", last=1)
        own_redis.kill()
        shutil.copy(own_redis.directory / "copy", own_redis.directory / "dump.rdb")
        own_redis.start()
        await until(lambda: log.read("s"))
        # A reader ahead of the log is told so, and not given the wrong events.
        gone = await log.read("s", Cursor(writer.epoch, 40))
        assert isinstance(gone, Gone)
        assert (gone.why, gone.n) == ("went_back", 30)
        assert await log.append([(writer, span(41), None), (late, span(6), None), (newest, span(2), None)]) == [
            Behind(30),
            Appended(6),
            Lost(),
        ]
        assert await log.append([(writer, span(31, 40), None), (writer, span(41), None)]) == [Appended(40), Appended(41)]
        assert await log.finish(ended, 2, OK) == Done(2)
        assert await text(log) == whole(41)
        assert await text(log, after=Cursor(writer.epoch, 40)) == event(41)
        await log.aclose()

    run(scenario())


async def _replicated(primary: RedisServer) -> None:
    with redis.Redis(port=primary.port) as direct:
        while direct.wait(1, 200) < 1:  # noqa: ASYNC110  it waits itself
            await asyncio.sleep(0)


@pytest.mark.parametrize("producer", ["alive", "dead"])
def test_a_promoted_replica_without_the_last_ten_spans(own_redis: RedisServer, producer: str) -> None:
    async def scenario(replica: RedisServer) -> None:
        async with RedisProxy(own_redis.port) as proxy:
            log = RedisLog(proxy.url)
            writer = await begin(log, last=20, lease=0.3)
            await _replicated(own_redis)
            bells = log.bells()
            await bells.add("s")
            # From here on the replica gets nothing more, while the old primary still acknowledges.
            assert replica.command("REPLICAOF", "NO", "ONE") == "+OK"
            await go_on(log, writer, 21, 30)
            fresh = await begin(log, "fresh", last=3)
            reader = Cursor(writer.epoch, 28)
            assert await text(log, after=reader) == event(29) + event(30)
            own_redis.kill()
            proxy.target = replica.port
            proxy.cut()
            await until(lambda: log.read("s"))
            gone = await log.read("s", reader)
            assert isinstance(gone, Gone)
            assert (gone.why, gone.oldest, gone.n) == ("went_back", 1, 20)
            await heard(bells, lambda bell: bell.item is None and bell.n is None)
            if producer == "alive":
                assert await log.append([(writer, span(31), None), (fresh, span(4), None)]) == [Behind(20), Lost()]
                assert await log.append([(writer, span(21, 31), None)]) == [Appended(31)]
                again = await log.restore(fresh, HEAD, fresh.epoch, [span(1, 3)])
                assert isinstance(again, Writer)
                assert await log.append([(again, span(4), None)]) == [Appended(4)]
                assert await log.finish(writer, 31, OK) == Done(31)
                assert await text(log) == whole(31)
                assert await text(log, after=reader) == whole(31)[len(whole(28)) :]
                assert await text(log, "fresh") == whole(4)
                assert (await heard(bells, lambda bell: bell.item == OK)).n == 31
            else:
                claimed = await claim(log)
                assert claimed.handover is not None
                assert (claimed.epoch, claimed.handover.n, claimed.handover.whole) == (writer.epoch, 20, True)
                assert await log.finish(claimed, 20, LOST) == Done(20)
                # Nobody sees a hole, or an end that is none: what is left is 20 events, and they failed.
                assert await text(log) == whole(20)
                assert isinstance(await log.read("s", reader), Gone)
                assert await log.append([(writer, span(31), None)]) == [Fenced(claimed.token)]
                assert await log.read("fresh", Cursor(fresh.epoch, 3)) == Unknown()
            await log.aclose()

    assert own_redis.command("CONFIG", "SET", "repl-diskless-sync-delay", 0) == "+OK"
    replica = RedisServer("--replicaof", "127.0.0.1", str(own_redis.port)).start()
    try:
        run(scenario(replica))
    finally:
        replica.close()


@pytest.mark.parametrize("lost", [0, 1, 10])
@pytest.mark.parametrize("primary", ["the replica", "the old one again"])
@pytest.mark.parametrize("reply", ["comes", "is lost"])
def test_whoever_goes_on_after_a_fail_over_gives_no_number_twice(
    own_redis: RedisServer, lost: int, primary: str, reply: str
) -> None:
    """
    A primary that took over cannot know what it did not get: `lost` events that some reader has seen, or none.

    The new producer writes other events after what is left. Under the same epoch a reader that has seen all would skip as many of
    them as were lost, and never know. So they get another epoch, and every cursor of the old one is told that it is gone: 410,
    after which a reader begins anew. The events that are left stay, with their note, since they are paid for.

    Nobody can tell `lost == 0` from the others, so that takeover costs its readers a new start too.
    """

    async def scenario(replica: RedisServer) -> None:
        async with RedisProxy(own_redis.port) as proxy:
            log = RedisLog(proxy.url)
            writer = await begin(log, last=19, lease=0.3)
            assert await log.append([(writer, span(20), "note")]) == [Appended(20)]
            await _replicated(own_redis)
            assert replica.command("REPLICAOF", "NO", "ONE") == "+OK"
            if lost:
                await go_on(log, writer, 21, 20 + lost)
            if primary == "the replica":
                own_redis.kill()
                proxy.target = replica.port
                proxy.cut()
            else:
                # It was demoted, got what the other one has, and is promoted again.
                assert own_redis.command("REPLICAOF", "127.0.0.1", replica.port) == "+OK"
                while "master_link_status:up" not in own_redis.command("INFO", "replication"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert own_redis.command("REPLICAOF", "NO", "ONE") == "+OK"
            await until(lambda: log.read("s"))
            bells = log.bells()
            await bells.add("s")
            while not isinstance(page := await log.read("s", limit_bytes=0), Page) or page.lease_left:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            if reply == "is lost":
                proxy.lose_replies(1)
            new = await log.claim("s", lease=600.0, go_on=True)
            assert isinstance(new, Writer)
            assert proxy.lost == (reply == "is lost")
            found = new.handover
            assert found is not None
            assert new.epoch != writer.epoch
            assert (found.n, found.note, found.note_n, found.whole, found.before) == (20, "note", 20, True, writer.epoch)
            assert (await heard(bells, lambda bell: bell.epoch == new.epoch)).n == 20
            await go_on(log, new, 21, 40)
            for n in range(42):
                gone = await log.read("s", Cursor(writer.epoch, n))
                assert isinstance(gone, Gone) and (gone.why, gone.epoch) == ("other_epoch", new.epoch)
            assert await text(log) == whole(40)
            assert await log.append([(writer, span(21), None)]) == [Fenced(new.token)]
            # It is known to be whole again: the next takeover keeps its epoch.
            (verdict,) = await log.renew([replace(new, lease=0.0)])
            assert verdict is None
            again = await log.claim("s", lease=600.0, go_on=True)
            assert isinstance(again, Writer)
            assert (again.epoch, again.handover and again.handover.before) == (new.epoch, None)
            await log.aclose()

    assert own_redis.command("CONFIG", "SET", "repl-diskless-sync-delay", 0) == "+OK"
    replica = RedisServer("--replicaof", "127.0.0.1", str(own_redis.port), "--repl-diskless-sync-delay", "0").start()
    try:
        run(scenario(replica))
    finally:
        replica.close()


@pytest.mark.parametrize("producer", ["alive", "dead"])
def test_a_server_that_was_started_again_is_trusted_once_its_writer_has_written(kept_redis: RedisServer, producer: str) -> None:
    """
    An append-only file of each second, or a snapshot, lacks the last events after a restart, and nothing in it says so.

    A living producer that appends knows where the log must be, so from then on it is whole, and a takeover keeps the epoch.
    """

    async def scenario() -> None:
        log = RedisLog(kept_redis.url)
        writer = await begin(log, last=20)
        kept_redis.restart()
        await until(lambda: log.read("s"))
        n = 20
        if producer == "alive":
            n = 21
            await go_on(log, writer, 21, 21)
        assert await log.renew([replace(writer, lease=0.0)]) == [None]
        new = await log.claim("s", lease=600.0, go_on=True)
        assert isinstance(new, Writer) and new.handover is not None
        assert (new.handover.n, new.handover.before) == (n, None if producer == "alive" else writer.epoch)
        assert (new.epoch == writer.epoch) == (producer == "alive")
        await log.aclose()

    run(scenario())


def test_whoever_ends_a_stream_after_a_fail_over_leaves_its_readers_what_is_there(kept_redis: RedisServer) -> None:
    """Nothing is written, so no number comes twice: readers that are not ahead get the rest and an honest end, and no 410."""

    async def scenario() -> None:
        log = RedisLog(kept_redis.url)
        writer = await begin(log, last=20, lease=0.3)
        kept_redis.restart()
        await until(lambda: log.read("s"))
        claimed = await claim(log)
        assert (claimed.epoch, claimed.handover and claimed.handover.before) == (writer.epoch, None)
        assert await log.finish(claimed, 20, LOST) == Done(20)
        for n in range(21):
            assert await text(log, after=Cursor(writer.epoch, n)) == whole(20)[len(whole(n)) :]
        await log.aclose()

    run(scenario())


def test_a_server_that_does_not_answer_is_unavailable_and_then_goes_on(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        # A second, and not less: a busy machine has to answer within it before the pause, and after.
        log = RedisLog(own_redis.url, socket_timeout=1.0, timeout=20.0)
        writer = await begin(log, last=3)
        own_redis.pause()
        bells = log.bells()
        calls = (log.read("s"), log.append([(writer, span(4), None)]), log.renew([writer]), bells.add("s"))
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            with pytest.raises(LogUnavailable, match="redis://127.0.0.1"):
                raise answer
        own_redis.go_on()
        assert await log.append([(writer, span(4), None)]) == [Appended(4)]
        await bells.add("s")
        await log.append([(writer, span(5), None)])
        assert (await heard(bells, lambda bell: bell.n == 5)).item == span(5)
        assert await text(log) == whole(5)
        await log.aclose()

    run(scenario())


def test_calls_that_are_cancelled_do_no_harm_to_others(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url, max_connections=4)
        for number in range(20):
            await begin(log, f"s{number}", last=number + 1)

        async def ask(number: int) -> None:
            assert await text(log, f"s{number}") == whole(number + 1)

        for delay in range(0, 40, 2):
            asked = [asyncio.create_task(ask(number)) for number in range(20)]
            for _ in range(delay):
                await asyncio.sleep(0)
            for task in asked[::2]:
                task.cancel()
            for result in await asyncio.gather(*asked, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError), result
        await log.aclose()

    run(scenario())


def test_closing_leaves_no_connection_behind(own_redis: RedisServer) -> None:
    """redis-py opens a connection that is closed under it once more; nobody would close that one."""

    async def scenario() -> None:
        logs = []
        for turns in range(60):
            log = RedisLog(own_redis.url)
            logs.append(log)  # kept, so that nothing is closed because it is forgotten
            await log.read("s")
            reads = [asyncio.create_task(log.read("s")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await log.aclose()
            for found in await asyncio.gather(*reads, return_exceptions=True):
                assert isinstance(found, Unknown | LogUnavailable), found
        # Redis may need a moment to notice; the one that is left asks the question.
        wait_until(lambda: "connected_clients:1" in own_redis.command("INFO", "clients").splitlines(), "the end of the others")

    run(scenario())


def test_closing_gives_up_what_a_server_does_not_answer(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(own_redis.url)
        await log.read("s")
        own_redis.pause()
        reads = [asyncio.create_task(log.read("s")) for _ in range(3)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(60.0):
            await log.aclose()
        for read in reads:
            with pytest.raises(LogUnavailable, match="closed before Redis answered"):
                await read

    try:
        run(scenario())
    finally:
        own_redis.go_on()


def test_a_cancellation_that_redis_py_loses_is_not_lost(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log)
        await log.read("s")
        assert isinstance(await log.finish(replace(writer, fence=9), 5, OK), Fenced)
        execute = log._client._client.execute_command

        async def deaf(*words: Any, **options: Any) -> Any:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                pass
            return await execute(*words, **options)

        monkeypatch.setattr(log._client._client, "execute_command", deaf)
        for call in (log.read("s"), log.finish(writer, 5, OK)):
            task = asyncio.create_task(call)
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        monkeypatch.undo()
        assert await text(log) == b""
        await log.aclose()

    run(scenario())


# --- replies are lost -------------------------------------------------------------------------------------------------------


Verb = Callable[[RedisLog, Writer, RedisLog], Awaitable[tuple[object, object]]]


async def _create(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    made = await log.create("new", HEAD, lease=15.0, request=b"r")
    assert isinstance(made, Writer)
    assert await direct.append([(made, span(1), None)]) == [Appended(1)]
    # It was created once, and whoever asks for the same now joins.
    return await log.create("new", HEAD, lease=15.0, request=b"r"), Existing(made.epoch, 1, HEAD)


async def _append(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    assert await log.append([(writer, span(4, 5), "note"), (writer, span(6), None)]) == [Appended(6), Appended(6)]
    return await text(direct), whole(6)


async def _note(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    from resumable_stream.server.log import Append

    assert await log.append([Append(writer, None, "later", n=3)]) == [Appended(3)]
    await direct.renew([replace(writer, lease=0.0)])
    claimed = await direct.claim("s", lease=1.0)
    assert isinstance(claimed, Writer)
    assert claimed.handover is not None
    return claimed.handover.note, "later"


async def _finish(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    return await log.finish(writer, 3, OK), Done(3)


async def _renew(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    return await log.renew([writer]), [None]


async def _claim(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    await direct.renew([replace(writer, lease=0.0)])
    claimed = await log.claim("s", lease=600.0)
    assert claimed == Writer("s", writer.epoch, 2)
    assert isinstance(await direct.claim("s", lease=600.0), Held)
    return claimed.handover and (claimed.handover.n, claimed.handover.whole), (3, True)


async def _claim_of_lost_spans(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    await direct.renew([replace(writer, lease=0.0)])
    await direct._client.call(direct._scripts.delete, [b"-", b"rs:{s}:s", b"-", b"-"], [b""])
    claimed = await log.claim("s", lease=600.0)
    assert isinstance(claimed, Writer)
    assert claimed.epoch != writer.epoch
    assert claimed.handover is not None
    assert await direct.append([(claimed, span(1), None)]) == [Appended(1)]
    return (claimed.fence, claimed.handover.n, claimed.handover.whole), (2, 0, False)


async def _restore(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    await direct.delete("s")
    inbox = [Message(id="m", k=1)]
    again = await log.restore(writer, HEAD, writer.epoch, [span(1), span(2, 3)], inbox=inbox)
    assert again == Writer("s", writer.epoch, 2)
    assert isinstance(await direct.restore(writer, HEAD, writer.epoch, [span(1, 3)]), Existing)
    assert await direct.inbox("s", 0) == inbox
    return await text(direct), whole(3)


async def _say(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    assert await log.say("s", Message(id="m")) == Said(1)
    assert await log.say("s", Message(id="c", kind=CANCEL, data="why")) == Said(2)
    return await direct.renew([writer]), [Control(2, "why")]


async def _compact(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    await direct.finish(writer, 3, OK)
    await log.compact("s")
    page = await direct.read("s")
    assert isinstance(page, Page)
    return page.spans, (span(1, 3),)


async def _delete(log: RedisLog, writer: Writer, direct: RedisLog) -> tuple[object, object]:
    await log.delete("s")
    return await direct.read("s"), Unknown()


VERBS: Sequence[Verb] = (
    _create,
    _append,
    _note,
    _finish,
    _renew,
    _claim,
    _claim_of_lost_spans,
    _restore,
    _say,
    _compact,
    _delete,
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("lost", [1, 2, 5])
def test_a_lost_reply_changes_nothing(redis_server: RedisServer, verb: Verb, lost: int) -> None:
    """One is repeated by the connection, two need the caller to ask again, five need it often."""

    class Stubborn(RedisLog):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in ("create", "append", "finish", "renew", "claim", "restore", "say", "compact", "delete"):
                return found

            async def again(*args: Any, **options: Any) -> Any:
                while True:
                    try:
                        return await found(*args, **options)
                    except LogUnavailable:
                        continue

            return again

    async def scenario() -> None:
        async with RedisProxy(redis_server.port) as proxy:
            log, direct = Stubborn(proxy.url), RedisLog(redis_server.url)
            writer = await begin(direct, last=3)
            assert await log.read("nothing") == Unknown()  # connected
            proxy.lose_replies(lost)
            found, expected = await verb(log, writer, direct)
            assert found == expected
            assert proxy.lost == lost
            for each in (log, direct):
                await each.aclose()

    run(scenario())


def test_a_lost_create_is_given_to_nobody_else(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with RedisProxy(redis_server.port) as proxy:
            log, other = RedisLog(proxy.url), RedisLog(redis_server.url)
            assert await log.read("s") == Unknown()
            proxy.lose_replies(2)
            with pytest.raises(LogUnavailable):
                await log.create("s", HEAD, lease=15.0)
            # Another process, and another request in this one, join it.
            assert isinstance(await other.create("s", HEAD, lease=15.0), Existing)
            assert isinstance(await log.create("s", HEAD, lease=15.0, request=b"another"), Existing)
            answers = await asyncio.gather(*(log.create("s", HEAD, lease=15.0) for _ in range(5)))
            assert sorted(type(each).__name__ for each in answers) == ["Existing"] * 4 + ["Writer"]
            for each in (log, other):
                await each.aclose()

    run(scenario())


def test_one_lost_reply_of_a_batch_harms_no_stream(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with RedisProxy(redis_server.port) as proxy:
            log = RedisLog(proxy.url)
            writers = [await begin(log, f"s{number}") for number in range(30)]
            for n in range(1, 8):
                proxy.lose_replies(n % 4)
                batch = [(writer, span(n), None) for writer in writers]
                while True:
                    try:
                        assert await log.append(batch) == [Appended(n)] * 30
                        break
                    except LogUnavailable:
                        continue
            for number in range(30):
                assert await text(log, f"s{number}") == whole(7)
            await log.aclose()

    run(scenario())


def test_a_server_that_forgot_the_scripts_is_told_again(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writers = [await begin(log, f"s{number}") for number in range(5)]
        for n in range(1, 9, 3):
            assert redis_server.command("SCRIPT", "FLUSH") == "+OK"
            batch = [(writer, span(each), f"{each}") for each in range(n, n + 3) for writer in writers]
            assert await log.append(batch) == [Appended(each) for each in range(n, n + 3) for _ in writers]
        assert redis_server.command("SCRIPT", "FLUSH") == "+OK"
        for number in range(5):
            assert await text(log, f"s{number}") == whole(9)
        await log.aclose()

    run(scenario())


def test_a_script_that_only_some_calls_found_is_run_again_in_order() -> None:
    """Of each stream all calls from the first that was not run; the others were answered."""
    script = Scripts().append
    calls = [Call(script, [b"k"], [], stream_id) for stream_id in "ababc"]
    replies = [[b"OK"], NoScriptError(), [b"OK"], [b"AT"], ResponseError()]
    assert _again(calls, replies) == [1, 3]
    assert _again(calls, [[b"OK"]] * 5) == []


@pytest.mark.parametrize("verb", ["restore", "compact"])
@pytest.mark.parametrize("times", [1, 3])
def test_what_was_written_beside_and_is_gone_is_written_again(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, verb: str, times: int
) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log, last=3)
        if verb == "compact":
            await log.finish(writer, 3, OK)
        else:
            await log.delete("s")
        calls, left = log._client.calls, times

        async def evict(some: Any) -> Any:
            nonlocal left
            if left and len(some) > 1:
                left -= 1
                await calls(some[:-1])
                with redis.Redis(port=redis_server.port) as direct:
                    assert direct.delete(*direct.keys("rs:{s}:[tu]*")) >= 1
                return await calls(some[-1:])
            return await calls(some)

        monkeypatch.setattr(log._client, "calls", evict)
        if times == 3:
            with pytest.raises(LogUnavailable, match="stream 's'.*evict"):
                await (log.compact("s") if verb == "compact" else log.restore(writer, HEAD, writer.epoch, [span(1, 3)]))
            left = 0
        await (log.compact("s") if verb == "compact" else log.restore(writer, HEAD, writer.epoch, [span(1, 3)]))
        assert await text(log) == whole(3)
        with redis.Redis(port=redis_server.port) as direct:
            assert direct.keys("rs:{s}:[tu]*") == []
        await log.aclose()

    run(scenario())


def test_a_stream_that_is_replaced_while_it_is_compacted_stays_as_it_is(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        writer = await begin(log, last=3)
        await log.finish(writer, 3, OK)
        calls = log._client.calls

        async def replaced(some: Any) -> Any:
            monkeypatch.setattr(log._client, "calls", calls)
            new = await log.create("s", HEAD, lease=15.0, replaces=writer.epoch)
            assert isinstance(new, Writer)
            await go_on(log, new, 1, 2)
            assert await log.finish(new, 2, OK) == Done(2)
            return await calls(some)

        monkeypatch.setattr(log._client, "calls", replaced)
        await log.compact("s")
        assert await text(log) == whole(2)
        await log.compact("s")
        assert await text(log) == whole(2)
        await log.aclose()

    run(scenario())


def test_after_a_fail_over_a_connection_does_not_stay_with_the_replica(own_redis: RedisServer) -> None:
    async def scenario(replica: RedisServer) -> None:
        async with RedisProxy(own_redis.port) as proxy:
            log = RedisLog(proxy.url)
            writer = await begin(log, last=3)
            await _replicated(own_redis)
            assert replica.command("REPLICAOF", "NO", "ONE") == "+OK"
            assert own_redis.command("REPLICAOF", "127.0.0.1", replica.port) == "+OK"
            # The name leads to the new primary, and the old one has kept its connections.
            proxy.target = replica.port
            with pytest.raises(LogUnavailable, match="replica"):
                await log.append([(writer, span(4), None)])
            assert await log.append([(writer, span(4), None)]) == [Appended(4)]
            await log.aclose()

    assert own_redis.command("CONFIG", "SET", "repl-diskless-sync-delay", 0) == "+OK"
    replica = RedisServer("--replicaof", "127.0.0.1", str(own_redis.port)).start()
    try:
        run(scenario(replica))
    finally:
        replica.close()


# --- two writers ------------------------------------------------------------------------------------------------------------


def test_two_writers_that_take_turns_leave_one_row_of_events(redis_server: RedisServer) -> None:
    """Each claims as soon as it may, and appends what follows; what was acknowledged to either is there, once, in order."""

    async def scenario() -> None:
        logs = [RedisLog(redis_server.url), RedisLog(redis_server.url)]
        first = await begin(logs[0], lease=0.0)
        acknowledged: dict[int, int] = {}
        fences = {first.fence}
        last = 400

        async def write(number: int) -> None:
            log = logs[number]
            while len(acknowledged) < last:
                writer = await log.claim("s", lease=0.0)
                if not isinstance(writer, Writer):
                    continue
                assert writer.handover is not None
                fences.add(writer.fence)
                n = writer.handover.n
                while n < last:
                    (verdict,) = await log.append([(writer, span(n + 1), None)])
                    if isinstance(verdict, Fenced):
                        break
                    assert verdict == Appended(n + 1)
                    n += 1
                    assert n not in acknowledged, "two writers were told that they had stored the same event"
                    acknowledged[n] = number
                    if n % 3 == 0:
                        await asyncio.sleep(0)

        await asyncio.gather(write(0), write(1))
        assert sorted(acknowledged) == list(range(1, last + 1))
        assert len(fences) > 5
        assert await text(logs[0]) == whole(last)
        for log in logs:
            await log.aclose()

    run(scenario())


def test_a_paused_writer_is_refused_everywhere(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        log = RedisLog(redis_server.url)
        old = await begin(log, last=3, lease=0.05)
        new = await claim(log)
        assert await log.append([(old, span(4), "note"), (new, span(4), None)]) == [Fenced(new.token), Appended(4)]
        assert await log.renew([old]) == [Fenced(new.token)]
        assert await log.finish(old, 4, OK) == Fenced(new.token)
        assert isinstance(await log.restore(old, HEAD, old.epoch, [span(1, 3)]), Existing)
        assert await log.finish(new, 4, LOST) == Done(4)
        assert await log.finish(old, 4, LOST) == Fenced(new.token)
        assert await log.append([(new, span(5), None)]) == [Ended(LOST, 4)]
        await log.aclose()

    run(scenario())
