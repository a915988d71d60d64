"""
OpenAI's Chat Completions, which dozens of servers speak. It has no cursor, so it cannot be resumed.

It does have an honest end: a chunk with a `finish_reason`. Usage and `[DONE]` may follow. A `[DONE]` or a clean close
without a reason proves nothing: a proxy sends the same when its upstream dies.

Source: the types and the streaming code of the `openai` package 3.51 (`chat.completion.chunk`), OpenAI's API reference,
and the streaming pages of OpenRouter (error chunks, comments) and vLLM (`reasoning_content`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from .._contract import Glance, Head, Settled, StreamState, Unproven
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import DONE, unproven_done, upstream_error
from ._json import documents_of, object_of, payload_of
from ._several import _Several, finished, worst_of
from ._shape import objects_in, posted, said

__all__ = ["OpenAIChat"]

_REASONS: Final = {
    "stop": Outcome.COMPLETED,
    "tool_calls": Outcome.COMPLETED,
    "function_call": Outcome.COMPLETED,
    "length": Outcome.INCOMPLETE,
    "content_filter": Outcome.INCOMPLETE,
    "error": Outcome.FAILED,  # OpenRouter
}


class OpenAIChat(_Several, Glance):
    """
    `POST /v1/chat/completions` with `stream: true`, and the older `/v1/completions`.

    A cut before the `finish_reason` raises `StreamInterrupted`, with the text so far; after it any close is the end.
    A reason that OpenAI does not list is `INCOMPLETE`: a false alarm is better than taking a partial answer as whole.
    The request is never sent twice: the second answer would differ, and would be billed.

    `[DONE]` without a `finish_reason` is a cut as well. SDKs stop reading there, so it is not delivered: the error comes first.

    Args:
        choices: The number of choices: `n` of the request, times the prompts of an older completion. Each choice has its own
            `finish_reason`, so the stream is whole once all of them have one, and the worst of them is the outcome.
        end: `"auto"`: a `finish_reason` ends it. `"[DONE]"`: so does `[DONE]`, for a server that never sends a reason. If such
            a server cuts an answer short and closes it with `[DONE]`, the answer is then taken as whole.

    >>> OpenAIChat()
    <OpenAIChat: has_end, tied>
    """

    counted_as = "choices"

    def __init__(self, *, choices: int = 1, end: Literal["auto", "[DONE]"] = "auto") -> None:
        if end not in ("auto", DONE):
            raise ValueError(f"end must be 'auto' or '[DONE]', got {end!r}")
        super().__init__(choices)
        self._done_ends = end == DONE
        given = f"choices={choices}, " if choices > 1 else ""
        self._without = "a finish_reason" if choices == 1 else f"a finish_reason for each of the {choices} choices"
        self._advice = f"If this server never sends one, pass {self.name}({given}end='[DONE]')"

    @property
    def options(self) -> str:
        return " ".join(filter(None, (super().options, f"end={DONE}" if self._done_ends else "")))

    @staticmethod
    def asked(request: StreamState) -> int:
        body = request.json if isinstance(request.json, dict) else {}
        asked = body.get("n")
        number = asked if type(asked) is int and asked > 1 else 1
        # An older completion may have several prompts, each a text or a list of tokens. Each prompt gets its own answer.
        prompts = body.get("prompt")
        if isinstance(prompts, list) and prompts and all(isinstance(each, str | list) for each in prompts):
            number *= len(prompts)
        return number

    def claims(self, request: StreamState, head: Head) -> bool:
        body = posted(request, "/completions")
        return body.get("stream") is True and ("messages" in body or "prompt" in body)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head) and isinstance(found := payload_of(source).get("id"), str):
            # The id of the answer is the same in each chunk, so it does not identify repeats.
            state.stream_id = found or None

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        data = event.data
        # Quotes inside JSON text are escaped, so content never matches.
        if '"finish_reason"' not in data:
            if self._done_ends:
                return Outcome.COMPLETED if data.startswith(DONE) else None
            return unproven_done(event, self._without, self._advice)
        if self._number == 1 and ('"finish_reason":null' in data or '"finish_reason": null' in data) and "\n" not in data:
            return None
        reasons = [reason for choice in _ending(event) if (reason := choice.get("finish_reason"))]
        return Settled(worst_of(map(_outcome_of, reasons))) if reasons else None

    def end_in(self, state: StreamState, event: Any, end: Outcome | Settled) -> Outcome | Settled | None:
        if self._number == 1:
            return end
        if not isinstance(end, Settled):
            return worst_of([Outcome.COMPLETED], state)
        reasons = [(choice.get("index", 0), choice.get("finish_reason")) for choice in _ending(event)]
        return finished(state, self._number, [(index, _outcome_of(reason)) for index, reason in reasons if reason])

    def error(self, event: Any) -> UpstreamError | None:
        named = event.event == "error"
        if not named and '"error"' not in event.data:
            return None
        documents = documents_of(event) or [{}]
        body = next((each for each in documents if each.get("error")), documents[0])
        detail = body.get("error")
        if not detail and not named:
            return None
        message = detail or body or event.data
        return upstream_error(message if isinstance(message, dict) else {"message": message}, body or event.data)

    def quiet(self, event: bytes) -> bool:
        # Quotes inside JSON text are escaped, so these are keys. Only error events have a name.
        if b'"error"' in event or event.startswith(b"event") or b"[DONE]" in event:
            return False
        if b'"finish_reason"' not in event:
            return True
        return self._number == 1 and (b'"finish_reason":null' in event or b'"finish_reason": null' in event)

    def deltas_of(self, document: dict[str, Any]) -> Iterator[Delta]:
        for choice in _choices(document):
            index = choice.get("index")
            delta = choice.get("delta")
            # The older /v1/completions puts the text in the choice itself.
            parts = delta if isinstance(delta, dict) else {"content": choice.get("text")}
            # vLLM and DeepSeek use one name, OpenRouter the other; a server that sends both sends the same text.
            yield from said("reasoning", parts.get("reasoning_content") or parts.get("reasoning"), index)
            yield from said("text", parts.get("content"), index)
            yield from said("refusal", parts.get("refusal"), index)
            for call in objects_in(parts.get("tool_calls")):
                yield from said("tool", object_of(call.get("function")).get("arguments"), call.get("index"))


def _outcome_of(reason: Any) -> Outcome:
    return _REASONS.get(str(reason), Outcome.INCOMPLETE)


def _ending(event: Any) -> list[dict[str, Any]]:
    """The choices in an event that names a `finish_reason`."""
    return [choice for document in documents_of(event) for choice in _choices(document)]


def _choices(body: dict[str, Any]) -> list[dict[str, Any]]:
    return objects_in(body.get("choices"))
