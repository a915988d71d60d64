"""
A log in one SQLite file: the embedded default, for one machine and any number of processes on it.

It makes no decisions: it applies the rules of `log` inside a transaction, and writes what they allow.

*Writing.* One thread writes, with its own connection. Everything that waits for it goes into one transaction.

*Reading.* Each page is read in one transaction too, by one of a few threads. The file is in WAL mode, so readers and writer do
not wait for each other.

*Bells.* Writes of this object ring as soon as they are committed. Writes of other processes are noticed within 20 ms.

*Space.* After `compact()`, an ended stream is usually one compressed row. Expired streams are deleted gradually, during other
writes. When more than a fifth of the file is free, the surplus is returned, also gradually; the rest is reused. (A file made by a
`SQLiteStore` keeps its size: SQLite must know before the first table that a file may shrink.)
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final

from .._errors import LogUnavailable
from ._sqlite_file import SQLiteFile
from ._sqlite_rows import Row, Step, load, milliseconds, new_epoch, packed, request_of, spans_from
from ._sqlite_threads import Engine
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
    damaged,
    judge_append,
    judge_claim,
    judge_create,
    judge_finish,
    judge_read,
    judge_renew,
    judge_restore,
    judge_say,
    page_of,
    reached,
)
from .memory import MemoryBells

__all__ = ["SQLiteBells", "SQLiteLog"]

_INBOX_PAGE: Final = 1000
_INBOX_BYTES: Final = 16 << 20
"""Bytes of messages in one answer, but at least one message. 16 MiB: a thousand of the largest would be a gigabyte."""


class SQLiteLog:
    """
    Keep streams in one SQLite file, for any number of processes on one machine.

    The file has mode 0600, and a directory created for it 0700. While a process has it open, there are also the files `-wal` and
    `-shm`. Nothing is touched before the first call. The same file may hold a `SQLiteStore`.

    Leases and retention use the clock of the machine. Setting it by an hour makes leases an hour longer, or ends them; `ntpd` and
    the like move it by less than a lease.

    Args:
        path: The file; created if needed, with its directory.
        durable: Wait until each transaction is on the disk, so that it survives a power cut. Off: that takes about 5 ms each
            time. A crash of the program loses nothing either way.
        busy_timeout: Seconds to wait for another process that is writing. 5.0: a transaction takes a few milliseconds, so a
            process that takes longer is stopped or hangs.
        poll: Seconds between two checks for writes of other processes, while there are listeners. 0.02: it costs 0.7 % of a
            core, and nobody notices the delay.
        clock: Seconds of the wall clock; every process that uses the file must have the same.

    Raises:
        ValueError: `path` is a directory, or not the name of a file; or a number is out of range.

    Not for network file systems: SQLite's write-ahead log needs memory that all its users share.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = False,
        busy_timeout: float = 5.0,
        poll: float = 0.02,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 <= check_seconds("busy_timeout", busy_timeout) <= 3600:
            raise ValueError(f"busy_timeout must be seconds from 0 to 3600, got {busy_timeout!r}")
        if not 0.001 <= check_seconds("poll", poll) <= 3600:
            raise ValueError(f"poll must be seconds from 0.001 to 3600, got {poll!r}")
        self._file = SQLiteFile(path, durable=durable, busy_timeout=float(busy_timeout))
        self._poll, self._clock = float(poll), clock
        self._engine: Engine | None = None
        self._bells: set[MemoryBells] = set()
        self._finalizer: weakref.finalize[[], SQLiteLog] | None = None

    def __repr__(self) -> str:
        return f"SQLiteLog({str(self._file.path)!r})"

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
        check_seconds("lease", lease)
        check_also(stream_id, also)
        mine = None if epoch is None else Writer(stream_id, epoch, 1, lease, head.retention)

        def create(step: Step) -> Writer | Existing | AlsoRefused:
            row = step.find(stream_id)
            if mine is not None and row is not None and row.record.is_of(epoch):
                row.record.renew(mine, step.now)
                step.change(stream_id)
                return mine
            existing = judge_create(row.record if row else None, replaces=replaces)
            if existing is not None:
                return existing
            if also is not None and not isinstance(verdict := _append(step, also), Appended):
                return AlsoRefused(verdict)
            if row is not None:
                step.drop(stream_id)
            fresh = new_epoch(row) if epoch is None or (row is not None and row.record.epoch == epoch) else epoch
            record = Record.create(head, fresh, lease=lease, now=step.now, request=request)
            step.put(stream_id, record)
            return Writer(stream_id, record.epoch, record.fence, lease, head.retention)

        return await self._started().write(create)

    async def append(
        self, batch: Sequence[Append | tuple[Writer, Span, str | None]]
    ) -> list[Appended | Fenced | Ended | Behind | Lost | Unavailable]:
        """See `StreamLog.append()`."""
        items = check_batch(batch)

        def append(step: Step) -> list[Appended | Fenced | Ended | Behind | Lost | Unavailable]:
            found: list[Appended | Fenced | Ended | Behind | Lost | LogUnavailable] = []
            refused: SpanRefused | None = None
            for item in items:
                try:
                    found.append(_append(step, item))
                except SpanRefused as exc:
                    # The other streams of the batch are unaffected.
                    refused = refused or exc
                except LogUnavailable as exc:
                    found.append(exc)
            if refused is not None:
                raise refused
            return reached(found, [item.writer.stream_id for item in items])

        return await self._started().write(append) if items else []

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
        messages = list(inbox)

        def restore(step: Step) -> Writer | Existing:
            row = step.find(stream_id)
            existing = judge_restore(row.record if row else None, row.held if row else 0, writer)
            if existing is not None:
                return existing
            record = Record.restore(
                writer,
                head,
                epoch,
                spans,
                now=step.now,
                request=request,
                note=note,
                note_n=note_n,
                taken=taken,
                inbox=messages,
            )
            if row is not None:
                step.drop(stream_id)
            row = step.put(stream_id, record)
            for span in spans:
                step.add_span(stream_id, row, span)
            step.restore_inbox(stream_id, messages)
            step.ring(stream_id, row, None)
            return fresh

        return await self._started().write(restore)

    async def finish(
        self, writer: Writer, n: int, ending: Ending, *, also: Append | None = None
    ) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
        """See `StreamLog.finish()`."""
        check_also(writer.stream_id, also)

        def finish(step: Step) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
            row = step.find(writer.stream_id)
            verdict = judge_finish(row.record if row else None, row.held if row else 0, writer, n, ending)
            if also is not None and (verdict is None or isinstance(verdict, Done)):
                appended = _append(step, also)
                if not isinstance(appended, Appended):
                    return AlsoRefused(appended)
            if verdict is not None:
                return verdict
            assert row is not None
            row.record.finish(ending, step.now)
            step.change(writer.stream_id)
            step.ring(writer.stream_id, row, ending)
            return Done(row.record.n)

        return await self._started().write(finish)

    async def renew(self, writers: Sequence[Writer]) -> list[Control | Fenced | Ended | Lost | Unavailable | None]:
        """See `StreamLog.renew()`."""
        items = list(writers)

        def renew(step: Step) -> list[Control | Fenced | Ended | Lost | Unavailable | None]:
            found: list[Control | Fenced | Ended | Lost | LogUnavailable | None] = []
            for writer in items:
                try:
                    found.append(_renew(step, writer))
                except LogUnavailable as exc:
                    found.append(exc)
            return reached(found, [writer.stream_id for writer in items])

        return await self._started().write(renew) if items else []

    async def claim(
        self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None
    ) -> Writer | Held | Ended | Unknown:
        """See `StreamLog.claim()`. A log is in doubt after the machine was restarted, or the file replaced."""
        check_stream_id(stream_id)
        check_seconds("lease", lease)
        check_claimant(claimant)

        def claim(step: Step) -> Writer | Held | Ended | Unknown:
            row = step.find(stream_id)
            verdict = judge_claim(row.record if row else None, step.now, claimant)
            if verdict is not None:
                return verdict
            assert row is not None
            record = row.record
            record.request = request_of(step.db, stream_id)
            doubtful = go_on and step.is_doubtful(stream_id)
            epoch = new_epoch(row)
            writer = record.claim(
                stream_id, lease=lease, now=step.now, entries=row.held, epoch=epoch, doubtful=doubtful, claimant=claimant
            )
            step.change(stream_id)
            if record.epoch == epoch:
                if writer.handover is not None and not writer.handover.whole:
                    step.clear_spans(stream_id, row)
                step.settle_doubt(stream_id)
                step.ring(stream_id, row, None)
            return writer

        return await self._started().write(claim)

    # --- the inbox

    async def say(self, stream_id: str, message: Message) -> Said | Ended | Full | Unknown:
        """See `StreamLog.say()`."""
        check_stream_id(stream_id)

        def say(step: Step) -> Said | Ended | Full | Unknown:
            row = step.find(stream_id)
            known = step.place_of(stream_id, message) if row else None
            verdict = judge_say(row.record if row else None, message, known)
            if verdict is not None:
                return verdict
            assert row is not None
            step.add_message(stream_id, message, row.record.k + 1)
            place = row.record.say(message)
            step.change(stream_id)
            step.ring(stream_id, row, row.record.control)
            return Said(place)

        return await self._started().write(say)

    async def inbox(self, stream_id: str, after: int) -> list[Message]:
        """See `StreamLog.inbox()`."""
        check_stream_id(stream_id)
        engine = self._started()

        def inbox(db: sqlite3.Connection) -> list[Message]:
            if _live(db, stream_id, engine.now()) is None:
                return []
            rows = db.execute(
                "SELECT k, kind, mid, d FROM inbox WHERE stream = ? AND k > ? ORDER BY k LIMIT ?", (stream_id, after, _INBOX_PAGE)
            )
            messages: list[Message] = []
            size = 0
            for k, kind, mid, data in rows:
                try:
                    message = Message(id=mid, data=data, kind=kind, k=k)
                except (TypeError, ValueError) as exc:
                    raise damaged(stream_id, f"its message {k!r:.20} cannot be read ({exc})") from exc
                size += len(data)
                if messages and size > _INBOX_BYTES:
                    break
                messages.append(message)
            rows.close()
            return messages

        return await engine.read(inbox, stream_id=stream_id)

    # --- reading

    async def read(self, stream_id: str, after: Cursor | None = None, *, limit_bytes: int = 4 << 20) -> Page | Gone | Unknown:
        """See `StreamLog.read()`."""
        check_stream_id(stream_id)
        engine = self._started()

        def read(db: sqlite3.Connection) -> Page | Gone | Unknown:
            now = engine.now()
            row = _live(db, stream_id, now)
            if row is None:
                return Unknown()
            record = row.record
            place = Cursor(record.epoch, record.n) if after is None and limit_bytes == 0 else after
            start = judge_read(record, row.held, place, now=now)
            if not isinstance(start, int):
                return start
            spans = spans_from(db, stream_id, start)
            try:
                return page_of(stream_id, record, row.held, start, spans, limit_bytes=limit_bytes, now=now)
            finally:
                spans.close()

        return await engine.read(read, stream_id=stream_id)

    def bells(self) -> SQLiteBells:
        """See `StreamLog.bells()`."""
        bells = SQLiteBells(self, self._bells)
        self._bells.add(bells)
        return bells

    # --- housekeeping

    async def compact(self, stream_id: str) -> None:
        """See `StreamLog.compact()`."""
        check_stream_id(stream_id)
        engine = self._started()
        found = await engine.read(lambda db: packed(db, stream_id), stream_id=stream_id)
        if found is None:
            return
        before, spans = found

        def compact(step: Step) -> None:
            row = step.find(stream_id)
            # Meanwhile, another process may have deleted, replaced or compacted the stream.
            if row is None or row.held != before.held or _what(row) != _what(before):
                return
            step.replace_spans(stream_id, row, spans)

        await engine.write(compact)

    async def delete(self, stream_id: str) -> None:
        """See `StreamLog.delete()`."""
        check_stream_id(stream_id)

        def delete(step: Step) -> None:
            # Without reading it first: this is the way to get rid of a damaged stream.
            step.drop(stream_id)
            step.ring(stream_id, None, None)

        await self._started().write(delete)

    async def orphans(self, limit: int = 100) -> list[str]:
        """See `StreamLog.orphans()`."""
        engine = self._started()

        def orphans(db: sqlite3.Connection) -> list[str]:
            now = milliseconds(engine.now())
            rows = db.execute(
                "SELECT id FROM stream WHERE out IS NULL AND lapse <= ? AND until <= ? AND expires > ? ORDER BY until LIMIT ?",
                (now, now, now, max(0, limit)),
            )
            return [stream_id for (stream_id,) in rows]

        return await engine.read(orphans)

    async def aclose(self) -> None:
        """
        Finish the waiting writes, end the bells, and close the file. The log may be used again, which reopens it.

        Calling it is optional: the file is also closed when the log is garbage-collected, and at exit.
        """
        for bells in list(self._bells):
            await bells.aclose()
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.stop, wait=True)
            if self._finalizer is not None and self._engine is None:
                self._finalizer.detach()

    # --- inside

    def _started(self) -> Engine:
        """The threads of this process; after a fork, new ones."""
        engine = self._engine
        if engine is None or not engine.usable:
            engine = self._engine = Engine(self._file, clock=self._clock, poll=self._poll)
            # At exit too: a connection that is closed properly leaves one file instead of three.
            self._finalizer = weakref.finalize(self, engine.stop)
        return engine


class SQLiteBells(MemoryBells):
    """The bells of a `SQLiteLog`; see `Bells`. Made by `SQLiteLog.bells()`."""

    def __init__(self, log: SQLiteLog, registry: set[MemoryBells]) -> None:
        super().__init__(registry)
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None

    async def add(self, stream_id: str) -> None:
        """See `Bells.add()`."""
        await super().add(stream_id)
        self._loop = asyncio.get_running_loop()
        await self._log._started().listen(self, stream_id)

    async def discard(self, stream_id: str) -> None:
        """See `Bells.discard()`."""
        await super().discard(stream_id)
        self._ignore([stream_id])

    async def aclose(self) -> None:
        """See `Bells.aclose()`."""
        self._ignore(list(self._ids))
        await super().aclose()

    def _ignore(self, stream_ids: list[str]) -> None:
        engine = self._log._engine
        if engine is not None and engine.usable:
            engine.ignore(self, stream_ids)

    def hears(self, stream_id: str) -> bool:
        """Whether it listens to a stream."""
        return stream_id in self

    def rung(self, bells: Sequence[Bell]) -> None:
        """Accept bells from the writer thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._take, bells)
        except RuntimeError:
            pass  # the loop is closed, so nothing in it listens

    def _take(self, bells: Sequence[Bell]) -> None:
        for bell in bells:
            if bell.id in self:
                self._ring(bell)


def _append(step: Step, item: Append) -> Appended | Fenced | Ended | Behind | Lost:
    stream_id = item.writer.stream_id
    row = step.find(stream_id)
    verdict = judge_append(row.record if row else None, row.held if row else 0, item)
    if verdict is not None:
        return verdict
    assert row is not None
    dropped = step.drop_spans(stream_id, row, item.trims) if item.trims else 0
    if item.span is not None:
        step.add_span(stream_id, row, item.span)
    row.record.append(item, step.now, dropped=dropped)
    step.change(stream_id)
    if item.span is not None:
        step.ring(stream_id, row, item.span)
    return Appended(row.record.n, row.record.control)


def _renew(step: Step, writer: Writer) -> Control | Fenced | Ended | Lost | None:
    row = step.find(writer.stream_id)
    verdict = judge_renew(row.record if row else None, writer)
    if verdict is not None:
        return verdict
    assert row is not None
    row.record.renew(writer, step.now)
    step.change(writer.stream_id)
    if not writer.lease:
        step.ring(writer.stream_id, row, Released())
    return row.record.control


def _live(db: sqlite3.Connection, stream_id: str, now: float) -> Row | None:
    """The record of a stream that has not expired."""
    row = load(db, stream_id)
    return None if row is None or row.record.expires <= now else row


def _what(row: Row) -> tuple[object, ...]:
    record = row.record
    return record.epoch, record.fence, record.n, record.b, record.c, record.ending
