"""Optional abilities of a protocol: judging an event at a glance, and naming the events that must be JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from .._errors import ProtocolViolation
from .protocol import ResumeProtocol
from .values import SENTINEL, Alarm

__all__ = ["alarm_of", "is_whole", "not_json", "quiet_of", "readable"]

_EXCERPT: Final = 80
"""How many characters of an event that is not JSON its error quotes."""


def alarm_of(protocol: ResumeProtocol) -> Alarm | None:
    """The protocol's alarm, or `None` if a subclass overrides how events are judged, which an inherited alarm cannot know."""
    return protocol.alarm if _covers(protocol, "alarm") else None


def quiet_of(protocol: ResumeProtocol) -> Callable[[bytes], bool] | None:
    """The protocol's `quiet()`, if it has one and no alarm, and no subclass overrides how events are judged."""
    known = protocol.alarm is None and type(protocol).quiet is not ResumeProtocol.quiet and _covers(protocol, "quiet")
    return protocol.quiet if known else None


def _covers(protocol: ResumeProtocol, name: str) -> bool:
    """Whether `name` is declared by the class that judges events, or by a subclass of it."""
    classes = type(protocol).__mro__

    def declared(attribute: str) -> int:
        return next((at for at, each in enumerate(classes) if attribute in vars(each)), len(classes))

    at = declared(name)
    if name in vars(protocol):
        # One of our constructors set it. A subclass from elsewhere that overrides the judging is asked about every event.
        ours = __name__.partition(".")[0]
        at = next(at for at, each in enumerate(classes) if each.__module__.partition(".")[0] == ours)
    return all(at <= declared(judge) for judge in ("end", "error", "gap"))


def not_json(event: Any, offset: int) -> ProtocolViolation:
    """
    The error for an event that must be JSON and is not.

    Args:
        offset: The event's number in the stream.
    """
    data = event.data
    excerpt = data if len(data) <= _EXCERPT else f"{data[: _EXCERPT - 1]}…"
    named = "" if event.event == "message" else f" ({event.event})"
    text = f"expected JSON as the data of event {offset}{named}, received {excerpt!r}"
    return ProtocolViolation(text, offset=offset, excerpt=excerpt)


def readable(event: Any) -> bool:
    """Whether an event's data is JSON, blank or `[DONE]`."""
    try:
        event.json()
    except ValueError:
        data = event.data
        return not data or data.isspace() or data.startswith(SENTINEL)
    return True


def is_whole(event: Any, *, ended_line: bool) -> bool:
    """
    Whether an event is whole, although the body closed before the blank line that ends it.

    The standard drops such an event, since nothing shows that it is whole. Valid JSON, `[DONE]` or a complete line does.

    Args:
        ended_line: The last line of the body is complete.
    """
    return ended_line or event.data.startswith(SENTINEL) or _is_json_text(event.data)


def _is_json_text(text: str) -> bool:
    """Whether this is a complete JSON object or array. A piece of a number or a word may be valid JSON too."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
