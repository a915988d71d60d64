"""What an observer and the logger are told, and that no secret gets out anywhere (guarantee G7)."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream import (
    Connected,
    Disconnected,
    DuplicateDropped,
    Finished,
    GapFound,
    Lost,
    Outcome,
    Restarted,
    Retrying,
)
from resumable_stream.protocols import LangGraphRun, LastEventID
from resumable_stream.stores import FileStore
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, ServerEvent, numbered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
ALL = [str(n) for n in range(1, 13)]
QUICK = rs.RetryPolicy(attempts=4, wait=lambda state: 0.0)


async def test_notices_come_in_order_and_say_what_happened(row: Row, flaky_server: Start) -> None:
    server = flaky_server(
        numbered(12),
        [Fault.cut(after_events=5), Fault.no_answer(), Fault.status(503), [Fault.duplicate(after_events=2)]],
        no_content_at_end=True,
    )
    notices: list[Any] = []
    assert len(await row.read(row.connect("GET", server.url, observer=notices.append))) == 12
    assert [type(notice).__name__ for notice in notices] == [
        "Connected",
        "Disconnected",
        "Retrying",
        "Disconnected",
        "Retrying",
        "Disconnected",
        "Retrying",
        "Connected",
        "DuplicateDropped",
        "Disconnected",
        "Retrying",
        "Finished",
    ]
    assert notices[0] == Connected(200, False, None)
    assert notices[1].reason == "connection lost"
    assert notices[1].error in ("ReadError", "RemoteProtocolError")
    assert [notice.attempt for notice in notices if isinstance(notice, Retrying)][:3] == [0, 1, 2]
    assert notices[7] == Connected(200, True, "5")
    assert notices[8] == DuplicateDropped("7")
    assert notices[-1] == Finished(Outcome.ENDED)


async def test_an_observer_is_told_at_once_and_before_the_event(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.hole(after_events=10)])
    seen: list[Any] = []
    async with row.connect("GET", server.url, observer=seen.append, protocol=LastEventID(sequence="auto")) as stream:
        assert seen == [Connected(200, False, None)]
        async for event in stream:
            seen.append(event.id)
            if event.gap is not None:
                break
    found = next(notice for notice in seen if isinstance(notice, GapFound))
    assert (found.gap.expected, found.gap.received, found.asked_again) == (11, 12, False)
    assert seen.index(found) == seen.index("12") - 1


async def test_losses_and_restarts_are_told(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), Fault.status(410)])
    notices: list[Any] = []
    await row.read(row.connect("GET", server.url, observer=notices.append, on_lost="restart"))
    kinds = [type(notice) for notice in notices]
    assert kinds.index(Lost) < kinds.index(Restarted)
    assert notices[kinds.index(Restarted)] == Restarted(0)


async def test_the_logger_speaks_up_only_where_something_may_be_missing(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "resumable_stream")
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), Fault.status(410)])
    await row.read(row.connect("GET", server.url, on_lost="restart"))
    ours = [record for record in caplog.records if record.name == "resumable_stream"]
    levels = {record.levelno for record in ours}
    assert levels == {logging.DEBUG, logging.INFO, logging.WARNING}
    loud = [record.getMessage() for record in ours if record.levelno == logging.WARNING]
    assert len(loud) == 2
    assert "Lost" in loud[0]
    assert "Restarted" in loud[1]


async def test_a_quiet_logger_is_asked_for_nothing(row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "resumable_stream")
    server = flaky_server(numbered(12), [Fault.cut(after_events=5)])
    await row.read(row.connect("GET", server.url))
    assert [record for record in caplog.records if record.name == "resumable_stream"] == []


# --- an outage as a person reads it


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What the log says at a level, without the number of the stream: others of this process have theirs."""
    found = [record for record in caplog.records if record.name == "resumable_stream" and record.levelno == level]
    return [re.sub(r" #\d+: ", ": ", record.getMessage(), count=1) for record in found]


def seconds(line: str) -> str:
    return re.sub(r"at once|(in|after) \d+\.\d s", lambda found: f"{found[1] or 'in'} N s", line)


async def test_an_outage_reads_like_a_sentence_at_info(row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    """
    An operator who runs at INFO, the level of most deployments, sees what was lost, where, why, and what follows; and when
    it is back. An event has no line, and neither has an undisturbed opening.
    """
    caplog.set_level(logging.INFO, "resumable_stream")
    server = flaky_server(
        [*numbered(12), ServerEvent(data="[DONE]")], [Fault.cut(after_events=5), Fault.no_answer(), Fault.status(503)]
    )
    await row.read(row.connect("GET", server.url, retry=rs.RetryPolicy(attempts=4, wait=lambda state: 0.1)))
    told = [re.sub(r"\((Read|RemoteProtocol)Error\)", "(…Error)", seconds(line)) for line in lines(caplog, logging.INFO)]
    assert told == [
        "GET /stream: the connection was lost (…Error) after event 5 (cursor '5'); reconnecting in N s",
        "GET /stream: the connection was lost (…Error) after event 5 (cursor '5'); reconnecting in N s, attempt 1 of 4",
        "GET /stream: the server answered with status 503 after event 5 (cursor '5'); reconnecting in N s, attempt 2 of 4",
        "GET /stream: back after N s, continuing after event 5 (cursor '5')",
    ]
    assert lines(caplog, logging.WARNING) == []


async def test_a_clean_close_before_the_end_is_in_the_log(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """A close in good order is how a deploy or a proxy ends half an answer: of all cuts the one that nothing else reports."""
    caplog.set_level(logging.INFO, "resumable_stream")
    server = flaky_server([*numbered(12), ServerEvent(data="[END]")], [Fault.cut(after_events=5, how="clean")])
    await row.read(row.connect("GET", server.url, protocol=LastEventID(end="[END]")))
    assert [seconds(line) for line in lines(caplog, logging.INFO)] == [
        "GET /stream: the server closed the connection cleanly before the end after event 5 (cursor '5'); reconnecting in N s",
        "GET /stream: back after N s, continuing after event 5 (cursor '5')",
    ]


async def test_a_silence_is_named_with_its_seconds(row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "resumable_stream")
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")], [Fault.cut(after_events=5, how="silence")])
    await row.read(row.connect("GET", server.url, timeouts=rs.Timeouts(idle=1.5)))
    assert (
        lines(caplog, logging.INFO)[0].replace(" (ReadTimeout)", "").startswith("GET /stream: no byte for 1.5 s after event 5 ")
    )


async def test_a_question_whether_there_is_more_and_its_answer_are_in_the_log(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule 7c: nothing marks the end, so the server is asked. Whoever reads the log sees that the stream was not lost."""
    caplog.set_level(logging.INFO, "resumable_stream")
    server = flaky_server(numbered(12), no_content_at_end=True)
    await row.read(row.connect("GET", server.url))
    assert lines(caplog, logging.INFO) == [
        "GET /stream: the server closed the connection cleanly after event 12 (cursor '12'); asking whether there is more",
        "GET /stream: the stream has ended after 12 events: ended",
    ]


async def test_the_503_of_a_status_check_is_named(row: Row, scripted_client: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """The check of the run's status is a request of its own: its failure has to be told from that of a connection."""
    caplog.set_level(logging.INFO, "resumable_stream")
    kind = {"content-type": "text/event-stream", "content-location": "/threads/t/runs/r/stream"}
    events = [b'id: 1\nevent: metadata\ndata: {"run_id": "r"}\n\n', b"id: 2\nevent: values\ndata: {}\n\n"]
    done = Reply(headers={"content-type": "application/json"}, body=[b'{"status": "success"}'])
    script = scripted_client([Reply(headers=kind, body=events), Reply(status=503), done, Reply(), done, Reply()], row.family)
    url = "https://example.com/threads/t/runs/stream"
    stream = row.connect("POST", url, json={}, client=row.scripted(script), protocol=LangGraphRun(), retry=QUICK)
    await row.read(stream)
    told = [re.sub(r"attempt \d", "attempt N", seconds(line)) for line in lines(caplog, logging.INFO)]
    assert told[0].endswith("the server closed the connection cleanly after event 2 (cursor '1'); checking the run's status")
    assert told[1].endswith(": the status check failed: status 503; retrying in N s, attempt N of 4")
    assert told[2].endswith(": the run continues, as its status shows, after event 2 (cursor '1'); reconnecting in N s")
    assert told[-1].endswith(": back after N s, continuing after event 2 (cursor '1')")


async def test_a_stream_that_cannot_be_opened_is_in_the_log_before_the_exception(
    row: Row, scripted_client: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """What leads to the exception is reported first, also where nothing was connected in between."""
    caplog.set_level(logging.INFO, "resumable_stream")
    script = scripted_client(["connect_error"] * 4, row.family)
    notices: list[Any] = []
    with pytest.raises(rs.RetriesExhausted):
        await row.read(
            row.connect("POST", "https://example.com/s", client=row.scripted(script), retry=QUICK, observer=notices.append)
        )
    assert lines(caplog, logging.INFO)[-1] == "POST /s: no connection (ConnectError) before the first event; giving up"
    assert [notice.then for notice in notices if isinstance(notice, Disconnected)] == [*["reconnect"] * 3, "give up"]


async def test_giving_up_is_in_the_log(row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "resumable_stream")
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), *[Fault.status(503)] * 9])
    with pytest.raises(rs.RetriesExhausted):
        await row.read(row.connect("GET", server.url, retry=QUICK))
    assert lines(caplog, logging.INFO)[-1].endswith("status 503 after event 5 (cursor '5'); giving up")


async def test_the_log_of_a_restart_and_of_a_loss_says_what_follows(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resumable_stream")
    server = flaky_server([*numbered(12), ServerEvent(data="[DONE]")], [Fault.cut(after_events=5), None])
    notices: list[Any] = []
    await row.read(row.connect("POST", server.url, json={}, on_lost="restart", observer=notices.append))
    assert [notice.then for notice in notices if isinstance(notice, Disconnected)] == ["restart"]
    assert lines(caplog, logging.INFO)[0].endswith("after event 5 (cursor '5'); starting over")


async def test_notices_and_log_lines_name_their_stream(row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Two runs of one path have nothing else to tell them apart."""
    caplog.set_level(logging.DEBUG, "resumable_stream")
    server = flaky_server(numbered(12), [Fault.cut(after_events=5), Fault.cut(after_events=7)])
    told: dict[str, set[str]] = {}
    for _ in range(2):
        notices: list[Any] = []
        stream = row.connect("GET", server.url, observer=notices.append)
        await row.read(stream)
        told[stream.label] = {notice.stream for notice in notices}
    assert len(told) == 2
    assert all(names == {label} for label, names in told.items())
    assert all(re.fullmatch(r"GET /stream #\d+", label) for label in told)
    ours = [record.getMessage() for record in caplog.records if record.name == "resumable_stream"]
    assert {line.partition(": ")[0] for line in ours} == set(told)


async def test_a_label_has_the_id_of_the_provider_once_it_is_known(row: Row, scripted_client: Scripted) -> None:
    created = (
        b'event: response.created\ndata: {"type": "response.created", "sequence_number": 0, '
        b'"response": {"id": "resp_abc", "background": true}}\n\n'
    )
    script = scripted_client([Reply(body=[created, "read_error"]), Reply(status=404)], row.family)
    notices: list[Any] = []
    url = "https://user:SECRET@example.com/v1/responses?api_key=SECRET"
    body = {"input": "hi", "stream": True, "background": True, "store": True}
    stream = row.connect("POST", url, json=body, client=row.scripted(script), observer=notices.append)
    with pytest.raises(rs.CursorExpired):
        await row.read(stream)
    names = [re.sub(r"#\d+", "#", notice.stream) for notice in notices]
    assert names == ["POST /v1/responses #", *["POST /v1/responses resp_abc #"] * (len(notices) - 1)]


async def test_a_server_cannot_forge_a_line_of_the_log(
    row: Row, scripted_client: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "resumable_stream")
    body = [b"id: 1\nevent: gap\ndata: {}\n\n", b"id: 1\x0bWARNING\x1b[2J\ndata: 1\n\n", "read_error"]
    script = scripted_client([Reply(body=body), Reply(status=410)], row.family)
    with pytest.raises(rs.ResumableStreamError):
        await row.read(row.connect("GET", "https://example.com/%0as\u2028t", client=row.scripted(script), retry=QUICK))
    assert all(record.getMessage().isprintable() for record in caplog.records if record.name == "resumable_stream")


def test_what_only_explains_a_notice_does_not_count_when_two_are_compared() -> None:
    """Observers and tests that compare notices by their facts go on working when a notice learns to say more."""
    assert Connected(200, True, "5", stream="GET /a #1", offset=5, offline=1.0) == Connected(200, True, "5")
    assert Disconnected("idle", None, seconds=60.0, then="give up") == Disconnected("idle")
    assert str(Disconnected("idle", seconds=60.0, offset=41)) == "no byte for 60 s after event 41; reconnecting"


# --- secrets


SECRETS = (
    "SECRET-bearer",
    "SECRET-header",
    "SECRET-cookie",
    "SECRET-query",
    "SECRET-urlquery",
    "SECRET-password",
    "SECRET-user",
    "SECRET-body",
    "SECRET-set-cookie",
    "SECRET-fragment",
    "SECRET-location",
)


def told(error: BaseException | None) -> str:
    """Everything that a crash report would hold of an exception of ours, without the frames' source."""
    parts = []
    while error is not None:
        if isinstance(error, rs.ResumableStreamError):
            parts += [str(error), repr(error), repr({name: value for name, value in vars(error).items() if name != "body"})]
            if error.checkpoint is not None:
                parts += [error.checkpoint.to_json(), repr(error.checkpoint)]
        else:
            parts += traceback.format_exception_only(error)
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


ENDINGS: dict[str, list[Any]] = {
    "end": [Fault.cut(after_events=5)],
    # Twice: credentials may have run out, so it is asked once more.
    "rejected": [Fault.cut(after_events=5), *[Fault.status(403, headers={"Set-Cookie": "s=SECRET-set-cookie"})] * 2],
    "expired": [Fault.cut(after_events=5), Fault.status(410)],
    "exhausted": [Fault.cut(after_events=5), *[Fault.no_answer()] * 5],
    "page": [Fault.content_type("text/html")],
    "redirects": [Fault.redirect("/stream?ticket=SECRET-location")] * 10,
    "foreign redirect": [Fault.redirect("http://user:SECRET-password@127.0.0.2:1/?ticket=SECRET-location")] * 10,
    "large": [Fault.endless_line(after_events=3, limit_bytes=5000)],
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_no_secret_gets_into_logs_errors_checkpoints_notices_or_stores(
    row: Row, flaky_server: Start, ending: str, method: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "resumable_stream")
    server = flaky_server(
        numbered(12), ENDINGS[ending], headers={"set-cookie": "s=SECRET-set-cookie"}, location="/runs/7?ticket=SECRET-location"
    )
    url = (
        server.url.replace("http://", "http://SECRET-user:SECRET-password@")
        + "?signature=SECRET-urlquery&topic=news#SECRET-fragment"
    )
    notices: list[Any] = []
    stream = row.connect(
        method,
        url,
        headers={"Authorization": "Bearer SECRET-bearer", "X-Api-Key": "SECRET-header"},
        cookies={"session": "SECRET-cookie"},
        params={"api_key": "SECRET-query"} if method == "POST" else None,
        json={"password": "SECRET-body"} if method == "POST" else None,
        observer=notices.append,
        retry=rs.RetryPolicy(attempts=3, wait=lambda state: 0.0),
        limits=rs.Limits(line_bytes=1000),
        store=FileStore(tmp_path / "store"),
        key="k",
    )
    error: BaseException | None = None
    try:
        await row.read(stream)
    except rs.ResumableStreamError as caught:
        error = caught
    assert (error is None) == (ending == "end")
    output = "\n".join(
        [
            told(error),
            repr(stream),
            repr(notices),
            repr(stream.stats),
            stream.checkpoint.to_json(),
            repr(stream.checkpoint),
            *[record.getMessage() for record in caplog.records if record.name.startswith("resumable_stream")],
            *[path.read_text() for path in (tmp_path / "store").rglob("*") if path.is_file()],
        ]
    )
    assert [secret for secret in SECRETS if secret in output] == []
    assert ending == "page" or "topic" in output or method == "POST"


async def test_ids_that_grant_access_stay_out_of_messages_but_in_the_place(row: Row, scripted_client: Scripted) -> None:
    # A cursor is needed to go on, so it is in the checkpoint; a message has no need of the body.
    script = scripted_client([Reply(body=[b"id: 1\ndata: SECRET-body\n\n", "read_error"]), Reply(status=410)], row.family)
    stream = row.connect("GET", "https://example.com/s", client=row.scripted(script))
    with pytest.raises(rs.CursorExpired) as caught:
        await row.read(stream)
    assert "SECRET-body" not in told(caught.value)
    assert "SECRET-body" not in stream.token


async def test_disconnected_names_the_kind_of_error_and_not_its_text(row: Row, scripted_client: Scripted) -> None:
    error = row.module.ReadError("SECRET-header in a message of somebody else")
    script = scripted_client([Reply(body=[b"id: 1\ndata: 1\n\n", error]), Reply(status=204)], row.family)
    notices: list[Any] = []
    await row.read(row.connect("GET", "https://example.com/s", client=row.scripted(script), observer=notices.append))
    assert Disconnected("connection lost", "ReadError") in notices
    assert "SECRET" not in repr(notices)
