"""Redirects are followed by us, and credentials stay at home (rule 10, guarantee G7). Two servers are two origins."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream.protocols import LastEventID
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ScriptedClient, numbered

if TYPE_CHECKING:
    from ..conftest import Row

Start = Callable[..., FlakyServer]
ALL = [str(n) for n in range(1, 13)]
CUT = Fault.cut(after_events=5)
SECRETS = ("s3cret-header", "s3cret-cookie", "s3cret-query", "s3cret-client", "s3cret-jar", "s3cret-auth")


async def ids(row: Row, stream: Any) -> list[str]:
    return [event.id for event in await row.read(stream)]


def secretive(row: Row, method: str, url: str, **options: Any) -> Any:
    """A stream that has something to lose in every place."""
    client = row.client(
        headers={"X-Client": "s3cret-client", "Authorization": "Bearer s3cret-auth"},
        cookies={"jar": "s3cret-jar"},
        params={"client_key": "s3cret-query"},
    )
    return row.connect(
        method,
        url,
        client=client,
        headers={"X-Api-Key": "s3cret-header"},
        cookies={"session": "s3cret-cookie"},
        params={"api_key": "s3cret-query"},
        **options,
    )


def assert_bare(request: RecordedRequest) -> None:
    told = f"{request.url} {dict(request.headers)} {request.body!r}"
    assert not [secret for secret in SECRETS if secret in told]
    allowed = {"host", "accept", "accept-encoding", "cache-control", "connection", "user-agent", "last-event-id"}
    assert set(request.headers) <= allowed


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_the_same_origin_is_followed_with_everything(row: Row, flaky_server: Start, status: int) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/moved", status=status), CUT, Fault.redirect("/again", status=status)])
    assert await ids(row, secretive(row, "GET", server.url)) == ALL
    assert [request.path for request in server.requests] == ["/stream", "/moved", "/stream", "/again", "/stream"]
    for request in server.requests:
        assert request.headers["x-api-key"] == "s3cret-header"
        assert request.headers["authorization"] == "Bearer s3cret-auth"
        assert "session=s3cret-cookie" in request.headers["cookie"]
    assert [request.last_event_id for request in server.requests] == [None, None, "5", "5", "12"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_origin_gets_a_bare_request(row: Row, flaky_server: Start, status: int) -> None:
    there = flaky_server(numbered(12), [CUT])
    here = flaky_server(numbered(12), [Fault.redirect(there.url + "?ticket=7", status=status)] * 9)
    stream = secretive(row, "GET", here.url)
    assert await ids(row, stream) == ALL
    # The resume goes to the first origin again, and is redirected anew: nothing of there is remembered.
    assert len(there.requests) == len(here.requests) == 3
    for request in there.requests:
        assert_bare(request)
        assert request.query == {"ticket": "7"}
    assert [request.last_event_id for request in there.requests] == [None, "5", "12"]
    assert stream.checkpoint.url.startswith(here.origin)


class Signed:
    """An auth flow of the caller's: a callable that signs the request it is given."""

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = "Signature s3cret-auth"
        request.headers["X-Signed-Url"] = str(request.url)
        return request


def auth_of(row: Row, kind: str, folder: Path) -> Any:
    match kind:
        case "basic":
            return ("me", "s3cret-auth")
        case "digest":
            return row.module.DigestAuth("me", "s3cret-auth")
        case "netrc":
            # The default entry is for any host.
            file = folder / "netrc"
            file.write_text("default login me password s3cret-auth\n")
            return row.module.NetRCAuth(str(file))
        case _:
            return Signed()


AUTHS = ("basic", "callable", "digest", "netrc")
CHALLENGE = {"www-authenticate": 'Digest realm="r", qop="auth", nonce="n", algorithm=MD5'}


def challenging(kind: str) -> Callable[[RecordedRequest], Reply | None]:
    """A server that wants a digest: whoever has credentials would answer with them."""
    return lambda request: (
        Reply(status=401, headers=CHALLENGE) if kind == "digest" and "authorization" not in request.headers else None
    )


@pytest.mark.parametrize("of", ["client", "call"])
@pytest.mark.parametrize("kind", AUTHS)
async def test_a_redirect_to_another_origin_gets_no_credentials_of_the_clients_auth(
    row: Row, flaky_server: Start, tmp_path: Path, kind: str, of: str
) -> None:
    """The library applies its `auth` to whatever it is given to send, a bare request too, unless it is told not to."""
    there = flaky_server(numbered(12), [CUT] * 9, on_request=challenging(kind))
    here = flaky_server(numbered(12), [CUT, *[Fault.redirect(there.url, status=307)] * 9], on_request=challenging(kind))
    auth = auth_of(row, kind, tmp_path)
    client = row.client(
        auth=auth if of == "client" else None, cookies={"jar": "s3cret-jar"}, headers={"X-Client": "s3cret-client"}
    )
    options = {"auth": auth} if of == "call" else {}
    stream = row.connect("GET", here.url, client=client, headers={"X-Api-Key": "s3cret-header"}, **options)
    if kind == "digest":
        # Bare, it can only be refused: the credentials are another origin's.
        with pytest.raises(rs.ResponseRejected, match="401"):
            await row.read(stream)
    else:
        assert await ids(row, stream) == ALL
    assert there.requests
    for request in there.requests:
        assert_bare(request)
    # At home they are sent, at every connection.
    assert all("authorization" in request.headers for request in here.requests if request.last_event_id)
    assert any(request.last_event_id for request in here.requests)


@pytest.mark.limit_of_aiohttp("it keeps cookies of its own, and sends them to every port of the host that set them")
async def test_a_cookie_that_the_server_set_is_not_sent_to_another_port(row: Row, flaky_server: Start) -> None:
    there = flaky_server(numbered(12))
    moved = Fault.redirect(there.url.replace("127.0.0.1", "localhost"))
    here = flaky_server(numbered(12), [Fault.cut(after_events=5, how="clean"), moved], headers={"set-cookie": "jar=s3cret-jar"})
    assert await ids(row, row.connect("GET", here.url.replace("127.0.0.1", "localhost"))) == ALL
    assert here.requests[1].headers["cookie"] == "jar=s3cret-jar"
    assert there.requests
    for request in there.requests:
        assert_bare(request)


@pytest.mark.limit_of_aiohttp("it refuses a URL with credentials, since httpx has put them into a header")
async def test_credentials_in_the_url_stay_at_home(row: Row, flaky_server: Start) -> None:
    there = flaky_server(numbered(12))
    here = flaky_server(numbered(12), [CUT, *[Fault.redirect(there.url, status=302)] * 9])
    url = here.url.replace("://", "://me:s3cret-auth@")
    assert await ids(row, row.connect("GET", url)) == ALL
    assert there.requests
    for request in there.requests:
        assert_bare(request)


@pytest.mark.parametrize("kind", AUTHS)
async def test_a_redirect_below_an_sdk_gets_no_credentials_of_the_clients_auth(
    row: Row, flaky_server: Start, tmp_path: Path, kind: str
) -> None:
    """Auth is applied above a transport, so the resumed request has what it made of it; another origin gets none of that."""
    there = flaky_server(numbered(12), on_request=challenging(kind))
    here = flaky_server(numbered(12), [CUT, *[Fault.redirect(there.url, status=307)] * 9], on_request=challenging(kind))
    transports = importlib.import_module(f"resumable_stream.transports.{row.family}")
    transport = transports.ResumableTransport() if row.sync else transports.AsyncResumableTransport()
    client = row.keep(
        row.client_class(transport=transport, auth=auth_of(row, kind, tmp_path), cookies={"jar": "s3cret-jar"}, trust_env=False)
    )
    request = client.build_request("GET", here.url, headers={"X-Api-Key": "s3cret-header"})
    response = client.send(request, stream=True) if row.sync else await client.send(request, stream=True)
    try:
        if row.sync:
            response.read()
        else:
            await response.aread()
        assert response.text.count("data:") == 12
    except rs.ResponseRejected:
        assert kind == "digest"
    finally:
        _ = response.close() if row.sync else await response.aclose()
    assert there.requests
    for request in there.requests:
        assert_bare(request)
    assert all("authorization" in request.headers for request in here.requests if request.last_event_id)


async def test_a_bare_request_stays_bare_when_it_is_redirected_further(row: Row, flaky_server: Start) -> None:
    there = flaky_server(numbered(12), [Fault.redirect("/elsewhere"), None])
    here = flaky_server(numbered(12), [Fault.redirect(there.url), None])
    assert await ids(row, secretive(row, "GET", here.url)) == ALL
    assert [request.path for request in there.requests] == ["/stream", "/elsewhere"]
    for request in there.requests:
        assert_bare(request)


async def test_a_bare_request_that_is_sent_back_home_stays_bare(row: Row, flaky_server: Start) -> None:
    # Another origin must not be able to choose which URL of ours is asked with our credentials.
    there = flaky_server(numbered(12))
    here = flaky_server(numbered(12), [Fault.redirect(there.url)])
    there._schedule = iter([Fault.redirect(here.origin + "/delete-everything")])
    assert await ids(row, secretive(row, "GET", here.url)) == ALL
    assert here.requests[1].path == "/delete-everything"
    assert_bare(here.requests[1])


@pytest.mark.parametrize("status", [307, 308])
async def test_a_post_is_redirected_within_its_origin_with_its_body(row: Row, flaky_server: Start, status: int) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/moved", status=status)])
    assert await ids(row, row.connect("POST", server.url, json={"a": 1})) == ALL
    assert [(request.method, request.path, request.json()) for request in server.requests] == [
        ("POST", "/stream", {"a": 1}),
        ("POST", "/moved", {"a": 1}),
    ]


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_post_becomes_a_get_where_browsers_do_so(row: Row, flaky_server: Start, status: int) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/result", status=status)])
    assert await ids(row, row.connect("POST", server.url, json={"a": 1})) == ALL
    assert [(request.method, request.path, request.body) for request in server.requests][1:2] == [("GET", "/result", b"")]
    assert "content-type" not in server.requests[1].headers


@pytest.mark.parametrize("failure", ["connect_error", "read_error", Reply(status=503)])
async def test_a_post_that_a_redirect_has_answered_is_sent_once(
    row: Row, scripted_client: Callable[..., ScriptedClient], failure: Any
) -> None:
    moved = Reply(status=303, headers={"location": "/jobs/1"})
    done = Reply(body=[b"id: 1\ndata: [DONE]\n\n"])
    script = scripted_client([moved, failure, failure, done], row.family)
    assert await ids(row, row.connect("POST", "https://example.com/s", json={"a": 1}, client=row.scripted(script))) == ["1"]
    assert [(request.method, request.path) for request in script.requests] == [("POST", "/s"), *[("GET", "/jobs/1")] * 3]


async def test_a_401_behind_such_a_redirect_refreshes_the_get_alone(row: Row, flaky_server: Start) -> None:
    tokens = iter(range(10))

    def answer(request: RecordedRequest) -> Reply | None:
        if request.method == "POST":
            return Reply(status=303, headers={"location": "/stream"})
        return None if request.headers["authorization"] == "Bearer 2" else Reply(status=401, body=b"who are you?")

    server = flaky_server(numbered(12), on_request=answer, no_content_at_end=True)
    stream = row.connect("POST", server.url, json={}, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})
    assert await ids(row, stream) == ALL
    assert [request.method for request in server.requests].count("POST") == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_post_to_another_origin_is_refused(row: Row, flaky_server: Start, status: int) -> None:
    there = flaky_server(numbered(12))
    here = flaky_server(numbered(12), [Fault.redirect(there.url, status=status)])
    with pytest.raises(rs.OriginMismatch) as caught:
        await row.read(secretive(row, "POST", here.url, json={"a": 1}))
    assert (caught.value.expected, caught.value.received) == (here.origin, there.origin)
    assert there.requests == []
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


async def test_https_is_not_left_for_http(row: Row, scripted_client: Callable[..., ScriptedClient]) -> None:
    script = scripted_client([Reply(status=302, headers={"location": "http://example.com/s"})], row.family)
    with pytest.raises(rs.OriginMismatch):
        await row.read(row.connect("GET", "https://example.com/s", client=row.scripted(script)))
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    "location",
    ["ftp://example.com/s", "file:///etc/passwd", "//[", "https://example.com:99999/s", "https://user:pw@other.example/s"],
)
async def test_an_odd_location_is_an_error_of_ours(
    row: Row, scripted_client: Callable[..., ScriptedClient], location: str
) -> None:
    script = scripted_client([Reply(status=302, headers={"location": location}), Reply(status=400)], row.family)
    with pytest.raises(rs.ResumableStreamError) as caught:
        await row.read(row.connect("GET", "https://example.com/s", client=row.scripted(script)))
    assert "pw" not in str(caught.value)


async def test_a_redirect_without_a_location_is_rejected(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.status(302)])
    with pytest.raises(rs.ResumableStreamError):
        await row.read(row.connect("GET", server.url))


async def test_redirects_in_a_circle_end(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/stream")] * 100)
    with pytest.raises(rs.ResponseRejected, match="more than 5 redirects"):
        await row.read(row.connect("GET", server.url))
    assert len(server.requests) == 6


async def test_five_redirects_are_followed_at_every_connection(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [*[Fault.redirect("/a")] * 5, CUT, *[Fault.redirect("/a")] * 5])
    assert await ids(row, row.connect("GET", server.url)) == ALL


async def test_the_clients_params_do_not_wipe_out_the_query_of_a_redirect(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/signed?sig=abc")])
    assert await ids(row, row.connect("GET", server.url, client=row.client(params={"v": "1"}))) == ALL
    assert server.requests[1].query["sig"] == "abc"


async def test_a_redirect_that_fails_is_started_again_from_the_first_url(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [Fault.redirect("/a"), *[Fault.no_answer()] * row.sends, Fault.redirect("/b"), CUT])
    assert await ids(row, row.connect("GET", server.url)) == ALL
    assert [request.path for request in server.requests] == [
        "/stream",
        *["/a"] * row.sends,
        "/stream",
        "/b",
        "/stream",
        "/stream",
    ]


# --- resume URLs


@pytest.mark.parametrize("header", ["location", "content_location"])
async def test_a_resume_url_on_another_origin_is_refused(row: Row, flaky_server: Start, header: str) -> None:
    there = flaky_server(numbered(12))
    here = flaky_server(numbered(12), [CUT], **{header: there.url})
    with pytest.raises(rs.OriginMismatch) as caught:
        await row.read(secretive(row, "POST", here.url, json={}))
    assert there.requests == []
    assert caught.value.checkpoint is not None


async def test_a_resume_url_of_the_callers_protocol_on_another_origin_is_refused(row: Row, flaky_server: Start) -> None:
    there = flaky_server(numbered(12))
    here = flaky_server(numbered(12), [CUT])
    with pytest.raises(rs.OriginMismatch):
        await row.read(secretive(row, "POST", here.url, json={}, protocol=LastEventID(resume=there.url)))
    assert there.requests == []


async def test_the_same_host_under_another_scheme_or_port_is_another_origin(row: Row, flaky_server: Start) -> None:
    server = flaky_server(numbered(12), [CUT])
    other = server.url.replace("http://", "https://")
    with pytest.raises(rs.OriginMismatch):
        await row.read(row.connect("POST", server.url, json={}, protocol=LastEventID(resume=other)))


@pytest.mark.parametrize(
    "location", ["//[", "https://example.com:99999/s", "ftp://example.com/s", "https://user:pw@example.com/s"]
)
async def test_an_odd_resume_url_is_an_error_of_ours_or_no_resume_url(
    row: Row, scripted_client: Callable[..., ScriptedClient], location: str
) -> None:
    headers = {"content-type": "text/event-stream", "location": location}
    script = scripted_client(
        [Reply(headers=headers, body=[b"id: 1\ndata: 1\n\n", "read_error"]), *[Reply(status=204)] * 3], row.family
    )
    stream = row.connect("POST", "https://example.com/s", json={}, client=row.scripted(script))
    told = ""
    try:
        await row.read(stream)
    except rs.ResumableStreamError as error:
        told = str(error)
    assert "pw" not in told + stream.token + stream.checkpoint.to_json()
