"""What a transport can be told: fresh tokens, stores, clocks, limits, background responses; and how to see what it does."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import anyio
import pytest

import resumable_stream as rs
from resumable_stream.protocols import LlamaCpp, OpenAIResponses
from resumable_stream.stores import FileStore, MemoryStore
from resumable_stream.testing import Fault, FlakyServer

from .conftest import SSE, Reply, Rig

URL = "https://api.example.com/feed"
EVENTS = [b"id: 1\nevent: a\ndata: one\n\n", b"id: 2\ndata: two\ndata: lines\n\n", b"data: [DONE]\n\n"]
WHOLE = b"".join(EVENTS)


def after_one(request: Any) -> Reply:
    """The first connection is cut behind the first event."""
    return Reply(EVENTS[1:]) if request.headers.get("last-event-id") == "1" else Reply(EVENTS[:1], "rst")


# --- requests of ours


async def test_a_resume_is_the_sdks_request_with_a_cursor(rig: Rig) -> None:
    headers = {
        "authorization": "Bearer t",
        "x-sdk": "1",
        "cookie": "c=d",
        "accept": "text/event-stream",
        "host": "api.example.com",
    }
    client = rig.client(after_one)
    await rig.read(client, "GET", f"{URL}?a=1&b=x%20y", headers=headers, extensions={"sni_hostname": "front"})
    first, second = rig.sent
    assert str(second.url) == str(first.url)
    kept = {name: value for name, value in second.headers.items() if name in {*first.headers}}
    assert kept == dict(first.headers)
    assert second.headers["last-event-id"] == "1"
    assert second.extensions["sni_hostname"] == "front"
    assert second.extensions["timeout"].keys() == {"connect", "read", "write", "pool"}


async def test_the_sdks_request_is_as_it_was_afterwards(rig: Rig) -> None:
    client = rig.client(after_one, client={"timeout": 7.0})
    await rig.read(client, "GET", URL)
    assert rig.sent[0].extensions["timeout"]["read"] == 7.0
    assert type(rig.sent[0].extensions["timeout"]["read"]) is float


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_reconnect_gets_a_fresh_token(rig: Rig, kind: str) -> None:
    if kind == "coroutine" and rig.row.sync:
        pytest.skip("a sync transport calls a function")
    tokens = iter(["second", "third"])

    def refresh(request: Any) -> Any:
        request.headers["authorization"] = f"Bearer {next(tokens)}"
        return request

    async def arefresh(request: Any) -> Any:
        return refresh(request)

    def answer(request: Any) -> Reply:
        token = request.headers["authorization"]
        # The second has run out on the way.
        return Reply(status=401) if token == "Bearer second" else after_one(request)

    client = rig.client(answer, refresh=refresh if kind == "plain" else arefresh)
    _, chunks = await rig.read(client, "GET", URL, headers={"authorization": "Bearer first"})
    assert b"".join(chunks) == WHOLE
    assert [request.headers["authorization"][7:] for request in rig.sent] == ["first", "second", "third"]


async def test_another_origin_gets_nothing_of_it(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        if request.url.host == "cdn.example.net":
            return Reply(EVENTS[1:])
        if "last-event-id" in request.headers:
            return Reply(status=302, headers={"location": "https://cdn.example.net/rest"})
        return Reply(EVENTS[:1], "rst")

    def refresh(request: Any) -> Any:
        request.headers["authorization"] = "Bearer fresh"
        return request

    headers = {"authorization": "Bearer t", "cookie": "c=d", "x-api-key": "k"}
    _, chunks = await rig.read(rig.client(answer, refresh=refresh), "GET", URL, headers=headers)
    assert b"".join(chunks) == WHOLE
    bare = rig.sent[-1].headers
    assert not {"authorization", "cookie", "x-api-key"} & set(bare)


# --- clocks


async def test_the_sdks_read_timeout_applies_where_it_is_shorter(rig: Rig) -> None:
    seen: list[float | None] = []

    def answer(request: Any) -> Reply:
        seen.append(request.extensions["timeout"]["read"])
        return after_one(request)

    for read in (5.0, 100.0, None):
        await rig.read(rig.client(answer, client={"timeout": rig.module.Timeout(5.0, read=read)}), "GET", URL)
    # The first request is the SDK's; the head of a reconnect may take as long as any read: 60 s, where it can be resumed.
    assert [float(each) if each is not None else None for each in seen] == [5.0, 5.0, 100.0, 60.0, None, 60.0]


async def test_a_silent_connection_is_left_for_another(rig: Rig) -> None:
    frames = ["id: 1\ndata: one\n\n", "id: 2\ndata: two\n\n", "data: [DONE]\n\n"]
    with FlakyServer(frames, [Fault.cut(after_events=1, how="silence")]) as server:
        client = rig.client(client={"timeout": rig.module.Timeout(5.0, read=0.2)})
        response, chunks = await rig.read(client, "GET", server.url)
    assert b"".join(chunks) == "".join(frames).encode()
    assert rs.stream_of(response).stats.reconnects == 1


async def test_a_silent_connection_that_cannot_be_left_is_a_read_timeout(rig: Rig) -> None:
    with FlakyServer(["data: one\n\n", "data: two\n\n"], [Fault.cut(after_events=1, how="silence")]) as server:
        client = rig.client(client={"timeout": rig.module.Timeout(5.0, read=0.2)})
        with pytest.raises(rig.module.ReadTimeout) as caught:
            await rig.read(client, "POST", server.url)
    assert isinstance(caught.value, rs.StreamInterrupted)


async def test_limits(rig: Rig) -> None:
    client = rig.client(lambda request: Reply([b"data: " + b"x" * 5000]), limits=rs.Limits(line_bytes=1000))
    with pytest.raises(rs.EventTooLarge):
        await rig.read(client, "GET", URL)


# --- codings


def gzipped() -> bytes:
    return gzip.compress(WHOLE)


def zlibbed() -> bytes:
    return zlib.compress(WHOLE)


def brotlied() -> bytes:
    import brotli

    return brotli.compress(WHOLE)


def zstandarded() -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(WHOLE)


@pytest.mark.parametrize(
    ("coding", "pack", "needs"),
    [("gzip", gzipped, "gzip"), ("deflate", zlibbed, "zlib"), ("br", brotlied, "brotli"), ("zstd", zstandarded, "zstandard")],
)
async def test_a_coded_body_comes_out_decoded_and_says_so(rig: Rig, coding: str, pack: Any, needs: str) -> None:
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}")
    packed = pack()
    headers = {**SSE, "content-encoding": coding, "content-length": str(len(packed))}
    for cut in range(1, len(packed), 5):

        def answer(request: Any, cut: int = cut) -> Reply:
            if request.headers.get("last-event-id"):
                return after_one(request) if request.headers["last-event-id"] == "1" else Reply(EVENTS[2:])
            done = "accept-encoding" in request.headers and len(rig.sent) > 1
            return Reply([packed], headers=headers) if done else Reply([packed[:cut]], "rst", headers=headers)

        rig.sent.clear()
        response, chunks = await rig.read(rig.client(answer), "GET", URL, raw=False)
        assert b"".join(chunks) == WHOLE
        assert not {"content-encoding", "content-length"} & set(response.headers)


async def test_a_coding_that_nobody_here_knows_is_handed_on(rig: Rig) -> None:
    headers = {**SSE, "content-encoding": "dcb"}
    response, chunks = await rig.read(rig.client(lambda request: Reply([b"\x01\x02"], headers=headers)), "GET", URL)
    assert (b"".join(chunks), response.headers["content-encoding"]) == (b"\x01\x02", "dcb")


@pytest.mark.parametrize("word", ["none", "utf-8", "identity", "UTF-8, none", ""])
async def test_a_word_that_is_no_coding_changes_nothing(rig: Rig, word: str) -> None:
    """
    Applications write `Content-Encoding: none` on event streams, so that no proxy compresses them.

    It is not in IANA's registry of codings (RFC 9110 section 8.4.1), and HTTP libraries leave such a body as it is.
    """
    reply = {"1": Reply(EVENTS[1:], headers={**SSE, "content-encoding": word})}
    first = Reply(EVENTS[:1], "rst", headers={**SSE, "content-encoding": word})
    client = rig.client(lambda request: reply.get(request.headers.get("last-event-id", ""), first))
    response, chunks = await rig.read(client, "GET", URL)
    assert (b"".join(chunks), response.headers["content-encoding"]) == (WHOLE, word)


# --- stores


def stores(tmp_path: Path) -> list[Any]:
    return [MemoryStore(keep_events=True), FileStore(tmp_path, keep_events=True)]


async def test_a_known_key_is_answered_from_the_store(rig: Rig, tmp_path: Path) -> None:
    for store in stores(tmp_path):
        rig.sent.clear()
        options = {"store": store, "key": lambda request: request.headers.get("x-key")}
        response, chunks = await rig.read(rig.client(after_one, **options), "GET", URL, headers={"x-key": "answer"})
        assert b"".join(chunks) == WHOLE
        count = len(rig.sent)
        response, chunks = await rig.read(rig.client(after_one, **options), "GET", URL, headers={"x-key": "answer"})
        assert len(rig.sent) == count
        assert response.headers["content-type"] == "text/event-stream"
        # The events, not the bytes: comments and white space are not kept.
        assert b"".join(chunks) == WHOLE
        assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED
        # No key: not kept.
        await rig.read(rig.client(after_one, **options), "GET", URL)
        assert len(rig.sent) > count


async def test_half_an_answer_is_continued_by_the_next_process(rig: Rig, tmp_path: Path) -> None:
    for store in stores(tmp_path):
        options = {"store": store, "key": lambda request: "k"}
        gone = [Reply(EVENTS[:1], "rst"), Reply(status=500), Reply(status=500), Reply(status=500)]
        client = rig.client(
            lambda request, gone=gone: gone.pop(0), retry=rs.RetryPolicy(attempts=1, wait=lambda state: 0.0), **options
        )
        with pytest.raises(rs.RetriesExhausted):
            await rig.read(client, "GET", URL)
        rig.sent.clear()
        _, chunks = await rig.read(rig.client(after_one, **options), "GET", URL)
        assert b"".join(chunks) == WHOLE
        assert [request.headers["last-event-id"] for request in rig.sent] == ["1"]


async def test_half_an_answer_that_cannot_be_continued_is_shown_and_raises_until_it_may_be_replaced(
    rig: Rig, tmp_path: Path
) -> None:
    """As with `connect()`: nothing is paid twice silently (G3), and the error says how to pay once more."""
    half = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    url, body = "https://api.example.com/v1/chat/completions", {"model": "m", "messages": [], "stream": True}
    for store in stores(tmp_path):
        options = {"store": store, "key": lambda request: "k"}
        with pytest.raises(rs.StreamInterrupted, match=r"delete\('k'\) from the store, or pass on_lost='restart'"):
            await rig.read(rig.client(lambda request: Reply([half], "rst"), **options), "POST", url, json=body)
        count, client = len(rig.sent), rig.client(lambda request: Reply([half, end]), **options)
        for _ in range(2):
            response, chunks = await rig.send(client, "POST", url, json=body), []
            with pytest.raises(rs.NotResumable, match=r"delete\('k'\) from the store, or pass on_lost='restart'") as caught:
                await rig.drain(response, chunks)
            await rig.close(response)
            assert isinstance(caught.value, rig.module.TransportError)
            assert b"".join(chunks) == half
        assert len(rig.sent) == count
        client = rig.client(lambda request: Reply([half, end]), on_lost="restart", **options)
        _, chunks = await rig.read(client, "POST", url, json=body)
        assert b"".join(chunks) == half + end
        assert len(rig.sent) == count + 1
        # The half is replaced: with either option the whole answer is there.
        for on_lost in ("raise", "restart"):
            client = rig.client(lambda request: Reply(status=500), on_lost=on_lost, **options)
            _, chunks = await rig.read(client, "POST", url, json=body)
            assert b"".join(chunks) == half + end


async def test_below_an_sdk_there_are_two_ways_with_what_is_lost(rig: Rig) -> None:
    with pytest.raises(ValueError, match="'raise' or 'restart'"):
        rig.client(after_one, on_lost="snapshot")


async def test_a_store_of_places_alone_is_for_others(rig: Rig) -> None:
    store = MemoryStore()
    options = {"store": store, "key": lambda request: "k"}
    for _ in range(2):
        _, chunks = await rig.read(rig.client(after_one, **options), "GET", URL)
        assert b"".join(chunks) == WHOLE
    place, _ = store.open("k")
    assert place is not None and place.complete


async def test_a_key_of_another_stream(rig: Rig) -> None:
    options = {"store": MemoryStore(keep_events=True), "key": lambda request: "k"}
    await rig.read(rig.client(after_one, **options), "GET", URL)
    plain = Reply([b"{}"], headers={"content-type": "application/json"})
    # What is no stream takes nothing over.
    await rig.read(rig.client(lambda request: plain, **options), "GET", "https://api.example.com/other")
    with pytest.raises(rs.StoreError, match="another stream") as caught:
        await rig.read(rig.client(after_one, **options), "GET", "https://api.example.com/other")
    assert isinstance(caught.value, rig.module.TransportError)


@pytest.mark.parametrize("keep_events", [True, False])
async def test_another_question_under_the_same_key_is_refused(rig: Rig, keep_events: bool) -> None:
    """As `connect()` refuses it; where the answer would come from the store, before anything is sent."""
    options = {"store": MemoryStore(keep_events=keep_events), "key": lambda request: "k"}
    url = "https://api.example.com/v1/responses"
    client = rig.client(responses, **options)
    await rig.read(client, "POST", url, json={"input": "one", "stream": True, "background": True})
    count = len(rig.sent)
    with pytest.raises(rs.StoreError, match=r"another body.*request_key\(\)"):
        await rig.read(client, "POST", url, json={"input": "two", "stream": True, "background": True})
    assert len(rig.sent) == count or not keep_events
    # The same one is answered.
    await rig.read(client, "POST", url, json={"background": True, "input": "one", "stream": True})


async def test_a_key_made_of_the_request(rig: Rig) -> None:
    store = MemoryStore(keep_events=True)
    client = rig.client(responses, store=store, key=rs.request_key)
    url = "https://api.example.com/v1/responses"
    for prompt in ("one", "two", "one", "two"):
        await rig.read(client, "POST", url, json={"input": prompt, "stream": True, "background": True})
    assert [request.method for request in rig.sent] == ["POST", "GET", "POST", "GET"]
    assert store.open(rs.request_key("POST", url, json={"input": "one", "stream": True, "background": True}))[0] is not None


async def test_a_key_has_to_be_a_text(rig: Rig) -> None:
    client = rig.client(after_one, store=MemoryStore(), key=lambda request: 5)
    with pytest.raises(TypeError, match="key must return a text"):
        await rig.read(client, "GET", URL)


# --- background responses


def responses(request: Any) -> Reply:
    """A background response, cut behind its first delta."""

    def frame(number: int, **fields: Any) -> bytes:
        return f"data: {json.dumps({'sequence_number': number, **fields})}\n\n".encode()

    response = {"id": "resp_1", "status": "in_progress", "background": True}
    frames = [
        frame(0, type="response.created", response=response),
        frame(1, type="response.output_text.delta", delta="Hel"),
        frame(2, type="response.output_text.delta", delta="lo"),
        frame(3, type="response.completed", response={**response, "status": "completed"}),
    ]
    if request.method == "GET":
        assert request.url.path == "/v1/responses/resp_1"
        return Reply(frames[int(request.url.params["starting_after"]) + 1 :])
    return Reply(frames[:2], "rst")


async def test_a_plain_call_is_turned_into_a_background_one(rig: Rig) -> None:
    client = rig.client(responses, upgrade_background=True, client={"timeout": 9.0})
    body = {"model": "m", "input": "hi", "stream": True}
    headers = {"authorization": "Bearer t"}
    response, chunks = await rig.read(client, "POST", "https://api.openai.com/v1/responses?x=1", json=body, headers=headers)
    assert b"".join(chunks).count(b"data:") == 4
    first, second = rig.sent
    assert json.loads(first.content) == {**body, "background": True}
    assert first.headers["content-length"] == str(len(first.content))
    assert (first.headers["authorization"], second.headers["authorization"]) == ("Bearer t", "Bearer t")
    assert str(first.url) == "https://api.openai.com/v1/responses?x=1"
    assert first.extensions["timeout"]["connect"] == 9.0
    assert rs.stream_of(response).protocol.promises.resumable


@pytest.mark.parametrize(
    ("body", "upgrade"),
    [
        ({"input": "hi", "stream": True, "background": False}, True),
        ({"input": "hi", "stream": True, "store": False}, True),
        ({"input": "hi"}, True),
        ({"input": "hi", "stream": True}, False),
    ],
)
async def test_what_is_no_such_call_is_left_alone(rig: Rig, body: dict[str, Any], upgrade: bool) -> None:
    client = rig.client(lambda request: Reply(status=400), upgrade_background=upgrade)
    await rig.read(client, "POST", "https://api.openai.com/v1/responses", json=body)
    assert json.loads(rig.sent[0].content) == body


async def test_connect_upgrades_too(rig: Rig) -> None:
    client = rig.row.keep(rig.row.client_class(transport=rig.fake(responses), trust_env=False))
    url, body = "https://api.openai.com/v1/responses", {"model": "m", "input": "hi", "stream": True}
    protocol = OpenAIResponses(upgrade_background=True)
    async with rig.row.connect("POST", url, json=body, client=client, protocol=protocol) as stream:
        assert await stream.read_text() == "Hello"
    assert json.loads(rig.sent[0].content) == {**body, "background": True}


# --- looking at it


async def test_a_stream_can_be_looked_at_while_it_is_read(rig: Rig) -> None:
    notices: list[Any] = []
    client = rig.client(after_one, observer=notices.append)
    response = await rig.send(client, "GET", URL)
    stream = rs.stream_of(response)
    chunks: list[bytes] = []
    reader = rig.reader(response)
    await rig.drain(response, chunks, most=1, reader=reader)
    # What was handed out is not taken yet.
    assert stream.checkpoint.offset == 0
    await rig.drain(response, chunks, reader=reader)
    assert stream.outcome is rs.Outcome.COMPLETED
    assert stream.stats.reconnects == 1
    assert stream.checkpoint.complete
    await rig.close(response)
    assert [type(notice).__name__ for notice in notices] == ["Connected", "Disconnected", "Retrying", "Connected", "Finished"]

    class SdkStream:
        def __init__(self) -> None:
            self.response = response

    assert rs.stream_of(SdkStream()) is stream


async def test_the_place_is_good_for_another_process(rig: Rig) -> None:
    gone = [Reply(EVENTS[:1], "rst"), Reply(status=500), Reply(status=500)]
    client = rig.client(lambda request: gone.pop(0), retry=rs.RetryPolicy(attempts=1, wait=lambda state: 0.0))
    with pytest.raises(rs.RetriesExhausted) as caught:
        await rig.read(client, "GET", URL)
    assert caught.value.checkpoint is not None
    plain = rig.row.keep(rig.row.client_class(transport=rig.fake(after_one), trust_env=False))
    async with rig.row.resume(caught.value.checkpoint.token(), origin=URL, client=plain) as stream:
        assert [event.data async for event in stream] == ["two\nlines", "[DONE]"]


async def test_cancel(rig: Rig) -> None:
    answers: list[Any] = []

    def answer(request: Any) -> Reply:
        answers.append(request)
        return (
            Reply([b"{}"], headers={"content-type": "application/json"}) if "cancel" in request.url.path else responses(request)
        )

    client = rig.client(answer)
    body = {"model": "m", "input": "hi", "stream": True, "background": True}
    response = await rig.send(client, "POST", "https://api.openai.com/v1/responses", json=body)
    reader = rig.reader(response)
    await rig.drain(response, [], most=1, reader=reader)
    stream = rs.stream_of(response)
    if rig.row.sync:
        stream.cancel()
    else:
        await stream.cancel()
    assert answers[-1].url.path == "/v1/responses/resp_1/cancel"
    await rig.drain(response, [], reader=reader)
    await rig.close(response)


async def test_a_protocol_by_the_request(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        if request.method == "GET":
            assert dict(request.url.params) == {"conv_id": "c1", "from": "80"}
            return Reply([b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'])
        return Reply([b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'], "fin")

    def choose(request: Any) -> LlamaCpp | None:
        name = request.headers.get("x-conversation-id")
        return LlamaCpp(name) if name else None

    client = rig.client(answer, protocols=choose)
    body = {"messages": [], "stream": True}
    headers = {"x-conversation-id": "c1"}
    response, _ = await rig.read(client, "POST", "https://api.example.com/v1/chat/completions", json=body, headers=headers)
    assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED


async def test_our_own_connect_over_it(rig: Rig) -> None:
    frames = [f"id: {n}\ndata: {n}\n\n" for n in range(1, 31)] + ["data: [DONE]\n\n"]
    with FlakyServer(frames, [Fault.cut(after_events=9), Fault.cut(after_events=9)]) as server:
        async with rig.row.connect("GET", server.url, client=rig.client()) as stream:
            assert [event.data async for event in stream] == [*map(str, range(1, 31)), "[DONE]"]
        # The transport has reconnected, so there was nothing to do above it.
        assert stream.stats.reconnects == 0


async def test_what_is_no_stream_leaves_the_key_with_its_writer(rig: Rig) -> None:
    for store in (MemoryStore(keep_events=True, save_interval=0), MemoryStore(save_interval=0)):
        plain = Reply([b"{}"], headers={"content-type": "application/json"})
        client = rig.client(
            lambda request, plain=plain: plain if request.method == "POST" else Reply(EVENTS),
            store=store,
            key=lambda request: "k",
        )
        response, reader_chunks = await rig.send(client, "GET", URL), []
        reader = rig.reader(response)
        await rig.drain(response, reader_chunks, most=1, reader=reader)
        await rig.read(client, "POST", f"{URL}/cancel")
        await rig.drain(response, reader_chunks, reader=reader)
        await rig.close(response)
        assert b"".join(reader_chunks) == WHOLE


async def test_a_refresh_has_to_answer_with_a_request(rig: Rig) -> None:
    with pytest.raises(TypeError, match="refresh must return the request"):
        await rig.read(rig.client(after_one, refresh=lambda request: None), "GET", URL)


async def test_one_request_may_be_under_way_twice(rig: Rig) -> None:
    client = rig.client(lambda request: Reply(EVENTS))
    request = client.build_request("GET", URL, timeout=700.0)
    given = request.extensions["timeout"]
    responses = []
    for _ in range(2):
        sent = client.send(request, stream=True)
        responses.append(sent if rig.row.sync else await sent)
    for response in responses:
        await rig.drain(response, [])
        await rig.close(response)
    assert request.extensions["timeout"] is given
    assert given["read"] == 700.0


# --- a client of the wrong kind, a library that is missing, an upgrade that cannot be


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize("entered", [True, False])
def test_a_client_of_the_other_kind_is_told_which_transport_it_takes(family: str, entered: bool) -> None:
    library = importlib.import_module(family)
    transports = importlib.import_module(f"resumable_stream.transports.{family}")
    client = library.Client(transport=transports.AsyncResumableTransport())
    with pytest.raises(TypeError, match=f"sync {family}.Client takes the ResumableTransport of resumable_stream.transports"):
        client.__enter__() if entered else client.get("https://api.example.com")
    client.close()

    async def use() -> None:
        client = library.AsyncClient(transport=transports.ResumableTransport())
        try:
            await (client.__aenter__() if entered else client.get("https://api.example.com"))
        finally:
            await client.aclose()

    with pytest.raises(TypeError, match=f"{family}.AsyncClient takes the AsyncResumableTransport of resumable_stream.transports"):
        anyio.run(use)


def test_without_httpx2_its_transports_name_the_extra() -> None:
    code = "import sys; sys.modules['httpx2'] = None; import resumable_stream.transports.httpx2"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: resumable_stream.transports.httpx2 needs httpx2: ")
    assert "pip install 'resumable-stream-sdk[httpx2]'" in last


async def test_an_upgrade_that_cannot_be_says_why(rig: Rig) -> None:
    """OpenAI keeps a background response, so `store: false` excludes it: the option does nothing then, and the error says so."""
    created = b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"id":"resp_1"}}\n\n'
    client = rig.client(lambda request: Reply([created]), upgrade_background=True)
    body = {"model": "m", "input": "hi", "stream": True, "store": False}
    with pytest.raises(rs.StreamInterrupted, match="store: false.*upgrade_background=True left the request as it was"):
        await rig.read(client, "POST", "https://api.openai.com/v1/responses", json=body)
