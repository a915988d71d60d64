"""What the head of a response means if the protocol has no opinion (rules 8 and 9), and how errors report it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from .._checkpoint import public_url
from .._contract import Consume, Finished, Head, Lost, Reject, ResumeProtocol, Retry, StreamState, Verdict
from .._errors import ResponseRejected, UnexpectedContentType
from .._events import Outcome
from .settings import Settings

__all__ = ["STREAMS", "default_verdict", "has_right_type", "rejection", "unexpected_type"]

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


def default_verdict(
    status: int, state: StreamState, protocol: ResumeProtocol | None, settings: Settings, *, repeatable: bool = False
) -> Verdict:
    """
    The default verdict for each status.

    Args:
        repeatable: The request may be sent again even if the server received it.
    """
    resuming = state.resuming
    if status == 204:
        if protocol is not None and resuming and protocol.promises.has_end:
            return Lost("the server has nothing more, and the end of the stream was never seen")
        return Finished(Outcome.ENDED, verified=True)
    if status in STREAMS:
        return Consume()
    if resuming and status in (404, 410):
        return Lost(f"the server answered {status}: it no longer holds this stream")
    if resuming and status in (405, 501):
        return Lost(f"the server answered {status}: this stream cannot be resumed", expired=False)
    return Retry() if status in settings.statuses and (repeatable or status in NOT_ACCEPTED) else Reject()


def rejection(head: Head, body: bytes, message: str, *, method: str, private: Collection[str] = ()) -> ResponseRejected:
    """The error for a status, with what the server said and nothing that grants access."""
    headers = {name: value for name, value in head.headers.items() if name not in _PRIVATE}
    for name in _URLS & headers.keys():
        try:
            headers[name] = public_url(headers[name], private)
        except ValueError:
            del headers[name]
    text = f"{message or f'the server answered {head.status}'} to {method} {public_url(head.url, private)}"
    shown = body[:_QUOTED].decode("utf-8", "replace").strip()
    return ResponseRejected(f"{text}: {shown}" if shown else text, status=head.status, headers=headers, body=body)


def has_right_type(protocol: ResumeProtocol, state: StreamState, head: Head) -> bool:
    """Whether this response, by its content type, may be a stream of the protocol."""
    kind, kinds = head.content_type, protocol.content_types
    return not kind or not kinds or kind in kinds or (kind in _VAGUE and protocol.claims(state, head))


def unexpected_type(expected: str, head: Head, private: Collection[str] = ()) -> UnexpectedContentType:
    """The error for a response that is not a stream of the expected kind."""
    seen = head.content_type or "none"
    text = f"received content type {seen} from {public_url(head.url, private)}, expected {expected}"
    return UnexpectedContentType(text, expected=expected, received=head.content_type)
