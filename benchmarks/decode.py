"""
Decoding alone: chunks in, events out, no sockets.

Each reader takes a list of chunks and iterates over all events. `httpx-sse` gets the minimum that it accepts: an object with
headers and an `iter_text()` that decodes each chunk with the standard library's incremental decoder. An `httpx.Response`
around the same chunks is 20 to 30 % slower one event at a time; a separate row shows it for information.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import httpx
import httpx_sse
from corpora import LF, cut
from measure import Measured, Size, cpu_seconds, in_turn, ratio, ratios

from resumable_stream.framing import SSEDecoder

__all__ = ["PEERS", "compare", "parse", "read_httpx_sse", "run"]

HEADERS = {"content-type": "text/event-stream"}
# 1-byte chunks take `httpx-sse` 150 µs an event.
_SMALL = 60


class _Text:
    """The part of a response that httpx-sse looks at."""

    headers = HEADERS

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def iter_text(self) -> Iterator[str]:
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        for chunk in self._chunks:
            yield decode(chunk)


class _Raw(httpx.SyncByteStream):
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


def read_httpx_sse(chunks: Iterable[bytes]) -> Iterator[Any]:
    return httpx_sse.EventSource(_Text(chunks)).iter_sse()  # type: ignore[arg-type]


def read_httpx_response(chunks: Iterable[bytes]) -> Iterator[Any]:
    return httpx_sse.EventSource(httpx.Response(200, headers=HEADERS, stream=_Raw(chunks))).iter_sse()


def read_ld_eventsource(chunks: Iterable[bytes]) -> Iterator[Any]:
    reader = import_module("ld_eventsource.reader")
    source = reader._SSEReader(reader._BufferedLineReader.lines_from(chunks))
    events: Iterator[Any] = source.events_and_comments()
    return events


def read_httpx2(chunks: Iterable[bytes]) -> Iterator[Any]:
    httpx2 = import_module("httpx2")

    class Raw(httpx2.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            return iter(chunks)

    request = httpx2.Request("GET", "http://localhost/")
    return iter(httpx2.EventSource(httpx2.Response(200, headers=HEADERS, stream=Raw(), request=request)))


def read_openai(chunks: Iterable[bytes]) -> Iterator[Any]:
    events: Iterator[Any] = import_module("openai._streaming").SSEDecoder().iter_bytes(iter(chunks))
    return events


def read_anthropic(chunks: Iterable[bytes]) -> Iterator[Any]:
    events: Iterator[Any] = import_module("anthropic._streaming").SSEDecoder().iter_bytes(iter(chunks))
    return events


PEERS: dict[str, Callable[[Iterable[bytes]], Iterator[Any]]] = {
    "httpx-sse": read_httpx_sse,
    "httpx-sse over httpx.Response": read_httpx_response,
    "launchdarkly-eventsource": read_ld_eventsource,
    "httpx2 EventSource": read_httpx2,
    "openai SSEDecoder": read_openai,
    "anthropic SSEDecoder": read_anthropic,
}


def run(read: Callable[[Sequence[bytes]], Iterator[Any]], chunks: Sequence[bytes]) -> int:
    """Read to the end."""
    number = 0
    for _ in read(chunks):
        number += 1
    return number


def run_ours(chunks: Sequence[bytes]) -> int:
    number = 0
    feed = SSEDecoder().feed
    for chunk in chunks:
        for _ in feed(chunk):
            number += 1
    return number


def parse(names: Sequence[str], how: str, size: Size) -> Measured:
    """`httpx-sse` against the decoder: times faster, the geometric mean of some corpora."""
    found = {}
    for corpus in names:
        chunks = cut(corpus, _SMALL if how == "byte" else size.events, how)
        check(corpus, how)
        taken = in_turn(
            {
                "peer": partial(cpu_seconds, partial(run, read_httpx_sse, chunks)),
                "ours": partial(cpu_seconds, partial(run_ours, chunks)),
            },
            size.rounds,
        )
        found[corpus] = ratio(taken["peer"], taken["ours"])
    return ratios(found)


def check(corpus: str, how: str) -> None:
    """Check that both give the same events; otherwise the comparison is void."""
    chunks = cut(corpus, _SMALL, how)
    theirs = [(event.event, event.data, event.id) for event in read_httpx_sse(chunks)]
    decoder = SSEDecoder()
    ours = [(event.event, event.data, event.id) for chunk in chunks for event in decoder.feed(chunk)]
    assert ours == theirs, f"decoders differ on {corpus}"


def compare(how: str, size: Size) -> dict[str, float]:
    """Every installed decoder: times faster than `httpx-sse`, the geometric mean of the LF corpora."""
    found: dict[str, dict[str, list[float]]] = {}
    for corpus in LF:
        chunks = cut(corpus, size.events, how)
        samples = {"resumable_stream": partial(cpu_seconds, partial(run_ours, chunks))}
        for name, read in PEERS.items():
            try:
                run(read, chunks[:2])
            except (ImportError, AttributeError):
                continue  # not installed, or its modules have moved
            samples[name] = partial(cpu_seconds, partial(run, read, chunks))
        taken = in_turn(samples, size.rounds)
        for name in taken:
            found.setdefault(name, {})[corpus] = ratio(taken["httpx-sse"], taken[name])
    return {name: ratios(of).value for name, of in found.items()}
