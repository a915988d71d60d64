"""
How a call of `connect_sse()` becomes one of `connect()`: its arguments, its protocol, and any response for the caller.

httpx-sse hands over *any* response, and looks at its content type when the iteration begins. A resumable stream refuses
such a response on opening. So the client is watched while the stream opens:

    200, no event stream     taken out of the driver's hands, unread: the caller reads the live response, as ever
    400 and above            the machine may retry it; when it has given up, a response is made of head and body
    200, an event stream     the stream goes on, and the caller sees the response that it began with
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from .._contract import Consume, Finished, Head, ResumeProtocol, StreamState, Verdict
from .._drivers.http import CALL_ARGUMENTS
from .._errors import ResponseRejected, ResumableStreamError, RetriesExhausted
from .._events import Outcome
from .._settings import Limits, Timeouts
from .._twins import library_of
from ..protocols import LastEventID, detect
from ._errors import twin

__all__ = ["EVENT_STREAM", "NoEventStream", "Watched", "WatchedAsyncClient", "WatchedClient", "is_event_stream"]

EVENT_STREAM: Final = "text/event-stream"
_UNSET: Final = object()
# The default of `Timeouts`. A read timeout is about bytes, this clock about events: heartbeats do not stop it.
_FIRST_EVENT: Final = 300.0
# What a server says that does not resume. Not 401 and 403, which new credentials may mend, and not what is worth another attempt.
_NO_MORE: Final = frozenset({400, 404, 405, 406, 409, 410, 412, 416, 422, 501})


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """As httpx-sse judges: the media type need only contain it, and must be there."""
    return EVENT_STREAM in headers.get("content-type", "").partition(";")[0]


class _EveryEvent(LastEventID):
    """
    Plain SSE for a caller that was written against httpx-sse: every event is the caller's to judge.

    An event named `error` or `gap`, or a JSON object led by `error`, is delivered like any other.
    """

    def __init__(self) -> None:
        super().__init__(gap_events=())

    @property
    def options(self) -> str:
        # It differs in what it reports, not in how it resumes.
        return ""

    @property
    def name(self) -> str:
        # What its checkpoints say, so that `resume()` continues them.
        return "LastEventID"

    def error(self, event: Any) -> None:
        return None

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if 200 <= status < 300 and is_event_stream(headers):
            return Consume(any_type=True)
        if state.asking and (200 <= status < 300 or status in _NO_MORE):
            # The body had closed as it should, where httpx-sse ends: a server that cannot be asked does not make that an error.
            return Finished(Outcome.ENDED)
        return None


def _detect(state: StreamState, head: Head) -> ResumeProtocol:
    """As everywhere, but plain SSE stays httpx-sse's."""
    found = detect(state, head)
    return found if found is not None and found.framing == "sse" and type(found) is not LastEventID else _EveryEvent()


def _headers(given: Any, library: Any) -> Any:
    """httpx-sse's two headers over the caller's, in a copy; a callable stays one."""
    if callable(given):
        return lambda: _headers(given(), library)
    headers = library.Headers(given)
    headers["Accept"] = EVENT_STREAM
    # As httpx-sse does, word for word; elsewhere we send what browsers do, `no-cache`.
    headers["Cache-Control"] = "no-store"
    return headers


class NoEventStream(Exception):
    """Carries a response out of the driver, unread."""

    def __init__(self, response: Any) -> None:
        super().__init__(response)
        self.response = response


class Watched:
    """
    The caller's client, watched while the stream opens.

    Attributes:
        opening: Until the first event stream is there.
        response: The latest one until then.
    """

    def __init__(self, client: Any) -> None:
        self.opening = True
        self.response: Any = None
        self._client = client
        self._library = library_of(client)
        self._head_seconds: float | None = None
        self._follows = False
        self._hook_error: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def step_in(self, stream: Any) -> None:
        """Between the stream and its client. The client's class was checked when the stream was made."""
        stream._client = self
        stream._machine.detect_with(_detect)

    def options(self, kwargs: Mapping[str, Any], timeouts: Timeouts | None, limits: Limits | None) -> dict[str, Any]:
        """
        Arguments of `client.stream()` as those of `connect()`.

        Raises:
            TypeError: An argument is unknown, or both `timeout` and `timeouts` were given.
        """
        if unknown := sorted(set(kwargs) - {*CALL_ARGUMENTS, "timeout", "follow_redirects"}):
            raise TypeError(f"unknown argument {unknown[0]!r}: connect_sse() takes what client.stream() takes")
        options = dict(kwargs)
        library, client = self._library, self._client
        unset = (_UNSET, getattr(library, "USE_CLIENT_DEFAULT", _UNSET))
        timeout, follows = options.pop("timeout", _UNSET), options.pop("follow_redirects", _UNSET)
        if timeouts is None:
            timeouts = self._clocks(client.timeout if timeout in unset else library.Timeout(timeout))
        elif timeout not in unset:
            raise TypeError("pass timeout= or timeouts=, not both: timeouts=Timeouts(...) has all the clocks")
        limits = limits or Limits()
        self._follows = bool(client.follow_redirects if follows in unset else follows)
        options["timeouts"] = timeouts
        options["limits"] = limits if self._follows else replace(limits, redirects=0)
        options["headers"] = _headers(options.get("headers"), library)
        return options

    def _clocks(self, timeout: Any) -> Timeouts:
        read = self._head_seconds = timeout.read
        first_event = None if read is None else max(read, _FIRST_EVENT)
        # No stall: a feed that only sends heartbeats is none of httpx's worries.
        return Timeouts(connect=timeout.connect, first_event=first_event, idle=read, stall=None)

    def refused(self, error: ResumableStreamError) -> Any:
        """
        The response that a refusal was about, with its body.

        Raises:
            httpx.TransportError: There is none: it was the network, say. Also a `ResumableStreamError`.
            httpx.HTTPStatusError: An event hook of the client raised it.
        """
        answer, library = self.response, self._library
        rejected = error.last_error if isinstance(error, RetriesExhausted) else error
        if not isinstance(rejected, ResponseRejected) or answer is None:
            raise twin(error, library, getattr(answer, "request", None)) from error.__cause__
        if self._hook_error is not None and self._hook_error.response is answer:
            raise self._hook_error from error
        if answer.has_redirect_location and self._follows:
            raise twin(error, library, answer.request, natives=(library.TooManyRedirects,)) from None
        headers = library.Headers(answer.headers)
        headers.pop("content-encoding", None)  # the driver has decoded it
        protocol = {name: answer.extensions[name] for name in ("http_version", "reason_phrase") if name in answer.extensions}
        return library.Response(
            answer.status_code, headers=headers, content=rejected.body, request=answer.request, extensions=protocol
        )

    @contextmanager
    def _watch(self, request: Any) -> Iterator[None]:
        """Around a send: the head of the first connection has the caller's read timeout, not the clock of the first event."""
        clocks = request.extensions["timeout"]
        wanted = clocks["read"]
        if self.opening and self._head_seconds is not None:
            clocks["read"] = self._head_seconds if wanted is None else min(wanted, self._head_seconds)
        try:
            yield
        except self._library.HTTPStatusError as error:
            self.response, self._hook_error = error.response, error
            raise
        finally:
            clocks["read"] = wanted

    def _look_at(self, response: Any) -> Any:
        if not self.opening:
            return response
        self.response = response
        redirected = self._follows and response.has_redirect_location
        if response.status_code < 400 and not redirected and not is_event_stream(response.headers):
            raise NoEventStream(response)
        return response


class WatchedClient(Watched):
    def send(self, request: Any, **options: Any) -> Any:
        with self._watch(request):
            response = self._client.send(request, **options)
        return self._look_at(response)


class WatchedAsyncClient(Watched):
    async def send(self, request: Any, **options: Any) -> Any:
        with self._watch(request):
            response = await self._client.send(request, **options)
        return self._look_at(response)
