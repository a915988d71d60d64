"""A page without an API key shows the stream of a relay: a real `EventSource`, on another origin, over a cut connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from resumable_stream.server import MemoryLog, Relay
from resumable_stream.testing import FlakyServer

from ..server.relay_wires import OPENAI, TEXT
from ..server.serving import Served
from .conftest import until
from .network import Network

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PAGE = """<!doctype html><title>shows a stream</title><pre id="answer"></pre><p id="state">waits</p>
<script>
  const place = location.hash.slice(1), state = document.getElementById("state");
  let errors = 0;
  window.ids = [];
  const source = new EventSource(place);
  source.onmessage = (event) => {
    window.ids.push(event.lastEventId);
    if (event.data === "[DONE]") return;
    document.getElementById("answer").append(JSON.parse(event.data).choices[0].delta.content ?? "");
  };
  source.addEventListener("end", (event) => { state.textContent = JSON.parse(event.data).outcome; source.close(); });
  source.onerror = () => { state.dataset.errors = ++errors; if (source.readyState === 2) state.textContent = "refused"; };
</script>
"""


def test_a_page_without_a_key_follows_a_stream_over_a_cut_and_is_refused_any_other(browser: Browser) -> None:
    async def page(request: object) -> HTMLResponse:
        return HTMLResponse(PAGE)

    upstream = FlakyServer(OPENAI.blocks[:5], hold_open=True, keep_alive=False)
    with upstream, Served(Starlette(routes=[Route("/", page)])) as pages:
        relay = Relay(upstream.origin, MemoryLog(), capability_urls=True, cors=[pages.url], flush=0.0)
        with Served(relay) as served, served.client() as client:
            network = Network(int(served.url.rpartition(":")[2]))
            try:
                with client.stream("POST", OPENAI.path, json=OPENAI.body, headers=OPENAI.credentials()) as answer:
                    # The back end asks, and hands the place to the page.
                    place = answer.headers["content-location"]
                tab = browser.new_context().new_page()
                tab.goto(f"{pages.url}/#{network.url}{place}")
                answer_of, state = tab.locator("#answer"), tab.locator("#state")
                until(lambda: answer_of.text_content() == "".join(TEXT[:4]), "the beginning")
                network.cut()
                until(lambda: state.get_attribute("data-errors") is not None, "the cut")
                network.mend()
                upstream.append(*OPENAI.blocks[5:])
                until(lambda: answer_of.text_content() == "".join(TEXT), "the rest")
                upstream.close()
                until(lambda: state.text_content() == "completed", "the end")
                ids = tab.evaluate("window.ids")
                assert len(ids) == len(set(ids)) == OPENAI.events
                # Without the token, and with that of another stream.
                for other in (place.partition("?")[0], place.replace("/.streams/", "/.streams/x")):
                    stranger = browser.new_context().new_page()
                    stranger.goto(f"{pages.url}/#{network.url}{other}")
                    until(lambda: stranger.locator("#state").text_content() == "refused", "the refusal")  # noqa: B023
                assert httpx.get(f"{served.url}{place}", trust_env=False).status_code == 200
            finally:
                network.close()
    assert len(upstream.requests) == 1
