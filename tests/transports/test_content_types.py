"""
An answer to a request for a stream, where its content type is missing, wrong or there twice.

SDKs do not look at the type (openai 3.51, anthropic 2.10 and google-genai 3.3 read whatever comes), so what the transport hands
on untouched they take for the answer, half of it included.
"""

from __future__ import annotations

import pytest

import resumable_stream as rs
from resumable_stream.protocols import OpenAIChat

from .conftest import Reply, Rig

URL = "https://api.example.com/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}
HALF = [b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n']
WHOLE = [*HALF, b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n"]

TYPES = [
    {},
    {"content-type": ""},
    {"content-type": "text/plain; charset=utf-8"},
    {"content-type": "application/octet-stream"},
    {"content-type": "text/event-stream, text/event-stream"},
    {"content-type": "text/html, text/event-stream"},
]


@pytest.mark.parametrize("headers", TYPES, ids=str)
async def test_half_an_answer_raises_whatever_its_type(rig: Rig, headers: dict[str, str]) -> None:
    for how, native in (("close", "RemoteProtocolError"), ("rst", "ReadError")):
        chunks: list[bytes] = []
        response = await rig.send(rig.client(lambda request, how=how: Reply(HALF, how, headers=headers)), "POST", URL, json=ASK)
        with pytest.raises(rs.StreamInterrupted) as caught:
            await rig.drain(response, chunks)
        await rig.close(response)
        assert isinstance(caught.value, getattr(rig.module, native))
        assert b"".join(chunks) == HALF[0]


@pytest.mark.parametrize("headers", TYPES, ids=str)
async def test_a_whole_answer_is_handed_on_whatever_its_type(rig: Rig, headers: dict[str, str]) -> None:
    response, chunks = await rig.read(rig.client(lambda request: Reply(WHOLE, headers=headers)), "POST", URL, json=ASK)
    assert b"".join(chunks) == b"".join(WHOLE)
    assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED
    assert response.headers.get("content-type") == headers.get("content-type"), "the SDK sees the server's own headers"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
@pytest.mark.parametrize("frames", [HALF, WHOLE], ids=["half", "whole"])
async def test_plain_text_that_is_announced_as_coded_is_an_error(rig: Rig, frames: list[bytes], coding: str) -> None:
    """
    rossoctl/cortex#656: a proxy decodes the body and leaves `Content-Encoding: gzip`.

    Nothing shows that the bytes are what the server meant, so none is handed on, and the request is not sent again.
    """
    headers = {"content-type": "text/event-stream", "content-encoding": coding}
    with pytest.raises(rs.StreamInterrupted, match="connection lost: CodingError") as caught:
        await rig.read(rig.client(lambda request: Reply(frames, headers=headers)), "POST", URL, json=ASK)
    assert isinstance(caught.value, rig.module.ReadError)
    assert "cannot inflate" in str(caught.value.__cause__)
    assert len(rig.sent) == 1


@pytest.mark.parametrize("kind", ["text/html", "image/png", "application/x-ndjson"])
async def test_a_page_is_no_answer(rig: Rig, kind: str) -> None:
    """The page of a proxy or a hotspot, with status 200: an SDK finds no event in it, and takes that for a whole answer."""
    page = Reply([b"<html>Log in</html>"], headers={"content-type": kind})
    with pytest.raises(rs.UnexpectedContentType) as caught:
        await rig.read(rig.client(lambda request: page), "POST", URL, json=ASK)
    assert isinstance(caught.value, rig.module.RemoteProtocolError)
    assert caught.value.received == kind
    assert len(rig.sent) == 1
    assert rig.closed, "the connection is not left to the collector"


async def test_a_protocol_that_was_given_reads_it_with_its_options(rig: Rig) -> None:
    frames = [*HALF, b"data: [DONE]\n\n"]
    client = rig.client(lambda request: Reply(frames, headers={}), protocols=[OpenAIChat(end="[DONE]")])
    response, chunks = await rig.read(client, "POST", URL, json=ASK)
    assert (b"".join(chunks), rs.stream_of(response).outcome) == (b"".join(frames), rs.Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({**ASK, "stream": False}, {}),
        ({**ASK, "stream": False}, {"content-type": "text/html"}),
        # A server that knows no streams, or reports an error with status 200: SDKs tell documents by their type.
        (ASK, {"content-type": "application/json"}),
    ],
)
async def test_what_is_no_stream_passes(rig: Rig, body: dict[str, object], headers: dict[str, str]) -> None:
    response, chunks = await rig.read(rig.client(lambda request: Reply([b"{}"], headers=headers)), "POST", URL, json=body)
    assert b"".join(chunks) == b"{}"
    assert rs.stream_of(response) is None
