"""What a protocol can do beyond the least: judge an event at a glance, and say which events have to be JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .._errors import ProtocolViolation
from .protocol import ResumeProtocol
from .values import SENTINEL, Alarm

__all__ = ["alarm_of", "not_json", "quiet_of", "readable"]

_EXCERPT: Final = 80
"""Characters of an event that is not JSON, in its error."""


def alarm_of(protocol: ResumeProtocol) -> Alarm | None:
    """Its alarm; `None` where a subclass judges events in its own way, of which an inherited alarm knows nothing."""
    return protocol.alarm if _covers(protocol, "alarm") else None


def quiet_of(protocol: ResumeProtocol) -> Callable[[bytes], bool] | None:
    """Its `quiet()`, where it has one and no alarm, and a subclass does not judge events in its own way."""
    known = protocol.alarm is None and type(protocol).quiet is not ResumeProtocol.quiet and _covers(protocol, "quiet")
    return protocol.quiet if known else None


def _covers(protocol: ResumeProtocol, name: str) -> bool:
    """Was `name` declared by the class that judges events, or by one that extends it?"""
    classes = type(protocol).__mro__

    def declared(attribute: str) -> int:
        return next((at for at, each in enumerate(classes) if attribute in vars(each)), len(classes))

    at = declared(name)
    if name in vars(protocol):
        # A constructor of ours made it. A subclass elsewhere that judges for itself is better asked about every event.
        ours = __name__.partition(".")[0]
        at = next(at for at, each in enumerate(classes) if each.__module__.partition(".")[0] == ours)
    return all(at <= declared(judge) for judge in ("end", "error", "gap"))


def not_json(event: Any, offset: int) -> ProtocolViolation:
    """
    The error of an event that has to be JSON.

    Args:
        offset: Which event of the stream it is.
    """
    data = event.data
    excerpt = data if len(data) <= _EXCERPT else f"{data[: _EXCERPT - 1]}…"
    named = "" if event.event == "message" else f" ({event.event})"
    text = f"expected JSON as the data of event {offset}{named}, received {excerpt!r}"
    return ProtocolViolation(text, offset=offset, excerpt=excerpt)


def readable(event: Any) -> bool:
    """Is the data of an event JSON, or nothing?"""
    try:
        event.json()
    except ValueError:
        data = event.data
        return not data or data.isspace() or data.startswith(SENTINEL)
    return True
