"""A run of sampling: its arguments are checked, then one loop calls the network and makes the steps."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tinyddpm import backends, plans
from tinyddpm._arrays.check import (
    allocating,
    as_bool,
    as_callable,
    as_dtype_name,
    as_int,
    as_real,
    lookup,
    refuse_unknown_options,
)
from tinyddpm._arrays.namespace import (
    Array,
    array_like,
    cast_like,
    check_same_shape,
    copy_array,
    dtype_name,
    is_array_of,
    namespace_of,
    on_host,
)
from tinyddpm._arrays.steps import time_arrays
from tinyddpm._io.progress import progress_bar
from tinyddpm._network.nets import NeedsChain, refuse_nonfinite, torch_parameter
from tinyddpm._process import Process
from tinyddpm._sampling.bind import bound_rows, check_range
from tinyddpm._sampling.options import BEST_SPACING, DEFAULT_ETA, Noise, Options, Step
from tinyddpm._sampling.rows import METHODS
from tinyddpm._sampling.step import ArrayApiStepper
from tinyddpm.backends import Row, Stepper
from tinyddpm.denoiser import Denoiser, check_model
from tinyddpm.noise import as_words, normal, numbers

Context = Callable[[], AbstractContextManager[Any]]


def run(d: Process, denoiser: Denoiser, shape: Sequence[int], every: int | None, options: Options) -> Iterator[Step]:
    """Check the arguments and return the steps: the start and every `every`-th, or only the last if `every` is None."""
    check_model(d, denoiser)
    refuse_unknown_options(options, Options.__annotations__, "sample")
    sampler, noise, callback = options.get("sampler", "ddpm"), options.get("noise"), options.get("callback")
    method = lookup("sampler", sampler, METHODS)
    if noise is not None:
        as_callable("noise", noise, "noise(t, index, shape)")
    if callback is not None:
        as_callable("callback", callback, "callback(step)")
    eta, shape = _checked_eta(sampler, options.get("eta")), _checked_shape(shape)
    seed, index = as_int("seed", options.get("seed", 0), 0, 2**64 - 1), numbers(options.get("index"), shape[0])
    x_T = options.get("x_T")
    plan = plans.chosen(
        d.log_snr, options.get("steps"), options.get("timesteps"), options.get("spacing"),
        default=BEST_SPACING[sampler], started=x_T is not None,
    )  # fmt: skip
    rows = bound_rows(method, d, denoiser, plan, eta)
    x = _start(denoiser, shape, seed, index, options)
    check_range(rows, denoiser, x, sampler)
    if dtype_name(x) == "bfloat16":
        warnings.warn("dtype bfloat16 rounds the state at every step, and samples drift the further the more steps there are; "
                      "keep float32 and run the network in bfloat16: autocast='bfloat16'", UserWarning, stacklevel=5)  # fmt: skip
    keep_x0 = every is not None or callback is not None
    stepper = _stepper(rows, x, seed, index, denoiser.clip_range, keep_x0)
    given_noise = None if noise is None else partial(_given_noise, noise, index, x)
    denoiser = _optimized(denoiser, x, stepper if noise is None else None, options)
    no_grad = backends.gradients_off(x)
    times = _loop(d, denoiser, rows, stepper, given_noise, no_grad if keep_x0 else nullcontext)
    times = progress_bar(times, len(plan) - 1, enabled=as_bool("progress", options.get("progress", False)), label=sampler)
    if keep_x0:
        return _steps(times, stepper, Step(plan[0], x, None), callback, every)
    return _last_step(times, stepper, no_grad())


def _steps(
    times: Iterator[int], stepper: Stepper, start: Step, callback: Callable[[Step], object] | None, every: int | None
) -> Iterator[Step]:
    """The steps that are wanted, in memory that no later step overwrites."""
    if every is not None:
        yield start
    for k, t in enumerate(times, 1):
        wanted = t == 0 or (every is not None and k % every == 0)
        if not wanted and callback is None:
            continue
        x, x0 = stepper.state, stepper.x0
        step = Step(t, copy_array(x), copy_array(x0)) if t else Step(t, x, x0)
        if callback is not None:
            callback(step)
        if wanted:
            yield step


def _last_step(times: Iterator[int], stepper: Stepper, context: AbstractContextManager[Any]) -> Iterator[Step]:
    """The last step only; nobody else's code but the network's runs before it, so one context serves all steps."""
    with context:
        deque(times, maxlen=0)
    yield Step(0, stepper.state, None)


def _loop(
    d: Process,
    denoiser: Denoiser,
    rows: Sequence[Row],
    stepper: Stepper,
    given_noise: Callable[[int], Array] | None,
    no_grad: Context,
) -> Iterator[int]:
    """Make the steps; yield the time after each."""
    xp, host = namespace_of(x_T=stepper.state), on_host(stepper.state)
    for k, (row, net_t) in enumerate(zip(rows, time_arrays([row.net_t for row in rows], stepper.state, xp), strict=True)):
        x = stepper.state
        with no_grad():
            value, raw = denoiser.call(d, x, row.t, xp, net_t)
            if host:
                refuse_nonfinite(xp, row.t, raw)
            std = None if row.std is not None else _std(d, denoiser, raw, x, row, xp)
            z = None if given_noise is None or row.std == 0.0 else given_noise(row.t)
            finite = stepper.step(k, value, std, z)
        if finite is False:
            raise ValueError(f"net returned NaN or infinity at t = {row.t}")
        if row.s == 0 and not host:
            refuse_nonfinite(xp, row.t, stepper.state)
        if row.ends_step:
            yield row.s


def _std(d: Process, denoiser: Denoiser, raw: Array | None, x: Array, row: Row, xp: Any) -> Array:
    """The standard deviation of a step's noise for every element, in memory of its own."""
    std = xp.exp(denoiser.log_var_from(d, raw, x, row.t, row.s, xp) / 2)
    return std if std.shape == x.shape else std + xp.zeros_like(x)


def _stepper(
    rows: Sequence[Row], x: Array, seed: int, index: Sequence[int], clip: tuple[float, float] | None, keep_x0: bool
) -> Stepper:
    """The backend's own stepper, or else the one of array-API operations."""
    try:
        make = backends.of(x).stepper
    except LookupError:  # a library that is not registered can be used as long as no noise of ours is needed
        make = None
    accelerated: Any = NotImplemented
    if make is not None:
        accelerated = make(rows, x, seed=seed, index=as_words(index), clip=clip, keep_x0=keep_x0)
    if accelerated is NotImplemented:
        return ArrayApiStepper(rows, x, seed=seed, index=index, clip=clip, keep_x0=keep_x0)
    return accelerated  # type: ignore[no-any-return]


def _optimized(denoiser: Denoiser, x: Array, stepper: Stepper | None, options: Options) -> Denoiser:
    """The denoiser with its network's faster form, if the options ask for one."""
    compiled, autocast = as_bool("compile", options.get("compile", False)), options.get("autocast")
    if not compiled and autocast is None:
        return denoiser
    name, backend = "compile" if compiled else "autocast", backends.of(x)
    if backend.optimize_net is None:
        raise ValueError(f"{name} must be left out with the backend {backend.name!r}, which runs networks as they are")
    if isinstance(denoiser.net, NeedsChain):
        raise ValueError(f"{name} must be left out with a network that a classifier's gradient guides")
    return replace(denoiser, net=backend.optimize_net(denoiser.net, compile=compiled, autocast=autocast, stepper=stepper))


def _given_noise(noise: Noise, index: Sequence[int], x: Array, t: int) -> Array:
    """The caller's noise of the step from t, for a state like x."""
    xp, z = namespace_of(x_T=x), noise(t, index, tuple(x.shape[1:]))
    if isinstance(z, np.ndarray):
        z = array_like(z, x, xp)
    if not is_array_of(xp, z):
        raise TypeError(f"noise must return {type(x).__name__}, got {type(z).__name__} at t = {t}")
    check_same_shape("noise", z, "the state", x)
    return cast_like(z, x, xp)


def _start(denoiser: Denoiser, shape: tuple[int, ...], seed: int, index: Sequence[int], options: Options) -> Array:
    """The state at the plan's first step."""
    x_T, dtype = options.get("x_T"), as_dtype_name("dtype", options.get("dtype", "float32"))
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
        try:
            return backends.of(x_T).name, device
        except LookupError:  # an array of a library that is not registered is used as it is
            return "numpy", device
    parameter = torch_parameter(denoiser.net)
    if parameter is None:
        return "numpy", device
    return backends.of(parameter).name, parameter.device if device is None else device


def _checked_eta(sampler: str, eta: float | None) -> float:
    eta = DEFAULT_ETA.get(sampler, 0.0) if eta is None else as_real("eta", eta, 0.0, 1.0)
    if eta and sampler not in DEFAULT_ETA:
        raise ValueError(f"eta must be 0 or left out unless the sampler is {' or '.join(DEFAULT_ETA)}, got {eta} for {sampler!r}")
    return eta


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int | str) or not isinstance(shape, Sequence) or not shape:
        raise TypeError(f"shape must be a sequence (n, ...) of ints, got {shape!r}")
    checked = tuple(as_int("shape", size, 0, 2**62) for size in shape)
    if math.prod(checked) >= 2**48:
        raise ValueError(f"shape is more than can be allocated: {checked}")
    return checked
