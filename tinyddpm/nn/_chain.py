"""A network's chain as JSON."""

from __future__ import annotations

from typing import Any

from torch import nn

from tinyddpm._arrays.check import as_instance
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion


def described(net: nn.Module, diffusion: Diffusion | None, denoiser: Denoiser | None) -> dict[str, Any] | None:
    """Return the betas and the denoiser's options; None if neither is given."""
    if diffusion is None and denoiser is None:
        return None
    chain: Diffusion = as_instance("diffusion", diffusion, Diffusion)
    read: Denoiser = as_instance("denoiser", denoiser, Denoiser)
    if read.net is not net:
        raise ValueError("denoiser must hold the network that is saved, got another one")
    variance: Any = read.variance
    if not isinstance(variance, str):
        if variance.shape != (chain.T + 1,):
            raise ValueError(f"denoiser must have one variance a step to be saved, got a table of shape {variance.shape}")
        variance = variance[1:].tolist()
    return {
        "beta": chain.beta[1:].tolist(), "predicts": read.predicts, "variance": variance, "clip_x0": read.clip_x0,
        "first_t": read.first_t,
    }  # fmt: skip
