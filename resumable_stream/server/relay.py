"""
A relay in front of any API that streams: its streams become resumable for clients that change only the base URL.

    app = Relay("https://api.openai.com", log=SQLiteLog("streams.db"))        # an ASGI app

    client ── POST /v1/chat/completions ──▶ relay ── the same ──▶ upstream
           ◀── its bytes, first reader ───┤   ◀── events ──────┘
                                          ▼
                                    generation ──▶ log
    client ── GET /.streams/{id}?view=verbatim&after=… ──▶ the rest, then live events

A stream becomes a generation, and the answer to the request that started it is its first reader, so a client that leaves stops
nothing. Everything else passes through.

The decisions of a relay are in `_relay_rules`, the reading of bodies in `_relay_reading`, and the requests to the upstream in
`_relay_upstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote

from .._errors import KeyReused, LogUnavailable, ResumableStreamError, StreamUnknown
from .._events import Outcome
from ..protocols import Head as ResponseHead
from . import wire
from ._relay_metrics import CONTENT_TYPE, Metrics, counted
from ._relay_reading import UpstreamReading, protocol_of, text_in
from ._relay_retries import Retries
from ._relay_rules import (
    CAPABILITY,
    Upstreams,
    asks_for_stream,
    capability_of,
    claim_owner,
    fingerprint_of,
    framing_of,
    headers_kept,
    headers_up,
    is_document,
    is_retry,
    json_of,
    key_id,
    known_names,
    principal_by_capability,
    principal_of,
    repeated_credential,
    retry_id,
    target_of,
)
from ._relay_takeover import Takeovers, protocol_for
from ._relay_upstream import Begun, Client, Passed, Trouble, collected, pump
from ._starlette import ClientDisconnect, Request, Response, Route, Starlette
from .answering import PATH_SAFE, TROUBLE, TooLarge, answer_to_request, answer_to_trouble
from .asgi import Handler, HubResponse, _Routes, app_of, facts_of, while_there
from .hub import Hub, HubLimits, Producer, key_of
from .log import Ending, Existing, Framing, Head, StreamLog, Writer, check_seconds
from .memory import MemoryLog
from .wire import Answer, Facts

if TYPE_CHECKING:
    import aiohttp
    from starlette.types import ASGIApp, Receive, Scope, Send

    from .generation import Generation

__all__ = ["Relay"]

logger = logging.getLogger("resumable_stream.server")
T = TypeVar("T")
ASGIResponse: TypeAlias = "HubResponse | Passed | ASGIApp"

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_SECRET_ID: Final = "relay-secret"  # noqa: S105
_FOREVER: Final = 100 * 365 * 86400.0
_ROUNDS: Final = 8
"""How often a request with a key checks again what became of the first request with that key."""
# Reasons why a request with a key may be sent again: the upstream did not get it, or its answer was not a stream.
_AGAIN: Final = ("not_sent", "not_a_stream")
_CLAIM: Final = Ending(outcome=Outcome.COMPLETED)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request for an upstream."""

    method: str
    path: str
    url: str = field(repr=False)
    mount: str
    location: str
    facts: Facts = field(repr=False)
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes = field(repr=False)
    json: Any = field(repr=False)
    principal: str = ""

    def fingerprint(self, secret: bytes) -> str:
        kind = self.facts.headers.get("content-type", "")
        return fingerprint_of(secret, self.method, self.path, self.facts.query, self.body, kind)


class Relay:
    """
    An ASGI app between clients and an API, which keeps the streams of the API's answers.

    A client changes only its base URL. A streaming body (`text/event-stream`, JSON lines, Amazon's
    `application/vnd.amazon.eventstream`, Gemini's JSON array) is kept in the log while it is passed on, byte for byte; its head
    says where it can be read again: `Content-Location: /.streams/{id}`, `Stream-Id` and `Stream-Epoch`. Other answers pass
    through, and so do the streams of a GET, which can be repeated.

    | request | answer |
    |---|---|
    | `GET /.streams/{id}` | the events after `Last-Event-ID` or `?after=`, then live ones; `?view=verbatim`: unchanged |
    | `HEAD /.streams/{id}` | its state, in headers |
    | `GET /.streams/{id}/message` | its text so far, in one piece |
    | `POST /.streams/{id}/cancel` | the connection to the upstream is closed; 202, or 200 if the stream has ended |
    | `DELETE /.streams/{id}` | 204: cancelled and deleted |
    | `GET /.health` | 200, or 503 while it shuts down |
    | `GET /.metrics` | numbers of this process, for Prometheus |

    With `keep_answers`, a non-streaming answer to a request with an `Idempotency-Key` is kept too, so that a repeated request
    gets it without asking the upstream.

    *Who may read.* Only a client with the API key that started a stream may read and cancel it; others get a 404. The key is
    passed on but never stored; the relay stores a hash of it that only this relay can compute.

    With `capability_urls`, anyone who has the URL of a stream can read it: `Content-Location` then carries `?t=…`, which opens
    this one stream for `retention` seconds, for a browser that has no key. It cannot cancel or delete.

    *Leaving is not stopping.* A client that leaves does not stop the upstream; `cancel` does, and `abandon_after` may.

    *Sent once.* Of several POSTs with the same `Idempotency-Key` and API key, one reaches the upstream; the others get its stream
    from the start, at any relay over the same log. With another body the answer is a 409.

    *An honest end.* If the upstream breaks off a body, or closes it before the end that its protocol defines, the relay breaks it
    off too.

    *Upstreams that can resume.* If the connection to such an upstream breaks, the relay requests the rest, and the readers notice
    nothing. If the relay dies, the relay of the next reader continues, with that reader's key.

    Run it with `resumable-stream relay`, which drains at SIGTERM, or with any ASGI server. An app that mounts it needs
    `lifespan=relay.lifespan`.

    Args:
        upstream: The URL of the API, without the paths that clients append: `https://api.openai.com`. For several APIs, a
            mapping from mounts to URLs, such as `{"/openai": "https://api.openai.com"}`; a client's base URL then ends in the
            mount.
        log: Where streams are kept. `None`: a `MemoryLog`, gone with the process.
        secret: Key of the hashes, at least 16 bytes, the same in all relays over one log. `None`: it is made once, and kept in
            the log; whoever can read the log can then check whether a known key has started a stream.
        allow: Names of additional headers of the upstream that are kept with a stream, besides the usual ones (request ids,
            rate limits, `openai-*`, `anthropic-*`); one that ends in `-` is a prefix.
        capability_urls: Make URLs that open a stream without a key. False: whoever sees such a URL, in a history or in the log
            of a proxy, can read the stream. If turned off again, existing URLs open nothing.
        keep_answers: Keep the JSON answer to a JSON POST with an `Idempotency-Key`, if its status is a success. False: a relay
            keeps no more than necessary. Uploads, and other kinds of answers, always pass through.
        answer_bytes: Most bytes of such an answer, which is in memory until it is complete; a longer one passes through and is
            not kept. 4 MiB: an image, or some dozens of embeddings; a model's answer in words is a hundredth of it.
        join_retries: A POST that an SDK marks as a retry (`x-stainless-retry-count`), without an `Idempotency-Key`, gets the
            answer to the same request with the same API key, if that was sent in the last ten minutes. False: a client that
            sends one prompt several times at once, for several answers, would get the same one twice after a retry.
        retention: Seconds that a stream is kept after its end; a day.
        abandon_after: Seconds without any reader after which a stream is cancelled. `None`: never, because a client may return.
        takeover_wait: Seconds that a stream whose relay died, and whose upstream can resume, waits for a reader with a key; then
            it ends as failed. 600: disconnected clients return sooner, and providers keep a stream for minutes. 0: no wait.
        idle: Seconds that an upstream may send nothing before it counts as cut. 600: the timeout of the providers' SDKs.
        connect: Most seconds to connect to it.
        body_bytes: Most bytes of a request. 64 MiB: images and files in a prompt.
        cors: Origins whose pages may read streams, see `create_app`.
        metrics: Serve `/.metrics`. It names the mounts, but nothing of any request.
        limits: See `HubLimits`.
        lease, flush, heartbeat, send_timeout: As for `Hub`.

    Attributes:
        hub: Runs the generations; `hub.drain()` shuts down without losing anything.

    Raises:
        ValueError: A URL, a mount or a number is invalid.
        ImportError: aiohttp or starlette is missing: the extra `relay` has both.
    """

    def __init__(
        self,
        upstream: str | Mapping[str, str],
        log: StreamLog | None = None,
        *,
        secret: bytes | None = None,
        allow: Sequence[str] = (),
        capability_urls: bool = False,
        keep_answers: bool = False,
        answer_bytes: int = 4 << 20,
        join_retries: bool = False,
        retention: float = 86400.0,
        abandon_after: float | None = None,
        takeover_wait: float = 600.0,
        idle: float = 600.0,
        connect: float = 10.0,
        body_bytes: int = 64 << 20,
        cors: Sequence[str] = (),
        metrics: bool = True,
        limits: HubLimits | None = None,
        lease: float = 15.0,
        flush: float = 0.025,
        heartbeat: float | None = 15.0,
        send_timeout: float = 60.0,
    ) -> None:
        for name, seconds in (("idle", idle), ("connect", connect)):
            if not check_seconds(name, seconds):
                raise ValueError(f"{name} must be more than 0 seconds")
        check_seconds("takeover_wait", takeover_wait)
        for name, count in (("body_bytes", body_bytes), ("answer_bytes", answer_bytes)):
            if type(count) is not int or count < 1:
                raise ValueError(f"{name} must be a positive whole number, got {count!r}")
        limits = limits or HubLimits()
        if keep_answers and answer_bytes > (most := min(limits.event_bytes, limits.stream_bytes)):
            raise ValueError(
                f"an answer is kept as one event, so answer_bytes must be at most {most} (HubLimits), got {answer_bytes}"
            )
        if secret is not None and (not isinstance(secret, bytes) or len(secret) < 16):
            raise ValueError("secret must be at least 16 bytes, such as secrets.token_bytes(32)")
        self._upstreams = Upstreams.of(upstream)
        self._allow = known_names(allow)
        self._capability_urls = capability_urls
        self._keep_answers, self._answer_bytes = keep_answers, answer_bytes
        self._idle, self._connect = idle, connect
        self._body_bytes = body_bytes
        self._origins = wire.check_origins(cors)
        self._passing: set[object] = set()
        gauges = {
            "relay_streams_running": lambda: len(self.hub._generations),
            "relay_readers": lambda: len(self.hub._readers),
            "relay_passing": lambda: len(self._passing),
            "relay_takeovers_total": lambda: self.hub._generations.taken_over,
            "relay_holes_filled_total": lambda: self.hub._following.holes_filled,
        }
        self._metrics = Metrics(gauges)
        self.hub: Hub
        self._given_secret = secret
        self._secret: bytes | None = secret
        self._asking = asyncio.Lock()
        self._client: Client | None = None
        self.hub = Hub(
            counted(log or MemoryLog(), self._metrics),
            lease=lease,
            flush=flush,
            retention=retention,
            abandon_after=abandon_after,
            limits=limits,
            heartbeat=heartbeat,
            send_timeout=send_timeout,
            authorize=self._authorize,
            text_of=text_in,
        )
        self._join_retries = join_retries
        self._takeovers = Takeovers(
            self.hub,
            self._upstreams.by_mount,
            self._metrics,
            self._principal,
            wait=takeover_wait,
            connect=connect,
            idle=idle,
        )
        self._own = self._own_routes(with_metrics=metrics)

    def __repr__(self) -> str:
        return f"<Relay to {', '.join(self._upstreams.by_mount.values())} over {self.hub.log!r}>"

    # --- life

    async def __aenter__(self) -> Self:
        self._client = self._takeovers.client = Client(connect=self._connect, idle=self._idle)
        await self.hub.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop at once, as `Hub.aclose()` does; call `hub.drain()` first to give streams time. The log stays open."""
        await self.hub.aclose()
        if self._client is not None:
            await self._client.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """For `Starlette(lifespan=relay.lifespan)`, if the relay is mounted in another app."""
        async with self:
            yield

    # --- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI app."""
        if scope["type"] == "lifespan":
            await self._own(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path = _below_root(scope)
        if path.startswith(("/.streams/", "/.health", "/.metrics")) or path == "/.streams":
            async with self._takeovers.reading(scope, path) as refusal:
                if refusal is None:
                    await self._own(scope, receive, send)
                else:
                    await HubResponse(refusal, send_timeout=self.hub.send_timeout, extra=self._cors(scope))(scope, receive, send)
            return
        # In two steps, so that nothing of the request is kept while its stream is followed.
        response = await self._answer(scope, receive)
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIResponse | None:
        """The response; `None` if the client has left."""
        extra = self._cors(scope)
        try:
            found = await self._answer_to(scope, receive, extra)
        except ClientDisconnect:
            self._metrics.count("relay_requests_total", result="left")
            return None
        if not isinstance(found, Answer):
            return found
        self._metrics.count("relay_requests_total", result="refused")
        return HubResponse(found, send_timeout=self.hub.send_timeout, extra=extra)

    def _cors(self, scope: Scope) -> Sequence[tuple[str, str]]:
        return wire.cors_headers(Facts("", _headers(scope)).headers.get("origin"), self._origins)

    async def _answer_to(self, scope: Scope, receive: Receive, extra: Sequence[tuple[str, str]]) -> ASGIResponse | Answer:
        if self.hub.draining:
            return wire.unavailable("draining", random=random.random())
        try:
            secret = await self._get_secret()
        except LogUnavailable:
            return wire.unavailable("log_unavailable", random=random.random())
        asked = await self._read_request(scope, receive, secret)
        if isinstance(asked, Answer):
            return asked
        ours = ("idempotency-key", "stream-heartbeat") if asked.method == "POST" else ()
        heeded = {name: value for name in ours if (value := asked.facts.headers.get(name))}
        view = wire.asked(Facts(asked.method, heeded, "view=verbatim"))
        if isinstance(view, Answer):
            return view
        is_stream = asks_for_stream(asked.path, asked.facts.headers, asked.json)
        is_kept = is_stream or (self._keep_answers and asked.json is not None)
        try:
            if view.key is None and self._join_retries and asked.method == "POST" and is_stream:
                # Not made in `__init__`: the hub may get another log before it runs.
                retries = Retries(self.hub._log, lease=self.hub.lease)
                return await self._send_or_retry(asked, receive, extra, heeded, secret, retries)
            if view.key is None or not is_kept:
                return await self._send_once(asked, receive, extra, heeded)
            return await self._send_or_join(asked, receive, extra, heeded, view.key, secret, asked.fingerprint(secret))
        except _AnswerLost as lost:
            return _unknown_answer(lost.ending)

    async def _read_request(self, scope: Scope, receive: Receive, secret: bytes) -> _Asked | Answer:
        method, path = scope["method"], _below_root(scope)
        if method not in _METHODS:
            return wire.method_not_allowed(*_METHODS)
        found = self._upstreams.find(path)
        if found is None:
            mounts = ", ".join(self._upstreams.by_mount)
            return wire.problem(404, "not_found", f"no upstream is mounted at this path; the mounts are {mounts}")
        mount, upstream, rest = found
        if (name := repeated_credential(scope["headers"])) is not None:
            return wire.bad_request(f"header {name!r}", "one value", "several")
        query = scope["query_string"].decode("latin-1")
        raw = _raw_below_root(scope)
        # An encoded mount (`%6f` for `o`) would be cut off in the wrong place.
        url = target_of(upstream, raw[len(mount) :], query) if raw.startswith(mount) else None
        if url is None:
            return wire.bad_request("the path", "one without '.' and '..'", rest)
        facts = Facts(method, _headers(scope), query)
        try:
            body = await _body(receive, self._body_bytes, self.hub.send_timeout)
        except TooLarge as exc:
            return wire.too_large(exc.limit)
        except TimeoutError:
            return wire.problem(408, "request_timeout", "the body of the request did not arrive in time")
        return _Asked(
            method, rest, url, mount or "/", _location(scope), facts, headers_up(scope["headers"]), body,
            json_of(facts.headers, body), principal_of(secret, facts),
        )  # fmt: skip

    # --- a request without a key, sent each time that it arrives

    async def _send_once(
        self, asked: _Asked, receive: Receive, extra: Sequence[tuple[str, str]], heeded: Mapping[str, str]
    ) -> ASGIResponse | Answer:
        try:
            # No client can return to it before there is a head, so a client that leaves closes it.
            response = await while_there(receive, self._open(asked))
        except Trouble as trouble:
            return self._no_answer(asked, trouble)
        id = await self._keep(asked, response, None, "")
        if id is None:
            return self._passed(asked, Begun(response), extra)
        return await self._first_reader(asked, id, extra, heeded)

    async def _open(self, asked: _Asked) -> aiohttp.ClientResponse:
        assert self._client is not None, "the relay is entered"
        return await self._client.open(asked.method, asked.url, asked.headers, asked.body)

    async def _keep(self, asked: _Asked, response: aiohttp.ClientResponse, id: str | None, fingerprint: str) -> str | None:
        """Make a stream of an answer; `None`: it is not one, or cannot be kept now, and has to be passed on."""
        head = _head_of(response)
        framing = framing_of(asked.method, asked.path, head)
        if framing is None:
            return None
        protocol = protocol_of(asked.method, f"https://upstream{asked.path}", asked.json, head, framing)
        reading = UpstreamReading(
            framing, protocol, array=head.content_type == "application/json", event_bytes=self.hub.limits.event_bytes
        )
        run: Producer = functools.partial(pump, response=response, reading=reading, metrics=self._metrics, mount=asked.mount)
        if (resumes := protocol_for(asked.method, asked.url, asked.json, head, framing)) is not None:
            run = self._takeovers.begin(
                response, resumes, mount=asked.mount, method=asked.method, url=asked.url, headers=asked.headers,
                query=asked.facts.query, json=asked.json, content=asked.body,
            )  # fmt: skip
        return await self._start(asked, response, framing, run, id, fingerprint)

    async def _keep_document(
        self, asked: _Asked, response: aiohttp.ClientResponse, id: str, fingerprint: str
    ) -> tuple[Begun | None, str]:
        """
        Keep a non-streaming answer.

        Returns:
            The answer to pass on, and why it is not kept; `None` if it is kept.
        """
        if not self._keep_answers or asked.json is None or not is_document(_head_of(response)):
            return Begun(response), "not_a_stream"
        data, is_whole = await collected(response, self._answer_bytes)
        if not is_whole or not data:
            return Begun(response, data), "not_a_stream"

        async def run(gen: Generation) -> Outcome:
            await gen.pass_on([data])
            return Outcome.COMPLETED

        kept = await self._start(asked, response, "raw", run, id, fingerprint)
        return (Begun(response, data) if kept is None else None), "not_kept"

    async def _start(
        self,
        asked: _Asked,
        response: aiohttp.ClientResponse,
        framing: Framing,
        run: Producer,
        id: str | None,
        fingerprint: str,
    ) -> str | None:
        """Make a stream from the producer for an answer; `None`: it cannot be kept now."""
        try:
            kept = Head(
                content_type=response.headers["Content-Type"],
                framing=framing,
                status=response.status,
                headers=headers_kept(response.headers.items(), self._allow),
                retention=self.hub.retention,
            )
            stream = await self.hub.start(id, run, owner=asked.principal, head=kept, fingerprint=fingerprint)
        except (ResumableStreamError, ValueError) as exc:
            # It is being billed, so it is delivered, although no client can return to it.
            logger.warning("a stream of the upstream at %s is not kept: %s", asked.mount or "/", type(exc).__name__)
            return None
        except BaseException:
            response.close()
            raise
        if stream.joined:
            response.close()
        return stream.id

    async def _first_reader(
        self, asked: _Asked, id: str, extra: Sequence[tuple[str, str]], heeded: Mapping[str, str], *, result: str = "stream"
    ) -> HubResponse:
        """The answer to the client that started a stream, or that sends its key again."""
        answer, opened = await answer_to_request(
            self.hub,
            Facts("POST", heeded, "view=verbatim"),
            None,
            id=id,
            owner=asked.principal,
            location=f"{asked.location}/.streams/{id}{self._capability(asked.principal, id)}",
            path=None,
            fingerprint=_nothing,
            options={},
        )
        self._metrics.count("relay_requests_total", result=result, upstream=asked.mount)
        return HubResponse(answer, opened, send_timeout=self.hub.send_timeout, extra=extra)

    def _passed(self, asked: _Asked, begun: Begun, extra: Sequence[tuple[str, str]]) -> Passed:
        self._metrics.count("relay_requests_total", result="passed", upstream=asked.mount)
        return Passed(begun, send_timeout=self.hub.send_timeout, extra=wire.encode_headers(extra), passing=self._passing)

    def _no_answer(self, asked: _Asked, trouble: Trouble) -> Answer:
        self._metrics.count("relay_requests_total", result="no_answer", upstream=asked.mount)
        logger.warning("the upstream at %s gave no answer: %s", asked.mount or "/", trouble.why)
        if trouble.timeout:
            return wire.problem(504, "upstream_timeout", "the upstream did not answer in time", sent=trouble.sent)
        if trouble.sent:
            return wire.problem(502, "upstream_error", "the upstream closed the connection without an answer", sent=True)
        return wire.problem(502, "upstream_unreachable", "the upstream cannot be reached", sent=False)

    # --- a request with a key, sent once however often it arrives

    async def _send_or_join(
        self,
        asked: _Asked,
        receive: Receive,
        extra: Sequence[tuple[str, str]],
        heeded: Mapping[str, str],
        key: str,
        secret: bytes,
        fingerprint: str,
    ) -> ASGIResponse | Answer:
        """
        Of all requests with a key, send one. The log decides which one: it holds a claim, a stream without events that one of the
        requests creates. Its producer sends the request, and creates the stream of the answer when its head arrives.

        Raises:
            _AnswerLost: Another request was sent, and its answer is not here.
        """
        id = key_id(secret, asked.principal, f"{asked.mount}{asked.path}", key)
        owner = claim_owner(asked.principal)
        again = False
        try:
            for _ in range(_ROUNDS):
                if await self._is_there(id, asked.principal, fingerprint):
                    result = "stream" if again else "joined"
                    answer = functools.partial(self._first_reader, asked, id, extra, heeded, result=result)
                    return await self._takeovers.joined(key_of(id, asked.principal), asked.headers, asked.facts.query, answer)
                handed: asyncio.Future[Begun | Trouble | None] = asyncio.get_running_loop().create_future()
                claim = await self.hub.start(
                    id,
                    functools.partial(self._claimed, asked=asked, id=id, fingerprint=fingerprint, handed=handed),
                    owner=owner,
                    head=Head(content_type="application/octet-stream", framing="raw", retention=self.hub.retention),
                    fingerprint=fingerprint,
                    again="failed" if again else None,
                )
                if not claim.joined:
                    # A claim has no readers.
                    with self.hub._following.waited_for(key_of(id, owner)):
                        begun = await self._handed(handed, receive)
                    if begun is None:
                        return await self._first_reader(asked, id, extra, heeded)
                    if isinstance(begun, Trouble):
                        return self._no_answer(asked, begun)
                    return self._passed(asked, begun, extra)
                ending = claim.ending or await while_there(receive, self._end_of(id, owner))
                again = ending is not None and ending.reason in _AGAIN
                if ending is not None and not again and not await self._is_there(id, asked.principal, fingerprint):
                    raise _AnswerLost(ending)
        except StreamUnknown:
            pass
        except TROUBLE as exc:
            return answer_to_trouble(exc)
        return wire.unavailable("busy", random=random.random())

    # --- a request without a key, whose retries get the same answer

    async def _send_or_retry(
        self,
        asked: _Asked,
        receive: Receive,
        extra: Sequence[tuple[str, str]],
        heeded: Mapping[str, str],
        secret: bytes,
        retries: Retries,
    ) -> ASGIResponse | Answer:
        """Send a request under a generated key, which its retries then use."""
        path, owner = f"{asked.mount}{asked.path}", claim_owner(asked.principal)
        fingerprint = asked.fingerprint(secret)
        noted = retry_id(secret, asked.principal, path, fingerprint)
        try:
            key = await retries.find(noted, owner) if is_retry(asked.facts.headers) else None
            if key is not None and await self._is_of_use(key_id(secret, asked.principal, path, key), asked.principal):
                # Without a key the client did not ask for a single request, so send again if the first answer is lost.
                with contextlib.suppress(_AnswerLost):
                    return await self._send_or_join(asked, receive, extra, heeded, key, secret, fingerprint)
            key = secrets.token_hex(16)
            await retries.note(noted, owner, key)
        except LogUnavailable:
            # As without the option: nothing has been sent.
            return await self._send_once(asked, receive, extra, heeded)
        return await self._send_or_join(asked, receive, extra, heeded, key, secret, fingerprint)

    async def _is_of_use(self, id: str, owner: str) -> bool:
        """Whether a retry gets an answer: one that is complete or in progress, or a new one if nothing was billed."""
        with contextlib.suppress(StreamUnknown):
            ending = (await self.hub.state(id, owner=owner)).ending
            return ending is None or ending.outcome not in (Outcome.FAILED, Outcome.CANCELLED)
        with contextlib.suppress(StreamUnknown):
            ending = (await self.hub.state(id, owner=claim_owner(owner))).ending
            return ending is None or ending.reason in _AGAIN
        return False

    async def _is_there(self, id: str, owner: str, fingerprint: str) -> bool:
        try:
            state = await self.hub.state(id, owner=owner)
        except StreamUnknown:
            return False
        if state.head.fingerprint != fingerprint:
            raise KeyReused("this key belongs to another request", stream_id=id)
        return True

    async def _handed(self, handed: asyncio.Future[Begun | Trouble | None], receive: Receive) -> Begun | Trouble | None:
        try:
            return await while_there(receive, asyncio.shield(handed))
        finally:
            # A client that left takes no answer: the claim then closes one that is not a stream.
            handed.cancel()

    async def _claimed(
        self,
        gen: Generation,
        *,
        asked: _Asked,
        id: str,
        fingerprint: str,
        handed: asyncio.Future[Begun | Trouble | None],
    ) -> Ending:
        """The producer of a claim: send the request, and make a stream of the answer, whether or not a client still waits."""

        def hand(what: Begun | Trouble | None) -> None:
            if not handed.done():
                handed.set_result(what)
            elif isinstance(what, Begun):
                what.response.close()

        begun: Begun | None = None
        why = "not_kept"
        try:
            response = await self._open(asked)
            is_stream = framing_of(asked.method, asked.path, _head_of(response)) is not None
            if not is_stream:
                begun, why = await self._keep_document(asked, response, id, fingerprint)
        except Trouble as trouble:
            hand(trouble)
            return Ending(outcome=Outcome.FAILED, reason="upstream_error" if trouble.sent else "not_sent")
        except BaseException:
            hand(Trouble(sent=True, timeout=False))
            raise
        if is_stream and await self._keep(asked, response, id, fingerprint) is None:
            begun = Begun(response)
        hand(begun)
        if begun is None:
            return _CLAIM
        return Ending(outcome=Outcome.FAILED, reason=why)

    async def _end_of(self, id: str, owner: str) -> Ending | None:
        """How the claim of another request ended; `None`: unknown, check again."""
        with await self.hub.reader(id, view="raw", owner=owner) as reader:
            while await reader.next():
                pass
            return reader.ending

    # --- its own routes

    async def _authorize(self, facts: Facts, id: str | None, action: str) -> str | None:
        secret = await self._get_secret()
        # For reading only: URLs get around, and cancelling destroys what was paid for.
        opened = self._opened_by(secret, id, facts.query) if action == "read" and id is not None else None
        # An invalid one is treated like a missing one, and takes the same way through the log.
        return opened or await self._principal(facts)

    async def _principal(self, facts: Facts) -> str:
        return principal_of(await self._get_secret(), facts)

    def _opened_by(self, secret: bytes, id: str, query: str) -> str | None:
        return principal_by_capability(secret, id, query, time.time()) if self._capability_urls else None

    def _capability(self, principal: str, id: str, query: str = "") -> str:
        """The query of a stream's URL. A valid one in the request is kept, so that nobody extends it by asking."""
        if not self._capability_urls:
            return ""
        assert self._secret is not None, "the principal was derived from it"
        if self._opened_by(self._secret, id, query) is not None:
            (token,) = (value for name, value in parse_qsl(query) if name == CAPABILITY)
        else:
            token = capability_of(self._secret, principal, id, int(time.time() + self.hub.retention))
        return f"?{CAPABILITY}={token}"

    def _own_routes(self, *, with_metrics: bool) -> Starlette:
        routes = _OwnRoutes(self)

        async def metrics(request: Request) -> Response:
            return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})

        paths: dict[str, dict[str, Handler]] = {
            "/.streams/{id}": {"GET": routes.read, "DELETE": routes.forget},
            "/.streams/{id}/message": {"GET": routes.message},
            "/.streams/{id}/cancel": {"POST": routes.cancel},
            "/.health": {"GET": routes.health},
        }
        guarded = {path: {method: _guarded(each) for method, each in handlers.items()} for path, handlers in paths.items()}
        more = [Route("/.metrics", metrics)] if with_metrics else []
        return app_of(self.hub, guarded, self._origins, more=more, lifespan=self.lifespan)

    # --- the secret

    async def _get_secret(self) -> bytes:
        """The secret of this relay, or of its log, where the first relay creates it."""
        if self._secret is None:
            async with self._asking:
                if self._secret is None:
                    self._secret = await _secret_of(self.hub._log, self.hub.lease)
        return self._secret


class _OwnRoutes(_Routes):
    def __init__(self, relay: Relay) -> None:
        super().__init__(relay.hub, streams="/.streams")
        self._relay = relay

    def _location(self, request: Request, id: str, owner: str) -> str:
        query = self._relay._capability(owner, id, facts_of(request).query)
        return f"{self._path(request, id)}{query}"


async def _secret_of(log: StreamLog, lease: float) -> bytes:
    made = secrets.token_urlsafe(32)
    # In the head, which is stored with the stream in one step.
    head = Head(content_type="application/octet-stream", framing="raw", fingerprint=made, retention=_FOREVER)
    answer = await log.create(_SECRET_ID, head, lease=lease)
    if isinstance(answer, Existing):
        return answer.head.fingerprint.encode()
    assert isinstance(answer, Writer), "there was no other append"
    await log.finish(answer, 0, _CLAIM)
    return made.encode()


class _AnswerLost(Exception):
    """The first request with a key may have been billed, but its stream is not here. The answer is a 410 or 502."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


def _unknown_answer(ending: Ending) -> Answer:
    """The answer for a key whose first request may have been billed, but whose stream is not here."""
    if ending.outcome is Outcome.COMPLETED:
        return wire.problem(
            410, "answer_gone", "the stream of this Idempotency-Key is no longer kept; send a new request with a new key"
        )
    text = "the first request with this Idempotency-Key was sent, but its answer is lost; send a new request with a new key"
    return wire.problem(502, "answer_lost", text, reason=ending.reason)


def _guarded(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Any]]:
    """A handler that may find the log unavailable before it knows whose request it is."""

    async def guarded(request: Request) -> Any:
        if repeated_credential(request.scope["headers"]) is not None:
            return wire.not_found()
        try:
            return await handler(request)
        except LogUnavailable:
            return wire.unavailable("log_unavailable", random=random.random())

    return guarded


# --- ASGI helpers -----------------------------------------------------------------------------------------------------


async def _body(receive: Receive, limit: int, timeout: float) -> bytes:
    pieces, size, more = [], 0, True
    while more:
        async with asyncio.timeout(timeout):
            message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise TooLarge(limit)
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _head_of(response: aiohttp.ClientResponse) -> ResponseHead:
    return ResponseHead(response.status, {name.lower(): value for name, value in response.headers.items()}, "")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _root(scope: Scope) -> str:
    return str(scope.get("root_path", "")).rstrip("/")


def _below_root(scope: Scope) -> str:
    path: str = scope["path"]
    root = _root(scope)
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def _raw_below_root(scope: Scope) -> str:
    """The path as it was sent, below the mount of the app."""
    raw = scope.get("raw_path")
    if raw is None:
        return quote(_below_root(scope), safe=PATH_SAFE)
    path: str = raw.partition(b"?")[0].decode("latin-1")
    root = quote(_root(scope), safe=PATH_SAFE)
    return path[len(root) :] if root and (path == root or path.startswith(f"{root}/")) else path


def _location(scope: Scope) -> str:
    root = quote(_root(scope).strip("/"), safe=PATH_SAFE)
    return f"/{root}" if root else ""


async def _nothing() -> str:
    return ""
