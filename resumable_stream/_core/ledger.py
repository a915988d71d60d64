"""
What was delivered, and therefore what may still come: position, duplicates, gaps.

    position = cursor + the events delivered since it last moved

The ledger sees each batch once, before the caller does. In the steady state (first connection, ids in order) a batch costs
a few list operations and one loop. After a reconnect it looks at every event, because there the server may send again
what we hold; that lasts for `window` events, since late repeats happen where replay meets live.

Three ways of knowing a repeat after a reconnect, tried in this order:

1. *The overlap.* Events without an id of their own can only be told apart by content and order: those that followed the
   cursor are expected again, in order, and dropped while they match (`Prefix`).
2. *The beginning.* A server that ignores the cursor starts over. Its answer begins as the stream began;
   then everything delivered is expected again.
3. *Identity.* An id or number seen before is a repeat if the content is the same too.

Within one answer, the first included, a server may repeat what it sent where its replay meets what is live: see `seams`.

What would break it: delivering an event before `receive()` has seen it, or feeding two connections at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, Literal, NamedTuple

from .._checkpoint import CORE_EXTRA, Checkpoint
from .._contract import ResumeProtocol
from .._errors import GapError, ReplayDiverged, ResumableStreamError
from .._events import Gap
from .._notices import CursorIgnored, DuplicateDropped, GapFound, Notice, NumberingStopped, NumberOutOfOrder
from .memory import LONGEST_ID, Memory
from .overlap import Prefix, SinceLog
from .seams import TRIM, Seams

__all__ = ["COUNTING", "NOWHERE", "NUMBERED", "OPAQUE", "PLAIN", "HoleFound", "Ledger", "Place", "StartedOver"]

# 8: three in a row happen by chance with random ids, eight do not (rule 6).
WATCH_AFTER: Final = 8
# In a batch that begins carefully: so many items are looked at before asking whether the rest may be taken as one.
SETTLE: Final = 32
# The beginning is known by its leading events up to the first that has an id, but no more than 16: so many may be held back.
BEGINNING: Final = 16


class Place(NamedTuple):
    """A position: see `Checkpoint` for the fields. `log`, when it was `logged` long, stands for `since`."""

    cursor: str | None
    sequence: int | None
    offset: int
    log: SinceLog | None
    logged: int


@dataclass(frozen=True, slots=True)
class HoleFound:
    """Events are missing, and the server has not been asked for them yet."""

    gap: Gap


@dataclass(frozen=True, slots=True)
class StartedOver:
    """The answer to the question "is there more?" began as the stream began: the server ignores the cursor."""


class Stray(NamedTuple):
    """An item of another log: where it is in the batch, its cursor, and one of ours."""

    at: int
    cursor: str
    before: str | None


# One event in so many takes the careful way, which keeps the ids that are known bounded.
_TRIM_BITS: Final = TRIM - 1

# How a batch is received. All but the first are the steady state: nothing can repeat.
CAREFUL: Final = 0
RAW: Final = 1  # bytes
PLAIN: Final = 2  # no ids
OPAQUE: Final = 3  # ids
COUNTING: Final = 4  # ids that count
NUMBERED: Final = 5  # numbers that are promised to count

# A `Place` as it is kept: a plain tuple costs a fifth of a named one, and one is made for each batch.
Tip = tuple[str | None, int | None, int, SinceLog | None, int]
NOWHERE: Final[Tip] = (None, None, 0, None, 0)

Problem = ResumableStreamError | HoleFound | StartedOver


class Ledger:
    """
    The book of one stream.

    Args:
        protocol: Whose numbers and ids these are.
        window: `Limits.window`.
        refetch: A hole can be asked for again. The machine keeps it true only while the stream can be resumed.
        notices: Where notices go; the machine hands them on.
    """

    def __init__(
        self, protocol: ResumeProtocol, *, window: int, on_gap: Literal["refetch", "deliver"], notices: list[Notice]
    ) -> None:
        self._protocol = protocol
        self._placed = protocol.places
        self._lineage = protocol.lineage if type(protocol).lineage is not ResumeProtocol.lineage else None
        self._window = window
        self._on_gap = on_gap
        self._unread = False
        self._notices = notices
        self.refetch = True
        self.problem: Problem | None = None
        self.duplicates = 0
        self.gaps = 0
        self.cursor_ignored = False
        self._asking = False
        self._batch: Sequence[Any] = ()
        self._base: Tip = NOWHERE
        self._tip: Tip = NOWHERE
        self._committed = Place._make(NOWHERE)
        self._committed_since: tuple[str, ...] = ()
        self._opened_at = 0
        # What came before may come again on this connection: numbers are held to their promise.
        self._replayed = self._joins = False
        self._since_at = 0
        self._reset_next: int | None = None
        self._gap_next: Gap | None = None
        self._asked: tuple[int | None, int] | None = None
        # After a reset: how the state that it replaces began, and how many events of this connection say no more than that.
        self._void: list[tuple[str | None, str, int | None]] = []
        self._echoes = 0
        self._resets = 0
        self._forget()

    def _forget(self) -> None:
        raw = self._protocol.framing == "raw"
        self._raw = raw
        self._beginning: list[tuple[str | None, str, int | None]] | None = None if raw else []
        self._beginning_open = not raw
        self._memory = Memory(self._window, self._protocol.fingerprint, unique=self._protocol.unique_ids)
        self._keep = self._memory.items.append
        self._seams = Seams(self._memory.oldest_first, self._name_of, self._memory.fingerprint, window=self._window)
        self._enter_id = self._seams.enter if self._unread else self._seams.ids.setdefault
        # Events that the last connection held when it was cut. They count only if the next one brings nothing new.
        self._unproven: list[Any] = []
        self._dropped: Any = None  # the latest repeat, until an event is delivered
        self._ids_behind = False
        self._prefix: Prefix | None = None
        self._replayed_to: int | None = None
        self._start: int | None = None
        self._held: list[Any] = []
        self._overlap = 0
        self._moved_here = False
        mode = self._protocol.sequence
        self._promised = mode in ("contiguous", "increasing")
        self._contiguous = mode == "contiguous"
        self._watching = mode == "auto"
        self._run = 0
        self._number: int | None = None
        self._lane = RAW if raw else CAREFUL

    # --- positions

    @property
    def cursor(self) -> str | None:
        return self._tip[0]

    @property
    def offset(self) -> int:
        return self._tip[2]

    @property
    def sequence(self) -> int | None:
        return self._tip[1]

    @property
    def fresh(self) -> int:
        """Events delivered on this connection."""
        return self.offset - self._opened_at

    @property
    def nearer(self) -> bool:
        """The cursor has moved, within a replay, past events that we hold: less of it is left to come."""
        return self._tip[4] < self._since_at

    @property
    def progress(self) -> int:
        """How many of these say something new: the state that we held, told once more after a reset, does not."""
        return self.fresh - self._echoes

    @property
    def only_resets(self) -> bool:
        """All that this connection has delivered made void what came before."""
        return self._resets > 0 and self.fresh <= self._resets

    @property
    def pending_reset(self) -> int | None:
        """The next event will say that what was delivered is void from there on."""
        return self._reset_next

    @property
    def beyond_gap(self) -> bool:
        """A hole was granted, and nothing beyond it has come yet: what follows the cursor is not to be had."""
        return self._gap_next is not None

    @property
    def latest(self) -> Sequence[Any]:
        """The latest batch."""
        return self._batch

    def holds(self, item: Any) -> bool:
        """It is held back until it is known whether it is a repeat."""
        return any(held is item for held in (*self._held, *self._seams.held))

    def release(self) -> Sequence[Any]:
        """
        Deliver what was held as a possible repeat, and was not proven to be one: the stream is over.

        Returns:
            The events to deliver, positioned.
        """
        held = self._seams.cut() or self._unproven
        self._unproven = []
        if not held or self.problem is not None:
            return ()
        self._look_closely()
        self._base = self._tip
        out: list[Any] = []
        for item in held:
            self._enter(item, out, judged=True)
        self._batch = out
        return out

    @property
    def seams(self) -> Seams:
        """What its ids are worth."""
        return self._seams

    def expect_unread(self) -> None:
        """Events may go unread, so that their ids are known as bytes only."""
        self._unread = True
        self._enter_id = self._seams.enter

    @property
    def behind(self) -> bool:
        """A replay from zero has not reached our place yet."""
        return self._protocol.replays and self._prefix is not None

    @property
    def numbered(self) -> bool:
        """Its numbers prove that nothing is missing."""
        return self._contiguous or self._run >= WATCH_AFTER

    @property
    def lane(self) -> int:
        """How the next batch is received; `CAREFUL`, or one of the steady states."""
        return self._lane

    def pass_over(self, count: int, unread: bytes, read: Callable[[bytes, int, int | None], Iterable[Any]]) -> None:
        """
        So many events of the steady state were delivered, and have not been read.

        Args:
            read: Makes events of their bytes, given the offset of the first and, where they count, its number.
        """
        cursor, number, offset, _, _ = self._tip
        first = None
        if number is not None and self._lane in (COUNTING, NUMBERED):
            first = number + 1
            number += count
            cursor = str(number)
        self._tip = (cursor, number, offset + count, None, 0)
        if self._lane != PLAIN:
            self._memory.remember_unread(partial(read, unread, offset, first), size=len(unread), stop=offset + count)

    @property
    def plain(self) -> bool:
        """Its events have no ids, so far; the first that has one is looked at carefully."""
        return self._lane == PLAIN

    def place(self, taken: int, batch: Sequence[Any] | None = None) -> Place:
        """
        The position when `taken` items of a batch are taken.

        Args:
            batch: The one that the caller has in hand. If it is not the latest, an interrupt came before that one was
                handed out: then all before it is taken, and nothing of it. `None`: the latest.
        """
        latest = self._batch
        if taken <= 0 or (batch is not None and batch is not latest):
            return Place._make(self._base)
        if taken >= len(latest):
            return Place._make(self._tip)
        return self._behind(latest[taken - 1])

    def _behind(self, item: Any) -> Place:
        if self._batch and item is self._batch[-1]:
            return Place._make(self._tip)
        log, logged = item.since or (None, 0)
        sequence = item.sequence
        if self.sequence is not None and (sequence is None or (self._promised and item.moves is False)):
            sequence = self._sequence_before(item)
        elif not (self._placed or self._raw or self._run >= WATCH_AFTER):
            sequence = None
        return Place(item.cursor, sequence, item.offset + 1, log, logged)

    def _sequence_before(self, item: Any) -> int | None:
        for other in self._memory.newest_first():
            if other.offset < item.offset and other.sequence is not None and getattr(other, "moves", None) is not False:
                return int(other.sequence)
        return self._base[1]

    def commit(self, item: Any = None, *, taken: int = 0, batch: Sequence[Any] | None = None) -> None:
        """
        Move the committed position behind `item`, or behind what is taken.

        Raises:
            ValueError: The item is of another stream, or too old.
        """
        place = self.place(taken, batch) if item is None else self._behind(item)
        if place.offset > self.offset:
            raise ValueError(f"cannot commit the event at offset {place.offset - 1}: only {self.offset} events were delivered")
        # Later the log may have folded what belongs to this place.
        self._committed_since = self._since(place)
        self._committed = place

    @property
    def committed(self) -> Place:
        return self._committed

    def since(self, place: Place) -> tuple[str, ...]:
        """Fingerprints of what was delivered since the cursor of `place` moved, in the form of `Checkpoint.since`."""
        return self._committed_since if place is self._committed else self._since(place)

    def _since(self, place: Place) -> tuple[str, ...]:
        return place.log.upto(place.logged) if place.log is not None else ()

    def recent_ids(self, place: Place) -> tuple[tuple[str, str], ...]:
        """`(id, fingerprint)` of the newest events before `place` that have an id, oldest first, at most 64."""
        return self._memory.recent_ids(place.offset)

    def beginning(self) -> str | None:
        """The stream's first event, as text for a checkpoint; `None` when it has no id to be known by."""
        if not self._beginning or self._beginning[0][0] is None:
            return None
        own_id, fingerprint, _ = self._beginning[0]
        # An aid only: a server that numbers its events by whole documents goes without.
        return f"{fingerprint} {own_id}" if own_id is not None and len(own_id) <= 256 else None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where another process stopped."""
        log = SinceLog.parse(checkpoint.since, self._window) if checkpoint.since else None
        self._base = self._tip = (checkpoint.cursor, checkpoint.sequence, checkpoint.offset, log, len(log) if log else 0)
        self._committed = Place._make(self._tip)
        self._committed_since = checkpoint.since
        self._opened_at = checkpoint.offset
        self._number = checkpoint.sequence
        if self._watching and checkpoint.sequence is not None:
            self._run = WATCH_AFTER
        self._memory.restore(checkpoint.recent_ids)
        self._seams.restore(own_id for own_id, _ in checkpoint.recent_ids)
        self._seams.latest = None if self._placed else checkpoint.cursor
        self._beginning_open = checkpoint.offset == 0 and not self._raw
        if (reset := checkpoint.extra.get(CORE_EXTRA[3], "")).isdecimal():
            self._reset_next = int(reset[:18])
        if first := checkpoint.extra.get(CORE_EXTRA[2]):
            fingerprint, _, own_id = first.partition(" ")
            self._beginning = [(own_id, fingerprint, None)]

    # --- connections

    def open_connection(
        self, *, resuming: bool, asking: bool, reaches_back: bool = False, stored: bool = False, joins: bool = False
    ) -> None:
        """
        A new answer begins.

        Args:
            resuming: From the cursor.
            asking: Only to learn whether there is more.
            reaches_back: It may begin with the beginning, and that is no sign that the server ignores the cursor.
            stored: It is the stored result, which has to be whole.
            joins: It may be of something that was running already.
        """
        self._base, self._batch = self._tip, ()
        self.problem = None
        self._opened_at = self.offset
        self._since_at = self._tip[4]
        self._asking = asking
        self._held = []
        self._start = None
        self._prefix = None
        self._replayed_to = None
        self._moved_here = False
        self._unproven = self._seams.cut() or self._unproven
        self._dropped = None
        self._replayed = stored or (resuming and self.offset > 0)
        self._joins = joins
        self._echoes = 0
        self._resets = 0
        if self._beginning:
            # It goes on behind the reset.
            self._void = []
        if self._raw or not resuming or self.offset == 0:
            return
        self._look_closely()
        self._overlap = self._window
        _, _, _, log, logged = self._tip
        if self._protocol.replays:
            if log is not None:
                self._prefix = Prefix(log, strict=True)
            return
        if log is not None and logged:
            self._prefix = Prefix(log, strict=False)
        known = any(own_id is not None or number is not None for own_id, _, number in self._beginning or ())
        if known and self.cursor is not None and not reaches_back:
            # Content alone tells no beginning: an answer may well say the same twice.
            self._start = 0

    def restart(self, *, offset: int, anew: bool = False) -> None:
        """
        What was delivered is void from `offset` on; the next item says so.

        Args:
            anew: It is made once more, and no state of what was: all of it is new.
        """
        self._base, self._batch = self._tip, ()
        self._void = [] if anew else (self._beginning or self._void)
        self._forget()
        self._base = self._tip = (None, None, offset, None, 0)
        self._opened_at = offset
        self._reset_next = offset

    def condense(self) -> None:
        """Called once per `KEPT_BYTES` received."""
        self._memory.condense()

    # --- receiving

    def receive(self, items: Sequence[Any], silent: Sequence[tuple[int, str]] = ()) -> Sequence[Any]:
        """
        Enter a batch.

        Args:
            items: Complete items in the order they came, placed by the protocol.
            silent: Blocks that carried an id and no data, as (items in front of it, id).

        Returns:
            The items to deliver, positioned. When it is cut short, `problem` says why.
        """
        # `_batch` and `_tip` change together, when a batch is entered: an interrupt finds the place before it or behind it.
        self._base = self._tip
        if not items and not silent:
            return items
        stray = self._first_stray(items) if self._lineage is not None else None
        if stray is not None:
            items, silent = items[: stray.at], [move for move in silent if move[0] <= stray.at]
        out = None if self._lane == CAREFUL or silent or not items else self._receive_steadily(items, self._lane)
        if out is None:
            out = self._receive_carefully(items, silent)
        if stray is not None and self.problem is None:
            self.problem = ReplayDiverged(
                f"the server continues another log: behind cursor {stray.before!r} came an event with {stray.cursor!r}; "
                "the two do not belong to one stream"
            )
        return out

    def _first_stray(self, items: Sequence[Any]) -> Stray | None:
        """The first item whose cursor is one of another log."""
        assert self._lineage is not None
        before = self.cursor
        own = self._lineage(before) if before is not None else ""
        for at, item in enumerate(items):
            cursor = item.cursor
            if cursor is None:
                continue
            if not own:
                own = self._lineage(cursor)
            elif not cursor.startswith(own):
                return Stray(at, cursor, before)
            before = cursor
        return None

    def receive_late(self, items: Sequence[Any]) -> None:
        """Enter events that were delivered before they were read: nothing of them is a repeat."""
        self._base = self._tip
        if self._receive_steadily(items, self._lane, entered=True) is None:
            self._receive_carefully(items, ())

    def receive_one(self, item: Any, items: Sequence[Any]) -> bool:
        """
        `receive()` for a batch of one event, which is what a live stream is made of. False: call `receive()`.

        Flat on purpose: what a call costs here is paid for every event.
        """
        lane = self._lane
        base = self._tip
        _, number, offset, _, _ = base
        cursor = item.own_id
        if lane == COUNTING:
            number += 1  # type: ignore[operator]  # in this lane there is one
            if cursor != str(number):
                return False
            item.sequence = number
        elif lane == OPAQUE:
            if not cursor or not offset & _TRIM_BITS:
                return False
            if self._enter_id(cursor, offset) != offset and (cursor != base[0] or not self._seams.shared):
                return False
        elif lane == NUMBERED:
            number += 1  # type: ignore[operator]
            if item.sequence != number or item.id:
                return False
            cursor = str(number)
        elif lane != PLAIN or cursor is not None or item.id:
            return False
        item.offset = offset
        self._base = base
        self._batch = items
        self._tip = (cursor, number, offset + 1, None, 0)
        if lane != PLAIN:
            self._keep(item)
        return True

    def _receive_steadily(self, items: Sequence[Any], lane: int, *, entered: bool = False) -> Sequence[Any] | None:
        """
        The steady state: no repeat can come, only order has to be watched. `None`: look more carefully.

        Args:
            entered: Their ids are known already, and were new.

        A loop that sets slots from ranges costs half of one that counts: `for item, item.offset in zip(…)`.
        """
        _, number, offset, _, _ = self._tip
        last = items[-1]
        size = len(items)
        offsets = range(offset, offset + size)
        if lane == RAW:
            for item, item.offset in zip(items, offsets):  # type: ignore[has-type]  # noqa: B007, B905
                pass
            if self._reset_next is not None:
                items[0].reset, self._reset_next = True, None
            self._batch = items
            self._tip = (last.cursor, last.sequence + len(last.data), offset + size, None, 0)
            return items
        cursor: str | None = last.id
        if lane == PLAIN:
            if cursor or [item.own_id for item in items] != [None] * size:
                return None
            for item, item.offset in zip(items, offsets):  # noqa: B007, B905
                pass
            self._batch = items
            self._tip = (None, None, offset + size, None, 0)
            return items
        if lane == COUNTING:
            assert number is not None
            numbers = range(number + 1, number + 1 + size)
            if [item.own_id for item in items] != list(map(str, numbers)):
                return None
            number += size
            for item, item.offset, item.sequence in zip(items, offsets, numbers):  # noqa: B007, B905
                pass
            self._batch = items
            self._tip = (cursor, number, offset + size, None, 0)
            self._memory.items.extend(items)
            return items
        if lane == OPAQUE:
            ids = [item.own_id for item in items]
            if None in ids or "" in ids or not (entered or self._are_new(ids)):
                return None
        else:
            assert number is not None
            numbers = range(number + 1, number + 1 + size)
            if [item.sequence for item in items] != list(numbers):
                return None
            number += size
            cursor = last.cursor if cursor else str(number)
        for item, item.offset in zip(items, offsets):  # noqa: B007, B905
            pass
        self._batch = items
        self._tip = (cursor, number, offset + size, None, 0)
        self._memory.items.extend(items)
        return items

    def _are_new(self, ids: list[str]) -> bool:
        """Ids that may all be entered without a look at their events. Where events share ids, one may follow itself."""
        if self._seams.shared:
            ids = [own_id for own_id, before in zip(ids, [self._tip[0], *ids], strict=False) if own_id != before]
        new = set(ids)
        known = self._seams.ids
        if len(new) != len(ids) or not known.keys().isdisjoint(new):
            return False
        if self._unread and not self._seams.raw.keys().isdisjoint(own_id.encode("utf-8", "surrogatepass") for own_id in new):
            return False
        known.update(zip(ids, count(self.offset)))
        self._seams.trim()
        return True

    def _receive_carefully(self, items: Sequence[Any], silent: Sequence[tuple[int, str]]) -> Sequence[Any]:
        self._look_closely()
        if (log := self._tip[3]) is not None:
            log.fold()
        before = self._snapshot()
        try:
            out = self._go_through(items, silent)
        except BaseException:
            # A bug of the caller's protocol, or Ctrl-C: as if the batch had not come. The connection has to end.
            self._roll_back(before)
            raise
        if items:
            self._batch = out
        elif not self._batch:
            # No event says where it leads: it was taken as soon as it came.
            self._base = self._tip
        return out

    def _go_through(self, items: Sequence[Any], silent: Sequence[tuple[int, str]]) -> Sequence[Any]:
        out: list[Any] = []
        moves = deque(silent)
        for index, item in enumerate(items):
            while moves and moves[0][0] <= index:
                self._move(moves.popleft()[1])
            if not self._admit(item, out):
                break
            if index % SETTLE == SETTLE - 1 and not moves and (lane := self._choose_lane()) != CAREFUL:
                # The rest of a long batch need not be looked at one by one.
                rest = self._receive_steadily(items[index + 1 :], lane) if index + 1 < len(items) else ()
                if rest is not None:
                    out += rest
                    break
        else:
            for _, cursor in moves:
                self._move(cursor)
        self._lane = self._choose_lane()
        if self._lane != CAREFUL:
            self._memory.steady()
        self._seams.trim()
        return out

    def _snapshot(self) -> tuple[Any, ...]:
        beginning = len(self._beginning) if self._beginning is not None else 0
        return (
            *(self._tip, self._batch, self._lane, self._number, self._run, self._watching, self._overlap),
            *(self._reset_next, self._gap_next, self.problem, self.duplicates, self.gaps),
            *(self._beginning_open, beginning, self._memory.remembered, self._void, self._echoes),
        )

    def _roll_back(self, before: tuple[Any, ...]) -> None:
        self._tip, self._batch, self._lane, self._number, self._run, self._watching, self._overlap = before[:7]
        self._reset_next, self._gap_next, self.problem, self.duplicates, self.gaps = before[7:12]
        self._beginning_open, beginning, remembered, self._void, self._echoes = before[12:]
        if self._beginning is not None:
            del self._beginning[beginning:]
        _, _, _, log, logged = self._tip
        if log is not None:
            log.cut(logged)
        self._memory.forget_since(remembered)
        self._seams.cut()

    def _look_closely(self) -> None:
        """Leave the steady state, which keeps its count in the position alone."""
        if self._lane in (COUNTING, NUMBERED):
            self._number = self.sequence
        if self._lane == COUNTING:
            self._ids_behind = True
        if self._lane in (COUNTING, OPAQUE):
            self._seams.latest = self.cursor
        if self._lane != RAW:
            self._lane = CAREFUL

    def _choose_lane(self) -> int:
        """Careful, unless nothing may repeat, the beginning is known, numbers are in their stride, and no log is kept."""
        protocol = self._protocol
        cursor, _, _, log, _ = self._tip
        unsettled = (
            self._overlap
            or self._prefix is not None
            or self._start is not None
            or self._seams.open
            or self._beginning_open
            or self.problem is not None
            or self._reset_next is not None
            or self._gap_next is not None
            or log is not None
        )
        if unsettled or protocol.unique_ids or protocol.replays:
            return CAREFUL
        if self._contiguous:
            return NUMBERED if self._number is not None and cursor is not None else CAREFUL
        if self._placed and not (protocol.counted and cursor is None and not self._promised):
            return CAREFUL
        if cursor is None:
            return PLAIN
        if self._watching:
            return COUNTING if self._run >= WATCH_AFTER else CAREFUL
        # Long ids are kept as digests, which this lane does not look for.
        return OPAQUE if len(cursor) <= LONGEST_ID else CAREFUL

    def _admit(self, item: Any, out: list[Any]) -> bool:
        """Deliver, hold back or drop one item. False: nothing behind it may be delivered."""
        queue = [item]
        if self._start is not None:
            verdict = self._match_beginning(item)
            if verdict is not None:
                return verdict
            queue = [*self._held, item]
            self._held = []
        for each in queue:
            if self._seams.open and self._in_run(each, out):
                continue
            if self._replayed_to is not None and not self._identifiable(each):
                self._prefix = self._run_behind(self._replayed_to)
                self._replayed_to = None
            prefix, delivered = self._prefix, len(out)
            # What has an identity is known by it; order is for the rest, unless all of the stream is expected again.
            by_order = prefix is not None and (prefix.whole or not self._identifiable(each))
            verdict = self._match_prefix(each) if by_order else None
            if verdict is None:
                verdict = self._enter(each, out)
                if len(out) > delivered and (prefix is None or not prefix.whole):
                    self._prefix = self._replayed_to = None
            if not verdict:
                return False
        return True

    def _identifiable(self, item: Any) -> bool:
        return bool(item.own_id) or (self._promised and item.sequence is not None)

    def _match_beginning(self, item: Any) -> bool | None:
        """Does the answer begin as the stream began? True: held back or dropped, False: stop, None: no."""
        assert self._start is not None and self._beginning is not None
        expected_again = self._prefix is not None and not self._held and self._prefix.expects(self._key(item))
        if expected_again or not self._begins_with(item):
            self._start = None
            return None
        self._held.append(item)
        self._start += 1
        return self._started_over() if self._start == len(self._beginning) else True

    def _match_prefix(self, item: Any) -> bool | None:
        """Is it an event that was expected again? True: dropped, False: stop, None: no."""
        prefix = self._prefix
        assert prefix is not None
        match prefix.match(self._key(item)):
            case "same":
                if prefix.done:
                    self._prefix = None
                self._drop(item)
                if self._moved_here and not self._protocol.replays:
                    # The cursor has moved ahead of an event that we hold: it must be expected again next time.
                    self._extend(self._fingerprint(item))
                return True
            case "over":
                self._prefix = None
                return None
            case _ if self._came_before(item, prefix):
                # A seam within the replay: what follows it is still what was expected here.
                prefix.rewind()
                self._drop(item)
                return True
            case _:
                return self._diverged(item)

    def _came_before(self, item: Any, prefix: Prefix) -> bool:
        """In a replay from the start: has this answer brought the event already? By its id, where that names one event."""
        if not (prefix.whole and item.own_id):
            return False
        known = self._memory.find(item.own_id)
        return (
            known is not None
            and 0 <= known.offset < prefix.seen - 1
            and self._memory.fingerprint(known) == self._memory.fingerprint(item)
        )

    def _diverged(self, item: Any) -> bool:
        self.problem = ReplayDiverged(
            f"the server's replay differs from what it sent before: behind event {self.offset} came one with "
            f"id {item.own_id or item.sequence!r} and other content; the two do not belong to one stream"
        )
        return False

    def _started_over(self) -> bool:
        """The whole beginning came again: the server ignores the cursor."""
        self.cursor_ignored = True
        self._notices.append(CursorIgnored())
        self._start = None
        held, self._held = self._held, []
        if self._asking:
            self.problem = StartedOver()
            return False
        self._prefix = self._whole_history()
        for item in held:
            verdict = self._match_prefix(item) if self._prefix is not None else True
            if not verdict:
                return False
        return True

    def _whole_history(self) -> Prefix | None:
        """Everything delivered, as events expected again; what is no longer remembered is counted."""
        log = SinceLog(self._window)
        oldest = self.offset
        for seen in self._memory.newest_first():
            if seen.offset != oldest - 1:
                break
            oldest = seen.offset
            log.items.append(self._key(seen))
        log.items.reverse()
        prefix = Prefix(log, strict=True, unknown=oldest)
        return None if prefix.done else prefix

    def _run_behind(self, offset: int) -> Prefix | None:
        """The events from `offset` on that have no identity, as events expected again; the next one that has ends it."""
        log = SinceLog(self._window)
        for seen in self._memory.starting_at(offset):
            if self._identifiable(seen):
                break
            log.items.append(self._key(seen))
        return Prefix(log, strict=False) if log.items else None

    def _in_run(self, item: Any, out: list[Any]) -> bool:
        """Is it part of the run that is held? Otherwise that is over, and what was held is entered."""
        seams = self._seams
        if seams.follow(item):
            for repeat in seams.repeats():
                self._drop(repeat)
            return True
        held, repeats = seams.over()
        for each in held:
            if repeats:
                self._drop(each)
            else:
                self._enter(each, out, judged=True)
        return False

    def _enter(self, item: Any, out: list[Any], *, judged: bool = False) -> bool:
        """
        Deliver, hold or drop an item that order alone does not make a repeat.

        Args:
            judged: It was held, and is none.
        """
        if self._watching:
            if not self._enter_watched(item, judged=judged):
                return True
        elif self._promised and item.sequence is not None:
            verdict = self._enter_numbered(item, judged=judged)
            if verdict is not None:
                return verdict
        elif not judged and self._repeats(item):
            return True
        self._deliver(item, out)
        return True

    def _repeats(self, item: Any) -> bool:
        """Drop it if its id and content were delivered before, or hold it if that may be so."""
        own_id, unique, seams = item.own_id, self._protocol.unique_ids, self._seams
        if not own_id or not (unique or self._overlap or seams.knows(own_id)):
            return False
        memory = self._memory
        known = memory.find(own_id)
        if known is None and not memory.is_ambiguous(own_id):
            return False
        same = known is not None and memory.fingerprint(known) == self._fingerprint(item)
        before = known is not None and known.offset < self._opened_at
        trusted = seams.trusted or (self._run >= WATCH_AFTER and not seams.shared)
        if same and (unique or trusted or (before and self._overlap)):
            one_name = seams.shared or len(seams.ids) + len(seams.raw) < 2
            if one_name and not unique and _counter(own_id) is None and self._is_same(self._dropped, item):
                # Right after its equal was dropped, and no other id came yet: the id may be that of a message, and this its next
                # word.
                # A number that comes twice is a repeat: what counts does not name a message.
                seams.shared = True
                return False
            self._drop(item)
            self._replayed_from(known)
            return True
        if unique:
            return False
        if own_id != seams.latest:
            held = seams.begin(item)
        else:
            # Alone it proves nothing, unless events are expected to come again and ids have not been shared.
            held = bool(same and self._overlap and not seams.shared) and seams.begin(item, single=True)
        if not held:
            seams.shared = True
        return held

    def _is_same(self, dropped: Any, item: Any) -> bool:
        return (
            dropped is not None
            and dropped.own_id == item.own_id
            and self._memory.fingerprint(dropped) == self._memory.fingerprint(item)
        )

    def _replayed_from(self, known: Any) -> None:
        """The server replays from there: events without an identity behind it are known by their order."""
        if known is not None and known.offset >= 0 and (self._prefix is None or not self._prefix.whole):
            self._replayed_to = known.offset + 1

    def _enter_watched(self, item: Any, *, judged: bool) -> bool:
        """`sequence="auto"`: learn whether the ids count, and mark a jump. False: held, or dropped as a repeat."""
        own_id = item.own_id
        if own_id is None:
            return True
        number = _counter(own_id)
        expected = None if self._number is None else self._number + 1
        goes_on = self._run >= WATCH_AFTER and expected is not None and number is not None and number >= expected
        if not (judged or goes_on):
            if self._ids_behind:
                # While they counted, nothing but the count was kept.
                self._ids_behind = False
                self._seams.restore(self._memory.ids())
            if self._repeats(item):
                return False
        if number is None or (expected is not None and number != expected and self._run < WATCH_AFTER):
            if self._run >= WATCH_AFTER:
                assert expected is not None
                self._notices.append(NumberingStopped(expected, own_id))
            self._stop_watching()
            return True
        if expected is not None and number != expected:
            if number < expected:
                # The counter started again: it never was a promise.
                self._notices.append(NumberingStopped(expected, own_id))
                self._stop_watching()
                return True
            item.gap = Gap(expected=expected, received=number, after=self.cursor)
            self.gaps += 1
            self._notices.append(GapFound(item.gap, False))
        item.sequence = self._number = number
        self._run = min(self._run + 1, WATCH_AFTER)
        return True

    def _stop_watching(self) -> None:
        self._watching = False
        self._run = 0
        self._number = None

    def _enter_numbered(self, item: Any, *, judged: bool) -> bool | None:
        """Numbers are promised: None deliver, True held or dropped, False stop."""
        number = item.sequence
        last = self._number
        if last is not None and number <= last:
            return self._enter_old_number(item, number, last, judged=judged)
        expected = self._protocol.first_sequence if last is None else last + 1
        if self._contiguous and expected is not None and number > expected:
            gap = Gap(expected=expected, received=number, after=self.cursor)
            if self.refetch or self._replayed:
                return self.hole(gap)
            # Nobody can be asked, and nothing was sent twice: how the provider counts is its own business.
            item.gap = gap
            self.gaps += 1
            self._notices.append(GapFound(gap, False))
        return None

    def _enter_old_number(self, item: Any, number: int, last: int, *, judged: bool) -> bool | None:
        """A number that was passed: a repeat, a divergence, or, where nothing was replayed, the provider's own affair."""
        known = self._memory.find(item.own_id or str(number))
        # One that the window has forgotten is believed in a replay; without one it cannot be a repeat.
        same = bool(self._overlap) if known is None else self._memory.fingerprint(known) == self._fingerprint(item)
        if self._overlap and same:
            self._drop(item)
            self._replayed_from(known)
            return True
        if self._overlap and known is not None and known.offset < self._opened_at:
            return self._diverged(item)
        # One event that shares its number with the one before it is a repeat only where something may have been running already.
        if not judged and (number < last or self._joins) and self._seams.begin(item, single=self._joins):
            return True
        self._notices.append(NumberOutOfOrder(last + 1, number))
        # The place stays where the numbers lead.
        item.moves = False
        return None

    def hole(self, gap: Gap) -> bool | None:
        """Events are missing here: ask once, then do as the caller chose. None: go on, the next item carries the gap."""
        key = (gap.expected, self.offset)
        if self.refetch and self._asked != key:
            self._asked = key
            self.gaps += 1
            self._notices.append(GapFound(gap, True))
            self.problem = HoleFound(gap)
            return False
        if self._asked != key:
            self.gaps += 1
        self._notices.append(GapFound(gap, False))
        if self._on_gap == "deliver":
            self._gap_next = gap
            return None
        where = f"after cursor {gap.after!r}" if gap.after is not None else "at the start of the stream"
        if gap.missing is None:
            text = f"the server reports lost history {where} and cannot replay it"
        else:
            text = f"expected sequence {gap.expected}, received {gap.received}: {gap.missing} events missing {where}"
        self.problem = GapError(text, expected=gap.expected, received=gap.received)
        return False

    def _deliver(self, item: Any, out: list[Any]) -> None:
        before, _, offset, log, _ = self._tip
        item.offset = offset
        if self._reset_next is not None:
            item.reset, self._reset_next = True, None
            self._resets += 1
        if self._gap_next is not None:
            item.gap, self._gap_next = self._gap_next, None
        moves = item.moves
        cursor = item.cursor or None
        if moves is None:
            # An own id moves it, or a placed number; on plain SSE so did a block without data in front of it.
            moves = (
                item.own_id is not None
                or (item.sequence is not None and self._placed)
                or (cursor != before and not self._is_old(cursor))
            )
        if item.sequence is not None and self._promised and (self._number is None or item.sequence > self._number):
            self._number = item.sequence
        if self._promised or self._run >= WATCH_AFTER:
            number = self._number
        else:
            # Not promised to count, but a number all the same: the protocol may send it back as one.
            number = item.sequence if self._placed else None
        if self._beginning_open:
            self._note_beginning(item)
        if moves:
            self._moved_here = True
            log = None
            if item.own_id is None and item.moves is None and not self._placed:
                # A block without data moved it; this event came after that.
                log = self._log_of(item, None)
        else:
            cursor = before
            item.cursor = cursor
            log = self._log_of(item, log)
        self._tip = (cursor, number, offset + 1, log, len(log) if log is not None else 0)
        if log is not None:
            item.since = (log, len(log))
        if cursor is not None or self._protocol.replays:
            self._memory.remember(item)
        if item.own_id:
            self._seams.learn(item.own_id, offset)
        if self._unproven:
            self._unproven = []
        self._dropped = None
        if self._overlap:
            self._overlap -= 1
        out.append(item)

    def _log_of(self, item: Any, log: SinceLog | None) -> SinceLog | None:
        """Enter an item that did not move the cursor. Without a cursor there is nothing to resume from, so nothing to log."""
        if item.cursor is None and not self._protocol.replays:
            return None
        if log is None:
            log = SinceLog(self._window)
        log.append(self._fingerprint(item))
        return log

    def _is_old(self, cursor: str | None) -> bool:
        """In a replay: an id that is behind us. Going back to it would expect again what followed it."""
        return bool((self._overlap or self._seams.open) and cursor and self._memory.knows(cursor))

    def _extend(self, fingerprint: str) -> None:
        cursor, number, offset, log, _ = self._tip
        log = log or SinceLog(self._window)
        log.append(fingerprint)
        self._tip = (cursor, number, offset, log, len(log))

    def _move(self, cursor: str) -> None:
        """A block without data, or the end of a document, moves the cursor."""
        if self._is_old(cursor):
            return
        log = None
        if (prefix := self._prefix) is not None and prefix.whole:
            # It stands within what is expected again: the rest of that is what follows it.
            rest = prefix.rest()
            if rest is None:
                return
            log = SinceLog(self._window, rest)
        number = _counter(cursor)
        counted = self._contiguous or self._run >= WATCH_AFTER
        if counted and number is not None:
            if self._number is None or number == self._number + 1:
                # It has received its number, although there is nothing to deliver.
                self._number = number
            elif number > self._number:
                # Something is missing in front of it: the next event will show what.
                return
        self._tip = (cursor or None, self._number if counted else self.sequence, self.offset, log, len(log) if log else 0)
        self._moved_here = True
        if cursor:
            self._memory.remember_silent(cursor)

    def _note_beginning(self, item: Any) -> None:
        assert self._beginning is not None
        at, known = len(self._beginning), self._sign(item)
        self._beginning.append(known)
        if self._void:
            if at < len(self._void) and self._void[at] == known:
                self._echoes += 1
            else:
                self._void = []
        if item.own_id or len(self._beginning) == BEGINNING:
            self._beginning_open = False

    def _begins_with(self, item: Any) -> bool:
        """Is it what stood at this place of the beginning? Its number is not known in another process."""
        assert self._start is not None and self._beginning is not None
        own_id, fingerprint, number = self._beginning[self._start]
        found_id, found, found_number = self._sign(item)
        return (own_id, fingerprint) == (found_id, found) and number in (None, found_number)

    def _sign(self, item: Any) -> tuple[str | None, str, int | None]:
        """What the beginning is known by: id, content, and the number that the protocol gives."""
        return item.own_id or None, self._fingerprint(item), item.sequence if self._placed else None

    def _drop(self, item: Any) -> None:
        self.duplicates += 1
        self._dropped = item
        number = str(item.sequence) if item.sequence is not None else None
        self._notices.append(DuplicateDropped(getattr(item, "own_id", None) or number))

    def _fingerprint(self, item: Any) -> str:
        return self._protocol.fingerprint(item)

    def _name_of(self, item: Any) -> str | None:
        """What a repeat within a run must share beside the content: its id, or its number where numbers are promised."""
        if item.own_id:
            return self._memory.name_of(item)
        return str(item.sequence) if self._promised and item.sequence is not None else None

    def _key(self, item: Any) -> str:
        """What a repeat by order must share: the content, and the id where there is one."""
        fingerprint = self._memory.fingerprint(item)
        return f"{fingerprint} {item.own_id}" if item.own_id else fingerprint


def _counter(text: str) -> int | None:
    """Read a plain decimal counter; anything else (signs, leading zeros, other scripts, absurd length) is none."""
    if text.isascii() and text.isdigit() and len(text) < 20 and (text[0] != "0" or text == "0"):
        return int(text)
    return None
