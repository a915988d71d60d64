"""Encodes what an application yields as the bytes of events, one list item per event."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, Final, TypeAlias

from ..framing import NDJSONDecoder, SSEDecoder, VerbatimDecoder
from ._values import Framing
from .wire import SURROGATE, event_block, to_json

__all__ = ["Content", "Event", "encode", "encode_text", "split"]

RESERVED: Final = frozenset({"caught-up", "end", "reset", "snapshot"})
"""Names of events that the server itself sends; a reader could not distinguish an application's from them."""

_LINE_ENDS: Final = re.compile("\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Event:
    """
    A server-sent event with a name.

    Attributes:
        data: Its text; line ends in it arrive as `\\n`.
        event: Its name, without line ends. `"message"`: what `onmessage` of an `EventSource` gets.
    """

    data: str
    event: str = "message"


Content: TypeAlias = str | bytes | Mapping[str, Any] | list[Any] | Event
"""What can be sent: text, a JSON value, a named event, or bytes to store unchanged."""


def encode(framing: Framing, content: Content, *, event: str | None = None) -> list[bytes]:
    """
    The events of one item, in their stored form.

    | | `"sse"` | `"ndjson"` | `"raw"` |
    |---|---|---|---|
    | text | the `data` of an event | a line | UTF-8 |
    | a mapping or a list | its JSON, likewise | its JSON, a line | an error |
    | `Event` | an event with a name | an error | an error |
    | bytes | complete blocks, see `split()` | complete lines | a piece |

    Args:
        framing: Framing of the stream.
        content: The item.
        event: Name of the event, for text and JSON in `"sse"`.

    Raises:
        TypeError: It cannot be written in this framing.
        ValueError: A line end in a name or a line, a reserved name, or bytes that are not complete events.
    """
    if isinstance(content, Event):
        if event is not None:
            raise TypeError("an Event already has a name; pass its data to use another")
        event, content = content.event, content.data
    if isinstance(content, (bytes, bytearray, memoryview)):
        if event is not None:
            raise TypeError("bytes are stored unchanged and take no event name; pass text")
        return split(framing, bytes(content))
    if not isinstance(content, str):
        if not isinstance(content, (Mapping, list)):
            raise TypeError(f"a stream takes text, bytes, a mapping, a list or an Event, got {type(content).__name__}")
        if framing == "raw":
            raise TypeError("a stream of raw bytes takes bytes and text, got JSON")
        content = to_json(content)
    if event is not None and framing != "sse":
        raise TypeError(f"only server-sent events have names, but this stream is {framing}")
    match framing:
        case "sse":
            return [_block(content, event)]
        case "ndjson":
            if not content.strip() or _LINE_ENDS.search(content):
                raise ValueError(f"an event of a stream of JSON lines must be one non-empty line, got {content[:80]!r}")
            return [f"{content}\n".encode()]
        case "raw":
            return [content.encode()] if content else []


def encode_text(framing: Framing, delta: str) -> list[bytes]:
    """The same as `encode(framing, {"text": delta})`, in a tenth of the time."""
    if type(delta) is not str or framing == "raw" or (not delta.isascii() and SURROGATE.search(delta)):
        return encode(framing, {"text": delta})
    # A JSON string contains no line ends, so this is one line.
    line = f'{{"text":{encode_basestring(delta)}}}'
    return [f"data: {line}\n\n".encode() if framing == "sse" else f"{line}\n".encode()]


def _block(data: str, event: str | None) -> bytes:
    if event is None and "\n" not in data and "\r" not in data:
        return f"data: {data}\n\n".encode()
    if event == "message":
        event = None
    if event is not None:
        if not event or _LINE_ENDS.search(event) or "\0" in event:
            raise ValueError(f"the name of an event must be text without line ends, got {event[:80]!r}")
        if event in RESERVED:
            raise ValueError(f"the event name {event!r} is reserved for the server; choose another")
    return event_block(data, event=event)


def split(framing: Framing, data: bytes) -> list[bytes]:
    """
    Split bytes that a producer wrote itself into events.

    An event is what `framing` delivers: a block with data and anything before it, a line, or a piece of raw bytes. Comments and
    blocks without data at the very end belong to no event, and are dropped.

    Raises:
        ValueError: They end within an event.
    """
    if framing == "raw":
        return [data] if data else []
    inner: Any = SSEDecoder() if framing == "sse" else NDJSONDecoder()
    decoder = VerbatimDecoder(inner, framing=framing)
    found = [item.wire for item in decoder.feed(data)]
    if decoder.error is not None:
        raise ValueError(str(decoder.error))
    if decoder.partial or (data and not data.endswith((b"\n", b"\r"))):
        wanted = "blocks, each with its blank line" if framing == "sse" else "lines, each with its line feed"
        raise ValueError(f"bytes must be complete {wanted}; got bytes that end in {data[-20:]!r}")
    return found
