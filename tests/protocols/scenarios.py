"""
One row for each stream that the tests cut: what the server sends, how it is asked for, and what has to arrive.

The servers are the fakes of each protocol's own tests. `test_every_cut.py` cuts each row in every way; what a protocol does
besides (refusals, statuses, several cuts in one stream) is tested in the protocol's own file.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resumable_stream import Outcome
from resumable_stream.protocols import ByteRange, CursorProtocol, LangGraphRun, LangGraphThread, LastEventID, ReplayFromZero

from ..core.simulation import EventServer, Result, Stream, cut_body, ev, rows_of, script, transcript
from . import test_a2a as a2a
from . import test_ably as ably
from . import test_agno as agno
from . import test_ai_sdk as ai_sdk
from . import test_anthropic_messages as anthropic_messages
from . import test_anthropic_session as anthropic_session
from . import test_durable_answers as durable_answers
from . import test_durable_streams as durable_streams
from . import test_gemini_generate as gemini_generate
from . import test_gemini_interactions as gemini_interactions
from . import test_hub as hub
from . import test_langgraph as langgraph
from . import test_letta as letta
from . import test_llama_cpp as llama_cpp
from . import test_mcp as mcp
from . import test_ollama as ollama
from . import test_openai_chat as openai_chat
from . import test_openai_responses as openai_responses
from . import test_relayed as relayed
from . import test_resumable_stream_npm as npm
from . import test_s2 as s2
from . import test_tanstack as tanstack
from . import test_trigger_dev as trigger_dev
from . import test_upstash as upstash
from . import test_workflow as workflow

Cut = tuple[int, str]


def data_of(result: Result) -> Any:
    return result.data


def events_in(block: bytes) -> int:
    """Heartbeats, comments and empty lines deliver nothing."""
    return 0 if block.startswith(b":") or not block.strip() else 1


# Events that end an answer whose outcome is settled already.
MARKERS = (b"data: [DONE]", b"event: message_stop")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """
    Args:
        blocks: The first answer as the server sends it: events and heartbeats, one each.
        stream: Makes the request; its first answer is cut there, and sent in chunks of so many bytes (`None`: as one).
        whole: What arrives of a stream that nothing disturbs.
        read: Makes of a result what `whole` is compared with.
        outcome: How it ends; `None` for a feed, which the test leaves after its last event.
        resumes: The protocol can ask for the rest. Without it a cut is an error, after what had arrived.
        named: After so many blocks there is a way back. Before, an accepted POST is not repeated and nothing is delivered.
        settled: After so many blocks any close is the end; what a cut may cost is what would have followed.
        closes: A clean close between two events is the end: nothing in the protocol tells it from a cut.
        events: How many events a block delivers.
        holds: What else has to be true of the result.
    """

    blocks: Sequence[bytes]
    stream: Callable[[Cut, int | None], Stream]
    whole: Any
    read: Callable[[Result], Any] = data_of
    outcome: Outcome | None = Outcome.COMPLETED
    resumes: bool = True
    named: int = 0
    settled: int | None = None
    closes: bool = False
    events: Callable[[bytes], int] = events_in
    holds: Callable[[Result], bool] = lambda result: True

    @property
    def at_most(self) -> int:
        """A feed does not end by itself."""
        return 100_000 if self.outcome is not None else len(self.whole)

    def arrived(self, position: int, kind: str) -> int:
        """How many blocks are complete in so many bytes."""
        clean = kind in ("close", "half")
        blocks, end = 0, 0
        last = len(self.blocks) if self.settled is None else self.settled
        for block in self.blocks:
            start, end = end, end + len(block)
            proof = not self.resumes and blocks == last - 1
            # What follows the proof is delivered likewise, if it is the marker.
            marker = self.settled is not None and blocks >= last and block.startswith(MARKERS)
            if clean and (proof or marker) and start < position and block.rstrip() == block[: position - start].rstrip():
                # The event that proves the end needs no empty line, where nobody can be asked for the rest.
                blocks += 1
                continue
            # The CR of an empty line completes an event; a last line without its LF is a line where the body ends cleanly.
            early = block.endswith(b"\r\n\r\n") or (clean and block.endswith(b"}\n"))
            if position < end - early:
                break
            blocks += 1
        return blocks

    def expected(self, position: int, kind: str) -> tuple[Any, Outcome | None, bool]:
        """What arrives, how it ends, and whether it ends as interrupted."""
        blocks = self.arrived(position, kind)
        count = sum(map(self.events, self.blocks[:blocks]))
        last = len(self.blocks) if self.settled is None else self.settled
        if blocks >= last:
            return self.whole[:count] if self.settled or not self.resumes else self.whole, self.outcome, False
        if not self.resumes:
            return self.whole[:count], None, True
        if blocks < self.named:
            return None, None, True
        if self.closes and self.between(position, kind):
            return self.whole[:count], Outcome.ENDED, False
        return self.whole, self.outcome, False

    def between(self, position: int, kind: str) -> bool:
        """It closed cleanly, and not inside an event."""
        begun = b"".join(self.blocks)[:position].rpartition(b"\n\n")[2]
        return (kind == "close" and not begun) or (kind in ("close", "half") and begun.startswith(b":"))


def plain(protocol: Any, *blocks: bytes, **server: Any) -> Scenario:
    """A GET whose server knows every cursor it ever sent."""
    made = transcript(*blocks)

    def stream(cut: Cut, size: int | None) -> Stream:
        return Stream(EventServer(made, cuts=[cut], chunk=size, rest=None, tail=21, **server), protocol=protocol)

    return Scenario(blocks=blocks, stream=stream, whole=rows_of(made), read=lambda result: result.rows)


@dataclass(frozen=True, kw_only=True)
class RelayedScenario(Scenario):
    """What follows a settled outcome is fetched too; only a clean close right behind an event is believed there."""

    def expected(self, position: int, kind: str) -> tuple[Any, Outcome | None, bool]:
        blocks = self.arrived(position, kind)
        if self.settled is not None and blocks >= self.settled and self.between(position, kind):
            return self.whole[: sum(map(self.events, self.blocks[:blocks]))], self.outcome, False
        return self.whole, self.outcome, False


def relayed_answer(provider: relayed.Provider, settled: int | None, *, named: bool) -> Scenario:
    """`named`: by the caller, so that the first request has a key."""
    begin = provider.named if named else provider.stream
    return RelayedScenario(
        # The relay's heartbeat comes behind the first block, if it was asked for.
        blocks=[provider.blocks[0], *([relayed.BEATS[provider.kind]] if named else []), *provider.blocks[1:]],
        stream=lambda cut, size: begin(provider.relay(cuts=[cut], chunk=size)),
        whole=provider.data,
        settled=None if settled is None else len(provider.blocks) + named - settled,
        events=lambda block: int(relayed.is_event(block)),
        holds=lambda result: result.stream.machine.stats.duplicates == 0,
    )


# --- state instead of events ----------------------------------------------------------------------------------------


def a2a_task(style: str, away: int) -> Scenario:
    """What arrives is a state: each resume begins with the task as it stands, and `away` events are missed meanwhile."""
    first, *rest = [a2a.Server(style=style).block(response) for response in a2a.LOG]
    return Scenario(
        blocks=[first, b": ping - 2026-11-20\r\n\r\n", *rest],
        stream=lambda cut, size: a2a.started(a2a.Server([cut], style=style, away=away, chunk=size), on_lost="snapshot"),
        whole=a2a.TEXT,
        read=lambda result: a2a.text_of(result.events),
        named=1,
        holds=lambda result: result.events == [] or a2a.in_order(result),
    )


# --- histories and feeds --------------------------------------------------------------------------------------------


def anthropic_history(missed: int, both: int) -> Scenario:
    """`missed` events happen while nobody is connected, `both` come in the stream and in the history."""
    return Scenario(
        blocks=anthropic_session.FRAMES,
        stream=lambda cut, size: anthropic_session.stream(anthropic_session.API([cut], missed=missed, both=both)),
        whole=anthropic_session.KEPT,
        # Previews are never replayed.
        read=lambda result: anthropic_session.kept(result.events),
    )


def ably_feed() -> Scenario:
    sent = [*ably.MESSAGES[4:6], ably.KEEPALIVE, ably.MESSAGES[6], ably.PRESENCE]
    blocks = transcript(*sent)
    return Scenario(
        blocks=sent,
        stream=lambda cut, size: ably.feed(ably.ably(blocks, cuts=[cut], chunk=size, rest=None, tail=21)),
        whole=rows_of(blocks),
        read=lambda result: result.rows,
        outcome=None,
    )


def upstash_feed(url: str, events: list[dict[str, Any]]) -> Scenario:
    """Each channel arrives in its order; two of them are merged in none."""
    channels = sorted({event["channel"] for event in events})

    def ordered(result: Result) -> bool:
        found = [event for event in upstash.bodies(result) if event in events]
        each = [[event for event in found if event["channel"] == channel] for channel in channels]
        sent = [[event for event in events if event["channel"] == channel] for channel in channels]
        return each == sent and not result.stream.machine.stats.cursor_ignored

    connected = [upstash.wire({"type": "connected", "channel": channel}) for channel in channels]
    return Scenario(
        blocks=[*connected, *map(upstash.wire, events), upstash.RECONNECT],
        stream=lambda cut, size: upstash.feed(upstash.Handler(events, cuts=[cut], size=size), url),
        whole=sorted(events, key=upstash.key),
        read=lambda result: sorted(upstash.bodies(result), key=upstash.key),
        outcome=None,
        holds=ordered,
    )


def langgraph_thread() -> Scenario:
    done = ("metadata", {"status": "run_done", "run_id": "r-1"})
    return Scenario(
        blocks=[part for entry in langgraph.LOG for part in langgraph.parts(*entry)],
        stream=lambda cut, size: Stream(langgraph.ThreadServer([cut]), url=langgraph.THREAD, protocol=LangGraphThread()),
        whole=[*langgraph.rows(langgraph.LOG), done],
        read=langgraph.seen,
        outcome=None,
    )


# --- runs -----------------------------------------------------------------------------------------------------------


def agno_run(over: bool) -> Scenario:
    chosen = (0, 2, 6, 7, 8, 11)
    events = [agno.EVENTS[at] for at in chosen]
    return Scenario(
        blocks=events,
        stream=lambda cut, size: agno.post(agno.AgentOS(events, cuts=[cut], chunk=size, over=over)),
        whole=[agno.EXPECTED[at] for at in chosen],
        # The run's id is in its first event.
        named=1,
    )


def ai_sdk_answer() -> Scenario:
    return Scenario(
        blocks=ai_sdk.BRIEF,
        stream=lambda cut, size: ai_sdk.post(ai_sdk.Chat(b"".join(ai_sdk.BRIEF), cuts=[cut], chunk=size)),
        whole=[block.decode()[6:-2] for block in ai_sdk.BRIEF if block.startswith(b"data")],
        # After `finish`.
        settled=len(ai_sdk.BRIEF) - 1,
    )


def durable_answer(live: str | None, late: bool, nth: int) -> Scenario:
    """The answer number `nth` is cut. It is one document: nothing of it is delivered before all of it is here."""
    body = json.dumps(durable_answers.MESSAGES[:4], ensure_ascii=False).encode()
    return Scenario(
        blocks=re.findall(rb"[^,]+,?", body),
        stream=lambda cut, size: durable_answers.get(
            durable_answers.Server(cuts=[*[None] * nth, cut], size=size, late=late), live
        ),
        whole=durable_answers.MESSAGES,
        read=durable_answers.messages_of,
        holds=lambda result: result.stream.machine.stats.duplicates == 0,
    )


def durable_sse() -> Scenario:
    messages = durable_streams.MESSAGES[3:7]
    return Scenario(
        blocks=[
            durable_streams.data(messages[:2]),
            durable_streams.control(2, closed=False, upToDate=False),
            durable_streams.data(messages[2:]),
            durable_streams.control(4, closed=True, upToDate=True),
        ],
        stream=lambda cut, size: durable_streams.get(durable_streams.Server(messages, cuts=[cut], size=size)),
        whole=messages,
        read=durable_streams.messages_of,
    )


def gemini_interaction(status: str) -> Scenario:
    """`status`: what the interaction says of itself when it is asked after a cut."""
    return Scenario(
        blocks=gemini_interactions.FRAMES,
        stream=lambda cut, size: gemini_interactions.stream(gemini_interactions.API([cut], status=status)),
        whole=gemini_interactions.DATA,
        # Its id is in the first event.
        named=1,
        # Once it is completed, the sentinel after it is not asked for.
        settled=len(gemini_interactions.FRAMES) - 1,
    )


def hub_answer(started: bool) -> Scenario:
    """`started`: by a POST; otherwise it is joined from its beginning."""
    return Scenario(
        blocks=hub.BLOCKS,
        stream=lambda cut, size: (hub.post if started else hub.get)(hub.Hub(cuts=[cut], chunk=size)),
        whole=hub.DATA,
        holds=lambda result: result.stream.machine.stats.duplicates == 0,
    )


def hub_joined() -> Scenario:
    """Late: the text of what came before in one event, then the rest."""
    return Scenario(
        blocks=hub.JOINED,
        stream=lambda cut, size: hub.get(hub.Hub(cuts=[cut], chunk=size), f"{hub.PLACE}?view=snapshot"),
        whole=[hub.SNAPSHOT, *hub.DATA[3:]],
    )


def hub_feed() -> Scenario:
    return Scenario(
        blocks=hub.FEED,
        stream=lambda cut, size: hub.get(hub.Hub(hub.FEED, cuts=[cut], chunk=size, place=hub.FEED_PLACE), hub.FEED_PLACE),
        whole=hub.FEED_DATA,
        outcome=None,
    )


def langgraph_run(log: list[tuple[str, Any, int]]) -> Scenario:
    return Scenario(
        blocks=[part for entry in log for part in langgraph.parts(*entry)],
        stream=lambda cut, size: langgraph.created(langgraph.RunServer([cut], log=log, chunk=size)),
        whole=langgraph.raw(log),
        read=lambda result: [(event.event, event.data) for event in result.events],
    )


def langgraph_joined() -> Scenario:
    """Somebody else started the run, and three of its events were sent before we came."""

    class Joined(langgraph.RunServer):
        def __call__(self, sent: Any) -> Any:
            if sent.path != f"{langgraph.RUN}/stream":
                return super().__call__(sent)
            later = [entry for entry in langgraph.LOG if sent.cursor is not None and langgraph.id_at(entry[2]) > sent.cursor]
            return self.stream(self.frames(langgraph.LOG[3:] if sent.cursor is None else later), {})

    return Scenario(
        blocks=[part for entry in langgraph.LOG[3:] for part in langgraph.parts(*entry)],
        stream=lambda cut, size: Stream(Joined([cut], chunk=size), url=langgraph.JOIN, protocol=LangGraphRun()),
        whole=langgraph.rows(langgraph.LOG[3:]),
        read=langgraph.seen,
    )


def letta_stream() -> Scenario:
    blocks = [letta.CHUNKS[at] for at in (0, 2, 6, 8, 9, 10, 11, 12)]
    return Scenario(
        blocks=blocks,
        stream=lambda cut, size: letta.post(letta.Server(blocks, cuts=[cut], size=size)),
        whole=letta.data(blocks),
        # The run's id is in its first chunk.
        named=1,
        # After the stop reason; what a close may cost then is the usage.
        settled=6,
        events=lambda block: int(block != letta.PING),
    )


def mcp_call(*, ids: bool = True, primes: bool = True) -> Scenario:
    """2025-11-25 primes the stream and lets go of it now and then; 2025-06-18 keeps one connection."""
    server = mcp.Server(ids=ids, primes=primes)
    stop = mcp.POLLS[0] if primes else len(mcp.LOG)
    priming = [mcp.block(None, "s1-0p0", retry=20)] if primes else []
    messages = [mcp.block(mcp.LOG[at], f"s1-{at + 1}" if ids else None) for at in range(stop)]
    return Scenario(
        blocks=[b": ping\r\n\r\n", *priming, *messages],
        stream=lambda cut, size: mcp.called(mcp.Server([cut], ids=ids, primes=primes, chunk=size)),
        whole=mcp.LOG,
        read=mcp.messages,
        resumes=server.ids,
        # Before the first id nothing names the place, and the tool may have run.
        named=2,
        holds=lambda result: sum(sent.method == "POST" for sent in result.stream.sent) == 1,
    )


def openai_response() -> Scenario:
    return Scenario(
        blocks=openai_responses.FRAMES,
        stream=lambda cut, size: openai_responses.stream(
            openai_responses.Responses(cuts=[cut], chunk=size), protocol=openai_responses.PROTOCOL
        ),
        whole=openai_responses.LOG,
        read=lambda result: openai_responses.payloads(result.events),
        # The id is in the first event: without it nobody can ask for the rest.
        named=1,
    )


def openai_live(store: bool) -> Scenario:
    """Not in the background: the generation is tied to its connection."""
    return Scenario(
        blocks=[openai_responses.sse(event, "x") for event in openai_responses.LIVE],
        stream=lambda cut, size: openai_responses.stream(
            openai_responses.Responses(openai_responses.LIVE, cuts=[cut], status=("404",), chunk=size),
            json={**openai_responses.LIVE_BODY, "store": store},
        ),
        whole=openai_responses.LIVE,
        read=lambda result: openai_responses.payloads(result.events),
        resumes=False,
        holds=lambda result: sum("stream" in sent.params or sent.method == "POST" for sent in result.stream.sent) == 1,
    )


def s2_read() -> Scenario:
    return Scenario(
        blocks=s2.blocks(0, 2, 4),
        stream=lambda cut, size: s2.get(s2.Basin(cuts=[cut], size=size, step=2, stop=4)),
        whole=s2.RECORDS[:4],
        read=lambda result: [json.loads(data) for data in result.data],
        outcome=Outcome.ENDED,
        holds=lambda result: s2.numbers(result) == s2.ALL[:4],
    )


def tanstack_run(form: str) -> Scenario:
    chunks = [tanstack.CHUNKS[at] for at in (0, 2, 6, 10, 11, 13)]
    return Scenario(
        blocks=tanstack.log(form, chunks),
        stream=lambda cut, size: tanstack.post(tanstack.Route(form, chunks, cuts=[cut], size=size), form),
        whole=chunks,
        read=lambda result: tanstack.chunks_of(form, result),
        # Before the first chunk nothing proves that the log has the run, so the POST is not repeated.
        named=1,
    )


def trigger_stream(version: str) -> Scenario:
    words = ["é", "b", "b"]
    made = trigger_dev.v1(words) if version == "v1" else trigger_dev.batches(words, step=2)
    return Scenario(
        blocks=[each for block in made for each in (block, b": ping\n\n")],
        stream=lambda cut, size: trigger_dev.get(trigger_dev.Server(version, words, cuts=[cut], size=size, step=2)),
        whole=words,
        read=trigger_dev.words,
        outcome=Outcome.ENDED,
        closes=True,
        # Version 2 sends several records in one event.
        events=lambda block: block.count(b"seq_num") or events_in(block),
    )


def workflow_run() -> Scenario:
    parts = [workflow.PARTS[at] for at in (0, 3, 7, 8, 9, 10, 13)]
    return Scenario(
        blocks=[*workflow.wire(parts), b": ping\n\n", workflow.DONE],
        stream=lambda cut, size: workflow.post(workflow.Route(parts, cuts=[cut], size=size)),
        whole=parts,
        read=workflow.parts_of,
    )


# --- the table ------------------------------------------------------------------------------------------------------

# A provider, and how many of its last blocks follow the one that settles the outcome.
RELAYED: list[tuple[relayed.Provider, int | None]] = [
    *((relayed.CHAT, 2), (relayed.MESSAGES, 1), (relayed.GEMINI, 0), (relayed.OLLAMA, None)),
    *((relayed.RESPONSES, None), (relayed.UNKNOWN, None), (relayed.JSON_LINES, None)),
]
A2A_MISSED = [("rest", 0), ("rest", 3), ("1.0", 1), ("0.3", 0), ("0.3", 2)]
HISTORIES = [(0, 0), (2, 0), (0, 3), (1, 2), (4, 1)]

SCENARIOS: dict[str, Scenario] = {
    "LastEventID": plain(LastEventID(), ev("a", "1"), ev("b"), ev("b"), b": x\n\n", ev("é", "2"), ev("[DONE]")),
    "CursorProtocol": plain(
        CursorProtocol(read="id", send="query:after", end="[DONE]"),
        *(ev("a", "k1"), ev("b"), ev("b"), ev("c", "k2"), ev("[DONE]")),
        cursor=lambda sent: sent.params.get("after"),
    ),
    "ReplayFromZero": plain(ReplayFromZero(end="[DONE]"), ev("a"), ev("a"), b": x\n\n", ev("é"), ev("[DONE]"), replay="zero"),
    **{f"A2A-{style}-{away} missed": a2a_task(style, away) for style, away in A2A_MISSED},
    "AblySSE": ably_feed(),
    "Agno": agno_run(over=False),
    "Agno-over when we come back": agno_run(over=True),
    "AISDKStream": ai_sdk_answer(),
    "AnthropicMessages": Scenario(
        blocks=anthropic_messages.FRAMES,
        stream=lambda cut, size: anthropic_messages.stream(anthropic_messages.API(cut=cut)),
        whole=anthropic_messages.DATA,
        resumes=False,
        settled=len(anthropic_messages.FRAMES) - 1,
    ),
    **{f"AnthropicSession-{missed} missed, {both} twice": anthropic_history(missed, both) for missed, both in HISTORIES},
    **{
        f"DurableStreams-{live or 'catch-up'}-{'late end' if late else 'end'}-answer {nth + 1}": durable_answer(live, late, nth)
        for live, late, nth in itertools.product((None, "long-poll"), (False, True), (0, 1))
    },
    "DurableStreams-sse": durable_sse(),
    "GeminiGenerate": Scenario(
        blocks=gemini_generate.FRAMES,
        stream=lambda cut, size: gemini_generate.stream(gemini_generate.API(cut=cut)),
        whole=gemini_generate.DATA,
        resumes=False,
    ),
    "GeminiInteractions-completed": gemini_interaction("completed"),
    "GeminiInteractions-in progress": gemini_interaction("in_progress"),
    "HubStream": hub_answer(started=True),
    "HubStream-joined from the start": hub_answer(started=False),
    "HubStream-joined late": hub_joined(),
    "HubStream-feed": hub_feed(),
    "LangGraphRun": langgraph_run(langgraph.LOG),
    "LangGraphRun-brief": langgraph_run(langgraph.BRIEF),
    "LangGraphRun-joined": langgraph_joined(),
    "LangGraphThread": langgraph_thread(),
    "Letta": letta_stream(),
    "LlamaCpp": Scenario(
        blocks=llama_cpp.CHUNKS,
        stream=lambda cut, size: llama_cpp.post(llama_cpp.Server(cuts=[cut], size=size)),
        whole=llama_cpp.DATA,
        # After the reason: a cut there may cost the `[DONE]`.
        settled=len(llama_cpp.CHUNKS) - 1,
    ),
    "MCPStreamableHTTP": mcp_call(),
    "MCPStreamableHTTP-without polling": mcp_call(primes=False),
    "MCPStreamableHTTP-without ids": mcp_call(ids=False, primes=False),
    "OllamaNDJSON": Scenario(
        blocks=ollama.CHAT,
        stream=lambda cut, size: ollama.stream(script(ollama.Reply(cut_body(ollama.WHOLE, cut, size), type=ollama.TYPE))),
        whole=ollama.LINES,
        resumes=False,
    ),
    "OpenAIChat": Scenario(
        blocks=openai_chat.FRAMES,
        stream=lambda cut, size: openai_chat.stream(script(openai_chat.Reply(cut_body(openai_chat.BODY_BYTES, cut, size)))),
        whole=openai_chat.PAYLOADS,
        resumes=False,
        settled=len(openai_chat.BEFORE) + 1,
    ),
    "OpenAIResponses": openai_response(),
    "OpenAIResponses-live": openai_live(store=True),
    "OpenAIResponses-live, not stored": openai_live(store=False),
    **{
        f"Relayed-{provider.name}{', named' if named else ''}": relayed_answer(provider, settled, named=named)
        for provider, settled in RELAYED
        for named in (False, True)
    },
    "ResumableStreamNPM": Scenario(
        blocks=[block.raw for block in npm.BLOCKS],
        stream=lambda cut, size: npm.get(npm.Route(cuts=[cut], size=size)),
        whole=npm.ROWS,
        read=lambda result: result.rows,
    ),
    "S2": s2_read(),
    "TanStackAI": tanstack_run("sse"),
    "TanStackAINDJSON": tanstack_run("ndjson"),
    "TriggerDev-v1": trigger_stream("v1"),
    "TriggerDev-v2": trigger_stream("v2"),
    "UpstashRealtime": upstash_feed(upstash.ONE, upstash.EVENTS[3:6]),
    "UpstashRealtime-two channels": upstash_feed(upstash.TWO, upstash.MIXED[:6]),
    "WorkflowRun": workflow_run(),
}


def protocols_of(names: Iterable[str]) -> set[str]:
    return {name.partition("-")[0] for name in names}


ELSEWHERE = {
    "ByteRange": ByteRange,  # no events: `tests/core/test_every_cut.py` cuts it at every byte
}
