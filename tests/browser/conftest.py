"""A chat in a server of its own, behind a network that can be cut, in a real browser."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .network import Network

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

PATIENCE = float(os.environ.get("CHAT_PATIENCE", "120"))
HERE = Path(__file__).parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)


def until(true: Callable[[], object], what: str) -> None:
    """Look until it is true; a busy machine may take its time."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


def text_of(words: int) -> str:
    """What the model of `gated_chat.py` has written after so many words."""
    return "".join(f"word-{n} " for n in range(words))


class Server:
    """`resumable-stream serve` with the gated chat, as a process of its own."""

    def __init__(self, home: Path) -> None:
        environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-m", "resumable_stream", "serve", "gated_chat:hub", "--app", "gated_chat:app", "--port", "0"]
        command += ["--store", "sqlite:///streams.db", "--drain-timeout", "120", "--spread", "0.2"]
        self.process = subprocess.Popen(
            command, cwd=home, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: deque[str] = deque()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found: list[str] = []

        def announced() -> bool:
            assert self._reader.is_alive(), self.text
            found.extend(re.findall(r"^serving .* on http://127\.0\.0\.1:(\d+)", self.text, re.MULTILINE))
            return bool(found)

        until(announced, "the server")
        self.port = int(found[0])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(list(self.lines))

    def drain(self) -> None:
        """Begin to shut down."""
        self.process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in self.text, "the drain")

    def wait(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Chat:
    """The server, the network before it, and the tabs that show a conversation."""

    def __init__(self, home: Path, browser: Browser) -> None:
        self.home = home
        self.allow(0)
        (home / "starts").touch()
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.problems: list[str] = []
        self.server = Server(home)
        self.network = Network(self.server.port)
        self._networks = [self.network]

    def another_network(self) -> Network:
        """One that can be cut while the first one works."""
        self._networks.append(Network(self.server.port))
        return self._networks[-1]

    def allow(self, words: int) -> None:
        """How many words the model may write."""
        new = self.home / "allowed.new"
        new.write_text(str(words))
        new.replace(self.home / "allowed")

    @property
    def starts(self) -> list[str]:
        """What was asked of the model."""
        return (self.home / "starts").read_text().splitlines()

    def restart(self) -> None:
        """Another server over the same file."""
        self.server.close()
        self.server = Server(self.home)
        self.network.upstream = self.server.port

    def open(self, url: str | None = None, *, watch: str | None = None, **options: Any) -> Tab:
        """Open a page as another device: with cookies and storage of its own. `watch` is a script that runs before the page's."""
        context = self._browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        if watch is not None:
            context.add_init_script(watch)
        self._contexts.append(context)
        return self.tab(context, url)

    def tab(self, context: BrowserContext, url: str | None = None) -> Tab:
        page = context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._look_at)
        page.goto(url or self.network.url)
        return Tab(page)

    def _look_at(self, request: Any) -> None:
        if not any(request.url.startswith(f"{each.url}/") for each in self._networks):
            self.problems.append(f"asked elsewhere: {request.url}")

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        for network in self._networks:
            network.close()
        self.server.close()


class Tab:
    """A page with a conversation."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @property
    def url(self) -> str:
        return self.page.url

    @property
    def sid(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def state(self) -> str:
        """What the heading says."""
        return self.page.locator("#state").inner_text()

    @property
    def questions(self) -> list[str]:
        return [each or "" for each in self.page.locator(".question p").all_text_contents()]

    @property
    def answers(self) -> list[str]:
        return [each or "" for each in self.page.locator(".answer p").all_text_contents()]

    @property
    def shown(self) -> list[list[str]]:
        """All that it has shown, if a script keeps that."""
        shown: list[list[str]] = self.page.evaluate("window.shown")
        return shown

    @property
    def notes(self) -> list[str]:
        return [each or "" for each in self.page.locator(".note").all_text_contents()]

    @property
    def answer_id(self) -> str:
        """Of the last answer."""
        return self.page.locator("article").last.get_attribute("data-answer") or ""

    def show(self, visibility: str) -> None:
        """What the page is told when its user goes to another tab, or comes back: a headless browser shows all of them."""
        self.page.evaluate(
            """(state) => {
                Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            visibility,
        )

    def ask(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.click("#send")

    def wait(self, *, state: str | None = None, answer: str | None = None, count: int | None = None) -> None:
        """Until the heading says so, the last answer is so, and so many messages are there."""

        def is_so() -> bool:
            return (
                (count is None or len(self.answers) == count)
                and (answer is None or self.answers[-1:] == [answer])
                and (state is None or self.state == state)
            )

        try:
            until(is_so, "")
        except AssertionError:
            seen = f"state {self.state}, {len(self.answers)} answers, the last one {self.answers[-1:]}"
            raise AssertionError(f"expected state {state}, {count} answers, the last one {answer!r}; saw {seen}") from None


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    # For a module and no longer: while it runs, no other loop of asyncio can run in this thread.
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright: pip install playwright (no browser of its own is needed)")
    path = chromium_path()
    if path is None:
        pytest.skip("needs a Chromium: apt-get install chromium, or name one in the variable CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The directory for its profile is a fresh one.
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def chat(browser: Browser, tmp_path: Path) -> Iterator[Chat]:
    chat = Chat(tmp_path, browser)
    try:
        yield chat
        assert chat.problems == []
        assert "Traceback" not in chat.server.text or "break" in chat.starts, chat.server.text
    finally:
        chat.close()
