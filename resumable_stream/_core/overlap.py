"""
Recognise repeats by order: what followed the cursor is expected again, in the same order, and dropped while it matches.

For events without an id of their own, nothing else identifies a repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from .._checkpoint import chain
from .parts import Part

__all__ = ["Prefix", "SinceLog"]


class SinceLog:
    """
    Fingerprints of the events since the cursor moved, oldest first.

    Bounded: beyond twice the window, the oldest are folded into a count and a chained digest.
    """

    __slots__ = ("base", "digest", "items", "window")

    def __init__(self, window: int, items: Iterable[str] = (), base: int = 0, digest: str = "") -> None:
        self.window = window
        self.items = list(items)
        self.base = base
        self.digest = digest

    def __len__(self) -> int:
        return self.base + len(self.items)

    def append(self, fingerprint: str) -> None:
        self.items.append(fingerprint)

    def cut(self, count: int) -> None:
        """Forget what was appended after the first `count`."""
        del self.items[max(count - self.base, 0) :]

    def fold(self) -> None:
        """Keep the bound. Called between batches, since any position within the latest may still be requested."""
        if len(self.items) > 2 * self.window:
            cut = len(self.items) - self.window
            self.digest = chain(self.digest, self.items[:cut])
            self.base += cut
            del self.items[:cut]

    def upto(self, count: int) -> tuple[str, ...]:
        """
        The log as it was when it held `count` events, in the form of `Checkpoint.since`.

        Raises:
            ValueError: Those events are already folded.
        """
        if count < self.base:
            raise ValueError(f"this event is more than {self.window} events old; commit sooner or raise Limits.window")
        held = self.items[: count - self.base]
        if self.base:
            return (f"{count}*{chain(self.digest, held)}",)
        return tuple(held)

    @classmethod
    def parse(cls, since: Sequence[str], window: int) -> SinceLog:
        if len(since) == 1 and "*" in since[0]:
            count, _, digest = since[0].partition("*")
            return cls(window, (), int(count), digest)
        return cls(window, since)


class Prefix(Part):
    """
    The events that are expected again at the start of an answer.

    Args:
        log: The expected events. A folded part is compared as one, once it has come completely.
        strict: The whole stream is expected from its beginning (`whole`), so a difference is a divergence;
            otherwise a difference only ends the prefix.
        unknown: How many events before the log are expected too, although nothing is known about them.
    """

    __slots__ = ("_base", "_digest", "_items", "_seen", "_strict", "_unknown", "_wanted", "whole")

    def __init__(self, log: SinceLog, *, strict: bool, unknown: int = 0) -> None:
        # A copy of the log as it is now, since it may fold during the replay.
        self._base, self._wanted, self._items = log.base, log.digest, tuple(log.items)
        self.whole = strict
        self._strict = strict or log.base > 0
        self._unknown = unknown
        self._seen = 0
        self._digest = ""

    @property
    def done(self) -> bool:
        return self._seen >= self._unknown + self._base + len(self._items)

    @property
    def seen(self) -> int:
        """How many events have been compared."""
        return self._seen

    def rewind(self) -> None:
        """Undo the latest comparison: that event is not one of the expected ones."""
        self._seen -= 1

    def expects(self, fingerprint: str) -> bool:
        """Whether exactly this event is next; False if that is not known."""
        index = self._seen - self._unknown - self._base
        return 0 <= index < len(self._items) and self._items[index] == fingerprint

    def rest(self) -> tuple[str, ...] | None:
        """What has not come yet; `None` if it is known only as part of one digest."""
        index = self._seen - self._unknown - self._base
        return self._items[index:] if index >= 0 else None

    def match(self, fingerprint: str) -> Literal["same", "over", "diverged"]:
        index = self._seen - self._unknown
        self._seen += 1
        if index < 0:
            return "same"
        if index < self._base:
            self._digest = chain(self._digest, (fingerprint,))
            if index == self._base - 1 and self._digest != self._wanted:
                return "diverged"
            return "same"
        if self._items[index - self._base] == fingerprint:
            return "same"
        return "diverged" if self._strict else "over"
