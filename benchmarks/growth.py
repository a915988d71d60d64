"""
How the time grows when a stream doubles: twice is linear; four times is an attack that a peer can mount.

Each case is measured at a size and at four times that size; the growth per doubling is the root of the ratio.
The whole resumable stream reads them, so that decoder, ledger and loop are all covered.

Two effects look like growth and are excluded. The system provides a buffer of 5 MB as fresh pages, but reuses one of 1 MB, and
the page faults cost more than the parsing: so the measuring process tells glibc to keep its memory. And the best of the rounds
counts, not the median.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import Measured, cpu_seconds, in_turn
from whole import stream

__all__ = ["CASES", "per_doubling"]

Chunks = list[bytes]
_KEEP = 1 << 30


def _slices(body: bytes, size: int) -> Chunks:
    return [body[start : start + size] for start in range(0, len(body), size)]


def large_event(size: int) -> Chunks:
    """One event of `size` bytes in chunks of 1 KiB."""
    return _slices(b"data: " + b"x" * size + b"\n\n", 1024)


def large_event_by_the_byte(size: int) -> Chunks:
    """One event, byte by byte."""
    return _slices(b"data: " + b"x" * size + b"\n\n", 1)


def many_lines(lines: int) -> Chunks:
    """One event of many `data:` lines, in chunks of 64 KiB."""
    return _slices(b"data: line\n" * lines + b"\n", 65536)


def many_lines_in_pieces(lines: int) -> Chunks:
    """The same, a line in each chunk."""
    return [b"data: line\n"] * lines + [b"\n"]


def heartbeats(number: int) -> Chunks:
    """Only comments."""
    return [b": ping\n\n"] * number


def one_large_chunk(size: int) -> Chunks:
    """That many bytes of small events in a single chunk, as in a replay."""
    return [b"".join(b"id: %d\ndata: some text of an event that is replayed\n\n" % number for number in range(size // 55))]


CASES: dict[str, tuple[Callable[[int], Chunks], int]] = {
    "one event in 1 KiB chunks, up to 5 MB": (large_event, 1_250_000),
    "one event byte by byte, up to 200 kB": (large_event_by_the_byte, 50_000),
    "one event of up to 200,000 data lines": (many_lines, 50_000),
    "the same, a line in each chunk": (many_lines_in_pieces, 50_000),
    "up to 100,000 heartbeats": (heartbeats, 25_000),
    "events in one chunk, up to 5 MB": (one_large_chunk, 1_250_000),
}


def _read(chunks: Chunks) -> int:
    return sum(1 for _ in stream([*chunks, b"data: [DONE]\n\n"]))


def per_doubling(rounds: int) -> Measured:
    """The growth of the worst case."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(_KEEP), "MALLOC_TRIM_THRESHOLD_": str(_KEEP)}
    command = [sys.executable, str(Path(__file__)), str(rounds)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    parts = json.loads(done.stdout)
    return Measured(max(parts.values()), min(parts.values()), max(parts.values()), parts)


def _measure(rounds: int) -> dict[str, float]:
    parts = {}
    for name, (make, size) in CASES.items():
        samples = {str(times): partial(cpu_seconds, partial(_read, make(times * size))) for times in (1, 4)}
        taken = in_turn(samples, rounds)
        parts[name] = (min(taken["4"]) / min(taken["1"])) ** 0.5
    return parts


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
