"""Gaussians on the backend: densities, divergences, the decoder and the normal CDF that it is made of."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm import Gaussian, gaussian
from tinyddpm.verify._core import Identities, Place, difference, relative_error
from tinyddpm.verify._truth import PI, kl, log_mass, log_mass_gradient

identities = Identities()

# x, log Phi(x) and its derivative phi(x) / Phi(x), computed with mpmath at 80 digits from u = Phi(x) = erfc(-x / sqrt(2)) / 2:
# log(u) (for x > 0, log1p(-erfc(x / sqrt(2)) / 2)) and exp(-x**2 / 2) / sqrt(2 pi) / u. Every x is a float32.
_LOG_NDTR = (
    (-1e10, "-5.00000000000000000239448e+19", "10000000000.0000000001"),
    (-1000.0, "-5.00007826694812184309806e+5", "1000.00099999800000999993"),
    (-40.0, "-8.04608442013753788166607e+2", "40.0249688472072637232449"),
    (-10.0, "-5.3231285150512470578347e+1", "10.0980932339625119628436"),
    (-5.0, "-1.50649983939887257360837e+1", "5.18650396712584211561651"),
    (-2.5, "-5.08164827727869049838046", "2.82274479766390725047438"),
    (-1.0, "-1.84102164500926350577078", "1.52513527616098120908909"),
    (-0.125, "-7.97926142753024090241059e-1", "0.879127895756633991902417"),
    (0.0, "-6.93147180559945309417232e-1", "0.797884560802865355879892"),
    (0.125, "-5.98313068912424993857613e-1", "0.72004759550252538296341"),
    (1.0, "-1.72753779023449889526483e-1", "0.28759997093917836122867"),
    (2.5, "-6.22902548586000238098609e-3", "0.0176378254869167347879628"),
    (5.0, "-2.86651612963763593384596e-7", "0.00000148671994090490571244174"),
    (8.0, "-6.22096057427178605853352e-16", "5.05227108353689543094811e-15"),
    (10.0, "-7.61985302416052606597337e-24", "7.69459862670641934633909e-23"),
)
_UNSEEN = Decimal("1e-30")  # a gradient below this may underflow
_SIZE = 512  # the length of every flat array: see Place.draw


def _filled(place: Place, *columns: Any) -> list[Any]:
    """Return each column as an array of length _SIZE, repeated from its start."""
    return [place.array(np.resize(np.asarray(column, dtype=np.float64), _SIZE)) for column in columns]


@identities.add(
    "log Phi against known values", "relative", eps=64, why="a few roundings; SciPy's log_ndtr has an error of 33 units at x = 5"
)
def _log_ndtr(place: Place) -> float:
    x, value, _ = zip(*_LOG_NDTR, strict=True)
    found = place.host(place.backend.log_ndtr(*_filled(place, x)))
    return relative_error(found[: len(x)], map(Decimal, value))


@identities.add(
    "the derivative of log Phi against known values",
    "relative",
    eps=64,
    why="a few roundings, and the errors of the library's exp and erfc",
)
def _log_ndtr_slope(place: Place) -> float | None:
    x, _, slope = zip(*_LOG_NDTR, strict=True)
    found = place.gradient(place.backend.log_ndtr, *_filled(place, x))
    return None if found is None else relative_error(found[: len(x)], map(Decimal, slope))


@identities.add(
    "Phi(x) + Phi(-x) = 1", "absolute", eps=8, why="an error of log Phi is a relative error of Phi, which is at most 1"
)
def _reflection(place: Place) -> float:
    x = np.linspace(-12, 12, _SIZE)
    left, right = (place.host(place.backend.log_ndtr(place.array(s * x))) for s in (1, -1))
    return difference(np.exp(left) + np.exp(right), 1.0)


@identities.add("log_prob against exact arithmetic", "nats", eps=32, why="relative to the sum of the terms' sizes")
def _log_prob(place: Place) -> float:
    x, mean, log_var = (place.draw(_SIZE, seed=k) for k in range(3))
    found = place.host(Gaussian(place.array(mean), place.array(log_var)).log_prob(place.array(x)))
    rows = [tuple(map(Decimal, row)) for row in zip(x.tolist(), mean.tolist(), log_var.tolist(), strict=True)]
    terms = [((x - m) ** 2 / v.exp(), v, (2 * PI).ln()) for x, m, v in rows]
    return relative_error(found, (-(a + b + c) / 2 for a, b, c in terms), [a + abs(b) + c for a, b, c in terms])


# KL.


def _nearby(place: Place) -> list[Any]:
    """Return pairs of Gaussians (mean1, log_var1, mean2, log_var2), most of them nearly equal."""
    mean, log_var, change, other = (place.draw(_SIZE, seed=k) for k in range(4))
    size = np.resize([1.0, 1e-2, 1e-4, 1e-6, 0.0], _SIZE)
    return [place.rounded(x) for x in (mean, log_var, mean * (size > 0.5), log_var + size * change + (size > 0.5) * other)]


@identities.add("KL against exact arithmetic, also for nearly equal variances", "relative", eps=32, why="no term cancels another")
def _kl(place: Place) -> float:
    grid = _nearby(place)
    exact = [kl(*row) for row in zip(*(x.tolist() for x in grid), strict=True)]
    found = place.host(gaussian.kl(*map(place.array, grid)))
    kept = np.array([e != 0 for e in exact])
    return max(relative_error(found[kept], (e for e in exact if e)), difference(found[~kept], 0.0))


@identities.add("KL is positive, and 0 only for equal Gaussians", "absolute", why="the number of pairs that violate it")
def _kl_sign(place: Place) -> float:
    mean, log_var = place.draw(_SIZE, seed=1), place.draw(_SIZE, seed=2)
    next_mean, next_log_var = (np.nextafter(x, place.rounded(np.inf)) for x in (mean, log_var))

    def found(mean2: Any, log_var2: Any) -> Any:
        return place.host(gaussian.kl(*map(place.array, (mean, log_var, mean2, log_var2))))

    wrong = np.sum(found(next_mean, log_var) <= 0) + np.sum(found(mean, next_log_var) <= 0)
    return float(wrong + np.sum(found(mean, log_var) != 0))


@identities.add(
    "the full covariance's KL of diagonal covariances is the sum of KL",
    "relative",
    eps=64,
    why="a few roundings for each dimension",
)
def _kl_diagonal(place: Place) -> float:
    m1, m2, v1, v2 = (place.draw(8, 4, seed=k) for k in range(4))
    cov1, cov2 = (place.rounded(np.exp(v.astype(np.float64)))[:, :, None] * np.eye(4, dtype=place.dtype) for v in (v1, v2))
    log1, log2 = (np.log(np.diagonal(c, axis1=1, axis2=2).astype(np.float64)) for c in (cov1, cov2))
    diagonal = gaussian.kl(*(x.astype(np.float64) for x in (m1, log1, m2, log2))).sum(axis=1)
    return difference(place.host(gaussian.kl_full(*map(place.array, (m1, cov1, m2, cov2)))) / diagonal, 1.0)


@identities.add(
    "the full covariance's KL does not change under a rotation",
    "relative",
    eps=64,
    why="the rotated covariance is rounded, and its condition number is about 10",
)
def _kl_rotated(place: Place) -> float:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((4, 4))).Q
    m1, m2 = rng.standard_normal((2, 8, 4))
    v1, v2 = rng.uniform(0.3, 3.0, (2, 8, 4))
    plain, turned = (
        gaussian.kl_full(*map(place.array, (m1 @ q.T, (q * v1[:, None]) @ q.T, m2 @ q.T, (q * v2[:, None]) @ q.T)))
        for q in (np.eye(4), turn)
    )
    return difference(place.host(turned) / place.host(plain), 1.0)


# The decoder: the exact mass of a level's bin.

_WHY_DECODER = "std = exp(log_std) magnifies the rounding of log_std, and log p is proportional to 1 / std**2"


def _decoder(place: Place, grid: list[tuple[int, int, float, float]]) -> float:
    """Return the largest error over (level, levels, mean, log_std), relative to max(1, |log p|)."""
    grid = [(k, n, float(m), float(v)) for k, n, *row in grid for m, v in [place.rounded(row)]]
    exact = _masses(tuple(grid))
    error = 0.0
    for n in sorted({n for _, n, *_ in grid}):
        rows = [i for i, row in enumerate(grid) if row[1] == n]
        level, _, mean, log_std = (np.array(column) for column in zip(*(grid[i] for i in rows), strict=True))
        found = _log_p(place, 2 * level / (n - 1) - 1, mean, log_std, n)
        truth = [exact[i] for i in rows]
        error = max(error, relative_error(found, truth, [max(Decimal(1), abs(e)) for e in truth]))
    return error


def _log_p(place: Place, x: Any, mean: Any, log_std: Any, levels: int, method: Any = "exact") -> Any:
    """Return the decoder's log p on flat arrays, computed for _SIZE numbers at a time."""
    cuts = [slice(k, k + _SIZE) for k in range(0, len(x), _SIZE)]
    found = []
    for cut in cuts:
        call = _filled(place, x[cut], mean[cut], log_std[cut])
        found.append(place.host(gaussian.discretized_log_likelihood(call[0], call[1], call[2], levels, method)))
    return np.concatenate(found)[: len(x)]


@lru_cache(maxsize=8)
def _masses(grid: tuple[tuple[int, int, float, float], ...]) -> list[Decimal]:
    return [log_mass(*row) for row in grid]


@identities.add("the decoder against the exact mass, std from 1e-8 to 1e8", "nats", eps=32, why=_WHY_DECODER)
def _mass(place: Place) -> float:
    return _decoder(place, [
        (level, levels, mean, math.log(10) * power)
        for levels in (2, 17, 256, 65_536)
        for level in sorted({0, 1, levels // 3, levels - 1})
        for mean in (-1.2, -0.1, 0.0, 0.6)
        for power in (-8, -4, -2.5, -1, 0, 2, 8)
    ])  # fmt: skip


@identities.add("the decoder 10, 40 and 1000 std from the mean", "nats", eps=32, why=_WHY_DECODER)
def _tails(place: Place) -> float:
    return _decoder(place, [
        (level, 256, 2 * level / 255 - 1 + side * distance * std, math.log(std))
        for level in (0, 100, 255)
        for distance in (10, 40, 1000)
        for side in (-1, 1)
        for std in (1e-3, 1e-2, 0.3)
    ])  # fmt: skip


@identities.add("the decoder's bins sum to 1", "absolute", eps=32, why="an error of a logarithm is a relative error of the mass")
def _bins(place: Place) -> float:
    error = 0.0
    for levels in (2, 17, 256):
        mean, log_std = np.meshgrid([-1.5, -0.3, 0.0, 0.77], np.log([1e-8, 1e-3, 0.02, 1.0, 1e4, 1e8]))
        x = np.tile(np.linspace(-1, 1, levels), mean.size)
        log_p = _log_p(place, x, np.repeat(mean, levels), np.repeat(log_std, levels), levels)
        error = max(error, difference(np.exp(log_p).reshape(-1, levels).sum(axis=1), 1.0))
    return error


@identities.add(
    "the decoder's gradient, up to 1000 std from the mean",
    "relative",
    eps=1024,
    why="far below the contract's 1e-8 in float64; it is proportional to a difference of rounded numbers",
)
def _gradient(place: Place) -> float | None:
    grid = [
        (level, float(mean), float(log_std))
        for level in (0, 100, 255)
        for distance in (-1000, -40, -5, -1, 2, 10, 100)
        for std in (1e-3, 0.02, 0.5)
        for mean, log_std in [place.rounded([2 * level / 255 - 1 + distance * std, math.log(std)])]
    ]
    level, mean, log_std = (np.array(column) for column in zip(*grid, strict=True))
    x, mean, log_std = _filled(place, 2 * level / 255 - 1, mean, log_std)
    found = place.gradient(lambda m: gaussian.discretized_log_likelihood(x, m, log_std), mean)
    if found is None:
        return None
    exact = [log_mass_gradient(k, 256, m, v)[0] for k, m, v in grid]
    return relative_error(found[: len(grid)], exact, [max(abs(e), _UNSEEN) for e in exact])


@identities.add("method='ho2020' is the published tanh", "nats", eps=2048, why="its differences cancel, to a mass of 1e-3 here")
def _ho2020(place: Place) -> float:
    level, std = np.arange(90, 166), 0.2
    exact = (2 * level - 255) / 255
    found = _log_p(place, exact, 0 * exact, np.full(len(level), math.log(std)), 256, "ho2020")

    def cdf(z: Any) -> Any:
        return (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2

    return difference(found, np.log(cdf((exact + 1 / 255) / std) - cdf((exact - 1 / 255) / std)))
