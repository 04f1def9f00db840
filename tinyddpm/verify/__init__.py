"""The identities behind the library, measured on this machine.

An identity is a law of the mathematics or a published fact. `identities` yields the largest error of each on this machine and
the bound on it. Schedules and tables are float64 on the host and are compared with 60-digit decimal arithmetic; everything else
is computed on the given backend, device and dtype. Only the library's own dependencies are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import one_of
from tinyddpm.verify import _bound, _edges, _gaussians, _process, _sampling, _tables
from tinyddpm.verify._core import Identity, Place
from tinyddpm.verify._truth import exactly

__all__ = ["NAMES", "Result", "identities"]

_IDENTITIES = (
    *_tables.identities,
    *_process.identities,
    *_gaussians.identities,
    *_bound.identities,
    *_sampling.identities,
    *_edges.identities,
)

NAMES = tuple(identity.name for identity in _IDENTITIES)
"""The names of all identities, in the order of measurement."""


@dataclass(frozen=True)
class Result:
    """The measurement of one identity."""

    identity: str
    """The identity's name."""
    max_error: float
    """The largest error found, in `unit`; NaN if the measurement raised an exception."""
    bound: float
    """The largest error allowed, in `unit`."""
    unit: str
    """The unit, one of "ulp" (units in the last place), "nats", "relative" and "absolute"."""
    reason: str
    """The reason for this bound."""
    error: str | None = None
    """The exception that the measurement raised, as text, or None."""

    @property
    def ok(self) -> bool:
        """Whether `max_error` is at most `bound`."""
        return self.max_error <= self.bound


def identities(backend: str = "numpy", device: Any = None, dtype: str = "float64", only: str = "") -> Iterator[Result]:
    """Measure the identities one by one; those of gradients only if the backend's library differentiates.

    Parameters
    ----------
    backend : str, default "numpy"
        The backend's name.
    device : optional
        One of the backend's devices; None is the backend's default device.
    dtype : {"float64", "float32"}, default "float64"
        The dtype of the arrays. JAX needs its x64 mode for "float64".
    only : str, default ""
        What an identity's name must contain.

    Yields
    ------
    Result
        The measurement of the next identity.

    Raises
    ------
    LookupError
        If the backend or the dtype is unknown, or no identity's name contains `only`.
    BackendUnavailable
        If the backend or the device can't be used on this machine.
    ValueError
        If the dtype is "float64" and JAX is not in its x64 mode.
    """
    one_of("dtype", dtype, ("float64", "float32"))
    place = Place(backends.get(backend), device, dtype)
    place.backend.version()
    place.array(np.zeros(1))
    if not (chosen := [identity for identity in _IDENTITIES if only in identity.name]):
        raise LookupError(f"only must be part of the name of an identity, got {only!r}")
    return (result for identity in chosen if (result := _measured(identity, place)) is not None)


def _measured(identity: Identity, place: Place) -> Result | None:
    raised = None
    try:
        with exactly():
            error = identity.error(place)
    except Exception as problem:  # a backend may raise anything; the other identities are measured all the same
        error, raised = np.nan, f"{type(problem).__name__}: {problem}"
    if error is None:
        return None
    return Result(identity.name, float(error), identity.bound(place), identity.unit, identity.why, raised)
