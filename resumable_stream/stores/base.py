"""
What a store is, and what all stores share.

    open(key)    → the place, and a fence: this writer's permission to save
    save(...)    → the new place and the events up to it: both or neither
    replay(key)  → the events kept so far, oldest first
    delete(key)  → forgets both

*The fence.* A key has one writer at a time: the last one that opened it. Each `open()` returns a higher number,
and a save with any number but the newest raises `StoreError`. A kernel forgotten in another window therefore
cannot overwrite the new place with its old one; it gets the error and stops.

*Both or neither.* A place that is ahead of its events would lose them, one that is behind would deliver them twice.
A store that cannot write both in one step has to make the second step the one that counts.

A store knows nothing about protocols or connections, and a checkpoint holds no secret; the events are as private as the answer.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from .._checkpoint import Checkpoint
from .._errors import StoreError
from .._events import Chunk, Gap, StreamEvent

__all__ = ["Kept", "Listed", "Store", "check_interval", "check_key", "item_from_json", "item_to_json"]

Kept: TypeAlias = StreamEvent | Chunk
"""What a store keeps in addition to the place: events, or the pieces of a byte stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """
    One place, as listed by a store's `places()`.

    Attributes:
        key: The name it was opened under.
        checkpoint: The place; `None`: the key was opened but nothing was saved yet, or the place is damaged.
        events: How many events are kept; 0 if only the place is.
        size_bytes: Size of place and events in the store, after any compression.
        saved: Unix time in seconds of the last `open()` or `save()`.
        expires: Unix time in seconds after which it is deleted; `None`: never.
        damage: A description of what is wrong with it; `None`: nothing.
    """

    key: str
    checkpoint: Checkpoint | None
    events: int
    size_bytes: int
    saved: float
    expires: float | None = None
    damage: str | None = None


MAX_KEY_CHARS: Final = 4096
"""Longest key, in characters. 4096: any URL in use fits; a key is a name, not content."""


@runtime_checkable
class Store(Protocol):
    """
    Keeps the places of streams, each under a key of the caller's choice.

    Calls may come from any thread, including a worker thread on behalf of an async stream.
    `resumable_stream.testing.store_contract` holds the tests that an implementation has to pass.

    A store may also have `load(key)`, which reads the place and leaves the key with its writer. Transports call it, so that a
    request whose response is not a stream does not take over the key. Without it they open the key.
    It may have `places()`, which lists what is kept as `Listed`, for inspection.
    It may let places expire: an expired key is unknown, as if it had been deleted.

    Attributes:
        keep_events: Whether `save()` keeps the events too, so that a later run can `replay()` them.
        save_interval: Seconds between two saves while events flow; a stream that waits for events is saved before it waits, but
            not within 0.1 s (or this interval, if it is shorter) of the last save. 0 saves at every event.
            The stream applies it: a store performs every save it is asked for.
    """

    keep_events: bool
    save_interval: float

    def open(self, key: str) -> tuple[Checkpoint | None, int]:
        """
        Take over the key: from now on this caller is its writer.

        Returns:
            The checkpoint saved last, or `None`; and the fence to save with, which is higher than any issued for this key before.

        Raises:
            StoreError: The store cannot be read, or its content is damaged or not from this library. Nothing was changed.
            ValueError: The key is empty, too long, or cannot be encoded as UTF-8.
        """
        ...

    def save(self, key: str, checkpoint: Checkpoint, events: Iterable[Kept] = (), *, fence: int) -> None:
        """
        Replace the checkpoint, and append the events taken since the last save: both or neither.

        Args:
            key: The key that was opened.
            checkpoint: The place after the last of `events`.
            events: Oldest first. Ignored unless `keep_events`.
            fence: The fence that `open()` returned.

        Raises:
            StoreError: Another writer opened the key, it was deleted, or it could not be written.
                What was saved before is still there, and the same save may be retried.
        """
        ...

    def replay(self, key: str) -> Iterator[Kept]:
        """
        Read the kept events, oldest first, each with `replayed` set.

        These are the events kept when `replay()` was called; later saves do not show. They are read while the caller iterates,
        never all at once.

        Returns:
            An iterator; empty for an unknown key and if `keep_events` is false.

        Raises:
            StoreError: The store cannot be read, or some events up to the checkpoint were not kept (from the call);
                an event is damaged (from the iterator).
        """
        ...

    def delete(self, key: str) -> None:
        """
        Forget the place and the events; nothing happens if there are none.

        A writer that had the key open gets `StoreError` at its next save.

        Raises:
            StoreError: The content is not from this library, or could not be removed.
        """
        ...


def check_key(key: str) -> str:
    """
    Reject an invalid key.

    Raises:
        TypeError: Not text.
        ValueError: It is empty, longer than 4096 characters, or has a lone surrogate, which UTF-8 cannot encode.
    """
    if not isinstance(key, str):
        raise TypeError(f"a store key must be text, got {type(key).__name__}")
    if not key:
        raise ValueError("a store key must not be empty")
    if len(key) > MAX_KEY_CHARS:
        raise ValueError(f"a store key is at most {MAX_KEY_CHARS} characters long, got {len(key)}")
    try:
        key.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"a store key must be text that UTF-8 can carry: {exc.reason} at {exc.start}") from exc
    return key


def check_interval(seconds: float) -> float:
    """
    Reject an invalid `save_interval`.

    Raises:
        ValueError: Not a number of seconds >= 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"save_interval must be seconds >= 0, got {seconds!r}")
    return float(seconds)


def check_expires(seconds: float | None) -> float | None:
    """
    Reject an invalid `expires` of a store.

    Raises:
        ValueError: Neither `None` nor a number of seconds > 0.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"expires must be seconds > 0, or None for never, got {seconds!r}")
    return float(seconds)


def superseded(key: str, fence: int, current: int | None, *, gone: str = "was deleted") -> StoreError:
    """
    Make the error for a writer whose fence is not the newest.

    Args:
        current: The newest fence; `None` if the key is gone.
        gone: What may have happened to a key that is gone.
    """
    if current is None:
        return StoreError(f"key {_short(key)} {gone} since it was opened (fence {fence}); nothing was saved")
    return StoreError(
        f"key {_short(key)} was opened by another writer: expected fence {current}, received {fence}; nothing was saved"
    )


def checkpoint_to_json(key: str, checkpoint: Checkpoint) -> str:
    """Call `Checkpoint.to_json()`, and raise its `ValueError` as a `StoreError`."""
    try:
        return checkpoint.to_json()
    except ValueError as exc:
        raise StoreError(f"key {_short(key)}: {exc}; nothing was saved") from exc


def _short(key: str) -> str:
    return repr(key if len(key) <= 80 else f"{key[:77]}...")


# Compact and not escaped, because escaping would double the size of text that is not ASCII.
_quoted = json.encoder.encode_basestring
_quoted_as_ascii = json.encoder.encode_basestring_ascii
_to_json = json.JSONEncoder(separators=(",", ":"))

# (field name, its type in JSON, default), for reading. A field at its default is not written.
_EVENT_FIELDS: Final = (
    ("event", str, "message"),
    ("data", str, ""),
    ("id", str, ""),
    ("retry", int, None),
    ("own_id", str, None),
)


def item_to_json(item: Kept) -> str:
    """
    Write an event or a chunk as one line of JSON text.

    It contains content and place: `event`, `data`, `id`, `retry`, `own_id`, `cursor`, `sequence`, `offset`, `gap`, `reset`.

    Returns:
        Text without a line break, which can be encoded as UTF-8 whatever `data` holds.

    >>> item_to_json(StreamEvent(data="Hi", id="7"))
    '{"data":"Hi","id":"7"}'
    """
    text = _written(item, _quoted)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate; its escape is ASCII
            return _written(item, _quoted_as_ascii)
    return text


def _written(item: Kept, quoted: Callable[[str], str]) -> str:
    # Written by hand because it runs for every event: building a dict and encoding it took three times as long.
    head = tail = ""
    cursor: str | None
    sequence = item.sequence
    if isinstance(item, Chunk):
        body = f'"bytes":"{base64.b64encode(item.data).decode()}"'
        cursor = str((sequence or 0) + len(item.data))
    else:
        own_id, cursor = item.own_id, item.id
        body = f'"data":{quoted(item.data)}'
        if item.event != "message":
            head = f'"event":{quoted(item.event)},'
        if cursor:
            tail = f',"id":{quoted(cursor)}'
        elif sequence is not None:
            cursor = str(sequence)
        if item.retry is not None:
            tail += f',"retry":{item.retry}'
        if own_id is not None:
            tail += f',"own_id":{quoted(own_id)}'
    if sequence is not None:
        tail += f',"sequence":{sequence}'
    if item.offset:
        tail += f',"offset":{item.offset}'
    if item._rare is not None:
        # Few items have any of these.
        if item.cursor != (cursor or None):
            tail += ',"cursor":null' if item.cursor is None else f',"cursor":{quoted(item.cursor)}'
        if item.reset:
            tail += ',"reset":true'
        if item.gap is not None:
            tail += f',"gap":{_to_json.encode([item.gap.expected, item.gap.received, item.gap.after])}'
    return f"{{{head}{body}{tail}}}"


def item_from_json(text: str | bytes) -> Kept:
    """
    Read what `item_to_json()` wrote; `replayed` is set.

    Raises:
        ValueError: It is not such a text. The message shows what was seen.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"expected an event as JSON, got {text[:40]!r}") from exc
    if not isinstance(raw, dict):
        raise ValueError(f"expected an event as a JSON object, got {type(raw).__name__}")
    item: Kept
    if "bytes" in raw:
        data, sequence = _field(raw, "bytes", str, ""), _field(raw, "sequence", int, 0)
        item = Chunk(base64.b64decode(data, validate=True), sequence)
    else:
        item = StreamEvent(*[_field(raw, *field) for field in _EVENT_FIELDS])
        if "sequence" in raw:
            item.sequence = _field(raw, "sequence", int, None)
    if "cursor" in raw:
        item.cursor = _field(raw, "cursor", str, None)
    item.offset = _field(raw, "offset", int, 0)
    item.replayed = True
    if "reset" in raw:
        item.reset = _field(raw, "reset", bool, False)
    if "gap" in raw:
        gap = raw["gap"]
        if not isinstance(gap, list) or len(gap) != 3:
            raise ValueError(f"event field 'gap': expected three values, got {gap!r:.60}")
        names = ("expected", "received", "after")
        values = dict(zip(names, gap, strict=True))
        item.gap = Gap(**{name: _field(values, name, str if name == "after" else int, None) for name in names})
    return item


def _field(raw: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """Check and return one field: the text may come from a file that somebody edited."""
    value = raw.get(name, default)
    if value is None and default is None:
        return None
    # isinstance() treats a `bool` as an `int`, but `true` is not a number here.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"event field {name!r}: expected {kind.__name__}, got {value!r:.60}")
    return value
