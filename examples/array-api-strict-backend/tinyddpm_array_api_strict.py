"""A backend of tinyddpm for array-api-strict, a library that has the array-API standard and nothing else."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from tinyddpm.backends import Array, Backend, BackendUnavailable, as_dtype_name

__all__ = ["BACKEND"]


def _namespace() -> Any:
    try:
        import array_api_strict
    except ModuleNotFoundError as error:
        raise BackendUnavailable("array-api-strict is not installed; pip install array-api-strict") from error
    return array_api_strict


def _from_numpy(array: Any, *, dtype: Any = None, device: Any = None) -> Array:
    xp = _namespace()
    to = None if dtype is None else getattr(xp, as_dtype_name("dtype", dtype))
    return xp.asarray(np.array(array), dtype=to, device=xp.Device(device) if isinstance(device, str) else device)


def _to_numpy(x: Array) -> np.ndarray[Any, Any]:
    xp = _namespace()
    return np.array(xp.asarray(x, device=xp.Device("CPU_DEVICE")))


def _log_ndtr(x: Array) -> Array:
    """SciPy's, on the host, since the standard has no normal CDF."""
    from scipy.special import log_ndtr

    return _from_numpy(log_ndtr(_to_numpy(x)), device=x.device)


def _devices() -> tuple[str, ...]:
    return tuple(str(device) for device in _namespace().__array_namespace_info__().devices())


BACKEND = Backend(
    name="array-api-strict",
    roots=("array_api_strict",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=_devices,
    version=lambda: version("array-api-strict"),
)
