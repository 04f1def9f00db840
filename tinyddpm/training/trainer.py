"""The state of a run: weights, their average, the optimiser and the sampler of t; `Trainer.step` advances it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyddpm import losses
from tinyddpm._io.progress import on_terminal
from tinyddpm.nn import UNet
from tinyddpm.training import checkpoint, initial
from tinyddpm.training.batches import Batch, Batches
from tinyddpm.training.config import FREE, LIVE, TrainConfig
from tinyddpm.training.data import pixels
from tinyddpm.training.data.images import Images
from tinyddpm.training.data.order import rows_before
from tinyddpm.training.data.record import Record, read_names, read_record
from tinyddpm.training.fields import spelled
from tinyddpm.training.optimizer import Optimizer
from tinyddpm.training.world import World

__all__ = ["CALLS", "RECORD", "Trainer"]

CALLS = 15
"""Calls of the network for a grid of samples."""
RECORD = ("batch", "loss", "gradient")
"""Names of what `Trainer.step` returns, the sum of the batch's values, the mean loss, and the gradient's norm."""


def lr_at(config: TrainConfig, step: int) -> float:
    """The learning rate of a step: it rises linearly, stays, and falls linearly."""
    rising = step / config.warmup if step < config.warmup else 1.0
    falling = (config.steps - step + 1) / (config.cooldown + 1)
    return config.lr * min(rising, falling, 1.0)


class Trainer:
    """The state of a run that has made `start` steps."""

    def __init__(self, config: TrainConfig, pictures: Images, world: World) -> None:
        self.config, self.pictures, self.world = config, pictures, world
        self.start = 0
        self.changed: dict[str, list[Any]] = {}
        self.notes: list[str] = []
        self._earlier: Record | None = None
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(config.seed)
            net = initial.new_network(config, pictures)
        self.net: UNet = net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = Optimizer(config, self.net, self.ema)
        self.parameters, self.averages = self.optimizer.parameters, self.optimizer.averages
        self.diffusion = config.diffusion()
        self.batches = Batches(config, pictures, world)
        self.loss = getattr(losses, config.objective)
        if config.objective != "simple":
            self.loss = partial(self.loss, decoder=config.decoder)
        self._network: Any = torch.compile(self.net.train()) if config.compile else self.net.train()
        if world.size > 1:
            self._network = torch.nn.parallel.DistributedDataParallel(self._network)
        self.about = checkpoint.about(config, pictures.shape, pictures.levels, len(pictures))
        """A checkpoint's description of the run; `changed` and `notes` say which settings a resumed one has changed."""

    def step(self, step: int) -> Tensor:
        """Make step `step` and return the three numbers of `RECORD`, over all processes, on this process's device.

        If one of them is not finite, weights and moments do not change. Nothing is read back from a GPU, except for the
        loss-aware sampler of t, which needs the losses before the next step.
        """
        self.optimizer.zero_grad()
        row_losses = torch.zeros(self.config.batch_size, device=self.world.device)
        sums = torch.zeros(2, device=self.world.device)
        for batch in self.batches(step):
            with self._local(batch):
                sums += self._gradient(batch, row_losses)
        norm = self.optimizer.norm()
        record = torch.cat([self.world.mean(sums), norm[None]])
        decay = min(self.config.ema, (1 + step) / (10 + step))
        self.optimizer.step(self.lr(step), decay, norm, record.isfinite().all())
        self._learn_t(step, row_losses)
        return record

    def _gradient(self, batch: Batch, row_losses: Tensor) -> Tensor:
        """Add a micro-batch's gradient, store the rows' losses, return (sum of the batch, share of the mean loss)."""
        config, rows = self.config, batch.rows
        self.net.drop_by.set(batch.dropout, rows.start, config.batch_size, self.world.device)
        denoiser = config.denoiser(partial(self._predict, batch.y))
        rowwise = self.loss(self.diffusion, denoiser, batch.x0, batch.t, batch.eps)
        loss = (rowwise * batch.weight).mean() / config.accumulate
        loss.backward()
        row_losses[rows.start : rows.stop] = rowwise.detach()
        return torch.stack([batch.x0.sum(), loss.detach()])

    def _predict(self, y: Tensor | None, x: Tensor, t: Tensor) -> Tensor:
        """The network's output for the labels y, in float32."""
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            out: Tensor = self._network(x, t, y)
        return out.float()

    def _local(self, batch: Batch) -> AbstractContextManager[None]:
        """A context that keeps gradients local, except at the last micro-batch: they are averaged over processes once a step."""
        last = batch.rows.stop == self.world.rows(self.config.batch_size).stop
        context: AbstractContextManager[None] = nullcontext() if last or self.world.size == 1 else self._network.no_sync()
        return context

    def _learn_t(self, step: int, row_losses: Tensor) -> None:
        """Update the sampler of t with the finite losses of all rows, the same in every process."""
        if self.config.time_sampler == "uniform":
            return
        t, _, _ = self.batches.steps_t(step)
        loss = self.world.sum(row_losses).cpu().numpy()
        finite = np.isfinite(loss)
        self.batches.sampler.update(t[finite], loss[finite])

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return lr_at(self.config, step)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint besides the averaged weights, by file."""
        learned = {k: torch.from_numpy(v.astype(np.float64)) for k, v in self.batches.sampler.state_dict().items()}
        parts = {checkpoint.WEIGHTS: dict(self.net.state_dict()), checkpoint.OPTIMIZER: self.optimizer.moments()}
        return {**parts, checkpoint.SAMPLER: learned} if learned else parts

    def save(self, step: int) -> None:
        """Make `step` the last checkpoint."""
        about = {**self.about, "updates": self.optimizer.updates}
        checkpoint.save(Path(self.config.out), step, self.ema, self.tensors(), about, self.config.keep)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint; `ValueError` if its settings or data differ from this run's."""
        state = checkpoint.read_state(folder)
        self._compare(state)
        self.start = state["step"]
        if self.start > self.config.steps:
            raise ValueError(
                f"steps must be at least the {self.start} that the run in {self.config.out} has made, got {self.config.steps}"
            )
        self._note_changes(state)
        self._earlier = read_record(state)
        tensors = self.tensors()
        checkpoint.restore(folder, state, {**tensors, checkpoint.EMA_WEIGHTS: dict(self.ema.state_dict())})
        learned = tensors.get(checkpoint.SAMPLER, {})
        self.batches.sampler.load_state_dict({key: value.numpy() for key, value in learned.items()})
        self.optimizer.updates = state.get("updates", self.start)

    def begin(self) -> None:
        """Take over the weights of `init_from`, if it is given."""
        self.notes += initial.start_from(self.net, self.config)
        self.ema.load_state_dict(self.net.state_dict())

    def remember(self, images: Images) -> None:
        """Record in every checkpoint which of the run's images are held out."""
        record, new = Record.of(images, self.config.held_out), 0
        if self._earlier is not None:
            record, new = record.after(self._earlier)
        if new:
            self.notes.append(f"data: {new} of {len(images)} images are not those that the run began with")
        self.about |= {"data": record.as_json(), "class_names": list(images.class_names)}

    def _compare(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if a setting that must stay, or what is known of the data, differs from the run's."""
        mine, theirs = dataclasses.asdict(self.config), dataclasses.asdict(TrainConfig.from_dict(state["config"]))
        out = self.config.out
        for key in [name for name in mine if name not in FREE | LIVE]:
            if mine[key] != theirs[key]:
                old, new = spelled(theirs[key]), spelled(mine[key])
                remedy = f"without --{key.replace('_', '-')} the run goes on, and another --out starts a new one"
                raise ValueError(f"{key} must stay {old}, as in the run in {out}, got {new}; {remedy}")
        numbers, skipped = self.pictures.numbers, len(self.pictures.skipped)
        rows = None if numbers is None else rows_before(numbers, skipped, state.get("images", 0), self.config.held_out)
        if rows is not None:
            self.batches.keep_order(rows)
            self.about["images"] = len(rows)
            self.notes.append(f"bad_files: {len(rows) - len(self.pictures)} images are left out; others keep their turns")
        names, now = read_names(state), self.pictures.class_names
        if self.config.classes and names and now != names:
            raise ValueError(
                f"data must have the classes {', '.join(names)}, as the run in {out} has, got {', '.join(now) or 'none'}"
            )
        for key in ("shape", "levels", "images"):
            if state.get(key) != self.about[key]:
                toned = {3: "; --rgb makes grey images colour", 1: "; --grey makes colour images grey"}
                remedy = toned.get(state["shape"][0], "") if key == "shape" and self.about[key][0] in (1, 3) else ""
                raise ValueError(f"data must have {key} {state.get(key)}, as the run in {out} has, got {self.about[key]}{remedy}")

    def _note_changes(self, state: Mapping[str, Any]) -> None:
        """Record which settings change from this step on."""
        old = TrainConfig.from_dict(state["config"])
        for key in sorted(LIVE):
            before, now = getattr(old, key), getattr(self.config, key)
            if before != now:
                self.changed[key] = [before, now]
                self.notes.append(f"{key}: {spelled(before)} until step {self.start}, {spelled(now)} from there on")
        made = state.get("changes", [])
        self.about["changes"] = [*made, {"after": self.start, **self.changed}] if self.changed else made
        before, now = lr_at(old, self.start), self.lr(self.start + 1)
        if "lr" not in self.changed and self.start < self.config.steps and now > 2 * before and old.cooldown:
            self.notes.append(
                f"lr: rises from {before:.2g} at step {self.start} to {now:.2g}, as --cooldown counts from the end, "
                f"now step {self.config.steps}; --lr sets another"
            )

    def samples(self, count: int, progress: bool = False) -> NDArray[np.uint8]:
        """A grid of so many samples, drawn in few calls of the averaged network, in the classes' order if the run has classes."""
        config, (channels, height, width) = self.config, self.pictures.shape
        y = None
        if config.classes and self.pictures.classes is not None:
            y = torch.arange(count, device=self.world.device) % self.pictures.classes
        x = self.diffusion.sample(
            config.denoiser(partial(self.ema, y=y)),
            (count, channels, height, width),
            sampler="dpm++2m",
            steps=min(config.T, CALLS),
            seed=config.seed,
            backend="torch",
            device=str(self.world.device),
            progress=progress and on_terminal(),
        )
        images = pixels.to_uint8(x.cpu().numpy())
        return pixels.image_grid(images if channels in (1, 3) else images[:, :1], scale=max(1, 64 // max(height, width)))
