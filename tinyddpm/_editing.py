"""What stands behind `tinyddpm.edit`: RePaint's walk, paths between images, the start of a DDIM step, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from tinyddpm._arrays.namespace import Array, adopted, on_host
from tinyddpm._network.nets import refuse_nonfinite
from tinyddpm._process import Process
from tinyddpm.backends import Row
from tinyddpm.denoiser import Denoiser


def walk(plan: tuple[int, ...], jump_length: int, resamplings: int) -> Iterator[tuple[int, int]]:
    """Pairs (from, to): down the plan in runs of `jump_length`, each made `resamplings` times with a jump back between."""
    for first in range(0, len(plan) - 1, jump_length):
        run = plan[first : first + jump_length + 1]
        for repeat in range(resamplings):
            if repeat:
                yield run[-1], run[0]
            yield from pairwise(run)


@np.errstate(all="ignore")
def linear(a: Array, b: Array, weight: float, xp: Any) -> Array:
    """On the line between a and b."""
    return (1 - weight) * a + weight * b


@np.errstate(all="ignore")
def spherical(a: Array, b: Array, weight: float, xp: Any) -> Array:
    """Along the great circle through the directions of a and b, each sample by itself; linear if they (anti)align."""
    norms = [xp.sqrt(inner(x, x, xp)) for x in (a, b)]
    u, v = (x / xp.where(norm > 0, norm, xp.ones_like(norm)) for x, norm in zip((a, b), norms, strict=True))
    apart, along = (xp.sqrt(inner(w, w, xp)) for w in (u - v, u + v))
    angle = 2 * xp.atan2(apart, along)
    sine = xp.sin(angle)
    curved = sine > 1e-4
    sine = xp.where(curved, sine, xp.ones_like(sine))
    w_a, w_b = (xp.where(curved, xp.sin(w * angle) / sine, xp.full_like(sine, w)) for w in (1 - weight, weight))
    return w_a * a + w_b * b


def check_finite(xp: Any, **arrays: Array) -> None:
    """Raise ValueError if the host sees that an array is not finite."""
    for name, x in arrays.items():
        if on_host(x) and not bool(xp.all(xp.isfinite(x))):
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def checked_mask(mask: Array, known: Array, xp: Any) -> Array:
    """The mask as booleans of known's library, device and shape."""
    given, mask = mask, adopted("mask", mask, known, xp)
    if mask.dtype != xp.bool:
        raise TypeError(f"mask must be booleans (True is kept), got {given.dtype}")
    try:
        return xp.broadcast_to(mask, tuple(known.shape))
    except (ValueError, RuntimeError, TypeError):
        raise ValueError(f"mask must broadcast to known's shape {tuple(known.shape)}, got {tuple(mask.shape)}") from None


def inverted(d: Process, denoiser: Denoiser, x: Array, rows: Iterable[Row], iterations: int, xp: Any) -> Array:
    """The state from which DDIM's rows, given from the last to the first, lead to x."""
    t = 0
    for row in rows:
        t = row.t
        x = fixed_point(inverse_step(d, denoiser, row, x, xp), x, iterations, xp)
        if on_host(x):
            refuse_nonfinite(xp, t, x)
    if not on_host(x):
        refuse_nonfinite(xp, t, x)
    return x


def inverse_step(d: Process, denoiser: Denoiser, row: Row, x_s: Array, xp: Any) -> Callable[[Array], Array]:
    """The map whose fixed point is x_t: the DDIM step x_s = w_xt x_t + w_x0 x_0(x_t) from there leads to x_s.

    The step is solved for the x_t that it multiplies. Near T, where x_t is mostly noise, x_0(x_t) hardly depends on x_t, so
    this contracts; near the data the same step with eps(x_t) in place of x_0(x_t) does.
    """
    t, s = row.t, row.s
    w_xt, w_x0 = row.state
    if s == 0 and d.alpha_bar[t] == 0:
        raise ValueError(f"timesteps must not step from t = {t}, where alpha_bar is 0, to 0: nothing of x_t would be kept")

    def x0(x_t: Array) -> Array:
        return denoiser.x0_from(d, call_finite(d, denoiser, x_t, t, xp)[0], x_t, t, xp)

    if s > 0 and d.alpha_bar[t] < 0.5:
        return lambda x_t: x_s / w_xt - (w_x0 / w_xt) * x0(x_t)
    w_xs, a_t, left = d.between_weights(t, s)[0], float(d.sqrt_alpha_bar[t]), w_x0 / float(d.sqrt_alpha_bar[s])
    return lambda x_t: w_xs * x_s + left * (x_t - a_t * x0(x_t))  # sigma_t eps, also where sigma_t is 0 in x_t's dtype


def call_finite(d: Process, denoiser: Denoiser, x_t: Array, t: int, xp: Any) -> tuple[Array, Array | None]:
    """The network's output; ValueError if the host sees that it is not finite, which clipping would hide."""
    value, raw = denoiser.call(d, x_t, t, xp)
    if on_host(value):
        refuse_nonfinite(xp, t, value, raw)
    return value, raw


def fixed_point(step: Callable[[Array], Array], x: Array, iterations: int, xp: Any) -> Array:
    """x = step(x) after as many calls, with Anderson's acceleration (depth 3), each sample (axis 0) by itself.

    Of the last changes of the residual, made orthogonal to each other, as much is taken away as the residual holds of them.
    """
    value = step(x)
    residual, changes = value - x, list[tuple[Array, Array]]()
    x = value
    rounding = (64 * xp.finfo(x.dtype).eps) ** 2
    for _ in range(iterations - 1):
        last_value, last_residual = value, residual
        value = step(x)
        residual = value - x
        change, along = residual - last_residual, value - last_value
        for earlier, of_value in changes[-2:]:
            part = inner(change, earlier, xp)
            change, along = change - part * earlier, along - part * of_value
        size = inner(change, change, xp)
        # Else it is left out: the quotient would be of rounding errors.
        clear = (size > 1e-4 * inner(residual, residual, xp)) & (size > rounding * inner(value, value, xp))
        scale = xp.where(clear, 1 / xp.sqrt(xp.where(clear, size, xp.ones_like(size))), xp.zeros_like(size))
        changes = [*changes[-2:], (change * scale, along * scale)]
        x = value
        for change, along in changes:
            x = x - inner(residual, change, xp) * along
    return x


def inner(x: Array, y: Array, xp: Any) -> Array:
    """The inner product of each sample, broadcasting against x."""
    return xp.sum(x * y, axis=tuple(range(1, x.ndim)), keepdims=True)
