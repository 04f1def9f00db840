"""Compilers and function transformations, from the first call of fresh objects: what they compute is what eager code computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
from conftest import Library

from tinyddpm import Denoiser, Diffusion, Gaussian, gaussian, losses, schedules
from tinyddpm._arrays.namespace import array_namespace

T, STEPS = 8, [1, 6]
ROUNDING = 1e-12  # float64; a compiled function may sum in another order
X, EPS = np.random.default_rng(0).uniform(-0.9, 0.9, (2, 2, 2, 2))


def fresh() -> Diffusion:
    return Diffusion(schedules.linear(T, 0.01, 0.5))


def fields(g: Gaussian) -> tuple[Any, Any]:
    return g.mean, g.var


def of_gaussian(g: Gaussian, x: Any) -> tuple[Any, ...]:
    return g.sample(x), g.log_prob(x), g.discretized_log_prob(x), g.kl(Gaussian(x, 0.3)), g.std * x


def learns(x: Any, t: Any) -> Any:
    """A network that emits its variance, on any library."""
    return array_namespace(x).concat([0.3 * x, 0.1 * x], axis=1)


def half(x: Any, t: Any) -> Any:
    return 0.5 * x


TABLE = np.linspace(0.1, 0.2, T + 1)
OF_PIXELS = np.linspace(0.1, 0.2, 4 * (T + 1)).reshape(T + 1, 2, 2)
DENSITY = Denoiser(half, variance=OF_PIXELS)
F = TypeVar("F", bound=Callable[..., Any])
Case = Callable[..., Any]
CASES: dict[str, Case] = {
    "q": lambda d, x, y, t: fields(d.q(x, t)),
    "q_sample": lambda d, x, y, t: d.q_sample(x, t, y),
    "q_between": lambda d, x, y, t: fields(d.q_between(x, t, t + 2)),
    "posterior": lambda d, x, y, t: fields(d.posterior(x, y, t)),
    "posterior, longer": lambda d, x, y, t: fields(d.posterior(x, y, t + 2, t)),
    "KL of the posterior": lambda d, x, y, t: d.posterior(x, y, t + 1).kl(d.q(y, t)),
    "convert": lambda d, x, y, t: (d.convert(x, y, t, "eps", "mu"), d.convert(x, y, t, "eps", "score")),
    "Gaussian": lambda d, x, y, t: of_gaussian(Gaussian(y, 0.2 * x), x) + of_gaussian(Gaussian(y, -0.5), x),
    "kl_full": lambda d, x, y, t: gaussian.kl_full(y[:, 0, :], 0 * x + eye(x), x[:, 0, :], 0 * x + 2 * eye(x)),
    "decoder": lambda d, x, y, t: gaussian.discretized_log_likelihood(x, y, 3 * y - 3),
    "decoder of Ho": lambda d, x, y, t: gaussian.discretized_log_likelihood(x, y, -2.0, 17, "ho2020"),
    "x0, eps": lambda d, x, y, t: (Denoiser(half).x0(d, x, t), Denoiser(half, "v", clip_x0=False).eps(d, x, t)),
    **{
        f"p, {kind}": lambda d, x, y, t, m=model: fields(m.p(d, x, t))
        for kind, model in {
            "beta": Denoiser(half), "beta_tilde": Denoiser(half, "mu", "beta_tilde"), "table": Denoiser(half, variance=TABLE),
            "learned": Denoiser(learns, "x0", "learned"), "range": Denoiser(learns, variance="learned_range"),
            "pixels": Denoiser(half, variance=OF_PIXELS),
        }.items()
    },
    "p, longer": lambda d, x, y, t: fields(Denoiser(half).p(d, x, t + 2, t)),
    "simple": lambda d, x, y, t: losses.simple(d, Denoiser(half), x, t, y),
    "vlb": lambda d, x, y, t: losses.vlb(d, Denoiser(half, "v"), x, t, y),
    "vlb of densities": lambda d, x, y, t: losses.vlb(d, DENSITY, x, t, y, "density"),
    "hybrid": lambda d, x, y, t: losses.hybrid(d, Denoiser(learns, variance="learned_range"), x, t, y),
    "weighted": lambda d, x, y, t: tuple(losses.weighted(d, Denoiser(half), x, t, y, w) for w in ("snr", "min_snr", "p2")),
}  # fmt: skip


def eye(x: Any) -> Any:
    return array_namespace(x).eye(2, dtype=x.dtype)


CALLS = {f"{name} at {STEPS}": (name, np.array(STEPS)) for name in CASES} | {
    f"{name} at {t}": (name, t)
    for name, t in (("vlb", 6), ("vlb", 1), ("hybrid", 1), ("q", 1), ("posterior, longer", 1), ("convert", 1), ("p, pixels", 1))
}
FEW = ("vlb at 1", *(f"{name} at {STEPS}" for name in ("posterior, longer", "p, range", "decoder", "vlb")))


def calls(**quick: Iterable[str]) -> Callable[[F], F]:
    """All calls on both libraries; those that are not named for the library are slow."""
    rows = [
        pytest.param(library, *CALLS[call], id=f"{library}-{call}", marks=() if call in names else pytest.mark.slow)
        for library, names in quick.items()
        for call in CALLS
    ]
    return pytest.mark.parametrize(("differentiable", "name", "t"), rows, indirect=["differentiable"])


def parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def check(library: Library, found: Any, name: str, t: Any) -> None:
    """What a transformation of a case returned, against eager NumPy."""
    for value, truth in zip(parts(found), parts(CASES[name](fresh(), X, EPS, t)), strict=True):
        np.testing.assert_allclose(library.host(value), truth, rtol=ROUNDING, atol=ROUNDING)


@pytest.fixture
def arrays(differentiable: Library) -> tuple[Any, Any]:
    return differentiable.array(X), differentiable.array(EPS)


def transforms(library: Library) -> Any:
    """The module of the library's function transformations."""
    return importlib.import_module("jax" if library.name == "jax" else "torch.func")


def placed(library: Library, t: Any) -> Any:
    return library.array(t) if isinstance(t, np.ndarray) else t


@calls(torch=FEW, jax=FEW)
def test_compiled_from_the_first_call(differentiable: Library, arrays: Any, name: str, t: Any) -> None:
    d, case, steps = fresh(), CASES[name], placed(differentiable, t)
    if differentiable.name == "jax":
        import jax

        found = jax.jit(lambda x, y: case(d, x, y, steps))(*arrays)
        if isinstance(t, np.ndarray):
            check(differentiable, jax.jit(lambda x, y, t: case(d, x, y, t))(*arrays, steps), name, t)
    else:
        import torch

        torch._dynamo.reset()
        found = torch.compile(partial(case, d), backend="eager", fullgraph=True)(*arrays, steps)
    check(differentiable, found, name, t)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # Torch's own, of its forward mode
@calls(torch=CALLS, jax=FEW[:1])
def test_forward_and_reverse_mode_agree(differentiable: Library, arrays: Any, name: str, t: Any) -> None:
    """<u, J v> = <J^T u, v>, where J is the derivative with respect to both arrays."""
    d, steps, module = fresh(), placed(differentiable, t), transforms(differentiable)

    def f(x: Any, y: Any) -> Any:
        return sum((part**2).sum() for part in parts(CASES[name](d, x, y, steps)))

    def both(x: Any, y: Any) -> Any:
        value, forward = module.jvp(f, (x, y), (x, y))
        gradients = module.vjp(f, x, y)[1](value / value)
        return forward, (gradients[0] * x).sum() + (gradients[1] * y).sum()

    forward, reverse = (module.jit(both) if differentiable.name == "jax" else both)(*arrays)
    assert float(forward) == pytest.approx(float(reverse), rel=1e-10)
    check(differentiable, CASES[name](d, *arrays, steps), name, t)


@calls(torch=CALLS, jax=FEW[:1])
def test_mapped_over_the_samples(differentiable: Library, arrays: Any, name: str, t: Any) -> None:
    d, steps = fresh(), differentiable.array(np.broadcast_to(t, len(X)))
    mapped = transforms(differentiable).vmap(lambda x, y, t: CASES[name](d, x[None], y[None], t))(*arrays, steps)
    truth = parts(CASES[name](fresh(), X, EPS, np.broadcast_to(t, len(X))))
    for value, expected in zip(parts(mapped), truth, strict=True):
        np.testing.assert_allclose(differentiable.host(value).reshape(expected.shape), expected, rtol=ROUNDING, atol=ROUNDING)


def test_a_compiled_function_belongs_to_its_chain() -> None:
    torch = pytest.importorskip("torch")
    compiled = torch.compile(lambda d, x: d.q(x, 3).mean, backend="eager", fullgraph=True)
    for k in range(1, 7):
        d = Diffusion(schedules.constant(5, k / 10))  # each takes the place in memory of one that is gone
        np.testing.assert_allclose(compiled(d, torch.ones(1, 1)), (1 - k / 10) ** 1.5, rtol=1e-6)


@pytest.mark.slow
def test_compiled_to_machine_code() -> None:
    """A minute each: Torch's own compiler writes and builds C++."""
    torch = pytest.importorskip("torch")
    d, a, b = Diffusion(), torch.ones(2, 3), torch.zeros(2, 3)
    assert torch.compile(lambda a, b: d.posterior(a, b, 500).kl(d.q(b, 499)).sum())(a, b) == pytest.approx(13.8111, abs=5e-5)
    x, y = torch.tensor(X, requires_grad=True), torch.tensor(EPS)

    def loss(x: Any, y: Any, t: Any) -> Any:
        return losses.vlb(d, Denoiser(half), x, t, y).sum()

    found, truth = (torch.autograd.grad(f(x, y, torch.tensor(STEPS)), x)[0] for f in (torch.compile(loss, fullgraph=True), loss))
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=0.0)


def test_reverse_process_in_one_scan() -> None:
    jax = pytest.importorskip("jax")
    d, model, z = fresh(), Denoiser(half), np.random.default_rng(1).normal(size=(T, *X.shape))
    state = X
    for k, t in enumerate(range(T, 0, -1)):
        state = model.p(d, state, t).sample(z[k])
    new, plan = fresh(), jax.numpy.arange(T, 0, -1)
    found, _ = jax.jit(lambda x, z: jax.lax.scan(lambda x, tz: (model.p(new, x, tz[0]).sample(tz[1]), None), x, (plan, z)))(X, z)
    np.testing.assert_allclose(found, state, rtol=ROUNDING, atol=ROUNDING)


def test_a_gaussian_is_a_pytree_of_jax() -> None:
    jax = pytest.importorskip("jax")
    x, d = jax.numpy.asarray(X), fresh()
    for g, leaves in ((Gaussian(x, -1.0), 1), (Gaussian(x, 0 * x), 2)):
        assert len(jax.tree.leaves(g)) == leaves
        assert jax.jit(lambda g: g)(g) == g == jax.tree.map(lambda leaf: leaf, g)
        np.testing.assert_allclose(jax.vmap(lambda g: g.log_prob(x[0]))(g), g.log_prob(x[:1]), rtol=ROUNDING)
    assert type(jax.jit(lambda x: d.q(x, 3))(x).log_var) is float
    mapped = jax.vmap(lambda x, t: d.q(x, t))(x, jax.numpy.asarray(STEPS))
    np.testing.assert_allclose(mapped.mean, d.q(X, np.array(STEPS)).mean, rtol=ROUNDING)
