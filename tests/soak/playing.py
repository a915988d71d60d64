"""
Play a case, in memory or over sockets, and judge what arrived.

In memory, the `FlakyServer` plans and disturbs its answers as always, but they are played by a `ScriptedClient` and the time is
virtual: silence and waits cost nothing. Over sockets the same case runs against the real server.

The judge: everything that was sent, once, in order; or an error that a fault explains, after an exact prefix, with a checkpoint
from which another process gets exactly the rest.
"""

from __future__ import annotations

import contextlib
import importlib
import random
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import anyio
import anyio.lowlevel

import resumable_stream as rs
from resumable_stream._drivers.base import StreamBase
from resumable_stream.testing import RecordedRequest, Reply, ScriptedClient
from resumable_stream.testing.faults import Answer, HeartbeatPiece
from tests.soak.cases import ORIGIN, Case, Server, draw

BEATS = 500  # "until the client leaves": at 5 s each, more than any clock waits
RETRY = rs.RetryPolicy(attempts=40)
SOCKETS = {"retry": rs.RetryPolicy(attempts=40, wait=lambda state: 0.0), "timeouts": rs.Timeouts(first_event=1.0, idle=0.25)}


class Failed(AssertionError):
    """A stream was not what it should be."""


class LeftByException(Exception):
    """What the reader raises to leave."""


class VirtualTime:
    """The clock of every module of the package, and the waits of the drivers, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        async def sleep(stream: Any, seconds: float) -> None:
            # As in the drivers: one that never suspends.
            self.now += seconds

        async def asleep(stream: Any, seconds: float) -> None:
            self.now += seconds
            await anyio.lowlevel.checkpoint()

        with contextlib.ExitStack() as stack:
            for name, module in list(sys.modules.items()):
                if name.startswith("resumable_stream.") and getattr(module, "monotonic", None) is time.monotonic:
                    stack.enter_context(mock.patch.object(module, "monotonic", self.monotonic))
            stack.enter_context(mock.patch.object(StreamBase, "_now", staticmethod(self.monotonic)))
            stack.enter_context(mock.patch.object(rs.ResumableStream, "_sleep", sleep))
            stack.enter_context(mock.patch.object(rs.AsyncResumableStream, "_sleep", asleep))
            yield


# --- in memory ------------------------------------------------------------------------------------------------------


class Memory:
    """The wire between a `Server` that has no socket and the clients of a `ScriptedClient`."""

    def __init__(self, case: Case, clock: VirtualTime) -> None:
        self.case = case
        self.clock = clock
        self.server = Server(case, case.faults)
        self.script = ScriptedClient(self.answer, case.row[1])  # type: ignore[arg-type]
        self.origin = ORIGIN

    def answer(self, request: RecordedRequest) -> Reply | str:
        self.server.requests.append(request)
        if len(self.server.requests) > 400:
            raise Failed("more than 400 requests")
        on_request = self.case.server.get("on_request")
        if on_request is not None and (reply := on_request(request)) is not None:
            return reply  # type: ignore[no-any-return]
        answer, _ = self.server._plan(request)
        self.clock.pass_by(answer.delay)
        if not answer.answered:
            return self._end(answer, [])[0]  # type: ignore[return-value]
        body, headers = list(self._chunks(answer)), dict(answer.headers)
        if answer.transfer == "length" and answer.code not in (204, 304):
            length = sum(map(len, answer.pieces)) if answer.announced is None else answer.announced
            headers["content-length"] = str(length)
        return Reply(status=answer.code, headers=headers, body=[*body, *self._end(answer, body)])

    def _chunks(self, answer: Answer) -> Iterator[Any]:
        sizes = (1,) if answer.one_byte else self.case.chunks
        rest, turn = b"", 0
        for piece in answer.pieces:
            if isinstance(piece, HeartbeatPiece):
                # What came before it has been sent.
                if rest:
                    yield rest
                    rest = b""
                yield lambda wait=piece.wait: self.clock.pass_by(wait)
            if not sizes:
                yield bytes(piece)
                continue
            rest += piece
            while rest and len(rest) >= (size := sizes[turn % len(sizes)]):
                yield rest[:size]
                rest, turn = rest[size:], turn + 1
        if rest:
            yield rest

    def _end(self, answer: Answer, body: list[Any]) -> list[Any]:
        unfinished = answer.transfer != "close" and answer.answered
        match answer.ending:
            case "rst":
                return ["read_error"]
            case "fin":
                return ["remote_protocol_error"] if unfinished or not answer.answered else []
            case "silence":
                return [lambda: self.clock.pass_by(700.0), "read_timeout"] if answer.answered else ["read_timeout"]
            case "heartbeats":
                beat = answer.heartbeat or HeartbeatPiece()
                return [part for _ in range(BEATS) for part in (lambda: self.clock.pass_by(beat.wait), bytes(beat))] + [
                    "read_error"
                ]
            case "endless":
                return [b"data: " + b"x" * (answer.limit_bytes or 0)]
            case _:
                return []

    def client(self) -> Any:
        made = self.script.sync if self.case.row[0] == "sync" else self.script.asynchronous
        return made(trust_env=False)

    def close(self) -> None:
        if self.script.unclosed:
            raise Failed(f"{self.script.unclosed} bodies were left open")

    @property
    def options(self) -> dict[str, Any]:
        return {"retry": RETRY}


# --- over sockets ---------------------------------------------------------------------------------------------------


def _promptly() -> Any:
    """No jitter before the first reconnect: an eighth of a second each."""
    return mock.patch("resumable_stream._api.random", SimpleNamespace(random=lambda: 0.0))


class Sockets:
    """A real server."""

    def __init__(self, case: Case, make_client: Callable[[], Any]) -> None:
        self.server = Server(case, case.faults).start()
        self.origin = self.server.origin
        self.client = make_client
        timeouts = SOCKETS["timeouts"] if case.resumes else rs.Timeouts(first_event=20.0, idle=20.0)
        self.options = {**SOCKETS, "timeouts": timeouts}

    def close(self) -> None:
        self.server.close()


# --- reading --------------------------------------------------------------------------------------------------------


class Reading:
    """What one case delivers, over as many processes as it takes."""

    def __init__(self, case: Case, wire: Any) -> None:
        self.case = case
        self.wire = wire
        self.delivered: list[Any] = []
        self.error: rs.ResumableStreamError | None = None
        self.outcome: rs.Outcome | None = None
        self.token: str | None = None

    async def run(self) -> None:
        for count, how in [*self.case.leave, (0, None)]:
            if await self._process(count, how):
                break

    async def _process(self, count: int, how: str | None) -> bool:
        """Read in one process; True when the stream ended there."""
        client = self.wire.client()
        sync = self.case.row[0] == "sync"
        left, taken, stream = False, 0, None
        try:
            stream = self._open(client)
            async with _eager(stream) if sync else stream as opened:
                reader = opened.iter_batches() if self.case.batches else opened
                async for item in reader:
                    batch = item if self.case.batches else [item]
                    self.delivered += batch
                    taken += len(batch)
                    if how and taken >= count:
                        if how == "raise":
                            raise LeftByException
                        if self.case.batches:
                            # A batch is one unit: left in its middle, it was not taken.
                            del self.delivered[-len(batch) :]
                        left = True
                        break
        except LeftByException:
            # What was in hand was not taken.
            del self.delivered[-len(batch) :]
            left = True
        except rs.ResumableStreamError as error:
            self.error = error
            self.token = error.checkpoint.token() if error.checkpoint is not None else None
        finally:
            if sync:
                client.close()
            else:
                await client.aclose()
        if stream is not None:
            self.outcome = stream.outcome
        if left:
            self.token = stream.token  # type: ignore[union-attr]
            # Left right at its end, it may know that it is over.
            return False
        return True

    def _open(self, client: Any) -> Any:
        sync = self.case.row[0] == "sync"
        options = {"client": client, "protocol": self.case.protocol(), **self.wire.options}
        if self.token is not None:
            return (rs.resume if sync else rs.aresume)(self.token, origin=self.wire.origin, **options)
        return (rs.connect if sync else rs.aconnect)(
            self.case.method, self.wire.origin + self.case.path, **options, **({"json": self.case.json} if self.case.json else {})
        )


class _eager:
    """A sync stream behind an async face."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    async def __aenter__(self) -> _eager:
        self.wrapped.__enter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        return self.wrapped.__exit__(*exc)

    def iter_batches(self) -> Any:
        return _Each(self.wrapped.iter_batches())

    def __aiter__(self) -> Any:
        return _Each(iter(self.wrapped))


class _Each:
    def __init__(self, iterator: Any) -> None:
        self.iterator = iterator

    def __aiter__(self) -> _Each:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            raise StopAsyncIteration from None


# --- judging --------------------------------------------------------------------------------------------------------


def shape(case: Case, items: list[Any]) -> Any:
    if isinstance(case.sent, bytes):
        return b"".join(item.data for item in items)
    return [(item.event, item.data) for item in items]


def judge(case: Case, reading: Reading) -> None:
    """Raise `Failed` unless the stream arrived whole, or ended in an error that is exact and explained."""
    got, sent = shape(case, reading.delivered), case.sent
    if reading.error is None:
        settled = case.settled is not None and len(got) >= case.settled
        if got != (sent[: len(got)] if settled else sent):
            raise Failed(f"{_difference(got, sent)}, and it ended as {reading.outcome}")
        if reading.outcome not in case.outcomes:
            raise Failed(f"it ended as {reading.outcome}, not {case.outcomes}")
        return
    if got != sent[: len(got)]:
        raise Failed(f"{_difference(got, sent)}, before {reading.error!r}")
    if not isinstance(reading.error, case.excused):
        raise Failed(f"nothing explains {type(reading.error).__name__}: {reading.error}") from reading.error


def _difference(got: Any, sent: Any) -> str:
    at = next((n for n, (one, other) in enumerate(zip(got, sent, strict=False)) if one != other), min(len(got), len(sent)))
    kind = "lost" if len(got) < len(sent) else "repeated" if len(got) > len(sent) else "changed"
    return (
        f"{kind}: {len(got)} instead of {len(sent)}, different from {at}: {got[at : at + 3]!r} instead of {sent[at : at + 3]!r}"
    )


async def rest(case: Case, reading: Reading, wire: Any) -> None:
    """After an error: another process gets exactly the rest from the checkpoint, of a server that works again."""
    if reading.error is None or not case.resumes or reading.token is None or rs.Checkpoint.from_token(reading.token).complete:
        return
    wire.server.heal()
    got = shape(case, reading.delivered)
    again = Reading(replace(case, leave=[]), wire)
    again.token = reading.token
    await again.run()
    if again.error is not None and not got and case.method == "POST":
        return  # one that never brought a name has no way back
    more = shape(case, again.delivered)
    if again.error is not None:
        raise Failed(f"from the checkpoint of {reading.error!r}: {again.error!r}") from again.error
    if got + more != case.sent:
        raise Failed(f"from the checkpoint of {reading.error!r}: {_difference(got + more, case.sent)}")


# --- running --------------------------------------------------------------------------------------------------------


async def _one(case: Case, wire: Any) -> None:
    reading = Reading(case, wire)
    try:
        await reading.run()
        judge(case, reading)
        await rest(case, reading, wire)
    finally:
        wire.close()


async def _play(seed: int, make_wire: Callable[[Case, VirtualTime], Any], *, sockets: bool) -> str | None:
    """Play a seed; what went wrong, or `None`."""
    case = draw(seed, sockets=sockets)
    clock = VirtualTime()
    random.seed(seed)  # of the waits' jitter
    try:
        with _promptly() if sockets else clock.installed():
            await _one(case, make_wire(case, clock))
    except Failed as failure:
        return f"seed {seed}: {failure}\n{case.describe()}"
    except Exception as error:
        error.add_note(f"seed {seed}\n{case.describe()}")
        raise
    return None


def play(seeds: list[int], *, sockets: bool = False) -> list[str]:
    """Play seeds, those of each driver in one event loop; what went wrong."""
    failures: list[str] = []
    for driver in ("sync", "asyncio", "trio"):
        chosen = [seed for seed in seeds if draw(seed, sockets=sockets).row[0] == driver]

        async def run(chosen: list[int] = chosen) -> None:
            clients: dict[str, Any] = {}
            for seed in chosen:
                make: Any = _sockets(clients) if sockets else Memory
                failures.extend(filter(None, [await _play(seed, make, sockets=sockets)]))

        if driver == "sync":
            _drive(run())
        elif chosen:
            anyio.run(run, backend=driver)
    return failures


def _sockets(contexts: dict[str, Any]) -> Callable[[Case, VirtualTime], Sockets]:
    def make(case: Case, clock: VirtualTime) -> Sockets:
        module = importlib.import_module(case.row[1])
        # Making one costs 17 ms, and no stream here is encrypted.
        context = contexts.setdefault("context", ssl.create_default_context())
        kind = module.Client if case.row[0] == "sync" else module.AsyncClient
        return Sockets(case, lambda: kind(trust_env=False, verify=context))

    return make


def _drive(coroutine: Any) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a sync stream waited for an event loop")
