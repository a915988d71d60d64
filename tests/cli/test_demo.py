"""`resumable-stream demo`: the story, told by a process of its own, and how it is drawn."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

import resumable_stream as rs
from resumable_stream._cli.live import draw
from resumable_stream._cli.mission import LOST_AT, Entry, Mission, Pace
from resumable_stream._cli.plain import PlainReporter
from resumable_stream._cli.story import TOKENS, tokens

DEMO = [sys.executable, "-m", "resumable_stream", "demo", "--fast"]


@pytest.fixture(scope="module")
def plain() -> subprocess.CompletedProcess[str]:
    """The demo through a pipe, once for all tests; a forced colour must not reach a pipe either."""
    env = os.environ | {"FORCE_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(DEMO, capture_output=True, text=True, encoding="utf-8", env=env, check=False, timeout=200)


def test_the_story_is_told_in_plain_lines(plain: subprocess.CompletedProcess[str]) -> None:
    assert (plain.returncode, plain.stderr) == (0, "")
    assert not re.search(r"[^\x20-\x7e\n]", plain.stdout)
    order = [
        "1,247 of 2,000 tokens, then",
        "connected",
        "1,000 tokens",
        "lost at 1,247",
        "retry 2",
        "resumed at 1,248",
        "completed",
    ]
    places = [plain.stdout.index(words) for words in order]
    assert places == sorted(places)


def test_the_ledger_agrees_with_the_server(plain: subprocess.CompletedProcess[str]) -> None:
    rows = dict(re.findall(r"^(\w+) {2,}(.*)$", plain.stdout, re.MULTILINE))
    assert (rows["delivered"], rows["gaps"], rows["reconnects"]) == ("2,000", "0", "1")
    dropped, sent = re.findall(r"\d+", rows["duplicates"])
    assert dropped == sent
    assert 1 <= int(dropped) <= 3
    # Two waits; a busy machine takes longer.
    assert 0.8 <= float(rows["offline"].removesuffix(" s")) < 60.0


def test_the_hashes_are_identical(plain: subprocess.CompletedProcess[str]) -> None:
    sent, received = re.findall(r"sha256 ([0-9a-f]{64})", plain.stdout)
    assert sent == received
    assert plain.stdout.endswith("result       identical\n")


def test_ctrl_c_ends_it_without_a_traceback() -> None:
    process = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "250 tokens" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (130, "interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo terminal")
def test_ctrl_c_on_a_terminal_leaves_it_in_order() -> None:
    import pty
    import struct
    from fcntl import ioctl
    from termios import TIOCSWINSZ

    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = os.environ | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(DEMO, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True) as process:
        os.close(theirs)
        shown, ended = b"", False
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:
                break  # the other side is closed
            if not ended and b"ledger" in shown:
                process.send_signal(signal.SIGINT)
                ended = True
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 130
    assert "ledger" in text and "Traceback" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden, and is shown again


def test_a_difference_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from resumable_stream._cli.app import app

    monkeypatch.setattr("resumable_stream._cli.mission.Mission.run", lambda self: False)
    assert CliRunner().invoke(app, ["demo", "--fast"]).exit_code == 1


def test_the_story_has_2000_tokens() -> None:
    found = tokens()
    assert len(found) == TOKENS == 2000
    assert all(found)
    assert "".join(found).endswith("They only had a longer rope.")


@pytest.fixture
def mission() -> Mission:
    """A mission that is not run; the server's port is not even opened by it."""
    return Mission(Pace.fast(), PlainReporter())


@pytest.mark.parametrize(("width", "height"), [(79, 20), (80, 24), (100, 30), (250, 90)])
@pytest.mark.parametrize("state", ["connecting", "connected", "offline", "resumed", "ended"])
def test_a_frame_fits_and_has_the_same_height_in_every_state(mission: Mission, state: str, width: int, height: int) -> None:
    mission.state = state  # type: ignore[assignment]
    if state != "connecting":
        mission.text, mission.last = "".join(tokens()[:LOST_AT]), LOST_AT
        mission.log = tuple(
            Entry(at=float(n), kind=kind, text=f"{kind} " + "x" * 90)
            for n, kind in enumerate(("connected", "lost", "retry", "retry", "resumed", "ended"))
        )
    if state in ("offline", "resumed", "ended"):
        mission.lost_at, mission.attempts, mission.retry_at = LOST_AT, 12, time.monotonic() + 11.0
        mission.stats = rs.Stats(events=2000, duplicates=3, reconnects=1, seconds_offline=8.8)
    if state in ("resumed", "ended"):
        mission.resumed_at = LOST_AT + 1
    if state == "ended":
        mission.received_digest = mission.sent_digest
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(draw(mission, width=width, height=height))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert len(lines) == min(height - 2, 28)  # the command above and the prompt below stay in sight
