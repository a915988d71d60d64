"""The checkpoint: small, readable anywhere, without secrets, and suspicious of what it is given."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumable_stream._checkpoint import Checkpoint, chain, fingerprint, public_url, withheld
from resumable_stream._contract import StreamState
from resumable_stream._errors import RetriesExhausted
from resumable_stream.protocols import LastEventID

from .core.simulation import UNSENT, Reply, Stream, ev, play, policy, run, script

URL = "https://api.example.com/v1/stream"
DIGEST = fingerprint("message", "x")
PLAIN = Checkpoint(protocol="LastEventID", method="GET", url=URL)


def size(checkpoint: Checkpoint) -> int:
    return len(checkpoint.to_json().encode())


# --- round trip -----------------------------------------------------------------------------------------------------

text = st.text(max_size=40)
digests = st.integers(0, 2**64 - 1).map(lambda number: f"{number:016x}")
since = st.one_of(
    st.lists(digests, max_size=20).map(tuple),
    st.tuples(st.builds(lambda count, digest: f"{count}*{digest}", st.integers(1, 10**9), digests)),
)
checkpoints = st.builds(
    Checkpoint,
    protocol=st.sampled_from(["LastEventID", "Mine"]),
    method=st.sampled_from(["GET", "POST"]),
    url=st.just(URL),
    stream_id=st.none() | text,
    cursor=st.none() | text,
    sequence=st.none() | st.integers(-1, 10**15),
    offset=st.integers(0, 10**12),
    since=since,
    recent_ids=st.lists(st.tuples(text, digests), max_size=64).map(tuple),
    extra=st.dictionaries(text, text, max_size=16),
    complete=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(checkpoints)
def test_what_was_written_is_read(checkpoint: Checkpoint) -> None:
    for again in (Checkpoint.from_json(checkpoint.to_json()), Checkpoint.from_token(checkpoint.token())):
        if size(checkpoint) < 8000:
            assert dataclasses.replace(again, recent_ids=()) == dataclasses.replace(checkpoint, recent_ids=())
            assert again.recent_ids == checkpoint.recent_ids[len(checkpoint.recent_ids) - len(again.recent_ids) :]
        assert Checkpoint.from_json(again.to_json()) == again


def test_a_token_fits_into_a_url() -> None:
    token = dataclasses.replace(PLAIN, cursor="é ☃?&=+/" * 20).token()
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_a_checkpoint_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.cursor = "x"  # type: ignore[misc]


def test_a_lone_surrogate_survives() -> None:
    checkpoint = dataclasses.replace(PLAIN, cursor="\ud800")
    assert Checkpoint.from_json(checkpoint.to_json()) == checkpoint
    assert Checkpoint.from_token(checkpoint.token()) == checkpoint


# --- size -----------------------------------------------------------------------------------------------------------


def test_it_is_never_over_eight_kibibytes() -> None:
    ids = tuple((f"{'é' * 100}{number}", DIGEST) for number in range(64))
    full = dataclasses.replace(PLAIN, recent_ids=ids, since=(DIGEST,) * 4096, cursor="c" * 4000)
    assert size(full) <= 8192
    assert len(full.token()) <= 8192 * 4 / 3 + 4


def test_recent_ids_shrink_first_and_the_oldest_of_them() -> None:
    ids = tuple((f"{'x' * 200}{number}", DIGEST) for number in range(64))
    checkpoint = dataclasses.replace(PLAIN, recent_ids=ids, since=(DIGEST,) * 100, cursor="c")
    read = Checkpoint.from_json(checkpoint.to_json())
    assert read.since == checkpoint.since
    assert 0 < len(read.recent_ids) < 64
    assert read.recent_ids == ids[-len(read.recent_ids) :]


def test_since_becomes_a_count_and_a_chain_next() -> None:
    digests = tuple(fingerprint("message", str(number)) for number in range(4000))
    checkpoint = dataclasses.replace(PLAIN, recent_ids=(("1", DIGEST),), since=digests, cursor="c")
    read = Checkpoint.from_json(checkpoint.to_json())
    assert read.recent_ids == ()
    assert read.since == (f"4000*{chain('', digests)}",)


def test_the_callers_checkpoint_stays_whole() -> None:
    ids = tuple((f"{'x' * 200}{number}", DIGEST) for number in range(64))
    checkpoint = dataclasses.replace(PLAIN, recent_ids=ids)
    checkpoint.to_json()
    assert len(checkpoint.recent_ids) == 64


def test_a_cursor_that_alone_is_too_long_is_told() -> None:
    with pytest.raises(ValueError, match="too long"):
        dataclasses.replace(PLAIN, cursor="c" * 9000).to_json()


@pytest.mark.parametrize("length", [100, 2000, 3900])
@pytest.mark.parametrize("letter", ["x", "é"])
def test_long_ids_of_a_server_fit_while_the_cursor_does(length: int, letter: str) -> None:
    """The first event's id and the recent ones are aids; the cursor is what counts."""
    ids = [f"{number}{letter * (length // len(letter.encode()))}" for number in range(5)]
    body = b"".join(ev(f"d{number}", id) for number, id in enumerate(ids))
    stream = Stream(script(Reply([body])))
    run(stream, at_most=5)
    read = Checkpoint.from_token(stream.leave().token())
    assert read.cursor == ids[-1]
    rest = run(Stream(script(Reply([ev("d5", "end") + ev("[DONE]")])), checkpoint=read))
    assert rest.data == ["d5", "[DONE]"]


def test_a_cursor_of_seven_kibibytes_fits_beside_a_first_id_as_long() -> None:
    stream = Stream(script(Reply([ev("a", "x" * 7000) + ev("b", "y" * 7000)])))
    run(stream, at_most=2)
    assert Checkpoint.from_token(stream.leave().token()).cursor == "y" * 7000


def test_a_protocol_that_keeps_all_it_may_can_be_read_again() -> None:
    class Keeper(LastEventID):
        keeps = frozenset(f"k{number}" for number in range(16))

        def identify(self, state: StreamState, source: Any) -> None:
            super().identify(state, source)
            state.extra.update(dict.fromkeys(self.keeps, "v"), secret="never saved")

    stream = Stream(
        script(Reply([ev("a", "1") + ev("[DONE]")], headers={"location": "/runs/1"})), protocol=Keeper(), method="POST"
    )
    run(stream)
    read = Checkpoint.from_token(stream.checkpoint.token())
    assert read.complete
    assert "secret" not in read.extra
    assert set(Keeper.keeps) <= set(read.extra)


def test_a_checkpoint_from_before_the_first_answer_can_be_read() -> None:
    """Every error carries one (G4), also that of a server that was never reached with the protocol still unknown."""
    for detecting in (True, False):
        result = play(UNSENT, UNSENT, detecting=detecting, delay=policy(2))
        assert isinstance(result.error, RetriesExhausted)
        assert result.error.checkpoint is not None
        assert Checkpoint.from_token(result.error.checkpoint.token()).offset == 0


# --- secrets --------------------------------------------------------------------------------------------------------

SECRETS = [
    "api_key", "apikey", "key", "api-key", "access_token", "token", "secret", "client_secret", "sig", "signature",
    "X-Amz-Signature",
    "X-Goog-Credential", "password", "passwd", "pass", "passphrase", "pw", "pwd", "pin", "otp", "auth", "authorization", "jwt",
    "session",
    "sessionid", "sid", "PHPSESSID", "sess", "code", "ticket", "hmac", "hash", "se", "sv", "bearer", "credential", "nonce",
    "conv_id", "conversation_id", "conversationId", "access", "u", "p", "login", "invite",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_a_query_value_that_may_grant_access_is_left_out(name: str) -> None:
    shown = public_url(f"{URL}?topic=news&{name}=hunter2")
    assert "hunter2" not in shown
    assert "topic=news" in shown


@pytest.mark.parametrize(
    "value", ["sk-proj-abcdefghijklmnop1234567890", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "A" * 64, "0f" * 20]
)
def test_a_value_that_looks_like_a_key_is_left_out_whatever_its_name(value: str) -> None:
    assert value not in public_url(f"{URL}?thing={value}")


@pytest.mark.parametrize(
    "value", ["hunter2", "AKIAIOSFODNN7EXAMPLE", "correct-horse", "Tr0ub4dor", "QWERTY", "q7f3", "1234567890"]
)
def test_of_a_name_that_says_nothing_only_words_and_short_numbers_are_kept(value: str) -> None:
    """A list of names that are secrets cannot be complete: whoever names a password `ref` must not find it in a token."""
    assert value not in public_url(f"{URL}?ref={value}")
    assert withheld(f"{URL}?ref={value}&topic=news-2") == ["ref"]


@pytest.mark.parametrize(
    "query",
    [
        "topic=news-2", "stream_mode=messages-tuple", "run_id=0b6f3c1e-7d2a-4a57-9c55-0d3f6c1b2a19", "api-version=2024-06-01",
        "ref=main", "n=12", "flag=true", "q=", "v=1.2", "offset=o0002", "startIndex=7",
    ],
)  # fmt: skip
def test_what_chooses_a_stream_in_plain_words_is_kept(query: str) -> None:
    assert public_url(f"{URL}?{query}") == f"{URL}?{query}"
    assert withheld(f"{URL}?{query}") == []


def test_what_the_client_adds_by_itself_is_left_out_whatever_it_is() -> None:
    url = f"{URL}?topic=news&tenant=acme&api_key=k"
    assert public_url(url, {"tenant", "api_key"}) == f"{URL}?topic=news"
    # A credential may come in another way, by an `auth=` or a header; what chose the stream may not be missing.
    assert withheld(url, {"tenant", "api_key"}) == ["tenant"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@api.example.com/x", "https://api.example.com/x"),
        ("https://me@api.example.com:8443/x", "https://api.example.com:8443/x"),
        ("https://api.example.com/x#frag", "https://api.example.com/x"),
        ("https://[::1]:80/x?a=1", "https://[::1]:80/x?a=1"),
        (f"{URL}?a=1&b=two&c=", f"{URL}?a=1&b=two&c="),
        ("https://a@b@c/x", "https://c/x"),
    ],
)
def test_a_url_is_stripped_of_its_private_parts(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_what_a_stream_saves_holds_no_secret() -> None:
    url = "https://user:hunter2@api.example.com/v1?api_key=hunter3&topic=t"
    reply = Reply([ev("hunter7", "1") + ev("more")], headers={"location": "/runs/1?token=hunter4&v=2", "set-cookie": "hunter5"})
    stream = Stream(script(reply), method="POST", url=url, json={"prompt": "hunter6"})
    run(stream, at_most=2)
    checkpoint = stream.leave()
    assert "hunter" not in checkpoint.to_json()
    assert checkpoint.extra["location"] == "https://api.example.com/runs/1?v=2"
    assert checkpoint.url == "https://api.example.com/v1?topic=t"


# --- reading what others wrote --------------------------------------------------------------------------------------


def forged(**fields: Any) -> str:
    return json.dumps({**json.loads(PLAIN.to_json()), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": 2},
        {"schema": None},
        {"protocol": ""},
        {"protocol": 5},
        {"method": None},
        {"url": ""},
        {"url": "file:///etc/passwd"},
        {"url": "javascript:alert(1)"},
        {"url": 5},
        {"cursor": 5},
        {"cursor": []},
        {"stream_id": {}},
        {"sequence": "1"},
        {"sequence": True},
        {"sequence": -2},
        {"sequence": 1.5},
        {"offset": -1},
        {"offset": None},
        {"offset": "0"},
        {"offset": True},
        {"since": "abc"},
        {"since": ["abc"]},
        {"since": ["zzzzzzzzzzzzzzzz"]},
        {"since": [5]},
        {"since": [f"{DIGEST}\n"]},
        {"since": [f"٣*{DIGEST}"]},
        {"since": [f"{'9' * 5000}*{DIGEST}"]},
        {"since": [f"2*{DIGEST}", DIGEST]},
        {"recent_ids": [["1"]]},
        {"recent_ids": [["1", 2]]},
        {"recent_ids": [["1", DIGEST]] * 65},
        {"recent_ids": {"1": DIGEST}},
        {"extra": []},
        {"extra": {"a": 1}},
        {"extra": {str(number): "v" for number in range(40)}},
        {"complete": 1},
        {"complete": "true"},
        {"password": "x"},
        {"headers": {"authorization": "x"}},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_a_forged_checkpoint_is_told_what_is_wrong_with_it(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Checkpoint.from_json(forged(**fields))


@pytest.mark.parametrize("name", ["protocol", "method", "url", "schema"])
def test_what_it_cannot_do_without_must_be_there(name: str) -> None:
    raw = json.loads(PLAIN.to_json())
    del raw[name]
    with pytest.raises(ValueError):
        Checkpoint.from_json(json.dumps(raw))


def test_what_has_a_default_may_be_left_out() -> None:
    assert Checkpoint.from_json(json.dumps({"protocol": "LastEventID", "method": "GET", "url": URL, "schema": 1})) == PLAIN


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "5", '"x"', "{", "nonsense", "NaN", b"\xff\xfe", '{"a": 1}', "[" * 100_000, '{"a":' * 50_000]
)
def test_what_is_no_checkpoint_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        Checkpoint.from_json(text)


@pytest.mark.parametrize("token", ["", "x", "!!!!", "AAAA", "é", "a b", "\n", base64.b64encode(b"[" * 100_000).decode()])
def test_what_is_no_token_is_a_value_error(token: str) -> None:
    with pytest.raises(ValueError):
        Checkpoint.from_token(token)


def test_a_token_that_was_cut_short_says_so() -> None:
    token = dataclasses.replace(PLAIN, cursor="c" * 50).token()
    for length in range(len(token)):
        with pytest.raises(ValueError, match=r"token|checkpoint") as caught:
            Checkpoint.from_token(token[:length])
        assert len(str(caught.value)) < 300


def test_errors_do_not_repeat_the_whole_input() -> None:
    with pytest.raises(ValueError) as caught:
        Checkpoint.from_token("A" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("outcome", ["", "nonsense"])
def test_a_complete_one_with_an_outcome_that_is_none_is_a_value_error_not_a_crash_later(outcome: str) -> None:
    with pytest.raises(ValueError):
        run(Stream(script(), checkpoint=Checkpoint.from_json(forged(complete=True, extra={"outcome": outcome}))))


# --- digests --------------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_type_and_data_apart() -> None:
    found = {fingerprint("a", "b"), fingerprint("a", "b "), fingerprint("ab", ""), fingerprint("", "ab"), fingerprint("b", "a")}
    assert len(found) == 5
    assert all(len(item) == 16 for item in found)
    assert fingerprint("message", "\ud800")


@given(st.lists(digests, max_size=8), st.integers(0, 8))
def test_a_chain_may_be_made_in_pieces(items: list[str], cut: int) -> None:
    assert chain(chain("", items[:cut]), items[cut:]) == chain("", items)


def test_a_chain_depends_on_the_order() -> None:
    one, two = fingerprint("message", "1"), fingerprint("message", "2")
    assert chain("", [one, two]) != chain("", [two, one])
    assert chain("", [one]) != chain("", [one, one])
