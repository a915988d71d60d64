"""The routes of a hub, over real sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

import resumable_stream as rs
from resumable_stream import Outcome
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Ending, Generation, Hub, HubLimits, MemoryLog, Span
from resumable_stream.server.asgi import create_app
from resumable_stream.server.log import Head, Writer
from resumable_stream.server.wire import Facts

from .serving import PATIENCE, Gate, Served, read_until, wait_until

BODY = {"kind": "words", "input": {"prompt": "Hi"}}
WORDS = ["Sieben", "Grad", "☔", "in", "Köln"]
ORIGIN = "https://app.example.com"


async def words(gen: Generation) -> None:
    for word in WORDS:
        gen.text(word)


class Kit:
    """A hub with the producers of these tests, served."""

    def __init__(self, app: Any = None, *, cors: Any = (), **options: Any) -> None:
        self.hub = Hub(options.pop("log", None) or MemoryLog(), **{"flush": 0.0, **options})
        self.gate = Gate()
        self.started: list[str] = []
        self.told: list[str] = []
        for kind, run in {
            "words": words, "slow": self.slow, "fails": self.fails, "chat": self.chat, "large": self.large,
        }.items():  # fmt: skip
            self.hub.kind(kind)(run)
        self.served = Served(app(self.hub) if app else create_app(self.hub, cors=cors))

    async def slow(self, gen: Generation) -> None:
        self.started.append(gen.id)
        gen.text("first")
        await self.gate.wait()
        gen.text("second")

    async def fails(self, gen: Generation) -> None:
        gen.text("half")
        await gen.flush()
        gen.fail("upstream_cut", "the provider went away")

    async def chat(self, gen: Generation) -> Outcome:
        gen.text("?")
        while not gen.cancelled:
            for message in await gen.wait_steered(0.01):
                self.told.append(message.data)
                await gen.send(message.id, event="steered")
        return Outcome.CANCELLED

    async def large(self, gen: Generation) -> None:
        for _ in range(16):
            await gen.send("x" * (1 << 20))


@pytest.fixture
def serve() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> tuple[Kit, httpx.Client]:
            kit = Kit(**options)
            stack.enter_context(kit.served)
            return kit, stack.enter_context(kit.served.client())

        yield start


def events(body: bytes) -> list[tuple[str, str, str | None]]:
    return [(event.event, event.data, event.own_id) for event in SSEDecoder().feed(body)]


def texts(body: bytes) -> list[str]:
    return [json.loads(data)["text"] for name, data, _ in events(body) if name == "message"]


def begin(client: httpx.Client, kind: str = "words", key: str = "msg_42", **headers: str) -> httpx.Response:
    """Start a stream without reading it."""
    answer = client.post(
        "/streams", json={**BODY, "kind": kind}, headers={"Idempotency-Key": key, "Prefer": "respond-async", **headers}
    )
    assert answer.status_code == 202, answer.text
    return answer


def finish(kit: Kit, client: httpx.Client, key: str = "msg_42") -> str:
    """Wait for the end of a stream; its epoch."""
    wait_until(lambda: client.head(f"/streams/{key}").headers.get("stream-closed") == "true", "the end of the stream")
    return client.head(f"/streams/{key}").headers["stream-tail"].partition(".")[0]


# --- starting -----------------------------------------------------------------------------------------------------------


def test_a_post_is_answered_with_the_stream_from_its_start(serve: Any) -> None:
    _, client = serve()
    got = client.post("/streams", json=BODY, headers={"Idempotency-Key": "msg_42"})
    assert got.status_code == 200
    assert got.headers["content-type"] == "text/event-stream"
    assert got.headers["content-location"] == "/streams/msg_42"
    assert got.headers["stream-id"] == "msg_42"
    assert got.headers["cache-control"] == "no-cache, no-transform"
    assert got.headers["x-accel-buffering"] == "no"
    assert "stream-epoch" not in got.headers
    assert got.content.startswith(b"retry: ")
    seen = events(got.content)
    epoch = (seen[0][2] or "").partition(".")[0]
    assert [id for _, _, id in seen] == [f"{epoch}.{n}" for n in range(1, 7)]
    assert texts(got.content) == WORDS
    assert seen[-1][:2] == ("end", '{"outcome":"completed"}')


def test_the_same_key_joins_and_another_body_is_409(serve: Any) -> None:
    _, client = serve()
    first, second = (client.post("/streams", json=BODY, headers={"Idempotency-Key": '"k"'}) for _ in range(2))
    assert events(first.content) == events(second.content)
    third = client.post("/streams", json={**BODY, "input": 5}, headers={"Idempotency-Key": "k"})
    assert (third.status_code, third.json()["error"]) == (409, "key_reused")


def test_without_a_key_each_start_is_a_stream_of_its_own(serve: Any) -> None:
    _, client = serve()
    ids = {client.post("/streams", json=BODY).headers["stream-id"] for _ in range(2)}
    assert len(ids) == 2


def test_a_start_may_be_answered_before_the_stream(serve: Any) -> None:
    _, client = serve()
    got = begin(client)
    assert got.headers["location"] == "/streams/msg_42" and got.headers["preference-applied"] == "respond-async"
    assert got.json() == {"id": "msg_42", "location": "/streams/msg_42"}
    assert texts(client.get(got.headers["location"]).content) == WORDS


@pytest.mark.parametrize(
    ("body", "headers", "part"),
    [
        (b"{", {}, "the body"),
        (b"[]", {}, "the body"),
        (b"{}", {}, "'kind'"),
        (b'{"kind":"unknown"}', {}, "'kind'"),
        (b'{"kind":5}', {}, "'kind'"),
        (b'{"kind":"words","session":5}', {}, "'session'"),
        (b'{"kind":"words"}', {"Idempotency-Key": ".."}, "id of the stream"),
        (b'{"kind":"words"}', {"Idempotency-Key": "a/b"}, "id of the stream"),
        (b'{"kind":"words"}', {"Stream-Heartbeat": "x"}, "Stream-Heartbeat"),
    ],
)
def test_a_start_that_makes_no_sense_is_400(serve: Any, body: bytes, headers: dict[str, str], part: str) -> None:
    _, client = serve()
    got = client.post("/streams", content=body, headers=headers)
    assert (got.status_code, got.json()["error"]) == (400, "bad_request")
    assert part in got.json()["message"]
    assert got.json()["expected"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(1000, 202), (1001, 413)])
def test_a_body_has_a_limit(serve: Any, size: int, status: int, chunked: bool) -> None:
    _, client = serve(limits=HubLimits(body_bytes=1000))
    start, end = b'{"kind":"words","input":"', b'"}'
    body = start + b"x" * (size - len(start) - len(end)) + end
    got = client.post("/streams", content=iter([body]) if chunked else body, headers={"Prefer": "respond-async"})
    assert got.status_code == status
    assert status == 202 or got.json() == {
        "error": "too_large", "message": "a body may have at most 1000 bytes", "limit": 1000,
    }  # fmt: skip


# --- reading ------------------------------------------------------------------------------------------------------------


def test_a_reader_continues_behind_its_cursor(serve: Any) -> None:
    kit, client = serve()
    begin(client)
    epoch = finish(kit, client)
    whole = client.get("/streams/msg_42")
    for n in range(6):
        for got in (
            client.get("/streams/msg_42", headers={"Last-Event-ID": f"{epoch}.{n}"}),
            client.get("/streams/msg_42", params={"after": f"{epoch}.{n}"}),
            client.get("/streams/msg_42", params={"after": f"{epoch}.0"}, headers={"Last-Event-ID": f"{epoch}.{n}"}),
        ):
            assert got.status_code == 200
            assert events(got.content) == events(whole.content)[n:]


def test_a_reader_gets_what_is_live(serve: Any) -> None:
    kit, client = serve()
    begin(client, "slow")
    wait_until(lambda: client.head("/streams/msg_42").headers["stream-tail"].endswith(".1"), "the first event")
    with client.stream("GET", "/streams/msg_42", params={"control": "1"}) as got:
        decoder, seen = SSEDecoder(), []
        for chunk in got.iter_raw():
            seen += [(event.event, event.data) for event in decoder.feed(chunk)]
            if ("caught-up", "{}") in seen:
                kit.gate.open()
    assert seen == [
        ("message", '{"text":"first"}'),
        ("caught-up", "{}"),
        ("message", '{"text":"second"}'),
        ("end", '{"outcome":"completed"}'),
    ]


def test_the_replay_of_an_ended_stream_is_over_before_its_end(serve: Any) -> None:
    kit, client = serve()
    begin(client)
    finish(kit, client)
    names = [name for name, _, _ in events(client.get("/streams/msg_42?control=1").content)]
    assert names == ["message"] * 5 + ["caught-up", "end"]


def test_who_has_seen_the_end_is_answered_204(serve: Any) -> None:
    kit, client = serve()
    begin(client)
    epoch = finish(kit, client)
    for params in ({"after": f"{epoch}.6"}, {"after": f"{epoch}.5", "view": "verbatim"}):
        got = client.get("/streams/msg_42", params=params)
        assert (got.status_code, got.content) == (204, b"")
        assert (got.headers["stream-closed"], got.headers["stream-outcome"]) == ("true", "completed")


def test_the_bytes_are_shown_as_they_were_written(serve: Any) -> None:
    kit, client = serve()
    begin(client)
    epoch = finish(kit, client)
    blocks = [f'data: {{"text":"{word}"}}\n\n'.encode() for word in WORDS]
    for n in range(5):
        got = client.get("/streams/msg_42", params={"view": "verbatim", "after": f"{epoch}.{n}"})
        assert got.content == b"".join(blocks[n:])
        assert (got.headers["stream-epoch"], got.headers["stream-closed"]) == (epoch, "true")
    body = b"".join(blocks)
    for place in (0, 1, 7, len(body) - 1):
        assert client.get("/streams/msg_42", params={"from": str(place)}).content == body[place:]
    assert client.get("/streams/msg_42", params={"from": str(len(body))}).status_code == 204
    assert client.get("/streams/msg_42", params={"from": str(len(body) + 1)}).status_code == 410


def test_a_head_says_how_a_stream_stands(serve: Any) -> None:
    kit, client = serve()
    begin(client, "slow")
    wait_until(lambda: client.head("/streams/msg_42").headers["stream-tail"].endswith(".1"), "the first event")
    got = client.head("/streams/msg_42")
    assert (got.status_code, got.content, got.headers["stream-id"]) == (200, b"", "msg_42")
    assert got.headers["stream-bytes"] == str(len(b'data: {"text":"first"}\n\n'))
    assert "stream-closed" not in got.headers and "content-length" not in got.headers
    kit.gate.open()
    finish(kit, client)
    got = client.head("/streams/msg_42")
    assert (got.headers["stream-closed"], got.headers["stream-outcome"]) == ("true", "completed")
    assert got.headers["stream-tail"].endswith(".2")


def test_what_is_not_there_is_404(serve: Any) -> None:
    _, client = serve()
    for method, path in [
        ("GET", "/streams/nobody"), ("HEAD", "/streams/nobody"), ("DELETE", "/streams/nobody"), ("GET", "/streams/a%20b"),
        ("POST", "/streams/nobody/cancel"), ("POST", "/streams/nobody/messages"), ("GET", "/elsewhere"),
        ("GET", "/streams/a%20b?after=k7q2.1"),
    ]:  # fmt: skip
        got = client.request(method, path, json={"data": "x"} if path.endswith("messages") else None)
        assert got.status_code == 404, path
        assert method == "HEAD" or got.json() == {"error": "not_found"}
        assert got.headers["cache-control"] == "no-store"


def test_a_cursor_of_another_log_is_410(serve: Any) -> None:
    kit, client = serve()
    begin(client)
    epoch = finish(kit, client)
    got = client.get("/streams/msg_42?after=zz77.3")
    assert got.status_code == 410
    told = {"error": "history_gone", "why": "other_epoch", "oldest": f"{epoch}.0", "tail": f"{epoch}.5"}
    assert got.json() == told
    assert client.get("/streams/msg_42", headers={"Last-Event-ID": f"{epoch}.7"}).json() == {**told, "why": "went_back"}


def test_a_cursor_of_a_stream_that_nobody_knows_is_410(serve: Any) -> None:
    _, client = serve()
    got = client.get("/streams/nobody?after=k7q2.3")
    assert (got.status_code, got.json()["error"]) == (410, "history_gone")


def test_a_trimmed_log_says_where_it_begins(serve: Any) -> None:
    async def fill(log: MemoryLog) -> str:
        writer = await log.create("old", Head(content_type="text/event-stream", framing="sse"), lease=15.0)
        assert isinstance(writer, Writer)
        block = b"data: %s\n\n" % (b"x" * 50_000)
        for n in range(1, 17):
            await log.append([(writer, Span(n=n, b=n * len(block), lengths=(len(block),), data=block), None)])
        await log.finish(writer, 16, Ending(outcome=Outcome.COMPLETED))
        return writer.epoch

    kit, client = serve(log=MemoryLog(max_bytes=300_000))
    epoch = kit.served.call(fill(kit.hub.log))
    got = client.get("/streams/old")
    assert (got.status_code, got.json()["why"], got.json()["tail"]) == (410, "trimmed", f"{epoch}.16")
    oldest = got.json()["oldest"]
    n = int(oldest.partition(".")[2])
    assert 0 < n < 16
    assert client.get("/streams/old", params={"after": f"{epoch}.{n - 1}"}).status_code == 410
    rest = events(client.get("/streams/old", params={"after": oldest}).content)
    assert [id for _, _, id in rest] == [f"{epoch}.{number}" for number in range(n + 1, 18)]
    assert client.head("/streams/old").headers["stream-tail"] == f"{epoch}.16"


def test_a_cursor_that_makes_no_sense_is_400(serve: Any) -> None:
    _, client = serve()
    assert client.get("/streams/nobody?after=5").status_code == 400


def test_a_silent_stream_has_heartbeats(serve: Any) -> None:
    kit, client = serve(heartbeat=0.02)
    begin(client, "slow")
    with client.stream("GET", "/streams/msg_42") as got:
        body = b""
        for chunk in got.iter_raw():
            body += chunk
            if body.count(b":\n\n") >= 2:
                kit.gate.open()
    assert [data for name, data, _ in events(body) if name == "message"] == ['{"text":"first"}', '{"text":"second"}']


def test_a_body_without_ids_has_heartbeats_only_on_request(serve: Any) -> None:
    kit, client = serve(heartbeat=0.01)
    begin(client, "slow")
    request = b"GET /streams/msg_42?view=verbatim HTTP/1.1\r\nHost: x\r\n%s\r\n"
    with kit.served.raw(request % b"") as quiet, kit.served.raw(request % b"Stream-Heartbeat: 1\r\n") as asking:
        got = read_until(asking, b":\n\n")
        assert got.endswith(b"3\r\n:\n\n\r\n")
        kit.gate.open()
        assert b":\n\n" not in read_until(quiet, b"0\r\n\r\n")


# --- how a body ends ----------------------------------------------------------------------------------------------------


def test_the_end_of_a_failed_stream_says_why(serve: Any) -> None:
    _, client = serve()
    begin(client, "fails")
    name, data, id = events(client.get("/streams/msg_42").content)[-1]
    assert name == "end" and json.loads(data) == {
        "outcome": "failed",
        "error": {"reason": "upstream_cut", "message": "the provider went away"},
    }
    got = client.get("/streams/msg_42", headers={"Last-Event-ID": id or ""})
    assert (got.status_code, got.headers["stream-outcome"]) == (204, "failed; reason=upstream_cut")


@pytest.mark.parametrize("query", ["view=verbatim", "view=raw"])
def test_a_body_without_ids_of_a_failed_stream_is_cut(serve: Any, query: str) -> None:
    kit, client = serve()
    begin(client, "fails")
    epoch = finish(kit, client)
    body = b""
    with client.stream("GET", f"/streams/msg_42?{query}") as got:
        chunks = got.iter_raw()
        body += next(chunks)
        with pytest.raises(httpx.RemoteProtocolError):
            body += b"".join(chunks)
    assert body == b'data: {"text":"half"}\n\n'
    place = f"from={len(body)}" if "raw" in query else f"{query}&after={epoch}.1"
    again = client.get(f"/streams/msg_42?{place}")
    assert (again.status_code, again.headers["stream-outcome"]) == (204, "failed; reason=upstream_cut")
    assert not kit.hub._readers


# --- leaving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["events", "verbatim"])
def test_who_leaves_frees_the_reader_and_not_the_producer(serve: Any, view: str) -> None:
    kit, client = serve()
    begin(client, "slow")
    with client.stream("GET", f"/streams/msg_42?view={view}") as got:
        chunks = got.iter_raw()  # dropped, it would close the connection
        assert any(b"first" in chunk for chunk in chunks)
        assert len(kit.hub._readers) == 1
    wait_until(lambda: not kit.hub._readers, "the reader's end")
    kit.gate.open()
    assert texts(client.get("/streams/msg_42").content) == ["first", "second"]
    assert kit.started == ["msg_42"]


def test_who_started_it_may_leave_too(serve: Any) -> None:
    kit, client = serve()
    with client.stream("POST", "/streams", json={**BODY, "kind": "slow"}, headers={"Idempotency-Key": "k"}) as got:
        chunks = got.iter_raw()  # dropped, it would close the connection
        assert any(b"first" in chunk for chunk in chunks)
    wait_until(lambda: not kit.hub._readers, "the reader's end")
    kit.gate.open()
    assert texts(client.get("/streams/k").content) == ["first", "second"]


def test_a_client_that_resets_the_connection_frees_the_reader(serve: Any) -> None:
    kit, client = serve()
    begin(client, "slow")
    with kit.served.raw(b"GET /streams/msg_42 HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
        read_until(sock, b"first")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_until(lambda: not kit.hub._readers, "the reader's end")
    kit.gate.open()


def test_a_client_that_takes_nothing_is_cut_and_comes_back(serve: Any) -> None:
    # So long that a busy machine does not hold up the other one for it.
    kit, client = serve(send_timeout=3.0, poll=0.1)
    begin(client, "large")
    epoch = finish(kit, client)
    with kit.served.raw(b"GET /streams/msg_42 HTTP/1.1\r\nHost: x\r\n\r\n", receive_buffer=4096) as sock:
        wait_until(lambda: len(kit.hub._readers) == 1, "the slow reader")
        # Another one is not held up.
        assert len(client.get("/streams/msg_42").content) > 16 << 20
        wait_until(lambda: not kit.hub._readers, "the cut")
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(1 << 20):
                got += piece
        assert not got.endswith(b"0\r\n\r\n")
    assert 0 < got.count(b"\nid: ") < 16
    rest = client.get("/streams/msg_42", headers={"Last-Event-ID": f"{epoch}.{got.count(b'x' * (1 << 20))}"})
    assert rest.status_code == 200


def test_a_slow_client_that_does_take_something_is_not_cut(serve: Any) -> None:
    kit, client = serve(send_timeout=PATIENCE)
    begin(client, "large")
    finish(kit, client)
    with kit.served.raw(b"GET /streams/msg_42?view=verbatim HTTP/1.0\r\n\r\n", receive_buffer=4096) as sock:
        wait_until(lambda: len(kit.hub._readers) == 1, "the slow reader")
        size = 0
        while piece := sock.recv(1 << 20):
            size += len(piece)
    assert size > 16 << 20


# --- speaking to the producer -------------------------------------------------------------------------------------------


def test_messages_are_accepted_once(serve: Any) -> None:
    kit, client = serve()
    begin(client, "chat")
    said = [
        client.post("/streams/msg_42/messages", json={"data": data}, headers={"Idempotency-Key": key})
        for data, key in [("left", "m1"), ({"turn": "right"}, "m2"), ("left", "m1")]
    ]
    assert [(got.status_code, got.json()) for got in said] == [(202, {"position": n}) for n in (1, 2, 1)]
    wait_until(lambda: len(kit.told) == 2, "both messages")
    assert kit.told == ["left", '{"turn":"right"}']
    client.post("/streams/msg_42/cancel")
    finish(kit, client)
    got = client.post("/streams/msg_42/messages", json={"data": "late"})
    assert (got.status_code, got.json()["error"], got.json()["outcome"]) == (409, "ended", "cancelled")
    assert kit.told == ["left", '{"turn":"right"}']


def test_a_message_of_any_json_is_told_as_it_was_said(serve: Any) -> None:
    """
    The producer gets JSON that says the same, on one line and in UTF-8, as everything else that this server writes.

    Half of a character, which JavaScript makes by cutting a string, is a value of JSON and not of UTF-8: it stays escaped.
    Only as a text of its own it cannot be told, since nothing there is escaped.
    """
    kit, client = serve()
    begin(client, "chat")
    values = [
        None, True, 0, -1.5, 10**20, [], {}, [1, [2, {"a": None}]], {"é": "ü\u2028\r\n\t\"\\"}, {"a": "\U0001f600"}, ["\ud83d"],
        {"\ude00": "x\ud800y"}, {"é": "\ud83d"},
    ]  # fmt: skip
    for n, value in enumerate(values):
        got = client.post("/streams/msg_42/messages", content=json.dumps({"data": value}), headers={"Idempotency-Key": f"m{n}"})
        assert (got.status_code, got.json()) == (202, {"position": n + 1}), value
    wait_until(lambda: len(kit.told) == len(values), "all messages")
    assert [json.loads(text) for text in kit.told] == values
    assert all("\n" not in text and text.encode() and ", " not in text and ": " not in text for text in kit.told)
    assert kit.told[8] == '{"é":"ü\u2028\\r\\n\\t\\"\\\\"}'
    client.post("/streams/msg_42/cancel")
    finish(kit, client)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"x", "the body"), (b"{}", "'data'"), (b'{"data":1,"kind":5}', "'kind'"), (b'{"data":1,"kind":"cancel"}', "'kind'"),
        (b'{"data":"\\ud800"}', "'data'"),
    ],
)  # fmt: skip
def test_a_message_that_makes_no_sense_is_400(serve: Any, body: bytes, part: str) -> None:
    kit, client = serve()
    begin(client, "slow")
    got = client.post("/streams/msg_42/messages", content=body)
    assert got.status_code == 400 and part in got.json()["message"]
    kit.gate.open()


def test_a_cancel_is_accepted_and_then_known(serve: Any) -> None:
    kit, client = serve()
    begin(client, "chat")
    assert client.post("/streams/msg_42/cancel").status_code == 202
    finish(kit, client)
    got = client.post("/streams/msg_42/cancel")
    assert (got.status_code, got.json()["outcome"]) == (200, "cancelled")


def test_a_stream_can_be_forgotten(serve: Any) -> None:
    _, client = serve()
    begin(client, "chat")
    got = client.delete("/streams/msg_42")
    assert (got.status_code, got.content) == (204, b"")
    assert client.get("/streams/msg_42").status_code == 404


# --- limits, and a server that goes away --------------------------------------------------------------------------------


def test_more_readers_than_allowed_come_back_later(serve: Any) -> None:
    kit, client = serve(limits=HubLimits(readers_per_stream=1))
    begin(client, "slow")
    with client.stream("GET", "/streams/msg_42") as first:
        chunks = first.iter_raw()
        assert next(chunks)
        got = client.get("/streams/msg_42")
        assert (got.status_code, got.json()["reason"]) == (503, "limit_reached")
        assert 1 <= int(got.headers["retry-after"]) <= 5
        page = client.get("/streams/msg_42", headers={"Sec-Fetch-Dest": "empty"})
        assert page.status_code == 200 and page.content.startswith(b"retry: ") and page.content.endswith(b"\n\n")
        assert 5000 <= int(page.content[7:]) < 15000
        assert client.get("/streams/msg_42?view=verbatim", headers={"Sec-Fetch-Dest": "empty"}).status_code == 503
    kit.gate.open()


def test_a_hub_that_drains_sends_readers_away_and_takes_no_work(serve: Any) -> None:
    kit, client = serve()
    begin(client, "slow")
    assert client.get("/health").json() == {"status": "ok"}
    request = b"GET /streams/msg_42?view=%s HTTP/1.1\r\nHost: x\r\n\r\n"
    with kit.served.raw(request % b"events") as page, kit.served.raw(request % b"verbatim") as sdk:
        read_until(page, b"first")
        read_until(sdk, b"first")
        draining = threading.Thread(target=kit.served.call, args=(kit.hub.drain(timeout=PATIENCE, spread=0.0),))
        draining.start()
        goodbye = read_until(page, b"0\r\n\r\n")
        assert b"retry: " in goodbye and b"event: end" not in goodbye
        assert sdk.recv(65536) == b""
    for got in (client.get("/health"), client.post("/streams", json=BODY), client.get("/streams/msg_42")):
        assert (got.status_code, got.json()["reason"]) == (503, "draining")
    assert client.get("/streams/msg_42", headers={"Sec-Fetch-Dest": "empty"}).status_code == 200
    kit.gate.open()
    draining.join(PATIENCE)


# --- owners -------------------------------------------------------------------------------------------------------------


async def by_key(facts: Facts, stream_id: str | None, action: str) -> str | None:
    return facts.headers.get("authorization")


def test_others_see_no_more_than_that_there_is_nothing(serve: Any) -> None:
    kit, client = serve(authorize=by_key)
    ann, bob = {"Authorization": "ann"}, {"Authorization": "bob"}
    begin(client, "slow", **ann)
    for method, path in [
        ("GET", ""), ("HEAD", ""), ("GET", "?after=k7q2.1"), ("GET", "?view=verbatim"), ("DELETE", ""), ("POST", "/cancel"),
        ("POST", "/messages"),
    ]:  # fmt: skip
        body = {"data": "x"} if path == "/messages" else None
        seen = set()
        for id, headers in [("msg_42", bob), ("msg_42", {}), ("nobody", ann), ("nobody", bob)]:
            got = client.request(method, f"/streams/{id}{path}", headers=headers, json=body)
            assert got.status_code == 404
            seen.add((got.content, *((name, value) for name, value in got.headers.items() if name != "date")))
        assert len(seen) == 1
    assert client.post("/streams", json=BODY).status_code == 403
    kit.gate.open()
    assert texts(client.get("/streams/msg_42", headers=ann).content) == ["first", "second"]


def test_two_owners_may_choose_the_same_id(serve: Any) -> None:
    _, client = serve(authorize=by_key)
    for who in ("ann", "bob"):
        begin(client, "words" if who == "ann" else "fails", Authorization=who)
    assert texts(client.get("/streams/msg_42", headers={"Authorization": "ann"}).content) == WORDS
    assert texts(client.get("/streams/msg_42", headers={"Authorization": "bob"}).content) == ["half"]


# --- CORS and methods ---------------------------------------------------------------------------------------------------


def test_a_page_of_an_allowed_origin_may_read(serve: Any) -> None:
    _, client = serve(cors=[ORIGIN])
    begin(client)
    for path in ("/streams/msg_42", "/streams/nobody", "/health", "/elsewhere"):
        got = client.get(path, headers={"Origin": ORIGIN})
        assert got.headers["access-control-allow-origin"] == ORIGIN
        assert "Stream-Id" in got.headers["access-control-expose-headers"]
        other = client.get(path, headers={"Origin": "https://evil.example.com"})
        assert "access-control-allow-origin" not in other.headers
        assert other.headers["vary"] == "Origin"
    got = client.options("/streams/msg_42", headers={"Origin": ORIGIN, "Access-Control-Request-Method": "DELETE"})
    assert got.status_code == 204
    assert "DELETE" in got.headers["access-control-allow-methods"]
    assert "Last-Event-ID" in got.headers["access-control-allow-headers"]


def test_no_other_page_may_read_by_default(serve: Any) -> None:
    _, client = serve()
    for got in (client.get("/health", headers={"Origin": ORIGIN}), client.options("/streams", headers={"Origin": ORIGIN})):
        assert not [name for name in got.headers if name.startswith("access-control")]


def test_a_wrong_method_is_405(serve: Any) -> None:
    _, client = serve()
    got = client.put("/streams/msg_42")
    assert (got.status_code, got.headers["allow"]) == (405, "GET, DELETE, HEAD, OPTIONS")
    assert got.json()["error"] == "method_not_allowed"


def test_an_origin_that_nobody_sends_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="an origin is"):
        create_app(Hub(MemoryLog()), cors=["https://app.example.com/"])


# --- in an app of one's own ---------------------------------------------------------------------------------------------


def own_app(hub: Hub) -> Starlette:
    done: list[str] = []

    async def chat(request: Request) -> Response:
        body = await request.json()

        async def answer() -> AsyncIterator[str]:
            yield "one"
            yield "two"

        response = await hub.respond(request, answer(), id=body["id"])
        response.headers["X-Mine"] = "yes"
        response.set_cookie("a", "b")
        response.background = BackgroundTask(done.append, body["id"])
        return response

    async def again(request: Request) -> Response:
        return await hub.respond(request, id=request.path_params["id"])

    async def who(request: Request) -> Response:
        return Response(",".join(done))

    return Starlette(
        routes=[
            Route("/chat", chat, methods=["POST"]),
            Route("/chat/{id}", again),
            Route("/done", who),
            Mount("/api/v1", create_app(hub)),
        ],
        lifespan=hub.lifespan,
    )


def test_a_response_of_ones_own_app(serve: Any) -> None:
    _, client = serve(app=own_app)
    got = client.post("/chat", json={"id": "m1"})
    assert [data for name, data, _ in events(got.content) if name == "message"] == ["one", "two"]
    assert got.headers["content-location"] == "/chat/m1"
    assert (got.headers["x-mine"], got.cookies["a"]) == ("yes", "b")
    again = client.get(got.headers["content-location"], headers={"Last-Event-ID": events(got.content)[0][2] or ""})
    assert [data for name, data, _ in events(again.content) if name == "message"] == ["two"]
    assert again.headers["content-location"] == "/chat/m1"
    assert client.post("/chat", json={"id": "m1", "other": 1}).status_code == 409
    wait_until(lambda: client.get("/done").text == "m1,m1", "the background tasks")


def test_a_mounted_app_names_its_whole_path(serve: Any) -> None:
    _, client = serve(app=own_app)
    got = client.post("/api/v1/streams", json=BODY, headers={"Idempotency-Key": "k"})
    assert got.headers["content-location"] == "/api/v1/streams/k"
    assert texts(client.get(got.headers["content-location"]).content) == WORDS
    assert client.get("/api/v1/elsewhere").json() == {"error": "not_found"}


# --- the text so far ----------------------------------------------------------------------------------------------------


def test_the_text_so_far_is_had_in_one_piece_and_read_on_from_there(serve: Any) -> None:
    kit, client = serve()
    begin(client, "slow")
    wait_until(lambda: client.head("/streams/msg_42").headers["stream-tail"].endswith(".1"), "the first event")
    half = client.get("/streams/msg_42/message").json()
    assert half == {"text": "first", "cursor": half["cursor"], "outcome": None, "events": 1}
    with client.stream("GET", "/streams/msg_42", params={"view": "snapshot"}) as got:
        decoder, seen = SSEDecoder(), []
        for chunk in got.iter_raw():
            seen += [(event.event, event.data, event.own_id) for event in decoder.feed(chunk)]
            if seen:
                kit.gate.open()
    epoch = half["cursor"].partition(".")[0]
    assert seen == [
        ("snapshot", '{"text":"first"}', f"{epoch}.1"),
        ("message", '{"text":"second"}', f"{epoch}.2"),
        ("end", '{"outcome":"completed"}', f"{epoch}.3"),
    ]
    whole = client.get("/streams/msg_42/message").json()
    assert (whole["text"], whole["outcome"], whole["events"]) == ("firstsecond", "completed", 2)
    assert client.get("/streams/other/message").status_code == 404


def test_our_client_joins_with_the_text_so_far(serve: Any) -> None:
    kit, client = serve()
    begin(client, "slow")
    wait_until(lambda: client.head("/streams/msg_42").headers["stream-tail"].endswith(".1"), "the first event")
    kit.gate.open()
    with rs.connect("GET", f"{kit.served.url}/streams/msg_42?view=snapshot") as stream:
        assert stream.read_text() == "firstsecond"
    assert stream.outcome is rs.Outcome.COMPLETED
