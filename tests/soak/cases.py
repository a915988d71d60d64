"""
What a soak streams, and what goes wrong with it. Everything follows from one number, the seed.

A `Case` is one stream: what the server has, how it is asked for, the faults of each answer in turn, how the bytes are chunked,
and where the reader leaves. `KINDS` lists the kinds of stream; `draw()` makes a case of a seed.
A fault is drawn only where the right result is known: either the whole stream, or an error that the fault explains.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import resumable_stream as rs
from resumable_stream import protocols
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ServerEvent, faults
from resumable_stream.testing.faults import Answer, disturb

ORIGIN = "https://api.example.com"
ROWS = tuple((driver, family) for driver in ("sync", "asyncio", "trio") for family in ("httpx", "httpx2"))
# Few, so that equal words follow each other. Line ends and what looks like a field are among them.
WORDS = ("a", "b", "ha", "ha", "é", "🦊", "", " two  spaces ", "id: 7", "data: x", "two\nlines", '{"x": 1}', "[DON", "x" * 300)
Row = tuple[str, str]


@dataclass
class Case:
    """
    Args:
        kind: Which of `KINDS`.
        row: Driver and family.
        log: What the server has, one frame each.
        sent: What has to arrive, (event, data) each; for bytes, the document.
        protocol: Makes the protocol; a new one for each process.
        faults: For each stream request in turn.
        server: Options of the `FlakyServer`.
        method, path, json: The first request.
        excused: Errors that a drawn fault explains. Without one, all of it has to arrive.
        outcomes: How it may end.
        resumes: There is a way back.
        leave: Where the reader leaves, and how: after so many events, by `break`, by an exception or by a token for another
            process that is taken there.
        back: Events that an answer to a resume starts early, for each request in turn.
        seams: For each stream request in turn, (after so many events, so many of them again) or `None`.
        holes: For each stream request in turn, what is missing or out of order, or `None`. The last event stays where it is:
            it is the end, and has no number everywhere.
        said: Not empty once an answer has held the last event. Only then the server says that it is over.
        settled: From so many events on any close is the end.
        chunks: Sizes of chunks, cycled through; `()`: one event each.
    """

    kind: str
    row: Row
    log: list[bytes]
    sent: list[tuple[str, str]] | bytes
    protocol: Callable[[], Any]
    faults: list[list[Fault]] = field(default_factory=list)
    server: dict[str, Any] = field(default_factory=dict)
    method: str = "GET"
    path: str = "/stream"
    json: Any = None
    excused: tuple[type[Exception], ...] = ()
    outcomes: tuple[rs.Outcome, ...] = (rs.Outcome.COMPLETED,)
    resumes: bool = True
    leave: list[tuple[int, Literal["break", "raise"]]] = field(default_factory=list)
    back: list[int] = field(default_factory=list)
    seams: list[tuple[int, int] | None] = field(default_factory=list)
    holes: list[faults.Hole | faults.Reorder | None] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    settled: int | None = None
    chunks: tuple[int, ...] = ()
    batches: bool = False

    def describe(self) -> str:
        lines = [f"{self.kind}, {'-'.join(self.row)}, {self.method} {self.path}, {len(self.log)} frames, chunks {self.chunks}"]
        lines += [
            f"server: {self.server}",
            f"leaves: {self.leave}, batches: {self.batches}, back: {self.back}, seams: {self.seams}",
            f"holes: {self.holes}",
        ]
        lines += [f"answer {number}: {faults}" for number, faults in enumerate(self.faults, 1)]
        lines += ["log:", *(f"  {frame!r}" for frame in self.log)]
        return "\n".join(lines)


class Server(FlakyServer):
    """
    A `FlakyServer` whose answers may have a seam, and may start a few events early, as those of a server that counts loosely.

    A seam is left out where an answer is too short to hold it.
    """

    def __init__(self, case: Case, faults: Sequence[list[Fault]]) -> None:
        super().__init__(case.log, faults, path=case.path, **case.server)
        self._case = case
        self._back, self._seams, self._holes = list(case.back), list(case.seams), list(case.holes)

    def heal(self) -> None:
        """From here on nothing goes wrong, and any back end has the stream."""
        self._schedule, self._sticky_cookie = iter(()), None
        self._back, self._seams, self._holes = [], [], []

    def _route(self, request: RecordedRequest) -> Answer:
        answer = super()._route(request)
        start = len(self._frames) - len(answer.pieces)
        if start and self._back and answer.code == 200:
            start = max(0, start - self._back.pop(0))
            answer.pieces = self._frames[start:]
        seam = self._seams.pop(0) if self._seams else None
        if seam is not None and seam[0] <= len(answer.pieces):
            *_, before = None, *answer.pieces[: seam[0] - seam[1]]
            if _recognisable(before, answer.pieces[seam[0] - seam[1] : seam[0]]):
                disturb(answer, [Fault.seam(after_events=seam[0], overlap=seam[1])])
        hole = self._holes.pop(0) if self._holes else None
        # Before an end without a number a hole is not seen.
        last = 2 if self._case.kind == "contiguous" else 1
        # A whole replay that lacks what was delivered contradicts it.
        over = start == 0 and len(self.requests) > 1
        if hole is not None and not over and hole.after_events + hole.count <= len(answer.pieces) - last:
            disturb(answer, [hole])
        return answer

    def _plan(self, request: RecordedRequest) -> tuple[Answer, list[bytes]]:
        answer, log = super()._plan(request)
        if answer.code == 200 and self._case.log[-1:] == answer.pieces[-1:]:
            self._case.said.append("all")
        return answer, log


def _recognisable(before: bytes | None, again: list[bytes]) -> bool:
    """A run that comes again is known by two ids or numbers at least; what has none is known by nothing."""
    names = [name for frame in again for name in re.findall(rb'(?m)^id: ([^\r\n]*)|"(?:seq|sequence_number)": (\d+)', frame)]
    if len(set(names)) < 2 or len(names) < len(again):
        return False
    # Two equal events under one id: whether a run begins with the first or the second, nobody can say.
    return before is None or before != again[0]


# --- logs -----------------------------------------------------------------------------------------------------------


def _size(dice: random.Random) -> int:
    return dice.choice((1, 2, 3, 5, 8, 13, 20, 40, 70))


def _frame(dice: random.Random, data: str, *, id: str | None = None, event: str | None = None) -> bytes:
    frame = ServerEvent(id=id, event=event, data=data, comment=dice.choice((None, None, None, "x"))).encode()
    return frame.replace(b"\n", b"\r\n") if dice.random() < 0.2 else frame


def _plain(
    dice: random.Random, ids: Callable[[int], str | None], *, done: bool = True, unique: bool = False
) -> tuple[list[bytes], list[tuple[str, str]]]:
    """Words under the ids that are asked for."""
    log, sent = [], []
    for number in range(_size(dice)):
        word = dice.choice(WORDS)
        data = f"{number} {word}" if unique else word
        event = dice.choice((None, None, "delta"))
        log.append(_frame(dice, data, id=ids(number), event=event))
        sent.append((event or "message", data))
    if done:
        log.append(b"data: [DONE]\n\n")
        sent.append(("message", "[DONE]"))
    return log, sent


def _distinct(dice: random.Random) -> Callable[[int], str]:
    prefix = dice.choice(("e", "1700000000000-", "é", "a b/"))
    return lambda number: f"{prefix}{number}"


# --- kinds ----------------------------------------------------------------------------------------------------------


def named(dice: random.Random, row: Row) -> Case:
    """Ids that are all different, and a promised end."""
    log, sent = _plain(dice, _distinct(dice))
    return Case("named", row, log, sent, lambda: protocols.LastEventID(end="[DONE]"), **_query(dice))


def _query(dice: random.Random) -> dict[str, Any]:
    return {"server": {"no_content_at_end": dice.random() < 0.2, "unknown_id": 404}}


def default(dice: random.Random, row: Row) -> Case:
    """As most people use it: no protocol named."""
    log, sent = _plain(dice, _distinct(dice))
    return Case("default", row, log, sent, lambda: None, server={"unknown_id": 404})


def counted(dice: random.Random, row: Row) -> Case:
    """Ids that count, watched only."""
    first = dice.choice((0, 1, 1000))
    log, sent = _plain(dice, lambda number: str(first + number))
    return Case("counted", row, log, sent, lambda: protocols.LastEventID(end="[DONE]"), server={"unknown_id": 404})


def contiguous(dice: random.Random, row: Row) -> Case:
    """Ids that are promised to count."""
    log, sent = _plain(dice, lambda number: str(number + 1), unique=dice.random() < 0.5)
    return Case("contiguous", row, log, sent, lambda: protocols.LastEventID(end="[DONE]", sequence="contiguous"))


def sparse(dice: random.Random, row: Row) -> Case:
    """Some events have no id, some ids no event."""
    log, sent = _plain(dice, lambda number: f"s{number}" if number % 3 == 0 else None)
    if dice.random() < 0.5:
        log.insert(dice.randrange(len(log)), b"id: alone\n\n")
    return Case("sparse", row, log, sent, lambda: protocols.LastEventID(end="[DONE]"))


def one_id(dice: random.Random, row: Row) -> Case:
    """The id of the message on every event, equal words after each other. The server cannot go on from there, and starts over."""
    log, sent = _plain(dice, lambda number: "msg_1")
    server = {"ignore_cursor": True}
    return Case("one id", row, log, sent, lambda: protocols.LastEventID(end="[DONE]"), server=server)


def posted(dice: random.Random, row: Row) -> Case:
    """A POST whose answer names where a GET goes on."""
    log, sent = _plain(dice, _distinct(dice))
    server = {dice.choice(("location", "content_location")): "/runs/1", "unknown_id": 404}
    return Case("posted", row, log, sent, lambda: None, server=server, method="POST", json={"prompt": "hi"})


def lost(dice: random.Random, row: Row) -> Case:
    """A POST without a way back."""
    log, sent = _plain(dice, _distinct(dice))
    return Case(
        "lost", row, log, sent, lambda: protocols.LastEventID(end="[DONE]"), method="POST", json={"prompt": "hi"}, resumes=False
    )


def unnamed_end(dice: random.Random, row: Row) -> Case:
    """Ids, but no end in the protocol: rule 7c asks once more."""
    log, sent = _plain(dice, _distinct(dice), done=False)
    server = {"no_content_at_end": dice.random() < 0.5}
    return Case("unnamed end", row, log, sent, lambda: protocols.LastEventID(), server=server, outcomes=(rs.Outcome.ENDED,))


def from_zero(dice: random.Random, row: Row) -> Case:
    """No cursor at all: every answer starts over."""
    log, sent = _plain(dice, lambda number: None)
    protocol = dice.choice((lambda: protocols.ReplayFromZero(end="[DONE]"), _text_end))
    return Case("from zero", row, log, sent, protocol)


def _text_end() -> Any:
    return protocols.ReplayFromZero(end=lambda event: event.data == "[DONE]")


def _number_in(key: str) -> Callable[[bytes], str | None]:
    def cursor(frame: bytes) -> str | None:
        for line in frame.splitlines():
            text = line.removeprefix(b"data: ")
            if text.startswith(b"{"):
                number = json.loads(text).get(key)
                return None if number is None else str(number)
        return None

    return cursor


def _acme() -> Any:
    return protocols.CursorProtocol(
        read="seq", send="query:after", end=_is_done, sequence="contiguous", first_sequence=0, text="text", name="Acme"
    )


def _is_done(event: Any) -> bool:
    return event.json().get("done") is True


def numbered(dice: random.Random, row: Row) -> Case:
    """Numbers inside the JSON, promised to count from 0."""
    count = _size(dice) + 1
    data = [
        json.dumps({"seq": number, "text": dice.choice(WORDS), **({"done": True} if number == count - 1 else {})})
        for number in range(count)
    ]
    log = [_frame(dice, text) for text in data]
    server = {"cursor_param": "after", "cursor_of": _number_in("seq")}
    return Case("numbered", row, log, [("message", text) for text in data], _acme, server=server)


def lines(dice: random.Random, row: Row) -> Case:
    """The same as JSON lines."""
    case = numbered(dice, row)
    log = [f"{text}\n".encode() for _, text in case.sent]
    return Case("lines", row, log, case.sent, _acme_lines, server={**case.server, "format": "ndjson"})


def _acme_lines() -> Any:
    return protocols.CursorProtocol(
        read="seq",
        send="query:after",
        end=_is_done,
        sequence="contiguous",
        first_sequence=0,
        framing="ndjson",
        name="Acme lines",
    )


def ndjson(dice: random.Random, row: Row) -> Case:
    """JSON lines without a cursor: whole, or an error."""
    case = lines(dice, row)
    method = dice.choice(("GET", "POST"))
    return Case(
        "ndjson", row, case.log, case.sent, _ndjson, server={"format": "ndjson"}, method=method, resumes=False, json=_body(method)
    )


def _body(method: str) -> Any:
    return {"stream": True} if method == "POST" else None


def _ndjson() -> Any:
    return protocols.NDJSON(end=_is_done)


def responses(dice: random.Random, row: Row) -> Case:
    """OpenAI Responses in the background."""
    words = [dice.choice(WORDS) or "-" for _ in range(_size(dice))]
    head = {"id": "resp_1", "background": True, "status": "in_progress"}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": head}]
    events += [{"type": "response.output_text.delta", "output_index": 0, "delta": word} for word in words]
    events += [{"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}]
    log, sent = [], []
    for number, event in enumerate(events):
        data = json.dumps({**event, "sequence_number": number})
        log.append(ServerEvent(event=event["type"], data=data).encode())
        sent.append((event["type"], data))
    said: list[str] = []

    def status(request: RecordedRequest) -> Reply | None:
        asked = request.method == "GET" and "stream" not in request.query
        state = "completed" if said else "in_progress"
        return (
            Reply(headers={"content-type": "application/json"}, body=_json({"id": "resp_1", "status": state})) if asked else None
        )

    server = {"cursor_param": "starting_after", "cursor_of": _number_in("sequence_number"), "on_request": status}
    body = {"model": "m", "input": "hi", "stream": True, "background": True}
    return Case(
        "responses", row, log, sent, lambda: None, server=server, method="POST", path="/v1/responses", json=body, said=said
    )


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def chat(dice: random.Random, row: Row) -> Case:
    """OpenAI Chat Completions: whole, or an error."""
    words = [dice.choice(WORDS) or "-" for _ in range(_size(dice))]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    if dice.random() < 0.5:
        chunks += [{"choices": [], "usage": {"total_tokens": 3}}]
    data = [*map(json.dumps, chunks), "[DONE]"]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    log = [_frame(dice, text) for text in data]
    sent = [("message", text) for text in data]
    path = "/v1/chat/completions"
    made = Case("chat", row, log, sent, lambda: None, method="POST", path=path, json=body, resumes=False)
    made.settled = len(words) + 1
    return made


def messages(dice: random.Random, row: Row) -> Case:
    """Anthropic Messages: whole, or an error."""
    words = [dice.choice(WORDS) or "-" for _ in range(_size(dice))]
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    log = [ServerEvent(event=event["type"], data=json.dumps(event)).encode() for event in events]
    sent = [(event["type"], json.dumps(event)) for event in events]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    made = Case("messages", row, log, sent, lambda: None, method="POST", path="/v1/messages", json=body, resumes=False)
    # The stop reason says how the answer ends; `message_stop` adds nothing to it.
    made.settled = len(events) - 1
    return made


def langgraph(dice: random.Random, row: Row) -> Case:
    """The development server: all events of one millisecond share an id, and what follows an id follows the last that has it."""
    moment, log, sent = 0, [], []
    entries: list[tuple[str, Any]] = [("metadata", {"run_id": "r-1"})]
    entries += [("messages", [{"content": dice.choice(WORDS), "type": "AIMessageChunk"}, {}]) for _ in range(_size(dice))]
    for event, value in [*entries, ("values", {"done": True})]:
        moment += dice.choice((0, 0, 1, 1, 2))
        log.append(ServerEvent(id=f"170000000{moment:04}-0", event=event, data=json.dumps(value)).encode())
        sent.append((event, json.dumps(value)))

    said: list[str] = []

    def status(request: RecordedRequest) -> Reply | None:
        asked = request.method == "GET" and not request.path.endswith("/stream")
        body = _json({"run_id": "r-1", "status": "success" if said else "running"})
        return Reply(headers={"content-type": "application/json"}, body=body) if asked else None

    server = {"location": "/threads/t-1/runs/r-1/stream", "on_request": status}
    body = {"assistant_id": "a", "stream_mode": ["messages-tuple"], "stream_resumable": True}
    path = "/threads/t-1/runs/stream"
    return Case(
        "langgraph",
        row,
        log,
        sent,
        lambda: protocols.LangGraphRun(),
        server=server,
        method="POST",
        path=path,
        json=body,
        said=said,
    )


def download(dice: random.Random, row: Row) -> Case:
    """Bytes, by range."""
    document = dice.randbytes(dice.choice((1, 2, 100, 3000, 40_000)))
    server = {"format": "bytes", "etag": '"v1"', "chunk_bytes": dice.choice((1, 7, 1024)) if len(document) < 5000 else 4096}
    return Case("download", row, [document], document, lambda: protocols.ByteRange(), server=server)


KINDS: tuple[Callable[[random.Random, Row], Case], ...] = (
    *(named, default, counted, contiguous, sparse, one_id, posted, lost, unnamed_end, from_zero),
    *(numbered, lines, ndjson, responses, chat, messages, langgraph, download),
)

# --- faults ---------------------------------------------------------------------------------------------------------

_ANY = tuple[type[Exception], ...]
UNSAFE_STATUSES = (429, 503)  # the server says that it did nothing: any request may be sent again
NO_END = ("default", "posted", "unnamed end")  # the protocol names no end
LOOSE = ("named", "counted", "contiguous", "numbered", "lines", "responses")  # what comes again is known by its id or number
# Once the run is finished, a replay that brings nothing says that the server has forgotten it.
FORGETS = ("langgraph", "responses")
NUMBERED = ("contiguous", "numbered", "lines", "responses")
SEAMS = (*LOOSE, "default", "posted", "langgraph")
ANSWERED = (faults.Cut, faults.EndlessLine, faults.Heartbeats)
FATAL_STATUSES = (400, 401, 403, 404, 410)


def draw(seed: int, *, sockets: bool = False) -> Case:
    """
    The case of a seed.

    Args:
        seed: Any integer.
        sockets: For a real server: its waits are short.
    """
    dice = random.Random(seed)
    # By turns, so that no kind and no row is rare.
    row = ROWS[seed % len(ROWS)]
    case = KINDS[seed // len(ROWS) % len(KINDS)](dice, row)
    if case.kind != "download":
        case.chunks = dice.choice(((), (), (10**9,), (1,), (7,), (1, 50, 3), (200, 1, 1)))
    case.batches = dice.random() < 0.2
    if not sockets and case.kind != "download" and dice.random() < 0.2:
        case.server["transfer"] = dice.choice(("length", "close"))
    if case.resumes and dice.random() < 0.2:
        case.server["sticky_cookie"] = "AWSALB" if case.kind != "responses" else None
    count = dice.choice((0, 1, 1, 2, 3, 5, 8)) if case.resumes else dice.choice((0, 1, 1, 2))
    for number in range(count):
        case.faults.append(_answer(case, dice, number, sockets))
    if case.resumes and not case.excused and len(case.log) > 2 and dice.random() < 0.3:
        for _ in range(dice.randint(1, 3)):
            case.leave.append((dice.randint(1, len(case.log)), dice.choice(("break", "break", "raise"))))
        # Another process has other cookies.
        case.server.pop("sticky_cookie", None)
    if case.kind in LOOSE:
        case.back = [dice.choice((0, 0, 1, 3, 10)) for _ in range(10)]
    return case


def _answer(case: Case, dice: random.Random, number: int, sockets: bool) -> list[Fault]:
    """What goes wrong with one answer; one fault that ends it comes last."""
    drawn: list[Fault] = []
    frames = len(case.log)
    if case.kind != "download":
        case.seams.append(_seam(case, dice) if dice.random() < 0.25 and case.kind in SEAMS else None)
        hole: Any = None
        if (
            case.seams[-1] is None
            and case.kind in ("contiguous", "numbered", "lines", "responses")
            and case.resumes
            and number < 3
            and dice.random() < 0.2
        ):
            # Where the first number is not promised, nobody can miss the first event.
            at = dice.randint(int(case.kind in ("contiguous", "responses")), frames)
            hole = dice.choice((faults.Hole, faults.Reorder))(after_events=at, count=dice.randint(1, 3))
            if any(case.holes):
                # The same hole twice is one that cannot be filled.
                case.excused += (rs.GapError,)
        case.holes.append(hole)
        if dice.random() < 0.2:
            interval = 0.001 if sockets else dice.choice((0.1, 20.0, 50.0))
            frame = b"\n" if case.server.get("format") == "ndjson" else dice.choice((b": ping\n\n", b":\r\n\r\n", b": x\n"))
            drawn.append(
                Fault.heartbeats(after_events=dice.randint(0, frames), count=dice.randint(1, 4), interval=interval, frame=frame)
            )
        if dice.random() < 0.1:
            drawn.append(Fault.one_byte_writes())
    if dice.random() < 0.1:
        drawn.append(Fault.delay(0.001 if sockets else dice.choice((0.1, 5.0))))
    drawn.append(_ending(case, dice, number, sockets))
    return drawn


def _seam(case: Case, dice: random.Random) -> tuple[int, int]:
    # Before the last event: after it nothing is live.
    after = dice.randint(2, max(2, len(case.log) - 1))
    return after, dice.randint(2, min(after, 60))


def _ending(case: Case, dice: random.Random, number: int, sockets: bool) -> Fault:
    posts = case.method == "POST"
    # Until an answer has begun, a POST is not known to have been accepted.
    first = not any(isinstance(each[-1], ANSWERED) for each in case.faults)
    size = len(case.log[0]) if case.kind == "download" else sum(map(len, case.log))
    roll = dice.random()
    if roll < 0.68:
        return _cut(case, dice, size, number, sockets)
    if roll < 0.73:
        if not case.resumes or (posts and first):
            # Nobody knows whether it was accepted.
            case.excused += (rs.StreamInterrupted, rs.NotResumable)
        hows = ("rst", "fin") if sockets else ("rst", "fin", "silence")
        return Fault.no_answer(how=dice.choice(hows))
    if roll < 0.86:
        wait = dice.choice((None, 0, "0")) if sockets else dice.choice((None, 0, 2, 30, "junk"))
        statuses = (*UNSAFE_STATUSES, 500, 502, 504, 408) if case.resumes else UNSAFE_STATUSES
        if posts:
            case.excused += (rs.ResponseRejected,) if first else ()
        return Fault.status(dice.choice(statuses), retry_after=wait, body=b'{"error": {"message": "busy"}}')
    if roll < 0.89:
        case.excused += (rs.ResponseRejected, rs.CursorExpired, rs.NotResumable)
        return Fault.status(dice.choice(FATAL_STATUSES), body=b'{"error": {"message": "no"}}')
    if roll < 0.94 and not posts:
        return Fault.redirect(f"{case.path}?again={number}", status=dice.choice((302, 307, 308)))
    if roll < 0.96 and case.kind != "download":
        case.excused += (rs.UnexpectedContentType, rs.RetriesExhausted)
        return Fault.content_type("text/html", body=b"<h1>Sign in</h1>")
    if roll < 0.98 and case.kind not in ("download", *NO_END, "lines", "ndjson"):
        if not case.resumes:
            case.excused += (rs.StreamInterrupted,)
        if case.kind in FORGETS:
            case.excused += (rs.CursorExpired,)
        return Fault.endless_line(after_events=dice.randint(int(posts), len(case.log)), limit_bytes=dice.choice((10, 5000)))
    if case.kind != "download" and not sockets and case.resumes and case.kind not in NO_END:
        at = dice.randint(int(posts and first), len(case.log))
        return Fault.heartbeats(after_events=at, interval=dice.choice((5.0, 30.0)), frame=_beat(case))
    return _cut(case, dice, size, number, sockets)


def _beat(case: Case) -> bytes:
    return b"\n" if case.server.get("format") == "ndjson" else b": ping\n\n"


def _cut(case: Case, dice: random.Random, size: int, number: int, sockets: bool) -> Fault:
    hows: list[Any] = ["rst", "fin", "clean", "clean_inside", "silence"]
    if sockets and not case.resumes:
        hows.remove("silence")  # 600 s
    if case.kind == "download":
        # With a matching length it is the end, whatever was there.
        hows = ["rst", "fin", "silence"][: 2 if sockets and not case.resumes else 3]
    if case.kind in NO_END:
        # An empty clean answer is believed there: docs/guarantees.md says so.
        hows.remove("clean")
        if case.server.get("transfer") == "close":
            hows.remove("fin")
    how = dice.choice(hows)
    if not case.resumes:
        case.excused += (rs.StreamInterrupted, rs.RetriesExhausted)
    if case.kind == "responses" and number < 3:
        # Its name is in its first event: before that, an honest error.
        case.excused += (rs.StreamInterrupted, rs.NotResumable)
    if case.kind in FORGETS and how.startswith("clean"):
        case.excused += (rs.CursorExpired,)
    if dice.random() < 0.5 or case.kind == "download":
        return Fault.cut(after_bytes=dice.randint(0, size), how=how)
    return Fault.cut(after_events=dice.randint(0, len(case.log)), how=how)
