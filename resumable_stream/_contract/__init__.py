"""
The values and verdicts that a protocol and the core exchange. Neither imports the other; both import this package.
"""

from __future__ import annotations

from .abilities import alarm_of, is_whole, not_json, quiet_of, readable
from .origins import origin_of, resolved, same_origin
from .protocol import Detect, ResumeProtocol
from .values import (
    KEPT,
    KEY,
    SENTINEL,
    Alarm,
    Answer,
    Backfill,
    Claim,
    Document,
    Head,
    Position,
    Promises,
    Request,
    Snapshot,
    StreamState,
)
from .verdicts import Ask, Consume, Finished, Interrupted, Lost, Over, Reject, Resume, Retry, Settled, Unproven, Verdict, Verify

__all__ = [
    "Alarm",
    "Answer",
    "Ask",
    "Backfill",
    "Claim",
    "Consume",
    "Detect",
    "Document",
    "Finished",
    "Head",
    "Interrupted",
    "KEPT",
    "KEY",
    "Lost",
    "Over",
    "Position",
    "Promises",
    "Reject",
    "Request",
    "Resume",
    "ResumeProtocol",
    "Retry",
    "SENTINEL",
    "Settled",
    "Snapshot",
    "StreamState",
    "Unproven",
    "Verdict",
    "Verify",
    "alarm_of",
    "is_whole",
    "not_json",
    "origin_of",
    "quiet_of",
    "readable",
    "resolved",
    "same_origin",
]
