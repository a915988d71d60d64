"""
llama.cpp's `llama-server`: Chat Completions whose bytes are kept for a while, for clients that name the conversation.

Source: ggml-org/llama.cpp, `tools/server/README-dev.md` ("Resumable streaming"), pull requests 23226 and 25047.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from .._contract import Head, Lost, Measured, Position, Promises, Request, StreamState, Verdict
from .openai_chat import OpenAIChat

__all__ = ["LlamaCpp"]


class LlamaCpp(OpenAIChat, Measured):
    """
    `POST /v1/chat/completions` of a `llama-server`, kept under a conversation id so that a reconnect can read on.

    The cursor is a byte offset in the body, after the last whole event: `GET /v1/stream?conv_id=…&from=…`.
    The server keeps the newest 4 MiB, and a finished answer for 5 minutes; anything older is `CursorExpired`.
    It ends like `OpenAIChat`.

    Args:
        conversation_id: The id of this answer, sent as `X-Conversation-Id`. Choose a new one that cannot be guessed for each
            request: anyone who has it can read the answer, and a second request with it ends the first. So checkpoints do not
            contain it; another process must pass the protocol again.
        choices, end: As for `OpenAIChat`.

    >>> LlamaCpp("5f0c1d2e")
    <LlamaCpp: resumable, has_end>
    """

    promises = Promises(resumable=True, numbered=False, has_end=True)
    measured = True

    def __init__(self, conversation_id: str, *, choices: int = 1, end: Literal["auto", "[DONE]"] = "auto") -> None:
        super().__init__(choices=choices, end=end)
        if not isinstance(conversation_id, str) or not conversation_id.isascii() or not conversation_id.isprintable():
            raise TypeError(f"conversation_id must be printable ASCII text, got {type(conversation_id).__name__}")
        if not conversation_id.strip():
            raise ValueError("conversation_id must not be empty: without it the server keeps nothing")
        self._conversation_id = conversation_id

    @property
    def options(self) -> str:
        return "conversation_id" + (f" {super().options}" if super().options else "")

    def matches(self, request: StreamState, head: Head) -> bool:
        return False  # only the caller knows the id

    def first_request(self, state: StreamState) -> Request:
        first = super().first_request(state)
        return Request(
            method=first.method, url=first.url, headers={"X-Conversation-Id": self._conversation_id}, repeat=first.repeat
        )

    def position(self, event: Any) -> Position:
        return Position(str(event.ends))

    def resume_request(self, state: StreamState) -> Request | None:
        return self._stream(state, "GET", {"from": state.cursor or "0"})

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if state.resuming and status == 400:
            return Lost("the server no longer holds the answer from there on")
        return None

    def cancel_request(self, state: StreamState) -> Request | None:
        return self._stream(state, "DELETE", {})

    def _stream(self, state: StreamState, method: str, params: Mapping[str, str]) -> Request:
        parts = urlsplit(state.url)
        # Both spellings of the route, and any prefix that a proxy adds.
        prefix = parts.path.removesuffix("/completions").removesuffix("/chat").removesuffix("/v1")
        url = urlunsplit((parts.scheme, parts.netloc, f"{prefix}/v1/stream", "", ""))
        return Request(method=method, url=url, params={"conv_id": self._conversation_id, **params})
