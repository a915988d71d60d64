"""
The transcripts of the protocols against the types that `openai`, `anthropic` and `google-genai` publish.

    event of a fake ──┬──► drift()  ──► [], or what KNOWN says and why
                      │
                      └──► the SDK's own accumulation  ==  the deltas of our protocol

A fake has each field that its published type requires. Whatever differs is drift: a field that is missing, a value of another
type, a field or an event that the SDK does not know. Types are compared strictly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import pytest

from tests.core.simulation import run
from tests.protocols import test_anthropic_messages as messages
from tests.protocols import test_anthropic_session as session
from tests.protocols import test_gemini_generate as generate
from tests.protocols import test_gemini_interactions as interactions
from tests.protocols import test_openai_chat as chat
from tests.protocols import test_openai_responses as responses

pydantic = pytest.importorskip("pydantic")
for needed in ("openai", "anthropic", "google.genai"):
    pytest.importorskip(needed)

# Not skipped: a package that has moved them has drifted.
openai = import_module("openai")
openai_responses = import_module("openai.types.responses")
openai_responses_state = import_module("openai.lib.streaming.responses")
openai_chat = import_module("openai.types.chat")
openai_chat_state = import_module("openai.lib.streaming.chat")
anthropic = import_module("anthropic.types")
anthropic_beta = import_module("anthropic.types.beta")
anthropic_sessions = import_module("anthropic.types.beta.sessions")
anthropic_sessions_state = import_module("anthropic.lib.sessions")
anthropic_messages_state = import_module("anthropic.lib.streaming._messages")
genai = import_module("google.genai.types")
genai_interactions = import_module("google.genai.interactions")

pytestmark = pytest.mark.integration

RESPONSES = pydantic.TypeAdapter(openai_responses.ResponseStreamEvent)
CHAT = pydantic.TypeAdapter(openai_chat.ChatCompletionChunk)
MESSAGES = pydantic.TypeAdapter(anthropic.RawMessageStreamEvent)
BETA_MESSAGES = pydantic.TypeAdapter(anthropic_beta.BetaRawMessageStreamEvent)
SESSION = pydantic.TypeAdapter(anthropic_sessions.BetaManagedAgentsStreamSessionEvents)
GENERATE = pydantic.TypeAdapter(genai.GenerateContentResponse)
# By event: the union takes an event that it does not know.
INTERACTIONS = {
    "interaction.created": pydantic.TypeAdapter(genai_interactions.InteractionCreatedEvent),
    "interaction.status_update": pydantic.TypeAdapter(genai_interactions.InteractionStatusUpdate),
    "interaction.completed": pydantic.TypeAdapter(genai_interactions.InteractionCompletedEvent),
    "step.start": pydantic.TypeAdapter(genai_interactions.StepStart),
    "step.delta": pydantic.TypeAdapter(genai_interactions.StepDelta),
    "step.stop": pydantic.TypeAdapter(genai_interactions.StepStop),
    "error": pydantic.TypeAdapter(genai_interactions.ErrorEvent),
}


# --- what they have beyond the types ----------------------------------------------------------------------------------

# Events, with what differs and why it may. The list is exact: what is repaired must leave it.
KNOWN: dict[str, list[str]] = {
    # Documented, and sent at any time; the SDK skips it before it is typed.
    "ping": ["not published"],
    # Documented (`stream_options.include_obfuscation`), in every delta unless it is refused.
    "obfuscation": ["obfuscation: not published"],
    # A field of vLLM and others, which OpenAI does not publish.
    "chunk:reasoning_content": ["choices.0.delta.reasoning_content: not published"],
}


def kind_of(event: Mapping[str, Any]) -> str:
    """The type of an event, and of its part where it has one."""
    kind = str(event.get("type") or event.get("event_type") or "")
    if kind:
        parts = (event.get(name) for name in ("delta", "content_block", "stop_reason", "item"))
        inner = next((part["type"] for part in parts if isinstance(part, dict) and "type" in part), None)
        return f"{kind}:{inner}" if inner else kind
    if "candidates" in event:
        return f"part:{next(iter(event['candidates'][0]['content']['parts'][0]))}"
    if "usage" in event:
        return "chunk:usage"
    return f"chunk:{next(iter(event['choices'][0]['delta']), event['choices'][0]['finish_reason'])}"


def events(data: Iterable[Any]) -> list[dict[str, Any]]:
    """A transcript without the sentinel, which is no JSON."""
    return [json.loads(item) if isinstance(item, str) else item for item in data if item != "[DONE]"]


def cases(*transcripts: Iterable[Any]) -> pytest.MarkDecorator:
    rows = [event for transcript in transcripts for event in events(transcript)]
    ids = [f"{number:02}-{kind_of(event)}" for number, event in enumerate(rows)]
    return pytest.mark.parametrize("event", rows, ids=ids)


# --- what differs ---------------------------------------------------------------------------------------------------


def drift(event: Mapping[str, Any], published: Any) -> list[str]:
    """Where an event differs from its published type."""
    try:
        value = published.validate_json(json.dumps(event), strict=True)
    except pydantic.ValidationError as error:
        return told(error.errors()) or ["not published"]
    return [f"{'.'.join(path)}: not published" for path in beyond(value)]


def told(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """The errors of a union without those of the members that bear another name."""
    names = [each["loc"] for each in errors if each["type"] == "literal_error"]
    others = [name[:-1] for name in names if name[-1] == "type"]
    near = [each for each in errors if not any(each["loc"][: len(other)] == other for other in others)]
    return [f"{'.'.join(map(str, each['loc']))}: {each['type']}" for each in near]


def beyond(value: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Fields, and members of open unions, that the SDK takes without knowing them."""
    if isinstance(value, pydantic.BaseModel):
        if getattr(value, "is_unknown", False):
            yield path
        for name in value.model_extra or {}:
            yield (*path, name)
        for name in type(value).model_fields:
            yield from beyond(getattr(value, name), *path, name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from beyond(item, *path, str(index))


def check(event: Mapping[str, Any], published: Any) -> None:
    known = KNOWN["obfuscation"] if "obfuscation" in event else KNOWN.get(kind_of(event), [])
    assert drift(event, published) == known


def test_every_excuse_is_used() -> None:
    """What no fake needs any more must leave the lists."""
    data: list[Iterable[Any]] = [responses.LOG, chat.PAYLOADS, messages.DATA, session.LOG, generate.DATA, interactions.DATA]
    kinds = {kind_of(event) for each in data for event in events(each)}
    assert KNOWN.keys() - kinds == {"obfuscation"}


@cases(responses.LOG, responses.LIVE, run(responses.stream(responses.Responses())).data)
def test_openai_responses(event: dict[str, Any]) -> None:
    check(event, RESPONSES)


@cases(chat.PAYLOADS)
def test_openai_chat(event: dict[str, Any]) -> None:
    check(event, CHAT)


@cases(messages.DATA)
def test_anthropic_messages(event: dict[str, Any]) -> None:
    check(event, MESSAGES)


@pytest.mark.parametrize("reason", messages.EARLY)
def test_anthropic_messages_that_stop_early(reason: str) -> None:
    # Of the beta API: it has the reasons of both.
    for raw in messages.closing(reason):
        check(json.loads(raw.partition(b"data: ")[2]), BETA_MESSAGES)


@cases(session.LOG)
def test_anthropic_session(event: dict[str, Any]) -> None:
    check(event, SESSION)


@cases(generate.DATA)
def test_gemini_generate(event: dict[str, Any]) -> None:
    check(event, GENERATE)


@cases(interactions.DATA)
def test_gemini_interactions(event: dict[str, Any]) -> None:
    check(event, INTERACTIONS[event["event_type"]])


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "incomplete", "budget_exceeded"])
def test_gemini_interactions_that_end(status: str) -> None:
    event = json.loads(interactions.completed(status).partition(b"data: ")[2])
    check(event, INTERACTIONS["interaction.completed"])


@pytest.mark.parametrize(
    ("published", "event", "found"),
    [
        (RESPONSES, {"type": "response.cancelled", "sequence_number": 1}, ["not published"]),
        (CHAT, {**chat.HEAD, "id": 5, "choices": []}, ["id: string_type"]),
        (MESSAGES, {"type": "content_block_stop", "index": "0"}, ["RawContentBlockStopEvent.index: int_type"]),
        (MESSAGES, {"type": "message_stop", "seq": 1}, ["seq: not published"]),
        (SESSION, {"type": "session.deleted", "id": "e"}, ["BetaManagedAgentsSessionDeletedEvent.processed_at: missing"]),
        (GENERATE, {"candidate": []}, ["candidate: extra_forbidden"]),
        (INTERACTIONS["step.delta"], {"event_type": "step.delta", "index": 0, "delta": {"type": "x"}}, ["delta: not published"]),
        (INTERACTIONS["step.stop"], {"event_type": "step.stop", "index": "0"}, ["index: int_type"]),
    ],
)
def test_drift_is_seen(published: Any, event: dict[str, Any], found: list[str]) -> None:
    assert drift(event, published) == found


# --- the text -------------------------------------------------------------------------------------------------------


def text(stream: Any, kind: str = "text") -> str:
    """What our protocol reads, over the whole transcript."""
    result = run(stream)
    assert result.error is None
    protocol = stream.machine.protocol
    return "".join(delta.text for event in result.events for delta in protocol.deltas(event) if delta.kind == kind)


def typed(data: Iterable[Any], published: Any) -> list[Any]:
    return [published.validate_python(event) for event in events(data)]


def test_the_text_of_openai_responses() -> None:
    # The SDK takes no content of an item, or of a part, that was not opened; the fake opens the first item alone.
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    call = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "w", "arguments": ""}
    opened = [
        {"type": "response.output_item.added", "sequence_number": 0, "output_index": 1, "item": item},
        {
            "type": "response.content_part.added",
            "sequence_number": 0,
            "output_index": 1,
            "content_index": 0,
            "item_id": "msg_1",
            "part": part,
        },
        {"type": "response.output_item.added", "sequence_number": 0, "output_index": 2, "item": call},
    ]
    state = openai_responses_state.ResponseStreamState(input_tools=openai.omit, text_format=openai.omit)
    rows = typed([*responses.LOG[:4], *opened, *responses.LOG[4:-1]], RESPONSES)
    read = {each.type: each for row in rows for each in state.handle_event(row)}
    answer = read["response.output_text.delta"].snapshot
    assert text(responses.stream(responses.Responses())) == answer == read["response.output_text.done"].text
    assert text(responses.stream(responses.Responses()), "tool") == read["response.function_call_arguments.delta"].snapshot
    assert openai_responses.Response.construct(**responses.RESULT).output_text == answer


def test_the_text_of_openai_chat() -> None:
    # The SDK takes no arguments of a call that was not opened.
    calls = [
        {"index": index, "id": f"c{index}", "type": "function", "function": {"name": "w", "arguments": ""}} for index in (0, 1)
    ]
    opened = {**chat.HEAD, "choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]}
    rows = events(chat.PAYLOADS)
    state = openai_chat_state.ChatCompletionStreamState()
    for chunk in typed([rows[0], opened, *rows[1:]], CHAT):
        state.handle_chunk(chunk)
    message = state.current_completion_snapshot.choices[0].message
    assert text(chat.reply(*chat.FRAMES)) == message.content
    assert text(chat.reply(*chat.FRAMES), "refusal") == message.refusal
    assert text(chat.reply(*chat.FRAMES), "tool") == message.tool_calls[1].function.arguments


def test_the_text_of_anthropic_messages() -> None:
    message: Any = None
    buffers: dict[int, bytes] = {}
    for event in typed([event for event in events(messages.DATA) if event["type"] != "ping"], MESSAGES):
        message = anthropic_messages_state.accumulate_event(event=event, current_snapshot=message, json_bufs=buffers)
    thinking, answer, call = message.content
    assert text(messages.stream(messages.API())) == answer.text
    assert text(messages.stream(messages.API()), "reasoning") == thinking.thinking
    assert json.loads(text(messages.stream(messages.API()), "tool")) == call.input


def test_the_text_of_an_anthropic_session() -> None:
    final: dict[str, str] = {}
    snapshot = None
    for event in typed(session.LOG, SESSION):
        snapshot = anthropic_sessions_state.accumulate_managed_agents_event(snapshot, event)
        if snapshot is not None:
            final[snapshot.id] = "".join(block.text for block in snapshot.content)
    assert text(session.stream(session.API())) == "".join(final.values())


def test_the_text_of_gemini_generate() -> None:
    # Without the call, whose signature the SDK refuses to read.
    rows = [event for event in events(generate.DATA) if kind_of(event) not in KNOWN]
    assert text(generate.stream(generate.API())) == "".join(chunk.text or "" for chunk in typed(rows, GENERATE))


def test_the_text_of_gemini_interactions() -> None:
    rows = [event for event in events(interactions.DATA) if event["event_type"] == "step.delta"]
    deltas = [row.delta for row in typed(rows, INTERACTIONS["step.delta"])]
    assert text(interactions.stream(interactions.API())) == "".join(delta.text for delta in deltas if delta.type == "text")
