"""Torch's reverse moves, and the faster form of a network that `compile` and `autocast` ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _host_noise, _host_steps, depth, table

__all__ = ["DeviceStepper", "HostStepper", "optimize_net"]

Draw = Callable[[Any], Tensor]

_BLOCK = 2**18  # elements, for each thread


class HostStepper:
    """The moves on a CPU, in place; the noise is NumPy's, in memory that both see."""

    def __init__(self, rows: Sequence[Any], x: Tensor, *, seed: int, index: Any, clip: bool, keep_x0: bool) -> None:
        self._rows = rows
        state = np.array(x.numpy(force=True), order="C")  # NumPy asks for large pages, Torch does not
        apart = any(row.base is not None for row in rows)
        base = state.copy() if apart else state
        predictions = [np.empty_like(state) for _ in range(depth(rows) + keep_x0)]
        arrays = [torch.from_numpy(array) for array in (state, base, *predictions)]
        self.state, self._shown = arrays[0], arrays[-1]
        self._count = max(1, _BLOCK * torch.get_num_threads() // max(1, math.prod(x.shape[1:])))  # samples in a part
        parts: Any = [arrays]
        if self._count < x.shape[0]:
            parts = zip(*(torch.split(array, self._count) for array in arrays), strict=True)
        self._parts = [_Part(*views, clip=clip, keep_x0=keep_x0, apart=apart) for views in parts]
        self._noise, self._silent = _host_noise.StepNoise(rows, state, seed, index, _unbound), _host_steps.silence()
        # After a network has taken the caches, a Python number costs 20 microseconds where Torch makes an array of it.
        self._a_state = torch.tensor([row.factor * row.x0_from[1] for row in rows], dtype=x.dtype).unbind()

    @property
    def x0(self) -> Tensor:
        """The newest prediction, where it is shown."""
        return self._shown

    def step(self, k: int, value: Tensor, std: Tensor | None = None, z: Tensor | None = None) -> bool:
        """Row k's move; whether the network's output was finite, without which it is not completed."""
        row, a_state, (part, *others) = self._rows[k], self._a_state[k], self._parts
        finite = part.step(row, a_state, value) if not others else self._step_parts(row, a_state, value)
        if z is not None:
            self.state.add_(z, alpha=row.std) if std is None else self.state.addcmul_(z, std)
        elif std is None and row.std != 0.0 and (drawn := self._noise.drawn(k)) is not None:
            self.state.add_(drawn)  # not by NumPy: after a network its first call costs more than all of these
        elif row.std != 0.0:
            self._silent.run(self._noise.add, k, None if std is None else std.numpy())
        return finite

    def _step_parts(self, row: Any, a_state: Tensor, value: Tensor) -> bool:
        if value.untyped_storage().data_ptr() == self.state.untyped_storage().data_ptr():
            value = value.clone()  # which may lie where another part's state is written
        values = torch.split(value, self._count)
        return all(part.step(row, a_state, v) for part, v in zip(self._parts, values, strict=True))


def _unbound(z: Any) -> Sequence[Tensor]:
    return torch.from_numpy(z).unbind()


class _Part:
    """As many samples as stay in the caches from pass to pass: their state, base and predictions.

    Torch fuses a product into a sum, which NumPy can't, and rounds it alike wherever it stands.
    """

    def __init__(self, state: Tensor, base: Tensor, *predictions: Tensor, clip: bool, keep_x0: bool, apart: bool) -> None:
        self._state, self._base, self._clip, self._apart = state, base, clip, apart
        self._history = list(predictions[:-1] if keep_x0 else predictions)
        self._shown = predictions[-1] if keep_x0 else None

    def step(self, row: Any, a_state: Tensor, value: Tensor) -> bool:
        """A row's move but for its noise; whether the network's output was finite. `a_state` is that of the row times its
        factor."""
        finite = math.isfinite(value.sum().item()) or bool(value.isfinite().all())  # the sum may overflow
        if len(self._history) > 1:
            self._history = self._history[-1:] + self._history[:-1]
        if self._shown is not None:
            self._read(row, row.x0_from[1], value, 1.0, self._shown)
        self._read(row, a_state, value, row.factor, self._history[0])
        self._weigh(row.over_kept, self._state)
        if row.base is not None:
            self._weigh(row.base_over_kept, self._base)
        elif self._apart:
            self._base.copy_(self._state)
        return finite

    def _read(self, row: Any, a_state: Tensor | float, value: Tensor, factor: float, out: Tensor) -> None:
        """factor * x_0."""
        a_value = factor * row.x0_from[0]
        if row.x0_from[1]:
            torch.mul(self._state, a_state, out=out).add_(value, alpha=a_value)
        else:
            torch.mul(value, a_value, out=out)
        if self._clip:
            out.clamp_(-abs(factor), abs(factor))

    def _weigh(self, weights: Sequence[float], out: Tensor) -> None:
        """weights[0] * base + weights[1] * newest x_0 + ...; `out` may be the base."""
        history, base, (first, *rest) = self._history, self._base, weights
        if rest and rest[0] == 1.0:
            torch.add(history[0], base, alpha=first, out=out)
            history, rest = history[1:], rest[1:]
        else:
            torch.mul(base, first, out=out)
        for weight, x0 in zip(rest, history, strict=False):
            if weight:
                out.add_(x0, alpha=weight)


class DeviceStepper:
    """The moves on a device, in place; nothing is ever read back.

    The rows are one formula whose weights lie in a table on the device (`table`), so that one CUDA graph serves them all.
    """

    def __init__(self, rows: Sequence[Any], x: Tensor, draw: Draw, *, clip: bool) -> None:
        self._rows, self._clip, self._draw, self.moved = rows, clip, draw, 0
        self.fixed = all(row.std is not None for row in rows)  # so that the table says it all
        self._depth = depth(rows)
        self._apart = any(row.base is not None for row in rows)
        self.state = x.clone(memory_format=torch.contiguous_format)
        self._base = self.state.clone() if self._apart else self.state
        self._history = [torch.zeros_like(self.state) for _ in range(self._depth)]
        self._work = torch.empty_like(self.state)
        self.table = torch.from_numpy(table(rows, self._depth)).to(x.device, x.dtype)
        self.steps = torch.tensor([row.t for row in rows], device=x.device)

    @property
    def x0(self) -> Tensor:
        return self._history[0]

    def step(self, k: int, value: Tensor, std: Tensor | None = None, z: Tensor | None = None) -> None:
        if self.moved > k:  # with the network, in one graph
            return
        noise = None
        if self._rows[k].std != 0.0:
            noise = self._draw(self._rows[k].t) if z is None else z
        self.advance(value, self.table[k], noise if std is None or noise is None else std.mul_(noise), std is None)

    def noise(self, step: Tensor) -> Tensor | None:
        """The noise of a step that is read on the device, where any row has some."""
        return self._draw(step) if any(row.std != 0.0 for row in self._rows) else None

    def advance(self, value: Tensor, weights: Tensor, noise: Tensor | None, scaled: bool = True) -> None:
        """One move with these weights, a row of the table; the noise is times their std unless it is already."""
        a_value, a_state, std, *rest = weights.unbind()
        for older, newer in zip(self._history[:0:-1], self._history[-2::-1], strict=True):
            older.copy_(newer)
        x0, sources = self._history[0], (self._base, *self._history)
        torch.mul(value, a_value, out=x0)
        x0.addcmul_(self.state, a_state)
        if self._clip:
            x0.clamp_(-1.0, 1.0)
        self._weigh(rest[: self._depth + 1], sources, self.state)
        if noise is not None:
            self.state.addcmul_(noise, std) if scaled else self.state.add_(noise)
        if self._apart:
            self._weigh(rest[self._depth + 1 :], (self.state, *sources), self._work)
            self._base.copy_(self._work)

    def _weigh(self, weights: Sequence[Tensor], arrays: Sequence[Tensor], out: Tensor) -> None:
        torch.mul(arrays[0], weights[0], out=out)
        for weight, array in zip(weights[1:], arrays[1:], strict=True):
            out.addcmul_(array, weight)


class Graph:
    """A network whose k-th call also makes the k-th move: both are one CUDA graph, captured at the first call."""

    def __init__(self, net: Callable[..., Any], stepper: DeviceStepper) -> None:
        self._net, self._stepper, self._k = net, stepper, 0
        self._graph: Any = None

    def __call__(self, x: Tensor, t: Tensor) -> Any:
        stepper, k = self._stepper, self._k
        if self._graph is None:
            self._weights, self._step, self._t = stepper.table[0].clone(), stepper.steps[0].clone(), t.clone()
            self._graph = self._captured()
        self._weights.copy_(stepper.table[k])
        self._step.copy_(stepper.steps[k])
        self._t.copy_(t)
        self._graph.replay()
        stepper.moved = self._k = k + 1
        return self._out

    def _captured(self) -> Any:
        stepper, side = self._stepper, torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is set up or compiled at a first call must not be captured
            for _ in range(3):
                self._net(stepper.state, self._t)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._out = self._net(stepper.state, self._t)
            stepper.advance(self._out, self._weights, stepper.noise(self._step))
        return graph


def optimize_net(net: Callable[..., Any], *, compile: bool, autocast: str | None, stepper: Any = None) -> Callable[..., Any]:
    """The network compiled, in channels_last, with autocast; on CUDA in one graph with `stepper`'s moves where one is given."""
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
