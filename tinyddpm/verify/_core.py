"""What an identity is, where it is measured, and how far two numbers are apart."""

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
    """A backend, one of its devices, and a dtype."""

    backend: Backend
    device: Any
    dtype: str

    @property
    def eps(self) -> float:
        """The spacing of this dtype's numbers next to 1."""
        return float(np.finfo(self.dtype).eps)

    def rounded(self, values: ArrayLike) -> NDArray[Any]:
        """The values as this dtype holds them, on the host."""
        return np.asarray(values, dtype=self.dtype)

    def draw(self, *shape: int, seed: int = 0) -> NDArray[Any]:
        """Standard normal numbers that this dtype holds, on the host; of shape (8, 4) where none is given.

        Few shapes in all: some libraries compile every operation once for each.
        """
        return self.rounded(np.random.default_rng(seed).standard_normal(shape or (8, 4)))

    def array(self, values: ArrayLike) -> Array:
        """The values as an array of the backend."""
        return self.backend.from_numpy(self.rounded(values), dtype=self.dtype, device=self.device)

    def host(self, x: Array) -> Table:
        """A backend's array, or a number, on the host in float64."""
        on_host = isinstance(x, float | np.ndarray)
        return np.asarray(x if on_host else self.backend.to_numpy(x), dtype=np.float64)

    def gradient(self, f: Callable[[Array], Array], x: Array) -> Table | None:
        """The derivative of an elementwise f at x; None where the library does not differentiate."""
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
    """One law, as the largest error that a place makes in it, and the bound on that error."""

    name: str
    unit: str
    fixed: float
    eps: float
    why: str
    error: Error

    def bound(self, place: Place) -> float:
        """The bound in the identity's unit."""
        return self.fixed + self.eps * place.eps


class Laws(list[Identity]):
    """The identities of one subject, in the order of measurement."""

    def enter(self, name: str, unit: str, *, fixed: float = 0.0, eps: float = 0.0, why: str) -> Callable[[Error], Error]:
        """Enter a function that measures an identity: its error has to be at most `fixed` + `eps` units of rounding.

        Units: "ulp", "nats", "relative", "absolute". The function returns None where there is nothing to measure.
        """

        def enter(error: Error) -> Error:
            self.append(Identity(name, unit, fixed, eps, why, error))
            return error

        return enter


def ulp(values: Iterable[float], exact: Iterable[Decimal], floor: float = 0.0) -> float:
    """The largest distance in units in the last place of the exact value, each counted as at least `floor`."""
    return max(_ulp(float(v), e, floor) for v, e in zip(values, exact, strict=True))


def _ulp(value: float, exact: Decimal, floor: float) -> float:
    if not np.isfinite(value) or not exact.is_finite():
        return 0.0 if value == float(exact) else np.inf
    return float(abs(Decimal(value) - exact) / Decimal(max(float(np.spacing(abs(float(exact)))), floor)))


def relative(values: ArrayLike, exact: Iterable[Decimal], scale: Iterable[Decimal] | None = None) -> float:
    """The largest distance from the exact values, against `scale`, by default themselves."""
    truth = list(exact)
    return max(
        float(abs(Decimal(float(v)) - e) / abs(s)) if np.isfinite(v) else np.inf
        for v, e, s in zip(np.ravel(values), truth, truth if scale is None else scale, strict=True)
    )


def apart(x: ArrayLike, y: ArrayLike, scale: ArrayLike = 1.0) -> float:
    """The largest distance of x and y, against `scale`; NaN where either is."""
    return float(np.max(np.abs(np.asarray(x) - np.asarray(y)) / scale, initial=0.0))
