"""
Gemini's Interactions API: a stored interaction is read again from any event that carries an `event_id`.

    POST …/interactions {"stream": true, …}                      →  interaction.created (the id), step.start, step.delta, …
    GET  …/interactions/{id}?stream=true&last_event_id=E         →  what follows event E
    GET  …/interactions/{id}                                     →  its status, and in the end the whole result
    POST …/interactions/{id}/cancel

`event_id` is optional on every event; the last one seen is the cursor. It is opaque, so it cannot reveal a gap.
`interaction.completed` settles the outcome, and `[DONE]` follows, which proves nothing by itself.

Source: the PyPI package google-genai 3.3.0 (`_gaos/interactions.py`, `_gaos/types/interactions/*`), and the Interactions API
reference of ai.google.dev. The status for an expired interaction is not documented; 404 is assumed, as usual in HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from .._contract import Alarm, Answer, Head, Memo, Position, Promises, Request, ResumeProtocol, Snapshot, StreamState
from .._contract.abilities import Glance, Stored, Structured, Verified
from .._contract.verdicts import Finished, Interrupted, Lost, Over, Reject, Resume, Retry, Settled, Unproven, Verdict, Verify
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome, StreamEvent
from ._ends import DONE_HEADS, ERROR_HEADS, EndRule, unproven_done, upstream_error
from ._json import kind_of, object_of, parsed, payload_of
from ._shape import Text, deltas_of, posted, texts_in

__all__ = ["GeminiInteractions"]

_RUNNING: Final = frozenset({"queued", "in_progress"})
# With `requires_action` the turn is over, and the caller acts next.
_OVER: Final[Mapping[str, Outcome]] = {
    "completed": Outcome.COMPLETED,
    "requires_action": Outcome.COMPLETED,
    "requires_continuation": Outcome.INCOMPLETE,
    "incomplete": Outcome.INCOMPLETE,
    "budget_exceeded": Outcome.INCOMPLETE,
    "failed": Outcome.FAILED,
    "cancelled": Outcome.CANCELLED,
}
# The second name of each is from earlier previews.
_COMPLETED: Final = frozenset({"interaction.completed", "interaction.complete"})
_TEXTS: Final = {
    "text": Text("text", "text"),
    "thought_summary": Text("reasoning", "text"),
    "arguments_delta": Text("tool", "arguments"),
}
_DELTAS: Final = frozenset({"step.delta", "content.delta"})
_STORED: Final = "interaction"
"""Name of the one event that a snapshot delivers; the API has no event of that name."""
_RESOURCE: Final = re.compile(r"/v[0-9][^/]*/(?:.+/)?interactions/[^/]+")
_ERRORS: Final = EndRule("close")
# Answers in a row without anything new before the provider's claim to be over is believed. 3, as in rule 7c.
_BELIEVED: Final = 3
_END: Final = " (end)"
"""Marks a cursor whose event is followed only by `[DONE]`, so a resume from it must not wait for a last event."""


@dataclass(slots=True)
class _Memo(Memo):
    unstored: bool = False


class GeminiInteractions(ResumeProtocol, Stored, Structured, Verified, Glance):
    """
    `POST /v1beta/interactions` with `"stream": true`, or `GET /v1beta/interactions/{id}?stream=true`.

    It resumes after the last `event_id`. If the connection closed cleanly, the status of the interaction is requested first.
    It cannot resume before the first event, which carries the interaction's id, nor with `"store": false`, nor while no event
    had an `event_id`. A cut then raises `StreamInterrupted`. The POST itself is never repeated once it may have been accepted.

    If the provider says that the interaction is over, and three times sends nothing more, its status is the outcome. But if the
    status is `completed`, the last event must arrive; otherwise what follows the cursor counts as lost
    (`CursorExpired`). With `on_lost="snapshot"` the stored result then replaces what came: one event named `interaction`.

    `continuation_token` is not used: it makes the model generate more, which may repeat text and is billed.
    An API key in `params=` is not sent when a POST is resumed; give it as the header `x-goog-api-key`, as the SDK does.

    >>> GeminiInteractions()
    <GeminiInteractions: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    keeps = frozenset({"unstored"})
    json_names = frozenset({*_DELTAS, *_COMPLETED, _STORED, "message"})
    # "message": an event that is named only in its JSON.
    alarm = Alarm(frozenset({*_COMPLETED, "error", "message"}), ERROR_HEADS | DONE_HEADS)

    def matches(self, request: StreamState, head: Head) -> bool:
        if head.content_type != "text/event-stream":
            return False
        url, body = urlsplit(request.url), request.json
        if request.method == "GET":
            asked = parse_qs(urlsplit(head.url).query or url.query).get("stream")
            named = (url.hostname or "").endswith(".googleapis.com") or "/v1beta" in url.path
            return asked == ["true"] and named and _RESOURCE.fullmatch(url.path) is not None
        if request.method != "POST" or not url.path.endswith("/interactions"):
            return False
        if not isinstance(body, dict):
            return (url.hostname or "").endswith(".googleapis.com")
        return self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        body = posted(request, "/interactions")
        return body.get("stream") is True and ("model" in body or "agent" in body)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if isinstance(source, Head):
            if state.method == "GET":
                state.stream_id = unquote(urlsplit(state.url).path.rpartition("/")[2]) or None
            elif isinstance(state.json, dict) and state.json.get("store") is False:
                state.memo(_Memo).unstored = True
            return
        payload = payload_of(source)
        interaction = payload.get("interaction")
        found = interaction.get("id") if isinstance(interaction, dict) else payload.get("interaction_id")
        if isinstance(found, str) and found:
            state.stream_id = found

    def position(self, event: Any) -> Position:
        found = payload_of(event).get("event_id")
        if not isinstance(found, str) or not found:
            return Position(None)
        return Position(found + _END if kind_of(event, "event_type") in _COMPLETED else found, None, found)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        if kind_of(event, "event_type") not in _COMPLETED:
            # The SDK stops here.
            return unproven_done(event, "the interaction.completed before it")
        interaction = payload_of(event).get("interaction")
        # Lifecycle events may leave out fields; without a status, the event's name decides.
        status = interaction.get("status") if isinstance(interaction, dict) else None
        return Settled(_OVER.get(str(status), Outcome.COMPLETED))

    def error(self, event: Any) -> UpstreamError | None:
        if kind_of(event, "event_type") != "error":
            return _ERRORS.error(event)
        body = payload_of(event)
        detail = body.get("error")
        return upstream_error(detail if isinstance(detail, dict) else {"message": event.data}, body or event.data)

    def deltas(self, event: Any) -> Sequence[Delta]:
        kind, payload = kind_of(event, "event_type"), payload_of(event)
        if kind == _STORED:
            return tuple(_contents(payload))
        if kind not in _DELTAS:
            return ()
        delta = object_of(payload.get("delta"))
        holder = object_of(delta.get("content")) if delta.get("type") == "thought_summary" else delta
        return deltas_of(_TEXTS, delta.get("type"), holder, payload.get("index"))

    def resume_request(self, state: StreamState) -> Request | None:
        sent = {"stream": "true"} | ({} if state.cursor is None else {"last_event_id": state.cursor.removesuffix(_END)})
        return _request("GET", state, sent)

    def on_clean_close(self, state: StreamState) -> Verdict:
        request = self.status_request(state)
        return Interrupted("closed before the end") if request is None else Verify(request)

    def status_request(self, state: StreamState) -> Request | None:
        return _request("GET", state, {"stream": None, "last_event_id": None})

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        if answer.status in (404, 410):
            return Lost(f"the server answered {answer.status}: it no longer holds this interaction")
        if answer.status >= 400:
            return Reject(f"the server answered the request for the interaction's status with {answer.status}")
        status = str(object_of(parsed(answer.body)).get("status"))
        if status in _RUNNING:
            return Resume()
        if status not in _OVER:
            return Retry(f"the server reports the unknown status {status!r} for the interaction")
        outcome = _OVER[str(status)]
        if state.cursor is not None and state.cursor.endswith(_END):
            return Finished(outcome)
        lost = f"the server reports the interaction as {status}, but does not send what follows event {state.offset}"
        return Over(outcome, asks=_BELIEVED, lost=lost if outcome is Outcome.COMPLETED else "")

    # -- the stored result

    def snapshot_request(self, state: StreamState) -> Request | None:
        return self.status_request(state)

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | None:
        interaction = object_of(parsed(answer.body))
        outcome = _OVER.get(str(interaction.get("status")))
        if outcome is None:
            # It is still running: the stored result is partial, and nothing says from which event to continue.
            return None
        data = json.dumps(interaction, ensure_ascii=False, separators=(",", ":"))
        return Snapshot([StreamEvent(_STORED, data)], reset=True, outcome=outcome)

    def cancel_request(self, state: StreamState) -> Request | None:
        return _request("POST", state, {"stream": None, "last_event_id": None}, "/cancel")


def _request(method: str, state: StreamState, params: Mapping[str, str | None], verb: str = "") -> Request | None:
    """A request for the interaction itself, or `None` if its id is not known or it is not stored."""
    if state.stream_id is None or state.memo(_Memo).unstored:
        return None
    parts = urlsplit(state.url)
    path = parts.path if state.method == "GET" else f"{parts.path.rstrip('/')}/{quote(state.stream_id, safe='')}"
    # Keep the query, which may hold the API key. `repeat` would also send the body of a POST.
    url = urlunsplit(parts._replace(path=path + verb))
    return Request(method=method, url=url, params=params, repeat="all" if state.method == "GET" else None)


def _contents(interaction: Mapping[str, Any]) -> Iterator[Delta]:
    """The content of a stored interaction, as deltas."""
    for index, step in enumerate(steps if isinstance(steps := interaction.get("steps"), list) else ()):
        match step:
            case {"type": "model_output", "content": [*parts]}:
                yield from (Delta("text", text, index) for text in texts_in(parts))
            case {"type": "thought", "summary": [*parts]}:
                yield from (Delta("reasoning", text, index) for text in texts_in(parts))
            case {"type": "function_call", "arguments": arguments}:
                yield Delta("tool", json.dumps(arguments, ensure_ascii=False), index)
