"""
The rows of a log in SQLite, and one transaction over them.

    stream_log(version)                                   one row: the format version
    stream(id, epoch, fence, n, b, c, held, …)            one row per stream: its `Record`
    span(stream, n, b, l, d, z)                           its spans: `d` as written, or `z` and `l` compressed
    request(stream, d)                                    its request, separate so that appends do not rewrite it
    inbox(stream, k, kind, mid, d)                        its messages
    origin(boot, file), doubt(stream)                     see `SQLiteFile`

A row of `span` has a rowid: without one, each row above a quarter of a page would take a page of its own.

`c` is how many spans were stored, `held` how many rows exist: a trigger counts deletions.

Two columns exist only for their index. Every append would have to update an index on `until` and `expires` themselves, which
costs a third more; `lapse` and `due` are at most these, and are moved when their time comes and the stream continues.

Times are whole milliseconds.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

from .._errors import LogUnavailable
from .log import (
    Bell,
    Control,
    Cursor,
    Ending,
    Head,
    Message,
    Record,
    Released,
    Span,
    compressed,
    compressed_lengths,
    damaged,
    encode_lengths,
    ending_from_json,
    ending_to_json,
    epoch_of,
    head_from_json,
    head_to_json,
    join_spans,
    stored_span,
)

__all__ = [
    "Packed",
    "Row",
    "State",
    "Step",
    "load",
    "look",
    "milliseconds",
    "new_epoch",
    "packed",
    "request_of",
    "spans_between",
    "spans_from",
]

# Most streams and spans deleted per transaction. It takes 1 to 3 ms, and is twice what is written at full speed.
_SWEEP_STREAMS: Final = 10
_SWEEP_SPANS: Final = 1000

# Most data in bells for another process's commits. 8 spans, 64 KiB: what is written in 20 ms, and cheaper than a read.
_CARRIED_SPANS: Final = 8
_CARRIED_BYTES: Final = 64 << 10

# Most free pages that one transaction returns to the file system. 256: 1 MiB, and 2 ms.
_GIVE_BACK: Final = 256

_COLUMNS: Final = (
    "epoch, fence, n, b, c, held, oldest, until, out, head, note, note_n, taken, k, cancel, mark, claimed, expires, lapse, due"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM stream WHERE id = ?"  # noqa: S608
# Without the indexed columns.
_UPDATE: Final = (
    "UPDATE stream SET epoch = ?, fence = ?, n = ?, b = ?, c = ?, held = ?, oldest = ?, until = ?, note = ?, note_n = ?,"
    " taken = ?, k = ?, cancel = ?, mark = ?, claimed = ?, expires = ?"
)

State: TypeAlias = tuple[object, ...]
"""The state that listeners follow: epoch, fence, n, k, cancel, whether it has ended, oldest, whether it is released."""
Packed: TypeAlias = tuple[int, int, str | bytes, bytes | None, bytes | None]
"""A row of `span` without its stream: n, b, l, d, z."""


def milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds, at most what SQLite can hold."""
    return min(round(seconds * 1000), 2**62) if seconds < 2**52 else 2**62


# --- reading ------------------------------------------------------------------------------------------------------------


class Row:
    """A record and the rest of its row. `lapse` and `due` are in milliseconds, as stored."""

    __slots__ = ("due", "held", "lapse", "record")

    def __init__(self, record: Record, held: int, lapse: int, due: int) -> None:
        self.record, self.held, self.lapse, self.due = record, held, lapse, due

    @property
    def state(self) -> State:
        record = self.record
        released = int(record.until == 0.0)
        return record.epoch, record.fence, record.n, record.k, record.cancel, record.ending is not None, record.oldest, released


_heads: dict[str, Head] = {}
"""Heads by their JSON, because every append needs one. At most 1,000 of at most 4 KiB."""


def _head_of(stream_id: str, text: str) -> Head:
    head = _heads.get(text)
    if head is None:
        head = head_from_json(stream_id, text)
        if len(text) <= 4096:
            if len(_heads) >= 1000:
                _heads.clear()
            _heads[text] = head
    return head


def load(db: sqlite3.Connection, stream_id: str) -> Row | None:
    """
    Read the record of a stream, without its request; `None`: it does not exist.

    Raises:
        LogUnavailable: The row is invalid.
    """
    row = db.execute(_SELECT, (stream_id,)).fetchone()
    if row is None:
        return None
    epoch, fence, n, b, c, held, oldest, until, out, head, note, note_n, taken, k, cancel, mark, claimed, expires, lapse, due = (
        row
    )
    numbers = (fence, n, b, c, held, oldest, until, note_n, taken, k, mark, expires, lapse, due)
    texts = [text for text in (epoch, head, out, note, cancel, claimed) if text is not None]
    try:
        if set(map(type, numbers)) != {int} or min(numbers) < 0 or set(map(type, texts)) != {str} or head is None:
            raise TypeError("a number or a text has the wrong type")
        Cursor(epoch, n)
        Cursor(epoch, fence - 1)
    except (TypeError, ValueError) as exc:
        raise damaged(stream_id, f"its row has invalid values ({exc}): {(epoch, *numbers)!r:.200}") from exc
    record = Record(
        head=_head_of(stream_id, head),
        epoch=epoch,
        fence=fence,
        n=n,
        b=b,
        c=c,
        oldest=oldest,
        until=until / 1000,
        ending=None if out is None else ending_from_json(stream_id, out),
        note=note,
        note_n=note_n,
        taken=taken,
        k=k,
        cancel=cancel,
        mark=mark,
        claimed=claimed or "",
        expires=expires / 1000,
    )
    return Row(record, held, lapse, due)


def look(db: sqlite3.Connection, stream_id: str) -> State | None:
    """The state of a stream, for its listeners; `None`: it does not exist. A damaged row has a state too."""
    found: State | None = db.execute(
        "SELECT epoch, fence, n, k, cancel, out IS NOT NULL, oldest, until = 0 FROM stream WHERE id = ?", (stream_id,)
    ).fetchone()
    return found


def spans_between(db: sqlite3.Connection, stream_id: str, after: int, last: int) -> list[Span]:
    """The spans from the event after `after` to `last`, if they are few and small; otherwise none."""
    rows = db.execute(
        "SELECT n, b, l, d FROM span WHERE stream = ? AND n > ? AND length(d) <= ? ORDER BY n LIMIT ?",
        (stream_id, after, _CARRIED_BYTES, _CARRIED_SPANS),
    ).fetchall()
    try:
        spans = [stored_span(stream_id, n=n, b=b, lengths=lengths, data=data) for n, b, lengths, data in rows]
    except LogUnavailable:
        return []  # the reader gets the error
    if not spans or (spans[0].first, spans[-1].n) != (after + 1, last):
        return []
    return spans if all(span.first == before.n + 1 for before, span in pairwise(spans)) else []


def request_of(db: sqlite3.Connection, stream_id: str) -> bytes | None:
    """The request given to `create`."""
    row = db.execute("SELECT d FROM request WHERE stream = ?", (stream_id,)).fetchone()
    if row is None:
        return None
    if not isinstance(row[0], bytes):
        raise damaged(stream_id, f"its request is {type(row[0]).__name__}")
    return row[0]


def spans_from(db: sqlite3.Connection, stream_id: str, after: int) -> Generator[Span, None, None]:
    """
    The spans that end after event `after`, in order, one at a time.

    Raises:
        LogUnavailable: One of them cannot be read.
    """
    cursor = db.execute("SELECT n, b, l, d, z FROM span WHERE stream = ? AND n > ? ORDER BY n", (stream_id, after))
    try:
        for n, b, lengths, d, z in cursor:
            if z is None:
                yield stored_span(stream_id, n=n, b=b, lengths=lengths, data=d)
            else:
                yield stored_span(stream_id, n=n, b=b, lengths=lengths, data=z, is_compressed=True)
    finally:
        cursor.close()


def packed(db: sqlite3.Connection, stream_id: str) -> tuple[Row, list[Packed]] | None:
    """The spans of an ended stream in their compacted form; `None`: there is nothing to compact."""
    row = load(db, stream_id)
    if row is None or row.record.ending is None or row.held != row.record.c or not row.held:
        return None
    if db.execute("SELECT 1 FROM span WHERE stream = ? AND z IS NOT NULL LIMIT 1", (stream_id,)).fetchone():
        return None
    found: list[Packed] = []
    for span in join_spans(spans_from(db, stream_id, 0)):
        small = compressed(span)
        if len(small) < len(span.data):
            found.append((span.n, span.b, compressed_lengths(span), None, small))
        else:
            found.append((span.n, span.b, encode_lengths(span.lengths), span.data, None))
    return row, found


# --- writing ------------------------------------------------------------------------------------------------------------


class Step:
    """
    One transaction: records are loaded once and written back at the end, spans and messages are written at once.

    A method of the log that rejects a call raises before it has written anything, so the other calls in the transaction stand.

    Args:
        db: In a transaction that may write.
        now: Seconds on the clock of the log, in whole milliseconds.
        watched: Streams with listeners, in the state that the listeners last saw.

    Attributes:
        bells: To be rung after the commit.
        freed: Rows were deleted, so there may be pages to return.
    """

    def __init__(self, db: sqlite3.Connection, now: float, watched: Mapping[str, State | None]) -> None:
        self.db, self.now = db, now
        self.bells: list[Bell] = []
        self._watched = watched
        self._rows: dict[str, Row | None] = {}
        self._changed: set[str] = set()
        self.freed = False

    def find(self, stream_id: str) -> Row | None:
        """The stream; `None`: it does not exist. An expired one is deleted."""
        if stream_id in self._rows:
            return self._rows[stream_id]
        row = load(self.db, stream_id)
        if stream_id in self._watched and self._watched[stream_id] != (row.state if row else None):
            # Another process has changed it, and our write would hide that from our listeners.
            self.ring(stream_id, row, None)
        if row is not None and row.record.expires <= self.now:
            self.drop(stream_id)
            self.ring(stream_id, None, None)
            return None
        self._rows[stream_id] = row
        return row

    def change(self, stream_id: str) -> None:
        """Mark a record to be written back at the end."""
        self._changed.add(stream_id)

    def put(self, stream_id: str, record: Record) -> Row:
        """Store a stream that does not exist, or was dropped."""
        # Its row alone may have been deleted by hand.
        self._delete(stream_id)
        expires = milliseconds(record.expires)
        row = Row(record, 0, milliseconds(record.until), expires)
        self.db.execute(
            "INSERT INTO stream (id, epoch, fence, n, b, c, held, oldest, until, out, head, note, note_n, taken, k, cancel, mark,"
            " claimed, born, expires, lapse, due)"
            " VALUES (?, ?, ?, 0, 0, 0, 0, 1, ?, NULL, ?, NULL, 0, 0, 0, NULL, 0, '', ?, ?, ?, ?)",
            (
                stream_id,
                record.epoch,
                record.fence,
                row.lapse,
                head_to_json(record.head),
                milliseconds(self.now),
                expires,
                row.lapse,
                row.due,
            ),
        )
        if record.request is not None:
            self.db.execute("INSERT INTO request (stream, d) VALUES (?, ?)", (stream_id, record.request))
        self._rows[stream_id] = row
        self.change(stream_id)
        return row

    def drop(self, stream_id: str) -> None:
        """Delete everything of a stream."""
        self._delete(stream_id)
        self._rows[stream_id] = None
        self._changed.discard(stream_id)

    def _delete(self, stream_id: str) -> None:
        # The stream first, so that the trigger has nothing to count.
        for table, column in (
            ("stream", "id"),
            ("span", "stream"),
            ("request", "stream"),
            ("inbox", "stream"),
            ("doubt", "stream"),
        ):
            deleted = self.db.execute(f"DELETE FROM {table} WHERE {column} = ?", (stream_id,)).rowcount  # noqa: S608
            self.freed = self.freed or deleted > 0

    def is_doubtful(self, stream_id: str) -> bool:
        """Whether its last events may be lost."""
        return self.db.execute("SELECT 1 FROM doubt WHERE stream = ?", (stream_id,)).fetchone() is not None

    def settle_doubt(self, stream_id: str) -> None:
        """Clear the doubt: it has a new epoch, of which nothing is lost."""
        self.db.execute("DELETE FROM doubt WHERE stream = ?", (stream_id,))

    def add_span(self, stream_id: str, row: Row, span: Span) -> None:
        """
        Store a span; the caller updates the record.

        Raises:
            LogUnavailable: Its place is taken, or it is larger than SQLite allows.
        """
        try:
            self.db.execute(
                "INSERT INTO span (stream, n, b, l, d) VALUES (?, ?, ?, ?, ?)",
                (stream_id, span.n, span.b, encode_lengths(span.lengths), span.data),
            )
        except sqlite3.IntegrityError as exc:
            raise damaged(stream_id, f"there is a span that ends with event {span.n}, but its record ends before") from exc
        row.held += 1

    def clear_spans(self, stream_id: str, row: Row) -> None:
        """Delete the spans of a stream; the caller updates the record."""
        # First, so that the trigger has nothing to count.
        self.db.execute("UPDATE stream SET held = 0 WHERE id = ?", (stream_id,))
        self.db.execute("DELETE FROM span WHERE stream = ?", (stream_id,))
        row.held = 0
        self.freed = True

    def drop_spans(self, stream_id: str, row: Row, before: int) -> int:
        """Delete the spans that end before an event, and return how many; the caller updates the record."""
        dropped = self.db.execute("DELETE FROM span WHERE stream = ? AND n < ?", (stream_id, before)).rowcount
        row.held -= dropped
        self.freed = self.freed or dropped > 0
        return dropped

    def replace_spans(self, stream_id: str, row: Row, spans: Sequence[Packed]) -> None:
        """Store the same events in other rows."""
        self.clear_spans(stream_id, row)
        self.db.executemany(
            "INSERT INTO span (stream, n, b, l, d, z) VALUES (?, ?, ?, ?, ?, ?)", ((stream_id, *span) for span in spans)
        )
        row.held = row.record.c = len(spans)
        self.change(stream_id)

    def place_of(self, stream_id: str, message: Message) -> int | None:
        """The place of the message with this id; `None`: it is unknown."""
        found = self.db.execute("SELECT k FROM inbox WHERE stream = ? AND mid = ?", (stream_id, message.id)).fetchone()
        return None if found is None else found[0]

    def add_message(self, stream_id: str, message: Message, place: int) -> None:
        """
        Store a message; the caller updates the record.

        Raises:
            LogUnavailable: Its place is taken.
        """
        try:
            self.db.execute(
                "INSERT INTO inbox (stream, k, kind, mid, d) VALUES (?, ?, ?, ?, ?)",
                (stream_id, place, message.kind, message.id, message.data),
            )
        except sqlite3.IntegrityError as exc:
            raise damaged(stream_id, f"there is a message {place}, but its record has {place - 1}") from exc

    def restore_inbox(self, stream_id: str, messages: Sequence[Message]) -> None:
        """Store the messages of a stream that was just put; of two with the same place or id, the first counts."""
        self.db.executemany(
            "INSERT OR IGNORE INTO inbox (stream, k, kind, mid, d) VALUES (?, ?, ?, ?, ?)",
            ((stream_id, message.k, message.kind, message.id, message.data) for message in messages),
        )

    def ring(self, stream_id: str, row: Row | None, item: Span | Ending | Control | Released | None) -> None:
        """Record a bell."""
        if stream_id not in self._watched:
            return
        if row is None:
            self.bells.append(Bell(id=stream_id))
        else:
            record = row.record
            oldest = record.oldest if record.oldest > 1 else None
            self.bells.append(Bell(id=stream_id, item=item, epoch=record.epoch, n=record.n, oldest=oldest))

    def sweep(self) -> None:
        """Delete some expired streams."""
        now = milliseconds(self.now)
        room = _SWEEP_SPANS
        due = self.db.execute("SELECT id, expires FROM stream WHERE due <= ? ORDER BY due LIMIT ?", (now, _SWEEP_STREAMS))
        for stream_id, expires in due.fetchall():
            if isinstance(expires, int) and expires > now:
                self.db.execute("UPDATE stream SET due = ? WHERE id = ?", (expires, stream_id))
                continue
            self.db.execute("UPDATE stream SET held = 0 WHERE id = ?", (stream_id,))
            deleted = self.db.execute(
                "DELETE FROM span WHERE stream = ?1 AND n < coalesce("
                "(SELECT n FROM span WHERE stream = ?1 ORDER BY n LIMIT 1 OFFSET ?2), 9223372036854775807)",
                (stream_id, room),
            ).rowcount
            room -= deleted
            self.freed = True
            if room <= 0:
                break  # the rest next time; until then it counts as deleted
            self.drop(stream_id)
            self.ring(stream_id, None, None)

    def flush(self) -> None:
        """Write the records back, at the end of the transaction."""
        now = milliseconds(self.now)
        for stream_id in self._changed:
            row = self._rows[stream_id]
            assert row is not None
            record = row.record
            until, expires = milliseconds(record.until), milliseconds(record.expires)
            values: tuple[Any, ...] = (
                record.epoch,
                record.fence,
                record.n,
                record.b,
                record.c,
                row.held,
                record.oldest,
                until,
                record.note,
                record.note_n,
                record.taken,
                record.k,
                record.cancel,
                record.mark,
                record.claimed,
                expires,
            )
            ended = record.ending is not None
            if not ended and not until < row.lapse and not row.lapse <= now < until:
                self.db.execute(f"{_UPDATE} WHERE id = ?", (*values, stream_id))
                continue
            out = ending_to_json(record.ending) if record.ending is not None else None
            due = expires if ended else row.due
            self.db.execute(f"{_UPDATE}, out = ?, lapse = ?, due = ? WHERE id = ?", (*values, out, until, due, stream_id))

    def give_back(self) -> bool:
        """
        Shrink the file, if more than a fifth of it is free. Less than that is soon used again.

        Returns:
            Whether there is more to return.
        """
        [free] = self.db.execute("PRAGMA freelist_count").fetchone()
        if not free:
            return False
        [pages] = self.db.execute("PRAGMA page_count").fetchone()
        surplus = free - (pages - free) // 4
        if surplus <= 0 or self.db.execute("PRAGMA auto_vacuum").fetchone() != (2,):
            return False
        for _ in range(min(surplus, _GIVE_BACK)):
            # One at a time: Python's module executes one step of this statement, which frees one page.
            self.db.execute("PRAGMA incremental_vacuum(1)")
        return bool(surplus > _GIVE_BACK)

    def states(self) -> dict[str, State | None]:
        """The current states of the streams that were touched."""
        return {stream_id: row.state if row else None for stream_id, row in self._rows.items()}


def new_epoch(old: Row | None, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Make an epoch that differs from the old one."""
    while (epoch := epoch_of(random_bytes(6))) == (old and old.record.epoch):
        pass  # one in 2**30
    return epoch
