"""Answers in one piece that a relay keeps, so that the same request again gets them without asking the upstream."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest

from resumable_stream.server import HubLimits, MemoryLog, Relay
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply

from .relay_wires import KEY, OPENAI, OTHER_KEY
from .serving import Served, wait_until
from .test_relay import Away

SECRET = b"0123456789abcdef"
ANSWER = '{"id":"c1","choices":[{"message":{"content":"Grüße, 世界 🦊"}}]}\n'.encode()
HEADERS = {"content-type": "application/json; charset=utf-8", "x-request-id": "req_1", "set-cookie": "a=b"}
UPLOAD = b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n{}\r\n--b--\r\n'
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Why?"}]}


def says(*replies: Reply) -> FlakyServer:
    """An upstream that answers so; the last answer again and again."""
    waiting = list(replies)

    def say(request: RecordedRequest) -> Reply:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return FlakyServer(on_request=say)


def well(body: bytes = ANSWER, **headers: str) -> Reply:
    return Reply(headers={**HEADERS, **{name.replace("_", "-"): value for name, value in headers.items()}}, body=body)


@contextlib.contextmanager
def relayed(upstream: FlakyServer, log: Any = None, **options: Any) -> Iterator[httpx.Client]:
    options = {"keep_answers": True, "secret": SECRET, **options}
    with Served(Relay(upstream.origin, log or MemoryLog(), flush=0.0, **options)) as served, served.client() as client:
        yield client


def ask(client: httpx.Client, key: str | None = "k1", api_key: str = KEY, json: Any = ASKED) -> httpx.Response:
    headers = {"authorization": f"Bearer {api_key}"} | ({} if key is None else {"idempotency-key": key})
    return client.post("/v1/chat/completions", json=json, headers=headers)


def test_the_same_request_again_gets_the_answer_and_the_upstream_is_asked_once() -> None:
    log = MemoryLog()
    with says(well()) as upstream:
        for _ in range(2):
            # Two relays over one log, one after the other.
            with relayed(upstream, log) as client:
                for _ in range(2):
                    answer = ask(client)
                    assert (answer.status_code, answer.content) == (200, ANSWER)
                    assert answer.headers["content-type"] == HEADERS["content-type"]
                    assert answer.headers["x-request-id"] == "req_1" and "set-cookie" not in answer.headers
        with relayed(upstream, log) as client:
            place, shown = answer.headers["content-location"], {"authorization": f"Bearer {KEY}"}
            assert client.get(place, headers=shown).content == ANSWER
            head = client.head(place, headers=shown).headers
            assert (head["stream-outcome"], head["stream-tail"].partition(".")[2]) == ("completed", "1")
            assert client.get(place, headers={"authorization": f"Bearer {OTHER_KEY}"}).status_code == 404
    assert len(upstream.requests) == 1


def test_of_many_at_one_moment_one_is_sent() -> None:
    with FlakyServer(ANSWER, [Fault.delay(0.1)], format="bytes", content_type="application/json") as upstream:
        with relayed(upstream) as client, concurrent.futures.ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: ask(client), range(20)))
        assert {answer.content for answer in answers} == {ANSWER}
    assert len(upstream.requests) == 1


def test_an_answer_that_got_lost_head_and_all_is_there() -> None:
    with FlakyServer(ANSWER, [Fault.delay(0.2)], format="bytes", content_type="application/json") as upstream:
        relay = Relay(upstream.origin, MemoryLog(), keep_answers=True)
        with Served(relay) as served, served.client() as client:
            body = b'{"model":"m"}'
            head = f"POST /v1/x HTTP/1.1\r\nhost: x\r\nidempotency-key: k1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            with served.raw(head + body):
                wait_until(lambda: upstream.requests, "the request")
            assert client.post("/v1/x", content=body, headers={"idempotency-key": "k1"}).content == ANSWER
    assert len(upstream.requests) == 1


def test_it_is_that_of_one_request_of_one_client() -> None:
    with says(well(b'{"n":1}'), well(b'{"n":2}'), well(b'{"n":3}')) as upstream, relayed(upstream) as client:
        assert ask(client).json() == {"n": 1}
        conflict = ask(client, json={**ASKED, "n": 2})
        assert (conflict.status_code, conflict.json()["error"]) == (409, "key_reused")
        assert ask(client, api_key=OTHER_KEY).json() == {"n": 2}
        assert ask(client, "k2").json() == {"n": 3}
        assert [ask(client, *each).json()["n"] for each in (("k1",), ("k1", OTHER_KEY), ("k2",))] == [1, 2, 3]
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("transfer", ["length", "chunked"])
@pytest.mark.parametrize("more", [-1, 0, 1, 70_000])
def test_a_longer_one_passes_through_whole_and_is_asked_for_again(transfer: Literal["length", "chunked"], more: int) -> None:
    limit = 100_000
    body = b'"' + b"x" * (limit + more - 2) + b'"'
    server = FlakyServer(body, format="bytes", content_type="application/json", transfer=transfer)
    with server as upstream, relayed(upstream, answer_bytes=limit) as client:
        answers = [ask(client) for _ in range(2)]
        assert [answer.content for answer in answers] == [body, body]
        assert ["stream-id" in answer.headers for answer in answers] == [more <= 0] * 2
        assert len(upstream.requests) == (1 if more <= 0 else 2)


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("transfer", ["length", "chunked"])
def test_one_that_breaks_off_is_no_answer_and_is_not_asked_for_again(transfer: Any, how: Any) -> None:
    # No half of it reaches the client as if it were one.
    for at in (1, len(ANSWER) // 2, len(ANSWER) - 1):
        fault = Fault.cut(after_bytes=at, how=how)
        server = FlakyServer(ANSWER, [fault], format="bytes", content_type="application/json", transfer=transfer)
        with server as upstream, relayed(upstream) as client:
            answers = [ask(client) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [502, 502]
            assert [answer.json()["error"] for answer in answers] == ["upstream_error", "answer_lost"]
            assert ask(client, "k2").content == ANSWER
        assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    ("reply", "request_options"),
    [
        (Reply(status=400, headers=HEADERS, body=b"{}"), {}),
        (Reply(status=429, headers=HEADERS, body=b"{}"), {}),
        (Reply(status=500, headers=HEADERS, body=b"{}"), {}),
        (Reply(status=302, headers={**HEADERS, "location": "/x"}, body=b"{}"), {}),
        (well(content_type="audio/mpeg"), {}),
        (well(content_type="text/plain"), {}),
        (well(content_encoding="gzip"), {}),
        (well(b""), {}),
        (well(), {"content": UPLOAD, "headers": {"content-type": "multipart/form-data; boundary=b"}}),
        (well(), {"content": b"\xff\xd8 an image"}),
        (well(), {"json": ASKED, "key": None}),
        (well(), {"json": ASKED, "method": "PUT"}),
        (well(), {"json": ASKED, "method": "GET"}),
    ],
)
def test_everything_else_passes_through_untouched(reply: Reply, request_options: dict[str, Any]) -> None:
    options: dict[str, Any] = {"json": ASKED} | request_options
    method, key = options.pop("method", "POST"), options.pop("key", "k1")
    if "content" in options:
        del options["json"]
    headers = options.pop("headers", {}) | ({} if key is None else {"idempotency-key": key})
    with says(reply) as upstream, relayed(upstream) as client:
        for _ in range(2):
            with client.stream(method, "/v1/x", headers=headers, **options) as answer:
                assert (answer.status_code, b"".join(answer.iter_raw())) == (reply.status, reply.body)
                assert "stream-id" not in answer.headers and "content-location" not in answer.headers
    assert len(upstream.requests) == 2


def test_one_that_the_log_cannot_take_is_delivered_and_not_asked_for_again() -> None:
    class AwayForAnswers(Away):
        async def create(self, stream_id: str, head: Any, **options: Any) -> Any:
            self.away = head.content_type.startswith("application/json")
            return await super().create(stream_id, head, **options)

    with says(well()) as upstream, relayed(upstream, AwayForAnswers()) as client:
        answer = ask(client)
        assert (answer.status_code, answer.content) == (200, ANSWER)
        assert ask(client).json()["error"] == "answer_lost"
    assert len(upstream.requests) == 1


def test_a_stream_with_a_key_is_kept_as_before() -> None:
    with OPENAI.server() as upstream, relayed(upstream) as client:
        for _ in range(2):
            answer = client.post(OPENAI.path, json=OPENAI.body, headers={**OPENAI.credentials(), "idempotency-key": "k1"})
            assert answer.content == OPENAI.transcript
    assert len(upstream.requests) == 1


def test_without_the_option_each_is_sent() -> None:
    with says(well()) as upstream, relayed(upstream, keep_answers=False) as client:
        assert [ask(client).content for _ in range(2)] == [ANSWER, ANSWER]
    assert len(upstream.requests) == 2


def test_a_limit_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1000 .HubLimits."):
        Relay("https://a.example", keep_answers=True, answer_bytes=1001, limits=HubLimits(event_bytes=1000))
    with pytest.raises(ValueError, match="answer_bytes"):
        Relay("https://a.example", answer_bytes=0)
    # Without the option nothing is kept as one event.
    Relay("https://a.example", limits=HubLimits(event_bytes=1000))
