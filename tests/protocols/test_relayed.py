"""
`Relayed` against a relay that answers as `resumable_stream.server` does: its heads are made by `server.wire` itself.

What the providers send is that of their own tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from resumable_stream._api import protocol_of
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, ResumeProtocol, StreamState, Structured
from resumable_stream._errors import (
    CursorExpired,
    NotResumable,
    OriginMismatch,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    UpstreamError,
)
from resumable_stream._events import Outcome, StreamEvent
from resumable_stream.protocols import (
    NDJSON,
    AnthropicMessages,
    ByteRange,
    GeminiGenerate,
    HubStream,
    LastEventID,
    OllamaNDJSON,
    OpenAIChat,
    OpenAIResponses,
    Relayed,
    WorkflowRun,
    detect,
    named,
)
from resumable_stream.server import wire
from resumable_stream.server.log import Cursor, Ending
from resumable_stream.server.log import Head as LogHead

from ..core.simulation import CUTS, DROPPED, NO_ANSWER, Failure, Reply, Sent, Stream, Wait, cut_body, ev, policy, run, script
from . import test_anthropic_messages as anthropic
from . import test_gemini_generate as gemini
from . import test_ollama as ollama
from . import test_openai_chat as openai
from . import test_openai_responses as responses

EPOCH = "k7q2"
PLACE = "/.streams/q3k"
SSE, LINES = "text/event-stream", "application/x-ndjson"
BEATS = {SSE: wire.heartbeat("sse"), LINES: wire.heartbeat("ndjson")}
COMPLETED = Ending(outcome=Outcome.COMPLETED)
UPSTREAM_CUT = Ending(outcome=Outcome.FAILED, reason="upstream_cut")


def is_event(block: bytes) -> bool:
    return bool(block.strip()) and not block.startswith(b":")


class Relay:
    """
    The routes of one relayed answer. The provider goes on whatever happens to its readers, so a resume finds all of it.

    Args:
        blocks: What the provider sent: events, and comments, which are passed on live and not stored.
        kind: Content type.
        ending: How the log ended.
        cuts: For each answer in turn `(bytes, kind)` or `None`.
        chunk: Bytes in a chunk.
        epoch: Of the log, when it is asked again.
        lost: For each POST in turn a failure in place of its answer. The provider is called all the same.
    """

    def __init__(
        self,
        blocks: Sequence[bytes],
        *,
        kind: str = SSE,
        ending: Ending = COMPLETED,
        cuts: Any = (),
        chunk: Any = None,
        epoch: str = EPOCH,
        lost: Sequence[Failure] = (),
    ) -> None:
        self.blocks, self.kind, self.ending, self.chunk, self.epoch = list(blocks), kind, ending, chunk, epoch
        self.events = [block for block in blocks if is_event(block)]
        self.cuts, self.lost, self.calls, self.cancelled = list(cuts), list(lost), set[str | None](), 0

    def __call__(self, sent: Sent) -> Reply | Failure:
        path = sent.path
        if sent.method == "POST" and path == f"{PLACE}/cancel":
            self.cancelled += 1
            return Reply([b"{}"], status=202, type="application/json")
        if sent.method == "POST":
            assert not path.startswith("/.streams"), path
            assert sent.json is not None
            key = sent.headers.get("idempotency-key")
            assert key not in self.calls or key is not None, "paid twice"
            self.calls.add(key)
            if self.lost:
                return self.lost.pop(0)
            return self.answer(sent, self.blocks, EPOCH, "view=verbatim")
        assert (sent.method, path, sent.json) == ("GET", PLACE, None)
        assert "idempotency-key" not in sent.headers and "last-event-id" not in sent.headers
        after = sent.params.get("after", f"{self.epoch}.0")
        return self.answer(sent, self.events[int(after.rpartition(".")[2]) :], self.epoch, urlsplit(sent.url).query)

    def answer(self, sent: Sent, blocks: Sequence[bytes], epoch: str, query: str) -> Reply:
        asked = wire.asked(wire.Facts("GET", sent.headers, query))
        assert isinstance(asked, wire.Asked) and asked.view == "verbatim"
        framing = "sse" if self.kind == SSE else "ndjson"
        head = LogHead(content_type=self.kind, framing=framing, headers=(("x-request-id", "req_1"),))  # type: ignore[arg-type]
        standing = wire.Standing(head=head, epoch=epoch, n=len(self.events), b=0, ending=self.ending)
        told = wire.answer_to_reader(asked, standing, stream_id="q3k", location=PLACE, random=0.5)
        headers = {name.lower(): value for name, value in told.headers}
        kind = headers.pop("content-type", "")
        if told.then is None:
            return Reply([told.body], status=told.status, headers=headers, type=kind)
        cut = self.cuts.pop(0) if self.cuts else None
        # After a first look the provider is silent, and the reader who asked for it gets a heartbeat.
        beat = [told.then.heartbeat] if told.then.heartbeat else []
        body = b"".join([*blocks[:1], *beat, *blocks[1:]])
        steps = cut_body(body, cut, self.chunk)
        if not wire.closing("verbatim", epoch=epoch, n=len(self.events), ending=self.ending).clean:
            steps.append("fin")
        return Reply(steps, headers=headers, type=kind)


class Provider:
    """One wire: how it is asked, what it sends, and what is read of it."""

    def __init__(self, protocol: ResumeProtocol, url: str, body: Any, blocks: Sequence[bytes], kind: str = SSE) -> None:
        self.protocol, self.url, self.body, self.blocks, self.kind = protocol, url, body, list(blocks), kind
        self.name = protocol.name

    @property
    def data(self) -> list[str]:
        found = [block for block in self.blocks if is_event(block)]
        if self.kind == LINES:
            return [block.decode().rstrip("\n") for block in found]
        lines = [block.decode().rstrip().replace("\r\n", "\n").split("\n") for block in found]
        return ["\n".join(line.partition(":")[2].removeprefix(" ") for line in each if line.startswith("data")) for each in lines]

    def relay(self, **options: Any) -> Relay:
        return Relay(self.blocks, kind=self.kind, **options)

    def stream(self, server: Any, **options: Any) -> Stream:
        return Stream(server, **{"method": "POST", "url": self.url, "json": self.body, "detecting": True, **options})

    def named(self, server: Any, **options: Any) -> Stream:
        return self.stream(server, **{"protocol": Relayed(self.protocol), "new_key": keys(), **options})


def keys() -> Callable[[], str]:
    numbers = iter(range(1, 100))
    return lambda: f"key{next(numbers)}"


def words(*spoken: str) -> list[bytes]:
    return [ev(json.dumps({"n": n, "word": word})) for n, word in enumerate(spoken)]


PROVIDERS = [
    Provider(OpenAIChat(), openai.URL, openai.BODY, openai.FRAMES),
    Provider(AnthropicMessages(), anthropic.URL, anthropic.BODY, anthropic.FRAMES),
    Provider(GeminiGenerate(), gemini.URL, gemini.BODY, gemini.FRAMES),
    Provider(OllamaNDJSON(), ollama.URL, {**ollama.BODY, "stream": True}, ollama.CHAT, LINES),
    Provider(OpenAIResponses(), responses.URL, responses.LIVE_BODY, [responses.sse(event, "x") for event in responses.LIVE]),
    # Of nobody known, with and without its own last event.
    Provider(LastEventID(), "https://api.example.com/generate", {"prompt": "Hi"}, [*words("a", "a", "b"), ev("[DONE]")]),
    Provider(NDJSON(), "https://api.example.com/generate", {"prompt": "Hi"}, [b'{"a":1}\n', b'{"a":1}\n', b"{}\n"], LINES),
]
CHAT, MESSAGES, GEMINI, OLLAMA, RESPONSES, UNKNOWN, JSON_LINES = PROVIDERS
each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)


def requests(result: Any) -> list[tuple[str, str, str | None]]:
    return [(sent.method, sent.path, sent.params.get("after")) for sent in result.stream.sent]


# --- whole, and cut again and again ---------------------------------------------------------------------------------


@each_provider
def test_a_cut_answer_goes_on_from_the_count_of_its_events(provider: Provider) -> None:
    at = len(b"".join(provider.blocks[:2])) + len(b":\n\n")
    result = run(provider.stream(provider.relay(cuts=[(at + 5, "rst")])))
    assert (result.data, result.outcome, result.error) == (provider.data, Outcome.COMPLETED, None)
    assert result.stream.machine.verified
    protocol = result.stream.machine.protocol
    assert isinstance(protocol, Relayed) and type(protocol.inner) is type(provider.protocol)
    (first, *rest) = requests(result)
    assert first == ("POST", urlsplit(provider.url).path, None)
    assert [path for _, path, _ in rest] == [PLACE] * len(rest)
    assert result.stream.machine.stats.duplicates == 0


@each_provider
def test_resumes_may_be_cut_too(provider: Provider) -> None:
    whole = len(b"".join(provider.blocks))
    # The longest event has to fit, so that each connection brings at least one.
    least = max(map(len, provider.blocks)) + 10
    cuts = [(least + at % 70, CUTS[at % 5]) for at in range(0, whole, 17)]
    result = run(provider.stream(provider.relay(cuts=cuts, chunk=7), connections=500))
    assert (result.data, result.outcome) == (provider.data, Outcome.COMPLETED)


def test_an_answer_that_is_whole_is_asked_for_once() -> None:
    for provider in (CHAT, MESSAGES, GEMINI, OLLAMA, RESPONSES):
        assert len(run(provider.stream(provider.relay())).stream.sent) == 1, provider.name


def test_a_close_that_no_event_explains_is_asked_about() -> None:
    """The log knows: 204 says that the answer is whole. Without a relay nobody could tell."""
    result = run(JSON_LINES.stream(JSON_LINES.relay()))
    assert requests(result)[1:] == [("GET", PLACE, "k7q2.3")]
    assert (result.outcome, result.stream.machine.verified, result.stream.sleeps) == (Outcome.COMPLETED, True, [])
    assert result.stream.machine.stats.reconnects == 0


def test_what_follows_the_reason_is_asked_for_too() -> None:
    """The usage: a plain `OpenAIChat` ends with the finish reason, since nobody could be asked for more."""
    before = len(b"".join(openai.FRAMES[: len(openai.BEFORE) + 1])) + 3
    for kind in ("rst", "fin", "half", "silence"):
        result = run(CHAT.stream(CHAT.relay(cuts=[(before, kind)])))
        assert (result.data, result.outcome) == (CHAT.data, Outcome.COMPLETED), kind


@pytest.mark.parametrize("step", [DROPPED, Reply(status=404, type=""), Reply(status=503, type=""), Reply(status=410, type="")])
def test_what_follows_the_reason_costs_no_answer_that_is_whole(step: Any) -> None:
    relay = CHAT.relay(cuts=[(len(b"".join(openai.FRAMES[:-2])) + 3, "rst")])
    result = run(CHAT.stream(script(relay, *[step] * 30)))
    assert (result.data, result.outcome, result.error) == (CHAT.data[:-2], Outcome.COMPLETED, None)
    gone = isinstance(step, Reply) and step.status != 503
    assert len(result.stream.sent) == (2 if gone else 4)


def test_the_pace_of_words_that_repeat_is_no_replay() -> None:
    """Content alone would tell nothing: a model may say the same twice, or a hundred times."""
    blocks = [*[ev('{"word":"no"}')] * 100, ev("[DONE]")]
    cuts = [(len(blocks[0]) * 7, "rst")] * 30
    result = run(UNKNOWN.stream(Relay(blocks, cuts=cuts)))
    assert (len(result.data), result.outcome) == (101, Outcome.COMPLETED)


def test_ids_and_numbers_of_the_provider_are_not_ours() -> None:
    """A provider that repeats an id, or numbers in its own way: nothing is dropped, since that would break the count."""
    blocks = [ev("a", "1"), ev("a", "1"), ev("b", "7"), ev("b", "7"), ev("c", "2"), ev("[DONE]")]
    for at in range(0, len(b"".join(blocks)), 5):
        result = run(UNKNOWN.stream(Relay(blocks, cuts=[(at, "rst")])))
        assert result.data == ["a", "a", "b", "b", "c", "[DONE]"], at
    responses_twice = [responses.sse({**event, "sequence_number": 0}) for event in responses.LIVE]
    result = run(RESPONSES.stream(Relay(responses_twice, cuts=[(900, "fin")])))
    assert len(result.data) == len(responses.LIVE)


# --- what is asked --------------------------------------------------------------------------------------------------


def test_the_resume_is_a_get_without_what_belongs_to_the_start() -> None:
    result = run(CHAT.stream(CHAT.relay(cuts=[(300, "rst")])))
    rest = result.stream.sent[1]
    assert parse_qs(urlsplit(rest.url).query) == {"view": ["verbatim"], "after": [rest.params["after"]]}
    assert rest.headers["stream-heartbeat"] == "15"
    assert rest.request.headers["Idempotency-Key"] is None and rest.request.headers["Last-Event-ID"] is None
    assert rest.request.repeat is None


def test_a_key_in_the_query_goes_along_since_the_relay_looks_for_it() -> None:
    url = f"{gemini.URL}&key=s3cret"
    stream = GEMINI.stream(GEMINI.relay(cuts=[(300, "rst")]), url=url)
    result = run(stream)
    assert (result.data, result.stream.sent[1].params["key"]) == (GEMINI.data, "s3cret")
    cancel = stream.machine.requests.cancel()
    assert cancel is not None and cancel.params["key"] == "s3cret"
    assert "s3cret" not in stream.leave().to_json()


@pytest.mark.parametrize("after", [None, 0, 3])
def test_a_log_may_be_read_by_a_get_of_its_own(after: int | None) -> None:
    url = f"https://api.example.com{PLACE}?view=verbatim" + (f"&after={EPOCH}.{after}" if after is not None else "")
    for at in range(0, len(b"".join(openai.FRAMES)), 41):
        stream = Stream(CHAT.relay(cuts=[(at, "rst")]), url=url, detecting=True)
        result = run(stream)
        assert (result.data, result.outcome) == (CHAT.data[after or 0 :], Outcome.COMPLETED), at
        assert isinstance(stream.machine.protocol, Relayed)


def test_cancelling_asks_the_relay() -> None:
    relay = CHAT.relay()
    stream = CHAT.stream(relay).open()
    request = stream.machine.requests.cancel()
    assert request is not None
    assert (request.method, urlsplit(request.url).path) == ("POST", f"{PLACE}/cancel")


# --- ends that the relay tells --------------------------------------------------------------------------------------


@each_provider
@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_an_answer_that_lost_its_upstream_raises_as_without_a_relay(provider: Provider, outcome: Outcome) -> None:
    half = provider.blocks[: len(provider.blocks) // 2]
    relay = Relay(half, kind=provider.kind, ending=Ending(outcome=outcome, reason="upstream_cut"))
    result = run(provider.stream(relay))
    assert isinstance(result.error, StreamInterrupted)
    assert result.data == provider.data[: len(relay.events)]
    assert f"ended as {outcome.value}: upstream_cut" in str(result.error) and "cannot be resumed" in str(result.error)
    assert result.stream.sent[-1].params["after"] == f"k7q2.{len(relay.events)}"


def test_an_end_that_only_the_relay_saw_is_no_end_where_the_protocol_has_one() -> None:
    """The relay did not know the provider: `ended` says that the upstream closed cleanly, which proves nothing."""
    ended = Ending(outcome=Outcome.ENDED)
    assert isinstance(run(CHAT.stream(Relay(CHAT.blocks[:4], ending=ended))).error, StreamInterrupted)
    result = run(JSON_LINES.stream(JSON_LINES.relay(ending=ended)))
    assert (result.outcome, result.stream.machine.verified) == (Outcome.ENDED, True)


@pytest.mark.parametrize(
    ("told", "outcome"),
    [("incomplete; reason=length", Outcome.INCOMPLETE), ("completed", Outcome.COMPLETED), ("handed_over", None)],
)
def test_204_says_how_it_ended(told: str, outcome: Outcome | None) -> None:
    relay = CHAT.relay(cuts=[(300, "rst")])
    result = run(CHAT.stream(script(relay, Reply(status=204, headers={"stream-outcome": told}, type=""))))
    assert result.outcome is outcome
    assert (result.error is None) is (outcome is not None)


def test_204_without_an_outcome_is_asked_again_and_given_up() -> None:
    """A proxy took the header away: then nobody knows."""
    nothing = Reply(status=204, headers={"stream-closed": "true"}, type="")
    relay = CHAT.relay(cuts=[(300, "rst"), None])
    result = run(CHAT.stream(script(relay, nothing, nothing, relay)))
    assert (result.data, result.outcome) == (CHAT.data, Outcome.COMPLETED)
    result = run(CHAT.stream(script(CHAT.relay(cuts=[(300, "rst")]), *[nothing] * 9), delay=policy(4)))
    assert isinstance(result.error, RetriesExhausted)


def test_an_unproven_done_is_not_delivered_and_is_not_asked_for_again() -> None:
    blocks = [*openai.BEFORE, openai.DONE]
    result = run(CHAT.stream(Relay(blocks, ending=UPSTREAM_CUT)))
    assert isinstance(result.error, StreamInterrupted) and "[DONE] came without a finish_reason" in str(result.error)
    assert (len(result.stream.sent), "[DONE]" in result.data) == (1, False)


def test_an_error_of_the_provider_is_raised() -> None:
    blocks = [*openai.BEFORE[:4], ev('{"error":{"message":"overloaded","type":"server_error"}}')]
    result = run(CHAT.stream(Relay(blocks, ending=UPSTREAM_CUT)))
    assert isinstance(result.error, UpstreamError) and len(result.stream.sent) == 1


# --- a log that is gone, or is not ours -----------------------------------------------------------------------------


def test_a_log_that_was_made_anew_is_lost() -> None:
    result = run(CHAT.stream(CHAT.relay(cuts=[(300, "rst")], epoch="zz77")))
    assert isinstance(result.error, CursorExpired)
    assert "replaced by a new one" in str(result.error) and "'q3k'" in str(result.error) and "'k7q2." in str(result.error)
    assert result.data == CHAT.data[: len(result.data)]


def half(*, headers: dict[str, str] | None = None) -> Reply:
    head = {"stream-epoch": EPOCH, "content-location": PLACE, "stream-id": "q3k"}
    return Reply([b"".join(CHAT.blocks[:4]), "rst"], headers=head if headers is None else headers)


@pytest.mark.parametrize("epoch", [{"stream-epoch": "zz77"}, {}])
def test_an_answer_of_another_log_is_not_read_on(epoch: dict[str, str]) -> None:
    """Also one that says nothing of its log: a count of ours means nothing there."""
    result = run(CHAT.stream(script(half(), Reply(CHAT.blocks[4:], headers=epoch))))
    assert isinstance(result.error, CursorExpired) and "another stream" in str(result.error)
    assert len(result.data) == 3


@pytest.mark.parametrize(
    ("reply", "error", "told"),
    [
        (Reply([b'{"error":"not_found"}'], status=404, type="application/json"), CursorExpired, "is not yours"),
        (Reply([b"gone"], status=410, type="text/plain"), CursorExpired, "410"),
        (Reply(status=405, type=""), NotResumable, "405"),
        (Reply(status=400, type=""), ResponseRejected, "400"),
        (Reply(status=403, type=""), ResponseRejected, "403"),
    ],
)
def test_what_a_status_to_the_resume_means(reply: Reply, error: type, told: str) -> None:
    result = run(CHAT.stream(script(half(), reply, reply)))
    assert type(result.error) is error and told in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.offset == 3


def test_a_relay_that_restarts_is_asked_again_when_it_says() -> None:
    busy = Reply(status=503, headers={"retry-after": "9"}, type="")
    relay = CHAT.relay(cuts=[(300, "rst"), None])
    result = run(CHAT.stream(script(relay, busy, DROPPED, relay)))
    assert (result.data, result.outcome) == (CHAT.data, Outcome.COMPLETED)
    assert max(result.stream.sleeps) >= 9.0


def test_a_log_that_is_gone_is_begun_again_where_that_is_asked_for() -> None:
    lost = Reply(status=404, type="")
    relay = CHAT.relay(cuts=[(300, "rst"), None])
    result = run(CHAT.named(script(relay, lost, relay), on_lost="restart"))
    assert (result.data[-len(CHAT.data) :], result.outcome) == (CHAT.data, Outcome.COMPLETED)
    assert any(event.reset for event in result.events)
    assert relay.calls == {"key1", "key2"}


def test_a_stored_result_is_asked_for_through_the_relay() -> None:
    """Where the provider has one: the Responses API."""
    stored = json.dumps({**responses.RESULT, "status": "completed"}).encode()
    relay = RESPONSES.relay(cuts=[(900, "rst")])
    steps = [relay, Reply(status=404, type=""), Reply([stored], type="application/json")]
    result = run(RESPONSES.stream(script(*steps), on_lost="snapshot"))
    assert result.outcome is Outcome.COMPLETED and any(event.reset for event in result.events)
    assert result.stream.sent[-1].path == "/v1/responses/resp_1"
    # Others have none.
    missing = Reply(status=404, type="")
    assert isinstance(run(CHAT.stream(script(half(), missing), on_lost="snapshot")).error, CursorExpired)


# --- detection ------------------------------------------------------------------------------------------------------

STATE = StreamState("POST", openai.URL, openai.BODY)


def found(**headers: str) -> ResumeProtocol | None:
    given = {"content-type": SSE, "stream_epoch": EPOCH, "content_location": PLACE, **headers}
    return detect(STATE, Head(200, {name.replace("_", "-"): value for name, value in given.items() if value}, openai.URL))


@pytest.mark.parametrize("location", [PLACE, "https://api.example.com/.streams/q3k", "https://API.example.com:443/x", "x?t=5"])
def test_the_head_of_a_relay_is_known(location: str) -> None:
    protocol = found(content_location=location)
    assert isinstance(protocol, Relayed) and type(protocol.inner) is OpenAIChat


@pytest.mark.parametrize(
    "headers",
    [
        {"stream_epoch": ""},
        {"stream_epoch": "a.b"},
        {"stream_epoch": "x" * 65},
        {"content_location": ""},
        {"content_location": "https://evil.example.net/.streams/q3k"},
        {"content_location": "//evil.example.net/.streams/q3k"},
        {"content_location": "http://api.example.com/.streams/q3k"},
        {"content_location": "https://api.example.com:8443/.streams/q3k"},
        {"content_location": "https://api.example.com@evil.example.net/x"},
        {"content_location": "http://[::1/x"},
    ],
)
def test_a_head_that_only_looks_like_one_is_not_trusted(headers: dict[str, str]) -> None:
    assert type(found(**headers)) is OpenAIChat


@pytest.mark.parametrize("protocol", [None, Relayed(OpenAIChat())], ids=["detected", "named"])
def test_nothing_is_asked_of_another_origin(protocol: ResumeProtocol | None) -> None:
    elsewhere = {"stream-epoch": EPOCH, "content-location": "https://evil.example.net/.streams/q3k"}
    result = run(CHAT.stream(script(half(headers=elsewhere)), protocol=protocol))
    assert type(result.error) is (StreamInterrupted if protocol is None else OriginMismatch)
    assert len(result.stream.sent) == 1
    assert result.stream.machine.requests.cancel() is None


def test_a_redirect_to_another_origin_is_not_followed() -> None:
    away = Reply(status=307, headers={"location": "https://evil.example.net/x"}, type="")
    result = run(CHAT.stream(script(half(), away)))
    assert isinstance(result.error, OriginMismatch) and len(result.stream.sent) == 2


def test_what_takes_events_apart_or_reads_bytes_is_not_wrapped() -> None:
    head = {"stream-epoch": EPOCH, "content-location": PLACE}
    run_of = Head(200, {**head, "content-type": SSE, "x-workflow-run-id": "9"}, "https://x.example/chat")
    assert type(detect(StreamState("POST", "https://x.example/chat", {}), run_of)) is WorkflowRun
    file = Head(200, {**head, "content-type": "application/octet-stream"}, "https://x.example/file")
    assert type(detect(StreamState("GET", "https://x.example/file", None), file)) is ByteRange
    for inner in (WorkflowRun(), ByteRange(), HubStream(), Relayed(OpenAIChat())):
        with pytest.raises(ValueError, match="cannot be counted"):
            Relayed(inner)


def test_it_is_made_of_an_instance() -> None:
    with pytest.raises(TypeError, match=r"pass Relayed\(OpenAIChat\(\)\)"):
        Relayed(OpenAIChat)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an instance from"):
        Relayed("OpenAIChat")  # type: ignore[arg-type]


def test_it_reads_what_the_inner_one_reads() -> None:
    for provider in PROVIDERS:
        wrapped, inner = Relayed(provider.protocol), provider.protocol
        assert (wrapped.framing, wrapped.accept, wrapped.content_types) == (inner.framing, inner.accept, inner.content_types)
        for data in provider.data:
            event = StreamEvent("message", data)
            assert list(wrapped.deltas(event)) == list(inner.deltas(event))
            found = [(each.end(event), Structured.of(each).reads_json(event)) for each in (wrapped, inner)]
            assert found[0] == found[1]


# --- named: an answer that got lost ---------------------------------------------------------------------------------


@each_provider
@pytest.mark.parametrize("lost", [DROPPED, NO_ANSWER])
def test_a_start_whose_head_got_lost_is_sent_again_and_paid_once(provider: Provider, lost: Failure) -> None:
    relay = provider.relay(lost=[lost, lost], cuts=[(60, "rst")])
    result = run(provider.named(relay))
    assert (result.data, result.outcome) == (provider.data, Outcome.COMPLETED)
    assert relay.calls == {"key1"}
    posts = [sent for sent in result.stream.sent if sent.method == "POST"]
    assert len(posts) == 3
    assert {sent.headers["stream-heartbeat"] for sent in posts} == {"15"}


def test_without_the_name_it_is_not_sent_again() -> None:
    result = run(CHAT.stream(CHAT.relay(lost=[DROPPED]), new_key=keys()))
    assert isinstance(result.error, StreamInterrupted) and len(result.stream.sent) == 1


def test_the_key_of_the_caller_is_the_only_one() -> None:
    result = run(CHAT.named(script(DROPPED, CHAT.relay()), idempotent=True))
    assert (result.data, [sent.headers.get("idempotency-key") for sent in result.stream.sent]) == (CHAT.data, [None, None])


def test_a_key_that_is_taken_is_an_error_at_once() -> None:
    taken = Reply([b'{"error":"key_reused"}'], status=409, type="application/json")
    result = run(CHAT.named(script(taken)))
    assert isinstance(result.error, ResponseRejected) and "used for another request" in str(result.error)


def test_named_where_there_is_no_relay_it_is_the_inner_protocol_and_says_why() -> None:
    assert run(CHAT.named(script(Reply(CHAT.blocks)))).outcome is Outcome.COMPLETED
    for kind in ("rst", "close"):
        result = run(CHAT.named(script(Reply([*CHAT.blocks[:4], kind]))))
        assert isinstance(result.error, StreamInterrupted) and "no relay can send the rest" in str(result.error), kind
        assert len(result.stream.sent) == 1


# --- another process ------------------------------------------------------------------------------------------------


@each_provider
def test_another_process_goes_on_from_every_event(provider: Provider) -> None:
    for taken in range(1, len(provider.data) + 1):
        stream = provider.stream(provider.relay())
        before = [next(stream).data for _ in range(taken)]
        place = Checkpoint.from_token(stream.leave().token())
        assert place.offset == taken and place.protocol == f"Relayed({provider.name})"
        if place.complete:
            assert before == provider.data
            continue
        state = StreamState("POST", place.url, None)
        protocol = protocol_of(place, None, state)
        again = Stream(
            provider.relay(cuts=[(50, "rst")]),
            method="POST",
            url=place.url,
            protocol=protocol,
            checkpoint=place,
            started_elsewhere=True,
        )
        result = run(again)
        assert before + result.data == provider.data, taken
        assert (result.outcome, {sent.method for sent in again.sent}) == (Outcome.COMPLETED, {"GET"})


def test_a_place_behind_the_start_of_a_log_keeps_its_base() -> None:
    url = f"https://api.example.com{PLACE}?view=verbatim&after={EPOCH}.3"
    stream = Stream(CHAT.relay(), url=url, detecting=True)
    before = [next(stream).data for _ in range(2)]
    place = stream.leave()
    again = Stream(CHAT.relay(), url=place.url, protocol=protocol_of(place, None, stream.state), checkpoint=place)
    assert before + run(again).data == CHAT.data[3:]
    assert again.sent[0].params["after"] == f"{EPOCH}.5"


def test_options_of_the_inner_protocol_travel() -> None:
    body = {**openai.BODY, "n": 2}
    head = {"stream-epoch": EPOCH, "content-location": PLACE}
    stream = CHAT.stream(script(Reply(CHAT.blocks[:6], headers=head)), json=body)
    next(stream)
    place = stream.leave()
    assert place.extra["options"] == "choices=2"
    found = protocol_of(place, None, StreamState("POST", openai.URL, body))
    assert isinstance(found, Relayed) and found.options == "choices=2"
    with pytest.raises(ValueError, match="with options"):
        protocol_of(place, None, StreamState("POST", openai.URL, None))
    assert protocol_of(place, Relayed(OpenAIChat(choices=2)), STATE) is not None


def test_another_process_asks_with_the_same_key() -> None:
    place = run(CHAT.named(script(DROPPED), delay=policy(0))).error.checkpoint  # type: ignore[union-attr]
    assert place is not None and place.extra["idempotency_key"] == "key1"
    relay = CHAT.relay()
    again = run(CHAT.named(relay, new_key=lambda: "another", checkpoint=place))
    assert (relay.calls, again.data) == ({"key1"}, CHAT.data)


@pytest.mark.parametrize(
    "name", ["Relayed(Mine)", "Relayed(WorkflowRun)", "Relayed(Relayed(OpenAIChat))", "Relayed()", "Relayed"]
)
def test_a_name_that_means_nothing_here_is_none(name: str) -> None:
    assert named(name) is None


def test_a_forged_place_is_no_harm() -> None:
    for epoch, base in (("", "0"), ("a b", "x"), ("é\n", "-5"), ("k7q2", "9" * 30)):
        extra = {"stream_epoch": epoch, "stream_base": base, "location": f"https://api.example.com{PLACE}"}
        place = Checkpoint(protocol="Relayed(OpenAIChat)", method="POST", url=openai.URL, offset=3, extra=extra)
        gone = Reply(status=404, type="")
        result = run(CHAT.named(script(gone, gone), checkpoint=place, started_elsewhere=True))
        assert isinstance(result.error, (CursorExpired, NotResumable)), epoch


# --- silence --------------------------------------------------------------------------------------------------------


def test_a_heartbeat_tells_silence_from_a_dead_connection() -> None:
    """A model that thinks for three minutes, behind a relay that says each 15 seconds that it is there."""
    head = {"stream-epoch": EPOCH, "content-location": PLACE}
    quiet: list[Any] = [each for _ in range(12) for each in (Wait(15.0), b":\n\n")]
    result = run(CHAT.named(script(Reply([CHAT.blocks[1], *quiet, *CHAT.blocks[2:]], headers=head))))
    assert (result.data, len(result.stream.sent)) == (CHAT.data, 1)


def test_the_cursor_of_the_log_is_read_as_the_server_reads_it() -> None:
    result = run(CHAT.stream(CHAT.relay(cuts=[(300, "rst")])))
    after = Cursor.parse(result.stream.sent[1].params["after"])
    assert after.epoch == EPOCH and 0 <= after.n <= len(CHAT.data)
