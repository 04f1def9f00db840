"""A run of sampling: a method's rows are bound to the denoiser, then one loop calls the network and makes the steps."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import Any, Unpack

import numpy as np

from tinyddpm import backends, plans
from tinyddpm._arrays.check import as_bool, as_callable, as_instance, as_int, as_shape, lookup
from tinyddpm._arrays.namespace import Array, copy_array, dtype_name, namespace_of, on_host, quiet
from tinyddpm._arrays.steps import time_arrays
from tinyddpm._io.progress import progress_bar
from tinyddpm._network.nets import NeedsChain, innermost, refuse_nonfinite
from tinyddpm._process import Process
from tinyddpm._sampling.options import BEST_SPACING, Options, Step, checked_eta, given_noise, start
from tinyddpm._sampling.rows import METHODS, Method
from tinyddpm.backends import Row, Stepper, depth, reverse_step, row_weights
from tinyddpm.denoiser import Denoiser
from tinyddpm.noise import as_words, like, numbers

Context = Callable[[], AbstractContextManager[Any]]


def run(
    d: Process, denoiser: Denoiser, shape: Sequence[int], every: int | None, **options: Unpack[Options]
) -> Iterator[Step]:  # fmt: skip
    """Check the arguments and return the steps: the start and every `every`-th, or only the last if `every` is None."""
    as_instance("denoiser", denoiser, Denoiser)
    sampler, noise, callback = options.get("sampler", "ddpm"), options.get("noise"), options.get("callback")
    method = lookup("sampler", sampler, METHODS)
    if noise is not None:
        as_callable("noise", noise, "noise(t, index, shape)")
    if callback is not None:
        as_callable("callback", callback, "callback(step)")
    eta, shape = checked_eta(sampler, options.get("eta")), as_shape(shape)
    seed, index = as_int("seed", options.get("seed"), 0, 2**64 - 1), numbers(options.get("index"), shape[0])
    plan = plans.chosen(
        d.log_snr, options.get("steps"), options.get("timesteps"), options.get("spacing"),
        default=BEST_SPACING[sampler], started=options.get("x_T") is not None,
    )  # fmt: skip
    rows = bound_rows(method, d, denoiser, plan, eta)
    x = start(denoiser, shape, seed, index, options)
    check_range(rows, denoiser, x, sampler)
    if dtype_name(x) == "bfloat16":
        warnings.warn("dtype bfloat16 rounds the state at every step, and samples drift the further the more steps there are; "
                      "keep float32 and run the network in bfloat16: autocast='bfloat16'", UserWarning, stacklevel=4)  # fmt: skip
    keep_x0 = every is not None or callback is not None
    stepper = _stepper(rows, x, seed=seed, index=as_words(index), clip=denoiser.clip_range, keep_x0=keep_x0)
    own_noise = None if noise is None else partial(given_noise, noise, index, x)
    denoiser = _optimized(denoiser, x, stepper if noise is None else None, options)
    no_grad = backends.gradients_off(x)
    times = _loop(d, denoiser, rows, stepper, own_noise, no_grad if keep_x0 else nullcontext)
    times = progress_bar(times, len(plan) - 1, enabled=as_bool("progress", options.get("progress")), label=sampler)
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
    d: Process, denoiser: Denoiser, rows: Sequence[Row], stepper: Stepper, noise: Callable[[int], Array] | None, no_grad: Context
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
            z = None if noise is None or row.std == 0.0 else noise(row.t)
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


def _stepper(rows: Sequence[Row], x: Array, **options: Any) -> Stepper:
    """The backend's own stepper, or else the one of array-API operations."""
    backend = backends.find(x)  # a library that is not registered can be used as long as no noise of ours is needed
    accelerated: Any = backend.stepper(rows, x, **options) if backend and backend.stepper else NotImplemented
    return ArrayApiStepper(rows, x, **options) if accelerated is NotImplemented else accelerated


def _optimized(denoiser: Denoiser, x: Array, stepper: Stepper | None, options: Options) -> Denoiser:
    """The denoiser with its network's faster form, if the options ask for one."""
    compiled, autocast = as_bool("compile", options.get("compile")), options.get("autocast")
    if not compiled and autocast is None:
        return denoiser
    name, backend = "compile" if compiled else "autocast", backends.of(x)
    if backend.optimize_net is None:
        raise ValueError(f"{name} must be left out with the backend {backend.name!r}, which runs networks as they are")
    if isinstance(innermost(denoiser.net), NeedsChain):
        raise ValueError(f"{name} must be left out with a network that a classifier's gradient guides")
    return replace(denoiser, net=backend.optimize_net(denoiser.net, compile=compiled, autocast=autocast, stepper=stepper))


def bound_rows(method: Method, d: Process, denoiser: Denoiser, timesteps: tuple[int, ...], eta: float) -> tuple[Row, ...]:
    """The method's rows with what the denoiser decides: how x_0 follows from its network's output, and the variance.

    Those of the last runs are kept. They depend on how the network is read, not on the network: any function of two arguments
    stands for it.
    """
    return _bound_rows(method, d, replace(denoiser, net=isinstance), timesteps, eta)


@lru_cache(maxsize=2)  # a plan has as many rows as steps: those of a long chain are not small
def _bound_rows(method: Method, d: Process, denoiser: Denoiser, timesteps: tuple[int, ...], eta: float) -> tuple[Row, ...]:
    rows = method(d, timesteps, eta)
    of_output, of_state = d.conversion(denoiser.predicts, "x0")
    if bad := [row.t for row in rows if math.isnan(of_output[row.t])]:
        raise ValueError(f"predicts must be 'v' or 'x0' on such a schedule, got {denoiser.predicts!r}: x_0 does not follow "
                         f"from it at t = {bad[0]}, where alpha_bar is {d.alpha_bar[bad[0]]}")  # fmt: skip
    x0_from = list(zip(of_output.tolist(), [0.0] * (d.T + 1) if of_state is None else of_state.tolist(), strict=True))
    return tuple(
        replace(row, std=std, x0_from=x0_from[row.t], net_t=row.t - 1 + denoiser.first_t)
        for row, std in zip(rows, _fixed_std(d, denoiser, rows), strict=True)
    )


def check_range(rows: Sequence[Row], denoiser: Denoiser, x: Array, sampler: str) -> None:
    """Raise ValueError if x_0 leaves the range of x's dtype along the plan."""
    limit = float(namespace_of(x_T=x).finfo(x.dtype).max)
    if bad := [row.t for row in rows if max(map(abs, row.x0_from)) > limit]:
        raise ValueError(f"predicts must be a kind from which x_0 follows in {dtype_name(x)} at t = {bad[0]}, "
                         f"got {denoiser.predicts!r} for the sampler {sampler!r}")  # fmt: skip


def _fixed_std(d: Process, denoiser: Denoiser, rows: Sequence[Row]) -> list[float | None]:
    """The standard deviation of each row's noise; None if it is not one number that is known before the run."""
    std = [row.std for row in rows]
    if None not in std or denoiser.learned or np.ndim(denoiser.variance) > 1:
        return std
    x = np.zeros((len(rows), 1))
    t, s = (np.array([getattr(row, name) for row in rows]) for name in "ts")
    log_var = denoiser.log_var_from(d, None, x, t, s, namespace_of(x=x))
    known = np.broadcast_to(log_var, x.shape)[:, 0].tolist()
    return [math.exp(value / 2) if row.std is None else row.std for row, value in zip(rows, known, strict=True)]


class ArrayApiStepper:
    """A `backends.Stepper` for any library; each state is a new array."""

    def __init__(
        self, rows: Sequence[Row], x: Array, *, seed: int, index: Sequence[int], clip: tuple[float, float] | None, keep_x0: bool
    ) -> None:
        self._rows, self._seed, self._index, self._clip = rows, seed, index, clip
        self._xp, self._on_host = namespace_of(x_T=x), on_host(x)
        self.state = self._base = x
        self._history: tuple[Array, ...] = (x,) * depth(rows)

    @property
    def x0(self) -> Array:
        """The newest prediction of x_0."""
        return self._history[0]

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> bool:
        """Make the step of row k; return False if the host sees that the network's output is not finite."""
        row, xp = self._rows[k], self._xp
        if self._on_host and not bool(xp.all(xp.isfinite(value))):
            return False
        with quiet():
            sigma: Any = row.std if std is None else std
            noise = None if row.std == 0.0 else sigma * (self._draw(row.t) if z is None else z)
            self.state, self._base, self._history = reverse_step(
                self.state, self._base, self._history, value, row_weights(row), noise, clip=self._clip, xp=xp
            )
        return True

    @cached_property
    def _draw(self) -> Callable[[int], Array]:
        """The run's noise at a step."""
        return like(self._base, self._seed, self._index)
