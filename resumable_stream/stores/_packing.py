"""
Kept events as a few compressed rows, as the stores with their own records (SQLite, Redis) write them.

A row is JSON lines, one event per line, compressed with zlib: a model's events repeat the same field names, and shrink to a
tenth. The checksum of zlib detects damage. The events of one save are one row, unless there are so many that reading them back
in one piece would take too much memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from .base import Kept, item_from_json, item_to_json

__all__ = ["ROW_BYTES", "pack", "unpack"]

# JSON in one row, before compression. 256 KiB: about a thousand tokens, and what a replay holds in memory at once.
# A single longer event is a row by itself.
ROW_BYTES: Final = 256 * 1024
# The fastest level. Level 6 took twice as long and saved 5 % of the bytes.
_LEVEL: Final = 1


def pack(events: Iterable[Kept]) -> Iterator[tuple[int, bytes]]:
    """
    Write events as rows.

    Returns:
        For each row, the number of events in it and its bytes. No rows if there are no events.
    """
    lines: list[str] = []
    size = 0
    for event in events:
        line = item_to_json(event)
        if lines and size + len(line) > ROW_BYTES:
            yield _row(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield _row(lines)


def _row(lines: list[str]) -> tuple[int, bytes]:
    return len(lines), zlib.compress(("\n".join(lines) + "\n").encode(), _LEVEL)


def unpack(row: object) -> Iterator[Kept]:
    """
    Read what `pack()` wrote.

    Raises:
        ValueError: It is not such a row (from the call), or an event in it is damaged (from the iterator).
    """
    if not isinstance(row, bytes):
        raise ValueError(f"expected events as bytes, got {type(row).__name__}")
    try:
        text = zlib.decompress(row)
    except zlib.error as exc:
        raise ValueError(f"expected {len(row)} bytes of compressed events, got {row[:20]!r}: {exc}") from exc
    if not text.endswith(b"\n"):
        raise ValueError(f"expected whole lines, got {text[-40:]!r} at the end")
    return map(item_from_json, text[:-1].split(b"\n"))
