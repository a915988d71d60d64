"""
A stream whose reader passes its bytes on: whole events as they came, across connections, each with the position after it.

A relay uses this to read an upstream that can be resumed. No SDK above it sends requests, so there is no transport. The relay
supplies a client, which first returns the answer to the request that the relay has already sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from .._api import Options, protocol_of
from .._checkpoint import Checkpoint
from .._contract import Explained, Glance, Head, ResumeProtocol, StreamState
from .._core.checkpoints import WITHHELD_KEY
from .._core.machine import Machine
from .._drivers.async_ import AsyncResumableStream
from .._drivers.base import Plan
from .._drivers.http import Call, family_of
from .._errors import ResumableStreamError
from .._policy import RetryPolicy
from .._settings import Limits, Timeouts
from ..protocols import GeminiInteractions, OpenAIResponses, detect
from ._wire import Blocks

__all__ = ["VerbatimStream", "read_verbatim", "resumable"]

_REPEATS_BODY: Final = ("all", "body")


def resumable(request: StreamState, head: Head) -> ResumeProtocol | None:
    """
    The protocol of an answer whose rest can be requested, as far as its request and its head show.

    Returns:
        `None`: it is not a stream, or one that cannot be resumed.
    """
    protocol = detect(request, head)
    if protocol is None or protocol.framing == "raw" or not protocol.promises.resumable:
        return None
    body = request.json if isinstance(request.json, dict) else {}
    stored = body.get("store") is not False
    # The request decides whether these are kept, and the head does not show it.
    if isinstance(protocol, OpenAIResponses):
        return protocol if stored and body.get("background") is True else None
    if isinstance(protocol, GeminiInteractions):
        return protocol if stored else None
    state = StreamState(request.method, request.url, request.json)
    state.head = head
    protocol.identify(state, head)
    if Explained.of(protocol).why_not(state) and not (
        Glance.of(protocol).identifies_by_event and state.stream_id is None and state.location is None
    ):
        # An id in the first event could still change that.
        state.cursor = state.cursor or "0"
        return protocol if protocol.resume_request(state) is not None else None
    return protocol


class VerbatimStream(AsyncResumableStream):
    """An `AsyncResumableStream` that is read in pieces. Made by `read_verbatim()`."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._blocks = Blocks()

    async def next_blocks(self) -> list[bytes] | None:
        """
        Read on. The returned events count as taken, and `place` is after them until the next call returns.

        Returns:
            Whole events, as they came, with the comments before them; `None`: the stream has ended, see `outcome`.

        Raises:
            StreamReset, ReplayDiverged: Bytes cannot express what happened.
            ResumableStreamError: The stream stopped without an honest end.
        """
        async for events in self.iter_batches():
            blocks = self._blocks_of(events)
            await self.commit()
            return blocks
        return None

    @property
    def place(self) -> Checkpoint | None:
        """The checkpoint from which another process could continue with credentials alone; `None` if there is none."""
        machine = self._machine
        if machine.outcome is None:
            try:
                rest = machine.requests.rest()
            except ResumableStreamError:
                # The server named a URL that would be refused when needed.
                return None
            safe = machine.state.safe
            if rest is None or (rest.repeat in _REPEATS_BODY and not safe):
                return None
        place = self.checkpoint
        return None if place.extra.get(WITHHELD_KEY) else place

    def _blocks_of(self, events: Sequence[Any]) -> list[bytes]:
        protocol = self.protocol
        assert protocol is not None
        carried = self._machine.take_carried()
        blocks = self._blocks.of(events, protocol)
        if protocol.framing == "ndjson":
            blocks = [block if block.endswith(b"\n") else block + b"\n" for block in blocks]
        return [carried + blocks[0], *blocks[1:]] if blocks else []


def read_verbatim(
    client: Any,
    method: str,
    url: str,
    *,
    protocol: ResumeProtocol | None = None,
    checkpoint: Checkpoint | None = None,
    json: Any = None,
    content: bytes = b"",
    headers: Sequence[tuple[Any, Any]] = (),
    timeouts: Timeouts | None = None,
    retry: RetryPolicy | None = None,
    limits: Limits | None = None,
) -> VerbatimStream:
    """
    Make a stream that is read for its bytes; nothing is sent before it is opened.

    The first request is never sent again, whatever it carries, since it may have been billed.

    Args:
        client: An `AsyncClient`. Its parameters are sent with every request, and never stored in a checkpoint.
        method, url: Method and URL of the first request; with a checkpoint, those that it names.
        protocol: How to resume; with a checkpoint, the one that it names.
        checkpoint: Where to continue, as another process.
        json, content: The body of the first request, for a protocol that sends it again to resume.
        headers: Headers of every request; pairs of texts, or of bytes, which need not be ASCII.
        timeouts, retry, limits: As for `connect()`.

    Raises:
        ValueError: The checkpoint's protocol does not belong to this package, or has options.
    """
    options = Options(retry=retry, timeouts=timeouts, limits=limits)
    elsewhere = checkpoint is not None
    family = family_of(client, want="AsyncClient")
    private = family.private_params(client, None)
    settings = options.settings(idempotent=False, refreshable=False, single_use=False, elsewhere=elsewhere)
    settings = replace(settings, verbatim=True)

    def machine(start: Checkpoint | None) -> Machine:
        state = StreamState(method, url, json, private=private)
        chosen = protocol if start is None else protocol_of(start, protocol, state)
        return Machine(state=state, protocol=chosen, detect=detect, settings=settings, checkpoint=start)

    arguments: Mapping[str, Any] = {"headers": list(headers), **({"content": content} if content else {})}
    plan = Plan(
        machine=machine,
        family=family,
        client=client,
        call=Call(arguments, merge=elsewhere),
        checkpoint=checkpoint,
        check=lambda stored: None,
        store=None,
        key=None,
        observer=None,
        timeouts=options.timeouts,
        limits=options.limits,
    )
    return VerbatimStream(plan)
