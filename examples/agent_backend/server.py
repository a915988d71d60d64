"""
An agent with tools that can be steered and stopped while it works, and that outlives its process. Copy this file.

    pip install "resumable-stream-sdk[chat]"
    python examples/agent_backend/server.py
    python examples/agent_backend/agent.py "bread, milk"

Put your model into `decide` and `answer`, and your tools into `TOOLS`. This agent adds up a shopping list, and a message adds an
item to the list.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, Request, Response
from pydantic import BaseModel, Field

from resumable_stream import LogUnavailable
from resumable_stream.server import Generation, Hub, Session, StreamLog, log_of
from resumable_stream.server.asgi import create_app

PAUSE = 1.0
ROOM = 8_000  # characters accepted in messages: a note holds 256 KiB, and it contains all that the agent knows
PRICES = {"bread": 240, "butter": 310, "cheese": 450, "milk": 130, "tea": 280}  # in cents


# --- the tools: `key` is the same when a call is repeated after a crash, so pass it on as an Idempotency-Key


async def price(item: str, *, key: str) -> int:
    await asyncio.sleep(PAUSE)
    return PRICES.get(item, 100)


async def add(total: int, price: int, *, key: str) -> int:
    await asyncio.sleep(PAUSE)
    return total + price


TOOLS: dict[str, Callable[..., Awaitable[Any]]] = {"price": price, "add": add}


# --- the model


@dataclass
class State:
    """All that the agent knows. It is stored as the note of the stream, so that another process can continue from it."""

    goal: str
    said: list[str] = field(default_factory=list)  # the messages that were applied, in the order in which they were accepted
    told: int = 0  # how many of them are in the feed of the session
    results: list[Any] = field(default_factory=list)  # of the finished calls
    begun: dict[str, Any] | None = None  # the call without a result yet
    writing: bool = False
    answer: str | None = None


def plan(state: State) -> list[str]:
    return [item.strip() for text in (state.goal, *state.said) for item in text.split(",")]


def decide(state: State) -> dict[str, Any] | None:
    """Instead of a model: the tool to call next, or `None` when nothing is left to do."""
    item, is_priced = divmod(len(state.results), 2)
    if item == len(plan(state)):
        return None
    if not is_priced:
        return {"tool": "price", "arguments": {"item": plan(state)[item]}}
    total = state.results[-2] if item else 0
    return {"tool": "add", "arguments": {"total": total, "price": state.results[-1]}}


async def answer(state: State) -> AsyncIterator[str]:
    """Instead of a model: the words of the answer."""
    for word in f"{', '.join(plan(state))}: {state.results[-1] / 100:.2f} in all.".split(" "):
        yield f"{word} "
        await asyncio.sleep(PAUSE / 10)


# --- the agent


async def agent(gen: Generation, session: Session) -> None:
    """Work in one task and listen in another, so that messages and a cancel take effect in the middle of a tool."""
    state = State(**json.loads(gen.note)) if gen.note else State(json.loads(gen.request or b"")["goal"])
    working = asyncio.create_task(work(gen, session, state))
    listening = asyncio.create_task(listen(gen, session, state))
    try:
        done, _ = await asyncio.wait([working, listening], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if not gen.cancelled:
            await working
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def work(gen: Generation, session: Session, state: State) -> None:
    """Call tools until nothing is left to do, then write the answer."""
    await tell(session, "user", state.goal, f"{gen.id}.goal")
    while state.answer is None:
        while call := state.begun or decide(state):
            number = len(state.results) + 1
            if state.begun is None:
                await gen.send({"step": number, "plan": plan(state)}, event="step")
                await gen.send({"call": number, **call}, event="tool_call")
                state.begun = call
                await keep(gen, state)  # before the call, so that every call is on record
            result = await TOOLS[call["tool"]](**call["arguments"], key=f"{gen.id}.{number}")
            await gen.send({"call": number, "result": result}, event="tool_result")
            state.results.append(result)
            state.begun = None
            await keep(gen, state)
        if state.writing:
            await gen.reset()  # the words of a dead process, or from before the last message, are replaced
        state.writing, heard, text = True, len(state.said), ""
        await keep(gen, state)
        async for piece in answer(state):
            text += piece
            await gen.text(piece)
        if heard == len(state.said):
            state.answer = text
    await keep(gen, state)
    await tell(session, "assistant", state.answer, f"{gen.id}.answer")


async def listen(gen: Generation, session: Session, state: State) -> None:
    """Accept messages until the answer is finished or the stream is cancelled."""
    while not gen.cancelled:
        for number, text in list(enumerate(state.said, 1))[state.told :]:
            await tell(session, "user", text, f"{gen.id}.{number}")
            state.told = number
        messages = await gen.wait_steered()
        if state.answer is not None:
            return  # too late: it was accepted, and no `steered` says that it was applied
        for message in messages:
            taken = sum(map(len, state.said)) + len(message.data) <= ROOM
            if taken:
                state.said.append(message.data)
            event = {"id": message.id, "position": message.k, "data": message.data[:ROOM]}
            await gen.send(event, event="steered" if taken else "refused")
        await keep(gen, state)


async def keep(gen: Generation, state: State) -> None:
    """Store the state in the same step as the events before it."""
    await gen.flush(note=json.dumps(asdict(state), ensure_ascii=False))


async def tell(session: Session, role: str, text: str, mid: str) -> None:
    """Publish a message in the session. The same `mid` is the same message, so this is retried while the log is unavailable."""
    for wait in (1, 2, 4, 8, 0):
        try:
            await session.publish("message", {"role": role, "data": text}, mid=mid)
            return
        except LogUnavailable:
            if not wait:
                raise
            await asyncio.sleep(wait)


# --- the app


class Task(BaseModel):
    """The request that starts an agent."""

    goal: str = Field(min_length=1, max_length=4000)
    session: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{16,64}$")


Key = Annotated[str | None, Header(alias="Idempotency-Key", pattern=r"^[A-Za-z0-9_-]{16,64}$")]


def agent_app(log: StreamLog, *, drain_on: Sequence[int] = (), **options: Any) -> FastAPI:
    """
    Make the app.

    Args:
        log: Stores the agents.
        drain_on: Signals at which this process hands its agents over and stops.
        options: Of the hub.
    """

    async def run(gen: Generation) -> None:
        await agent(gen, hub.session(gen.head.session or gen.id))

    hub = Hub(log, on_lost=run, **options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with hub:
            if drain_on:
                hub.drain_on(*drain_on, timeout=2.0, spread=1.0)  # short: another process continues
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/agents")
    async def start(request: Request, task: Task, key: Key = None) -> Response:
        id = key or secrets.token_urlsafe(16)
        body = await request.body()
        return await hub.respond(request, run, id=id, session=task.session or id, request=body, location=f"/streams/{id}")

    app.mount("/", create_app(hub))  # GET /streams/{id}, POST /streams/{id}/messages, GET /sessions/{id}/feed, …
    return app


if __name__ == "__main__":
    kept = log_of(os.environ.get("AGENT_STORE", "sqlite:///agent.db"))
    app = agent_app(kept, drain_on=[signal.SIGTERM, signal.SIGINT])
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), access_log=False)
