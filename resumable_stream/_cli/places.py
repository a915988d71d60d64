"""Opens the store that `--store` names, for every command that takes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from resumable_stream.stores import FileStore, SQLiteStore
from resumable_stream.stores.file import CHECKPOINT_MAGIC
from resumable_stream.stores.sqlite import DATABASE

from ._extra import click

if TYPE_CHECKING:
    from resumable_stream.stores import RedisStore

__all__ = ["AnyStore", "abbreviated", "matches", "shown", "store_at", "store_shown"]

AnyStore: TypeAlias = Union[FileStore, SQLiteStore, "RedisStore"]
"""The stores that outlive a command."""

_EXPECTED = "a path, sqlite:///path or redis://host:6379/0"
_REDIS = ("redis", "rediss", "unix", "redis+cluster", "redis+sentinel")
# The end of a `request_key()`: 32 digits that stand for the whole request.
_DIGEST = re.compile(r"#([0-9a-f]{32})$")
# Digits of a digest that people see and type. 8, as in git: among a thousand keys, two share them with probability 0.0001.
_DIGITS = 8
_LEAST = 4


def store_at(text: str, *, keep_events: bool = False, must_exist: bool = False) -> AnyStore:
    """
    Open the store that `--store` names. The existing file decides: a file of `FileStore`, from older versions, stays one.

    Args:
        text: `sqlite:///relative/path`, `sqlite:////absolute/path`; a URL of `RedisStore`; or a path: of a database, which is
            created if needed, or of a directory in which places are kept.
        keep_events: As for the stores.
        must_exist: Refuse a path that does not exist: for a command that only reads, it is mistyped.

    Raises:
        click.BadParameter: None of these. Nothing was touched.
    """
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _REDIS:
        return _redis_at(text, keep_events=keep_events)
    if separator:
        if scheme != "sqlite":
            raise _wrong(text, f"expected {_EXPECTED}")
        if not rest.startswith("/") or not rest[1:]:
            raise _wrong(text, "expected sqlite:///relative/path or sqlite:////absolute/path")
        text = rest[1:]
    if text == "memory:":
        raise _wrong(text, "a store in memory is gone when the command ends")
    path = Path(text)
    if must_exist and not path.exists():
        raise _wrong(text, "there is no such file or directory")
    if path.is_dir():
        if not (path / DATABASE).exists() and not any(path.glob("*.checkpoint")):
            raise _wrong(text, "is a directory without any kept places; expected a file")
        return SQLiteStore(path, keep_events=keep_events)
    if _begins_with(path, CHECKPOINT_MAGIC):
        return FileStore(path, one_file=True, keep_events=keep_events)
    return SQLiteStore(path, keep_events=keep_events)


def store_shown(text: str) -> str:
    """
    The name of a store, without possible secrets: user, password, query.

    >>> store_shown("redis://me:pw@db.example.com:6379/0?ssl=1"), store_shown("redis://:p?w@db"), store_shown("a@b.db")
    ('redis://db.example.com:6379/0', 'redis://…', 'a@b.db')
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "sqlite":
        return text
    before, _, host = rest.rpartition("@")
    if re.search(r"[?#]", before):
        # Either the password contains such a character or the query contains an @: it is unclear where the secret ends.
        return f"{scheme}://…"
    return f"{scheme}://{re.split(r'[?#]', host, maxsplit=1)[0]}"


def shown(key: str) -> str:
    """
    A key as people see it: a digest at its end is shortened to its first digits.

    >>> shown("POST https://api.example.com/v1/answers #ba1805e203ea6a6e51135bee668206ef")
    'POST https://api.example.com/v1/answers #ba1805e2'
    """
    return key[: _DIGITS - 32] if _DIGEST.search(key) else key


def matches(key: str, name: str) -> bool:
    """
    Whether an abbreviation fits a key: the first digits of its digest, with or without the part before it.

    >>> [matches("GET https://a.example/ #ba1805e203ea6a6e51135bee668206ef", name) for name in ("ba18", "#ba1805e2", "ba1", "18")]
    [True, True, False, False]
    """
    found = _DIGEST.search(key)
    front, _, digits = name.rpartition("#")
    return found is not None and len(digits) >= _LEAST and found[1].startswith(digits) and front in ("", key[: found.start()])


def abbreviated(key: str) -> str:
    """
    The name by which people may call a key: the first digits of the digest at its end, or else all of it.

    >>> abbreviated("POST https://api.example.com/v1/answers #ba1805e203ea6a6e51135bee668206ef")
    'ba1805e2'
    """
    found = _DIGEST.search(key)
    return found[1][:_DIGITS] if found else key


def _redis_at(text: str, *, keep_events: bool) -> RedisStore:
    try:
        from resumable_stream.stores import RedisStore

        return RedisStore(text, keep_events=keep_events)
    except (ImportError, ValueError) as error:
        raise _wrong(text, str(error)) from None


def _begins_with(path: Path, magic: bytes) -> bool:
    # Before any database is opened in this process: closing a file drops SQLite's locks on it.
    try:
        with open(path, "rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _wrong(text: str, sentence: str) -> click.BadParameter:
    return click.BadParameter(f"{store_shown(text)}: {sentence}", param_hint="--store")
