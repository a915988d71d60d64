"""
The requirements on every store, as tests.

Subclass `StoreContract` in a test module and implement `make_store()`; a test runner that collects classes named `Test…` finds
the rest:

    class TestMyStore(StoreContract):
        persistent = True

        @pytest.fixture(autouse=True)
        def _place(self, tmp_path):
            self.path = tmp_path / "my.db"

        def make_store(self, *, keep_events=False):
            return MyStore(self.path, keep_events=keep_events)

A store whose places expire also overrides `make_expiring_store()`.

The module itself imports no test runner.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .._checkpoint import Checkpoint
from .._errors import StoreError
from .._events import Chunk, Gap, StreamEvent
from ..stores.base import MAX_KEY_CHARS, Kept, Store

__all__ = ["StoreContract", "checkpoint_at", "events_at"]

ODD_KEYS = [
    "a",
    "A",
    " ",
    "-",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a:b",
    "a\nb",
    "a\0b",
    "%2F",
    "%",
    "CON",
    "é",  # one code point
    "e\u0301",  # two code points that look the same
    "日本語",
    "🦊",
    "https://api.example.com/v1/runs?id=1#x",
    "x" * MAX_KEY_CHARS,
    "x" * (MAX_KEY_CHARS - 1),
    "🦊" * MAX_KEY_CHARS,
]


def checkpoint_at(offset: int, *, url: str = "https://api.example.com/v1/stream") -> Checkpoint:
    """Make the place after the first `offset` events."""
    return Checkpoint(
        protocol="LastEventID",
        method="GET",
        url=url,
        cursor=str(offset) if offset else None,
        sequence=offset or None,
        offset=offset,
        recent_ids=((str(offset), "00112233445566ff"),),
        extra={"etag": '"ä"'},
    )


def events_at(start: int, stop: int) -> list[StreamEvent]:
    """Make the events with offsets `start` to `stop - 1`."""
    events = []
    for offset in range(start, stop):
        event = StreamEvent(data=f"token {offset}", id=str(offset + 1), own_id=str(offset + 1))
        event.offset = offset
        events.append(event)
    return events


@contextmanager
def _raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition that only time can fulfil."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.02)


def _fields(item: Kept) -> dict[str, object]:
    names = ("cursor", "sequence", "offset", "gap", "reset", "data")
    more = () if isinstance(item, Chunk) else ("event", "id", "retry", "own_id")
    return {"type": type(item), **{name: getattr(item, name) for name in (*names, *more)}}


class StoreContract:
    """
    The tests. Override `make_store()`, and set `persistent` if a new store object finds what an earlier one saved.

    Attributes:
        persistent: Each call of `make_store()` within one test opens the same data. False: each makes an empty store.
    """

    persistent: bool = False

    def make_store(self, *, keep_events: bool = False) -> Store:
        """Make a store over the data of the running test, which starts empty."""
        raise NotImplementedError

    def make_expiring_store(self, seconds: float) -> Store | None:
        """
        Make a store that keeps events, and whose places expire this many seconds after their last `open()` or `save()`.

        Returns:
            The store; `None`, the default, if it keeps places until they are deleted. The tests of expiry then pass.
        """
        return None

    def _reopen(self, store: Store) -> Store:
        """A second store object over the same data, or the same one if the data live in the object."""
        return self.make_store(keep_events=store.keep_events) if self.persistent else store

    # The place

    def test_it_is_a_store(self) -> None:
        store = self.make_store()
        assert isinstance(store, Store)
        assert store.keep_events is False
        assert store.save_interval == 1.0
        assert self.make_store(keep_events=True).keep_events is True

    def test_an_unknown_key_has_no_checkpoint_and_no_events(self) -> None:
        store = self.make_store(keep_events=True)
        assert list(store.replay("k")) == []
        assert store.open("k")[0] is None
        assert list(store.replay("k")) == []

    def test_a_checkpoint_comes_back_equal(self) -> None:
        store = self.make_store()
        place = checkpoint_at(3)
        _, fence = store.open("k")
        store.save("k", place, fence=fence)
        assert self._reopen(store).open("k")[0] == place

    def test_the_digest_of_the_request_comes_back_too(self) -> None:
        # Not compared by `==`; without it a key could get the answer to another request.
        store = self.make_store()
        _, fence = store.open("k")
        store.save("k", replace(checkpoint_at(3), request="0123456789abcdef" * 2), fence=fence)
        saved, _ = self._reopen(store).open("k")
        assert saved is not None
        assert saved.request == "0123456789abcdef" * 2

    def test_the_last_checkpoint_replaces_the_one_before(self) -> None:
        store = self.make_store()
        _, fence = store.open("k")
        for offset in (1, 5, 2):
            store.save("k", checkpoint_at(offset), fence=fence)
        assert self._reopen(store).open("k")[0] == checkpoint_at(2)

    def test_opening_changes_no_checkpoint(self) -> None:
        store = self.make_store()
        store.save("k", checkpoint_at(1), fence=store.open("k")[1])
        assert [self._reopen(store).open("k")[0] for _ in range(3)] == [checkpoint_at(1)] * 3

    def test_reading_the_place_leaves_the_key_with_its_writer(self) -> None:
        """Only for a store with `load()`."""
        store: Any = self.make_store()
        if hasattr(store, "load"):
            assert store.load("k") is None
            _, fence = store.open("k")
            assert store.load("k") is None
            store.save("k", checkpoint_at(1), fence=fence)
            assert store.load("k") == checkpoint_at(1)
            store.save("k", checkpoint_at(2), fence=fence)

    def test_a_checkpoint_that_is_too_long_is_refused_and_the_old_one_stays(self) -> None:
        store = self.make_store(keep_events=True)
        _, fence = store.open("k")
        store.save("k", checkpoint_at(1), events_at(0, 1), fence=fence)
        with _raises(StoreError):
            store.save("k", checkpoint_at(2, url=f"https://example.com/{'x' * 9000}"), events_at(1, 2), fence=fence)
        assert list(store.replay("k")) == events_at(0, 1)
        assert store.open("k")[0] == checkpoint_at(1)

    # Keys

    def test_any_text_is_a_key_of_its_own(self) -> None:
        store = self.make_store(keep_events=True)
        for number, key in enumerate(ODD_KEYS, 1):
            store.save(key, checkpoint_at(number), events_at(0, 1 + number % 3), fence=store.open(key)[1])
        store = self._reopen(store)
        for number, key in enumerate(ODD_KEYS, 1):
            assert list(store.replay(key)) == events_at(0, 1 + number % 3), repr(key)
            assert store.open(key)[0] == checkpoint_at(number), repr(key)

    def test_what_cannot_be_a_key_is_refused_everywhere(self) -> None:
        store = self.make_store(keep_events=True)
        for key in ("", "x" * (MAX_KEY_CHARS + 1), "\ud800"):
            with _raises(ValueError):
                store.open(key)
            with _raises(ValueError):
                store.save(key, checkpoint_at(1), fence=1)
            with _raises(ValueError):
                list(store.replay(key))
            with _raises(ValueError):
                store.delete(key)

    # Two writers

    def test_each_open_hands_out_a_higher_fence(self) -> None:
        store = self.make_store()
        fences = [self._reopen(store).open("k")[1] for _ in range(5)]
        assert fences == sorted(set(fences))

    def test_the_older_of_two_writers_is_refused_and_changes_nothing(self) -> None:
        older = self.make_store(keep_events=True)
        _, old_fence = older.open("k")
        older.save("k", checkpoint_at(1), events_at(0, 1), fence=old_fence)
        newer = self._reopen(older)
        place, new_fence = newer.open("k")
        assert place == checkpoint_at(1)
        with _raises(StoreError):
            older.save("k", checkpoint_at(9), events_at(1, 9), fence=old_fence)
        newer.save("k", checkpoint_at(2), events_at(1, 2), fence=new_fence)
        with _raises(StoreError):
            older.save("k", checkpoint_at(9), events_at(1, 9), fence=old_fence)
        assert list(newer.replay("k")) == events_at(0, 2)
        assert newer.open("k")[0] == checkpoint_at(2)

    def test_writers_of_different_keys_do_not_meet(self) -> None:
        store = self.make_store()
        fences = {key: store.open(key)[1] for key in ("a", "b")}
        for key, offset in (("a", 1), ("b", 2), ("a", 3)):
            store.save(key, checkpoint_at(offset), fence=fences[key])
        assert (store.open("a")[0], store.open("b")[0]) == (checkpoint_at(3), checkpoint_at(2))

    def test_saving_without_opening_is_refused(self) -> None:
        store = self.make_store()
        for fence in (0, 1):
            with _raises(StoreError):
                store.save("k", checkpoint_at(1), fence=fence)
        assert store.open("k")[0] is None

    def test_a_fence_that_was_never_handed_out_is_refused(self) -> None:
        store = self.make_store()
        _, fence = store.open("k")
        with _raises(StoreError):
            store.save("k", checkpoint_at(1), fence=fence + 1)

    # Delete

    def test_a_deleted_key_is_unknown(self) -> None:
        store = self.make_store(keep_events=True)
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=store.open("k")[1])
        store.save("other", checkpoint_at(1), events_at(0, 1), fence=store.open("other")[1])
        store.delete("k")
        store = self._reopen(store)
        assert list(store.replay("k")) == []
        assert store.open("k")[0] is None
        assert list(store.replay("other")) == events_at(0, 1)

    def test_deleting_an_unknown_key_does_nothing(self) -> None:
        store = self.make_store()
        store.delete("k")
        store.delete("k")
        assert store.open("k")[0] is None

    def test_a_writer_whose_key_was_deleted_cannot_bring_it_back(self) -> None:
        store = self.make_store(keep_events=True)
        _, fence = store.open("k")
        store.save("k", checkpoint_at(1), events_at(0, 1), fence=fence)
        self._reopen(store).delete("k")
        with _raises(StoreError):
            store.save("k", checkpoint_at(2), events_at(1, 2), fence=fence)
        # Opened again, the key must not return the old number.
        _, new_fence = self._reopen(store).open("k")
        assert new_fence > fence
        with _raises(StoreError):
            store.save("k", checkpoint_at(2), events_at(1, 2), fence=fence)
        store.save("k", checkpoint_at(1), events_at(0, 1), fence=new_fence)
        assert list(store.replay("k")) == events_at(0, 1)

    # Expiry, of a store that has it

    def test_an_expired_key_is_unknown_and_its_writer_cannot_bring_it_back(self) -> None:
        store = self.make_expiring_store(1.0)
        if store is None:
            return
        _, fence = store.open("k")
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)

        def has_expired() -> bool:
            try:
                return not list(store.replay("k"))
            except StoreError:
                # It expired between two reads of its events.
                return False

        _until(has_expired)
        with _raises(StoreError):
            store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
        place, new_fence = store.open("k")
        assert place is None
        assert new_fence > fence
        with _raises(StoreError):
            store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)

    def test_a_key_that_is_used_does_not_expire(self) -> None:
        store = self.make_expiring_store(3600)
        if store is None:
            return
        _, fence = store.open("k")
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
        assert list(store.replay("k")) == events_at(0, 2)
        assert store.open("k")[0] == checkpoint_at(2)

    # Events

    def test_events_come_back_in_order_and_marked_as_replayed(self) -> None:
        store = self.make_store(keep_events=True)
        _, fence = store.open("k")
        for start, stop in ((0, 3), (3, 3), (3, 4), (4, 50)):
            store.save("k", checkpoint_at(stop), events_at(start, stop), fence=fence)
        replayed = list(self._reopen(store).replay("k"))
        assert replayed == events_at(0, 50)
        assert [item.offset for item in replayed] == list(range(50))
        assert all(item.replayed for item in replayed)

    def test_a_later_writer_appends_to_the_events_of_the_earlier_one(self) -> None:
        store = self.make_store(keep_events=True)
        for start, stop in ((0, 2), (2, 5)):
            store = self._reopen(store)
            store.save("k", checkpoint_at(stop), events_at(start, stop), fence=store.open("k")[1])
        assert list(self._reopen(store).replay("k")) == events_at(0, 5)

    def test_every_field_of_an_event_comes_back(self) -> None:
        plain, full, odd, without_cursor = (
            StreamEvent(),
            StreamEvent("delta", "a\nb\r\u2028é🦊", "7", 250, ""),
            StreamEvent(),
            StreamEvent(id="8"),
        )
        full.cursor, full.sequence, full.offset, full.reset = "opaque", 0, 4, True
        full.gap = Gap(expected=3, received=5, after="c")
        odd.data, odd.gap = "\0 \ud800", Gap()
        without_cursor.cursor = None
        whole, later = Chunk(bytes(range(256)), 0), Chunk(b"x", 256)
        later.cursor, later.offset, later.reset, later.gap = "other", 1, True, Gap(after="0")
        items: list[Kept] = [plain, full, odd, without_cursor, whole, later]
        before = [_fields(item) for item in items]
        store = self.make_store(keep_events=True)
        store.save("k", checkpoint_at(1), items, fence=store.open("k")[1])
        assert [_fields(item) for item in self._reopen(store).replay("k")] == before
        assert [_fields(item) for item in items] == before and not any(item.replayed for item in items)

    def test_what_the_caller_does_to_its_events_later_does_not_reach_the_store(self) -> None:
        store = self.make_store(keep_events=True)
        [event] = events_at(0, 1)
        store.save("k", checkpoint_at(1), [event], fence=store.open("k")[1])
        event.data = "changed"
        for item in store.replay("k"):
            assert isinstance(item, StreamEvent)
            item.data = "changed"
        assert list(store.replay("k")) == events_at(0, 1)

    def test_events_are_ignored_unless_wanted(self) -> None:
        store = self.make_store()
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=store.open("k")[1])
        assert list(store.replay("k")) == []
        assert self._reopen(store).open("k")[0] == checkpoint_at(2)

    def test_events_that_fail_half_way_save_nothing(self) -> None:
        def failing() -> Iterator[StreamEvent]:
            yield from events_at(1, 3)
            raise KeyError("no more")

        store = self.make_store(keep_events=True)
        _, fence = store.open("k")
        store.save("k", checkpoint_at(1), events_at(0, 1), fence=fence)
        with _raises(KeyError):
            store.save("k", checkpoint_at(9), failing(), fence=fence)
        store.save("k", checkpoint_at(2), events_at(1, 2), fence=fence)
        store = self._reopen(store)
        assert list(store.replay("k")) == events_at(0, 2)
        assert store.open("k")[0] == checkpoint_at(2)

    def test_a_replay_shows_what_was_kept_when_it_was_asked_for(self) -> None:
        store = self.make_store(keep_events=True)
        _, fence = store.open("k")
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
        replay = store.replay("k")
        first = next(replay)
        store.save("k", checkpoint_at(5), events_at(2, 5), fence=fence)
        assert [first, *replay] == events_at(0, 2)

    def test_a_replay_that_is_left_in_the_middle_does_no_harm(self) -> None:
        store = self.make_store(keep_events=True)
        _, fence = store.open("k")
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
        next(store.replay("k"))
        store.replay("k")
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
        assert list(store.replay("k")) == events_at(0, 3)

    def test_a_place_without_its_events_is_not_replayed_as_if_it_were_whole(self) -> None:
        if not self.persistent:
            return  # nothing else can have written it
        keeping, forgetting = self.make_store(keep_events=True), self.make_store()
        keeping.save("k", checkpoint_at(1), events_at(0, 1), fence=keeping.open("k")[1])
        # Opening the same place and saving it again loses nothing.
        forgetting.save("k", checkpoint_at(1), fence=forgetting.open("k")[1])
        assert list(keeping.replay("k")) == events_at(0, 1)
        forgetting.save("k", checkpoint_at(2), events_at(1, 2), fence=forgetting.open("k")[1])
        with _raises(StoreError):
            list(keeping.replay("k"))
        assert list(forgetting.replay("k")) == []
        assert keeping.open("k")[0] == checkpoint_at(2)

    # Threads

    def test_threads_that_fight_for_a_key_never_mix(self) -> None:
        store = self.make_store(keep_events=True)
        saved: list[str] = []
        failures: list[BaseException] = []
        start = threading.Barrier(4)

        def write(writer: int) -> None:
            try:
                start.wait()
                for _ in range(3):
                    _, fence = store.open("k")
                    for _ in range(4):
                        # Under the lock, `saved` records the order in which the saves took effect.
                        with order:
                            name = f"{writer}.{len(saved)}"
                            store.save(
                                "k", checkpoint_at(1, url=f"https://example.com/{name}"), [StreamEvent(data=name)], fence=fence
                            )
                            saved.append(name)
            except StoreError:
                return
            except BaseException as exc:
                failures.append(exc)
                raise

        order = threading.Lock()
        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert [item.data for item in store.replay("k")] == saved
        assert len(saved) >= 4  # the last to open the key is never refused
        place, _ = store.open("k")
        assert place is not None and place.url == f"https://example.com/{saved[-1]}"

    def test_threads_with_a_key_each_do_not_disturb_one_another(self) -> None:
        store = self.make_store(keep_events=True)

        def write(key: str) -> None:
            _, fence = store.open(key)
            for offset in range(10):
                store.save(key, checkpoint_at(offset + 1), events_at(offset, offset + 1), fence=fence)

        threads = [threading.Thread(target=write, args=(f"k{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4):
            assert list(store.replay(f"k{number}")) == events_at(0, 10)
            assert store.open(f"k{number}")[0] == checkpoint_at(10)
