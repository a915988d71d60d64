"""What a caller's own code is given, and what becomes of the stream when it raises."""

# ruff: noqa: PT012  -- the exception comes out of a whole `async with` block: that is what is tested

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs
from resumable_stream.protocols import LastEventID, ReplayFromZero
from resumable_stream.testing import Reply, ScriptedClient

if TYPE_CHECKING:
    from tests.conftest import Row

Scripted = Callable[..., ScriptedClient]

URL = "https://api.example.com/answers"
NOTE = "the place is in the stream's `checkpoint`"


def part(first: int, last: int, *, cut: bool = True, **headers: str) -> Reply:
    body = [f"id: {n}\ndata: event {n}\n\n".encode() for n in range(first, last + 1)]
    return Reply(body=[*body, "read_error" if cut else b"data: [DONE]\n\n"], headers=headers)


FIRST = part(1, 3, **{"x-answer-id": "a 7"})
RECIPES = {
    "kept": LastEventID(resume=lambda state: f"/answers/{state.kept['x-answer-id']}/events", keep=("X-Answer-Id",)),
    "stream_id": LastEventID(resume=lambda state: f"/answers/{state.stream_id}/events", stream_id="header:X-Answer-Id"),
    "filled": LastEventID(resume="/answers/{stream_id}/events", stream_id="header:X-Answer-Id"),
}


@pytest.mark.parametrize("recipe", RECIPES)
async def test_what_resume_needs_of_the_first_answer_is_there_at_every_cut_and_from_a_token(
    row: Row, scripted_client: Scripted, recipe: str
) -> None:
    """`state.head` is the latest head: the answers to a GET of the rest need not have the header, or may have another."""
    second, third = part(4, 6, **{"x-other": "1"}), part(7, 9, **({"x-answer-id": "b"} if recipe == "kept" else {}))
    script = scripted_client([FIRST, second, third, part(10, 12, cut=False)], row.family)
    protocol = RECIPES[recipe]
    async with row.connect("POST", URL, client=row.scripted(script), json={}, protocol=protocol) as stream:
        async for event in stream:
            if event.id == "8":
                break
    assert [request.url for request in script.requests] == [URL, *[f"{URL}/a%207/events"] * 2]
    again = row.resume(stream.token, client=row.scripted(script), origin=URL, protocol=protocol)
    # The third answer is closed with the process; the fourth is asked for from its place.
    assert [event.id for event in await row.read(again)][-1] == "12"
    assert script.requests[-1].url == f"{URL}/a%207/events"
    assert script.requests[-1].headers["last-event-id"] == "8"


async def test_a_replay_from_zero_keeps_headers_too(row: Row, scripted_client: Scripted) -> None:
    protocol = ReplayFromZero(end="[DONE]", resume=lambda state: f"/answers/{state.kept['x-answer-id']}", keep=["x-answer-id"])
    script = scripted_client([FIRST, part(1, 6), part(1, 9, cut=False)], row.family)
    stream = row.connect("POST", URL, client=row.scripted(script), json={}, protocol=protocol)
    assert [event.id for event in await row.read(stream)] == [*map(str, range(1, 10)), "9"]
    assert [request.url for request in script.requests] == [URL, *[f"{URL}/a%207"] * 2]


@pytest.mark.parametrize("name", ["Set-Cookie", "authorization", "Cookie"])
def test_nothing_that_grants_access_may_be_kept(name: str) -> None:
    """A checkpoint travels."""
    with pytest.raises(ValueError, match=f"not name anything that grants access.*'{name.lower()}'"):
        LastEventID(keep=(name,))
    with pytest.raises(TypeError, match="collection of header names"):
        LastEventID(keep=name)


def test_only_what_is_named_and_there_is_kept() -> None:
    assert RECIPES["kept"].keeps == {"header:x-answer-id"}
    assert LastEventID().keeps == frozenset()
    assert RECIPES["kept"].options != LastEventID(resume=lambda state: None).options


class Mistake(Exception):
    pass


def fails(*_: Any) -> Any:
    raise Mistake("yours")


class OnlyLater:
    """Fails when it is asked for the second time."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.asked = 0

    def __call__(self, *_: Any) -> Any:
        self.asked += 1
        return fails() if self.asked > 1 else self.value


class Refusing(LastEventID):
    def on_status(self, status: int, headers: Any, body: bytes, state: Any) -> Any:
        return fails() if state.resuming else None


@pytest.mark.parametrize(
    "options",
    [
        lambda: {"protocol": LastEventID(resume=lambda state: fails() if state.offset else "/rest")},
        lambda: {"protocol": LastEventID(resume=lambda state: state.head.headers["x-answer-id"])},
        lambda: {"protocol": LastEventID(resume="/rest", end=lambda event: event.id == "5" and fails())},
        lambda: {"protocol": LastEventID(resume="/rest"), "headers": OnlyLater({"X-A": "1"})},
        lambda: {"protocol": LastEventID(resume="/rest"), "retry": rs.RetryPolicy(wait=fails)},
        lambda: {"protocol": LastEventID(resume="/rest"), "observer": lambda notice: isinstance(notice, rs.Retrying) and fails()},
        lambda: {"protocol": Refusing(resume="/rest")},
    ],
    ids=["resume", "recipe-of-the-head", "end", "headers", "retry", "observer", "on_status"],
)
async def test_an_exception_of_the_callers_code_leaves_the_place(
    row: Row, scripted_client: Scripted, options: Callable[[], dict[str, Any]]
) -> None:
    """It comes out as it is, since it is the caller's to mend, with a note where the place is; nothing is lost."""
    script = scripted_client([FIRST, Reply(status=503), part(4, 6), part(7, 9, cut=False)], row.family)
    stream = row.connect("POST", URL, client=row.scripted(script), json={}, **options())
    seen = []
    with pytest.raises((Mistake, KeyError)) as caught:
        async with stream:
            async for event in stream:
                seen.append(event.id)
    assert len([note for note in caught.value.__notes__ if NOTE in note]) == 1
    place = stream.checkpoint
    assert place.offset == len(seen)
    assert place.cursor == (seen[-1] if seen else None)
    assert rs.Checkpoint.from_token(stream.token) == place


async def test_a_stream_that_stopped_at_such_an_exception_says_so_when_it_is_read_on(row: Row, scripted_client: Scripted) -> None:
    script = scripted_client([FIRST, part(4, 6)], row.family)
    protocol = LastEventID(resume=lambda state: fails() if state.offset == 3 else "/rest")
    async with row.connect("POST", URL, client=row.scripted(script), json={}, protocol=protocol) as stream:
        with pytest.raises(Mistake):
            async for _ in stream:
                pass
        with pytest.raises(rs.ResumableStreamError) as caught:
            await anext(stream)
    assert "your code raised an exception" in str(caught.value)
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.offset == 3


async def test_text_of_the_callers_that_raises_leaves_the_place(row: Row, scripted_client: Scripted) -> None:
    script = scripted_client([part(1, 3, cut=False)], row.family)
    protocol = LastEventID(text=lambda event: fails() if event.id == "2" else event.data)
    stream = row.connect("GET", URL, client=row.scripted(script), protocol=protocol)
    with pytest.raises(Mistake) as caught:
        async with stream:
            async for _ in stream.iter_text():
                pass
    assert [note for note in caught.value.__notes__ if NOTE in note]
    assert stream.checkpoint.offset == 1


async def test_a_callable_that_is_used_up_does_not_pass_for_the_end_of_the_stream(row: Row, scripted_client: Scripted) -> None:
    """`next()` of its own raises what ends a `for` loop: three events of nine would look like all."""
    tokens = iter(["first"])
    script = scripted_client([FIRST, part(4, 9, cut=False)], row.family)
    seen: list[str] = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        async with row.connect(
            "GET", URL, client=row.scripted(script), headers=lambda: {"authorization": next(tokens)}, protocol=LastEventID()
        ) as stream:
            async for event in stream:
                seen.append(event.id)
    assert seen == ["1", "2", "3"]
    assert stream.outcome is None
    assert stream.checkpoint.cursor == "3"
