"""Frozen dataclasses of arrays and numbers that behave as values."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


class FrozenValue:
    """Makes a dataclass (frozen, ``eq=False``) read-only, equal and hashable by content, and picklable as such."""

    def __post_init__(self) -> None:
        for value in self._values:
            if isinstance(value, np.ndarray):
                value.flags.writeable = False

    def __eq__(self, other: object) -> bool:
        return self._content == other._content if isinstance(other, FrozenValue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values  # by the constructor: pickle drops an array's read-only flag

    @property
    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    @property
    def _content(self) -> tuple[Any, ...]:
        return type(self), *((v.shape, v.tobytes()) if isinstance(v, np.ndarray) else v for v in self._values)
