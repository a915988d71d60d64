"""
What a relay stores so that another can continue a stream, as functions of values: no sockets, no clock, no framework.

    Note             the place in the upstream's stream, stored in the same step as the events before it
    credentials_of() what the upstream requires from the one who continues; kept in memory only
    next_of()        who continues a stream whose relay is lost
    end_of()         how a stream ends whose upstream could not be read to its end

A note grants no access. Its place is a checkpoint without the secrets of the URL, and its headers are only those that name the
API version and the account.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from .._checkpoint import Checkpoint
from .._errors import (
    CursorExpired,
    DeadlineExceeded,
    EventTooLarge,
    NotResumable,
    ResponseRejected,
    ResumableStreamError,
    RetriesExhausted,
    StreamInterrupted,
)
from .._events import Outcome
from ._relay_rules import _KEY_PARAMETERS, CREDENTIALS
from ._values import Ending
from .wire import REPORTED

__all__ = [
    "Credentials",
    "Note",
    "Refused",
    "credentials_of",
    "described",
    "end_of",
    "ending_of",
    "merged",
    "next_of",
    "shown_by",
    "without_keys",
]

_MARK: Final = '{"relay":1,'
# Request headers that later requests need to be understood the same way. A name that ends in "-" is a prefix.
_DESCRIBE: Final = ("a2a-", "anthropic-", "mcp-protocol-version", "openai-", "x-api-version", "x-goog-user-project")
# Of these, none that may hold a secret, such as `A2A-Notification-Token`.
_SECRET: Final = re.compile("key|token|secret|auth|cred|passw|session|cookie|signature", re.IGNORECASE)
_MOST: Final = 20
_LONGEST: Final = 1024
# Request headers of a reader that grant access besides a key: an MCP session. Only the name is noted.
_SESSIONS: Final = ("mcp-session-id",)
_GRANT: Final = (*CREDENTIALS, *_SESSIONS)
# Headers of the first request only.
_FIRST_ONLY: Final = frozenset({"accept", "content-length", "content-type", "idempotency-key", "range", "stream-heartbeat"})


@dataclass(frozen=True, slots=True)
class Note:
    """
    Where a stream of an upstream continues.

    Attributes:
        mount: Mount of the upstream.
        place: Position in its stream.
        headers: Those of the first request that describe it.
        needs: Names of the headers besides a key without which the upstream would refuse to continue.
    """

    mount: str
    place: Checkpoint
    headers: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()

    def text(self) -> str:
        """The text to store."""
        told: dict[str, object] = {"mount": self.mount, "headers": [list(pair) for pair in self.headers]}
        if self.needs:
            told["needs"] = self.needs
        told["place"] = self.place.to_json()
        return _MARK + json.dumps(told, ensure_ascii=False, separators=(",", ":"))[1:]

    @classmethod
    def of(cls, text: str | None) -> Note | None:
        """Parse the output of `text()`; `None` if it is not a note, or has another version: nobody here can continue."""
        if text is None or not text.startswith(_MARK):
            return None
        try:
            told = json.loads(text)
            headers = tuple((str(name), str(value)) for name, value in told["headers"])
            needs = tuple(map(str, told.get("needs", ())))
            return cls(str(told["mount"]), Checkpoint.from_json(told["place"]), headers, needs)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


@dataclass(slots=True, eq=False)
class Credentials:
    """
    What a client presents to an upstream. Kept only in memory, while it is needed.

    Attributes:
        headers, params: Names and values.
        refused: The upstream rejected them.
    """

    headers: tuple[tuple[str, str], ...]
    params: tuple[tuple[str, str], ...] = ()
    refused: bool = False

    def __repr__(self) -> str:
        return f"<Credentials{' (refused)' if self.refused else ''}>"

    def grants_like(self, other: Credentials) -> bool:
        """Whether both identify the same client, whatever other headers they have."""
        return self._grants() == other._grants()

    @property
    def sessions(self) -> tuple[str, ...]:
        """Names of the headers that grant access besides a key."""
        names = {name.lower() for name, _ in self.headers}
        return tuple(name for name in _SESSIONS if name in names)

    def _grants(self) -> set[tuple[str, str]]:
        return {*self.params, *((name.lower(), value) for name, value in self.headers if name.lower() in _GRANT)}


@dataclass(frozen=True, slots=True)
class Refused:
    """
    The upstream refused a client, not the stream: with other credentials it may continue.

    Attributes:
        status: 401 or 403.
    """

    status: int


def credentials_of(headers: Iterable[tuple[str, str]], query: str) -> Credentials:
    """
    The parts of a request that go to the upstream with the requests for the rest of its stream.

    Args:
        headers: Those that pass.
        query: Query of the request.
    """
    told = tuple((name, value) for name, value in headers if name.lower() not in _FIRST_ONLY)
    return Credentials(told, tuple((name, value) for name, value in parse_qsl(query) if name in _KEY_PARAMETERS))


def shown_by(headers: Iterable[tuple[str, str]], query: str) -> Credentials:
    """The same for a reader's request, of which only keys and descriptive headers are meant for the upstream."""
    found = credentials_of(headers, query)
    return Credentials(tuple(pair for pair in found.headers if pair[0].lower() in _GRANT or _describes(pair[0])), found.params)


def described(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The headers of the first request that are noted."""
    found = [
        (name.lower(), value)
        for name, value in headers
        if _describes(name) and _SECRET.search(name) is None and len(value) <= _LONGEST and value.isprintable()
    ]
    return tuple(found[:_MOST])


def _describes(name: str) -> bool:
    lower = name.lower()
    return lower not in CREDENTIALS and any(
        lower == each or (each.endswith("-") and lower.startswith(each)) for each in _DESCRIBE
    )


def merged(noted: Iterable[tuple[str, str]], shown: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The headers of a request for the rest: the client's own, then the noted ones that it lacks."""
    shown = tuple(shown)
    names = {name.lower() for name, _ in shown}
    return (*shown, *((name, value) for name, value in noted if name.lower() not in names))


def without_keys(url: str) -> str:
    """A URL without the parameters that hold an API key."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    kept = [pair for pair in pairs if pair[0] not in _KEY_PARAMETERS]
    return url if len(kept) == len(pairs) else urlunsplit(parts._replace(query=urlencode(kept)))


def next_of(
    note: Note | None, upstreams: Mapping[str, str], *, shown: bool, waited: float, patience: float
) -> Literal["go_on", "wait", "end"]:
    """
    What happens to a stream whose relay is lost.

    Args:
        note: The note it left.
        upstreams: URLs by mount, of this relay.
        shown: A reader who may read it is here, with a key that the upstream has not refused.
        waited: Seconds that it has been without a relay.
        patience: Seconds that it may wait for such a reader.
    """
    if note is None:
        return "end"
    base = upstreams.get(note.mount)
    # An upstream may be a single endpoint, as with MCP: then a URL has nothing after its base.
    ours = base is not None and f"{note.place.url}/".startswith((f"{base}/", f"{base}?"))
    if ours and (shown or note.place.complete):
        return "go_on"
    return "wait" if waited < patience else "end"


def ending_of(outcome: Outcome | None) -> Ending:
    """How a stream ends whose upstream was read to an end its protocol knows."""
    if outcome is Outcome.FAILED:
        return Ending(outcome=outcome, reason=REPORTED)
    if outcome is Outcome.CANCELLED:
        return Ending(outcome=outcome, reason="upstream_cancelled")
    return Ending(outcome=outcome or Outcome.ENDED)


def end_of(error: ResumableStreamError) -> Ending | Refused:
    """How a stream ends whose upstream was not read to its end. An error's text may quote the upstream, so it is left out."""
    match error:
        case ResponseRejected(status=401 | 403 as status):
            return Refused(status)
        case ResponseRejected():
            return Ending(outcome=Outcome.FAILED, reason="upstream_refused", error=f"the upstream answered {error.status}")
        case CursorExpired():
            text = "the upstream no longer has what follows"
            return Ending(outcome=Outcome.FAILED, reason="upstream_gone", error=text)
        case EventTooLarge():
            return Ending(outcome=Outcome.FAILED, reason="too_long", error="an event of the upstream is too large")
        case RetriesExhausted() | StreamInterrupted() | NotResumable() | DeadlineExceeded():
            return Ending(outcome=Outcome.FAILED, reason="upstream_cut")
    return Ending(
        outcome=Outcome.FAILED, reason="upstream_error", error=f"the upstream cannot be followed: {type(error).__name__}"
    )
