"""The routes of a session, over real sockets: its feed, and the stream of it that runs."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import HubLimits, SQLiteLog
from resumable_stream.server.sessions import feed_id_of
from resumable_stream.server.wire import Facts

from .serving import wait_until
from .test_asgi import Kit, begin, serve  # noqa: F401  a fixture
from .test_every_cut_of_a_hub import AT_ONCE, CuttingProxy

CHROMIUM = {"Sec-Fetch-Dest": "empty", "User-Agent": "Mozilla/5.0", "Accept": "text/event-stream"}
Seen = tuple[str, Any, str]


def follow(client: httpx.Client, url: str, count: int, **headers: str) -> list[Seen]:
    """The first so many events of a feed: name, data, id."""
    return list(itertools.islice(following(client, url, **headers), count))


def following(client: httpx.Client, url: str, **headers: str) -> Iterator[Seen]:
    with client.stream("GET", url, headers=headers) as got:
        assert got.status_code == 200, got.read()
        assert got.headers["content-type"] == "text/event-stream"
        decoder = SSEDecoder()
        for chunk in got.iter_raw():
            for event in decoder.feed(chunk):
                yield event.event, json.loads(event.data), event.own_id or ""


def say(kit: Kit, n: int, session: str = "chat", owner: str = "") -> None:
    publish = kit.hub.session(session, owner=owner).publish("message", {"role": "user", "data": n}, mid=f"m{n}")
    kit.served.call(publish)


def test_a_feed_is_followed_from_its_beginning_and_from_a_cursor(serve: Any) -> None:  # noqa: F811
    kit, client = serve()
    say(kit, 0)
    begin(client, "slow", "a")  # in no session
    assert begin_in(client, "b", by="ann").status_code == 202
    seen = follow(client, "/sessions/chat/feed", 2)
    assert [each[:2] for each in seen] == [
        ("message", {"mid": "m0", "role": "user", "data": 0}),
        ("started", {"id": "b", "by": "ann"}),
    ]
    live = following(client, "/sessions/chat/feed", **{"Last-Event-ID": seen[1][2]})
    kit.gate.open()
    assert next(live)[:2] == ("ended", {"id": "b", "outcome": "completed"})
    say(kit, 1)
    name, data, place = next(live)
    assert (name, data["data"]) == ("message", 1)
    live.close()  # type: ignore[attr-defined]
    assert place == f"{seen[0][2].partition('.')[0]}.4"


def test_a_feed_that_nobody_has_written_to_is_there(serve: Any) -> None:  # noqa: F811
    """It begins while its readers wait; until then it has no epoch, and no header names one."""
    kit, client = serve()
    url = "/sessions/new%20one%3F/feed"
    head = client.head(url)
    assert head.status_code == 200
    assert not {"stream-tail", "stream-bytes", "stream-closed"} & set(head.headers)
    live = following(client, f"{url}?view=snapshot&control=1")
    assert next(live) == ("snapshot", {"messages": [], "streams": []}, "")
    assert next(live) == ("caught-up", {}, "")
    say(kit, 7, session="new one?")
    name, data, place = next(live)
    assert (name, data["data"]) == ("message", 7)
    epoch, _, n = place.partition(".")
    assert n == "1" and client.head(url).headers["stream-tail"] == f"{epoch}.1"
    live.close()  # type: ignore[attr-defined]


def test_a_place_in_a_feed_that_nobody_has_begun_is_gone(serve: Any) -> None:  # noqa: F811
    """It was lost, or forgotten. An EventSource that asks for the state gets it."""
    _, client = serve()
    gone = client.get("/sessions/chat/feed", headers={"Last-Event-ID": "k7q2.3"})
    assert gone.status_code == 410
    assert gone.json() == {"error": "history_gone", "why": "went_back", "oldest": None, "tail": "k7q2.0", "snapshot": 1}
    (first,) = follow(client, "/sessions/chat/feed?view=snapshot", 1, **CHROMIUM, **{"Last-Event-ID": "k7q2.3"})
    assert first == ("snapshot", {"messages": [], "streams": []}, "")


def test_a_reader_of_a_feed_that_nobody_begins_is_let_go(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("resumable_stream.server.answering.PATIENCE", 0.2)
    kit, client = serve(heartbeat=0.05)
    body = client.get("/sessions/chat/feed").content
    assert body.startswith(b"retry:") and b":\n\n" in body and b"data:" not in body
    wait_until(lambda: kit.hub.readers == 0 and not len(kit.hub._following), "the reader to be forgotten")


def test_our_client_waits_for_a_feed_that_nobody_has_begun(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """By detection alone, and cut while it waits: no id is lost, and none comes twice."""
    monkeypatch.setattr("resumable_stream.server.answering.PATIENCE", 0.05)
    kit, _ = serve(presence=True)
    for view in ({}, {"view": "snapshot"}, {"control": "1"}, {"presence": "1"}):
        session = f"chat{len(view)}{list(view)}"
        url = f"{kit.served.url}/sessions/{session}/feed"
        with rs.connect("GET", url, params=view, retry=AT_ONCE) as stream:
            got: list[int] = []
            said = 0
            reading = iter(stream)
            while len(got) < 5:
                if said == len(got):
                    kit.served.call(asyncio.sleep(0.2 if said == 0 else 0))
                    say(kit, said, session=session)
                    said += 1
                event = next(reading)
                if event.event == "message":
                    got.append(json.loads(event.data)["data"])
            assert got == list(range(5))


def test_a_snapshot_comes_first_and_the_rest_follows_it(serve: Any) -> None:  # noqa: F811
    kit, client = serve()
    begin_in(client, "a")
    for n in range(3):
        say(kit, n)
    kit.served.call(kit.hub.session("chat").edit("m1", "new"))
    kit.served.call(kit.hub.session("chat").delete("m0"))
    live = following(client, "/sessions/chat/feed?view=snapshot")
    name, data, place = next(live)
    assert name == "snapshot"
    assert data == {
        "messages": [
            {"mid": "m1", "role": "user", "data": "new", "edited": True},
            {"mid": "m2", "role": "user", "data": 2},
        ],
        "streams": [{"id": "a"}],
    }
    say(kit, 3)
    after = next(live)
    assert after[1]["data"] == 3
    assert int(after[2].partition(".")[2]) == int(place.partition(".")[2]) + 1
    live.close()  # type: ignore[attr-defined]


def begin_in(client: httpx.Client, key: str, **body: str) -> httpx.Response:
    return client.post(
        "/streams",
        json={"kind": "slow", "session": "chat", **body},
        headers={"Idempotency-Key": key, "Prefer": "respond-async"},
    )


def test_a_tab_that_slept_until_its_cursor_was_gone(serve: Any, tmp_path: Path) -> None:  # noqa: F811
    """
    Anyone is told 410 and what to ask for; an EventSource, which can only repeat its URL, gets the state if its URL asks for it.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#processing-model: any other status than 200 fails the
    connection for good.
    """
    kit, client = serve(limits=HubLimits(session_events=10), log=SQLiteLog(tmp_path / "streams.db"))
    say(kit, 0)
    ((_, _, slept),) = follow(client, "/sessions/chat/feed", 1)
    for n in range(1, 40):
        say(kit, n)
    # At another instance: this one still has in memory what the log has dropped.
    other, client = serve(log=SQLiteLog(tmp_path / "streams.db"))
    for url in ("/sessions/chat/feed", "/sessions/chat/feed?view=snapshot"):
        gone = client.get(url, headers={"Last-Event-ID": slept})
        assert gone.status_code == 410
        assert gone.json()["snapshot"] == 1 and gone.json()["why"] == "trimmed"
    assert client.get("/sessions/chat/feed", headers={**CHROMIUM, "Last-Event-ID": slept}).status_code == 410
    ((name, data, _),) = follow(client, "/sessions/chat/feed?view=snapshot", 1, **CHROMIUM, **{"Last-Event-ID": slept})
    assert name == "snapshot" and data["messages"][-1]["data"] == 39
    # Without a place it begins with the event that stands for what was before.
    first = follow(client, "/sessions/chat/feed", 1)[0]
    assert first[0] == "snapshot"
    # A place that is still there is gone on from, whatever the URL asks for.
    (again,) = follow(client, "/sessions/chat/feed?view=snapshot", 1, **CHROMIUM, **{"Last-Event-ID": first[2]})
    assert again[0] == "message"
    for each in (kit, other):
        each.served.call(each.hub.log.aclose())


def test_the_stream_that_runs_is_found_by_its_session(serve: Any) -> None:  # noqa: F811
    kit, client = serve()
    nothing = client.get("/sessions/chat/stream")
    assert (nothing.status_code, nothing.content) == (204, b"")
    begin_in(client, "a")
    begin_in(client, "b")
    with client.stream("GET", "/sessions/chat/stream") as got:
        assert got.status_code == 200
        assert got.headers["content-location"] == "/streams/b"
        kit.gate.open()
        body = b"".join(got.iter_raw())
    assert b'"second"' in body and b"event: end" in body
    wait_until(lambda: client.get("/sessions/chat/stream").status_code == 204, "the end of both")


def test_a_second_answer_in_a_busy_session_is_refused_and_told_where_the_first_one_is(serve: Any) -> None:  # noqa: F811
    _, client = serve(cancel_grace=0.1)
    assert begin_in(client, "a", if_busy="reject").status_code == 202
    refused = begin_in(client, "b", if_busy="reject")
    assert refused.status_code == 409
    assert refused.headers["content-location"] == "/streams/a"
    assert refused.json()["error"] == "session_busy"
    assert begin_in(client, "a", if_busy="reject").status_code == 202
    assert begin_in(client, "c", if_busy="interrupt").status_code == 202
    seen = follow(client, "/sessions/chat/feed", 4)
    assert [(name, data["id"]) for name, data, _ in seen] == [
        ("started", "a"), ("started", "c"), ("cancelled", "a"), ("ended", "a"),
    ]  # fmt: skip
    for wrong in ({"if_busy": "wait"}, {"if_busy": "reject", "session": None}):
        bad = client.post("/streams", json={"kind": "slow", "session": "chat", **wrong})
        assert bad.status_code == 400 and "if_busy" in bad.text


async def by_key(facts: Facts, id: str | None, action: str) -> str | None:
    return {"a": "ann", "b": "bob"}.get(facts.headers.get("authorization", ""))


def test_a_session_is_its_owners_alone(serve: Any) -> None:  # noqa: F811
    kit, client = serve(authorize=by_key)
    say(kit, 1, owner="ann")
    for url in ("/sessions/chat/feed", "/sessions/chat/stream"):
        assert client.get(url).status_code == 404
    assert follow(client, "/sessions/chat/feed", 1, Authorization="a")[0][1]["data"] == 1
    say(kit, 2, owner="bob")
    assert follow(client, "/sessions/chat/feed", 1, Authorization="b")[0][1]["data"] == 2


def test_an_id_that_no_session_can_have(serve: Any) -> None:  # noqa: F811
    _, client = serve()
    for what in ("feed", "stream"):
        assert client.get(f"/sessions/{'x' * 1025}/{what}").status_code == 400


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "nobody has begun it"])
def test_a_feed_ends_politely_when_the_server_shuts_down(serve: Any, begun: bool) -> None:  # noqa: F811
    kit, client = serve()
    if begun:
        say(kit, 0)
    with client.stream("GET", "/sessions/chat/feed") as got:
        chunks = got.iter_raw()
        next(chunks)
        kit.served.call(kit.hub.drain(timeout=1.0, spread=0.0))
        rest = b"".join(chunks)
    assert b"event: end" not in rest and b"retry:" in rest
    assert client.get("/sessions/chat/feed").status_code == 503
    assert client.get("/sessions/chat/feed", headers=CHROMIUM).status_code == 200


@pytest.mark.parametrize("step", [97, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_our_client_reads_a_feed_wherever_it_is_cut(serve: Any, step: int) -> None:  # noqa: F811
    """By detection alone. The feed never ends, so the reader leaves at a message that says so."""
    kit, _ = serve()
    for n in range(20):
        say(kit, n)

    async def scenario() -> None:
        async with CuttingProxy([kit.served.url]) as proxy:
            for place in proxy.everywhere(1, step):
                stream = rs.aconnect("GET", f"{proxy.url}/sessions/chat/feed", protocol=rs.protocols.HubStream(), retry=AT_ONCE)
                got = []
                async with stream:
                    async for event in stream:
                        got.append(json.loads(event.data)["data"])
                        if got[-1] == 19:
                            break
                assert got == list(range(20)), f"cut after byte {place}"

    asyncio.run(scenario())


def test_what_cannot_be_started_is_refused(serve: Any) -> None:  # noqa: F811
    _, client = serve()
    assert begin_in(client, feed_id_of("chat")).status_code == 400
    for wrong in ({"session": "\ud800"}, {"by": "\ud800"}, {"supersedes": "no id"}, {"supersedes": "\ud800"}):
        body = json.dumps({"kind": "slow", "session": "chat", **wrong})
        bad = client.post("/streams", content=body, headers={"Prefer": "respond-async"})
        assert bad.status_code == 400 and next(iter(wrong)) in bad.text
    assert client.get("/sessions/chat/stream").status_code == 204


def test_a_session_may_have_any_name(serve: Any) -> None:  # noqa: F811
    kit, client = serve()
    for name, path in (
        ("a/b", "a%2Fb"),
        ("feed", "feed"),
        ("/", "%2F"),
        ("Zürich?", "Z%C3%BCrich%3F"),
        ("é" * 512, "%C3%A9" * 512),
    ):
        say(kit, 5, session=name)
        assert follow(client, f"/sessions/{path}/feed", 1)[0][1]["data"] == 5
        assert client.get(f"/sessions/{path}/stream").status_code == 204
