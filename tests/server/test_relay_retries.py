"""A retry of an SDK that has no key gets the answer to the first try, where that is wished."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from resumable_stream.server import MemoryLog, Relay
from resumable_stream.server._relay_rules import is_retry, retry_id
from resumable_stream.testing import Fault, FlakyServer, Reply

from .relay_wires import GEMINI, KEY, OPENAI, OTHER_KEY, PROMPT, WIRES, Wire
from .serving import Served, wait_until
from .test_relay import PATIENCE, Away, outcome, served_readers

SECRET = b"0123456789abcdef"


@contextlib.contextmanager
def relayed(upstream: FlakyServer, log: Any = None, **options: Any) -> Iterator[Served]:
    options = {"join_retries": True, "secret": SECRET, **options}
    with Served(Relay(upstream.origin, log or MemoryLog(), flush=0.0, **options)) as served:
        yield served


def ask(
    client: httpx.Client, count: int | None = 0, wire: Wire = OPENAI, key: str = KEY, target: str = "", **more: Any
) -> httpx.Response:
    headers = wire.credentials(key) | ({} if count is None else {"x-stainless-retry-count": str(count)})
    return client.post(target or wire.target, json={**wire.body, **more}, headers=headers)


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_retry_of_a_request_whose_answer_got_lost_joins_it(wire: Wire) -> None:
    with wire.server(Fault.delay(0.2)) as upstream, relayed(upstream) as served, served.client() as client:
        body = json.dumps(dict(wire.body)).encode()
        credentials = "".join(f"{name}: {value}\r\n" for name, value in wire.credentials().items())
        head = f"POST {wire.target} HTTP/1.1\r\nhost: x\r\n{credentials}x-stainless-retry-count: 0\r\ncontent-length: {len(body)}"
        with served.raw(f"{head}\r\n\r\n".encode() + body):
            # It leaves before there is a head, as an SDK does whose time is over.
            wait_until(lambda: upstream.requests, "the request")
        headers = wire.credentials()
        answers = [client.post(wire.target, content=body, headers={**headers, "x-stainless-retry-count": str(n)}) for n in (1, 2)]
        assert [answer.content for answer in answers] == [wire.transcript] * 2
        assert len({answer.headers["stream-id"] for answer in answers}) == 1
    assert len(upstream.requests) == 1
    # The upstream sees the header, as it would without a relay.
    assert upstream.requests[0].headers["x-stainless-retry-count"] == "0"


def test_what_is_not_a_retry_is_sent_each_time_and_the_last_one_is_joined() -> None:
    with OPENAI.server() as upstream, relayed(upstream) as served, served.client() as client:
        ids = [ask(client, count).headers["stream-id"] for count in (0, None, 0)]
        assert len(set(ids)) == 3 and len(upstream.requests) == 3
        assert [ask(client, count).headers["stream-id"] for count in (1, 2, 10)] == [ids[-1]] * 3
        # Nobody knows of a first one: it is sent, and joined by the next.
        first = ask(client, 1, seed=2).headers["stream-id"]
        assert ask(client, 2, seed=2).headers["stream-id"] == first
    assert len(upstream.requests) == 4


def test_it_joins_what_is_the_same_request_of_the_same_client_at_the_same_place() -> None:
    with OPENAI.server() as upstream, relayed(upstream) as served, served.client() as client:
        ids = {ask(client).headers["stream-id"]}
        others: list[dict[str, Any]] = [
            {"key": OTHER_KEY},
            {"seed": 2},
            {"target": "/v2/chat/completions"},
            {"target": f"{OPENAI.path}?x=1"},
        ]
        for other in others:
            ids.add(ask(client, 1, **other).headers["stream-id"])
        assert len(ids) == len(upstream.requests) == 1 + len(others)
        # Whoever may not read it is not helped by its id.
        assert ask(client, 1).headers["stream-id"] in ids


def test_a_key_in_the_query_is_the_same_client() -> None:
    with GEMINI.server() as upstream, relayed(upstream) as served, served.client() as client:
        first = ask(client, 0, GEMINI)
        again = client.post(f"{GEMINI.target}&key={KEY}", json=dict(GEMINI.body), headers={"x-stainless-retry-count": "1"})
        assert again.headers["stream-id"] == first.headers["stream-id"]
    assert len(upstream.requests) == 1


def test_after_ten_minutes_it_is_sent() -> None:
    now = 1000.0
    log = MemoryLog(clock=lambda: now)
    with OPENAI.server() as upstream, relayed(upstream, log) as served, served.client() as client:
        first = ask(client).headers["stream-id"]
        now += 599.0
        assert ask(client, 1).headers["stream-id"] == first
        now += 2.0
        assert ask(client, 1).headers["stream-id"] != first
    assert len(upstream.requests) == 2


def test_one_that_was_refused_is_sent_again_and_then_joined() -> None:
    refusals = [Reply(status=status, headers={"content-type": "application/json"}, body=b"{}") for status in (500, 429)]
    with OPENAI.server(on_request=lambda _: refusals.pop() if refusals else None) as upstream:
        with relayed(upstream) as served, served.client() as client:
            assert [ask(client, count).status_code for count in (0, 1, 2, 3)] == [429, 500, 200, 200]
    assert len(upstream.requests) == 3


@pytest.mark.parametrize("how", ["no answer", "cut", "deleted"])
def test_where_there_is_no_answer_to_be_had_a_retry_is_sent_as_without_a_relay(how: str) -> None:
    faults = {"no answer": [Fault.no_answer()], "cut": [Fault.cut(after_events=3)]}.get(how, [])
    with OPENAI.server(*faults) as upstream, relayed(upstream) as served, served.client() as client:
        place = ""
        with contextlib.suppress(httpx.RemoteProtocolError):
            first = ask(client)
            place = first.headers.get("content-location", "")
            assert first.status_code == (502 if how == "no answer" else 200)
        if how == "deleted":
            assert client.delete(place, headers=OPENAI.credentials()).status_code == 204
        again = ask(client, 1)
        assert (again.status_code, again.content) == (200, OPENAI.transcript)
        assert ask(client, 2).headers["stream-id"] == again.headers["stream-id"]
    assert len(upstream.requests) == 2


def test_a_retry_that_waits_for_a_first_one_that_fails_is_sent_then() -> None:
    gate = threading.Event()

    def wait(request: Any) -> None:
        gate.wait(PATIENCE)

    with OPENAI.server(Fault.no_answer(), on_request=wait) as upstream, relayed(upstream) as served:
        body = json.dumps(dict(OPENAI.body)).encode()
        head = f"POST {OPENAI.path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        with served.raw(head.encode() + body), served.client() as client:
            wait_until(lambda: upstream.requests, "the request")
            retry = {**OPENAI.credentials(), "x-stainless-retry-count": "1"}
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(client.post, OPENAI.path, content=body, headers=retry)
                wait_until(lambda: served_readers(served) == 1, "the retry, which waits for the first")
                assert len(upstream.requests) == 1
                gate.set()
                again = waiting.result(PATIENCE)
            assert (again.status_code, again.content) == (200, OPENAI.transcript)
    assert len(upstream.requests) == 2


def test_one_that_was_cancelled_is_sent_again() -> None:
    headers = {**OPENAI.credentials(), "x-stainless-retry-count": "0"}
    server = FlakyServer(OPENAI.blocks[:2], hold_open=True, keep_alive=False)
    with server as upstream, relayed(upstream) as served, served.client() as client:
        with client.stream("POST", OPENAI.path, json=dict(OPENAI.body), headers=headers) as answer:
            place = answer.headers["content-location"]
            client.post(f"{place}/cancel", headers=headers)
        wait_until(lambda: outcome(client, place, headers), "its end")
        headers["x-stainless-retry-count"] = "1"
        with client.stream("POST", OPENAI.path, json=dict(OPENAI.body), headers=headers) as again:
            assert again.headers["content-location"] != place
            client.post(f"{again.headers['content-location']}/cancel", headers=headers)
    assert len(upstream.requests) == 2


def test_without_the_option_each_is_sent() -> None:
    with OPENAI.server() as upstream, relayed(upstream, join_retries=False) as served, served.client() as client:
        assert len({ask(client, count).headers["stream-id"] for count in (0, 1, 2)}) == 3
    assert len(upstream.requests) == 3


def test_a_request_with_a_key_has_its_own_rules() -> None:
    with OPENAI.server() as upstream, relayed(upstream) as served, served.client() as client:
        for count, key in ((0, "k1"), (1, "k1"), (1, "k2")):
            headers = {**OPENAI.credentials(), "idempotency-key": key, "x-stainless-retry-count": str(count)}
            assert client.post(OPENAI.path, json=dict(OPENAI.body), headers=headers).content == OPENAI.transcript
    assert len(upstream.requests) == 2


def test_a_log_that_is_away_costs_no_answer() -> None:
    log = Away()
    with OPENAI.server() as upstream, relayed(upstream, log) as served, served.client() as client:
        log.away = True
        assert ask(client).content == OPENAI.transcript
        assert ask(client, 1).content == OPENAI.transcript
    assert len(upstream.requests) == 2


def test_the_log_holds_neither_the_body_nor_the_key() -> None:
    log = MemoryLog()
    with OPENAI.server() as upstream, relayed(upstream, log) as served, served.client() as client:
        place = ask(client).headers["content-location"]
        wait_until(lambda: outcome(client, place, OPENAI.credentials()), "its end")
        assert len(log._streams) == 3, "the note, the claim and the stream"
        kept = repr([(id, stream.record, stream.spans) for id, stream in log._streams.items()])
        for secret in (KEY, PROMPT):
            assert secret not in kept


def test_who_counts_as_a_retry() -> None:
    for text in ("1", "2", "01", "999"):
        assert is_retry({"x-stainless-retry-count": text})
    for text in ("0", "00", "", "-1", "+1", "1.0", "one", " 1", "1000000", "١"):
        assert not is_retry({"x-stainless-retry-count": text})
    assert not is_retry({})
    base = (SECRET, "p", "/a", "f")
    given = [base, (b"another secret!!", *base[1:]), (SECRET, "q", *base[2:]), (SECRET, "p", "/b", "f"), (*base[:3], "g")]
    assert len({retry_id(*each) for each in given}) == len(given)
