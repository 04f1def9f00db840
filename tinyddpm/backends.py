"""Array libraries: the registry of backends, and what a plug-in for one more library needs.

The array-API standard covers almost all that diffusion needs. A `Backend` adds the rest for one array library: transfers between
host and device, the log of the normal CDF and, optionally, faster noise and a faster reverse step. NumPy, Torch, CuPy and JAX are
built in; others come from `register` or from the entry-point group ``tinyddpm.backends``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyddpm._arrays.check import as_dtype_name, as_instance, nearest
from tinyddpm._arrays.namespace import untraced
from tinyddpm._backends.protocol import Backend, Row, Stepper, StepperFactory
from tinyddpm._backends.steppers import counters, depth, reverse_step, row_weights, table

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "Array", "Backend", "BackendUnavailable", "Row", "Status", "Stepper", "StepperFactory", "as_dtype_name", "available",
    "counters", "depth", "get", "gradients_off", "names", "no_grad", "of", "register", "reverse_step", "row_weights", "table",
]  # fmt: skip

Array = Any
"""An array of any library that follows the array-API standard."""


class BackendUnavailable(RuntimeError):
    """A backend can't be used here: its library is not installed, is broken, or finds no device."""


@dataclass(frozen=True)
class Status:
    """What `available` says of one backend; true if the backend can be used here.

    Examples
    --------
    >>> print(Status("2.0", ("cpu", "cuda:0")))
    2.0 on cpu, cuda:0
    >>> bool(Status(reason="not installed"))
    False
    """

    version: str | None = None
    """The library's version; None if it can't be used."""
    devices: tuple[str, ...] = ()
    """The devices that can be used here."""
    reason: str | None = None
    """Why it can't be used; None if it can."""

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return self.reason if self.reason is not None else f"{self.version} on {', '.join(self.devices)}"


_BUILT_IN = ("numpy", "torch", "cupy", "jax")
_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make a backend known under its name for the rest of the process.

    Parameters
    ----------
    backend : Backend
        The backend, under a name that is not taken.

    Raises
    ------
    TypeError
        If `backend` is not a Backend.
    ValueError
        If its name is taken.

    Examples
    --------
    >>> from dataclasses import replace
    >>> register(replace(get("numpy"), name="numpy-portable", stepper=None))
    >>> "numpy-portable" in names()
    True
    """
    as_instance("backend", backend, Backend)
    if backend.name in names():
        raise ValueError(f"backend must have a name that is not taken, got {backend.name!r}; rename it by dataclasses.replace")
    _registered[backend.name] = backend


def names() -> tuple[str, ...]:
    """Return every known name: built in, registered, or announced by an installed distribution; no library is imported.

    Returns
    -------
    tuple of str
        The built-in names come first.

    Examples
    --------
    >>> names()[:4]
    ('numpy', 'torch', 'cupy', 'jax')
    """
    return tuple(dict.fromkeys((*_BUILT_IN, *_registered, *_entries())))


def get(name: str) -> Backend:
    """Return the backend of this name.

    Parameters
    ----------
    name : str
        One of `names`. The library need not be installed: what needs it raises `BackendUnavailable` later.

    Returns
    -------
    Backend
        Always the same object for a name.

    Raises
    ------
    TypeError
        If `name` is not a str.
    LookupError
        If the name is unknown.
    BackendUnavailable
        If the name belongs to a plug-in that does not load.

    Examples
    --------
    >>> get("numpy").roots
    ('numpy',)
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
    """Return the backend that an array belongs to, by the module that its type comes from.

    Parameters
    ----------
    array : array
        An array of any shape and dtype.

    Returns
    -------
    Backend
        A built-in or loaded one: this function loads no plug-in.

    Raises
    ------
    LookupError
        If the array belongs to none of them.

    Examples
    --------
    >>> import numpy as np
    >>> of(np.zeros(3)).name
    'numpy'
    """
    return _registered[_name_of(type(array))]


def find(array: Array) -> Backend | None:
    """As `of`, but None for an array of a library that no loaded backend knows.

    Returns
    -------
    Backend or None
    """
    try:
        return of(array)
    except LookupError:
        return None


@untraced
def _name_of(kind: type) -> str:
    """The name of the backend of arrays of this type, which is then registered."""
    roots = {cls.__module__.partition(".")[0] for cls in kind.__mro__} - {"builtins"}
    loaded = dict.fromkeys((*_registered, *_BUILT_IN))
    for name in loaded:
        if not roots.isdisjoint(get(name).roots):
            return name
    raise LookupError(f"array must belong to a loaded backend, one of {', '.join(loaded)}, got {kind.__module__}."
                      f"{kind.__qualname__}; tinyddpm.backends.get(name) loads a plug-in")  # fmt: skip


def no_grad(array: Array) -> AbstractContextManager[Any]:
    """Return a context in which the array's library records no gradients.

    Parameters
    ----------
    array : array
        An array of any library. For one that has no backend the context does nothing.

    Returns
    -------
    context manager
        To be entered once.

    Examples
    --------
    >>> import numpy as np
    >>> with no_grad(np.zeros(3)):
    ...     pass
    """
    return gradients_off(array)()


def gradients_off(array: Array) -> Callable[[], AbstractContextManager[Any]]:
    """Return a factory of `no_grad` contexts; use it to avoid the look-up in a loop.

    Parameters
    ----------
    array : array
        As for `no_grad`.

    Returns
    -------
    callable
        Each call returns a new context.

    Examples
    --------
    >>> import numpy as np
    >>> context = gradients_off(np.zeros(3))
    >>> for _ in range(2):
    ...     with context():
    ...         pass
    """
    backend = find(array)
    return (backend and backend.no_grad) or nullcontext


def available() -> dict[str, Status]:
    """Return which backends can be used here; plug-ins are loaded.

    Returns
    -------
    dict of str to Status
        For every known name the library's version and devices, or the reason why it can't be used. A backend that fails in any
        way affects its own name only.

    Examples
    --------
    >>> available()["numpy"].devices
    ('cpu',)
    """
    return {name: _status(name) for name in names()}


def _status(name: str) -> Status:
    """A backend's status, whatever its functions raise."""
    try:
        backend = get(name)
        return Status(str(backend.version()), tuple(backend.devices()))
    except BackendUnavailable as error:
        return Status(reason=str(error))
    except Exception as error:  # a plug-in may fail in any way
        return Status(reason=f"{name} can't be used: {error!r}")


def _entries() -> dict[str, EntryPoint]:
    """What installed distributions announce, by name."""
    from importlib.metadata import entry_points  # slow to import

    return {entry.name: entry for entry in entry_points(group="tinyddpm.backends")}


def _load(entry: EntryPoint) -> Backend:
    """A plug-in's backend; whatever goes wrong becomes BackendUnavailable."""
    try:
        loaded = entry.load()
        return as_instance("it", loaded if isinstance(loaded, Backend) else loaded(), Backend)  # type: ignore[no-any-return]
    except BackendUnavailable:
        raise
    except Exception as error:  # a plug-in may fail in any way
        raise BackendUnavailable(f"{entry.name} can't be used: its plug-in {entry.value} raised {error!r}") from error
