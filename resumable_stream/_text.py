"""Events as text: the deltas of each event, the text so far, and the effect of a reset on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ._contract import Parted, ResumeProtocol, Shared, Stepped, StreamState, Structured, not_json, readable
from ._errors import EventTooLarge, StreamReset
from ._events import Delta, TextReset
from .framing import TextView

__all__ = ["TextReader"]

Mode = Literal["text", "deltas"]


class TextReader:
    """
    Turns events into what `iter_text()` or `iter_deltas()` yields.

    Args:
        protocol: Called for each event, because the protocol may be detected late.
        mode: `"text"`: strings (and `TextReset` with `resets`); `"deltas"`: `Delta`.
        resets: Yield `TextReset` if earlier text became void; otherwise raise.
        limit: `Limits.text_bytes`.
        strict: Text over the limit raises; otherwise the rest is not remembered.
        step_at: Returns the offset at which the step of an event began, if it is known.
        state: State of the stream; `None`: every event is taken as one of this stream.
    """

    def __init__(
        self,
        protocol: Callable[[], ResumeProtocol | None],
        *,
        mode: Mode,
        resets: bool,
        limit: int,
        strict: bool,
        step_at: Callable[[int], int | None] = lambda offset: None,
        state: StreamState | None = None,
    ) -> None:
        self._protocol = protocol
        self._mode = mode
        self._resets = resets
        self._limit = limit
        self._strict = strict
        self._step_at = step_at
        self._state = state
        # (offset of the event it came from, text, message it belongs to); offsets never decrease
        self._pieces: list[tuple[int, str, str | None]] = []
        self._size = 0
        # Index of the first piece of each message.
        self._first: dict[str, int] = {}
        # Offset of the first event whose text was not (fully) remembered, and the messages that such text belongs to.
        self._gap: int | None = None
        self._dropped: set[str] = set()
        self._dropped_size = 0
        self._view: TextView | None = None
        self._adopt(ResumeProtocol())
        # Offset of the event that began this step of the answer; `None` before any was seen.
        self._step: int | None = None
        # This reader joined in the middle of that step; another reader may have yielded its earlier text.
        self._midway = False
        # Offset of the last event from which text was yielded; -1 if there is none, or it was revoked.
        self._told = -1

    def _adopt(self, protocol: ResumeProtocol) -> None:
        self._adopted = protocol
        self._stepped, self._parted = protocol.ability(Stepped), protocol.ability(Parted)
        self._shared, self._structured = protocol.ability(Shared), Structured.of(protocol)

    def so_far(self) -> str:
        """The text so far, at most up to the limit."""
        return "".join(text for _, text, _ in self._pieces)

    def read(self, event: Any) -> Sequence[Any]:
        """
        Raises:
            StreamReset: Earlier text became void, and the reader cannot express that.
            EventTooLarge: The text is over `Limits.text_bytes`, and all of it has to be held.
            ProtocolViolation: The event is not JSON, although its content should be.
        """
        out: list[Any] = []
        if self._step is None:
            began = self._step_at(event.offset)
            # If the beginning of the step is unknown, at most the text yielded here can become void.
            self._step = began if began is not None else event.offset
            self._midway = event.offset > 0
        if event.reset:
            out.append(self._void(event.offset))
            self._step, self._midway = event.offset, False
        if (known := self._protocol()) is not None and known is not self._adopted:
            self._adopt(known)
        protocol = self._adopted
        if self._stepped is not None:
            assert self._step is not None
            match self._stepped.step(event):
                case "begin":
                    self._step, self._midway = event.offset, False
                case "void":
                    # A reader that joined in the middle of a step cannot know what another reader has yielded of it.
                    if self._midway or self._told >= self._step:
                        out.append(self._void(self._step))
                        self._midway = False
        if protocol.framing == "raw":
            if self._view is None:
                self._view = TextView()
            deltas: Sequence[Delta] = (Delta("text", self._view.decode(event.data)),)
        else:
            shared, state = self._shared, self._state
            deltas = tuple(protocol.deltas(event) if shared is None or state is None else shared.deltas_in(state, event))
            if not deltas and self._structured.reads_json(event) and not readable(event):
                raise not_json(event, event.offset)
        key = None
        if self._parted is not None and (part := self._parted.part(event)) is not None:
            key, replaces = part
            if replaces:
                deltas = self._replace(event.offset, key, deltas, out)
        for delta in deltas:
            if delta.kind == "text" and delta.text:
                self._remember(event.offset, delta.text, key)
            if self._mode == "deltas":
                out.append(delta)
                self._told = event.offset
            elif delta.kind == "text" and delta.text:
                out.append(delta.text)
                self._told = event.offset
        return out

    def _void(self, offset: int) -> TextReset:
        if not self._resets:
            raise StreamReset(f"the text from event {offset} on became void; pass resets=True to get a TextReset", offset=offset)
        keep = len(self._pieces)
        while keep and self._pieces[keep - 1][0] >= offset:
            keep -= 1
        self._cut(keep)
        if self._gap is not None and self._gap >= offset:
            # The text that was not remembered is void too.
            self._gap, self._dropped, self._dropped_size = None, set(), 0
        self._view = None
        self._told = -1
        return TextReset(offset)

    def _cut(self, keep: int) -> None:
        """Forget all pieces after the first `keep`."""
        cut = self._pieces[keep:]
        del self._pieces[keep:]
        for _, text, key in cut:
            self._size -= _bytes(text)
            if key is not None and self._first.get(key, -1) >= keep:
                del self._first[key]

    def _replace(self, offset: int, key: str, deltas: Sequence[Delta], out: list[Any]) -> Sequence[Delta]:
        """
        Replace a message, and yield what changes in the text.

        A reset voids everything after it, so the text of other messages since then is yielded again around the new text. All of
        it then counts as text of the current event, for the next reset and for the reader alike.

        Returns:
            The deltas that are still to be yielded.
        """
        first = self._first.get(key)
        if self._gap is not None and (first is not None or self._may_have_dropped(key)):
            raise EventTooLarge(
                f"a message was replaced in a text of more than {self._limit} bytes; iterate instead, or raise Limits.text_bytes",
                limit=self._limit,
            )
        if first is None:
            return deltas
        later = self._pieces[first:]
        new = "".join(delta.text for delta in deltas if delta.kind == "text")
        if all(piece[2] == key for piece in later):
            old = "".join(text for _, text, _ in later)
            if new.startswith(old):
                # The new text extends the old one.
                return (Delta("text", new[len(old) :]),) if len(new) > len(old) else ()
        begin = later[0][0]
        if not self._resets:
            raise StreamReset(
                f"a message was replaced: the text from event {begin} on became void; pass resets=True to get a TextReset",
                offset=begin,
            )
        # An event that repeated other messages has pieces of several messages: a reset voids all of them.
        keep = first
        while keep and self._pieces[keep - 1][0] == begin:
            keep -= 1
        out.append(TextReset(begin))
        self._told = -1
        front = self._pieces[keep:first]
        self._cut(keep)
        for _, text, of in [*front, (offset, new, key), *(piece for piece in later if piece[2] != key)]:
            if text:
                self._remember(offset, text, of)
                out.append(Delta("text", text) if self._mode == "deltas" else text)
                self._told = offset
        return tuple(delta for delta in deltas if delta.kind != "text")

    def finish(self) -> Sequence[Any]:
        """The rest of a byte stream that ended inside a character."""
        rest = self._view.flush() if self._view is not None else ""
        self._view = None
        if not rest:
            return ()
        self._remember(self._pieces[-1][0] if self._pieces else 0, rest)
        return (Delta("text", rest),) if self._mode == "deltas" else (rest,)

    def _remember(self, offset: int, text: str, key: str | None = None) -> None:
        size = _bytes(text)
        if self._gap is None and self._size + size <= self._limit:
            if key is not None:
                self._first.setdefault(key, len(self._pieces))
            self._pieces.append((offset, text, key))
            self._size += size
        elif self._strict:
            raise EventTooLarge(
                f"the text is over {self._limit} bytes; iterate instead, or raise Limits.text_bytes", limit=self._limit
            )
        else:
            if self._gap is None:
                self._gap = offset
            if key is not None and key not in self._dropped and self._dropped_size <= self._limit:
                self._dropped_size += _bytes(key)
                self._dropped.add(key)

    def _may_have_dropped(self, key: str) -> bool:
        """Whether text of this message was not remembered; beyond the limit every message may be affected."""
        return key in self._dropped or self._dropped_size > self._limit


def _bytes(text: str) -> int:
    """Size as UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
