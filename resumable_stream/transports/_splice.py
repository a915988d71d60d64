"""
What the transports of both HTTP libraries share, sync and async: which answers are spliced, and how.

    SDK ──request──► ResumableTransport ──request──► the next transport
                           │ ◄── response ──────────┘
                           ├── not a stream, or an error: passed on unchanged
                           └── a stream: a driver reads it and reconnects through the next transport;
                               the SDK reads the bytes of the driver's events

Everything that may wait is written once here, as coroutines over the primitives of a `Port`; see `_drivers/loop.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Final, Literal

from .._api import Options, for_record, protocol_of
from .._checkpoint import Checkpoint, public_url
from .._contract import Consume, Head, Joined, ResumeProtocol, StreamState, overrides
from .._core.heads import STREAMS
from .._core.machine import Machine
from .._drivers.base import Plan
from .._drivers.coding import can_decode, decoding_of
from .._drivers.http import Family
from .._errors import ResumableStreamError
from .._notices import Notice
from .._policy import RetryPolicy
from .._request import body_of_request, check_request, request_digest, way_out
from .._settings import Limits, Timeouts
from .._twins import twin
from ..protocols import OpenAIResponses, detect
from ..protocols._detect import claimed
from ..protocols.ndjson import NDJSON_TYPES
from ..stores import Store
from ._port import Port, Refresh, SendingPort
from ._start import Start, with_key
from ._wire import Skimming, Spliced, Wire

__all__ = ["EXTENSION", "Splicer", "Splicing"]


EXTENSION: Final = "resumable_stream"
"""Name in `response.extensions` of the stream below the body."""

# Content types that detection considers. Others (a JSON document, a page, a file) are spliced only if a protocol is named.
_STREAM_TYPES: Final = frozenset({"text/event-stream", *NDJSON_TYPES})
# A page, or no content type: a stream only if the request asks for one.
_OTHERS: Final = frozenset({"text/html", ""})

Protocols = Sequence[ResumeProtocol] | Callable[[Any], ResumeProtocol | None] | None


class Splicer:
    """
    A transport's validated options, and the decisions made with them.

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
            TypeError: The client belongs to the other library.
        """
        if not isinstance(request, self.library.Request):
            ours, theirs = self.library.__name__, type(request).__module__.partition(".")[0]
            raise TypeError(
                f"this transport is for {ours}, the client is of {theirs}: import it from resumable_stream.transports.{theirs}"
            )

    def prepare(self, request: Any) -> tuple[Any, Start | None]:
        """
        The request to send: the SDK's own, one that asks for a background response instead, or one with a key.

        Returns:
            The request; and, if it may be sent again when its answer is lost, the `Start` that decides when.
        """
        if (joins := self._joined(request)) is None:
            return self._upgraded(request), None
        settings = self._options.settings(idempotent=True, refreshable=False, single_use=False, elsewhere=False)
        label = f"{request.method} {request.url.path}"
        return joins, Start(settings, label=label, observer=self._options.observer)

    def _joined(self, request: Any) -> Any | None:
        """The request with a key, if a named protocol recognises it and its server joins repeated requests."""
        if self._protocols is None or request.method != "POST":
            return None
        port = Port(self.library, request)
        state, head = port.state(), Head(0, {}, str(request.url))
        named = [self._protocols(request)] if callable(self._protocols) else self._protocols
        asked = next((each for each in _checked(filter(None, named)) if Joined.of(each).joins and each.claims(state, head)), None)
        if asked is None or port.content is None:
            return None
        return with_key(self.library, request, port.content, Joined.of(asked).first_headers)

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
            raise TypeError(f"key must return a text, or None for a request that is not to be kept, got {key!r}")
        return key

    # --- the response

    def choose(self, port: Port, response: Any) -> ResumeProtocol | None:
        """The protocol of a stream to splice; `None`: pass the response on unchanged."""
        if response.status_code not in STREAMS or port.request.method == "HEAD":
            return None
        head = Family(self.library).head(response)
        kind = head.content_type
        if kind == "application/json" or not can_decode(response.headers.get("content-encoding", "")):
            return None
        state = port.state()
        found = self._named(port.request, state, head)
        if found is None:
            # Downloads and pages are passed on; but if a stream was requested, a part of one must not pass as a file.
            found = detect(state, head) if kind in _STREAM_TYPES else claimed(state, head)
            if self._upgrade is not None and type(found) is OpenAIResponses:
                # The same protocol, which knows that an upgrade was wanted, for its messages about requests that got none.
                found = self._upgrade
        if found is None:
            return None
        other = kind in _OTHERS or (found.content_types and kind not in found.content_types)
        if other and not found.claims(state, head):
            return None
        verdict = found.on_status(head.status, head.headers, b"", state)
        # A document that is read instead of a stream has its position in its head, so the two stay together.
        return found if verdict is None or (isinstance(verdict, Consume) and not verdict.whole) else None

    def _named(self, request: Any, state: StreamState, head: Head) -> ResumeProtocol | None:
        if self._protocols is None:
            return None
        if callable(self._protocols):
            found = self._protocols(request)
            return next(iter(_checked([found]))) if found is not None else None
        return next((each for each in self._protocols if _fits(each, state, head)), None)

    def named(self, checkpoint: Checkpoint, request: Any) -> ResumeProtocol | None:
        """The protocol of a stored checkpoint, with the options given here."""
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
            # Only a store that keeps events can answer the next request from them.
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
        """The checkpoint of an answer that the store can deliver. This does not take over the key from its writer."""
        if not self.store.keep_events:
            return None
        load = getattr(self.store, "load", None)
        found: Checkpoint | None = load(key) if load is not None else self.store.open(key)[0]
        return found

    def is_place_of(self, key: str, checkpoint: Checkpoint, request: Any) -> bool:
        """
        Whether the answer under this key belongs to the request.

        Raises:
            StoreError: It belongs to the same URL with another body or query: another question under an old key.
                A request to another URL need not be a stream, so it is judged once its answer is there.
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
        """Whether the store answers the request. A partial answer that cannot be continued does only with `on_lost="raise"`."""
        return stream.goes_on or self._on_lost == "raise"

    def take_over(self, key: str, request: Any) -> Any:
        """
        Take the right to write under a key, now that there is a stream to keep.

        Raises:
            StoreError: The key belongs to another request.
        """
        checkpoint, fence = self.store.open(key)
        if checkpoint is None:
            return fence
        self._check(key, checkpoint, request)
        if not self.store.keep_events:
            return fence
        # The partial answer that is replaced.
        self.store.delete(key)
        return self.store.open(key)[1]

    def response(self, first: Any, stream: Any, body: Any) -> Any:
        """
        The response that the SDK gets.

        Args:
            first: The response that came; `None` for a stream that is read from the store.
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
    if not overrides(protocol, "matches", "claims"):
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


class Splicing:
    """
    What the transports share. For the constructor's arguments see `resumable_stream.transports.httpx.ResumableTransport`.

    Attributes:
        _default, _base: Names in the library of the default transport and of the transports' base class.
        _for, _instead: Parts of the error for a client of the wrong kind.
    """

    _library: ClassVar[ModuleType]
    _default: ClassVar[str]
    _base: ClassVar[str]
    _for: ClassVar[str]
    _instead: ClassVar[str]
    _port: ClassVar[type[SendingPort]]
    _stream: ClassVar[type[Skimming]]
    _body: ClassVar[type[Spliced]]

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

    async def _answer(self, request: Any) -> Any:
        splicer = self._splicer
        splicer.check(request)
        request, start = splicer.prepare(request)
        try:
            return await self._handle(request, start)
        except ResumableStreamError as error:
            if isinstance(error, self._library.RequestError):
                raise
            raise twin(error, self._library, request) from error.__cause__

    async def _handle(self, request: Any, start: Start | None) -> Any:
        splicer = self._splicer
        port = self._port(splicer.library, request, self._next, splicer.refresh)
        fence = None
        if (key := splicer.key_of(request)) is not None:
            checkpoint = await port.ask_store(partial(splicer.stored, key))
            if checkpoint is not None and splicer.is_place_of(key, checkpoint, request):
                plan = splicer.plan(port, protocol=splicer.named(checkpoint, request), key=key, checkpoint=checkpoint)
                stream = self._stream(plan)
                if splicer.answers(stream):
                    _, fence = await port.ask_store(partial(splicer.store.open, key))
                    stream.adopt(fence, iter(await port.ask_store(partial(splicer.store.replay, key))))
                    return await self._response(None, stream, port)
        response = await (port.handle(request) if start is None else self._start(port, request, start))
        # As the client does with the response.
        response.request = request
        try:
            protocol = splicer.choose(port, response)
            if protocol is None:
                return response
            port.first = response
            if key is not None:
                fence = await port.ask_store(partial(splicer.take_over, key, request))
            stream = self._stream(splicer.plan(port, protocol=protocol, key=key))
            stream.adopt(fence)
            return await self._response(response, stream, port)
        except BaseException:
            await port.close(response)
            raise

    async def _start(self, port: SendingPort, request: Any, start: Start) -> Any:
        """Send a request until it is answered."""
        again = False
        while True:
            try:
                # Use new credentials, as before each reconnect.
                response = await (port.exchange(request, {}) if again else port.handle(request))
                wait = start.wait_for(response)
                if wait is None:
                    return response
                await port.close(response)
            except Exception as failure:
                wait = start.wait_after(failure)
                if wait is None:
                    raise
            await port.sleep(wait)
            again = True

    async def _response(self, first: Any, stream: Skimming, port: Port) -> Any:
        await stream._open()
        body = self._body(stream, Wire(stream, self._library, port.request), port)
        return self._splicer.response(first, stream, body)

    def _wrong_client(self) -> TypeError:
        library = self._library.__name__
        text = f"{type(self).__name__} is for {self._for}; {self._instead} of resumable_stream.transports.{{0}}"
        return TypeError(text.format(library))
