"""
How the stream began. If a server ignores the cursor and starts over, its answer begins the same way.

The beginning consists of the leading events, up to the first that has an id.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .parts import Part

__all__ = ["Beginning", "Likeness", "Sign"]

# How many events without an id are noted, and how many may be held back.
LONGEST: Final = 16
# Ids over 256 characters are not written into a checkpoint: best effort.
LONGEST_KEPT: Final = 256


class Sign(NamedTuple):
    """How an event of the beginning is recognised. `number`: the one that the protocol gives it."""

    own_id: str | None
    fingerprint: str
    number: int | None


Likeness: TypeAlias = Literal["so far", "whole", "none"]
"""
What an event shows about the beginning of its answer.

- `so far`: up to this event, the answer begins as the stream did; the event is held;
- `whole`: the whole beginning has come again; the event is held;
- `none`: the answer begins differently.
"""


class Beginning(Part):
    """
    Attributes:
        signs: How the leading events are recognised.
        open: Whether more of them are to be noted.
        held: Events held while their answer begins like the stream.
    """

    __slots__ = ("_at", "held", "open", "signs")

    def __init__(self, *, noted: bool) -> None:
        self.signs: tuple[Sign, ...] = ()
        self.open = noted
        self.held: tuple[Any, ...] = ()
        self._at: int | None = None
        """How many of `signs` the answer has matched; `None` if it is not compared."""

    @property
    def compared(self) -> bool:
        """Whether the answer is still being compared with the stream's beginning."""
        return self._at is not None

    def note(self, sign: Sign) -> int:
        """A leading event was delivered. Returns its index."""
        at = len(self.signs)
        self.signs = (*self.signs, sign)
        if sign.own_id or at + 1 == LONGEST:
            self.open = False
        return at

    def open_connection(self, *, compare: bool) -> None:
        """A new answer begins. It is not compared if only content is known, since a stream may repeat the same content."""
        self.held = ()
        known = compare and any(sign.own_id is not None or sign.number is not None for sign in self.signs)
        self._at = 0 if known else None

    def compare(self, item: Any, sign: Sign) -> Likeness:
        """Whether the answer still matches the beginning. An event's number is not known in another process."""
        assert self._at is not None
        expected = self.signs[self._at]
        if sign[:2] != expected[:2] or expected.number not in (None, sign.number):
            return self.differs()
        self.held = (*self.held, item)
        self._at += 1
        if self._at < len(self.signs):
            return "so far"
        self._at = None
        return "whole"

    def differs(self) -> Likeness:
        """The answer begins differently."""
        self._at = None
        return "none"

    def take_held(self) -> tuple[Any, ...]:
        held, self.held = self.held, ()
        return held

    def text(self) -> str | None:
        """The stream's first event, for a checkpoint; `None` if it has no id to be recognised by."""
        if not self.signs:
            return None
        own_id, fingerprint, _ = self.signs[0]
        return f"{fingerprint} {own_id}" if own_id is not None and len(own_id) <= LONGEST_KEPT else None

    def restore(self, text: str | None, *, noted: bool) -> None:
        """Restore what `text()` returned in another process."""
        self.open = noted
        if text:
            fingerprint, _, own_id = text.partition(" ")
            self.signs = (Sign(own_id, fingerprint, None),)
