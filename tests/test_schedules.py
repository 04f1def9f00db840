"""Schedules against their formulas in 60-digit arithmetic, and the laws of their transforms."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyddpm import schedules
from tinyddpm.verify import _truth
from tinyddpm.verify._core import ulp_error
from tinyddpm.verify._truth import SCHEDULES, exactly

ULP = 16

CASES: list[tuple[str, tuple[float, ...]]] = [
    ("linear", (1e-4, 0.02)),
    ("linear", (0.9, 1e-10)),
    ("linear", (1e-300, 1.0)),
    ("quadratic", (1e-4, 0.02)),
    ("quadratic", (0.5, 1e-12)),
    ("geometric", (1e-4, 0.02)),
    ("geometric", (1e-250, 1.0)),
    ("warmup", (1e-4, 0.02, 0.1)),
    ("warmup", (0.3, 1e-3, 1.0)),
    ("jsd", ()),
    ("cosine", (0.008, 0.999)),
    ("cosine", (0.0, 1.0)),
    ("cosine", (3.7, 1.0)),
    ("sigmoid", (1e-4, 0.02, -6.0, 6.0)),
    ("sigmoid", (1e-30, 0.02, -60.0, 1.0)),
    ("sigmoid", (0.9, 1e-9, -3.0, 40.0)),
    ("sigmoid", (1e-4, 0.02, -2000.0, 2000.0)),
    ("sigmoid_alpha_bar", (-3.0, 3.0, 1.0, 0.999)),
    ("sigmoid_alpha_bar", (0.0, 3.0, 0.3, 1.0)),
    ("sigmoid_alpha_bar", (-60.0, -20.0, 0.9, 1.0)),
    ("sigmoid_alpha_bar", (-1e-6, 1e-6, 1.0, 1.0)),
]


def some_steps(T: int) -> list[int]:
    """All steps of a short chain; both ends and a spread of a long one."""
    if T <= 64:
        return list(range(1, T + 1))
    return sorted({*range(1, 9), *range(T - 7, T + 1), *np.linspace(1, T, 101).astype(int).tolist()})


@pytest.mark.parametrize("T", [1, 2, 3, 17, 1000, 100_000])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_formula(name: str, arguments: tuple[float, ...], T: int) -> None:
    beta = schedules.NAMES[name](T, *arguments)
    assert beta.shape == (T,)
    assert beta.dtype == np.float64
    if name == "warmup" and T == 1:
        assert beta[0] == arguments[0]
        return
    ts = some_steps(T)
    assert ulp_error(beta[np.array(ts) - 1], [SCHEDULES[name](t, T, *arguments) for t in ts]) <= ULP


probability = st.floats(1e-12, 0.999)


@given(st.sampled_from(["linear", "quadratic", "geometric"]), st.integers(1, 40), probability, probability)
@settings(max_examples=60)
def test_from_beta_1_to_beta_T(name: str, T: int, beta_1: float, beta_T: float) -> None:
    beta = schedules.NAMES[name](T, beta_1, beta_T)
    assert beta[0] == beta_1
    assert beta[-1] == (beta_T if T > 1 else beta_1)
    assert ulp_error(beta, [SCHEDULES[name](t, T, beta_1, beta_T) for t in range(1, T + 1)]) <= ULP


@given(st.sampled_from(["linear", "quadratic", "geometric", "warmup", "sigmoid"]), st.integers(1, 40), probability)
def test_from_a_beta_to_the_same_is_constant(name: str, T: int, beta: float) -> None:
    np.testing.assert_array_equal(schedules.NAMES[name](T, beta, beta), schedules.constant(T, beta))


@pytest.mark.parametrize("name", ["linear", "quadratic", "geometric", "warmup", "sigmoid"])
def test_beta_1_may_be_1_where_it_is_the_last(name: str) -> None:
    schedule = schedules.NAMES[name]
    assert schedule(1, 1.0, 1.0).tolist() == [1.0]
    for T, beta_1 in ((2, 1.0), (1, 1.5)):
        with pytest.raises(ValueError, match=r"^beta_1\b"):
            schedule(T, beta_1, 0.5)


@given(st.integers(1, 12), st.floats(-30, 30), st.floats(1e-3, 30), st.floats(0.1, 10))
@settings(max_examples=60)
def test_sigmoid_alpha_bar(T: int, start: float, span: float, tau: float) -> None:
    arguments = (start, start + span, tau, 0.999)
    beta = schedules.sigmoid_alpha_bar(T, *arguments)
    with exactly(400):  # the printed formula cancels
        assert ulp_error(beta, [SCHEDULES["sigmoid_alpha_bar"](t, T, *arguments) for t in range(1, T + 1)]) <= ULP


def test_published_forms() -> None:
    # The forms in which the released codes of DDPM and iDDPM, and Stable Diffusion's "scaled linear", are written.
    np.testing.assert_allclose(schedules.linear(), np.linspace(1e-4, 0.02, 1000), rtol=1e-14)
    np.testing.assert_allclose(
        schedules.quadratic(1000, 0.00085, 0.012), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, rtol=1e-14
    )
    np.testing.assert_allclose(schedules.jsd(50), 1 / np.linspace(50, 1, 50), rtol=1e-15)
    np.testing.assert_array_equal(schedules.constant(7, 0.3), np.full(7, 0.3))
    warm = np.full(100, 0.02)
    warm[:30] = np.linspace(1e-4, 0.02, 30)
    np.testing.assert_allclose(schedules.warmup(100, 1e-4, 0.02, 0.3), warm, rtol=1e-14)
    np.testing.assert_array_equal(schedules.warmup(10, 1e-4, 0.02, 0.0), np.full(10, 0.02))


def test_sigmoid_alpha_bar_falls_from_one_to_zero() -> None:
    beta = schedules.sigmoid_alpha_bar(200, -2.0, 3.0, 0.7, max_beta=1.0)
    g = 1 / (1 + np.exp(-(-2 + 5 * np.arange(201) / 200) / 0.7))
    np.testing.assert_allclose(np.cumprod(1 - beta), ((g[-1] - g) / (g[-1] - g[0]))[1:], atol=1e-14)


def test_max_beta_binds_on_the_last_cosine_step_only() -> None:
    beta = schedules.cosine()
    assert beta[-1] == 0.999
    assert beta[-2] < 0.8
    assert (schedules.cosine(max_beta=0.1) <= 0.1).all()


DEFAULTS: dict[str, tuple[float, ...]] = {
    "linear": (1e-4, 0.02),
    "quadratic": (1e-4, 0.02),
    "geometric": (1e-4, 0.02),
    "constant": (0.02,),
    "warmup": (1e-4, 0.02, 0.1),
    "jsd": (),
    "cosine": (0.008, 0.999),
    "sigmoid": (1e-4, 0.02, -6.0, 6.0),
    "sigmoid_alpha_bar": (-3.0, 3.0, 1.0, 0.999),
}


@pytest.mark.parametrize("name", schedules.NAMES)
def test_defaults_are_the_published_ones_and_accepted(name: str) -> None:
    np.testing.assert_array_equal(schedules.NAMES[name](), schedules.NAMES[name](1000, *DEFAULTS[name]))
    for T in (1, 2, 1000):
        beta = schedules.NAMES[name](T=T)
        np.testing.assert_array_equal(schedules.checked(beta), beta)


# Transforms.

falling = st.lists(st.floats(1e-6, 0.9999), min_size=1, max_size=30, unique=True).map(lambda v: sorted(v, reverse=True))


@given(falling, st.booleans())
def test_from_alpha_bar_array(alpha_bar: list[float], ends: bool) -> None:
    values = alpha_bar + [0.0] * ends
    beta = schedules.from_alpha_bar(values)
    before = [1.0, *values[:-1]]
    assert ulp_error(beta, [1 - Decimal(b) / Decimal(a) for a, b in zip(before, values, strict=True)]) <= 2
    np.testing.assert_array_equal(schedules.from_alpha_bar(np.array(values), T=len(values)), beta)


def test_from_alpha_bar_callable() -> None:
    for f in (lambda u: 1 - u, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, lambda u: 7 - 6 * u):
        alpha_bar = np.cumprod(1 - schedules.from_alpha_bar(f, 50))
        np.testing.assert_allclose(alpha_bar, [f(t / 50) / f(0.0) for t in range(1, 51)], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("T", [2, 1000, 20_000])
@pytest.mark.parametrize("name", ["linear", "quadratic", "cosine", "constant"])
def test_zero_terminal_snr_formula(name: str, T: int) -> None:
    beta = schedules.NAMES[name](T)
    with exactly(250):  # sqrt(alpha_bar_T) is subtracted, however small
        assert ulp_error(schedules.zero_terminal_snr(beta), _truth.zero_terminal_snr(beta)) <= ULP


@given(st.lists(st.floats(1e-6, 0.9), min_size=2, max_size=30))
def test_zero_terminal_snr_laws(beta: list[float]) -> None:
    new = schedules.zero_terminal_snr(beta)
    assert (new[0], new[-1]) == (beta[0], 1)
    np.testing.assert_array_equal(schedules.zero_terminal_snr(new), new)
    with exactly(250):
        assert ulp_error(new, _truth.zero_terminal_snr(beta)) <= ULP


def test_zero_terminal_snr_of_one_step_is_one() -> None:
    assert schedules.zero_terminal_snr([0.3]).tolist() == [1.0]


def test_zero_terminal_snr_where_alpha_bar_underflows() -> None:
    beta = schedules.zero_terminal_snr(np.full(10_000, 0.5))  # alpha_bar_T = 2**-10000
    h = Decimal("0.5").sqrt()
    truth = 1 - ((h**2 - h**10_000) / (h - h**10_000)) ** 2
    assert ulp_error(beta[1:2], [truth]) <= ULP
    assert beta[-1] == 1
    assert (np.abs(beta[1:9_900] - 0.5) < 1e-9).all()


# Refusals.


def test_checked_copies_and_freezes() -> None:
    beta = np.array([0.1, 0.2])
    kept = schedules.checked(beta)
    beta[0] = 0.5
    assert kept[0] == 0.1
    with pytest.raises(ValueError, match="assignment destination"):
        kept[0] = 0.3


# Arguments.


def test_betas_of_any_library() -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    values = [0.25, 0.5, 1.0]  # exact in bfloat16
    trained = torch.nn.Parameter(torch.tensor(values))
    low: list[Any] = [
        torch.tensor(values, dtype=torch.bfloat16),
        jax.numpy.array(values, "bfloat16"),
        np.array(values, "float16"),
    ]
    everything: list[Any] = [tuple(values), np.array(values, np.longdouble), trained, *low]
    for beta in everything:
        assert schedules.checked(beta).tolist() == values
        assert schedules.zero_terminal_snr(beta).tolist() == values
        assert schedules.from_alpha_bar(1 - beta if beta is trained else [0.75, 0.375, 0.0]).shape == (3,)


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_no_floating_point_error_leaves_a_schedule(name: str, arguments: tuple[float, ...]) -> None:
    for T in (1, 2, 1000):
        expected = schedules.NAMES[name](T, *arguments)
        with np.errstate(all="raise"):
            np.testing.assert_array_equal(schedules.NAMES[name](T, *arguments), expected)
            if 0 < expected[-1] < 1:
                assert schedules.zero_terminal_snr(expected)[-1] == 1


def test_what_float64_cannot_hold_is_named() -> None:
    with np.errstate(all="raise"):
        with pytest.raises(ValueError, match=r"^start must give betas in \(0, 1\), got beta_1 = "):
            schedules.sigmoid_alpha_bar(10, start=-1e308, end=1e308)
        with pytest.raises(ValueError, match=r"^beta must be in \(0, 1\), got beta_2 = 0.0; only beta_2 may be 1$"):
            schedules.checked(np.array([0.1, np.longdouble(10) ** -4000]))
        assert schedules.from_alpha_bar([0.5, 5e-324])[1] == 1
