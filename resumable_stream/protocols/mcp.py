"""
MCP's Streamable HTTP, versions 2025-03-26 to 2025-11-25: the answer to one JSON-RPC request.

The answer starts as a POST and is resumed by GET at the same address, with `Last-Event-ID`. Since 2025-11-25 a clean close
in the middle is normal: the server drops the connection, and the client comes back after `retry`.
The answer is complete only once the JSON-RPC response to that request has arrived.

Source: modelcontextprotocol.io, "Transports" of 2025-03-26, 2025-06-18 and 2025-11-25 (SEP-1699); PyPI mcp 2.3
(`client/streamable_http`, `server/streamable_http`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from .._contract import Documents, Glance, Head, Memo, Promises, Request, ResumeProtocol, Shared, StreamState, Structured
from .._contract.verdicts import Consume, Finished, Lost, Reject, Retry, Settled, Verdict
from .._events import Delta, Item, Outcome
from ._json import object_of, parsed
from ._shape import said

__all__ = ["MCPStreamableHTTP"]

# Methods of client requests; A2A speaks JSON-RPC over SSE too, with other names.
_METHODS: Final = re.compile(r"initialize|ping|(tools|prompts|resources|completion|logging)/.+")
_SESSION: Final = "mcp-session-id"
# The code with which mcp 2.3 answers a cancelled request (taken from LSP); other servers do not answer it.
_REQUEST_CANCELLED: Final = -32800
# Maximum characters of all ids in a checkpoint, which has 8 KiB; if there are more, `_MANY` is stored instead.
_IDS: Final = 1024
_MANY: Final = "many"


@dataclass(slots=True)
class _Memo(Memo):
    """
    Attributes:
        ids: Ids of the requests; `None` if not known, because another process had more than a checkpoint holds.
        left: Those of a batch that have no response yet; `None` if it is not a batch, `_MANY` if not known.
        failed: A response of the batch reported a failure.
        session: The session id that the server announced.
    """

    ids: list[Any] | None = None
    left: Any = None
    failed: bool = False
    session: str = ""

    def keep(self) -> dict[str, str]:
        lists = {name: json.dumps(ids) for name, ids in (("ids", self.ids), ("left", self.left)) if ids is not None}
        return super(_Memo, self).keep() | {name: text if len(text) <= _IDS else _MANY for name, text in lists.items()}

    @classmethod
    def back(cls, kept: Mapping[str, str]) -> Self:
        ids, left = parsed(kept.get("ids", "")), parsed(kept.get("left", ""))
        unknown = _MANY if "left" in kept else None
        return cls(ids if isinstance(ids, list) else None, left if isinstance(left, list) else unknown, "failed" in kept)


class MCPStreamableHTTP(ResumeProtocol, Documents, Shared, Structured, Glance):
    """
    The answer to one MCP request, sent by POST.

    It can be resumed if the server gives its events ids; without ids a cut is `StreamInterrupted`. The response to the request
    ends it, be it a result or an error; for a batch (2025-03-26) the last response does. If the body was not given as `json=`,
    any response ends it. A tool that reports its own failure (`isError`) and a JSON-RPC error are `FAILED`, and the error for
    "cancelled" is `CANCELLED`; all are delivered. `cancel()` sends `notifications/cancelled`; leave the stream after it, since
    not every server answers a cancelled request. The checkpoint holds the ids of the requests, and of those without a response.

    *The session.* A resume must send `Mcp-Session-Id`, which grants access. Your own headers are always sent. A session id that
    the answer to `initialize` announces is remembered for this stream, in memory. A checkpoint never holds it: in another
    process, pass it to `resume()` again together with `MCP-Protocol-Version`, as you did to `connect()`.

    Version 2026-07-28 has neither ids nor sessions: there a cut is `StreamInterrupted`, and closing stops the request.
    A server may answer with JSON instead of a stream, which is delivered as one event.

    >>> MCPStreamableHTTP()
    <MCPStreamableHTTP: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    accept = "application/json, text/event-stream"
    # "globally unique across all streams within that session" (Transports, Resumability).
    unique_ids = True
    identifies_by_event = False
    keeps = frozenset({"ids", "left", "failed"})

    def matches(self, request: StreamState, head: Head) -> bool:
        return head.content_type in ("text/event-stream", "application/json") and self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        body = request.json
        if request.method != "POST" or not isinstance(body, dict):
            return False
        method = body.get("method")
        return body.get("jsonrpc") == "2.0" and isinstance(method, str) and _METHODS.fullmatch(method) is not None

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            return
        if session := source.headers.get(_SESSION):
            # Not in `keeps`: it grants access, so no checkpoint may hold it.
            state.memo(_Memo).session = session
        if not state.resuming:
            memo = state.memo(_Memo)
            memo.ids = _ids(state.json)
            if len(memo.ids) > 1:
                memo.left = memo.ids

    def end(self, event: Any) -> Outcome | None:
        outcomes = [_outcome(response) for response in _responses(event)]
        return next((outcome for outcome in outcomes if outcome is not Outcome.COMPLETED), outcomes[0]) if outcomes else None

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        if _is_document(state):
            return end
        answered = [response.get("id") for response in _responses(event)]
        if None in answered:
            # The server could not read the id, so this response concerns our request.
            return end
        memo = state.memo(_Memo)
        ids, waiting = memo.ids, memo.left
        if waiting is None:
            return end if not ids or _unanswered(ids[:1], answered, ids) == [] else None
        if waiting == _MANY:
            # A batch resumed in another process, with more ids than a checkpoint holds: the last response is not known.
            return None
        left = _unanswered(waiting, answered, ids or waiting)
        if len(left) == len(waiting):
            return None
        memo.left = left
        memo.failed = memo.failed or end is not Outcome.COMPLETED
        if left:
            return None
        return Outcome.FAILED if memo.failed else end

    def deltas(self, event: Any) -> Iterator[Delta]:
        # Progress and log messages are about the answer; only the result is the answer.
        return _content(_responses(event))

    def deltas_in(self, state: StreamState, event: Any) -> Iterator[Delta]:
        responses = _responses(event)
        ids = state.memo(_Memo).ids
        if ids and not _is_document(state):
            # A replay may also contain the responses to other requests of the session.
            responses = [each for each in responses if len(_unanswered(ids, [each.get("id")], ids)) < len(ids)]
        return _content(responses)

    def resume_request(self, state: StreamState) -> Request | None:
        if state.cursor is None:
            # A GET without the header opens another stream, with the server's own messages.
            return None
        headers = {"Last-Event-ID": state.cursor, **_session(state)}
        return Request(method="GET", url=state.url, headers=headers, repeat="query")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        json_type = Head(status, headers, "").content_type == "application/json"
        if status == 202 and not state.resuming:
            asks = bool(_ids(state.json)) or not isinstance(state.json, dict | list)
            return Reject("the server accepted the request and will not answer it") if asks else Finished(Outcome.COMPLETED)
        if status == 200 and json_type:
            # This is not a stream: the response is the whole body.
            return Consume(whole=True)
        if not state.resuming:
            return None
        if status == 404:
            return Lost("the server answered 404: the session is gone, initialize a new one")
        if status == 409:
            # The server has not noticed yet that the previous connection is dead.
            return Retry("the server still holds the previous connection")
        return None

    def cancel_request(self, state: StreamState) -> Request | None:
        ids = state.memo(_Memo).ids
        if ids is None or len(ids) != 1 or (isinstance(state.json, dict) and state.json.get("method") == "initialize"):
            # The notification names exactly one request, and "the `initialize` request MUST NOT be cancelled by clients".
            return None
        call = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": ids[0]}}
        return Request(method="POST", url=state.url, headers=_session(state), json=call, repeat="query")


def _session(state: StreamState) -> dict[str, str]:
    session = state.memo(_Memo).session
    return {"Mcp-Session-Id": session} if session else {}


def _ids(body: Any) -> list[Any]:
    """The ids of the requests in a body. Notifications have no id, and responses to the server have no method."""
    calls = [call for call in (body if isinstance(body, list) else [body]) if isinstance(call, dict)]
    return [call["id"] for call in calls if "method" in call and isinstance(call.get("id"), str | int | float)]


def _unanswered(waiting: list[Any], answered: list[Any], ids: list[Any]) -> list[Any]:
    """
    The ids in `waiting` that no response names.

    Some servers write the id 1 as "1", which is accepted unless that is the id of another request.
    """
    spelled = {str(each) for each in answered if each not in ids}
    return [each for each in waiting if each not in answered and str(each) not in spelled]


def _responses(event: Any) -> list[dict[str, Any]]:
    """The JSON-RPC responses in an event: one, or those of a batch. Requests of the server have a `method`, responses do not."""
    try:
        message = event.json()
    except ValueError:
        return []
    found = message if isinstance(message, list) else [message]
    return [each for each in found if isinstance(each, dict) and "method" not in each and ("error" in each or "result" in each)]


def _is_document(state: StreamState) -> bool:
    """Whether the answer is one response instead of a stream, and so belongs to our request whatever its id."""
    return state.head is not None and state.head.content_type == "application/json"


def _content(responses: list[dict[str, Any]]) -> Iterator[Delta]:
    for response in responses:
        content = object_of(response.get("result")).get("content")
        for index, block in enumerate(content if isinstance(content, list) else ()):
            if isinstance(block, dict) and block.get("type") == "text":
                yield from said("text", block.get("text"), index)


def _outcome(response: Mapping[str, Any]) -> Outcome:
    if "error" in response:
        return Outcome.CANCELLED if object_of(response["error"]).get("code") == _REQUEST_CANCELLED else Outcome.FAILED
    result = response["result"]
    return Outcome.FAILED if isinstance(result, dict) and result.get("isError") is True else Outcome.COMPLETED
