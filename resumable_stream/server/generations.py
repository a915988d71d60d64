"""
The generations of one process: their tasks, their leases, and what happens when the log or the process fails.

    STARTING ──▶ RUNNING ⇄ waiting for the log ──▶ finishing ──▶ done
                    │
                    └──▶ fenced: another process has the stream; the task is cancelled and nothing more is written

A living producer is the authority; after its death the log is. If the log lags behind its producer, or has lost the stream, the
stream is restored from the producer's mirror.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from .._errors import LimitReached, LogUnavailable
from .._events import Outcome
from ._backoff import Backoff
from ._signal import Signal
from ._tasks import Tasks
from .events import Content
from .flusher import Flusher, Refusal
from .following import Followed, Following
from .generation import Generation, GenerationFailed, GenerationReleased, Pace
from .log import (
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Control,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Head,
    Held,
    Lost,
    Page,
    SpanRefused,
    StreamLog,
    Unavailable,
    Unknown,
    Writer,
    epoch_of,
    join_spans,
    only,
    shard_of,
)
from .mirror import Listen, Mirror
from .sessions import Sessions

__all__ = ["FORGOTTEN", "WAIT", "Generations", "OnLost", "Producer", "Successor", "check_producer", "close"]

logger = logging.getLogger("resumable_stream.server")

Producer: TypeAlias = (
    AsyncGenerator[Content, None]
    | Callable[[], AsyncIterator[Content]]
    | Callable[[Generation], AsyncIterator[Content] | Awaitable[Outcome | Ending | None]]
)
"""What makes the events: an async generator, a function that returns one, or an async function of a `Generation`."""

OnLost: TypeAlias = Literal["fail", "restart_if_empty"] | Callable[[Generation], Any]
"""What happens to a stream whose producer died."""

WAIT: Final = "wait"
"""Result of a `Successor`: leave the stream alone for now."""

Successor: TypeAlias = Callable[[str, Page], "Callable[[Generation], Awaitable[Ending | None]] | Literal['wait'] | None"]
"""
Decides who continues a stream without a producer, from its key in the log and a page with its note but without events. Returns a
producer, `WAIT` (perhaps another process, or later), or `None` (nobody: it ends as `producer_lost`).
"""

FORGOTTEN: Final = "forgotten"
"""Reason of the cancel before a deletion. The producer does not restore such a stream when the log has lost it."""
_QUIET: Final = 1.0
"""Seconds without an event after which a producer is quiet. 1: the longest that a user waits after pressing stop."""
_LOOK: Final = 1.0
"""Longest time between two checks of the generations, in seconds. 1: the delay before a producer is found quiet or abandoned."""
_FEED_PATIENCE: Final = 15.0
"""
Longest time, in seconds and at most half of `log_timeout`, to try to end a stream together with its session's feed. After that it
ends alone, and the next process that asks what runs in the session updates the feed.
"""
_SWEEP: Final = 100
"""Streams without a producer that are checked per lease. 100: each costs two trips, and other processes check too."""


_MOST_ASKED: Final = 1000
"""Unanswered claims that are remembered. 1,000: some sweeps of a process whose log is unavailable."""

_AWAY: Final = Ending(outcome=Outcome.FAILED, reason="log_unavailable")


class Generations:
    """
    All generations of this process.

    Args:
        log: Receives their events.
        following: The mirrors of this process.
        sessions: The feeds, which record every end.
        pace: Times and sizes.
        on_lost: What happens to a stream whose producer died.
    """

    def __init__(self, log: StreamLog, following: Following, sessions: Sessions, pace: Pace, on_lost: OnLost) -> None:
        self.log = log
        self._sessions = sessions
        self.pace = pace
        self.changed = Signal()
        """Rings when one has ended."""
        self.closing = False
        self.taken_over = 0
        """Streams whose producer was lost and that were continued or ended here."""
        self.successor: Successor | None = None
        """Called instead of `on_lost`, if the decision depends on the stream."""
        self._waiting: set[str] = set()
        self._on_lost = on_lost
        self._following = following
        self._running: dict[str, _Running] = {}
        self.tasks = Tasks("a task of the hub failed")
        """Background tasks, until the hub closes."""
        # By shard of the log.
        self._claims_from: dict[str, float] = {}
        self._renewing: set[tuple[str, bool]] = set()
        self._sweeps_from = float("-inf")
        self._sweeping: asyncio.Task[None] | None = None
        self._claiming: set[str] = set()
        self._asked: OrderedDict[tuple[str, bool], str] = OrderedDict()
        """Claims with an unknown result, by key and `go_on`: the name of the claimant."""
        self._flusher = Flusher(
            log,
            log_timeout=pace.log_timeout,
            on_appended=self._appended,
            on_refused=self._refused,
            on_away=self._give_up,
            on_back=self.log_is_back,
        )

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, key: object) -> bool:
        return key in self._running

    def head_of(self, key: str) -> Head | None:
        """The head of a stream that is produced here; `None`: read the log."""
        running = self._running.get(key)
        return running.generation.head if running is not None and running.holds else None

    # --- life

    def start(self) -> None:
        """Start sending, and looking after leases. Call it in the event loop."""
        self.tasks.spawn(self._flusher.run())
        self.tasks.spawn(self._look_after())

    async def stop(self) -> None:
        """Stop all generations: they are released if they can be continued, and otherwise end as `FAILED`, `shutdown`."""
        running = list(self._running.values())
        for each in running:
            release = callable(self._on_lost) or each.generation.continues
            each.stop(Ending(outcome=Outcome.FAILED, reason="shutdown"), release=release)
        if running:
            # One that does not stop, or whose log is unavailable, does not delay the others: its lease will run out.
            await asyncio.wait([each.task for each in running], timeout=self.pace.cancel_grace)

    async def aclose(self) -> None:
        """Stop, and end the background tasks."""
        self.closing = True
        await self.stop()
        # A little longer than `_outcome_of` waits for a producer.
        await self.tasks.cancel(timeout=self.pace.cancel_grace + 1.0)

    async def forget(self, key: str) -> None:
        """Stop a generation before its deletion, and wait for its end, at most `cancel_grace`."""
        running = self._running.get(key)
        if running is not None:
            running.forgotten = True
            await self._stop(running, Ending(outcome=Outcome.CANCELLED, reason=FORGOTTEN))

    # --- producing

    def run(
        self, stream_id: str, writer: Writer, head: Head, run: Producer, request: bytes | None, *, looks: bool = False
    ) -> None:
        """
        Run a producer as this writer.

        Args:
            stream_id: As readers name it; the writer knows the key in the log.
            writer: From `create` or `claim`.
            head: Head of the stream.
            run: Makes the events.
            request: Request of the stream; for a claimed one, the log's is used.
            looks: It checks `gen.cancelled` first, so it runs even if the stream is already cancelled.
        """
        handover = writer.handover
        self.taken_over += handover is not None
        request = handover.request if handover else request
        generation = Generation(stream_id, writer, head, request=request, pace=self.pace, touch=self._flusher.touch)
        generation.looks = looks
        key = writer.stream_id
        followed = self._following.get(key)
        followed.owned = True
        followed.left_at = self._following.now()
        self._following.do(followed, followed.follower.own(writer.epoch, head, n=handover.n if handover else 0))
        generation.stored_at = generation.appended_at = self._following.now()
        running = self._running[key] = _Running(key, generation, followed)
        running.task = self.tasks.spawn(self._produce(running, run))
        if handover is not None and handover.control is not None:
            self.hear_control(key, handover.control)

    async def _produce(self, running: _Running, run: Producer) -> None:
        generation = running.generation
        try:
            ending = await self._outcome_of(running, run)
            if running.fenced:
                return
            if ending is None:
                await self._release(running)
            else:
                await self._finish(running, ending)
        finally:
            generation.close(running.ending or Ending(outcome=Outcome.FAILED, reason="shutdown"))
            self._flusher.forget(generation)
            if self._running.get(running.key) is running:
                # Otherwise it was superseded, and the stream was started again here.
                del self._running[running.key]
                self._leave(running)
            self.changed.wake()

    def _leave(self, running: _Running) -> None:
        """From now on, follow the stream like one of another process."""
        followed = running.followed
        followed.owned = False
        followed.left_at = self._following.now()
        if running.given_up and not running.elsewhere:
            # Its readers here know; new ones ask the log.
            self._following.forget(running.key)
        else:
            # An ended stream is listened to as well: another process may delete it, or start it again.
            self._following.do(followed, followed.follower.disown() or [Listen()])

    async def _outcome_of(self, running: _Running, run: Producer) -> Ending | None:
        """Run the producer to its end. `None`: the stream is released, for another producer to continue."""
        generation = running.generation
        running.worker = asyncio.get_running_loop().create_task(_drive(generation, run))
        if running.stopping:
            running.interrupted = True
            running.worker.cancel()
        try:
            await asyncio.wait([running.worker])
        except asyncio.CancelledError:
            running.worker.cancel()
            _, unwilling = await asyncio.wait([running.worker], timeout=self.pace.cancel_grace)
            if unwilling:
                logger.error("the producer of stream %s does not stop when it is cancelled", generation.id)
            raise
        worker = running.worker
        if running.interrupted:
            # Stopped from outside, but its own result takes precedence.
            said = None if worker.cancelled() or worker.exception() else worker.result()
            return said or (None if running.release else running.ending)
        if worker.cancelled():
            return Ending(outcome=Outcome.CANCELLED, reason="cancelled_by_producer")
        error = worker.exception()
        if error is None:
            if generation.cancelled:
                return worker.result() or Ending(outcome=Outcome.CANCELLED, reason=generation.cancel_reason)
            return worker.result() or Ending(outcome=Outcome.COMPLETED)
        if isinstance(error, GenerationFailed):
            return error.ending
        if isinstance(error, GenerationReleased):
            return None
        if isinstance(error, LimitReached):
            return Ending(outcome=Outcome.FAILED, reason="too_long", error=str(error))
        logger.error("the producer of stream %s failed", generation.id, exc_info=error)
        # Without the message: it may contain anything, and every reader would get it.
        return Ending(outcome=Outcome.FAILED, reason="producer_error", error=type(error).__name__)

    async def _finish(self, running: _Running, ending: Ending) -> None:
        """Store the remaining events, then the ending."""
        generation = running.generation
        running.ending = ending
        backoff, since = Backoff(), float("inf")
        while not running.fenced:
            await generation.stored()
            if running.fenced or running.given_up:
                return
            n = generation.n
            if running.refused is not None:
                ending, n = running.refused, generation.acked
            if generation.paused and running.mending is not None:
                await asyncio.wait([running.mending])
                continue
            writer = generation.writer
            # Also final now: which messages will never be dealt with. One that arrives between this and the end is one of them.
            ending = replace(ending, applied=generation.stored_k)
            began = self._following.now()
            try:
                # A feed that cannot be written must not keep the stream from ending.
                patience = min(_FEED_PATIENCE, self.pace.log_timeout / 2)
                session = generation.head.session if began - since < patience else None
                verdict = await self._end(generation.id, writer, n, ending, session, generation.head.owner)
            except Exception as exc:
                if not isinstance(exc, LogUnavailable):
                    # Nothing is known to be stored, so retry as if the log were unavailable.
                    logger.exception("the log raised an unexpected error")
                since = min(since, began)
                if session is None and self._following.now() - since > self.pace.log_timeout:
                    logger.warning("the end of stream %s could not be stored: %s", generation.id, exc)
                    self._give_up(generation)
                    return
                await backoff.wait()
                continue
            if generation.paused or generation.writer is not writer:
                # The stream was restored meanwhile: answers to the old writer do not matter.
                continue
            match verdict:
                case Done():
                    self._show_ending(running, ending)
                    self.compact_soon(running.key)
                    return
                case Ended() | Fenced():
                    self._fence(running)
                case Behind(n):
                    self._resend(running, n)
                case Lost():
                    self._lost(running)

    async def _end(
        self, stream_id: str, writer: Writer, n: int, ending: Ending, session: str | None, owner: str
    ) -> Done | Fenced | Ended | Behind | Lost:
        """Store the ending, and record it in the feed of the session."""

        async def finish(also: Append | None) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
            if also is None:
                return await self.log.finish(writer, n, ending)
            return await self.log.finish(writer, n, ending, also=also)

        if session is None:
            verdict = await finish(None)
            assert not isinstance(verdict, AlsoRefused)
            return verdict
        return await self._sessions.step(session, owner, lambda feed: feed.ended(stream_id, ending), finish)

    async def _release(self, running: _Running) -> None:
        """Store the remaining events, and let another producer take the stream over at once."""
        generation = running.generation
        running.release = True
        await generation.stored()
        if running.fenced or running.given_up:
            return
        try:
            await self.log.renew([replace(generation.writer, lease=0.0)])
        except LogUnavailable as exc:
            # It is then taken over when its lease ends.
            logger.info("stream %s was not released: %s", generation.id, exc)

    def _show_ending(self, running: _Running, ending: Ending) -> None:
        followed = running.followed
        self._following.do(followed, followed.follower.finished(ending, running.generation.acked))

    def compact_soon(self, key: str) -> None:
        """Store an ended stream in fewer entries, in the background."""
        self.tasks.spawn(self._compact(key))

    async def _compact(self, key: str) -> None:
        try:
            await self.log.compact(key)
        except LogUnavailable as exc:
            # It stays as it is: larger, but just as readable.
            logger.info("stream %s was not compacted: %s", key, exc)

    # --- what the log answers

    def _appended(self, generation: Generation, item: Append, verdict: Appended) -> None:
        running = self._running.get(item.writer.stream_id)
        if running is None or running.generation is not generation:
            return
        generation.stored_at = generation.appended_at = self._following.now()
        if item.span is not None:
            self._following.do(running.followed, running.followed.follower.appended(item.span))
        if verdict.control is not None:
            self.hear_control(running.key, verdict.control)

    def _refused(self, generation: Generation, refusal: Refusal) -> None:
        running = self._running.get(generation.writer.stream_id)
        if running is None or running.generation is not generation:
            return
        match refusal:
            case Fenced() | Ended():
                self._fence(running)
            case Behind(n):
                self._resend(running, n)
            case Lost():
                self._lost(running)
            case _:
                logger.error("stream %s cannot be stored: %s", generation.id, refusal)
                running.refused = Ending(outcome=Outcome.FAILED, reason="producer_error", error="SpanRefused")
                running.stop(running.refused)
                generation.close(running.refused)

    def _resend(self, running: _Running, n: int) -> None:
        """The log ends at event `n`, before events it had acknowledged: send the rest again from the mirror."""
        generation, mirror = running.generation, running.followed.follower.mirror
        if mirror is None or n > generation.acked or n < mirror.oldest - 1 or mirror.n < generation.acked:
            self._give_up(generation)
            return
        logger.warning("the log of stream %s lost events %d to %d; sending them again", generation.id, n + 1, generation.acked)
        spans = mirror.spans(n)
        # In few pieces, because each is a trip; the note stays with its event.
        noted = [span for span in spans if span.n <= generation.note_n]
        generation.go_on(generation.writer, [*join_spans(noted), *join_spans(spans[len(noted) :])])
        self._flusher.touch(generation)

    def _lost(self, running: _Running) -> None:
        """The log has lost the stream: restore it. Nothing is sent meanwhile, because it would be from the old writer."""
        if running.forgotten:
            self._give_up(running.generation, Ending(outcome=Outcome.CANCELLED, reason=FORGOTTEN))
        elif not running.generation.paused:
            running.generation.paused = True
            running.mending = self.tasks.spawn(self._restore(running))

    async def _restore(self, running: _Running) -> None:
        """Restore a stream, under the same epoch if all of it is here."""
        generation, mirror, writer = running.generation, running.followed.follower.mirror, running.generation.writer
        if mirror is None or mirror.n < generation.acked:
            # A stream that was taken over a moment ago, and lost before it was read.
            self._give_up(generation)
            return
        whole = mirror.oldest == 1
        spans = mirror.spans(mirror.oldest - 1)
        epoch = generation.epoch if whole else epoch_of(secrets.token_bytes(8))
        since, backoff, in_doubt = self._following.now(), Backoff(), False
        while self._running.get(running.key) is running and not running.given_up:
            try:
                answer = await self.log.restore(
                    writer, generation.head, epoch, spans,
                    request=generation.request, note=generation.note, note_n=generation.note_n, taken=generation.stored_k,
                    inbox=generation.heard,
                )  # fmt: skip
                if in_doubt and isinstance(answer, Existing) and answer.epoch == epoch and answer.ending is None:
                    # An earlier attempt may have succeeded without a reply: then the stream obeys the writer it made.
                    mine = replace(writer, epoch=epoch, fence=writer.fence + 1, handover=None)
                    verdict = only(await self.log.renew([mine]))
                    answer = mine if verdict is None or isinstance(verdict, Control) else answer
            except LogUnavailable as exc:
                in_doubt = True
                if self._following.now() - since >= self.pace.log_timeout:
                    logger.warning("the log lost stream %s, which cannot be restored: %s", generation.id, exc)
                    self._give_up(generation)
                    return
                await backoff.wait()
                continue
            except Exception:
                logger.exception("the log raised an unexpected error")
                self._give_up(generation)
                return
            if isinstance(answer, Existing):
                self._fence(running)
            else:
                logger.warning("the log lost stream %s, which was restored", generation.id)
                generation.go_on(answer)
                if not whole:
                    self._following.do(
                        running.followed, running.followed.follower.own(epoch, generation.head, n=generation.acked)
                    )
                self._flusher.touch(generation)
            return

    def _fence(self, running: _Running) -> None:
        """Another process has the stream: stop, and write nothing more."""
        if not running.fenced:
            logger.warning("stream %s was taken over by another process", running.generation.id)
            running.fenced = True
            running.followed.owned = False
            self._flusher.forget(running.generation)
            running.stop(Ending(outcome=Outcome.FAILED, reason="producer_lost"))
            running.generation.close(Ending(outcome=Outcome.FAILED, reason="producer_lost"))
            self._following.do(running.followed, running.followed.follower.disown())

    def _give_up(self, generation: Generation, ending: Ending = _AWAY) -> None:
        """The log is unavailable for too long, or has lost more than is here: inform the readers here."""
        running = self._running.get(generation.writer.stream_id)
        if running is None or running.generation is not generation:
            return
        running.given_up = True
        elsewhere = ending is _AWAY and (callable(self._on_lost) or generation.continues)
        ending = replace(ending, applied=generation.stored_k)
        running.stop(ending)
        generation.close(ending)
        follower = running.followed.follower
        if elsewhere:
            # Another process, which can reach the log, continues it. Readers here are sent away, unless this process sees that
            # meanwhile.
            running.elsewhere = True
            running.followed.away_since = self._following.now() - self.pace.log_timeout
        elif follower.mirror is not None:
            self._following.do(running.followed, follower.finished(ending, follower.mirror.n))

    def log_is_back(self, key: str) -> None:
        """Make no claims for a lease in the shard of this stream, which can be reached again."""
        # A process that was cut off does not know the others' leases: it gives them one lease to return.
        now, shard = self._following.now(), shard_of(self.log, key)
        self._claims_from = {other: at for other, at in self._claims_from.items() if at > now}
        self._claims_from[shard] = now + self.pace.lease
        if not shard:
            # One recovered shard must not delay the sweep of the others; `may_claim` protects its own streams.
            self._sweeps_from = max(self._sweeps_from, now + self.pace.lease * random.uniform(1.0, 1.5))

    # --- the inbox

    def hear_control(self, key: str, control: Control) -> None:
        running = self._running.get(key)
        if running is None:
            return
        if control.cancel is not None and not running.generation.cancelled:
            running.forgotten = running.forgotten or control.cancel == FORGOTTEN
            running.generation.ask_to_stop(control.cancel)
            self.tasks.spawn(self._cancel(running, control.cancel or "cancelled_by_user"))
        running.said_k = max(running.said_k, control.k)
        if control.k > running.generation.heard_k and not running.fetching:
            running.fetching = True
            self.tasks.spawn(self._fetch(running))

    async def _cancel(self, running: _Running, reason: str) -> None:
        if running.patient:
            await asyncio.wait([running.task], timeout=self.pace.cancel_grace)
        await self._stop(running, Ending(outcome=Outcome.CANCELLED, reason=reason[:256]))

    async def _stop(self, running: _Running, ending: Ending) -> None:
        running.stop(ending)
        _, unwilling = await asyncio.wait([running.task], timeout=self.pace.cancel_grace)
        if unwilling and running.worker is not None and not running.worker.done():
            # It may have caught its cancellation and kept running.
            logger.warning("the producer of stream %s did not stop when it was cancelled", running.generation.id)
            running.generation.stopped = ending
            running.worker.cancel()

    async def _fetch(self, running: _Running) -> None:
        """Read the inbox for a producer here."""
        backoff = Backoff()
        try:
            while self._running.get(running.key) is running:
                said_k = running.said_k
                try:
                    messages = await self.log.inbox(running.key, running.generation.heard_k)
                except Exception as exc:
                    if not isinstance(exc, LogUnavailable):
                        logger.exception("the log raised an unexpected error")
                    await backoff.wait()
                    continue
                if not messages and running.said_k == said_k:
                    return
                running.generation.arrived(messages)
        finally:
            running.fetching = False

    # --- streams without a producer

    def may_claim(self, key: str) -> bool:
        return not self.closing and self._following.now() >= self._claims_from.get(shard_of(self.log, key), float("-inf"))

    def notice_orphan(self, key: str) -> None:
        if key not in self._running and key not in self._claiming and self.may_claim(key):
            self._claiming.add(key)
            self.tasks.spawn(self._take_over(key)).add_done_callback(lambda _: self._claiming.discard(key))

    async def claim(self, key: str, *, go_on: bool) -> Writer | Held | Ended | Unknown:
        """
        Claim a stream whose lease has ended. After a call without an answer, the next one gets what the first was granted.

        Raises:
            LogUnavailable: It is unknown whether the log granted it.
        """
        asked = key, go_on
        claimant = self._asked.pop(asked, None) or secrets.token_hex(8)
        try:
            return await self.log.claim(key, lease=self.pace.lease, go_on=go_on, claimant=claimant)
        except BaseException:
            self._asked[asked] = claimant
            if len(self._asked) > _MOST_ASKED:
                self._asked.popitem(last=False)
            raise

    async def _claimed(self, key: str, *, go_on: bool) -> Writer | Held | Ended | Unknown:
        """
        Claim a stream, and repeat the call while the log does not answer: if the claim was granted, nobody else can have the
        stream before its lease ends.
        """
        deadline, backoff = self._following.now() + self.pace.lease, Backoff()
        while True:
            try:
                return await self.claim(key, go_on=go_on)
            except LogUnavailable:
                await backoff.wait()
                if self._following.now() >= deadline or not self.may_claim(key):
                    raise

    async def take_over(self, key: str) -> None:
        """Claim a stream whose producer is lost, and continue or end it; a stream that is held is left alone."""
        if key not in self._running and self.may_claim(key):
            await self._take_over(key)

    async def _take_over(self, key: str) -> None:
        run: Any = self._on_lost if len(self._running) < self.pace.streams else None
        try:
            if self.successor is not None:
                page = await self.log.read(key, None, limit_bytes=0)
                if not isinstance(page, Page) or page.ending is not None or page.lease_left > 0.0:
                    self._waiting.discard(key)
                    return
                run = self.successor(key, page)
                if run == WAIT or (callable(run) and len(self._running) >= self.pace.streams):
                    self._waiting.add(key)
                    return
                self._waiting.discard(key)
            verdict = await self._claimed(key, go_on=callable(run))
            if not isinstance(verdict, Writer):
                return
            if verdict.handover is not None and verdict.handover.head.written:
                # Its time is over. The claim keeps others from appending meanwhile.
                await self.log.delete(key)
                return
            if self.closing:
                # The hub is shutting down: another process may claim the stream at once.
                await self.log.renew([replace(verdict, lease=0.0)])
                return
            writer = await self._give_back(verdict)
        except LogUnavailable as exc:
            logger.info("cannot take over stream %s now: %s", key, exc)
            return
        if writer is None:
            return
        handover = writer.handover
        assert handover is not None
        stream_id = handover.head.public_id or key
        if callable(run) and not self.is_behind(writer):
            logger.warning("stream %s lost its producer after event %d and is continued here", stream_id, handover.n)
            self.run(stream_id, writer, handover.head, run, None, looks=self.successor is not None)
            return
        logger.warning("stream %s lost its producer after event %d", stream_id, handover.n)
        await self.end_lost(writer)

    def is_behind(self, writer: Writer) -> bool:
        """
        Whether the log of a freshly claimed stream has lost events that this process has, under the same epoch.

        Their numbers must not be given to other events: readers have seen them.
        """
        return self._ahead(writer, writer.epoch) is not None

    def _ahead(self, writer: Writer, *epochs: str | None) -> Mirror | None:
        followed, handover = self._following.find(writer.stream_id), writer.handover
        mirror = None if followed is None else followed.follower.mirror
        return mirror if mirror and handover and mirror.epoch in epochs and mirror.n > handover.n else None

    async def _give_back(self, writer: Writer) -> Writer | None:
        """
        Append events that the log of a freshly claimed stream has lost, and that readers of this process have seen.

        Returns:
            The writer, with an updated handover. `None`: another process has the stream meanwhile.
        """
        handover = writer.handover
        assert handover is not None
        mirror = self._ahead(writer, writer.epoch, handover.before)
        if mirror is None or mirror.oldest > handover.n + 1:
            return writer
        logger.warning(
            "the log of stream %s lost events %d to %d; sending them again", writer.stream_id, handover.n + 1, mirror.n
        )
        for span in join_spans(mirror.spans(handover.n)):
            try:
                verdict = only(await self.log.append([Append(writer, span)]))
            except SpanRefused:
                # The log has another history than this process, whose events do not belong to it.
                break
            if not isinstance(verdict, Appended):
                return None
            handover = replace(handover, n=span.n, b=span.b)
        return replace(writer, handover=handover)

    async def end_lost(self, writer: Writer) -> None:
        """End a stream that was claimed but is not continued."""
        handover = writer.handover
        assert handover is not None
        reason = "producer_lost"
        outcome = Outcome.FAILED
        if handover.control is not None and handover.control.cancel is not None:
            # It was to be stopped anyway.
            outcome, reason = Outcome.CANCELLED, handover.control.cancel or "cancelled_by_user"
        head = handover.head
        stream_id = head.public_id or writer.stream_id
        ending = Ending(outcome=outcome, reason=reason, applied=handover.taken)
        try:
            try:
                verdict = await self._end(stream_id, writer, handover.n, ending, head.session, head.owner)
            except LogUnavailable:
                if head.session is None:
                    raise
                # Perhaps only the feed cannot be written.
                verdict = await self._end(stream_id, writer, handover.n, ending, None, head.owner)
        except LogUnavailable as exc:
            logger.info("stream %s has no end until its lease ends: %s", writer.stream_id, exc)
            return
        self.taken_over += isinstance(verdict, Done)
        await self._compact(writer.stream_id)

    async def _look_after(self) -> None:
        """Renew leases, find streams without a producer, cancel abandoned streams, and listen for messages to quiet producers."""
        period = self.pace.lease / 3
        self._put_sweep_off()
        while True:
            await asyncio.sleep(min(period, _LOOK))
            now = self._following.now()
            due: dict[tuple[str, bool], list[_Running]] = {}
            for each in self._running.values():
                if now - each.generation.stored_at >= period and each.holds:
                    due.setdefault((shard_of(self.log, each.key), each.unreached), []).append(each)
            for group, members in due.items():
                # Each shard separately, and apart from streams out of reach: a machine that is slow to fail must not let other
                # leases run out.
                if group not in self._renewing:
                    self._renewing.add(group)
                    self.tasks.spawn(self._renew_group(group, members))
            if now >= self._sweeps_from and not self.closing and self._sweeping is None:
                self._put_sweep_off()
                self._sweeping = self.tasks.spawn(self._sweep())
            for each in list(self._running.values()):
                self._listen(each, now)
                if self._is_abandoned(each, now):
                    each.generation.ask_to_stop("abandoned")
                    self.tasks.spawn(self._cancel(each, "abandoned"))

    async def _renew_group(self, group: tuple[str, bool], running: list[_Running]) -> None:
        try:
            await self._renew(running)
        except LogUnavailable as exc:
            logger.info("cannot renew leases now: %s", exc)
        except Exception:
            logger.exception("the log raised an unexpected error")
        finally:
            self._renewing.discard(group)

    async def _sweep(self) -> None:
        try:
            # Those that wait are found again each time, and must not hide the others.
            orphans = await self.log.orphans(_SWEEP + len(self._waiting))
            self._waiting &= set(orphans)
            for key in orphans:
                self.notice_orphan(key)
        except LogUnavailable as exc:
            logger.info("cannot look for streams without a producer now: %s", exc)
        except Exception:
            logger.exception("the log raised an unexpected error")
        finally:
            self._sweeping = None

    def _put_sweep_off(self) -> None:
        # Each process at its own time. Processes that start, or reach the log again, at the same moment would all find and claim
        # the same hundred streams, while the rest would wait for the next sweep.
        self._sweeps_from = self._following.now() + self.pace.lease * random.uniform(1.0, 1.5)

    def _is_abandoned(self, running: _Running, now: float) -> bool:
        patience = self.pace.abandon_after
        if patience is None or running.followed.readers or running.generation.cancelled:
            return False
        return now - running.followed.left_at > patience

    def _listen(self, running: _Running, now: float) -> None:
        """
        Listen to messages from other processes while a producer is quiet.

        A producer that appends learns of them from the log's answers; bells of its own events would only cost time.
        """
        quiet = running.holds and now - running.generation.appended_at >= _QUIET
        if quiet and not running.listening:
            running.listening = True
            self.tasks.spawn(self._hear(running))
        elif running.listening and not quiet and running.holds:
            running.listening = False
            self.tasks.spawn(self._following.unlisten(running.followed))

    async def _hear(self, running: _Running) -> None:
        try:
            await self._following.listen(running.followed)
            # Messages from before the listening began.
            if running.holds:
                await self._renew([running])
        except Exception as exc:
            # Retried at the next check.
            running.listening = False
            if not isinstance(exc, LogUnavailable):
                logger.exception("the log raised an unexpected error")
            logger.info("cannot listen to stream %s now: %s", running.generation.id, exc)

    async def _renew(self, running: list[_Running]) -> None:
        writers = [each.generation.writer for each in running]
        verdicts = await self.log.renew(writers)
        now = self._following.now()
        for each, writer, verdict in zip(running, writers, verdicts, strict=True):
            each.unreached = isinstance(verdict, Unavailable)
            if each.generation.paused or each.generation.writer is not writer:
                # Restored meanwhile, see `_lost`.
                continue
            match verdict:
                case Unavailable():
                    # At the next check, and separately from the others.
                    pass
                case None:
                    each.generation.stored_at = now
                case Control():
                    each.generation.stored_at = now
                    self.hear_control(each.key, verdict)
                case Fenced() | Ended():
                    self._fence(each)
                case Lost():
                    if not each.generation.is_sending:
                        # The pending append reports it itself.
                        self._lost(each)


class _Running:
    """A generation of this process, with its tasks."""

    def __init__(self, key: str, generation: Generation, followed: Followed) -> None:
        self.key = key
        self.generation = generation
        self.followed = followed
        self.task: asyncio.Task[Any]
        self.worker: asyncio.Task[Any] | None = None
        self.mending: asyncio.Task[Any] | None = None
        self.ending: Ending | None = None
        self.refused: Ending | None = None
        self.stopping = self.interrupted = self.release = self.fenced = self.given_up = self.fetching = self.forgotten = False
        self.listening = self.unreached = self.elsewhere = False
        self.said_k = 0

    @property
    def patient(self) -> bool:
        """The producer can check `gen.cancelled`, so it is given time."""
        return self.generation.looks

    @property
    def holds(self) -> bool:
        """It still needs its lease."""
        return not (self.fenced or self.given_up or self.release)

    def stop(self, ending: Ending, *, release: bool = False) -> None:
        """Cancel the producer; its stream ends like this unless it has already ended otherwise."""
        if not self.stopping:
            self.stopping, self.release = True, release
            self.ending = self.ending or ending
            if self.worker is not None and not self.worker.done():
                self.interrupted = True
                self.worker.cancel()


async def _drive(generation: Generation, run: Producer) -> Ending | None:
    """Run a producer, and send what it yields."""
    made: Any = run
    if not inspect.isasyncgen(run):
        function: Callable[..., Any] = run  # type: ignore[assignment]
        generation.looks = _takes_one(function)
        made = function(generation) if generation.looks else function()
    if hasattr(made, "__aiter__"):
        try:
            async for content in made:
                await generation.send(content)
        finally:
            await close(made)
        return None
    if not inspect.isawaitable(made):
        raise TypeError(f"a producer must be an async generator or async function, got one that returned {type(made).__name__}")
    result = await made
    if result is None or isinstance(result, Ending):
        return result
    if isinstance(result, Outcome):
        return Ending(outcome=result)
    raise TypeError(f"a producer must return an Outcome, an Ending or None, got {type(result).__name__}")


def check_producer(run: object) -> None:
    """
    Validate a producer.

    Raises:
        TypeError: Neither an async generator nor a function.
    """
    if not inspect.isasyncgen(run) and not callable(run):
        if inspect.iscoroutine(run):
            run.close()
        raise TypeError(
            f"a producer must be an async generator, a function that returns one, or an async function of a Generation, which is "
            f"passed without being called; got {type(run).__name__}"
        )


def _takes_one(run: Callable[..., object]) -> bool:
    """Whether it takes a `Generation`. A parameter with a default does not count: `lambda body=body: answer(body)`."""
    try:
        signature = inspect.signature(run)
    except ValueError:
        return True
    return any(
        each.kind is each.VAR_POSITIONAL
        or (each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) and each.default is each.empty)
        for each in signature.parameters.values()
    )


async def close(run: object) -> None:
    """Close a generator; does nothing for anything else."""
    aclose = getattr(run, "aclose", None)
    if aclose is not None:
        await aclose()
