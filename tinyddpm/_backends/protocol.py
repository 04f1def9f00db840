"""What a backend is made of: the class itself, and the steppers that it may bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tinyddpm._arrays.namespace import Array


@dataclass(frozen=True)
class Row:
    """One network call and the reverse step that follows it, as weights of a few arrays.

    Every sampler of the library is a list of rows. The network is called at the state; the base is the point that the next state
    is computed from. The two are the same array unless some row has a `base`. With z standard normal,

        x_0   = clip(x0_from[0] output + x0_from[1] state)
        state = state[0] base + state[1] x_0 + state[2] (the x_0 before) + ... + std z
        base  = base[0] base + base[1] x_0 + base[2] (the x_0 before) + ..., or the new state

    Examples
    --------
    >>> Row(t=10, s=5, state=(0.5, 0.5), x0_from=(-0.1, 1.1)).std
    0.0
    """

    t: int
    """The step that the network is called at, 1..T."""
    s: int
    """The step that the new state belongs to, 0..t."""
    state: tuple[float, ...]
    """The new state's weights of (base, newest x_0, the x_0 before, ...), at least the first two."""
    base: tuple[float, ...] | None = None
    """The new base's weights of the same arrays; None makes the new state the base."""
    std: float | None = 0.0
    """The standard deviation of the noise; None if it is an array, which `Stepper.step` is then given."""
    ends_step: bool = True
    """Whether the sampler's step from t to s is complete; it is not after the first of Heun's two network calls."""
    x0_from: tuple[float, float] = (1.0, 0.0)
    """The prediction's weights of (the network's output, the state)."""
    net_t: int = 0
    """The number that the network is called with for t."""


class Stepper(Protocol):
    """The state of one sampling run, and the steps that it takes.

    A stepper owns its memory: it copies the state that it starts from, and a step may overwrite `state` and `x0`.
    """

    state: Array
    """The state, shape (n, ...), that the network is called at next."""

    @property
    def x0(self) -> Array:
        """The newest prediction of x_0, shape (n, ...); read only if the stepper was made with ``keep_x0=True``."""

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> bool | None:
        """Make the step of row k.

        Parameters
        ----------
        k : int
            The row's number; a run calls this for k = 0, 1, ... in order.
        value : array (n, ...)
            The network's output, without a learned variance.
        std : array (n, ...), optional
            The standard deviation of the noise if the row has none; it may be overwritten.
        z : array (n, ...), optional
            Standard normal noise to use; by default that of ``noise.normal(seed, index, row.t, ...)``.

        Returns
        -------
        bool or None
            False if `value` is known not to be finite, which ends the run; None if that was not looked at.
        """


class StepperFactory(Protocol):
    """The type of `Backend.stepper`."""

    def __call__(
        self, rows: Sequence[Row], x: Array, *, seed: int, index: np.ndarray[Any, Any], clip: tuple[float, float] | None,
        keep_x0: bool,
    ) -> Stepper:  # fmt: skip
        """Return a stepper for all steps of a run, or NotImplemented to leave the run to array-API operations.

        Parameters
        ----------
        rows : sequence of Row
            The steps, in order.
        x : array (n, ...)
            The state to start from, which must not be written to.
        seed : int
            The seed of the noise, 0..2^64-1.
        index : NumPy array (n,) of uint64
            The sample numbers of the noise.
        clip : (low, high) or None
            The range that x_0 is clipped to.
        keep_x0 : bool
            Whether the caller reads `Stepper.x0` after each step.

        Returns
        -------
        Stepper
            Or NotImplemented, for example for a dtype without a kernel.
        """
        ...


@dataclass(frozen=True)
class Backend:
    """What tinyddpm needs of an array library beyond the array-API standard.

    The fields after `version` are optional; without one, tinyddpm does the same with array-API operations or on the host.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from tinyddpm import backends
    >>> numpy = backends.get("numpy")
    >>> numpy.to_numpy(numpy.from_numpy([1, 2], dtype="float32"))
    array([1., 2.], dtype=float32)
    >>> replace(numpy, name="numpy-portable", stepper=None).stepper is None
    True
    """

    name: str
    """The name that `get` finds it by."""
    roots: tuple[str, ...]
    """The top-level modules that its array types come from, e.g. ``("torch",)``."""
    namespace: Callable[[], Any]
    """Returns the array-API namespace; the first call imports the library."""
    from_numpy: Callable[..., Array]
    """``from_numpy(array, *, dtype=None, device=None)`` copies to the device; `dtype` is a name, e.g. "float32", or a dtype."""
    to_numpy: Callable[[Array], np.ndarray[Any, Any]]
    """Copies to the host."""
    log_ndtr: Callable[[Array], Array]
    """Log of the standard normal CDF, elementwise."""
    devices: Callable[[], tuple[str, ...]]
    """Returns the devices that can be used here, or raises `BackendUnavailable` with the reason and the remedy."""
    version: Callable[[], str]
    """Returns the library's version, or raises `BackendUnavailable` with the reason and the remedy."""
    normal: Callable[..., Array] | None = None
    """``normal(seed, index, step, shape, *, stream, device, dtype)`` draws noise on the device. The arguments are checked, and
    `index` is a uint64 array. If it is None or returns NotImplemented, noise is drawn on the host and copied."""
    stepper: StepperFactory | None = None
    """``stepper(rows, x, *, seed, index, clip, keep_x0)`` returns a `Stepper` for one run. If it is None or returns
    NotImplemented, sampling makes its steps with array-API operations."""
    optimize_net: Callable[..., Any] | None = None
    """``optimize_net(net, *, compile, autocast, stepper) -> net`` returns a faster form of a network, which may also make the
    steps of `stepper` if that is not None. If it is None, the library has no such form."""
    no_grad: Callable[[], AbstractContextManager[Any]] | None = None
    """Returns a context in which the library records no gradients; None if it never records any."""
