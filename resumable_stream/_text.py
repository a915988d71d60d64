"""Events as text: the deltas of each event in turn, the text so far, and what a reset does to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from ._core.interfaces import ResumeProtocol
from ._errors import EventTooLarge, StreamReset
from ._events import Delta, TextReset
from .framing import TextView

__all__ = ["TextReader"]

Mode = Literal["text", "deltas"]


class TextReader:
    """
    Turns events into what `iter_text()` or `iter_deltas()` yields.

    Args:
        protocol: Asked at each event, since it may be detected late.
        mode: `"text"`: strings (and `TextReset` with `resets`); `"deltas"`: `Delta`.
        resets: Yield `TextReset` where earlier text became void; otherwise that raises.
        limit: `Limits.text_bytes`.
        strict: Text over the limit raises; otherwise the rest is merely not remembered.
    """

    def __init__(
        self, protocol: Callable[[], ResumeProtocol | None], *, mode: Mode, resets: bool, limit: int, strict: bool
    ) -> None:
        self._protocol = protocol
        self._mode = mode
        self._resets = resets
        self._limit = limit
        self._strict = strict
        # (offset of the event, text, message that it belongs to)
        self._pieces: list[tuple[int, str, str | None]] = []
        self._size = 0
        self._view: TextView | None = None
        # Offset of the event that began this step of the answer; `None` before any was seen.
        self._step: int | None = None
        # Offset of the last event of which something was told; -1 when there is none, or it was taken back.
        self._told = -1

    def so_far(self) -> str:
        """The text up to now, no more than the limit."""
        return "".join(text for _, text, _ in self._pieces)

    def read(self, event: Any) -> Sequence[Any]:
        """
        Raises:
            StreamReset: Earlier text became void, and the reader cannot say so.
            EventTooLarge: The text is over `Limits.text_bytes`, when all of it was to be held.
        """
        out: list[Any] = []
        if self._step is None and event.offset == 0:
            self._step = 0
        if event.reset:
            out.append(self._void(event.offset))
            self._step = event.offset
        protocol = self._protocol()
        if protocol is not None and protocol.steps:
            match protocol.step(event):
                case "begin":
                    self._step = event.offset
                case "void":
                    # Who came in the middle of a step cannot know what of it another reader has told.
                    if self._step is None or self._told >= self._step:
                        out.append(self._void(self._step or 0))
        if protocol is not None and protocol.framing == "raw":
            if self._view is None:
                self._view = TextView()
            deltas: Sequence[Delta] = (Delta("text", self._view.decode(event.data)),)
        else:
            deltas = tuple((protocol or ResumeProtocol()).deltas(event))
        key = None
        if protocol is not None and protocol.in_parts and (part := protocol.part(event)) is not None:
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
            raise StreamReset(
                f"the text from event {offset} on became void; pass resets=True to be told in the stream", offset=offset
            )
        self._pieces = [piece for piece in self._pieces if piece[0] < offset]
        self._size = sum(_bytes(text) for _, text, _ in self._pieces)
        self._view = None
        self._told = -1
        return TextReset(offset)

    def _replace(self, offset: int, key: str, deltas: Sequence[Delta], out: list[Any]) -> Sequence[Delta]:
        """
        A message is replaced: say what that does to the text.

        A reset voids all behind it, so what other messages said since is told again behind the new text.

        Returns:
            What is still to be said.
        """
        if self._size > self._limit:
            raise EventTooLarge(
                f"a message was replaced in a text of more than {self._limit} bytes; iterate instead, or raise Limits.text_bytes",
                limit=self._limit,
            )
        first = next((index for index, piece in enumerate(self._pieces) if piece[2] == key), None)
        if first is None:
            return deltas
        behind = self._pieces[first:]
        others = [piece for piece in behind if piece[2] != key]
        old = "".join(text for _, text, of in behind if of == key)
        new = "".join(delta.text for delta in deltas if delta.kind == "text")
        if not others and new.startswith(old):
            # It goes on where the message stopped.
            return (Delta("text", new[len(old) :]),) if len(new) > len(old) else ()
        begin = behind[0][0]
        if not self._resets:
            raise StreamReset(
                f"a message was replaced: the text from event {begin} on became void; pass resets=True to be told in the stream",
                offset=begin,
            )
        out.append(TextReset(begin))
        del self._pieces[first:]
        self._size = sum(_bytes(text) for _, text, _ in self._pieces)
        for at, text, of in [(begin, new, key), *others]:
            if text:
                self._remember(at, text, of)
                out.append(Delta("text", text) if self._mode == "deltas" else text)
        return tuple(delta for delta in deltas if delta.kind != "text")

    def finish(self) -> Sequence[Any]:
        """What a byte stream that ended inside a character still owes."""
        rest = self._view.flush() if self._view is not None else ""
        self._view = None
        if not rest:
            return ()
        self._remember(self._pieces[-1][0] if self._pieces else 0, rest)
        return (Delta("text", rest),) if self._mode == "deltas" else (rest,)

    def _remember(self, offset: int, text: str, key: str | None = None) -> None:
        self._size += _bytes(text)
        if self._size <= self._limit:
            self._pieces.append((offset, text, key))
        elif self._strict:
            raise EventTooLarge(
                f"the text is over {self._limit} bytes; iterate instead, or raise Limits.text_bytes", limit=self._limit
            )


def _bytes(text: str) -> int:
    """Size as UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
