"""The stream below is found wherever an SDK keeps its response."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import resumable_stream as rs

from .conftest import Reply, Rig


async def test_where_sdks_keep_the_response(rig: Rig) -> None:
    client = rig.client(lambda request: Reply([b"data: [DONE]\n\n"]))
    response, _ = await rig.read(client, "GET", "https://api.example.com/feed")
    stream = rs.stream_of(response)
    assert stream.outcome is rs.Outcome.COMPLETED
    openai = SimpleNamespace(response=response)
    litellm = SimpleNamespace(completion_stream=openai)
    for thing in (openai, SimpleNamespace(http_response=response), SimpleNamespace(_response=openai.response), litellm):
        assert rs.stream_of(thing) is stream


@pytest.mark.parametrize("thing", [None, object(), SimpleNamespace(response=None), SimpleNamespace(completion_stream=iter(""))])
def test_what_has_none(thing: Any) -> None:
    with pytest.raises(TypeError, match="expected a response of httpx or httpx2, or an object that has one"):
        rs.stream_of(thing)
