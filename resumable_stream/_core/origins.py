"""Where a request may go (rule 10): how redirects are followed."""

from __future__ import annotations

from typing import Final

from .._contract import Head, Request, origin_of, resolved
from .._errors import OriginMismatch

__all__ = ["REDIRECTS", "redirected"]

REDIRECTS = (301, 302, 303, 307, 308)


# A protocol's own headers that grant no access. Others may, such as MCP's session id.
_HARMLESS: Final = frozenset({"accept", "accept-encoding", "range", "if-range", "last-event-id"})


def redirected(request: Request, head: Head, cursor: str | None) -> Request:
    """
    The request that follows a redirect.

    Same origin: unchanged, with the body if the method stays the same (RFC 9110 section 15.4).
    Another origin: only a GET, without anything that belongs to the caller or the client. The cursor is sent along. If the
    protocol set another header, the answer without it could differ, so the redirect is not followed.

    Raises:
        OriginMismatch: A body or credentials would leave their origin, or TLS would be given up.
        ProtocolViolation: The target is not a URL.
    """
    target, there = resolved(head.url, head.headers["location"])
    method = request.method
    if head.status == 303 or (head.status in (301, 302) and method == "POST"):
        method = "GET"
    here = origin_of(head.url)
    if there == here:
        keeps_body = method == request.method
        return Request(
            method=method,
            url=target,
            headers=request.headers,
            json=request.json if keeps_body else None,
            form=request.form if keeps_body else None,
            repeat="body" if keeps_body and request.repeat in ("all", "body") else None,
            bare=request.bare,
        )
    if request.method != "GET" or (here.startswith("https:") and not there.startswith("https:")):
        raise OriginMismatch(
            f"the server redirects {request.method} from {here} to {there}: not followed, "
            f"{'TLS would be given up' if request.method == 'GET' else 'the body and credentials would leave their origin'}",
            expected=here,
            received=there,
        )
    for name, value in request.headers.items():
        if value is not None and name.lower() not in _HARMLESS and value != cursor:
            raise OriginMismatch(
                f"the server redirects from {here} to {there}: not followed, {name} would leave its origin",
                expected=here,
                received=there,
            )
    return Request(method="GET", url=target, headers=request.headers, bare=True)
