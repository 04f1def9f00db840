"""Starting a run from the weights of a run, a saved network or a diffusers pipeline, onto other classes and sizes too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tinyddpm._io.files import read_json
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import UNet, load_diffusers
from tinyddpm.nn.unet import CONFIG
from tinyddpm.training.checkpoint import find
from tinyddpm.training.config import TrainConfig
from tinyddpm.training.data.images import Images
from tinyddpm.training.run import load_run

__all__ = ["new_network", "settings_of", "start_from"]

_CHAIN = ("T", "schedule", "predicts", "variance", "objective")


class _Source(NamedTuple):
    net: UNet
    diffusion: Diffusion | None = None
    denoiser: Denoiser | None = None
    config: TrainConfig | None = None


def settings_of(source: str) -> dict[str, Any]:
    """The settings of a new run that fit the weights in `source`: the width and, where they are known, the chain's."""
    found = _open(source)
    if found.config is not None:
        return {"channels": found.net.config["channels"], **{name: getattr(found.config, name) for name in _CHAIN}}
    return {"channels": found.net.config["channels"], **({} if found.denoiser is None else {"predicts": found.denoiser.predicts})}


def new_network(config: TrainConfig, images: Images) -> UNet:
    """A run's network with random weights: of the sizes in `config`, or those of the network in `init_from`."""
    plain = config.unet(images)
    if config.init_from is None:
        return plain
    last = find(config.out) if config.resume else None
    if last is None:
        made = dict(_open(config.init_from).net.config)
    else:
        made = {name: value for name, value in read_json(last / CONFIG).items() if name != "sha256"}
    old, new = (size if isinstance(size, int) else size[0] for size in (made["image_size"], plain.config["image_size"]))
    made["attention"] = [side * new // old for side in made["attention"]]
    for name in ("image_size", "in_channels", "out_channels", "classes", "dropout", "null_class"):
        made[name] = plain.config[name]
    return UNet(**made)


def start_from(net: UNet, config: TrainConfig) -> list[str]:
    """Copy the weights of `init_from` that fit into `net`; returns lines that say what was taken and what not."""
    if config.init_from is None:
        return []
    source, taken = _open(config.init_from), list[str]()
    theirs, mine = source.net.state_dict(), net.state_dict()
    with torch.no_grad():
        for name, tensor in mine.items():
            if name in theirs and theirs[name].shape == tensor.shape:
                tensor.copy_(theirs[name])
                taken.append(name)
    if not taken:
        raise ValueError(f"init_from must hold weights that fit the run's network, got {config.init_from}")
    told = [f"init_from: {len(taken)} of {len(mine)} tensors are those of {config.init_from}"]
    if new := [name for name in mine if name not in taken]:
        told.append(f"init_from: random, as the shapes differ or there are none: {', '.join(new)}")
    if left := [name for name in theirs if name not in mine]:
        told.append(f"init_from: not taken: {', '.join(left)}")
    if source.denoiser is not None and source.denoiser.predicts != config.predicts:
        told.append(f"init_from: the weights predict {source.denoiser.predicts}, this run {config.predicts}")
    if source.diffusion is not None and not _same(source.diffusion, config.diffusion()):
        told.append("init_from: the weights were trained with other betas than this run's")
    return told


def _open(source: str) -> _Source:
    """The network in a folder."""
    try:
        if find(source) is not None:
            run = load_run(source)
            return _Source(run.net, run.diffusion, run.denoiser, run.config)
        if Path(source, "model_index.json").exists():
            return _Source(*load_diffusers(source))
        return _Source(UNet.load(source))
    except FileNotFoundError as error:
        message = "it holds neither a run nor a saved network nor a diffusers pipeline" if Path(source).is_dir() else error
        raise FileNotFoundError(f"init_from: {os.fspath(source)}: {message}") from None


def _same(one: Diffusion, two: Diffusion) -> bool:
    return one.T == two.T and bool(abs(one.beta[1:] / two.beta[1:] - 1).max() < 1e-4)  # diffusers computes them in float32
