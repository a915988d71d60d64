"""
How the stream began. A server that ignores the cursor starts over, and its answer begins like that.

The beginning is known by its leading events, up to the first that has an id.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .parts import Part

__all__ = ["Beginning", "Likeness", "Sign"]

# So many events without an id are noted, and so many may be held back.
LONGEST: Final = 16
# Ids over 256 characters are not written into a checkpoint: best effort.
LONGEST_KEPT: Final = 256


class Sign(NamedTuple):
    """What an event of the beginning is known by. `number`: the one that the protocol gives it."""

    own_id: str | None
    fingerprint: str
    number: int | None


Likeness: TypeAlias = Literal["so far", "whole", "none"]
"""
What an event says of the answer that it came with.

- `so far`: the answer begins as the stream did, as far as it has come; the event is held;
- `whole`: the whole beginning has come again; the event is held;
- `none`: the answer begins in another way.
"""


class Beginning(Part):
    """
    Attributes:
        signs: What the leading events are known by.
        open: More of them are to be noted.
        held: Events of an answer that begins like this, so far.
    """

    __slots__ = ("_at", "held", "open", "signs")

    def __init__(self, *, noted: bool) -> None:
        self.signs: tuple[Sign, ...] = ()
        self.open = noted
        self.held: tuple[Any, ...] = ()
        self._at: int | None = None
        """Where in `signs` the answer has got to; `None` where it is not compared."""

    @property
    def compared(self) -> bool:
        """It is not known yet whether the answer begins as the stream did."""
        return self._at is not None

    def note(self, sign: Sign) -> int:
        """A leading event was delivered. Returns its place."""
        at = len(self.signs)
        self.signs = (*self.signs, sign)
        if sign.own_id or at + 1 == LONGEST:
            self.open = False
        return at

    def open_connection(self, *, compare: bool) -> None:
        """A new answer begins. One whose content alone is known is not compared: it may well say the same twice."""
        self.held = ()
        known = compare and any(sign.own_id is not None or sign.number is not None for sign in self.signs)
        self._at = 0 if known else None

    def compare(self, item: Any, sign: Sign) -> Likeness:
        """Does the answer go on like the beginning? The number of an event is not known in another process."""
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
        """It does not."""
        self._at = None
        return "none"

    def take_held(self) -> tuple[Any, ...]:
        held, self.held = self.held, ()
        return held

    def text(self) -> str | None:
        """The stream's first event, for a checkpoint; `None` when it has no id to be known by."""
        if not self.signs:
            return None
        own_id, fingerprint, _ = self.signs[0]
        return f"{fingerprint} {own_id}" if own_id is not None and len(own_id) <= LONGEST_KEPT else None

    def restore(self, text: str | None, *, noted: bool) -> None:
        """What `text()` gave in another process."""
        self.open = noted
        if text:
            fingerprint, _, own_id = text.partition(" ")
            self.signs = (Sign(own_id, fingerprint, None),)
