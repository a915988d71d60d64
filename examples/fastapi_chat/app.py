"""
A chat that survives reloads, lost networks and deploys. Copy this folder, and put your model into `answer`.

    pip install "resumable-stream-sdk[chat]"
    python examples/fastapi_chat/app.py
    python examples/fastapi_chat/reader.py http://127.0.0.1:8000/c/…

A conversation has a URL with an unguessable id: anyone who knows it can read and write there. The messages of a conversation
name their answers, and each answer is a stream of the hub, which any number of pages and programs can follow.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import secrets
import signal
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import segno
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from resumable_stream import HistoryGone, MessageUnknown, StreamUnknown
from resumable_stream.server import Hub, SessionMessage, log_of
from resumable_stream.server.asgi import create_app

STATIC = Path(__file__).with_name("static")
PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'",
    # Anyone with the URL of a conversation can read it.
    "Referrer-Policy": "no-referrer",
}
PAUSE = 0.05
MEMORY = 50  # messages that the model gets
LESSON = (
    "This answer is written word by word, in a task that belongs to no connection, and every word is in a log before "
    "anyone sees it. Reload the page now, and it continues from here. Open the same URL in a second tab, and both show the "
    "same text, because one generation feeds them both. Switch off the network for a moment: the page says that it is "
    "reconnecting, asks for what follows its last word, and misses nothing. Restart the server: the words written so far "
    "are still there. Press Stop in either tab, and the writing stops for both; close both tabs, and it does not."
)

Answer = Callable[[list[dict[str, str]]], AsyncGenerator[dict[str, str], None]]
"""Makes an answer: gets the messages so far, in the form of OpenAI's API, and yields events, each with a piece of text."""


# --- answers


async def words(messages: list[dict[str, str]]) -> AsyncGenerator[dict[str, str], None]:
    """Instead of a model: always the same words."""
    for word in f"You asked: {messages[-1]['content']}\n\n{LESSON}".split(" "):
        yield {"text": f"{word} "}
        await asyncio.sleep(PAUSE)


def model(name: str, base_url: str | None = None) -> Answer:
    """A model with OpenAI's API or a compatible one. The key is in `OPENAI_API_KEY`."""
    import openai

    async def answer(messages: list[dict[str, str]]) -> AsyncGenerator[dict[str, str], None]:
        finished = None
        # Any: the SDK has a separate type for each role.
        asked: Any = messages
        # Servers on your own machine need no key, but the SDK requires one.
        key = os.environ.get("OPENAI_API_KEY") or "none"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
            async for chunk in await client.chat.completions.create(model=name, messages=asked, stream=True):
                for choice in chunk.choices:
                    finished = choice.finish_reason or finished
                    if choice.delta.content:
                        yield {"text": choice.delta.content}
        if finished is None:
            # The SDK treats a closed connection as the end. Raising ends our stream as failed.
            raise ConnectionError("the model's connection closed before the end of the answer")

    return answer


# --- the app

_ID = r"^[A-Za-z0-9_-]{16,64}$"  # at least 96 bits: an invented id is refused
_MID = r"^[A-Za-z0-9_-]{8,64}$"
SessionId = Annotated[str, InPath(pattern=_ID)]
MessageId = Annotated[str, InPath(pattern=_MID)]
Key = Annotated[str, Header(alias="Idempotency-Key", pattern=_ID)]


class Correction(BaseModel):
    """New text for a message that keeps its answer."""

    text: str = Field(min_length=1, max_length=32_000)


class Prompt(Correction):
    """A message that the page posts."""

    mid: str = Field(pattern=_MID)  # of the message; a changed message keeps its id
    supersedes: str | None = None  # the answer to the message before it was changed


def chat_app(hub: Hub, answer: Answer, *, drain_on: Sequence[int] = ()) -> FastAPI:
    """
    Make the app.

    Args:
        hub: Keeps the answers, and the messages of each conversation.
        answer: Makes an answer.
        drain_on: Signals at which the hub drains before the server stops.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with hub:
            if drain_on:
                hub.drain_on(*drain_on, spread=2.0)
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.exception_handler(MessageUnknown)
    async def unknown(request: Request, exc: Exception) -> Response:
        return JSONResponse({"detail": "there is no such message"}, 404)

    @app.get("/")
    async def new() -> Response:
        return RedirectResponse(f"/c/{secrets.token_urlsafe(16)}", 303, {"Cache-Control": "no-store"})

    @app.get("/c/{sid}")
    async def page(sid: SessionId) -> Response:
        return FileResponse(STATIC / "index.html", headers=PAGE_HEADERS)

    @app.get("/c/{sid}/qr.svg")
    async def qr(request: Request, sid: SessionId) -> Response:
        svg = io.BytesIO()
        segno.make(str(request.url_for("page", sid=sid))).save(svg, kind="svg", border=2, light="#fff", scale=4)
        return Response(svg.getvalue(), media_type="image/svg+xml", headers={"Cache-Control": "no-store"})

    @app.post("/c/{sid}")
    async def ask(request: Request, sid: SessionId, prompt: Prompt, key: Key) -> Response:
        if hub.draining:
            raise HTTPException(503, "the server is shutting down", {"Retry-After": "2"})
        session = hub.session(sid)
        messages = await history(sid, until=prompt.mid)
        data = {"text": prompt.text, "answer": key}
        # Before the answer begins, so that no one sees an answer without its message. A repeated request changes nothing.
        if prompt.supersedes is None:
            await session.publish("message", {"role": "user", "data": data}, mid=prompt.mid)
        else:
            await session.edit(prompt.mid, data)
        return await hub.respond(
            request,
            answer([*messages, {"role": "user", "content": prompt.text}]),
            id=key,
            session=sid,
            supersedes=prompt.supersedes,
            location=f"/streams/{key}",
        )

    @app.put("/c/{sid}/messages/{mid}", status_code=204)
    async def correct(sid: SessionId, mid: MessageId, correction: Correction) -> None:
        old = await message(sid, mid)
        if old is None:
            raise MessageUnknown("there is no such message", mid=mid)
        await hub.session(sid).edit(mid, {**old.data, "text": correction.text})

    @app.delete("/c/{sid}/messages/{mid}", status_code=204)
    async def delete(sid: SessionId, mid: MessageId) -> None:
        old = await message(sid, mid)
        if old is not None:
            # First, so that a repeated request still finds the answer if this one was lost halfway.
            with suppress(StreamUnknown):
                await hub.cancel(old.data["answer"], "deleted")
        await hub.session(sid).delete(mid)

    async def message(sid: str, mid: str) -> SessionMessage | None:
        return next((each for each in await hub.session(sid).messages() if each.mid == mid), None)

    async def history(sid: str, *, until: str) -> list[dict[str, str]]:
        """The conversation before a message. The text of an answer is only in its stream."""
        found: list[dict[str, str]] = []
        said = await hub.session(sid).messages()
        before = itertools.takewhile(lambda each: each.mid != until, said)
        for each in deque(before, maxlen=MEMORY):
            found.append({"role": "user", "content": each.data["text"]})
            try:
                text = (await hub.message(each.data["answer"])).text
            except (StreamUnknown, HistoryGone):
                continue
            found.append({"role": "assistant", "content": text})
        return found

    app.mount("/static", StaticFiles(directory=STATIC))
    app.mount("/", create_app(hub))  # GET /sessions/{sid}/feed, GET /streams/{id}, …
    return app


if __name__ == "__main__":
    uvicorn.run(
        chat_app(
            Hub(log_of(os.environ.get("CHAT_STORE", "sqlite:///chat.db")), presence=True),
            model(os.environ.get("CHAT_MODEL", "gpt-5-mini")) if os.environ.get("OPENAI_API_KEY") else words,
            drain_on=[signal.SIGTERM, signal.SIGINT],
        ),
        host=os.environ.get("HOST", "127.0.0.1"),
        port=int(os.environ.get("PORT", "8000")),
        access_log=False,  # its lines would contain the ids of conversations
    )
