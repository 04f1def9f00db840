"""PyTorch, on the CPU or on CUDA devices."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable

from . import host_array, known, load

__all__ = ["BACKEND"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def _torch() -> Any:
    return load("torch", 'pip install "tinyddpm[torch]"')


def _namespace() -> Any:
    _torch()
    import array_api_compat.torch

    return array_api_compat.torch


def _devices() -> tuple[str, ...]:
    return ("cpu", *(f"cuda:{i}" for i in range(_torch().cuda.device_count())))


def _device(device: Any) -> str:
    """The name of a device that can be used here; None is the CPU."""
    name = "cpu" if device is None else str(device)
    if name not in (devices := _devices()) and not (name == "cuda" and len(devices) > 1):
        raise BackendUnavailable(f"device: {name!r} is not here; Torch has {', '.join(devices)}")
    return name


def _from_numpy(array: Any, *, dtype: str | None = None, device: Any = None) -> Any:
    torch, place = _torch(), _device(device)
    to = None if dtype is None else getattr(torch, known("dtype", dtype, _DTYPES))
    return torch.from_numpy(host_array(array)).to(place, to)


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    x = x.detach()
    return np.array((x.float() if x.dtype == _torch().bfloat16 else x).cpu().numpy())


def _density(x: Any) -> Any:
    """exp(-x**2 / 2) for 0 <= x <= 40, with x**2 as a square that is exact and a small rest."""
    torch = _torch()
    near = torch.round(x * 16) / 16
    return torch.exp(-near * near / 2) * torch.exp(-(x - near) * (x + near) / 2)


def _hazard(x: Any) -> Any:
    """phi(x) / Phi(x), the derivative of log Phi: by erfcx on the left, where both underflow."""
    torch = _torch()
    left, right = torch.clamp(x, max=0), torch.clamp(x, min=0, max=40)
    upper = _density(right) / torch.special.ndtr(right) / math.sqrt(2 * math.pi)
    return torch.where(x > 0, upper, math.sqrt(2 / math.pi) / torch.special.erfcx(left * -math.sqrt(0.5)))


def _value(x: Any) -> Any:
    torch = _torch()
    left, right = torch.clamp(x, max=0), torch.clamp(x, min=0, max=40)
    upper = torch.log1p(_density(right) * torch.special.erfcx(right * math.sqrt(0.5)) / -2)
    lower = torch.log(torch.special.erfcx(left * -math.sqrt(0.5)) / 2) - left * left / 2
    return torch.where(x > 0, upper, torch.where(x == -math.inf, x, lower))


@lru_cache(maxsize=1)
def _function() -> Any:
    torch = _torch()

    class LogNdtr(torch.autograd.Function):  # type: ignore[name-defined, misc]
        """log Phi with a gradient that holds in the tail, where Torch's own is 0/0."""

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return _value(x)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * _hazard(*ctx.saved_tensors)

    return LogNdtr


def _log_ndtr(x: Any) -> Any:
    torch = _torch()
    half = x.dtype in (torch.float16, torch.bfloat16)
    return _function().apply(x.float()).to(x.dtype) if half else _function().apply(x)


BACKEND = Backend(
    name="torch",
    roots=("torch",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=_devices,
    version=lambda: str(_torch().__version__),
    no_grad=lambda: _torch().no_grad(),
)
