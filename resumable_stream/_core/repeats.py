"""
Was this event delivered before? (Rule 5.) Here a duplicate is recognised, and here it is dropped.

Within one answer, the first included, a server may repeat what it sent where its replay meets what is live: see `seams`.
After a reconnect there are three more ways of knowing a repeat, tried in this order:

1. *The beginning.* A server that ignores the cursor starts over. Its answer begins as the stream began;
   then everything delivered is expected again.
2. *Order.* Events without an id of their own can only be told apart by content and order: those that followed the
   cursor are expected again, in order, and dropped while they match (`Prefix`).
3. *Identity.* An id or number seen before is a repeat if the content is the same too.

They are tried for `window` events, since late repeats happen where replay meets live.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from .._contract import ResumeProtocol
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
What an event is.

- `new`: it was not delivered before;
- `repeat`: it was, so it was dropped;
- `expected`: it was, and it was the one expected here, so it was dropped;
- `held`: it may be a repeat, so it is held until that is known;
- `diverged`: something else was delivered in its place.
"""


class Repeats(Part):
    """
    What may come again on a connection, and what of it did.

    Args:
        protocol: Whose ids and numbers they are.
        memory: The events delivered, by identity.
        seams: What ids are worth.
        window: `Limits.window`.
        notices: Where notices go.

    Attributes:
        beginning: How the stream began.
        overlap: For so many more events, what was delivered may come again.
        duplicates: Events dropped so far.
        cursor_ignored: The server has started over, although it was asked to go on.
    """

    __slots__ = (
        *("_catch_up", "_dropped", "_memory", "_notices", "_prefix", "_protocol", "_replayed_to", "_seams", "_unproven"),
        *("_window", "beginning", "cursor_ignored", "duplicates", "overlap"),
    )

    def __init__(self, protocol: ResumeProtocol, memory: Memory, seams: Seams, *, window: int, notices: list[Notice]) -> None:
        self._protocol = protocol
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
        """Events that are expected again, in their order."""
        self._replayed_to: int | None = None
        """The offset after an event that came again: those after it that have no identity are expected next."""
        self._dropped: Any = None
        """The latest repeat, until an event is delivered."""
        self._unproven: Sequence[Any] = []
        """Events that the last connection held when it was cut. They count only if the next one brings nothing new."""
        self._catch_up = False
        """While ids counted, nothing but the count was kept: the seams have to learn them."""

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
            tip: The position that it goes on from.
            reaches_back: It may begin with the beginning, and that is no sign that the server ignores the cursor.
        """
        self._unproven = self._seams.cut() or self._unproven
        self._dropped = None
        self._prefix = None
        self._replayed_to = None
        cursor, _, _, log, logged = tip
        replays = self._protocol.replays
        self.beginning.open_connection(compare=resuming and not replays and cursor is not None and not reaches_back)
        if not resuming:
            return
        self.overlap = self._window
        if log is not None and (logged or replays):
            self._prefix = Prefix(log, strict=replays)

    def take_held(self) -> Sequence[Any]:
        """The stream is over: what was held as a possible repeat, and was not proven to be one, is new."""
        held, self._unproven = self._seams.cut() or self._unproven, []
        return held

    def holds(self, item: Any) -> bool:
        """It is held until it is known whether it is a repeat."""
        return any(held is item for held in (*self.beginning.held, *self._seams.held))

    @property
    def none_expected(self) -> bool:
        """Nothing may come again, as far as is known, and the beginning is noted."""
        return not (
            self.overlap or self._prefix is not None or self.beginning.compared or self._seams.open or self.beginning.open
        )

    @property
    def replaying(self) -> bool:
        """Events are expected again in their order."""
        return self._prefix is not None

    def ids_counted(self) -> None:
        """The stream comes from a lane that has kept nothing but the count."""
        self._catch_up = True

    # --- the beginning

    def by_beginning(self, item: Any) -> Likeness:
        """Does the answer begin as the stream began?"""
        beginning, prefix = self.beginning, self._prefix
        if prefix is not None and not beginning.held and prefix.expects(self._key(item)):
            return beginning.differs()
        return beginning.compare(item, self.sign(item))

    def start_over(self) -> None:
        """The whole beginning came again: the server ignores the cursor."""
        self.cursor_ignored = True
        self._notices.append(CursorIgnored())

    def expect_everything(self, offset: int) -> None:
        """All that was delivered is expected again; what is no longer remembered is counted."""
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
        """What the beginning is known by."""
        number = item.sequence if self._protocol.places else None
        return Sign(item.own_id or None, self._protocol.fingerprint(item), number)

    # --- a run within one answer

    def follows_run(self, item: Any) -> bool:
        """Is it part of the run? Then it is held, or it is the proof that all of the run is a repeat."""
        if not self._seams.follow(item):
            return False
        for repeat in self._seams.repeats():
            self.drop(repeat)
        return True

    def leave_run(self) -> Sequence[Any]:
        """The run is over. Returns the events of it that are new."""
        held, repeats = self._seams.over()
        if not repeats:
            return held
        for each in held:
            self.drop(each)
        return ()

    # --- by order

    def by_order(self, item: Any, numbers: Numbers) -> Finding:
        """Is it an event that is expected here? What has an identity is known by that, unless all of the stream is expected."""
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
                # A seam within the replay: what follows it is still what was expected here.
                prefix.rewind()
                self.drop(item)
                return "repeat"
            case _:
                return "diverged"

    def order_ends(self) -> None:
        """A new event was delivered: nothing follows it that was there before, unless all of the stream is expected."""
        if self._prefix is None or not self._prefix.whole:
            self._prefix = self._replayed_to = None

    def expected_after_cursor(self) -> Sequence[str] | None:
        """
        The cursor has moved, without an event. What follows it, of the events that we hold?

        Returns:
            Their fingerprints; `None`: that cannot be told.
        """
        prefix = self._prefix
        return prefix.rest() if prefix is not None and prefix.whole else ()

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

    def _run_from(self, offset: int, numbers: Numbers) -> Prefix | None:
        """The events from `offset` on that have no identity, as events expected again; the next one that has ends it."""
        log = SinceLog(self._window)
        for seen in self._memory.starting_at(offset):
            if seen.own_id or (numbers.promised and seen.sequence is not None):
                break
            log.items.append(self._key(seen))
        return Prefix(log, strict=False) if log.items else None

    def _replayed_from(self, known: Any) -> None:
        """The server replays from there: events after it that have no identity are known by their order."""
        if known is not None and known.offset >= 0 and (self._prefix is None or not self._prefix.whole):
            self._replayed_to = known.offset + 1

    def _key(self, item: Any) -> str:
        """What a repeat by order must share: the content, and the id where there is one."""
        fingerprint = self._memory.fingerprint(item)
        return f"{fingerprint} {item.own_id}" if item.own_id else fingerprint

    # --- by identity

    def by_id(self, item: Any, answer: Answer, *, counting: bool) -> Finding:
        """
        Were its id and content delivered before?

        Args:
            answer: The one that it came with.
            counting: Ids have counted so far, if they are watched.
        """
        if self._catch_up:
            self._catch_up = False
            self._seams.restore(self._memory.ids())
        own_id, unique, seams = item.own_id, self._protocol.unique_ids, self._seams
        if not own_id or not (unique or self.overlap or seams.knows(own_id)):
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
            # Alone it proves nothing, unless events are expected to come again and ids have not been shared.
            held = bool(same and self.overlap and not seams.shared) and seams.begin(item, single=True)
        if not held:
            seams.shared = True
        return "held" if held else "new"

    def by_number(self, item: Any, answer: Answer, *, passed: bool, judged: bool) -> Finding:
        """
        Its number is one that we hold: a repeat, a divergence, or, where nothing was replayed, the provider's own affair.

        Args:
            passed: Events with higher numbers came since.
            judged: It was held, and is no repeat.
        """
        known = self._memory.find(item.own_id or str(item.sequence))
        # One that the window has forgotten is believed in a replay; without one it cannot be a repeat.
        same = bool(self.overlap) if known is None else self._is_same(known, item)
        if self.overlap and same:
            self.drop(item)
            self._replayed_from(known)
            return "repeat"
        if self.overlap and known is not None and known.offset < answer.offset:
            return "diverged"
        # One event that shares its number with the one before it is a repeat only where something may have been running already.
        if not judged and (passed or answer.joins) and self._seams.begin(item, single=answer.joins):
            return "held"
        return "new"

    def _is_next_word(self, item: Any) -> bool:
        """
        Right after its equal was dropped, and no other id came yet: the id may be that of a message, and this its next word.

        A number that comes twice is a repeat: what counts does not name a message.
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
        """In a replay: an id that we hold. Moving back to it would make us expect the events after it twice."""
        return bool((self.overlap or self._seams.open) and cursor and self._memory.knows(cursor))

    # --- what becomes of an event

    def drop(self, item: Any) -> None:
        """It is a duplicate."""
        self.duplicates += 1
        self._dropped = item
        number = str(item.sequence) if item.sequence is not None else None
        self._notices.append(DuplicateDropped(getattr(item, "own_id", None) or number))

    def delivered(self, item: Any, *, resumable: bool) -> None:
        """
        It is new: what comes from here on may repeat it.

        Args:
            resumable: There is a place to go on from after it.
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
