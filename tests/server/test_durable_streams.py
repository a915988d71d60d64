"""The streams of a hub in the Durable Streams protocol, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.protocols.durable_streams import DurableStreams
from resumable_stream.server import Hub, HubLimits, MemoryLog, SQLiteLog, StreamLog
from resumable_stream.server.durable_streams import durable_streams
from resumable_stream.server.log import Cursor, Head, Page
from resumable_stream.server.wire import Facts

from .serving import Gate, Served, wait_until
from .test_every_cut_of_a_hub import AT_ONCE, CuttingProxy

RAW = Head(content_type="text/plain; charset=utf-8", framing="raw")
JSON = Head(content_type="application/json", framing="ndjson")
BYTES = Head(content_type="application/octet-stream", framing="raw")


class Kit:
    """A server of the protocol, its hub, and a client."""

    def __init__(self, log: StreamLog, served: Served, hub: Hub, client: httpx.Client) -> None:
        self.log, self.served, self.hub, self.client = log, served, hub, client

    def start(self, id: str, pieces: list[Any], head: Head, *, gate: Gate | None = None, **options: Any) -> None:
        """A stream with a producer, all of whose pieces before a `None` are in the log on return; the rest waits for the gate."""

        async def run(gen: Any) -> None:
            for piece in pieces:
                if piece is None:
                    assert gate is not None
                    await gate.wait()
                elif isinstance(piece, Exception):
                    raise piece
                else:
                    await gen.send(json.dumps(piece) if head.framing == "ndjson" else piece)
                    await gen.flush()

        async def begin() -> None:
            await self.hub.start(id, run, head=head, **options)

        self.served.call(begin())
        owner = options.get("owner", "")
        before = list(itertools.takewhile(lambda piece: piece is not None, pieces))
        done = gate is None

        def there() -> bool:
            state = self.served.call(self.hub.state(id, owner=owner))
            return state.ending is not None if done else state.n >= len(before)

        wait_until(there, f"the events of {id}")


@pytest.fixture
def serve() -> Iterator[Callable[..., Kit]]:
    running: list[tuple[Served, httpx.Client, Any]] = []

    def start(log: StreamLog | None = None, *, hub: dict[str, Any] | None = None, **options: Any) -> Kit:
        log = log or MemoryLog()
        made = Hub(log, **{"flush": 0.0, **(hub or {})})
        served = Served(durable_streams(made, **{"long_poll": 0.2, **options}))
        served.__enter__()
        client = served.client()
        running.append((served, client.__enter__(), client))
        return Kit(log, served, made, running[-1][1])

    yield start
    for served, _, client in reversed(running):
        client.__exit__(None, None, None)
        served.__exit__()


def sse(client: httpx.Client, url: str, **params: str) -> Iterator[tuple[str, str]]:
    """Names and data of events, up to the end of the body."""
    with client.stream("GET", url, params={"live": "sse", **params}) as got:
        assert got.status_code == 200, got.read()
        decoder = SSEDecoder()
        for chunk in got.iter_raw():
            for event in decoder.feed(chunk):
                yield event.event, event.data


# --- reading what has a producer ----------------------------------------------------------------------------------------


def test_a_stream_is_read_from_any_offset_to_its_end(serve: Any) -> None:
    kit = serve()
    gate = Gate()
    kit.start("s", ["Hello ", "wörld", None, "!"], RAW, gate=gate)
    first = kit.client.get("/s")
    assert (first.status_code, first.text) == (200, "Hello wörld")
    assert first.headers["content-type"] == RAW.content_type
    assert first.headers["stream-up-to-date"] == "true"
    assert "stream-closed" not in first.headers
    offset = first.headers["stream-next-offset"]
    epoch, _, b = offset.partition("_")
    assert b == f"{len('Hello wörld'.encode()):016d}"
    again = kit.client.get("/s", params={"offset": f"{epoch}_{6:016d}"})
    assert again.text == "wörld"
    assert kit.client.get("/s", params={"offset": offset}).content == b""
    gate.open()
    wait_until(lambda: "stream-closed" in kit.client.head("/s").headers, "the end")
    last = kit.client.get("/s", params={"offset": offset})
    assert (last.text, last.headers["stream-closed"], last.headers["stream-outcome"]) == ("!", "true", "completed")
    assert last.headers["stream-next-offset"] > offset
    head = kit.client.head("/s")
    assert (head.headers["stream-next-offset"], head.headers["cache-control"]) == (last.headers["stream-next-offset"], "no-store")


def test_a_stream_of_json_is_read_as_messages(serve: Any) -> None:
    kit = serve()
    kit.start("s", [{"n": 1}, ["a", None], "text"], JSON)
    got = kit.client.get("/s")
    assert (got.headers["content-type"], got.json()) == ("application/json", [{"n": 1}, ["a", None], "text"])
    assert kit.client.get("/s", params={"offset": got.headers["stream-next-offset"]}).content == b"[]"
    assert kit.client.get("/s", params={"offset": "now"}).content == b"[]"
    events = list(sse(kit.client, "/s", offset="-1"))
    assert [json.loads(data) for name, data in events if name == "data"] == [[{"n": 1}, ["a", None], "text"]]
    assert json.loads(events[-1][1])["streamClosed"] is True


def test_json_that_does_not_come_as_lines_is_not_shown_as_messages(serve: Any) -> None:
    """It is one document in pieces, and no piece is JSON."""
    kit = serve()
    kit.start("s", [b'{"a"', b": 1}"], replace(BYTES, content_type="application/json"))
    got = kit.client.get("/s")
    assert (got.headers["content-type"], got.content) == ("application/octet-stream", b'{"a": 1}')


def test_bytes_go_over_sse_in_base64(serve: Any) -> None:
    kit = serve()
    kit.start("s", [bytes(range(256)), b"\0"], BYTES)
    with kit.client.stream("GET", "/s?offset=-1&live=sse") as got:
        assert got.headers["stream-sse-data-encoding"] == "base64"
    data = [data for name, data in sse(kit.client, "/s", offset="-1") if name == "data"]
    assert b"".join(map(base64.b64decode, data)) == bytes(range(256)) + b"\0"


def test_a_character_in_two_pieces_is_one_over_sse(serve: Any) -> None:
    kit = serve()
    gate = Gate()
    kit.start("s", [b"a\xe2\x98", None, b"\x94 b\xff"], RAW, gate=gate)
    events = sse(kit.client, "/s", offset="-1")
    assert next(events) == ("data", "a")
    name, control = next(events)
    told = json.loads(control)
    # Before the character, so that who comes back gets all of it.
    assert (name, told["streamNextOffset"][-16:], told["upToDate"]) == ("control", f"{1:016d}", True)
    gate.open()
    rest = list(events)
    assert [data for name, data in rest if name == "data"] == ["\u2614 b\ufffd"]
    again = [data for name, data in sse(kit.client, "/s", offset=told["streamNextOffset"]) if name == "data"]
    assert "".join(again) == "\u2614 b\ufffd"


def test_text_comes_back_over_sse_as_it_was(serve: Any) -> None:
    kit = serve()
    text = " two spaces:  \n\ndata: not a field\n: nor a comment\n"
    kit.start("s", [text], RAW)
    assert [data for name, data in sse(kit.client, "/s", offset="-1") if name == "data"] == [text]


def test_live_readers_get_what_comes_and_the_end(serve: Any) -> None:
    kit = serve()
    gate = Gate()
    kit.start("s", ["a", None, "b"], RAW, gate=gate)
    offset = kit.client.get("/s").headers["stream-next-offset"]
    silent = kit.client.get("/s", params={"offset": offset, "live": "long-poll"})
    assert (silent.status_code, silent.headers["stream-next-offset"], silent.headers["stream-up-to-date"]) == (
        204,
        offset,
        "true",
    )
    cursor = int(silent.headers["stream-cursor"])
    later = kit.client.get("/s", params={"offset": offset, "live": "long-poll", "cursor": str(cursor)})
    assert int(later.headers["stream-cursor"]) > cursor
    events = sse(kit.client, "/s", offset="now")
    assert json.loads(next(events)[1])["streamNextOffset"] == offset
    gate.open()
    rest = list(events)
    assert rest[0] == ("data", "b")
    assert json.loads(rest[-1][1])["streamOutcome"] == "completed"
    end = kit.client.head("/s").headers["stream-next-offset"]
    over = kit.client.get("/s", params={"offset": end, "live": "long-poll"})
    assert (over.status_code, over.headers["stream-closed"]) == (204, "true")
    assert [name for name, _ in sse(kit.client, "/s", offset=end)] == ["control"]


def test_a_stream_that_failed_is_closed_and_says_so(serve: Any) -> None:
    kit = serve()
    kit.start("s", ["half", RuntimeError("no more")], RAW)
    got = kit.client.get("/s")
    assert (got.text, got.headers["stream-closed"]) == ("half", "true")
    assert got.headers["stream-outcome"].startswith("failed")
    assert json.loads(list(sse(kit.client, "/s", offset="-1"))[-1][1])["streamOutcome"].startswith("failed")
    for params in ({"live": "sse"}, {"live": "long-poll"}, {}):
        protocol = DurableStreams(json=False, live=params.get("live"))  # type: ignore[arg-type]
        with rs.connect("GET", f"{kit.served.url}/s", params={"offset": "-1", **params}, protocol=protocol) as stream:
            assert content_of("text", list(stream)) == "half"
        assert stream.outcome is rs.Outcome.FAILED, params


def test_what_an_offset_must_be(serve: Any) -> None:
    kit = serve()
    gate = Gate()
    kit.start("s", ["abc", None], RAW, gate=gate)
    epoch = kit.client.head("/s").headers["stream-next-offset"].partition("_")[0]
    other = "abcdefg" if epoch != "abcdefg" else "bcdefgh"
    for query, status in {
        "offset=": 400,
        "offset=5": 400,
        f"offset={epoch}_3": 400,
        f"offset={epoch}_9999999999999999": 400,
        f"offset={epoch}_0000000000000001&offset={epoch}_0000000000000001": 400,
        "live=sse": 400,
        "live=long-poll": 400,
        "offset=-1&live=yes": 400,
        f"offset={other}_0000000000000001": 410,
        # Its producer lives, and gives the log what it has lost.
        f"offset={epoch}_0000000000000004": 503,
        "offset=-1&unknown=1": 200,
    }.items():
        got = kit.client.get(f"/s?{query}")
        assert got.status_code == status, query
        assert got.headers["x-content-type-options"] == "nosniff"
    gate.open()
    wait_until(lambda: "stream-closed" in kit.client.head("/s").headers, "the end")
    assert kit.client.get("/s", params={"offset": f"{epoch}_{4:016d}"}).status_code == 410
    for path in ("/none", "/none/at/all", "/", "/~path.00"):
        assert kit.client.get(path).status_code == 404, path


def test_what_was_read_is_not_sent_again(serve: Any) -> None:
    kit = serve()
    gate = Gate()
    kit.start("s", ["abc", None], RAW, gate=gate)
    first = kit.client.get("/s")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    same = kit.client.get("/s", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    gate.open()
    wait_until(lambda: "stream-closed" in kit.client.head("/s").headers, "the end")
    # Or nobody would learn that it is closed.
    assert kit.client.get("/s", headers={"If-None-Match": tag}).status_code == 200


def test_a_long_stream_comes_in_several_answers(serve: Any) -> None:
    kit = serve()
    pieces = [bytes([n]) * 700_000 for n in range(4)]
    kit.start("s", [*pieces, b"\xe2\x98\x94" * 500_000], BYTES)
    kit.start("t", ["\u2614" * 700_000], RAW)
    kit.start("j", [{"n": n, "text": "x" * 700_000} for n in range(4)], JSON)
    for path, whole in (("/s", b"".join(pieces) + b"\xe2\x98\x94" * 500_000), ("/t", ("\u2614" * 700_000).encode())):
        found, offset, answers = b"", "-1", 0
        while True:
            got = kit.client.get(path, params={"offset": offset})
            assert len(got.content) <= 1 << 20
            if path == "/t":
                got.content.decode()
            found, offset, answers = found + got.content, got.headers["stream-next-offset"], answers + 1
            if "stream-closed" in got.headers:
                assert got.headers["stream-up-to-date"] == "true"
                break
            assert "stream-up-to-date" not in got.headers
        assert (found, answers) == (whole, -(-len(whole) // ((1 << 20) - 3)))
    messages, offset = [], "-1"
    while True:
        got = kit.client.get("/j", params={"offset": offset})
        messages += got.json()
        offset = got.headers["stream-next-offset"]
        if "stream-closed" in got.headers:
            break
    assert [message["n"] for message in messages] == [0, 1, 2, 3]


def test_sse_ends_now_and_then_and_goes_on_where_it_was(serve: Any) -> None:
    kit = serve(rotate=0.2)
    gate = Gate()
    kit.start("s", ["a", None, "b"], RAW, gate=gate)
    events = list(sse(kit.client, "/s", offset="-1"))
    assert events[0] == ("data", "a")
    last = json.loads(events[-1][1])
    assert "streamClosed" not in last
    gate.open()
    rest = sse(kit.client, "/s", offset=last["streamNextOffset"], cursor=last["streamCursor"])
    assert [data for name, data in rest if name == "data"] == ["b"]


def test_a_silent_stream_says_that_it_lives(serve: Any) -> None:
    kit = serve(hub={"heartbeat": 0.05})
    gate = Gate()
    kit.start("s", ["a", None], RAW, gate=gate)
    events = sse(kit.client, "/s", offset="-1")
    told = [json.loads(data) for name, data in itertools.islice(events, 4) if name == "control"]
    assert len(told) == 3 and len({each["streamNextOffset"] for each in told}) == 1
    assert all(each["upToDate"] for each in told)
    gate.open()
    assert json.loads(list(events)[-1][1])["streamClosed"] is True


def test_a_client_that_leaves_a_long_poll_is_let_go(serve: Any) -> None:
    kit = serve(long_poll=600.0)
    gate = Gate()
    kit.start("s", ["a", None], RAW, gate=gate)
    request = b"GET /s?offset=now&live=long-poll HTTP/1.1\r\nHost: x\r\n\r\n"
    with kit.served.raw(request):
        wait_until(lambda: "1 readers" in repr(kit.hub), "the reader")
    wait_until(lambda: "0 readers" in repr(kit.hub), "its end")
    gate.open()


def test_a_drain_sends_readers_away_and_they_come_back(serve: Any) -> None:
    kit = serve()
    gate = Gate()
    kit.start("s", ["a", None, "b"], RAW, gate=gate)
    events = sse(kit.client, "/s", offset="-1")
    assert next(events)[0] == "data"
    draining = threading.Thread(target=lambda: kit.served.call(kit.hub.drain(timeout=20.0, spread=0.0)))
    draining.start()
    rest = list(events)
    assert all("streamClosed" not in json.loads(data) for name, data in rest if name == "control")
    assert kit.client.get("/s").status_code == 503
    gate.open()
    draining.join(200)
    assert not draining.is_alive()


def test_a_log_that_has_dropped_its_beginning_serves_the_rest(serve: Any) -> None:
    kit = serve(MemoryLog(max_bytes=40_000))
    gate = Gate()
    kit.start("s", [*[bytes([n]) * 1000 for n in range(100)], None], BYTES, gate=gate)
    gate.open()
    wait_until(lambda: "stream-closed" in kit.client.head("/s").headers, "the end")
    page = kit.served.call(kit.log.read("s", None, limit_bytes=0))
    assert isinstance(page, Page) and page.oldest > 1
    # As after half a minute without readers: this process has a copy of all of it.
    kit.served.loop.call_soon_threadsafe(kit.hub._following.forget, "s")
    wait_until(lambda: kit.client.get("/s").status_code == 410, "an answer from the log")
    assert kit.client.get("/s", params={"offset": f"{page.epoch}_{99_000:016d}"}).content == bytes([99]) * 1000
    assert kit.client.get("/s", params={"offset": f"{page.epoch}_{1000:016d}"}).status_code == 410


# --- who may ------------------------------------------------------------------------------------------------------------


def test_nobody_writes_unless_it_is_allowed(serve: Any) -> None:
    kit = serve()
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        got = kit.client.request(method, "/s", content=b"x")
        assert (got.status_code, got.headers["allow"]) == (405, "GET, HEAD, OPTIONS"), method
    assert kit.client.head("/s").status_code == 404


def test_what_this_server_does_not_do(serve: Any) -> None:
    kit = serve(write=True)
    for method in ("GET", "PUT", "POST", "DELETE"):
        assert kit.client.request(method, "/__ds/subscriptions/a").status_code == 501
    assert kit.client.put("/s", headers={"Stream-Forked-From": "/t"}).status_code == 501


async def by_header(facts: Facts, id: str | None, action: str) -> str | None:
    user = facts.headers.get("x-user")
    return None if user is None or action in facts.headers.get("x-not", "") else user


def test_each_owner_has_streams_of_his_own(serve: Any) -> None:
    kit = serve(write=True, hub={"authorize": by_header})
    ann, bob = {"X-User": "ann"}, {"X-User": "bob"}
    plain = {"Content-Type": "text/plain"}
    for user in (ann, bob):
        assert kit.client.put("/chat/1", headers={**user, **plain}, content=user["X-User"]).status_code == 201
    for user in (ann, bob):
        assert kit.client.get("/chat/1", headers=user).text == user["X-User"]
    assert kit.client.delete("/chat/1", headers=ann).status_code == 204
    assert kit.client.get("/chat/1", headers=ann).status_code == 404
    assert kit.client.get("/chat/1", headers=bob).text == "bob"
    for method, action, status in (
        ("GET", "read", 404),
        ("PUT", "create", 403),
        ("POST", "append", 404),
        ("DELETE", "forget", 404),
    ):
        for headers in ({}, {**bob, "X-Not": action}):
            got = kit.client.request(method, "/chat/1", headers={**plain, **headers}, content=b"x" if method != "GET" else None)
            assert got.status_code == status, method
    kit.start("m", ["hers"], RAW, owner="ann")
    assert kit.client.get("/m", headers=ann).text == "hers"
    assert kit.client.get("/m", headers=bob).status_code == 404


def test_public_streams_may_be_kept_by_caches_and_have_no_owners(serve: Any) -> None:
    kit = serve(public=True, cors=["https://app.example.com"])
    kit.start("s", ["abc"], RAW)
    got = kit.client.get("/s", headers={"Origin": "https://app.example.com"})
    assert got.headers["cache-control"] == "public, max-age=60, stale-while-revalidate=300"
    assert got.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "Stream-Next-Offset" in got.headers["access-control-expose-headers"]
    assert kit.client.get("/s", params={"offset": got.headers["stream-next-offset"]}).headers["cache-control"] == "no-cache"
    asked = kit.client.options("/s", headers={"Origin": "https://app.example.com"})
    assert asked.headers["access-control-allow-methods"] == "GET, HEAD"
    with pytest.raises(ValueError, match="public streams cannot have owners"):
        durable_streams(Hub(MemoryLog(), authorize=by_header), public=True)
    for wrong in ({"long_poll": 0.0}, {"rotate": -1.0}, {"retention": float("inf")}):
        with pytest.raises(ValueError, match="must be more than 0"):
            durable_streams(Hub(MemoryLog()), **wrong)  # type: ignore[arg-type]


# --- writing ------------------------------------------------------------------------------------------------------------

PLAIN = {"Content-Type": "text/plain"}


def by(id: str, seq: int, epoch: int = 0, **more: str) -> dict[str, str]:
    return {**PLAIN, "Producer-Id": id, "Producer-Epoch": str(epoch), "Producer-Seq": str(seq), **more}


def test_a_stream_is_created_appended_to_closed_and_deleted(serve: Any) -> None:
    kit = serve(write=True)
    made = kit.client.put("/a/b c", headers=PLAIN, content="one ")
    assert (made.status_code, made.headers["location"]) == (201, f"{kit.served.url}/a/b%20c")
    assert kit.client.put("/a/b c", headers=PLAIN).status_code == 200
    assert kit.client.put("/a/b c", headers={"Content-Type": "text/html"}).status_code == 409
    added = kit.client.post("/a/b c", headers=PLAIN, content="two")
    assert added.status_code == 204
    got = kit.client.get("/a/b c")
    assert (got.text, got.headers["stream-next-offset"]) == ("one two", added.headers["stream-next-offset"])
    closed = kit.client.post("/a/b c", headers={**PLAIN, "Stream-Closed": "true"}, content="!")
    assert (closed.status_code, closed.headers["stream-closed"]) == (204, "true")
    assert kit.client.get("/a/b c").headers["stream-closed"] == "true"
    refused = kit.client.post("/a/b c", headers=PLAIN, content="more")
    assert (refused.status_code, refused.headers["stream-closed"]) == (409, "true")
    assert kit.client.delete("/a/b c").status_code == 204
    assert kit.client.delete("/a/b c").status_code == 404
    assert kit.client.get("/a/b c").status_code == 404


def test_messages_are_kept_as_they_were_written(serve: Any) -> None:
    kit = serve(write=True)
    as_json = {"Content-Type": "application/json"}
    body = '[ {"a":1.0,\n "b": 1e400, "a": "\\ud800"} , [1,\r\n2], 12345678901234567890123 ]'
    assert kit.client.put("/j", headers=as_json, content=body).status_code == 201
    assert kit.client.post("/j", headers=as_json, content=' "one" ').status_code == 204
    assert kit.client.post("/j", headers=as_json, content=b'\xef\xbb\xbf[{"t": "\xe2\x98\x94"}]').status_code == 204
    expected = '[{"a":1.0,  "b": 1e400, "a": "\\ud800"},[1,  2],12345678901234567890123,"one",{"t": "\u2614"}]'
    assert kit.client.get("/j").text == expected
    for wrong in ("[]", "[1,]", "[1 2]", "{", "[1] 2", "NaN", "1 2", "[1", "[" * 100_000, b"\xff"):
        got = kit.client.post("/j", headers=as_json, content=wrong)
        assert got.status_code == 400, wrong[:10]
    assert kit.client.get("/j").text == expected


def test_a_lost_reply_is_sent_again_and_appended_once(serve: Any) -> None:
    kit = serve(write=True)
    kit.client.put("/s", headers=PLAIN)
    first = kit.client.post("/s", headers=by("p", 0), content="a")
    assert (first.status_code, first.headers["producer-seq"]) == (200, "0")
    again = kit.client.post("/s", headers=by("p", 0), content="a")
    assert (again.status_code, again.headers["producer-seq"]) == (204, "0")
    gap = kit.client.post("/s", headers=by("p", 2), content="c")
    assert (gap.status_code, gap.headers["producer-expected-seq"], gap.headers["producer-received-seq"]) == (409, "1", "2")
    assert kit.client.post("/s", headers=by("p", 1), content="b").status_code == 200
    assert kit.client.post("/s", headers=by("p", 0, epoch=1), content="c").status_code == 200
    stale = kit.client.post("/s", headers=by("p", 2), content="late")
    assert (stale.status_code, stale.headers["producer-epoch"]) == (403, "1")
    assert kit.client.post("/s", headers=by("q", 0, **{"Stream-Closed": "true"}), content="d").status_code == 200
    # What was accepted before it was closed is still a success.
    assert kit.client.post("/s", headers=by("p", 0, epoch=1), content="c").status_code == 204
    assert kit.client.post("/s", headers=by("p", 1, epoch=1), content="e").status_code == 409
    assert kit.client.get("/s").text == "abcd"


def test_what_a_write_must_be(serve: Any) -> None:
    kit = serve(write=True, hub={"limits": HubLimits(stream_bytes=100, event_bytes=50, body_bytes=60)})
    kit.client.put("/s", headers=PLAIN)
    for headers, body, status in (
        (PLAIN, "", 400),
        ({}, "x", 400),
        ({"Content-Type": "text/html"}, "x", 409),
        ({**PLAIN, "Producer-Id": "p"}, "x", 400),
        (by("", 0), "x", 400),
        (by("p" * 257, 0), "x", 400),
        ({**by("p", 0), "Producer-Seq": "1.0"}, "x", 400),
        ({**by("p", 0), "Producer-Epoch": str(2**53)}, "x", 400),
        ({**PLAIN, "Stream-Seq": ""}, "x", 400),
        ({**PLAIN, "Stream-Seq": "x" * 1025}, "x", 400),
        (PLAIN, "x" * 51, 413),
        (PLAIN, "x" * 61, 413),
        (PLAIN, "x" * 50, 204),
        (PLAIN, "x" * 50, 204),
        (PLAIN, "x", 413),
    ):
        assert kit.client.post("/s", headers=headers, content=body).status_code == status, headers
    for headers in (
        {"Stream-TTL": "-1"},
        {"Stream-TTL": "9" * 16},
        {"Stream-Expires-At": "tomorrow"},
        {"Stream-Expires-At": "2030-01-01"},
        {"Stream-Expires-At": "2030-01-01T00:00:00"},
        {"Stream-TTL": "1", "Stream-Expires-At": "2030-01-01T00:00:00Z"},
    ):
        assert kit.client.put("/t", headers=headers).status_code == 400, headers
    assert kit.client.put("/t", headers=PLAIN, content="x" * 51).status_code == 413
    assert kit.client.put("/" + "x" * 2049, headers=PLAIN).status_code == 404


def test_a_stream_with_a_producer_is_not_written(serve: Any) -> None:
    kit = serve(write=True)
    gate = Gate()
    kit.start("s", ["a", None], RAW, gate=gate)
    assert kit.client.post("/s", headers=PLAIN, content="x").status_code == 405
    assert kit.client.put("/s", headers=PLAIN).status_code == 409
    gate.open()
    wait_until(lambda: "stream-closed" in kit.client.head("/s").headers, "the end")
    assert kit.client.get("/s").text == "a"
    assert kit.client.delete("/s").status_code == 204


def test_a_written_stream_is_one_of_the_hub(serve: Any) -> None:
    kit = serve(write=True)
    kit.client.put("/s", headers={"Content-Type": "application/json"}, content='[{"n": 1}]')

    async def words() -> AsyncIterator[str]:
        yield "no"

    async def with_ids() -> list[bytes]:
        return [chunk async for chunk in kit.hub.follow("s")]

    with pytest.raises(rs.KeyReused):
        kit.served.call(kit.hub.start("s", words()))
    assert kit.served.call(kit.hub.cancel("s")) is True
    assert kit.served.call(kit.hub.cancel("s")) is False
    got = kit.client.get("/s")
    assert (got.json(), got.headers["stream-outcome"]) == ([{"n": 1}], "cancelled; reason=cancelled_by_user")
    body = b"".join(kit.served.call(with_ids()))
    assert b'data: {"n": 1}' in body and b"event: end" in body
    kit.served.call(kit.hub.forget("s"))
    assert kit.client.get("/s").status_code == 404


@pytest.fixture(params=["sqlite", "redis"])
def two(request: pytest.FixtureRequest, serve: Any, tmp_path: Path) -> Iterator[tuple[Kit, Kit]]:
    """Two servers over one log."""
    logs: list[Any]
    if request.param == "sqlite":
        logs = [SQLiteLog(tmp_path / "streams.db") for _ in range(2)]
    else:
        from resumable_stream.server import RedisLog

        url = request.getfixturevalue("redis_server").url
        logs = [RedisLog(url) for _ in range(2)]
    kits = [serve(log, write=True) for log in logs]
    yield kits[0], kits[1]
    for kit, log in zip(kits, logs, strict=True):
        kit.served.call(log.aclose())


def test_what_was_appended_through_one_process_is_read_through_another(two: tuple[Kit, Kit]) -> None:
    one, other = two
    one.client.put("/s", headers=PLAIN)
    whole = ""
    for n in range(30):
        writer, reader = (one, other) if n % 2 else (other, one)
        assert writer.client.post("/s", headers=by("p", n), content=f"{n} ").status_code == 200
        whole += f"{n} "
        assert reader.client.get("/s").text == whole
        # Whoever it goes to, it is there already.
        assert reader.client.post("/s", headers=by("p", n), content=f"{n} ").status_code == 204
    assert one.client.delete("/s").status_code == 204
    assert other.client.get("/s").status_code == 404
    assert other.client.put("/s", headers=PLAIN, content="anew").status_code == 201
    assert one.client.get("/s").text == "anew"
    assert one.client.post("/s", headers=by("p", 0), content="!").status_code == 200
    assert other.client.post("/s", headers={"Stream-Closed": "true"}).status_code == 204
    assert one.client.post("/s", headers=PLAIN, content="x").status_code == 409
    assert (one.client.get("/s").text, one.client.get("/s").headers["stream-closed"]) == ("anew!", "true")


def test_writers_at_once_through_two_processes_lose_nothing(two: tuple[Kit, Kit]) -> None:
    one, other = two
    one.client.put("/s", headers={"Content-Type": "application/json"})

    async def write(id: str) -> None:
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
            for seq in range(12):
                headers = {**by(id, seq), "Content-Type": "application/json"}
                for kit in (one, other):
                    # Each is sent to both, as after a lost reply.
                    got = await client.post(f"{kit.served.url}/s", headers=headers, content=f'"{id}.{seq}"')
                    assert got.status_code in (200, 204), got.text

    async def all_of_them() -> None:
        await asyncio.gather(*(write(f"p{n}") for n in range(4)))

    asyncio.run(all_of_them())
    found = one.client.get("/s").json()
    assert sorted(found) == sorted(f"p{n}.{seq}" for n in range(4) for seq in range(12))
    for n in range(4):
        assert [each for each in found if each.startswith(f"p{n}.")] == [f"p{n}.{seq}" for seq in range(12)]


class DiesBeforeTheEnding(MemoryLog):
    """The process that closes a stream dies between its two steps."""

    dying = False

    async def finish(self, *args: Any, **options: Any) -> Any:
        if self.dying:
            raise rs.LogUnavailable("killed", stream_id="s")
        return await super().finish(*args, **options)


@pytest.mark.parametrize("body", ["last", ""])
@pytest.mark.parametrize("then", ["retry", "read", "append", "create"])
def test_a_stream_that_was_being_closed_is_closed_by_the_next(serve: Any, body: str, then: str) -> None:
    log = DiesBeforeTheEnding()
    kit = serve(log, write=True)
    kit.client.put("/s", headers=PLAIN, content="a ")
    log.dying = True
    closing = by("p", 0, **{"Stream-Closed": "true"})
    assert kit.client.post("/s", headers=closing, content=body).status_code == 503
    log.dying = False
    match then:
        case "retry":
            again = kit.client.post("/s", headers=closing, content=body)
            assert (again.status_code, again.headers["stream-closed"]) == (204, "true")
        case "append":
            assert kit.client.post("/s", headers=PLAIN, content="x").status_code == 409
        case "create":
            assert kit.client.put("/s", headers=PLAIN).status_code == 409
    got = kit.client.get("/s")
    assert (got.text, got.headers["stream-closed"]) == (f"a {body}", "true")


def test_a_stream_whose_time_is_over_is_deleted(serve: Any) -> None:
    kit = serve(write=True, hub={"lease": 0.2, "poll": 0.1})
    kit.client.put("/s", headers={**PLAIN, "Stream-TTL": "1"}, content="a")
    assert kit.client.head("/s").headers["stream-ttl"] == "1"

    def gone() -> bool:
        return not isinstance(kit.served.call(kit.log.read("s", None, limit_bytes=0)), Page)

    # Not by its own expiry, which comes a second later.
    wait_until(gone, "its end")
    assert kit.client.get("/s").status_code == 404
    assert kit.client.put("/s", headers={**PLAIN, "Stream-TTL": "0"}).status_code == 201
    assert kit.client.get("/s").status_code == 404
    assert kit.client.put("/s", headers=PLAIN).status_code == 201


def test_who_reads_a_stream_keeps_it(serve: Any) -> None:
    kit = serve(write=True, long_poll=2.5)
    kit.client.put("/s", headers={**PLAIN, "Stream-TTL": "1"}, content="a")
    assert kit.client.get("/s", params={"offset": "now", "live": "long-poll"}).status_code == 204
    assert kit.client.get("/s").text == "a"


# --- our own client -----------------------------------------------------------------------------------------------------

KINDS = {
    "json": ("application/json", JSON, [{"t": "Über "}, ["a", 1.5, None], "last"]),
    "text": ("text/plain", RAW, ["Hello\n", " wörld\n", "\n", "data: x"]),
    "binary": ("application/octet-stream", BYTES, [bytes(range(256)), b"\0", b"\xff\xfe"]),
}


def content_of(kind: str, events: list[Any]) -> Any:
    told = [event for event in events if event.event != "control"]
    match kind:
        case "json":
            return [event.json() for event in told]
        case "text":
            return "".join(event.data for event in told)
    return b"".join(base64.b64decode(event.data) for event in told)


@pytest.mark.parametrize("step", [197, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("live", ["sse", "long-poll", None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_our_client_reads_all_of_it_once_wherever_it_is_cut(
    serve: Any, driver: str, kind: str, live: str | None, step: int
) -> None:
    kit = serve()
    _, head, pieces = KINDS[kind]
    kit.start("s", pieces, head)
    whole = pieces if kind == "json" else ("" if kind == "text" else b"").join(pieces)
    params = {"offset": "-1"} if live is None else {"offset": "-1", "live": live}
    options: dict[str, Any] = {
        "params": params, "retry": AT_ONCE, "protocol": DurableStreams(json=kind == "json", live=live),  # type: ignore[arg-type]
    }  # fmt: skip

    def read_sync(url: str) -> tuple[list[Any], Any]:
        with rs.connect("GET", url, **options) as stream:
            return list(stream), stream.outcome

    async def read_async(url: str) -> tuple[list[Any], Any]:
        async with rs.aconnect("GET", url, **options) as stream:
            return [event async for event in stream], stream.outcome

    async def scenario() -> None:
        async with CuttingProxy([kit.served.url]) as proxy:
            for place in proxy.everywhere(1, step):
                url = f"{proxy.url}/s"
                events, outcome = await (asyncio.to_thread(read_sync, url) if driver == "sync" else read_async(url))
                assert content_of(kind, events) == whole, f"cut after byte {place}"
                assert outcome is rs.Outcome.COMPLETED, f"cut after byte {place}"

    asyncio.run(scenario())


def test_a_cursor_of_events_and_an_offset_are_of_one_log(serve: Any) -> None:
    kit = serve()
    kit.start("s", ["ab", "c"], RAW)
    epoch = kit.client.head("/s").headers["stream-next-offset"].partition("_")[0]
    page = kit.served.call(kit.log.read("s", Cursor(epoch, 1)))
    assert page.spans[0].data == b"c"
