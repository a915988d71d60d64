"""
MCP's Streamable HTTP, versions 2025-03-26 to 2025-11-25: the answer to one JSON-RPC request.

The answer begins as a POST and is resumed by GET at the same address, with `Last-Event-ID`. From 2025-11-25 on a clean close
in the middle is normal operation: the server lets go of the connection, and the client comes back after `retry`.
The answer is complete when a JSON-RPC response has come, and not before.

Source: modelcontextprotocol.io, "Transports" of 2025-03-26, 2025-06-18 and 2025-11-25 (SEP-1699); PyPI mcp 2.3
(`client/streamable_http`, `server/streamable_http`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .._core.interfaces import (
    Consume,
    Finished,
    Head,
    Lost,
    Promises,
    Reject,
    Request,
    Resume,
    ResumeProtocol,
    Retry,
    StreamState,
    Verdict,
)
from .._events import Delta, Item, Outcome
from ._json import payload_of

__all__ = ["MCPStreamableHTTP"]

# Of the client's requests; A2A speaks JSON-RPC over SSE too, with other names.
_METHODS: Final = re.compile(r"initialize|ping|(tools|prompts|resources|completion|logging)/.+")
_SESSION: Final = "mcp-session-id"


class MCPStreamableHTTP(ResumeProtocol):
    """
    The answer to one MCP request, sent by POST.

    It resumes where the server gives its events ids; without them a cut is `StreamInterrupted`. The first JSON-RPC response or
    error ends it: since 2025-06-18 a POST carries one request. (A batch of 2025-03-26 has several; it is not read to its end.)
    A tool that reports its own failure (`isError`) and a JSON-RPC error are `FAILED`; both are delivered.

    *The session.* `Mcp-Session-Id` must go along with the resume, and grants access. Your own headers always go along; one that
    the answer to `initialize` announces is remembered for this stream, in memory. A checkpoint never holds it:
    in another process pass it to `resume()` again, with `MCP-Protocol-Version`, as you did to `connect()`.

    Version 2026-07-28 has neither ids nor sessions: there a cut is `StreamInterrupted`, and closing stops the request.
    A server may answer with JSON in place of a stream: that is one event.

    >>> MCPStreamableHTTP()
    <MCPStreamableHTTP: resumable, has_end>

    Source: modelcontextprotocol.io, "Transports" of 2025-11-25; PyPI mcp 2.3.
    """

    accept = "application/json, text/event-stream"
    # "globally unique across all streams within that session" (Transports, Resumability).
    unique_ids = True
    identifies_by_event = False

    @property
    def promises(self) -> Promises:
        return Promises(resumable=True, numbered=False, has_end=True)

    def matches(self, request: StreamState, head: Head) -> bool:
        body = request.json
        if request.method != "POST" or not isinstance(body, dict):
            return False
        if head.content_type not in ("text/event-stream", "application/json"):
            return False
        method = body.get("method")
        return body.get("jsonrpc") == "2.0" and isinstance(method, str) and _METHODS.fullmatch(method) is not None

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if isinstance(source, Head) and (session := source.headers.get(_SESSION)):
            # Not in `keeps`: it grants access, so no checkpoint may hold it.
            state.extra["session"] = session

    # -- reading

    def end(self, event: Any) -> Outcome | None:
        answer = payload_of(event)
        # The server's own requests have an id too, and a method.
        if "method" in answer:
            return None
        if "error" in answer:
            return Outcome.FAILED
        if "result" not in answer:
            return None
        result = answer["result"]
        return Outcome.FAILED if isinstance(result, dict) and result.get("isError") is True else Outcome.COMPLETED

    def deltas(self, event: Any) -> Iterator[Delta]:
        # Progress and log messages are about the answer; only the result is it.
        result = payload_of(event).get("result")
        content = result.get("content") if isinstance(result, dict) else None
        for index, block in enumerate(content if isinstance(content, list) else ()):
            if isinstance(block, dict) and block.get("type") == "text" and isinstance(text := block.get("text"), str) and text:
                yield Delta("text", text, index)

    # -- going on

    def resume_request(self, state: StreamState) -> Request | None:
        if state.cursor is None:
            # A GET without the header opens another stream: the server's own messages.
            return None
        headers = {"Last-Event-ID": state.cursor}
        if session := state.extra.get("session"):
            headers["Mcp-Session-Id"] = session
        return Request(method="GET", url=state.url, headers=headers, repeat="query")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        json_type = Head(status, headers, "").content_type == "application/json"
        if status == 202 and not state.resuming:
            asks = not isinstance(state.json, dict) or "id" in state.json
            return Reject("the server accepted the request and will not answer it") if asks else Finished(Outcome.COMPLETED)
        if status == 200 and json_type:
            # Nothing to stream: the response is the whole body.
            return Consume(whole=True)
        if not state.resuming:
            return None
        if status == 404:
            return Lost("the server answered 404: the session is gone, initialize a new one")
        if status == 409:
            # It has not noticed yet that the connection before is dead.
            return Retry("the server still holds the connection before")
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()
