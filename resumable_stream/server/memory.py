"""
A log in the memory of one process: for development, for tests, and for a server that may forget its streams when it restarts.

Everything happens between two awaits of one event loop, so there is nothing to lock.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from .._errors import LogUnavailable
from ._bell_queue import BellQueue
from .log import (
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Bell,
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
    Released,
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
    compressed,
    compressed_lengths,
    epoch_of,
    head_to_json,
    join_spans,
    judge_append,
    judge_claim,
    judge_create,
    judge_finish,
    judge_read,
    judge_renew,
    judge_restore,
    judge_say,
    page_of,
    stored_span,
)

__all__ = ["MemoryBells", "MemoryLog"]

# Overhead of the objects, measured with CPython 3.11. Without it, 1-byte events would take 100 times `max_bytes`.
_STREAM_BYTES: Final = 1500
_SPAN_BYTES: Final = 250
_MESSAGE_BYTES: Final = 400
_INBOX_PAGE: Final = 1000
_IN_A_THREAD: Final = 64 << 10
"""Bytes from which compression (10 ms per megabyte) would delay the other tasks of the loop noticeably."""


@dataclass(frozen=True, slots=True)
class _Packed:
    """A span after compaction."""

    n: int
    b: int
    lengths: bytes
    data: bytes = field(repr=False)

    def unpacked(self, stream_id: str) -> Span:
        return stored_span(stream_id, n=self.n, b=self.b, lengths=self.lengths, data=self.data, is_compressed=True)


@dataclass(slots=True)
class _Stream:
    """One stream. `size` is what it counts towards `max_bytes`, `held` the part of its spans."""

    record: Record
    spans: list[Span | _Packed] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    """Place of each message, by id."""
    size: int = 0
    held: int = 0

    @property
    def entries(self) -> int:
        return len(self.spans)


class MemoryLog:
    """
    Keep streams in memory.

    When `max_bytes` is reached, ended streams and the feeds of sessions are dropped, starting with those that ended, or were
    written to, the longest ago. Then the largest running streams lose their front, and readers before it get `Gone`. A running
    stream is never dropped. If the heads, requests, notes and messages of the running streams alone take all the room, `create`
    and `say` raise `LogUnavailable`.

    Args:
        max_bytes: Most bytes of all streams together: events, notes, requests, messages and heads, and roughly the overhead of
            their objects. 256 MiB: about 10,000 answers of 25 KB.
        clock: Monotonic seconds, for leases and retention.

    Raises:
        ValueError: `max_bytes` is not a positive whole number.
    """

    def __init__(self, *, max_bytes: int = 256 << 20, clock: Callable[[], float] = time.monotonic) -> None:
        if type(max_bytes) is not int or max_bytes < 1:
            raise ValueError(f"max_bytes must be a positive whole number, got {max_bytes!r}")
        self.max_bytes = max_bytes
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        # Streams that may be dropped: ended ones in the order of their ends, and feeds in the order of their last writes.
        self._spare: OrderedDict[str, None] = OrderedDict()
        self._size = 0
        # When to check whether a stream has expired; one entry per stream, pushed again with the new time if it has not.
        self._expiries: list[tuple[float, str]] = []
        self._bells: set[MemoryBells] = set()

    def __repr__(self) -> str:
        return f"MemoryLog(max_bytes={self.max_bytes}, streams={len(self._streams)}, size={self._size})"

    @property
    def size(self) -> int:
        """Bytes that count towards `max_bytes` now."""
        return self._size

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
        check_seconds("lease", lease)
        check_also(stream_id, also)
        mine = None if epoch is None else Writer(stream_id, epoch, 1, lease, head.retention)
        stream = self._find(stream_id)
        if mine is not None and stream is not None and stream.record.is_of(epoch):
            stream.record.renew(mine, self._clock())
            return mine
        existing = judge_create(stream.record if stream else None, replaces=replaces)
        if existing is not None:
            return existing
        fixed = _STREAM_BYTES + len(head_to_json(head)) + len(request or b"")
        self._make_room(fixed)
        if also is not None and not isinstance(verdict := self._append(also), Appended):
            return AlsoRefused(verdict)
        if stream_id in self._streams:
            # It may have been dropped already to make room.
            self._drop(stream_id)
        if epoch is None or (stream is not None and stream.record.epoch == epoch):
            epoch = self._new_epoch(stream)
        record = Record.create(head, epoch, lease=lease, now=self._clock(), request=request)
        self._put(stream_id, _Stream(record), fixed)
        return Writer(stream_id, record.epoch, record.fence, lease, head.retention)

    async def append(
        self, batch: Sequence[Append | tuple[Writer, Span, str | None]]
    ) -> list[Appended | Fenced | Ended | Behind | Lost | Unavailable]:
        """See `StreamLog.append()`."""
        verdicts: list[Appended | Fenced | Ended | Behind | Lost | Unavailable] = []
        refused: SpanRefused | None = None
        for item in check_batch(batch):
            try:
                verdicts.append(self._append(item))
            except SpanRefused as exc:
                # The other streams of the batch are unaffected.
                refused = refused or exc
        self._trim()
        if refused is not None:
            raise refused
        return verdicts

    def _append(self, item: Append) -> Appended | Fenced | Ended | Behind | Lost:
        stream_id = item.writer.stream_id
        stream = self._find(stream_id)
        verdict = judge_append(stream.record if stream else None, stream.entries if stream else 0, item)
        if verdict is not None:
            return verdict
        assert stream is not None
        record = stream.record
        if item.note is not None:
            self._grow(stream, len(item.note.encode()) - len((record.note or "").encode()))
        dropped = bisect_left(stream.spans, item.trims, key=_last_of)
        if dropped:
            self._grow(stream, -sum(map(_size_of, stream.spans[:dropped])), spans=True)
            del stream.spans[:dropped]
        record.append(item, self._clock(), dropped=dropped)
        if item.span is not None:
            stream.spans.append(item.span)
            self._grow(stream, _size_of(item.span), spans=True)
            if record.head.feed:
                self._spare.move_to_end(stream_id)
            self._ring(stream_id, record, item.span)
        return Appended(record.n, record.control)

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
        stream = self._find(stream_id)
        existing = judge_restore(stream.record if stream else None, stream.entries if stream else 0, writer)
        if existing is not None:
            return existing
        fresh = Writer(stream_id, epoch, writer.fence + 1, writer.lease, head.retention)
        record = Record.restore(
            writer, head, epoch, spans, now=self._clock(), request=request, note=note, note_n=note_n, taken=taken, inbox=inbox
        )
        messages = list(inbox)
        size = _STREAM_BYTES + len(head_to_json(head)) + len(request or b"") + len((note or "").encode())
        size += sum(map(_size_of_message, messages))
        # Nothing raises from here on.
        if stream is not None:
            self._drop(stream_id)
        fresh_stream = _Stream(record, list(spans), messages, {message.id: message.k for message in messages})
        self._put(stream_id, fresh_stream, size)
        self._grow(fresh_stream, sum(map(_size_of, spans)), spans=True)
        self._ring(stream_id, record, None)
        self._trim()
        return fresh

    async def finish(
        self, writer: Writer, n: int, ending: Ending, *, also: Append | None = None
    ) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
        """See `StreamLog.finish()`."""
        check_also(writer.stream_id, also)
        stream = self._find(writer.stream_id)
        verdict = judge_finish(stream.record if stream else None, stream.entries if stream else 0, writer, n, ending)
        if also is not None and (verdict is None or isinstance(verdict, Done)):
            appended = self._append(also)
            if not isinstance(appended, Appended):
                return AlsoRefused(appended)
        if verdict is not None:
            return verdict
        assert stream is not None
        stream.record.finish(ending, self._clock())
        self._spare[writer.stream_id] = None
        self._ring(writer.stream_id, stream.record, ending)
        self._trim()
        return Done(stream.record.n)

    async def renew(self, writers: Sequence[Writer]) -> list[Control | Fenced | Ended | Lost | Unavailable | None]:
        """See `StreamLog.renew()`."""
        verdicts: list[Control | Fenced | Ended | Lost | Unavailable | None] = []
        for writer in writers:
            stream = self._find(writer.stream_id)
            verdict = judge_renew(stream.record if stream else None, writer)
            if verdict is not None:
                verdicts.append(verdict)
                continue
            assert stream is not None
            stream.record.renew(writer, self._clock())
            if not writer.lease:
                self._ring(writer.stream_id, stream.record, Released())
            verdicts.append(stream.record.control)
        return verdicts

    async def claim(
        self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None
    ) -> Writer | Held | Ended | Unknown:
        """See `StreamLog.claim()`. This log is never in doubt: its events are lost only with the process."""
        check_seconds("lease", lease)
        check_claimant(claimant)
        stream, now = self._find(stream_id), self._clock()
        verdict = judge_claim(stream.record if stream else None, now, claimant)
        if verdict is not None:
            return verdict
        assert stream is not None
        epoch = self._new_epoch(stream)
        writer = stream.record.claim(stream_id, lease=lease, now=now, entries=stream.entries, epoch=epoch, claimant=claimant)
        if writer.epoch == epoch:
            self._grow(stream, -stream.held, spans=True)
            stream.spans.clear()
            self._ring(stream_id, stream.record, None)
        return writer

    # --- the inbox

    async def say(self, stream_id: str, message: Message) -> Said | Ended | Full | Unknown:
        """See `StreamLog.say()`."""
        stream = self._find(stream_id)
        known = stream.places.get(message.id) if stream else None
        verdict = judge_say(stream.record if stream else None, message, known)
        if verdict is not None:
            return verdict
        assert stream is not None
        self._make_room(_size_of_message(message))
        place = stream.record.say(message)
        stream.messages.append(replace(message, k=place))
        stream.places[message.id] = place
        self._grow(stream, _size_of_message(message))
        self._ring(stream_id, stream.record, stream.record.control)
        return Said(place)

    async def inbox(self, stream_id: str, after: int) -> list[Message]:
        """See `StreamLog.inbox()`."""
        stream = self._find(stream_id)
        if stream is None:
            return []
        start = bisect_right(stream.messages, after, key=_place_of)
        return stream.messages[start : start + _INBOX_PAGE]

    # --- reading

    async def read(self, stream_id: str, after: Cursor | None = None, *, limit_bytes: int = 4 << 20) -> Page | Gone | Unknown:
        """See `StreamLog.read()`."""
        stream, now = self._find(stream_id), self._clock()
        record = stream.record if stream else None
        if after is None and limit_bytes == 0 and record is not None:
            after = Cursor(record.epoch, record.n)
        start = judge_read(record, stream.entries if stream else 0, after, now=now)
        if not isinstance(start, int):
            return start
        assert stream is not None
        spans = _spans_from(stream_id, stream.spans, start)
        return page_of(stream_id, stream.record, stream.entries, start, spans, limit_bytes=limit_bytes, now=now)

    def bells(self) -> MemoryBells:
        """See `StreamLog.bells()`."""
        bells = MemoryBells(self._bells)
        self._bells.add(bells)
        return bells

    # --- housekeeping

    async def compact(self, stream_id: str) -> None:
        """See `StreamLog.compact()`."""
        stream = self._find(stream_id)
        if stream is None or stream.record.ending is None or any(isinstance(span, _Packed) for span in stream.spans):
            return
        before = stream.spans
        spans = [span for span in before if isinstance(span, Span)]
        large = sum(len(span.data) for span in spans) > _IN_A_THREAD
        packed = await asyncio.to_thread(_packed, spans) if large else _packed(spans)
        # Meanwhile, another task may have deleted, replaced or compacted the stream.
        if self._streams.get(stream_id) is stream and stream.spans is before:
            self._grow(stream, sum(map(_size_of, packed)) - stream.held, spans=True)
            stream.spans = packed
            stream.record.c = len(packed)

    async def delete(self, stream_id: str) -> None:
        """See `StreamLog.delete()`."""
        stream = self._find(stream_id)
        if stream is not None:
            self._drop(stream_id)
            self._ring(stream_id, None, None)

    async def orphans(self, limit: int = 100) -> list[str]:
        """See `StreamLog.orphans()`."""
        self._forget_expired()
        now = self._clock()
        found = (
            (stream.record.until, stream_id)
            for stream_id, stream in self._streams.items()
            if stream.record.ending is None and stream.record.until <= now
        )
        return [stream_id for _, stream_id in heapq.nsmallest(limit, found)]

    async def aclose(self) -> None:
        """End the bells. The streams live as long as the object."""
        for bells in list(self._bells):
            await bells.aclose()

    # --- inside

    def _find(self, stream_id: str) -> _Stream | None:
        check_stream_id(stream_id)
        self._forget_expired()
        stream = self._streams.get(stream_id)
        if stream is not None and stream.record.expires <= self._clock():
            # It ended, and so expires earlier than its entry in the heap says.
            self._drop(stream_id)
            self._ring(stream_id, None, None)
            return None
        return stream

    def _new_epoch(self, old: _Stream | None) -> str:
        while (epoch := epoch_of(secrets.token_bytes(6))) == (old and old.record.epoch):
            pass  # one in 2**30
        return epoch

    def _put(self, stream_id: str, stream: _Stream, size: int) -> None:
        self._streams[stream_id] = stream
        if stream.record.head.feed:
            # Feeds run for a month, and would fill the memory if they could not be dropped.
            self._spare[stream_id] = None
        self._grow(stream, size)
        heapq.heappush(self._expiries, (stream.record.expires, stream_id))
        if len(self._expiries) > 1000 + 2 * len(self._streams):
            # Mostly from streams that were deleted, or dropped to make room.
            self._expiries = [(each.record.expires, name) for name, each in self._streams.items()]
            heapq.heapify(self._expiries)

    def _drop(self, stream_id: str) -> None:
        stream = self._streams.pop(stream_id)
        self._spare.pop(stream_id, None)
        self._size -= stream.size

    def _grow(self, stream: _Stream, size: int, *, spans: bool = False) -> None:
        stream.size += size
        self._size += size
        if spans:
            stream.held += size

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            _, stream_id = heapq.heappop(self._expiries)
            stream = self._streams.get(stream_id)
            if stream is None:
                continue
            if stream.record.expires <= now:
                self._drop(stream_id)
                self._ring(stream_id, None, None)
            else:
                heapq.heappush(self._expiries, (stream.record.expires, stream_id))

    def _make_room(self, size: int) -> None:
        """Make room for `size` more bytes that will never be trimmed."""
        self._trim(size)
        if self._size + size > self.max_bytes:
            raise LogUnavailable(
                f"the MemoryLog is full: {self._size} of {self.max_bytes} bytes are taken by heads, requests, notes and messages "
                f"of running streams, but {size} more are needed; raise max_bytes, or run fewer streams at once"
            )

    def _trim(self, extra: int = 0) -> None:
        if self._size + extra <= self.max_bytes:
            return
        while self._spare and self._size + extra > self.max_bytes:
            stream_id = next(iter(self._spare))
            self._drop(stream_id)
            self._ring(stream_id, None, None)
        if self._size + extra <= self.max_bytes:
            return
        # A sixteenth more than needed, so that many appends share the cost of finding the largest.
        surplus = self._size + extra - (self.max_bytes - self.max_bytes // 16)
        running = [(-stream.held, stream_id) for stream_id, stream in self._streams.items() if stream.spans]
        heapq.heapify(running)
        while surplus > 0 and running:
            size, stream_id = heapq.heappop(running)
            # Down to the next largest, but at least an eighth: otherwise two of equal size would take turns span by span.
            share = max(-size + (running[0][0] if running else 0), -size // 8, 1)
            freed = self._trim_front(self._streams[stream_id], min(share, surplus))
            surplus -= freed
            if size + freed:
                heapq.heappush(running, (size + freed, stream_id))

    def _trim_front(self, stream: _Stream, wanted: int) -> int:
        freed = count = 0
        for span in stream.spans:
            if freed >= wanted:
                break
            freed += _size_of(span)
            count += 1
        record = stream.record
        record.oldest = stream.spans[count - 1].n + 1
        del stream.spans[:count]
        record.c -= count
        self._grow(stream, -freed, spans=True)
        return freed

    def _ring(self, stream_id: str, record: Record | None, item: Span | Ending | Control | Released | None) -> None:
        listening = [bells for bells in self._bells if stream_id in bells]
        if not listening:
            return
        if record is None:
            bell = Bell(id=stream_id)
        else:
            oldest = record.oldest if record.oldest > 1 else None
            bell = Bell(id=stream_id, item=item, epoch=record.epoch, n=record.n, oldest=oldest)
        for bells in listening:
            bells._ring(bell)


class MemoryBells:
    """The bells of a `MemoryLog`; see `Bells`. Made by `MemoryLog.bells()`."""

    def __init__(self, registry: set[MemoryBells]) -> None:
        self._registry = registry
        self._ids: set[str] = set()
        self._queue = BellQueue()
        self._closed = False

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._ids

    async def add(self, stream_id: str) -> None:
        """See `Bells.add()`."""
        check_stream_id(stream_id)
        if self._closed:
            raise LogUnavailable("these bells are closed; make new ones with bells()", stream_id=stream_id)
        self._ids.add(stream_id)

    async def discard(self, stream_id: str) -> None:
        """See `Bells.discard()`."""
        self._ids.discard(stream_id)

    def __aiter__(self) -> MemoryBells:
        return self

    async def __anext__(self) -> Bell:
        return await self._queue.get()

    async def aclose(self) -> None:
        """See `Bells.aclose()`."""
        self._closed = True
        self._registry.discard(self)
        self._ids.clear()
        self._queue.close()

    def _ring(self, bell: Bell) -> None:
        self._queue.put(bell, streams=len(self._ids))


def _size_of(span: Span | _Packed) -> int:
    return _SPAN_BYTES + len(span.data) + (len(span.lengths) if isinstance(span, _Packed) else 8 * len(span.lengths))


def _size_of_message(message: Message) -> int:
    return _MESSAGE_BYTES + len(message.data.encode()) + 2 * len(message.id.encode()) + len(message.kind.encode())


def _place_of(message: Message) -> int:
    return message.k


def _last_of(span: Span | _Packed) -> int:
    return span.n


def _spans_from(stream_id: str, spans: list[Span | _Packed], after: int) -> Iterator[Span]:
    start = bisect_right(spans, after, key=_last_of)
    for span in islice(spans, start, None):
        yield span.unpacked(stream_id) if isinstance(span, _Packed) else span


def _packed(spans: list[Span]) -> list[Span | _Packed]:
    packed: list[Span | _Packed] = []
    for span in join_spans(spans):
        small = _Packed(span.n, span.b, compressed_lengths(span), compressed(span))
        packed.append(small if _size_of(small) < _size_of(span) else span)
    return packed
