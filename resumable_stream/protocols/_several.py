"""
A request that may ask for several answers at once. They come interleaved, each with its own end, and cannot be resumed.

The stream is whole once all of them have ended; the worst of their outcomes is the stream's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from .._contract import Memo, Promises, Request, ResumeProtocol, Settled, Shared, StreamState, Structured
from .._events import Delta, Outcome
from ._json import documents_of

__all__ = ["finished", "worst_of"]

# The outcome of several parallel answers is the first of these that any of them has.
_WORST_FIRST: Final = (Outcome.FAILED, Outcome.INCOMPLETE, Outcome.COMPLETED)
# The worst outcome so far, and a bit for each part that has ended.
_FINISHED: Final = re.compile(r"(failed|incomplete|completed) ([0-9a-f]{1,1024})")


class _Several(ResumeProtocol, Shared, Structured):
    """
    Args:
        number: How many answers there are.

    Attributes:
        counted_as: Name of the option that says so.
    """

    promises = Promises(resumable=False, numbered=False, has_end=True, tied=True)
    keeps = frozenset({"finished"})
    counted_as: ClassVar[str]

    def __init__(self, number: int) -> None:
        if type(number) is not int or number < 1:
            raise ValueError(f"{self.counted_as} must be a number from 1, got {number!r}")
        self._number = number

    @property
    def options(self) -> str:
        return "" if self._number == 1 else f"{self.counted_as}={self._number}"

    @staticmethod
    def asked(request: StreamState) -> int:
        """The number of answers that a request asks for."""
        raise NotImplementedError

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        return cls(**{cls.counted_as: cls.asked(request)})

    def first_request(self, state: StreamState) -> Request:
        asked, name = self.asked(state), self.counted_as
        if isinstance(state.json, dict) and asked != self._number:
            raise ValueError(f"the request asks for {asked} {name}: pass {self.name}({name}={asked}), got {name}={self._number}")
        return super().first_request(state)

    # A proxy may have joined several documents into one event.

    def reads_json(self, event: Any) -> bool:
        return event.event == "message" and not documents_of(event)

    def deltas(self, event: Any) -> tuple[Delta, ...]:
        return tuple(delta for document in documents_of(event) for delta in self.deltas_of(document))

    def deltas_of(self, document: dict[str, Any]) -> Iterator[Delta]:
        """The content of one document."""
        raise NotImplementedError


def worst_of(outcomes: Iterable[Outcome], state: StreamState | None = None) -> Outcome:
    """The outcome of an answer whose parts ended with `outcomes`, together with those that `finished()` has noted."""
    found = {*outcomes, *_noted(state)[0]} if state is not None else set(outcomes)
    return next(outcome for outcome in _WORST_FIRST if outcome in found)


@dataclass(slots=True)
class _Finished(Memo):
    finished: str = ""


def finished(state: StreamState, parts: int, ended: Iterable[tuple[Any, Outcome]]) -> Settled | None:
    """
    Note which of several parallel answers have ended, in the stream's memo.

    Args:
        parts: The number of answers.
        ended: Index and outcome of each answer that ends now.

    Returns:
        The worst outcome of all, once the last of them has ended.
    """
    outcomes, bits = _noted(state)
    for index, outcome in ended:
        outcomes.append(outcome)
        if type(index) is int and 0 <= index < parts:
            bits |= 1 << index
    if not outcomes:
        return None
    outcome = worst_of(outcomes)
    state.memo(_Finished).finished = f"{outcome.value} {bits:x}"
    return Settled(outcome) if bits.bit_count() == parts else None


def _noted(state: StreamState) -> tuple[list[Outcome], int]:
    # A checkpoint can contain anything, so this may be malformed.
    known = _FINISHED.fullmatch(state.memo(_Finished).finished)
    return ([Outcome(known[1])], int(known[2], 16)) if known is not None else ([], 0)
