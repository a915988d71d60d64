"""`LlamaCpp`: the replay buffer of `llama-server` (ggml-org/llama.cpp, tools/server/README-dev.md)."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._errors import CursorExpired, ResponseRejected, RetriesExhausted, StreamInterrupted
from resumable_stream._events import Outcome
from resumable_stream.protocols.llama_cpp import LlamaCpp
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import Reply, Sent, Stream, cut_body, play, run, script
from ..cutting import Where

URL = "http://127.0.0.1:8080/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
ID = "5f0c1d2e-not-to-be-guessed"


def chunk(text: str | None, reason: str | None = None, index: int = 0) -> bytes:
    delta = {} if text is None else {"content": text}
    body = {"id": "chatcmpl-1", "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


# Twice the same delta, and a comment: nothing but the place in the body tells them apart.
CHUNKS = [chunk("Grüße"), chunk(" ha"), chunk(" ha"), b": ping\n\n", chunk(" ☔"), chunk(None, "stop"), b"data: [DONE]\n\n"]
WHOLE = b"".join(CHUNKS)
SETTLED = len(b"".join(CHUNKS[:-1]))
TEXT = "Grüße ha ha ☔"
DATA = [block.decode()[6:-2] for block in CHUNKS if block.startswith(b"data")]


class Server:
    """`POST /v1/chat/completions`, then `GET /v1/stream?conv_id=…&from=N`, which begins with byte N."""

    def __init__(self, *, cuts: Any = (), size: Any = None, body: bytes = WHOLE) -> None:
        self.body, self.cuts, self.size, self.answers = body, list(cuts), size, 0

    def __call__(self, sent: Sent) -> Reply:
        start = 0
        if self.answers == 0:
            assert (sent.method, sent.headers["x-conversation-id"], sent.json) == ("POST", ID, BODY)
        else:
            assert (sent.method, sent.path, sent.params["conv_id"]) == ("GET", "/v1/stream", ID)
            start = int(sent.params["from"])
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        return Reply(cut_body(self.body[start:], cut, self.size))


def post(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": URL, "json": BODY, "protocol": LlamaCpp(ID), **options})


# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_place_is_behind_a_whole_event_whatever_ends_a_line(end: str, where: Where) -> None:
    blocks = [block.replace(b"\n", end.encode()) for block in CHUNKS]
    body = b"".join(blocks)
    for first in where(blocks):
        for second in range(1, len(body) - first, 97):
            result = run(post(Server(cuts=[(first, "rst"), (second, "fin")], size=1, body=body)))
            assert (result.outcome, result.data[: len(DATA) - 1]) == (Outcome.COMPLETED, DATA[:-1]), (first, second)


def test_another_process_goes_on_from_the_same_byte() -> None:
    stream = post(Server(size=5))
    for _ in range(2):
        next(stream)
    place = Checkpoint.from_token(stream.checkpoint.token())
    assert place.cursor == str(len(CHUNKS[0]))
    # Who has the id has the answer.
    assert ID not in place.to_json()
    server = Server()
    server.answers = 1
    result = run(post(server, checkpoint=place))
    assert result.data == DATA[1:]
    assert result.stream.sent[0].params == {"conv_id": ID, "from": place.cursor}


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx", "trio-httpx2"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def route(request: RecordedRequest) -> WebReply | None:
        if not request.path.endswith("/v1/stream"):
            return None
        return WebReply(body=WHOLE[int(parse_qs(urlsplit(request.url).query)["from"][0]) :])

    positions = range(0, SETTLED, 61)
    with FlakyServer(CHUNKS, [Fault.cut(after_bytes=at, how=how) for at in positions], on_request=route) as server:
        for _ in positions:
            url = f"{server.origin}/v1/chat/completions"
            async with row.connect("POST", url, json=BODY, protocol=LlamaCpp(ID)) as stream:
                assert await stream.read_text() == TEXT
            assert stream.outcome is Outcome.COMPLETED


# --- answers to a resume --------------------------------------------------------------------------------------------

HALF = Reply([b"".join(CHUNKS[:2]), "rst"])


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, CursorExpired),
        (401, ResponseRejected),
        (404, CursorExpired),
        (410, CursorExpired),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
        (503, RetriesExhausted),
    ],
)
def test_statuses(status: int, error: type[Exception]) -> None:
    result = play(HALF, *[Reply(status=status)] * 12, method="POST", url=URL, json=BODY, protocol=LlamaCpp(ID))
    assert (result.data, type(result.error)) == (DATA[:2], error)
    assert result.error.checkpoint is None or ID not in result.error.checkpoint.to_json()
    assert ID not in str(result.error)


def test_a_refused_first_request_is_not_sent_again() -> None:
    result = play(Reply(status=500), method="POST", url=URL, json=BODY, protocol=LlamaCpp(ID))
    assert type(result.error) is ResponseRejected


def test_a_cut_before_the_answer_sends_nothing_twice() -> None:
    from ..core.simulation import DROPPED

    result = run(post(script(DROPPED)))
    assert type(result.error) is StreamInterrupted


def test_another_process_knows_which_choices_have_ended() -> None:
    """Each choice has its own `finish_reason`: with the first in one process, the second in the next is the end."""
    body = {**BODY, "n": 2}
    frames = [chunk("a"), chunk("b", index=1), chunk(None, "length", 1), chunk(None, "stop"), b"data: [DONE]\n\n"]
    protocol = LlamaCpp(ID, choices=2)
    here = Stream(script(Reply([*frames[:3], "rst"])), method="POST", url=URL, json=body, protocol=protocol)
    run(here, at_most=3)
    there = Stream(script(Reply([*frames[3:], "rst"])), method="POST", url=URL, protocol=protocol, checkpoint=here.leave())
    assert run(there).outcome is Outcome.INCOMPLETE


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (URL, "/v1/stream"),
        ("http://127.0.0.1:8080/chat/completions", "/v1/stream"),
        ("http://127.0.0.1/llama/v1/completions", "/llama/v1/stream"),
    ],
)
def test_the_route_stands_beside_that_of_the_request(url: str, path: str) -> None:
    result = play(HALF, Reply([b"".join(CHUNKS[2:])]), method="POST", url=url, json=BODY, protocol=LlamaCpp(ID))
    assert (result.data, result.stream.sent[1].path) == (DATA, path)


def test_it_can_be_cancelled() -> None:
    stream = post(Server())
    next(stream)
    request = stream.machine.requests.cancel()
    assert request is not None
    assert (request.method, request.url, request.params) == ("DELETE", "http://127.0.0.1:8080/v1/stream", {"conv_id": ID})


@pytest.mark.parametrize(
    ("given", "error"), [("", ValueError), (" ", ValueError), (5, TypeError), ("ü", TypeError), ("a\nb", TypeError)]
)
def test_an_id_has_to_be_fit_for_a_header(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="conversation_id"):
        LlamaCpp(given)
