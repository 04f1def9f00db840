"""The built-in backends, one module each, which `tinyddpm.backends.get` finds; none imports its library before it is used."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from tinyddpm.backends import BackendUnavailable, as_dtype_name

__all__ = ["checked_dtype", "host_copy", "load"]


def load(module: str, remedy: str) -> Any:
    """Import `module`, or raise `BackendUnavailable` with the reason and the remedy."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may fail in any way
        raise BackendUnavailable(f"{module} can't be imported ({error}); {remedy}") from error


def checked_dtype(dtype: Any, known: tuple[str, ...]) -> str:
    """Return the name of a dtype that is one of the known ones, given by name or itself."""
    name = as_dtype_name("dtype", dtype)
    if name not in known:
        raise LookupError(f"dtype must be one of {', '.join(known)}, got {name!r}")
    return name


def host_copy(array: object) -> np.ndarray[Any, Any]:
    """Return a C-ordered copy in native byte order, which the caller does not share."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("array must be a plain array, got a masked one; use array.filled(value)")
    host = np.asarray(array)
    if host.dtype.kind not in "biuf":
        raise TypeError(f"array must be a NumPy array of numbers, got {type(array).__name__} of {host.dtype}")
    return np.array(host, dtype=host.dtype.newbyteorder("="), order="C", copy=True)
