"""`resumable-stream tail`, as a process of its own, against a server that fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import resumable_stream as rs
from resumable_stream._cli.app import app
from resumable_stream.stores import FileStore, SQLiteStore
from resumable_stream.testing import Fault, FlakyServer, RecordedRequest, Reply, ServerEvent, numbered

TAIL = [sys.executable, "-m", "resumable_stream", "tail"]
# A proxy of the machine has nothing to do with 127.0.0.1; what is written must not depend on the locale.
PROXIES = [name for name in os.environ if "proxy" in name.lower()]
ENV = {name: value for name, value in os.environ.items() if name not in PROXIES} | {"PYTHONIOENCODING": "utf-8"}
CUTS = [Fault.cut(after_events=7), Fault.status(503, retry_after=0), Fault.cut(after_events=5, how="clean_inside")]
DONE = ServerEvent(data="[DONE]")

Serve = Callable[..., FlakyServer]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """`tail` as a process of its own, for what only a process can show."""
    return subprocess.Popen(
        [*TAIL, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, encoding="utf-8"
    )


def tail(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """`tail` in this process, which saves a third of a second each time: what it wrote to its output and to its errors."""
    result = CliRunner().invoke(app, ["tail", *map(str, arguments)], env=dict.fromkeys(PROXIES, None))
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def lines(first: int, last: int) -> str:
    return "".join(f"event {n}\n" for n in range(first, last + 1))


def test_every_event_is_written_once_whatever_happens_to_the_connection(flaky_server: Serve) -> None:
    server = flaky_server([*numbered(20), DONE], CUTS)
    process = start(server.url)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0
    assert out == lines(1, 20) + "[DONE]\n"
    assert err.splitlines()[0] == "* connection lost (ReadError) after event 7"
    assert "* continuing after event 7\n" in err
    assert "* closed inside an event after event 12\n" in err
    assert "\x1b" not in out + err


def test_json_is_one_object_a_line(flaky_server: Serve) -> None:
    server = flaky_server([ServerEvent(id="a", event="x", data='é\n"', retry=5), DONE])
    out, err = tail(server.url, "--json")
    first, last = map(json.loads, out.splitlines())
    assert first == {"event": "x", "data": 'é\n"', "id": "a", "sequence": None, "offset": 0, "cursor": "a", "retry": 5}
    assert last["data"] == "[DONE]"
    assert err == ""


def test_text_has_nothing_between(flaky_server: Serve) -> None:
    server = flaky_server([ServerEvent(id=str(n), data=piece) for n, piece in enumerate(("Hel", "lo", " \N{WAVING HAND SIGN}"))])
    assert tail(server.url, "--text", "--end", "close")[0] == "Hello \N{WAVING HAND SIGN}"


def test_ndjson_is_written_line_by_line_and_a_cut_is_an_error(flaky_server: Serve) -> None:
    server = flaky_server([{"n": n} for n in range(9)], [None, Fault.cut(after_events=5)], format="ndjson")
    assert tail(server.url)[0] == "".join(f'{{"n": {n}}}\n' for n in range(9))
    out, err = tail(server.url, code=1)
    assert len(out.splitlines()) == 5
    assert err.splitlines()[-1].startswith("* error: the stream was interrupted after 5 events")


def test_bytes_are_written_as_they_are(flaky_server: Serve) -> None:
    document = bytes(range(256)) * 100
    server = flaky_server(document, [Fault.cut(after_bytes=10_000)], format="bytes", etag='"v1"')
    done = subprocess.run([*TAIL, server.url], capture_output=True, env=ENV, check=True, timeout=200)
    assert done.stdout == document
    assert b"* connection lost" in done.stderr
    assert b"after byte 10,000\n" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_started_again_every_event_is_written_once(
    flaky_server: Serve, tmp_path: Path, number: signal.Signals
) -> None:
    # It is quiet after event 40, so that the signal comes before the end.
    quiet = Fault.cut(after_events=30, how="silence")
    server = flaky_server([*numbered(60), DONE], [Fault.cut(after_events=10), quiet], pace=0.01)
    place = tmp_path / "answer.place"
    with start(server.url, "--store", place) as process:
        assert process.stdout is not None and process.stderr is not None
        read = [process.stdout.readline() for _ in range(20)]
        process.send_signal(number)
        # Not `communicate()`, which knows nothing of what `readline()` has read beyond the line.
        rest, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == 128 + number
    assert f"the place is kept in {place}: the same command continues there" in err
    assert "Traceback" not in err
    first = "".join(read) + rest
    assert len(first.splitlines()) < 60

    out, err = tail(server.url, "--store", place)
    assert first + out == lines(1, 60) + "[DONE]\n"
    assert err.startswith(f"* continuing after event {len(first.splitlines())}\n")
    assert err.endswith("* complete: 61 events, completed\n")

    asked = len(server.requests)
    out, err = tail(server.url, "--store", place)
    assert out == ""
    assert "nothing to do" in err
    assert len(server.requests) == asked


def test_killed_the_place_is_never_ahead_of_what_was_written(flaky_server: Serve, tmp_path: Path) -> None:
    server = flaky_server([*numbered(30), DONE], [Fault.cut(after_events=12, how="silence")])
    place = tmp_path / "answer.place"
    process = start(server.url, "--store", place)
    assert process.stdout is not None
    first = [process.stdout.readline() for _ in range(12)]
    process.kill()
    process.communicate(timeout=200)
    out, _ = tail(server.url, "--store", place)
    assert set(first) | set(out.splitlines(keepends=True)) == set((lines(1, 30) + "[DONE]\n").splitlines(keepends=True))


def test_a_place_belongs_to_one_question(flaky_server: Serve, tmp_path: Path) -> None:
    server = flaky_server([*numbered(3), DONE])
    place = tmp_path / "answer.place"
    for _ in range(2):
        one, _ = tail(server.url, "-d", '{"prompt": "one"}', "--store", place)
        two, _ = tail(server.url, "-d", '{"prompt": "two"}', "--store", place)
        assert (one, two) in {(lines(1, 3) + "[DONE]\n",) * 2, ("", "")}
    assert len(server.requests) == 2


def test_a_file_of_an_older_version_goes_on(flaky_server: Serve, tmp_path: Path) -> None:
    """Such a file holds one place, and belongs to one question."""
    server = flaky_server([*numbered(9), DONE], [Fault.cut(after_events=5, how="silence")])
    place = tmp_path / "answer.place"
    key = rs.request_key("GET", server.url)
    with rs.connect("GET", server.url, store=FileStore(place, one_file=True), key=key) as stream:
        for event in stream:
            if event.id == "4":
                break
    before = sorted(path.name for path in tmp_path.iterdir())
    out, err = tail(server.url, "--store", place)
    assert out == lines(5, 9) + "[DONE]\n"
    assert err.startswith("* continuing after event 4\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    _, err = tail(server.url, "--store", place)
    assert err.startswith(f"* nothing to do: according to {place} all of it was read; to read it again: delete {place}\n")
    _, err = tail(server.url, "-d", "{}", "--store", place, code=2)
    assert "holds the place of another" in err


@pytest.mark.parametrize("kind", ["database", "directory", "url"])
def test_a_store_may_be_named_in_several_ways(flaky_server: Serve, tmp_path: Path, kind: str) -> None:
    """The places of a notebook are the command line's too, also those of before there was a database."""
    server = flaky_server([*numbered(9), DONE], [Fault.cut(after_events=5, how="silence")])
    named = {"database": tmp_path / "kept.db", "directory": tmp_path / "kept", "url": f"sqlite:///{tmp_path / 'kept.db'}"}[kind]
    store = FileStore(tmp_path / "kept") if kind == "directory" else SQLiteStore(tmp_path / "kept.db")
    with rs.connect("GET", server.url, store=store, key=rs.request_key("GET", server.url)) as stream:
        for event in stream:
            if event.id == "4":
                break
    out, _ = tail(server.url, "--store", named)
    assert out == lines(5, 9) + "[DONE]\n"
    _, err = tail(server.url, "--store", named)
    assert "nothing to do" in err


def test_a_half_that_cannot_be_continued_says_how_to_start_over(flaky_server: Serve, tmp_path: Path) -> None:
    """As `connect()` and the transports: an error at every run, until the caller says that it may be asked for again."""
    server = flaky_server([*[ServerEvent(data=f"no id {n}") for n in range(4)], DONE], [Fault.cut(after_events=2)])
    place = tmp_path / "answer.place"
    tail(server.url, "-d", "{}", "--store", place, code=1)
    for _ in range(2):
        _, err = tail(server.url, "-d", "{}", "--store", place, code=1)
        assert re.search(
            rf"; to start over, use --restart, or: resumable-stream forget [0-9a-f]{{8}} --store {re.escape(str(place))}\n$", err
        )
        assert "on_lost" not in err
    assert len(server.requests) == 1
    out, _ = tail(server.url, "-d", "{}", "--store", place, "--restart")
    assert out == "".join(f"no id {n}\n" for n in range(4)) + "[DONE]\n"
    assert len(server.requests) == 2


def test_no_secret_is_kept(flaky_server: Serve, tmp_path: Path) -> None:
    server = flaky_server([*numbered(3), DONE])
    place = tmp_path / "answer.place"
    tail(f"{server.url}?api_key=s3cr3t", "-H", "Authorization: Bearer t0k3n", "-d", "pr0mpt", "--store", place)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"LastEventID" in kept
    assert not [secret for secret in (b"s3cr3t", b"t0k3n", b"pr0mpt") if secret in kept]
    assert server.requests[0].query == {"api_key": "s3cr3t"}


def test_the_request_is_what_was_asked_for(flaky_server: Serve, tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_text('{"prompt": "hi"}')
    server = flaky_server([DONE])
    tail(server.url, "-H", "X-One: 1", "-H", "x-one: 2", "-d", f"@{file}", "--last-event-id", "41")
    tail(server.url, "-X", "put", "-d", "plain")
    first, second = server.requests
    assert (first.method, first.json(), first.headers["content-type"]) == ("POST", {"prompt": "hi"}, "application/json")
    assert (first.headers["x-one"], first.last_event_id) == ("1, 2", "41")
    assert (second.method, second.body) == ("PUT", b"plain")


def test_a_reader_that_leaves_ends_it_quietly(flaky_server: Serve) -> None:
    server = flaky_server(numbered(10_000), hold_open=True, pace=0.001)
    process = start(server.url)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "event 1\n"
    process.stdout.close()
    assert process.wait(timeout=200) == 141
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the server answered 401"),
        (["--protocol", "ndjson"], "the server answered 401"),
    ],
)
def test_a_refusal_is_one_sentence(flaky_server: Serve, arguments: list[str], sentence: str) -> None:
    def refuse(request: RecordedRequest) -> Reply:
        return Reply(status=401, body=b"who are you?")

    server = flaky_server(on_request=refuse)
    out, err = tail(server.url, *arguments, code=1)
    assert out == ""
    [line] = err.splitlines()
    assert sentence in line and "who are you?" in line


def test_a_page_is_no_stream(flaky_server: Serve) -> None:
    server = flaky_server([], [Fault.content_type("text/html", body=b"<p>log in")])
    assert tail(server.url, code=1)[1] == "* error: text/html is not a stream; if it is one, use --protocol\n"


def test_a_server_that_is_not_there_is_given_up_and_the_place_is_kept(flaky_server: Serve, tmp_path: Path) -> None:
    server = flaky_server(numbered(5), [Fault.cut(after_events=3)])
    place = tmp_path / "answer.place"
    process = start(server.url, "--store", place, "--attempts", "1", "--end", "never")
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    server.close()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "* cannot connect (ConnectError) after event" in err
    assert "error: gave up after 1 attempt" in err
    assert f"the place is kept in {place}" in err


def test_a_deadline_ends_a_feed(flaky_server: Serve) -> None:
    server = flaky_server(numbered(3), hold_open=True)
    out, err = tail(server.url, "--end", "never", "--deadline", "2.5", code=1)
    assert out == lines(1, 3)
    assert "deadline of 2.5 seconds" in err


def test_verbose_gives_the_reckoning(flaky_server: Serve) -> None:
    server = flaky_server([*numbered(9), DONE], [Fault.cut(after_events=4), Fault.duplicate(after_events=1)])
    _, err = tail(server.url, "-v")
    assert err.startswith("* connected: 200, <LastEventID")
    assert "* dropped a duplicate (id 5)\n" in err
    assert "* completed: 10 events in 2 connections, 1 duplicate dropped, 0 gaps" in err


@pytest.mark.parametrize(("method", "server"), [("POST", {}), ("GET", {"ignore_cursor": True})])
def test_an_end_that_nothing_vouches_for_has_a_code_of_its_own(flaky_server: Serve, method: str, server: dict[str, Any]) -> None:
    """`resumable-stream tail … && deploy` must be able to tell half an answer from a whole one."""
    out, err = tail("-X", method, flaky_server(numbered(3), **server).url, code=3)
    assert out == lines(1, 3)
    assert ("--end" if method == "POST" else "from the start") in err


def test_ids_that_were_asked_about_end_well(flaky_server: Serve) -> None:
    assert tail(flaky_server(numbered(3)).url) == (lines(1, 3), "")


def test_a_silence_and_a_status_read_as_what_they_are(flaky_server: Serve) -> None:
    """Seconds, not the name of a clock and of an exception; and how many attempts there are."""
    faults = [Fault.cut(after_events=2, how="silence"), Fault.status(503), Fault.status(503)]
    _, err = tail(flaky_server([*numbered(4), DONE], faults).url, "--idle", "1.5", "--attempts", "5")
    assert err.splitlines()[0] == "* no byte for 1.5 s after event 2"
    assert "* status 503 after event 2\n" in err
    assert re.search(r"\* retrying (in \d+\.\d s|at once), attempt 1 of 5\n", err)
