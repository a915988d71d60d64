"""A calm stream, whose events are handed on unread: looking at it, leaving it and losing it shows the place as ever."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._core.ledger import Ledger
from resumable_stream._core.machine import Machine
from resumable_stream._core.skimming import Skimmer, Unread
from resumable_stream.framing import VerbatimDecoder
from resumable_stream.protocols import CursorProtocol, LastEventID
from resumable_stream.testing import Fault, FlakyServer
from tests.cutting import Where

from .conftest import CUTS, SSE, Reply, Rig, cut

URL = "https://api.example.com/feed"


def token(number: int) -> bytes:
    return b"id: %d\nevent: token\ndata: this is token %d\n\n" % (number, number)


TOKENS = [token(number) for number in range(1, 101)]
DONE = b"data: [DONE]\n\n"


def rest(request: Any, blocks: Sequence[bytes] = TOKENS) -> list[bytes]:
    return [*blocks[int(request.headers.get("last-event-id", 0)) :], DONE]


@pytest.mark.parametrize("how", CUTS)
async def test_what_follows_the_last_one_handed_out(rig: Rig, how: str, where: Where) -> None:
    whole = b"".join([*TOKENS, DONE])
    calm = len(b"".join(TOKENS[:40]))
    for position in [calm + at for at in where(TOKENS[40:43])]:
        answers: list[str] = []

        def answer(request: Any, position: int = position, answers: list[str] = answers) -> Reply:
            blocks = rest(request)
            answers.append(request.headers.get("last-event-id", "0"))
            if len(answers) > 1:
                return Reply(blocks)
            # One event a chunk, as a model sends them; the last chunk ends anywhere.
            reply = cut(b"".join(blocks), position, how, 10**6)
            body = b"".join(reply.chunks)
            starts = [0, *(at + 2 for at in range(len(body)) if body[at : at + 2] == b"\n\n"), len(body)]
            reply.chunks = [body[one:two] for one, two in itertools.pairwise(starts) if body[one:two]]
            return reply

        response, chunks = await rig.read(rig.client(answer), "GET", URL)
        assert b"".join(chunks) == whole, f"{how} at {position}"
        assert chunks == [*TOKENS, DONE]
        assert answers[0] == "0"
        assert rs.stream_of(response).stats.duplicates == 0


async def test_it_can_be_looked_at_after_each_event(rig: Rig) -> None:
    response = await rig.send(rig.client(lambda request: Reply(rest(request))), "GET", URL)
    stream, reader, chunks = rs.stream_of(response), rig.reader(response), []
    for count in range(1, 101):
        await rig.drain(response, chunks, most=count, reader=reader)
        # The last one is in hand.
        assert (stream.checkpoint.offset, stream.checkpoint.cursor) == (count - 1, str(count - 1) if count > 1 else None)
        if count % 7 == 0:
            assert stream.stats.events == count
    await rig.drain(response, chunks, reader=reader)
    await rig.close(response)
    assert stream.checkpoint.complete
    assert chunks == [*TOKENS, DONE]


async def test_another_task_may_look_while_the_reader_waits(rig: Rig) -> None:
    """Also in the middle of an event."""
    half = Fault.cut(after_bytes=len(b"".join(TOKENS[:20])) + 9, how="silence")
    with FlakyServer(TOKENS[:20] + TOKENS[20:40] + [DONE], [half], pace=0.002) as server:
        client = rig.client(timeouts=rs.Timeouts(idle=0.5))
        response = await rig.send(client, "GET", server.url)
        stream, chunks = rs.stream_of(response), []
        seen: list[int] = []

        async def look() -> None:
            while not seen or (seen[-1] < 40 and stream.outcome is None):
                seen.append(stream.checkpoint.offset)
                assert stream.stats.events >= seen[-1]
                await rig.row.sleep(0.003)

        async with rig.row.beside(look):
            await rig.drain(response, chunks)
        await rig.close(response)
    assert b"".join(chunks) == b"".join([*TOKENS[:40], DONE])
    assert seen == sorted(seen)
    assert stream.checkpoint.offset == 41
    assert stream.stats.duplicates == 0


@pytest.mark.parametrize("taken", [1, 12, 99])
async def test_leaving_takes_what_was_handed_out(rig: Rig, taken: int) -> None:
    if rig.row.driver == "trio":
        pytest.skip("the generators of the library's response, above us, are left to the collector, with us or without")
    response = await rig.send(rig.client(lambda request: Reply(rest(request))), "GET", URL)
    stream, chunks, reader = rs.stream_of(response), [], rig.reader(response)
    await rig.drain(response, chunks, most=taken, reader=reader)
    await rig.close(response)
    assert stream.checkpoint.cursor == str(taken)
    if rig.row.sync:
        reader.close()
    else:
        await reader.aclose()


async def test_an_error_has_the_place_behind_all_that_was_handed_out(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        return Reply(status=410) if "last-event-id" in request.headers else Reply(TOKENS[:30], "rst")

    with pytest.raises(rs.CursorExpired) as caught:
        await rig.read(rig.client(answer), "GET", URL)
    assert caught.value.checkpoint is not None
    assert (caught.value.checkpoint.cursor, caught.value.checkpoint.offset) == ("30", 30)
    assert len(caught.value.checkpoint.recent_ids) == 30


async def test_repeats_of_what_went_unread_are_known(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        # It sends all of it again, in the order in which it came.
        return Reply([*TOKENS, DONE]) if "last-event-id" in request.headers else Reply(TOKENS[:90], "rst")

    response, chunks = await rig.read(rig.client(answer), "GET", URL)
    assert chunks == [*TOKENS, DONE]
    assert rs.stream_of(response).stats.duplicates == 90


async def test_a_hole_is_seen_before_it_is_handed_on(rig: Rig) -> None:
    def event(number: int) -> bytes:
        return b'data: {"type":"token","number":%d,"text":"token"}\n\n' % number

    events = [event(number) for number in range(1, 61)]

    def answer(request: Any) -> Reply:
        after = int(request.url.params.get("after", 0))
        # The first connection leaves one out.
        return Reply([*events[:40], *events[41:]] if not after else events[after:])

    protocol = CursorProtocol(read="number", send="query:after", sequence="contiguous", end=lambda event: "60," in event.data)
    response, chunks = await rig.read(rig.client(answer, protocols=lambda request: protocol), "GET", URL)
    assert chunks == events
    assert rs.stream_of(response).stats.gaps == 1


async def test_the_end_is_seen_among_events_that_go_unread(rig: Rig) -> None:
    for end in ("[DONE]", "終わり", "ende — das war es"):
        blocks = [*TOKENS, f"data: {end}\n\n".encode(), b": and more\n\n", *TOKENS]
        client = rig.client(lambda request, blocks=blocks: Reply(blocks, "silence"), protocols=[LastEventID(end=end)])
        response, chunks = await rig.read(client, "GET", URL)
        assert chunks == blocks[:101]
        assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED


async def test_an_identity_that_comes_late_is_learned(rig: Rig) -> None:
    protocol = CursorProtocol(read="id", send="header:Last-Event-ID", url="/runs/{stream_id}", stream_id="run")
    late = b'id: 41\nevent: token\ndata: {"run":"r1"}\n\n'

    def answer(request: Any) -> Reply:
        if request.url.path == "/runs/r1":
            return Reply(rest(request), headers=SSE)
        return Reply([*TOKENS[:40], late, *TOKENS[41:50]], "rst")

    response, _ = await rig.read(rig.client(answer, protocols=lambda request: protocol), "POST", URL)
    assert rs.stream_of(response).stream_id == "r1"
    assert rs.stream_of(response).stats.reconnects == 1


async def test_limits_hold_for_what_goes_unread(rig: Rig) -> None:
    large = b"id: 41\nevent: token\ndata: this is %s\n\n" % (b"x" * 5000)
    client = rig.client(lambda request: Reply([*TOKENS[:40], large]), limits=rs.Limits(line_bytes=1000))
    chunks: list[bytes] = []
    response = await rig.send(client, "GET", URL)
    with pytest.raises(rs.EventTooLarge):
        await rig.drain(response, chunks)
    await rig.close(response)
    assert chunks == TOKENS[:40]


async def test_a_protocol_without_detection_is_meant_for_every_stream(rig: Rig) -> None:
    class Mine(rs.protocols.ResumeProtocol):
        def end(self, event: Any) -> Any:
            return rs.Outcome.COMPLETED if event.data == "over" else None

    answer = Reply([b"data: one\n\n", b"data: over\n\n"], "silence")
    response, _ = await rig.read(rig.client(lambda request: answer, protocols=[Mine()]), "GET", URL)
    assert type(rs.stream_of(response).protocol) is Mine


async def test_timeouts_that_two_requests_share_stay_what_they_are(rig: Rig) -> None:
    shared = {"connect": 5.0, "read": 7.0, "write": 5.0, "pool": 5.0}
    client = rig.client(lambda request: Reply(rest(request)))
    responses = [await rig.send(client, "GET", URL, extensions={"timeout": shared}) for _ in range(2)]
    for response in responses:
        await rig.drain(response, [])
        await rig.close(response)
    assert shared == {"connect": 5.0, "read": 7.0, "write": 5.0, "pool": 5.0}
    assert [request.extensions["timeout"] for request in rig.sent] == [shared, shared]


def test_a_sync_stream_can_be_looked_at_from_another_thread() -> None:
    import httpx

    from resumable_stream.transports.httpx import ResumableTransport

    with (
        FlakyServer(TOKENS[:20], [Fault.cut(after_events=20, how="silence")]) as server,
        httpx.Client(transport=ResumableTransport(), timeout=httpx.Timeout(5, read=1.0)) as client,
    ):
        with client.stream("GET", server.url) as response:
            stream, got = rs.stream_of(response), []

            def read() -> None:
                for chunk in response.iter_raw():
                    got.append(chunk)
                    if len(got) == 20:
                        return

            reader = threading.Thread(target=read)
            reader.start()
            while reader.is_alive():
                assert 0 <= stream.checkpoint.offset <= 20
            reader.join()
            assert b"".join(got).startswith(TOKENS[0])


def completion(text: str | None, reason: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"id": "c1", "choices": [choice], **fields}, separators=(",", ":")).encode() + b"\n\n"


CHAT = "https://api.example.com/v1/chat/completions"
ASK = {"model": "m", "messages": [], "stream": True}
SAID = [completion(f"word {number} ") for number in range(60)]


@pytest.mark.parametrize(
    ("tail", "outcome"),
    [
        ([completion(None, "stop"), DONE], rs.Outcome.COMPLETED),
        ([completion('"finish_reason":null'), completion(None, "length")], rs.Outcome.INCOMPLETE),
        ([b'event: error\ndata: {"message":"it broke"}\n\n'], rs.Outcome.FAILED),
        ([b'data: {"error":{"message":"it broke"}}\n\n'], rs.Outcome.FAILED),
        ([completion('say "error" or {"error": 1}'), completion(None, "stop")], rs.Outcome.COMPLETED),
    ],
)
async def test_the_end_of_a_chat_is_seen_among_chunks_that_go_unread(rig: Rig, tail: list[bytes], outcome: rs.Outcome) -> None:
    blocks = [*SAID, *tail]
    response, chunks = await rig.read(rig.client(lambda request: Reply(blocks, "rst")), "POST", CHAT, json=ASK)
    assert chunks == blocks
    assert rs.stream_of(response).outcome is outcome
    assert rs.stream_of(response).stats.events == len(blocks)


async def test_half_a_chat_is_an_error_though_it_went_unread(rig: Rig) -> None:
    with pytest.raises(rs.StreamInterrupted) as caught:
        await rig.read(rig.client(lambda request: Reply(SAID)), "POST", CHAT, json=ASK)
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 60


def test_most_of_a_chat_goes_unread() -> None:
    quiet = rs.protocols.OpenAIChat().quiet
    assert all(map(quiet, SAID))
    assert not quiet(completion(None, "stop"))
    assert quiet(completion('"error": "finish_reason": "stop"'))


# --- interrupts


class Interrupts:
    """Ctrl-C at the n-th call of something, behind or in front of what it does."""

    def __init__(self, at: int, *, behind: bool) -> None:
        self.left, self.behind = at, behind

    def around(self, call: Any) -> Any:
        def interrupted(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.behind:
                raise KeyboardInterrupt
            found = call(*args, **options)
            if self.left == 0:
                raise KeyboardInterrupt
            return found

        return interrupted


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind"])
@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (Skimmer, "skim", 30),
        (Skimmer, "skim", 700),
        (Unread, "_pass_over", 1),
        (Ledger, "pass_over", 1),
        (VerbatimDecoder, "pass_over", 1),
        (Machine, "settle", 2),
        (VerbatimDecoder, "read_late", 2),
    ],
)
async def test_an_interrupt_leaves_the_place_where_the_reader_is(
    rig: Rig, owner: Any, name: str, at: int, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rig.row.driver == "trio":
        pytest.skip("the generators of the library's response, above us, are left to the collector, with us or without")
    blocks = [token(number) for number in range(1, 1201)]
    client = rig.client(lambda request: Reply(rest(request, blocks)))
    response = await rig.send(client, "GET", URL)
    stream, chunks = rs.stream_of(response), []
    reader = rig.reader(response)
    await rig.drain(response, chunks, most=20, reader=reader)
    stream.checkpoint  # noqa: B018 - looking reads
    monkeypatch.setattr(owner, name, Interrupts(at, behind=behind).around(getattr(owner, name)))
    stream.skim = None  # it was bound before
    interrupted = False
    try:
        for most in range(100, 1300, 100):
            await rig.drain(response, chunks, most=most, reader=reader)
            stream.stats  # noqa: B018
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted
    monkeypatch.undo()
    await rig.close(response)
    assert rig.closed
    handed_out = len(chunks)
    assert chunks == blocks[:handed_out]
    assert handed_out - 1 <= stream.checkpoint.offset <= handed_out
    assert stream.checkpoint.cursor == str(stream.checkpoint.offset)
