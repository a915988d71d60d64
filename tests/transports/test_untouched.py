"""What is no stream passes as it would without us: answers, errors, uploads, auth, hooks, redirects, mounts, cancellation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer

from .conftest import Reply, Rig

URL = "https://api.example.com/v1/things"
EVENTS = [b"id: 1\ndata: one\n\n", b"data: [DONE]\n\n"]


async def test_an_answer_that_is_no_stream_is_the_same_object(rig: Rig) -> None:
    seen: list[Any] = []

    def answer(request: Any) -> Reply:
        return Reply([b'{"a":', b"1}"], headers={"content-type": "application/json", "content-length": "7"})

    next_transport = rig.fake(answer)
    name = "handle_request" if rig.row.sync else "handle_async_request"
    handle = getattr(type(next_transport), name)

    def watched(self: Any, request: Any) -> Any:
        found = handle(self, request)
        seen.append(found)
        return found

    async def awatched(self: Any, request: Any) -> Any:
        seen.append(await handle(self, request))
        return seen[-1]

    setattr(type(next_transport), name, watched if rig.row.sync else awatched)
    client = rig.client(transport=rig.transport(next_transport))
    response, chunks = await rig.read(client, "POST", URL, json={"stream": False})
    assert (response, b"".join(chunks)) == (seen[0], b'{"a":1}')
    assert response.headers["content-length"] == "7"
    assert rs.stream_of(response) is None


@pytest.mark.parametrize("status", [204, 301, 400, 401, 404, 429, 500, 503])
async def test_a_status_is_the_sdks_to_judge(rig: Rig, status: int) -> None:
    client = rig.client(lambda request: Reply([b"why"], status=status, headers={"content-type": "text/event-stream", "x": "y"}))
    response, chunks = await rig.read(client, "POST", URL)
    assert (response.status_code, b"".join(chunks), response.headers["x"]) == (status, b"why", "y")
    # Its own retries are enough: nothing was tried again here.
    assert len(rig.sent) == 1


@pytest.mark.parametrize("name", ["ConnectError", "ConnectTimeout", "ReadTimeout", "WriteError", "RemoteProtocolError"])
async def test_an_error_before_the_head_is_the_sdks_to_handle(rig: Rig, name: str) -> None:
    error = getattr(rig.module, name)("before the head")
    with pytest.raises(rig.module.TransportError) as caught:
        await rig.read(rig.client(lambda request: error), "GET", URL)
    assert caught.value is error
    assert len(rig.sent) == 1


async def test_an_upload_from_an_iterator_is_sent_once_and_as_it_comes(rig: Rig) -> None:
    parts = [b"a" * 10, b"b" * 10]

    def body() -> Iterator[bytes]:
        yield from parts

    async def abody() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    received: list[bytes] = []

    def answer(request: Any) -> Reply:
        assert not hasattr(request, "_content")
        if rig.row.sync:
            received.extend(request.stream)
        return Reply(EVENTS[:1], "rst")

    client = rig.client(answer)
    with pytest.raises(rig.module.ReadError) as caught:
        await rig.read(client, "POST", URL, content=body() if rig.row.sync else abody())
    assert isinstance(caught.value, rs.StreamInterrupted)
    assert len(rig.sent) == 1
    if rig.row.sync:
        assert received == parts


async def test_a_head_request_has_no_body_to_splice(rig: Rig) -> None:
    response, chunks = await rig.read(rig.client(lambda request: Reply([])), "HEAD", URL)
    assert (chunks, rs.stream_of(response)) == ([], None)


async def test_redirects_auth_and_hooks_of_the_client(rig: Rig) -> None:
    module, seen = rig.module, []

    def answer(request: Any) -> Reply:
        assert request.headers["authorization"].startswith("Basic ")
        if request.url.path == "/v1/things":
            return Reply(status=307, headers={"location": "/v2/things"})
        return Reply(EVENTS) if "last-event-id" in request.headers else Reply(EVENTS[:1], "rst")

    def hook(thing: Any) -> None:
        seen.append(type(thing).__name__)

    async def ahook(thing: Any) -> None:
        seen.append(type(thing).__name__)

    one = hook if rig.row.sync else ahook
    options = {
        "auth": module.BasicAuth("me", "pw"),
        "follow_redirects": True,
        "event_hooks": {"request": [one], "response": [one]},
    }
    response, chunks = await rig.read(rig.client(answer, client=options), "GET", URL)
    assert b"".join(chunks) == b"".join(EVENTS)
    assert str(response.url).endswith("/v2/things")
    assert [str(redirected.url) for redirected in response.history] == [URL]
    # A reconnect is below them: it goes where the stream is, with the credentials that got it.
    assert seen == ["Request", "Response"] * 2
    assert [request.url.path for request in rig.sent] == ["/v1/things", "/v2/things", "/v2/things"]


async def test_a_challenge_is_answered_before_the_stream(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        if "authorization" not in request.headers:
            challenge = 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'
            return Reply(status=401, headers={"www-authenticate": challenge})
        return Reply(EVENTS)

    client = rig.client(answer, client={"auth": rig.module.DigestAuth("me", "pw")})
    _, chunks = await rig.read(client, "GET", URL)
    assert b"".join(chunks) == b"".join(EVENTS)
    assert len(rig.sent) == 2


async def test_mounted_for_one_host_only(rig: Rig) -> None:
    spliced = rig.transport(rig.fake(lambda request: Reply(EVENTS)))
    plain = rig.fake(lambda request: Reply(EVENTS))
    client = rig.client(transport=plain, client={"mounts": {"all://api.example.com": spliced}})
    inside, _ = await rig.read(client, "GET", URL)
    outside, _ = await rig.read(client, "GET", "https://other.example.com/")
    assert rs.stream_of(inside) is not None
    assert rs.stream_of(outside) is None


async def test_many_streams_on_one_client(rig: Rig) -> None:
    frames = [[f"id: {n}\ndata: {name} {n}\n\n" for n in range(1, 41)] + ["data: [DONE]\n\n"] for name in "abcd"]
    client = rig.client()
    servers = [
        FlakyServer(each, [Fault.cut(after_events=7 * at + 3), Fault.cut(after_events=2)]) for at, each in enumerate(frames)
    ]
    bodies: dict[int, bytes] = {}

    async def read(at: int) -> None:
        with servers[at] as server:
            _, chunks = await rig.read(client, "GET", server.url)
            bodies[at] = b"".join(chunks)

    if rig.row.sync:
        for at in range(4):
            await read(at)
    else:
        async with anyio.create_task_group() as group:
            for at in range(4):
                group.start_soon(read, at)
    assert bodies == {at: "".join(each).encode() for at, each in enumerate(frames)}


@pytest.mark.usefixtures("spotless")
async def test_leaving_in_the_middle_closes_the_connection(rig: Rig) -> None:
    if rig.row.driver == "trio":
        pytest.skip("the generators of the library's response, above us, are left to the collector, with us or without")
    frames = [f"id: {n}\ndata: {n}\n\n" for n in range(1, 1000)]
    with FlakyServer(frames, pace=0.01) as server:
        client = rig.client()
        response = await rig.send(client, "GET", server.url)
        chunks: list[bytes] = []
        await rig.drain(response, chunks, most=3)
        await rig.close(response)
        stream = rs.stream_of(response)
        # What it was given is taken.
        assert stream.checkpoint.offset == b"".join(chunks).count(b"data:")
        assert stream.outcome is None
        await rig.row.until(server.wait_disconnected)
        await rig.row.close_clients()


@pytest.mark.usefixtures("spotless")
async def test_a_cancelled_reader_leaves_nothing_behind(rig: Rig) -> None:
    if rig.row.sync:
        pytest.skip("threads are not cancelled")
    with FlakyServer(["id: 1\ndata: 1\n\n", "id: 2\ndata: 2\n\n"], [Fault.cut(after_events=1, how="silence")]) as server:
        client = rig.client()
        response = await rig.send(client, "GET", server.url)
        chunks: list[bytes] = []
        async with anyio.create_task_group() as group:
            group.start_soon(rig.drain, response, chunks)
            await rig.row.until(lambda: chunks)
            group.cancel_scope.cancel()
        await rig.close(response)
        assert chunks == [b"id: 1\ndata: 1\n\n"]
        assert rs.stream_of(response).checkpoint.cursor == "1"
        await rig.row.close_clients()


async def test_the_clients_read_works_too(rig: Rig) -> None:
    client = rig.client(lambda request: Reply(EVENTS) if "last-event-id" in request.headers else Reply(EVENTS[:1], "fin"))
    response = client.get(URL) if rig.row.sync else await client.get(URL)
    assert response.content == b"".join(EVENTS)
