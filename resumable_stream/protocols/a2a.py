"""
A2A (Agent2Agent): the updates of one task, over JSON-RPC or REST, in the names of v0.3 and v1.

There is no cursor and no replay. Who comes back subscribes to the task: the first event is the task as it stands, then live
updates follow. So a resume is a reset: the snapshot stands for all that was delivered before, and the *state* is exact.

Source: a2a-protocol.org, specification v1.0 and v0.3; PyPI a2a-sdk 1.3 (`client/transports`, `server/routes`,
`server/request_handlers/default_request_handler_v2`, `utils/errors`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from .._contract import Answer, Head, Position, Promises, Request, ResumeProtocol, Snapshot, StreamState
from .._contract.verdicts import Consume, Finished, Lost, Resume, Settled, Verdict, Verify
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome, StreamEvent
from ._ends import upstream_error
from ._json import object_of, parsed, payload_of
from ._shape import objects_in, said

__all__ = ["A2A"]

_REST: Final = re.compile(r"(?P<base>[^?#]*)/(message:stream|tasks/(?P<task>[^/?#:]+):subscribe)(?:[?#]|$)")
# What a request asks for, by the name of its method in each version.
_NAMES: Final = {
    "0.3": {"start": "message/stream", "subscribe": "tasks/resubscribe", "get": "tasks/get", "cancel": "tasks/cancel"},
    "1.0": {"start": "SendStreamingMessage", "subscribe": "SubscribeToTask", "get": "GetTask", "cancel": "CancelTask"},
}
_VERSIONS: Final = {names[verb]: version for version, names in _NAMES.items() for verb in ("start", "subscribe")}
_KINDS: Final = {"task": "task", "message": "message", "status-update": "statusUpdate", "artifact-update": "artifactUpdate"}

_ENDED: Final = {
    "completed": Outcome.COMPLETED,
    "failed": Outcome.FAILED,
    "rejected": Outcome.FAILED,
    "canceled": Outcome.CANCELLED,
    "cancelled": Outcome.CANCELLED,
}
# They end the stream, but not the task: it goes on when somebody answers.
_WAITING: Final = ("input-required", "auth-required")
# How an answer 400 says that the task has ended: v1 by its reason, others in words or by the code of JSON-RPC.
_NOTHING_TO_STREAM: Final = (b"UNSUPPORTED_OPERATION", b"UnsupportedOperation", b"-32004", b"terminal state")
_NO_SUBSCRIPTION: Final = (-32001, -32004)
_ENDED_OR_UNKNOWN: Final = "the task can no longer be subscribed to: it has ended, or the server does not know it"

Verb = Literal["subscribe", "get", "cancel"]


class A2A(ResumeProtocol):
    """
    An A2A task: `SendStreamingMessage` (v0.3: `message/stream`) by JSON-RPC, or `POST …/message:stream`.

    Each resume delivers the task as it stands, as an event with `.reset`; what came before is void, since the snapshot holds it.
    `iter_text(resets=True)` and `read_text()` handle that. Of updates that nobody heard, only what they did to the task is seen.

    A task that ended while nobody listened can no longer be subscribed to: then the finished task is fetched, and comes as an
    event of the same form. One that the server does not know any more is `CursorExpired`.

    The task's id comes with the first event: a cut before that cannot be resumed, nor can an answer that is a single message.
    `A2A-Version` and the other headers are yours; they go along.

    >>> A2A()
    <A2A: resumable, has_end>

    Source: a2a-protocol.org, specification v1.0 and v0.3; PyPI a2a-sdk 1.3.
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    keeps = frozenset({"version"})

    def matches(self, request: StreamState, head: Head) -> bool:
        return head.content_type == "text/event-stream" and self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        if request.method not in ("GET", "POST"):
            return False
        if _REST.match(request.url):
            return True
        body = request.json
        return isinstance(body, dict) and body.get("jsonrpc") == "2.0" and str(body.get("method")) in _VERSIONS

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            state.stream_id = _task_of(_read(source)) or None
            return
        if state.cursor is not None:
            # A reset forgets all but the task; the version stands in the cursor too.
            state.extra["version"] = state.cursor[:3]
        elif isinstance(state.json, dict) and (version := _VERSIONS.get(str(state.json.get("method")))):
            state.extra["version"] = version
        if found := _REST.match(state.url):
            state.stream_id = state.stream_id or (unquote(found["task"]) if found["task"] else None)

    # -- reading

    def position(self, event: Any) -> Position:
        # There is no cursor; this is what the next subscription needs to know: the version, whether the latest event is a task
        # that waits for somebody ("?"), and the task.
        message = _read(event)
        task = _task_of(message)
        if not task:
            return Position(None)
        waits = "?" if message[0] == "task" and _state(message[1]) in _WAITING else " "
        return Position(f"{message[2]}{waits}{task}")

    def end(self, event: Any) -> Outcome | None:
        kind, body, _ = _read(event)
        if kind == "message":
            # An answer without a task is this one message.
            return Outcome.COMPLETED
        if kind not in ("task", "statusUpdate"):
            return None
        state = _state(body)
        if kind == "statusUpdate" and state in _WAITING:
            return Outcome.INCOMPLETE
        # A task that waits may be one that is about to go on, with the message that was sent: its close tells.
        return _ENDED.get(state)

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        return end if _is_of(state, event) else None

    def error(self, event: Any) -> UpstreamError | None:
        try:
            body = event.json()
        except ValueError:
            return upstream_error({"message": event.data}, event.data) if event.event == "error" else None
        detail = body.get("error") if isinstance(body, dict) else None
        if event.event != "error" and not (isinstance(detail, dict) and "result" not in body):
            return None
        if not isinstance(detail, dict):
            detail = body if isinstance(body, dict) else {"message": body}
        return upstream_error({"type": str(detail.get("code", "")), "message": detail.get("message")}, body)

    def refusal(self, event: Any, state: StreamState) -> Lost | None:
        # So a2a-sdk 1.3 answers those who speak v0.3, in a stream with status 200.
        code = object_of(payload_of(event).get("error")).get("code")
        return Lost(_ENDED_OR_UNKNOWN, stored=True) if code in _NO_SUBSCRIPTION else None

    def deltas(self, event: Any) -> Iterator[Delta]:
        kind, body, _ = _read(event)
        match kind:
            case "message":
                yield from _text(body, "text")
            case "artifactUpdate":
                yield from _text(body.get("artifact"), "text")
            case "task":
                artifacts = body.get("artifacts")
                for artifact in artifacts if isinstance(artifacts, list) else ():
                    yield from _text(artifact, "text")
                yield from _said(body)
            case "statusUpdate":
                yield from _said(body)

    def deltas_in(self, state: StreamState, event: Any) -> Iterable[Delta]:
        return self.deltas(event) if _is_of(state, event) else ()

    # -- going on

    def _request(self, verb: Verb, state: StreamState) -> Request | None:
        if state.stream_id is None:
            return None
        if found := _REST.match(state.url):
            task = f"{found['base']}/tasks/{quote(state.stream_id, safe='')}"
            if verb == "get":
                return Request(method="GET", url=task, repeat="query")
            # v0.3 lives under /v1 and subscribes by GET; a v1 server takes both.
            by_get = verb == "subscribe" and found["base"].endswith("/v1")
            return Request(method="GET" if by_get else "POST", url=f"{task}:{verb}", repeat="query")
        version = state.cursor[:3] if state.cursor is not None else state.extra.get("version", "1.0")
        if version not in _NAMES:
            return None
        # The answers go on with those to the first request, so they bear its id: "it MUST be the same" (JSON-RPC 2.0, section 5).
        own = state.json.get("id") if isinstance(state.json, dict) else None
        name = own if isinstance(own, str | int) and verb != "cancel" else f"resumable-{verb}"
        call = {"jsonrpc": "2.0", "id": name, "method": _NAMES[version][verb], "params": {"id": state.stream_id}}
        return Request(method="POST", url=state.url, json=call, repeat="query")

    def resume_request(self, state: StreamState) -> Request | None:
        return self._request("subscribe", state)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        json_type = Head(status, headers, "").content_type == "application/json"
        if not state.resuming:
            # JSON-RPC reports an error that came before the stream with status 200.
            return Consume(whole=True) if status == 200 and json_type else None
        if status == 200:
            # Of a JSON answer the reason is not read: whatever it is, the task itself tells how it stands.
            # Nothing delivered since the last reset: that one still stands.
            return Lost(_ENDED_OR_UNKNOWN, stored=True) if json_type else Consume(reset=state.offset > 0)
        if status == 400 and any(word in body for word in _NOTHING_TO_STREAM):
            return Lost("the server answered 400: the task has ended, there is nothing more to stream", stored=True)
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        if state.cursor is not None and state.cursor[3:4] == "?" and state.cursor[4:] == state.stream_id:
            return Finished(Outcome.INCOMPLETE)
        if state.resuming and state.offset == 0:
            # Some servers answer the subscription to a task that has ended with an empty stream (a2aproject/A2A#174).
            request = self._request("get", state)
            return Verify(request) if request is not None else Resume()
        return Resume()

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        document = object_of(parsed(answer.body))
        status = _state(object_of(document.get("result")) if "jsonrpc" in document else document)
        if status in _ENDED or status in _WAITING:
            return Lost(f"the subscription brought nothing, and the task is {status}", stored=True)
        return Resume()

    def tells_reset(self, event: Any) -> bool:
        # Whoever follows a task puts it in place of what was known of it. An update alone says nothing of the kind: servers of
        # v0.3 need not begin with the task. Behind an error nothing is read any more.
        return _read(event)[0] == "task" or self.error(event) is not None

    def snapshot_request(self, state: StreamState) -> Request | None:
        return self._request("get", state)

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | None:
        document = object_of(parsed(answer.body))
        rest = "jsonrpc" not in document
        task = document if rest else object_of(document.get("result"))
        status = _state(task)
        if not status:
            return None
        if rest or task.get("kind") != "task":
            task = {"task": task}
        data = task if rest else {"jsonrpc": "2.0", "id": document.get("id"), "result": task}
        event = StreamEvent("message", json.dumps(data, ensure_ascii=False, separators=(",", ":")))
        outcome = Outcome.INCOMPLETE if status in _WAITING else _ENDED.get(status)
        return Snapshot([event], reset=True, outcome=outcome)

    def cancel_request(self, state: StreamState) -> Request | None:
        return self._request("cancel", state)


def _read(event: Any) -> tuple[str, dict[str, Any], str]:
    """
    What an event holds.

    Returns:
        Its kind in the names of v1 (`""` for anything else), its body, and the version that it is written in.
    """
    message = payload_of(event)
    if "jsonrpc" in message:
        message = object_of(message.get("result"))
    if (kind := _KINDS.get(str(message.get("kind", "")))) is not None:
        return kind, message, "0.3"
    for kind in _KINDS.values():
        if isinstance(body := message.get(kind), dict):
            return kind, body, "1.0"
    return "", {}, ""


def _task_of(message: tuple[str, dict[str, Any], str]) -> str:
    kind, body, _ = message
    task = body.get("id" if kind == "task" else "taskId")
    return task if isinstance(task, str) and kind != "message" else ""


def _is_of(state: StreamState, event: Any) -> bool:
    """Is it about the task of this stream? What names no task is."""
    task = _task_of(_read(event))
    return not task or state.stream_id is None or task == state.stream_id


def _state(body: Mapping[str, Any]) -> str:
    """The state in the spelling of v0.3: `TASK_STATE_INPUT_REQUIRED` is `input-required`."""
    status = body.get("status")
    state = status.get("state") if isinstance(status, dict) else None
    return state.removeprefix("TASK_STATE_").lower().replace("_", "-") if isinstance(state, str) else ""


def _text(holder: Any, kind: Literal["text", "reasoning"]) -> Iterator[Delta]:
    """The text parts of a message or an artifact."""
    holder = object_of(holder)
    for part in objects_in(holder.get("parts") or holder.get("content")):
        yield from said(kind, part.get("text"))


def _said(body: Mapping[str, Any]) -> Iterator[Delta]:
    """What the agent says with a state: while it works that is about the answer; at an end, or in a question, part of it."""
    status = body.get("status")
    working = _state(body) not in (*_ENDED, *_WAITING)
    yield from _text(status.get("message") if isinstance(status, dict) else None, "reasoning" if working else "text")
