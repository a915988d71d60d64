"""How events are written, and when a signal may interrupt."""

from __future__ import annotations

import io
import signal

import pytest

import resumable_stream as rs
from resumable_stream._cli.output import as_json, as_lines, coloured, visible
from resumable_stream._cli.signals import Signals, Terminated


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


EVENT = rs.StreamEvent(event="tick", data="\x1b[2Jtwo\nlines", id="7", own_id="7")


def test_a_pipe_gets_the_data_as_it_is() -> None:
    assert as_lines(encoding="utf-8", terminal=False, colour=False)(EVENT) == b"\x1b[2Jtwo\nlines\n"


def test_a_terminal_gets_id_and_type_and_no_control_character_of_the_server() -> None:
    assert as_lines(encoding="utf-8", terminal=True, colour=True)(EVENT) == b"\x1b[2m7 tick\x1b[0m  \\x1b[2Jtwo\nlines\n"
    assert as_lines(encoding="utf-8", terminal=True, colour=False)(EVENT) == b"7 tick  \\x1b[2Jtwo\nlines\n"


def test_an_event_without_id_and_type_has_nothing_in_front() -> None:
    assert as_lines(encoding="utf-8", terminal=True, colour=True)(rs.StreamEvent(data="x", id="7")) == b"x\n"


def test_what_the_locale_cannot_write_does_not_stop_the_stream() -> None:
    assert as_lines(encoding="ascii", terminal=False, colour=False)(rs.StreamEvent(data="naïve")) == b"na?ve\n"


def test_bytes_become_base64_in_json() -> None:
    assert as_json(rs.Chunk(b"\x00\xff", 4)) == b'{"base64": "AP8=", "sequence": 4, "offset": 0, "cursor": "6"}\n'


def test_json_says_what_is_missing() -> None:
    event = rs.StreamEvent(data="x")
    event.gap = rs.Gap(expected=3, received=5, after="2")
    assert b'"gap": {"expected": 3, "received": 5, "after": "2"}' in as_json(event)


def test_line_ends_and_tabs_stay() -> None:
    assert visible("a\tb\nc\rd\x9b") == "a\tb\nc\\x0dd\\x9b"


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(Terminal())
    assert not coloured(io.StringIO())


def test_a_signal_waits_for_the_end_of_a_held_block() -> None:
    done: list[str] = []

    def write(signals: Signals) -> None:
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            done.append("written")

    with Signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            write(signals)
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    assert done == ["written"]


def test_a_second_signal_does_not_wait() -> None:
    def hang(signals: Signals) -> None:
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second one waited too")

    with Signals() as signals, pytest.raises(KeyboardInterrupt):
        hang(signals)


def test_afterwards_signals_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
