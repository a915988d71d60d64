"""What an event settles, and for how long: behind a replay, in another process, and for whom it was held back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream import Outcome
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._errors import RetriesExhausted
from resumable_stream._events import StreamEvent
from resumable_stream.protocols import (
    Agno,
    AISDKStream,
    LlamaCpp,
    OpenAIChat,
    Position,
    Request,
    ResumeProtocol,
    Settled,
    StreamState,
    WorkflowRun,
)

from ..cutting import Where
from .simulation import CUTS, Reply, Sent, Stream, cut_body, ev, policy, run, script

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
        return Reply([], status=status) if status != 200 else Reply([b"".join(parts)] if protocol.replays else [])

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
