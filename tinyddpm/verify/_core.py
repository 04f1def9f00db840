"""What an identity is, where it is measured, and the distances between numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm.backends import Backend

Array = Any
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """A backend with one of its devices and a dtype: what the identities are measured on."""

    backend: Backend
    device: Any
    dtype: str

    @property
    def eps(self) -> float:
        """The spacing of this dtype's numbers at 1."""
        return float(np.finfo(self.dtype).eps)

    def rounded(self, values: ArrayLike) -> NDArray[Any]:
        """Return the values rounded to this dtype, on the host."""
        return np.asarray(values, dtype=self.dtype)

    def draw(self, *shape: int, seed: int = 0) -> NDArray[Any]:
        """Return standard normal numbers of this dtype on the host, of shape (8, 4) by default.

        Identities share few shapes, because some libraries compile every operation once for each shape.
        """
        return self.rounded(np.random.default_rng(seed).standard_normal(shape or (8, 4)))

    def array(self, values: ArrayLike) -> Array:
        """Return the values as an array of the backend."""
        return self.backend.from_numpy(self.rounded(values), dtype=self.dtype, device=self.device)

    def host(self, x: Array) -> Table:
        """Return an array of the backend, or a number, on the host in float64."""
        on_host = isinstance(x, float | np.ndarray)
        return np.asarray(x if on_host else self.backend.to_numpy(x), dtype=np.float64)

    def gradient(self, f: Callable[[Array], Array], x: Array) -> Table | None:
        """Return the derivative of an elementwise f at x, or None if the library does not differentiate."""
        if "torch" in self.backend.roots:
            x = x.requires_grad_()
            f(x).sum().backward()
            return self.host(x.grad)
        if "jax" in self.backend.roots:
            from jax import grad

            return self.host(grad(lambda y: f(y).sum())(x))
        return None


Error = Callable[[Place], float | None]


@dataclass(frozen=True)
class Identity:
    """An identity with the bound on its error: `fixed` + `eps` times the spacing of the dtype's numbers at 1."""

    name: str
    unit: str
    fixed: float
    eps: float
    why: str
    error: Error

    def bound(self, place: Place) -> float:
        """Return the bound in the identity's unit."""
        return self.fixed + self.eps * place.eps


class Identities(list[Identity]):
    """The identities of one subject, in the order of measurement."""

    def add(self, name: str, unit: str, *, fixed: float = 0.0, eps: float = 0.0, why: str) -> Callable[[Error], Error]:
        """Return a decorator that adds a function as the measurement of an identity.

        Parameters
        ----------
        name : str
            The identity as the user reads it.
        unit : {"ulp", "nats", "relative", "absolute"}
            The unit of error and bound.
        fixed, eps : float, default 0
            The bound is ``fixed + eps * place.eps``.
        why : str
            The reason for this bound.

        Returns
        -------
        callable
            The decorator. It takes a function of a `Place` that returns the largest error, or None if there is nothing to
            measure, and returns the function unchanged.
        """

        def add(error: Error) -> Error:
            self.append(Identity(name, unit, fixed, eps, why, error))
            return error

        return add


def ulp_error(values: Iterable[float], exact: Iterable[Decimal], floor: float = 0.0) -> float:
    """Return the largest error in units in the last place of the exact value; a unit counts as at least `floor`."""
    return max((_ulp_error(float(v), e, floor) for v, e in zip(values, exact, strict=True)), default=0.0)


def _ulp_error(value: float, exact: Decimal, floor: float) -> float:
    if not np.isfinite(value) or not exact.is_finite():
        return 0.0 if value == float(exact) else np.inf
    return float(abs(Decimal(value) - exact) / Decimal(max(float(np.spacing(abs(float(exact)))), floor)))


def relative_error(values: ArrayLike, exact: Iterable[Decimal], scale: Iterable[Decimal] | None = None) -> float:
    """Return the largest error relative to `scale`, by default relative to the exact values."""
    truth = list(exact)
    return max(
        float(abs(Decimal(float(v)) - e) / abs(s)) if np.isfinite(v) else np.inf
        for v, e, s in zip(np.ravel(values), truth, truth if scale is None else scale, strict=True)
    )


def difference(x: ArrayLike, y: ArrayLike, scale: ArrayLike = 1.0) -> float:
    """Return the largest absolute difference of x and y over `scale`; NaN if either holds NaN."""
    return float(np.max(np.abs(np.asarray(x) - np.asarray(y)) / scale, initial=0.0))
