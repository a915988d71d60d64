"""
Which road a batch takes: in the steady state nothing can repeat, and a batch is entered in a few list operations.

`lane_of()` decides, and everyone asks the ledger for its answer: the ledger itself, and whoever leaves events unread.
`advance()` is the steady state for batches of any size; `Ledger.receive_one()` is the same, flat, for one event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from .._contract import ResumeProtocol
from .memory import LONGEST_ID
from .numbers import Numbers
from .position import Tip

__all__ = ["CAREFUL", "COUNTING", "NUMBERED", "OPAQUE", "PLAIN", "RAW", "Lane", "advance", "lane_of"]


class Lane(Enum):
    """How the next batch is received. All but `CAREFUL` are the steady state."""

    CAREFUL = "every event is looked at"
    RAW = "bytes"
    PLAIN = "events without ids"
    OPAQUE = "ids that are not known yet"
    COUNTING = "ids that were found to count"
    NUMBERED = "numbers that are promised to count"


# As globals: the way for one event compares them with `is`, once for each.
CAREFUL: Final = Lane.CAREFUL
RAW: Final = Lane.RAW
PLAIN: Final = Lane.PLAIN
OPAQUE: Final = Lane.OPAQUE
COUNTING: Final = Lane.COUNTING
NUMBERED: Final = Lane.NUMBERED


def lane_of(protocol: ResumeProtocol, cursor: str | None, numbers: Numbers) -> Lane:
    """
    The lane of a settled stream: nothing may repeat, nothing is pending, its beginning is known, and no log is kept.

    Args:
        cursor: Where it stands.
    """
    if protocol.unique_ids or protocol.replays:
        return CAREFUL
    if numbers.contiguous:
        return NUMBERED if numbers.last is not None and cursor is not None else CAREFUL
    if protocol.places and not (protocol.counted and cursor is None and not numbers.promised):
        return CAREFUL
    if cursor is None:
        return PLAIN
    if numbers.watching:
        return COUNTING if numbers.counting else CAREFUL
    # Long ids are kept as digests, which this lane does not look for.
    return OPAQUE if len(cursor) <= LONGEST_ID else CAREFUL


def advance(lane: Lane, items: Sequence[Any], tip: Tip, are_new: Callable[[list[str]], bool]) -> Tip | None:
    """
    Enter a batch in the steady state: position its events, and see that each is the one that may come next.

    Args:
        items: At least one.
        tip: The position before them.
        are_new: Enters ids, unless one of them is known.

    Returns:
        The position after them. `None`: one of them has to be looked at.

    A loop that sets slots from ranges costs half of one that counts: `for item, item.offset in zip(…)`.
    """
    _, number, offset, _, _ = tip
    last = items[-1]
    size = len(items)
    offsets = range(offset, offset + size)
    if lane is RAW:
        for item, item.offset in zip(items, offsets):  # type: ignore[has-type]  # noqa: B007, B905
            pass
        return last.cursor, last.sequence + len(last.data), offset + size, None, 0
    cursor: str | None = last.id
    if lane is PLAIN:
        if cursor or [item.own_id for item in items] != [None] * size:
            return None
        cursor = number = None
    elif lane is OPAQUE:
        ids = [item.own_id for item in items]
        if None in ids or "" in ids or not are_new(ids):
            return None
    else:
        assert number is not None
        numbers = range(number + 1, number + 1 + size)
        number += size
        if lane is COUNTING:
            if [item.own_id for item in items] != list(map(str, numbers)):
                return None
            for item, item.offset, item.sequence in zip(items, offsets, numbers):  # noqa: B007, B905
                pass
            return cursor, number, offset + size, None, 0
        if [item.sequence for item in items] != list(numbers):
            return None
        cursor = last.cursor if cursor else str(number)
    for item, item.offset in zip(items, offsets):  # noqa: B007, B905
        pass
    return cursor, number, offset + size, None, 0
