"""Data whose diffusion is known in closed form: one Gaussian, or a mixture of them.

Noising keeps both families: a component N(mean, var) becomes N(sqrt(alpha_bar_t) mean, alpha_bar_t var + 1 - alpha_bar_t). So the
optimal network, E[eps | x_t] = -sqrt(1 - alpha_bar_t) grad log q(x_t), is elementary, and samplers, losses and bounds can be
compared with the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from tinyddpm._arrays.check import allocating, as_instance, as_int
from tinyddpm._arrays.namespace import A, Array, Table, array_like, cast_like, host_numbers, namespace_of, quiet, widened
from tinyddpm._arrays.steps import Named, Steps, check_steps, gather
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._process import Process

__all__ = ["ExactNet", "GaussianData", "MixtureData"]

_STREAM = 3  # of the noise that data are made of


@dataclass(frozen=True, eq=False)
class _Data(FrozenValue):
    """What both families do, on K components."""

    @property
    def _components(self) -> tuple[Table, Table, Table]:
        """Weights (K,), means and variances (K, *shape)."""
        raise NotImplementedError

    def _scaled(self, a: float, ab: float, var: float) -> Self:
        """The distribution of a * x plus N(0, var) noise; ab = a**2."""
        raise NotImplementedError

    def net(self, d: Process) -> ExactNet:
        r"""The optimal predictor of eps.

        .. math:: E[\epsilon | x_t] = -\sqrt{1 - \bar\alpha_t}\, \nabla \log q(x_t)

        Parameters
        ----------
        d : Diffusion
            The chain, whose steps the network counts as 1..T.

        Returns
        -------
        ExactNet
            ``net(x_t, t)`` for arrays of any library.

        Raises
        ------
        TypeError
            If `d` is not a Diffusion.
        """
        return ExactNet(self, as_instance("d", d, Process, "Diffusion"))

    def marginal(self, d: Process, t: int) -> Self:
        """The distribution of x_t.

        Parameters
        ----------
        d : Diffusion
            The chain.
        t : int
            Step in 0..T.

        Returns
        -------
        GaussianData or MixtureData
            Data of the same kind.

        Raises
        ------
        TypeError, ValueError
            If `d` is not a Diffusion or `t` not a step of it.
        """
        t = as_int("t", t, 0, as_instance("d", d, Process, "Diffusion").T)
        return self._scaled(float(d.sqrt_alpha_bar[t]), float(d.alpha_bar[t]), float(d.one_minus_alpha_bar[t]))

    def sample(self, n: int, seed: int = 0) -> Table:
        """Draw samples; sample k is a function of (seed, k) only.

        Parameters
        ----------
        n : int
            How many.
        seed : int
            In 0..2**64 - 1.

        Returns
        -------
        float64 array (n, *shape)

        Raises
        ------
        TypeError, ValueError
            If an argument is not such an int.
        """
        from tinyddpm.noise import normal

        index = range(as_int("n", n, 0, 2**62))
        weights, means, var = self._components

        def draw(step: int, shape: tuple[int, ...]) -> Any:
            return normal(seed, index, step, shape, stream=_STREAM, backend="numpy", dtype="float64")

        with allocating("n", n):
            uniform = np.exp(-np.sum(draw(1, (2,)) ** 2, axis=-1) / 2)  # half a sum of two squares is exponential
            k = np.searchsorted(np.cumsum(weights)[:-1], uniform, side="right")
            return means[k] + np.sqrt(var)[k] * draw(0, means.shape[1:])  # type: ignore[no-any-return]

    def log_prob(self, x: A) -> A:
        """Log-density in nats, joint over dimensions.

        Parameters
        ----------
        x : array (B, *shape)
            Points.

        Returns
        -------
        array (B,)
            In x's library and dtype.

        Raises
        ------
        TypeError, ValueError
            If `x` is not a floating-point array of such a shape, or a variance is 0.
        """
        xp = namespace_of(x=x)
        if not np.all(self._components[2] > 0):
            raise ValueError("x has a density only if every variance is above 0")
        with quiet():
            joint = self._log_joint(*self._apart("x", x, 1.0, 1.0, 0.0, xp), x, xp)
            top = xp.max(joint, axis=0)
            half_log_2pi = math.prod(x.shape[1:]) * math.log(2 * math.pi) / 2
            return xp.log(xp.sum(xp.exp(joint - top), axis=0)) + (top - half_log_2pi)  # type: ignore[no-any-return]

    def _eps(self, x: Array, a: Any, ab: Any, sigma: Any, var: Any, xp: Any) -> Array:
        """E[eps | x_t = x] for x_t = a x_0 + sigma eps; ab = a**2 and var = sigma**2."""
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
        _, means, variances = self._components
        if tuple(x.shape[1:]) != means.shape[1:]:
            raise ValueError(f"{name} must have shape (B, *{means.shape[1:]}), got {tuple(x.shape)}")
        means, variances = (array_like(p[:, None, ...], x, xp) for p in (means, variances))
        return x - a * means, ab * variances + var

    def _log_joint(self, offset: Array, var: Array, x: Array, xp: Any) -> Array:
        """log w_k N(x; k) for each component, shape (K, B), without the constant of 2 pi."""
        terms = offset**2 / var + xp.log(var)
        terms = xp.sum(xp.reshape(terms, (*terms.shape[:2], math.prod(x.shape[1:]))), axis=-1)
        return array_like(np.log(self._components[0])[:, None], x, xp) - terms / 2


@dataclass(frozen=True, eq=False)
class GaussianData(_Data):
    """Data x_0 ~ N(mean, var), independent over dimensions.

    Parameters
    ----------
    mean : array_like
        The mean, of the shape of one sample; kept as a read-only float64 array.
    var : array_like
        The variances, not negative, broadcast to the mean's shape; kept as a read-only float64 array.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of finite numbers, the shapes do not fit, or a variance is negative.

    Examples
    --------
    >>> from tinyddpm import Diffusion
    >>> data = GaussianData([0.2, 0.4], 0.01)
    >>> data.sample(3).shape, data.marginal(Diffusion([0.36]), 1).mean.round(2).tolist()
    ((3, 2), [0.16, 0.32])
    """

    mean: Any
    var: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _table("mean", self.mean))
        object.__setattr__(self, "var", _table("var", self.var, self.mean.shape, least=0.0))

    @property
    def _components(self) -> tuple[Table, Table, Table]:
        return np.ones(1), self.mean[None], self.var[None]

    def _scaled(self, a: float, ab: float, var: float) -> Self:
        return type(self)(a * self.mean, ab * self.var + var)


@dataclass(frozen=True, eq=False)
class MixtureData(_Data):
    """Data x_0 ~ sum_k weights[k] N(means[k], vars[k]), independent over dimensions within each component.

    Parameters
    ----------
    weights : array_like (K,)
        Positive numbers that sum to 1.
    means : array_like (K, *shape)
        The components' means.
    vars : array_like
        Their variances, not negative, broadcast to the means' shape, or one for each component, shape (K,).

    Raises
    ------
    TypeError, ValueError
        If an argument is not of finite numbers, the shapes do not fit, the weights do not sum to 1, or a variance is negative.

    Examples
    --------
    >>> data = MixtureData([0.5, 0.5], [[-0.5], [0.5]], 0.01)
    >>> data.log_prob(np.array([[0.5], [0.0]])).round(3).tolist()
    [0.69, -11.116]
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
        var = host_numbers("vars", self.vars)
        if var.shape == weights.shape:
            var = var.reshape(-1, *(1,) * (means.ndim - 1))
        for name, table in (("weights", weights), ("means", means), ("vars", _table("vars", var, means.shape, least=0.0))):
            object.__setattr__(self, name, table)

    @property
    def _components(self) -> tuple[Table, Table, Table]:
        return self.weights, self.means, self.vars

    def _scaled(self, a: float, ab: float, var: float) -> Self:
        return type(self)(self.weights, a * self.means, ab * self.vars + var)


@dataclass(frozen=True)
class ExactNet:
    """``net(x_t, t)`` returns E[eps | x_t] for `data` on the chain `d`: x_t (B, *shape), t an int or integer array in 1..T."""

    data: GaussianData | MixtureData | Any
    d: Process
    predicts: ClassVar[str] = "eps"

    def __call__(self, x_t: A, t: Steps) -> A:
        xp = namespace_of(x_t=x_t)
        t = check_steps("t", t, x_t, xp, 1, self.d.T)
        # Squared distances leave float16's range: 16 bits in, 32 bits between.
        x = widened(x_t, xp)
        names = ("sqrt_alpha_bar", "alpha_bar", "sqrt_one_minus_alpha_bar", "one_minus_alpha_bar")
        with quiet():
            a, ab, sigma, var = (gather(Named(self.d, name), t, x, xp) for name in names)
            return cast_like(self.data._eps(x, a, ab, sigma, var, xp), x_t, xp)  # type: ignore[no-any-return]


def _table(name: str, values: ArrayLike, shape: tuple[int, ...] | None = None, least: float = -math.inf) -> Table:
    """A read-only float64 copy of finite numbers from `least` on, broadcast to `shape`."""
    table = host_numbers(name, values).astype(np.float64)
    try:
        table = table if shape is None else np.array(np.broadcast_to(table, shape))
    except ValueError:
        raise ValueError(f"{name} must broadcast to shape {shape}, got {table.shape}") from None
    if not np.all(np.isfinite(table)) or np.any(table < least):
        raise ValueError(f"{name} must be finite{' and not negative' if least == 0 else ''}, got {table}")
    table.flags.writeable = False
    return table
