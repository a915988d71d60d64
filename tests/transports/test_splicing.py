"""Bytes out are the bytes of the undisturbed body, wherever and however the connections below are cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream.framing import SSEDecoder
from resumable_stream.protocols import LastEventID
from resumable_stream.testing import Fault, FlakyServer
from tests.cutting import Where

from .conftest import CUTS, Reply, Rig, cut

URL = "https://api.example.com/stream"

# Comments in front, names, an id without an event, no id of its own, twice the same, two lines, and what ends it.
DRIVERS = ("sync", "asyncio", "trio")
BLOCKS = [
    b": hello\n\nid: 1\ndata: one\n\n",
    b"id: 2\nevent: delta\ndata: two\ndata: lines\n\n",
    "data: nö id 🦊\n\n".encode(),
    b"data: same\n\n",
    b"data: same\n\n",
    b": ping\n\nid: 3\n\n",
    b"retry: 0\nid:4\ndata:four\n\n",
    b"id: 5\ndata: five\n\n",
    b"data: [DONE]\n\n",
]


def server(blocks: list[bytes], cuts: list[tuple[int, str]], size: int) -> Callable[[Any], Reply]:
    """Plain SSE: from the block behind the last id on. Each cut is of one connection."""
    left = list(cuts)

    def answer(request: Any) -> Reply:
        start, cursor = 0, request.headers.get("last-event-id")
        for index, block in enumerate(blocks):
            if cursor is not None and f"id:{cursor}" in block.decode().replace("id: ", "id:").replace("\r", "\n").split("\n"):
                start = index + 1
        body = b"".join(blocks[start:])
        position, how = left.pop(0) if left else (len(body), "close")
        return cut(body, position, how, size)

    return answer


@pytest.mark.parametrize("how", CUTS)
async def test_wherever_it_is_cut(rig: Rig, how: str, where: Where) -> None:
    answers: list[Callable[[Any], Reply]] = []
    client = rig.client(lambda request: answers[-1](request))
    for turn, position in enumerate(where([block.replace(b"\n", b"\r\n") for block in BLOCKS])):
        # The line ends take turns; of each family, the three drivers try all three at every place.
        end = (b"\n", b"\r\n", b"\r")[(turn + DRIVERS.index(rig.row.driver)) % 3]
        blocks = [block.replace(b"\n", end) for block in BLOCKS]
        whole = b"".join(blocks)
        size = (len(whole), 1, 7, 30)[position % 4]
        answers.append(server(blocks, [(position, how)], size))
        response, chunks = await rig.read(client, "GET", URL)
        body = b"".join(chunks)
        place = f"{how} at {position}"
        if position < len(blocks[0]) and not body.startswith(b":"):
            # A comment in front of the first event is sent again, with the event.
            body = b": hello" + end + end + body
        ended = whole[:position].rstrip(b"\r\n") == whole.rstrip(b"\r\n") and position < len(whole)
        if ended and how in ("close", "half"):
            # The last event is the end without its empty line; the one that its reader gets is ours.
            assert SSEDecoder().feed(chunks[-1]), place
            assert b"".join(chunks[:-1]) == b"".join(blocks[:-1]), place
            body = body.rstrip(b"\r\n") + end + end
            chunks[-1] = chunks[-1].rstrip(b"\r\n") + end + end
        assert body == whole, place
        stream = rs.stream_of(response)
        assert stream.outcome is rs.Outcome.COMPLETED, place
        # Every chunk is whole events, so that a reader of any kind may be cut off here.
        assert all(SSEDecoder().feed(chunk) and chunk.endswith(end + end) for chunk in chunks), place


async def test_cut_again_and_again(rig: Rig) -> None:
    whole = b"".join(BLOCKS)
    for step in range(10, 60, 7):
        cuts = [(position, CUTS[position % 5]) for position in range(step, step * 12, step)]
        response, chunks = await rig.read(rig.client(server(BLOCKS, cuts, 5)), "GET", URL)
        assert b"".join(chunks) == whole
        assert rs.stream_of(response).stats.reconnects > 1


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
async def test_over_sockets(rig: Rig, how: Any) -> None:
    frames = [f"id: {n}\ndata: token {n}\n\n" for n in range(1, 31)] + ["data: [DONE]\n\n"]
    whole = "".join(frames).encode()
    client = rig.client()
    for at in range(0, len(whole), 83):
        with FlakyServer(frames, [Fault.cut(after_bytes=at, how=how), Fault.cut(after_bytes=100, how=how)]) as flaky:
            response, chunks = await rig.read(client, "GET", flaky.url)
            assert b"".join(chunks) == whole, f"{how} at {at}"
            assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED


async def test_a_server_that_ignores_the_cursor_doubles_nothing(rig: Rig) -> None:
    answers = [cut(b"".join(BLOCKS), 70, "rst", 9), cut(b"".join(BLOCKS), 10_000, "close", 9)]
    _, chunks = await rig.read(rig.client(lambda request: answers.pop(0)), "GET", URL)
    assert b"".join(chunks) == b"".join(BLOCKS)


async def test_repeats_are_dropped_with_their_bytes(rig: Rig) -> None:
    answers = [Reply([b"".join(BLOCKS[:5])], "rst"), Reply([b": again\n\n", *BLOCKS[1:]])]
    _, chunks = await rig.read(rig.client(lambda request: answers.pop(0)), "GET", URL)
    assert b"".join(chunks) == b"".join(BLOCKS)


async def test_the_head_is_that_of_the_first_connection(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        first = "last-event-id" not in request.headers
        reply = server(BLOCKS, [(60, "rst")] if first else [], 8)(request)
        reply.headers |= {"x-request-id": "first" if first else "second", "content-length": "999", "set-cookie": "a=b"}
        return reply

    response, chunks = await rig.read(rig.client(answer), "GET", URL)
    assert b"".join(chunks) == b"".join(BLOCKS)
    assert response.headers["x-request-id"] == "first"
    assert response.headers["set-cookie"] == "a=b"
    assert "content-length" not in response.headers


async def test_json_lines(rig: Rig) -> None:
    lines = [b'{"message":{"content":"a"},"done":false}\n', b"\n", b'{"done":true}']
    reply = Reply([b"".join(lines)[at : at + 5] for at in range(0, 60, 5)], headers={"content-type": "application/x-ndjson"})
    _, chunks = await rig.read(rig.client(lambda request: reply), "POST", "https://x.example/api/chat", json={"model": "m"})
    assert b"".join(chunks) == b"".join(lines)


async def test_a_named_protocol(rig: Rig) -> None:
    whole = bytes(range(256)) * 8
    sent: list[str | None] = []

    def answer(request: Any) -> Reply:
        wanted = request.headers.get("range")
        sent.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        headers = {"content-type": "application/octet-stream", "etag": '"v1"', "accept-ranges": "bytes"}
        if start:
            headers["content-range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        headers["content-length"] = str(len(whole) - start)
        body = whole[start:]
        reply = Reply([body[:700]], "rst") if not start else Reply([body])
        reply.status, reply.headers = 206 if start else 200, headers
        return reply

    # Nobody asked for files to be spliced.
    with pytest.raises(rig.module.ReadError):
        await rig.read(rig.client(answer), "GET", URL)
    _, chunks = await rig.read(rig.client(answer, protocols=[rs.protocols.ByteRange()]), "GET", URL)
    assert b"".join(chunks) == whole
    assert sent[-1] == "bytes=700-"


async def test_an_id_without_an_event_stays_though_a_repeat_follows_it(rig: Rig) -> None:
    first = [b"id: 1\ndata: one\n\n", b"id: 2\ndata: two\n\n", b"id: 3\n\n"]
    again = [b"id: 2\ndata: two\n\n", b"id: 4\ndata: four\n\n", b"data: [DONE]\n\n"]
    answers = [Reply(first, "rst"), Reply(again)]
    _, chunks = await rig.read(rig.client(lambda request: answers.pop(0)), "GET", URL)
    assert b"".join(chunks) == b"".join([*first, *again[1:]])


async def test_an_id_without_an_event_stays_where_batches_are_taken_apart(rig: Rig) -> None:
    class Batches(LastEventID):
        def unpack(self, event: Any) -> Any:
            return [event]

    first = [b"id: 1\ndata: one\n\n", b"id: 3\n\n"]
    again = [b"id: 4\ndata: four\n\n", b"data: [DONE]\n\n"]
    answers = [Reply(first, "rst"), Reply(again)]
    client = rig.client(lambda request: answers.pop(0), protocols=lambda request: Batches())
    _, chunks = await rig.read(client, "GET", URL)
    assert b"".join(chunks) == b"".join([*first, *again])


@pytest.mark.parametrize("name", ["e-{}", "{}"])
@pytest.mark.parametrize(("before", "again"), [(3, 2), (30, 1), (30, 30), (700, 2), (5000, 3)])
async def test_a_run_told_again_is_handed_on_once(rig: Rig, before: int, again: int, name: str) -> None:
    """A seam within one answer, also where the events before it went out unread; then one more after a cut."""
    if name == "{}" and before == 3:
        pytest.skip("ids count after eight events")
    blocks = [f"id: {name.format(n)}\ndata: a long enough text {n % 2}\n\n".encode() for n in range(1, before + 3)]
    end = b"data: [DONE]\n\n"
    told = [*blocks[:before], *blocks[before - again :]]

    def answer(request: Any) -> Reply:
        if request.headers.get("last-event-id") is None:
            return Reply([*told[:-1], told[-1][:10]], "rst")
        return Reply([*blocks[before - again :], end])

    response, chunks = await rig.read(rig.client(answer), "GET", URL)
    assert b"".join(chunks) == b"".join([*blocks, end])
    stream = rs.stream_of(response)
    assert stream.outcome is rs.Outcome.COMPLETED
    assert stream.stats.duplicates >= 2 * again


async def test_one_id_on_every_event_is_handed_on_whole(rig: Rig) -> None:
    blocks = [b"id: msg_1\ndata: a long enough text\n\n"] * 700 + [b"data: [DONE]\n\n"]
    response, chunks = await rig.read(rig.client(lambda request: Reply(blocks)), "GET", URL)
    assert chunks == blocks
    assert rs.stream_of(response).stats.duplicates == 0


async def test_between_two_attempts_it_waits(rig: Rig) -> None:
    gone = [Reply(BLOCKS[:2], "rst"), Reply(status=503, headers={}), Reply(status=503, headers={}), Reply(BLOCKS[2:])]
    waits: list[int] = []

    def wait(state: Any) -> float:
        waits.append(state.attempt_number)
        return 0.01

    client = rig.client(lambda request: gone.pop(0), retry=rs.RetryPolicy(wait=wait))
    _, chunks = await rig.read(client, "GET", URL)
    assert b"".join(chunks) == b"".join(BLOCKS)
    assert len(waits) >= 2
