"""
The caller's own timeouts: reads that are given up and taken up again lose nothing, and count as nothing.

`asyncio.wait_for(anext(stream), 0.1)` is how an application looks up between two events (inclusionAI/Avernet#2057); in sync code
a signal handler that raises does the same. The retry policy of these tests gives up at the first failed attempt, or waits a
minute, so an interruption that is taken for a failure is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urljoin

import anyio
import pytest

import resumable_stream as rs
from resumable_stream._contract import Answer, Request, Resume, StreamState, Verdict, Verify
from resumable_stream._notices import Retrying
from resumable_stream.protocols import LastEventID
from resumable_stream.stores import FileStore, MemoryStore
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, numbered

from ..conftest import Row

Start = Callable[..., FlakyServer]
pytestmark = [
    pytest.mark.usefixtures("spotless"),
    # A signal handler may raise inside `socket.create_connection()`, whose socket then nobody has to close.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

if sys.platform == "win32":
    pytest.skip("signals to a thread are POSIX's", allow_module_level=True)

ALL = [str(n) for n in range(1, 13)]
NO_MERCY = rs.RetryPolicy(attempts=1, wait=lambda state: 60.0)
PATIENCE = 0.03
PACKAGE = str(Path(rs.__file__).parent)


class Impatient(Exception):
    """What the signal handler raises."""


class Impatience:
    """Raises `Impatient` out of a read after some seconds, as `SIGALRM` does for who uses it. That one is pytest's."""

    def __init__(self) -> None:
        self._armed = False

    def _strike(self, _: int, frame: FrameType | None) -> None:
        # On a busy machine the time is up before the read has begun, or when it is over. Only what is in the package counts.
        while self._armed and frame is not None:
            if frame.f_code.co_filename.startswith(PACKAGE):
                self._armed = False
                raise Impatient
            frame = frame.f_back

    def __enter__(self) -> Impatience:
        self._before = signal.signal(signal.SIGUSR1, self._strike)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGUSR1, self._before)

    @contextlib.contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        over = threading.Event()
        main = threading.main_thread().ident or 0

        def strike() -> None:
            pause = seconds
            while not over.wait(pause):
                signal.pthread_kill(main, signal.SIGUSR1)
                pause = 0.005

        self._armed = True
        thread = threading.Thread(target=strike, name="impatience")
        thread.start()
        try:
            yield
        finally:
            self._armed = False
            over.set()
            thread.join()


@pytest.fixture
def impatience() -> Iterator[Impatience]:
    with Impatience() as made:
        yield made


@contextlib.asynccontextmanager
async def giving_up(row: Row, impatience: Impatience, seconds: float = PATIENCE) -> AsyncIterator[list[None]]:
    """Interrupt the block after so many seconds. What it yields has an item then."""
    struck: list[None] = []
    if row.sync:
        try:
            with impatience.after(seconds):
                yield struck
        except Impatient:
            struck.append(None)
    elif row.driver == "asyncio":
        # `task.cancel()` from within, which leaves a worker thread at once; a scope of anyio waits for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds) as timeout:
                yield struck
        if timeout.expired():
            struck.append(None)
    else:
        with anyio.move_on_after(seconds) as scope:
            yield struck
        if scope.cancelled_caught:
            struck.append(None)


def patience(given_up: int) -> float:
    """Seconds of a read. After more than a test needs they grow, or a busy machine would never see an answer."""
    return min(PATIENCE * 1.3 ** max(given_up - 30, 0), 10.0)


async def poll(row: Row, stream: Any, impatience: Impatience) -> tuple[list[str], int]:
    """Read to the end in short reads: the ids, and how many of the reads were given up."""
    seen: list[str] = []
    given_up = 0
    while True:
        async with giving_up(row, impatience, patience(given_up)) as struck:
            try:
                seen.append((await anext(stream)).id)
            except StopAsyncIteration:
                return seen, given_up
        given_up += len(struck)
        assert given_up < 200


SIZE = len(numbered(1)[0].encode())
SILENCE = {
    "for the first event": [Fault.cut(after_bytes=0, how="silence")] * 5,
    "for the next event": [Fault.cut(after_events=5, how="silence"), *[Fault.cut(after_bytes=0, how="silence")] * 4],
    "within an event": [Fault.cut(after_bytes=5 * SIZE + 9, how="silence"), *[Fault.cut(after_bytes=9, how="silence")] * 4],
    "for the head": [Fault.cut(after_events=5), *[Fault.no_answer(how="silence")] * 5],
    "within an error": [
        Fault.cut(after_events=5),
        *[[Fault.status(503, body=b"x" * 1000), Fault.cut(after_bytes=100, how="silence")]] * 5,
    ],
}


@pytest.mark.parametrize("waiting", SILENCE)
async def test_reads_that_are_given_up_cost_neither_an_attempt_nor_a_wait(
    row: Row, flaky_server: Start, impatience: Impatience, waiting: str
) -> None:
    server = flaky_server(numbered(12), SILENCE[waiting], no_content_at_end=True)
    notices: list[rs.Notice] = []
    async with row.connect("GET", server.url, retry=NO_MERCY, observer=notices.append) as stream:
        seen, given_up = await poll(row, stream, impatience)
    assert seen == ALL
    assert given_up >= 5
    retries = [notice for notice in notices if isinstance(notice, Retrying)]
    assert {(notice.attempt, notice.wait) for notice in retries} == {(0, 0.0)}


@pytest.mark.parametrize("form", ["wait_for", "timeout", "scope"])
def test_twenty_five_polls_of_a_silent_stream_deliver_every_event(flaky_server: Start, form: str) -> None:
    """The form of the report, with shorter polls: 25 of them over a silence, and the default policy of ten attempts."""
    server = flaky_server(
        numbered(12), [Fault.cut(after_events=5, how="silence"), *[Fault.cut(after_bytes=0, how="silence")] * 24]
    )

    async def scenario() -> None:
        seen: list[str] = []
        polls = 0
        async with rs.aconnect("GET", server.url) as stream:
            while len(seen) < 12:
                try:
                    if form == "wait_for":
                        event: Any = await asyncio.wait_for(anext(stream), patience(polls))
                    elif form == "timeout":
                        async with asyncio.timeout(patience(polls)):
                            event = await anext(stream)
                    else:
                        with anyio.fail_after(patience(polls)):
                            event = await anext(stream)
                except TimeoutError:
                    polls += 1
                    continue
                seen.append(event.id)
        assert seen == ALL
        assert polls >= 25

    asyncio.run(scenario())


async def test_a_wait_for_the_server_goes_on_where_it_was_interrupted(
    row: Row, flaky_server: Start, impatience: Impatience
) -> None:
    """Cut short by every poll, the waits between attempts would be over at once, and the attempts spent within a second."""
    at: list[float] = []

    def busy(request: RecordedRequest) -> Reply | None:
        """Until somebody waits."""
        at.append(request.time)
        return None if len(at) == 1 or request.time - at[-2] >= 1.95 else Reply(status=503)

    server = flaky_server(numbered(12), [Fault.cut(after_events=5)], on_request=busy, no_content_at_end=True)
    patient = rs.RetryPolicy(attempts=100, wait=lambda state: 2.0)
    async with row.connect("GET", server.url, retry=patient) as stream:
        seen, given_up = await poll(row, stream, impatience)
    assert seen == ALL
    assert given_up > 3


class Asked(LastEventID):
    """A close of its is no end before the status says so."""

    def on_clean_close(self, state: StreamState) -> Verdict:
        return Verify(Request(method="GET", url=urljoin(state.url, "/status")))

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        return Resume()


async def test_a_status_check_that_is_given_up_is_made_again_and_costs_nothing(
    row: Row, flaky_server: Start, impatience: Impatience
) -> None:
    hanging = threading.Event()
    asked: list[RecordedRequest] = []

    def status(request: RecordedRequest) -> Reply | None:
        if request.path != "/status":
            return None
        asked.append(request)
        if len(asked) <= 4:
            # Longer than the reader waits; the end of the test lets the threads of the server go.
            hanging.wait(200.0)
        return Reply(status=200, headers={"content-type": "application/json"}, body=b"{}")

    server = flaky_server(numbered(12), [Fault.cut(after_events=5, how="clean")], on_request=status, no_content_at_end=True)
    try:
        async with row.connect("GET", server.url, retry=NO_MERCY, protocol=Asked()) as stream:
            seen, given_up = await poll(row, stream, impatience)
    finally:
        hanging.set()
    assert seen == ALL
    assert given_up >= 4
    assert len(asked) >= 5


# --- stores


class SlowStore(MemoryStore):
    """Each call takes longer than the reader waits, `before` or after its work."""

    def __init__(self, *, before: bool, only: Sequence[str] = ("save",)) -> None:
        super().__init__(keep_events=True, save_interval=0.0)
        self.before = before
        self.only = only
        self.calls = 0

    def _wait(self, name: str, now: bool) -> None:
        if now and name in self.only and self.calls < 12:
            self.calls += 1
            threading.Event().wait(2 * PATIENCE)

    def save(self, *args: Any, **options: Any) -> None:
        self._wait("save", self.before)
        super().save(*args, **options)
        self._wait("save", not self.before)

    def replay(self, key: str) -> Iterator[rs.Event]:
        for event in super().replay(key):
            self._wait("replay", True)
            yield event


@pytest.mark.parametrize("before", [True, False], ids=["before it is written", "after it is written"])
async def test_a_save_that_is_interrupted_loses_no_event_and_no_place(
    row: Row, flaky_server: Start, impatience: Impatience, before: bool
) -> None:
    server = flaky_server(numbered(12), pace=0.0, no_content_at_end=True)
    store = SlowStore(before=before)
    options = {"store": store, "key": "k", "retry": NO_MERCY}
    async with row.connect("GET", server.url, **options) as stream:
        seen, given_up = await poll(row, stream, impatience)
    assert seen == ALL
    assert given_up >= 1 or row.driver == "trio"
    async with row.connect("GET", server.url, **options) as stream:
        again = [event.id async for event in stream]
    assert again == ALL


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_a_replay_out_of_a_store_that_is_interrupted_goes_on_where_it_was(
    row: Row, flaky_server: Start, impatience: Impatience, kind: str, tmp_path: Any
) -> None:
    """
    The event that the store was about to give is lost with the call, and a generator that was interrupted is over: both would
    look like the end of the replay, and the rest of what is kept would be left out without a word.
    """
    server = flaky_server(numbered(12), no_content_at_end=True)
    store: Any = SlowStore(before=False, only=["replay"])
    if kind == "file":

        class SlowFiles(FileStore):
            calls = 0

            def replay(self, key: str) -> Iterator[rs.Event]:
                for event in super().replay(key):
                    if self.calls < 12:
                        self.calls += 1
                        threading.Event().wait(2 * PATIENCE)
                    yield event

        store = SlowFiles(tmp_path, keep_events=True)
    options = {"store": store, "key": "k", "retry": NO_MERCY}
    assert [event.id for event in await row.read(row.connect("GET", server.url, **options))] == ALL
    async with row.connect("GET", server.url, **options) as stream:
        seen, given_up = await poll(row, stream, impatience)
    assert seen == ALL
    # Trio does not leave a worker thread before it is done, and takes its result then.
    assert given_up >= 1 or row.driver == "trio"


# --- where there is no way back


async def test_a_stream_that_cannot_be_resumed_says_who_ended_the_read(
    row: Row, flaky_server: Start, impatience: Impatience
) -> None:
    """A read that is cancelled closes its connection, in every HTTP client. The error names the caller and the way out."""
    server = flaky_server(numbered(12), [Fault.cut(after_events=5, how="silence")])
    async with row.connect("POST", server.url, json={"q": 1}) as stream:
        seen: list[str] = []
        with pytest.raises(rs.StreamInterrupted) as caught:  # noqa: PT012 - out of a whole loop: that is what is tested
            while True:
                async with giving_up(row, impatience):
                    seen.append((await anext(stream)).id)
    assert seen == ALL[:5]
    assert caught.value.reason == "interrupted from inside"
    assert "separate task or thread" in str(caught.value)
    assert caught.value.checkpoint is not None
    assert len(server.requests) == 1


def test_a_read_in_a_task_of_its_own_can_be_polled_without_a_way_back(flaky_server: Start) -> None:
    """The way out that the error names: what is waited for is the task, and giving that up leaves the read alone."""
    server = flaky_server(numbered(12), [Fault.heartbeats(after_events=5, count=10, interval=0.05)])

    async def scenario() -> None:
        seen: list[str] = []
        polls = 0
        async with rs.aconnect("POST", server.url, json={"q": 1}) as stream:
            reading = asyncio.ensure_future(anext(stream))
            while len(seen) < 12:
                done, _ = await asyncio.wait({reading}, timeout=0.05)
                if not done:
                    polls += 1
                    continue
                seen.append(reading.result().id)
                if len(seen) < 12:
                    reading = asyncio.ensure_future(anext(stream))
        assert seen == ALL
        assert polls >= 1

    asyncio.run(scenario())
    assert len(server.requests) == 1
