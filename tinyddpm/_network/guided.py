"""The networks that `tinyddpm.guidance` makes of others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np

from tinyddpm._arrays.check import as_int, as_real

from tinyddpm._arrays.namespace import (  # isort: skip
    Array, adopted, array_namespace, cast_like, clip_array, flatten, host_values, namespace_of, quiet,
)  # fmt: skip
from tinyddpm._network.nets import Clip, NeedsChain, Net, call_net, clips, halves

Scale = float | Array | Callable[[Array], Any]
"""A number, an array (B,), or a function of the network's steps (B,) that returns either."""
Shift = Literal["after_clip", "before_clip"]
"""When classifier guidance shifts, after x_0 is clipped, as guided-diffusion does, or before."""


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """`tinyddpm.guidance.classifier_free`."""

    net: Callable[..., Array]
    y: Any
    scale: Scale
    null: Any
    rescale: float

    def __call__(self, x_t: Array, t: Array) -> Array:
        scale, null = scale_at(self.scale, x_t, t), self.null
        if hasattr(self.y, "dtype") and isinstance(null, Real):
            null = array_namespace(self.y).full_like(self.y, null)
        if isinstance(scale, float) and scale == 0.0:
            return self.net(x_t, t, null)
        given = self.net(x_t, t, self.y)
        if isinstance(scale, float) and scale == 1.0:
            return given
        without, _ = _split(self.net(x_t, t, null), x_t)
        value, raw = _split(given, x_t)
        with quiet():
            leaning = without + scale * (value - without)
            if self.rescale:
                leaning = leaning * (self.rescale * _std_ratio(value, leaning, x_t) + (1 - self.rescale))
        return _joined(leaning, raw, x_t)


@dataclass(frozen=True, eq=False)
class Classifier(NeedsChain):
    """`tinyddpm.guidance.classifier`."""

    net: Any
    log_prob_grad: Callable[[Array, Array], Array]
    scale: Scale
    shift: Shift

    def clips_x0(self) -> bool:
        """Whether x_0 is clipped here, before the shift."""
        return self.shift == "after_clip"

    def __call__(self, x_t: Array, t: Array) -> Array:
        d = getattr(self.net, "d", None)
        return self.call_with_chain(x_t, t, d, t, "score" if d is None else self.net.predicts, None)

    def call_with_chain(self, x_t: Array, net_t: Array, d: Any, t: Any, predicts: Any, clip: Clip) -> Array:
        """The output of kind `predicts`."""
        inner, raw = _split(call_net(self.net, x_t, net_t, d, t, predicts, clip), x_t)
        scale, grad, kind = scale_at(self.scale, x_t, net_t), self.log_prob_grad(x_t, net_t), predicts
        with quiet():
            if d is None:
                return _joined(inner + scale * grad, raw, x_t)
            if clip is not None and self.clips_x0() and not clips(self.net):
                inner, kind = clip_array(d.convert(inner, x_t, t, kind, "x0"), *clip, namespace_of(x_t=x_t)), "x0"
            shift = d.convert(scale * grad, 0 * x_t, t, "score", predicts)  # conversions are affine: the score's factor alone
            return _joined(d.convert(inner, x_t, t, kind, predicts) + shift, raw, x_t)


@dataclass(frozen=True, eq=False)
class DynamicThreshold:
    """`tinyddpm.guidance.dynamic_threshold`."""

    net: Net
    d: Any
    predicts: Any
    percentile: float
    first_t: int

    def __call__(self, x_t: Array, t: Array) -> Array:
        steps, xp = t + (1 - self.first_t), namespace_of(x_t=x_t)
        value, raw = _split(call_net(self.net, x_t, t, self.d, steps, self.predicts, None), x_t)
        with quiet():
            x0 = self.d.convert(value, x_t, steps, self.predicts, "x0")
            size = xp.sort(flatten(xp.abs(x0), xp), axis=-1)
            place = self.percentile * (size.shape[1] - 1)
            low, high = (size[:, int(k)] for k in (math.floor(place), math.ceil(place)))
            bound = _per_sample(low + (place - math.floor(place)) * (high - low), x_t, xp)
            return _joined(clip_array(x0 / xp.where(bound > 1, bound, xp.ones_like(bound)), -1.0, 1.0, xp), raw, x_t)


def checked_scale(scale: Any) -> Scale:
    """A scale as it is kept: a float, an array () or (B,), or a function."""
    if callable(scale):
        return scale
    if not hasattr(scale, "shape") or isinstance(scale, np.generic):
        return as_real("scale", scale)
    if isinstance(scale, np.ma.MaskedArray) or not array_namespace(scale).isdtype(scale.dtype, ("integral", "real floating")):
        raise TypeError(f"scale must be real numbers, got {type(scale).__name__} of {scale.dtype}")
    if len(scale.shape) > 1:
        raise ValueError(f"scale must be a number or an array of shape (B,), got shape {tuple(scale.shape)}")
    if (host := host_values(scale)) is not None and not np.isfinite(host).all():
        raise ValueError("scale must be finite, got NaN or infinity")
    return scale


def scale_at(scale: Scale, x_t: Array, t: Array) -> Any:
    """The scale at the network's steps t: a float, or an array that broadcasts against x_t."""
    value: Any = checked_scale(scale(t)) if callable(scale) else scale
    if isinstance(value, float):
        return value
    xp = namespace_of(x_t=x_t)
    if tuple(value.shape) not in ((x_t.shape[0],), ()):
        raise ValueError(f"scale must have shape ({x_t.shape[0]},), a number for each sample, got {tuple(value.shape)}")
    return _per_sample(cast_like(adopted("scale", value, x_t, xp), x_t, xp), x_t, xp)


def check_null(null: Any, y: Array) -> None:
    """Raise an error unless `null` is a value of y's dtype; libraries would wrap an integer around, or make others of y's."""
    xp = array_namespace(y)
    if isinstance(null, bool | np.bool_) != xp.isdtype(y.dtype, "bool"):
        raise TypeError(f"null must be a number of y's dtype {y.dtype}, got {null}")
    if xp.isdtype(y.dtype, "integral"):
        info = xp.iinfo(y.dtype)
        as_int("null", null, info.min, info.max)


def _per_sample(values: Array, x: Array, xp: Any) -> Array:
    """Values of shape (B,) or () so that they broadcast against x."""
    return xp.reshape(values, (-1,) + (1,) * (x.ndim - 1))


def _std_ratio(value: Array, other: Array, x_t: Array) -> Array:
    """Each sample's std of `value` over that of `other`, over its dimensions; 1 if `other` is constant."""
    xp = namespace_of(x_t=x_t)
    std, under = (xp.std(flatten(x, xp), axis=-1) for x in (value, other))
    spread, one = under > 0, xp.ones_like(under)
    return _per_sample(xp.where(spread, std / xp.where(spread, under, one), one), x_t, xp)


def _split(out: Array, x_t: Array) -> tuple[Array, Array | None]:
    """The prediction, and the raw variance output if there is one."""
    return halves(out) if x_t.ndim > 1 and out.shape[1] == 2 * x_t.shape[1] else (out, None)


def _joined(value: Array, raw: Array | None, x_t: Array) -> Array:
    return value if raw is None else namespace_of(x_t=x_t).concat([value, raw], axis=1)
