"""What callers of samplers pass and get, and how a run reads it; `Diffusion.sample` documents each option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import allocating, as_dtype_name, as_real
from tinyddpm._arrays.namespace import Array, adopted, cast_like, check_same_shape, namespace_of
from tinyddpm._network.nets import torch_parameter
from tinyddpm.denoiser import Denoiser
from tinyddpm.noise import normal
from tinyddpm.plans import Spacing

Noise = Callable[[int, Sequence[int], tuple[int, ...]], Array]
"""``noise(t, index, shape) -> (len(index), *shape)`` returns the noise of the step that starts at t."""

SamplerName = Literal["ddpm", "ddim", "dpm++2m", "dpm++3m", "dpm++2m-sde", "heun", "unipc"]

BEST_SPACING: dict[str, Spacing] = {
    **dict.fromkeys(get_args(SamplerName), "quadratic"), "ddpm": "even", "dpm++3m": "log_snr", "dpm++2m-sde": "log_snr",
}  # fmt: skip
"""The spacing of few steps that served each sampler best in ``benchmarks/sampler_error.py``."""

DEFAULT_ETA: dict[str, float] = {"ddim": 0.0, "dpm++2m-sde": 1.0}
"""The samplers that have an eta, and its default."""


@dataclass(frozen=True, eq=False)
class Step:
    """A state that a sampler passes through."""

    t: int
    """The step, T at the start and 0 at the end."""
    x: Array
    """The state at t, shape (n, ...)."""
    x0: Array | None
    """The prediction of x_0 that led to it, shape (n, ...); None at the start."""


class Options(TypedDict, total=False):
    sampler: SamplerName
    steps: int | None
    spacing: Spacing | None
    timesteps: Iterable[int] | None
    eta: float | None
    seed: int
    index: Sequence[int] | None
    x_T: Array | None
    noise: Noise | None
    backend: str | None
    device: Any
    dtype: Any
    compile: bool
    autocast: Literal["bfloat16", "float16"] | None
    progress: bool
    callback: Callable[[Step], object] | None  # fmt: skip


"""The options of `sample` and `trajectory`; see `Diffusion.sample`."""


def checked_eta(sampler: str, eta: float | None) -> float:
    """A sampler's eta, by default its own."""
    eta = DEFAULT_ETA.get(sampler, 0.0) if eta is None else as_real("eta", eta, 0.0, 1.0)
    if eta and sampler not in DEFAULT_ETA:
        raise ValueError(f"eta must be 0 or left out unless the sampler is {' or '.join(DEFAULT_ETA)}, got {eta} for {sampler!r}")
    return eta


def start(denoiser: Denoiser, shape: tuple[int, ...], seed: int, index: Sequence[int], options: Options) -> Array:
    """The state at the plan's first step."""
    x_T, dtype = options.get("x_T"), as_dtype_name("dtype", options.get("dtype"))
    backend, device = _place(denoiser, options)
    if x_T is None:
        with allocating("shape", shape):
            return normal(seed, index, 0, shape[1:], backend=backend, device=device, dtype=dtype)
    xp = namespace_of(x_T=x_T)
    if tuple(x_T.shape) != shape:
        raise ValueError(f"x_T must have shape {shape}, got {tuple(x_T.shape)}")
    if not bool(xp.all(xp.isfinite(x_T))):
        raise ValueError("x_T must be finite, got NaN or infinity")
    if isinstance(x_T, np.ndarray) and backend != "numpy":
        return backends.get(backend).from_numpy(x_T, dtype=dtype, device=device)
    return x_T


def _place(denoiser: Denoiser, options: Options) -> tuple[str, Any]:
    """The backend's name and the device: as named, else of x_T, else of a Torch network, else NumPy."""
    backend, device, x_T = options.get("backend"), options.get("device"), options.get("x_T")
    if backend is not None:
        return backends.get(backend).name, device
    if x_T is not None:
        own = backends.find(x_T)
        return own.name if own else "numpy", device  # an array of a library that is not registered is used as it is
    parameter = torch_parameter(denoiser.net)
    if parameter is None:
        return "numpy", device
    return backends.of(parameter).name, parameter.device if device is None else device


def given_noise(noise: Noise, index: Sequence[int], x: Array, t: int) -> Array:
    """The caller's noise of the step from t, for a state like x."""
    xp = namespace_of(x_T=x)
    z = adopted("noise", noise(t, index, tuple(x.shape[1:])), x, xp)
    check_same_shape("noise", z, "the state", x)
    return cast_like(z, x, xp)
