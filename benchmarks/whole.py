"""
The whole resumable stream against bare decoding, both fed from memory.

Ours is everything between the HTTP client and the user's loop: decode, detect repeats and gaps, keep the position, look for the
end. The peer only decodes. The end-to-end rows add the drivers and the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from corpora import cut
from decode import HEADERS, read_httpx_sse, run
from measure import Measured, Size, cpu_seconds, in_turn, ratio, ratios

import resumable_stream as rs
from resumable_stream._contract import Head, StreamState
from resumable_stream._core.actions import Connect, Read
from resumable_stream._core.machine import Machine
from resumable_stream._core.settings import Settings
from resumable_stream.protocols import CursorProtocol, LastEventID, detect

__all__ = ["json_number", "stream", "whole"]

URL = "http://localhost/"


def json_number() -> CursorProtocol:
    """OpenAI's Responses as a user would declare it: the number is in the JSON."""
    return CursorProtocol(read="sequence_number", send="query:starting_after", sequence="contiguous")


def opened(protocol: Any) -> Machine:
    """A machine that reads the body of its first response."""
    settings = Settings(
        timeouts=rs.Timeouts(),
        limits=rs.Limits(),
        delay=lambda state: None,
        jitter=lambda: 0.0,
        statuses=frozenset(),
        max_server_wait=0.0,
    )
    machine = Machine(state=StreamState("GET", URL), protocol=protocol, detect=detect, settings=settings)
    assert isinstance(machine.next(0.0), Connect)
    machine.receive_head(Head(200, HEADERS, URL), 0.0, wall=0.0)
    assert isinstance(machine.next(0.0), Read)
    return machine


def stream(chunks: Iterable[bytes], protocol: Any = None) -> Iterator[Any]:
    """The events that the driver gets while the stream is live."""
    machine = opened(protocol or LastEventID())
    for chunk in chunks:
        yield from machine.receive_live(chunk)


def _run(chunks: Sequence[bytes], make: Callable[[], Any]) -> int:
    machine, number = opened(make()), 0
    receive = machine.receive_live
    for chunk in chunks:
        for _ in receive(chunk):
            number += 1
    return number


def whole(names: Sequence[str], how: str, size: Size, *, protocol: Callable[[], Any] = LastEventID) -> Measured:
    """`httpx-sse`, decoding only, against the whole stream: times faster."""
    found = {}
    for corpus in names:
        chunks = cut(corpus, size.events, how)
        check(corpus, how, protocol)
        taken = in_turn(
            {
                "peer": partial(cpu_seconds, partial(run, read_httpx_sse, chunks)),
                "ours": partial(cpu_seconds, partial(_run, chunks, protocol)),
            },
            size.rounds,
        )
        found[corpus] = ratio(taken["peer"], taken["ours"])
    return ratios(found)


def check(corpus: str, how: str, protocol: Callable[[], Any]) -> None:
    """Check that both sides see the same events and that the numbers are tracked; otherwise the comparison is void."""
    chunks = cut(corpus, 200, how)
    theirs = [(event.event, event.data) for event in read_httpx_sse(chunks)]
    seen = list(stream(chunks, protocol()))
    assert [(event.event, event.data) for event in seen] == theirs, f"the stream differs on {corpus}"
    if corpus != "opaque_ids":
        assert [event.sequence for event in seen[20:199]] == list(range(20, 199))
