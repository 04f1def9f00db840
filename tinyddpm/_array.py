"""The only door to array libraries: namespaces, coefficients at a step, and the checks that every argument passes.

A step argument (`t`, `s`) comes in three forms, and `steps` returns it as one of them:

- an ``int``: one step for the whole batch; coefficients are then Python floats and cost no device work;
- a NumPy integer array: per-sample steps that the host can read; coefficients are gathered on the host in float64;
- an array of x's library on a device: never synchronised; coefficients are gathered there, NaN where undefined.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = [
    "Array",
    "Steps",
    "allocating",
    "as_int",
    "cast",
    "clip",
    "copy",
    "data",
    "dtype_name",
    "flat",
    "gather",
    "host_steps",
    "instance",
    "integers",
    "is_of",
    "labels",
    "like",
    "lookup",
    "on_host",
    "one_of",
    "positive_int",
    "real",
    "same_shape",
    "sequence",
    "steps",
]

Array = Any
Steps = Any  # int | NumPy integer array | device array


def data(*, scalars: bool = False, **arrays: Array) -> Any:
    """The namespace that all arrays share, given by argument name: floating point, of shape (B, ...), or () with `scalars`.

    Raises `TypeError` for what is no array, for integer arrays and for mixed libraries, `ValueError` for a scalar.
    """
    from array_api_compat import array_namespace

    first, xp = "", None
    for name, x in arrays.items():
        try:
            own = array_namespace(x)
        except TypeError:
            raise TypeError(f"{name}: an array is needed, not {type(x).__name__}") from None
        if xp is None:
            first, xp = name, own
        elif own is not xp:
            raise TypeError(
                f"{name}: is of {_library(x)}, but {first} of {_library(arrays[first])}; libraries don't mix"
            )
        if not own.isdtype(x.dtype, "real floating"):
            raise TypeError(f"{name}: a floating-point array is needed, not {x.dtype}")
        if x.ndim == 0 and not scalars:
            raise ValueError(f"{name}: an array of shape (B, ...) is needed, not a scalar")
    return xp


def is_of(xp: Any, x: Any) -> bool:
    """Whether x is an array of the namespace xp."""
    from array_api_compat import array_namespace, is_array_api_obj

    return bool(is_array_api_obj(x) and array_namespace(x) is xp)


def same_shape(name: str, x: Array, other: str, y: Array) -> None:
    """Refuse x where its shape differs from y's."""
    if tuple(x.shape) != tuple(y.shape):
        raise ValueError(f"{name}: shape {tuple(x.shape)} differs from {other}'s {tuple(y.shape)}")


def cast(x: Array, to: Array, xp: Any) -> Array:
    """x in the dtype of `to`."""
    return x if x.dtype == to.dtype else xp.astype(x, to.dtype)


def clip(x: Array, xp: Any) -> Array:
    """x clipped to [-1, 1]: by its own method where it has one, which is several times faster than the portable way."""
    return x.clip(-1.0, 1.0) if hasattr(x, "clip") else xp.clip(x, -1.0, 1.0)


def dtype_name(x: Array) -> str:
    """x's dtype by name, e.g. "float32"."""
    return str(x.dtype).rpartition(".")[2]


def copy(x: Array) -> Array:
    """x in memory of its own."""
    return data(x=x).asarray(x, copy=True)


def like(values: Any, x: Array, xp: Any, *, dtype: Any = None) -> Array:
    """Host values (a NumPy array or a number) as an array of x's library, dtype and device."""
    from array_api_compat import device

    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()  # Torch warns of sharing memory that it may not write
    return xp.asarray(values, dtype=x.dtype if dtype is None else dtype, device=device(x))


def flat(x: Array, xp: Any) -> Array:
    """x, of shape (B, ...), as (B, dimensions)."""
    return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def as_int(name: str, value: Any, low: int, high: int) -> int:
    """A Python int or NumPy integer within [low, high]; `bool` is no int."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: an int is needed, not {type(value).__name__}")
    number: int = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name}: {number} is outside {low}..{high}")
    return number


def positive_int(name: str, value: Any) -> int:
    """A positive int that can be a length."""
    return as_int(name, value, 1, 2**62)


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_ends: bool = False) -> float:
    """A finite real number within [low, high], or within (low, high) with `open_ends`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: a number is needed, not {type(value).__name__}")
    number: float = float(value)
    inside = low < number < high if open_ends else low <= number <= high
    if not math.isfinite(number) or not inside:
        ends = ("(", ")") if open_ends else ("[", "]")
        raise ValueError(f"{name}: {number} is outside {ends[0]}{low}, {high}{ends[1]}")
    return number


def sequence(name: str, values: Any, *, empty: bool = False) -> list[Any]:
    """The values as a list; text is no sequence of them."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: a sequence is needed, not {type(values).__name__}")
    if not (found := list(values)) and not empty:
        raise ValueError(f"{name}: at least one is needed")
    return found


def instance(name: str, value: Any, kind: type) -> Any:
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


def steps(name: str, t: Any, x: Array, xp: Any, low: int, high: int) -> Steps:
    """Check a step argument against [low, high] and x's batch; returns one of the three forms above.

    A device array's values are not read, so not checked: `gather` gives NaN where one is out of range.
    """
    if not hasattr(t, "shape") or isinstance(t, np.generic):
        return as_int(name, t, low, high)
    if tuple(t.shape) != (x.shape[0],):
        raise ValueError(f"{name}: an int or an array of shape ({x.shape[0]},) is needed, not shape {tuple(t.shape)}")
    if not isinstance(t, np.ndarray):
        own = _own_namespace(name, t)
        if own is not xp:
            raise TypeError(f"{name}: is of {_library(t)}, but the data of {_library(x)}; use its own library or NumPy")
        if not own.isdtype(t.dtype, "integral"):
            raise TypeError(f"{name}: an integer array is needed, not {t.dtype}")
        host = _read(t)
        if host is None:
            return t
        t = host
    return host_steps(name, t, low, high)


def host_steps(name: str, t: Any, low: int, high: int) -> Any:
    """Check an int or a NumPy integer array against [low, high]; returns an int or an int64 array."""
    if not hasattr(t, "shape") or isinstance(t, np.generic):
        return as_int(name, t, low, high)
    t = np.asarray(t)
    if t.dtype.kind not in "iu":
        raise TypeError(f"{name}: an integer array is needed, not {t.dtype}")
    if t.size and not (low <= t.min() and t.max() <= high):
        wrong = t[(t < low) | (t > high)].flat[0]
        raise ValueError(f"{name}: {wrong} is outside {low}..{high}")
    return t.astype(np.int64)


def gather(table: Any, t: Steps, x: Array, xp: Any) -> Any:
    """The float64 `table`'s entry at t: a float where t is an int, else an array that broadcasts against x.

    Computed on the host in float64 and cast once to x's dtype; NaN where a device's t is outside the table.
    """
    if isinstance(t, int):
        return float(table[t])
    shape = (-1,) + (1,) * (x.ndim - 1)
    if isinstance(t, np.ndarray):
        return like(table[t].reshape(shape), x, xp)
    size = table.shape[0]
    inside = (t >= 0) & (t < size)
    padded = like(np.append(table, np.nan), x, xp)
    return xp.reshape(xp.take(padded, xp.where(inside, t, size), axis=0), shape)


def integers(t: Steps, shift: int, x: Array, xp: Any) -> Array:
    """t + shift as an integer array (B,) on x's device: what a network gets."""
    dtype = _default_int(xp)
    if isinstance(t, int):
        from array_api_compat import device

        return xp.full((x.shape[0],), t + shift, dtype=dtype, device=device(x))
    if isinstance(t, np.ndarray):
        return like(t + shift, x, xp, dtype=dtype)
    return xp.astype(t, dtype) + shift


def labels(numbers: Sequence[int], x: Array, xp: Any) -> Iterator[Array]:
    """Each number as an integer array (B,) on x's device: what a network gets in a long loop. They are made many at a time."""
    batch = x.shape[0]
    many = max(1, 2**16 // max(1, batch))
    for first in range(0, len(numbers), many):
        column = np.array(numbers[first : first + many])[:, None]
        table = integers(np.repeat(column, batch, axis=1), 0, x, xp)
        if hasattr(table, "unbind"):  # Torch's, far faster than one by one
            yield from table.unbind()
        else:  # not by `unstack`: JAX compiles an output for each row of it
            yield from (table[k, ...] for k in range(len(column)))


def on_host(x: Array) -> bool:
    """Whether the host can read x without waiting for a device."""
    from array_api_compat import device

    place = device(x)
    kind = getattr(place, "type", None) or getattr(place, "platform", None) or str(place)
    return "cpu" in str(kind).lower()


def _read(t: Array) -> Any:
    """t as a NumPy array where the host holds it, else None: a device is never synchronised for a check."""
    if not on_host(t):
        return None
    try:
        return np.asarray(t)
    except (TypeError, RuntimeError):  # traced by a compiler: there is no value to read yet
        return None


def _own_namespace(name: str, t: Array) -> Any:
    from array_api_compat import array_namespace

    try:
        return array_namespace(t)
    except TypeError:
        raise TypeError(f"{name}: an int or an integer array is needed, not {type(t).__name__}") from None


def _library(x: Array) -> str:
    return type(x).__module__.partition(".")[0]


@lru_cache(maxsize=16)
def _default_int(xp: Any) -> Any:
    return xp.__array_namespace_info__().default_dtypes()["integral"]
