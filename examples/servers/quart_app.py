"""
A chat endpoint in Quart. Run it and cut it off: any request can get the rest.

    pip install resumable-stream-sdk quart
    python examples/servers/quart_app.py
    curl -N -H 'Idempotency-Key: msg_1' -d '{"prompt": "Hello"}' http://127.0.0.1:8000/chat
    curl -N -H 'Last-Event-ID: <the last id>' http://127.0.0.1:8000/chat/msg_1
"""

import asyncio
import json
import os

from quart import Quart, Response, request

from resumable_stream.server import Hub, HubAnswer, MemoryLog

app = Quart(__name__)
hub = Hub(MemoryLog())  # SQLiteLog("streams.db") or RedisLog("redis://…"), when there is more than one process


async def answer(prompt: str):
    """Instead of a model."""
    for word in f"You said: {prompt}. I have thought about it for a while, and I agree with every word of it.".split():
        await asyncio.sleep(0.02)
        yield {"text": f"{word} "}


def respond(found: HubAnswer) -> Response:
    response = Response(found, status=found.status, headers=found.headers)
    response.timeout = None  # Otherwise Quart ends a response after a minute.
    return response


@app.while_serving
async def lifespan():
    async with hub:
        yield


@app.post("/chat")
async def chat() -> Response:
    body = await request.get_data()
    run = answer(json.loads(body)["prompt"])
    return respond(await hub.answer("POST", request.headers, run=run, path=request.path, body=body))


@app.get("/chat/<id>")
async def again(id: str) -> Response:
    return respond(await hub.answer(request.method, request.headers, request.query_string, id=id, path=request.path))


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")))
