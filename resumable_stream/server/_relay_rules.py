"""
The decisions of a relay, as functions of values: no sockets, no clock, no framework.

    whose        principal_of()       a keyed hash of the API key, which itself is stored nowhere
                 capability_of()      what opens one stream for reading, for a while, without the key
    which        key_id()             the id of the stream that an `Idempotency-Key` stands for
    where to     Upstreams.find()     one of the configured upstreams; a request cannot name another
    what passes  headers_up(), headers_down(), headers_kept()
    what stays   framing_of()         streams are kept, everything else passes through
                 is_document()        except complete answers to a request with a key, if enabled
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ..protocols import Head as ResponseHead
from ..protocols.ndjson import NDJSON_TYPES
from ._values import Framing
from .wire import Facts

__all__ = [
    "CAPABILITY",
    "CREDENTIALS",
    "Upstreams",
    "asks_for_stream",
    "capability_of",
    "claim_owner",
    "fingerprint_of",
    "framing_of",
    "headers_down",
    "headers_kept",
    "headers_up",
    "is_document",
    "json_of",
    "key_id",
    "known_names",
    "is_retry",
    "principal_by_capability",
    "principal_of",
    "repeated_credential",
    "retry_id",
    "target_of",
]

CREDENTIALS: Final = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Headers that hold an API key: most providers; Anthropic; Azure; Google."""
_KEY_PARAMETERS: Final = ("key", "api_key", "api-key", "access_token")
"""Query parameters that hold one. The first is Google's."""

CAPABILITY: Final = "t"
"""The query parameter that lets a URL open a stream without a key."""
_CAPABILITY: Final = re.compile(r"([0-9]{1,12})\.([0-9a-f]{40})\.([0-9a-f]{40})", re.ASCII)

# RFC 9110 section 7.6.1, and headers of older proxies.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Length and host are those of the relay's own request. Cookies belong to the relay's origin, or would. The address of a client
# does not concern the upstream. Names with `stream-` are between client and relay.
_NOT_UP: Final = _HOP_BY_HOP | {
    "accept-encoding",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "last-event-id",
    "stream-heartbeat",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
}
# The server that runs the relay writes its own date; two would contradict each other.
_NOT_DOWN: Final = _HOP_BY_HOP | {"alt-svc", "date", "set-cookie", "set-cookie2", "strict-transport-security"}
# Headers of an answer that are kept with the stream; a name that ends in "-" is a prefix.
_KEPT: Final = (
    "anthropic-",
    "openai-",
    "ratelimit-",
    "request-id",
    "retry-after",
    "x-ratelimit-",
    "x-request-id",
)
_MOST_KEPT: Final = 50
_DIGEST: Final = 20
"""Bytes of a digest that becomes an id or an owner. 20: 160 bits, and an id of 40 characters."""
_RAW_TYPES: Final = ("application/vnd.amazon.eventstream",)
_GEMINI: Final = ":streamGenerateContent"
_STREAMING_PATHS: Final = (_GEMINI, "/converse-stream", "/invoke-with-response-stream")
_OLLAMA_PATHS: Final = ("/api/chat", "/api/generate")
_MOUNT: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+", re.ASCII)
# RFC 2046 section 5.1.1.
_BOUNDARY: Final = re.compile(r"""multipart/[^;]*;.*\bboundary=(?:"([^"]{1,70})"|([!-:<-~]{1,70})).*""", re.ASCII | re.IGNORECASE)
_OWN: Final = ("/.streams", "/.health", "/.metrics")
_JSON_BYTES: Final = 64 << 20


# --- whose ------------------------------------------------------------------------------------------------------------


def principal_of(secret: bytes, facts: Facts) -> str:
    """
    Identifies the client of a request: a keyed hash of its API keys, wherever they are.

    A key counts the same in every place, so a stream that was started with `?key=` can be read with a header. A request with two
    keys has another principal than one with either. All requests without a key share one principal.

    Args:
        secret: Secret of the relay. Without it, a principal does not reveal its key.
        facts: Facts of the request.

    Returns:
        40 hexadecimal digits.
    """
    found = {_bare(value) for name in CREDENTIALS if (value := facts.headers.get(name))}
    found |= {value for name, value in parse_qsl(facts.query) if name in _KEY_PARAMETERS}
    return _digest(secret, "principal", *sorted(found - {""}))


def _bare(value: str) -> str:
    scheme, _, rest = value.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else value.strip()


def repeated_credential(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """A header with a key that occurs twice in a request: it is unknown which one the upstream uses."""
    names = [name.decode("latin-1").lower() for name, _ in headers]
    return next((name for name in CREDENTIALS if names.count(name) > 1), None)


def capability_of(secret: bytes, principal: str, id: str, expires: int) -> str:
    """
    What opens one stream for reading, without the API key: `<expiry>.<principal>.<hmac>`.

    The principal is needed because an id names a stream only together with its owner. It is a keyed hash, and reveals only which
    URLs were made for the same API key.

    Args:
        secret: Secret of the relay.
        principal: Owner of the stream.
        id: Id of the stream.
        expires: When it expires, in seconds of Unix time.
    """
    return f"{expires}.{principal}.{_digest(secret, 'capability', principal, id, str(expires))}"


def principal_by_capability(secret: bytes, id: str, query: str, now: float) -> str | None:
    """
    The owner of the stream that a URL opens; `None` if it opens none, for whatever reason.

    Args:
        secret: Secret of the relay.
        id: Id of the requested stream.
        query: Query of the request.
        now: Unix time, in seconds.
    """
    given = [value for name, value in parse_qsl(query) if name == CAPABILITY]
    found = _CAPABILITY.fullmatch(given[0]) if len(given) == 1 else None
    if found is None:
        return None
    expires, principal, _ = found.groups()
    # The digest is computed and compared even for an expired one.
    is_ours = hmac.compare_digest(given[0], capability_of(secret, principal, id, int(expires)))
    return principal if is_ours and now < int(expires) else None


def claim_owner(principal: str) -> str:
    """Owner of a relay's notes about a key before the upstream has answered. Not a principal, so no client can read them."""
    return f"{principal}/claim"


def key_id(secret: bytes, principal: str, path: str, key: str) -> str:
    """
    The id of the stream that an `Idempotency-Key` stands for: the same in every relay over one log, and not guessable.

    Args:
        secret: Secret of the relay.
        principal: Owner of the key, so that two clients' keys never collide.
        path: Path of the request.
        key: As sent.
    """
    return _digest(secret, "stream", principal, path, key)


def retry_id(secret: bytes, principal: str, path: str, fingerprint: str) -> str:
    """
    The id under which the log stores the key that retries of a request without a key use.

    Args:
        secret: Secret of the relay.
        principal: Owner of the request.
        path: Path of the request.
        fingerprint: Fingerprint of the request, including its body.
    """
    return _digest(secret, "retry", principal, path, fingerprint)


def is_retry(headers: Mapping[str, str]) -> bool:
    """An SDK reports that it has sent this request before; those of OpenAI and Anthropic count in this header, from 0."""
    return re.fullmatch(r"0*[1-9][0-9]{0,2}", headers.get("x-stainless-retry-count", ""), re.ASCII) is not None


def fingerprint_of(secret: bytes, method: str, path: str, query: str, body: bytes, content_type: str = "") -> str:
    """
    Distinguishes requests under the same key.

    It is keyed, because a short prompt could be guessed from a plain digest. Parameters that hold an API key are left out, and so
    is the boundary of a multipart form, which clients draw anew when they send the same form again.
    """
    if (found := _BOUNDARY.fullmatch(content_type)) is not None:
        body = body.replace(b"--" + (found[1] or found[2]).encode(), b"--")
    told = [f"{name}={value}" for name, value in parse_qsl(query, keep_blank_values=True) if name not in _KEY_PARAMETERS]
    return _digest(secret, "request", method, path, "&".join(told), hashlib.sha256(body).hexdigest())


def _digest(secret: bytes, what: str, *parts: str) -> str:
    found = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (what, *parts):
        encoded = part.encode("utf-8", "surrogateescape")
        found.update(len(encoded).to_bytes(8, "big") + encoded)
    return found.digest()[:_DIGEST].hex()


# --- where to ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upstreams:
    """
    The upstreams of a relay, by the path of their mount; `""`: all paths.

    Attributes:
        by_mount: URLs without a slash at the end.
    """

    by_mount: Mapping[str, str]

    @classmethod
    def of(cls, given: str | Mapping[str, str]) -> Upstreams:
        """
        Validate the upstreams given to a relay.

        Raises:
            ValueError: No upstream, a URL with more than scheme, host and path, or a mount that is not a path or is the relay's
                own.
        """
        pairs = {"": given} if isinstance(given, str) else dict(given)
        if not pairs:
            raise ValueError("a relay needs an upstream, such as 'https://api.openai.com'")
        found = {}
        for mount, url in pairs.items():
            mount = mount.rstrip("/")
            if mount and _MOUNT.fullmatch(mount) is None:
                raise ValueError(f"an upstream is mounted at a path such as '/openai', got {mount!r}")
            if mount.startswith(_OWN):
                raise ValueError(f"no upstream can be mounted at {mount!r}, which is the relay's own")
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                # The URL is left out, here and below: it may hold a key.
                raise ValueError(
                    f"the upstream at {mount or '/'!r} is not a URL such as 'https://api.openai.com': "
                    "it needs http or https, and a host"
                )
            if parts.username is not None or parts.query or parts.fragment:
                raise ValueError(f"the URL of the upstream at {mount or '/'!r} must have only scheme, host and path")
            found[mount] = url.rstrip("/")
        return cls(found)

    def find(self, path: str) -> tuple[str, str, str] | None:
        """
        The upstream of a path.

        Returns:
            Its mount, its URL, and the rest of the path; `None`: there is none.
        """
        for mount in sorted(self.by_mount, key=len, reverse=True):
            if path.startswith(f"{mount}/") or path == mount:
                return mount, self.by_mount[mount], path[len(mount) :]
        return None


def target_of(upstream: str, path: str, query: str) -> str | None:
    """
    The URL to request.

    Args:
        upstream: As configured.
        path: Path of the request, below the mount, still percent-encoded.
        query: Likewise.

    Returns:
        `None`: the path leaves the upstream (`..`, also encoded), or could be mistaken for something other than a path.
    """
    if path and not path.startswith("/"):
        return None
    decoded = unquote(path)
    if any(part in (".", "..") for part in re.split(r"[/\\]", decoded)) or any(ord(each) < 33 for each in path + query):
        return None
    return f"{upstream}{path}" + (f"?{query}" if query else "")


# --- what passes ------------------------------------------------------------------------------------------------------


def headers_up(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """
    The headers of a request that go to the upstream, including keys, which are passed on unread.

    `Accept-Encoding: identity` is added: a compressed stream has no boundaries between its events.
    """
    pairs = [(name.decode("latin-1"), _decoded(value)) for name, value in headers]
    dropped = _NOT_UP | _named_by_connection(pairs)
    return [(name, value) for name, value in pairs if name.lower() not in dropped] + [("Accept-Encoding", "identity")]


def headers_down(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that passes through, as ASGI servers take them."""
    pairs = [(name.lower(), value) for name, value in headers]
    dropped = _NOT_DOWN | _named_by_connection((name.decode("latin-1"), _decoded(value)) for name, value in pairs)
    return [(name, value) for name, value in pairs if name.decode("latin-1") not in dropped]


def headers_kept(headers: Iterable[tuple[str, str]], allow: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """
    The headers of a stream that are kept with it, so that later readers get them too.

    Args:
        headers: Headers of the upstream's answer.
        allow: Additional names, in lower case; one that ends in `-` is a prefix.
    """
    found = []
    for name, value in headers:
        lower = name.lower()
        known = any(lower == each or (each.endswith("-") and lower.startswith(each)) for each in (*_KEPT, *allow))
        printable = len(value) <= 1024 and value.isprintable()
        if known and printable and lower not in _NOT_DOWN:
            found.append((lower, value))
    return tuple(found[:_MOST_KEPT])


def _named_by_connection(pairs: Iterable[tuple[str, str]]) -> frozenset[str]:
    lists = [value for name, value in pairs if name.lower() == "connection"]
    return frozenset(each.strip().lower() for value in lists for each in value.split(","))


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


# --- what stays -------------------------------------------------------------------------------------------------------


def framing_of(method: str, path: str, head: ResponseHead) -> Framing | None:
    """
    How the body of an answer is split into events; `None`: it is not kept, but passes through.

    Only answers to requests that change something are kept: a GET can be repeated, and is usually an endless feed. A compressed
    body is not read.

    Args:
        method: Method of the request.
        path: Path of the request, decoded.
        head: Head of the answer.
    """
    if method in ("GET", "HEAD", "OPTIONS") or not 200 <= head.status < 300 or head.status in (204, 205):
        return None
    if head.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return None
    kind = head.content_type
    if kind == "text/event-stream":
        return "sse"
    if kind in NDJSON_TYPES:
        return "ndjson"
    if kind in _RAW_TYPES or (kind == "application/json" and path.endswith(_GEMINI)):
        return "raw"
    return None


def is_document(head: ResponseHead) -> bool:
    """
    Whether an answer is one JSON document. It is useful only as a whole, so collecting it first costs no time.

    Args:
        head: Head of the answer. An error does not count: that request may be sent again.
    """
    kind, coding = head.content_type, head.headers.get("content-encoding", "identity").strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    return is_json and coding in ("", "identity") and 200 <= head.status < 300 and head.status not in (204, 205, 206)


def asks_for_stream(path: str, headers: Mapping[str, str], body: Any) -> bool:
    """
    Whether the answer to this request may be a stream.

    Args:
        path: Path of the request, decoded.
        headers: Headers of the request, names in lower case.
        body: Its JSON; `None`: none could be read.
    """
    if "text/event-stream" in headers.get("accept", "") or path.endswith(_STREAMING_PATHS):
        return True
    if not isinstance(body, dict):
        return body is None
    # Ollama streams unless the request says otherwise.
    return body.get("stream") is True or (path.endswith(_OLLAMA_PATHS) and body.get("stream") is not False)


def json_of(headers: Mapping[str, str], body: bytes) -> Any:
    """The JSON of a body; `None` if it is something else."""
    if len(body) > _JSON_BYTES or "multipart/" in headers.get("content-type", ""):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def known_names(names: Sequence[str]) -> tuple[str, ...]:
    """
    Validate names of headers to keep.

    Raises:
        TypeError: A single text instead of several.
        ValueError: One that grants access, or concerns the connection.
    """
    if isinstance(names, str):
        raise TypeError(f"allow takes a list of names of headers, got the text {names!r}")
    lower = tuple(name.lower() for name in names)
    for name in lower:
        if name in _NOT_DOWN or name in CREDENTIALS:
            raise ValueError(f"the header {name!r} cannot be kept: every reader of a stream would get it")
    return lower
