"""The built-in backends, one module each; `tinyddpm.backends.get` finds them. None imports its library before it must."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tinyddpm.backends import BackendUnavailable

__all__ = ["counters", "depth", "host_array", "known", "load", "table"]


def load(module: str, remedy: str) -> Any:
    """Import `module`, or raise `BackendUnavailable` with the reason and the remedy."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may fail in any way
        raise BackendUnavailable(f"{module} does not import ({error}); {remedy}") from error


def known(argument: str, name: object, names: Iterable[str]) -> str:
    """`name`, or a `LookupError` that lists the known ones."""
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a name, got {type(name).__name__}")
    if name not in (names := tuple(names)):
        raise LookupError(f"{argument} must be one of {', '.join(names)}, got {name!r}")
    return name


def host_array(array: object) -> np.ndarray[Any, Any]:
    """A fresh C-ordered copy in native byte order: nothing that the caller may change later, or forbid us to."""
    own = np.asarray(array)
    if own.dtype.kind not in "biuf":
        raise TypeError(f"array must be a NumPy array of numbers, got {type(array).__name__} of {own.dtype}")
    return np.array(own, dtype=own.dtype.newbyteorder("="), order="C", copy=True)


def counters(index: np.ndarray[Any, Any], blocks: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The low and high words (uint64) of each sample's first Philox counter; NumPy's steps once before its first block."""
    first = [int(i) * blocks + 1 for i in index]
    return np.array([i % 2**64 for i in first], np.uint64), np.array([i >> 64 for i in first], np.uint64)


def depth(rows: Sequence[Any]) -> int:
    """How many predictions of x_0 a row's weights reach back over, the newest counted."""
    return max(len(weights) - 1 for row in rows for weights in (row.state, row.base or ()))


def table(rows: Sequence[Any], width: int) -> np.ndarray[Any, Any]:
    """The rows as one formula, for kernels that serve all of them, with room for `width` predictions.

    The columns weigh (the network's output, the state), the noise, then (base, newest x_0, older ones) for the new state, and
    (new state, base, newest x_0, older ones) for the new base.
    """

    def padded(weights: Sequence[float]) -> list[float]:
        return [*weights, *[0.0] * (width + 1 - len(weights))]

    def base(row: Any) -> list[float]:
        return [1.0, *padded(())] if row.base is None else [0.0, *padded(row.base)]

    return np.array([[*row.x0_from, row.std or 0.0, *padded(row.state), *base(row)] for row in rows])
