"""What an event settles, and for how long: behind a replay, in another process, and for whom it was held back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream import Outcome, protocols
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Alarm, Glance, Replayed, alarm_of, quiet_of
from resumable_stream._errors import RetriesExhausted, StreamInterrupted, UpstreamError
from resumable_stream._events import StreamEvent
from resumable_stream._settings import Timeouts
from resumable_stream.protocols import (
    Agno,
    AISDKStream,
    CursorProtocol,
    LangGraphThread,
    LastEventID,
    LlamaCpp,
    OpenAIChat,
    Position,
    Relayed,
    Request,
    ResumeProtocol,
    Settled,
    StreamState,
    WorkflowRun,
    _registry,
)
from resumable_stream.protocols.relayed import can_relay

from ..cutting import Where
from .simulation import CUTS, Reply, Sent, Stream, Wait, cut_body, ev, policy, run, script

CHAT = "https://api.example.com/api/chat"


def part(kind: str, **fields: Any) -> bytes:
    return ev(json.dumps({"type": kind, **fields}, separators=(",", ":")))


def delta(text: str) -> bytes:
    return part("text-delta", id="1", delta=text)


@pytest.mark.parametrize("cut", CUTS)
def test_a_settling_event_that_comes_again_settles_nothing_anew(cut: str, where: Where) -> None:
    """Two messages in one stream. The replay brings the end of the first one again, and is cut in front of our place."""
    parts = [part("start"), delta("one"), part("finish"), part("start"), delta("two"), delta("three"), part("finish")]
    replay, seen = [*parts, ev("[DONE]")], b"".join(parts[:5])
    body = b"".join(replay)
    rows = [each.decode()[6:-2] for each in parts]
    for position in where(replay)[:-1]:
        answers = [Reply([seen, "rst"]), Reply(cut_body(body, (position, cut), None)), Reply([body])]
        result = run(Stream(lambda sent, answers=answers: answers.pop(0), url=CHAT, protocol=AISDKStream()))
        assert result.outcome is Outcome.COMPLETED
        assert result.data[: len(rows)] == rows, f"{cut} at {position}"


def chunk(text: str | None, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": reason}
    return ev(json.dumps({"choices": [choice]}))


@pytest.mark.parametrize("protocol", [LlamaCpp("id"), OpenAIChat(), WorkflowRun(), AISDKStream()], ids=lambda each: each.name)
@pytest.mark.parametrize("status", [200, 204, 404, 500])
def test_another_process_knows_what_was_settled(protocol: ResumeProtocol, status: int) -> None:
    """Behind the event that says how it ended any close is the end, whoever reads on."""
    chat = isinstance(protocol, OpenAIChat)
    parts = [chunk("Hello"), chunk(None, "stop")] if chat else [part("start"), part("finish")]
    head = {"x-workflow-run-id": "run"} if isinstance(protocol, WorkflowRun) else {}
    first = script(Reply([b"".join(parts), "silence"], headers=head))
    body = {"messages": [], "stream": True, "id": "chat-1"}
    options: dict[str, Any] = {"method": "POST", "url": CHAT, "json": body, "protocol": protocol, "delay": policy(2)}
    stream = Stream(first, **options)
    taken = [next(stream), next(stream)]
    assert len(taken) == 2
    stream.leave()
    # What settled it has to be taken: the place in front of it settles nothing.
    place = Checkpoint.from_token(stream.checkpoint.token())
    assert place.extra["settled"] == "completed"

    def answer(sent: Sent) -> Reply:
        whole = Replayed.of(protocol).replays
        return Reply([], status=status) if status != 200 else Reply([b"".join(parts)] if whole else [])

    result = run(Stream(answer, checkpoint=place, **options))
    assert (result.error, result.outcome, result.data) == (None, Outcome.COMPLETED, [])


def test_the_place_in_front_of_it_settles_nothing() -> None:
    stream = Stream(
        script(Reply([chunk("Hello"), chunk(None, "stop"), "silence"])), url=CHAT, method="POST", protocol=LlamaCpp("i")
    )
    next(stream)
    next(stream)
    # In the loop body of the second.
    assert "settled" not in stream.checkpoint.extra


class Numbered(ResumeProtocol):
    """A cursor and no id of its own: what came can be told apart by content alone."""

    def position(self, event: Any) -> Position:
        return Position(str(event.json()["at"]))

    def fingerprint(self, event: Any) -> str:
        return str(event.json()["text"])

    def end(self, event: Any) -> Settled | Outcome | None:
        return Outcome.COMPLETED if event.json()["text"] == "end" else None

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url=state.url, params={"after": state.cursor or "-1"})


def test_an_answer_that_says_the_same_twice_is_no_beginning() -> None:
    texts = ["ha"] * 20 + ["end"]
    events = [ev(json.dumps({"at": at, "text": text})) for at, text in enumerate(texts)]

    def answer(sent: Sent) -> Reply:
        rest = events[int(sent.params.get("after", -1)) + 1 :]
        return Reply([b"".join(rest[:3]), "rst"] if len(rest) > 3 else rest)

    result = run(Stream(answer, url=CHAT, protocol=Numbered()))
    assert [json.loads(data)["at"] for data in result.data] == list(range(21))
    assert not result.stream.machine.stats.cursor_ignored


def test_a_numbered_answer_that_says_the_same_twice_is_no_beginning() -> None:
    def content(at: int) -> bytes:
        return ev(json.dumps({"run_id": "r", "event_index": at, "content": "ha"}), event="RunContent")

    events = [*map(content, range(6)), ev('{"run_id":"r","event_index":6}', event="RunCompleted")]

    def answer(sent: Sent) -> Reply:
        rest = events[int((sent.form or {}).get("last_event_index", -1)) + 1 :]
        return Reply([b"".join(rest[:2]), "rst"] if len(rest) == 7 else rest)

    url = "https://api.example.com/agents/a/runs"
    result = run(Stream(answer, method="POST", url=url, protocol=Agno()))
    assert [event.sequence for event in result.events] == list(range(7))


class States(ResumeProtocol):
    """Each answer states how things stand: all before is void."""

    endless = True  # so that it is asked again without a cursor

    def on_status(self, status: int, headers: Any, body: bytes, state: StreamState) -> Any:
        from resumable_stream.protocols import Consume

        return Consume(reset=state.resuming)

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url=state.url)

    def on_clean_close(self, state: StreamState) -> Any:
        from resumable_stream.protocols import Resume

        return Resume()


def test_a_server_that_only_states_how_things_stand_is_not_asked_for_ever() -> None:
    def answer(sent: Sent) -> Reply:
        states.append(len(states))
        return Reply([ev(f"state {states[-1] % 2}")])

    states: list[int] = []
    stream = Stream(answer, url=CHAT, protocol=States(), delay=policy(3))
    result = run(stream)
    assert type(result.error) is RetriesExhausted
    assert 20 < len(stream.sent) < 30
    assert StreamEvent(data="state 0") in result.events


# --- what disproves it, and how long it is waited for ---------------------------------------------------------------


def chat(*chunks: bytes, end: str = "close") -> Any:
    body = {"model": "m", "messages": [], "stream": True}
    url = "https://api.example.com/v1/chat/completions"
    return run(Stream(script(Reply([*chunks, end])), method="POST", url=url, json=body, protocol=OpenAIChat()))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("end", ["rst", "fin", "close", "silence"])
def test_content_after_the_settling_event_disproves_it(end: str, together: bool) -> None:
    """su-kaka/gcli2api#403, BerriAI/litellm#2195: each chunk has text and `finish_reason: stop`, so that reason says nothing."""
    chunks = [chunk("Hel", "stop"), chunk("lo", "stop")]
    result = chat(*([b"".join(chunks)] if together else chunks), end=end)
    assert result.outcome is None
    assert isinstance(result.error, StreamInterrupted)
    assert "after the event that said how it ends" in str(result.error)
    assert len(result.events) == 2


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "tail", [[ev("[DONE]")], [chunk("", "stop")], [chunk(None, "stop"), ev("[DONE]")]], ids=["done", "empty", "both"]
)
def test_such_an_answer_is_whole_after_done_or_a_reason_without_content(tail: list[bytes], together: bool) -> None:
    chunks = [chunk("Hel", "stop"), chunk("lo", "stop"), *tail]
    result = chat(*([b"".join(chunks)] if together else chunks))
    assert (result.outcome, result.error) == (Outcome.COMPLETED, None)
    assert len(result.events) == len(chunks)


def test_content_without_a_reason_after_the_reason_is_not_saved_by_done() -> None:
    result = chat(chunk("Hel", "stop"), chunk("lo"), ev("[DONE]"))
    assert isinstance(result.error, StreamInterrupted)
    assert len(result.events) == 2


def test_usage_after_the_settling_event_disproves_nothing() -> None:
    usage = ev(json.dumps({"choices": [], "usage": {"total_tokens": 7}}))
    assert chat(chunk("hi", "stop"), chunk("", None), usage, end="rst").outcome is Outcome.COMPLETED


def test_of_plain_events_usage_looks_like_text_and_disproves_nothing() -> None:
    protocol = LastEventID(end=lambda event: Settled(Outcome.COMPLETED) if event.data == "over" else None)
    result = run(Stream(script(Reply([ev("a", "1"), ev("over", "2"), ev("usage: 7", "3"), "rst"])), protocol=protocol))
    assert (result.data, result.outcome) == (["a", "over", "usage: 7"], Outcome.COMPLETED)


def test_where_the_stream_can_be_resumed_a_disproved_end_is_a_cut() -> None:
    """Another turn begins after the first one's end; its own end is believed again."""

    def said(own_id: str, **fields: Any) -> bytes:
        return ev(json.dumps(fields), own_id)

    protocol = LastEventID(text="text", end=lambda event: Settled(Outcome.COMPLETED) if event.json().get("over") else None)
    first = Reply([said("1", text="a"), said("2", over=True), said("3", text="b"), "rst"])
    second = Reply([said("4", text="c"), said("5", over=True), "rst"])
    result = run(Stream(script(first, second), protocol=protocol))
    assert [event.id for event in result.events] == ["1", "2", "3", "4", "5"]
    assert result.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("beats", [True, False])
def test_once_the_outcome_is_settled_seconds_are_enough(beats: bool) -> None:
    """maximhq/bifrost#6784: heartbeats for ever after the `finish_reason`. What may still come follows at once, or never."""
    tail: list[Any] = [step for _ in range(1000) for step in (Wait(1), b": heartbeat\n\n")] if beats else ["silence"]
    body = {"model": "m", "messages": [], "stream": True}
    url = "https://api.example.com/v1/chat/completions"
    stream = Stream(
        script(Reply([chunk("hi"), chunk(None, "stop"), *tail])), method="POST", url=url, json=body, protocol=OpenAIChat()
    )
    result = run(stream)
    assert (result.outcome, result.error) == (Outcome.COMPLETED, None)
    assert stream.elapsed <= 12


def test_a_shorter_clock_of_the_callers_stays_shorter() -> None:
    body = {"model": "m", "messages": [], "stream": True}
    url = "https://api.example.com/v1/chat/completions"
    answer = Reply([chunk("hi"), chunk(None, "stop"), "silence"])
    stream = Stream(script(answer), method="POST", url=url, json=body, protocol=OpenAIChat(), timeouts=Timeouts(idle=3))
    assert run(stream).outcome is Outcome.COMPLETED
    assert stream.elapsed <= 4


@pytest.mark.parametrize("beats", [True, False])
def test_a_deadline_after_the_outcome_is_settled_is_the_end(beats: bool) -> None:
    """Rule 7a: any close after it is the end, ours too. The answer is whole."""
    body = {"model": "m", "messages": [], "stream": True}
    url = "https://api.example.com/v1/chat/completions"
    tail: list[Any] = [Wait(1), b": heartbeat\n\n"] * 60 if beats else ["silence"]
    answer = Reply([Wait(5), chunk("hi"), chunk(None, "stop"), *tail])
    stream = Stream(script(answer), method="POST", url=url, json=body, protocol=OpenAIChat(), timeouts=Timeouts(deadline=8.0))
    result = run(stream)
    assert (result.outcome, result.error) == (Outcome.COMPLETED, None)
    assert stream.elapsed <= 9


# --- the last event without its empty line --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 2])
def test_the_event_that_proves_the_end_needs_no_empty_line_before_a_clean_close(missing: int) -> None:
    """openai/openai-node#2725. JSON that can be read is whole, and it says how the stream ends."""
    last = chunk(None, "stop")[:-missing]
    result = chat(chunk("hi"), last)
    assert (result.outcome, len(result.events)) == (Outcome.COMPLETED, 2)
    assert isinstance(chat(chunk("hi"), last, end="rst").error, StreamInterrupted)
    assert isinstance(chat(chunk("hi"), last, end="fin").error, StreamInterrupted)


def test_half_of_it_proves_nothing() -> None:
    last = chunk(None, "stop")
    for position in range(len(last) - 3):
        result = chat(chunk("hi"), last[:position])
        assert (type(result.error), len(result.events)) == (StreamInterrupted, 1), position


@pytest.mark.parametrize("tail", ["data: [DONE]", "data: [DONE]\n", "id: 3\ndata: [DONE]\r\n"])
def test_a_marker_needs_no_empty_line_either(tail: str) -> None:
    result = run(Stream(script(Reply([ev("a", "1"), tail.encode()])), protocol=LastEventID()))
    assert (result.data, result.outcome) == (["a", "[DONE]"], Outcome.COMPLETED)


@pytest.mark.parametrize("tail", ["data: [DON", "data: over", "data: [DONE]x", ": [DONE]", "id: [DONE]"])
def test_what_may_be_a_piece_of_something_is_dropped(tail: str) -> None:
    """Of a word, nothing shows that it is whole; with its line end it is."""
    answers = [Reply([ev("a", "1"), tail.encode()]), Reply([ev("b", "2"), ev("over", "3")])]
    result = run(Stream(script(*answers), protocol=LastEventID(end="over")))
    assert result.data == ["a", "b", "over"]
    ended = run(Stream(script(Reply([ev("a", "1"), b"data: over\n"])), protocol=LastEventID(end="over")))
    assert (ended.data, ended.outcome) == (["a", "over"], Outcome.COMPLETED)


def test_an_error_without_its_empty_line_is_the_providers_error() -> None:
    result = chat(chunk("hi"), b'data: {"error": {"message": "overloaded"}}')
    assert isinstance(result.error, UpstreamError)


@pytest.mark.parametrize("tail", ["data: [DONE]", "data: [DONE]\n", "data: [DONE]\r"])
@pytest.mark.parametrize("reasons", [["stop"], ["stop", "stop"]])
def test_done_after_a_reason_needs_no_empty_line_either(reasons: list[str], tail: str) -> None:
    """Those who read the bytes look for it, and it says no more than is known."""
    result = chat(*(chunk("hi", reason) for reason in reasons), tail.encode())
    assert (result.outcome, result.events[-1].data) == (Outcome.COMPLETED, "[DONE]")
    assert isinstance(chat(chunk("hi"), tail.encode()).error, StreamInterrupted)


# --- a subclass that judges for itself ------------------------------------------------------------------------------


class Bye(LastEventID):
    """An end of its own, under an inherited alarm that does not know of it."""

    def end(self, event: Any) -> Any:
        return Outcome.COMPLETED if event.event == "bye" else super().end(event)


class Fatal(OpenAIChat):
    def error(self, event: Any) -> UpstreamError | None:
        return UpstreamError("fatal", type="fatal", body=None) if event.event == "fatal" else super().error(event)


def test_an_end_of_a_subclass_is_asked_about_every_event() -> None:
    result = run(Stream(script(Reply([ev("a", "1"), ev("b", "2"), ev("x", "3", event="bye"), ev("y", "4")])), protocol=Bye()))
    assert (result.data, result.outcome) == (["a", "b", "x"], Outcome.COMPLETED)
    assert len(result.stream.sent) == 1


def test_an_error_of_a_subclass_is_asked_about_every_event() -> None:
    body = {"model": "m", "messages": [], "stream": True}
    answer = Reply([chunk("hi"), ev("{}", event="fatal"), chunk(None, "stop")])
    result = run(Stream(script(answer), method="POST", json=body, protocol=Fatal()))
    assert isinstance(result.error, UpstreamError) and len(result.events) == 1


class SaysBye:
    """Beside a protocol, not below one."""

    def end(self, event: Any) -> Any:
        return Outcome.COMPLETED if event.event == "bye" else super().end(event)  # type: ignore[misc]


def subclasses() -> dict[str, Any]:
    """Each way to judge events in one's own way, over each protocol that can be made without options."""
    ready = [getattr(protocols, name) for name in _registry.__all__]
    bases = [base for base in ready if base not in (CursorProtocol, LlamaCpp, Relayed)]
    own = {judge: lambda self, event: None for judge in ("end", "error", "gap")}
    made = {f"{base.__name__}-{name}": type("Mine", (base,), {name: own[name]}) for base in bases for name in own}
    made |= {f"{base.__name__}-beside": type("Mine", (SaysBye, base), {}) for base in bases}
    return made


def test_a_subclass_that_judges_for_itself_is_asked_about_every_event() -> None:
    """Whatever alarm it inherits, and with no word of its own about it. One below that judges nothing changes nothing."""
    for name, mine in subclasses().items():
        for made in (mine(), type("Below", (mine,), {})()):
            assert alarm_of(made) is None, name
            assert quiet_of(made) is None, name
            if can_relay(made):
                assert alarm_of(Relayed(made)) is None, name
                # `Relayed` passes the question on, and here nobody has an answer.
                quiet = quiet_of(Relayed(made))
                assert quiet is None or not quiet(b'data: {"choices":[{"delta":{"content":"x"}}]}'), name


def test_one_that_says_its_own_alarm_is_asked_about_those_events_only() -> None:
    asked = []

    class Quick(LangGraphThread):
        alarm = Alarm(frozenset({"bye"}), frozenset())

        def end(self, event: Any) -> Any:
            asked.append(event.event)
            return Outcome.COMPLETED if event.event == "bye" else None

    body = Reply([ev("a", "1-0", event="x"), ev("b", "2-0", event="bye")])
    assert run(Stream(script(body), protocol=Quick())).outcome is Outcome.COMPLETED
    assert asked == ["bye"]


def test_the_alarm_of_every_protocol_covers_what_it_judges() -> None:
    """Only a matter of speed, but a large one: a protocol whose alarm is not heeded is asked about each event."""
    made = [getattr(protocols, name) for name in protocols.__all__]
    kinds = [kind for kind in made if isinstance(kind, type) and issubclass(kind, ResumeProtocol)]
    for kind in kinds:
        if kind in (CursorProtocol, LlamaCpp, ResumeProtocol, Relayed):
            continue
        protocol = kind()
        alarm = Glance.of(protocol).alarm
        assert alarm_of(protocol) is alarm, kind
        quiet = alarm is None and "quiet" in vars(kind)
        assert (quiet_of(protocol) is not None) is quiet, kind
        if can_relay(protocol):
            assert alarm_of(Relayed(protocol)) == alarm, kind
            assert (quiet_of(Relayed(protocol)) is not None) is (alarm is None), kind
