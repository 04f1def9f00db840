"""Sampling: one loop for every sampler.

A sampler folds its plan into rows of weights (`_rows`); the loop calls the network, reads x_0 and forms the next state from
them. Noise is a pure function of (seed, sample, step), so a sample does not depend on how the batch was cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np

from tinyddpm import _array, _rows, backends, plans
from tinyddpm._array import Array
from tinyddpm._progress import progress as shown
from tinyddpm._rows import Row
from tinyddpm.noise import normal

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion

__all__ = ["NAMES", "Noise", "Options", "Step", "sample", "trajectory"]

Noise = Callable[[int, Sequence[int], tuple[int, ...]], Array]

NAMES: dict[str, Callable[[Any, tuple[int, ...], float], list[Row]]] = {
    "ddpm": _rows.ddpm,
    "ddim": _rows.ddim,
    "dpm++2m": _rows.dpm_solver_2m,
    "heun": _rows.heun,
    "unipc": _rows.unipc,
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
    """The number of moves, evenly spaced; default T."""
    timesteps: Iterable[int] | None
    """The plan itself, instead of `steps`: strictly decreasing to 0, from T, or from below T where `x_T` is given."""
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
    progress: bool
    """Show progress on standard error."""
    callback: Callable[[Step], object] | None
    """Gets the `Step` after each move."""


def sample(d: Diffusion, denoiser: Denoiser, shape: Sequence[int], **options: Unpack[Options]) -> Array:
    """Draw samples of shape `shape` = (n, ...); see `Options`.

    Bad arguments are refused by name; a bad output of the network is a `ValueError` that names ``net`` and the step.
    """
    x = None
    for step in trajectory(d, denoiser, shape, **options):
        x = step.x
    return x


def trajectory(
    d: Diffusion, denoiser: Denoiser, shape: Sequence[int], *, every: int = 1, **options: Unpack[Options]
) -> Iterator[Step]:
    """The states that `sample` passes through: the start (x0 = None), every `every`-th after it, and the end, t = 0."""
    every = _array.positive_int("every", every)
    return _thinned(_run(d, denoiser, shape, **options), every)


def _thinned(steps: Iterator[Step], every: int) -> Iterator[Step]:
    for k, step in enumerate(steps):
        if k % every == 0 or step.t == 0:
            yield step


def _run(
    d: Diffusion,
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    sampler: str = "ddpm",
    steps: int | None = None,
    timesteps: Iterable[int] | None = None,
    eta: float = 0.0,
    seed: int = 0,
    index: Sequence[int] | None = None,
    x_T: Array | None = None,
    noise: Noise | None = None,
    backend: str = "numpy",
    device: Any = None,
    dtype: str = "float32",
    progress: bool = False,
    callback: Callable[[Step], object] | None = None,
) -> Iterator[Step]:
    """Check everything, fold the plan, and return the loop."""
    fold = _array.lookup("sampler", sampler, NAMES)
    eta = _array.real("eta", eta, 0.0, 1.0)
    if eta and sampler != "ddim":
        raise ValueError(f"eta: {eta} belongs to the sampler 'ddim' only, not to {sampler!r}")
    shape = _shape(shape)
    if math.prod(shape) >= 2**48:
        raise ValueError(f"shape: {shape} is more than can be allocated")
    index = range(shape[0]) if index is None else index
    if len(index) != shape[0]:
        raise ValueError(f"index: {shape[0]} sample numbers are needed, not {len(index)}")
    plan = _plan(d, steps, timesteps, started=x_T is not None)
    rows = fold(d, plan, eta)
    if sampler == "ddpm" and not denoiser.learned:
        rows = _with_std(d, denoiser, rows)
    _check_readable(d, denoiser, plan)
    x = _start(shape, seed, index, x_T, backend, device, dtype)
    source = _Source(seed, index, noise, x)
    states = _states(d, denoiser, rows, x, source)
    return _told(shown(states, len(plan) - 1, enabled=progress, label=sampler), Step(plan[0], x, None), callback)


def _told(steps: Iterator[Step], start: Step, callback: Callable[[Step], object] | None) -> Iterator[Step]:
    yield start
    for step in steps:
        if callback is not None:
            callback(step)
        yield step


def _states(d: Diffusion, denoiser: Denoiser, rows: list[Row], x: Array, source: _Source) -> Iterator[Step]:
    """The loop: the state after each whole move."""
    xp = _array.data(x_T=x)
    a_value, a_state = d.conversion(denoiser.predicts, "x0")
    on_host = _array.on_host(x)
    state = base = x
    history: list[Array] = []
    for row in rows:
        with source.no_grad():
            value, raw = denoiser.call(d, state, row.t)
            if on_host:
                _refuse_nonfinite(xp, row.t, value, raw)
            x0 = float(a_value[row.t]) * value
            if a_state is not None:
                x0 = float(a_state[row.t]) * state + x0
            if denoiser.clip_x0:
                x0 = xp.clip(x0, -1.0, 1.0)
            history = [x0, *history[:2]]
            new = _combined(row.state, base, history)
            if row.std is None:
                std = xp.exp(denoiser.read_log_var(d, raw, state, row.t, row.s) / 2)
                new = new + std * source.draw(row.t)
            elif row.std:
                new = new + row.std * source.draw(row.t)
            base = new if row.base is None else _combined(row.base, base, history)
            state = new
        if row.whole:
            if row.s == 0 and not on_host:
                _refuse_nonfinite(xp, row.t, state)
            yield Step(row.s, state, x0)


def _combined(weights: Sequence[float], base: Array, history: list[Array]) -> Array:
    """weights[0] * base + weights[1] * newest x_0 + ..., in that order."""
    terms = [w * a for w, a in zip(weights, (base, *history), strict=False) if w != 0.0]
    return sum(terms[1:], terms[0]) if terms else 0.0 * base


class _Source:
    """Where noise and gradients-off come from for arrays like x."""

    def __init__(self, seed: int, index: Sequence[int], noise: Noise | None, x: Array) -> None:
        self.seed, self.index, self.noise, self.x = seed, index, noise, x
        self.xp = _array.data(x_T=x)
        try:
            self.backend: backends.Backend | None = backends.of(x)
        except LookupError:  # a library that is not registered can sample where no noise of ours is needed
            self.backend = None

    def no_grad(self) -> AbstractContextManager[Any]:
        if self.backend is None or self.backend.no_grad is None:
            return nullcontext()
        return self.backend.no_grad()

    def draw(self, t: int) -> Array:
        """The noise of the move from t."""
        from array_api_compat import device

        shape = tuple(self.x.shape[1:])
        if self.noise is None:
            name = backends.of(self.x).name if self.backend is None else self.backend.name
            return normal(
                self.seed, self.index, t, shape, backend=name, device=device(self.x), dtype=_name(self.x.dtype)
            )
        z = self.noise(t, self.index, shape)
        if isinstance(z, np.ndarray):
            z = _array.like(z, self.x, self.xp)
        if _array.data(noise=z) is not self.xp:
            raise TypeError(f"noise: returned {type(z).__name__} at t = {t}, {type(self.x).__name__} is needed")
        _array.same_shape("noise", z, "the state", self.x)
        return _array.cast(z, self.x, self.xp)


def _start(
    shape: tuple[int, ...], seed: int, index: Sequence[int], x_T: Array | None, backend: str, device: Any, dtype: str
) -> Array:
    library = backends.get(backend)
    if x_T is None:
        with _array.allocating("shape", shape):
            return normal(seed, index, 0, shape[1:], backend=backend, device=device, dtype=dtype)
    xp = _array.data(x_T=x_T)
    if tuple(x_T.shape) != shape:
        raise ValueError(f"x_T: shape {shape} is needed, not {tuple(x_T.shape)}")
    if not bool(xp.all(xp.isfinite(x_T))):
        raise ValueError("x_T: holds NaN or infinity")
    if isinstance(x_T, np.ndarray):
        return x_T if backend == "numpy" else library.from_numpy(x_T, dtype=dtype, device=device)
    return x_T


def _plan(d: Diffusion, steps: int | None, timesteps: Iterable[int] | None, *, started: bool) -> tuple[int, ...]:
    if timesteps is None:
        return d.timesteps(d.T if steps is None else steps)
    if steps is not None:
        raise ValueError("steps: give either steps or timesteps, not both")
    plan = plans.checked(timesteps, d.T)
    if plan[0] != d.T and not started:
        raise ValueError(f"timesteps: a plan from {plan[0]}, below T = {d.T}, needs x_T, the state there")
    return plan


def _with_std(d: Diffusion, denoiser: Denoiser, rows: list[Row]) -> list[Row]:
    """The rows with the denoiser's fixed standard deviation on every move that is noisy."""
    x = np.zeros((len(rows), 1))
    t, s = (np.array([getattr(row, name) for row in rows]) for name in "ts")
    single = None if not isinstance(denoiser.variance, str) and np.all(t - s == 1) else s
    log_var = np.broadcast_to(denoiser.read_log_var(d, None, x, t, single), x.shape)[:, 0]
    return [replace(row, std=math.exp(v / 2) if row.s else 0.0) for row, v in zip(rows, log_var.tolist(), strict=True)]


def _check_readable(d: Diffusion, denoiser: Denoiser, plan: tuple[int, ...]) -> None:
    a, _ = d.conversion(denoiser.predicts, "x0")
    if bad := [t for t in plan[:-1] if math.isnan(a[t])]:
        raise ValueError(f"predicts: x_0 does not follow from {denoiser.predicts!r} at t = {bad[0]}, where alpha_bar is "
                         f"{d.alpha_bar[bad[0]]}; predict 'v' or 'x0' on such a schedule")  # fmt: skip


def _refuse_nonfinite(xp: Any, t: int, *outputs: Array | None) -> None:
    for out in outputs:
        if out is not None and not bool(xp.all(xp.isfinite(out))):
            raise ValueError(f"net: NaN or infinity at t = {t}")


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int) or not isinstance(shape, Sequence) or not shape:
        raise TypeError(f"shape: a sequence (n, ...) of ints is needed, not {shape!r}")
    return tuple(_array.as_int("shape", k, 0, 2**62) for k in shape)


def _name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]
