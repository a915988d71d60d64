"""
A chat endpoint in aiohttp. Run it and cut it off: any request can get the rest.

    pip install resumable-stream-sdk aiohttp
    python examples/servers/aiohttp_app.py
    curl -N -H 'Idempotency-Key: msg_1' -d '{"prompt": "Hello"}' http://127.0.0.1:8000/chat
    curl -N -H 'Last-Event-ID: <the last id>' http://127.0.0.1:8000/chat/msg_1
"""

import asyncio
import json
import os

from aiohttp import web

from resumable_stream.server import Hub, HubAnswer, MemoryLog

hub = Hub(MemoryLog())  # SQLiteLog("streams.db") or RedisLog("redis://…"), when there is more than one process


async def answer(prompt: str):
    """Instead of a model."""
    for word in f"You said: {prompt}. I have thought about it for a while, and I agree with every word of it.".split():
        await asyncio.sleep(0.02)
        yield {"text": f"{word} "}


async def respond(request: web.Request, found: HubAnswer) -> web.StreamResponse:
    response = web.StreamResponse(status=found.status, headers=dict(found.headers))
    await response.prepare(request)
    async for piece in found:
        await response.write(piece)
    await response.write_eof()
    return response


async def chat(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    run = answer(json.loads(body)["prompt"])
    return await respond(request, await hub.answer("POST", request.headers, run=run, path=request.path, body=body))


async def again(request: web.Request) -> web.StreamResponse:
    query, id = request.rel_url.raw_query_string, request.match_info["id"]
    return await respond(request, await hub.answer(request.method, request.headers, query, id=id, path=request.path))


async def lifespan(app: web.Application):
    async with hub:
        yield


app = web.Application()
app.cleanup_ctx.append(lifespan)
app.add_routes([web.post("/chat", chat), web.get("/chat/{id}", again)])

if __name__ == "__main__":
    # With `handler_cancellation` the server notices at once that a client left, not at the next event.
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), handler_cancellation=True)
