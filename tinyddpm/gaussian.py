"""Diagonal Gaussians: densities, divergences, and the likelihood of discrete data.

Everything is elementwise and in nats, in the library, dtype and on the device of the first array argument; float16 and
bfloat16 are computed in float32. A variance is given by its logarithm. A log-variance of -inf is a point, and there each
function takes its limit: the density is inf at the point and 0 elsewhere; KL is 0 between equal points, and inf if only one
side is a point or the points differ. A result outside the float range is 0 or infinite, without a warning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_instance, as_int, lookup
from tinyddpm._arrays.namespace import A, Array, array_like, cast_like, check_same_shape, library_name, namespace_of, quietly
from tinyddpm._arrays.value import FrozenValue, make_pytree
from tinyddpm._numerics import bins
from tinyddpm._numerics.divergence import kl, kl_full
from tinyddpm._numerics.operands import as_log_var, scaled, split_point, to_operands

__all__ = ["Gaussian", "discretized_log_likelihood", "kl", "kl_full"]


@dataclass(frozen=True, eq=False)
class Gaussian(FrozenValue):
    """A diagonal Gaussian N(mean, exp(log_var)), equal and hashable by content.

    It is a JAX pytree if JAX is loaded when a Gaussian is made: `mean` and an array `log_var` are its leaves, and a float
    `log_var` is static.

    Parameters
    ----------
    mean : array (B, ...) or ()
        The mean.
    log_var : float or array
        The natural log of the variance; an array broadcasts to `mean`. -inf is a point. A float stays a float, and costs no
        device work.

    Raises
    ------
    TypeError, ValueError
        If `mean` is not a floating-point array, or `log_var` is neither a number below inf nor an array of the mean's library
        that broadcasts to it.

    Examples
    --------
    >>> import numpy as np
    >>> Gaussian(np.zeros(2), 0.0).log_prob(np.array([0.0, 1.0])).round(4).tolist()
    [-0.9189, -1.4189]
    """

    mean: Array
    log_var: Array | float

    def __post_init__(self) -> None:
        namespace_of(scalars=True, mean=self.mean)
        object.__setattr__(self, "log_var", as_log_var(self.log_var, self.mean))
        make_pytree(Gaussian)

    @property
    def var(self) -> Array:
        """The variance, of the shape of `log_var`: () if that is a float."""
        return self._power_array(1.0)

    @property
    def std(self) -> Array:
        """The standard deviation, of the shape of `log_var`: () if that is a float."""
        return self._power_array(0.5)

    @quietly
    def sample(self, eps: A) -> A:
        """Draw a sample, mean + std * eps.

        Parameters
        ----------
        eps : array
            Standard normal noise of the mean's shape and library.

        Returns
        -------
        array
            Of the mean's shape and dtype.

        Raises
        ------
        TypeError, ValueError
            If `eps` is not a floating-point array of the mean's library and shape.

        Examples
        --------
        >>> import numpy as np
        >>> Gaussian(np.ones(2), np.log(4.0)).sample(np.array([0.0, 1.0])).tolist()
        [1.0, 3.0]
        """
        xp = namespace_of(scalars=True, mean=self.mean, eps=eps)
        check_same_shape("eps", eps, "mean", self.mean)
        return self.mean + self._power(0.5) * cast_like(eps, self.mean, xp)  # type: ignore[no-any-return]

    @quietly
    def log_prob(self, x: A) -> A:
        r"""The log density in nats, elementwise.

        .. math:: \log N(x; \mu, \sigma^2) = -\frac12 \left(\frac{(x - \mu)^2}{\sigma^2} + \log \sigma^2 + \log 2\pi\right)

        Parameters
        ----------
        x : array
            Points, which broadcast against the mean.

        Returns
        -------
        array
            Of the common shape, in x's dtype.

        Raises
        ------
        TypeError, ValueError
            If `x` is not a floating-point array of the mean's library, or does not broadcast.

        Examples
        --------
        >>> import numpy as np
        >>> Gaussian(np.array([0.0]), -np.inf).log_prob(np.array([0.0, 1.0])).tolist()
        [inf, -inf]
        """
        namespace_of(scalars=True, mean=self.mean, x=x)
        xp, _, (mean, log_var, x_) = to_operands(mean=self.mean, log_var=self.log_var, x=x)
        point, log_var = split_point(log_var, xp)
        deviation = x_ - mean
        density = -0.5 * (scaled(deviation, log_var, xp) ** 2 + log_var + math.log(2 * math.pi))
        limit = xp.where(deviation == 0, array_like(math.inf, mean, xp), array_like(-math.inf, mean, xp))
        return cast_like(xp.where(point, limit, density), x, xp)  # type: ignore[no-any-return]

    def kl(self, other: Gaussian) -> Array:
        """KL(self || other) in nats, elementwise; see `kl` of the module.

        Parameters
        ----------
        other : Gaussian
            Of the same library; the shapes broadcast.

        Returns
        -------
        array
            Of the common shape, in the dtype of this mean.

        Raises
        ------
        TypeError, ValueError
            If `other` is not a Gaussian of this library, or does not broadcast.

        Examples
        --------
        >>> import numpy as np
        >>> Gaussian(np.zeros(2), 0.0).kl(Gaussian(np.array([0.0, 2.0]), 0.0)).tolist()
        [0.0, 2.0]
        """
        other = as_instance("other", other, Gaussian)
        return kl(self.mean, self.log_var, other.mean, other.log_var)

    def discretized_log_prob(self, x: A, levels: int = 256) -> A:
        """Log of the mass in x's bin; see `discretized_log_likelihood`.

        Parameters
        ----------
        x : array (B, ...)
            Data, which broadcast against the mean.
        levels : int
            The number of levels of the data.

        Returns
        -------
        array
            Of the common shape, in x's dtype.

        Raises
        ------
        TypeError, ValueError
            As in `discretized_log_likelihood`.

        Examples
        --------
        >>> import numpy as np
        >>> Gaussian(np.zeros(2), 0.0).discretized_log_prob(np.array([-1.0, 1.0]), 2).round(4).tolist()
        [-0.6931, -0.6931]
        """
        mean: A = self.mean
        return discretized_log_likelihood(x, mean, 0.5 * self.log_var, levels)

    @property
    def _content(self) -> tuple[Any, ...]:
        return _content(self.mean), _content(self.log_var)

    def _power(self, exponent: float) -> Any:
        """exp(exponent * log_var), a float if `log_var` is a float, else an array of the mean's dtype."""
        if isinstance(self.log_var, float):
            log = exponent * self.log_var
            return math.exp(log) if log < 709.0 else float(np.exp(np.longdouble(log)))
        xp = namespace_of(scalars=True, mean=self.mean)
        return cast_like(xp.exp(exponent * self.log_var), self.mean, xp)

    @quietly
    def _power_array(self, exponent: float) -> Array:
        """The same as an array."""
        value = self._power(exponent)
        return array_like(value, self.mean, namespace_of(scalars=True, mean=self.mean)) if isinstance(value, float) else value


@quietly
def discretized_log_likelihood(
    x: A, mean: A | float, log_std: A | float, levels: int = 256, method: Literal["exact", "ho2020"] = "exact"
) -> A:
    r"""Log of the mass in nats that N(mean, std**2) has in x's bin.

    .. math:: \log \int_{\delta_-(x)}^{\delta_+(x)} N(y; \mu, \sigma^2)\, dy  \qquad \text{[Ho eq. 13]}

    Parameters
    ----------
    x : array (B, ...)
        Data on `levels` equal steps of [-1, 1]; each value counts as its nearest level.
    mean, log_std : array or float
        The Gaussian's mean and the natural log of its standard deviation; arrays broadcast against x.
    levels : int
        In 2..65536. Bins have half-width 1 / (levels - 1); the first and the last are open-ended.
    method : {"exact", "ho2020"}
        "exact": the normal CDF, no floor; right to 80 units in the last place or 1e-20 for any std in [1e-8, 1e8] and means up to
        1e15 std away, in float32 too, and finite wherever the exact value is; so are the gradients, to 1e-11 relative in float64.
        "ho2020": the tanh approximation of [Ho]'s code with its floor of 1e-12,
        which is 2 bits off at 5 std and has no gradient beyond 7: to reproduce published numbers.

    Returns
    -------
    array
        Of the common shape, in x's dtype.

    Raises
    ------
    TypeError, ValueError, LookupError
        If an argument has the wrong type or shape or is out of range, or the method is unknown; also if a value of x that the
        host can read is more than half a bin outside [-1, 1].

    Examples
    --------
    >>> import numpy as np
    >>> discretized_log_likelihood(np.linspace(-1, 1, 3), 0.0, -1.0, levels=3).round(4).tolist()
    [-2.4413, -0.1913, -2.4413]
    """
    levels = as_int("levels", levels, 2, 65536)
    log_mass = lookup("method", method, bins.METHODS)
    xp, first, (x_, mean, log_std) = to_operands(x=x, mean=mean, log_std=log_std)
    bins.check_range("x", x_, levels)
    point, log_std = split_point(log_std, xp)
    b = bins.bin_of(x_, mean, log_std, levels, xp)
    outside, edge = array_like(-math.inf, x_, xp), array_like(-math.log(2), x_, xp)
    limit = xp.where(b.high > 0, xp.zeros_like(x_), xp.where(b.high == 0, edge, outside))
    return cast_like(xp.where(point, limit, log_mass(b, xp)), first, xp)  # type: ignore[no-any-return]


def _content(x: Any) -> Any:
    """What equality compares and the hash is of: a float, or an array's library, dtype, shape and bytes."""
    if isinstance(x, float):
        return x
    backend = backends.find(x)
    host = np.asarray(x) if backend is None else backend.to_numpy(x)
    return library_name(x), str(x.dtype), host.shape, host.tobytes()
