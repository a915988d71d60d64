"""What a protocol can do beyond the minimum: found whether or not a class names it, and absent where it is not had."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from resumable_stream import Outcome, protocols
from resumable_stream._contract import Ability, Glance, alarm_of, overrides, placing, quiet_of
from resumable_stream._events import Gap, StreamEvent
from resumable_stream.protocols import (
    Alarm,
    Answer,
    Batched,
    CursorProtocol,
    Finished,
    Head,
    HubStream,
    Joined,
    LastEventID,
    Lost,
    Measured,
    OpenAIChat,
    OpenAIResponses,
    Position,
    Promises,
    Relayed,
    Replayed,
    Reporting,
    Request,
    ResumeProtocol,
    Shared,
    Snapshot,
    Stored,
    StreamState,
    Verified,
)

from ..core.simulation import Reply, Stream, ev, play, run

EVERY: list[type[Ability]] = [each for each in vars(protocols).values() if isinstance(each, type) and issubclass(each, Ability)]
ABILITIES = [each for each in EVERY if not issubclass(each, ResumeProtocol) and each is not Ability]


def members(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_base_has_what_everybody_needs_and_each_ability_the_rest_once() -> None:
    base = members(ResumeProtocol)
    assert len(base) <= 26
    named = [name for kind in ABILITIES for name in members(kind)]
    assert len(ABILITIES) > 10 and len(named) == len(set(named))
    assert base.isdisjoint(named)
    # The names of the contract stay where they are.
    assert base >= {"matches", "identify", "position", "end", "error", "deltas", "resume_request", "on_status", "on_clean_close"}
    assert base >= {"snapshot_request", "cancel_request", "promises"}


@pytest.mark.parametrize("kind", ABILITIES, ids=lambda kind: kind.__name__)
def test_each_says_what_it_is_for(kind: type[Ability]) -> None:
    assert kind.__doc__


@pytest.mark.parametrize("kind", ABILITIES, ids=lambda kind: kind.__name__)
def test_a_class_with_any_member_of_an_ability_has_all_of_it(kind: type[Ability]) -> None:
    for name in members(kind):
        own = type("Own", (ResumeProtocol,), {name: vars(kind)[name]})
        assert issubclass(own, kind) and own.__name__ == "Own"
        assert isinstance(Ability.of.__func__(kind, own()), own)  # type: ignore[attr-defined]
        assert all(hasattr(own(), other) for other in members(kind))
        assert not any(issubclass(own, other) for other in ABILITIES if other is not kind)
    assert not isinstance(ResumeProtocol(), kind)


def test_a_class_that_names_none_can_call_what_it_overrides() -> None:
    class Own(ResumeProtocol):
        def on_verified(self, answer: Answer, state: StreamState) -> Any:
            return Finished(Outcome.COMPLETED) if answer.status == 404 else super().on_verified(answer, state)  # type: ignore[misc]

    own, state = Verified.of(Own()), StreamState("GET", "https://api.example.com")
    assert own.on_verified(Answer(404, {}, b""), state) == Finished(Outcome.COMPLETED)
    assert own.on_verified(Answer(200, {}, b""), state) == protocols.Resume()
    assert own.status_request(state) is None


def test_an_ability_may_come_from_a_class_that_is_no_protocol() -> None:
    class Gaps:
        def gap(self, event: Any) -> Gap | None:
            return Gap(after=event.cursor)

    for bases in ((Gaps, ResumeProtocol), (ResumeProtocol, Gaps), (Gaps, LastEventID)):
        own = type("Own", bases, {})()
        assert Reporting.of(own).gap(StreamEvent("x", "")) == Gap(after=None)


def test_it_can_be_named_in_any_order_and_again() -> None:
    class First(Verified, ResumeProtocol): ...

    class Last(ResumeProtocol, Verified): ...

    class Again(LastEventID, Reporting): ...

    assert all(Verified.of(kind()) for kind in (First, Last))
    assert isinstance(Again(), Reporting)


def test_any_two_protocols_can_be_combined() -> None:
    """In whichever order their authors named the abilities, and whichever of them they left to be found."""

    asking = Request(method="GET", url="https://api.example.com/run")

    class Asks(ResumeProtocol, Stored, Verified): ...

    class Stores(ResumeProtocol):
        def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot | None:
            return None

    class StoresAndAsks(Stores):
        def status_request(self, state: StreamState) -> Request | None:
            return asking

    class Both(ResumeProtocol, Verified, Stored): ...

    ours = [each for each in vars(protocols).values() if isinstance(each, type) and issubclass(each, ResumeProtocol)]
    for one, other in permutations([*ours, Asks, StoresAndAsks, Both], 2):
        if not (issubclass(one, other) or issubclass(other, one)):
            type("Own", (one, other), {})
    mixed = type("Own", (Both, StoresAndAsks), {})()
    assert Verified.of(mixed).status_request(StreamState("GET", "https://api.example.com")) == asking


def test_an_option_that_only_the_constructor_sets_counts() -> None:
    class Own(ResumeProtocol):
        def __init__(self) -> None:
            self.replays = True
            self.alarm = Alarm(frozenset({"bye"}), frozenset())

    assert Replayed.of(Own()).replays is True
    assert Replayed.of(Own()).reaches_back(StreamState("GET", "https://api.example.com")) is False
    assert Replayed.of(ResumeProtocol()).replays is False
    assert Glance.of(Own()).alarm == Alarm(frozenset({"bye"}), frozenset())


def test_one_that_is_absent_answers_that_there_is_nothing_to_do() -> None:
    state, answer, event = StreamState("GET", "https://api.example.com"), Answer(200, {}, b"{}"), StreamEvent("message", "x")
    plain = ResumeProtocol()
    assert Verified.of(plain).status_request(state) is None
    assert Stored.of(plain).on_snapshot(answer, state) is None
    assert list(Batched.of(plain).unpack(event)) == [event]
    assert Shared.of(plain).end_in(state, event, Outcome.COMPLETED) is Outcome.COMPLETED
    assert (Measured.of(plain).counted, Joined.of(plain).joins) == (False, False)


def test_a_wrapper_passes_on_what_its_inner_protocol_can() -> None:
    for inner, can in ((OpenAIChat(), True), (LastEventID(), False)):
        wrapped = Relayed(inner)
        assert (wrapped.ability(Shared) is inner) is can
        assert wrapped.ability(Measured) is wrapped
    # How to ask for the rest is the relay's business.
    assert Relayed(LastEventID()).ability(Replayed) is None
    assert Relayed(OpenAIResponses()).ability(Stored) is not None


# --- a protocol written before there were abilities ------------------------------------------------------------------


class Everything(ResumeProtocol):
    """It names nothing, as `docs/how-to/your-own-endpoint.md` has it."""

    json_names = frozenset({"message"})

    def unpack(self, event: Any) -> Sequence[Any]:
        return () if event.event == "ping" else (event,)

    def end(self, event: Any) -> Outcome | None:
        return Outcome.COMPLETED if event.event == "bye" else None

    def gap(self, event: Any) -> Gap | None:
        return Gap(after=event.cursor) if event.event == "lost" else None

    def resume_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url=state.url, headers={"Last-Event-ID": state.cursor}, repeat="all")

    def on_clean_close(self, state: StreamState) -> Any:
        return protocols.Resume()

    def on_status(self, status: int, headers: Any, body: bytes, state: StreamState) -> Any:
        return Lost("gone") if status == 410 else None

    def snapshot_request(self, state: StreamState) -> Request | None:
        return Request(method="GET", url=f"{state.url}/result")

    def on_snapshot(self, answer: Answer, state: StreamState) -> Snapshot:
        return Snapshot([StreamEvent("result", answer.body.decode())], reset=True, outcome=Outcome.COMPLETED)


def test_a_protocol_that_names_nothing_is_asked_all_that_it_answers() -> None:
    first = Reply([ev("a", "1") + ev("", None, "ping") + ev("b", "2"), "rst"])
    result = play(first, Reply([ev("c", "3") + ev("d", "4", "bye")]), protocol=Everything())
    assert (result.data, result.outcome) == (["a", "b", "c", "d"], Outcome.COMPLETED)
    stored = [first, Reply(status=410, type=""), Reply([b"all of it"], type="text/plain")]
    result = play(*stored, protocol=Everything(), on_lost="snapshot")
    assert (result.data, result.outcome) == (["a", "b", "all of it"], Outcome.COMPLETED)
    lost = Reply([ev("a", "1") + ev("-", None, "lost") + ev("b", "9") + ev("c", "10", "bye")])
    again = Reply([ev("-", None, "lost") + ev("b", "9") + ev("c", "10", "bye")])
    result = play(lost, again, protocol=Everything(), on_gap="deliver")
    assert (result.data[0], result.data[-2:], result.outcome) == ("a", ["b", "c"], Outcome.COMPLETED)
    assert any(event.gap is not None for event in result.events)


# --- what a class says at a glance describes its own methods ---------------------------------------------------------


def test_an_inherited_place_is_not_used_if_a_subclass_has_its_own_positions() -> None:
    """Otherwise the subclass would never be asked, without a word."""

    class ByLine(LastEventID):
        def position(self, event: Any) -> Position:
            return Position(event.data.partition(" ")[0])

    class ByData(CursorProtocol):
        def position(self, event: Any) -> Position:
            return Position(f"own {event.data}")

    class Log(HubStream):
        def position(self, event: Any) -> Position:
            return Position(f"own {event.data}")

    for protocol, cursor in (
        (ByLine(), "7"),
        (ByLine(sequence="contiguous"), "7"),
        (ByData(read="id", send="query:after"), "own 7 x"),
        (Log(), "own 7 x"),
    ):
        place = placing(protocol)
        assert place is not None
        event = StreamEvent("message", "7 x", own_id="1")
        place([event])
        assert (event.cursor, event.moves) == (cursor, True)

    seen: list[Any] = []

    def answer(sent: Any) -> Reply:
        seen.append(sent.headers.get("last-event-id"))
        return Reply([ev("7 a", "1") + ev("8 b", "2"), "rst"]) if len(seen) == 1 else Reply([ev("[DONE]", "3")])

    assert run(Stream(answer, protocol=ByLine())).outcome is Outcome.COMPLETED
    assert seen == [None, "8"]


def test_a_subclass_that_says_it_anew_is_heeded() -> None:
    class Own(CursorProtocol):
        def position(self, event: Any) -> Position:
            raise AssertionError("place() is enough")

        def place(self, events: Sequence[Any]) -> None:
            for event in events:
                event.cursor, event.moves = "own", True

    place, event = placing(Own(read="id", send="query:after")), StreamEvent("message", "x", own_id="1")
    assert place is not None
    place([event])
    assert event.cursor == "own"


def test_the_decoder_places_plain_events() -> None:
    assert placing(ResumeProtocol()) is None
    assert placing(LastEventID()) is None
    assert not overrides(LastEventID(), "position")
    assert (alarm_of(ResumeProtocol()), quiet_of(ResumeProtocol())) == (None, None)


# --- what a class promises decides what it does not say ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("resumable", "has_end", "verdict"),
    [
        (True, False, Finished(Outcome.ENDED)),
        (False, False, Finished(Outcome.ENDED)),
        (True, True, protocols.Resume()),
        (False, True, protocols.Interrupted("closed before the end")),
    ],
)
def test_a_close_before_the_promised_end_is_a_cut(resumable: bool, has_end: bool, verdict: Any) -> None:
    class Own(ResumeProtocol):
        promises = Promises(resumable=resumable, numbered=False, has_end=has_end)

    assert Own().on_clean_close(StreamState("GET", "https://api.example.com")) == verdict


def test_what_claims_a_request_matches_its_response_of_the_right_type() -> None:
    class Own(ResumeProtocol):
        def claims(self, request: StreamState, head: Head) -> bool:
            return request.method == "POST"

    for method, kind, found in (
        ("POST", "text/event-stream", True),
        ("POST", "text/html", False),
        ("GET", "text/event-stream", False),
    ):
        head = Head(200, {"content-type": kind}, "https://api.example.com")
        assert Own().matches(StreamState(method, "https://api.example.com"), head) is found
        assert not ResumeProtocol().matches(StreamState(method, "https://api.example.com"), head)
