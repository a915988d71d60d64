"""
A2A (Agent2Agent): the updates of one task, over JSON-RPC or REST, in the names of v0.3 and v1.

There is no cursor and no replay. To come back, a client subscribes to the task: the first event is its current state, then live
updates follow. So a resume is a reset: the snapshot replaces everything delivered before, and the *state* is exact.

Source: a2a-protocol.org, specification v1.0 and v0.3; PyPI a2a-sdk 1.3 (`client/transports`, `server/routes`,
`server/request_handlers/default_request_handler_v2`, `utils/errors`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

from .._contract import Answer, Head, Memo, Position, Promises, Request, ResumeProtocol, Snapshot, StreamState
from .._contract.abilities import Documents, Reporting, Shared, Stored, Structured, Verified
from .._contract.verdicts import Consume, Finished, Lost, Resume, Settled, Verdict, Verify
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome, StreamEvent
from ._ends import upstream_error
from ._json import object_of, parsed, payload_of
from ._shape import objects_in, said

__all__ = ["A2A"]

_REST: Final = re.compile(r"(?P<base>[^?#]*)/(message:stream|tasks/(?P<task>[^/?#:]+):subscribe)(?:[?#]|$)")
# The method names of each version.
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
# States that end the stream but not the task: it continues when somebody answers.
_WAITING: Final = ("input-required", "auth-required")
# How a 400 response says that the task has ended: v1 by its reason, others in words or by the JSON-RPC code.
_NOTHING_TO_STREAM: Final = (b"UNSUPPORTED_OPERATION", b"UnsupportedOperation", b"-32004", b"terminal state")
_NO_SUBSCRIPTION: Final = (-32001, -32004)
_ENDED_OR_UNKNOWN: Final = "the task can no longer be subscribed to: it has ended, or the server does not know it"


@dataclass(slots=True)
class _Memo(Memo):
    version: str = ""


Verb = Literal["subscribe", "get", "cancel"]


class A2A(ResumeProtocol, Documents, Reporting, Shared, Stored, Structured, Verified):
    """
    An A2A task: `SendStreamingMessage` (v0.3: `message/stream`) by JSON-RPC, or `POST …/message:stream`.

    Each resume delivers the current state of the task as an event with `.reset`. What came before is void, since the snapshot
    includes it; `iter_text(resets=True)` and `read_text()` handle that. Updates sent while nobody was connected are seen only by
    their effect on the task.

    A task that ended while nobody was connected can no longer be subscribed to. The finished task is then fetched and delivered
    as an event of the same form. If the server no longer knows the task, that is `CursorExpired`.

    The task's id comes with the first event: a cut before that cannot be resumed, nor can an answer that is a single message.
    Your headers, such as `A2A-Version`, are sent again.

    >>> A2A()
    <A2A: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    keeps = frozenset({"version"})

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
            # A reset clears the memo; the version is in the cursor too.
            state.memo(_Memo).version = state.cursor[:3]
        elif isinstance(state.json, dict) and (version := _VERSIONS.get(str(state.json.get("method")))):
            state.memo(_Memo).version = version
        if found := _REST.match(state.url):
            state.stream_id = state.stream_id or (unquote(found["task"]) if found["task"] else None)

    def position(self, event: Any) -> Position:
        # The server has no cursor. Ours holds what the next subscription needs: the version, whether the latest event is a task
        # that waits for input ("?"), and the task's id.
        message = _read(event)
        task = _task_of(message)
        if not task:
            return Position(None)
        waits = "?" if message[0] == "task" and _state(message[1]) in _WAITING else " "
        return Position(f"{message[2]}{waits}{task}")

    def end(self, event: Any) -> Outcome | None:
        kind, body, _ = _read(event)
        if kind == "message":
            # An answer without a task consists of this one message.
            return Outcome.COMPLETED
        if kind not in ("task", "statusUpdate"):
            return None
        state = _state(body)
        if kind == "statusUpdate" and state in _WAITING:
            return Outcome.INCOMPLETE
        # A waiting task may be about to continue with the message just sent; only the close decides.
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
        # a2a-sdk 1.3 answers v0.3 clients this way, in a stream with status 200.
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

    def _request(self, verb: Verb, state: StreamState) -> Request | None:
        if state.stream_id is None:
            return None
        if found := _REST.match(state.url):
            task = f"{found['base']}/tasks/{quote(state.stream_id, safe='')}"
            if verb == "get":
                return Request(method="GET", url=task, repeat="query")
            # v0.3 is served under /v1 and subscribes by GET; a v1 server accepts both.
            by_get = verb == "subscribe" and found["base"].endswith("/v1")
            return Request(method="GET" if by_get else "POST", url=f"{task}:{verb}", repeat="query")
        version = state.cursor[:3] if state.cursor is not None else state.memo(_Memo).version or "1.0"
        if version not in _NAMES:
            return None
        # The answers continue those to the first request, so they carry its id: "it MUST be the same" (JSON-RPC 2.0, section 5).
        own = state.json.get("id") if isinstance(state.json, dict) else None
        name = own if isinstance(own, str | int) and verb != "cancel" else f"resumable-{verb}"
        call = {"jsonrpc": "2.0", "id": name, "method": _NAMES[version][verb], "params": {"id": state.stream_id}}
        return Request(method="POST", url=state.url, json=call, repeat="query")

    def resume_request(self, state: StreamState) -> Request | None:
        return self._request("subscribe", state)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        json_type = Head(status, headers, "").content_type == "application/json"
        if not state.resuming:
            # JSON-RPC reports an error before the stream with status 200.
            return Consume(whole=True) if status == 200 and json_type else None
        if status == 200:
            # The reason in a JSON answer is not read: whatever it is, the task itself shows its state.
            # If nothing was delivered since the last reset, another reset is not needed.
            return Lost(_ENDED_OR_UNKNOWN, stored=True) if json_type else Consume(reset=state.offset > 0)
        if status == 400 and any(word in body for word in _NOTHING_TO_STREAM):
            return Lost("the server answered 400: the task has ended, there is nothing more to stream", stored=True)
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        if state.cursor is not None and state.cursor[3:4] == "?" and state.cursor[4:] == state.stream_id:
            return Finished(Outcome.INCOMPLETE)
        if state.resuming and state.offset == 0:
            # Some servers answer a subscription to an ended task with an empty stream (a2aproject/A2A#174).
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
        # A client replaces what it knows by the task it receives, so a task is a visible reset. An update is not: v0.3 servers
        # need not begin with the task. After an error nothing more is read.
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
    Read an event.

    Returns:
        Its kind in v1 terms (`""` for anything else), its body, and the version it is written in.
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
    """Whether the event concerns this stream's task. An event that names no task does."""
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
    """What the agent says with a state: a comment on the answer while it works, part of the answer at an end or in a question."""
    status = body.get("status")
    working = _state(body) not in (*_ENDED, *_WAITING)
    yield from _text(status.get("message") if isinstance(status, dict) else None, "reasoning" if working else "text")
