"""
A chat endpoint in FastAPI. Run it and cut it off: any request can get the rest.

    pip install "resumable-stream-sdk[server]" fastapi
    python examples/servers/fastapi_app.py
    curl -N -H 'Idempotency-Key: msg_1' -d '{"prompt": "Hello"}' http://127.0.0.1:8000/chat
    curl -N -H 'Last-Event-ID: <the last id>' http://127.0.0.1:8000/chat/msg_1
"""

import asyncio
import os

import uvicorn
from fastapi import FastAPI, Request, Response

from resumable_stream.server import Hub, MemoryLog

hub = Hub(MemoryLog())  # SQLiteLog("streams.db") or RedisLog("redis://…"), when there is more than one process
app = FastAPI(lifespan=hub.lifespan)


async def answer(prompt: str):
    """Instead of a model."""
    for word in f"You said: {prompt}. I have thought about it for a while, and I agree with every word of it.".split():
        await asyncio.sleep(0.02)
        yield {"text": f"{word} "}


@app.post("/chat")
async def chat(request: Request) -> Response:
    prompt = (await request.json())["prompt"]
    return await hub.respond(request, answer(prompt))


@app.api_route("/chat/{id}", methods=["GET", "HEAD"])
async def again(request: Request, id: str) -> Response:
    return await hub.respond(request, id=id)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
