"""After a reset: which event says that what was delivered is void, and which events only restate what we had."""

from __future__ import annotations

from typing import Any

from .beginning import Sign
from .parts import Part

__all__ = ["Resets"]


class Resets(Part):
    """
    Attributes:
        pending: The next event says that what was delivered from this offset on is void. `None`: it does not.
        delivered: Events of this connection that said so.
        restated: Events of this connection that repeat the state which the reset made void: they are no progress.
    """

    __slots__ = ("_replaced", "delivered", "pending", "restated")

    def __init__(self) -> None:
        self.pending: int | None = None
        self.delivered = 0
        self.restated = 0
        self._replaced: tuple[Sign, ...] = ()
        """How the state began that the reset made void, as long as the new one begins like it."""

    def open_connection(self, *, begun: bool) -> None:
        """
        Args:
            begun: Events were delivered since the reset: what comes goes on after them.
        """
        self.delivered = self.restated = 0
        if begun:
            self._replaced = ()

    def restart(self, offset: int, beginning: tuple[Sign, ...], *, anew: bool) -> None:
        """
        Args:
            beginning: What was delivered from `offset` on began like this.
            anew: The server makes it once more, so nothing of it restates what we had.
        """
        self.pending = offset
        self._replaced = () if anew else beginning or self._replaced

    def mark(self, item: Any) -> None:
        """A reset is pending, and this is the event that says so."""
        item.reset, self.pending = True, None
        self.delivered += 1

    def mark_piece(self, item: Any) -> None:
        """As `mark()`, for a piece of raw bytes, which states nothing."""
        item.reset, self.pending = True, None

    def compare(self, at: int, sign: Sign) -> None:
        """The event that is `at` that place of the new beginning was delivered."""
        if not self._replaced:
            return
        if at < len(self._replaced) and self._replaced[at] == sign:
            self.restated += 1
        else:
            self._replaced = ()
