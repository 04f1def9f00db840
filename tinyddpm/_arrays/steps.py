"""Step arguments (`t`, `s`) and what is looked up with them.

A step argument comes in three forms, and `check_steps` returns it as one of them:

- an ``int``: one step for the whole batch; coefficients are then Python floats and cost no device work;
- a NumPy integer array: per-sample steps that the host can read; coefficients are gathered on the host in float64;
- an array of x's library on a device: never synchronised; coefficients are gathered there, NaN where undefined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from tinyddpm._arrays.check import as_int

from tinyddpm._arrays.namespace import (  # isort: skip
    Array, HasShape, array_like, check_plain, compiling, device_of, host_values, is_array_of, library_name, untraced,
)  # fmt: skip

Steps = SupportsIndex | HasShape
"""A step argument as callers give it, an int or an integer array of shape (B,) or ()."""


class Named(NamedTuple):
    """A table by the object that has it and the name of an attribute, or a function of the object and `args`.

    torch.compile can't trace what makes the tables; by name they are looked up while it traces.
    """

    owner: Any
    table: Any
    args: tuple[Any, ...] = ()

    def get(self) -> Any:
        """The table, or whatever the name stands for."""
        return self.table(self.owner, *self.args) if callable(self.table) else getattr(self.owner, self.table)


@untraced
def number(owner: Any, table: Any, args: tuple[Any, ...] = (), t: int | None = None) -> float:
    """A named number, or the entry at t of a named table."""
    found = Named(owner, table, args).get()
    return float(found if t is None else found[t])


@untraced
def _dims(owner: Any, table: Any, args: tuple[Any, ...]) -> int:
    return Named(owner, table, args).get().ndim  # type: ignore[no-any-return]


@untraced
def _length(owner: Any, table: Any, args: tuple[Any, ...]) -> int:
    return len(Named(owner, table, args).get())


@untraced
def _attribute(table: Any, owner: Any, args: tuple[Any, ...], *x_type: Any) -> str:
    """Put a named table as `_padded` returns it into an attribute of its owner; return the attribute's name."""
    name = "_".join(("_padded", getattr(table, "__name__", table), *map(str, (*args, *x_type[1:]))))
    name = "".join(c if c.isalnum() else "_" for c in name)
    if name not in owner.__dict__:
        object.__setattr__(owner, name, _padded(Named(owner, table, args), *x_type))
    return name


def _padded(table: Named, xp: Any, dtype: Any, device: Any) -> Array:
    """A named table with NaN behind its end, as an array."""
    values = table.get()
    return xp.asarray(np.concatenate([values, np.full_like(values[:1], np.nan)]), dtype=dtype, device=device)


def check_steps(name: str, t: Any, x: Array, xp: Any, low: int, high: int) -> Any:
    """Check a step argument against [low, high] and x's batch; return one of the three forms above.

    The values of a device array are not read, so not checked: `gather` gives NaN where one is out of range.
    """
    if not hasattr(t, "shape") or isinstance(t, np.generic):
        return as_int(name, t, low, high)
    if compiling() and isinstance(t, np.ndarray):
        t = array_like(t, x, xp, dtype=xp.int64)
    if tuple(t.shape) not in ((x.shape[0],), ()):
        raise ValueError(f"{name} must be an int or an array of shape ({x.shape[0]},) or (), got shape {tuple(t.shape)}")
    if not isinstance(t, np.ndarray):
        if not is_array_of(xp, t):
            raise TypeError(f"{name} must be an int or an integer array of {library_name(x)}, as the data are, or NumPy, "
                            f"got {library_name(t)}'s {type(t).__name__}")  # fmt: skip
        if not xp.isdtype(t.dtype, "integral"):
            raise TypeError(f"{name} must be an integer array, got {t.dtype}")
        host = host_values(t)
        if host is None:
            return t
        t = host
    return check_host_steps(name, t, low, high)


def check_host_steps(name: str, t: Any, low: int, high: int) -> Any:
    """Check an int or a NumPy integer array against [low, high]; return an int or an int64 array."""
    if not hasattr(t, "shape") or isinstance(t, np.generic):
        return as_int(name, t, low, high)
    if isinstance(t, np.ndarray):
        check_plain(name, t)
    t = np.asarray(t)
    if t.ndim == 0 and t.dtype.kind in "iu":
        return as_int(name, t[()], low, high)
    if t.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer array, got {t.dtype}")
    if t.size and not (low <= t.min() and t.max() <= high):
        wrong = t[(t < low) | (t > high)].flat[0]
        raise ValueError(f"{name} must be in {low}..{high}, got {wrong}")
    return t.astype(np.int64)


def gather(table: Named, t: Any, x: Array, xp: Any) -> Any:
    """Entries of a named float64 table at t: a float if t is an int, else an array that broadcasts against x.

    They are cast once from float64 to x's dtype, and NaN where a t on a device is outside the table. A table of shape
    (T + 1, *sample shape) gives arrays that broadcast against x as well, also if t is an int.
    """
    single = _dims(*table) == 1
    if isinstance(t, int) and single:
        return number(*table, t)
    trailing = (1,) * (x.ndim - 1) if single else tuple(x.shape[1:])
    if not compiling() and isinstance(t, int | np.ndarray):
        return array_like(table.get()[t].reshape(len(t) if isinstance(t, np.ndarray) else 1, *trailing), x, xp)
    size, x_type = _length(*table), (xp, x.dtype, device_of(x))
    if compiling():
        padded = getattr(table.owner, _attribute(table.table, table.owner, table.args, *x_type))
        return xp.reshape(padded[t if isinstance(t, int) else xp.where((t >= 0) & (t < size), t, size)], (-1, *trailing))
    at = xp.reshape(xp.where((t >= 0) & (t < size), t, size), (-1,))  # libraries differ on 0-d indices
    return xp.reshape(xp.take(_padded(table, *x_type), at, axis=0), (-1, *trailing))


def column(t: Any, x: Array, xp: Any) -> Any:
    """Steps, or what is true of them, as they broadcast against x: one as it is, or an array (B, 1, ...) or (1, 1, ...)."""
    if isinstance(t, int):
        return t
    t = array_like(t, x, xp, dtype=xp.bool if t.dtype == bool else xp.int32) if isinstance(t, np.ndarray) else t
    return xp.reshape(t, (-1,) + (1,) * (x.ndim - 1))


def time_array(t: Any, shift: int, x: Array, xp: Any) -> Array:
    """t + shift as an integer array (B,) on x's device, as a network gets it."""
    dtype = xp.int64 if compiling() else _default_int(xp)
    if isinstance(t, int):
        return xp.full((x.shape[0],), t + shift, dtype=dtype, device=device_of(x))
    if isinstance(t, np.ndarray):
        return array_like(t + shift, x, xp, dtype=dtype)
    return xp.broadcast_to(xp.astype(t, dtype) + shift, (x.shape[0],))


def time_arrays(numbers: Sequence[int], x: Array, xp: Any) -> Iterator[Array]:
    """For each number an integer array (B,) on x's device, as a network gets it; many are made at a time."""
    batch = x.shape[0]
    many = max(1, 2**16 // max(1, batch))
    for first in range(0, len(numbers), many):
        column = np.array(numbers[first : first + many])[:, None]
        table = time_array(np.repeat(column, batch, axis=1), 0, x, xp)
        if hasattr(table, "unbind"):  # Torch's, far faster than one by one
            yield from table.unbind()
        else:  # not by `unstack`: JAX compiles an output for each row of it
            yield from (table[k, ...] for k in range(len(column)))


@lru_cache(maxsize=16)
def _default_int(xp: Any) -> Any:
    return xp.__array_namespace_info__().default_dtypes()["integral"]
