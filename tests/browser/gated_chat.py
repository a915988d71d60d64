"""
The chat of the example, with a model that a test holds in its hand: served by `resumable-stream serve gated_chat:hub`.

In the working directory, `allowed` says how many words may be written, and `starts` gets a line for each answer that is begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

from resumable_stream._cli.chat import load
from resumable_stream.server import Hub, MemoryLog

WORDS = 200
ALLOWED, STARTS = Path("allowed"), Path("starts")


def begin(asked: str) -> None:
    with STARTS.open("a") as file:
        file.write(f"{asked}\n")


def allowed() -> int:
    return int(ALLOWED.read_text())


async def answer(messages: list[dict[str, str]]) -> AsyncGenerator[dict[str, str], None]:
    asked = messages[-1]["content"]
    begin(asked)
    for n in range(WORDS):
        # It is opened in another process.
        while n >= allowed():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if asked == "break" and n == 5:
            raise RuntimeError("the model broke")
        yield {"text": f"word-{n} "}


hub = Hub(MemoryLog(), presence=True)
app = load().chat_app(hub, answer)
