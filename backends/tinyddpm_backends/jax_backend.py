"""JAX, on any of its platforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable, Row, counters, depth, reverse_step, table

from . import _host_noise, checked_dtype, host_copy, load

__all__ = ["BACKEND"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_LOW = np.uint64(2**32 - 1)


def _jax() -> Any:
    """JAX, imported."""
    return load("jax", 'pip install "tinyddpm[jax]"')


def _namespace() -> Any:
    """jax.numpy."""
    return _jax().numpy


def _found() -> dict[str, Any]:
    """The devices by name: "cpu" for the host, "cuda:0" or "tpu:0" and so on for others."""
    jax = _jax()
    try:
        devices = [*jax.devices()]
        if jax.default_backend() != "cpu":
            devices += jax.devices("cpu")
    except RuntimeError as error:
        raise BackendUnavailable(f"jax finds no device ({error}); check JAX_PLATFORMS and the jaxlib plug-in") from error
    platform = {"gpu": "cuda"}
    return {"cpu" if d.platform == "cpu" and d.id == 0 else f"{platform.get(d.platform, d.platform)}:{d.id}": d for d in devices}


def _device(device: Any) -> Any:
    """JAX's object for a device that can be used here; None stands for its default. "cuda" is the first of its kind."""
    found = _found()
    if device is None or device in found.values():
        return device
    name = f"{device}:0" if f"{device}:0" in found else "cpu" if device == "cpu:0" else str(device)
    if name not in found:
        raise BackendUnavailable(f"device must be one of {', '.join(found)} for JAX, got {name!r}")
    return found[name]


def _canonical(dtype: Any) -> Any:
    """The dtype that JAX uses for a dtype: 64 bits become 32 unless its x64 mode is on."""
    return _jax().dtypes.canonicalize_dtype(dtype)


def _needs_x64(dtype: Any) -> ValueError:
    """The error for a dtype that needs JAX's x64 mode."""
    return ValueError(
        f"dtype must be at most 32 bits wide in JAX's default mode, got {dtype}; "
        'call jax.config.update("jax_enable_x64", True) first'
    )


def _from_numpy(array: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """A copy on the device."""
    jax, place = _jax(), _device(device)
    host = host_copy(array)
    if dtype is not None:
        host = host.astype(jax.numpy.dtype(checked_dtype(dtype, _DTYPES)), copy=False)
    narrowed = host.astype(_canonical(host.dtype), copy=False)
    if narrowed.dtype != host.dtype and (host.dtype.kind == "f" or not np.array_equal(narrowed, host)):
        raise _needs_x64(host.dtype)
    return jax.device_put(narrowed, place)


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A copy on the host; NumPy has no bfloat16, which becomes float32."""
    host = np.array(x, copy=True)
    return host.astype(np.float32) if host.dtype.name == "bfloat16" else host


def _mills(x: Any) -> Any:
    """phi(x) / Phi(-x) for x >= 4 by Laplace's continued fraction x + 1/(x + 2/(x + 3/...)), to 4e-16."""
    rest = x
    for k in range(30, 0, -1):
        rest = x + k / rest
    return rest


@lru_cache(maxsize=1)
def _log_ndtr_function() -> Any:
    """log Phi as a compiled function that JAX can differentiate."""
    jax = _jax()
    jnp, erfc, root = jax.numpy, jax.scipy.special.erfc, math.sqrt(2 * math.pi)

    def density(x: Any) -> Any:
        """phi, with x**2 as a square that is exact and a small rest; XLA would merge two exps, hence expm1."""
        near = jnp.round(x * 16) / 16
        first = jnp.exp(-near * near / 2) / root
        return first + first * jnp.expm1(-(x - near) * (x + near) / 2)

    def hazard(x: Any) -> Any:
        """phi(x) / Phi(x), the derivative of log Phi, by a continued fraction on the left, where both underflow."""
        left, inner = jnp.where(x < -4, x, -4), jnp.where(x < -4, -4, jnp.where(x > 40, 40, x))
        return jnp.where(x < -4, _mills(-left), density(inner) / (erfc(inner * -math.sqrt(0.5)) / 2))

    @jax.custom_jvp  # type: ignore[untyped-decorator]
    def log_ndtr(x: Any) -> Any:
        left, middle, right = jnp.minimum(x, -4), jnp.clip(x, -4, 4), jnp.clip(x, 4, 40)
        lower = -left * left / 2 - jnp.log(_mills(-left) * root)
        tail = jnp.where(x > 4, density(right) / _mills(right), erfc(middle * math.sqrt(0.5)) / 2)
        inner = jnp.where(x < 0.5, jnp.log(erfc(middle * -math.sqrt(0.5)) / 2), jnp.log1p(-tail))
        return jnp.where(x < -4, lower, inner)

    @log_ndtr.defjvp  # type: ignore[untyped-decorator]
    def _jvp(primals: Any, tangents: Any) -> Any:
        (x,), (dx,) = primals, tangents
        return log_ndtr(x), hazard(x) * dx

    def widened(x: Any) -> Any:
        """log Phi(x), in float32 for narrower dtypes."""
        return log_ndtr(x.astype(jnp.float32)).astype(x.dtype) if x.dtype.itemsize < 4 else log_ndtr(x)

    return jax.jit(widened)


def _log_ndtr(x: Any) -> Any:
    """log Phi(x)."""
    return _log_ndtr_function()(x)


def _normal(seed: int, index: Any, step: int, shape: tuple[int, ...], *, stream: int, device: Any, dtype: str) -> Any:
    """The noise kernel, on an accelerator; on a CPU NumPy draws faster."""
    place = _device(device) or _jax().devices()[0]
    return NotImplemented if place.platform == "cpu" else _draw(seed, index, step, shape, stream, place, dtype)


def _draw(seed: int, index: Any, step: int, shape: tuple[int, ...], stream: int, place: Any, dtype: str) -> Any:
    """Philox4x64-10 and Box-Muller in one compiled function, laid out as `tinyddpm.noise` says."""
    if dtype == "float64" and _canonical(dtype) != dtype:
        raise _needs_x64(dtype)
    words = np.array([seed, stream, step], np.uint64), *counters(index, -(-math.prod(shape) // 8))
    pairs = [np.stack((word & _LOW, word >> np.uint64(32))).astype(np.uint32) for word in words]
    return _kernel()(*_jax().device_put(pairs, place), shape=shape, dtype=dtype)


def _add(x: Any, y: Any) -> tuple[Any, Any]:
    """x + y of two uint64, each a (low, high) pair of uint32, since JAX has no uint64 outside its x64 mode."""
    low = x[0] + y[0]
    return low, x[1] + y[1] + (low < x[0]).astype(np.uint32)


def _multiply32(x: Any, y: int) -> tuple[Any, Any]:
    """The (low, high) words of the 64-bit product of a uint32 and a constant, from 16-bit halves."""
    half, low = np.uint32(16), np.uint32(0xFFFF)
    y0, y1 = np.uint32(y & 0xFFFF), np.uint32(y >> 16)
    x0, x1 = x & low, x >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    return x * np.uint32(y), x1 * y1 + (middle >> half) + (x0 * y1 + (middle & low) >> half)


def _multiply(x: Any, y: int) -> tuple[Any, Any]:
    """The low and high uint64 of the 128-bit product of a uint64 and a constant, as (low, high) pairs."""
    zero = x[0] & np.uint32(0)
    p00, p10 = _multiply32(x[0], y & 0xFFFFFFFF), _multiply32(x[1], y & 0xFFFFFFFF)
    p01, p11 = _multiply32(x[0], y >> 32), _multiply32(x[1], y >> 32)
    middle = _add(_add((p00[1], zero), (p01[0], zero)), (p10[0], zero))
    return (p00[0], middle[0]), _add(_add(_add(p11, (p01[1], zero)), (p10[1], zero)), (middle[1], zero))


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """The noise kernel, compiled: words of (seed, stream, step) and the samples' first counters to normals."""
    jax = _jax()
    jnp = jax.numpy

    def constant(word: int) -> tuple[Any, Any]:
        """A uint64 as a (low, high) pair."""
        return np.uint32(word & 0xFFFFFFFF), np.uint32(word >> 32)

    def turn(_: Any, state: Any) -> Any:
        """One of Philox's ten rounds."""
        (a, b, c, d), key0, key1 = state
        (low0, high0), (low1, high1) = _multiply(a, 0xD2E7470EE14C6C93), _multiply(c, 0xCA5A826395121157)
        a = tuple(x ^ y ^ k for x, y, k in zip(high1, b, key0, strict=True))
        c = tuple(x ^ y ^ k for x, y, k in zip(high0, d, key1, strict=True))
        return (a, low1, c, low0), _add(key0, constant(0x9E3779B97F4A7C15)), _add(key1, constant(0xBB67AE8584CAA73B))

    def philox(scalars: Any, low: Any, high: Any, blocks: int) -> Any:
        """Each sample's 8 * blocks random uint32."""
        seed, stream, step = ((scalars[0, i], scalars[1, i]) for i in range(3))
        first = low[0][:, None], low[1][:, None]
        a = _add(first, (jnp.arange(blocks, dtype=np.uint32), np.uint32(0)))
        wrapped = (a[1] < first[1]) | ((a[1] == first[1]) & (a[0] < first[0]))
        zero = jnp.zeros_like(a[0])
        b = _add((high[0][:, None] + zero, high[1][:, None] + zero), (wrapped.astype(np.uint32), zero))
        state = (a, b, (step[0] + zero, step[1] + zero), (zero, zero)), seed, stream
        words, _, _ = jax.lax.fori_loop(0, 10, turn, state)
        return jnp.stack([part for word in words for part in word], -1).reshape(low.shape[1], -1)

    def normal(scalars: Any, low: Any, high: Any, *, shape: tuple[int, ...], dtype: str) -> Any:
        """The samples' normals."""
        n, count = math.prod(shape), low.shape[1]
        real = jnp.float64 if dtype == "float64" else jnp.float32
        pairs = philox(scalars, low, high, -(-n // 8)).reshape(count, 2, -1)
        u = (pairs[:, 0].astype(real) + 0.5) * 2**-32
        angle = jax.lax.bitcast_convert_type(pairs[:, 1], np.int32).astype(real) * (2 * math.pi * 2**-32)
        r = jnp.sqrt(jnp.log(u) * -2)
        z = jnp.concatenate((r * jnp.cos(angle), r * jnp.sin(angle)), 1)[:, :n]
        return z.reshape(count, *shape).astype(dtype)

    return jax.jit(normal, static_argnames=("shape", "dtype"))


@lru_cache(maxsize=1)
def _compiled_step() -> Any:
    """`reverse_step` with the weights of one row of `table`, compiled."""
    jax = _jax()

    def step(state: Any, base: Any, history: Any, value: Any, weights: Any, std: Any, z: Any, *, clip: Any) -> Any:
        """The new state, base and predictions, and whether the network's output is finite; None for a base that is the state."""
        separate, width = base is not None, len(history) + 1
        split = weights[:2], weights[3 : 3 + width], weights[3 + width :] if separate else None
        noise = None if z is None else (weights[2] if std is None else std) * z
        finite, base = jax.numpy.isfinite(value).all(), base if separate else state
        state, base, history = reverse_step(state, base, history, value, split, noise, clip=clip, xp=jax.numpy)
        return state, base if separate else None, history, finite  # the same array twice would be copied

    return jax.jit(step, static_argnames=("clip",))


class _Stepper:
    """The steps of one run, each one call of a compiled function; JAX's arrays are immutable, so each state is a new one."""

    def __init__(
        self, rows: Sequence[Row], x: Any, *, seed: int, index: Any, clip: tuple[float, float] | None, keep_x0: bool
    ) -> None:
        (self._place,) = x.devices()
        self._rows, self._seed, self._index, self._clip = rows, seed, index, clip
        self._table = table(rows, depth(rows)).astype(x.dtype)
        self.state, self._base = x, x if any(row.base is not None for row in rows) else None
        self._history = (x,) * depth(rows)

    @property
    def x0(self) -> Any:
        """The newest prediction of x_0."""
        return self._history[0]

    def step(self, k: int, value: Any, std: Any = None, z: Any = None) -> bool | None:
        """Make the step of row k; on a CPU, return whether the network's output is finite."""
        row, on_host = self._rows[k], self._place.platform == "cpu"
        if z is None and row.std != 0.0:
            key = self._seed, self._index, row.t, tuple(self.state.shape[1:]), 0
            dtype = str(self.state.dtype)
            z = _host_noise.normal(*key, dtype) if on_host else _draw(*key, self._place, dtype)
        arrays = self.state, self._base, self._history, value, self._table[k], std, z
        self.state, self._base, self._history, finite = _compiled_step()(*arrays, clip=self._clip)
        return bool(finite) if on_host else None


def _stepper(rows: Sequence[Row], x: Any, **options: Any) -> Any:
    """The steps compiled, for float32 and float64 on one device."""
    single = len(x.devices()) == 1 and str(x.dtype) in ("float32", "float64")
    return _Stepper(rows, x, **options) if single else NotImplemented


BACKEND = Backend(
    name="jax",
    roots=("jax", "jaxlib"),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=lambda: tuple(_found()),
    version=lambda: str(_jax().__version__),
    normal=_normal,
    stepper=_stepper,
)
