"""
LangGraph Platform and Agent Server: the runs of a thread, and the stream of a thread.

The events of a run created with `stream_resumable` have ids, and the server replays what follows an id.
But ids are not unique: the development server gives all events of one millisecond the same id, so "after id X" skips the events
that share it. Hence the cursor is the id *before* the event's own (the previous distinct one). A replay from there repeats all
of X. A repeat is recognised by its id, its content, and how often that content came under that id before.

This has a second use. A replay must bring at least one event that we already have. If it brings nothing, the server no longer
has the history, which it reports in no other way.

Source: langgraph-sdk 0.4.14 (`_async/http`), langgraph-api 0.16.7 (`api/runs`, `api/threads`),
langgraph-runtime-inmem 0.36.7 (`inmem_stream`, `ops`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .._contract import Alarm, Answer, Head, Memo, Position, Promises, Request, ResumeProtocol, Snapshot, StreamState
from .._contract.abilities import Explained, Glance, Replayed, Stored, Structured, Verified
from .._contract.verdicts import Finished, Lost, Over, Resume, Retry, Verdict, Verify
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome, StreamEvent
from ._ends import upstream_error
from ._json import object_of, parsed, payload_of
from ._shape import objects_in, said

__all__ = ["LangGraphRun", "LangGraphThread"]

_CREATE: Final = re.compile(r"(?P<base>[^?#]*/threads/[^/?#]+/runs)/stream(?:[?#]|$)")
_JOIN: Final = re.compile(r"(?P<run>[^?#]*/threads/[^/?#]+/runs/[^/?#]+)/stream(?:[?#]|$)")
_THREAD: Final = re.compile(r"[^?#]*/threads/[^/?#]+/stream(?:[?#]|$)")
# On an Agent Server, the ids of threads and runs are UUIDs; other servers use similar paths.
_UUIDS: Final = re.compile(r"/(?:threads|runs)/[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?=/)")
_RUN_ID: Final = re.compile(r"/threads/[^/?#]+/runs/([^/?#]+)")
_STREAM_ID: Final = re.compile(r"([0-9]{1,18})-[0-9]{1,20}")
# The last id of a millisecond: Redis numbers the events within it with 64 bits.
_LAST_OF_MS: Final = 2**64 - 1
# Characters, 9 per event: 4096 events under one id, as many as the ledger remembers. A millisecond has only a few.
_UNDER_ONE_ID: Final = 9 * 4096

# The SDK's `RunStatus`. A cancelled run and a run that waits for a person are both "interrupted".
_ENDED: Final = {
    "success": Outcome.COMPLETED,
    "error": Outcome.FAILED,
    "timeout": Outcome.FAILED,
    "interrupted": Outcome.INCOMPLETE,
}


@dataclass(slots=True)
class _Memo(Memo):
    # What the first request asked for.
    resumable: bool = False
    stream_mode: str = ""
    stream_subgraphs: str = ""
    # The latest id, the previous distinct one, and digests of the events that came under the latest.
    last: str = ""
    before: str = ""
    under: str = ""
    # This connection brought an event, and so did the one before the provider said that the run is over.
    seen: bool = False
    proven: bool = False


class _LangGraph(ResumeProtocol, Replayed, Structured, Glance):
    """What the two kinds of stream share: the events, and ids that may repeat."""

    def matches(self, request: StreamState, head: Head) -> bool:
        raise NotImplementedError

    def _before_all(self, state: StreamState) -> str | None:
        """The cursor before the first event, if the first request reads the stream from its beginning."""
        return None

    def position(self, event: Any) -> Position:
        # `identify()` completes it: the position depends on the ids of earlier events.
        return Position(None, None, event.own_id)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        memo = state.memo(_Memo)
        if isinstance(source, Head):
            memo.seen = False
            memo.last = memo.before = state.cursor or self._before_all(state) or ""
            return
        memo.seen = True
        own_id = getattr(source, "own_id", None)
        if not own_id:
            return
        if own_id != memo.last:
            memo.before = memo.last or _just_before(own_id) or ""
            memo.last, memo.under = own_id, ""
        assert isinstance(source, StreamEvent)
        content = self.fingerprint(source)[:8]
        source.own_id = f"{own_id}/{content}/{memo.under.count(content)}"
        memo.under = f"{memo.under}{content} "[-_UNDER_ONE_ID:]
        source.cursor = memo.before
        source.moves = True

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if state.resuming and status == 422:
            return Lost("the server answered 422: it does not accept the id of the last event")
        return None

    def reaches_back(self, state: StreamState) -> bool:
        # Until the second id arrives, the cursor is before the first one.
        return state.cursor == "-1" or (state.cursor or "").endswith(f"-{_LAST_OF_MS}")

    def reads_json(self, event: Any) -> bool:
        return bool(event.event.partition("|")[0] == "messages")

    def deltas(self, event: Any) -> Iterator[Delta]:
        # `messages` is a pair of a message and its metadata; for a sub-graph it is called "messages|name:id".
        # `messages/partial` repeats a growing message in full, so a single event does not show what is new.
        if event.event.partition("|")[0] != "messages":
            return
        try:
            message = event.json()[0]
        except (ValueError, TypeError, LookupError):
            return
        if not isinstance(message, dict) or message.get("type") not in ("AIMessageChunk", "ai"):
            return
        yield from _content(message.get("content"))
        # Most messages have neither.
        if kwargs := message.get("additional_kwargs"):
            yield from said("reasoning", object_of(kwargs).get("reasoning_content"))
        if calls := message.get("tool_call_chunks"):
            for call in objects_in(calls):
                yield from said("tool", call.get("args"), call.get("index"))


class LangGraphRun(_LangGraph, Explained, Stored, Verified):
    """
    One run: `POST /threads/{thread}/runs/stream`, or `GET /threads/{thread}/runs/{run}/stream`.

    It resumes by that GET with `Last-Event-ID`, if the run was created with `"stream_resumable": true`; otherwise its events have
    no ids and a cut is `StreamInterrupted`. Give it `"on_disconnect": "continue"` too: with `"cancel"` every cut stops the run.
    `stream_mode` and `stream_subgraphs` of the first request are repeated, since the server filters a joined stream by them.

    A finished run only closes the connection cleanly. The run's status is then requested, and if the run has ended, whatever
    followed is requested once more. Only if nothing followed is the stream over, with the outcome that the status gives.
    Events are kept for 120 s by default (`RESUMABLE_STREAM_TTL_SECONDS`). After that a resume raises `CursorExpired`, or with
    `on_lost="snapshot"` delivers the state of the thread as an event `values`.

    A stateless run (`POST /runs/stream`) cannot be joined, so it cannot be resumed.

    >>> LangGraphRun()
    <LangGraphRun: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    keeps = frozenset({"resumable", "stream_mode", "stream_subgraphs"})
    alarm = Alarm(frozenset({"end", "error"}), frozenset())

    def matches(self, request: StreamState, head: Head) -> bool:
        if head.content_type != "text/event-stream":
            return False
        if request.method == "POST":
            return "/runs/" in head.headers.get("content-location", "") and _CREATE.match(request.url) is not None
        return request.method == "GET" and (found := _JOIN.match(request.url)) is not None and len(_UUIDS.findall(found[0])) == 2

    def claims(self, request: StreamState, head: Head) -> bool:
        asked = isinstance(request.json, dict) and "assistant_id" in request.json
        return asked and request.method == "POST" and _CREATE.match(request.url) is not None

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if isinstance(source, Head):
            super().identify(state, source)
            headers = source.headers
            _remember_body(state)
            if state.method == "GET":
                found = _JOIN.match(state.url)
                state.location = state.location or (f"{found['run']}/stream" if found else None)
            else:
                _locate(state, _RUN_ID.search(headers.get("content-location", "") or headers.get("location", "")))
            return
        if state.location is None and getattr(source, "event", None) == "metadata":
            _locate(state, re.fullmatch(r"([^/?#]+)", _field(source, "run_id")))
        super().identify(state, source)

    def _before_all(self, state: StreamState) -> str | None:
        # Joining a run begins at its current point; creating one begins with its first event.
        return "-1" if state.method == "POST" else None

    def end(self, event: Any) -> Outcome | None:
        return {"end": Outcome.COMPLETED, "error": Outcome.FAILED}.get(event.event)

    def error(self, event: Any) -> UpstreamError | None:
        # An unknown run is reported inside a 200 response; that is not a failed run.
        if event.event == "error" and _field(event, "error") == "HTTPException" and _field(event, "message").startswith("404"):
            return upstream_error({"type": "HTTPException", "message": _field(event, "message")}, event.json())
        return None

    def why_not(self, state: StreamState) -> str:
        if state.location is None:
            return "the answer named no Location, so this run cannot be joined: run it on a thread, with stream_resumable"
        created = state.method == "POST" and state.cursor is None and not state.memo(_Memo).resumable
        return "the run was started without stream_resumable, and no event had an id" if created else ""

    def resume_request(self, state: StreamState) -> Request | None:
        created = state.method == "POST"
        if state.location is None or (created and state.cursor is None and not state.memo(_Memo).resumable):
            return None
        # Without the header the server sends only new events, and the missed ones are silently lost.
        cursor = state.cursor or self._before_all(state)
        headers = {"Last-Event-ID": cursor} if cursor is not None else {}
        params = {"cancel_on_disconnect": "0"}
        params |= {name: text for name, text in state.memo(_Memo).keep().items() if name in ("stream_mode", "stream_subgraphs")}
        return Request(method="GET", url=state.location, headers=headers, params=params, repeat="query")

    def on_clean_close(self, state: StreamState) -> Verdict:
        over = state.over
        if over is not None and over.offset == state.offset and (state.memo(_Memo).proven or state.memo(_Memo).seen):
            return Finished(over.outcome)
        request = self.status_request(state)
        return Verify(request) if request is not None else Finished(Outcome.ENDED)

    def status_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url=_run_url(state.location), repeat="query") if state.location is not None else None

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        if answer.status == 404:
            return Lost("the run is gone: the server answered 404")
        status = _status(answer)
        if status is None:
            return Retry(f"the status of the run cannot be read: the server answered {answer.status}")
        if status not in _ENDED:
            return Resume()
        if state.cursor is None and state.offset:
            # Without ids, nothing more can be requested.
            return Finished(_ENDED[status])
        # The run may have ended after the connection did. A replay without any event that we already have proves nothing.
        memo = state.memo(_Memo)
        memo.proven = memo.seen
        return Over(_ENDED[status], lost=f"the run has ended ({status}), and the server no longer holds its events")

    def snapshot_request(self, state: StreamState) -> Request | None:
        if state.location is None:
            return None
        thread, _, _ = _run_url(state.location).rpartition("/runs/")
        return Request(method="GET", url=f"{thread}/state", repeat="query")

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | None:
        try:
            document = json.loads(answer.body)
            values, following = document["values"], document["next"]
            tasks = [task for task in document.get("tasks") or () if isinstance(task, dict)]
            run = (document.get("metadata") or {}).get("run_id")
        except (RecursionError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if run is not None and state.location is not None and run != _run_url(state.location).rpartition("/")[2]:
            # Another run of the thread has overwritten the state.
            return None
        if any(task.get("error") for task in tasks):
            outcome = Outcome.FAILED
        elif any(task.get("interrupts") for task in tasks):
            outcome = Outcome.INCOMPLETE
        elif following:
            # The run has not finished: the state is not the result.
            return None
        else:
            outcome = Outcome.COMPLETED
        event = StreamEvent("values", json.dumps(values, ensure_ascii=False, separators=(",", ":")))
        return Snapshot([event], reset=True, outcome=outcome)

    def cancel_request(self, state: StreamState) -> Request | None:
        if state.location is None:
            return None
        params = {"wait": "0", "action": "interrupt"}
        return Request(method="POST", url=f"{_run_url(state.location)}/cancel", params=params, repeat="query")


class LangGraphThread(_LangGraph):
    """
    All runs of a thread, one after the other: `GET /threads/{thread}/stream`. It never ends.

    It resumes by the same GET with `Last-Event-ID`. The end of a run is an event `metadata` whose `status` is `run_done`.
    Without `Last-Event-ID` it begins with new events; `headers={"Last-Event-ID": "-"}` requests everything that is kept.
    The server keeps events for a while and does not say when some are gone, so a gap after a long absence is not detected.

    >>> LangGraphThread()
    <LangGraphThread: resumable>
    """

    endless = True
    alarm = Alarm(frozenset(), frozenset())

    def matches(self, request: StreamState, head: Head) -> bool:
        if request.method != "GET" or head.content_type != "text/event-stream":
            return False
        return (found := _THREAD.match(request.url)) is not None and len(_UUIDS.findall(found[0])) == 1

    def resume_request(self, state: StreamState) -> Request | None:
        headers = {"Last-Event-ID": state.cursor} if state.cursor is not None else {}
        return Request(method="GET", url=state.url, headers=headers, repeat="all")

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Resume()


def _locate(state: StreamState, run: re.Match[str] | None) -> None:
    """
    Build the run's URL from the thread's URL in the first request.

    Only the id comes from the server: the path that it names lacks the prefix under which it is mounted.
    """
    created = _CREATE.match(state.url)
    if created is not None and run is not None:
        state.location = f"{created['base']}/{run[1]}/stream"


def _run_url(location: str | None) -> str:
    return (location or "").removesuffix("/stream")


def _remember_body(state: StreamState) -> None:
    """Remember what the first request asked for: a joined stream is filtered by *its* own request, so that must match."""
    body = state.json if isinstance(state.json, dict) else {}
    if modes := body.get("stream_mode"):
        # The filter also applies to these two, although a run cannot be created with them.
        names = [*([modes] if isinstance(modes, str) else modes), "metadata", "error"]
        state.memo(_Memo).stream_mode = json.dumps(names, separators=(",", ":"))
    if body.get("stream_resumable"):
        state.memo(_Memo).resumable = True
    if body.get("stream_subgraphs"):
        state.memo(_Memo).stream_subgraphs = "true"


def _just_before(own_id: str) -> str | None:
    """An id after everything in the previous millisecond; `None` for ids of another form."""
    found = _STREAM_ID.fullmatch(own_id)
    return f"{int(found[1]) - 1}-{_LAST_OF_MS}" if found and int(found[1]) else None


def _field(event: Any, name: str) -> str:
    value = payload_of(event).get(name)
    return value if isinstance(value, str) else ""


def _status(answer: Answer) -> str | None:
    if answer.status >= 400:
        return None
    status = object_of(parsed(answer.body)).get("status")
    return status if isinstance(status, str) else None


def _content(content: Any) -> Iterator[Delta]:
    """Read content that is a text, or a list of texts and typed blocks."""
    for block in content if isinstance(content, list) else (content,):
        match block:
            case str():
                yield from said("text", block)
            case {"type": "text" | "text_delta"}:
                yield from said("text", block.get("text"), block.get("index"))
            case {"type": "reasoning" | "thinking"}:
                yield from said("reasoning", block.get("reasoning") or block.get("thinking"))
