"""
A bug of the caller's or Ctrl-C between the arrival of events and their handing out.

The exception comes as it is; whoever goes on or resumes misses no event, gets none twice, and none that was never sent.
"""

# ruff: noqa: PT012  -- the exception comes out of a whole loop: that is what is tested

from __future__ import annotations

import dis
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import pytest

import resumable_stream as rs
from resumable_stream import Outcome
from resumable_stream._core.machine import Machine
from resumable_stream._core.repeats import Repeats
from resumable_stream._drivers import loop
from resumable_stream._drivers.base import StreamBase
from resumable_stream.protocols import LastEventID
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, numbered

from ..conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
pytestmark = [pytest.mark.each_loop]

ALL = [str(n) for n in range(1, 13)]
WANTED = [(event.id, event.data) for event in numbered(12)]
# One event a chunk, one chunk for all, and chunks that end inside events.
CHUNKS = pytest.mark.parametrize("chunk_bytes", [None, 100_000, 13], ids=["by event", "at once", "cut"])


class Boom(Exception):
    pass


async def read_on(stream: Any, *errors: type[BaseException], at_most: int = 50) -> tuple[list[tuple[str, str]], int]:
    """Read to the end, going on after such errors: the events, and how often that was."""
    seen: list[tuple[str, str]] = []
    caught = 0
    while True:
        try:
            async for event in stream:
                seen.append((event.id, event.data))
            return seen, caught
        except errors:
            caught += 1
            assert caught <= at_most
            assert stream.checkpoint.offset <= len(seen)


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interrupt_before_the_events_are_handed_out_loses_none(
    at: int, flaky_server: Callable[..., FlakyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = flaky_server(numbered(8), pace=0.0)
    hand_out, calls = StreamBase._hand_out, 0

    def interrupted(self: StreamBase, events: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        hand_out(self, events)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamBase, "_hand_out", interrupted)
    seen: list[str] = []
    with rs.connect("GET", server.url) as stream:
        while True:
            try:
                for event in stream:
                    seen.append(event.id)
                break
            except KeyboardInterrupt:
                assert stream.checkpoint.offset == len(seen)
    assert seen == [str(number) for number in range(1, 9)]


# --- between the read and the ledger


@CHUNKS
@pytest.mark.parametrize("at", ["1", "7"])
async def test_an_exception_of_a_callable_in_the_protocol_can_be_gone_on_from(
    row: Row, flaky_server: Start, chunk_bytes: int | None, at: str
) -> None:
    server = flaky_server(numbered(12), chunk_bytes=chunk_bytes, pace=0.0)
    fired = False

    def end(event: Any) -> bool:
        nonlocal fired
        if event.id == at and not fired:
            fired = True
            raise Boom
        return bool(event.id == "12")

    async with row.connect("GET", server.url, protocol=LastEventID(end=end)) as stream:
        assert await read_on(stream, Boom) == (WANTED, 1)
    assert stream.outcome is Outcome.COMPLETED


@CHUNKS
@pytest.mark.parametrize(("at", "when"), [(1, "before"), (3, "before"), (1, "behind"), (3, "behind")])
async def test_an_interrupt_where_a_chunk_is_entered_can_be_gone_on_from(
    row: Row, flaky_server: Start, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int | None, at: int, when: str
) -> None:
    server = flaky_server(numbered(12), chunk_bytes=chunk_bytes, pace=0.0, no_content_at_end=True)
    calls = 0

    def interrupted(name: str) -> Callable[..., Any]:
        real = getattr(Machine, name)

        def enter(self: Machine, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            struck = calls == at
            if struck and when == "before":
                raise KeyboardInterrupt
            found = real(self, *args)
            if struck:
                raise KeyboardInterrupt
            return found

        return enter

    for name in ("receive_live", "receive_data", "receive_eof"):
        monkeypatch.setattr(Machine, name, interrupted(name))
    async with row.connect("GET", server.url) as stream:
        seen, caught = await read_on(stream, KeyboardInterrupt)
    assert seen == WANTED
    assert caught == (1 if calls >= at else 0), "the interrupt was swallowed"
    assert stream.outcome is Outcome.ENDED


@pytest.mark.usefixtures("spotless")
@pytest.mark.parametrize("where", ["end", "receive_live", "receive_data", "_hand_out"])
async def test_after_such_an_exception_closing_closes(
    row: Row, flaky_server: Start, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    server = flaky_server(numbered(3), pace=0.0, hold_open=True)
    struck = False

    def end(event: Any) -> bool:
        if where == "end" and event.id == "4":
            raise Boom
        return False

    owner = StreamBase if where == "_hand_out" else Machine
    real = getattr(owner, where, None)

    def boom(self: Any, *args: Any) -> Any:
        nonlocal struck
        if not struck and len(seen) >= (0 if where == "receive_data" else 3):
            struck = True
            raise Boom
        assert real is not None
        return real(self, *args)

    if real is not None:
        monkeypatch.setattr(owner, where, boom)
    seen: list[str] = []
    stream = await row.connect("GET", server.url, protocol=LastEventID(end=end)).open()
    with pytest.raises(Boom):
        async for event in stream:
            seen.append(event.id)
            if event.id == "3":
                # Not earlier, since all that has arrived may come out of one read.
                server.append(*numbered(2, start=4))
    await stream.aclose()
    assert " closed, " in repr(stream)
    assert await row.disconnected(server), "the connection is still open"
    assert seen == ALL[: len(seen)]
    assert stream.checkpoint.offset == len(seen)
    with pytest.raises(rs.StreamClosed):
        await anext(stream)


@pytest.mark.parametrize("at", [1, 9])
async def test_an_interrupt_while_a_replay_is_compared_hands_out_nothing_twice(
    row: Row, flaky_server: Start, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=10)], chunk_bytes=4096, ignore_cursor=True)
    drop, calls = Repeats.drop, 0

    def interrupted(self: Repeats, item: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        drop(self, item)

    monkeypatch.setattr(Repeats, "drop", interrupted)
    async with row.connect("GET", server.url) as stream:
        assert await read_on(stream, KeyboardInterrupt) == (WANTED, 1)


@pytest.mark.parametrize("at", [11, 18])
async def test_an_exception_of_a_fingerprint_hands_out_nothing_twice(row: Row, flaky_server: Start, at: int) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=10)], chunk_bytes=4096, ignore_cursor=True)

    class Broken(LastEventID):
        calls = 0

        def fingerprint(self, event: Any) -> str:
            self.calls += 1
            if self.calls == at:
                raise Boom
            return super().fingerprint(event)

    async with row.connect("GET", server.url, protocol=Broken()) as stream:
        seen, caught = await read_on(stream, Boom)
    assert seen == WANTED
    assert caught <= 1


async def test_an_interrupt_of_a_read_whose_clock_has_run_out_too_is_not_swallowed(
    row: Row, scripted_client: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_read, late = Machine.before_read, False

    def interrupted() -> None:
        nonlocal late
        late = True
        raise KeyboardInterrupt

    def clock(self: Machine, now: float) -> float | None:
        return 0.0 if late else before_read(self, now)

    monkeypatch.setattr(Machine, "before_read", clock)
    events = [event.encode() for event in numbered(12)]
    script = scripted_client([Reply(body=[*events[:6], interrupted]), Reply(body=events[6:]), Reply(status=204)], row.family)
    async with row.connect("GET", "https://example.com/s", client=row.scripted(script)) as stream:
        seen: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            async for event in stream:
                seen.append(event.id)
        late = False
        seen += [event.id async for event in stream]
    assert seen == ALL


# --- while it is handed out


def behind_calls(code: CodeType) -> list[int]:
    """Offsets of the instructions behind calls: that is where CPython looks for signals."""
    instructions = [found for found in dis.get_instructions(code) if found.opname != "CACHE"]
    pairs = itertools.pairwise(instructions)
    return [found.offset for before, found in pairs if before.opname.startswith("CALL")]


@pytest.mark.parametrize("time", [1, 2], ids=["first time", "second time"])
@pytest.mark.parametrize("kept", [False, True], ids=["no store", "a store"])
@pytest.mark.parametrize(
    ("where", "batches"), [("_hand_out", False), ("_hand_out", True), ("_hand_batch", True), ("_hand_on", False)]
)
def test_an_interrupt_while_events_are_handed_out_puts_the_place_ahead_of_none_and_loses_none(
    scripted_client: Scripted, where: str, batches: bool, kept: bool, time: int
) -> None:
    code = getattr(StreamBase, where).__code__
    events = [event.encode() for event in numbered(12)]
    body = [b"".join(events[:5]), *events[5:8], b"".join(events[8:])] if time == 2 else [b"".join(events)]
    offsets = behind_calls(code)
    assert offsets
    fired = 0
    for offset in offsets:
        struck = False
        times = 0

        def trace(frame: FrameType, what: str, argument: Any, offset: int = offset) -> Any:
            nonlocal struck, times
            if frame.f_code is not code:
                return None
            frame.f_trace_opcodes = True
            if what == "opcode" and frame.f_lasti == offset and not struck:
                times += 1
                struck = times == time
                if struck:
                    raise KeyboardInterrupt
            return trace

        script = scripted_client([Reply(body=body), Reply(status=204), Reply(status=204)])
        store = {"store": rs.stores.MemoryStore(), "key": "k"} if kept or where == "_hand_on" else {}
        seen: list[str] = []
        with script.sync() as client:
            stream = rs.connect("GET", "https://example.com/s", client=client, **store)
            before = sys.gettrace()
            try:
                with stream:
                    for _ in range(2):
                        try:
                            sys.settrace(trace)
                            if batches:
                                for batch in stream.iter_batches():
                                    seen += [event.id for event in batch]
                            else:
                                for event in stream:
                                    seen.append(event.id)
                            break
                        except KeyboardInterrupt:
                            assert stream.checkpoint.offset <= len(seen), f"an interrupt at {offset} of {where}"
            finally:
                sys.settrace(before)
        fired += struck
        assert seen == ALL, f"an interrupt at {offset} of {where}"
    assert fired


# --- where the driver's own functions begin

DRIVERS = str(Path(loop.__file__).parent)


def five_at_a_time(request: httpx.Request) -> httpx.Response:
    """The next events, each in a chunk of its own, and then a cut; a clean close behind the last, and no more."""
    taken = int(request.headers.get("last-event-id", "0"))
    if taken == 12:
        return httpx.Response(204)

    def body() -> Iterator[bytes]:
        for event in numbered(12)[taken : taken + 5]:
            yield event.encode()
        if taken + 5 < 12:
            raise httpx.ReadError("cut")

    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=body())


@contextmanager
def entering(entered: list[str], strike: tuple[str, int] | None = None) -> Iterator[None]:
    """
    Note the functions of the drivers that begin, and interrupt one where it does: there too CPython looks for signals.

    Args:
        entered: Takes their names.
        strike: The name of the one, and how often it has begun before.
    """

    def trace(frame: FrameType, what: str, argument: Any) -> Any:
        if frame.f_code.co_filename.startswith(DRIVERS):
            name = frame.f_code.co_qualname
            entered.append(name)
            if strike is not None and strike == (name, entered.count(name) - 1):
                raise KeyboardInterrupt
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def read_interrupted(strike: tuple[str, int] | None, *, kept: bool) -> list[str]:
    """Read all, going on after the interrupt: the functions that began, up to the one that it came in."""
    store = {"store": rs.stores.MemoryStore(), "key": "k"} if kept else {}
    entered: list[str] = []
    seen: list[str] = []
    with httpx.Client(transport=httpx.MockTransport(five_at_a_time)) as client:
        stream = rs.connect("GET", "https://example.com/s", client=client, **store).open()
        try:
            with entering(entered, strike):
                for event in stream:
                    seen.append(event.id)
        except KeyboardInterrupt:
            assert stream.checkpoint.offset <= len(seen), f"an interrupt at {strike}, {entered[-1]}"
            seen += [event.id for event in stream]
        assert stream.outcome is Outcome.ENDED
    assert seen == ALL, f"an interrupt at {strike}, {entered[-1]}"
    return entered


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kept", [False, True], ids=["no store", "a store"])
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["one of each", "every"])
def test_an_interrupt_where_a_function_of_the_driver_begins_loses_nothing_and_leaves_no_coroutine(
    kept: bool, every: bool
) -> None:
    times = Counter(read_interrupted(None, kept=kept))
    struck = set()
    for name, count in times.items():
        # A save is due by the clock, so its functions may begin more or less often the next time, and the others do not.
        for time in range(count) if every else sorted({0, count - 1}):
            struck.add(read_interrupted((name, time), kept=kept)[-1])
    assert {"Loop._refill", "Loop._read", "Loop._advance", "Loop._connect", "ResumableStream._send", "Loop._leave"} <= struck
