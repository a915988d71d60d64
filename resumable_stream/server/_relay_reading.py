"""
Reads the body of an upstream: bytes in, complete events out, and how it ended. No sockets, no clock.

    reading = UpstreamReading(framing, protocol)
    for data in body:
        events = reading.feed(data)          # each as it was sent; an incomplete one is held
    events, ending = reading.close(clean=…)

*Only complete events are kept.* Half of one at a cut is dropped.

*The provider's protocol decides what the end is.* A body that closed without the marker of its protocol was cut, however cleanly
it closed. If the protocol has no marker, a clean close is the end, and the outcome is `ENDED`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from .._contract import Glance, Shared, has_content, is_whole
from .._events import Outcome
from ..framing import NDJSONDecoder, SSEDecoder, VerbatimDecoder
from ..protocols import (
    NDJSON,
    AnthropicMessages,
    GeminiGenerate,
    GeminiInteractions,
    LastEventID,
    OllamaNDJSON,
    OpenAIChat,
    OpenAIResponses,
    ResumeProtocol,
    Settled,
    StreamState,
    Unproven,
)
from ..protocols import Head as ResponseHead
from ._values import Ending, Framing
from .wire import REPORTED

__all__ = ["UpstreamReading", "protocol_of", "text_in"]

_KNOWN: Final = (OpenAIResponses, OpenAIChat, AnthropicMessages, GeminiInteractions, GeminiGenerate, OllamaNDJSON)
_TAIL: Final = 64
_CUT: Final = Ending(outcome=Outcome.FAILED, reason="upstream_cut")
# A complete event as providers write it: an optional name, one line of data. A space after the colon is not part of a value.
_BLOCK: Final = re.compile(rb"(?:event: ?+(.+)\n)?data: ?+(.{1,7}).*\n\n").fullmatch


def protocol_of(method: str, url: str, body: Any, head: ResponseHead, framing: Framing) -> ResumeProtocol | None:
    """
    The protocol that an upstream speaks.

    Args:
        method: Method of the request.
        url: URL of the request; only its path matters.
        body: The JSON of the request, if any.
        head: Head of the answer.
        framing: Framing of the answer.

    Returns:
        `None`: raw bytes, of which only the end is known.
    """
    if framing == "raw":
        return None
    request = StreamState(method, url, body)
    for known in _KNOWN:
        protocol = known.for_request(request)
        if protocol.framing == framing and protocol.matches(request, head):
            return protocol
    return LastEventID() if framing == "sse" else NDJSON()


class UpstreamReading:
    """
    Reads one body.

    Args:
        framing: How it is split into events.
        protocol: How to interpret them; `None`: unknown.
        array: Raw bytes that are one JSON array, so that a missing end is recognised.
        event_bytes: Most bytes of an event.

    Attributes:
        over: An event was the last. Later bytes are kept too, but nobody needs to wait for them.
    """

    def __init__(
        self,
        framing: Framing,
        protocol: ResumeProtocol | None = None,
        *,
        array: bool = False,
        event_bytes: int = 16 << 20,
    ) -> None:
        self.over = False
        self._protocol = protocol
        self._array = array
        self._tail = b""
        self._size = 0
        self._framing = framing
        self._event_bytes = event_bytes
        self._decoder: VerbatimDecoder | None = None
        if framing != "raw":
            inner: Any = NDJSONDecoder(line_bytes=event_bytes)
            if framing == "sse":
                inner = SSEDecoder(event_bytes=event_bytes, line_bytes=event_bytes)
            self._decoder = VerbatimDecoder(inner, framing=framing)
        self._state = StreamState("POST", "")
        self._alarm = Glance.of(protocol).alarm if protocol is not None else None
        self._is_quiet = _quiet(protocol) if framing == "sse" and protocol is not None else None
        # The next bytes begin a new event.
        self._between = True
        self._end: Outcome | None = None
        self._settled: Outcome | None = None
        self._disproved = False
        self._claimed: Outcome | None = None
        self._reported = False
        self._error = self._half = False

    @property
    def broken(self) -> bool:
        """An event is too large, so nothing more can be read."""
        return self._decoder is not None and self._decoder.error is not None

    def feed(self, data: bytes) -> list[bytes]:
        """
        Read a piece.

        Returns:
            The events it completed, as they were sent, with the comments before them.
        """
        if self._decoder is None:
            self._tail = (self._tail + data[-_TAIL:])[-_TAIL:]
            self._size += len(data)
            return [data] if data else []
        events = self._unread(data)
        if events is not None:
            self._decoder.pass_over(len(data))
            return events
        return self._decoded(self._decoder, data)

    def close(self, *, clean: bool) -> tuple[list[bytes], Ending]:
        """
        End the body.

        Args:
            clean: HTTP ended it properly; otherwise the connection broke.

        Returns:
            The last events, and how the stream ended.
        """
        last: list[bytes] = []
        if self._decoder is None:
            cut = not clean or (self._array and self._size > 0 and not self._tail.rstrip().endswith(b"]"))
            return last, _CUT if cut else Ending(outcome=Outcome.COMPLETED if self._array else Outcome.ENDED)
        if self._decoder.error is not None:
            return last, Ending(outcome=Outcome.FAILED, reason="too_long", error="an event of the upstream is too large")
        if clean:
            last = self._last(self._decoder)
        return last, self._ending(clean)

    # --- what a body means

    def _unread(self, data: bytes) -> list[bytes] | None:
        """The events of a piece of complete events, none of which can be the end, judged by their bytes; the usual live case."""
        quiet = self._is_quiet
        if quiet is None or not self._between or self._settled is not None or self._disproved:
            return None
        if not data.endswith(b"\n\n") or b"\r" in data or len(data) > self._event_bytes:
            return None
        if data.count(b"\n\n") == 1:
            return [data] if quiet(data) else None
        # Events that waited for this process arrived together.
        events = [each + b"\n\n" for each in data[:-2].split(b"\n\n")]
        return events if all(map(quiet, events)) else None

    def _decoded(self, decoder: VerbatimDecoder, data: bytes) -> list[bytes]:
        events = self._read(decoder.feed(data))
        self._between = decoder.idle and not decoder.partial and decoder.error is None
        return events

    def _read(self, items: list[Any]) -> list[bytes]:
        for item in items:
            self._judge(item)
        return [item.wire for item in items]

    def _judge(self, item: Any) -> None:
        protocol, state = self._protocol, self._state
        assert protocol is not None
        if self.over:
            return
        mark: Settled | None = None
        confirmed = False
        if self._alarm is None or item.event in self._alarm.names or item.data[:7] in self._alarm.heads:
            if protocol.error(item) is not None:
                self._error = self.over = True
                return
            end = protocol.end(item)
            if isinstance(end, Unproven):
                confirmed = True
            elif end is not None:
                end = Shared.of(protocol).end_in(state, item, end)
                if isinstance(end, Settled):
                    mark = end
                elif end is not None:
                    self._end, self.over = end, True
                    return
        if self._settled is not None or mark is not None or confirmed or self._disproved:
            self._settle(item, mark, confirmed)

    def _settle(self, item: Any, mark: Settled | None, confirmed: bool) -> None:
        """As in the client half: a piece of the answer that follows an outcome disproves it."""
        protocol = self._protocol
        assert protocol is not None
        if confirmed:
            # The marker proves nothing by itself, but confirms an earlier claim.
            mark = Settled(self._claimed) if self._settled is None and self._claimed is not None else None
            # With the outcome before it, it is the last event.
            self.over = mark is not None or self._settled is not None
            if mark is None:
                return
        doubted = self._disproved or self._settled not in (None, Outcome.ENDED)
        if not confirmed and doubted and (mark is None or mark.outcome is not None) and has_content(protocol, item):
            self._disproved, self._settled = True, None
            self._claimed = mark.outcome if mark is not None else None
        elif mark is not None and (self._settled is None or mark.outcome is not Outcome.ENDED):
            self._disproved, self._claimed = False, None
            self._settled = mark.outcome

    def _last(self, decoder: VerbatimDecoder) -> list[bytes]:
        """Events that only the end of the body completes: an event or a line without its last line end."""
        if self._framing == "ndjson":
            items = decoder.eof()
            self._read(items)
            return [item.wire if item.wire.endswith(b"\n") else item.wire + b"\n" for item in items]
        self._half = decoder.partial
        ended_line = not decoder.in_line
        items = decoder.unfinished()
        if not all(is_whole(item, ended_line=ended_line) for item in items):
            # Its name may be that of the last event, but half an event is not the end.
            return []
        found = self._read(items)
        # Without its blank line it may be half an event, unless it is the one that ends the stream.
        whole = self.over or self._settled is not None
        self._half = self._half and not whole
        return found if whole else []

    def _ending(self, clean: bool) -> Ending:
        assert self._protocol is not None and self._decoder is not None
        if self._error:
            return Ending(outcome=Outcome.FAILED, reason=REPORTED)
        outcome = self._end
        if self._settled is not None and outcome in (None, Outcome.COMPLETED):
            outcome = self._settled
        if outcome is None:
            half = self._half or (self._framing == "ndjson" and self._decoder.partial)
            if not clean or half or self._protocol.promises.has_end:
                return _CUT
            outcome = Outcome.ENDED
        failed = outcome in (Outcome.FAILED, Outcome.CANCELLED)
        return Ending(outcome=outcome, reason=REPORTED if failed else None)


def _quiet(protocol: ResumeProtocol) -> Callable[[bytes], bool]:
    """A test whether the bytes of an event show that it neither ends the stream nor is an error."""
    glance = Glance.of(protocol)
    alarm = glance.alarm
    if alarm is None:
        return lambda event: event.startswith(b"data: {") and event.count(b"\n") == 2 and glance.quiet(event)
    names = frozenset(name.encode() for name in alarm.names)
    unnamed = "message" not in alarm.names
    heads = frozenset(head.encode() for head in alarm.heads)

    def quiet(event: bytes) -> bool:
        found = _BLOCK(event)
        if found is None:
            return False
        name, head = found.groups()
        return (unnamed if name is None else name not in names) and head not in heads

    return quiet


# --- the text of a stream of unknown protocol ---------------------------------------------------------------------------

_TEXTS: Final = (OpenAIChat(), AnthropicMessages(), OpenAIResponses(), GeminiGenerate(), OllamaNDJSON(), GeminiInteractions())


def text_in(event: Any) -> str | None:
    """The visible text in an event of any provider that a relay knows; for `GET …/message`."""
    try:
        body = event.json()
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    kind = str(body.get("type", ""))
    if "choices" in body:
        protocol: ResumeProtocol = _TEXTS[0]
    elif kind.startswith("content_block"):
        protocol = _TEXTS[1]
    elif kind.startswith("response."):
        protocol = _TEXTS[2]
    elif "candidates" in body:
        protocol = _TEXTS[3]
    elif "done" in body:
        protocol = _TEXTS[4]
    elif "event_type" in body:
        protocol = _TEXTS[5]
    else:
        return None
    # Of several answers to one prompt, only the first: joined, they would not be a text.
    several = "choices" in body or "candidates" in body
    return "".join(each.text for each in protocol.deltas(event) if each.kind == "text" and not (several and each.index)) or None
