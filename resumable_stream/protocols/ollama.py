"""
Ollama's own API: JSON lines, the last of which says `"done": true`. It has no cursor, so it cannot be resumed.

Source: Ollama's API (docs/api.md of its repository), and the types of the `ollama` package 0.6.3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from .._contract import Head, Promises, StreamState
from .._events import Delta, Outcome
from ._json import object_of, payload_of
from ._shape import posted, said
from .ndjson import NDJSON, NDJSON_TYPES

__all__ = ["OllamaNDJSON"]

_PATHS: Final = ("/api/chat", "/api/generate")
# `load` and `unload` answer a request without a prompt; older servers send no reason.
_WHOLE: Final = (None, "", "stop", "load", "unload")


class OllamaNDJSON(NDJSON):
    """
    `POST /api/chat` and `POST /api/generate`. Each line is a `StreamEvent` whose `data` is the line.

    A close before the line with `"done": true` raises `StreamInterrupted`, with the text so far, and a line with an `error`
    raises `UpstreamError`. A `done_reason` other than `stop`, `load` and `unload` is `INCOMPLETE`.
    Ollama stops the generation when the connection closes, so there is nothing to resume.

    >>> OllamaNDJSON()
    <OllamaNDJSON: has_end, tied>
    """

    promises = Promises(resumable=False, numbered=False, has_end=True, tied=True)
    json_names = frozenset({"message"})

    def __init__(self) -> None:
        super().__init__(end=_outcome)

    @property
    def options(self) -> str:
        return ""

    def matches(self, request: StreamState, head: Head) -> bool:
        return head.content_type in NDJSON_TYPES and "model" in posted(request, *_PATHS)

    def claims(self, request: StreamState, head: Head) -> bool:
        # Many applications use the same path and answer with plain text.
        body = posted(request, *_PATHS)
        return head.content_type != "text/plain" and body.get("stream") is True and "model" in body

    def deltas(self, event: Any) -> Sequence[Delta]:
        return tuple(_deltas(payload_of(event)))


def _outcome(event: Any) -> Outcome | None:
    # Checking the text first saves parsing most lines.
    if '"done"' not in event.data or "true" not in event.data:
        return None
    line = payload_of(event)
    if line.get("done") is not True:
        return None
    return Outcome.COMPLETED if line.get("done_reason") in _WHOLE else Outcome.INCOMPLETE


def _deltas(line: dict[str, Any]) -> Iterator[Delta]:
    message = line.get("message")
    # /api/chat has a message, /api/generate the same fields at the top level.
    parts = message if isinstance(message, dict) else {"thinking": line.get("thinking"), "content": line.get("response")}
    yield from said("reasoning", parts.get("thinking"))
    yield from said("text", parts.get("content"))
    calls = parts.get("tool_calls")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = object_of(object_of(call).get("function"))
        if "arguments" in function:
            # The arguments come whole, as an object. Deliver them as the text that other providers send in pieces.
            yield Delta("tool", json.dumps(function["arguments"], ensure_ascii=False), index)
