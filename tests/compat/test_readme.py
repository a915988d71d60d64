"""
The examples in httpx-sse's own README, run as they stand in the installed package: only the import and the address are changed.

What they import beside httpx (stamina, sse-starlette) is stood in for by a few lines: neither is what is looked at here.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import httpx_sse
import pytest
import tenacity
from starlette.responses import StreamingResponse

import resumable_stream as rs
from resumable_stream.compat import httpx_sse as compat
from resumable_stream.testing import Fault, ServerEvent, numbered

EXAMPLES = re.findall(r"```python\n(.*?)```", str(importlib.metadata.metadata("httpx-sse").get_payload()), re.DOTALL)


def example(*words: str) -> str:
    """The README's example with all of these words, as code for us."""
    (found,) = (text for text in EXAMPLES if all(word in text for word in words))
    return found.replace("from httpx_sse import", "from resumable_stream.compat.httpx_sse import")


def run(code: str, url: str, **names: Any) -> dict[str, Any]:
    names = {"__name__": "readme", **names}
    exec(compile(code.replace("http://localhost:8000/sse", url), "<README of httpx-sse>", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' clients read the environment."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stood_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(name: str, **members: Any) -> None:
        parent, _, child = name.partition(".")
        package = ModuleType(parent)
        package.__dict__.update(members if not child else {child: ModuleType(name)})
        monkeypatch.setitem(sys.modules, parent, package)
        if child:
            package.__dict__[child].__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, package.__dict__[child])

    return put


def test_the_quickstart_goes_on_where_it_was_cut(flaky_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    log = [ServerEvent(id=str(n), data=str(n), retry=n % 2 or None) for n in range(5)]
    server = flaky_server(log, [Fault.cut(after_events=2), Fault.cut(after_bytes=40)])
    run(example("connect_sse(client, ", "sse.retry)"), server.url)
    assert capsys.readouterr().out == "message 0 0 None\nmessage 1 1 1\nmessage 2 2 None\nmessage 3 3 1\nmessage 4 4 None\n"


def test_the_call_into_a_web_app(stood_in: Callable[..., None]) -> None:
    async def blocks(events: Any) -> Any:
        async for event in events:
            yield "".join(f"{name}: {value}\r\n" for name, value in event.items()) + "\r\n"

    def event_source_response(events: Any) -> StreamingResponse:
        return StreamingResponse(blocks(events), media_type="text/event-stream")

    stood_in("sse_starlette.sse", EventSourceResponse=event_source_response)
    # `asyncio.run(main())` and the assertions are in the example.
    names = run(example("ASGITransport"), "http://localhost:8000/sse")
    assert names["aconnect_sse"] is compat.aconnect_sse


def test_the_recipe_for_reconnections_finds_nothing_left_to_do(
    flaky_server: Any, stood_in: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    retried: list[Any] = []
    stood_in("stamina", retry=lambda on: tenacity.retry(retry=tenacity.retry_if_exception_type(on), before_sleep=retried.append))
    server = flaky_server(numbered(9), [Fault.cut(after_events=3), Fault.cut(after_bytes=50, how="fin")])
    names = run(example("def iter_sse_retrying"), server.url)
    run(example("in iter_sse_retrying"), server.url, **{**names, "httpx": httpx})
    assert capsys.readouterr().out == "".join(f"message event {n}\n" for n in range(1, 10))
    assert not retried


def test_the_status_may_be_checked_first(flaky_server: Any) -> None:
    code = example("raise_for_status", "...")
    server = flaky_server(numbered(2), [None, None, Fault.status(403)])
    with httpx.Client() as client:

        def connect_sse(_: object) -> Any:
            return compat.connect_sse(client, "GET", server.url)

        run(code, "unused", connect_sse=connect_sse)
        with pytest.raises(httpx.HTTPStatusError, match="403 Forbidden"):
            run(code, "unused", connect_sse=connect_sse)


def test_an_error_is_caught_as_the_readme_says(flaky_server: Any) -> None:
    # "if the connection breaks while attempting to read from the server, you will get an httpx.ReadError from iter_sse()"
    server = flaky_server(numbered(2), [Fault.cut(after_events=1)])
    with httpx.Client() as client, compat.connect_sse(client, "POST", server.url) as event_source:
        with pytest.raises(httpx.ReadError) as caught:
            list(event_source.iter_sse())
    assert isinstance(caught.value, rs.ResumableStreamError)


def test_an_error_is_caught_as_the_readme_says_in_async(flaky_server: Any) -> None:
    server = flaky_server(numbered(2), [Fault.cut(after_events=1)])

    async def main() -> None:
        async with httpx.AsyncClient() as client:
            async with compat.aconnect_sse(client, "POST", server.url) as event_source:
                async for sse in event_source.aiter_sse():
                    assert isinstance(sse, httpx_sse.ServerSentEvent)

    with pytest.raises(httpx.ReadError):
        asyncio.run(main())
