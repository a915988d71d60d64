"""
The server half: streams are kept in a log while they are produced, so that any reader can continue from any position.

Importing it imports no event loop and no optional dependency: names are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answering import HubAnswer
    from .events import Event
    from .generation import Generation
    from .hub import Hub, HubLimits, State, Stream
    from .log import Bells, Cursor, Ending, Head, Message, Span, StreamLog
    from .memory import MemoryLog
    from .places import log_of
    from .portal import SyncHub, SyncSession
    from .redis import RedisLog
    from .relay import Relay
    from .sessions import Session, SessionMessage
    from .sqlite import SQLiteLog
    from .texts import SoFar

_HOMES = {
    ".answering": ("HubAnswer",),
    ".events": ("Event",),
    ".generation": ("Generation",),
    ".hub": ("Hub", "HubLimits", "State", "Stream"),
    ".log": ("Bells", "Cursor", "Ending", "Head", "Message", "Span", "StreamLog"),
    ".memory": ("MemoryLog",),
    ".places": ("log_of",),
    ".portal": ("SyncHub", "SyncSession"),
    ".sessions": ("Session", "SessionMessage"),
    ".texts": ("SoFar",),
    ".redis": ("RedisLog",),
    ".relay": ("Relay",),
    ".sqlite": ("SQLiteLog",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    # generations
    "Hub",
    "HubLimits",
    "HubAnswer",
    "SyncHub",
    "Session",
    "SessionMessage",
    "SyncSession",
    "Generation",
    "Event",
    "SoFar",
    "State",
    "Stream",
    # other people's streams
    "Relay",
    # logs
    "StreamLog",
    "Bells",
    "MemoryLog",
    "RedisLog",
    "SQLiteLog",
    "log_of",
    # what is in them
    "Cursor",
    "Ending",
    "Head",
    "Message",
    "Span",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
