"""When a run draws samples and its loss, and what that may cost: early and often enough to see whether it learns."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

from tinyddpm import plots
from tinyddpm._arrays.check import is_out_of_memory
from tinyddpm.training.checkpoint import writing
from tinyddpm.training.data import pixels
from tinyddpm.training.log import Log, read_lines
from tinyddpm.training.screen import Screen
from tinyddpm.training.trainer import CALLS, Trainer

__all__ = ["Grids"]

_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_BUDGET = 0.02  # of the run's time
_ROW = 8  # the columns of a grid
_FORWARD = 1 / 3  # of a training step's time


class Grids:
    """The sample grids of a run and its loss's figure, in ``DIR/samples``.

    With `sample_every` there is a grid every so many steps. By default there is one at 1, 2, 5, 10, 20, 50 and 100 % of the
    run, with fewer images, or none, where those to come would take more than 2 % of its time together.
    """

    def __init__(self, trainer: Trainer, screen: Screen) -> None:
        self.trainer, self.screen, config = trainer, screen, trainer.config
        self.folder, self._every, self._steps = Path(config.out) / "samples", config.sample_every, config.steps
        self._plan = {max(1, round(share * config.steps)) for share in _SHARES} if self._every is None else frozenset[int]()
        self._spent, self._each, self._loss, self._began = 0.0, 0.0, 1.0, time.perf_counter()
        self._silent = False

    def due(self, step: int) -> bool:
        """Whether a grid follows this step."""
        return step % self._every == 0 if self._every else step in self._plan

    def draw(self, log: Log, step: int) -> None:
        """Draw and save the grid of a step, and the loss until then."""
        count = self.count(step, time.perf_counter())
        if not count:
            self._say_once(f"samples: none at step {step}, as they would take more than 2 % of the run; see --sample-every")
            return
        began, file = time.perf_counter(), self.folder / f"step-{step:08d}.png"
        try:
            picture = self.trainer.samples(count, self.screen.enabled)
        except (ValueError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = error if isinstance(error, ValueError) else "out of memory; --samples draws fewer"
            self.screen.say(f"samples: none at step {step}: {reason}")
            return
        with writing(f"samples {self.folder}"):
            pixels.save_png(picture, file)
        log.show(picture, step)
        drawn = time.perf_counter()
        self._draw_loss()
        self._each, self._loss = max(drawn - began, 1e-9) / count, time.perf_counter() - drawn
        self._spent += drawn - began + self._loss
        self.screen.say(f"samples: {file} ({count} images, {drawn - began:.1f} s)")

    def count(self, step: int, now: float) -> int:
        """The images in the grid of a step: all, or as many rows of eight as the time allows."""
        config, made = self.trainer.config, step - self.trainer.start
        if self._every is not None:
            return config.samples
        step_seconds = max(now - self._began - self._spent, 1e-9) / made
        each = self._each or min(CALLS, config.T) * _FORWARD * step_seconds / config.batch_size
        left = sum(1 for planned in self._plan if planned >= step)
        budget = _BUDGET * step_seconds * (config.steps - self.trainer.start) - self._spent
        fits = (budget / left - self._loss) / each
        return config.samples if fits >= config.samples else max(0, int(fits // _ROW * _ROW))

    def _draw_loss(self) -> None:
        """Draw the losses of the log beside the grids."""
        if find_spec("matplotlib") is None:
            self._say_once("loss.png: not drawn, as matplotlib is not installed")
            return
        lines = read_lines(Path(self.trainer.config.out) / "log.jsonl")
        with writing(f"samples {self.folder}"):
            plots.save(plots.loss(lines), self.folder / "loss.png")

    def _say_once(self, line: str) -> None:
        if not self._silent:
            self.screen.say(line)
        self._silent = True
