"""
How `RedisLog` talks to a server, to a master behind Sentinel, or to a Cluster: one trip for any number of scripts.

Whatever goes wrong on the way is `LogUnavailable`. What a URL says about user and password is in none of its messages.
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
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisClusterException, RedisError, ResponseError
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
"""The first version with SPUBLISH. Without it, each bell of a Cluster would go to all of its nodes."""

_SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")
_EXPECTED: Final = (
    "redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket, redis+cluster://host:6379 or "
    "redis+sentinel://host:26379/name/0"
)
_MOST_CALLS: Final = 500
_MOST_BYTES: Final = 8 << 20
"""Of one pipeline: more is sent in several, so that each is answered well within the time-outs."""
_REPLICA_MS: Final = 50
_GRACE: Final = 1.0
_MOST_SAID: Final = 300
"""Characters of what a server says that go into an error."""

FAILURES: Final = (RedisError, RedisClusterException, OSError, EOFError)

Reply: TypeAlias = list[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """
    A script with what it works on.

    Attributes:
        script: What to run.
        keys: Of one slot.
        words: Its other arguments.
        stream_id: Whose keys they are, for messages; `None`: nobody's.
    """

    script: Script
    keys: Sequence[bytes]
    words: Sequence[bytes] = field(repr=False)
    stream_id: str | None = None

    @property
    def size(self) -> int:
        """About how many bytes it sends."""
        return 200 + sum(map(len, self.keys)) + sum(map(len, self.words))

    def by_name(self) -> tuple[Any, ...]:
        """The command, for a server that knows the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.words)

    def in_full(self) -> tuple[Any, ...]:
        """The command with the text of the script."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.words)


class RedisClient:
    """
    A client of redis-py: that of the caller, or one made of a URL.

    Args:
        url_or_client: See `RedisLog`.
        socket_timeout: Seconds that a server may take for one reply. Not for a client of the caller's.
        timeout: Seconds that one trip may take in all.
        concurrency: Most trips at one time, and so the most connections.
        replica: Wait until a replica has what was written, but not long.

    Attributes:
        cluster: Keys lie on several nodes.
        scripts: What to run.
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
        self._free = asyncio.Semaphore(concurrency)
        self._under_way: set[asyncio.Timeout] = set()
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()
        self._known = False
        # Several tasks that find the nodes of a Cluster at one time get in each other's way.
        self._finding = asyncio.Lock()

    def __str__(self) -> str:
        return self._where

    def check_open(self) -> None:
        """
        Refuse to go on after `aclose()`.

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
            LogUnavailable: It was not run, or nobody knows; or what it found is damaged.
        """
        call = Call(script, keys, words, stream_id)
        if self._replica and script.writes:
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
        Run scripts in one pipeline per node; those of one stream in their order.

        Returns:
            The answer to each, or that what it found is damaged: the others are not at fault.

        Raises:
            LogUnavailable: Some of them were not run, or nobody knows.
        """
        found: list[Reply | LogUnavailable] = []
        for part in _parts(calls):
            found += await self._trip(partial(self._pipeline, part))
        return found

    async def _pipeline(self, calls: Sequence[Call]) -> list[Reply | LogUnavailable]:
        raw = await self._execute([(call, call.by_name()) for call in calls])
        again = _again(calls, raw)
        if again:
            # In full: the nodes that do not know a script learn it so.
            repeated = await self._execute([(calls[place], calls[place].in_full()) for place in again])
            for place, reply in zip(again, repeated, strict=True):
                raw[place] = reply
        found: list[Reply | LogUnavailable] = []
        for call, reply in zip(calls, raw, strict=True):
            if not isinstance(reply, Exception):
                found.append(list(reply))
                continue
            error = self._of_a_stream(reply, call.stream_id)
            if error is None:
                raise reply
            found.append(error)
        return found

    async def _execute(self, commands: Sequence[tuple[Call, tuple[Any, ...]]]) -> list[Any]:
        pipe = self._client.pipeline() if self.cluster else self._client.pipeline(transaction=False)
        for _, words in commands:
            pipe.execute_command(*words, NEVER_DECODE=True)
        for where in self._written_nodes([call for call, _ in commands if call.script.writes]):
            pipe.execute_command("WAIT", 1, _REPLICA_MS, **where)
        # The errors are among the replies: raised by redis-py they would carry what was sent.
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        self._heed(replies[len(commands) :])
        return replies[: len(commands)]

    def _written_nodes(self, calls: Sequence[Call]) -> list[dict[str, Any]]:
        if not self._replica or not calls:
            return []
        if not self.cluster:
            return [{}]
        nodes = {node.name: node for call in calls if (node := self._client.get_node_from_key(call.keys[0])) is not None}
        return [{"target_nodes": node} for node in nodes.values()]

    def _heed(self, replies: Sequence[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if not replies:
            return
        replicated = all(int(reply) >= 1 for reply in replies)
        if replicated != self._replicated:
            if replicated:
                logger.info("%s: replicas have what is written again", self._where)
            else:
                logger.warning("%s: no replica had what was written within %d ms; going on without", self._where, _REPLICA_MS)
            self._replicated = replicated

    async def _trip(self, work: Callable[[], Awaitable[T]], stream_id: str | None = None) -> T:
        """What surrounds every trip: its time, its place, and what its errors become."""
        task = asyncio.current_task()
        assert task is not None
        cancelled = task.cancelling()
        try:
            async with asyncio.timeout(self.timeout) as limit, self._free:
                with self._registered(limit):
                    if self.cluster:
                        async with self._finding:
                            await self._client.initialize()
                    if not self._known:
                        await self._check_server()
                    found = await work()
            if task.cancelling() > cancelled:
                # `asyncio.wait_for`, with which redis-py sends, loses it on Python 3.11 if it comes just when all is sent.
                raise asyncio.CancelledError
            return found
        except FAILURES as exc:
            failure = self._of_a_stream(exc, stream_id) or self._explained(exc)
            cause = self._scrubber.harmless(exc)
            if _is_replica(exc):
                await self._leave_the_replica()
        # Outside of the handler: else the exception would be carried along, password and all, whatever the cause is.
        raise failure from cause

    @contextlib.contextmanager
    def _registered(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Refuse a trip after `aclose()`; one that is under way then has to end before its connection is closed."""
        self.check_open()
        self._under_way.add(limit)
        self._none_under_way.clear()
        try:
            yield
        finally:
            self._under_way.discard(limit)
            if not self._under_way:
                self._none_under_way.set()

    async def _check_server(self) -> None:
        # HELLO, and not INFO: that one is often forbidden.
        found: Any = None
        try:
            if self.cluster:
                found = await self._client.get_default_node().execute_command("HELLO", NEVER_DECODE=True)
            else:
                found = await self._client.execute_command("HELLO", NEVER_DECODE=True)
        except ResponseError as exc:
            if "NOPERM" in str(exc) or "permission" in str(exc).lower():
                self._known = True  # it is as it is; what a script needs and does not find will be said then
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
                f"{self._where} is a node of a Redis Cluster, and this client is for a single server; "
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
                f"RedisLog needs Redis 7.0 or newer for a Cluster, and {self._where} is {version}; upgrade it, or use one server"
            )
        return f"RedisLog needs Redis 6.2 or newer, and {self._where} is {version}; upgrade it"

    async def _leave_the_replica(self) -> None:
        # After a fail-over a connection may stay with the server that is a replica now.
        self._known = False
        try:
            if self.cluster:
                await self._client.nodes_manager.initialize()
            else:
                await self._client.connection_pool.disconnect(inuse_connections=False)
        except FAILURES:
            pass  # the next trip finds out, and says so

    # --- connections for listening

    async def node_of(self, key: bytes) -> Any:
        """The node of a Cluster that has the slot of a key; `None` if there is only one server."""
        if not self.cluster:
            return None

        async def find() -> Any:
            return self._client.get_node_from_key(key.decode())

        return await self._trip(find)

    def listening_connection(self, node: Any) -> Any:
        """
        A connection of redis-py for publish and subscribe, which belongs to no pool and does not come back by itself.

        Its replies are bytes. While it connects, what it waits for has an end; whoever listens then sets its `socket_timeout` to
        `None`.
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
        """The error for a failure of a connection."""
        return LogUnavailable(f"{self._where}: {what}: {self._said(exc)}")

    def _of_a_stream(self, exc: BaseException, stream_id: str | None) -> LogUnavailable | None:
        """The error, if it is one stream that is at fault."""
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
            return damaged(stream_id, "a key of it holds another kind of value")
        if "specified in XADD" in said:
            return damaged(stream_id, "its spans end elsewhere than its record says")
        return None

    def _explained(self, exc: BaseException) -> LogUnavailable:
        said = self._said(exc)
        if isinstance(exc, TimeoutError) and self._closed:
            return LogUnavailable("this RedisLog was closed before Redis answered; it may have done what was asked")
        if isinstance(exc, TimeoutError) and not str(exc):
            return LogUnavailable(
                f"Redis at {self._where} did not answer within {self.timeout:g} s; it may have done what was asked"
            )
        if re.search(r"\bOOM\b|maxmemory", said):
            return LogUnavailable(
                f"Redis at {self._where} is full: {said}; give it more memory, or a shorter retention to streams"
            )
        if _is_replica(exc):
            return LogUnavailable(f"Redis at {self._where} is a replica and takes no writes, perhaps after a fail-over: {said}")
        return LogUnavailable(f"cannot use Redis at {self._where}: {said}")

    def _said(self, exc: BaseException) -> str:
        return self._scrubber.scrubbed(str(exc) or type(exc).__name__)[:_MOST_SAID]

    async def aclose(self) -> None:
        """
        Make no trips any more, and close the client if it was made of a URL; one of the caller's stays as it is.

        Trips under way have a second to end, and are given up then.
        """
        self._closed = True
        own, self._own = self._own, []
        if not own:
            return
        # Not under them: redis-py would connect once more, and nobody would close that connection.
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
            except FAILURES:
                pass  # it is as closed as it can be


def _is_replica(exc: BaseException) -> bool:
    # Redis 6.2 puts what happened in a script into a text of its own.
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
    Which calls to repeat, because the script was not known: of each stream all from the first such call on, in their order.

    The later ones of that stream may have been run without the first one. What they did is not done twice.
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
    """Make a client, and say what has to be closed."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"expected the URL of a Redis ({_EXPECTED}), got another scheme")
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        # Once more, for a connection that was closed while nobody looked. Whoever writes decides about the rest.
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
        # Made, and not connected: an option that it does not know is told now.
        probe = Redis.from_url(plain, **options)
        probe.connection_pool.connection_class(**probe.connection_pool.connection_kwargs)
        if kind == "cluster":
            parts = [urlsplit(f"redis://{host}") for host in hosts]
            more = [ClusterNode(part.hostname or "localhost", part.port or 6379) for part in parts]
            # More often: whoever finds a node gone, looks for the one that has taken its place.
            cluster = RedisCluster.from_url(plain, startup_nodes=more, **{**options, "retry": Retry(NoBackoff(), 3)})
            return cluster, [cluster]
        _pack_in_c(probe.connection_pool)
        return probe, [probe]
    except (ValueError, TypeError, OSError, RedisError, RedisClusterException):
        pass
    # Outside of the handler, and without the text: what could not be read may be a part of the password.
    raise ValueError(
        f"the URL of a Redis cannot be read: expected {_EXPECTED}, where needed with user:password@ before the host, each of the "
        "two percent-encoded"
    )


def _pack_in_c(pool: Any) -> None:
    """
    Let the connections of a pool write the calls of scripts by `hiredis`, where it is there.

    redis-py's asyncio half does so in Python, a quarter of what a call takes; its other half uses `hiredis`.
    """
    plain, pack = pool.connection_class, _pack
    if pack is None:
        return

    def pack_command(self: Any, *words: Any) -> list[bytes]:
        # Nothing else: what a call of a script consists of is bytes and numbers, whatever the encoding of the connection.
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
    """Where a client goes: never its user, its password or another option."""
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
    """What a client was given to log in with."""
    holder = client if isinstance(client, RedisCluster) else client.connection_pool
    given = [holder.connection_kwargs]
    if isinstance(holder, SentinelConnectionPool):
        given.append(holder.sentinel_manager.sentinel_kwargs)
    return [str(found) for each in given for name in ("password", "username") if (found := each.get(name))]
