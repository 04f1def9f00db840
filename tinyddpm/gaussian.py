"""Diagonal Gaussians: densities, divergences, and the likelihood of discrete data.

Everything is elementwise and in nats, in the library, dtype and on the device of the first array argument; float16 and
bfloat16 are computed in float32. Variances enter by their logarithm; a log-variance of -inf is a point, and there each
function takes its limit: the density is inf at the point and 0 elsewhere; KL is 0 between equal points, and inf where
only one side is a point or the points differ.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyddpm._arrays.check import as_instance, as_int, as_real, lookup
from tinyddpm._arrays.namespace import Array, array_like, cast_like, check_same_shape, host_values, namespace_of
from tinyddpm._numerics import bins

__all__ = ["Gaussian", "discretized_log_likelihood", "kl", "kl_full"]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A diagonal Gaussian N(mean, exp(log_var)); equal and hashable by content.

    Parameters
    ----------
    mean : array (B, ...)
    log_var : float or array
        The natural log of the variance; an array broadcasts to `mean`. -inf is a point. A float stays one, and costs no
        device work.
    """

    mean: Array
    log_var: Array | float

    def __post_init__(self) -> None:
        namespace_of(scalars=True, mean=self.mean)
        object.__setattr__(self, "log_var", _scale("log_var", self.log_var, self.mean))

    @property
    def var(self) -> Array:
        """The variance, shaped like `log_var`: 0-d where that is a float."""
        return self._lifted(self._power(1.0))

    @property
    def std(self) -> Array:
        """The standard deviation, shaped like `log_var`: 0-d where that is a float."""
        return self._lifted(self._power(0.5))

    def sample(self, eps: Array) -> Array:
        """mean + std * eps, for standard normal `eps` of the mean's shape."""
        xp = namespace_of(scalars=True, mean=self.mean, eps=eps)
        check_same_shape("eps", eps, "mean", self.mean)
        return self.mean + self._power(0.5) * cast_like(eps, self.mean, xp)

    def log_prob(self, x: Array) -> Array:
        """The log density at x, of the mean's shape."""
        xp, (x_, mean, log_var) = _prepared(x=x, mean=self.mean, log_var=self.log_var)
        point, log_var = _split(log_var, xp)
        deviation = x_ - mean
        with _quiet():
            density = -0.5 * ((deviation * xp.exp(-0.5 * log_var)) ** 2 + log_var + math.log(2 * math.pi))
        limit = xp.where(deviation == 0, array_like(math.inf, mean, xp), array_like(-math.inf, mean, xp))
        return cast_like(xp.where(point, limit, density), x, xp)

    def kl(self, other: Gaussian) -> Array:
        """KL(self || other)."""
        other = as_instance("other", other, Gaussian)
        return kl(self.mean, self.log_var, other.mean, other.log_var)

    def discretized_log_prob(self, x: Array, levels: int = 256) -> Array:
        """Log of the mass in x's bin; see `discretized_log_likelihood`."""
        return discretized_log_likelihood(x, self.mean, 0.5 * self.log_var, levels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gaussian) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def _content(self) -> tuple[Any, ...]:
        return _content(self.mean), _content(self.log_var)

    def _power(self, exponent: float) -> Array | float:
        """The variance to a power, in the mean's dtype; a float where `log_var` is one."""
        if isinstance(self.log_var, float):
            with np.errstate(over="ignore"):
                return float(np.exp(exponent * self.log_var))
        xp = namespace_of(scalars=True, mean=self.mean)
        return cast_like(xp.exp(exponent * self.log_var), self.mean, xp)

    def _lifted(self, value: Array | float) -> Array:
        return array_like(value, self.mean, namespace_of(scalars=True, mean=self.mean)) if isinstance(value, float) else value


def kl(mean1: Array, log_var1: Array | float, mean2: Array, log_var2: Array | float) -> Array:
    """KL(N(mean1, exp(log_var1)) || N(mean2, exp(log_var2))), elementwise, without cancellation.

    The arguments are arrays that broadcast, or numbers (one is an array). Never negative; 0 for equal arguments only.
    """
    xp, (m1, log1, m2, log2) = _prepared(mean1=mean1, log_var1=log_var1, mean2=mean2, log_var2=log_var2)
    (point1, log1), (point2, log2) = _split(log1, xp), _split(log2, xp)
    gap = m1 - m2
    with _quiet():
        regular = 0.5 * (_excess(log1 - log2, xp) + (gap * xp.exp(-0.5 * log2)) ** 2)
    limit = xp.where(point1 & point2 & (gap == 0), xp.zeros_like(gap), array_like(math.inf, gap, xp))
    return cast_like(xp.where(point1 | point2, limit, regular), mean1, xp)


def kl_full(mean1: Array, cov1: Array, mean2: Array, cov2: Array) -> Array:
    """KL(N(mean1, cov1) || N(mean2, cov2)) of d-dimensional Gaussians.

    Means have shape (..., d), covariances (..., d, d); batches broadcast, and the result has their shape. `ValueError`
    where a covariance that the host can read is not positive definite, or not symmetric to the square root of the
    precision.
    """
    xp = namespace_of(mean1=mean1, cov1=cov1, mean2=mean2, cov2=cov2)
    dtype = _working(xp, mean1, cov1, mean2, cov2)
    if mean2.shape[-1] != mean1.shape[-1]:
        raise ValueError(f"mean2: has {mean2.shape[-1]} dimensions, but mean1 {mean1.shape[-1]}")
    _broadcast(mean1=mean1.shape[:-1], cov1=cov1.shape[:-2], mean2=mean2.shape[:-1], cov2=cov2.shape[:-2])
    m1, m2 = (xp.astype(m, dtype) for m in (mean1, mean2))
    factor1 = _cholesky("cov1", xp.astype(cov1, dtype), m1.shape[-1], xp)
    factor2 = _cholesky("cov2", xp.astype(cov2, dtype), m1.shape[-1], xp)
    # With A = L2^-1 L1 = I + E, twice the divergence is a sum of non-negative terms: the squares of A off the diagonal,
    # the excess of the log of A's squared diagonal, and the squares of L2^-1 (mean1 - mean2).
    apart = xp.linalg.solve(factor2, factor1 - factor2)
    shift = xp.linalg.solve(factor2, (m1 - m2)[..., None])[..., 0]
    diagonal1, diagonal2 = xp.linalg.diagonal(factor1), xp.linalg.diagonal(factor2)
    change = (diagonal1 - diagonal2) / diagonal2
    near = xp.abs(change) < 0.5
    log_ratio = xp.where(near, xp.log1p(xp.where(near, change, xp.zeros_like(change))), xp.log(diagonal1 / diagonal2))
    off = xp.tril(apart, k=-1)
    total = xp.sum(_excess(2 * log_ratio, xp) + shift**2, axis=-1) + xp.sum(off**2, axis=(-2, -1))
    return cast_like(0.5 * total, mean1, xp)


def discretized_log_likelihood(x: Array, mean: Array, log_std: Array | float, levels: int = 256, method: str = "exact") -> Array:
    """Log of the mass that N(mean, std**2) has in x's bin [Ho eq. 13], for x on `levels` equal steps of [-1, 1].

    Parameters
    ----------
    x : array (B, ...)
        Data; each value counts as its nearest level. `ValueError` for more than half a bin outside [-1, 1], where the
        host can read x.
    mean, log_std : float or array
        The Gaussian's mean and the log of its standard deviation; arrays broadcast against x.
    levels : int
        2..65536. Bins have half-width 1 / (levels - 1); the first and the last are open-ended.
    method : str
        "exact": the normal CDF, no floor; right to 1e-10 relative in float64 for any std in [1e-8, 1e8], and so are its
        gradients in the tails and for narrow bins. "ho2020": the tanh approximation of [Ho]'s code with its floor of
        1e-12, which is 2 bits off at 5 std and has no gradient beyond 7: to reproduce published numbers.
    """
    xp, (x_, mean, log_std) = _prepared(x=x, mean=mean, log_std=log_std)
    levels = as_int("levels", levels, 2, 65536)
    log_mass = lookup("method", method, bins.METHODS)
    _check_range(x_, 1 + 1 / (levels - 1))
    point, log_std = _split(log_std, xp)
    b = bins.bin_of(x_, mean, log_std, levels, xp)
    outside, edge = array_like(-math.inf, x_, xp), array_like(-math.log(2), x_, xp)
    limit = xp.where(b.high > 0, xp.zeros_like(x_), xp.where(b.high == 0, edge, outside))
    with _quiet():
        return cast_like(xp.where(point, limit, log_mass(b, xp)), x, xp)


def _quiet() -> AbstractContextManager[Any]:
    """NumPy alone warns where a result leaves the float range, and so is rightly infinite."""
    return np.errstate(over="ignore", invalid="ignore")


def _excess(d: Array, xp: Any) -> Array:
    """exp(d) - 1 - d >= 0, without the cancellation next to 0."""
    near = xp.abs(d) < 0.25
    small = xp.where(near, d, xp.zeros_like(d))
    series = xp.ones_like(d)
    for k in range(14, 2, -1):
        series = 1 + series * small / k
    return xp.where(near, 0.5 * small**2 * series, xp.expm1(d) - d)


def _scale(name: str, value: Any, mean: Array) -> Any:
    """A log-variance or log-std: a float, or an array of the mean's library that broadcasts to it."""
    if isinstance(value, np.generic) or not hasattr(value, "ndim"):
        return _number(name, value)
    namespace_of(scalars=True, mean=mean, **{name: value})
    if not _broadcasts(tuple(value.shape), tuple(mean.shape)):
        raise ValueError(f"{name}: shape {tuple(value.shape)} does not broadcast to the mean's {tuple(mean.shape)}")
    return value


def _number(name: str, value: Any) -> float:
    """A number, of which a logarithm may be -inf."""
    infinite = name.startswith("log_") and isinstance(value, float) and value == -math.inf
    return -math.inf if infinite else as_real(name, value)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))


def _prepared(**arguments: Any) -> tuple[Any, list[Array]]:
    """The namespace, and the arguments, checked, as arrays of one dtype that broadcast; a number becomes 0-d."""
    arrays = {name: x for name, x in arguments.items() if hasattr(x, "ndim") and not isinstance(x, np.generic)}
    first = next(iter(arguments))
    xp = namespace_of(scalars=True, **(arrays or {first: arguments[first]}))
    values = [x if name in arrays else _number(name, x) for name, x in arguments.items()]
    dtype = _working(xp, *arrays.values())
    _broadcast(**{name: x.shape for name, x in arrays.items()})
    one = next(iter(arrays.values()))
    lifted = (array_like(x, one, xp, dtype=dtype) if isinstance(x, float) else x for x in values)
    return xp, [xp.astype(x, dtype, copy=False) for x in lifted]


def _broadcast(**shapes: tuple[int, ...]) -> None:
    """Refuse shapes that don't broadcast together."""
    shape: tuple[int, ...] = ()
    for name, own in shapes.items():
        try:
            shape = np.broadcast_shapes(shape, tuple(own))
        except ValueError:
            raise ValueError(f"{name}: shape {tuple(own)} does not broadcast against {shape}") from None


def _working(xp: Any, *arrays: Array) -> Any:
    return xp.result_type(xp.float32, *(x.dtype for x in arrays))


def _split(log: Array, xp: Any) -> tuple[Array, Array]:
    """Where the scale is a point's, and the logarithm with 0 there, so that both branches stay finite."""
    point = log == -math.inf
    return point, xp.where(point, xp.zeros_like(log), log)


def _check_range(x: Array, bound: float) -> None:
    host = host_values(x)
    if host is not None and host.size and not (np.abs(host) <= bound).all():
        wrong = host[~(np.abs(host) <= bound)].flat[0]
        raise ValueError(f"x must be in [-1, 1], got {wrong}; data has to be scaled to it")


def _cholesky(name: str, cov: Array, d: int, xp: Any) -> Array:
    if tuple(cov.shape[-2:]) != (d, d):
        raise ValueError(f"{name} must have shape (..., {d}, {d}), got {tuple(cov.shape)}")
    host = host_values(cov)
    if host is not None:
        skew = np.abs(host - np.swapaxes(host, -1, -2))
        if not (skew <= np.finfo(host.dtype).eps ** 0.5 * np.abs(host).max(initial=0.0)).all():
            raise ValueError(f"{name}: the covariance is not symmetric")
    try:
        factor = xp.linalg.cholesky(cov)
    except (ValueError, RuntimeError) as error:  # each library has its own LinAlgError
        raise ValueError(f"{name}: the covariance is not positive definite") from error
    host = host_values(factor)
    if host is not None and not np.isfinite(host).all():
        raise ValueError(f"{name}: the covariance is not positive definite")
    return factor


def _content(x: Any) -> Any:
    if isinstance(x, float):
        return x
    from tinyddpm import backends

    try:
        host = backends.of(x).to_numpy(x)
    except LookupError:
        host = np.asarray(x)
    return type(x).__module__.partition(".")[0], str(x.dtype), host.shape, host.tobytes()
