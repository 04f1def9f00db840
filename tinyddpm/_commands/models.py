"""Models that are no runs: a saved network with its chain, and a diffusers pipeline."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyddpm._io.files import read_json
from tinyddpm.nn import load_model
from tinyddpm.training import Run, TrainConfig

_MARKS = ("unet.json", "model_index.json", "unet", "scheduler", "scheduler_config.json")
_CONFIGS = ("unet/config.json", "config.json")  # of a pipeline, and of the oldest ones


@dataclass(frozen=True)
class Saved(Run):
    """A model that does not say what it was trained on; images have 256 levels."""


def is_saved(model: str) -> bool:
    """Whether a folder holds a saved network or a pipeline, and no run."""
    folder = Path(model)
    if any(os.path.lexists(folder / name) for name in ("last", "checkpoints", "state.json")):
        return False
    return any(os.path.lexists(folder / name) for name in _MARKS)


def open_saved(model: str, device: str) -> Saved:
    """Load a saved network with its chain, or a pipeline, to a device."""
    import torch

    net, diffusion, denoiser = load_model(model)
    size: Any = net.config["image_size"]
    for name in _CONFIGS:
        file = Path(model, name)
        if not Path(model, "unet.json").exists() and file.is_file() and read_json(file, links=True).get("sample_size") is None:
            raise ValueError(f"model: {file}: sample_size must be given, the height and width of the images")
    height, width = (size, size) if isinstance(size, int) else size
    net.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    shape = (net.conv_in.in_channels, height, width)
    return Saved(net, diffusion, denoiser, TrainConfig(out="unused", data="unknown", held_out=0.0), 0, shape, 256)
