"""The start of a DDIM step from its end, by fixed-point iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tinyddpm._arrays.namespace import Array, on_host
from tinyddpm._network.nets import refuse_nonfinite
from tinyddpm._process import Process
from tinyddpm.backends import Row
from tinyddpm.denoiser import Denoiser


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
