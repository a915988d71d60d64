"""
How to resume each kind of endpoint: one module per wire protocol, and the base class for your own.

The modules are pure functions of frames; they import no HTTP client.
"""

from __future__ import annotations

from .._contract import (
    Alarm,
    Answer,
    Ask,
    Backfill,
    Claim,
    Consume,
    Document,
    Finished,
    Head,
    Interrupted,
    Lost,
    Over,
    Position,
    Promises,
    Reject,
    Request,
    Resume,
    ResumeProtocol,
    Retry,
    Settled,
    Snapshot,
    StreamState,
    Unproven,
    Verdict,
    Verify,
)
from . import _registry
from ._detect import detect, named
from ._registry import *  # noqa: F403  # what it lists, and type checkers know

__all__ = [
    # to write your own
    "ResumeProtocol",
    "Request",
    "Head",
    "StreamState",
    "Claim",
    "Unproven",
    "Position",
    "Alarm",
    "Promises",
    "Settled",
    "Answer",
    "Snapshot",
    "Backfill",
    "Document",
    # verdicts
    "Verdict",
    "Ask",
    "Consume",
    "Finished",
    "Interrupted",
    "Lost",
    "Over",
    "Reject",
    "Resume",
    "Retry",
    "Verify",
    # choosing
    "detect",
    "named",
]
__all__ += _registry.__all__
