"""What the head of a response means (rules 8 to 10), by the protocol or the table of statuses, and how errors report it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._checkpoint import public_url
from .._contract import Consume, Doubted, Finished, Head, Lost, Reject, Request, ResumeProtocol, Retry, StreamState, Verdict
from .._errors import ResponseRejected, ResumableStreamError, UnexpectedContentType
from .._events import Outcome
from .plan import Done, Next, Stop, TryAgain
from .requests import Requests
from .settings import Settings

__all__ = ["STREAMS", "Heads", "no_stream"]

# A stream usually comes with 200. Some servers answer the POST that starts one with 201 or 202; 206 is a range.
STREAMS: Final = frozenset({200, 201, 202, 206})
# RFC 9110 and the providers' pages: these say that the request was not accepted (529: Anthropic, overloaded).
NOT_ACCEPTED: Final = frozenset({425, 429, 503, 529})
# Headers that grant access, or that hold URLs in their own syntax; they are kept out of errors.
_PRIVATE: Final = ("set-cookie", "set-cookie2", "authorization", "authentication-info", "mcp-session-id", "link", "refresh")
_URLS: Final = frozenset({"location", "content-location"})
# Content types that servers and proxies use for unknown bodies (RFC 9110 section 8.3; RFC 2045 section 5.2).
_VAGUE: Final = frozenset({"text/plain", "application/octet-stream"})
# How many characters of a provider's error document are quoted.
_QUOTED: Final = 200


@dataclass(slots=True)
class Heads:
    """Decides by what the other parts know; it has no state of its own."""

    protocol: ResumeProtocol
    requests: Requests
    settings: Settings

    def judge(self, head: Head, body: bytes, settled: Outcome | None) -> Verdict | Next:
        """
        What follows from a head.

        Args:
            body: The body of an error, as far as it was read.
            settled: The outcome that an event settled.

        Returns:
            `Consume`: the body is to be read. Any other verdict is to be followed as for a close.
        """
        protocol, requests, state = self.protocol, self.requests, self.requests.state
        found = protocol.on_status(head.status, head.headers, body, state)
        if found is None:
            found = self._default_verdict(head.status)
        if isinstance(found, Consume):
            if found.any_type or found.whole or _has_right_type(protocol, state, head):
                return found
            return Stop(_unexpected_type(" or ".join(protocol.content_types), head, state))
        if settled is not None and Doubted.of(protocol).resumes_settled and not isinstance(found, Retry):
            # The request was only for what may follow the outcome.
            return Done(settled)
        match found:
            case Reject() if head.status in (401, 403) and requests.refresh():
                # Credentials may expire during a long answer; the client's auth, or a callable `headers`, may return new ones.
                return requests.again()
            case Reject(message):
                return Stop(self._rejection(head, body, message))
            case Retry(message):
                return TryAgain(f"status {head.status}", self._rejection(head, body, message))
        return found

    def _default_verdict(self, status: int) -> Verdict:
        """The verdict on each status if the protocol has no opinion."""
        resuming = self.requests.state.resuming
        if status == 204:
            if resuming and self.protocol.promises.has_end:
                return Lost("the server has nothing more, and the end of the stream was never seen")
            return Finished(Outcome.ENDED, verified=True)
        if status in STREAMS:
            return Consume()
        if resuming and status in (404, 410):
            return Lost(f"the server answered {status}: it no longer holds this stream")
        if resuming and status in (405, 501):
            return Lost(f"the server answered {status}: this stream cannot be resumed", expired=False)
        again = status in self.settings.statuses and (self.requests.may_repeat() or status in NOT_ACCEPTED)
        return Retry() if again else Reject()

    def redirect(self, head: Head) -> Request | Stop:
        """The request that follows a redirect, or why it is not followed."""
        most = self.settings.limits.redirects
        if self.requests.redirects >= most:
            return Stop(self._rejection(head, b"", f"more than {most} redirects"))
        try:
            return self.requests.redirect(head)
        except ResumableStreamError as error:
            return Stop(error)

    def _rejection(self, head: Head, body: bytes, message: str) -> ResponseRejected:
        """The error for a status, with what the server said and nothing that grants access."""
        latest, state = self.requests.latest, self.requests.state
        headers = {name: value for name, value in head.headers.items() if name not in _PRIVATE}
        for name in _URLS & headers.keys():
            try:
                headers[name] = public_url(headers[name], state.private)
            except ValueError:
                del headers[name]
        method = latest.method if latest is not None else state.method
        text = f"{message or f'the server answered {head.status}'} to {method} {public_url(head.url, state.private)}"
        shown = body[:_QUOTED].decode("utf-8", "replace").strip()
        return ResponseRejected(f"{text}: {shown}" if shown else text, status=head.status, headers=headers, body=body)


def _has_right_type(protocol: ResumeProtocol, state: StreamState, head: Head) -> bool:
    """Whether this response, by its content type, may be a stream of the protocol."""
    kind, kinds = head.content_type, protocol.content_types
    return not kind or not kinds or kind in kinds or (kind in _VAGUE and protocol.claims(state, head))


def no_stream(head: Head, state: StreamState) -> UnexpectedContentType:
    """The error for a response in which no protocol was detected."""
    expected = "a stream (text/event-stream, application/x-ndjson or bytes); pass protocol= if this is one"
    return _unexpected_type(expected, head, state)


def _unexpected_type(expected: str, head: Head, state: StreamState) -> UnexpectedContentType:
    """The error for a response that is not a stream of the expected kind."""
    seen = head.content_type or "none"
    text = f"received content type {seen} from {public_url(head.url, state.private)}, expected {expected}"
    return UnexpectedContentType(text, expected=expected, received=head.content_type)
