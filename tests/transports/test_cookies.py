"""
Cookies that an answer sets go with the requests that continue it, and to nobody else.

The jar of the SDK's client is above the transport: what the first answer sets reaches it, but a reconnect below would not see
it. A load balancer finds the back end of a session again by such a cookie (punkpeye/mcp-remote#168, docker/docker-agent#2902).
Source: RFC 6265 sections 5.3 (what is stored) and 5.4 (what is sent).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import SSE, Reply, Rig

URL = "https://api.example.com/v1/stream"
EVENTS = [f"id: {n}\ndata: event {n}\n\n".encode() for n in range(1, 5)]
END = b"data: [DONE]\n\n"


def cookies_of(request: Any) -> set[str]:
    assert len(request.headers.get_list("cookie")) <= 1
    return {part for part in request.headers.get("cookie", "").split("; ") if part}


def answers(*each: Reply | Callable[[Any], Reply]) -> Callable[[Any], Reply]:
    left = list(each)

    def answer(request: Any) -> Reply:
        reply = left.pop(0)
        return reply if isinstance(reply, Reply) else reply(request)

    return answer


def part(number: int, cookie: str = "", cut: str = "rst") -> Reply:
    return Reply([EVENTS[number - 1]], cut, headers={**SSE, **({"set-cookie": cookie} if cookie else {})})


LAST = Reply([END])


async def sent(rig: Rig, *each: Any, url: str = URL, client: Any = None, **options: Any) -> list[set[str]]:
    """The cookies of each request."""
    _, chunks = await rig.read(rig.client(answers(*each), client=client), "GET", url, **options)
    assert chunks[-1] == END
    return [cookies_of(request) for request in rig.sent]


async def test_a_resume_has_the_cookie_that_the_first_answer_set(rig: Rig) -> None:
    assert await sent(rig, part(1, "AWSALB=b1; Path=/"), LAST) == [set(), {"AWSALB=b1"}]


async def test_connect_sends_it_too(rig: Rig) -> None:
    """The two must not differ: over a bare client, `connect()` has the client's jar."""
    transport = rig.fake(answers(part(1, "AWSALB=b1; Path=/"), LAST))
    stream = rig.row.connect("GET", URL, client=rig.row.keep(rig.row.client_class(transport=transport)))
    await rig.row.read(stream)
    assert [cookies_of(request) for request in rig.sent] == [set(), {"AWSALB=b1"}]


async def test_a_cookie_that_a_resume_sets_goes_with_the_next(rig: Rig) -> None:
    found = await sent(rig, part(1, "AWSALB=b1; Path=/"), part(2, "AWSALB=b2; Path=/"), part(3), LAST)
    assert found == [set(), {"AWSALB=b1"}, {"AWSALB=b2"}, {"AWSALB=b2"}]


async def test_cookies_of_the_request_stay_and_are_replaced_by_name(rig: Rig) -> None:
    cookies = {"session": "s", "AWSALB": "old"}
    found = await sent(rig, part(1, "AWSALB=new; Path=/"), LAST, client={"cookies": cookies})
    assert found == [{"session=s", "AWSALB=old"}, {"session=s", "AWSALB=new"}]
    found = await sent(rig, part(1, "AWSALB=new; Path=/"), LAST, headers={"Cookie": "session=s; AWSALB=old"})
    assert found[2:] == [{"session=s", "AWSALB=old"}, {"session=s", "AWSALB=new"}]


async def test_a_cookie_that_the_server_takes_back_is_not_sent(rig: Rig) -> None:
    """It is sent as expired: the one that the request had from the start is meant too."""
    found = await sent(rig, part(1, "session=; Path=/; Max-Age=0"), LAST, client={"cookies": {"session": "s", "b": "1"}})
    assert found == [{"session=s", "b=1"}, {"b=1"}]
    found = await sent(
        rig, part(1, "session=; Path=/; Max-Age=0"), part(2, "session=t; Path=/"), LAST, client={"cookies": {"session": "s"}}
    )
    assert found[2:] == [{"session=s"}, set(), {"session=t"}]


@pytest.mark.parametrize(
    ("cookie", "url", "goes"),
    [
        ("a=1; Path=/v1", URL, True),
        ("a=1; Path=/other", URL, False),
        ("a=1; Domain=example.com", URL, True),
        ("a=1; Domain=example.net", URL, False),
        ("a=1; Secure", URL, True),
        ("a=1; Secure", URL.replace("https", "http"), False),
        ("session=; Path=/other; Max-Age=0", URL, False),
    ],
)
async def test_whom_a_cookie_is_for_is_heeded(rig: Rig, cookie: str, url: str, goes: bool) -> None:
    found = await sent(rig, part(1, cookie), LAST, url=url, client={"cookies": {"session": "s"}})
    assert found == [{"session=s"}, {"session=s", "a=1"} if goes else {"session=s"}]


async def test_a_cookie_stays_on_its_origin(rig: Rig) -> None:
    """A redirect to another origin is followed bare: not even a cookie of the whole domain goes along, nor is one taken there."""
    there = Reply(status=307, headers={"location": "https://cdn.example.com/rest"})
    found = await sent(
        rig,
        part(1, "AWSALB=b1; Path=/; Domain=example.com"),
        there,
        part(2, "cdn=1; Path=/; Domain=example.com"),
        LAST,
        client={"cookies": {"session": "s"}},
    )
    assert found == [{"session=s"}, {"session=s", "AWSALB=b1"}, set(), {"session=s", "AWSALB=b1"}]
    assert [request.url.host for request in rig.sent] == ["api.example.com"] * 2 + ["cdn.example.com", "api.example.com"]


async def test_a_redirect_on_the_same_origin_sets_and_gets_cookies(rig: Rig) -> None:
    moved = Reply(status=307, headers={"location": "/v2/stream", "set-cookie": "hop=1; Path=/"})
    assert await sent(rig, part(1, "AWSALB=b1"), moved, LAST) == [set(), {"AWSALB=b1"}, {"hop=1"}]


async def test_refresh_sees_the_cookies_and_has_the_last_word(rig: Rig) -> None:
    seen = []

    def refresh(request: Any) -> Any:
        seen.append(cookies_of(request))
        request.headers["Cookie"] = "own=1"
        return request

    client = rig.client(answers(part(1, "AWSALB=b1; Path=/"), LAST), refresh=refresh)
    await rig.read(client, "GET", URL)
    assert seen == [{"AWSALB=b1"}]
    assert cookies_of(rig.sent[1]) == {"own=1"}


async def test_the_sdks_client_gets_the_cookies_of_the_first_answer(rig: Rig) -> None:
    client = rig.client(answers(part(1, "AWSALB=b1; Path=/"), LAST))
    await rig.read(client, "GET", URL)
    assert client.cookies.get("AWSALB") == "b1"
