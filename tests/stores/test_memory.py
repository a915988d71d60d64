from __future__ import annotations

import pytest

from resumable_stream._errors import StoreError
from resumable_stream.stores import MemoryStore
from resumable_stream.testing.store_contract import checkpoint_at, events_at


def test_a_save_over_the_bound_is_refused_and_what_was_kept_stays() -> None:
    store = MemoryStore(keep_events=True, max_bytes=600)
    _, fence = store.open("k")
    store.save("k", checkpoint_at(1), events_at(0, 1), fence=fence)
    with pytest.raises(StoreError, match="over max_bytes=600"):
        store.save("k", checkpoint_at(20), events_at(1, 20), fence=fence)
    assert list(store.replay("k")) == events_at(0, 1)
    assert store.open("k")[0] == checkpoint_at(1)


def test_replaced_and_deleted_bytes_are_free_again() -> None:
    store = MemoryStore(keep_events=True, max_bytes=600)
    for _ in range(20):
        _, fence = store.open("k")
        for _ in range(20):
            store.save("k", checkpoint_at(1), fence=fence)
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
        store.delete("k")


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "1"])
def test_a_save_interval_that_is_no_duration_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="save_interval"):
        MemoryStore(save_interval=seconds)


def test_a_bound_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        MemoryStore(max_bytes=0)
