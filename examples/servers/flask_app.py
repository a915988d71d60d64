"""
A chat endpoint in Flask. Run it and cut it off: any request can get the rest.

    pip install resumable-stream-sdk flask
    python examples/servers/flask_app.py
    curl -N -H 'Idempotency-Key: msg_1' -d '{"prompt": "Hello"}' http://127.0.0.1:8000/chat
    curl -N -H 'Last-Event-ID: <the last id>' http://127.0.0.1:8000/chat/msg_1

Each reader takes a thread of the server: `gunicorn --worker-class gthread --threads 100 flask_app:app`.
"""

import json
import os
import time

from flask import Flask, Response, request
from werkzeug.serving import WSGIRequestHandler

from resumable_stream.server import Hub, MemoryLog

app = Flask(__name__)
# The hub runs in a thread that starts with the first request, which is after the fork of a server such as gunicorn.
# SQLiteLog("streams.db") or RedisLog("redis://…"), when there is more than one process.
portal = Hub(MemoryLog()).portal()


def answer(prompt: str):
    """Instead of a model."""
    for word in f"You said: {prompt}. I have thought about it for a while, and I agree with every word of it.".split():
        time.sleep(0.02)
        yield {"text": f"{word} "}


@app.post("/chat")
def chat() -> Response:
    body = request.get_data()
    run = answer(json.loads(body)["prompt"])
    found = portal.answer("POST", request.headers, run=run, path=request.path, body=body)
    return Response(found, status=found.status, headers=found.headers)


@app.get("/chat/<id>")
def again(id: str) -> Response:
    found = portal.answer(request.method, request.headers, request.query_string, id=id, path=request.path)
    return Response(found, status=found.status, headers=found.headers)


if __name__ == "__main__":
    # With HTTP/1.0, the default here, a cut body looks complete to a client.
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    app.run(port=int(os.environ.get("PORT", "8000")), threaded=True)
