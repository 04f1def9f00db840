"""The variance of p(x_s | x_t): fixed, learned, or a table."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from tinyddpm._arrays.namespace import Array, Table, array_like
from tinyddpm._arrays.steps import Named, column, gather, number
from tinyddpm._numerics.tables import Tables

Variance = Literal["beta", "beta_tilde", "learned", "learned_range"]
LEARNED = ("learned", "learned_range")
NAMES = ("beta", "beta_tilde", *LEARNED)


def fixed_log_var(d: Tables, kind: str, t: Any, s: Any, x: Array, xp: Any) -> Any:
    """log of "beta" or "beta_tilde" of the step (t, s); at t = 1 both are beta_tilde_2 [Ho]."""
    (log_var,) = d._step_weights(t, s, x, xp, f"log_{kind}")
    return _but_at_first(d, log_var, t, x, xp)


def interpolated_log_var(d: Tables, fraction: Array, t: Any, s: Any, x: Array, xp: Any) -> Array:
    """log var = (1 + v)/2 log beta + (1 - v)/2 log beta_tilde for v in [-1, 1] [iDDPM eq. 15].

    A longer step into s = 0 has beta_tilde = 0, so no lower end to interpolate from; there both ends are beta.
    """
    low, high = d._step_weights(t, s, x, xp, "log_beta_tilde", "log_beta")
    low = _but_at_first(d, low, t, x, xp)
    missing = low == -math.inf
    low = (high if missing else low) if isinstance(low, float) else xp.where(missing, high, low)
    return low + (1 + fraction) / 2 * (high - low)


def _but_at_first(d: Tables, log_var: Any, t: Any, x: Array, xp: Any) -> Any:
    """The log of a fixed variance, which at t = 1 is log beta_tilde_2."""
    first = number(d, "_log_first_var")
    if isinstance(t, int):
        return first if t == 1 else log_var
    return xp.where(column(t == 1, x, xp), array_like(first, x, xp), log_var)


def table_log_var(table: Named, T: int, t: Any, s: Any, x: Array, xp: Any) -> Any:
    """log of a caller's table at t, for steps s = t - 1 only; NaN where a device's (t, s) is a longer step."""
    number(table.owner, _check_table, (table.table, T, tuple(x.shape[1:])))
    log_var = gather(table, t, x, xp)
    if s is None:
        return log_var
    single = s == t - 1
    if isinstance(s, int | np.ndarray) and isinstance(t, int | np.ndarray):
        if not (single if isinstance(t, int) and isinstance(s, int) else np.all(single)):
            raise ValueError("variance must be a name for longer steps than s = t - 1; a table is for those of its own "
                             "chain, and d.respaced(plan) makes the chain of a plan")  # fmt: skip
        return log_var
    return xp.where(column(single, x, xp), log_var, array_like(math.nan, x, xp))


def _check_table(owner: Any, name: str, T: int, shape: tuple[int, ...]) -> float:
    """Raise ValueError unless a table is of a chain of T steps and samples of this shape."""
    table = getattr(owner, name)
    if len(table) != T + 1:
        raise ValueError(f"variance must be a table of length T + 1 = {T + 1}, got {len(table)}")
    if table.ndim > 1 and table.shape[1:] != shape:
        raise ValueError(f"variance must be a table of shape (T + 1, *{shape}), got {table.shape}")
    return 0.0


def checked_table(variance: Any) -> Table:
    """A caller's table as read-only float64, shape (T + 1,) or (T + 1, *sample shape); entry 0 becomes NaN."""
    table = np.array(variance)
    if table.dtype.kind != "f" or table.ndim < 1 or len(table) < 2:
        raise TypeError(f"variance must be one of {', '.join(NAMES)}, or a float array (T + 1,) or (T + 1, *sample shape), "
                        f"got {type(variance).__name__}")  # fmt: skip
    table = table.astype(np.float64)
    if not np.all(table[1:] >= 0) or not np.all(np.isfinite(table[1:])):
        raise ValueError("variance must be finite and not negative at entries 1..T")
    table[0] = math.nan  # no step starts at 0
    table.flags.writeable = False
    return table
