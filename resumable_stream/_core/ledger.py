"""
What was delivered, and so what may still come.

    position = cursor + the events delivered since it last moved

The ledger sees each batch once, before the caller does. In the steady state (first connection, ids in order) a batch costs
a few list operations and one loop: see `lanes`. Otherwise it checks every event:

- `Repeats`: was it delivered before? (rule 5)
- `Numbers`: is something missing before it? (rule 6)
- `Resets`: does it void what came before?

Each delivered event moves the position. Two things would break this: delivering an event before `receive()` has seen it, and
feeding two connections at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .._checkpoint import CORE_EXTRA, Checkpoint
from .._contract import ResumeProtocol
from .._errors import ReplayDiverged, ResumableStreamError
from .._events import Gap
from .._notices import Notice
from .lanes import CAREFUL, COUNTING, NUMBERED, OPAQUE, PLAIN, RAW, Lane, advance, lane_of
from .memory import Memory
from .numbers import HoleFound, Numbers
from .overlap import SinceLog
from .position import NOWHERE, Answer, Place, Tip, first_stray
from .repeats import Finding, Repeats
from .resets import Resets
from .seams import TRIM, Seams

__all__ = ["NOWHERE", "HoleFound", "Ledger", "Place", "StartedOver"]

# In the careful lane: after how many items to check whether the rest of the batch can be entered at once.
SETTLE: Final = 32
# One event in `TRIM` takes the careful way, which keeps the number of known ids bounded.
_TRIM_BITS: Final = TRIM - 1


@dataclass(frozen=True, slots=True)
class StartedOver:
    """We asked whether there is more, and the answer began like the stream: the server ignores the cursor."""


Problem: TypeAlias = ResumableStreamError | HoleFound | StartedOver


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

    Attributes:
        refetch: Missing events can be requested again. The machine sets it only while the stream can be resumed.
        problem: Why no more events are accepted.
    """

    def __init__(
        self, protocol: ResumeProtocol, *, window: int, on_gap: Literal["refetch", "deliver"], notices: list[Notice]
    ) -> None:
        self._protocol = protocol
        self._lineage = protocol.lineage if type(protocol).lineage is not ResumeProtocol.lineage else None
        self._window = window
        self._unread = False
        self.refetch = True
        self.problem: Problem | None = None
        self._batch: Sequence[Any] = ()
        self._base: Tip = NOWHERE
        self._tip: Tip = NOWHERE
        self._committed = Committed(Place._make(NOWHERE), ())
        self._answer = Answer()
        self._open_memory()
        self._numbers = Numbers(protocol, on_gap=on_gap, notices=notices)
        self._repeats = Repeats(protocol, self._memory, self._seams, window=window, notices=notices)
        self._resets = Resets()

    def _open_memory(self) -> None:
        """Start with an empty memory, and bind the methods that `receive_one()` uses to it."""
        self._memory = Memory(self._window, self._protocol.fingerprint, unique=self._protocol.unique_ids)
        self._seams = Seams(self._memory.oldest_first, self._name_of, self._memory.fingerprint, window=self._window)
        self._keep = self._memory.items.append
        self._enter_id = self._seams.enter if self._unread else self._seams.ids.setdefault
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
    def fresh(self) -> int:
        """Events delivered on this connection."""
        return self.offset - self._answer.offset

    @property
    def nearer(self) -> bool:
        """Whether the cursor moved, within a replay, past events that we have, so that less of the replay remains."""
        return self._tip[4] < self._answer.logged

    @property
    def progress(self) -> int:
        """New events of this connection. After a reset, an event that repeats the state we already had does not count."""
        return self.fresh - self._resets.restated

    @property
    def only_resets(self) -> bool:
        """Whether every event that this connection delivered was a reset."""
        return self._resets.delivered > 0 and self.fresh <= self._resets.delivered

    @property
    def pending_reset(self) -> int | None:
        """The offset from which the next event will void what was delivered; `None` if no reset is pending."""
        return self._resets.pending

    @property
    def beyond_gap(self) -> bool:
        """Whether a gap was accepted and nothing after it has come yet, so what follows the cursor is not available."""
        return self._numbers.pending is not None

    @property
    def duplicates(self) -> int:
        """Events dropped."""
        return self._repeats.duplicates

    @property
    def gaps(self) -> int:
        """Gaps found."""
        return self._numbers.gaps

    @property
    def cursor_ignored(self) -> bool:
        """Whether the server started over instead of continuing."""
        return self._repeats.cursor_ignored

    @property
    def latest(self) -> Sequence[Any]:
        """The latest batch."""
        return self._batch

    def holds(self, item: Any) -> bool:
        """Whether an event is held back until it is known whether it is a repeat."""
        return self._repeats.holds(item)

    @property
    def seams(self) -> Seams:
        """The record of how far the stream's ids can be trusted."""
        return self._seams

    @property
    def behind(self) -> bool:
        """Whether a replay from zero has not yet reached our position."""
        return self._protocol.replays and self._repeats.replaying

    @property
    def numbered(self) -> bool:
        """Whether the numbers prove that nothing is missing."""
        return self._numbers.prove

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
        sequence, numbers = item.sequence, self._numbers
        if self.sequence is not None and (sequence is None or (numbers.promised and item.moves is False)):
            sequence = self._sequence_before(item)
        elif not (self._protocol.places or self._protocol.framing == "raw" or numbers.counting):
            sequence = None
        return Place(item.cursor, sequence, item.offset + 1, log, logged)

    def _sequence_before(self, item: Any) -> int | None:
        for other in self._memory.newest_first():
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
        return self._memory.recent_ids(place.offset)

    def beginning(self) -> str | None:
        """The stream's first event, as text for a checkpoint; `None` if it has no id to be recognised by."""
        return self._repeats.beginning.text()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where another process stopped."""
        log = SinceLog.parse(checkpoint.since, self._window) if checkpoint.since else None
        self._base = self._tip = (checkpoint.cursor, checkpoint.sequence, checkpoint.offset, log, len(log) if log else 0)
        self._committed = Committed(Place._make(self._tip), checkpoint.since)
        self._answer = self._answer._replace(offset=checkpoint.offset)
        self._numbers.restore(checkpoint.sequence)
        self._memory.restore(checkpoint.recent_ids)
        self._seams.restore(own_id for own_id, _ in checkpoint.recent_ids)
        self._seams.latest = None if self._protocol.places else checkpoint.cursor
        noted = checkpoint.offset == 0 and self._protocol.framing != "raw"
        self._repeats.beginning.restore(checkpoint.extra.get(CORE_EXTRA[2]), noted=noted)
        if (reset := checkpoint.extra.get(CORE_EXTRA[3], "")).isdecimal():
            self._resets.pending = int(reset[:18])

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
        self.problem = None
        going_on = resuming and self.offset > 0
        self._answer = Answer(self.offset, self._tip[4], asking, replayed=stored or going_on, joins=joins)
        self._resets.open_connection(begun=bool(self._repeats.beginning.signs))
        compared = going_on and self._protocol.framing != "raw"
        if compared:
            self._look_closely()
        self._repeats.open_connection(resuming=compared, tip=self._tip, reaches_back=reaches_back)

    def restart(self, *, offset: int, anew: bool = False) -> None:
        """
        What was delivered is void from `offset` on; the next item carries the reset.

        Args:
            anew: The generation is run again, so nothing of the old one counts as a repeat.
        """
        self._base, self._batch = self._tip, ()
        self._resets.restart(offset, self._repeats.beginning.signs, anew=anew)
        self._open_memory()
        self._repeats.restart(self._memory, self._seams)
        self._numbers.restart(self._protocol)
        self._base = self._tip = (None, None, offset, None, 0)
        self._answer = self._answer._replace(offset=offset, moved=False)

    def release(self) -> Sequence[Any]:
        """
        The stream is over: deliver what was held as a possible repeat and was not proven to be one.

        Returns:
            The events to deliver, positioned.
        """
        held = self._repeats.take_held()
        if not held or self.problem is not None:
            return ()
        self._look_closely()
        self._base = self._tip
        out: list[Any] = []
        for item in held:
            self._enter(item, out, judged=True)
        self._batch = out
        return out

    def condense(self) -> None:
        """Called once per `KEPT_BYTES` received."""
        self._memory.condense()

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
            self.problem = ReplayDiverged(
                f"the server continues another log: behind cursor {stray.before!r} came an event with {stray.cursor!r}; "
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
            if not cursor or not offset & _TRIM_BITS:
                return False
            enter = self._enter_id
            if enter(cursor, offset) != offset and (cursor != base[0] or not self._seams.shared):
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
        if lane is RAW and self._resets.pending is not None:
            self._resets.mark_piece(items[0])
        self._batch = items
        self._tip = tip
        if lane is not PLAIN and lane is not RAW:
            self._memory.items.extend(items)
        return True

    def _are_new(self, ids: list[str]) -> bool:
        return self._seams.enter_all(ids, self._tip[0], self.offset, unread=self._unread)

    # --- events that are delivered before they are read

    def expect_unread(self) -> None:
        """From now on events may go unread, so their ids may be known only as bytes."""
        self._unread = True
        self._enter_id = self._seams.enter

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
            self._memory.remember_unread(partial(read, unread, offset, first), size=len(unread), stop=offset + count)

    def receive_late(self, items: Sequence[Any]) -> None:
        """Enter events that were delivered before they were read. Their ids were new, and are already known."""
        self._base = self._tip
        if not self._receive_steadily(items, self._lane, _known_to_be_new):
            self._receive_carefully(items, ())

    # --- the careful way

    def _receive_carefully(self, items: Sequence[Any], silent: Sequence[tuple[int, str]]) -> Sequence[Any]:
        self._look_closely()
        if (log := self._tip[3]) is not None:
            log.fold()
        before = self._tip, self._batch, self._lane, self._answer, self.problem
        numbers, repeats, resets = self._numbers.kept(), self._repeats.kept(), self._resets.kept()
        memory, seams = self._memory.kept(), self._seams.kept()
        try:
            out = self._go_through(items, silent)
        except BaseException:
            # A bug in the caller's protocol, or Ctrl-C: undo the whole batch. The connection has to end.
            self._tip, self._batch, self._lane, self._answer, self.problem = before
            self._numbers.put_back(numbers)
            self._repeats.put_back(repeats)
            self._resets.put_back(resets)
            self._memory.put_back(memory, self.offset)
            self._seams.put_back(seams)
            if log is not None:
                log.cut(self._tip[4])
            raise
        if items:
            self._batch = out
        elif not self._batch:
            # No event carries this position, so it counts as taken at once.
            self._base = self._tip
        return out

    def _go_through(self, items: Sequence[Any], silent: Sequence[tuple[int, str]]) -> Sequence[Any]:
        out: list[Any] = []
        moves = deque(silent)
        beginning = self._repeats.beginning
        for index, item in enumerate(items):
            while moves and moves[0][0] <= index:
                self._move(moves.popleft()[1])
            if not (self._admit_first(item, out) if beginning.compared else self._admit(item, out)):
                break
            if index % SETTLE == SETTLE - 1 and not moves and (lane := self._choose_lane()) is not CAREFUL:
                # The rest of a long batch need not be checked one by one.
                rest = items[index + 1 :]
                if not rest or self._receive_steadily(rest, lane, self._are_new):
                    out += rest
                    break
        else:
            for _, cursor in moves:
                self._move(cursor)
        self._lane = self._choose_lane()
        if self._lane is not CAREFUL:
            self._memory.steady()
        self._seams.trim()
        return out

    def _look_closely(self) -> None:
        """Leave the steady state, which keeps its count only in the position."""
        lane = self._lane
        if lane is COUNTING or lane is NUMBERED:
            self._numbers.last = self.sequence
        if lane is COUNTING:
            self._repeats.ids_counted()
        if lane is COUNTING or lane is OPAQUE:
            self._seams.latest = self.cursor
        if lane is not RAW:
            self._lane = CAREFUL

    def _choose_lane(self) -> Lane:
        """The steady state, unless events may repeat, or something is pending for the next event to carry."""
        cursor, _, _, log, _ = self._tip
        settled = (
            log is None
            and self.problem is None
            and self._resets.pending is None
            and self._numbers.pending is None
            and self._repeats.none_expected
        )
        return lane_of(self._protocol, cursor, self._numbers) if settled else CAREFUL

    def _admit_first(self, item: Any, out: list[Any]) -> bool:
        """Like `_admit()`, while the answer may still turn out to begin as the stream began."""
        match self._repeats.by_beginning(item):
            case "so far":
                return True
            case "whole":
                return self._start_over()
            case "none":
                # Not a generator: Ctrl-C in a generator that is being closed would be lost.
                for each in (*self._repeats.beginning.take_held(), item):  # noqa: SIM110
                    if not self._admit(each, out):
                        return False
                return True

    def _start_over(self) -> bool:
        """The whole beginning came again. Expect everything delivered again, unless we only asked whether there is more."""
        repeats = self._repeats
        repeats.start_over()
        held = repeats.beginning.take_held()
        if self._answer.asking:
            self.problem = StartedOver()
            return False
        repeats.expect_everything(self.offset)
        for each in held:  # noqa: SIM110
            if not self._goes_on_after(each, repeats.by_order(each, self._numbers)):
                return False
        return True

    def _admit(self, item: Any, out: list[Any]) -> bool:
        """Deliver, hold back or drop one item. Returns whether later items may be delivered."""
        repeats = self._repeats
        if self._seams.open:
            if repeats.follows_run(item):
                return True
            for held in repeats.leave_run():
                self._enter(held, out, judged=True)
        found = repeats.by_order(item, self._numbers)
        if found != "new":
            return self._goes_on_after(item, found)
        delivered = len(out)
        goes_on = self._enter(item, out)
        if len(out) > delivered:
            repeats.order_ends()
        return goes_on

    def _goes_on_after(self, item: Any, found: Finding) -> bool:
        """Act on what the order showed about an item. Returns whether later items may be delivered."""
        if found == "diverged":
            return self._diverged(item)
        if found == "expected" and self._answer.moved and not self._protocol.replays:
            # The cursor moved to before an event that we have, so that event must be expected again next time.
            self._extend(self._protocol.fingerprint(item))
        return True

    def _enter(self, item: Any, out: list[Any], *, judged: bool = False) -> bool:
        """
        Deliver, hold or drop an item that is not a repeat by order alone. Returns whether later items may be delivered.

        Args:
            judged: The item was held, and is not a repeat.
        """
        numbers, repeats = self._numbers, self._repeats
        if numbers.promised and item.sequence is not None:
            match numbers.standing(item.sequence):
                case "passed":
                    passed = item.sequence != numbers.last
                    match repeats.by_number(item, self._answer, passed=passed, judged=judged):
                        case "new":
                            numbers.out_of_order(item)
                        case "diverged":
                            return self._diverged(item)
                        case _:
                            return True
                case "ahead" if not self._grants_gap(item):
                    return False
        elif not numbers.watching:
            if not judged and repeats.by_id(item, self._answer, counting=False) != "new":
                return True
        elif item.own_id is not None:
            found = (
                "new" if judged or numbers.goes_on(item.own_id) else repeats.by_id(item, self._answer, counting=numbers.counting)
            )
            if found != "new":
                return True
            numbers.watch(item, self.cursor)
        self._deliver(item, out)
        return True

    def _diverged(self, item: Any) -> bool:
        self.problem = ReplayDiverged(
            f"the server's replay differs from what it sent before: behind event {self.offset} came one with "
            f"id {item.own_id or item.sequence!r} and other content; the two do not belong to one stream"
        )
        return False

    def _grants_gap(self, item: Any) -> bool:
        """Promised numbers are missing before the item. Returns whether it may be delivered anyway."""
        gap = Gap(expected=self._numbers.expected, received=item.sequence, after=self.cursor)
        if self.refetch or self._answer.replayed:
            return self.hole(gap)
        # The missing events cannot be requested, and nothing was replayed: mark the gap and accept the provider's numbering.
        self._numbers.mark(item, gap)
        return True

    def hole(self, gap: Gap) -> bool:
        """Events are missing: request them once, then do as the caller chose. True: continue; the next item carries the gap."""
        problem = self._numbers.find(gap, self.offset, refetch=self.refetch)
        if problem is None:
            return True
        self.problem = problem
        return False

    def _deliver(self, item: Any, out: list[Any]) -> None:
        before, _, offset, log, _ = self._tip
        numbers, repeats, placed = self._numbers, self._repeats, self._protocol.places
        item.offset = offset
        if self._resets.pending is not None:
            self._resets.mark(item)
        if numbers.pending is not None:
            numbers.mark_pending(item)
        moves = item.moves
        cursor = item.cursor or None
        if moves is None:
            # An own id or a placed number moves the cursor; in plain SSE a preceding block without data moves it too.
            moves = (
                item.own_id is not None
                or (item.sequence is not None and placed)
                or (cursor != before and not repeats.is_old(cursor))
            )
        if numbers.promised:
            numbers.delivered(item)
        if repeats.beginning.open:
            sign = repeats.sign(item)
            self._resets.compare(repeats.beginning.note(sign), sign)
        if moves:
            if not self._answer.moved:
                self._answer = self._answer._replace(moved=True)
            log = None
            if item.own_id is None and item.moves is None and not placed:
                # A block without data moved the cursor, and this event follows it.
                log = self._log_of(item, None)
        else:
            cursor = before
            item.cursor = cursor
            log = self._log_of(item, log)
        self._tip = (cursor, numbers.at(item), offset + 1, log, len(log) if log is not None else 0)
        if log is not None:
            item.since = (log, len(log))
        repeats.delivered(item, resumable=cursor is not None or self._protocol.replays)
        out.append(item)

    def _log_of(self, item: Any, log: SinceLog | None) -> SinceLog | None:
        """Log an item that did not move the cursor. Without a cursor there is nothing to resume from, so nothing is logged."""
        if item.cursor is None and not self._protocol.replays:
            return None
        if log is None:
            log = SinceLog(self._window)
        log.append(self._protocol.fingerprint(item))
        return log

    def _extend(self, fingerprint: str) -> None:
        cursor, number, offset, log, _ = self._tip
        log = log or SinceLog(self._window)
        log.append(fingerprint)
        self._tip = (cursor, number, offset, log, len(log))

    def _move(self, cursor: str) -> None:
        """A block without data, or the end of a document, moves the cursor."""
        if self._repeats.is_old(cursor):
            return
        # Within expected repeats, the ones still to come are what follows the new cursor.
        rest = self._repeats.expected_after_cursor()
        if rest is None or not self._numbers.reached_silently(cursor):
            return
        log = SinceLog(self._window, rest) if rest else None
        number = self._numbers.last if self._numbers.prove else self.sequence
        self._tip = (cursor or None, number, self.offset, log, len(log) if log else 0)
        self._answer = self._answer._replace(moved=True)
        if cursor:
            self._memory.remember_silent(cursor)

    def _name_of(self, item: Any) -> str | None:
        """What a repeat within a run must share besides content: its id, or its number if numbers are promised."""
        if item.own_id:
            return self._memory.name_of(item)
        return str(item.sequence) if self._numbers.promised and item.sequence is not None else None


def _known_to_be_new(ids: list[str]) -> bool:
    return True
