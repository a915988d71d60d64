"""JSON can spell half of a surrogate pair (`"\\ud800"`): as an id or a cursor it can be written into no request."""

from __future__ import annotations

from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._contract import Request, ResumeProtocol
from resumable_stream.protocols import (
    A2A,
    Agno,
    CursorProtocol,
    DurableStreams,
    GeminiInteractions,
    LangGraphRun,
    OpenAIResponses,
)
from resumable_stream.testing import Reply, ScriptedClient

from ..conftest import Row
from ..core.simulation import ev

ORIGIN = "https://api.example.com"
HALF = "\\ud800"
SSE = {"content-type": "text/event-stream"}
RPC = {"jsonrpc": "2.0", "id": 1, "method": "message/stream"}
CASES: dict[str, tuple[ResumeProtocol, str, str, Any, list[bytes]]] = {
    "A2A": (A2A(), "POST", "/a2a", RPC, [
        ev(f'{{"jsonrpc":"2.0","id":1,"result":{{"kind":"task","id":"t{HALF}","status":{{"state":"working"}}}}}}'),
    ]),
    "A2A by REST": (A2A(), "POST", "/message:stream", {}, [
        ev(f'{{"task":{{"id":"t{HALF}","status":{{"state":"TASK_STATE_WORKING"}}}}}}'),
    ]),
    "Agno": (Agno(), "POST", "/agents/a/runs", None, [
        ev(f'{{"run_id":"r{HALF}","event_index":0}}', None, "RunStarted"),
    ]),
    "CursorProtocol": (CursorProtocol(read="n", send="query:after"), "GET", "/s", None, [
        ev(f'{{"n":"5{HALF}"}}'),
    ]),
    "CursorProtocol, body": (CursorProtocol(read="n", send="body:after", method="POST", url="/r"), "POST", "/s", {}, [
        ev(f'{{"n":"5{HALF}"}}'),
    ]),
    "DurableStreams": (DurableStreams(), "GET", "/s?live=sse&offset=-1", None, [
        ev('["a"]', None, "data"), ev(f'{{"streamNextOffset":"5{HALF}"}}', None, "control"),
    ]),
    "GeminiInteractions": (GeminiInteractions(), "POST", "/v1beta/interactions", {"stream": True}, [
        ev(f'{{"event_type":"interaction.created","interaction":{{"id":"i{HALF}"}}}}', None, "interaction.created"),
    ]),
    "LangGraphRun": (LangGraphRun(), "POST", "/threads/t/runs/stream", {"stream_resumable": True}, [
        ev(f'{{"run_id":"r{HALF}","attempt":1}}', "1", "metadata"),
    ]),
    "OpenAIResponses": (OpenAIResponses(), "POST", "/v1/responses", {"stream": True, "input": "x", "background": True}, [
        ev(f'{{"type":"response.created","sequence_number":0,"response":{{"id":"r{HALF}","background":true}}}}'),
    ]),
}  # fmt: skip


# A close without a cursor may be the end, and the state of a thread is had without the id of a run.
WAYS = [
    (case, cut, on_lost)
    for case in CASES
    for cut in ("read_error", None)
    for on_lost in ("raise", "snapshot")
    if not (case.startswith("CursorProtocol") and cut is None) and (case, on_lost) != ("LangGraphRun", "snapshot")
]


@pytest.mark.parametrize(("case", "cut", "on_lost"), WAYS)
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_such_a_stream_cannot_be_resumed_and_says_so(row: Row, case: str, cut: str | None, on_lost: Any) -> None:
    protocol, method, path, json, body = CASES[case]
    script = ScriptedClient([Reply(headers=SSE, body=[*body, *filter(None, [cut])])], row.family)
    client = row.scripted(script)
    stream = row.connect(method, ORIGIN + path, client=client, json=json, protocol=protocol, on_lost=on_lost)
    with pytest.raises(rs.StreamInterrupted) as caught:
        await row.read(stream)
    place = caught.value.checkpoint
    assert (place.offset, len(script.requests)) == (len(body), 1)
    # The place is whole all the same, and of no use to another process either.
    with pytest.raises((rs.NotResumable, rs.StreamInterrupted)):
        await row.read(row.resume(place.token(), origin=ORIGIN, client=client, protocol=protocol))
    with pytest.raises(rs.ResumableStreamError, match="no call that stops"):
        await stream.cancel()


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_a_hint_for_caches_that_cannot_be_sent_is_left_out(row: Row) -> None:
    first = [ev('["a"]', None, "data"), ev(f'{{"streamNextOffset":"5","streamCursor":"{HALF}"}}', None, "control"), "read_error"]
    second = [ev('{"streamNextOffset":"5","streamClosed":true}', None, "control")]
    script = ScriptedClient([Reply(headers=SSE, body=first), Reply(headers=SSE, body=second)], row.family)
    stream = row.connect("GET", f"{ORIGIN}/s?live=sse&offset=-1", client=row.scripted(script), protocol=DurableStreams())
    await row.read(stream)
    assert script.requests[1].query == {"live": "sse", "offset": "5"}


def test_what_can_be_sent() -> None:
    assert Request(
        method="GET", url="https://a.example/é", params={"a": "é", "b": None}, json={"a": ["é"]}, form={"a": "☔"}
    ).sendable
    for odd in ({"params": {"a": "\ud800"}}, {"json": {"a": [{"b": "\udfff"}]}}, {"form": {"\ud800": "a"}}):
        assert not Request(method="GET", url="https://a.example/", **odd).sendable  # type: ignore[arg-type]
    assert not Request(method="GET", url="https://a.example/\ud800").sendable
