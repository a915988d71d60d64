"""What an observer and the logger are told, and that no secret gets out anywhere (guarantee G7)."""

from __future__ import annotations

import logging
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
from resumable_stream.protocols import LastEventID
from resumable_stream.stores import FileStore
from resumable_stream.testing import Fault, FlakyServer, Reply, ScriptedClient, numbered

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Row

Start = Callable[..., FlakyServer]
Scripted = Callable[..., ScriptedClient]
pytestmark = [pytest.mark.usefixtures("prompt"), pytest.mark.timeout(10)]

ALL = [str(n) for n in range(1, 13)]


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
