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

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._array import as_int, one_of

__all__ = ["normal"]

_WORD = 2**64
_BLOCK = 32_768  # elements: all passes over a block stay in the second-level cache


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
    seed, step, stream = (
        as_int(name, value, 0, _WORD - 1) for name, value in (("seed", seed), ("step", step), ("stream", stream))
    )
    sizes, rows = _sizes(shape), _rows(index)
    one_of("dtype", dtype, ("float16", "bfloat16", "float32", "float64"))
    if not isinstance(exact, bool | np.bool_):
        raise TypeError(f"exact: a bool is needed, not {type(exact).__name__}")
    there = backends.get(backend)
    if there.normal is not None and not exact:
        drawn = there.normal(seed, rows, step, sizes, stream=stream, device=device, dtype=dtype)
        if drawn is not NotImplemented:
            return drawn
    drawn = _draw(seed, rows, step, sizes, stream, np.float64 if dtype == "float64" else np.float32)
    if backend == "numpy" and device is None and drawn.dtype == dtype:
        return drawn
    return there.from_numpy(drawn, dtype=dtype, device=device)


def _sizes(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise TypeError(f"shape: a sequence of ints is needed, not {type(shape).__name__}")
    return tuple(as_int("shape", size, 0, 2**62) for size in shape)


def _rows(index: Any) -> np.ndarray[Any, Any]:
    """The sample numbers as a uint64 array."""
    if isinstance(index, range) and index:
        for end in (index[0], index[-1]):
            as_int("index", end, 0, _WORD - 1)
        try:
            return np.uint64(index[0]) + np.arange(len(index), dtype=np.uint64) * np.uint64(index.step % _WORD)
        except (MemoryError, OverflowError, ValueError):
            raise ValueError(f"index: {index} is too long to allocate") from None
    if isinstance(index, str) or not isinstance(index, Iterable):
        raise TypeError(f"index: a sequence of ints is needed, not {type(index).__name__}")
    if hasattr(index, "shape"):
        try:
            array = np.asarray(index)
        except (TypeError, ValueError, RuntimeError):  # on a device, say
            raise TypeError(f"index: a range, a list or a NumPy array is needed, not {type(index).__name__}") from None
        if array.dtype.kind not in "iu":
            raise TypeError(f"index: an integer array is needed, not {array.dtype}")
        if array.ndim != 1:
            raise ValueError(f"index: a 1-d array is needed, not shape {array.shape}")
        if array.size and array.min() < 0:
            raise ValueError(f"index: {array.min()} is outside 0..{_WORD - 1}")
        return array.astype(np.uint64)
    return np.array([as_int("index", i, 0, _WORD - 1) for i in index], dtype=np.uint64)


def _draw(
    seed: int, index: np.ndarray[Any, Any], step: int, shape: tuple[int, ...], stream: int, dtype: Any
) -> np.ndarray[Any, Any]:
    """The draw on the host, in float32 or float64, as many samples at a time as fill a block."""
    n = math.prod(shape)
    try:
        out = np.empty((len(index), *shape), dtype)
    except (MemoryError, ValueError, OverflowError):
        raise ValueError(f"shape: {len(index)} samples of shape {shape} can't be allocated") from None
    if out.size:
        blocks = -(-n // 8)
        rows = max(1, _BLOCK // (8 * blocks))
        raw = _raw(seed, stream, step, blocks)
        work = [np.empty(min(rows * 4 * blocks, _BLOCK // 2), dtype) for _ in range(3)]
        flat = out.reshape(len(index), n)
        for block, pieces in itertools.groupby(itertools.pairwise(_edges(index, rows)), lambda piece: piece[0] // rows):
            words = [raw(int(index[start]), stop - start) for start, stop in pieces]
            whole = words[0] if len(words) == 1 else np.concatenate(words)
            _box_muller(whole, flat[block * rows : (block + 1) * rows], *work)
    return out


def _edges(index: np.ndarray[Any, Any], rows: int) -> list[int]:
    """Where `index` is cut: at every multiple of `rows`, and wherever the sample numbers are not consecutive."""
    jumps = np.flatnonzero((index[1:] != index[:-1] + np.uint64(1)) | (index[1:] == 0)) + 1
    return sorted({*range(0, len(index), rows), *jumps.tolist(), len(index)})


def _raw(seed: int, stream: int, step: int, blocks: int) -> Callable[[int, int], np.ndarray[Any, Any]]:
    """A function (first, count) -> the 8 * blocks random uint32 of each of `count` consecutive samples."""
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64))
    state: Any = philox.state  # setting its counter is ten times faster than a new generator

    def raw(first: int, count: int) -> np.ndarray[Any, Any]:
        high, low = divmod(first * blocks, _WORD)
        state["state"]["counter"] = np.array([low, high, step, 0], np.uint64)
        philox.state = state
        return philox.random_raw(4 * blocks * count).astype("<u8", copy=False).view("<u4")

    return raw


def _box_muller(words: np.ndarray[Any, Any], out: np.ndarray[Any, Any], *work: np.ndarray[Any, Any]) -> None:
    """Fill each row of `out` with the normals of its words, in pieces that fit the three workspaces.

    Every function that rounds runs over contiguous memory, so that a value's bits don't depend on its place.
    """
    count, n = out.shape
    pairs = words.reshape(count, 2, -1)
    half, kind = pairs.shape[2], out.dtype.type
    width = len(work[0]) // count
    for start in range(0, half, width):
        stop = min(start + width, half)
        r, angle, cos = (space[: count * (stop - start)].reshape(count, -1) for space in work)
        np.copyto(r, pairs[:, 0, start:stop])
        np.add(r, kind(0.5), out=r)
        np.multiply(r, kind(2**-32), out=r)
        np.log(r, out=r)
        np.multiply(r, kind(-2), out=r)
        np.sqrt(r, out=r)
        np.copyto(angle, pairs[:, 1, start:stop].view("<i4"))
        np.multiply(angle, kind(2 * math.pi * 2**-32), out=angle)
        np.cos(angle, out=cos)
        np.sin(angle, out=angle)
        for place, wave in ((start, cos), (half + start, angle)):
            kept = out[:, place : min(place + stop - start, n)]
            np.multiply(r[:, : kept.shape[1]], wave[:, : kept.shape[1]], out=kept)
