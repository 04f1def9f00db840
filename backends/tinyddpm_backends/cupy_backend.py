"""CuPy, on CUDA devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

from . import host_array, known, load

__all__ = ["BACKEND"]

_DTYPES = ("float16", "float32", "float64")


def _cupy() -> Any:
    """CuPy, where it is installed and finds a device."""
    cupy = load("cupy", 'pip install "tinyddpm[cupy]" (CUDA 12) or "tinyddpm[cupy13]" (CUDA 13)')
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no driver, no library, no permission
        raise BackendUnavailable(f"cupy finds no CUDA device ({error}); it needs an NVIDIA GPU and its driver") from error
    if count == 0:
        raise BackendUnavailable("cupy finds no CUDA device; it needs an NVIDIA GPU and its driver")
    return cupy


def _namespace() -> Any:
    _cupy()
    import array_api_compat.cupy

    return array_api_compat.cupy


def _devices() -> tuple[str, ...]:
    return tuple(f"cuda:{i}" for i in range(_cupy().cuda.runtime.getDeviceCount()))


def _index(device: Any) -> int:
    """The number of a device that can be used here; None is the current one."""
    cupy, devices = _cupy(), _devices()
    if device is None:
        return int(cupy.cuda.Device().id)
    if isinstance(device, cupy.cuda.Device):
        return int(device.id)
    name = "cuda:0" if device == "cuda" else str(device)
    if name not in devices:
        raise BackendUnavailable(f"device: {name!r} is not here; CuPy has {', '.join(devices)}")
    return devices.index(name)


def _from_numpy(array: Any, *, dtype: str | None = None, device: Any = None) -> Any:
    cupy, index = _cupy(), _index(device)
    host = host_array(array)
    if dtype is not None:
        host = host.astype(known("dtype", dtype, _DTYPES), copy=False)
    with cupy.cuda.Device(index):
        return cupy.asarray(host)


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(_cupy().asnumpy(x))


def _log_ndtr(x: Any) -> Any:
    raise NotImplementedError


BACKEND = Backend(
    name="cupy",
    roots=("cupy",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=_devices,
    version=lambda: str(_cupy().__version__),
)
