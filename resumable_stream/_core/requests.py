"""
Which request may be sent next (rules 8 to 10): the first one, one for the rest, or none if any would be billed twice.

That depends on what the server has seen so far: whether a request was answered, whether its body can be sent again, and where a
redirect led after the request was accepted.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from .._checkpoint import Checkpoint, encodable
from .._contract import (
    KEY,
    Explained,
    Head,
    Joined,
    Measured,
    Replayed,
    Request,
    ResumeProtocol,
    StreamState,
    origin_of,
    same_origin,
)
from .._errors import NotResumable, ResumableStreamError
from .ledger import Ledger
from .origins import redirected
from .plan import Send, Stop
from .settings import Settings

__all__ = ["Requests", "sendable"]

_BYTES: Final = re.compile(r"[0-9]{1,18}")


class Requests:
    """
    Args:
        answered: The server has answered the first request, in another process.

    Attributes:
        answered: The server has answered a request of the stream.
        refused: Why the URL that the server named for resuming is not used.
        latest: The request that was sent last.
        asking: It asks whether there is more (rule 7c).
        redirects: Number of consecutive redirects.
        sent_at, answered_at: When the latest request was sent, and when its head arrived.
    """

    def __init__(self, state: StreamState, settings: Settings, *, answered: bool) -> None:
        self.state = state
        self.answered = answered
        self.refused: ResumableStreamError | None = None
        self.latest: Request | None = None
        self.asking = False
        self.redirects = 0
        self.sent_at = self.answered_at = 0.0
        self._settings = settings
        self._origin = origin_of(state.url)
        self._accepted: Request | None = None
        """The request that a redirect led to after the first request was accepted."""
        self._body_sent = False
        self._refreshed = False

    def adopt(self, protocol: ResumeProtocol, ledger: Ledger) -> None:
        """The stream's protocol; at first possibly one that stands in for it."""
        self._protocol, self._ledger = protocol, ledger

    # --- what may be sent

    def first(self) -> Request:
        """The request that starts the stream."""
        protocol = self._protocol
        request, key = protocol.first_request(self.state), self.state.extra.get(KEY)
        headers = {**request.headers, **Joined.of(protocol).first_headers, **({} if key is None else {"Idempotency-Key": key})}
        return replace(request, headers=headers) if headers else request

    def anew(self) -> Send:
        """Start the stream, of which nothing has been seen."""
        self.answered = False
        return Send(self.first(), resuming=False)

    def rest(self) -> Request | None:
        """The request for what follows the delivered events; `None` if the stream cannot be resumed."""
        # Without a position, only a replay, a count, or a feed (which continues with new events) can be resumed.
        if not self.answered or self.placeless or not self.makes_sense():
            return None
        self.sync()
        return self._checked(self._protocol.resume_request(self.state))

    def next(self, *, asking: bool = False) -> Send | Stop | None:
        """The next request, which may ask whether there is more; `None` if any would be billed twice (rule 9)."""
        try:
            if (rest := self.rest()) is not None:
                return Send(rest, resuming=True, asking=asking)
            first = self._from_the_start()
        except ResumableStreamError as error:
            return Stop(error)
        return None if first is None else Send(first, resuming=False, asking=asking)

    def _from_the_start(self) -> Request | None:
        """The request for a stream of which nothing was delivered, if it may be sent (again)."""
        if self._ledger.offset or self._ledger.cursor is not None:
            return None
        if self._accepted is not None and not self.answered:
            return self._accepted
        if self.elsewhere:
            # Method and URL come from a token, which must not make this process start a request with side effects.
            return None
        if not self.answered or self.idempotent or (self.state.safe and not self._protocol.promises.tied):
            return self.first()
        return None

    def again(self) -> Send:
        """The latest request again; after redirects, the one that led to them."""
        planned = self.next()
        request = planned.request if isinstance(planned, Send) else self.latest
        assert request is not None
        return Send(request, self.state.resuming, self.asking)

    def resumable(self) -> bool:
        """Whether the rest of the stream can be requested from its current position."""
        try:
            return self.rest() is not None
        except ResumableStreamError:
            return False

    def may_repeat(self) -> bool:
        """Whether the latest request may be sent again even if the server received it (rule 9)."""
        return self.idempotent or self.state.safe or self.state.resuming or self._accepted is not None

    @property
    def idempotent(self) -> bool:
        """Whether the first request carries an `Idempotency-Key`, the same each time it is sent."""
        return self._settings.idempotent or KEY in self.state.extra

    @property
    def elsewhere(self) -> bool:
        """Whether another process started the stream with an unsafe request, so that we must not start it again."""
        return self._settings.started_elsewhere and not self.state.safe

    @property
    def placeless(self) -> bool:
        """Whether events came but none gave a position."""
        protocol, ledger = self._protocol, self._ledger
        if ledger.cursor is not None or not ledger.offset:
            return False
        return not (Replayed.of(protocol).replays or Measured.of(protocol).counted or protocol.endless)

    def makes_sense(self) -> bool:
        """Whether the cursor is valid: one that counts bytes must be a number, but a checkpoint's may be anything."""
        protocol, cursor = self._protocol, self._ledger.cursor
        counts_bytes = Measured.of(protocol).measured or protocol.framing == "raw"
        return not counts_bytes or not cursor or _BYTES.fullmatch(cursor) is not None

    def why_not(self) -> str:
        """Why the rest cannot be requested, and what the caller can pass; `""` if there is nothing to say."""
        if self.refused is not None:
            return str(self.refused)
        if self.placeless and self._protocol.promises.resumable:
            return "no event had an id, or anything else to resume from"
        known = Explained.of(self._protocol).why_not(self.state)
        return known if known or self._protocol.promises.resumable else f"{self._protocol.name} has no way to ask for the rest"

    def cancel(self) -> Request | None:
        """The request that stops the generation; `None` if the protocol has no such call."""
        self.sync()
        return self._checked(self._protocol.cancel_request(self.state))

    def _checked(self, request: Request | None) -> Request | None:
        if request is None or not request.sendable:
            return None
        self.check_origin(request)
        return request

    def check_origin(self, request: Request) -> None:
        """
        Raises:
            OriginMismatch: The request would take the credentials to another origin than the stream's.
        """
        same_origin(request.url, base=self.state.url, origin=self._origin)

    def sync(self) -> None:
        """Update the state that the protocol sees to the stream's position."""
        ledger, state = self._ledger, self.state
        state.cursor, state.sequence, state.offset = ledger.cursor, ledger.sequence, ledger.offset
        if ledger.beyond_gap and self._protocol.endless:
            # From there, a feed would report the gap again and again. It continues with new events.
            state.cursor = None

    # --- what was sent

    def begin(self, send: Send) -> None:
        """A request of the stream is about to be sent, for the first time or after another."""
        self.redirects = 0
        self.state.resuming, self.state.asking, self.asking = send.resuming, send.asking, send.asking

    def send(self, request: Request, now: float) -> NotResumable | None:
        """Record that the request is sent, or return why it cannot be."""
        if self._body_sent and request.repeat in ("all", "body"):
            text = "the request would have to be sent again, but its body can be sent only once: pass it as bytes"
            return NotResumable(text)
        self.latest, self.sent_at = request, now
        return None

    def arrived(self) -> None:
        """The server may have read the body of the latest request."""
        self._body_sent = self._body_sent or self._settings.single_use

    def head_came(self, head: Head, now: float) -> None:
        """The latest request is being answered."""
        self.state.head, self.answered_at = head, now
        self.arrived()

    def redirect(self, head: Head) -> Request:
        """
        The request that follows a redirect.

        Raises:
            ResumableStreamError: It may not be followed.
        """
        assert self.latest is not None
        self.redirects += 1
        follow = redirected(self.latest, head, self.state.cursor)
        if follow.method != self.latest.method:
            # The server has accepted the request; only the URL that it points to may be requested again.
            self._accepted = follow
        return follow

    def refresh(self) -> bool:
        """Credentials were refused. True: ask once more, since the client or a callable may supply new ones."""
        if self._refreshed or not (self.state.resuming or self._settings.refreshable):
            return False
        self._refreshed = True
        return True

    def progress(self) -> None:
        """New events came: the credentials were good."""
        self._refreshed = False

    def read_head(self, head: Head) -> None:
        """The answer is read. Resolve the URL that its head names for resuming, or refuse it."""
        state, self.answered = self.state, True
        self._protocol.identify(state, head)
        state.stream_id = sendable(state.stream_id)
        if state.location is not None:
            location, state.location = state.location, None
            try:
                state.location = same_origin(location, base=head.url, origin=self._origin)
            except ResumableStreamError as error:
                # The answer may be complete without it; it matters only if the rest has to be requested.
                self.refused = error

    def restore(self, checkpoint: Checkpoint, location: str | None) -> None:
        """The stream continues from this checkpoint, which the ledger has restored and which may name a URL to resume from."""
        state = self.state
        state.stream_id = sendable(checkpoint.stream_id)
        state.extra = {name: value for name, value in checkpoint.extra.items() if name in self._protocol.keeps}
        if location is not None:
            state.location = same_origin(location, base=state.url, origin=self._origin)
        self.sync()

    def start_over(self) -> None:
        """The stream starts again with its first request."""
        self.state.stream_id = self.state.location = None
        # The previous key belongs to the lost stream.
        self.choose_key()
        self._accepted = None

    def choose_key(self) -> None:
        """
        Choose a key for the first request, if the server joins a repeated request to the stream that it started.

        Not if that request was already sent: by another process, without a key, or before the protocol was known.
        """
        settings = self._settings
        joins = Joined.of(self._protocol).joins and not self.state.safe
        if joins and settings.new_key is not None and not (settings.idempotent or settings.started_elsewhere):
            self.state.extra[KEY] = settings.new_key()


def sendable(stream_id: str | None) -> str | None:
    """The id; `None` if it contains half of a surrogate pair, which cannot be written into a request."""
    return stream_id if stream_id is None or encodable(stream_id) else None
