"""The known process: tables, q, the posterior, conversions between what networks predict, and plans.

A `Diffusion` is fixed by its betas. It keeps the logarithm of alpha_bar in double-double arithmetic and derives every table
and weight from it, rounded once, so that nothing is lost where alpha_bar is next to 1 or far below the smallest float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm import conversions, plans, schedules
from tinyddpm._arrays.check import allocating, as_int, lookup
from tinyddpm._arrays.namespace import Array, cast_like, check_same_shape, namespace_of
from tinyddpm._arrays.steps import Steps, check_host_steps, check_steps, gather
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._numerics import double, weights
from tinyddpm._numerics.double import Double
from tinyddpm._numerics.weights import LogVarWeights, Weights
from tinyddpm.gaussian import Gaussian

if TYPE_CHECKING:
    from typing import Unpack

    from tinyddpm.denoiser import Denoiser
    from tinyddpm.samplers import Options, Step

__all__ = ["Diffusion"]

Table = NDArray[np.float64]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Diffusion(FrozenValue):
    """The forward process q with the given betas [Ho sec. 2], and all that follows from them in closed form.

    Parameters
    ----------
    beta : array (T,), optional
        beta_1..beta_T, each in (0, 1); beta_T = 1 is allowed. Default: ``schedules.linear()``.

    Notes
    -----
    Tables are read-only float64 arrays of length T + 1, indexed by the paper's t; entry 0 is the clean end. Tables and
    weights are within 4 units in the last place of the exact value for the float64 betas, also where alpha_bar underflows.
    Data arguments have shape (B, ...); `t` and `s` are ints or integer arrays (B,). Objects are immutable, picklable, and
    equal and hashable by content.
    """

    beta: Table
    """beta_t; entry 0 is 0."""
    _log: Double
    """log alpha_bar_t."""

    def __init__(self, beta: ArrayLike | None = None) -> None:
        table = np.append(0.0, schedules.checked(schedules.linear() if beta is None else beta))
        self._set(table, double.cumsum(double.log(double.two_sum(1.0, -table))))

    def _set(self, beta: Table, log: Double) -> None:
        object.__setattr__(self, "beta", _frozen(beta))
        object.__setattr__(self, "_log", Double(_frozen(log.hi), _frozen(log.lo)))

    # Tables.

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    @cached_property
    def alpha(self) -> Table:
        """alpha_t = 1 - beta_t; entry 0 is 1."""
        step = weights.minus(self._at(np.arange(1, self.T + 1)), self._at(np.arange(self.T)))
        return _frozen(np.append(1.0, double.exp(step).hi))

    @cached_property
    def alpha_bar(self) -> Table:
        """alpha_1 alpha_2 ... alpha_t; entry 0 is 1."""
        return _frozen(double.exp(self._log).hi)

    @cached_property
    def one_minus_alpha_bar(self) -> Table:
        """1 - alpha_bar_t, without its cancellation; entry 0 is 0."""
        return _frozen(weights.one_minus_exp(self._log).hi)

    @property
    def beta_tilde(self) -> Table:
        """The posterior's variance, (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t [Ho eq. 7]; entry 0 is NaN, 1 is 0."""
        return self.weights.beta_tilde  # type: ignore[no-any-return]

    @cached_property
    def log_snr(self) -> Table:
        """log(alpha_bar_t / (1 - alpha_bar_t)); entry 0 is +inf."""
        log = self._at(np.arange(1, self.T + 1))
        return _frozen(np.append(np.inf, weights.minus(log, double.log(weights.one_minus_exp(log))).hi))

    @cached_property
    def sqrt_alpha_bar(self) -> Table:
        """sqrt(alpha_bar_t), also where alpha_bar_t itself underflows."""
        return _frozen(double.exp(weights.half(self._log)).hi)

    @cached_property
    def sqrt_one_minus_alpha_bar(self) -> Table:
        """sqrt(1 - alpha_bar_t)."""
        return _frozen(np.sqrt(self.one_minus_alpha_bar))

    @cached_property
    def weights(self) -> Weights:
        """The weights of every move (t, t - 1) as tables; entry 0 is NaN."""
        start, end = self._at(np.arange(1, self.T + 1)), self._at(np.arange(self.T))
        moves = weights.pair_weights(start, end, double.double(self.beta[1:]))
        return Weights(*(_frozen(np.append(np.nan, c)) for c in moves))

    # q.

    def q(self, x0: Array, t: Steps) -> Gaussian:
        """q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I) [Ho eq. 4], for t in 0..T."""
        xp = namespace_of(x0=x0)
        t = check_steps("t", t, x0, xp, 0, self.T)
        mean = gather(self.sqrt_alpha_bar, t, x0, xp) * x0
        return Gaussian(mean, gather(self._log_one_minus_alpha_bar, t, x0, xp))

    def q_sample(self, x0: Array, t: Steps, eps: Array) -> Array:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps [Ho eq. 4], for t in 0..T."""
        xp = namespace_of(x0=x0, eps=eps)
        check_same_shape("eps", eps, "x0", x0)
        t = check_steps("t", t, x0, xp, 0, self.T)
        signal, noise = (gather(c, t, x0, xp) for c in (self.sqrt_alpha_bar, self.sqrt_one_minus_alpha_bar))
        return signal * x0 + noise * cast_like(eps, x0, xp)

    def q_between(self, x_s: Array, s: Steps, t: Steps) -> Gaussian:
        """q(x_t | x_s) = N(sqrt(alpha_{t|s}) x_s, beta_{t|s} I) for 0 <= s < t <= T [Ho eq. 2, composed].

        alpha_{t|s} is the product of alpha over s+1..t, and beta_{t|s} = 1 - alpha_{t|s}.
        """
        xp = namespace_of(x_s=x_s)
        move = self.step_weights(t, s, x_s, xp)
        return Gaussian(move.w_xs * x_s, move.log_beta)

    def posterior(self, x_t: Array, x0: Array, t: Steps, s: Steps | None = None) -> Gaussian:
        """q(x_s | x_t, x_0) for 0 <= s < t, by default s = t - 1 [Ho eq. 6 and 7]; at s = 0 it is the point x_0."""
        xp = namespace_of(x_t=x_t, x0=x0)
        check_same_shape("x0", x0, "x_t", x_t)
        move = self.step_weights(t, s, x_t, xp)
        return Gaussian(move.w_x0 * cast_like(x0, x_t, xp) + move.w_xt * x_t, move.log_beta_tilde)

    def posterior_weights(self, t: Steps, s: Steps | None = None) -> tuple[Any, Any, Any]:
        """(w_x0, w_xt, var) of q(x_s | x_t, x_0) = N(w_x0 x_0 + w_xt x_t, var I); floats, or float64 arrays for arrays."""
        w = self._weights(t, s)
        return w.w_x0, w.w_xt, w.beta_tilde

    def between_weights(self, t: Steps, s: Steps | None = None) -> tuple[Any, Any]:
        """(w, var) of q(x_t | x_s) = N(w x_s, var I); floats, or float64 arrays for arrays."""
        w = self._weights(t, s)
        return w.w_xs, w.beta

    def convert(self, value: Array, x_t: Array, t: Steps, source: str, target: str) -> Array:
        """`value`, a prediction of kind `source` at (x_t, t), as the equivalent one of kind `target`, for t in 1..T.

        Kinds: "eps", "x0", "mu" (the posterior's mean at s = t - 1), "v" and "score"; see `conversions`. Where there is no
        equivalent (x0 from eps at alpha_bar = 0): `ValueError`, or NaN for a `t` on a device.
        """
        xp = namespace_of(value=value, x_t=x_t)
        check_same_shape("value", value, "x_t", x_t)
        t = check_steps("t", t, value, xp, 1, self.T)
        a, b = self.conversion(source, target)
        if isinstance(t, int | np.ndarray):
            if np.any(missing := np.isnan(a[t])):
                wrong = np.extract(missing, t)[0]
                raise ValueError(f"t: {target} does not follow from {source} at t = {wrong}, where alpha_bar is "
                                 f"{self.alpha_bar[wrong]}")  # fmt: skip
            if source == target:
                return value
        result = gather(a, t, value, xp) * value
        return result if b is None else result + gather(b, t, value, xp) * cast_like(x_t, value, xp)

    def conversion(self, source: str, target: str) -> tuple[Table, Table | None]:
        """Tables (a, b) of ``target = a * source + b * x_t``, NaN where there is none; b is None where x_t has no part."""
        known = self._known_conversions
        if (source, target) not in known:
            known[source, target] = conversions.tables(self, source, target)
        return known[source, target]

    # Plans and samples.

    def timesteps(self, steps: int, spacing: str = "even") -> tuple[int, ...]:
        """A plan of `steps` moves: `steps` + 1 strictly decreasing ints from T to 0, for 1 <= steps <= T.

        Spacings: "even" (gaps differ by at most 1), "quadratic" (denser near the data), "log_snr" (gaps in log-SNR as even as
        whole steps allow).
        """
        steps = as_int("steps", steps, 1, self.T)
        return lookup("spacing", spacing, plans.SPACINGS)(self, steps)  # type: ignore[no-any-return]

    def respaced(self, timesteps: Iterable[int]) -> Diffusion:
        """The chain over `timesteps` (strictly decreasing, ending at 0) with the same marginals: its step k is the k-th from
        the end. Networks see the short chain's steps; `Denoiser.respaced` adapts one that counts ours."""
        t = np.array(plans.checked(timesteps, self.T)[::-1])
        beta = weights.pair_weights(self._at(t[1:]), self._at(t[:-1])).beta
        return _restored(np.append(0.0, beta), *self._at(t))

    def sample_t(self, n: int, seed: int) -> NDArray[np.int64]:
        """n steps drawn uniformly from 1..T, shape (n,): a pure function of the seed (0 <= seed < 2**64)."""
        n = as_int("n", n, 0, 2**62)
        rng = np.random.Generator(np.random.Philox(key=as_int("seed", seed, 0, 2**64 - 1)))
        with allocating("n", n):
            return rng.integers(1, self.T, size=n, endpoint=True)

    def sample(self, denoiser: Denoiser, shape: Sequence[int], **options: Unpack[Options]) -> Array:
        """Samples of shape `shape` = (n, ...); see `samplers.Options`."""
        from tinyddpm import samplers  # which stands above this module

        return samplers.sample(self, denoiser, shape, **options)

    def trajectory(
        self, denoiser: Denoiser, shape: Sequence[int], *, every: int = 1, **options: Unpack[Options]
    ) -> Iterator[Step]:
        """The same as a generator of `Step(t, x, x0)`: the start, every `every`-th state after it, and t = 0."""
        from tinyddpm import samplers

        return samplers.trajectory(self, denoiser, shape, every=every, **options)

    # The coefficients of a move (t, s).

    def step_weights(self, t: Steps, s: Steps | None, x: Array, xp: Any) -> LogVarWeights:
        """The coefficients of (t, s) as they combine with x, an array of the namespace xp; s = None is t - 1."""
        t = check_steps("t", t, x, xp, 1, self.T)
        if s is None:
            return LogVarWeights(*(gather(table, t, x, xp) for table in self._log_weights))
        s = check_steps("s", s, x, xp, 0, self.T - 1)
        if not all(isinstance(u, int | np.ndarray) for u in (t, s)):
            return weights.pair_weights_on_device(self._log, t, s, x, xp)
        move = LogVarWeights.of(self._weights(t, s))
        if isinstance(t, int) and isinstance(s, int):
            return LogVarWeights(*map(float, move))
        return LogVarWeights(*(gather(table, np.arange(x.shape[0]), x, xp) for table in move))

    def _weights(self, t: Steps, s: Steps | None) -> Weights:
        start = check_host_steps("t", t, 1, self.T)
        end = check_host_steps("s", start - 1 if s is None else s, 0, self.T - 1)
        try:
            start, end = np.broadcast_arrays(start, end)
        except ValueError:
            raise ValueError(f"s: shape {np.shape(end)} does not broadcast against t's {np.shape(start)}") from None
        if np.any(late := end >= start):
            raise ValueError(f"s: {end[late][0]} is not below t = {start[late][0]}")
        single = np.all(start - end == 1)
        w = (
            Weights(*(c[start] for c in self.weights))
            if single
            else weights.pair_weights(self._at(start), self._at(end))
        )
        return Weights(*map(float, w)) if np.ndim(w.beta) == 0 else w

    def _at(self, t: Any) -> Double:
        return Double(self._log.hi[t], self._log.lo[t])

    @cached_property
    def _log_weights(self) -> LogVarWeights:
        return LogVarWeights.of(self.weights)

    @cached_property
    def _log_one_minus_alpha_bar(self) -> Table:
        with np.errstate(divide="ignore"):
            return np.log(self.one_minus_alpha_bar)

    @cached_property
    def _known_conversions(self) -> dict[tuple[str, str], tuple[Table, Table | None]]:
        return {}

    @property
    def _content(self) -> tuple[bytes, bytes]:
        return self._log.hi.tobytes(), self._log.lo.tobytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.beta, *self._log)

    def __repr__(self) -> str:
        return (
            f"Diffusion(T={self.T}, beta={self.beta[1]:.4g}..{self.beta[-1]:.4g}, alpha_bar_T={self.alpha_bar[-1]:.4g})"
        )


def _restored(beta: Table, hi: Table, lo: Table) -> Diffusion:
    """The chain with these tables, as pickled or respaced."""
    d = object.__new__(Diffusion)
    d._set(beta, Double(hi, lo))
    return d


def _frozen(table: Table) -> Table:
    table = np.ascontiguousarray(table, dtype=np.float64)
    table.flags.writeable = False
    return table
