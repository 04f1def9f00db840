"""A run in memory: weights, their average and the optimiser, and the processes that share it.

All randomness is a function of (seed, step, row of the global batch), so a checkpoint needs no random state and a run
does not depend on how its batches are split.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tinyddpm import losses, noise
from tinyddpm.nn import UNet
from tinyddpm.training import checkpoint, images
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.data import Images

__all__ = ["Trainer", "World", "join"]

_STREAM = 2  # of the noise; the fourth word of the counter is 0 there, and these elsewhere:
_BATCH, _ORDER = 1, 2
_MOMENTS = ("exp_avg", "exp_avg_sq")
_FREE = frozenset({"data", "out", "steps", "checkpoint_every", "sample_every", "samples", "resume", "device"})


@dataclass(frozen=True)
class World:
    """The processes that share a run: this one's rank, their number, this one's device."""

    rank: int
    size: int
    device: torch.device

    def rows(self, batch_size: int) -> range:
        """This process's rows of a global batch."""
        own = batch_size // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: int) -> int:
        """The largest of the processes' flags."""
        if self.size == 1:
            return flag
        shared = torch.tensor(flag, device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)


class Trainer:
    """The state of a run in memory: weights, their average, the optimiser; `step` advances it."""

    def __init__(self, config: TrainConfig, pictures: Images, world: World) -> None:
        self.config, self.pictures, self.world = config, pictures, world
        self.start = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = config.unet(pictures)
        self.net: UNet = net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
        self.optimizer = kind(self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.parameters, self.averages = list(self.net.parameters()), list(self.ema.parameters())
        for p in self.parameters:  # as the first step would make it, so that a checkpoint can be read into it
            moments = {
                key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[p] = {"step": torch.zeros((), device=p.device), **moments}
        self.diffusion = config.diffusion()
        parallel = torch.nn.parallel.DistributedDataParallel(self.net) if world.size > 1 else self.net
        self.denoiser = config.denoiser(parallel.train())
        self.loss = getattr(losses, config.objective)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def step(self, step: int) -> Tensor:
        """Make step `step`; returns (loss, norm of the gradient) of this process, on its device."""
        config, rows = self.config, self.world.rows(self.config.batch_size)
        random = _random(config.seed, step, _BATCH)
        t = random.integers(1, config.T + 1, config.batch_size)[rows.start : rows.stop]
        self.net.drop_by.set(int(random.integers(2**63)), rows.start, config.batch_size, self.world.device)
        pixels = self.pictures.scaled(self.order(step)[rows.start : rows.stop])
        if config.flip:
            mirrored = (random.random(config.batch_size) < 0.5)[rows.start : rows.stop, None, None, None]
            pixels = np.where(mirrored, pixels[..., ::-1], pixels)
        x0 = torch.from_numpy(pixels).to(self.world.device)
        eps = noise.normal(
            config.seed, rows, step, self.pictures.shape, stream=_STREAM, backend="torch", device=str(self.world.device)
        )
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = self.loss(self.diffusion, self.denoiser, x0, t, eps).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        self.optimizer.param_groups[0]["lr"] = self.lr(step)
        self.optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)  # pyright: ignore
        return torch.stack([loss.detach(), norm.detach()])

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        config = self.config
        rising = step / config.warmup if step < config.warmup else 1.0
        falling = (config.steps - step + 1) / (config.cooldown + 1)
        return config.lr * min(rising, falling, 1.0)

    def order(self, step: int) -> NDArray[np.int64]:
        """Which images make up the global batch of a step: epoch after epoch, each in an order of its own."""
        count, size = len(self.pictures), self.config.batch_size
        chosen = np.empty(size, np.int64)
        done = 0
        while done < size:
            epoch, place = divmod((step - 1) * size + done, count)
            if self._order[0] != epoch:
                self._order = epoch, _random(self.config.seed, epoch, _ORDER).permutation(count)
            part = self._order[1][place : place + size - done]
            chosen[done : done + len(part)] = part
            done += len(part)
        return chosen

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's state by name."""
        return {
            f"{key}.{name}": self.optimizer.state[p][key] for name, p in self.net.named_parameters() for key in _MOMENTS
        }

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of the run."""
        return checkpoint.about(self.config, self.pictures.shape, self.pictures.levels, len(self.pictures))

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint; `ValueError` where it is another run's."""
        state = checkpoint.read_state(folder)
        own = self.about()
        for key in ("shape", "levels", "images"):
            if state.get(key) != own[key]:
                raise ValueError(f"data: {key} is {own[key]}, but the run in {self.config.out} has {state.get(key)}")
        mine, theirs = dataclasses.asdict(self.config), dataclasses.asdict(TrainConfig.from_dict(state["config"]))
        for key in mine.keys() - _FREE:
            if mine[key] != theirs[key]:
                raise ValueError(f"{key}: {mine[key]!r} is not the {theirs[key]!r} of the run in {self.config.out}")
        self.start = state["step"]
        if self.start > self.config.steps:
            raise ValueError(f"steps: the run in {self.config.out} has made {self.start} already")
        checkpoint.restore(folder, state, self.net, self.ema, self.moments())
        for p in self.parameters:
            self.optimizer.state[p]["step"].fill_(self.start)

    def samples(self) -> NDArray[np.uint8]:
        """A grid drawn with the averaged weights."""
        config, (channels, height, width) = self.config, self.pictures.shape
        x = self.diffusion.sample(
            config.denoiser(self.ema),
            (config.samples, channels, height, width),
            sampler="ddim",
            steps=min(config.T, 50),
            seed=config.seed,
            backend="torch",
            device=str(self.world.device),
        )
        shown = images.to_uint8(x.cpu().numpy())
        return images.image_grid(shown if channels in (1, 3) else shown[:, :1], scale=max(1, 64 // max(height, width)))


def _random(seed: int, step: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, step, purpose]))


@contextmanager
def join(config: TrainConfig) -> Iterator[World]:
    """This process's place among those that torchrun started, if it did."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if config.batch_size % size:
        raise ValueError(f"batch_size: {config.batch_size} can't be shared by {size} processes")
    name = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} can't be used: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    joined = size > 1 and not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        if joined:
            dist.destroy_process_group()
