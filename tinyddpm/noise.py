"""Noise as a pure function of (seed, sample, step): the same draw however a batch is split, in any order, process and backend.

A sample of n elements owns ``nb = ceil(n/8)`` blocks of the counter-based generator Philox4x64-10 (Salmon et al., 2011): those
of NumPy's ``Philox(key=[seed, stream], counter=[index*nb, 0, step, 0])``, where `index*nb` carries into the second word. They
are read as 8*nb little-endian uint32. With b from the first half and c, read as int32, from the second half,

    u = (b + 1/2) 2^-32,  angle = 2 pi c 2^-32,  z = sqrt(-2 log u) [cos(angle), sin(angle)]   (Box and Muller, 1958),

and the first n of these 8*nb normals are the sample's noise.

For one shape no two (seed, stream, step, index) share a block, since seed and stream are the key, step and index*nb + j the
counter, and each has words of its own. Draws of different shapes with the same seed, stream and step do overlap: give them
different streams. A step has 2^128 blocks, more than 2^64 samples of any size that fits in memory can use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import as_bool, as_dtype_name, as_int, as_list, as_shape, one_of
from tinyddpm._arrays.namespace import device_of, dtype_name, host_numbers

__all__ = ["as_words", "like", "normal", "numbers"]

_WORD = 2**64

Index = Sequence[int] | np.ndarray[Any, Any]
"""Sample numbers, as a range, a sequence of ints or an integer array."""


def normal(
    seed: int, index: Iterable[int], step: int, shape: Sequence[int], *, stream: int = 0, exact: bool = False,
    backend: str = "numpy", device: Any = None, dtype: Any = "float32",
) -> backends.Array:  # fmt: skip
    """Return standard normal noise: row i belongs to sample ``index[i]`` at `step`.

    Parameters
    ----------
    seed : int
        0..2^64-1.
    index : range, sequence of ints or integer array (n,)
        Sample numbers in 0..2^64-1. A range is drawn fastest.
    step : int
        0..2^64-1.
    shape : sequence of ints
        The shape of one sample.
    stream : int, default 0
        0..2^64-1. tinyddpm uses streams 0 to 4: sampling, likelihood, training, data synthesis, editing.
    exact : bool, default False
        Draw on the host and copy, for the same bits on every backend and device; they agree within 2e-6 otherwise.
    backend : str, default "numpy"
        The array library.
    device : str or device, optional
        By default the library's own default.
    dtype : str or dtype, default "float32"
        "float64" and "float32" are the same draw within 2e-6 (1e-3 if sqrt(-2 log u) < 0.02, which float32 does not resolve);
        "float16" and "bfloat16" are the float32 draw, rounded.

    Returns
    -------
    array (n, *shape)
        Of the given library, device and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong type or out of range.
    LookupError
        If the backend or the dtype is unknown.
    BackendUnavailable
        If the library or the device is not here.

    Examples
    --------
    >>> z = normal(0, range(4), 10, (3, 8, 8))
    >>> z.shape, str(z.dtype)
    ((4, 3, 8, 8), 'float32')
    >>> bool((z[2] == normal(0, [2], 10, (3, 8, 8))[0]).all())
    True
    """
    return _drawing(seed, index, shape, stream, exact, backend, device, dtype)(step)


def like(x: backends.Array, seed: int, index: Index | None, *, stream: int = 0) -> Callable[[int], backends.Array]:
    """Return a function ``draw(step)`` that draws noise like x; use it to check the arguments once for many steps.

    Parameters
    ----------
    x : array (n, ...)
        The array whose shape, library, device and dtype the noise has.
    seed : int
        0..2^64-1.
    index : range, sequence of ints, integer array (n,) or None
        n sample numbers in 0..2^64-1; None stands for 0..n-1.
    stream : int, default 0
        0..2^64-1, as in `normal`.

    Returns
    -------
    callable
        ``draw(step)``, which returns an array (n, ...).

    Raises
    ------
    TypeError, ValueError
        If an argument is of a wrong type or out of range.
    LookupError
        If no backend is known for x.

    Examples
    --------
    >>> draw = like(np.zeros((4, 3)), 0, None)
    >>> draw(10).shape
    (4, 3)
    """
    place = backends.of(x).name, device_of(x), dtype_name(x)
    return _drawing(seed, numbers(index, x.shape[0]), tuple(x.shape[1:]), stream, False, *place)


def numbers(index: Index | None, n: int) -> Sequence[int]:
    """Return the sample numbers of n samples.

    Parameters
    ----------
    index : range, sequence of ints, integer array (n,) or None
        The numbers; None stands for 0..n-1.
    n : int
        How many there must be.

    Returns
    -------
    sequence of ints
        `index`, or a range.

    Raises
    ------
    TypeError
        If `index` has no length.
    ValueError
        If its length is not n.

    Examples
    --------
    >>> numbers(None, 3), numbers([7, 5], 2)
    (range(0, 3), [7, 5])
    """
    if index is None:
        return range(n)
    if not hasattr(index, "__len__"):
        raise TypeError(f"index must be a sequence of ints, got {type(index).__name__}")
    if len(index) != n:
        raise ValueError(f"index must have {n} sample numbers, got {len(index)}")
    return cast(Sequence[int], index)


def as_words(index: Iterable[int]) -> np.ndarray[Any, Any]:
    """Return sample numbers as an array.

    Parameters
    ----------
    index : range, iterable of ints or integer array (n,)
        Sample numbers in 0..2^64-1.

    Returns
    -------
    NumPy array (n,) of uint64
        The numbers.

    Raises
    ------
    TypeError
        If one is not an int.
    ValueError
        If one is out of range.

    Examples
    --------
    >>> as_words([3, 2**64 - 1])
    array([                   3, 18446744073709551615], dtype=uint64)
    """
    if isinstance(index, range) and index:
        for end in (index[0], index[-1]):
            as_int("index", end, 0, _WORD - 1)
        try:
            return np.uint64(index[0]) + np.arange(len(index), dtype=np.uint64) * np.uint64(index.step % _WORD)
        except (MemoryError, OverflowError, ValueError):
            raise ValueError(f"index is too long to allocate: {index}") from None
    if not hasattr(index, "shape"):
        return np.array([as_int("index", i, 0, _WORD - 1) for i in as_list("index", index, empty=True)], dtype=np.uint64)
    array = host_numbers("index", index)
    if array.dtype.kind == "f":
        raise TypeError(f"index must be an integer array, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"index must be a 1-d array, got shape {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"index must be in 0..{_WORD - 1}, got {array.min()}")
    return array.astype(np.uint64)


def _drawing(
    seed: int, index: Iterable[int], shape: Sequence[int], stream: int, exact: bool, backend: str, device: Any, dtype: Any
) -> Callable[[int], backends.Array]:
    """`normal` as a function of the step; all other arguments are checked once."""
    seed, stream = as_int("seed", seed, 0, _WORD - 1), as_int("stream", stream, 0, _WORD - 1)
    sample_shape, words = as_shape(shape, empty=True), as_words(index)
    dtype = one_of("dtype", as_dtype_name("dtype", dtype), ("float16", "bfloat16", "float32", "float64"))
    as_bool("exact", exact)
    library, host = backends.get(backend), backends.get("numpy")
    host_dtype = "float64" if dtype == "float64" else "float32"

    def draw(step: int) -> backends.Array:
        step = as_int("step", step, 0, _WORD - 1)
        if library.normal is not None and not exact:
            drawn = library.normal(seed, words, step, sample_shape, stream=stream, device=device, dtype=dtype)
            if drawn is not NotImplemented:
                return drawn
        drawn = cast(Any, host.normal)(seed, words, step, sample_shape, stream=stream, device=None, dtype=host_dtype)
        return library.from_numpy(drawn, dtype=dtype, device=device)

    return draw
