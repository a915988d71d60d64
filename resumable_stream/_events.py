"""
The values that an iterator yields, and the ways a stream can end.

Everything here is plain data: the framing layer builds it, the core writes the position into it, the caller reads it.
One object is made for each event, so the classes are slotted and mutable inside the package.
Attributes that few events have are in a second object, because each slot that is set costs 5 ns per event. (A `__getattr__`
for unset ones would cost more: the interpreter cannot specialise such a class, and every attribute read takes 20 ns, not 4.)
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any, Final, Literal, SupportsIndex

__all__ = ["Blank", "Chunk", "Delta", "Gap", "Item", "Outcome", "StreamEvent", "TextReset"]


class Outcome(str, enum.Enum):
    """
    How a stream ended. All but `ENDED` are reported by the protocol.
    """

    COMPLETED = "completed"
    """The answer is complete."""
    INCOMPLETE = "incomplete"
    """The provider stopped early, for example at a token limit."""
    FAILED = "failed"
    """The provider reported that the run failed."""
    CANCELLED = "cancelled"
    """Somebody stopped the run."""
    ENDED = "ended"
    """Weaker: the body closed cleanly, and the protocol has no way to confirm the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """
    Events that exist and did not arrive.

    Attributes:
        expected: Sequence number that was expected next; `None` if the server reported the gap without numbers.
        received: Sequence number that arrived instead; `None` likewise.
        after: Cursor of the last event before the gap; `None` if no cursor was known.
    """

    expected: int | None = None
    received: int | None = None
    after: str | None = None

    @property
    def missing(self) -> int | None:
        """How many events are missing, or `None` if the server gave no numbers."""
        if self.expected is None or self.received is None:
            return None
        return self.received - self.expected


class _Rare:
    """Attributes that few items have, in one object that is made when the first of them is set."""

    __slots__ = ("cursor", "ends", "gap", "moves", "parsed", "replayed", "reset", "since", "wire")

    def __init__(self) -> None:
        self.cursor: str | None = None
        self.gap: Gap | None = None
        self.moves: bool | None = None
        self.parsed: Any = None
        self.replayed = False
        self.reset = False
        self.since: Any = None
        self.wire: Any = None
        self.ends: int | None = None


_NONE: Final = _Rare()


class Item:
    """
    The base of every yielded value: its place in the stream.

    Attributes:
        sequence: Number that the protocol gives the item (for a byte stream: position of its first byte), or `None`.
        offset: Index of the item in the stream, counted from 0; on a reset, the number of earlier items still valid.
    """

    __slots__ = ("_rare", "offset", "sequence")

    sequence: int | None
    offset: int
    _rare: _Rare | None

    @property
    def cursor(self) -> str | None:
        """Opaque token from which the protocol resumes *after* this item; `None` if there is none."""
        return (self._rare or _NONE).cursor or None

    @cursor.setter
    def cursor(self, cursor: str | None) -> None:
        # An explicit `None` differs from an unset cursor: the last event id does not replace it.
        self._own_rare().cursor = cursor or ""

    @property
    def replayed(self) -> bool:
        """Whether the item comes from a store, not from the server."""
        return (self._rare or _NONE).replayed

    @replayed.setter
    def replayed(self, replayed: bool) -> None:
        self._own_rare().replayed = replayed

    @property
    def reset(self) -> bool:
        """Whether everything delivered before (from `offset` on) is void; the stream starts again here."""
        return (self._rare or _NONE).reset

    @reset.setter
    def reset(self, reset: bool) -> None:
        self._own_rare().reset = reset

    @property
    def gap(self) -> Gap | None:
        """The gap before this item, or `None`."""
        return (self._rare or _NONE).gap

    @gap.setter
    def gap(self, gap: Gap | None) -> None:
        self._own_rare().gap = gap

    # Used by the core: whether this item moved the cursor; its JSON, once parsed; the log of items since the cursor moved, and
    # how long it was after this one; if requested, the item's original bytes, and where they end in the body.

    @property
    def moves(self) -> bool | None:
        return (self._rare or _NONE).moves

    @moves.setter
    def moves(self, moves: bool | None) -> None:
        self._own_rare().moves = moves

    @property
    def parsed(self) -> Any:
        return (self._rare or _NONE).parsed

    @parsed.setter
    def parsed(self, parsed: Any) -> None:
        self._own_rare().parsed = parsed

    @property
    def since(self) -> Any:
        return (self._rare or _NONE).since

    @since.setter
    def since(self, since: Any) -> None:
        self._own_rare().since = since

    @property
    def wire(self) -> Any:
        return (self._rare or _NONE).wire

    @wire.setter
    def wire(self, wire: Any) -> None:
        self._own_rare().wire = wire

    @property
    def ends(self) -> int | None:
        return (self._rare or _NONE).ends

    @ends.setter
    def ends(self, ends: int | None) -> None:
        self._own_rare().ends = ends

    def _own_rare(self) -> _Rare:
        if self._rare is None:
            self._rare = _Rare()
        return self._rare


class StreamEvent(Item):
    """
    One event of a stream: httpx-sse's `ServerSentEvent` with a position.

    Attributes:
        event: Event type; `"message"` if the server named none.
        data: Payload text, lines joined with LF.
        id: *Last event id* of the standard: the newest id seen up to here, `""` before any. It is not this event's own id.
        retry: Reconnection time in milliseconds that this block announced, or `None`.
        own_id: The id in this block itself, or `None`; `""` if the block had an empty id.

    Source: WHATWG HTML, section 9.2.6 (server-sent events, interpreting an event stream).
    """

    __slots__ = ("data", "event", "id", "own_id", "retry")

    def __init__(
        self,
        event: str = "message",
        data: str = "",
        id: str = "",
        retry: int | None = None,
        own_id: str | None = None,
    ) -> None:
        self.event = event
        self.data = data
        self.id = id
        self.retry = retry
        self.own_id = own_id
        self.offset = 0
        self.sequence = self._rare = None

    @property
    def cursor(self) -> str | None:
        """Opaque token from which the protocol resumes *after* this event; `None` if there is none."""
        rare = self._rare
        if rare is not None and rare.cursor is not None:
            return rare.cursor or None
        # On plain SSE the cursor *is* the last event id; if the cursor is a number, it is that number as text.
        if self.id:
            return self.id
        return str(self.sequence) if self.sequence is not None else None

    @cursor.setter
    def cursor(self, cursor: str | None) -> None:
        self._own_rare().cursor = cursor or ""

    def json(self) -> Any:
        """
        Parse `data` as JSON; the result is cached.

        Raises:
            json.JSONDecodeError: `data` is not JSON.
        """
        parsed = self.parsed
        if parsed is None:
            try:
                parsed = self.parsed = json.loads(self.data)
            except RecursionError:
                raise json.JSONDecodeError("nested too deeply", self.data[:100], 0) from None
        return parsed

    def __repr__(self) -> str:
        data = self.data if len(self.data) <= 60 else f"{self.data[:57]}..."
        flags = "".join(f", {name}={getattr(self, name)!r}" for name in ("replayed", "reset", "gap") if getattr(self, name))
        return f"StreamEvent(event={self.event!r}, data={data!r}, id={self.id!r}, offset={self.offset}{flags})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamEvent):
            return NotImplemented
        return (self.event, self.data, self.id, self.retry) == (other.event, other.data, other.id, other.retry)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and mutable: not a key


class Blank(StreamEvent):
    """
    A `StreamEvent` whose slots are not set yet, for a decoder that sets each of them.

    Making one takes a fifth less time than `StreamEvent.__new__()`, and half of a call of `__init__`. Nobody but a decoder
    should see the difference.
    """

    __slots__ = ()
    __init__ = object.__init__

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        state: Any = super().__reduce_ex__(max(int(protocol), 2))[2]
        return StreamEvent, (), state


Blank.__name__ = Blank.__qualname__ = StreamEvent.__name__


class Chunk(Item):
    """
    A piece of a byte stream.

    Attributes:
        data: The bytes, never empty; of a WebSocket one whole binary message, which may be empty.
        sequence: Position of the first byte in the whole body; 0 for the first chunk.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes, sequence: int) -> None:
        self.data = data
        self.sequence = sequence
        self.offset = 0
        self._rare = None

    @property
    def cursor(self) -> str | None:
        """Position of the next byte, as text."""
        rare = self._rare
        if rare is not None and rare.cursor is not None:
            return rare.cursor or None
        return str((self.sequence or 0) + len(self.data))

    @cursor.setter
    def cursor(self, cursor: str | None) -> None:
        self._own_rare().cursor = cursor or ""

    def __repr__(self) -> str:
        return f"Chunk({len(self.data)} bytes at {self.sequence})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chunk):
            return NotImplemented
        return (self.sequence, self.data) == (other.sequence, other.data)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Delta:
    """
    A piece of content inside an event, in the same shape for every provider.

    Attributes:
        kind: `"text"` is the visible text; `"reasoning"` and `"tool"` (arguments, as JSON text) are not part of it.
        text: The piece itself.
        index: Which of several parallel contents it belongs to; 0 if there is one.
    """

    kind: Literal["text", "reasoning", "tool", "refusal"]
    text: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class TextReset:
    """
    Yielded by `iter_text(resets=True)`: drop the text of every event from `offset` on.

    The text that follows counts as text of the current event, even if it repeats text that was yielded before.

    Attributes:
        offset: Number of earlier events still valid; 0 if the whole text is void.
    """

    offset: int = 0
