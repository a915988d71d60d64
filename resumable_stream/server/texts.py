"""The text of a stream so far, for a reader who joins late and wants it in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from .._events import StreamEvent
from ..framing import NDJSONDecoder, SSEDecoder
from ..protocols import HubStream
from .log import Cursor, Ending, Framing

__all__ = ["SoFar", "TextOf", "TextSoFar"]

TextOf: TypeAlias = Callable[[StreamEvent], str | None]
"""The visible text of one event; `None` or `""` if it has none."""


@dataclass(frozen=True, slots=True)
class SoFar:
    """
    The result of `Hub.message()`.

    Attributes:
        text: The visible text of all events up to the cursor, without text that a `reset` took back.
        cursor: The last of them: a reader that starts here gets the rest.
        ending: How the stream ended; `None` while it runs.
    """

    text: str
    cursor: Cursor
    ending: Ending | None


class TextSoFar:
    """
    The text of one stream, event after event.

    Args:
        framing: Framing of the stream. Raw bytes have no text here: their readers count bytes.
        text_of: A callable of an event, or a protocol, whose `deltas` of the kind `text` count. `None`: the `text` in the JSON of
            events without a name, as `Generation.text()` writes it.

    Attributes:
        n: Number of the last event in it.
        lock: For feeding it across an `await`.
    """

    def __init__(self, framing: Framing, text_of: TextOf | Any | None) -> None:
        self.n = 0
        self.lock = asyncio.Lock()
        self._text_of = _from_protocol(text_of if text_of is not None else HubStream()) if not callable(text_of) else text_of
        self._decoder: Any = {"sse": SSEDecoder, "ndjson": NDJSONDecoder, "raw": None}[framing]
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of it."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def feed(self, events: bytes, n: int) -> None:
        """Add complete events, the last of which has number `n`."""
        if self._decoder is not None:
            for event in self._decoder().feed(events):
                if event.event == "reset":
                    self._pieces.clear()
                elif piece := self._text_of(event):
                    self._pieces.append(piece)
        self.n = n


def _from_protocol(protocol: Any) -> TextOf:
    def text_of(event: StreamEvent) -> str:
        return "".join(delta.text for delta in protocol.deltas(event) if delta.kind == "text")

    return text_of
