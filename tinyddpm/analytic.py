"""Data whose diffusion is known in closed form: one Gaussian, or a mixture of them.

Noising keeps both families closed: a component N(mean, var) becomes N(sqrt(alpha_bar_t) mean, alpha_bar_t var + 1 - alpha_bar_t).
So the optimal network, E[eps | x_t] = -sqrt(1 - alpha_bar_t) grad log q(x_t), is elementary, and samplers, losses and bounds can
be held against the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm._arrays.check import allocating, as_instance, as_int
from tinyddpm._arrays.namespace import Array, array_like, cast_like, namespace_of
from tinyddpm._arrays.steps import Steps, check_steps, gather
from tinyddpm._arrays.value import FrozenValue
from tinyddpm.diffusion import Diffusion

__all__ = ["ExactNet", "GaussianData", "MixtureData"]

Table = NDArray[np.float64]

_STREAM = 3  # of the noise that data are made of


@dataclass(frozen=True, eq=False)
class _Data(FrozenValue):
    """What both families do, on K components."""

    @property
    def _components(self) -> tuple[Table, Table, Table]:
        """Weights (K,), means and variances (K, *shape)."""
        raise NotImplementedError

    def _scaled(self, a: float, ab: float, var: float) -> Self:
        """The law of a * x plus N(0, var) noise, where ab = a**2."""
        raise NotImplementedError

    def net(self, d: Diffusion) -> ExactNet:
        """The optimal eps predictor ``net(x_t, t)`` for the chain d, whose steps it counts as 1..T; for arrays of any library."""
        return ExactNet(self, as_instance("d", d, Diffusion))

    def marginal(self, d: Diffusion, t: int) -> Self:
        """The law of x_t, t in 0..T, as data of the same kind."""
        t = as_int("t", t, 0, as_instance("d", d, Diffusion).T)
        return self._scaled(float(d.sqrt_alpha_bar[t]), float(d.alpha_bar[t]), float(d.one_minus_alpha_bar[t]))

    def sample(self, n: int, seed: int = 0) -> Table:
        """n samples (n, *shape) in float64; sample k is a function of (seed, k) only."""
        from tinyddpm.noise import normal

        index = range(as_int("n", n, 0, 2**62))
        weights, means, var = self._components

        def draw(step: int, shape: tuple[int, ...]) -> Table:
            return normal(seed, index, step, shape, stream=_STREAM, backend="numpy", dtype="float64")  # type: ignore[no-any-return]

        with allocating("n", n):
            uniform = np.exp(-np.sum(draw(1, (2,)) ** 2, axis=-1) / 2)  # half a sum of two squares is exponential
            k = np.searchsorted(np.cumsum(weights)[:-1], uniform, side="right")
            x0: Table = means[k] + np.sqrt(var)[k] * draw(0, means.shape[1:])
        return x0

    def log_prob(self, x: Array) -> Array:
        """Log-density in nats, joint over dimensions: x (B, *shape) -> (B,). `ValueError` where a variance is 0."""
        xp = namespace_of(x=x)
        if not np.all(self._components[2] > 0):
            raise ValueError("x: a density needs variances above 0")
        joint = self._log_joint(*self._apart("x", x, 1.0, 1.0, 0.0, xp), x, xp)
        top = xp.max(joint, axis=0)
        half_log_2pi = math.prod(x.shape[1:]) * math.log(2 * math.pi) / 2
        return xp.log(xp.sum(xp.exp(joint - top), axis=0)) + (top - half_log_2pi)

    def _eps(self, x: Array, a: Any, ab: Any, sigma: Any, var: Any, xp: Any) -> Array:
        """E[eps | x_t = x] where x_t = a x_0 + sigma eps, ab = a**2 and var = sigma**2."""
        offset, var = self._apart("x_t", x, a, ab, var, xp)
        slope = offset / var
        if slope.shape[0] == 1:
            return sigma * slope[0, ...]
        joint = self._log_joint(offset, var, x, xp)
        share = xp.exp(joint - xp.max(joint, axis=0))
        share = share / xp.sum(share, axis=0)
        return sigma * xp.sum(xp.reshape(share, (*share.shape, *(1,) * (x.ndim - 1))) * slope, axis=0)

    def _apart(self, name: str, x: Array, a: Any, ab: Any, var: Any, xp: Any) -> tuple[Array, Array]:
        """x minus each component's mean (K, *x.shape), and the component's variances, which broadcast against it."""
        _, means, own = self._components
        if tuple(x.shape[1:]) != means.shape[1:]:
            raise ValueError(f"{name}: samples have shape {means.shape[1:]}, not {tuple(x.shape[1:])}")
        means, own = (array_like(p[:, None, ...], x, xp) for p in (means, own))
        return x - a * means, ab * own + var

    def _log_joint(self, offset: Array, var: Array, x: Array, xp: Any) -> Array:
        """log w_k N(x; k) for each component, shape (K, B), but for the constant of 2 pi."""
        terms = offset**2 / var + xp.log(var)
        terms = xp.sum(xp.reshape(terms, (*terms.shape[:2], math.prod(x.shape[1:]))), axis=-1)
        return array_like(np.log(self._components[0])[:, None], x, xp) - terms / 2


@dataclass(frozen=True, eq=False)
class GaussianData(_Data):
    """x_0 ~ N(mean, var), independent over dimensions.

    `mean` has one sample's shape; `var` >= 0 broadcasts to it. Both are kept as read-only float64 arrays.
    """

    mean: Any
    var: Any

    def __post_init__(self) -> None:
        mean = _table("mean", self.mean)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "var", _table("var", self.var, mean.shape))
        _refuse_negative("var", self.var)

    @property
    def _components(self) -> tuple[Table, Table, Table]:
        return np.ones(1), self.mean[None], self.var[None]

    def _scaled(self, a: float, ab: float, var: float) -> Self:
        return type(self)(a * self.mean, ab * self.var + var)


@dataclass(frozen=True, eq=False)
class MixtureData(_Data):
    """x_0 ~ sum_k weights[k] N(means[k], vars[k]), independent over dimensions within each component.

    `weights` (K,) are positive and sum to 1; `means` has shape (K, *shape); `vars` >= 0 broadcasts to it, or gives one number
    for each component, shape (K,). All are kept as read-only float64 arrays.
    """

    weights: Any
    means: Any
    vars: Any

    def __post_init__(self) -> None:
        weights, means = _table("weights", self.weights), _table("means", self.means)
        if weights.ndim != 1 or not np.all(weights > 0) or abs(weights.sum() - 1) > 1e-9:
            raise ValueError(f"weights must be positive numbers (K,) that sum to 1, got {weights}")
        if means.shape[:1] != weights.shape:
            raise ValueError(f"means must have shape ({len(weights)}, ...), one mean for each weight, got {means.shape}")
        var: Any = np.asarray(self.vars)
        if var.shape == weights.shape:
            var = var.reshape(-1, *(1,) * (means.ndim - 1))
        for name, table in (("weights", weights), ("means", means), ("vars", _table("vars", var, means.shape))):
            object.__setattr__(self, name, table)
        _refuse_negative("vars", self.vars)

    @property
    def _components(self) -> tuple[Table, Table, Table]:
        return self.weights, self.means, self.vars

    def _scaled(self, a: float, ab: float, var: float) -> Self:
        return type(self)(self.weights, a * self.means, ab * self.vars + var)


@dataclass(frozen=True)
class ExactNet:
    """``net(x_t, t) = E[eps | x_t]`` for `data` on the chain `d`: x_t (B, *shape), t an int or an integer array (B,) in 1..T."""

    data: GaussianData | MixtureData | Any
    d: Diffusion
    predicts: ClassVar[str] = "eps"

    def __call__(self, x_t: Array, t: Steps) -> Array:
        xp = namespace_of(x_t=x_t)
        t = check_steps("t", t, x_t, xp, 1, self.d.T)
        # Squared distances leave float16's range: 16 bits in, 32 bits between.
        x = xp.astype(x_t, xp.float32) if xp.finfo(x_t.dtype).bits < 32 else x_t
        d = self.d
        tables = (d.sqrt_alpha_bar, d.alpha_bar, d.sqrt_one_minus_alpha_bar, d.one_minus_alpha_bar)
        a, ab, sigma, var = (gather(table, t, x, xp) for table in tables)
        return cast_like(self.data._eps(x, a, ab, sigma, var, xp), x_t, xp)


def _table(name: str, values: ArrayLike, shape: tuple[int, ...] | None = None) -> Table:
    """A read-only float64 copy, broadcast to `shape`."""
    try:
        table = np.array(values, dtype=np.float64)
        table = table if shape is None else np.array(np.broadcast_to(table, shape))
    except (TypeError, ValueError) as error:
        rule = "" if shape is None else f" that broadcast to {shape}"
        raise ValueError(f"{name} must be numbers{rule}") from error
    if not np.all(np.isfinite(table)):
        raise ValueError(f"{name}: every number must be finite")
    table.flags.writeable = False
    return table


def _refuse_negative(name: str, var: Table) -> None:
    if np.any(var < 0):
        raise ValueError(f"{name}: {var.min()} is negative")
