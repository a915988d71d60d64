"""
What the events of most providers have in common, so that their modules say only what is particular.

    TEXTS = {"response.output_text.delta": Text("text", "delta", index="output_index")}
    deltas_of(TEXTS, kind, payload)

A field may hold anything: what is not a text, or is empty, is no content, and what is not a number is part 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._events import Delta

__all__ = ["Kind", "Text", "deltas_of", "objects_in", "said"]

Kind = Literal["text", "reasoning", "tool", "refusal"]


@dataclass(frozen=True, slots=True)
class Text:
    """
    Where the text of one type of event stands.

    Attributes:
        kind: What it is.
        field: Name of the text in the object.
        index: Name of the number that says which part it belongs to; `""`: there is none.
    """

    kind: Kind
    field: str
    index: str = ""


def said(kind: Kind, text: Any, index: Any = 0) -> tuple[Delta, ...]:
    """A piece of content, if it is one."""
    if not text or not isinstance(text, str):
        return ()
    return (Delta(kind, text, index if type(index) is int else 0),)


def deltas_of(table: Mapping[str, Text], type: Any, body: Mapping[str, Any], index: Any = 0) -> tuple[Delta, ...]:
    """
    The content of an event, by a table of types.

    Args:
        type: Of the event, as it stands in its JSON.
        body: The object that holds the text.
        index: Which part it belongs to, where the object does not say so itself.
    """
    found = table.get(type) if isinstance(type, str) else None
    if found is None:
        return ()
    return said(found.kind, body.get(found.field), body.get(found.index) if found.index else index)


def objects_in(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is something else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
