"""A Torch network behind another array library's arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor, nn

from tinyddpm import backends
from tinyddpm._array import Array

__all__ = ["to_backend"]


def to_backend(net: nn.Module, backend: str) -> Callable[..., Array]:
    """``net`` as a function of the arrays of `backend`: ``f(x, t)`` or ``f(x, t, y)``, without gradients.

    Arrays on the network's own device are shared (DLPack), not copied; others are moved there and back. The result has
    x's library and device. The network is used as it is: call ``net.eval()`` first.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net: a torch.nn.Module is needed, not {type(net).__name__}")
    known = backends.get(backend)
    return net if known.name == "torch" else _Bridged(net, backend)


@dataclass(frozen=True)
class _Bridged:
    net: nn.Module
    backend: str

    def __call__(self, x: Array, t: Array, *y: Array) -> Array:
        known = backends.get(self.backend)
        place = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        with torch.no_grad():
            out = self.net(*(_to_torch(a, known, place) for a in (x, t, *y)))
        return _from_torch(out, x, known)


def _to_torch(array: Array, backend: backends.Backend, device: torch.device) -> Tensor:
    if isinstance(array, np.ndarray):
        shareable = array.flags.writeable and all(stride >= 0 for stride in array.strides)
        return torch.from_numpy(array if shareable else array.copy()).to(device)
    if _shared(array, device):
        return torch.utils.dlpack.from_dlpack(array)
    return torch.from_numpy(backend.to_numpy(array).copy()).to(device)


def _from_torch(out: Tensor, x: Array, backend: backends.Backend) -> Array:
    if isinstance(x, np.ndarray):
        return out.cpu().numpy()
    out = out.contiguous()
    if _shared(x, out.device):
        return backend.namespace().from_dlpack(out)
    from array_api_compat import device

    return backend.from_numpy(out.cpu().numpy(), device=device(x))


def _shared(array: Array, device: torch.device) -> bool:
    """Whether Torch can use the array's memory where it lies."""
    cpu, cuda = 1, 2  # DLPack's numbers
    try:
        kind, number = array.__dlpack_device__()
    except (AttributeError, RuntimeError, BufferError, TypeError):
        return False
    return (int(kind), number) == ((cuda, device.index or 0) if device.type == "cuda" else (cpu, 0))
