"""Diffusion mathematics you can trust, on whatever array library you have.

`Diffusion` holds the known process, `Denoiser` reads a network, `Gaussian` is what both give. Time is the paper's: ``x_0`` is
data, ``x_T`` is noise, and steps are ``t = 1..T``. What is named here is loaded when it is first used; the core needs NumPy only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyddpm import (  # isort: skip
        analytic, backends, calibration, conversions, edit, gaussian, guidance, likelihood, losses, noise, plans, samplers,
        schedules,
    )  # fmt: skip
    from tinyddpm.denoiser import Denoiser
    from tinyddpm.diffusion import Diffusion
    from tinyddpm.gaussian import Gaussian

__version__ = "0.1.0"
__all__ = [
    "Denoiser", "Diffusion", "Gaussian", "analytic", "backends", "calibration", "conversions", "edit", "gaussian", "guidance",
    "likelihood", "losses", "noise", "plans", "samplers", "schedules",
]  # fmt: skip

_NEED_EXTRAS = ("cli", "nn", "plots", "training", "verify")


_CLASSES = ("Denoiser", "Diffusion", "Gaussian")


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        value = globals()[name] = getattr(import_module(f"tinyddpm.{name.lower()}"), name)
        return value
    if name in __all__ or name in _NEED_EXTRAS:
        return import_module(f"tinyddpm.{name}")
    raise AttributeError(f"module 'tinyddpm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_NEED_EXTRAS, "__version__"})
