"""The coefficients of a pair of steps (t, s), t > s, from log alpha_bar.

Each is computed from three logarithms, L_t, L_s and L_t - L_s, by exp and expm1. A quotient or a difference of alpha_bar would
lose every digit if alpha_bar is tiny.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.namespace import Array, array_like
from tinyddpm._arrays.steps import Named, Steps, column, gather
from tinyddpm._numerics import double
from tinyddpm._numerics.double import Double, half, one_minus_exp


class Weights(NamedTuple):
    """q(x_s | x_t, x_0) = N(w_x0 x_0 + w_xt x_t, beta_tilde I) and q(x_t | x_s) = N(w_xs x_s, beta I).

    The natural logarithms of the variances, which `Gaussian` takes, are -inf where a variance is 0.
    """

    w_x0: Any
    w_xt: Any
    beta_tilde: Any
    w_xs: Any
    beta: Any
    log_beta_tilde: Any
    log_beta: Any


@np.errstate(all="ignore")
def pair_weights(log_t: Double, log_s: Double, log_ts: Double, beta: Double | None = None) -> Weights:
    """The weights in float64, from log alpha_bar at t and at s, their difference, and beta_{t|s} if it is known; of one shape."""
    left_t, left_s = one_minus_exp(log_t), one_minus_exp(log_s)
    beta = one_minus_exp(log_ts) if beta is None else beta
    w_xs = double.exp(half(log_ts))
    kept = double.div(left_s, left_t)
    w_x0 = double.div(double.mul(double.exp(half(log_s)), beta), left_t)
    beta_tilde = double.mul(beta, kept).hi
    return Weights(w_x0.hi, double.mul(w_xs, kept).hi, beta_tilde, w_xs.hi, beta.hi, np.log(beta_tilde), np.log(beta.hi))


def pair_weights_on_device(d: Any, t: Steps, s: Steps, x: Array, xp: Any) -> Weights:
    """The weights if t or s is on a device, gathered there in x's precision; NaN unless 0 <= s < t <= T; `d` has the tables."""
    bits = 1 - round(math.log2(xp.finfo(x.dtype).eps))
    t_pieces, s_pieces = ([gather(Named(d, _piece, (k, bits)), u, x, xp) for k in range(3)] for u in (t, s))
    log_t, log_s = sum(t_pieces), sum(s_pieces)
    log_ts = sum(a - b for a, b in zip(t_pieces, s_pieces, strict=True))  # each difference is exact to its own size
    log_ts = xp.where(log_ts > 0, xp.zeros_like(log_ts), log_ts)
    valid, logs = column(t, x, xp) > column(s, x, xp), (array_like(a, x, xp) for a in (log_t, log_s, log_ts))
    log_t, log_s, log_ts = (xp.where(valid, a, xp.full_like(a, math.nan)) for a in xp.broadcast_arrays(*logs))
    left_t, left_s, beta = -xp.expm1(log_t), -xp.expm1(log_s), -xp.expm1(log_ts)
    w_x0, w_xs, kept = xp.exp(log_s / 2) * beta / left_t, xp.exp(log_ts / 2), left_s / left_t

    def log_of(var: Array) -> Array:
        positive = var > 0
        return xp.where(positive, xp.log(xp.where(positive, var, xp.ones_like(var))), xp.where(var == 0, -math.inf, var))

    return Weights(w_x0, w_xs * kept, beta * kept, w_xs, beta, log_of(beta * kept), log_of(beta))


def _piece(d: Any, k: int, bits: int) -> NDArray[np.float64]:
    """The k-th of three tables whose sum is log alpha_bar, each exact in a precision of so many bits."""
    rest, piece = d._log_alpha_bar, np.zeros(0)
    for _ in range(k + 1):
        mantissa, exponent = np.frexp(np.where(np.isfinite(rest.hi), rest.hi, 0.0))
        head = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
        piece = np.where(np.isfinite(rest.hi), head, rest.hi)
        rest = double.where(np.isfinite(rest.hi), double.sub(rest, double.double(head)), double.double(0.0))
    return piece
