"""Parts of edits: RePaint's walk along a plan, paths between two codes, and masks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from tinyddpm._arrays.namespace import Array, array_like, is_array_of, on_host
from tinyddpm._arrays.steps import check_host_steps
from tinyddpm._editing.inversion import inner


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


def checked_step(name: str, t: Any, T: int) -> int:
    """A step in 1..T, an int or an integer array of shape ()."""
    step = check_host_steps(name, t, 1, T)
    if not isinstance(step, int):
        raise TypeError(f"{name} must be an int, got an array of shape {step.shape}")
    return step


def check_finite(xp: Any, **arrays: Array) -> None:
    """Raise ValueError if the host sees that an array is not finite."""
    for name, x in arrays.items():
        if on_host(x) and not bool(xp.all(xp.isfinite(x))):
            raise ValueError(f"{name} must be finite, got NaN or infinity")


def checked_mask(mask: Array, known: Array, xp: Any) -> Array:
    """The mask as booleans of known's library, device and shape."""
    if isinstance(mask, np.ma.MaskedArray) or (not isinstance(mask, np.ndarray) and not is_array_of(xp, mask)):
        raise TypeError(f"mask must be a boolean array of known's library or NumPy, got {type(mask).__name__}")
    if mask.dtype != (np.dtype(bool) if isinstance(mask, np.ndarray) else xp.bool):
        raise TypeError(f"mask must be booleans (True is kept), got {mask.dtype}")
    if isinstance(mask, np.ndarray):
        mask = array_like(mask, known, xp, dtype=xp.bool)
    try:
        return xp.broadcast_to(mask, tuple(known.shape))
    except (ValueError, RuntimeError, TypeError):
        raise ValueError(f"mask must broadcast to known's shape {tuple(known.shape)}, got {tuple(mask.shape)}") from None
