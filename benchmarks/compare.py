"""
Cut an answer of 300 tokens at token 150, and see how each client copes.

    make compare
    python benchmarks/compare.py --write
    python benchmarks/compare.py --rows 'OpenAI*' --details

Every cell is a separate run: a `FlakyServer` that speaks the provider's wire, real sockets, a fresh client with its default
retries. Only the first answer is cut; the server can continue if the provider's API can, so a client that asks for the rest gets
it. First, every client must read an undisturbed answer whole; otherwise nothing is reported.

Through the relay the server is not disturbed, and a proxy in front of the relay cuts: `resumable-stream relay` is one process for
all runs, with the server of each run under its own path.

Several cells run at the same time: nothing is timed here, and waiting runs would otherwise wait one after another.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal

from wires import ASK, TOKENS, WORDS, Wire, chat, gemini, interactions, messages, plain, responses

import resumable_stream as rs
from resumable_stream.protocols import (
    AnthropicMessages,
    GeminiGenerate,
    GeminiInteractions,
    LastEventID,
    OpenAIChat,
    OpenAIResponses,
    Relayed,
)
from resumable_stream.testing import Fault, FlakyServer

# The relay process, and the network in front of it, come from the tests.
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.integration.dropping import DroppingProxy, Way
from tests.integration.relaying import relaying

TIMEOUT: Final = 4.0  # seconds without a byte, set for every client: the defaults are up to ten minutes, or none
BOUND: Final = 25.0  # seconds for one run: requests-sse waits 10 before it connects again
DEADLINE: Final = 90.0  # seconds for all of them, so that the script ends within two minutes
AT_ONCE: Final = 8  # runs: with more, each would wait longer than TIMEOUT for the others
PAGE: Final = Path(__file__).parents[1] / "docs" / "compare.md"
PACKAGES: Final = {  # distribution: its import name
    "openai": "openai",
    "anthropic": "anthropic",
    "google-genai": "google.genai",
    "httpx-sse": "httpx_sse",
    "httpx": "httpx",
    "httpx2": "httpx2",
    "sseclient-py": "sseclient",
    "requests-sse": "requests_sse",
    "requests": "requests",
}
LEGEND: Final = (
    "A cell has the number of tokens that came, and the exception that followed.\n"
    "**Bold** is the whole answer; *not the same* means that events were repeated or lost.\n"
    "*Through the relay* shows results that are the same for all four cuts once; a dash: our transport does not work under this "
    "reader, or the request is a GET, which a relay does not store."
)
ALONE: Final = (
    "The same unmodified SDKs, with only the base URL changed to that of the relay.\n"
    "The cuts are proper closes, once between the provider and the relay, and once between the relay and the SDK.\n"
    "*Fetched* is the answer to `GET {Content-Location}?view=verbatim` after the second one."
)
KEY: Final = {"Authorization": "Bearer none"}  # for every SDK here
BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


# --- the clients: each reads an answer as its README does, and appends the text that the caller gets


Read = Callable[[Any, list[str]], None]
"""The address of the API (`origin`, and the `url` of its stream), and the list that the reader appends to."""
CHAT_BODY: Final = {"model": "m", "messages": ASK, "stream": True}
ASK_GEMINI: Final = {"contents": [{"role": "user", "parts": [{"text": "Count."}]}]}


def over(read: Callable[..., None]) -> Read:
    """The same SDK with the same code, over our transport."""

    def through(server: Any, got: list[str]) -> None:
        from resumable_stream.transports.httpx2 import ResumableTransport

        read(server, got, ResumableTransport())

    return through


def openai_client(server: Any, transport: Any) -> Any:
    import openai

    http = openai.DefaultHttpxClient(transport=transport) if transport else None
    return openai.OpenAI(api_key="none", base_url=f"{server.origin}/v1", timeout=TIMEOUT, http_client=http)


def openai_responses(server: Any, got: list[str], transport: Any = None) -> None:
    with openai_client(server, transport) as client:
        for event in client.responses.create(model="m", input="Count.", background=True, stream=True):
            if event.type == "response.output_text.delta":
                got.append(event.delta)


def openai_chat(server: Any, got: list[str], transport: Any = None) -> None:
    with openai_client(server, transport) as client:
        for chunk in client.chat.completions.create(model="m", messages=ASK, stream=True):
            got.append(chunk.choices[0].delta.content or "")


def openai_chat_helper(server: Any, got: list[str], transport: Any = None) -> None:
    with openai_client(server, transport) as client, client.chat.completions.stream(model="m", messages=ASK) as stream:
        for event in stream:
            if event.type == "content.delta":
                got.append(event.delta)
        got[:] = [stream.get_final_completion().choices[0].message.content or ""]


def anthropic_client(server: Any, transport: Any) -> Any:
    import anthropic

    http = anthropic.DefaultHttpxClient(transport=transport) if transport else None
    return anthropic.Anthropic(api_key="none", base_url=server.origin, timeout=TIMEOUT, http_client=http)


def anthropic_messages(server: Any, got: list[str], transport: Any = None) -> None:
    with anthropic_client(server, transport) as client:
        for event in client.messages.create(model="m", max_tokens=TOKENS, messages=ASK, stream=True):
            if event.type == "content_block_delta":
                got.append(event.delta.text)


def anthropic_helper(server: Any, got: list[str], transport: Any = None) -> None:
    with (
        anthropic_client(server, transport) as client,
        client.messages.stream(model="m", max_tokens=TOKENS, messages=ASK) as stream,
    ):
        for text in stream.text_stream:
            got.append(text)
        got[:] = [stream.get_final_message().content[0].text]


def google_client(server: Any, transport: Any) -> Any:
    from google import genai
    from google.genai import types

    arguments = {"transport": transport} if transport else None
    options = types.HttpOptions(base_url=server.origin, timeout=int(TIMEOUT * 1000), client_args=arguments)
    return genai.Client(api_key="none", http_options=options)


def google_interactions(server: Any, got: list[str], transport: Any = None) -> None:
    with google_client(server, transport) as client:
        for event in client.interactions.create(model="m", input="Count.", stream=True):
            if event.event_type == "step.delta":
                got.append(event.delta.text)


def google_genai(server: Any, got: list[str], transport: Any = None) -> None:
    with google_client(server, transport) as client:
        for chunk in client.models.generate_content_stream(model="m", contents="Count."):
            got.append(chunk.text or "")


def httpx_sse(server: Any, got: list[str]) -> None:
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(timeout=TIMEOUT) as client, connect_sse(client, "GET", server.url) as source:
        for event in source.iter_sse():
            if event.data == "[DONE]":
                return
            got.append(event.data)


def httpx2_lines(server: Any, got: list[str]) -> None:
    import httpx2

    with httpx2.Client(timeout=TIMEOUT) as client, client.stream("GET", server.url) as response:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                got.append(line.removeprefix("data: "))


def sseclient_py(server: Any, got: list[str]) -> None:
    import requests
    import sseclient

    with requests.get(server.url, stream=True, timeout=TIMEOUT) as response:
        for event in sseclient.SSEClient(response).events():
            if event.data == "[DONE]":
                return
            got.append(event.data)


def requests_sse(server: Any, got: list[str]) -> None:
    from requests_sse import EventSource

    with EventSource(server.url, timeout=TIMEOUT) as source:
        for event in source:
            if event.data == "[DONE]":
                return
            got.append(event.data)


def requests_sse_chat(server: Any, got: list[str]) -> None:
    from requests_sse import EventSource

    url = f"{server.origin}/v1/chat/completions"
    with EventSource(url, method="POST", json=CHAT_BODY, timeout=TIMEOUT) as source:
        for event in source:
            if event.data == "[DONE]":
                return
            got.append(json.loads(event.data)["choices"][0]["delta"].get("content", ""))


def ours(method: str, path: str, protocol: rs.protocols.ResumeProtocol, body: dict[str, Any] | None = None) -> Read:
    def read(server: Any, got: list[str]) -> None:
        request: dict[str, Any] = {} if body is None else {"json": body}
        timeouts = rs.Timeouts(idle=TIMEOUT)
        try:
            with rs.connect(method, server.origin + path, protocol=protocol, timeouts=timeouts, **request) as stream:
                for text in stream.iter_text():
                    got.append(text)
        except rs.ResumableStreamError as error:
            got[:] = [error.text_so_far or ""]  # what a caller without its own copy has
            raise

    return read


# --- the table


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    One line: a wire and its reader.

    Attributes:
        relayed: How it reads through a relay; `None`: it cannot.
        bare: It is an SDK without our transport.
        packages: Distributions that it needs besides this one.
    """

    wire: str
    reader: str
    read: Read
    relayed: Read | None = None
    bare: bool = False
    packages: Sequence[str] = field(default=(), hash=False)


WIRES: Final[dict[str, Callable[[], Wire]]] = {
    "OpenAI Responses, background": responses,
    "OpenAI Chat Completions": chat,
    "Anthropic Messages": messages,
    "Gemini generateContent": gemini,
    "Gemini Interactions": interactions,
    "SSE with ids, by GET": plain,
}
RESPONSES, CHAT, MESSAGES, GEMINI, INTERACTIONS, PLAIN = WIRES
US: Final = "**resumable_stream**"
OVER: Final = "over **our transport**"


def alone(wire: str, reader: str, read: Callable[..., None], package: str) -> Row:
    return Row(wire=wire, reader=reader, read=read, relayed=over(read), bare=True, packages=[package])


def beneath(wire: str, reader: str, read: Callable[..., None], package: str) -> Row:
    return Row(wire=wire, reader=f"{reader} {OVER}", read=over(read), relayed=over(read), packages=[package])


def us(wire: str, path: str, protocol: rs.protocols.ResumeProtocol, body: dict[str, Any]) -> Row:
    relayed = ours("POST", path, Relayed(protocol), body)
    return Row(wire=wire, reader=US, read=ours("POST", path, protocol, body), relayed=relayed)


ROWS: Final = [
    alone(RESPONSES, "openai, `create(stream=True)`", openai_responses, "openai"),
    beneath(RESPONSES, "openai", openai_responses, "openai"),
    us(RESPONSES, "/v1/responses", OpenAIResponses(), {"model": "m", "input": "Count.", "background": True, "stream": True}),
    alone(CHAT, "openai, `create(stream=True)`", openai_chat, "openai"),
    alone(CHAT, "openai, `.stream()`", openai_chat_helper, "openai"),
    beneath(CHAT, "openai, `.stream()`,", openai_chat_helper, "openai"),
    Row(wire=CHAT, reader='requests-sse, `method="POST"`', read=requests_sse_chat, packages=["requests-sse", "requests"]),
    us(CHAT, "/v1/chat/completions", OpenAIChat(), CHAT_BODY),
    alone(MESSAGES, "anthropic, `create(stream=True)`", anthropic_messages, "anthropic"),
    alone(MESSAGES, "anthropic, `.stream()`", anthropic_helper, "anthropic"),
    beneath(MESSAGES, "anthropic, `.stream()`,", anthropic_helper, "anthropic"),
    us(MESSAGES, "/v1/messages", AnthropicMessages(), {**CHAT_BODY, "max_tokens": TOKENS}),
    alone(GEMINI, "google-genai", google_genai, "google-genai"),
    beneath(GEMINI, "google-genai", google_genai, "google-genai"),
    us(GEMINI, "/v1beta/models/m:streamGenerateContent?alt=sse", GeminiGenerate(), ASK_GEMINI),
    alone(INTERACTIONS, "google-genai", google_interactions, "google-genai"),
    beneath(INTERACTIONS, "google-genai", google_interactions, "google-genai"),
    us(INTERACTIONS, "/v1beta/interactions", GeminiInteractions(), {"model": "m", "input": "Count.", "stream": True}),
    Row(wire=PLAIN, reader="httpx-sse", read=httpx_sse, packages=["httpx-sse", "httpx"]),
    Row(wire=PLAIN, reader="httpx2, `iter_lines()`", read=httpx2_lines, packages=["httpx2"]),
    Row(wire=PLAIN, reader="sseclient-py", read=sseclient_py, packages=["sseclient-py", "requests"]),
    Row(wire=PLAIN, reader="requests-sse", read=requests_sse, packages=["requests-sse", "requests"]),
    Row(wire=PLAIN, reader=US, read=ours("GET", "/stream", LastEventID())),
]


PROPERLY: Final = "closed properly"


def drops(wire: Wire) -> dict[str, tuple[int, Way]]:
    """Where the body of an answer is cut, in bytes, and how."""
    whole = sum(map(len, wire.frames[: wire.behind]))
    half = whole + len(wire.frames[wire.behind]) // 2
    return {
        PROPERLY: (whole, "clean"),
        "closed inside an event": (half, "fin"),
        "reset": (whole, "rst"),
        "silence": (whole, "silence"),
    }


def cuts(wire: Wire) -> dict[str, Fault]:
    return {name: Fault.cut(after_bytes=after, how=way) for name, (after, way) in drops(wire).items()}


Leg = Literal["direct", "relayed", "bare", "behind"]
"""
What is between a client and an API: nothing; our transport and a relay; a relay alone. The client's connection is cut, or in
the last case that of the relay.
"""


@dataclass(slots=True)
class Run:
    """
    One client, one answer.

    Attributes:
        got: The text that the caller got; a row without a cut reads its own.
        error: The exception that the caller got.
        requests: The requests to the API: method, and path with query.
        fetched: Through the relay alone: whether the relay has the whole answer.
    """

    row: Row
    cut: str | None
    leg: Leg = "direct"
    mount: str = ""
    server: Any = None
    got: list[str] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0.0
    done: bool = False
    requests: list[str] = field(default_factory=list)
    fetched: bool = False

    def serve(self) -> FlakyServer:
        """The API, which must be up before the relay."""
        wire = WIRES[self.row.wire]()
        disturbed = self.cut is not None and self.leg in ("direct", "behind")
        self.server = wire.serve(cuts(wire)[self.cut] if disturbed and self.cut is not None else None)
        return self.server

    def go(self, relay: str, latest: float) -> None:
        """Run it, and abandon it if it hangs; `latest` is the monotonic time by which it must be over."""
        start = time.monotonic()
        with self._network(relay) as (where, network):
            reader = threading.Thread(target=self._read, args=(where,), daemon=True)
            reader.start()
            reader.join(max(0.0, min(BOUND, latest - start)))
            self.done = not reader.is_alive()
            self.seconds = time.monotonic() - start
            # Copied now: closing the server wakes a hanging client.
            self.got = list(self.got)
            self.requests = [f"{asked.method} {asked.url.removeprefix(self.server.origin)}" for asked in self.server.requests]
            if self.leg == "bare" and network is not None:
                self.fetched = self._fetch(network)

    @contextlib.contextmanager
    def _network(self, relay: str) -> Iterator[tuple[Any, DroppingProxy | None]]:
        """The address of the client's API, and what cuts its connection."""
        if self.leg == "direct":
            yield self.server, None
            return
        wire, network = WIRES[self.row.wire](), DroppingProxy(int(relay.rpartition(":")[2]))
        ours = [drops(wire)[self.cut]] if self.cut is not None and self.leg != "behind" else []
        network.drop(lambda seen: seen.method == "POST", *ours)
        try:
            yield SimpleNamespace(origin=network.url + self.mount), network
        finally:
            network.close()

    def _fetch(self, network: DroppingProxy) -> bool:
        import httpx2

        place = f"{network.url}{network.heads[0]['content-location']}?view=verbatim"
        answer = httpx2.get(place, headers=KEY, timeout=BOUND, trust_env=False)
        return bool(answer.content == b"".join(WIRES[self.row.wire]().frames))

    def _read(self, where: Any) -> None:
        read = self.row.relayed if self.leg == "relayed" else self.row.read
        assert read is not None
        try:
            read(where, self.got)
        except BaseException as error:
            self.error = error

    @property
    def tokens(self) -> list[str]:
        return "".join(self.got).split()

    @property
    def posts(self) -> int:
        return sum(request.startswith("POST ") for request in self.requests)

    @property
    def whole(self) -> bool:
        return self.done and self.error is None and self.tokens == "".join(WORDS).split()

    def outcome(self) -> str:
        tokens, count = self.tokens, len(self.tokens)
        if tokens != "".join(WORDS).split()[:count]:
            return f"{count}, not the same"
        if not self.done:
            return f"{count}, waiting after {self.seconds:.0f} s"
        if self.error is not None:
            return f"{count}, `{type(self.error).__qualname__}`"
        return f"**{count}**" if self.whole else f"{count}, no error"


def installed(row: Row) -> bool:
    """
    Whether the row's packages are there.

    They are imported here, one after another: in many threads at once, an import can find half a module, and it takes time that a
    run with a timeout of a second does not have.
    """
    for name in row.packages:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            print(f"left out: {row.wire} / {row.reader}: pip install {name}")
            return False
    return True


def run(rows: Iterable[Row]) -> list[Run]:
    """Every row with every cut and without one, directly and through a relay."""
    runs: list[Run] = []
    for row in rows:
        kinds = (None, *cuts(WIRES[row.wire]()))
        runs += [Run(row, cut) for cut in kinds]
        runs += [Run(row, cut, "relayed") for cut in kinds if row.relayed is not None]
        runs += [Run(row, PROPERLY, leg) for leg in ("bare", "behind") if row.bare]
    with contextlib.ExitStack() as stack:
        relay, upstreams = "", {}
        for n, each in enumerate(runs):
            server = stack.enter_context(each.serve())
            if each.leg != "direct":
                each.mount = f"/{n}"
                upstreams[each.mount] = server.origin
        if upstreams:
            relay = stack.enter_context(relaying(upstreams))
        latest = time.monotonic() + DEADLINE
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(each.go, relay, latest) for each in runs]:
                done.result()
    return runs


def table(runs: Sequence[Run]) -> str:
    """One line per client. Its POSTs are those of each cut run, or a range."""
    kinds = list(dict.fromkeys(each.cut for each in runs if each.cut is not None))
    lines = [f"| wire | read with | {' | '.join(kinds)} | POSTs | through the relay |", "|---" * (len(kinds) + 4) + "|"]
    above = ""
    for row, mine in by_row(runs, "direct"):
        posts = sorted({each.posts for each in mine.values()})
        cells = [mine[kind].outcome() for kind in kinds]
        paid = "–".join(map(str, dict.fromkeys((posts[0], posts[-1]))))
        through = [each for each in runs if each.row is row and each.leg == "relayed" and each.cut is not None]
        wire = "" if row.wire == above else row.wire
        lines.append(f"| {wire} | {row.reader} | {' | '.join(cells)} | {paid} | {relayed_cell(through)} |")
        above = row.wire
    return "\n".join(lines)


def relayed_cell(through: Sequence[Run]) -> str:
    """The results of all cuts, or one if they are the same."""
    found = {each.cut: each.outcome() + ("" if each.posts == 1 else f", {each.posts} POSTs") for each in through}
    if not found:
        return "—"
    same = len(set(found.values())) == 1
    return next(iter(found.values())) if same else "; ".join(f"{cut}: {outcome}" for cut, outcome in found.items())


def alone_table(runs: Sequence[Run]) -> str:
    lines = ["| wire | unmodified | provider to relay is cut | relay to SDK is cut | fetched |", "|---" * 5 + "|"]
    above = ""
    behind = dict(by_row(runs, "behind"))
    for row, mine in by_row(runs, "bare"):
        cut, other = mine[PROPERLY], behind[row][PROPERLY]
        wire = "" if row.wire == above else row.wire
        fetched = f"**{TOKENS}**" if cut.fetched else "not the same"
        lines.append(f"| {wire} | {row.reader} | {other.outcome()} | {cut.outcome()} | {fetched} |")
        above = row.wire
    return "\n".join(lines)


def by_row(runs: Sequence[Run], leg: Leg) -> list[tuple[Row, dict[str, Run]]]:
    """The runs that were cut, by what cut them."""
    found: dict[Row, dict[str, Run]] = {}
    for each in runs:
        if each.leg == leg and each.cut is not None:
            found.setdefault(each.row, {})[each.cut] = each
    return list(found.items())


def measured(runs: Sequence[Run]) -> str:
    named = ["resumable-stream-sdk", *dict.fromkeys(name for each in runs for name in each.row.packages)]
    versions = ", ".join(f"{name} {version(name)}" for name in named)
    python = ".".join(map(str, sys.version_info[:3]))
    stamp = f"Measured on {datetime.now(UTC):%Y-%m-%d} with Python {python}, {versions}."
    text = f"{stamp}\n{LEGEND}\n\n{table(runs)}"
    return f"{text}\n\n{ALONE}\n\n{alone_table(runs)}" if by_row(runs, "bare") else text


def write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name} has no {BEGIN} … {END}")
    PAGE.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show what each client makes of an answer that is cut in the middle.")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="only these wires or clients")
    parser.add_argument("--details", action="store_true", help="also show each run's requests, seconds and error")
    parser.add_argument("--write", action="store_true", help="put the table into docs/compare.md")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if any(fnmatch(f"{row.wire} {row.reader}", pattern) for pattern in options.rows)]
    if not rows:
        parser.error("no such row; there are: " + "; ".join(f"{row.wire} {row.reader}" for row in ROWS))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    start = time.monotonic()
    rows = [row for row in rows if installed(row)]
    if options.write and len(rows) < len(ROWS):
        parser.error("--write writes the whole table: install every client, and omit --rows")
    runs = run(rows)
    if options.details:
        for each in runs:
            name = f"{each.row.wire} / {each.row.reader} / {each.leg} / {each.cut or 'no cut'}"
            print(f"{name}: {each.outcome()}, {each.seconds:.1f} s")
            print(f"    {'; '.join(each.requests)}")
            if each.error is not None:
                print(f"    {type(each.error).__name__}: {each.error}")
    broken = [each for each in runs if each.cut is None and not each.whole]
    for each in broken:
        name = f"{each.row.wire} / {each.row.reader} / {each.leg}"
        print(f"{name}: an answer without a cut was not read whole: {each.outcome()}, {each.error!r}")
    if broken:
        return 1
    text = measured(runs)
    print(text)
    print(f"\n{len(runs)} runs in {time.monotonic() - start:.1f} s")
    if options.write:
        write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
