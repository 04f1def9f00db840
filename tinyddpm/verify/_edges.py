"""Where numbers go wrong first: flat pieces of a chain, inversion near T, float32 far from the mean, compilers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np

from tinyddpm import Denoiser, Diffusion, edit, losses, schedules
from tinyddpm.analytic import GaussianData
from tinyddpm.verify._core import Identities, Place, difference, ulp_error
from tinyddpm.verify._gaussians import _WHY_DECODER, _decoder
from tinyddpm.verify._truth import Chain, exactly

identities = Identities()

_FLAT = [0.3] * 5 + [1e-10] * 10 + [0.3] * 5
_INVERTIBLE = ("linear", "quadratic", "geometric", "cosine", "sigmoid", "sigmoid_alpha_bar")


@identities.add(
    "weights over a flat piece of a chain after a steep one against exact arithmetic",
    "ulp",
    fixed=4,
    why="sums that would cancel are made anew",
)
def _flat_weights(_: Place) -> float:
    error = 0.0
    with exactly(400):
        for beta in (_FLAT, [0.5, 1 - 1e-16, 1e-300, 2e-300, 1e-40, 0.1]):
            d, exact = Diffusion(beta), Chain(beta)
            for t, s in combinations(range(d.T, -1, -1), 2):
                found = d.between_weights(t, s)[1], *d.posterior_weights(t, s)
                error = max(error, ulp_error(found, (exact.beta_between(t, s), *exact.weights(t, s))))
    return error


@identities.add(
    "samplers over a flat piece of a chain agree with float64",
    "absolute",
    eps=64,
    why="rounding errors of 20 steps, in numbers of size 1",
)
def _flat_samples(place: Place) -> float:
    d = Diffusion(_FLAT)
    denoiser = Denoiser(GaussianData([0.2] * 4, 0.01).net(d), clip_x0=False)
    x_T, error = place.draw(8, 4), 0.0
    for sampler in ("ddim", "dpm++2m", "dpm++3m", "heun", "unipc"):
        found = d.sample(denoiser, (8, 4), sampler=sampler, x_T=place.array(x_T))
        exact = d.sample(denoiser, (8, 4), sampler=sampler, x_T=x_T.astype(np.float64))
        error = max(error, difference(place.host(found), exact))
    return error


@identities.add(
    "inversion and back are the data, on every named schedule",
    "absolute",
    fixed=1e-6,
    eps=1024,
    why="the contract of edit.invert",
)
def _inversion(place: Place) -> float:
    x0, error = 0.3 + 0.2 * place.draw(8, 4), 0.0
    for name in _INVERTIBLE:
        d = Diffusion(getattr(schedules, name)(1000))
        net: Any = GaussianData([0.3] * 4, 0.04).net(d)
        if "jax" in place.backend.roots and (compile_ := _compiler(place)):  # else each operation is a call of its own
            net = compile_(net)
        denoiser = Denoiser(net, clip_x0=False)
        x_T = edit.invert(d, denoiser, place.array(x0), steps=50)
        back = d.sample(denoiser, x0.shape, sampler="ddim", steps=50, x_T=x_T)
        error = max(error, difference(place.host(back), x0))
    return error


@identities.add("the decoder up to 1e15 std from the mean, std from 1e-8 to 1e8", "nats", eps=64, why=_WHY_DECODER)
def _far_tails(place: Place) -> float:
    return _decoder(place, [
        (level, levels, 2 * level / (levels - 1) - 1 + side * distance * std, math.log(std))
        for levels in (2, 256, 65_536)
        for level in (0, levels // 2, levels - 1)
        for distance in (0.5, 1e5, 1e10, 1e15)
        for side in (-1, 1)
        for std in (1e-8, 1e-4, 1.0, 1e8)
    ])  # fmt: skip


@identities.add("a compiled loss is the loss", "nats", eps=64, why="relative to max(1, nats): a compiler may order a sum anew")
def _compiled(place: Place) -> float | None:
    """By `torch.compile`, as one graph, or `jax.jit`, from the first call of a new chain."""
    compile_ = _compiler(place)
    if compile_ is None:
        return None
    d, denoiser = Diffusion(schedules.linear(8, 0.01, 0.5)), Denoiser(_half, "v")
    x0, eps = (place.array(0.5 * np.tanh(place.draw(8, 4, seed=k))) for k in (0, 1))
    t = place.backend.from_numpy(np.arange(1, 9), device=place.device)
    found = place.host(compile_(lambda x, t, e: losses.vlb(d, denoiser, x, t, e))(x0, t, eps))
    truth = place.host(losses.vlb(d, denoiser, x0, np.arange(1, 9), eps))
    return difference(found, truth, np.maximum(1.0, np.abs(truth)))


def _half(x: Any, t: Any) -> Any:
    return 0.5 * x


def _compiler(place: Place) -> Callable[[Any], Any] | None:
    """The library's compiler; None if it has none."""
    if "torch" in place.backend.roots:
        import torch

        return lambda f: torch.compile(f, backend="eager", fullgraph=True)
    if "jax" in place.backend.roots:
        from jax import jit

        return jit
    return None
