"""What a backend is, and how one is found.

The array-API standard covers almost all that diffusion needs. A `Backend` supplies the rest for one array library: moves
between host and device, the log of the normal CDF, and optionally faster noise and a faster reverse move. NumPy, Torch,
CuPy and JAX are built in; others come from `register` or from the entry-point group `tinyddpm.backends`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tinyddpm._arrays.check import nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "Array",
    "Backend",
    "BackendUnavailable",
    "Status",
    "Stepper",
    "available",
    "get",
    "gradients_off",
    "names",
    "no_grad",
    "of",
    "register",
]

Array = Any
"""An array of any library that follows the array-API standard."""


class BackendUnavailable(RuntimeError):
    """A backend that can't be used here: its library is not installed, is broken, or finds no device."""


@dataclass(frozen=True)
class Backend:
    """What tinyddpm needs of an array library beyond the array-API standard.

    Every field after `version` is optional; without it the portable way is taken.
    """

    name: str
    """The name it is found by."""
    roots: tuple[str, ...]
    """Top-level modules that own its array types, e.g. ``("torch",)``."""
    namespace: Callable[[], Any]
    """The array-API namespace; the library is imported when this is first called."""
    from_numpy: Callable[..., Array]
    """``from_numpy(array, *, dtype=None, device=None)``: to the device; `dtype` by name, e.g. ``"float32"``."""
    to_numpy: Callable[[Array], np.ndarray[Any, Any]]
    """Back to the host."""
    log_ndtr: Callable[[Array], Array]
    """Log of the standard normal CDF, elementwise."""
    devices: Callable[[], tuple[str, ...]]
    """Devices that can be used here; raises `BackendUnavailable` with the reason and the remedy."""
    version: Callable[[], str]
    """The library's version; raises `BackendUnavailable` with the reason and the remedy."""
    normal: Callable[..., Array] | None = None
    """A noise kernel, ``normal(seed, index, step, shape, *, stream, device, dtype)`` with checked arguments and `index` a uint64
    array; None, or where it returns NotImplemented: drawn on the host and moved."""
    stepper: Callable[..., Any] | None = None
    """``stepper(rows, x, *, seed, index, clip, keep_x0) -> Stepper`` for a state like x, which is copied; `index` is uint64.
    None, or where it returns NotImplemented: `samplers` moves with array-API operations."""
    optimize_net: Callable[..., Any] | None = None
    """``optimize_net(net, *, compile, autocast, stepper) -> net``: a faster form of a network (see `samplers.Options`). It may
    make `stepper`'s steps too, if that is not None. None: there is no such form."""
    no_grad: Callable[[], AbstractContextManager[Any]] | None = None
    """A context that switches off gradient recording while samples are drawn; None: nothing to switch off."""


class Stepper(Protocol):
    """What carries one run's state through its rows of weights (`tinyddpm._sampling.rows.Row`), in memory of its own.

    It is made with all the rows, and with `clip`, whether predictions are clipped to [-1, 1]. A move may overwrite `state`
    and `x0`, in place; with `keep_x0` the caller reads both after each move, else only the last state.
    """

    state: Array
    """What the network is called at next."""

    @property
    def x0(self) -> Array:
        """The newest prediction of x_0."""

    def step(self, k: int, value: Array, std: Array | None = None, z: Array | None = None) -> Any:
        """Row k's move, after the network's output `value`; called for k = 0, 1, ... in turn.

        `std` is the noise's standard deviation where the row has none, in memory that may be overwritten; `z` the noise where the
        caller has his own, else that of (seed, index, row.t). Returns False where `value` was seen not to be finite.
        """


@dataclass(frozen=True)
class Status:
    """What `available` says of one backend: its version and devices, or the reason why it can't be used."""

    version: str | None = None
    devices: tuple[str, ...] = ()
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return self.reason if self.reason is not None else f"{self.version} on {', '.join(self.devices)}"


_BUILT_IN = ("numpy", "torch", "cupy", "jax")
_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make `backend` known under its name for the rest of the process.

    Raises `TypeError` if it is no `Backend` and `ValueError` if the name is taken.
    """
    if not isinstance(backend, Backend):
        raise TypeError(f"backend must be a tinyddpm.backends.Backend, got {type(backend).__name__}")
    if backend.name in names():
        raise ValueError(f"backend: the name {backend.name!r} is taken; dataclasses.replace(backend, name=...) renames it")
    _registered[backend.name] = backend


def names() -> tuple[str, ...]:
    """Every known name: built-in, registered, and announced by an installed distribution. Loads none of them."""
    return tuple(dict.fromkeys((*_BUILT_IN, *_registered, *_entries())))


def get(name: str) -> Backend:
    """The backend called `name`.

    Its library need not be installed: what needs the library then raises `BackendUnavailable`. Raises `LookupError` for
    an unknown name and `BackendUnavailable` where a plug-in does not load.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend must be a name, got {type(name).__name__}")
    if name not in _registered:
        if name in _BUILT_IN:
            _registered[name] = importlib.import_module(f"tinyddpm_backends.{name}_backend").BACKEND
        elif entry := _entries().get(name):
            _registered[name] = _load(entry)
        else:
            raise LookupError(f"backend must be one of {', '.join(names())}, got {name!r}{nearest(name, names())}")
    return _registered[name]


def of(array: Array) -> Backend:
    """The backend that owns `array`, by the module of its type.

    Raises `LookupError` where no built-in or loaded backend does; a plug-in is loaded by `get`, never from here.
    """
    roots = {cls.__module__.partition(".")[0] for cls in type(array).__mro__} - {"builtins"}
    for name in (*_registered, *_BUILT_IN):
        backend = get(name)
        if not roots.isdisjoint(backend.roots):
            return backend
    raise LookupError(
        f"array: no backend for {type(array).__module__}.{type(array).__qualname__}; loaded are "
        f"{', '.join(dict.fromkeys((*_registered, *_BUILT_IN)))}; load a plug-in with tinyddpm.backends.get(name) first"
    )


def no_grad(array: Array) -> AbstractContextManager[Any]:
    """A context in which `array`'s library records no gradients; one that does nothing where the library is not registered."""
    return gradients_off(array)()


def gradients_off(array: Array) -> Callable[[], AbstractContextManager[Any]]:
    """What makes `no_grad`'s contexts, for those who need many."""
    try:
        return of(array).no_grad or nullcontext
    except LookupError:  # it records no gradients that we know of
        return nullcontext


def available() -> dict[str, Status]:
    """For every known name, its version and devices, or the reason why it can't be used here."""
    result = {}
    for name in names():
        try:
            backend = get(name)
            result[name] = Status(backend.version(), backend.devices())
        except BackendUnavailable as error:
            result[name] = Status(reason=str(error))
    return result


def _entries() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # slow to import

    return {entry.name: entry for entry in entry_points(group="tinyddpm.backends")}


def _load(entry: EntryPoint) -> Backend:
    try:
        loaded = entry.load()
        backend = loaded if isinstance(loaded, Backend) else loaded()
    except BackendUnavailable:
        raise
    except Exception as error:  # a plug-in may fail in any way; only its own name is affected
        raise BackendUnavailable(f"{entry.name}: the plug-in {entry.value} does not load: {error!r}") from error
    if not isinstance(backend, Backend):
        raise BackendUnavailable(f"{entry.name}: the plug-in {entry.value} gives a {type(backend).__name__}, no Backend")
    return backend
