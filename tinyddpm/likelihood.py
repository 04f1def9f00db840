"""The variational bound on a data set's likelihood, term by term, and the variances that make it tightest.

At fixed x_t all predictions are linear in each other. So with a fixed variance every term of step t, its KL and its errors of
x_0 and eps, is a number times one squared distance: the loop does one reduction a step, and the rest is float64 on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tinyddpm import backends, gaussian, noise
from tinyddpm._arrays.check import as_bool, as_instance, as_int, as_positive_int, names_unknown_options
from tinyddpm._arrays.namespace import Array, Table, quietly
from tinyddpm._calibration import Errors
from tinyddpm._io.progress import progress_bar
from tinyddpm._likelihood import steps as noised
from tinyddpm._likelihood.bound import VLB, Curve, Sums, refuse
from tinyddpm._losses.call import Decoder, check_range
from tinyddpm._process import Process
from tinyddpm.calibration import Calibration
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion

__all__ = ["VLB", "Calibration", "Curve", "calibrate", "optimal_variance", "vlb"]


@names_unknown_options
@quietly
def vlb(
    d: Process, denoiser: Denoiser, x0: Array, *, seed: int = 0, index: Sequence[int] | None = None, levels: int = 256,
    decoder: Decoder = "exact", terms: bool = True, progress: bool = False,
) -> VLB:  # fmt: skip
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
    x, xp = noised.checked_data(d, denoiser, x0)
    levels, terms = as_int("levels", levels, 2, 65536), as_bool("terms", terms)
    check_range("x0", backends.of(x).to_numpy(x), levels, decoder)
    sums = Sums(d, denoiser, x, xp, terms, levels, decoder)
    steps = noised.noised_steps(d, denoiser, x0, x, seed, index, keep_eps=sums.kind != "x0")
    with backends.no_grad(x0):
        for step in progress_bar(steps, d.T, enabled=progress, label="likelihood"):
            sums.add(step)
    return sums.result()


@names_unknown_options
@quietly
def optimal_variance(
    d: Process, denoiser: Denoiser, x0: Array, *, seed: int = 0, index: Sequence[int] | None = None, draws: int = 1,
    progress: bool = False,
) -> Table:  # fmt: skip
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
    x, xp = noised.checked_data(d, denoiser, x0)
    draws = as_positive_int("draws", draws)
    host = backends.of(x).to_numpy(x)
    most = math.inf
    if clip := denoiser.clip_range:
        most = ((clip[1] - clip[0]) / 2) ** 2
        check_range("x0", (host - sum(clip) / 2) / math.sqrt(most), 256, "exact")
    steps = noised.noised_steps(d, denoiser, x0, x, seed, index, draws)
    norms = noised.Columns(xp)
    with backends.no_grad(x0):
        for t, _, x_t, value, _ in progress_bar(steps, draws * d.T, enabled=progress, label="variance"):
            norms.add(noised.square_sum(d._convert(value, x_t, t, denoiser.predicts, "eps", xp), xp))
    norm = norms.on_host().reshape(x0.shape[0], d.T, draws)
    refuse(~np.isfinite(norm.sum(axis=2)), "is not finite")
    left = 1 - norm.mean(axis=(0, 2)) / math.prod(x0.shape[1:])
    x0_var = np.clip(np.exp(-d.log_snr[1:]) * left, 0.0, most)
    unbounded = most if math.isfinite(most) else host.astype(np.float64).var(axis=0).mean()
    x0_var = np.where(d.alpha_bar[1:] > 0, x0_var, unbounded)
    w_x0, _, beta_tilde = d.posterior_weights(np.arange(1, d.T + 1))
    return np.append(np.nan, beta_tilde + w_x0**2 * x0_var)


@names_unknown_options
@quietly
def calibrate(
    d: Diffusion, denoiser: Denoiser, x0: Array, *, seed: int = 0, index: Sequence[int] | None = None, draws: int = 1,
    levels: int = 256, decoder: Decoder = "exact", per_dimension: bool = False, batch_size: int | None = None,
    progress: bool = False,
) -> Calibration:  # fmt: skip
    """Measure the network's errors at every step; the best chain of any length follows from them without another call.

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it; its variance has no part in this.
    x0 : array (B, ...)
        Data as in `vlb`, but other than those that a chain is to be scored on: images of the training set, say.
    seed, index, levels, decoder
        As in `vlb`.
    draws : int
        Draws of noise for each row and step.
    per_dimension : bool
        Keep the errors of each dimension, for variances of its own. They can only help on the data given here; a few hundred
        rows are needed for them to help on others.
    batch_size : int, optional
        Rows in a call of the network. Default: all, which a network with labels for each row needs.
    progress : bool
        Show progress on standard error.

    Returns
    -------
    Calibration
        The errors, and what follows from them. See `tinyddpm.calibration`.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `vlb`; x_0 must follow from the predictions at every step.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion, likelihood
    >>> from tinyddpm.analytic import GaussianData
    >>> d, data = Diffusion([0.5]), GaussianData(np.zeros(1000), 0.04)
    >>> found = likelihood.calibrate(d, Denoiser(data.net(d)), data.sample(100, 0), decoder="density")
    >>> bool(abs(found.x0_mse[1] - data.var[0] * 0.5 / 0.52) < 0.003)  # the variance of x_0 given x_1
    True
    """
    x, xp = noised.checked_data(d, denoiser, x0)
    as_instance("d", d, Diffusion)
    levels, draws = as_int("levels", levels, 2, 65536), as_positive_int("draws", draws)
    to_numpy = backends.of(x).to_numpy
    host = to_numpy(x)
    check_range("x0", host, levels, decoder)
    noised.existing_slope(d, denoiser.predicts, "x0", x, xp)
    rows, numbers = len(host), noise.numbers(index, len(host))
    size = rows if batch_size is None else as_positive_int("batch_size", batch_size)
    parts = [slice(k, min(k + size, rows)) for k in range(0, rows, size)]
    runs = [noised.noised_steps(d, denoiser, x0[k, ...], x[k, ...], seed, numbers[k], draws) for k in parts]
    errors = Errors(host.reshape(rows, -1), d.T, draws, levels, decoder, as_bool("per_dimension", per_dimension))
    predicted = noised.predicted_x0(d, denoiser, xp)
    with backends.no_grad(x0):
        all_steps = progress_bar(zip(*runs, strict=True), draws * d.T, enabled=progress, label="calibrate")
        for steps in all_steps:
            if not all(np.all(np.isfinite(to_numpy(noised.square_sum(step.value, xp)))) for step in steps):
                raise ValueError(f"net: its output is not finite at t = {steps[0].t}")
            errors.add(steps[0].t, [to_numpy(predicted(step)).reshape(-1, errors.dims) for step in steps])
    square = errors.group_means(np.square(errors.x0, dtype=np.float64).mean(axis=1))
    prior = gaussian.kl(d.sqrt_alpha_bar[-1] * np.sqrt(square), np.log(d.one_minus_alpha_bar[-1]), np.zeros_like(square), 0.0)
    shape = host.shape[1:] if per_dimension else ()
    return Calibration(
        d, errors.mse.reshape(d.T + 1, *shape), errors.scale, errors.group_mse, errors.group_last, prior, rows, levels, decoder,
        denoiser.predicts, denoiser.clip_range,
    )  # fmt: skip
