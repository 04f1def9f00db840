"""The batches of a run: images, labels, steps t and noise, each a function of (seed, step, row of the global batch) alone.

So a checkpoint needs no random state, and the result does not depend on how batches are split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyddpm import losses, noise
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.data.images import Images
from tinyddpm.training.world import World

__all__ = ["Batch", "Batches", "Order", "resident_reader"]

_STREAM = 2  # of the noise, where the counter's fourth word is 0; these are the fourth words of other draws:
_BATCH, _ORDER, _LABELS = 1, 2, 3
_SHARE = 0.25  # the part of a GPU's free memory that images may take


class Batch(NamedTuple):
    """Some rows of a step's global batch, on the device."""

    rows: range
    x0: Tensor
    t: NDArray[np.int64]
    weight: Tensor
    """The weights of the rows' losses."""
    eps: Tensor
    y: Tensor | None
    """Class numbers, and the number of classes if a label is hidden."""
    dropout: int
    """The seed of the global batch's dropout masks."""


class Order:
    """The images in each batch of `size` out of `count`: each epoch shuffles them anew."""

    def __init__(self, seed: int, count: int, size: int) -> None:
        self._count, self._size = count, size
        self._epoch = lru_cache(maxsize=2)(lambda epoch: _random(seed, epoch, _ORDER).permutation(count))

    def __call__(self, step: int) -> NDArray[np.int64]:
        """The numbers of the images in the batch of `step`, which counts from 1."""
        chosen = np.empty(self._size, np.int64)
        done = 0
        while done < self._size:
            epoch, place = divmod((step - 1) * self._size + done, self._count)
            part = self._epoch(epoch)[place : place + self._size - done]
            chosen[done : done + len(part)] = part
            done += len(part)
        return chosen


class Batches:
    """The batches of a run, each in as many parts as gradients are accumulated over."""

    def __init__(self, config: TrainConfig, pictures: Images, world: World) -> None:
        self.config, self.pictures, self.world = config, pictures, world
        self.order: Callable[[int], NDArray[np.int64]] = Order(config.seed, len(pictures), config.batch_size)
        kind = {"uniform": losses.UniformT, "loss_aware": losses.LossAwareT}[config.time_sampler]
        self.sampler: losses.UniformT = kind(config.T)
        self._read: Callable[[NDArray[np.int64]], Tensor] = _reader_if_it_fits(pictures, world.device) or self._from_host

    def keep_order(self, rows: NDArray[np.int64]) -> None:
        """Draw from `rows`, which stand for the images that a run had before some were left out."""
        before = Order(self.config.seed, len(rows), self.config.batch_size)
        self.order = lambda step: rows[before(step)]

    def parts(self) -> list[range]:
        """This process's rows of every global batch, one range for each micro-batch."""
        rows = self.world.rows(self.config.batch_size)
        size = len(rows) // self.config.accumulate
        return [range(first, first + size) for first in range(rows.start, rows.stop, size)]

    def steps_t(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.float64], np.random.Generator]:
        """t and the loss's weight for each row of the global batch of `step`, and the generator for further draws."""
        random = _random(self.config.seed, step, _BATCH)
        return *self.sampler.sample(self.config.batch_size, random), random

    def __call__(self, step: int) -> Iterator[Batch]:
        """This process's micro-batches of `step`."""
        config, device = self.config, self.world.device
        t, weight, random = self.steps_t(step)
        dropout = int(random.integers(2**63))
        mirrored = random.random(config.batch_size) < 0.5 if config.flip else None
        chosen = self.order(step)
        y = self._labels(step, chosen)
        for rows in self.parts():
            part = slice(rows.start, rows.stop)
            x0 = self._read(chosen[part])
            if mirrored is not None:
                x0 = torch.where(_sent(mirrored[part, None, None, None], device), x0.flip(3), x0)
            eps = noise.normal(config.seed, rows, step, self.pictures.shape, stream=_STREAM, backend="torch", device=str(device))
            weights = _sent(weight[part].astype(np.float32), device)
            yield Batch(rows, x0, t[part], weights, eps, None if y is None else _sent(y[part], device), dropout)

    @contextmanager
    def reading_ahead(self, first: int) -> Iterator[None]:
        """Within the block, read the images of the steps from `first` on before they are needed."""
        if self._read != self._from_host:
            yield
            return
        steps = range(first, self.config.steps + 1)
        rows = (self.order(step)[part.start : part.stop] for step in steps for part in self.parts())
        with self.pictures.reader(rows) as read:
            self._read = lambda _: _sent(next(read), self.world.device)
            try:
                yield
            finally:
                self._read = self._from_host

    def _from_host(self, chosen: NDArray[np.int64]) -> Tensor:
        return _sent(self.pictures.scaled(chosen), self.world.device)

    def _labels(self, step: int, chosen: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The class numbers of the images `chosen`, some of them hidden; None if the run has no classes."""
        if not self.config.classes:
            return None
        labels, classes = self.pictures.labels, self.pictures.classes
        if labels is None or classes is None:  # refused when the network was made
            raise ValueError(f"classes must be false, as {self.config.data} has no labels")
        hidden = _random(self.config.seed, step, _LABELS).random(self.config.batch_size) < self.config.label_dropout
        return np.where(hidden, classes, labels[chosen])


def _reader_if_it_fits(pictures: Images, device: torch.device) -> Callable[[NDArray[np.int64]], Tensor] | None:
    """A reader of images that are kept on a GPU; None if they do not fit."""
    pixels = pictures.pixels
    if device.type != "cuda" or not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        return None
    fits = pixels.nbytes <= _SHARE * torch.cuda.mem_get_info(device)[0]
    return resident_reader(pixels, pictures.levels, device) if fits else None


def resident_reader(pixels: NDArray[np.uint8], levels: int, device: torch.device) -> Callable[[NDArray[np.int64]], Tensor]:
    """A reader that keeps the pixels on the device and looks up each level's value: the same bits as `Images.scaled`."""
    resident = torch.from_numpy(pixels).to(device)
    table = torch.from_numpy((np.arange(levels) * (2 / (levels - 1)) - 1).astype(np.float32)).to(device)
    return lambda chosen: table[resident[_sent(chosen, device)].int()]


def _sent(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array on the device; the copy to a GPU is asynchronous."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _random(seed: int, step: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, step, purpose]))
