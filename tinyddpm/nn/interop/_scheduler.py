"""A `Diffusion` and the options of a `Denoiser` as the config of a DDPMScheduler, and back."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm import schedules
from tinyddpm._arrays.check import MOST_STEPS, as_int
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.nn.interop._config import filled, header, naming
from tinyddpm.nn.unet import UNet

DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None,
    "variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon", "thresholding": False,
    "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0, "sample_max_value": 1.0,
    "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False,
}  # fmt: skip
_PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCE = {
    "fixed_small": "beta_tilde", "fixed_small_log": "beta_tilde", "fixed_large": "beta", "learned_range": "learned_range"
}  # fmt: skip
_SCHEDULES = {
    "linear": schedules.linear, "scaled_linear": schedules.quadratic, "squaredcos_cap_v2": schedules.cosine,
    "sigmoid": schedules.sigmoid,
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "variance_type": (*_VARIANCE,), "prediction_type": (*_PREDICTS,), "thresholding": (False,),
    "timestep_spacing": ("leading", "linspace", "trailing"), "clip_sample": (True, False),
    "rescale_betas_zero_snr": (True, False),
    "tensor_format": ("pt", "np"), "timestep_values": (None,), "predict_epsilon": (True,),  # keys of the oldest versions
}  # fmt: skip
_THEIRS = {
    "T": "num_train_timesteps", "beta_1": "beta_start", "beta_T": "beta_end", "beta": "trained_betas",
}  # fmt: skip


def process(file: Path, net: UNet) -> tuple[Diffusion, dict[str, Any]]:
    """Return the process of a DDPMScheduler's config, and the options of the `Denoiser` that reads `net` in the same way."""
    config = filled(file, "DDPMScheduler", DEFAULTS, _ONLY)
    with naming(file, config, _THEIRS):
        if config["clip_sample"] and config["clip_sample_range"] != 1:
            raise ValueError(f"clip_sample_range must be 1, got {reprlib.repr(config['clip_sample_range'])}")
        variance = _VARIANCE[config["variance_type"]]
        if problem := _misfit(net, variance):
            raise ValueError(f"variance_type={config['variance_type']!r} {problem}")
        diffusion = Diffusion(_beta(config))
    return diffusion, {
        "predicts": _PREDICTS[config["prediction_type"]],
        "variance": variance,
        "clip_x0": bool(config["clip_sample"]),
        "first_t": 0,
    }


def _beta(config: Mapping[str, Any]) -> NDArray[np.float64]:
    """The betas of a config, with this library's own schedules in float64."""
    T = as_int("T", config["num_train_timesteps"], 1, MOST_STEPS)
    given, name = config["trained_betas"], config["beta_schedule"]
    if given is not None:
        if not isinstance(given, list) or len(given) != T or not all(type(b) in (int, float) for b in given):
            raise ValueError(f"trained_betas must be a list of num_train_timesteps={T} numbers, got {reprlib.repr(given)}")
        beta = schedules.checked(given)
    elif name not in [*_SCHEDULES]:
        raise ValueError(f"beta_schedule must be one of {', '.join(_SCHEDULES)}, got {reprlib.repr(name)}")
    elif name == "squaredcos_cap_v2":
        beta = schedules.cosine(T)
    else:
        beta = _SCHEDULES[name](T, config["beta_start"], config["beta_end"])
    return schedules.zero_terminal_snr(beta) if config["rescale_betas_zero_snr"] else beta


def config_of(diffusion: Diffusion, denoiser: Denoiser, net: UNet) -> dict[str, Any]:
    """Return the config of the DDPMScheduler that equals a process and a denoiser."""
    if denoiser.net is not net:
        raise ValueError("denoiser must hold the given net, got another one")
    if denoiser.first_t != 0:
        raise ValueError(f"denoiser must have first_t=0, as diffusers counts, got first_t={denoiser.first_t}")
    predicts = {ours: theirs for theirs, ours in _PREDICTS.items()}
    variance = {ours: theirs for theirs, ours in _VARIANCE.items() if theirs != "fixed_small_log"}
    if denoiser.predicts not in predicts:
        raise ValueError(f"denoiser must predict one of {', '.join(predicts)}, as diffusers can, got {denoiser.predicts!r}")
    if not isinstance(denoiser.variance, str) or denoiser.variance not in variance:
        name = repr(denoiser.variance) if isinstance(denoiser.variance, str) else "a table"
        known = ", ".join(variance)
        raise ValueError(f"denoiser must have a variance of {known}, as diffusers can, got {name}")
    if problem := _misfit(net, denoiser.variance):
        raise ValueError(f"denoiser with variance={denoiser.variance!r} {problem}")
    return {
        **header("DDPMScheduler"),
        **DEFAULTS,
        "num_train_timesteps": diffusion.T,
        **_named(diffusion.beta[1:]),
        "variance_type": variance[denoiser.variance],
        "prediction_type": predicts[denoiser.predicts],
        "clip_sample": denoiser.clip_x0,
    }


def _named(beta: NDArray[np.float64]) -> dict[str, Any]:
    """The keys of a schedule: its name and ends if diffusers has it, otherwise its betas."""
    first, last = float(beta[0]), float(beta[-1])
    for name, schedule in _SCHEDULES.items():
        if name == "sigmoid":  # its first and last betas are not the arguments
            continue
        ends = {} if name == "squaredcos_cap_v2" else {"beta_1": first, "beta_T": last}
        if (first < 1 or len(beta) == 1) and np.array_equal(schedule(len(beta), **ends), beta):
            return {"beta_schedule": name, **({"beta_start": first, "beta_end": last} if ends else {})}
    return {"trained_betas": beta.tolist()}


def _misfit(net: UNet, variance: str) -> str:
    """The reason why a network can't be read with this variance, or an empty string."""
    have, need = net.conv_out.out_channels, net.conv_in.in_channels * (2 if variance == "learned_range" else 1)
    return "" if have == need else f"needs a network with {need} output channels, got {have}"
