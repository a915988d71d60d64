"""Unchanged bytes with positions, and text from bytes without splitting a character."""

from __future__ import annotations

import codecs

from .._errors import ResumableStreamError
from .._events import Chunk

__all__ = ["RawDecoder", "TextView"]


class RawDecoder:
    """
    Number the bytes of a body.

    Every chunk is complete in itself: there is nothing to hold back and no limit to exceed.

    Args:
        start: Position of the first byte delivered, in the whole body; not 0 if the body was resumed there.
        skip: Bytes to discard first. A server that ignores the range sends the body from its beginning;
            then `start` and `skip` are both the number of bytes that we already have.

    Attributes:
        error: Always `None`.
    """

    __slots__ = ("_position", "_skip", "error")

    def __init__(self, *, start: int = 0, skip: int = 0) -> None:
        self.error: ResumableStreamError | None = None
        self._position = start
        self._skip = skip

    @property
    def partial(self) -> bool:
        """Always false: every byte is complete."""
        return False

    def feed(self, data: bytes) -> list[Chunk]:
        """
        Number a chunk.

        Args:
            data: The next bytes of the body. They are passed on unchanged, not copied.

        Returns:
            One chunk, or none if `data` is empty or still to be discarded.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if not data:
            return []
        chunk = Chunk(data, self._position)
        self._position += len(data)
        return [chunk]

    def eof(self) -> list[Chunk]:
        """End the body. Returns: nothing."""
        return []


class TextView:
    """
    Decode UTF-8 piece by piece; a character that is cut waits for its remaining bytes.

    Bytes that are not UTF-8 become U+FFFD, because a damaged character is better than an exception in the middle of a text.

    >>> view = TextView()
    >>> view.decode(b"caf\\xc3"), view.decode(b"\\xa9"), view.flush()
    ('caf', 'é', '')
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, chunk: bytes) -> str:
        """
        Decode a chunk.

        Args:
            chunk: The next bytes.

        Returns:
            The characters that it completed; `""` if it ends inside the first of them.
        """
        return self._decoder.decode(chunk)

    def flush(self) -> str:
        """
        End the text. The decoder may then be used for another text.

        Returns:
            U+FFFD if the last character was cut, else `""`.
        """
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
