"""Both halves of the wire: what the server writes is what `HubStream` reads, and asks again for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream import Outcome, _contract
from resumable_stream._contract import Finished, Lost, Reject, Resume, StreamState
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Ending, Head
from resumable_stream.server.wire import (
    Answer,
    Asked,
    Facts,
    Missing,
    Standing,
    State,
    Unavailable,
    answer_to_message,
    answer_to_reader,
    asked,
    busy,
    caught_up,
    end_event,
    key_reused,
    not_found,
    snapshot_event,
)

hub = pytest.importorskip("resumable_stream.protocols.hub", reason="needs the protocol of this server's streams")

SSE = Head(content_type="text/event-stream", framing="sse")
LOCATION = "/streams/msg_42"

texts = st.text(st.characters(codec="utf-8"), max_size=60)
endings = st.builds(Ending, outcome=st.sampled_from(Outcome), reason=st.none() | texts, error=st.none() | texts)


def state(cursor: str | None = None) -> StreamState:
    made = StreamState("GET", f"https://chat.example.com{LOCATION}")
    made.cursor, made.stream_id = cursor, "msg_42"
    made.resuming = cursor is not None
    return made


def ask(protocol: Any, client: StreamState, stands: State) -> Answer:
    """Let the client ask for the rest."""
    sent = protocol.resume_request(client)
    request = asked(Facts(sent.method, {name: value for name, value in sent.headers.items() if value is not None}))
    assert isinstance(request, Asked)
    return answer_to_reader(request, stands, stream_id="msg_42", location=LOCATION, random=0.5)


def told(protocol: Any, client: StreamState, answer: Answer) -> Any:
    headers = {name.lower(): value for name, value in answer.headers}
    return protocol.on_status(answer.status, headers, answer.body, client)


@given(endings, st.integers(0, 10**6))
def test_every_end_is_understood_and_asked_behind(ending: Ending, n: int) -> None:
    protocol = hub.HubStream()
    (event,) = SSEDecoder().feed(end_event("k7q2", n, ending))
    assert protocol.end(event) is ending.outcome
    place = protocol.position(event)
    assert (place.cursor, place.sequence) == (f"k7q2.{n + 1}", n + 1)
    client = state(place.cursor)
    answer = ask(protocol, client, Standing(head=SSE, epoch="k7q2", n=n, b=n, ending=ending))
    assert answer.status == 204
    assert told(protocol, client, answer) == Finished(ending.outcome, verified=True)


@given(st.sampled_from(Outcome), st.from_regex(r"[a-z_]{1,30}", fullmatch=True))
def test_the_reason_arrives_once_by_both_ways(outcome: Outcome, reason: str) -> None:
    protocol, ending = hub.HubStream(), Ending(outcome=outcome, reason=reason)
    (event,) = SSEDecoder().feed(end_event("k7q2", 1, ending))
    by_event, by_head = state(), state("k7q2.2")
    protocol.end_in(by_event, event, outcome)
    told(protocol, by_head, ask(protocol, by_head, Standing(head=SSE, epoch="k7q2", n=1, b=1, ending=ending)))
    assert protocol.why_ended(by_event) == protocol.why_ended(by_head) == reason


def test_a_reader_in_the_middle_is_sent_the_rest() -> None:
    answer = ask(hub.HubStream(), state("k7q2.2"), Standing(head=SSE, epoch="k7q2", n=4, b=9))
    assert answer.status == 200 and answer.then is not None and answer.then.after == Cursor("k7q2", 2)


@pytest.mark.parametrize("cursor", ["zz77.2", "k7q2.9", "k7q2.1"])
def test_a_lost_history_is_a_loss(cursor: str) -> None:
    protocol, client = hub.HubStream(), state(cursor)
    answer = ask(protocol, client, Standing(head=SSE, epoch="k7q2", n=4, b=9, oldest=3))
    verdict = told(protocol, client, answer)
    assert isinstance(verdict, Lost) and json.loads(answer.body)["why"] in str(verdict)


@pytest.mark.parametrize("private", [True, False])
def test_a_stream_that_nobody_knows_is_a_loss_to_who_comes_back(private: bool) -> None:
    protocol, client = hub.HubStream(), state("k7q2.2")
    assert isinstance(told(protocol, client, ask(protocol, client, Missing(private=private))), Lost)
    assert isinstance(told(protocol, state(), not_found()), Reject)


def test_a_conflict_says_which() -> None:
    protocol = hub.HubStream()
    assert "session is busy" in str(told(protocol, state(), busy(LOCATION)))
    assert "Idempotency-Key" in str(told(protocol, state(), key_reused()))


def test_a_server_that_cannot_serve_now_is_asked_again() -> None:
    protocol, client = hub.HubStream(), state("k7q2.2")
    answer = ask(protocol, client, Unavailable("draining"))
    # The retry policy takes 503 and Retry-After by itself.
    assert answer.status == 503 and told(protocol, client, answer) is None
    assert protocol.on_clean_close(client) == Resume()


def test_what_has_no_place_does_not_move_the_client() -> None:
    protocol = hub.HubStream()
    snapshot, over = SSEDecoder().feed(snapshot_event(Cursor("k7q2", 3), {"text": "Hel"}) + caught_up())
    assert protocol.position(snapshot).cursor == "k7q2.3" and protocol.deltas(snapshot)[0].text == "Hel"
    assert protocol.position(over).cursor is None


def test_the_stored_text_is_a_snapshot() -> None:
    ending = Ending(outcome=Outcome.COMPLETED)
    answer = answer_to_message(Standing(head=SSE, epoch="k7q2", n=4, b=9, ending=ending), text="Hello", random=0.0)
    received = _contract.Answer(200, {"content-type": "application/json"}, answer.body)
    got = hub.HubStream().on_snapshot(received, state("k7q2.1"))
    assert got.outcome is Outcome.COMPLETED and got.events[0].id == "k7q2.4"
