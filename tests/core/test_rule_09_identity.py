"""Rule 9 and guarantee G3: nothing is paid twice. And what each status means."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._errors import NotResumable, ResponseRejected, RetriesExhausted, StreamInterrupted, UnexpectedContentType
from resumable_stream._events import Outcome
from resumable_stream.protocols import NDJSON, CursorProtocol, LastEventID

from .simulation import DROPPED, NO_ANSWER, UNSENT, Reply, Stream, Wait, ev, evs, play, policy, run

DONE = ev("[DONE]")
GOOD = Reply([evs(1, 1), DONE])
BODY = {"json": {"prompt": "p"}, "method": "POST"}


def status(code: int, **headers: str) -> Reply:
    return Reply([b'{"detail": "no"}'], status=code, type="application/json", headers=headers)


# --- unsafe ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "step",
    [DROPPED, NO_ANSWER, Reply(["rst"]), Reply([]), Reply([b": hi\n\n", "fin"]), Reply(["silence"]), Reply([ev("a"), "rst"])],
    ids=["dropped", "no answer", "rst", "empty", "heartbeat", "silence", "one event"],
)
def test_an_unsafe_request_that_may_have_arrived_is_never_repeated(method: str, step: Any) -> None:
    result = play(step, method=method)
    assert isinstance(result.error, StreamInterrupted)
    assert len(result.stream.sent) == 1


@pytest.mark.parametrize("code", [500, 502, 504, 408, 409, 520, 400, 404, 410, 422, 501])
def test_an_unsafe_request_that_was_refused_otherwise_is_not_repeated(code: int) -> None:
    result = play(status(code), **BODY)
    assert isinstance(result.error, ResponseRejected)
    assert (result.error.status, result.error.body) == (code, b'{"detail": "no"}')


@pytest.mark.parametrize("code", [425, 429, 503, 529])
def test_not_accepted_means_that_it_may_be_sent_again(code: int) -> None:
    result = play(status(code), UNSENT, status(code), GOOD, **BODY)
    assert result.outcome is Outcome.COMPLETED
    assert [(sent.method, sent.json) for sent in result.stream.sent] == [("POST", {"prompt": "p"})] * 4


def test_a_request_that_was_never_sent_is_sent_again() -> None:
    assert play(UNSENT, UNSENT, GOOD, **BODY).outcome is Outcome.COMPLETED


def test_proof_ends_where_it_ends() -> None:
    """Two refused connections prove nothing about the third."""
    result = play(UNSENT, UNSENT, DROPPED, **BODY)
    assert isinstance(result.error, StreamInterrupted)


def test_a_request_that_is_never_accepted_exhausts_the_budget() -> None:
    result = play(*[status(429)] * 9, **BODY, delay=policy(4))
    assert isinstance(result.error, RetriesExhausted)
    assert len(result.stream.sent) == 4
    assert isinstance(result.error.last_error, ResponseRejected)


@pytest.mark.parametrize(
    "step",
    [DROPPED, NO_ANSWER, status(500), status(502), Reply(["rst"]), Reply([b": hi\n\n", "fin"]), Reply(["silence"]), Reply([])],
)
def test_an_idempotency_key_makes_any_failure_repeatable(step: Any) -> None:
    result = play(step, step, GOOD, **BODY, idempotent=True)
    assert result.data == ["d1", "[DONE]"] or (step.status == 200 and not step.steps and result.outcome is Outcome.ENDED)
    assert all(sent.method == "POST" for sent in result.stream.sent)


class Joins(LastEventID):
    joins = True


@pytest.mark.parametrize("step", [DROPPED, NO_ANSWER, status(500), Reply(["rst"])])
def test_a_server_that_joins_gets_a_key_which_makes_any_failure_repeatable(step: Any) -> None:
    result = play(step, step, GOOD, **BODY, protocol=Joins(), new_key=lambda: "k")
    assert result.data == ["d1", "[DONE]"]
    assert [sent.headers.get("idempotency-key") for sent in result.stream.sent] == ["k"] * 3


@pytest.mark.parametrize(("protocol", "more"), [(LastEventID(), {"new_key": lambda: "k"}), (Joins(), {})])
def test_without_a_key_a_request_is_not_repeated(protocol: LastEventID, more: Any) -> None:
    result = play(DROPPED, **BODY, protocol=protocol, **more)
    assert isinstance(result.error, StreamInterrupted)
    assert "idempotency-key" not in result.stream.sent[0].headers


def test_an_idempotency_key_does_not_make_delivered_events_repeatable() -> None:
    result = play(Reply([ev("a"), "rst"]), **BODY, idempotent=True)
    assert isinstance(result.error, StreamInterrupted)
    result = play(Reply([ev("a", "1"), "rst"]), **BODY, idempotent=True)
    assert isinstance(result.error, StreamInterrupted)


def test_a_rejection_stays_one_with_an_idempotency_key() -> None:
    assert isinstance(play(status(400), **BODY, idempotent=True).error, ResponseRejected)


# --- POST that resumes ----------------------------------------------------------------------------------------------


def test_a_post_resumes_by_get_and_leaves_its_body_behind() -> None:
    result = play(
        Reply([evs(1, 1), "rst"], headers={"location": "/runs/1?x=1"}),
        DROPPED,
        status(500),
        Reply(["rst"]),
        Reply([evs(2, 2) + DONE]),
        **BODY,
        params={"api-version": "2"},
    )
    assert result.data == ["d1", "d2", "[DONE]"]
    first, *rest = result.stream.sent
    assert (first.method, first.json, first.params) == ("POST", {"prompt": "p"}, {"api-version": "2"})
    assert [(sent.method, sent.url, sent.json, sent.cursor) for sent in rest] == [
        ("GET", "https://api.example.com/runs/1?x=1", None, "1")
    ] * 4


def test_a_post_whose_head_named_a_location_resumes_before_its_first_event() -> None:
    result = play(Reply(["rst"], headers={"location": "/runs/1"}), GOOD, **BODY)
    assert result.outcome is Outcome.COMPLETED
    assert [(sent.method, sent.cursor) for sent in result.stream.sent] == [("POST", None), ("GET", None)]


def test_a_location_of_a_resumed_answer_does_not_move_the_stream() -> None:
    result = play(
        Reply([evs(1, 1), "rst"], headers={"location": "/runs/1"}),
        Reply([evs(2, 2), "rst"], headers={"location": "/elsewhere"}),
        Reply([DONE]),
        **BODY,
    )
    assert [sent.path for sent in result.stream.sent] == ["/stream", "/runs/1", "/runs/1"]


def test_content_location_will_do() -> None:
    result = play(Reply([evs(1, 1), "rst"], headers={"content-location": "runs/1"}), Reply([DONE]), **BODY)
    assert result.stream.sent[1].url == "https://api.example.com/runs/1"


def test_a_location_of_a_get_is_ignored() -> None:
    result = play(Reply([evs(1, 1), "rst"], headers={"location": "/other"}), Reply([DONE]))
    assert result.stream.sent[1].path == "/stream"


def test_resume_names_the_place() -> None:
    def where(state: Any) -> str | None:
        return f"/runs/{state.head.headers['x-run']}" if state.head is not None and "x-run" in state.head.headers else None

    result = play(
        Reply([evs(1, 1), "rst"], headers={"x-run": "77"}),
        Reply([DONE], headers={"x-run": "77"}),
        **BODY,
        protocol=LastEventID(resume=where),
    )
    assert result.stream.sent[1].path == "/runs/77"
    assert isinstance(play(Reply([evs(1, 1), "rst"]), **BODY, protocol=LastEventID(resume=where)).error, StreamInterrupted)


def test_a_get_repeats_its_query_and_sets_the_cursor_in_it() -> None:
    protocol = LastEventID(cursor_param="after")
    result = play(Reply([evs(1, 2), "rst"]), Reply([DONE]), protocol=protocol, params={"topic": "é", "after": "0"})
    assert [sent.params for sent in result.stream.sent] == [{"topic": "é", "after": "0"}, {"topic": "é", "after": "2"}]
    assert result.stream.cursors == [None, None]


def test_a_post_that_its_protocol_declares_repeatable_is_repeated_with_the_cursor_in_its_body() -> None:
    protocol = CursorProtocol(read="seq", send="body:after", method="POST", end="[DONE]")
    result = play(Reply([ev('{"seq": 4}'), "rst"]), DROPPED, Reply([DONE]), **BODY, protocol=protocol)
    assert [sent.json for sent in result.stream.sent] == [
        {"prompt": "p"},
        {"prompt": "p", "after": 4},
        {"prompt": "p", "after": 4},
    ]


def test_a_number_that_nobody_promised_is_still_sent_plus_one_where_the_server_is_inclusive() -> None:
    protocol = CursorProtocol(read="seq", send="query:from", inclusive=True, end="[DONE]")
    result = play(Reply([ev('{"seq": 4}'), "rst"]), Reply([ev('{"seq": 5}'), DONE]), protocol=protocol)
    assert result.stream.sent[1].params == {"from": "5"}


def test_a_post_of_such_a_protocol_is_still_not_repeated_before_it_answered() -> None:
    protocol = CursorProtocol(read="seq", send="body:after", method="POST", end="[DONE]")
    result = play(DROPPED, **BODY, protocol=protocol)
    assert isinstance(result.error, StreamInterrupted)


# --- safe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [DROPPED, UNSENT, NO_ANSWER, Reply(["rst"]), *(status(code) for code in (408, 425, 429, 500, 502, 503, 504, 529))]
)
def test_a_get_is_repeated(step: Any) -> None:
    assert play(step, step, GOOD).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("code", [400, 402, 403, 404, 406, 409, 410, 413, 422, 451, 501, 505, 511])
def test_a_status_that_retrying_will_not_mend_is_told_at_once(code: int) -> None:
    secret = {"set-cookie": "a=b", "mcp-session-id": "s3cret"}
    result = play(status(code, **{"x-request-id": "r1", "www-authenticate": "Bearer"}, **secret))
    error = result.error
    assert isinstance(error, ResponseRejected)
    assert error.status == code
    assert error.body == b'{"detail": "no"}'
    assert error.headers["x-request-id"] == "r1"
    assert not secret.keys() & error.headers.keys()
    assert str(code) in str(error) and '{"detail": "no"}' in str(error)


def test_the_body_of_a_rejection_is_bounded() -> None:
    error = play(Reply([b"x" * 300_000], status=400, type="text/plain")).error
    assert isinstance(error, ResponseRejected)
    assert len(error.body) == 64 * 1024
    assert len(str(error)) < 500


def test_a_rejection_whose_body_breaks_is_still_one() -> None:
    error = play(Reply([b"half", "rst"], status=400, type="text/plain")).error
    assert isinstance(error, ResponseRejected)
    assert error.status == 400


@pytest.mark.parametrize("header", ["location", "content-location"])
def test_a_rejection_with_an_odd_url_in_its_headers_is_still_one(header: str) -> None:
    result = play(status(404, **{header: "http://[oops/", "x-other": "1"}))
    assert isinstance(result.error, ResponseRejected)
    assert result.error.status == 404
    assert result.error.checkpoint is not None
    assert header not in result.error.headers
    assert result.error.headers["x-other"] == "1"


def test_the_statuses_are_the_callers() -> None:
    assert play(status(404), GOOD, statuses=frozenset({404})).outcome is Outcome.COMPLETED
    assert isinstance(play(status(503), statuses=frozenset()).error, ResponseRejected)


def test_no_content_is_an_end() -> None:
    empty = Reply(status=204, type="")
    assert play(empty).outcome is Outcome.ENDED
    assert play(empty, method="POST").outcome is Outcome.ENDED
    assert play(Reply([evs(1, 1), "rst"]), empty).outcome is Outcome.ENDED


@pytest.mark.parametrize("code", [300, 304, 305, 306])
def test_a_redirection_without_a_place_is_a_rejection(code: int) -> None:
    assert isinstance(play(Reply(status=code, type="")).error, ResponseRejected)


# --- credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 403])
def test_credentials_that_ran_out_are_refreshed_once(code: int) -> None:
    again = play(Reply([evs(1, 1), "rst"]), status(code), Reply([evs(2, 2) + DONE]))
    assert again.data == ["d1", "d2", "[DONE]"]
    refused = play(Reply([evs(1, 1), "rst"]), status(code), status(code))
    assert isinstance(refused.error, ResponseRejected)
    assert refused.error.status == code
    assert refused.stream.cursors == [None, "1", "1"]


def test_credentials_may_run_out_more_than_once_in_a_long_stream() -> None:
    steps = [step for number in range(2, 6) for step in (status(401), Reply([evs(number, number), "rst"]))]
    assert play(Reply([evs(1, 1), "rst"]), *steps, Reply([DONE])).data == [*(f"d{n}" for n in range(1, 6)), "[DONE]"]


@pytest.mark.parametrize("code", [401, 403])
def test_the_first_request_is_refreshed_only_where_that_may_help(code: int) -> None:
    assert isinstance(play(status(code)).error, ResponseRejected)
    assert play(status(code), GOOD, refreshable=True).outcome is Outcome.COMPLETED
    assert play(status(code), GOOD, refreshable=True, **BODY).outcome is Outcome.COMPLETED
    assert isinstance(play(status(code), status(code), refreshable=True).error, ResponseRejected)


# --- content types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["text/event-stream", "text/event-stream; charset=utf-8", "TEXT/Event-Stream", ""])
def test_an_event_stream_is_known_by_its_type(type: str) -> None:
    assert play(Reply([evs(1, 1), DONE], type=type)).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("type", ["text/html", "application/json", "text/plain", "text/event-streams"])
def test_another_type_is_told(type: str) -> None:
    result = play(Reply([b"<html>"], type=type))
    assert isinstance(result.error, UnexpectedContentType)
    assert result.error.received == type
    assert "text/event-stream" in result.error.expected
    resumed = play(Reply([evs(1, 1), "rst"]), Reply([b"<html>"], type=type))
    assert isinstance(resumed.error, UnexpectedContentType)
    assert resumed.error.checkpoint is not None and resumed.error.checkpoint.cursor == "1"


def test_the_protocol_is_found_by_the_first_answer() -> None:
    found = play(Reply([evs(1, 1), "rst"]), Reply([DONE]), detecting=True)
    assert found.data == ["d1", "[DONE]"]
    assert isinstance(found.stream.machine.protocol, LastEventID)
    lines = play(Reply([b'{"a": 1}\n'], type="application/x-ndjson"), detecting=True)
    assert isinstance(lines.stream.machine.protocol, NDJSON)
    octets = play(Reply([b"abc"], type="application/octet-stream"), detecting=True)
    assert octets.data == [b"abc"]
    for kind in ("text/html", "application/json"):
        assert isinstance(play(Reply([b"{}"], type=kind), detecting=True).error, UnexpectedContentType)


def test_detection_waits_for_an_answer_that_is_a_stream() -> None:
    result = play(status(503), UNSENT, Reply([evs(1, 1), DONE]), detecting=True)
    assert result.outcome is Outcome.COMPLETED
    assert isinstance(play(status(404), detecting=True).error, ResponseRejected)
    assert play(Reply(status=204, type=""), detecting=True).outcome is Outcome.ENDED


def test_a_get_whose_head_never_comes_is_bounded() -> None:
    result = run(Stream(lambda sent: Reply([Wait(1)], after=1e9), delay=policy(3)))
    assert isinstance(result.error, RetriesExhausted)


# --- a body that can be sent once -----------------------------------------------------------------------------------


def test_a_body_that_can_be_sent_only_once_is_not_sent_again() -> None:
    """An iterator is used up by the first request: what would follow is an empty body, and another answer."""
    result = play(Reply(status=503, type=""), method="POST", single_use=True)
    assert isinstance(result.error, NotResumable)
    assert "pass it as bytes" in str(result.error)
    assert len(result.stream.sent) == 1


def test_a_body_that_never_left_is_still_whole() -> None:
    result = play(UNSENT, Reply([ev("[DONE]")]), method="POST", single_use=True)
    assert result.data == ["[DONE]"]
