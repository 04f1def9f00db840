"""Torch's reverse steps on a CPU, and the faster form of a network that `compile` and `autocast` ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyddpm.backends import Row, depth

from . import _host_noise, _host_steps
from ._host_steps import Clip, FoldedRow
from ._torch_device_steps import DeviceStepper, Graph

__all__ = ["HostStepper", "optimize_net"]

_PART = 2**18  # elements, for each thread


class HostStepper:
    """The steps of one run on a CPU, in place; the noise is drawn by NumPy, in memory that both libraries see."""

    def __init__(self, rows: Sequence[Row], x: Tensor, *, seed: int, index: Any, clip: Clip, keep_x0: bool) -> None:
        self._rows, self._folded = rows, _host_steps.folded(rows, clip)
        state = np.array(x.numpy(force=True), order="C")  # NumPy asks for large pages, Torch does not
        separate_base = self._separate_base = any(row.base is not None for row in rows)
        base = state.copy() if separate_base else state
        predictions = [np.empty_like(state) for _ in range(depth(rows) + keep_x0)]
        arrays = [torch.from_numpy(array) for array in (state, base, *predictions)]
        self.state, self._base, self._x0 = arrays[0], arrays[1], arrays[-1]
        self._count = max(1, _PART * torch.get_num_threads() // max(1, math.prod(x.shape[1:])))  # samples in a part
        parts: Any = [arrays]
        if self._count < x.shape[0]:
            parts = zip(*(torch.split(array, self._count) for array in arrays), strict=True)
        self._parts = [_Part(*views, clip=clip, keep_x0=keep_x0, separate_base=separate_base) for views in parts]
        self._noise = _host_noise.StepNoise(rows, state, seed, index, _tensors)
        self._context = _host_steps.without_warnings()
        # After a network has taken the caches, a Python number costs 20 microseconds if Torch makes a tensor of it.
        self._of_state = torch.tensor([row.of_state for row in self._folded], dtype=x.dtype, device="cpu").unbind()

    @property
    def x0(self) -> Tensor:
        """The newest prediction of x_0, if it is kept."""
        return self._x0

    def step(self, k: int, value: Tensor, std: Tensor | None = None, z: Tensor | None = None) -> bool:
        """Make the step of row k; return whether the network's output is finite."""
        row, folded, of_state, (part, *others) = self._rows[k], self._folded[k], self._of_state[k], self._parts
        if not others:
            finite = part.step(row, folded, of_state, value)
        else:
            values = self._split(value)
            finite = all(part.step(row, folded, of_state, v) for part, v in zip(self._parts, values, strict=True))
        if row.std != 0.0:
            self._add_noise(k, std, z)
            if row.base is None and self._separate_base:
                self._base.copy_(self.state)
        return finite

    def _add_noise(self, k: int, std: Tensor | None, z: Tensor | None) -> None:
        """Add row k's noise to the state."""
        if z is not None:
            self.state.add_(z, alpha=self._rows[k].std or 0.0) if std is None else self.state.addcmul_(z, std)
        elif std is None and (drawn := self._noise.drawn(k)) is not None:
            self.state.add_(drawn)  # not by NumPy: after a network its first call costs more than all of these
        else:
            self._context.run(self._noise.add, k, None if std is None else std.numpy())

    def _split(self, value: Tensor) -> Sequence[Tensor]:
        """The network's output for each part."""
        if value.untyped_storage().data_ptr() == self.state.untyped_storage().data_ptr():
            value = value.clone()  # a view of the state, which the other parts' steps overwrite
        return torch.split(value, self._count)


def _tensors(z: Any) -> Sequence[Tensor]:
    """A NumPy array's rows as tensors that share its memory."""
    return torch.from_numpy(z).unbind()


class _Part:
    """As many samples as stay in the caches from pass to pass: their state, base and predictions.

    Torch fuses a product into a sum, as NumPy can't, and rounds it alike wherever an element stands.
    """

    def __init__(self, state: Tensor, base: Tensor, *predictions: Tensor, clip: Clip, keep_x0: bool, separate_base: bool) -> None:
        self._state, self._base, self._clip, self._separate_base = state, base, clip, separate_base
        self._history = list(predictions[:-1] if keep_x0 else predictions)
        self._x0 = predictions[-1] if keep_x0 else None

    def step(self, row: Row, folded: FoldedRow, of_state: Tensor, value: Tensor) -> bool:
        """Make a row's step without its noise; return whether the network's output is finite.

        `of_state` is that of the folded row as a tensor.
        """
        finite = math.isfinite(value.sum().item()) or bool(value.isfinite().all())  # the sum may overflow
        if len(self._history) > 1:
            self._history = self._history[-1:] + self._history[:-1]
        if self._x0 is not None:
            self._predict(row.x0_from[0], row.x0_from[1] or None, value, self._clip, self._x0)
        of_value, weight, clip, to_state, to_base = folded
        self._predict(of_value, of_state if weight else None, value, clip, self._history[0])
        self._weighted_sum(to_state, self._state)
        if to_base is not None:
            self._weighted_sum(to_base, self._base)
        elif self._separate_base and row.std == 0.0:
            self._base.copy_(self._state)
        return finite

    def _predict(self, of_value: float, of_state: Tensor | float | None, value: Tensor, clip: Clip, out: Tensor) -> None:
        """out = clip(of_value value + of_state state); None stands for 0."""
        if of_state is None:
            torch.mul(value, of_value, out=out)
        else:
            torch.mul(self._state, of_state, out=out).add_(value, alpha=of_value)
        if clip is not None:
            low, high = clip
            out.clamp_(low, high)

    def _weighted_sum(self, weights: Sequence[float], out: Tensor) -> None:
        """out = weights[0] * base + weights[1] * newest prediction + ...; `out` may be the base."""
        history, base, (first, *rest) = self._history, self._base, weights
        if rest and rest[0] == 1.0:
            torch.add(history[0], base, alpha=first, out=out)
            history, rest = history[1:], rest[1:]
        else:
            torch.mul(base, first, out=out)
        for weight, x0 in zip(rest, history, strict=False):
            if weight:
                out.add_(x0, alpha=weight)


def optimize_net(net: Callable[..., Any], *, compile: bool, autocast: str | None, stepper: Any = None) -> Callable[..., Any]:
    """The network compiled, in channels_last, with autocast; on CUDA also in one graph with the steps of `stepper`, if given."""
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if autocast is not None and autocast not in dtypes:
        raise LookupError(f"autocast must be one of {', '.join(dtypes)}, got {autocast!r}")
    if autocast is not None and hasattr(type(net), "cast_for_autocast"):  # the library's own networks
        net = net.cast_for_autocast(dtypes[autocast])  # type: ignore[attr-defined]  # for this run: the next may find others
    options: Any = {"size_asserts": False}  # the guards compare the sizes already
    called = torch.compile(net, dynamic=False, options=options) if compile else net
    images = isinstance(net, torch.nn.Module)

    def run(x: Tensor, t: Tensor) -> Any:
        cast: Any = nullcontext()
        if autocast is not None:
            cast = torch.autocast(x.device.type, dtypes[autocast], cache_enabled=False)
        with cast:
            out = called(x.contiguous(memory_format=torch.channels_last) if images and x.ndim == 4 else x, t)
        return out.to(x.dtype) if autocast is not None and isinstance(out, Tensor) else out

    graphed = compile and isinstance(stepper, DeviceStepper) and stepper.state.is_cuda and stepper.fixed
    return Graph(run, stepper) if graphed else run
