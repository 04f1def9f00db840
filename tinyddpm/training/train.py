"""The training loop: steps, log, checkpoints, sample grids; a kill at any moment loses the steps since the last one."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from tinyddpm._files import replacing
from tinyddpm._progress import progress as shown
from tinyddpm.training import checkpoint, data, images
from tinyddpm.training.checkpoint import Log, naming
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.trainer import Trainer, join

__all__ = ["Interrupted", "train"]


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came: the step was finished and saved. `signum` is the signal, `step` the step."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"interrupted: step {step} is saved")
        self.signum, self.step = signum, step


def train(config: TrainConfig, *, progress: bool = True) -> Path:
    """Train as `config` says and return the last checkpoint's path, ``out/last``.

    Bad input is a `ValueError`, `TypeError`, `LookupError` or `FileNotFoundError` before anything is written; a file
    that can't be written is a `CheckpointError`. SIGINT and SIGTERM end it with `Interrupted` when the step is saved.
    Under torchrun each process takes its rows of every batch, and the first one writes.
    """
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config: a TrainConfig is needed, not {type(config).__name__}")
    with join(config) as world:
        pictures, _ = data.load(config.data).split(config.held_out)
        if not len(pictures):
            raise ValueError(f"held_out: {config.held_out} leaves no image of {config.data} to train on")
        trainer = Trainer(config, pictures, world)
        if world.rank:
            _loop(trainer, None, False)
        else:
            with checkpoint.locked(Path(config.out)):
                _loop(trainer, Path(config.out), progress)
    return Path(config.out) / checkpoint.LAST


def _loop(trainer: Trainer, out: Path | None, progress: bool) -> None:
    """All steps from where the run stands; `out` is None where this process does not write."""
    config, world = trainer.config, trainer.world
    last = checkpoint.find(config.out)
    if last is not None:
        if not config.resume:
            raise ValueError(f"out: {config.out} holds a run already; resume it, or choose another folder")
        trainer.restore(last)
    log = None
    if out is not None:
        with naming(f"out {out}"):
            _describe(trainer, out)
        log = Log(out / "log.jsonl", trainer.start)
    every = 1 if world.device.type == "cpu" else 25  # reading the loss makes a GPU wait
    steps, waiting, since = range(trainer.start + 1, config.steps + 1), [], time.perf_counter()
    with _signals() as received:
        for step in shown(steps, len(steps), enabled=progress, label="train"):
            waiting.append(trainer.step(step))
            due = step == config.steps or step % config.checkpoint_every == 0
            if not (due or step % every == 0 or (received and world.size == 1)):
                continue
            since = _report(trainer, log, waiting, step, since)
            waiting = []
            stop = world.any(max(received, default=0))
            if out is not None and log is not None:
                if due or stop:
                    log.sync()
                    checkpoint.save(out, step, trainer.net, trainer.ema, trainer.moments(), trainer.about())
                if config.sample_every and step % config.sample_every == 0:
                    with naming(f"samples {out / 'samples'}"):
                        (out / "samples").mkdir(exist_ok=True)
                        images.save_png(trainer.samples(), out / "samples" / f"step-{step:08d}.png")
            if stop and step < config.steps:
                raise Interrupted(stop, step)


def _report(trainer: Trainer, log: Log | None, waiting: list[Tensor], step: int, since: float) -> float:
    """Write the lines of the steps up to `step`, whose (loss, norm) are waiting; refuses a loss that is not finite."""
    values = trainer.world.mean(torch.stack(waiting)).tolist()
    now = time.perf_counter()
    seconds = (now - since) / len(waiting)
    for own, (loss, norm) in enumerate(values, step - len(values) + 1):
        if not math.isfinite(loss):
            raise ValueError(f"loss: {loss} at step {own}; a smaller lr may help")
        if log is not None:
            rate = trainer.config.batch_size / seconds
            record = {"step": own, "loss": loss, "grad_norm": norm, "lr": trainer.lr(own)}
            log.write({**record, "seconds": round(seconds, 6), "images_per_s": round(rate, 3)})
    return now


def _describe(trainer: Trainer, out: Path) -> None:
    """``config.json``: what the run is."""
    count = sum(p.numel() for p in trainer.parameters)
    about = {**trainer.about(), "parameters": count, "processes": trainer.world.size}
    with replacing(out / "config.json") as stream:
        stream.write(json.dumps(about, indent=2).encode())


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM are noted in the list instead of ending the process; a second one ends it."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        signal.signal(signum, before[signum])

    before = {int(s): signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    for s in before:
        signal.signal(s, note)
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
