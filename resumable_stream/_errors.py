"""
Everything that can go wrong, as one tree.

    ResumableStreamError              .checkpoint  .text_so_far
    ├── StreamInterrupted             .reason      cut, and this stream cannot be resumed
    ├── NotResumable                               the protocol or the server offers no way to resume
    ├── CursorExpired                              the server no longer holds what follows the cursor: start over
    ├── RetriesExhausted              .attempts  .last_error
    ├── GapError                      .expected  .received
    ├── ReplayDiverged                             the replay differs from what was sent before
    ├── StreamReset                   .offset      earlier text is void, and the reader in use cannot express that
    ├── DeadlineExceeded                           `Timeouts.deadline` passed
    ├── ResponseRejected              .status  .headers  .body     a status that retrying will not fix
    ├── ProtocolViolation                          the server broke the protocol
    │   └── EventTooLarge             .limit
    ├── UnexpectedContentType         .expected  .received
    ├── UpstreamError                 .type  .body                 the provider reported an error inside the stream
    ├── OriginMismatch                .expected  .received         credentials would have left their origin
    ├── StoreError                                 a checkpoint store failed, or is not ours to write
    ├── LogUnavailable                .stream_id   the server's log cannot be reached, or its data is damaged
    ├── StreamUnknown                 .stream_id   the server has no such stream, or you may not read it
    ├── StreamEnded                   .ending      the stream takes no more messages
    ├── KeyReused                     .stream_id   the id was used for another request
    ├── HistoryGone                   .gone        the log no longer holds what follows a cursor
    ├── HubDraining                                the server is shutting down and starts no new streams
    ├── LimitReached                  .limit       a limit of the server
    ├── ReaderCut                                  the server cuts an answer on purpose, because it is incomplete
    ├── MessageUnknown                .mid         the session has no such message, or it was deleted
    ├── StreamBusy (RuntimeError)     .active      another thread or task reads the stream, or another stream of the session runs
    └── StreamClosed (RuntimeError)                you used a stream that is closed
        └── StreamConsumed                         you iterated over a stream that has ended

One `except ResumableStreamError` catches them all, and each one holds the place: `.checkpoint` continues the stream.
Network exceptions never leak raw; they are the `__cause__`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._checkpoint import Checkpoint
    from .server.log import Ending, Gone

__all__ = [
    "CursorExpired",
    "DeadlineExceeded",
    "EventTooLarge",
    "GapError",
    "HistoryGone",
    "HubDraining",
    "KeyReused",
    "LimitReached",
    "LogUnavailable",
    "MessageUnknown",
    "NotResumable",
    "OriginMismatch",
    "ProtocolViolation",
    "ReaderCut",
    "ReplayDiverged",
    "ResponseRejected",
    "ResumableStreamError",
    "RetriesExhausted",
    "StoreError",
    "StreamBusy",
    "StreamClosed",
    "StreamConsumed",
    "StreamEnded",
    "StreamInterrupted",
    "StreamReset",
    "StreamUnknown",
    "UnexpectedContentType",
    "UpstreamError",
    "error_of",
]


class ResumableStreamError(Exception):
    """
    Root of every error of this package.

    Attributes:
        checkpoint: The place in the stream when it happened; `None` only if no request was made yet.
        text_so_far: Text delivered before the error, if the stream was read as text; otherwise `None`.
    """

    checkpoint: Checkpoint | None = None
    text_so_far: str | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # For pickling: the constructors below need keyword arguments, which an exception does not store in `args`.
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(cls: type[ResumableStreamError], args: tuple[object, ...], attributes: dict[str, object]) -> ResumableStreamError:
    made = cls.__new__(cls, *args)
    made.args = args
    made.__dict__.update(attributes)
    return made


class StreamInterrupted(ResumableStreamError):
    """
    The stream was cut and cannot be resumed.

    Attributes:
        reason: What cut it, as a short string: `"connection lost"`, `"idle"`, `"stall"`, `"first_event"`,
            `"closed inside an event"`, `"closed before the end"` …
            `"interrupted from inside"`: your own process gave up a read.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotResumable(ResumableStreamError):
    """The protocol or the server offers no way to continue this stream; do not repeat the request blindly."""


class CursorExpired(ResumableStreamError):
    """The server no longer holds what follows the cursor. Start over, or pass `on_lost="restart"`."""


class RetriesExhausted(ResumableStreamError):
    """
    The retry policy gave up.

    Attributes:
        attempts: Connections tried since the last new event.
        last_error: How the last attempt ended: an exception, or a sentence if there was none.
    """

    def __init__(self, message: str, *, attempts: int, last_error: BaseException | str | None) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.last_error = last_error


class GapError(ResumableStreamError):
    """
    Events are missing and the server did not send them again.

    Attributes:
        expected: Sequence number that was expected; `None` if the server reported the gap without numbers.
        received: Sequence number that arrived instead; `None` likewise.
    """

    def __init__(self, message: str, *, expected: int | None, received: int | None) -> None:
        super().__init__(message)
        self.expected = expected
        self.received = received


class ReplayDiverged(ResumableStreamError):
    """The replay differs from what the server had sent: the two halves do not belong to the same answer."""


class StreamReset(ResumableStreamError):
    """
    Text already read became void.

    Attributes:
        offset: Number of earlier events still valid.
    """

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class DeadlineExceeded(ResumableStreamError):
    """`Timeouts.deadline` seconds have passed since the stream was opened."""


class ResponseRejected(ResumableStreamError):
    """
    The server answered with a status that retrying will not fix.

    Attributes:
        status: HTTP status code.
        headers: Response headers, names in lower case, without `set-cookie` and the like.
        body: First bytes of the body, at most 64 KiB: enough for a provider's error document.
    """

    def __init__(self, message: str, *, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.body = body


class ProtocolViolation(ResumableStreamError):
    """
    The server broke the wire protocol.

    Attributes:
        offset: Index of the event, counted from 0, if an event was at fault.
        excerpt: The beginning of its data, at most 80 characters.
    """

    def __init__(self, message: str, *, offset: int | None = None, excerpt: str = "") -> None:
        super().__init__(message)
        self.offset = offset
        self.excerpt = excerpt


class EventTooLarge(ProtocolViolation):
    """
    One event or line exceeds its limit, or one document holds too many events.

    Attributes:
        limit: The limit in bytes: `Limits.event_bytes` or `Limits.line_bytes`; for a document, in events.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class UnexpectedContentType(ResumableStreamError):
    """
    The response is not a stream of the expected kind.

    Attributes:
        expected: Content types that would have been accepted.
        received: The content type received; `""` if there was none.
    """

    def __init__(self, message: str, *, expected: str, received: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.received = received


class UpstreamError(ResumableStreamError):
    """
    The provider reported an error inside the stream, which ended the stream.

    Attributes:
        type: The provider's name for the error, or `""`.
        body: The error as sent: parsed JSON if it was JSON, else the text.
    """

    def __init__(self, message: str, *, type: str = "", body: object = None) -> None:
        super().__init__(message)
        self.type = type
        self.body = body


class OriginMismatch(ResumableStreamError):
    """
    Continuing would send credentials to another origin (scheme, host, port).

    Attributes:
        expected: The origin that the credentials belong to.
        received: The origin that the checkpoint, the redirect or the resume URL names.
    """

    def __init__(self, message: str, *, expected: str, received: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.received = received


class StoreError(ResumableStreamError):
    """A store could not load or save, its content was not written by this library, or a newer writer took over the key."""


class LogUnavailable(ResumableStreamError):
    """
    The log of a server cannot be reached, or its data is damaged. The state of its streams is unknown.

    Attributes:
        stream_id: The stream concerned; `None` if all of them are.
    """

    def __init__(self, message: str, *, stream_id: str | None = None) -> None:
        super().__init__(message)
        self.stream_id = stream_id


class StreamUnknown(ResumableStreamError):
    """
    The server has no stream with this id: there was none, it has expired, or it belongs to somebody else.

    Attributes:
        stream_id: The id.
    """

    def __init__(self, message: str, *, stream_id: str) -> None:
        super().__init__(message)
        self.stream_id = stream_id


class StreamEnded(ResumableStreamError):
    """
    The stream has ended and takes no more messages.

    Attributes:
        ending: How it ended.
    """

    def __init__(self, message: str, *, ending: Ending) -> None:
        super().__init__(message)
        self.ending = ending


class KeyReused(ResumableStreamError):
    """
    The id of a stream was reused for a different request. The existing stream answers the first one.

    Attributes:
        stream_id: The id.
    """

    def __init__(self, message: str, *, stream_id: str) -> None:
        super().__init__(message)
        self.stream_id = stream_id


class HistoryGone(ResumableStreamError):
    """
    The log of a server no longer holds what follows a cursor.

    Attributes:
        gone: What the log reported: `why`, `oldest`, `n` and `epoch`.
    """

    def __init__(self, message: str, *, gone: Gone) -> None:
        super().__init__(message)
        self.gone = gone


class HubDraining(ResumableStreamError):
    """The server is shutting down and starts no generation; ask another instance."""


class LimitReached(ResumableStreamError):
    """
    A limit of the server was reached; the message names it, and the option that raises it.

    Attributes:
        limit: Its value.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class ReaderCut(ResumableStreamError):
    """
    In a server: a reader's body stops here on purpose, and must not be ended cleanly, because it is incomplete.

    The stream failed, its log is gone, the server is shutting down, or the reader accepted nothing for too long. A reader that
    returns with its cursor gets the reason, or the rest.
    """


class MessageUnknown(ResumableStreamError):
    """
    The session of a server has no message with this id: there was none, or it was deleted.

    Attributes:
        mid: The id.
    """

    def __init__(self, message: str, *, mid: str) -> None:
        super().__init__(message)
        self.mid = mid


class StreamBusy(ResumableStreamError, RuntimeError):
    """
    Another thread or task is reading the stream, which has one consumer. That read continues.

    On a server: another stream of the session is running, and `if_busy="reject"` does not allow a second one.

    Attributes:
        active: On a server, the id of the running stream; otherwise `None`.
    """

    def __init__(self, message: str, *, active: str | None = None) -> None:
        super().__init__(message)
        self.active = active


class StreamClosed(ResumableStreamError, RuntimeError):
    """The stream was closed."""


class StreamConsumed(StreamClosed):
    """The stream has ended and was iterated again."""


def error_of(exc: BaseException | None) -> ResumableStreamError | None:
    """
    Find the `ResumableStreamError` that an SDK's exception wraps.

    Follows `__cause__` and `__context__` (including those hidden by `raise … from None`) and the members of exception groups.

    Args:
        exc: Any exception, or `None`.

    Returns:
        The nearest `ResumableStreamError`, or `None` if there is none.
    """
    queue, seen = [exc], set[int]()
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        if isinstance(current, ResumableStreamError):
            return current
        seen.add(id(current))
        queue += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            queue += current.exceptions
    return None
