"""Gaussians: KL, densities, and the discretized decoder, against 60-digit arithmetic and their laws."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from conftest import Library
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import kl_full

from tinyddpm import Gaussian, backends, gaussian
from tinyddpm.verify import _truth

# float64 results go through a handful of roundings of 1.1e-16 each.
ROUNDING = 2e-15


def relative(value: Any, truth: Any) -> float:
    """The relative error; 0 where both are below the normal range, which XLA flushes to zero."""
    tiny = Decimal(2) ** -1022
    if abs(truth) < tiny:
        return 0.0 if abs(value) < tiny else math.inf
    return float(abs(Decimal(float(value)) - truth) / abs(truth))


# KL.

means = st.floats(-1e3, 1e3)
log_vars = st.floats(-60, 60).map(lambda v: v if abs(v) > 1e-20 else 0.0)  # else 60 digits do not hold exp(v) - 1 - v
differences = st.builds(lambda sign, power: sign * 10**power, st.sampled_from([-1, 1]), st.floats(-16, 1))
nearby = st.builds(lambda m, v, d: (m, v, m, v + d), means, log_vars, differences)  # where the printed formula cancels
rows = st.lists(st.tuples(means, log_vars, means, log_vars) | nearby, min_size=1, max_size=6)


@given(rows)
def test_kl_matches_its_formula(rows: list[tuple[float, ...]]) -> None:
    values = gaussian.kl(*(np.array(column) for column in zip(*rows, strict=True)))
    for value, row in zip(values, rows, strict=True):
        # exp magnifies the rounding of log_var1 - log_var2 and of log_var2 by their size.
        assert relative(value, _truth.kl(*row)) < 200 * ROUNDING
        assert row[0] != row[2] or (value > 0) == (row[1] != row[3])


def test_kl_of_points(library: Library) -> None:
    mean, other = library.array([0.0, 1.0]), library.array([0.0, 2.0])

    def values(v1: Any, v2: Any) -> list[float]:
        return library.host(gaussian.kl(mean, v1, other, v2)).tolist()  # type: ignore[no-any-return]

    assert values(-math.inf, 0.0) == values(0.0, -math.inf) == [math.inf, math.inf]
    assert values(-math.inf, -math.inf) == [0, math.inf]
    assert values(library.array([-math.inf, 0.0]), library.array([-math.inf, 0.0])) == [0, 0.5]


def test_kl_gradient_is_finite_and_right(differentiable: Library) -> None:
    m1, m2 = np.array([0.5, 0.0, 3.0, 0.0]), np.array([0.5, 1e-9, -1.0, 0.0])
    v1, v2 = np.array([0.3, -1.0, 20.0, -40.0]), np.array([0.3, -1.0 + 1e-9, -20.0, 3.0])
    gradient = gradients(differentiable, lambda *a: gaussian.kl(*a), m1, v1, m2, v2)
    gap = (m1 - m2) * np.exp(-v2)
    ratio = np.expm1(v1 - v2)
    expected = (gap, ratio / 2, -gap, -(ratio + (m1 - m2) * gap) / 2)
    for g, e in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12)


# KL of full covariances.


def covariances(rng: np.random.Generator, *shape: int) -> np.ndarray:
    a = rng.normal(size=(*shape, shape[-1]))
    return a @ np.swapaxes(a, -1, -2) + 0.1 * np.eye(shape[-1])


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=30)
def test_kl_full_matches_its_formula(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    (m1, m2), (c1, c2) = rng.normal(size=(2, 3, d)), covariances(rng, 2, 3, d)
    for value, row in zip(gaussian.kl_full(m1, c1, m2, c2), zip(m1, c1, m2, c2, strict=True), strict=True):
        assert relative(value, kl_full(*row)) < 1e-12  # condition about 100
    np.testing.assert_array_equal(gaussian.kl_full(m1, c1, m1, c1), 0)


def test_kl_full_of_nearly_equal_covariances_does_not_cancel() -> None:
    c = np.array([[2.0, 0.5], [0.5, 1.0]])
    other = c + np.array([[1e-9, 1e-9], [1e-9, -2e-9]])
    truth = kl_full(np.zeros(2), c, np.zeros(2), other)
    # The factor of either covariance is rounded at 1e-16 of an entry, against a difference of 1e-9; the result is 1e-19.
    assert relative(gaussian.kl_full(np.zeros(2), c, np.zeros(2), other), truth) < 1e-6
    squares = [np.array([[r**2]]) for r in (3.0, 3.0 + 2.0**-19)]  # whose roots are exact
    truth = kl_full(np.zeros(1), squares[1], np.zeros(1), squares[0])
    assert relative(gaussian.kl_full(np.zeros(1), squares[1], np.zeros(1), squares[0]), truth) < 1e-14


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_kl_full_takes_what_rounding_leaves_unsymmetric(scale: float) -> None:
    mean, unit = np.zeros(2), np.eye(2)
    for skew, fine in ((1e-9, True), (1e-7, False)):  # the square root of the precision is 1.5e-8
        cov = scale * np.array([[1.0, skew], [0.0, 1.0]])
        if fine:
            assert gaussian.kl_full(mean, cov, mean, unit) == pytest.approx(np.log(1 / scale) - 1 + scale, rel=1e-6)
        else:
            with pytest.raises(ValueError, match=r"^cov1 must be symmetric"):
                gaussian.kl_full(mean, cov, mean, unit)


def test_kl_full_of_no_batch() -> None:
    assert gaussian.kl_full(np.zeros((0, 2)), np.zeros((0, 2, 2)), np.zeros(2), np.eye(2)).shape == (0,)


@pytest.mark.parametrize("name", ["mean1", "cov1", "mean2", "cov2"])
def test_kl_full_names_what_is_no_array_of_floats_and_keeps_the_digits_of_what_is(name: str) -> None:
    mean, cov = np.ones(1, "float32"), np.eye(1, dtype="float32")
    arguments = {"mean1": mean, "cov1": cov, "mean2": mean, "cov2": cov}
    with pytest.raises(TypeError, match=rf"^{name}\b"):
        gaussian.kl_full(**{**arguments, name: np.ones((1, 1), int)})
    near = arguments[name].astype(float) + 1e-9  # float32 arithmetic would not see it
    truth = 1e-18 / 2 if "mean" in name else 1e-18 / 4
    assert gaussian.kl_full(**{**arguments, name: near}) == pytest.approx(truth, rel=1e-6, abs=0)


# The discretized decoder.


def levels_of(levels: int) -> np.ndarray:
    return np.linspace(-1, 1, levels)


@given(st.floats(-2, 2), st.floats(math.log(1e-8), math.log(1e8)), st.sampled_from([2, 3, 17, 256, 4096]))
@example(0.1, -18.4, 65536)
@example(-0.3, -9.0, 65536)
def test_bins_sum_to_one(mean: float, log_std: float, levels: int) -> None:
    x = levels_of(levels)
    log_mass = gaussian.discretized_log_likelihood(x, np.full_like(x, mean), log_std, levels)
    assert (log_mass <= 0).all()
    assert abs(math.fsum(np.exp(log_mass)) - 1) < (1e-13 if levels < 65536 else 1e-12)


@st.composite
def placements(draw: st.DrawFn) -> tuple[int, int, float, float]:
    """(level, levels, mean, log_std): near the bin, next to its edges, within data range, thousands of std away."""
    levels = draw(st.sampled_from([2, 3, 16, 17, 256, 1000, 65536]))
    level = draw(st.one_of(st.sampled_from([0, levels - 1]), st.integers(0, levels - 1)))
    log_std = draw(st.one_of(st.floats(math.log(1e-8), math.log(1e8)), st.floats(-9, 1)))
    centre, unit = 2 * level / (levels - 1) - 1, draw(st.floats(-1, 1))
    distance = draw(st.sampled_from([3 * math.exp(log_std), 5000 * math.exp(log_std), 1.0, 1e-5]))
    edge = draw(st.sampled_from([0.0, 0.0, 1.0, -1.0])) / (levels - 1)
    return level, levels, centre + edge + unit * distance, log_std


@given(st.lists(placements(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_decoder_is_exact(cases: list[tuple[int, int, float, float]]) -> None:
    for level, levels, mean, log_std in cases:
        truth = _truth.log_mass(level, levels, mean, log_std)
        value = gaussian.discretized_log_likelihood(
            levels_of(levels)[level : level + 1], np.array([mean]), np.array([log_std]), levels
        )[0]
        assert abs(float(Decimal(float(value)) - truth)) <= 1e-14 * max(1.0, abs(float(truth)))


def gradients(library: Library, f: Any, *arguments: np.ndarray) -> list[np.ndarray]:
    """The gradient of sum(f) with respect to each argument."""
    if library.name == "torch":
        inputs = [library.array(a).requires_grad_() for a in arguments]
        f(*inputs).sum().backward()
        return [library.host(a.grad) for a in inputs]
    import jax

    found = jax.jit(jax.grad(lambda *a: f(*a).sum(), argnums=tuple(range(len(arguments)))))(*map(library.array, arguments))
    return [library.host(g) for g in found]


def test_decoder_gradients_are_exact(differentiable: Library) -> None:
    rng = np.random.default_rng(3)
    for levels in (2, 17, 256, 65536):
        level = np.concatenate([[0, levels - 1], rng.integers(levels, size=58)])
        log_std = rng.uniform(math.log(1e-8), math.log(1e8), size=60)
        log_std[::3] = rng.uniform(-6, 0, size=20)
        std = np.exp(log_std)
        mean = level * 2 / (levels - 1) - 1 + rng.choice([1, 100, 5000], size=60) * std * rng.normal(size=60)
        x = differentiable.array(levels_of(levels)[level])
        found = gradients(
            differentiable, lambda m, s, x=x, n=levels: gaussian.discretized_log_likelihood(x, m, s, n), mean, log_std
        )
        for i in range(60):
            truth = _truth.log_mass_gradient(int(level[i]), levels, mean[i], log_std[i])
            # Where the two ends of a bin nearly cancel, near its middle, a gradient keeps fewer digits: hence 1e-10.
            assert max(relative(g[i], t) for g, t in zip(found, truth, strict=True)) < 1e-10


@pytest.mark.parametrize(
    ("x", "mean", "log_std", "levels", "truth"),
    [
        (1 / 255, 1e5, 0.0, 256, -4999999228.118),  # the bin's ends are one number of standard deviations in float32
        (0.9932249784469604, 0.993240237236023, -17.03245735168457, 65_536, -0.422016),  # next to an edge, 380 std wide
        (1.0, 1e35, 0.0, 65_536, 0.0),  # mean * 65535 is out of range
    ],
)
def test_decoder_in_float32_at_its_edges(
    native: Library, x: float, mean: float, log_std: float, levels: int, truth: float
) -> None:
    values, means, log_stds = (native.array([a], "float32") for a in (x, mean, log_std))
    found = gaussian.discretized_log_likelihood(values, means, log_stds, levels)
    assert float(found[0]) == pytest.approx(truth, rel=3e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("differentiable", ["torch", pytest.param("jax", marks=pytest.mark.slow)], indirect=True)
def test_decoder_is_finite_wherever_the_exact_value_is(differentiable: Library, dtype: str) -> None:
    """std 1e-8..1e8, up to 1e15 of them away; `benchmarks/accuracy.py` has 20 000 such points."""
    rng, limit, eps = np.random.default_rng(11), float(np.finfo(dtype).max), float(np.finfo(dtype).eps)
    for levels in (2, 256, 65_536):
        level = rng.choice([0, 1, levels // 3, levels - 1], 60)
        log_std = (rng.uniform(-8, 8, 60) * math.log(10)).astype(dtype)
        away = rng.choice([-1, 1], 60) * 10 ** rng.uniform(-3, 15, 60) * np.exp(log_std.astype(float))
        mean = (2 * level / (levels - 1) - 1 + rng.choice([0, 1], 60) / (levels - 1) + away).astype(dtype)
        x = differentiable.array(levels_of(levels)[level], dtype)
        f: Any = lambda m, s, x=x, n=levels: gaussian.discretized_log_likelihood(x, m, s, n)  # noqa: E731
        found = [differentiable.host(f(differentiable.array(mean), differentiable.array(log_std)))]
        found += gradients(differentiable, f, mean, log_std)
        for i in range(60):
            row = int(level[i]), levels, float(mean[i]), float(log_std[i])
            exact = _truth.log_mass(*row), *_truth.log_mass_gradient(*row)
            assert all(np.isfinite(v[i]) for v, e in zip(found, exact, strict=True) if abs(e) < limit)
            if abs(exact[0]) < limit:  # 64 units: next to mass 1, log p magnifies the rounding of a distance by its square
                error = abs(Decimal(float(found[0][i])) - exact[0])
                assert error <= max(Decimal("1e-20"), abs(exact[0]) * Decimal(64 * eps))


def test_decoder_gradients_are_finite_everywhere(differentiable: Library) -> None:
    mean, log_std = (a.ravel() for a in np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-18.4, 18.4, 47)))
    for x in (-1.0, 0.0, 1.0):
        xs = differentiable.array(np.full_like(mean, x))
        found = gradients(differentiable, lambda m, s, x=xs: gaussian.discretized_log_likelihood(x, m, s, 255), mean, log_std)
        assert all(np.isfinite(g).all() for g in found)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_decoder_in_lower_precision(native: Library, dtype: str) -> None:
    rng = np.random.default_rng(4)
    x = levels_of(256)[rng.integers(256, size=500)]
    log_std = rng.uniform(-4, 2, size=500).astype(dtype)
    mean = (x + rng.normal(size=500) * np.exp(log_std.astype(float))).astype(dtype)
    truth = gaussian.discretized_log_likelihood(x, mean.astype(float), log_std.astype(float))
    value = gaussian.discretized_log_likelihood(*(native.array(a, dtype) for a in (x, mean, log_std)))
    assert value.dtype == native.array(x, dtype).dtype
    eps = float(np.finfo(dtype).eps)
    # float32 arithmetic throughout: a few of its roundings, or one rounding of the result to float16.
    np.testing.assert_allclose(native.host(value).astype(float), truth, rtol=2 * eps, atol=8e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_the_float32_result_rounded(native: Library, dtype: str) -> None:
    if native.name == "numpy" and dtype == "bfloat16":
        pytest.skip("NumPy has no bfloat16")
    rng = np.random.default_rng(9)
    m1, v1, m2, v2, x = (native.array(a, dtype) for a in rng.normal(size=(5, 4, 3)))
    c1, c2 = (native.array(c, dtype) for c in np.repeat([[np.eye(3), 2 * np.eye(3)]], 4, 0).swapaxes(0, 1))

    def computed(cast: Any) -> list[Any]:
        a, b, u, v, y, c, e = map(cast, (m1, v1, m2, v2, x, c1, c2))
        return [Gaussian(a, b).log_prob(y), gaussian.kl(a, b, u, v), gaussian.kl_full(a, c, u, e)]

    eps = 2.0**-10 if dtype == "float16" else 2.0**-7
    single = computed(lambda a: native.array(native.host(a).astype("float32")))
    for low, value in zip(computed(lambda a: a), single, strict=True):
        assert low.dtype == m1.dtype
        assert np.isfinite(native.host(value)).all()
        np.testing.assert_allclose(native.host(low).astype("float32"), native.host(value), rtol=eps)

    number = gaussian.kl(native.array([1000.0], dtype), 0.0, 1000.3, 0.0)  # which the dtype itself can't tell from 1000
    assert float(number[0]) == pytest.approx(0.3**2 / 2, rel=1e-2)


def test_a_value_counts_as_its_nearest_level() -> None:
    rng = np.random.default_rng(5)
    level = rng.integers(17, size=200)
    x = level / 8 - 1 + rng.uniform(-0.062, 0.062, size=200)
    mean = rng.normal(size=200)
    np.testing.assert_array_equal(
        gaussian.discretized_log_likelihood(x, mean, -1.0, 17), gaussian.discretized_log_likelihood(level / 8 - 1, mean, -1.0, 17)
    )


def test_half_a_bin_outside_is_the_last_level() -> None:
    value = [gaussian.discretized_log_likelihood(np.array([x]), 0.9, -3.0)[0] for x in (1.0, 1 + 1 / 255)]
    assert value[0] == value[1]


def test_decoder_of_a_point() -> None:
    x = levels_of(3)  # the bins meet at -0.5 and 0.5
    point = Gaussian(np.array([-0.7, 0.5, 0.6]), np.array([-math.inf, -math.inf, 0.0]))
    np.testing.assert_array_equal(point.discretized_log_prob(x, 3)[:2], [0, -math.log(2)])
    np.testing.assert_array_equal(Gaussian(np.full(3, 0.2), -math.inf).discretized_log_prob(x, 3), [-np.inf, 0, -np.inf])


def published(x: np.ndarray, mean: np.ndarray, log_std: float) -> np.ndarray:
    """Ho et al.'s released decoder for 8-bit images, in its own words."""

    def cdf(z: np.ndarray) -> np.ndarray:
        return np.asarray(0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * np.power(z, 3)))))

    centred, inverse = x - mean, np.exp(-log_std)
    plus, minus = cdf(inverse * (centred + 1.0 / 255.0)), cdf(inverse * (centred - 1.0 / 255.0))
    log_plus, log_rest = np.log(np.maximum(plus, 1e-12)), np.log(np.maximum(1.0 - minus, 1e-12))
    inner = np.log(np.maximum(plus - minus, 1e-12))
    return np.where(x < -0.999, log_plus, np.where(x > 0.999, log_rest, inner))


def test_ho2020_is_the_published_approximation(library: Library) -> None:
    rng = np.random.default_rng(6)
    x = levels_of(256)[np.concatenate([[0, 255], rng.integers(256, size=300)])]
    mean = x + rng.normal(size=302) * 0.2
    for log_std in (-4.0, -2.0, 0.0):
        value = gaussian.discretized_log_likelihood(library.array(x), library.array(mean), log_std, method="ho2020")
        # A difference of two numbers of size 1 loses up to 1e-16 / mass, above the floor of 1e-12.
        truth = published(x, mean, log_std)
        error = np.abs(library.host(value) - truth)
        assert (error <= 1e-15 * np.exp(-truth) + 1e-13).all()


def test_arguments_broadcast_and_may_be_numbers(library: Library) -> None:
    x = library.array(np.linspace(-1, 1, 8))
    log_mass = library.host(gaussian.discretized_log_likelihood(x, 0.3, -1.0, levels=8))
    each = gaussian.discretized_log_likelihood(np.linspace(-1, 1, 8), np.full(8, 0.3), np.full(8, -1.0), levels=8)
    np.testing.assert_allclose(log_mass, each, rtol=1e-13)
    number = gaussian.kl(0.5, 0.0, library.array(np.zeros(2), "float32"), 0.0)
    assert library.host(number).tolist() == [0.125, 0.125]
    assert number.dtype == library.array(0.0, "float32").dtype
    m1, v2, m2 = np.array([[0.0], [1.0]]), np.array([[0.5], [-0.3]]), np.array([0.0, 1.0])
    many = library.host(gaussian.kl(library.array(m1), library.array(np.array(0.25)), library.array(m2), library.array(v2)))
    exact = [[float(_truth.kl(m1[i, 0], 0.25, m2[j], v2[i, 0])) for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(many, exact, rtol=1e-13)
    rng = np.random.default_rng(1)
    (a, b), (c, e) = rng.normal(size=(2, 4, 3)), covariances(rng, 2, 4, 3)
    full = library.host(gaussian.kl_full(library.array(a), library.array(c), library.array(b[0]), library.array(e[0])))
    np.testing.assert_allclose(full, [float(kl_full(a[k], c[k], b[0], e[0])) for k in range(4)], rtol=1e-12)


# The class.


def test_the_density_of_a_point(library: Library) -> None:
    point = Gaussian(library.array(np.zeros(2)), -math.inf)
    assert library.host(point.log_prob(library.array([0.0, 1.0]))).tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("log_var", [-1.0, 0, np.float32(0.5), -math.inf, np.float32(-np.inf)])
def test_a_float_log_variance_stays_one(library: Library, log_var: float) -> None:
    g = Gaussian(library.array(np.ones((2, 3)), "float32"), log_var)
    assert type(g.log_var) is float
    for value, expected in ((g.var, math.exp(log_var)), (g.std, math.exp(log_var / 2))):
        assert value.shape == ()
        assert value.dtype == g.mean.dtype
        assert float(value) == pytest.approx(expected, rel=1e-7)
    drawn = g.sample(library.array(np.full((2, 3), 2.0), "float32"))
    assert drawn.dtype == g.mean.dtype
    np.testing.assert_allclose(library.host(drawn), 1 + 2 * math.exp(log_var / 2), rtol=1e-6)


def test_an_array_log_variance_broadcasts(library: Library) -> None:
    log_var = np.array([[0.0], [-2.0]])
    g = Gaussian(library.array(np.zeros((2, 3))), library.array(log_var))
    np.testing.assert_allclose(library.host(g.var), np.exp(log_var), rtol=1e-15)
    assert Gaussian(g.mean, library.array(np.zeros(3))).std.shape == (3,)
    drawn = library.host(g.sample(library.array(np.ones((2, 3)))))
    np.testing.assert_allclose(drawn, np.exp(log_var / 2) + np.zeros((2, 3)), rtol=1e-15)


def test_a_mean_may_be_one_number(library: Library) -> None:
    g = Gaussian(library.array(0.5), -0.2)
    values = [g.var, g.std, g.sample(library.array(2.0)), g.log_prob(library.array(0.5))]
    expected = [math.exp(-0.2), math.exp(-0.1), 0.5 + 2 * math.exp(-0.1), 0.1 - 0.5 * math.log(2 * math.pi)]
    assert [float(v) for v in values] == pytest.approx(expected, rel=1e-14)
    array = Gaussian(library.array(0.5), library.array(-0.2))
    assert float(array.sample(library.array(2.0))) == pytest.approx(expected[2], rel=1e-14)


def test_samples_have_the_means_shape_and_dtype(library: Library) -> None:
    g = Gaussian(library.array(np.zeros(2), "float32"), 0.0)
    assert g.sample(library.array(np.ones(2))).dtype == g.mean.dtype
    assert Gaussian(g.mean, library.array(np.zeros(2))).std.dtype == g.mean.dtype


def test_divergence_and_decoder_of_the_class() -> None:
    rng = np.random.default_rng(8)
    m1, v1, m2, v2 = rng.normal(size=(4, 5))
    truth = [float(_truth.kl(*row)) for row in zip(m1, v1, m2, v2, strict=True)]
    np.testing.assert_allclose(Gaussian(m1, v1).kl(Gaussian(m2, v2)), truth, rtol=1e-13)
    x = levels_of(256)[:5]
    eight_bits = gaussian.discretized_log_likelihood(x, m1, v1 / 2, 256)
    np.testing.assert_array_equal(Gaussian(m1, v1).discretized_log_prob(x), eight_bits)
    np.testing.assert_array_equal(gaussian.discretized_log_likelihood(x, m1, v1 / 2), eight_bits)


def test_equal_and_hashable_by_content(library: Library) -> None:
    def build(value: float = 1.0, log_var: Any = 0.5) -> Gaussian:
        return Gaussian(library.array([0.0, value]), log_var)

    assert build() == build()
    assert hash(build()) != hash(build(2.0))
    assert len({build(), build(), build(2.0), build(log_var=0.25)}) == 3
    assert build(log_var=library.array([0.5])) == build(log_var=library.array([0.5])) != build()
    assert build() != "a Gaussian"


def test_libraries_and_dtypes_are_part_of_the_content() -> None:
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    zeros = [np.zeros(2, "float16"), torch.zeros(2, dtype=torch.float16), torch.zeros(2, dtype=torch.bfloat16)]
    zeros += [jax.numpy.zeros(2, "float16"), np.zeros(2, "float32")]
    assert len({Gaussian(mean, 0.0) for mean in zeros}) == 5


def test_equal_by_content_on_a_device_and_of_a_library_that_nobody_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    import array_api_strict as xp

    a, b, c = (Gaussian(xp.asarray([0.0, v], device=xp.Device("device1")), 0.5) for v in (1.0, 1.0, 2.0))
    assert hash(a) == hash(b)
    assert a == b != c
    monkeypatch.delitem(backends._registered, "strict")
    a, b, c = (Gaussian(xp.asarray([0.0, v]), 0.5) for v in (1.0, 1.0, 2.0))
    assert a == b != c


def test_frozen() -> None:
    g = Gaussian(np.zeros(2), 0.0)
    with pytest.raises(AttributeError):
        g.mean = np.ones(2)  # type: ignore[misc]


def test_numbers_alone_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^mean1 must be an array, got float"):
        gaussian.kl(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(TypeError, match=r"^mean must be an array, got float"):
        Gaussian(0.0, 0.0)


@np.errstate(all="raise")
def test_results_out_of_range_are_infinite_or_zero_without_an_error() -> None:
    zero, tiny, far = np.zeros(1), np.full(1, 1e-200), np.full(1, 1e200)
    assert gaussian.discretized_log_likelihood(zero, far, -18.0).tolist() == [-math.inf]
    assert gaussian.discretized_log_likelihood(np.linspace(-1, 1, 3), np.zeros(3), -18.0, 3).tolist()[1] == 0
    assert gaussian.discretized_log_likelihood(zero, zero, -18.0, 3, "ho2020") == 0
    assert Gaussian(zero, -100.0).log_prob(far).tolist() == [-math.inf]
    assert Gaussian(zero, 0.0).log_prob(tiny).tolist() == Gaussian(zero, 0.0).log_prob(zero).tolist()
    assert gaussian.kl(far, 0.0, -far, 0.0).tolist() == [math.inf]
    assert gaussian.kl(tiny, 0.0, zero, 0.0).tolist() == [0]
    assert gaussian.kl(zero, 1000.0, zero, 0.0).tolist() == [math.inf]
    assert gaussian.kl_full(tiny, np.eye(1), zero, np.eye(1)) == 0
    for mean, log_var in ((zero, 1000.0), (zero, np.array([1000.0])), (zero.astype(np.float32), 200.0)):
        assert Gaussian(mean, log_var).var == math.inf
        assert Gaussian(mean, -2 * log_var).std == 0
        assert Gaussian(mean, -1.5 * log_var).sample(np.full(1, 1e-30, mean.dtype)) == 0
