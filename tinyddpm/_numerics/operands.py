"""Operands of the Gaussian formulas: arrays and numbers brought to one dtype, and points split off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyddpm._arrays.check import as_real
from tinyddpm._arrays.namespace import Array, array_like, namespace_of


def as_log_var(value: Any, mean: Array) -> Any:
    """A log-variance: a float, or an array of the mean's library that broadcasts to it."""
    if _is_number(value):
        return _as_number("log_var", value)
    namespace_of(scalars=True, mean=mean, log_var=value)
    shape, to = tuple(value.shape), tuple(mean.shape)
    if len(shape) > len(to) or any(n not in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False)):
        raise ValueError(f"log_var must broadcast to the mean's shape {to}, got {shape}")
    return value


def to_operands(**arguments: Any) -> tuple[Any, Array, list[Array]]:
    """Return the namespace, the first array, and all arguments as arrays of one dtype; a number becomes 0-d."""
    arrays = {name: x for name, x in arguments.items() if not _is_number(x)}
    xp = namespace_of(scalars=True, **(arrays or arguments))
    check_broadcast(**{name: x.shape for name, x in arrays.items()})
    first, dtype = next(iter(arrays.values())), working_dtype(xp, *arrays.values())
    operands = [
        xp.astype(x, dtype, copy=False) if name in arrays else array_like(_as_number(name, x), first, xp, dtype=dtype)
        for name, x in arguments.items()
    ]
    return xp, first, operands


def check_broadcast(**shapes: tuple[int, ...]) -> None:
    """Raise ValueError unless the shapes broadcast together."""
    common: tuple[int, ...] = ()
    for name, shape in shapes.items():
        try:
            common = np.broadcast_shapes(common, tuple(shape))
        except ValueError:
            raise ValueError(f"{name} must broadcast against shape {common}, got {tuple(shape)}") from None


def working_dtype(xp: Any, *arrays: Array) -> Any:
    """The dtype to compute in: that of the arrays together, but at least float32."""
    return xp.result_type(xp.float32, *(x.dtype for x in arrays))


def split_point(log: Array, xp: Any) -> tuple[Array, Array]:
    """Whether each logarithm of a scale is a point's, -inf, and the logarithms with 0 there: no branch gets a NaN gradient."""
    point = log == -math.inf
    return point, xp.where(point, xp.zeros_like(log), log)


def scaled(gap: Array, log_var: Array, xp: Any) -> Array:
    """gap in standard deviations: 0 stays 0 even if a standard deviation is less than the least number."""
    scale = xp.exp(-0.5 * log_var)
    return gap * xp.where((gap == 0) & (scale == math.inf), xp.ones_like(scale), scale)


def _is_number(x: Any) -> bool:
    """Whether x is not an array; NumPy's scalars are numbers."""
    return isinstance(x, np.generic) or not hasattr(x, "ndim")


def _as_number(name: str, value: Any) -> float:
    """A finite number; a logarithm may also be -inf."""
    infinite = name.startswith("log_") and isinstance(value, float | np.floating) and value == -math.inf
    return -math.inf if infinite else as_real(name, value)
