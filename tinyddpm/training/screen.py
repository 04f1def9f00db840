"""What a run shows on standard error: a bar with the loss and the speed, lines, and an answer to Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from tinyddpm._io.progress import duration, progress_bar, say

__all__ = ["Screen", "machine"]

_SMOOTHING = 0.98  # of the loss that the bar shows
_FIRST, _SECONDS = 20, 2.0  # steps, or their seconds, after which the time of the others is told
_WORTH = 60.0  # seconds


class Screen:
    """The screen of a run that has made `start` steps; if not `enabled`, it shows nothing but the answer to a signal."""

    def __init__(self, start: int, enabled: bool) -> None:
        self.start, self.enabled, self.step = start, enabled, start
        self._loss = self._weight = self._rate = 0.0
        self._times: list[float] | None = []

    def steps(self, last: int) -> Iterator[int]:
        """The numbers of the steps to make, with a bar that begins at the true start."""
        steps, note = range(self.start + 1, last + 1), lambda: self.note
        for step in progress_bar(steps, last, enabled=self.enabled, label="train", start=self.start, note=note):
            self.step = step
            yield step

    @property
    def note(self) -> str:
        """The smoothed loss and the images per second."""
        return f"loss {self.loss:.4g}, {self._rate:.3g} images/s" if self._weight else ""

    @property
    def loss(self) -> float:
        """The smoothed loss; NaN before the first step."""
        return self._loss / self._weight if self._weight else float("nan")

    def update(self, loss: float, rate: float) -> None:
        """Take in the loss of a step, which counts with weight 1 - 0.98 against those before, and the images per second."""
        self._loss += (1 - _SMOOTHING) * (loss - self._loss)
        self._weight += (1 - _SMOOTHING) * (1 - self._weight)
        self._rate = rate

    def time(self, left: int, seconds: float) -> None:
        """Take in a step's time; say once, after some steps, about how long the `left` ones take, if that is a minute or more."""
        if self._times is None:
            return
        self._times.append(seconds)
        known = self._times[1:]  # the first step makes what is made once
        if len(known) >= _FIRST or sum(known) >= _SECONDS:
            each, self._times = sorted(known)[len(known) // 2], None
            if left * each >= _WORTH:
                self.say(f"time: about {duration(left * each)} for the {left} steps left, at {each:.3g} s each")

    def say(self, line: str) -> None:
        """Show a line, above the bar."""
        if self.enabled:
            say(line)

    @contextmanager
    def signals(self, answers: bool) -> Iterator[list[int]]:
        """Collect SIGINT and SIGTERM in a list, and say so at once if this process `answers`; a second one acts as usual."""
        received: list[int] = []
        if threading.current_thread() is not threading.main_thread():
            yield received
            return

        def note(signum: int, frame: FrameType | None) -> None:
            received.append(signum)
            signal.signal(signum, before[signum])
            if answers:
                _write_now(f"finishing step {self.step}, then saving; again to stop now\n")

        before = {int(s): signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for s in before:
            signal.signal(s, note)
        try:
            yield received
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def _write_now(text: str) -> None:
    """Write to standard error past its buffer, which a signal may have interrupted; what can't be written is dropped."""
    with suppress(OSError, ValueError, AttributeError):  # no file, closed, or nobody reads it
        os.write(sys.stderr.fileno(), (f"\n{text}" if sys.stderr.isatty() else text).encode())


def machine(device: torch.device) -> str:
    """The device as a line names it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
