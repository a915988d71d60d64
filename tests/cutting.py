"""
Where the tests cut a stream. This is the one place that decides it.

By default a stream is cut before, inside and after each of its events: a protocol and the core see whole events, so this is
all that their state can tell apart. That the framing hands out the same events for every split of the bytes is proved in
`tests/framing`, and the core's own transcript is cut at every byte in `tests/core/test_every_cut.py`.

`make soak` cuts everything at every byte.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence

Where = Callable[[bytes | Sequence[bytes]], list[int]]
"""Positions in a body, or in blocks that follow one another: where to cut it. See the fixture `where`."""

BLOCK = re.compile(rb".+?(?:\r\n\r\n|\n\n|\r\r)|.+", re.DOTALL)


def around_each_event(body: bytes | Sequence[bytes]) -> list[int]:
    """
    Before, inside and after each event.

    Inside is by turns the middle of the event, and one byte short of its end: all has arrived but what completes it.

    Args:
        body: The blocks of a stream, one event or comment each; or event-stream bytes, which are split at the empty lines.
    """
    blocks = BLOCK.findall(body) if isinstance(body, bytes) else body
    positions = {0}
    for turn, (start, end) in enumerate(itertools.pairwise(itertools.accumulate(map(len, blocks), initial=0))):
        positions |= {end, end - 1 if turn % 2 else (start + end) // 2}
    return sorted(positions)


def in_turn(where: Where, index: int, turn: int) -> bool:
    """
    Whether a way to cut is tried at a place: two ways that follow one another share the places, those within events too.

    So every place is cut, in half of the ways; `make soak` leaves none out.

    Args:
        where: All ways are tried at every byte.
        index: Which of the places it is.
        turn: Which of the ways it is.
    """
    return where is at_every_byte or (index + index // 2 + turn) % 2 == 0


def chunk_at(where: Where, position: int) -> int | None:
    """
    How many bytes arrive together of a body that is cut here: by turns all, and two sizes.

    Both are shorter than most events, so that events arrive one by one. `make soak` has a byte at a time, which takes ten times
    as long: that the events are the same is proved in `tests/framing`.
    """
    return ((None, 7, 1) if where is at_every_byte else (None, 41, 17))[position % 3]


def at_every_byte(body: bytes | Sequence[bytes]) -> list[int]:
    return list(range((len(body) if isinstance(body, bytes) else sum(map(len, body))) + 1))


def cut(body: bytes, size: int) -> list[bytes]:
    """The body in pieces of one size."""
    return [body[start : start + size] for start in range(0, len(body), size)]


def every_cut(body: bytes) -> Iterator[list[bytes]]:
    """For a framing: the body whole, in small pieces, and cut in two at every place."""
    yield [body]
    for size in (1, 2, 3, 7):
        yield cut(body, size)
    for place in range(len(body) + 1):
        yield [body[:place], body[place:]]
