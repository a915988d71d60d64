"""
The body for a reader of a stream, piece by piece: its contents, and whether it may end cleanly.

    with Body(reader, then) as body:
        while not body.over:
            send(await body.next())

`HubResponse` passes the pieces to an ASGI server; `pieces()` turns them into an iterator, for everything else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

from .._errors import LogUnavailable, ReaderCut
from . import wire

if TYPE_CHECKING:
    from .reading import Reader, Sink
    from .wire import Follow

__all__ = ["CHUNK_BYTES", "Body", "pieces"]

CHUNK_BYTES: Final = 256 << 10
"""Most bytes passed to the server at once. 256 KiB: a slow reader of a large event does not hold up the loop."""


class Body:
    """
    What one reader gets: events, heartbeats, and the end. Close it with `close()`, or use it in a `with` block.

    Args:
        reader: Source of the events; it is closed with the body.
        then: The view and the heartbeat.
        first: Bytes before everything else.

    Attributes:
        over: `next()` has returned the last piece.
    """

    __slots__ = ("_at", "_every", "_first", "_reader", "_replaying", "_rest", "_sink", "_then", "over")

    def __init__(self, reader: Reader, then: Follow, *, first: bytes = b"") -> None:
        self.over = False
        self._reader = reader
        self._then = then
        self._first = first
        self._every = then.every
        self._replaying = then.control
        self._rest = b""
        self._at = 0
        self._sink: Sink | None = None

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the reader. Calling it twice does no harm."""
        self.over = True
        self._reader.close()

    async def next(self) -> bytes:
        """
        The next piece, as soon as there is one. Call it until `over` is set, from one task at a time.

        Returns:
            At most `CHUNK_BYTES`. The last piece may be empty.

        Raises:
            ReaderCut: The body so far is incomplete, and must not be ended cleanly.
        """
        if self._first:
            piece, self._first = self._first, b""
            return piece
        if self._rest:
            return self._part()
        try:
            chunk = await self._reader.next(0.0 if self._replaying else self._every)
        except LogUnavailable as exc:
            self.over = True
            raise ReaderCut("the log became unavailable, so the body is cut; the next request continues") from exc
        if chunk is None:
            chunk, self._replaying = (wire.caught_up() if self._replaying else self._then.heartbeat), False
        elif not chunk:
            return self._end()
        return self._cut(chunk)

    def pause(self, sink: Sink) -> asyncio.Future[bool] | None:
        """
        What to await before `next()` has a piece, without a coroutine per wait. Pass its result to `resume()`.

        Args:
            sink: Receives pieces that arrive meanwhile, as for `Reader.pause()`; never the last one.

        Returns:
            `None`: call `next()` now.
        """
        if self._first or self._rest or self._replaying or self.over:
            return None
        self._sink = sink
        return self._reader.pause(self._every, self)

    def take(self, chunk: bytes) -> bool:
        """See `Sink.take()`."""
        if self._sink is not None and len(chunk) <= CHUNK_BYTES:
            return self._sink.take(chunk)
        self._rest, self._at = chunk, 0
        return False

    def resume(self, woken: bool) -> bytes:
        """
        The piece that arrived after `pause()`.

        Returns:
            A piece like that of `next()`, but never the last one; `b""`: call `next()`.
        """
        chunk = self._reader.resume(woken)
        return self._then.heartbeat if chunk is None else self._cut(chunk)

    def _cut(self, chunk: bytes) -> bytes:
        if len(chunk) <= CHUNK_BYTES:
            return chunk
        self._rest, self._at = chunk, 0
        return self._part()

    def _part(self) -> bytes:
        end = self._at + CHUNK_BYTES
        piece = self._rest[self._at : end]
        self._at = end
        if end >= len(self._rest):
            self._rest = b""
        return piece

    def _end(self) -> bytes:
        self.over = True
        reader = self._reader
        end = wire.closing(self._then.view, epoch=reader.cursor.epoch, n=reader.n, ending=reader.ending)
        if not end.clean:
            raise ReaderCut(_why_cut(reader))
        if reader.left and reader.ending is None:
            return wire.retry_line(random.random())
        return wire.caught_up() + end.body if self._replaying else end.body


def _why_cut(reader: Reader) -> str:
    if reader.ending is not None:
        return f"the stream ended as {wire.outcome_header(reader.ending)}, so its body is cut on purpose: it is not complete"
    if reader.gone is not None:
        return f"the log no longer holds the events after {reader.cursor}, so the body is cut; the next request gets the reason"
    return "the server is shutting down, so the body is cut; the next request continues it"


async def pieces(opened: Callable[[], Awaitable[Body]]) -> AsyncGenerator[bytes, None]:
    """
    The pieces of a body as an iterator, without empty ones. The reader is opened with the first piece.

    Args:
        opened: Opens the body.

    Raises:
        ReaderCut: As for `Body.next()`.
    """
    with await opened() as body:
        while not body.over:
            if piece := await body.next():
                yield piece
