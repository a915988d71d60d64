"""`resumable-stream list`, `show` and `forget`: the contents of a store, for people."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import resumable_stream as rs
from resumable_stream.protocols import ResumeProtocol
from resumable_stream.protocols._detect import named
from resumable_stream.stores import Listed

from .._text import TextReader
from ._extra import click
from .notes import counted
from .output import as_json, discard_output, visible
from .places import AnyStore, matches, shown, store_at, store_shown

__all__ = ["forget", "list_", "show"]

# Keys that are named if an abbreviation fits several.
_NAMED = 5
# A narrower key is useless, so lines may then be longer than the terminal.
_LEAST_WIDTH = 24

_store = click.option(
    *("--store", "text"),
    required=True,
    metavar="STORE",
    help="A database, a directory with places, sqlite:///path, or redis://host:6379/0.",
)


@click.command("list", short_help="List the places that a store keeps.")
@_store
@click.option("--json", "json_", is_flag=True, help="Write one JSON object per line.")
def list_(text: str, json_: bool) -> None:
    """
    List the places that a store keeps, one per line.

    A key that ends in a digest is shortened; `show` and `forget` accept the first digits of it.
    The state is the outcome of a stream that has ended, or else `unfinished`, `opened` (nothing was saved yet) or `damaged`.
    """
    with _complaining():
        store = store_at(text, must_exist=True)
        now = time.time()
        if json_:
            for each in store.places():
                click.echo(json.dumps(_as_object(each)))
            return
        rows = [_row(each, now) for each in store.places()]
        if not rows:
            click.echo(f"* no place is kept in {visible(store_shown(text))}", err=True)
            return
        for line in _aligned([("KEY", "STATE", "EVENTS", "KEPT", "AGE", "SIZE"), *rows]):
            click.echo(line)


@click.command(short_help="Show one place: its text so far, its position, its outcome.")
@click.argument("key")
@_store
@click.option("--json", "json_", is_flag=True, help="Write the kept events instead, one JSON object per line, as tail does.")
@click.option("--text", "only_text", is_flag=True, help="Write only the text.")
def show(key: str, text: str, json_: bool, only_text: bool) -> None:
    """
    Show what a store keeps under KEY: the position of the stream, its outcome, and the text so far if events are kept.

    KEY is the whole key, or at least 4 of the first digits of the digest at its end.
    """
    if json_ and only_text:
        raise click.UsageError("--json and --text exclude each other")
    with _complaining():
        store = store_at(text, must_exist=True, keep_events=True)
        found = _find(store, key, text)
        if json_:
            for item in store.replay(found.key):
                click.echo(as_json(item), nl=False)
            return
        if not only_text:
            for name, value in _facts(found, time.time()):
                click.echo(f"{name:<10}{visible(value)}")
        if found.damage is not None:
            raise click.ClickException(found.damage)
        if found.events and (so_far := _text_of(store, found)) is not None:
            if not only_text:
                click.echo()
            click.echo(visible(so_far) if sys.stdout.isatty() else so_far, nl=not only_text)


@click.command(short_help="Forget one place, and the events kept with it.")
@click.argument("key")
@_store
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def forget(key: str, text: str, yes: bool) -> None:
    """
    Forget what a store keeps under KEY. The same request then starts again, and may be billed again.

    KEY is the whole key, or at least 4 of the first digits of the digest at its end. Asks for confirmation, unless --yes is
    given.
    """
    with _complaining():
        store = store_at(text, must_exist=True)
        found = _find(store, key, text)
        name = visible(shown(found.key))
        if not yes:
            offset = 0 if found.checkpoint is None else found.checkpoint.offset
            what = f"{_state(found)}, {counted(offset, 'event')}, {found.events:,} kept"
            click.confirm(f"Forget {name} ({what})?", abort=True, err=True)
        store.delete(found.key)
        if found.damage is not None and any(each.key == found.key for each in store.places()):
            # If the key in a file is unreadable, the store does not know what to delete.
            raise click.ClickException(found.damage)
        click.echo(f"* forgot {name}", err=True)


@contextmanager
def _complaining() -> Iterator[None]:
    """Print errors as one line, and ignore a reader that left."""
    try:
        yield
        sys.stdout.flush()
    except rs.ResumableStreamError as error:
        raise click.ClickException(str(error)) from error
    except BrokenPipeError:
        discard_output()
        sys.exit(141)


def _find(store: AnyStore, name: str, text: str) -> Listed:
    """The one place that a name means; a complete key takes precedence over an abbreviation."""
    found: list[Listed] = []
    for each in store.places():
        if each.key == name:
            return each
        if len(found) <= _NAMED and matches(each.key, name):
            found.append(each)
    if not found:
        raise click.ClickException(f"no place is kept under {name!r} in {store_shown(text)}; see: resumable-stream list")
    if len(found) > 1:
        names = ", ".join(repr(each.key) for each in found[:_NAMED])
        more = " and more" if len(found) > _NAMED else ""
        raise click.ClickException(f"{name!r} may mean {names}{more}: give more digits, or the whole key")
    return found[0]


def _state(place: Listed) -> str:
    if place.damage is not None:
        return "damaged"
    if place.checkpoint is None:
        return "opened"
    if not place.checkpoint.complete:
        return "unfinished"
    return place.checkpoint.extra.get("outcome", "complete")


def _as_object(place: Listed) -> dict[str, Any]:
    return {
        "key": place.key,
        "state": _state(place),
        "events": 0 if place.checkpoint is None else place.checkpoint.offset,
        "kept": place.events,
        "bytes": place.size_bytes,
        "saved": place.saved,
        "expires": place.expires,
        "damage": place.damage,
    }


def _row(place: Listed, now: float) -> tuple[str, ...]:
    return (
        visible(shown(place.key)).replace("\n", "\\x0a"),
        _state(place),
        f"{0 if place.checkpoint is None else place.checkpoint.offset:,}",
        f"{place.events:,}",
        _age(now - place.saved),
        _size(place.size_bytes),
    )


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The key on the left, limited to the width of the terminal; numbers aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - sum(widths[1:]) - 2 * len(widths[1:])
        widths[0] = min(widths[0], max(room, _LEAST_WIDTH))
    for key, state, *numbers in rows:
        # The end of a key distinguishes it from others.
        short = key if len(key) <= widths[0] else f"{key[: widths[0] - 12]}…{key[-11:]}"
        right = (f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True))
        yield "  ".join((f"{short:<{widths[0]}}", f"{state:<{widths[1]}}", *right))


def _facts(place: Listed, now: float) -> Iterator[tuple[str, str]]:
    yield "key", place.key
    yield "state", _state(place)
    if (at := place.checkpoint) is not None:
        yield "request", f"{at.method} {at.url}"
        yield "protocol", at.protocol
        yield "place", f"after {counted(at.offset, 'event')}" + (f", cursor {at.cursor}" if at.cursor is not None else "")
        if at.stream_id is not None:
            yield "stream", at.stream_id
    yield "kept", f"{counted(place.events, 'event')}, {_size(place.size_bytes)}"
    yield "saved", f"{_moment(place.saved)}, {_age(now - place.saved)} ago"
    if place.expires is not None:
        yield "expires", f"{_moment(place.expires)}, in {_age(place.expires - now)}"


def _text_of(store: AnyStore, place: Listed) -> str | None:
    """The text so far, without void parts; `None` for a stream of bytes, which may be anything."""
    protocol = named(place.checkpoint.protocol) if place.checkpoint is not None else None
    protocol = ResumeProtocol() if protocol is None else protocol
    if protocol.framing == "raw":
        return None
    reader = TextReader(lambda: protocol, mode="text", resets=True, limit=rs.Limits().text_bytes, strict=True)
    for item in store.replay(place.key):
        reader.read(item)
    reader.finish()
    return reader.so_far()


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _age(seconds: float) -> str:
    """
    >>> _age(59.9), _age(3600), _age(90000), _age(200000), _age(-5)
    ('59 s', '60 min', '25 h', '2 days', '0 s')
    """
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{max(int(seconds // length), 0)} {unit}"
    return f"{int(seconds // 86400):,} days"


def _size(count: int) -> str:
    """
    >>> _size(999), _size(1234), _size(56_700_000)
    ('999 B', '1.2 kB', '56.7 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
