"""
Converts the values of a log to the arguments of `_redis_scripts`, and the scripts' replies back to values.

Everything is bytes, so a client that decodes replies, or encodes arguments in its own way, does not affect what is stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from .log import (
    MAX_PLACE,
    Append,
    Appended,
    Behind,
    Bell,
    Control,
    Ended,
    Existing,
    Fenced,
    Handover,
    Head,
    Lost,
    Message,
    Record,
    Released,
    Span,
    SpanRefused,
    Writer,
    compressed,
    compressed_lengths,
    damaged,
    decode_lengths,
    encode_lengths,
    ending_from_json,
    head_from_json,
    head_to_json,
    join_spans,
    stored_span,
)

__all__ = [
    "append_words",
    "appended",
    "bell_of",
    "control_of",
    "entry_words",
    "existing_of",
    "handover_of",
    "head_fields",
    "message_entry",
    "messages_of",
    "ms_of",
    "packed_entries",
    "record_of",
    "refusal_of",
    "restore_words",
    "span_entry",
    "spans_of",
]

_MOST_MS: Final = 2**50
"""Longest lease and retention in milliseconds, 35,000 years: added to the current time, it is still exact in Lua."""
_PLACE: Final = re.compile(rb"([a-z2-7]{4,8}) ([0-9]{1,16}) ([0-9]{1,16})")

Entry = tuple[int, tuple[bytes, ...]]
"""An entry of a Redis Stream: its number, then names and values."""


def ms_of(seconds: float) -> int:
    """Milliseconds of a lease or a retention, rounded up, so that a small one does not become 0."""
    return min(math.ceil(seconds * 1000), _MOST_MS) if seconds < _MOST_MS else _MOST_MS


# --- arguments of the scripts -------------------------------------------------------------------------------------------


def append_words(item: Append) -> list[bytes]:
    """The arguments of `append`."""
    span = item.span
    token, lease = item.writer.token.encode(), b"%d" % ms_of(item.writer.lease)
    taken = b"" if item.taken is None else b"%d" % item.taken
    if span is None:
        words = [token, b"", b"", b"%d" % item.last, b"", b"", b"", lease, taken]
    else:
        lengths = encode_lengths(span.lengths).encode()
        n, b = b"%d" % span.n, b"%d" % span.b
        words = [token, b"%d" % (span.first - 1), b"%d" % span.start, n, b, lengths, span.data, lease, taken]
    words += [b"e" if item.exact else b"", b"%d" % item.trims, b"%d" % item.mark]
    if item.note is not None:
        words.append(item.note.encode())
    return words


def span_entry(span: Span, *, small: bool = False) -> Entry:
    """The entry of a span; `small`: compressed, if that makes it smaller."""
    if small and len(packed := compressed(span)) < len(span.data):
        return span.n, (b"b", b"%d" % span.b, b"l", compressed_lengths(span), b"z", packed)
    return span.n, (b"b", b"%d" % span.b, b"l", encode_lengths(span.lengths).encode(), b"d", span.data)


def packed_entries(spans: Sequence[Span]) -> list[Entry]:
    """The entries of an ended stream: few and compressed."""
    return [span_entry(span, small=True) for span in join_spans(spans)]


def message_entry(message: Message) -> Entry:
    """The entry of a message."""
    return message.k, (b"m", message.id.encode(), b"kind", message.kind.encode(), b"d", message.data.encode())


def restore_words(record: Record, writer: Writer, nonce: bytes, inbox: Sequence[Message]) -> list[bytes]:
    """
    The arguments of `restore`.

    Args:
        record: From `Record.restore`, at the time 0.
        writer: Who restores.
        nonce: Names this call.
        inbox: The messages.
    """
    fields: list[bytes] = []
    for name, value in (
        ("fence", record.fence),
        ("n", record.n),
        ("b", record.b),
        ("oldest", record.oldest),
        ("head", head_to_json(record.head)),
        ("req", record.request),
        ("note", record.note),
        ("nn", record.note_n),
        ("tk", record.taken),
        ("k", record.k),
        ("cancel", record.cancel),
    ):
        if value is not None:
            fields += (name.encode(), value if isinstance(value, bytes) else str(value).encode())
    return [
        nonce,
        writer.token.encode(),
        record.epoch.encode(),
        b"%d" % ms_of(writer.lease),
        b"%d" % ms_of(record.head.retention),
        b"%d" % record.c,
        b"%d" % len(inbox),
        writer.stream_id.encode(),
        b"%d" % len(fields),
        *fields,
        *(word for message in inbox for word in (message.id.encode(), b"%d" % message.k)),
    ]


# --- values of the replies ----------------------------------------------------------------------------------------------


def refusal_of(stream_id: str, reply: Sequence[Any]) -> Lost | Fenced | Ended | Behind | None:
    """Why a write was refused; `None` if it was not."""
    match bytes(reply[0]):
        case b"LOST":
            return Lost()
        case b"FENCED":
            return Fenced(_text(stream_id, "token", reply[1]))
        case b"ENDED":
            return Ended(ending_from_json(stream_id, reply[1]), _whole(stream_id, "n", reply[2]))
        case b"AT":
            return Behind(_whole(stream_id, "n", reply[1]))
    return None


def appended(item: Append, reply: Sequence[Any]) -> Appended | Fenced | Ended | Behind | Lost:
    """
    The verdict on one item.

    Raises:
        SpanRefused: As `judge_append`.
    """
    stream_id = item.writer.stream_id
    refusal = refusal_of(stream_id, reply)
    if refusal is not None:
        return refusal
    n = _whole(stream_id, "n", reply[1])
    if bytes(reply[0]) == b"REFUSED":
        span, b = item.span, _whole(stream_id, "b", reply[2])
        assert span is not None
        if n == span.n:
            seen = (
                f"event {n} is in the log and ends at byte {b}; the span sent again ends at byte {span.b}, so it is another span"
            )
        else:
            seen = (
                f"the log ends at byte {b} with event {n}; the span of events {span.first} to {span.n} must begin there, "
                f"but begins at byte {span.start}"
            )
        raise SpanRefused(f"stream {stream_id!r}: {seen}", stream_id=stream_id)
    return Appended(n, control_of(stream_id, reply[2], reply[3]))


def control_of(stream_id: str, k: Any, cancel: Any) -> Control | None:
    """The state of the inbox; `None` before the first message."""
    count = _whole(stream_id, "k", k)
    reason = None if cancel is None else _text(stream_id, "cancel", cancel)
    return Control(count, reason) if count or reason is not None else None


def existing_of(stream_id: str, reply: Sequence[Any]) -> Existing:
    """The stream that already exists."""
    ending = None if reply[4] is None else ending_from_json(stream_id, reply[4])
    return Existing(
        _text(stream_id, "epoch", reply[1]), _whole(stream_id, "n", reply[2]), head_from_json(stream_id, reply[3] or b""), ending
    )


def handover_of(stream_id: str, reply: Sequence[Any]) -> Handover:
    """What a claim hands over."""
    _, _, _, n, b, k, cancel, kept, before, head, note, note_n, taken, request = reply
    return Handover(
        head=head_from_json(stream_id, head or b""),
        n=_whole(stream_id, "n", n),
        b=_whole(stream_id, "b", b),
        note=None if note is None else _text(stream_id, "note", note),
        note_n=_whole(stream_id, "nn", note_n or b"0"),
        taken=_whole(stream_id, "tk", taken or b"0"),
        control=control_of(stream_id, k, cancel),
        request=None if request is None else bytes(request),
        whole=kept == 1,
        before=_text(stream_id, "epoch", before) if before else None,
    )


def record_of(stream_id: str, reply: Sequence[Any]) -> tuple[Record, float, int, list[Any]]:
    """
    Parse the reply of `read`.

    Returns:
        The record, as far as readers need it; the time on the server's clock, in seconds; the number of entries of the stream;
        and the entries that were read, for `spans_of`.
    """
    _, now, epoch, fence, n, b, c, oldest, until, out, head, _, entries, found, note = reply
    record = Record(
        head=head_from_json(stream_id, head or b""),
        epoch=_text(stream_id, "epoch", epoch),
        fence=_whole(stream_id, "fence", fence),
        n=_whole(stream_id, "n", n),
        b=_whole(stream_id, "b", b),
        c=_whole(stream_id, "c", c),
        oldest=_whole(stream_id, "oldest", oldest),
        until=_whole(stream_id, "until", until) / 1000,
        ending=None if out is None else ending_from_json(stream_id, out),
        note=None if note is None else _text(stream_id, "note", note),
    )
    return record, int(now) / 1000, int(entries), list(found)


def spans_of(stream_id: str, entries: Sequence[Any]) -> Iterator[Span]:
    """
    The spans of entries, one at a time because compressed ones may need much memory.

    Raises:
        LogUnavailable: An entry is not a span.
    """
    for number, values in entries:
        fields = dict(zip(values[::2], values[1::2], strict=False))
        packed = b"z" in fields
        name, _, rest = bytes(number).partition(b"-")
        lengths = fields.get(b"l", b"")
        yield stored_span(
            stream_id,
            n=name.decode(errors="replace") if rest == b"0" else bytes(number).decode(errors="replace"),
            b=fields.get(b"b", b"").decode(errors="replace"),
            # Next to compressed data, text is accepted as well.
            lengths=lengths.decode(errors="replace") if lengths[:1].isdigit() else lengths,
            data=fields[b"z"] if packed else fields.get(b"d", b""),
            is_compressed=packed,
        )


def messages_of(stream_id: str, entries: Sequence[Any]) -> list[Message]:
    """
    The messages of entries.

    Raises:
        LogUnavailable: An entry is not a message.
    """
    found = []
    for number, values in entries:
        fields = {bytes(name): bytes(value) for name, value in zip(values[::2], values[1::2], strict=False)}
        try:
            found.append(
                Message(
                    id=fields[b"m"].decode(),
                    data=fields[b"d"].decode(),
                    kind=fields[b"kind"].decode(),
                    k=int(bytes(number).partition(b"-")[0]),
                )
            )
        except (KeyError, ValueError) as exc:
            raise damaged(stream_id, f"message {bytes(number)[:20].decode(errors='replace')} cannot be read") from exc
    return found


def bell_of(stream_id: str, message: bytes) -> Bell:
    """
    The bell of a published message. One that cannot be read, from a later version, only says that something has changed.
    """
    line, _, body = message.partition(b"\n")
    kind, _, rest = line.partition(b" ")
    place = _PLACE.match(rest)
    if place is None:
        return Bell(id=stream_id)
    epoch, n, oldest = place[1].decode(), int(place[2]), int(place[3])
    words = rest[place.end() :].split()
    item: Any = None
    try:
        match kind, words:
            case b"s", [b, lengths]:
                item = Span(n=n, b=int(b), lengths=decode_lengths(lengths.decode(), size=len(body)), data=body)
            case b"c", [k, cancelled]:
                item = Control(int(k), body.decode() if cancelled == b"1" else None)
            case b"r", []:
                item = Released()
            case b"e", []:
                item = ending_from_json(stream_id, body)
    except Exception:  # noqa: BLE001  a bell is only a hint
        return Bell(id=stream_id)
    return Bell(id=stream_id, item=item, epoch=epoch, n=n, oldest=oldest if oldest > 1 else None)


def _whole(stream_id: str, name: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > 16 or int(value) > MAX_PLACE:
        raise damaged(stream_id, f"its {name} is not a whole number")
    return int(value)


def _text(stream_id: str, name: str, value: Any) -> str:
    try:
        return bytes(value).decode()
    except (TypeError, ValueError) as exc:
        raise damaged(stream_id, f"its {name} is not text") from exc


def entry_words(entries: Iterable[Entry]) -> Iterator[tuple[bytes, ...]]:
    """The arguments of `stage` for each entry."""
    for number, values in entries:
        yield (b"%d" % number, b"%d" % len(values), *values)


def head_fields(head: Head, request: bytes | None) -> list[bytes]:
    """The fields of a new record that never change."""
    fields = [b"head", head_to_json(head).encode()]
    if request is not None:
        fields += (b"req", request)
    return fields
