"""Sampling: one loop for every sampler.

A sampler folds its plan into rows of weights (`_rows`); the loop calls the network, reads x_0 and forms the next state from
them. Noise is a pure function of (seed, sample, step), so a sample does not depend on how the batch was cut.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from tinyddpm import backends, plans
from tinyddpm._arrays.check import allocating, as_int, as_positive_int, as_real, lookup
from tinyddpm._arrays.namespace import (
    Array,
    array_like,
    cast_like,
    check_same_shape,
    copy_array,
    dtype_name,
    namespace_of,
    on_host,
)
from tinyddpm._arrays.steps import time_arrays
from tinyddpm._io.progress import progress_bar
from tinyddpm._sampling import rows as methods
from tinyddpm._sampling.rows import Sampler
from tinyddpm._sampling.step import ArrayApiStepper
from tinyddpm.backends import Row, Stepper
from tinyddpm.denoiser import check_model, refuse_nonfinite
from tinyddpm.noise import as_words, normal, numbers

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser, Net
    from tinyddpm.diffusion import Diffusion

__all__ = ["NAMES", "Noise", "Options", "Step", "sample", "trajectory"]

Noise = Callable[[int, Sequence[int], tuple[int, ...]], Array]

NAMES: dict[str, Sampler] = {
    "ddpm": methods.ddpm,
    "ddim": methods.ddim,
    "dpm++2m": methods.dpm_solver_2m,
    "heun": methods.heun,
    "unipc": methods.unipc,
}
"""The samplers by name: each folds (diffusion, plan, eta) into rows of weights."""


@dataclass(frozen=True, eq=False)
class Step:
    """The state `x` at time `t`, shape (n, ...), and the prediction `x0` that led to it (None at the start)."""

    t: int
    x: Array
    x0: Array | None


class Options(TypedDict, total=False):
    """The options of `sample` and `trajectory`."""

    sampler: str
    """"ddpm" (default), "ddim", "dpm++2m", "heun" or "unipc"."""
    steps: int | None
    """The number of moves; default T."""
    spacing: str
    """How they are spaced: "even" (default), "quadratic" or "log_snr" (see `Diffusion.timesteps`)."""
    timesteps: Iterable[int] | None
    """The plan itself, instead of these: strictly decreasing to 0, from T, or from below T where `x_T` is given."""
    eta: float
    """DDIM's, in [0, 1]; at 0 (default) nothing is random but the start."""
    seed: int
    """Sample k is a function of (seed, index[k]) only. Default 0."""
    index: Sequence[int] | None
    """n sample numbers; default 0..n-1."""
    x_T: Array | None
    """The state (n, ...) at the plan's first step. It decides library, device and dtype; a NumPy array is moved to `backend`
    where that is another. Default: noise."""
    noise: Noise | None
    """``noise(t, index, shape) -> (len(index), *shape)`` in place of ours; called once for each noisy move, in order."""
    backend: str
    """The array library to compute on; default "numpy"."""
    device: Any
    """Its device; default the library's own."""
    dtype: str
    """By name; default "float32"."""
    compile: bool
    """Compile the network (Torch): at the first call, for every new shape. On CUDA a whole move becomes one graph."""
    autocast: str | None
    """Run the network in "bfloat16" or "float16" where that is safe (`torch.autocast`), with the weights it has when the run
    starts; the state keeps its dtype."""
    progress: bool
    """Show progress on standard error."""
    callback: Callable[[Step], object] | None
    """Gets the `Step` after each move."""


def sample(d: Diffusion, denoiser: Denoiser, shape: Sequence[int], **options: Unpack[Options]) -> Array:
    """Draw samples of shape `shape` = (n, ...); see `Options`.

    Bad arguments are refused by name; a bad output of the network is a `ValueError` that names ``net`` and the step. The
    network is called at a state that the next move may write over: it copies what it means to keep.
    """
    x = None
    for step in _run(d, denoiser, shape, every=None, **options):
        x = step.x
    return x


def trajectory(
    d: Diffusion, denoiser: Denoiser, shape: Sequence[int], *, every: int = 1, **options: Unpack[Options]
) -> Iterator[Step]:
    """The states that `sample` passes through: the start (x0 = None), every `every`-th after it, and the end, t = 0."""
    return _run(d, denoiser, shape, every=as_positive_int("every", every), **options)


def _run(
    d: Diffusion,
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    every: int | None,
    sampler: str = "ddpm",
    steps: int | None = None,
    spacing: str = "even",
    timesteps: Iterable[int] | None = None,
    eta: float = 0.0,
    seed: int = 0,
    index: Sequence[int] | None = None,
    x_T: Array | None = None,
    noise: Noise | None = None,
    backend: str = "numpy",
    device: Any = None,
    dtype: str = "float32",
    compile: bool = False,
    autocast: str | None = None,
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
) -> Iterator[Step]:
    """Check everything, fold the plan, and return the loop."""
    check_model(d, denoiser)
    for name, function in (("noise", noise), ("callback", callback)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a callable, got {type(function).__name__}")
    fold = lookup("sampler", sampler, NAMES)
    eta = as_real("eta", eta, 0.0, 1.0)
    if eta and sampler != "ddim":
        raise ValueError(f"eta: {eta} belongs to the sampler 'ddim' only, not to {sampler!r}")
    shape = _shape(shape)
    if math.prod(shape) >= 2**48:
        raise ValueError(f"shape: {shape} is more than can be allocated")
    seed, index = as_int("seed", seed, 0, 2**64 - 1), numbers(index, shape[0])
    plan = plans.chosen(d, steps, timesteps, spacing, started=x_T is not None)
    rows = methods.denoised(fold, d, replace(denoiser, net=_unasked), plan, eta)
    x = _start(shape, seed, index, x_T, backend, device, dtype)
    _check_range(rows, denoiser, x)
    seen = every is not None or callback is not None
    stepper = _stepper(rows, x, seed, index, (-1.0, 1.0) if denoiser.clip_x0 else None, seen)
    given = None if noise is None else partial(_given, noise, index, x)
    if compile or autocast is not None:
        options: Any = {"compile": compile, "autocast": autocast, "stepper": stepper if given is None else None}
        denoiser = replace(denoiser, net=_prepared(denoiser.net, x, **options))
    no_grad = backends.gradients_off(x)
    moves = _moves(d, denoiser, rows, stepper, given, no_grad if seen else nullcontext)
    times = progress_bar(moves, len(plan) - 1, enabled=progress, label=sampler)
    if seen:
        return _told(times, stepper, Step(plan[0], x, None), callback, every)
    return _last(times, stepper, no_grad())


def _told(
    times: Iterator[int], stepper: Stepper, start: Step, callback: Callable[[Step], object] | None, every: int | None
) -> Iterator[Step]:
    """The steps that are asked for, in memory that no later move writes to."""
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


def _last(times: Iterator[int], stepper: Stepper, context: AbstractContextManager[Any]) -> Iterator[Step]:
    """The last step; as no callback or consumer of steps runs before it, all moves are made in one context."""
    with context:
        deque(times, maxlen=0)
    yield Step(0, stepper.state, None)


def _moves(
    d: Diffusion,
    denoiser: Denoiser,
    rows: Sequence[Row],
    stepper: Stepper,
    given: Callable[[int], Array] | None,
    no_grad: Callable[[], AbstractContextManager[Any]],
) -> Iterator[int]:
    """The loop: the time after each whole move, where the stepper then is."""
    xp, host = namespace_of(x_T=stepper.state), on_host(stepper.state)
    labels = time_arrays([row.net_t for row in rows], stepper.state, xp)
    for k, (row, told) in enumerate(zip(rows, labels, strict=True)):
        x = stepper.state
        with no_grad():
            value, raw = denoiser.ask(d, x, row.t, told, xp)
            if host:
                refuse_nonfinite(xp, row.t, raw)
            std = None if row.std is not None else xp.exp(denoiser.log_var_from(d, raw, x, row.t, row.s) / 2)
            z = None if given is None or row.std == 0.0 else given(row.t)
            finite = stepper.step(k, value, std, z)
        if finite is False:
            raise ValueError(f"net returned NaN or infinity at t = {row.t}")
        if row.s == 0 and not host:
            refuse_nonfinite(xp, row.t, stepper.state)
        if row.ends_step:
            yield row.s


def _stepper(
    rows: Sequence[Row], x: Array, seed: int, index: Sequence[int], clip: tuple[float, float] | None, seen: bool
) -> Stepper:
    """The backend's own, or the portable one."""
    try:
        make = backends.of(x).stepper
    except LookupError:  # a library that is not registered can sample where no noise of ours is needed
        make = None
    options: Any = {"seed": seed, "clip": clip, "keep_x0": seen}
    own = NotImplemented if make is None else make(rows, x, index=as_words(index), **options)
    return ArrayApiStepper(rows, x, index=index, **options) if own is NotImplemented else own


def _prepared(net: Net, x: Array, **options: Any) -> Net:
    """The network's faster form for states like x."""
    backend = backends.of(x)
    if backend.optimize_net is None:
        name = "compile" if options["compile"] else "autocast"
        raise ValueError(f"{name}: the backend {backend.name!r} runs networks as they are; Torch's does more")
    prepared: Net = backend.optimize_net(net, **options)
    return prepared


def _given(noise: Noise, index: Sequence[int], x: Array, t: int) -> Array:
    """The caller's noise of the move from t, for a state like x."""
    xp, z = namespace_of(x_T=x), noise(t, index, tuple(x.shape[1:]))
    if isinstance(z, np.ndarray):
        z = array_like(z, x, xp)
    if namespace_of(noise=z) is not xp:
        raise TypeError(f"noise must return {type(x).__name__}, got {type(z).__name__} at t = {t}")
    check_same_shape("noise", z, "the state", x)
    return cast_like(z, x, xp)


def _start(
    shape: tuple[int, ...], seed: int, index: Sequence[int], x_T: Array | None, backend: str, device: Any, dtype: str
) -> Array:
    library = backends.get(backend)
    if x_T is None:
        with allocating("shape", shape):
            return normal(seed, index, 0, shape[1:], backend=backend, device=device, dtype=dtype)
    xp = namespace_of(x_T=x_T)
    if tuple(x_T.shape) != shape:
        raise ValueError(f"x_T must have shape {shape}, got {tuple(x_T.shape)}")
    if not bool(xp.all(xp.isfinite(x_T))):
        raise ValueError("x_T: holds NaN or infinity")
    if isinstance(x_T, np.ndarray):
        return x_T if backend == "numpy" else library.from_numpy(x_T, dtype=dtype, device=device)
    return x_T


def _check_range(rows: Sequence[Row], denoiser: Denoiser, x: Array) -> None:
    """Refuse a plan along which x_0 leaves the numbers of x's dtype."""
    limit = float(namespace_of(x_T=x).finfo(x.dtype).max)
    if bad := [row.t for row in rows if max(map(abs, row.x0_from)) > limit]:
        dtype = dtype_name(x)
        raise ValueError(f"predicts: x_0 does not follow from {denoiser.predicts!r} at t = {bad[0]} in {dtype}")


def _unasked(x_t: Array, t: Array) -> Array:
    """In place of the network where a plan is folded, so that a folded plan is found again for any."""
    return x_t


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int) or not isinstance(shape, Sequence) or not shape:
        raise TypeError(f"shape must be a sequence (n, ...) of ints, got {shape!r}")
    return tuple(as_int("shape", k, 0, 2**62) for k in shape)
