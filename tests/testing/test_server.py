"""Each fault does what it says, on real sockets, read with plain httpx or with nothing at all."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import anyio
import httpx
import httpx_sse
import pytest

from resumable_stream.testing import FlakyServer, RecordedRequest, Reply, ServerEvent, numbered
from resumable_stream.testing.faults import Fault, How

UNCLEAN: tuple[How, ...] = ("rst", "fin")
# What is sent at once arrives within it, on a busy machine too.
SOON = httpx.Timeout(60.0, read=1.0)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=60.0) as client:
        yield client


def read(client: httpx.Client, url: str, method: str = "GET", **headers: str) -> tuple[list[bytes], httpx.TransportError | None]:
    """The chunks that arrive, and what ended them."""
    chunks: list[bytes] = []
    try:
        with client.stream(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()}) as response:
            chunks.extend(response.iter_raw())
    except httpx.TransportError as exc:
        return chunks, exc
    return chunks, None


def body(client: httpx.Client, url: str, **headers: str) -> bytes:
    chunks, error = read(client, url, **headers)
    assert error is None
    return b"".join(chunks)


def exchange(server: FlakyServer, request: bytes) -> bytes:
    """Everything the server sends on one connection of its own, without an HTTP client in between."""
    with socket.create_connection(("127.0.0.1", int(server.origin.rsplit(":", 1)[1])), timeout=200) as sock:
        sock.sendall(request)
        received = b""
        while data := sock.recv(65536):
            received += data
        return received


def encoded(*numbers: int) -> bytes:
    return b"".join(numbered(1, start=n)[0].encode() for n in numbers)


# --- undisturbed


def test_the_log_arrives_as_one_http_chunk_per_event(client: httpx.Client) -> None:
    with FlakyServer(numbered(5)) as server:
        chunks, error = read(client, server.url)
        assert error is None and chunks == server.frames
        response = client.get(server.url)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert server.url == server.origin + "/stream"


def test_a_connection_is_kept_alive_unless_told_otherwise(client: httpx.Client) -> None:
    with FlakyServer(numbered(2)) as server:
        for _ in range(3):
            body(client, server.url)
        assert server.connections == 1 and [request.connection for request in server.requests] == [0, 0, 0]
    with FlakyServer(numbered(2), keep_alive=False) as server:
        for _ in range(3):
            body(client, server.url)
        assert server.connections == 3


def test_an_http_1_0_client_gets_a_body_that_ends_with_its_connection() -> None:
    with FlakyServer(numbered(2)) as server:
        head, _, rest = exchange(server, b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
        assert b"chunked" not in head and rest == server.transcript


@pytest.mark.parametrize("transfer", ["chunked", "length", "close"])
@pytest.mark.parametrize("chunk_bytes", [None, 1, 7])
def test_every_way_to_frame_a_body_carries_the_same_bytes(client: httpx.Client, transfer: str, chunk_bytes: int | None) -> None:
    with FlakyServer(numbered(4), transfer=transfer, chunk_bytes=chunk_bytes) as server:  # type: ignore[arg-type]
        chunks, error = read(client, server.url)
        assert error is None and b"".join(chunks) == server.transcript
        if transfer == "chunked" and chunk_bytes:
            assert {len(chunk) for chunk in chunks[:-1]} == {chunk_bytes}


def test_pace_waits_between_events(client: httpx.Client) -> None:
    with FlakyServer(numbered(4), pace=0.02) as server:
        started = time.monotonic()
        body(client, server.url)
        assert time.monotonic() - started >= 0.06


def test_head_has_no_body(client: httpx.Client) -> None:
    with FlakyServer(numbered(4)) as server:
        assert client.head(server.url).content == b""
        assert body(client, server.url) == server.transcript
        assert server.connections == 1


def test_a_request_is_recorded_whole(client: httpx.Client) -> None:
    with FlakyServer(numbered(1)) as server:
        client.post(f"{server.origin}/v1/x?a=1&b=%20", content=iter([b'{"n"', b": 1}"]), headers={"X-Key": "k"})
        request = server.requests[0]
        assert (request.method, request.path, request.query) == ("POST", "/v1/x", {"a": "1", "b": " "})
        assert request.json() == {"n": 1} and request.headers["x-key"] == "k" and request.last_event_id is None
        assert 0 <= time.monotonic() - request.time < 60


# --- the cursor


def test_a_cursor_continues_strictly_behind_its_event(client: httpx.Client) -> None:
    with FlakyServer(numbered(5)) as server:
        for last in range(1, 6):
            assert body(client, server.url, Last_Event_ID=str(last)) == encoded(*range(last + 1, 6))
        assert [request.last_event_id for request in server.requests] == ["1", "2", "3", "4", "5"]


def test_of_a_repeated_id_the_last_event_counts_and_a_block_without_data_moves_the_cursor(client: httpx.Client) -> None:
    log: list[ServerEvent | bytes] = [
        ServerEvent(id="a", data="1"),
        ServerEvent(id="a", data="2"),
        ServerEvent(data="3"),
        ServerEvent(id="b"),
        b"data: 4\n\n",
    ]
    with FlakyServer(log) as server:
        assert body(client, server.url, Last_Event_ID="a") == b"data: 3\n\nid: b\n\ndata: 4\n\n"
        assert body(client, server.url, Last_Event_ID="b") == b"data: 4\n\n"


def test_an_id_that_is_not_ascii_is_found(client: httpx.Client) -> None:
    with FlakyServer([ServerEvent(id="ü7", data="1"), ServerEvent(data="2")]) as server:
        response = client.get(server.url, headers=[(b"Last-Event-ID", "ü7".encode())])
        assert response.content == b"data: 2\n\n"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_a_raw_transcript_is_split_behind_each_event_and_sent_as_it_is(client: httpx.Client, end: bytes) -> None:
    blocks = [b"\xef\xbb\xbfid:1" + end + b"data: a" + end * 2, b": c" + end * 3, b"id: 2" + end + b"data: b" + end * 2]
    tail = b"id: 3" + end + b"data: half"
    with FlakyServer(b"".join(blocks) + tail) as server:
        assert server.transcript == b"".join(blocks) + tail
        assert body(client, server.url, Last_Event_ID="1") == b"".join(blocks[1:]) + tail
        assert body(client, server.url, Last_Event_ID="2") == tail
        # The half event was never an event: no client can hold its id.
        assert body(client, server.url, Last_Event_ID="3") == server.transcript


@pytest.mark.parametrize("status", [404, 410])
def test_an_unknown_id_replays_everything_or_is_refused(client: httpx.Client, status: int) -> None:
    with FlakyServer(numbered(2)) as server:
        assert body(client, server.url, Last_Event_ID="gone") == server.transcript
    with FlakyServer(numbered(2), unknown_id=status) as server:
        assert client.get(server.url, headers={"Last-Event-ID": "gone"}).status_code == status


def test_ignore_cursor_always_starts_at_the_beginning(client: httpx.Client) -> None:
    with FlakyServer(numbered(3), ignore_cursor=True, unknown_id=404) as server:
        assert body(client, server.url, Last_Event_ID="2") == server.transcript


def test_nothing_behind_the_cursor_is_an_empty_body_or_204(client: httpx.Client) -> None:
    with FlakyServer(numbered(3)) as server:
        assert body(client, server.url, Last_Event_ID="3") == b""
    with FlakyServer(numbered(3), no_content_at_end=True) as server:
        assert client.get(server.url, headers={"Last-Event-ID": "3"}).status_code == 204
        assert client.get(server.url, headers={"Last-Event-ID": "2"}).status_code == 200
        assert server.connections == 1


def test_the_cursor_may_be_a_number_inside_the_json_and_travel_in_the_query(client: httpx.Client) -> None:
    def number(frame: bytes) -> str:
        return httpx.Response(200, content=frame.removeprefix(b"data: ")).json()["n"]  # type: ignore[no-any-return]

    log = [ServerEvent(data=f'{{"n": "{n}"}}') for n in range(4)]
    with FlakyServer(log, cursor_param="starting_after", cursor_of=number) as server:
        assert body(client, f"{server.url}?starting_after=2") == log[3].encode()
        assert body(client, server.url, Last_Event_ID="2") == server.transcript


def test_ndjson_has_one_line_per_event(client: httpx.Client) -> None:
    log: list[dict[str, int] | bytes | str] = [{"a": 1}, b'{"a": "\r"}\n', '{"a": 3}\n']
    with FlakyServer(log, format="ndjson") as server:
        chunks, _ = read(client, server.url)
        assert chunks == [b'{"a": 1}\n', b'{"a": "\r"}\n', b'{"a": 3}\n']
        assert client.get(server.url).headers["content-type"] == "application/x-ndjson"
    with FlakyServer(b'{"a": 1}\n{"a": "\r"}\n{"last"', format="ndjson") as server:
        assert server.frames == [b'{"a": 1}\n', b'{"a": "\r"}\n', b'{"last"']


def test_a_post_names_where_a_get_resumes(client: httpx.Client) -> None:
    with FlakyServer(numbered(2), location="/runs/1", content_location="/runs/2") as server:
        response = client.post(server.url)
        assert (response.headers["location"], response.headers["content-location"]) == ("/runs/1", "/runs/2")
        assert "location" not in client.get(server.url).headers


def test_a_held_connection_follows_the_log(client: httpx.Client) -> None:
    with FlakyServer(numbered(1), hold_open=True) as server:
        with client.stream("GET", server.url) as response:
            chunks = response.iter_raw()
            assert next(chunks) == encoded(1)
            server.append(*numbered(2, start=2))
            assert next(chunks) + next(chunks) == encoded(2, 3)
        assert server.wait_disconnected(30.0)
    with FlakyServer(numbered(1)) as server:
        server.replace(numbered(1, start=9))
        assert body(client, server.url) == encoded(9)


def test_on_request_answers_what_is_not_the_stream(client: httpx.Client) -> None:
    def status(request: RecordedRequest) -> Reply | None:
        return Reply(headers={"X-A": "b"}, body=b'{"status": "running"}') if request.path == "/status" else None

    with FlakyServer(numbered(1), [Fault.status(503)], on_request=status) as server:
        response = client.get(f"{server.origin}/status")
        assert response.json() == {"status": "running"} and response.headers["x-a"] == "b"
        assert server.faults_used == 0
        assert client.get(server.url).status_code == 503
        assert client.get(server.url).status_code == 200
        assert server.faults_used == 1 and server.connections == 1


# --- cuts


@pytest.mark.parametrize("how", UNCLEAN)
@pytest.mark.parametrize("transfer", ["chunked", "length"])
def test_an_unclean_cut_at_any_byte_delivers_what_came_before_and_is_noticed(
    client: httpx.Client, how: How, transfer: str
) -> None:
    log = numbered(3)
    size = len(encoded(1, 2, 3))
    positions = range(size + 1)
    schedule = [Fault.cut(after_bytes=n, how=how) for n in positions]
    with FlakyServer(log, schedule, transfer=transfer) as server:  # type: ignore[arg-type]
        for n in positions:
            chunks, error = read(client, server.url)
            assert b"".join(chunks) == server.transcript[:n]
            assert isinstance(error, httpx.ReadError if how == "rst" else httpx.RemoteProtocolError), n


def test_a_clean_cut_looks_like_the_end_at_any_byte(client: httpx.Client) -> None:
    size = len(encoded(1, 2))
    for transfer in ("chunked", "length", "close"):
        schedule = [Fault.cut(after_bytes=n, how="clean") for n in range(size + 1)]
        with FlakyServer(numbered(2), schedule, transfer=transfer) as server:
            for n in range(size + 1):
                assert body(client, server.url) == server.transcript[:n]


@pytest.mark.parametrize("transfer", ["chunked", "length"])
def test_cut_after_events_sends_whole_events(client: httpx.Client, transfer: str) -> None:
    schedule = [Fault.cut(after_events=n, how="fin") for n in (0, 1, 2)]
    with FlakyServer(numbered(3), schedule, transfer=transfer) as server:  # type: ignore[arg-type]
        for n in (0, 1, 2):
            chunks, error = read(client, server.url)
            assert b"".join(chunks) == encoded(*range(1, n + 1)) and isinstance(error, httpx.RemoteProtocolError)


def test_a_cut_beyond_the_end_still_happens_at_the_end(client: httpx.Client) -> None:
    cuts = [
        Fault.cut(after_bytes=9999, how="rst"),
        Fault.cut(after_events=9, how="fin"),
        Fault.cut(after_bytes=9999, how="silence"),
    ]
    with FlakyServer(numbered(2), cuts) as server:
        for kind in (httpx.ReadError, httpx.RemoteProtocolError):
            chunks, error = read(client, server.url)
            assert b"".join(chunks) == server.transcript and isinstance(error, kind)
        with pytest.raises(httpx.ReadTimeout):
            client.get(server.url, timeout=SOON)


def test_clean_inside_always_ends_inside_an_event(client: httpx.Client) -> None:
    first = len(encoded(1))
    positions = [
        (Fault.cut(after_events=0, how="clean_inside"), range(1, first)),
        (Fault.cut(after_events=1, how="clean_inside"), range(first + 1, 2 * first)),
        (Fault.cut(after_bytes=first, how="clean_inside"), range(first + 1, 2 * first)),
        (Fault.cut(after_bytes=first + 1, how="clean_inside"), [first + 1]),
    ]
    with FlakyServer(numbered(2), [fault for fault, _ in positions]) as server:
        for _, expected in positions:
            got = body(client, server.url)
            assert len(got) in expected and server.transcript.startswith(got)
    with FlakyServer(numbered(2), [Fault.cut(after_events=2, how="clean_inside")]) as server:
        got = body(client, server.url)
        assert got != server.transcript and got.startswith(server.transcript) and not got.endswith(b"\n")


def test_silence_keeps_the_connection_open_until_the_client_leaves(client: httpx.Client) -> None:
    with FlakyServer(numbered(3), [Fault.cut(after_bytes=5, how="silence")]) as server:
        chunks: list[bytes] = []
        with pytest.raises(httpx.ReadTimeout), client.stream("GET", server.url, timeout=SOON) as response:
            chunks.extend(response.iter_raw())
        assert b"".join(chunks) == server.transcript[:5]
        assert server.wait_disconnected(30.0)


@pytest.mark.parametrize(
    ("how", "kind"), [("fin", httpx.RemoteProtocolError), ("rst", httpx.ReadError), ("silence", httpx.ReadTimeout)]
)
def test_no_answer_sends_no_status_line(client: httpx.Client, how: str, kind: type[Exception]) -> None:
    with FlakyServer(numbered(3), [Fault.no_answer(how=how)]) as server:  # type: ignore[arg-type]
        with pytest.raises(kind):
            client.post(server.url, content=b"paid", timeout=SOON)
        assert server.requests[0].body == b"paid"


def test_a_large_body_arrives_before_its_reset(client: httpx.Client) -> None:
    log = [ServerEvent(data="x" * 100_000) for _ in range(20)]
    with FlakyServer(log, [Fault.cut(after_events=19)]) as server:
        chunks, error = read(client, server.url)
        assert b"".join(chunks) == b"".join(server.frames[:19]) and isinstance(error, httpx.ReadError)


def test_a_client_that_resumes_gets_every_event_over_hundreds_of_cuts(client: httpx.Client) -> None:
    log = numbered(300)
    ways: itertools.cycle[How] = itertools.cycle(["rst", "fin", "clean", "clean_inside"])
    # Three cuts in four leave less than an event, so the cursor stands still.
    schedule = (Fault.cut(after_bytes=n, how=next(ways)) for n in itertools.cycle([0, 11, 40, 29]))
    with FlakyServer(log, schedule, no_content_at_end=True) as server:
        seen: list[str] = []
        while True:
            try:
                with client.stream("GET", server.url, headers={"Last-Event-ID": seen[-1]} if seen else {}) as response:
                    if response.status_code == 204:
                        break
                    seen.extend(event.id for event in httpx_sse.EventSource(response).iter_sse())
            except httpx.TransportError:
                pass
        assert seen == [str(n) for n in range(1, 301)]
        assert server.faults_used > 500


# --- other faults


def test_heartbeats_between_events(client: httpx.Client) -> None:
    fault = Fault.heartbeats(after_events=1, count=3, interval=0.01, frame=b": ping\n\n")
    with FlakyServer(numbered(2), [fault]) as server:
        started = time.monotonic()
        chunks, _ = read(client, server.url)
        assert chunks == [encoded(1), *[b": ping\n\n"] * 3, encoded(2)]
        assert time.monotonic() - started >= 0.03


def test_nothing_but_heartbeats_until_the_client_leaves(client: httpx.Client) -> None:
    with FlakyServer(numbered(2), [Fault.heartbeats(after_events=1, interval=0.001)]) as server:
        with client.stream("GET", server.url) as response:
            chunks = list(itertools.islice(response.iter_raw(), 20))
        assert chunks == [encoded(1), *[b": heartbeat\n\n"] * 19]
        assert server.wait_disconnected(30.0)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.duplicate(after_events=2), (1, 2, 2, 3, 4)),
        (Fault.duplicate(after_events=3, count=2), (1, 2, 3, 2, 3, 4)),
        (Fault.duplicate(after_events=0), (1, 2, 3, 4)),
        (Fault.hole(after_events=1), (1, 3, 4)),
        (Fault.hole(after_events=0, count=3), (4,)),
        (Fault.reorder(after_events=1), (1, 3, 2, 4)),
        (Fault.reorder(after_events=0, count=4), (4, 3, 2, 1)),
        (Fault.seam(after_events=3, overlap=2), (1, 2, 3, 2, 3, 4)),
        (Fault.insert(encoded(9), encoded(8), after_events=3), (1, 2, 3, 9, 8, 4)),
    ],
)
def test_the_order_of_events_is_disturbed_once(client: httpx.Client, fault: Fault, expected: tuple[int, ...]) -> None:
    with FlakyServer(numbered(4), [fault]) as server:
        assert body(client, server.url) == encoded(*expected)
        assert body(client, server.url) == server.transcript


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_last_event_may_lack_its_blank_line(client: httpx.Client, end: bytes) -> None:
    """The body ends as HTTP wants it, so only the blank line tells that something is missing."""
    log = [b"data: a" + 2 * end, b"data: b" + 2 * end]
    with FlakyServer(log, [Fault.no_blank_line()]) as server:
        assert body(client, server.url) == log[0] + b"data: b" + end
        assert body(client, server.url) == server.transcript
    with FlakyServer([], [Fault.no_blank_line()]) as server:
        assert body(client, server.url) == b""


def test_a_request_for_the_rest_without_the_cookie_reaches_another_back_end(client: httpx.Client) -> None:
    with FlakyServer(numbered(2), sticky_cookie="AWSALB") as server:
        with httpx.Client(trust_env=False) as fresh:
            first = fresh.get(server.url)
            assert first.headers["set-cookie"] == "AWSALB=here; Path=/"
            assert fresh.get(server.url, headers={"Last-Event-ID": "1"}).content == encoded(2)
            fresh.cookies.clear()
            assert fresh.get(server.url, headers={"Last-Event-ID": "1", "Cookie": "AWSALB=there"}).status_code == 404
    with FlakyServer(b"abc", format="bytes", sticky_cookie="AWSALB") as server:
        assert client.get(server.url, headers={"Range": "bytes=1-"}).status_code == 404
        assert httpx.get(server.url, trust_env=False).content == b"abc"
        assert client.get(server.url, headers={"Range": "bytes=1-", "Cookie": "a=b; AWSALB=here"}).content == b"bc"


def test_faults_of_one_response_are_applied_in_order(client: httpx.Client) -> None:
    beat = b": heartbeat\n\n"
    size = len(encoded(1))
    both = [Fault.duplicate(after_events=1), Fault.cut(after_bytes=2 * size + 3, how="fin")]
    # A heartbeat is not an event, so the hole is behind event 1, not behind the first heartbeat.
    beaten = [Fault.heartbeats(count=2, interval=0.0), Fault.hole(after_events=1), Fault.delay(0.01)]
    with FlakyServer(numbered(3), [both, None, beaten]) as server:
        chunks, error = read(client, server.url)
        assert b"".join(chunks) == encoded(1, 1) + encoded(2)[:3] and error is not None
        assert body(client, server.url) == server.transcript
        assert body(client, server.url) == beat * 2 + encoded(1, 3)


@pytest.mark.parametrize("code", [204, 401, 404, 409, 410, 429, 500, 503, 529])
def test_a_status_instead_of_the_stream(client: httpx.Client, code: int) -> None:
    faults = [Fault.status(code, retry_after=1.5, body=b'{"error": 1}', headers={"X-Id": "7"})] * 2
    with FlakyServer(numbered(1), faults) as server:
        for _ in faults:
            response = client.get(server.url)
            assert response.status_code == code and response.content == (b"" if code == 204 else b'{"error": 1}')
            assert response.headers["retry-after"] == "1.5" and response.headers["x-id"] == "7"
        assert server.connections == 1


def test_a_wrong_content_type_with_the_stream_or_with_a_page(client: httpx.Client) -> None:
    with FlakyServer(numbered(1), [Fault.content_type("text/html"), Fault.content_type("text/html", body=b"<p>")]) as server:
        response = client.get(server.url)
        assert response.headers["content-type"] == "text/html" and response.content == server.transcript
        assert client.get(server.url).content == b"<p>"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_this_origin_and_to_another(client: httpx.Client, status: int) -> None:
    with FlakyServer(numbered(2)) as other:
        with FlakyServer(
            numbered(1), [Fault.redirect("/moved", status=status), Fault.redirect(other.url, status=status)]
        ) as server:
            response = client.get(server.url, follow_redirects=True, headers={"Authorization": "Bearer x"})
            # The request that follows takes the next fault, so both redirects are met.
            assert [hop.status_code for hop in response.history] == [status, status]
            assert response.content == other.transcript
            assert [request.path for request in server.requests] == ["/stream", "/moved"]
            assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize("transfer", ["chunked", "length"])
def test_one_byte_writes(client: httpx.Client, transfer: str) -> None:
    with FlakyServer(numbered(2), [Fault.one_byte_writes()], transfer=transfer) as server:  # type: ignore[arg-type]
        chunks, _ = read(client, server.url)
        assert b"".join(chunks) == server.transcript
        if transfer == "chunked":
            assert {len(chunk) for chunk in chunks} == {1}


def test_an_endless_line_ends_when_the_client_leaves_or_at_its_limit(client: httpx.Client) -> None:
    faults = [Fault.endless_line(after_events=1), Fault.endless_line(limit_bytes=100_000)]
    with FlakyServer(numbered(2), faults) as server:
        with client.stream("GET", server.url) as response:
            got = b"".join(itertools.islice(response.iter_raw(), 60))
        assert got.startswith(encoded(1) + b"data: xxx") and b"\n" not in got[len(encoded(1)) :] and len(got) > 500_000
        assert server.wait_disconnected(30.0)
        got = body(client, server.url)
        assert len(got) == 100_000 and b"\n" not in got


# --- byte ranges

DOCUMENT = bytes(range(256)) * 200


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-", 0, 51199),
        ("bytes=100-", 100, 51199),
        ("bytes=5-9", 5, 9),
        ("bytes=-10", 51190, 51199),
        ("bytes=51199-99999", 51199, 51199),
    ],
)
def test_a_range_is_answered_with_206(client: httpx.Client, wanted: str, first: int, last: int) -> None:
    with FlakyServer(DOCUMENT, format="bytes", etag='"v1"') as server:
        response = client.get(server.url, headers={"Range": wanted})
        assert response.status_code == 206 and response.content == DOCUMENT[first : last + 1]
        assert response.headers["content-range"] == f"bytes {first}-{last}/51200"
        assert response.headers["etag"] == '"v1"' and response.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("wanted", ["bytes=9-5", "bytes=-", "lines=1-2", "bytes=0-1,5-6"])
def test_a_range_that_is_malformed_or_not_single_is_ignored(client: httpx.Client, wanted: str) -> None:
    with FlakyServer(DOCUMENT, format="bytes") as server:
        response = client.get(server.url, headers={"Range": wanted})
        assert response.status_code == 200 and response.content == DOCUMENT


def test_a_range_behind_the_end_is_answered_with_416(client: httpx.Client) -> None:
    with FlakyServer(DOCUMENT, format="bytes") as server:
        response = client.get(server.url, headers={"Range": "bytes=51200-"})
        assert response.status_code == 416 and response.headers["content-range"] == "bytes */51200"


@pytest.mark.parametrize(
    ("etag", "condition", "status"),
    [
        ('"v1"', '"v1"', 206),
        ('"v2"', '"v1"', 200),
        ('W/"v1"', 'W/"v1"', 200),
        ('"v1"', "Tue, 01 Jul 2025 00:00:00 GMT", 206),
        ('"v1"', "Wed, 02 Jul 2025 00:00:00 GMT", 200),
    ],
)
def test_if_range_wants_a_strong_tag_or_the_exact_date(client: httpx.Client, etag: str, condition: str, status: int) -> None:
    with FlakyServer(DOCUMENT, format="bytes", etag=etag, last_modified="Tue, 01 Jul 2025 00:00:00 GMT") as server:
        assert client.get(server.url, headers={"Range": "bytes=9-", "If-Range": condition}).status_code == status


def test_a_server_that_does_not_know_ranges_sends_everything(client: httpx.Client) -> None:
    with FlakyServer(DOCUMENT, format="bytes", accept_ranges=False) as server:
        response = client.get(server.url, headers={"Range": "bytes=9-"})
        assert response.status_code == 200 and response.headers["accept-ranges"] == "none"


def test_a_download_is_cut_and_continued(client: httpx.Client) -> None:
    with FlakyServer(DOCUMENT, itertools.repeat(Fault.cut(after_bytes=9001)), format="bytes", etag='"v1"') as server:
        got = b""
        while len(got) < len(DOCUMENT):
            chunks, _ = read(client, server.url, Range=f"bytes={len(got)}-", If_Range='"v1"')
            got += b"".join(chunks)
        assert got == DOCUMENT and server.faults_used == 6


# --- life


def test_close_wakes_every_connection_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    schedule = [Fault.cut(after_bytes=3, how="silence"), Fault.heartbeats(interval=30), Fault.delay(30), Fault.endless_line()] * 5
    server = FlakyServer(numbered(3), schedule).start()
    port = int(server.origin.rsplit(":", 1)[1])
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(25)]  # five of them never ask for anything
    for sock in socks[:20]:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    deadline = time.monotonic() + 60
    while (len(server.requests) < 20 or server.connections < 25) and time.monotonic() < deadline:
        time.sleep(0.001)
    started = time.monotonic()
    server.close()
    server.close()
    # The heartbeats and the delay are 30 s.
    assert time.monotonic() - started < 25
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    for sock in socks:
        sock.close()


def test_a_server_that_was_never_started_has_no_address_and_needs_no_close() -> None:
    server = FlakyServer()
    server.close()
    with pytest.raises(RuntimeError, match="no URL yet"):
        _ = server.url
    with server, pytest.raises(RuntimeError, match="already been started"):
        server.start()


@pytest.mark.parametrize("garbage", [b"", b"GET /\r\n\r\n", b"\x16\x03\x01" * 9, b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_what_is_not_http_is_closed(garbage: bytes) -> None:
    with FlakyServer() as server:
        with socket.create_connection(("127.0.0.1", int(server.origin.rsplit(":", 1)[1])), timeout=200) as sock:
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        assert server.requests == []


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_an_async_reader_gets_every_byte_before_a_reset() -> None:
    size = len(encoded(1, 2))
    with FlakyServer(numbered(2), [Fault.cut(after_bytes=n) for n in range(size)]) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            for n in range(size):
                got = b""
                try:
                    async with client.stream("GET", server.url) as response:
                        async for chunk in response.aiter_raw():
                            got += chunk
                except httpx.ReadError:
                    got += b"reset"
                assert got == server.transcript[:n] + b"reset"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_it_serves_async_clients_too() -> None:
    with FlakyServer(numbered(3), [Fault.cut(after_events=1), Fault.cut(after_events=1, how="silence")]) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            got = b""
            try:
                async with client.stream("GET", server.url) as response:
                    async for chunk in response.aiter_raw():
                        got += chunk
            except httpx.ReadError:
                got += b"reset"
            assert got == encoded(1) + b"reset"
            async with anyio.create_task_group() as group:
                group.start_soon(client.get, server.url)
                while len(server.requests) < 2:  # noqa: ASYNC110  a thread receives it
                    await anyio.sleep(0.005)
                group.cancel_scope.cancel()
            assert (await client.get(server.url)).content == server.transcript


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fault.cut(), "exactly one"),
        (lambda: Fault.cut(after_bytes=1, after_events=1), "exactly one"),
        (lambda: Fault.cut(after_bytes=-1), "negative"),
        (lambda: Fault.cut(after_bytes=1, how="explode"), "how must be"),  # type: ignore[arg-type]
        (lambda: Fault.no_answer(how="clean"), "how must be"),  # type: ignore[arg-type]
        (lambda: Fault.redirect("/", status=200), "redirect"),
        (lambda: Fault.status(99), "status"),
        (lambda: Fault.heartbeats(frame=b""), "byte"),
        (lambda: Fault.insert(after_events=1), "at least one frame"),
        (lambda: FlakyServer(format="xml"), "format"),  # type: ignore[arg-type]
        (lambda: FlakyServer(chunk_bytes=0), "chunk_bytes"),
        (lambda: FlakyServer(hold_open=True, transfer="length"), "hold_open"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


def test_a_single_fault_is_not_a_schedule_and_a_number_not_an_event() -> None:
    with pytest.raises(TypeError, match="single Fault"):
        FlakyServer(schedule=Fault.one_byte_writes())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an event must be"):
        FlakyServer([7])  # type: ignore[list-item]


def test_faults_are_values() -> None:
    assert Fault.cut(after_bytes=1) == Fault.cut(after_bytes=1) != Fault.cut(after_bytes=2)
    assert len({Fault.status(503), Fault.status(503), Fault.one_byte_writes()}) == 2


def test_importing_it_loads_neither_pytest_nor_a_client() -> None:
    code = "import sys, resumable_stream.testing; print({'pytest', 'httpx', 'httpx2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
