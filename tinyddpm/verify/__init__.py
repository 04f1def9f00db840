"""The identities behind the library, measured on this machine.

Each is a law of the mathematics, or an outside fact, with the largest error found here and the bound that it has to keep.
Tables and schedules are compared with 60-digit decimal arithmetic; the rest runs on the backend, device and dtype asked for.
Nothing beyond the library's own dependencies is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyddpm import backends
from tinyddpm._arrays.check import one_of
from tinyddpm.verify import _bound, _gaussians, _process, _sampling, _tables
from tinyddpm.verify._core import Identity, Place
from tinyddpm.verify._truth import exactly

__all__ = ["NAMES", "Result", "identities"]

_LAWS = (*_tables.laws, *_process.laws, *_gaussians.laws, *_bound.laws, *_sampling.laws)

NAMES = tuple(identity.name for identity in _LAWS)
"""Every identity, in the order of measurement."""


@dataclass(frozen=True)
class Result:
    """One identity as measured."""

    identity: str
    max_error: float
    """The largest error found; NaN where the identity could not be measured."""
    bound: float
    unit: str
    """Of both: "ulp" (units in the last place), "nats", "relative" or "absolute"."""
    reason: str
    """Why the bound is what it is."""
    error: str | None = None
    """What was raised instead of a measurement."""

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound."""
        return self.max_error <= self.bound


def identities(backend: str = "numpy", device: Any = None, dtype: str = "float64") -> Iterator[Result]:
    """Measure every identity in turn; those of gradients only where the backend's library differentiates.

    Parameters
    ----------
    backend, device
        Where to compute. `LookupError` for an unknown name, `BackendUnavailable` for what can't be used here.
    dtype : str
        "float64" or "float32". JAX has float64 in its x64 mode only: `ValueError` outside it.
    """
    one_of("dtype", dtype, ("float64", "float32"))
    place = Place(backends.get(backend), device, dtype)
    place.backend.version()
    place.array(np.zeros(1))
    return (result for identity in _LAWS if (result := _measured(identity, place)) is not None)


def _measured(identity: Identity, place: Place) -> Result | None:
    raised = None
    try:
        with exactly():
            error = identity.error(place)
    except Exception as problem:  # a backend may fail in any way; the other identities still count
        error, raised = np.nan, f"{type(problem).__name__}: {problem}"
    if error is None:
        return None
    return Result(identity.name, float(error), identity.bound(place), identity.unit, identity.why, raised)
