"""
JSON lines: one value per line, lines end in LF.

The line is passed on as unparsed text, because the caller may never read it.
No blank line proves that an item is complete; for a last line without its LF see `NDJSONDecoder.eof`.
"""

from __future__ import annotations

import json

from .._errors import EventTooLarge, ResumableStreamError
from .._events import StreamEvent
from .._settings import Limits

__all__ = ["NDJSONDecoder"]

_BOM = b"\xef\xbb\xbf"
_DEFAULT = Limits()


class NDJSONDecoder:
    """
    Decode JSON lines, fed in chunks of any size.

    Lines are split on LF only, because JSON may contain U+2028 and similar characters. A CR before the LF is dropped, and so
    are blank lines.

    Args:
        line_bytes: Limit for one line, in bytes, without its LF.

    Attributes:
        error: Why decoding stopped: a line over the limit; otherwise `None`.
    """

    __slots__ = ("_line_bytes", "_pending", "_started", "error")

    def __init__(self, *, line_bytes: int = _DEFAULT.line_bytes) -> None:
        self.error: ResumableStreamError | None = None
        self._line_bytes = line_bytes
        self._pending = bytearray()
        self._started = False  # the first line, which may begin with a byte-order mark, has been read

    @property
    def partial(self) -> bool:
        """A line has begun and not ended. White space alone is not a line."""
        held = self._held()
        return bool(held) and not held.isspace()

    def feed(self, data: bytes) -> list[StreamEvent]:
        """
        Decode a chunk.

        Args:
            data: The next bytes of the body, of any length.

        Returns:
            One event for each line that the chunk completed, with the line as `data`; none once `error` is set.
        """
        if self.error is not None:
            return []
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._pending += data
            self._check_pending()
            return []
        block: bytes | bytearray = data[:cut]
        if self._pending:
            block = self._pending
            block += data[:cut]
            self._pending = bytearray(data[cut:])
        else:
            self._pending += data[cut:]
        self._check_pending()
        if len(block) > self._line_bytes:
            block = self._cut_before_long_line(block)
        if not self._started and block:
            self._started = True
            block = block.removeprefix(_BOM)
        # A byte that is not UTF-8 becomes U+FFFD: the line is then damaged, but the stream continues.
        lines = block.decode(errors="replace").split("\n")
        return [StreamEvent(data=line.removesuffix("\r")) for line in lines if line and not line.isspace()]

    def eof(self) -> list[StreamEvent]:
        """
        End the body.

        Many servers leave out the last LF, and a line that was cut looks the same. It is accepted if it is valid JSON,
        which a cut object or array never is. (A bare number may be, `12` of `123`; nobody streams those.)

        Returns:
            The last line, if it has no LF and is valid JSON. If it is not, it is dropped and `partial` remains true.
        """
        if not self.partial:
            return []
        line = self._held().decode(errors="replace").removesuffix("\r")
        try:
            json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: JSON nested deeper than Python can follow
            return []
        self._pending.clear()
        return [StreamEvent(data=line)]

    def _held(self) -> bytearray:
        return self._pending if self._started else self._pending.removeprefix(_BOM)

    def _check_pending(self) -> None:
        if len(self._pending) > self._line_bytes:
            self._fail(len(self._pending))

    def _cut_before_long_line(self, block: bytes | bytearray) -> bytes | bytearray:
        """Set the error and shorten the block, if one of its lines is over the limit."""
        start = 0
        for line in block.split(b"\n"):
            if len(line) > self._line_bytes:
                self._fail(len(line))
                return block[:start]
            start += len(line) + 1
        return block

    def _fail(self, size: int) -> None:
        self.error = EventTooLarge(f"line of at least {size} bytes, the limit is {self._line_bytes}", limit=self._line_bytes)
        self._pending = bytearray()
