"""SDKs stop reading at `[DONE]`, and close: that is the end of the stream, not a place in its middle."""

from __future__ import annotations

import json
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.stores import MemoryStore

from .conftest import Reply, Rig

# httpx leaves a generator of its own open on trio, with a warning, wherever it is closed in mid-stream.
ROWS = [f"{driver}-{family}" for driver in ("sync", "asyncio", "trio") for family in ("httpx", "httpx2")]
pytestmark = pytest.mark.parametrize("row", [row for row in ROWS if row != "trio-httpx"], indirect=True)

CHAT = "https://api.example.com/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}
CHUNKS = [
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b'data: {"id":"c1","choices":[],"usage":{"total_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
]

INTERACTIONS = "https://api.example.com/v1beta/interactions"
BODY = {"model": "m", "input": "Hi", "stream": True}


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'event_type': kind, **more})}\n\n".encode()


EVENTS = [
    event("interaction.created", event_id="a", interaction={"id": "i1", "status": "in_progress"}),
    event("step.delta", event_id="b", index=0, delta={"type": "text", "text": "Hi"}),
    event("interaction.completed", event_id="c", interaction={"id": "i1", "status": "completed"}),
    b"data: [DONE]\n\n",
]


async def read(rig: Rig, url: str, body: Any, chunks: list[bytes], most: int, **options: Any) -> Any:
    """Read so many of the chunks, then close: the stream below."""
    client = rig.client(lambda request: Reply(chunks), **options)
    response = await rig.send(client, "POST", url, json=body)
    chunk = response.iter_raw() if rig.row.sync else response.aiter_raw()
    got = [next(chunk) if rig.row.sync else await anext(chunk) for _ in range(most)]
    assert got == chunks[:most]
    await rig.close(response)
    if not rig.row.sync:
        await chunk.aclose()
    return rs.stream_of(response)


@pytest.mark.parametrize(
    ("most", "outcome"), [(1, None), (2, rs.Outcome.COMPLETED), (3, rs.Outcome.COMPLETED), (4, rs.Outcome.COMPLETED)]
)
async def test_of_what_cannot_be_resumed(rig: Rig, most: int, outcome: rs.Outcome | None) -> None:
    stream = await read(rig, CHAT, ASK, CHUNKS, most)
    assert stream.outcome is outcome
    assert stream.checkpoint.complete is (outcome is not None)


@pytest.mark.parametrize(("most", "outcome"), [(2, None), (3, None), (4, rs.Outcome.COMPLETED)])
async def test_of_what_can_be_resumed(rig: Rig, most: int, outcome: rs.Outcome | None) -> None:
    stream = await read(rig, INTERACTIONS, BODY, EVENTS, most)
    assert stream.outcome is outcome
    # Behind its last event another process might still ask for what follows.
    assert stream.checkpoint.complete is (outcome is not None)


async def test_what_is_kept_is_not_asked_for_and_paid_again(rig: Rig) -> None:
    store = MemoryStore(keep_events=True)
    for _ in range(2):
        stream = await read(rig, CHAT, ASK, CHUNKS, 4, store=store, key=lambda request: "answer")
        assert stream.checkpoint.complete
    assert len(rig.sent) == 1
