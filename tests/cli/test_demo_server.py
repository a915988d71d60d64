"""`resumable-stream demo --server`: one generation, three readers, told by a process of its own, and how it is drawn."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from resumable_stream._cli.app import app
from resumable_stream._cli.hub_mission import TOTAL, HubMission, HubPace, Note
from resumable_stream._cli.hub_shown import HubPlainReporter, draw_hub
from resumable_stream._cli.story import digest, tokens

DEMO = [sys.executable, "-m", "resumable_stream", "demo", "--server", "--fast"]


@pytest.fixture(scope="module")
def plain() -> subprocess.CompletedProcess[str]:
    """The demo through a pipe, once for all tests; a forced colour must not reach a pipe either."""
    env = os.environ | {"FORCE_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(DEMO, capture_output=True, text=True, encoding="utf-8", env=env, check=False, timeout=200)


def test_the_story_is_told_in_plain_lines(plain: subprocess.CompletedProcess[str]) -> None:
    assert (plain.returncode, plain.stderr) == (0, "")
    assert not re.search(r"[^\x20-\x7e\n]", plain.stdout)
    order = [
        "one generation, 600 tokens, three readers",
        "reader 1 posts, which starts the generation",
        "reader 2 joins, in a separate process",
        "reader 2 is killed at token 200 (kill -9)",
        "reader 2 returns with only its last id, ",
        "reader 2 continues at token 201",
    ]
    places = [plain.stdout.index(words) for words in order]
    assert places == sorted(places)
    assert re.search(r"its last id, [a-z2-7]+\.200\n", plain.stdout)
    written = re.search(r"reader 3 comes when (\d+) are written, and reads from the start", plain.stdout)
    assert written and 380 <= int(written[1]) <= 600
    assert "the generation has ended: 600 tokens" in plain.stdout


def test_all_have_the_same_text(plain: subprocess.CompletedProcess[str]) -> None:
    found = re.findall(r"^(sent|reader \d) +sha256 ([0-9a-f]{64})$", plain.stdout, re.MULTILINE)
    assert [name for name, _ in found] == ["sent", "reader 1", "reader 2", "reader 3"]
    assert {value for _, value in found} == {digest("".join(tokens()[:TOTAL]))}
    assert plain.stdout.endswith("result       identical\n")


def test_ctrl_c_ends_it_and_its_process() -> None:
    # At its usual pace, in which reader 2 lives for seconds.
    with subprocess.Popen(
        DEMO[:-1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        while "reader 2 joins" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        # The pipe ends when nobody holds it any more.
        out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert "killed" not in out


def test_a_difference_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resumable_stream._cli.hub_mission.HubMission.run", lambda self: False)
    assert CliRunner().invoke(app, ["demo", "--server"]).exit_code == 1


def test_a_reader_that_fails_is_an_error_and_not_a_wait() -> None:
    mission = HubMission(HubPace.fast(), HubPlainReporter())

    def fail(lane: object) -> None:
        raise ConnectionError("nobody is there")

    mission._post = fail  # type: ignore[method-assign]
    with pytest.raises(ConnectionError, match="nobody is there"):
        mission.run()


def test_a_text_that_differs_is_seen() -> None:
    mission = HubMission(HubPace.fast(), HubPlainReporter())
    for lane in mission.lanes:
        for token in tokens()[:TOTAL]:
            lane.take(token)
    mission.lanes[1].take("!")
    for lane in mission.lanes:
        lane.end()
    assert not mission.identical
    console = Console(file=io.StringIO(), width=80, height=24)
    console.print(draw_hub(mission, width=80, height=24))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert (shown.count("✔"), shown.count("✘")) == (2, 1)


IMPORTERS = ("resumable_stream.server.asgi", "resumable_stream.server._starlette")


@pytest.mark.parametrize("missing", ["uvicorn", "starlette"])
def test_without_the_extra_the_message_names_it(missing: str, app_without: Callable[..., Any]) -> None:
    done = CliRunner().invoke(app_without(missing, *IMPORTERS), ["demo", "--server"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"error: demo --server needs {missing}: pip install 'resumable-stream-sdk[server]'\n"


@pytest.mark.parametrize(("width", "height"), [(79, 20), (80, 24), (100, 30), (250, 90)])
@pytest.mark.parametrize("state", ["waiting", "reading", "killed", "ended"])
def test_a_frame_fits_and_has_the_same_height_in_every_state(state: str, width: int, height: int) -> None:
    mission = HubMission(HubPace.fast(), HubPlainReporter())
    mission.url = "http://127.0.0.1:65535/streams/story-1"
    if state != "waiting":
        mission.written = TOTAL if state == "ended" else 300
        mission.log = tuple(Note(at=float(n), lane=n % 4, text=f"reader {n} " + "x" * 200) for n in range(9))
        for lane in mission.lanes:
            lane.state = state  # type: ignore[assignment]
            for token in tokens()[: mission.written]:
                lane.take(token)
            lane.cut_at = 200 if lane.number == 2 else None
            if state == "ended":
                lane.end()
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(draw_hub(mission, width=width, height=height))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert len(lines) == min(height - 2, 28)  # the command above and the prompt below stay in sight
