"""A trained network, as a checkpoint holds it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from tinyddpm.training.data.record import Record, read_names, read_record

__all__ = ["Run", "load_run"]


@dataclass(frozen=True)
class Run:
    """A trained network, as a checkpoint holds it."""

    net: UNet
    """The network with averaged weights, in eval mode."""
    diffusion: Diffusion
    """The process that it was trained for."""
    denoiser: Denoiser
    """The denoiser of the network without a label."""
    config: TrainConfig
    """The run's settings."""
    step: int
    """The steps made."""
    shape: tuple[int, int, int]
    """One image's (channels, height, width)."""
    levels: int
    """The number of levels of the images that it was trained on."""
    record: Record | None = None
    """Which images it was trained on and which were held out; None if it does not say."""
    class_names: tuple[str, ...] = ()
    """The names of its data's classes, those of their folders; empty if they have none."""

    @property
    def classes(self) -> int | None:
        """The number of classes that the network knows; None if it was trained without labels."""
        classes: int | None = self.net.config["classes"]
        return classes

    def denoiser_for(self, label: int | Sequence[int] | None = None, scale: float = 1.0) -> Denoiser:
        """The denoiser of a class, with classifier-free guidance if `scale` is not 1.

        Parameters
        ----------
        label : int or sequence of int, optional
            A class for every sample, or one for each row of a batch. Default: no label.
        scale : float
            The guidance scale.

        Returns
        -------
        Denoiser
            For `Diffusion.sample`.

        Raises
        ------
        TypeError, ValueError
            If `label` is not a class of the run, or `scale` not a number or given without a label.
        """
        scale, free = as_real("scale", scale), self.net.config["null_class"]
        if label is None and not free:
            raise ValueError(f"label must be one of 0..{int(self.classes or 1) - 1}: the network has none for no class")
        if label is None:
            if scale != 1.0:
                raise ValueError(f"scale must be 1 without a label, got {scale}")
            return self.denoiser
        if self.classes is None:
            raise ValueError(f"label must be None, as the run was trained without classes, got {label!r}")
        if scale != 1.0 and not free:
            raise ValueError(f"scale must be 1, as the network has no class for no class, got {scale}")
        rows: Any = label if hasattr(label, "__iter__") else [label]
        given = [as_int("label", k, 0, self.classes - 1) for k in rows]
        y = torch.tensor(given, dtype=torch.long, device=next(self.net.parameters()).device)
        net = self.net if rows is label else partial(_spread, self.net)
        null = self.classes if free else 0  # not used without guidance
        return replace(self.denoiser, net=guidance.classifier_free(net, y, scale, null))


def _spread(net: UNet, x: Tensor, t: Tensor, y: Tensor) -> Any:
    """The network's output with one label for the whole batch."""
    return net(x, t, y.expand(t.shape))


def load_run(dir: str | os.PathLike[str], device: str | None = None) -> Run:
    """Load a trained network to sample from.

    Parameters
    ----------
    dir : str or path
        A run folder, whose last checkpoint is read, or a checkpoint folder.
    device : str, optional
        Torch's name of the device. Default: "cpu".

    Returns
    -------
    Run
        The network and how to sample from it.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or damaged; the message names it.
    """
    folder = find(dir)
    if folder is None:
        fault = "is not a run: it holds neither last nor state.json" if Path(dir).is_dir() else "there is no such folder"
        raise FileNotFoundError(f"model: {os.fspath(dir)}: {fault}")
    state = read_state(folder)
    try:
        config = TrainConfig.from_dict(state["config"])
        record, names = read_record(state), read_names(state)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{folder / STATE}: {error}") from None
    net = UNet.load(folder)
    return Run(
        net.to(device or "cpu", memory_format=torch.channels_last).requires_grad_(False),  # type: ignore[call-overload]
        config.diffusion(), config.denoiser(net), config, state["step"], tuple(state["shape"]), state["levels"], record, names,
    )  # fmt: skip
