"""
A stream without a network: the drivers' own loop over a virtual server and a virtual clock.

    Stream(server) ──Connect/Fetch──► server(Sent) ──► Reply | Failure
        ▲                                                │ steps: bytes, Wait, "rst", "fin", "close", "silence"
        └────────── bytes, errors, virtual seconds ◄─────┘

`Stream` is a third set of primitives under `_drivers/loop.py`, beside those of the sync and the async stream: what is tested
here is what they run. Nothing here sleeps, reads a clock or draws a random number.
"""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import length_hint
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import httpx

from resumable_stream import _notices as note
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Request, ResumeProtocol, StreamState
from resumable_stream._core import actions as act
from resumable_stream._core.machine import Machine
from resumable_stream._core.phases import TRANSITIONS, IllegalInput
from resumable_stream._core.settings import RetryState, Settings
from resumable_stream._drivers.base import Plan
from resumable_stream._drivers.http import Call
from resumable_stream._drivers.loop import Loop, at_once
from resumable_stream._errors import ResumableStreamError
from resumable_stream._events import Outcome
from resumable_stream._policy import DEFAULT_STATUSES
from resumable_stream._settings import Limits, Timeouts
from resumable_stream.protocols import LastEventID, detect, named

T = TypeVar("T")

URL = "https://api.example.com/stream"
# Unix time at clock 0: 2026-11-20 00:00:00 UTC.
EPOCH = 1_795_132_800.0
CUTS = ("rst", "fin", "close", "half", "silence")
"""Ways to lose a connection. `half` is a clean close inside an event; `close` a clean close wherever it falls."""


# --- the network ----------------------------------------------------------------------------------------------------


class NetworkError(OSError):
    """What an HTTP client would raise."""


class NotConnected(NetworkError, httpx.ConnectError):
    """Proves that nothing was sent."""


class TimedOut(NetworkError, TimeoutError):
    """The clock that the loop set ran out."""


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

    seen: ClassVar[set[tuple[str, str, str]]] = set()
    """Transitions that were made: phase, input, the phase after it. By name, since hashing an enum is slow."""


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
            made = before._name_, name, after._name_
            if made not in Watched.seen and name in TRANSITIONS[before]:
                assert after in TRANSITIONS[before][name], f"{before} ── {name} ──► {after} is not in the table"
                Watched.seen.add(made)

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


class Stream(Loop):
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
        # Sleeps that are longer are interrupted after so many seconds.
        self.patience = float("inf")
        self._aside = False
        settings_ = Settings(
            timeouts=timeouts or Timeouts(),
            limits=limits or Limits(),
            delay=delay or policy(),
            jitter=lambda: jitter,
            statuses=statuses,
            max_server_wait=max_server_wait,
            **settings,
        )

        def machine(checkpoint: Checkpoint | None) -> Watched:
            return Watched(
                state=self.state,
                protocol=protocol if protocol is not None or detecting else LastEventID(),
                detect=detect,
                checkpoint=checkpoint,
                settings=settings_,
            )

        super().__init__(
            Plan(
                machine=machine,
                family=_Library(),  # type: ignore[arg-type]
                client=self,
                call=Call(),
                checkpoint=checkpoint,
                check=lambda checkpoint: None,
                store=_Store(self) if settings_.saving else None,
                key="key",
                observer=None,
                timeouts=settings_.timeouts,
                limits=settings_.limits,
            )
        )
        # As after a `with` that has not read yet. `open()` goes on from here to the first read.
        self._state = "open"

    # what a user sees

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for event in self._events:
            return event
        if at_once(self._refill):
            for event in self._events:
                return event
        raise StopIteration

    def next_batch(self) -> Sequence[Any]:
        if not length_hint(self._events) and not at_once(self._refill):
            raise StopIteration
        return self._hand_batch()

    @property
    def machine(self) -> Machine:
        return self._machine

    @property
    def taken(self) -> int:
        return self._taken()

    def commit(self, item: Any = None) -> None:
        """`commit()` under manual commit."""
        self._commit(item)
        at_once(self._after_commit)

    def leave(self) -> Checkpoint:
        """Leave the block without an exception: the event in hand is done with."""
        at_once(lambda: self._exit(None))
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

    def open(self) -> Stream:
        """As a `with` block does: stop in front of the first read."""
        at_once(lambda: self._advance(opening=True))
        return self

    # the primitives: none suspends

    def _now(self) -> float:  # type: ignore[override]
        return self.clock.now

    def _wall(self) -> float:  # type: ignore[override]
        return EPOCH + self.clock.now

    def _me(self) -> int:
        return 1

    def _read_elsewhere(self) -> bool:
        return False

    def _clock(self, seconds: float | None) -> None:
        return None

    def _wake(self) -> None:
        raise AssertionError("nobody else closes it")

    async def _close_client(self, client: Any) -> None:
        raise AssertionError("it is the caller's")

    async def _call(self, function: Callable[[], T]) -> T:
        return function()

    async def _wait(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        if self.patience < seconds:
            self.clock.now += self.patience
            raise Inside
        self.clock.now += seconds

    async def _fetch(self, action: act.Fetch) -> None:
        self._aside = True
        try:
            await super()._fetch(action)
        finally:
            self._aside = False

    async def _send(self, built: _Built, **options: Any) -> _Body:
        timeout = built.timeout
        sent = self._sent(built.request, timeout)
        self.sent.append(sent)
        if len(self.sent) > self.connections:
            raise NeverEnds(f"{len(self.sent)} requests")
        answer = self.server(sent)
        if isinstance(answer, Inside):
            raise answer
        if answer.after:
            if timeout is not None and answer.after >= timeout:
                answer = NO_ANSWER
            else:
                self.clock.now += answer.after
        if isinstance(answer, Reply):
            return _Body(self, answer, sent.url)
        if answer.timeout:
            if timeout is None:
                raise NeverEnds("no answer, and no clock runs")
            self.clock.now += timeout
            raise TimedOut("no answer")
        raise NotConnected("connection refused") if answer.unsent else NetworkError("server disconnected")

    def _sent(self, request: Request, timeout: float | None) -> Sent:
        url = urljoin(self.state.url, request.url)
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
        return Sent(request.method, url, headers, body, self.clock.now, timeout, self._aside, request, form)

    def _new_body(self, response: _Body, clock: Any) -> _Body:
        return response

    def _notify(self) -> None:
        self.notices += self._machine.notices
        self._machine.notices.clear()


class _Built:
    """A request of the library."""

    def __init__(self, request: Request, timeout: float | None) -> None:
        self.request = request
        self.timeout = timeout
        self.extensions = {"timeout": {"read": timeout}}


class _Library:
    """The HTTP library: requests are sent as the machine makes them."""

    def build(self, client: Any, request: Request, call: Call, *, read: float | None, **options: Any) -> _Built:
        return _Built(request, read)

    def send_arguments(self, request: Request, call: Call) -> dict[str, Any]:
        return {}

    def head(self, response: _Body) -> Head:
        return response.head


class _Store:
    """Notes what is saved. Where a stream goes on is given as its `checkpoint`."""

    keep_events = False

    def __init__(self, stream: Stream) -> None:
        self._saves = stream.saves

    def save(self, key: str, checkpoint: Checkpoint, events: Sequence[Any], *, fence: Any) -> None:
        self._saves.append(act.Save(checkpoint, events))


class _Body:
    """The steps of a reply; also the library's response, and its connection."""

    plain = None

    def __init__(self, stream: Stream, reply: Reply, url: str) -> None:
        self.response = self
        self.extensions = {"network_stream": self}
        self.head = reply.head(url)
        self.ended = False
        self._stream, self._clock = stream, stream.clock
        self._steps, self._at = list(reply.steps), 0

    def get_extra_info(self, name: str) -> bool:
        return self._at < len(self._steps) and isinstance(self._steps[self._at], bytes)

    async def read(self, timeout: float | None) -> bytes | None:
        if not self._stream._aside:
            self._stream.reads.append(timeout)
        while True:
            step = self._steps[self._at] if self._at < len(self._steps) else "close"
            self._at += 1
            if type(step) is bytes:
                return step
            if step == "close":
                return None
            if isinstance(step, Inside):
                raise step
            if step == "rst" or step == "fin":
                raise NetworkError("reset by peer" if step == "rst" else "incomplete chunked read")
            assert type(step) is Wait or step == "silence", step
            seconds = step.seconds if type(step) is Wait else float("inf")
            if timeout is not None and seconds >= timeout:
                self._clock.now += timeout
                self._at -= 1
                if type(step) is Wait:
                    self._steps[self._at] = Wait(seconds - timeout)
                raise TimedOut("read timed out")
            if seconds == float("inf"):
                raise NeverEnds("silence, and no clock runs")
            self._clock.now += seconds
            timeout = None if timeout is None else timeout - seconds

    def arm(self, timeout: float | None) -> bool:
        return False

    def wake(self) -> None:
        raise AssertionError("nobody else closes it")

    async def finish(self) -> None:
        """An honest end leaves nothing unread here."""

    async def close(self) -> None:
        self.ended = True


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
