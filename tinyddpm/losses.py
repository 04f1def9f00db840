"""Training losses, each ``(d, denoiser, x0, t, eps) -> (B,)``, and samplers of the step t.

A loss forms x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, calls the network once, and reads its output unclipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tinyddpm._arrays.check import as_real, one_of
from tinyddpm._arrays.namespace import A, Table, cast_like, quiet
from tinyddpm._arrays.steps import Named, Steps, gather
from tinyddpm._losses.call import Decoder, call_on_noised, check_range, detached, eps_error, mean_square, vlb_term
from tinyddpm._losses.times import LossAwareT, UniformT
from tinyddpm._process import Process
from tinyddpm.conversions import Kind
from tinyddpm.denoiser import Denoiser

__all__ = ["LossAwareT", "UniformT", "hybrid", "simple", "vlb", "weighted"]

Weighting = Literal["uniform", "snr", "min_snr", "p2"]


def simple(d: Process, denoiser: Denoiser, x0: A, t: Steps, eps: A) -> A:
    r"""Squared error of the predicted quantity, mean over dimensions; L_simple if that is eps.

    .. math:: L_\text{simple} = \| \epsilon - \epsilon_\theta(x_t, t) \|^2 / \text{dims}  \qquad \text{[Ho eq. 14]}

    Parameters
    ----------
    d : Diffusion
        The process.
    denoiser : Denoiser
        The network and how to read it.
    x0 : array (B, ...)
        Data.
    t : int or integer array (B,) or ()
        Step in 1..T.
    eps : array (B, ...)
        Standard normal noise of x0's shape and library.

    Returns
    -------
    array (B,)
        In x0's library and dtype.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or shape or is out of range, or the target does not exist at t.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t))
    >>> simple(Diffusion(), denoiser, np.zeros((1, 2)), 5, np.array([[1.0, 2.0]])).tolist()
    [2.5]
    """
    call = call_on_noised(d, denoiser, x0, t, eps)
    with quiet():
        return cast_like(mean_square(call.error, call.xp), x0, call.xp)  # type: ignore[no-any-return]


def vlb(d: Process, denoiser: Denoiser, x0: A, t: Steps, eps: A, decoder: Decoder = "exact") -> A:
    r"""The bound's term L_{t-1} in nats per dimension [Ho eq. 5].

    .. math:: L_{t-1} = KL(q(x_{t-1} | x_t, x_0) \| p(x_{t-1} | x_t)) \text{ for } t > 1, \quad L_0 = -\log p(x_0 | x_1)

    T times its mean over t = 1..T, plus L_T, is the bound.

    Parameters
    ----------
    d, denoiser, x0, t, eps
        As in `simple`. The data lie in [-1, 1] unless the decoder is "density".
    decoder : {"exact", "ho2020", "density"}
        What p(x_0 | x_1) is: the mass of x_0's bin among 256 levels, exactly or as [Ho]'s code approximates it, or the
        density of continuous data of any range.

    Returns
    -------
    array (B,)
        In x0's library and dtype.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `simple`; `ValueError` also if x0 is more than half a bin outside [-1, 1], or if the mean does not follow from
        the prediction at t.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t), variance="beta_tilde")
    >>> vlb(Diffusion([0.1, 0.2]), denoiser, np.zeros((1, 1)), 2, np.ones((1, 1))).round(4).tolist()
    [1.25]
    """
    check_range("x0", x0, 256, decoder)
    return vlb_term(d, denoiser, call_on_noised(d, denoiser, x0, t, eps), decoder)  # type: ignore[no-any-return]


def hybrid(d: Process, denoiser: Denoiser, x0: A, t: Steps, eps: A, weight: float = 0.001, decoder: Decoder = "exact") -> A:
    r"""L_hybrid, in which the bound trains the variance only.

    .. math:: L_\text{hybrid} = L_\text{simple} + \text{weight} \cdot T \cdot L_{t-1}  \qquad \text{[iDDPM eq. 16]}

    The mean is detached inside L_{t-1}. T is there because L_{t-1} is one of the bound's T terms. The published code counts it
    in bits, so its 0.001 is weight = 0.001 / ln 2 here.

    Parameters
    ----------
    d, denoiser, x0, t, eps, decoder
        As in `vlb`.
    weight : float
        Weight of the bound.

    Returns
    -------
    array (B,)
        In x0's library and dtype.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `vlb`; `TypeError` or `ValueError` if `weight` is not a finite number.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> denoiser = Denoiser(lambda x_t, t: np.zeros((1, 2)), variance="learned_range")
    >>> hybrid(Diffusion([0.1, 0.2]), denoiser, np.zeros((1, 1)), 2, np.ones((1, 1)), weight=0.0).tolist()
    [1.0]
    """
    weight = as_real("weight", weight)
    check_range("x0", x0, 256, decoder)
    call = call_on_noised(d, denoiser, x0, t, eps)
    bound = vlb_term(d, denoiser, call._replace(value=detached(call.value)), decoder)
    with quiet():
        return cast_like(mean_square(call.error, call.xp) + weight * d.T * bound, x0, call.xp)  # type: ignore[no-any-return]


def weighted(
    d: Process, denoiser: Denoiser, x0: A, t: Steps, eps: A, weighting: Weighting = "uniform", gamma: float | None = None
) -> A:
    """A squared error weighted by a function of SNR = alpha_bar_t / (1 - alpha_bar_t), the same whatever is predicted.

    Parameters
    ----------
    d, denoiser, x0, t, eps
        As in `simple`.
    weighting : {"uniform", "snr", "min_snr", "p2"}
        "uniform": `simple`. "snr": SNR times the squared error of x_0, which is that of eps. "min_snr": min(SNR, gamma) times
        the squared error of x_0 [Hang et al. 2023]. "p2": (1 + SNR)^-gamma times the squared error of eps [Choi et al. 2022
        with k = 1].
    gamma : float, optional
        Of "min_snr" (default 5) and "p2" (default 1), not negative.

    Returns
    -------
    array (B,)
        In x0's library and dtype.

    Raises
    ------
    TypeError, ValueError, LookupError
        As in `simple`; `ValueError` if `gamma` is negative or given for a weighting that has none.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Denoiser, Diffusion
    >>> denoiser = Denoiser(lambda x_t, t: np.zeros_like(x_t))
    >>> weighted(Diffusion([0.5]), denoiser, np.zeros((1, 1)), 1, np.ones((1, 1)), "p2").tolist()
    [0.5]
    """
    one_of("weighting", weighting, tuple(_WEIGHTINGS))
    default = {"min_snr": 5.0, "p2": 1.0}.get(weighting)
    if gamma is not None and default is None:
        raise ValueError(f"gamma must be left out with the weighting {weighting!r}, got {gamma}")
    power = default if gamma is None else as_real("gamma", gamma, 0.0)
    call = call_on_noised(d, denoiser, x0, t, eps)
    with quiet():
        loss = mean_square(call.error, call.xp)
        if weighting != "uniform":
            loss = gather(Named(d, _factor, (weighting, power, denoiser.predicts)), call.t, loss, call.xp) * loss
        return cast_like(loss, x0, call.xp)  # type: ignore[no-any-return]


def _factor(d: Process, weighting: str, gamma: float, predicts: Kind) -> Table:
    """What the squared error of a prediction is to be multiplied by, a table."""
    with quiet():
        return _WEIGHTINGS[weighting](d, gamma) * eps_error(d, predicts)


_WEIGHTINGS: dict[str, Callable[[Process, Any], Table]] = {  # of the squared error of eps
    "uniform": lambda d, _: np.ones(d.T + 1),
    "snr": lambda d, _: np.ones(d.T + 1),
    "min_snr": lambda d, gamma: np.minimum(1.0, gamma * np.exp(np.minimum(-d.log_snr, 700.0))),
    "p2": lambda d, gamma: d.one_minus_alpha_bar**gamma,
}
