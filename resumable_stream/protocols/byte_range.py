"""
Any body of bytes: the number of bytes received is sent back as `Range`.

Offsets refer to the encoded representation, so identity encoding is requested, and an encoded answer cannot be resumed.
Only a strong validator proves that two answers are pieces of one document (RFC 9110 section 13.1.5);
without one a 206 is believed and a 200 is not.

Source: RFC 9110 sections 13 and 14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from .._contract import Glance, Head, Memo, Promises, Request, ResumeProtocol, StreamState
from .._contract.verdicts import Ask, Consume, Finished, Lost, Reject, Resume, Verdict
from .._events import Item, Outcome

__all__ = ["ByteRange"]

_CONTENT_RANGE: Final = re.compile(r"\s*bytes\s+(?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)\s*", re.IGNORECASE)
_FOREIGN: Final = ("text/html", "application/xhtml+xml", "application/json", "application/problem+json")


@dataclass(slots=True)
class _Memo(Memo):
    """The validator and the length of the document. `coded`: its bytes are encoded."""

    etag: str = ""
    modified: str = ""
    length: str = ""
    coded: bool = False


class ByteRange(ResumeProtocol, Glance):
    """
    A download, a log or a batch result: bytes by `GET`. Yields `Chunk`.

    >>> ByteRange()
    <ByteRange: resumable, numbered, has_end>
    """

    promises = Promises(resumable=True, numbered=True, has_end=True)
    framing = "raw"
    accept = "*/*"
    content_types: ClassVar[tuple[str, ...]] = ()
    keeps = frozenset({"etag", "modified", "length", "coded"})
    identifies_by_event = False

    def matches(self, request: StreamState, head: Head) -> bool:
        # A page or a JSON document is better reported as the wrong kind of response than streamed.
        return head.status != 204 and head.content_type not in _FOREIGN

    def identify(self, state: StreamState, source: Head | Item) -> None:
        if not isinstance(source, Head):
            return
        headers, memo = source.headers, state.memo(_Memo)
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            memo.coded = True
            return
        if not state.offset:
            # Taken from the answer that brings the first byte; one that was cut before it proves nothing.
            memo.etag = headers.get("etag", "")
            memo.modified = "" if memo.etag else headers.get("last-modified", "")
            memo.length = ""
            if "transfer-encoding" not in headers and re.fullmatch(r"[0-9]{1,18}", length := headers.get("content-length", "")):
                memo.length = length
        total = _content_range(headers)[1]
        if total is not None:
            memo.length = str(total)

    def deltas(self, event: Any) -> Any:
        # Decoding a chunk needs the bytes before it; `iter_text()` decodes across chunks.
        return ()

    def resume_request(self, state: StreamState) -> Request | None:
        if state.method != "GET" or state.memo(_Memo).coded or not re.fullmatch(r"[0-9]{1,18}", state.cursor or "0"):
            return None
        headers: dict[str, str | None] = {"Accept-Encoding": "identity"}
        if state.cursor is not None and state.cursor != "0":
            headers["Range"] = f"bytes={state.cursor}-"
            if (etag := state.memo(_Memo).etag) and not etag.startswith("W/"):
                headers["If-Range"] = etag
        return Request(method="GET", url=state.url, headers=headers, repeat="all")

    def first_request(self, state: StreamState) -> Request:
        # With the caller's Accept-Encoding, offsets would refer to encoded bytes that we never see.
        return Request(method=state.method, url=state.url, headers={"Accept-Encoding": "identity"}, repeat="all")

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        held = int(state.cursor or 0)
        if status == 206 and not held:
            return Reject("the server answers with a range that this stream did not request; do not send a Range yourself")
        if not state.resuming or not held:
            return None
        start, total = _content_range(headers)
        if status == 206:
            if self._other_document(headers, state):
                return Lost("the document changed while it was read")
            if start is None or start > held:
                return Reject(f"requested bytes from {held}, received Content-Range {headers.get('content-range')!r}")
            return Consume(skip=held - start)
        if status == 416:
            if total == held:
                return Finished(Outcome.COMPLETED)
            return Lost(f"requested bytes from {held}, but the server has {'an unknown number' if total is None else total}")
        if status == 200:
            etag = state.memo(_Memo).etag
            if etag and not etag.startswith("W/") and headers.get("etag") == etag:
                return Consume(skip=held)
            if state.asking:
                return Finished(Outcome.ENDED)
            return Lost("the server sends the whole body again, and nothing proves that it is the same")
        return None

    def _other_document(self, headers: Mapping[str, str], state: StreamState) -> bool:
        memo = state.memo(_Memo)
        if memo.etag and "etag" in headers:
            return memo.etag != headers["etag"]
        return bool(memo.modified) and headers.get("last-modified", memo.modified) != memo.modified

    def on_clean_close(self, state: StreamState) -> Verdict:
        length = state.memo(_Memo).length
        if re.fullmatch(r"[0-9]{1,18}", length):
            return Finished(Outcome.COMPLETED) if int(length) <= int(state.cursor or 0) else Resume()
        if state.memo(_Memo).coded or state.head is None or state.head.headers.get("accept-ranges", "").lower() != "bytes":
            return Finished(Outcome.ENDED)
        # The length is unknown: a 416 with our count proves that the body was complete.
        return Ask()


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """First byte and total of a `Content-Range`; each is `None` if absent, `*` or malformed."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None:
        return None, None
    start, _, total = found.groups()
    return int(start) if start else None, int(total) if total != "*" else None
