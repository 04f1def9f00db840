"""Drawing a run's samples in batches, which several processes may share.

A sample is a function of the run, its number and the options, so any process can draw any sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import backends
from tinyddpm._commands.runs import batches, device_of, network_digest
from tinyddpm.calibration import Calibration
from tinyddpm.samplers import Step
from tinyddpm.training import Run, to_levels, to_uint8

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Drawing:
    """Which samples of a run to draw, and how."""

    run: Run
    index: range
    batch_size: int
    options: dict[str, Any]
    """Options of `Diffusion.sample`."""
    labels: tuple[int, ...] = ()
    """Classes; sample k gets the entry k modulo their number."""
    guidance: float = 1.0
    progress: bool = False
    rank: int = 0
    processes: int = 1
    """This process draws every `processes`-th batch, from batch `rank` on."""
    calibration: Calibration | None = None
    """Where the variances come from, if the options have a `plan` of it."""

    def trajectory(self, index: range, progress: bool = False) -> Iterator[Step]:
        """The states of the samples `index`, from noise to data."""
        labels = [self.labels[k % len(self.labels)] for k in index] if self.labels else None
        d, denoiser, options = self.run.diffusion, self.run.denoiser_for(labels, self.guidance), self.options
        if self.calibration:
            d, denoiser = self.calibration.chain(d, denoiser, timesteps=options["plan"])
            options = {name: value for name, value in options.items() if name not in ("plan", "steps", "spacing")}
        return d.trajectory(
            denoiser, (len(index), *self.run.shape), index=index, backend="torch", device=device_of(self.run), progress=progress,
            **options,
        )  # fmt: skip

    def batch(self, index: range, progress: bool) -> NDArray[np.float32]:
        """The samples `index` (n, C, H, W) in [-1, 1]."""
        x: Any = None
        for step in self.trajectory(index, progress):
            x = step.x
        return np.asarray(backends.get("torch").to_numpy(x))

    def pixels(self) -> Pixels:
        """All samples as pixels (n, C, H, W)."""
        return np.concatenate([to_uint8(self.batch(part, show)) for part, show in self._batches()])

    @property
    def kind(self) -> np.dtype[Any]:
        """What an array of samples holds, bytes, or uint16 or float32 if the data have 16 bits or a range of their own."""
        ends = self.run.config.value_range
        return np.dtype("<f4" if ends else "<u2" if self.run.levels > 256 else "u1")

    def values(self, x: NDArray[np.float32]) -> NDArray[Any]:
        """Samples as an array holds them: in 0..255, or as data of 16 bits, or with a range or levels that were given, are."""
        if self.kind == np.uint8 and self.run.config.levels is None:
            return to_uint8(x)
        levels, (low, high) = to_levels(x, self.run.levels), self.run.config.value_range or (0, self.run.levels - 1)
        return (low + levels * ((high - low) / (self.run.levels - 1))).astype(self.kind)

    def frames(self, positions: frozenset[int]) -> Pixels:
        """All samples at these positions of their plan (0 is the start) as pixels (positions, n, C, H, W)."""
        return np.concatenate(
            [
                np.stack([_pixels(s.x) for k, s in enumerate(self.trajectory(part, show)) if k in positions])
                for part, show in self._batches()
            ],
            axis=1,
        )

    @property
    def parts(self) -> list[range]:
        """The sample numbers of each batch."""
        return [part for part, _ in batches(self.index, self.batch_size, False)]

    def missing(self, present: Callable[[range], bool]) -> Iterator[tuple[range, NDArray[np.float32]]]:
        """Draw this process's batches, except those that are `present` when their turn comes."""
        for number, (part, show) in enumerate(self._batches()):
            if number % self.processes == self.rank and not present(part):
                yield part, self.batch(part, show)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What determines the samples: the options, the classes and the weights."""
        condition = {"label": list(self.labels), "guidance": self.guidance} if self.labels else {}
        return {**self.options, **condition, "step": self.run.step, "weights": network_digest(self.run)}

    def _batches(self) -> Iterator[tuple[range, bool]]:
        return batches(self.index, self.batch_size, self.progress)


def _pixels(x: Any) -> Pixels:
    return to_uint8(backends.get("torch").to_numpy(x))
