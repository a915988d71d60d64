"""
One JSON value per line (`application/x-ndjson`, `application/jsonl`), as Ollama streams.

The format has no cursor, so it cannot be resumed. A last line without LF is delivered if it is valid JSON.

Source: github.com/ndjson/ndjson-spec, and Ollama's API (docs/api.md of its repository).
"""

from __future__ import annotations

from typing import ClassVar

from .._contract import Finished, Head, Interrupted, Promises, StreamState, Verdict
from .._events import Outcome
from ._ends import End, _EndedProtocol

__all__ = ["NDJSON", "NDJSON_TYPES"]

NDJSON_TYPES = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/json-lines",
)


class NDJSON(_EndedProtocol):
    """
    Lines of JSON. Each becomes a `StreamEvent` whose `data` is the line.

    Args:
        end: A callable of the event (→ bool or `Outcome`): a clean close before it is `StreamInterrupted`.
            `"close"`: a clean close is the end.

    >>> NDJSON(end=lambda event: event.json().get("done"))
    <NDJSON: has_end>
    """

    framing = "ndjson"
    accept = "application/x-ndjson, application/jsonl"
    content_types: ClassVar[tuple[str, ...]] = (*NDJSON_TYPES, "application/json", "text/plain")

    def __init__(self, *, end: End = "close") -> None:
        super().__init__(end)
        if self._end.mode in ("auto", "never"):
            raise ValueError(f"NDJSON cannot ask for more: end must be 'close', a text or a callable, got {end!r}")

    @property
    def promises(self) -> Promises:
        return Promises(resumable=False, numbered=False, has_end=self._end.has_end)

    @property
    def options(self) -> str:
        return self._digest_options({"end": self._end.option}, {"end": "close"})

    def matches(self, request: StreamState, head: Head) -> bool:
        return head.content_type in NDJSON_TYPES

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Interrupted("closed before the end") if self._end.has_end else Finished(Outcome.ENDED)
