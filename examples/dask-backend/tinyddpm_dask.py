"""Dask arrays, cut in chunks and computed when needed, as a backend of tinyddpm: for data sets larger than memory."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

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


def _from_numpy(array: Any, *, dtype: str | None = None, device: Any = None) -> Any:
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"device: {device!r} is not here; this plug-in has cpu only")
    return _dask().from_array(np.asarray(array, dtype))


def _to_numpy(x: Any) -> Any:
    return np.array(x)


def _log_ndtr(x: Any) -> Any:
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
