"""
Agno AgentOS: a background run numbers its events, and its resume route replays those that follow.

Source: docs.agno.com, AgentOS "Background runs"; PyPI `agno` 3.1.10 (`os/routers/agents/router.py`, `os/event_streams/base.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from .._checkpoint import fingerprint
from .._contract import Batched, Head, Lost, Position, Promises, Request, ResumeProtocol, StreamState, Structured, Verdict
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import upstream_error
from ._json import payload_of
from ._shape import said

__all__ = ["Agno"]

_ROUTE: Final = re.compile(r"(.*/(?:agents|teams|workflows)/[^/]+/runs)(?:/[^/]+/continue)?/?")
# Frames about the connection, not events of the run.
_FRAMES: Final = frozenset({"catch_up", "replay", "subscribed", "stream_expired"})
_CONTENT: Final = ("RunContent", "ReasoningContentDelta", "ToolCallStarted")
_WHOSE: Final = re.compile(r"(?:Team)?Run|Workflow")
_ENDS: Final = {
    "Completed": Outcome.COMPLETED,
    "Error": Outcome.FAILED,
    "Cancelled": Outcome.CANCELLED,
    # The run waits for a person; continuing it takes another request.
    "Paused": Outcome.INCOMPLETE,
}


class Agno(ResumeProtocol, Batched, Structured):
    """
    A run of an Agno AgentOS agent, team or workflow, with `stream=true` and `background=true`, on a server with a database.

    The run continues without a connection. A POST to `{runs}/{run id}/resume` returns what follows the last `event_index`.
    It repeats the form of the first request, since its `session_id` lets the server look into its database;
    the server uses nothing else of it. Without `background=true` there is no `event_index`, and a cut is `StreamInterrupted`.

    The run's own `…Completed`, `…Error` (`FAILED`), `…Cancelled` and `…Paused` (`INCOMPLETE`) end the stream; those of a team's
    members and of a workflow's steps do not. An `error` frame, for example for a run the server forgot, is `UpstreamError`.
    The server may skip numbers, so a gap cannot be proven.

    >>> Agno()
    <Agno: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    sequence = "increasing"
    json_names = frozenset(f"{team}{kind}" for team in ("", "Team") for kind in _CONTENT)

    def matches(self, request: StreamState, head: Head) -> bool:
        # The route takes a form, so a JSON body belongs to another API.
        route = _ROUTE.fullmatch(urlsplit(request.url).path)
        # A response with a `Location` to continue from belongs to another protocol.
        ours = request.method == "POST" and request.json is None and bool(route) and "location" not in head.headers
        return ours and head.content_type == "text/event-stream"

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            body = payload_of(source)
            run_id = body.get("run_id")
            if isinstance(run_id, str) and run_id and type(body.get("event_index")) is int and not _nested(source, body):
                state.stream_id = run_id

    def position(self, event: Any) -> Position:
        number = payload_of(event).get("event_index")
        return Position(str(number), number) if type(number) is int else Position(None)

    def unpack(self, event: Any) -> Sequence[Any]:
        # These frames are sent anew on each connection.
        return (event,) if event.event not in _FRAMES or self.error(event) is not None else ()

    def fingerprint(self, event: Any) -> str:
        # The database writes an event's keys in another order than the wire did.
        body = payload_of(event)
        try:
            said = json.dumps([body.get("run_id"), body.get("content")], sort_keys=True)
        except RecursionError:
            # JSON nested this deeply can be parsed but not serialized.
            said = event.data
        return fingerprint(event.event, said)

    def end(self, event: Any) -> Outcome | None:
        outcome = _ENDS.get(_WHOSE.sub("", event.event, count=1)) if _WHOSE.match(event.event) else None
        return None if outcome is None or _nested(event, payload_of(event)) else outcome

    def error(self, event: Any) -> UpstreamError | None:
        if event.event not in ("error", "replay"):
            return None
        body = payload_of(event)
        if event.event == "replay":
            # The run is over and the server has no events of it; its result is available at the run's own route.
            # If some are buffered, there are merely none after ours.
            none = body.get("total_events") == 0 and not body.get("total_buffered")
            return upstream_error({"type": "no stored events", **body}, body) if none else None
        return upstream_error({"message": body.get("error") or event.data}, body or event.data)

    def deltas(self, event: Any) -> Sequence[Delta]:
        kind = event.event.removeprefix("Team")
        if kind not in _CONTENT:
            return ()
        body = payload_of(event)
        if body.get("parent_run_id") and not body.get("workflow_id"):
            return ()
        if kind == "ToolCallStarted":
            tool = body.get("tool")
            made = tool.get("tool_args") if isinstance(tool, dict) else None
            return (Delta("tool", json.dumps(made, ensure_ascii=False)),) if made else ()
        text = body.get("content") if kind == "RunContent" else None
        return (*said("reasoning", body.get("reasoning_content")), *said("text", text))

    def resume_request(self, state: StreamState) -> Request | None:
        route = self._route(state, "resume")
        if route is None:
            return None
        cursor = state.cursor or ""
        held = {"last_event_index": cursor} if re.fullmatch(r"[0-9]{1,15}", cursor) else {}
        # The rest of the form is repeated: its `session_id` lets the server find a run that is no longer in memory.
        return Request(method="POST", url=route, form=held, repeat="body")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if state.resuming and status == 400 and b"not supported" in body:
            return Lost("the server cannot resume runs of this agent", expired=False)
        return None

    def cancel_request(self, state: StreamState) -> Request | None:
        route = self._route(state, "cancel")
        return Request(method="POST", url=route) if route is not None else None

    def _route(self, state: StreamState, verb: str) -> str | None:
        parts = urlsplit(state.url)
        found = _ROUTE.fullmatch(parts.path)
        if found is None or state.stream_id is None:
            return None
        path = f"{found[1]}/{quote(state.stream_id, safe='')}/{verb}"
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _nested(event: Any, body: dict[str, Any]) -> bool:
    """Whether the event belongs to a team's member, a workflow's step or a nested workflow."""
    step = bool(body.get("workflow_id")) and not event.event.startswith("Workflow")
    return bool(body.get("parent_run_id") or body.get("nested_depth")) or step
