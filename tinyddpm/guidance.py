"""Guidance: networks made of networks, which lean towards a condition.

Each function returns a ``net(x_t, t)`` for a `Denoiser`. If a network also emits its variance (2C channels on axis 1), only the
prediction is guided; the variance is that of the conditional network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tinyddpm._arrays.check import as_callable, as_real
from tinyddpm._arrays.namespace import Array, namespace_of
from tinyddpm._network.nets import NeedsChain, Net

__all__ = ["classifier", "classifier_free"]


def classifier_free(net: Callable[..., Array], y: Any, scale: float, null: Any) -> Net:
    r"""Classifier-free guidance [Ho & Salimans 2022, eq. 6 with scale = 1 + w].

    .. math:: \hat f(x_t, t) = f(x_t, t, \text{null}) + \text{scale} \cdot (f(x_t, t, y) - f(x_t, t, \text{null}))

    The rule is linear, so it holds for every kind of prediction.

    Parameters
    ----------
    net : callable
        ``net(x_t, t, y)``.
    y : array (B,) or whatever the network takes
        The condition, usually class numbers in the order of the batch.
    scale : float
        1 is the conditional network and 0 the unconditional one (either costs one call); more leans further.
    null : number, or whatever the network takes
        The value for "no condition"; a number is spread over the shape of an array `y`.

    Returns
    -------
    callable
        ``net(x_t, t)`` for a `Denoiser`.

    Raises
    ------
    TypeError, ValueError
        If `net` cannot be called, `scale` is not a finite number, or `null` is outside the range of y's dtype.

    Examples
    --------
    >>> import numpy as np
    >>> net = classifier_free(lambda x_t, t, y: y[:, None] * x_t, np.array([2]), scale=3.0, null=1)
    >>> net(np.ones((1, 1)), np.array([5])).tolist()
    [[4.0]]
    """
    if hasattr(y, "dtype") and isinstance(null, Real):
        _check_fits("null", null, y)
    return _ClassifierFree(as_callable("net", net, "net(x_t, t, y)"), y, as_real("scale", scale), null)


def classifier(net: Net, log_prob_grad: Callable[[Array, Array], Array], scale: float) -> Net:
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
    scale : float
        0 is the network itself; more leans further.

    Returns
    -------
    callable
        ``net(x_t, t)`` for a `Denoiser`.

    Raises
    ------
    TypeError, ValueError
        If a function cannot be called, or `scale` is not a finite number.

    Notes
    -----
    The published ancestral sampler adds the gradient to the mean of p(x_{t-1} | x_t); here it goes through the score.

    Examples
    --------
    >>> import numpy as np
    >>> net = classifier(lambda x_t, t: -x_t, lambda x_t, t: np.ones_like(x_t), scale=2.0)
    >>> net(np.ones((1, 1)), np.array([5])).tolist()
    [[1.0]]
    """
    as_callable("log_prob_grad", log_prob_grad, "log_prob_grad(x_t, t)")
    return _Classifier(as_callable("net", net, "net(x_t, t)"), log_prob_grad, as_real("scale", scale))


@dataclass(frozen=True, eq=False)
class _ClassifierFree:
    net: Callable[..., Array]
    y: Any
    scale: float
    null: Any

    def __call__(self, x_t: Array, t: Array) -> Array:
        spread = hasattr(self.y, "shape") and isinstance(self.null, Real)
        null = self.y * 0 + self.null if spread else self.null
        if self.scale == 0.0:
            return self.net(x_t, t, null)
        given = self.net(x_t, t, self.y)
        if self.scale == 1.0:
            return given
        without, _ = _split(self.net(x_t, t, null), x_t)
        value, raw = _split(given, x_t)
        return _joined(without + self.scale * (value - without), raw, x_t)


@dataclass(frozen=True)
class _Classifier(NeedsChain):
    net: Any
    log_prob_grad: Callable[[Array, Array], Array]
    scale: float

    def __call__(self, x_t: Array, t: Array) -> Array:
        d = getattr(self.net, "d", None)
        return self.call_with_chain(x_t, t, d, t, "score" if d is None else self.net.predicts)

    def call_with_chain(self, x_t: Array, net_t: Array, d: Any, t: Any, predicts: Any) -> Array:
        value, raw = _split(self.net(x_t, net_t), x_t)
        score = value if d is None else d.convert(value, x_t, t, predicts, "score")
        score = score + self.scale * self.log_prob_grad(x_t, net_t)
        return _joined(score if d is None else d.convert(score, x_t, t, "score", predicts), raw, x_t)


def _check_fits(name: str, value: Any, y: Array) -> None:
    """Raise ValueError if y's dtype is of integers that do not reach `value`, which libraries would wrap around."""
    from array_api_compat import array_namespace

    xp = array_namespace(y)
    if xp.isdtype(y.dtype, "integral"):
        info = xp.iinfo(y.dtype)
        if not info.min <= value <= info.max:
            raise ValueError(f"{name} must be in {info.min}..{info.max}, the range of y's dtype {y.dtype}, got {value}")


def _split(out: Array, x_t: Array) -> tuple[Array, Array | None]:
    """The prediction, and the raw variance output if there is one."""
    if x_t.ndim < 2 or out.shape[1] != 2 * x_t.shape[1]:
        return out, None
    channels = x_t.shape[1]
    return out[:, :channels, ...], out[:, channels:, ...]


def _joined(value: Array, raw: Array | None, x_t: Array) -> Array:
    return value if raw is None else namespace_of(x_t=x_t).concat([value, raw], axis=1)
