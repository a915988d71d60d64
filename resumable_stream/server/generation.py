"""
A generation in the hands of its producer, from its first event to its end.

    async def agent(gen: Generation) -> Outcome | None:
        async for step in plan(gen.request):
            await gen.send(step.json(), event="step")
            for message in gen.steered():
                plan.redirect(message.data)
            if gen.cancelled:
                return Outcome.CANCELLED
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from .._errors import LimitReached
from .._events import Outcome
from ._signal import Signal
from ._values import CANCEL, MAX_NOTE_BYTES, Append, Ending, Head, Message, Span, Writer, check_text
from .events import Content, encode, encode_text
from .outbox import Outbox

__all__ = ["Generation", "GenerationFailed", "GenerationReleased", "Pace"]

logger = logging.getLogger("resumable_stream.server")

_OVERRUN: Final = 8
"""How many times `pending_bytes` a `text()` that is not awaited may run ahead of the log, since it cannot wait."""


class GenerationFailed(Exception):
    """Raised by `Generation.fail()`, and caught by the hub. Not an error of this package: it ends the producer."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason or ending.outcome.value)
        self.ending = ending


class GenerationReleased(Exception):
    """Raised by `Generation.release()`, and caught by the hub: another process, or a later producer, continues the stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """
    Times and sizes of generations; each is explained where the application sets it, see `Hub` and `HubLimits`.

    Attributes:
        lease, flush, cancel_grace, log_timeout, abandon_after: Seconds.
        flush_bytes, pending_bytes, event_bytes, stream_bytes: Bytes.
        streams: How many run at once.
    """

    lease: float
    flush: float
    cancel_grace: float
    log_timeout: float
    abandon_after: float | None
    flush_bytes: int
    pending_bytes: int
    event_bytes: int
    stream_bytes: int
    streams: int


class _Room:
    """The result of `text()`, which may be awaited."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Awaitable[None]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[object, None, None]:
        yield from self._wait().__await__()


class Generation:
    """
    A stream that is being produced, as its producer sees it.

    A hub makes it, and passes it to the function given to `Hub.start()`. All methods belong to the hub's event loop.

    Attributes:
        id: Id of the stream, as its readers name it.
        request: The request given to `start()`, for a producer that has no other input.
        resumed_from: Number of the last event that an earlier producer left in the log; `None`: this is the first producer.
        note: The newest note, from this producer or the previous one; see `flush()`.
        cancelled: Somebody asked to stop. The hub cancels the task some seconds later, see `Hub(cancel_grace=…)`.
        cancel_reason: The reason given for the cancel; `None` before.
        head: Head of the stream.
        writer: The right to append, for the hub.
        heard: The messages that have arrived here, dealt with or not.
        looks: The producer has this object, so it can check `cancelled`.
        stored_at: When the lease was last renewed, on the clock of the event loop.
        appended_at: When the log last acknowledged events, likewise.
        note_n: The event that the note belongs to.
        paused: Nothing is sent until `go_on()`: the log has lost the stream, which is being restored.
        stopped: It was cancelled and kept running, or its note cannot be stored; its events are no longer accepted.
        continues: Another producer could continue it: a hub that shuts down releases it instead of ending it.
        item: The item sent by the flusher and not yet answered by the log.
    """

    def __init__(
        self,
        stream_id: str,
        writer: Writer,
        head: Head,
        *,
        request: bytes | None,
        pace: Pace,
        touch: Callable[[Generation], None],
    ) -> None:
        handover = writer.handover
        self.id = stream_id
        self.request = request
        self.resumed_from = None if handover is None else handover.n
        self.note = None if handover is None else handover.note
        self.cancelled = False
        self.cancel_reason: str | None = None
        self.writer = writer
        self.head = head
        self.looks = self.paused = self.continues = False
        self.stored_at = self.appended_at = 0.0
        self.note_n = 0 if handover is None else handover.note_n
        self._touch = touch
        self._pace = pace
        self._outbox = Outbox(
            handover.n if handover else 0, handover.b if handover else 0, flush=pace.flush, flush_bytes=pace.flush_bytes
        )
        self._moved = Signal()
        self._spoken = Signal()
        self._messages: deque[Message] = deque()
        # Messages that have arrived here, that the producer has taken, and that the log knows to be dealt with.
        self.heard: list[Message] = []
        self.heard_k = self._taken = self.stored_k = handover.taken if handover else 0
        # (event, note or None, taken): stored in the same step as the event.
        self._marks: deque[tuple[int, str | Callable[[], str | None] | None, int]] = deque()
        self._marked = 0
        self.item: Append | None = None
        self._closed: Ending | None = None
        self.stopped: Ending | None = None
        self._told = False  # the producer was woken by the cancel

    def __repr__(self) -> str:
        return f"<Generation {self.id!r} at {self.epoch}.{self.n}>"

    @property
    def epoch(self) -> str:
        """Epoch of the log."""
        return self.writer.epoch

    @property
    def n(self) -> int:
        """Number of the last event sent; the log may lag a few events."""
        return self._outbox.n

    @property
    def acked(self) -> int:
        """Number of the last event in the log."""
        return self._outbox.acked

    # --- sending

    async def send(self, content: Content, *, event: str | None = None) -> int:
        """
        Send an event.

        It is in the next span when this returns. It waits only while more than `pending_bytes` are not yet in the log, which
        slows a producer down to the speed of the log.

        Args:
            content: Text, a JSON value, an `Event`, or bytes that are complete events; see `encode()`.
            event: Its name, for text and JSON.

        Returns:
            The number of the event; of the last one if there are several.

        Raises:
            TypeError, ValueError: It cannot be written in the framing of this stream.
            LimitReached: The event, or the stream with it, is too large.
        """
        number = self._put(content, event)
        await self._room()
        return number

    def text(self, delta: str) -> Awaitable[None]:
        """
        Send a piece of text: `data: {"text": "…"}`, which also feeds the snapshot of the stream.

        Awaiting it is optional; it then waits as `send()` does.

        Raises:
            LimitReached: Far too much is not yet in the log, because the log is unavailable and nothing was awaited.
        """
        self._accept(encode_text(self.head.framing, delta))
        if self._outbox.size > _OVERRUN * self._pace.pending_bytes:
            raise LimitReached(
                f"{self._outbox.size} bytes of stream {self.id!r} wait for the log: await text(), so that it can wait",
                limit=_OVERRUN * self._pace.pending_bytes,
            )
        return _Room(self._room)

    async def raw(self, data: bytes) -> int:
        """
        Send bytes that are stored unchanged: complete blocks, complete lines, or a piece of a raw body.

        Returns:
            The number of the last event in them.
        """
        return await self.send(data)

    async def pass_on(self, events: Sequence[bytes], note: str | Callable[[], str | None] | None = None) -> int:
        """
        Send events that are already split, unchanged and unread.

        Args:
            events: Each is one event with its last line end, as `framing` delivers it.
            note: As for `flush()`, without waiting. A pending note is replaced by the next one, so notes do not make spans
                shorter. A callable is called when the span is cut, if no event was passed on since. If it returns `None`, the
                stored note stays.

        Returns:
            The number of the last event.
        """
        number = self._accept(events)
        if note is not None:
            if not callable(note):
                check_text("a note", note, limit=MAX_NOTE_BYTES)
            self._supersede_note()
            self._mark(note)
            self._touch(self)
        await self._room()
        return number

    async def reset(self) -> int:
        """
        Take back all text so far: append the event `reset`, after which the producer starts over.

        Raises:
            TypeError: The framing has no event names.
        """
        if self.head.framing != "sse":
            raise TypeError(f"only server-sent events can be reset, but this stream is {self.head.framing}")
        number = self._accept([b"event: reset\ndata: {}\n\n"])
        await self._room()
        return number

    async def flush(self, note: str | None = None) -> None:
        """
        Wait until everything sent is in the log.

        Args:
            note: Stored in the same step as the events before it, and passed to the next producer of this stream: how far this
                one has come, for example the checkpoint token of the stream that it reads itself. At most 256 KiB.

        Raises:
            ValueError: The note is too long.
        """
        if note is not None:
            check_text("a note", note, limit=MAX_NOTE_BYTES)
            self._mark(note)
        await self.stored()
        if (ending := self._closed or self.stopped) is not None:
            raise GenerationFailed(ending)

    def fail(self, reason: str, error: str | None = None) -> NoReturn:
        """
        End the stream as failed, by raising an exception that the hub catches.

        Args:
            reason: One word that readers get, such as `upstream_error`.
            error: For people. Every reader gets it, so it must not hold secrets.
        """
        raise GenerationFailed(Ending(outcome=Outcome.FAILED, reason=reason, error=error))

    def release(self) -> NoReturn:
        """
        Leave the stream to another producer, by raising an exception that the hub catches. Sent events are stored, and there is
        no end.

        The stream is taken over as after the death of its producer, but at once.
        """
        raise GenerationReleased

    # --- being spoken to

    def steered(self) -> list[Message]:
        """
        The messages posted since the last call, in the order in which they were accepted, each once.

        A message counts as applied with the next event sent. If this producer dies before that, the next one gets it again.
        """
        if not self._messages:
            return []
        messages = list(self._messages)
        self._messages.clear()
        self._taken = messages[-1].k
        # With the next event: events already sent do not know the message.
        self._marks.append((self._outbox.n + 1, None, self._taken))
        return messages

    async def wait_steered(self, timeout: float | None = None) -> list[Message]:
        """
        Wait for messages.

        Args:
            timeout: Most seconds to wait.

        Returns:
            As `steered()`; empty after the timeout, and once when the stream is cancelled: check `cancelled` then. Another call
                waits again, until the hub cancels the task.
        """
        while not self._messages and self._closed is None:
            if self.cancelled and not self._told:
                self._told = True
                break
            if not await self._spoken.wait(timeout):
                break
        if self._closed is not None:
            raise GenerationFailed(self._closed)
        return self.steered()

    # --- for the hub

    def _put(self, content: Content, event: str | None) -> int:
        return self._accept(encode(self.head.framing, content, event=event))

    def _accept(self, events: Sequence[bytes]) -> int:
        if self._closed is not None:
            raise GenerationFailed(self._closed)
        if self.stopped is not None:
            raise GenerationFailed(self.stopped)
        for data in events:
            if len(data) > self._pace.event_bytes:
                raise LimitReached(
                    f"an event of stream {self.id!r} has {len(data)} bytes; the limit is {self._pace.event_bytes} "
                    f"(HubLimits.event_bytes)",
                    limit=self._pace.event_bytes,
                )
        size = sum(map(len, events))
        if self._outbox.b + size > self._pace.stream_bytes:
            raise LimitReached(
                f"stream {self.id!r} would have more than {self._pace.stream_bytes} bytes (HubLimits.stream_bytes)",
                limit=self._pace.stream_bytes,
            )
        for data in events:
            self._outbox.put(data)
        if events:
            self._touch(self)
        return self._outbox.n

    def _mark(self, note: str | Callable[[], str | None]) -> None:
        # Messages waiting for their event stay after the note, which does not cover them.
        later = []
        while self._marks and self._marks[-1][0] > self._outbox.n:
            later.append(self._marks.pop())
        taken = self._marks[-1][2] if self._marks else self.stored_k
        self._marks.append((self._outbox.n, note, taken))
        self._marks.extend(reversed(later))

    def _supersede_note(self) -> None:
        """Drop notes that no span has been cut for; the next note inherits what they had taken of the inbox."""
        upto = self._outbox.acked if self.item is None else self.item.last
        later = []
        while self._marks and self._marks[-1][0] > self._outbox.n:
            later.append(self._marks.pop())
        taken = 0
        while self._marks and self._marks[-1][1] is not None and self._marks[-1][0] > upto:
            taken = max(taken, self._marks.pop()[2])
        if taken:
            self._marks.append((self._outbox.n, None, taken))
        self._marks.extend(reversed(later))

    async def stored(self) -> None:
        """Wait until everything sent is in the log, or nothing more can be stored."""
        self._outbox.urgent = True
        self._touch(self)
        target = self._outbox.n
        while self._closed is None and (
            self._outbox.acked < target or self._outbox.is_resending or (self._marks and self._marks[0][0] <= target)
        ):
            await self._moved.wait()

    async def _room(self) -> None:
        while self._outbox.size > self._pace.pending_bytes and self._closed is None:
            await self._moved.wait()
        if self._closed is not None:
            raise GenerationFailed(self._closed)

    def next_item(self, now: float) -> Append | None:
        """The next item of a batch: the same one until the log has answered, because it may already be stored."""
        if self.item is None:
            # A note belongs to the events before it, so the span ends with them.
            until = next((at for at, note, _ in self._marks if note is not None and at > self._outbox.acked), None)
            span = self._outbox.take(now, until=until)
            if span is not None:
                self.item = Append(self.writer, span, *self._due_marks(span.n))
            elif self._marks and self._marks[0][0] <= self._outbox.acked:
                at = self._outbox.acked
                # Numbered, because a repeat may also arrive late, after the next one.
                self._marked += 1
                self.item = Append(self.writer, None, *self._due_marks(at), n=at, mark=self._marked)
        return self.item

    def _due_marks(self, n: int) -> tuple[str | None, int | None]:
        note, taken = None, None
        for index, (at, text, count) in enumerate(self._marks):
            if at <= n:
                if callable(text):
                    # Not if events were passed on since: it would claim too much.
                    text = self._asked(text) if at == self._outbox.n else None
                    self._marks[index] = at, text, count
                note = text if text is not None else note
                taken = count
        return note, taken

    def _asked(self, note: Callable[[], str | None]) -> str | None:
        """Call a note's callable. If the note cannot be stored, only this producer fails, not the task that sends for all."""
        try:
            text = note()
            return None if text is None else check_text("a note", text, limit=MAX_NOTE_BYTES)
        except Exception as exc:
            logger.exception("the note of stream %s cannot be stored", self.id)
            self.stopped = Ending(outcome=Outcome.FAILED, reason="producer_error", error=type(exc).__name__)
            return None

    @property
    def due(self) -> float | None:
        if self.paused:
            return None
        due = self._outbox.due()
        if due is None and self._marks and self._marks[0][0] <= self._outbox.acked:
            return float("-inf")
        return due

    @property
    def is_sending(self) -> bool:
        """Something waits for the log, or for its answer."""
        return not self._outbox.empty

    @property
    def is_due_now(self) -> bool:
        """It need not wait for its window."""
        return self.due == float("-inf")

    def appended(self) -> None:
        """The log has stored the item."""
        item, self.item = self.item, None
        assert item is not None, "nothing was taken"
        if item.span is not None:
            self._outbox.acknowledged()
        while self._marks and self._marks[0][0] <= item.last:
            at, note, taken = self._marks.popleft()
            self.stored_k = max(self.stored_k, taken)
            if isinstance(note, str):
                self.note, self.note_n = note, at
        self._moved.wake()

    def go_on(self, writer: Writer, spans: Sequence[Span] = ()) -> None:
        """As this writer, first append these spans again, which the log has lost."""
        self.writer, self.item, self.paused = writer, None, False
        if spans and self.stored_k:
            # The count of messages dealt with was lost too; which events dealt with them is no longer known.
            self._marks.appendleft((spans[-1].n, None, self.stored_k))
        if spans and self.note is not None and self.note_n >= spans[0].first:
            # The note was lost with its events.
            self._marks.appendleft((self.note_n, self.note, self.stored_k))
        self._outbox.resend(spans)

    def arrived(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.k > self.heard_k:
                self.heard_k = message.k
                self.heard.append(message)
                if message.kind != CANCEL:
                    self._messages.append(message)
        self._spoken.wake()

    def ask_to_stop(self, reason: str) -> None:
        if not self.cancelled:
            self.cancelled, self.cancel_reason = True, reason
            self._spoken.wake()

    def close(self, ending: Ending) -> None:
        """Nothing more can be stored; waiting calls return."""
        self._closed = ending
        self._moved.wake()
        self._spoken.wake()
