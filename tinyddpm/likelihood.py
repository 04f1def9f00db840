"""The variational bound on a data set's likelihood, term by term, and the variances that make it tightest.

At fixed x_t all predictions are linear in each other, so with a fixed variance every term of step t, its KL and its errors of
x_0 and eps, is a number times one squared distance: the loop does one reduction a step, and the rest is float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyddpm import backends, gaussian, noise
from tinyddpm._arrays.check import as_int, as_positive_int, one_of
from tinyddpm._arrays.namespace import Array, clip_array, copy_array, dtype_name, namespace_of, on_host
from tinyddpm._arrays.steps import time_arrays
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._io.progress import progress_bar
from tinyddpm._numerics.bins import METHODS
from tinyddpm.denoiser import check_model
from tinyddpm.losses import check_range, eps_error, target

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion

__all__ = ["VLB", "Curve", "optimal_variance", "vlb"]

Table = NDArray[np.float64]
_STREAM = 1  # of the noise that likelihoods are estimated with


class Curve(NamedTuple):
    """Rate in bits per dimension against RMSE in 0..levels-1, arrays (T,) for t = T..1: what the receiver of x_T..x_t has been
    sent, and how far its prediction of x_0 then is off [Ho fig. 5]."""

    rate: Table
    rmse: Table


@dataclass(frozen=True, eq=False)
class VLB(FrozenValue):
    """The terms of the bound on -log p(x_0) for each of B samples, in nats summed over dimensions, float64 on the host."""

    prior: Table
    """L_T = KL(q(x_T | x_0) || N(0, I)), shape (B,)."""
    kl: Table
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t = 2..T, shape (B, T - 1)."""
    decoder: Table
    """L_0 = -log p(x_0 | x_1), shape (B,)."""
    x0_mse: Table
    """Squared error of the predicted x_0, mean over dimensions, shape (B, T): column t - 1 is step t."""
    eps_mse: Table
    """The same of eps."""
    dims: int
    """Dimensions of a sample."""
    levels: int
    """The data's levels."""

    @property
    def total(self) -> Table:
        """The bound, shape (B,)."""
        total: Table = self.prior + self.kl.sum(axis=1) + self.decoder
        return total

    @property
    def bits_per_dim(self) -> Table:
        """The bound in bits per dimension, shape (B,)."""
        return self._bits(self.total)

    @property
    def rate(self) -> Table:
        """L_T and all KLs, in bits per dimension, shape (B,): what it takes to send x_1."""
        return self._bits(self.prior + self.kl.sum(axis=1))

    @property
    def distortion(self) -> Table:
        """L_0 in bits per dimension, shape (B,)."""
        return self._bits(self.decoder)

    def curve(self) -> Curve:
        """Rate against RMSE as t falls, over the whole batch."""
        sent = np.cumsum(np.column_stack([self.prior, self.kl[:, ::-1]]), axis=1)
        rmse = np.sqrt(self.x0_mse.mean(axis=0)) * (self.levels - 1) / 2
        return Curve(self._bits(sent).mean(axis=0), rmse[::-1])

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and standard error over samples (NaN for one) of "total", "prior", "kl" (summed), "decoder" in nats, and of
        "bits_per_dim", "rate", "distortion" in bits per dimension."""
        columns = {"total": self.total, "prior": self.prior, "kl": self.kl.sum(axis=1), "decoder": self.decoder}
        columns |= {name: getattr(self, name) for name in ("bits_per_dim", "rate", "distortion")}
        return {name: (float(x.mean()), _standard_error(x)) for name, x in columns.items()}

    def _bits(self, nats: Table) -> Table:
        bits: Table = nats / (self.dims * math.log(2))
        return bits


def vlb(
    d: Diffusion,
    denoiser: Denoiser,
    x0: Array,
    *,
    seed: int = 0,
    index: Sequence[int] | None = None,
    levels: int = 256,
    decoder: str = "exact",
    progress: bool = False,
) -> VLB:
    """The bound on -log p(x_0) [Ho eq. 5] with one draw of x_t for each sample and step.

    Parameters
    ----------
    x0 : array (B, ...)
        Data on `levels` equal steps of [-1, 1], of any registered backend. `ValueError` beyond [-2, 2].
    seed, index
        The noise of row i is a function of (seed, index[i], t) only, so the terms do not depend on how a data set is cut into
        batches. Default: ``range(B)``.
    decoder : str
        "exact" or "ho2020" (see `gaussian.discretized_log_likelihood`).

    Notes
    -----
    With ``clip_x0`` the means are those of the clipped x_0, as in [Ho]'s evaluation. The network is called once a step, without
    gradients, on the rows of x0 in their order; everything else comes back from the device once, at the end. `ValueError` that
    names ``net`` and the step where its output is not finite.
    """
    x, xp = _opened(d, denoiser, x0)
    levels = as_int("levels", levels, 2, 65536)
    one_of("decoder", decoder, tuple(METHODS))
    kind = "x0" if denoiser.clip_x0 else denoiser.predicts
    _existing(d, denoiser.predicts, kind, x, xp)
    slope = _existing(d, kind, "mu", x, xp)
    sizes, squares, others = [], [], []  # at t = T..1: of the output, of its error; the KL where it is learned, and L_0
    steps = _steps(d, denoiser, x0, x, seed, index, keeps_eps=kind != "x0")
    clipped = _clipping(d, denoiser, xp)
    with backends.no_grad(x0):
        for step in progress_bar(steps, d.T, enabled=progress, label="likelihood"):
            sizes.append(_square_sum(step.value, xp))  # which clipping would hide
            value = clipped(step) if denoiser.clip_x0 else step.value
            if step.t == 1:
                mean = d.convert(value, step.x_t, 1, kind, "mu")
                others.append(_decoder(d, denoiser, x, mean, step, levels, decoder, xp))
            error = _off(x, value) if denoiser.clip_x0 else value - target(d, kind, x, step.x_t, step.t, step.eps)
            squares.append(_square_sum(error, xp))
            if denoiser.learned and step.t > 1:
                others.append(_learned_kl(d, denoiser, float(slope[step.t]) * error, step, xp))
        norm = _square_sum(x, xp)
    size, square, other, norm = (_on_host(column, xp) for column in (sizes, squares, others, [norm]))
    _refuse(~np.isfinite(size + square), "is not finite")
    _refuse(np.isnan(other), "gives no likelihood")
    dims = math.prod(x0.shape[1:])
    with np.errstate(over="ignore"):  # where alpha_bar is next to 0, an error of eps is a boundless one of x_0
        x0_mse = square / dims * d.conversion(kind, "x0")[0][1:] ** 2
    return VLB(
        prior=d.alpha_bar[-1] / 2 * norm[:, 0] + dims * _variance_kl(np.log(d.one_minus_alpha_bar[-1:]), np.zeros(1)),
        kl=other[:, 1:] if denoiser.learned else _fixed_kl(d, denoiser, slope, square, dims),
        decoder=other[:, 0],
        x0_mse=x0_mse,
        eps_mse=square / dims * eps_error(d, kind)[1:],
        dims=dims,
        levels=levels,
    )


def optimal_variance(
    d: Diffusion,
    denoiser: Denoiser,
    x0: Array,
    *,
    seed: int = 0,
    index: Sequence[int] | None = None,
    draws: int = 1,
    progress: bool = False,
) -> Table:
    """The variances of p(x_{t-1} | x_t) that make the bound tightest for an optimal network [Analytic].

    beta_tilde_t + w_x0**2 * clip((1 - alpha_bar_t) / alpha_bar_t * (1 - G_t), 0, 1), where G_t is the mean of eps_theta**2 over
    dimensions, over `x0` (B, ...) and over `draws` draws of noise for each; eps_theta is unclipped. The second factor estimates
    the variance of x_0 given x_t; no data in [-1, 1] has more than 1, which is also taken where alpha_bar_t = 0.
    Returns a float64 table (T + 1,) for ``Denoiser(variance=...)``; entry 0 is NaN. Refuses what `vlb` refuses.
    """
    x, xp = _opened(d, denoiser, x0)
    draws = as_positive_int("draws", draws)
    steps = _steps(d, denoiser, x0, x, seed, index, draws)
    norms = []
    with backends.no_grad(x0):
        for t, _, x_t, value, _ in progress_bar(steps, draws * d.T, enabled=progress, label="optimal variance"):
            norms.append(_square_sum(d.convert(value, x_t, t, denoiser.predicts, "eps"), xp))
    norm = _on_host(norms, xp).reshape(x0.shape[0], d.T, draws)
    _refuse(~np.isfinite(norm.sum(axis=2)), "is not finite")
    left = 1 - norm.mean(axis=(0, 2)) / math.prod(x0.shape[1:])
    with np.errstate(over="ignore"):
        x0_var = np.clip(np.exp(-d.log_snr[1:]) * left, 0.0, 1.0)
    w_x0, _, beta_tilde = d.posterior_weights(np.arange(1, d.T + 1))
    return np.append(np.nan, beta_tilde + w_x0**2 * x0_var)


class _Step(NamedTuple):
    t: int
    eps: Array | None
    x_t: Array
    value: Array
    raw: Array | None


def _opened(d: Diffusion, denoiser: Denoiser, x0: Array) -> tuple[Array, Any]:
    """The data, checked, and their namespace. What the host holds is seen through NumPy, in the same memory, where an operation
    costs less than through most libraries; the network still gets arrays of x0's own."""
    check_model(d, denoiser)
    xp = namespace_of(x0=x0)
    if math.prod(x0.shape) == 0:
        raise ValueError(f"x0 must have at least one sample of at least one dimension, got shape {tuple(x0.shape)}")
    check_range("x0", backends.of(x0).to_numpy(x0))
    if isinstance(x0, np.ndarray) or not on_host(x0) or x0.dtype not in (xp.float32, xp.float64):
        return x0, xp
    host = _seen(x0)
    return host, namespace_of(x0=host)


def _seen(x: Array) -> NDArray[Any]:
    return np.asarray(x.detach() if hasattr(x, "detach") else x)


def _steps(
    d: Diffusion,
    denoiser: Denoiser,
    x0: Array,
    x: Array,
    seed: int,
    index: Sequence[int] | None,
    draws: int = 1,
    keeps_eps: bool = False,
) -> Iterator[_Step]:
    """The network's output on noised data, for t = T..1 and each draw: x0 as the network sees it, x as `_opened` does."""
    from array_api_compat import device

    xp, draw, place = namespace_of(x0=x0), noise.like(x, seed, index, stream=_STREAM), device(x0)
    signal, spread = d.sqrt_alpha_bar.tolist(), d.sqrt_one_minus_alpha_bar.tolist()
    plan = [(t, t + k * (d.T + 1)) for t in range(d.T, 0, -1) for k in reversed(range(draws))]
    labels = time_arrays([t - 1 + denoiser.first_t for t, _ in plan], x0, xp)
    for (t, step), told in zip(plan, labels, strict=True):
        x_t = draw(step)
        eps = copy_array(x_t) if keeps_eps else None
        x_t *= spread[t]
        x_t += signal[t] * x
        value, raw = denoiser.ask(d, x_t if x is x0 else xp.asarray(x_t, device=place), t, told, xp)
        if x is not x0:
            value, raw = _seen(value), None if raw is None else _seen(raw)
        yield _Step(t, eps, x_t, value, raw)


def _clipping(d: Diffusion, denoiser: Denoiser, xp: Any) -> Callable[[_Step], Array]:
    """From a step to its clipped x_0, in memory of its own."""
    values, states = d.conversion(denoiser.predicts, "x0")
    by_value, by_state = values.tolist(), None if states is None else states.tolist()

    def clipped(step: _Step) -> Array:
        x0 = by_value[step.t] * step.value
        if by_state is not None:
            x0 += by_state[step.t] * step.x_t
        return x0.clip(-1.0, 1.0, out=x0) if isinstance(x0, np.ndarray) else clip_array(x0, -1.0, 1.0, xp)

    return clipped


def _off(x0: Array, clipped: Array) -> Array:
    """The error of a clipped x_0, in its memory."""
    clipped -= x0
    return clipped


def _decoder(
    d: Diffusion, denoiser: Denoiser, x0: Array, mean: Array, step: _Step, levels: int, method: str, xp: Any
) -> Array:
    """L_0 = -log p(x_0 | x_1), shape (B,)."""
    log_std = denoiser.log_var_from(d, step.raw, step.x_t, 1) / 2
    log_p = gaussian.discretized_log_likelihood(clip_array(x0, -1.0, 1.0, xp), mean, log_std, levels, method)
    return -_sum(log_p, xp)


def _learned_kl(d: Diffusion, denoiser: Denoiser, gap: Array, step: _Step, xp: Any) -> Array:
    """L_{t-1} where the network emits p's variance and its mean is `gap` off the posterior's, shape (B,)."""
    log_var = denoiser.log_var_from(d, step.raw, step.x_t, step.t)
    return _sum(gaussian.kl(gap, math.log(d.beta_tilde[step.t]), xp.zeros_like(gap), log_var), xp)


def _fixed_kl(d: Diffusion, denoiser: Denoiser, slope: Table, square: Table, dims: int) -> Table:
    """The KLs (B, T - 1) where p's variance is fixed, from the squared errors [Ho eq. 8 with the variances' own part]."""
    t = np.arange(2, d.T + 1)
    log_var = np.broadcast_to(denoiser.log_var_from(d, None, np.empty(len(t)), t), t.shape)
    per_square: Table = slope[t] ** 2 * np.exp(-log_var) / 2
    return per_square * square[:, 1:] + dims * _variance_kl(np.log(d.beta_tilde[t]), log_var)


def _variance_kl(log_var1: Table, log_var2: Table) -> Table:
    """KL between centred Gaussians."""
    centre = np.zeros_like(log_var1)
    return gaussian.kl(centre, log_var1, centre, log_var2)  # type: ignore[no-any-return]


def _existing(d: Diffusion, source: str, target: str, x: Array, xp: Any) -> Table:
    """`target` per unit of `source` at each t, where it follows from it at all of them in x's precision."""
    slope, _ = d.conversion(source, target)
    if np.any(missing := ~(np.abs(slope[1:]) <= float(xp.finfo(x.dtype).max))):
        t = 1 + np.flatnonzero(missing)[0]
        raise ValueError(f"denoiser: {target} does not follow from {source} at t = {t} in {dtype_name(x)}")
    return slope


def _sum(x: Array, xp: Any) -> Array:
    """Over each sample's dimensions: (B, ...) -> (B,)."""
    return xp.sum(_wide(x, xp), axis=-1)


def _square_sum(x: Array, xp: Any) -> Array:
    x = _wide(x, xp)
    return xp.linalg.vecdot(x, x)


def _wide(x: Array, xp: Any) -> Array:
    """x as (B, dimensions), in 32 bits at least: sums leave float16's range."""
    x = xp.reshape(x, (x.shape[0], -1))
    return x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def _on_host(columns: list[Array], xp: Any) -> Table:
    """Arrays (B,) for t = T..1 as one table (B, T) by t, in one transfer."""
    table = xp.stack(columns, axis=1)
    return backends.of(table).to_numpy(table)[:, ::-1].astype(np.float64)


def _refuse(wrong: Any, what: str) -> None:
    """Blame the network for a column of which any entry is wrong; column t - 1 is step t."""
    if np.any(wrong):
        raise ValueError(f"net: its output {what} at t = {1 + np.flatnonzero(np.any(wrong, axis=0))[-1]}")


def _standard_error(x: Table) -> float:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
