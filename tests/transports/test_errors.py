"""A stream that cannot go on raises what its HTTP library raises, and what we raise, in one exception."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.protocols import AISDKStream, LastEventID

from .conftest import Reply, Rig

URL = "https://api.example.com/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}
HALF = [b'data: {"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n']
END = [b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    ("cut", "native", "reason"),
    [
        ("rst", "ReadError", "connection lost"),
        ("fin", "RemoteProtocolError", "connection lost"),
        ("silence", "ReadTimeout", "idle"),
        ("close", "RemoteProtocolError", "closed before the end"),
    ],
)
async def test_a_cut_that_cannot_be_resumed(rig: Rig, cut: str, native: str, reason: str) -> None:
    client = rig.client(lambda request: Reply(HALF, cut))
    chunks: list[bytes] = []
    response = await rig.send(client, "POST", URL, json=ASK)
    with pytest.raises(getattr(rig.module, native)) as caught:
        await rig.drain(response, chunks)
    await rig.close(response)
    error = caught.value
    assert b"".join(chunks) == HALF[0]
    assert isinstance(error, rs.StreamInterrupted)
    assert error.reason == reason
    assert error.checkpoint is not None and error.checkpoint.offset == 1
    assert error.request.url == URL
    # Behind whatever an SDK wraps it in.
    wrapped = RuntimeError("the SDK's own")
    wrapped.__cause__ = error
    assert rs.error_of(wrapped) is error
    # Nothing is paid twice.
    assert len(rig.sent) == 1


async def test_an_honest_end_is_an_end(rig: Rig) -> None:
    for cut in ("close", "rst", "fin"):
        response, chunks = await rig.read(rig.client(lambda request, cut=cut: Reply(HALF + END, cut)), "POST", URL, json=ASK)
        assert b"".join(chunks) == b"".join(HALF + END)
        assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED


async def test_a_providers_error_is_handed_on_for_the_sdk_to_raise(rig: Rig) -> None:
    error = b'data: {"error":{"message":"overloaded","code":529}}\n\n'
    response, chunks = await rig.read(rig.client(lambda request: Reply([*HALF, error], "rst")), "POST", URL, json=ASK)
    assert b"".join(chunks) == HALF[0] + error
    assert rs.stream_of(response).outcome is rs.Outcome.FAILED


@pytest.mark.parametrize(
    ("answer", "kind", "native"),
    [
        (Reply(status=410), rs.CursorExpired, "RemoteProtocolError"),
        (Reply(status=400), rs.ResponseRejected, "RemoteProtocolError"),
        (Reply([b"<html>"], headers={"content-type": "text/html"}), rs.UnexpectedContentType, "RemoteProtocolError"),
        (Reply(status=302, headers={"location": "http://api.example.com/"}), rs.OriginMismatch, "RemoteProtocolError"),
    ],
)
async def test_what_the_server_answers_to_a_resume(rig: Rig, answer: Reply, kind: type[Exception], native: str) -> None:
    def server(request: Any) -> Reply:
        return answer if "last-event-id" in request.headers else Reply([b"id: 1\ndata: one\n\n"], "rst")

    with pytest.raises(kind) as caught:
        await rig.read(rig.client(server), "GET", "https://api.example.com/feed")
    assert isinstance(caught.value, getattr(rig.module, native))
    assert caught.value.checkpoint.cursor == "1"  # type: ignore[attr-defined]


async def test_giving_up_is_the_last_error_of_the_network(rig: Rig) -> None:
    def server(request: Any) -> Any:
        if "last-event-id" in request.headers:
            return rig.module.ConnectError("no route to host")
        return Reply([b"id: 1\ndata: one\n\n"], "rst")

    client = rig.client(server, retry=rs.RetryPolicy(attempts=3, wait=lambda state: 0.0))
    with pytest.raises(rig.module.ConnectError) as caught:
        await rig.read(client, "GET", "https://api.example.com/feed")
    assert isinstance(caught.value, rs.RetriesExhausted)
    assert len(rig.sent) == 1 + 1 + 3


async def test_a_reset_cannot_be_said_in_bytes(rig: Rig) -> None:
    class Replaced(LastEventID):
        """A server that has only its newest state."""

        def on_status(self, status: int, headers: Any, body: bytes, state: Any) -> Any:
            from resumable_stream.protocols import Consume

            return Consume(reset=True) if state.resuming else None

    def server(request: Any) -> Reply:
        return (
            Reply([b"id: 1\ndata: one\n\n"], "rst")
            if "last-event-id" not in request.headers
            else Reply([b"id: 9\ndata: nine\n\n"])
        )

    with pytest.raises(rs.StreamReset) as caught:
        await rig.read(rig.client(server, protocols=lambda request: Replaced()), "GET", "https://api.example.com/feed")
    assert isinstance(caught.value, rig.module.TransportError)


async def test_a_gap_that_stays_is_an_error(rig: Rig) -> None:
    body = [b"id: 1\ndata: one\n\n", b"id: 2\ndata: two\n\n", b"id: 4\ndata: four\n\n"]

    def server(request: Any) -> Reply:
        return Reply(body) if "last-event-id" not in request.headers else Reply(body[2:])

    chunks: list[bytes] = []
    client = rig.client(server, protocols=lambda request: LastEventID(sequence="contiguous"))
    response = await rig.send(client, "GET", "https://api.example.com/feed")
    with pytest.raises(rs.GapError):
        await rig.drain(response, chunks)
    await rig.close(response)
    assert b"".join(chunks) == b"".join(body[:2])


async def test_reading_on_after_the_end(rig: Rig) -> None:
    client = rig.client(lambda request: Reply(HALF + END))
    response, _ = await rig.read(client, "POST", URL, json=ASK)
    with pytest.raises(rig.module.StreamError):
        await rig.drain(response, [])


async def test_a_batch_that_comes_again_in_other_pieces(rig: Rig) -> None:
    class Batches(LastEventID):
        def unpack(self, event: Any) -> Any:
            return [rs.StreamEvent("message", part, "", None, part) for part in event.data.split(",")]

    answers = [Reply([b"data: 1,2\n\n", b"data: 3,4\n\n"], "rst"), Reply([b"data: 4,5\n\n"])]
    client = rig.client(lambda request: answers.pop(0), protocols=lambda request: Batches(end="5"))
    with pytest.raises(rs.ReplayDiverged):
        await rig.read(client, "GET", "https://api.example.com/feed")
    answers = [Reply([b"data: 1,2\n\n", b"data: 3,4\n\n"], "rst"), Reply([b"data: 3,4\n\n", b"data: 5\n\n"])]
    client = rig.client(lambda request: answers.pop(0), protocols=lambda request: Batches(end="5"))
    _, chunks = await rig.read(client, "GET", "https://api.example.com/feed")
    assert b"".join(chunks) == b"data: 1,2\n\ndata: 3,4\n\ndata: 5\n\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"protocols": [AISDKStream]}, "pass AISDKStream"),
        ({"protocols": ["sse"]}, "instances"),
        ({"retry": 3}, "retry must be"),
        ({"timeouts": 5.0}, "timeouts must be"),
        ({"refresh": "token"}, "refresh must be a callable"),
        ({"store": rs.stores.MemoryStore()}, "store and key go together"),
        ({"key": lambda request: "k"}, "store and key go together"),
        ({"store": rs.stores.MemoryStore(), "key": "k"}, "key must be a callable"),
        ({"observer": 5}, "observer must be"),
    ],
)
def test_misuse(rig: Rig, options: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        rig.transport(**options)


def test_the_wrong_kind_of_transport(rig: Rig) -> None:
    other = rig.module.AsyncHTTPTransport() if rig.row.sync else rig.module.HTTPTransport()
    with pytest.raises(TypeError, match="next_transport must be"):
        rig.transport(other)


def test_stream_of_wants_a_response() -> None:
    with pytest.raises(TypeError, match="expected a response"):
        rs.stream_of(5)


async def test_errors_cross_processes(rig: Rig) -> None:
    with pytest.raises(rig.module.ReadError) as caught:
        await rig.read(rig.client(lambda request: Reply(HALF, "rst")), "POST", URL, json=ASK)
    for made in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(made) is type(caught.value)
        assert (str(made), made.reason, made.checkpoint) == (str(caught.value), "connection lost", caught.value.checkpoint)  # type: ignore[attr-defined]
    plain = rs.GapError("missing", expected=1, received=3)
    made = pickle.loads(pickle.dumps(plain))
    assert (type(made), str(made), made.expected, made.received) == (rs.GapError, "missing", 1, 3)


async def test_a_client_of_the_other_library_is_told_what_to_import(rig: Rig) -> None:
    other = importlib.import_module("httpx2" if rig.row.family == "httpx" else "httpx")
    client = rig.row.keep((other.Client if rig.row.sync else other.AsyncClient)(transport=rig.transport(), trust_env=False))
    with pytest.raises(TypeError, match=f"import it from resumable_stream.transports.{other.__name__}"):
        await rig.read(client, "GET", URL)


async def test_a_client_of_the_other_kind_is_told_so(rig: Rig) -> None:
    module = rig.module
    # A sync client over the async transport, and the reverse.
    if rig.row.sync:
        client = module.Client(transport=rig.transports.AsyncResumableTransport(), trust_env=False)
        with pytest.raises(TypeError, match="takes the ResumableTransport"):
            client.get(URL)
        return
    async with module.AsyncClient() as client:
        client._transport = rig.transports.ResumableTransport()
        client._mounts = {}
        with pytest.raises(TypeError, match="takes the AsyncResumableTransport"):
            await client.get(URL)
        client._transport = rig.transport()


async def test_an_end_that_nothing_vouches_for_is_said_aloud(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The SDK above cannot be told by bytes: the log, the notice and the stream below the response are."""
    notices: list[Any] = []
    blocks = [b"id: %d\ndata: %d\n\n" % (n, n) for n in range(3)]
    client = rig.client(lambda request: Reply(blocks), observer=notices.append)
    response, chunks = await rig.read(client, "POST", "https://api.example.com/generate", json={})
    assert b"".join(chunks) == b"".join(blocks)
    stream = rs.stream_of(response)
    assert stream is not None
    assert stream.end_verified is False
    assert [type(notice) for notice in notices if type(notice) is rs.EndUnverified] == [rs.EndUnverified]
    assert f"{stream.label}: End not verified: " in caplog.text
