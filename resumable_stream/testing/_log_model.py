"""A second implementation of the rules of a log, for tests: a model, and two writers that compare a log with it step by step."""

from __future__ import annotations

from typing import Final

from .._events import Outcome
from ..server.log import (
    Appended,
    Behind,
    Ended,
    Ending,
    Fenced,
    Head,
    Message,
    Page,
    Said,
    Span,
    StreamLog,
    Unknown,
    Writer,
)

__all__ = ["COMPLETED", "FAILED", "HEAD", "STEPS", "LogActor", "LogModel", "event_bytes", "span_of"]

HEAD: Final = Head(
    content_type="text/event-stream; charset=utf-8",
    framing="sse",
    status=201,
    headers=(("x-request-id", "req_1"), ("x-limit", "é")),
    owner="owner é",
    fingerprint="00112233445566778899aabbccddeeff",
    session="chat 1",
)
COMPLETED: Final = Ending(outcome=Outcome.COMPLETED)
FAILED: Final = Ending(outcome=Outcome.FAILED, reason="producer_lost", error="it died: é")


def event_bytes(n: int) -> bytes:
    """Make the bytes of event `n`: an SSE block whose length depends on its number."""
    return b"data: %d%s\n\n" % (n, b"x" * (n * 7 % 23))


def span_of(first: int, last: int) -> Span:
    """Make the span of the events `first` to `last` of a log in which event n is `event_bytes(n)`."""
    start = sum(len(event_bytes(n)) for n in range(1, first))
    events = [event_bytes(n) for n in range(first, last + 1)]
    data = b"".join(events)
    return Span(n=last, b=start + len(data), lengths=tuple(map(len, events)), data=data)


class LogModel:
    """
    The rules again, as short as possible: the answers and the contents of a log with one stream.

    It has no leases: a claim of a running stream succeeds if `claimable`.
    """

    def __init__(self, *, claimable: bool) -> None:
        self.claimable = claimable
        self.exists = False
        self.fence = 0
        self.events: list[bytes] = []
        self.ending: Ending | None = None
        self.note: str | None = None
        self.said: list[str] = []

    def create(self) -> str:
        """`Writer` or `Existing`."""
        if self.exists:
            return "Existing"
        self.exists, self.fence = True, 1
        return "Writer"

    def claim(self) -> str:
        """`Writer`, `Held`, `Ended` or `Unknown`."""
        if not self.exists:
            return "Unknown"
        if self.ending is not None:
            return "Ended"
        if not self.claimable:
            return "Held"
        self.fence += 1
        return "Writer"

    def append(self, fence: int, span: Span, note: str | None) -> str:
        """The verdict, with the last event if there is one."""
        verdict = self._refusal(fence)
        if verdict is not None:
            return verdict
        if self.ending is not None:
            return "Ended"
        if span.first == len(self.events) + 1:
            self.events += [event_bytes(n) for n in range(span.first, span.n + 1)]
            self.note = self.note if note is None else note
            return f"Appended {len(self.events)}"
        return f"{'Appended' if span.n <= len(self.events) else 'Behind'} {len(self.events)}"

    def finish(self, fence: int, n: int, ending: Ending) -> str:
        """The verdict."""
        verdict = self._refusal(fence)
        if verdict is not None:
            return verdict
        if self.ending is not None:
            return "Done" if (self.ending, len(self.events)) == (ending, n) else "Ended"
        if n != len(self.events):
            return f"Behind {len(self.events)}"
        self.ending = ending
        return "Done"

    def renew(self, fence: int) -> str:
        """The verdict; `NoneType` and `Control` if the lease was extended."""
        verdict = self._refusal(fence)
        if verdict is not None:
            return verdict
        return "Ended" if self.ending is not None else "Control" if self.said else "NoneType"

    def say(self, message_id: str) -> str:
        """The verdict, with the place of the message."""
        if not self.exists:
            return "Unknown"
        if message_id not in self.said:
            if self.ending is not None:
                return "Ended"
            self.said.append(message_id)
        return f"Said {self.said.index(message_id) + 1}"

    def _refusal(self, fence: int) -> str | None:
        if not self.exists:
            return "Lost"
        return "Fenced" if fence != self.fence else None


class LogActor:
    """One writer of an interleaving: makes each step on the log and on the model, and compares."""

    def __init__(self, log: StreamLog, model: LogModel, stream_id: str, *, lease: float, name: str) -> None:
        self.log, self.model, self.stream_id, self.lease, self.name = log, model, stream_id, lease, name
        self.writer: Writer | None = None
        self.n = 0
        self.last: tuple[Span, str] | None = None
        self.steps: list[str] = []

    async def take(self, step: str) -> None:
        self.steps.append(step)
        await getattr(self, step)()

    def agree(self, verdict: object, expected: str) -> None:
        seen = type(verdict).__name__
        if isinstance(verdict, Appended | Behind):
            seen += f" {verdict.n}"
        elif isinstance(verdict, Said):
            seen += f" {verdict.k}"
        assert seen == expected, f"{self.name} after {self.steps}: the log says {seen}, the rules say {expected}"
        if isinstance(verdict, Fenced):
            assert verdict.current.endswith(f".{self.model.fence}")
        elif isinstance(verdict, Ended):
            assert verdict.ending == self.model.ending

    def become(self, verdict: object, expected: str) -> None:
        self.agree(verdict, expected)
        if isinstance(verdict, Writer):
            assert verdict.fence == self.model.fence
            self.writer, self.n = verdict, len(self.model.events)

    async def create(self) -> None:
        self.become(await self.log.create(self.stream_id, HEAD, lease=self.lease), self.model.create())

    async def claim(self) -> None:
        verdict = await self.log.claim(self.stream_id, lease=self.lease)
        self.become(verdict, self.model.claim())
        if isinstance(verdict, Writer):
            found = verdict.handover
            assert found is not None and found.whole
            assert (found.n, found.note) == (len(self.model.events), self.model.note)

    async def append(self, size: int = 1) -> None:
        if self.writer is None:
            return
        self.last = span_of(self.n + 1, self.n + size), f"{self.name}{self.n + size}"
        await self.again()

    async def append_two(self) -> None:
        await self.append(2)

    async def again(self) -> None:
        """Repeat the last span, as after a lost reply."""
        if self.writer is None or self.last is None:
            return
        span, note = self.last
        (verdict,) = await self.log.append([(self.writer, span, note)])
        self.agree(verdict, self.model.append(self.writer.fence, span, note))
        if isinstance(verdict, Appended):
            self.n = max(self.n, span.n)

    async def skip(self) -> None:
        """Send a span that leaves out an event."""
        if self.writer is None:
            return
        span = span_of(self.n + 2, self.n + 2)
        (verdict,) = await self.log.append([(self.writer, span, None)])
        self.agree(verdict, self.model.append(self.writer.fence, span, None))

    async def complete(self) -> None:
        await self.finish(COMPLETED)

    async def fail(self) -> None:
        await self.finish(FAILED)

    async def finish(self, ending: Ending) -> None:
        if self.writer is None:
            return
        self.agree(await self.log.finish(self.writer, self.n, ending), self.model.finish(self.writer.fence, self.n, ending))

    async def renew(self) -> None:
        if self.writer is None:
            return
        (verdict,) = await self.log.renew([self.writer])
        self.agree(verdict, self.model.renew(self.writer.fence))

    async def say(self) -> None:
        """Both actors send the same two messages in turn."""
        message_id = f"m{self.steps.count('say') % 2}"
        self.agree(await self.log.say(self.stream_id, Message(id=message_id)), self.model.say(message_id))

    async def read(self) -> None:
        page = await self.log.read(self.stream_id)
        if not self.model.exists:
            assert isinstance(page, Unknown)
            return
        assert isinstance(page, Page)
        assert b"".join(span.data for span in page.spans) == b"".join(self.model.events)
        assert (page.n, page.ending) == (len(self.model.events), self.model.ending)


STEPS: Final = ("create", "claim", "append", "append_two", "again", "skip", "complete", "fail", "renew", "say", "read")
