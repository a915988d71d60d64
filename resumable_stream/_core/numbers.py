"""
Whether something is missing, as far as numbers prove it (rule 6).

Numbers are promised by the protocol, or ids are watched until they have counted for long enough (`sequence="auto"`).
If events are missing, they are requested from the server once; then the caller's `on_gap` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from .._contract import Measured, ResumeProtocol, placing
from .._errors import GapError
from .._events import Gap
from .._notices import GapFound, Notice, NumberingStopped, NumberOutOfOrder
from .parts import Part

__all__ = ["HoleFound", "Numbers", "Standing", "counter"]

# 8: three in a row happen by chance with random ids, eight do not (rule 6).
WATCH_AFTER: Final = 8


@dataclass(frozen=True, slots=True)
class HoleFound:
    """Events are missing and have not been requested from the server yet."""

    gap: Gap


Standing: TypeAlias = Literal["next", "passed", "ahead"]
"""
How a promised number relates to the expected one.

- `next`: nothing is missing before it;
- `passed`: it is not higher than the last one;
- `ahead`: numbers before it are missing.
"""


class Numbers(Part):
    """
    The numbers of one stream, and the gaps that they show.

    Args:
        protocol: The protocol that gives the numbers.
        on_gap: What the caller chose.
        notices: List that receives notices.

    Attributes:
        promised: The protocol promises that numbers only increase.
        contiguous: It promises that no number is left out.
        watching: Ids are being watched, since they may count.
        counting: Ids have counted for long enough to be relied on.
        last: The newest number.
        pending: A gap to deliver with the next event.
        gaps: Gaps found so far.
    """

    __slots__ = (
        *("_asked", "_first", "_notices", "_on_gap", "_placed", "_run", "contiguous", "counting", "gaps", "last"),
        *("pending", "promised", "watching"),
    )

    def __init__(self, protocol: ResumeProtocol, *, on_gap: Literal["refetch", "deliver"], notices: list[Notice]) -> None:
        self._first = Measured.of(protocol).first_sequence
        self._placed = placing(protocol) is not None
        self._on_gap = on_gap
        self._notices = notices
        self.promised = protocol.sequence in ("contiguous", "increasing")
        self.contiguous = protocol.sequence == "contiguous"
        self.gaps = 0
        self.pending: Gap | None = None
        self._asked: tuple[int | None, int] | None = None
        """The gap that was requested from the server: the expected number, and the offset."""
        self.restart(protocol)

    def restart(self, protocol: ResumeProtocol) -> None:
        """What was delivered is void, and numbering starts again."""
        self.watching = protocol.sequence == "auto"
        self._stop_counting()

    def _stop_counting(self) -> None:
        self.counting = False
        self._run = 0
        self.last: int | None = None

    def restore(self, sequence: int | None) -> None:
        """Restore the number from a checkpoint, which for watched ids holds one only if they counted."""
        self.last = sequence
        if self.watching and sequence is not None:
            self._run, self.counting = WATCH_AFTER, True

    # --- ids that are watched

    def goes_on(self, own_id: str) -> bool:
        """Whether this id continues a count that we rely on, and so is not a repeat."""
        if not self.counting or self.last is None:
            return False
        number = counter(own_id)
        return number is not None and number > self.last

    def watch(self, item: Any, cursor: str | None) -> None:
        """Number a delivered event with an id while ids count, and mark a jump."""
        number = counter(item.own_id)
        expected = None if self.last is None else self.last + 1
        if number is None or (expected is not None and number != expected and not self.counting):
            self._stop_watching(expected, item.own_id)
            return
        if expected is not None and number != expected:
            if number < expected:
                # The counter started again, so it was never a promise.
                self._stop_watching(expected, item.own_id)
                return
            self.mark(item, Gap(expected=expected, received=number, after=cursor))
        item.sequence = self.last = number
        self._run = min(self._run + 1, WATCH_AFTER)
        self.counting = self._run >= WATCH_AFTER

    def _stop_watching(self, expected: int | None, own_id: str) -> None:
        if self.counting:
            assert expected is not None
            self._notices.append(NumberingStopped(expected, own_id))
        self.watching = False
        self._stop_counting()

    # --- numbers that are promised

    @property
    def expected(self) -> int | None:
        """The number that the next event should have, if known."""
        return self._first if self.last is None else self.last + 1

    def standing(self, number: int) -> Standing:
        """How a promised number relates to the expected one."""
        if self.last is not None and number <= self.last:
            return "passed"
        expected = self.expected
        return "ahead" if self.contiguous and expected is not None and number > expected else "next"

    def out_of_order(self, item: Any) -> None:
        """Deliver an event whose number has passed. It does not move the position."""
        assert self.last is not None
        self._notices.append(NumberOutOfOrder(self.last + 1, item.sequence))
        item.moves = False

    def delivered(self, item: Any) -> None:
        """Record a delivered event whose number is promised; the newest number never decreases."""
        if item.sequence is not None and (self.last is None or item.sequence > self.last):
            self.last = item.sequence

    def at(self, item: Any) -> int | None:
        """The number of the position after this event, the newest."""
        if self.promised or self.counting:
            return self.last
        # The number is not promised to count, but the protocol may still send it back.
        return item.sequence if self._placed else None

    @property
    def prove(self) -> bool:
        """Whether the numbers prove that nothing is missing."""
        return self.contiguous or self.counting

    def reached_silently(self, cursor: str) -> bool:
        """
        A block without data moves the cursor to `cursor`. An id-only block uses up a number.

        Returns:
            False: something is missing before it; the next event will show what.
        """
        number = counter(cursor)
        if self.prove and number is not None:
            if self.last is None or number == self.last + 1:
                self.last = number
            elif number > self.last:
                return False
        return True

    # --- gaps

    def mark(self, item: Any, gap: Gap) -> None:
        """Mark a gap before this event. The missing events are not requested."""
        item.gap = gap
        self.gaps += 1
        self._notices.append(GapFound(gap, False))

    def mark_pending(self, item: Any) -> None:
        """Mark the pending gap, which was accepted, before this event."""
        item.gap, self.pending = self.pending, None

    def find(self, gap: Gap, offset: int, *, refetch: bool) -> HoleFound | GapError | None:
        """
        Events are missing.

        Args:
            offset: Events delivered so far.
            refetch: They can be requested from the server.

        Returns:
            The hole, the first time; then the error, or `None` if the caller wants the next event delivered with the gap.
        """
        hole = (gap.expected, offset)
        known = self._asked == hole
        if not known:
            self.gaps += 1
        if refetch and not known:
            self._asked = hole
            self._notices.append(GapFound(gap, True))
            return HoleFound(gap)
        self._notices.append(GapFound(gap, False))
        if self._on_gap == "deliver":
            self.pending = gap
            return None
        where = f"after cursor {gap.after!r}" if gap.after is not None else "at the start of the stream"
        if gap.missing is None:
            text = f"the server reports lost history {where} and cannot replay it"
        else:
            text = f"expected sequence {gap.expected}, received {gap.received}: {gap.missing} events missing {where}"
        return GapError(text, expected=gap.expected, received=gap.received)


def counter(text: str) -> int | None:
    """Read a plain decimal counter; `None` for anything else (signs, leading zeros, other scripts, absurd length)."""
    if text.isascii() and text.isdigit() and len(text) < 20 and (text[0] != "0" or text == "0"):
        return int(text)
    return None
