"""A long stream leaves memory flat (guarantee G6)."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import resumable_stream as rs
from resumable_stream.protocols import LastEventID
from resumable_stream.stores import MemoryStore
from resumable_stream.testing import Reply, ScriptedClient

if TYPE_CHECKING:
    from tests.conftest import Row

Scripted = Callable[..., ScriptedClient]
MIB = 1024 * 1024
# By half of them the window is full. One lasting reference for each of the others would be 280 KiB.
COUNT = 10_000
FLAT = 256 * 1024


def events(start: int, stop: int, shape: str) -> bytes:
    match shape:
        case "ids":
            return b"".join(b'id: %d\ndata: {"delta": "token %d"}\n\n' % (n, n) for n in range(start, stop))
        case "opaque":
            return b"".join(b'id: e-%x\ndata: {"delta": "token %d"}\n\n' % (n * 7919, n) for n in range(start, stop))
        case "one id":
            head = b"id: only\ndata: first\n\n" if start == 0 else b""
            return head + b"".join(b"data: %d\n\n" % n for n in range(start, stop))
        case _:
            return b"".join(b'data: {"delta": "token %d"}\n\n' % n for n in range(start, stop))


def body(count: int, shape: str) -> list[bytes]:
    # Held whole by the script, from before the first measurement on, so that it counts in none.
    return [events(start, start + 500, shape) for start in range(0, count, 500)]


async def growth(row: Row, scripted_client: Scripted, shape: str, **options: Any) -> float:
    """Bytes by which the second half of a stream lets memory grow."""
    script = scripted_client([Reply(body=body(COUNT, shape)), Reply(status=204), Reply(status=204)], row.family)
    protocol = LastEventID(end=lambda event: event.data == "never")
    taken = 0
    before = peak = 0
    tracemalloc.start()
    try:
        async with row.connect(
            "GET", "https://example.com/s", client=row.scripted(script), protocol=protocol, **options
        ) as stream:
            async for _ in stream:
                taken += 1
                if taken == COUNT // 2:
                    gc.collect()
                    before = tracemalloc.get_traced_memory()[0]
                elif taken == COUNT - 10:
                    gc.collect()
                    peak = tracemalloc.get_traced_memory()[0]
                    break
    finally:
        tracemalloc.stop()
    assert taken == COUNT - 10
    return peak - before


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
@pytest.mark.parametrize(
    "shape", ["ids", pytest.param("opaque", marks=pytest.mark.soak), pytest.param("one id", marks=pytest.mark.soak), "no ids"]
)
async def test_tens_of_thousands_of_events_leave_memory_flat(row: Row, scripted_client: Scripted, shape: str) -> None:
    assert await growth(row, scripted_client, shape) < FLAT


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
@pytest.mark.parametrize("how", ["iter_text", "iter_deltas", "iter_batches"])
async def test_no_way_of_reading_holds_what_it_has_handed_out(row: Row, scripted_client: Scripted, how: str) -> None:
    script = scripted_client([Reply(body=body(COUNT, "ids"))], row.family)
    limits = rs.Limits(text_bytes=10_000, window=500)
    readings = []
    tracemalloc.start()
    try:
        async with row.connect("GET", "https://example.com/s", client=row.scripted(script), limits=limits) as stream:
            count = 0
            async for _ in getattr(stream, how)():
                count += 1
                if count in ((8, 18) if how == "iter_batches" else (4_000, 9_000)):
                    readings.append(tracemalloc.get_traced_memory()[0])
                    if len(readings) == 2:
                        break
    finally:
        tracemalloc.stop()
    assert readings[1] - readings[0] < FLAT


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
async def test_a_place_saved_now_and_then_holds_no_events(row: Row, scripted_client: Scripted) -> None:
    store = MemoryStore(save_interval=100.0)
    assert await growth(row, scripted_client, "ids", store=store, key="k") < FLAT


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
@pytest.mark.parametrize("shape", [pytest.param("ids", marks=pytest.mark.soak), "one id"])
async def test_a_reader_that_never_commits_is_bounded_too(row: Row, scripted_client: Scripted, shape: str) -> None:
    limits = rs.Limits(window=500)
    assert await growth(row, scripted_client, shape, commit="manual", limits=limits) < FLAT


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
async def test_the_overlap_after_a_reconnect_is_forgotten_again(row: Row, scripted_client: Scripted) -> None:
    count, readings = 0, []

    def parts() -> Iterator[Any]:
        for connection in range(7):
            pieces = [events(connection * 2000 + n, connection * 2000 + n + 500, "ids") for n in range(0, 2000, 500)]
            yield Reply(body=[*pieces, "read_error"])

    script = scripted_client(parts(), row.family)
    tracemalloc.start()
    try:
        async with row.connect(
            "GET", "https://example.com/s", client=row.scripted(script), limits=rs.Limits(window=1000)
        ) as stream:
            async for _ in stream:
                count += 1
                if count in (4_000, 12_000):
                    gc.collect()
                    readings.append(tracemalloc.get_traced_memory()[0])
                    if len(readings) == 2:
                        break
    finally:
        tracemalloc.stop()
    assert readings[1] - readings[0] < MIB
    # What the test itself keeps of its requests is small.
    assert stream.stats.events == 12_000


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", ["ids", "opaque", "one id", "no ids"])
async def test_a_million_events_leave_memory_flat(row: Row, scripted_client: Scripted, shape: str) -> None:
    script = scripted_client([Reply(body=body(1_000_000, shape))], row.family)
    protocol = LastEventID(end=lambda event: event.data == "never")
    taken = before = 0
    async with row.connect("GET", "https://example.com/s", client=row.scripted(script), protocol=protocol) as stream:
        async for _ in stream:
            taken += 1
            if taken == 100_000:
                before = resident()
            elif taken == 999_000:
                break
        assert resident() - before <= 2 * MIB
