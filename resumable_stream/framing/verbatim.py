"""
Items with their original bytes, for callers that pass bytes on, and with their position in the body.

A chunk is cut after each blank line (for JSON lines: after each line end), and the pieces are fed to the decoder one by one.
An item's bytes are therefore those that belong to no item before it: its own block, and the comments before it.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from .._errors import ResumableStreamError

__all__ = ["VerbatimDecoder", "encoded"]

_BOM = b"\xef\xbb\xbf"
# Two line ends in a row; atomic, because a CRLF must not count as two.
_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END: Final = re.compile(rb"\n")
# Heartbeats between two events: half a day's worth at 20 bytes every 15 seconds.
_LOOSE_BYTES: Final = 64 * 1024
_LINE_ENDS: Final = re.compile(r"\r\n|\n|\r")


class VerbatimDecoder:
    """
    A decoder whose items have their original bytes (`Item.wire`) and the position where they end in the body (`Item.ends`).

    Args:
        decoder: An `SSEDecoder` or an `NDJSONDecoder`.
        framing: Which of the two.
        start: Position of the first byte in the whole body.
        carried: The result of `carry()` of the previous connection's decoder; see `take_carried()`.
        spliced: Bytes of an earlier connection precede these.
        beat: A block without an event that belongs to no item's bytes; empty: there is none.
    """

    __slots__ = ("_beat", "_carried", "_decoder", "_edge", "_end", "_held", "_open", "_owed", "_spliced", "_sse", "_supplied")

    def __init__(
        self,
        decoder: Any,
        *,
        framing: Literal["sse", "ndjson"],
        start: int = 0,
        carried: bytes = b"",
        spliced: bool = False,
        beat: bytes = b"",
    ) -> None:
        self._decoder = decoder
        self._beat = beat
        self._sse = framing == "sse"
        self._end = start
        # Bytes that belong to no item yet. The first `_owed` of them will not be sent again, because their id moved the cursor.
        self._carried = carried
        self._held = bytearray()
        self._owed = 0
        # Where the unfinished block begins.
        self._open = 0
        # The end of the held bytes, which may be half a blank line.
        self._edge = b""
        # The LF of a CRLF was passed on before it arrived.
        self._supplied = False
        self._spliced = spliced

    # Read by the machine at every chunk, so these are properties and not a slower `__getattr__`.

    @property
    def error(self) -> ResumableStreamError | None:
        error: ResumableStreamError | None = self._decoder.error
        return error

    @property
    def partial(self) -> bool:
        return bool(self._decoder.partial)

    @property
    def retry(self) -> int | None:
        return getattr(self._decoder, "retry", None)

    @property
    def last_event_id(self) -> str:
        return getattr(self._decoder, "last_event_id", "")

    @property
    def silent(self) -> list[tuple[int, str]]:
        return getattr(self._decoder, "silent", [])

    @silent.setter
    def silent(self, silent: list[tuple[int, str]]) -> None:
        self._decoder.silent = silent

    def take_carried(self) -> bytes:
        """Bytes to put before the first item that is delivered. (The first that arrives may be a repeat.)"""
        carried, self._carried = self._carried, b""
        return carried

    def carry(self) -> bytes:
        """Bytes that have to precede those of the next connection."""
        return self._carried + self._held[: self._owed]

    @property
    def idle(self) -> bool:
        """Nothing is held: the next byte begins a block."""
        return not self._held and not self._carried and not self._supplied

    def pass_over(self, size: int) -> None:
        """Skip `size` bytes of whole blocks that were passed on without being read here."""
        self._end += size

    def read_late(self, data: bytes) -> list[Any]:
        """Decode whole blocks whose bytes were already passed on."""
        self._end += len(data)
        items: list[Any] = self._decoder.feed(data)
        return items

    def feed(self, data: bytes) -> list[Any]:
        items: list[Any] = []
        if self._supplied:
            self._supplied = False
            if data.startswith(b"\n"):
                self._decoder.feed(b"\n")
                self._end += 1
                data = data[1:]
        if self._sse and not self._held and data.endswith(b"\n\n") and data.count(b"\n\n") == 1 and b"\r" not in data:
            # One event a chunk, as live streams have it.
            self._take(data, items)
            return items
        window = self._edge + data
        shift = len(self._edge)
        start = 0
        for match in (_BLANK_LINE if self._sse else _LINE_END).finditer(window):
            end = match.end() - shift
            if end > start:
                self._take(data[start:end], items)
                start = end
        if start < len(data):
            rest = data[start:] if start else data
            items += self._decoder.feed(rest)
            self._end += len(rest)
            self._held += rest
            if len(self._held) - self._open > _LOOSE_BYTES and not self._decoder.partial:
                # Nothing but comments so far. What is left of the last one must stay a comment.
                del self._held[self._open :]
                self._held += b"" if rest.endswith((b"\n", b"\r")) else b":"
        self._edge = window[max(start + shift if start else 0, len(window) - 2) :]
        return items

    def _take(self, piece: bytes, items: list[Any]) -> None:
        """Feed what ends with a block or a line."""
        silent = len(self.silent)
        found = self._decoder.feed(piece)
        if len(self.silent) > silent:
            # Blocks in front of events of later pieces are counted from the feed's beginning.
            moved = self.silent
            moved[silent:] = [(at + len(items), own_id) for at, own_id in moved[silent:]]
        self._end += len(piece)
        if piece.endswith(b"\r") and (self._held + piece).endswith(b"\n\r"):
            # The block is over with the CR, but its reader may look for the LF too.
            piece += b"\n"
            self._supplied = True
        if not found:
            self._keep(piece, own_id=self.silent[-1][1] if len(self.silent) > silent else None)
            return
        self._mark(found[0], piece)
        items += found

    def _mark(self, item: Any, piece: bytes) -> None:
        wire = piece
        if self._held:
            wire = bytes(self._held) + piece
            self._held.clear()
            self._owed = 0
        if self._spliced:
            # The first of this connection.
            wire = wire.removeprefix(_BOM)
            self._spliced = False
        self._open = 0
        item.wire, item.ends = wire, self._end

    def _keep(self, piece: bytes, *, own_id: str | None) -> None:
        """A block without an event is over: a comment, or an id alone, which will not be sent again."""
        held = self._held
        held += piece
        if self._beat and held[self._open :] == self._beat:
            del held[self._open :]
            return
        if len(held) - self._owed > _LOOSE_BYTES:
            # As much as stands in front of it; and the block too, if it is too long by itself.
            if len(held) - self._open > _LOOSE_BYTES:
                del held[self._open :]
                held += b"" if own_id is None else f"id: {own_id}\n\n".encode("utf-8", "surrogatepass")
            del held[self._owed : self._open]
        if own_id is not None:
            self._owed = len(held)
        self._open = len(held)

    @property
    def in_line(self) -> bool:
        return bool(self._decoder.in_line)

    def unfinished(self) -> list[Any]:
        """The event without its blank line, with its bytes, and a blank line for who reads them."""
        # After a CR, the first LF is the other half of its line end.
        ended = self._held.endswith(b"\n")
        found: list[Any] = self._decoder.unfinished()
        if found:
            # What is held stays: if the event is not taken, `carry()` is still asked.
            wire = bytes(self._held) + (b"\n" if ended else b"\n\n")
            found[0].wire, found[0].ends = wire.removeprefix(_BOM) if self._spliced else wire, self._end
        return found

    def eof(self) -> list[Any]:
        items: list[Any] = list(self._decoder.eof())
        if items:
            self._mark(items[0], b"")
            if not self._sse:
                # A line without its end. If another connection goes on, it must not go on in this line.
                self._held += b"\n"
                self._owed = 1
        return items


def encoded(event: Any, framing: Literal["sse", "ndjson", "raw"]) -> bytes:
    """
    An item that never was on a wire, as its bytes would be: of a store, or of a stored result.

    Args:
        event: A `StreamEvent`, or of a byte stream a `Chunk`.
    """
    if framing == "raw":
        return bytes(event.data)
    if framing == "ndjson":
        return f"{event.data}\n".encode()
    lines = [] if event.own_id is None else [f"id: {event.own_id}"]
    if event.event != "message":
        lines.append(f"event: {event.event}")
    lines += [f"data: {line}" for line in _LINE_ENDS.split(event.data)]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "surrogatepass")
