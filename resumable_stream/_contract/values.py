"""
What a protocol receives and returns: requests, response heads, the state of a stream, positions, whole answers.

All are plain values. A protocol keeps no state of its own; what it must remember goes into `StreamState`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar

from .._checkpoint import encodable, public_url
from .._events import Outcome, StreamEvent

__all__ = [
    "Alarm",
    "Answer",
    "Backfill",
    "Claim",
    "Document",
    "Head",
    "Memo",
    "Position",
    "Promises",
    "Request",
    "Snapshot",
    "StreamState",
]

SENTINEL: Final = "[DONE]"
"""What most providers send after an answer. Each protocol decides what it proves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    One HTTP request as plain values. The driver adds the caller's headers, auth and cookies.

    Attributes:
        method: HTTP method.
        url: Absolute URL, or one relative to the first request's.
        headers: Override the caller's headers; `None` removes one. The caller's own `Idempotency-Key` and `Stream-Heartbeat`
            win over these.
        params: Override query parameters; `None` removes one.
        json: Keys set in the caller's JSON body, if `repeat` includes the body; otherwise a body of their own.
        form: Fields set in the caller's form (`data=`), likewise.
        repeat: What else of the first request is sent again: `"all"` (query and body), `"query"`, `"body"`, or nothing.
        bare: Send nothing that belongs to the caller or the client, because the request goes to another origin.
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
        """Whether all its text can be encoded for sending. Headers can carry any text, so they are not checked."""
        given = (self.params, self.json, self.form)
        return encodable(self.url) and all(encodable(json.dumps(dict(part), ensure_ascii=False)) for part in given if part)


# RFC 9110 section 8.3.1. A parameter's quoted value may contain a comma.
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
        Media type in lower case without parameters; `""` if there is none.

        If there are several (a proxy may add its own), the last valid one counts, as in browsers.

        Source: the Fetch standard, "extract a MIME type".
        """
        value = self.headers.get("content-type", "")
        if "," not in value:
            return value.partition(";")[0].strip().lower()
        kinds = [part.partition(";")[0].strip().lower() for part in _QUOTED.sub("", value).split(",")]
        return next((kind for kind in reversed(kinds) if _MEDIA_TYPE.fullmatch(kind) and kind != "*/*"), kinds[0])

    @property
    def is_json(self) -> bool:
        """Whether the content type is JSON, or a type based on it (`+json`, RFC 6839 section 3.1)."""
        kind = self.content_type
        return kind == "application/json" or kind.endswith("+json")


KEY: Final = "idempotency_key"
"""Name in `StreamState.extra` of the key that the core gave the first request; see `ResumeProtocol.joins`."""
KEPT: Final = "header:"
"""Prefix in `StreamState.extra` for the name of a kept header."""


class Claim(NamedTuple):
    """
    What the provider said about a run whose last event had not arrived.

    Attributes:
        outcome: How the run ended.
        offset: Events delivered when the provider said so.
        asked: How often the rest has been requested since, in vain.
    """

    outcome: Outcome
    offset: int
    asked: int


class Memo:
    """
    What a protocol remembers of one stream. Subclass it as a dataclass whose fields have defaults.

    A checkpoint keeps the fields that `ResumeProtocol.keeps` names. The others are forgotten with the process.
    """

    __slots__: tuple[str, ...] = ()

    def keep(self) -> dict[str, str]:
        """What a checkpoint may keep: the texts, and the flags that are set as `"1"`. Other fields need a method of your own."""
        found = ((name, getattr(self, name)) for name in _names(self))
        return {
            name: value if isinstance(value, str) else "1" for name, value in found if value and isinstance(value, str | bool)
        }

    @classmethod
    def back(cls, kept: Mapping[str, str]) -> Self:
        """The way back from `keep()`. A checkpoint can contain anything, so fields may be missing or have any text."""
        made = cls()
        for name in _names(made):
            if name in kept and isinstance(getattr(made, name), str | bool):
                setattr(made, name, kept[name] if isinstance(getattr(made, name), str) else True)
        return made


def _names(memo: Any) -> list[str]:
    """The names of all fields, inherited ones too: `__slots__` has only those of the class itself."""
    return [each.name for each in fields(memo)]


_Memo = TypeVar("_Memo", bound=Memo)
Notes = tuple[dict[str, str], dict[type[Memo], Memo], Claim | None]


class StreamState:
    """
    What is known about one stream. Protocols read all of it and write `stream_id`, `location`, `extra` and their `memo()`.

    Attributes:
        method, url: Method and URL of the first request.
        json: Its JSON body, if it was given as JSON; otherwise `None`.
        stream_id: The provider's id of the stream.
        location: URL from which the stream can be resumed, if the server named one; the core makes it absolute.
        cursor, sequence: Cursor and number of the last event delivered.
        offset: Events delivered so far.
        extra: Texts that the protocol remembers by name. The checkpoint saves only the names in `ResumeProtocol.keeps`.
        head: The latest response head.
        resuming: The latest request asked for the rest of a stream, not for its start.
        asking: The latest request was made after a clean close, only to find out whether there is more.
        over: The provider says that the run is over (`Over`); the core requests the rest before it believes that.
        private: Names of query parameters that the client itself adds to every request.
    """

    __slots__ = (
        *("_memos", "_public_url", "asking", "cursor", "extra", "head", "json", "location", "method", "offset", "over"),
        *("private", "resuming", "sequence", "stream_id", "url"),
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
        self._memos: dict[type[Memo], Memo] = {}
        self.head: Head | None = None
        self.resuming = False
        self.asking = False
        self.over: Claim | None = None

    def memo(self, kind: type[_Memo]) -> _Memo:
        """What is remembered of this stream in a memo of this class. On first use it is made from what a checkpoint kept."""
        found = self._memos.get(kind)
        if not isinstance(found, kind):
            found = self._memos[kind] = kind.back(self.extra)
        return found

    def texts(self) -> dict[str, str]:
        """All that is remembered as text, by name."""
        found = dict(self.extra)
        for memo in self._memos.values():
            for name in _names(memo):
                found.pop(name, None)
            found |= memo.keep()
        return found

    def notes(self) -> Notes:
        """A copy of all that is remembered, to compare it or go back to it."""
        memos = {kind: deepcopy(memo) for kind, memo in self._memos.items() if memo != kind.back(self.extra)}
        return dict(self.extra), memos, self.over

    def go_back(self, notes: Notes) -> None:
        """Remember what was remembered then, and nothing else."""
        self.extra, self._memos, self.over = notes

    def forget(self) -> None:
        """Remember nothing."""
        self.go_back(({}, {}, None))

    @property
    def kept(self) -> Mapping[str, str]:
        """
        The headers of the first response that `keep=` names, by lower-case name; absent ones are left out.

        Unlike `head`, which is the latest response's, they stay the same and are saved in checkpoints.
        """
        return {name[len(KEPT) :]: value for name, value in self.extra.items() if name.startswith(KEPT)}

    @property
    def public_url(self) -> str:
        """`url` without anything that may be secret, for checkpoints, errors and logs."""
        if self._public_url is None or self._public_url[0] != self.url:
            self._public_url = (self.url, public_url(self.url, self.private))
        return self._public_url[1]

    @property
    def safe(self) -> bool:
        """The first request may be repeated without paying twice (RFC 9110 section 9.2.1)."""
        return self.method in ("GET", "HEAD")


class Position(NamedTuple):
    """
    The position of one event.

    Attributes:
        cursor: The cursor *after* this event, or `None` if the event does not move it. `""` clears the stream's cursor.
        sequence: The event's number, or `None`.
        own_id: The event's own id, by which a repeat is recognised, or `None`.
    """

    cursor: str | None
    sequence: int | None = None
    own_id: str | None = None


class Alarm(NamedTuple):
    """
    How to recognise cheaply an event that may end the stream. It is checked for every event.

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
    A stored result that takes the place of a rest that cannot be resumed.

    Attributes:
        events: The events to deliver.
        reset: They replace everything delivered; otherwise they are the missing remainder.
        outcome: How the run ended; `None` if it is still running and the stream continues after them.
    """

    events: Sequence[StreamEvent]
    reset: bool
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Backfill:
    """
    Events that happened while nobody was connected, or one page of them.

    Attributes:
        events: The events to deliver before the live ones; repeats are dropped as usual.
        more: Request for the next page; `None` if this was the last.
    """

    events: Sequence[StreamEvent]
    more: Request | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """
    The content of a whole document (`Consume.whole`).

    Attributes:
        events: The events to deliver.
        cursor: Where the stream continues after it, even if it holds no event; `None` if it does not say.
    """

    events: Sequence[StreamEvent]
    cursor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promises:
    """
    What a protocol can vouch for. Shown in the docs' table and in `repr()`.

    Attributes:
        resumable: It can request what follows a cursor.
        numbered: Its events carry contiguous numbers, so a gap can be proven.
        has_end: Its streams say when they are over.
        tied: Closing the connection ends the generation.
    """

    resumable: bool
    numbered: bool
    has_end: bool
    tied: bool = False
