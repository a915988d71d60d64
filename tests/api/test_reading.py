"""The ways to read: events, batches, deltas, text; what a stream tells about itself."""

# ruff: noqa: PT012  -- the exception comes out of a whole `async with` block: that is what is tested

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream import Delta, Limits, Outcome, TextReset
from resumable_stream.protocols import NDJSON, ByteRange, CursorProtocol, LastEventID
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, ServerEvent, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
URL = "https://api.example.com/v1/stream"
ALL = [str(n) for n in range(1, 13)]
CUT = Fault.cut(after_events=5)
WORDS = ["Die ", "Brücke ", "hält ", "🦊 ", "noch", "."]


def ids(events: Any) -> list[str]:
    return [event.id for event in events]


def spoken(**options: Any) -> list[ServerEvent]:
    return [ServerEvent(id=str(n), data=word, **options) for n, word in enumerate(WORDS, 1)]


# --- events


async def test_an_event_tells_its_content_and_its_place(row: Row, flaky_server: Start) -> None:
    server = flaky_server([ServerEvent(id="a", event="delta", data='{"n": 1}\nx', retry=0), ServerEvent(data='{"n": 2}')], [None])
    first, second = await row.read(row.connect("GET", server.url))
    assert (first.event, first.data, first.id, first.retry) == ("delta", '{"n": 1}\nx', "a", 0)
    assert (second.event, second.data, second.id, second.retry) == ("message", '{"n": 2}', "a", None)
    assert second.json() == {"n": 2}
    assert second.json() is second.json()
    assert [(event.cursor, event.offset, event.replayed, event.reset, event.gap) for event in (first, second)] == [
        ("a", 0, False, False, None),
        ("a", 1, False, False, None),
    ]


async def test_batches_hold_what_one_read_brought(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT], chunk_bytes=100_000, no_content_at_end=True)
    async with row.connect("GET", server.url) as stream:
        batches = [list(batch) async for batch in stream.iter_batches()]
    assert [len(batch) for batch in batches] == [5, 7]
    assert ids(itertools.chain(*batches)) == ALL


async def test_batches_after_single_events_start_where_those_stopped(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), chunk_bytes=100_000, no_content_at_end=True)
    async with row.connect("GET", server.url) as stream:
        assert (await anext(stream)).id == "1"
        assert (await anext(stream)).id == "2"
        batch = await anext(stream.iter_batches())
        assert ids(batch) == ALL[2:]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert stream.checkpoint.offset == 12


async def test_ndjson_and_bytes_are_read_alike(row: Row, flaky_server: Start) -> None:
    lines = flaky_server([{"n": n} for n in range(5)], format="ndjson")
    assert [event.json() for event in await row.read(row.connect("GET", lines.url))] == [{"n": n} for n in range(5)]
    document = flaky_server(bytes(range(256)) * 50, [Fault.cut(after_bytes=7000)], format="bytes", etag='"1"')
    stream = row.connect("GET", document.url)
    chunks = await row.read(stream)
    assert b"".join(chunk.data for chunk in chunks) == bytes(range(256)) * 50
    assert [chunk.sequence for chunk in chunks] == list(
        itertools.accumulate((len(chunk.data) for chunk in chunks[:-1]), initial=0)
    )
    assert stream.outcome is Outcome.COMPLETED
    assert isinstance(stream.protocol, ByteRange)


@pytest.mark.parametrize("chunk_bytes", [None, 50, 100_000])
async def test_loops_and_single_steps_may_take_turns(row: Row, flaky_server: Start, chunk_bytes: int | None) -> None:
    server = flaky_server(numbered(12), [CUT], chunk_bytes=chunk_bytes, no_content_at_end=True)
    seen: list[str] = []
    async with row.connect("GET", server.url) as stream:
        async for event in stream:
            seen.append(event.id)
            if event.id == "2":
                break
        # Leaving a loop is not coming back for more: the event is still in hand.
        assert stream.checkpoint.offset == 1
        seen.append((await anext(stream)).id)
        assert stream.checkpoint.offset == 2
        async for event in stream:
            seen.append(event.id)
            assert stream.checkpoint.offset == event.offset
            if event.id in ("4", "7"):
                event = await anext(stream)
                seen.append(event.id)
                assert stream.checkpoint.offset == event.offset
            if event.id == "10":
                break
        async for text in stream.iter_text():
            seen.append(text.removeprefix("event "))
            break
        async for event in stream:
            seen.append(event.id)
    assert seen == ALL
    assert stream.checkpoint.offset == 12
    assert stream.outcome is Outcome.ENDED


async def test_a_stream_is_its_own_iterator(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    async with row.connect("GET", server.url) as stream:
        if row.sync:
            assert iter(stream.wrapped) is stream.wrapped
        else:
            assert aiter(stream) is stream


# --- text


async def test_text_is_the_same_whatever_the_cuts(row: Row, flaky_server: Start) -> None:
    server = flaky_server(spoken(), [Fault.cut(after_bytes=n) for n in (30, 20, 55)])
    async with row.connect("GET", server.url) as stream:
        assert [text async for text in stream.iter_text()] == WORDS
    server = flaky_server(spoken(), [Fault.cut(after_bytes=n) for n in (30, 20, 55)])
    async with row.connect("GET", server.url) as stream:
        assert await stream.read_text() == "".join(WORDS)
    server = flaky_server(spoken(), [Fault.cut(after_bytes=n) for n in (30, 20, 55)])
    async with row.connect("GET", server.url) as stream:
        assert [delta async for delta in stream.iter_deltas()] == [Delta("text", word) for word in WORDS]


async def test_text_of_bytes_is_decoded_across_chunks_and_cuts(row: Row, flaky_server: Start) -> None:
    text = "".join(WORDS) * 3
    server = flaky_server(
        text.encode(), [Fault.cut(after_bytes=n) for n in (5, 3, 14, 1)], format="bytes", etag='"1"', chunk_bytes=3
    )
    async with row.connect("GET", server.url, protocol=ByteRange()) as stream:
        assert "".join([piece async for piece in stream.iter_text()]) == text
    async with row.connect("GET", server.url, protocol=ByteRange()) as stream:
        assert await stream.read_text() == text


async def test_only_visible_text_is_text(row: Row, flaky_server: Start) -> None:
    class Mixed(CursorProtocol):
        def deltas(self, event: Any) -> list[Delta]:
            kind, _, text = event.data.partition(":")
            return [Delta(kind, text), Delta(kind, "")]

    log = [
        ServerEvent(id=str(n), data=data)
        for n, data in enumerate(["reasoning:hm", "text:Yes", "tool:{}", "text:.", "refusal:no"])
    ]
    server = flaky_server(log, no_content_at_end=True)

    def connect() -> Any:
        return row.connect("GET", server.url, protocol=Mixed(read="id", send="header:Last-Event-ID"))

    async with connect() as stream:
        assert await stream.read_text() == "Yes."
    async with connect() as stream:
        assert [text async for text in stream.iter_text()] == ["Yes", "."]
    async with connect() as stream:
        deltas = [(delta.kind, delta.text) async for delta in stream.iter_deltas() if delta.text]
    assert deltas == [("reasoning", "hm"), ("text", "Yes"), ("tool", "{}"), ("text", "."), ("refusal", "no")]


async def test_read_text_over_its_limit_raises_and_iter_text_does_not(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(100, data="x" * 100), no_content_at_end=True)
    stream = row.connect("GET", server.url, limits=Limits(text_bytes=1000))
    with pytest.raises(rs.EventTooLarge) as caught:
        async with stream:
            await stream.read_text()
    assert caught.value.limit == 1000
    assert caught.value.text_so_far == "x" * 1000
    assert caught.value.checkpoint is not None
    async with row.connect("GET", server.url, limits=Limits(text_bytes=1000)) as stream:
        assert len([text async for text in stream.iter_text()]) == 100


async def test_the_limit_of_a_text_is_counted_in_bytes(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(100, data="ü" * 100), no_content_at_end=True)
    with pytest.raises(rs.EventTooLarge):
        async with row.connect("GET", server.url, limits=Limits(text_bytes=15_000)) as stream:
            await stream.read_text()


async def test_an_error_carries_the_text_so_far(row: Row, flaky_server: Start) -> None:
    server = flaky_server(spoken(), [Fault.cut(after_events=3)])
    stream = row.connect("POST", server.url, json={})
    with pytest.raises(rs.StreamInterrupted) as caught:
        async with stream:
            async for _ in stream.iter_text():
                pass
    assert caught.value.text_so_far == "".join(WORDS[:3])
    stream = row.connect("POST", server.url, json={})
    server._schedule = iter([Fault.cut(after_events=3)])
    with pytest.raises(rs.StreamInterrupted) as caught:
        await row.read(stream)
    assert caught.value.text_so_far is None


def _restarting(scripted_client: Scripted, row: Row) -> Any:
    return row.scripted(
        scripted_client(
            [
                Reply(body=[b"id: a\ndata: old\n\nid: b\ndata: text\n\n", "read_error"]),
                Reply(status=410),
                Reply(body=[b"id: x\ndata: new\n\nid: y\ndata: answer\n\n"]),
                Reply(status=204),
            ],
            row.family,
        )
    )


async def test_a_reset_cannot_be_text_unless_it_is_asked_for(row: Row, scripted_client: Scripted) -> None:
    stream = row.connect("GET", URL, client=_restarting(scripted_client, row), on_lost="restart")
    seen = []
    with pytest.raises(rs.StreamReset) as caught:
        async with stream:
            async for text in stream.iter_text():
                seen.append(text)
    assert seen == ["old", "text"]
    assert caught.value.offset == 0
    assert caught.value.text_so_far == "oldtext"
    assert caught.value.checkpoint is not None


async def test_a_reset_comes_between_the_texts_when_it_is_asked_for(row: Row, scripted_client: Scripted) -> None:
    async with row.connect("GET", URL, client=_restarting(scripted_client, row), on_lost="restart") as stream:
        assert [item async for item in stream.iter_text(resets=True)] == ["old", "text", TextReset(0), "new", "answer"]


async def test_read_text_returns_what_is_valid_after_a_reset(row: Row, scripted_client: Scripted) -> None:
    async with row.connect("GET", URL, client=_restarting(scripted_client, row), on_lost="restart") as stream:
        assert await stream.read_text() == "newanswer"
    assert stream.outcome is Outcome.ENDED


# --- where the place is


async def test_the_place_in_the_loop_body_is_before_the_event_in_hand(row: Row, flaky_server: Start) -> None:
    for chunk_bytes in (None, 100_000):
        server = flaky_server(numbered(12), [CUT], chunk_bytes=chunk_bytes)
        async with row.connect("GET", server.url) as stream:
            assert stream.checkpoint.offset == 0
            async for event in stream:
                assert stream.checkpoint.offset == event.offset
                assert stream.checkpoint.cursor == (str(event.offset) if event.offset else None)
                await stream.commit()
                assert stream.checkpoint.offset == event.offset + 1
                assert stream.checkpoint.cursor == event.id
        assert stream.checkpoint.offset == 12
        assert stream.checkpoint.complete


async def test_the_place_never_goes_back_to_a_commit_of_an_older_event(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), chunk_bytes=100_000)
    async with row.connect("GET", server.url) as stream:
        first = await anext(stream)
        third = [await anext(stream) for _ in range(2)][-1]
        assert stream.checkpoint.offset == 2
        await stream.commit(third)
        assert stream.checkpoint.offset == 3
        await stream.commit(first)
        assert stream.checkpoint.offset == 3


async def test_manual_commit_alone_moves_the_place(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, None, None])
    seen: dict[str, Any] = {}
    async with row.connect("GET", server.url, commit="manual") as stream:
        async for event in stream:
            seen[event.id] = event
            assert stream.checkpoint.offset == (3 if event.offset > 6 else 0)
            if event.id == "7":
                await stream.commit(seen["3"])
                assert stream.checkpoint.cursor == "3"
    assert stream.checkpoint.offset == 3
    again = row.connect("GET", server.url, checkpoint=stream.checkpoint)
    assert ids(await row.read(again)) == ALL[3:]


async def test_manual_commit_of_everything_handed_out(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), chunk_bytes=100_000)
    async with row.connect("GET", server.url, commit="manual") as stream:
        for _ in range(4):
            await anext(stream)
        await stream.commit()
        assert stream.checkpoint.offset == 4
        await anext(stream)
        assert stream.checkpoint.offset == 4
    assert stream.checkpoint.offset == 4


async def test_a_manual_commit_of_every_event_completes_the_place(row: Row, flaky_server: Start) -> None:
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")], [CUT])
    async with row.connect("GET", server.url, commit="manual") as stream:
        async for event in stream:
            assert not stream.checkpoint.complete
            await stream.commit(event)
        assert stream.checkpoint.complete
    assert stream.checkpoint.complete


async def test_events_without_ids_are_committed_one_by_one(row: Row, flaky_server: Start) -> None:
    log = [ServerEvent(id="a", data="0"), *[ServerEvent(data=str(n)) for n in range(1, 9)], ServerEvent(id="z", data="9")]
    for taken in range(10):
        server = flaky_server(log, [Fault.cut(after_events=9, how="silence")])
        async with row.connect("GET", server.url) as stream:
            async for event in stream:
                if event.data == str(min(taken, 8)):
                    break
        # The server sends again what follows "a"; what was taken of it is known by content and order.
        again = await row.read(row.connect("GET", server.url, checkpoint=stream.checkpoint))
        assert [event.data for event in again] == [str(n) for n in range(min(taken, 8) + 1, 10)]


async def test_leaving_in_the_middle_of_a_batch_takes_nothing_of_it(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), chunk_bytes=100_000)
    async with row.connect("GET", server.url) as stream:
        async for _batch in stream.iter_batches():
            break
    assert stream.checkpoint.offset == 0


async def test_coming_back_for_the_next_batch_takes_the_last_one(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, Fault.cut(after_events=3)], chunk_bytes=100_000)
    places = []
    async with row.connect("GET", server.url) as stream:
        async for _batch in stream.iter_batches():
            places.append(stream.checkpoint.offset)
    assert places == [0, 5, 8]
    assert stream.checkpoint.offset == 12


# --- what it tells of itself


async def test_numbers_add_up(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, Fault.no_answer(), [Fault.duplicate(after_events=2, count=2)]])
    stream = row.connect("GET", server.url)
    assert stream.stats == rs.Stats()
    await row.read(stream)
    stats = stream.stats
    size = len(server.transcript)
    assert (stats.events, stats.duplicates, stats.gaps, stats.cursor_ignored) == (12, 2, 0, False)
    # The last connection asked whether there is more.
    assert (stats.connections, stats.reconnects) == (3, 2)
    assert size < stats.bytes < size + 100
    assert 0 < stats.seconds_offline < 30


async def test_a_stream_tells_its_response_protocol_and_id(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT], headers={"X-Run": "r-7"})
    protocol = CursorProtocol(read="id", send="header:Last-Event-ID", stream_id="header:X-Run", name="Mine")
    stream = row.connect("GET", server.url, protocol=protocol)
    assert (stream.response, stream.stream_id) == (None, None)
    async with stream:
        assert stream.protocol is protocol
        assert stream.stream_id == "r-7"
        head = stream.response
        assert head is not None
        assert (head.status, head.headers["x-run"], head.content_type, head.url) == (200, "r-7", "text/event-stream", server.url)
        async for _ in stream:
            pass
        assert stream.response is not head
    assert stream.checkpoint.stream_id == "r-7"


async def test_the_protocol_is_chosen_by_the_first_answer(row: Row, flaky_server: Start) -> None:
    for server, kind in (
        (flaky_server(numbered(3)), LastEventID),
        (flaky_server([{"a": 1}], format="ndjson"), NDJSON),
        (flaky_server(b"abc", format="bytes"), ByteRange),
    ):
        async with row.connect("GET", server.url) as stream:
            assert type(stream.protocol) is kind


async def test_repr_tells_the_state_and_no_secret(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    stream = row.connect("GET", server.url + "?api_key=s3cret&topic=news")
    assert "new, 0 events" in repr(stream)
    async with stream:
        await anext(stream)
        assert "open, 1 events" in repr(stream)
    assert "closed" in repr(stream)
    assert "topic=news" in repr(stream)
    assert "s3cret" not in repr(stream)
    assert repr(stream).startswith("<ResumableStream GET" if row.sync else "<AsyncResumableStream GET")


async def test_the_outcome_is_known_only_at_an_honest_end(row: Row, flaky_server: Start) -> None:
    server = flaky_server([*numbered(3), ServerEvent(data="[DONE]"), ServerEvent(data="never seen")])
    async with row.connect("GET", server.url) as stream:
        async for _ in stream:
            assert stream.outcome is None
    assert stream.outcome is Outcome.COMPLETED
    assert stream.stats.events == 4


async def test_an_error_in_the_stream_is_raised_behind_what_came_before_it(row: Row, flaky_server: Start) -> None:
    server = flaky_server(
        [*numbered(3), ServerEvent(data='{"error": {"type": "overloaded", "message": "too busy"}}')], chunk_bytes=100_000
    )
    seen = []
    stream = row.connect("GET", server.url)
    with pytest.raises(rs.UpstreamError, match="too busy") as caught:
        async with stream:
            async for event in stream:
                seen.append(event.id)
    assert seen == ALL[:3]
    assert caught.value.type == "overloaded"
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 3
    assert stream.outcome is None


@pytest.mark.parametrize("on_gap", ["refetch", "deliver"])
async def test_a_hole_is_asked_for_again_and_filled(row: Row, flaky_server: Start, on_gap: str) -> None:
    server = flaky_server(numbered(12), [Fault.hole(after_events=4, count=2)])
    stream = row.connect("GET", server.url, protocol=LastEventID(sequence="contiguous"), on_gap=on_gap)
    events = await row.read(stream)
    assert ids(events) == ALL
    assert stream.stats.gaps == 1
    assert not any(event.gap for event in events)


async def test_a_hole_that_stays_is_raised_or_marked_as_the_caller_chose(row: Row, flaky_server: Start) -> None:
    log = [event for event in numbered(12) if event.id not in ("5", "6")]
    server = flaky_server(log)
    protocol = LastEventID(sequence="contiguous")
    seen = []
    with pytest.raises(rs.GapError) as caught:
        async with row.connect("GET", server.url, protocol=protocol) as stream:
            async for event in stream:
                seen.append(event.id)
    assert seen == ALL[:4]
    assert (caught.value.expected, caught.value.received) == (5, 7)
    events = await row.read(row.connect("GET", server.url, protocol=protocol, on_gap="deliver"))
    assert ids(events) == ALL[:4] + ALL[6:]
    assert [event.gap.missing if event.gap else 0 for event in events] == [0] * 4 + [2] + [0] * 5
