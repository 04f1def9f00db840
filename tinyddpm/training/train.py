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

from tinyddpm import verify
from tinyddpm._io.files import replacing
from tinyddpm._io.progress import progress_bar
from tinyddpm.training import checkpoint
from tinyddpm.training.checkpoint import naming
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.data import pixels
from tinyddpm.training.log import Log
from tinyddpm.training.trainer import RECORD, Trainer
from tinyddpm.training.world import join

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
        raise TypeError(f"config must be a TrainConfig, got {type(config).__name__}")
    out = Path(config.out)
    with join(config) as world:
        if world.rank == 0 and (out / checkpoint.LOCK).exists():  # told before the data are read
            with checkpoint.locked(out):
                pass
        pictures, _ = config.images().split(config.held_out)
        if not len(pictures):
            raise ValueError(f"held_out: {config.held_out} leaves no image of {config.data} to train on")
        if config.verify_first:
            _verify(world.device)
        trainer = Trainer(config, pictures, world)
        with ExitStack() as stack:
            if world.rank == 0:
                stack.enter_context(checkpoint.locked(out))
            _resume(trainer)
            log = stack.enter_context(_opened(trainer, out)) if world.rank == 0 else None
            stack.enter_context(trainer.batches.reading_ahead(trainer.start + 1))
            _loop(trainer, log, progress and world.rank == 0)
    return out / checkpoint.LAST


def _verify(device: torch.device) -> None:
    """Refuse a machine on which the library's own identities fail."""
    for result in verify.identities("torch", str(device), "float32"):
        if not result.ok:
            what = result.error or f"{result.max_error:.2g} {result.unit} off, where {result.bound:.2g} is the bound"
            raise ValueError(f"verify_first: on {device} the identity {result.identity!r} fails: {what}")


def _resume(trainer: Trainer) -> None:
    """Go on from the last checkpoint in the run folder, where there is one."""
    config = trainer.config
    if (last := checkpoint.find(config.out)) is not None:
        if not config.resume:
            raise ValueError(f"out: {config.out} holds a run already; resume it, or choose another folder")
        trainer.restore(last)


def _opened(trainer: Trainer, out: Path) -> Log:
    """Clear up after a killed run, describe this one in ``config.json``, and open its log."""
    checkpoint.sweep(out)
    count = sum(p.numel() for p in trainer.parameters)
    about = {**trainer.about, "parameters": count, "processes": trainer.world.size}
    about["skipped"] = list(trainer.pictures.skipped)
    with naming(f"out {out}"), replacing(out / "config.json") as stream:
        stream.write(json.dumps(about, indent=2).encode())
    return Log(out / "log.jsonl", trainer.start)


def _loop(trainer: Trainer, log: Log | None, progress: bool) -> None:
    """All steps from where the run stands; `log` is None where another process writes."""
    config, world = trainer.config, trainer.world
    every = 1 if world.device.type == "cpu" else 25  # reading the loss makes a GPU wait
    steps, waiting, since = range(trainer.start + 1, config.steps + 1), [], time.perf_counter()
    with _signals() as received:
        for step in progress_bar(steps, len(steps), enabled=progress, label="train"):
            waiting.append(trainer.step(step))
            due = step == config.steps or step % config.checkpoint_every == 0
            grid = config.sample_every and step % config.sample_every == 0
            if not (due or grid or step % every == 0 or (received and world.size == 1)):
                continue
            since = _report(trainer, log, waiting, step, since)
            waiting = []
            stop = world.any(max(received, default=0))
            if log is not None:
                if grid:  # before the checkpoint: a run killed between the two would never draw it
                    _draw(trainer, log, step)
                if due or stop:
                    log.sync()
                    trainer.save(step)
            if stop and step < config.steps:
                raise Interrupted(stop, step)


def _draw(trainer: Trainer, log: Log, step: int) -> None:
    """The sample grid of a step."""
    file = Path(trainer.config.out) / "samples" / f"step-{step:08d}.png"
    picture = trainer.samples()
    with naming(f"samples {file.parent}"):
        pixels.save_png(picture, file)
    log.show(picture, step)


def _report(trainer: Trainer, log: Log | None, waiting: list[Tensor], step: int, since: float) -> float:
    """Write the lines of the steps up to `step`, whose records are waiting; one that is not finite stops or is told."""
    values = torch.stack(waiting).tolist()
    now = time.perf_counter()
    seconds = (now - since) / len(waiting)
    for own, record in enumerate(values, step - len(values) + 1):
        wrong = next((f"{k}: {v} at step {own}" for k, v in zip(RECORD, record, strict=True) if not math.isfinite(v)), None)
        if wrong and trainer.config.on_nonfinite == "stop":
            raise ValueError(f"{wrong}; a smaller lr may help, or on_nonfinite = 'skip'")
        if log is not None:
            rate = trainer.config.batch_size / seconds
            _, loss, norm = (v if math.isfinite(v) else None for v in record)
            line = {"step": own, "loss": loss, "grad_norm": norm, "lr": trainer.lr(own)}
            log.write({
                **line, **({"skipped": wrong} if wrong else {}),
                "seconds": round(seconds, 6), "images_per_s": round(rate, 3),
            })  # fmt: skip
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
