"""The chat in a real browser: what its user does to it, and what the network and the server do to its user."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

import resumable_stream as rs
from resumable_stream._cli.chat import folder

from .conftest import PATIENCE, Chat, Tab, text_of, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

AWAY = 8.0
"""Seconds without a network: longer than any retry of the page, shorter than anybody's patience."""
QUIET = 3.0
"""Seconds in which an `EventSource` that was not closed would have asked again several times."""


@contextmanager
def reading_along(url: str) -> Iterator[list[str]]:
    """`reader.py` in a process of its own; what it has printed."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    reader = subprocess.Popen([sys.executable, str(folder() / "reader.py"), url], stdout=subprocess.PIPE, text=True, env=environ)
    pieces: list[str] = []
    assert reader.stdout is not None
    out = reader.stdout

    def read() -> None:
        while piece := out.read(1):
            pieces.append(piece)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield pieces
    finally:
        reader.kill()
        reader.wait(PATIENCE)
        thread.join(PATIENCE)
        out.close()


def test_an_answer_grows_and_ends(chat: Chat) -> None:
    tab = chat.open()
    tab.wait(state="ready")
    tab.ask("Hello")
    chat.allow(7)
    tab.wait(state="live", answer=text_of(7))
    chat.allow(200)
    tab.wait(state="done", answer=text_of(200))
    assert tab.questions == ["Hello"] and chat.starts == ["Hello"]


def test_a_reload_in_mid_answer_goes_on_from_its_place(chat: Chat) -> None:
    tab = chat.open()
    tab.ask("Hello")
    chat.allow(50)
    tab.wait(answer=text_of(50))
    tab.page.reload()
    tab.wait(state="live", answer=text_of(50))
    chat.allow(120)
    tab.wait(state="live", answer=text_of(120))
    tab.page.reload()
    chat.allow(200)
    tab.wait(state="done", answer=text_of(200))
    tab.page.reload()
    tab.wait(state="done", answer=text_of(200))
    assert tab.questions == ["Hello"] and chat.starts == ["Hello"]


def test_a_second_tab_and_a_second_device_follow(chat: Chat) -> None:
    first = chat.open()
    second = chat.tab(first.page.context, first.url)
    phone = chat.open(first.url, viewport={"width": 390, "height": 800})
    phone.wait(state="ready")
    first.ask("Hello")
    chat.allow(30)
    for tab in (first, second, phone):
        tab.wait(state="live", answer=text_of(30))
    chat.allow(200)
    for tab in (first, second, phone):
        tab.wait(state="done", answer=text_of(200))
    phone.ask("And from the phone?")
    for tab in (first, second, phone):
        tab.wait(state="done", answer=text_of(200), count=2)
        assert tab.questions == ["Hello", "And from the phone?"]
    assert chat.starts == ["Hello", "And from the phone?"]
    for tab in (first, second, phone):
        until(lambda tab=tab: tab.page.locator("#readers").inner_text() == "3 readers", "that three are there")  # type: ignore[misc]
    second.page.close()
    until(lambda: first.page.locator("#readers").inner_text() == "2 readers", "that one has left")
    phone.page.close()
    until(lambda: not first.page.locator("#readers").is_visible(), "that nobody else is there")


def test_stop_in_the_second_tab_stops_both(chat: Chat) -> None:
    first = chat.open()
    first.ask("Hello")
    chat.allow(30)
    first.wait(answer=text_of(30))
    second = chat.open(first.url)
    second.wait(state="live", answer=text_of(30))
    second.page.click("#stop")
    for tab in (first, second):
        tab.wait(state="stopped", answer=text_of(30))
        assert tab.notes == ["Stopped."]
        assert not tab.page.locator("#stop").is_visible()
    chat.allow(200)
    first.ask("Again")
    for tab in (first, second):
        tab.wait(state="done", answer=text_of(200), count=2)
        assert tab.answers[0] == text_of(30)


def test_a_message_that_is_changed_in_mid_answer_supersedes_it(chat: Chat) -> None:
    first = chat.open()
    first.ask("Hello")
    chat.allow(30)
    first.wait(answer=text_of(30))
    second = chat.open(first.url)
    second.wait(answer=text_of(30))
    old = first.answer_id
    chat.allow(20)
    first.page.click(".change")
    assert first.page.input_value("#prompt") == "Hello"
    first.ask("Good bye")
    for tab in (first, second):
        tab.wait(state="live", answer=text_of(20), count=1)
        assert tab.questions == ["Good bye"] and tab.answer_id != old
    chat.allow(200)
    for tab in (first, second):
        tab.wait(state="done", answer=text_of(200), count=1)
    assert chat.starts == ["Hello", "Good bye"]
    superseded = httpx.head(f"{chat.network.url}/streams/{old}", timeout=PATIENCE, trust_env=False)
    assert superseded.headers["stream-outcome"] == "cancelled; reason=superseded"
    first.page.reload()
    first.wait(state="done", answer=text_of(200), count=1)


def test_a_message_may_be_left_as_it_was(chat: Chat) -> None:
    chat.allow(200)
    tab = chat.open()
    tab.ask("Hello")
    tab.wait(state="done")
    tab.page.click(".change")
    tab.page.click("#keep")
    assert tab.page.input_value("#prompt") == "" and not tab.page.locator("#changing").is_visible()
    tab.ask("Another")
    tab.wait(state="done", count=2)
    assert tab.questions == ["Hello", "Another"]


def press_until_focused(tab: Tab, selector: str, key: str = "Shift+Tab") -> None:
    """Go there with the keyboard alone."""
    there = tab.page.locator(selector).first
    for _ in range(20):
        if there.evaluate("(element) => element === document.activeElement"):
            # It can be seen by now.
            assert float(there.evaluate("(element) => getComputedStyle(element.parentElement).opacity")) == 1.0
            return
        tab.page.keyboard.press(key)
    raise AssertionError(f"{selector} cannot be reached")


def test_an_earlier_message_is_changed_and_deleted_with_the_keyboard(chat: Chat) -> None:
    chat.allow(200)
    first = chat.open()
    for count, text in enumerate(["One", "Two", "Three"], 1):
        first.ask(text)
        first.wait(state="done", count=count)
    second = chat.open(first.url)
    second.wait(count=3)
    first.page.focus("#prompt")
    press_until_focused(first, "article .change")
    first.page.keyboard.press("Enter")
    assert "Its answer stays" in first.page.locator("#changing").inner_text()
    first.page.keyboard.press("Control+A")
    first.page.keyboard.type("First")
    first.page.keyboard.press("Enter")
    for tab in (first, second):
        until(lambda tab=tab: tab.questions == ["First", "Two", "Three"], "the change")
        assert tab.answers == [text_of(200)] * 3
    assert chat.starts == ["One", "Two", "Three"]
    until(lambda: not first.page.locator("#changing").is_visible(), "the receipt")

    press_until_focused(first, "article .delete")
    first.page.keyboard.press("Enter")
    # It asks, and takes a step away for a no.
    assert first.page.locator(".delete").first.inner_text() == "Delete it and its answer?"
    first.page.keyboard.press("Tab")
    assert first.page.locator(".delete").first.inner_text() == "Delete"
    press_until_focused(first, "article .delete")
    first.page.keyboard.press("Enter")
    first.page.keyboard.press("Enter")
    for tab in (first, second):
        until(lambda tab=tab: tab.questions == ["Two", "Three"], "the deletion")
    until(lambda: first.page.evaluate("document.activeElement.id") == "prompt", "the focus")
    first.page.reload()
    first.wait(state="done", count=2)
    assert first.questions == ["Two", "Three"]


def test_deleting_a_message_stops_its_answer(chat: Chat) -> None:
    first = chat.open()
    first.ask("Hello")
    chat.allow(30)
    first.wait(answer=text_of(30))
    answer = first.answer_id
    second = chat.open(first.url)
    second.wait(answer=text_of(30))
    # Somebody is changing what is deleted elsewhere: his words stay, and become a new message.
    second.page.click(".change")
    second.page.fill("#prompt", "Hello again")
    for _ in range(2):
        first.page.click(".delete")
    for tab in (first, second):
        tab.wait(state="ready", count=0)
    head = httpx.head(f"{chat.network.url}/streams/{answer}", timeout=PATIENCE, trust_env=False)
    assert head.headers["stream-outcome"] == "cancelled; reason=deleted"
    assert not second.page.locator("#changing").is_visible() and second.page.input_value("#prompt") == "Hello again"
    chat.allow(200)
    second.page.click("#send")
    for tab in (first, second):
        tab.wait(state="done", answer=text_of(200), count=1)
        assert tab.questions == ["Hello again"]


def test_without_a_network_for_a_while_nothing_is_lost(chat: Chat) -> None:
    first = chat.open()
    first.ask("Hello")
    chat.allow(30)
    first.wait(answer=text_of(30))
    second = chat.open(first.url)
    second.wait(answer=text_of(30))
    chat.network.cut()
    chat.allow(150)
    for tab in (first, second):
        tab.wait(state="reconnecting", answer=text_of(30))
    time.sleep(AWAY)
    assert first.state == second.state == "reconnecting" and chat.network.refused >= 4
    chat.network.mend()
    for tab in (first, second):
        tab.wait(state="live", answer=text_of(150))
    chat.allow(200)
    for tab in (first, second):
        tab.wait(state="done", answer=text_of(200))
    assert chat.starts == ["Hello"]


def test_a_device_that_is_offline_says_so_and_asks_for_the_rest(chat: Chat) -> None:
    tab = chat.open()
    tab.ask("Hello")
    chat.allow(30)
    tab.wait(state="live", answer=text_of(30))
    tab.page.context.set_offline(True)
    tab.wait(state="reconnecting")
    chat.allow(60)
    tab.page.context.set_offline(False)
    tab.wait(state="live", answer=text_of(60))
    # A connection that was only thought to be lost has been replaced: nothing comes twice.
    chat.allow(200)
    tab.wait(state="done", answer=text_of(200))
    last = chat.network.asked_for(f"/streams/{tab.answer_id}")[-1]
    assert "?after=" in last.path


def test_a_drain_and_another_server_over_the_same_file(chat: Chat) -> None:
    first = chat.open()
    first.ask("Hello")
    chat.allow(30)
    first.wait(answer=text_of(30))
    second = chat.open(first.url)
    second.wait(answer=text_of(30))
    chat.server.drain()
    before = len(chat.network.asked)
    for tab in (first, second):
        tab.wait(state="reconnecting", answer=text_of(30))
    # Both ask again while it drains: an EventSource would give up at a 503.
    path = f"/streams/{first.answer_id}"
    until(lambda: len([each for each in chat.network.asked[before:] if each.path.startswith(path)]) >= 2, "both tabs")
    assert first.state == second.state == "reconnecting"
    chat.allow(200)
    assert chat.server.wait() == 0
    chat.restart()
    for tab in (first, second):
        tab.wait(state="done", answer=text_of(200))
    assert chat.starts == ["Hello"]
    # The feed is alive too: what begins now is seen in both.
    second.ask("Still there?")
    for tab in (first, second):
        tab.wait(state="done", answer=text_of(200), count=2)
        assert tab.questions == ["Hello", "Still there?"]


def test_a_server_that_is_killed_ends_its_answer_as_failed(chat: Chat) -> None:
    tab = chat.open()
    tab.ask("Hello")
    chat.allow(30)
    tab.wait(answer=text_of(30))
    chat.server.process.kill()
    tab.wait(state="reconnecting", answer=text_of(30))
    chat.restart()
    # After the lease.
    tab.wait(state="failed", answer=text_of(30))
    assert "producer_lost" in tab.notes[0]


def test_a_proxy_without_its_server_ends_no_page(chat: Chat) -> None:
    """An EventSource gives up for good at a 502."""
    tab = chat.open()
    tab.ask("Hello")
    chat.allow(30)
    tab.wait(answer=text_of(30))
    chat.network.is_bad = True
    chat.network.hang_up()
    tab.wait(state="reconnecting", answer=text_of(30))
    until(lambda: chat.network.refused >= 4, "requests that get a 502")
    chat.network.is_bad = False
    chat.allow(200)
    tab.wait(state="done", answer=text_of(200))
    tab.ask("Still there?")
    tab.wait(state="done", answer=text_of(200), count=2)


def test_a_message_whose_receipt_is_lost_is_answered_once(chat: Chat) -> None:
    tab = chat.open()
    tab.wait(state="ready")
    chat.allow(200)
    chat.network.loses = "POST"
    tab.ask("Hello")
    tab.wait(state="done", answer=text_of(200), count=1)
    until(lambda: not tab.page.input_value("#prompt"), "the receipt")
    assert chat.starts == ["Hello"] and tab.questions == ["Hello"]
    assert [each.method for each in chat.network.asked_for("/c/")].count("POST") == 2


def test_after_the_end_nothing_more_is_asked_for(chat: Chat) -> None:
    tab = chat.open()
    chat.allow(200)
    tab.ask("Hello")
    tab.wait(state="done", answer=text_of(200))
    before = len(chat.network.asked)
    # Also not when the network is lost: there is nothing to reconnect.
    time.sleep(QUIET)
    chat.network.hang_up()
    time.sleep(QUIET)
    later = chat.network.asked[before:]
    assert [each for each in later if each.path.startswith("/streams/")] == []
    # The feed of the conversation goes on.
    assert {each.path.partition("?")[0] for each in later} == {f"/sessions/{tab.sid}/feed"}


def test_an_answer_that_fails_says_so_and_keeps_what_there_is(chat: Chat) -> None:
    tab = chat.open()
    chat.allow(200)
    tab.ask("break")
    tab.wait(state="failed", answer=text_of(5))
    assert tab.notes == ["Failed: RuntimeError."]
    tab.page.reload()
    tab.wait(state="failed", answer=text_of(5))
    tab.ask("Hello")
    tab.wait(state="done", answer=text_of(200), count=2)


def test_markup_is_shown_and_not_obeyed(chat: Chat) -> None:
    tab = chat.open()
    chat.allow(200)
    text = '<img src="/x" onerror="document.title=1"><script>document.title=2</script> &amp;'
    tab.ask(text)
    tab.wait(state="done")
    assert tab.questions == [text]
    assert tab.page.title() == "done · Chat" and chat.network.asked_for("/x") == []


def test_everything_at_once(chat: Chat) -> None:
    """Reload, a second tab, a program that reads along, no network for a while, a drain, another server, and a stop."""
    first = chat.open()
    first.ask("Hello")
    chat.allow(20)
    first.wait(state="live", answer=text_of(20))
    with reading_along(first.url) as printed:
        second = chat.open(first.url, viewport={"width": 390, "height": 800})
        second.wait(answer=text_of(20))
        first.page.reload()
        chat.allow(40)
        first.wait(answer=text_of(40))
        until(lambda: text_of(40) in "".join(printed), "the program")

        chat.network.cut()
        chat.allow(60)
        time.sleep(AWAY)
        chat.network.mend()
        for tab in (first, second):
            tab.wait(state="live", answer=text_of(60))
        until(lambda: text_of(60) in "".join(printed), "the program, back again")

        # While it drains, browsers are told to come back, and are not turned away.
        chat.server.drain()
        for tab in (first, second):
            tab.wait(state="reconnecting", answer=text_of(60))
        chat.allow(200)
        assert chat.server.wait() == 0
        chat.restart()
        for tab in (first, second):
            tab.wait(state="done", answer=text_of(200))
        until(lambda: f"{text_of(200)}\n[completed]" in "".join(printed), "the program, at the end")
        assert "".join(printed).count("word-0 ") == 1 and chat.starts == ["Hello"]

        chat.allow(15)
        first.ask("And another")
        for tab in (first, second):
            tab.wait(state="live", answer=text_of(15), count=2)
        second.page.click("#stop")
        for tab in (first, second):
            tab.wait(state="stopped", answer=text_of(15), count=2)
        until(lambda: f"{text_of(15)}\n[cancelled]" in "".join(printed), "the program, stopped")
    assert chat.starts == ["Hello", "And another"]
    before = len(chat.network.asked)
    time.sleep(QUIET)
    assert [each for each in chat.network.asked[before:] if each.path.startswith("/streams/")] == []


def test_a_hidden_tab_lets_go_of_its_connections_and_catches_up(chat: Chat) -> None:
    """A browser has six connections for all tabs of a host: with three tabs that held two each, nobody could press Stop."""
    tab = chat.open()
    tab.ask("Hello")
    chat.allow(30)
    tab.wait(state="live", answer=text_of(30))
    assert chat.network.streams == 2
    tab.show("hidden")
    until(lambda: chat.network.streams == 0, "the end of both connections")
    chat.allow(60)
    tab.show("visible")
    tab.wait(state="live", answer=text_of(60))
    assert f"/streams/{tab.answer_id}?after=" in chat.network.asked_for("/streams/")[-1].path
    chat.allow(200)
    tab.wait(state="done", answer=text_of(200))


# Records what the page shows, whenever that changes: a handler of an event changes it in one go.
WATCHES = """
    window.shown = [];
    addEventListener("DOMContentLoaded", () => {
        const look = () => {
            const texts = [...document.querySelectorAll(".question p")].map((each) => each.textContent);
            if (JSON.stringify(texts) !== JSON.stringify(window.shown.at(-1) ?? [])) window.shown.push(texts);
        };
        const all = { subtree: true, childList: true, characterData: true };
        new MutationObserver(look).observe(document.getElementById("chat"), all);
    });
"""
# A user in a hurry, who says, changes and deletes by the buttons of the page, his own messages and those of others.
ACTS = """async ([name, count]) => {
    let seed = name.charCodeAt(0);
    const chance = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
    const $ = (id) => document.getElementById(id);
    const until = async (isTrue) => {
        while (!isTrue()) await new Promise((resolve) => setTimeout(resolve, 5));
    };
    const pick = (all) => all[Math.floor(chance() * all.length)];
    const write = (text) => {
        $("prompt").value = text;
        $("prompt").dispatchEvent(new Event("input"));
        $("send").click();
        return until(() => !$("prompt").value || !$("trouble").hidden);
    };
    window.acted = 0;
    window.refused = 0;
    for (let n = 0; n < count; n++) {
        const turns = [...document.querySelectorAll("article")];
        const what = n < 3 || turns.length < 3 ? 0 : chance();
        if (what < 0.4) {
            await write(`${name} says ${n}`);
        } else if (what < 0.7) {
            pick(turns).querySelector(".change").click();
            await write(`${name} changes ${n}`);
        } else {
            const button = pick(turns).querySelector(".delete");
            button.click();
            button.click();
            await until(() => !button.isConnected || (!button.disabled && !$("trouble").hidden));
        }
        if (!$("trouble").hidden) {
            window.refused++;
            $("trouble").hidden = true;
            $("keep").click();
        }
        window.acted++;
    }
}"""
STEPS = 25


class Following:
    """A program that follows the feed of a conversation, and knows after each event which messages there are."""

    def __init__(self, url: str) -> None:
        self.states: list[list[str]] = []
        self.events: list[str] = []
        self._feed = rs.connect("GET", url)
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Following:
        self._feed.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        texts: dict[str, str] = {}
        with contextlib.suppress(rs.StreamClosed):
            for event in self._feed:
                data = json.loads(event.data)
                match event.event:
                    case "message" | "edited":
                        texts[data["mid"]] = data["data"]["text"]
                    case "deleted":
                        del texts[data["mid"]]
                    case _:
                        continue
                self.events.append(event.event)
                self.states.append(list(texts.values()))


def test_three_tabs_and_a_program_see_the_same_messages_in_the_same_order_while_two_tabs_write(chat: Chat) -> None:
    chat.allow(200)
    far = chat.another_network()
    first = chat.open(watch=WATCHES)
    path = first.url.removeprefix(chat.network.url)
    second = chat.open(first.url, watch=WATCHES)
    third = chat.open(f"{far.url}{path}", watch=WATCHES)
    for tab in (first, second, third):
        tab.wait(state="ready")
    with Following(f"{chat.network.url}/sessions/{first.sid}/feed") as program:
        for tab, name in ((first, "ann"), (second, "bob")):
            tab.page.evaluate(f"(given) => {{ ({ACTS})(given).catch((error) => window.failed = String(error)) }}", [name, STEPS])
        until(lambda: min(acted(first), acted(second)) >= 5, "five steps of each")
        far.cut()
        third.wait(state="reconnecting")
        missing = len(third.shown)
        until(lambda: min(acted(first), acted(second)) >= 15, "ten more")
        # It does not know of them, and shows what it knew.
        assert len(third.shown) == missing < len(program.states)
        far.mend()
        until(lambda: min(acted(first), acted(second)) == STEPS, "the last")
        until(lambda: first.questions == second.questions == third.questions == program.states[-1], "the same in all four")
        # Not only at the end: each tab has shown each state that the program went through, in this order.
        assert first.shown == second.shown == third.shown == program.states
        assert set(program.events) == {"message", "edited", "deleted"}
        # Who comes later sees the same.
        late = chat.open(first.url)
        late.wait(count=len(program.states[-1]))
        assert late.questions == program.states[-1]


def acted(tab: Tab) -> int:
    """How much its user has done."""
    done, failed = tab.page.evaluate("[window.acted, window.failed ?? null]")
    assert failed is None
    return int(done)


LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_the_page_can_be_read(chat: Chat, width: int, scheme: str) -> None:
    tab = chat.open(viewport={"width": width, "height": 800}, color_scheme=scheme)
    chat.allow(200)
    tab.ask("Hello")
    tab.wait(state="done", count=1)
    tab.ask("A long word: " + "x" * 300)
    tab.wait(state="done", count=2)
    tab.page.click("#share")
    tab.page.locator(".change").first.click()
    # A click takes the page to it, and the pointer stays there.
    tab.page.locator(".delete").last.click()
    keep_picture(tab, f"{width}-{scheme}")
    # Nothing sticks out at the side.
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    poor = {name: ratio for name, ratio in contrasts(tab).items() if ratio < 4.5}
    assert poor == {}
    # Large enough for a thumb, and in view.
    for name in ("#send", "#prompt", "#copy"):
        box = tab.page.locator(name).bounding_box()
        assert box is not None and box["height"] >= 32 and box["x"] >= 0 and box["x"] + box["width"] <= width


def test_the_address_can_be_copied(chat: Chat) -> None:
    tab = chat.open(permissions=["clipboard-read", "clipboard-write"])
    assert not tab.page.locator("#sharing").is_visible()
    tab.page.click("#share")
    assert tab.page.input_value("#address") == tab.url
    assert len(tab.sid) == 22
    tab.page.click("#copy")
    until(lambda: tab.page.locator("#copy").inner_text() == "Copied", "the copy")
    assert tab.page.evaluate("navigator.clipboard.readText()") == tab.url
    tab.page.click("#new")
    tab.wait(state="ready", count=0)
    assert len(tab.sid) == 22 and tab.url not in tab.page.evaluate("navigator.clipboard.readText()")


def keep_picture(tab: Tab, name: str) -> None:
    """For people who want to look at it: set PICTURES to a directory."""
    if folder_of_pictures := os.environ.get("PICTURES"):
        tab.page.screenshot(path=f"{folder_of_pictures}/chat-{name}.png")


def contrasts(tab: Tab) -> dict[str, float]:
    """The contrast of each text with what is behind it, as WCAG 2.2 computes it."""
    found = tab.page.evaluate(
        """() => {
            const colour = (text) => text.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
                .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const behind = (element) => {
                for (let each = element; each; each = each.parentElement) {
                    const found = colour(getComputedStyle(each).backgroundColor);
                    if (found.length === 3 || found[3] > 0) return found;
                }
                return [255, 255, 255];
            };
            const all = [...document.querySelectorAll("body *")].filter((element) =>
                element.checkVisibility() && !element.disabled &&
                (["TEXTAREA", "INPUT"].includes(element.tagName) ||
                 [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())));
            return all.map((element) => {
                const [a, b] = [colour(getComputedStyle(element).color), behind(element)].map(light);
                const name = `${element.tagName} ${element.id} ${element.parentElement.className}`;
                return [name, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
            });
        }"""
    )
    assert len(found) >= 10
    return dict(found)
