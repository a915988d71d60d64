"""
The whole resumable stream against bare decoding: `resumable_stream.connect()` and its loop, less the network.

A client answers from memory, so both sides get the same chunks from a plain iterator. Ours does all it does for a user:
decode, watch for repeats and gaps, keep the position, look at the clocks, find the end. The peer decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import httpx
from corpora import cut
from decode import HEADERS, read_httpx_sse, run
from measure import Measured, Size, cpu_seconds, in_turn, ratio, ratios

import resumable_stream as rs
from resumable_stream.protocols import CursorProtocol

__all__ = ["MemoryClient", "json_number", "stream", "whole"]


class _Chunks(httpx.SyncByteStream):
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


class MemoryClient(httpx.Client):
    """A client whose every answer is the same event stream."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__(transport=httpx.MockTransport(_unused))  # a transport of its own would load certificates
        self._chunks = chunks

    def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
        return httpx.Response(200, headers=HEADERS, stream=_Chunks(self._chunks), request=request)


def _unused(_: httpx.Request) -> httpx.Response:
    raise AssertionError("nothing is sent")


def json_number() -> CursorProtocol:
    """OpenAI's Responses as a user would declare it: the number stands in the JSON."""
    return CursorProtocol(read="sequence_number", send="query:starting_after", sequence="contiguous")


def stream(chunks: Iterable[bytes], protocol: Any = None) -> Iterator[Any]:
    """Read as a user does."""
    with rs.connect("GET", "http://localhost/", client=MemoryClient(chunks), protocol=protocol) as events:
        yield from events


def _run(client: MemoryClient, make: Callable[[], Any]) -> int:
    number = 0
    with rs.connect("GET", "http://localhost/", client=client, protocol=make()) as events:
        for _ in events:
            number += 1
    return number


def _no_protocol() -> None:
    """It is detected, as plain SSE."""


def whole(names: Sequence[str], how: str, size: Size, *, protocol: Callable[[], Any] = _no_protocol) -> Measured:
    """`httpx-sse`, decoding only, against the whole stream: times faster."""
    found = {}
    for corpus in names:
        chunks = cut(corpus, size.events, how)
        check(corpus, how, protocol)
        taken = in_turn(
            {
                "peer": partial(cpu_seconds, partial(run, read_httpx_sse, chunks)),
                "ours": partial(cpu_seconds, partial(_run, MemoryClient(chunks), protocol)),
            },
            size.rounds,
        )
        found[corpus] = ratio(taken["peer"], taken["ours"])
    return ratios(found)


def check(corpus: str, how: str, protocol: Callable[[], Any]) -> None:
    chunks = cut(corpus, 200, how)
    theirs = [(event.event, event.data) for event in read_httpx_sse(chunks)]
    seen = list(stream(chunks, protocol()))
    assert [(event.event, event.data) for event in seen] == theirs, f"the stream differs on {corpus}"
    if corpus != "opaque_ids":
        assert [event.sequence for event in seen[20:199]] == list(range(20, 199)), (
            "the numbers are not followed: nothing would be compared"
        )
