"""Noise as a pure function of (seed, sample, step): the same draw for any batch split, order, process or backend.

A sample of n elements owns ``nb = ceil(n/8)`` blocks of the counter-based generator Philox4x64-10 (Salmon et al., 2011),
those that NumPy's ``Philox(key=[seed, stream], counter=[index*nb, 0, step, 0])`` gives, `index*nb` carrying into the second
word. Read as 8*nb little-endian uint32, the first half b gives ``u = (b + 1/2) 2^-32``, the second half, as int32 c, gives
``angle = 2 pi c 2^-32``, and Box-Muller the normals ``sqrt(-2 log u) [cos(angle), sin(angle)]``, of which n are kept.

For one shape no two (seed, stream, step, index) share a block: seed and stream are the key, step and index*nb + j the
counter, and each has its own words. Draws of different shapes with the same seed, stream and step do overlap: give them
streams of their own. The period is 2^128 blocks a step; 2^64 samples of any size that fits in memory stay inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_int, one_of
from tinyddpm._arrays.namespace import dtype_name

__all__ = ["as_words", "like", "normal", "numbers"]

_WORD = 2**64


def normal(
    seed: int,
    index: Iterable[int],
    step: int,
    shape: Sequence[int],
    *,
    stream: int = 0,
    exact: bool = False,
    backend: str = "numpy",
    device: Any = None,
    dtype: str = "float32",
) -> backends.Array:
    """Standard normal noise of shape ``(len(index), *shape)``: row i is sample ``index[i]``'s at `step`.

    Parameters
    ----------
    seed, step, stream
        Ints in 0..2^64-1. Streams 0..4 are tinyddpm's own: sampling, likelihood, training, data synthesis, editing.
    index
        Sample numbers in 0..2^64-1: a range, a sequence of ints or a 1-d integer array. A contiguous run is fastest.
    shape
        One sample's shape.
    exact
        Draw on the host and move, for the same bits on every backend and device; else they agree within 2e-6.
    dtype
        "float64" and "float32" are the same draw within 2e-6 (1e-3 where sqrt(-2 log u) < 0.02, which float32 does not
        resolve); "float16" and "bfloat16" are the float32 draw, rounded.

    Raises `ValueError` or `TypeError` naming the argument, `LookupError` for an unknown name, `BackendUnavailable`.
    """
    return _drawing(seed, index, shape, stream, exact, backend, device, dtype)(step)


def like(x: backends.Array, seed: int, index: Sequence[int] | None, *, stream: int = 0) -> Callable[[int], backends.Array]:
    """``draw(step)``, the noise of a step in x's shape (n, ...), library, device and dtype, for those who need that of many.

    `index` holds n sample numbers, by default 0..n-1. What does not depend on the step is checked here, once.
    """
    from array_api_compat import device

    where = backends.of(x).name, device(x), dtype_name(x)
    return _drawing(seed, numbers(index, x.shape[0]), tuple(x.shape[1:]), stream, False, *where)


def numbers(index: Sequence[int] | None, n: int) -> Sequence[int]:
    """`index`, where it holds n sample numbers; by default 0..n-1."""
    index = range(n) if index is None else index
    if not hasattr(index, "__len__"):
        raise TypeError(f"index must be a sequence of ints, got {type(index).__name__}")
    if len(index) != n:
        raise ValueError(f"index must have {n} sample numbers, got {len(index)}")
    return index


def _drawing(
    seed: int, index: Iterable[int], shape: Sequence[int], stream: int, exact: bool, backend: str, device: Any, dtype: str
) -> Callable[[int], backends.Array]:
    """`normal` for all but the step."""
    seed, stream = as_int("seed", seed, 0, _WORD - 1), as_int("stream", stream, 0, _WORD - 1)
    sizes, rows = _sizes(shape), as_words(index)
    one_of("dtype", dtype, ("float16", "bfloat16", "float32", "float64"))
    if not isinstance(exact, bool | np.bool_):
        raise TypeError(f"exact must be a bool, got {type(exact).__name__}")
    there, host = backends.get(backend), backends.get("numpy")
    kind = "float64" if dtype == "float64" else "float32"

    def draw(step: int) -> backends.Array:
        step = as_int("step", step, 0, _WORD - 1)
        if there.normal is not None and not exact:
            drawn = there.normal(seed, rows, step, sizes, stream=stream, device=device, dtype=dtype)
            if drawn is not NotImplemented:
                return drawn
        drawn = cast(Any, host.normal)(seed, rows, step, sizes, stream=stream, device=None, dtype=kind)
        return there.from_numpy(drawn, dtype=dtype, device=device)

    return draw


def _sizes(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise TypeError(f"shape must be a sequence of ints, got {type(shape).__name__}")
    return tuple(as_int("shape", size, 0, 2**62) for size in shape)


def as_words(index: Any) -> np.ndarray[Any, Any]:
    """The sample numbers as a uint64 array, checked."""
    if isinstance(index, range) and index:
        for end in (index[0], index[-1]):
            as_int("index", end, 0, _WORD - 1)
        try:
            return np.uint64(index[0]) + np.arange(len(index), dtype=np.uint64) * np.uint64(index.step % _WORD)
        except (MemoryError, OverflowError, ValueError):
            raise ValueError(f"index: {index} is too long to allocate") from None
    if isinstance(index, str) or not isinstance(index, Iterable):
        raise TypeError(f"index must be a sequence of ints, got {type(index).__name__}")
    if hasattr(index, "shape"):
        try:
            array = np.asarray(index)
        except (TypeError, ValueError, RuntimeError):  # on a device, say
            raise TypeError(f"index must be a range, a list or a NumPy array, got {type(index).__name__}") from None
        if array.dtype.kind not in "iu":
            raise TypeError(f"index must be an integer array, got {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"index must be a 1-d array, got shape {array.shape}")
        if array.size and array.min() < 0:
            raise ValueError(f"index must be in 0..{_WORD - 1}, got {array.min()}")
        return array.astype(np.uint64)
    return np.array([as_int("index", i, 0, _WORD - 1) for i in index], dtype=np.uint64)
