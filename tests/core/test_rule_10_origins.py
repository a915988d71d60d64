"""Rule 10 and guarantee G7: credentials stay with their origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Request, StreamState
from resumable_stream._errors import OriginMismatch, ResponseRejected, ResumableStreamError
from resumable_stream._events import Outcome
from resumable_stream._settings import Limits
from resumable_stream.protocols import CursorProtocol, LastEventID

from .simulation import DROPPED, NO_ANSWER, UNSENT, URL, Reply, Stream, ev, evs, play, run

DONE = ev("[DONE]")
GOOD = Reply([evs(1, 1), DONE])
BODY: dict[str, Any] = {"method": "POST", "json": {"prompt": "p"}}


def to(location: str, status: int = 307) -> Reply:
    return Reply(status=status, type="", headers={"location": location})


# --- redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_within_the_origin_is_followed_as_it_is(status: int) -> None:
    result = play(to("/v2/stream?x=1", status), GOOD)
    assert result.outcome is Outcome.COMPLETED
    followed = result.stream.sent[1]
    assert (followed.method, followed.url) == ("GET", "https://api.example.com/v2/stream?x=1")
    assert not followed.request.bare
    assert result.stream.sleeps == []


def test_a_header_of_the_protocol_does_not_follow_to_another_origin() -> None:
    """RFC 9110 section 15.4: credentials should not. What a protocol's header grants is unknown; a session id of MCP's does."""

    class Session(LastEventID):
        def first_request(self, state: StreamState) -> Request:
            return replace(super().first_request(state), headers={"Acme-Session": "s-1"})

    result = play(to("https://other.example.com/x"), protocol=Session())
    assert isinstance(result.error, OriginMismatch)
    assert "Acme-Session" in str(result.error) and "s-1" not in str(result.error)
    assert len(result.stream.sent) == 1


@pytest.mark.parametrize("location", ["https://api.example.com:443/x", "HTTPS://API.EXAMPLE.COM/x", "//api.example.com/x"])
def test_the_same_origin_has_many_spellings(location: str) -> None:
    result = play(to(location), GOOD)
    assert result.outcome is Outcome.COMPLETED
    assert not result.stream.sent[1].request.bare


@pytest.mark.parametrize("status", [307, 308])
def test_a_post_keeps_its_body_through_a_307(status: int) -> None:
    result = play(to("/v2", status), GOOD, **BODY)
    assert (result.stream.sent[1].method, result.stream.sent[1].json) == ("POST", {"prompt": "p"})


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_post_becomes_a_get_through_a_303(status: int) -> None:
    result = play(to("/result", status), GOOD, **BODY)
    assert (result.stream.sent[1].method, result.stream.sent[1].json) == ("GET", None)


@pytest.mark.parametrize("status", [301, 302, 303])
@pytest.mark.parametrize(
    "failure",
    [Reply(status=503, type=""), Reply(status=429, type=""), Reply(status=401, type=""), UNSENT, DROPPED, NO_ANSWER],
    ids=["503", "429", "401", "unsent", "dropped", "no answer"],
)
def test_a_post_that_a_redirect_has_answered_is_not_sent_again(status: int, failure: Any) -> None:
    """The redirect is the acceptance: what fails behind it is a GET, and that alone is repeated."""
    result = play(to("/jobs/1", status), failure, GOOD, refreshable=True, **BODY)
    assert [(sent.method, sent.path) for sent in result.stream.sent] == [
        ("POST", "/stream"),
        ("GET", "/jobs/1"),
        ("GET", "/jobs/1"),
    ]
    assert result.outcome is Outcome.COMPLETED


def test_a_post_that_a_redirect_has_answered_is_sent_again_only_by_a_restart() -> None:
    steps = [to("/jobs/1", 303), Reply([ev("a") + ev("b"), "rst"]), to("/jobs/2", 303), Reply(status=503, type=""), GOOD]
    result = play(*steps, on_lost="restart", **BODY)
    sent = [(sent.method, sent.path) for sent in result.stream.sent]
    assert sent == [("POST", "/stream"), ("GET", "/jobs/1"), ("POST", "/stream"), ("GET", "/jobs/2"), ("GET", "/jobs/2")]
    assert [event.reset for event in result.events] == [False, False, True, False]
    failed = play(*steps[:2], **BODY)
    assert isinstance(failed.error, ResumableStreamError)
    assert len(failed.stream.sent) == 2


def test_another_origin_gets_a_bare_request() -> None:
    result = play(to("https://cdn.example.net/s?sig=1"), GOOD, params={"api_key": "secret"})
    assert result.outcome is Outcome.COMPLETED
    followed = result.stream.sent[1]
    assert followed.request.bare
    assert followed.url == "https://cdn.example.net/s?sig=1"
    assert not any("authorization" in name or "cookie" in name for name in followed.headers)
    assert "secret" not in repr(followed)


@pytest.mark.parametrize(
    "location",
    [
        "https://api.example.com:8443/x",
        "https://example.com/x",
        "https://api.example.com.evil.net/x",
        "https://api.example.com@evil.net/",
    ],
)
def test_what_looks_like_the_origin_is_another(location: str) -> None:
    result = play(to(location), GOOD)
    assert result.stream.sent[1].request.bare


@pytest.mark.parametrize(
    "location", ["http://api.example.com/stream", "http://cdn.example.net/x", "ftp://api.example.com/x", "file:///etc/passwd"]
)
def test_https_never_becomes_less(location: str) -> None:
    result = play(to(location))
    assert isinstance(result.error, OriginMismatch)
    assert len(result.stream.sent) == 1
    assert result.error.expected.startswith("https://api.example.com")


def test_http_may_become_https() -> None:
    result = play(to("https://api.example.com/stream"), GOOD, url="http://api.example.com/stream")
    assert result.outcome is Outcome.COMPLETED
    assert result.stream.sent[1].request.bare


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_post_does_not_leave_its_origin(status: int) -> None:
    result = play(to("https://other.example.net/x", status), **BODY)
    assert isinstance(result.error, OriginMismatch)
    assert len(result.stream.sent) == 1


@pytest.mark.parametrize("redirects", [0, 1, 5])
def test_redirects_are_counted(redirects: int) -> None:
    limits = Limits(redirects=redirects)
    steps = [to(f"/{number}") for number in range(redirects)]
    assert play(*steps, GOOD, limits=limits).outcome is Outcome.COMPLETED
    result = play(*steps, to("/last"), limits=limits)
    assert isinstance(result.error, ResponseRejected)
    assert "redirect" in str(result.error)


def test_a_loop_of_redirects_ends() -> None:
    result = run(Stream(lambda sent: to("/stream")))
    assert isinstance(result.error, ResponseRejected)
    assert len(result.stream.sent) == 6


def test_each_connection_has_its_own_redirects_and_begins_at_the_first_url() -> None:
    result = play(to("/a"), to("/b"), Reply([evs(1, 1), "rst"]), to("/c"), Reply([evs(2, 2), "rst"]), Reply([DONE]))
    assert [sent.path for sent in result.stream.sent] == ["/stream", "/a", "/b", "/stream", "/c", "/stream"]
    assert result.stream.cursors == [None, None, None, "1", "1", "2"]


def test_a_stream_behind_a_redirect_to_another_origin_resumes_at_the_first() -> None:
    result = play(to("https://cdn.example.net/s"), Reply([evs(1, 1), "rst"]), to("https://cdn.example.net/t"), Reply([DONE]))
    assert [(sent.url, sent.request.bare, sent.cursor) for sent in result.stream.sent] == [
        (URL, False, None), ("https://cdn.example.net/s", True, None), (URL, False, "1"), ("https://cdn.example.net/t", True, "1")
    ]  # fmt: skip


def test_back_from_another_origin_stays_bare() -> None:
    """What the other origin answers has no claim on our credentials."""
    result = play(to("https://cdn.example.net/s"), to("https://api.example.com/private"), GOOD)
    assert result.stream.sent[2].request.bare


def test_another_origin_may_redirect_within_itself() -> None:
    result = play(to("https://cdn.example.net/s"), to("/t"), GOOD)
    assert result.stream.sent[2].url == "https://cdn.example.net/t"
    assert result.stream.sent[2].request.bare


def test_a_failing_redirect_is_tried_again_from_the_start() -> None:
    result = play(to("/a"), Reply(status=503, type=""), to("/b"), GOOD)
    assert [sent.path for sent in result.stream.sent] == ["/stream", "/a", "/stream", "/b"]


def test_a_cursor_in_the_query_goes_to_the_origin_alone() -> None:
    result = play(
        Reply([evs(1, 1), "rst"]),
        to("https://cdn.example.net/s"),
        Reply([DONE]),
        protocol=LastEventID(cursor_param="after"),
        params={"key": "k"},
    )
    assert result.stream.sent[2].params == {}


# --- resume URLs ----------------------------------------------------------------------------------------------------


FOREIGN = [
    "https://evil.example.net/runs/1",
    "http://api.example.com/runs/1",
    "//evil.example.net/x",
    "https://api.example.com:444/x",
]


@pytest.mark.parametrize("location", FOREIGN)
@pytest.mark.parametrize("header", ["location", "content-location"])
def test_a_resume_url_of_the_server_on_another_origin_is_refused(location: str, header: str) -> None:
    result = play(Reply([evs(1, 1), "rst"], headers={header: location}), **BODY)
    assert isinstance(result.error, OriginMismatch)
    assert len(result.stream.sent) == 1
    assert result.error.expected == "https://api.example.com:443"


@pytest.mark.parametrize("target", FOREIGN)
@pytest.mark.parametrize("make", [lambda target: target, lambda target: lambda state: target], ids=["text", "callable"])
def test_a_resume_url_of_the_caller_on_another_origin_is_refused_too(make: Any, target: str) -> None:
    result = play(Reply([evs(1, 1), "rst"]), **BODY, protocol=LastEventID(resume=make(target)))
    assert isinstance(result.error, OriginMismatch)
    assert len(result.stream.sent) == 1


def test_a_stream_id_cannot_climb_out_of_its_url() -> None:
    protocol = CursorProtocol(read="seq", send="query:after", end="[DONE]", stream_id="id", url="/runs/{stream_id}/events")
    first = ev('{"id": "//evil.example.net/../?x=", "seq": 1}')
    result = play(Reply([first, "rst"]), Reply([DONE]), **BODY, protocol=protocol)
    assert result.stream.sent[1].url.startswith("https://api.example.com/runs/%2F%2Fevil")


class Wanders(LastEventID):
    """A protocol whose URLs the server chooses."""

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="https://evil.example.net/x")

    def cancel_request(self, state: StreamState) -> Request | None:
        return Request(method="POST", url="https://evil.example.net/x")

    def status_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="https://evil.example.net/x")

    def snapshot_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url="https://evil.example.net/x")


def test_a_protocol_cannot_carry_credentials_away() -> None:
    result = play(Reply([evs(1, 1), "rst"]), protocol=Wanders())
    assert isinstance(result.error, OriginMismatch)
    with pytest.raises(OriginMismatch):
        result.stream.machine.requests.cancel()


class Half(Wanders):
    def resume_request(self, state: StreamState) -> Request | None:
        return LastEventID.resume_request(self, state)


def test_side_requests_stay_home_too() -> None:
    lost = play(Reply([evs(1, 1), "rst"]), Reply(status=410, type=""), protocol=Half(), on_lost="snapshot")
    assert isinstance(lost.error, OriginMismatch)
    silent = play(Reply([evs(1, 1), "rst"]), Reply(["silence"]), protocol=Half())
    assert isinstance(silent.error, OriginMismatch)


def test_a_checkpoint_cannot_name_another_place() -> None:
    checkpoint = Checkpoint(
        protocol="LastEventID",
        method="POST",
        url=URL,
        cursor="1",
        offset=1,
        extra={"location": "https://evil.example.net/runs/1"},
    )
    with pytest.raises(OriginMismatch):
        run(Stream(lambda sent: GOOD, method="POST", checkpoint=checkpoint))
    home = Checkpoint(
        protocol="LastEventID", method="POST", url=URL, cursor="1", offset=1, extra={"location": "https://api.example.com/runs/1"}
    )
    stream = Stream(lambda sent: Reply([DONE]), method="POST", checkpoint=home)
    assert run(stream).outcome is Outcome.COMPLETED
    assert [(sent.method, sent.path, sent.cursor) for sent in stream.sent] == [("GET", "/runs/1", "1")]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "options", [{}, {"on_lost": "restart"}, {"idempotent": True}, {"on_lost": "restart", "idempotent": True}]
)
@pytest.mark.parametrize("offset", [0, 3])
def test_what_a_token_names_is_never_started(method: str, options: dict[str, Any], offset: int) -> None:
    """Method and URL of a first request are the token's, and a token can be forged."""
    checkpoint = Checkpoint(protocol="LastEventID", method=method, url=URL, offset=offset)
    stream = Stream(lambda sent: GOOD, method=method, checkpoint=checkpoint, started_elsewhere=True, **options)
    assert isinstance(run(stream).error, ResumableStreamError)
    assert stream.sent == []


def test_a_resume_that_fails_does_not_start_what_a_token_names() -> None:
    extra = {"location": "https://api.example.com/runs/1"}
    checkpoint = Checkpoint(protocol="LastEventID", method="POST", url=URL, cursor="1", offset=1, extra=extra)
    gone = Reply(status=410, type="")
    stream = Stream(lambda sent: gone, method="POST", checkpoint=checkpoint, started_elsewhere=True, on_lost="restart")
    assert isinstance(run(stream).error, ResumableStreamError)
    assert [(sent.method, sent.path) for sent in stream.sent] == [("GET", "/runs/1")]


def test_errors_name_no_secret() -> None:
    secret = "hunter2hunter2"
    url = f"https://user:{secret}@api.example.com/stream?api_key={secret}"
    for steps in (
        [Reply([b"no"], status=400, type="text/plain")],
        [Reply([b"no"], type="text/html")],
        [to("http://api.example.com/")],
    ):
        result = play(*steps, url=url)
        assert result.error is not None and result.error.checkpoint is not None
        assert secret not in str(result.error)
        assert secret not in result.error.checkpoint.to_json()
        assert secret not in repr(result.stream.notices)
