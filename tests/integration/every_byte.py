"""
A short answer, cut after every byte in every way, read by an SDK over our transport, in process.

The rule, whatever the last bytes are: the SDK has the whole text, or it raises. The transport below ours is scripted, so one run
takes a millisecond or two and no byte need be left out; that sockets do the same is for the tests with a server.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .sdks import NO_WAITS, opened

if TYPE_CHECKING:
    from tests.conftest import Row

SHORT: Final = ["Hel", "lo, ", "wör", "ld"]
TEXT: Final = "".join(SHORT)
DONE: Final = b"data: [DONE]\n\n"

# Ends that are no cut by themselves: each is put after every whole event, and the body is closed, cleanly or not.
ODD: Final[Sequence[bytes]] = (
    DONE,
    b"data:[DONE]\n\n",
    b"data: [DONE]\r\n\r\n",
    b"data: [DONE]\r\r",
    b"data: [DONE] \n\n",
    b"data: [DONE]x\n\n",
    b"data: [DONE]\ndata: [DONE]\n\n",
    b"data: [DONE]",
    b"data: [DONE]\n",
    b"event: done\ndata: [DONE]\n\n",
    b"event: done\ndata: [DONE]\ndata: \n\n",
    b"id: 1\ndata: [DONE]\n\n",
    b"event: end\ndata: {}\n\n",
    b"event: end\ndata: null\n\n",
    b"event: ping\ndata: {}\n\n",
    b": \n\n",
    b": closed\n\n",
    b"data: \n\n",
    b"data\n\n",
    b"data: {}\n\n",
    b"data: null\n\n",
    b"data: []\n\n",
    b'data: ""\n\n',
    b'data: {"choices": []}\n\n',
    b'data: {"error": null}\n\n',
    b'data: {"error": ""}\n\n',
    b"data: {\n\n",
    b"data: }\n\n",
    b"data: \xff\xfe\n\n",
    b"data: \x00\n\n",
    b"\xef\xbb\xbfdata: [DONE]\n\n",
    b"id: 7\n\n",
    b"retry: 1\n\n",
    b"event: error\n\n",
    b"event: message_stop\n\n",
    b"\r\n\r\n\n\n",
    b"\x00",
    b"<html><body>502 Bad Gateway</body></html>",
    b"\n\n<html>\n\n",
)


class Answer(NamedTuple):
    """What the server sends, and how the connection ends: `rst`, `fin` (inside a chunk), or `clean`."""

    name: str
    body: bytes
    how: str


def answers(frames: Sequence[bytes]) -> Iterator[Answer]:
    body, half = b"".join(frames), frames[-2][: len(frames[-2]) // 2]
    for at in range(len(body) + 1):
        for how in ("rst", "fin", "clean"):
            yield Answer(f"{how} after byte {at}", body[:at], how)
        for name, more in (("[DONE]", DONE), ("a line feed and [DONE]", b"\n\n" + DONE), ("half an event", half)):
            yield Answer(f"{name} after byte {at}", body[:at] + more, "clean")
    for count in range(len(frames) + 1):
        front = b"".join(frames[:count])
        for odd in ODD:
            for how in ("clean", "rst"):
                yield Answer(f"{how} after event {count} and {odd!r}", front + odd, how)
                if odd != DONE:
                    yield Answer(f"{how} after event {count}, {odd!r} and [DONE]", front + odd + DONE, how)


def fewer(frames: Sequence[bytes], step: int = 7) -> Iterator[Answer]:
    """One of so many, for another reader of the same events. A prime, so that all kinds are among them."""
    return islice(answers(frames), 0, None, step)


def client(row: Row, answer: Callable[[], Answer | None]) -> Any:
    """
    A client of the row's library with our transport, over a scripted one.

    Args:
        answer: To the next request; `None`: 404, as whoever asks for the rest gets it.
    """
    library = row.module

    class Body(library.SyncByteStream, library.AsyncByteStream):  # type: ignore[misc, name-defined]
        def __init__(self, sent: Answer) -> None:
            self._sent = sent

        def _fail(self) -> None:
            if self._sent.how == "rst":
                raise library.ReadError("Connection reset by peer")
            if self._sent.how == "fin":
                raise library.RemoteProtocolError("peer closed connection without sending complete message body")

        def __iter__(self) -> Iterator[bytes]:
            if self._sent.body:
                yield self._sent.body
            self._fail()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            if self._sent.body:
                yield self._sent.body
            self._fail()

    def handle(request: Any) -> Any:
        sent = answer()
        if sent is None:
            return library.Response(404, headers={"content-type": "application/json"}, content=b"{}")
        return library.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(sent))

    transports = importlib.import_module(f"resumable_stream.transports.{row.family}")
    kind = transports.ResumableTransport if row.sync else transports.AsyncResumableTransport
    return row.client_class(transport=kind(library.MockTransport(handle), retry=NO_WAITS), trust_env=False)


class Tally(NamedTuple):
    """How often the answer was whole, how often it raised, and what was wrong."""

    whole: int
    raised: int
    wrong: list[str]


async def tally(
    row: Row,
    make: Callable[[Any], Any],
    read: Callable[[Any, list[Any]], Awaitable[Any]],
    told: Iterator[Answer],
    text_of: Callable[[list[Any]], str],
    *,
    whole: str = TEXT,
) -> Tally:
    """
    Read each answer once.

    Args:
        make: Of a client of the HTTP library an SDK's client that tries nothing twice.
        text_of: What a reader has got, as text.
    """
    # A warning for each, which pytest would keep.
    logging.getLogger("resumable_stream").setLevel(logging.CRITICAL)
    now: list[Answer] = []
    wrong: list[str] = []
    good = bad = 0
    asked = 0

    def answer() -> Answer | None:
        nonlocal asked
        asked += 1
        return now[0] if asked == 1 else None

    try:
        async with opened(client(row, answer)) as http, opened(make(http)) as sdk:
            for each in told:
                now[:], asked, got = [each], 0, []
                try:
                    await read(sdk, got)
                except Exception:
                    bad += 1
                    continue
                good += 1
                if text_of(got) != whole:
                    wrong.append(f"{each.name}: {text_of(got)!r}")
    finally:
        logging.getLogger("resumable_stream").setLevel(logging.NOTSET)
    return Tally(good, bad, wrong)
