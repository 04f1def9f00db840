"""Plans: strictly decreasing steps from T to 0, one pair (t, s) for each reverse step.

A spacing chooses a plan of a given length. Each takes the table of log-SNR, whose length is T + 1, and the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from tinyddpm._arrays.check import as_int, as_list, lookup
from tinyddpm._arrays.namespace import Table

__all__ = ["SPACINGS", "Spacing", "checked", "chosen", "even", "log_snr", "quadratic", "spaced"]

Spacing = Literal["even", "quadratic", "log_snr"]


def even(table: Table, steps: int) -> tuple[int, ...]:
    """Gaps that differ by at most 1.

    Parameters
    ----------
    table : float64 array (T + 1,)
        ``Diffusion.log_snr``.
    steps : int
        The number of steps, in 1..T.

    Returns
    -------
    tuple of int
        ``steps + 1`` strictly decreasing entries from T to 0.

    Examples
    --------
    >>> from tinyddpm import Diffusion
    >>> even(Diffusion().log_snr, 4)
    (1000, 750, 500, 250, 0)
    """
    T = len(table) - 1
    return tuple(T * k // steps for k in range(steps, -1, -1))


def quadratic(table: Table, steps: int) -> tuple[int, ...]:
    """T (k / steps)^2 rounded to whole steps, moved up where two would coincide: denser near the data.

    Parameters
    ----------
    table : float64 array (T + 1,)
        ``Diffusion.log_snr``.
    steps : int
        The number of steps, in 1..T.

    Returns
    -------
    tuple of int
        ``steps + 1`` strictly decreasing entries from T to 0.

    Examples
    --------
    >>> from tinyddpm import Diffusion
    >>> quadratic(Diffusion().log_snr, 4)
    (1000, 563, 250, 63, 0)
    """
    T, plan = len(table) - 1, [0]
    for k in range(1, steps + 1):
        plan.append(max(plan[-1] + 1, (2 * T * k * k + steps * steps) // (2 * steps * steps)))
    return tuple(reversed(plan))


def log_snr(table: Table, steps: int) -> tuple[int, ...]:
    """Gaps in log-SNR as even as whole steps allow.

    From t = 1 to the last step of nonzero SNR, each entry is the one nearest to an even share of the log-SNR that is left.

    Parameters
    ----------
    table : float64 array (T + 1,)
        ``Diffusion.log_snr``.
    steps : int
        The number of steps, in 1..T.

    Returns
    -------
    tuple of int
        ``steps + 1`` strictly decreasing entries from T to 0.

    Examples
    --------
    >>> from tinyddpm import Diffusion
    >>> log_snr(Diffusion().log_snr, 4)
    (1000, 604, 74, 1, 0)
    """
    T = len(table) - 1
    if steps == 1:
        return (T, 0)
    plan = [0, 1]
    last = T if np.isfinite(table[T]) or steps == 2 else T - 1
    for left in range(steps - 1 - (T - last), 0, -1):
        here = plan[-1]
        share = (table[here] - table[last]) / left if left > 1 else 0.0
        candidates = table[here + 1 : last - left + 2]  # each later entry needs a step of its own
        nearest = here + 1 + int(np.argmin(np.abs(candidates - (table[here] - share))))
        plan.append(last if left == 1 else nearest)
    return tuple(reversed(plan if last == T else [*plan, T]))


SPACINGS: dict[str, Callable[[Table, int], tuple[int, ...]]] = {"even": even, "quadratic": quadratic, "log_snr": log_snr}
"""The spacings by name."""


def spaced(table: Table, steps: int, spacing: Spacing = "even") -> tuple[int, ...]:
    """The plan of `steps` steps with this spacing, its arguments checked; see `Diffusion.timesteps`.

    Parameters
    ----------
    table : float64 array (T + 1,)
        ``Diffusion.log_snr``.
    steps : int
        The number of steps, in 1..T.
    spacing : {"even", "quadratic", "log_snr"}
        The spacing's name.

    Returns
    -------
    tuple of int
        ``steps + 1`` strictly decreasing entries from T to 0.

    Raises
    ------
    TypeError, ValueError, LookupError
        If `steps` is not an int in 1..T, or `spacing` not a known name.
    """
    return lookup("spacing", spacing, SPACINGS)(table, as_int("steps", steps, 1, len(table) - 1))  # type: ignore[no-any-return]


def checked(timesteps: Iterable[int], T: int) -> tuple[int, ...]:
    """A caller's plan as a tuple of ints.

    Parameters
    ----------
    timesteps : iterable of int
        Strictly decreasing, from at most T to 0.
    T : int
        The chain's number of steps.

    Returns
    -------
    tuple of int
        The plan, of at least two entries.

    Raises
    ------
    TypeError, ValueError
        If `timesteps` is not such a plan.

    Examples
    --------
    >>> import numpy as np
    >>> checked(np.array([10, 4, 0]), 10)
    (10, 4, 0)
    """
    plan = tuple(as_int("timesteps", t, 0, T) for t in as_list("timesteps", timesteps, empty=True))
    if len(plan) < 2 or plan[-1] != 0:
        raise ValueError(f"timesteps must have at least two entries and end at 0, got {_short(plan)}")
    for t, s in zip(plan, plan[1:], strict=False):
        if s >= t:
            raise ValueError(f"timesteps must be strictly decreasing, got {t} followed by {s}")
    return plan


def chosen(
    table: Table, steps: int | None, timesteps: Iterable[int] | None, spacing: Spacing | None = None, *,
    default: Spacing = "even", started: bool = False,
) -> tuple[int, ...]:  # fmt: skip
    """The plan that a caller's options name: `timesteps` itself, or else `steps` steps from T.

    Parameters
    ----------
    table : float64 array (T + 1,)
        ``Diffusion.log_snr``.
    steps : int, optional
        The number of steps. Default: T.
    timesteps : iterable of int, optional
        The plan itself, instead of `steps` and `spacing`.
    spacing : {"even", "quadratic", "log_snr"}, optional
        The spacing of fewer than T steps. Default: `default`.
    default : {"even", "quadratic", "log_snr"}
        The spacing that is used if the caller names none.
    started : bool
        Whether the caller has the state at the plan's first step, which may then be below T.

    Returns
    -------
    tuple of int
        Strictly decreasing entries that end at 0.

    Raises
    ------
    TypeError, ValueError, LookupError
        If an option is wrong, or if both ways to name a plan are used.
    """
    T = len(table) - 1
    if timesteps is None:
        return spaced(table, T if steps is None else steps, default if spacing is None else spacing)
    for name, option in (("steps", steps), ("spacing", spacing)):
        if option is not None:
            raise ValueError(f"{name} must be left out if timesteps is given")
    plan = checked(timesteps, T)
    if plan[0] != T and not started:
        raise ValueError(f"timesteps must start at T = {T}, or where a state x_T is given, got {plan[0]}")
    return plan


def _short(plan: tuple[int, ...]) -> str:
    return str(plan) if len(plan) <= 8 else f"({', '.join(map(str, plan[:3]))}, ..., {plan[-1]})"
