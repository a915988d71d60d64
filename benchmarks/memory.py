"""
Does a stream grow? Resident memory after 20,000 events (all windows are full) and after a million more.

Each kind of stream is read in a separate process, from chunks made on demand.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from itertools import islice
from pathlib import Path

import psutil
from corpora import ENDLESS, endless
from measure import Measured
from whole import json_number, stream

__all__ = ["growth"]

_FIRST = 20_000


def growth(events: int) -> Measured:
    """MB by which the worst kind grows over that many events."""
    parts = {}
    for kind in ENDLESS:
        command = [sys.executable, str(Path(__file__)), kind, str(events)]
        parts[kind] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    worst = max(0.0, *parts.values())
    return Measured(worst, min(parts.values()), worst, parts)


def _measure(kind: str, events: int) -> float:
    process = psutil.Process()
    read = stream(endless(kind), json_number() if kind == "number in JSON" else None)
    _skip(read, _FIRST)
    gc.collect()
    before = process.memory_info().rss
    _skip(read, events)
    gc.collect()
    return (process.memory_info().rss - before) / 1e6


def _skip(read: object, events: int) -> None:
    number = 0
    for _ in islice(read, events):  # type: ignore[call-overload]
        number += 1
    assert number == events


if __name__ == "__main__":
    print(_measure(sys.argv[1], int(sys.argv[2])))
