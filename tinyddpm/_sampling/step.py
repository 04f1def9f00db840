"""The reverse steps of a run by array-API operations, for libraries and dtypes without a stepper of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tinyddpm._arrays.namespace import Array, namespace_of, on_host, quiet
from tinyddpm.backends import Row, depth, reverse_step, row_weights
from tinyddpm.noise import like


class ArrayApiStepper:
    """A `backends.Stepper` for any library; each state is a new array."""

    def __init__(
        self, rows: Sequence[Row], x: Array, *, seed: int, index: Sequence[int], clip: tuple[float, float] | None, keep_x0: bool
    ) -> None:
        self._rows, self._seed, self._index, self._clip = rows, seed, index, clip
        self._xp, self._on_host = namespace_of(x_T=x), on_host(x)
        self.state = self._base = x
        self._history: tuple[Array, ...] = (x,) * depth(rows)

    @property
    def x0(self) -> Array:
        """The newest prediction of x_0."""
        return self._history[0]

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> bool:
        """Make the step of row k; return False if the host sees that the network's output is not finite."""
        row, xp = self._rows[k], self._xp
        if self._on_host and not bool(xp.all(xp.isfinite(value))):
            return False
        noise = None
        if row.std != 0.0:
            sigma: Any = row.std if std is None else std
            with quiet():
                noise = sigma * (self._draw(row.t) if z is None else z)
        with quiet():
            self.state, self._base, self._history = reverse_step(
                self.state, self._base, self._history, value, row_weights(row), noise, clip=self._clip, xp=xp
            )
        return True

    @cached_property
    def _draw(self) -> Callable[[int], Array]:
        """The run's noise at a step."""
        return like(self._base, self._seed, self._index)
