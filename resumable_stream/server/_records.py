"""
How heads, endings and spans are stored, and read again.

A record may be damaged, or written by a later version. Both raise `LogUnavailable`, which names the stream and the reason.
Readers must not mistake a damaged log for an empty one, or a bad row for a mistake of the caller.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from .._errors import LogUnavailable
from .._events import Outcome
from ._values import MAX_PLACE, Ending, Head, Span

__all__ = [
    "compressed",
    "compressed_lengths",
    "damaged",
    "decode_lengths",
    "encode_lengths",
    "ending_from_json",
    "ending_to_json",
    "head_from_json",
    "head_to_json",
    "stored_span",
]

VERSION: Final = 1
MAX_EVENTS: Final = 1 << 24
"""Events of one span. 16 million: more than 64 MiB of stream can hold, and a bound for `9999999*1`."""
# A damaged entry may claim any size, so both are bounded. 1 GiB is above any span of a stream of 64 MiB. The lengths of 256 KiB
# of events that alternate between one byte and two take less than a megabyte.
_DATA_BYTES: Final = 1 << 30
_LENGTHS_BYTES: Final = 16 << 20
_RUN: Final = re.compile(r"(?:([1-9][0-9]{0,15})\*)?([1-9][0-9]{0,15})", re.ASCII)


def damaged(stream_id: str, what: str) -> LogUnavailable:
    """The error of a log that holds something unexpected."""
    return LogUnavailable(f"stream {stream_id!r}: the log is damaged: {what}; delete() the stream", stream_id=stream_id)


# --- lengths ------------------------------------------------------------------------------------------------------------


def encode_lengths(lengths: Iterable[int]) -> str:
    """
    Write the lengths of a span; runs of equal lengths are written once.

    >>> encode_lengths((24, 24, 24, 7))
    '3*24,7'
    """
    runs = ((length, sum(1 for _ in run)) for length, run in groupby(lengths))
    return ",".join(f"{count}*{length}" if count > 1 else str(length) for length, count in runs)


def decode_lengths(text: str, *, size: int | None = None) -> tuple[int, ...]:
    """
    Read the output of `encode_lengths`; `24,24` is accepted as well as `2*24`.

    Args:
        text: The lengths.
        size: What they must add up to, in bytes. `None`: unchecked.

    Raises:
        ValueError: The text is malformed, or adds up to something else. It uses no more memory than `size` events need.
    """
    lengths: list[int] = []
    total = 0
    for piece in text.split(","):
        found = _RUN.fullmatch(piece)
        if found is None:
            raise ValueError(f"lengths are numbers and runs, as in '3*24,7'; got {piece[:40]!r}")
        count, length = int(found[1] or 1), int(found[2])
        total += count * length
        if len(lengths) + count > MAX_EVENTS or (size is not None and total > size):
            raise ValueError(f"lengths of more than {size if size is not None else MAX_EVENTS} in all: {text[:40]!r}")
        lengths += [length] * count
    if size is not None and total != size:
        raise ValueError(f"lengths add up to {total}, but there are {size} bytes")
    return tuple(lengths)


# --- spans --------------------------------------------------------------------------------------------------------------


def compressed(span: Span) -> bytes:
    """The data of a span after the stream has ended: zlib at level 6, which turns 2,000 tokens of a chat into 10 to 30 KB."""
    return zlib.compress(span.data, 6)


def compressed_lengths(span: Span) -> bytes:
    """
    The lengths of a span after the stream has ended.

    As text, those of 2,000 events are 7 KB, a quarter of the compressed answer; compressed, they are 2 KB.
    """
    return zlib.compress(encode_lengths(span.lengths).encode(), 6)


def stored_span(
    stream_id: str, *, n: int | str, b: int | str, lengths: str | bytes, data: bytes, is_compressed: bool = False
) -> Span:
    """
    Build a span from its stored form.

    Args:
        stream_id: For the message.
        n: Number of its last event, also as decimal text.
        b: Byte position after it, also as decimal text.
        lengths: The output of `encode_lengths`, or, as bytes, of `compressed_lengths`.
        data: As stored.
        is_compressed: `data` is the output of `compressed`.

    Raises:
        LogUnavailable: It is not a span.
    """
    try:
        number, position = _whole(n), _whole(b)
        if isinstance(lengths, bytes):
            lengths = _decompressed(lengths, _LENGTHS_BYTES).decode()
        if not isinstance(lengths, str) or not isinstance(data, bytes):
            raise TypeError(f"lengths and data are {type(lengths).__name__} and {type(data).__name__}")
        if is_compressed:
            data = _decompressed(data, _DATA_BYTES)
        return Span(n=number, b=position, lengths=decode_lengths(lengths, size=len(data)), data=data)
    except (ValueError, TypeError, zlib.error) as exc:
        raise damaged(stream_id, f"the span that ends with event {str(n)[:20]} cannot be read ({exc})") from exc


def _whole(number: int | str) -> int:
    if isinstance(number, str):
        if not (number.isascii() and number.isdecimal() and len(number) <= 16):
            raise ValueError(f"not a whole number: {number[:40]!r}")
        return int(number)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"not a whole number: {number!r}")
    return number


def _decompressed(data: bytes, limit: int) -> bytes:
    reader = zlib.decompressobj()
    plain = reader.decompress(data, limit)
    if not reader.eof:
        raise ValueError("the compressed data is cut short, or too large")
    return plain


# --- heads and endings --------------------------------------------------------------------------------------------------


def head_to_json(head: Head) -> str:
    """Write a head as one line of JSON."""
    seldom = {"public_id": head.public_id, "feed": head.feed, "written": head.written}
    return _to_json(
        content_type=head.content_type,
        framing=head.framing,
        status=head.status,
        headers=[list(pair) for pair in head.headers],
        owner=head.owner,
        fingerprint=head.fingerprint,
        session=head.session,
        retention=head.retention,
        **{name: value for name, value in seldom.items() if value},
    )


def head_from_json(stream_id: str, text: str | bytes) -> Head:
    """
    Read the output of `head_to_json`.

    Raises:
        LogUnavailable: It is malformed, or from a later version.
    """
    found = _from_json(stream_id, "head", text)
    try:
        headers = found.pop("headers")
        return Head(**found, headers=tuple((name, value) for name, value in headers))
    except (KeyError, TypeError, ValueError) as exc:
        raise damaged(stream_id, f"its head cannot be read ({exc})") from exc


def ending_to_json(ending: Ending) -> str:
    """Write an ending as one line of JSON."""
    seldom = {"applied": ending.applied} if ending.applied else {}
    return _to_json(outcome=ending.outcome.value, reason=ending.reason, error=ending.error, **seldom)


def ending_from_json(stream_id: str, text: str | bytes) -> Ending:
    """
    Read the output of `ending_to_json`.

    Raises:
        LogUnavailable: It is malformed, or from a later version.
    """
    found = _from_json(stream_id, "ending", text)
    try:
        return Ending(outcome=Outcome(found.pop("outcome")), **found)
    except (KeyError, TypeError, ValueError) as exc:
        raise damaged(stream_id, f"its ending cannot be read ({exc})") from exc


def _to_json(**fields: object) -> str:
    return json.dumps({"v": VERSION, **fields}, ensure_ascii=False, separators=(",", ":"))


def _from_json(stream_id: str, what: str, text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise damaged(stream_id, f"its {what} is not JSON ({exc})") from exc
    if not isinstance(found, dict):
        raise damaged(stream_id, f"its {what} is not a JSON object")
    version = found.pop("v", None)
    if type(version) is not int or not 1 <= version <= MAX_PLACE:
        raise damaged(stream_id, f"its {what} has no version")
    if version != VERSION:
        raise LogUnavailable(
            f"stream {stream_id!r}: its {what} was written by a later version of resumable_stream (format {version}, this one "
            f"reads {VERSION}); upgrade this process",
            stream_id=stream_id,
        )
    return found
