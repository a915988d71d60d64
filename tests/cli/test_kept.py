"""`resumable-stream list`, `show` and `forget`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import resumable_stream as rs
from resumable_stream._cli.app import app
from resumable_stream._cli.places import matches
from resumable_stream.stores import FileStore, RedisStore, SQLiteStore
from resumable_stream.testing.store_contract import checkpoint_at, events_at

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

URL = "https://api.example.com/v1/answers"
KEYS = [rs.request_key("POST", URL, json={"prompt": prompt}) for prompt in ("one", "two")]
KINDS = ["database", "url", "directory", "file store", "redis"]


def run(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> tuple[str, str]:
    """What a command wrote to its output and to its errors."""
    result = CliRunner().invoke(app, list(map(str, arguments)), input=stdin)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def place(key: str, offset: int, outcome: str | None = None, **fields: Any) -> rs.Checkpoint:
    extra = {} if outcome is None else {"outcome": outcome}
    fields = {"protocol": "LastEventID", "method": "POST", "url": URL, "cursor": str(offset), **fields}
    return rs.Checkpoint(offset=offset, complete=outcome is not None, extra=extra, **fields)


def words(*texts: str) -> list[rs.StreamEvent]:
    events = []
    for offset, text in enumerate(texts):
        event = rs.StreamEvent(data=text, id=str(offset + 1))
        event.offset = offset
        events.append(event)
    return events


def put(store: Any, key: str, checkpoint: rs.Checkpoint | None, events: Any = ()) -> None:
    _, fence = store.open(key)
    if checkpoint is not None:
        store.save(key, checkpoint, events, fence=fence)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "places.db"


def filled(kind: str, tmp_path: Path, request: pytest.FixtureRequest | None = None) -> tuple[Any, str]:
    """A store of each kind, and what names it."""
    store: Any
    if kind == "redis":
        assert request is not None
        named = request.getfixturevalue("redis_server").url
        store = RedisStore(named, keep_events=True, expires=None)
    elif kind == "file store":
        (tmp_path / "kept").mkdir()
        store, named = FileStore(tmp_path / "kept", keep_events=True), str(tmp_path / "kept")
    elif kind == "directory":
        (tmp_path / "kept").mkdir()
        store, named = SQLiteStore(tmp_path / "kept", keep_events=True), str(tmp_path / "kept")
    else:
        store, named = SQLiteStore(tmp_path / "kept.db", keep_events=True), str(tmp_path / "kept.db")
        if kind == "url":
            named = f"sqlite:///{named}"
    put(store, KEYS[0], place(KEYS[0], 3, "completed"), words("Hel", "lo", "!"))
    put(store, KEYS[1], place(KEYS[1], 2), words("Hi", " there"))
    put(store, "opened", None)
    return store, named


# --- list


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_listed_with_state_events_age_and_size(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    _, named = filled(kind, tmp_path, request)
    out, err = run("list", "--store", named)
    head, *rows = out.splitlines()
    assert head.split() == ["KEY", "STATE", "EVENTS", "KEPT", "AGE", "SIZE"]
    assert len(rows) == 3
    found = {re.split(r"  +", row)[0]: re.split(r"  +", row)[1:] for row in rows}
    one, two = (f"POST {URL} #{key[-32:-24]}" for key in KEYS)
    assert found[one][:3] == ["completed", "3", "3"]
    assert found[two][:3] == ["unfinished", "2", "2"]
    assert found["opened"][:3] == ["opened", "0", "0"]
    for *_, age, size in found.values():
        assert re.fullmatch(r"\d+ s", age) and re.fullmatch(r"[\d.]+ k?B", size)
    assert len(set(map(len, out.splitlines()))) == 1
    assert err == ""


def test_json_lists_everything_a_line_each(database: Path) -> None:
    store = SQLiteStore(database, keep_events=True, expires=3600)
    put(store, KEYS[0], place(KEYS[0], 3, "failed"), words("a", "b", "c"))
    [line] = run("list", "--store", database, "--json")[0].splitlines()
    found = json.loads(line)
    assert (found["key"], found["state"], found["events"], found["kept"]) == (KEYS[0], "failed", 3, 3)
    assert abs(found["saved"] - time.time()) < 100
    assert found["expires"] == found["saved"] + 3600
    assert found["bytes"] > 100 and found["damage"] is None


def test_an_empty_store_lists_nothing(database: Path) -> None:
    store = SQLiteStore(database)
    put(store, "k", None)
    store.delete("k")
    assert run("list", "--store", database) == ("", f"* no place is kept in {database}\n")
    assert run("list", "--store", database, "--json") == ("", "")


def test_a_damaged_place_is_listed_shown_and_forgotten(database: Path) -> None:
    store = SQLiteStore(database, keep_events=True)
    put(store, "k", checkpoint_at(2), events_at(0, 2))
    store._connection(store._handle()).execute("UPDATE place SET checkpoint = '{'")
    out, _ = run("list", "--store", database)
    assert re.split(r"  +", out.splitlines()[1])[:2] == ["k", "damaged"]
    out, err = run("show", "k", "--store", database, code=1)
    assert "state     damaged\n" in out
    assert "cannot be read: expected the JSON of a checkpoint" in err
    run("forget", "k", "--store", database, "--yes")
    assert list(store.places()) == []


def test_a_key_cannot_drive_the_terminal(database: Path) -> None:
    put(SQLiteStore(database), "evil\x1b[2J\nkey", None)
    out, _ = run("list", "--store", database)
    assert "evil\\x1b[2J\\x0akey" in out and "\x1b" not in out
    assert "\x1b" not in run("show", "evil\x1b[2J\nkey", "--store", database)[0]


def test_on_a_terminal_a_line_is_no_longer_than_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from resumable_stream._cli import kept

    monkeypatch.setattr(kept.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    rows = [("KEY", "STATE", "AGE"), (f"POST {'x' * 200} #ba1805e2", "completed", "2 min")]
    lines = list(kept._aligned(rows))
    assert [len(line) for line in lines] == [80, 80]
    assert lines[1].startswith("POST xxx") and "… #ba1805e2  completed  2 min" in lines[1].replace("x #", " #")


# --- show


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_is_shown_with_its_text(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    _, named = filled(kind, tmp_path, request)
    out, err = run("show", KEYS[1][-32:-26], "--store", named)
    facts, _, text = out.partition("\n\n")
    found = dict(re.split(r"\s+", line, maxsplit=1) for line in facts.splitlines())
    assert found["key"] == KEYS[1]
    assert found["state"] == "unfinished"
    assert found["request"] == f"POST {URL}"
    assert found["protocol"] == "LastEventID"
    assert found["place"] == "after 2 events, cursor 2"
    assert found["kept"].startswith("2 events, ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, \d+ s ago", found["saved"])
    assert text == "Hi there\n"
    assert err == ""


def test_the_text_alone(tmp_path: Path) -> None:
    _, named = filled("database", tmp_path)
    assert run("show", KEYS[0], "--store", named, "--text") == ("Hello!", "")


def test_the_kept_events_as_json(tmp_path: Path) -> None:
    _, named = filled("database", tmp_path)
    found = [json.loads(line) for line in run("show", KEYS[0], "--store", named, "--json")[0].splitlines()]
    assert [(each["data"], each["id"]) for each in found] == [("Hel", "1"), ("lo", "2"), ("!", "3")]
    assert all(each["replayed"] for each in found)


def test_text_that_became_void_is_not_shown(database: Path) -> None:
    events = words("old", "new")
    events[1].reset, events[1].offset = True, 0
    put(SQLiteStore(database, keep_events=True), "k", place("k", 1), events)
    assert run("show", "k", "--store", database, "--text")[0] == "new"


def test_the_text_is_read_as_its_protocol_has_it(database: Path) -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("Hel", "lo")]
    events = words(*(json.dumps(chunk) for chunk in chunks))
    put(SQLiteStore(database, keep_events=True), "k", place("k", 2, protocol="OpenAIChat", cursor=None), events)
    out, _ = run("show", "k", "--store", database)
    assert "place     after 2 events\n" in out
    assert out.endswith("\n\nHello\n")


def test_bytes_are_not_shown(database: Path) -> None:
    put(SQLiteStore(database, keep_events=True), "k", place("k", 1, protocol="ByteRange"), [rs.Chunk(b"\x00\xff", 0)])
    out, _ = run("show", "k", "--store", database)
    assert out.splitlines()[-1].startswith("saved")


def test_a_place_without_events_has_no_text(database: Path) -> None:
    put(SQLiteStore(database), "k", place("k", 2))
    out, _ = run("show", "k", "--store", database)
    assert "kept      0 events" in out and "\n\n" not in out


def test_an_expiry_is_shown(database: Path) -> None:
    put(SQLiteStore(database, expires=36_000), "k", place("k", 2))
    out, _ = run("show", "k", "--store", database)
    assert re.search(r"^expires   \d{4}-.*, in 9 h$", out, re.MULTILINE)


def test_events_that_are_missing_are_an_error(database: Path) -> None:
    store = SQLiteStore(database, keep_events=True)
    put(store, "k", place("k", 2), words("a", "b"))
    store._connection(store._handle()).execute("DELETE FROM kept")
    _, err = run("show", "k", "--store", database, code=1)
    assert "expected 2 events of the key 'k', found 0" in err


# --- forget


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_is_forgotten_when_the_question_is_answered_with_yes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store, named = filled(kind, tmp_path, request)
    name = KEYS[0][-32:-24]
    for answer in ("n\n", "\n", ""):
        _, err = run("forget", name, "--store", named, stdin=answer, code=1)
        assert f"Forget POST {URL} #{name} (completed, 3 events, 3 kept)? [y/N]" in err
    assert list(store.replay(KEYS[0])) == words("Hel", "lo", "!")
    _, err = run("forget", name, "--store", named, stdin="y\n")
    assert err.endswith(f"* forgot POST {URL} #{name}\n")
    assert list(store.replay(KEYS[0])) == []
    assert store.open(KEYS[0])[0] is None
    assert list(store.replay(KEYS[1])) == words("Hi", " there")


def test_with_yes_nothing_is_asked(tmp_path: Path) -> None:
    store, named = filled("database", tmp_path)
    assert run("forget", "opened", "--store", named, "--yes") == ("", "* forgot opened\n")
    assert [listed.key for listed in store.places()] == sorted(KEYS)


def test_the_command_that_tail_names_is_the_one_that_forgets(tmp_path: Path) -> None:
    store, named = filled("database", tmp_path)
    key = KEYS[0]
    result = CliRunner().invoke(app, ["tail", URL, "-d", '{"prompt": "one"}', "--store", named])
    command = re.search(r"to read it again: resumable-stream (forget [0-9a-f]{8} --store \S+)", result.stderr)
    assert command is not None, result.output
    run(*command[1].split(), "--yes")
    assert store.load(key) is None and store.load(KEYS[1]) is not None


def test_a_file_whose_key_cannot_be_read_is_for_its_owner_to_delete(tmp_path: Path) -> None:
    (tmp_path / "x.checkpoint").write_bytes(b'{"resumable_stream.checkpoint":1,"key":7}\n')
    _, err = run("forget", "x.checkpoint", "--store", tmp_path, "--yes", code=1)
    assert "delete the file to start over" in err


# --- which place, which store


@pytest.mark.parametrize("command", [["show"], ["forget", "--yes"]])
def test_a_name_that_fits_no_place_or_several_is_an_error(command: list[str], database: Path) -> None:
    store = SQLiteStore(database)
    for digits in ("abcd1", "abcd2"):
        put(store, f"GET {URL} #{digits:0<32}", None)
    _, err = run(*command, "abcd", "--store", database, code=1)
    assert f"'abcd' may mean 'GET {URL} #abcd1" in err and "give more digits, or the whole key" in err
    _, err = run(*command, "ffff", "--store", database, code=1)
    assert f"no place is kept under 'ffff' in {database}" in err
    # The whole key counts before an abbreviation of another one.
    put(store, "abcd", None)
    run(*command, "abcd", "--store", database)
    assert len(list(store.places())) == (2 if command[0] == "forget" else 3)


@pytest.mark.parametrize("length", range(1, 33))
def test_the_first_digits_of_a_digest_are_enough(length: int) -> None:
    digits = KEYS[0][-32:][:length]
    enough = length >= 4
    assert matches(KEYS[0], digits) is enough
    assert matches(KEYS[0], f"#{digits}") is enough
    assert matches(KEYS[0], f"POST {URL} #{digits}") is enough
    assert not matches(KEYS[0], f"GET {URL} #{digits}")
    assert not matches(KEYS[1], digits) or KEYS[1][-32:].startswith(digits)


@pytest.mark.parametrize("command", [["list"], ["show", "k"], ["forget", "k"]])
@pytest.mark.parametrize(
    ("store", "complaint"),
    [
        ("nowhere.db", "nowhere.db: there is no such file or directory"),
        ("sqlite:///nowhere.db", "nowhere.db: there is no such file or directory"),
        ("memory:", "a store in memory is gone"),
        ("https://example.com/x?token=s3cr3t", "https://example.com/x: expected a path"),
        (".", ".: is a directory without any kept places"),
    ],
)
def test_a_store_that_is_not_there_is_not_made(
    command: list[str], store: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, err = run(*command, "--store", store, code=2)
    assert complaint in err and "s3cr3t" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_redis_that_is_not_there_is_an_error_without_its_password() -> None:
    _, err = run("list", "--store", "redis://me:s3cr3t@127.0.0.1:1/0", code=1)
    assert "cannot use Redis at 127.0.0.1:1/0" in err and "s3cr3t" not in err


def test_a_password_is_not_repeated_where_the_store_is_named(own_redis: RedisServer) -> None:
    named = own_redis.url.replace("redis://", "redis://default:s3cr3t@")
    assert own_redis.command("ACL", "SETUSER", "default", "resetpass", ">s3cr3t") == "+OK"
    put(RedisStore(named), key := rs.request_key("GET", URL), place(key, 3, "completed", method="GET"))
    result = CliRunner().invoke(app, ["tail", URL, "--store", named])
    assert f"nothing to do: according to {own_redis.url} all of it was read" in result.output
    out = run("show", "nothing", "--store", named, code=1)
    assert f"no place is kept under 'nothing' in {own_redis.url}" in out[1]
    assert "s3cr3t" not in result.output + "".join(out)


def test_a_file_of_somebody_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("milk")
    _, err = run("list", "--store", tmp_path / "notes.txt", code=1)
    assert "is not ours and was left unchanged" in err


def test_a_file_of_an_older_version_is_listed(tmp_path: Path) -> None:
    put(FileStore(tmp_path / "answer.place", one_file=True), KEYS[0], place(KEYS[0], 3, "completed"))
    out, _ = run("list", "--store", tmp_path / "answer.place")
    assert KEYS[0][-32:-24] in out and "completed" in out
    run("forget", KEYS[0], "--store", tmp_path / "answer.place", "--yes")
    assert not (tmp_path / "answer.place").exists()


def test_a_reader_that_leaves_ends_it_quietly(database: Path) -> None:
    store = SQLiteStore(database)
    for number in range(3000):
        store.open(f"a long key, so that all of them are more than a pipe holds, number {number}")
    process = subprocess.Popen(
        [sys.executable, "-m", "resumable_stream", "list", "--store", str(database), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(rs.__file__).parents[1])},
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(200) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
