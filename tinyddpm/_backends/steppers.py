"""Helpers for accelerated steppers; `tinyddpm.backends` makes them public."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyddpm._arrays.namespace import Array, clip_array, quietly
from tinyddpm._backends.protocol import Row

Weights = Sequence[Any]
"""Python floats or, inside a compiled function, scalars of the array library."""


@quietly
def reverse_step(
    state: Array, base: Array, history: Sequence[Array], value: Array, weights: tuple[Weights, Weights, Weights | None],
    noise: Array | None = None, *, clip: tuple[float, float] | None = None, xp: Any,
) -> tuple[Array, Array, tuple[Array, ...]]:  # fmt: skip
    """Make the step that `Row` describes, as a pure function that array libraries can compile.

    Parameters
    ----------
    state, base : array (n, ...)
        The state that the network was called at, and the base.
    history : sequence of arrays (n, ...)
        As many newest predictions of x_0 as `depth` says, the newest first. Before there are any, pass the state in their place:
        no weight reaches it.
    value : array (n, ...)
        The network's output.
    weights : (x0_from, state, base)
        As `row_weights` returns them.
    noise : array (n, ...), optional
        The noise, already times its standard deviation.
    clip : (low, high), optional
        The range that x_0 is clipped to.
    xp : namespace
        The arrays' array-API namespace.

    Returns
    -------
    state, base : array (n, ...)
        The new ones.
    history : tuple of arrays (n, ...)
        The new predictions, as many as before.

    Examples
    --------
    >>> x, value = np.array([[1.0]]), np.array([[4.0]])
    >>> row = Row(t=2, s=1, state=(0.5, 0.25))
    >>> state, base, (x0,) = reverse_step(x, x, [x], value, row_weights(row), clip=(-1.0, 1.0), xp=np)
    >>> float(state[0, 0]), float(x0[0, 0])
    (0.75, 1.0)
    """
    x0_from, to_state, to_base = weights
    x0 = _weighted_sum(x0_from, (value, state))
    if clip is not None:
        x0 = clip_array(x0, *clip, xp)
    history = (x0, *history[:-1])
    new = _weighted_sum(to_state, (base, *history))
    if noise is not None:
        new = new + noise
    return new, new if to_base is None else _weighted_sum(to_base, (new, base, *history)), history


def row_weights(row: Row) -> tuple[Weights, Weights, Weights | None]:
    """Return a row's weights as `reverse_step` takes them.

    Parameters
    ----------
    row : Row
        A step.

    Returns
    -------
    x0_from : tuple of 2 floats
        Weights of (the network's output, the state).
    state : tuple of floats
        Weights of (base, newest x_0, older ones).
    base : tuple of floats or None
        Weights of (new state, base, newest x_0, older ones); None if the base is the new state.

    Examples
    --------
    >>> row_weights(Row(t=2, s=1, state=(0.5, 0.25), base=(1.0,)))
    ((1.0, 0.0), (0.5, 0.25), (0.0, 1.0))
    """
    return row.x0_from, row.state, None if row.base is None else (0.0, *row.base)


def depth(rows: Sequence[Row]) -> int:
    """Return how many predictions of x_0 the rows' weights reach back over, including the newest.

    Parameters
    ----------
    rows : sequence of Row
        The steps of a run.

    Returns
    -------
    int
        1 for "ddpm" and "ddim", up to 3 for the other samplers of the library.

    Examples
    --------
    >>> depth([Row(t=2, s=1, state=(0.5, 0.5)), Row(t=1, s=0, state=(0.5, 0.4, 0.1))])
    2
    """
    return max(len(weights) - 1 for row in rows for weights in (row.state, row.base or ()))


def table(rows: Sequence[Row], width: int) -> np.ndarray[Any, Any]:
    """Return the rows as one formula, for a kernel or a compiled function that serves all of them.

    Parameters
    ----------
    rows : sequence of Row
        The steps of a run.
    width : int
        The number of predictions that there is room for, at least `depth`.

    Returns
    -------
    NumPy array (len(rows), 6 + 2 * width) of float64
        Columns 0 and 1 are the weights of (the network's output, the state) in x_0, column 2 is the noise's standard deviation
        (0 if the row has none), columns 3 to 3 + width the new state's weights of (base, newest x_0, older ones), and the rest
        the new base's weights of (new state, base, newest x_0, older ones).

    Examples
    --------
    >>> table([Row(t=2, s=1, state=(0.5, 0.25), std=0.125)], width=1).tolist()
    [[1.0, 0.0, 0.125, 0.5, 0.25, 1.0, 0.0, 0.0]]
    """

    def padded(weights: Weights) -> list[float]:
        return [*weights, *[0.0] * (width + 1 - len(weights))]

    def base(row: Row) -> list[float]:
        return [1.0, *padded(())] if row.base is None else [0.0, *padded(row.base)]

    return np.array([[*row.x0_from, row.std or 0.0, *padded(row.state), *base(row)] for row in rows])


def counters(index: np.ndarray[Any, Any], blocks: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return each sample's first Philox counter, for a noise kernel laid out as `tinyddpm.noise` says.

    Parameters
    ----------
    index : NumPy array (n,) of uint64
        The sample numbers.
    blocks : int
        The number of blocks of 8 numbers that a sample takes.

    Returns
    -------
    low, high : NumPy array (n,) of uint64
        The counter's first and second word. NumPy's generator counts on once before its first block, which is included.

    Examples
    --------
    >>> low, high = counters(np.array([3, 2**63], np.uint64), 2)
    >>> low.tolist(), high.tolist()
    ([7, 1], [0, 1])
    """
    first = [int(i) * blocks + 1 for i in index]
    return np.array([i % 2**64 for i in first], np.uint64), np.array([i >> 64 for i in first], np.uint64)


def _weighted_sum(weights: Weights, arrays: Sequence[Array]) -> Array:
    """weights[0] * arrays[0] + weights[1] * arrays[1] + ..., in this order, without the terms whose weight is known to be 0."""
    terms = [w * array for w, array in zip(weights, arrays, strict=False) if not (isinstance(w, float) and w == 0.0)]
    return sum(terms[1:], terms[0]) if terms else 0.0 * arrays[0]
