"""What the events of a session mean, and what may be appended to them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from resumable_stream import MessageUnknown, Outcome
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Ending
from resumable_stream.server.feeds import ActiveStream, Feed, SessionMessage, check_event, check_message, snapshot_block

COMPLETED = Ending(outcome=Outcome.COMPLETED)


def add(feed: Feed, block: bytes | None) -> tuple[str, Any] | None:
    """Append what was decided; the event as a reader sees it."""
    if block is None:
        return None
    feed.take([feed.span(block)])
    (event,) = SSEDecoder().feed(block)
    return event.event, json.loads(event.data)


def said(feed: Feed, mid: str, data: Any = "hi", role: str = "user") -> tuple[str, Any] | None:
    return add(feed, feed.published("message", {"role": role, "data": data}, mid))


def test_a_stream_begins_is_cancelled_and_ends_once() -> None:
    feed = Feed("k7q2")
    assert add(feed, feed.started("a", by="ann")) == ("started", {"id": "a", "by": "ann"})
    assert feed.started("a") is None
    assert add(feed, feed.started("b", supersedes=["a"])) == ("started", {"id": "b", "supersedes": ["a"]})
    assert list(feed.streams.values()) == [ActiveStream("a", "ann"), ActiveStream("b")]
    assert add(feed, feed.cancelled("a", by="bob")) == ("cancelled", {"id": "a", "by": "bob"})
    assert feed.cancelled("a") is None
    assert feed.streams["a"] == ActiveStream("a", "ann", cancelled=True)
    ending = Ending(outcome=Outcome.CANCELLED, reason="superseded")
    assert add(feed, feed.ended("a", ending)) == ("ended", {"id": "a", "outcome": "cancelled", "reason": "superseded"})
    assert add(feed, feed.ended("b", COMPLETED)) == ("ended", {"id": "b", "outcome": "completed"})
    assert feed.ended("a", COMPLETED) is feed.cancelled("a") is None
    assert feed.streams == {} and feed.n == 5


def test_a_message_is_said_edited_and_deleted() -> None:
    feed = Feed("k7q2")
    assert said(feed, "m", {"text": "é\n"}) == ("message", {"mid": "m", "role": "user", "data": {"text": "é\n"}})
    assert said(feed, "m", "another") is None
    assert add(feed, feed.edited("m", "new")) == ("edited", {"mid": "m", "data": "new"})
    assert feed.edited("m", "new") is None
    assert feed.messages == {"m": SessionMessage("m", "user", "new", edited=True)}
    assert add(feed, feed.deleted("m")) == ("deleted", {"mid": "m"})
    assert feed.deleted("m") is None
    assert said(feed, "m") is None, "the id of a deleted message is not free"
    with pytest.raises(MessageUnknown, match="'m'") as raised:
        feed.edited("m", "x")
    assert raised.value.mid == "m"
    for change in (feed.deleted, lambda mid: feed.edited(mid, 1)):
        with pytest.raises(MessageUnknown):
            change("never")


def test_events_of_the_application_pass_and_change_nothing() -> None:
    feed = Feed("k7q2")
    assert add(feed, feed.published("typing", [1], "t")) == ("typing", {"mid": "t", "data": [1]})
    assert feed.published("typing", [2], "t") is None
    with pytest.raises(MessageUnknown):
        feed.edited("t", 1)
    assert feed.deleted("t") is None, "its id is known, and there is nothing to delete"


@pytest.mark.parametrize("events", [None, 2, 1, 0])
def test_a_snapshot_stands_for_all_events_before_it(events: int | None) -> None:
    feed = Feed("k7q2")
    for mid in "abc":
        said(feed, mid)
    add(feed, feed.edited("b", 2))
    add(feed, feed.deleted("a"))
    add(feed, feed.started("s", by="ann"))
    add(feed, feed.cancelled("s"))
    snapshot = feed.snapshot(events=events)
    kept = ["b", "c"][2 - (2 if events is None else events) :]
    assert [each["mid"] for each in snapshot["messages"]] == kept
    add(feed, snapshot_block(snapshot))
    late = Feed("k7q2", feed.n - 1, feed.stands_b)
    late.take([late.span(snapshot_block(snapshot))])
    assert (late.messages, late.streams, late.n, late.b) == (feed.messages, feed.streams, feed.n, feed.b)
    assert (feed.first, feed.stands, late.first, late.stands) == (1, 8, 8, 8)
    assert late.streams == {"s": ActiveStream("s", "ann", cancelled=True)}


def test_a_snapshot_keeps_the_newest_messages_that_fit() -> None:
    feed = Feed("k7q2")
    for mid in "abc":
        said(feed, mid, "x" * 100)
    size = len(json.dumps(feed.messages["c"].to_dict(), separators=(",", ":")))
    for room, kept in ((3 * size, "abc"), (3 * size - 1, "bc"), (size, "c"), (size - 1, "")):
        assert "".join(each["mid"] for each in feed.snapshot(bytes=room)["messages"]) == kept


def test_ids_that_were_used_are_known_beyond_a_snapshot() -> None:
    """A deleted message must not come back when its sender sends it again, nor an own event be said twice."""
    feed = Feed("k7q2")
    said(feed, "gone")
    add(feed, feed.deleted("gone"))
    add(feed, feed.published("note", 1, "own"))
    said(feed, "here")
    add(feed, snapshot_block(feed.standing(events=5, bytes=1000)))
    late = Feed("k7q2", feed.n - 1, feed.stands_b)
    late.take([late.span(snapshot_block(feed.standing(events=5, bytes=1000)))])
    for each in (feed, late):
        assert said(each, "gone") is None and each.published("note", 1, "own") is None and said(each, "here") is None
        assert each.deleted("gone") is None
    assert feed.standing(events=1, bytes=1000)["mids"] == ["own"]
    assert feed.standing(events=5, bytes=8) == {"messages": [], "streams": [], "mids": ["here"]}


def test_two_devices_end_in_the_same_state_whatever_the_order() -> None:
    """An edit and a deletion meet: who comes second decides on the state after the first."""
    for order in itertools.permutations(["edit", "edit", "delete"]):
        feed = Feed("k7q2")
        said(feed, "m")
        for number, what in enumerate(order):
            try:
                add(feed, feed.edited("m", number) if what == "edit" else feed.deleted("m"))
            except MessageUnknown:
                assert "delete" in order[:number]
        late = Feed("k7q2")
        assert feed.messages == late.messages == {}


def test_what_is_no_event_of_ours_is_passed_over() -> None:
    feed = Feed("k7q2")
    odd = [
        b"event: started\ndata: nonsense\n\n",
        b"event: started\ndata: []\n\n",
        b'event: started\ndata: {"id":3}\n\n',
        b'event: ended\ndata: {"id":["s"]}\n\n',
        b'event: edited\ndata: {"mid":{}}\n\n',
        b'event: deleted\ndata: {"mid":[]}\n\n',
        b'event: message\ndata: {"data":1}\n\n',
        b'event: snapshot\ndata: {"messages":{"a":1},"streams":[1,{"id":2}]}\n\n',
    ]
    for block in odd:
        feed.take([feed.span(block)])
    assert (feed.n, feed.messages, feed.streams, feed.mids) == (len(odd), {}, {}, {})


@pytest.mark.parametrize(
    "event", ["started", "ended", "snapshot", "end", "reset", "caught-up", "presence", "", "a\nb", "x" * 257]
)
def test_names_that_an_application_cannot_publish(event: str) -> None:
    with pytest.raises(ValueError, match="the name of an event|is reserved for the server"):
        check_event(event)


@pytest.mark.parametrize("data", ["hi", {"role": "user"}, {"role": 1, "data": 2}, {"role": "user", "data": 1, "more": 2}, None])
def test_what_is_no_message_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="a message must be"):
        check_message(data)


def test_an_event_that_is_too_large_is_refused() -> None:
    feed = Feed("k7q2")
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        said(feed, "m", "x" * (1 << 20))
    assert feed.n == 0
