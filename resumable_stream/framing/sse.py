"""
Server-sent events, from bytes.

The rules are those of WHATWG HTML section 9.2.6; the speed comes from not following them line by line.
A chunk goes through three stages:

    bytes  ──▶ block: whole lines, nothing else                                  `_assemble`
           ──▶ lines: one call in C for the block                                `feed`
           ──▶ events: straight-line code for one event of 1 to 3 lines          `feed`
                       (one shaped like the last is only cut into its texts)
                       column by column for a run of events of one shape         `_read_columns`
                       the algorithm of the standard for everything else         `_read_lines`

What the shortcuts rest on:

- A line end is ASCII, so it never cuts a UTF-8 sequence, and invalid bytes in a line are replaced the same way
  whether the line is decoded alone or with its neighbours. In a block of several events each value is decoded last, by
  itself: an emoji then makes only its own line take four bytes a character, not the whole block.
- They run only while the block is within both limits, so nothing in it can be too large.
  Anything they do not recognise falls through to `_read_lines`, which is always correct.
- Between two blank lines an id is this block's own or the sticky one. `_own_id` is therefore all that is kept of the
  standard's id buffer: at a blank line it becomes `last_event_id`, at the end of the body it is dropped.

Held bytes are one `bytearray`, held data lines a list that is joined now and then: both grow in linear time,
and neither costs more than a small multiple of the limits, however small the pieces in which a peer sends them.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from itertools import repeat
from operator import itemgetter

from .._errors import EventTooLarge, ResumableStreamError
from .._events import Blank, StreamEvent
from .._settings import Limits

__all__ = ["SSEDecoder"]

_BOM = b"\xef\xbb\xbf"
# `10 in data` takes 12 ns, `b"\n" in data` 88.
_LF, _CR, _COLON, _D = b"\n\r:d"
_DEFAULT = Limits()

# A chunk is read in slices of this size: the objects of one slice stay in the processor's cache.
_SLICE = 65536
# Events that are read as columns together: enough to make the set-up cost negligible. If one of them is an exception (another
# field in the same place), the rest of the chunk is read fewer at a time, so that it sends few down the slow path.
_RUN, _FEWER = 512, 64
# Up to this many lines, columns cost more than they save.
_FEW = 24
# Columns of lines shorter than this are decoded in one piece, longer ones line by line.
_SHORT = 100
# A larger chunk is hardly one event.
_ALONE = 8192
_DATA_ALONE = (False, "data: ", "message", "\n\n")
# Held data lines are joined in packs of this size: as objects, lines of two bytes weigh 20 times what they hold.
_PACK = 1024
# 10^15 ms are 31,000 years. More digits say nothing more, and `int()` of a long string is quadratic, then raises.
_MAX_RETRY = 10**15


class SSEDecoder:
    """
    Decode an event stream, fed in chunks of any size.

    Args:
        last_event_id: The id that the stream is resumed from; events report it until the server sends another.
        event_bytes: Limit for the data of one event, in bytes, with one for each line end inside.
        line_bytes: Limit for one line, in bytes, without its line end.

    Attributes:
        silent: Blocks that had an id and no data, as (events of this feed before it, id). The reader empties it.
        last_event_id: Newest id that a *finished* block carried, with or without data; `""` before any and after an empty one.
        retry: Newest reconnection time that the stream announced, in milliseconds, or `None`.
        error: Why decoding stopped: a limit was exceeded; otherwise `None`. Where it stops does not depend on the chunking.

    Source: WHATWG HTML, section 9.2.6 (interpreting an event stream).
    """

    __slots__ = (
        "_alone",
        "_data",
        "_event_bytes",
        "_held",
        "_line_bytes",
        "_open",
        "_own_id",
        "_packed",
        "_pending",
        "_quick",
        "_ready",
        "_retry",
        "_safe",
        "_shape",
        "_size",
        "_skip_lf",
        "_started",
        "_type",
        "_type_line",
        "_type_name",
        "error",
        "last_event_id",
        "retry",
        "silent",
    )

    def __init__(
        self,
        *,
        last_event_id: str = "",
        event_bytes: int = _DEFAULT.event_bytes,
        line_bytes: int = _DEFAULT.line_bytes,
    ) -> None:
        self.last_event_id = last_event_id
        self.retry: int | None = None
        self.silent: list[tuple[int, str]] = []
        self.error: ResumableStreamError | None = None
        self._event_bytes = event_bytes
        self._line_bytes = line_bytes
        self._safe = min(event_bytes, line_bytes)  # a block of this size holds no line and no event that is too large
        self._quick = min(self._safe, _SLICE)
        self._alone = min(self._safe, _ALONE)
        # The unfinished line.
        self._pending = bytearray()
        self._started = False  # it is decided whether the body begins with a byte-order mark
        self._skip_lf = False  # the last chunk ended in CR: a LF now is its other half, not a blank line
        # The unfinished block; `None` is "not seen".
        self._data: list[bytes] = []
        self._packed = 0  # leading items of `_data` that are packs of lines
        self._size = 0  # bytes of the data so far, with a line end for each line
        self._type: str | None = None
        self._own_id: str | None = None
        self._retry: int | None = None
        self._held = False  # any of them was seen
        # Two summaries of the above, so that the usual chunk asks one question.
        self._ready = False  # nothing is held at all: the next byte begins a line and a block
        self._open = False  # bytes without a line end may simply be added to `_pending`
        # The event line seen last, and the type it names: a long answer repeats it with every event.
        self._type_line: bytes | None = None
        self._type_name = ""
        # The last event that came alone: whether its id comes first, the text before its data, its type, its blank line.
        self._shape = _DATA_ALONE

    @property
    def partial(self) -> bool:
        """An event has begun and not ended: a body that stops here was cut. A comment, a retry line or a lone CR is no event."""
        if self._data or self._type is not None or self._own_id is not None:
            return True
        return bool(self._pending) and self._pending[0] != _COLON

    def feed(self, data: bytes) -> list[StreamEvent]:
        """
        Decode a chunk.

        Args:
            data: The next bytes of the body, as many or few as came.

        Returns:
            The events that the chunk completed, in order; none once `error` is set.
        """
        block: bytes | None
        if self._ready and len(data) <= self._alone and 0 not in data:
            # The shape of the last event once more, which is what a long answer sends: only its texts have to be cut out.
            named, middle, kind, blank_line = self._shape
            head, own_id = "", None
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = ""
            if named:
                head, _, rest = text.partition(middle)
                own_id = head.removeprefix("id: ")
                fits = own_id != head and "\n" not in head
            else:
                rest = text.removeprefix(middle)
                fits = rest != text
            content = rest.removesuffix(blank_line)
            if _CR in data:
                fits = fits and "\r" not in content and "\r" not in head
            if fits and content != rest and "\n" not in content:
                event = Blank()
                event.event = kind
                event.data = content
                if own_id is not None:
                    self.last_event_id = own_id
                event.id = self.last_event_id
                event.retry = None
                event.own_id = own_id
                event.sequence = event._rare = None
                return [event]

        if self._ready and data and data[-1] == _LF and len(data) <= self._quick:
            block = data
            shortcut = usual = True
        else:
            if self._open and _LF not in data and _CR not in data:
                pending = self._pending
                pending += data
                self._ready = False
                if len(pending) > self._line_bytes:
                    self._fail("line", len(pending), self._line_bytes)
                return []
            if data == b"\n" and self._open:  # sent byte by byte
                line = bytes(self._pending)
                self._pending.clear()
                events: list[StreamEvent] = []
                self._read_lines([line], b"", None, events)
                return events
            if len(data) > _SLICE:
                events = []  # a comprehension would turn `self` and `data` into cells: 150 ns a chunk
                for start in range(0, len(data), _SLICE):
                    before, known = len(events), len(self.silent)
                    events += self.feed(data[start : start + _SLICE])
                    if before and len(self.silent) > known:
                        self.silent[known:] = [(before + index, own_id) for index, own_id in self.silent[known:]]
                return events
            block = self._assemble(data)
            if block is None:
                return []
            shortcut = len(block) <= self._safe
            usual = shortcut and not self._held

        # One event of a usual shape: what a live stream sends, one in each chunk.
        payload: bytes | None = None
        kind = "message"
        own_id = None
        if usual and block[0] == _D and block.find(b"\n") == len(block) - 2 and block[:6] == b"data: " and _CR not in block:
            payload = block[6:-2]
            self._shape = _DATA_ALONE
        else:
            if _CR in block:
                # Of bytes, `splitlines` knows exactly the three line ends of the standard (of text it knows ten).
                lines, blank, end = block.splitlines(), b"", None
            else:
                # The one way to have `memchr` look for the line ends: a quarter of the time of `split`. They stay on the lines.
                lines, blank, end = BytesIO(block).readlines(), b"\n", -1
            count = len(lines)
            if count < 5 and usual and lines[-1] == blank:
                typed = False
                if count == 3:  # data, after or before event or id
                    first, last, _ = lines
                    straight = found = last[:6] == b"data: "
                    if not found:
                        first, last = last, first
                        found = last[:6] == b"data: "
                    if not found:
                        pass
                    elif first == self._type_line or first[:7] == b"event: ":
                        typed = True
                        payload = last[6:end]
                    elif first[:4] == b"id: " and 0 not in first:
                        own_id = first[4:end].decode("utf-8", "replace")
                        payload = last[6:end]
                elif count == 4:  # all three, in any order: sorted into event, id, data
                    first, second, last, _ = lines
                    straight = found = last[:6] == b"data: "
                    if not found:
                        if second[:6] == b"data: ":
                            second, last = last, second
                        else:
                            first, last = last, first
                        found = last[:6] == b"data: "
                    if second[:4] == b"id: ":
                        straight = False
                    else:
                        first, second = second, first
                        found = found and second[:4] == b"id: "
                    if found and 0 not in second and (first == self._type_line or first[:7] == b"event: "):
                        typed = True
                        own_id = second[4:end].decode("utf-8", "replace")
                        payload = last[6:end]
                elif count == 2:  # a heartbeat, or data with CRLF
                    first = lines[0]
                    if first[:1] == b":":
                        return []
                    if first[:6] == b"data: ":
                        straight = True
                        payload = first[6:end]
                if payload is not None:
                    if typed:
                        if first != self._type_line:
                            self._type_line = first
                            self._type_name = first[7:end].decode("utf-8", "replace") or "message"
                        kind = self._type_name
                    if straight:
                        line_end = "\n" if end else "\r\n"
                        middle = (first[:end].decode("utf-8", "replace") + line_end if typed else "") + "data: "
                        named = own_id is not None
                        self._shape = (named, line_end + middle if named else middle, kind, line_end * 2)

        if payload is not None:
            event = Blank()
            event.event = kind
            event.data = payload.decode("utf-8", "replace")
            if own_id is not None:
                self.last_event_id = own_id
            event.id = self.last_event_id
            event.retry = None
            event.own_id = own_id
            event.sequence = event._rare = None
            return [event]

        events = []
        done = self._read_runs(lines, blank, end, events) if count > _FEW and shortcut else 0
        if done < count:
            self._read_lines(lines[done:] if done else lines, blank, end, events)
        return events

    def eof(self) -> list[StreamEvent]:
        """
        End the body.

        Returns:
            Nothing: the standard drops an event without its blank line, and its id with it. `partial` says if there was one.
        """
        return []

    @property
    def in_line(self) -> bool:
        """A line has begun and not ended."""
        return bool(self._pending)

    def unfinished(self) -> list[StreamEvent]:
        """
        The event that has begun and not ended, as if its blank line had come; none where there is no such event.

        For who knows by other means that it is whole. The body is over: nothing can be fed after this.
        """
        last_event_id, retry = self.last_event_id, self.retry
        found = self.feed(b"\n\n")
        self.last_event_id, self.retry = last_event_id, retry
        self.silent.clear()
        return found

    def _assemble(self, data: bytes) -> bytes | None:
        """Add a chunk to the unfinished line; return the lines that are now finished, or `None` if there are none."""
        if self.error is not None:
            return None
        if not self._open:
            data = self._begin(data)
        cut = data.rfind(b"\n") + 1
        cut = data.rfind(b"\r", cut) + 1 or cut
        pending = self._pending
        block: bytes | None = None
        if cut:
            if pending:
                block = b"".join((pending, memoryview(data)[:cut]))
                pending.clear()
            else:
                block = data[:cut]
            self._skip_lf = data[-1] == _CR
        pending += data[cut:]
        self._open = self._started and not self._skip_lf
        self._ready = self._open and not pending and not self._held

        # A fault after the block is found first; one inside the block is found later here, and replaces the error.
        if len(pending) > self._line_bytes and self._started:
            self._fail("line", len(pending), self._line_bytes)
        if block and len(block) > self._line_bytes:
            block = self._cut_before_long_line(block)
        return block or None

    def _begin(self, data: bytes) -> bytes:
        """Drop what is not to be read: the LF of a CRLF that was split, the byte-order mark."""
        if self._skip_lf and data:
            self._skip_lf = False
            return data[1:] if data[0] == _LF else data
        if not self._started:
            data = bytes(self._pending) + data
            self._pending.clear()
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._pending += data  # may become one; as it holds no line end, nothing has to wait for it
                return b""
            self._started = True
            return data.removeprefix(_BOM)
        return data

    def _cut_before_long_line(self, block: bytes) -> bytes:
        """Set the error and shorten the block, if one of its lines is over the limit."""
        start = 0
        for line in block.splitlines(keepends=True):
            size = len(line.rstrip(b"\r\n"))
            if size > self._line_bytes:
                self._fail("line", size, self._line_bytes)
                return block[:start]
            start += len(line)
        return block

    def _fail(self, what: str, size: int, limit: int) -> None:
        """Stop for good. What is held stays: it may belong to an event before the fault, which is still delivered."""
        self.error = EventTooLarge(f"{what} of at least {size} bytes, the limit is {limit}", limit=limit)
        self._ready = self._open = False

    def _read_runs(self, lines: list[bytes], blank: bytes, end: int | None, events: list[StreamEvent]) -> int:
        """Read all lines up to the end of the last run of events of one shape; return how many lines that is."""
        longest = _RUN
        start = done = 0  # `done` trails `start`: `_read_lines` takes what lies between two runs in one call
        if self._held:
            # The rest of a block that earlier chunks began; only this one may still become too large.
            try:
                start = done = lines.index(blank) + 1
            except ValueError:
                return 0
            self._read_lines(lines[:start], blank, end, events)
            if self.error is not None:
                return len(lines)
        while len(lines) - start > _FEW:
            try:
                stop = lines.index(blank, start) + 1
            except ValueError:
                break
            width = stop - start
            if stop + width <= len(lines) and lines[stop + width - 1] == blank:
                # How far do blank lines follow each other at this distance?
                blanks = lines[stop - 1 : start + width * longest : width]
                height = len(blanks)
                if blanks.count(blank) != height:
                    height = list(map(blank.__eq__, blanks)).index(False)
                stop = start + width * height
                if height > 5 and stop - start > _FEW:
                    if done < start:
                        self._read_lines(lines[done:start], blank, end, events)
                        done = start
                    if self._read_columns(lines, start, stop, width, end, events):
                        done = stop
                    elif height > _FEWER:
                        longest = _FEWER
                        continue
            start = stop
        return done

    def _read_columns(
        self, lines: list[bytes], start: int, stop: int, width: int, end: int | None, events: list[StreamEvent]
    ) -> bool:
        """
        Read blocks of `width` lines from `start` to `stop`, provided that each line of a block is the same field in all of them.

        Returns:
            False when it could not be done; then nothing has happened.
        """
        data: list[list[str]] = []
        types: Iterable[str] = repeat("message")
        ids: list[str] | None = None
        try:
            for offset in range(start, start + width - 1):
                column = lines[offset:stop:width]
                first = column[0]
                if first[:5] == b"data:":
                    values = _values(column, b"data:", end)
                    if values is None:
                        return False
                    data.append(values)
                elif first[:6] == b"event:":
                    same = column.count(first) == len(column)  # as in a long row of deltas
                    values = _values(column[:1] if same else column, b"event:", end)
                    if values is None:
                        return False
                    types = repeat(values[0] or "message") if same else [kind or "message" for kind in values]
                elif first[:3] == b"id:":
                    ids = _values(column, b"id:", end)
                    if ids is None or "\0" in "".join(ids):
                        return False
                elif not min(column)[:1] == max(column)[:1] == b":":
                    return False
        except UnicodeDecodeError:
            return False

        payloads: Iterable[str] = () if not data else data[0] if len(data) == 1 else map("\n".join, zip(*data, strict=True))
        append = events.append
        if ids is not None:
            for payload, kind, own_id in zip(payloads, types, ids, strict=False):
                event = Blank()
                event.event = kind
                event.data = payload
                event.id = own_id
                event.retry = None
                event.own_id = own_id
                event.sequence = event._rare = None
                append(event)
            self.last_event_id = ids[-1]
            if not data:
                self.silent += [(len(events), own_id) for own_id in ids]
        else:
            last_event_id = self.last_event_id
            for payload, kind in zip(payloads, types, strict=False):
                event = Blank()
                event.event = kind
                event.data = payload
                event.id = last_event_id
                event.retry = None
                event.own_id = None
                event.sequence = event._rare = None
                append(event)
        return True

    def _read_lines(self, lines: list[bytes], blank: bytes, end: int | None, events: list[StreamEvent]) -> None:
        """Read lines one by one, as the standard does."""
        data = self._data
        fresh = len(data)  # data lines from here on are not in `_size` yet
        kind = self._type
        own_id = self._own_id
        retry = self._retry
        for line in lines:
            if line == blank:
                if not data:
                    if own_id is not None:
                        self.last_event_id = own_id
                        self.silent.append((len(events), own_id))
                else:
                    payload = b"\n".join(data) if len(data) > 1 else data[0]
                    if len(payload) > self._event_bytes:
                        self._fail("event", len(payload), self._event_bytes)
                        return
                    if own_id is not None:
                        self.last_event_id = own_id
                    event = Blank()
                    event.event = kind or "message"
                    event.data = payload.decode("utf-8", "replace")
                    event.id = self.last_event_id
                    event.retry = retry
                    event.own_id = own_id
                    event.sequence = event._rare = None
                    events.append(event)
                    data.clear()
                    fresh = self._size = self._packed = 0
                kind = own_id = retry = None
                continue
            head = line[:6]
            if head == b"data: ":
                data.append(line[6:end])
            elif head == b"event:":
                kind = line[7 if line[6:7] == b" " else 6 : end].decode("utf-8", "replace")
            else:
                name, _, value = line[:end].partition(b":")
                if value[:1] == b" ":
                    value = value[1:]
                if name == b"data":
                    data.append(value)
                elif name == b"id":
                    if 0 not in value:
                        own_id = value.decode("utf-8", "replace")
                elif name == b"event":  # without a colon
                    kind = ""
                elif name == b"retry" and value.isdigit():
                    value = value.lstrip(b"0") or b"0"
                    retry = self.retry = int(value) if len(value) < 16 else _MAX_RETRY
                # A comment is a field without a name; fields of other names are ignored as well.

        # What is held now is held within the limit: a block is a slice and a line, so little can come on top unseen.
        if len(data) > fresh:
            self._size += sum(map(len, data[fresh:])) + len(data) - fresh
            if self._size - 1 > self._event_bytes:
                self._fail("event", self._size - 1, self._event_bytes)
                return
            if len(data) - self._packed > _PACK:
                data[self._packed :] = [b"\n".join(data[self._packed :])]
                self._packed += 1
        self._type = kind
        self._own_id = own_id
        self._retry = retry
        self._held = bool(data) or kind is not None or own_id is not None or retry is not None
        self._ready = self._open and not self._held and not self._pending


def _values(column: list[bytes], name: bytes, end: int | None) -> list[str] | None:
    """
    Cut the values out of a column of lines and decode them.

    Returns:
        The values, or `None` if the lines are not all the same field, written the same way.

    Raises:
        UnicodeDecodeError: Some bytes are not UTF-8.
    """
    first = column[0]
    spaced = first[len(name) : len(name) + 1] == b" "  # one leading space is not part of a value
    prefix = name + b" " if spaced else name
    if len(first) < _SHORT:
        # One text, split where line end and name meet: there are as many pieces as lines only if every line begins so.
        text = (b"\n" if end is None else b"").join(column).decode()
        start = prefix.decode()
        values = text[len(start) : end].split("\n" + start)
        if len(values) != len(column):
            return None
    else:
        # All of them begin alike if the least and the greatest do.
        if not (min(column).startswith(prefix) and max(column).startswith(prefix)):
            return None
        values = list(map(bytes.decode, map(itemgetter(slice(len(prefix), end)), column)))
    return values if spaced else [value[1:] if value[:1] == " " else value for value in values]
