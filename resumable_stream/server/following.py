"""
Drives the mirrors of one process: does what each `Follower` asks for, with one connection for bells and one task for the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from .._errors import LogUnavailable
from ._backoff import Backoff
from ._signal import Signal
from ._tasks import Tasks
from .log import Bell, Bells, Control, Gone, Released, StreamLog
from .mirror import Follower, Listen, Phase, Read, Step, Wake
from .texts import TextSoFar

if TYPE_CHECKING:
    from .reading import Reader

__all__ = ["Followed", "Following"]

logger = logging.getLogger("resumable_stream.server")

_RELEASED: Final = 1.0
"""Seconds over which processes with readers of a released stream check who takes it, each at a random moment. 1: an instance that
leaves releases all its streams at once, and a stream that grows within a second needs no check."""
_EARLIEST_POLL: Final = 0.5
"""Least share of `poll`: a silent mirror polls after a random part of it, from this to all. Streams fall silent together when a
shard is lost, and must not all be read in the same second."""
_IDLE: Final = 30.0
"""Seconds that a mirror without readers is kept. 30: a reloaded page still finds it."""


class Followed:
    """
    One stream as this process follows it.

    Attributes:
        key: Key of the stream in the log.
        follower: Its content, and its phase.
        grown: Rings when readers have something to look at.
        readers: How many read it here.
        owned: Its producer is in this process.
        dropped: It is no longer driven.
        text: The epoch, and its text so far, once requested.
        trouble: Why the log could not be read or heard last; `None` after a success.
        read_at: When the log was last read successfully, measured at the request.
        away_since: When reading first failed; `None`: it has answered or rung since.
        patience: Share of `poll` before the next poll.
    """

    __slots__ = (
        "away_since",
        "backoff",
        "dropped",
        "follower",
        "grown",
        "heard_at",
        "key",
        "left_at",
        "owned",
        "patience",
        "read_at",
        "readers",
        "text",
        "trouble",
    )

    def __init__(self, key: str, now: float) -> None:
        self.key = key
        self.follower = Follower()
        self.grown = Signal()
        self.readers = 0
        self.owned = self.dropped = False
        self.text: tuple[str, TextSoFar] | None = None
        self.trouble: LogUnavailable | None = None
        self.backoff = Backoff()
        self.heard_at = self.left_at = now
        self.read_at = float("-inf")
        self.away_since: float | None = None
        self.patience = random.uniform(_EARLIEST_POLL, 1.0)

    @property
    def settled(self) -> bool:
        """The contents of the log are known."""
        return self.follower.phase in (Phase.LIVE, Phase.ENDED, Phase.GONE)

    @property
    def is_over(self) -> bool:
        """The log has no such stream, or another one. A stream that went back may recover."""
        gone = self.follower.gone
        return self.follower.phase is Phase.GONE and not (isinstance(gone, Gone) and gone.why == "went_back")


class Following:
    """
    All streams that this process follows.

    Args:
        log: The log that holds them.
        poll: Longest silence, in seconds, before the log is read without a bell: the only cure for a lost last bell.
        mirror_bytes: Most bytes of all mirrors together. Those without a producer here lose their front first, the longest
            unheard first; a reader before it is served from the log.
        lease: Seconds in which the producer of a stream that the log has lost may still repair it.
        log_timeout: Seconds that the log may be unavailable before readers are sent elsewhere, spread over a lease.
        on_control: Called when the inbox of a stream has changed.
        on_orphan: Called when the lease of a stream that is read here has ended.
        on_back: Called with a stream that can be read again, before its contents are processed.

    Attributes:
        readers: All of this process; `tick()` of each is called about every second.
        holes_filled: Total over all streams, see `Follower`.
        grace: Seconds after the end of a lease within which a stream that is read here has been claimed by this process, or is
            known to have been claimed by another.
    """

    def __init__(
        self,
        log: StreamLog,
        *,
        poll: float,
        mirror_bytes: int,
        lease: float,
        log_timeout: float,
        on_control: Callable[[str, Control], None],
        on_orphan: Callable[[str], None],
        on_back: Callable[[str], None],
    ) -> None:
        self._log = log
        self._poll = poll
        # A poll sent just before, the next one, and delays on a busy machine.
        self.grace = 2 * poll + 1.0
        self.lease = lease
        self._log_timeout = log_timeout
        self._mirror_bytes = mirror_bytes
        self._on_control = on_control
        self._on_orphan = on_orphan
        self._on_back = on_back
        self._streams: dict[str, Followed] = {}
        self.readers: set[Reader] = set()
        self.holes_filled = 0
        self._tasks = Tasks("following a stream failed")
        self._bells: Bells | None = None
        self._clock = _clock

    def __len__(self) -> int:
        return len(self._streams)

    # --- life

    def start(self) -> None:
        """Start listening, and watching the clock. Call it in the event loop."""
        # Called several times per span; looking up the running loop costs more, because it checks for a fork each time.
        self._clock = asyncio.get_running_loop().time
        self._bells = self._log.bells()
        self._tasks.spawn(self._hear(self._bells))
        self._tasks.spawn(self._tick())

    async def aclose(self) -> None:
        """Stop following; readers are woken."""
        await self._tasks.cancel()
        if self._bells is not None:
            await self._bells.aclose()
        for followed in self._streams.values():
            followed.grown.wake()
        self._streams.clear()

    # --- streams

    def find(self, key: str) -> Followed | None:
        """A stream that is already followed."""
        return self._streams.get(key)

    def get(self, key: str) -> Followed:
        """A stream, followed from now on."""
        followed = self._streams.get(key)
        if followed is None:
            followed = self._streams[key] = Followed(key, self.now())
        return followed

    @contextlib.contextmanager
    def waited_for(self, key: str) -> Iterator[None]:
        """Somebody waits for a stream that is produced here but not yet read: it does not count as abandoned."""
        followed = self.get(key)
        followed.readers += 1
        try:
            yield
        finally:
            followed.readers -= 1
            followed.left_at = self.now()

    async def settle(self, followed: Followed, *, timeout: float) -> None:
        """
        Wait until the contents of the log are known.

        Raises:
            LogUnavailable: It cannot be read, or took longer than the timeout.
        """
        deadline = self.now() + timeout
        if self.is_cut_off(followed):
            # Existing readers are sent away, so do not admit new ones.
            raise followed.trouble or LogUnavailable(
                f"the log has not answered for {self._log_timeout:g} s", stream_id=followed.key
            )
        self.do(followed, followed.follower.listen())
        while not followed.settled:
            if followed.trouble is not None:
                raise followed.trouble
            if not await followed.grown.wait(max(0.0, deadline - self.now())):
                raise LogUnavailable(f"the log did not answer within {timeout} s", stream_id=followed.key)

    def is_cut_off(self, followed: Followed) -> bool:
        """Whether the log has been out of reach for so long that another process may know more of this stream."""
        since = followed.away_since
        return since is not None and not followed.owned and self.now() - since >= self._log_timeout

    async def confirm(self, followed: Followed, *, timeout: float) -> None:
        """
        Check that the log still has, or had one poll ago, an ended stream that is complete here.

        Nothing else would check, because the stream no longer grows. One check serves all readers that come within a poll.

        Raises:
            LogUnavailable: It cannot be read, or took longer than the timeout.
        """
        began = self.now()
        while followed.follower.phase is Phase.ENDED and followed.read_at <= began - self._poll:
            followed.trouble = None  # from an earlier failure
            self.do(followed, followed.follower.confirm())
            if not await followed.grown.wait(max(0.0, began + timeout - self.now())):
                raise LogUnavailable(f"the log did not answer within {timeout} s", stream_id=followed.key)
            if followed.trouble is not None:
                raise followed.trouble

    async def reach(self, followed: Followed, n: int, *, ended: bool, timeout: float) -> None:
        """
        Wait until the mirror reaches event `n`, and the ending if it has `ended`: the log has them, but bells may be late.

        Returns without that if the log has something else by now.

        Raises:
            LogUnavailable: The log cannot be read, or took longer than the timeout.
        """
        deadline = self.now() + timeout
        while (mirror := followed.follower.mirror) is not None and (mirror.n < n or (ended and mirror.ending is None)):
            if followed.is_over or followed.dropped:
                return
            followed.trouble = None
            self.do(followed, followed.follower.poll())
            if not await followed.grown.wait(max(0.0, deadline - self.now())):
                raise LogUnavailable(f"the log did not answer within {timeout} s", stream_id=followed.key)
            if followed.trouble is not None:
                raise followed.trouble

    async def listen(self, followed: Followed) -> None:
        """
        Listen to the bells of a stream whose producer is here, for messages from others.

        Raises:
            LogUnavailable: The log cannot be heard.
        """
        assert self._bells is not None
        await self._bells.add(followed.key)

    async def unlisten(self, followed: Followed) -> None:
        """Stop listening, unless the stream has moved to another process meanwhile and has to be followed."""
        assert self._bells is not None
        if followed.owned:
            await self._bells.discard(followed.key)

    def forget(self, key: str) -> None:
        """Drop a stream; for its remaining readers it is gone, unless its ending is known."""
        followed = self._streams.pop(key, None)
        if followed is not None:
            followed.dropped = True
            followed.follower.drop()
            followed.grown.wake()
            self._tasks.spawn(self._discard(key))

    def do(self, followed: Followed, steps: list[Step]) -> None:
        """Carry out what a follower asks for."""
        for step in steps:
            match step:
                case Wake():
                    followed.grown.wake()
                case Listen():
                    self._tasks.spawn(self._listen(followed))
                case Read():
                    self._tasks.spawn(self._read(followed, step))

    # --- tasks

    async def _listen(self, followed: Followed) -> None:
        assert self._bells is not None
        while self._streams.get(followed.key) is followed:
            asked = self.now()
            try:
                await self._bells.add(followed.key)
            except Exception as exc:  # noqa: BLE001
                await self._wait_out(followed, _trouble(followed.key, exc), asked)
                continue
            followed.trouble = None
            self.do(followed, followed.follower.heard())
            return

    async def _read(self, followed: Followed, step: Read) -> None:
        while True:
            asked = self.now()
            try:
                answer = await self._log.read(followed.key, step.after)
                before = followed.follower.holes_filled
                steps = followed.follower.read(answer)
                self.holes_filled += followed.follower.holes_filled - before
            except Exception as exc:  # noqa: BLE001
                followed.follower.unread()
                await self._wait_out(followed, _trouble(followed.key, exc), asked)
                if followed.read_at > asked:
                    # A bell has led to a read meanwhile. When a log recovers, one read per stream is enough.
                    return
                retry = followed.follower.retry() if self._streams.get(followed.key) is followed else []
                if len(retry) == 1 and isinstance(retry[0], Read):
                    step = retry[0]
                    continue
                self.do(followed, retry)
                return
            if self._streams.get(followed.key) is not followed:
                # Dropped meanwhile: its readers know.
                followed.follower.drop()
                return
            if followed.trouble is not None:
                self._on_back(followed.key)
            followed.trouble = followed.away_since = None
            followed.backoff.reset()
            followed.heard_at = self.now()
            followed.read_at = asked
            self.do(followed, steps)
            followed.grown.wake()
            follower = followed.follower
            if follower.running_until is not None and follower.lease_left == 0.0 and not followed.owned:
                self._on_orphan(followed.key)
            return

    async def _wait_out(self, followed: Followed, trouble: LogUnavailable, asked: float) -> None:
        followed.trouble = trouble
        if followed.away_since is None:
            followed.away_since = asked
        followed.grown.wake()
        await followed.backoff.wait()

    async def _discard(self, key: str) -> None:
        assert self._bells is not None
        if key not in self._streams:
            try:
                await self._bells.discard(key)
            except LogUnavailable:
                # Bells of a stream that nobody follows are ignored.
                logger.debug("cannot stop listening to stream %s: the log is unavailable", key)

    async def _hear(self, bells: Bells) -> None:
        async for bell in bells:
            try:
                self._ring(bell)
            except Exception:
                # Only this stream is affected: the others continue, and this one is read at its next poll.
                logger.exception("a bell of stream %s could not be processed", bell.id)

    def _ring(self, bell: Bell) -> None:
        if isinstance(bell.item, Control):
            self._on_control(bell.id, bell.item)
        followed = self._streams.get(bell.id)
        if followed is None:
            return
        followed.heard_at, followed.away_since = self.now(), None
        if not isinstance(bell.item, Released):
            self.do(followed, followed.follower.bell(bell))
        elif followed.readers and not followed.owned:
            mirror = followed.follower.mirror
            n = mirror.n if mirror is not None else 0
            asyncio.get_running_loop().call_later(random.uniform(0.0, _RELEASED), self._look_at_released, followed, n)

    def _look_at_released(self, followed: Followed, n: int) -> None:
        """Read a released stream, which may then be claimed; if it has grown, another process has it already."""
        mirror = followed.follower.mirror
        grown = mirror is not None and mirror.n > n
        if self._streams.get(followed.key) is followed and not followed.owned and not grown:
            self.do(followed, followed.follower.bell(Bell(id=followed.key)))

    async def _tick(self) -> None:
        period = min(1.0, self._poll / 2)
        while True:
            await asyncio.sleep(period)
            now = self.now()
            for reader in tuple(self.readers):
                reader.tick(now)
                if self.is_cut_off(reader.followed) and not reader.left:
                    # Spread evenly over a lease, so that they do not all return at once.
                    since = reader.followed.away_since or now
                    rest = since + self._log_timeout + self.lease - now
                    if random.random() * rest <= period:
                        reader.leave()
            for followed in list(self._streams.values()):
                if followed.readers:
                    if now - followed.heard_at >= self._poll * followed.patience:
                        followed.heard_at = now
                        followed.patience = random.uniform(_EARLIEST_POLL, 1.0)
                        self.do(followed, followed.follower.poll())
                elif not followed.owned and now - followed.left_at > _IDLE:
                    self.forget(followed.key)
            self._trim()

    def _trim(self) -> None:
        mirrors = [
            (followed.owned, followed.heard_at, followed.follower.mirror)
            for followed in self._streams.values()
            if followed.follower.mirror is not None
        ]
        excess = sum(mirror.size for _, _, mirror in mirrors) - self._mirror_bytes
        for owned, _, mirror in sorted(mirrors, key=lambda each: each[:2]):
            if excess <= 0:
                return
            # A producer's copy repairs a log that lost its end: keep its last half.
            excess -= mirror.trim(mirror.size // 2 if owned else 0)

    def now(self) -> float:
        """Seconds on the clock of the event loop."""
        return self._clock()


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _trouble(key: str, error: Exception) -> LogUnavailable:
    """Treat any error of the log as unavailability, so that it is retried while readers wait."""
    if isinstance(error, LogUnavailable):
        return error
    logger.error("the log raised an unexpected error", exc_info=error)
    return LogUnavailable(f"the log raised {type(error).__name__}", stream_id=key)
