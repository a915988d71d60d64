"""What ends an answer, for those who read its bytes: an SDK must get what proves it, whole, and no half for a whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._core import clocks
from resumable_stream.framing import SSEDecoder

from .conftest import Reply, Rig

CHAT = "https://api.example.com/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}


def chunk(text: str | None, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


async def read(rig: Rig, *chunks: bytes, cut: str = "close") -> bytes:
    client = rig.client(lambda request: Reply(chunks, cut))
    _, got = await rig.read(client, "POST", CHAT, json=ASK)
    return b"".join(got)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("cut", ["rst", "fin", "silence", "close"])
async def test_a_reason_in_every_chunk_does_not_make_half_an_answer_whole(rig: Rig, cut: str, together: bool) -> None:
    """su-kaka/gcli2api#403. An SDK took the half; the text before the error is handed on."""
    chunks = [chunk("Hel", "stop"), chunk("lo", "stop")]
    got: list[bytes] = []
    response = await rig.send(
        rig.client(lambda request: Reply([b"".join(chunks)] if together else chunks, cut)), "POST", CHAT, json=ASK
    )
    with pytest.raises(rig.module.TransportError) as caught:
        await rig.drain(response, got)
    assert isinstance(rs.error_of(caught.value), rs.StreamInterrupted)
    assert b"".join(got) == b"".join(chunks)
    await rig.close(response)


async def test_done_makes_it_whole(rig: Rig) -> None:
    chunks = [chunk("Hel", "stop"), chunk("lo", "stop"), b"data: [DONE]\n\n"]
    assert await read(rig, *chunks) == b"".join(chunks)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("last", ["reason", "done"])
async def test_the_last_event_without_its_empty_line_is_handed_on_as_a_whole_block(
    rig: Rig, last: str, missing: int, end: str
) -> None:
    """openai/openai-node#2725. Before a clean close it proves the end, so those who read on by blocks must see it."""
    chunks = [chunk("hi"), chunk(None, "stop")] + ([b"data: [DONE]\n\n"] if last == "done" else [])
    body = b"".join(chunks).replace(b"\n", end.encode())
    reader = SSEDecoder()
    got = [event.data for event in reader.feed(await read(rig, body[: -missing * len(end)]))]
    assert got == [each[6:-2].decode() for each in chunks]
    assert not reader.partial


@pytest.mark.parametrize("cut", ["rst", "fin", "silence"])
async def test_before_a_cut_it_is_dropped(rig: Rig, cut: str) -> None:
    with pytest.raises(rig.module.TransportError) as caught:
        await read(rig, chunk("hi"), chunk(None, "stop")[:-1], cut=cut)
    assert isinstance(rs.error_of(caught.value), rs.StreamInterrupted)


async def test_heartbeats_for_ever_after_the_reason_are_an_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """maximhq/bifrost#6784. Who reads the body to its end, as SDKs do, would never get there."""
    monkeypatch.setattr(clocks, "AFTER_THE_END", 0.0)
    chunks = [chunk("hi"), chunk(None, "stop"), *[b": heartbeat\n\n"] * 1000]
    got: Any = await read(rig, *chunks, cut="silence")
    assert got.startswith(b"".join(chunks[:2]))
    assert got.count(b"heartbeat") < 1000
