"""CuPy, on CUDA devices."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

from . import counters, depth, host_array, known, load, table

__all__ = ["BACKEND", "LOG_NDTR", "NOISE"]

_DTYPES = ("float16", "float32", "float64")

# As a square that is exact and a small rest, x*x keeps the digits of tiny results on the right.
LOG_NDTR = """
if (x > 0.0) {
    double near = round(fmin(x, 40.0) * 16.0) / 16.0, rest = fmin(x, 40.0) - near;
    double density = exp(near * near * -0.5) * exp(rest * (fmin(x, 40.0) + near) * -0.5);
    y = log1p(density * erfcx(fmin(x, 40.0) * 0.70710678118654752) * -0.5);
} else {
    y = isinf(x) ? x : log(erfcx(x * -0.70710678118654752) * 0.5) - x * x * 0.5;
}
"""

# A thread makes 8 pairs of normals of one sample: those of one Philox block of radii and of the angles half a sample
# further on, which lie astride two blocks where a sample has an odd number of them.
NOISE = r"""
typedef unsigned long long word;

__device__ void philox(word a, word b, word c, word key0, word key1, unsigned int *out)
{
    word d = 0;
    for (int turn = 0; turn < 10; ++turn) {
        word high0 = __umul64hi(a, 0xD2E7470EE14C6C93ULL), low0 = a * 0xD2E7470EE14C6C93ULL;
        word high1 = __umul64hi(c, 0xCA5A826395121157ULL), low1 = c * 0xCA5A826395121157ULL;
        a = high1 ^ b ^ key0;
        b = low1;
        c = high0 ^ d ^ key1;
        d = low0;
        key0 += 0x9E3779B97F4A7C15ULL;
        key1 += 0xBB67AE8584CAA73BULL;
    }
    const word words[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = (unsigned int)words[i];
        out[2 * i + 1] = (unsigned int)(words[i] >> 32);
    }
}

__device__ void box_muller(unsigned int b, unsigned int c, float *x, float *y)
{
    float r = sqrtf(logf(((float)b + 0.5f) * 2.3283064365386963e-10f) * -2.0f), s, t;
    sincosf((float)(int)c * 1.4629180792671596e-09f, &s, &t);
    *x = r * t;
    *y = r * s;
}

__device__ void box_muller(unsigned int b, unsigned int c, double *x, double *y)
{
    double r = sqrt(log(((double)b + 0.5) * 2.3283064365386963e-10) * -2.0), s, t;
    sincos((double)(int)c * 1.4629180792671596e-09, &s, &t);
    *x = r * t;
    *y = r * s;
}

template <typename real>
struct Store { real *out; };

template <typename real>
__device__ void put(const Store<real> &to, word i, real z)
{
    to.out[i] = z;
}

template <typename real>
struct Move {
    real *state, *base, *x0;
    const real *before, *earlier, *value, *std, *z;
    const double *row;
    bool clip;
};

template <typename real>
__device__ void put(const Move<real> &to, word i, real z)
{
    const double *w = to.row;
    real base = to.base[i], before = to.before ? to.before[i] : (real)0, earlier = to.earlier ? to.earlier[i] : (real)0;
    real x0 = (real)w[0] * to.value[i] + (real)w[1] * to.state[i];
    if (to.clip)
        x0 = x0 < (real)-1 ? (real)-1 : x0 > (real)1 ? (real)1 : x0;
    real noise = (to.std ? to.std[i] : (real)w[2]) * (to.z ? to.z[i] : z);
    real state = (real)w[3] * base + (real)w[4] * x0 + (real)w[5] * before + (real)w[6] * earlier + noise;
    to.state[i] = state;
    if (to.x0)
        to.x0[i] = x0;
    if (to.base != to.state)
        to.base[i] = (real)w[7] * state + (real)w[8] * base + (real)w[9] * x0 + (real)w[10] * before + (real)w[11] * earlier;
}

template <typename real, typename Target>
__device__ void normal(Target out, bool drawn, const word *low, const word *high, word seed, word stream, word step,
                       word blocks, word n, word count)
{
    word threads = (blocks + 1) / 2, thread = (word)blockIdx.x * blockDim.x + threadIdx.x;
    word sample = thread / threads, part = thread % threads, half = 4 * blocks;
    if (sample >= count)
        return;
    word first = low[sample], carried = high[sample];
    unsigned int radii[8] = {0}, angles[8] = {0};
    if (drawn)
        philox(first + part, carried + (first + part < first), step, seed, stream, radii);
    word held = ~0ULL;
    #pragma unroll
    for (int side = 0; side < 2; ++side) {
        word four = 2 * part + side, block = (blocks + four) / 2;
        bool odd = (blocks + four) % 2;
        if (four >= blocks)
            return;
        if (drawn && block != held)
            philox(first + block, carried + (first + block < first), step, seed, stream, angles);
        held = block;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            word place = 4 * four + i;
            real x = 0, y = 0;
            if (drawn)
                box_muller(radii[4 * side + i], odd ? angles[4 + i] : angles[i], &x, &y);
            if (place < n)
                put(out, sample * n + place, x);
            if (half + place < n)
                put(out, sample * n + half + place, y);
        }
    }
}
"""
_ENTRIES = """
extern "C" __global__ void normal_DTYPE(REAL *out, const word *low, const word *high, word seed, word stream,
                                          word step, word blocks, word n, word count)
{
    normal<REAL>(Store<REAL>{out}, true, low, high, seed, stream, step, blocks, n, count);
}

extern "C" __global__ void move_DTYPE(REAL *state, REAL *base, REAL *x0, const REAL *before, const REAL *earlier,
                                        const REAL *value, const REAL *std, const REAL *z, const double *row,
                                        word clip, word drawn, const word *low, const word *high, word seed, word stream,
                                        word step, word blocks, word n, word count)
{
    Move<REAL> move = {state, base, x0, before, earlier, value, std, z, row, clip != 0};
    normal<REAL>(move, drawn != 0, low, high, seed, stream, step, blocks, n, count);
}
"""
NOISE += "".join(
    _ENTRIES.replace("DTYPE", dtype).replace("REAL", real) for real, dtype in (("float", "float32"), ("double", "float64"))
)


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


@lru_cache(maxsize=1)
def _log_ndtr_kernel() -> Any:
    return _cupy().ElementwiseKernel("float64 x", "float64 y", LOG_NDTR, "tinyddpm_log_ndtr")


def _log_ndtr(x: Any) -> Any:
    """log Phi(x), computed in float64."""
    with x.device:
        return _log_ndtr_kernel()(x.astype(np.float64)).astype(x.dtype)


@lru_cache(maxsize=1)
def _noise_kernels() -> Any:
    return _cupy().RawModule(code=NOISE)


def _normal(seed: int, index: Any, step: int, shape: tuple[int, ...], *, stream: int, device: Any, dtype: str) -> Any:
    """The noise kernel: Philox4x64-10 and Box-Muller in one pass, laid out as `tinyddpm.noise` says."""
    cupy, place = _cupy(), _index(device)
    known("dtype", dtype, _DTYPES)
    n, count = math.prod(shape), len(index)
    blocks, real = -(-n // 8), "float64" if dtype == "float64" else "float32"
    with cupy.cuda.Device(place):
        out = cupy.empty((count, *shape), real)
        if out.size:
            low, high = map(cupy.asarray, counters(index, blocks))
            threads = count * ((blocks + 1) // 2)
            words = map(np.uint64, (seed, stream, step, blocks, n, count))
            _noise_kernels().get_function(f"normal_{real}")((-(-threads // 128),), (128,), (out, low, high, *words))
        return out.astype(dtype, copy=False)


class _Stepper:
    """The moves of one run: one kernel each, in place, with the noise inside."""

    def __init__(self, rows: Any, x: Any, *, seed: int, index: Any, clip: bool, keep_x0: bool) -> None:
        cupy = _cupy()
        self._rows, self._seed, self._clip, self._n = rows, seed, clip, math.prod(x.shape[1:])
        with x.device:
            self.state = x.copy(order="C")
            self._base = self.state.copy() if any(row.base is not None for row in rows) else self.state
            kept = depth(rows) if depth(rows) > 1 else int(keep_x0)
            self._history = [cupy.zeros_like(self.state) for _ in range(kept)]
            self._table = cupy.asarray(table(rows, 3))
            self._counters = [cupy.asarray(words) for words in counters(index, -(-self._n // 8))]
        self._kernel = _noise_kernels().get_function(f"move_{x.dtype}")

    @property
    def x0(self) -> Any:
        return self._history[0]

    def step(self, k: int, value: Any, std: Any = None, z: Any = None) -> None:
        self._history = self._history[-1:] + self._history[:-1]
        null, blocks, count = np.uint64(0), -(-self._n // 8), self.state.shape[0]
        if self.state.size == 0:
            return
        with self.state.device:
            x0, before, earlier = (*self._history, null, null, null)[:3]
            given = (null if array is None else _cupy().ascontiguousarray(array) for array in (value, std, z))
            drawn = z is None and self._rows[k].std != 0.0
            words = map(np.uint64, (self._seed, 0, self._rows[k].t, blocks, self._n, count))
            places = self.state, self._base, x0, before, earlier, *given, self._table[k]
            flags = np.uint64(self._clip), np.uint64(drawn)
            threads = count * ((blocks + 1) // 2)
            self._kernel((-(-threads // 128),), (128,), (*places, *flags, *self._counters, *words))


def _stepper(rows: Any, x: Any, **options: Any) -> Any:
    return _Stepper(rows, x, **options) if x.dtype in (np.float32, np.float64) else NotImplemented


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
