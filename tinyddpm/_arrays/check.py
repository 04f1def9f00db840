"""Checks of arguments: each returns the value in the form that the library uses, or raises an error that names the argument."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np


def as_int(name: str, value: Any, low: int, high: int) -> int:
    """A Python int or NumPy integer within [low, high]; `bool` is not an int."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number: int = operator.index(value)
    if not low <= number <= high:
        size = number.bit_length()
        raise ValueError(f"{name} must be in {low}..{high}, got {number if size < 200 else f'an int of {size} bits'}")
    return number


def as_positive_int(name: str, value: Any) -> int:
    """A positive int that can be a length."""
    return as_int(name, value, 1, 2**62)


def as_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_ends: bool = False) -> float:
    """A finite real number within [low, high], or within (low, high) with `open_ends`."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    inside = low < number < high if open_ends else low <= number <= high
    if not math.isfinite(number) or not inside:
        ends = ("(", ")") if open_ends else ("[", "]")
        raise ValueError(f"{name} must be in {ends[0]}{low}, {high}{ends[1]}, got {number}")
    return number


def as_positive(name: str, value: Any, high: float = math.inf) -> float:
    """A number in (0, high] as a float."""
    number = as_real(name, value, 0.0, high)
    if number == 0:
        raise ValueError(f"{name} must be positive, got 0.0")
    return number


def as_list(name: str, values: Any, *, empty: bool = False) -> list[Any]:
    """The values as a list; a str is refused."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence, got {type(values).__name__}")
    if not (found := list(values)) and not empty:
        raise ValueError(f"{name} must not be empty")
    return found


def as_shape(shape: Any, *, empty: bool = False) -> tuple[int, ...]:
    """The argument `shape` as a tuple of ints, of fewer than 2^48 numbers."""
    sizes = tuple(as_int("shape", size, 0, 2**62) for size in as_list("shape", shape, empty=empty))
    if math.prod(sizes) >= 2**48:
        raise ValueError(f"shape is more than can be allocated: {sizes}")
    return sizes


def as_instance(name: str, value: Any, kind: type, called: str | None = None) -> Any:
    """`value` if it is of this type, which messages name `called` or by its own name."""
    if not isinstance(value, kind):
        called = called or kind.__name__
        article = "an" if called[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {called}, got {type(value).__name__}")
    return value


def lookup(name: str, key: Any, known: Any) -> Any:
    """The entry of the dict `known` under `key`, or a `LookupError` that lists the known ones."""
    if not isinstance(key, str):
        raise TypeError(f"{name} must be a name, got {type(key).__name__}")
    if key not in known:
        raise LookupError(f"{name} must be one of {', '.join(known)}, got {key!r}{nearest(key, known)}")
    return known[key]


def nearest(key: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" if a known name is close to `key`, else an empty string."""
    from difflib import get_close_matches

    close = get_close_matches(key, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_of(name: str, key: Any, known: tuple[str, ...]) -> str:
    """`key`, where it is one of the known names."""
    return lookup(name, key, {k: k for k in known})  # type: ignore[no-any-return]


@contextmanager
def allocating(name: str, value: Any) -> Iterator[None]:
    """Turn a failure to allocate into a `ValueError` that names the argument whose size was too much."""
    try:
        yield
    except (MemoryError, OverflowError, ValueError) as error:
        too_much = any(word in str(error) for word in ("maximum", "too large", "too big", "too long"))
        if isinstance(error, ValueError) and not too_much:
            raise
        raise ValueError(f"{name} is more than can be allocated: {value}") from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, of Python or of a library, says that memory could not be allocated."""
    said = "out of memory" in str(error).lower() or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said)


MOST_STEPS = 100_000
"""The longest chain that a file may ask for, and the longest for which the tables' accuracy is tested."""

P = ParamSpec("P")
R = TypeVar("R")


def names_unknown_options(function: Callable[P, R]) -> Callable[P, R]:
    """Make a call with an unknown keyword a TypeError that names it, the nearest option and the known ones."""
    parameters = inspect.signature(function).parameters.values()
    known = frozenset(p.name for p in parameters)
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{name} is not an option of {function.__name__}{nearest(name, options)}; known are "
                                f"{', '.join(options)}")  # fmt: skip
        return function(*args, **kwargs)

    return checked


def as_bool(name: str, value: Any) -> bool:
    """A Python or NumPy bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return bool(value)


def as_callable(name: str, value: Any, call: str) -> Any:
    """`value` if it can be called; `call` shows how, e.g. "net(x_t, t)"."""
    if not callable(value):
        raise TypeError(f"{name} must be a callable {call}, got {type(value).__name__}")
    return value


def as_dtype_name(name: str, value: Any) -> str:
    """The name of a dtype that is given by name or as the dtype itself, of any library; it is not looked up anywhere.

    Parameters
    ----------
    name : str
        The argument's name, for messages.
    value : str or dtype
        "float32", ``numpy.float32``, ``torch.float32`` or the like.

    Returns
    -------
    str
        For example "float32".
    """
    if isinstance(value, str):
        return value
    if isinstance(value, type | np.dtype):  # numpy.float32, jax.numpy.float32, numpy.dtype("float32")
        return np.dtype(value).name
    if type(value).__name__.lower() == "dtype":  # torch.float32
        return str(value).rpartition(".")[2]
    raise TypeError(f"{name} must be a dtype or its name, got {type(value).__name__}")
