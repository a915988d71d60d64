"""One answer of a stream: how its body is decoded, and how it ended. Each answer gets a new one, so that no state outlives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._contract import Batched, Documents, Joined, Measured, Replayed, ResumeProtocol, StreamState
from .._contract import verdicts as verdict
from ..framing import DocumentDecoder, NDJSONDecoder, RawDecoder, SSEDecoder, VerbatimDecoder
from .ledger import Ledger
from .settings import Settings
from .unpacking import Unpacking

__all__ = ["Connection", "decoder_for"]


@dataclass(slots=True)
class Connection:
    """
    Attributes:
        decoder: Reads the body.
        inside: The body closed inside an event.
        onward: Where the stream continues after this document.
        unusable: Why this document cannot be used.
        certain: It is known for good whether the stream can be resumed.
    """

    decoder: Any = None
    inside: bool = False
    onward: str | None = None
    unusable: str = ""
    certain: bool = False

    @property
    def broken_off(self) -> str:
        """Why the close was not between two events; `""` if it was."""
        return (self.unusable or "closed inside an event") if self.inside else ""

    def read_whole(self, protocol: ResumeProtocol, state: StreamState, *, event_bytes: int) -> None:
        """The body is one document, which the protocol reads once it is complete."""

        documents = Documents.of(protocol)

        def read(body: bytes) -> Sequence[Any] | None:
            document = documents.on_document(body, state)
            if document is None or isinstance(document, verdict.Retry):
                self.unusable = document.message if document is not None else ""
                return None
            self.onward = document.cursor
            return document.events

        self.decoder = DocumentDecoder(event_bytes=event_bytes, read=read)


def decoder_for(
    protocol: ResumeProtocol, ledger: Ledger, settings: Settings, *, before: Any, by_id: bool, skip: int, spliced: bool
) -> Any:
    """
    The decoder for a body that is read event by event.

    Args:
        before: The previous connection's decoder; `None`: this is the first.
        by_id: The SSE id is the cursor.
        skip: Bytes at the start of a raw body that were already delivered.
        spliced: The bytes follow those of an earlier connection.
    """
    limits, framing = settings.limits, protocol.framing
    decoder: Any
    if framing == "raw":
        decoder = RawDecoder(start=int(ledger.cursor or 0), skip=skip)
    elif framing == "sse":
        # As in EventSource, the last event id outlives the connection.
        if by_id:
            last = ledger.cursor or ""
        else:
            last = "" if Replayed.of(protocol).replays or before is None else before.last_event_id
        decoder = SSEDecoder(last_event_id=last, event_bytes=limits.event_bytes, line_bytes=limits.line_bytes)
    else:
        decoder = NDJSONDecoder(line_bytes=limits.line_bytes)
    measured = Measured.of(protocol).measured
    if framing != "raw" and (measured or settings.verbatim):
        start = int(ledger.cursor or 0) if measured else 0
        carried = before.carry() if hasattr(before, "carry") else b""
        beat = Joined.of(protocol).heartbeat
        decoder = VerbatimDecoder(decoder, framing=framing, start=start, carried=carried, spliced=spliced, beat=beat)
    # Wrap the decoder only for protocols that unpack, so that others do not pay for a check per chunk.
    batched = protocol.ability(Batched)
    return Unpacking(decoder, batched.unpack) if batched is not None else decoder
