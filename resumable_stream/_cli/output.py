"""How `tail` writes events: as lines, as JSON, as text, unchanged."""

from __future__ import annotations

import base64
import codecs
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any

import resumable_stream as rs

__all__ = ["Format", "as_json", "as_lines", "as_text", "coloured", "discard_output", "visible"]

Format = Callable[[Any], bytes]
"""Converts an event to bytes."""

# Everything that moves a cursor, rings, or starts an escape sequence: C0 except tab and LF, DEL, C1.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}


def visible(text: str) -> str:
    r"""
    Show control characters instead of obeying them: what a server sends must not drive the terminal.

    >>> visible("\x1b[2J")
    '\\x1b[2J'
    """
    return text.translate(_CONTROLS)


def coloured(stream: IO[Any]) -> bool:
    """Whether this is a terminal that wants colours. See https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def discard_output() -> None:
    """Discard further output, so that Python does not try to write it again at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def as_lines(*, encoding: str, terminal: bool, colour: bool) -> Format:
    """Each event's data and a line end; on a terminal preceded by its id and type. Bytes are unchanged."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if colour else ("", "")

    def line(item: Any) -> bytes:
        if isinstance(item, rs.Chunk):
            return item.data
        text = item.data
        if terminal:
            text = visible(text)
            if names := " ".join(filter(None, (item.own_id, item.event if item.event != "message" else ""))):
                text = f"{dim}{visible(names)}{plain}  {text}"
        return f"{text}\n".encode(encoding, "replace")

    return line


def as_json(item: Any) -> bytes:
    """
    One JSON object per line, in ASCII; `retry`, `replayed`, `reset` and `gap` only if they are set.

    >>> as_json(rs.StreamEvent(data="Hi", id="7"))
    b'{"event": "message", "data": "Hi", "id": "7", "sequence": null, "offset": 0, "cursor": "7"}\\n'
    """
    found: dict[str, Any]
    if isinstance(item, rs.Chunk):
        found = {"base64": base64.b64encode(item.data).decode()}
    else:
        found = {"event": item.event, "data": item.data, "id": item.id or None}
    found |= {"sequence": item.sequence, "offset": item.offset, "cursor": item.cursor}
    if getattr(item, "retry", None) is not None:
        found["retry"] = item.retry
    found |= {name: True for name in ("replayed", "reset") if getattr(item, name)}
    if (gap := item.gap) is not None:
        found["gap"] = {"expected": gap.expected, "received": gap.received, "after": gap.after}
    return json.dumps(found).encode() + b"\n"


def as_text(stream: rs.ResumableStream, *, encoding: str, terminal: bool) -> Format:
    """The visible text of each event, with nothing between."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def text(item: Any) -> bytes:
        if isinstance(item, rs.Chunk):
            found = decoder.decode(item.data)
        else:
            found = "".join(delta.text for delta in stream._deltas(item) if delta.kind == "text")
        if item.reset:
            found = f"\n{found}"
        return (visible(found) if terminal else found).encode(encoding, "replace")

    return text
