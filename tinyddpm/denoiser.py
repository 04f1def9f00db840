"""A network and how to read it: x_0, eps and p(x_s | x_t) from whatever it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyddpm import conversions, plans
from tinyddpm._arrays.check import as_instance, as_int, one_of
from tinyddpm._arrays.namespace import Array, array_like, clip_array, is_array_of, namespace_of
from tinyddpm._arrays.steps import Steps, check_steps, gather, time_array
from tinyddpm._arrays.value import FrozenValue
from tinyddpm.diffusion import Diffusion
from tinyddpm.gaussian import Gaussian

if TYPE_CHECKING:
    from tinyddpm._numerics.weights import LogVarWeights

__all__ = ["Denoiser", "Net", "check_model", "refuse_nonfinite"]

Net = Callable[[Array, Array], Array]

_FIXED = ("beta", "beta_tilde")
_LEARNED = ("learned", "learned_range")


@dataclass(frozen=True, eq=False)
class Denoiser(FrozenValue):
    """The learned reverse process p(x_s | x_t), as a network gives it.

    Parameters
    ----------
    net : callable
        ``net(x_t, t)`` with x_t of shape (B, ...) and an integer array t of shape (B,); it gets ``t - 1 + first_t``.
    predicts : str
        What it returns: "eps", "x0", "mu", "v" or "score" (see `conversions`).
    variance : str or float64 array (T + 1,)
        Of p(x_s | x_t): "beta" (beta_{t|s}) or "beta_tilde" (the posterior's), both with beta_tilde_2 in place of their entry
        at t = 1 as [Ho] do (beta_1 when T = 1); "learned", where the network emits 2C channels on axis 1, the second half
        log-variance; "learned_range", where that half v in [-1, 1] interpolates between the two, log var =
        (1 + v)/2 log beta + (1 - v)/2 log beta_tilde [iDDPM eq. 15]; or a table indexed by t for moves s = t - 1.
        A longer move into s = 0 has beta_{t|0}, or the point x_0 for "beta_tilde"; `respaced` gives the shorter chain's own.
    clip_x0 : bool
        Clip x_0 to [-1, 1]; everything else is derived from the clipped x_0.
    first_t : int
        The number by which the network knows the paper's t = 1.
    """

    net: Net
    predicts: str = "eps"
    variance: Any = "beta"
    clip_x0: bool = True
    first_t: int = 1

    def __post_init__(self) -> None:
        if not callable(self.net):
            raise TypeError(f"net must be a callable net(x_t, t), got {type(self.net).__name__}")
        one_of("predicts", self.predicts, conversions.KINDS)
        if isinstance(self.variance, str):
            one_of("variance", self.variance, _FIXED + _LEARNED)
        else:
            object.__setattr__(self, "variance", _checked_table(self.variance))
        if not isinstance(self.clip_x0, bool):
            raise TypeError(f"clip_x0 must be a bool, got {type(self.clip_x0).__name__}")
        as_int("first_t", self.first_t, -(2**31), 2**31)

    @property
    def learned(self) -> bool:
        """Whether the network emits its variance."""
        return isinstance(self.variance, str) and self.variance in _LEARNED

    def x0(self, d: Diffusion, x_t: Array, t: Steps) -> Array:
        """The prediction of x_0, clipped where `clip_x0` says so; `x_t` (B, ...), `t` in 1..T."""
        return self.x0_from(d, self.call(d, x_t, t)[0], x_t, t)

    def eps(self, d: Diffusion, x_t: Array, t: Steps) -> Array:
        """The prediction of eps, consistent with the clipped x_0."""
        return self.eps_from(d, self.call(d, x_t, t)[0], x_t, t)

    def p(self, d: Diffusion, x_t: Array, t: Steps, s: Steps | None = None) -> Gaussian:
        """p(x_s | x_t) for 0 <= s < t, by default s = t - 1."""
        value, raw = self.call(d, x_t, t)
        return self.p_from(d, value, raw, x_t, t, s)

    def respaced(self, timesteps: Iterable[int]) -> Denoiser:
        """The denoiser of the chain ``d.respaced(timesteps)``: its network is told the steps of d that it was trained on."""
        if not isinstance(self.variance, str):
            raise ValueError("variance: a table belongs to single steps; it can't be respaced")
        return replace(self, net=_Respaced(self.net, plans.checked(timesteps, 2**62), self.first_t))

    # The three stages of the above, for losses, bounds and samplers.

    def call(self, d: Diffusion, x_t: Array, t: Steps) -> tuple[Array, Array | None]:
        """What the network returns: the prediction, and its raw variance output where `learned`. Refuses a wrong output."""
        as_instance("d", d, Diffusion)
        xp = namespace_of(x_t=x_t)
        t = check_steps("t", t, x_t, xp, 1, d.T)
        return self.ask(d, x_t, t, time_array(t, self.first_t - 1, x_t, xp), xp)

    def ask(self, d: Diffusion, x_t: Array, t: Steps, net_t: Array, xp: Any) -> tuple[Array, Array | None]:
        """`call` with checked arguments: x_t of the namespace xp, and t as the network counts."""
        guided = None
        if hasattr(type(self.net), "guided"):  # a classifier shifts the score, so it needs to know the chain
            guided = getattr(self.net, "guided", None)
        out = self.net(x_t, net_t) if guided is None else guided(x_t, net_t, d, t, self.predicts)
        self._check_output(out, x_t, t, xp)
        if not self.learned:
            return out, None
        channels = x_t.shape[1]
        return out[:, :channels, ...], out[:, channels:, ...]

    def x0_from(self, d: Diffusion, value: Array, x_t: Array, t: Steps) -> Array:
        """x_0 from a prediction."""
        x0 = d.convert(value, x_t, t, self.predicts, "x0")
        return clip_array(x0, -1.0, 1.0, namespace_of(x0=x0)) if self.clip_x0 else x0

    def eps_from(self, d: Diffusion, value: Array, x_t: Array, t: Steps) -> Array:
        """eps from a prediction, consistent with the clipped x_0."""
        if not self.clip_x0:
            return d.convert(value, x_t, t, self.predicts, "eps")
        return d.convert(self.x0_from(d, value, x_t, t), x_t, t, "x0", "eps")

    def p_from(
        self, d: Diffusion, value: Array, raw: Array | None, x_t: Array, t: Steps, s: Steps | None = None
    ) -> Gaussian:
        """p(x_s | x_t) from a prediction and the raw variance output."""
        xp = namespace_of(x_t=x_t, value=value)
        move = d.step_weights(t, s, x_t, xp)
        mean = move.w_x0 * self.x0_from(d, value, x_t, t) + move.w_xt * x_t
        return Gaussian(mean, self._log_var(d, move, raw, check_steps("t", t, x_t, xp, 1, d.T), s, x_t, xp))

    def log_var_from(self, d: Diffusion, raw: Array | None, x_t: Array, t: Steps, s: Steps | None = None) -> Any:
        """log of p's variance: a float where t and s are ints and it is fixed, else an array that broadcasts to x_t."""
        xp = namespace_of(x_t=x_t)
        return self._log_var(d, d.step_weights(t, s, x_t, xp), raw, check_steps("t", t, x_t, xp, 1, d.T), s, x_t, xp)

    def _log_var(
        self, d: Diffusion, move: LogVarWeights, raw: Array | None, t: Steps, s: Steps | None, x: Array, xp: Any
    ) -> Any:
        if not isinstance(self.variance, str):
            return self._given_log_var(d, t, s, x, xp)
        if self.learned and raw is None:
            raise ValueError(f"raw: variance={self.variance!r} needs the network's variance output")
        if self.variance == "learned":
            return raw
        first = math.log(d.weights.beta_tilde[2] if d.T > 1 else d.beta[1])
        if self.variance == "beta":
            return _at_first_step(t, first, move.log_beta, x, xp)
        low = _at_first_step(t, first, move.log_beta_tilde, x, xp)
        if self.variance == "beta_tilde":
            return low
        # A longer move into s = 0 has no lower end to interpolate from: there both are beta.
        if isinstance(low, float):
            low = move.log_beta if low == -math.inf else low
        else:
            low = xp.where(low == -math.inf, move.log_beta, low)
        fraction: Array = raw
        return low + (1 + fraction) / 2 * (move.log_beta - low)

    def _given_log_var(self, d: Diffusion, t: Steps, s: Steps | None, x: Array, xp: Any) -> Any:
        if len(self.variance) != d.T + 1:
            raise ValueError(f"variance must be a table of length T + 1 = {d.T + 1}, got {len(self.variance)}")
        log_var = gather(self._log_table, t, x, xp)
        if s is None:
            return log_var
        single = s == t - 1
        if isinstance(s, int | np.ndarray) and isinstance(t, int | np.ndarray):
            if not np.all(single):
                raise ValueError(
                    "variance: a table holds for single steps s = t - 1 only; respace the chain for longer moves"
                )
            return log_var
        return xp.where(xp.reshape(single, (-1,) + (1,) * (x.ndim - 1)), log_var, array_like(math.nan, x, xp))

    @cached_property
    def _log_table(self) -> Any:
        with np.errstate(divide="ignore"):
            return np.log(self.variance)

    def _check_output(self, out: Any, x_t: Array, t: Steps, xp: Any) -> None:
        shape = list(x_t.shape)
        if self.learned:
            if len(shape) < 2:
                raise ValueError("x_t: a learned variance needs channels on axis 1")
            shape[1] *= 2
        if type(out) is not type(x_t) and not is_array_of(xp, out):
            raise ValueError(f"net must return {type(x_t).__name__}, got {type(out).__name__} at {_where(t)}")
        if tuple(out.shape) != tuple(shape):
            raise ValueError(f"net must return shape {tuple(shape)}, got {tuple(out.shape)} at {_where(t)}")
        if out.dtype != x_t.dtype:
            raise ValueError(f"net must return {x_t.dtype}, got {out.dtype} at {_where(t)}")
        # No device is known where a compiler traces, and JAX spreads arrays as it likes.
        here, there = (getattr(x, "device", None) for x in (x_t, out))
        if there != here and None not in (here, there) and not hasattr(out, "sharding"):
            raise ValueError(f"net must return an array on {here}, got {there} at {_where(t)}")


def check_model(d: Diffusion, denoiser: Denoiser) -> None:
    """Refuse what is neither."""
    as_instance("d", d, Diffusion)
    as_instance("denoiser", denoiser, Denoiser)


def refuse_nonfinite(xp: Any, t: int, *outputs: Array | None) -> None:
    """Blame the network at t for an array of the namespace xp that is not finite."""
    for out in outputs:
        if out is not None and not bool(xp.all(xp.isfinite(out))):
            raise ValueError(f"net returned NaN or infinity at t = {t}")


@dataclass(frozen=True)
class _Respaced:
    """A network that is told the steps of the long chain."""

    net: Net
    timesteps: tuple[int, ...]
    first_t: int

    def __call__(self, x_t: Array, t: Array) -> Array:
        return self.net(x_t, self._told(x_t, t))

    @property
    def guided(self) -> Callable[..., Array]:
        inner = self.net.guided  # type: ignore[attr-defined]  # AttributeError where the network is not guided
        return lambda x_t, t, *chain: inner(x_t, self._told(x_t, t), *chain)

    def _told(self, x_t: Array, t: Array) -> Array:
        xp = namespace_of(x_t=x_t)
        steps = array_like(np.array(self.timesteps[::-1]), x_t, xp, dtype=t.dtype)
        return xp.take(steps, t + (1 - self.first_t), axis=0) + (self.first_t - 1)


def _at_first_step(t: Steps, first: float, log_var: Any, x: Array, xp: Any) -> Any:
    """`log_var` with `first` in its place where t = 1."""
    if isinstance(t, int):
        return first if t == 1 else log_var
    is_first = t == 1
    if isinstance(t, np.ndarray):
        is_first = array_like(is_first, x, xp, dtype=xp.bool)
    return xp.where(xp.reshape(is_first, (-1,) + (1,) * (x.ndim - 1)), array_like(first, x, xp), log_var)


def _checked_table(variance: Any) -> Any:
    table: Any = np.array(variance)
    if table.dtype.kind != "f" or table.ndim != 1 or len(table) < 2:
        raise TypeError("variance must be a name or a float array of length T + 1")
    table = table.astype(np.float64)
    if not np.all(table[1:] >= 0) or not np.all(np.isfinite(table[1:])):
        raise ValueError("variance: the table's entries 1..T must be finite and not negative")
    table[0] = math.nan  # no step starts at 0
    table.flags.writeable = False
    return table


def _where(t: Steps) -> str:
    if isinstance(t, np.ndarray) and t.size:
        return f"t = {t.min()}..{t.max()}"
    return f"t = {t}" if isinstance(t, int) else "the steps given"
