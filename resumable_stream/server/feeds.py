"""
The feed of a session: what begins, ends, is said, edited and deleted in a conversation, in one order for everybody.

A feed is a stream of server-sent events that every process appends to. Folding the events in order gives the state. What may be
appended depends on the state after the last event, and the log refuses an append if that has changed.

| event | data |
|---|---|
| `started` | `{"id", "by", "supersedes"}`: a stream began; `by` and `supersedes` (a list of ids) only if there are any |
| `cancelled` | `{"id", "by"}`: somebody asked its producer to stop |
| `ended` | `{"id", "outcome", "reason", "applied"}`: `applied` only if messages were applied, see `Ending` |
| `message` | `{"mid", "role", "data"}` |
| `edited` | `{"mid", "data"}` |
| `deleted` | `{"mid"}` |
| `snapshot` | `{"messages": […], "streams": […], "mids": […]}`: stands for all events before it; `mids` are other known ids |
| any other | `{"mid", "data"}`: the application's own |

It does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .._errors import MessageUnknown
from ..framing import SSEDecoder
from ._values import Ending, Span, check_text
from .events import RESERVED
from .wire import event_block, to_json

__all__ = ["ActiveStream", "Feed", "SessionMessage"]

_OWN: Final = RESERVED | {"started", "ended", "cancelled", "edited", "deleted", "presence"}
"""Names of events that the server itself sends."""
MAX_EVENT_BYTES: Final = 1 << 20
"""Largest event of a feed. 1 MiB: it carries messages and pointers to streams, never the streams themselves."""


@dataclass(frozen=True, slots=True)
class SessionMessage:
    """
    A message of a session in its current form.

    Attributes:
        mid: Its id.
        role: Its author: `"user"`, `"assistant"`, or the application's own word.
        data: Any JSON value; after an edit the new one.
        edited: It was edited.
    """

    mid: str
    role: str
    data: Any
    edited: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Its form in a snapshot."""
        told = {"mid": self.mid, "role": self.role, "data": self.data}
        return {**told, "edited": True} if self.edited else told


@dataclass(frozen=True, slots=True)
class ActiveStream:
    """
    A stream of a session that has not ended.

    Attributes:
        id: As readers name it.
        by: Who started it; `""`: nobody was named.
        cancelled: Somebody asked its producer to stop.
        n: Number of the event that first reported it, if known: a stream that was started again has another.
    """

    id: str
    by: str = ""
    cancelled: bool = False
    n: int = field(default=0, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Its form in a snapshot."""
        told: dict[str, Any] = {"id": self.id}
        if self.by:
            told["by"] = self.by
        return {**told, "cancelled": True} if self.cancelled else told


class Feed:
    """
    The state of a session after some event of its feed.

    The methods named after events return what to append: a block of bytes, or `None` if the feed already says it.

    Args:
        epoch: Epoch of the feed's log.
        n: The event before the first one to fold.
        b: Byte position after it.

    Attributes:
        n: Number of the last event folded.
        b: Byte position after it.
        first: Number of the first event that the log holds, as far as known.
        stands: Number of the last event `snapshot`; 0: there was none.
        stands_b: Its byte position.
        messages: By id, in the order in which they were said.
        streams: The running ones, by id, in the order in which they began.
        mids: Number of the event that first brought each id.
    """

    def __init__(self, epoch: str, n: int = 0, b: int = 0) -> None:
        self.epoch = epoch
        self.n = n
        self.b = b
        self.first = n + 1
        self.stands = 0
        self.stands_b = b
        self.messages: dict[str, SessionMessage] = {}
        self.streams: dict[str, ActiveStream] = {}
        self.mids: dict[str, int] = {}

    # --- folding

    def take(self, spans: Iterable[Span]) -> None:
        """Fold the following spans."""
        for span in spans:
            n = span.first
            for event in SSEDecoder().feed(span.data):
                self._apply(event.event, _data_of(event.data), n)
                if event.event == "snapshot":
                    self.stands, self.stands_b = span.first, span.start
                n += 1
            self.n, self.b = span.n, span.b

    def _apply(self, name: str, data: Mapping[str, Any], n: int) -> None:
        mid, stream_id = _text_of(data, "mid"), _text_of(data, "id")
        match name:
            case "snapshot":
                self._replace(data, n)
            case "started" if stream_id:
                self.streams.setdefault(stream_id, _stream_of(stream_id, data, n))
            case "cancelled" if stream_id in self.streams:
                self.streams[stream_id] = replace(self.streams[stream_id], cancelled=True)
            case "ended":
                self.streams.pop(stream_id, None)
            case "edited" if mid in self.messages:
                self.messages[mid] = replace(self.messages[mid], data=data.get("data"), edited=True)
            case "deleted":
                self.messages.pop(mid, None)
            case "message" if mid:
                self.mids.setdefault(mid, n)
                self.messages.setdefault(mid, _message_of(mid, data))
            case _ if mid:
                self.mids.setdefault(mid, n)

    def _replace(self, data: Mapping[str, Any], n: int) -> None:
        messages = [(_text_of(each, "mid"), each) for each in _mappings(data, "messages")]
        streams = [(_text_of(each, "id"), each) for each in _mappings(data, "streams")]
        known = {id: stream.n for id, stream in self.streams.items()}
        self.messages = {mid: _message_of(mid, each) for mid, each in messages if mid}
        self.streams = {id: _stream_of(id, each, known.get(id, n)) for id, each in streams if id}
        # Events after the previous snapshot are still held, and a repeat of one must still be recognised.
        held = {mid: first for mid, first in self.mids.items() if first > self.stands}
        more = data.get("mids")
        mids = [mid for mid in more if isinstance(mid, str)] if isinstance(more, list) else []
        self.mids = {**dict.fromkeys([*mids, *self.messages], n), **held}

    # --- what to append

    def started(self, id: str, *, by: str = "", supersedes: Iterable[str] = ()) -> bytes | None:
        """A stream begins."""
        if id in self.streams:
            return None
        data: dict[str, Any] = {"id": id}
        if by:
            data["by"] = check_text("by", by, limit=256)
        if replaced := list(supersedes):
            data["supersedes"] = replaced
        return _block("started", data)

    def cancelled(self, id: str, *, by: str = "") -> bytes | None:
        """Somebody asked the producer of a stream to stop."""
        if id not in self.streams or self.streams[id].cancelled:
            return None
        return _block("cancelled", {"id": id, "by": check_text("by", by, limit=256)} if by else {"id": id})

    def ended(self, id: str, ending: Ending) -> bytes | None:
        """A stream has ended."""
        if id not in self.streams:
            return None
        data: dict[str, Any] = {"id": id, "outcome": ending.outcome.value}
        if ending.reason is not None:
            data["reason"] = ending.reason
        if ending.applied:
            data["applied"] = ending.applied
        return _block("ended", data)

    def published(self, event: str, data: Any, mid: str) -> bytes | None:
        """A message, or an event of the application."""
        if mid in self.mids:
            return None
        if event == "message":
            return _block(event, {"mid": mid, "role": data["role"], "data": data["data"]})
        return _block(event, {"mid": mid, "data": data})

    def edited(self, mid: str, data: Any) -> bytes | None:
        """
        The data of a message has changed.

        Raises:
            MessageUnknown: There is no such message, or it was deleted.
        """
        known = self.messages.get(mid)
        if known is None:
            raise MessageUnknown(f"the session has no message {mid[:80]!r}, or it was deleted", mid=mid)
        # As JSON: to Python, 1, 1.0 and True are the same.
        if known.edited and to_json(known.data) == to_json(data):
            return None
        return _block("edited", {"mid": mid, "data": data})

    def deleted(self, mid: str) -> bytes | None:
        """
        A message was deleted.

        Raises:
            MessageUnknown: There was never such a message, as far back as the feed goes.
        """
        if mid in self.messages:
            return _block("deleted", {"mid": mid})
        if mid not in self.mids:
            raise MessageUnknown(f"the session has no message {mid[:80]!r}", mid=mid)
        return None

    def snapshot(self, *, events: int | None = None, bytes: int | None = None) -> dict[str, Any]:
        """
        A snapshot that stands for all events so far.

        Args:
            events: Most messages; the newest are kept.
            bytes: Most bytes of them as JSON.
        """
        messages = [message.to_dict() for message in self.messages.values()]
        if events is not None:
            messages = messages[max(0, len(messages) - events) :]
        if bytes is not None:
            room = bytes
            for place in range(len(messages) - 1, -1, -1):
                room -= len(to_json(messages[place]).encode())
                if room < 0:
                    messages = messages[place + 1 :]
                    break
        return {"messages": messages, "streams": [stream.to_dict() for stream in self.streams.values()]}

    def standing(self, *, events: int, bytes: int) -> dict[str, Any]:
        """
        The snapshot event to put into the feed: the snapshot, and ids that must not be accepted again.

        Args:
            events: Most messages, the newest, and most of the other ids: those of deleted messages, and of the application's
                events.
            bytes: Most bytes of each.
        """
        snapshot = self.snapshot(events=events, bytes=bytes)
        shown = {message["mid"] for message in snapshot["messages"]}
        mids: list[str] = []
        for mid in reversed(self.mids):
            bytes -= len(mid.encode()) + 3
            if bytes < 0 or len(mids) == events:
                break
            if mid not in shown:
                mids.append(mid)
        return {**snapshot, "mids": mids[::-1]}

    def span(self, block: bytes) -> Span:
        """The span of one event after the last one."""
        return Span(n=self.n + 1, b=self.b + len(block), lengths=(len(block),), data=block)


def check_event(event: str) -> str:
    """
    Validate the name of an event that an application publishes.

    Raises:
        ValueError: It is the server's own, empty, or not a line.
    """
    if event in _OWN:
        raise ValueError(f"the event name {event!r} is reserved for the server; choose another")
    check_text("the name of an event", event, limit=256)
    if not event or any(ord(character) < 32 for character in event):
        raise ValueError(f"the name of an event must be text without control characters, got {event[:80]!r}")
    return event


def check_message(data: Any) -> None:
    """
    Validate the data of an event `message`.

    Raises:
        ValueError: It is not a mapping of `role` (text) and `data`.
    """
    if not isinstance(data, Mapping) or set(data) != {"role", "data"} or not isinstance(data["role"], str):
        raise ValueError('a message must be {"role": "user", "data": …}, with any JSON value as its data')
    check_text("the role of a message", data["role"], limit=256)


def snapshot_block(data: Mapping[str, Any]) -> bytes:
    """The event `snapshot` as it is stored; readers get it with an id."""
    return event_block(to_json(data), event="snapshot")


def _block(event: str, data: Mapping[str, Any]) -> bytes:
    try:
        text = to_json(data)
        if "NaN" in text or "Infinity" in text:
            # Python writes these numbers, but no browser reads them.
            json.dumps(data, allow_nan=False)
    except RecursionError:
        raise ValueError(f"the data of an event of a session is nested too deeply ({event!r})") from None
    block = event_block(text, event=event)
    if len(block) > MAX_EVENT_BYTES:
        raise ValueError(f"an event of a session may have at most {MAX_EVENT_BYTES} bytes, but this {event!r} has {len(block)}")
    return block


def _data_of(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _mappings(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = data.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _text_of(data: Mapping[str, Any], name: str) -> str:
    found = data.get(name)
    return found if isinstance(found, str) else ""


def _message_of(mid: str, data: Mapping[str, Any]) -> SessionMessage:
    return SessionMessage(mid, _text_of(data, "role"), data.get("data"), edited=data.get("edited") is True)


def _stream_of(stream_id: str, data: Mapping[str, Any], n: int) -> ActiveStream:
    return ActiveStream(stream_id, _text_of(data, "by"), cancelled=data.get("cancelled") is True, n=n)
