"""One call of the network on noised data, and the errors and terms of the bound that follow from it.

At fixed x_t every kind of prediction is linear in every other one, so each error is a number times the error of what the
network predicts; that number is computed in float64 on the host.
"""

from __future__ import annotations

import sys
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from tinyddpm import gaussian
from tinyddpm._arrays.check import one_of
from tinyddpm._arrays.namespace import Array, Table, cast_like, check_same_shape, flatten, namespace_of, quietly, widened
from tinyddpm._arrays.steps import Steps, check_steps, column
from tinyddpm._numerics import bins
from tinyddpm._process import Process
from tinyddpm.conversions import Kind
from tinyddpm.denoiser import Denoiser, check_model

Decoder = Literal["exact", "ho2020", "density"]


class Call(NamedTuple):
    """One call of the network on noised data, and what it should have returned."""

    x0: Array
    x_t: Array
    t: Any
    target: Array
    value: Array
    raw: Array | None
    xp: Any

    @property
    def error(self) -> Array:
        """Target minus prediction, (B, ...), at least in float32."""
        return self.target - widened(self.value, self.xp)


def call_on_noised(d: Process, denoiser: Denoiser, x0: Array, t: Steps, eps: Array) -> Call:
    """Check a loss's arguments, form x_t and call the network."""
    check_model(d, denoiser)
    xp = namespace_of(x0=x0, eps=eps)
    check_same_shape("eps", eps, "x0", x0)
    if 0 in x0.shape[1:]:
        raise ValueError(f"x0 must hold at least one number in each sample, got shape {tuple(x0.shape)}")
    steps, eps = check_steps("t", t, x0, xp, 1, d.T), cast_like(eps, x0, xp)
    x_t = d._q_sample(x0, steps, eps, xp)
    value, raw = denoiser.call(d, x_t, steps, xp, clip=False)
    truth = target(d, denoiser.predicts, widened(x0, xp), widened(x_t, xp), steps, widened(eps, xp), xp)
    return Call(x0, x_t, steps, truth, value, raw, xp)


@quietly
def target(d: Process, predicts: Kind, x0: Array, x_t: Array, t: Any, eps: Array, xp: Any) -> Array:
    """The true value of what a network predicts; the arguments are checked."""
    if predicts == "v":
        return d._q_sample(eps, t, -x0, xp)  # v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0
    if predicts == "mu":
        w_x0, w_xt = d._step_weights(t, None, x_t, xp, "w_x0", "w_xt")
        return w_x0 * x0 + w_xt * x_t
    return x0 if predicts == "x0" else d._convert(eps, x_t, t, "eps", predicts, xp)


@quietly
def eps_error(d: Process, predicts: Kind) -> Table:
    """What the squared error of a prediction at step t = 1..T is to be multiplied by to become that of eps."""
    return d.conversion(predicts, "eps")[0] ** 2


def check_range(name: str, x0: Array, levels: int, decoder: Decoder) -> None:
    """Raise unless the decoder is known and, if it is of discretized data, x0 within half a bin of [-1, 1]."""
    one_of("decoder", decoder, get_args(Decoder))
    if decoder != "density" and hasattr(x0, "dtype"):
        bins.check_range(name, x0, levels, "scale the data, or use decoder='density' for continuous data")


@quietly
def vlb_term(d: Process, denoiser: Denoiser, call: Call, decoder: Decoder) -> Array:
    """L_{t-1} in nats per dimension, (B,), from the network's unclipped output."""
    x_t, t, xp = call.x_t, call.t, call.xp
    raw = None if call.raw is None else widened(call.raw, xp)
    log_var = denoiser.log_var_from(d, raw, widened(x_t, xp), t, None, xp)
    first = t == 1
    known = isinstance(t, int | np.ndarray)  # then nothing is computed that no row needs
    some, all_first = (bool(np.any(first)), bool(np.all(first))) if isinstance(t, np.ndarray) else (first, first)
    if known and not some:
        return mean_over_dims(_divergence(d, denoiser, call, log_var), xp)
    mean = d._convert(call.value, x_t, t, denoiser.predicts, "mu", xp)
    l_0 = mean_over_dims(reconstruction(call.x0, mean, log_var, decoder), xp)
    if known and all_first:
        return l_0
    return xp.where(column(first, l_0, xp), l_0, mean_over_dims(_divergence(d, denoiser, call, log_var), xp))


def reconstruction(x0: Array, mean: Array, log_var: Any, decoder: Decoder, levels: int = 256) -> Array:
    """-log p(x_0 | x_1), elementwise: of x_0's bin among `levels`, or its density."""
    if decoder == "density":
        return -gaussian.Gaussian(mean, log_var).log_prob(x0)
    return -gaussian.discretized_log_likelihood(x0, mean, log_var / 2, levels, decoder)


def _divergence(d: Process, denoiser: Denoiser, call: Call, log_var: Any) -> Array:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), elementwise; the gap of the means comes from the prediction's error."""
    error = call.error
    gap = d._slope(error, call.t, denoiser.predicts, "mu", call.xp) * error
    (log_beta_tilde,) = d._step_weights(call.t, None, error, call.xp, "log_beta_tilde")
    return cast_like(gaussian.kl(gap, log_beta_tilde, call.xp.zeros_like(gap), log_var), call.x0, call.xp)


def mean_over_dims(x: Array, xp: Any) -> Array:
    """The mean over each sample's dimensions, (B, ...) -> (B,)."""
    return xp.mean(flatten(x, xp), axis=-1)


def mean_square(x: Array, xp: Any) -> Array:
    """The mean square over each sample's dimensions, (B, ...) -> (B,)."""
    return mean_over_dims(x**2, xp)


def detached(x: Array) -> Array:
    """x as a constant to automatic differentiation, if its library has that."""
    if hasattr(x, "detach"):  # Torch
        return x.detach()
    jax = sys.modules.get("jax")
    return jax.lax.stop_gradient(x) if jax is not None and isinstance(x, jax.Array) else x
