"""
Who continues the streams of a relay that died: the next relay that has a reader with a key.

    the first relay    reads the upstream with the key of the request, and leaves a note after every span
    its lease ends     the stream waits, because nobody can continue without a key
    a reader comes     to any relay over the same log, or is already there: that relay claims the stream, and requests the
                       rest from the upstream with the reader's key
    nobody comes       after `takeover_wait` seconds the stream ends as `producer_lost`

Keys stay in memory as long as their reader is connected. The decisions are in `_relay_notes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from .._errors import LogUnavailable
from .._events import Outcome
from ..protocols import Head as ResponseHead
from ..protocols import ResumeProtocol, StreamState
from ..protocols._detect import named
from ..transports._verbatim import resumable
from . import wire
from ._relay_notes import Credentials, Note, Refused, credentials_of, described, next_of, shown_by, without_keys
from ._relay_resuming import Upstream, follow, stop
from ._relay_rules import headers_up
from ._values import Ending, Page
from .answering import wrong_id
from .generations import WAIT
from .hub import Hub, key_of
from .wire import Answer, Facts

if TYPE_CHECKING:
    import aiohttp
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ._relay_metrics import Metrics
    from ._relay_upstream import Client
    from .generation import Generation

__all__ = ["Takeovers", "protocol_for"]

_PREFIX: Final = "/.streams/"
_PATIENCE: Final = 10.0
"""Longest wait of a reader, in seconds, for the upstream's answer to a takeover. 10: after that, the reader waits for events."""
_LOOK: Final = 1.0
"""Longest wait, in seconds, between two checks of a cancelled stream whose relay may be dead."""
_LOST: Final = Ending(outcome=Outcome.FAILED, reason="producer_lost")
_MOST_SEEN: Final = 10_000
"""Streams without a relay that are remembered. 10,000: as many as run in one process."""


def protocol_for(method: str, url: str, json: Any, head: ResponseHead, framing: str) -> ResumeProtocol | None:
    """The protocol of an answer that can be resumed and is kept as complete events; `None`: it is read as any other."""
    url = without_keys(url)
    protocol = resumable(StreamState(method, url, json), ResponseHead(head.status, head.headers, url))
    return protocol if protocol is not None and protocol.framing == framing else None


class Takeovers:
    """
    The streams of resumable upstreams that one relay reads, and those of other relays that it may continue.

    Args:
        hub: Hub of the relay.
        upstreams: URLs by mount, as notes name them.
        metrics: Metrics of the relay.
        principal: Returns the principal of a request.
        wait: Seconds that a stream without a relay waits for a reader with a key.
        connect, idle: As for the relay.
    """

    def __init__(
        self,
        hub: Hub,
        upstreams: Mapping[str, str],
        metrics: Metrics,
        principal: Callable[[Facts], Awaitable[str]],
        *,
        wait: float,
        connect: float,
        idle: float,
    ) -> None:
        self._hub = hub
        self._upstreams = {mount or "/": url for mount, url in upstreams.items()}
        self._metrics = metrics
        self._principal = principal
        self._wait = wait
        self._connect, self._idle = connect, idle
        self.client: Client | None = None
        # By key in the log: what its readers here have shown, and since when it is known to have no relay.
        self._shown: dict[str, list[Credentials]] = {}
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}
        self._leaving: set[str] = set()
        self._attempts: dict[str, asyncio.Future[Refused | None]] = {}
        hub._generations.successor = self.successor

    # --- a stream that begins here

    def begin(
        self,
        response: aiohttp.ClientResponse,
        protocol: ResumeProtocol,
        *,
        mount: str,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        query: str,
        json: Any,
        content: bytes,
    ) -> Callable[[Generation], Awaitable[Ending | None]]:
        """The producer for the answer of an upstream that can resume; for other answers, see `Relay`."""
        credentials = credentials_of(headers, query)
        upstream = self._upstream(mount, credentials, described(headers), credentials.sessions)

        async def run(gen: Generation) -> Ending | None:
            key = gen.writer.stream_id
            return await follow(
                gen,
                upstream=upstream,
                make=lambda: upstream.begun(response, protocol, method, without_keys(url), json, content),
                skip=0,
                metrics=self._metrics,
                opened=lambda: None,
                refused=functools.partial(self._on_refused, key, upstream.credentials),
            )

        return run

    def _upstream(
        self, mount: str, credentials: Credentials, noted: tuple[tuple[str, str], ...], needs: tuple[str, ...]
    ) -> Upstream:
        assert self.client is not None, "the relay is entered"
        count = functools.partial(self._metrics.count, "relay_upstream_bytes_total", upstream=mount)
        return Upstream(
            self.client,
            mount,
            credentials,
            noted,
            needs,
            connect=self._connect,
            idle=self._idle,
            event_bytes=self._hub.limits.event_bytes,
            count=count,
        )

    # --- a stream whose relay is lost

    def successor(self, key: str, page: Page) -> Any:
        """Who continues a stream that nobody produces; see `Successor`."""
        note = Note.of(page.note)
        shown = self._usable(key, () if note is None else note.needs)
        # A later version may know the protocol of its note.
        upstreams = self._upstreams if note is not None and named(note.place.protocol) is not None else {}
        found = next_of(note, upstreams, shown=shown is not None, waited=self._waited(key, page), patience=self._wait)
        if found == "wait":
            return WAIT
        if found == "end" or note is None:
            self._seen.pop(key, None)
            return None
        return functools.partial(self._go_on, credentials=shown or Credentials(()))

    def _waited(self, key: str, page: Page) -> float:
        """Seconds without a relay: on the log's clock, or, for a released stream, since it was first seen here."""
        now, stands = asyncio.get_running_loop().time(), (page.epoch, page.n)
        seen = self._seen.pop(key, None)
        # If it has grown since, somebody continued it meanwhile.
        since = seen[1] if seen is not None and seen[0] == stands else now
        self._seen[key] = stands, since
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return max(now - since, page.now - page.running_until if page.running_until else 0.0)

    def _usable(self, key: str, needs: tuple[str, ...]) -> Credentials | None:
        shown = reversed(self._shown.get(key, []))
        return next((each for each in shown if not each.refused and set(needs) <= set(each.sessions)), None)

    async def _go_on(self, gen: Generation, *, credentials: Credentials) -> Ending | None:
        """The producer for a stream of another relay."""
        key, note = gen.writer.stream_id, Note.of(gen.note)
        attempt = self._attempts.setdefault(key, asyncio.get_running_loop().create_future())
        if note is None or gen.resumed_from is None or gen.resumed_from < gen.note_n:
            # The log has lost events, and the note with them.
            self._settle(key, attempt, None)
            return _LOST
        gen.continues = True
        upstream = self._upstream(note.mount, credentials, note.headers, note.needs)

        def opened() -> None:
            self._settle(key, attempt, None)

        async def refused(found: Refused) -> None:
            self._settle(key, attempt, found)
            await self._on_refused(key, credentials, found)

        try:
            return await follow(
                gen,
                upstream=upstream,
                make=lambda: upstream.resumed(note),
                skip=gen.resumed_from - gen.note_n,
                metrics=self._metrics,
                opened=opened,
                refused=refused,
            )
        finally:
            opened()

    def _settle(self, key: str, attempt: asyncio.Future[Refused | None], found: Refused | None) -> None:
        if not attempt.done():
            attempt.set_result(found)
        if self._attempts.get(key) is attempt:
            del self._attempts[key]

    async def joined(
        self, key: str, headers: Iterable[tuple[str, str]], query: str, answer: Callable[[], Awaitable[ASGIApp]]
    ) -> ASGIApp | Answer:
        """
        The answer to a request whose key belongs to an existing stream: the client reads that stream too.

        Args:
            key: Key of the stream in the log.
            headers: Headers of the request that pass.
            query: Query of the request.
            answer: Makes the answer.
        """
        credentials = shown_by(headers, query)
        with self.shown(key, credentials):
            if (refusal := await self.before_reading(key)) is not None:
                return refusal
            response = await answer()

        async def shown(scope: Scope, receive: Receive, send: Send) -> None:
            with self.shown(key, credentials):
                await response(scope, receive, send)

        return shown

    async def _on_refused(self, key: str, credentials: Credentials, found: Refused) -> None:
        """The upstream rejects these credentials. Readers are disconnected, unless one here has others."""
        credentials.refused = True
        for other in self._shown.get(key, []):
            # Thousands may read with one key, and the upstream is asked only once.
            other.refused = other.refused or other.grants_like(credentials)
        # Entries of streams that no reader returned to are dropped.
        self._leaving = {each for each in self._leaving if each in self._hub._generations} | {key}
        if self._usable(key, credentials.sessions) is None:
            for reader in list(self._hub._readers):
                if reader._followed.key == key:
                    reader.leave()

    # --- readers

    @contextlib.asynccontextmanager
    async def reading(self, scope: Scope, path: str) -> AsyncIterator[Answer | None]:
        """
        Wrap the answer to a request for one of the relay's own routes: whoever may read a stream may also continue it.

        Args:
            scope: Scope of the request.
            path: Path below the mount of the relay.

        Yields:
            The answer to send instead, if the upstream has just refused the key of this request.
        """
        asked = _asked(scope["method"], path)
        if asked is None:
            yield None
            return
        id, action = asked
        query = scope["query_string"].decode("latin-1")
        facts = Facts(
            scope["method"], {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}, query
        )
        try:
            key = key_of(id, await self._principal(facts))
        except LogUnavailable:
            yield None
            return
        credentials = shown_by(headers_up(scope["headers"]), query)
        with self.shown(key, credentials):
            if action == "forget":
                await self._stop_lost(key, credentials)
            yield await self.before_reading(key) if action == "read" else None
        if action == "cancel":
            self._hub._generations.tasks.spawn(self._cancel_lost(key, credentials))

    @contextlib.contextmanager
    def shown(self, key: str, credentials: Credentials) -> Iterator[None]:
        """During the context, a reader is here who may continue this stream."""
        held = self._shown.setdefault(key, [])
        held.append(credentials)
        try:
            yield
        finally:
            held.remove(credentials)
            if not held and self._shown.get(key) is held:
                del self._shown[key]

    async def before_reading(self, key: str) -> Answer | None:
        """Take a stream over if it has no relay; returns an answer if the upstream has refused this client."""
        hub = self._hub
        followed = hub._following.find(key)
        mirror = None if followed is None else followed.follower.mirror
        if mirror is not None and mirror.ending is not None:
            return None
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while key in self._leaving and key in hub._generations and asyncio.get_running_loop().time() < deadline:
            # It was refused a moment ago, and is being released.
            await hub._generations.changed.wait(_LOOK)
        self._leaving.discard(key)
        if key in hub._generations:
            if (attempt := self._attempts.get(key)) is None:
                return None
        else:
            try:
                page = await hub._log.read(key, None, limit_bytes=0)
            except LogUnavailable:
                return None  # the read itself reports it
            if not isinstance(page, Page) or page.ending is not None or page.lease_left > 0.0:
                return None
            # Made before its producer, which starts in its own task.
            attempt = self._attempts.setdefault(key, asyncio.get_running_loop().create_future())
            # The claim has its own task too: a reader who leaves must not leave behind a claimed stream without a producer.
            taking = hub._generations.tasks.spawn(hub._generations.take_over(key))
            taking.add_done_callback(lambda _: self._settle_without_producer(key, attempt))
            await asyncio.wait({attempt, taking}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if (running := hub._generations._running.get(key)) is not None:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            with hub._following.waited_for(key):
                await asyncio.wait({attempt, running.task}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._settle_without_producer(key, attempt)
        refused = attempt.result() if attempt.done() else None
        if refused is None:
            return None
        text = "the upstream refuses this key, so the stream cannot continue with it; try another key"
        return wire.problem(refused.status, "upstream_refused", text)

    def _settle_without_producer(self, key: str, attempt: asyncio.Future[Refused | None]) -> None:
        """Another process was faster, nobody can continue it, or its producer was stopped before it started."""
        if key not in self._hub._generations:
            self._settle(key, attempt, None)

    async def _stop_lost(self, key: str, credentials: Credentials) -> None:
        """Stop the work upstream for a stream without a relay that is about to be deleted."""
        with contextlib.suppress(LogUnavailable):
            page = await self._hub._log.read(key, None, limit_bytes=0)
            if not isinstance(page, Page) or page.ending is not None or page.lease_left > 0.0:
                return
            note = Note.of(page.note)
            if note is not None and next_of(note, self._upstreams, shown=True, waited=0.0, patience=0.0) == "go_on":
                upstream = self._upstream(note.mount, credentials, note.headers, note.needs)
                with contextlib.suppress(ValueError):
                    await stop(upstream.resumed(note))
                await upstream.aclose()

    async def _cancel_lost(self, key: str, credentials: Credentials) -> None:
        """Cancel a stream whose relay is dead: after its lease has ended, stop it upstream with the client's key."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 2 * self._hub.lease
        with self.shown(key, credentials), contextlib.suppress(LogUnavailable):
            while loop.time() < deadline and key not in self._hub._generations:
                page = await self._hub._log.read(key, None, limit_bytes=0)
                if not isinstance(page, Page) or page.ending is not None:
                    return
                if page.lease_left == 0.0:
                    await self._hub._generations.take_over(key)
                    return
                await asyncio.sleep(min(page.lease_left, _LOOK))


def _asked(method: str, path: str) -> tuple[str, str] | None:
    """The id and the action of a request that presents a key for a stream: to read, cancel or delete it."""
    id, _, rest = path.removeprefix(_PREFIX).partition("/")
    action = {("GET", ""): "read", ("POST", "cancel"): "cancel", ("DELETE", ""): "forget"}.get((method, rest))
    return None if action is None or not path.startswith(_PREFIX) or wrong_id(id) is not None else (id, action)
