"""CuPy, on CUDA devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable, Row, counters, depth, table

from . import checked_dtype, host_copy, load
from ._cupy_kernels import LOG_NDTR, NOISE_AND_STEP

__all__ = ["BACKEND"]

_DTYPES = ("float16", "float32", "float64")


def _cupy() -> Any:
    """CuPy, if it is installed and finds a device."""
    cupy = load("cupy", 'pip install "tinyddpm[cupy]" (CUDA 12) or "tinyddpm[cupy13]" (CUDA 13)')
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no driver, no library, no permission
        raise BackendUnavailable(f"cupy finds no CUDA device ({error}); it needs an NVIDIA GPU and its driver") from error
    if count == 0:
        raise BackendUnavailable("cupy finds no CUDA device; it needs an NVIDIA GPU and its driver")
    return cupy


def _namespace() -> Any:
    """array-api-compat's namespace for CuPy."""
    _cupy()
    import array_api_compat.cupy

    return array_api_compat.cupy


def _devices() -> tuple[str, ...]:
    """The CUDA devices."""
    return tuple(f"cuda:{i}" for i in range(_cupy().cuda.runtime.getDeviceCount()))


def _device(device: Any) -> int:
    """The number of a device that can be used here; None stands for the current one."""
    cupy, devices = _cupy(), _devices()
    if device is None:
        return int(cupy.cuda.Device().id)
    if isinstance(device, cupy.cuda.Device):
        return int(device.id)
    name = "cuda:0" if device == "cuda" else str(device)
    if name not in devices:
        raise BackendUnavailable(f"device must be one of {', '.join(devices)} for CuPy, got {name!r}")
    return devices.index(name)


def _from_numpy(array: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """A copy on the device."""
    cupy, place = _cupy(), _device(device)
    host = host_copy(array)
    if dtype is not None:
        host = host.astype(checked_dtype(dtype, _DTYPES), copy=False)
    with cupy.cuda.Device(place):
        return cupy.asarray(host)


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A copy on the host."""
    return np.asarray(_cupy().asnumpy(x))


@lru_cache(maxsize=1)
def _log_ndtr_kernel() -> Any:
    """The kernel of the normal CDF, compiled."""
    return _cupy().ElementwiseKernel("float64 x", "float64 y", LOG_NDTR, "tinyddpm_log_ndtr")


def _log_ndtr(x: Any) -> Any:
    """log Phi(x), computed in float64."""
    with x.device:
        return _log_ndtr_kernel()(x.astype(np.float64)).astype(x.dtype)


@lru_cache(maxsize=1)
def _kernels() -> Any:
    """The kernels, compiled."""
    return _cupy().RawModule(code=NOISE_AND_STEP)


def _normal(seed: int, index: Any, step: int, shape: tuple[int, ...], *, stream: int, device: Any, dtype: str) -> Any:
    """The noise kernel: Philox4x64-10 and Box-Muller in one pass, laid out as `tinyddpm.noise` says."""
    cupy, place = _cupy(), _device(device)
    checked_dtype(dtype, _DTYPES)
    n, count = math.prod(shape), len(index)
    blocks, real = -(-n // 8), "float64" if dtype == "float64" else "float32"
    with cupy.cuda.Device(place):
        out = cupy.empty((count, *shape), real)
        if out.size:
            low, high = map(cupy.asarray, counters(index, blocks))
            threads = count * ((blocks + 1) // 2)
            words = map(np.uint64, (seed, stream, step, blocks, n, count))
            _kernels().get_function(f"normal_{real}")((-(-threads // 128),), (128,), (out, low, high, *words))
        return out.astype(dtype, copy=False)


class _Stepper:
    """The steps of one run: one kernel each, in place, with the noise inside."""

    def __init__(
        self, rows: Sequence[Row], x: Any, *, seed: int, index: Any, clip: tuple[float, float] | None, keep_x0: bool
    ) -> None:
        cupy = _cupy()
        self._rows, self._seed, self._n = rows, seed, math.prod(x.shape[1:])
        self._range = [np.float64(end) for end in clip or (-math.inf, math.inf)]
        with x.device:
            self.state = x.copy(order="C")
            self._base = self.state.copy() if any(row.base is not None for row in rows) else self.state
            kept = depth(rows) if depth(rows) > 1 else int(keep_x0)
            self._history = [cupy.zeros_like(self.state) for _ in range(kept)]
            self._table = cupy.asarray(table(rows, 3))
            self._counters = [cupy.asarray(words) for words in counters(index, -(-self._n // 8))]
        self._kernel = _kernels().get_function(f"step_{x.dtype}")

    @property
    def x0(self) -> Any:
        """The newest prediction of x_0, if it is kept."""
        return self._history[0]

    def step(self, k: int, value: Any, std: Any = None, z: Any = None) -> None:
        """Make the step of row k."""
        self._history = self._history[-1:] + self._history[:-1]
        null, blocks, count = np.uint64(0), -(-self._n // 8), self.state.shape[0]
        if self.state.size == 0:
            return
        with self.state.device:
            x0, before, earlier = (*self._history, null, null, null)[:3]
            given = (null if array is None else _cupy().ascontiguousarray(array) for array in (value, std, z))
            drawn = np.uint64(z is None and self._rows[k].std != 0.0)
            words = map(np.uint64, (self._seed, 0, self._rows[k].t, blocks, self._n, count))
            pointers = self.state, self._base, x0, before, earlier, *given, self._table[k]
            threads = count * ((blocks + 1) // 2)
            self._kernel((-(-threads // 128),), (128,), (*pointers, *self._range, drawn, *self._counters, *words))


def _stepper(rows: Sequence[Row], x: Any, **options: Any) -> Any:
    """The steps as kernels, for float32 and float64 and as many predictions as the kernel has room for."""
    served = x.dtype in (np.float32, np.float64) and depth(rows) <= 3
    return _Stepper(rows, x, **options) if served else NotImplemented


BACKEND = Backend(
    name="cupy",
    roots=("cupy",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=_devices,
    version=lambda: str(_cupy().__version__),
    normal=_normal,
    stepper=_stepper,
)
