"""
Cut an answer of 300 tokens at token 150, and see what each client makes of it.

    make compare
    python benchmarks/compare.py --write
    python benchmarks/compare.py --rows 'OpenAI*' --details

Every cell is a run of its own: a `FlakyServer` that speaks the provider's wire, real sockets, a fresh client with its retries as
they come. Only the first answer is cut; the server goes on wherever the provider's API can, so whoever asks for the rest gets it.
Before that every client must read an undisturbed answer whole, or nothing is reported.

Several cells run at the same time: nothing is timed here, and those that wait would otherwise wait one after the other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from wires import ASK, TOKENS, WORDS, Wire, chat, gemini, interactions, messages, plain, responses

import resumable_stream as rs
from resumable_stream.protocols import (
    AnthropicMessages,
    GeminiGenerate,
    GeminiInteractions,
    LastEventID,
    OpenAIChat,
    OpenAIResponses,
)
from resumable_stream.testing import Fault, FlakyServer

TIMEOUT: Final = 1.0  # seconds without a byte, given to every client: the defaults are up to ten minutes, or none
BOUND: Final = 25.0  # seconds for one run: requests-sse waits 10 before it connects again
DEADLINE: Final = 45.0  # seconds for all of them, so that the script ends within a minute
AT_ONCE: Final = 16  # runs: more of them would keep each other waiting longer than TIMEOUT
PAGE: Final = Path(__file__).parents[1] / "docs" / "compare.md"
PACKAGES: Final = {  # distribution: what it is imported as
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
    "A cell has the number of tokens that came, and what was raised behind them.\n"
    "**Bold** is the whole answer; *not the same* means that events were repeated or lost."
)
BEGIN: Final = "<!-- measured: begin -->"
END: Final = "<!-- measured: end -->"


# --- the clients: each reads an answer as its README does, and appends the text that the caller gets


Read = Callable[[FlakyServer, list[str]], None]
CHAT_BODY: Final = {"model": "m", "messages": ASK, "stream": True}
ASK_GEMINI: Final = {"contents": [{"role": "user", "parts": [{"text": "Count."}]}]}


def over(read: Callable[..., None]) -> Read:
    """The same SDK in the same words, over our transport."""

    def through(server: FlakyServer, got: list[str]) -> None:
        from resumable_stream.transports.httpx2 import ResumableTransport

        read(server, got, ResumableTransport())

    return through


def openai_client(server: FlakyServer, transport: Any) -> Any:
    import openai

    http = openai.DefaultHttpxClient(transport=transport) if transport else None
    return openai.OpenAI(api_key="none", base_url=f"{server.origin}/v1", timeout=TIMEOUT, http_client=http)


def openai_responses(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with openai_client(server, transport) as client:
        for event in client.responses.create(model="m", input="Count.", background=True, stream=True):
            if event.type == "response.output_text.delta":
                got.append(event.delta)


def openai_chat(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with openai_client(server, transport) as client:
        for chunk in client.chat.completions.create(model="m", messages=ASK, stream=True):
            got.append(chunk.choices[0].delta.content or "")


def openai_chat_helper(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with openai_client(server, transport) as client, client.chat.completions.stream(model="m", messages=ASK) as stream:
        for event in stream:
            if event.type == "content.delta":
                got.append(event.delta)
        got[:] = [stream.get_final_completion().choices[0].message.content or ""]


def anthropic_client(server: FlakyServer, transport: Any) -> Any:
    import anthropic

    http = anthropic.DefaultHttpxClient(transport=transport) if transport else None
    return anthropic.Anthropic(api_key="none", base_url=server.origin, timeout=TIMEOUT, http_client=http)


def anthropic_messages(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with anthropic_client(server, transport) as client:
        for event in client.messages.create(model="m", max_tokens=TOKENS, messages=ASK, stream=True):
            if event.type == "content_block_delta":
                got.append(event.delta.text)


def anthropic_helper(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with (
        anthropic_client(server, transport) as client,
        client.messages.stream(model="m", max_tokens=TOKENS, messages=ASK) as stream,
    ):
        for text in stream.text_stream:
            got.append(text)
        got[:] = [stream.get_final_message().content[0].text]


def google_client(server: FlakyServer, transport: Any) -> Any:
    from google import genai
    from google.genai import types

    arguments = {"transport": transport} if transport else None
    options = types.HttpOptions(base_url=server.origin, timeout=int(TIMEOUT * 1000), client_args=arguments)
    return genai.Client(api_key="none", http_options=options)


def google_interactions(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with google_client(server, transport) as client:
        for event in client.interactions.create(model="m", input="Count.", stream=True):
            if event.event_type == "step.delta":
                got.append(event.delta.text)


def google_genai(server: FlakyServer, got: list[str], transport: Any = None) -> None:
    with google_client(server, transport) as client:
        for chunk in client.models.generate_content_stream(model="m", contents="Count."):
            got.append(chunk.text or "")


def httpx_sse(server: FlakyServer, got: list[str]) -> None:
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(timeout=TIMEOUT) as client, connect_sse(client, "GET", server.url) as source:
        for event in source.iter_sse():
            if event.data == "[DONE]":
                return
            got.append(event.data)


def httpx2_lines(server: FlakyServer, got: list[str]) -> None:
    import httpx2

    with httpx2.Client(timeout=TIMEOUT) as client, client.stream("GET", server.url) as response:
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                got.append(line.removeprefix("data: "))


def sseclient_py(server: FlakyServer, got: list[str]) -> None:
    import requests
    import sseclient

    with requests.get(server.url, stream=True, timeout=TIMEOUT) as response:
        for event in sseclient.SSEClient(response).events():
            if event.data == "[DONE]":
                return
            got.append(event.data)


def requests_sse(server: FlakyServer, got: list[str]) -> None:
    from requests_sse import EventSource

    with EventSource(server.url, timeout=TIMEOUT) as source:
        for event in source:
            if event.data == "[DONE]":
                return
            got.append(event.data)


def requests_sse_chat(server: FlakyServer, got: list[str]) -> None:
    from requests_sse import EventSource

    url = f"{server.origin}/v1/chat/completions"
    with EventSource(url, method="POST", json=CHAT_BODY, timeout=TIMEOUT) as source:
        for event in source:
            if event.data == "[DONE]":
                return
            got.append(json.loads(event.data)["choices"][0]["delta"].get("content", ""))


def ours(method: str, path: str, protocol: rs.protocols.ResumeProtocol, body: dict[str, Any] | None = None) -> Read:
    def read(server: FlakyServer, got: list[str]) -> None:
        request: dict[str, Any] = {} if body is None else {"json": body}
        timeouts = rs.Timeouts(idle=TIMEOUT)
        try:
            with rs.connect(method, server.origin + path, protocol=protocol, timeouts=timeouts, **request) as stream:
                for text in stream.iter_text():
                    got.append(text)
        except rs.ResumableStreamError as error:
            got[:] = [error.text_so_far or ""]  # what a caller has who did not collect it
            raise

    return read


# --- the table


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    One line: a wire, and one who reads it.

    Attributes:
        packages: Distributions that it needs besides this one.
    """

    wire: str
    reader: str
    read: Read
    packages: Sequence[str] = ()


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
ROWS: Final = [
    Row(wire=RESPONSES, reader="openai, `create(stream=True)`", read=openai_responses, packages=["openai"]),
    Row(wire=RESPONSES, reader=f"openai {OVER}", read=over(openai_responses), packages=["openai"]),
    Row(
        wire=RESPONSES,
        reader=US,
        read=ours(
            "POST",
            "/v1/responses",
            OpenAIResponses(),
            {"model": "m", "input": "Count.", "background": True, "stream": True},
        ),
    ),
    Row(wire=CHAT, reader="openai, `create(stream=True)`", read=openai_chat, packages=["openai"]),
    Row(wire=CHAT, reader="openai, `.stream()`", read=openai_chat_helper, packages=["openai"]),
    Row(wire=CHAT, reader=f"openai, `.stream()`, {OVER}", read=over(openai_chat_helper), packages=["openai"]),
    Row(wire=CHAT, reader='requests-sse, `method="POST"`', read=requests_sse_chat, packages=["requests-sse", "requests"]),
    Row(wire=CHAT, reader=US, read=ours("POST", "/v1/chat/completions", OpenAIChat(), CHAT_BODY)),
    Row(wire=MESSAGES, reader="anthropic, `create(stream=True)`", read=anthropic_messages, packages=["anthropic"]),
    Row(wire=MESSAGES, reader="anthropic, `.stream()`", read=anthropic_helper, packages=["anthropic"]),
    Row(wire=MESSAGES, reader=f"anthropic, `.stream()`, {OVER}", read=over(anthropic_helper), packages=["anthropic"]),
    Row(
        wire=MESSAGES,
        reader=US,
        read=ours("POST", "/v1/messages", AnthropicMessages(), {**CHAT_BODY, "max_tokens": TOKENS}),
    ),
    Row(wire=GEMINI, reader="google-genai", read=google_genai, packages=["google-genai"]),
    Row(wire=GEMINI, reader=f"google-genai {OVER}", read=over(google_genai), packages=["google-genai"]),
    Row(
        wire=GEMINI,
        reader=US,
        read=ours("POST", "/v1beta/models/m:streamGenerateContent?alt=sse", GeminiGenerate(), ASK_GEMINI),
    ),
    Row(wire=INTERACTIONS, reader="google-genai", read=google_interactions, packages=["google-genai"]),
    Row(wire=INTERACTIONS, reader=f"google-genai {OVER}", read=over(google_interactions), packages=["google-genai"]),
    Row(
        wire=INTERACTIONS,
        reader=US,
        read=ours("POST", "/v1beta/interactions", GeminiInteractions(), {"model": "m", "input": "Count.", "stream": True}),
    ),
    Row(wire=PLAIN, reader="httpx-sse", read=httpx_sse, packages=["httpx-sse", "httpx"]),
    Row(wire=PLAIN, reader="httpx2, `iter_lines()`", read=httpx2_lines, packages=["httpx2"]),
    Row(wire=PLAIN, reader="sseclient-py", read=sseclient_py, packages=["sseclient-py", "requests"]),
    Row(wire=PLAIN, reader="requests-sse", read=requests_sse, packages=["requests-sse", "requests"]),
    Row(wire=PLAIN, reader=US, read=ours("GET", "/stream", LastEventID())),
]


def cuts(wire: Wire) -> dict[str, Fault]:
    whole = sum(map(len, wire.frames[: wire.behind]))
    return {
        "closed properly": wire.cut("clean"),
        "closed inside an event": Fault.cut(after_bytes=whole + len(wire.frames[wire.behind]) // 2, how="fin"),
        "reset": wire.cut("rst"),
        "silence": wire.cut("silence"),
    }


@dataclass(slots=True)
class Run:
    """
    One client, one answer.

    Attributes:
        got: The text, as the caller got it; a row without a cut reads its own.
        error: What was raised to the caller.
        requests: What the server was asked: method, and path with query.
    """

    row: Row
    cut: str | None
    got: list[str] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0.0
    done: bool = False
    requests: list[str] = field(default_factory=list)

    def go(self, latest: float) -> None:
        """Run it, and leave it where it hangs; `latest` is the monotonic time by which it has to be over."""
        wire = WIRES[self.row.wire]()
        start = time.monotonic()
        with wire.serve(None if self.cut is None else cuts(wire)[self.cut]) as server:
            reader = threading.Thread(target=self._read, args=(server,), daemon=True)
            reader.start()
            reader.join(max(0.0, min(BOUND, latest - start)))
            self.done = not reader.is_alive()
            self.seconds = time.monotonic() - start
            # Copied here: closing the server wakes a client that hangs.
            self.got = list(self.got)
            self.requests = [f"{request.method} {request.url.removeprefix(server.origin)}" for request in server.requests]

    def _read(self, server: FlakyServer) -> None:
        try:
            self.row.read(server, self.got)
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

    They are imported here, one after the other: in many threads at once an import can meet half a module,
    and it takes time that a run with a timeout of a second does not have.
    """
    for name in row.packages:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError:
            print(f"left out: {row.wire} / {row.reader}: pip install {name}")
            return False
    return True


def run(rows: Iterable[Row]) -> list[Run]:
    """Every row with every cut and without one."""
    runs = [Run(row, cut) for row in rows for cut in (None, *cuts(WIRES[row.wire]()))]
    latest = time.monotonic() + DEADLINE
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(each.go, latest) for each in runs]:
            done.result()
    return runs


def table(runs: Sequence[Run]) -> str:
    """One line per client. Its POSTs are those of each cut run, a range where these differ."""
    kinds = list(dict.fromkeys(each.cut for each in runs if each.cut is not None))
    lines = [f"| wire | read with | {' | '.join(kinds)} | POSTs |", "|---" * (len(kinds) + 3) + "|"]
    above = ""
    for row in dict.fromkeys((each.row.wire, each.row.reader) for each in runs):
        mine = {each.cut: each for each in runs if (each.row.wire, each.row.reader) == row and each.cut is not None}
        posts = sorted({each.posts for each in mine.values()})
        cells = [mine[kind].outcome() for kind in kinds]
        paid = "–".join(map(str, dict.fromkeys((posts[0], posts[-1]))))
        lines.append(f"| {'' if row[0] == above else row[0]} | {row[1]} | {' | '.join(cells)} | {paid} |")
        above = row[0]
    return "\n".join(lines)


def measured(runs: Sequence[Run]) -> str:
    named = ["resumable-stream-sdk", *dict.fromkeys(name for each in runs for name in each.row.packages)]
    versions = ", ".join(f"{name} {version(name)}" for name in named)
    python = ".".join(map(str, sys.version_info[:3]))
    stamp = f"Measured on {datetime.now(UTC):%Y-%m-%d} with Python {python}, {versions}."
    return f"{stamp}\n{LEGEND}\n\n{table(runs)}"


def write(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name} has no {BEGIN} … {END}")
    PAGE.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What becomes of an answer that is cut in the middle, client by client.")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="only these wires or clients")
    parser.add_argument("--details", action="store_true", help="also each run's requests, seconds and error")
    parser.add_argument("--write", action="store_true", help="put the table into docs/compare.md")
    options = parser.parse_args(arguments)
    rows = [row for row in ROWS if any(fnmatch(f"{row.wire} {row.reader}", pattern) for pattern in options.rows)]
    if not rows:
        parser.error("no such row; there are: " + "; ".join(f"{row.wire} {row.reader}" for row in ROWS))
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    start = time.monotonic()
    rows = [row for row in rows if installed(row)]
    if options.write and len(rows) < len(ROWS):
        parser.error("--write writes the whole table: install every client, and leave --rows out")
    runs = run(rows)
    if options.details:
        for each in runs:
            print(f"{each.row.wire} / {each.row.reader} / {each.cut or 'no cut'}: {each.outcome()}, {each.seconds:.1f} s")
            print(f"    {'; '.join(each.requests)}")
            if each.error is not None:
                print(f"    {type(each.error).__name__}: {each.error}")
    broken = [each for each in runs if each.cut is None and not each.whole]
    for each in broken:
        name = f"{each.row.wire} / {each.row.reader}"
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
