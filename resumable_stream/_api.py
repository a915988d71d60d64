"""`connect`, `resume` and their async twins: check the arguments and build a stream."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from ._checkpoint import Checkpoint
from ._contract import ResumeProtocol, StreamState, origin_of
from ._core.checkpoints import UNKNOWN
from ._core.machine import Machine
from ._core.settings import Settings
from ._drivers.async_ import AsyncResumableStream
from ._drivers.base import Plan
from ._drivers.http import CALL_ARGUMENTS, Call, family_of, own_family
from ._drivers.sync import ResumableStream
from ._errors import OriginMismatch
from ._notices import Notice
from ._policy import RetryPolicy
from ._request import body_of, check_request, request_digest, way_out
from ._settings import Limits, Timeouts
from .protocols import detect, named
from .stores import Store, check_key

__all__ = ["aconnect", "aresume", "connect", "resume"]

OnGap = Literal["refetch", "deliver"]
OnLost = Literal["raise", "restart", "snapshot"]
Commit = Literal["auto", "manual"]
Observer = Callable[[Notice], object]

# Methods that can request a stream. A token with any other method was forged to have that request sent.
_STREAMS = ("GET", "HEAD", "POST", "PUT", "PATCH")


def connect(
    method: str,
    url: Any,
    *,
    client: Any = None,
    protocol: ResumeProtocol | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    commit: Commit = "auto",
    on_gap: OnGap = "refetch",
    on_lost: OnLost = "raise",
    store: Store | None = None,
    key: str | None = None,
    checkpoint: Checkpoint | str | None = None,
    observer: Observer | None = None,
    **request: Any,
) -> ResumableStream:
    """
    Read a stream that continues exactly where it stopped.

    Nothing is sent until the `with` block is entered (or `open()` is called); errors while opening are raised there.

    Args:
        method: HTTP method. GET and HEAD may be repeated; a POST is repeated only if that cannot pay twice.
        url: Absolute, or relative to the client's `base_url`.
        client: An `httpx.Client` or `httpx2.Client`; it keeps its settings and is not closed. `None`: a new httpx client.
        protocol: How to resume; an instance from `resumable_stream.protocols`. `None`: chosen by the first response.
        retry: When to retry, and when to give up. Default: `RetryPolicy()`.
        timeouts: Clocks in seconds. Default: `Timeouts()`.
        limits: What the stream may hold. Default: `Limits()`.
        commit: `"auto"`: the place moves when you ask for the next event. `"manual"`: only `commit()` moves it.
        on_gap: If the server does not send missing events again: `"refetch"` raises `GapError`, `"deliver"` marks the gap on
            the next event.
        on_lost: If the rest is gone: `"raise"`; `"restart"` sends the first request again, which may be paid again;
            `"snapshot"` returns the provider's stored result if it has one. A partial answer in the store that cannot be
            continued is yielded, followed by the error; `"restart"` replaces it.
        store: Where the place (and, if it keeps them, the events) is saved.
        key: The stream's name in the store; `request_key()` derives one from the request. If the key holds the place of another
            request (method, URL, body), that is a `StoreError`.
        checkpoint: Where to continue: a `Checkpoint` or its token.
        observer: Called with a small frozen notice for each reconnect, gap or duplicate; it runs inline, so it must be quick.
        **request: The arguments of `client.build_request` without `timeout`, plus `auth`: `headers` (a mapping, or a callable
            that is called for every connection, for fresh tokens), `params`, `json`, `content`, `data`, `files`, `cookies`,
            `extensions`.

    Returns:
        A `ResumableStream`, not yet open.

    Raises:
        TypeError, ValueError: An argument is not what it should be; the message says what to pass.
    """
    options = Options(protocol, retry, timeouts, limits, commit, on_gap, on_lost, store, key, observer)
    return ResumableStream(_plan("Client", method, url, client, checkpoint, options, request))


def aconnect(
    method: str,
    url: Any,
    *,
    client: Any = None,
    protocol: ResumeProtocol | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    commit: Commit = "auto",
    on_gap: OnGap = "refetch",
    on_lost: OnLost = "raise",
    store: Store | None = None,
    key: str | None = None,
    checkpoint: Checkpoint | str | None = None,
    observer: Observer | None = None,
    **request: Any,
) -> AsyncResumableStream:
    """
    `connect()` for asyncio and trio: same arguments, an async client, an `AsyncResumableStream`.

    Raises:
        TypeError, ValueError: An argument is not what it should be; the message says what to pass.
    """
    options = Options(protocol, retry, timeouts, limits, commit, on_gap, on_lost, store, key, observer)
    return AsyncResumableStream(_plan("AsyncClient", method, url, client, checkpoint, options, request))


def resume(
    token_or_checkpoint: str | Checkpoint,
    *,
    client: Any = None,
    origin: str | None = None,
    protocol: ResumeProtocol | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    commit: Commit = "auto",
    on_gap: OnGap = "refetch",
    on_lost: OnLost = "raise",
    store: Store | None = None,
    key: str | None = None,
    observer: Observer | None = None,
    **request: Any,
) -> ResumableStream:
    """
    Continue a stream of another process, kernel or device.

    Args:
        token_or_checkpoint: The token or checkpoint saved there.
        client: As for `connect()`.
        origin: Any URL of the server that may receive your credentials. `None`: the client's `base_url`.
            The token is not signed, so without this check a forged one could send them to another server.
        protocol: Pass it again if it is your own, or has options.
        **request: `params`, `headers` and `json` are merged into the resume request. A checkpoint leaves out query values that
            may be secrets, and those of the client that began the stream; values that selected the stream must be in `params`.

    Returns:
        A `ResumableStream`, not yet open. For a complete stream it yields nothing, has its `outcome`, and sends no request.

    Raises:
        OriginMismatch: The checkpoint belongs to another origin.
        ValueError: The token is damaged, has an unknown schema, or its protocol is not one of this package; or `params` lacks a
            query value that the checkpoint leaves out.
        TypeError: Neither `origin` nor a client with a `base_url` was given.
    """
    place = _checkpoint(token_or_checkpoint)
    options = Options(protocol, retry, timeouts, limits, commit, on_gap, on_lost, store, key, observer)
    _check_place(place, origin, client)
    return ResumableStream(_plan("Client", place.method, place.url, client, place, options, request, merge=True))


def aresume(
    token_or_checkpoint: str | Checkpoint,
    *,
    client: Any = None,
    origin: str | None = None,
    protocol: ResumeProtocol | None = None,
    retry: RetryPolicy | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    commit: Commit = "auto",
    on_gap: OnGap = "refetch",
    on_lost: OnLost = "raise",
    store: Store | None = None,
    key: str | None = None,
    observer: Observer | None = None,
    **request: Any,
) -> AsyncResumableStream:
    """
    `resume()` for asyncio and trio.

    Raises:
        OriginMismatch, ValueError, TypeError: As `resume()`.
    """
    place = _checkpoint(token_or_checkpoint)
    options = Options(protocol, retry, timeouts, limits, commit, on_gap, on_lost, store, key, observer)
    _check_place(place, origin, client)
    return AsyncResumableStream(_plan("AsyncClient", place.method, place.url, client, place, options, request, merge=True))


class Options:
    """The options that `connect()`, `resume()` and the transports share, checked."""

    def __init__(
        self,
        protocol: ResumeProtocol | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        commit: Commit = "auto",
        on_gap: OnGap = "refetch",
        on_lost: OnLost = "raise",
        store: Store | None = None,
        key: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        if isinstance(protocol, type):
            raise TypeError(f"protocol must be an instance: pass {protocol.__name__}(), not the class {protocol.__name__}")
        _check_type(
            "protocol",
            protocol,
            ResumeProtocol,
            "an instance from resumable_stream.protocols, or of a subclass of ResumeProtocol",
        )
        _check_type("retry", retry, RetryPolicy, "a RetryPolicy")
        _check_type("timeouts", timeouts, Timeouts, "a Timeouts")
        _check_type("limits", limits, Limits, "a Limits")
        _check_choice("commit", commit, ("auto", "manual"))
        _check_choice("on_gap", on_gap, ("refetch", "deliver"))
        _check_choice("on_lost", on_lost, ("raise", "restart", "snapshot"))
        if (store is None) != (key is None):
            raise TypeError("store and key go together: pass both, or neither")
        if isinstance(store, type):
            raise TypeError(f"store must be an instance: pass {store.__name__}(...), not the class {store.__name__}")
        if key is not None:
            check_key(key)
        if store is not None and not callable(getattr(store, "save", None)):
            raise TypeError(f"store must be a resumable_stream.stores.Store, got {type(store).__name__}")
        if observer is not None and not callable(observer):
            raise TypeError(f"observer must be a callable of one notice, got {observer!r}")
        self.protocol = protocol
        self.retry = retry or RetryPolicy()
        self.timeouts = timeouts or Timeouts()
        self.limits = limits or Limits()
        self.commit = commit
        self.on_gap: OnGap = on_gap
        self.on_lost: OnLost = on_lost
        self.store = store
        self.key = key
        self.observer = observer

    def settings(self, *, idempotent: bool, refreshable: bool, single_use: bool, elsewhere: bool) -> Settings:
        policy, store = self.retry, self.store
        return Settings(
            timeouts=self.timeouts,
            limits=self.limits,
            delay=lambda state: policy.delay(state, now=monotonic()),
            attempts=policy.attempts,
            jitter=random.random,
            statuses=policy.statuses,
            max_server_wait=policy.max_server_wait,
            on_gap=self.on_gap,
            on_lost=self.on_lost,
            manual=self.commit == "manual",
            idempotent=idempotent,
            refreshable=refreshable,
            single_use=single_use,
            started_elsewhere=elsewhere,
            saving=store is not None,
            way_out=way_out(self.key, self.on_lost),
            keep_events=store is not None and bool(store.keep_events),
            save_interval=store.save_interval if store is not None else 1.0,
        )


def _plan(
    want: Literal["Client", "AsyncClient"],
    method: str,
    url: Any,
    client: Any,
    checkpoint: Checkpoint | str | None,
    options: Options,
    request: Mapping[str, Any],
    *,
    merge: bool = False,
) -> Plan:
    if not isinstance(method, str) or not method.isalpha():
        raise ValueError(f"method must be an HTTP method such as 'GET' or 'POST', got {method!r}")
    method = method.upper()
    if "timeout" in request:
        raise TypeError("timeout= is replaced by timeouts=Timeouts(...): a stream has several clocks")
    if unknown := sorted(set(request) - set(CALL_ARGUMENTS)):
        raise TypeError(f"unknown argument {unknown[0]!r}; a request takes {', '.join(CALL_ARGUMENTS)}")
    family = family_of(client, want=want) if client is not None else own_family()
    # A checkpoint's URL is complete; a client's own `params` would replace its query.
    absolute = family.absolute(None, method, url, None) if merge else family.absolute(client, method, url, request.get("params"))
    private = family.private_params(client, request.get("params"))
    call = Call(dict(request), merge=merge)
    place = _checkpoint(checkpoint) if checkpoint is not None else None
    if place is not None and (seen := origin_of(place.url)) != origin_of(absolute):
        raise OriginMismatch(
            f"the checkpoint belongs to {seen}, the URL to {origin_of(absolute)}", expected=origin_of(absolute), received=seen
        )
    if merge and place is not None:
        _check_withheld(place, family, client, request.get("params"))
    headers = request.get("headers")
    given = {} if headers is None or callable(headers) else {str(_text(name)).lower() for name in family.headers(headers)}
    # The body sent by another process is unknown here.
    known = options.key is not None and not merge
    digest = request_digest(method, absolute, body_of(request), key=options.key) if known and options.key is not None else None
    asked = options.settings(
        idempotent="idempotency-key" in given or (client is not None and "idempotency-key" in client.headers),
        refreshable=callable(headers),
        single_use=call.single_use,
        elsewhere=merge,
    )
    settings = replace(asked, new_key=lambda: secrets.token_hex(16))

    def machine(start: Checkpoint | None) -> Machine:
        state = StreamState(method, absolute, request.get("json"), private=private)
        protocol = options.protocol
        if start is not None:
            protocol = protocol_of(start, protocol, state)
        asked, start = for_record(settings, start, digest)
        return Machine(state=state, protocol=protocol, detect=detect, settings=asked, checkpoint=start)

    def check(stored: Checkpoint) -> None:
        assert options.key is not None
        check_request(options.key, stored, method, absolute, digest, private=private)

    return Plan(
        machine=machine,
        family=family,
        client=client,
        call=call,
        checkpoint=place,
        check=check,
        store=options.store,
        key=options.key,
        observer=options.observer,
        timeouts=options.timeouts,
        limits=options.limits,
    )


def for_record(settings: Settings, place: Checkpoint | None, digest: str | None) -> tuple[Settings, Checkpoint | None]:
    """Put the digest only into the store's record; if the request's digest is unknown, the record keeps its own."""
    if place is None or place.request is None:
        return (settings if digest is None else replace(settings, request=digest)), place
    return replace(settings, request=digest or place.request), replace(place, request=None)


def protocol_of(checkpoint: Checkpoint, given: ResumeProtocol | None, request: StreamState) -> ResumeProtocol | None:
    if given is not None:
        if given.name != checkpoint.protocol and checkpoint.protocol != UNKNOWN:
            raise ValueError(f"the checkpoint is for protocol {checkpoint.protocol!r}, but protocol= is {given.name!r}")
        return given
    if checkpoint.protocol == UNKNOWN:
        return None
    found = named(checkpoint.protocol)
    if found is None:
        raise ValueError(f"protocol {checkpoint.protocol!r} is not in resumable_stream.protocols; pass it as protocol=")
    options = checkpoint.extra.get("options", "")
    if found.options != options:
        # The request may imply them.
        found = found.for_request(request)
    if found.options != options:
        raise ValueError(f"the stream was read by {checkpoint.protocol} with options: pass it with the same options as protocol=")
    return found


def _checkpoint(given: Checkpoint | str) -> Checkpoint:
    if isinstance(given, Checkpoint):
        # The digest of a store's record belongs to its key only.
        return given if given.request is None else replace(given, request=None)
    if isinstance(given, str):
        return Checkpoint.from_json(given) if given.lstrip().startswith("{") else Checkpoint.from_token(given)
    raise TypeError(f"expected a Checkpoint or its token, got {type(given).__name__}")


def _check_place(place: Checkpoint, origin: str | None, client: Any) -> None:
    """Reject a token that could do harm before anything is sent: it may come from anywhere."""
    if place.method not in _STREAMS:
        raise ValueError(f"resume() expects the place of a {', '.join(_STREAMS)} request, got {place.method[:20]}")
    if origin is not None and not isinstance(origin, str):
        raise TypeError(f"origin must be a URL, got {origin!r}")
    base = origin if origin is not None else str(getattr(client, "base_url", "") or "")
    if not base:
        raise TypeError("pass origin= (any URL of the server that may get your credentials), or a client with a base_url")
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
        raise ValueError(f"origin must be an absolute http(s) URL, got {base[:200]!r}")
    if (expected := origin_of(base)) != (received := origin_of(place.url)):
        raise OriginMismatch(
            f"the checkpoint belongs to {received}, your credentials to {expected}: nothing was sent",
            expected=expected,
            received=received,
        )


def _check_withheld(place: Checkpoint, family: Any, client: Any, params: Any) -> None:
    """Require the query values that a token leaves out as possible secrets: without them another stream might be read."""
    there = {*family.module.QueryParams(params), *(client.params if client is not None else ())}
    names = [unquote(name) for name in place.extra.get("withheld", "").split("&") if name]
    if missing := [name for name in names if name not in there]:
        shown = ", ".join(f"{name!r}: …" for name in missing)
        raise ValueError(
            f"the checkpoint leaves out query values that may be secret or private: pass them again, as params={{{shown}}}"
        )


def _check_type(name: str, value: object, wanted: type, what: str) -> None:
    if value is not None and not isinstance(value, wanted):
        raise TypeError(f"{name} must be {what}, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def _text(name: str | bytes) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else name
