"""Real sockets, cut at every turn: each event arrives once, in order (guarantee G1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx_sse
import pytest

from resumable_stream import Outcome, Timeouts
from resumable_stream.protocols import ByteRange, LastEventID
from resumable_stream.testing import Fault, FlakyServer, numbered
from resumable_stream.testing.faults import How

from ..conftest import Row


def _transcript() -> bytes:
    """40 events of every shape that moves, keeps or lacks an id, in all line ends; [DONE] is the last."""
    frames: list[bytes] = [b"\xef\xbb\xbf: a byte order mark and a comment come first\n\n"]
    for n in range(39):
        match n % 8:
            case 0:
                frames.append(b"id: %d\ndata: plain %d\n\n" % (n, n))
            case 1:
                frames.append(b"event: delta\r\nid: e-%d\r\ndata: two\r\ndata: lines %d\r\n\r\n" % (n, n))
            case 2:
                frames.append(b": heartbeat\n\ndata: no id of its own %d\n\n" % n)
            case 3:
                frames.append(f"id: é{n}\ndata: ünï¢ödé 🦊 {n}\n\n".encode())
            case 4:
                frames.append(b"id: silent-%d\n\n" % n)
                frames.append(b"data: behind a block without data %d\n\n" % n)
            case 5:
                frames.append(b"data:no space\rdata: and CR %d\rid: cr%d\r\r" % (n, n))
            case 6:
                frames.append(b'data: {"same": "again and again"}\n\n')
            case _:
                frames.append(b'retry: 0\ndata: {"same": "again and again"}\nid: last of eight %d\n\n' % n)
    frames.append(b"data: [DONE]\n\n")
    return b"".join(frames)


TRANSCRIPT = _transcript()


def expected() -> list[tuple[str, str, str]]:
    """What another decoder makes of the transcript, once."""
    decoder = httpx_sse._decoders.SSEDecoder()
    found, data = [], TRANSCRIPT.decode().removeprefix("\ufeff")
    fresh = False
    for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        fresh = fresh or line.startswith("data")
        event = decoder.decode(line)
        if not line:
            if event is not None and fresh:
                found.append((event.event, event.data, event.id))
            fresh = False
    return found


EVENTS = expected()
assert len(EVENTS) == 40 and EVENTS[-1][1] == "[DONE]"


def shape(events: list[Any]) -> list[tuple[str, str, str]]:
    return [(event.event, event.data, event.id) for event in events]


def cuts_everywhere(server: Callable[[], FlakyServer], step: int, *hows: How) -> Iterator[Fault]:
    """
    Cut at ascending positions of the whole transcript, `step` bytes apart, whatever the client asks for.

    A position that the cursor has passed already is taken in the answer as it is: the cut still happens.
    """
    ways = itertools.cycle(hows)
    behind: dict[str | None, int] = {None: 0}
    for position in range(0, len(TRANSCRIPT), step):
        if len(behind) == 1:
            at = 0
            for frame in server().frames:
                at += len(frame)
                if (cursor := _cursor(frame)) is not None:
                    behind[cursor] = at
        start = behind[server().requests[-1].last_event_id]
        yield Fault.cut(after_bytes=max(0, position - start), how=next(ways))


def _cursor(frame: bytes) -> str | None:
    for line in frame.replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"id"):
            return line.partition(b":")[2].removeprefix(b" ").decode()
    return None


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize(("transfer", "chunk_bytes"), [("chunked", None), ("length", 7)])
async def test_every_event_arrives_once_whatever_byte_the_connection_is_cut_at(
    row: Row, flaky_server: Callable[..., FlakyServer], how: How, transfer: str, chunk_bytes: int | None
) -> None:
    step = 54
    cuts = len(range(0, len(TRANSCRIPT), step))
    assert 2 * 8 * cuts >= 500, "the eight tests of two rows make 500 cuts"
    server = flaky_server(TRANSCRIPT, cuts_everywhere(lambda: server, step, how), transfer=transfer, chunk_bytes=chunk_bytes)
    stream = row.connect("GET", server.url, protocol=LastEventID(end="[DONE]"))
    assert shape(await row.read(stream)) == EVENTS
    assert stream.outcome is Outcome.COMPLETED
    # The answers behind the last cut are whole, so every cut was needed to get there or came before it.
    assert server.faults_used == cuts
    assert stream.stats.events == 40
    assert stream.stats.connections == cuts + 1


async def test_one_stream_survives_cuts_of_all_kinds_in_turn(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    hows: tuple[How, ...] = ("rst", "fin", "clean", "clean_inside")
    sent = numbered(100, data="event {n} " + "x" * 40)
    # 70 bytes are one event and a piece of the next.
    server = flaky_server(sent, (Fault.cut(after_bytes=70, how=how) for how in itertools.islice(itertools.cycle(hows), 100)))
    stream = row.connect("GET", server.url, protocol=LastEventID(end="event 100 " + "x" * 40))
    assert [event.data for event in await row.read(stream)] == [event.data for event in sent]
    assert stream.stats.reconnects >= 90


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_an_unclean_cut_is_never_taken_for_the_end_of_a_stream_without_marker(
    row: Row, flaky_server: Callable[..., FlakyServer], how: How
) -> None:
    server = flaky_server(numbered(40), (Fault.cut(after_bytes=n, how=how) for n in range(20, 60)))
    stream = row.connect("GET", server.url)
    assert [event.id for event in await row.read(stream)] == [str(n) for n in range(1, 41)]
    assert stream.outcome is Outcome.ENDED


async def test_single_bytes_change_nothing(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(
        TRANSCRIPT, [[Fault.cut(after_bytes=n, how="rst"), Fault.one_byte_writes()] for n in range(40, 400, 40)]
    )
    stream = row.connect("GET", server.url, protocol=LastEventID(end="[DONE]"))
    assert shape(await row.read(stream)) == EVENTS


async def test_events_that_come_again_where_replay_meets_live_are_dropped(
    row: Row, flaky_server: Callable[..., FlakyServer]
) -> None:
    schedule = [Fault.cut(after_events=5), [Fault.duplicate(after_events=3, count=2), Fault.cut(after_events=8)]] * 3
    server = flaky_server(numbered(60), schedule)
    stream = row.connect("GET", server.url)
    assert [event.id for event in await row.read(stream)] == [str(n) for n in range(1, 61)]
    assert stream.stats.duplicates == 6


async def test_silence_is_left_for_a_new_connection(row: Row, flaky_server: Callable[..., FlakyServer]) -> None:
    server = flaky_server(TRANSCRIPT, [Fault.cut(after_bytes=n, how="silence") for n in (300, 0, 333)])
    stream = row.connect("GET", server.url, protocol=LastEventID(end="[DONE]"), timeouts=Timeouts(idle=1.0))
    assert shape(await row.read(stream)) == EVENTS
    # Not the number of reconnects: on a busy machine even a head may come later than the clock allows.
    assert server.faults_used == 3
    await row.close_clients()
    assert await row.disconnected(server)


@pytest.mark.parametrize("how", ["rst", "fin", "clean"])
async def test_a_download_is_put_together_byte_by_byte(row: Row, flaky_server: Callable[..., FlakyServer], how: How) -> None:
    document = bytes(range(256)) * 4
    server = flaky_server(
        document,
        (Fault.cut(after_bytes=n, how=how) for n in range(0, 40, 2)),
        format="bytes",
        etag='"v1"',
        chunk_bytes=100,
        # With a length, a clean cut would be a shorter document.
        transfer="chunked",
    )
    stream = row.connect("GET", server.url, protocol=ByteRange())
    chunks = await row.read(stream)
    assert b"".join(chunk.data for chunk in chunks) == document
    assert stream.outcome is Outcome.COMPLETED


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_every_event_arrives_once_cut_at_every_single_byte(
    row: Row, flaky_server: Callable[..., FlakyServer], how: How
) -> None:
    server = flaky_server(TRANSCRIPT, cuts_everywhere(lambda: server, 1, how))
    stream = row.connect("GET", server.url, protocol=LastEventID(end="[DONE]"))
    assert shape(await row.read(stream)) == EVENTS
    # Before a clean close the marker is the end without its empty line, so the last cut is not met.
    assert server.faults_used == len(TRANSCRIPT) - how.startswith("clean")
