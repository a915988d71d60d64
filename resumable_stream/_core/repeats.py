"""
Recognise and drop events that were delivered before (rule 5).

Within one answer, even the first, a server may repeat events where its replay meets live events: see `seams`.
After a reconnect there are three more ways to recognise a repeat, tried in this order:

1. *The beginning.* A server that ignores the cursor starts over. If its answer begins as the stream began,
   everything delivered is expected again.
2. *Order.* Events without an id of their own can only be recognised by content and order: those that followed the
   cursor are expected again, in order, and dropped while they match (`Prefix`).
3. *Identity.* An event whose id or number was seen before is a repeat if the content is the same too.

They are tried for `window` events, since late repeats happen where replay meets live events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from .._contract import Replayed, ResumeProtocol, placing
from .._notices import CursorIgnored, DuplicateDropped, Notice
from .beginning import Beginning, Likeness, Sign
from .memory import Memory
from .numbers import Numbers, counter
from .overlap import Prefix, SinceLog
from .parts import Part
from .position import Answer, Tip
from .seams import Seams

__all__ = ["Finding", "Repeats"]


Finding: TypeAlias = Literal["new", "repeat", "expected", "held", "diverged"]
"""
What was found out about an event.

- `new`: it was not delivered before;
- `repeat`: it was delivered before, so it was dropped;
- `expected`: it was delivered before and was expected here, so it was dropped;
- `held`: it may be a repeat, so it is held until that is known;
- `diverged`: something else was delivered in its place.
"""


class Repeats(Part):
    """
    What may be repeated on a connection, and what has been.

    Args:
        protocol: The protocol that gives the ids and numbers.
        memory: The events delivered, by identity.
        seams: How far ids can be trusted.
        window: `Limits.window`.
        notices: List that receives notices.

    Attributes:
        beginning: How the stream began.
        overlap: How many more events may still be repeats.
        duplicates: Events dropped so far.
        cursor_ignored: The server started over although it was asked to continue.
    """

    __slots__ = (
        *("_catch_up", "_dropped", "_memory", "_notices", "_placed", "_prefix", "_protocol", "_replayed_to", "_seams"),
        *("_unproven", "_window", "beginning", "cursor_ignored", "duplicates", "overlap"),
    )

    def __init__(self, protocol: ResumeProtocol, memory: Memory, seams: Seams, *, window: int, notices: list[Notice]) -> None:
        self._protocol = protocol
        self._placed = placing(protocol) is not None
        self._window = window
        self._notices = notices
        self.duplicates = 0
        self.cursor_ignored = False
        self.restart(memory, seams)

    def restart(self, memory: Memory, seams: Seams) -> None:
        """What was delivered is void."""
        self._memory = memory
        self._seams = seams
        self.beginning = Beginning(noted=self._protocol.framing != "raw")
        self.overlap = 0
        self._prefix: Prefix | None = None
        """Events that are expected again, in order."""
        self._replayed_to: int | None = None
        """The offset after a repeated event: the following events without identity are expected next."""
        self._dropped: Any = None
        """The latest repeat, until the next event is delivered."""
        self._unproven: Sequence[Any] = []
        """Events that the last connection held when it was cut. They count only if the next one brings nothing new."""
        self._catch_up = False
        """While ids counted, only the count was kept, so the seams still have to learn the ids."""

    def kept(self) -> tuple[Any, ...]:
        prefix = self._prefix
        return self._values(self), self.beginning.kept(), prefix.kept() if prefix is not None else ()

    def put_back(self, kept: tuple[Any, ...]) -> None:
        own, beginning, prefix = kept
        super().put_back(own)
        self.beginning.put_back(beginning)
        if self._prefix is not None:
            self._prefix.put_back(prefix)

    # --- connections

    def open_connection(self, *, resuming: bool, tip: Tip, reaches_back: bool) -> None:
        """
        A new answer begins.

        Args:
            resuming: It may repeat what was delivered.
            tip: The position that it continues from.
            reaches_back: It may start with the stream's beginning even if the server honours the cursor.
        """
        self._unproven = self._seams.cut() or self._unproven
        self._dropped = None
        self._prefix = None
        self._replayed_to = None
        cursor, _, _, log, logged = tip
        replays = Replayed.of(self._protocol).replays
        self.beginning.open_connection(compare=resuming and not replays and cursor is not None and not reaches_back)
        if not resuming:
            return
        self.overlap = self._window
        if log is not None and (logged or replays):
            self._prefix = Prefix(log, strict=replays)

    def take_held(self) -> Sequence[Any]:
        """The stream is over. Return events that were held as possible repeats and not proven to be: they are new."""
        held, self._unproven = self._seams.cut() or self._unproven, []
        return held

    def holds(self, item: Any) -> bool:
        """Whether an event is held until it is known whether it is a repeat."""
        return any(held is item for held in (*self.beginning.held, *self._seams.held))

    @property
    def none_expected(self) -> bool:
        """Whether no repeat is expected, as far as is known, and the beginning is noted."""
        return not (
            self.overlap or self._prefix is not None or self.beginning.compared or self._seams.open or self.beginning.open
        )

    @property
    def replaying(self) -> bool:
        """Whether events are expected again in order."""
        return self._prefix is not None

    def ids_counted(self) -> None:
        """The stream leaves a lane that kept only the count."""
        self._catch_up = True

    # --- the beginning

    def by_beginning(self, item: Any) -> Likeness:
        """Whether the answer begins as the stream began."""
        beginning, prefix = self.beginning, self._prefix
        if prefix is not None and not beginning.held and prefix.expects(self._key(item)):
            return beginning.differs()
        return beginning.compare(item, self.sign(item))

    def start_over(self) -> None:
        """The whole beginning came again: the server ignores the cursor."""
        self.cursor_ignored = True
        self._notices.append(CursorIgnored())

    def expect_everything(self, offset: int) -> None:
        """Expect everything delivered again; events that are no longer remembered are only counted."""
        log = SinceLog(self._window)
        oldest = offset
        for seen in self._memory.newest_first():
            if seen.offset != oldest - 1:
                break
            oldest = seen.offset
            log.items.append(self._key(seen))
        log.items.reverse()
        prefix = Prefix(log, strict=True, unknown=oldest)
        self._prefix = None if prefix.done else prefix

    def sign(self, item: Any) -> Sign:
        """How an event of the beginning is recognised."""
        number = item.sequence if self._placed else None
        return Sign(item.own_id or None, self._protocol.fingerprint(item), number)

    # --- a run within one answer

    def follows_run(self, item: Any) -> bool:
        """Whether an item is part of the run. If so, it is held, or proves that the whole run is a repeat."""
        if not self._seams.follow(item):
            return False
        for repeat in self._seams.repeats():
            self.drop(repeat)
        return True

    def leave_run(self) -> Sequence[Any]:
        """The run is over. Returns those of its events that are new."""
        held, repeats = self._seams.over()
        if not repeats:
            return held
        for each in held:
            self.drop(each)
        return ()

    # --- by order

    def by_order(self, item: Any, numbers: Numbers) -> Finding:
        """Whether an item is expected here. Items with an identity are recognised by it, unless the whole stream is expected."""
        identified = bool(item.own_id) or (numbers.promised and item.sequence is not None)
        if self._replayed_to is not None and not identified:
            self._prefix = self._run_from(self._replayed_to, numbers)
            self._replayed_to = None
        prefix = self._prefix
        if prefix is None or (identified and not prefix.whole):
            return "new"
        match prefix.match(self._key(item)):
            case "same":
                if prefix.done:
                    self._prefix = None
                self.drop(item)
                return "expected"
            case "over":
                self._prefix = None
                return "new"
            case _ if self._came_before(item, prefix):
                # A seam within the replay; the same event is still expected next.
                prefix.rewind()
                self.drop(item)
                return "repeat"
            case _:
                return "diverged"

    def order_ends(self) -> None:
        """A new event was delivered, so no repeats follow it, unless the whole stream is expected."""
        if self._prefix is None or not self._prefix.whole:
            self._prefix = self._replayed_to = None

    def expected_after_cursor(self) -> Sequence[str] | None:
        """
        The cursor moved without an event. Which of the events that we have follow it?

        Returns:
            Their fingerprints; `None` if that is not known.
        """
        prefix = self._prefix
        return prefix.rest() if prefix is not None and prefix.whole else ()

    def _came_before(self, item: Any, prefix: Prefix) -> bool:
        """Whether, in a replay from the start, this answer already brought the event, by its id if that is unambiguous."""
        if not (prefix.whole and item.own_id):
            return False
        known = self._memory.find(item.own_id)
        return (
            known is not None
            and 0 <= known.offset < prefix.seen - 1
            and self._memory.fingerprint(known) == self._memory.fingerprint(item)
        )

    def _run_from(self, offset: int, numbers: Numbers) -> Prefix | None:
        """Expect the events without identity from `offset` on again, up to the next one that has an identity."""
        log = SinceLog(self._window)
        for seen in self._memory.starting_at(offset):
            if seen.own_id or (numbers.promised and seen.sequence is not None):
                break
            log.items.append(self._key(seen))
        return Prefix(log, strict=False) if log.items else None

    def _replayed_from(self, known: Any) -> None:
        """The server replays from this event on: later events without identity are recognised by order."""
        if known is not None and known.offset >= 0 and (self._prefix is None or not self._prefix.whole):
            self._replayed_to = known.offset + 1

    def _key(self, item: Any) -> str:
        """What a repeat by order must share: the content, and the id if there is one."""
        fingerprint = self._memory.fingerprint(item)
        return f"{fingerprint} {item.own_id}" if item.own_id else fingerprint

    # --- by identity

    def by_id(self, item: Any, answer: Answer, *, counting: bool) -> Finding:
        """
        Decide by id whether an item was delivered before.

        Args:
            answer: The answer that it came with.
            counting: Ids are watched, and have counted so far.
        """
        if self._catch_up:
            self._catch_up = False
            self._seams.restore(self._memory.ids())
        own_id, unique, seams = item.own_id, self._protocol.unique_ids, self._seams
        if not own_id or not (self.overlap or seams.knows(own_id)):
            return "new"
        memory = self._memory
        known = memory.find(own_id)
        if known is None and not memory.is_ambiguous(own_id):
            return "new"
        same = known is not None and self._is_same(known, item)
        before = known is not None and known.offset < answer.offset
        trusted = seams.trusted or (counting and not seams.shared)
        if same and (unique or trusted or (before and self.overlap)):
            if not unique and self._is_next_word(item):
                seams.shared = True
                return "new"
            self.drop(item)
            self._replayed_from(known)
            return "repeat"
        if unique:
            return "new"
        if own_id != seams.latest:
            held = seams.begin(item)
        else:
            # One event alone proves nothing, unless repeats are expected and ids have not been shared.
            held = bool(same and self.overlap and not seams.shared) and seams.begin(item, single=True)
        if not held:
            seams.shared = True
        return "held" if held else "new"

    def by_number(self, item: Any, answer: Answer, *, passed: bool, judged: bool) -> Finding:
        """
        Judge an item whose number has passed: a repeat, a divergence, or, without a replay, the provider's own numbering.

        Args:
            passed: Events with higher numbers have come since.
            judged: The item was held, and is not a repeat.
        """
        known = self._memory.find(item.own_id or str(item.sequence))
        # An event that the window has forgotten counts as a repeat in a replay; without a replay it cannot be one.
        same = bool(self.overlap) if known is None else self._is_same(known, item)
        if self.overlap and same:
            self.drop(item)
            self._replayed_from(known)
            return "repeat"
        if self.overlap and known is not None and known.offset < answer.offset:
            return "diverged"
        # An event that shares its number with the previous one is a repeat only if the answer may have joined a running stream.
        if not judged and (passed or answer.joins) and self._seams.begin(item, single=answer.joins):
            return "held"
        return "new"

    def _is_next_word(self, item: Any) -> bool:
        """
        Whether an item right after its dropped equal may be new: if there is only one id, it may be that of a message.

        A number that comes twice is a repeat, since ids that count do not name a message.
        """
        seams, dropped = self._seams, self._dropped
        one_name = seams.shared or len(seams.ids) + len(seams.raw) < 2
        return (
            one_name
            and counter(item.own_id) is None
            and dropped is not None
            and dropped.own_id == item.own_id
            and self._is_same(dropped, item)
        )

    def _is_same(self, known: Any, item: Any) -> bool:
        return self._memory.fingerprint(known) == self._memory.fingerprint(item)

    def is_old(self, cursor: str | None) -> bool:
        """Whether a cursor, in a replay, is an id that we have. Moving back would make us expect the following events twice."""
        return bool((self.overlap or self._seams.open) and cursor and self._memory.knows(cursor))

    # --- what becomes of an event

    def drop(self, item: Any) -> None:
        """Drop an item as a duplicate."""
        self.duplicates += 1
        self._dropped = item
        number = str(item.sequence) if item.sequence is not None else None
        self._notices.append(DuplicateDropped(getattr(item, "own_id", None) or number))

    def delivered(self, item: Any, *, resumable: bool) -> None:
        """
        Record a new event, which later events may repeat.

        Args:
            resumable: The stream can be resumed from after it.
        """
        if resumable:
            self._memory.remember(item)
        if item.own_id:
            self._seams.learn(item.own_id, item.offset)
        if self._unproven:
            self._unproven = []
        self._dropped = None
        if self.overlap:
            self.overlap -= 1
