"""A position, and what a connection started from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from .overlap import SinceLog

__all__ = ["NOWHERE", "Answer", "Place", "Stray", "Tip", "first_stray"]


class Place(NamedTuple):
    """A position: see `Checkpoint` for the fields. The first `logged` entries of `log` stand for `since`."""

    cursor: str | None
    sequence: int | None
    offset: int
    log: SinceLog | None
    logged: int


Tip: TypeAlias = tuple[str | None, int | None, int, SinceLog | None, int]
"""A `Place` in its internal form. One is made per batch, and a plain tuple costs a fifth of a named one."""
NOWHERE: Final[Tip] = (None, None, 0, None, 0)


class Answer(NamedTuple):
    """
    One answer of the server, as it began.

    Attributes:
        offset: Events delivered before it.
        logged: How many of them came after the cursor.
        asking: It only has to show whether there is more.
        replayed: It may repeat earlier events, so promised numbers are enforced.
        joins: It may belong to something that was already running.
        moved: It has moved the cursor.
    """

    offset: int = 0
    logged: int = 0
    asking: bool = False
    replayed: bool = False
    joins: bool = False
    moved: bool = False


class Stray(NamedTuple):
    """An item from another log: its index in the batch, its cursor, and a cursor of ours."""

    at: int
    cursor: str
    before: str | None


def first_stray(items: Sequence[Any], before: str | None, lineage: Callable[[str], str]) -> Stray | None:
    """
    The first item whose cursor belongs to another log.

    Args:
        before: The cursor before them.
        lineage: The protocol's `lineage()`: the prefix that all cursors of one log share.
    """
    own = lineage(before) if before is not None else ""
    for at, item in enumerate(items):
        cursor = item.cursor
        if cursor is None:
            continue
        if not own:
            own = lineage(cursor)
        elif not cursor.startswith(own):
            return Stray(at, cursor, before)
        before = cursor
    return None
