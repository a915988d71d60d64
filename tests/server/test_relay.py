"""A relay over real sockets: uvicorn in front, fakes of the providers behind."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from resumable_stream import LogUnavailable, Outcome
from resumable_stream.server import MemoryLog, Relay
from resumable_stream.server._relay_rules import principal_of
from resumable_stream.server.hub import key_of
from resumable_stream.server.log import Ending, Head, Unknown
from resumable_stream.server.wire import Facts
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply
from resumable_stream.testing.log_contract import span_of

from ..cutting import Where
from .relay_wires import ANTHROPIC, GEMINI, KEY, OPENAI, OTHER_KEY, TEXT, WIRES, Wire
from .serving import Served, read_until, wait_until

PATIENCE = 120.0


@contextlib.contextmanager
def relayed(upstream: FlakyServer | str | dict[str, str], log: Any = None, **options: Any) -> Iterator[Served]:
    target = upstream.origin if isinstance(upstream, FlakyServer) else upstream
    with Served(Relay(target, log or MemoryLog(), flush=0.0, **options)) as served:
        yield served


def post(client: httpx.Client, wire: Wire, key: str = KEY, **headers: str) -> httpx.Response:
    return client.post(wire.target, json=wire.body, headers={**wire.credentials(key), **headers})


def outcome(client: httpx.Client, location: str, headers: dict[str, str]) -> str | None:
    """How a stream has ended; `None` while it runs."""
    return client.head(location, headers=headers).headers.get("stream-outcome")


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_stream_is_passed_on_byte_for_byte_and_can_be_read_again(wire: Wire) -> None:
    with wire.server() as upstream, relayed(upstream) as served, served.client() as client:
        answer = post(client, wire)
        assert answer.status_code == 200
        assert answer.content == wire.transcript
        assert answer.headers["content-type"] == wire.content_type
        location, id = answer.headers["content-location"], answer.headers["stream-id"]
        assert location == f"/.streams/{id}"

        again = client.get(f"{location}?view=verbatim", headers=wire.credentials())
        assert again.content == wire.transcript
        assert again.headers["stream-epoch"] == answer.headers["stream-epoch"]
        end = f"{location}?view=verbatim&after={answer.headers['stream-epoch']}.{wire.events}"
        seen = client.get(end, headers=wire.credentials())
        assert (seen.status_code, seen.headers["stream-outcome"]) == (204, "completed")
        events = client.get(location, headers=wire.credentials())
        assert events.text.count("\nid: ") == wire.events + 1
        assert 'event: end\ndata: {"outcome":"completed"}' in events.text
        message = client.get(f"{location}/message", headers=wire.credentials()).json()
        assert (message["text"], message["outcome"], message["events"]) == ("".join(TEXT), "completed", wire.events)
    assert len(upstream.requests) == 1


def test_the_head_of_a_stream_is_the_upstreams_with_names_added_and_no_cookie() -> None:
    with OPENAI.server() as upstream, relayed(upstream, allow=["x-mine-"]) as served, served.client() as client:
        answer = post(client, OPENAI)
        for headers in (
            answer.headers,
            client.get(f"{answer.headers['content-location']}?view=verbatim", headers=OPENAI.credentials()).headers,
        ):
            assert headers["x-request-id"] == "req_1"
            assert headers["openai-version"] == "2020-10-01"
            assert headers["x-ratelimit-remaining"] == "7"
            assert "set-cookie" not in headers


def test_a_request_arrives_as_it_was_sent_but_for_what_is_about_the_connection() -> None:
    def say(request: RecordedRequest) -> Reply:
        return Reply(headers={"content-type": "application/json", "set-cookie": "a=b"}, body=b"{}")

    with FlakyServer(on_request=say) as upstream, relayed(upstream) as served, served.client() as client:
        sent = {
            "authorization": f"Bearer {KEY}", "openai-beta": "x", "cookie": "a=b", "x-forwarded-for": "10.0.0.1",
            "connection": "keep-alive, x-hop", "x-hop": "1", "stream-heartbeat": "15", "user-agent": "sdk/1",
            "accept": "a/b", "accept-encoding": "gzip",
        }  # fmt: skip
        answer = client.put("/v1/a%2Fb/c?x=1&y=%20z", content=b"body", headers=sent)
        assert answer.json() == {}
        assert "set-cookie" not in answer.headers and "content-location" not in answer.headers
    (request,) = upstream.requests
    assert request.url == f"{upstream.origin}/v1/a%2Fb/c?x=1&y=%20z"
    assert (request.method, request.body) == ("PUT", b"body")
    expected = {
        "authorization": f"Bearer {KEY}", "openai-beta": "x", "accept": "a/b", "user-agent": "sdk/1",
        "accept-encoding": "identity", "content-length": "4", "host": upstream.origin.removeprefix("http://"),
    }  # fmt: skip
    assert dict(request.headers) == expected


@pytest.mark.parametrize(
    ("status", "content_type", "method"),
    [
        (200, "application/json", "POST"),
        (401, "application/json", "POST"),
        (429, "text/event-stream", "POST"),
        (200, "text/event-stream", "GET"),
        (302, "text/plain", "POST"),
        (200, "image/png", "POST"),
    ],
)
def test_what_is_not_a_stream_passes_through(status: int, content_type: str, method: str) -> None:
    headers = {"content-type": content_type, "location": "https://elsewhere.example/", "retry-after": "3"}

    def say(request: RecordedRequest) -> Reply:
        return Reply(status=status, headers=headers, body=b"data: {}\n\n")

    with FlakyServer(on_request=say) as upstream, relayed(upstream) as served, served.client() as client:
        answer = client.request(method, "/v1/x", headers=OPENAI.credentials())
        assert (answer.status_code, answer.content) == (status, b"data: {}\n\n")
        assert {name: answer.headers[name] for name in headers} == headers
        assert "stream-id" not in answer.headers
    # A redirect is passed on: following it would take the key elsewhere.
    assert len(upstream.requests) == 1


def test_a_compressed_stream_passes_through() -> None:
    headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
    with FlakyServer(on_request=lambda _: Reply(headers=headers, body=b"\x1f\x8b")) as upstream:
        with relayed(upstream) as served, served.client() as client, client.stream("POST", "/v1/x") as answer:
            assert b"".join(answer.iter_raw()) == b"\x1f\x8b"
            assert "stream-id" not in answer.headers


def test_several_upstreams_are_mounted_and_no_request_can_name_another() -> None:
    with OPENAI.server() as first, ANTHROPIC.server() as second:
        mounts = {"/openai": first.origin, "/openai/claude": f"{second.origin}/base"}
        with relayed(mounts) as served, served.client() as client:
            answer = client.post(f"/openai{OPENAI.path}", json=OPENAI.body, headers=OPENAI.credentials())
            assert answer.content == OPENAI.transcript
            assert answer.headers["content-location"].startswith("/.streams/")
            assert client.post("/openai/claude/v1/messages", json=ANTHROPIC.body).content == ANTHROPIC.transcript
            assert client.post("/openaix/v1", json={}).status_code == 404
            assert client.post("/", json={}).status_code == 404
            for path in ("/openai/claude/../v1", "/openai/claude/%2e%2e/v1", "/openai/claude/..%2fv1", "/%6fpenai/v1"):
                with served.raw(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()) as sock:
                    assert read_until(sock, b"\r\n").split()[1] in (b"400", b"404")
        assert [request.path for request in first.requests] == [OPENAI.path]
        assert [request.path for request in second.requests] == ["/base/v1/messages"]


def test_an_upstream_that_cannot_be_reached_is_502(caplog: pytest.LogCaptureFixture) -> None:
    with FlakyServer() as upstream:
        pass
    with relayed(upstream) as served, served.client() as client:
        for headers in ({}, {"idempotency-key": "k"}, {"idempotency-key": "k"}):
            answer = post(client, OPENAI, **headers)
            assert (answer.status_code, answer.json()["error"]) == (502, "upstream_unreachable")
        assert client.post("/v1/x?key=s3cr3t", json={}).status_code == 502
    # Whoever runs the relay has to know why. The query may hold a key.
    said = [text for text in caplog.messages if text.startswith("the upstream at / gave no answer: ClientConnector")]
    assert len(said) == 4 and "refused" in said[0], caplog.messages
    assert "s3cr3t" not in caplog.text and upstream.origin not in caplog.text


def test_a_body_that_is_too_large_is_413() -> None:
    with OPENAI.server() as upstream, relayed(upstream, body_bytes=100) as served, served.client() as client:
        assert client.post("/v1/x", content=b"x" * 100).status_code == 200
        assert client.post("/v1/x", content=b"x" * 101).status_code == 413
        assert client.post("/v1/x", content=iter([b"x" * 60, b"x" * 41])).status_code == 413
    assert len(upstream.requests) == 1


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rst", "fin", "clean"])
@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_an_upstream_that_is_cut_cuts_its_readers_and_says_so(wire: Wire, how: Any) -> None:
    at = len(b"".join(wire.blocks[:4])) + 9
    with wire.server(Fault.cut(after_bytes=at, how=how)) as upstream, relayed(upstream) as served, served.client() as client:
        got: list[bytes] = []
        with client.stream("POST", wire.target, json=wire.body, headers=wire.credentials()) as answer:
            location, epoch = answer.headers["content-location"], answer.headers["stream-epoch"]
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                got.extend(each for each in answer.iter_raw())
        # The half of an event is not kept.
        assert b"".join(got) == b"".join(wire.blocks[:4])
        last = client.get(f"{location}?view=verbatim&after={epoch}.4", headers=wire.credentials())
        assert (last.status_code, last.headers["stream-outcome"]) == (204, "failed; reason=upstream_cut")


def test_a_passing_answer_that_is_cut_is_cut_for_the_client_too() -> None:
    server = FlakyServer(b"x" * 1000, [Fault.cut(after_bytes=500, how="fin")], format="bytes", content_type="image/png")
    with server as upstream, relayed(upstream) as served, served.client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/v1/file")


def test_a_failure_that_the_upstream_reports_itself_ends_as_the_upstream_ended_it() -> None:
    error = b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
    with FlakyServer([*OPENAI.blocks[:3], error]) as upstream, relayed(upstream) as served, served.client() as client:
        answer = post(client, OPENAI)
        assert answer.content == b"".join(OPENAI.blocks[:3]) + error
        location = answer.headers["content-location"]
        assert outcome(client, location, OPENAI.credentials()) == "failed; reason=upstream_reported"
        assert "overloaded" not in client.get(location, headers=OPENAI.credentials()).text.partition("event: end")[2]


@pytest.mark.parametrize("wire", [OPENAI, ANTHROPIC], ids=repr)
def test_an_upstream_that_does_not_close_after_its_last_event_is_not_waited_for(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resumable_stream.server._relay_upstream._LINGER", 0.05)
    server = FlakyServer(wire.blocks, hold_open=True, keep_alive=False, content_type=wire.content_type)
    with server as upstream, relayed(upstream) as served, served.client() as client:
        answer = post(client, wire)
        assert answer.content == wire.transcript
        assert outcome(client, answer.headers["content-location"], wire.credentials()) == "completed"


# --- leaving and stopping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_client_that_is_cut_at_any_byte_fetches_exactly_the_rest(wire: Wire, where: Where) -> None:
    whole = wire.transcript
    ends = [len(b"".join(wire.blocks[: n + 1])) for n in range(len(wire.blocks))]
    with wire.server() as upstream, relayed(upstream) as served, served.client() as client:
        for at in where(wire.blocks)[:-1]:
            got = b""
            with client.stream("POST", wire.target, json=wire.body, headers=wire.credentials()) as answer:
                location, epoch = answer.headers["content-location"], answer.headers["stream-epoch"]
                for piece in answer.iter_raw(1):
                    if len(got) == at:
                        break
                    got += piece
            n = sum(end <= len(got) for end in ends)
            rest = client.get(f"{location}?view=verbatim&after={epoch}.{n}", headers=wire.credentials())
            assert got[: ends[n - 1] if n else 0] + rest.content == whole


def test_a_client_that_leaves_does_not_stop_the_upstream() -> None:
    with (
        FlakyServer(OPENAI.blocks[:3], hold_open=True, keep_alive=False) as upstream,
        relayed(upstream) as served,
        served.client() as client,
    ):
        with client.stream("POST", OPENAI.path, json=OPENAI.body, headers=OPENAI.credentials()) as answer:
            location = answer.headers["content-location"]
            got = b""
            for piece in answer.iter_raw():
                got += piece
                if got.count(b"\n\n") > 3:
                    break
        wait_until(lambda: not served_readers(served), "the reader's leaving")
        upstream.append(*OPENAI.blocks[3:])
        with client.stream("GET", f"{location}?view=verbatim", headers=OPENAI.credentials()) as again:
            got = b""
            for piece in again.iter_raw():
                got += piece
                if got == OPENAI.transcript:
                    break
        client.post(f"{location}/cancel", headers=OPENAI.credentials())
    assert len(upstream.requests) == 1


def served_readers(served: Served) -> int:
    with served.client() as client:
        return metric(client, "relay_readers")


@pytest.mark.parametrize("events", [0, 3])
def test_cancel_closes_the_connection_to_the_upstream(events: int) -> None:
    server = FlakyServer(OPENAI.blocks[:events], hold_open=True, keep_alive=False)
    with server as upstream, relayed(upstream) as served, served.client() as client:
        with client.stream("POST", OPENAI.path, json=OPENAI.body, headers=OPENAI.credentials()) as answer:
            location = answer.headers["content-location"]
            assert client.post(f"{location}/cancel", headers=OPENAI.credentials()).status_code == 202
            assert upstream.wait_disconnected(PATIENCE)
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                answer.read()
        assert outcome(client, location, OPENAI.credentials()) == "cancelled; reason=cancelled_by_user"
        again = client.post(f"{location}/cancel", headers=OPENAI.credentials())
        assert (again.status_code, again.json()["outcome"]) == (200, "cancelled")


def test_what_nobody_reads_is_stopped_if_that_is_wished() -> None:
    server = FlakyServer(OPENAI.blocks[:2], hold_open=True, keep_alive=False)
    with server as upstream, relayed(upstream, abandon_after=0.0) as served, served.client() as client:
        with client.stream("POST", OPENAI.path, json=OPENAI.body, headers=OPENAI.credentials()) as answer:
            location = answer.headers["content-location"]
        assert upstream.wait_disconnected(PATIENCE)
        wait_until(lambda: outcome(client, location, OPENAI.credentials()), "its end")
        assert outcome(client, location, OPENAI.credentials()) == "cancelled; reason=abandoned"


def test_a_client_that_leaves_a_passing_answer_closes_the_upstream() -> None:
    server = FlakyServer(OPENAI.blocks[:2], hold_open=True, keep_alive=False)
    with server as upstream, relayed(upstream) as served, served.client() as client:
        with client.stream("GET", OPENAI.path, headers=OPENAI.credentials()) as answer:
            next(answer.iter_raw())
        assert upstream.wait_disconnected(PATIENCE)


def test_a_client_that_leaves_before_there_is_an_answer_closes_the_upstream() -> None:
    with FlakyServer([], [Fault.no_answer(how="silence")], keep_alive=False) as upstream, relayed(upstream) as served:
        with served.raw(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"):
            wait_until(lambda: upstream.requests, "the request")
        assert upstream.wait_disconnected(PATIENCE)


# --- sent once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_request_whose_answer_got_lost_is_sent_again_and_reaches_the_upstream_once(wire: Wire) -> None:
    with wire.server(Fault.delay(0.2)) as upstream, relayed(upstream) as served, served.client() as client:
        body = json.dumps(dict(wire.body)).encode()
        key = "\r\n".join(f"{name}: {value}" for name, value in wire.credentials().items())
        head = f"POST {wire.target} HTTP/1.1\r\nhost: x\r\n{key}\r\nidempotency-key: k1\r\ncontent-length: {len(body)}\r\n\r\n"
        with served.raw(head.encode() + body):
            # It leaves before there is a head.
            wait_until(lambda: upstream.requests, "the request")
        answers = [
            client.post(wire.target, content=body, headers={**wire.credentials(), "idempotency-key": "k1"}) for _ in range(2)
        ]
        assert [answer.content for answer in answers] == [wire.transcript] * 2
        assert answers[0].headers["stream-id"] == answers[1].headers["stream-id"]
    assert len(upstream.requests) == 1


def test_a_key_belongs_to_one_request_of_one_client() -> None:
    with OPENAI.server() as upstream, relayed(upstream) as served, served.client() as client:
        first = post(client, OPENAI, **{"idempotency-key": "k1"})
        other = client.post(OPENAI.path, json={**OPENAI.body, "n": 2}, headers={**OPENAI.credentials(), "idempotency-key": "k1"})
        assert (other.status_code, other.json()["error"]) == (409, "key_reused")
        assert len(upstream.requests) == 1
        theirs = post(client, OPENAI, OTHER_KEY, **{"idempotency-key": "k1"})
        assert theirs.content == OPENAI.transcript
        assert theirs.headers["stream-id"] != first.headers["stream-id"]
        assert len(upstream.requests) == 2


def test_a_key_whose_request_was_refused_may_be_sent_again() -> None:
    refusals = [Reply(status=429, headers={"content-type": "application/json"}, body=b"{}")] * 2
    with OPENAI.server(on_request=lambda _: refusals.pop() if refusals else None) as upstream:
        with relayed(upstream) as served, served.client() as client:
            codes = [post(client, OPENAI, **{"idempotency-key": "k1"}).status_code for _ in range(4)]
            assert codes == [429, 429, 200, 200]
    assert len(upstream.requests) == 3


def test_a_key_whose_request_was_sent_and_not_answered_is_not_sent_again() -> None:
    with OPENAI.server(Fault.no_answer()) as upstream, relayed(upstream) as served, served.client() as client:
        answers = [post(client, OPENAI, **{"idempotency-key": "k1"}) for _ in range(2)]
        assert [answer.json()["error"] for answer in answers] == ["upstream_error", "answer_lost"]
        assert post(client, OPENAI, **{"idempotency-key": "k2"}).content == OPENAI.transcript
    assert len(upstream.requests) == 2


def test_a_form_with_a_key_may_be_sent_again_after_a_refusal() -> None:
    replies = [Reply(status=500, body=b"{}"), Reply(headers={"content-type": "application/json"}, body=b'{"text":"hi"}')]
    with FlakyServer(on_request=lambda _: replies.pop(0)) as upstream, relayed(upstream) as served, served.client() as client:
        # Each time with another boundary between its parts, as clients do.
        answers = [client.post("/v1/x", files={"file": b"wav"}, headers={"idempotency-key": "k1"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [500, 200]
        reused = client.post("/v1/x", files={"file": b"another"}, headers={"idempotency-key": "k1"})
        assert reused.status_code == 409
    assert len(upstream.requests) == 2


def test_many_requests_with_one_key_at_one_moment_reach_the_upstream_once() -> None:
    import concurrent.futures

    with OPENAI.server(Fault.delay(0.1)) as upstream, relayed(upstream) as served, served.client() as client:
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: post(client, OPENAI, **{"idempotency-key": "k1"}), range(20)))
        assert {answer.content for answer in answers} == {OPENAI.transcript}
    assert len(upstream.requests) == 1


def test_a_key_of_a_request_that_asks_for_no_stream_is_the_upstreams_matter() -> None:
    with FlakyServer(on_request=lambda _: Reply(headers={"content-type": "application/json"}, body=b"{}")) as upstream:
        with relayed(upstream) as served, served.client() as client:
            for _ in range(2):
                answer = client.post(OPENAI.path, json={"model": "m"}, headers={"idempotency-key": "k1"})
                assert answer.json() == {}
    assert [request.headers["idempotency-key"] for request in upstream.requests] == ["k1", "k1"]


# --- whose ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_nobody_reads_another_ones_stream(wire: Wire) -> None:
    with wire.server() as upstream, relayed(upstream) as served, served.client() as client:
        answer = post(client, wire)
        location, cursor = answer.headers["content-location"], f"{answer.headers['stream-epoch']}.2"
        unknown = client.get("/.streams/unknown", headers=wire.credentials())
        assert unknown.status_code == 404
        both = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {OTHER_KEY}")]
        for headers in (
            wire.credentials(OTHER_KEY),
            {},
            {"authorization": "Bearer"},
            both,
            {**wire.credentials(), "api-key": "x"},
        ):
            for method, target in (
                ("GET", location),
                ("GET", f"{location}?view=verbatim&after={cursor}"),
                ("GET", f"{location}?from=3"),
                ("HEAD", location),
                ("GET", f"{location}/message"),
                ("POST", f"{location}/cancel"),
                ("DELETE", location),
            ):
                refused = client.request(method, target, headers=headers)
                assert refused.status_code == 404
                assert method == "HEAD" or refused.content == unknown.content
        # Still there, for who shows the key, wherever it stands.
        for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"x-goog-api-key": KEY}):
            assert client.get(f"{location}?view=verbatim", headers=headers).content == wire.transcript
        assert client.get(f"{location}?view=verbatim&key={KEY}").content == wire.transcript


def test_what_a_client_deletes_is_gone_and_its_key_is_used_up() -> None:
    with OPENAI.server() as upstream, relayed(upstream) as served, served.client() as client:
        answer = post(client, OPENAI, **{"idempotency-key": "k1"})
        assert client.delete(answer.headers["content-location"], headers=OPENAI.credentials()).status_code == 204
        assert client.get(answer.headers["content-location"], headers=OPENAI.credentials()).status_code == 404
        again = post(client, OPENAI, **{"idempotency-key": "k1"})
        assert (again.status_code, again.json()["error"]) == (410, "answer_gone")
    assert len(upstream.requests) == 1


# --- its own routes ---------------------------------------------------------------------------------------------------


def test_health_and_metrics_say_nothing_of_any_request() -> None:
    with OPENAI.server(None, Fault.cut(after_events=2)) as upstream, relayed(upstream) as served, served.client() as client:
        assert post(client, OPENAI).content == OPENAI.transcript
        with pytest.raises(httpx.RemoteProtocolError):
            post(client, OPENAI)
        client.get("/v1/models")
        assert client.get("/.health").json() == {"status": "ok"}
        answer = client.get("/.metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.text.splitlines()
        for line in (
            'relay_requests_total{result="stream",upstream="/"} 2',
            'relay_requests_total{result="passed",upstream="/"} 1',
            'relay_streams_total{outcome="completed",reason="",upstream="/"} 1',
            'relay_streams_total{outcome="failed",reason="upstream_cut",upstream="/"} 1',
            "relay_streams_running 0",
        ):
            assert line in lines
        (sent,) = [line for line in lines if line.startswith("relay_upstream_bytes_total{")]
        assert int(sent.split()[-1]) >= len(OPENAI.transcript)
        (appended,) = [line for line in lines if line.startswith("relay_log_bytes_total ")]
        assert int(appended.split()[-1]) == len(OPENAI.transcript) + len(b"".join(OPENAI.blocks[:2]))
        for secret in (KEY, "m:stream", "chat/completions", answer.headers.get("stream-id", "-no-")):
            assert secret not in answer.text
        assert client.get("/.streams").status_code == 404
        assert client.post("/.streams/x/messages", json={"data": 1}).status_code == 404
        assert client.put("/.streams/x").status_code == 405


def metric(client: httpx.Client, name: str) -> int:
    (line,) = [line for line in client.get("/.metrics").text.splitlines() if line.startswith(f"{name} ")]
    return int(line.split()[1])


def test_a_takeover_is_counted_where_a_stream_is_ended_and_not_where_it_is_only_claimed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, secret = MemoryLog(), b"0123456789abcdef"
    owner = principal_of(secret, Facts("GET", {"authorization": f"Bearer {KEY}"}))
    head = Head(content_type="text/event-stream", framing="sse", owner=owner, public_id="lost")
    relay = Relay("https://a.example", log, secret=secret)
    with Served(relay) as served, served.client() as client:
        # Of a process that died, and written by clients until its time was over.
        served.call(log.create(key_of("lost", owner), head, lease=0.0))
        written = Head(content_type="text/plain", framing="raw", written=True)
        served.call(log.create("written", written, lease=0.0))
        served.call(relay.hub._generations._take_over("written"))
        assert isinstance(served.call(log.read("written")), Unknown), "it was claimed, and deleted"
        assert metric(client, "relay_takeovers_total") == 0
        read = client.get("/.streams/lost", headers=OPENAI.credentials())
        assert '"reason":"producer_lost"' in read.text
        assert metric(client, "relay_takeovers_total") == 1
    # By the id that readers know, and not by the log's key for it.
    assert "stream lost lost its producer after event 0" in caplog.messages


def test_a_hole_that_is_filled_from_the_log_is_counted() -> None:
    log, secret = MemoryLog(), b"0123456789abcdef"
    owner = principal_of(secret, Facts("GET", {"authorization": f"Bearer {KEY}"}))
    head = Head(content_type="text/event-stream", framing="sse", owner=owner, public_id="s")
    key, relay = key_of("s", owner), Relay("https://a.example", log, secret=secret)
    with Served(relay) as served, served.client() as client:
        writer = served.call(log.create(key, head, lease=60.0))
        first, second, third = (span_of(n, n).data for n in (1, 2, 3))
        served.call(log.append([(writer, span_of(1, 1), None)]))
        with client.stream("GET", "/.streams/s?view=verbatim", headers=OPENAI.credentials()) as answer:
            pieces = answer.iter_raw()
            assert next(pieces) == first
            assert metric(client, "relay_holes_filled_total") == 0
            followed = relay.hub._following.find(key)
            assert followed is not None
            ring, lost = relay.hub._following._ring, []
            # The notice of the second event is lost; that of the third shows it.
            relay.hub._following._ring = lambda bell: lost.append(bell) if not lost else ring(bell)  # type: ignore[method-assign]
            served.call(log.append([(writer, span_of(2, 2), None)]))
            wait_until(lambda: lost, "the lost notice")
            served.call(log.append([(writer, span_of(3, 3), None)]))
            got = b""
            while got != second + third:
                got += next(pieces)
            assert metric(client, "relay_holes_filled_total") == 1
            served.call(log.finish(writer, 3, Ending(outcome=Outcome.COMPLETED)))
            assert b"".join(pieces) == b""


def test_metrics_can_be_turned_off() -> None:
    with OPENAI.server() as upstream, relayed(upstream, metrics=False) as served, served.client() as client:
        assert client.get("/.metrics").status_code == 404
    assert upstream.requests == []


def test_a_relay_can_be_mounted_in_another_app() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with OPENAI.server() as upstream:
        relay = Relay(upstream.origin, MemoryLog(), flush=0.0)
        app = Starlette(routes=[Mount("/llm", relay)], lifespan=relay.lifespan)
        with Served(app) as served, served.client() as client:
            answer = client.post(f"/llm{OPENAI.path}", json=OPENAI.body, headers=OPENAI.credentials())
            assert answer.content == OPENAI.transcript
            location = answer.headers["content-location"]
            assert location.startswith("/llm/.streams/")
            assert client.get(f"{location}?view=verbatim", headers=OPENAI.credentials()).content == OPENAI.transcript
            assert client.get("/llm/.health").status_code == 200
        assert [request.path for request in upstream.requests] == [OPENAI.path]


def test_a_stream_with_a_heartbeat_has_one_if_it_is_asked_for() -> None:
    server = FlakyServer(OPENAI.blocks[:2], hold_open=True, keep_alive=False)
    with server as upstream, relayed(upstream) as served, served.client() as client:
        headers = {**OPENAI.credentials(), "stream-heartbeat": "1"}
        with client.stream("POST", OPENAI.path, json=OPENAI.body, headers=headers) as answer:
            got = b""
            for piece in answer.iter_raw():
                got += piece
                if got.endswith(b"\n\n:\n\n"):
                    break
            client.post(f"{answer.headers['content-location']}/cancel", headers=headers)


def test_geminis_array_is_kept_as_bytes() -> None:
    body = b'[{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}]},\r\n{"candidates":[{"finishReason":"STOP"}]}]\n'
    for cut, ending in ((None, "completed"), (len(body) - 2, "failed; reason=upstream_cut")):
        headers = {"content-type": "application/json; charset=UTF-8"}
        with FlakyServer(on_request=lambda _, cut=cut, headers=headers: Reply(headers=headers, body=body[:cut])) as upstream:
            with relayed(upstream) as served, served.client() as client:
                with client.stream("POST", GEMINI.path, json=GEMINI.body, headers=GEMINI.credentials()) as answer:
                    location = answer.headers["content-location"]
                    with contextlib.suppress(httpx.RemoteProtocolError):
                        assert answer.read() == body
                wait_until(lambda: outcome(client, location, GEMINI.credentials()), "its end")  # noqa: B023
                assert outcome(client, location, GEMINI.credentials()) == ending
                with contextlib.suppress(httpx.RemoteProtocolError):
                    assert client.get(f"{location}?from=10", headers=GEMINI.credentials()).content == body[10:]


# --- the log ----------------------------------------------------------------------------------------------------------


class Away(MemoryLog):
    """A log that can be away."""

    away = False

    async def create(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise LogUnavailable("away")
        return await super().create(*args, **options)


def test_a_stream_that_cannot_be_kept_is_delivered_all_the_same_and_one_with_a_key_is_not_begun() -> None:
    log = Away()
    with OPENAI.server() as upstream, relayed(upstream, log) as served, served.client() as client:
        log.away = True
        answer = post(client, OPENAI)
        # Before the relay knows whose streams are whose, it asks for nothing.
        assert (answer.status_code, answer.json()["reason"]) == (503, "log_unavailable")
        log.away = False
        assert post(client, OPENAI).headers["stream-id"]
        log.away = True
        answer = post(client, OPENAI)
        assert (answer.status_code, answer.content) == (200, OPENAI.transcript)
        assert "stream-id" not in answer.headers
        assert post(client, OPENAI, **{"idempotency-key": "k1"}).status_code == 503
        assert len(upstream.requests) == 2
        log.away = False
        assert post(client, OPENAI, **{"idempotency-key": "k1"}).content == OPENAI.transcript


def test_relays_with_one_secret_know_each_others_clients_and_with_another_they_do_not() -> None:
    # A MemoryLog is not bound to a loop, so three relays can share it one after the other.
    log = MemoryLog()
    with OPENAI.server() as upstream:
        with relayed(upstream, log, secret=b"0123456789abcdef") as served, served.client() as client:
            location = post(client, OPENAI).headers["content-location"]
        for secret, status in ((b"0123456789abcdef", 200), (b"another secret!!", 404), (None, 404)):
            with relayed(upstream, log, secret=secret) as served, served.client() as client:
                assert client.get(f"{location}?view=verbatim", headers=OPENAI.credentials()).status_code == status


@pytest.mark.parametrize(
    "wrong", [{"idle": 0.0}, {"connect": -1.0}, {"body_bytes": 0}, {"secret": b"short"}, {"allow": ["cookie2", "set-cookie"]}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Relay("https://a.example", **wrong)
