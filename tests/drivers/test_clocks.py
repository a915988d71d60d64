"""
The four clocks on real sockets, with values so small that the tests are quick (rule 4, guarantee G6).

A busy machine may be late by seconds. Where a clock must not fire, it is seconds long, and what it waits for comes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream import Outcome, Timeouts
from resumable_stream._drivers.sync import _LEFTOVER_SECONDS
from resumable_stream.protocols import LastEventID
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, numbered

from ..conftest import Row

Start = Callable[..., FlakyServer]
pytestmark = pytest.mark.usefixtures("spotless")

ALL = [str(n) for n in range(1, 13)]
LATE = 10.0


class Stopwatch:
    """
    Asserts that a block took so many seconds, no less, and not as long as another clock would have let it.

    The clocks that are not tested are 30 s or more. So a busy machine may be late, and a clock that does not run is found.
    """

    def __init__(self, seconds: float, late: float = LATE) -> None:
        self.seconds = seconds
        self.late = late

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is None:
            took = time.monotonic() - self.started
            assert self.seconds * 0.95 <= took < self.seconds + self.late, f"took {took:.3f} s instead of {self.seconds}"


async def ids(row: Row, stream: Any) -> list[str]:
    return [event.id for event in await row.read(stream)]


async def test_a_half_open_connection_is_noticed_within_idle(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5, how="silence")])
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=0.1))
    with Stopwatch(0.1):
        assert await ids(row, stream) == ALL
    assert stream.stats.reconnects >= 2


async def test_silence_before_the_head_of_a_reconnect_is_noticed_within_idle(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), Fault.no_answer(how="silence")])
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=0.1))
    with Stopwatch(0.1):
        assert await ids(row, stream) == ALL


async def test_silence_between_the_bytes_of_an_event_is_noticed_within_idle(row: Row, flaky_server: Start) -> None:
    size = len(numbered(1)[0].encode())
    server = flaky_server(numbered(12), [Fault.cut(after_bytes=5 * size + 9, how="silence")])
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=0.1))
    with Stopwatch(0.1):
        assert await ids(row, stream) == ALL


async def test_heartbeats_feed_idle_and_not_stall(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.heartbeats(after_events=5, interval=0.02)])
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=30.0, stall=0.2))
    with Stopwatch(0.2):
        assert await ids(row, stream) == ALL


async def test_heartbeats_before_the_first_event_feed_no_clock(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.heartbeats(interval=0.02)])
    stream = row.connect("GET", server.url, timeouts=Timeouts(first_event=0.12))
    with Stopwatch(0.12):
        assert await ids(row, stream) == ALL


@pytest.mark.parametrize("first_event", [30.0, None])
async def test_the_byte_clock_is_on_time_after_a_longer_or_endless_first_event_clock(
    row: Row, flaky_server: Start, first_event: float | None
) -> None:
    server = flaky_server(numbered(12), [[Fault.delay(0.02), Fault.cut(after_events=5, how="silence")]])
    stream = row.connect("GET", server.url, timeouts=Timeouts(first_event=first_event, idle=0.1, stall=None))
    with Stopwatch(0.12):
        assert await ids(row, stream) == ALL


@pytest.mark.limit_of_aiohttp(
    "its timer starts when the head arrives, and first_event stays in it until the next bytes", strict=False
)
async def test_the_byte_clock_gets_no_shorter_after_a_shorter_first_event_clock(row: Row, flaky_server: Start) -> None:
    pause = Fault.heartbeats(after_events=5, count=1, interval=3.2)
    server = flaky_server(numbered(12), [pause], no_content_at_end=True)
    stream = row.connect("GET", server.url, timeouts=Timeouts(first_event=3.0, idle=30.0))
    assert await ids(row, stream) == ALL
    assert stream.stats.reconnects == 0, "204 is no connection of the stream"


async def test_each_byte_starts_the_byte_clock_again(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), pace=0.3, no_content_at_end=True)
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=3.0, stall=3.0))
    assert await ids(row, stream) == ALL
    assert stream.stats.reconnects == 0


async def test_the_stall_clock_counts_across_heartbeats_and_starts_again_at_an_event(row: Row, flaky_server: Start) -> None:
    beats = [Fault.heartbeats(after_events=n, count=4, interval=0.3) for n in (3, 6, 9)]
    server = flaky_server(numbered(12), [beats], no_content_at_end=True)
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=30.0, stall=3.0))
    with Stopwatch(3.6):
        assert await ids(row, stream) == ALL
    assert stream.stats.reconnects == 0


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ([Fault.cut(after_events=0, how="silence")], "first_event"),
        ([Fault.no_answer(how="silence")], "first_event"),
        ([Fault.heartbeats(interval=0.02)], "first_event"),
        ([Fault.cut(after_events=5, how="silence")], "idle"),
        ([Fault.heartbeats(after_events=5, interval=0.02)], "stall"),
    ],
)
async def test_a_clock_of_a_post_that_cannot_resume_names_itself(
    row: Row, flaky_server: Start, schedule: list[Fault], reason: str
) -> None:
    server = flaky_server(numbered(12), schedule)
    # The first one runs from the connecting on, which a busy machine must have time for.
    seconds = 1.0 if reason == "first_event" else 0.06
    clocks = {"first_event": 30.0, "idle": 30.0, "stall": 30.0, reason: seconds}
    stream = row.connect("POST", server.url, json={}, timeouts=Timeouts(**clocks))
    with Stopwatch(seconds), pytest.raises(rs.StreamInterrupted) as caught:
        await row.read(stream)
    assert caught.value.reason == reason
    assert caught.value.checkpoint is not None
    assert len(server.requests) == 1, "a POST was sent twice"
    await row.close_clients()
    assert await row.disconnected(server)


async def test_a_get_that_declares_a_generation_is_not_repeated_when_its_first_event_is_late(
    row: Row, flaky_server: Start
) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=0, how="silence")])
    stream = row.connect("GET", server.url, protocol=LastEventID(end="close"), timeouts=Timeouts(first_event=1.0))
    with pytest.raises(rs.StreamInterrupted) as caught:
        await row.read(stream)
    assert caught.value.reason == "first_event"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "schedule",
    [
        [Fault.cut(after_events=5, how="silence")],
        [Fault.heartbeats(after_events=5, interval=0.02)],
        [Fault.heartbeats(after_events=0, interval=0.02)],
        [Fault.no_answer(how="silence")],
        [Fault.cut(after_events=5), *[Fault.no_answer()] * 30],
        [Fault.cut(after_events=5), Fault.status(503, retry_after=50)],
        [Fault.cut(after_events=5), [Fault.status(503, body=b"x" * 1000), Fault.cut(after_bytes=100, how="silence")]],
    ],
    ids=["silence", "heartbeats", "heartbeats only", "no head", "retries", "retry-after", "error body"],
)
async def test_the_deadline_ends_every_wait(row: Row, flaky_server: Start, schedule: list[Fault]) -> None:
    server = flaky_server(numbered(12), schedule)
    stream = row.connect(
        "GET", server.url, timeouts=Timeouts(deadline=0.08), retry=rs.RetryPolicy(attempts=1000, wait=lambda state: 0.01)
    )
    with Stopwatch(0.08), pytest.raises(rs.DeadlineExceeded) as caught:
        await row.read(stream)
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset <= 5
    await row.close_clients()
    assert await row.disconnected(server)
    rest = await ids(row, row.connect("GET", server.url, checkpoint=caught.value.checkpoint))
    assert rest == ALL[caught.value.checkpoint.offset :]


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2", "trio-httpx"], indirect=True)
@pytest.mark.parametrize(("clock", "status"), [("deadline", 500), ("idle", 404), ("first_event", 500)])
async def test_the_body_of_an_error_answer_that_drips_is_not_waited_for(
    row: Row, flaky_server: Start, clock: str, status: int
) -> None:
    server = flaky_server(numbered(12), [Fault.status(status, body=b"x" * 400)], chunk_bytes=1, pace=0.05)
    timeouts = Timeouts(**{clock: 1.0})
    # Without its body the status is known all the same.
    kind = rs.DeadlineExceeded if clock == "deadline" else rs.ResumableStreamError
    with Stopwatch(1.0), pytest.raises(kind) as caught:
        await row.read(row.connect("GET", server.url, timeouts=timeouts, retry=rs.RetryPolicy(attempts=1)))
    assert caught.value.checkpoint is not None
    assert len(server.requests) == 1
    await row.close_clients()
    assert await row.disconnected(server)


async def test_a_slow_consumer_stops_the_clocks(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), no_content_at_end=True, pace=0.0)
    clocks = Timeouts(first_event=2.0, idle=2.0, stall=2.0)
    seen = []
    async with row.connect("GET", server.url, timeouts=clocks) as stream:
        await row.sleep(2.1)
        async for event in stream:
            seen.append(event.id)
            if event.id in ("1", "12"):
                await row.sleep(2.1)
    assert seen == ALL
    assert stream.stats.reconnects == 0


async def test_the_first_event_clock_runs_from_the_request_on(row: Row, flaky_server: Start) -> None:
    late = [Fault.delay(3.0), Fault.cut(after_events=0, how="silence")]
    server = flaky_server(numbered(12), [late])
    stream = row.connect("POST", server.url, json={}, timeouts=Timeouts(first_event=3.5))
    # From the head on it would be 6.5 s.
    with Stopwatch(3.5, late=2.9), pytest.raises(rs.StreamInterrupted) as caught:
        await row.read(stream)
    assert caught.value.reason == "first_event"


async def test_connections_that_bring_nothing_use_up_the_attempts(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), *[Fault.cut(after_events=0, how="silence")] * 9])
    retry = rs.RetryPolicy(attempts=3, wait=lambda state: 0.0)
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=1.5), retry=retry)
    with pytest.raises(rs.RetriesExhausted) as caught:
        await row.read(stream)
    assert caught.value.attempts == 3
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 5
    assert len(server.requests) == 5  # the first, the prompt reconnect, three attempts


async def test_a_server_that_does_not_listen_is_tried_again(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    server.close()
    retry = rs.RetryPolicy(attempts=3, wait=lambda state: 0.0)
    with pytest.raises(rs.RetriesExhausted) as caught:
        await row.connect("POST", server.url, json={}, retry=retry).open()
    # Over aiohttp any failure to connect is called a time-out.
    kind = row.module.ConnectTimeout if row.over == "aiohttp" else row.module.ConnectError
    assert isinstance(caught.value.last_error, kind)
    assert caught.value.__cause__ is caught.value.last_error


# --- over a transport that is not httpcore, clocks are looked at between chunks (sync) or bound each read (async)


async def test_a_foreign_transport_is_checked_between_chunks(row: Row, scripted_client: Callable[..., ScriptedClient]) -> None:
    def pause() -> Any:
        return row.sleep(0.03) if not row.sync else time.sleep(0.03)

    beat: list[Any] = [pause, b": heartbeat\n\n"]
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", *beat * 1000]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script), timeouts=Timeouts(idle=30.0, stall=0.15))
    with Stopwatch(0.15):
        assert await ids(row, stream) == ["1", "2"]
    assert stream.outcome is Outcome.COMPLETED


async def test_a_silent_foreign_transport_is_left_in_time_in_async(
    row: Row, scripted_client: Callable[..., ScriptedClient]
) -> None:
    if row.sync:
        pytest.skip("a foreign transport keeps its own read timeout in sync")
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", lambda: row.sleep(50)]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script), timeouts=Timeouts(idle=0.1))
    with Stopwatch(0.1):
        assert await ids(row, stream) == ["1", "2"]


async def test_a_transport_that_times_out_by_itself_is_a_reconnect(
    row: Row, scripted_client: Callable[..., ScriptedClient]
) -> None:
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", "read_timeout"]), "read_timeout", Reply(body=[b"id: 2\ndata: [DONE]\n\n"])],
        row.family,
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script))
    assert await ids(row, stream) == ["1", "2"]


async def test_thousands_of_heartbeats_keep_no_iterator_each(row: Row, flaky_server: Start) -> None:
    # Re-arming a sync read needs a fresh iterator, and each is kept: they must stay few.
    beats = Fault.heartbeats(after_events=2, count=3000, interval=0.0)
    server = flaky_server(numbered(12), [beats], no_content_at_end=True)
    async with row.connect("GET", server.url, timeouts=Timeouts(idle=30.0, stall=60.0)) as stream:
        assert len([event async for event in stream]) == 12
        body = stream._body
        assert body is None or len(getattr(body, "_iterators", ())) < 50


# --- what a sync read is armed with, without a clock on the wall


class Armed:
    """
    A transport as httpcore is: a read keeps the timeout that stood in the request when its iteration began.

    Attributes:
        reads: What each read was armed with, in seconds.
        iterations: Of the body; each is kept until its end.
    """

    def __init__(self, module: Any, chunks: list[bytes]) -> None:
        self.reads: list[float] = []
        self.iterations = 0
        armed, left = self, iter(chunks)

        class Body(module.SyncByteStream):  # type: ignore[misc]
            def __init__(self, request: Any) -> None:
                self.request = request

            def __iter__(self) -> Any:
                armed.iterations += 1
                return self._iterate()

            def _iterate(self) -> Any:
                timeout = self.request.extensions["timeout"]["read"]
                while True:
                    armed.reads.append(timeout)
                    for chunk in left:
                        yield chunk
                        break
                    else:
                        return

        class Transport(module.BaseTransport):  # type: ignore[misc]
            def handle_request(self, request: Any) -> Any:
                headers = {"content-type": "text/event-stream"}
                return module.Response(200, headers=headers, stream=Body(request), extensions={"network_stream": Socketless()})

        self.transport = Transport()


class Socketless:
    """A connection that can always be read from."""

    def get_extra_info(self, name: str) -> Any:
        return True if name == "is_readable" else None


@pytest.mark.parametrize("row", ["sync-httpx", "sync-httpx2"], indirect=True)
@pytest.mark.parametrize(
    ("first_event", "idle"),
    [
        (100.0, 98.0),
        (100.0, 90.0),
        (100.0, 70.0),
        (100.0, 1.0),
        (98.0, 100.0),
        (70.0, 100.0),
        # One percent of the first is what a busy machine may take until the request has gone out.
        (100.0, 10_000.0),
        (None, 100.0),
        (100.0, None),
    ],
)
async def test_a_sync_read_is_armed_with_its_clock_to_one_percent(
    row: Row, first_event: float | None, idle: float | None
) -> None:
    """
    httpcore takes a read's timeout when the iteration of the body begins, so each new value costs an iterator that is kept
    until the end. One percent of a clock is what a reader does not notice; with more, `idle` would not be what was passed.
    """
    events = [event.encode() for event in numbered(6)]
    armed = Armed(row.module, [*events, b"data: [DONE]\n\n"])
    client = row.keep(row.client_class(transport=armed.transport))
    timeouts = Timeouts(first_event=first_event, idle=idle, stall=None)
    await ids(row, row.connect("GET", "https://example.com/s", client=client, timeouts=timeouts))
    # The last one takes a moment for what an honest end leaves behind, and is not a clock's.
    reads, rest = armed.reads[:7], armed.reads[7:]
    assert rest == [_LEFTOVER_SECONDS]
    assert reads[0] == (first_event if first_event is None else pytest.approx(first_event, rel=0.01))
    for seconds in reads[1:]:
        assert seconds == (idle if idle is None else pytest.approx(idle, rel=0.0101))
    assert armed.iterations == 3, "one for the first event, one for the others, one at the end"


@pytest.mark.parametrize("row", ["sync-httpx", "sync-httpx2"], indirect=True)
async def test_a_clock_that_shrinks_with_every_read_takes_few_iterators(row: Row) -> None:
    """Under `deadline` each read may take a little less. An iterator for each of a million reads would be kept to the end."""
    events = [event.encode() for event in numbered(500)]
    armed = Armed(row.module, [*events, b"data: [DONE]\n\n"])
    client = row.keep(row.client_class(transport=armed.transport))
    timeouts = Timeouts(first_event=None, idle=None, stall=None, deadline=10_000.0)
    await ids(row, row.connect("GET", "https://example.com/s", client=client, timeouts=timeouts))
    assert len(armed.reads) >= 501
    assert armed.iterations <= 3
