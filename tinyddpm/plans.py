"""Plans: strictly decreasing steps from T to 0, one pair (t, s) for each reverse move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from tinyddpm._arrays.check import as_int

if TYPE_CHECKING:
    from tinyddpm.diffusion import Diffusion

__all__ = ["SPACINGS", "checked", "chosen", "even", "log_snr", "quadratic"]


def even(d: Diffusion, steps: int) -> tuple[int, ...]:
    """Gaps that differ by at most 1."""
    return tuple(d.T * k // steps for k in range(steps, -1, -1))


def quadratic(d: Diffusion, steps: int) -> tuple[int, ...]:
    """T (k / steps)^2 to the nearest whole step, moved up where two would coincide."""
    plan = [0]
    for k in range(1, steps + 1):
        plan.append(max(plan[-1] + 1, (2 * d.T * k * k + steps * steps) // (2 * steps * steps)))
    return tuple(reversed(plan))


def log_snr(d: Diffusion, steps: int) -> tuple[int, ...]:
    """From 1 to the last step of nonzero SNR each entry is the nearest to an even share of the log-SNR that is left."""
    if steps == 1:
        return (d.T, 0)
    plan = [0, 1]
    last = d.T if np.isfinite(d.log_snr[d.T]) or steps == 2 else d.T - 1
    moves = steps - 1 - (d.T - last)
    for left in range(moves, 0, -1):
        here = plan[-1]
        share = (d.log_snr[here] - d.log_snr[last]) / left if left > 1 else 0.0
        candidates = d.log_snr[here + 1 : last - left + 2]  # later entries need a step each
        target = d.log_snr[here] - share
        plan.append(last if left == 1 else here + 1 + int(np.argmin(np.abs(candidates - target))))
    return tuple(reversed(plan if last == d.T else [*plan, d.T]))


SPACINGS = {"even": even, "quadratic": quadratic, "log_snr": log_snr}


def checked(timesteps: Iterable[int], T: int) -> tuple[int, ...]:
    """The plan as a tuple of ints: strictly decreasing from at most T to 0, at least one move."""
    try:
        given = list(timesteps)
    except TypeError:
        raise TypeError(f"timesteps must be a sequence of ints, got {type(timesteps).__name__}") from None
    plan = tuple(as_int("timesteps", t, 0, T) for t in given)
    if len(plan) < 2 or plan[-1] != 0:
        raise ValueError(f"timesteps: a plan has at least one move and ends at 0, not {_short(plan)}")
    for t, s in zip(plan, plan[1:], strict=False):
        if s >= t:
            raise ValueError(f"timesteps: must be strictly decreasing, but {t} is followed by {s}")
    return plan


def chosen(
    d: Diffusion, steps: int | None, timesteps: Iterable[int] | None, spacing: str = "even", *, started: bool = False
) -> tuple[int, ...]:
    """The plan that a caller's options name: `timesteps` itself, or else `steps` moves from T, by default all.

    Where the caller has the state at the plan's first step (`started`) that may be below T.
    """
    if timesteps is None:
        return d.timesteps(d.T if steps is None else steps, spacing)
    if steps is not None:
        raise ValueError("steps: give either steps or timesteps, not both")
    if spacing != "even":
        raise ValueError("spacing: give either spacing or timesteps, not both")
    plan = checked(timesteps, d.T)
    if plan[0] != d.T and not started:
        raise ValueError(f"timesteps: a plan from {plan[0]}, below T = {d.T}, needs x_T, the state there")
    return plan


def _short(plan: tuple[int, ...]) -> str:
    return str(plan) if len(plan) <= 8 else f"({', '.join(map(str, plan[:3]))}, ..., {plan[-1]})"
