"""
A provider's stream through a relay, or another server of this package: the bytes are the provider's, the log is the relay's.

    POST /v1/chat/completions                       →  200, Content-Location: /.streams/q3k, Stream-Epoch: k7q2
                                                       data: {"id":"chatcmpl-1", …}    the provider's own events, without ids
    GET  /.streams/q3k?view=verbatim&after=k7q2.2   →  what follows event 2 of the log `k7q2`, byte for byte, then what is live
    GET  …&after=k7q2.4                             →  204, Stream-Outcome: completed

The events carry no position, so the position is their count. Both sides count the same way: an event is what the
framing delivers. So each event of the wire must be exactly one event here, and none may be left out.

This protocol wraps the provider's, which knows what the events mean (text, end, errors).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit, urlunsplit

from .._contract import KEY, Batched, Documents, Joined, Parted, ResumeProtocol, Shared, Stepped, Stored, Structured
from .._contract.abilities import Ability, Doubted, Explained, Glance, Measured, Reporting, Verified
from .._contract.judging import alarm_of, has_content, overrides, quiet_of
from .._contract.origins import origin_of, same_origin
from .._contract.values import Answer, Head, Memo, Position, Promises, Request, StreamState
from .._contract.verdicts import Finished, Interrupted, Lost, Reject, Resume, Retry, Settled, Unproven, Verdict
from .._errors import ResumableStreamError, UpstreamError
from .._events import Delta, Item, Outcome
from ._json import object_of, parsed
from .hub import REASON, STARTING, HubStream, Reason, absent, beside, conflict, gone, home_of, note_reason, outcome_of

__all__ = ["Relayed", "can_relay", "relayed"]

# Seconds. Proxies close connections that are silent for 30 to 60 seconds.
_HEARTBEAT: Final = "15"
_EPOCH: Final = re.compile(r"[^.\s]{1,64}", re.ASCII)
_AFTER: Final = re.compile(r"([^.\s]{1,64})\.([0-9]{1,15})", re.ASCII)
# Query parameters that choose where an answer begins, and its form.
_WHERE: Final[dict[str, str | None]] = dict.fromkeys(("view", "after", "from", "control"))
# Gemini also accepts its API key in the query, and a relay serves a stream only to clients that send the same key.
_API_KEY: Final = "key"


@dataclass(slots=True)
class _Log(Memo):
    """The log that our count refers to, and the number of events in it before the first one requested."""

    stream_epoch: str = ""
    stream_base: str = ""


class Relayed(ResumeProtocol, Doubted, Explained, Joined, Measured, Reporting, Verified, Glance):
    """
    A provider's stream through a relay: `Relayed(OpenAIChat())` reads what `OpenAIChat()` reads, and survives any cut.

    It automatically wraps the detected protocol if the response has the header `Stream-Epoch` and a
    `Content-Location` on the same origin. It resumes there, from the number of events delivered.

    If the caller names it (`protocol=Relayed(OpenAIChat())`), a POST carries a random `Idempotency-Key`, unless the caller chose
    one. If its response is lost, even before the head, it is sent again with the same key, and the relay joins it to the answer
    in progress, which is billed once. It also requests a heartbeat every 15 seconds, to tell silence from a dead connection.

    Events, text, errors and the end are those of the inner protocol. The relay knows more than the events show: if nothing is
    missing after a cut, it answers 204 with the outcome in a header. If the relay's own upstream was cut, the stream raises
    `StreamInterrupted`, as it would without a relay. A log that is gone or was replaced is `CursorExpired`.

    `cancel()` stops the answer at the relay. With `on_lost="snapshot"` the provider's stored result is requested through the
    relay, if the inner protocol supports that.

    Args:
        inner: The provider's protocol. Protocols that split events of the wire, or read bytes, cannot be counted.

    >>> from resumable_stream.protocols import OpenAIChat
    >>> Relayed(OpenAIChat())
    <Relayed(OpenAIChat): resumable, has_end>
    """

    counted = True
    joins = True
    resumes_settled = True
    first_headers: Mapping[str, str] = {"Stream-Heartbeat": _HEARTBEAT}

    def __init__(self, inner: ResumeProtocol) -> None:
        if isinstance(inner, type):
            raise TypeError(f"inner must be an instance: pass Relayed({inner.__name__}()), not the class {inner.__name__}")
        if not isinstance(inner, ResumeProtocol):
            raise TypeError(f"inner must be an instance from resumable_stream.protocols, or of a subclass, got {inner!r}")
        if not can_relay(inner):
            raise ValueError(
                f"{inner.name} does not deliver each event of the wire as one event, so its place cannot be counted: "
                "pass it directly, without Relayed"
            )
        self.inner = inner
        self.framing = inner.framing  # type: ignore[misc]  # a class attribute elsewhere; here it is the inner protocol's
        self.accept = inner.accept  # type: ignore[misc]  # likewise
        self.content_types = inner.content_types  # type: ignore[misc]  # likewise
        self.heartbeat = _BEATS[inner.framing]
        self.keeps = inner.keeps | {"stream_epoch", "stream_base", KEY, "reason"}
        self.alarm = alarm_of(inner)
        self.endless = inner.endless
        self.identifies_by_event = Glance.of(inner).identifies_by_event and overrides(inner, "identify")
        self._quiet = quiet_of(inner)

    def ability(self, kind: type[Ability]) -> Any:
        return super().ability(kind) or (self.inner.ability(kind) if kind in _PASSED_ON else None)

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.inner.name})"

    @property
    def options(self) -> str:
        return self.inner.options

    @property
    def promises(self) -> Promises:
        # The relay says when the stream is over, and continues when we leave.
        return Promises(resumable=True, numbered=False, has_end=not self.endless)

    def for_request(self, request: StreamState) -> Self:  # type: ignore[override]  # an instance, for its inner protocol
        return type(self)(self.inner.for_request(request))

    def matches(self, request: StreamState, head: Head) -> bool:
        return self.inner.matches(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        return self.inner.claims(request, head)

    def first_request(self, state: StreamState) -> Request:
        return self.inner.first_request(state)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            self.inner.identify(state, source)
            return
        if state.resuming:
            return
        self.inner.identify(state, source)
        state.location = None
        epoch, location = source.headers.get("stream-epoch", ""), source.headers.get("content-location")
        if not location or _EPOCH.fullmatch(epoch) is None:
            return
        state.location = _without_capability(location)
        state.memo(_Log).stream_epoch = epoch
        # A GET of the log itself may have begun after its start.
        asked = _AFTER.fullmatch(parse_qs(urlsplit(state.url).query).get("after", [""])[-1]) if state.safe else None
        if asked is not None and int(asked[2]):
            state.memo(_Log).stream_base = str(int(asked[2]))

    def position(self, event: Any) -> Position:
        return Position(None)

    def place(self, events: Sequence[Any]) -> None:
        # With the provider's own ids or numbers, repeats by the provider would be dropped, and the count would be wrong.
        for event in events:
            event.sequence = event.own_id = None
            event.moves = False

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        return self.inner.end(event)

    def has_content(self, event: Any) -> bool:
        return has_content(self.inner, event)

    def error(self, event: Any) -> UpstreamError | None:
        return self.inner.error(event)

    def deltas(self, event: Any) -> Iterable[Delta]:
        return self.inner.deltas(event)

    def fingerprint(self, event: Any) -> str:
        return self.inner.fingerprint(event)

    def quiet(self, event: bytes) -> bool:
        return self._quiet is not None and self._quiet(event)

    # `gap()` is not passed on: such an event is one of the log like any other, and a new request would return the same.

    def tells_reset(self, event: Any) -> bool:
        return Reporting.of(self.inner).tells_reset(event)

    def why_not(self, state: StreamState) -> str:
        if self._home(state) is not None:
            return ""
        return "the answer has no Stream-Epoch and Content-Location, so no relay can send the rest"

    def why_ended(self, state: StreamState) -> str:
        return state.memo(Reason).reason or Explained.of(self.inner).why_ended(state)

    def resume_request(self, state: StreamState) -> Request | None:
        home = self._home(state)
        if home is None:
            return None
        # The relay would follow a `Last-Event-ID` from the caller instead of the count.
        headers = {**STARTING, "Last-Event-ID": None, "Stream-Heartbeat": _HEARTBEAT}
        params = {**_api_key(state), **_WHERE, "view": "verbatim", "after": self._cursor(state)}
        return Request(method="GET", url=home, headers=headers, params=params, repeat="all" if home == state.url else None)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if status == 204 and (state.resuming or "stream-outcome" in headers):
            return self._on_end(headers, state)
        said = object_of(parsed(body)) if status in (409, 410) else {}
        if said.get("error") == "history_gone":
            return Lost(gone(said, self._cursor(state) if state.memo(_Log).stream_epoch else None, _named(state)))
        if not state.resuming:
            if said.get("error") == "key_reused":
                return Reject(conflict(headers, body))
            return self.inner.on_status(status, headers, body, state)
        if status == 404:
            return Lost(absent("relay", _named(state)))
        if status < 300 and (epoch := headers.get("stream-epoch")) != (ours := state.memo(_Log).stream_epoch):
            seen = f"the log {epoch!r}" if epoch else "no Stream-Epoch"
            return Lost(f"the answer to the resume is for another stream: expected the log {ours!r}, received {seen}")
        return None

    def _on_end(self, headers: Mapping[str, str], state: StreamState) -> Verdict:
        """Judge a 204: nothing follows our position. A verbatim body cannot say how the stream ended, so the head does."""
        told = headers.get("stream-outcome", "")
        if not told:
            return Retry("the relay answered 204 without Stream-Outcome, so it is not known whether the answer is complete")
        outcome = outcome_of(told.partition(";")[0].strip())
        reason = found[1].strip() if (found := REASON.search(told)) is not None else ""
        note_reason(state, reason)
        unproven = outcome is Outcome.ENDED and self.inner.promises.has_end
        if unproven or outcome in (Outcome.FAILED, Outcome.CANCELLED):
            # Byte-level readers would take a clean end as a whole answer.
            seen = "closed before the end" if unproven else f"it ended as {outcome.value}"
            return Interrupted(f"{seen}: {reason}" if reason else seen)
        return Finished(outcome, verified=True)

    def on_clean_close(self, state: StreamState) -> Verdict:
        if self._home(state) is None:
            return self.inner.on_clean_close(state)
        # If no event can mark the end, requesting more is routine: the answer 204 marks it.
        return Resume(routine=not self.inner.promises.has_end)

    def on_unproven(self, state: StreamState) -> Verdict:
        # The marker is in the log too, and would come again.
        return Interrupted("closed before the end")

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        return Verified.of(self.inner).on_verified(answer, state)

    def snapshot_request(self, state: StreamState) -> Request | None:
        return self.inner.snapshot_request(state)

    def cancel_request(self, state: StreamState) -> Request | None:
        home = self._home(state)
        if home is None:
            return self.inner.cancel_request(state)
        request = beside(home, "cancel", "POST", own=home == state.url)
        return replace(request, params={**request.params, **_api_key(state)})

    def _home(self, state: StreamState) -> str | None:
        return home_of(state) if state.memo(_Log).stream_epoch else None

    def _cursor(self, state: StreamState) -> str:
        log = state.memo(_Log)
        return f"{log.stream_epoch}.{(int(log.stream_base) if log.stream_base.isdecimal() else 0) + state.offset}"


_PASSED_ON: Final = (Documents, Parted, Shared, Stepped, Stored, Structured)
"""Abilities of the provider's protocol that have nothing to do with how its stream is resumed."""
_BEATS: Final[Mapping[str, bytes]] = {"sse": b":\n\n", "ndjson": b"\n"}


def can_relay(protocol: ResumeProtocol) -> bool:
    """Whether the protocol delivers each event of the wire as one event, so that the relay and we count the same."""
    own = protocol.framing in _BEATS and not isinstance(protocol, Relayed | HubStream)
    return own and protocol.ability(Batched) is None


def relayed(protocol: ResumeProtocol, request: StreamState, head: Head) -> ResumeProtocol:
    """The detected protocol, wrapped if its response came through a relay that can send the rest."""
    location = head.headers.get("content-location")
    if not location or _EPOCH.fullmatch(head.headers.get("stream-epoch", "")) is None or not can_relay(protocol):
        return protocol
    try:
        # The request for the rest carries credentials, so a header that names another origin is ignored.
        same_origin(location, base=head.url, origin=origin_of(request.url))
    except ResumableStreamError:
        return protocol
    return Relayed(protocol)


def _api_key(state: StreamState) -> dict[str, str]:
    key = parse_qs(urlsplit(state.url).query).get(_API_KEY)
    return {_API_KEY: key[-1]} if key else {}


def _without_capability(location: str) -> str:
    """Remove `?t=…`, with which a relay opens a stream to a browser: it expires early, and our credentials are enough."""
    parts = urlsplit(location)
    kept = [each for each in parts.query.split("&") if each.partition("=")[0] != "t"]
    return urlunsplit(parts._replace(query="&".join(kept)))


def _named(state: StreamState) -> str:
    return repr(urlsplit(state.location or state.url).path.rpartition("/")[2])
