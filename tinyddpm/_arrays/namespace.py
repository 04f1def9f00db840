"""Array libraries: the namespace of an array, and the few operations that the array-API standard lacks or makes slow."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = Any
Table = NDArray[np.float64]


class HasShape(Protocol):
    """What type checkers know of an array: enough to tell it from a number, a list or a name."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def ndim(self) -> int: ...


A = TypeVar("A", bound=HasShape)
"""An array of any library that follows the array-API standard; results are of the same type."""


F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: F) -> F:
    """Mark a function of constants that returns a number, a name or a tensor: torch.compile calls it instead of tracing it.

    This is ``torch.compiler.assume_constant_result`` without importing Torch. The graph holds for the objects that were passed.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def compiling() -> bool:
    """Whether torch.compile traces the caller."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())


def namespace_of(*, scalars: bool = False, **arrays: Array) -> Any:
    """The namespace of arrays that are passed by argument name: floating point, of shape (B, ...), or () with `scalars`.

    Raises `TypeError` if one is not an array, is of integers, or is of another library; `ValueError` if one is a scalar.
    """
    first, xp = "", None
    for name, x in arrays.items():
        if isinstance(x, np.ndarray):
            check_plain(name, x)
        try:
            own = array_namespace(x)
        except TypeError:
            raise TypeError(f"{name} must be an array, got {type(x).__name__}") from None
        if xp is None:
            first, xp = name, own
        elif own is not xp:
            raise TypeError(
                f"{name} must be an array of {library_name(arrays[first])}, as {first} is, got one of {library_name(x)}"
            )
        if not own.isdtype(x.dtype, "real floating"):
            raise TypeError(f"{name} must be a floating-point array, got {x.dtype}")
        if x.ndim == 0 and not scalars:
            raise ValueError(f"{name} must be an array of shape (B, ...), got a scalar")
    return xp


def array_namespace(x: Any) -> Any:
    """The namespace of an array; `TypeError` if it is none."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):  # apart, since torch.compile warns of what array_api_compat does
        import array_api_compat.torch as xp

        return xp
    import array_api_compat

    return array_api_compat.array_namespace(x)


def device_of(x: Array) -> Any:
    """The array's device."""
    if hasattr(x, "detach"):  # Torch
        return x.device
    from array_api_compat import device

    return device(x)


def check_plain(name: str, x: np.ndarray[Any, Any]) -> None:
    """Raise TypeError for a masked NumPy array, and for one in foreign byte order, which other libraries can't read."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one; use {name}.filled(value)")
    if not x.dtype.isnative:
        native = x.dtype.newbyteorder("=")
        raise TypeError(f"{name} must be in native byte order, got {x.dtype.str}; use {name}.astype({str(native)!r})")


def is_array_of(xp: Any, x: Any) -> bool:
    """Whether x is an array of the namespace xp."""
    try:
        return array_namespace(x) is xp
    except TypeError:
        return False


def adopted(name: str, value: Any, x: Array, xp: Any) -> Array:
    """A caller's array if it is of x's library; one of NumPy's is copied to x's device, in x's dtype unless it is of booleans."""
    if isinstance(value, np.ndarray):
        check_plain(name, value)
        return array_like(value, x, xp, dtype=xp.bool if value.dtype.kind == "b" else None)
    if not is_array_of(xp, value):
        raise TypeError(f"{name} must be an array of {library_name(x)} or NumPy, got {type(value).__name__}")
    return value


def check_same_shape(name: str, x: Array, other: str, y: Array) -> None:
    """Raise ValueError unless x and y have one shape."""
    if tuple(x.shape) != tuple(y.shape):
        raise ValueError(f"{name} must have the shape of {other}, {tuple(y.shape)}, got {tuple(x.shape)}")


def cast_like(x: Array, to: Array, xp: Any) -> Array:
    """x in the dtype of `to`."""
    return x if x.dtype == to.dtype else xp.astype(x, to.dtype)


def widened(x: Array, xp: Any) -> Array:
    """x in float32 if its own dtype is narrower: coefficients leave float16's range, and infinities then make NaN."""
    return xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x


def clip_array(x: Array, low: float, high: float, xp: Any) -> Array:
    """x clipped to [low, high]: by its own method if it has one, which is several times faster than the portable way."""
    return x.clip(low, high) if hasattr(x, "clip") else xp.clip(x, low, high)


def dtype_name(x: Array) -> str:
    """x's dtype by name, e.g. "float32"."""
    return str(x.dtype).rpartition(".")[2]


def copy_array(x: Array) -> Array:
    """x in memory of its own."""
    return namespace_of(x=x).asarray(x, copy=True)


def array_like(values: Any, x: Array, xp: Any, *, dtype: Any = None) -> Array:
    """Host values (a NumPy array or a number) as an array of x's library, dtype and device."""
    if isinstance(values, np.ndarray) and not compiling() and not values.flags.writeable:
        values = values.copy()  # Torch warns of sharing memory that it may not write
    return xp.asarray(values, dtype=x.dtype if dtype is None else dtype, device=device_of(x))


def flatten(x: Array, xp: Any) -> Array:
    """x, of shape (B, ...), as (B, dimensions)."""
    return xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def on_host(x: Array) -> bool:
    """Whether the host can read x without waiting for a device."""
    place = device_of(x)
    kind = getattr(place, "type", None) or getattr(place, "platform", None) or str(place)
    return "cpu" in str(kind).lower()


def host_values(t: Array) -> Any:
    """t as a NumPy array if the host holds it, else None: a device is never synchronised for a check."""
    if compiling() or not on_host(t):
        return None
    try:
        return np.asarray(_readable(t))
    except (TypeError, RuntimeError):  # a compiler traces it: there is no value yet
        return None


def _readable(x: Any) -> Any:
    """A Torch tensor as NumPy can read it, on the host, without gradients and not in bfloat16; anything else as it is."""
    if not hasattr(x, "detach"):
        return x
    x = x.detach().cpu()
    return x.float() if dtype_name(x) == "bfloat16" else x


def library_name(x: Array) -> str:
    """The top-level module that x's type comes from."""
    return type(x).__module__.partition(".")[0]


def host_numbers(name: str, values: Any) -> np.ndarray[Any, Any]:
    """A caller's numbers as a NumPy array: a list, or an array of any library, also one that requires gradients."""
    if isinstance(values, np.ndarray):
        check_plain(name, values)
    try:
        array = np.asarray(_readable(values))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers, got {type(values).__name__}") from None
    if array.dtype.name == "bfloat16":  # JAX
        array = array.astype(np.float32)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be numbers, got {type(values).__name__} of {array.dtype}")
    return array


def quiet() -> AbstractContextManager[Any]:
    """A context in which NumPy, the only library that would, does not complain of results outside the float range."""
    return nullcontext() if compiling() else np.errstate(all="ignore")


def quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function run within `quiet`."""

    @functools.wraps(function)
    def quiet_function(*args: P.args, **kwargs: P.kwargs) -> R:
        with quiet():
            return function(*args, **kwargs)

    return quiet_function
