"""The precision "auto": float32 or bf16, whichever makes the faster steps on this machine."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from tinyddpm._io.files import read_bytes
from tinyddpm.training import checkpoint
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.data.images import Images
from tinyddpm.training.trainer import Trainer
from tinyddpm.training.world import World

__all__ = ["computes_bf16", "settled"]

_GAIN = 1.2  # that bf16 has to bring, as float32 rounds less and times vary
_ROWS = 32  # at most, in a step that is timed, in each process; of a whole batch some networks take minutes
_STEPS, _SECONDS = 4, 1.0  # at most, of which the first makes what is made once


def settled(config: TrainConfig, pictures: Images, world: World) -> tuple[TrainConfig, list[str]]:
    """The settings with "auto" replaced, by the run's own precision if it is resumed, and a line on it if it was."""
    if config.precision != "auto":
        return config, []
    if config.resume and (last := checkpoint.find(config.out)) is not None:
        kept = checkpoint.read_state(last)["config"]["precision"]
        return replace(config, precision=kept), [f"precision: {kept}, as before in this run"]
    if world.any(not computes_bf16(world.device.type)):
        return replace(config, precision="float32"), ["precision: float32, as bf16 is not computed here, only emulated"]
    rows = min(config.batch_size, _ROWS * world.size)
    tried = replace(config, batch_size=rows, accumulate=1, compile=False)
    seconds = {name: _fastest(Trainer(replace(tried, precision=name), pictures, world)) for name in ("float32", "bf16")}
    faster = "bf16" if _GAIN * seconds["bf16"] < seconds["float32"] else "float32"
    times = ", ".join(f"{1e3 * time:.3g} ms in {name}" for name, time in seconds.items())
    return replace(config, precision=faster), [f"precision: {faster}, as a step of {rows} images takes {times}"]


def computes_bf16(kind: str) -> bool:
    """Whether a "cpu", by what it says of itself, or a "cuda" device multiplies bf16 numbers."""
    if kind != "cpu":
        return kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        words = set(read_bytes("/proc/cpuinfo", 2**26).split())
    except (OSError, ValueError):
        return False
    return bool(words & {b"amx_bf16", b"avx512_bf16"})


def _fastest(trainer: Trainer) -> float:
    """The time in seconds of the fastest of a few steps, in the process in which it is longest."""
    times = list[int]()
    while len(times) < _STEPS and sum(times) < 1e6 * _SECONDS:
        began = time.perf_counter()
        float(trainer.step(len(times) + 1)[1])  # which waits for a GPU
        times.append(max(1, trainer.world.any(int(1e6 * (time.perf_counter() - began)))))
    return min(times) / 1e6
