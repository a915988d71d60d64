"""What the core has to ask a protocol, and what some answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from .._errors import ProtocolViolation
from .abilities import Doubted, Glance
from .protocol import ResumeProtocol
from .values import SENTINEL, Alarm

__all__ = ["alarm_of", "has_content", "is_whole", "not_json", "overrides", "placing", "quiet_of", "readable"]

_EXCERPT: Final = 80
"""How many characters of an event that is not JSON its error quotes."""
_JUDGES: Final = ("end", "error", "gap")


def overrides(protocol: ResumeProtocol, *names: str) -> bool:
    """Whether the protocol has its own in place of any of these methods of `ResumeProtocol`."""
    return any(getattr(type(protocol), name) is not getattr(ResumeProtocol, name) for name in names)


def alarm_of(protocol: ResumeProtocol) -> Alarm | None:
    """The protocol's alarm, or `None` if a subclass overrides how events are judged, which an inherited alarm cannot know."""
    return Glance.of(protocol).alarm if _covers(protocol, "alarm", *_JUDGES) else None


def quiet_of(protocol: ResumeProtocol) -> Callable[[bytes], bool] | None:
    """The protocol's `quiet()`, if it has one and no alarm, and no subclass overrides how events are judged."""
    glance = Glance.of(protocol)
    return glance.quiet if glance.alarm is None and _covers(protocol, "quiet", *_JUDGES) else None


def placing(protocol: ResumeProtocol) -> Callable[[Sequence[Any]], None] | None:
    """What writes the positions into a batch of events; `None`: the decoder has done it, as for plain SSE."""
    if _covers(protocol, "place", "position"):
        glance = Glance.of(protocol)
        return glance.place if glance.places else None
    return partial(_place, protocol) if overrides(protocol, "position") else None


def _place(protocol: ResumeProtocol, events: Sequence[Any]) -> None:
    for event in events:
        cursor, event.sequence, event.own_id = protocol.position(event)
        event.moves = cursor is not None
        if cursor is not None:
            event.cursor = cursor


def _covers(protocol: ResumeProtocol, name: str, *methods: str) -> bool:
    """Whether `name`, of `Glance`, is declared by the class that has these methods, or by a subclass of it."""
    classes = type(protocol).__mro__

    def declared(attribute: str) -> int:
        return next((at for at, each in enumerate(classes) if attribute in vars(each) and each is not Glance), len(classes))

    at = declared(name)
    if name in vars(protocol):
        # One of our constructors set it. A subclass from elsewhere that overrides the methods is called for every event.
        ours = __name__.partition(".")[0]
        at = next(at for at, each in enumerate(classes) if each.__module__.partition(".")[0] == ours)
    return at < len(classes) and all(at <= declared(method) for method in methods)


def has_content(protocol: ResumeProtocol, event: Any) -> bool:
    """Whether an event brings a piece of the answer, which disproves an outcome settled before it."""
    found = Doubted.of(protocol).has_content(event)
    return overrides(protocol, "deltas") and any(delta.text for delta in protocol.deltas(event)) if found is None else found


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
