"""
How a batch is entered. In the steady state nothing can repeat, and a few list operations are enough.

`lane_of()` decides. Its answer is kept by the ledger, for itself and for code that leaves events unread.
`advance()` handles the steady state for batches of any size; `Ledger.receive_one()` does the same inline for one event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from .memory import LONGEST_ID
from .numbers import Numbers
from .position import Tip

__all__ = ["CAREFUL", "COUNTING", "NUMBERED", "OPAQUE", "PLAIN", "RAW", "Lane", "advance", "lane_of"]


class Lane(Enum):
    """How the next batch is received. All lanes except `CAREFUL` are steady states."""

    CAREFUL = "every event is looked at"
    RAW = "bytes"
    PLAIN = "events without ids"
    OPAQUE = "ids that are not known yet"
    COUNTING = "ids that were found to count"
    NUMBERED = "numbers that are promised to count"


# Globals, because `Ledger.receive_one()` compares them with `is` for every event.
CAREFUL: Final = Lane.CAREFUL
RAW: Final = Lane.RAW
PLAIN: Final = Lane.PLAIN
OPAQUE: Final = Lane.OPAQUE
COUNTING: Final = Lane.COUNTING
NUMBERED: Final = Lane.NUMBERED

# Up to this many ids, writing each number costs less.
_SHORT: Final = 6
_PLAIN: Final = list(map(str, range(100)))
_TWO_DIGITS: Final = [f"{number:02}" for number in range(100)]


def lane_of(cursor: str | None, numbers: Numbers, *, placed: bool, counted: bool) -> Lane:
    """
    The lane for a settled stream: nothing may repeat, nothing is pending, its beginning is known, and no log is kept.

    Args:
        cursor: The stream's cursor.
        placed: The protocol gives the events their positions.
        counted: It counts events that have none.
    """
    if numbers.contiguous:
        return NUMBERED if numbers.last is not None and cursor is not None else CAREFUL
    if placed and not (counted and cursor is None and not numbers.promised):
        return CAREFUL
    if cursor is None:
        return PLAIN
    if numbers.watching:
        return COUNTING if numbers.counting else CAREFUL
    return OPAQUE if len(cursor) <= LONGEST_ID else CAREFUL


def advance(lane: Lane, items: Sequence[Any], tip: Tip, are_new: Callable[[list[str]], bool]) -> Tip | None:
    """
    Enter a batch in the steady state: position its events, and check that each is the expected next one.

    Args:
        items: The events, at least one.
        tip: The position before them.
        are_new: Enters ids, unless one of them is known.

    Returns:
        The position after them. `None`: one of them needs a closer look.

    Setting slots from ranges (`for item, item.offset in zip(…)`) costs half as much as counting in the loop.
    """
    _, number, offset, _, _ = tip
    last = items[-1]
    size = len(items)
    offsets: Sequence[int] = range(offset, offset + size)
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
        # Long ids are kept as digests, which this lane does not look up.
        if None in ids or "" in ids or max(map(len, ids)) > LONGEST_ID or not are_new(ids):
            return None
    else:
        assert number is not None
        numbers = range(number + 1, number + 1 + size)
        number += size
        if lane is COUNTING:
            if not _count([item.own_id for item in items], numbers):
                return None
            if numbers == offsets:
                # One object serves as both.
                for item, at in zip(items, offsets):  # noqa: B905
                    item.offset = item.sequence = at
            else:
                for item, item.offset, item.sequence in zip(items, offsets, numbers):  # noqa: B007, B905
                    pass
            return cursor, number, offset + size, None, 0
        if (sequences := [item.sequence for item in items]) != list(numbers):
            return None
        cursor = last.cursor if cursor else str(number)
        if numbers == offsets:
            offsets = sequences
    for item, item.offset in zip(items, offsets):  # noqa: B007, B905
        pass
    return cursor, number, offset + size, None, 0


def _count(ids: list[str | None], numbers: range) -> bool:
    """
    Whether ids are these numbers, as plain decimals.

    A long run is compared as one text, made of hundreds that are written only once: a sixth of the time of `str()` for each.
    """
    if len(ids) < _SHORT:
        return ids == list(map(str, numbers))
    first, stop = numbers.start, numbers.stop
    written = []
    while first < stop:
        hundreds, begin = divmod(first, 100)
        end = min(begin + stop - first, 100)
        between = f"\n{hundreds}" if hundreds else "\n"
        written.append(between + between.join((_TWO_DIGITS if hundreds else _PLAIN)[begin:end]))
        first += end - begin
    try:
        return "\n" + "\n".join(ids) == "".join(written)  # type: ignore[arg-type]
    except TypeError:
        return False  # one has no id
