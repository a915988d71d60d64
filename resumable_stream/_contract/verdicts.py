"""What a protocol says of an answer, of a close and of an event that looks like the end."""

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
    The outcome is known, but more may follow (usage, `[DONE]`): read on, and take any close as the end.

    If a piece of the answer follows, the event proved nothing (see `ResumeProtocol.has_content()`), and a close is a cut again.
    An event that claims an outcome again and brings such a piece itself is not believed either, until an `Unproven` marker comes.

    Attributes:
        outcome: `None`: another part has begun, and a close is a cut again. `ENDED` takes the place of no other outcome.
    """

    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Unproven:
    """
    The sender says that it is done, which proves nothing by itself (`[DONE]` of a proxy whose server died).

    After an event that settled the outcome, or claimed to, it is one more event. Without one it is a cut: the core then does what
    `ResumeProtocol.on_clean_close()` says. Nor is it delivered, since readers stop at it and would take a half for the whole.

    Attributes:
        text: What came without what, for the error.
        advice: What to pass if the server never sends the proof; `""` where there is nothing to pass.
    """

    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Consume:
    """
    Read the body.

    Attributes:
        skip: Discard so many bytes first: the body restarted although we hold them.
        reset: What was delivered is void; the body starts anew.
        any_type: Do not check the content type.
        whole: It is one document in place of a stream, of any type: `ResumeProtocol.on_document()` reads it when it is complete.
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
        more: Only this reading of it is: a token of it reads on.
        verified: Of `ENDED`: the server, or the caller's own `end=`, vouches for it. Any other outcome is vouched for.
    """

    outcome: Outcome
    more: bool = False
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Resume:
    """
    The connection is over, the stream is not: ask for the rest.

    Attributes:
        routine: The answer was whole, and the stream is read answer by answer. Behind one that brought something new the next
            is asked for at once, and that is no reconnect.
        waits: The server may hold the next answer back until there is something to say: one that was, and says nothing, is
            neither progress nor failure, and nor is one that takes longer than `Timeouts.idle`.
    """

    routine: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Nothing tells an end from a cut: ask once from the cursor whether there is more (rule 7c)."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Ask the provider how the run stands; the answer goes to `ResumeProtocol.on_verified()`."""

    request: Request


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Cut, and there is no way back."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """
    The rest cannot be had by resuming (rule 8).

    Attributes:
        message: What the server said, for the error.
        expired: It was there once (`CursorExpired`); otherwise it never was to be had (`NotResumable`).
        stored: The stored result is how this protocol goes on: take it, whatever `on_lost` says.
    """

    message: str
    expired: bool = True
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Over:
    """
    The provider says that its run is over, and its last event has not come: it may have been on its way when the connection went.

    For `ResumeProtocol.on_verified()`. The core asks for the rest, and then for the run's status again. It believes what is said
    again after nothing new came. What it remembers is in `StreamState.over`, and in no checkpoint: another process counts anew.

    Attributes:
        outcome: How the run ended.
        asks: So many times the rest is asked for before that is believed.
        lost: The last event of such a run has to come: what to say if it does not (`CursorExpired`). `""`: the outcome will do.
    """

    outcome: Outcome
    asks: int = 1
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """A failed attempt: try again under the retry policy."""

    message: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Retrying will not mend it."""

    message: str = ""


Verdict = Consume | Finished | Resume | Ask | Verify | Interrupted | Lost | Over | Retry | Reject
