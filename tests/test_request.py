"""Which requests are one, and which are not: the key of a request, and the digest in a store's record."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from resumable_stream import Checkpoint, StoreError, request_key
from resumable_stream._request import body_of, check_request, request_digest

URL = "https://api.example.com/v1/answers"
ONE = {"model": "m", "messages": [{"role": "user", "content": "one"}], "stream": True}
SAME = request_key("POST", URL, json=ONE)


@pytest.mark.parametrize(
    "other",
    [
        lambda: request_key("POST", URL, json={**ONE, "model": "n"}),
        lambda: request_key("POST", URL, json={**ONE, "messages": []}),
        lambda: request_key("PUT", URL, json=ONE),
        lambda: request_key("POST", f"{URL}/2", json=ONE),
        lambda: request_key("POST", "http://api.example.com/v1/answers", json=ONE),
        lambda: request_key("POST", f"{URL}?prompt=a+long+prompt+of+many+words+in+a+query", json=ONE),
        lambda: request_key("POST", URL, json=ONE, params={"conversation_id": "7"}),
        lambda: request_key("POST", URL),
        lambda: request_key("POST", URL, data={"model": "m"}),
    ],
)
def test_another_request_has_another_key(other: Any) -> None:
    assert other() != SAME


@pytest.mark.parametrize(
    "same",
    [
        lambda: request_key("post", URL, json=dict(reversed(ONE.items()))),
        lambda: request_key("POST", URL, content=b'{"stream":true, "messages":[{"content":"one","role":"user"}],\n"model":"m"}'),
        lambda: request_key("POST", "HTTPS://me:pw@API.example.com:443/v1/answers#part", json=ONE),
        lambda: request_key("POST", f"{URL}?api_key=today", json=ONE),
        lambda: request_key("POST", URL, json=ONE, params={"X-Amz-Signature": "0af1"}),
    ],
)
def test_the_same_question_has_the_same_key_whatever_its_spaces_and_credentials(same: Any) -> None:
    """White space and the order of keys are not part of a JSON value (RFC 8259); a signature is another one tomorrow."""
    assert same() == SAME


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"json": ONE},
        {"content": "plain"},
        {"data": {"a": "1", "b": ["x y", "z"], "c": True}},
        {},
        {"params": {"q": "a b", "n": 3, "flag": True, "many": [1, 2]}},
    ],
)
def test_a_request_object_has_the_key_of_its_parts(family: str, arguments: dict[str, Any]) -> None:
    """So a notebook that calls `connect()` and an SDK above a transport find each other's answers."""
    module = pytest.importorskip(family)
    assert request_key(module.Request("POST", URL, **arguments)) == request_key("POST", URL, **arguments)


@pytest.mark.parametrize("family", ["httpx", "httpx2"])
def test_a_body_that_can_be_read_only_once_has_no_key(family: str) -> None:
    module = importlib.import_module(family)
    for arguments in ({"content": iter([b"x"])}, {"files": {"f": b"x"}}):
        assert request_key(module.Request("POST", URL, **arguments)) is None
    with pytest.raises(TypeError, match="read only once"):
        request_key("POST", URL, content=iter([b"x"]))


@pytest.mark.parametrize("wrong", [("POST",), (5,), (5, URL)])
def test_what_is_no_request_is_told(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="takes a method and a URL"):
        request_key(*wrong)


def test_a_key_shows_no_secret_and_no_prompt() -> None:
    key = request_key("POST", "https://me:hunter1@api.example.com/x?api_key=hunter2", json={"prompt": "hunter3"})
    assert "hunter" not in key
    assert len(request_key("GET", f"{URL}/{'x' * 9000}")) < 300


def test_keys_of_json_that_has_no_order() -> None:
    assert request_key("POST", URL, json={1: "a", "b": 2}) != request_key("POST", URL, json={1: "a", "b": 3})
    with pytest.raises(TypeError, match="JSON"):
        request_key("POST", URL, json={"a": object()})


def test_equal_questions_under_two_names_have_unequal_digests() -> None:
    """Whoever reads two records cannot see that they hold the same prompt, nor try prompts on all of them at once."""
    body = body_of({"json": ONE})
    digests = {request_digest("POST", URL, body, key=key) for key in ("q1", "q2")}
    assert len(digests) == 2
    assert request_digest("POST", URL, None, key="q1") is None


def place(**fields: Any) -> Checkpoint:
    return Checkpoint(protocol="LastEventID", method="POST", url=URL, **fields)


def test_the_digest_stays_in_the_record_of_the_store() -> None:
    """A token travels, and the digest of a short prompt could be guessed from it."""
    digest = request_digest("POST", URL, b"x", key="k")
    kept = place(request=digest)
    assert Checkpoint.from_json(kept.to_json()).request == digest
    assert kept == place()
    assert Checkpoint.from_token(kept.token()).request is None
    assert str(digest) not in repr(kept)


def test_a_place_of_before_has_no_digest_and_is_still_read() -> None:
    old = Checkpoint.from_json(place().to_json())
    assert old.request is None
    check_request("k", old, "POST", URL, request_digest("POST", URL, b"anything", key="k"))


def test_the_error_says_what_to_do() -> None:
    stored = place(request=request_digest("POST", URL, b"one", key="q1"))
    check_request("q1", stored, "POST", URL, stored.request)
    with pytest.raises(StoreError, match=r"another POST .*/v1/answers, with another body.*use another key.*delete\('q1'\)"):
        check_request("q1", stored, "POST", URL, request_digest("POST", URL, b"two", key="q1"))
    with pytest.raises(StoreError, match=r"holds the place of POST .*not of GET .*use another key"):
        check_request("q1", stored, "GET", URL, None)
