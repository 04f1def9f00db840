"""A trained network, as a checkpoint holds it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyddpm import guidance
from tinyddpm._arrays.check import as_int, as_real
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import UNet
from tinyddpm.training.checkpoint import STATE, find, read_state
from tinyddpm.training.config import TrainConfig

__all__ = ["Run", "load_run"]


@dataclass(frozen=True)
class Run:
    """A trained network, as a checkpoint holds it."""

    net: UNet
    """With averaged weights, in eval mode."""
    diffusion: Diffusion
    denoiser: Denoiser
    """Of the network without a label."""
    config: TrainConfig
    step: int
    shape: tuple[int, int, int]
    """One image's (channels, height, width)."""
    levels: int
    """Of the images that it was trained on."""

    @property
    def classes(self) -> int | None:
        """How many classes the network knows; None where it was trained without labels."""
        classes: int | None = self.net.config["classes"]
        return classes

    def denoiser_for(self, label: int | Sequence[int] | None = None, scale: float = 1.0) -> Denoiser:
        """The denoiser of a class, with classifier-free guidance where `scale` is not 1.

        `label` is a class for every sample, or one for each row of a batch; None is the denoiser without a label. Raises
        `ValueError` or `TypeError` naming `label` or `scale`.
        """
        scale = as_real("scale", scale)
        if label is None:
            if scale != 1.0:
                raise ValueError(f"scale: {scale} guides towards a label, and there is none")
            return self.denoiser
        if self.classes is None:
            raise ValueError(f"label: {label!r}, but the run was trained without classes")
        rows: Any = label if hasattr(label, "__iter__") else [label]
        given = [as_int("label", k, 0, self.classes - 1) for k in rows]
        y = torch.tensor(given, dtype=torch.long, device=next(self.net.parameters()).device)
        net = self.net if rows is label else partial(_spread, self.net)
        return self.config.denoiser(guidance.classifier_free(net, y, scale, self.classes))


def _spread(net: UNet, x: Tensor, t: Tensor, y: Tensor) -> Any:
    """The network with one label for the whole batch."""
    return net(x, t, y.expand(t.shape))


def load_run(dir: str | os.PathLike[str], device: str | None = None) -> Run:
    """The run in a run folder (its last checkpoint) or in a checkpoint folder, ready to sample from.

    Raises `FileNotFoundError` or `ValueError` naming what is missing or damaged.
    """
    folder = find(dir)
    if folder is None:
        there = "is no run: it holds neither last nor state.json" if Path(dir).is_dir() else "there is no such folder"
        raise FileNotFoundError(f"model: {os.fspath(dir)}: {there}")
    state = read_state(folder)
    try:
        config = TrainConfig.from_dict(state["config"])
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{folder / STATE}: {error}") from None
    net = UNet.load(folder)
    return Run(
        net.to(device or "cpu", memory_format=torch.channels_last).requires_grad_(False),  # type: ignore[call-overload]
        config.diffusion(), config.denoiser(net), config, state["step"], tuple(state["shape"]), state["levels"],
    )  # fmt: skip
