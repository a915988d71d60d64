"""Events of the wire that are not delivered as they are: batches, and connection pings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from .._errors import ResumableStreamError

__all__ = ["Unpacking"]

# Maximum bytes kept of the pings between two events. 64 KiB: about five hundred pings.
_LOOSE_BYTES: Final = 64 * 1024


class Unpacking:
    """
    A decoder whose events are split as they come.

    Args:
        decoder: The decoder of the framing; attributes that are not listed here are its own.
        unpack: The protocol's `unpack()`.

    Attributes:
        error: The decoder's error, or what `unpack` raised.
        silent: As in `SSEDecoder`: ids without an event, at their positions between the events to deliver.
    """

    def __init__(self, decoder: Any, unpack: Callable[[Any], Iterable[Any]]) -> None:
        self.silent: list[tuple[int, str]] = []
        self._decoder = decoder
        self._unpack = unpack
        self._loose = b""
        self._error: ResumableStreamError | None = None

    @property
    def error(self) -> ResumableStreamError | None:
        found: ResumableStreamError | None = self._error or self._decoder.error
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def feed(self, data: bytes) -> list[Any]:
        return self._take_apart(self._decoder.feed(data))

    def eof(self) -> list[Any]:
        return self._take_apart(self._decoder.eof())

    def unfinished(self) -> list[Any]:
        return self._take_apart(self._decoder.unfinished())

    def _take_apart(self, items: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        starts = []
        for item in items:
            starts.append(len(found))
            try:
                parts = list(self._unpack(item))
            except ResumableStreamError as error:
                # As with a line that is too long, what came before it is delivered.
                self._error = error
                break
            if (wire := item.wire) is not None:
                self._mark(parts, wire, item.ends)
            found += parts
        if silent := getattr(self._decoder, "silent", None):
            starts.append(len(found))
            self.silent = [(starts[at], own_id) for at, own_id in silent if at < len(starts)]
            self._decoder.silent = []
        return found

    def _mark(self, parts: Sequence[Any], wire: bytes, ends: int) -> None:
        """Give a batch's bytes to its first part, which the others refer to; a ping's bytes wait for the next event."""
        wire = self._loose + wire
        self._loose = b"" if parts or len(wire) > _LOOSE_BYTES else wire
        for part in parts:
            part.wire, part.ends = parts[0], ends
        if parts:
            parts[0].wire = wire
