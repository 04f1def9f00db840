"""Training losses, each ``(d, denoiser, x0, t, eps) -> (B,)``, and samplers of the step t.

x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps is formed here, the network is called once, and its output is read
unclipped. At fixed x_t every kind of prediction is linear in every other one, so each error is a number times the error of what
the network predicts; that number is computed in float64 on the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyddpm import gaussian
from tinyddpm._arrays.check import allocating, as_instance, as_int, as_positive_int, as_real, lookup
from tinyddpm._arrays.namespace import Array, array_like, cast_like, flatten, host_values, namespace_of
from tinyddpm._arrays.steps import Steps, check_host_steps, check_steps, gather
from tinyddpm.denoiser import check_model

if TYPE_CHECKING:
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion

__all__ = ["LossAwareT", "UniformT", "hybrid", "simple", "vlb", "weighted"]

Table = NDArray[np.float64]


def simple(d: Diffusion, denoiser: Denoiser, x0: Array, t: Steps, eps: Array) -> Array:
    """Mean over dimensions of the squared error of the predicted quantity; L_simple where that is eps [Ho eq. 14].

    `x0` and `eps` have shape (B, ...); `t` is an int or an integer array (B,) in 1..T.
    """
    call = _called(d, denoiser, x0, t, eps)
    return _mean_square(call.error, call.xp)


def vlb(d: Diffusion, denoiser: Denoiser, x0: Array, t: Steps, eps: Array) -> Array:
    """The bound's term L_{t-1} in nats per dimension [Ho eq. 5]: a KL for t > 1, the 8-bit decoder's -log p(x_0 | x_1) at t = 1.

    T times its mean over t = 1..T, plus L_T, is the bound. `ValueError` where x0 is far outside [-1, 1].
    """
    check_range("x0", x0)
    return _bound(d, denoiser, _called(d, denoiser, x0, t, eps))


def hybrid(d: Diffusion, denoiser: Denoiser, x0: Array, t: Steps, eps: Array, weight: float = 0.001) -> Array:
    """simple + weight * T * vlb, where vlb trains the variance only: the mean is detached in it [iDDPM eq. 16].

    T is there because vlb is one of the bound's T terms. The published code counts vlb in bits: its 0.001 is 0.001 / ln 2 here.
    """
    weight = as_real("weight", weight)
    check_range("x0", x0)
    call = _called(d, denoiser, x0, t, eps)
    fixed_mean = call._replace(value=_detached(call.value))
    return _mean_square(call.error, call.xp) + weight * d.T * _bound(d, denoiser, fixed_mean)


def weighted(
    d: Diffusion,
    denoiser: Denoiser,
    x0: Array,
    t: Steps,
    eps: Array,
    weighting: str = "uniform",
    gamma: float | None = None,
) -> Array:
    """A squared error weighted by a function of SNR = alpha_bar_t / (1 - alpha_bar_t), the same whatever is predicted.

    "uniform" is `simple`; "snr" is SNR times the error of x_0, which is the error of eps; "min_snr" is min(SNR, gamma) times the
    error of x_0 [Hang et al. 2023], gamma = 5; "p2" is (1 + SNR)^-gamma times the error of eps [Choi et al. 2022 with k = 1],
    gamma = 1.
    """
    weight = lookup("weighting", weighting, _WEIGHTINGS)
    default = {"min_snr": 5.0, "p2": 1.0}.get(weighting)
    if gamma is not None and default is None:
        raise ValueError(f"gamma: the weighting {weighting!r} has none")
    call = _called(d, denoiser, x0, t, eps)
    loss = _mean_square(call.error, call.xp)
    if weight is None:
        return loss
    power = default if gamma is None else as_real("gamma", gamma, 0.0)
    factor = gather(weight(d, power) * eps_error(d, denoiser.predicts), call.t, loss, call.xp)
    return factor * loss


_WEIGHTINGS: dict[str, Callable[[Diffusion, Any], Table] | None] = {  # of the squared error of eps
    "uniform": None,
    "snr": lambda d, _: np.ones(d.T + 1),
    "min_snr": lambda d, gamma: np.minimum(1.0, gamma * np.exp(np.minimum(-d.log_snr, 700.0))),
    "p2": lambda d, gamma: d.one_minus_alpha_bar**gamma,
}


def eps_error(d: Diffusion, predicts: str) -> Table:
    """What the squared error of a prediction at step t = 1..T is to be multiplied by to become that of eps."""
    a, _ = d.conversion(predicts, "eps")
    return a**2


def target(d: Diffusion, predicts: str, x0: Array, x_t: Array, t: Steps, eps: Array) -> Array:
    """The true value of what a network predicts."""
    if predicts == "v":
        return d.q_sample(eps, t, -x0)  # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
    if predicts == "mu":
        return d.posterior(x_t, x0, t).mean
    return x0 if predicts == "x0" else d.convert(eps, x_t, t, "eps", predicts)


def check_range(name: str, x0: Array) -> None:
    """Refuse data far outside [-1, 1], beyond [-2, 2], where the host can read them."""
    host = host_values(x0) if hasattr(x0, "dtype") else None
    if host is not None and not np.all(inside := np.abs(host) <= 2):
        raise ValueError(f"{name}: {host[~inside].flat[0]} is far outside [-1, 1]; the data must be scaled to it")


class _Call(NamedTuple):
    """One call of the network on the noised data, and what it should have returned."""

    x0: Array
    x_t: Array
    t: Steps
    target: Array
    value: Array
    raw: Array | None
    xp: Any

    @property
    def error(self) -> Array:
        return self.target - self.value


def _called(d: Diffusion, denoiser: Denoiser, x0: Array, t: Steps, eps: Array) -> _Call:
    check_model(d, denoiser)
    xp = namespace_of(x0=x0, eps=eps)
    t, eps = check_steps("t", t, x0, xp, 1, d.T), cast_like(eps, x0, xp)
    x_t = d.q_sample(x0, t, eps)
    value, raw = denoiser.call(d, x_t, t)
    return _Call(x0, x_t, t, target(d, denoiser.predicts, x0, x_t, t, eps), value, raw, xp)


def _bound(d: Diffusion, denoiser: Denoiser, call: _Call) -> Array:
    """L_{t-1} in nats per dimension, read from a network's unclipped output."""
    x0, x_t, t, xp = call.x0, call.x_t, call.t, call.xp
    log_var = denoiser.log_var_from(d, call.raw, x_t, t)
    first: Any = t == 1
    known = isinstance(t, int | np.ndarray)  # then nothing is computed that no row needs
    if known and not np.any(first):
        return _mean(_divergence(d, denoiser, call, log_var), xp)
    mean = d.convert(call.value, x_t, t, denoiser.predicts, "mu")
    decoder = _mean(-gaussian.discretized_log_likelihood(xp.clip(x0, -1.0, 1.0), mean, log_var / 2), xp)
    if known and np.all(first):
        return decoder
    first = array_like(first, x0, xp, dtype=xp.bool) if known else first
    return xp.where(first, decoder, _mean(_divergence(d, denoiser, call, log_var), xp))


def _divergence(d: Diffusion, denoiser: Denoiser, call: _Call, log_var: Any) -> Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), elementwise; the means' difference comes from the prediction's error."""
    slope, _ = d.conversion(denoiser.predicts, "mu")
    gap = gather(slope, call.t, call.x0, call.xp) * call.error
    log_beta_tilde = d.step_weights(call.t, None, call.x_t, call.xp).log_beta_tilde
    return gaussian.kl(gap, log_beta_tilde, call.xp.zeros_like(gap), log_var)


def _mean(x: Array, xp: Any) -> Array:
    """Over each sample's dimensions: (B, ...) -> (B,)."""
    return xp.mean(flatten(x, xp), axis=-1)


def _mean_square(x: Array, xp: Any) -> Array:
    return _mean(x**2, xp)


def _detached(x: Array) -> Array:
    """x as a constant to automatic differentiation, where its library has that."""
    if hasattr(x, "detach"):  # Torch
        return x.detach()
    jax = sys.modules.get("jax")
    return jax.lax.stop_gradient(x) if jax is not None and isinstance(x, jax.Array) else x


# Samplers of t. They learn, so they are the one kind of object here that changes.


class UniformT:
    """t uniform on 1..T, with weight 1."""

    def __init__(self, T: int) -> None:
        self.T = as_positive_int("T", T)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Table]:
        """n steps and their weights, arrays (n,) on the host."""
        n = as_int("n", n, 0, 2**62)
        with allocating("n", n):
            return _generator(rng).integers(1, self.T, size=n, endpoint=True), np.ones(n)

    def update(self, t: ArrayLike, loss: ArrayLike) -> None:
        """Take note of losses (B,) at the steps t (B,): nothing is learned from them. `ValueError` outside 1..T."""
        self._checked(t, loss)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What `load_state_dict` restores, as arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`; `ValueError` where it is not one of this sampler with this T."""
        own = self.state_dict()
        if set(as_instance("state", state, dict)) != set(own):
            raise ValueError(f"state must have the keys {sorted(own)}, got {sorted(map(str, state))}")
        for key, value in own.items():
            if np.shape(state[key]) != value.shape:
                raise ValueError(f"state: {key} must have shape {value.shape}, got {np.shape(state[key])}")
            if np.asarray(state[key]).dtype.kind not in "iuf" or not np.all(np.isfinite(state[key])):
                raise ValueError(f"state: {key} must hold finite numbers")

    def _checked(self, t: ArrayLike, loss: ArrayLike) -> tuple[NDArray[np.int64], Table]:
        steps: Any = np.atleast_1d(check_host_steps("t", np.asarray(t), 1, self.T))
        try:
            losses = np.atleast_1d(np.asarray(loss, dtype=np.float64))
        except (TypeError, ValueError):
            raise TypeError(f"loss must be numbers, got {type(loss).__name__}") from None
        if steps.shape != losses.shape or steps.ndim != 1:
            raise ValueError(f"loss must be one number for each t, got shape {losses.shape} for {steps.shape}")
        if not np.all(np.isfinite(losses)):
            raise ValueError(f"loss: {losses[~np.isfinite(losses)][0]} is not finite")
        return steps, losses


class LossAwareT(UniformT):
    """t drawn in proportion to the root mean square of its last 10 losses, mixed with 0.001 uniform [iDDPM sec. 3.3].

    Uniform until every t has 10 losses. The weight 1 / (T p_t) makes the weighted loss's mean that of uniform t.
    """

    def __init__(self, T: int) -> None:
        super().__init__(T)
        with allocating("T", T):
            self._history = np.zeros((self.T, _KEPT))
            self._count = np.zeros(self.T, dtype=np.int64)

    @property
    def prob(self) -> Table:
        """p_1..p_T, shape (T,)."""
        size: Table = np.sqrt(np.mean(self._history**2, axis=1))
        if np.any(self._count < _KEPT) or not np.any(size):
            return np.full(self.T, 1 / self.T)
        prob: Table = (1 - _UNIFORM) * size / size.sum() + _UNIFORM / self.T
        return prob

    def sample(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Table]:
        """n steps drawn with probability p_t, and the weights 1 / (T p_t), arrays (n,) on the host."""
        n, prob = as_int("n", n, 0, 2**62), self.prob
        with allocating("n", n):
            drawn = _generator(rng).choice(self.T, size=n, p=prob)
            return drawn + 1, 1 / (self.T * prob[drawn])

    def update(self, t: ArrayLike, loss: ArrayLike) -> None:
        """Take note of losses (B,), before weighting, at the steps t (B,). `ValueError` outside 1..T or where not finite."""
        for step, value in zip(*self._checked(t, loss), strict=True):
            row = self._history[step - 1]
            row[:-1] = row[1:]
            row[-1] = value
            self._count[step - 1] = min(self._count[step - 1] + 1, _KEPT)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """What `load_state_dict` restores, as arrays: "history" (T, 10), oldest first, and "count" (T,)."""
        return {"history": self._history.copy(), "count": self._count.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`; `ValueError` where it is not one of this sampler with this T."""
        super().load_state_dict(state)
        if np.any(np.less(state["count"], 0)):
            raise ValueError("state: a count is negative")
        self._history = np.array(state["history"], dtype=np.float64)
        self._count = np.array(state["count"], dtype=np.int64)


_KEPT = 10
_UNIFORM = 0.001


def _generator(rng: np.random.Generator) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    return rng
