"""Streams for frameworks of any kind: `Hub.follow()` gives the body, `Hub.answer()` the status and the headers too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from resumable_stream import HistoryGone, LimitReached, LogUnavailable, ReaderCut, StreamUnknown
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Generation, Hub, HubLimits, MemoryLog
from resumable_stream.server.answering import HubAnswer
from resumable_stream.server.bodies import CHUNK_BYTES
from resumable_stream.server.log import Head

from .virtual import run as run_virtually

RAW = Head(content_type="application/octet-stream", framing="raw")
LINES = Head(content_type="application/x-ndjson", framing="ndjson")
END = ("end", '{"outcome":"completed"}')


def run(scenario: Callable[[Hub], Awaitable[None]], **options: Any) -> None:
    async def bounded() -> None:
        async with Hub(options.pop("log", None) or MemoryLog(), **{"flush": 0.0, **options}) as hub:
            await scenario(hub)

    run_virtually(bounded)


async def words(*more: str) -> AsyncIterator[str]:
    for word in ("one", "two", "three", *more):
        yield word


async def waits(gen: Generation) -> None:
    gen.text("first")
    await gen.wait_steered()


async def fails(gen: Generation) -> None:
    gen.text("half")
    gen.fail("upstream_cut")


async def all_of(chunks: AsyncIterator[bytes] | HubAnswer) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def events(body: bytes) -> list[tuple[str, str]]:
    return [(event.event, event.data) for event in SSEDecoder().feed(body)]


async def ended(hub: Hub, id: str = "s") -> Cursor:
    """The place of who has seen the end."""
    await all_of(hub.follow(id, view="events"))
    state = await hub.state(id)
    return Cursor(state.epoch, state.n + 1)


async def until_read(hub: Hub, readers: int) -> None:
    while len(hub._readers) < readers:  # noqa: ASYNC110
        await asyncio.sleep(0)


# --- follow -------------------------------------------------------------------------------------------------------------


def test_a_body_has_a_retry_line_the_events_with_ids_and_the_end() -> None:
    async def scenario(hub: Hub) -> None:
        stream = await hub.start("s", words())
        body = await all_of(hub.follow("s"))
        assert body.startswith(b"retry: ")
        assert [event.id for event in SSEDecoder().feed(body)] == [f"{stream.epoch}.{n}" for n in range(1, 5)]
        assert events(body) == [("message", "one"), ("message", "two"), ("message", "three"), END]

    run(scenario)


def test_a_place_may_be_a_cursor_or_the_text_of_a_header() -> None:
    async def scenario(hub: Hub) -> None:
        stream = await hub.start("s", words())
        for after in (Cursor(stream.epoch, 2), f"{stream.epoch}.2"):
            assert events(await all_of(hub.follow("s", after))) == [("message", "three"), END]
        for nothing in (None, ""):
            assert len(events(await all_of(hub.follow("s", nothing)))) == 4

    run(scenario)


def test_every_place_continues_exactly() -> None:
    async def scenario(hub: Hub) -> None:
        stream = await hub.start("s", words())
        whole = events(await all_of(hub.follow("s")))
        for n in range(5):
            rest = await all_of(hub.follow("s", Cursor(stream.epoch, n)))
            assert events(rest) == whole[n:]
        # Who has seen the end gets nothing, not another end with another number.
        assert rest == b""

    run(scenario)


@pytest.mark.parametrize("after", ["nonsense", "k7q2", "k7q2.-1"])
def test_a_place_that_is_none_is_refused_at_once(after: str) -> None:
    async def scenario(hub: Hub) -> None:
        with pytest.raises(ValueError):
            hub.follow("s", after)

    run(scenario)


def test_a_view_that_is_none_is_refused_at_once() -> None:
    async def scenario(hub: Hub) -> None:
        with pytest.raises(ValueError, match="events, verbatim, raw"):
            hub.follow("s", view="snapshot")  # type: ignore[arg-type]

    run(scenario)


def test_the_iterator_says_what_cannot_be_read() -> None:
    async def scenario(hub: Hub) -> None:
        with pytest.raises(StreamUnknown):
            await anext(hub.follow("s"))
        stream = await hub.start("s", words())
        await ended(hub)
        with pytest.raises(HistoryGone, match="other_epoch"):
            await anext(hub.follow("s", "zzzz.1"))
        with pytest.raises(HistoryGone, match="went_back"):
            await anext(hub.follow("s", Cursor(stream.epoch, 9)))
        assert not hub._readers

    run(scenario)


def test_a_failed_stream_ends_with_ids_and_is_cut_without() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", fails)
        name, data = events(await all_of(hub.follow("s")))[-1]
        assert (name, json.loads(data)["outcome"]) == ("end", "failed")
        chunks = hub.follow("s", view="verbatim")
        assert await anext(chunks) == b'data: {"text":"half"}\n\n'
        with pytest.raises(ReaderCut, match="upstream_cut"):
            await anext(chunks)
        assert not hub._readers

    run(scenario)


def test_a_completed_stream_ends_cleanly_in_every_view() -> None:
    async def scenario(hub: Hub) -> None:
        stream = await hub.start("s", words(), head=LINES)
        assert await all_of(hub.follow("s", view="verbatim")) == b"one\ntwo\nthree\n"
        assert await all_of(hub.follow("s", f"{stream.epoch}.2", "verbatim")) == b"three\n"
        assert await all_of(hub.follow("s", f"{stream.epoch}.3", "verbatim")) == b""
        assert await all_of(hub.follow("s", view="raw", from_byte=5)) == b"wo\nthree\n"
        assert events(await all_of(hub.follow("s"))) == [("message", "one"), ("message", "two"), ("message", "three"), END]

    run(scenario)


def test_raw_bytes_are_no_events() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", words(), head=RAW)
        with pytest.raises(ValueError, match="verbatim"):
            await anext(hub.follow("s"))
        assert not hub._readers
        assert await all_of(hub.follow("s", view="verbatim")) == b"onetwothree"

    run(scenario)


def test_silence_is_filled_with_heartbeats_in_the_view_with_ids_alone() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        async with aclosing(hub.follow("s")) as chunks:
            got = b""
            while got.count(b":\n") < 2:
                got += await anext(chunks)
        async with aclosing(hub.follow("s", view="verbatim")) as verbatim:
            assert await anext(verbatim) == b'data: {"text":"first"}\n\n'
            rest = asyncio.ensure_future(anext(verbatim, b"over"))
            await asyncio.sleep(0.05)
            await hub.say("s", "go on")
            assert await rest == b"over"

    run(scenario, heartbeat=0.005)


def test_closing_the_iterator_frees_the_reader_and_stops_nothing() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        chunks = hub.follow("s")
        assert not hub._readers
        await anext(chunks)
        assert len(hub._readers) == 1
        await chunks.aclose()
        assert not hub._readers
        assert (await hub.state("s")).ending is None

    run(scenario)


def test_who_is_cancelled_in_the_middle_frees_the_reader() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        task = asyncio.ensure_future(all_of(hub.follow("s")))
        await until_read(hub, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not hub._readers

    run(scenario)


def test_a_hub_that_shuts_down_sends_readers_away() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        with_ids, verbatim = hub.follow("s"), hub.follow("s", view="verbatim")
        tasks = [asyncio.ensure_future(all_of(chunks)) for chunks in (with_ids, verbatim)]
        await until_read(hub, 2)
        await hub.drain(timeout=0.0, spread=0.0)
        body = await tasks[0]
        assert body.count(b"retry: ") == 2 and b"event: end" not in body
        with pytest.raises(ReaderCut, match="shutting down"):
            await tasks[1]

    run(scenario)


class Away(MemoryLog):
    """A log that goes away while somebody reads."""

    away = False

    async def read(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise LogUnavailable("the log is away")
        return await super().read(*args, **options)


def test_a_log_that_goes_away_cuts_the_body() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", words())
        await ended(hub)
        chunks = hub.follow("s")
        assert (await anext(chunks)).startswith(b"retry: ")
        (followed,) = hub._following._streams.values()
        assert followed.follower.mirror is not None
        followed.follower.mirror.trim(0)
        hub.log.away = True  # type: ignore[attr-defined]
        with pytest.raises(ReaderCut, match="log became unavailable"):
            await anext(chunks)
        assert not hub._readers

    run(scenario, log=Away())


def test_no_piece_is_larger_than_a_tick_can_take() -> None:
    async def scenario(hub: Hub) -> None:
        text = "".join(chr(97 + n % 26) * 1000 for n in range(700))
        await hub.start("s", words(text))
        pieces = [piece async for piece in hub.follow("s", view="verbatim")]
        assert max(map(len, pieces)) == CHUNK_BYTES
        assert b"".join(pieces).endswith(f"data: {text}\n\n".encode())

    run(scenario)


# --- answer -------------------------------------------------------------------------------------------------------------


async def ask(hub: Hub, after: str | None = None, query: str = "", *, method: str = "GET", **options: Any) -> HubAnswer:
    headers = {} if after is None else {"Last-Event-ID": after}
    return await hub.answer(method, headers, query, **{"id": "s", **options})


def test_a_running_stream_is_answered_with_its_events() -> None:
    async def scenario(hub: Hub) -> None:
        stream = await hub.start("s", words())
        answer = await ask(hub, f"{stream.epoch}.2", path="/chat/s")
        assert answer.status == 200 and answer.live
        assert answer.header("content-type") == "text/event-stream"
        assert answer.header("Content-Location") == "/chat/s"
        assert answer.header("Content-Length") is None
        body = await all_of(answer)
        assert body.startswith(b"retry: ")
        assert events(body) == [("message", "three"), END]
        with pytest.raises(TypeError, match="iterate"):
            _ = answer.body

    run(scenario)


def test_what_cannot_be_read_has_its_status() -> None:
    async def scenario(hub: Hub) -> None:
        unknown = await ask(hub)
        assert (unknown.status, json.loads(unknown.body)) == (404, {"error": "not_found"})
        assert await all_of(unknown) == unknown.body
        assert dict(unknown.headers)["Content-Length"] == str(len(unknown.body))
        with pytest.raises(TypeError, match="is complete"):
            await unknown.open()

        await hub.start("s", words())
        seen = await ended(hub)
        done = await ask(hub, str(seen))
        assert (done.status, done.body, await all_of(done)) == (204, b"", b"")
        assert done.header("Stream-Outcome") == "completed"
        assert "Content-Length" not in dict(done.headers)

        gone = await ask(hub, "zzzz.1")
        assert (gone.status, json.loads(gone.body)["why"]) == (410, "other_epoch")
        wrong = await ask(hub, query="after=nonsense")
        assert wrong.status == 400
        assert (await ask(hub, id="..")).status == 404

    run(scenario)


def test_a_head_has_no_body_and_no_length() -> None:
    async def scenario(hub: Hub) -> None:
        unknown = await ask(hub, method="HEAD")
        assert (unknown.status, unknown.body, unknown.live) == (404, b"", False)
        assert "Content-Length" not in dict(unknown.headers)
        await hub.start("s", words())
        await ended(hub)
        assert (await ask(hub, method="HEAD")).header("Stream-Closed") == "true"

    run(scenario)


def test_views_are_asked_for_in_the_query() -> None:
    async def scenario(hub: Hub) -> None:
        stream = await hub.start("s", words())
        assert await all_of(await ask(hub, query=f"view=verbatim&after={stream.epoch}.1")) == b"data: two\n\ndata: three\n\n"
        as_bytes = await hub.answer("GET", [("Last-Event-ID", f"{stream.epoch}.3")], b"view=events", id="s")
        assert events(await all_of(as_bytes)) == [END]

    run(scenario)


def test_a_verbatim_body_of_a_failed_stream_is_cut() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", fails)
        with pytest.raises(ReaderCut):
            await all_of(await ask(hub, query="view=verbatim"))
        assert not hub._readers

    run(scenario)


def test_a_post_starts_a_stream_or_joins_it() -> None:
    async def scenario(hub: Hub) -> None:
        async def post(body: bytes, **headers: str) -> HubAnswer:
            return await hub.answer("POST", {"Idempotency-Key": "msg_1", **headers}, run=words(), path="/chat", body=body)

        first, second = await post(b"hello"), await post(b"hello")
        assert first.header("Content-Location") == "/chat/msg_1" and first.header("Stream-Id") == "msg_1"
        whole = events(await all_of(first))
        assert len(whole) == 4 and events(await all_of(second)) == whole
        other = await post(b"something else")
        assert (other.status, json.loads(other.body)["error"]) == (409, "key_reused")
        later = await post(b"hello", Prefer="respond-async")
        assert (later.status, later.header("Location")) == (202, "/chat/msg_1")

    run(scenario)


def test_without_a_path_there_is_no_place_to_read_the_stream_at() -> None:
    async def scenario(hub: Hub) -> None:
        answer = await hub.answer("POST", {"Prefer": "respond-async"}, run=words())
        assert (answer.status, answer.header("Content-Location")) == (200, None)
        assert len(events(await all_of(answer))) == 4
        named = await hub.answer("GET", {}, id=answer.header("Stream-Id"), location="/elsewhere")
        assert named.header("Content-Location") == "/elsewhere"

    run(scenario)


def test_an_answer_needs_a_stream() -> None:
    async def scenario(hub: Hub) -> None:
        with pytest.raises(ValueError, match="producer"):
            await hub.answer("GET", {})

    run(scenario)


def test_a_hub_that_shuts_down_starts_nothing() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.drain(timeout=0.0, spread=0.0)
        answer = await hub.answer("POST", {}, run=words())
        assert answer.status == 503 and answer.header("Retry-After") is not None

    run(scenario)


def test_readers_are_limited_before_the_status_is_sent() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        early = await ask(hub)
        async with aclosing(hub.follow("s")) as chunks:
            await anext(chunks)
            late = await ask(hub)
            assert late.status == 503 and json.loads(late.body)["reason"] == "limit_reached"
            page = await hub.answer("GET", {"Sec-Fetch-Dest": "empty"}, id="s")
            # An EventSource gives up for good at any other status.
            assert (page.status, page.live) == (200, False)
            assert page.body.startswith(b"retry: ")
            with pytest.raises(ReaderCut, match="503"):
                await all_of(early)
            with pytest.raises(LimitReached):
                await anext(hub.follow("s"))
        assert await hub.say("s", "go on") == 1
        assert (await ask(hub)).status == 200

    run(scenario, limits=HubLimits(readers_per_stream=1))


def test_an_answer_that_is_never_sent_holds_no_reader() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        answer = await ask(hub)
        assert answer.live and not hub._readers
        assert "200" in repr(answer)

    run(scenario)


def test_owners_see_their_own_streams() -> None:
    async def owner(facts: Any, id: str | None, action: str) -> str | None:
        name = facts.headers.get("x-user")
        return None if name is None else str(name)

    async def scenario(hub: Hub) -> None:
        await hub.start("s", words(), owner="ada")
        assert (await hub.answer("GET", {"X-User": "ada"}, id="s")).status == 200
        assert (await hub.answer("GET", {"X-User": "bob"}, id="s")).status == 404
        assert (await hub.answer("GET", {}, id="s")).status == 404
        assert (await hub.answer("POST", {}, run=words())).status == 403
        assert len(events(await all_of(hub.follow("s", owner="ada")))) == 4
        with pytest.raises(StreamUnknown):
            await anext(hub.follow("s", owner="bob"))

    run(scenario, authorize=owner)
