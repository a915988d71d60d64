"""What a relay decides, as functions of values."""

from __future__ import annotations

import pytest

from resumable_stream.protocols import Head
from resumable_stream.server import _relay_rules as rules
from resumable_stream.server.wire import Facts

SECRET = b"0123456789abcdef"
OTHER = b"another secret!!"


def principal(query: str = "", secret: bytes = SECRET, /, **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return rules.principal_of(secret, Facts("GET", named, query))


# --- whose


def test_a_key_is_the_same_principal_wherever_it_stands() -> None:
    same = {
        principal(Authorization="Bearer k"),
        principal(authorization="bearer  k "),
        principal(x_api_key="k"),
        principal(api_key="k"),
        principal(x_goog_api_key="k"),
        principal("alt=sse&key=k"),
        principal("key=k", authorization="Bearer k"),
    }
    assert len(same) == 1
    (found,) = same
    assert len(found) == 40 and "k" not in found


def test_another_key_another_secret_two_keys_and_none_are_other_principals() -> None:
    found = [
        principal(authorization="Bearer k"),
        principal("", OTHER, authorization="Bearer k"),
        principal(authorization="Bearer K"),
        principal(authorization="Basic k"),
        principal(authorization="Bearer k", x_api_key="j"),
        principal("key=j", authorization="Bearer i"),
        principal(authorization="Bearer ji"),
        principal(),
    ]
    assert len(set(found)) == len(found)
    assert principal(cookie="session=1") == principal("q=k", authorization=" ") == principal()


def test_a_header_with_a_key_counts_once() -> None:
    assert rules.repeated_credential([(b"Authorization", b"a"), (b"authorization", b"a")]) == "authorization"
    assert (
        rules.repeated_credential([(b"authorization", b"a"), (b"x-api-key", b"a"), (b"accept", b"a"), (b"accept", b"b")]) is None
    )


def test_an_id_is_that_of_one_key_of_one_client_at_one_path() -> None:
    given = [
        (SECRET, "p", "/v1/a", "k"),
        (OTHER, "p", "/v1/a", "k"),
        (SECRET, "q", "/v1/a", "k"),
        (SECRET, "p", "/v1/b", "k"),
        (SECRET, "p", "/v1/a", "j"),
        (SECRET, "p/v1", "/a", "k"),
    ]
    assert len({rules.key_id(*each) for each in given}) == len(given)
    assert rules.key_id(*given[0]) == rules.key_id(*given[0])


def test_a_form_is_the_same_whatever_separates_its_parts() -> None:
    def form(boundary: str, text: str = "a", kind: str = 'multipart/form-data; boundary="{}"') -> str:
        body = f'--{boundary}\r\ncontent-disposition: form-data; name="x"\r\n\r\n{text}\r\n--{boundary}--\r\n'
        return rules.fingerprint_of(SECRET, "POST", "/v1/a", "", body.encode(), kind.format(boundary))

    bare = "multipart/form-data; charset=utf-8; boundary={}"
    same = {
        form("b1"),
        form("b2"),
        form("b" * 70),
        form("b1", kind=bare),
        form("b2", kind=f"{bare}; x=y"),
        form("b3", kind=bare.upper()),
    }
    assert len(same) == 1
    others = [form("b1", "b"), form("b1", kind="text/plain; boundary={}"), form("b2", kind="multipart/form-data")]
    assert len(same | set(others)) == 4


def test_a_fingerprint_tells_requests_apart_and_holds_no_key() -> None:
    base = ("POST", "/v1/a", "alt=sse&key=k1", b"body")
    others = [
        ("PUT", *base[1:]),
        (base[0], "/v1/b", *base[2:]),
        (*base[:2], "alt=json&key=k1", b"body"),
        (*base[:3], b"bodY"),
    ]
    found = {rules.fingerprint_of(SECRET, *each) for each in (base, *others)}
    assert len(found) == 5
    # The key has rotated; the request is the same.
    assert rules.fingerprint_of(SECRET, "POST", "/v1/a", "alt=sse&key=k2", b"body") in found
    assert rules.fingerprint_of(OTHER, *base) not in found


def test_no_client_is_the_owner_of_a_claim() -> None:
    # A principal is forty hexadecimal digits.
    assert "/" in rules.claim_owner(principal())


# --- where to


def test_the_longest_mount_counts() -> None:
    found = rules.Upstreams.of({"/a": "https://a.example", "/a/b/": "https://b.example/base/"})
    assert found.find("/a/v1/x") == ("/a", "https://a.example", "/v1/x")
    assert found.find("/a/b/v1") == ("/a/b", "https://b.example/base", "/v1")
    assert found.find("/a") == ("/a", "https://a.example", "")
    assert found.find("/ab") is None and found.find("/") is None
    assert rules.Upstreams.of("https://a.example/").find("/v1") == ("", "https://a.example", "/v1")


@pytest.mark.parametrize(
    "given",
    [
        {},
        "",
        "api.openai.com",
        "ftp://a.example",
        "https://",
        "https://user@a.example",
        "https://:s3cr3t@a.example",
        "https://a.example?key=s3cr3t",
        "https://a.example#x",
        {"a": "https://a.example"},
        {"/a?": "https://a.example"},
        {"/.streams": "https://a.example"},
        {"/.metrics/x": "https://a.example"},
    ],
)
def test_what_cannot_be_an_upstream_is_refused_without_being_shown(given: object) -> None:
    with pytest.raises(ValueError) as caught:
        rules.Upstreams.of(given)  # type: ignore[arg-type]
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "/../x",
        "/a/..",
        "/a/%2e%2e/b",
        "/a/.%2E/b",
        "/a/..%2fb",
        "/a%2f..%2fb",
        "/a/..\\b",
        "/a/..%5cb",
        "x",
        "@evil.example/",
        "/a b",
        "/a\r\nb",
        "/.",
    ],
)
def test_a_path_cannot_leave_its_upstream(path: str) -> None:
    assert rules.target_of("https://a.example/base", path, "") is None


def test_a_path_is_sent_as_it_came() -> None:
    for path in ("", "/", "/v1/a%2Fb", "//evil.example/x", "/v1/m:generate", "/v1/...", "/a%20b"):
        assert rules.target_of("https://a.example/base", path, "x=%2e%2e") == f"https://a.example/base{path}?x=%2e%2e"
    assert rules.target_of("https://a.example", "/v1", "") == "https://a.example/v1"
    assert rules.target_of("https://a.example", "/v1", "a b") is None


# --- what passes


def test_headers_about_a_connection_do_not_pass() -> None:
    up = rules.headers_up([
        (b"Host", b"relay"), (b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"3"), (b"TE", b"trailers"), (b"Upgrade", b"h2c"), (b"Proxy-Authorization", b"Basic x"),
        (b"Authorization", b"Bearer k"), (b"X-Api-Key", b"k"), (b"Cookie", b"a=b"), (b"Accept-Encoding", b"gzip"),
        (b"X-Title", "Grüße".encode()), (b"X-Latin", b"Gr\xfc\xdfe"), (b"Idempotency-Key", b"1"), (b"Last-Event-ID", b"x"),
    ])  # fmt: skip
    assert up == [
        ("Authorization", "Bearer k"), ("X-Api-Key", "k"), ("X-Title", "Grüße"), ("X-Latin", "Grüße"), ("Idempotency-Key", "1"),
        ("Accept-Encoding", "identity"),
    ]  # fmt: skip
    down = rules.headers_down([
        (b"Content-Type", b"text/plain"), (b"Content-Length", b"3"), (b"Connection", b"x-hop"), (b"X-Hop", b"1"),
        (b"Set-Cookie", b"a=b"), (b"Strict-Transport-Security", b"max-age=1"), (b"Vary", b"a"), (b"Vary", b"b"),
        (b"Date", b"Mon, 30 Nov 2026 02:23:39 GMT"),
    ])  # fmt: skip
    assert down == [(b"content-type", b"text/plain"), (b"content-length", b"3"), (b"vary", b"a"), (b"vary", b"b")]


def test_few_headers_of_an_upstream_are_kept() -> None:
    given = [
        ("X-Request-Id", "1"), ("request-id", "2"), ("OpenAI-Processing-Ms", "3"), ("anthropic-ratelimit-x", "4"),
        ("x-ratelimit-remaining", "5"), ("retry-after", "6"), ("set-cookie", "a=b"), ("authorization", "Bearer k"),
        ("x-internal", "7"), ("x-mine-too", "8"), ("date", "9"), ("content-type", "a/b"), ("openai-odd", "a\nb"),
        ("openai-long", "x" * 1025),
    ]  # fmt: skip
    kept = dict(rules.headers_kept(given, ["x-mine-"]))
    assert list(kept.values()) == ["1", "2", "3", "4", "5", "6", "8"]
    assert len(rules.headers_kept([(f"openai-{n}", "x") for n in range(200)])) == 50


@pytest.mark.parametrize("name", ["Authorization", "set-cookie", "Connection", "x-api-key"])
def test_what_grants_access_cannot_be_kept(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        rules.known_names([name])
    with pytest.raises(TypeError):
        rules.known_names("x-mine")


# --- what stays


def framing(kind: str, path: str = "/v1/x", method: str = "POST", status: int = 200, **headers: str) -> str | None:
    named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return rules.framing_of(method, path, Head(status, named, ""))


def test_streams_are_kept_and_nothing_else() -> None:
    assert framing("text/event-stream; charset=utf-8") == "sse"
    assert framing("application/x-ndjson") == framing("application/jsonl") == "ndjson"
    assert framing("application/vnd.amazon.eventstream") == "raw"
    assert framing("application/json", "/v1/models/m:streamGenerateContent") == "raw"
    assert framing("text/event-stream", content_encoding="identity") == "sse"
    for passed in (
        framing("application/json"),
        framing("text/plain"),
        framing(""),
        framing("text/event-stream", method="GET"),
        framing("text/event-stream", status=429),
        framing("text/event-stream", status=204),
        framing("text/event-stream", content_encoding="gzip"),
        framing("application/json", "/v1/models/m:generateContent"),
    ):
        assert passed is None


@pytest.mark.parametrize(
    ("path", "accept", "body", "asks"),
    [
        ("/v1/x", "", {"stream": True}, True),
        ("/v1/x", "", {"stream": False}, False),
        ("/v1/x", "", {}, False),
        ("/v1/x", "text/event-stream", {}, True),
        ("/v1/m:streamGenerateContent", "", {}, True),
        ("/model/m/converse-stream", "", {}, True),
        ("/api/chat", "", {}, True),
        ("/api/chat", "", {"stream": False}, False),
        ("/v1/x", "", None, True),
        ("/v1/x", "", [], False),
    ],
)
def test_whether_a_request_asks_for_a_stream(path: str, accept: str, body: object, asks: bool) -> None:
    assert rules.asks_for_stream(path, {"accept": accept}, body) is asks


def test_json_of_what_is_none_is_none() -> None:
    assert rules.json_of({}, b'{"a": 1}') == {"a": 1}
    assert rules.json_of({}, b"{") is None
    assert rules.json_of({}, b"[" * 100_000) is None
    assert rules.json_of({"content-type": "multipart/form-data; boundary=x"}, b"{}") is None
