"""The caller's client: what it is, what is asked of it at each connection, and that it stays as it was."""

from __future__ import annotations

import base64
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urljoin

import httpx
import httpx2
import pytest

import resumable_stream as rs
from resumable_stream._contract import Request, StreamState
from resumable_stream.protocols import ByteRange, LastEventID
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ScriptedClient, numbered

if TYPE_CHECKING:
    from tests.conftest import Row

Start = Callable[..., FlakyServer]
ALL = [str(n) for n in range(1, 13)]
CUT = Fault.cut(after_events=5)


async def ids(row: Row, stream: Any) -> list[str]:
    return [event.id for event in await row.read(stream)]


# --- which clients


async def test_a_given_client_is_not_closed_and_keeps_its_settings(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, Fault.cut(after_events=2, how="silence")])
    client = row.client(
        headers={"X-Mine": "1"}, cookies={"c": "1"}, params={"p": "1"}, timeout=7.5, follow_redirects=True, auth=("me", "pw")
    )
    before = (
        dict(client.headers),
        dict(client.cookies),
        str(client.params),
        client.timeout,
        client.follow_redirects,
        client.auth,
    )
    assert await ids(row, row.connect("GET", server.url, client=client, timeouts=rs.Timeouts(idle=0.1))) == ALL
    after = (dict(client.headers), dict(client.cookies), str(client.params), client.timeout, client.follow_redirects, client.auth)
    assert after == before
    assert not client.is_closed
    for request in server.requests:
        assert request.headers["x-mine"] == "1"
        assert request.headers["cookie"] == "c=1"
        assert request.headers["authorization"] == f"Basic {base64.b64encode(b'me:pw').decode()}"
        assert request.query == {"p": "1"}
    response = client.get(server.url) if row.sync else await client.get(server.url)
    assert response.status_code == 200


async def test_arguments_of_the_caller_are_not_written_to(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT])
    headers, params, extensions, cookies = {"X-Mine": "1"}, {"p": "1"}, {"mine": 1}, {"c": "1"}
    stream = row.connect("GET", server.url, headers=headers, params=params, extensions=extensions, cookies=cookies)
    assert await ids(row, stream) == ALL
    assert (headers, params, extensions, cookies) == ({"X-Mine": "1"}, {"p": "1"}, {"mine": 1}, {"c": "1"})
    for request in server.requests:
        assert request.headers["x-mine"] == "1"
        assert request.headers["cookie"] == "c=1"
        assert request.query == {"p": "1"}


@pytest.mark.parametrize("relative", ["stream", "/stream", httpx.URL("stream")])
async def test_a_relative_url_is_joined_to_the_base_url(row: Row, flaky_server: Start, relative: Any) -> None:
    server = flaky_server(numbered(12), [CUT], path="/v1/stream")
    client = row.client(base_url=server.origin + "/v1")
    stream = row.connect("GET", relative if isinstance(relative, str) else row.module.URL("stream"), client=client)
    assert await ids(row, stream) == ALL
    assert {request.path for request in server.requests} == {"/v1/stream"}
    assert stream.checkpoint.url == server.url


async def test_subclasses_as_sdks_make_them_are_taken(row: Row, flaky_server: Start) -> None:
    base = row.client_class

    class SDKHttpxClient(base):
        """As in generated SDKs: own defaults, own finaliser, extra attributes."""

        def __init__(self, **options: Any) -> None:
            options.setdefault("timeout", 3.0)
            options.setdefault("follow_redirects", True)
            super().__init__(**options)
            self.sent = 0

        def build_request(self, *args: Any, **options: Any) -> Any:
            request = super().build_request(*args, **options)
            request.headers["X-SDK"] = "yes"
            return request

    class Wrapper(SDKHttpxClient):
        pass

    server = flaky_server(numbered(12), [CUT])
    stream = row.connect("GET", server.url, client=row.keep(Wrapper(trust_env=False)))
    assert await ids(row, stream) == ALL
    assert all(request.headers["x-sdk"] == "yes" for request in server.requests)


@pytest.mark.parametrize("connect", [rs.connect, rs.aconnect])
@pytest.mark.parametrize("client", ["text", object(), httpx, httpx.Client, httpx2.AsyncClient, type("Client", (), {})()])
def test_a_client_of_neither_family_is_refused_and_both_are_named(connect: Any, client: Any) -> None:
    want = "Client" if connect is rs.connect else "AsyncClient"
    with pytest.raises(TypeError, match=rf"httpx\.{want} or an httpx2\.{want}"):
        connect("GET", "https://example.com", client=client)


@pytest.mark.parametrize("module", [httpx, httpx2])
def test_a_client_of_the_other_colour_is_refused_with_the_right_function(module: Any) -> None:
    with module.Client(trust_env=False) as client, pytest.raises(TypeError, match=r"Client is for connect\(\)"):
        rs.aconnect("GET", "https://example.com", client=client)
    with pytest.raises(TypeError, match=r"AsyncClient is for aconnect\(\)"):
        rs.connect("GET", "https://example.com", client=module.AsyncClient(trust_env=False))


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
async def test_a_closed_client_says_so_and_the_place_is_known(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    client = row.client()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await row.connect("GET", server.url, client=client).open()


def test_httpx2_under_the_name_of_httpx_is_told_right(flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT] * 4)
    program = """
        import sys, httpx2
        httpx2.alias_httpx()
        import httpx
        import resumable_stream as rs
        assert httpx.Client.__module__.startswith("httpx2"), httpx.Client.__module__
        from resumable_stream import _api
        class Fixed:
            random = staticmethod(lambda: 0.0)
        _api.random = Fixed
        for client in (httpx.Client(trust_env=False), None):
            with rs.connect("GET", sys.argv[1], client=client) as stream:
                print(*[event.id for event in stream])
            if client is not None:
                client.close()
        import asyncio
        async def main():
            async with httpx.AsyncClient(trust_env=False) as client:
                async with rs.aconnect("GET", sys.argv[1], client=client) as stream:
                    print(*[event.id async for event in stream])
        asyncio.run(main())
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), server.url], capture_output=True, text=True, timeout=200
    )
    assert (result.stdout.splitlines(), result.stderr) == ([" ".join(ALL)] * 3, "")


def test_importing_the_package_imports_no_client() -> None:
    program = (
        "import sys, resumable_stream; print([name for name in sys.modules if name.startswith(('httpx', 'httpcore', 'anyio'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert result.stdout.strip() == "[]"


def test_streaming_with_httpx_never_imports_httpx2(flaky_server: Start) -> None:
    server = flaky_server(numbered(12))
    program = """
        import sys, resumable_stream as rs
        with rs.connect("GET", sys.argv[1]) as stream:
            print(len(list(stream)), "httpx2" in sys.modules)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), server.url], capture_output=True, text=True, timeout=200
    )
    assert (result.stdout.strip(), result.stderr) == ("12 False", "")


# --- its transports and hooks


async def test_a_mount_serves_the_stream(row: Row, scripted_client: Callable[..., ScriptedClient]) -> None:
    script = scripted_client(
        [Reply(body=[b"id: 1\ndata: 1\n\n", "read_error"]), Reply(body=[b"id: 2\ndata: [DONE]\n\n"])], row.family
    )
    client = row.client(mounts={"https://mounted.example": script.transport()})
    assert await ids(row, row.connect("GET", "https://mounted.example/s", client=client)) == ["1", "2"]
    assert script.requests[1].last_event_id == "1"


async def test_hooks_are_called_at_every_connection(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, CUT])
    asked: list[str | None] = []
    answered: list[int] = []

    def on_request(request: Any) -> None:
        asked.append(request.headers.get("last-event-id"))
        request.headers["X-Hook"] = "was here"

    def on_response(response: Any) -> None:
        answered.append(response.status_code)

    async def on_request_async(request: Any) -> None:
        on_request(request)

    async def on_response_async(response: Any) -> None:
        on_response(response)

    hooks = (on_request, on_response) if row.sync else (on_request_async, on_response_async)
    client = row.client(event_hooks={"request": [hooks[0]], "response": [hooks[1]]})
    assert await ids(row, row.connect("GET", server.url, client=client)) == ALL
    assert asked == [None, "5", "10", "12"]
    assert answered == [200] * 4
    assert all(request.headers["x-hook"] == "was here" for request in server.requests)


def _raising(row: Row) -> dict[str, list[Any]]:
    def hook(response: Any) -> None:
        response.raise_for_status()

    async def hook_async(response: Any) -> None:
        response.raise_for_status()

    return {"response": [hook if row.sync else hook_async]}


async def test_a_hook_that_raises_for_status_does_not_end_the_stream(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.status(503), CUT, Fault.status(502, body=b"oops"), CUT, Fault.status(429)])
    client = row.client(event_hooks=_raising(row))
    assert await ids(row, row.connect("GET", server.url, client=client)) == ALL


async def test_a_hook_that_raises_for_a_status_that_is_final_gives_our_error(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, Fault.status(400, body=b'{"error": "no"}')])
    stream = row.connect("GET", server.url, client=row.client(event_hooks=_raising(row)))
    with pytest.raises(rs.ResponseRejected) as caught:
        await row.read(stream)
    assert caught.value.status == 400
    assert stream.checkpoint.offset == 5


async def test_a_hook_that_raises_for_a_redirect_does_not_stop_it_from_being_followed(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/moved"), CUT])
    assert await ids(row, row.connect("GET", server.url, client=row.client(event_hooks=_raising(row)))) == ALL
    assert server.requests[1].path == "/moved"


# --- credentials


def _bearer(row: Row, tokens: Iterator[str]) -> Any:
    class Bearer(row.module.Auth):  # type: ignore[misc, name-defined]
        """Refreshes on 401, as OAuth flows do."""

        token = next(tokens)

        def auth_flow(self, request: Any) -> Any:
            request.headers["Authorization"] = f"Bearer {self.token}"
            response = yield request
            if response.status_code == 401:
                self.token = next(tokens)
                request.headers["Authorization"] = f"Bearer {self.token}"
                yield request

    return Bearer()


def guarded(flaky_server: Start, allowed: Callable[[int], str], schedule: list[Fault]) -> FlakyServer:
    """A server that lets in only the token that is valid at the n-th request."""

    def check(request: RecordedRequest) -> Reply | None:
        valid = allowed(len(server.requests))
        return None if request.headers.get("authorization") == f"Bearer {valid}" else Reply(status=401, body=b"who are you?")

    server = flaky_server(numbered(12), schedule, on_request=check)
    return server


@pytest.mark.parametrize("where", ["client", "call"])
async def test_an_auth_flow_refreshes_on_a_reconnect_and_the_stream_goes_on(row: Row, flaky_server: Start, where: str) -> None:
    server = guarded(flaky_server, lambda count: "old" if count == 1 else "new", [CUT])
    auth = _bearer(row, iter(["old", "new"]))
    if where == "client":
        stream = row.connect("GET", server.url, client=row.client(auth=auth))
    else:
        stream = row.connect("GET", server.url, auth=auth)
    assert await ids(row, stream) == ALL
    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]
    assert [request.last_event_id for request in server.requests] == [None, "5", "5", "12"]


async def test_an_auth_flow_refreshes_at_the_start_of_a_post(row: Row, flaky_server: Start) -> None:
    server = guarded(flaky_server, lambda count: "new", [])
    stream = row.connect("POST", server.url, json={"a": 1}, auth=_bearer(row, iter(["old", "new"])))
    assert await ids(row, stream) == ALL
    assert [request.json() for request in server.requests] == [{"a": 1}] * 2


async def test_a_callable_for_headers_is_asked_at_every_connection(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, Fault.status(503), CUT])
    tokens = iter(range(100))
    stream = row.connect("GET", server.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
    assert await ids(row, stream) == ALL
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {n}" for n in range(5)]


async def test_a_401_on_a_reconnect_is_answered_once_with_fresh_headers(row: Row, flaky_server: Start) -> None:
    server = guarded(flaky_server, lambda count: "0" if count == 1 else "2", [CUT])
    tokens = iter(range(100))
    stream = row.connect("GET", server.url, headers=lambda: {"Authorization": f"Bearer {min(next(tokens), 2)}"})
    assert await ids(row, stream) == ALL
    assert [request.headers["authorization"][7:] for request in server.requests] == ["0", "1", "2", "2"]


async def test_a_401_that_fresh_headers_do_not_mend_ends_the_stream(row: Row, flaky_server: Start) -> None:
    server = guarded(flaky_server, lambda count: "0" if count == 1 else "never", [CUT])
    tokens = iter(range(100))
    stream = row.connect("GET", server.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
    with pytest.raises(rs.ResponseRejected) as caught:
        await row.read(stream)
    assert caught.value.status == 401
    assert len(server.requests) == 3
    assert stream.checkpoint.offset == 5


async def test_each_401_after_new_events_may_be_refreshed_again(row: Row, flaky_server: Start) -> None:
    # A token may run out many times in a long answer.
    valid = {1: "0", 2: "2", 3: "2", 4: "4", 5: "4"}
    server = guarded(flaky_server, lambda count: valid.get(count, "5"), [CUT, CUT])
    tokens = iter(range(100))
    stream = row.connect("GET", server.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
    assert await ids(row, stream) == ALL


async def test_no_auth_can_be_asked_for(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT])
    stream = row.connect("GET", server.url, client=row.client(auth=("me", "pw")), auth=None)
    assert await ids(row, stream) == ALL
    assert all("authorization" not in request.headers for request in server.requests)


async def test_a_cookie_set_by_the_first_answer_comes_back_at_the_reconnect(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT], headers={"set-cookie": "sticky=node-7; Path=/"})
    assert await ids(row, row.connect("GET", server.url)) == ALL
    assert [request.headers.get("cookie") for request in server.requests] == [None, "sticky=node-7", "sticky=node-7"]


# --- what is asked of the server


async def test_defaults_are_sent_and_the_caller_wins(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT])
    await ids(row, row.connect("GET", server.url, protocol=LastEventID()))
    for request in server.requests:
        assert request.headers["accept"] == "text/event-stream"
        assert request.headers["accept-encoding"] == "identity"
        # Fetch, "HTTP-network-or-cache fetch": cache mode "no-store", which EventSource sets, sends `Cache-Control: no-cache`.
        assert request.headers["cache-control"] == "no-cache"
    server.requests.clear()
    mine = {"accept": "text/event-stream; v=2", "Accept-Encoding": "gzip", "cache-control": "max-age=5"}
    await ids(row, row.connect("GET", server.url, headers=mine))
    for request in server.requests:
        assert request.headers["accept"] == "text/event-stream; v=2"
        assert request.headers["accept-encoding"] == "gzip"
        assert request.headers["cache-control"] == "max-age=5"
    server.requests.clear()
    await ids(row, row.connect("GET", server.url, client=row.client(headers=mine)))
    for request in server.requests:
        assert request.headers["accept"] == "text/event-stream; v=2"
        assert request.headers["accept-encoding"] == "gzip"


async def test_byte_ranges_are_always_of_the_identity(row: Row, flaky_server: Start) -> None:
    server = flaky_server(bytes(1000), [Fault.cut(after_bytes=300)], format="bytes", etag='"v1"')
    stream = row.connect("GET", server.url, protocol=ByteRange(), headers={"Accept-Encoding": "gzip"})
    assert b"".join(chunk.data for chunk in await row.read(stream)) == bytes(1000)
    assert [request.headers["accept-encoding"] for request in server.requests] == ["identity", "identity"]
    assert server.requests[1].headers["range"] == "bytes=300-"
    assert server.requests[1].headers["if-range"] == '"v1"'


async def test_the_body_of_a_post_stays_with_the_post(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT, CUT], location="/runs/7/stream?from=start")
    stream = row.connect(
        "POST", server.url, json={"prompt": "ünï"}, params={"p": "1"}, headers={"X-Mine": "1", "Idempotency-Key": "k"}
    )
    assert await ids(row, stream) == ALL
    first, *others = server.requests
    assert (first.method, first.json(), first.query) == ("POST", {"prompt": "ünï"}, {"p": "1"})
    assert others
    for request in others:
        assert (request.method, request.path, request.body) == ("GET", "/runs/7/stream", b"")
        assert request.query == {"from": "start"}
        assert not {"content-type", "content-length", "transfer-encoding"} & set(request.headers)
        assert request.headers["x-mine"] == "1"


async def test_a_resume_url_keeps_its_own_query_beside_the_clients(row: Row, flaky_server: Start) -> None:
    # The libraries replace a URL's query by the client's params; the server's own `?run=7` must survive that.
    server = flaky_server(numbered(12), [CUT], location="/stream?run=7")
    stream = row.connect("POST", server.url, json={}, client=row.client(params={"v": "1"}))
    assert await ids(row, stream) == ALL
    assert [request.query.get("run") for request in server.requests] == [None, "7", "7"]


@pytest.mark.parametrize("body", [{"data": {"a": "1"}}, {"content": b"a=1"}, {"files": {"f": b"a=1"}}, {"json": {"a": 1}}])
async def test_every_kind_of_body_is_sent_again_whole_when_it_was_not_accepted(
    row: Row, flaky_server: Start, body: dict[str, Any]
) -> None:
    server = flaky_server(numbered(12), [Fault.status(503), Fault.status(429, retry_after=0)])
    assert await ids(row, row.connect("POST", server.url, **body)) == ALL
    lengths = {len(request.body) for request in server.requests}
    assert len(server.requests) == 3
    assert len(lengths) == 1
    assert lengths != {0}


async def test_a_body_that_can_be_sent_only_once_is_never_sent_empty(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.status(503)])

    def pieces() -> Iterator[bytes]:
        yield b"once"

    async def pieces_async() -> Any:
        yield b"once"

    stream = row.connect("POST", server.url, content=pieces() if row.sync else pieces_async())
    with pytest.raises(rs.ResumableStreamError):
        await row.read(stream)
    assert [request.body for request in server.requests if request.body] == [b"once"]


class AsksByPost(LastEventID):
    """Resumes and stops by a POST with a body of its own."""

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="POST", url=urljoin(state.url, "/rest"), json={"after": state.cursor}, repeat="query")

    def cancel_request(self, state: StreamState) -> Request | None:
        return Request(method="POST", url=urljoin(state.url, "/stop"), json={"id": "ü"})


@pytest.mark.parametrize("content", [b"a=1", "pieces"])
async def test_a_body_of_its_own_takes_nothing_of_the_callers(row: Row, flaky_server: Start, content: Any) -> None:
    def rest(request: RecordedRequest) -> Reply | None:
        if request.path == "/rest":
            return Reply(status=307, headers={"location": "/moved"})
        if request.path == "/moved":
            return Reply(body=b"".join(b"id: %d\ndata: x\n\n" % n for n in range(int(request.json()["after"]) + 1, 13)))
        return Reply(status=202) if request.path == "/stop" else None

    def pieces() -> Iterator[bytes]:
        yield b"a=1"

    async def pieces_async() -> Any:
        yield b"a=1"

    if content == "pieces":
        content = pieces() if row.sync else pieces_async()
    server = flaky_server(numbered(12), [CUT], on_request=rest)
    client = row.client(headers={"Content-Type": "text/plain"})
    options = {"content": content, "params": {"p": "1"}, "headers": {"Content-Type": "text/csv"}}
    async with row.connect("POST", server.url, client=client, protocol=AsksByPost(end="close"), **options) as stream:
        got = [event.id async for event in stream]
        await stream.cancel()
    assert got == ALL
    first, *others = server.requests
    assert (first.body, first.headers["content-type"]) == (b"a=1", "text/csv")
    assert [(request.path, request.json(), request.query) for request in others] == [
        ("/rest", {"after": "5"}, {"p": "1"}),
        ("/moved", {"after": "5"}, {}),
        ("/stop", {"id": "ü"}, {}),
    ]
    for request in others:
        assert (request.headers["content-type"], request.headers["content-length"]) == (
            "application/json",
            str(len(request.body)),
        )


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=302, headers={"location": "/elsewhere"}), rs.ResponseRejected),
        (Reply(status=409), rs.ResponseRejected),
        (None, rs.ResumableStreamError),
    ],
    ids=["redirect", "refused", "no answer"],
)
async def test_a_cancel_that_was_not_heard_is_an_error_of_ours(
    row: Row, scripted_client: Callable[..., Any], reply: Reply | None, error: type[Exception]
) -> None:
    begun = Reply(headers={"content-type": "text/event-stream"}, body=[b"id: 1\ndata: x\n\n"])
    lost = row.module.ReadError("reset by peer")
    script = scripted_client([begun, reply if reply is not None else lost], row.family)
    client = row.scripted(script)
    async with row.connect("POST", "https://example.com/s", client=client, protocol=AsksByPost(end="close")) as stream:
        await anext(aiter(stream))
        with pytest.raises(error) as caught:
            await stream.cancel()
    assert isinstance(caught.value, rs.ResumableStreamError)
    assert caught.value.checkpoint is not None
    if error is rs.ResumableStreamError:
        assert caught.value.__cause__ is lost


async def test_the_answer_to_a_cancel_may_not_take_its_time(row: Row, scripted_client: Callable[..., Any]) -> None:
    """Each of its bytes is in time, and all together are not."""
    begun = Reply(headers={"content-type": "text/event-stream"}, body=[b"id: 1\ndata: x\n\n"])
    slow = Reply(status=202, body=[b"a", lambda: time.sleep(0.06), b"b"])
    client = row.scripted(scripted_client([begun, slow], row.family))
    timeouts = rs.Timeouts(connect=0.05)
    async with row.connect(
        "POST", "https://e.com/s", client=client, protocol=AsksByPost(end="close"), timeouts=timeouts
    ) as stream:
        await anext(aiter(stream))
        with pytest.raises(rs.ResumableStreamError, match="got no answer"):
            await stream.cancel()


class AsksByForm(LastEventID):
    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="POST", url=state.url, form={"after": state.cursor or ""}, repeat="body")

    def cancel_request(self, state: StreamState) -> Request | None:
        return Request(method="POST", url=state.url, form={"stop": "ü&"})


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"data": {"a": "1", "after": "0"}}, {"a": "1", "after": "5"}),
        ({"data": {"a": ["1", "ü&"]}}, {"a": "ü&", "after": "5"}),
        ({"content": b"a=1&b=%C3%BC"}, {"a": "1", "b": "ü", "after": "5"}),
        ({}, {"after": "5"}),
        ({"data": {"a": "1"}, "files": {"f": ("f.txt", b"text")}}, None),
    ],
    ids=["form", "several values", "encoded", "nothing", "files"],
)
async def test_fields_are_set_in_the_callers_form(
    row: Row, flaky_server: Start, body: dict[str, Any], fields: dict[str, str] | None
) -> None:
    def rest(request: RecordedRequest) -> Reply | None:
        if b"stop" in request.body:
            return Reply(status=202)
        return Reply(body=b"id: 6\ndata: x\n\n") if b"after" in request.body and len(server.requests) == 2 else None

    headers = {"Content-Type": "application/x-www-form-urlencoded"} if "content" in body else {}
    server = flaky_server(numbered(12), [CUT], on_request=rest)
    async with row.connect("POST", server.url, protocol=AsksByForm(end="close"), headers=headers, **body) as stream:
        assert [event.id async for event in stream] == ALL[:6]
        await stream.cancel()
    resumed, stopped = server.requests[1:]
    if fields is None:
        for part in (b'name="a"', b'name="after"', b'name="f"', b"text"):
            assert part in resumed.body
        assert resumed.headers["content-type"].startswith("multipart/form-data")
    else:
        assert dict(parse_qsl(resumed.body.decode())) == fields
        assert resumed.headers["content-type"] == "application/x-www-form-urlencoded"
    assert (stopped.body, stopped.headers["content-type"]) == (b"stop=%C3%BC%26", "application/x-www-form-urlencoded")


async def test_fields_want_a_form(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT])
    with pytest.raises(TypeError, match="data={…}"):
        await ids(row, row.connect("POST", server.url, json={"a": 1}, protocol=AsksByForm(end="close")))
    assert len(server.requests) == 1


async def test_a_given_read_timeout_and_redirects_of_the_client_do_not_count(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [[Fault.delay(0.1), Fault.heartbeats(after_events=5, count=1, interval=0.1)]])
    client = row.client(timeout=0.06)
    assert await ids(row, row.connect("GET", server.url, client=client)) == ALL
    assert len(server.requests) == 2
