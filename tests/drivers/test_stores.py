"""A stream with a store goes on where the last run stopped, and writes seldom but in time."""

# ruff: noqa: PT012  -- the exception comes out of a whole `async with` block: that is what is tested

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
import redis

import resumable_stream as rs
from resumable_stream import Outcome
from resumable_stream.protocols import LastEventID
from resumable_stream.stores import FileStore, MemoryStore, RedisStore, SQLiteStore
from resumable_stream.stores.redis import _SAVE
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ScriptedClient, ServerEvent, numbered
from tests.conftest import Row

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

Start = Callable[..., FlakyServer]
pytestmark = pytest.mark.usefixtures("spotless")

ALL = [str(n) for n in range(1, 13)]
SILENT = Fault.cut(after_events=5, how="silence")


class Boom(Exception):
    pass


class CountingStore(MemoryStore):
    """Counts its saves."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.saved: list[int] = []

    def save(self, key: str, checkpoint: rs.Checkpoint, *args: Any, **options: Any) -> None:
        super().save(key, checkpoint, *args, **options)
        self.saved.append(checkpoint.offset)


@pytest.fixture(params=["memory", "file", "sqlite", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Make a store; each call for files makes another object over the same ones, as another process would have."""
    memory: dict[str, MemoryStore] = {}
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else None

    def make(**options: Any) -> Any:
        if request.param == "file":
            return FileStore(tmp_path / "store", **options)
        if request.param == "redis":
            return RedisStore(url, **options)
        if request.param == "sqlite":
            return SQLiteStore(tmp_path / "store.db", **options)
        return memory.setdefault(repr(options), MemoryStore(**options))

    return make


def ids(events: Any) -> list[str]:
    return [event.id for event in events]


@pytest.mark.parametrize("stop", [1, 5])
async def test_the_next_run_goes_on_behind_the_last_event_taken(
    row: Row, flaky_server: Start, make_store: Callable[..., Any], stop: int
) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url, store=make_store(), key="k") as stream:
        async for event in stream:
            if event.id == str(stop):
                break
    again = row.connect("GET", server.url, store=make_store(), key="k")
    assert ids(await row.read(again)) == ALL[stop:]
    assert server.requests[1].last_event_id == str(stop)
    assert again.checkpoint.offset == 12


async def test_the_event_in_hand_at_an_exception_comes_again(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server(numbered(12), [SILENT])
    with pytest.raises(Boom):
        async with row.connect("GET", server.url, store=make_store(), key="k") as stream:
            async for event in stream:
                if event.id == "3":
                    raise Boom
    assert ids(await row.read(row.connect("GET", server.url, store=make_store(), key="k"))) == ALL[2:]


async def test_kept_events_are_shown_first_then_the_rest(row: Row, flaky_server: Start, make_store: Callable[..., Any]) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url, store=make_store(keep_events=True), key="k") as stream:
        async for event in stream:
            if event.id == "4":
                break
    again = row.connect("GET", server.url, store=make_store(keep_events=True), key="k")
    events = await row.read(again)
    assert ids(events) == ALL
    assert [event.replayed for event in events] == [True] * 4 + [False] * 8
    assert [event.offset for event in events] == list(range(12))
    assert again.stats.events == 12
    assert server.requests[1].last_event_id == "4"
    # And once more, from three runs.
    third = row.connect("GET", server.url, store=make_store(keep_events=True), key="k")
    assert ids(await row.read(third)) == ALL


async def test_a_finished_stream_is_served_without_any_request(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")])
    first = await row.read(row.connect("GET", server.url, store=make_store(keep_events=True), key="k"))
    count = len(server.requests)
    again = row.connect("GET", server.url, store=make_store(keep_events=True), key="k")
    events = await row.read(again)
    assert len(server.requests) == count
    assert events == first
    assert all(event.replayed for event in events)
    assert again.outcome is Outcome.COMPLETED
    assert again.checkpoint.complete
    assert again.response is None


async def test_a_finished_stream_without_kept_events_is_empty_and_has_its_outcome(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")])
    await row.read(row.connect("GET", server.url, store=make_store(), key="k"))
    again = row.connect("GET", server.url, store=make_store(), key="k")
    assert await row.read(again) == []
    assert again.outcome is Outcome.COMPLETED
    assert len(server.requests) == 1


@pytest.mark.parametrize("chunk_bytes", [None, 100_000])
@pytest.mark.parametrize("end", ["auto", "[DONE]"])
async def test_leaving_on_the_event_that_ends_the_stream_finishes_it(
    row: Row, flaky_server: Start, make_store: Callable[..., Any], chunk_bytes: int | None, end: str
) -> None:
    server = flaky_server([*numbered(3), ServerEvent(id="4", data="[DONE]")], chunk_bytes=chunk_bytes, no_content_at_end=True)
    protocol = LastEventID(end=end)
    async with row.connect("GET", server.url, store=make_store(), key="k", protocol=protocol) as stream:
        async for event in stream:
            assert not stream.checkpoint.complete
            if event.data == "[DONE]":
                break
    assert stream.outcome is Outcome.COMPLETED
    assert stream.checkpoint.complete
    assert stream.checkpoint.offset == 4
    again = row.connect("GET", server.url, store=make_store(), key="k", protocol=protocol)
    assert await row.read(again) == []
    assert again.outcome is Outcome.COMPLETED
    assert len(server.requests) == 1


async def test_leaving_before_the_event_that_ends_the_stream_does_not_finish_it(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server([*numbered(3), ServerEvent(id="4", data="[DONE]")], chunk_bytes=100_000)
    async with row.connect("GET", server.url, store=make_store(), key="k") as stream:
        async for event in stream:
            if event.id == "3":
                break
    assert (stream.outcome, stream.checkpoint.complete, stream.checkpoint.offset) == (None, False, 3)
    stream = row.connect("GET", server.url, store=make_store(), key="k")
    with pytest.raises(Boom):
        async with stream:
            async for _ in stream:
                raise Boom
    # The event was in hand: it comes again.
    assert (stream.outcome, stream.checkpoint.complete, stream.checkpoint.offset) == (None, False, 3)
    assert ids(await row.read(row.connect("GET", server.url, store=make_store(), key="k"))) == ["4"]


async def test_leaving_a_replay_in_the_middle_moves_no_place(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server(numbered(12), [SILENT])
    for _ in range(3):
        async with row.connect("GET", server.url, store=make_store(keep_events=True), key="k") as stream:
            async for event in stream:
                if event.id == "5":
                    break
    assert len(server.requests) == 1, "the replay alone made a request"
    async with row.connect("GET", server.url, store=make_store(keep_events=True), key="k") as stream:
        async for event in stream:
            if event.id == "2":
                break
    again = row.connect("GET", server.url, store=make_store(keep_events=True), key="k")
    assert ids(await row.read(again)) == ALL


async def test_text_and_batches_come_from_the_store_too(row: Row, flaky_server: Start, make_store: Callable[..., Any]) -> None:
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")])
    texts = []
    for _ in range(2):
        async with row.connect("GET", server.url, store=make_store(keep_events=True), key="k") as stream:
            texts.append(await stream.read_text())
    assert texts[0] == texts[1]
    assert texts[0].startswith("event 1event 2")
    async with row.connect("GET", server.url, store=make_store(keep_events=True), key="k") as stream:
        batches = [batch async for batch in stream.iter_batches()]
    assert ids(itertools.chain(*batches)) == [*ALL, "12"]


async def test_two_writers_of_a_key_are_told_apart(row: Row, flaky_server: Start, make_store: Callable[..., Any]) -> None:
    server = flaky_server(numbered(12), [SILENT])
    older = row.connect("GET", server.url, store=make_store(), key="k")
    with pytest.raises(rs.StoreError, match="another writer") as caught:
        async with older:
            assert (await anext(older)).id == "1"
            assert ids(await row.read(row.connect("GET", server.url, store=make_store(), key="k")))[-1] == "12"
            async for _ in older:
                pass
    assert caught.value.checkpoint is not None
    place, _ = make_store().open("k")
    assert place.offset == 12, "the older writer put its place over the newer one"


async def test_another_stream_under_the_same_key_is_refused_before_anything_is_sent(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server(numbered(12))
    await row.read(row.connect("GET", server.url, store=make_store(), key="k"))
    count = len(server.requests)
    for method, url in (("GET", server.origin + "/other"), ("POST", server.url), ("GET", "http://localhost:1/stream")):
        with pytest.raises(rs.StoreError, match="use another key"):
            await row.connect(method, url, store=make_store(), key="k").open()
    assert len(server.requests) == count
    # Its owner is let in again.
    assert await row.read(row.connect("GET", server.url, store=make_store(), key="k")) == []


@pytest.mark.parametrize("how", ["url", "params"])
async def test_a_key_tells_streams_apart_by_their_query(
    row: Row, flaky_server: Start, make_store: Callable[..., Any], how: str
) -> None:
    server = flaky_server(numbered(12))

    def connect(run: int, secret: str) -> Any:
        query = {"run": str(run), "api_key": secret}
        url = server.url + "?" + "&".join(f"{name}={value}" for name, value in query.items()) if how == "url" else server.url
        options = {} if how == "url" else {"params": query}
        return row.connect("GET", url, store=make_store(), key="k", **options)

    assert ids(await row.read(connect(1, "s3cret"))) == ALL
    count = len(server.requests)
    with pytest.raises(rs.StoreError, match="use another key") as caught:
        await connect(2, "s3cret").open()
    assert "s3cret" not in str(caught.value)
    # What must not be kept cannot tell them apart: the credentials of the same stream may change.
    assert await row.read(connect(1, "t0ken")) == []
    assert len(server.requests) == count


async def test_a_refused_key_still_belongs_to_its_writer(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])
    store = MemoryStore()
    async with row.connect("GET", server.url, store=store, key="k") as stream:
        await anext(stream)
        await anext(stream)
        await stream.commit()
    assert stream.checkpoint.offset == 2
    assert store.open("k")[0] == stream.checkpoint


@pytest.mark.parametrize("keep_events", [True, False])
async def test_another_question_under_the_same_key_never_gets_the_old_answer(
    row: Row, flaky_server: Start, make_store: Callable[..., Any], keep_events: bool
) -> None:
    """Editing a prompt and running the cell again is what people do: method and URL are the same, the body is not."""
    server = flaky_server([*numbered(3), ServerEvent(data="[DONE]")])

    def ask(prompt: str) -> Any:
        return row.connect("POST", server.url, json={"prompt": prompt}, store=make_store(keep_events=keep_events), key="q1")

    await row.read(ask("one"))
    with pytest.raises(rs.StoreError, match=r"another body.*request_key\(\).*delete\('q1'\)"):
        await ask("two").open()
    assert len(server.requests) == 1
    assert len(await row.read(ask("one"))) == (4 if keep_events else 0)
    make_store(keep_events=keep_events).delete("q1")
    assert len(await row.read(ask("two"))) == 4
    assert [request.json()["prompt"] for request in server.requests] == ["one", "two"]


async def test_another_prompt_in_the_query_is_another_question(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    """A prompt is not kept in the URL of a place, so the public form of both is the same."""
    server = flaky_server([*numbered(3), ServerEvent(data="[DONE]")])

    def ask(prompt: str) -> Any:
        return row.connect("GET", server.url, params={"prompt": prompt}, store=make_store(keep_events=True), key="q1")

    await row.read(ask("Tell me a story, please."))
    with pytest.raises(rs.StoreError, match="another query"):
        await ask("Tell me another story, please.").open()
    assert len(server.requests) == 1


async def test_a_digest_outlives_a_resume_that_does_not_know_the_body(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server([*numbered(5), ServerEvent(data="[DONE]")], [Fault.cut(after_events=2)], location="/stream")

    def ask(prompt: str) -> Any:
        return row.connect("POST", server.url, json={"prompt": prompt}, store=make_store(), key="q1")

    async with ask("one") as stream:
        assert (await anext(stream)).id == "1"
    again = row.resume(stream.token, origin=server.origin, store=make_store(), key="q1")
    assert len(await row.read(again)) == 5
    record = make_store().open("q1")[0]
    assert record is not None
    assert record.request is not None
    assert stream.checkpoint.request is again.checkpoint.request is None
    with pytest.raises(rs.StoreError, match="another body"):
        await ask("two").open()


async def test_a_place_without_a_digest_is_read_and_gets_one(row: Row, flaky_server: Start) -> None:
    server = flaky_server([*numbered(5), ServerEvent(data="[DONE]")], [Fault.cut(after_events=2)])
    store = MemoryStore()
    async with row.connect("GET", server.url) as stream:
        assert (await anext(stream)).id == "1"
    store.save("k", stream.checkpoint, fence=store.open("k")[1])
    assert len(await row.read(row.connect("GET", server.url, store=store, key="k"))) == 5
    assert store.open("k")[0].request is not None  # type: ignore[union-attr]


# --- when it saves


@pytest.mark.parametrize("chunk_bytes", [None, 100_000])
async def test_a_burst_of_events_is_saved_a_few_times_only(row: Row, flaky_server: Start, chunk_bytes: int | None) -> None:
    """Also in HTTP chunks of one event, where each read may wait, since what httpcore has buffered cannot be seen."""
    server = flaky_server(numbered(1000), chunk_bytes=chunk_bytes, no_content_at_end=True)
    store = CountingStore(keep_events=True)
    begun = monotonic()
    assert len(await row.read(row.connect("GET", server.url, store=store, key="k"))) == 1000
    # Ten a second, however slow the machine is.
    assert len(store.saved) <= 10 * (monotonic() - begun) + 3
    assert store.saved[-1] == 1000
    assert len(list(store.replay("k"))) == 1000


async def test_the_place_is_saved_before_a_read_that_blocks(row: Row, flaky_server: Start) -> None:
    # Slower than ten a second, so that no event comes too soon after a save.
    server = flaky_server(numbered(12), [SILENT], pace=0.12)
    store = CountingStore(save_interval=100.0)
    stream = row.connect("GET", server.url, store=store, key="k", timeouts=rs.Timeouts(idle=60.0))
    seen = []

    async def look() -> None:
        await row.until(lambda: store.saved and store.saved[-1] == 5)
        await stream.aclose()

    async with row.beside(look):
        with pytest.raises(rs.StreamClosed):
            async with stream:
                async for event in stream:
                    seen.append(event.id)
    assert seen == ALL[:5]


async def test_the_place_is_saved_before_a_wait(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), *[Fault.no_answer()] * 2 * row.sends])
    store = CountingStore(save_interval=100.0)
    waits: list[list[int]] = []

    def wait(state: Any) -> float:
        waits.append(list(store.saved))
        return 0.001

    retry = rs.RetryPolicy(wait=wait)
    assert ids(await row.read(row.connect("GET", server.url, store=store, key="k", retry=retry))) == ALL
    assert len(waits) == 2
    assert waits[1][-1] == 5


async def test_the_place_is_saved_when_the_interval_has_passed(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(50), chunk_bytes=100_000, no_content_at_end=True)
    store = CountingStore(save_interval=0.02)
    started = time.monotonic()
    async with row.connect("GET", server.url, store=store, key="k") as stream:
        async for _ in stream:
            await row.sleep(0.002)
    # One in each interval, and those of the opening, the last read and the leaving.
    assert 3 <= len(store.saved) <= (time.monotonic() - started) / 0.02 + 3
    assert store.saved[-1] == 50


async def test_an_interval_of_zero_saves_at_every_event(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), chunk_bytes=100_000, no_content_at_end=True)
    store = CountingStore(save_interval=0)
    await row.read(row.connect("GET", server.url, store=store, key="k"))
    assert sorted(set(store.saved) - {0}) == list(range(1, 13))


async def test_commit_saves_only_when_it_is_due(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(500), chunk_bytes=100_000, no_content_at_end=True)
    store = CountingStore(save_interval=100.0)
    async with row.connect("GET", server.url, store=store, key="k", commit="manual") as stream:
        async for event in stream:
            await stream.commit(event)
    assert len(store.saved) <= 4
    assert store.saved[-1] == 500


async def test_under_manual_commit_only_the_committed_place_is_saved(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url, store=make_store(keep_events=True), key="k", commit="manual") as stream:
        async for event in stream:
            if event.id == "2":
                await stream.commit(event)
            if event.id == "5":
                break
    again = row.connect("GET", server.url, store=make_store(keep_events=True), key="k", commit="manual")
    events = await row.read(again)
    assert [(event.id, event.replayed) for event in events] == [(n, n in ("1", "2")) for n in ALL]


@pytest.mark.parametrize("named", [True, False], ids=["the last", "everything"])
@pytest.mark.parametrize("marker", [True, False], ids=["marker", "close"])
async def test_a_commit_behind_the_loop_counts(
    row: Row, flaky_server: Start, make_store: Callable[..., Any], named: bool, marker: bool
) -> None:
    events = [*numbered(3), *([ServerEvent(id="4", data="[DONE]")] if marker else [])]
    server = flaky_server(events, no_content_at_end=True)
    last = None
    async with row.connect("GET", server.url, store=make_store(), key="k", commit="manual") as stream:
        async for event in stream:
            last = event
            if event.id == "2":
                await stream.commit()
        assert stream.checkpoint.offset == 2
        await (stream.commit(last) if named else stream.commit())
        assert stream.checkpoint.offset == len(events)
        assert stream.checkpoint.complete
    assert stream.checkpoint.complete
    with pytest.raises(rs.StreamClosed, match="with"):
        await stream.commit(last)
    count = len(server.requests)
    again = row.connect("GET", server.url, store=make_store(), key="k", commit="manual")
    assert await row.read(again) == []
    assert again.outcome is (Outcome.COMPLETED if marker else Outcome.ENDED)
    assert len(server.requests) == count


async def test_a_commit_behind_the_block_is_refused_and_saves_nothing(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), no_content_at_end=True)
    store = CountingStore()
    async with row.connect("GET", server.url, store=store, key="k", commit="manual") as stream:
        events = [event async for event in stream]
    saved = list(store.saved)
    for event in (None, events[3]):
        with pytest.raises(rs.StreamClosed):
            await stream.commit(event)
    assert store.saved == saved
    assert stream.checkpoint.offset == 0


async def test_nothing_is_saved_by_a_stream_that_delivered_nothing(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.status(404)])
    store = CountingStore()
    with pytest.raises(rs.ResponseRejected):
        await row.connect("GET", server.url, store=store, key="k").open()
    assert store.saved == []
    assert ids(await row.read(row.connect("GET", server.url, store=store, key="k"))) == ALL


# --- other things that a store meets


async def test_a_save_that_takes_long_does_not_block_the_event_loop(row: Row, flaky_server: Start) -> None:
    if row.sync:
        pytest.skip("there is no loop")
    main = threading.get_ident()
    threads: set[int] = set()

    class Slow(MemoryStore):
        def open(self, key: str) -> Any:
            threads.add(threading.get_ident())
            return super().open(key)

        def save(self, *args: Any, **options: Any) -> None:
            threads.add(threading.get_ident())
            super().save(*args, **options)

        def replay(self, key: str) -> Any:
            threads.add(threading.get_ident())
            for item in super().replay(key):
                threads.add(threading.get_ident())
                yield item

    store = Slow(keep_events=True, save_interval=0)
    server = flaky_server(numbered(12), [Fault.cut(after_events=3)])
    for _ in range(2):
        await row.read(row.connect("GET", server.url, store=store, key="k"))
    assert threads
    assert main not in threads


async def test_a_broken_store_says_so_when_it_is_opened(row: Row, flaky_server: Start, tmp_path: Path) -> None:
    server = flaky_server(numbered(12), [SILENT])
    store = FileStore(tmp_path)
    async with row.connect("GET", server.url, store=store, key="k") as stream:
        await anext(stream)
    [path] = tmp_path.glob("*.checkpoint")  # noqa: ASYNC240
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(rs.StoreError):
        await row.connect("GET", server.url, store=store, key="k").open()
    assert len(server.requests) == 1


async def test_a_post_that_cannot_resume_is_not_sent_again_by_the_next_run(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server([ServerEvent(data=f"no id {n}") for n in range(5)], [Fault.cut(after_events=2)])
    with pytest.raises(rs.StreamInterrupted):
        await row.read(row.connect("POST", server.url, json={}, store=make_store(keep_events=True), key="k"))
    with pytest.raises(rs.NotResumable):
        await row.read(row.connect("POST", server.url, json={}, store=make_store(keep_events=True), key="k"))
    assert len(server.requests) == 1, "the answer was paid twice"


async def test_half_an_answer_that_cannot_be_continued_is_shown_and_raises_until_it_may_be_replaced(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    """Running the cell again shows what is there, and then says how to pay once more; the choice is the caller's (G3)."""
    server = flaky_server(
        [*[ServerEvent(data=f"no id {n}") for n in range(5)], ServerEvent(data="[DONE]")], [Fault.cut(after_events=2)]
    )

    def connect(**options: Any) -> Any:
        return row.connect("POST", server.url, json={}, store=make_store(keep_events=True), key="k", **options)

    with pytest.raises(rs.StreamInterrupted, match=r"delete\('k'\) from the store, or pass on_lost='restart'"):
        await row.read(connect())
    for _ in range(2):
        seen = []
        with pytest.raises(rs.NotResumable, match=r"delete\('k'\) from the store, or pass on_lost='restart'"):
            async with connect() as stream:
                async for event in stream:
                    seen.append(event.data)
        assert seen == ["no id 0", "no id 1"]
    assert len(server.requests) == 1
    whole = await row.read(connect(on_lost="restart"))
    assert [(event.data, event.replayed, event.reset) for event in whole] == [
        *((f"no id {n}", False, False) for n in range(5)),
        ("[DONE]", False, False),
    ]
    assert len(server.requests) == 2
    # The half is replaced: with either option the whole answer is there.
    for options in ({}, {"on_lost": "restart"}):
        assert await row.read(connect(**options)) == whole
    assert len(server.requests) == 2


async def test_a_kept_half_that_can_be_continued_is_not_started_over(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    server = flaky_server([*numbered(5), ServerEvent(data="[DONE]")], [Fault.cut(after_events=2, how="silence")])
    store = make_store(keep_events=True)
    async with row.connect("GET", server.url, store=store, key="k", on_lost="restart") as stream:
        assert (await anext(stream)).id == "1"
    again = await row.read(row.connect("GET", server.url, store=store, key="k", on_lost="restart"))
    assert [event.replayed for event in again] == [True] + [False] * 5
    assert server.requests[-1].last_event_id in {"1", "5"}


async def test_a_token_never_starts_a_post_again_whatever_is_lost(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    """What another process may start is not for whoever has its token to start."""
    server = flaky_server([ServerEvent(data=f"no id {n}") for n in range(5)], [Fault.cut(after_events=2)])
    with pytest.raises(rs.StreamInterrupted) as caught:
        await row.read(row.connect("POST", server.url, json={}, store=make_store(), key="k"))
    place = caught.value.checkpoint
    assert place is not None
    with pytest.raises(rs.NotResumable):
        await row.read(row.resume(place, origin=server.origin, store=make_store(), key="k", on_lost="restart"))
    assert len(server.requests) == 1


async def test_a_checkpoint_given_beside_a_store_must_not_be_lost_silently(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url) as stream:
        async for event in stream:
            if event.id == "4":
                break
    store = MemoryStore()
    events = await row.read(row.connect("GET", server.url, checkpoint=stream.checkpoint, store=store, key="fresh"))
    assert ids(events) == ALL[4:]
    place, _ = store.open("fresh")
    assert place is not None
    assert place.offset == 12


async def test_a_restart_voids_what_was_kept(row: Row, scripted_client: Callable[..., ScriptedClient]) -> None:
    store = MemoryStore(keep_events=True, save_interval=0)
    script = scripted_client(
        [
            Reply(body=[b"id: a\ndata: old\n\n", "read_error"]),
            Reply(status=410),
            Reply(body=[b"id: b\ndata: new\n\ndata: [DONE]\n\n"]),
        ],
        row.family,
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script), store=store, key="k", on_lost="restart")
    first = await row.read(stream)
    assert [(event.data, event.reset) for event in first] == [("old", False), ("new", True), ("[DONE]", False)]
    again = await row.read(row.connect("GET", "https://example.com/s", client=row.scripted(script), store=store, key="k"))
    # A reader of the replay sees the same: what was void, and where it became so.
    assert [(event.data, event.reset, event.offset) for event in again] == [
        (event.data, event.reset, event.offset) for event in first
    ]


async def test_a_restart_that_the_next_run_finishes_voids_what_was_kept(
    row: Row, flaky_server: Start, make_store: Callable[..., Any]
) -> None:
    restarting = False

    def answer(request: RecordedRequest) -> Reply | None:
        nonlocal restarting
        if request.last_event_id and not restarting:
            restarting = True
            return Reply(status=410)
        return Reply(status=400) if restarting and len(server.requests) == 3 else None

    server = flaky_server([*numbered(5), ServerEvent(data="[DONE]")], [Fault.cut(after_events=3)], on_request=answer)

    def connect() -> Any:
        store = make_store(keep_events=True, save_interval=0)
        return row.connect("GET", server.url, store=store, key="k", on_lost="restart")

    with pytest.raises(rs.ResponseRejected):
        await row.read(connect())
    second = [(event.data, event.offset, event.replayed, event.reset) for event in await row.read(connect())]
    texts = [f"event {n}" for n in range(1, 6)]
    assert second[:3] == [(text, n, True, False) for n, text in enumerate(texts[:3])]
    assert second[3] == ("event 1", 0, False, True)
    assert [event[0] for event in second[3:]] == [*texts, "[DONE]"]
    assert not any(event[3] for event in second[4:])
    async with connect() as stream:
        assert await stream.read_text() == "".join(texts)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_a_killed_process_is_continued_by_the_next_one(flaky_server: Start, tmp_path: Path) -> None:
    server = flaky_server([*numbered(40), ServerEvent(data="[DONE]")], pace=0.01)
    program = """
        import os, signal, sys
        import resumable_stream as rs
        from resumable_stream.stores import FileStore
        store = FileStore(sys.argv[2], keep_events=True, save_interval=0.02)
        with rs.connect("GET", sys.argv[1], store=store, key="k") as stream:
            for event in stream:
                if not event.replayed:
                    print(event.id if event.data != "[DONE]" else event.data, flush=True)
                if event.id == sys.argv[3]:
                    os.kill(os.getpid(), signal.SIGKILL)
    """

    def run(stop: str) -> tuple[int, list[str]]:
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), server.url, str(tmp_path), stop],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.stderr == ""
        return result.returncode, result.stdout.split()

    code, first = run("15")
    assert code == -signal.SIGKILL
    assert first == [*ALL[:12], "13", "14", "15"]
    code, second = run("never")
    assert code == 0
    # At least once across processes: what was not saved comes again, nothing is missing.
    assert second[-1] == "[DONE]"
    start = int(second[0])
    assert 1 <= start <= 15
    assert second[:-1] == [str(n) for n in range(start, 41)]
    place, _ = FileStore(tmp_path, keep_events=True).open("k")
    assert place is not None
    assert place.complete
    assert ids(FileStore(tmp_path, keep_events=True).replay("k")) == [*[str(n) for n in range(1, 41)], "40"]


@pytest.mark.parametrize("lost", [1, 2, 5])
async def test_a_save_whose_reply_got_lost_leaves_its_events_once(
    row: Row, flaky_server: Start, redis_server: RedisServer, lost: int
) -> None:
    """The stream ends with the error, and saves the same events once more on leaving."""

    class Lossy(redis.Redis):
        saves = 0

        def execute_command(self, *args: Any, **options: Any) -> Any:
            reply = super().execute_command(*args, **options)
            if args[:2] == ("EVALSHA", store._shas[_SAVE]):
                self.saves += 1
                if self.saves == lost:
                    raise redis.ConnectionError("the reply got lost")
            return reply

    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")], pace=0.005)
    with Lossy(port=redis_server.port) as client:
        store = RedisStore(client, keep_events=True, save_interval=0)
        with pytest.raises(rs.StoreError, match="the reply got lost") as caught:
            await row.read(row.connect("GET", server.url, store=store, key="k"))
        assert caught.value.checkpoint is not None
        kept = ids(store.replay("k"))
        assert kept == ALL[: len(kept)] and len(kept) >= lost
        events = await row.read(row.connect("GET", server.url, store=store, key="k"))
        assert [event.id for event in events] == [*ALL, "12"]
        assert [event.id for event in events if event.replayed] == kept


async def test_exactly_once_with_a_transaction_of_the_callers(row: Row, flaky_server: Start) -> None:
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")], [SILENT, Fault.cut(after_events=3), SILENT])
    database: dict[str, Any] = {"rows": [], "place": None}

    async def run(crash_at: str | None) -> None:
        options = {"checkpoint": database["place"]} if database["place"] else {}
        async with row.connect(
            "GET", server.url, commit="manual", protocol=LastEventID(end="[DONE]"), timeouts=rs.Timeouts(idle=0.2), **options
        ) as stream:
            async for event in stream:
                if event.id == crash_at:
                    raise Boom
                await stream.commit(event)
                database["rows"], database["place"] = [*database["rows"], event.data], stream.token

    for crash_at in ("4", "9", None):
        try:
            await run(crash_at)
        except Boom:
            pass
    assert database["rows"] == [*[f"event {n}" for n in range(1, 13)], "[DONE]"]
