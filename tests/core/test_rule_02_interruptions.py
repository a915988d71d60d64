"""
Rule 2: what interrupts the stream from inside the process is not a failure of the network.

A timeout or a cancellation around a read, a signal handler that raises, Ctrl-C: the exception goes to the caller, and whoever
asks again goes on. The connection is lost with the read (an HTTP client cannot take a cancelled read up again), but nothing
failed, so no attempt is counted and nothing is waited for (inclusionAI/Avernet#2057).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from resumable_stream import Outcome
from resumable_stream._contract import Answer, Backfill, Request, Resume, StreamState, Verdict
from resumable_stream._core.settings import RetryState
from resumable_stream._errors import DeadlineExceeded, RetriesExhausted, StreamInterrupted
from resumable_stream._notices import Disconnected, Retrying
from resumable_stream._settings import Timeouts
from resumable_stream.protocols import LastEventID

from .simulation import DROPPED, Inside, Reply, Sent, Stream, ev, evs, policy, script

DONE = ev("[DONE]")
NAMED = LastEventID(end="[DONE]")


def read_on(stream: Stream) -> tuple[list[Any], int]:
    """Read to the end; after an interruption ask again. Returns the texts, and how many interruptions there were."""
    seen: list[Any] = []
    for interruptions in count():
        try:
            for event in stream:
                seen += [event.data] if event.data != "[DONE]" else []
        except Inside:
            continue
        return seen, interruptions
    raise AssertionError


class Asked(LastEventID):
    """Its run can be asked after, and its history be read."""

    def __init__(self) -> None:
        super().__init__(end="[DONE]")

    def status_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="/status")

    def on_verified(self, answer: Answer, state: StreamState) -> Verdict:
        return Resume()


def status(*steps: Any) -> Reply:
    return Reply([*steps, b"{}"], type="application/json")


PLACES: dict[str, tuple[LastEventID, list[Any], int]] = {
    "the head": (NAMED, [Reply([evs(1, 2), "rst"]), *[Inside()] * 20, Reply([ev("d3", "3"), DONE])], 20),
    "the first event": (NAMED, [*[Reply([Inside()])] * 20, Reply([evs(1, 3), DONE])], 20),
    "the next event": (NAMED, [Reply([evs(1, 2), Inside()]), *[Reply([Inside()])] * 20, Reply([ev("d3", "3"), DONE])], 21),
    "the rest of an event": (NAMED, [Reply([evs(1, 2)]), *[Reply([b"data: ", Inside()])] * 20, Reply([ev("d3", "3"), DONE])], 20),
    "the answer to a question": (
        LastEventID(),
        [Reply([evs(1, 3)]), *[Reply([Inside()])] * 20, Reply([])],
        20,
    ),
    "the status": (
        Asked(),
        [
            Reply([evs(1, 2), "rst"]),
            Reply(["silence"]),
            *[Inside()] * 10,
            *[status(Inside())] * 10,
            status(),
            Reply([ev("d3", "3"), DONE]),
        ],
        20,
    ),
    "the body of an error": (
        NAMED,
        [Reply([evs(1, 2), "rst"]), *[Reply([Inside()], status=503)] * 20, Reply([ev("d3", "3"), DONE])],
        20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_an_interruption_costs_neither_an_attempt_nor_a_wait(place: str) -> None:
    """
    The policy allows one attempt and waits 60 s after it; twenty interruptions come.
    A policy spares a server that is down. An application that looks up now and then says nothing about the server.
    """
    protocol, steps, interruptions = PLACES[place]
    stream = Stream(script(*steps), protocol=protocol, delay=policy(attempts=2, wait=60.0), jitter=0.0)
    assert read_on(stream) == (["d1", "d2", "d3"], interruptions)
    assert [wait for wait in stream.sleeps if wait] == []
    assert {notice.attempt for notice in stream.kinds(Retrying)} <= {0}
    assert stream.outcome in (Outcome.COMPLETED, Outcome.ENDED)


def test_an_interruption_between_two_failures_gives_no_new_budget() -> None:
    """It is no progress either: a server that is down is down."""
    server = script(Reply([evs(1, 1), "rst"]), DROPPED, DROPPED, Inside(), DROPPED)
    stream = Stream(server, protocol=NAMED, delay=policy(attempts=2))
    with pytest.raises(RetriesExhausted) as caught:
        read_on(stream)
    assert caught.value.attempts == 2


def test_after_an_interruption_the_prompt_reconnect_is_still_free() -> None:
    """A first reconnect after progress is free; one that the caller interrupted has not been tried."""
    server = script(Reply([evs(1, 1), Inside()]), DROPPED, Reply([DONE]))
    stream = Stream(server, protocol=NAMED, delay=policy(attempts=1))
    assert read_on(stream)[0] == ["d1"]


@pytest.mark.parametrize("patience", [0.1, 7.0])
def test_a_wait_that_is_interrupted_is_slept_to_its_end(patience: float) -> None:
    """
    The policy's wait, or the server's, spares the server. A caller who polls every 0.1 s would else turn a wait of a minute
    into ten requests a second, and be out of attempts in the first.
    """
    states: list[RetryState] = []

    def delay(state: RetryState) -> float | None:
        states.append(state)
        return 30.0

    server = script(Reply([evs(1, 1), "rst"]), DROPPED, DROPPED, Reply([evs(2, 2), DONE]))
    stream = Stream(server, protocol=NAMED, delay=delay, jitter=0.0)
    stream.patience = patience
    seen, interruptions = read_on(stream)
    assert seen == ["d1", "d2"]
    assert interruptions > 5
    at = [sent.at for sent in stream.sent]
    assert at[2] - at[1] == pytest.approx(30.0)
    assert at[3] - at[2] == pytest.approx(30.0)
    assert states[1].slept == pytest.approx(30.0), "what was slept is counted once"


def test_time_that_passes_before_the_caller_asks_again_is_part_of_the_wait() -> None:
    server = script(Reply([evs(1, 1), "rst"]), DROPPED, Reply([evs(2, 2), DONE]))
    stream = Stream(server, protocol=NAMED, delay=policy(attempts=2, wait=30.0), jitter=0.0)
    next(stream)
    stream.patience = 10.0
    with pytest.raises(Inside):
        next(stream)
    stream.clock.now += 100.0
    assert next(stream).data == "d2"
    assert stream.sleeps == [30.0]


def test_an_interruption_does_not_wait_for_the_servers_reconnection_time() -> None:
    """`retry:` is for a connection that the server ended (HTML, 9.2.3: reestablish the connection). This one the caller ended."""
    server = script(Reply([b"retry: 5000\n\n", evs(1, 1), Inside()]), Reply([ev("d2", "2"), "rst"]), Reply([DONE]))
    stream = Stream(server, protocol=NAMED, jitter=0.0)
    assert read_on(stream)[0] == ["d1", "d2"]
    assert [wait for wait in stream.sleeps if wait] == [5.0], "that of the cut"


def test_the_deadline_holds_for_interruptions_too() -> None:
    server = script(Reply([evs(1, 1), Inside()]))
    stream = Stream(server, protocol=NAMED, timeouts=Timeouts(deadline=30.0))
    next(stream)
    with pytest.raises(Inside):
        next(stream)
    stream.clock.now += 40.0
    with pytest.raises(DeadlineExceeded):
        next(stream)


class Missed(LastEventID):
    """A feed that has a history to be read before the live part."""

    def __init__(self) -> None:
        super().__init__(end="[DONE]")

    def backfill_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="/history") if state.offset else None

    def on_backfill(self, answer: Answer, state: StreamState) -> Backfill | Verdict:
        return Backfill(events=(), more=None)


def test_an_interruption_while_a_history_is_read_costs_neither_an_attempt_nor_a_wait() -> None:
    lost = [Reply([DONE]), Inside()]
    server = script(Reply([evs(1, 1), "rst"]), *lost * 10, Reply([evs(2, 2), DONE]), Reply([b"[]"], type="application/json"))
    stream = Stream(server, protocol=Missed(), delay=policy(attempts=2, wait=60.0), jitter=0.0)
    assert read_on(stream) == (["d1", "d2"], 10)
    assert [wait for wait in stream.sleeps if wait] == []


# --- where there is no way back


@pytest.mark.parametrize("steps", [[evs(1, 2), Inside()], [b"data: d1\n\n", b"data: d", Inside()]])
def test_where_the_stream_cannot_be_resumed_the_error_names_the_callers_interruption(steps: Sequence[Any]) -> None:
    """
    The connection goes with the read, and with it the only copy of the answer. Nothing mends that, so the error says who ended
    the read and what to do instead; "connection lost" would send the reader to look at the network.
    """
    stream = Stream(script(Reply(steps)), method="POST", protocol=NAMED)
    with pytest.raises(Inside) as first:
        for _ in stream:
            pass
    with pytest.raises(StreamInterrupted) as caught:
        next(stream)
    assert caught.value.reason == "interrupted from inside"
    assert caught.value.__cause__ is first.value
    text = str(caught.value)
    assert "cannot be resumed" in text
    assert "Something in this process interrupted the read" in text
    assert "timeouts=" in text
    assert "separate task or thread" in text
    (lost,) = stream.kinds(Disconnected)
    assert (lost.reason, lost.error, lost.then) == ("interrupted from inside", "Inside", "give up")
    assert "interrupted from inside this process (Inside)" in str(lost)


def test_a_post_that_was_interrupted_before_its_head_is_not_sent_twice() -> None:
    """The server may have taken it (rule 9)."""
    stream = Stream(script(Inside()), method="POST", protocol=NAMED)
    with pytest.raises(Inside):
        next(stream)
    with pytest.raises(StreamInterrupted) as caught:
        next(stream)
    assert caught.value.reason == "interrupted from inside"
    assert len(stream.sent) == 1


def test_a_restart_is_paid_for_and_so_an_interruption_does_not_make_it_free() -> None:
    """`on_lost="restart"` asks for the whole answer again. A caller who polls ten times a second must not buy ten a second."""
    connections: list[Sent] = []

    def server(sent: Sent) -> Reply:
        connections.append(sent)
        return Reply([b"data: d1\n\n", Inside()])

    stream = Stream(server, method="POST", protocol=NAMED, on_lost="restart", delay=policy(attempts=3))
    with pytest.raises(RetriesExhausted):
        read_on(stream)
    assert len(connections) == 3, "the first, and what the policy allows"
