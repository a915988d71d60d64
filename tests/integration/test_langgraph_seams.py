"""
Late readers and early cuts of a run on the real development server of LangGraph.

That server subscribes a reader to what is live first, then replays what is stored, and stores more while it replays.
So where replay meets live it sends again all that came since the reader arrived, with equal ids and contents.
What may come twice all the same is in `in_order()`.
"""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.protocols.langgraph import LangGraphRun

from .proxy import CuttingProxy

pytest.importorskip("langgraph_api")
pytest.importorskip("langgraph_cli")

# Where the server is missing, that module is skipped half-way, and has no such names.
from .test_langgraph_server import AT_ONCE, Server, in_order, server

__all__ = ["server"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CHUNKS = 2000
# Four chunks in 5 ms or a little more.
SECONDS = 3.0
RUNS, READERS = 4, 50
CUTS = 200
SHORT = 120
SEED = 20260


def _run(tag: str, chunks: int) -> dict[str, Any]:
    return {
        "assistant_id": "agent",
        "input": {"tag": tag, "chunks": chunks},
        "stream_mode": ["custom"],
        "stream_resumable": True,
        "on_disconnect": "continue",
    }


def test_late_readers_get_each_chunk_once(server: Server) -> None:
    """Joined at random moments of the run, also before its first chunk and after its last."""
    asyncio.run(_read_late(server))


async def _read_late(server: Server) -> None:
    rng = random.Random(SEED)
    twice = repeats = 0

    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=200) as client:
        for run in range(RUNS):
            thread = (await client.post("/threads", json={})).json()["thread_id"]
            started = await client.post(f"/threads/{thread}/runs", json=_run(f"late-{run}", CHUNKS))
            run_id = started.json()["run_id"]

            async def read(delay: float, url: str = f"/threads/{thread}/runs/{run_id}/stream") -> tuple[int, int]:
                await asyncio.sleep(delay)
                request = {"params": {"stream_mode": "custom"}, "headers": {"Last-Event-ID": "-1"}}
                async with rs.aconnect("GET", url, client=client, **request) as stream:
                    events = [event async for event in stream]
                assert isinstance(stream.protocol, LangGraphRun)
                assert stream.outcome is rs.Outcome.COMPLETED
                return in_order(events, CHUNKS, f"joined after {delay:.3f} s"), stream.stats.duplicates

            delays = [rng.uniform(0.0, SECONDS) for _ in range(READERS)]
            for doubled, dropped in await asyncio.gather(*(read(delay) for delay in delays)):
                twice += doubled
                repeats += dropped
    print(f"{RUNS * READERS} late readers: {repeats} repeats dropped, {twice} chunks came twice within one millisecond")
    assert repeats > 0, "no reader met a seam"


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_run_cut_anywhere_from_the_head_on_is_whole_or_an_honest_error(server: Server, how: Literal["rst", "fin"]) -> None:
    """
    The run goes on while it is resumed, so that each resume meets what is live.

    Before the head is there, nothing names the run: a POST is not sent again, and the error says so with nothing delivered.
    """
    rng = random.Random(f"{SEED} {how}")
    # Half of the cuts fall into the head and the first events.
    cuts = sorted({*(rng.randrange(1500) for _ in range(CUTS // 4)), *(rng.randrange(14_000) for _ in range(CUTS // 4))})

    def read(cut: int) -> tuple[bool, int]:
        tag = f"early-{how}-{cut}"
        proxy = CuttingProxy(server.port, head=True)
        proxy.cut(cut, how)
        url = f"http://127.0.0.1:{proxy.port}/threads/{server.thread()}/runs/stream"
        events: list[Any] = []
        stream = rs.connect("POST", url, client=client, json=_run(tag, SHORT))
        try:
            with stream:
                events.extend(stream)
        except rs.StreamInterrupted:
            named = b"\r\n\r\n" in proxy.body
        else:
            named = True
        finally:
            proxy.close()
        if not named:
            assert not events
            return False, 0
        assert stream.outcome is rs.Outcome.COMPLETED, cut
        assert server.calls.read_text().splitlines().count(tag) == 1, cut
        return True, in_order(events, SHORT, f"cut after {cut} bytes")

    with httpx.Client(trust_env=False) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(read, cuts))
    whole = sum(done for done, _ in results)
    print(f"{len(cuts)} cuts: {whole} whole, {len(cuts) - whole} errors, {sum(n for _, n in results)} chunks came twice")
    assert whole > len(cuts) // 2
