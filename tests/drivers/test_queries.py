"""What of a query may be kept and shown: the client's own values never, the caller's where they say nothing secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream.stores import MemoryStore
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ServerEvent, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]

LOG = [*numbered(6), ServerEvent(data="[DONE]")]
CUT = Fault.cut(after_events=3)


def shown(stream: Any, *more: object) -> str:
    place = stream.checkpoint
    return " ".join(map(str, (place.to_json(), place, repr(stream), *more)))


async def test_the_clients_own_query_is_sent_again_and_kept_nowhere(row: Row, flaky_server: Start, caplog: Any) -> None:
    """The client adds it to every request by itself, the resumes of another process included."""
    server = flaky_server(LOG, [CUT])
    store = MemoryStore()
    client = row.client(params={"ck": "sk-secret", "tenant": "acme"})
    caplog.set_level("DEBUG", logger="resumable_stream")
    async with row.connect("GET", server.url, client=client, store=store, key="k") as stream:
        async for event in stream:
            if event.id == "5":
                break
    kept = store.open("k")[0]
    said = shown(stream, kept, caplog.text)
    assert "sk-secret" not in said
    assert "acme" not in said
    assert [request.query for request in server.requests] == [{"ck": "sk-secret", "tenant": "acme"}] * 2

    again = row.resume(stream.token, client=client, origin=server.origin)
    assert [event.id for event in await row.read(again)] == ["6", "6"]
    assert server.requests[-1].query == {"ck": "sk-secret", "tenant": "acme"}
    # Not shown, but told apart: another tenant's client asks for another answer.
    other = row.client(params={"ck": "sk-secret", "tenant": "other"})
    with pytest.raises(rs.StoreError, match="another query"):
        await row.connect("GET", server.url, client=other, store=store, key="k").open()


async def test_errors_do_not_show_the_clients_own_query(row: Row, flaky_server: Start) -> None:
    def refuse(request: RecordedRequest) -> Reply:
        here = f"{server.url}?ck={request.query['ck']}"
        return Reply(status=400, headers={"location": here}, body=b"no")

    server = flaky_server(LOG, on_request=refuse)
    client = row.client(params={"ck": "plainword"})
    with pytest.raises(rs.ResponseRejected) as caught:
        await row.read(row.connect("GET", server.url, client=client))
    error = caught.value
    assert "plainword" not in f"{error} {error.headers} {error.checkpoint}"

    page = flaky_server(LOG, on_request=lambda request: Reply(status=200, headers={"content-type": "text/html"}, body=b"x"))
    with pytest.raises(rs.UnexpectedContentType) as unexpected:
        await row.read(row.connect("GET", page.url, client=client, protocol=rs.protocols.LastEventID()))
    assert "plainword" not in str(unexpected.value)


async def test_what_the_caller_gives_is_kept_where_it_cannot_be_a_key(row: Row, flaky_server: Start) -> None:
    server = flaky_server(LOG, [CUT])
    query = {"topic": "news-2", "page": "3", "access": "AKIAIOSFODNN7EXAMPLE", "u": "hunter2", "ref": "q7f3a9"}
    async with row.connect("GET", server.url, params=query) as stream:
        assert (await anext(stream)).id == "1"
    said = shown(stream)
    assert not [value for value in ("AKIA", "hunter2", "q7f3a9") if value in said]
    assert stream.checkpoint.url == f"{server.url}?topic=news-2&page=3"


async def test_what_a_token_leaves_out_is_passed_again_or_asked_for(row: Row, flaky_server: Start) -> None:
    """Without a value that chose the stream, another stream would come: so it is missed before anything is sent."""
    server = flaky_server(LOG, [CUT])
    query = {"topic": "news", "ref": "q7f3a9", "api_key": "k1"}
    async with row.connect("GET", server.url, params=query) as stream:
        assert (await anext(stream)).id == "1"
    count = len(server.requests)
    with pytest.raises(ValueError, match=r"leaves out query values .* params=\{'ref': …\}"):
        row.resume(stream.token, origin=server.origin)
    assert len(server.requests) == count
    again = row.resume(stream.token, origin=server.origin, params={"ref": "q7f3a9", "api_key": "k2"})
    assert len(await row.read(again)) == 6
    assert server.requests[-1].query == {"topic": "news", "ref": "q7f3a9", "api_key": "k2"}
    # It is missing in the place of the second process as well.
    with pytest.raises(ValueError, match="'ref'"):
        row.resume(again.token, origin=server.origin)


async def test_a_value_of_the_callers_takes_the_place_of_the_clients(row: Row, flaky_server: Start) -> None:
    server = flaky_server(LOG)
    client = row.client(params={"topic": "all"})
    stream = row.connect("GET", server.url, client=client, params={"topic": "news"})
    await row.read(stream)
    assert stream.checkpoint.url.endswith("?topic=news")
