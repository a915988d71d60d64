"""
Trigger.dev realtime streams: an event's id, or a record's number, is sent back as `Last-Event-ID`.

Source: trigger.dev/docs, "Realtime streams"; npm `@trigger.dev/core` 4.8.3 (`v3/apiClient/runStream.js`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from .._checkpoint import fingerprint
from .._contract import Batched, Glance, Head, Position, Promises, Request, ResumeProtocol, StreamState, Structured
from .._contract.verdicts import Finished, Reject, Verdict
from .._errors import UpstreamError
from .._events import Delta, Outcome, StreamEvent
from ._ends import upstream_error
from ._json import object_of, payload_of
from ._shape import said
from .s2 import is_command

__all__ = ["TriggerDev"]

_ROUTE: Final = re.compile(r".*/realtime/v1/(?:streams|sessions)/.+")


class TriggerDev(ResumeProtocol, Batched, Structured, Glance):
    """
    A stream of a Trigger.dev run or session. Version 2 streams (`X-Stream-Version`) send batches of records:
    each record becomes one event, `event` is `"record"`, `data` its JSON and `sequence` its `seq_num`.

    Nothing in the stream marks its end: a clean close is the end, `COMPLETED` with the header `X-Session-Settled`, else `ENDED`.
    So a proxy that closes cleanly between two events is believed; every other cut is resumed.
    A record that a task wrote twice carries the same id in its body, and its repeat is always dropped.
    Command records of the underlying storage (S2) are not data and are not delivered, so the numbers cannot reveal a gap.

    >>> TriggerDev()
    <TriggerDev: resumable>
    """

    promises = Promises(resumable=True, numbered=False, has_end=False)
    json_names = frozenset({"batch", "record"})
    unique_ids = True
    identifies_by_event = False

    def matches(self, request: StreamState, head: Head) -> bool:
        route = _ROUTE.fullmatch(urlsplit(request.url).path)
        return request.method == "GET" and bool(route) and head.content_type == "text/event-stream"

    def unpack(self, event: Any) -> Iterator[Any]:
        # A position may lie between two records, so batches are split.
        records = payload_of(event).get("records") if event.event == "batch" else None
        if not isinstance(records, list):
            yield event
            return
        for record in records:
            headers = record.get("headers") if isinstance(record, dict) else None
            if not is_command(headers):
                yield StreamEvent("record", json.dumps(record, ensure_ascii=False, separators=(",", ":")))

    def position(self, event: Any) -> Position:
        if event.event != "record":
            return Position(event.own_id, None, event.own_id)
        number = payload_of(event).get("seq_num")
        if type(number) is not int:
            return Position(None)
        written = _written(event).get("id")
        return Position(str(number), number, written if isinstance(written, str) and written else f"#{number}")

    def fingerprint(self, event: Any) -> str:
        if event.event != "record":
            return super().fingerprint(event)
        # A record that was written twice differs in number and time.
        record = payload_of(event)
        return fingerprint("record", json.dumps([record.get("body"), record.get("headers") or []]))

    def error(self, event: Any) -> UpstreamError | None:
        if event.event != "error":
            return None
        body = payload_of(event)
        return upstream_error(body or {"message": event.data}, body or event.data)

    def deltas(self, event: Any) -> Sequence[Delta]:
        chunk: Any = _written(event).get("data") if event.event == "record" else _value(event.data)
        if isinstance(chunk, dict) and chunk.get("type") == "text-delta":
            # A part of an AI SDK stream, which tasks often pipe; the field was `text` before version 5.
            chunk = chunk.get("delta", chunk.get("text"))
        return said("text", chunk)

    def resume_request(self, state: StreamState) -> Request | None:
        # "latest" would choose another start than our cursor.
        headers: dict[str, str | None] = {"X-Trigger-Stream-Start": None} if state.cursor is not None else {}
        if state.cursor is not None:
            headers["Last-Event-ID"] = state.cursor
        return Request(method="GET", url=state.url, headers=headers, repeat="all") if state.method == "GET" else None

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        # The SDK never retries these; the core handles 404 and 410 to a resume (the stream is gone).
        return Reject() if status in (400, 409, 422) else None

    def on_clean_close(self, state: StreamState) -> Verdict:
        settled = state.head is not None and state.head.headers.get("x-session-settled", "").lower() == "true"
        # A close is how such a stream ends.
        return Finished(Outcome.COMPLETED if settled else Outcome.ENDED, verified=True)


def _value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError, TypeError):
        return text


def _written(event: Any) -> dict[str, Any]:
    """What the task wrote: `{"id", "data"}` in the body of a record; nothing in a control record."""
    return object_of(_value(payload_of(event).get("body")))
