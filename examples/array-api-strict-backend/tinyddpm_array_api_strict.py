"""array-api-strict, which has the array-API standard and nothing else, as a backend of tinyddpm."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

__all__ = ["BACKEND"]


def _namespace() -> Any:
    try:
        import array_api_strict
    except ModuleNotFoundError as error:
        raise BackendUnavailable("array-api-strict is not installed; pip install array-api-strict") from error
    return array_api_strict


def _from_numpy(array: Any, *, dtype: str | None = None, device: Any = None) -> Any:
    xp = _namespace()
    place = xp.Device(device) if isinstance(device, str) else device
    return xp.asarray(np.array(array), dtype=None if dtype is None else getattr(xp, dtype), device=place)


def _to_numpy(x: Any) -> Any:
    xp = _namespace()
    return np.array(xp.asarray(x, device=xp.Device("CPU_DEVICE")))


def _log_ndtr(x: Any) -> Any:
    """The standard has no normal CDF: SciPy's, on the host."""
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
