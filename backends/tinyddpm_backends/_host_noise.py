"""Noise in host memory, for NumPy and for Torch on a CPU.

It goes over its elements in pieces that stay in the caches from pass to pass, yet are worth a call each.
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

__all__ = ["Noise", "StepNoise", "normal"]

Array = NDArray[Any]

_WORD = 2**64
_U8, _U4 = np.dtype("<u8"), np.dtype("<u4")
BLOCK = 65_536  # elements of a piece, a multiple of 16: three halves of it are worked in at once


_NOTHING: tuple[Any, Any] = (None, None)


class _Kept(threading.local):
    """A thread's newest `Noise` and what it is of: one kind is mostly drawn again, and workspaces can cost more than a draw."""

    newest = _NOTHING


_kept = _Kept()


def normal(seed: int, index: NDArray[np.uint64], step: int, shape: tuple[int, ...], stream: int, dtype: str) -> Array:
    """The draw of `tinyddpm.noise`, whose checks its arguments have passed, in float32 or float64."""
    try:
        out = np.empty((len(index), *shape), dtype)
    except (MemoryError, ValueError, OverflowError):
        raise ValueError(f"shape: {len(index)} samples of shape {shape} can't be allocated") from None
    if out.size:
        with _known(seed, stream, index, math.prod(shape), dtype) as noise:
            noise.draw(step, out.reshape(len(index), -1))
    return out


@contextmanager
def _known(seed: int, stream: int, index: NDArray[np.uint64], n: int, dtype: str) -> Iterator[Noise]:
    """The thread's newest noise, where it is of these, or a new one."""
    key = seed, stream, index.tobytes(), n, dtype
    (known, noise), _kept.newest = _kept.newest, _NOTHING  # out of reach of what may interrupt
    if known != key:
        noise = Noise(seed, stream, index, n, dtype)
    yield noise
    if len(index) <= 2**16:  # so that what is kept stays small
        _kept.newest = key, noise


class Noise:
    """The draws of `tinyddpm.noise` for samples of n elements, with workspaces of its own.

    A piece is a few whole samples or, where one is too large, a range of one sample's first half and the same of its second.
    """

    def __init__(self, seed: int, stream: int, index: NDArray[np.uint64], n: int, dtype: Any) -> None:
        self.index, self.n, self.blocks, self.kind = index, n, -(-n // 8), np.dtype(dtype).type
        self.half = 4 * self.blocks
        rows, width = max(1, BLOCK // max(1, 2 * self.half)), min(self.half, BLOCK // 2)
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
        self._put(_fill, step, 1.0, out)

    def add(self, step: int, std: float, out: Array) -> None:
        """Add `std` times the draw to `out`."""
        self._put(_add, step, std, out)

    def scale(self, step: int, out: Array) -> None:
        """Multiply `out` by the draw."""
        self._put(_scale, step, 1.0, out)

    def _put(self, put: Callable[[Array, Array, Array], object], step: int, std: float, out: Array) -> None:
        """``put(part, r, wave)`` for all parts of `out`, where r * wave is `std` times the noise."""
        for piece in self._pieces:
            first, last, start, stop = piece
            r, *waves = self._polar(*self._words(piece, step))
            if std != 1.0:  # half of the work of scaling what comes out
                np.multiply(r, std, out=r)
            for place, wave in zip((start, self.half + start), waves, strict=True):
                part = out[first:last, place : min(place + stop - start, self.n)]
                put(part, r[:, : part.shape[1]], wave[:, : part.shape[1]])

    def several(self, steps: Sequence[int], std: Sequence[float]) -> Array:
        """The draws of several steps at once, each times its std, shape (len(steps), len(index), n), where all fit one piece."""
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
        """Box-Muller's radius, cosine and sine, in the workspaces.

        Every function that rounds runs over contiguous memory, so that a value's bits don't depend on its place.
        """
        kind = self.kind
        r, cos, sin = (space[: radii.size].reshape(radii.shape) for space in self._work)
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
    """For each `rows` of the index, by the first: (first block, number of blocks) of its runs of consecutive samples."""
    jumps = np.flatnonzero((index[1:] != index[:-1] + np.uint64(1)) | (index[1:] == 0)) + 1
    runs: dict[int, list[tuple[int, int]]] = {}
    for a, b in itertools.pairwise(sorted({*range(0, len(index), rows), *jumps.tolist(), len(index)})):
        runs.setdefault(a - a % rows, []).append((int(index[a]) * blocks, (b - a) * blocks))
    return runs


class StepNoise:
    """The noise of one run's moves, for its state (n, ...) in place.

    Small samples cost calls, not time, so the noise of as many moves as fill a piece is drawn at once; `each` makes of the draws,
    shape (moves, n, ...), one array for each move.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        state: Array,
        seed: int,
        index: NDArray[np.uint64],
        each: Callable[[Array], Iterable[Any]] = iter,
    ) -> None:
        self._rows, self._state, self._index, self._each = rows, state, index, each
        n = math.prod(state.shape[1:])
        self._kind = seed, 0, index, n, str(state.dtype)
        self._fit = BLOCK // (8 * -(-n // 8) * len(index)) if state.size else 0
        self._ahead: dict[int, Any] = {}

    def drawn(self, k: int) -> Any:
        """Row k's std times its noise; None where a move alone fills a piece: that is for `add`."""
        if self._fit > 1 and k not in self._ahead:
            noisy = (j for j in range(k, len(self._rows)) if self._rows[j].std)
            rows = list(itertools.islice(noisy, self._fit))
            with _known(*self._kind) as noise:
                z = noise.several([self._rows[j].t for j in rows], [self._rows[j].std for j in rows])
            self._ahead = dict(zip(rows, self._each(z.reshape(len(rows), *self._state.shape)), strict=True))
        return self._ahead.get(k)

    def add(self, k: int, std: Array | None = None) -> None:
        """Add row k's, times its std or, where the network decides that, times `std`, which is written over."""
        if not self._state.size:
            return
        row, samples = self._rows[k], self._state.reshape(len(self._index), -1)
        with _known(*self._kind) as noise:
            if std is None:
                noise.add(row.t, row.std, samples)
            else:
                scaled = std.reshape(samples.shape)
                noise.scale(row.t, scaled)
                np.add(samples, scaled, out=samples)


def _fill(part: Array, r: Array, wave: Array) -> None:
    np.multiply(r, wave, out=part)


def _add(part: Array, r: Array, wave: Array) -> None:
    np.add(part, np.multiply(r, wave, out=wave), out=part)


def _scale(part: Array, r: Array, wave: Array) -> None:
    np.multiply(part, np.multiply(r, wave, out=wave), out=part)
