"""
Any SSE or chunked endpoint as an iterator that continues exactly where it stopped.

    import resumable_stream as rs

    with rs.connect("GET", url) as stream:
        for event in stream:
            print(event.data)

Importing this package imports no HTTP client and nothing optional: names are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import compat, protocols, server, stores, testing, transports
    from ._api import aconnect, aresume, connect, resume
    from ._checkpoint import Checkpoint
    from ._core.settings import Stats
    from ._drivers.async_ import AsyncResumableStream
    from ._drivers.sync import ResumableStream
    from ._errors import (
        CursorExpired,
        DeadlineExceeded,
        EventTooLarge,
        GapError,
        HistoryGone,
        HubDraining,
        KeyReused,
        LimitReached,
        LogUnavailable,
        MessageUnknown,
        NotResumable,
        OriginMismatch,
        ProtocolViolation,
        ReaderCut,
        ReplayDiverged,
        ResponseRejected,
        ResumableStreamError,
        RetriesExhausted,
        StoreError,
        StreamBusy,
        StreamClosed,
        StreamConsumed,
        StreamEnded,
        StreamInterrupted,
        StreamReset,
        StreamUnknown,
        UnexpectedContentType,
        UpstreamError,
        error_of,
    )
    from ._events import Chunk, Delta, Gap, Outcome, StreamEvent, TextReset
    from ._notices import (
        Connected,
        CursorIgnored,
        Disconnected,
        DuplicateDropped,
        EndUnverified,
        Finished,
        GapFound,
        Lost,
        Notice,
        NumberingStopped,
        NumberOutOfOrder,
        Restarted,
        Retrying,
    )
    from ._policy import RetryPolicy
    from ._request import request_key
    from ._settings import AUTO, Limits, Timeouts
    from .transports import stream_of

__version__ = "0.1.0"

_HOMES = {
    "._api": ("connect", "aconnect", "resume", "aresume"),
    "._drivers.sync": ("ResumableStream",),
    "._drivers.async_": ("AsyncResumableStream",),
    "._events": ("StreamEvent", "Chunk", "Delta", "TextReset", "Gap", "Outcome"),
    "._checkpoint": ("Checkpoint",),
    "._policy": ("RetryPolicy",),
    "._request": ("request_key",),
    "._settings": ("Timeouts", "Limits", "AUTO"),
    "._core.settings": ("Stats",),
    ".transports": ("stream_of",),
    "._notices": (
        "Notice",
        "Connected",
        "Disconnected",
        "Retrying",
        "GapFound",
        "DuplicateDropped",
        "EndUnverified",
        "NumberingStopped",
        "NumberOutOfOrder",
        "CursorIgnored",
        "Lost",
        "Restarted",
        "Finished",
    ),
    "._errors": (
        "ResumableStreamError",
        "StreamInterrupted",
        "NotResumable",
        "CursorExpired",
        "RetriesExhausted",
        "GapError",
        "ReplayDiverged",
        "StreamReset",
        "DeadlineExceeded",
        "ResponseRejected",
        "ProtocolViolation",
        "EventTooLarge",
        "UnexpectedContentType",
        "UpstreamError",
        "OriginMismatch",
        "StoreError",
        "LogUnavailable",
        "MessageUnknown",
        "StreamUnknown",
        "StreamEnded",
        "KeyReused",
        "HistoryGone",
        "HubDraining",
        "LimitReached",
        "ReaderCut",
        "StreamBusy",
        "StreamClosed",
        "StreamConsumed",
        "error_of",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("protocols", "stores", "testing", "compat", "transports", "server")

__all__ = [
    # opening a stream
    "connect",
    "aconnect",
    "resume",
    "aresume",
    "ResumableStream",
    "AsyncResumableStream",
    # what it yields
    "StreamEvent",
    "Chunk",
    "Delta",
    "TextReset",
    "Gap",
    "Outcome",
    # below an SDK
    "stream_of",
    # its place
    "Checkpoint",
    "request_key",
    # settings
    "RetryPolicy",
    "Timeouts",
    "Limits",
    "AUTO",
    # what happened
    "Stats",
    "Notice",
    "Connected",
    "Disconnected",
    "Retrying",
    "GapFound",
    "DuplicateDropped",
    "NumberingStopped",
    "NumberOutOfOrder",
    "CursorIgnored",
    "Lost",
    "Restarted",
    "EndUnverified",
    "Finished",
    # errors
    "ResumableStreamError",
    "StreamInterrupted",
    "NotResumable",
    "CursorExpired",
    "RetriesExhausted",
    "GapError",
    "ReplayDiverged",
    "StreamReset",
    "DeadlineExceeded",
    "ResponseRejected",
    "ProtocolViolation",
    "EventTooLarge",
    "UnexpectedContentType",
    "UpstreamError",
    "OriginMismatch",
    "StoreError",
    "LogUnavailable",
    "MessageUnknown",
    "StreamUnknown",
    "StreamEnded",
    "KeyReused",
    "HistoryGone",
    "HubDraining",
    "LimitReached",
    "ReaderCut",
    "StreamBusy",
    "StreamClosed",
    "StreamConsumed",
    "error_of",
    # modules
    "protocols",
    "stores",
    "testing",
    "compat",
    "transports",
    "server",
]


def __getattr__(name: str) -> object:
    if (home := _HOME_OF.get(name)) is not None:
        value = getattr(importlib.import_module(home, __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
