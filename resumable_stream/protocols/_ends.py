"""What ends a stream of plain events: the `end=` option that several protocols share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Final
from urllib.parse import quote

from .._checkpoint import fingerprint
from .._contract import KEPT, Alarm, Doubted, Glance, Head, Promises, ResumeProtocol, StreamState, Structured
from .._contract.verdicts import Ask, Finished, Resume, Settled, Unproven, Verdict
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._json import JSONPath

__all__ = [
    "DONE_HEADS",
    "ERROR_HEADS",
    "End",
    "EndRule",
    "TextOf",
    "filled",
    "located",
    "unproven_done",
    "upstream_error",
]

EndResult = bool | Outcome | Settled | Unproven | None
End = str | Callable[[Any], EndResult]
TextOf = str | Callable[[Any], str | None]
DONE: Final = "[DONE]"
_SECRET_HEADERS: Final = frozenset(
    {"set-cookie", "set-cookie2", "cookie", "authorization", "proxy-authorization", "authentication-info", "mcp-session-id"}
)
DONE_HEADS: Final = frozenset({DONE, f"{DONE} ", f"{DONE}\n"})
"""The marker's first seven characters, as an `Alarm` compares them."""
# Names of the events with which servers and proxies keep a connection alive.
_ALIVE: Final = frozenset({"ping", "pong", "heartbeat", "keepalive", "keep-alive", "keep_alive"})
# An object whose first key is `error`, on one line or pretty-printed over several `data:` lines.
_ERROR_START: Final = re.compile(r'\s*\{\s*"error"')
ERROR_HEADS: Final = frozenset(
    (front + "{" + "".join(space) + '"error')[:7]
    for front in ("", "\n")
    for size in range(7)
    for space in product(" \n\t", repeat=size)
)
"""Its first seven characters, for an `Alarm`; with more indentation they are only white space."""


class EndRule:
    """
    Args:
        end: `"auto"`: `[DONE]` ends the stream, and a clean close is checked. `"close"`: a clean close is the end.
            `"never"`: a feed. Any other text: an event whose `data` equals it. A callable of the event: truthy, or the `Outcome`.

    Raises:
        ValueError, TypeError: The option is none of these.
    """

    def __init__(self, end: End) -> None:
        if not (isinstance(end, str) or callable(end)):
            raise TypeError(f"end must be 'auto', 'close', 'never', the data of the last event, or a callable, got {end!r}")
        if end == "":
            raise ValueError("end must not be empty: every event without data would end the stream")
        self.option = end
        self.mode = end if end in ("auto", "close", "never") else "marker"
        self._ask = end if callable(end) else None
        self._marker = None if callable(end) or end == "never" else DONE if end in ("auto", "close") else end

    @property
    def has_end(self) -> bool:
        """Whether a clean close without the marker is a cut."""
        return self.mode == "marker"

    def __repr__(self) -> str:
        return repr(self.option)

    def judge(self, event: Any) -> Outcome | Settled | Unproven | None:
        if self._ask is None:
            return Outcome.COMPLETED if event.data == self._marker else None
        found = self._ask(event)
        if isinstance(found, Outcome | Settled | Unproven):
            return found
        return Outcome.COMPLETED if found else None

    def deltas(self, event: Any) -> Sequence[Delta]:
        """All of `data`; nothing for the marker, which is not text."""
        return () if event.data == self._marker else (Delta("text", event.data),)

    def error(self, event: Any) -> UpstreamError | None:
        """Read an error frame: `event: error`, or an object that starts with a truthy `error`, unless `end=` knows the event."""
        by_name = event.event == "error"
        if not by_name and _ERROR_START.match(event.data) is None:
            return None
        if self._ask is not None and self.judge(event) is not None:
            return None
        body: Any = event.data
        try:
            body = event.json()
        except ValueError:
            if not by_name:
                return None
        detail = body.get("error") if isinstance(body, dict) else None
        if not by_name and not detail:
            return None
        if not isinstance(detail, dict):
            detail = {"message": detail} if detail else body if isinstance(body, dict) else {"message": body}
        return upstream_error(detail, body)

    def alarm(self, names: Iterable[str] = ()) -> Alarm | None:
        """
        Args:
            names: Further event names that matter to the protocol.
        """
        if self._ask is not None:
            return None
        heads = ERROR_HEADS if self._marker is None else ERROR_HEADS | {self._marker[:7]}
        return Alarm(frozenset({"error", *names}), heads)


def unproven_done(event: Any, without: str, advice: str = "") -> Unproven | None:
    """
    Judge `[DONE]` where it proves nothing: proxies send it even if their upstream died.

    SDKs stop at any data that starts with it (openai's `_streaming.py`, `startswith`).

    Args:
        without: What should have come before it.
    """
    return Unproven(f"[DONE] came without {without}", advice) if event.data.startswith(DONE) else None


def upstream_error(detail: dict[str, Any], body: object) -> UpstreamError:
    """
    Convert a provider's error object to an `UpstreamError`.

    Args:
        detail: The object that holds `message` and `type` or `code`.
        body: Everything that was sent.
    """
    kind = detail.get("type") or detail.get("code") or ""
    message = detail.get("message") or detail.get("detail") or ""
    text = str(message)[:500]
    return UpstreamError(f"the provider reports an error: {text or kind or 'no message'}", type=str(kind), body=body)


class _EndedProtocol(ResumeProtocol, Doubted, Structured, Glance):
    """
    A protocol of plain events whose end the caller specifies.

    Args:
        text: Where to find the visible text: a dotted path into the JSON of `data`, or a callable of the event (→ text or
            `None`); `None`: all of `data` is text.
        stream_id: Where to find the stream's id: a dotted path into the first events, or `"header:NAME"`.
        keep: Names of headers of the first response to keep in `StreamState.kept` and in checkpoints.
    """

    _tied = False
    """Closing the connection ends the generation."""

    def __init__(
        self,
        end: End,
        *,
        names: Iterable[str] = (),
        text: TextOf | None = None,
        stream_id: str | None = None,
        keep: Collection[str] = (),
    ) -> None:
        if isinstance(keep, str) or not all(isinstance(name, str) and name for name in keep):
            raise TypeError(f"keep must be a collection of header names, got {keep!r}")
        self._keep = frozenset(name.lower() for name in keep)
        if secret := sorted(self._keep & _SECRET_HEADERS):
            raise ValueError(f"keep must not name anything that grants access, since checkpoints are shared: got {secret[0]!r}")
        if self._keep:
            self.keeps = type(self).keeps | {KEPT + name for name in self._keep}
        if not (text is None or callable(text) or isinstance(text, str)):
            raise TypeError(f"text must be a dotted path into the JSON of data, or a callable of the event, got {text!r}")
        if not (stream_id is None or (isinstance(stream_id, str) and stream_id)):
            raise TypeError(f"stream_id must be a dotted path into the JSON of data, or 'header:NAME', got {stream_id!r}")
        self._text: Callable[[Any], Any] | None = JSONPath(text) if isinstance(text, str) else text
        header, _, header_name = (stream_id or "").partition(":")
        if header == "header" and not header_name:
            raise ValueError("stream_id='header:NAME' needs the name of a header")
        self._id_header = header_name.lower() if header == "header" else None
        self._id_path = JSONPath(stream_id) if stream_id and self._id_header is None else None
        self._end = EndRule(end)
        self.endless = self._end.mode == "never"
        self.alarm = self._end.alarm(names)

    @property
    def promises(self) -> Promises:
        numbered = self.sequence == "contiguous"
        return Promises(resumable=True, numbered=numbered, has_end=self._end.has_end, tied=self._tied)

    def _digest_options(self, given: Mapping[str, object], defaults: Mapping[str, object]) -> str:
        chosen = {name: value for name, value in given.items() if value != defaults[name]}
        if not chosen:
            return ""
        # A callable has no representation that is the same in every process, so only its presence counts.
        text = repr(sorted((name, "callable" if callable(value) else repr(value)) for name, value in chosen.items()))
        return fingerprint("options", text)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        return self._end.judge(event)

    def error(self, event: Any) -> UpstreamError | None:
        return self._end.error(event)

    def reads_json(self, event: Any) -> bool:
        # A callable need not expect JSON. The marker is not JSON, and keep-alive events hold no content.
        if not isinstance(self._text, JSONPath):
            return super().reads_json(event)
        return event.event not in _ALIVE and bool(self._end.deltas(event)) and self._end.judge(event) is None

    def deltas(self, event: Any) -> Sequence[Delta]:
        if self._text is None:
            return self._end.deltas(event)
        if not self._end.deltas(event):
            # The marker is not passed to the callable, which may expect JSON.
            return ()
        value = self._text(event)
        return (Delta("text", value),) if isinstance(value, str) and value else ()

    def has_content(self, event: Any) -> bool | None:
        return False if self._text is None else None

    def _identify(self, state: StreamState, source: Head | Item) -> None:
        """Find the stream's id where `stream_id=` says it is."""
        if isinstance(source, Head):
            known = state.resuming and state.stream_id is not None
            if self._id_header is not None and not known and (value := source.headers.get(self._id_header)):
                state.stream_id = value
            if not state.resuming:
                state.extra.update({KEPT + name: source.headers[name] for name in self._keep if name in source.headers})
        elif self._id_path is not None and (value := self._id_path(source)) is not None:
            state.stream_id = str(value)

    def on_clean_close(self, state: StreamState) -> Verdict:
        match self._end.mode:
            case "auto":
                return Ask()
            case "close":
                return Finished(Outcome.ENDED, verified=True)
            case _:
                return Resume()


def located(state: StreamState, head: Head) -> None:
    """Note the URL at which an unsafe request's answer can be fetched, from its headers (RFC 9110 sections 8.7 and 10.2.2)."""
    location = head.headers.get("location") or head.headers.get("content-location")
    if location and not state.safe and not state.resuming:
        state.location = location


def filled(target: str, state: StreamState) -> str | None:
    """A URL with `{stream_id}` filled in; `None` while the id is not known."""
    if "{stream_id}" not in target:
        return target
    return None if state.stream_id is None else target.replace("{stream_id}", quote(state.stream_id, safe=""))
