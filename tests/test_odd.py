"""Odd configurations, many: each gives numbers or an error that names an argument, never a crash or a silent NaN."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import _library

from tinyddpm import Denoiser, Diffusion, Gaussian, edit, likelihood, losses, samplers
from tinyddpm._arrays.namespace import array_namespace, quietly
from tinyddpm.conversions import KINDS

BETAS = (1e-300, 1e-17, 1e-8, 1e-3, 0.1, 0.5, 0.99, 1 - 1e-10, 1 - 1e-16)
SHAPES = ((1, 1), (2, 1), (0, 2), (2, 0), (3,), (1, 2, 2), (2, 2, 1), (2, 1, 2, 2), (1, 2, 1, 1, 1))
DTYPES = {"numpy": ("float16", "float32", "float64"), "torch": ("float16", "bfloat16", "float32", "float64"),
          "strict": ("float32", "float64")}  # fmt: skip
VARIANCES = ("beta", "beta_tilde", "learned", "learned_range", "table", "pixels")
NAMED = r"^(t|s|x0|x_t|d|net|predicts|sampler|steps|dtype|denoiser|variance|levels|terms|timesteps|data|eta|x_T|shape)\b"


class Case:
    """One configuration, a function of its number."""

    def __init__(self, number: int) -> None:
        rng = self.rng = np.random.default_rng(number)
        beta = rng.choice(BETAS, rng.integers(1, 8))
        if rng.random() < 0.2:
            beta[-1] = 1.0
        self.d = Diffusion(beta)
        self.library = _library(str(rng.choice(["numpy", "numpy", "torch", "strict"])))
        self.dtype = str(rng.choice(DTYPES[self.library.name]))
        self.shape = SHAPES[rng.integers(len(SHAPES))]
        self.variance = str(rng.choice(VARIANCES[: 6 if len(self.shape) > 1 else 2]))
        self.kind = KINDS[rng.integers(len(KINDS))]
        self.t, self.int_t = int(rng.integers(1, self.d.T + 1)), rng.random() < 0.5
        self.x0, self.eps = (self.array(f(size=self.shape)) for f in (lambda size: rng.uniform(-1, 1, size), rng.normal))
        scale = float(rng.choice([0.0, 0.5, -2.0]))
        learned, xp = self.variance.startswith("learned"), array_namespace(self.x0)
        tables = {"table": rng.uniform(0, 1, self.d.T + 1), "pixels": rng.uniform(0, 1, (self.d.T + 1, *self.shape[1:]))}
        self.denoiser = Denoiser(
            quietly((lambda x, t: xp.concat([scale * x, 0.1 * x], axis=1)) if learned else (lambda x, t: scale * x)),
            self.kind,
            tables.get(self.variance, self.variance),  # type: ignore[arg-type]
            clip_x0=bool(rng.random() < 0.5),
        )

    def array(self, values: Any) -> Any:
        return self.library.array(np.asarray(values), self.dtype)

    def steps(self) -> Any:
        """The step as an int, or one for each sample."""
        return self.t if self.int_t else self.library.array(self.rng.integers(1, self.d.T + 1, self.shape[0]))


def gaussian(g: Gaussian) -> list[Any]:
    return [g.mean, g.var]


def sampled(c: Case) -> list[Any]:
    sampler: Any = c.rng.choice(list(samplers.NAMES)).item()
    steps = int(c.rng.integers(1, c.d.T + 1))
    return [c.d.sample(c.denoiser, c.shape, sampler=sampler, steps=steps, backend=c.library.name, dtype=c.dtype)]


def bound(c: Case) -> list[Any]:
    found = likelihood.vlb(c.d, c.denoiser, c.x0, decoder=str(c.rng.choice(["exact", "ho2020", "density"])))  # type: ignore[arg-type]
    return [found.prior, found.kl, found.decoder]


USES: dict[str, Callable[[Case], list[Any]]] = {
    "q": lambda c: [*gaussian(c.d.q(c.x0, c.steps())), c.d.q_sample(c.x0, c.steps(), c.eps)],
    "q_between": lambda c: gaussian(c.d.q_between(c.x0, int(c.rng.integers(0, c.t)), c.t)),
    "posterior": lambda c: gaussian(c.d.posterior(c.x0, c.eps, c.t, int(c.rng.integers(0, c.t)))),
    "kl": lambda c: [c.d.posterior(c.x0, c.eps, c.steps()).kl(c.d.posterior(c.eps, c.eps, c.t))],
    "decoder": lambda c: [c.d.q(c.eps, c.t).discretized_log_prob(c.x0, int(c.rng.choice([2, 256, 65_536])))],
    "convert": lambda c: [c.d.convert(c.x0, c.eps, c.steps(), c.kind, KINDS[c.rng.integers(len(KINDS))])],
    "x0": lambda c: [c.denoiser.x0(c.d, c.eps, c.steps()), c.denoiser.eps(c.d, c.eps, c.steps())],
    "p": lambda c: gaussian(c.denoiser.p(c.d, c.eps, c.steps())),
    "p, longer": lambda c: gaussian(c.denoiser.p(c.d, c.eps, c.t, int(c.rng.integers(0, c.t)))),
    "simple": lambda c: [losses.simple(c.d, c.denoiser, c.x0, c.steps(), c.eps)],
    "vlb": lambda c: [losses.vlb(c.d, c.denoiser, c.x0, c.steps(), c.eps)],
    "hybrid": lambda c: [losses.hybrid(c.d, c.denoiser, c.x0, c.steps(), c.eps, decoder="density")],
    "weighted": lambda c: [losses.weighted(c.d, c.denoiser, c.x0, c.steps(), c.eps, str(c.rng.choice(["snr", "min_snr", "p2"])))],  # type: ignore[arg-type]
    "sample": sampled,
    "bound": bound,
    "optimal_variance": lambda c: [likelihood.optimal_variance(c.d, c.denoiser, c.x0)[1:]],
    "invert": lambda c: [edit.invert(c.d, c.denoiser, c.x0, steps=c.d.T)],
}


@np.errstate(all="raise")
def odd(use: str, number: int) -> None:
    c = Case(number)
    try:
        found = USES[use](c)
    except (ValueError, TypeError, NotImplementedError) as error:
        if not re.search(NAMED, str(error)):
            raise
        return
    for value in found:
        host = value if isinstance(value, float | np.ndarray) else c.library.host(value)
        assert not np.isnan(host).any(), (use, number)


pytestmark = pytest.mark.filterwarnings("ignore:dtype bfloat16 rounds the state:UserWarning")  # which sampling in it says


@pytest.mark.parametrize("use", USES)
def test_odd_configurations(use: str) -> None:
    for number in range(20):
        odd(use, number)


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_a_thousand_odd_configurations(use: str) -> None:
    for number in range(1000):
        odd(use, number)
