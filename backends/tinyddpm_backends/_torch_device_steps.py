"""Torch's reverse steps on a device, alone or in one CUDA graph with the network.

NOT YET RUN ON A DEVICE. The tests make these steps on the CPU, with the replay of the graph spelled out; those that need a GPU
are marked ``gpu`` and were skipped so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tinyddpm.backends import Row, depth, table

__all__ = ["DeviceStepper", "Graph"]

Draw = Callable[[Any], Tensor]
"""Returns the noise of a step, which is an int or a scalar tensor on the device."""


class DeviceStepper:
    """The steps of one run on a device, in place; nothing is ever read back.

    The rows are one formula whose weights lie in a table on the device (`tinyddpm.backends.table`), so that one CUDA graph serves
    all of them.
    """

    def __init__(self, rows: Sequence[Row], x: Tensor, draw: Draw, *, clip: tuple[float, float] | None) -> None:
        self._rows, self._clip, self._draw = rows, clip, draw
        self.steps_done = 0
        """How many steps `Graph` has made."""
        self.fixed = all(row.std is not None for row in rows)
        """Whether the table holds all there is to know of the steps, as a graph needs it."""
        self._depth = depth(rows)
        self._separate_base = any(row.base is not None for row in rows)
        self.state = x.clone(memory_format=torch.contiguous_format)
        self._base = self.state.clone() if self._separate_base else self.state
        self._history = [torch.zeros_like(self.state) for _ in range(self._depth)]
        self._work = torch.empty_like(self.state)
        self.table = torch.from_numpy(table(rows, self._depth)).to(x.device, x.dtype)
        self.steps = torch.tensor([row.t for row in rows], device=x.device)

    @property
    def x0(self) -> Tensor:
        """The newest prediction of x_0."""
        return self._history[0]

    def step(self, k: int, value: Tensor, std: Tensor | None = None, z: Tensor | None = None) -> None:
        """Make the step of row k, unless a graph has made it with the network's call."""
        if self.steps_done > k:
            return
        noise = None
        if self._rows[k].std != 0.0:
            noise = self._draw(self._rows[k].t) if z is None else z
        self.advance(value, self.table[k], noise if std is None or noise is None else std.mul_(noise), std is not None)

    def noise(self, step: Tensor) -> Tensor | None:
        """The noise of a step that is read on the device; None if no row has any."""
        return self._draw(step) if any(row.std != 0.0 for row in self._rows) else None

    def advance(self, value: Tensor, weights: Tensor, noise: Tensor | None, scaled: bool = False) -> None:
        """Make one step with these weights, a row of the table, which also multiply the noise unless it is `scaled` already."""
        of_value, of_state, std, *rest = weights.unbind()
        for older, newer in zip(self._history[:0:-1], self._history[-2::-1], strict=True):
            older.copy_(newer)
        x0, sources = self._history[0], (self._base, *self._history)
        torch.mul(value, of_value, out=x0)
        x0.addcmul_(self.state, of_state)
        if self._clip is not None:
            x0.clamp_(*self._clip)
        _weighted_sum(rest[: self._depth + 1], sources, self.state)
        if noise is not None:
            self.state.add_(noise) if scaled else self.state.addcmul_(noise, std)
        if self._separate_base:
            _weighted_sum(rest[self._depth + 1 :], (self.state, *sources), self._work)
            self._base.copy_(self._work)


def _weighted_sum(weights: Sequence[Tensor], arrays: Sequence[Tensor], out: Tensor) -> None:
    """out = weights[0] * arrays[0] + weights[1] * arrays[1] + ..."""
    torch.mul(arrays[0], weights[0], out=out)
    for weight, array in zip(weights[1:], arrays[1:], strict=True):
        out.addcmul_(array, weight)


class Graph:
    """A network whose k-th call also makes the k-th step: both are one CUDA graph, captured at the first call."""

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
        stepper.steps_done = self._k = k + 1
        return self._out

    def _captured(self) -> Any:
        """The graph of the network's call and the step after it."""
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
