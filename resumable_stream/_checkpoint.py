"""
A place in a stream, as small JSON.

A checkpoint holds what another process, kernel or device needs to continue, and nothing that grants access:
no header, no body, no query value that may be a secret, no user info. It is at most 8 KiB.

    position = cursor + the events taken since the cursor last moved (`since`)

`since` is a list of fingerprints, oldest first. Once it would be too long it shrinks to one item
`"<count>*<chain>"`: how many events there were, and the digest of their chained fingerprints.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

__all__ = ["Checkpoint", "chain", "encodable", "fingerprint", "fingerprint_bytes", "is_credential", "public_url", "withheld"]

SCHEMA: Final = 1
MAX_BYTES: Final = 8192
MAX_RECENT_IDS: Final = 64
MAX_EXTRA: Final = 16
CORE_EXTRA: Final = ("outcome", "location", "first", "reset", "options", "settled", "step", "unverified", "withheld")
"""Names in `Checkpoint.extra` that are the core's own, beside those of the protocol."""


def fingerprint(event: str, data: str) -> str:
    """
    Digest an event so that it can be recognised in another process.

    Returns:
        16 hex digits: 8 bytes of BLAKE2b. Two different events of one overlap collide with probability 2**-64 a pair.
    """
    return hashlib.blake2b(f"{event}\n{data}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def fingerprint_bytes(data: bytes) -> str:
    """Digest a piece of a byte stream, in the form of `fingerprint()`."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def chain(previous: str, fingerprints: Iterable[str]) -> str:
    """
    Fold fingerprints into one digest, in order.

    Args:
        previous: The chain so far; `""` at the start.
        fingerprints: What follows, oldest first.

    Returns:
        The chain behind the last one; `previous` when there was none.
    """
    for item in fingerprints:
        previous = hashlib.blake2b(f"{previous}{item}".encode(), digest_size=8).hexdigest()
    return previous


# Losing a harmless value costs the caller a `params=`; keeping a harmful one costs an account. So only these are kept:
# what a name that chooses a stream or a place in it says in plain words, and of other names words and numbers too short for a
# key that anybody should use. A name that suggests that its value grants access keeps nothing.
_SECRET_NAME = re.compile(
    r"key|token|secret|sig|pass|pwd|^pw$|^pin$|otp|auth|access|cred|login|jwt|sess|sid$|code|nonce|hmac|hash|cookie|ticket"
    r"|assertion|bearer|invite|magic|x-amz|x-goog|^s[ekprtv]$|^[up]$|^psk$|conv(?:ersation)?[_-]?id",
    re.IGNORECASE,
)
_KNOWN_NAME = re.compile(
    r"topics?|rooms?|channels?|groups?|feed|streams?|streammode|mode|format|alt|type|kind|events?|lang|language|locale|region|tz"
    r"|model|(?:api)?version|v|rev|beta|live|follow|tail|replay|rewind|include|page|limit|size|count|n|num|top|skip|offset|start"
    r"|startindex|startingafter|after|before|since|until|from|to|cursor|lasteventid|seq|seqnum|sequence|position|index|timestamp"
    r"|tailoffset|wait|clamp|bytes|timeout|interval"
    r"|id|(?:run|thread|task|job|stream|message|response|answer|assistant|agent|workflow)(?:id)?"
)
# Where in a stream to begin: the resume says that anew.
_PLACE = re.compile(r"offset|startindex|startingafter|after|before|since|cursor|lasteventid|seq|seqnum|position|index")
_PLAIN_VALUE = re.compile(
    r"[A-Za-z]{0,24}|[0-9]{1,12}|[A-Za-z0-9][A-Za-z0-9._:,/-]{0,22}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)
_SHORT_VALUE = re.compile(r"[A-Za-z]?[a-z]{0,11}|[0-9]{1,9}|[0-9]{1,3}\.[0-9]{1,3}")


def public_url(url: str, private: Collection[str] = ()) -> str:
    """
    Strip a URL of what may be a secret: user info, fragment, and query values that could be credentials.

    Args:
        private: Names whose values are left out whatever they are: those that the client adds to every request by itself.

    >>> public_url("https://me:pw@api.example.com/v1/stream?topic=news&api_key=abc&u=hunter2#x")
    'https://api.example.com/v1/stream?topic=news'
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    kept = [(name, value) for name, value in _query(parts.query) if name not in private and _may_be_kept(name, value)]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(kept, quote_via=quote), ""))


def withheld(url: str, private: Collection[str] = ()) -> list[str]:
    """
    Names of the query values that `public_url()` leaves out and that may choose the stream: without them another one would come.

    Credentials are not among them, since a client may bring them in another way; nor are places in a stream.
    """
    return [
        name
        for name, value in dict(_query(urlsplit(url).query)).items()
        if (name in private or not _may_be_kept(name, value)) and not is_credential(name) and not _PLACE.fullmatch(_plain(name))
    ]


def _query(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)


def _may_be_kept(name: str, value: str) -> bool:
    if _SECRET_NAME.search(name):
        return False
    return (_PLAIN_VALUE if _KNOWN_NAME.fullmatch(_plain(name)) else _SHORT_VALUE).fullmatch(value) is not None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").replace(".", "").lower()


# A value of these is worth something to a thief, or is another one tomorrow: it does not tell two requests apart.
_CREDENTIAL = re.compile(
    r"key|token|secret|sig|pass|pwd|^pw$|otp|auth|access|cred|jwt|nonce|hmac|cookie|ticket|assertion|bearer|x-amz|x-goog|^s[ekprtv]$"
    r"|^expires$",
    re.IGNORECASE,
)

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_to_ascii_json = json.JSONEncoder(separators=(",", ":"))


def is_credential(name: str) -> bool:
    """A query value of this name may change while the request stays the same."""
    return _CREDENTIAL.search(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """
    The place behind the last event taken.

    Attributes:
        protocol: Name of the resume protocol, for example `"LastEventID"`.
        method: HTTP method of the first request.
        url: URL of the first request without secrets (see `public_url()`).
        stream_id: The provider's id of the stream, once known.
        cursor: Opaque token to resume from; `None` before any.
        sequence: Last sequence number taken, where the protocol numbers its events.
        offset: Events taken so far, so 0 before any.
        since: Fingerprints of the events taken since the cursor moved, oldest first; or one item `"<count>*<chain>"`.
        recent_ids: `(id, fingerprint)` pairs, oldest first, at most 64.
        extra: What the protocol needs besides (an ETag): text to text, at most 16 items; and the core's own
            `outcome`, `location` (where to resume), `first` (how the stream began), `reset` (what was delivered is void, and
            the next event will say so), `options` (digest of the protocol's options, where they are not the defaults) and
            `step` (offset at which the step of the answer began that this place is in, where the protocol has steps), and
            `unverified` (nothing showed that the end was one).
        complete: The stream has ended; resuming it makes no request. How it ended is `extra["outcome"]`.
        schema: Version of this layout.
        request: Digest of the request, so that a key is not answered with the answer to another one. Only the record of a store
            has it: a token has none, nor has `stream.checkpoint`, since that of a short prompt could be guessed.
    """

    protocol: str
    method: str
    url: str
    stream_id: str | None = None
    cursor: str | None = None
    sequence: int | None = None
    offset: int = 0
    since: tuple[str, ...] = ()
    recent_ids: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)
    complete: bool = False
    schema: int = SCHEMA
    # Not compared: the place is the same whoever writes it down.
    request: str | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> str:
        """
        Write as JSON text of at most 8 KiB of UTF-8.

        If it would be longer, `recent_ids` shrinks first (oldest dropped: only late repeats are then seen less far back),
        then `since` becomes its count and chained digest.

        Raises:
            ValueError: The cursor, URL and extra alone are over 8 KiB.
        """
        current = self
        while True:
            raw = current._raw()
            text = _to_json.encode(raw)
            # A lone surrogate cannot be UTF-8; the escape keeps it readable and whole.
            size = len(text.encode("utf-8", "surrogatepass"))
            if size <= MAX_BYTES:
                return text if text.isascii() or encodable(text) else _to_ascii_json.encode(raw)
            if current.recent_ids:
                current = replace(current, recent_ids=current.recent_ids[(len(current.recent_ids) + 1) // 2 :])
            elif len(current.since) > 1:
                current = replace(current, since=(f"{len(current.since)}*{chain('', current.since)}",))
            else:
                raise ValueError(f"checkpoint of {size} bytes is over {MAX_BYTES}: the cursor or the URL is too long")

    def _raw(self) -> dict[str, Any]:
        # `dataclasses.asdict` copies every item of every list: with full lists that was half the cost of a save.
        raw: dict[str, Any] = {
            "protocol": self.protocol,
            "method": self.method,
            "url": self.url,
            "stream_id": self.stream_id,
            "cursor": self.cursor,
            "sequence": self.sequence,
            "offset": self.offset,
            "since": self.since,
            "recent_ids": self.recent_ids,
            "extra": dict(self.extra),
            "complete": self.complete,
            "schema": self.schema,
        }
        if self.request is not None:
            raw["request"] = self.request
        return raw

    @classmethod
    def from_json(cls, text: str | bytes) -> Checkpoint:
        """
        Read what `to_json()` wrote.

        Raises:
            ValueError: Not such a text, or of a schema this version does not know. The message says what was seen.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
            raise ValueError(f"expected the JSON of a checkpoint, got {_short(text)}") from exc
        if not isinstance(raw, dict):
            raise ValueError(f"expected a checkpoint object, got {type(raw).__name__}")
        schema = raw.get("schema")
        if schema != SCHEMA or isinstance(schema, bool):
            raise ValueError(f"expected a checkpoint of schema {SCHEMA}, got {schema!r}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise ValueError(f"checkpoint has unknown fields: {', '.join(unknown)[:200]}")
        return cls(**_validated(raw))

    def token(self) -> str:
        """URL-safe text of the checkpoint, less `request`. It is neither signed nor secret: `resume()` checks its origin."""
        place = self if self.request is None else replace(self, request=None)
        return base64.urlsafe_b64encode(place.to_json().encode()).rstrip(b"=").decode()

    @classmethod
    def from_token(cls, token: str) -> Checkpoint:
        """
        Read what `token()` wrote.

        Raises:
            ValueError: The token was cut short or is none of ours.
        """
        try:
            raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as exc:
            raise ValueError(f"expected a checkpoint token, got {_short(token)}") from exc
        try:
            return cls.from_json(raw)
        except ValueError as exc:
            raise ValueError(f"checkpoint token of {len(token)} characters is damaged or cut short: {exc}") from exc


_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_FOLDED = re.compile(r"[0-9]{1,15}\*[0-9a-f]{16}")


def _all_match(pattern: re.Pattern[str], items: list[Any]) -> bool:
    return all(isinstance(item, str) and pattern.fullmatch(item) for item in items)


def encodable(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no URL and no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(text: str | bytes) -> str:
    shown = repr(text[:40])
    return shown if len(text) <= 40 else f"{shown}… ({len(text)} long)"


def _validated(raw: dict[str, Any]) -> dict[str, Any]:
    """Check each field's shape: a checkpoint may come from a URL or from a file that somebody edited."""

    def fail(name: str, wanted: str) -> ValueError:
        return ValueError(f"checkpoint field {name!r}: expected {wanted}, got {_short(repr(raw.get(name)))}")

    for name in ("protocol", "method", "url"):
        if not isinstance(raw.get(name), str) or not raw[name]:
            raise fail(name, "text")
    if urlsplit(raw["url"]).scheme not in ("http", "https"):
        raise fail("url", "an http(s) URL")
    if not raw["method"].isalpha():
        raise fail("method", "an HTTP method")
    for name in ("stream_id", "cursor", "request"):
        if not isinstance(raw.get(name), str | None):
            raise fail(name, "text or null")
    for name, nullable in (("sequence", True), ("offset", False)):
        value = raw.get(name, None if nullable else 0)
        if (
            isinstance(value, bool)
            or not (isinstance(value, int) or (nullable and value is None))
            or (value or 0) < (-1 if nullable else 0)
        ):
            raise fail(name, "a count")
    since = raw.get("since", [])
    if not isinstance(since, list) or not (_all_match(_FINGERPRINT, since) or (len(since) == 1 and _all_match(_FOLDED, since))):
        raise fail("since", "a list of fingerprints")
    recent = raw.get("recent_ids", [])
    if (
        not isinstance(recent, list)
        or len(recent) > MAX_RECENT_IDS
        or not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in recent)
    ):
        raise fail("recent_ids", f"at most {MAX_RECENT_IDS} pairs of texts")
    extra = raw.get("extra", {})
    if (
        not isinstance(extra, dict)
        or len(extra) > MAX_EXTRA + len(CORE_EXTRA)
        or not all(isinstance(value, str) for value in extra.values())
    ):
        raise fail("extra", f"an object of at most {MAX_EXTRA} texts")
    if not isinstance(raw.get("complete", False), bool):
        raise fail("complete", "true or false")
    return {**raw, "since": tuple(since), "recent_ids": tuple((a, b) for a, b in recent), "extra": dict(extra)}
