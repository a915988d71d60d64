"""What each failure of a client means: was the request sent, is it worth another attempt, what does the caller see."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import resumable_stream as rs
from resumable_stream import Outcome
from resumable_stream.protocols import LastEventID
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
URL = "https://example.com/s"
ALL = [str(n) for n in range(1, 13)]
WHOLE = Reply(body=[b"id: 1\ndata: 1\n\n", b"id: 2\ndata: [DONE]\n\n"])
UNSENT = ["connect_error", "connect_timeout", "pool_timeout", "proxy_error"]
PERHAPS_SENT = ["read_error", "read_timeout", "write_error", "write_timeout", "remote_protocol_error", "close_error"]
RAW = [ssl.SSLError("bad record"), OSError("gone"), ConnectionResetError(), anyio.EndOfStream(), anyio.BrokenResourceError()]


def ids(events: Any) -> list[str]:
    return [event.id for event in events]


@pytest.mark.parametrize("failure", UNSENT)
async def test_a_post_that_was_never_sent_is_sent_again(row: Row, scripted_client: Scripted, failure: str) -> None:
    script = scripted_client([failure, failure, WHOLE], row.family)
    stream = row.connect("POST", URL, json={"a": 1}, client=row.scripted(script))
    assert ids(await row.read(stream)) == ["1", "2"]
    assert [request.json() for request in script.requests] == [{"a": 1}] * 3


@pytest.mark.parametrize("failure", [*PERHAPS_SENT, *RAW])
async def test_a_post_that_may_have_been_sent_is_not_sent_again(row: Row, scripted_client: Scripted, failure: Any) -> None:
    script = scripted_client([failure, WHOLE], row.family)
    with pytest.raises(rs.StreamInterrupted) as caught:
        await row.connect("POST", URL, json={}, client=row.scripted(script)).open()
    assert len(script.requests) == 1
    assert caught.value.__cause__ is not None
    assert caught.value.checkpoint is not None


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_a_post_whose_connection_is_lost_before_the_head_is_not_sent_again(row: Row, flaky_server: Start, how: Any) -> None:
    """It may have been accepted. httpx-aiohttp reports this as a `ConnectTimeout`, which elsewhere proves the opposite."""
    server = flaky_server(numbered(12), [Fault.no_answer(how=how)])
    with pytest.raises(rs.StreamInterrupted) as caught:
        await row.connect("POST", server.url, json={}).open()
    assert len(server.requests) == 1
    assert caught.value.__cause__ is not None


async def test_a_post_that_found_no_free_connection_is_sent_again(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), hold_open=True)
    client = row.client(limits=row.module.Limits(max_connections=1))
    async with row.connect("GET", server.url, client=client):
        retry = rs.RetryPolicy(attempts=2, wait=lambda state: 0.0)
        with pytest.raises(rs.RetriesExhausted) as caught:
            await row.connect("POST", server.url, client=client, json={}, retry=retry, timeouts=rs.Timeouts(connect=0.05)).open()
        assert caught.value.attempts == 2
    assert len(server.requests) == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
NOT_HTTP = {
    "another protocol": b"SSH-2.0-OpenSSH_9\r\n\r\n",
    "half a head": HEAD,
    "a header without a name": HEAD + b"\xff nothing\r\n\r\n",
    "an endless header": HEAD + b"X-Long: " + b"a" * 200_000 + b"\r\n\r\n",
    "no length": HEAD + b"Content-Length: abc\r\n\r\n",
    "no chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
}


@pytest.fixture
def raw_server() -> Iterator[Callable[[bytes], RawServer]]:
    """Starts servers that send these bytes in answer to anything, and close."""
    servers: list[RawServer] = []

    def start(answer: bytes) -> RawServer:
        servers.append(RawServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class RawServer:
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.requests: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._serve, name="raw-server")
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                with contextlib.suppress(OSError):
                    connection.sendall(self._answer)
                    connection.shutdown(socket.SHUT_WR)
                    # Until the client has read it, and is gone.
                    while connection.recv(65536):
                        pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()


@pytest.mark.parametrize("answer", NOT_HTTP)
async def test_an_answer_that_is_not_http_is_a_lost_connection(
    row: Row, raw_server: Callable[[bytes], RawServer], answer: str
) -> None:
    server = raw_server(NOT_HTTP[answer])
    with pytest.raises(rs.RetriesExhausted):
        await row.read(row.connect("GET", server.url, retry=rs.RetryPolicy(attempts=3, wait=lambda state: 0.0)))
    assert len(server.requests) >= 3
    server.requests.clear()
    with pytest.raises(rs.StreamInterrupted):
        await row.read(row.connect("POST", server.url, json={}))
    assert len(server.requests) == 1


@pytest.mark.parametrize("failure", [*PERHAPS_SENT, *RAW])
@pytest.mark.parametrize("where", ["call", "client"])
async def test_a_post_with_an_idempotency_key_is_sent_again_with_the_same_key(
    row: Row, scripted_client: Scripted, failure: Any, where: str
) -> None:
    script = scripted_client([failure, Reply(status=500), WHOLE], row.family)
    headers = {"Idempotency-Key": "k-1"}
    client = row.scripted(script, headers=headers if where == "client" else None)
    stream = row.connect("POST", URL, json={}, client=client, headers=headers if where == "call" else None)
    assert ids(await row.read(stream)) == ["1", "2"]
    assert [request.headers["idempotency-key"] for request in script.requests] == ["k-1"] * 3


@pytest.mark.parametrize("status", [425, 429, 503, 529])
async def test_a_post_that_was_not_accepted_is_sent_again(row: Row, scripted_client: Scripted, status: int) -> None:
    script = scripted_client([Reply(status=status), WHOLE], row.family)
    assert ids(await row.read(row.connect("POST", URL, json={}, client=row.scripted(script)))) == ["1", "2"]


@pytest.mark.parametrize("status", [408, 500, 502, 504])
async def test_a_post_that_may_have_been_accepted_is_not_sent_again(row: Row, scripted_client: Scripted, status: int) -> None:
    script = scripted_client([Reply(status=status), WHOLE], row.family)
    with pytest.raises(rs.ResponseRejected):
        await row.connect("POST", URL, json={}, client=row.scripted(script)).open()
    assert len(script.requests) == 1


@pytest.mark.parametrize("failure", [*UNSENT, *PERHAPS_SENT, *RAW])
async def test_every_failure_of_a_reconnect_is_another_attempt(row: Row, scripted_client: Scripted, failure: Any) -> None:
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", "read_error"]), failure, failure, Reply(body=[b"id: 2\ndata: [DONE]\n\n"])],
        row.family,
    )
    stream = row.connect("GET", URL, client=row.scripted(script))
    assert ids(await row.read(stream)) == ["1", "2"]
    assert [request.last_event_id for request in script.requests] == [None, "1", "1", "1"]
    assert stream.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("failure", [*PERHAPS_SENT, *RAW])
async def test_every_failure_of_a_body_is_a_cut(row: Row, scripted_client: Scripted, failure: Any) -> None:
    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", failure]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family)
    assert ids(await row.read(row.connect("GET", URL, client=row.scripted(script)))) == ["1", "2"]


async def test_giving_up_tells_the_last_failure(row: Row, scripted_client: Scripted) -> None:
    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", "read_error"]), *["connect_error"] * 9], row.family)
    stream = row.connect("GET", URL, client=row.scripted(script), retry=rs.RetryPolicy(attempts=3, wait=lambda state: 0.0))
    with pytest.raises(rs.RetriesExhausted) as caught:
        await row.read(stream)
    assert caught.value.attempts == 3
    assert isinstance(caught.value.last_error, row.module.ConnectError)
    assert caught.value.__cause__ is caught.value.last_error
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.cursor == "1"


async def test_an_exception_of_a_callable_for_headers_is_the_callers(row: Row, scripted_client: Scripted) -> None:
    class NoToken(Exception):
        pass

    calls = 0

    def headers() -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise NoToken
        return {"authorization": f"Bearer {calls}"}

    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", "read_error"]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    client = row.scripted(script)
    stream = row.connect("GET", URL, client=client, headers=headers)
    with pytest.raises(NoToken):
        await row.read(stream)
    assert stream.checkpoint.offset == 1
    again = row.connect("GET", URL, client=client, headers=headers, checkpoint=stream.checkpoint)
    assert ids(await row.read(again)) == ["2"]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_os_error_of_a_callable_for_headers_is_not_the_networks(
    row: Row, scripted_client: Scripted, method: str
) -> None:
    def headers() -> dict[str, str]:
        raise FileNotFoundError("no token file")

    script = scripted_client([WHOLE], row.family)
    with pytest.raises(FileNotFoundError, match="no token file"):
        await row.connect(method, URL, client=row.scripted(script), headers=headers).open()
    assert script.requests == []


async def test_after_an_os_error_of_a_callable_for_headers_the_stream_can_go_on(row: Row, scripted_client: Scripted) -> None:
    missing = True
    calls = 0

    def headers() -> dict[str, str]:
        nonlocal calls
        calls += 1
        if calls > 1 and missing:
            raise FileNotFoundError("no token file")
        return {"authorization": "Bearer 1"}

    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", "read_error"]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    seen = []
    async with row.connect("GET", URL, client=row.scripted(script), headers=headers) as stream:
        seen.append((await anext(stream)).id)
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                await anext(stream)
            assert len(script.requests) == 1
        missing = False
        seen += [event.id async for event in stream]
    assert seen == ["1", "2"]
    assert stream.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("given", ["mapping", "callable"])
async def test_a_header_with_a_line_break_is_named_and_nothing_sent(
    row: Row, scripted_client: Scripted, method: str, given: str
) -> None:
    script = scripted_client([WHOLE], row.family)
    headers: Any = {"X-Team": "s3cret\nX-Evil: 1"}
    client = row.scripted(script)
    with pytest.raises(ValueError, match="(?i)x-team") as caught:
        await row.connect(method, URL, client=client, headers=headers if given == "mapping" else lambda: headers).open()
    assert "s3cret" not in str(caught.value)
    assert script.requests == []


async def test_an_exception_of_a_callable_in_the_protocol_is_the_callers_and_loses_nothing(
    row: Row, scripted_client: Scripted
) -> None:
    def end(event: Any) -> bool:
        if event.data == "2":
            raise ZeroDivisionError
        return False

    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", b"id: 2\ndata: 2\n\n"])], row.family)
    stream = row.connect("GET", URL, client=row.scripted(script), protocol=LastEventID(end=end))
    seen = []

    async def read() -> None:
        async with stream:
            async for event in stream:
                seen.append(event.id)

    with pytest.raises(ZeroDivisionError):
        await read()
    assert seen == ["1"]
    assert stream.checkpoint.cursor == "1"
    assert script.unclosed == 0


async def test_a_kept_alive_connection_that_the_server_closed_is_replaced(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), no_content_at_end=True)
    client = row.client()
    assert ids(await row.read(row.connect("GET", server.url, client=client))) == ALL
    # The server forgets the idle connection; the client learns it when it writes to it.
    for connection in list(server._open):
        connection.shut_down()
    assert ids(await row.read(row.connect("GET", server.url, client=client))) == ALL


async def test_retry_after_is_waited_for_and_no_longer_than_allowed(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), Fault.status(503, retry_after=3600)])
    retry = rs.RetryPolicy(attempts=5, wait=lambda state: 0.0, max_server_wait=0.1)
    assert ids(await row.read(row.connect("GET", server.url, retry=retry))) == ALL
    waited = server.requests[2].time - server.requests[1].time
    assert 0.095 <= waited < 1.0
