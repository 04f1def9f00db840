"""Noise is the documented function of (seed, sample, step): its words, its normals, and nothing else."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_on_host import draw, kernels
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tinyddpm_backends import _cupy_kernels, _host_noise

from tinyddpm import backends, noise
from tinyddpm.verify._sampling import philox

TOP = 2**64 - 1
WORDS = st.integers(0, TOP) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**61 - 1, 2**63, TOP - 1, TOP])
EDGE_INDEX = [0, 1, 5, TOP, TOP - 1, 2**61, 2**61 - 1, 2**32, 3 * 2**32 - 1]
SHAPES = [(), (1,), (2,), (9,), (3, 5), (16,), (17,), (3, 32, 32), (9001,)]

# ---------------------------------------------------------------------------------------------------------- the words


def words(seed: int, index: int, step: int, stream: int, n: int) -> list[int]:
    """One sample's uint32 words; NumPy's generator counts on before each block, the first included."""
    blocks = -(-n // 8)
    first = index * blocks + 1
    wide = itertools.chain(*(philox((i & TOP, i >> 64, step, 0), (seed, stream)) for i in range(first, first + blocks)))
    return [half for word in wide for half in (word & 0xFFFFFFFF, word >> 32)]


def normals(seed: int, index: int, step: int, stream: int, n: int) -> list[float]:
    """One sample's normals, by the documented formula in Python's floats."""
    bits = words(seed, index, step, stream, n)
    pairs = list(zip(bits[: len(bits) // 2], bits[len(bits) // 2 :], strict=True))
    radius = [math.sqrt(-2 * math.log((b + 0.5) * 2.0**-32)) for b, _ in pairs]
    angle = [2 * math.pi * (c - 2**32 if c >= 2**31 else c) * 2.0**-32 for _, c in pairs]
    both = [r * f(a) for f in (math.cos, math.sin) for r, a in zip(radius, angle, strict=True)]
    return both[:n]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(seed=WORDS, index=WORDS, step=WORDS, stream=WORDS, n=st.integers(1, 40))
def test_a_draw_is_the_documented_formula(dtype: str, seed: int, index: int, step: int, stream: int, n: int) -> None:
    drawn = noise.normal(seed, [index], step, (n,), stream=stream, dtype=dtype)[0]
    # float64: a few roundings of numbers below 7; float32: the documented bound (test_float32_... has r < 0.02)
    bound = 1e-14 if dtype == "float64" else 1e-3
    assert np.abs(drawn - normals(seed, index, step, stream, n)).max() < bound


@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_samples_carry_into_the_second_counter_word(blocks: int) -> None:
    crossing = 2**64 // blocks
    index = [i for i in range(crossing - 3, crossing + 3) if i <= TOP]
    drawn = noise.normal(3, index, 1, (8 * blocks,), dtype="float64")
    expected = [normals(3, i, 1, 0, 8 * blocks) for i in index]
    assert np.abs(drawn - expected).max() < 1e-14


def test_the_layout_is_numpys_own_philox() -> None:
    for n, first, count in ((3072, 64, 20), (70_001, 3, 2), (5, 10**6, 9000)):
        blocks = -(-n // 8)
        raw = np.random.Philox(key=[11, 2], counter=[first * blocks, 0, 500, 0]).random_raw(4 * blocks * count)
        bits = raw.view(np.uint32).reshape(count, 2, -1)
        radius = np.sqrt(-2 * np.log((bits[:, 0] + 0.5) * 2.0**-32))
        angle = 2 * np.pi * bits[:, 1].view(np.int32) * 2.0**-32
        expected = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), 1)[:, :n]
        drawn = noise.normal(11, range(first, first + count), 500, (n,), stream=2, dtype="float64")
        assert np.abs(drawn - expected).max() < 1e-14


# --------------------------------------------------------------------------------------------------------- the dtypes


def test_float32_is_the_float64_draw() -> None:
    index, shape = range(2**40, 2**40 + 1000), (4096,)
    narrow = noise.normal(5, index, 9, shape).astype(np.float64)
    wide = noise.normal(5, index, 9, shape, dtype="float64")
    radius = np.hypot(wide[:, :2048], wide[:, 2048:])
    small = np.tile(radius < 0.02, 2)  # where float32 does not resolve u next to 1
    error = np.abs(narrow - wide)
    assert small.sum() > 500
    assert error[~small].max() < 2e-6
    assert error[small].max() < 1e-3


def test_half_precision_is_the_float32_draw_rounded(native: Any) -> None:
    single = noise.normal(1, range(3), 4, (7, 11))
    half = native.host(noise.normal(1, range(3), 4, (7, 11), backend=native.name, dtype="float16"))
    assert half.dtype == np.float16
    assert (half == single.astype(np.float16)).all()
    if native.name != "numpy":
        brain = noise.normal(1, range(3), 4, (7, 11), backend=native.name, dtype="bfloat16")
        assert "bfloat16" in str(brain.dtype)
        bits = single.view(np.uint32)
        nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)  # ties to even
        assert (native.host(brain) == nearest).all()


# ------------------------------------------------------------------------------------------------- batches, processes


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@given(
    shape=st.lists(st.integers(1, 9), max_size=3) | st.sampled_from([[3071], [33_000], [70_001]]),
    index=st.lists(st.integers(0, 40) | st.integers(TOP - 40, TOP), min_size=1, max_size=12),
    cut=st.integers(0, 12),
)
def test_a_sample_does_not_depend_on_its_batch(dtype: str, shape: list[int], index: list[int], cut: int) -> None:
    def draw(rows: list[int]) -> np.ndarray:
        return np.asarray(noise.normal(7, rows, 3, shape, dtype=dtype))

    whole = draw(index)
    assert whole.shape == (len(index), *shape)
    assert (whole == np.concatenate((draw(index[:cut]), draw(index[cut:])))).all()
    assert (whole == np.concatenate([draw([i]) for i in index])).all()
    assert (whole[::-1] == draw(index[::-1])).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 7, 13, 1023, 3072])
def test_a_long_run_is_its_samples(dtype: str, n: int) -> None:
    count = min(9000, 400_000 // n)
    whole = noise.normal(2, range(5, 5 + count), 8, (n,), dtype=dtype)
    for i in (0, 1, count // 3, count - 1):
        assert (whole[i] == noise.normal(2, [5 + i], 8, (n,), dtype=dtype)[0]).all()


@pytest.mark.parametrize(
    "rows", [range(10, 4, -1), range(3, 30, 4), np.array([3, 1, 2, 2], np.uint8), np.array([TOP, 0], np.uint64), [], (4,)]
)
def test_every_form_of_index_means_its_numbers(rows: Any) -> None:
    plain = [int(i) for i in rows]
    assert (noise.normal(0, rows, 1, (5,)) == noise.normal(0, plain, 1, (5,))).all()
    assert noise.normal(0, rows, 1, (5,)).shape == (len(plain), 5)


# -------------------------------------------------------------------------------------------------------------- the law


def test_draws_are_standard_normal() -> None:
    z = noise.normal(2024, range(200), 1, (5000,)).ravel().astype(np.float64)
    n = z.size
    assert stats.kstest(z, "norm").pvalue > 1e-3
    # mean, variance, skewness and kurtosis within 4 standard errors
    for power, mean, var in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - mean) < 4 * math.sqrt(var / n)
    edges = stats.norm.ppf([1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 1 - 1e-4, 1 - 1e-5])
    edges = np.array([-np.inf, *edges, np.inf])
    seen, expected = np.histogram(z, edges)[0], n * np.diff(stats.norm.cdf(edges))
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_the_largest_draw_is_the_words_limit() -> None:
    assert np.abs(noise.normal(0, range(100), 0, (10_000,))).max() < math.sqrt(2 * 33 * math.log(2))


def test_draws_are_uncorrelated() -> None:
    n = 200_000
    base = noise.normal(4, [6], 8, (n,))[0].astype(np.float64)
    near = [(5, 6, 8, 0), (4, 7, 8, 0), (4, 6, 9, 0), (4, 6, 8, 1), (6, 4, 8, 0), (8, 6, 4, 0)]
    others = [noise.normal(seed, [index], step, (n,), stream=stream)[0] for seed, index, step, stream in near]
    shifted = [np.roll(base, lag) for lag in (1, 2, 4, 8, n // 2)]
    for x, y in itertools.combinations([base, *others, *shifted], 2):
        assert abs(np.mean(x * y)) < 5 / math.sqrt(n)
        assert abs(np.mean((x**2 - 1) * (y**2 - 1)) / 2) < 5 / math.sqrt(n)


# --------------------------------------------------------------------------------------------------- backends, devices


def test_every_backend_draws_the_same(library: Any) -> None:
    for dtype in ("float32", "float64"):
        host = noise.normal(8, range(50, 60), 3, (3, 16, 16), dtype=dtype)
        for exact in (False, True):
            there = noise.normal(8, range(50, 60), 3, (3, 16, 16), backend=library.name, dtype=dtype, exact=exact)
            assert backends.of(there).name == library.name
            assert dtype in str(there.dtype)
            assert np.abs(library.host(there) - host).max() <= (0 if exact else 2e-6)


def _torch_kernel(seed: int, index: Any, step: int, shape: Any, stream: int, dtype: str) -> np.ndarray:
    pytest.importorskip("torch")
    from tinyddpm_backends import torch_backend

    return np.asarray(torch_backend._draw(seed, index, step, shape, stream, "cpu", dtype))


def _jax_kernel(seed: int, index: Any, step: int, shape: Any, stream: int, dtype: str) -> np.ndarray:
    jax = pytest.importorskip("jax")
    from tinyddpm_backends import jax_backend

    jax.config.update("jax_enable_x64", dtype == "float64")
    try:
        return np.asarray(jax_backend._draw(seed, index, step, shape, stream, jax.devices("cpu")[0], dtype))
    finally:
        jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def cuda_source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CuPy's noise kernel, run on the host."""
    return partial(draw, kernels(tmp_path_factory.mktemp("kernels")))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kernel", "shape"),
    [*itertools.product(["torch", "cuda source"], SHAPES), *itertools.product(["jax"], [(), (17,), (3, 32, 32)])],
    ids=str,
)
def test_every_kernel_draws_the_same(kernel: str, shape: tuple[int, ...], dtype: str, request: Any) -> None:
    kernel_draw = {"torch": _torch_kernel, "jax": _jax_kernel}.get(kernel) or request.getfixturevalue("cuda_source")
    index = np.array(EDGE_INDEX, np.uint64)
    there = kernel_draw(2**64 - 3, index, 2**63 + 5, shape, 7, dtype)
    host = noise.normal(2**64 - 3, index, 2**63 + 5, shape, stream=7, dtype=dtype)
    assert there.shape == host.shape
    assert there.dtype == host.dtype
    # one wrong bit of a word moves a value by far more than the libraries' roundings of log, sin and cos
    assert np.abs(there - host).max() < (2e-6 if dtype == "float32" else 1e-14)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc to compile the CUDA sources")
def test_the_cuda_sources_compile(tmp_path: Path) -> None:
    log_ndtr = f"\n__global__ void log_ndtr(const double x, double &y) {{ {_cupy_kernels.LOG_NDTR} }}\n"
    (tmp_path / "source.cu").write_text(_cupy_kernels.NOISE_AND_STEP + log_ndtr)
    command = ["nvcc", "-cubin", "-arch=sm_90", "-Werror", "all-warnings", "-o", "out.cubin", "source.cu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_device_draws_the_same(cuda: Any, dtype: str) -> None:
    def draw(index: Any, **options: Any) -> np.ndarray:
        drawn = noise.normal(3, index, 5, (3, 33), backend=cuda.name, device="cuda", dtype=dtype, **options)
        return np.asarray(cuda.host(drawn))

    host = noise.normal(3, EDGE_INDEX, 5, (3, 33), dtype=dtype)
    # float16 may round two float32 values 2e-6 apart to neighbours, at most 2^-8 apart below 8
    assert np.abs(draw(EDGE_INDEX).astype(np.float64) - host).max() < (2e-6 if dtype == "float32" else 2**-7)
    assert (draw(EDGE_INDEX, exact=True) == host).all()
    assert (draw(EDGE_INDEX)[3] == draw(EDGE_INDEX[3:4])[0]).all()


def test_a_backends_kernel_is_used_unless_it_declines_or_exact_is_asked() -> None:
    calls = []

    def kernel(seed: int, index: Any, step: int, shape: Any, *, stream: int, device: Any, dtype: str) -> Any:
        calls.append((seed, [int(i) for i in index], step, shape, stream, device, dtype))
        return np.zeros((len(index), *shape)) if seed else NotImplemented

    backends.register(replace(backends.get("numpy"), name="kernel", normal=kernel))
    try:
        assert (noise.normal(1, range(2), 3, [4], stream=5, backend="kernel") == 0).all()
        assert calls == [(1, [0, 1], 3, (4,), 5, None, "float32")]
        host = noise.normal(0, range(2), 3, (4,))
        assert (noise.normal(0, range(2), 3, (4,), backend="kernel") == host).all()
        calls.clear()
        assert (noise.normal(1, range(2), 3, (4,), backend="kernel", exact=True) != 0).all()
        assert not calls
    finally:
        del backends._registered["kernel"]


# -------------------------------------------------------------------------------------------------- sizes, threads, arrays


def test_empty_shapes_give_empty_draws(native: Any) -> None:
    for index, shape in (([], (3,)), (range(4), (0,)), (range(4), (2, 0, 5))):
        assert native.host(noise.normal(0, index, 1, shape, backend=native.name)).shape == (len(index), *shape)


def test_threads_draw_side_by_side(native: Any) -> None:
    """Threads share no memory between their draws."""

    def draw(step: int) -> np.ndarray:
        return np.asarray(native.host(noise.normal(1, range(8), step, (4, 70), backend=native.name)))

    steps = range(40)
    alone = [draw(step) for step in steps]
    with ThreadPoolExecutor(4) as pool:
        for z, expected in zip(pool.map(draw, steps, chunksize=2), alone, strict=True):
            np.testing.assert_array_equal(z, expected)


def test_a_draw_may_interrupt_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler may draw the same noise of another step while the memory is in use."""
    draw = partial(noise.normal, 1, range(8), shape=(4, 70))
    expected, whole = draw(step=3), _host_noise.Noise._apply

    def interrupted(self: Any, put: Any, *args: Any) -> None:
        def later(*parts: Any) -> None:
            monkeypatch.undo()
            draw(step=9)
            put(*parts)

        whole(self, later, *args)

    monkeypatch.setattr(_host_noise.Noise, "_apply", interrupted)
    np.testing.assert_array_equal(draw(step=3), expected)


def test_noise_like_an_array(library: Any) -> None:
    for dtype in ("float32", "float64"):
        x = library.array(np.zeros((3, 2, 5)), dtype)
        z = noise.like(x, 4, [7, 0, 9], stream=3)(2)
        assert type(z) is type(x)
        assert z.dtype == x.dtype
        expected = noise.normal(4, [7, 0, 9], 2, (2, 5), stream=3, dtype=dtype)
        np.testing.assert_allclose(library.host(z), expected, rtol=0, atol=2e-6)


def test_sample_numbers() -> None:
    assert noise.numbers(None, 3) == range(3)
    assert noise.numbers([5, 4], 2) == [5, 4]
