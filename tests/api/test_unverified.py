"""An end that nothing vouches for: `ENDED` is not silent where ids show that the stream was made to be continued."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream import EndUnverified, Outcome
from resumable_stream.protocols import CursorProtocol, LastEventID, ResumeProtocol
from resumable_stream.stores import MemoryStore
from resumable_stream.testing import Fault, FlakyServer, ServerEvent, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
CLEAN = Fault.cut(after_events=3, how="clean")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_a_close_that_could_not_be_asked_about_is_said_aloud(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Three of eight events, then a close in good order: a deploy's way to cut a POST. Ids show that the server can replay,
    and nobody knows where. "No exception" must not be all that a caller hears, since a mended setup is one argument away.
    """
    server = flaky_server(numbered(8), [CLEAN])
    notices: list[Any] = []
    stream = row.connect("POST", server.url, json={}, observer=notices.append)
    assert len(await row.read(stream)) == 3
    assert stream.outcome is Outcome.ENDED
    assert stream.end_verified is False
    (found,) = [notice for notice in notices if isinstance(notice, EndUnverified)]
    for word in ("3 events", "Location", "resume=", "end=", "cursor_param="):
        assert word in found.message
    assert found.stream == stream.label
    assert warnings(caplog) == [f"{stream.label}: End not verified: {found.message}"]


async def test_a_strict_reader_is_told(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(8), [CLEAN])
    stream = row.connect("POST", server.url, json={})
    await row.read(stream)
    stream.raise_for_outcome()
    with pytest.raises(rs.StreamInterrupted, match="may be incomplete.*resume=") as caught:
        stream.raise_for_outcome(strict=True)
    assert caught.value.reason == "end not verified"
    assert caught.value.checkpoint is not None


async def test_an_answer_from_the_store_is_no_surer_than_it_was(row: Row, flaky_server: Start) -> None:
    """Running a notebook cell again must not turn a doubtful answer into a sure one."""
    server = flaky_server(numbered(8), [CLEAN])
    store = MemoryStore(keep_events=True)
    for _ in range(2):
        stream = row.connect("POST", server.url, json={}, store=store, key="k")
        assert len(await row.read(stream)) == 3
        assert stream.end_verified is False
        with pytest.raises(rs.StreamInterrupted):
            stream.raise_for_outcome(strict=True)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("method", "protocol", "server"),
    [
        ("GET", None, {"no_content_at_end": True}),
        ("GET", None, {}),
        ("POST", None, {"location": "/stream"}),
        ("POST", LastEventID(resume="/stream"), {}),
        ("POST", LastEventID(end="close"), {}),
        ("POST", LastEventID(end="event 8"), {}),
    ],
    ids=["204", "empty", "location", "resume", "close", "marker"],
)
async def test_an_end_that_something_vouches_for_is_verified(
    row: Row,
    flaky_server: Start,
    caplog: pytest.LogCaptureFixture,
    method: str,
    protocol: ResumeProtocol | None,
    server: dict[str, Any],
) -> None:
    """The server had nothing more when it was asked, or the caller declared what ends the stream."""
    running = flaky_server(numbered(8), **server)
    stream = row.connect(method, running.url, protocol=protocol)
    assert stream.end_verified is None
    assert len(await row.read(stream)) == 8
    assert stream.end_verified is True
    stream.raise_for_outcome(strict=True)
    assert warnings(caplog) == []


async def test_a_server_that_ignores_the_cursor_verifies_nothing(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It was asked and sent its beginning: `CursorIgnored` is the warning, and no strict reader takes that for an end."""
    server = flaky_server(numbered(8), ignore_cursor=True)
    stream = row.connect("GET", server.url)
    assert len(await row.read(stream)) == 8
    assert stream.end_verified is False
    assert len(warnings(caplog)) == 1
    with pytest.raises(rs.StreamInterrupted):
        stream.raise_for_outcome(strict=True)


async def test_without_ids_there_is_nothing_to_mend_and_nothing_is_said(
    row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Most plain endpoints end so. A warning at each of them would be noise; a strict reader still hears of it."""
    server = flaky_server([ServerEvent(data=str(n)) for n in range(8)], [CLEAN])
    stream = row.connect("POST", server.url, json={})
    assert len(await row.read(stream)) == 3
    assert stream.end_verified is False
    assert warnings(caplog) == []
    with pytest.raises(rs.StreamInterrupted):
        stream.raise_for_outcome(strict=True)


async def test_a_cursor_inside_the_json_is_an_id_too(row: Row, flaky_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = flaky_server([ServerEvent(data=f'{{"n": {n}}}') for n in range(8)], [CLEAN])
    protocol = CursorProtocol(read="n", send="query:after")
    stream = row.connect("POST", server.url, json={}, protocol=protocol)
    assert len(await row.read(stream)) == 3
    assert stream.end_verified is False
    assert "url=" in warnings(caplog)[0]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_ids_no_place_would_help(row: Row, flaky_server: Start, method: str) -> None:
    """To name a place to resume at is no advice where no event says how far the stream has come."""
    server = flaky_server([ServerEvent(data=str(n)) for n in range(8)], [Fault.cut(after_events=3)])
    with pytest.raises(rs.StreamInterrupted, match="cannot be resumed: no event had an id"):
        await row.read(row.connect(method, server.url))


async def test_the_error_of_a_cut_says_why_there_is_no_way_back(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(8), [Fault.cut(after_events=3)])
    with pytest.raises(rs.StreamInterrupted, match=r"cannot be resumed: a POST is not repeated.*resume=URL"):
        await row.read(row.connect("POST", server.url, json={}))
