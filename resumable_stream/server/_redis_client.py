"""
How `RedisLog` talks to a server, to a master behind Sentinel, or to a Cluster: one trip per node for any number of scripts.

A node of a Cluster that cannot be reached fails the calls for its own streams and no others: each node has its own trips, slots
and connections, and the map of the Cluster is refreshed in the background.

Every failure is a `LogUnavailable`. Its message never contains the user or the password of a URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .._errors import LogUnavailable
from .._scrubbing import Scrubber
from ._redis_scripts import Script, Scripts
from .log import damaged

_pack: Callable[..., bytes] | None
try:
    from hiredis import pack_command

    _pack = pack_command
except ImportError:
    _pack = None

__all__ = ["Call", "RedisClient", "Reply"]

logger: Final = logging.getLogger("resumable_stream.server")

OLDEST: Final = (6, 2)
OLDEST_CLUSTER: Final = (7, 0)
"""The first version with SPUBLISH. Without it, each bell of a Cluster would go to all nodes."""

_SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_EXPECTED: Final = (
    "redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket, redis+cluster://host:6379 or "
    "redis+sentinel://host:26379/name/0"
)
_MOST_CALLS: Final = 500
_MOST_BYTES: Final = 8 << 20
"""Limits of one pipeline. More is sent in several, so that each is answered well within the timeouts."""
_LOOK_AGAIN: Final = 1.0
"""Seconds between two refreshes of the map of a Cluster, at least. 1: a failover takes a few."""
_REPLICA_MS: Final = 50
_GRACE: Final = 1.0
_MOST_SAID: Final = 300
"""Longest part of a server's message that goes into an error, in characters."""

FAILURES: Final = (RedisError, RedisClusterException, OSError, EOFError)

Reply: TypeAlias = list[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """
    A script and its arguments.

    Attributes:
        script: What to run.
        keys: All of one slot.
        words: Its other arguments.
        stream_id: The stream of the keys, for messages; `None`: no stream.
    """

    script: Script
    keys: Sequence[bytes]
    words: Sequence[bytes] = field(repr=False)
    stream_id: str | None = None

    @property
    def size(self) -> int:
        """Roughly how many bytes it sends."""
        return 200 + sum(map(len, self.keys)) + sum(map(len, self.words))

    def by_name(self) -> tuple[Any, ...]:
        """The command, for a server that knows the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.words)

    def in_full(self) -> tuple[Any, ...]:
        """The command with the text of the script."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.words)


class RedisClient:
    """
    A client of redis-py: the caller's, or one made from a URL.

    Args:
        url_or_client: See `RedisLog`.
        socket_timeout: Seconds a server may take for one reply. Does not apply to a caller's client.
        timeout: Seconds one trip may take in all.
        concurrency: Most trips at a time, and so most connections; in a Cluster, per node.
        replica: Wait briefly until a replica has received each write.

    Attributes:
        cluster: Keys are spread over several nodes.
        scripts: The scripts to run.
    """

    def __init__(
        self, url_or_client: Any, *, socket_timeout: float, timeout: float, concurrency: int, replica: bool = False
    ) -> None:
        self.timeout = timeout
        self.socket_timeout = socket_timeout
        self._replica = replica
        self._replicated = True
        self._own: list[Any] = []
        self._closed = False
        if isinstance(url_or_client, str):
            self._client, self._own = _of_url(url_or_client, socket_timeout)
        else:
            self._client = _checked(url_or_client)
        self.cluster = isinstance(self._client, RedisCluster)
        self._where = _where(self._client)
        self._scrubber = Scrubber(_secrets(self._client))
        self.scripts = Scripts(cluster=self.cluster)
        self._concurrency = concurrency
        # By name of the node, so that calls waiting for a node that hangs do not take the slots of the others.
        self._free: dict[str, asyncio.Semaphore] = {}
        self._under_way: set[asyncio.Timeout] = set()
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()
        self._known = False
        # Several tasks that discover the nodes of a Cluster at once get in each other's way.
        self._finding = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = float("-inf")
        # Nodes that did not answer last time; they are asked last.
        self._failed: set[str] = set()

    def __str__(self) -> str:
        return self._where

    def check_open(self) -> None:
        """
        Raise after `aclose()`.

        Raises:
            LogUnavailable: It was closed.
        """
        if self._closed:
            raise LogUnavailable("this RedisLog is closed; make a new one")

    # --- trips

    async def call(self, script: Script, keys: Sequence[bytes], words: Sequence[bytes], stream_id: str | None = None) -> Reply:
        """
        Run one script.

        Raises:
            LogUnavailable: It was not run, or that is unknown, or the data it found is damaged.
        """
        call = Call(script, keys, words, stream_id)
        if self.cluster or (self._replica and script.writes):
            (found,) = await self.calls([call])
            if isinstance(found, LogUnavailable):
                raise found
            return found

        async def run() -> Reply:
            try:
                found = await self._client.execute_command(*call.by_name(), NEVER_DECODE=True)
            except NoScriptError:
                found = await self._client.execute_command(*call.in_full(), NEVER_DECODE=True)
            return list(found)

        return await self._trip(run, stream_id)

    async def calls(self, calls: Sequence[Call]) -> list[Reply | LogUnavailable]:
        """
        Run scripts in one pipeline per node; those of one stream stay in order.

        Returns:
            For each, the answer or its error: the data is damaged, or a node of a Cluster cannot be reached. One error does not
            affect the other calls.

        Raises:
            LogUnavailable: Some of them were not run, or that is unknown.
        """
        if self.cluster:
            return await self._calls_of_cluster(calls)
        found: list[Reply | LogUnavailable] = []
        for part in _parts(calls):
            found += await self._trip(partial(self._pipeline, part, None))
        return found

    async def _calls_of_cluster(self, calls: Sequence[Call]) -> list[Reply | LogUnavailable]:
        await self._know_nodes()
        found: dict[int, Reply | LogUnavailable] = {}
        groups: dict[str, tuple[Any, list[int]]] = {}
        for place, call in enumerate(calls):
            try:
                node = self._node(call.keys[0])
            except RedisClusterException as exc:
                # No node has its slot.
                found[place] = self._explained(exc)
                self._look_for_nodes()
                continue
            groups.setdefault(node.name, (node, []))[1].append(place)

        async def of_node(node: Any, places: list[int]) -> None:
            replies: list[Reply | LogUnavailable] = []
            for part in _parts([calls[place] for place in places]):
                try:
                    replies += await self._trip(partial(self._pipeline, part, node), node=node)
                except LogUnavailable as exc:
                    self._failed.add(node.name)
                    self._look_for_nodes()
                    # Later parts fail too: they go to the same node.
                    replies += [exc] * (len(places) - len(replies))
                    break
                self._failed.discard(node.name)
            found.update(zip(places, replies, strict=True))

        if len(groups) == 1:
            await of_node(*next(iter(groups.values())))
        else:
            await asyncio.gather(*(of_node(node, places) for node, places in groups.values()))
        return [found[place] for place in range(len(calls))]

    async def _pipeline(self, calls: Sequence[Call], node: Any) -> list[Reply | LogUnavailable]:
        raw = await self._execute([(call, call.by_name()) for call in calls], node)
        again = _again(calls, raw)
        if again:
            # In full, so that the server learns the script.
            repeated = await self._execute([(calls[place], calls[place].in_full()) for place in again], node)
            for place, reply in zip(again, repeated, strict=True):
                raw[place] = reply
        found: list[Reply | LogUnavailable] = []
        for call, reply in zip(calls, raw, strict=True):
            if not isinstance(reply, Exception):
                found.append(list(reply))
                continue
            error = self._of_a_stream(reply, call.stream_id)
            if error is None:
                if node is None or not isinstance(reply, ResponseError) or _is_replica(reply):
                    raise reply
                # An unserved slot, or one that is moving: other streams of this node work.
                error = self._explained(reply)
                self._look_for_nodes()
            found.append(error)
        return found

    async def _execute(self, commands: Sequence[tuple[Call, tuple[Any, ...]]], node: Any) -> list[Any]:
        words: list[tuple[Any, ...]] = [each for _, each in commands]
        if self._replica and any(call.script.writes for call, _ in commands):
            words.append(("WAIT", 1, _REPLICA_MS))
        if node is not None:
            replies = await self._execute_at(node, words)
        else:
            pipe = self._client.pipeline(transaction=False)
            for each in words:
                pipe.execute_command(*each, NEVER_DECODE=True)
            # Errors stay among the replies: if redis-py raised them, they would carry what was sent.
            replies = await pipe.execute(raise_on_error=False)
        self._heed(replies[len(commands) :])
        return replies[: len(commands)]

    async def _execute_at(self, node: Any, words: Sequence[tuple[Any, ...]]) -> list[Any]:
        # Not the pipeline of `RedisCluster`: when one node fails, that one closes the connections to all of them.
        for last in (False, True):
            batch = [PipelineCommand(place, *each, NEVER_DECODE=True) for place, each in enumerate(words)]
            try:
                await node.execute_pipeline(batch)
            except RedisConnectionError:
                if last:
                    raise
                continue
            if last or not all(isinstance(each.result, RedisConnectionError) for each in batch):
                break
            # Try once more: the idle connection may have been closed.
        replies = [each.result for each in batch]
        for place, reply in enumerate(replies):
            if isinstance(reply, MovedError | AskError | TryAgainError):
                # The slot has moved, or is moving. redis-py follows it and remembers its node.
                try:
                    replies[place] = await self._client.execute_command(*words[place], NEVER_DECODE=True)
                except FAILURES as exc:
                    replies[place] = exc if isinstance(exc, ResponseError) else ResponseError(str(exc))
        return replies

    # --- the nodes of a Cluster

    def shard_of(self, key: bytes) -> str:
        """The name of the node that has the slot of a key; `""` for a single server, or if the node is unknown."""
        if not self.cluster:
            return ""
        try:
            return str(self._node(key).name)
        except RedisClusterException:
            return ""

    def _node(self, key: bytes) -> Any:
        slot = self._client.keyslot(key)
        try:
            return self._client.nodes_manager.get_node_from_slot(slot)
        except KeyError:
            pass
        # For some unknown slots redis-py raises this itself.
        raise RedisClusterException(f"no node is known for slot {slot}")

    async def _know_nodes(self) -> None:
        """Discover the nodes, the first time. After that, `_look_for_nodes()` refreshes them in the background."""

        manager = self._client.nodes_manager

        async def find() -> None:
            async with self._finding:
                if manager.slots_cache:
                    return
                try:
                    await self._client.initialize()
                except FAILURES:
                    # It also asks a node for the list of commands, which is not needed here. `_look()` tries that again.
                    if not manager.slots_cache:
                        raise
                    self._look_for_nodes()

        if not manager.slots_cache:
            await self._trip(find, finds=True)

    def _look_for_nodes(self) -> None:
        """Check in the background whether another node has replaced one that failed."""
        loop = asyncio.get_running_loop()
        if self._looking is None and not self._closed and loop.time() - self._looked_at >= _LOOK_AGAIN:
            self._looking = loop.create_task(self._look())

    async def _look(self) -> None:
        manager = self._client.nodes_manager
        try:
            async with asyncio.timeout(self.timeout):
                # redis-py's own discovery follows slots that move, and may not have finished before.
                with contextlib.suppress(*FAILURES):
                    async with self._finding:
                        await self._client.initialize()
                nodes = sorted(manager.nodes_cache.values(), key=lambda node: (node.name in self._failed, node.server_type))
                for node in nodes:
                    try:
                        found = await node.execute_command("CLUSTER SLOTS")
                    except FAILURES:
                        continue
                    # Only when something changed, because redis-py then reconnects everywhere.
                    if not self._is_known(node, found):
                        async with self._finding:
                            await manager.initialize()
                        self._free = {name: free for name, free in self._free.items() if name in manager.nodes_cache}
                        self._failed &= set(manager.nodes_cache)
                    return
        except (*FAILURES, TimeoutError):
            pass  # the next trip that fails looks again
        finally:
            self._looked_at = asyncio.get_running_loop().time()
            self._looking = None

    def _is_known(self, node: Any, slots: Sequence[Any]) -> bool:
        """Whether this matches the known map of slots."""
        cache = self._client.nodes_manager.slots_cache
        for first, last, (host, port, *_), *_ in slots:
            where = (_text(host) or node.host, int(port))
            for slot in (first, last):
                if not cache.get(slot) or (cache[slot][0].host, int(cache[slot][0].port)) != where:
                    return False
        return True

    def _heed(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if not replies:
            return
        replicated = all(int(reply) >= 1 for reply in replies)
        if replicated != self._replicated:
            if replicated:
                logger.info("%s: replicas receive the writes again", self._where)
            else:
                logger.warning("%s: no replica confirmed a write within %d ms; continuing without one", self._where, _REPLICA_MS)
            self._replicated = replicated

    async def _trip(
        self, work: Callable[[], Awaitable[T]], stream_id: str | None = None, *, node: Any = None, finds: bool = False
    ) -> T:
        """Run a trip within its timeout and limit, and translate its errors."""
        name = "" if node is None else node.name
        free = self._free.get(name)
        if free is None:
            free = self._free[name] = asyncio.Semaphore(self._concurrency)
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self.timeout) as limit, free:
                with self._registered(limit):
                    if not self._known and not finds:
                        await self._check_server(node)
                    found = await work()
            if task.cancelling() > cancelled:
                # On Python 3.11, `asyncio.wait_for` in redis-py loses a cancellation that arrives just as the send completes.
                raise asyncio.CancelledError
            return found
        except FAILURES as exc:
            failure = self._of_a_stream(exc, stream_id) or self._explained(exc)
            cause = self._scrubber.harmless(exc)
            if _is_replica(exc):
                await self._leave_the_replica()
        # Outside the handler: otherwise the exception would be attached as context, with the password.
        raise failure from cause

    @contextlib.contextmanager
    def _registered(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Refuse a trip after `aclose()`. One under way must end before its connection is closed."""
        self.check_open()
        self._under_way.add(limit)
        self._none_under_way.clear()
        try:
            yield
        finally:
            self._under_way.discard(limit)
            if not self._under_way:
                self._none_under_way.set()

    async def _check_server(self, node: Any) -> None:
        # HELLO, because INFO is often forbidden.
        found: Any = None
        try:
            found = await (self._client if node is None else node).execute_command("HELLO", NEVER_DECODE=True)
        except ResponseError as exc:
            if "NOPERM" in str(exc) or "permission" in str(exc).lower():
                self._known = True  # unknown version: a script that misses something will fail and say so
                return
            if not re.search(r"unknown command.{0,3}HELLO", str(exc), re.IGNORECASE):
                raise
        if found is None:
            raise LogUnavailable(self._too_old("one that does not know HELLO"))
        words = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=False))
        facts = {_text(name): _text(value) for name, value in words.items()}
        version = tuple(int(number) for number in re.findall(r"\d+", facts.get("version", ""))[:2])
        if version < (OLDEST_CLUSTER if self.cluster else OLDEST):
            raise LogUnavailable(self._too_old(facts.get("version", "one without a version")))
        if facts.get("mode") == "cluster" and not self.cluster:
            raise LogUnavailable(
                f"{self._where} is a node of a Redis Cluster, but this client is for a single server; "
                "use a URL that begins with redis+cluster://, or pass a redis.asyncio.RedisCluster"
            )
        if facts.get("mode") == "sentinel":
            raise LogUnavailable(
                f"{self._where} is a Sentinel; use redis+sentinel://host:26379/name/0, or pass sentinel.master_for('name')"
            )
        self._known = True

    def _too_old(self, version: str) -> str:
        if self.cluster:
            return (
                f"RedisLog needs Redis 7.0 or newer for a Cluster, but {self._where} is {version}; upgrade it, or use one server"
            )
        return f"RedisLog needs Redis 6.2 or newer, but {self._where} is {version}; upgrade it"

    async def _leave_the_replica(self) -> None:
        # After a failover, a connection may stay with the server that has become a replica.
        self._known = False
        try:
            if self.cluster:
                self._look_for_nodes()
            else:
                await self._client.connection_pool.disconnect(inuse_connections=False)
        except FAILURES:
            pass  # the next trip finds out and reports it

    # --- connections for listening

    async def node_of(self, key: bytes) -> Any:
        """The node of a Cluster that has the slot of a key; `None` if there is only one server."""
        if not self.cluster:
            return None
        await self._know_nodes()
        try:
            return self._node(key)
        except RedisClusterException as exc:
            self._look_for_nodes()
            failure = self._explained(exc)
        raise failure

    def listening_connection(self, node: Any) -> Any:
        """
        A connection of redis-py for publish and subscribe, outside any pool, which does not reconnect by itself.

        Its replies are bytes. Its `socket_timeout` bounds the connecting; the listener then sets it to `None`.
        """
        holder = self._client.connection_pool if node is None else node
        options = {
            name: value
            for name, value in holder.connection_kwargs.items()
            if not name.startswith(("maint_", "maintenance_", "oss_cluster_", "orig_", "himport_", "event_dispatcher"))
        }
        options |= {
            "socket_timeout": self.socket_timeout,
            "socket_connect_timeout": options.get("socket_connect_timeout") or self.socket_timeout,
            "retry": Retry(NoBackoff(), 0),
            "retry_on_timeout": False,
            "retry_on_error": [],
            "health_check_interval": 0,
            "decode_responses": False,
            "protocol": 2,
        }
        return holder.connection_class(**options)

    # --- errors

    def unavailable(self, exc: BaseException, what: str) -> LogUnavailable:
        """The error for a failed connection."""
        return LogUnavailable(f"{self._where}: {what}: {self._said(exc)}")

    def _of_a_stream(self, exc: BaseException, stream_id: str | None) -> LogUnavailable | None:
        """The error, if only one stream is affected."""
        said = str(exc)
        if stream_id is None:
            return None
        if found := re.search(r"DAMAGED\[(.*?)\]", said):
            return damaged(stream_id, found[1])
        if found := re.search(r"LATER\[(.{0,40}?)\]", said):
            return LogUnavailable(
                f"stream {stream_id!r}: it was written by a later version of resumable_stream (format {found[1]}, this one "
                "reads 1); upgrade this process",
                stream_id=stream_id,
            )
        if "WRONGTYPE" in said:
            return damaged(stream_id, "one of its keys holds the wrong type of value")
        if "specified in XADD" in said:
            return damaged(stream_id, "its spans end elsewhere than its record says")
        return None

    def _explained(self, exc: BaseException) -> LogUnavailable:
        said = self._said(exc)
        if isinstance(exc, TimeoutError) and self._closed:
            return LogUnavailable("this RedisLog was closed before Redis answered; the call may have taken effect")
        if isinstance(exc, TimeoutError) and not str(exc):
            return LogUnavailable(
                f"Redis at {self._where} did not answer within {self.timeout:g} s; the call may have taken effect"
            )
        if re.search(r"\bOOM\b|maxmemory", said):
            return LogUnavailable(
                f"Redis at {self._where} is full: {said}; give it more memory, or give streams a shorter retention"
            )
        if _is_replica(exc):
            return LogUnavailable(f"Redis at {self._where} is a replica and takes no writes, perhaps after a failover: {said}")
        return LogUnavailable(f"cannot use Redis at {self._where}: {said}")

    def _said(self, exc: BaseException) -> str:
        return self._scrubber.scrubbed(str(exc) or type(exc).__name__)[:_MOST_SAID]

    async def aclose(self) -> None:
        """
        Refuse further trips, and close the client if it was made from a URL. A caller's client stays open.

        Trips under way have a second to end; then they are cancelled.
        """
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        own, self._own = self._own, []
        if not own:
            return
        # Trips first: closing the client during one makes redis-py connect again, and nothing would close that connection.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none_under_way.wait(), _GRACE)
        for limit in list(self._under_way):
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        await self._none_under_way.wait()
        for each in own:
            try:
                await (each.aclose() if hasattr(each, "aclose") else each.close())
                if isinstance(each, Redis):
                    await each.connection_pool.disconnect()
                if isinstance(each, RedisCluster):
                    # redis-py skips this while it discovers nodes.
                    manager = each.nodes_manager
                    for node in [*manager.nodes_cache.values(), *manager.startup_nodes.values()]:
                        await node.disconnect()
            except FAILURES:
                pass  # nothing more to close


def _is_replica(exc: BaseException) -> bool:
    # Redis 6.2 reports errors of a script in a text of its own.
    return isinstance(exc, ReadOnlyError) or "READONLY" in str(exc)


def _parts(calls: Sequence[Call]) -> list[list[Call]]:
    parts: list[list[Call]] = []
    size = 0
    for call in calls:
        if not parts or len(parts[-1]) >= _MOST_CALLS or size + call.size > _MOST_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(call)
        size += call.size
    return parts


def _again(calls: Sequence[Call], replies: Sequence[Any]) -> list[int]:
    """
    Which calls to repeat because the script was unknown: for each stream, all from the first such call, in order.

    Later calls of that stream may have run without the first one. Repeating them has no second effect.
    """
    unknown: set[Any] = set()
    again = []
    for place, (call, reply) in enumerate(zip(calls, replies, strict=True)):
        whose = call.stream_id if call.stream_id is not None else call.keys[0]
        if isinstance(reply, NoScriptError):
            unknown.add(whose)
        if whose in unknown:
            again.append(place)
    return again


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# --- clients ------------------------------------------------------------------------------------------------------------


def _checked(client: Any) -> Any:
    if isinstance(client, RedisCluster):
        return client
    if isinstance(client, Redis):
        pool = client.connection_pool
        if isinstance(pool, SentinelConnectionPool) and not pool.is_master:
            raise ValueError("a log needs the master: pass sentinel.master_for(…), got a client of its replicas")
        return client
    kind = f"{type(client).__module__}.{type(client).__name__}"
    hint = ""
    if isinstance(client, Sentinel):
        hint = "; pass sentinel.master_for('name')"
    elif kind.startswith("redis."):
        hint = "; pass the client of redis.asyncio"
    raise TypeError(f"expected the URL of a Redis, a redis.asyncio.Redis or a redis.asyncio.RedisCluster, got {kind}{hint}")


def _of_url(url: str, socket_timeout: float) -> tuple[Any, list[Any]]:
    """Make a client, and return it with what has to be closed."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"expected the URL of a Redis ({_EXPECTED}), got another scheme")
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        # One retry, for an idle connection that was closed. The callers of the log decide about the rest.
        "retry": Retry(NoBackoff(), 1),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
        "protocol": 2,
    }
    try:
        base, _, kind = scheme.partition("+")
        hosts = rest.rpartition("@")[2].partition("/")[0].partition("?")[0].split(",")
        if "@" in urlsplit(f"redis://{rest}").path:
            raise ValueError("not in its place")
        if kind == "sentinel":
            return _of_sentinels(rest, tls=base == "rediss", options=options)
        login = "".join(rest.rpartition("@")[:2])
        tail = rest[len(login) + len(",".join(hosts)) :]
        plain = f"{base}://{login}{hosts[0]}{tail}" if kind else url
        # Created but not connected, so that an unknown option is reported now.
        probe = Redis.from_url(plain, **options)
        probe.connection_pool.connection_class(**probe.connection_pool.connection_kwargs)
        if kind == "cluster":
            parts = [urlsplit(f"redis://{host}") for host in hosts]
            more = [ClusterNode(part.hostname or "localhost", part.port or 6379) for part in parts]
            # More retries: a call that finds a node gone looks for its replacement.
            cluster = RedisCluster.from_url(plain, startup_nodes=more, **{**options, "retry": Retry(NoBackoff(), 3)})
            return cluster, [cluster]
        _pack_in_c(probe.connection_pool)
        return probe, [probe]
    except (ValueError, TypeError, OSError, RedisError, RedisClusterException):
        pass
    # Outside the handler and without the text: the unreadable part may belong to the password.
    raise ValueError(
        f"the URL of a Redis cannot be read: expected {_EXPECTED}, if needed with user:password@ before the host, both "
        "percent-encoded"
    )


def _pack_in_c(pool: Any) -> None:
    """
    Let the connections of a pool encode script calls with `hiredis`, if installed.

    redis-py's asyncio half encodes in Python, which is a quarter of the time of a call; its sync half uses `hiredis`.
    """
    plain, pack = pool.connection_class, _pack
    if pack is None:
        return

    def pack_command(self: Any, *words: Any) -> list[bytes]:
        # Script calls only: their arguments are bytes and numbers, whatever the encoding of the connection.
        return [pack(words)] if words[0] == "EVALSHA" else plain.pack_command(self, *words)

    pool.connection_class = type(plain.__name__, (plain,), {"pack_command": pack_command})


def _of_sentinels(rest: str, *, tls: bool, options: dict[str, Any]) -> tuple[Any, list[Any]]:
    login, _, place = rest.rpartition("@")
    hosts, _, path = place.partition("/")
    name, _, db = path.partition("/")
    parts = [urlsplit(f"redis://{host}") for host in hosts.split(",")]
    if not name or re.search(r"[?#]", place):
        raise ValueError("not a place")
    user, _, password = login.partition(":")
    addresses = [(part.hostname or "localhost", part.port or 26379) for part in parts]
    asked = {**options, "ssl": tls}
    sentinel = Sentinel(addresses, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    login_of = {"username": unquote(user) or None, "password": unquote(password) or None}
    options |= {"db": int(db or 0), **login_of, **({"ssl": True} if tls else {})}
    master = sentinel.master_for(name, **options)
    _pack_in_c(master.connection_pool)
    return master, [master, *sentinel.sentinels]


def _where(client: Any) -> str:
    """The address of a client, without its user, password and other options."""
    if isinstance(client, RedisCluster):
        nodes = list(client.nodes_manager.startup_nodes.values())
        return f"redis+cluster://{_host(nodes[0].host, nodes[0].port)}" if nodes else "a Redis Cluster"
    pool = client.connection_pool
    found = pool.connection_kwargs
    if isinstance(pool, SentinelConnectionPool):
        return f"redis+sentinel://{pool.service_name}/{found.get('db') or 0}"
    if "path" in found:
        return f"unix://{found['path']}?db={found.get('db') or 0}"
    return f"redis://{_host(found.get('host', 'localhost'), found.get('port', 6379))}/{found.get('db') or 0}"


def _host(host: Any, port: Any) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _secrets(client: Any) -> list[str]:
    """The credentials of a client."""
    holder = client if isinstance(client, RedisCluster) else client.connection_pool
    given = [holder.connection_kwargs]
    if isinstance(holder, SentinelConnectionPool):
        given.append(holder.sentinel_manager.sentinel_kwargs)
    return [str(found) for each in given for name in ("password", "username") if (found := each.get(name))]
