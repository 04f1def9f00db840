"""Noise in host memory, for NumPy and for Torch on a CPU.

It is made in pieces that stay in the caches from pass to pass, yet are large enough that a call for each costs little.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm.backends import Row

__all__ = ["Noise", "StepNoise", "normal"]

Array = NDArray[Any]

_WORD = 2**64
_U8, _U4 = np.dtype("<u8"), np.dtype("<u4")
PIECE = 65_536  # elements, a multiple of 16; three arrays of half the size are worked in at once


class _Newest(threading.local):
    """A thread's newest `Noise` with its key: most runs draw one kind many times, and new memory can cost more than a draw."""

    pair: tuple[Any, Any] = (None, None)  # one value, so that a signal handler that draws too never finds half of it


_newest = _Newest()


def normal(seed: int, index: NDArray[np.uint64], step: int, shape: tuple[int, ...], stream: int, dtype: str) -> Array:
    """The draw of `tinyddpm.noise`, which has checked the arguments, in float32 or float64."""
    try:
        out = np.empty((len(index), *shape), dtype)
    except (MemoryError, ValueError, OverflowError):
        raise ValueError(f"shape is more than can be allocated: {len(index)} samples of {shape}") from None
    if out.size:
        with _reused(seed, stream, index, math.prod(shape), dtype) as noise:
            noise.draw(step, out.reshape(len(index), -1))
    return out


@contextmanager
def _reused(seed: int, stream: int, index: NDArray[np.uint64], n: int, dtype: str) -> Iterator[Noise]:
    """The thread's newest noise if it has the same key, or a new one."""
    key = seed, stream, index.tobytes(), n, dtype
    (newest_key, noise), _newest.pair = _newest.pair, (None, None)  # nobody else finds it while it is in use
    if newest_key != key:
        noise = Noise(seed, stream, index, n, dtype)
    yield noise
    if len(index) <= 2**16:  # so that the key and the list of pieces stay small
        _newest.pair = key, noise


class Noise:
    """The draws of `tinyddpm.noise` for samples of n elements, with memory of its own.

    A piece is a few whole samples or, if a sample is larger than that, a range of its first half and the same of its second.
    """

    def __init__(self, seed: int, stream: int, index: NDArray[np.uint64], n: int, dtype: Any) -> None:
        self.index, self.n, self.blocks, self.kind = index, n, -(-n // 8), np.dtype(dtype).type
        self.half = 4 * self.blocks
        rows, width = max(1, PIECE // max(1, 2 * self.half)), min(self.half, PIECE // 2)
        self._pieces = [
            (first, min(first + rows, len(index)), start, min(start + width, self.half))
            for first in range(0, len(index), rows)
            for start in range(0, self.half, width or 1)
        ]
        self._runs = _runs(index, self.blocks, rows)
        self._work = np.empty((3, min(len(index), rows) * width), dtype)
        self._philox: Any = np.random.Philox(key=np.array([seed, stream], np.uint64))
        self._state: Any = self._philox.state  # setting it is ten times faster than a new generator
        self._counter: Any = self._state["state"]["counter"]

    def draw(self, step: int, out: Array) -> None:
        """Fill `out`, shape (len(index), n)."""
        self._apply(_fill, step, 1.0, out)

    def add(self, step: int, std: float, out: Array) -> None:
        """Add `std` times the draw to `out`."""
        self._apply(_add, step, std, out)

    def scale(self, step: int, out: Array) -> None:
        """Multiply `out` by the draw."""
        self._apply(_scale, step, 1.0, out)

    def _apply(self, operation: Callable[[Array, Array, Array], object], step: int, std: float, out: Array) -> None:
        """Call ``operation(part, r, wave)`` for all parts of `out`; r * wave is `std` times the noise."""
        for piece in self._pieces:
            first, last, start, stop = piece
            r, *waves = self._polar(*self._words(piece, step))
            if std != 1.0:  # scaling the radius is half the work of scaling the result
                np.multiply(r, std, out=r)
            for column, wave in zip((start, self.half + start), waves, strict=True):
                part = out[first:last, column : min(column + stop - start, self.n)]
                operation(part, r[:, : part.shape[1]], wave[:, : part.shape[1]])

    def several(self, steps: Sequence[int], std: Sequence[float]) -> Array:
        """The draws of several steps, each times its std, shape (len(steps), len(index), n); all must fit into one piece."""
        words = np.concatenate([self._raw(step, *run) for step in steps for run in self._runs[0]])
        words = words.reshape(-1, 2, self.half)
        if self._work.shape[1] < words.size // 2:
            self._work = np.empty((3, words.size // 2), self.kind)
        r, cos, sin = self._polar(words[:, 0], words[:, 1].view("<i4"))
        np.multiply(r, np.repeat(np.array(std, self.kind), len(self.index))[:, None], out=r)
        z = np.concatenate((r * cos, r * sin), axis=1).reshape(len(steps), len(self.index), -1)
        return z[..., : self.n]

    def _words(self, piece: tuple[int, int, int, int], step: int) -> tuple[Array, Array]:
        """The random words of a piece's radii (uint32) and angles (int32), both (samples, width)."""
        first, last, start, stop = piece
        if stop - start == self.half:
            runs = [self._raw(step, origin, count) for origin, count in self._runs[first]]
            words = (runs[0] if len(runs) == 1 else np.concatenate(runs)).reshape(last - first, 2, self.half)
            return words[:, 0], words[:, 1].view("<i4")
        origin, width = self._runs[first][0][0], stop - start
        radii = self._raw(step, origin + start // 8, -(-width // 8))
        block, left = divmod(self.half + start, 8)
        angles = self._raw(step, origin + block, -(-(left + width) // 8))[left:]
        return radii[None, :width], angles[None, :width].view("<i4")

    def _raw(self, step: int, first: int, count: int) -> Array:
        """The 8 * count words of the generator's blocks from `first` on."""
        high, low = divmod(first, _WORD)
        counter = self._counter
        counter[0], counter[1], counter[2] = low, high, step
        self._philox.state = self._state
        return self._philox.random_raw(4 * count).astype(_U8, copy=False).view(_U4)  # type: ignore[no-any-return]

    def _polar(self, radii: Array, angles: Array) -> tuple[Array, Array, Array]:
        """Box-Muller's radius, cosine and sine, in memory that the next call overwrites.

        Every function that rounds runs over contiguous memory, so that a value's bits don't depend on its place.
        """
        kind = self.kind
        r, cos, sin = (array[: radii.size].reshape(radii.shape) for array in self._work)
        np.copyto(r, radii)
        np.add(r, kind(0.5), out=r)
        np.multiply(r, kind(2**-32), out=r)
        np.log(r, out=r)
        np.multiply(r, kind(-2), out=r)
        np.sqrt(r, out=r)
        np.copyto(sin, angles)
        np.multiply(sin, kind(2 * math.pi * 2**-32), out=sin)
        np.cos(sin, out=cos)
        np.sin(sin, out=sin)
        return r, cos, sin


def _runs(index: NDArray[np.uint64], blocks: int, rows: int) -> dict[int, list[tuple[int, int]]]:
    """For every `rows` samples, by the first one's place: the runs of consecutive samples as (first block, number of blocks)."""
    jumps = np.flatnonzero((index[1:] != index[:-1] + np.uint64(1)) | (index[1:] == 0)) + 1
    runs: dict[int, list[tuple[int, int]]] = {}
    for a, b in itertools.pairwise(sorted({*range(0, len(index), rows), *jumps.tolist(), len(index)})):
        runs.setdefault(a - a % rows, []).append((int(index[a]) * blocks, (b - a) * blocks))
    return runs


class StepNoise:
    """The noise of one run's steps, for its state (n, ...), which is changed in place.

    For small samples the calls cost more than the numbers, so the noise of as many steps as fit into a piece is drawn at once.
    `split` makes one array for each step of the draws, shape (steps, n, ...).
    """

    def __init__(
        self,
        rows: Sequence[Row],
        state: Array,
        seed: int,
        index: NDArray[np.uint64],
        split: Callable[[Array], Iterable[Any]] = iter,
    ) -> None:
        self._rows, self._state, self._index, self._split = rows, state, index, split
        n = math.prod(state.shape[1:])
        self._key = seed, 0, index, n, str(state.dtype)
        self._steps_at_once = PIECE // (8 * -(-n // 8) * len(index)) if state.size else 0
        self._ahead: dict[int, Any] = {}

    def drawn(self, k: int) -> Any:
        """Row k's noise times its std; None if one step fills a piece, and `add` is to be used."""
        if self._steps_at_once > 1 and k not in self._ahead:
            noisy = (j for j in range(k, len(self._rows)) if self._rows[j].std)
            numbers = list(itertools.islice(noisy, self._steps_at_once))
            rows = [self._rows[j] for j in numbers]
            with _reused(*self._key) as noise:
                z = noise.several([row.t for row in rows], [row.std or 0.0 for row in rows])
            self._ahead = dict(zip(numbers, self._split(z.reshape(len(rows), *self._state.shape)), strict=True))
        return self._ahead.get(k)

    def add(self, k: int, std: Array | None = None) -> None:
        """Add row k's noise times its std or, if the row has none, times `std`, which is overwritten."""
        if not self._state.size:
            return
        row, samples = self._rows[k], self._state.reshape(len(self._index), -1)
        with _reused(*self._key) as noise:
            if std is None:
                noise.add(row.t, row.std or 0.0, samples)
            else:
                scaled = std.reshape(samples.shape)
                noise.scale(row.t, scaled)
                np.add(samples, scaled, out=samples)


def _fill(part: Array, r: Array, wave: Array) -> None:
    """part = r * wave."""
    np.multiply(r, wave, out=part)


def _add(part: Array, r: Array, wave: Array) -> None:
    """part += r * wave."""
    np.add(part, np.multiply(r, wave, out=wave), out=part)


def _scale(part: Array, r: Array, wave: Array) -> None:
    """part *= r * wave."""
    np.multiply(part, np.multiply(r, wave, out=wave), out=part)
