"""A Torch network behind another array library's arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor, nn

from tinyddpm import backends
from tinyddpm._arrays.namespace import Array

__all__ = ["to_backend"]


def to_backend(net: nn.Module, backend: str) -> Callable[..., Array]:
    """``net`` as a function of the arrays of `backend`: ``f(x, t)`` or ``f(x, t, y)``, without gradients.

    The result has x's library, dtype and device; t and y may be NumPy's instead. x is cast to the network's dtype. On the
    network's own device memory is shared (DLPack) and not copied, save what Torch must not write to: JAX's arrays and
    read-only ones. Elsewhere arrays are moved there and back. The network is used as it is: call ``net.eval()`` first.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    return _Bridged(net, backends.get(backend).name)


@dataclass(frozen=True)
class _Bridged:
    net: nn.Module
    backend: str

    def __call__(self, x: Array, t: Array, *y: Array) -> Array:
        known = backends.get(self.backend)
        if not _owns(known, x):
            raise TypeError(f"x must be an array of {self.backend}, got {type(x).__name__}")
        for name, value in (("t", t), *(("y", value) for value in y)):
            if not hasattr(value, "shape"):
                raise TypeError(f"{name} must be an array, got {type(value).__name__}")
        place, dtype = _of(self.net)
        own, *rest = (_to_torch(array, known) for array in (x, t, *y))
        with torch.no_grad():
            out = self.net(own.to(place, dtype), *(array.to(place) for array in rest))
            if not isinstance(out, Tensor):
                raise ValueError(f"net must return a torch.Tensor, got {type(out).__name__}")
            return _from_torch(out.detach().to(own.device, own.dtype), x, known)


def _of(net: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and dtype of a network's first floating tensor; None where it has none."""
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return None, None


def _owns(backend: backends.Backend, array: Array) -> bool:
    return any(cls.__module__.partition(".")[0] in backend.roots for cls in type(array).__mro__)


def _to_torch(array: Array, backend: backends.Backend) -> Tensor:
    """The array as a tensor that Torch may write to, on the array's device if Torch has it, else on the host."""
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        if not (array.flags.writeable and array.dtype.isnative and _forward(array)):
            array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(array)
    try:
        if not _forward(array):
            array = backend.namespace().asarray(array, copy=True)
        return torch.utils.dlpack.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError):  # a device that Torch does not have, or no DLPack
        return torch.from_numpy(backend.to_numpy(array).copy())


def _forward(array: Any) -> bool:
    """Whether the array is known to be mutable (JAX's has no strides) and not reversed, at which Torch's DLPack aborts."""
    strides = getattr(array, "strides", None)
    return strides is not None and all(stride >= 0 for stride in strides)


def _from_torch(out: Tensor, x: Array, backend: backends.Backend) -> Array:
    """The tensor as an array of x's library, where x lies."""
    if isinstance(x, Tensor):
        return out
    if isinstance(x, np.ndarray):
        return out.numpy()
    from array_api_compat import device

    try:
        result = backend.namespace().from_dlpack(out.contiguous())
        if device(result) == device(x):
            return result
    except (AttributeError, BufferError, RuntimeError, TypeError):
        pass
    return backend.from_numpy(out.cpu().numpy(), device=device(x))
