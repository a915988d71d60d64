"""
A chat endpoint in Django. Run it and cut it off: any request can get the rest.

    pip install "resumable-stream-sdk[server]" django
    python examples/servers/django_app.py
    curl -N -H 'Idempotency-Key: msg_1' -d '{"prompt": "Hello"}' http://127.0.0.1:8000/chat
    curl -N -H 'Last-Event-ID: <the last id>' http://127.0.0.1:8000/chat/msg_1
"""

import asyncio
import json
import os

import django
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from starlette.applications import Starlette
from starlette.routing import Mount

from resumable_stream.server import Hub, MemoryLog

hub = Hub(MemoryLog())  # SQLiteLog("streams.db") or RedisLog("redis://…"), when there is more than one process


async def answer(prompt: str):
    """Instead of a model."""
    for word in f"You said: {prompt}. I have thought about it for a while, and I agree with every word of it.".split():
        await asyncio.sleep(0.02)
        yield {"text": f"{word} "}


@csrf_exempt  # Your own page would send Django's token instead.
async def chat(request: HttpRequest) -> StreamingHttpResponse:
    prompt = json.loads(request.body)["prompt"]
    found = await hub.answer("POST", request.headers, run=answer(prompt), path=request.path, body=request.body)
    return StreamingHttpResponse(found, status=found.status, headers=dict(found.headers))


async def again(request: HttpRequest, id: str) -> StreamingHttpResponse:
    query = request.META["QUERY_STRING"]
    found = await hub.answer(request.method, request.headers, query, id=id, path=request.path)
    return StreamingHttpResponse(found, status=found.status, headers=dict(found.headers))


urlpatterns = [path("chat", chat), path("chat/<str:id>", again)]
if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"], SECRET_KEY="for the example")
    django.setup()
# Django does not learn when a server starts and stops, so the hub is entered around it.
application = Starlette(lifespan=hub.lifespan, routes=[Mount("/", get_asgi_application())])

if __name__ == "__main__":
    uvicorn.run(application, port=int(os.environ.get("PORT", "8000")))
