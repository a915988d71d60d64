"""
Gemini's `streamGenerateContent`: one answer, bound to its connection.

    data: {"candidates": [{"content": {"parts": [{"text": "Hel"}]}, "index": 0}], "responseId": "r"}
    data: {"candidates": [{"content": …, "finishReason": "STOP", "index": 0}], "usageMetadata": …, "responseId": "r"}

Events have no name and no id, and no call returns the rest, so a cut cannot be resumed. The finish reason settles how the answer
ended; then the body closes, without a marker.

Source: the PyPI package google-genai 3.3.0 (`types.py`: `GenerateContentResponse`, `FinishReason`, `BlockedReason`) and the
API reference of ai.google.dev, "models.streamGenerateContent".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from .._contract import Head, Settled, StreamState
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import upstream_error
from ._json import documents_of, object_of, payload_of
from ._several import _Several, finished
from ._shape import objects_in, said

__all__ = ["GeminiGenerate"]


_UNFINISHED: Final = frozenset({"", "FINISH_REASON_UNSPECIFIED"})


class GeminiGenerate(_Several):
    """
    `POST …/models/{model}:streamGenerateContent?alt=sse`, of the Gemini API and of Vertex AI.

    It cannot be resumed: a cut before the finish reason raises `StreamInterrupted`, even if the body closed cleanly, which
    most clients take for the end. Once the request may have been accepted it is never repeated, since that would bill another
    answer; request that with `on_lost="restart"`.

    The outcome is `COMPLETED` for the finish reason `STOP` and `INCOMPLETE` for any other (a token limit, a filter, a malformed
    function call). It is `FAILED` if the prompt was blocked, since there is no answer then. An event with an `error` raises
    `UpstreamError`. The API may also write an error as bare lines of JSON, which its SDK expects; by the SSE standard that is
    not an event, so the close after it raises `StreamInterrupted`.

    With `candidateCount` above 1 the answer is whole once every candidate has a finish reason; the worst of them is the outcome.

    Without `alt=sse` the body is one JSON array, which is refused as `UnexpectedContentType`. `stream_id` is the `responseId`.

    >>> GeminiGenerate()
    <GeminiGenerate: has_end, tied>
    """

    counted_as = "candidates"

    def __init__(self, *, candidates: int = 1) -> None:
        super().__init__(candidates)

    @staticmethod
    def asked(request: StreamState) -> int:
        config = request.json.get("generationConfig") if isinstance(request.json, dict) else None
        asked = config.get("candidateCount") if isinstance(config, dict) else None
        return asked if type(asked) is int and asked > 1 else 1

    def claims(self, request: StreamState, head: Head) -> bool:
        return request.method == "POST" and urlsplit(request.url).path.endswith(":streamGenerateContent")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head) and isinstance(found := payload_of(source).get("responseId"), str) and found:
            state.stream_id = found

    def end(self, event: Any) -> Outcome | Settled | None:
        # Most events have neither key, which shows without parsing: quotes in text are escaped, so content never matches.
        if '"finishReason"' not in event.data and '"promptFeedback"' not in event.data:
            return None
        documents = documents_of(event)
        payload = documents[-1] if documents else {}
        candidates = [candidate for document in documents for candidate in _candidates(document)]
        reasons = {str(candidate.get("finishReason") or "") for candidate in candidates}
        if candidates and reasons.isdisjoint(_UNFINISHED):
            return Settled(Outcome.COMPLETED if reasons == {"STOP"} else Outcome.INCOMPLETE)
        if self._number > 1 and reasons - _UNFINISHED:
            # Some of the candidates in this event have ended. `end_in()` knows about the others.
            return Settled(Outcome.COMPLETED if reasons <= {"STOP", *_UNFINISHED} else Outcome.INCOMPLETE)
        feedback = payload.get("promptFeedback")
        if not candidates and isinstance(feedback, dict) and feedback.get("blockReason"):
            return Settled(Outcome.FAILED)
        return None

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        if self._number == 1 or end == Settled(Outcome.FAILED):
            # A blocked prompt has no candidates.
            return end
        reasons = [
            (candidate.get("index", 0), str(candidate.get("finishReason") or ""))
            for document in documents_of(event)
            for candidate in _candidates(document)
        ]
        ended = [(index, _outcome_of(reason)) for index, reason in reasons if reason not in _UNFINISHED]
        return finished(state, self._number, ended)

    def error(self, event: Any) -> UpstreamError | None:
        if '"error"' not in event.data:
            return None
        payload = next((each for each in documents_of(event) if isinstance(each.get("error"), dict)), {})
        detail = payload.get("error")
        if not isinstance(detail, dict) or "candidates" in payload:
            return None
        # `status` is the name (`UNAVAILABLE`), `code` the number.
        return upstream_error({**detail, "type": detail.get("status")}, payload)

    def deltas_of(self, document: dict[str, Any]) -> Iterator[Delta]:
        for candidate in _candidates(document):
            index = candidate.get("index")
            for part in objects_in(object_of(candidate.get("content")).get("parts")):
                yield from said("reasoning" if part.get("thought") is True else "text", part.get("text"), index)
                if not part.get("text") and isinstance(made := object_of(part.get("functionCall")).get("args"), dict):
                    yield from said("tool", json.dumps(made, ensure_ascii=False), index)


def _outcome_of(reason: str) -> Outcome:
    return Outcome.COMPLETED if reason == "STOP" else Outcome.INCOMPLETE


def _candidates(payload: dict[str, Any]) -> list[dict[str, Any]]:
    return objects_in(payload.get("candidates"))
