"""The update of a run's weights: gradients clipped by their norm, Adam, and the average of the weights (EMA)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import not_

import torch
from torch import Tensor, nn

from tinyddpm.training.config import TrainConfig

__all__ = ["SMALL", "Optimizer"]

SMALL = 2**17
"""On a CPU, tensors of fewer numbers are packed, as the calls for one cost more there than its numbers do."""
_KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Adam or AdamW for the weights of `net`, whose average is kept in `ema`.

    On a CPU the small parameters of a network become views of one tensor, so that one call updates them all. On a GPU, Torch's
    kernels take many tensors in one call.
    """

    def __init__(self, config: TrainConfig, net: nn.Module, ema: nn.Module) -> None:
        named = dict(net.named_parameters())
        self.parameters, self.averages = list(named.values()), list(ema.parameters())
        self._names, self._clip = list(named), config.grad_clip
        small = [p.device.type == "cpu" and p.numel() < SMALL for p in self.parameters]
        self._small, self._large = list(compress(self.parameters, small)), list(compress(self.parameters, map(not_, small)))
        self._updated = [*_packed(self._small), *self._large]
        self._averaged = [*_packed(list(compress(self.averages, small))), *compress(self.averages, map(not_, small))]
        self._adam = _KINDS[config.optimizer](self._updated, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        for p in self._updated:  # what the first step would create; a checkpoint is read into it
            moments = {key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in _MOMENTS}
            self._adam.state[p] = {"step": torch.zeros((), device=p.device), **moments}
        if self._small:
            self._updated[0].grad = torch.zeros_like(self._updated[0])
            for p, grad in zip(self._small, _views(self._updated[0].grad, self._small), strict=True):
                p.grad = grad

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self._large:
            p.grad = None
        if self._small:
            self._updated[0].grad.zero_()  # type: ignore[union-attr]  # it is set once

    def norm(self) -> Tensor:
        """The norm of all gradients together."""
        grads = [p.grad for p in self._updated if p.grad is not None]
        total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))  # pyright: ignore
        return total

    def step(self, lr: float, decay: float, norm: Tensor, finite: Tensor) -> None:
        """Update the weights by gradients of the norm `norm`, unless `finite` is false, and their average.

        The fused kernel divides the gradients to clip them, and looks at `finite`, so nothing is read back from a GPU.
        """
        self._adam.grad_scale = ((norm + 1e-6) / self._clip).clamp(min=1)
        self._adam.found_inf = 1 - finite.float()
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        torch._foreach_lerp_(self._averaged, self._updated, 1 - decay)  # pyright: ignore

    def moments(self) -> dict[str, Tensor]:
        """The moments of each parameter, by kind and name."""
        made: dict[str, Tensor] = {}
        for key in _MOMENTS:
            kept = {id(p): self._adam.state[p][key] for p in self._updated}
            if self._small:
                views = _views(kept[id(self._updated[0])], self._small)
                kept |= {id(p): view for p, view in zip(self._small, views, strict=True)}
            made |= {f"{key}.{name}": kept[id(p)] for name, p in zip(self._names, self.parameters, strict=True)}
        return made

    @property
    def updates(self) -> int:
        """The number of updates made; fewer than steps if some were skipped."""
        return int(self._adam.state[self._updated[0]]["step"])

    @updates.setter
    def updates(self, count: int) -> None:
        for p in self._updated:
            self._adam.state[p]["step"].fill_(count)


def _packed(parameters: Sequence[Tensor]) -> list[Tensor]:
    """One tensor of which the parameters are now views; none of none."""
    if not parameters:
        return []
    pack = parameters[0].detach().new_empty(sum(p.numel() for p in parameters))
    for p, view in zip(parameters, _views(pack, parameters), strict=True):
        p.data = view.copy_(p.data)
    return [pack]


def _views(pack: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of `pack`, one behind the other, with the shapes and strides of other tensors, which have no gaps."""
    views, start = [], 0
    for p in like:
        views.append(pack.as_strided(p.shape, p.stride(), start))
        start += p.numel()
    return views
