"""A Gaussian's mass in one of `levels` equal bins of [-1, 1]: exact, and as [Ho]'s code approximates it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.namespace import Array, host_values


class Bin(NamedTuple):
    """The position of x's bin relative to the mean, reflected so that its middle is on the left.

    The first bin's lower and the last bin's upper end is open; reflection makes both of them lower ends. The ends are in
    standard deviations once multiplied by `unit`.
    """

    low: Array
    middle: Array
    high: Array
    unit: Array
    half_width: Array  # in standard deviations
    log_half_width: Array
    open: Array  # whether the bin is the first or the last


def check_range(name: str, x: Array, levels: int, remedy: str = "scale the data") -> None:
    """Raise ValueError if the host can read x and it is more than half a bin outside [-1, 1]."""
    host = host_values(x)
    if host is not None and not (inside := np.abs(host) <= 1 + 1 / (levels - 1)).all():
        raise ValueError(f"{name} must be in [-1, 1], got {host[~inside].flat[0]}; {remedy}")


def bin_of(x: Array, mean: Array, log_std: Array, levels: int, xp: Any) -> Bin:
    """The bin of the level nearest to x; x, mean and log_std have one dtype."""
    n = levels - 1
    level = xp.clip(xp.round((x + 1) * (n / 2)), 0, n)
    # Lengths count in 2**20 half-widths in float32: then no gradient leaves its range on the way, 1e15 std out and with any std.
    scale = 1.0 if xp.finfo(x.dtype).bits == 64 else 2.0**-20
    ahead, pieces = 2 * level - n, _products(mean, n, xp)
    position = ahead - sum(pieces[1:], pieces[0])
    sign = xp.where((level > 0) & ((level == n) | (position > 0)), -xp.ones_like(x), xp.ones_like(x))

    def end(side: int) -> Array:
        """(2 level - n + side) / n - mean in units of 1 / n: next to an edge a narrow std would magnify a rounding."""
        total = sign * ahead + side
        for piece in pieces:
            total = total - sign * piece
        return total * scale

    return Bin(
        low=end(-1), middle=end(0), high=end(1), unit=xp.exp(-log_std) / (scale * n), half_width=xp.exp(-log_std) / n,
        log_half_width=-log_std - math.log(n), open=(level == 0) | (level == n),
    )  # fmt: skip


def _products(mean: Array, n: int, xp: Any) -> list[Array]:
    """Parts of mean * n: all but the last are exact, and so is a sum of them with integers where that is near 0."""
    digits = round(-math.log2(xp.finfo(mean.dtype).eps)) + 1
    width, rest = digits - 2 - n.bit_length(), mean
    pieces: list[Array] = []
    for place in range(width, max(width + 1, 31), width + 2):
        part = xp.round(xp.clip(rest, -4.0, 4.0) * 2.0**place) / 2.0**place
        pieces, rest = [*pieces, part * n], rest - part
    return [*pieces, rest * n]


def _exact(b: Bin, xp: Any) -> Array:
    """log(Phi(high) - Phi(low)), to rounding at any width and distance."""
    middle, zero, one = b.middle * b.unit, xp.zeros_like(b.middle), xp.ones_like(b.middle)
    tilt = middle * b.half_width
    # Wide bins: a difference in the left tail, where log Phi keeps all digits. In a branch that is not taken the argument is
    # replaced by a harmless one, so that no gradient is 0 * inf.
    narrow = ~b.open & (b.half_width <= _NARROW) & (xp.abs(tilt) <= _NARROW)
    log_ndtr = backends.of(middle).log_ndtr
    above, below = (log_ndtr(xp.where(narrow, -one, end * b.unit)) for end in (b.high, b.low))
    single = b.open | narrow | (above == -math.inf)
    # Far out the difference of the logarithms is rounding. It is at most 2 tilt, as the slope of log Phi(z) is at least -z.
    ratio = xp.where(below - above < 2 * tilt, below - above, 2 * tilt)
    wide = above + xp.where(b.open, zero, xp.log1p(-xp.exp(xp.where(single, -one, ratio))))
    # Narrow bins: the density at the middle times the integral of exp(-tilt y - (half_width y)**2 / 2) over -1 < y < 1, by
    # Gauss-Legendre quadrature; every term is positive.
    tilt, width = xp.where(narrow, tilt, zero), xp.where(narrow, b.half_width, zero)
    integral = _CENTRE + sum(w * xp.cosh(tilt * y) * xp.exp(-0.5 * (width * y) ** 2) for y, w in _PAIRS)
    density = -0.5 * xp.where(narrow, middle, zero) ** 2 - 0.5 * math.log(2 * math.pi) + b.log_half_width
    return xp.where(narrow, density + xp.log(integral), wide)


def _ho2020(b: Bin, xp: Any) -> Array:
    """log(Phi(high) - Phi(low)) with a tanh for Phi and a floor of 1e-12, as in [Ho]'s released code."""
    high, low = (_tanh_cdf(end * b.unit, xp) for end in (b.high, b.low))
    mass = xp.where(b.open, high, high - low)
    return xp.log(xp.where(mass > _FLOOR, mass, xp.full_like(mass, _FLOOR)))


def _tanh_cdf(z: Array, xp: Any) -> Array:
    """The normal CDF, approximately."""
    return 0.5 * (1 + xp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


METHODS = {"exact": _exact, "ho2020": _ho2020}
_FLOOR = 1e-12
_NARROW = 0.5
# Gauss and Legendre's rule of 7 points: its weight at 0, then the positive nodes with twice their weights.
_CENTRE = 0.41795918367346938776
_PAIRS = (
    (0.40584515137739716691, 2 * 0.38183005050511894495),
    (0.74153118559939443986, 2 * 0.27970539148927666790),
    (0.94910791234275852453, 2 * 0.12948496616886969327),
)
