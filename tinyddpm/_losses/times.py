"""Samplers of the step t for training. They learn from losses, so they are the one kind of object here that changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm._arrays.check import allocating, as_instance, as_int, as_positive_int
from tinyddpm._arrays.namespace import Table, host_numbers
from tinyddpm._arrays.steps import check_host_steps

_KEPT = 10
_UNIFORM = 0.001


class UniformT:
    """Steps uniform on 1..T, each with weight 1.

    Parameters
    ----------
    T : int
        The chain's number of steps.

    Raises
    ------
    TypeError, ValueError
        If `T` is not a positive int.

    Examples
    --------
    >>> import numpy as np
    >>> t, weight = UniformT(10).sample(3, np.random.default_rng(0))
    >>> t.tolist(), weight.tolist()
    ([9, 7, 6], [1.0, 1.0, 1.0])
    """

    def __init__(self, T: int) -> None:
        self.T = as_positive_int("T", T)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Table]:
        """Draw steps.

        Parameters
        ----------
        n : int
            How many.
        rng : numpy.random.Generator
            The source of randomness.

        Returns
        -------
        t : int64 array (n,)
            Steps in 1..T.
        weight : float64 array (n,)
            What the loss of each is to be multiplied by.

        Raises
        ------
        TypeError, ValueError
            If `n` is not such an int or `rng` not a Generator.
        """
        n = as_int("n", n, 0, 2**62)
        with allocating("n", n):
            return _as_generator(rng).integers(1, self.T, size=n, endpoint=True), np.ones(n)

    def update(self, t: ArrayLike, loss: ArrayLike) -> None:
        """Report losses; uniform steps learn nothing from them.

        Parameters
        ----------
        t : array_like of int (B,)
            Steps in 1..T.
        loss : array_like of float (B,)
            The loss at each, before weighting.

        Raises
        ------
        TypeError, ValueError
            If a step is outside 1..T, a loss is not finite, or there is not one loss for each step.
        """
        self._checked(t, loss)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The state that `load_state_dict` restores.

        Returns
        -------
        dict of array
            Empty, as uniform steps have no state.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Parameters
        ----------
        state : dict of array
            From a sampler of this kind with this T.

        Raises
        ------
        TypeError, ValueError
            If `state` is not that.
        """
        needed = self.state_dict()
        if set(as_instance("state", state, dict)) != set(needed):
            raise ValueError(f"state must have the keys {sorted(needed)}, got {sorted(map(str, state))}")
        for key, value in needed.items():
            if np.shape(state[key]) != value.shape:
                raise ValueError(f"state: {key} must have shape {value.shape}, got {np.shape(state[key])}")
            if np.asarray(state[key]).dtype.kind not in "iuf" or not np.all(np.isfinite(state[key])):
                raise ValueError(f"state: {key} must hold finite numbers")

    def _checked(self, t: ArrayLike, loss: ArrayLike) -> tuple[NDArray[np.int64], Table]:
        steps = np.atleast_1d(check_host_steps("t", host_numbers("t", t), 1, self.T))
        losses = np.atleast_1d(host_numbers("loss", loss).astype(np.float64))
        if steps.shape != losses.shape or steps.ndim != 1:
            raise ValueError(f"loss must be one number for each t, got shape {losses.shape} for {steps.shape}")
        if not np.all(np.isfinite(losses)):
            raise ValueError(f"loss must be finite, got {losses[~np.isfinite(losses)][0]}")
        return steps, losses


class LossAwareT(UniformT):
    """Steps drawn in proportion to the root mean square of their last 10 losses, mixed with 0.001 uniform [iDDPM sec. 3.3].

    Uniform until every t has 10 losses. The weight 1 / (T p_t) makes the weighted loss's mean that of uniform steps.

    Parameters
    ----------
    T : int
        The chain's number of steps.

    Raises
    ------
    TypeError, ValueError
        If `T` is not a positive int, or its history cannot be allocated.

    Examples
    --------
    >>> import numpy as np
    >>> sampler = LossAwareT(2)
    >>> for _ in range(10):
    ...     sampler.update([1, 2], [3.0, 1.0])
    >>> sampler.prob.round(3).tolist()
    [0.75, 0.25]
    """

    def __init__(self, T: int) -> None:
        super().__init__(T)
        with allocating("T", T):
            self._history = np.zeros((self.T, _KEPT))
            self._count = np.zeros(self.T, dtype=np.int64)

    @property
    def prob(self) -> Table:
        """p_1..p_T, shape (T,)."""
        _, exponent = np.frexp(np.abs(self._history).max())
        size: Table = np.sqrt(np.mean(np.ldexp(self._history, -exponent) ** 2, axis=1))  # no square overflows
        if np.any(self._count < _KEPT) or not np.any(size):
            return np.full(self.T, 1 / self.T)
        return (1 - _UNIFORM) * size / size.sum() + _UNIFORM / self.T  # type: ignore[no-any-return]

    def sample(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Table]:
        """Draw steps with probability p_t; parameters and errors are those of `UniformT.sample`.

        Returns
        -------
        t : int64 array (n,)
            Steps in 1..T.
        weight : float64 array (n,)
            1 / (T p_t).
        """
        n, prob = as_int("n", n, 0, 2**62), self.prob
        with allocating("n", n):
            drawn = _as_generator(rng).choice(self.T, size=n, p=prob)
            return drawn + 1, 1 / (self.T * prob[drawn])

    def update(self, t: ArrayLike, loss: ArrayLike) -> None:
        """Take note of losses, before weighting; parameters and errors are those of `UniformT.update`."""
        for step, value in zip(*self._checked(t, loss), strict=True):
            self._history[step - 1] = np.append(self._history[step - 1, 1:], value)
            self._count[step - 1] = min(self._count[step - 1] + 1, _KEPT)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The state that `load_state_dict` restores.

        Returns
        -------
        dict of array
            "history" (T, 10), oldest first, and "count" (T,).
        """
        return {"history": self._history.copy(), "count": self._count.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; parameters and errors are those of `UniformT.load_state_dict`."""
        super().load_state_dict(state)
        if np.any(np.less(state["count"], 0)):
            raise ValueError("state: count must not be negative")
        self._history = np.array(state["history"], dtype=np.float64)
        self._count = np.array(state["count"], dtype=np.int64)


def _as_generator(rng: np.random.Generator) -> np.random.Generator:
    return as_instance("rng", rng, np.random.Generator, "numpy.random.Generator")  # type: ignore[no-any-return]
