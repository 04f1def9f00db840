"""Random points of the decoder, and its values and gradients there to 60 digits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyddpm import backends, gaussian

Column = NDArray[Any]

LEVELS = (2, 3, 17, 256, 1024, 4096, 65_536)
QUANTITIES = ("log p", "its derivative in mean", "its derivative in log_std")


class Points(NamedTuple):
    """Arguments of the decoder, each (n,); mean and log_std are numbers of the dtype."""

    levels: Column
    level: Column
    mean: Column
    log_std: Column


def draw(n: int, dtype: str, seed: int = 0) -> Points:
    """std log-uniform in 1e-8..1e8; the mean at normal distances of a level or its edge, or log-uniform ones to 1e15 std."""
    rng = np.random.default_rng(seed)
    levels = rng.choice(LEVELS, n)
    end = rng.choice([0, 1], n) * (levels - 1)
    level = np.where(rng.random(n) < 0.1, end, rng.integers(0, levels))
    log_std = (rng.uniform(-8, 8, n) * math.log(10)).astype(dtype)
    near, far = 3 * rng.normal(size=n), rng.choice([-1, 1], n) * 10 ** rng.uniform(-3, 15, n)
    away = np.where(rng.random(n) < 0.5, near, far) * np.exp(log_std.astype(float))
    edge = rng.choice([0, 0, 1, -1], n)
    return Points(levels, level, ((2 * level + edge) / (levels - 1) - 1 + away).astype(dtype), log_std)


def exact(level: int, levels: int, mean: float, log_std: float, mp: Any) -> tuple[Any, Any, Any]:
    """The three quantities of one point."""
    n, std = levels - 1, mp.exp(mp.mpf(log_std))
    low, high = ((mp.mpf(2 * level + side - n) / n - mp.mpf(mean)) / std for side in (-1, 1))
    low, high = (-mp.inf if level == 0 else low), (mp.inf if level == n else high)

    def above(z: Any) -> Any:
        return mp.erfc(z / mp.sqrt(2)) / 2

    def density(z: Any) -> tuple[Any, Any]:
        """phi(z) and z phi(z), 0 at an open end."""
        phi = mp.mpf(0) if mp.isinf(z) else mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi)
        return phi, z * phi if phi else mp.mpf(0)

    mass = above(low) - above(high) if low + high > 0 else above(-high) - above(-low)
    log = mp.log(mass) if mass < 0.5 else mp.log1p(-above(high) - above(-low))
    (phi_low, z_low), (phi_high, z_high) = density(low), density(high)
    return log, (phi_low - phi_high) / (std * mass), (z_low - z_high) / mass


def computed(library: str, points: Points) -> Column:
    """The library's three quantities, (3, n); NaN for derivatives that it has not."""
    found = np.full((3, len(points.level)), np.nan)
    dtype = points.mean.dtype
    backend = backends.get(library)
    for levels in np.unique(points.levels):
        at = np.flatnonzero(points.levels == levels)
        x, mean, log_std = (
            backend.from_numpy(values.astype(dtype))
            for values in (2 * points.level[at] / (levels - 1) - 1, points.mean[at], points.log_std[at])
        )

        def decoder(mean: Any, log_std: Any, x: Any = x, levels: int = int(levels)) -> Any:
            return gaussian.discretized_log_likelihood(x, mean, log_std, levels)

        found[0, at] = backend.to_numpy(decoder(mean, log_std))
        if library == "torch":
            inputs = mean.requires_grad_(), log_std.requires_grad_()
            decoder(*inputs).sum().backward()
            found[1:, at] = [backend.to_numpy(v.grad) for v in inputs]
        elif library == "jax":
            import jax

            found[1:, at] = jax.grad(lambda *a, f=decoder: f(*a).sum(), (0, 1))(mean, log_std)
    return found


def rows(n: int, mp: Any, libraries: tuple[str, ...] = ("numpy", "torch", "jax")) -> Iterator[dict[str, Any]]:
    """A row for each dtype, library and quantity: how many values are not finite though the exact one is, and the errors."""
    for dtype in ("float64", "float32"):
        points, info = draw(n, dtype), np.finfo(dtype)
        truth = [exact(int(k), int(m), float(mean), float(s), mp) for m, k, mean, s in zip(*points, strict=True)]
        for library in libraries:
            found = computed(library, points)
            for q, quantity in enumerate(QUANTITIES[: 1 if library == "numpy" else 3]):
                pairs = [(float(v), e[q]) for v, e in zip(found[q], truth, strict=True) if abs(e[q]) <= float(info.max)]
                finite = [(v, e) for v, e in pairs if math.isfinite(v)]
                errors = [(abs(mp.mpf(v) - e), abs(e)) for v, e in finite]
                units = [0.0 if error < 1e-20 else float(error / size) / float(info.eps) for error, size in errors]
                yield {
                    "dtype": dtype, "library": library, "quantity": quantity, "points": len(pairs),
                    "not finite": len(pairs) - len(finite), "worst, units": max(units),
                    "99.9 %, units": float(np.quantile(units, 0.999)), "worst, relative": max(units) * float(info.eps),
                }  # fmt: skip
