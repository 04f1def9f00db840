"""A network's chain in a file beside it: the betas, and how the network is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tinyddpm._arrays.check import MOST_STEPS, as_int
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn import weights
from tinyddpm.nn.interop import load_diffusers
from tinyddpm.nn.unet import CHAIN, CONFIG, UNet

__all__ = ["load_model"]

_KEYS = {"beta", "predicts", "variance", "clip_x0", "first_t"}


def load_model(dir: str | os.PathLike[str]) -> tuple[UNet, Diffusion, Denoiser]:
    """Return the network, process and denoiser of a saved network with its chain, or of a diffusers pipeline.

    Parameters
    ----------
    dir : path
        A folder written by ``UNet.save(dir, diffusion, denoiser)``, or one that `load_diffusers` reads.

    Returns
    -------
    net : UNet
        The network in eval mode, on the CPU.
    diffusion : Diffusion
        The process.
    denoiser : Denoiser
        The denoiser of `net`.

    Raises
    ------
    FileNotFoundError
        If a file is missing. A network that was saved without its chain lacks ``chain.json``.
    ValueError
        If a file is damaged. The message names the file.
    """
    folder = weights.as_path("dir", dir)
    if not os.path.lexists(folder / CONFIG):
        return load_diffusers(folder)

    def read() -> tuple[UNet, Diffusion, Denoiser]:
        net = UNet.load(folder)
        if not os.path.lexists(folder / CHAIN):
            raise FileNotFoundError(f"{folder / CHAIN}: no such file: the network was saved without its chain; "
                                    "net.save(dir, diffusion, denoiser) keeps both")  # fmt: skip
        return net, *_read(folder / CHAIN, net)

    return weights.reading_whole(folder, read)


def _read(file: Path, net: UNet) -> tuple[Diffusion, Denoiser]:
    """The process and the denoiser that a file describes."""
    stored = weights.read_json(file)
    for key in sorted(stored.keys() ^ _KEYS):
        raise ValueError(f"{file}: the key {key!r} is {'missing' if key in _KEYS else 'unknown'}")
    options: dict[str, Any] = {key: stored[key] for key in ("predicts", "first_t")}
    try:
        options["clip_x0"] = tuple(stored["clip_x0"]) if isinstance(stored["clip_x0"], list) else stored["clip_x0"]
        as_int("the number of betas", len(stored["beta"]), 1, MOST_STEPS)
        diffusion, table = Diffusion(stored["beta"]), stored["variance"]
        if isinstance(table, list) and len(table) != diffusion.T:
            raise ValueError(f"variance must have {diffusion.T} entries, got {len(table)}")
        options["variance"] = np.array([np.nan, *table], np.float64) if isinstance(table, list) else table
        return diffusion, Denoiser(net, **options)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise ValueError(f"{file}: {error}") from None
