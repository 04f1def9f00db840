"""JAX, on any of its platforms."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

from . import host_array, known, load

__all__ = ["BACKEND"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def _jax() -> Any:
    return load("jax", 'pip install "tinyddpm[jax]"')


def _namespace() -> Any:
    return _jax().numpy


@lru_cache(maxsize=1)
def _found() -> dict[str, Any]:
    """Name -> device: "cpu" for the host, "cuda:0" (or "tpu:0", ...) for others; "cuda" is the first of its kind."""
    jax = _jax()
    try:
        devices = [*jax.devices()]
        if jax.default_backend() != "cpu":
            devices += jax.devices("cpu")
    except RuntimeError as error:
        raise BackendUnavailable(f"jax finds no device ({error}); check JAX_PLATFORMS and the jaxlib plug-in") from error
    platform = {"gpu": "cuda"}
    return {
        "cpu" if d.platform == "cpu" and d.id == 0 else f"{platform.get(d.platform, d.platform)}:{d.id}": d
        for d in devices
    }


def _device(device: Any) -> Any:
    """A device that can be used here; None is JAX's default."""
    found = _found()
    if device is None or device in found.values():
        return device
    name = f"{device}:0" if f"{device}:0" in found else "cpu" if device == "cpu:0" else str(device)
    if name not in found:
        raise BackendUnavailable(f"device: {name!r} is not here; JAX has {', '.join(found)}")
    return found[name]


def _from_numpy(array: Any, *, dtype: str | None = None, device: Any = None) -> Any:
    jax, place = _jax(), _device(device)
    host = host_array(array)
    if dtype is not None:
        host = host.astype(jax.numpy.dtype(known("dtype", dtype, _DTYPES)), copy=False)
    narrow = jax.dtypes.canonicalize_dtype(host.dtype)
    if narrow != host.dtype and not (host.dtype.kind in "iu" and np.array_equal(host, host.astype(narrow))):
        raise ValueError(
            f"dtype: JAX holds no {host.dtype} here; pass a narrower dtype or call "
            'jax.config.update("jax_enable_x64", True) at the start'
        )
    return jax.device_put(host.astype(narrow, copy=False), place)


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    host = np.array(x, copy=True)
    return host.astype(np.float32) if host.dtype.name == "bfloat16" else host


def _mills(x: Any) -> Any:
    """phi(x) / Phi(-x) for x >= 4 by Laplace's continued fraction x + 1/(x + 2/(x + 3/...)), to 4e-16."""
    rest = x
    for k in range(30, 0, -1):
        rest = x + k / rest
    return rest


@lru_cache(maxsize=1)
def _function() -> Any:
    jax = _jax()
    jnp, erfc, root = jax.numpy, jax.scipy.special.erfc, math.sqrt(2 * math.pi)

    def density(x: Any) -> Any:
        """phi, with x**2 as a square that is exact and a small rest; XLA would merge two exps, hence expm1."""
        near = jnp.round(x * 16) / 16
        first = jnp.exp(-near * near / 2) / root
        return first + first * jnp.expm1(-(x - near) * (x + near) / 2)

    def hazard(x: Any) -> Any:
        """phi(x) / Phi(x), the derivative of log Phi: by a continued fraction on the left, where both underflow."""
        inner = jnp.clip(x, -4, 40)
        return jnp.where(x < -4, _mills(-jnp.minimum(x, -4)), density(inner) / (erfc(inner * -math.sqrt(0.5)) / 2))

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
        return log_ndtr(x.astype(jnp.float32)).astype(x.dtype) if x.dtype.itemsize < 4 else log_ndtr(x)

    return jax.jit(widened)


def _log_ndtr(x: Any) -> Any:
    return _function()(x)


BACKEND = Backend(
    name="jax",
    roots=("jax", "jaxlib"),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=lambda: tuple(_found()),
    version=lambda: str(_jax().__version__),
)
