"""
OpenAI's Responses API: every event is numbered, and a response created with `background: true` outlives its connection.

    POST /v1/responses {"background": true, "stream": true}      →  response.created (id, number 0), …
    GET  /v1/responses/{id}?stream=true&starting_after=N         →  what follows number N
    GET  /v1/responses/{id}                                      →  its status, and in the end the whole result

Only the first event has the id. Without `background` the generation dies with its connection, so nothing can be resumed.
Azure OpenAI, Azure's hosted agents, vLLM and Perplexity's agents speak the same; where they differ, a comment says so.

Source: OpenAI's guide "Background mode", the types and resources of the `openai` package 3.51, issue 2828 of openai-python (the
five minutes), vLLM's `/v1/responses`, and `azure-ai-agentserver-responses`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

from .._checkpoint import fingerprint
from .._contract import Alarm, Answer, Head, Memo, Position, Promises, Request, Snapshot, Stored, StreamState, Verified
from .._contract.verdicts import Finished, Interrupted, Lost, Over, Reject, Resume, Retry, Settled, Unproven, Verdict, Verify
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome, StreamEvent
from ._ends import DONE_HEADS, ERROR_HEADS, unproven_done, upstream_error
from ._json import kind_of, object_of, parsed, payload_of
from ._shape import Text, deltas_of, objects_in
from .cursor import CursorProtocol

__all__ = ["OpenAIResponses"]

_FINAL: Final = {
    "completed": Outcome.COMPLETED,
    "incomplete": Outcome.INCOMPLETE,
    "failed": Outcome.FAILED,
    "cancelled": Outcome.CANCELLED,
}
# Perplexity has `response.cancelled`; OpenAI has the status but no event for it.
_TERMINAL: Final = {f"response.{status}": outcome for status, outcome in _FINAL.items()}
_TEXTS: Final = {
    "response.output_text.delta": Text("text", "delta", "output_index"),
    "response.reasoning_text.delta": Text("reasoning", "delta", "output_index"),
    "response.reasoning_summary_text.delta": Text("reasoning", "delta", "output_index"),
    "response.function_call_arguments.delta": Text("tool", "delta", "output_index"),
    "response.custom_tool_call_input.delta": Text("tool", "delta", "output_index"),
    "response.mcp_call_arguments.delta": Text("tool", "delta", "output_index"),
    "response.refusal.delta": Text("refusal", "delta", "output_index"),
}
# Random padding against traffic analysis. Quotes inside JSON text are escaped, so content never matches.
_STORED: Final = re.compile(r"/responses/(?:ca)?resp_[^/]+$")
_GIVEN: Final = frozenset({"input", "prompt", "conversation", "previous_response_id"})
_PADDING: Final = re.compile(r',\s*"obfuscation"\s*:\s*"[^"\\]*"')


@dataclass(slots=True)
class _Memo(Memo):
    background: bool = False


class OpenAIResponses(CursorProtocol, Stored, Verified):
    """
    The Responses API. In background mode it is resumed by number, without repeats or gaps.

    It resumes if the request (or the response in the first event) says `background: true`, or if the first request is
    a GET of such a response. Otherwise a cut raises `StreamInterrupted`. A cut before the first event cannot be resumed
    either, since that event carries the response's id.

    A `response.done`, which gateways in front of the API's WebSocket send, also ends the stream, with the status that it names.

    After a close without a terminal event, the status of the response is requested: no event reports a cancelled response.
    With `on_lost="snapshot"`, a response that is no longer streamed (OpenAI: five minutes after it was created) is delivered
    from its stored result, as a reset: what was delivered is void, and the text comes whole, in one delta per part.
    These events have the names and fields of the real ones, but no number.

    Args:
        numbered: `sequence_number` grows by one, so a jump is a gap. `False` for a proxy that numbers in its own way
            (litellm's synthetic streams have repeated a number): its events are then only read, not resumed.
        upgrade_background: Request a background response if the caller's request is for a plain stream. OpenAI then stores the
            response, and its first event comes later. A request with `store: false`, or one that sets `background` itself,
            is sent unchanged.

    >>> OpenAIResponses()
    <OpenAIResponses: resumable, numbered, has_end>
    """

    keeps = frozenset({"background"})
    json_names = frozenset({*_TEXTS, *_TERMINAL, "response.done", "message"})

    def __init__(self, *, numbered: bool = True, upgrade_background: bool = False) -> None:
        # `first_sequence` is not set, although numbers start at 0: a GET may begin at any number.
        super().__init__(
            read="sequence_number",
            send="query:starting_after",
            url="/responses/{stream_id}",
            stream_id="response.id",
            end=_outcome,
            sequence="contiguous" if numbered else None,
        )
        self._numbered = numbered
        self._upgrades = upgrade_background
        # "message": compatible servers may leave out the event's name; its JSON has the type.
        self.alarm = Alarm(frozenset({*_TERMINAL, "response.done", "error", "message"}), ERROR_HEADS | DONE_HEADS)

    @property
    def promises(self) -> Promises:
        return Promises(resumable=self._numbered, numbered=self._numbered, has_end=True)

    @property
    def options(self) -> str:
        return "" if self._numbered else "numbered=False"

    def matches(self, request: StreamState, head: Head) -> bool:
        if head.content_type != "text/event-stream":
            return False
        path = urlsplit(request.url).path.rstrip("/")
        if request.method == "GET":
            return _STORED.search(path) is not None
        if not isinstance(request.json, dict):
            # The path alone is too generic; the server's own headers must confirm it.
            vouched = any(name.startswith("openai-") for name in head.headers)
            return request.method == "POST" and vouched and path.endswith("/v1/responses")
        return self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        url, body = urlsplit(request.url), request.json
        path = url.path.rstrip("/")
        if request.method == "GET":
            return parse_qs(url.query).get("stream") == ["true"] and _STORED.search(path) is not None
        asked = isinstance(body, dict) and body.get("stream") is True
        return request.method == "POST" and path.endswith("/responses") and asked and not _GIVEN.isdisjoint(body)

    def first_request(self, state: StreamState) -> Request:
        first = super().first_request(state)
        return replace(first, json={"background": True}) if self._turns(state) else first

    def _turns(self, state: StreamState) -> bool:
        """Whether a request for a plain stream is turned into one for a background response."""
        body = state.json
        plain = isinstance(body, dict) and body.get("stream") is True and "background" not in body
        return self._upgrades and plain and state.method == "POST" and body.get("store") is not False

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if isinstance(source, Head):
            if state.method == "GET" and state.stream_id is None:
                # Only a background response can be streamed by GET.
                state.stream_id = unquote(urlsplit(state.url).path.rstrip("/").rpartition("/")[2])
                state.memo(_Memo).background = True
            return
        response = payload_of(source).get("response")
        if isinstance(response, dict) and isinstance(response.get("id"), str):
            state.stream_id = response["id"]
            asked = isinstance(state.json, dict) and state.json.get("background") is True
            if response.get("background", asked or self._turns(state)) is True:
                state.memo(_Memo).background = True

    def position(self, event: Any) -> Position:
        found = super().position(event)
        return found if self._counts(event, found.sequence) else Position(None)

    def place(self, events: Sequence[Any]) -> None:
        super().place(events)
        for event in events:
            if not self._counts(event, event.sequence):
                event.sequence = event.own_id = None
                event.moves = False

    def _counts(self, event: Any, number: int | None) -> bool:
        # litellm's synthetic streams number every event 0, so 0 is believed only for the first event.
        return self._numbered and (number is None or number > 0 or kind_of(event) == "response.created")

    def error(self, event: Any) -> UpstreamError | None:
        # OpenAI's own error event has a number and its message at the top level. It is a regular event, and the status of the
        # response is requested after it. Like the SDK, we raise for any event that holds an object `error`, numbered or not.
        body = payload_of(event)
        detail = body.get("error")
        if not detail and (type(body.get("sequence_number")) is int or kind_of(event) != "error"):
            return None
        return upstream_error(detail if isinstance(detail, dict) else {"message": detail} if detail else body, body)

    def deltas(self, event: Any) -> Sequence[Delta]:
        return deltas_of(_TEXTS, kind_of(event), payload_of(event))

    def fingerprint(self, event: Any) -> str:
        return fingerprint(event.event, _PADDING.sub("", event.data) if '"obfuscation"' in event.data else event.data)

    def why_not(self, state: StreamState) -> str:
        if not self._numbered:
            return "the server does not number its events (numbered=False)"
        if state.memo(_Memo).background or state.method == "GET":
            return ""
        body = state.json if isinstance(state.json, dict) else {}
        if body.get("store") is False:
            upgrade = "; so upgrade_background=True left the request as it was" if self._upgrades else ""
            return (
                "only a background response can be resumed, and the request says store: false, but a background response "
                f"has to be stored{upgrade}. Omit store to get one"
            )
        if body.get("background") is False:
            return "only a background response can be resumed, and the request says background: false"
        if state.stream_id is None:
            return "the response has not sent its id yet"
        return "only a background response can be resumed: send background: true (upgrade_background=True does it for you)"

    def resume_request(self, state: StreamState) -> Request | None:
        if not self._numbered or not state.memo(_Memo).background or (url := _url_of(state)) is None:
            return None
        params = {"stream": "true"}
        if state.cursor is not None:
            params["starting_after"] = state.cursor
        return Request(method="GET", url=url, params=params, repeat="all" if state.method == "GET" else None)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if not state.resuming or status not in (400, 404):
            return None
        if state.over is not None and state.over.outcome is Outcome.CANCELLED:
            return Finished(Outcome.CANCELLED)
        if status == 404:
            return Lost(f"response {state.stream_id} is unknown or has expired")
        detail = object_of(object_of(parsed(body)).get("error"))
        message = str(detail.get("message") or "the server answered 400")[:500]
        if detail.get("param") not in (None, "", "stream"):
            # Our request is at fault: the server rejects the cursor or an option.
            return None
        # Azure's agents use one message for "never resumable" and "expired".
        return Lost(message, expired="not created with" not in message or "expired" in message)

    def on_clean_close(self, state: StreamState) -> Verdict:
        request = self.status_request(state)
        return Interrupted("closed before the end") if request is None else Verify(request)

    def status_request(self, state: StreamState) -> Request | None:
        stored = not isinstance(state.json, dict) or state.json.get("store") is not False
        url = _url_of(state) if stored else None
        if url is None:
            return None
        dropped = dict.fromkeys(("stream", "starting_after", "include_obfuscation"))
        return Request(method="GET", url=url, params=dropped, repeat="all" if state.method == "GET" else None)

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        background = state.memo(_Memo).background
        if answer.status in (404, 410) and background:
            return Lost(f"response {state.stream_id} is unknown or has expired")
        if answer.status in (401, 403):
            return Reject(f"the server refused to report the status of response {state.stream_id}: {answer.status}")
        status = str(object_of(parsed(answer.body)).get("status"))
        if not background:
            # The response died with its connection; its own status is more precise than a cut.
            return Finished(_FINAL[status]) if status in ("failed", "cancelled") else Resume()
        if status not in _FINAL:
            return Resume()
        # A finished response can still replay what follows the cursor.
        whole = status in ("completed", "incomplete")
        lost = f"response {state.stream_id} is {status}, but its stream does not send the rest" if whole else ""
        return Over(_FINAL[status], lost=lost)

    def snapshot_request(self, state: StreamState) -> Request | None:
        return self.status_request(state)

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | Retry | None:
        response = object_of(parsed(answer.body))
        status = str(response.get("status"))
        if status in ("queued", "in_progress"):
            # The result so far is not what follows the cursor.
            return Retry(f"the response is still {status}")
        if status not in _FINAL:
            return None
        return Snapshot(tuple(_stored(response)), reset=state.offset > 0, outcome=_FINAL[status])

    def cancel_request(self, state: StreamState) -> Request | None:
        url = _url_of(state)
        if url is None or not state.memo(_Memo).background:
            return None
        parts = urlsplit(url)
        return Request(method="POST", url=urlunsplit(parts._replace(path=f"{parts.path}/cancel")))


def _url_of(state: StreamState) -> str | None:
    """URL of the response, with the first request's query (Azure's `api-version`)."""
    if state.stream_id is None:
        return None
    parts = urlsplit(state.url)
    path = parts.path.rstrip("/")
    if state.method != "GET":
        # At Perplexity the first request goes to /v1/agent.
        collection = path if path.endswith("/responses") else f"{path.rpartition('/')[0]}/responses"
        path = f"{collection}/{quote(state.stream_id, safe='')}"
    return urlunsplit(parts._replace(path=path))


def _outcome(event: Any) -> Outcome | Settled | Unproven | None:
    if event.data.startswith("[DONE]"):
        return unproven_done(event, "a terminal event (response.completed or its like)")
    kind = kind_of(event)
    if kind == "response.done":
        response = object_of(payload_of(event).get("response"))
        return _FINAL.get(str(response.get("status")))
    return _TERMINAL.get(kind)


def _stored(response: dict[str, Any]) -> Iterator[StreamEvent]:
    """A stored response as the events that would have been streamed, with one delta per part."""
    # The events have no number, so the cursor does not move, and a stop between two of them never skips a real event.
    yield _event("response.created", response={**response, "status": "in_progress", "output": []})
    for index, item in enumerate(objects_in(response.get("output"))):
        at = {"item_id": item.get("id"), "output_index": index}
        yield _event("response.output_item.added", output_index=index, item={**item, "content": [], "summary": []})
        for name in ("summary", "content"):
            for place, part in enumerate(objects_in(item.get(name))):
                kind = _PARTS.get(str(part.get("type")))
                if kind is not None:
                    text = part.get("refusal" if kind == "response.refusal" else "text") or ""
                    where = "summary_index" if name == "summary" else "content_index"
                    yield _event(f"{kind}.delta", **at, **{where: place}, delta=text)
        if item.get("type") == "function_call":
            yield _event("response.function_call_arguments.delta", **at, delta=item.get("arguments") or "")
        yield _event("response.output_item.done", output_index=index, item=item)
    yield _event(f"response.{response['status']}", response=response)


_PARTS: Final = {
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
    "summary_text": "response.reasoning_summary_text",
}


def _event(kind: str, **fields: Any) -> StreamEvent:
    return StreamEvent(kind, json.dumps({"type": kind, **fields}, ensure_ascii=False))
