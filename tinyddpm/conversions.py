"""Conversions between what networks predict; each is one linear map ``target = a * source + b * x_t``.

With a_t = sqrt(alpha_bar_t) and sigma_t = sqrt(1 - alpha_bar_t), x_t = a_t x_0 + sigma_t eps [Ho eq. 4]. The kinds are:

- ``x0`` and ``eps`` themselves;
- ``v`` = a_t eps - sigma_t x_0 [Salimans & Ho 2022];
- ``score`` = -eps / sigma_t, the gradient of log q(x_t | x_0);
- ``mu`` = w_x0 x_0 + w_xt x_t, the posterior's mean at s = t - 1 [Ho eq. 7].

Each pair is written in the closed form that cancels nothing. `Diffusion.convert` applies them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from tinyddpm._arrays.check import one_of
from tinyddpm._arrays.namespace import Table

__all__ = ["KINDS", "Coefficients", "Kind", "tables"]

Kind = Literal["eps", "x0", "mu", "v", "score"]
"""What a network may predict."""
KINDS: tuple[Kind, ...] = get_args(Kind)


class Coefficients(NamedTuple):
    """The tables that conversions are made of, float64 arrays (T + 1,) indexed by t; entry 0 is not read."""

    a: Table
    """sqrt(alpha_bar_t)."""
    sigma: Table
    """sqrt(1 - alpha_bar_t)."""
    r: Table
    """sqrt(alpha_t)."""
    beta: Table
    """beta_t."""
    w_x0: Table
    """Weight of x_0 in the posterior's mean."""
    w_xt: Table
    """Weight of x_t in the posterior's mean."""


_FORMS: dict[tuple[str, str], Callable[[Coefficients], tuple[Any, Any]]] = {
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


def tables(coefficients: Coefficients, source: Kind, target: Kind) -> tuple[Table, Table | None]:
    """Tables (a, b) of ``target = a * source + b * x_t``.

    Parameters
    ----------
    coefficients : Coefficients
        The chain's tables; `Diffusion.conversion` supplies them.
    source, target : {"eps", "x0", "mu", "v", "score"}
        What is given and what is wanted.

    Returns
    -------
    a, b : float64 array (T + 1,)
        NaN at t = 0 and at steps where the conversion does not exist, e.g. x_0 from eps at alpha_bar_t = 0. `b` is None
        if x_t has no part in it.

    Raises
    ------
    LookupError
        If `source` or `target` is not a known kind.

    Examples
    --------
    >>> from tinyddpm import Diffusion
    >>> a, b = Diffusion([0.36]).conversion("eps", "x0")  # x_0 = (x_t - 0.6 eps) / 0.8
    >>> a.round(4).tolist(), b.round(4).tolist()
    ([nan, -0.75], [nan, 1.25])
    """
    for name, kind in (("source", source), ("target", target)):
        one_of(name, kind, KINDS)
    c = Coefficients(*(table[1:] for table in coefficients))
    with np.errstate(all="ignore"):
        a, b = (np.ones_like(c.a), None) if source == target else _FORMS[source, target](c)
    exists = np.isfinite(a) & (True if b is None else np.isfinite(b))
    a = np.append(np.nan, np.where(exists, a, np.nan))
    return a, b if b is None else np.append(np.nan, np.where(exists, b, np.nan))
