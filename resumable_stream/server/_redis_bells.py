"""
How bells of Redis are heard: one connection per process and node, whatever the number of streams and listeners.

The connection is ours. It sends a ping after some silence. When it is lost, a new one subscribes to the same streams, and each of
them rings without content because bells may have been lost.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import ResponseError

from .._errors import LogUnavailable
from ._bell_queue import BellQueue
from ._redis_client import FAILURES, Call, RedisClient
from ._redis_entries import bell_of
from .log import Bell, check_stream_id

__all__ = ["Listening", "RedisBells"]

PING_SECONDS: Final = 10.0
"""Silence, in seconds, before a ping. 10: much less than the minutes that TCP takes to notice a lost connection."""
_TOGETHER: Final = 500
"""Streams per SUBSCRIBE."""
_LONGEST_WAIT: Final = 2.0
"""Longest wait between two attempts to connect, in seconds. 2: readers poll every 5."""


@dataclass(slots=True, eq=False)
class _Channel:
    """A stream that is listened to."""

    stream_id: str
    name: bytes
    listeners: set[RedisBells] = field(default_factory=set)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    heard: bool = False
    missed: bool = False
    """The subscription was active and then was not: bells may have been lost."""
    failed: bool = False
    """The last attempt to subscribe failed, or the subscription was lost."""
    link: _Link | None = None


class Listening:
    """
    All streams that one log listens to.

    Args:
        client: Makes the connections.
        prefix: Prefix of the channels.
        ping: Silence before a ping, in seconds.
    """

    def __init__(self, client: RedisClient, prefix: str, *, ping: float = PING_SECONDS) -> None:
        self.client = client
        self.ping = ping
        self._prefix = prefix
        # Time for a connection and for the reply on it.
        self._patience = min(2 * client.socket_timeout, client.timeout)
        self._channels: dict[str, _Channel] = {}
        self._by_name: dict[bytes, _Channel] = {}
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Channels that no connection listens to, of each node: the new ones, and those that failed.
        self._astray: dict[tuple[str, bool], dict[str, _Channel]] = {}
        self._placing: set[tuple[str, bool]] = set()
        self._failures: dict[str, int] = {}
        self._closed = False

    async def add(self, bells: RedisBells, stream_id: str) -> None:
        """Listen for `bells`; returns when the server has confirmed the subscription."""
        self.client.check_open()
        channel = self._channels.get(stream_id)
        if channel is None:
            channel = _Channel(stream_id, f"{self._prefix}{{{stream_id}}}".encode())
            self._channels[stream_id] = self._by_name[channel.name] = channel
            self._place([channel])
        known = bells in channel.listeners
        channel.listeners.add(bells)
        if channel.heard:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        channel.waiters.append(waiter)
        try:
            async with asyncio.timeout(self._patience):
                await waiter
        except BaseException as exc:
            if not known:
                await self.discard(bells, stream_id)
            if isinstance(exc, TimeoutError):
                raise LogUnavailable(
                    f"{self.client}: the bells of stream {stream_id!r} were not heard within {self._patience:g} s",
                    stream_id=stream_id,
                ) from None
            raise
        finally:
            if waiter in channel.waiters:
                channel.waiters.remove(waiter)

    async def discard(self, bells: RedisBells, stream_id: str) -> None:
        """Stop listening for `bells`."""
        channel = self._channels.get(stream_id)
        if channel is None:
            return
        channel.listeners.discard(bells)
        if channel.listeners:
            return
        del self._channels[stream_id], self._by_name[channel.name]
        for astray in self._astray.values():
            astray.pop(stream_id, None)
        if channel.link is not None:
            await channel.link.unsubscribe(channel)

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        for channel in self._channels.values():
            _fail(channel, LogUnavailable("these bells are closed; make new ones with bells()"))
        self._channels.clear()
        self._by_name.clear()
        for astray in list(self._astray.values()):
            astray.clear()
        # Repeatedly: redis-py may swallow a cancellation while it connects.
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)

    # --- placing

    def _place(self, channels: Iterable[_Channel]) -> None:
        """Find connections for these channels. New ones do not wait for those that failed, and no node waits for another."""
        for channel in channels:
            channel.link, channel.heard = None, False
            where = self.client.shard_of(channel.name), channel.failed
            self._astray.setdefault(where, {})[channel.stream_id] = channel
            if where not in self._placing and not self._closed:
                self._placing.add(where)
                self.spawn(self._place_all(where))

    async def _place_all(self, where: tuple[str, bool]) -> None:
        astray = self._astray[where]
        node, failed = where
        try:
            while astray:
                if failed:
                    # Randomised, so that the processes do not all return at once.
                    longest = min(_LONGEST_WAIT, 0.05 * 2 ** min(self._failures.get(node, 0), 10))
                    await asyncio.sleep(longest * random.uniform(0.5, 1.0))
                batch = list(astray.values())
                astray.clear()
                try:
                    groups = await self._grouped(batch)
                except Exception as exc:  # noqa: BLE001  any failure must reach the waiters
                    if not isinstance(exc, LogUnavailable):
                        self.report(exc)
                    self.on_lost(None, batch, exc)
                    continue
                for name, (node, channels) in groups.items():
                    link = self._links.get(name)
                    if link is None:
                        link = self._links[name] = _Link(self, name, node)
                        self.spawn(link.run())
                    await link.adopt([channel for channel in channels if self.is_current(channel)])
        finally:
            self._placing.discard(where)
            if not astray and self._astray.get(where) is astray:
                del self._astray[where]

    async def _grouped(self, channels: Sequence[_Channel]) -> dict[str, tuple[Any, list[_Channel]]]:
        groups: dict[str, tuple[Any, list[_Channel]]] = {}
        if self.client.cluster:
            # Their slots may have moved. Any call makes the client look them up.
            state = self.client.scripts.state
            await self.client.calls([Call(state, [each.name], [], each.stream_id) for each in channels if each.failed])
        for channel in channels:
            node = await self.client.node_of(channel.name)
            groups.setdefault("" if node is None else node.name, (node, []))[1].append(channel)
        return groups

    def report(self, exc: Exception) -> None:
        """Report a failure that is not the network's but a bug of ours."""
        asyncio.get_running_loop().call_exception_handler({"message": "listening to Redis failed", "exception": exc})

    def spawn(self, work: Any) -> asyncio.Task[None]:
        """Run something until it ends or the bells are closed."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what links report

    def is_current(self, channel: _Channel) -> bool:
        """Whether somebody still listens."""
        return self._channels.get(channel.stream_id) is channel

    def on_heard(self, channel: _Channel) -> None:
        """A server has confirmed the subscription."""
        self._failures.pop(self.client.shard_of(channel.name), None)
        channel.heard, channel.failed = True, False
        for waiter in channel.waiters:
            if not waiter.done():
                waiter.set_result(None)
        channel.waiters.clear()
        if channel.missed:
            channel.missed = False
            for bells in channel.listeners:
                bells.ring(Bell(id=channel.stream_id), 0)

    def on_message(self, name: bytes, message: bytes) -> None:
        """A bell has arrived."""
        channel = self._by_name.get(name)
        if channel is not None:
            bell = bell_of(channel.stream_id, message)
            for bells in channel.listeners:
                bells.ring(bell, len(message))

    def on_moved(self, channels: Sequence[_Channel]) -> None:
        """A server no longer has these streams."""
        current = [channel for channel in channels if self.is_current(channel)]
        for channel in current:
            channel.missed = channel.failed = True
        self._count_failure(current)
        self._place(current)

    def _count_failure(self, channels: Sequence[_Channel]) -> None:
        for node in {self.client.shard_of(channel.name) for channel in channels}:
            self._failures[node] = self._failures.get(node, 0) + 1

    def on_refused(self, channels: Sequence[_Channel], exc: BaseException) -> None:
        """A server refuses the subscription to these streams."""
        for channel in channels:
            if self.is_current(channel):
                _fail(channel, self.client.unavailable(exc, "the bells cannot be heard"))

    def on_closing(self, link: _Link) -> None:
        """A connection accepts no more streams."""
        if self._links.get(link.name) is link:
            del self._links[link.name]

    def on_lost(self, link: _Link | None, channels: Sequence[_Channel], exc: Exception | None) -> None:
        """A connection is lost, or could not be made. `exc` is `None` if it was no longer needed."""
        if link is not None:
            self.on_closing(link)
        current = [channel for channel in channels if self.is_current(channel)]
        if exc is None:
            self._place(current)  # added at the last moment
            return
        self._count_failure(current)
        error = exc if isinstance(exc, LogUnavailable) else self.client.unavailable(exc, "the bells cannot be heard")
        for channel in current:
            channel.missed, channel.failed = channel.missed or channel.heard, True
            _fail(channel, error)
        self._place(current)


def _fail(channel: _Channel, exc: LogUnavailable) -> None:
    for waiter in channel.waiters:
        if not waiter.done():
            waiter.set_exception(LogUnavailable(str(exc), stream_id=exc.stream_id))
    channel.waiters.clear()


class _Link:
    """One connection, from its first command to its end."""

    def __init__(self, owner: Listening, name: str, node: Any) -> None:
        self.name = name
        self._owner = owner
        self._node = node
        self._channels: dict[bytes, _Channel] = {}
        self._connection: Any = None
        # Commands sent and not yet answered, in order: the verb and its channels.
        self._asked: deque[tuple[bytes, list[_Channel]]] = deque()
        self._last = 0.0
        self._sharded = node is not None

    async def adopt(self, channels: Sequence[_Channel]) -> None:
        """Listen to these channels, at once or when connected."""
        for channel in channels:
            channel.link = self
            self._channels[channel.name] = channel
        if self._connection is not None:
            await self._subscribe(channels)

    async def unsubscribe(self, channel: _Channel) -> None:
        """Stop listening to this channel."""
        if self._channels.get(channel.name) is channel:
            del self._channels[channel.name]
            await self._send(b"sunsubscribe" if self._sharded else b"unsubscribe", [channel])

    async def run(self) -> None:
        """Connect, listen, and report the end."""
        error: Exception | None = None
        tasks: list[asyncio.Task[None]] = []
        connection: Any = None
        try:
            connection = self._owner.client.listening_connection(self._node)
            async with asyncio.timeout(self._owner.client.timeout):
                await connection.connect()
            connection.socket_timeout = None
            self._last = asyncio.get_running_loop().time()
            self._connection = connection
            tasks = [asyncio.create_task(work) for work in (self._read(connection), self._watch())]
            await self._subscribe(list(self._channels.values()))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Exception as exc:  # noqa: BLE001  any failure must reach the waiters
            error = exc
        finally:
            self._connection = None
            self._owner.on_closing(self)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if connection is not None:
                try:
                    await connection.disconnect(nowait=True)
                except FAILURES:
                    pass  # it is gone already
        if error is not None and not isinstance(error, FAILURES):
            self._owner.report(error)
        self._owner.on_lost(self, list(self._channels.values()), error)

    async def _subscribe(self, channels: Sequence[_Channel]) -> None:
        # One command cannot name channels of several slots.
        verb, together = (b"ssubscribe", 1) if self._sharded else (b"subscribe", _TOGETHER)
        for start in range(0, len(channels), together):
            await self._send(verb, channels[start : start + together])

    async def _send(self, verb: bytes, channels: Sequence[_Channel] = ()) -> None:
        connection = self._connection
        if connection is None or not connection.is_connected:
            return  # the reader of this connection notices too
        self._asked.append((verb, list(channels)))
        try:
            async with asyncio.timeout(self._owner.client.socket_timeout):
                await connection.send_command(verb.decode().upper(), *(channel.name for channel in channels), check_health=False)
        except FAILURES:
            # The reader finds the connection closed.
            await connection.disconnect(nowait=True)

    async def _read(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            # Take what has arrived without a pause, but give other tasks a turn now and then.
            for _ in range(100):
                try:
                    reply = await connection.read_response(disable_decoding=True)
                except ResponseError as exc:
                    self._on_error(exc)
                    continue
                finally:
                    self._last = loop.time()
                self._on_reply(reply)
            await asyncio.sleep(0)

    async def _watch(self) -> None:
        loop, ping = asyncio.get_running_loop(), self._owner.ping
        while True:
            await asyncio.sleep(max(self._last + ping - loop.time(), ping / 100))
            if loop.time() - self._last < ping:
                continue
            if not self._channels:
                return
            asked = loop.time()
            await self._send(b"ping")
            await asyncio.sleep(min(ping, self._owner.client.socket_timeout))
            if self._last < asked:
                raise TimeoutError(f"silent for {loop.time() - self._last:.1f} s")

    def _on_reply(self, reply: Any) -> None:
        if not isinstance(reply, list):
            self._answered(b"ping")
            return
        kind = bytes(reply[0])
        if kind in (b"message", b"smessage"):
            self._owner.on_message(reply[1], reply[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            channel = self._answered(kind)
            if channel is not None and self._channels.get(channel.name) is channel:
                self._owner.on_heard(channel)
        elif kind in (b"unsubscribe", b"sunsubscribe"):
            if self._asked and self._asked[0][0] == kind and self._asked[0][1][0].name == reply[1]:
                self._answered(kind)
            elif (moved := self._channels.pop(reply[1], None)) is not None:
                # Unsolicited: the slot has moved to another node.
                self._owner.on_moved([moved])
        elif kind == b"pong":
            self._answered(b"ping")

    def _answered(self, verb: bytes) -> _Channel | None:
        if not self._asked or self._asked[0][0] != verb:
            return None
        _, channels = self._asked[0]
        channel = channels.pop(0) if channels else None
        if not channels:
            self._asked.popleft()
        return channel

    def _on_error(self, exc: ResponseError) -> None:
        if not self._asked:
            raise exc
        verb, channels = self._asked.popleft()
        if verb not in (b"subscribe", b"ssubscribe"):
            return
        mine = [channel for channel in channels if self._channels.get(channel.name) is channel]
        for channel in mine:
            del self._channels[channel.name]
        if re_homed(exc):
            self._owner.on_moved(mine)
        else:
            self._owner.on_refused(mine, exc)
            self._owner.on_moved(mine)


def re_homed(exc: ResponseError) -> bool:
    """Whether an error says that another node has the slot."""
    return type(exc).__name__ in ("MovedError", "AskError", "TryAgainError", "ClusterDownError") or str(exc).startswith("MOVED")


class RedisBells:
    """The bells of a `RedisLog`; see `Bells`. Made by `RedisLog.bells()`."""

    def __init__(self, listening: Listening, registry: set[RedisBells]) -> None:
        self._listening = listening
        self._registry = registry
        self._ids: set[str] = set()
        self._queue = BellQueue()
        self._closed = False

    async def add(self, stream_id: str) -> None:
        """See `Bells.add()`."""
        check_stream_id(stream_id)
        if self._closed:
            raise LogUnavailable("these bells are closed; make new ones with bells()", stream_id=stream_id)
        self._ids.add(stream_id)
        try:
            await self._listening.add(self, stream_id)
        except BaseException:
            self._ids.discard(stream_id)
            raise

    async def discard(self, stream_id: str) -> None:
        """See `Bells.discard()`."""
        self._ids.discard(stream_id)
        await self._listening.discard(self, stream_id)

    def __aiter__(self) -> RedisBells:
        return self

    async def __anext__(self) -> Bell:
        return await self._queue.get()

    async def aclose(self) -> None:
        """See `Bells.aclose()`."""
        if self._closed:
            return
        self._closed = True
        self._registry.discard(self)
        self._queue.close()
        for stream_id in list(self._ids):
            await self._listening.discard(self, stream_id)
        self._ids.clear()

    def ring(self, bell: Bell, size: int) -> None:
        """Queue a bell of `size` bytes."""
        self._queue.put(bell, size, streams=len(self._ids))
