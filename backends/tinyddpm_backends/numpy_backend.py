"""NumPy: the reference backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable, Row

from . import _host_noise, _host_steps, checked_dtype, host_copy

__all__ = ["BACKEND"]

_DTYPES = ("float16", "float32", "float64")


def _namespace() -> Any:
    """array-api-compat's namespace for NumPy."""
    import array_api_compat.numpy

    return array_api_compat.numpy


def _from_numpy(array: Any, *, dtype: Any = None, device: Any = None) -> np.ndarray[Any, Any]:
    """A copy."""
    _check_device(device)
    host = host_copy(array)
    return host if dtype is None else host.astype(checked_dtype(dtype, _DTYPES), copy=False)


def _check_device(device: Any) -> None:
    """Raise BackendUnavailable unless the device is the CPU, NumPy's only one."""
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"device must be 'cpu' for NumPy, got {device!r}")


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A copy."""
    return np.array(x, copy=True)


def _log_ndtr(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """log Phi(x), computed in float64: SciPy's, except on the right, where its x**2 rounds away digits of tiny results."""
    from scipy.special import erfcx, log_ndtr

    wide = np.asarray(x, dtype=np.float64)
    with np.errstate(all="ignore"):
        right = np.clip(wide, 0, 40)
        near = np.round(right * 16) / 16  # right**2 as near**2, which is exact, and a small rest
        density = np.exp(-near * near / 2) * np.exp(-(right - near) * (right + near) / 2)
        upper = np.log1p(density * erfcx(right * math.sqrt(0.5)) / -2)
        value: np.ndarray[Any, Any] = np.where(wide > 1, upper, log_ndtr(wide))
        return value.astype(x.dtype, copy=False)


def _normal(
    seed: int, index: Any, step: int, shape: tuple[int, ...], *, stream: int, device: Any, dtype: str
) -> np.ndarray[Any, Any]:
    """The draw of `tinyddpm.noise`."""
    _check_device(device)
    checked_dtype(dtype, _DTYPES)
    drawn = _host_noise.normal(seed, index, step, shape, stream, "float64" if dtype == "float64" else "float32")
    return drawn.astype(dtype, copy=False)


def _stepper(rows: Sequence[Row], x: np.ndarray[Any, Any], **options: Any) -> Any:
    """The steps in place, for float32 and float64."""
    return _host_steps.NumpyStepper(rows, x, **options) if x.dtype in (np.float32, np.float64) else NotImplemented


BACKEND = Backend(
    name="numpy",
    roots=("numpy",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=lambda: ("cpu",),
    version=lambda: np.__version__,
    normal=_normal,
    stepper=_stepper,
)
