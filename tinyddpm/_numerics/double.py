"""Double-double arithmetic: numbers of about 106 bits, each an unevaluated sum of two float64 arrays.

Tables of many small factors (alpha_bar over 100 000 steps, one minus it, differences of its logarithm) are computed in
this arithmetic and rounded once. The algorithms are Dekker's and Knuth's error-free transformations. Every function is
elementwise and broadcasts. The lower part of a tiny number may underflow, which loses nothing that float64 could show.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64] | Any  # an array, or a scalar that NumPy lifts


class Double(NamedTuple):
    """The number hi + lo, with ``|lo| <= ulp(hi) / 2``; `hi` is the value rounded to float64."""

    hi: Float
    lo: Float

    def at(self, index: Any) -> Double:
        """The entries at `index`."""
        return Double(self.hi[index], self.lo[index])


def double(value: Float) -> Double:
    """A float, or an array of floats, without a lower part."""
    hi = np.asarray(value, dtype=np.float64)
    return Double(hi, np.zeros_like(hi))


def two_sum(a: Float, b: Float) -> Double:
    """a + b, exact."""
    hi = a + b
    c = hi - a
    return Double(hi, (a - (hi - c)) + (b - c))


def two_prod(a: Float, b: Float) -> Double:
    """a * b, exact for factors below 2**996 and products in the normal range."""
    hi = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    return Double(hi, ((a1 * b1 - hi) + a1 * b2 + a2 * b1) + a2 * b2)


def add(a: Double, b: Double) -> Double:
    """a + b."""
    s, e = two_sum(a.hi, b.hi), two_sum(a.lo, b.lo)
    s = _normal(s.hi, s.lo + e.hi)
    return _normal(s.hi, s.lo + e.lo)


def neg(a: Double) -> Double:
    """-a."""
    return Double(-a.hi, -a.lo)


def sub(a: Double, b: Double) -> Double:
    """a - b."""
    return add(a, neg(b))


@np.errstate(all="ignore")
def minus(a: Double, b: Double) -> Double:
    """a - b for an a that may be -inf."""
    return where(np.isneginf(a.hi), Double(-np.inf, 0.0), sub(a, b))


def half(a: Double) -> Double:
    """a / 2."""
    return Double(a.hi / 2, a.lo / 2)


def mul(a: Double, b: Double) -> Double:
    """a * b."""
    p = two_prod(a.hi, b.hi)
    return _normal(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi))


def div(a: Double, b: Double) -> Double:
    """a / b for a finite a and a finite nonzero b."""
    q = a.hi / b.hi
    r = sub(a, mul(double(q), b))
    return _normal(q, (r.hi + r.lo) / b.hi)


def where(condition: Any, a: Double, b: Double) -> Double:
    """a if the condition holds, else b."""
    return Double(np.where(condition, a.hi, b.hi), np.where(condition, a.lo, b.lo))


@np.errstate(all="ignore")
def log(a: Double) -> Double:
    """The natural logarithm of a >= 0, to about 1e-31 relative also next to 1; log(0) is -inf."""
    inside = (a.hi > 0) & (a.hi < np.inf)
    m = where(inside, a, _ONE)
    mantissa, exponent = np.frexp(m.hi)
    exponent = exponent - (mantissa < _SQRT_HALF)  # a / 2**exponent lies in [sqrt(1/2), sqrt(2))
    m = Double(np.ldexp(m.hi, -exponent), np.ldexp(m.lo, -exponent))
    z = div(add(m, _MINUS_ONE), add(m, _ONE))
    zz = mul(z, z)
    series = double(np.polynomial.polynomial.polyval(zz.hi, _TAIL))  # below 1e-15, so float64 suffices
    for odd in _ODD_RECIPROCAL:
        series = add(mul(series, zz), odd)
    series = mul(series, z)
    result = add(mul(double(exponent), _LN2), Double(2 * series.hi, 2 * series.lo))
    return where(inside, result, Double(np.log(a.hi), 0.0))


@np.errstate(all="ignore")
def exp(a: Double) -> Double:
    """The exponential of a."""
    e, _, change = _exponential(a)
    return add(e, change)


@np.errstate(all="ignore")
def expm1(a: Double) -> Double:
    """exp(a) - 1, to about 1e-30 relative also next to 0."""
    _, e_minus_1, change = _exponential(a)
    return add(e_minus_1, change)


def one_minus_exp(a: Double) -> Double:
    """1 - exp(a)."""
    return neg(expm1(a))


@np.errstate(all="ignore")
def cumsum(a: Double) -> Double:
    """Sums of a's first 1, 2, ... entries along axis 0, in log2(n) passes; from an entry of -inf on they are -inf."""
    empty = np.logical_or.accumulate(a.hi == -np.inf, axis=0)
    total = where(empty, double(0.0), a)
    step = 1
    while step < len(total.hi):
        tail = add(total.at(slice(step, None)), total.at(slice(None, -step)))
        total = Double(*(np.concatenate([x[:step], y]) for x, y in zip(total, tail, strict=True)))
        step *= 2
    return where(empty, double(-np.inf), total)


def _exponential(a: Double) -> tuple[Double, Double, Double]:
    """Return e = exp(a) in float64, e - 1, and the correction to both from one Newton step on the logarithm."""
    near = np.abs(a.hi) < 0.5
    e, small = double(np.exp(a.hi)), double(np.expm1(np.where(near, a.hi, 0.0)))
    e_minus_1 = where(near, small, two_sum(e.hi, -1.0))
    e = where(near, two_sum(1.0, small.hi), e)
    valid = (e.hi > 1e-310) & (e.hi < np.inf)  # below, a.lo is less than the last place
    r = sub(where(valid, a, double(0.0)), log(where(valid, e, _ONE)))
    return e, e_minus_1, mul(e, r)


def _normal(a: Float, b: Float) -> Double:
    """a + b, exact if |a| >= |b|."""
    hi = a + b
    return Double(hi, b - (hi - a))


def _split(a: Float) -> tuple[Float, Float]:
    """a as the sum of two numbers of 26 bits."""
    c = 134217729.0 * a
    high = c - (c - a)
    return high, a - high


_SQRT_HALF = 0.5**0.5
_ONE, _MINUS_ONE = double(1.0), double(-1.0)
_LN2 = Double(0.6931471805599453, 2.3190468138462996e-17)
_ODD_RECIPROCAL = tuple(div(_ONE, double(k)) for k in range(19, 0, -2))  # coefficients of atanh(z) / z in z*z, and the rest:
_TAIL = 1 / np.arange(21.0, 45.0, 2)
