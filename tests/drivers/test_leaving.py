"""
Leaving a stream at any point and in any way: the connection is closed, nothing complains, the place is right (guarantee G9).

Most servers here send five events and fall silent, so that the reader is blocked where the test wants it;
whoever comes next gets an undisturbed answer, which is how the place is checked.
"""

# ruff: noqa: PT012  -- the exception comes out of a whole `async with` block: that is what is tested

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import resumable_stream as rs
from resumable_stream.protocols import LastEventID
from resumable_stream.stores import FileStore, MemoryStore
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
pytestmark = [pytest.mark.usefixtures("spotless"), pytest.mark.each_loop]

ALL = [str(n) for n in range(1, 13)]
SILENT = Fault.cut(after_events=5, how="silence")
SLOW = rs.RetryPolicy(wait=lambda state: 60.0)


class Boom(Exception):
    pass


def ids(events: Iterable[Any]) -> list[str]:
    return [event.id for event in events]


async def rest(row: Row, stream: Any, **options: Any) -> list[str]:
    """What another stream reads that continues from the place of this one."""
    options = {"checkpoint": rs.Checkpoint.from_token(stream.token), **options}
    return ids(await row.read(row.connect("GET", stream.checkpoint.url, **options)))


async def whole(row: Row, server: FlakyServer) -> None:
    """No connection is open, although the client that made it still is."""
    assert await row.disconnected(server), "a connection is still open"


# --- by the loop body


@pytest.mark.parametrize("taken", [1, 3, 5])
async def test_break_leaves_the_place_behind_the_event_in_hand(row: Row, flaky_server: Start, taken: int) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url) as stream:
        async for event in stream:
            if event.id == str(taken):
                break
    await whole(row, server)
    assert stream.checkpoint.offset == taken
    assert stream.outcome is None
    assert await rest(row, stream) == ALL[taken:]


@pytest.mark.parametrize("kind", [Boom, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_an_exception_of_the_loop_body_leaves_the_place_before_the_event_in_hand(
    row: Row, flaky_server: Start, kind: type[BaseException]
) -> None:
    server = flaky_server(numbered(12), [SILENT])
    stream = row.connect("GET", server.url)
    with pytest.raises(kind):
        async with stream:
            async for event in stream:
                if event.id == "3":
                    raise kind
    await whole(row, server)
    assert stream.checkpoint.offset == 2
    assert await rest(row, stream) == ALL[2:]


async def test_leaving_before_the_first_event_leaves_nothing_behind(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url) as stream:
        pass
    await whole(row, server)
    assert stream.checkpoint.offset == 0
    assert await rest(row, stream) == ALL


async def test_leaving_with_half_an_event_read_drops_the_half(row: Row, flaky_server: Start) -> None:
    size = len(numbered(1)[0].encode())
    server = flaky_server(numbered(12), [Fault.cut(after_bytes=2 * size + 9, how="silence")])
    async with row.connect("GET", server.url) as stream:
        assert (await anext(stream)).id == "1"
        assert (await anext(stream)).id == "2"
    await whole(row, server)
    assert await rest(row, stream) == ALL[2:]


async def test_break_out_of_a_batch_takes_only_what_was_committed(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT], chunk_bytes=1000)
    async with row.connect("GET", server.url) as stream:
        async for batch in stream.iter_batches():
            await stream.commit(batch[1])
            break
    await whole(row, server)
    assert stream.checkpoint.offset == 2
    assert await rest(row, stream) == ALL[2:]


async def test_break_out_of_the_text_takes_the_event_of_the_delta(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])
    async with row.connect("GET", server.url) as stream:
        async for text in stream.iter_text():
            if text == "event 4":
                break
    await whole(row, server)
    assert await rest(row, stream) == ALL[4:]


async def test_a_kept_alive_connection_is_not_thrown_away_at_an_honest_end(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), no_content_at_end=True)
    for _ in range(3):
        assert ids(await row.read(row.connect("GET", server.url))) == ALL
    assert server.connections == 1


async def test_closing_twice_and_closing_a_stream_that_was_never_opened_do_nothing(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])
    stream = row.connect("GET", server.url)
    await stream.aclose()
    await stream.aclose()
    assert server.requests == []
    with pytest.raises(rs.StreamClosed):
        await anext(stream)
    with pytest.raises(rs.StreamClosed):
        await stream.open()
    stream = await row.connect("GET", server.url).open()
    await stream.aclose()
    await stream.aclose()
    await whole(row, server)


@pytest.mark.parametrize("chunk_bytes", [None, 1000], ids=["by event", "at once"])
async def test_close_in_the_loop_body_ends_the_loop_with_stream_closed(
    row: Row, flaky_server: Start, chunk_bytes: int | None
) -> None:
    server = flaky_server(numbered(12), [SILENT], chunk_bytes=chunk_bytes)
    seen = []
    async with row.connect("GET", server.url) as stream:
        with pytest.raises(rs.StreamClosed) as caught:
            async for event in stream:
                seen.append(event.id)
                if event.id == "2":
                    await stream.aclose()
    await whole(row, server)
    # Events that had arrived with this one are not handed out, since the checkpoint is before them.
    assert seen == ALL[:2]
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == stream.checkpoint.offset == 1
    assert await rest(row, stream) == ALL[1:]


@pytest.mark.parametrize("way", ["events", "batches", "text"])
async def test_a_stream_that_was_left_hands_out_nothing_more_of_what_had_arrived(row: Row, flaky_server: Start, way: str) -> None:
    """The checkpoint is before it, so it would be delivered twice."""
    server = flaky_server(numbered(12), [SILENT], chunk_bytes=1000)
    async with row.connect("GET", server.url) as stream:
        async for event in stream:
            if event.id == "2":
                break
    ways = {"events": lambda: stream, "batches": stream.iter_batches, "text": stream.iter_text}
    with pytest.raises(rs.StreamClosed) as caught:
        await anext(ways[way]())
    await whole(row, server)
    assert caught.value.checkpoint == stream.checkpoint
    assert await rest(row, stream) == ALL[2:]


async def test_our_own_client_is_closed_with_the_stream(flaky_server: Start, row: Row) -> None:
    server = flaky_server(numbered(12), no_content_at_end=True)
    if row.sync:
        with rs.connect("GET", server.url) as stream:
            assert ids(stream) == ALL
    else:
        async with rs.aconnect("GET", server.url) as stream:
            assert [event.id async for event in stream] == ALL
            await stream.aclose()
    await whole(row, server)


# --- by an exception that arrives while the stream waits


# A clean close, because aiohttp drops what has arrived and was not read yet when a connection breaks.
LEFT = Fault.cut(after_events=5, how="clean")


def _during_read(row: Row) -> dict[str, Any]:
    return {"schedule": [SILENT]}


def _during_sleep(row: Row) -> dict[str, Any]:
    return {"schedule": [LEFT, *[Fault.no_answer()] * row.sends], "retry": SLOW}


def _during_connect(row: Row) -> dict[str, Any]:
    # The clock only bounds the test: nothing here waits for it.
    return {"schedule": [LEFT, Fault.no_answer(how="silence")], "timeouts": rs.Timeouts(idle=100.0)}


def _during_error_body(row: Row) -> dict[str, Any]:
    return {"schedule": [LEFT, [Fault.status(503, body=b"x" * 1000), Fault.cut(after_bytes=100, how="silence")]]}


WAITS = {"read": _during_read, "sleep": _during_sleep, "connect": _during_connect, "error body": _during_error_body}


@pytest.fixture(params=WAITS)
def waiting(request: pytest.FixtureRequest) -> str:
    """Where the stream waits when it is struck."""
    return str(request.param)


def waits(row: Row, flaky_server: Start, waiting: str) -> tuple[FlakyServer, int, dict[str, Any]]:
    """The server, how many requests are made before the stream waits, and arguments for the stream."""
    options = WAITS[waiting](row)
    schedule = options.pop("schedule")
    return flaky_server(numbered(12), schedule, keep_alive=False), len(schedule), options


async def blocked(row: Row, server: FlakyServer, seen: list[str], requests: int) -> None:
    """Wait until the reader waits."""
    await row.until(lambda: len(seen) == 5 and len(server.requests) == requests)
    await row.sleep(0.02)


async def test_cancelling_a_scope_leaves_cleanly(row: Row, flaky_server: Start, waiting: str) -> None:
    if row.sync:
        pytest.skip("nothing cancels a sync stream")
    server, requests, options = waits(row, flaky_server, waiting)
    seen: list[str] = []
    stream = row.connect("GET", server.url, **options)
    started = time.monotonic()
    async with anyio.create_task_group() as group:

        async def reader() -> None:
            async with stream:
                async for event in stream:
                    seen.append(event.id)

        group.start_soon(reader)
        await blocked(row, server, seen, requests)
        group.cancel_scope.cancel()
    assert time.monotonic() - started < 50.0
    await whole(row, server)
    assert seen == ALL[:5]
    assert stream.checkpoint.offset == 5
    assert await rest(row, stream) == ALL[5:]


async def test_cancelling_a_task_leaves_cleanly(row: Row, flaky_server: Start, waiting: str) -> None:
    if row.driver != "asyncio":
        pytest.skip("task.cancel() is asyncio's")
    server, requests, options = waits(row, flaky_server, waiting)
    seen: list[str] = []
    stream = row.connect("GET", server.url, **options)

    async def reader() -> None:
        async with stream:
            async for event in stream:
                seen.append(event.id)

    task = asyncio.create_task(reader())
    await blocked(row, server, seen, requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await whole(row, server)
    assert await rest(row, stream) == ALL[5:]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_read_that_the_caller_timed_out_can_be_tried_again(row: Row, flaky_server: Start, waiting: str) -> None:
    if row.sync:
        pytest.skip("nothing cancels a sync stream")
    server, _requests, options = waits(row, flaky_server, waiting)
    seen: list[str] = []
    async with row.connect("GET", server.url, **options) as stream:
        for _ in range(5):
            seen.append((await anext(stream)).id)
        with anyio.move_on_after(0.05) as scope:
            await anext(stream)
        assert scope.cancelled_caught
        assert stream.checkpoint.offset == 5
        with anyio.fail_after(200.0):
            if waiting == "sleep":
                return  # it would sleep its 60 s from the start; that nothing is lost is seen by leaving
            seen += [event.id async for event in stream]
    assert seen == ALL


def test_ctrl_c_while_the_stream_waits_leaves_cleanly(row: Row, flaky_server: Start, waiting: str) -> None:
    server, requests, options = waits(row, flaky_server, waiting)
    seen: list[str] = []
    streams: list[Any] = []

    async def scenario() -> None:
        streams.append(stream := row.connect("GET", server.url, **options))
        async with stream:
            async for event in stream:
                seen.append(event.id)

    async def strike() -> None:
        row_of_thread = type(row)("sync", row.family)
        await blocked(row_of_thread, server, seen, requests)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = _in_thread(strike)
    with pytest.raises(KeyboardInterrupt):
        row.run(scenario)
    thread.join(200)
    assert server.wait_disconnected(30.0), "a connection is still open"
    assert seen == ALL[:5]
    assert streams[0].checkpoint.offset == 5

    async def after() -> None:
        assert await rest(row, streams[0]) == ALL[5:]

    row.run(after)


def _in_thread(work: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            work().send(None)
        except StopIteration:
            pass

    thread = threading.Thread(target=run, name="striker")
    thread.start()
    return thread


async def test_an_interrupt_inside_the_transport_is_not_swallowed(
    row: Row, scripted_client: Callable[..., ScriptedClient]
) -> None:
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", KeyboardInterrupt()]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    client = row.scripted(script)
    stream = row.connect("GET", "https://example.com/s", client=client)
    with pytest.raises(KeyboardInterrupt):
        async with stream:
            async for _ in stream:
                pass
    assert stream.checkpoint.offset == 1
    assert await rest(row, stream, client=client) == ["2"]
    assert script.requests[1].last_event_id == "1"


async def test_an_interrupt_that_the_caller_handles_lets_the_stream_go_on(
    row: Row, scripted_client: Callable[..., ScriptedClient]
) -> None:
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", KeyboardInterrupt()]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    async with row.connect("GET", "https://example.com/s", client=row.scripted(script)) as stream:
        assert (await anext(stream)).id == "1"
        with pytest.raises(KeyboardInterrupt):
            await anext(stream)
        assert ids([event async for event in stream]) == ["2"]
    assert stream.outcome is rs.Outcome.COMPLETED


async def test_a_bug_in_the_transport_is_raised_as_it_is_and_the_body_closed(
    row: Row, scripted_client: Callable[..., ScriptedClient]
) -> None:
    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", ZeroDivisionError("bug")])], row.family)
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script))
    with pytest.raises(ZeroDivisionError):
        await row.read(stream)
    assert stream.checkpoint.offset == 1
    assert script.unclosed == 0


# --- while opening


@pytest.mark.parametrize("schedule", [[Fault.no_answer(how="silence")], [Fault.no_answer()] * 9])
async def test_cancelling_the_opening_leaves_cleanly(row: Row, flaky_server: Start, schedule: list[Fault]) -> None:
    if row.sync:
        pytest.skip("nothing cancels a sync stream")
    server = flaky_server(numbered(12), schedule)
    stream = row.connect("GET", server.url, retry=SLOW)
    with anyio.move_on_after(0.05) as scope:
        async with stream:
            pass
    assert scope.cancelled_caught
    await whole(row, server)
    assert stream.checkpoint.offset == 0
    with pytest.raises(rs.StreamClosed):
        await anext(stream)


def test_ctrl_c_while_opening_leaves_cleanly(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.no_answer(how="silence")])

    async def scenario() -> None:
        async with row.connect("GET", server.url):
            pass

    async def strike() -> None:
        row_of_thread = type(row)("sync", row.family)
        await row_of_thread.until(lambda: server.requests)
        await row_of_thread.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = _in_thread(strike)
    with pytest.raises(KeyboardInterrupt):
        row.run(scenario)
    thread.join(200)
    assert server.wait_disconnected(30.0), "a connection is still open"


# --- by close() from elsewhere


async def test_close_from_elsewhere_ends_a_waiting_reader(row: Row, flaky_server: Start, waiting: str) -> None:
    server, requests, options = waits(row, flaky_server, waiting)
    seen: list[str] = []
    stream = row.connect("GET", server.url, **options)

    async def closer() -> None:
        await blocked(row, server, seen, requests)
        await stream.aclose()

    async with row.beside(closer):
        async with stream:
            started = time.monotonic()
            with pytest.raises(rs.StreamClosed) as caught:
                async for event in stream:
                    seen.append(event.id)
            assert time.monotonic() - started < 50.0
            assert not isinstance(caught.value, rs.StreamConsumed)
    assert seen == ALL[:5]
    assert caught.value.checkpoint == stream.checkpoint
    assert stream.checkpoint.offset == 5
    await whole(row, server)
    assert await rest(row, stream) == ALL[5:]
    with pytest.raises(rs.StreamClosed):
        await anext(stream)


async def test_close_from_elsewhere_ends_an_opening(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.no_answer()] * 3)
    stream = row.connect("GET", server.url, retry=SLOW)

    async def closer() -> None:
        await row.until(lambda: server.requests)
        await row.sleep(0.02)
        await stream.aclose()

    async with row.beside(closer):
        with pytest.raises(rs.StreamClosed):
            await stream.open()
    await whole(row, server)


async def test_close_from_elsewhere_between_two_chunks_ends_a_reader_over_a_foreign_transport(
    row: Row, scripted_client: Callable[..., ScriptedClient]
) -> None:
    streams: list[Any] = []

    def close() -> Any:
        if row.sync:
            thread = threading.Thread(target=streams[0].close)
            thread.start()
            thread.join()
            return None
        return streams[0].aclose()

    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", close, b": heartbeat\n\n", b"id: 2\ndata: 2\n\n"])], row.family)
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script))
    streams.append(stream.wrapped if row.sync else stream)
    seen = []
    with pytest.raises(rs.StreamClosed):
        async with stream:
            async for event in stream:
                seen.append(event.id)
    assert seen == ["1"]
    assert stream.checkpoint.offset == 1


@pytest.mark.parametrize("chunk_bytes", [None, 1000], ids=["by event", "at once"])
async def test_close_while_the_consumer_works_is_seen_at_its_next_step(
    row: Row, flaky_server: Start, chunk_bytes: int | None
) -> None:
    server = flaky_server(numbered(12), [SILENT], chunk_bytes=chunk_bytes)
    stream = row.connect("GET", server.url)
    at_work, closed = threading.Event(), threading.Event()

    async def closer() -> None:
        await row.until(at_work.is_set)
        await stream.aclose()
        closed.set()

    seen = []
    async with row.beside(closer):
        with pytest.raises(rs.StreamClosed):
            async with stream:
                async for event in stream:
                    seen.append(event.id)
                    at_work.set()
                    await row.until(closed.is_set)
    await whole(row, server)
    assert seen == ["1"]
    assert stream.checkpoint.offset == 0
    assert await rest(row, stream) == ALL


# --- while saving


class GatedStore(MemoryStore):
    """A store whose first save waits for the test."""

    def __init__(self) -> None:
        super().__init__(keep_events=True, save_interval=0)
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.saves = 0
        self.inside = 0
        self.overlapped = False

    def save(self, *args: Any, **options: Any) -> None:
        self.inside += 1
        self.overlapped = self.overlapped or self.inside > 1
        self.saves += 1
        self.entered.set()
        self.go_on.wait(200.0)
        try:
            super().save(*args, **options)
        finally:
            self.inside -= 1


@pytest.mark.parametrize("how", ["scope", "task"])
async def test_cancellation_during_a_save_saves_each_event_once(row: Row, flaky_server: Start, how: str) -> None:
    if row.sync or (how == "task" and row.driver != "asyncio"):
        pytest.skip("no such cancellation in this row")
    server = flaky_server(numbered(12), [SILENT])
    store = GatedStore()
    stream = row.connect("GET", server.url, store=store, key="k")

    async def reader() -> None:
        async with stream:
            async for _ in stream:
                pass

    if how == "task":
        task = asyncio.create_task(reader())
        await row.until(store.entered.is_set)
        task.cancel()
        await anyio.sleep(0.03)
        store.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            await row.until(store.entered.is_set)
            group.cancel_scope.cancel()
            store.go_on.set()
    assert not store.overlapped, "two threads were in the store at once"
    assert store.inside == 0, "a thread is still in the store"
    await whole(row, server)
    kept = ids(store.replay("k"))
    assert kept == ALL[: len(kept)]
    place, _ = store.open("k")
    assert place is not None
    assert place.offset == stream.checkpoint.offset == len(kept)
    assert ids(await row.read(row.connect("GET", server.url, store=store, key="k"))) == ALL


async def test_an_interrupt_during_a_save_loses_no_event(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])

    class Interrupted(MemoryStore):
        armed = True

        def save(self, *args: Any, **options: Any) -> None:
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            super().save(*args, **options)

    store = Interrupted(keep_events=True, save_interval=0)
    stream = row.connect("GET", server.url, store=store, key="k")
    with pytest.raises(KeyboardInterrupt):
        await row.read(stream)
    await whole(row, server)
    kept = ids(store.replay("k"))
    assert kept == ALL[: len(kept)]
    assert len(kept) == stream.checkpoint.offset
    assert ids(await row.read(row.connect("GET", server.url, store=store, key="k"))) == ALL


class FullStore(MemoryStore):
    full = False

    def save(self, *args: Any, **options: Any) -> None:
        if self.full:
            raise rs.StoreError("the disk is full")
        super().save(*args, **options)


async def test_a_store_that_fails_on_leaving_does_not_hide_the_exception_under_way(row: Row, flaky_server: Start) -> None:
    # One chunk, so that no read comes between the events.
    server = flaky_server(numbered(12), [SILENT], chunk_bytes=1000)
    store = FullStore(save_interval=100.0)
    stream = row.connect("GET", server.url, store=store, key="k")
    with pytest.raises(Boom) as caught:
        async with stream:
            async for event in stream:
                if event.id == "3":
                    store.full = True
                    raise Boom
    await whole(row, server)
    assert any("the disk is full" in note for note in caught.value.__notes__)
    assert stream.checkpoint.offset == 2


async def test_a_store_that_fails_on_leaving_without_exception_says_so_and_still_closes(row: Row, flaky_server: Start) -> None:
    # One chunk, so that no read comes between the events.
    server = flaky_server(numbered(12), [SILENT], chunk_bytes=1000)
    store = FullStore(save_interval=100.0)
    stream = row.connect("GET", server.url, store=store, key="k")
    with pytest.raises(rs.StoreError, match="the disk is full") as caught:
        async with stream:
            async for event in stream:
                if event.id == "2":
                    store.full = True
                    break
    await whole(row, server)
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 2
    assert await rest(row, stream) == ALL[2:]


async def test_leaving_a_replay_in_the_middle_closes_the_file(row: Row, flaky_server: Start, tmp_path: Any) -> None:
    server = flaky_server(numbered(12))
    store = FileStore(tmp_path, keep_events=True)
    await row.read(row.connect("GET", server.url, store=store, key="k"))
    async with row.connect("GET", server.url, store=store, key="k") as stream:
        assert (await anext(stream)).replayed
    async with row.connect("GET", server.url, store=store, key="k") as stream:
        pass


# --- by an observer


async def test_an_exception_of_the_observer_leaves_like_one_of_the_loop_body(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5)])

    def observer(notice: rs.Notice) -> None:
        if isinstance(notice, rs.Disconnected):
            raise Boom

    seen = []
    stream = row.connect("GET", server.url, observer=observer)
    with pytest.raises(Boom):
        async with stream:
            async for event in stream:
                seen.append(event.id)
    await whole(row, server)
    assert seen == ALL[:5]
    assert stream.checkpoint.offset == 5
    assert await rest(row, stream) == ALL[5:]


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2", "trio-httpx"], indirect=True)
@pytest.mark.parametrize("kind", ["Disconnected", "Retrying", "Connected", "Finished"])
@pytest.mark.parametrize("nth", [1, 3])
async def test_after_an_exception_of_the_observer_the_stream_can_go_on(
    row: Row, flaky_server: Start, kind: str, nth: int
) -> None:
    schedule = [Fault.cut(after_events=5), Fault.no_answer(), Fault.status(503), Fault.cut(after_events=3)]
    server = flaky_server(numbered(12), schedule, no_content_at_end=True)
    told: list[str] = []

    def observer(notice: rs.Notice) -> None:
        if type(notice).__name__ == kind:
            told.append(kind)
            # The first one comes while the stream is opened, and nothing can go on then.
            if len(told) == nth + (kind == "Connected"):
                raise Boom

    seen = []
    caught = 0
    async with row.connect("GET", server.url, observer=observer) as stream:
        for _ in range(2):
            try:
                async for event in stream:
                    seen.append(event.id)
                break
            except Boom:
                caught += 1
    assert seen == ALL
    assert caught == (1 if len(told) >= nth + (kind == "Connected") else 0)
    assert stream.outcome is rs.Outcome.ENDED


async def test_an_exception_of_the_observer_before_a_connection_is_dropped_leaves_none_open(
    row: Row, flaky_server: Start
) -> None:
    events = [event for event in numbered(9) if event.id != "4"]
    server = flaky_server(events, hold_open=True, pace=0.0)
    struck = False

    def observer(notice: rs.Notice) -> None:
        nonlocal struck
        if isinstance(notice, rs.Disconnected) and not struck:
            struck = True
            raise Boom

    seen: list[str] = []
    stream = row.connect("GET", server.url, observer=observer, protocol=LastEventID(sequence="contiguous"))
    with pytest.raises(rs.GapError):
        async with stream:
            for _ in range(2):
                try:
                    async for event in stream:
                        seen.append(event.id)
                except Boom:
                    continue
    assert struck
    assert seen == ALL[:3]
    await whole(row, server)


async def test_an_exception_of_the_observer_while_opening_closes_the_connection(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [SILENT])

    def observer(notice: rs.Notice) -> None:
        raise Boom

    stream = row.connect("GET", server.url, observer=observer)
    with pytest.raises(Boom):
        await stream.open()
    await whole(row, server)
