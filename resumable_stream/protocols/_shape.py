"""
What the events of most providers have in common, so that their modules contain only the differences.

    TEXTS = {"response.output_text.delta": Text("text", "delta", index="output_index")}
    deltas_of(TEXTS, kind, payload)

A field may hold anything. A value that is not text, or is empty, is not content; an index that is not a number means part 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from .._contract import StreamState
from .._events import Delta

__all__ = ["Kind", "Text", "deltas_of", "objects_in", "posted", "said", "texts_in"]

Kind = Literal["text", "reasoning", "tool", "refusal"]


@dataclass(frozen=True, slots=True)
class Text:
    """
    Where to find the text in one type of event.

    Attributes:
        kind: The kind of content.
        field: Name of the field that holds the text.
        index: Name of the field with the part's number; `""` if there is none.
    """

    kind: Kind
    field: str
    index: str = ""


def said(kind: Kind, text: Any, index: Any = 0) -> tuple[Delta, ...]:
    """A piece of content, or nothing if `text` is not a non-empty text."""
    if not text or not isinstance(text, str):
        return ()
    return (Delta(kind, text, index if type(index) is int else 0),)


def deltas_of(table: Mapping[str, Text], type: Any, body: Mapping[str, Any], index: Any = 0) -> tuple[Delta, ...]:
    """
    The content of an event, looked up in a table of types.

    Args:
        type: The event's type, as in its JSON.
        body: The object that holds the text.
        index: The part it belongs to, if the object does not say so itself.
    """
    found = table.get(type) if isinstance(type, str) else None
    if found is None:
        return ()
    return said(found.kind, body.get(found.field), body.get(found.index) if found.index else index)


def objects_in(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; an empty list if `value` is not a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def texts_in(content: Any) -> list[str]:
    """The texts in content that is a text, or a list of texts and of objects with a `text`."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [text for text in texts if isinstance(text, str) and text]


def posted(request: StreamState, *ends: str) -> dict[str, Any]:
    """The JSON object that is posted to a path with one of these ends; an empty one for any other request."""
    ours = request.method == "POST" and urlsplit(request.url).path.rstrip("/").endswith(ends)
    return request.json if ours and isinstance(request.json, dict) else {}
