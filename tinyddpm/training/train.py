"""The training loop: steps, log, checkpoints, sample grids; a kill at any moment loses the steps since the last one."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
        trainer, out = Trainer(config, pictures, world), Path(config.out)
        with ExitStack() as stack:
            if world.rank == 0:
                stack.enter_context(checkpoint.locked(out))
            _resume(trainer)
            log = stack.enter_context(_opened(trainer, out)) if world.rank == 0 else None
            _loop(trainer, log, progress and world.rank == 0)
    return out / checkpoint.LAST


def _resume(trainer: Trainer) -> None:
    """Go on from the last checkpoint in the run folder, where there is one."""
    config = trainer.config
    if (last := checkpoint.find(config.out)) is not None:
        if not config.resume:
            raise ValueError(f"out: {config.out} holds a run already; resume it, or choose another folder")
        trainer.restore(last)


def _opened(trainer: Trainer, out: Path) -> Log:
    """Describe the run in ``config.json``, and open its log."""
    count = sum(p.numel() for p in trainer.parameters)
    about = {**trainer.about(), "parameters": count, "processes": trainer.world.size}
    with naming(f"out {out}"), replacing(out / "config.json") as stream:
        stream.write(json.dumps(about, indent=2).encode())
    return Log(out / "log.jsonl", trainer.start)


def _loop(trainer: Trainer, log: Log | None, progress: bool) -> None:
    """All steps from where the run stands; `log` is None where another process writes."""
    config, world = trainer.config, trainer.world
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
            if log is not None:
                _write(trainer, log, step, bool(due or stop))
            if stop and step < config.steps:
                raise Interrupted(stop, step)


def _write(trainer: Trainer, log: Log, step: int, due: bool) -> None:
    """The checkpoint of a step where it is due, and the sample grid where its time has come."""
    out, every = Path(trainer.config.out), trainer.config.sample_every
    if due:
        log.sync()
        checkpoint.save(out, step, trainer.net, trainer.ema, trainer.moments(), trainer.about())
    if every and step % every == 0:
        with naming(f"samples {out / 'samples'}"):
            (out / "samples").mkdir(exist_ok=True)
            images.save_png(trainer.samples(), out / "samples" / f"step-{step:08d}.png")


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
