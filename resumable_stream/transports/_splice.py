"""
What the transports of both HTTP libraries share, sync and async: which answers are spliced, and what of.

    SDK ──request──► ResumableTransport ──request──► the next transport
                           │ ◄── response ──────────┘
                           ├── no stream, an error: handed on as it is
                           └── a stream: a driver reads it and reconnects through the next transport;
                               the SDK reads the bytes of the driver's events

A driver wants a client. `Port` is one: it builds requests from the SDK's own, and sends them through the next transport.
The first response was there before the driver, so the first send hands that out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from http.cookiejar import CookieJar
from types import ModuleType
from typing import Any, ClassVar, Final, Literal

from .._api import Options, for_record, protocol_of
from .._checkpoint import Checkpoint, public_url
from .._core.actions import Notice
from .._core.heads import STREAMS
from .._core.interfaces import Consume, Head, ResumeProtocol, StreamState
from .._core.machine import Machine
from .._core.settings import Stats
from .._drivers.base import NOTHING, Plan
from .._drivers.coding import can_decode, decoding_of
from .._drivers.http import Call, Family
from .._errors import ReplayDiverged, ResumableStreamError, StreamReset
from .._policy import RetryPolicy
from .._request import body_of_request, check_request, request_digest, way_out
from .._settings import Limits, Timeouts
from .._twins import twin
from ..framing import encoded
from ..protocols import OpenAIResponses, detect
from ..protocols._detect import claimed
from ..protocols.ndjson import NDJSON_TYPES
from ..stores import Store
from ._start import Start, with_key

__all__ = ["EXTENSION", "Configured", "Port", "Skimming", "Splicer", "Wire"]

EXTENSION: Final = "resumable_stream"
"""Where `response.extensions` has the stream below the body."""

# Which answers are looked at at all. Others (a JSON document, a page, a file) are spliced only if a protocol is named for them.
_STREAM_TYPES: Final = frozenset({"text/event-stream", *NDJSON_TYPES})
# A page, or what has no type: a stream only where the request asks for one.
_OTHERS: Final = frozenset({"text/html", ""})
# A body of JSON beyond this is an upload, not a prompt that says `stream`. Images in prompts are below.
_JSON_BYTES: Final = 64 * 1024 * 1024
# Made anew for each request.
_LENGTHS: Final = ("content-length", "transfer-encoding")
_CALLERS: Final = object()

Refresh = Callable[[Any], Any]
Protocols = Sequence[ResumeProtocol] | Callable[[Any], ResumeProtocol | None] | None


class _Clocks(dict[str, Any]):
    """A request's timeouts while its stream is read; `given` are the SDK's."""

    given: Any = None


class _Jar(CookieJar):
    """
    The cookies that the answers of one stream set. Whom they are for is the jar's to say: domain, path, `Secure`.

    Attributes:
        gone: (path, name) of those that the server took back: the request may have had them from the start.
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
    What a driver needs of a client, for one request of the SDK's.

    Attributes:
        request: The SDK's.
        headers, params: Of a client; nothing, since the request has them all.
        first: The response that is there already, until the driver takes it.
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
        """The body, or `None` when it is sent from an iterator, which can be done only once."""
        request = self.request
        try:
            content: bytes = request.content
        except self._library.RequestNotRead:
            # Behind a redirect the client knows the body only as a stream, though it may be one of bytes.
            return b"".join(request.stream) if isinstance(request.stream, self._library.ByteStream) else None
        return content

    @cached_property
    def _json(self) -> Any:
        if "json" not in self.request.headers.get("content-type", "") or not self.content or len(self.content) > _JSON_BYTES:
            return None
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            # No business of ours: the server judges it.
            return None

    def state(self) -> StreamState:
        return StreamState(self.request.method.upper(), str(self.request.url), self._json)

    def call(self) -> Call:
        """What every request of the stream has of it."""
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
            # The same query, which would only be written in another way.
            del wanted["params"]
        return self._library.Request(method, url, headers=headers, extensions=extensions, **wanted)

    def is_bare(self, options: Mapping[str, Any]) -> bool:
        """`auth=None` goes with a request to another origin: nothing of the caller's belongs there, and no cookie of here."""
        return options.get("auth", _CALLERS) is None

    def add_cookies(self, request: Any, options: Mapping[str, Any]) -> None:
        """
        Put the cookies in that the answers so far have set, over those that the SDK's client had.

        The client's jar is above the transport, and sees the first answer only when it is read. A load balancer in front of a
        server with sessions finds the back end again by such a cookie.
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
        """Of an answer, unless it is another origin's."""
        if "set-cookie" in response.headers and not self.is_bare(options):
            self._cookies.extract_cookies(response)

    def refreshes(self, options: Mapping[str, Any]) -> bool:
        return self.refresh is not None and not self.is_bare(options)

    def refreshed(self, request: Any) -> Any:
        if not isinstance(request, self._library.Request):
            raise TypeError(f"refresh must answer with the request to send, got {request!r}")
        return request

    def take_first(self, wanted: Any) -> Any:
        """The first response, read under the clocks of the request that the driver would have sent for it."""
        response, self.first = self.first, None
        self.keep_cookies(response, {})
        extensions = response.request.extensions
        given = extensions.get("timeout")
        self._clocks = _Clocks(given or {}, read=wanted.extensions["timeout"]["read"])
        # The same request may be under way twice.
        self._clocks.given = given.given if isinstance(given, _Clocks) else given
        extensions["timeout"] = self._clocks
        return response

    def restore(self) -> None:
        """The stream is over: the SDK's request is as it was."""
        extensions = self.request.extensions
        if self._clocks is None or extensions.get("timeout") is not self._clocks:
            return
        if self._clocks.given is None:
            del extensions["timeout"]
        else:
            extensions["timeout"] = self._clocks.given


def _cookie_name(part: str) -> str:
    return part.partition("=")[0].strip()


class Splicer:
    """
    The options of a transport, checked, and what is decided with them.

    Args:
        library: `httpx` or `httpx2`.
    """

    def __init__(
        self,
        library: ModuleType,
        *,
        protocols: Protocols,
        retry: RetryPolicy | None,
        timeouts: Timeouts | None,
        limits: Limits | None,
        refresh: Refresh | None,
        store: Store | None,
        key: Callable[[Any], str | None] | None,
        observer: Callable[[Notice], object] | None,
        upgrade_background: bool,
        on_lost: Literal["raise", "restart"] = "raise",
    ) -> None:
        if on_lost not in ("raise", "restart"):
            raise ValueError(f"on_lost must be 'raise' or 'restart' below an SDK, got {on_lost!r}")
        for name, value in (("refresh", refresh), ("key", key)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a callable of the request, got {value!r}")
        if (store is None) != (key is None):
            raise TypeError("store and key go together: pass both, or neither")
        if protocols is not None and not callable(protocols):
            protocols = tuple(_checked(protocols))
        self.library = library
        self.refresh = refresh
        self.store: Any = store
        self._key = key
        self._protocols = protocols
        self._upgrade = OpenAIResponses(upgrade_background=True) if upgrade_background else None
        self._on_lost = on_lost
        self._options = Options(retry=retry, timeouts=timeouts, limits=limits, observer=observer)
        if store is not None:
            Options(store=store, key="any")

    # --- the request

    def check(self, request: Any) -> None:
        """
        Raises:
            TypeError: The client is of the other library.
        """
        if not isinstance(request, self.library.Request):
            ours, theirs = self.library.__name__, type(request).__module__.partition(".")[0]
            raise TypeError(
                f"this transport is for {ours}, the client is of {theirs}: take it from resumable_stream.transports.{theirs}"
            )

    def prepare(self, request: Any) -> tuple[Any, Start | None]:
        """
        The request to send: the SDK's, one that asks for a background response in its place, or one with a key.

        Returns:
            The request; and, if its answer may get lost and be asked for again, who knows when.
        """
        if (joins := self._joined(request)) is None:
            return self._upgraded(request), None
        settings = self._options.settings(idempotent=True, refreshable=False, single_use=False, elsewhere=False)
        label = f"{request.method} {request.url.path}"
        return joins, Start(settings, label=label, observer=self._options.observer)

    def _joined(self, request: Any) -> Any | None:
        """The request with a key, where a named protocol knows it and its server joins one that comes again."""
        if self._protocols is None or request.method != "POST":
            return None
        port = Port(self.library, request)
        state, head = port.state(), Head(0, {}, str(request.url))
        named = [self._protocols(request)] if callable(self._protocols) else self._protocols
        asked = next((each for each in _checked(filter(None, named)) if each.joins and each.claims(state, head)), None)
        if asked is None or port.content is None:
            return None
        return with_key(self.library, request, port.content, asked.first_headers)

    def _upgraded(self, request: Any) -> Any:
        if self._upgrade is None or request.method != "POST" or not request.url.path.rstrip("/").endswith("/responses"):
            return request
        port = Port(self.library, request)
        wanted = self._upgrade.first_request(port.state())
        if wanted.json is None:
            return request
        build = Family(self.library).build
        made = build(port, wanted, port.call(), accept="*/*", timeouts=self._options.timeouts, read=None)
        made.extensions["timeout"] = request.extensions.get("timeout", self.library.Timeout(None).as_dict())
        return made

    def key_of(self, request: Any) -> str | None:
        key = self._key(request) if self._key is not None else None
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key must answer with a text, or None for a request that is not to be kept, got {key!r}")
        return key

    # --- the response

    def choose(self, port: Port, response: Any) -> ResumeProtocol | None:
        """The protocol of a stream that is to be spliced; `None`: hand it on as it is."""
        if response.status_code not in STREAMS or port.request.method == "HEAD":
            return None
        head = Family(self.library).head(response)
        kind = head.content_type
        if kind == "application/json" or not can_decode(response.headers.get("content-encoding", "")):
            return None
        state = port.state()
        found = self._named(port.request, state, head)
        if found is None:
            # A download is not ours, nor is a page; but where a stream was asked for, half of one must not pass as a file.
            found = detect(state, head) if kind in _STREAM_TYPES else claimed(state, head)
            if self._upgrade is not None and type(found) is OpenAIResponses:
                # The same, and it knows that an upgrade was wanted: for what it says of a request that got none.
                found = self._upgrade
        if found is None:
            return None
        other = kind in _OTHERS or (found.content_types and kind not in found.content_types)
        if other and not found.claims(state, head):
            return None
        verdict = found.on_status(head.status, head.headers, b"", state)
        # A document in place of a stream has its place in its head, so it stays with it.
        return found if verdict is None or (isinstance(verdict, Consume) and not verdict.whole) else None

    def _named(self, request: Any, state: StreamState, head: Head) -> ResumeProtocol | None:
        if self._protocols is None:
            return None
        if callable(self._protocols):
            found = self._protocols(request)
            return next(iter(_checked([found]))) if found is not None else None
        return next((each for each in self._protocols if _fits(each, state, head)), None)

    def named(self, checkpoint: Checkpoint, request: Any) -> ResumeProtocol | None:
        """The protocol of a stored place, with the options that were given here."""
        if callable(self._protocols):
            return self._protocols(request)
        given = self._protocols or ()
        return next((each for each in given if each.name == checkpoint.protocol), None)

    def plan(
        self,
        port: Port,
        *,
        protocol: ResumeProtocol | None,
        key: str | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Plan:
        options, request = self._options, port.request
        wanted = request.extensions.get("timeout") or {}
        connect, read = wanted.get("connect"), wanted.get("read")
        timeouts = options.timeouts
        if connect is not None and (timeouts.connect is None or connect < timeouts.connect):
            timeouts = replace(timeouts, connect=float(connect) or None)
        store = self.store if key is not None else None
        settings = replace(
            options.settings(
                idempotent="idempotency-key" in request.headers,
                refreshable=self.refresh is not None,
                single_use=port.content is None,
                elsewhere=False,
            ),
            timeouts=timeouts,
            saving=store is not None,
            keep_events=store is not None and bool(store.keep_events),
            save_interval=store.save_interval if store is not None else 1.0,
            # Only what keeps its events answers the next request with them.
            way_out=way_out(key, self._on_lost) if store is not None and store.keep_events else "",
            longest_read=float(read) if read else None,
            verbatim=True,
        )
        if checkpoint is not None:
            protocol = protocol_of(checkpoint, protocol, port.state())
        digest = None if key is None else self._digest(key, request)
        settings, checkpoint = for_record(settings, checkpoint, digest)

        def machine(start: Checkpoint | None) -> Machine:
            return Machine(state=port.state(), protocol=protocol, detect=detect, settings=settings, checkpoint=start)

        return Plan(
            machine=machine,
            family=Family(self.library),
            client=port,
            call=port.call(),
            checkpoint=checkpoint,
            check=lambda stored: None,
            store=store,
            key=key,
            observer=options.observer,
            timeouts=timeouts,
            limits=options.limits,
        )

    def stored(self, key: str) -> Checkpoint | None:
        """The place of an answer that can be had from the store. The key stays with whoever writes it."""
        if not self.store.keep_events:
            return None
        load = getattr(self.store, "load", None)
        found: Checkpoint | None = load(key) if load is not None else self.store.open(key)[0]
        return found

    def is_place_of(self, key: str, checkpoint: Checkpoint, request: Any) -> bool:
        """
        Is the answer under this key that of the request?

        Raises:
            StoreError: It is that of the same URL with another body or query: another question under an old key.
                A request elsewhere need not be a stream, so it is judged when its answer is there.
        """
        if (checkpoint.method, public_url(checkpoint.url)) != (request.method, public_url(str(request.url))):
            return False
        self._check(key, checkpoint, request)
        return True

    def _check(self, key: str, checkpoint: Checkpoint, request: Any) -> None:
        check_request(key, checkpoint, request.method, str(request.url), self._digest(key, request))

    def _digest(self, key: str, request: Any) -> str | None:
        return request_digest(request.method, str(request.url), body_of_request(request), key=key)

    def answers(self, stream: Any) -> bool:
        """Is what the store has the answer? Half of what cannot be continued is: then it raises, or is asked for anew."""
        return stream.goes_on or self._on_lost == "raise"

    def take_over(self, key: str, request: Any) -> Any:
        """
        The right to write under a key, now that there is a stream to be kept.

        Raises:
            StoreError: The key is another request's.
        """
        checkpoint, fence = self.store.open(key)
        if checkpoint is None:
            return fence
        self._check(key, checkpoint, request)
        if not self.store.keep_events:
            return fence
        # The half that is replaced.
        self.store.delete(key)
        return self.store.open(key)[1]

    def response(self, first: Any, stream: Any, body: Any) -> Any:
        """
        The response that the SDK gets.

        Args:
            first: The one that came; `None` for a stream that is read from the store.
        """
        make = self.library.Response
        if first is None:
            kinds = stream.protocol.content_types or ("application/octet-stream",)
            return make(200, headers={"content-type": kinds[0]}, stream=body, extensions={EXTENSION: stream})
        gone = {b"content-length"}
        if decoding_of(first.headers.get("content-encoding", "")) is not None:
            gone.add(b"content-encoding")
        headers = [(name, value) for name, value in first.headers.raw if name.lower() not in gone]
        return make(first.status_code, headers=headers, stream=body, extensions={**first.extensions, EXTENSION: stream})


def _fits(protocol: ResumeProtocol, state: StreamState, head: Head) -> bool:
    if type(protocol).matches is ResumeProtocol.matches:
        # It has no detection of its own, so it was named for all that it can read.
        return head.content_type in protocol.content_types
    return protocol.matches(state, head) or protocol.claims(state, head)


def _checked(protocols: Iterable[Any]) -> Iterable[ResumeProtocol]:
    for each in protocols:
        if isinstance(each, type):
            raise TypeError(f"protocols must be instances: pass {each.__name__}(), not the class {each.__name__}")
        if not isinstance(each, ResumeProtocol):
            raise TypeError(f"protocols must be instances from resumable_stream.protocols, or of a subclass, got {each!r}")
        yield each


class Skimming:
    """
    What the streams below a body share: events that went out unread are read when the place is asked for.

    Attributes:
        skim: Tells an event that need not be read; see `Skimmer.skim()`. `None`: each has to be.
    """

    _machine: Machine
    _store: Any
    _live: Any
    _busy: int
    _watched = False
    skim: Callable[[bytes], bytes | None] | None = None

    def adopt(self, fence: Any, replay: Any = None) -> None:
        """The transport has opened the store."""
        self._fence, self._replay = fence, replay

    @property
    def checkpoint(self) -> Checkpoint:
        self._settle(leaving=False)
        return super().checkpoint  # type: ignore[misc, no-any-return]

    @property
    def stats(self) -> Stats:
        self._settle(leaving=False)
        return super().stats  # type: ignore[misc, no-any-return]

    def _settle(self, *, leaving: bool = True) -> None:
        if self.skim is None:
            return
        before = self._machine.latest
        try:
            if leaving:
                self.skim = None
            self._machine.settle(leaving=leaving)
        finally:
            # Also when an interrupt came out: what was entered was handed out.
            if (items := self._machine.latest) is not before:
                # The last one is in hand, unless the reader has come back for more.
                self._batch, self._events, self._upto = items, NOTHING, len(items)
                self._floor, self._in_hand, self._whole = 0, int(not self._busy), False

    def take_carried(self) -> bytes:
        return self._machine.take_carried()

    def take_back(self, chunk: bytes) -> None:
        """An interrupt came before it was handed out."""
        self._machine.take_back(chunk)

    def _look_for_calm(self) -> None:
        """After an event was read: may the next ones go unread?"""
        self.skim = None
        # With a store a save may be due before any event, and what is kept has to be read.
        if (
            self._live is not None
            and self._store is None
            and not self._watched
            and (skimmer := self._machine.skimmer()) is not None
        ):
            self.skim = skimmer.skim


class Wire:
    """
    The bytes of events, for a reader that knows nothing of them.

    Args:
        library, request: For the errors.
    """

    def __init__(self, stream: Any, library: ModuleType, request: Any) -> None:
        self._stream = stream
        self._library = library
        self._request = request
        self._batch: Any = None

    def of(self, events: Iterable[Any]) -> bytes:
        """
        Whole events, as they came; those that never were on a wire, as they would have been.

        Raises:
            StreamReset, ReplayDiverged: Bytes cannot say it.
        """
        protocol = self._stream.protocol
        parts = [self._stream.take_carried()]
        for event in events:
            if event.reset and not protocol.tells_reset(event):
                text = "what was read is void, and the bytes of a stream cannot say so"
                raise StreamReset(text, offset=event.offset)
            wire = event.wire
            if wire is None:
                wire = encoded(event, protocol.framing)
            elif not isinstance(wire, bytes):
                # A later part of a batch: its bytes went out with the first.
                if wire is not self._batch:
                    raise ReplayDiverged("the server cuts its batches in another way than before, and their bytes cannot")
                continue
            self._batch = event
            parts.append(wire)
        return b"".join(parts)

    def error(self, error: ResumableStreamError) -> Any:
        """As the SDK above handles errors: also one of its HTTP library's."""
        return twin(self._stream._with_place(error), self._library, self._request)


class Configured:
    """The transports' constructor; for what it takes see `resumable_stream.transports.httpx.ResumableTransport`."""

    _library: ClassVar[ModuleType]
    _default: ClassVar[str]
    _base: ClassVar[str]

    def __init__(
        self,
        next_transport: Any = None,
        *,
        protocols: Protocols = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        refresh: Refresh | None = None,
        store: Store | None = None,
        key: Callable[[Any], str | None] | None = None,
        observer: Callable[[Notice], object] | None = None,
        upgrade_background: bool = False,
        on_lost: Literal["raise", "restart"] = "raise",
    ) -> None:
        library = self._library
        if next_transport is None:
            next_transport = getattr(library, self._default)()
        if not isinstance(next_transport, getattr(library, self._base)):
            raise TypeError(f"next_transport must be an {library.__name__}.{self._base}, got {next_transport!r}")
        self._next = next_transport
        self._splicer = Splicer(
            library,
            protocols=protocols,
            retry=retry,
            timeouts=timeouts,
            limits=limits,
            refresh=refresh,
            store=store,
            key=key,
            observer=observer,
            upgrade_background=upgrade_background,
            on_lost=on_lost,
        )
