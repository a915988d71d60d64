"""The pages of docs/sdks run where their SDK is, against servers that cut as they say."""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import wires
from resumable_stream.testing import FlakyServer, RecordedRequest, Reply
from tests.docs.test_snippets import SDKS, blocks, quick, run_page

from .dropping import DroppingProxy
from .relaying import relaying

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("quick")]

__all__ = ["quick"]  # a fixture

WORDS = ["Streams ", "break; ", "answers ", "need ", "not."]
NEEDED = {"google-genai": "google.genai", "pydantic-ai": "pydantic_ai"}
EVENT_STREAM = {"content-type": "text/event-stream"}


def served(wire: wires.Wire, other: wires.Wire, path: str) -> FlakyServer:
    """
    A wire whose every second answer is reset behind two tokens, and another one, at its path, that always ends there, properly.
    """
    usual = wire.options["on_request"]
    half = b"".join(other.frames[: other.lead + 2])

    def answer(request: RecordedRequest) -> Reply | None:
        return Reply(headers=EVENT_STREAM, body=half) if request.path.endswith(path) else usual(request)

    def cuts() -> Any:
        while True:
            yield wires.Fault.cut(after_events=wire.lead + 2)
            yield None

    return FlakyServer(wire.frames, cuts(), **{**wire.options, "on_request": answer})


def openai() -> FlakyServer:
    return served(wires.responses(WORDS), wires.chat(WORDS), "/chat/completions")


def anthropic() -> FlakyServer:
    half = b"".join(wires.messages(WORDS).frames[:5])
    return FlakyServer(on_request=lambda request: Reply(headers=EVENT_STREAM, body=half))


def google() -> FlakyServer:
    return served(wires.interactions(WORDS), wires.gemini(WORDS), ":streamGenerateContent")


# Page → what serves it, and the environment variables that lead the SDK there.
PAGES: dict[str, tuple[Callable[[], FlakyServer], dict[str, str]]] = {
    "openai": (openai, {"OPENAI_BASE_URL": "{}/v1", "OPENAI_API_KEY": "none"}),
    "anthropic": (anthropic, {"ANTHROPIC_BASE_URL": "{}", "ANTHROPIC_API_KEY": "none"}),
    "google-genai": (google, {"GOOGLE_GEMINI_BASE_URL": "{}", "GEMINI_API_KEY": "none"}),
    "pydantic-ai": (openai, {"OPENAI_BASE_URL": "{}/v1", "OPENAI_API_KEY": "none"}),
    "litellm": (openai, {"OPENAI_BASE_URL": "{}/v1", "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
}


RELAY = "http://127.0.0.1:8787"
"""Where the pages have one."""


@contextlib.contextmanager
def relayed(wire: wires.Wire) -> Iterator[DroppingProxy]:
    """A relay before a provider that is not disturbed; its first stream is closed, properly, behind the second token."""
    body, half = b"".join(wire.frames), b"".join(wire.frames[: wire.lead + 2])
    whole = Reply(headers=EVENT_STREAM, body=body)
    with FlakyServer(on_request=lambda request: whole) as provider, relaying({"": provider.origin}) as relay:
        proxy = DroppingProxy(int(relay.rpartition(":")[2]))
        proxy.drop(lambda seen: seen.method == "POST", (len(half), "clean"))
        try:
            yield proxy
            # The provider was called once, the rest was the relay's.
            assert [seen.method for seen in proxy.requests] == ["POST", "GET"] and len(provider.requests) == 1
        finally:
            proxy.close()


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not installed(name) or (name == "openai" and installed("litellm")):
        pytest.skip(f"{name} is not installed here, or only an old one for litellm")
    if name == "litellm":
        # What it prints when something fails.
        monkeypatch.setattr("litellm.suppress_debug_info", True)
        # What the page sets, to be gone afterwards.
        monkeypatch.setattr("litellm.client_session", None)
        monkeypatch.setattr("litellm.aclient_session", None)
    server, environment = PAGES[name]
    wire = {"anthropic": wires.messages, "google-genai": wires.gemini}.get(name, wires.chat)(WORDS)
    with server() as running, relayed(wire) as relay:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value.format(running.origin))
        with warnings.catch_warnings():
            # Not every SDK is free of them, and the pages do not close what their reader would.
            warnings.simplefilter("ignore")
            run_page(SDKS / f"{name}.md", capsys, {RELAY: relay.url})
            monkeypatch.undo()
            gc.collect()
        assert len(running.requests) > 1


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(NEEDED.get(name, name)) is not None
    except ModuleNotFoundError:
        return False


def test_every_page_is_run() -> None:
    # Those of other SDKs have runners of their own.
    assert {f"{name}.md" for name in PAGES} <= {page.name for page in Path(SDKS).glob("*.md")}


NEED_SERVERS = {"langgraph": "langgraph_sdk", "a2a": "a2a", "mcp": "mcp"}


@pytest.mark.parametrize("page", NEED_SERVERS)
def test_what_needs_a_server_is_python_and_imports_what_there_is(page: str) -> None:
    """These SDKs are tested against their real servers beside this; their pages' code is read, and its imports are run."""
    pytest.importorskip(NEED_SERVERS[page])
    pytest.importorskip("httpx2")
    found = [block.code for block in blocks((SDKS / f"{page}.md").read_text()) if block.language == "text"]
    assert found
    imported = 0
    for code in found:
        tree = compile(code, f"{page}.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), f"{page}.md", "exec"), {})
        imported += len(imports)
    assert imported >= 2
