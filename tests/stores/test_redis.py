"""What only a server can do wrong: lost replies, late commands, restarts, full memory, evictions, secrets in its errors."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

redis = pytest.importorskip("redis", reason="needs redis: pip install 'resumable-stream-sdk[redis]'")

from redis.backoff import NoBackoff  # noqa: E402
from redis.cluster import key_slot  # noqa: E402
from redis.exceptions import ConnectionError as RedisConnectionError  # noqa: E402
from redis.retry import Retry  # noqa: E402
from redis.sentinel import Sentinel  # noqa: E402

from resumable_stream._errors import StoreError  # noqa: E402
from resumable_stream._events import StreamEvent  # noqa: E402
from resumable_stream.stores import RedisStore  # noqa: E402
from resumable_stream.stores import redis as module  # noqa: E402
from resumable_stream.testing.store_contract import checkpoint_at, events_at  # noqa: E402

if TYPE_CHECKING:
    from tests.redis_server import RedisCluster, RedisServer

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(redis_server.url) as made:
        yield made


def kept(where: Any, **options: Any) -> RedisStore:
    return RedisStore(where, keep_events=True, **options)


def start(store: RedisStore, key: str = "k", *, upto: int = 2) -> int:
    """Save the first `upto` events and return the fence."""
    _, fence = store.open(key)
    store.save(key, checkpoint_at(upto), events_at(0, upto), fence=fence)
    return fence


def the_hash(client: Any) -> bytes:
    [name] = client.scan_iter(match="rs:k:{*}")
    return name


# --- lost replies, and commands that arrive late


SAVE, SETTLE = ("EVALSHA", module._SAVE), ("EVALSHA", module._SETTLE)


class Lossy(redis.Redis):  # type: ignore[misc]
    """
    A connection that fails as told, one word for each save:

        ok        done, and answered
        never     not done, not answered
        lost      done, not answered
        late      not answered, and done before the next save
        later     not answered, and done after the next save
        last      not answered, and done at the very end
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(connection_pool=redis.ConnectionPool.from_url(url), **options)
        self.auto_close_connection_pool = True
        self.plan: list[str] = []
        self.error: type[BaseException] = RedisConnectionError
        self.settle_fails = 0
        self.held: list[tuple[str, tuple[Any, ...]]] = []
        self.replies: list[Any] = []

    def execute_command(self, *args: Any, **options: Any) -> Any:
        sha = args[1] if args[0] == "EVALSHA" else None
        if sha == SHAS[module._SETTLE] and self.settle_fails:
            self.settle_fails -= 1
            raise RedisConnectionError("settled nothing")
        if sha != SHAS[module._SAVE]:
            return super().execute_command(*args, **options)
        self.deliver("late")
        what = self.plan.pop(0) if self.plan else "ok"
        earlier = [word for word, _ in self.held]
        if what in ("late", "later", "last"):
            self.held.append((what, args))
        reply = super().execute_command(*args, **options) if what in ("ok", "lost") else None
        if "later" in earlier:
            self.deliver("later")
        if what != "ok":
            raise self.error("no answer")
        return reply

    def deliver(self, *words: str) -> None:
        for word, args in [pair for pair in self.held if pair[0] in words]:
            self.held.remove((word, args))
            self.replies.append(super().execute_command(*args)[0])


SHAS: dict[str, str] = {}


@pytest.fixture
def lossy(redis_server: RedisServer) -> Iterator[Lossy]:
    with Lossy(redis_server.url) as made:
        SHAS.update(RedisStore(made)._shas)
        for script in SHAS:
            made.script_load(script)
        yield made


FAILURES = ["ok", "never", "lost", "late", "later", "last"]


@pytest.mark.parametrize("length", [3, pytest.param(5, marks=pytest.mark.soak)])
@pytest.mark.parametrize("rows", [True, False], ids=["with events", "places alone"])
def test_whatever_becomes_of_a_save_its_events_are_there_once(
    rows: bool, length: int, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sequence of failures, and after each failure the caller saves the same events again, with more behind them."""
    if rows:
        # So small that the events of a save are several elements, and another number of them the next time.
        monkeypatch.setattr("resumable_stream.stores._packing.ROW_BYTES", 100)
    for number, plan in enumerate(itertools.product(FAILURES, repeat=length)):
        key = f"k{number}"
        store = RedisStore(lossy, keep_events=rows)
        _, fence = store.open(key)
        lossy.plan, lossy.held = list(plan), []
        saved = taken = 0
        for _ in range(length + 2):
            taken += 2
            try:
                store.save(key, checkpoint_at(taken), events_at(saved, taken), fence=fence)
            except StoreError:
                continue
            saved = taken
            assert store.load(key) == checkpoint_at(saved), plan
            assert list(store.replay(key)) == (events_at(0, saved) if rows else []), plan
        lossy.deliver("late", "later", "last")
        assert saved == taken
        assert list(store.replay(key)) == (events_at(0, taken) if rows else []), plan
        assert RedisStore(lossy).load(key) == checkpoint_at(taken), plan
        assert not store._doubts
    assert set(lossy.replies) == {b"OK", b"LATE"}, "no command arrived late, so nothing was tried"


# By default each sequence of failures with one of the three.
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["by turns", "every"])
@pytest.mark.parametrize("settle_fails", [0, 1, 2])
def test_after_an_interrupt_what_is_read_stays_true(settle_fails: int, every: bool, lossy: Lossy) -> None:
    """As the sync driver does: it looks how many events are there, and saves again if they are too few."""
    lossy.error = KeyboardInterrupt
    for number, plan in enumerate(itertools.product(FAILURES, repeat=3)):
        if not every and (number // 36 + number // 6 + number) % 3 != settle_fails:
            continue
        key = f"k{number}"
        store = kept(lossy)
        _, fence = store.open(key)
        lossy.plan, lossy.held = list(plan), []
        saved = taken = 0
        for _ in range(6):
            taken += 2
            lossy.settle_fails = settle_fails
            try:
                store.save(key, checkpoint_at(taken), events_at(saved, taken), fence=fence)
            except KeyboardInterrupt:
                try:
                    written = len(list(store.replay(key))) == taken
                except StoreError:
                    written = False
                if not written:
                    continue
            saved = taken
        lossy.deliver("late", "later", "last")
        assert list(store.replay(key)) == events_at(0, 12), plan
        assert store.load(key) == checkpoint_at(12), plan


def test_a_late_save_of_a_writer_that_was_superseded_does_nothing(lossy: Lossy) -> None:
    store = kept(lossy)
    _, fence = store.open("k")
    lossy.plan = ["last"]
    with pytest.raises(StoreError):
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
    _, fence = store.open("k")
    store.save("k", checkpoint_at(1), events_at(0, 1), fence=fence)
    lossy.deliver("last")
    assert lossy.replies == [b"FENCED"]
    store.delete("k")
    store.open("k")
    assert list(store.replay("k")) == []


def test_a_hole_is_seen_also_where_the_reply_got_lost(lossy: Lossy) -> None:
    """A place that a store without events moved, in an attempt that nobody knows of, has events missing before it."""
    keeping, forgetting = kept(lossy), RedisStore(lossy)
    start(keeping)
    _, fence = forgetting.open("k")
    lossy.plan = ["lost", "ok"]
    with pytest.raises(StoreError):
        forgetting.save("k", checkpoint_at(3), fence=fence)
    forgetting.save("k", checkpoint_at(3), fence=fence)
    with pytest.raises(StoreError, match="not all events of the key 'k' up to its place were kept"):
        keeping.replay("k")
    # And where nothing moved, nothing is missing.
    start(keeping, "other")
    _, fence = forgetting.open("other")
    lossy.plan = ["lost", "ok"]
    with pytest.raises(StoreError):
        forgetting.save("other", checkpoint_at(2), fence=fence)
    forgetting.save("other", checkpoint_at(2), fence=fence)
    assert list(keeping.replay("other")) == events_at(0, 2)


def test_what_is_remembered_of_failed_saves_is_bounded(lossy: Lossy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_DOUBTS", 3)
    store = kept(lossy)
    lossy.plan = ["lost"] * 5
    for number in range(5):
        _, fence = store.open(f"k{number}")
        with pytest.raises(StoreError):
            store.save(f"k{number}", checkpoint_at(1), events_at(0, 1), fence=fence)
    assert [key for key, _ in store._doubts] == ["k2", "k3", "k4"]


class Proxy:
    """Stands between a client and Redis, and loses the reply to a save: the connection breaks after Redis has answered."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.lose = 0
        self.seen = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                downstream, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(downstream,), daemon=True).start()

    def _serve(self, downstream: socket.socket) -> None:
        sha = SHAS_OF_SAVE()
        losing = threading.Event()

        def replies(upstream: socket.socket) -> None:
            # A reply may come in several pieces, so nobody counts them.
            with contextlib.suppress(OSError):
                while (reply := upstream.recv(1 << 20)) and not losing.is_set():
                    downstream.sendall(reply)
                downstream.shutdown(socket.SHUT_RDWR)

        with downstream, socket.create_connection(("127.0.0.1", self._target)) as upstream, contextlib.suppress(OSError):
            thread = threading.Thread(target=replies, args=(upstream,), daemon=True)
            thread.start()
            while data := downstream.recv(1 << 20):
                if sha in data:
                    self.seen += 1
                    if self.lose:
                        self.lose -= 1
                        losing.set()
                upstream.sendall(data)
            # The reply to what was sent last is still waited for: the save has happened before the connection breaks.
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_WR)
            thread.join(200)

    def close(self) -> None:
        # Closing alone does not wake the thread that waits in accept().
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def SHAS_OF_SAVE() -> bytes:
    return RedisStore("redis://localhost")._shas[module._SAVE].encode()


@pytest.mark.parametrize("retries", [0, 3])
def test_a_connection_that_breaks_after_the_save_doubles_nothing(retries: int, redis_server: RedisServer) -> None:
    """Also where the client sends it again on its own, as redis-py does by default."""
    proxy = Proxy(redis_server.port)
    options = {"retry": Retry(NoBackoff(), retries), "retry_on_error": [RedisConnectionError]}
    try:
        with redis.Redis.from_url(proxy.url, **options) as client:
            store = kept(client)
            fence = start(store)
            proxy.lose, proxy.seen = 1, 0
            if retries:
                store.save("k", checkpoint_at(4), events_at(2, 4), fence=fence)
                assert proxy.seen == 2
            else:
                with pytest.raises(StoreError, match="cannot use Redis at 127.0.0.1:"):
                    store.save("k", checkpoint_at(4), events_at(2, 4), fence=fence)
                store.save("k", checkpoint_at(5), events_at(2, 5), fence=fence)
            store.save("k", checkpoint_at(6), events_at(4 if retries else 5, 6), fence=fence)
            assert list(store.replay("k")) == events_at(0, 6)
    finally:
        proxy.close()


def test_a_client_that_sends_an_open_twice_does_not_supersede_itself(client: Any) -> None:
    class Twice(redis.Redis):  # type: ignore[misc]
        def execute_command(self, *args: Any, **options: Any) -> Any:
            super().execute_command(*args, **options)
            return super().execute_command(*args, **options)

    store = kept(Twice(connection_pool=client.connection_pool))
    fence = start(store)
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


# --- a server that stops, dies, forgets


def test_a_server_that_does_not_answer_is_an_error_not_a_hang_and_nothing_is_doubled(own_redis: RedisServer) -> None:
    # A second, since a busy machine has to answer within it before the pause.
    store = kept(own_redis.url, timeout=1.0)
    fence = start(store)
    own_redis.pause()
    with pytest.raises(StoreError, match=f"cannot use Redis at 127.0.0.1:{own_redis.port}/0: .*[Tt]ime"):
        store.save("k", checkpoint_at(4), events_at(2, 4), fence=fence)
    with pytest.raises(StoreError):
        store.save("k", checkpoint_at(5), events_at(2, 5), fence=fence)
    own_redis.go_on()
    # By now it does what it was sent, in whatever order.
    patient = kept(own_redis.url, timeout=200)
    assert patient.load("k") is not None
    store.timeout = 60
    store.save("k", checkpoint_at(6), events_at(2, 6), fence=fence)
    assert list(patient.replay("k")) == events_at(0, 6)


def test_a_server_that_is_restarted_empty_says_so_to_the_writer(own_redis: RedisServer) -> None:
    store = kept(own_redis.url)
    fence = start(store)
    own_redis.restart(empty=True)
    for _ in range(2):
        with pytest.raises(StoreError):
            store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    with pytest.raises(StoreError, match="key 'k' was deleted, has expired, or was lost with its Redis since it was opened"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert store.load("k") is None
    assert start(store) > fence
    with pytest.raises(StoreError, match="another writer"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 2)


def test_a_server_that_is_not_there_is_an_error(own_redis: RedisServer) -> None:
    store = kept(own_redis.url)
    own_redis.kill()
    for action in (
        lambda: store.open("k"),
        lambda: store.load("k"),
        lambda: store.save("k", checkpoint_at(1), fence=1),
        lambda: store.replay("k"),
        lambda: store.delete("k"),
        lambda: list(store.places()),
    ):
        with pytest.raises(StoreError, match=f"cannot use Redis at 127.0.0.1:{own_redis.port}/0: .*refused") as caught:
            action()
        assert isinstance(caught.value.__cause__, RedisConnectionError)


PRELUDE = """
import os, signal, sys
from resumable_stream.stores import RedisStore
from resumable_stream._errors import StoreError
from resumable_stream.testing.store_contract import checkpoint_at, events_at

store = RedisStore(sys.argv[1], keep_events=True)
"""
WRITES = """
place, fence = store.open("k")
offset = place.offset if place is not None else 0
print(offset, flush=True)
while True:
    try:
        store.save("k", checkpoint_at(offset + 3), events_at(offset, offset + 3), fence=fence)
    except StoreError:
        break
    offset += 3
    print(offset, flush=True)
"""


def program(code: str, *args: object) -> list[str]:
    return [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), *map(str, args)]


@posix
@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.soak)])
@pytest.mark.parametrize("victim", ["writer", "server"])
def test_killed_at_any_moment_at_most_the_save_under_way_is_lost(victim: str, times: int) -> None:
    from tests.redis_server import RedisServer

    server = RedisServer(persistent=True).start()
    try:
        last = 0
        for number in range(times):
            process = subprocess.Popen(program(WRITES, server.url), stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            for _ in range(2 + number * 7):
                process.stdout.readline()
            if victim == "server":
                server.restart()
            else:
                process.kill()
            said = process.stdout.read().split()
            process.wait(200)
            process.stdout.close()
            with kept_open(server.url) as store:
                place = store.load("k")
                assert place is not None
                # What was said to be saved is there; what was not said may be.
                assert place.offset >= max(last, *(int(word) for word in said[:-1]), 0)
                assert list(store.replay("k")) == events_at(0, place.offset)
                last = place.offset
    finally:
        server.close()


@contextlib.contextmanager
def kept_open(url: str) -> Iterator[RedisStore]:
    store = kept(url)
    try:
        yield store
    finally:
        store.close()


@posix
def test_a_process_that_dies_right_after_it_sent_a_save_leaves_both_or_neither(redis_server: RedisServer) -> None:
    died = subprocess.run(
        program(
            """
            import redis.connection
            _, fence = store.open("k")
            store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
            real = redis.connection.AbstractConnection.read_response
            redis.connection.AbstractConnection.read_response = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
            store.save("k", checkpoint_at(5), events_at(2, 5), fence=fence)
            """,
            redis_server.url,
        ),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    with kept_open(redis_server.url) as store:
        place, fence = store.open("k")
        assert place in (checkpoint_at(2), checkpoint_at(5))
        assert list(store.replay("k")) == events_at(0, place.offset)
        store.save("k", checkpoint_at(6), events_at(place.offset, 6), fence=fence)
        assert list(store.replay("k")) == events_at(0, 6)


def test_a_full_memory_is_an_error_that_can_be_mended(own_redis: RedisServer) -> None:
    store = kept(own_redis.url)
    fence = start(store)
    assert own_redis.command("CONFIG", "SET", "maxmemory", "1") == "+OK"
    with pytest.raises(StoreError, match="is full: .*; nothing was saved: give it more memory, or delete") as caught:
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert "OOM" in str(caught.value) or "maxmemory" in str(caught.value)
    assert list(store.replay("k")) == events_at(0, 2)
    assert store.load("k") == checkpoint_at(2)
    assert own_redis.command("CONFIG", "SET", "maxmemory", "0") == "+OK"
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_another_process_that_opens_the_key_takes_it_over(redis_server: RedisServer) -> None:
    store = kept(redis_server.url)
    fence = start(store)
    other = subprocess.run(
        program(
            """
            found, fence = store.open("k")
            store.save("k", checkpoint_at(found.offset + 1), events_at(found.offset, found.offset + 1), fence=fence)
            print(fence)
            """,
            redis_server.url,
        ),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert other.returncode == 0, other.stderr
    with pytest.raises(StoreError, match=f"another writer: expected fence {int(other.stdout)}, received {fence}"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


def test_scripts_that_redis_forgot_are_sent_again(client: Any) -> None:
    store = kept(client)
    fence = start(store)
    client.script_flush()
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)


# --- what is in it


def test_a_place_is_a_hash_and_a_list_of_one_slot(client: Any) -> None:
    store = kept(client, expires=100)
    _, fence = store.open("k")
    for begin, stop in ((0, 1), (1, 1), (1, 200)):
        store.save("k", checkpoint_at(stop), events_at(begin, stop), fence=fence)
    name = the_hash(client)
    assert re.fullmatch(rb"rs:k:\{[0-9a-f]{32}\}", name)
    assert sorted(client.keys("*")) == [name, name + b":e"]
    assert key_slot(name) == key_slot(name + b":e")
    assert client.hmget(name, "key", "fence", "checkpoint", "count") == [
        b"k",
        str(fence).encode(),
        checkpoint_at(200).to_json().encode(),
        b"2",
    ]
    # The events of one save are one element, and those of none are none.
    assert client.llen(name + b":e") == 2
    assert all(0 < client.pttl(each) <= 100_000 for each in (name, name + b":e"))


def test_both_keys_live_equally_long_or_for_ever(client: Any) -> None:
    start(kept(client, expires=100))
    name = the_hash(client)
    for options, lives in (({"expires": 5000}, range(4_000_000, 5_000_001)), ({"expires": None}, [-1])):
        store = kept(client, **options)
        _, fence = store.open("k")
        assert {client.pttl(each) in lives for each in (name, name + b":e")} == {True}
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
        assert {client.pttl(each) in lives for each in (name, name + b":e")} == {True}
    assert kept(client).expires == 30 * 86400


def test_a_prefix_keeps_deployments_apart(client: Any) -> None:
    stores = [kept(client, prefix=prefix) for prefix in ("rs:", "a*[x]?\\:", "a:", "")]
    for number, store in enumerate(stores, 1):
        start(store, upto=number)
    for number, store in enumerate(stores, 1):
        assert list(store.replay("k")) == events_at(0, number)
        assert [listed.events for listed in store.places()] == [number]
    stores[1].delete("k")
    assert [len(list(store.places())) for store in stores] == [1, 0, 1, 1]


def test_a_replay_does_not_load_everything(client: Any) -> None:
    store = kept(client)
    _, fence = store.open("k")
    events = events_at(0, 10_000)
    for event in events:
        event.data = os.urandom(500).hex()
    for begin in range(0, 10_000, 200):
        store.save("k", checkpoint_at(begin + 200), events[begin : begin + 200], fence=fence)
    del events, event
    tracemalloc.start()
    try:
        count = sum(1 for _ in store.replay("k"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 5_000_000, f"{peak} bytes for events of 10 MB"


def test_a_replay_of_events_that_are_saved_again_meanwhile_shows_what_it_began_with(lossy: Lossy) -> None:
    store = kept(lossy)
    _, fence = store.open("k")
    lossy.plan = ["lost", "ok"]
    with pytest.raises(StoreError):
        store.save("k", checkpoint_at(2), events_at(0, 2), fence=fence)
    replay = kept(lossy).replay("k")
    store.save("k", checkpoint_at(5), events_at(0, 5), fence=fence)
    assert list(replay) == events_at(0, 2)
    assert list(store.replay("k")) == events_at(0, 5)


def test_a_key_that_is_deleted_while_it_is_replayed_is_an_error(client: Any) -> None:
    store = kept(client)
    _, fence = store.open("k")
    for offset in range(40):
        store.save("k", checkpoint_at(offset + 1), events_at(offset, offset + 1), fence=fence)
    first, second = store.replay("k"), store.replay("k")
    assert [next(each).data for each in (first, second)] == ["token 0"] * 2
    store.delete("k")
    with pytest.raises(StoreError, match="was deleted while its events were read"):
        list(first)
    # Neither are the events of a new answer taken for the rest of the old one.
    start(store, upto=50)
    with pytest.raises(StoreError, match="was deleted while its events were read"):
        list(second)


def test_places_are_listed_with_what_they_are(client: Any) -> None:
    store = kept(client, expires=1000)
    start(store, "b", upto=3)
    kept(client, expires=None).open("a")
    for name in ("rs:k:{other}", "rs:k:{00}:e", "other"):
        client.set(name, "somebody else's")
    first, second = sorted(store.places(), key=lambda listed: listed.key)
    assert (first.key, first.checkpoint, first.events, first.expires, first.damage) == ("a", None, 0, None, None)
    assert (second.key, second.checkpoint, second.events, second.damage) == ("b", checkpoint_at(3), 3, None)
    assert second.expires is not None and abs(second.expires - second.saved - 1000) < 60
    [element] = client.lrange(next(name for name in client.keys("*:e") if name != b"rs:k:{00}:e"), 0, -1)
    assert second.size_bytes == len(element) + len(checkpoint_at(3).to_json().encode())
    assert first.size_bytes == 0


def test_any_number_of_places_is_listed(client: Any) -> None:
    store = kept(client)
    for number in range(1200):
        store.open(f"k{number:04}")
    assert sorted(listed.key for listed in store.places()) == [f"k{number:04}" for number in range(1200)]


# --- damage


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("checkpoint", "{", "the place of the key 'k' cannot be read: expected the JSON of a checkpoint"),
        ("checkpoint", b"\xff", "the place of the key 'k' is damaged: expected fence, checkpoint, count and events"),
        ("fence", "x", "the place of the key 'k' is damaged"),
        ("events", "x", "the place of the key 'k' is damaged"),
        ("count", None, "the place of the key 'k' is damaged"),
        ("fence", None, "the place of the key 'k' is damaged"),
        ("count", "3", "events of the key 'k' are lost: expected 3 saves with events, found 1"),
    ],
)
def test_a_damaged_place_is_an_error_until_it_is_deleted(field: str, value: Any, complaint: str, client: Any) -> None:
    store = kept(client)
    start(store)
    name = the_hash(client)
    if value is None:
        client.hdel(name, field)
    else:
        client.hset(name, field, value)
    before = client.hgetall(name)
    for action in (lambda: store.open("k"), lambda: store.load("k"), lambda: list(store.replay("k"))):
        if field == "checkpoint" and value == "{" and action.__code__.co_names[0] == "list":
            continue
        with pytest.raises(StoreError, match=rf"{complaint}.*delete\(\) the key to start over"):
            action()
    assert client.hgetall(name) == before
    [listed] = store.places()
    assert listed.key == "k"
    if value != "3":
        assert listed.checkpoint is None and listed.damage is not None and "'k'" in listed.damage
    store.delete("k")
    start(store)
    assert list(store.replay("k")) == events_at(0, 2)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda client, name: client.delete(name), "are lost: expected 3 saves with events, found 0"),
        (lambda client, name: client.lpop(name), "are lost: expected 3 saves with events, found 2"),
        (lambda client, name: client.rpush(name, "more"), "are lost: expected 3 saves with events, found 4"),
        (lambda client, name: client.lset(name, 1, "x"), "are damaged in event 2: expected 1 bytes of compressed events"),
        (lambda client, name: client.lset(name, 1, b""), "are damaged in event 2"),
        (lambda client, name: client.lset(name, 1, client.lindex(name, 1)[:-1]), "are damaged in event 2: expected"),
        (lambda client, name: client.lset(name, 2, client.lindex(name, 0)[:0]), "are damaged in event 4"),
        (lambda client, name: client.hset(name[:-2], "events", 7), "are lost: expected 7, found 6"),
    ],
)
def test_damaged_events_are_an_error_not_a_shorter_answer(
    damage: Callable[[Any, bytes], object], complaint: str, client: Any
) -> None:
    store = kept(client)
    _, fence = store.open("k")
    for offset in (0, 2, 4):
        store.save("k", checkpoint_at(offset + 2), events_at(offset, offset + 2), fence=fence)
    damage(client, the_hash(client) + b":e")
    with pytest.raises(StoreError, match=complaint):
        list(store.replay("k"))


def test_events_that_were_evicted_are_an_error_for_the_writer_too(client: Any) -> None:
    store = kept(client)
    fence = start(store)
    client.delete(the_hash(client) + b":e")
    with pytest.raises(StoreError, match="are lost: expected 1 saves with events, found 0; nothing was saved; delete"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    with pytest.raises(StoreError, match="are lost"):
        store.open("k")


def test_a_list_whose_place_was_evicted_is_not_taken_for_a_new_one(client: Any) -> None:
    store = kept(client)
    fence = start(store)
    client.delete(the_hash(client))
    with pytest.raises(StoreError, match="was lost with its Redis"):
        store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert store.load("k") is None
    assert start(store, upto=1) > fence
    assert list(store.replay("k")) == events_at(0, 1)


@pytest.mark.parametrize("suffix", ["", ":e"])
def test_a_key_of_somebody_else_is_named_and_left_alone(suffix: str, client: Any) -> None:
    store = kept(client)
    store.open("k")
    name = the_hash(client).decode()
    client.delete(name, f"{name}:e")
    client.set(name + suffix, "precious")
    for action in (lambda: store.open("k"), lambda: store.load("k"), lambda: store.replay("k")):
        with pytest.raises(
            StoreError, match=r"begins with 'rs:k:' is not ours and was left unchanged: expected a hash and a list"
        ):
            action()
    if not suffix:
        with pytest.raises(StoreError, match="is not ours"):
            store.delete("k")
    assert client.get(name + suffix) == b"precious"


def test_the_place_of_another_key_is_not_taken(client: Any) -> None:
    store = kept(client)
    start(store)
    client.hset(the_hash(client), "key", "another")
    for action in (lambda: store.open("k"), lambda: store.load("k"), lambda: store.replay("k"), lambda: store.delete("k")):
        with pytest.raises(
            StoreError, match="holds the place of another key: expected 'k', found 'another'; pass another prefix="
        ):
            action()


# --- clients and URLs


def test_a_client_of_the_callers_is_never_closed(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, single_connection_client=True) as client:
        store = kept(client)
        start(store)
        connected = client.connection
        store.close()
        assert list(store.replay("k")) == events_at(0, 2)
        del store
        assert client.connection is connected
        assert client.ping()


def test_a_store_that_is_closed_makes_new_connections(own_redis: RedisServer) -> None:
    store = kept(own_redis.url)
    fence = start(store)

    def connections() -> int:
        with redis.Redis.from_url(own_redis.url) as client:
            return len(client.client_list()) - 1

    assert connections() == 1
    store.close()
    store.close()
    assert connections() == 0
    store.save("k", checkpoint_at(3), events_at(2, 3), fence=fence)
    assert list(store.replay("k")) == events_at(0, 3)
    del store
    assert connections() == 0


def test_nothing_is_sent_before_the_first_use() -> None:
    RedisStore("redis://127.0.0.1:1/0").close()
    RedisStore("redis+cluster://127.0.0.1:1").close()
    RedisStore("redis+sentinel://127.0.0.1:1/name").close()


def test_a_cluster_is_named_by_its_url(redis_cluster: RedisCluster) -> None:
    url = redis_cluster.url.replace("redis://", "redis+cluster://")
    store = kept(url)
    for key in "abcdefgh":
        start(store, key)
    assert sorted(listed.key for listed in store.places()) == list("abcdefgh")
    assert {node.command("DBSIZE") == ":0" for node in redis_cluster.nodes} == {False}
    assert repr(store) == f"RedisStore('cluster of 127.0.0.1:{redis_cluster.nodes[0].port}', keep_events=True)"
    store.close()
    del store
    gc.collect()  # an open connection to a node would be reported here


def test_a_master_is_found_through_its_sentinel(own_redis: RedisServer, tmp_path: Path) -> None:
    from tests.redis_server import RedisServer

    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor main 127.0.0.1 {own_redis.port} 1\n")
    sentinel = RedisServer(config=config).start()
    try:
        store = kept(f"redis+sentinel://127.0.0.1:{sentinel.port}/main/0")
        start(store)
        assert list(kept(own_redis.url).replay("k")) == events_at(0, 2)
        assert repr(store) == f"RedisStore('main/0 of the sentinel 127.0.0.1:{sentinel.port}', keep_events=True)"
        store.close()
        del store
        gc.collect()  # an open connection to the sentinel would be reported here
        with pytest.raises(StoreError, match="cannot use Redis at other/0 of the sentinel .*No master found for 'other'"):
            kept(f"redis+sentinel://127.0.0.1:{sentinel.port}/other").open("k")
    finally:
        sentinel.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:s3cr3t@db.example.com:6380/2", "db.example.com:6380/2"),
        ("rediss://:s3cr3t@db.example.com", "db.example.com:6379/0"),
        ("redis://[::1]:6379", "[::1]:6379/0"),
        ("redis://db.example.com?password=s3cr3t&db=3", "db.example.com:6379/3"),
        ("unix://me:s3cr3t@/run/redis.sock?db=1", "/run/redis.sock, db 1"),
        ("redis+cluster://me:s3cr3t@db.example.com:6380", "cluster of db.example.com:6380"),
        ("redis+sentinel://me:s3cr3t@one:26380,two/main/4", "main/4 of the sentinel one:26380"),
    ],
)
def test_a_store_shows_where_it_is_and_no_secret(url: str, shown: str) -> None:
    assert repr(RedisStore(url)) == f"RedisStore({shown!r}, keep_events=False)"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr3t#x@db.example.com",
        "redis://:s3cr3t@db.example.com:port/0",
        "redis://:s3cr3t@[db.example.com",
        "redis://:s3cr3t@db.example.com/0?no_such_option=s3cr3t",
        "redis://:s3cr3t@db.example.com/0?socket_timeout=s3cr3t",
        "redis+sentinel://:s3cr3t@db.example.com",
        "redis+sentinel://:s3cr3t@db.example.com/main/s3cr3t",
        "redis+sentinel://:s3cr3t#@db.example.com:s3cr3t/main",
        "http://:s3cr3t@db.example.com",
        "s3cr3t",
        "",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="expected .*redis://host:6379/0") as caught:
        RedisStore(url)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value, chain=True))
    assert caught.value.__context__ is None


@pytest.mark.parametrize("how", ["wrong password", "unknown command", "no permission"])
@pytest.mark.parametrize("own", [True, False], ids=["url", "client"])
def test_an_error_of_the_server_names_no_secret(how: str, own: bool) -> None:
    """A server that does not know AUTH or HELLO repeats the command with all that was passed to it."""
    from tests.redis_server import RedisServer

    options = {
        "wrong password": ["--requirepass", "another"],
        "unknown command": ["--rename-command", "AUTH", "", "--rename-command", "HELLO", ""],
        "no permission": ["--user", "us3rn4me", "on", ">s3cr3t", "~*", "+hello", "+auth", "+client"],
    }[how]
    server = RedisServer(*options).start()
    try:
        url = f"redis://us3rn4me:s3cr3t@127.0.0.1:{server.port}/0"
        with redis.Redis.from_url(url) as client:
            store = kept(url if own else client)
            for action in (lambda: store.open("k"), lambda: store.load("k"), lambda: list(store.places())):
                with pytest.raises(StoreError, match=f"cannot use Redis at 127.0.0.1:{server.port}/0: .+") as caught:
                    action()
                assert not re.search("s3cr3t|us3rn4me", "".join(traceback.format_exception(caught.value)))
                assert not re.search("s3cr3t|us3rn4me", repr(caught.value.__context__) + str(caught.value.__context__))
    finally:
        server.close()


def test_a_client_that_is_none_is_refused_with_what_to_pass() -> None:
    hint = "pass the sync client: async streams use it in a worker thread"
    for wrong, sentence in ((None, "got builtins.NoneType"), (redis.asyncio.Redis(), hint)):
        with pytest.raises(TypeError, match=f"expected the URL of a Redis, a redis.Redis or a redis.RedisCluster, .*{sentence}"):
            RedisStore(wrong)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "1"])
def test_what_is_no_duration_is_refused(seconds: Any) -> None:
    for name in ("timeout", "expires"):
        with pytest.raises(ValueError, match=name):
            RedisStore("redis://localhost", **{name: seconds})


def test_an_event_of_many_megabytes_is_kept(client: Any) -> None:
    store = kept(client)
    _, fence = store.open("k")
    event = StreamEvent(data=os.urandom(4_000_000).hex())
    store.save("k", checkpoint_at(1), [event], fence=fence)
    assert [item.data for item in store.replay("k")] == [event.data]


def test_the_password_of_a_callers_sentinels_is_a_secret_too() -> None:
    sentinels = Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": "s3cr3t"})  # type: ignore[no-untyped-call]
    store = RedisStore(sentinels.master_for("main"))  # type: ignore[no-untyped-call]
    assert store._scrubber.scrubbed("WRONGPASS for s3cr3t") == "WRONGPASS for …"
