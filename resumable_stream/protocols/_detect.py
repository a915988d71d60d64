"""Detect which protocol a response speaks if the caller named none, and find the one that a checkpoint names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from .._contract import Head, ResumeProtocol, StreamState
from ._registry import PLAIN, SPECIFIC
from .relayed import Relayed, can_relay, relayed

__all__ = ["claimed", "detect", "named"]

_RELAYED: Final = re.compile(r"Relayed\((\w+)\)", re.ASCII)


def detect(request: StreamState, head: Head) -> ResumeProtocol | None:
    """
    Choose by the request and the head of its response.

    Returns:
        A protocol with its default options, wrapped in `Relayed` if the answer came through a relay; or `None` if the response
        is not a stream (a page, a JSON document).
    """
    found = _first("matches", SPECIFIC, request, head) or claimed(request, head)
    return found or _first("matches", PLAIN, request, head)


def claimed(request: StreamState, head: Head) -> ResumeProtocol | None:
    """The protocol whose stream the request asks for, if the response has an unexpected content type or none at all."""
    if head.content_type == "text/event-stream":
        # An event stream, but not of the kind that the request suggests.
        return None
    return _first("claims", (*SPECIFIC, *PLAIN), request, head)


def _first(
    asked: Literal["matches", "claims"], candidates: Iterable[type[ResumeProtocol]], request: StreamState, head: Head
) -> ResumeProtocol | None:
    """The first protocol that says yes, wrapped in `Relayed` if the response came through a relay."""
    made = (candidate.for_request(request) for candidate in candidates)
    found = next((protocol for protocol in made if getattr(protocol, asked)(request, head)), None)
    return relayed(found, request, head) if found is not None else None


def named(name: str) -> ResumeProtocol | None:
    """The protocol that a checkpoint names, with default options; `None` for one of your own."""
    if (within := _RELAYED.fullmatch(name)) is not None:
        inner = named(within[1])
        return Relayed(inner) if inner is not None and can_relay(inner) else None
    return next((candidate() for candidate in (*SPECIFIC, *PLAIN) if candidate.__name__ == name), None)
