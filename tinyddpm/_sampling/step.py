"""The moves of a run by the array-API standard alone: what a backend's own stepper does faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tinyddpm._arrays.namespace import Array, clip_array, namespace_of, on_host
from tinyddpm._sampling.rows import Row
from tinyddpm.noise import like


class ArrayApiStepper:
    """A `backends.Stepper` for any library; each state is a new array."""

    def __init__(
        self, rows: Sequence[Row], x: Array, *, seed: int, index: Sequence[int], clip: tuple[float, float] | None, keep_x0: bool
    ) -> None:
        self._rows, self._seed, self._index, self._clip = rows, seed, index, clip
        self._xp, self._on_host = namespace_of(x_T=x), on_host(x)
        self.state = self._base = x
        self._history: list[Array] = []

    @property
    def x0(self) -> Array:
        """The newest prediction."""
        return self._history[0]

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> bool:
        """Row k's move; False where the host sees that the network's output is not finite."""
        row, x, xp = self._rows[k], self.state, self._xp
        if self._on_host and not bool(xp.all(xp.isfinite(value))):
            return False
        a_value, a_state = row.x0_from
        x0 = a_value * value
        if a_state:
            x0 = x0 + a_state * x
        if self._clip is not None:
            x0 = clip_array(x0, *self._clip, xp)
        self._history = [x0, *self._history[:2]]
        self.state = _weighed(row.state, self._base, self._history)
        if row.std != 0.0:
            z = self._draw(row.t) if z is None else z
            sigma: Any = row.std if std is None else std
            self.state = self.state + sigma * z
        self._base = self.state if row.base is None else _weighed(row.base, self._base, self._history)
        return True

    @cached_property
    def _draw(self) -> Callable[[int], Array]:
        return like(self._base, self._seed, self._index)


def _weighed(weights: Sequence[float], base: Array, history: Sequence[Array]) -> Array:
    """weights[0] * base + weights[1] * newest x_0 + ..., in that order."""
    terms = [w * a for w, a in zip(weights, (base, *history), strict=False) if w != 0.0]
    return sum(terms[1:], terms[0]) if terms else 0.0 * base
