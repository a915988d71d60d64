"""A protocol's verdicts on a response, on a close and on an event that looks like the end."""

from __future__ import annotations

from dataclasses import dataclass

from .._events import Outcome
from .values import Request

__all__ = [
    "Ask",
    "Consume",
    "Finished",
    "Interrupted",
    "Lost",
    "Over",
    "Reject",
    "Resume",
    "Retry",
    "Settled",
    "Unproven",
    "Verdict",
    "Verify",
]


@dataclass(frozen=True, slots=True)
class Settled:
    """
    The outcome is known, but more may follow (usage, `[DONE]`): read on, and treat any close as the end.

    If a piece of the answer follows, the event proved nothing (see `ResumeProtocol.has_content()`), and a close is a cut again.
    A later event that claims an outcome but also brings such a piece is not believed either, until an `Unproven` marker comes.

    Attributes:
        outcome: `None`: another part has begun, and a close is a cut again. `ENDED` does not replace any other outcome.
    """

    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Unproven:
    """
    The sender claims to be done, which proves nothing by itself (a proxy sends `[DONE]` even if its upstream died).

    After an event that settled the outcome, or claimed to, it is an ordinary event. Otherwise it is a cut, and the core follows
    `ResumeProtocol.on_unproven()`. It is then not delivered, since readers stop at it and would take a partial answer as whole.

    Attributes:
        text: What was received and what was missing, for the error.
        advice: What to pass if the server never sends the proof; `""` if nothing helps.
    """

    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Consume:
    """
    Read the body.

    Attributes:
        skip: Discard this many bytes first: the body restarted, and we already have them.
        reset: What was delivered is void; the body starts over.
        any_type: Do not check the content type.
        whole: The body is one document of any type, not a stream: `ResumeProtocol.on_document()` reads it once it is complete.
    """

    skip: int = 0
    reset: bool = False
    any_type: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """
    The stream is over.

    Attributes:
        outcome: How it ended.
        more: Only this reading of the stream is over; its token can be used to read on.
        verified: For `ENDED`: the server, or the caller's own `end=`, vouches for it. Any other outcome counts as verified.
    """

    outcome: Outcome
    more: bool = False
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """
    The connection is over but the stream is not: request the rest.

    Attributes:
        routine: The answer was complete, and the stream is read one answer at a time. After an answer with new events the
            next is requested immediately, and that does not count as a reconnect.
        waits: The server may hold back the next answer until there is something to send. A held answer that brings nothing is
            neither progress nor failure; the same goes for one that takes longer than `Timeouts.idle`.
    """

    routine: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """The close may be an end or a cut: request once from the cursor to find out whether there is more (rule 7c)."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Ask the provider for the status of the run; the answer goes to `ResumeProtocol.on_verified()`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The stream was cut and cannot be resumed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """
    The rest cannot be obtained by resuming (rule 8).

    Attributes:
        message: What the server said, for the error.
        expired: The rest was available once (`CursorExpired`); otherwise it never was (`NotResumable`).
        stored: This protocol continues with the stored result: fetch it, whatever `on_lost` says.
    """

    message: str
    expired: bool = True
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Over:
    """
    The provider says that its run is over, but its last event has not arrived: it may have been lost with the connection.

    For `ResumeProtocol.on_verified()`. The core requests the rest, then the run's status again. If nothing new came and the
    provider repeats its claim, the core believes it. `StreamState.over` keeps count; checkpoints do not, so another process
    starts counting anew.

    Attributes:
        outcome: How the run ended.
        asks: How many times the rest is requested before the claim is believed.
        lost: If the last event of such a run must arrive: the error message if it does not (`CursorExpired`). `""`: the
            outcome is enough.
    """

    outcome: Outcome
    asks: int = 1
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt failed: try again under the retry policy."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Retrying will not help."""

    message: str = ""


Verdict = Consume | Finished | Resume | Ask | Verify | Interrupted | Lost | Over | Retry | Reject
