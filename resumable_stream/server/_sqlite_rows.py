"""
The rows of a log in SQLite, and one transaction over them.

    stream_log(version)                                   one row: which format this is
    stream(id, epoch, fence, n, b, c, held, …)            one row for each stream: its `Record`
    span(stream, n, b, l, d, z)                           its spans: `d` as written, or `z` and `l` compressed
    request(stream, d)                                    what it answers, apart, so that no append writes it again
    inbox(stream, k, kind, mid, d)                        its messages
    origin(boot, file), doubt(stream)                     see `SQLiteFile`

A row of `span` has a rowid: without one, each of more than a quarter of a page would take a page of its own.

`c` is how many spans were stored, `held` how many rows there are: a trigger counts down whoever deletes one.

Two columns are only there for their index. An index on `until` and `expires` themselves would be written by every append, which
costs a third more; `lapse` and `due` are at most these, and are moved when their time has come and the stream goes on.

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

# Most streams and spans that one transaction forgets beside its work. 1 to 3 ms, and twice what is written at full speed.
_SWEEP_STREAMS: Final = 10
_SWEEP_SPANS: Final = 1000

# What a bell for the commits of another process carries at most. 8 of 64 KiB: what is written in 20 ms, and cheaper than a read.
_CARRIED_SPANS: Final = 8
_CARRIED_BYTES: Final = 64 << 10

# Most free pages that one transaction gives back to the file system. 256: 1 MiB, and 2 ms.
_GIVE_BACK: Final = 256

_COLUMNS: Final = (
    "epoch, fence, n, b, c, held, oldest, until, out, head, note, note_n, taken, k, cancel, mark, claimed, expires, lapse, due"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM stream WHERE id = ?"  # noqa: S608
# Without the columns that have an index.
_UPDATE: Final = (
    "UPDATE stream SET epoch = ?, fence = ?, n = ?, b = ?, c = ?, held = ?, oldest = ?, until = ?, note = ?, note_n = ?,"
    " taken = ?, k = ?, cancel = ?, mark = ?, claimed = ?, expires = ?"
)

State: TypeAlias = tuple[object, ...]
"""What listeners of a stream are told of: epoch, fence, n, k, cancel, whether it has ended, oldest, whether it is released."""
Packed: TypeAlias = tuple[int, int, str | bytes, bytes | None, bytes | None]
"""A row of `span`, less its stream: n, b, l, d, z."""


def milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds, at most what SQLite holds."""
    return min(round(seconds * 1000), 2**62) if seconds < 2**52 else 2**62


# --- reading ------------------------------------------------------------------------------------------------------------


class Row:
    """A record, and what else its row says. `lapse` and `due` in milliseconds, as stored."""

    __slots__ = ("due", "held", "lapse", "record")

    def __init__(self, record: Record, held: int, lapse: int, due: int) -> None:
        self.record, self.held, self.lapse, self.due = record, held, lapse, due

    @property
    def state(self) -> State:
        record = self.record
        released = int(record.until == 0.0)
        return record.epoch, record.fence, record.n, record.k, record.cancel, record.ending is not None, record.oldest, released


_heads: dict[str, Head] = {}
"""Heads by their JSON, since every append needs one. At most 1,000 of at most 4 KiB."""


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
    Read the record of a stream, without its request; `None`: there is none.

    Raises:
        LogUnavailable: The row makes no sense.
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
            raise TypeError("a number or a text is of another kind")
        Cursor(epoch, n)
        Cursor(epoch, fence - 1)
    except (TypeError, ValueError) as exc:
        raise damaged(stream_id, f"its row has other values than it should ({exc}): {(epoch, *numbers)!r:.200}") from exc
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
    """How a stream stands, for those who listen; `None`: there is none. A damaged row has a state, too."""
    found: State | None = db.execute(
        "SELECT epoch, fence, n, k, cancel, out IS NOT NULL, oldest, until = 0 FROM stream WHERE id = ?", (stream_id,)
    ).fetchone()
    return found


def spans_between(db: sqlite3.Connection, stream_id: str, after: int, last: int) -> list[Span]:
    """The spans from the event after `after` to `last`, if they are few and small; none otherwise."""
    rows = db.execute(
        "SELECT n, b, l, d FROM span WHERE stream = ? AND n > ? AND length(d) <= ? ORDER BY n LIMIT ?",
        (stream_id, after, _CARRIED_BYTES, _CARRIED_SPANS),
    ).fetchall()
    try:
        spans = [stored_span(stream_id, n=n, b=b, lengths=lengths, data=data) for n, b, lengths, data in rows]
    except LogUnavailable:
        return []  # who reads it is told
    if not spans or (spans[0].first, spans[-1].n) != (after + 1, last):
        return []
    return spans if all(span.first == before.n + 1 for before, span in pairwise(spans)) else []


def request_of(db: sqlite3.Connection, stream_id: str) -> bytes | None:
    """What `create` was given."""
    row = db.execute("SELECT d FROM request WHERE stream = ?", (stream_id,)).fetchone()
    if row is None:
        return None
    if not isinstance(row[0], bytes):
        raise damaged(stream_id, f"its request is {type(row[0]).__name__}")
    return row[0]


def spans_from(db: sqlite3.Connection, stream_id: str, after: int) -> Generator[Span, None, None]:
    """
    The spans that end after event `after`, in order, one by one.

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
    """The spans of an ended stream as they are stored after compaction; `None`: there is nothing to do."""
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

    A method of the log that finds something wrong with its own stream raises before it has written anything of it, so what others
    do in the same transaction stands.

    Args:
        db: In a transaction that may write.
        now: Seconds on the clock of the log, in whole milliseconds.
        watched: Streams that somebody listens to, as they stood when listeners were last told.

    Attributes:
        bells: To be rung when the transaction is in the file.
        freed: Rows were deleted, so there may be pages to give back.
    """

    def __init__(self, db: sqlite3.Connection, now: float, watched: Mapping[str, State | None]) -> None:
        self.db, self.now = db, now
        self.bells: list[Bell] = []
        self._watched = watched
        self._rows: dict[str, Row | None] = {}
        self._changed: set[str] = set()
        self.freed = False

    def find(self, stream_id: str) -> Row | None:
        """The stream; `None`: there is none. One that has expired is forgotten."""
        if stream_id in self._rows:
            return self._rows[stream_id]
        row = load(self.db, stream_id)
        if stream_id in self._watched and self._watched[stream_id] != (row.state if row else None):
            # Another process was here, and what we write now would hide that from our listeners.
            self.ring(stream_id, row, None)
        if row is not None and row.record.expires <= self.now:
            self.drop(stream_id)
            self.ring(stream_id, None, None)
            return None
        self._rows[stream_id] = row
        return row

    def change(self, stream_id: str) -> None:
        """Write the record of a stream back at the end."""
        self._changed.add(stream_id)

    def put(self, stream_id: str, record: Record) -> Row:
        """Store a stream that is not there, or was dropped."""
        # Somebody may have deleted the row alone.
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
        """Forget a stream, whatever is there of it."""
        self._delete(stream_id)
        self._rows[stream_id] = None
        self._changed.discard(stream_id)

    def _delete(self, stream_id: str) -> None:
        # The stream first, so that the trigger finds nothing to count.
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
        """Its last events may be lost."""
        return self.db.execute("SELECT 1 FROM doubt WHERE stream = ?", (stream_id,)).fetchone() is not None

    def settle_doubt(self, stream_id: str) -> None:
        """It has a new epoch, of which nothing is lost."""
        self.db.execute("DELETE FROM doubt WHERE stream = ?", (stream_id,))

    def add_span(self, stream_id: str, row: Row, span: Span) -> None:
        """
        Store a span; the caller moves the record.

        Raises:
            LogUnavailable: There is something in its place, or it is larger than SQLite takes.
        """
        try:
            self.db.execute(
                "INSERT INTO span (stream, n, b, l, d) VALUES (?, ?, ?, ?, ?)",
                (stream_id, span.n, span.b, encode_lengths(span.lengths), span.data),
            )
        except sqlite3.IntegrityError as exc:
            raise damaged(stream_id, f"there is a span that ends with event {span.n}, and its record ends before") from exc
        row.held += 1

    def clear_spans(self, stream_id: str, row: Row) -> None:
        """Delete the spans of a stream; the caller moves the record."""
        # So that the trigger has nothing to count.
        self.db.execute("UPDATE stream SET held = 0 WHERE id = ?", (stream_id,))
        self.db.execute("DELETE FROM span WHERE stream = ?", (stream_id,))
        row.held = 0
        self.freed = True

    def drop_spans(self, stream_id: str, row: Row, before: int) -> int:
        """Delete the spans that end before an event; the caller moves the record. How many they were."""
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
        """The place of the message with this id; `None`: there is none."""
        found = self.db.execute("SELECT k FROM inbox WHERE stream = ? AND mid = ?", (stream_id, message.id)).fetchone()
        return None if found is None else found[0]

    def add_message(self, stream_id: str, message: Message, place: int) -> None:
        """
        Store a message; the caller moves the record.

        Raises:
            LogUnavailable: There is something in its place.
        """
        try:
            self.db.execute(
                "INSERT INTO inbox (stream, k, kind, mid, d) VALUES (?, ?, ?, ?, ?)",
                (stream_id, place, message.kind, message.id, message.data),
            )
        except sqlite3.IntegrityError as exc:
            raise damaged(stream_id, f"there is a message {place}, and its record has {place - 1}") from exc

    def restore_inbox(self, stream_id: str, messages: Sequence[Message]) -> None:
        """Store the messages of a stream that was just put; of two with one place or id, the first counts."""
        self.db.executemany(
            "INSERT OR IGNORE INTO inbox (stream, k, kind, mid, d) VALUES (?, ?, ?, ?, ?)",
            ((stream_id, message.k, message.kind, message.id, message.data) for message in messages),
        )

    def ring(self, stream_id: str, row: Row | None, item: Span | Ending | Control | Released | None) -> None:
        """Remember a bell."""
        if stream_id not in self._watched:
            return
        if row is None:
            self.bells.append(Bell(id=stream_id))
        else:
            record = row.record
            oldest = record.oldest if record.oldest > 1 else None
            self.bells.append(Bell(id=stream_id, item=item, epoch=record.epoch, n=record.n, oldest=oldest))

    def sweep(self) -> None:
        """Forget some of what has expired."""
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
                break  # the rest next time; until then it counts as forgotten
            self.drop(stream_id)
            self.ring(stream_id, None, None)

    def flush(self) -> None:
        """Write the records back. Comes last in the transaction."""
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
        Shrink the file, if more than a fifth of it is free. What is free otherwise is soon used again.

        Returns:
            Whether there is more to give back.
        """
        [free] = self.db.execute("PRAGMA freelist_count").fetchone()
        if not free:
            return False
        [pages] = self.db.execute("PRAGMA page_count").fetchone()
        surplus = free - (pages - free) // 4
        if surplus <= 0 or self.db.execute("PRAGMA auto_vacuum").fetchone() != (2,):
            return False
        for _ in range(min(surplus, _GIVE_BACK)):
            # One by one: Python's module takes one step of this statement, which frees one page.
            self.db.execute("PRAGMA incremental_vacuum(1)")
        return bool(surplus > _GIVE_BACK)

    def states(self) -> dict[str, State | None]:
        """How the streams that were touched stand now."""
        return {stream_id: row.state if row else None for stream_id, row in self._rows.items()}


def new_epoch(old: Row | None, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Make an epoch that differs from the old one."""
    while (epoch := epoch_of(random_bytes(6))) == (old and old.record.epoch):
        pass  # one in 2**30
    return epoch
