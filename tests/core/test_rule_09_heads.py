"""Rules 8 to 10, as values: what `Heads` answers to a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from resumable_stream._contract import Consume, Finished, Head, Request, StreamState, Verdict
from resumable_stream._contract import Lost as Refusal
from resumable_stream._core.plan import Done, Send, Stop, TryAgain
from resumable_stream._errors import OriginMismatch, ResponseRejected, UnexpectedContentType
from resumable_stream._events import Outcome
from resumable_stream._settings import Limits
from resumable_stream.protocols import LastEventID

from .simulation import URL, reading

SSE = {"content-type": "text/event-stream"}


def judged(
    status: int, headers: Mapping[str, str] = SSE, *, resuming: bool = False, settled: Outcome | None = None, **options: Any
) -> Any:
    machine = reading(**options)
    machine.state.resuming = resuming
    return machine._heads.judge(Head(status, headers, URL), b"why", settled)


@pytest.mark.parametrize(
    ("status", "resuming", "expected"),
    [
        (200, False, Consume()),
        (206, True, Consume()),
        (204, False, Finished(Outcome.ENDED, verified=True)),
        (404, True, Refusal("the server answered 404: it no longer holds this stream")),
        (501, True, Refusal("the server answered 501: this stream cannot be resumed", expired=False)),
    ],
)
def test_a_status_has_a_verdict(status: int, resuming: bool, expected: Verdict) -> None:
    assert judged(status, resuming=resuming) == expected


def test_nothing_more_is_a_loss_if_the_end_was_promised_and_never_came() -> None:
    assert isinstance(judged(204, resuming=True, protocol=LastEventID(end="[DONE]")), Refusal)


@pytest.mark.parametrize(("status", "method", "again"), [(503, "GET", True), (503, "POST", True), (500, "POST", False)])
def test_a_failed_attempt_is_repeated_unless_it_may_be_billed_twice(status: int, method: str, again: bool) -> None:
    found = judged(status, method=method)
    assert isinstance(found, TryAgain if again else Stop)
    assert isinstance(found.error, ResponseRejected) and found.error.body == b"why"


def test_another_kind_of_content_is_not_read() -> None:
    assert isinstance(judged(200, {"content-type": "text/html"}).error, UnexpectedContentType)


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_are_asked_for_once(status: int) -> None:
    machine = reading(refreshable=True)
    head = Head(status, {}, URL)
    assert isinstance(machine._heads.judge(head, b"", None), Send)
    assert isinstance(machine._heads.judge(head, b"", None), Stop)
    machine.requests.progress()
    assert isinstance(machine._heads.judge(head, b"", None), Send)


class Onward(LastEventID):
    """What follows a settled outcome is asked for."""

    resumes_settled = True


def test_a_request_for_what_follows_a_settled_outcome_may_fail() -> None:
    assert judged(404, resuming=True, settled=Outcome.COMPLETED, protocol=Onward()) == Done(Outcome.COMPLETED)
    assert isinstance(judged(503, resuming=True, settled=Outcome.COMPLETED, protocol=Onward()), TryAgain)


def test_a_redirect_is_followed_within_the_limit_and_the_origin() -> None:
    def redirected(location: str, **options: Any) -> Any:
        return reading(**options)._heads.redirect(Head(307, {"location": location}, URL))

    follow = redirected("/there")
    assert isinstance(follow, Request) and follow.url == "https://api.example.com/there"
    assert isinstance(redirected("https://other.example/", method="POST").error, OriginMismatch)
    assert "more than 0 redirects" in str(redirected("/there", limits=Limits(redirects=0)).error)


class Never(LastEventID):
    """Its own verdict comes before the table."""

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        return Finished(Outcome.CANCELLED)


def test_the_verdict_of_the_protocol_comes_first() -> None:
    assert judged(503, protocol=Never()) == Finished(Outcome.CANCELLED)
