"""
Random faults (guarantees G1, G2, G4, G8): nothing is lost, nothing repeated, and no end is a silent one.

`cases.py` says what is streamed and what goes wrong with it, `playing.py` plays and judges it. A failure prints the seed and
the whole case; `python -m tests.soak --seed N` plays that one alone.
"""

from __future__ import annotations

import pytest

from .cases import KINDS, ROWS
from .playing import play

EACH = len(KINDS) * len(ROWS)  # so many seeds have each kind in each row once
IN_MEMORY = 20_000
OVER_SOCKETS = 3 * EACH
BLOCKS = 40


def check(seeds: range, *, sockets: bool = False) -> None:
    failures = play(list(seeds), sockets=sockets)
    again = "python -m tests.soak --seed N" + (" --sockets" if sockets else "")
    assert not failures, "\n\n".join([f"{len(failures)} of {len(seeds)} streams; repeat one: {again}", *failures[:5]])


def test_each_kind_of_stream_arrives_whole_in_each_row() -> None:
    check(range(EACH, 2 * EACH))


def test_each_kind_of_stream_arrives_whole_over_sockets() -> None:
    check(range(0, EACH, 7), sockets=True)


@pytest.mark.soak
@pytest.mark.parametrize("block", range(BLOCKS))
def test_twenty_thousand_streams_lose_and_repeat_nothing(block: int) -> None:
    each = IN_MEMORY // BLOCKS
    check(range(block * each, (block + 1) * each))


@pytest.mark.soak
@pytest.mark.parametrize("block", range(6))
def test_hundreds_of_streams_over_sockets_lose_and_repeat_nothing(block: int) -> None:
    each = OVER_SOCKETS // 6
    check(range(block * each, (block + 1) * each), sockets=True)
