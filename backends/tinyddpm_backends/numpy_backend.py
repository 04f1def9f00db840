"""NumPy: the reference backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

from . import _host_noise, _host_steps, host_array, known

__all__ = ["BACKEND"]

_DTYPES = ("float16", "float32", "float64")


def _namespace() -> Any:
    import array_api_compat.numpy

    return array_api_compat.numpy


def _from_numpy(array: Any, *, dtype: str | None = None, device: Any = None) -> np.ndarray[Any, Any]:
    _check(device)
    own = host_array(array)
    return own if dtype is None else own.astype(known("dtype", dtype, _DTYPES), copy=False)


def _check(device: Any) -> None:
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"device: {device!r} is not here; NumPy has cpu only")


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    return np.array(x, copy=True)


def _log_ndtr(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """log Phi(x); SciPy's, save on the right, where its x**2 rounds away digits of tiny results. Computed in float64."""
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
    _check(device)
    known("dtype", dtype, _DTYPES)
    return _host_noise.normal(seed, index, step, shape, stream, "float64" if dtype == "float64" else "float32").astype(
        dtype, copy=False
    )


def _stepper(rows: Any, x: np.ndarray[Any, Any], **options: Any) -> Any:
    return _host_steps.Stepper(rows, x, **options) if x.dtype in (np.float32, np.float64) else NotImplemented


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
