"""What callers of samplers pass and get; `Diffusion.sample` documents each option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

from tinyddpm._arrays.namespace import Array
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
