"""
One process's copy of one stream, and how it is kept in step with the log.

A `Mirror` is content: spans in order, from which any number of readers take what comes after their position. A reader holds only
a number; readers at the same position get the same bytes object, so one reader costs almost nothing.

A `Follower` is the sequence of steps that keeps a mirror exact although bells may be lost, duplicated or out of order:

    COLD ──▶ LISTENING ──▶ HYDRATING ──▶ LIVE ──▶ ENDED
             bell asked     log being     bells that continue are applied; a hole, a poll, or a bell
             for, not yet   read, bells   without content: read again
             heard          kept aside
    any of them ──▶ STALE (bells lost) ──▶ LISTENING        any read ──▶ GONE (the log has something else, or nothing)

It listens first, and reads only after that is confirmed: this closes the seam between replay and live.

There is no I/O here, no clock and no lock: the driver of a follower does what it returns (`Listen`, `Read`, `Wake`), in one event
loop.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final, TypeAlias

from .._errors import LogUnavailable
from .log import Bell, Control, Cursor, Ending, Framing, Gone, Head, Page, Released, Span, Unknown, join_spans, spans_after

__all__ = [
    "Follower",
    "Grown",
    "Hole",
    "Known",
    "Listen",
    "Mirror",
    "NotHeld",
    "Phase",
    "Read",
    "Step",
    "Wake",
    "with_ids",
]

CHUNK_BYTES: Final = 256 << 10
"""Most bytes given to one reader at once, unless one event is larger. 256 KiB: a slow replay does not hold up the loop."""
_JOINED: Final = 8
"""Joined chunks kept for other readers at the same position, which replay together or lag equally."""
_ASIDE: Final = 1000
_ASIDE_BYTES: Final = 4 << 20
"""Most bells, and bytes in them, that are kept aside while the log is read. The rest is read from the log."""
_BOM: Final = b"\xef\xbb\xbf"


# --- content ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grown:
    """
    The item was taken; readers have something to send.

    Attributes:
        n: Number of the last event now.
    """

    n: int


@dataclass(frozen=True, slots=True)
class Known:
    """The item was already there."""


@dataclass(frozen=True, slots=True)
class Hole:
    """
    The item does not continue the mirror; nothing was taken. Read the log.

    Attributes:
        after: Number of the last event here.
    """

    after: int


class NotHeld(LookupError):
    """
    The requested position is before the oldest event of the mirror. The log may have it.

    Attributes:
        oldest: Number of the oldest event held.
    """

    def __init__(self, oldest: int) -> None:
        super().__init__(f"the mirror begins with event {oldest}; read the log for the events before it")
        self.oldest = oldest


class Mirror:
    """
    The events of one stream, as far as they are held in this process.

    Args:
        epoch: Epoch of the log.
        framing: How the bytes are split into events, for the view with ids.
        n: Begin after this event; 0: at the first.
        b: Byte position after that event; `None`: taken from the first span.

    Attributes:
        epoch: Epoch of the log.
        framing: As given.
        n: Number of the last event; 0 before any.
        b: Byte position after it.
        oldest: Number of the oldest event held; n + 1 if none is.
        ending: How the stream ended; `None` while it runs.
        size: Bytes held: both views, and the joined chunks for readers that are not at the tail.
    """

    def __init__(self, epoch: str, framing: Framing, *, n: int = 0, b: int | None = None) -> None:
        self.epoch = epoch
        self.framing = framing
        self.n = n
        self.b: int | None = 0 if n == 0 else b
        self.oldest = n + 1
        self.ending: Ending | None = None
        self.size = 0
        self._spans: list[Span] = []
        self._ids: list[bytes | None] = []
        """The view with ids of each span, once requested."""
        self._joined: dict[tuple[bool, int], tuple[bytes, int]] = {}

    def __repr__(self) -> str:
        place = f"oldest={self.oldest}, n={self.n}, ending={self.ending}"
        return f"Mirror({self.epoch!r}, {self.framing!r}, {place}, size={self.size})"

    def apply(self, item: Span | Ending, *, epoch: str | None = None, n: int | None = None) -> Grown | Known | Hole:
        """
        Take a span or the ending, if it continues the mirror.

        A span that overlaps the end is taken from there on, because after a lost reply the same events may arrive in other
        pieces.

        Args:
            item: From an acknowledged append, a page of the log, or a bell.
            epoch: Epoch of its log; `None`: this one.
            n: The last event before an ending; `None`: the caller knows that it follows the mirror's last event.
        """
        if epoch is not None and epoch != self.epoch:
            return Hole(self.n)
        if isinstance(item, Ending):
            if n is not None and n != self.n:
                return Hole(self.n)
            if self.ending is not None:
                return Known() if item == self.ending else Hole(self.n)
            self.ending = item
            return Grown(self.n)
        if item.n <= self.n:
            return Known()
        if item.first > self.n + 1 or self.ending is not None:
            return Hole(self.n)
        rest = spans_after(item, self.n)
        if self.b is not None and rest.start != self.b:
            return Hole(self.n)
        # An entry of an ended stream is larger than what a reader gets at once.
        parts = (rest,) if len(rest.data) <= CHUNK_BYTES else join_spans((rest,), limit_bytes=CHUNK_BYTES)
        self._spans += parts
        self._ids += [None] * len(parts)
        self._forget_joined()
        self.n, self.b = rest.n, rest.b
        self.size += len(rest.data)
        return Grown(self.n)

    def after(self, n: int) -> tuple[bytes, int]:
        """
        What a reader sends next, as the producer wrote it.

        Args:
            n: The last event that the reader has.

        Returns:
            Complete events, at most 256 KiB unless one event is larger, and the number of the last of them. Empty, and `n`
            again, if there is nothing after it. All readers at the same position get the same object.

        Raises:
            NotHeld: `n` is before the oldest event held.
        """
        return self._after(n, ids=False)

    def after_with_ids(self, n: int) -> tuple[bytes, int]:
        """
        The same as server-sent events, each with the line `id: <epoch>.<n>`; see `with_ids`.

        Raises:
            NotHeld: `n` is before the oldest event held.
            ValueError: The stream is raw bytes, which have no such view.
        """
        return self._after(n, ids=True)

    def after_byte(self, b: int) -> tuple[bytes, int]:
        """
        The data after a byte position, and the position after it; for raw bodies, whose readers count bytes.

        Returns:
            Bytes to the end of a span; empty, and `b` again, if there is nothing after it.

        Raises:
            NotHeld: `b` is before the oldest event held.
        """
        if self.b is None or b >= self.b:
            return b"", b
        index = bisect_right(self._spans, b, key=_position_of)
        if index == len(self._spans) or b < self._spans[index].start:
            raise NotHeld(self.oldest)
        span = self._spans[index]
        data = self.after(span.first - 1)[0] if b == span.start else span.data[b - span.b :]
        return data, b + len(data)

    def spans(self, n: int) -> list[Span]:
        """
        The spans after event `n`, for a log that has lost them.

        Raises:
            NotHeld: `n` is before the oldest event held.
        """
        if n < self.oldest - 1:
            raise NotHeld(self.oldest)
        index = bisect_right(self._spans, n, key=_number_of)
        found = self._spans[index:]
        if found and found[0].first <= n:
            found[0] = spans_after(found[0], n)
        return found

    def trim(self, size: int) -> int:
        """
        Drop spans at the front until at most `size` bytes are held; the log still has them.

        Returns:
            How many bytes were dropped.
        """
        before = self.size
        if before > size:
            self._forget_joined()
        freed = count = 0
        while count < len(self._spans) and self.size - freed > size:
            freed += len(self._spans[count].data) + len(self._ids[count] or b"")
            count += 1
        if count:
            self.oldest = self._spans[count - 1].n + 1
            del self._spans[:count], self._ids[:count]
            self.size -= freed
        return before - self.size

    def _after(self, n: int, *, ids: bool) -> tuple[bytes, int]:
        if n >= self.n:
            return b"", n
        if n < self.oldest - 1:
            raise NotHeld(self.oldest)
        newest = self._spans[-1]
        if n == newest.n - len(newest.lengths):
            # The common case: a reader at the tail.
            return self._view(-1, ids), newest.n
        index = bisect_right(self._spans, n, key=_number_of)
        first = self._spans[index]
        last = self._last_of_chunk(index, first)
        if n == first.first - 1 and last == index:
            return self._view(index, ids), first.n
        key = ids, n
        found = self._joined.get(key)
        if found is None:
            rest = first if n < first.first else spans_after(first, n)
            head = self._view(index, ids) if rest is first else with_ids(rest, self.epoch, self.framing) if ids else rest.data
            found = b"".join([head, *(self._view(each, ids) for each in range(index + 1, last + 1))]), self._spans[last].n
            if len(self._joined) >= _JOINED:
                self.size -= len(self._joined.pop(next(iter(self._joined)))[0])
            self._joined[key] = found
            self.size += len(found[0])
        return found

    def _forget_joined(self) -> None:
        if self._joined:
            self.size -= sum(len(chunk) for chunk, _ in self._joined.values())
            self._joined.clear()

    def _last_of_chunk(self, index: int, first: Span) -> int:
        room = CHUNK_BYTES - len(first.data)
        while index + 1 < len(self._spans) and (room := room - len(self._spans[index + 1].data)) >= 0:
            index += 1
        return index

    def _view(self, index: int, ids: bool) -> bytes:
        if not ids:
            return self._spans[index].data
        view = self._ids[index]
        if view is None:
            view = self._ids[index] = with_ids(self._spans[index], self.epoch, self.framing)
            self.size += len(view)
        return view


def with_ids(span: Span, epoch: str, framing: Framing) -> bytes:
    """
    Add the id of each event to a span, as server-sent events.

    The id goes before an SSE block. If the block has its own id, ours goes after the last line, because the last id of a block
    counts. If an event includes blocks without data, only the block with data gets the id, and the others lose theirs, because a
    reader's position must move exactly when the event arrives. A line of NDJSON becomes the data of a block.

    Raises:
        ValueError: Raw bytes cannot be shown as events.
    """
    if framing == "raw":
        raise ValueError("a raw stream has no view with ids: its readers count bytes")
    blocks, place = [], 0
    write = _sse_block if framing == "sse" else _ndjson_block
    for n, length in enumerate(span.lengths, span.first):
        event = span.data[place : place + length]
        place += length
        if n == 1 and event.startswith(_BOM):
            # A byte-order mark counts only as the first bytes of a body, where the id is now; elsewhere it would spoil a field's
            # name.
            event = event[3:]
        blocks.append(write(event, b"id: %s.%d\n" % (epoch.encode(), n)))
    return b"".join(blocks)


def _sse_block(block: bytes, id_line: bytes) -> bytes:
    # The complete lines, without the blank line.
    lines = block[:-2] if block.endswith(b"\r\n") else block[:-1] if block.endswith((b"\n", b"\r")) else b""
    whole = lines.endswith((b"\n", b"\r"))
    if not whole:
        # The last event of a body may lack its blank line, or even its last line end.
        lines = block if block.endswith((b"\n", b"\r")) else block + b"\n"
    if lines.startswith((b"\n", b"\r")) or b"\n\n" in lines or (b"\r" in lines and (b"\r\r" in lines or b"\n\r" in lines)):
        return _several_blocks(lines, id_line)
    if not whole or lines.startswith(b"id") or b"\nid" in lines or b"\rid" in lines:
        return lines + id_line + b"\n"
    return id_line + block


def _several_blocks(event: bytes, id_line: bytes) -> bytes:
    """An event that includes blocks without data: these must not set an id, neither ours nor one of the producer."""
    blocks: list[list[bytes]] = [[]]
    for line in event.splitlines():
        if line:
            if line.partition(b":")[0] != b"id":
                blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    # The last block with data, or the last block if none has data.
    full = [block for block in blocks if any(line.partition(b":")[0] == b"data" for line in block)]
    (full or blocks)[-1].append(id_line[:-1])
    return b"".join(b"\n".join(block) + b"\n\n" for block in blocks if block)


def _ndjson_block(line: bytes, id_line: bytes) -> bytes:
    # White space around a document is insignificant, but a line end inside would end the field.
    data = line.strip().replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\ndata: ")
    return b"%sdata: %s\n\n" % (id_line, data)


def _number_of(span: Span) -> int:
    return span.n


def _position_of(span: Span) -> int:
    return span.b


# --- order of steps -----------------------------------------------------------------------------------------------------


class Phase(str, enum.Enum):
    """The phase of a follower."""

    COLD = "cold"
    """Not started."""
    LISTENING = "listening"
    """Listening was requested, and is not yet confirmed."""
    HYDRATING = "hydrating"
    """The log is being read; bells are kept aside."""
    LIVE = "live"
    """The mirror has everything from the last read, and bells extend it."""
    ENDED = "ended"
    """The mirror has everything, and the ending."""
    STALE = "stale"
    """The bells are lost."""
    GONE = "gone"
    """The log has no stream, or another one, or went back."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Add the stream to the bells, then call `heard()`."""


@dataclass(frozen=True, slots=True)
class Read:
    """
    Read the log, then call `read()` with the answer, or `unread()` if there was none.

    Attributes:
        after: Where to start; `None`: at the first event.
    """

    after: Cursor | None


@dataclass(frozen=True, slots=True)
class Wake:
    """Readers of the mirror have something to look at: events, the ending, or that the stream is gone."""


Step: TypeAlias = Listen | Read | Wake
"""What a driver does next. At most one `Read` is under way at a time."""


class Follower:
    """
    Keeps a mirror in step with its log. Each method takes an event and returns what to do.

    Attributes:
        phase: Its phase.
        mirror: The content; `None` before the first page of the log. A new object means that the log no longer has the old
            content, so a reader of the old one has to ask the log for its position.
        head: Head of the stream; `None` likewise.
        gone: Why it is `Phase.GONE`. For a log that went back, keep calling `poll()` while its producer may repair it.
        control: State of the inbox, as far as bells have reported it.
        running_until: When the lease of the writer ends, on the log's clock, as of the last answer.
        lease_left: Seconds of it that were left then.
        holes_filled: How often a read found more than the bells had brought, because one was late or lost.
    """

    def __init__(self) -> None:
        self.holes_filled = 0
        self._in_step = False  # bells have brought everything, as far as known
        self.phase = Phase.COLD
        self.mirror: Mirror | None = None
        self.head: Head | None = None
        self.gone: Gone | Unknown | None = None
        self.control: Control | None = None
        self.running_until: float | None = None
        self.lease_left = 0.0
        self._owned = False
        self._reading = False
        self._again = False  # the log may have grown since the current read began
        self._aside: list[Bell] = []
        self._aside_bytes = 0

    def __repr__(self) -> str:
        return f"Follower({self.phase.value}, mirror={self.mirror!r})"

    def listen(self) -> list[Step]:
        """Start, or start again after `deaf()`."""
        if self.phase not in (Phase.COLD, Phase.STALE):
            return []
        self.phase = Phase.LISTENING
        return [Listen()]

    def heard(self) -> list[Step]:
        """Listening is confirmed, so a read that starts now misses nothing."""
        if self.phase is not Phase.LISTENING:
            return []
        self.phase = Phase.HYDRATING
        return self._read()

    def deaf(self) -> list[Step]:
        """The bells are lost; call `listen()` when they are available again."""
        if self.phase not in (Phase.COLD, Phase.ENDED) and not self._owned:
            self.phase = Phase.STALE
            self._take_aside()
        return []

    def own(self, epoch: str, head: Head, *, n: int = 0) -> list[Step]:
        """
        The producer is in this process from now on: its appends are passed to `appended()`, and no bell is needed.

        Args:
            epoch: Epoch of the log.
            head: Head of the stream.
            n: The last event in the log when the producer got it; what the mirror lacks is read.
        """
        if self.mirror is None or self.mirror.epoch != epoch or self.mirror.n > n:
            # Ahead of the log: it lost its tail, and the producer continues from the rest.
            self.mirror = Mirror(epoch, head.framing)
        self.head, self.gone, self._owned, self._in_step = head, None, True, False
        if self.mirror.n >= n:
            self.phase = Phase.LIVE
            return [Wake()]
        self.phase = Phase.HYDRATING
        return [Wake(), *self._read()]

    def disown(self) -> list[Step]:
        """The producer has lost the stream to another process: follow that one."""
        if not self._owned:
            return []
        self._owned = False
        if self.phase in (Phase.ENDED, Phase.GONE):
            return []
        self.phase = Phase.LISTENING
        return [Listen()]

    def drop(self) -> None:
        """Stop: this follower is no longer driven."""
        self.phase, self.gone, self._owned = Phase.GONE, Unknown(), False
        self._take_aside()

    def appended(self, span: Span) -> list[Step]:
        """The log has acknowledged this span to the producer in this process."""
        return self._acknowledged(span, None)

    def finished(self, ending: Ending, n: int) -> list[Step]:
        """The log has acknowledged the ending after event `n` to the producer in this process."""
        return self._acknowledged(ending, n)

    def _acknowledged(self, item: Span | Ending, n: int | None) -> list[Step]:
        if self.mirror is None:
            return []
        match self.mirror.apply(item, n=n):
            case Grown():
                if isinstance(item, Ending):
                    self.phase = Phase.ENDED
                return [Wake()]
            case Known():
                return []
            case Hole():
                # The mirror is still being filled up to where the producer started.
                return self._read()

    def bell(self, bell: Bell) -> list[Step]:
        """A bell rang."""
        if isinstance(bell.item, Control):
            self.control = bell.item
            return []
        if self.phase in (Phase.COLD, Phase.STALE):
            return []
        if self.phase in (Phase.LISTENING, Phase.HYDRATING):
            size = len(bell.item.data) if isinstance(bell.item, Span) else 0
            is_full = len(self._aside) >= _ASIDE or self._aside_bytes + size > _ASIDE_BYTES
            if bell.item is None or isinstance(bell.item, Released) or is_full:
                self._again = True
            else:
                self._aside.append(bell)
                self._aside_bytes += size
            return []
        if bell.item is None or isinstance(bell.item, Released) or self.phase is Phase.GONE or self.mirror is None:
            return self._read()
        match self._apply(bell):
            case Grown():
                if self.mirror.ending is not None:
                    self.phase = Phase.ENDED
                return [Wake()]
            case Known():
                return []
            case Hole():
                if self.phase is Phase.LIVE:
                    self.phase = Phase.HYDRATING
                return self._read()

    def poll(self) -> list[Step]:
        """After a silence, read the log: the only way to notice that the last bell was lost. It also updates the lease."""
        return self._read() if self.phase in (Phase.LIVE, Phase.GONE) and not self._owned else []

    def confirm(self) -> list[Step]:
        """Check whether the log still has an ended stream: it may have been deleted, and its bell lost."""
        return self._read() if self.phase is Phase.ENDED else []

    def unread(self) -> list[Step]:
        """The read failed. Call `poll()` or `retry()` for another attempt."""
        self._reading = False
        return []

    def retry(self) -> list[Step]:
        """Read again after `unread()`, unless another read has started since, which sees as much."""
        return self._read() if self.phase in (Phase.HYDRATING, Phase.LIVE, Phase.GONE) and not self._reading else []

    def read(self, answer: Page | Gone | Unknown) -> list[Step]:
        """
        Process the answer of the log.

        Raises:
            LogUnavailable: The spans of the page do not continue what the log returned before; it is damaged.
        """
        self._reading = False
        if not isinstance(answer, Page):
            return self._missing(answer)
        if self.mirror is not None and self.mirror.epoch != answer.epoch:
            # It was requested before `own()` replaced the mirror. Request the part that the new one lacks.
            return self._settle([])
        if self.mirror is None:
            self.mirror = Mirror(answer.epoch, answer.head.framing)
        mirror = self.mirror
        if answer.ending is not None and mirror.n > answer.n:
            # The log lost its tail and ended before it. If only one event was lost, the ending has that event's number.
            gone = Gone(answer.oldest, answer.n, "went_back", answer.epoch, answer.head, answer.ending, None, answer.now)
            return self._missing(gone)
        if _is_other_history(mirror, answer):
            # It lost its tail without a trace, and another writer continued from there under the same epoch.
            gone = Gone(
                answer.oldest, answer.n, "other_epoch", answer.epoch, answer.head, answer.ending, answer.running_until, answer.now
            )
            return self._missing(gone)
        before, ended = mirror.n, mirror.ending
        back = self.gone is not None
        self.gone = None
        self.head, self.running_until, self.lease_left = answer.head, answer.running_until, answer.lease_left
        for span in answer.spans:
            self._sure(mirror.apply(span), f"the span of events {span.first} to {span.n}", mirror)
        if answer.ending is not None and mirror.n >= answer.n:
            self._sure(mirror.apply(answer.ending, n=answer.n), f"the ending after event {answer.n}", mirror)
        if mirror.b is None and mirror.n == answer.n:
            # Nothing is held, and readers that count bytes must notice that they miss some.
            mirror.b = answer.b
        grown = mirror.n > before or mirror.ending is not ended
        if grown and self._in_step:
            self.holes_filled += 1
            self._in_step = False  # count several pages once
        steps: list[Step] = [Wake()] if grown or back else []
        if mirror.n < answer.n and answer.spans:
            # The page was full.
            return [*steps, *self._read()]
        return self._settle(steps)

    def _settle(self, steps: list[Step]) -> list[Step]:
        """Apply the bells kept aside, and check whether anything is missing."""
        mirror = self.mirror
        if self.phase in (Phase.LISTENING, Phase.STALE, Phase.COLD) or mirror is None:
            # This read began before listening was confirmed: its content is good, but something may be missing after it.
            return steps
        hole = grown = False
        # In the order of the log, so that bells out of order make no hole.
        for bell in sorted(self._take_aside(), key=_rank):
            match self._apply(bell):
                case Hole():
                    hole = True
                case Grown():
                    grown = True
        if grown and Wake() not in steps:
            steps = [*steps, Wake()]
        if mirror.ending is not None:
            self.phase = Phase.ENDED
            again, self._again = self._again, False
            return [*steps, *(self._read() if again else [])]
        self.phase = Phase.HYDRATING if hole else Phase.LIVE
        self._in_step = not self._owned
        if hole or self._again:
            return [*steps, *self._read()]
        return steps

    def _missing(self, answer: Gone | Unknown) -> list[Step]:
        if isinstance(answer, Gone) and answer.why == "trimmed" and (self.mirror is None or self.mirror.epoch == answer.epoch):
            # The log lost its front: continue with the rest. Readers before it get `Gone` from the log.
            self.head = answer.head
            self.mirror = Mirror(answer.epoch, answer.head.framing, n=answer.oldest - 1)
            return [Wake(), *self._read()]
        self._take_aside()
        self._again = False
        first = self.phase is not Phase.GONE or self.gone != answer
        self.gone = answer
        if isinstance(answer, Gone) and answer.why == "went_back":
            self.running_until = answer.running_until
            self.lease_left = max(0.0, (answer.running_until or 0.0) - answer.now)
        if self.phase not in (Phase.STALE, Phase.LISTENING, Phase.COLD):
            self.phase = Phase.GONE
        return [Wake()] if first else []

    def _apply(self, bell: Bell) -> Grown | Known | Hole:
        assert self.mirror is not None and isinstance(bell.item, Span | Ending)
        return self.mirror.apply(bell.item, epoch=bell.epoch, n=bell.n if isinstance(bell.item, Ending) else None)

    def _take_aside(self) -> list[Bell]:
        aside, self._aside, self._aside_bytes = self._aside, [], 0
        return aside

    def _read(self) -> list[Step]:
        if self._reading:
            self._again = True
            return []
        self._reading, self._again = True, False
        mirror = self.mirror
        return [Read(None if mirror is None else Cursor(mirror.epoch, mirror.n))]

    def _sure(self, taken: Grown | Known | Hole, what: str, mirror: Mirror) -> None:
        if isinstance(taken, Hole):
            raise LogUnavailable(
                f"the log of epoch {mirror.epoch} is damaged: {what} does not continue event {mirror.n} at byte {mirror.b}; "
                "delete() the stream"
            )


def _is_other_history(mirror: Mirror, page: Page) -> bool:
    """Whether the log has other events under the numbers of the mirror: their bytes end elsewhere."""
    if mirror.b is None:
        return False
    if page.n == mirror.n:
        return page.b != mirror.b
    first = page.spans[0] if page.spans else None
    return first is not None and first.first <= mirror.n + 1 <= first.n and spans_after(first, mirror.n).start != mirror.b


def _rank(bell: Bell) -> tuple[int, int]:
    if isinstance(bell.item, Span):
        return bell.item.n, 0
    return (bell.n if bell.n is not None else 0), 1
