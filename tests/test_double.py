"""Double-double arithmetic against decimal arithmetic of 60 digits and more, and against fractions."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyddpm import Diffusion
from tinyddpm._numerics import double as dd
from tinyddpm._numerics.double import Double, double
from tinyddpm.verify._truth import exactly

# The format holds 106 bits, 1.2e-32; a few operations in a row lose a few of the last.
FEW_ROUNDINGS = 2e-31


def exact(a: Double) -> Decimal:
    return Decimal(float(a.hi)) + Decimal(float(a.lo))


def parts(a: Double) -> Fraction:
    return Fraction(float(a.hi)) + Fraction(float(a.lo))


def relative(a: Double, b: Decimal) -> float:
    return float(abs(exact(a) - b) / abs(b)) if b else float(abs(exact(a)))


def numbers(low: float, high: float) -> st.SearchStrategy[Double]:
    """Doubles with a part below float64's precision."""
    return st.builds(lambda hi, k: dd.two_sum(hi, hi * k * 1e-19), st.floats(low, high), st.integers(-99, 99))


positive = numbers(1e-30, 1e30)


@given(positive, positive)
def test_arithmetic(a: Double, b: Double) -> None:
    x, y = exact(a), exact(b)
    assert relative(dd.add(a, b), x + y) < FEW_ROUNDINGS
    assert relative(dd.mul(a, b), x * y) < FEW_ROUNDINGS
    assert relative(dd.div(a, b), x / y) < FEW_ROUNDINGS


@given(positive, st.integers(-99, 99), st.integers(-99, 99))
def test_a_difference_keeps_its_relative_precision(a: Double, k: int, j: int) -> None:
    b = dd.add(a, double(a.hi * k * 2.0**-52))
    b = dd.two_sum(b.hi, b.lo + float(np.spacing(b.lo)) * j)
    difference, found = parts(a) - parts(b), parts(dd.sub(a, b))  # which may cancel more digits than the decimals have
    assert abs(found - difference) <= FEW_ROUNDINGS * abs(difference)


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30))
def test_error_free_sum(a: float, b: float) -> None:
    total = dd.two_sum(a, b)
    assert parts(total) == Fraction(a) + Fraction(b)


@given(st.floats(1e-100, 1e100), st.floats(-1e100, -1e-100))
def test_error_free_product(a: float, b: float) -> None:
    product = dd.two_prod(a, b)
    assert parts(product) == Fraction(a) * Fraction(b)


@given(st.one_of(positive, st.floats(1e-300, 1e300).map(double), numbers(0.5, 2.0)))
def test_log(a: Double) -> None:
    assert relative(dd.log(a), exact(a).ln()) < FEW_ROUNDINGS


@given(st.floats(-40, -0.01))
def test_log_next_to_one(exponent: float) -> None:
    beta = 10**exponent
    with exactly(100):
        assert relative(dd.log(dd.two_sum(1.0, -beta)), (1 - Decimal(beta)).ln()) < FEW_ROUNDINGS


@given(st.floats(-200, 2.7), st.floats(0, 1))
def test_expm1_and_exp(exponent: float, part: float) -> None:
    a = Double(-(10**exponent), -part * 10**exponent * 1e-17)
    x = exact(a)
    with exactly(280):
        assert relative(dd.expm1(a), x.exp() - 1) < FEW_ROUNDINGS
        # An absolute error of the argument is a relative one of the result.
        assert relative(dd.exp(a), x.exp()) < FEW_ROUNDINGS * (1 + abs(float(x)))


@pytest.mark.parametrize(
    ("a", "exp", "expm1"), [(0.0, 1, 0), (-1000.0, 0, -1), (-math.inf, 0, -1), (-745.0, 5e-324, -1), (-744.0, 1e-323, -1)]
)
def test_ends_of_the_range(a: float, exp: float, expm1: float) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert dd.exp(double(a)).hi == exp
        assert dd.expm1(double(a)).hi == expm1
        assert dd.log(double(0.0)).hi == -math.inf


@given(st.lists(st.floats(-1, -1e-9), min_size=1, max_size=70), st.booleans())
def test_cumsum(values: list[float], ends: bool) -> None:
    total = dd.cumsum(double(np.array(values + [-math.inf] * ends)))
    sums = accumulate(map(Decimal, values))
    assert all(relative(Double(h, lo), s) < FEW_ROUNDINGS for h, lo, s in zip(total.hi, total.lo, sums, strict=False))
    assert not ends or (total.hi[-1] == -math.inf and total.lo[-1] == 0)


def test_a_table_of_one_hundred_thousand_factors_is_rounded_once() -> None:
    beta = np.linspace(1e-4, 0.005, 100_000)
    log = dd.cumsum(dd.log(dd.two_sum(1.0, -beta)))
    kept, lost = dd.exp(log).hi, dd.neg(dd.expm1(log)).hi
    product, worst, plain = Decimal(1), 0.0, 0.0
    naive = np.cumprod(1 - beta)
    for t, b in enumerate(beta):
        product *= 1 - Decimal(float(b))
        if t % 499 == 0:
            worst = max(worst, relative(double(kept[t]), product), relative(double(lost[t]), 1 - product))
            plain = max(plain, relative(double(naive[t]), product))
    assert worst < 2**-53 * (1 + 1e-9) < 20 * 2**-53 < plain  # half a unit; the plain product loses more than ten


@pytest.mark.parametrize("beta", [[1e-300, 2.3e-308, 1.0], np.full(2000, 0.5), np.linspace(1e-4, 0.02, 100_000)], ids=len)
def test_no_floating_point_error_leaves_a_table(beta: Any) -> None:
    with np.errstate(all="raise"):
        d = Diffusion(beta)
        tables = [d.alpha, d.alpha_bar, d.one_minus_alpha_bar, d.beta_tilde, d.log_snr, *d.weights, *d.posterior_weights(d.T, 0)]
    assert not any(np.isnan(table).any() for table in [table[1:] if np.ndim(table) else table for table in tables])
