"""Settings that fit the machine and the size of a run: a function from what is given to the settings that are not."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch

from tinyddpm._arrays.check import as_real, one_of
from tinyddpm.training import precision
from tinyddpm.training.config import HO2020, TrainConfig
from tinyddpm.training.trainer import Trainer
from tinyddpm.training.world import join

__all__ = ["PRESETS", "SIZED", "chosen", "preset", "reason", "steps_in"]

PRESETS = ("cpu", "gpu", "ho2020")
_BASES: dict[str, dict[str, Any]] = {
    "cpu": {"steps": 8000, "batch_size": 32, "channels": 32, "res_blocks": 1, "attention_side": 8, "checkpoint_every": 500},
    "gpu": {"steps": 50_000, "batch_size": 128, "channels": 128, "res_blocks": 2, "dropout": 0.1},
    "ho2020": {
        f.name: getattr(HO2020, f.name)
        for f in dataclasses.fields(TrainConfig)
        if f.name not in ("data", "out") and getattr(HO2020, f.name) != f.default
    },
}
_WARMUP = {"cpu": 200, "gpu": 1000}
SIZED = frozenset({"lr", "warmup", "cooldown", "ema", "precision"}).union(_BASES["cpu"], _BASES["gpu"])
"""The fields that the presets by device decide."""
_SHARE = 0.95  # of the time is for steps; the rest for grids and checkpoints
_MEASURE = 3000.0  # milliseconds


def preset(name: str | None = None, **given: Any) -> TrainConfig:
    """The settings of a preset.

    - "cpu": 32 channels, one block a level, attention at 8x8, batches of 32.
    - "gpu": 128 channels, two blocks a level, dropout 0.1, batches of 128.
    - "ho2020": Ho et al.'s CIFAR-10 settings.

    For the first two the learning rate is 0.001 for up to 32 channels and falls inversely with the width beyond; it rises over
    the first tenth of the steps (at most 200 or 1000) and falls over the last 30 %. The averaged weights remember an eighth of
    the steps. The precision is the faster one, by some steps of each.

    Parameters
    ----------
    name : {"cpu", "gpu", "ho2020"}, optional
        The preset. Default: by the device.
    **given
        Fields of `TrainConfig`; they win.

    Returns
    -------
    TrainConfig
        The settings.

    Raises
    ------
    TypeError, ValueError, LookupError
        As `TrainConfig` does, and if there is no such preset.
    """
    name = chosen(None, given) if name is None else one_of("name", name, PRESETS)
    made = {**_BASES[name], **given}
    if name in _WARMUP and _are_sizes(made["steps"], made["channels"]):
        made = {**_by_size(name, made["steps"], made["channels"]), **made}
    return TrainConfig.from_dict(made)


def chosen(name: str | None, given: Mapping[str, Any]) -> str:
    """The preset of that name, or the one for the device."""
    if name is not None:
        return one_of("preset", name, PRESETS)
    device = given.get("device")
    cuda = torch.cuda.is_available() if device is None else str(device).startswith("cuda")
    return "gpu" if cuda else "cpu"


def reason(name: str, asked: bool, given: Collection[str], config: TrainConfig) -> str:
    """One line: which preset, why, and what it decided."""
    why = "as asked" if asked else "for a CUDA device" if name == "gpu" else "for a CPU"
    because = {"lr": f" for {config.channels} channels", "ema": f" for {config.steps} steps"}
    keys = (*_BASES[name], *(SIZED - _BASES[name].keys() if name in _WARMUP else ()))
    decided = [f"{key} {getattr(config, key)}{because.get(key, '')}" for key in sorted(keys) if key not in given]
    return f"preset {name}, {why}: {', '.join(decided) or 'nothing, as everything is given'}"


def steps_in(minutes: float, config: TrainConfig) -> tuple[dict[str, Any], list[str]]:
    """The number of steps that take so many minutes, by the time that some take, which are then forgotten; and lines on it.

    A precision "auto" is decided with it, as the time depends on it.
    """
    minutes = as_real("minutes", minutes, 0, 1e6, open_ends=True)
    with join(config) as world:
        pictures = config.images().split(config.held_out)[0]
        settled, lines = precision.settled(config, pictures, world)
        trainer = Trainer(settled, pictures, world)
        with trainer.batches.reading_ahead(1):
            microseconds = max(1, world.any(round(1e6 * _seconds_a_step(trainer))))
    steps = max(1, int(_SHARE * 60e6 * minutes / microseconds))
    found = {"steps": steps} | ({"precision": settled.precision} if lines else {})
    return found, [*lines, f"steps {steps}: as many as fit into {minutes:g} minutes at {microseconds / 1e6:.3g} s each"]


def _seconds_a_step(trainer: Trainer) -> float:
    """The time of a step, from as many as 3 s hold."""
    float(trainer.step(1)[1])  # with what is made once
    count, seconds = 0, 0.0
    for more in (2, 48):
        began = time.perf_counter()
        for _ in range(more):
            float(trainer.step(2 + count)[1])
            count += 1
        seconds = (time.perf_counter() - began) / more
        if trainer.world.any(int(1e3 * seconds)) > _MEASURE / 48:
            break
    return seconds


def _by_size(name: str, steps: int, channels: int) -> dict[str, Any]:
    """What follows from the number of steps, the width and the processor."""
    return {
        "lr": round(1e-3 * min(1.0, 32 / channels), 8),
        "warmup": min(_WARMUP[name], steps // 10),
        "cooldown": 3 * steps // 10,
        "ema": round(min(max(1 - 8 / steps, 0.9), 0.9999), 6),
        "precision": "auto",
    }


def _are_sizes(*values: Any) -> bool:
    """Whether all are positive ints; if not, `TrainConfig` refuses them by name."""
    return all(isinstance(value, int) and value > 0 for value in values)
