"""Networks: what one is, how it is called, and what its output must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinyddpm._arrays.check import as_real
from tinyddpm._arrays.namespace import Array, array_like, is_array_of, namespace_of

Clip = tuple[float, float] | None
Net = Callable[[Any, Any], Any]
"""``net(x_t, t)`` with x_t of shape (B, ...) and an integer array t of shape (B,)."""


class NeedsChain:
    """A network whose output depends on the chain and the kind of prediction; a `Denoiser` supplies both."""

    def clips_x0(self) -> bool:
        """Whether the network clips x_0 itself, to the range that it is given, so that nothing is clipped after it."""
        return False

    def call_with_chain(self, x_t: Array, net_t: Array, d: Any, t: Any, predicts: str, clip: Clip) -> Array:
        """The output of kind `predicts` at step t of the chain d, which the network calls net_t."""
        raise NotImplementedError


@dataclass(frozen=True)
class Wrapper:
    """A network that calls another with its own x_t; if that one needs the chain, `call_net` supplies it."""

    net: Any


def innermost(net: Net) -> Net:
    """The network within wrappers."""
    while isinstance(net, Wrapper):
        net = net.net
    return net


def clips(net: Net) -> bool:
    """Whether a network clips x_0 itself."""
    inner = innermost(net)
    return isinstance(inner, NeedsChain) and inner.clips_x0()


def call_net(net: Net, x_t: Array, net_t: Array, d: Any, t: Any, predicts: str, clip: Clip) -> Array:
    """The network's output at x_t, not checked; `clip` is the range of x_0 for a network that clips it itself."""
    if isinstance(innermost(net), NeedsChain):
        net = _with_chain(net, d=d, t=t, predicts=predicts, clip=clip)
    try:
        return net(x_t, net_t)
    except TypeError as error:
        if isinstance(x_t, np.ndarray) and torch_parameter(net) is not None:
            raise TypeError("net is a Torch network but x_t a NumPy array; pass Torch arrays, or backend=\"torch\" to "
                            "sample and trajectory, or wrap the network by nn.to_backend") from error  # fmt: skip
        raise


def _with_chain(net: Any, **chain: Any) -> Any:
    """The network with the chain supplied to what needs it."""
    if isinstance(net, Wrapper):
        return replace(net, net=_with_chain(net.net, **chain))
    return partial(net.call_with_chain, **chain)


def torch_parameter(net: Any) -> Any:
    """The first parameter of a network that is, or wraps as attribute `net`, a ``torch.nn.Module``; None for others."""
    for _ in range(8):
        if hasattr(net, "parameters") and hasattr(net, "state_dict"):
            return next(iter(net.parameters()), None)
        net = getattr(net, "net", None)
    return None


def checked_clip(clip_x0: Any) -> bool | tuple[float, float]:
    """A denoiser's `clip_x0`: a bool or a range (low, high)."""
    if isinstance(clip_x0, bool | np.bool_):
        return bool(clip_x0)
    if not isinstance(clip_x0, tuple | list) or len(clip_x0) != 2:
        raise TypeError(f"clip_x0 must be a bool or a pair (low, high), got {clip_x0!r}")
    low, high = (as_real("clip_x0", end, -math.inf, math.inf) for end in clip_x0)
    if low >= high:
        raise ValueError(f"clip_x0 must be a pair with low < high, got {clip_x0!r}")
    return low, high


def check_output(out: Any, x_t: Array, t: Any, xp: Any, learned: bool) -> None:
    """Raise ValueError unless a network's output has x_t's library, dtype, device and shape (2C channels if `learned`)."""
    shape = list(x_t.shape)
    if learned:
        if len(shape) < 2:
            raise ValueError("x_t must have channels on axis 1, as the network emits its variance")
        shape[1] *= 2
    if type(out) is not type(x_t) and not is_array_of(xp, out):
        raise ValueError(f"net must return {type(x_t).__name__}, got {type(out).__name__} at {_at(t)}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"net must return shape {tuple(shape)}, got {tuple(out.shape)} at {_at(t)}")
    if out.dtype != x_t.dtype:
        raise ValueError(f"net must return {x_t.dtype}, got {out.dtype} at {_at(t)}")
    # A compiler's tracer has no device, and JAX spreads arrays over devices as it likes.
    here, there = (getattr(x, "device", None) for x in (x_t, out))
    if there != here and None not in (here, there) and not hasattr(out, "sharding"):
        raise ValueError(f"net must return an array on {here}, got one on {there} at {_at(t)}")


def halves(out: Array) -> tuple[Array, Array]:
    """The prediction and the raw variance, of an output with both on axis 1."""
    channels = out.shape[1] // 2
    return out[:, :channels, ...], out[:, channels:, ...]


def refuse_nonfinite(xp: Any, t: int, *outputs: Array | None) -> None:
    """Raise ValueError that names the network and the step if an array is not finite.

    Parameters
    ----------
    xp : namespace
        The arrays' array-API namespace.
    t : int
        The step.
    *outputs : array or None
        The network's outputs.

    Raises
    ------
    ValueError
        If one holds NaN or infinity.
    """
    for out in outputs:
        if out is not None and not bool(xp.all(xp.isfinite(out))):
            raise ValueError(f"net returned NaN or infinity at t = {t}")


@dataclass(frozen=True)
class Respaced(Wrapper):
    """The network of a shorter chain, which is called with the steps of the chain that it was trained on."""

    steps: tuple[int, ...]
    """The steps of the long chain, from 0 on, for each of the shorter one."""
    first_t: int

    def __call__(self, x_t: Array, t: Array) -> Array:
        xp = namespace_of(x_t=x_t)
        steps = array_like(np.array(self.steps), x_t, xp, dtype=t.dtype)
        return self.net(x_t, xp.take(steps, t + (1 - self.first_t), axis=0) + (self.first_t - 1))


class FirstHalf(Wrapper):
    """A network without the variance that it emits in the second half of its channels."""

    def __call__(self, x_t: Array, t: Array) -> Array:
        out = self.net(x_t, t)
        check_output(out, x_t, t, namespace_of(x_t=x_t), learned=True)
        return halves(out)[0]


def _at(t: Any) -> str:
    """Words for the steps that a network was called at."""
    if isinstance(t, np.ndarray) and t.size:
        return f"t = {t.min()}..{t.max()}"
    return f"t = {t}" if isinstance(t, int) else "the steps given"
