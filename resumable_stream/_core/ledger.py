"""
What was delivered, and so what may still come.

    position = cursor + the events delivered since it last moved

The ledger sees each batch once, before the caller does. In the steady state (first connection, ids in order) a batch costs
a few list operations and one loop: see `lanes`. Otherwise the `Examiner` looks at every event.

Each delivered event moves the position. Two things would break this: delivering an event before `receive()` has seen it, and
feeding two connections at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from .._checkpoint import Checkpoint
from .._contract import Logged, Replayed, ResumeProtocol, placing
from .._errors import ReplayDiverged
from .._events import Gap
from .._notices import Notice
from .examining import Examiner, Problem, StartedOver
from .lanes import CAREFUL, COUNTING, NUMBERED, OPAQUE, PLAIN, RAW, Lane, advance
from .memory import LONGEST_ID
from .numbers import HoleFound
from .overlap import SinceLog
from .position import NOWHERE, Answer, Place, Tip, first_stray
from .seams import TRIM, Seams

__all__ = ["NOWHERE", "HoleFound", "Ledger", "Place", "StartedOver"]

# One event in `TRIM` takes the careful way, which keeps the number of known ids bounded.
_TRIM_BITS: Final = TRIM - 1


class Committed(NamedTuple):
    """The committed position. `since` is stored with it, because the log may fold those events later."""

    place: Place
    since: tuple[str, ...]


class Ledger:
    """
    The record of one stream's delivered events.

    Args:
        protocol: The protocol that gives the events their numbers and ids.
        window: `Limits.window`.
        notices: List that receives notices; the machine passes them on.
    """

    def __init__(
        self, protocol: ResumeProtocol, *, window: int, on_gap: Literal["refetch", "deliver"], notices: list[Notice]
    ) -> None:
        self._protocol = protocol
        logged = protocol.ability(Logged)
        self._lineage = logged.lineage if logged is not None else None
        self._placed = placing(protocol) is not None
        self._replays = Replayed.of(protocol).replays
        self._window = window
        self._unread = False
        self._batch: Sequence[Any] = ()
        self._base: Tip = NOWHERE
        self._tip: Tip = NOWHERE
        self._committed = Committed(Place._make(NOWHERE), ())
        self._examiner = Examiner(protocol, window=window, on_gap=on_gap, notices=notices)
        self._begin()

    def _begin(self) -> None:
        """Nothing was delivered yet, or all of it is void. Bind the methods that `receive_one()` uses to the new memory."""
        self._keep = self._examiner.memory.items.append
        self._enter_id = self._examiner.seams.enter if self._unread else self._examiner.seams.ids.setdefault
        self._lane = RAW if self._protocol.framing == "raw" else CAREFUL

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
    def problem(self) -> Problem | None:
        """Why no more events are accepted."""
        return self._examiner.problem

    @property
    def refetch(self) -> bool:
        """Missing events can be requested again. The machine sets it only while the stream can be resumed."""
        return self._examiner.refetch

    @refetch.setter
    def refetch(self, refetch: bool) -> None:
        self._examiner.refetch = refetch

    @property
    def fresh(self) -> int:
        """Events delivered on this connection."""
        return self.offset - self._examiner.answer.offset

    @property
    def nearer(self) -> bool:
        """Whether the cursor moved, within a replay, past events that we have, so that less of the replay remains."""
        return self._tip[4] < self._examiner.answer.logged

    @property
    def progress(self) -> int:
        """New events of this connection. After a reset, an event that repeats the state we already had does not count."""
        return self.fresh - self._examiner.resets.restated

    @property
    def only_resets(self) -> bool:
        """Whether every event that this connection delivered was a reset."""
        return self._examiner.resets.delivered > 0 and self.fresh <= self._examiner.resets.delivered

    @property
    def pending_reset(self) -> int | None:
        """The offset from which the next event will void what was delivered; `None` if no reset is pending."""
        return self._examiner.resets.pending

    @property
    def beyond_gap(self) -> bool:
        """Whether a gap was accepted and nothing after it has come yet, so what follows the cursor is not available."""
        return self._examiner.numbers.pending is not None

    @property
    def duplicates(self) -> int:
        """Events dropped."""
        return self._examiner.repeats.duplicates

    @property
    def gaps(self) -> int:
        """Gaps found."""
        return self._examiner.numbers.gaps

    @property
    def cursor_ignored(self) -> bool:
        """Whether the server started over instead of continuing."""
        return self._examiner.repeats.cursor_ignored

    @property
    def latest(self) -> Sequence[Any]:
        """The latest batch."""
        return self._batch

    def holds(self, item: Any) -> bool:
        """Whether an event is held back until it is known whether it is a repeat."""
        return self._examiner.repeats.holds(item)

    @property
    def seams(self) -> Seams:
        """The record of how far the stream's ids can be trusted."""
        return self._examiner.seams

    @property
    def behind(self) -> bool:
        """Whether a replay from zero has not yet reached our position."""
        return self._replays and self._examiner.repeats.replaying

    @property
    def numbered(self) -> bool:
        """Whether the numbers prove that nothing is missing."""
        return self._examiner.numbers.prove

    @property
    def lane(self) -> Lane:
        """How the next batch is received; `CAREFUL`, or one of the steady states."""
        return self._lane

    @property
    def plain(self) -> bool:
        """Whether the events have had no ids so far; the first with an id is checked carefully."""
        return self._lane is PLAIN

    def place(self, taken: int, batch: Sequence[Any] | None = None) -> Place:
        """
        The position after `taken` items of a batch.

        Args:
            batch: The batch that the caller is working on. If it is not the latest, an interrupt came before the latest was
                handed out: then everything before the latest is taken, and nothing of it. `None`: the latest.
        """
        latest = self._batch
        if taken <= 0 or (batch is not None and batch is not latest):
            return Place._make(self._base)
        if taken >= len(latest):
            return Place._make(self._tip)
        return self._place_after(latest[taken - 1])

    def _place_after(self, item: Any) -> Place:
        if self._batch and item is self._batch[-1]:
            return Place._make(self._tip)
        log, logged = item.since or (None, 0)
        sequence, numbers = item.sequence, self._examiner.numbers
        if self.sequence is not None and (sequence is None or (numbers.promised and item.moves is False)):
            sequence = self._sequence_before(item)
        elif not (self._placed or self._protocol.framing == "raw" or numbers.counting):
            sequence = None
        return Place(item.cursor, sequence, item.offset + 1, log, logged)

    def _sequence_before(self, item: Any) -> int | None:
        for other in self._examiner.memory.newest_first():
            if other.offset < item.offset and other.sequence is not None and getattr(other, "moves", None) is not False:
                return int(other.sequence)
        return self._base[1]

    def commit(self, item: Any = None, *, taken: int = 0, batch: Sequence[Any] | None = None) -> None:
        """
        Move the committed position to after `item`, or after what is taken.

        Raises:
            ValueError: The item belongs to another stream, or is too old.
        """
        place = self.place(taken, batch) if item is None else self._place_after(item)
        if place.offset > self.offset:
            raise ValueError(f"cannot commit the event at offset {place.offset - 1}: only {self.offset} events were delivered")
        self._committed = Committed(place, self._since(place))

    @property
    def committed(self) -> Place:
        return self._committed.place

    def oldest(self, *, manual: bool) -> int:
        """
        The offset of the oldest place that may still be asked for.

        Args:
            manual: Only `commit()` moves the place.
        """
        return self._committed.place.offset if manual else self.place(0).offset

    def since(self, place: Place) -> tuple[str, ...]:
        """Fingerprints of what was delivered since the cursor of `place` moved, in the form of `Checkpoint.since`."""
        return self._committed.since if place is self._committed.place else self._since(place)

    def _since(self, place: Place) -> tuple[str, ...]:
        return place.log.upto(place.logged) if place.log is not None else ()

    def recent_ids(self, place: Place) -> tuple[tuple[str, str], ...]:
        """`(id, fingerprint)` of the newest events before `place` that have an id, oldest first, at most 64."""
        return self._examiner.memory.recent_ids(place.offset)

    def beginning(self) -> str | None:
        """The stream's first event, as text for a checkpoint; `None` if it has no id to be recognised by."""
        return self._examiner.repeats.beginning.text()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where another process stopped."""
        log = SinceLog.parse(checkpoint.since, self._window) if checkpoint.since else None
        self._base = self._tip = (checkpoint.cursor, checkpoint.sequence, checkpoint.offset, log, len(log) if log else 0)
        self._committed = Committed(Place._make(self._tip), checkpoint.since)
        self._examiner.restore(checkpoint)

    # --- connections

    def open_connection(
        self, *, resuming: bool, asking: bool, reaches_back: bool = False, stored: bool = False, joins: bool = False
    ) -> None:
        """
        A new answer begins.

        Args:
            resuming: It continues from the cursor.
            asking: It was requested only to find out whether there is more.
            reaches_back: It may start with the stream's beginning even if the server honours the cursor.
            stored: It is the stored result, which has to be whole.
            joins: It may belong to something that was already running.
        """
        self._base, self._batch = self._tip, ()
        going_on = resuming and self.offset > 0
        compared = going_on and self._protocol.framing != "raw"
        if compared:
            self._look_closely()
        answer = Answer(self.offset, self._tip[4], asking, replayed=stored or going_on, joins=joins)
        self._examiner.open_connection(answer, self._tip, resuming=compared, reaches_back=reaches_back)

    def restart(self, *, offset: int, anew: bool = False) -> None:
        """
        What was delivered is void from `offset` on; the next item carries the reset.

        Args:
            anew: The generation is run again, so nothing of the old one counts as a repeat.
        """
        self._base, self._batch = self._tip, ()
        self._examiner.restart(offset, anew=anew)
        self._begin()
        self._base = self._tip = (None, None, offset, None, 0)

    def release(self) -> Sequence[Any]:
        """
        The stream is over: deliver what was held as a possible repeat and was not proven to be one.

        Returns:
            The events to deliver, positioned.
        """
        held = self._examiner.repeats.take_held()
        if not held or self.problem is not None:
            return ()
        self._look_closely()
        self._base = self._tip
        out, tip = self._examiner.enter_held(held, self._tip)
        self._tip = tip
        self._batch = out
        return out

    def hole(self, gap: Gap) -> bool:
        """The server reports that events are missing. True: continue; the next item carries the gap."""
        return self._examiner.hole(gap, self.offset)

    def condense(self) -> None:
        """Called once per `KEPT_BYTES` received."""
        self._examiner.memory.condense()

    # --- receiving

    def receive(self, items: Sequence[Any], silent: Sequence[tuple[int, str]] = ()) -> Sequence[Any]:
        """
        Enter a batch.

        Args:
            items: Complete items in the order they came, placed by the protocol.
            silent: Blocks with an id but no data, as (number of items before it, id).

        Returns:
            The items to deliver, positioned. If the batch is cut short, `problem` says why.
        """
        # `_batch` and `_tip` change together when a batch is entered, so an interrupt sees the position before it or after it.
        self._base = self._tip
        if not items and not silent:
            return items
        stray = first_stray(items, self.cursor, self._lineage) if self._lineage is not None else None
        if stray is not None:
            items, silent = items[: stray.at], [move for move in silent if move[0] <= stray.at]
        if self._lane is CAREFUL or silent or not items or not self._receive_steadily(items, self._lane, self._are_new):
            items = self._receive_carefully(items, silent)
        if stray is not None and self.problem is None:
            self._examiner.problem = ReplayDiverged(
                f"the server continues another log: after cursor {stray.before!r} came an event with {stray.cursor!r}; "
                "the two do not belong to one stream"
            )
        return items

    def receive_one(self, item: Any, items: Sequence[Any]) -> bool:
        """
        `receive()` for a batch of one event, the usual case in a live stream. False: call `receive()`.

        Inlined on purpose: any call here is paid for by every event.
        """
        lane = self._lane
        base = self._tip
        _, number, offset, _, _ = base
        cursor = item.own_id
        if lane is COUNTING:
            number += 1  # type: ignore[operator]  # in this lane there is one
            if cursor != str(number):
                return False
            item.sequence = number
        elif lane is OPAQUE:
            if not cursor or not offset & _TRIM_BITS or len(cursor) > LONGEST_ID:
                return False
            enter = self._enter_id
            if enter(cursor, offset) != offset and (cursor != base[0] or not self._examiner.seams.shared):
                return False
        elif lane is NUMBERED:
            number += 1  # type: ignore[operator]
            if item.sequence != number or item.id:
                return False
            cursor = str(number)
        elif lane is not PLAIN or cursor is not None or item.id:
            return False
        item.offset = offset
        self._base = base
        self._batch = items
        self._tip = (cursor, number, offset + 1, None, 0)
        if lane is not PLAIN:
            keep = self._keep  # a local is called faster than an attribute that holds a function
            keep(item)
        return True

    def _receive_steadily(self, items: Sequence[Any], lane: Lane, are_new: Callable[[list[str]], bool]) -> bool:
        """The steady state: no repeat can come, and only the order is checked. False: use the careful way."""
        tip = advance(lane, items, self._tip, are_new)
        if tip is None:
            return False
        if lane is RAW and self._examiner.resets.pending is not None:
            self._examiner.resets.mark_piece(items[0])
        self._batch = items
        self._tip = tip
        if lane is not PLAIN and lane is not RAW:
            self._examiner.memory.items.extend(items)
        return True

    def _are_new(self, ids: list[str]) -> bool:
        return self._examiner.seams.enter_all(ids, self._tip[0], self.offset)

    # --- events that are delivered before they are read

    def expect_unread(self) -> None:
        """From now on events may go unread, so their ids may be known only as bytes."""
        self._unread = True
        self._enter_id = self._examiner.seams.enter

    def pass_over(self, count: int, unread: bytes, read: Callable[[bytes, int, int | None], Iterable[Any]]) -> None:
        """
        `count` events of the steady state were delivered without being read.

        Args:
            read: Decodes their bytes, given the first event's offset and, if events are numbered, its number.
        """
        cursor, number, offset, _, _ = self._tip
        first = None
        if number is not None and self._lane in (COUNTING, NUMBERED):
            first = number + 1
            number += count
            cursor = str(number)
        self._tip = (cursor, number, offset + count, None, 0)
        if self._lane is not PLAIN:
            self._examiner.memory.remember_unread(partial(read, unread, offset, first), size=len(unread), stop=offset + count)

    def receive_late(self, items: Sequence[Any]) -> None:
        """Enter events that were delivered before they were read. Their ids were new, and are already known."""
        self._base = self._tip
        if not self._receive_steadily(items, self._lane, _known_to_be_new):
            self._receive_carefully(items, ())

    # --- the careful way

    def _receive_carefully(self, items: Sequence[Any], silent: Sequence[tuple[int, str]]) -> Sequence[Any]:
        self._look_closely()
        examiner, before = self._examiner, self._tip
        if before[3] is not None:
            before[3].fold()
        kept = examiner.kept()
        try:
            out, tip, lane = examiner.examine(items, silent, before)
        except BaseException:
            # A bug in the caller's protocol, or Ctrl-C: undo the whole batch. The connection has to end.
            examiner.put_back(kept, before)
            raise
        # An interrupt comes after a call, and there is none from here on.
        self._tip = tip
        self._lane = lane
        if items:
            self._batch = out
        elif not self._batch:
            # No event carries this position, so it counts as taken at once.
            self._base = tip
        return out

    def _look_closely(self) -> None:
        """Leave the steady state."""
        self._examiner.leave(self._lane, self._tip)
        if self._lane is not RAW:
            self._lane = CAREFUL


def _known_to_be_new(ids: list[str]) -> bool:
    return True
