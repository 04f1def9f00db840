"""Progress: a bar on a terminal, a few plain lines elsewhere, nothing if it is turned off."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import pytest

from tinyddpm._io import progress


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def run(clock: Clock, count: int, seconds: Callable[[int], float], total: int | None = None) -> None:
    for k in progress.progress_bar(range(count), count if total is None else total, enabled=True, label="steps"):
        clock.now += seconds(k)


def test_lines_are_plain_text_with_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 100, lambda k: 1.0)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.isascii()
    assert "\r" not in shown.err
    assert "\x1b" not in shown.err
    lines = shown.err.splitlines()
    assert lines[0] == "steps: 6/100, 2 min left"
    assert lines[-1] == "steps: 100/100"
    assert len(lines) < 20


def test_long_runs_make_few_lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A week of steps of a tenth of a second each, counted in thousands: at most ten minutes pass between two lines."""
    week = 7 * 24 * 3600
    run(clock, week // 100, lambda k: 100.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 1.1 * week / 600
    counts = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert max(b - a for a, b in zip(counts, counts[1:], strict=False)) * 100 <= 700
    assert lines[1].endswith("167.9 h left")


def test_short_runs_make_one_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 1000, lambda k: 0.001)
    assert capsys.readouterr().err == "steps: 1000/1000\n"


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")])
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_nothing_is_shown_if_progress_is_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.progress_bar(range(3), 3, enabled=False, label="steps")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_gets_a_bar_without_colour(colour: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    import termios

    for name, value in colour.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(progress.progress_bar(range(3), 3, enabled=True, label="steps")) == [0, 1, 2]
        monkeypatch.undo()
    sent = b""
    with contextlib.suppress(OSError):  # raised at the end of the stream
        while part := os.read(ours, 100_000):
            sent += part
    os.close(ours)
    shown = sent.decode()
    assert "steps" in shown
    assert "3/3" in shown
    assert "\x1b[" not in shown.replace("\x1b[A", "")


def test_without_tqdm_a_terminal_gets_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(clock, 2, lambda k: 1.0)
    assert capsys.readouterr().err == "steps: 2/2\n"
