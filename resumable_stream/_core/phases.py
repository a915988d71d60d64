"""
The phases of a stream, and which inputs of the machine are legal in each.

`TRANSITIONS` is the whole table: for each phase the inputs that a driver may give, and the phases that may follow. The drawing in
docs/architecture.md is generated from it, and the core's tests check the machine against it.

An input that is not in the table is a driver's mistake, such as two reports on one action. It raises `IllegalInput`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

__all__ = ["TRANSITIONS", "IllegalInput", "Phase"]


class Phase(enum.Enum):
    """
    The phase of a stream.

    Attributes:
        BETWEEN: Nothing is under way; `next()` returns what follows.
        CONNECTING: A request of the stream was sent, and its head has not arrived.
        JUDGING: The head was an error status; its explanation is being read.
        READING: A body is open and being read.
        ASKING: A side request was sent: for the run's status, its stored result, or its history.
        OVER: The stream has ended or failed.
    """

    BETWEEN = "between"
    CONNECTING = "connecting"
    JUDGING = "judging"
    READING = "reading"
    ASKING = "asking"
    OVER = "over"


class IllegalInput(RuntimeError):
    """A driver gave an input that cannot happen in this phase."""

    def __init__(self, phase: Phase, given: str) -> None:
        legal = ", ".join(f"{name}()" for name in TRANSITIONS[phase])
        super().__init__(f"{given}() is not possible while the stream is {phase.value}: expected one of {legal}")


_BETWEEN, _CONNECTING, _JUDGING, _READING, _ASKING, _OVER = Phase

TRANSITIONS: Final[Mapping[Phase, Mapping[str, frozenset[Phase]]]] = {
    _BETWEEN: {
        "next": frozenset(Phase),
        "put_back": frozenset({_BETWEEN}),
        "woken": frozenset({_BETWEEN}),
    },
    _CONNECTING: {
        "receive_head": frozenset({_READING, _BETWEEN}),
        "connect_failed": frozenset({_BETWEEN}),
        "put_back": frozenset({_BETWEEN}),
    },
    _JUDGING: dict.fromkeys(("receive_answer", "fetch_failed", "put_back"), frozenset({_BETWEEN})),
    _READING: {
        "next": frozenset({_READING, _BETWEEN}),
        "put_back": frozenset({_READING}),
        "receive_data": frozenset({_READING}),
        "receive_eof": frozenset({_READING}),
        "read_failed": frozenset({_BETWEEN}),
        "read_timed_out": frozenset({_BETWEEN}),
    },
    _ASKING: dict.fromkeys(("receive_answer", "fetch_failed", "put_back"), frozenset({_BETWEEN})),
    _OVER: {
        "next": frozenset({_OVER}),
        "put_back": frozenset({_BETWEEN}),
    },
}
