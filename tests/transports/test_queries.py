"""A resume asks for what the SDK asked for."""

from __future__ import annotations

from typing import Any

from .conftest import Reply, Rig, cut

RUN = "https://api.example.com/threads/7f1c0000-0000-4000-8000-000000000001/runs/7f1c0000-0000-4000-8000-000000000002"
EVENTS = [b'event: custom\r\ndata: {"n":%d}\r\nid: 176360000000%d-0\r\n\r\n' % (n, n) for n in range(1, 6)]
MODES = [("stream_mode", "custom"), ("stream_mode", "values"), ("x", "1")]


async def test_a_parameter_that_comes_twice_is_asked_for_twice_again(rig: Rig) -> None:
    """LangGraph filters a joined stream by the modes of that very request."""
    cuts = [(150, "rst")]

    def answer(request: Any) -> Reply:
        if not request.url.path.endswith("/stream"):
            return Reply([b'{"status":"success"}'], headers={"content-type": "application/json"})
        place = request.headers["last-event-id"]
        body = b"".join(event for event in EVENTS if place == "-1" or event.rpartition(b"id: ")[2] > place.encode())
        position, how = cuts.pop() if cuts else (len(body), "close")
        return cut(body, position, how, 50)

    client = rig.client(answer, client={"params": [("team", "a"), ("team", "b")]})
    _, chunks = await rig.read(client, "GET", f"{RUN}/stream", params=MODES, headers={"Last-Event-ID": "-1"})
    assert b"".join(chunks) == b"".join(EVENTS)
    asked = [request.url.params.multi_items() for request in rig.sent if request.url.path.endswith("/stream")]
    assert len(asked) > 1
    for params in asked:
        assert [pair for pair in params if pair[0] != "cancel_on_disconnect"] == [("team", "a"), ("team", "b"), *MODES]
