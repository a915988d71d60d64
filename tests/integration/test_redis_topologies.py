"""A log in a Redis Cluster and behind Sentinel: the contract of all logs, failover, and slots that move. Needs Redis 7."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from redis.asyncio import RedisCluster as AsyncCluster
from redis.asyncio.sentinel import Sentinel

from resumable_stream import LogUnavailable, Outcome, StreamBusy, StreamUnknown
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Ending, Head, Hub, Message, RedisLog, Span, Stream, StreamLog
from resumable_stream.server.hub import key_of
from resumable_stream.server.log import Appended, Behind, Bell, Control, Done, Gone, Lost, Page, Unavailable, Writer
from resumable_stream.server.sessions import feed_id_of
from resumable_stream.testing.log_contract import LogContract
from tests.redis_server import RedisCluster, RedisServer
from tests.server.test_redis_log import PASS_TIME

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("_redis_7")]

HEAD = Head(content_type="text/event-stream", framing="sse")
OK = Ending(outcome=Outcome.COMPLETED)
T = TypeVar("T")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(500):
            await scenario

    asyncio.run(bounded())


@pytest.fixture(scope="module", autouse=True)
def _redis_7() -> Iterator[None]:
    """Choose a server that has SPUBLISH: that of REDIS_SERVER, or the one of the system."""
    found = os.environ.get("REDIS_SERVER") or shutil.which("redis-server")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else ""
    if int((re.findall(r"v=(\d+)", version) or ["0"])[0]) < 7:
        pytest.skip("needs redis-server 7 or newer: install it, or set REDIS_SERVER=/path/to/redis-server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDIS_SERVER", str(found))
        yield


@pytest.fixture(scope="module")
def cluster(_redis_7: None) -> Iterator[RedisCluster]:
    started = RedisCluster()
    try:
        yield started.start()
    finally:
        started.close()


def event(n: int, size: int = 12) -> Span:
    return Span(n=n, b=n * size, lengths=(size,), data=b"%0*d" % (size, n))


async def begin(log: RedisLog, stream_id: str = "s", *, last: int = 0, lease: float = 600.0) -> Writer:
    writer = await log.create(stream_id, HEAD, lease=lease)
    assert isinstance(writer, Writer)
    for n in range(1, last + 1):
        assert await log.append([(writer, event(n), None)]) == [Appended(n)]
    return writer


async def persistently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat until the log is there, as its users do."""
    while True:
        try:
            return await call()
        except LogUnavailable:
            await asyncio.sleep(0.1)


async def text(log: RedisLog, stream_id: str) -> bytes:
    found, after = b"", None
    while True:
        page = await log.read(stream_id, after)
        assert isinstance(page, Page), page
        if not page.spans:
            return found
        found += b"".join(span.data for span in page.spans)
        after = Cursor(page.epoch, page.spans[-1].n)


async def heard(bells: Any, fits: Callable[[Bell], bool]) -> Bell:
    while True:
        bell: Bell = await anext(bells)
        if fits(bell):
            return bell


class TestCluster(LogContract):
    lease = 15.0
    one_step = False

    @pytest.fixture(autouse=True)
    def _nodes(self, cluster: RedisCluster) -> Iterator[None]:
        self.cluster = cluster
        for node in cluster.nodes:
            assert node.command("FLUSHALL") == "+OK"
        self.direct: Any = redis.RedisCluster(port=cluster.nodes[0].port, host="127.0.0.1")
        yield
        self.direct.close()

    def make_log(self) -> StreamLog:
        return RedisLog(f"redis+cluster://127.0.0.1:{self.cluster.nodes[0].port}")

    def another_log(self, log: StreamLog) -> StreamLog:
        return RedisLog(f"redis+cluster://127.0.0.1:1,127.0.0.1:{self.cluster.nodes[2].port}")

    async def _play(self, log: StreamLog, stream_id: str, *args: Any, **options: Any) -> None:
        if int(stream_id.rpartition(".")[2]) % 8 == 0:
            await super()._play(log, stream_id, *args, **options)

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        await asyncio.sleep(0.2)  # what is told to the index lies on another node
        for node in self.cluster.nodes:
            with redis.Redis(port=node.port) as direct:
                direct.eval(PASS_TIME, 0, str(round(seconds * 1000)))

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        assert self.direct.delete(f"rs:{{{stream_id}}}:s") == 1
        return True


# --- sessions over nodes that share no step ------------------------------------------------------------------------------


async def waits() -> AsyncIterator[str]:
    yield "one"
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def hub_on(cluster: RedisCluster, **options: Any) -> AsyncIterator[Hub]:
    log = RedisLog(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", prefix="sessions:")
    try:
        async with Hub(log, **options) as hub:
            yield hub
    finally:
        await log.aclose()


async def told(hub: Hub, session: str) -> list[str]:
    """The events of a feed, as the log holds them."""
    page = await hub.log.read(key_of(feed_id_of(session), ""))
    assert isinstance(page, Page)
    events = [event for span in page.spans for event in SSEDecoder().feed(span.data)]
    return [f"{event.event} {json.loads(event.data)['id']}" for event in events]


@pytest.mark.parametrize("if_busy", ["parallel", "reject", "interrupt"])
def test_two_tabs_post_at_once_over_a_cluster(cluster: RedisCluster, if_busy: Any) -> None:
    async def scenario() -> None:
        async with hub_on(cluster) as one, hub_on(cluster) as two:
            for turn in range(3):
                session, ids = f"{if_busy}{turn}", [f"{if_busy}-{turn}-{name}" for name in "ab"]
                tabs = [hub.start(id, waits, session=session, if_busy=if_busy) for hub, id in zip((one, two), ids, strict=True)]
                found = await asyncio.gather(*tabs, return_exceptions=True)
                refused = [each for each in found if isinstance(each, StreamBusy)]
                assert len(refused) == (if_busy == "reject")
                assert all(isinstance(each, Stream | StreamBusy) for each in found)
                while len(await two.active(session)) != (2 if if_busy == "parallel" else 1):  # noqa: ASYNC110  there is nothing to wait for
                    await asyncio.sleep(0.02)
                for id in ids:
                    with contextlib.suppress(StreamUnknown):
                        await two.cancel(id)
                while await one.active(session):  # noqa: ASYNC110  there is nothing to wait for
                    await asyncio.sleep(0.02)
                seen = await told(one, session)
                begun = sorted(each.partition(" ")[2] for each in seen if each.startswith("started"))
                assert begun == sorted(each.partition(" ")[2] for each in seen if each.startswith("ended"))
                assert len(begun) == len(set(begun)) == 2 - len(refused)

    run(scenario())


DYING = """
import asyncio, os, signal, sys
from resumable_stream.server import Hub, RedisLog
from resumable_stream.server.log import check_batch

class Dying(RedisLog):
    # Killed between the steps of two nodes: the feed was told and the stream was not made, or the other way round.
    async def _granted(self, attempt, *args, **options):
        if sys.argv[2] == "create" and attempt[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return await super()._granted(attempt, *args, **options)

    async def append(self, batch):
        if any(item.span is not None and b"event: ended" in item.span.data for item in check_batch(batch)):
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().append(batch)

async def words():
    yield "one"

async def main():
    async with Hub(Dying(sys.argv[1], prefix="sessions:"), lease=1.0) as hub:
        await hub.start("killed", words, session=sys.argv[2])
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("step", ["create", "finish"])
def test_a_process_that_is_killed_between_two_nodes_leaves_a_session_that_heals(cluster: RedisCluster, step: str) -> None:
    async def scenario() -> None:
        url = f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}"
        async with hub_on(cluster, lease=1.0) as hub:
            with contextlib.suppress(StreamUnknown):
                await hub.forget("killed")
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, url, step)
            assert await asyncio.wait_for(process.wait(), 200) == -signal.SIGKILL
            assert await told(hub, step) == ["started killed"]
            there = await hub.log.read("killed", None, limit_bytes=0)
            if step == "finish":
                assert isinstance(there, Page) and there.ending == OK
                assert await hub.active(step) == []
                assert await told(hub, step) == ["started killed", "ended killed"]
            else:
                assert not isinstance(there, Page)
                # Who sends the prompt again starts it, and nobody is told twice.
                assert not (await hub.start("killed", waits, session=step, if_busy="reject")).joined
                assert await told(hub, step) == ["started killed"]
                await hub.forget("killed")
                assert await told(hub, step) == ["started killed", "cancelled killed", "ended killed"]
                # And where nobody does, the session is free a lease later.
                await hub._sessions.append(step, "", lambda feed: feed.started("killed"))
                while await hub.active(step):  # noqa: ASYNC110  there is nothing to wait for
                    await asyncio.sleep(0.05)
                assert (await told(hub, step))[-2:] == ["started killed", "ended killed"]

    run(scenario())


def test_a_stream_ends_while_the_node_of_its_feed_is_down() -> None:
    """And the feed learns of it from whoever asks when the node is back."""

    async def scenario(cluster: RedisCluster) -> None:
        with redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as direct:
            key = f"sessions:{{{key_of(feed_id_of('chat'), '')}}}"
            feed_port = direct.get_node_from_key(key).port
            id = next(f"s{n}" for n in range(100) if direct.get_node_from_key(f"sessions:{{s{n}}}").port != feed_port)
        log = RedisLog(
            "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes),
            prefix="sessions:", timeout=3.0, socket_timeout=1.0,
        )  # fmt: skip
        go = asyncio.Event()

        async def words() -> AsyncIterator[str]:
            yield "one"
            await go.wait()

        async with contextlib.AsyncExitStack() as stack:
            hub = await stack.enter_async_context(Hub(log, lease=15.0, log_timeout=8.0))
            await hub.start(id, words, session="chat")
            (node,) = [node for node in cluster.nodes if node.port == feed_port]
            node.pause()
            stack.callback(node.go_on)
            go.set()
            while (await persistently(lambda: hub.state(id))).ending != OK:  # noqa: ASYNC110  there is nothing to wait for
                await asyncio.sleep(0.1)
            node.go_on()
            while await persistently(lambda: hub.active("chat")):  # noqa: ASYNC110  there is nothing to wait for
                await asyncio.sleep(0.1)
            assert await persistently(lambda: told(hub, "chat")) == [f"started {id}", f"ended {id}"]
        await log.aclose()

    started = RedisCluster()
    for node in started.nodes:
        node._options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "60000")
    try:
        run(scenario(started.start()))
    finally:
        started.close()


# --- a node that does not answer ----------------------------------------------------------------------------------------


@pytest.fixture
def three_nodes(_redis_7: None) -> Iterator[RedisCluster]:
    """Of the test alone. A node that is away for as long as the test lasts is not given up by the others."""
    started = RedisCluster()
    for node in started.nodes:
        node._options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "60000", "--cluster-require-full-coverage", "no"),
            *("--enable-debug-command", "local"),
        )
    try:
        yield started.start()
    finally:
        started.close()


def by_node(cluster: RedisCluster, prefix: str, count: int) -> dict[int, list[str]]:
    """As many names of streams for each node, by its port."""
    found: dict[int, list[str]] = {node.port: [] for node in cluster.nodes}
    with redis.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port) as direct:
        number = 0
        while min(map(len, found.values())) < count:
            name, number = f"n{number}", number + 1
            names = found[direct.get_node_from_key(f"{prefix}{{{name}}}").port]
            if len(names) < count:
                names.append(name)
    return found


def url_of(cluster: RedisCluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


@pytest.mark.parametrize("how", ["pause", "kill"])
def test_a_node_that_cannot_be_reached_is_unavailable_for_its_own_streams(three_nodes: RedisCluster, how: str) -> None:
    """One call for streams of all nodes: the others are stored, and their leases renewed."""

    async def scenario() -> None:
        log = RedisLog(url_of(three_nodes), prefix="part:", timeout=6.0, socket_timeout=2.0)
        names = by_node(three_nodes, "part:", 3)
        sick, *well = three_nodes.nodes
        writers = {name: await begin(log, name, last=1) for each in names.values() for name in each}
        assert {log.shard_of(name) for name in names[sick.port]} == {f"127.0.0.1:{sick.port}"}
        getattr(sick, how)()
        for n in (2, 3):
            verdicts = await log.append([(writer, event(n), None) for writer in writers.values()])
            leases = await log.renew(list(writers.values()))
            for name, verdict, lease in zip(writers, verdicts, leases, strict=True):
                if name in names[sick.port]:
                    assert isinstance(verdict, Unavailable) and isinstance(lease, Unavailable)
                    assert verdict.stream_id == lease.stream_id == name
                else:
                    assert (verdict, lease) == (Appended(n), None)
        with pytest.raises(LogUnavailable):
            await log.append([(writers[name], event(2), None) for name in names[sick.port]])
        # More calls than there are connections for a node wait for it, and the other nodes do not wait for them.
        stuck = [asyncio.create_task(log.read(name)) for name in names[sick.port] for _ in range(20)]
        await asyncio.sleep(0)
        for name in names[well[0].port] + names[well[1].port]:
            assert await text(log, name) == b"".join(event(n).data for n in range(1, 4))
        if how == "pause":
            assert not any(each.done() for each in stuck)
        # One that is made anew meanwhile finds its way, too.
        other = RedisLog(url_of(three_nodes), prefix="part:", timeout=6.0, socket_timeout=2.0)
        assert await text(other, names[well[1].port][0]) == b"".join(event(n).data for n in range(1, 4))
        assert all(isinstance(each, LogUnavailable) for each in await asyncio.gather(*stuck, return_exceptions=True))
        if how == "pause":
            sick.go_on()
            for name in names[sick.port]:
                # What was under way when it stopped may have been done.
                for n in (2, 3):
                    (verdict,) = await persistently(lambda: log.append([(writers[name], event(n), None)]))  # noqa: B023
                    assert verdict in (Appended(n), Appended(3))
                assert await text(log, name) == b"".join(event(n).data for n in range(1, 4))
        else:
            sick.restart()
            verdicts = await persistently(lambda: log.append([(writers[name], event(2), None) for name in names[sick.port]]))
            assert verdicts == [Lost()] * 3
        for each in (log, other):
            await each.aclose()

    run(scenario())


@pytest.mark.parametrize("how", ["pause", "kill"])
def test_streams_of_the_other_nodes_go_on_while_a_node_is_away(three_nodes: RedisCluster, how: str) -> None:
    """Producers, leases, mirrors of another process, new streams and new readers; and then all of it comes back, each once."""
    rounds, lease = 25, 6.0

    async def scenario() -> None:
        logs = [RedisLog(url_of(three_nodes), prefix="go:", timeout=4.0, socket_timeout=2.0) for _ in range(2)]
        names = by_node(three_nodes, "go:", 5)
        sick, *well = three_nodes.nodes
        late = {port: each.pop() for port, each in names.items()}
        quiet = {port: each.pop() for port, each in names.items()}
        here = [name for node in well for name in names[node.port]]
        there = names[sick.port]
        tokens: dict[str, asyncio.Queue[int | None]] = {name: asyncio.Queue() for each in names.values() for name in each}
        stop = asyncio.Event()

        def answer(name: str) -> Callable[[], AsyncIterator[str]]:
            async def words() -> AsyncIterator[str]:
                while (n := await tokens[name].get()) is not None:
                    yield f"{name}:{n}"

            return words

        async def silent() -> AsyncIterator[str]:
            await stop.wait()
            yield "last"

        def number(data: str) -> int:
            return int(data.rpartition(":")[2])

        async with contextlib.AsyncExitStack() as stack:
            one, two = [await stack.enter_async_context(Hub(log, lease=lease, poll=1.0, log_timeout=100.0)) for log in logs]
            seen: dict[str, list[int]] = {}
            grown = asyncio.Condition()

            async def read(name: str) -> None:
                decoder = SSEDecoder()
                async for chunk in two.follow(name):
                    for found in decoder.feed(chunk):
                        if found.event is None or found.event == "message":
                            seen.setdefault(name, []).append(number(found.data))
                            async with grown:
                                grown.notify_all()

            async def until(fits: Callable[[], bool]) -> None:
                async with grown:
                    await grown.wait_for(fits)

            def say(group: list[str], n: int | None) -> None:
                for name in group:
                    tokens[name].put_nowait(n)

            for name in [*here, *there]:
                await one.start(name, answer(name))
            for name in quiet.values():
                await one.start(name, silent)
            readers = [asyncio.create_task(read(name)) for name in [*here, *there]]
            say([*here, *there], 1)
            await until(lambda: all(seen.get(name) == [1] for name in [*here, *there]))
            getattr(sick, how)()
            say(there, 2)
            # No clock: each round begins when all readers have the one before, so none ends if something waits for the node.
            for n in range(2, rounds):
                say(here, n)
                await until(lambda: all(seen[name][-1] == n for name in here))  # noqa: B023
                if n == rounds // 2:
                    for node in well:
                        new = late[node.port]
                        tokens[new] = asyncio.Queue()
                        await one.start(new, answer(new))
                        readers.append(asyncio.create_task(read(new)))
                        say([new], 1)
                        await until(lambda: seen.get(new) == [1])  # noqa: B023
            # Long enough for leases that nobody renews to end: the quiet ones of the other nodes are held.
            await asyncio.sleep(1.5 * lease)
            for node in well:
                state = await two.state(quiet[node.port])
                assert state.ending is None
                page = await logs[1].read(quiet[node.port], None, limit_bytes=0)
                assert isinstance(page, Page) and page.lease_left > 0.0, page
            assert all(seen[name] in ([1], [1, 2]) for name in there)
            say(there, 3)
            if how == "pause":
                sick.go_on()
            else:
                sick.restart()
            await until(lambda: all(seen[name][-1] == 3 for name in there))
            stop.set()
            say([*here, *there, *(late[node.port] for node in well)], None)
            await asyncio.gather(*readers)
            assert all(seen[name] == list(range(1, rounds)) for name in here)
            assert all(seen[name] == [1, 2, 3] for name in there)
            for name in [*here, *there]:
                assert (await two.state(name)).ending == OK
        for log in logs:
            await log.aclose()

    run(scenario())


def test_streams_lie_on_all_nodes_and_one_connection_hears_each_node(cluster: RedisCluster) -> None:
    async def scenario() -> None:
        log = RedisLog(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", prefix="lie:")
        names = [f"m{number}" for number in range(60)]
        # The first use by many tasks at one time.
        writers = await asyncio.gather(*(begin(log, name) for name in names))
        bells = log.bells()
        await asyncio.gather(*(bells.add(name) for name in names))
        for n in range(1, 11):
            assert await log.append([(writer, event(n), None) for writer in writers]) == [Appended(n)] * 60
        mirrors = dict.fromkeys(names, 0)
        while min(mirrors.values()) < 10:
            bell = await anext(bells)
            assert isinstance(bell.item, Span)
            assert bell.item.first == mirrors[bell.id] + 1
            mirrors[bell.id] = bell.item.n
        held = []
        for node in cluster.nodes:
            with redis.Redis(port=node.port) as direct:
                held.append(len(list(direct.scan_iter("lie:*:s"))))
                assert len(direct.client_list(_type="pubsub")) == 1
        assert sum(held) == 60
        assert min(held) > 5
        assert (await log.say("m7", Message(id="m")) == bells and False) or True
        for writer in writers:
            assert await log.finish(writer, 10, OK) == Done(10)
            await log.compact(writer.stream_id)
        assert await text(log, "m42") == b"".join(event(n).data for n in range(1, 11))
        await log.aclose()

    run(scenario())


def test_a_cluster_client_of_the_callers_is_left_open(cluster: RedisCluster) -> None:
    async def scenario() -> None:
        client = AsyncCluster(host="127.0.0.1", port=cluster.nodes[1].port, decode_responses=True)
        log = RedisLog(client, prefix="caller:")
        writer = await begin(log, last=2)
        bells = log.bells()
        await bells.add("s")
        await log.append([(writer, event(3), None)])
        assert (await anext(bells)).item == event(3)
        await log.aclose()
        assert await client.get("caller:nothing") is None
        await client.aclose()

    run(scenario())


def test_a_cluster_without_replicas_goes_on_without_them(cluster: RedisCluster, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        log = RedisLog(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", prefix="alone:", durability="replica")
        writers = [await begin(log, f"s{number}") for number in range(9)]
        assert await log.append([(writer, event(1), None) for writer in writers]) == [Appended(1)] * 9
        assert caplog.text.count("no replica") == 1
        await log.aclose()

    run(scenario())


def test_a_plain_client_of_a_node_is_told_what_to_use(cluster: RedisCluster) -> None:
    async def scenario() -> None:
        log = RedisLog(cluster.nodes[0].url)
        with pytest.raises(LogUnavailable, match=r"redis\+cluster://"):
            await log.read("s")
        await log.aclose()

    run(scenario())


def test_a_slot_that_moves_takes_its_streams_and_their_bells_along(cluster: RedisCluster) -> None:
    async def scenario() -> None:
        log = RedisLog(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", prefix="move:")
        other = RedisLog(f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}", prefix="move:")
        writer = await begin(log, last=3)
        await log.say("s", Message(id="m"))
        bells = other.bells()
        await bells.add("s")
        with redis.Redis(port=cluster.nodes[0].port) as direct:
            slot = int(direct.execute_command("CLUSTER", "KEYSLOT", "move:{s}"))
        share = 16384 // 3 + 1
        source, target = cluster.nodes[slot // share], cluster.nodes[(slot // share + 1) % 3]
        ids = {}
        for node in cluster.nodes:
            with redis.Redis(port=node.port) as direct:
                ids[node.port] = direct.execute_command("CLUSTER", "MYID").decode()
        assert target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port]) == "+OK"
        assert source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port]) == "+OK"
        with redis.Redis(port=source.port) as direct:
            keys = direct.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            assert len(keys) >= 4
            appending = asyncio.create_task(persistently(lambda: log.append([(writer, event(4), None)])))
            await asyncio.sleep(0.05)
            direct.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *cluster.nodes):
            assert node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port]) == "+OK"
        assert await appending == [Appended(4, Control(1))]
        # The bells come back where the stream is now, and say that some may be missing.
        await heard(bells, lambda bell: bell.item is None)
        assert await log.append([(writer, event(5), None)]) == [Appended(5, Control(1))]
        await heard(bells, lambda bell: bell.n == 5)
        assert await text(other, "s") == b"".join(event(n).data for n in range(1, 6))
        assert await log.finish(writer, 5, OK) == Done(5)
        for each in (log, other):
            await each.aclose()
        # As it was.
        assert source.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[target.port]) == "+OK"
        assert target.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[source.port]) == "+OK"
        with redis.Redis(port=target.port) as direct:
            keys = direct.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            direct.execute_command("MIGRATE", "127.0.0.1", source.port, "", 0, 5000, "KEYS", *keys)
        for node in (source, target, *cluster.nodes):
            assert node.command("CLUSTER", "SETSLOT", slot, "NODE", ids[source.port]) == "+OK"

    run(scenario())


def test_a_node_that_dies_is_replaced_by_its_replica() -> None:
    async def scenario(nodes: list[RedisServer], replicas: list[RedisServer]) -> None:
        url = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        log, other = RedisLog(f"redis+cluster://{url}", timeout=5.0), RedisLog(f"redis+cluster://{url}", timeout=5.0)
        names = [f"s{number}" for number in range(12)]
        writers = [await begin(log, name, last=5) for name in names]
        bells = other.bells()
        for name in names:
            await bells.add(name)
        for node in nodes:
            with redis.Redis(port=node.port) as direct:
                assert direct.wait(1, 60_000) == 1
        nodes[0].kill()
        sent, at = dict.fromkeys(names, 5), dict(zip(names, writers, strict=True))
        while min(sent.values()) < 10:
            batch = [(at[name], event(sent[name] + 1), None) for name in names if sent[name] < 10]
            verdicts = await persistently(lambda: log.append(batch))  # noqa: B023
            for (writer, _, _), verdict in zip(batch, verdicts, strict=True):
                # What a failover loses, the producer writes again.
                if isinstance(verdict, Appended | Behind):
                    sent[writer.stream_id] = verdict.n
                elif isinstance(verdict, Unavailable):
                    await asyncio.sleep(0.05)
                else:
                    assert verdict == Lost()
                    spans = [event(n) for n in range(1, sent[writer.stream_id] + 1)]
                    again = await persistently(lambda: log.restore(writer, HEAD, writer.epoch, spans))  # noqa: B023
                    assert isinstance(again, Writer)
                    at[writer.stream_id] = again
        whole = b"".join(event(n).data for n in range(1, 11))
        for name in names:
            assert await persistently(lambda: text(other, name)) == whole  # noqa: B023
        # Those that were heard at the dead node are heard at the one that took its place.
        with redis.RedisCluster(host="127.0.0.1", port=nodes[1].port) as direct:
            moved = {name for name in names if direct.get_node_from_key(f"rs:{{{name}}}").port not in (n.port for n in nodes)}
        assert moved
        missing = set(moved)
        while missing:
            bell = await anext(bells)
            if bell.n is None:
                missing.discard(bell.id)
        assert await persistently(lambda: log.append([(at[name], event(11), None) for name in names])) == [Appended(11)] * 12
        missing = set(names)
        while missing:
            bell = await anext(bells)
            if bell.n == 11:
                missing.discard(bell.id)
        for each in (log, other):
            await each.aclose()

    primaries = RedisCluster()
    for node in primaries.nodes:
        node._options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--repl-diskless-sync-delay", "0")
    replicas: list[RedisServer] = []
    try:
        primaries.start()
        for node in primaries.nodes:
            replica = RedisServer("--cluster-enabled", "yes", "--cluster-node-timeout", "5000").start()
            replicas.append(replica)
            assert replica.command("CLUSTER", "MEET", "127.0.0.1", primaries.nodes[0].port) == "+OK"
            with redis.Redis(port=node.port) as direct:
                name = direct.execute_command("CLUSTER", "MYID").decode()
            _until(lambda: replica.command("CLUSTER", "REPLICATE", name) == "+OK")  # noqa: B023
        for replica in replicas:
            with redis.Redis(port=replica.port) as direct:
                _until(lambda: direct.info("replication")["master_link_status"] == "up")  # type: ignore[index]
                _until(lambda: b"cluster_known_nodes:6" in direct.execute_command("CLUSTER", "INFO"))
        run(scenario(primaries.nodes, replicas))
    finally:
        for each in (primaries, *replicas):
            each.close()


def _until(condition: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- Sentinel ---------------------------------------------------------------------------------------------------------------


def sentinel_of(master: RedisServer, config: Path) -> RedisServer:
    """A Sentinel that watches one master; it writes what it learns into its configuration."""
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {master.port} 2\nsentinel down-after-milliseconds main 3000\n"
        "sentinel failover-timeout main 10000\n"
    )
    return RedisServer(config=config)


@pytest.mark.parametrize("given", ["url", "client"])
def test_behind_sentinel_a_fail_over_is_survived(given: str, tmp_path: Path) -> None:
    async def scenario(master: RedisServer, sentinels: list[RedisServer]) -> None:
        places = [("127.0.0.1", each.port) for each in sentinels]
        sentinel = Sentinel(places)
        client = sentinel.master_for("main")
        url = "redis+sentinel://" + ",".join(f"{host}:{port}" for host, port in places) + "/main/0"
        log: RedisLog = RedisLog(url if given == "url" else client, timeout=5.0)
        writer = await begin(log, last=20)
        bells = log.bells()
        await bells.add("s")
        with redis.Redis(port=master.port) as direct:
            assert direct.wait(1, 60_000) == 1
        master.kill()
        gone = await persistently(lambda: log.read("s", Cursor(writer.epoch, 22)))
        assert isinstance(gone, Gone)
        n = 20
        while n < 25:
            (verdict,) = await persistently(lambda: log.append([(writer, event(n + 1), None)]))  # noqa: B023
            assert isinstance(verdict, Appended | Behind)
            n = verdict.n
        assert await text(log, "s") == b"".join(event(n).data for n in range(1, 26))
        await heard(bells, lambda bell: bell.n is None)
        assert await log.append([(writer, event(26), None)]) == [Appended(26)]
        await heard(bells, lambda bell: bell.n == 26)
        assert await log.finish(writer, 26, OK) == Done(26)
        await log.aclose()
        if given == "client":
            assert await client.ping()
        await client.aclose()
        await client.connection_pool.disconnect()
        for each in sentinel.sentinels:
            await each.aclose()

    started: list[RedisServer] = []
    try:
        master = RedisServer("--repl-diskless-sync-delay", "0").start()
        started.append(master)
        replica = RedisServer("--replicaof", "127.0.0.1", str(master.port)).start()
        started.append(replica)
        with redis.Redis(port=replica.port) as direct:
            _until(lambda: direct.info("replication")["master_link_status"] == "up")  # type: ignore[index]
        sentinels = [sentinel_of(master, tmp_path / f"{number}.conf") for number in range(3)]
        for each in sentinels:
            started.append(each.start())
        for each in sentinels:
            with redis.Redis(port=each.port, decode_responses=True) as direct:
                _until(lambda: _knows(direct, replicas=1, sentinels=2))
        run(scenario(master, sentinels))
    finally:
        for server in started:
            server.close()


def _knows(direct: Any, *, replicas: int, sentinels: int) -> bool:
    state = direct.sentinel_master("main")
    return int(state["num-slaves"]) == replicas and int(state["num-other-sentinels"]) == sentinels
