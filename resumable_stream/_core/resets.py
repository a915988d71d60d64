"""After a reset: which event carries it, and which events only restate what we had."""

from __future__ import annotations

from typing import Any

from .beginning import Sign
from .parts import Part

__all__ = ["Resets"]


class Resets(Part):
    """
    Attributes:
        pending: The offset from which the next event voids what was delivered. `None`: it does not.
        delivered: Events of this connection that carried a reset.
        restated: Events of this connection that repeat the state voided by the reset, and so are not progress.
    """

    __slots__ = ("_replaced", "delivered", "pending", "restated")

    def __init__(self) -> None:
        self.pending: int | None = None
        self.delivered = 0
        self.restated = 0
        self._replaced: tuple[Sign, ...] = ()
        """How the voided state began, as long as the new one begins like it."""

    def open_connection(self, *, begun: bool) -> None:
        """
        Args:
            begun: Events were delivered since the reset, and the connection continues after them.
        """
        self.delivered = self.restated = 0
        if begun:
            self._replaced = ()

    def restart(self, offset: int, beginning: tuple[Sign, ...], *, anew: bool) -> None:
        """
        Args:
            beginning: How the voided events from `offset` on began.
            anew: The generation is run again, so nothing of it restates what we had.
        """
        self.pending = offset
        self._replaced = () if anew else beginning or self._replaced

    def mark(self, item: Any) -> None:
        """Mark this event as the carrier of the pending reset."""
        item.reset, self.pending = True, None
        self.delivered += 1

    def mark_piece(self, item: Any) -> None:
        """Like `mark()`, for a piece of raw bytes, which never counts as restated."""
        item.reset, self.pending = True, None

    def compare(self, at: int, sign: Sign) -> None:
        """Compare a delivered event, at index `at` of the new beginning, with the old one."""
        if not self._replaced:
            return
        if at < len(self._replaced) and self._replaced[at] == sign:
            self.restated += 1
        else:
            self._replaced = ()
