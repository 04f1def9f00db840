"""The rule for values: which of them become black (-1) and white (1), and on how many levels they are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm._arrays.check import as_int, as_real

__all__ = ["MOST_LEVELS", "Scale", "as_ends", "as_levels", "level_type"]

MOST_LEVELS = 2**16
_OF_INTS = ((0, 255), (0, 65_535), (-128, 127), (-32_768, 32_767))
_OF_FLOATS = ((0, 1), (-1, 1))


@dataclass(frozen=True)
class Scale:
    """Levels 0..levels-1 that stand for values evenly spaced from `low` to `high`."""

    levels: int
    low: float
    high: float

    @classmethod
    def of(
        cls, kind: str, least: float, most: float, levels: int | None, ends: tuple[float, float] | None, whole: bool = False
    ) -> Scale:
        """The scale of values `least`..`most`, ints or floats by NumPy's `kind`, with the levels and ends that are given.

        Without ends these are the first of 0..255, 0..65535, -128..127, -32768..32767 (of floats: 0..1, -1..1) that hold all
        values, else the smallest and the largest value. Ints have a level for each value, if these are at most 65536. Floats
        beyond -1..1 that are `whole` numbers count as ints.
        """
        kind = "i" if whole and (most > 1 or least < -1) else kind
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ValueError("must hold finite numbers, got NaN or infinity")
        if ends is None and levels is not None and kind != "f":
            ends = (0, levels - 1)
            if least < 0 or most >= levels:
                raise ValueError(f"levels must be more than the largest value, and none negative, got {least:g}..{most:g}")
        if ends is None:
            known = ((0, 1),) if kind == "b" else _OF_FLOATS if kind == "f" else _OF_INTS
            ends = next((pair for pair in known if pair[0] <= least and most <= pair[1]), (least, most))
        low, high = ends
        if low == high:
            raise ValueError(f"must hold values that differ, unless --value-range LOW HIGH is given, got {low:g} only")
        whole = kind != "f" and low == int(low) and high == int(high) and high - low < MOST_LEVELS
        found = cls(levels or (int(high - low) + 1 if whole else MOST_LEVELS), low, high)
        if not found.holds(least, most):
            raise ValueError(
                f"must hold values in {low:g}..{high:g}, by --value-range or as the run's data, got {least:g}..{most:g}"
            )
        return found

    def holds(self, least: float, most: float) -> bool:
        """Whether values so far apart are on the levels: at most half a level beyond the ends, as after rounding."""
        half = self._step / 2
        return self.low - half <= least and most <= self.high + half

    @property
    def _step(self) -> float:
        return (self.high - self.low) / (self.levels - 1)

    @property
    def ends(self) -> tuple[float, float] | None:
        """The values of the first and the last level; None if these are the levels' own numbers."""
        return None if (self.low, self.high) == (0, self.levels - 1) else (float(self.low), float(self.high))

    def pixels(self, values: NDArray[Any]) -> NDArray[Any]:
        """Each value's nearest level."""
        made = level_type(self.levels)
        if self.low == 0 and self.high == self.levels - 1 and values.dtype.kind != "f":
            return np.ascontiguousarray(values, made)
        levels = np.rint((values.astype(np.float64) - self.low) / self._step)
        return np.ascontiguousarray(levels.clip(0, self.levels - 1), made)


def level_type(levels: int) -> type[Any]:
    """The smallest type that holds so many levels."""
    return np.uint8 if levels <= 256 else np.uint16


def as_levels(levels: Any) -> int | None:
    """A number of levels, or None."""
    return None if levels is None else as_int("levels", levels, 2, MOST_LEVELS)


def as_ends(name: str, value: Any) -> tuple[float, float]:
    """Two numbers, the first of them less."""
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(given) != 2:
        raise ValueError(f"{name} must be two numbers, got {len(given)} of {type(value).__name__}")
    low, high = (as_real(name, end, -1e300, 1e300) for end in given)
    if not low < high:
        raise ValueError(f"{name} must be LOW,HIGH with LOW < HIGH, got {low:g},{high:g}")
    return low, high
