"""Hypothesis strategies for chains, steps and data."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyddpm import Diffusion, schedules
from tinyddpm.analytic import GaussianData, MixtureData
from tinyddpm.denoiser import Net

MIXTURE = MixtureData([0.5, 0.3, 0.2], [[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], [[0.02, 0.05], [0.04, 0.02], [0.03, 0.03]])

_betas = st.floats(1e-12, 0.999)
_any_beta = st.lists(_betas, min_size=1, max_size=40).map(np.array)
_named = st.builds(
    lambda name, T: getattr(schedules, name)(T),
    st.sampled_from(["linear", "quadratic", "geometric", "cosine", "jsd"]),
    st.integers(1, 60),
)
_zero_terminal = _any_beta.map(lambda beta: np.append(beta, 1.0))

betas = st.one_of(_any_beta, _named, _zero_terminal)
"""Betas of every accepted sort: any, by name, and with beta_T = 1."""

diffusions = betas.map(Diffusion)

smooth_diffusions = st.builds(
    lambda name, T: Diffusion(getattr(schedules, name)(T)),
    st.sampled_from(["linear", "quadratic", "geometric", "cosine"]),
    st.integers(2, 200),
)
"""Chains as people use them, on which rounding errors stay small."""


@st.composite
def pairs(draw: Any, d: Diffusion) -> tuple[int, int]:
    """A move (t, s), T >= t > s >= 0."""
    t = draw(st.integers(1, d.T))
    return t, draw(st.integers(0, t - 1))


@st.composite
def plans(draw: Any, T: int) -> tuple[int, ...]:
    """A plan from T to 0."""
    inner = draw(st.sets(st.integers(1, T - 1), max_size=T - 1)) if T > 1 else set()
    return (T, *sorted(inner, reverse=True), 0)


def batch(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Normal data of this shape."""
    return np.random.default_rng(seed).standard_normal(shape)


def v_net(d: Diffusion, data: GaussianData) -> Net:
    """E[x_0 | x_t] in closed form as a prediction of v, which exists at alpha_bar = 0 too, where eps says nothing of x_0."""

    def net(x_t: Any, t: Any) -> Any:
        a, left = (c[t][:, None] for c in (d.sqrt_alpha_bar, d.one_minus_alpha_bar))
        x0 = data.mean + a * data.var / (a**2 * data.var + left) * (x_t - a * data.mean)
        return d.convert(x0.astype(x_t.dtype), x_t, t, "x0", "v")

    return net
