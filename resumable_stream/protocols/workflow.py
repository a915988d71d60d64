"""
Workflow DevKit: a run writes an AI SDK stream, and `startIndex` names the next chunk.

Source: useworkflow.dev, "Resumable streams"; npm `@workflow/ai` and `@ai-sdk/workflow` (`WorkflowChatTransport`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from .._contract import Batched, Head, Measured, Memo, Promises, Request, ResumeProtocol, StreamState, Verdict
from .._events import Item
from .ai_sdk import AISDKStream, stream_url

__all__ = ["WorkflowRun"]

_RUN: Final = "x-workflow-run-id"
_TAIL: Final = "x-workflow-stream-tail-index"


@dataclass(slots=True)
class _Memo(Memo):
    base: str = ""


class WorkflowRun(AISDKStream, Batched, Measured):
    """
    A chat route that runs a workflow and answers with its stream of AI SDK parts.

    A POST returns the run's id in `x-workflow-run-id` and resumes by `GET {url}/{run id}/stream`, a GET by repeating itself;
    `startIndex` is the number of parts delivered, so nothing is sent twice.
    The position is a count: it is exact as long as the run is the same, but nothing in the parts can prove that.

    `finish`, `abort` and `error` end the stream, as in `AISDKStream`. A body that closes before one of them has reached
    the time limit of its function, not its end; so `[DONE]`, which closes every body, is not delivered.

    >>> WorkflowRun()
    <WorkflowRun: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    replays = False
    counted = True
    keeps = frozenset({"base"})

    def __init__(self) -> None:
        super().__init__()

    def matches(self, request: StreamState, head: Head) -> bool:
        if head.content_type != "text/event-stream":
            return False
        # On a GET the header alone is not enough: any response of such an application may have it.
        if request.method == "POST":
            return _RUN in head.headers
        # For a run that is read again, the DevKit's guide sends only one of these headers, and the AI SDK's guide the other.
        return urlsplit(request.url).path.rstrip("/").endswith("/stream") and (_RUN in head.headers or _TAIL in head.headers)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head) or state.resuming:
            return
        state.stream_id = state.stream_id or source.headers.get(_RUN) or None
        # The index of our first part. It is not 0 if the caller asked for a later one, or for the last few.
        start = parse_qs(urlsplit(state.url).query).get("startIndex", ["0"])[-1]
        if start.startswith("-"):
            tail = source.headers.get(_TAIL, "")
            start = (
                str(max(0, int(tail) + 1 + int(start))) if _INTEGER.fullmatch(tail) and _INTEGER.fullmatch(start) else "unknown"
            )
        state.memo(_Memo).base = start

    def unpack(self, event: Any) -> Sequence[Any]:
        # The end of a body is not a part, and must not be counted as one.
        return () if event.data == "[DONE]" else (event,)

    def resume_request(self, state: StreamState) -> Request | None:
        base = state.memo(_Memo).base or "0"
        if not _INTEGER.fullmatch(base):
            return None
        params = {"startIndex": str(int(base) + state.offset)}
        if state.method == "GET":
            return Request(method="GET", url=state.url, params=params, repeat="all")
        url = stream_url(state)
        return None if url is None else Request(method="GET", url=url, params=params)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return ResumeProtocol.on_status(self, status, headers, body, state)


_INTEGER = re.compile(r"-?[0-9]{1,15}")
