"""
TanStack AI with a durable log: each chunk has an offset, and the same request with `Last-Event-ID` replays what follows it.

Source: tanstack.com/ai, "Resumable streams"; npm `@tanstack/ai` 0.58.0 (`stream-to-response.ts`, `stream-durability.ts`) and
`@tanstack/ai-client` (`connection-adapters.ts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

from .._contract import Head, Memo, Position, Promises, Request, ResumeProtocol, StreamState, Structured
from .._contract.verdicts import Ask, Resume, Settled, Verdict
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import upstream_error
from ._json import object_of, payload_of
from ._shape import Text, deltas_of
from .ndjson import NDJSON_TYPES

__all__ = ["TanStackAI", "TanStackAINDJSON"]

_TEXTS: Final = {
    "TEXT_MESSAGE_CONTENT": Text("text", "delta"),
    "REASONING_MESSAGE_CONTENT": Text("reasoning", "delta"),
    "TOOL_CALL_ARGS": Text("tool", "delta"),
}


@dataclass(slots=True)
class _Memo(Memo):
    turn: str = ""


class TanStackAI(ResumeProtocol, Structured):
    """
    A TanStack AI route that answers with server-sent events and keeps a log of its runs (`durability`).

    It resumes as TanStack's own client does: by repeating the first request with the last offset as `Last-Event-ID`.
    The route then replays from its log and starts no model call. By naming this protocol you declare that this holds for a POST.
    A route without `durability` sends no offsets; its request is not repeated, and a cut is `StreamInterrupted`.

    An agent sends a `RUN_FINISHED` for each of its turns, so the stream is read to the close. After one with `tool_calls`, a
    broken connection is a cut. A clean close there is checked by one more request, since the caller may run the tools: `ENDED`.
    `RUN_ERROR` is `FAILED` (`CANCELLED` with the code `aborted`); a run that the server forgot is `UpstreamError`.

    >>> TanStackAI()
    <TanStackAI: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    json_names = frozenset({"message"})
    keeps = frozenset({"turn"})

    def matches(self, request: StreamState, head: Head) -> bool:
        # Only a join can be recognised, by its query. A POST looks like any AG-UI run, which must not be repeated on a guess.
        query = parse_qs(urlsplit(request.url).query)
        join = "runId" in query and query.get("offset") in (["-1"], ["now"])
        types = NDJSON_TYPES if self.framing == "ndjson" else self.content_types
        return request.method == "GET" and join and head.content_type in types

    def identify(self, state: StreamState, source: Head | Item) -> None:
        # Note whether the newest event ends a turn whose tools are still to be called.
        if not isinstance(source, Head):
            state.memo(_Memo).turn = "tools" if _turn(self.chunk(source)) else ""

    def chunk(self, event: Any) -> dict[str, Any]:
        """The AG-UI event inside an event of the wire."""
        return payload_of(event)

    def end(self, event: Any) -> Outcome | Settled | None:
        if '"RUN_' not in event.data:
            return None
        chunk = self.chunk(event)
        match chunk.get("type"):
            case "RUN_STARTED":
                # A new turn begins, so what the previous one settled no longer holds.
                return Settled(None)
            case "RUN_ERROR":
                return Settled(Outcome.CANCELLED if chunk.get("code") == "aborted" else Outcome.FAILED)
            case "RUN_FINISHED" if not _turn(chunk):
                outcome = chunk.get("outcome")
                waits = isinstance(outcome, dict) and outcome.get("type") == "interrupt"
                early = waits or _reason(chunk) in ("length", "content_filter")
                return Settled(Outcome.INCOMPLETE if early else Outcome.COMPLETED)
        return None

    def error(self, event: Any) -> UpstreamError | None:
        if '"RUN_ERROR"' not in event.data:
            return None
        chunk = self.chunk(event)
        text = str(chunk.get("message", ""))
        # These errors concern the log, not the run, which may have ended well.
        forgot = chunk.get("type") == "RUN_ERROR" and text.startswith(("Unknown or expired", "Memory stream"))
        return upstream_error({"type": "unknown run", "message": text}, chunk) if forgot else None

    def deltas(self, event: Any) -> Sequence[Delta]:
        chunk = self.chunk(event)
        return deltas_of(_TEXTS, chunk.get("type"), chunk)

    def resume_request(self, state: StreamState) -> Request | None:
        if state.cursor is None:
            return None
        return Request(method=state.method, url=state.url, headers={"Last-Event-ID": state.cursor}, repeat="all")

    def on_clean_close(self, state: StreamState) -> Verdict:
        # An open log holds the connection, so an empty answer means that the log is closed.
        return Ask() if state.memo(_Memo).turn else Resume()


class TanStackAINDJSON(TanStackAI):
    """
    The same over newline-delimited JSON (`toHttpResponse`): each line is `{"id": offset, "chunk": event}`.

    >>> TanStackAINDJSON()
    <TanStackAINDJSON: resumable, has_end>
    """

    framing = "ndjson"
    accept = "application/x-ndjson"
    content_types: ClassVar[tuple[str, ...]] = ("application/x-ndjson", "application/json", "text/plain")

    def position(self, event: Any) -> Position:
        envelope = super().chunk(event)
        offset = envelope.get("id") if "chunk" in envelope else None
        # An empty offset clears the cursor, as an empty id does in server-sent events.
        return Position(offset, None, offset or None) if isinstance(offset, str) else Position(None)

    def chunk(self, event: Any) -> dict[str, Any]:
        envelope = super().chunk(event)
        return object_of(envelope.get("chunk", envelope))


def _reason(chunk: dict[str, Any]) -> Any:
    """Why the model stopped; newer routes put it in the event's metadata."""
    if "finishReason" in chunk:
        return chunk["finishReason"]
    metadata = chunk.get("metadata")
    own = metadata.get("tanstack") if isinstance(metadata, dict) else None
    return own.get("finishReason") if isinstance(own, dict) else None


def _turn(chunk: dict[str, Any]) -> bool:
    return chunk.get("type") == "RUN_FINISHED" and _reason(chunk) == "tool_calls"
