"""
Which request a stored answer belongs to: `request_key()` names a stream after it, and a store's record keeps its digest.

    method, URL, body  →  one canonical form  →  a key, or the digest beside a place

Two requests are one when a server would see the same question: JSON is compared by value, whatever its spaces and the order
of its keys; a query is compared as it is, less the credentials in it, which change from day to day.

A digest of a short prompt can be guessed. So it stays in the store: a token and `stream.checkpoint`, which travel, have none.
There it is keyed with the name of the stream, so that equal digests under two names mean nothing.
"""

from __future__ import annotations

import hashlib
import json as _json
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, overload
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from ._checkpoint import Checkpoint, is_credential, public_url
from ._errors import StoreError

__all__ = ["check_request", "request_digest", "request_key", "way_out"]

# Beyond this a body of JSON is compared as bytes: reading it again would cost more than it is worth.
_JSON_BYTES: Final = 1024 * 1024
# Of the URL, for whoever looks into the store. The digest has all of it.
_SHOWN: Final = 200


@overload
def request_key(method: str, url: Any, *, json: Any = ..., content: Any = ..., data: Any = ..., params: Any = ...) -> str: ...
@overload
def request_key(method: Any, /) -> str | None: ...
def request_key(
    method: Any, url: Any = None, *, json: Any = None, content: Any = None, data: Any = None, params: Any = None
) -> str | None:
    """
    Make a store key of a request: the same question has the same key, another one has another.

        body = {"prompt": "A haiku, please."}
        key = request_key("POST", url, json=body)

    Transports take the function itself, and call it with each request: `ResumableTransport(store=store, key=request_key)`.

    Headers are no part of it, so neither is who asks. Where several users share a store, put the user in front:
    `f"{user}:{request_key(...)}"`. To ask the same question once more, delete the key first, or add something to it.

    Args:
        method: HTTP method; or, alone, a request of httpx or httpx2.
        url: As in `connect()`.
        json, content, data, params: As in `connect()`.

    Returns:
        Method, URL without secrets, and a digest of both and of the body: at most about 250 characters. Of a request object
        whose body can be read only once `None`: such a request is not kept.

    Raises:
        TypeError: The body can be read only once, or is no JSON.

    >>> request_key("POST", "https://api.example.com/v1/answers", json={"prompt": "Hi"})
    'POST https://api.example.com/v1/answers #ba1805e203ea6a6e51135bee668206ef'
    >>> request_key("POST", "https://api.example.com/v1/answers", content=b'{ "prompt": "Hi" }')
    'POST https://api.example.com/v1/answers #ba1805e203ea6a6e51135bee668206ef'
    """
    if not isinstance(method, str):
        request = method
        if url is not None or not hasattr(request, "headers") or not hasattr(request, "url"):
            raise TypeError(f"request_key() takes a method and a URL, or only a request of httpx or httpx2, got {request!r:.80}")
        body = body_of_request(request)
        if body is None:
            return None
        method, target = request.method, str(request.url)
    else:
        if url is None:
            raise TypeError("request_key() takes a method and a URL, got no URL")
        body = body_of({"json": json, "content": content, "data": data})
        if body is None:
            raise TypeError("request_key() cannot read a body that can be read only once; pass it as bytes, text or json=")
        target = with_params(str(url), params)
    method = method.upper()
    # Not with the key, as the digest of a place is: this *is* the key.
    target = _normal(target)
    return f"{method} {public_url(target)[:_SHOWN]} #{_digest(method, target, body, b'')}"


def request_digest(method: str, url: str, body: bytes | None, *, key: str) -> str | None:
    """
    Digest a request for the record of a store.

    Args:
        url: With its query.
        body: Of `body_of()`; `None`: not known.
        key: Of the record.

    Returns:
        32 hex digits, or `None` if the body is not known.
    """
    return None if body is None else _digest(method, _normal(url), body, hashlib.blake2b(key.encode(), digest_size=32).digest())


def check_request(
    key: str, stored: Checkpoint, method: str, url: str, digest: str | None, *, private: Collection[str] = ()
) -> None:
    """
    Refuse the place of another request.

    Args:
        url: Of the request.
        private: Names of query values that the client adds; see `public_url()`.
        digest: Of the request; `None`: not known. Places of before 0.1 was released have none either.

    Raises:
        StoreError: The message says what to do.
    """
    way_out = (
        f"use another key for another stream (request_key() makes one from the request), or delete({_short(key)}) to start over"
    )
    # Of both: an older version may have kept more of the query.
    expected, received = f"{method} {public_url(url, private)}", f"{stored.method} {public_url(stored.url, private)}"
    if expected != received:
        raise StoreError(f"the key {_short(key)} holds the place of {received}, not of {expected}: {way_out}")
    if digest is not None and stored.request is not None and digest != stored.request:
        raise StoreError(
            f"the key {_short(key)} holds the answer to another {received}, with another body or another query: {way_out}"
        )


def way_out(key: str | None, on_lost: str) -> str:
    """
    What an error says of a kept half that cannot be continued. It would be there at every run.

    It begins with `; to start over, `, so that the command line can say it in its own words.
    """
    if key is None or on_lost != "raise":
        return ""
    return f"; to start over, delete({_short(key)}) from the store, or pass on_lost='restart', which requests all of it again"


def body_of(arguments: Mapping[str, Any]) -> bytes | None:
    """
    The body that `content`, `data` or `json` make, in a form that compares; `None` if it is read only once, or has files.

    Raises:
        TypeError: `json` is no JSON.
    """
    json, content, data = arguments.get("json"), arguments.get("content"), arguments.get("data")
    if arguments.get("files"):
        return None
    if content is None and isinstance(data, str | bytes):
        content = data
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    if isinstance(content, bytes | bytearray | memoryview):
        return _canonical(bytes(content))
    if content is not None:
        return None
    if data is not None:
        return urlencode(_pairs(data)).encode() if isinstance(data, Mapping) else None
    return b"" if json is None else _canonical_json(json)


def body_of_request(request: Any) -> bytes | None:
    """That of a request of httpx or httpx2; `None` if it can be sent only once."""
    try:
        content: bytes = request.content
    except Exception as error:
        if type(error).__name__ != "RequestNotRead":
            raise
        # After a redirect a client knows the body only as a stream, though it may be one of bytes.
        stream = request.stream
        return _canonical(b"".join(stream)) if type(stream).__name__ == "ByteStream" else None
    return _canonical(content)


def with_params(url: str, params: Any) -> str:
    """The URL with `params` in place of its query, as the libraries do."""
    if params is None:
        return url
    if isinstance(params, str | bytes):
        query = params.decode("ascii", "replace") if isinstance(params, bytes) else params
    else:
        pairs = params.multi_items() if hasattr(params, "multi_items") else _pairs(params)
        query = urlencode(pairs)
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))


def _pairs(given: Any) -> list[tuple[str, str]]:
    items: Iterable[tuple[Any, Any]] = given.items() if isinstance(given, Mapping) else given
    return [
        (str(name), _value(each)) for name, value in items for each in (value if isinstance(value, list | tuple) else [value])
    ]


def _value(value: Any) -> str:
    """As the libraries write it."""
    return {True: "true", False: "false", None: ""}[value] if value is None or isinstance(value, bool) else str(value)


def _canonical(content: bytes) -> bytes:
    if content[:1] in (b"{", b"[") and len(content) <= _JSON_BYTES:
        try:
            return _canonical_json(_json.loads(content))
        except (ValueError, RecursionError):
            # It only begins like JSON.
            return content
    return content


def _canonical_json(value: Any) -> bytes:
    try:
        text = _json.dumps(value, sort_keys=True, separators=(",", ":"))
    except TypeError:
        # Keys of several types have no order; what is no JSON at all raises again.
        text = _json.dumps(value, separators=(",", ":"))
    return text.encode()


def _normal(url: str) -> str:
    """A URL in the form in which the libraries send it: what somebody typed and what a transport sees are one."""
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower()
    host = host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ":"))
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    return urlunsplit((scheme, host, path, parts.query, ""))


def _digest(method: str, url: str, body: bytes, key: bytes) -> str:
    parts = urlsplit(url)
    pairs = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if not is_credential(name)]
    line = "\n".join((method, parts.scheme, parts.netloc, parts.path, urlencode(pairs)))
    hashed = hashlib.blake2b(line.encode("utf-8", "surrogatepass") + b"\n", digest_size=16, key=key)
    hashed.update(body)
    return hashed.hexdigest()


def _short(key: str) -> str:
    return repr(key if len(key) <= 200 else f"{key[:197]}...")
