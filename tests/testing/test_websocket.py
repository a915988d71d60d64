"""WebSockets of the test kit: real ones under a client of `websockets`, broken ones on bare sockets, and scripted ones."""

from __future__ import annotations

import importlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from resumable_stream.framing import WebSocketDecoder
from resumable_stream.framing.websocket import BINARY, CLOSE, PING, PONG, TEXT, encode, key_from, refusal, request_headers
from resumable_stream.testing import (
    Expect,
    Fault,
    FlakyServer,
    Reply,
    ScriptedClient,
    ScriptedSocket,
    ServerSocket,
    close_frame,
    message_frames,
    numbered,
)

MASK = b"\x37\xfa\x21\x3d"
KEY = key_from(bytes(16))
ONE_TO_FIVE = ["one", "two", "three", "four", "five"]


@contextmanager
def websocket(server: FlakyServer) -> Iterator[ClientConnection]:
    with connect(server.ws_url, compression=None, open_timeout=60, close_timeout=60, proxy=None) as client:
        yield client


@contextmanager
def bare(server: FlakyServer, **headers: str) -> Iterator[tuple[socket.socket, bytes]]:
    """A socket after the handshake, and the bytes that came after the head."""
    with socket.create_connection(("127.0.0.1", int(server.origin.rsplit(":", 1)[1])), timeout=60) as sock:
        lines = [f"{name}: {value}" for name, value in {"Host": "x", **request_headers(KEY), **headers}.items()]
        sock.sendall(("\r\n".join(["GET /stream HTTP/1.1", *lines]) + "\r\n\r\n").encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield sock, rest


def to_the_end(sock: socket.socket, received: bytes) -> tuple[bytes, str]:
    """Everything that arrives, and how it ended."""
    try:
        while data := sock.recv(65536):
            received += data
    except ConnectionResetError:
        return received, "rst"
    return received, "fin"


def read(server: FlakyServer) -> tuple[list[Any], int | None, str]:
    """Messages, close code, and the end of the connection, for a client that says nothing by itself."""
    decoder = WebSocketDecoder(new_mask=lambda: MASK)
    with bare(server) as (sock, rest):
        items: list[Any] = []
        data = rest
        how = "fin"
        while True:
            items += decoder.feed(data)
            try:
                if decoder.outgoing:
                    sock.sendall(b"".join(decoder.outgoing))
                    decoder.outgoing.clear()
                if not (data := sock.recv(65536)):
                    break
            except ConnectionResetError:
                how = "rst"
                break
        return [item.data for item in items], decoder.code, how


def be_reset(server: FlakyServer, data: bytes, error: Exception | None = None) -> None:
    """Say something that makes the server end the connection at once."""
    with server, bare(server) as (sock, rest):
        sock.sendall(data)
        assert to_the_end(sock, rest) == (b"", "rst")
        if error is not None:
            raise error


# --- conversations


def test_a_list_of_steps_is_played_on_each_connection() -> None:
    seen: list[int] = []
    steps = [
        Expect({"type": "hello"}),
        {"type": "welcome"},
        lambda ws: seen.append(ws.number),
        "text",
        b"\x00\xff",
        Expect(b"\x01"),
    ]
    with FlakyServer(websocket=steps) as server:
        for number in range(2):
            with websocket(server) as client:
                client.send('{"type":   "hello"}')
                assert [client.recv(timeout=60) for _ in range(3)] == ['{"type": "welcome"}', "text", b"\x00\xff"]
                client.send(b"\x01")
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=60)
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000
            assert seen == list(range(number + 1))
        assert server.wait_disconnected()
    assert [ws.received for ws in server.sockets] == [['{"type":   "hello"}', b"\x01"]] * 2
    assert [ws.close_code for ws in server.sockets] == [1000, 1000]
    assert [request.path for request in server.requests] == ["/stream"] * 2


def test_a_function_says_what_it_likes() -> None:
    def talk(ws: ServerSocket) -> None:
        assert ws.request.query == {"since": "2"}
        since = ws.receive_json()["since"]
        ws.send(*ONE_TO_FIVE[since:])
        ws.send_frame(TEXT, b"frag", final=False)
        ws.ping(b"between")
        ws.send_frame(0, b"ments")
        assert ws.expect(lambda said: str(said).startswith("so")) == "so what"
        ws.close(4001, "enough")

    with FlakyServer(websocket=talk) as server:
        url = server.ws_url + "?since=2"
        with connect(url, compression=None, proxy=None) as client:
            client.send('{"since": 3}')
            assert [client.recv(timeout=60) for _ in range(3)] == ["four", "five", "fragments"]
            client.send("so what")
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "enough")
        assert server.wait_disconnected()
        (ws,) = server.sockets
        assert ws.pongs == [b"between"]
        assert ws.close_code == 4001


def test_pings_of_the_client_are_answered_while_the_server_waits() -> None:
    with FlakyServer(websocket=[Expect()]) as server, websocket(server) as client:
        assert client.ping().wait(60)
        client.send("go on")
        assert len(server.sockets[0].pings) == 1


def test_a_client_that_leaves_is_recorded_and_is_no_error() -> None:
    with FlakyServer(websocket=lambda ws: ws.wait()) as server:
        with websocket(server) as client:
            client.send("last words")
            client.close(4000, "so long")
        with bare(server):
            pass
        assert server.wait_disconnected()
        first, second = server.sockets
        assert (first.received, first.close_code, first.close_reason) == (["last words"], 4000, "so long")
        assert (second.received, second.close_code) == ([], None)


def test_what_nobody_waited_for_is_recorded_too() -> None:
    said = threading.Event()

    def talk(ws: ServerSocket) -> None:
        assert said.wait(60)
        ws.cut("rst")

    with FlakyServer(websocket=talk) as server:
        with bare(server) as (sock, rest):
            sock.sendall(encode(TEXT, b"unheard", MASK) + encode(CLOSE, b"\x03\xe8", MASK))
            said.set()
            assert to_the_end(sock, rest) == (b"", "rst")
        assert server.wait_disconnected()
        assert (server.sockets[0].received, server.sockets[0].close_code) == (["unheard"], 1000)


def test_ordinary_requests_are_answered_as_ever() -> None:
    with FlakyServer(numbered(2), websocket=["hi"]) as server:
        assert httpx.get(server.url, trust_env=False).content == server.transcript
        with websocket(server) as client:
            assert client.recv(timeout=60) == "hi"
    with FlakyServer(numbered(2)) as server, pytest.raises(InvalidStatus, match="200"), websocket(server):
        pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Key": "c2hvcnQ="},
        {"Sec-WebSocket-Key": "?"},
        {"Upgrade": "h2c"},
        {"Connection": "close"},
    ],
)
def test_a_wrong_handshake_is_refused(wrong: dict[str, str]) -> None:
    with FlakyServer(websocket=["hi"]) as server:
        headers = {**request_headers(KEY), **wrong}
        assert httpx.get(server.url, headers=headers, trust_env=False).status_code == 400
        assert server.sockets == []


def test_headers_of_the_answer_can_be_added_and_spoiled() -> None:
    with FlakyServer(websocket=[], headers={"Sec-WebSocket-Protocol": "chat", "Sec-WebSocket-Accept": "wrong"}) as server:
        with httpx.Client(trust_env=False) as client, client.stream("GET", server.url, headers=request_headers(KEY)) as response:
            assert response.headers["sec-websocket-protocol"] == "chat"
            assert "content-type" not in response.headers
            assert "does not belong to our key" in refusal(response.status_code, response.headers, key=KEY, subprotocols=["chat"])


# --- what a client must not do


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(TEXT, b"a"), "without a mask"),
        (bytes((0xC1,)) + encode(TEXT, b"a", MASK)[1:], "reserved bits"),
        (bytes((0x83,)) + encode(TEXT, b"a", MASK)[1:], "opcode 3"),
        (bytes((0x09,)) + encode(PING, b"a", MASK)[1:], "fragmented or too long"),
        (bytes((0x89,)) + encode(TEXT, bytes(126), MASK)[1:], "fragmented or too long"),
        (encode(0, b"a", MASK), "mixed up"),
        (encode(TEXT, b"a", MASK, final=False) + encode(BINARY, b"b", MASK), "mixed up"),
        (bytes.fromhex("81fe0001") + MASK + b"a", "more bytes than it needs"),
        (encode(TEXT, b"\xff", MASK), "not UTF-8"),
        (encode(CLOSE, b"\x03", MASK), "half a code"),
        (encode(CLOSE, b"\x03\xed", MASK), "closed with 1005, which is not allowed"),
        (encode(CLOSE, b"\x03\xe8\xff", MASK), "not UTF-8"),
        (encode(CLOSE, b"\x03\xe8", MASK) + encode(TEXT, b"a", MASK), "after its close frame"),
    ],
)
def test_a_client_that_breaks_the_standard_fails_the_test(data: bytes, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        be_reset(FlakyServer(websocket=lambda ws: ws.wait()), data)
    script = ScriptedClient([Reply(status=101)])
    with script.sync() as client, client.stream("GET", "https://example.com", headers=request_headers(KEY)) as response:
        with pytest.raises(AssertionError, match=message):
            response.extensions["network_stream"].write(data)


def test_an_expectation_that_fails_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="expected the client to say {'a': 1}, it said 'b'"):
        be_reset(FlakyServer(websocket=[Expect({"a": 1}), "never"]), encode(TEXT, b"b", MASK))
    with pytest.raises(AssertionError, match="the client said nothing for 0.05 s"):
        be_reset(FlakyServer(websocket=lambda ws: ws.receive(0.05)), b"")


def test_an_error_of_the_test_itself_comes_first() -> None:
    server = FlakyServer(websocket=[Expect("a")])
    with pytest.raises(KeyError):
        be_reset(server, encode(TEXT, b"b", MASK), KeyError())
    assert len(server.errors) == 1


@pytest.mark.parametrize(
    ("message", "right", "wrong"),
    [
        ("a", "a", "b"),
        (b"a", b"a", "a"),
        ({"a": 1}, '{ "a": 1 }', '{"a": 2}'),
        ({"a": 1}, '{"a":1}', "no JSON"),
        (lambda said: len(said) == 3, "abc", "ab"),
    ],
)
def test_what_can_be_expected(message: Any, right: str | bytes, wrong: str | bytes) -> None:
    Expect(message).check(right)
    Expect().check(wrong)
    with pytest.raises(AssertionError, match="expected the client to say"):
        Expect(message).check(wrong)


def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(TypeError, match="a step is a message"):
        FlakyServer(websocket=[1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a list of steps, got str"):
        FlakyServer(websocket="hi")


# --- faults

TRANSCRIPT = message_frames(*ONE_TO_FIVE)


def play(ws: ServerSocket) -> None:
    for message in ONE_TO_FIVE:
        ws.send(message)


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("together", [False, True])
def test_a_cut_at_every_byte(how: Literal["rst", "fin"], together: bool) -> None:
    handler: Any = (lambda ws: ws.send(*ONE_TO_FIVE)) if together else play
    places = range(len(TRANSCRIPT) + 3)
    with FlakyServer(schedule=[Fault.cut(after_bytes=n, how=how) for n in places], websocket=handler) as server:
        for n in places:
            with bare(server) as (sock, rest):
                assert to_the_end(sock, rest) == (TRANSCRIPT[:n], how), n
        assert server.faults_used == len(places)
        assert server.errors == []


def test_a_close_at_every_byte_stands_between_two_frames() -> None:
    places = range(len(TRANSCRIPT) + 3)
    ends = [len(message_frames(*ONE_TO_FIVE[:count])) for count in range(6)]
    with FlakyServer(schedule=[Fault.close(4000 + n, after_bytes=n) for n in places], websocket=play) as server:
        for n in places:
            messages = ONE_TO_FIVE[: sum(end <= n for end in ends) - 1]
            assert read(server) == (messages, 4000 + n, "fin"), n
        assert server.wait_disconnected()
        assert [ws.close_code for ws in server.sockets] == [4000 + n for n in places]


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_cut_after_messages_does_not_count_control_frames(how: Literal["rst", "fin"]) -> None:
    def talk(ws: ServerSocket) -> None:
        for message in ONE_TO_FIVE:
            ws.send_frame(PONG)
            ws.send_frame(TEXT, message[:1].encode(), final=False)
            ws.send_frame(0, message[1:].encode())

    schedule = [Fault.cut(after_events=n, how=how) for n in range(7)]
    with FlakyServer(schedule=schedule, websocket=talk) as server:
        for n in range(7):
            assert read(server) == (ONE_TO_FIVE[:n], None, how)


def test_a_close_after_messages() -> None:
    schedule = [Fault.close(after_events=2), Fault.close(None, after_events=0), Fault.close(1011, "why", after_events=9)]
    with FlakyServer(schedule=schedule, websocket=play) as server:
        assert read(server) == (["one", "two"], 1001, "fin")
        assert read(server) == ([], 1005, "fin")
        assert read(server) == (ONE_TO_FIVE, 1011, "fin")
        assert read(server) == (ONE_TO_FIVE, 1000, "fin")


def test_a_long_message_of_the_client_is_read() -> None:
    long = "x" * 3_000_000
    with FlakyServer(websocket=[Expect(long), Expect(long.encode())]) as server, websocket(server) as client:
        client.send(long)
        client.send([long.encode()[:1_000_000], b"", long.encode()[1_000_000:]])
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=60)


def test_silence_lasts_until_the_client_leaves_and_hears_it() -> None:
    with FlakyServer(schedule=[Fault.cut(after_bytes=7, how="silence")], websocket=play) as server:
        with bare(server) as (sock, received):
            while len(received) < 7:
                received += sock.recv(100)
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(100)
            sock.sendall(encode(PING, b"anybody?", MASK))
            assert received == TRANSCRIPT[:7]
        assert server.wait_disconnected()
        assert server.sockets[0].pings == [b"anybody?"]


def test_one_byte_writes() -> None:
    with FlakyServer(schedule=[[Fault.one_byte_writes(), Fault.cut(after_bytes=9, how="fin")]], websocket=play) as server:
        with bare(server) as (sock, rest):
            assert to_the_end(sock, rest) == (TRANSCRIPT[:9], "fin")


def test_faults_of_the_handshake() -> None:
    schedule = [
        Fault.status(503, retry_after=2),
        Fault.redirect("/moved"),
        Fault.no_answer(),
        Fault.content_type("text/html", body=b"x"),
    ]
    with FlakyServer(schedule=schedule, websocket=["hi"]) as server:
        for expected in (503, 307, None, 200):
            try:
                response = httpx.get(server.url, headers=request_headers(KEY), trust_env=False)
                assert response.status_code == expected
            except httpx.RemoteProtocolError:
                assert expected is None
        assert server.sockets == []
        assert read(server) == (["hi"], 1000, "fin")


@pytest.mark.parametrize(
    "fault",
    [
        Fault.hole(after_events=1),
        Fault.heartbeats(),
        Fault.no_blank_line(),
        Fault.cut(after_bytes=1, how="clean"),
        Fault.content_type("text/plain"),
    ],
)
def test_a_fault_that_needs_a_log_or_a_body_is_an_error(fault: Fault) -> None:
    with pytest.raises(TypeError, match="this cannot happen to it"):
        with FlakyServer(schedule=[fault], websocket=["hi"]) as server, pytest.raises(httpx.RemoteProtocolError):
            httpx.get(server.url, headers=request_headers(KEY), trust_env=False)


@pytest.mark.parametrize("arguments", [{}, {"after_bytes": 1, "after_events": 1}, {"after_bytes": -1}])
def test_a_close_needs_one_place(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="exactly one|negative"):
        Fault.close(**arguments)  # type: ignore[arg-type]


def test_close_ends_every_websocket_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    server = FlakyServer(websocket=lambda ws: ws.wait()).start()
    with bare(server) as (one, _), bare(server) as (two, _):
        server.close()
        assert to_the_end(one, b"")[0] == to_the_end(two, b"")[0] == b""
    assert set(threading.enumerate()) <= before
    assert server.errors == []


def test_the_fixture_reports_an_error_of_a_conversation(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["resumable_stream.testing.pytest_plugin"]')
    pytester.makepyfile(
        """
        import httpx
        from resumable_stream.framing.websocket import key_from, request_headers

        def test_it(flaky_server):
            def talk(ws):
                raise RuntimeError("said nothing")

            server = flaky_server(websocket=talk)
            try:
                with httpx.Client(trust_env=False) as client:
                    with client.stream("GET", server.url, headers=request_headers(key_from(bytes(16)))) as response:
                        response.extensions["network_stream"].read(1)
            except Exception:
                pass
            assert server.wait_disconnected()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: said nothing*"])


# --- scripted

pytest_plugins = ["pytester"]
colours = pytest.mark.parametrize("colour", ["sync", "async"])


@pytest.fixture(params=["httpx", "httpx2"])
def family(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def converse(script: ScriptedClient, colour: str, steps: list[Any]) -> list[Any]:
    """
    What a client's stream returns and raises.

    Args:
        steps: A number of bytes to read at most, bytes to write, or `"close"`.
    """
    results: list[Any] = []

    async def talk() -> None:
        async with script.asynchronous() as client:
            async with client.stream("GET", "https://example.com/ws", headers=request_headers(KEY)) as response:
                assert refusal(response.status_code, response.headers, key=KEY) == ""
                stream = response.extensions["network_stream"]
                for step in steps:
                    try:
                        if step == "close":
                            await stream.aclose()
                        elif isinstance(step, bytes):
                            await stream.write(step, 1.0)
                        else:
                            results.append(await stream.read(step, 1.0))
                    except Exception as error:
                        results.append(error)

    def talk_sync() -> None:
        with script.sync() as client:
            with client.stream("GET", "https://example.com/ws", headers=request_headers(KEY)) as response:
                assert refusal(response.status_code, response.headers, key=KEY) == ""
                stream = response.extensions["network_stream"]
                assert stream.get_extra_info("socket") is None
                for step in steps:
                    try:
                        if step == "close":
                            stream.close()
                        elif isinstance(step, bytes):
                            stream.write(step, 1.0)
                        else:
                            results.append(stream.read(step, 1.0))
                    except Exception as error:
                        results.append(error)

    if colour == "async":
        anyio.run(talk)
    else:
        talk_sync()
    return results


def scripted(body: Any, family: Any, **options: Any) -> ScriptedClient:
    return ScriptedClient([Reply(status=101, body=body, **options)], family=family.__name__)


@colours
def test_a_scripted_websocket_is_read_and_written(family: Any, colour: str) -> None:
    called: list[str] = []
    body = [message_frames("one"), Expect("hello"), lambda: called.append("here"), message_frames("two", b"3"), close_frame(4000)]
    script = scripted(body, family)
    results = converse(
        script, colour, [100, encode(TEXT, b"hello", MASK), 4, 100, 100, encode(CLOSE, b"\x0f\xa0", MASK), 100, 100]
    )
    two = message_frames("two", b"3")
    assert results == [message_frames("one"), two[:4], two[4:], close_frame(4000), b"", b""]
    (ws,) = script.sockets
    assert isinstance(ws, ScriptedSocket)
    assert (ws.received, ws.close_code, ws.closed, called) == (["hello"], 4000, True, ["here"])
    assert ws.request.path == "/ws"
    assert script.unclosed == 0


@colours
def test_failures_are_those_of_the_network_below(family: Any, colour: str) -> None:
    core = importlib.import_module(family.__name__.replace("httpx", "httpcore"))
    body = ["read_timeout", b"a", "write_error", OSError("own"), "remote_protocol_error", "read_error"]
    results = converse(scripted(body, family), colour, [9, 9, encode(TEXT, b"lost", MASK), 9, 9, 9, 9])
    expected = [core.ReadTimeout, bytes, core.WriteError, OSError, core.RemoteProtocolError, core.ReadError, bytes]
    assert list(map(type, results)) == expected
    assert (results[1], results[-1]) == (b"a", b"")
    assert "scripted read_timeout" in str(results[0])


@colours
def test_a_scripted_websocket_says_what_does_not_fit(family: Any, colour: str) -> None:
    body = [Expect("hello"), Expect("hello"), "write_timeout", "close_error"]
    results = converse(scripted(body, family), colour, [9, encode(TEXT, b"bye", MASK), 9, 9, 9, "close", 9, b""])
    core = importlib.import_module(family.__name__.replace("httpx", "httpcore"))
    assert list(map(type, results)) == [
        AssertionError,
        AssertionError,
        AssertionError,
        TypeError,
        core.ReadError,
        core.WriteError,
    ]
    assert "should have said 'hello' by now; it has said []" in str(results[0])
    assert "expected the client to say 'hello', it said 'bye'" in str(results[1])
    assert "the client reads" in str(results[2])
    assert "close_error" in str(results[3])


def test_a_scripted_answer_can_be_wrong(family: Any) -> None:
    script = scripted((), family, headers={"Sec-WebSocket-Accept": "wrong"})
    with script.sync() as client, client.stream("GET", "https://example.com", headers=request_headers(KEY)) as response:
        assert "does not belong to our key" in refusal(response.status_code, response.headers, key=KEY)
        assert response.headers["upgrade"] == "websocket"


def test_an_awaitable_in_a_scripted_websocket_is_awaited_and_can_be_cancelled(family: Any) -> None:
    script = scripted([b"a", anyio.sleep_forever], family)
    read: list[bytes] = []

    async def main() -> None:
        async with script.asynchronous() as client:
            with anyio.move_on_after(0.5):
                async with client.stream("GET", "https://example.com", headers=request_headers(KEY)) as response:
                    while True:
                        read.append(await response.extensions["network_stream"].read(9))

    anyio.run(main)
    assert read == [b"a"] and script.unclosed == 0 and script.sockets[0].closed


def test_a_real_upgrade_behaves_like_a_scripted_one(family: Any) -> None:
    """Same reads, same end: what the driver is tested with is what it meets."""
    steps: list[Any] = [message_frames("one"), message_frames("two")]
    with FlakyServer(schedule=[Fault.cut(after_events=2, how="fin")], websocket=["one", "two"]) as server:
        results = []
        for client, url in (
            (family.Client(trust_env=False), server.url),
            (scripted(steps, family).sync(), "https://example.com"),
        ):
            with client, client.stream("GET", url, headers=request_headers(KEY)) as response:
                stream = response.extensions["network_stream"]
                received = b""
                while data := stream.read(9, 60.0):
                    received += data
                results.append((received, response.status_code, response.headers["sec-websocket-accept"], stream.read(9, 60.0)))
    assert results[0] == results[1]


def test_frames_are_those_of_a_server() -> None:
    decoder = WebSocketDecoder(new_mask=lambda: MASK)
    items = decoder.feed(message_frames("é", b"\x00", {"ü": 1}) + close_frame(1001, "bye"))
    assert [item.data for item in items] == ["é", b"\x00", '{"ü": 1}']
    assert (decoder.code, decoder.reason) == (1001, "bye")
    with pytest.raises(ValueError, match="at most 125 bytes"):
        close_frame(1000, "x" * 124)
