"""
The object that a driver below an SDK uses as its client.

It builds requests from the SDK's own and sends them through the next transport. The first response arrived before the driver was
made, so the first send returns that.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from http.cookiejar import CookieJar
from types import ModuleType
from typing import Any, Final, TypeVar

from .._contract import StreamState
from .._drivers.http import Call

__all__ = ["Port", "Refresh", "SendingPort"]

T = TypeVar("T")
Refresh = Callable[[Any], Any]

# A larger JSON body is an upload, not a prompt with `stream`. Prompts with images are smaller.
_JSON_BYTES: Final = 64 * 1024 * 1024
# Made anew for each request.
_LENGTHS: Final = ("content-length", "transfer-encoding")
_CALLERS: Final = object()


class _Clocks(dict[str, Any]):
    """A request's timeouts while its stream is read; `given` are the SDK's."""

    given: Any = None


class _Jar(CookieJar):
    """
    The cookies set by the answers of one stream. The jar decides where they are sent: domain, path, `Secure`.

    Attributes:
        gone: (path, name) of cookies that the server deleted, since the request may have had them from the start.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gone: set[tuple[str, str]] = set()

    def set_cookie(self, cookie: Any) -> None:
        self.gone.discard((cookie.path, cookie.name))
        super().set_cookie(cookie)

    def clear(self, domain: str | None = None, path: str | None = None, name: str | None = None) -> None:
        # A cookie that has expired, by its clock or because it was sent as expired.
        if path is not None and name is not None:
            self.gone.add((path, name))
        super().clear(domain, path, name)


class Port:
    """
    What a driver needs from a client, for one request of the SDK.

    Attributes:
        request: The SDK's request.
        headers, params: A client's defaults; empty, since the request has them all.
        first: The response that has already arrived, until the driver takes it.
        transport: The next transport.
    """

    def __init__(self, library: ModuleType, request: Any, transport: Any = None, refresh: Refresh | None = None) -> None:
        self.request = request
        self.headers = library.Headers()
        self.params = library.QueryParams()
        self.first: Any = None
        self.transport = transport
        self.refresh = refresh
        self._library = library
        self._clocks: _Clocks | None = None
        self._jar = _Jar()
        self._cookies = library.Cookies(self._jar)

    # --- what the SDK asked for

    @cached_property
    def content(self) -> bytes | None:
        """The body, or `None` if it is sent from an iterator, which is possible only once."""
        request = self.request
        try:
            content: bytes = request.content
        except self._library.RequestNotRead:
            # After a redirect the client knows the body only as a stream, although it may be a stream of bytes.
            return b"".join(request.stream) if isinstance(request.stream, self._library.ByteStream) else None
        return content

    @cached_property
    def _json(self) -> Any:
        if "json" not in self.request.headers.get("content-type", "") or not self.content or len(self.content) > _JSON_BYTES:
            return None
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            # Not valid JSON, which is for the server to judge.
            return None

    def state(self) -> StreamState:
        return StreamState(self.request.method.upper(), str(self.request.url), self._json)

    def call(self) -> Call:
        """What every request of the stream takes from the SDK's request."""
        request = self.request
        headers = self._library.Headers(request.headers)
        for name in _LENGTHS:
            headers.pop(name, None)
        arguments: dict[str, Any] = {
            "headers": headers,
            "extensions": {name: value for name, value in request.extensions.items() if name != "timeout"},
        }
        if self.content:
            arguments["content"] = self.content
        if request.url.query:
            arguments["params"] = request.url.params
        return Call(arguments)

    # --- what a client has

    def build_request(self, method: str, url: Any, *, headers: Any, timeout: Any, extensions: Any = None, **wanted: Any) -> Any:
        extensions = {**(extensions or {}), "timeout": timeout.as_dict()}
        if wanted.get("params") == self._library.URL(url).params:
            # The same query, which would only be written differently.
            del wanted["params"]
        return self._library.Request(method, url, headers=headers, extensions=extensions, **wanted)

    def is_bare(self, options: Mapping[str, Any]) -> bool:
        """Whether a request goes to another origin (`auth=None`), which must get nothing of the caller's and no cookies."""
        return options.get("auth", _CALLERS) is None

    def add_cookies(self, request: Any, options: Mapping[str, Any]) -> None:
        """
        Add the cookies that the answers so far have set, replacing those of the SDK's client.

        The client's jar is above the transport, and sees the first answer only when it is read. A load balancer in front of a
        server with sessions uses such a cookie to find the same back end again.
        """
        if self.is_bare(options) or not (self._jar or self._jar.gone):
            return
        library = self._library
        bare = library.Request(request.method, request.url)
        self._cookies.set_cookie_header(bare)
        ours = bare.headers.get("cookie", "")
        replaced = {_cookie_name(part) for part in ours.split(";")}
        replaced |= {name for path, name in self._jar.gone if request.url.path.startswith(path)}
        given = [part.strip() for line in request.headers.get_list("cookie") for part in line.split(";")]
        kept = [part for part in given if part and _cookie_name(part) not in replaced]
        if cookies := "; ".join([*kept, ours] if ours else kept):
            request.headers["Cookie"] = cookies
        else:
            request.headers.pop("Cookie", None)

    def keep_cookies(self, response: Any, options: Mapping[str, Any]) -> None:
        """Keep an answer's cookies, unless it comes from another origin."""
        if "set-cookie" in response.headers and not self.is_bare(options):
            self._cookies.extract_cookies(response)

    def take_first(self, wanted: Any) -> Any:
        """The first response, read with the timeouts of the request that the driver would have sent for it."""
        response, self.first = self.first, None
        self.keep_cookies(response, {})
        extensions = response.request.extensions
        given = extensions.get("timeout")
        self._clocks = _Clocks(given or {}, read=wanted.extensions["timeout"]["read"])
        # The same request may be in use twice.
        self._clocks.given = given.given if isinstance(given, _Clocks) else given
        extensions["timeout"] = self._clocks
        return response

    def restore(self) -> None:
        """The stream is over: restore the SDK's request."""
        extensions = self.request.extensions
        if self._clocks is None or extensions.get("timeout") is not self._clocks:
            return
        if self._clocks.given is None:
            del extensions["timeout"]
        else:
            extensions["timeout"] = self._clocks.given


class SendingPort(Port):
    """A port whose requests go somewhere."""

    async def exchange(self, request: Any, options: Mapping[str, Any]) -> Any:
        """The response to a request, from the next transport; `options` are those of a client's `send()`."""
        if self.first is not None:
            return self.take_first(request)
        self.add_cookies(request, options)
        if self.refresh is not None and not self.is_bare(options):
            request = await self.refreshed(request)
            if not isinstance(request, self._library.Request):
                raise TypeError(f"refresh must return the request to send, got {request!r}")
        response = await self.handle(request)
        response.request = request
        self.keep_cookies(response, options)
        return response

    # --- the primitives; those of a sync transport block and never suspend

    @abstractmethod
    async def handle(self, request: Any) -> Any:
        """Send a request through the next transport."""

    @abstractmethod
    async def refreshed(self, request: Any) -> Any:
        """The request that `refresh` returns for this one."""

    @abstractmethod
    async def ask_store(self, function: Callable[[], T]) -> T:
        """Call a store, which may touch a disk."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def close(self, response: Any) -> None: ...


def _cookie_name(part: str) -> str:
    return part.partition("=")[0].strip()
