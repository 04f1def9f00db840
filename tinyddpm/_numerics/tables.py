"""Tables of a process: every quantity that depends on the step alone, derived from the betas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tinyddpm import conversions
from tinyddpm._arrays.namespace import Array, Table, array_like, compiling
from tinyddpm._arrays.steps import Named, Steps, check_host_steps, check_steps, gather, number
from tinyddpm._arrays.value import FrozenValue
from tinyddpm._numerics import double
from tinyddpm._numerics.double import Double, half, minus, one_minus_exp
from tinyddpm._numerics.weights import Weights, pair_weights, pair_weights_on_device
from tinyddpm.conversions import Kind


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Tables(FrozenValue):
    """Read-only float64 tables of length T + 1, indexed by the paper's t, and the weights of pairs of steps (t, s).

    Only beta and log alpha_bar are stored, the latter as a double-double number. Every table and weight is computed from
    it and rounded once, so nothing is lost where alpha_bar is next to 1 or far below the smallest float64.
    """

    beta: Table
    """beta_t, shape (T + 1,); entry 0 is 0."""
    _log_alpha_bar: Double = field(init=False)
    """log alpha_bar_t."""

    @classmethod
    def _of(cls, beta: Table, log_alpha_bar: Double) -> Self:
        """The object with these tables; the arguments are not checked."""
        new = object.__new__(cls)
        new._set(beta, log_alpha_bar)
        return new

    def _set(self, beta: Table, log_alpha_bar: Double) -> None:
        object.__setattr__(self, "beta", _read_only(beta))
        object.__setattr__(self, "_log_alpha_bar", Double(*map(_read_only, log_alpha_bar)))

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.beta) - 1

    @cached_property
    def alpha(self) -> Table:
        """alpha_t = 1 - beta_t, shape (T + 1,); entry 0 is 1."""
        log = minus(self._log_alpha_bar.at(np.arange(1, self.T + 1)), self._log_alpha_bar.at(np.arange(self.T)))
        return _read_only(np.append(1.0, double.exp(log).hi))

    @cached_property
    def alpha_bar(self) -> Table:
        """alpha_1 alpha_2 ... alpha_t, shape (T + 1,); entry 0 is 1."""
        return _read_only(double.exp(self._log_alpha_bar).hi)

    @cached_property
    def one_minus_alpha_bar(self) -> Table:
        """1 - alpha_bar_t without cancellation, shape (T + 1,); entry 0 is 0."""
        return _read_only(one_minus_exp(self._log_alpha_bar).hi + 0.0)  # not -0.0

    @property
    def beta_tilde(self) -> Table:
        """Variance of the posterior, (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t [Ho eq. 7], shape (T + 1,).

        Entry 0 is NaN, entry 1 is 0.
        """
        return self.weights.beta_tilde  # type: ignore[no-any-return]

    @cached_property
    def log_snr(self) -> Table:
        """Natural log of alpha_bar_t / (1 - alpha_bar_t), shape (T + 1,); entry 0 is +inf."""
        log = self._log_alpha_bar.at(np.arange(1, self.T + 1))
        return _read_only(np.append(np.inf, minus(log, double.log(one_minus_exp(log))).hi))

    @cached_property
    def sqrt_alpha_bar(self) -> Table:
        """sqrt(alpha_bar_t), shape (T + 1,); exact even where alpha_bar_t itself underflows."""
        return _read_only(double.exp(half(self._log_alpha_bar)).hi)

    @cached_property
    def sqrt_one_minus_alpha_bar(self) -> Table:
        """sqrt(1 - alpha_bar_t), shape (T + 1,)."""
        return _read_only(np.sqrt(self.one_minus_alpha_bar))

    @cached_property
    def weights(self) -> Weights:
        """Weights of every pair (t, t - 1), each a table of shape (T + 1,); entry 0 is NaN."""
        start, end = self._log_alpha_bar.at(np.arange(1, self.T + 1)), self._log_alpha_bar.at(np.arange(self.T))
        columns = pair_weights(start, end, minus(start, end), double.double(self.beta[1:]))
        return Weights(*(_read_only(np.append(np.nan, column)) for column in columns))

    def posterior_weights(self, t: Steps, s: Steps | None = None) -> tuple[Any, Any, Any]:
        """Weights and variance of q(x_s | x_t, x_0) = N(w_x0 x_0 + w_xt x_t, var I) [Ho eq. 7].

        Parameters
        ----------
        t : int or integer array
            Start of the reverse step, in 1..T.
        s : int or integer array, optional
            Its end, in 0..t-1, broadcast against `t`. Default: t - 1.

        Returns
        -------
        w_x0, w_xt, var : float or float64 array
            Floats if `t` and `s` are ints, else arrays of their common shape.

        Raises
        ------
        TypeError, ValueError
            If a step is not an int or an integer array, is out of range, or if ``s >= t``.

        Examples
        --------
        >>> from tinyddpm import Diffusion
        >>> w_x0, w_xt, var = Diffusion([0.1, 0.2]).posterior_weights(2)
        >>> round(w_x0, 4), round(w_xt, 4), round(var, 4)
        (0.6776, 0.3194, 0.0714)
        """
        w = self._checked_pair_weights(t, s)
        return w.w_x0, w.w_xt, w.beta_tilde

    def between_weights(self, t: Steps, s: Steps | None = None) -> tuple[Any, Any]:
        """Weight and variance of q(x_t | x_s) = N(w x_s, var I), with the arguments of `posterior_weights`.

        Returns
        -------
        w, var : float or float64 array
            sqrt(alpha_{t|s}) and beta_{t|s} = 1 - alpha_{t|s}, where alpha_{t|s} = alpha_{s+1} ... alpha_t.

        Examples
        --------
        >>> from tinyddpm import Diffusion
        >>> w, var = Diffusion([0.1, 0.2]).between_weights(2, 0)
        >>> round(w, 4), round(var, 4)
        (0.8485, 0.28)
        """
        w = self._checked_pair_weights(t, s)
        return w.w_xs, w.beta

    def conversion(self, source: Kind, target: Kind) -> tuple[Table, Table | None]:
        """Tables (a, b) of ``target = a * source + b * x_t``; see `tinyddpm.conversions.tables`.

        Returns
        -------
        a, b : float64 array (T + 1,)
            NaN at steps where the conversion does not exist. `b` is None if x_t has no part in it.
        """
        known = self._known_conversions
        if (source, target) not in known:
            known[source, target] = conversions.tables(self._coefficients, source, target)
        return known[source, target]

    def _checked_pair(self, t: Steps, s: Steps | None, x: Array, xp: Any) -> tuple[Any, Any]:
        """A reverse step's (t, s) in the forms of `check_steps`; s may be None, which stands for t - 1."""
        t = check_steps("t", t, x, xp, 1, self.T)
        if s is not None:
            s = check_steps("s", s, x, xp, 0, self.T - 1)
            if isinstance(t, int | np.ndarray) and isinstance(s, int | np.ndarray):
                _check_order(t, s)
        return t, s

    def _step_weights(self, t: Any, s: Any, x: Array, xp: Any, *names: str) -> list[Any]:
        """The weights of these names for a checked pair, as they combine with x, an array of the namespace xp."""
        if s is None:
            return [gather(Named(self, Tables._weight, (name,)), t, x, xp) for name in names]
        if compiling() and isinstance(t, int) and isinstance(s, int):
            return [number(self, Tables._pair_weight, (name, t, s)) for name in names]
        known = isinstance(t, int | np.ndarray) and isinstance(s, int | np.ndarray)
        w = self._pair_weights(*np.broadcast_arrays(t, s)) if known else pair_weights_on_device(self, t, s, x, xp)
        found, trailing = [getattr(w, name) for name in names], (1,) * (x.ndim - 1)
        if not known or (isinstance(t, int) and isinstance(s, int)):
            return found
        return [array_like(weight.reshape(-1, *trailing), x, xp) for weight in found]

    def _checked_pair_weights(self, t: Steps, s: Steps | None) -> Weights:
        start = check_host_steps("t", t, 1, self.T)
        end = check_host_steps("s", start - 1 if s is None else s, 0, self.T - 1)
        try:
            start, end = np.broadcast_arrays(start, end)
        except ValueError:
            raise ValueError(f"s must broadcast against t's shape {np.shape(start)}, got {np.shape(end)}") from None
        _check_order(start, end)
        return self._pair_weights(start, end)

    def _pair_weights(self, t: NDArray[Any], s: NDArray[Any]) -> Weights:
        if np.all(t - s == 1):
            w = Weights(*(table[t] for table in self.weights))
        else:
            w = pair_weights(self._log_alpha_bar.at(t), self._log_alpha_bar.at(s), self._log_between(t, s))
        return Weights(*map(float, w)) if t.ndim == 0 else w

    @np.errstate(all="ignore")
    def _log_between(self, t: NDArray[Any], s: NDArray[Any]) -> Double:
        """log alpha_{t|s}: a difference of sums, or its own sum if the digits would cancel, in a flat piece of a chain."""
        log = minus(self._log_alpha_bar.at(t), self._log_alpha_bar.at(s))
        lost = np.abs(log.hi) < 2.0**-48 * np.abs(self._log_alpha_bar.hi[s])
        if not np.any(lost):
            return log
        hi, lo = (np.array(part) for part in log)
        for k in np.flatnonzero(lost):
            steps = double.log(double.two_sum(1.0, -self.beta[s.flat[k] + 1 : t.flat[k] + 1]))
            hi.flat[k], lo.flat[k] = math.fsum(steps.hi), math.fsum(steps.lo)
        return Double(hi, lo)

    def _weight(self, name: str) -> Table:
        return getattr(self.weights, name)  # type: ignore[no-any-return]

    def _pair_weight(self, name: str, t: int, s: int) -> float:
        return getattr(self._pair_weights(*np.broadcast_arrays(t, s)), name)  # type: ignore[no-any-return]

    @cached_property
    def _log_first_var(self) -> float:
        """What a fixed variance has at t = 1 in place of 0: log beta_tilde_2 [Ho], or log beta_1 if T = 1."""
        return float(self.weights.log_beta_tilde[2] if self.T > 1 else self.weights.log_beta[1])

    @cached_property
    def _log_one_minus_alpha_bar(self) -> Table:
        with np.errstate(divide="ignore"):
            return np.log(self.one_minus_alpha_bar)

    @property
    def _coefficients(self) -> conversions.Coefficients:
        return conversions.Coefficients(
            a=self.sqrt_alpha_bar, sigma=self.sqrt_one_minus_alpha_bar, r=np.sqrt(self.alpha), beta=self.beta,
            w_x0=self.weights.w_x0, w_xt=self.weights.w_xt,
        )  # fmt: skip

    @cached_property
    def _known_conversions(self) -> dict[tuple[str, str], tuple[Table, Table | None]]:
        return {}

    @property
    def _content(self) -> tuple[bytes, bytes]:
        return self._log_alpha_bar.hi.tobytes(), self._log_alpha_bar.lo.tobytes()


def _check_order(t: Any, s: Any) -> None:
    if isinstance(t, int) and isinstance(s, int):
        if s >= t:
            raise ValueError(f"s must be below t = {t}, got {s}")
        return
    t, s = np.broadcast_arrays(t, s)
    if np.any(late := s >= t):
        raise ValueError(f"s must be below t = {t[late][0]}, got {s[late][0]}")


def _read_only(table: Table) -> Table:
    table = np.ascontiguousarray(table, dtype=np.float64)
    table.flags.writeable = False
    return table
