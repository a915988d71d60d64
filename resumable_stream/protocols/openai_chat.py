"""
OpenAI's Chat Completions, as dozens of servers speak it. It has no cursor, so it cannot be resumed.

What it has is an honest end: a chunk with a `finish_reason`. Usage and `[DONE]` may follow, and a `[DONE]` or a clean close
without it proves nothing: that is what a proxy leaves of an answer whose server died.

Source: the types and the streaming code of the `openai` package 3.51 (`chat.completion.chunk`), OpenAI's API reference,
and the streaming pages of OpenRouter (error chunks, comments) and vLLM (`reasoning_content`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Self
from urllib.parse import urlsplit

from .._core.interfaces import Head, Interrupted, Promises, Request, ResumeProtocol, Settled, StreamState, Verdict
from .._errors import UpstreamError
from .._events import Delta, Item, Outcome
from ._ends import DONE, upstream_error
from ._json import payload_of

__all__ = ["OpenAIChat"]

_REASONS: Final = {
    "stop": Outcome.COMPLETED,
    "tool_calls": Outcome.COMPLETED,
    "function_call": Outcome.COMPLETED,
    "length": Outcome.INCOMPLETE,
    "content_filter": Outcome.INCOMPLETE,
    "error": Outcome.FAILED,  # OpenRouter
}


class OpenAIChat(ResumeProtocol):
    """
    `POST /v1/chat/completions` with `stream: true`, and the older `/v1/completions`.

    A cut before the `finish_reason` raises `StreamInterrupted`, with the text so far; behind it any close is the end.
    A reason that OpenAI does not list is `INCOMPLETE`: better a false alarm than half an answer taken for a whole one.
    Nothing is sent twice: a second answer would be another one, and paid.

    Args:
        choices: What the request has as `n`. With several, one `finish_reason` says nothing of the others, and an event
            does not tell how many there are: then `[DONE]` ends the stream, as `ENDED`, and a close before it is a cut.

    >>> OpenAIChat()
    <OpenAIChat: has_end, tied>
    """

    def __init__(self, *, choices: int = 1) -> None:
        if type(choices) is not int or choices < 1:
            raise ValueError(f"choices must be a number from 1, got {choices!r}")
        self._choices = choices

    @property
    def promises(self) -> Promises:
        return Promises(resumable=False, numbered=False, has_end=True, tied=True)

    @property
    def options(self) -> str:
        return "" if self._choices == 1 else f"choices={self._choices}"

    # -- starting

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        return cls(choices=_asked(request))

    def matches(self, request: StreamState, head: Head) -> bool:
        body = request.json
        return (
            request.method == "POST"
            and head.content_type == "text/event-stream"
            and urlsplit(request.url).path.rstrip("/").endswith("/completions")
            and isinstance(body, dict)
            and body.get("stream") is True
            and ("messages" in body or "prompt" in body)
        )

    def first_request(self, state: StreamState) -> Request:
        asked = _asked(state)
        if isinstance(state.json, dict) and asked != self._choices:
            raise ValueError(f"the request asks for n={asked}: pass OpenAIChat(choices={asked}), got choices={self._choices}")
        return super().first_request(state)

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head) and isinstance(found := payload_of(source).get("id"), str):
            # Of the answer, the same in each chunk: nothing to know a repeat by.
            state.stream_id = found or None

    # -- reading

    def end(self, event: Any) -> Outcome | Settled | None:
        data = event.data
        if self._choices > 1:
            return Outcome.ENDED if data == DONE else None
        # Quotes inside a JSON text are escaped, so this is no content.
        if '"finish_reason"' not in data or '"finish_reason":null' in data or '"finish_reason": null' in data:
            return None
        for choice in _choices(payload_of(event)):
            if reason := choice.get("finish_reason"):
                return Settled(_REASONS.get(str(reason), Outcome.INCOMPLETE))
        return None

    def error(self, event: Any) -> UpstreamError | None:
        named = event.event == "error"
        if not named and '"error"' not in event.data:
            return None
        body = payload_of(event)
        detail = body.get("error")
        if not detail and not named:
            return None
        message = detail or body or event.data
        return upstream_error(message if isinstance(message, dict) else {"message": message}, body or event.data)

    def quiet(self, event: bytes) -> bool:
        # Quotes inside a JSON text are escaped, so these are keys. An event has a name only where it is an error.
        if b'"error"' in event or event.startswith(b"event"):
            return False
        return b'"finish_reason":null' in event or b'"finish_reason": null' in event or b'"finish_reason"' not in event

    def deltas(self, event: Any) -> Sequence[Delta]:
        return tuple(_deltas(payload_of(event)))

    # -- going on

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Interrupted("closed before the end")


def _asked(state: StreamState) -> int:
    asked = state.json.get("n") if isinstance(state.json, dict) else None
    return asked if type(asked) is int and asked > 1 else 1


def _choices(body: dict[str, Any]) -> list[dict[str, Any]]:
    found = body.get("choices")
    return [choice for choice in found if isinstance(choice, dict)] if isinstance(found, list) else []


def _deltas(body: dict[str, Any]) -> Iterator[Delta]:
    for choice in _choices(body):
        index = choice.get("index")
        index = index if type(index) is int else 0
        delta = choice.get("delta")
        # The older /v1/completions has the text in the choice itself.
        parts = delta if isinstance(delta, dict) else {"content": choice.get("text")}
        # vLLM and DeepSeek, OpenRouter: one of the two; a server that sends both sends the same.
        for kind, text in (
            ("reasoning", parts.get("reasoning_content") or parts.get("reasoning")),
            ("text", parts.get("content")),
            ("refusal", parts.get("refusal")),
        ):
            if isinstance(text, str) and text:
                yield Delta(kind, text, index)  # type: ignore[arg-type]  # one of the kinds
        calls = parts.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            text = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(text, str) and text:
                which = call.get("index")
                yield Delta("tool", text, which if type(which) is int else 0)
