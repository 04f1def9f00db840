"""Guidance: networks made of networks, which lean towards a condition.

Each function returns a ``net(x_t, t)`` for a `Denoiser`. If a network also emits its variance (2C channels on axis 1), only the
prediction is guided; the variance is that of the conditional network. A `scale` is a number, an array (B,) with one for each
sample, or a function ``scale(t)`` of the steps (B,), as the network counts them, that returns either.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, get_args

from tinyddpm._arrays.check import as_callable, as_instance, as_int, as_positive, as_real, one_of
from tinyddpm._arrays.namespace import Array
from tinyddpm._network import guided
from tinyddpm._network.guided import Scale, Shift
from tinyddpm._network.nets import Net
from tinyddpm._process import Process
from tinyddpm.conversions import KINDS, Kind

__all__ = ["Scale", "Shift", "classifier", "classifier_free", "dynamic_threshold"]


def classifier_free(net: Callable[..., Array], y: Any, scale: Scale, null: Any, *, rescale: float = 0.0) -> Net:
    r"""Classifier-free guidance [Ho & Salimans 2022, eq. 6 with scale = 1 + w], rescaled as [Lin et al. 2023, sec. 3.4] do.

    .. math:: \hat f(x_t, t) = f(x_t, t, \text{null}) + \text{scale} \cdot (f(x_t, t, y) - f(x_t, t, \text{null}))

    The rule is linear, so it holds for every kind of prediction. With `rescale` the result is then multiplied by
    rescale * std(f(x_t, t, y)) / std(f hat) + 1 - rescale, where std is over a sample's dimensions: at large scales f hat has a
    larger std than any prediction the network was trained for, and images are overexposed.

    Parameters
    ----------
    net : callable
        ``net(x_t, t, y)``.
    y : array (B,) or whatever the network takes
        The condition, usually class numbers in the order of the batch.
    scale : float, array (B,) or callable
        1 is the conditional network and 0 the unconditional one (as a number, either costs one call); more leans further.
    null : number, or whatever the network takes
        The value for "no condition"; a number is spread over the shape of an array `y`.
    rescale : float
        In [0, 1]; Lin et al. use 0.7.

    Returns
    -------
    callable
        ``net(x_t, t)`` for a `Denoiser`.

    Raises
    ------
    TypeError, ValueError
        If `net` cannot be called, `scale` is not finite or of another shape, `rescale` is outside [0, 1], or `null` is not a
        value of y's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> net = classifier_free(lambda x_t, t, y: y[:, None] * x_t, np.array([2]), scale=3.0, null=1)
    >>> net(np.ones((1, 1)), np.array([5])).tolist()
    [[4.0]]
    """
    if hasattr(y, "dtype") and isinstance(null, Real):
        guided.check_null(null, y)
    net, scale = as_callable("net", net, "net(x_t, t, y)"), guided.checked_scale(scale)
    return guided.ClassifierFree(net, y, scale, null, as_real("rescale", rescale, 0.0, 1.0))


def classifier(
    net: Net, log_prob_grad: Callable[[Array, Array], Array], scale: Scale, *, shift: Shift = "after_clip"
) -> Net:  # fmt: skip
    r"""Classifier guidance [Dhariwal & Nichol 2021, sec. 4]: the score leans along a classifier's gradient.

    .. math:: \nabla \log q(x_t) + \text{scale} \cdot \nabla \log p(y | x_t)

    Inside a `Denoiser` the shift is right for whatever the network predicts: eps moves by
    ``-scale * sqrt(1 - alpha_bar_t) * grad``, and other kinds as `Diffusion.convert` says, so x_0 and v cannot be guided at
    alpha_bar_t = 0. Called by itself the network has no chain to look that up in; then its output counts as the score, unless the
    inner network tells its chain and kind by attributes `d` and `predicts`, as those of `analytic` do.

    Parameters
    ----------
    net : callable
        ``net(x_t, t)``.
    log_prob_grad : callable
        ``log_prob_grad(x_t, t)``, the gradient of log p(y | x_t), evaluated at the noisy x_t; it gets t as the network does.
    scale : float, array (B,) or callable
        0 is the network itself; more leans further.
    shift : {"after_clip", "before_clip"}
        In a denoiser that clips x_0: whether the clipped x_0 is shifted, and may leave the range again, or what is clipped is the
        shifted x_0. The published code shifts after the clip. Losses read the prediction unclipped.

    Returns
    -------
    callable
        ``net(x_t, t)`` for a `Denoiser`.

    Raises
    ------
    TypeError, ValueError, LookupError
        If a function cannot be called, `scale` is not finite or of another shape, or `shift` is not a known name.

    Notes
    -----
    The published ancestral sampler adds the gradient times the variance to the mean of p(x_{t-1} | x_t); here it goes through the
    score, as in the published DDIM sampler.

    Examples
    --------
    >>> import numpy as np
    >>> net = classifier(lambda x_t, t: -x_t, lambda x_t, t: np.ones_like(x_t), scale=2.0)
    >>> net(np.ones((1, 1)), np.array([5])).tolist()
    [[1.0]]
    """
    as_callable("log_prob_grad", log_prob_grad, "log_prob_grad(x_t, t)")
    one_of("shift", shift, get_args(Shift))
    net, scale = as_callable("net", net, "net(x_t, t)"), guided.checked_scale(scale)
    return guided.Classifier(net, log_prob_grad, scale, shift)


def dynamic_threshold(net: Net, d: Process, predicts: Kind, percentile: float = 0.995, *, first_t: int = 1) -> Net:
    r"""Dynamic thresholding [Saharia et al. 2022, sec. 2.3]: a network that predicts x_0, for ``Denoiser(..., predicts="x0")``.

    .. math:: \hat x_0 = \operatorname{clip}(x_0, -s, s) / s, \quad s = \max(1, \text{percentile of } |x_0|)

    Each sample has its own s. Where guidance makes x_0 leave [-1, 1], a plain clip saturates it.

    Parameters
    ----------
    net : callable
        ``net(x_t, t)``; guided networks too.
    d : Diffusion
        The chain whose steps the network counts.
    predicts : {"eps", "x0", "mu", "v", "score"}
        What `net` returns.
    percentile : float
        In (0, 1]: the share of a sample's dimensions that are at most s, between two of them by linear interpolation.
    first_t : int
        The number by which the network knows the paper's t = 1, as in `Denoiser`.

    Returns
    -------
    callable
        ``net(x_t, t)`` for a `Denoiser` with ``predicts="x0"``.

    Raises
    ------
    TypeError, ValueError, LookupError
        If an argument has the wrong type, is out of range, or is not a known name; when it is called, if x_0 does not follow from
        the prediction at t.

    Examples
    --------
    >>> import numpy as np
    >>> from tinyddpm import Diffusion
    >>> net = dynamic_threshold(lambda x_t, t: x_t, Diffusion([0.5]), "x0", percentile=1.0)
    >>> net(np.array([[4.0, -2.0], [0.5, 0.1]]), np.array([1, 1])).tolist()
    [[1.0, -0.5], [0.5, 0.1]]
    """
    as_callable("net", net, "net(x_t, t)")
    one_of("predicts", predicts, KINDS)
    as_instance("d", d, Process, "Diffusion")
    first_t = as_int("first_t", first_t, -(2**31), 2**31)
    return guided.DynamicThreshold(net, d, predicts, as_positive("percentile", percentile, 1.0), first_t)
