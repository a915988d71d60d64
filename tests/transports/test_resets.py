"""An event that makes void what came before goes to a reader of bytes only if it says so itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

import resumable_stream as rs

from .conftest import CUTS, Reply, Rig, cut

URL = "https://agent.example.com/rpc"
START = {"jsonrpc": "2.0", "id": "c-1", "method": "SendStreamingMessage", "params": {"message": {}}}


def block(result: dict[str, Any], name: str = "c-1") -> bytes:
    return b"data: " + json.dumps({"jsonrpc": "2.0", "id": name, "result": result}).encode() + b"\r\n\r\n"


def task(state: str, text: str = "") -> dict[str, Any]:
    artifacts = [{"artifactId": "a", "parts": [{"text": text}]}] if text else []
    return {"task": {"id": "t-1", "status": {"state": f"TASK_STATE_{state}"}, "artifacts": artifacts}}


def piece(text: str) -> dict[str, Any]:
    return {"artifactUpdate": {"taskId": "t-1", "artifact": {"artifactId": "a", "parts": [{"text": text}]}, "append": True}}


DONE = {"statusUpdate": {"taskId": "t-1", "status": {"state": "TASK_STATE_COMPLETED"}}}
FIRST = b"".join(block(each) for each in (task("WORKING"), piece("Hel"), piece("lo"), DONE))


@pytest.mark.parametrize("how", CUTS)
async def test_a_task_of_a2a_stands_for_what_came_before_it(rig: Rig, how: str) -> None:
    def answer(request: Any) -> Reply:
        call = json.loads(request.content)
        if call["method"] == "SendStreamingMessage":
            return cut(FIRST, len(FIRST) - 200, how, 17)
        assert call["method"] == "SubscribeToTask"
        return Reply([block(task("WORKING", "Hello"), call["id"]), block(DONE, call["id"])])

    response, chunks = await rig.read(rig.client(answer), "POST", URL, json=START)
    told = [json.loads(line[6:]) for line in b"".join(chunks).splitlines() if line]
    assert [each["result"] for each in told[-2:]] == [task("WORKING", "Hello"), DONE]
    # A JSON-RPC client may look at the ids: they are those of its own request.
    assert {each["id"] for each in told} == {"c-1"}
    assert rs.stream_of(response).outcome is rs.Outcome.COMPLETED


async def test_a_task_that_ended_meanwhile_stands_for_what_came_before_it(rig: Rig) -> None:
    def answer(request: Any) -> Reply:
        call = json.loads(request.content)
        match call["method"]:
            case "SendStreamingMessage":
                return cut(FIRST, len(FIRST) - 200, "rst", 17)
            case "SubscribeToTask":
                body: dict[str, Any] = {"error": {"code": -32004, "message": "the task is in a terminal state"}}
            case _:
                body = {"result": task("COMPLETED", "Hello")["task"]}
        return Reply(
            [json.dumps({"jsonrpc": "2.0", "id": call["id"], **body}).encode()], headers={"content-type": "application/json"}
        )

    _, chunks = await rig.read(rig.client(answer), "POST", URL, json=START)
    told = [json.loads(line[6:]) for line in b"".join(chunks).splitlines() if line]
    assert told[-1] == {"jsonrpc": "2.0", "id": "c-1", "result": task("COMPLETED", "Hello")}


async def test_an_update_in_place_of_the_task_cannot_be_told_in_bytes(rig: Rig) -> None:
    """Servers of v0.3 go on with the next update, and say nothing of those that were missed."""

    def answer(request: Any) -> Reply:
        first = json.loads(request.content)["method"] == "SendStreamingMessage"
        return cut(FIRST, len(FIRST) - 200, "rst", 17) if first else Reply([block(piece("!")), block(DONE)])

    chunks: list[bytes] = []
    client = rig.client(answer)
    response = await rig.send(client, "POST", URL, json=START)
    with pytest.raises(rig.module.RemoteProtocolError) as caught:
        await rig.drain(response, chunks)
    await rig.close(response)
    assert isinstance(caught.value, rs.StreamReset)
    assert b"!" not in b"".join(chunks)


async def test_an_error_behind_a_resume_is_handed_on(rig: Rig) -> None:
    error = b'data: {"jsonrpc":"2.0","id":"c-1","error":{"code":-32603,"message":"broken"}}\r\n\r\n'

    def answer(request: Any) -> Reply:
        first = json.loads(request.content)["method"] == "SendStreamingMessage"
        return cut(FIRST, len(FIRST) - 200, "rst", 17) if first else Reply([error])

    _, chunks = await rig.read(rig.client(answer), "POST", URL, json=START)
    assert b"".join(chunks).endswith(error)
