"""
Decoding WebSocket frames alone: chunks in, texts out, no sockets.

Each event of a corpus is the payload of one text frame. All are read down to the text: `websockets` hands out bytes, so its are
decoded here, as its own clients do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from corpora import LF, events
from measure import Measured, Size, Skipped, cpu_seconds, in_turn, ratio, ratios

from resumable_stream.framing import WebSocketDecoder
from resumable_stream.framing.websocket import TEXT, encode

__all__ = ["parse"]


def chunks_of(corpus: str, number: int, how: str) -> list[bytes]:
    """A corpus as text frames: `"64k"`: many in each chunk, as in a replay. `"event"`: one in each, as in a live stream."""
    frames = [encode(TEXT, event[event.index(b"data: ") + 6 : -2]) for event in events(corpus, number)]
    if how == "event":
        return frames
    body = b"".join(frames)
    return [body[start : start + 65536] for start in range(0, len(body), 65536)]


def read_ours(chunks: Sequence[bytes]) -> Iterator[str]:
    feed = WebSocketDecoder(new_mask=lambda: b"mask").feed
    for chunk in chunks:
        for event in feed(chunk):
            yield event.data  # type: ignore[misc]


def read_websockets(chunks: Sequence[bytes]) -> Iterator[str]:
    client, protocol, uri = (import_module(f"websockets.{name}") for name in ("client", "protocol", "uri"))
    connection: Any = client.ClientProtocol(uri.parse_uri("ws://localhost/"), state=protocol.State.OPEN)
    for chunk in chunks:
        connection.receive_data(chunk)
        for frame in connection.events_received():
            yield str(frame.data, "utf-8")


def read_wsproto(chunks: Sequence[bytes]) -> Iterator[str]:
    made: Any = import_module("wsproto.connection")
    connection = made.Connection(made.ConnectionType.CLIENT)
    pending = ""
    for chunk in chunks:
        connection.receive_data(chunk)
        for message in connection.events():
            # A frame that a chunk cuts comes in two events.
            pending += message.data
            if message.message_finished:
                yield pending
                pending = ""


PEERS: dict[str, Callable[[Sequence[bytes]], Iterator[str]]] = {"websockets": read_websockets, "wsproto": read_wsproto}


def run(read: Callable[[Sequence[bytes]], Iterator[str]], chunks: Sequence[bytes]) -> int:
    """Read to the end."""
    number = 0
    for _ in read(chunks):
        number += 1
    return number


def parse(how: str, size: Size) -> Measured:
    """`websockets` without I/O against the decoder: times faster, the geometric mean of the LF corpora; beside it `wsproto`."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in PEERS}
    for corpus in LF:
        chunks = chunks_of(corpus, size.events, how)
        check(corpus, how)
        samples = {"ours": partial(cpu_seconds, partial(run, read_ours, chunks))}
        samples |= {name: partial(cpu_seconds, partial(run, read, chunks)) for name, read in PEERS.items()}
        taken = in_turn(samples, size.rounds)
        for name in PEERS:
            found[name][corpus] = ratio(taken[name], taken["ours"])
    result = ratios(found["websockets"])
    beside = ratios(found["wsproto"])
    return Measured(result.value, result.low, result.high, {**result.parts, "wsproto": beside.value})


def check(corpus: str, how: str) -> None:
    """All must say the same, or the comparison is void."""
    chunks = chunks_of(corpus, 500, how)
    ours = list(read_ours(chunks))
    assert len(ours) == 500
    for name, read in PEERS.items():
        try:
            theirs = list(read(chunks))
        except ImportError as error:
            raise Skipped(f"needs {name}") from error
        assert theirs == ours, f"{name} differs on {corpus}"
