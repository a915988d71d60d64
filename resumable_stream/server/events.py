"""From what an application yields to the bytes of events, one item of the list an event."""

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
"""Names of events that the server sends itself; a reader could not tell an application's from them."""

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
"""What can be sent: text, a JSON value, an event with a name, or bytes as they are to be stored."""


def encode(framing: Framing, content: Content, *, event: str | None = None) -> list[bytes]:
    """
    The events of one item, as they are stored.

    | | `"sse"` | `"ndjson"` | `"raw"` |
    |---|---|---|---|
    | text | the `data` of an event | a line | UTF-8 |
    | a mapping or a list | its JSON, likewise | its JSON, a line | an error |
    | `Event` | an event with a name | an error | an error |
    | bytes | whole blocks, see `split()` | whole lines | a piece |

    Args:
        framing: Of the stream.
        content: The item.
        event: Name of the event, for text and JSON in `"sse"`.

    Raises:
        TypeError: It cannot be written in this framing.
        ValueError: A name or a line with a line end in it, a reserved name, or bytes that are not whole events.
    """
    if isinstance(content, Event):
        if event is not None:
            raise TypeError("an Event has its name already; pass its data to give it another")
        event, content = content.event, content.data
    if isinstance(content, (bytes, bytearray, memoryview)):
        if event is not None:
            raise TypeError("bytes are stored as they are and take no event name; pass text")
        return split(framing, bytes(content))
    if not isinstance(content, str):
        if not isinstance(content, (Mapping, list)):
            raise TypeError(f"a stream takes text, bytes, a mapping, a list or an Event, got {type(content).__name__}")
        if framing == "raw":
            raise TypeError("a stream of raw bytes takes bytes and text, got JSON")
        content = to_json(content)
    if event is not None and framing != "sse":
        raise TypeError(f"only server-sent events have names, and this stream is {framing}")
    match framing:
        case "sse":
            return [_block(content, event)]
        case "ndjson":
            if not content.strip() or _LINE_ENDS.search(content):
                raise ValueError(f"an event of a stream of JSON lines is one line that is not empty, got {content[:80]!r}")
            return [f"{content}\n".encode()]
        case "raw":
            return [content.encode()] if content else []


def encode_text(framing: Framing, delta: str) -> list[bytes]:
    """The same as `encode(framing, {"text": delta})`, for a tenth of the time."""
    if type(delta) is not str or framing == "raw" or (not delta.isascii() and SURROGATE.search(delta)):
        return encode(framing, {"text": delta})
    # A string of JSON has no line ends in it, so this is one line.
    line = f'{{"text":{encode_basestring(delta)}}}'
    return [f"data: {line}\n\n".encode() if framing == "sse" else f"{line}\n".encode()]


def _block(data: str, event: str | None) -> bytes:
    if event is None and "\n" not in data and "\r" not in data:
        return f"data: {data}\n\n".encode()
    if event == "message":
        event = None
    if event is not None:
        if not event or _LINE_ENDS.search(event) or "\0" in event:
            raise ValueError(f"the name of an event is text without line ends, got {event[:80]!r}")
        if event in RESERVED:
            raise ValueError(f"the event name {event!r} is the server's own; choose another")
    return event_block(data, event=event)


def split(framing: Framing, data: bytes) -> list[bytes]:
    """
    Bytes that a producer wrote itself, cut into events.

    An event is what `framing` delivers: a block with data and what stands in front of it, a line, or a piece of raw bytes.
    Comments and blocks without data at the very end belong to no event, and are dropped.

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
        raise ValueError(f"bytes that are sent are whole {wanted}; got some that end in {data[-20:]!r}")
    return found
