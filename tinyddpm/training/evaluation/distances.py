"""Distances between generated and real images, by features (N, D) of both.

Every function takes the generated set first. FID and KID are `frechet` and `kernel` of the features of one particular
network, Inception-v3; distances in the features of another network compare only with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm._arrays.check import as_int

__all__ = [
    "GROUPS",
    "MEASURES",
    "Estimate",
    "compare",
    "frechet",
    "frechet_gaussian",
    "jackknife",
    "kernel",
    "precision",
    "recall",
]

Table = NDArray[np.float64]

GROUPS = 10
"""Parts of a set that are left out in turn for a standard error."""
_ROWS = 1000  # of a matrix of pairs at a time


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


def frechet(x: ArrayLike, y: ArrayLike) -> float:
    """Squared Frechet (Wasserstein-2) distance of the Gaussians with the sets' moments [Heusel et al. 2017, eq. 6].

    Biased upwards by about 1 / N: compare sets of one size only.

    Parameters
    ----------
    x : array (N, D)
        Features of the generated set.
    y : array (M, D)
        Features of the real set.

    Returns
    -------
    float
        The distance.

    Raises
    ------
    ValueError
        If a set is not finite features of at least two images, or the sets differ in D.
    """
    x, y = _pair(x, y)
    return frechet_gaussian(x.mean(axis=0), _cov(x), y.mean(axis=0), _cov(y))


def frechet_gaussian(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), of means (D,) and covariances (D, D).

    The last trace is computed as the sum of the singular values of C1^1/2 C2^1/2. A root of the product would be inaccurate,
    as rounding makes its small eigenvalues negative or far too large.

    Parameters
    ----------
    mean1, mean2 : array (D,)
        The means.
    cov1, cov2 : array (D, D)
        The covariances.

    Returns
    -------
    float
        The distance.

    Raises
    ------
    ValueError
        If the shapes differ or a matrix is not a covariance.
    """
    mean1, mean2 = (np.atleast_1d(np.asarray(m, np.float64)) for m in (mean1, mean2))
    if mean1.shape != mean2.shape:
        raise ValueError(f"mean2 must have mean1's shape {mean1.shape}, got {mean2.shape}")
    root1, root2 = (_root(name, c, len(mean1)) for name, c in (("cov1", cov1), ("cov2", cov2)))
    cross = np.linalg.svd(root1 @ root2, compute_uv=False).sum()
    return float(np.sum((mean1 - mean2) ** 2) + np.sum(root1**2) + np.sum(root2**2) - 2 * cross)


def kernel(x: ArrayLike, y: ArrayLike) -> float:
    """Squared maximum mean discrepancy of the kernel (a.b / D + 1)^3 [Binkowski et al. 2018, sec. 4].

    The estimate is unbiased, so it can be negative.

    Parameters
    ----------
    x : array (N, D)
        Features of the generated set.
    y : array (M, D)
        Features of the real set.

    Returns
    -------
    float
        The distance.

    Raises
    ------
    ValueError
        If a set is not finite features of at least two images, or the sets differ in D.
    """
    x, y = _pair(x, y)
    return _kernel_sum(x, x, distinct=True) + _kernel_sum(y, y, distinct=True) - 2 * _kernel_sum(x, y)


def precision(x: ArrayLike, y: ArrayLike, k: int = 3) -> float:
    """Share of x that lies within the manifold of y [Kynkaanniemi et al. 2019, eq. 1].

    The manifold is the union of balls around the points of y, each up to its k-th neighbour in y. The result depends on the
    sets' sizes; the source compares sets of one size.

    Parameters
    ----------
    x : array (N, D)
        Features of the generated set.
    y : array (M, D)
        Features of the real set.
    k : int
        The neighbour that a ball reaches, less than the number of points. Default: 3.

    Returns
    -------
    float
        The share.

    Raises
    ------
    TypeError, ValueError
        As in `frechet`, or if `k` is out of range.
    """
    x, y = _pair(x, y)
    k = as_int("k", k, 1, len(y) - 1)
    radius = np.concatenate([np.partition(part, k, axis=1)[:, k] for part in _squares(y, y)])  # entry 0 is the point
    return float(np.mean(np.concatenate([(part <= radius).any(axis=1) for part in _squares(x, y)])))


def recall(x: ArrayLike, y: ArrayLike, k: int = 3) -> float:
    """Share of y that lies within the manifold of x: `precision` with the sets exchanged.

    Parameters
    ----------
    x, y, k
        As in `precision`.

    Returns
    -------
    float
        The share.

    Raises
    ------
    TypeError, ValueError
        As in `precision`.
    """
    return precision(y, x, k)


def jackknife(measure: Callable[[Table, Table], float], x: ArrayLike, y: ArrayLike, groups: int = GROUPS) -> Estimate:
    """A measure of two sets with its standard error: each `groups`-th part of both is left out in turn.

    The error covers the randomness of both sets, not a bias. It is right to first order. It is up to about 1.7 times too large
    if the first order vanishes: for sets that hardly differ, and for precision and recall, which depend on few outliers.

    Parameters
    ----------
    measure : callable
        A function of two sets, e.g. `frechet`.
    x : array (N, D)
        Features of the generated set.
    y : array (M, D)
        Features of the real set.
    groups : int
        Parts of each set, in 2..min(N, M) / 2. Default: 10.

    Returns
    -------
    Estimate
        The value on the whole sets, and its standard error.

    Raises
    ------
    TypeError, ValueError
        As in `frechet`, or if `groups` is out of range.
    """
    x, y = _pair(x, y)
    groups = as_int("groups", groups, 2, min(len(x), len(y)) // 2)
    kept = [[a[np.arange(len(a)) % groups != g] for a in (x, y)] for g in range(groups)]
    values = np.array([measure(*pair) for pair in kept])
    return Estimate(measure(x, y), math.sqrt((groups - 1) * float(np.var(values))))


MEASURES: dict[str, Callable[[Table, Table], float]] = {
    "frechet": frechet,
    "kernel": kernel,
    "precision": precision,
    "recall": recall,
}
"""The measures by name."""


def compare(x: ArrayLike, y: ArrayLike, groups: int = GROUPS) -> dict[str, Estimate]:
    """All measures of generated x (N, D) against real y (M, D), with standard errors.

    Precision and recall use the first min(N, M) rows of both.

    Parameters
    ----------
    x : array (N, D)
        Features of the generated set.
    y : array (M, D)
        Features of the real set.
    groups : int
        Parts of each set, in 2..min(N, M) / 2. Default: 10.

    Returns
    -------
    dict
        An `Estimate` for each name in `MEASURES`.

    Raises
    ------
    TypeError, ValueError
        As in `frechet`, or if `groups` is out of range.
    """
    x, y = _pair(x, y)
    count = min(len(x), len(y))
    sets = {"precision": (x[:count], y[:count]), "recall": (x[:count], y[:count])}
    return {name: jackknife(measure, *sets.get(name, (x, y)), groups) for name, measure in MEASURES.items()}


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[Table, Table]:
    sets = {"x": np.asarray(x, np.float64), "y": np.asarray(y, np.float64)}
    for name, a in sets.items():
        if a.ndim != 2 or len(a) < 2 or not a.shape[1]:
            raise ValueError(f"{name} must be features (N, D) of at least two images, got shape {a.shape}")
        if not np.isfinite(a).all():
            raise ValueError(f"{name} must be finite")
    if sets["x"].shape[1] != sets["y"].shape[1]:
        raise ValueError(f"y must have x's {sets['x'].shape[1]} features, got {sets['y'].shape[1]}")
    return sets["x"], sets["y"]


def _cov(x: Table) -> Table:
    centred = x - x.mean(axis=0)
    cov: Table = centred.T @ centred / (len(x) - 1)
    return cov


def _root(name: str, cov: ArrayLike, dims: int) -> Table:
    """The symmetric square root of a covariance matrix."""
    cov = np.atleast_2d(np.asarray(cov, np.float64))
    if cov.shape != (dims, dims) or not np.allclose(cov, cov.T, rtol=1e-6, atol=1e-9 * np.abs(cov).max(initial=0)):
        raise ValueError(f"{name} must be a symmetric matrix of shape ({dims}, {dims}), got {cov.shape}")
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    if values[0] < -1e-6 * max(values[-1], 0):
        raise ValueError(f"{name} must be a covariance matrix, got the eigenvalue {values[0]:.3g}")
    root: Table = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return root


def _kernel_sum(x: Table, y: Table, distinct: bool = False) -> float:
    """The mean of the kernel over all pairs; with `distinct`, over pairs of different rows of one set."""
    dims, total = x.shape[1], 0.0
    for start in range(0, len(x), _ROWS):
        part = (x[start : start + _ROWS] @ y.T / dims + 1) ** 3
        total += float(part.sum()) - (float(part.diagonal(start).sum()) if distinct else 0.0)
    return total / (len(x) * (len(y) - distinct))


def _squares(x: Table, y: Table) -> Iterator[Table]:
    """Squared distances of x's rows to y's, some rows at a time."""
    norm = np.sum(y**2, axis=1)
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        yield np.maximum(np.sum(part**2, axis=1)[:, None] + norm - 2 * part @ y.T, 0)
