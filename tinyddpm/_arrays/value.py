"""Frozen dataclasses of arrays and numbers that behave as values."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm._arrays.namespace import untraced


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


@untraced
def make_pytree(kind: type) -> int:
    """Register a dataclass with JAX, if that is loaded: arrays are its leaves, numbers are static. Return 0."""
    jax = sys.modules.get("jax")
    return 0 if jax is None or not hasattr(jax, "tree_util") else _registered(kind, jax.tree_util)


@lru_cache
def _registered(kind: type, tree_util: Any) -> int:
    names = [field.name for field in fields(kind)]

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        """The arrays, and each field's number or None if it is an array."""
        values = [getattr(value, name) for name in names]
        return [v for v in values if not isinstance(v, float)], tuple(v if isinstance(v, float) else None for v in values)

    def unflatten(static: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
        """Unchecked: JAX also puts other objects in place of arrays."""
        value: Any = object.__new__(kind)
        rest = iter(leaves)
        for name, number in zip(names, static, strict=True):
            object.__setattr__(value, name, next(rest) if number is None else number)
        return value

    tree_util.register_pytree_node(kind, flatten, unflatten)
    return 0
