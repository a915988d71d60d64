"""
A log in Redis: for many processes on many machines, which may come and go while streams run.

A stream is a hash and a Redis Stream. Each verb is one script, so nothing can happen between its question and its change. Bells
are publish and subscribe messages that carry the appended data. No command blocks, so a few connections serve all commands.

The log is as durable as its Redis is configured to be. A server that comes back empty, or with an older state, answers the next
write with `Lost` or `Behind`, and the writer sends the missing part again.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from .._errors import LogUnavailable
from .log import (
    CANCEL,
    MAX_INBOX,
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Control,
    Cursor,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Full,
    Gone,
    Head,
    Held,
    Lost,
    Message,
    Page,
    Record,
    Said,
    Span,
    SpanRefused,
    Unavailable,
    Unknown,
    Writer,
    check_also,
    check_batch,
    check_claimant,
    check_restore,
    check_seconds,
    check_stream_id,
    ending_from_json,
    ending_to_json,
    epoch_of,
    head_to_json,
    judge_read,
    only,
    page_of,
    reached,
)

try:
    from ._redis_bells import PING_SECONDS, Listening, RedisBells
    from ._redis_client import Call, RedisClient, Reply
except ImportError as error:
    if (error.name or "").partition(".")[0] != "redis":
        raise
    raise ImportError("RedisLog needs redis: pip install 'resumable-stream-sdk[redis]'", name="redis") from error
from ._redis_entries import (
    append_words,
    appended,
    control_of,
    entry_words,
    existing_of,
    handover_of,
    head_fields,
    message_entry,
    messages_of,
    ms_of,
    packed_entries,
    record_of,
    refusal_of,
    restore_words,
    span_entry,
    spans_of,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

__all__ = ["RedisBells", "RedisLog"]

_INBOX_PAGE: Final = 1000
_PAGE_BYTES: Final = 4 << 20
_STAGE_BYTES: Final = 1 << 20
"""Size of one script that stages entries: a few milliseconds of a server, which does nothing else meanwhile."""
_STAGE_MS: Final = 60_000
"""Milliseconds after which staged entries that were never put in place expire."""
_IN_A_THREAD: Final = 64 << 10
"""Bytes from which compression would delay the other tasks of the loop noticeably."""
_MOST_ATTEMPTS: Final = 1000
"""Calls whose reply was lost and that were not repeated yet."""
_MOST_TRIES: Final = 3
_SWEEP: Final = 500


class RedisLog:
    """
    Keep streams in Redis 6.2 or newer, or in a Redis Cluster 7.0 or newer.

    Nothing is sent before the first use. All methods belong to one event loop.

    With `maxmemory`, use the policy `noeviction`, or `volatile-ttl`, which evicts what would expire first anyway. An evicted
    stream is lost: its writer learns of it and writes it again.

    Args:
        url_or_client: `redis://host:6379/0`, `rediss://…` (TLS), `unix:///path/to/socket`,
            `redis+sentinel://host:26379,host2:26379/name/0`, `redis+cluster://host:6379,host2:6379`, each with `user:password@`
            before the host if needed. Or a client of yours: `redis.asyncio.Redis`, also from `Sentinel.master_for()`, or
            `redis.asyncio.RedisCluster`. The log never closes it, and leaves its timeouts, retries and other settings alone.
        prefix: Prefix of all keys and channels. `"rs:"`; use another to keep two deployments apart in one Redis.
        durability: `"replica"`: after each write wait, at most 50 ms, until one replica has it, so that a failover hardly ever
            loses acknowledged writes. If no replica has it by then, the log continues and logs a warning. `None`: do not wait;
            living producers rewrite what a failover loses.
        socket_timeout: Seconds that the server may take to accept a connection, and for one reply. 5.0: no command takes longer
            than a few milliseconds. Does not apply to a client of yours.
        timeout: Seconds that one trip may take in all, with retries and waiting for a connection. 20.0: less than two
            heartbeats of a reader.
        max_connections: Most connections for commands at a time, per node of a Cluster; further calls wait. 32: enough for
            about 100,000 commands a second. One more per node is for bells.

    Raises:
        ValueError: The URL cannot be read (the message omits it, since it may hold a password), or an option is invalid.
        TypeError: Neither a URL nor such a client.
        ImportError: redis-py is not installed.
    """

    def __init__(
        self,
        url_or_client: str | Redis | RedisCluster,
        *,
        prefix: str = "rs:",
        durability: Literal["replica"] | None = None,
        socket_timeout: float = 5.0,
        timeout: float = 20.0,
        max_connections: int = 32,
    ) -> None:
        if not isinstance(prefix, str) or not 0 <= len(prefix) <= 64 or not prefix.isascii() or set(prefix) & set("{} \r\n\0"):
            raise ValueError(
                "prefix must be at most 64 ASCII characters, without spaces and braces; braces choose the node of a Cluster"
            )
        if durability not in (None, "replica"):
            raise ValueError(f"durability must be 'replica' or None, got {durability!r}")
        for name, seconds in (("socket_timeout", socket_timeout), ("timeout", timeout)):
            if not check_seconds(name, seconds):
                raise ValueError(f"{name} must be seconds > 0, got {seconds!r}")
        if type(max_connections) is not int or max_connections < 1:
            raise ValueError(f"max_connections must be a positive whole number, got {max_connections!r}")
        self.prefix = prefix
        self.durability = durability
        self._client = RedisClient(
            url_or_client,
            socket_timeout=float(socket_timeout),
            timeout=float(timeout),
            concurrency=max_connections,
            replica=durability == "replica",
        )
        self._scripts = self._client.scripts
        self._run = f"{prefix}run".encode()
        self._listening = Listening(self._client, prefix, ping=PING_SECONDS)
        self._bells: set[RedisBells] = set()
        # Calls whose outcome is unknown, and the names by which a repeat is recognised.
        self._attempts: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        # In a Cluster: pending updates of the index of running streams, which is on another node.
        self._told: dict[str, tuple[bytes, bytes]] = {}
        self._telling: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RedisLog({str(self._client)!r}, prefix={self.prefix!r})"

    # --- writing

    async def create(
        self,
        stream_id: str,
        head: Head,
        *,
        lease: float,
        request: bytes | None = None,
        replaces: str | None = None,
        also: Append | None = None,
        epoch: str | None = None,
    ) -> Writer | Existing | AlsoRefused:
        """See `StreamLog.create()`."""
        check_stream_id(stream_id)
        check_also(stream_id, also)
        fields = head_fields(head, request)
        words = [
            b"%d" % ms_of(check_seconds("lease", lease)),
            b"%d" % ms_of(head.retention),
            (replaces or "").encode(),
            stream_id.encode(),
            b"%d" % len(fields),
            *fields,
        ]
        digest = hashlib.blake2b(b"\0".join((head_to_json(head).encode(), request or b"")), digest_size=16).hexdigest()
        if epoch is not None:
            Cursor(epoch, 0)  # validates it
        if also is not None and self._client.cluster:
            # Its keys are on another node. It is appended to first, so that no stream exists that the other one does not list.
            there = await self.read(stream_id, None, limit_bytes=0)
            if isinstance(there, Page) and there.epoch != epoch and not (there.ending is not None and there.epoch == replaces):
                return Existing(there.epoch, there.n, there.head, there.ending)
            appended = only(await self.append([also]))
            if not isinstance(appended, Appended):
                return AlsoRefused(appended)
            also = None
        reply = await self._granted(("create", stream_id, digest), self._scripts.create, stream_id, words, epoch, also)
        if reply[0] == b"THERE":
            return existing_of(stream_id, reply)
        if also is not None and reply[0] == b"ALSO":
            return _also_refused(also, reply)
        self._tell(stream_id, b"for", lease)
        return Writer(stream_id, reply[1].decode(), 1, lease, head.retention)

    async def append(
        self, batch: Sequence[Append | tuple[Writer, Span, str | None]]
    ) -> list[Appended | Fenced | Ended | Behind | Lost | Unavailable]:
        """See `StreamLog.append()`."""
        items = check_batch(batch)
        replies = await self._client.calls(
            [
                Call(self._scripts.append, self._keys(item.writer.stream_id), append_words(item), item.writer.stream_id)
                for item in items
            ]
        )
        found: list[Appended | Fenced | Ended | Behind | Lost | LogUnavailable] = []
        refused: SpanRefused | None = None
        for item, reply in zip(items, replies, strict=True):
            try:
                found.append(appended(item, _checked(reply)))
            except SpanRefused as exc:
                # The other streams of the batch are unaffected.
                refused = refused or exc
            except LogUnavailable as exc:
                found.append(exc)
        if refused is not None:
            raise refused
        return reached(found, [item.writer.stream_id for item in items])

    async def restore(
        self,
        writer: Writer,
        head: Head,
        epoch: str,
        spans: Sequence[Span],
        *,
        request: bytes | None = None,
        note: str | None = None,
        note_n: int | None = None,
        taken: int = 0,
        inbox: Sequence[Message] = (),
    ) -> Writer | Existing:
        """See `StreamLog.restore()`."""
        check_restore(spans)
        stream_id = writer.stream_id
        fresh = Writer(stream_id, epoch, writer.fence + 1, writer.lease, head.retention)
        record = Record.restore(
            writer, head, epoch, spans, now=0.0, request=request, note=note, note_n=note_n, taken=taken, inbox=inbox
        )
        attempt = ("restore", stream_id, writer.token, epoch)
        nonce = self._attempts.pop(attempt, None) or _nonce()
        try:
            for _ in range(_MOST_TRIES):
                beside = [self._key(stream_id, ":" + kind + _nonce().decode()) for kind in "tu"]
                calls = [
                    *self._staged(stream_id, beside[0], map(span_entry, spans)),
                    *self._staged(stream_id, beside[1], map(message_entry, inbox)),
                    Call(
                        self._scripts.restore,
                        [*self._keys(stream_id)[:4], *beside, *self._index()],
                        restore_words(record, writer, nonce, inbox),
                        stream_id,
                    ),
                ]
                reply = _checked((await self._client.calls(calls))[-1])
                if reply[0] == b"THERE":
                    return existing_of(stream_id, reply)
                if reply[0] == b"OK":
                    self._tell(stream_id, b"for", writer.lease)
                    return fresh
        except BaseException:
            self._remember(attempt, nonce)
            raise
        raise LogUnavailable(
            f"stream {stream_id!r}: Redis at {self._client} lost a write made a moment ago; does it evict keys?",
            stream_id=stream_id,
        )

    async def finish(
        self, writer: Writer, n: int, ending: Ending, *, also: Append | None = None
    ) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
        """See `StreamLog.finish()`."""
        stream_id = writer.stream_id
        check_also(stream_id, also)
        together = None if self._client.cluster else also
        words = [writer.token.encode(), b"%d" % n, ending_to_json(ending).encode(), stream_id.encode()]
        keys, words = self._with(together, stream_id, words)
        reply = await self._client.call(self._scripts.finish, keys, words, stream_id)
        if also is not None and reply[0] == b"ALSO":
            return _also_refused(also, reply)
        verdict = refusal_of(stream_id, reply)
        if isinstance(verdict, Ended):
            # Same fence: another one is refused above.
            if verdict != Ended(ending, n):
                return verdict
            verdict = None
        if verdict is not None:
            return verdict
        self._tell(stream_id, b"gone", 0.0)
        if also is not None and together is None:
            appended = only(await self.append([also]))
            if not isinstance(appended, Appended):
                return AlsoRefused(appended)
        return Done(n)

    async def renew(self, writers: Sequence[Writer]) -> list[Control | Fenced | Ended | Lost | Unavailable | None]:
        """See `StreamLog.renew()`."""
        replies = await self._client.calls(
            [
                Call(
                    self._scripts.renew,
                    self._keys(writer.stream_id),
                    [writer.token.encode(), b"%d" % ms_of(writer.lease), writer.stream_id.encode()],
                    writer.stream_id,
                )
                for writer in writers
            ]
        )
        found: list[Control | Fenced | Ended | Lost | LogUnavailable | None] = []
        for writer, reply in zip(writers, replies, strict=True):
            try:
                refusal = refusal_of(writer.stream_id, _checked(reply))
                assert not isinstance(refusal, Behind)
                if refusal is None:
                    self._tell(writer.stream_id, b"for", writer.lease)
                found.append(refusal or control_of(writer.stream_id, *_checked(reply)[1:3]))
            except LogUnavailable as exc:
                found.append(exc)
        return reached(found, [writer.stream_id for writer in writers])

    def shard_of(self, stream_id: str) -> str:
        """The node of a Cluster that has a stream, as far as is known; `""` for one server. See `StreamLog`."""
        return self._client.shard_of(self._key(stream_id))

    async def claim(
        self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None
    ) -> Writer | Held | Ended | Unknown:
        """See `StreamLog.claim()`. A log is in doubt after another server took over, or this one restarted."""
        check_stream_id(stream_id)
        words = [b"%d" % ms_of(check_seconds("lease", lease)), stream_id.encode(), b"1" if go_on else b"0"]
        nonce = None if check_claimant(claimant) is None else str(claimant).encode()
        reply = await self._granted(("claim", stream_id, str(go_on)), self._scripts.claim, stream_id, words, nonce=nonce)
        match reply[0]:
            case b"UNKNOWN":
                return Unknown()
            case b"HELD":
                return Held(int(reply[1]) / 1000)
            case b"ENDED":
                verdict = refusal_of(stream_id, reply)
                assert isinstance(verdict, Ended)
                return verdict
        handover = handover_of(stream_id, reply)
        self._tell(stream_id, b"for", lease)
        return Writer(stream_id, reply[1].decode(), int(reply[2]), lease, handover.head.retention, handover)

    async def _granted(
        self,
        attempt: tuple[str, ...],
        script: Any,
        stream_id: str,
        words: list[bytes],
        epoch: str | None = None,
        also: Append | None = None,
        *,
        nonce: bytes | None = None,
    ) -> Reply:
        """Ask for a stream. If the reply is lost, repeating the call returns what the first one was granted."""
        named = nonce is not None
        nonce = nonce or self._attempts.pop(attempt, None) or _nonce()
        try:
            while True:
                chosen = epoch or epoch_of(secrets.token_bytes(6))
                keys, all_words = self._with(also, stream_id, [nonce, chosen.encode(), *words])
                reply = await self._client.call(script, keys, all_words, stream_id)
                if reply[0] != b"SAME":  # the same epoch as before: one in 2**30
                    return reply
                epoch = None
        except BaseException:
            if not named:
                self._remember(attempt, nonce)
            raise

    def _remember(self, attempt: tuple[str, ...], nonce: bytes) -> None:
        self._attempts[attempt] = nonce
        if len(self._attempts) > _MOST_ATTEMPTS:
            self._attempts.popitem(last=False)

    # --- the inbox

    async def say(self, stream_id: str, message: Message) -> Said | Ended | Full | Unknown:
        """See `StreamLog.say()`."""
        check_stream_id(stream_id)
        words = [
            message.id.encode(),
            message.kind.encode(),
            message.data.encode(),
            b"%d" % MAX_INBOX,
            b"1" if message.kind == CANCEL else b"0",
        ]
        reply = await self._client.call(self._scripts.say, self._keys(stream_id), words, stream_id)
        match reply[0]:
            case b"UNKNOWN":
                return Unknown()
            case b"FULL":
                return Full(MAX_INBOX)
            case b"ENDED":
                verdict = refusal_of(stream_id, reply)
                assert isinstance(verdict, Ended)
                return verdict
        out = reply[2] if len(reply) > 2 else None
        return Said(int(reply[1]), None if out is None else ending_from_json(stream_id, out))

    async def inbox(self, stream_id: str, after: int) -> list[Message]:
        """See `StreamLog.inbox()`. A page is also limited to about 4 MiB."""
        check_stream_id(stream_id)
        words = [b"%d" % max(after, 0), b"%d" % _INBOX_PAGE, b"%d" % _PAGE_BYTES]
        reply = await self._client.call(self._scripts.inbox, self._keys(stream_id), words, stream_id)
        return [] if reply[0] == b"UNKNOWN" else messages_of(stream_id, reply[1])

    # --- reading

    async def read(self, stream_id: str, after: Cursor | None = None, *, limit_bytes: int = 4 << 20) -> Page | Gone | Unknown:
        """See `StreamLog.read()`."""
        check_stream_id(stream_id)
        words = [(after.epoch if after else "").encode(), b"%d" % ((after.n if after else 0) + 1), b"%d" % max(limit_bytes, 0)]
        reply = await self._client.call(self._scripts.read, self._keys(stream_id), words, stream_id)
        if reply[0] == b"UNKNOWN":
            return Unknown()
        record, now, entries, found = record_of(stream_id, reply)
        if after is None and limit_bytes == 0:
            after = Cursor(record.epoch, record.n)
        start = judge_read(record, entries, after, now=now)
        if not isinstance(start, int):
            return start

        def page() -> Page:
            spans = spans_of(stream_id, found)
            return page_of(stream_id, record, entries, start, spans, limit_bytes=limit_bytes, now=now)

        # Only compressed entries take time.
        packed = sum(len(values[-1]) for _, values in found if b"z" in values[::2])
        return await asyncio.to_thread(page) if packed > _IN_A_THREAD else page()

    def bells(self) -> RedisBells:
        """See `StreamLog.bells()`. All bells of a log share one connection per node."""
        bells = RedisBells(self._listening, self._bells)
        self._bells.add(bells)
        return bells

    # --- housekeeping

    async def compact(self, stream_id: str) -> None:
        """See `StreamLog.compact()`."""
        check_stream_id(stream_id)
        for _ in range(_MOST_TRIES):
            if await self._compacted(stream_id):
                return
        raise LogUnavailable(
            f"stream {stream_id!r}: Redis at {self._client} lost a write made a moment ago; does it evict keys?",
            stream_id=stream_id,
        )

    async def _compacted(self, stream_id: str) -> bool:
        reply = await self._client.call(self._scripts.read, self._keys(stream_id), [b"", b"1", b"0"], stream_id)
        if reply[0] == b"UNKNOWN" or reply[11] is not None:
            return True
        record, _, _, _ = record_of(stream_id, reply)
        if record.ending is None or not record.c:
            return True
        spans: list[Span] = []
        n = record.oldest - 1
        while n < record.n:
            page = await self.read(stream_id, Cursor(record.epoch, n), limit_bytes=_PAGE_BYTES)
            if not isinstance(page, Page):
                return True  # deleted, replaced or lost meanwhile
            spans += page.spans
            n = page.spans[-1].n
        size = sum(len(span.data) for span in spans)
        entries = await asyncio.to_thread(packed_entries, spans) if size > _IN_A_THREAD else packed_entries(spans)
        beside = self._key(stream_id, ":t" + _nonce().decode())
        words = [record.epoch.encode(), b"%d" % len(entries)]
        calls = [
            *self._staged(stream_id, beside, entries),
            Call(self._scripts.compact, [*self._keys(stream_id)[:4], beside], words, stream_id),
        ]
        return bool(_checked((await self._client.calls(calls))[-1])[0] == b"OK")

    async def delete(self, stream_id: str) -> None:
        """See `StreamLog.delete()`."""
        check_stream_id(stream_id)
        await self._client.call(self._scripts.delete, self._keys(stream_id), [stream_id.encode()], stream_id)
        self._tell(stream_id, b"gone", 0.0)

    async def orphans(self, limit: int = 100) -> list[str]:
        """
        See `StreamLog.orphans()`.

        Candidates come from an index, and each stream is then asked itself. In a Cluster the index is written after the stream,
        so it misses a stream whose process died in between. A reader of that stream still finds it.
        """
        if self._telling is not None:
            await asyncio.wait([self._telling], timeout=1.0)
        orphans: list[str] = []
        place = 0
        while len(orphans) < limit:
            due = await self._client.call(self._scripts.due, [self._run], [b"%d" % place, b"%d" % _SWEEP])
            # Skip entries that are not stream ids; something else put them there.
            ids = [stream_id for raw in due if (stream_id := _id_of(raw)) is not None]
            states = await self._client.calls(
                [Call(self._scripts.state, self._keys(stream_id)[:1], [], stream_id) for stream_id in ids]
            )
            settled: list[bytes] = []
            for stream_id, state in zip(ids, states, strict=True):
                if isinstance(state, LogUnavailable):
                    continue  # damaged or out of reach: it cannot be claimed
                verdict = {b"GONE": b"gone", b"HELD": b"for"}.get(state[0], b"over")
                settled += [stream_id.encode(), verdict, state[1] if len(state) > 1 else b"0"]
                if verdict == b"over":
                    orphans.append(stream_id)
            if settled:
                await self._client.call(self._scripts.settle, [self._run], [b"%d" % ms_of(86400.0), *settled])
            if len(due) < _SWEEP:
                break
            place += len(due) - sum(1 for word in settled[1::3] if word != b"over")
        return orphans[:limit]

    async def aclose(self) -> None:
        """
        Close the bells and the connections; from then on every call raises `LogUnavailable`.

        A caller's client stays open, and the streams stay in Redis.
        """
        for bells in list(self._bells):
            await bells.aclose()
        await self._listening.aclose()
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        await self._client.aclose()

    # --- inside

    def _key(self, stream_id: str, suffix: str = "") -> bytes:
        return f"{self.prefix}{{{stream_id}}}{suffix}".encode()

    def _keys(self, stream_id: str) -> list[bytes]:
        key = self._key(stream_id)
        return [key, key + b":s", key + b":i", key + b":x", *self._index()]

    def _with(self, also: Append | None, stream_id: str, words: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Keys and arguments of a script that also appends to another stream, which is impossible in a Cluster."""
        keys = self._keys(stream_id)
        if also is None:
            return keys, words
        return [*keys, *self._keys(also.writer.stream_id)[:4]], [*words, *append_words(also)]

    def _index(self) -> list[bytes]:
        return [] if self._client.cluster else [self._run]

    def _staged(self, stream_id: str, key: bytes, entries: Iterable[tuple[int, tuple[bytes, ...]]]) -> list[Call]:
        """Calls that stage entries, in parts."""
        calls: list[Call] = []
        words: list[bytes] = []
        size = 0

        def close() -> None:
            nonlocal words, size
            if words:
                first = b"0" if calls else b"1"
                calls.append(Call(self._scripts.stage, [key], [first, b"%d" % _STAGE_MS, *words], stream_id))
            words, size = [], 0

        for entry in entry_words(entries):
            words += entry
            size += sum(map(len, entry))
            if size > _STAGE_BYTES:
                close()
        close()
        return calls

    def _tell(self, stream_id: str, what: bytes, lease: float) -> None:
        """Update the index of a Cluster; elsewhere the scripts do it."""
        if not self._client.cluster:
            return
        self._told[stream_id] = (what, b"%d" % ms_of(lease))
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell_all())

    async def _tell_all(self) -> None:
        try:
            while self._told:
                told, self._told = self._told, {}
                words = [word for stream_id, (what, ms) in told.items() for word in (stream_id.encode(), what, ms)]
                try:
                    await self._client.call(self._scripts.settle, [self._run], [b"%d" % ms_of(86400.0), *words])
                except LogUnavailable:
                    # Only the index is stale: running streams enter it again when they are renewed.
                    return
        finally:
            self._telling = None


def _also_refused(also: Append, reply: Reply) -> AlsoRefused:
    verdict = appended(also, reply[1:])
    assert not isinstance(verdict, Appended)
    return AlsoRefused(verdict)


def _nonce() -> bytes:
    return secrets.token_hex(8).encode()


def _checked(reply: Reply | LogUnavailable) -> Reply:
    if isinstance(reply, LogUnavailable):
        raise reply
    return reply


def _id_of(raw: Any) -> str | None:
    try:
        return check_stream_id(bytes(raw).decode())
    except ValueError:
        return None
