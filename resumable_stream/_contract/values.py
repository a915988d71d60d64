"""
What a protocol is shown and what it answers with: requests, heads, the state of a stream, places, whole answers.

Plain values. A protocol keeps nothing of its own; what it must remember goes into `StreamState`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from .._checkpoint import encodable, public_url
from .._events import Outcome, StreamEvent

__all__ = [
    "KEPT",
    "KEY",
    "SENTINEL",
    "Alarm",
    "Answer",
    "Backfill",
    "Claim",
    "Document",
    "Head",
    "Position",
    "Promises",
    "Request",
    "Snapshot",
    "StreamState",
]

SENTINEL: Final = "[DONE]"
"""What most providers send after an answer; the protocols say what it proves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    One HTTP request as plain values. The driver adds what the caller gave (headers, auth, cookies).

    Attributes:
        method: HTTP method.
        url: Absolute URL, or one relative to the first request's.
        headers: Set over the caller's; `None` removes one. An `Idempotency-Key` and a `Stream-Heartbeat` give way to the caller's
            own.
        params: Set in the query over what is there; `None` removes one.
        json: Keys set in the caller's JSON body, if `repeat` sends that once more; otherwise they are a body of its own.
        form: Fields set in the caller's form (`data=`), likewise.
        repeat: What else of the first request is sent once more: `"all"` (query and body), `"query"`, `"body"`, or nothing.
        bare: Send nothing of the caller's or the client's: it goes to another origin.
    """

    method: str
    url: str
    headers: Mapping[str, str | None] = field(default_factory=dict)
    params: Mapping[str, str | None] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] | None = None
    repeat: Literal["all", "query", "body"] | None = None
    bare: bool = False

    @property
    def sendable(self) -> bool:
        """It holds no text that could not be sent. Headers take any."""
        given = (self.params, self.json, self.form)
        return encodable(self.url) and all(encodable(json.dumps(dict(part), ensure_ascii=False)) for part in given if part)


# RFC 9110 section 8.3.1, and a parameter's value in quotes, which may hold a comma.
_MEDIA_TYPE: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+", re.ASCII)
_QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Head:
    """
    Status line and headers of a response.

    Attributes:
        status: HTTP status code.
        headers: Names in lower case.
        url: URL that answered.
    """

    status: int
    headers: Mapping[str, str]
    url: str

    @property
    def content_type(self) -> str:
        """
        Media type in lower case without parameters; `""` when there is none.

        Of several (a proxy that adds its own) it is the last that is one, as browsers have it.

        Source: the Fetch standard, "extract a MIME type".
        """
        value = self.headers.get("content-type", "")
        if "," not in value:
            return value.partition(";")[0].strip().lower()
        kinds = [part.partition(";")[0].strip().lower() for part in _QUOTED.sub("", value).split(",")]
        return next((kind for kind in reversed(kinds) if _MEDIA_TYPE.fullmatch(kind) and kind != "*/*"), kinds[0])

    @property
    def is_json(self) -> bool:
        """It announces JSON, or one of the types that are written in it (RFC 6839 section 3.1)."""
        kind = self.content_type
        return kind == "application/json" or kind.endswith("+json")


KEY: Final = "idempotency_key"
"""In `StreamState.extra`: the key that the core gave the first request; see `ResumeProtocol.joins`."""
KEPT: Final = "header:"
"""In `StreamState.extra`, in front of the name of a header."""


class Claim(NamedTuple):
    """
    What the provider said of a run whose last event had not come.

    Attributes:
        outcome: How it ended.
        offset: Events delivered when it was said.
        asked: How often the rest was asked for since, in vain.
    """

    outcome: Outcome
    offset: int
    asked: int


class StreamState:
    """
    What is known of one stream. Protocols read all of it and write `stream_id`, `location` and `extra`.

    Attributes:
        method, url: Of the first request.
        json: Its JSON body, when it was given as one; otherwise `None`.
        stream_id: The provider's id of the stream.
        location: URL from which the stream can be resumed, when the server named one; the core makes it absolute.
        cursor, sequence: Of the last event delivered.
        offset: Events delivered so far.
        extra: Text that the protocol wants in the checkpoint; only names in `ResumeProtocol.keeps` are saved.
        head: The latest response head.
        resuming: The latest request asked for the rest of a stream, not for its start.
        asking: It did so after a clean close, only to learn whether there is more.
        over: The provider says that the run is over (`Over`); the core asks for the rest before it believes that.
        private: Names of query values that the client adds to every request by itself.
    """

    __slots__ = (
        "_public_url",
        "asking",
        "cursor",
        "extra",
        "head",
        "json",
        "location",
        "method",
        "offset",
        "over",
        "private",
        "resuming",
        "sequence",
        "stream_id",
        "url",
    )

    def __init__(self, method: str, url: str, json: Any = None, *, private: frozenset[str] = frozenset()) -> None:
        self.private = private
        self._public_url: tuple[str, str] | None = None
        self.method = method
        self.url = url
        self.json = json
        self.stream_id: str | None = None
        self.location: str | None = None
        self.cursor: str | None = None
        self.sequence: int | None = None
        self.offset = 0
        self.extra: dict[str, str] = {}
        self.head: Head | None = None
        self.resuming = False
        self.asking = False
        self.over: Claim | None = None

    @property
    def kept(self) -> Mapping[str, str]:
        """
        Headers of the first response, by name in lower case: those that `keep=` names and that were there.

        `head` is that of the latest response. These stay, also in a checkpoint.
        """
        return {name[len(KEPT) :]: value for name, value in self.extra.items() if name.startswith(KEPT)}

    @property
    def public_url(self) -> str:
        """`url` without what may be a secret: for checkpoints, errors and logs."""
        if self._public_url is None or self._public_url[0] != self.url:
            self._public_url = (self.url, public_url(self.url, self.private))
        return self._public_url[1]

    @property
    def safe(self) -> bool:
        """The first request may be repeated without paying twice (RFC 9110 section 9.2.1)."""
        return self.method in ("GET", "HEAD")


class Position(NamedTuple):
    """
    Where one event stands.

    Attributes:
        cursor: The cursor *after* this event, or `None` when the event does not move it. `""` makes the stream forget it.
        sequence: Its number, or `None`.
        own_id: Its own identity, by which a repeat is known, or `None`.
    """

    cursor: str | None
    sequence: int | None = None
    own_id: str | None = None


class Alarm(NamedTuple):
    """
    How an event looks that may end the stream, told at a glance, since it is taken at every event.

    Attributes:
        names: Event names.
        heads: The first seven characters of `data`.
    """

    names: frozenset[str]
    heads: frozenset[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer to a side request (verify, snapshot, cancel)."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    A stored result, in place of the lost rest.

    Attributes:
        events: What to deliver.
        reset: They replace everything delivered; otherwise they are the missing remainder.
        outcome: How the run ended; `None` when it still runs and the stream goes on after them.
    """

    events: Sequence[StreamEvent]
    reset: bool
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Backfill:
    """
    What happened while nobody was connected, or a page of it.

    Attributes:
        events: What to deliver in front of the live ones; repeats are dropped as ever.
        more: Request for the next page; `None`: that was all.
    """

    events: Sequence[StreamEvent]
    more: Request | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """
    What a whole document holds (`Consume.whole`).

    Attributes:
        events: What to deliver.
        cursor: Where the stream goes on behind it, also when it holds no event; `None`: it does not say.
    """

    events: Sequence[StreamEvent]
    cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """
    What a protocol can vouch for; printed in the docs' table and in `repr()`.

    Attributes:
        resumable: It can ask for what follows a cursor.
        numbered: Its events carry contiguous numbers, so a gap is provable.
        has_end: It says when a stream is over.
        tied: Closing the connection ends the generation.
    """

    resumable: bool
    numbered: bool
    has_end: bool
    tied: bool = False
