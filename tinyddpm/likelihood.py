"""The variational bound on a data set's likelihood, term by term, and the variances that make it tightest.

At fixed x_t all predictions are linear in each other. So with a fixed variance every term of step t, its KL and its errors of
x_0 and eps, is a number times one squared distance: the loop does one reduction a step, and the rest is float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyddpm import backends, gaussian
from tinyddpm._arrays.check import as_bool, as_int, as_positive_int, names_unknown_options
from tinyddpm._arrays.namespace import Array, Table, quiet
from tinyddpm._io.progress import progress_bar
from tinyddpm._likelihood.result import VLB, Curve
from tinyddpm._likelihood.steps import (
    Columns,
    NoisedStep,
    checked_data,
    clipped_x0,
    existing_slope,
    noised_steps,
    square_sum,
    sum_over_dims,
)
from tinyddpm._losses.call import Decoder, check_range, eps_error, target
from tinyddpm._process import Process
from tinyddpm.conversions import Kind
from tinyddpm.denoiser import Denoiser

__all__ = ["VLB", "Curve", "optimal_variance", "vlb"]


@names_unknown_options
def vlb(
    d: Process,
    denoiser: Denoiser,
    x0: Array,
    *,
    seed: int = 0,
    index: Sequence[int] | None = None,
    levels: int = 256,
    decoder: Decoder = "exact",
    terms: bool = True,
    progress: bool = False,
) -> VLB:
    r"""The bound on -log p(x_0) with one draw of x_t for each sample and step.

    .. math:: L = L_T + \sum_{t=2}^T L_{t-1} + L_0  \qquad \text{[Ho eq. 5]}

    with L_T = KL(q(x_T | x_0) || N(0, I)), L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), L_0 = -log p(x_0 | x_1).

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    x0 : array (B, ...)
        Data of any registered backend, on `levels` equal steps of [-1, 1]; of any range if the decoder is "density".
    seed : int
        Seed of the noise.
    index : sequence of int, optional
        B sample numbers: the noise of row i is a function of (seed, index[i], t) only, so the terms do not depend on how a
        data set is split into batches. Default: 0..B-1.
    levels : int
        Levels of the data, in 2..65536.
    decoder : {"exact", "ho2020", "density"}
        What p(x_0 | x_1) is: the Gaussian's mass in x_0's bin, exactly or by [Ho]'s approximation (see
        `gaussian.discretized_log_likelihood`), or its density, for continuous data.
    terms : bool
        Keep the terms of each step. Without them memory does not grow with T.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    VLB
        The terms in nats, float64 on the host.

    Raises
    ------
    ValueError
        If the data are more than half a bin outside [-1, 1] (unless the decoder is "density"), the means do not follow from
        the predictions at every step, or the network's output is wrong or not finite; that message names ``net`` and the step.
    TypeError, LookupError
        If an argument has the wrong type, or the decoder is unknown.

    Notes
    -----
    With ``clip_x0`` the means are those of the clipped x_0, as in [Ho]'s evaluation. The network is called once a step,
    without gradients, on the rows of x0 in their order.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion, likelihood
    >>> from tinyddpm.analytic import GaussianData
    >>> d, data = Diffusion(), GaussianData(np.zeros(2), 0.04)
    >>> x0 = data.sample(100, 0)
    >>> bound = likelihood.vlb(d, Denoiser(data.net(d)), x0, decoder="density")
    >>> bool(bound.total.mean() > -data.log_prob(x0).mean())
    True
    """
    x, xp = checked_data(d, denoiser, x0)
    levels, terms = as_int("levels", levels, 2, 65536), as_bool("terms", terms)
    check_range("x0", backends.of(x).to_numpy(x), levels, decoder)
    sums = _Sums(d, denoiser, x, xp, terms, levels, decoder)
    steps = noised_steps(d, denoiser, x0, x, seed, index, keep_eps=sums.kind != "x0")
    with backends.no_grad(x0):
        for step in progress_bar(steps, d.T, enabled=as_bool("progress", progress), label="likelihood"):
            sums.add(step)
    return sums.result()


class _Sums:
    """The bound's reductions over dimensions, as the steps come for t = T..1."""

    def __init__(self, d: Process, denoiser: Denoiser, x: Array, xp: Any, terms: bool, levels: int, decoder: Decoder) -> None:
        self.d, self.denoiser, self.x, self.xp = d, denoiser, x, xp
        self.terms, self.levels = terms, levels
        self.decoder: Decoder = decoder
        self.kind: Kind = "x0" if denoiser.clip_range else denoiser.predicts
        existing_slope(d, denoiser.predicts, self.kind, x, xp)
        self.slope, self.dims = existing_slope(d, self.kind, "mu", x, xp), math.prod(x.shape[1:])
        self.clipped = clipped_x0(d, denoiser, denoiser.clip_range, xp) if denoiser.clip_range else None
        self.elementwise = denoiser.learned or np.ndim(denoiser.variance) > 1  # the variance differs between dimensions
        self.per_square, self.constant = np.zeros((2, d.T + 1))  # of a KL, if it does not
        if not self.elementwise:  # [Ho eq. 8, with the part of the variances]
            t = np.arange(2, d.T + 1)
            log_var = np.broadcast_to(denoiser.log_var_from(d, None, np.empty(len(t)), t, None, np), t.shape)
            with quiet():
                self.per_square[2:] = self.slope[2:] ** 2 * np.exp(-log_var) / 2
            self.constant[2:] = self.dims * _variance_kl(np.log(d.beta_tilde[2:]), log_var)
        self.sizes, self.squares, self.kls = (Columns(xp, terms) for _ in range(3))
        self.lasts = Columns(xp)  # L_0 and the data's norm

    def add(self, step: NoisedStep) -> None:
        """Take note of a step."""
        d, xp, t = self.d, self.xp, step.t
        self.sizes.add(square_sum(step.value, xp))  # NaN here, which clipping would hide
        value = self.clipped(step) if self.clipped else step.value
        if t == 1:
            self.lasts.add(self._l_0(value, step))
            self.lasts.add(square_sum(self.x, xp))
        error = value - (self.x if self.clipped else target(d, self.kind, self.x, step.x_t, t, step.eps, xp))
        square = square_sum(error, xp)
        self.squares.add(square if self.terms else float(self.per_square[t]) * square)
        if self.elementwise and t > 1:
            log_var = self.denoiser.log_var_from(d, step.raw, step.x_t, t, None, xp)
            gap = float(self.slope[t]) * error
            self.kls.add(sum_over_dims(gaussian.kl(gap, math.log(d.beta_tilde[t]), xp.zeros_like(gap), log_var), xp))

    def result(self) -> VLB:
        """All terms on the host."""
        d, dims, (norm, l_0) = self.d, self.dims, self.lasts.on_host().T
        square, empty = self.squares.on_host(), np.empty((len(norm), 0))
        _refuse(~np.isfinite(self.sizes.on_host() + square), "is not finite", self.terms)
        if self.elementwise:
            kl = self.kls.on_host() if d.T > 1 else empty
        else:
            kl = self.per_square[2:] * square[:, 1:] + self.constant[2:] if self.terms else square + self.constant.sum()
        _refuse(np.isnan(np.column_stack([l_0, kl])), "gives no likelihood", self.terms)
        with quiet():  # at alpha_bar next to 0, an error of eps is a boundless one of x_0
            x0_mse = square / dims * d.conversion(self.kind, "x0")[0][1:] ** 2 if self.terms else empty
        eps_mse = square / dims * eps_error(d, self.kind)[1:] if self.terms else empty
        prior = d.alpha_bar[-1] / 2 * norm + dims * _variance_kl(np.log(d.one_minus_alpha_bar[-1:]), np.zeros(1))
        return VLB(prior, kl, l_0, x0_mse, eps_mse, dims, self.levels)

    def _l_0(self, value: Array, step: NoisedStep) -> Array:
        """-log p(x_0 | x_1), shape (B,), from the prediction at t = 1."""
        xp = self.xp
        mean = self.d._convert(value, step.x_t, 1, self.kind, "mu", xp)
        log_var = self.denoiser.log_var_from(self.d, step.raw, step.x_t, 1, None, xp)
        decoder = self.decoder
        if decoder == "density":
            return -sum_over_dims(gaussian.Gaussian(mean, log_var).log_prob(self.x), xp)
        return -sum_over_dims(gaussian.discretized_log_likelihood(self.x, mean, log_var / 2, self.levels, decoder), xp)


@names_unknown_options
def optimal_variance(
    d: Process,
    denoiser: Denoiser,
    x0: Array,
    *,
    seed: int = 0,
    index: Sequence[int] | None = None,
    draws: int = 1,
    progress: bool = False,
) -> Table:
    r"""The variances of p(x_{t-1} | x_t) that make the bound tightest if the network is optimal [Analytic].

    .. math:: \sigma_t^2 = \tilde\beta_t + w_{x_0}^2 \operatorname{clip}\Big(\frac{1 - \bar\alpha_t}{\bar\alpha_t} (1 - G_t),
              0, v\Big)

    G_t is the mean of the squared unclipped prediction of eps, over dimensions, samples and draws. The second factor estimates
    the variance of x_0 given x_t. With ``clip_x0`` it is at most v, that of data at both ends of the range (1 for [-1, 1]);
    without, there is no v. At alpha_bar_t = 0 the estimate is v, or without it the variance of the data.

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    x0 : array (B, ...)
        Data of any registered backend; with ``clip_x0``, within its range.
    seed, index
        As in `vlb`.
    draws : int
        Draws of noise for each sample and step.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    float64 array (T + 1,)
        A table for ``Denoiser(variance=...)``; entry 0 is NaN.

    Raises
    ------
    TypeError, ValueError
        As in `vlb`.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion, likelihood
    >>> from tinyddpm.analytic import GaussianData
    >>> d, data = Diffusion([0.5]), GaussianData(np.zeros(1000), 0.04)
    >>> variance = likelihood.optimal_variance(d, Denoiser(data.net(d), clip_x0=False), data.sample(100, 0))
    >>> bool(abs(variance[1] - data.var[0] * 0.5 / 0.52) < 0.003)  # that of x_0 given x_1
    True
    """
    x, xp = checked_data(d, denoiser, x0)
    draws = as_positive_int("draws", draws)
    host = backends.of(x).to_numpy(x)
    most = math.inf
    if clip := denoiser.clip_range:
        most = ((clip[1] - clip[0]) / 2) ** 2
        check_range("x0", (host - sum(clip) / 2) / math.sqrt(most), 256, "exact")
    steps = noised_steps(d, denoiser, x0, x, seed, index, draws)
    norms = Columns(xp)
    with backends.no_grad(x0):
        for t, _, x_t, value, _ in progress_bar(steps, draws * d.T, enabled=as_bool("progress", progress), label="variance"):
            norms.add(square_sum(d._convert(value, x_t, t, denoiser.predicts, "eps", xp), xp))
    norm = norms.on_host().reshape(x0.shape[0], d.T, draws)
    _refuse(~np.isfinite(norm.sum(axis=2)), "is not finite")
    left = 1 - norm.mean(axis=(0, 2)) / math.prod(x0.shape[1:])
    with quiet():
        x0_var = np.clip(np.exp(-d.log_snr[1:]) * left, 0.0, most)
    unbounded = most if math.isfinite(most) else host.astype(np.float64).var(axis=0).mean()
    x0_var = np.where(d.alpha_bar[1:] > 0, x0_var, unbounded)
    w_x0, _, beta_tilde = d.posterior_weights(np.arange(1, d.T + 1))
    return np.append(np.nan, beta_tilde + w_x0**2 * x0_var)


def _variance_kl(log_var1: Table, log_var2: Table) -> Table:
    """KL between centred Gaussians."""
    centre = np.zeros_like(log_var1)
    kl: Table = gaussian.kl(centre, log_var1, centre, log_var2)
    return kl


def _refuse(wrong: Any, what: str, by_step: bool = True) -> None:
    """Blame the network if any entry is wrong; column t - 1 is step t if the columns are those of steps."""
    if np.any(wrong):
        at = f" at t = {1 + np.flatnonzero(np.any(wrong, axis=0))[-1]}" if by_step else ""
        raise ValueError(f"net: its output {what}{at}")
