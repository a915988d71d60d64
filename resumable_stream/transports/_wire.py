"""
What an SDK reads: the bytes of a stream's events, and the stream below them.

Most events are passed on unread (see `_core/skimming.py`). They are read first when the position or the numbers are requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import length_hint
from types import ModuleType
from typing import Any

from .._checkpoint import Checkpoint
from .._contract import Reporting, ResumeProtocol
from .._core.settings import Stats
from .._drivers.base import NOTHING
from .._drivers.loop import Loop
from .._errors import ReplayDiverged, ResumableStreamError, StreamReset
from .._twins import twin
from ..framing import encoded
from ._port import Port

__all__ = ["Blocks", "Skimming", "Spliced", "Wire"]


class Skimming(Loop):
    """
    What the streams below a body share: events that were passed on unread are read when the position is requested.

    Attributes:
        skim: Recognises events that need not be read; see `Skimmer.skim()`. `None`: every event must be read.
    """

    _watched = False
    skim: Callable[[bytes], bytes | None] | None = None

    def adopt(self, fence: Any, replay: Any = None) -> None:
        """The transport has opened the store."""
        self._fence, self._replay = fence, replay

    async def _load(self) -> None:
        """See `adopt()`."""

    # --- between the reader and the stream

    def come_back(self, read: Any) -> None:
        """
        The reader asks for more, so it is done with what it was given.

        Args:
            read: Replaces the live reads with one whose chunk has to be read like any other.
        """
        if self._read_elsewhere():
            raise self._second_reader(self._one)
        if read is not None or self._failure is not None:
            self._settle()
            self._live = read

    def gather(self, event: Any, read: Any, live: Any) -> list[Any]:
        """The event and those that came with it, all in hand until the reader asks for more; then live reads come from `live`."""
        found = [event]
        if read is not None and self._live is read:
            self._live = live
        if length_hint(self._events):
            found += self._hand_rest()
        self._show_place()
        self._look_for_calm()
        return found

    def _show_place(self) -> None:
        """Show the position to other threads."""

    async def done(self) -> None:
        """The SDK is done with the stream, so everything it was given is taken."""
        if not self._read_elsewhere():
            self._busy = 0
            self._settle()
        await self._exit(None)

    async def _leave(self, state: str) -> None:
        self._settle()
        await super()._leave(state)

    # --- events that were passed on unread

    @property
    def checkpoint(self) -> Checkpoint:
        self._settle(leaving=False)
        return super().checkpoint

    @property
    def stats(self) -> Stats:
        self._settle(leaving=False)
        return super().stats

    def _settle(self, *, leaving: bool = True) -> None:
        if self.skim is None:
            return
        before = self._machine.latest
        try:
            if leaving:
                self.skim = None
            self._machine.settle(leaving=leaving)
        finally:
            # Even after an interrupt, since everything that was entered was handed out.
            if (items := self._machine.latest) is not before:
                # The last one is in hand, unless the reader has come back for more.
                self._batch, self._events, self._upto = items, NOTHING, len(items)
                self._floor, self._in_hand, self._whole = 0, int(not self._busy), False

    def take_carried(self) -> bytes:
        return self._machine.take_carried()

    def take_back(self, chunk: bytes) -> None:
        """An interrupt came before the chunk was handed out."""
        self._machine.take_back(chunk)

    def _look_for_calm(self) -> None:
        """After an event was read, check whether the next ones may go unread."""
        self.skim = None
        # With a store, a save may be due before any event, and stored events have to be read.
        if (
            self._live is not None
            and self._store is None
            and not self._watched
            and (skimmer := self._machine.skimmer()) is not None
        ):
            self.skim = skimmer.skim


class Blocks:
    """The bytes of the events of one stream."""

    def __init__(self) -> None:
        self._batch: Any = None

    def of(self, events: Iterable[Any], protocol: ResumeProtocol) -> list[bytes]:
        """
        Whole events, as they came; events that were never on a wire, as they would have been sent.

        Raises:
            StreamReset, ReplayDiverged: Bytes cannot express what happened.
        """
        blocks: list[bytes] = []
        for event in events:
            if event.reset and not Reporting.of(protocol).tells_reset(event):
                text = "what was read is void, which the bytes of a stream cannot express"
                raise StreamReset(text, offset=event.offset)
            wire = event.wire
            if wire is None:
                wire = encoded(event, protocol.framing)
            elif not isinstance(wire, bytes):
                # A later part of a batch, whose bytes were sent with the first part.
                if wire is not self._batch:
                    raise ReplayDiverged("the server splits its batches differently than before, which bytes cannot express")
                continue
            self._batch = event
            blocks.append(wire)
        return blocks


class Wire:
    """
    The bytes of events, for a reader that does not know about events.

    Args:
        library, request: For the errors.
    """

    def __init__(self, stream: Any, library: ModuleType, request: Any) -> None:
        self._stream = stream
        self._library = library
        self._request = request
        self._blocks = Blocks()

    def of(self, events: Iterable[Any]) -> bytes:
        """See `Blocks.of()`; what the connection before has left comes first."""
        return b"".join((self._stream.take_carried(), *self._blocks.of(events, self._stream.protocol)))

    def error(self, error: ResumableStreamError) -> Any:
        """The error in a form that the SDK handles: also one of its HTTP library's errors."""
        return twin(self._stream._with_place(error), self._library, self._request)


class Spliced:
    """The body of a response: whole events only, across connections. One reader."""

    _stream: Any

    def __init__(self, stream: Any, wire: Wire, port: Port) -> None:
        self._stream = stream
        self._wire = wire
        self._port = port

    async def _close(self) -> None:
        try:
            await self._stream.done()
        except ResumableStreamError as error:
            raise self._wire.error(error) from error.__cause__
        finally:
            self._port.restore()
