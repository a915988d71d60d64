"""
One interface to the two HTTP families.

httpx and httpx2 are parallel class trees with the same names and no common base. The family is read from the MRO of the
caller's client, so subclasses, SDK-made clients and `httpx2.alias_httpx()` are recognised correctly; everything needed is
then taken from that module. Nothing here imports httpx2: a client of that family proves that it is loaded.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes, urlencode, urlsplit

import anyio

from .._contract import Head, Request
from .._settings import Timeouts
from .coding import CodingError

__all__ = ["Call", "Family", "Failure", "RearmedTimeout", "family_of", "own_client"]

_FAMILIES: Final = ("httpx", "httpx2")
# The arguments of `build_request` without `timeout`, plus `auth`.
CALL_ARGUMENTS: Final = ("content", "data", "files", "json", "params", "headers", "cookies", "auth", "extensions")
# These describe a body; on a request without one they are useless or harmful.
_BODY_HEADERS: Final = ("content-type", "content-length", "content-encoding", "transfer-encoding")
# A protocol's headers that give way to the caller's own.
_YIELDING: Final = ("Idempotency-Key", "Stream-Heartbeat")
_FORM: Final = "application/x-www-form-urlencoded"

# The errors of aiohttp that end the attempt to connect. Any other may come after the request was sent.
_CONNECTING: Final = ("ClientConnectorError", "ClientHttpProxyError", "ConnectionTimeoutError", "ServerFingerprintMismatch")

# Seconds; stands for a clock that is off. 30 years.
_FOREVER: Final = 1e9

Failure = Literal["unsent", "timeout", "lost"]


@dataclass(frozen=True, slots=True)
class Call:
    """
    What the caller gave for the request.

    Attributes:
        arguments: Arguments of `build_request`, plus `auth`. `headers` may be a callable, which is called for every connection.
        merge: They also belong to the resume request (`resume()`), not only to the first one.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    merge: bool = False

    @property
    def single_use(self) -> bool:
        """Whether the body can be sent only once: an iterator, or a file that cannot be rewound."""
        content = self.arguments.get("content")
        if any(hasattr(content, name) for name in ("__next__", "__anext__", "read")):
            return True
        # The libraries rewind files if they can.
        files = self.arguments.get("files") or ()
        entries = files.values() if isinstance(files, Mapping) else [entry for _, entry in files]
        flat = [part for entry in entries for part in (entry if isinstance(entry, tuple) else (entry,))]
        return any(hasattr(part, "read") and not (hasattr(part, "seekable") and part.seekable()) for part in flat)

    def headers(self) -> Any:
        given = self.arguments.get("headers")
        return given() if callable(given) else given


class RearmedTimeout(float):
    """
    A read timeout that is evaluated again at each read.

    Async httpcore takes the read timeout once, when the body begins, but adds it to the loop's clock at every read.
    This float answers that addition with the value wanted *now*, so clocks can change at no cost;
    a cancel scope around each read would cost half the throughput.
    """

    __slots__ = ("seconds",)

    seconds: float

    def __new__(cls, seconds: float | None) -> RearmedTimeout:
        # A transport that does not add sees the float's own value, which is never less than wanted.
        # It is not infinite, because trio would then not use it.
        made = super().__new__(cls, _FOREVER if seconds is None else seconds)
        made.seconds = _FOREVER if seconds is None else seconds
        return made

    def arm(self, seconds: float | None) -> None:
        """Limit the next reads to this many seconds; `None`: no limit."""
        self.seconds = _FOREVER if seconds is None else seconds

    def __radd__(self, clock: float) -> float:
        return clock + self.seconds

    __add__ = __radd__

    def __mul__(self, scale: float) -> float:
        # uvloop counts in milliseconds; aiohttp sets a timer from this value whenever it receives data.
        return self.seconds * scale

    __rmul__ = __mul__

    def __bool__(self) -> bool:
        # If this is false, aiohttp sets no timer.
        return self.seconds < _FOREVER


@dataclass(frozen=True, slots=True)
class Family:
    """One of the two libraries."""

    module: ModuleType

    def build(
        self,
        client: Any,
        request: Request,
        call: Call,
        *,
        accept: str,
        timeouts: Timeouts,
        read: float | None,
        rearm: RearmedTimeout | None = None,
    ) -> Any:
        """
        Make the library's request object.

        Args:
            accept: `Accept` header, unless the caller set one.
            read: Seconds to wait for the head.
            rearm: Replaces `read` if the driver re-arms it.
        """
        module = self.module
        timeout = module.Timeout(read, connect=timeouts.connect, pool=timeouts.connect)
        # What a browser sends for an EventSource: the standard gives that the cache mode "no-store", for which Fetch, in
        # "HTTP-network-or-cache fetch", appends `Cache-Control: no-cache`. A cache on the way then asks the server.
        defaults = {"Accept": accept, "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
        if request.bare:
            headers = _with(self.module.Headers(defaults), request.headers)
            extensions = {"timeout": timeout.as_dict()}
            built = module.Request(request.method, request.url, headers=headers, extensions=extensions)
        else:
            built = self._build_for_caller(client, request, call, defaults, timeout)
        if rearm is not None:
            built.extensions["timeout"]["read"] = rearm
        return built

    def _build_for_caller(self, client: Any, request: Request, call: Call, defaults: Mapping[str, str], timeout: Any) -> Any:
        arguments = call.arguments
        headers = self.headers(call.headers())
        for name, value in headers.raw:
            if any(byte in value for byte in b"\r\n\0"):
                raise ValueError(f"header {name.decode('latin-1')!r} holds a line break")
        wanted: dict[str, Any] = {name: arguments[name] for name in ("cookies", "extensions") if name in arguments}
        if "extensions" in wanted:
            wanted["extensions"] = dict(wanted["extensions"])
        if (request.repeat in ("all", "query") or call.merge) and arguments.get("params") is not None:
            wanted["params"] = arguments["params"]
        if request.repeat in ("all", "body"):
            kind = headers.get("content-type", client.headers.get("content-type", _FORM))
            wanted.update(_body(arguments, request, kind.partition(";")[0].strip().lower()))
            if request.json is not None or request.form:
                # These describe the caller's original body.
                headers.pop("content-length", None)
                headers.pop("transfer-encoding", None)
                if request.form and "content" in wanted:
                    headers["Content-Type"] = kind
        else:
            for name in _BODY_HEADERS:
                headers.pop(name, None)
            # Override the client's default content type too, which describes what the caller sends.
            if request.json is not None:
                headers["Content-Type"] = "application/json"
                wanted["json"] = dict(request.json)
            elif request.form is not None:
                headers["Content-Type"] = _FORM
                wanted["data"] = dict(request.form)
        for name, value in defaults.items():
            if name not in headers and not _chosen(client.headers.get(name)):
                headers[name] = value
        built = client.build_request(request.method, request.url, headers=headers, timeout=timeout, **wanted)
        ours = request.headers
        if any(name in built.headers and ours.get(name) is not None for name in _YIELDING):
            # Headers from a callable are known only now.
            ours = {name: ours[name] for name in ours if name not in _YIELDING or ours[name] is None or name not in built.headers}
        built.headers = self.module.Headers(_with(built.headers, ours))
        url = built.url
        if request.repeat != "all" or call.merge:
            # A URL from the server keeps its query; the libraries would replace it by the client's.
            url = self.module.URL(request.url)
            of_client, own = client.params, self.module.QueryParams(wanted.get("params"))
            named = {name for name in of_client if name in url.params}
            for name in own:
                url = url.copy_remove_param(name)
            # A name may come more than once: `stream_mode=values&stream_mode=custom`.
            for name, value in of_client.multi_items():
                if name not in named and name not in own:
                    url = url.copy_add_param(name, value)
            for name, value in own.multi_items():
                url = url.copy_add_param(name, value)
        for name, parameter in request.params.items():
            url = url.copy_remove_param(name) if parameter is None else url.copy_set_param(name, parameter)
        built.url = url
        return built

    def headers(self, given: Any) -> Any:
        """
        The library's headers.

        Raises:
            TypeError: The library does not accept this form. The error does not show values, since they may be secrets.
        """
        try:
            return self.module.Headers(given)
        except (TypeError, ValueError, AttributeError) as error:
            raise TypeError(
                "headers must be a mapping of names to texts, a list of (name, value) pairs, or a callable that returns one of "
                f"these, got a {type(given).__name__}: {error}"
            ) from None

    def send_arguments(self, request: Request, call: Call) -> dict[str, Any]:
        """Keyword arguments for `client.send()`. The machine follows redirects itself."""
        arguments: dict[str, Any] = {"stream": True, "follow_redirects": False}
        if request.bare:
            arguments["auth"] = None
        elif "auth" in call.arguments:
            arguments["auth"] = call.arguments["auth"]
        return arguments

    def head(self, response: Any) -> Head:
        return Head(response.status_code, {name.lower(): value for name, value in response.headers.items()}, str(response.url))

    def private_params(self, client: Any, params: Any) -> frozenset[str]:
        """Names of the query parameters that the client itself adds to each request, unless the caller's own replace them."""
        if client is None:
            return frozenset()
        return frozenset(client.params) - frozenset(self.module.QueryParams(params))

    def absolute(self, client: Any, method: str, url: Any, params: Any) -> str:
        """
        The caller's URL resolved against the client's `base_url`, with its query.

        Args:
            params: The caller's parameters; as in the libraries, they replace the query of the URL.

        Raises:
            ValueError: The result is not an absolute http(s) URL.
        """
        try:
            make = self.module.Request if client is None else client.build_request
            built = make(method, url, params=params)
            text = str(built.url)
        except (self.module.InvalidURL, ValueError, TypeError) as exc:
            raise ValueError(f"expected an http(s) URL, got {url!r}: {exc}") from exc
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected an absolute http(s) URL (or a client with a base_url), got {str(url)[:200]!r}")
        return text


def _with(headers: Any, wanted: Mapping[str, str | None]) -> list[tuple[bytes, bytes]]:
    """
    Headers with some set or removed, as raw pairs.

    A cursor may be any text. The standard sends it as UTF-8, while the libraries insist on ASCII;
    white space around a value is not part of it (RFC 9110 section 5.5).
    """
    names = {name.lower().encode() for name in wanted}
    kept = [(name, value) for name, value in headers.raw if name.lower() not in names]
    added = [
        (name.encode(), value.strip(" \t").encode("utf-8", "surrogatepass"))
        for name, value in wanted.items()
        if value is not None
    ]
    return [*kept, *added]


def _body(arguments: Mapping[str, Any], request: Request, kind: str) -> dict[str, Any]:
    given = {name: arguments[name] for name in ("content", "data", "files", "json") if arguments.get(name) is not None}
    if request.form:
        return _form(given, request.form, kind)
    merged = request.json
    if merged is None:
        return given
    body = given.get("json")
    if body is None and isinstance(given.get("content"), str | bytes):
        try:
            body = json.loads(given["content"])
        except ValueError:
            # This includes UnicodeDecodeError, for a compressed body.
            body = ()
    if not isinstance(body, dict | None) or "data" in given or "files" in given:
        raise TypeError("this protocol resumes with a key in the JSON body; pass the body as json={…}")
    return {"json": {**(body or {}), **merged}}


def _form(given: dict[str, Any], merged: Mapping[str, str], kind: str) -> dict[str, Any]:
    content, form = given.get("content"), given.get("data")
    if form is None and "json" not in given and isinstance(content, str | bytes) and kind == _FORM:
        # Keep the rest unchanged: it need not be text, and may be quoted differently.
        raw = content.encode() if isinstance(content, str) else content
        kept = [field for field in raw.split(b"&") if field and _name(field) not in merged]
        return {"content": b"&".join([*kept, urlencode(merged).encode()])}
    if content is not None or "json" in given or not isinstance(form, Mapping | None):
        raise TypeError("this protocol resumes with a field in the form; pass the body as data={…}")
    return {**given, "data": {**(form or {}), **merged}}


def _name(field: bytes) -> str:
    return unquote_to_bytes(field.partition(b"=")[0].replace(b"+", b" ")).decode("latin-1")


def _chosen(value: str | None) -> bool:
    """Whether somebody chose this default header of a client, so that it is not the library's own."""
    return value is not None and value != "*/*" and not value.startswith("gzip, deflate")


def family_of(client: Any, *, want: Literal["Client", "AsyncClient"]) -> Family:
    """
    The library of a client.

    Raises:
        TypeError: It belongs to neither, or is of the other kind; the message says what to pass.
    """
    found: set[str] = set()
    for cls in type(client).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in _FAMILIES and cls.__name__ in ("Client", "AsyncClient"):
            if cls.__name__ == want:
                return Family(sys.modules[root])
            found.add(cls.__name__)
    ours = "aconnect()" if want == "AsyncClient" else "connect()"
    if found:
        other = "connect()" if want == "AsyncClient" else "aconnect()"
        raise TypeError(f"{ours} needs an httpx.{want} or httpx2.{want}; {type(client).__name__} is for {other}")
    raise TypeError(
        f"client must be an httpx.{want} or an httpx2.{want} (or a subclass), "
        f"got {type(client).__module__}.{type(client).__qualname__}"
    )


def own_family() -> Family:
    """The family of the clients that we make ourselves: httpx, the required dependency."""
    import httpx

    return Family(httpx)


def own_client(want: Literal["Client", "AsyncClient"]) -> Any:
    """A client for one stream, closed with it."""
    import httpx

    return getattr(httpx, want)()


def _loaded(name: str) -> tuple[type[BaseException], ...]:
    modules = [module for family in _FAMILIES if (module := sys.modules.get(family)) is not None]
    return tuple({getattr(module, name) for module in modules if hasattr(module, name)})


def network_errors() -> tuple[type[BaseException], ...]:
    """
    What the network, or a broken body, can raise.

    TLS errors and anyio's stream errors are sometimes passed through unmapped (httpx2 issues 854, 1156), and so are aiohttp's
    errors for an answer that is not HTTP.
    """
    return (
        *_loaded("TransportError"),
        *_loaded("DecodingError"),
        *_of_aiohttp("ClientError"),
        ssl.SSLError,
        OSError,
        anyio.EndOfStream,
        anyio.BrokenResourceError,
        anyio.ClosedResourceError,
        CodingError,
    )


def classify(error: BaseException) -> Failure:
    """Classify a network error: the request was certainly not sent, a read timed out, or the connection is lost."""
    if isinstance(error, (*_loaded("ConnectError"), *_loaded("ConnectTimeout"), *_loaded("PoolTimeout"), *_loaded("ProxyError"))):
        return "unsent" if _before_sending(error.__cause__) else "lost"
    if isinstance(error, (*_loaded("ReadTimeout"), TimeoutError)):
        return "timeout"
    return "lost"


def _of_aiohttp(*names: str) -> tuple[type[BaseException], ...]:
    """Errors of aiohttp, if it is loaded."""
    module = sys.modules.get("aiohttp")
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


def _before_sending(cause: BaseException | None) -> bool:
    """
    Whether a transport that raised a connect error because of `cause` was still connecting.

    Transports over aiohttp also raise a connect error if the connection is lost after the request was sent.
    """
    return not isinstance(cause, _of_aiohttp("ClientError")) or isinstance(cause, _of_aiohttp(*_CONNECTING))


def status_errors() -> tuple[type[BaseException], ...]:
    """Errors raised by an event hook that calls `raise_for_status()`; they carry an ordinary response."""
    return _loaded("HTTPStatusError")


def over_httpcore(response: Any) -> bool:
    """Whether a response comes from httpcore, where a new iterator of its stream continues where the last one stopped."""
    return "network_stream" in response.extensions


def will_block(response: Any) -> bool:
    """Whether a read would block; True if that is not known."""
    stream = response.extensions.get("network_stream")
    if stream is None:
        return True
    try:
        return not stream.get_extra_info("is_readable")
    except ValueError:
        # Closed in the meantime; the read will report that.
        return True


class WatchedConnection:
    """The connection that a request is being sent on, learned from httpcore's trace."""

    def __init__(self, trace: Callable[[str, Any], None] | None) -> None:
        self._trace = trace
        self._stream: Any = None

    def __call__(self, name: str, info: Any) -> None:
        if name.endswith(("connect_tcp.complete", "start_tls.complete", "connect_unix_socket.complete")):
            self._stream = info.get("return_value")
        if self._trace is not None:
            self._trace(name, info)

    def shut_down(self) -> None:
        """Wake the thread that waits for the head. On a reused connection, the wait ends only by its own timeout."""
        if self._stream is not None:
            _shut_down(self._stream)


def watch_connection(extensions: dict[str, Any]) -> WatchedConnection:
    """Add a watch to a request's extensions, before any trace of the caller's."""
    watch = WatchedConnection(extensions.get("trace"))
    extensions["trace"] = watch
    return watch


def shut_down(response: Any) -> None:
    """Wake a thread that is blocked in a read of this response, by shutting down its socket."""
    if response.extensions.get("http_version") == b"HTTP/2":
        # The socket also carries other streams.
        return
    stream = response.extensions.get("network_stream")
    if stream is not None:
        _shut_down(stream)


def _shut_down(stream: Any) -> None:
    import socket

    sock = stream.get_extra_info("socket")
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Already closed, so the reader is awake.
            return


HeadersCallable = Callable[[], Mapping[str, str]]
