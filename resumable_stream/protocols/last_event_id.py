"""
Plain server-sent events: the id of the last event is sent back as `Last-Event-ID`.

Source: WHATWG HTML, section 9.2 (server-sent events).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, Self
from urllib.parse import urljoin

from .._contract import Explained, Head, Reporting, Request, StreamState
from .._events import Gap, Item
from ._ends import End, TextOf, _EndedProtocol, filled, located

__all__ = ["LastEventID"]

GAP_EVENTS: Final = ("gap", "session_lost", "resume_gap", "stream_gap")


class LastEventID(_EndedProtocol, Explained, Reporting):
    """
    Any endpoint that speaks SSE with ids.

    A GET resumes with the same request and `Last-Event-ID`. A POST is never repeated: it resumes by GET at the
    `Location` or `Content-Location` of its response, or at `resume=`; without either it cannot resume.

    Args:
        sequence: `"contiguous"`: ids are integers that grow by one; a jump is a gap. `"auto"`: find out whether they do,
            and mark a jump without requesting again. `None`: ids are opaque.
        end: How the stream ends (rule 7 of docs/rules.md): `"auto"` (`[DONE]`, and a clean close is checked by one more request),
            a text (the `data` of the last event), a callable of the event (→ bool or `Outcome`),
            `"close"` (a clean close is the end; a GET is not repeated after an answer), `"never"` (a feed).
        text: Where to find an event's visible text: a dotted path into the JSON of its `data` (`"delta.text"`), or a callable
            of the event (→ text or `None`); `None`: all of `data` is text.
        stream_id: Where to find the stream's id: a dotted path into the first events, or `"header:NAME"`. It appears in
            checkpoints and log lines, so it must not grant access.
        resume: Where to GET the rest: a URL, absolute or relative to the first one, with `{stream_id}` filled in, or a callable
            of the `StreamState`. The callable runs at every reconnect, in another process too: `state.head` is then the latest
            response's, or `None`. Use `keep` for headers of the first response that it needs.
        keep: Names of headers of the first response that `resume` needs: `state.kept["x-answer-id"]`. Checkpoints contain them,
            so they must not grant access.
        cursor_param: Send the cursor in this query parameter instead of the header.
        gap_events: Names of events that report lost history.

    >>> LastEventID()
    <LastEventID: resumable>
    >>> LastEventID(end="[END]", sequence="contiguous")
    <LastEventID: resumable, numbered, has_end>
    >>> LastEventID(text="delta", stream_id="run_id", resume="/runs/{stream_id}/stream")
    <LastEventID: resumable>
    """

    def __init__(
        self,
        *,
        sequence: Literal["auto", "contiguous"] | None = "auto",
        end: End = "auto",
        text: TextOf | None = None,
        stream_id: str | None = None,
        resume: str | Callable[[StreamState], str | None] | None = None,
        keep: Collection[str] = (),
        cursor_param: str | None = None,
        gap_events: Collection[str] = GAP_EVENTS,
    ) -> None:
        if sequence not in ("auto", "contiguous", None):
            raise ValueError(f"sequence must be 'auto', 'contiguous' or None, got {sequence!r}")
        if not (resume is None or callable(resume) or (isinstance(resume, str) and resume)):
            raise TypeError(f"resume must be a URL or a callable of the StreamState, got {resume!r}")
        if cursor_param is not None and not (isinstance(cursor_param, str) and cursor_param):
            raise TypeError(f"cursor_param must be the name of a query parameter, got {cursor_param!r}")
        if isinstance(gap_events, str):
            raise TypeError(f"gap_events must be a collection of event names, got the text {gap_events!r}")
        if isinstance(resume, str) and "{stream_id}" in resume and stream_id is None:
            raise ValueError("resume= contains {stream_id}: pass where to find it, stream_id='header:NAME' or a dotted path")
        self.sequence = sequence
        super().__init__(end, names=gap_events, text=text, stream_id=stream_id, keep=keep)
        self._tied = self._end.mode == "close"
        self.identifies_by_event = self._id_path is not None
        # Without promised numbers the decoder already knows the position: the id is the cursor.
        self.places = sequence == "contiguous"
        given = {"sequence": sequence, "end": end, "resume": resume, "param": cursor_param, "gaps": frozenset(gap_events)}
        defaults = {"sequence": "auto", "end": "auto", "resume": None, "param": None, "gaps": frozenset(GAP_EVENTS)}
        self._options = self._digest_options(
            {**given, "text": text, "stream_id": stream_id, "keep": sorted(self._keep)},
            {**defaults, "text": None, "stream_id": None, "keep": []},
        )
        self._resume = resume
        self._cursor_param = cursor_param
        self._needs_place = False
        self._gaps = frozenset(gap_events)

    @property
    def options(self) -> str:
        return self._options

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        made = cls()
        made._needs_place = not request.safe
        return made

    def __repr__(self) -> str:
        text = super().__repr__()
        if not self._needs_place:
            return text
        # Detected for a POST: whether it can be resumed depends on the answer.
        return text.replace("resumable", "resumable if the answer names a Location", 1)

    def matches(self, request: StreamState, head: Head) -> bool:
        return head.content_type == "text/event-stream"

    def identify(self, state: StreamState, source: Head | Item) -> None:
        self._identify(state, source)
        if isinstance(source, Head):
            located(state, source)

    def place(self, events: Sequence[Any]) -> None:
        for event in events:
            own_id = event.own_id
            if own_id and own_id.isascii() and own_id.isdigit() and len(own_id) < 20:
                event.sequence = int(own_id)

    def gap(self, event: Any) -> Gap | None:
        return Gap(after=event.cursor) if event.event in self._gaps else None

    def why_not(self, state: StreamState) -> str:
        if state.method == "GET":
            tied = "with end='close' a GET is not repeated after an answer"
            return tied if self._end.mode == "close" else ""
        if state.location is not None:
            return ""
        if callable(self._resume):
            return "resume= returned no URL for this stream"
        if self._resume is not None:
            return "the answer did not contain the stream id that resume= needs" if filled(self._resume, state) is None else ""
        return (
            f"a {state.method} is not repeated, and the answer named no Location: pass protocol=LastEventID(resume=URL), "
            "with cursor_param= if the server reads the id from the query"
        )

    def resume_request(self, state: StreamState) -> Request | None:
        headers: Mapping[str, str] = {}
        params: Mapping[str, str] = {}
        if state.cursor is not None:
            if self._cursor_param is not None:
                params = {self._cursor_param: state.cursor}
            else:
                headers = {"Last-Event-ID": state.cursor}
        target = self._resume(state) if callable(self._resume) else self._resume or state.location
        if target is not None and self._resume is not None and (target := filled(target, state)) is None:
            return None
        if target is not None:
            return Request(method="GET", url=urljoin(state.url, target), headers=headers, params=params)
        if state.method != "GET" or self._end.mode == "close":
            return None
        return Request(method="GET", url=state.url, headers=headers, params=params, repeat="all")
