"""
How one kind of endpoint is resumed.

A protocol says *how* to request the rest and what ends a stream. The machine decides *when*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar

from .._checkpoint import fingerprint, fingerprint_bytes
from .._errors import UpstreamError
from .._events import Chunk, Delta, Item, Outcome
from .abilities import Ability, adopt
from .values import Head, Position, Promises, Request, StreamState
from .verdicts import Finished, Interrupted, Resume, Settled, Unproven, Verdict

__all__ = ["Detect", "ResumeProtocol"]

_Ability = TypeVar("_Ability", bound=Ability)


class ResumeProtocol:
    """
    How to resume one kind of endpoint. Subclass it for your own; the defaults fit plain SSE.

    Methods are pure functions of their arguments. An instance holds only options, so one instance can serve many streams.
    What only some endpoints need are abilities: a subclass inherits one by naming it, or by having one of its members.
    """

    framing: ClassVar[Literal["sse", "ndjson", "raw"]] = "sse"
    """How the body is split into items."""
    accept: ClassVar[str] = "text/event-stream"
    """`Accept` header, unless the caller sets one."""
    content_types: ClassVar[tuple[str, ...]] = ("text/event-stream",)
    """Accepted media types; empty accepts any. A response without a content type is accepted too."""
    keeps: frozenset[str] = frozenset()
    """Names in `StreamState.extra` that go into the checkpoint. Never list anything that grants access."""
    sequence: Literal["auto", "contiguous", "increasing"] | None = None
    """What the numbers promise: each is one more than the last, each is merely larger, or nothing (`None`).
    `"auto"`: infer it from the stream."""
    unique_ids: bool = False
    """No two events of the stream share an own id, so an id seen before is always a duplicate."""
    endless: bool = False
    """The stream is a feed, so there is no generation that could stall."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt(cls)

    def ability(self, kind: type[_Ability]) -> _Ability | None:
        """The protocol, if it has this ability. A protocol that wraps another may answer with the other."""
        return self if isinstance(self, kind) else None

    @property
    def name(self) -> str:
        """The protocol's name in checkpoints."""
        return type(self).__name__

    @property
    def options(self) -> str:
        """
        Digest of the options that differ from the defaults; `""` if none do.

        The checkpoint keeps it. A process that continues without naming a protocol then gets an error that says to pass it.
        """
        return ""

    @property
    def promises(self) -> Promises:
        """What the protocol vouches for. If no option changes it, an attribute is enough: `promises = Promises(…)`."""
        return Promises(resumable=True, numbered=self.sequence == "contiguous", has_end=False)

    def __repr__(self) -> str:
        told = [name for name in ("resumable", "numbered", "has_end", "tied") if getattr(self.promises, name)]
        return f"<{self.name}: {', '.join(told) or 'promises nothing'}>"

    # -- starting

    @classmethod
    def for_request(cls, request: StreamState) -> Self:
        """Create the protocol with the options that a request implies. Used by detection."""
        return cls()

    def matches(self, request: StreamState, head: Head) -> bool:
        """
        Is this the protocol of that response? Called only if the caller named no protocol.

        The default is yes for the right content type if `claims()` says so.
        """
        return head.content_type in self.content_types and self.claims(request, head)

    def claims(self, request: StreamState, head: Head) -> bool:
        """
        Does the request ask for a stream of this protocol, whatever the content type of the response?

        Such a response is read by this protocol or refused. Without a content type, or with a generic one
        (`text/plain`, `application/octet-stream`), it is read; any other raises `UnexpectedContentType`.
        It is never read as a file, since a truncated file cannot be told from a whole one. For protocols that vouch for
        their end.
        """
        return False

    def first_request(self, state: StreamState) -> Request:
        """Build the request that starts the stream. The default is the caller's own."""
        return Request(method=state.method, url=state.url, repeat="all")

    def identify(self, state: StreamState, source: Head | Item) -> None:
        """
        Learn the stream's identity from the first response head or from an event.

        Called for every head, and for events until `state.stream_id` is set.
        """

    # -- reading

    def position(self, event: Any) -> Position:
        """The position of an event. The default is plain SSE's: the event's own id is the cursor."""
        return Position(event.own_id, None, event.own_id)

    def end(self, event: Any) -> Outcome | Settled | Unproven | None:
        """Does this event end the stream, and how?"""
        return None

    def error(self, event: Any) -> UpstreamError | None:
        """Does this event report a provider error that is not one of its regular events? It is then raised, not delivered."""
        return None

    def deltas(self, event: Any) -> Iterable[Delta]:
        """The content of an event. The default is all of `data`."""
        return (Delta("text", event.data),)

    def fingerprint(self, event: Any) -> str:
        """Digest an event so that a repeat can be recognised. Leave out fields that differ each time the event is sent."""
        if isinstance(event, Chunk):
            return fingerprint_bytes(event.data)
        return fingerprint(event.event, event.data)

    # -- resuming

    def resume_request(self, state: StreamState) -> Request | None:
        """Build the request for what follows the cursor, or return `None` if this stream cannot be resumed."""
        return None

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        """Judge a response by its status; `None` leaves it to the core's table. For a status below 400, `body` is empty."""
        return None

    def on_clean_close(self, state: StreamState) -> Verdict:
        """
        Judge a body that ended cleanly although no event ended the stream.

        The default follows the promises: a cut if the streams say when they are over, otherwise the end, as `ENDED`.
        """
        if not self.promises.has_end:
            return Finished(Outcome.ENDED)
        return Resume() if self.promises.resumable else Interrupted("closed before the end")

    def snapshot_request(self, state: StreamState) -> Request | None:
        """Build the request for the stored result, for `on_lost="snapshot"`."""
        return None

    def cancel_request(self, state: StreamState) -> Request | None:
        """Build the request that stops the generation, or return `None` if the provider has no such call."""
        return None


Detect = Callable[[StreamState, Head], ResumeProtocol | None]
