"""`resumable-stream tail URL`: any stream, to the terminal or into a pipe."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from shlex import quote
from typing import Any

import resumable_stream as rs

from ._extra import click
from .notes import Notes, counted
from .output import Format, as_json, as_lines, as_text, coloured, discard_output
from .places import abbreviated, store_at, store_shown
from .signals import Signals, Terminated

__all__ = ["tail"]

# Closed cleanly, with ids, but the server could not be asked whether that was all: perhaps only a part.
UNVERIFIED = 3
# Repeating the command would fail the same way.
_FOR_GOOD = (rs.CursorExpired, rs.NotResumable, rs.StreamInterrupted, rs.ReplayDiverged, rs.UpstreamError)


@click.command(short_help="Read any endpoint, and continue where it stops.")
@click.argument("url")
@click.option("-X", "--request", "method", metavar="METHOD", help="HTTP method. Default: GET, with --data POST.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A request header; may be repeated.")
@click.option("-d", "--data", metavar="BODY|@FILE", help="Request body; @- is standard input. JSON is sent as JSON.")
@click.option(
    "--store",
    metavar="STORE",
    help="Keep the place in a file, or in redis://…: the same command continues there, even after Ctrl-C.",
)
@click.option("--restart", is_flag=True, help="If the stream cannot be continued from STORE, read all of it again.")
@click.option("--json", "json_", is_flag=True, help="Write one JSON object per line.")
@click.option("--text", is_flag=True, help="Write only the text, with nothing between.")
@click.option(
    "--protocol",
    type=click.Choice(["auto", "sse", "ndjson", "bytes"]),
    default="auto",
    show_default=True,
    help="Protocol of the endpoint. auto looks at the response; with --end it is sse.",
)
@click.option("--end", metavar="TEXT|close|never", help="What ends it: an event with this data, a clean close, or nothing.")
@click.option("--last-event-id", metavar="ID", help="Start after this event.")
@click.option("--idle", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds without a byte: reconnect.")
@click.option("--deadline", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Seconds for the whole stream.")
@click.option(
    "--attempts", type=click.IntRange(min=1), default=10, show_default=True, help="Failed attempts in a row before giving up."
)
@click.option("-v", "--verbose", is_flag=True, help="Report more about the connection.")
def tail(
    url: str,
    method: str | None,
    headers: tuple[str, ...],
    data: str | None,
    store: str | None,
    restart: bool,
    json_: bool,
    text: bool,
    protocol: str,
    end: str | None,
    last_event_id: str | None,
    idle: float | None,
    deadline: float | None,
    attempts: int,
    verbose: bool,
) -> None:
    """
    Read an SSE, NDJSON or chunked endpoint, and continue where it stops.

    Events go to standard output, reports on the connection to standard error.

    Exit codes: 0 the stream ended, 1 it failed, 2 the command is wrong, 3 it closed cleanly and has ids, but nothing shows
    that this was the end, 130 Ctrl-C, 143 SIGTERM, 141 the reader of the pipe left.
    """
    if json_ and text:
        raise click.UsageError("--json and --text exclude each other")
    fields = _headers(headers, last_event_id)
    body = _read_body(data)
    method = method or ("GET" if body is None else "POST")
    notes = Notes(verbose=verbose)
    kept = None if store is None else store_at(store)
    try:
        key = None if store is None else rs.request_key(method, url, content=body)
        stream = notes.stream = rs.connect(
            method,
            url,
            protocol=_protocol(protocol, end),
            retry=rs.RetryPolicy(attempts=attempts),
            timeouts=rs.Timeouts(deadline=deadline) if idle is None else rs.Timeouts(idle=idle, deadline=deadline),
            store=kept,
            key=key,
            on_lost="restart" if restart else "raise",
            observer=notes,
            headers=fields,
            **_body(body, fields),
        )
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    place = None if store is None or key is None else _Place(store, key, alone=isinstance(kept, rs.stores.FileStore))
    sys.exit(_Run(stream, notes, place, json=json_, text=text).run())


class _Place:
    """How to name the store and forget the place, in messages."""

    def __init__(self, store: str, key: str, *, alone: bool) -> None:
        self.store = store_shown(store)
        # A file with one place is deleted; a database may hold other places.
        forget = f"resumable-stream forget {quote(abbreviated(key))} --store {quote(self.store)}"
        self.forget = f"delete {self.store}" if alone else forget


class _Run:
    """One reading, from opening to exit code."""

    def __init__(self, stream: rs.ResumableStream, notes: Notes, place: _Place | None, *, json: bool, text: bool) -> None:
        self._stream = stream
        self._notes = notes
        self._place = place
        self._out = sys.stdout.buffer
        terminal, encoding = self._out.isatty(), sys.stdout.encoding
        self._format: Format
        if json:
            self._format = as_json
        elif text:
            self._format = as_text(stream, encoding=encoding, terminal=terminal)
        else:
            self._format = as_lines(encoding=encoding, terminal=terminal, colour=coloured(self._out))

    def run(self) -> int:
        try:
            with Signals() as signals:
                return self._read(signals)
        except KeyboardInterrupt as error:
            self._notes.say("interrupted" + self._hint())
            return 143 if isinstance(error, Terminated) else 130
        except rs.UnexpectedContentType as error:
            self._notes.say(
                f"error: {error.received or 'an answer without content type'} is not a stream; if it is one, use --protocol"
            )
            return 1
        except rs.ResumableStreamError as error:
            # Replace the library's advice by that of the command line.
            text = str(error).partition("; to start over, ")[0] if self._place is not None else str(error)
            self._notes.say(f"error: {text}{self._hint(error)}")
            return 1
        except BrokenPipeError:
            discard_output()
            return 141
        except OSError as error:
            # Network errors never arrive unwrapped: this is the output.
            self._notes.say(f"error: cannot write: {error.strerror or error}{self._hint()}")
            discard_output()
            return 1

    def _read(self, signals: Signals) -> int:
        stream, out, form = self._stream, self._out, self._format
        self._open()
        with stream:
            for batch in stream.iter_batches():
                with signals.held():
                    for item in batch:
                        out.write(form(item))
                    # Before saving the place: everything that it counts as read must have been written.
                    out.flush()
                    stream.commit()
        outcome = stream.outcome
        if self._place is not None:
            self._notes.say(f"complete: {self._so_far()}, {outcome.value if outcome else ''}")
        if outcome not in (rs.Outcome.COMPLETED, rs.Outcome.ENDED):
            self._notes.say(f"error: the stream ended as {outcome.value if outcome else 'unknown'}")
            return 1
        protocol = stream.protocol
        has_ids = protocol is not None and protocol.framing != "raw" and stream.checkpoint.cursor is not None
        if has_ids and not stream.end_verified:
            # The ids show that it was made to be continued, but it could not be checked: a script must be able to tell.
            return UNVERIFIED
        return 0

    def _open(self) -> None:
        try:
            self._stream.open()
        except (rs.StoreError, ValueError) as error:
            # The file is not ours, or holds the place of another stream.
            raise click.UsageError(f"--store {self._place.store if self._place else ''}: {error}") from error
        if self._stream.checkpoint.complete and self._place is not None:
            self._notes.say(
                f"nothing to do: according to {self._place.store} all of it was read; to read it again: {self._place.forget}"
            )

    def _so_far(self) -> str:
        return counted(self._stream.checkpoint.offset, "event")

    def _hint(self, error: rs.ResumableStreamError | None = None) -> str:
        if self._place is None or isinstance(error, rs.StoreError):
            return ""
        if isinstance(error, _FOR_GOOD):
            again = "use --restart, or: " if not isinstance(error, rs.UpstreamError | rs.ReplayDiverged) else ""
            return f"; to start over, {again}{self._place.forget}"
        return f" after {self._so_far()}; the place is kept in {self._place.store}: the same command continues there"


def _headers(given: tuple[str, ...], last_event_id: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in given:
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not name or not line.isprintable() or not line.isascii() or " " in name:
            # The value may be a secret, so it is left out.
            raise click.BadParameter(f"expected 'Name: value' in ASCII, got {name[:40]!r} …", param_hint="--header")
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    if last_event_id is not None:
        found["last-event-id"] = last_event_id
    return found


def _read_body(data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    try:
        with click.open_file(data[1:], "rb") as file:
            content: bytes = file.read()
    except OSError as error:
        raise click.BadParameter(f"cannot read {data[1:]!r}: {error.strerror}", param_hint="--data") from error
    return content


def _body(body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
    """As `json=` if it is JSON: some protocols read the body to resume."""
    if body is None:
        return {}
    if "json" in headers.get("content-type", "json"):
        with suppress(ValueError):
            if isinstance(document := json.loads(body), dict | list):
                return {"json": document}
    return {"content": body}


def _protocol(name: str, end: str | None) -> rs.protocols.ResumeProtocol | None:
    match name:
        case "auto" if end is None:
            return None
        case "auto" | "sse":
            return rs.protocols.LastEventID(end="auto" if end is None else end)
        case "ndjson":
            return rs.protocols.NDJSON(end="close" if end is None else end)
        case _:
            if end is not None:
                raise click.UsageError("--end says how events end, but --protocol bytes has no events")
            return rs.protocols.ByteRange()
