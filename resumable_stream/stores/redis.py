"""
A store in Redis: for many machines, and for processes that come and go.

    rs:k:{digest}      a hash: key, fence, checkpoint, count, events, …
    rs:k:{digest}:e    a list: the events of one save are one element

The digest is computed from the key, so any text can be a key; the braces put both into one slot of a cluster.

*Both or neither.* Each operation is one script, which Redis runs atomically: a save compares the fence, appends the events and
moves the place. `count` says how many elements there are: if the list lost some, or was evicted alone, that is an error and not
a shorter answer.

*The fence* takes the server's clock into account, so a key that was deleted, has expired, or was lost with a Redis that came
back empty does not get an old number. Its previous writer gets an error at its next save.

*A reply that got lost.* If the connection breaks after a save was sent, it is unknown whether the save was done. The error says
that it was not, and the caller will save the same events again, perhaps followed by more. Each attempt therefore has an
increasing number, and the hash remembers the last one that was done and the state before it. The next attempt says which earlier
ones it repeats: if one of them was done after all, it is undone in the same step. An attempt that was delayed and arrives after a
later one is refused. The events are therefore stored once, whatever arrives, and however often.

Redis is as durable as it is configured to be. If it loses data, there is no gap: the place and its events are lost together.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from .._checkpoint import Checkpoint
from .._errors import StoreError
from .._scrubbing import Scrubber
from ._packing import pack, unpack
from .base import Kept, Listed, check_expires, check_interval, check_key, checkpoint_to_json, superseded

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.cluster import RedisCluster
    from redis.exceptions import NoScriptError, OutOfMemoryError, RedisClusterException, RedisError
    from redis.retry import Retry
    from redis.sentinel import Sentinel
except ImportError as error:
    raise ImportError("RedisStore needs redis: pip install 'resumable-stream-sdk[redis]'", name="redis") from error

__all__ = ["RedisStore"]

# Elements that a replay requests at once. 16: at most some MB, and few round trips for an answer that was saved each second.
_PAGE: Final = 16
# Saves whose reply got lost and that were not repeated yet. Each is a stream that failed and was not continued here.
_MOST_DOUBTS: Final = 10_000
# Longest text of a server, in characters, that is quoted in an error.
_MOST_SAID: Final = 300

_SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "redis+sentinel")
_EXPECTED: Final = (
    "redis://host:6379/0, rediss://host:6379/0, unix:///path/to/socket, redis+cluster://host:6379, or "
    "redis+sentinel://host:26379/name/0"
)

_FIELDS: Final = "'key', 'fence', 'checkpoint', 'count', 'events', 'whole', 'born'"

_READ: Final = f"""
local f = redis.call('HMGET', KEYS[1], {_FIELDS})
return {{redis.call('EXISTS', KEYS[1]), redis.call('LLEN', KEYS[2]), unpack(f, 1, 7)}}
"""

_OPEN: Final = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local f = redis.call('HMGET', KEYS[1], 'key', 'fence', 'opener')
if f[1] and f[1] ~= ARGV[1] then return {'OTHER', f[1]} end
if not f[2] then
  redis.call('DEL', KEYS[1], KEYS[2])
  local fence = string.format('%.0f', now)
  redis.call('HSET', KEYS[1], 'key', ARGV[1], 'fence', fence, 'count', 0, 'events', 0, 'bytes', 0, 'whole', 1, 'born', fence,
    'seq', 0, 'count0', 0, 'events0', 0, 'bytes0', 0, 'whole0', 1, 'opener', ARGV[2])
elseif f[3] ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'fence', string.format('%.0f', math.max(now, tonumber(f[2]) + 1)), 'opener', ARGV[2])
end
redis.call('HSET', KEYS[1], 'saved', string.format('%.0f', now))
for i = 1, 2 do
  if ARGV[3] == '' then redis.call('PERSIST', KEYS[i]) else redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
end
return {'OK', unpack(redis.call('HMGET', KEYS[1], 'fence', 'checkpoint'), 1, 2)}
"""

# ARGV: fence, number of this attempt, number of the first attempt that it repeats or 0, whether events are kept, whether the
# place is the beginning, milliseconds to live or '', checkpoint, number of events, then the elements.
_SAVE: Final = """
local f = redis.call('HMGET', KEYS[1], 'fence', 'seq', 'count', 'events', 'bytes', 'whole', 'checkpoint',
  'count0', 'events0', 'bytes0', 'whole0')
if not f[1] then return {'GONE'} end
if f[1] ~= ARGV[1] then return {'FENCED', f[1]} end
local seq, this, first = tonumber(f[2]), tonumber(ARGV[2]), tonumber(ARGV[3])
if seq == this then return {'OK'} end
if seq > this then return {'LATE'} end
local count, events, bytes, whole = tonumber(f[3]), tonumber(f[4]), tonumber(f[5]), tonumber(f[6])
local length = redis.call('LLEN', KEYS[2])
if length ~= count then return {'LOST', count, length} end
local same = whole == 1 and ARGV[7] == f[7]
if first > 0 and seq >= first then
  count, events, bytes, whole = tonumber(f[8]), tonumber(f[9]), tonumber(f[10]), tonumber(f[11])
  if count == 0 then redis.call('DEL', KEYS[2]) else redis.call('LTRIM', KEYS[2], 0, count - 1) end
end
local rows, more = #ARGV - 8, 0
for i = 9, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
  more = more + #ARGV[i]
end
local t = redis.call('TIME')
local still = 0
if whole == 1 and (ARGV[4] == '1' or ARGV[5] == '1' or same) then still = 1 end
redis.call('HSET', KEYS[1], 'checkpoint', ARGV[7], 'count', count + rows, 'events', events + ARGV[8], 'bytes', bytes + more,
  'whole', still, 'seq', ARGV[2], 'count0', count, 'events0', events, 'bytes0', bytes, 'whole0', whole,
  'saved', string.format('%.0f', t[1] * 1000000 + t[2]))
for i = 1, 2 do
  if ARGV[6] == '' then redis.call('PERSIST', KEYS[i]) else redis.call('PEXPIRE', KEYS[i], ARGV[6]) end
end
return {'OK'}
"""

# After this script an attempt is either done or will never be.
_SETTLE: Final = """
local f = redis.call('HMGET', KEYS[1], 'fence', 'seq', 'count', 'events', 'bytes', 'whole')
if f[1] == ARGV[1] and tonumber(f[2]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'seq', ARGV[2], 'count0', f[3], 'events0', f[4], 'bytes0', f[5], 'whole0', f[6])
end
return {'OK'}
"""

_EVENTS: Final = """
if redis.call('HGET', KEYS[1], 'born') ~= ARGV[1] then return {'GONE'} end
return {'OK', redis.call('LRANGE', KEYS[2], ARGV[2], ARGV[3])}
"""

_DELETE: Final = """
local key = redis.call('HGET', KEYS[1], 'key')
if key and key ~= ARGV[1] then return {'OTHER', key} end
redis.call('DEL', KEYS[1], KEYS[2])
return {'OK'}
"""

_LIST: Final = f"""
return {{redis.call('PTTL', KEYS[1]), redis.call('HGET', KEYS[1], 'saved'), redis.call('HGET', KEYS[1], 'bytes'),
  unpack(redis.call('HMGET', KEYS[1], {_FIELDS}), 1, 7)}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """The content of the hash."""

    fence: int
    checkpoint: str | None
    count: int
    events: int
    whole: bool
    born: bytes


@dataclass(slots=True)
class _Doubt:
    """A save that may or may not have been done."""

    first: int
    """Number of its first attempt."""
    last: int
    interrupted: bool = False
    """The caller was interrupted, and will check whether it was done; see `RedisStore._settle()`."""


class RedisStore:
    """
    Keep places in Redis, for any number of processes on any number of machines. Redis 6.2 or newer, Valkey too.

    Nothing is sent before the first use. Events are as private as the answer: anyone who can read this Redis can read them.

    Args:
        url_or_client: `redis://host:6379/0`, `rediss://…` (TLS), `unix:///path/to/socket`, `redis+cluster://host:6379`,
            `redis+sentinel://host:26379,host2:26379/name/0`, each with `user:password@` before the host if needed. Or your own
            client: a `redis.Redis` (also from `Sentinel.master_for()`) or a `redis.RedisCluster`. It is never closed here, and
            keeps its timeouts, retries and other settings.
        keep_events: Keep the events too, for `replay()`. They are compressed, usually to a tenth.
        save_interval: Seconds between two saves while events flow; see `Store`. 1.0, as for all stores.
        expires: Seconds after its last `open()` or `save()` at which a place is deleted. 30 days: Redis memory is shared and
            expensive, and no known provider keeps an answer for longer. `None`: never.
        prefix: The beginning of all keys. `"rs:"`; pass another one to separate deployments in the same Redis.
        timeout: Seconds to wait for a connection, and for each reply of Redis. 5.0. Not used for your own client.

    Raises:
        ValueError: The URL cannot be parsed. It is not in the message, because it may contain a password.
        TypeError: Neither a URL nor such a client.
    """

    def __init__(
        self,
        url_or_client: str | redis.Redis | RedisCluster,
        *,
        keep_events: bool = False,
        save_interval: float = 1.0,
        expires: float | None = 30 * 86400.0,
        prefix: str = "rs:",
        timeout: float = 5.0,
    ) -> None:
        self.keep_events = keep_events
        self.save_interval = check_interval(save_interval)
        self.expires = check_expires(expires)
        self.prefix = prefix
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 3600:
            raise ValueError(f"timeout must be seconds > 0 and at most 3600, got {timeout!r}")
        self.timeout = float(timeout)
        given: Any = url_or_client
        self._client: Any = None
        # Makes the client; `None` if the caller passed one.
        self._make: Callable[[], Any] | None = None
        if isinstance(given, str):
            self._make, self._where, secrets = _read_url(given, self.timeout)
        elif isinstance(given, (redis.Redis, RedisCluster)):
            self._client = given
            self._where, secrets = _where(given), _secrets(given)
        else:
            kind = f"{type(given).__module__}.{type(given).__name__}"
            hint = "; pass the sync client: async streams use it in a worker thread" if "asyncio" in kind else ""
            raise TypeError(f"expected the URL of a Redis, a redis.Redis or a redis.RedisCluster, got {kind}{hint}")
        self._scrubber = Scrubber(secrets)
        self._lock = threading.Lock()
        # Numbers of attempts. Microseconds, so that another store object with the same fence continues to count up.
        self._attempts = itertools.count(time.time_ns() // 1000)
        self._doubts: OrderedDict[tuple[str, int], _Doubt] = OrderedDict()
        self._shas = {script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in _SCRIPTS}

    def __repr__(self) -> str:
        return f"RedisStore({self._where!r}, keep_events={self.keep_events})"

    def open(self, key: str) -> tuple[Checkpoint | None, int]:
        """See `Store.open()`."""
        check_key(key)
        # Checked before the key is taken over, so that damaged or foreign data stays unchanged.
        if (place := self._find(key)) is not None:
            self._checkpoint(key, place)
        # A client that sends it twice, because a reply got lost, does not supersede itself.
        verdict, *rest = self._run(_OPEN, key, key.encode(), os.urandom(8).hex(), self._ttl())
        if verdict != b"OK":
            raise self._other(key, rest[0])
        fence, checkpoint = rest
        return (None if checkpoint is None else self._read_checkpoint(key, _text(checkpoint))), int(fence)

    def load(self, key: str) -> Checkpoint | None:
        """Read the place without taking over the key."""
        check_key(key)
        self._settle(key)
        place = self._find(key)
        return None if place is None else self._checkpoint(key, place)

    def save(self, key: str, checkpoint: Checkpoint, events: Iterable[Kept] = (), *, fence: int) -> None:
        """See `Store.save()`."""
        check_key(key)
        text = checkpoint_to_json(key, checkpoint)
        rows = list(pack(events)) if self.keep_events else []
        this = next(self._attempts)
        doubt = self._doubts.setdefault((key, fence), _Doubt(this, this))
        doubt.last = this
        if len(self._doubts) > _MOST_DOUBTS:
            self._doubts.popitem(last=False)
        first = 0 if doubt.first == this else doubt.first
        try:
            verdict, *rest = self._run(
                *(_SAVE, key, str(fence), this, first, int(self.keep_events), int(checkpoint.offset == 0), self._ttl()),
                *(text.encode(), sum(count for count, _ in rows), *(row for _, row in rows)),
            )
        except StoreError:
            # Whatever the error: a client may have retried on its own. The doubt is kept for the next attempt.
            raise
        except BaseException:
            doubt.interrupted = True
            raise
        self._doubts.pop((key, fence), None)
        match verdict:
            case b"OK":
                return
            case b"FENCED":
                raise superseded(key, fence, int(rest[0]))
            case b"LOST":
                raise StoreError(
                    f"{self._where}: events of the key {key!r:.80} are lost: expected {int(rest[0])} saves with events, "
                    f"found {int(rest[1])}; nothing was saved; delete() the key to start over"
                )
            case b"LATE":
                raise StoreError(f"key {key!r:.80} was saved by another writer with the fence {fence}; nothing was saved")
            case _:
                raise superseded(key, fence, None, gone="was deleted, has expired, or was lost with its Redis")

    def replay(self, key: str) -> Iterator[Kept]:
        """See `Store.replay()`."""
        check_key(key)
        if not self.keep_events:
            return iter(())
        self._settle(key)
        place = self._find(key)
        if place is None:
            return iter(())
        if not place.whole:
            raise StoreError(
                f"{self._where}: not all events of the key {key!r:.80} up to its place were kept, because a store with "
                "keep_events=False wrote it; continue with keep_events=False, or delete() the key and start over"
            )
        return self._events(key, place)

    def delete(self, key: str) -> None:
        """See `Store.delete()`."""
        check_key(key)
        verdict, *rest = self._run(_DELETE, key, key.encode())
        if verdict != b"OK":
            raise self._other(key, rest[0])

    def places(self) -> Iterator[Listed]:
        """
        List what is kept, in no order. A place that is saved meanwhile may be listed in its old or new state.

        All keys of the Redis are looked at, in small steps.

        Yields:
            Each place. A damaged one is listed with its `damage`.

        Raises:
            StoreError: Redis cannot be asked.
        """
        pattern = re.sub(r"([*?\[\]\\^-])", r"\\\1", self.prefix) + "k:{*}"
        seen: set[bytes] = set()
        names = iter(self._guarded(lambda client: client.scan_iter(match=pattern, count=500)))
        while (found := self._guarded(lambda _: next(names, None))) is not None:
            name = found.encode() if isinstance(found, str) else found
            digest = name[-33:-1]
            if not re.fullmatch(rb"[0-9a-f]{32}", digest) or digest in seen:
                continue
            seen.add(digest)
            if (listed := self._listed(name.decode())) is not None:
                yield listed

    def close(self) -> None:
        """
        Close the connections that were made from a URL. The store may be used again, and makes new ones.

        A client that you passed stays open. Calling this is optional: unreferenced stores close their connections.
        """
        if self._make is None:
            return
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            _close(client)

    # --- places

    def _find(self, key: str) -> _Place | None:
        exists, length, *fields = self._run(_READ, key)
        if not exists:
            return None
        found, *_ = fields
        if found is not None and found != key.encode():
            raise self._other(key, found)
        place = self._read_place(key, fields)
        if length != place.count:
            raise StoreError(
                f"{self._where}: events of the key {key!r:.80} are lost: expected {place.count} saves with events, "
                f"found {length}; delete() the key to start over"
            )
        return place

    def _read_place(self, key: str, fields: list[Any]) -> _Place:
        try:
            _, fence, checkpoint, count, events, whole, born = fields
            return _Place(
                fence=int(fence),
                checkpoint=None if checkpoint is None else checkpoint.decode(),
                count=int(count),
                events=int(events),
                whole=whole == b"1",
                born=bytes(born),
            )
        except (TypeError, ValueError) as exc:
            raise StoreError(
                f"{self._where}: the place of the key {key!r:.80} is damaged: expected fence, checkpoint, count and events, "
                f"found {fields[1:]!r:.200}; delete() the key to start over"
            ) from exc

    def _checkpoint(self, key: str, place: _Place) -> Checkpoint | None:
        return None if place.checkpoint is None else self._read_checkpoint(key, place.checkpoint)

    def _read_checkpoint(self, key: str, text: str) -> Checkpoint:
        try:
            return Checkpoint.from_json(text)
        except ValueError as exc:
            raise StoreError(
                f"{self._where}: the place of the key {key!r:.80} cannot be read: {exc}; delete() the key to start over"
            ) from exc

    def _events(self, key: str, place: _Place) -> Iterator[Kept]:
        position = 0
        for start in itertools.count(0, _PAGE):
            if position == place.events:
                return
            verdict, *rest = self._run(_EVENTS, key, place.born, start, min(start + _PAGE, place.count) - 1)
            if verdict != b"OK":
                raise StoreError(f"{self._where}: the key {key!r:.80} was deleted while its events were read")
            rows = rest[0] if start < place.count else []
            if not rows:
                raise StoreError(
                    f"{self._where}: events of the key {key!r:.80} are lost: expected {place.events}, found {position}; "
                    "delete() the key to start over"
                )
            for row in rows:
                try:
                    for item in unpack(row):
                        if position == place.events:
                            # From a save that was repeated with more events during this replay.
                            return
                        position += 1
                        yield item
                except ValueError as exc:
                    raise StoreError(
                        f"{self._where}: the events of the key {key!r:.80} are damaged in event {position}: {exc}"
                    ) from exc

    def _listed(self, name: str) -> Listed | None:
        ttl, saved, size, *fields = self._call(_LIST, name)
        if ttl == -2:
            return None  # deleted in the meantime
        found, *_ = fields
        key = name if found is None else _text(found)
        checkpoint, events, damage = None, 0, None
        try:
            place = self._read_place(key, fields)
            events = place.events
            checkpoint = self._checkpoint(key, place)
        except StoreError as exc:
            damage = str(exc)
        return Listed(
            key=key,
            checkpoint=checkpoint,
            events=events,
            size_bytes=_number(size) + len(fields[2] or b""),
            saved=_number(saved) / 1e6,
            expires=time.time() + ttl / 1000 if ttl >= 0 else None,
            damage=damage,
        )

    def _settle(self, key: str) -> None:
        """
        Resolve a doubt left by an interrupt.

        The caller is about to read whether its save was done, and the answer must not change later. So an attempt that is still
        on its way is made to fail: it finds that a later one came first.

        Raises:
            StoreError: The doubt remains, and the next save repeats the attempt.
        """
        for pair in [pair for pair in list(self._doubts) if pair[0] == key]:
            doubt = self._doubts.get(pair)
            if doubt is not None and doubt.interrupted:
                self._run(_SETTLE, key, str(pair[1]), doubt.last)
                self._doubts.pop(pair, None)

    # --- Redis

    def _ttl(self) -> str:
        return "" if self.expires is None else str(max(1, round(self.expires * 1000)))

    def _run(self, script: str, key: str, *arguments: Any) -> list[Any]:
        """Run a script on a key of the caller's."""
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self._call(script, f"{self.prefix}k:{{{digest}}}", *arguments)

    def _call(self, script: str, name: str, *arguments: Any) -> list[Any]:
        keys = (2, name, f"{name}:e")

        def send(client: Any) -> list[Any]:
            # NEVER_DECODE: events are bytes, even if the caller's client decodes responses.
            try:
                found = client.execute_command("EVALSHA", self._shas[script], *keys, *arguments, NEVER_DECODE=True)
            except NoScriptError:
                found = client.execute_command("EVAL", script, *keys, *arguments, NEVER_DECODE=True)
            return list(found)

        found: list[Any] = self._guarded(send)
        return found

    def _guarded(self, call: Callable[[Any], Any]) -> Any:
        """Call with the client, and raise errors of Redis as `StoreError`."""
        try:
            return call(self._connected())
        except (RedisError, RedisClusterException, OSError) as exc:
            failure, cause = self._explained(exc), self._scrubber.harmless(exc)
        # Raised outside of the handler: otherwise the exception, which may contain a password, would be attached as context.
        raise failure from cause

    def _explained(self, exc: Exception) -> StoreError:
        """The error for the caller: what was expected, what was found, what to do."""
        said = self._scrubber.scrubbed(str(exc) or type(exc).__name__)
        # The error of a script, without its location.
        said = re.sub(r"^.*@user_script: ?\d+: -?", "", said)[:_MOST_SAID]
        if isinstance(exc, OutOfMemoryError) or said.startswith("OOM"):
            return StoreError(
                f"Redis at {self._where} is full: {said}; nothing was saved: give it more memory, or delete() keys that are done"
            )
        if "WRONGTYPE" in said:
            return StoreError(
                f"a key of Redis at {self._where} that begins with {self.prefix + 'k:'!r} is not ours and was left unchanged: "
                f"expected a hash and a list, found something else ({said}); pass another prefix="
            )
        return StoreError(f"cannot use Redis at {self._where}: {said}")

    def _connected(self) -> Any:
        client = self._client
        if client is None:
            with self._lock:
                if self._client is None:
                    assert self._make is not None
                    self._client = self._make()
                    weakref.finalize(self, _close, self._client)
                client = self._client
        return client

    def _other(self, key: str, found: bytes) -> StoreError:
        return StoreError(
            f"Redis at {self._where} holds the place of another key: expected {key!r:.200}, found {_text(found)!r:.200}; "
            "pass another prefix="
        )


_SCRIPTS: Final = (_READ, _OPEN, _SAVE, _SETTLE, _EVENTS, _DELETE, _LIST)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    return int(value) if value is not None and value.isdigit() else 0


# --- clients


def _read_url(url: str, timeout: float) -> tuple[Callable[[], Any], str, list[str]]:
    """
    Read a URL.

    Returns:
        A callable that makes the client; the location of Redis, without secrets; and the secrets.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError(f"expected the URL of a Redis ({_EXPECTED}), got another scheme")
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        # The caller decides whether and when to retry.
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        if scheme == "redis+sentinel":
            return _sentinel(rest, options)
        plain = f"redis://{rest}" if scheme == "redis+cluster" else url
        # Creating the client does not connect, but reports unknown options now.
        client = redis.Redis.from_url(plain, **options)
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        if scheme == "redis+cluster":
            return partial(RedisCluster.from_url, plain, **options), f"cluster of {_host(client)}", _secrets(client)
        return partial(redis.Redis.from_url, url, **options), _where(client), _secrets(client)
    except (ValueError, TypeError):
        pass
    # Raised outside of the handler, and without the URL: the part that could not be parsed may belong to the password.
    raise ValueError(f"the URL of a Redis cannot be read: expected {_EXPECTED}, with user:password@ before the host if needed")


def _sentinel(rest: str, options: dict[str, Any]) -> tuple[Callable[[], Any], str, list[str]]:
    login, _, place = rest.rpartition("@")
    hosts, _, path = place.partition("/")
    name, _, db = path.partition("/")
    parts = [urlsplit(f"redis://{host}") for host in hosts.split(",")]
    addresses = [(part.hostname or "localhost", part.port or 26379) for part in parts]
    if not name or re.search(r"[?#]", place):
        raise ValueError
    user, _, password = login.partition(":")
    secrets = [unquote(user), unquote(password)]
    master = {**options, "db": int(db or 0), "username": secrets[0] or None, "password": secrets[1] or None}
    asked = {name: value for name, value in options.items() if name != "retry"}

    def make() -> Any:
        return Sentinel(addresses, sentinel_kwargs=asked).master_for(name, **master)  # type: ignore[no-untyped-call]

    return make, f"{name}/{int(db or 0)} of the sentinel {addresses[0][0]}:{addresses[0][1]}", [each for each in secrets if each]


def _close(client: Any) -> None:
    """Close a client made from a URL, including what it leaves open: the pools of a cluster's nodes, and those to sentinels."""
    client.close()
    if isinstance(client, RedisCluster):
        nodes = client.get_nodes()  # type: ignore[no-untyped-call]
        pools = [node.redis_connection.connection_pool for node in nodes if node.redis_connection is not None]
    else:
        manager = getattr(client.connection_pool, "sentinel_manager", None)
        pools = [sentinel.connection_pool for sentinel in getattr(manager, "sentinels", ())]
    for pool in pools:
        pool.disconnect()


def _where(client: Any) -> str:
    """Describe the server of a client, without its user, password or other options."""
    if isinstance(client, RedisCluster):
        nodes = client.get_nodes() or client.nodes_manager.startup_nodes.values()  # type: ignore[no-untyped-call]
        first = next(iter(nodes), None)
        return "a cluster" if first is None else f"cluster of {first.host}:{first.port}"
    found = client.connection_pool.connection_kwargs
    if (name := getattr(client.connection_pool, "service_name", None)) is not None:
        return f"{name}/{found.get('db', 0)} of a sentinel"
    if "path" in found:
        return f"{found['path']}, db {found.get('db', 0)}"
    return f"{_host(client)}/{found.get('db', 0)}"


def _host(client: Any) -> str:
    found = client.connection_pool.connection_kwargs
    host = str(found.get("host", "localhost"))
    return f"{f'[{host}]' if ':' in host else host}:{found.get('port', 6379)}"


def _secrets(client: Any) -> list[str]:
    """The credentials that a client was given."""
    holder = client.nodes_manager if isinstance(client, RedisCluster) else client.connection_pool
    given = [holder.connection_kwargs]
    if (manager := getattr(holder, "sentinel_manager", None)) is not None:
        # Those who know the master may want another password.
        given.append(manager.sentinel_kwargs)
    return [str(found) for each in given for name in ("password", "username") if (found := each.get(name))]
