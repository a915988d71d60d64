"""
One consumer: what a second thread or task is told, and how any of them can close the stream.

The reader is blocked in a silent stream of five events. A second reader gets an error of ours and changes nothing;
closing wakes the reader, who gets `StreamClosed`, and raises nothing where it is called (guarantee G9).
"""

# ruff: noqa: PT012  -- the exception comes out of a whole loop: that is what is tested

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ScriptedClient, numbered

from ..conftest import Row

Start = Callable[..., FlakyServer]
pytestmark = [pytest.mark.usefixtures("spotless"), pytest.mark.each_loop]

ALL = [str(n) for n in range(1, 13)]
SILENT = Fault.cut(after_events=5, how="silence")
UNTIL_CLOSED = rs.Timeouts(idle=100.0, first_event=100.0)
WAYS: dict[str, Callable[[Any], Any]] = {
    "events": lambda stream: stream,
    "batches": lambda stream: stream.iter_batches(),
    "text": lambda stream: stream.iter_text(),
    "deltas": lambda stream: stream.iter_deltas(),
}


async def reading(row: Row, stream: Any, seen: list[str]) -> None:
    with pytest.raises(rs.StreamClosed):
        async for event in stream:
            seen.append(event.id)


@pytest.mark.parametrize("way", WAYS)
async def test_a_second_reader_is_refused_and_the_first_one_goes_on(row: Row, flaky_server: Start, way: str) -> None:
    """
    Both would get some of the events. Python's own words for it ("generator already executing") name nothing of the caller's,
    and they came after the connection was lost by it.
    """
    server = flaky_server(numbered(12), [SILENT])
    seen: list[str] = []
    stream = row.connect("GET", server.url, timeouts=UNTIL_CLOSED)

    async def second() -> None:
        await row.until(lambda: len(seen) == 5)
        await row.sleep(0.02)
        for _ in range(3):
            with pytest.raises(rs.StreamBusy) as caught:
                await anext(WAYS[way](stream))
            assert isinstance(caught.value, RuntimeError)
            assert not isinstance(caught.value, rs.StreamClosed)
            assert ("another thread" if row.sync else "another task") in str(caught.value)
            assert caught.value.checkpoint.offset <= 5
        assert len(server.requests) == 1
        await stream.aclose()

    async with row.beside(second):
        async with stream:
            await reading(row, stream, seen)
    assert seen == ALL[:5]
    assert stream.checkpoint.offset == 5
    assert stream.stats.reconnects == 0
    assert await row.disconnected(server)


async def test_a_read_from_within_a_read_is_refused(row: Row, flaky_server: Start) -> None:
    """An observer runs inside the read: another read there would wait for itself."""
    if row.sync:
        pytest.skip("a thread is told from itself by nothing; its own recursion ends in the machine")
    server = flaky_server(numbered(12), [Fault.cut(after_events=5)], no_content_at_end=True)
    refused: list[BaseException] = []

    def observer(notice: rs.Notice) -> None:
        if isinstance(notice, rs.Disconnected):
            coroutine = stream.__anext__()
            try:
                coroutine.send(None)
            except rs.StreamBusy as error:
                refused.append(error)
            finally:
                coroutine.close()

    async with row.connect("GET", server.url, observer=observer) as stream:
        assert [event.id async for event in stream] == ALL
    assert refused


async def test_readers_may_take_turns(row: Row, flaky_server: Start) -> None:
    """One at a time is one consumer, in whichever thread or task it is: `asyncio.to_thread(next, stream)` changes them."""
    server = flaky_server(numbered(12), [Fault.cut(after_events=5)], pace=0.0, no_content_at_end=True)
    seen: list[str] = []
    async with row.connect("GET", server.url) as stream:

        async def one() -> None:
            seen.append((await anext(stream)).id)

        for _ in range(12):
            async with row.beside(one):
                pass
    assert seen == ALL


@pytest.mark.parametrize("how", ["rst", "clean", "silence"])
async def test_opened_stepped_and_closed_in_different_tasks_it_survives_its_cuts(row: Row, flaky_server: Start, how: Any) -> None:
    """
    Frameworks do that: a fixture opens, a request handler reads, a shutdown hook closes. A cancel scope that is entered in one
    task and left in another is an error in anyio (modelcontextprotocol/python-sdk#521), so none may be kept between two calls.
    """
    server = flaky_server(numbered(12), [Fault.cut(after_events=count, how=how) for count in (3, 4)], hold_open=True)
    seen: list[str] = []
    stream = row.connect("GET", server.url, timeouts=rs.Timeouts(idle=2.0 if how == "silence" else 30.0))

    async def step() -> None:
        seen.append((await anext(stream)).id)

    async with row.beside(stream.open):
        pass
    for _ in range(12):
        async with row.beside(step):
            pass
    async with row.beside(stream.aclose):
        pass
    assert seen == ALL
    assert stream.stats.reconnects == 2
    assert stream.checkpoint.offset in (11, 12)
    assert await row.disconnected(server)


@pytest.mark.parametrize("left", ["open", "broken off"])
async def test_a_block_left_in_another_task_than_it_was_entered_in(row: Row, flaky_server: Start, left: str) -> None:
    """`async with` by hand, as `AsyncExitStack` in a fixture does; also when an exception comes out of the block."""
    server = flaky_server(numbered(12), [Fault.cut(after_events=5)], hold_open=True)
    stream = row.connect("GET", server.url, timeouts=UNTIL_CLOSED)
    seen: list[str] = []
    error = None if left == "open" else ZeroDivisionError()

    async def enter() -> None:
        await stream.__aenter__()

    async def step() -> None:
        seen.append((await anext(stream)).id)

    async def leave() -> None:
        await stream.__aexit__(None if error is None else type(error), error, None)

    for work in (enter, *[step] * 7, leave):
        async with row.beside(work):
            pass
    assert seen == ALL[:7]
    assert stream.checkpoint.offset == (7 if error is None else 6)
    assert await row.disconnected(server)


@pytest.mark.parametrize("waiting", ["head", "side head", "side body"])
async def test_close_from_elsewhere_wakes_a_reader_that_waits_for(row: Row, flaky_server: Start, waiting: str) -> None:
    """Also in an opening, and in a question that the reader did not ask itself."""
    let_go = threading.Event()

    class Asked(rs.protocols.LastEventID):
        def on_clean_close(self, state: Any) -> Any:
            return rs.protocols.Verify(rs.protocols.Request(method="GET", url=f"{server.origin}/status"))

    def status(request: RecordedRequest) -> Reply | None:
        if request.path != "/status" or waiting == "head":
            return None
        if waiting == "side head":
            let_go.wait(200.0)
            return Reply(status=200, body=b"{}")
        return None

    schedule = {
        "head": [Fault.no_answer(how="silence")],
        "side head": [Fault.cut(after_events=5, how="clean")],
        "side body": [Fault.cut(after_events=5, how="clean"), Fault.cut(after_bytes=10, how="silence")],
    }[waiting]
    server = flaky_server(numbered(12), schedule, on_request=status, keep_alive=False)
    stream = row.connect("GET", server.url, timeouts=UNTIL_CLOSED, protocol=Asked())

    async def closer() -> None:
        await row.until(lambda: len(server.requests) == (1 if waiting == "head" else 2))
        await row.sleep(0.05)
        await stream.aclose()

    started = time.monotonic()
    try:
        async with row.beside(closer):
            with pytest.raises(rs.StreamClosed) as caught:
                async with stream:
                    async for _ in stream:
                        pass
        assert not isinstance(caught.value, rs.StreamConsumed)
        assert time.monotonic() - started < 50.0, "the clock woke it"
    finally:
        let_go.set()
    assert " closed, " in repr(stream)


async def test_leaving_the_block_while_another_reads_closes_the_stream(row: Row, flaky_server: Start) -> None:
    """`with` around a reader in a thread that outlives it: leaving means what `close()` does, and raises as little."""
    server = flaky_server(numbered(12), [SILENT])
    seen: list[str] = []
    stream = await row.connect("GET", server.url, timeouts=UNTIL_CLOSED).open()

    async def reader() -> None:
        await reading(row, stream, seen)

    async with row.beside(reader):
        async with stream:
            await row.until(lambda: len(seen) == 5)
            await row.sleep(0.02)
    assert seen == ALL[:5]
    assert stream.checkpoint.offset == 5
    assert await row.disconnected(server)


async def test_a_cancellation_that_comes_while_another_closes_still_closes(row: Row, flaky_server: Start) -> None:
    """Whoever closes leaves the connection to the reader. A reader that is cancelled first must take it along."""
    if row.sync:
        pytest.skip("nothing cancels a sync stream")
    server = flaky_server(numbered(12), [SILENT])
    seen: list[str] = []
    stream = await row.connect("GET", server.url, timeouts=UNTIL_CLOSED).open()

    async def reader() -> None:
        with contextlib.suppress(rs.StreamClosed):
            async for event in stream:
                seen.append(event.id)

    async with anyio.create_task_group() as group:
        group.start_soon(reader)
        await row.until(lambda: len(seen) == 5)
        await row.sleep(0.02)
        group.cancel_scope.cancel()
        await stream.aclose()
    assert await row.disconnected(server)
    assert " closed, " in repr(stream)
    assert stream.checkpoint.offset == 5


# --- Ctrl-C while another thread closes


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_ctrl_c_that_comes_while_another_thread_closes_is_not_swallowed(
    family: Any, kind: type[BaseException], scripted_client: Callable[..., ScriptedClient]
) -> None:
    """The program is to stop. A `StreamClosed` in its place is what a loop catches and goes on after."""

    def close_and_interrupt() -> None:
        thread = threading.Thread(target=stream.close)
        thread.start()
        thread.join()
        raise kind

    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", close_and_interrupt])], family)
    with script.sync() as client:
        stream = rs.connect("GET", "https://example.com/s", client=client).open()
        seen = []
        with pytest.raises(kind):
            for event in stream:
                seen.append(event.id)
    assert seen == ["1"]
    assert script.unclosed == 0
    assert " closed, " in repr(stream)


def test_a_signal_handler_may_close_the_stream_that_its_thread_reads(row: Row, flaky_server: Start) -> None:
    """What a server does at SIGTERM. The reader is the thread of the handler, so `close()` must not wait for it."""
    if not row.sync:
        pytest.skip("aclose() cannot be awaited in a handler")
    server = flaky_server(numbered(12), [SILENT])
    seen: list[str] = []
    with rs.connect("GET", server.url, timeouts=UNTIL_CLOSED) as stream:
        before = signal.signal(signal.SIGUSR1, lambda *_: stream.close())
        timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
        try:
            with pytest.raises(rs.StreamClosed):
                for event in stream:
                    seen.append(event.id)
                    if len(seen) == 5:
                        timer.start()
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, before)
    assert seen == ALL[:5]
    assert server.wait_disconnected(30.0)
