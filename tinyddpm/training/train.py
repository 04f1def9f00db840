"""The training loop: steps, log, checkpoints and sample grids. A killed run loses only the steps since its last checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyddpm import verify
from tinyddpm._arrays.check import as_instance, is_out_of_memory
from tinyddpm._io.files import shown, write
from tinyddpm.training import checkpoint
from tinyddpm.training.checkpoint import writing
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.data.reading import IN_MEMORY
from tinyddpm.training.grids import Grids
from tinyddpm.training.log import Log, require_loggers
from tinyddpm.training.precision import settled
from tinyddpm.training.screen import Screen, machine
from tinyddpm.training.trainer import RECORD, Trainer
from tinyddpm.training.world import join

__all__ = ["Interrupted", "train"]


class Interrupted(KeyboardInterrupt):
    """The run was ended by SIGINT or SIGTERM after its step was finished and saved.

    Parameters
    ----------
    signum : int
        The signal.
    step : int
        The last step made.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"interrupted: step {step} is saved")
        self.signum, self.step = signum, step


def train(config: TrainConfig, *, data: Any = None, labels: Any = None, progress: bool = True) -> Path:
    """Train a network.

    Under torchrun each process computes its rows of every batch, and the first process writes.

    Parameters
    ----------
    config : TrainConfig
        The settings.
    data : array, optional
        Images or signals in memory instead of those that `config` names, in any layout and range that `load` reads. A run that is
        resumed with the same array holds out the same images. Default: what `config.data` names.
    labels : int array (N,), optional
        Their classes.
    progress : bool
        Whether to show a progress bar on standard error.

    Returns
    -------
    Path
        The last checkpoint, ``out/last``.

    Raises
    ------
    TypeError, ValueError, LookupError, FileNotFoundError
        If the settings or the data are wrong; nothing has been written then. `ValueError` also at a NaN or infinity.
    CheckpointError
        If a file cannot be written.
    Interrupted
        After SIGINT or SIGTERM, once the step is saved.
    """
    out = Path(as_instance("config", config, TrainConfig).out)
    checkpoint.check_place(out)
    if data is None and out.exists() and os.path.exists(config.data) and os.path.samefile(out, config.data):
        raise ValueError(f"out must not be the folder of the data, got {out}")
    with join(config) as world:
        if world.rank == 0 and (out / checkpoint.LOCK).exists():  # fail before the data are read
            with checkpoint.locked(out):
                pass
        if data is not None:
            config = dataclasses.replace(config, data=IN_MEMORY, labels=None)
        if config.value_range is None and config.resume:
            config = dataclasses.replace(config, value_range=_range_before(config.out))
        images = config.images(data, labels)
        config = dataclasses.replace(config, value_range=images.value_range)
        pictures, others = images.split(config.held_out)
        if not len(pictures):
            raise ValueError(f"held_out must leave an image of {config.data} to train on, got {config.held_out}")
        require_loggers(config.log_to)
        if config.verify_first:
            _verify(world.device)
        _last(config)
        config, lines = settled(config, pictures, world)
        trainer = Trainer(config, pictures, world)
        with ExitStack() as stack:
            if world.rank == 0:
                stack.enter_context(checkpoint.locked(out))
            _resume(trainer)
            if world.rank == 0:
                trainer.remember(images)
            screen = Screen(trainer.start, progress and world.rank == 0)
            for line in (*_about(trainer, len(others)), *lines, *trainer.notes):
                screen.say(line)
            log = stack.enter_context(_start_log(trainer, out)) if world.rank == 0 else None
            stack.enter_context(trainer.batches.reading_ahead(trainer.start + 1))
            _loop(trainer, log, screen)
    return out / checkpoint.LAST


def _range_before(out: str) -> tuple[float, float] | None:
    """The values that were black and white in the data that the run in `out` began with; None if they were its levels."""
    last = checkpoint.find(out)
    return None if last is None else TrainConfig.from_dict(checkpoint.read_state(last)["config"]).value_range


def _verify(device: torch.device) -> None:
    """Raise `ValueError` if one of the library's identities fails on this device."""
    for result in verify.identities("torch", str(device), "float32"):
        if not result.ok:
            what = result.error or f"{result.max_error:.2g} {result.unit} off, the bound is {result.bound:.2g}"
            raise ValueError(f"verify_first: on {device} the identity {result.identity!r} fails: {what}")


def _last(config: TrainConfig) -> Path | None:
    """The last checkpoint in the run folder, from which the run is to go on; None if there is none."""
    last = checkpoint.find(config.out)
    if last is not None and not config.resume:
        raise ValueError(f"out must be a new folder unless resume is set, but {config.out} holds a run")
    return last


def _resume(trainer: Trainer) -> None:
    """Go on from the last checkpoint in the run folder, if there is one."""
    config = trainer.config
    if (last := _last(config)) is not None:
        trainer.restore(last)
        if trainer.world.rank == 0:
            with writing(f"out {config.out}"):
                if not Path(config.out, checkpoint.LAST).is_dir():
                    checkpoint.link(Path(config.out), last)
                checkpoint.prune(last, config.keep)  # which a kill may have prevented
    else:
        trainer.begin()


def _about(trainer: Trainer, held_out: int) -> Iterator[str]:
    """What is trained on what, where, and which steps."""
    images = trainer.pictures
    classes = "" if images.classes is None else f", {images.classes} classes{'' if trainer.config.classes else ' (not used)'}"
    skipped = f", {len(images.skipped)} that can't be read" if images.skipped else ""
    if images.class_names:
        classes += f": {shown(', '.join(images.class_names[:12]))}{', ...' if len(images.class_names) > 12 else ''}"
    low, high = images.value_range or (0, images.levels - 1)
    shape, values = "x".join(map(str, images.shape)), f"values {low:g}..{high:g} on {images.levels} levels"
    yield f"images: {len(images)} of {shape}, {values} ({held_out} more held out){classes}{skipped}"
    yield from (f"images: {note}" for note in images.notes)
    config, size = trainer.config, sum(p.numel() for p in trainer.parameters)
    count = f"{size / 1e6:.1f} M" if size >= 1e5 else str(size)
    steps = f"steps {trainer.start + 1} to {config.steps} of {config.batch_size} images each"
    yield f"network: {count} parameters, {config.precision}; device {machine(trainer.world.device)}; {steps}"
    if config.compile:
        yield "compile: in the first step, which takes a minute or so"


def _start_log(trainer: Trainer, out: Path) -> Log:
    """Remove a killed run's temporary files, write ``config.json``, and open the log."""
    checkpoint.sweep(out)
    count = sum(p.numel() for p in trainer.parameters)
    about = {**trainer.about, "parameters": count, "processes": trainer.world.size}
    about.pop("data", None)  # the digests are for checkpoints only
    about["skipped"] = list(trainer.pictures.skipped)
    with writing(f"out {out}"):
        write(out / "config.json", json.dumps(about, indent=2).encode())
    return Log(out / "log.jsonl", trainer.start, trainer.config)


def _loop(trainer: Trainer, log: Log | None, screen: Screen) -> None:
    """Make the remaining steps; `log` is None in a process that does not write."""
    config, world, grids = trainer.config, trainer.world, Grids(trainer, screen)
    every = 1 if world.device.type == "cpu" else 25  # reading the loss makes a GPU wait
    waiting, since = list[Tensor](), time.perf_counter()
    with screen.signals(answers=log is not None) as received:
        for step in screen.steps(config.steps):
            try:
                waiting.append(trainer.step(step))
            except (ValueError, OSError, MemoryError, RuntimeError) as error:  # no update was made
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                _save_before(trainer, log, screen, waiting, step, since, error)
                raise
            due, grid = step == config.steps or step % config.checkpoint_every == 0, grids.due(step)
            if not (due or grid or step % every == 0 or (received and world.size == 1)):
                continue
            if config.compile and step == trainer.start + 1:
                screen.say(f"compile: the first step took {time.perf_counter() - since:.0f} s")
            _report(trainer, log, screen, waiting, step, since)
            waiting = []
            stop = world.any(max(received, default=0))
            if log is not None:
                if grid:  # before the checkpoint, so that a run killed in between draws it again
                    grids.draw(log, step)
                    stop = stop or (max(received, default=0) if world.size == 1 else 0)
                if due or stop:
                    log.sync()
                    trainer.save(step)
            since = time.perf_counter()
            if stop and step < config.steps:
                raise Interrupted(stop, step)


def _save_before(
    trainer: Trainer, log: Log | None, screen: Screen, waiting: list[Tensor], step: int, since: float, error: Exception
) -> None:
    """Save the step before one whose images can't be read or don't fit, and raise the error with a word on that."""
    if log is None or step == trainer.start + 1:
        return
    if waiting:
        _report(trainer, log, screen, waiting, step - 1, since)
    log.sync()
    trainer.save(step - 1)
    if is_out_of_memory(error):
        parts = 2 * trainer.config.accumulate
        told = (
            f"out of memory in step {step}; step {step - 1} is saved, and --resume --accumulate {parts} goes on with half as much"
        )
        raise MemoryError(told) from error
    remedy = ", and --resume --bad-files skip goes on without it" if str(error).startswith("data: ") else ""
    raise ValueError(f"{error}; step {step - 1} is saved{remedy}") from error


def _report(trainer: Trainer, log: Log | None, screen: Screen, waiting: list[Tensor], step: int, since: float) -> None:
    """Log the records of the steps up to `step`; one that is not finite ends the run or is marked as skipped."""
    values = torch.stack(waiting).tolist()
    seconds = max(time.perf_counter() - since, 1e-9) / len(waiting)  # a coarse clock may stand still
    screen.time(trainer.config.steps - step, seconds)
    for number, record in enumerate(values, step - len(values) + 1):
        wrong = next((f"{k}: {v} at step {number}" for k, v in zip(RECORD, record, strict=True) if not math.isfinite(v)), None)
        if wrong and trainer.config.on_nonfinite == "stop":
            raise ValueError(f"{wrong}; a smaller lr may help, or on_nonfinite = 'skip'")
        if log is not None:
            rate = trainer.config.batch_size / seconds
            _, loss, norm = (v if math.isfinite(v) else None for v in record)
            if loss is not None:
                screen.update(loss, rate)
            line = {"step": number, "loss": loss, "grad_norm": norm, "lr": trainer.lr(number)}
            if trainer.changed and number == trainer.start + 1:
                line["changed"] = trainer.changed
            log.write({
                **line, **({"skipped": wrong} if wrong else {}),
                "seconds": round(seconds, 6), "images_per_s": round(rate, 3),
            })  # fmt: skip
