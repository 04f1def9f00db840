"""Checks of arguments: each returns the value in the form that the library uses, or raises an error that names the argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = [
    "allocating",
    "as_instance",
    "as_int",
    "as_list",
    "as_positive_int",
    "as_real",
    "lookup",
    "one_of",
]


def as_int(name: str, value: Any, low: int, high: int) -> int:
    """A Python int or NumPy integer within [low, high]; `bool` is no int."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: an int is needed, not {type(value).__name__}")
    number: int = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name}: {number} is outside {low}..{high}")
    return number


def as_positive_int(name: str, value: Any) -> int:
    """A positive int that can be a length."""
    return as_int(name, value, 1, 2**62)


def as_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_ends: bool = False) -> float:
    """A finite real number within [low, high], or within (low, high) with `open_ends`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: a number is needed, not {type(value).__name__}")
    number: float = float(value)
    inside = low < number < high if open_ends else low <= number <= high
    if not math.isfinite(number) or not inside:
        ends = ("(", ")") if open_ends else ("[", "]")
        raise ValueError(f"{name}: {number} is outside {ends[0]}{low}, {high}{ends[1]}")
    return number


def as_list(name: str, values: Any, *, empty: bool = False) -> list[Any]:
    """The values as a list; text is no sequence of them."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: a sequence is needed, not {type(values).__name__}")
    if not (found := list(values)) and not empty:
        raise ValueError(f"{name}: at least one is needed")
    return found


def as_instance(name: str, value: Any, kind: type) -> Any:
    """`value`, where it is of this type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: a {kind.__name__} is needed, not {type(value).__name__}")
    return value


def lookup(name: str, key: Any, known: Any) -> Any:
    """The entry of the dict `known` under `key`, or a `LookupError` that lists the known ones."""
    if not isinstance(key, str):
        raise TypeError(f"{name}: a name is needed, not {type(key).__name__}")
    if key not in known:
        raise LookupError(f"{name}: {key!r} is unknown; known are {', '.join(known)}")
    return known[key]


def one_of(name: str, key: Any, known: tuple[str, ...]) -> str:
    """`key`, where it is one of the known names."""
    return lookup(name, key, {k: k for k in known})  # type: ignore[no-any-return]


@contextmanager
def allocating(name: str, value: Any) -> Iterator[None]:
    """Turn a failure to allocate into a `ValueError` that names the argument whose size was too much."""
    try:
        yield
    except (MemoryError, OverflowError) as error:
        raise ValueError(f"{name}: {value} is more than can be allocated") from error
    except ValueError as error:
        if any(what in str(error) for what in ("maximum", "too large", "too big", "too long")):
            raise ValueError(f"{name}: {value} is more than can be allocated") from error
        raise
