"""A backend of tinyddpm for Dask arrays, which are cut in chunks and computed when needed: for data sets larger than memory."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from tinyddpm.backends import Array, Backend, BackendUnavailable, as_dtype_name

__all__ = ["BACKEND"]


def _dask() -> Any:
    try:
        import dask.array
    except ModuleNotFoundError as error:
        raise BackendUnavailable("dask is not installed; pip install 'dask[array]'") from error
    return dask.array


def _namespace() -> Any:
    _dask()
    import array_api_compat.dask.array

    return array_api_compat.dask.array


def _from_numpy(array: Any, *, dtype: Any = None, device: Any = None) -> Array:
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"device must be 'cpu' for Dask, got {device!r}")
    return _dask().from_array(np.asarray(array, None if dtype is None else as_dtype_name("dtype", dtype)))


def _to_numpy(x: Array) -> np.ndarray[Any, Any]:
    return np.array(x)


def _log_ndtr(x: Array) -> Array:
    from scipy.special import log_ndtr

    return _dask().map_blocks(log_ndtr, x, dtype=x.dtype)


BACKEND = Backend(
    name="dask",
    roots=("dask",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=lambda: ("cpu",),
    version=lambda: version("dask"),
)
