"""
S2 (s2.dev): a stream of numbered records, read in batches; a batch's id is sent back as `Last-Event-ID`.

Source: s2.dev/docs, "Read records" of the REST API; npm `@s2-dev/streamstore` 0.27.0 (`lib/stream/transport/fetch`).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from .._contract import Batched, Head, Position, Promises, Request, ResumeProtocol, StreamState, Structured
from .._contract.verdicts import Ask, Finished, Lost, Resume, Verdict
from .._events import Delta, Outcome, StreamEvent
from ._json import payload_of

__all__ = ["S2", "is_command"]

_ROUTE: Final = re.compile(r".*/v1/streams/[^/]+/records/?")
_BOUNDS: Final = frozenset({"count", "bytes", "until"})
# Query parameters that would choose another start than ours.
_STARTS: Final[Mapping[str, str | None]] = {"timestamp": None, "tail_offset": None}


class S2(ResumeProtocol, Batched, Structured):
    """
    The records of an S2 stream. Yields one event for each *record* of a batch: `event` is `"record"`, `data` its JSON,
    `sequence` its `seq_num`.

    Numbers grow by one, so a gap is detected, even one left by trimming: `GapError`, or `.gap` with `on_gap="deliver"`.
    Command records (fencing, trimming) use up a number and are delivered; they have no text. Pings are not delivered,
    and neither are the server's `error` events, which only ask to reconnect.

    A read follows the tail and never ends, unless its query has a bound (`count`, `bytes`, `until`).
    A close is then checked by one more request, and the outcome is `ENDED`.

    Args:
        base64: Request record bodies as base64 (`s2-format`), for bodies that are not text. `False`: as text.

    >>> S2()
    <S2: resumable, numbered>
    """

    promises = Promises(resumable=True, numbered=True, has_end=False)
    sequence = "contiguous"
    endless = True
    json_names = frozenset({"batch", "record"})

    def __init__(self, *, base64: bool = False) -> None:
        self._base64 = base64

    def matches(self, request: StreamState, head: Head) -> bool:
        route = _ROUTE.fullmatch(urlsplit(request.url).path)
        return request.method == "GET" and bool(route) and head.content_type == "text/event-stream"

    def first_request(self, state: StreamState) -> Request:
        return Request(method=state.method, url=state.url, headers=self._format(), repeat="all")

    def _format(self) -> dict[str, str | None]:
        return {"s2-format": "base64"} if self._base64 else {}

    def unpack(self, event: Any) -> Iterator[Any]:
        # A position may lie between two records, and each record has its own number, so batches are split.
        if event.event in ("ping", "error"):
            return
        records = payload_of(event).get("records") if event.event == "batch" else None
        if not isinstance(records, list):
            yield event
            return
        for at, record in enumerate(records, 1):
            last = at == len(records)
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            yield StreamEvent("record", text, event.id if last else "", None, event.own_id if last else None)

    def position(self, event: Any) -> Position:
        number = payload_of(event).get("seq_num")
        if type(number) is not int:
            return Position(None)
        # After a whole batch, its id also says how much of a bound is used up.
        return Position(event.id if "," in event.id else str(number), number)

    def deltas(self, event: Any) -> Sequence[Delta]:
        record = payload_of(event)
        body, headers = record.get("body"), record.get("headers")
        if not isinstance(body, str) or not body or is_command(headers):
            return ()
        if self._base64:
            try:
                body = base64.b64decode(body).decode("utf-8", "replace")
            except ValueError:
                return ()
        return (Delta("text", body),)

    def resume_request(self, state: StreamState) -> Request | None:
        cursor, headers = state.cursor, self._format()
        params: Mapping[str, str | None] = {}
        if cursor is not None and "," in cursor:
            headers["Last-Event-ID"] = cursor
        elif cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20):
            return None
        elif cursor is not None:
            params = {**_STARTS, "seq_num": str(int(cursor) + 1)}
        return Request(method="GET", url=state.url, headers=headers, params=params, repeat="all")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if status == 416 and state.resuming and state.sequence is not None:
            if _tail(body) == state.sequence + 1:
                return Finished(Outcome.ENDED, verified=True)
            return Lost(f"the stream no longer reaches record {state.sequence + 1}: its tail is {_tail(body)}")
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Ask() if _BOUNDS & parse_qs(urlsplit(state.url).query).keys() else Resume()


def is_command(headers: Any) -> bool:
    """Whether this is a record of the storage itself (fencing, trimming), whose one header has no name."""
    match headers:
        case [["", *_], *_]:
            return True
    return False


def _tail(body: bytes) -> int | None:
    """`tail.seq_num` of a 416: the number of the next record."""
    try:
        number = json.loads(body)["tail"]["seq_num"]
    except (RecursionError, ValueError, KeyError, TypeError):
        return None
    return number if type(number) is int else None
