"""PyTorch, on the CPU or on CUDA devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyddpm.backends import Backend, BackendUnavailable, Row, counters

from . import checked_dtype, host_copy, load

__all__ = ["BACKEND"]

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_LOW, _SIGN = 2**32 - 1, -(2**63)


def _torch() -> Any:
    """Torch, imported."""
    return load("torch", 'pip install "tinyddpm[torch]"')


def _namespace() -> Any:
    """array-api-compat's namespace for Torch."""
    _torch()
    import array_api_compat.torch

    return array_api_compat.torch


def _devices() -> tuple[str, ...]:
    """The CPU and the CUDA devices."""
    return ("cpu", *(f"cuda:{i}" for i in range(_torch().cuda.device_count())))


def _device(device: Any) -> str:
    """The name of a device that can be used here; None is the CPU."""
    name = "cpu" if device is None else str(device)
    if name not in (devices := _devices()) and not (name == "cuda" and len(devices) > 1):
        raise BackendUnavailable(f"device must be one of {', '.join(devices)} for Torch, got {name!r}")
    return name


def _from_numpy(array: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """A copy on the device."""
    torch, place = _torch(), _device(device)
    to = None if dtype is None else getattr(torch, checked_dtype(dtype, _DTYPES))
    with torch.inference_mode(False):  # what is made under it could not be written to outside
        return torch.from_numpy(host_copy(array)).to(place, to)


def _to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """A copy on the host; NumPy has no bfloat16, which becomes float32."""
    x = x.detach()
    return np.array((x.float() if x.dtype == _torch().bfloat16 else x).cpu().numpy())


def _log_cdf(x: Any) -> Any:
    """log Phi(x): by erfcx on the left, where Phi underflows, by log1p of the upper tail on the right.

    Torch differentiates it in both modes to a few roundings, which it does not its own log_ndtr, 0/0 in the left tail.
    """
    import torch  # not by `load`, which torch.compile does not trace

    left, right = torch.clamp(x, max=0), torch.clamp(x, min=0, max=40)
    lower = torch.log(torch.special.erfcx(left * -math.sqrt(0.5)) / 2) - left * left / 2
    near = torch.round(right * 16).detach() / 16  # right**2 as near**2, which is exact, and a small rest
    density = torch.exp(-near * near / 2) * torch.exp(-(right - near) * (right + near) / 2)
    upper = torch.log1p(density * torch.special.erfcx(right * math.sqrt(0.5)) / -2)
    return torch.where(x > 0, upper, torch.where(x == -math.inf, x, lower))


def _log_ndtr(x: Any) -> Any:
    """log Phi(x), in float32 for narrower dtypes."""
    return _log_cdf(x.float()).to(x.dtype) if x.dtype.itemsize < 4 else _log_cdf(x)


def _normal(seed: int, index: Any, step: int, shape: tuple[int, ...], *, stream: int, device: Any, dtype: str) -> Any:
    """The noise kernel, on a CUDA device; on a CPU NumPy draws faster."""
    place = _device(device)
    return NotImplemented if place == "cpu" else _draw(seed, index, step, shape, stream, place, dtype)


def _draw(seed: int, index: Any, step: int, shape: tuple[int, ...], stream: int, place: str, dtype: str) -> Any:
    """Philox4x64-10 and Box-Muller in Torch operations, laid out as `tinyddpm.noise` says."""
    return _normals(seed, _first_counters(index, shape, place), step, shape, stream, dtype)


def _first_counters(index: Any, shape: tuple[int, ...], place: Any) -> tuple[Any, Any]:
    """The two words of each sample's first counter, shape (len(index), 1): the bits of uint64 as int64."""
    words = counters(index, -(-math.prod(shape) // 8))
    low, high = (_torch().from_numpy(word.view(np.int64)).to(place)[:, None] for word in words)
    return low, high


def _normals(seed: int, first: tuple[Any, Any], step: Any, shape: tuple[int, ...], stream: int, dtype: str) -> Any:
    """The noise of samples with these first counters; the step is an int or a scalar on their device."""
    torch, n, count = _torch(), math.prod(shape), len(first[0])
    real = torch.float64 if dtype == "float64" else torch.float32
    pairs = _philox(seed, first, step, -(-n // 8), stream).view(torch.int32).reshape(count, 2, -1)
    u = ((pairs[:, 0].to(torch.int64) & _LOW).to(real) + 0.5) * 2**-32
    angle = pairs[:, 1].to(real) * (2 * math.pi * 2**-32)
    r = torch.sqrt(torch.log(u) * -2)
    z = torch.cat((r * torch.cos(angle), r * torch.sin(angle)), 1)[:, :n]
    return z.reshape(count, *shape).to(getattr(torch, dtype)).contiguous()


def _philox(seed: int, first: tuple[Any, Any], step: Any, blocks: int, stream: int) -> Any:
    """Each sample's 4 * blocks Philox words, shape (count, blocks, 4): the bits of uint64 as int64."""
    torch, (low, high) = _torch(), first
    a = low + torch.arange(blocks, dtype=torch.int64, device=low.device)
    carry = (a ^ _SIGN) < (low ^ _SIGN)
    b, d = high + carry.to(torch.int64), torch.zeros_like(a)
    c = d + (_int64(step) if isinstance(step, int) else step)
    for turn in range(10):
        key0, key1 = _int64(seed + turn * 0x9E3779B97F4A7C15), _int64(stream + turn * 0xBB67AE8584CAA73B)
        a, b, c, d = (
            _high(c, 0xCA5A826395121157) ^ b ^ key0,
            c * _int64(0xCA5A826395121157),
            _high(a, 0xD2E7470EE14C6C93) ^ d ^ key1,
            a * _int64(0xD2E7470EE14C6C93),
        )
    return torch.stack((a, b, c, d), -1)


def _high(x: Any, y: int) -> Any:
    """The high word of the unsigned 128-bit product x * y, from 32-bit halves; int64 wraps as uint64 does."""
    x0, x1, y0, y1 = x & _LOW, x >> 32 & _LOW, y & _LOW, y >> 32
    middle = x1 * y0 + (x0 * y0 >> 32 & _LOW)
    return x1 * y1 + (middle >> 32 & _LOW) + (x0 * y1 + (middle & _LOW) >> 32 & _LOW)


def _int64(word: int) -> int:
    """The int64 with the bits of `word` modulo 2**64."""
    return (word + 2**63) % 2**64 - 2**63


def _stepper(rows: Sequence[Row], x: Any, *, seed: int, index: Any, clip: tuple[float, float] | None, keep_x0: bool) -> Any:
    """The steps in place, for float32 and float64."""
    torch = _torch()
    if x.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    from ._torch_device_steps import DeviceStepper
    from ._torch_steps import HostStepper

    if x.device.type == "cpu":
        with torch.inference_mode(False):
            return HostStepper(rows, x, seed=seed, index=index, clip=clip, keep_x0=keep_x0)
    shape, dtype = tuple(x.shape[1:]), str(x.dtype).rpartition(".")[2]
    first = _first_counters(index, shape, x.device)

    def draw(step: Any) -> Any:
        return _normals(seed, first, step, shape, 0, dtype)

    with torch.inference_mode(False):
        return DeviceStepper(rows, x, draw, clip=clip)


def _optimize_net(net: Any, **options: Any) -> Any:
    """A faster form of a network."""
    _torch()
    from . import _torch_steps

    return _torch_steps.optimize_net(net, **options)


BACKEND = Backend(
    name="torch",
    roots=("torch",),
    namespace=_namespace,
    from_numpy=_from_numpy,
    to_numpy=_to_numpy,
    log_ndtr=_log_ndtr,
    devices=_devices,
    version=lambda: str(_torch().__version__),
    normal=_normal,
    stepper=_stepper,
    optimize_net=_optimize_net,
    no_grad=lambda: _torch().no_grad(),
)
