"""Coded bodies: identity is asked for, what comes coded all the same is decoded, and a body that cannot be decoded is a cut."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import brotli
import pytest
import zstandard

import resumable_stream as rs
from resumable_stream import Outcome, Timeouts
from resumable_stream._drivers import coding as coding_module
from resumable_stream.protocols import ByteRange, LastEventID
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ScriptedClient, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
pytestmark = pytest.mark.usefixtures("spotless")

ALL = [str(n) for n in range(1, 13)]
SSE = {"content-type": "text/event-stream"}
FRAMES = [event.encode() for event in numbered(12)]


async def ids(row: Row, stream: Any) -> list[str]:
    return [event.id for event in await row.read(stream)]


def gzipped(frames: list[bytes]) -> list[bytes]:
    """As a server with a flush after each event: every part can be read when it has come."""
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(frame) + packer.flush(zlib.Z_SYNC_FLUSH) for frame in frames]
    return [*parts, packer.flush()]


def brotlied(frames: list[bytes]) -> list[bytes]:
    packer = brotli.Compressor()
    return [packer.process(frame) + packer.flush() for frame in frames] + [packer.finish()]


def zstandarded(frames: list[bytes]) -> list[bytes]:
    packer = zstandard.ZstdCompressor().compressobj()
    return [packer.compress(frame) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for frame in frames] + [packer.flush()]


def deflated(frames: list[bytes]) -> list[bytes]:
    packer = zlib.compressobj()
    return [packer.compress(frame) + packer.flush(zlib.Z_SYNC_FLUSH) for frame in frames] + [packer.flush()]


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzipped),
        ("deflate", deflated),
        ("br", brotlied),
        ("zstd", zstandarded),
        ("GZIP", gzipped),
        ("x-unknown", list),
    ],
)
async def test_a_coded_body_is_decoded_although_identity_was_asked(
    row: Row, scripted_client: Scripted, coding: str, pack: Callable[[list[bytes]], list[bytes]]
) -> None:
    headers = {**SSE, "content-encoding": coding}
    done = [*FRAMES, b"data: [DONE]\n\n"]
    script = scripted_client(
        [Reply(headers=headers, body=[*pack(done)[:5], "read_error"]), Reply(headers=headers, body=pack(done[5:]))], row.family
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script))
    assert await ids(row, stream) == [*ALL, "12"]
    assert stream.outcome is Outcome.COMPLETED
    assert script.requests[0].headers["accept-encoding"] == "identity"
    assert script.requests[1].last_event_id == "5"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
async def test_a_coding_that_is_announced_over_plain_text_is_a_cut(row: Row, scripted_client: Scripted, coding: str) -> None:
    """rossoctl/cortex#656: a proxy unpacks the body and leaves the header. What cannot be decoded is no answer, and no end."""
    plain = Reply(headers={**SSE, "content-encoding": coding}, body=[*FRAMES, b"data: [DONE]\n\n"])
    script = scripted_client([plain, *[plain] * 3], row.family)
    options: Any = {"client": row.scripted(script), "protocol": LastEventID(end="[DONE]")}
    with pytest.raises(rs.StreamInterrupted, match="CodingError") as lost:
        await row.read(row.connect("POST", "https://example.com/s", **options))
    assert len(script.requests) == 1
    assert lost.value.checkpoint is not None and lost.value.checkpoint.offset == 0
    # A GET is asked again; the next answer may come by a way without such a proxy.
    whole = Reply(headers=SSE, body=[*FRAMES, b"data: [DONE]\n\n"])
    again = scripted_client([plain, whole], row.family)
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(again))
    assert await ids(row, stream) == [*ALL, "12"]


@pytest.mark.parametrize("cut", [None, 7], ids=["whole", "in pieces"])
async def test_a_coded_body_of_several_members_is_decoded_to_its_end(
    row: Row, scripted_client: Scripted, cut: int | None
) -> None:
    packed = b"".join(map(gzip.compress, [*FRAMES, b"data: [DONE]\n\n"]))
    parts = [packed] if cut is None else [packed[at : at + cut] for at in range(0, len(packed), cut)]
    script = scripted_client([Reply(headers={**SSE, "content-encoding": "gzip"}, body=parts)], row.family)
    stream = row.connect("POST", "https://example.com/s", client=row.scripted(script), protocol=LastEventID(end="[DONE]"))
    assert await ids(row, stream) == [*ALL, "12"]
    assert stream.outcome is Outcome.COMPLETED


async def test_events_of_a_coded_body_come_one_by_one(row: Row, scripted_client: Scripted) -> None:
    seen: list[str] = []
    marks: list[int] = []
    parts: list[Any] = []
    for part in gzipped(FRAMES):
        parts += [lambda: marks.append(len(seen)), part]
    script = scripted_client([Reply(headers={**SSE, "content-encoding": "gzip"}, body=parts), Reply(status=204)], row.family)
    async with row.connect("GET", "https://example.com/s", client=row.scripted(script)) as stream:
        async for event in stream:
            seen.append(event.id)
    assert seen == ALL
    assert marks == list(range(13)), "an event waited for later bytes"


async def test_a_body_that_cannot_be_decoded_is_a_cut(row: Row, scripted_client: Scripted) -> None:
    headers = {**SSE, "content-encoding": "gzip"}
    whole = gzipped(FRAMES[:5])
    script = scripted_client(
        [
            Reply(headers=headers, body=[*whole[:5], b"\xff\xfe not gzip at all \x00" * 5]),
            Reply(headers=headers, body=[b"not gzip at all"]),
            Reply(body=[*FRAMES[5:], b"data: [DONE]\n\n"]),
        ],
        row.family,
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script))
    assert await ids(row, stream) == [*ALL, "12"]
    assert [request.last_event_id for request in script.requests] == [None, "5", "5"]


async def test_a_coded_body_that_ends_inside_its_coding_is_no_end(row: Row, scripted_client: Scripted) -> None:
    headers = {**SSE, "content-encoding": "gzip"}
    packed = b"".join(gzipped(FRAMES))
    half = zlib.decompressobj(wbits=31).decompress(packed[: len(packed) // 2])
    script = scripted_client(
        [Reply(headers=headers, body=[packed[: len(packed) // 2]]), Reply(body=[b"data: [DONE]\n\n"])], row.family
    )
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script), protocol=LastEventID(end="[DONE]"))
    await row.read(stream)
    assert half.count(b"\n\n") == stream.stats.events - 1
    assert len(script.requests) == 2


async def test_a_coding_that_nobody_here_can_decode_is_no_empty_stream(
    row: Row, scripted_client: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("no brotli here")

    monkeypatch.setitem(coding_module._CODINGS, "br", missing)
    headers = {**SSE, "content-encoding": "br"}
    script = scripted_client([Reply(headers=headers, body=[b"\x1b\x0f\x00\xf8\xa5[\xca\xe6\xe4\x85"])] * 20, row.family)
    stream = row.connect(
        "GET", "https://example.com/s", client=row.scripted(script), retry=rs.RetryPolicy(attempts=2, wait=lambda state: 0.0)
    )
    with pytest.raises(rs.ResumableStreamError):
        await row.read(stream)


async def test_a_coded_body_is_cut_by_silence_on_time(row: Row, flaky_server: Start) -> None:
    answers = iter([gzipped(FRAMES[:5])[:5]])

    def answer(request: RecordedRequest) -> Reply | None:
        return None if request.last_event_id is None else Reply(body=b"".join(FRAMES[5:]) + b"data: [DONE]\n\n")

    server = flaky_server(
        next(answers), [Fault.cut(after_events=5, how="silence")], headers={"content-encoding": "gzip"}, on_request=answer
    )
    stream = row.connect("GET", server.url, timeouts=Timeouts(idle=0.1))
    assert await ids(row, stream) == [*ALL, "12"]
    assert stream.stats.reconnects >= 1


async def test_leaving_a_coded_body_in_the_middle_closes_it(row: Row, flaky_server: Start) -> None:
    server = flaky_server(gzipped(FRAMES), [Fault.cut(after_events=5, how="silence")], headers={"content-encoding": "gzip"})
    async with row.connect("GET", server.url) as stream:
        async for event in stream:
            if event.id == "3":
                break
    assert await row.disconnected(server)
    assert stream.checkpoint.offset == 3


async def test_a_coded_error_document_is_readable(row: Row, scripted_client: Scripted) -> None:
    body = b'{"error": {"message": "no such model"}}'
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    script = scripted_client([Reply(status=400, headers=headers, body=[gzip.compress(body)])], row.family)
    with pytest.raises(rs.ResponseRejected, match="no such model") as caught:
        await row.connect("GET", "https://example.com/s", client=row.scripted(script)).open()
    assert caught.value.body == body
    assert isinstance(caught.value.__cause__, type(None))


async def test_an_error_document_is_read_no_further_than_64_kib(row: Row, scripted_client: Scripted) -> None:
    read: list[int] = []
    script = scripted_client(
        [Reply(status=400, body=[part for _ in range(100) for part in (b"x" * 4096, lambda: read.append(1))])]
    )
    client = row.scripted(scripted_client(script._script, row.family))
    with pytest.raises(rs.ResponseRejected) as caught:
        await row.connect("GET", "https://example.com/s", client=client).open()
    assert len(caught.value.body) == 65536
    assert len(read) <= 17


async def test_a_coded_download_is_delivered_and_not_resumed(row: Row, scripted_client: Scripted) -> None:
    # Offsets would be those of the coded bytes, which nobody sees.
    document = random.Random(1).randbytes(5000)
    packed = gzip.compress(document)
    headers = {"content-type": "application/octet-stream", "content-encoding": "gzip", "etag": '"v1"', "accept-ranges": "bytes"}
    script = scripted_client([Reply(headers=headers, body=[packed])], row.family)
    stream = row.connect("GET", "https://example.com/f", client=row.scripted(script), protocol=ByteRange())
    assert b"".join(chunk.data for chunk in await row.read(stream)) == document
    script = scripted_client([Reply(headers=headers, body=[packed[:3000], "read_error"])], row.family)
    with pytest.raises(rs.StreamInterrupted):
        await row.read(row.connect("GET", "https://example.com/f", client=row.scripted(script), protocol=ByteRange()))


async def test_a_small_body_that_decodes_to_a_huge_one_is_bounded(row: Row, scripted_client: Scripted) -> None:
    packed = gzip.compress(b"data: " + b"x" * 10_000_000)
    headers = {**SSE, "content-encoding": "gzip"}
    script = scripted_client([Reply(headers=headers, body=[packed])], row.family)
    stream = row.connect(
        "GET", "https://example.com/s", client=row.scripted(script), limits=rs.Limits(event_bytes=10_000, line_bytes=10_000)
    )
    with pytest.raises(rs.EventTooLarge):
        await row.read(stream)
