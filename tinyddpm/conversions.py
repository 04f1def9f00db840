"""Conversions between what networks predict: each is one linear map ``target = a * source + b * x_t``.

With a_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t), x_t = a_t x_0 + sigma_t eps [Ho eq. 4]. The kinds are x_0; eps;
v = a_t eps - sigma_t x_0; score = -eps / sigma_t; and mu = w_x0 x_0 + w_xt x_t, the posterior's mean at s = t - 1 [Ho eq. 7].
Each pair is written in the closed form that cancels nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import one_of

if TYPE_CHECKING:
    from tinyddpm.diffusion import Diffusion

__all__ = ["KINDS", "tables"]

KINDS = ("eps", "x0", "mu", "v", "score")

Table = NDArray[np.float64]


class _Tables(NamedTuple):
    a: Any  # sqrt(alpha_bar)
    sigma: Any  # sqrt(1 - alpha_bar)
    r: Any  # sqrt(alpha)
    beta: Any
    w_x0: Any
    w_xt: Any


_FORMS: dict[tuple[str, str], Callable[[_Tables], tuple[Any, Any]]] = {
    ("x0", "eps"): lambda c: (-c.a / c.sigma, 1 / c.sigma),
    ("x0", "mu"): lambda c: (c.w_x0, c.w_xt),
    ("x0", "v"): lambda c: (-1 / c.sigma, c.a / c.sigma),
    ("x0", "score"): lambda c: (c.a / c.sigma**2, -1 / c.sigma**2),
    ("eps", "x0"): lambda c: (-c.sigma / c.a, 1 / c.a),
    ("eps", "mu"): lambda c: (-c.beta / (c.sigma * c.r), 1 / c.r),
    ("eps", "v"): lambda c: (1 / c.a, -c.sigma / c.a),
    ("eps", "score"): lambda c: (-1 / c.sigma, None),
    ("mu", "x0"): lambda c: (1 / c.w_x0, -c.w_xt / c.w_x0),
    ("mu", "eps"): lambda c: (-c.sigma * c.r / c.beta, c.sigma / c.beta),
    ("mu", "v"): lambda c: (-1 / (c.sigma * c.w_x0), (c.a + c.w_xt / c.w_x0) / c.sigma),
    ("mu", "score"): lambda c: (c.r / c.beta, -1 / c.beta),
    ("v", "x0"): lambda c: (-c.sigma, c.a),
    ("v", "eps"): lambda c: (c.a, c.sigma),
    ("v", "mu"): lambda c: (-c.w_x0 * c.sigma, c.w_x0 * c.a + c.w_xt),
    ("v", "score"): lambda c: (-c.a / c.sigma, np.full_like(c.a, -1.0)),
    ("score", "x0"): lambda c: (c.sigma**2 / c.a, 1 / c.a),
    ("score", "eps"): lambda c: (-c.sigma, None),
    ("score", "mu"): lambda c: (c.beta / c.r, 1 / c.r),
    ("score", "v"): lambda c: (-c.sigma / c.a, -c.sigma / c.a),
}


def tables(d: Diffusion, source: str, target: str) -> tuple[Table, Table | None]:
    """(a, b) for t = 0..T, NaN where the conversion does not exist; b is None where x_t has no part."""
    for name, kind in (("source", source), ("target", target)):
        one_of(name, kind, KINDS)
    c = _Tables(*(x[1:] for x in (
        d.sqrt_alpha_bar, d.sqrt_one_minus_alpha_bar, np.sqrt(d.alpha), d.beta, d.weights.w_x0, d.weights.w_xt)))  # fmt: skip
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        a, b = (np.ones(d.T), None) if source == target else _FORMS[source, target](c)
    exists = np.isfinite(a) & (True if b is None else np.isfinite(b))
    a = np.append(np.nan, np.where(exists, a, np.nan))
    return a, b if b is None else np.append(np.nan, np.where(exists, b, np.nan))
