"""
Look at each event of a batch by itself, and deliver, hold or drop it.

- `Repeats`: was it delivered before? (rule 5)
- `Numbers`: is something missing before it? (rule 6)
- `Resets`: does it void what came before?

Each delivered event moves the position. The ledger owns the position: it passes it in with a batch and takes it back after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from .._checkpoint import CORE_EXTRA, Checkpoint
from .._contract import Measured, Replayed, ResumeProtocol, placing
from .._errors import ReplayDiverged, ResumableStreamError
from .._events import Gap
from .._notices import Notice
from .lanes import CAREFUL, COUNTING, NUMBERED, OPAQUE, PLAIN, Lane, advance, lane_of
from .memory import Memory
from .numbers import HoleFound, Numbers
from .overlap import SinceLog
from .position import NOWHERE, Answer, Tip
from .repeats import Finding, Repeats
from .resets import Resets
from .seams import Seams

__all__ = ["Examiner", "Problem", "StartedOver"]

# After how many items to check whether the rest of the batch can be entered at once.
SETTLE: Final = 32


@dataclass(frozen=True, slots=True)
class StartedOver:
    """We asked whether there is more, and the answer began like the stream: the server ignores the cursor."""


Problem: TypeAlias = ResumableStreamError | HoleFound | StartedOver


class Examiner:
    """
    The careful way into the ledger, and all that it takes to know: the parts, and what is expected of the current answer.

    Args:
        protocol: The protocol that gives the events their numbers and ids.
        window: `Limits.window`.
        on_gap: What the caller chose.
        notices: List that receives notices.

    Attributes:
        numbers, repeats, resets, memory, seams: The parts; each answers one question.
        answer: The answer that the events belong to.
        refetch: Missing events can be requested again.
        problem: Why no more events are accepted.
    """

    def __init__(
        self, protocol: ResumeProtocol, *, window: int, on_gap: Literal["refetch", "deliver"], notices: list[Notice]
    ) -> None:
        self._protocol = protocol
        self._placed = placing(protocol) is not None
        self._replays = Replayed.of(protocol).replays
        self._counted = Measured.of(protocol).counted
        self._window = window
        self._tip: Tip = NOWHERE  # the position within the batch that is being examined
        self.answer = Answer()
        self.refetch = True
        self.problem: Problem | None = None
        self._open_memory()
        self.numbers = Numbers(protocol, on_gap=on_gap, notices=notices)
        self.repeats = Repeats(protocol, self.memory, self.seams, window=window, notices=notices)
        self.resets = Resets()

    def _open_memory(self) -> None:
        self.memory = Memory(self._window, self._protocol.fingerprint, unique=self._protocol.unique_ids)
        self.seams = Seams(self.memory.oldest_first, self._name_of, self.memory.fingerprint, window=self._window)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where another process stopped."""
        protocol, seams, beginning = self._protocol, self.seams, self.repeats.beginning
        self.answer = self.answer._replace(offset=checkpoint.offset)
        self.numbers.restore(checkpoint.sequence)
        self.memory.restore(checkpoint.recent_ids)
        seams.restore(own_id for own_id, _ in checkpoint.recent_ids)
        seams.latest = None if self._placed else checkpoint.cursor
        beginning.restore(checkpoint.extra.get(CORE_EXTRA[2]), noted=checkpoint.offset == 0 and protocol.framing != "raw")
        if (reset := checkpoint.extra.get(CORE_EXTRA[3], "")).isdecimal():
            self.resets.pending = int(reset[:18])

    def open_connection(self, answer: Answer, tip: Tip, *, resuming: bool, reaches_back: bool) -> None:
        """
        A new answer begins.

        Args:
            tip: The position that it continues from.
            resuming: It may repeat what was delivered.
            reaches_back: It may start with the stream's beginning even if the server honours the cursor.
        """
        self.answer = answer
        self.problem = None
        self.resets.open_connection(begun=bool(self.repeats.beginning.signs))
        self.repeats.open_connection(resuming=resuming, tip=tip, reaches_back=reaches_back)

    def restart(self, offset: int, *, anew: bool) -> None:
        """What was delivered is void from `offset` on; with `anew`, nothing of it counts as a repeat."""
        self.resets.restart(offset, self.repeats.beginning.signs, anew=anew)
        self._open_memory()
        self.repeats.restart(self.memory, self.seams)
        self.numbers.restart(self._protocol)
        self.answer = self.answer._replace(offset=offset, moved=False)

    def leave(self, lane: Lane, tip: Tip) -> None:
        """The stream leaves a steady state, which keeps its count only in the position."""
        if lane is COUNTING or lane is NUMBERED:
            self.numbers.last = tip[1]
        if lane is COUNTING:
            self.repeats.ids_counted()
        if lane is COUNTING or lane is OPAQUE:
            self.seams.latest = tip[0]

    # --- an interrupted batch

    def kept(self) -> tuple[Any, ...]:
        """All that a batch may change, for `put_back()`."""
        parts = self.numbers.kept(), self.repeats.kept(), self.resets.kept(), self.memory.kept(), self.seams.kept()
        return self._tip, self.answer, self.problem, parts

    def put_back(self, kept: tuple[Any, ...], tip: Tip) -> None:
        """
        Undo a batch, whose connection has to end.

        Args:
            kept: From `kept()`.
            tip: The position before the batch.
        """
        self._tip, self.answer, self.problem, (numbers, repeats, resets, memory, seams) = kept
        self.numbers.put_back(numbers)
        self.repeats.put_back(repeats)
        self.resets.put_back(resets)
        self.memory.put_back(memory, tip[2])
        self.seams.put_back(seams)
        if tip[3] is not None:
            tip[3].cut(tip[4])

    # --- a batch

    def examine(self, items: Sequence[Any], silent: Sequence[tuple[int, str]], tip: Tip) -> tuple[Sequence[Any], Tip, Lane]:
        """
        Look at each event of a batch.

        Args:
            items: The events in the order they came, placed by the protocol.
            silent: Blocks with an id but no data, as (number of items before it, id).
            tip: The position before them.

        Returns:
            The events to deliver, the position after them, and the lane of the next batch.
        """
        self._tip = tip
        out: list[Any] = []
        moves = deque(silent)
        beginning = self.repeats.beginning
        for index, item in enumerate(items):
            while moves and moves[0][0] <= index:
                self._move(moves.popleft()[1])
            if not (self._admit_first(item, out) if beginning.compared else self._admit(item, out)):
                break
            if index % SETTLE == SETTLE - 1 and not moves and (lane := self._choose_lane()) is not CAREFUL:
                # The rest of a long batch need not be checked one by one.
                rest = items[index + 1 :]
                if not rest or self._enter_steadily(rest, lane):
                    out += rest
                    break
        else:
            for _, cursor in moves:
                self._move(cursor)
        lane = self._choose_lane()
        if lane is not CAREFUL:
            self.memory.steady()
        self.seams.trim()
        return out, self._tip, lane

    def enter_held(self, held: Sequence[Any], tip: Tip) -> tuple[Sequence[Any], Tip]:
        """
        Deliver what was held as a possible repeat and is none.

        Returns:
            The events to deliver, and the position after them.
        """
        self._tip = tip
        out: list[Any] = []
        for item in held:
            self._enter(item, out, judged=True)
        return out, self._tip

    def _enter_steadily(self, items: Sequence[Any], lane: Lane) -> bool:
        before = self._tip
        tip = advance(lane, items, before, lambda ids: self.seams.enter_all(ids, before[0], before[2]))
        if tip is None:
            return False
        self._tip = tip
        if lane is not PLAIN:
            self.memory.items.extend(items)
        return True

    def _choose_lane(self) -> Lane:
        """The steady state, unless events may repeat, or something is pending for the next event to carry."""
        cursor, _, _, log, _ = self._tip
        settled = (
            not self._replays
            and log is None
            and self.problem is None
            and self.resets.pending is None
            and self.numbers.pending is None
            and self.repeats.none_expected
        )
        return lane_of(cursor, self.numbers, placed=self._placed, counted=self._counted) if settled else CAREFUL

    def _admit_first(self, item: Any, out: list[Any]) -> bool:
        """Like `_admit()`, while the answer may still turn out to begin as the stream began."""
        match self.repeats.by_beginning(item):
            case "so far":
                return True
            case "whole":
                return self._start_over()
            case "none":
                # Not a generator: Ctrl-C in a generator that is being closed would be lost.
                for each in (*self.repeats.beginning.take_held(), item):  # noqa: SIM110
                    if not self._admit(each, out):
                        return False
                return True

    def _start_over(self) -> bool:
        """The whole beginning came again. Expect everything delivered again, unless we only asked whether there is more."""
        repeats = self.repeats
        repeats.start_over()
        held = repeats.beginning.take_held()
        if self.answer.asking:
            self.problem = StartedOver()
            return False
        repeats.expect_everything(self._tip[2])
        for each in held:  # noqa: SIM110
            if not self._goes_on_after(each, repeats.by_order(each, self.numbers)):
                return False
        return True

    def _admit(self, item: Any, out: list[Any]) -> bool:
        """Deliver, hold back or drop one item. Returns whether later items may be delivered."""
        repeats = self.repeats
        if self.seams.open:
            if repeats.follows_run(item):
                return True
            for held in repeats.leave_run():
                self._enter(held, out, judged=True)
        found = repeats.by_order(item, self.numbers)
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
        if found == "expected" and self.answer.moved and not self._replays:
            # The cursor moved to before an event that we have, so that event must be expected again next time.
            self._extend(self._protocol.fingerprint(item))
        return True

    def _enter(self, item: Any, out: list[Any], *, judged: bool = False) -> bool:
        """
        Deliver, hold or drop an item that is not a repeat by order alone. Returns whether later items may be delivered.

        Args:
            judged: The item was held, and is not a repeat.
        """
        numbers, repeats = self.numbers, self.repeats
        if numbers.promised and item.sequence is not None:
            match numbers.standing(item.sequence):
                case "passed":
                    passed = item.sequence != numbers.last
                    match repeats.by_number(item, self.answer, passed=passed, judged=judged):
                        case "new":
                            numbers.out_of_order(item)
                        case "diverged":
                            return self._diverged(item)
                        case _:
                            return True
                case "ahead" if not self._grants_gap(item):
                    return False
        elif not numbers.watching:
            if not judged and repeats.by_id(item, self.answer, counting=False) != "new":
                return True
        elif item.own_id is not None:
            found = (
                "new" if judged or numbers.goes_on(item.own_id) else repeats.by_id(item, self.answer, counting=numbers.counting)
            )
            if found != "new":
                return True
            numbers.watch(item, self._tip[0])
        self._deliver(item, out)
        return True

    def _diverged(self, item: Any) -> bool:
        self.problem = ReplayDiverged(
            f"the server's replay differs from what it sent before: after event {self._tip[2]} came one with "
            f"id {item.own_id or item.sequence!r} and different content; the two do not belong to one stream"
        )
        return False

    def _grants_gap(self, item: Any) -> bool:
        """Promised numbers are missing before the item. Returns whether it may be delivered anyway."""
        gap = Gap(expected=self.numbers.expected, received=item.sequence, after=self._tip[0])
        if self.refetch or self.answer.replayed:
            return self.hole(gap, self._tip[2])
        # The missing events cannot be requested, and nothing was replayed: mark the gap and accept the provider's numbering.
        self.numbers.mark(item, gap)
        return True

    def hole(self, gap: Gap, offset: int) -> bool:
        """
        Events are missing: request them once, then do as the caller chose.

        Args:
            offset: Events delivered so far.

        Returns:
            True: continue; the next item carries the gap.
        """
        problem = self.numbers.find(gap, offset, refetch=self.refetch)
        if problem is None:
            return True
        self.problem = problem
        return False

    def _deliver(self, item: Any, out: list[Any]) -> None:
        before, _, offset, log, _ = self._tip
        numbers, repeats, placed = self.numbers, self.repeats, self._placed
        item.offset = offset
        if self.resets.pending is not None:
            self.resets.mark(item)
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
            self.resets.compare(repeats.beginning.note(sign), sign)
        if moves:
            if not self.answer.moved:
                self.answer = self.answer._replace(moved=True)
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
        repeats.delivered(item, resumable=cursor is not None or self._replays)
        out.append(item)

    def _log_of(self, item: Any, log: SinceLog | None) -> SinceLog | None:
        """Log an item that did not move the cursor. Without a cursor there is nothing to resume from, so nothing is logged."""
        if item.cursor is None and not self._replays:
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
        if self.repeats.is_old(cursor):
            return
        # Within expected repeats, the ones still to come are what follows the new cursor.
        rest = self.repeats.expected_after_cursor()
        if rest is None or not self.numbers.reached_silently(cursor):
            return
        log = SinceLog(self._window, rest) if rest else None
        number = self.numbers.last if self.numbers.prove else self._tip[1]
        self._tip = (cursor or None, number, self._tip[2], log, len(log) if log else 0)
        self.answer = self.answer._replace(moved=True)
        if cursor:
            self.memory.remember_silent(cursor)

    def _name_of(self, item: Any) -> str | None:
        """What a repeat within a run must share besides content: its id, or its number if numbers are promised."""
        if item.own_id:
            return self.memory.name_of(item)
        return str(item.sequence) if self.numbers.promised and item.sequence is not None else None
