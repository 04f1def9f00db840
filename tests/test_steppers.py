"""The backends' steppers make the portable steps, in memory of their own that the user never sees."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pages
import pytest
from conftest import Library
from cuda_on_host import KernelStepper, kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batch
from tinyddpm_backends import _host_noise, _host_steps

from tinyddpm import Denoiser, Diffusion, backends, edit, noise, samplers, schedules
from tinyddpm._arrays.namespace import namespace_of
from tinyddpm._sampling.run import ArrayApiStepper, bound_rows
from tinyddpm.backends import Row

SAMPLERS = tuple(samplers.NAMES)
CHAIN = Diffusion(schedules.linear(30, 1e-3, 0.2))
STEPS = 9
CLIP = (-1.0, 1.0)
RUN: dict[str, Any] = {"seed": 4, "index": np.arange(2, dtype=np.uint64), "clip": CLIP, "keep_x0": True}
EXACT = {"numpy": 8, "torch": 8, "jax": 8}
"""Units in the last place of the largest number of a run. NumPy and Torch compute a prediction times its weight, and multiply the
radius of the noise by its std; Torch and XLA fuse products and sums."""


@pytest.fixture(scope="module")
def cupys(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """CuPy's kernels, run on the host."""
    return kernels(tmp_path_factory.mktemp("kernels"))


def wavy(x_t: Any, t: Any) -> Any:
    """A network that any library runs, with outputs on both sides of the clip."""
    return (0.7 * x_t + 0.3) / (1 + x_t * x_t)


def wide(x_t: Any, t: Any) -> Any:
    """The same with a learned variance between the two ends."""
    xp = namespace_of(x_t=x_t)
    return xp.concat([wavy(x_t, t), 0.5 * wavy(x_t, t)], axis=1)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The registry, put back afterwards."""
    monkeypatch.setattr(backends, "_registered", dict(backends._registered))
    return backends._registered


def portable(registry: Any, name: str) -> None:
    """Take away the backend's own stepper."""
    registry[name] = replace(backends.get(name), stepper=None)


def states(library: Any, shape: tuple[int, ...], **options: Any) -> list[np.ndarray]:
    """Every state and prediction of a run."""
    denoiser = options.pop("denoiser", Denoiser(wavy))
    x_T = library.array(1.5 * batch(*shape, seed=5), options.pop("dtype", "float32"))
    steps = options.pop("chain", CHAIN).trajectory(denoiser, shape, steps=STEPS, x_T=x_T, **options)
    return [library.host(x) for step in steps for x in (step.x, step.x0) if x is not None]


def formula(rows: list[Row], x: Any, values: Any, clip: Any, z: Any) -> Iterator[tuple[Any, Any]]:
    """Each state and prediction, as `Row` defines them."""
    state = base = x
    history: list[Any] = []
    for row, value in zip(rows, values, strict=True):
        x0 = row.x0_from[0] * value + row.x0_from[1] * state
        history = [x0 if clip is None else np.minimum(np.maximum(x0, clip[0]), clip[1]), *history]
        state = np.tensordot(row.state, [base, *history[: len(row.state) - 1]], 1) + row.std * z
        base = state if row.base is None else np.tensordot(row.base, [base, *history[: len(row.base) - 1]], 1)
        yield state, history[0]


WEIGHT = st.sampled_from([0.0, 1.0, -0.7, 0.4, 1e-3, -1e-5, 3.0])


@st.composite
def plans(draw: Any) -> list[Row]:
    """Rows that no sampler has: negative, tiny and vanishing weights, with and without a base or noise."""

    def weights(reach: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(WEIGHT, min_size=2, max_size=reach + 1)))

    bases = [weights(k) if draw(st.booleans()) else None for k in (1, 2, 3, 3)]
    return [
        Row(9 - k, 8 - k, weights(min(k + 1, 3)), base, draw(WEIGHT), x0_from=(draw(WEIGHT), draw(WEIGHT)))
        for k, base in enumerate(bases)
    ]


CLIPS = st.sampled_from([None, (-1.0, 1.0), (0.0, 1.0), (-0.25, 2.0)])


@pytest.fixture(scope="module", params=["numpy", "torch", "jax", "array API", "torch's device", "cupy's kernel"])
def kind(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A factory of steppers and the function that makes its arrays."""
    if request.param == "array API":
        return ArrayApiStepper, np.asarray
    if request.param == "cupy's kernel":
        return partial(KernelStepper, request.getfixturevalue("cupys")), np.asarray
    name = request.param.split("'")[0]
    pytest.importorskip(name)
    if name == "jax":
        pytest.importorskip("jax").config.update("jax_enable_x64", True)
    backend = backends.get(name)
    if name == request.param:
        return backend.stepper, backend.from_numpy
    from tinyddpm_backends._torch_device_steps import DeviceStepper

    return lambda rows, x, clip, **_: DeviceStepper(rows, x, lambda t: t, clip=clip), backend.from_numpy


@settings(max_examples=60)
@given(rows=plans(), clip=CLIPS, keep_x0=st.booleans())
def test_a_stepper_computes_its_rows_formula(kind: Any, rows: list[Row], clip: Any, keep_x0: bool) -> None:
    make, array = kind
    x, z, *values = (1.5 * batch(2, 5, seed=seed) for seed in range(2 + len(rows)))
    index = np.arange(2, dtype=np.uint64)
    stepper = make(tuple(rows), array(x), seed=0, index=index, clip=clip, keep_x0=keep_x0)
    for k, (state, x0) in enumerate(formula(rows, x, values, clip, z)):
        assert stepper.step(k, array(values[k]), None, array(z) if rows[k].std else None) is not False
        np.testing.assert_allclose(np.asarray(stepper.state), state, rtol=1e-12, atol=1e-12)
        if keep_x0:
            np.testing.assert_allclose(np.asarray(stepper.x0), x0, rtol=1e-12, atol=1e-12)


def worst_ulps(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    top = max(np.abs(x).max() for x in b)
    return float(max(np.abs(x.astype(float) - y).max() for x, y in zip(a, b, strict=True)) / np.spacing(top))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "double": {"dtype": "float64"},
    "unclipped": {"denoiser": Denoiser(wavy, clip_x0=False)},
    "v": {"denoiser": Denoiser(wavy, "v", variance="beta_tilde")},
    "weights that vanish": {
        "chain": Diffusion(schedules.constant(900, 0.9)),
        "denoiser": Denoiser(wavy, "x0"),
        "spacing": "even",
    },
    "learned": {"denoiser": Denoiser(wide, variance="learned")},
    "learned range": {"denoiser": Denoiser(wide, variance="learned_range")},
    "own noise": {"noise": lambda t, index, shape: batch(len(index), *shape, seed=t)},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("case", CASES)
def test_the_backends_steps_are_the_portable_ones(native: Any, sampler: str, case: str, registry: Any) -> None:
    shape = (3, 2, 5)
    own = states(native, shape, sampler=sampler, **CASES[case])
    portable(registry, native.name)
    plain = states(native, shape, sampler=sampler, **CASES[case])
    larger = 2 if sampler == "dpm++3m" else 1  # its weights have both signs and are about twice those of order 2
    assert worst_ulps(own, plain) <= larger * EXACT[native.name]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_tutorials_stepper_makes_the_portable_steps(sampler: str, registry: Any) -> None:
    del registry["strict"]  # the page registers a backend of the same library
    page, names = pages.ROOT / "docs/tutorials/backend.md", dict[str, Any]()
    for block in pages.blocks(page.read_text(encoding="utf-8"), "python"):
        pages.run(block, page, names)
        if "MINE" in names:
            break
    mine = Library(names["MINE"])
    assert isinstance(names["stepper"](device_rows(sampler), mine.array(batch(2, 3)), **RUN), names["OneProduct"])
    assert mine.backend.stepper is names["stepper"]
    for case in ("double", "unclipped", "v"):
        options = {"dtype": "float64"} | CASES[case]
        own = states(mine, (3, 2, 5), sampler=sampler, **options)
        portable(registry, "mine")
        assert worst_ulps(own, states(mine, (3, 2, 5), sampler=sampler, **options)) <= 8
        registry["mine"] = names["MINE"]


@settings(max_examples=40)
@given(st.sampled_from(SAMPLERS), st.integers(1, 6), st.integers(1, 90), st.sampled_from([16, 32, 64, 1024]), st.booleans())
def test_steps_do_not_depend_on_the_pieces(sampler: str, count: int, n: int, block: int, noisy: bool) -> None:
    """However the elements are cut into pieces, steps and draws have the same bits."""
    eta = 0.5 if noisy and sampler == "ddim" else 0.0
    index = [7 * k * k + 2**40 for k in range(count - 1)] + [2**64 - 1]
    options: dict[str, Any] = {"sampler": sampler, "eta": eta, "steps": STEPS, "index": index}
    whole = CHAIN.sample(Denoiser(wavy), (count, n), **options)
    drawn = noise.normal(3, index, 5, (n,))
    with patch.object(_host_noise, "PIECE", block), patch.object(_host_steps, "PIECE", block):
        np.testing.assert_array_equal(CHAIN.sample(Denoiser(wavy), (count, n), **options), whole)
        np.testing.assert_array_equal(noise.normal(3, index, 5, (n,)), drawn)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(5, 7), (3, 3, 5, 7), (3, 1, 151, 149), (5, 1, 331, 327)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchs_bits_do_not_depend_on_the_place_in_the_batch(sampler: str, shape: tuple[int, ...], dtype: str) -> None:
    """The end of a loop runs other instructions than its body, threads cut it anywhere, and a network's output may have another
    memory layout."""
    torch = pytest.importorskip("torch")
    x, value = (torch.from_numpy(batch(*shape, seed=seed).astype(dtype)) for seed in (5, 6))
    rows = bound_rows(samplers.NAMES[sampler], CHAIN, Denoiser(wavy), CHAIN.timesteps(STEPS), 0.0)
    make: Any = backends.get("torch").stepper

    def end(part: slice, threads: int, out: Any) -> Any:
        index = np.arange(shape[0], dtype=np.uint64)[part]
        stepper, kept = make(rows, x[part], seed=2, index=index, clip=CLIP, keep_x0=False), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for k in range(len(rows)):
                stepper.step(k, out[part])
        finally:
            torch.set_num_threads(kept)
        return stepper.state

    whole = end(slice(None), 2, value)
    for k in range(shape[0]):
        assert torch.equal(end(slice(k, k + 1), 1, value)[0], whole[k])
    if len(shape) == 4:
        assert torch.equal(end(slice(None), 1, value.to(memory_format=torch.channels_last)), whole)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_snapshots(native: Any, sampler: str) -> None:
    """Later steps do not change them, and writing to them does not change the run."""
    options: dict[str, Any] = {"sampler": sampler, "steps": 6, "backend": native.name}
    end = native.host(CHAIN.sample(Denoiser(wavy), (2, 3), **options))
    reported: list[Any] = []
    steps = CHAIN.trajectory(Denoiser(wavy), (2, 3), callback=reported.append, **options)
    seen = [(step, native.host(step.x)) for step in steps]
    for step, then in seen:
        np.testing.assert_array_equal(native.host(step.x), then)
    for step, (_, then) in zip(reported, seen[1:], strict=True):
        np.testing.assert_array_equal(native.host(step.x), then)
    np.testing.assert_array_equal(seen[-1][1], end)
    if native.name != "jax":  # whose arrays can't be written to
        for step in CHAIN.trajectory(Denoiser(wavy), (2, 3), **options):
            last = native.host(step.x)
            step.x[...] = 9.0
        np.testing.assert_array_equal(last, end)


def test_the_callers_start_is_not_written_to(native: Any) -> None:
    x_T = native.array(batch(2, 3), "float32")
    for sampler in SAMPLERS:
        CHAIN.sample(Denoiser(wavy), (2, 3), sampler=sampler, x_T=x_T)
        np.testing.assert_array_equal(native.host(x_T), batch(2, 3).astype(np.float32))


AWKWARD = {
    "the state itself": lambda x, t: x,
    "the state reversed": lambda x, t: x[::-1],
    "channels last": lambda x, t: np.ascontiguousarray(np.moveaxis(0.5 * x, 1, -1)).transpose(0, 3, 1, 2),
    "one row for all": lambda x, t: np.broadcast_to(0.5 * x[:1], x.shape),
    "read-only": lambda x, t: np.frombuffer((0.5 * x).tobytes(), x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("net", AWKWARD.values(), ids=AWKWARD)
def test_any_layout_of_the_networks_output(sampler: str, net: Any) -> None:
    options: dict[str, Any] = {"sampler": sampler, "steps": 5}
    x = CHAIN.sample(Denoiser(net), (3, 2, 4, 4), **options)
    plain = CHAIN.sample(Denoiser(lambda x, t: np.array(net(x, t), order="C")), (3, 2, 4, 4), **options)
    np.testing.assert_array_equal(x, plain)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("net", [lambda x, t: x, lambda x, t: x[:1].expand(x.shape), lambda x, t: 0.5 * x.mT.mT])
def test_a_network_may_return_a_view_of_the_state(sampler: str, net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that puts a sample in another's place, while Torch makes the step in parts."""
    pytest.importorskip("torch")
    from tinyddpm_backends import _torch_steps

    options: dict[str, Any] = {"sampler": sampler, "steps": 5, "backend": "torch"}
    whole = CHAIN.sample(Denoiser(net), (7, 2, 3, 3), **options)
    monkeypatch.setattr(_torch_steps, "_PART", 20)
    assert CHAIN.sample(Denoiser(net), (7, 2, 3, 3), **options).equal(whole)
    assert CHAIN.sample(Denoiser(lambda x, t: net(x, t).clone()), (7, 2, 3, 3), **options).equal(whole)


@pytest.mark.parametrize(("sampler", "eta"), [(s, 0.0) for s in SAMPLERS] + [("ddim", 1.0)])
@pytest.mark.parametrize("shape", [(16, 3, 64, 64), (1, 3, 256, 256)])
def test_no_step_of_numpys_allocates_a_state(sampler: str, eta: float, shape: tuple[int, ...]) -> None:
    """The peak of the memory that NumPy allocates after the first step, which makes what the noise needs."""
    value = 0.1 * np.ones(shape, np.float32)
    rows = bound_rows(samplers.NAMES[sampler], CHAIN, Denoiser(wavy), CHAIN.timesteps(6), eta)
    stepper = _host_steps.NumpyStepper(rows, value, seed=0, index=np.arange(shape[0], dtype=np.uint64), clip=CLIP, keep_x0=True)
    stepper.step(0, value)
    tracemalloc.start()
    try:
        for k in range(1, len(rows)):
            stepper.step(k, value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < value.nbytes / 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_of_torchs_allocates_a_state(sampler: str) -> None:
    torch = pytest.importorskip("torch")
    value = 0.1 * torch.ones(16, 3, 64, 64)
    rows = bound_rows(samplers.NAMES[sampler], CHAIN, Denoiser(wavy), CHAIN.timesteps(6), 0.0)
    make: Any = backends.get("torch").stepper
    stepper = make(rows, value, seed=0, index=np.arange(16, dtype=np.uint64), clip=CLIP, keep_x0=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        for k in range(len(rows)):
            stepper.step(k, value)
    asked = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert asked < value.nbytes / 2


def test_sample_copies_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(x: Any) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr("tinyddpm._sampling.run.copy_array", refuse)
    CHAIN.sample(Denoiser(wavy), (2, 3), steps=4)
    with pytest.raises(AssertionError, match="copied"):
        CHAIN.sample(Denoiser(wavy), (2, 3), steps=4, callback=lambda step: None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_output_that_is_not_finite_is_named_with_its_step(native: Any, sampler: str, bad: float) -> None:
    def net(x: Any, t: Any) -> Any:
        return x * 0 + (bad if int(t[0]) <= 12 else 0.1)

    t = next(t for t in CHAIN.timesteps(5) if t <= 12)
    with pytest.raises(ValueError, match=f"net returned NaN or infinity at t = {t}"):
        CHAIN.sample(Denoiser(net), (2, 3), sampler=sampler, steps=5, spacing="even", backend=native.name)


def test_a_large_output_passes(native: Any) -> None:
    """It is finite, though its square, which the check looks at first, is not."""
    x = CHAIN.sample(Denoiser(lambda x, t: x * 0 + 1e30), (2, 3), steps=4, backend=native.name)
    assert np.abs(native.host(x)).max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_left_to_the_portable_steps(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    with pytest.warns(UserWarning, match="drift") if dtype == "bfloat16" else nullcontext():
        x = CHAIN.sample(Denoiser(wavy), (2, 3), steps=4, backend="torch", dtype=dtype)
    assert x.dtype == getattr(torch, dtype)
    rows = bound_rows(samplers.NAMES["ddim"], CHAIN, Denoiser(wavy), (30, 0), 0.0)
    stepper = backends.get("torch").stepper
    assert stepper is not None
    assert stepper(rows, x, seed=0, index=np.arange(2), clip=CLIP, keep_x0=False) is NotImplemented


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_torchs_default_device_and_inference_mode_decide_nothing(sampler: Any, dtype: str) -> None:
    """Every tensor is made where the state is, and what is made under inference mode can be written to outside."""
    torch = pytest.importorskip("torch")
    options: dict[str, Any] = {"sampler": sampler, "steps": 4, "backend": "torch", "dtype": dtype, "seed": 1}
    plain = [step.x for step in CHAIN.trajectory(Denoiser(wavy), (2, 3), **options)]
    with torch.device("meta"):
        steps = list(CHAIN.trajectory(Denoiser(wavy), (2, 3), device="cpu", **options))
    assert all(step.x.equal(x) for step, x in zip(steps, plain, strict=True))
    with torch.inference_mode():
        made = CHAIN.trajectory(Denoiser(wavy), (2, 3), **options)
        begun = CHAIN.trajectory(Denoiser(wavy), (2, 3), x_T=plain[0] + 0, **options)
        first = next(begun)
    for steps in ([*made], [first, *begun]):
        assert all(step.x.equal(x) for step, x in zip(steps, plain, strict=True))
    assert not steps[-1].x.is_inference()


@cache
def odd_chains() -> list[Diffusion]:
    betas = (schedules.linear(100_000), schedules.constant(6000, 0.5), schedules.jsd(50), [1e-300, 1e-300, 0.5, 1e-16, 0.9999])
    return [Diffusion(beta) for beta in betas]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numpys_errors_of_range_are_off_in_every_step(sampler: Any, dtype: str) -> None:
    """Chains whose weights leave a dtype's range, or float64's, by underflow, under `numpy.seterr(all="raise")`."""
    net = Denoiser(lambda x, t: 0 * x + x.dtype.type(0.25), "v", clip_x0=(-2.0, 2.0))
    x = np.array([[-1, 0.3, 1e-4]], dtype)
    with np.errstate(all="raise"):
        for d in odd_chains():
            for steps in (1, 3):
                for eta in (None, 0.5) if sampler in samplers.DEFAULT_ETA else (None,):
                    sample = d.sample(net, (4, 3), sampler=sampler, steps=steps, dtype=dtype, eta=eta)
                    assert np.isfinite(sample).all()
                    assert np.abs(sample).max() <= 2
            assert np.isfinite(edit.image_to_image(d, net, x, np.array(d.T // 2 + 1), steps=4, sampler=sampler)).all()


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "ddpm"])
def test_the_tutorials_loop_is_sample_inside_jax(sampler: Any) -> None:
    """Compiled, with the network traced once, it is `sample` to rounding; and its derivative is that of differences."""
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    page, names = pages.ROOT / "docs/tutorials/jax.md", dict[str, Any]()
    pages.run(next(iter(pages.blocks(page.read_text(encoding="utf-8"), "python"))), page, names)
    traced = []

    def net(x_t: Any, t: Any) -> Any:
        traced.append(t)
        return wavy(x_t, t)

    eta = 0.7 if sampler in samplers.DEFAULT_ETA else 0.0
    rows, x_T = samplers.NAMES[sampler](CHAIN, CHAIN.timesteps(9), eta), jax.numpy.asarray(batch(3, 2))
    z = jax.numpy.stack([noise.normal(5, range(3), row.t, (2,), backend="jax", dtype="float64") for row in rows])
    loop = jax.jit(lambda x: names["sample"](CHAIN, Denoiser(net), rows, x, z if eta else None))
    x = CHAIN.sample(Denoiser(wavy), (3, 2), sampler=sampler, timesteps=CHAIN.timesteps(9), x_T=x_T, eta=eta, seed=5)
    np.testing.assert_allclose(loop(x_T), x, rtol=1e-10, atol=1e-12)
    assert len(traced) == 1
    slope = jax.grad(lambda x: loop(x)[0, 0])(x_T)[0, 0]
    ahead, behind = (loop(x_T.at[0, 0].add(move))[0, 0] for move in (1e-6, -1e-6))
    assert float(slope) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5, abs=1e-8)


# ------------------------------------------------------------------------------------- the steps of devices, on the host


def device_rows(sampler: str, eta: float = 0.0) -> Any:
    return bound_rows(samplers.NAMES[sampler], CHAIN, Denoiser(wavy), CHAIN.timesteps(STEPS), eta)


def run(stepper: Any, rows: Any) -> list[Any]:
    result = []
    for k in range(len(rows)):
        stepper.step(k, wavy(stepper.state, None))
        result += [np.asarray(x).copy() for x in (stepper.state, stepper.x0)]
    return result


def on_device(sampler: str) -> tuple[Any, Any, list[Any]]:
    """Rows, Torch's stepper for devices, here on the CPU, and the portable states."""
    torch = pytest.importorskip("torch")
    from tinyddpm_backends._torch_device_steps import DeviceStepper
    from tinyddpm_backends.torch_backend import _first_counters, _normals

    rows, x, index = device_rows(sampler), torch.from_numpy(1.5 * batch(3, 2, 5)), np.arange(3, dtype=np.uint64)
    first = _first_counters(index, (2, 5), "cpu")
    stepper = DeviceStepper(rows, x, lambda step: _normals(4, first, step, (2, 5), 0, "float64"), clip=CLIP)
    return rows, stepper, run(ArrayApiStepper(rows, x.numpy(), seed=4, index=range(3), clip=CLIP, keep_x0=True), rows)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_torchs_device_steps_are_the_portable_ones(sampler: str) -> None:
    """With the weights of one row of the table, as in a CUDA graph."""
    rows, stepper, plain = on_device(sampler)
    assert worst_ulps(run(stepper, rows), plain) <= 16


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_graph_of_network_and_step_takes_each_rows_numbers(sampler: str) -> None:
    """The replay of a CUDA graph is spelled out: only the numbers in its static memory differ from step to step."""
    torch = pytest.importorskip("torch")
    from tinyddpm_backends._torch_device_steps import Graph

    rows, stepper, plain = on_device(sampler)
    assert stepper.fixed
    called_at = []

    class Replayed(Graph):
        def _captured(self) -> Any:
            return self

        def replay(self) -> None:
            called_at.append(int(self._t[0]))
            self._out = wavy(stepper.state, self._t)
            stepper.advance(self._out, self._weights, stepper.noise(self._step))

    net, states = Replayed(wavy, stepper), []
    for k, row in enumerate(rows):
        stepper.step(k, net(stepper.state, torch.full((3,), row.net_t)))
        states += [stepper.state.numpy().copy(), stepper.x0.numpy().copy()]
    assert called_at == [row.net_t for row in rows]
    assert worst_ulps(states, plain) <= 16


# ---------------------------------------------------------------------------------------------- compiled, under autocast


def image_net() -> Any:
    """A small network of convolutions, (x, t) -> eps."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(
                torch.nn.Conv2d(2, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 2, 3, padding=1)
            )

        def forward(self, x: Any, t: Any) -> Any:
            return self.inner(x) + 0.01 * t.to(x.dtype).reshape(-1, 1, 1, 1)

    torch.manual_seed(0)
    return Net().requires_grad_(False)


def image(net: Any, **options: Any) -> Any:
    return CHAIN.sample(Denoiser(net), (2, 2, 8, 8), sampler="ddpm", steps=6, backend="torch", **options)


def test_a_compiled_network_gets_images_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    compiled = []

    def stand_in(net: Any, **options: Any) -> Any:
        def called(x: Any, t: Any) -> Any:
            assert x.is_contiguous(memory_format=torch.channels_last)
            return net(x, t)

        compiled.append(options)
        return called

    monkeypatch.setattr(torch, "compile", stand_in)
    net = image_net()
    np.testing.assert_allclose(image(net, compile=True), image(net), rtol=0, atol=1e-5)  # convolutions in another order
    assert compiled == [{"dynamic": False, "options": {"size_asserts": False}}]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # the compiler's own imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ for Torch's compiler")
@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_a_compiled_run_is_the_eager_one(autocast: str | None) -> None:
    """Within 1e-5 in float32, as convolutions round; within bfloat16's 3 digits under autocast."""
    pytest.importorskip("torch")
    net = image_net()
    bound = 1e-5 if autocast is None else 0.05
    np.testing.assert_allclose(image(net, compile=True, autocast=autocast), image(net), rtol=0, atol=bound)


def test_autocast_runs_the_network_in_bfloat16_and_keeps_the_states_dtype() -> None:
    torch = pytest.importorskip("torch")
    net, seen = image_net(), []
    net.inner.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x = image(net, autocast="bfloat16")
    assert x.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    wide = image(net)
    assert 0 < (x - wide).abs().max() < 0.05


def test_weights_are_cast_once_a_run_as_autocast_does() -> None:
    pytest.importorskip("torch")
    import torch

    from tinyddpm.nn import UNet

    net = UNet(8, 2, channels=8, mults=(1, 2), res_blocks=1, attention=(4,)).eval().requires_grad_(False)

    class Plain(torch.nn.Module):
        def forward(self, x: Any, t: Any) -> Any:
            return net(x, t)

    for _ in range(2):
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
        once, always = image(net, autocast="bfloat16"), image(Plain(), autocast="bfloat16")
        np.testing.assert_array_equal(once, always)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_cuda_graph_is_the_eager_run(sampler: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device for torch")
    net = image_net().cuda()
    options: dict[str, Any] = {"sampler": sampler, "steps": 6, "backend": "torch", "device": "cuda"}
    eager, graphed = (CHAIN.sample(Denoiser(net), (2, 2, 8, 8), compile=c, **options) for c in (False, True))
    torch.testing.assert_close(graphed, eager, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(3, 2, 5), (2, 41), (1, 1)])
def test_cupys_kernel_makes_the_portable_step(cupys: Any, sampler: str, shape: tuple[int, ...]) -> None:
    rows, x, index = device_rows(sampler), 1.5 * batch(*shape), np.arange(5, 5 + shape[0], dtype=np.uint64)
    options: dict[str, Any] = {"seed": 4, "index": index, "clip": CLIP, "keep_x0": True}
    own, plain = (run(make(rows, x, **options), rows) for make in (partial(KernelStepper, cupys), ArrayApiStepper))
    assert worst_ulps(own, plain) <= 16


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_devices_steps_are_the_hosts(cuda: Any, sampler: str) -> None:
    options: dict[str, Any] = {"sampler": sampler, "steps": STEPS, "seed": 2}
    x = CHAIN.sample(Denoiser(wavy), (3, 2, 5), backend=cuda.name, device="cuda", **options)
    np.testing.assert_allclose(cuda.host(x), CHAIN.sample(Denoiser(wavy), (3, 2, 5), **options), rtol=0, atol=2e-5)
