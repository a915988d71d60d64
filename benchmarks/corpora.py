"""
Event streams like those of real servers, generated: the same bytes in every run.

A corpus is a list of `bytes`, one item for each event with its blank line. The corpora differ in what costs a decoder time:
fields per event, payload length, line ends, characters beyond ASCII.

The last event is always `[DONE]`. For a decoder it is one more event; for a resumable stream it is the end: no run pays for the
request "is there more?", which bare decoding never sends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count, islice

__all__ = ["CORPORA", "CUTS", "ENDLESS", "LF", "cut", "endless", "events"]

_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "for",
    "on",
    "are",
    "with",
    "they",
    "be",
    "this",
    "have",
    "from",
]
_SCRIPTS = ["日本語の", "文章を", "读取", "поток", "событий", "đứt", "größer", "été", "🙂", "नमस्ते"]


def openai_chat(rng: random.Random) -> Iterator[str]:
    """One `data:` line of 320 bytes: Chat Completions."""
    while True:
        delta = {"content": " " + rng.choice(_WORDS)}
        yield (
            "data: "
            + _compact(
                {
                    "id": "chatcmpl-C7yJ2d0sVXlQq3bq1zVbqS7v0TQpA",
                    "object": "chat.completion.chunk",
                    "created": 1757337600,
                    "model": "gpt-4o-2024-08-06",
                    "service_tier": "default",
                    "system_fingerprint": "fp_80956533cb",
                    "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}],
                    "usage": None,
                    "obfuscation": "x" * rng.randrange(1, 16),
                }
            )
            + "\n\n"
        )


def responses(rng: random.Random) -> Iterator[str]:
    """`event:` and `data:`, the number inside the JSON: OpenAI's Responses. One event in 40 is not a text delta."""
    for number in count():
        if number % 40 == 39:
            kind = "response.output_item.added"
            rest: dict[str, object] = {
                "output_index": number // 40,
                "item": {"id": f"msg_{number}", "type": "message", "content": []},
            }
        else:
            kind = "response.output_text.delta"
            rest = {
                "item_id": "msg_68bf00f1a7c481908f7cd1a1c2d2e2b70c1c1d6b1a1d1e1f",
                "output_index": 0,
                "content_index": 0,
                "delta": " " + rng.choice(_WORDS),
                "logprobs": [],
                "obfuscation": "x" * rng.randrange(1, 16),
            }
        yield f"event: {kind}\ndata: {_compact({'type': kind, 'sequence_number': number, **rest})}\n\n"


def langgraph(rng: random.Random) -> Iterator[str]:
    """`id:`, `event:` and `data:`; the id counts from 0."""
    for number in count():
        message = {
            "content": " " + rng.choice(_WORDS),
            "additional_kwargs": {},
            "response_metadata": {"model_provider": "anthropic"},
            "type": "AIMessageChunk",
            "name": None,
            "id": "run--0f1d2c3b-4a59-4687-9b8a-7c6d5e4f3a2b",
            "tool_calls": [],
        }
        yield f"id: {number}\nevent: messages\ndata: {_compact([message, {}])}\n\n"


def opaque_ids(rng: random.Random) -> Iterator[str]:
    """Like `langgraph`, with ids that are not a counter: those of a Redis stream."""
    for event in langgraph(rng):
        head, _, rest = event.partition("\n")
        number = int(head[4:])
        yield f"id: {1757337600000 + 7 * number}-{number % 3}\n{rest}"


def tiny(rng: random.Random) -> Iterator[str]:
    """`id:` and one word of data: the cost per event, not per byte."""
    for number in count():
        yield f"id: {number}\ndata: {rng.choice(_WORDS)}\n\n"


def crlf(rng: random.Random) -> Iterator[str]:
    """`langgraph` with CRLF, the default of sse-starlette."""
    for event in langgraph(rng):
        yield event.replace("\n", "\r\n")


def non_ascii(rng: random.Random) -> Iterator[str]:
    """`openai_chat` with text of many scripts, sent as UTF-8."""
    for event in openai_chat(rng):
        yield event.replace('"content":" ', '"content":"' + " ".join(rng.choices(_SCRIPTS, k=3)))


CORPORA: dict[str, Callable[[random.Random], Iterator[str]]] = {
    made.__name__: made for made in (openai_chat, responses, langgraph, tiny, opaque_ids, crlf, non_ascii)
}
LF = ("openai_chat", "responses", "langgraph", "tiny")


@lru_cache(maxsize=32)
def events(corpus: str, number: int) -> list[bytes]:
    """The first `number - 1` events of a corpus, and `[DONE]`."""
    made = [text.encode() for text in islice(CORPORA[corpus](random.Random(corpus)), number - 1)]
    end = b"\r\n" if corpus == "crlf" else b"\n"
    return [*made, b"data: [DONE]" + end + end]


ENDLESS = {
    "counted ids": "id: {0}\ndata: the event with the number {0} and some text\n\n",
    "opaque ids": "id: {1:x}-{0}\ndata: the event with the number {0} and some text\n\n",
    "no ids": "data: the event with the number {0} and some text\n\n",
    "number in JSON": 'event: delta\ndata: {{"sequence_number":{0},"delta":"some text"}}\n\n',
}


def endless(kind: str) -> Iterator[bytes]:
    """Endless chunks of 50 small events, made on demand."""
    shape = ENDLESS[kind]
    for start in count(0, 50):
        yield "".join(shape.format(number, number * 2654435761) for number in range(start, start + 50)).encode()


def _whole(parts: list[bytes]) -> list[bytes]:
    return parts


def _bytes(parts: list[bytes]) -> list[bytes]:
    return [bytes((byte,)) for part in parts for byte in part]


def _slices(parts: list[bytes]) -> list[bytes]:
    body = b"".join(parts)
    return [body[start : start + 65536] for start in range(0, len(body), 65536)]


CUTS: dict[str, Callable[[list[bytes]], list[bytes]]] = {"64k": _slices, "event": _whole, "byte": _bytes}


def cut(corpus: str, number: int, how: str) -> list[bytes]:
    """
    A corpus as the chunks in which it arrives.

    Args:
        how: `"64k"`: slices of 64 KiB, as in a replay. `"event"`: one event in each, as in a live stream. `"byte"`.
    """
    return CUTS[how](events(corpus, number))


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
