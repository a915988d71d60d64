"""
Every ``python`` block of the README and the docs runs, from the top of a page to its end, in one namespace.

The hosts that the pages name are served here: `https://api.example.com` in a block becomes the address of a `FlakyServer`.
An `app` that a block defines is served behind `http://127.0.0.1:8000`, and its first answer is cut.
A ``text`` block right below a ``python`` block is what that block prints.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import runpy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import anyio
import pytest

from resumable_stream.testing import Fault, FlakyServer, Reply, ServerEvent, numbered
from resumable_stream.testing.server import RecordedRequest

from ..server.serving import Served

ROOT = Path(__file__).parents[2]
SDKS = ROOT / "docs" / "sdks"  # run by tests/integration, where these are installed
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent != SDKS)]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SERVERS = sorted((ROOT / "examples" / "servers").glob("*.py"))  # run by tests/integration, likewise
CHAT = [ROOT / "examples" / "fastapi_chat" / "app.py"]  # run by tests/examples and tests/browser
AGENT = sorted((ROOT / "examples" / "agent_backend").glob("*.py"))  # run by tests/examples


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str
    line: int
    adjoining: bool
    """Only blank lines stand between it and the block before."""


_INCLUDE = re.compile(r'--8<-- "(.+)"\n')
_FENCE = re.compile(r"^( *)(`{3,}) *(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[Block]:
    found, end = [], 0
    for match in _FENCE.finditer(text):
        indent, _, language, code = match.groups()
        dedented = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(language, dedented, text.count("\n", 0, match.start(4)), not text[end : match.start()].strip()))
        end = match.end()
    return found


RUNNABLE = [page for page in PAGES if any(block.language == "python" for block in blocks(page.read_text()))]


# --- the hosts that the pages name

WORDS = ["Streams ", "break; ", "answers ", "need ", "not."]


def _words(**options: Any) -> list[ServerEvent]:
    return [ServerEvent(id=str(n), data=word, **options) for n, word in enumerate(WORDS, 1)]


def _every_other_answer(fault: Fault) -> Iterator[Fault | None]:
    return itertools.cycle([fault, None])


def _api() -> FlakyServer:
    """Words, then `[DONE]`; a POST is answered with the place where a GET resumes."""
    log = [*_words(), ServerEvent(id="6", data="[DONE]")]
    return FlakyServer(log, _every_other_answer(Fault.cut(after_events=3)), location="/answers/7")


def _chat() -> FlakyServer:
    """Words, then an event `done`."""
    log = [*_words(event="token"), ServerEvent(id="6", event="done", data="")]
    return FlakyServer(log, _every_other_answer(Fault.cut(after_events=2, how="clean")))


def _once() -> FlakyServer:
    """A generation that cannot be resumed: no ids, no location, cut half-way."""
    log = [ServerEvent(data=word) for word in [*WORDS, "[DONE]"]]
    return FlakyServer(log, itertools.repeat(Fault.cut(after_events=3, how="clean_inside")))


def _acme() -> FlakyServer:
    """Counts inside the JSON, and wants the count back in the query."""
    items = [{"seq": n, "run": "r-7", "delta": word} for n, word in enumerate(WORDS, 1)]
    items.append({"seq": 6, "status": "done"})
    return FlakyServer(
        [ServerEvent(data=json.dumps(item)) for item in items],
        _every_other_answer(Fault.cut(after_events=2)),
        cursor_param="after",
        cursor_of=lambda frame: str(json.loads(frame.partition(b"data: ")[2])["seq"]),
    )


def _app() -> FlakyServer:
    """An application's own endpoint: JSON with the text in a field, ids, and a POST that is answered with the run's place."""
    log = [ServerEvent(id=str(n), data=json.dumps({"run_id": "r-7", "delta": word})) for n, word in enumerate(WORDS, 1)]
    cuts = _every_other_answer(Fault.cut(after_events=2))
    return FlakyServer([*log, ServerEvent(id="6", data="[DONE]")], cuts, location="/runs/r-7")


def _feed() -> FlakyServer:
    return FlakyServer(numbered(20), _every_other_answer(Fault.cut(after_events=3, how="clean")), hold_open=True)


def _files() -> FlakyServer:
    document = bytes(range(256)) * 1000
    return FlakyServer(document, _every_other_answer(Fault.cut(after_bytes=100_000)), format="bytes", etag='"v1"')


def _log() -> FlakyServer:
    text = "".join(f"{n:04} Übersicht\n" for n in range(200)).encode()
    return FlakyServer(text, [Fault.cut(after_bytes=6)], format="bytes", etag='"v1"', content_type="text/plain; charset=utf-8")


def _lines() -> FlakyServer:
    log = [{"response": word, "done": False} for word in WORDS] + [{"response": "", "done": True}]
    return FlakyServer(log, [None, Fault.cut(after_events=3, how="clean")], format="ndjson")


def _guarded() -> FlakyServer:
    """Answers 401 unless the token is the newest."""

    def guard(request: RecordedRequest) -> Reply | None:
        newest = f"Bearer token-{min(len(server.requests), 2)}"
        return None if request.headers.get("authorization") == newest else Reply(status=401)

    server = FlakyServer([*_words(), ServerEvent(id="6", data="[DONE]")], [Fault.cut(after_events=2)], on_request=guard)
    return server


def _gone() -> FlakyServer:
    """Forgets a stream as soon as it is cut."""
    log = [*_words(), ServerEvent(data="[DONE]")]
    return FlakyServer(log, [Fault.cut(after_events=2), Fault.status(410)])


def _busy() -> FlakyServer:
    return FlakyServer(numbered(10), [Fault.cut(after_events=4), *itertools.repeat(Fault.status(503), 50)])


def _quiet() -> FlakyServer:
    """Falls silent half-way, and goes on for who asks again."""
    log = [*_words(), ServerEvent(id="6", data="[DONE]")]
    return FlakyServer(log, _every_other_answer(Fault.cut(after_events=3, how="silence")))


def _slow() -> FlakyServer:
    """A generation that cannot be resumed, and takes its time."""
    log = [ServerEvent(data=word) for word in [*WORDS, "[DONE]"]]
    return FlakyServer(log, itertools.repeat(Fault.heartbeats(after_events=3, count=2, interval=0.25)))


def _llm() -> FlakyServer:
    """An answer as OpenAI's Chat Completions stream it."""
    steps: list[tuple[dict[str, str], str | None]] = [*(({"content": word}, None) for word in WORDS), ({}, "stop")]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} for delta, reason in steps]
    return FlakyServer([*(ServerEvent(data=json.dumps(chunk)) for chunk in chunks), ServerEvent(data="[DONE]")])


HOSTS: dict[str, Callable[[], FlakyServer]] = {
    "https://api.example.com": _api,
    "https://chat.example.com": _chat,
    "https://once.example.com": _once,
    "https://acme.example.com": _acme,
    "https://app.example.com": _app,
    "https://feed.example.com": _feed,
    "https://files.example.com": _files,
    "https://llm.example.com": _llm,
    "https://logs.example.com": _log,
    "https://ollama.example.com": _lines,
    "https://guarded.example.com": _guarded,
    "https://gone.example.com": _gone,
    "https://busy.example.com": _busy,
    "https://quiet.example.com": _quiet,
    "https://slow.example.com": _slow,
}


# --- the apps that the pages define

LOCAL = "http://127.0.0.1:8000"
"""Where uvicorn serves an app if nobody says otherwise."""


class CutOnce:
    """An ASGI app whose first answer breaks off after its third piece. Nothing that a page prints may show it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._pieces = itertools.count(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def cutting(message: Any) -> None:
            await send(message)
            if message.get("more_body") and next(self._pieces) == 3:
                raise ConnectionAbortedError("cut by the test")

        await self._app(scope, receive, cutting)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No jitter before a prompt reconnect and no back-off worth waiting for; files go to a directory of the test."""
    monkeypatch.setattr("resumable_stream._api.random", SimpleNamespace(random=lambda: 0.0))
    monkeypatch.setattr("resumable_stream._policy._full_jitter", lambda state: 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page.name == "performance.md":
        pytest.importorskip("httpx_aiohttp", reason="httpx-aiohttp is not installed: `make dev`")
    run_page(page, capsys)


def run_page(page: Path, capsys: pytest.CaptureFixture[str], served: Mapping[str, str] | None = None) -> None:
    """Run its blocks, from the first to the last. `served`: hosts of the page that are served elsewhere already."""
    text = page.read_text()
    namespace: dict[str, Any] = {"__name__": page.stem}
    printed = ""
    with ExitStack() as stack:
        origins = {host: stack.enter_context(make()).origin for host, make in HOSTS.items() if host in text} | dict(served or {})
        for block in blocks(text):
            if block.language == "python" and (include := _INCLUDE.fullmatch(block.code)):
                assert ROOT / include[1] in [*EXAMPLES, *SERVERS, *CHAT, *AGENT], "an included program is run by a test"
            elif block.language == "python":
                code = block.code
                # The last one that the page defined, when it is first asked.
                if LOCAL in code and "app" in namespace and LOCAL not in origins:
                    origins[LOCAL] = stack.enter_context(Served(CutOnce(namespace["app"]))).url
                for host, origin in origins.items():
                    code = code.replace(host, origin)
                _run(code, page, block.line, namespace)
                printed = capsys.readouterr().out
                for host, origin in origins.items():
                    printed = printed.replace(origin, host)
            elif block.language == "text" and block.adjoining:
                assert _trimmed(printed) == _trimmed(block.code), f"{page.name}:{block.line}"


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _run(code: str, page: Path, line: int, namespace: dict[str, Any]) -> None:
    """Run a block; one that awaits at its top level runs on asyncio, as a notebook cell does."""
    tree = ast.parse(code, str(page))
    ast.increment_lineno(tree, line)
    compiled = compile(tree, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:

        async def cell() -> None:
            await eval(compiled, namespace)

        anyio.run(cell)
    else:
        exec(compiled, namespace)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs(example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    # Read a program that shows nothing, and you have learned nothing.
    assert capsys.readouterr().out


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_fits_on_a_screen(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 40
