"""The processes that share a run, which torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from tinyddpm._arrays.check import as_int

if TYPE_CHECKING:
    from tinyddpm.training.config import TrainConfig

__all__ = ["World", "join", "processes"]


@dataclass(frozen=True)
class World:
    """This process's rank among those that share a run, their number, and this process's device."""

    rank: int
    size: int
    device: torch.device

    def rows(self, batch_size: int) -> range:
        """This process's rows of a global batch."""
        count = batch_size // self.size
        return range(self.rank * count, (self.rank + 1) * count)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        return self.sum(values) / self.size

    def any(self, flag: int) -> int:
        """The largest of the processes' flags."""
        if self.size == 1:
            return flag
        shared = torch.tensor(flag, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)


def processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes that torchrun started; (0, 1) without torchrun."""
    size = as_int("WORLD_SIZE", _number("WORLD_SIZE", 1), 1, 2**31)
    return as_int("RANK", _number("RANK", 0), 0, size - 1), size


def _number(name: str, default: int) -> int:
    """A number that torchrun passes in the environment."""
    value = os.environ.get(name, str(default))
    if not (value.isdecimal() and len(value) < 12):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return int(value)


@contextmanager
def join(config: TrainConfig) -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end."""
    rank, size = processes()
    if config.batch_size % (size * config.accumulate):
        parts = f"{size} processes" if config.accumulate == 1 else f"{size} x {config.accumulate} micro-batches"
        raise ValueError(f"batch_size must be a multiple of {parts}, got {config.batch_size}")
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be usable, got {name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and device.index is None:
        local = _number("LOCAL_RANK", torch.cuda.current_device())
        device = torch.device("cuda", local)
    joined = size > 1 and not dist.is_initialized()
    if joined:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        if joined:
            dist.destroy_process_group()
