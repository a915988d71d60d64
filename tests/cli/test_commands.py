"""What the commands say before anything is read: help, versions, wrong usage, a missing extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import resumable_stream
from resumable_stream._cli.app import app

URL = "http://127.0.0.1:9/stream"


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").output == f"resumable-stream {resumable_stream.__version__}\n"


def test_the_module_prints_what_the_script_prints() -> None:
    script = Path(sys.executable).with_name("resumable-stream")
    outputs = {
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout
        for command in ([script, "tail", "--help"], [sys.executable, "-m", "resumable_stream", "tail", "--help"])
    }
    [output] = outputs
    assert output.startswith("Usage: resumable-stream tail [OPTIONS] URL\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tail"], "Missing argument 'URL'"),
        (["tail", "example.com/stream"], "expected an absolute http(s) URL"),
        (["tail", "ftp://example.com"], "expected an absolute http(s) URL"),
        (["tail", URL, "-X", "GE T"], "method must be an HTTP method"),
        (["tail", URL, "-H", "no colon"], "expected 'Name: value'"),
        (["tail", URL, "-H", "Bad Name: x"], "expected 'Name: value'"),
        (["tail", URL, "-H", "X: a\nb: c"], "expected 'Name: value'"),
        (["tail", URL, "-d", "@/nowhere/at-all"], "cannot read '/nowhere/at-all'"),
        (["tail", URL, "--json", "--text"], "exclude each other"),
        (["tail", URL, "--protocol", "soap"], "is not one of 'auto', 'sse', 'ndjson', 'bytes'"),
        (["tail", URL, "--protocol", "bytes", "--end", "close"], "--protocol bytes has no events"),
        (["tail", URL, "--protocol", "ndjson", "--end", "never"], "NDJSON"),
        (["tail", URL, "--end", ""], "end must not be empty"),
        (["tail", URL, "--idle", "0"], "--idle"),
        (["tail", URL, "--deadline", "-1"], "--deadline"),
        (["tail", URL, "--attempts", "0"], "--attempts"),
        (["tail", URL, "--store", "/"], "/: is a directory without any kept places; expected a file"),
        (["tail", URL, "--store", "/dev/null/x.db"], "--store /dev/null/x.db: cannot use"),
        (["tail", URL, "--store", "memory:"], "a store in memory is gone"),
        (["tail", URL, "--store", "mysql://me:s3cr3t@db/x"], "mysql://db/x: expected a path, sqlite:///path or redis"),
        (["tail", URL, "--store", "sqlite://places.db"], "expected sqlite:///relative/path"),
        (["tail", URL, "--store", "redis://:s3cr3t@db/?x=1"], "the URL of a Redis cannot be read"),
        (["list", "--store", "redis://:s3cr3t@db:port"], "the URL of a Redis cannot be read"),
        (["tail", URL, "--store", "sqlite:///"], "expected sqlite:///relative/path"),
        (["demo", "--slow"], "No such option"),
        (["dance"], "No such command"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_exits_with_2(arguments: list[str], sentence: str) -> None:
    result = run(*arguments)
    assert sentence in result.output
    assert "s3cr3t" not in result.output
    assert result.exit_code == 2


def test_the_value_of_a_header_is_not_repeated_in_a_complaint() -> None:
    result = run("tail", URL, "-H", "Authorization : Bearer secret\x00")
    assert result.exit_code == 2
    assert "secret" not in result.output


def test_a_store_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("milk, bread\n")
    result = run("tail", URL, "--store", str(file))
    assert result.exit_code == 2
    assert "is not ours" in result.output
    assert file.read_text() == "milk, bread\n"


def test_without_redis_the_message_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    # Not the package itself: imported anew it would stay, without the modules that it has by now.
    monkeypatch.delitem(sys.modules, "resumable_stream.stores.redis", raising=False)
    for name in ("redis", "RedisStore"):
        monkeypatch.delattr(resumable_stream.stores, name, raising=False)
    result = run("list", "--store", "redis://:s3cr3t@localhost")
    assert result.exit_code == 2
    assert "RedisStore needs redis: pip install 'resumable-stream-sdk[redis]'" in " ".join(result.output.split())
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_message_names_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from resumable_stream._cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert done.stderr == f"resumable-stream: the command line needs {missing}: pip install 'resumable-stream-sdk[cli]'\n"


def test_importing_the_package_of_the_commands_loads_no_extra() -> None:
    code = "import sys, resumable_stream._cli; print({'click', 'rich', 'httpx'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=200) == "set()\n"
