"""A Torch network as a function of another library's arrays."""

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
    """Return `net` as a function of another library's arrays, without gradients.

    Parameters
    ----------
    net : torch.nn.Module
        A network ``net(x, t)`` or ``net(x, t, y)``. It is called as it is: call ``net.eval()`` first.
    backend : str
        The name of the backend whose arrays the function takes.

    Returns
    -------
    callable
        A function ``f(x, t)`` or ``f(x, t, y)`` whose result has x's library, dtype and device. It casts x to the network's
        dtype; t and y may be NumPy arrays.

    Raises
    ------
    TypeError
        If `net` is not a module, or if the function gets an x that is not an array of `backend`.
    LookupError
        If the backend is unknown.

    Notes
    -----
    Arrays on the network's device share their memory with Torch (DLPack) and are not copied, except those that Torch must not
    write to: JAX's arrays and read-only ones. Arrays on another device are copied to the network's device and back.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    return _Bridged(net, backends.get(backend).name)


@dataclass(frozen=True)
class _Bridged:
    """The function that `to_backend` returns: equal, hashed and pickled by its fields."""

    net: nn.Module
    backend: str

    def __call__(self, x: Array, t: Array, *y: Array) -> Array:
        backend = backends.get(self.backend)
        if not _owns(backend, x):
            raise TypeError(f"x must be an array of {self.backend}, got {type(x).__name__}")
        for name, value in (("t", t), *(("y", value) for value in y)):
            if not hasattr(value, "shape"):
                raise TypeError(f"{name} must be an array, got {type(value).__name__}")
        device, dtype = _device_and_dtype(self.net)
        x_torch, *rest = (_to_torch(array, backend) for array in (x, t, *y))
        with torch.no_grad():
            out = self.net(x_torch.to(device, dtype), *(array.to(device) for array in rest))
            if not isinstance(out, Tensor):
                raise ValueError(f"net must return a torch.Tensor, got {type(out).__name__}")
            return _from_torch(out.detach().to(x_torch.device, x_torch.dtype), x, backend)


def _device_and_dtype(net: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and dtype of the network's first floating-point tensor; None and None if it has none."""
    for tensor in chain(net.parameters(), net.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return None, None


def _owns(backend: backends.Backend, array: Array) -> bool:
    """Whether the array is of the backend's library."""
    return any(cls.__module__.partition(".")[0] in backend.roots for cls in type(array).__mro__)


def _to_torch(array: Array, backend: backends.Backend) -> Tensor:
    """Return the array as a tensor that Torch may write to, on the array's device if Torch has it, else on the host."""
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        if not (array.flags.writeable and array.dtype.isnative and _is_writable_and_forward(array)):
            array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(array)
    try:
        if not _is_writable_and_forward(array):
            array = backend.namespace().asarray(array, copy=True)
        return torch.utils.dlpack.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError):  # Torch does not have the device, or the library no DLPack
        return torch.from_numpy(backend.to_numpy(array).copy())


def _is_writable_and_forward(array: Any) -> bool:
    """Whether the array has strides (JAX's arrays, which are immutable, have none), and none that is negative.

    At a negative stride Torch's DLPack aborts the process.
    """
    strides = getattr(array, "strides", None)
    return strides is not None and all(stride >= 0 for stride in strides)


def _from_torch(out: Tensor, x: Array, backend: backends.Backend) -> Array:
    """Return the tensor as an array of x's library on x's device."""
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
