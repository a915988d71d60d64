"""
A stream without a network: a virtual server, a virtual clock, and a loop that obeys the machine.

    Stream(server) ──Connect/Fetch──► server(Sent) ──► Reply | Failure
        ▲                                                │ steps: bytes, Wait, "rst", "fin", "close", "silence"
        └────────── machine inputs, virtual seconds ◄────┘

The loop keeps the contract of the drivers: a chunk's events are handed out one by one before it asks for more,
`due` tells that `next()` must be asked. Nothing here sleeps, reads a clock or draws a random number.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from resumable_stream import _notices as note
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Answer, Head, Request, ResumeProtocol, StreamState
from resumable_stream._core import actions as act
from resumable_stream._core.machine import Machine
from resumable_stream._core.phases import TRANSITIONS, IllegalInput, Phase
from resumable_stream._core.settings import RetryState, Settings
from resumable_stream._errors import ResumableStreamError
from resumable_stream._events import Outcome
from resumable_stream._policy import DEFAULT_STATUSES
from resumable_stream._settings import Limits, Timeouts
from resumable_stream.protocols import LastEventID, detect, named

URL = "https://api.example.com/stream"
# Unix time at clock 0: 2026-11-20 00:00:00 UTC.
EPOCH = 1_795_132_800.0
CUTS = ("rst", "fin", "close", "half", "silence")
"""Ways to lose a connection. `half` is a clean close inside an event; `close` a clean close wherever it falls."""


# --- the network ----------------------------------------------------------------------------------------------------


class NetworkError(Exception):
    """What an HTTP client would raise."""


class Inside(Exception):
    """An interruption from inside the process, at this point: a cancellation, a signal handler that raises."""


@dataclass(frozen=True)
class Wait:
    """Seconds in which the server sends nothing."""

    seconds: float


Step = bytes | Wait | str | Inside


@dataclass
class Reply:
    """One response; a body whose steps run out closes cleanly."""

    steps: Sequence[Step] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    type: str = "text/event-stream"
    url: str | None = None

    def head(self, url: str) -> Head:
        headers = {"content-type": self.type, **self.headers} if self.type else dict(self.headers)
        return Head(self.status, headers, self.url or url)


@dataclass
class Failure:
    """No response. `unsent`: the error proves that the request never left. `timeout`: silence until the time is up."""

    unsent: bool = False
    timeout: bool = False
    after: float = 0.0


UNSENT = Failure(unsent=True)
DROPPED = Failure()
NO_ANSWER = Failure(timeout=True)


@dataclass
class Sent:
    """A request as the server sees it."""

    method: str
    url: str
    headers: dict[str, str]
    json: Any
    at: float
    timeout: float | None
    side: bool
    request: Request
    form: dict[str, str] = field(default_factory=dict)
    """What the protocol sets in the form; the caller's is not simulated."""

    @property
    def params(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.url).query, keep_blank_values=True))

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def cursor(self) -> str | None:
        return self.headers.get("last-event-id")


Server = Callable[[Sent], Reply | Failure | Inside]


def script(*steps: Reply | Failure | Inside | Callable[[Sent], Reply | Failure | Inside]) -> Server:
    """Answer request by request; one more request than there are steps is a failed test."""
    left = list(steps)

    def answer(sent: Sent) -> Reply | Failure | Inside:
        assert left, f"one request too many: {sent.method} {sent.url} {sent.headers}"
        step = left.pop(0)
        return step(sent) if callable(step) else step

    return answer


def ev(data: str | None, id: str | None = None, event: str | None = None) -> bytes:
    """One block of an event stream."""
    lines = [] if id is None else [f"id: {id}"]
    if event is not None:
        lines.append(f"event: {event}")
    if data is not None:
        lines += [f"data: {line}" for line in data.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


def evs(first: int, last: int) -> bytes:
    """Events with ids and data that count."""
    return b"".join(ev(f"d{number}", str(number)) for number in range(first, last + 1))


def seqs(*numbers: int, **extra: Any) -> bytes:
    """Events whose number stands in the JSON of their data."""
    return b"".join(ev(jsonlib.dumps({"seq": number, "text": f"t{number}", **extra})) for number in numbers)


# --- a server that has a stream -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """
    One block of a transcript.

    `row`: (event, data, last event id) that it delivers, or `None`. `cursor`: the cursor behind it; `moves`: whether it set it.
    """

    raw: bytes
    row: tuple[str, str, str] | None
    cursor: str | None
    moves: bool


def transcript(*raws: bytes) -> list[Block]:
    """Read blocks with a plain, slow reading of the standard (WHATWG HTML 9.2.6), one block each."""
    blocks, last_id = [], ""
    for raw in raws:
        data: list[str] = []
        kind, moves = "", False
        for line in raw.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name == "event":
                kind = value
            elif name == "id":
                last_id, moves = value, True
        row = (kind or "message", "\n".join(data), last_id) if data else None
        blocks.append(Block(raw, row, last_id or None, moves))
    return blocks


def rows_of(blocks: Iterable[Block]) -> list[tuple[str, str, str]]:
    return [block.row for block in blocks if block.row is not None]


def cut_body(body: bytes, cut: tuple[int, str] | None, chunk: int | Sequence[int] | None, tail: int | None = None) -> list[Step]:
    """
    A body as steps: chunked, and cut at a position in one of the ways of `CUTS`.

    `tail`: only so many bytes in front of the end are chunked, all before them is one chunk.
    """
    kind = None
    if cut is not None and cut[0] <= len(body):
        position, kind = cut
        body = body[:position]
        if kind == "half" and (not body or body.endswith((b"\n\n", b"\r\n\r\n"))):
            body += b"data: ha"
    whole = 0
    if tail is not None and isinstance(chunk, int) and len(body) > tail:
        whole = (len(body) - tail) // chunk * chunk
    steps: list[Step] = [body[:whole]] if whole else []
    steps += pieces(body[whole:], chunk)
    if kind is not None:
        steps.append("close" if kind == "half" else kind)
    return steps


def pieces(body: bytes, chunk: int | Sequence[int] | None) -> list[bytes]:
    if not body:
        return []
    if chunk is None:
        return [body]
    if isinstance(chunk, int):
        return [body[at : at + chunk] for at in range(0, len(body), chunk)]
    out, at, turn = [], 0, 0
    while at < len(body):
        size = chunk[turn % len(chunk)]
        out.append(body[at : at + size])
        at += size
        turn += 1
    return out


class EventServer:
    """
    Serves a transcript, from the cursor on.

    Args:
        blocks: The transcript.
        cuts: For each connection in turn `(bytes, kind)` or `None`; connections behind the last are not cut.
        chunk: Bytes in a chunk; a sequence is cycled through. `None`: the body is one chunk.
        rest: Bytes in a chunk behind the last cut, where nothing more can happen; `0`: as `chunk`.
        tail: See `cut_body()`.
        replay: `"after"` the cursor; `"inclusive"`: the event that the cursor names too; `"zero"`: the cursor is ignored;
            a number: so many more blocks before the cursor.
        cursor: Where the request names the cursor.
        head: Headers of the first response.
        empty: What answers a request from the very end: `"close"` or `"204"`.
        resend: For each resume in turn, how many more blocks before the cursor are sent (over `replay`).
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        cuts: Iterable[tuple[int, str] | None] = (),
        chunk: int | Sequence[int] | None = None,
        rest: int | None = 0,
        tail: int | None = None,
        replay: str | int = "after",
        cursor: Callable[[Sent], str | None] = lambda sent: sent.cursor,
        head: Mapping[str, str] | None = None,
        empty: str = "close",
        type: str = "text/event-stream",
        resend: Iterable[int] = (),
    ) -> None:
        self.blocks = list(blocks)
        self.cuts = list(cuts)
        self.chunk = chunk
        self.rest = rest
        self.tail = tail
        self.replay = replay
        self.cursor = cursor
        self.headers = dict(head or {})
        self.empty = empty
        self.type = type
        self.resend = list(resend)
        self.behind = {block.cursor: index + 1 for index, block in enumerate(self.blocks) if block.moves}
        self.answers = 0

    def __call__(self, sent: Sent) -> Reply:
        start = self.start(sent)
        body = b"".join(block.raw for block in self.blocks[start:])
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        headers = self.headers if self.answers == 0 else {}
        self.answers += 1
        if not body and self.empty == "204":
            return Reply(status=204, type="")
        chunk = self.chunk if self.rest == 0 or self.answers <= len(self.cuts) else self.rest
        return Reply(cut_body(body, cut, chunk, self.tail), headers=headers, type=self.type)

    def start(self, sent: Sent) -> int:
        cursor = self.cursor(sent)
        if cursor is None or self.replay == "zero":
            return 0
        start = self.behind[cursor]
        if self.replay == "inclusive":
            return start - 1
        if isinstance(self.replay, int):
            start = max(0, start - self.replay)
        if self.resend:
            start = max(0, start - self.resend.pop(0))
        return start


# --- the loop -------------------------------------------------------------------------------------------------------


class Watched(Machine):
    """The machine, held to the table of its phases at every input."""

    seen: ClassVar[set[tuple[Phase, str, Phase]]] = set()
    """Transitions that were made: phase, input, the phase after it."""
    last: ClassVar[tuple[Phase | None, str, Phase | None]] = (None, "", None)
    """The one that was made last. Most chunks make the same one again, and hashing a phase takes longer than the input."""


def _watched(name: str) -> Callable[..., Any]:
    given = getattr(Machine, name)

    def watched(self: Watched, *args: Any, **options: Any) -> Any:
        before = self.phase
        try:
            return given(self, *args, **options)
        except IllegalInput:
            before = self.phase
            raise
        finally:
            after = self.phase
            first, second, third = Watched.last
            if not (first is before and second is name and third is after) and name in TRANSITIONS[before]:
                Watched.seen.add((before, name, after))
                assert after in TRANSITIONS[before][name], f"{before} ── {name} ──► {after} is not in the table"
                Watched.last = (before, name, after)

    return watched


for _name in sorted({name for inputs in TRANSITIONS.values() for name in inputs}):
    setattr(Watched, _name, _watched(_name))


@dataclass
class Clock:
    now: float = 1000.0


class NeverEnds(AssertionError):
    """More connections than any bounded stream makes."""


def policy(attempts: int = 10, wait: float = 1.0) -> Callable[[RetryState], float | None]:
    return lambda state: None if state.attempt >= attempts else wait


class Stream:
    """
    One stream of one process, driven without I/O.

    Iterating it hands out events; `checkpoint` is what the public stream would show at that moment.
    """

    def __init__(
        self,
        server: Server,
        *,
        method: str = "GET",
        url: str = URL,
        json: Any = None,
        params: Mapping[str, str] | None = None,
        protocol: ResumeProtocol | None = None,
        detecting: bool = False,
        checkpoint: Checkpoint | None = None,
        clock: Clock | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        delay: Callable[[RetryState], float | None] | None = None,
        jitter: float = 1.0,
        statuses: frozenset[int] = DEFAULT_STATUSES,
        max_server_wait: float = 60.0,
        connections: int = 200,
        **settings: Any,
    ) -> None:
        self._options = {name: value for name, value in locals().items() if name not in ("self", "settings", "__class__")}
        self._options |= settings
        self.server = server
        self.clock = clock or Clock()
        self.started = self.clock.now
        self.state = StreamState(method, url, json)
        self.params = dict(params or {})
        self.connections = connections
        self.sent: list[Sent] = []
        self.sleeps: list[float] = []
        self.reads: list[float | None] = []
        self.notices: list[note.Notice] = []
        self.saves: list[act.Save] = []
        self.answers = 0
        self.machine = Watched(
            state=self.state,
            protocol=protocol if protocol is not None or detecting else LastEventID(),
            detect=detect,
            checkpoint=checkpoint,
            settings=Settings(
                timeouts=timeouts or Timeouts(),
                limits=limits or Limits(),
                delay=delay or policy(),
                jitter=lambda: jitter,
                statuses=statuses,
                max_server_wait=max_server_wait,
                **settings,
            ),
        )
        self._steps: list[Step] = []
        self._at = 0
        self._reply: Reply | None = None
        # Sleeps that are longer are interrupted after so many seconds.
        self.patience = float("inf")
        self._url = ""
        self._batch: Sequence[Any] = ()
        self._given = 0
        self._in_hand = 0
        self._done = False
        self.outcome: Outcome | None = None

    # what a user sees

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._given == len(self._batch):
            self._refill()
        else:
            self._in_hand = 0
            self._save()
        item = self._batch[self._given]
        self._given += 1
        self._in_hand = 1
        return item

    def next_batch(self) -> Sequence[Any]:
        if self._given == len(self._batch):
            self._refill()
        rest = self._batch[self._given :]
        self._given = len(self._batch)
        self._in_hand = len(rest)
        return rest

    @property
    def taken(self) -> int:
        return self._given - self._in_hand

    @property
    def checkpoint(self) -> Checkpoint:
        return self.machine.checkpoint(self.taken, self._batch)

    def commit(self, item: Any = None) -> None:
        """`commit()` under manual commit."""
        self.machine.commit(item, self._given, self._batch)

    def leave(self) -> Checkpoint:
        """Leave the block without an exception: the event in hand is done with."""
        self._in_hand = 0
        self._save(force=True)
        return self.checkpoint

    def again(self, checkpoint: Checkpoint) -> Stream:
        """Another process that continues there, with the same options and the same server."""
        options = {**self._options, "checkpoint": checkpoint}
        if options["detecting"]:
            options["protocol"] = named(checkpoint.protocol)
        return Stream(**options)

    @property
    def elapsed(self) -> float:
        return self.clock.now - self.started

    @property
    def cursors(self) -> list[str | None]:
        return [sent.cursor for sent in self.sent]

    def kinds(self, kind: type) -> list[Any]:
        return [notice for notice in self.notices if isinstance(notice, kind)]

    # driving

    def open(self) -> Stream:
        """As a `with` block does: stop in front of the first read."""
        self._advance(opening=True)
        return self

    def _refill(self) -> None:
        if self._done:
            raise StopIteration
        self._in_hand = 0
        try:
            found = (not self.machine.due and self._read()) or self._advance()
        except ResumableStreamError as error:
            self._done = True
            self._drain()
            error.checkpoint = self.checkpoint
            raise
        if not found:
            self._done = True
            self.outcome = self.machine.outcome
            self._save(force=True)
            raise StopIteration

    def _advance(self, *, opening: bool = False) -> bool:
        machine = self.machine
        while True:
            action = machine.next(self.clock.now)
            if machine.notices:
                self._drain()
            match action:
                case act.Read():
                    if opening:
                        return False
                    if self._read():
                        return True
                case act.Deliver(events):
                    self._batch, self._given = events, 0
                    return True
                case act.Connect(request, timeout):
                    self._connect(request, timeout)
                case act.Fetch(request, timeout, limit):
                    self._fetch(request, timeout, limit)
                case act.Disconnect():
                    self._reply = None
                case act.Sleep(seconds):
                    self._save(force=True)
                    self.sleeps.append(seconds)
                    if self.patience < seconds:
                        ends = self.clock.now + seconds
                        self.clock.now += self.patience
                        machine.woken(ends, self.clock.now)
                        raise Inside
                    self.clock.now += seconds
                case act.Save():
                    self._write(action)
                case act.Finish():
                    return False

    def _read(self) -> bool:
        machine, clock, steps = self.machine, self.clock, self._steps
        while True:
            if machine.settings.saving:
                self._save(before_read=True)
            timeout = machine.before_read(clock.now)
            self.reads.append(timeout)
            if timeout is not None and timeout <= 0:
                machine.read_timed_out(clock.now)
                return False
            step = steps[self._at] if self._at < len(steps) else "close"
            self._at += 1
            while type(step) is Wait or step == "silence":
                seconds = step.seconds if type(step) is Wait else float("inf")
                if timeout is not None and seconds >= timeout:
                    clock.now += timeout
                    self._at -= 1
                    if type(step) is Wait:
                        steps[self._at] = Wait(seconds - timeout)
                    machine.read_timed_out(clock.now, NetworkError("read timed out"))
                    return False
                if seconds == float("inf"):
                    raise NeverEnds("silence, and no clock runs")
                clock.now += seconds
                timeout = None if timeout is None else timeout - seconds
                step = steps[self._at] if self._at < len(steps) else "close"
                self._at += 1
            if step == "close":
                events = machine.receive_eof(clock.now)
            elif step == "rst" or step == "fin":
                machine.read_failed(NetworkError("reset by peer" if step == "rst" else "incomplete chunked read"), clock.now)
                return False
            elif isinstance(step, Inside):
                machine.read_failed(step, clock.now, inside=True)
                raise step
            else:
                assert type(step) is bytes, step
                events = machine.receive_data(step, clock.now)
            if machine.notices:
                self._drain()
            if events:
                self._batch, self._given = events, 0
                return True
            if machine.due:
                return False

    def _ask(self, request: Request, timeout: float | None, side: bool) -> tuple[Reply | Failure | Inside, Sent]:
        base = self.state.url
        url = urljoin(base, request.url)
        params = dict(self.params) if request.repeat == "all" else {}
        params |= parse_qsl(urlsplit(url).query, keep_blank_values=True)
        for name, value in request.params.items():
            params.pop(name, None)
            if value is not None:
                params[name] = value
        url = urlunsplit(urlsplit(url)._replace(query=urlencode(params)))
        body = None
        if request.repeat in ("all", "body"):
            body = self.state.json
            if body is not None and request.json is not None:
                body = {**body, **request.json}
        elif request.json is not None:
            body = dict(request.json)
        form = {**(request.form or {})}
        headers = {name.lower(): value for name, value in request.headers.items() if value is not None}
        sent = Sent(request.method, url, headers, body, self.clock.now, timeout, side, request, form)
        self.sent.append(sent)
        if len(self.sent) > self.connections:
            raise NeverEnds(f"{len(self.sent)} requests")
        answer = self.server(sent)
        self._url = url
        if isinstance(answer, Inside):
            return answer, sent
        if answer.after:
            if timeout is not None and answer.after >= timeout:
                answer = NO_ANSWER
            else:
                self.clock.now += answer.after
        if answer is NO_ANSWER or (isinstance(answer, Failure) and answer.timeout):
            if timeout is None:
                raise NeverEnds("no answer, and no clock runs")
            self.clock.now += timeout
        return answer, sent

    def _connect(self, request: Request, timeout: float | None) -> None:
        answer, _ = self._ask(request, timeout, side=False)
        if isinstance(answer, Inside):
            self.machine.connect_failed(answer, self.clock.now, sent=True, inside=True)
            raise answer
        if isinstance(answer, Failure):
            error = NetworkError("connection refused" if answer.unsent else "server disconnected")
            self.machine.connect_failed(error, self.clock.now, sent=not answer.unsent, timed_out=answer.timeout)
            return
        self._reply = answer
        self._steps, self._at = list(answer.steps), 0
        self.machine.receive_head(answer.head(self._url), self.clock.now, wall=EPOCH + self.clock.now)

    def _fetch(self, request: Request | None, timeout: float | None, limit: int) -> None:
        reply: Reply | Failure | Inside | None = self._reply
        if request is not None:
            reply, _ = self._ask(request, timeout, side=True)
        if isinstance(reply, Inside):
            self.machine.fetch_failed(reply, self.clock.now, inside=True)
            raise reply
        if isinstance(reply, Failure):
            self.machine.fetch_failed(NetworkError("no answer"), self.clock.now)
            return
        assert reply is not None
        body = b""
        for step in reply.steps:
            if isinstance(step, bytes):
                body += step
            elif isinstance(step, Wait):
                self.clock.now += step.seconds
            elif isinstance(step, Inside):
                self.machine.fetch_failed(step, self.clock.now, inside=True)
                raise step
            elif step != "close":
                self.machine.fetch_failed(NetworkError("reset by peer"), self.clock.now)
                return
        self.machine.receive_answer(Answer(reply.status, reply.head(self._url).headers, body[:limit]), self.clock.now)

    def _drain(self) -> None:
        self.notices += self.machine.notices
        self.machine.notices.clear()

    def _save(self, *, force: bool = False, before_read: bool = False) -> None:
        if not self.machine.settings.saving:
            return
        blocks = None
        if before_read:
            step = self._steps[self._at] if self._at < len(self._steps) else "close"
            blocks = lambda: not isinstance(step, bytes)  # noqa: E731
        save = self.machine.save(self.clock.now, self.taken, self._batch, force=force, blocks=blocks)
        if save is not None:
            self._write(save)

    def _write(self, save: act.Save) -> None:
        self.saves.append(save)
        self.machine.saved(self.clock.now)


@dataclass
class Result:
    """How a stream went."""

    events: list[Any]
    outcome: Outcome | None
    error: ResumableStreamError | None
    stream: Stream

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        return [(event.event, event.data, event.id) for event in self.events]

    @property
    def data(self) -> list[Any]:
        return [event.data for event in self.events]


def run(stream: Stream, *, at_most: int = 100_000) -> Result:
    """Read to the end, or until so many events."""
    events: list[Any] = []
    try:
        for event in stream:
            events.append(event)
            if len(events) == at_most:
                break
    except ResumableStreamError as error:
        return Result(events, None, error, stream)
    return Result(events, stream.outcome, None, stream)


def play(*steps: Any, **options: Any) -> Result:
    """Run a script to its end."""
    return run(Stream(script(*steps), **options))


def reading(body: bytes = b"", *, at: float = 1000.0, **options: Any) -> Machine:
    """A machine that has read so much of its first answer, for questions to its parts. It was opened at 1000 s."""
    machine = Stream(script(), **options).machine
    machine.next(1000.0)
    machine.receive_head(Head(200, {"content-type": "text/event-stream"}, URL), 1000.0, wall=EPOCH)
    machine.next(1000.0)
    if body:
        machine.receive_data(body, at)
    return machine
