"""The quickstart of the server, as the page has it: its apps and its HTML in a real browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import resumable_stream as rs

from ..server.serving import Gate, Served
from .conftest import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

QUICKSTART = Path(__file__).parents[2] / "docs" / "server" / "quickstart.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", QUICKSTART.read_text(), re.MULTILINE | re.DOTALL)
QUESTION = "Why do streams break?"


def block(language: str, *wanted: str) -> str:
    """The one block of the page that has all of this in it."""
    [found] = [code for name, code in BLOCKS if name == language and all(each in code for each in wanted)]
    return str(found)


@pytest.fixture(params=["FastAPI", "Starlette"])
def app(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The program of the page. Its answers wait after two words for `gate`; `starts` has what was asked."""
    monkeypatch.chdir(tmp_path)
    Path("chat.html").write_text(block("html"))
    code = block("python", f"{request.param}(")
    assert len([line for line in code.splitlines() if line.strip()]) == 15
    program: dict[str, Any] = {"gate": Gate(), "starts": []}
    exec(code, program)
    exec(block("python", "FileResponse"), program)
    answer = program["answer"]

    async def gated(prompt: str) -> AsyncIterator[Any]:
        program["starts"].append(prompt)
        words = 0
        async for word in answer(prompt):
            yield word
            words += 1
            if words == 2:
                await program["gate"].wait()

    program["answer"] = gated
    yield program
    program["gate"].open()


def text(page: Page) -> str:
    return page.locator("#answer").inner_text().strip()


def test_an_app_of_fifteen_lines_goes_on_in_a_browser_and_in_python(app: dict[str, Any], browser: Browser) -> None:
    whole = f"You asked: {QUESTION}"
    with Served(app["app"]) as server:
        first = browser.new_context().new_page()
        first.goto(server.url)
        first.click("button")
        until(lambda: text(first) == "You asked:", "two words")
        first.reload()
        until(lambda: text(first) == "You asked:", "the same after a reload")
        second = browser.new_context().new_page()
        second.goto(first.url)
        until(lambda: text(second) == "You asked:", "the same in a second tab")
        with rs.connect("GET", server.url + first.url.partition("#")[2]) as stream:
            texts = stream.iter_text()
            read = next(texts) + next(texts)
            app["gate"].open()
            read += "".join(texts)
            assert (read.strip(), stream.outcome) == (whole, rs.Outcome.COMPLETED)
        for page in (first, second):
            until(lambda page=page: text(page) == whole, "the whole answer")
        first.reload()
        until(lambda: text(first) == whole, "the whole answer again")
        assert app["starts"] == [QUESTION]
        for page in (first, second):
            page.context.close()
