"""KL divergences of Gaussians, elementwise and of full covariances, without cancellation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyddpm._arrays.namespace import A, Array, array_like, cast_like, host_values, namespace_of, quietly
from tinyddpm._numerics.operands import check_broadcast, scaled, split_point, to_operands, working_dtype


@quietly
def kl(mean1: A | float, log_var1: A | float, mean2: A | float, log_var2: A | float) -> A:
    r"""KL divergence of diagonal Gaussians in nats, elementwise, without cancellation.

    .. math:: KL(N(\mu_1, \sigma_1^2) \| N(\mu_2, \sigma_2^2)) = \frac12 \left(e^d - 1 - d
       + \frac{(\mu_1 - \mu_2)^2}{\sigma_2^2}\right), \quad d = \log\sigma_1^2 - \log\sigma_2^2

    Parameters
    ----------
    mean1, mean2 : array or float
        The means.
    log_var1, log_var2 : array or float
        The natural logs of the variances. The arrays broadcast, are of one library, and are at least one.

    Returns
    -------
    array
        Of the common shape, in the first array's dtype. Not negative, and 0 for equal arguments only.

    Raises
    ------
    TypeError, ValueError
        If there is no array, or an argument is neither a number nor a floating-point array, or does not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> kl(np.array([0.0, 1.0]), 0.0, 0.0, 1.0).round(4).tolist()
    [0.1839, 0.3679]
    """
    xp, first, (m1, log1, m2, log2) = to_operands(mean1=mean1, log_var1=log_var1, mean2=mean2, log_var2=log_var2)
    (point1, log1), (point2, log2) = split_point(log1, xp), split_point(log2, xp)
    gap = m1 - m2
    regular = 0.5 * (_excess(log1 - log2, xp) + scaled(gap, log2, xp) ** 2)
    limit = xp.where(point1 & point2 & (gap == 0), xp.zeros_like(gap), array_like(math.inf, gap, xp))
    return cast_like(xp.where(point1 | point2, limit, regular), first, xp)  # type: ignore[no-any-return]


@quietly
def kl_full(mean1: A, cov1: A, mean2: A, cov2: A) -> A:
    r"""KL divergence of d-dimensional Gaussians in nats, without cancellation.

    .. math:: KL(N(\mu_1, \Sigma_1) \| N(\mu_2, \Sigma_2)) = \frac12 \left(\operatorname{tr} \Sigma_2^{-1} \Sigma_1 - d
       + (\mu_2 - \mu_1)^T \Sigma_2^{-1} (\mu_2 - \mu_1) + \log \frac{\det \Sigma_2}{\det \Sigma_1}\right)

    Parameters
    ----------
    mean1, mean2 : array (..., d)
        The means.
    cov1, cov2 : array (..., d, d)
        The covariances. The batches of all four broadcast.

    Returns
    -------
    array (...)
        Of the batches' common shape, in mean1's dtype.

    Raises
    ------
    TypeError
        If an argument is not a floating-point array, or of another library than `mean1`.
    ValueError
        If the shapes do not fit, or a covariance that the host can read is not positive definite, or not symmetric to the
        square root of the precision.

    Examples
    --------
    >>> import numpy as np
    >>> float(kl_full(np.zeros(2), np.eye(2), np.ones(2), np.eye(2)))
    1.0
    """
    xp = namespace_of(mean1=mean1, cov1=cov1, mean2=mean2, cov2=cov2)
    dtype = working_dtype(xp, mean1, cov1, mean2, cov2)
    if mean2.shape[-1] != mean1.shape[-1]:
        raise ValueError(f"mean2 must have the dimensions of mean1, {mean1.shape[-1]}, got {mean2.shape[-1]}")
    check_broadcast(mean1=mean1.shape[:-1], cov1=cov1.shape[:-2], mean2=mean2.shape[:-1], cov2=cov2.shape[:-2])
    m1, m2 = (xp.astype(m, dtype) for m in (mean1, mean2))
    factor1 = _cholesky("cov1", xp.astype(cov1, dtype), m1.shape[-1], xp)
    factor2 = _cholesky("cov2", xp.astype(cov2, dtype), m1.shape[-1], xp)
    # With A = L2^-1 L1 = I + E, twice the divergence is a sum of non-negative terms: the squares of A off the diagonal, the
    # excess of the log of A's squared diagonal, and the squares of L2^-1 (mean1 - mean2).
    apart = xp.linalg.solve(factor2, factor1 - factor2)
    shift = xp.linalg.solve(factor2, (m1 - m2)[..., None])[..., 0]
    diagonal1, diagonal2 = xp.linalg.diagonal(factor1), xp.linalg.diagonal(factor2)
    change = (diagonal1 - diagonal2) / diagonal2
    near = xp.abs(change) < 0.5
    log_ratio = xp.where(near, xp.log1p(xp.where(near, change, xp.zeros_like(change))), xp.log(diagonal1 / diagonal2))
    off = xp.tril(apart, k=-1)
    total = xp.sum(_excess(2 * log_ratio, xp) + shift**2, axis=-1) + xp.sum(off**2, axis=(-2, -1))
    return cast_like(0.5 * total, mean1, xp)  # type: ignore[no-any-return]


def _excess(d: Array, xp: Any) -> Array:
    """exp(d) - 1 - d >= 0, without the cancellation next to 0."""
    near = xp.abs(d) < 0.25
    small = xp.where(near, d, xp.zeros_like(d))
    series = xp.ones_like(d)
    for k in range(14, 2, -1):
        series = 1 + series * small / k
    return xp.where(near, 0.5 * small**2 * series, xp.expm1(d) - d)


def _cholesky(name: str, cov: Array, d: int, xp: Any) -> Array:
    """The lower Cholesky factor of a covariance, which is checked if the host can read it."""
    if tuple(cov.shape[-2:]) != (d, d):
        raise ValueError(f"{name} must have shape (..., {d}, {d}), got {tuple(cov.shape)}")
    host = host_values(cov)
    if host is not None:
        skew = np.abs(host - np.swapaxes(host, -1, -2))
        if not (skew <= np.finfo(host.dtype).eps ** 0.5 * np.abs(host).max(initial=0.0)).all():
            raise ValueError(f"{name} must be symmetric")
    try:
        factor = xp.linalg.cholesky(cov)
    except (ValueError, RuntimeError) as error:  # each library has its own LinAlgError
        raise ValueError(f"{name} must be positive definite") from error
    host = host_values(factor)
    if host is not None and not np.isfinite(host).all():
        raise ValueError(f"{name} must be positive definite")
    return factor
