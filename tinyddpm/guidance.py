"""Guidance: networks made of networks, which lean towards a condition.

Each function returns a ``net(x_t, t)`` for a `Denoiser`. Where a network also emits its variance (2C channels on axis 1), only
the prediction is guided; the variance is the conditional network's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from tinyddpm._arrays.check import as_real
from tinyddpm._arrays.namespace import Array, namespace_of
from tinyddpm._network.nets import NeedsChain

if TYPE_CHECKING:
    pass

__all__ = ["classifier", "classifier_free"]


def classifier_free(net: Callable[..., Array], y: Any, scale: float, null: Any) -> Callable[[Array, Array], Array]:
    """``net(x_t, t, null) + scale * (net(x_t, t, y) - net(x_t, t, null))`` [Ho & Salimans 2022, eq. 6 with scale = 1 + w].

    A scale of 1 is the conditional network, 0 the unconditional one (either costs one call), more leans further. The rule is
    linear, so it holds for every kind of prediction. `y` is what the network takes, usually class numbers (B,), in the order of
    the batch; `null` is its value for "no condition", and a number is spread over an array y's shape.
    """
    if not callable(net):
        raise TypeError(f"net must be a callable net(x_t, t, y), got {type(net).__name__}")
    return _ClassifierFree(net, y, as_real("scale", scale), null)


def classifier(
    net: Callable[[Array, Array], Array], log_prob_grad: Callable[[Array, Array], Array], scale: float
) -> Callable[[Array, Array], Array]:
    """A network whose score is ``grad log q(x_t) + scale * grad log p(y | x_t)`` [Dhariwal & Nichol 2021, sec. 4].

    ``log_prob_grad(x_t, t)`` is the classifier's gradient, taken at the noisy x_t; it gets t as the network does. (The published
    ancestral sampler evaluates it there too, yet adds it at the mean of p(x_{t-1} | x_t); here it goes through the score.)
    Inside a `Denoiser` the shift is right for whatever the network predicts: eps moves by ``-scale * sqrt(1 - alpha_bar_t) *
    grad``, the others as `Diffusion.convert` says (so x_0 or v can't be guided where alpha_bar_t = 0). Called by itself it has
    no chain to look that up in, and takes the network for one that predicts the score, unless the network tells its chain
    and its kind by attributes `d` and `predicts`, as those of `analytic` do.
    """
    for name, function in (("net", net), ("log_prob_grad", log_prob_grad)):
        if not callable(function):
            raise TypeError(f"{name} must be a callable {name}(x_t, t), got {type(function).__name__}")
    return _Classifier(net, log_prob_grad, as_real("scale", scale))


@dataclass(frozen=True, eq=False)
class _ClassifierFree:
    net: Callable[..., Array]
    y: Any
    scale: float
    null: Any

    def __call__(self, x_t: Array, t: Array) -> Array:
        xp = namespace_of(x_t=x_t)
        null = self.null
        if hasattr(self.y, "shape") and isinstance(null, Real):
            null = self.y * 0 + null
        if self.scale == 0.0:
            return self.net(x_t, t, null)
        given = self.net(x_t, t, self.y)
        if self.scale == 1.0:
            return given
        without, _ = _split(self.net(x_t, t, null), x_t)
        value, raw = _split(given, x_t)
        return _joined(without + self.scale * (value - without), raw, xp)


@dataclass(frozen=True)
class _Classifier(NeedsChain):
    net: Callable[[Array, Array], Array]
    log_prob_grad: Callable[[Array, Array], Array]
    scale: float

    def __call__(self, x_t: Array, t: Array) -> Array:
        chain = getattr(self.net, "d", None)
        return self.call_with_chain(x_t, t, chain, t, "score" if chain is None else self.net.predicts)  # type: ignore[attr-defined]

    def call_with_chain(self, x_t: Array, net_t: Array, d: Any, t: Any, predicts: Any) -> Array:
        """The network's output, of kind `predicts`, at step t of the chain d, which the network calls net_t."""
        value, raw = _split(self.net(x_t, net_t), x_t)
        score = value if d is None else d.convert(value, x_t, t, predicts, "score")
        score = score + self.scale * self.log_prob_grad(x_t, net_t)
        return _joined(score if d is None else d.convert(score, x_t, t, "score", predicts), raw, namespace_of(x_t=x_t))


def _split(out: Array, x_t: Array) -> tuple[Array, Array | None]:
    """The prediction, and the raw variance output where there is one."""
    if x_t.ndim < 2 or out.shape[1] != 2 * x_t.shape[1]:
        return out, None
    channels = x_t.shape[1]
    return out[:, :channels, ...], out[:, channels:, ...]


def _joined(value: Array, raw: Array | None, xp: Any) -> Array:
    return value if raw is None else xp.concat([value, raw], axis=1)
