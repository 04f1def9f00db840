"""What a training run is: one frozen record, checked as a whole before anything is written."""

from __future__ import annotations

import dataclasses
import inspect
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyddpm import schedules
from tinyddpm._arrays.check import as_instance, as_int, as_list, as_real, lookup, one_of
from tinyddpm.conversions import KINDS
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion

if TYPE_CHECKING:
    from tinyddpm.nn import UNet
    from tinyddpm.training.data.images import Images

__all__ = ["DEMO", "FREE", "HO2020", "OBJECTIVES", "TrainConfig"]

OBJECTIVES = ("simple", "vlb", "hybrid")
FREE = frozenset({
    "data", "out", "steps", "checkpoint_every", "keep", "sample_every", "samples", "resume", "device", "accumulate",
    "compile", "on_nonfinite", "verify_first", "bad_files", "workers",
})  # fmt: skip
"""The fields that may change when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run. The defaults suit small pictures and a CPU; `HO2020` has the paper's settings.

    Raises `TypeError`, `ValueError` or `LookupError` naming the field that is wrong.
    """

    data: str = "digits"
    """A source that `training.load` knows."""
    image_size: int | tuple[int, ...] | None = None
    """A side, or height and width: images are cut to that shape and resized; by default they stay as they are."""
    bad_files: str = "stop"
    """At an image that can't be read: "stop", or "skip" it and go on without."""
    workers: int | None = None
    """Threads that read images; by default as many as there are CPUs, up to 8."""
    out: str = "run"
    """The run folder."""
    steps: int = 1000
    """Optimiser steps in all."""
    batch_size: int = 64
    """Images a step, over all processes together."""
    accumulate: int = 1
    """Parts that a process works through one after the other in each step: less memory, the same result."""
    held_out: float = 0.1
    """Share of the images that training never sees."""
    seed: int = 0
    """Decides weights, data order, steps t, noise and dropout."""

    optimizer: str = "adam"
    """"adam" or "adamw"."""
    lr: float = 1e-3
    warmup: int = 0
    """Steps over which the learning rate rises linearly to `lr`."""
    cooldown: int = 0
    """Last steps over which it falls linearly to zero."""
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Largest global norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights; after k steps at most (1 + k) / (10 + k)."""

    T: int = 1000
    schedule: str = "linear"
    """A name in `schedules.NAMES`; beta_1 = 0.1 / T and beta_T = 20 / T (at most 0.999) where it takes them."""
    predicts: str = "eps"
    objective: str = "simple"
    variance: str = "beta"
    time_sampler: str = "uniform"
    """How t is drawn: "uniform", or "loss_aware", in proportion to the root mean square of its last losses."""
    classes: bool = False
    """Give the network the data's labels, so that it can draw a chosen class."""
    label_dropout: float = 0.1
    """Share of the labels that are hidden from it, which is what guidance needs."""

    channels: int = 32
    mults: tuple[int, ...] | None = None
    """By default (1, 2, 2, 2), or (1, 2, 2) for images below 32 pixels or that halve twice only."""
    res_blocks: int = 2
    attention: tuple[int, ...] | None = None
    """By default the first level below the top with at most 16 pixels to a side."""
    dropout: float = 0.0
    flip: bool = False
    """Mirror every other image of a batch, on average."""
    precision: str = "float32"
    """"float32", or "bf16" for the network's forward pass."""
    compile: bool = False
    """Let torch.compile make the network faster, after a minute or so of compiling."""
    on_nonfinite: str = "stop"
    """At NaN or infinity in a batch, loss or gradient: "stop" the run, or "skip" the update."""
    verify_first: bool = False
    """Measure the identities of ``tinyddpm verify`` on the device first, and don't start where one fails."""

    checkpoint_every: int = 1000
    keep: int = 2
    """Checkpoints that stay: the last ones."""
    sample_every: int = 0
    """Steps between sample grids; 0: none."""
    samples: int = 64
    """Images in a grid."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, where there is one."""
    device: str | None = None
    """By default the first CUDA device, else the CPU."""

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            value = getattr(self, name)
            if isinstance(value, os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
            elif not isinstance(value, str) or not value:
                raise TypeError(f"{name} must be a path, got {value!r}")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", _sides(self.image_size))
        if self.workers is not None:
            as_int("workers", self.workers, 0, 256)
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep", "T", "samples"):
            as_int(name, getattr(self, name), 1, 2**31)
        for name in ("channels", "res_blocks"):
            as_int(name, getattr(self, name), 1, 2**14)
        for name in ("warmup", "cooldown", "sample_every"):
            as_int(name, getattr(self, name), 0, 2**31)
        as_int("seed", self.seed, 0, 2**64 - 1)
        for name, low, high in (
            ("held_out", 0.0, 0.999), ("lr", 0.0, 10.0), ("weight_decay", 0.0, 10.0), ("ema", 0.0, 1.0),
            ("label_dropout", 0.0, 1.0), ("dropout", 0.0, 0.999),
        ):  # fmt: skip
            as_real(name, getattr(self, name), low, high)
        as_real("grad_clip", self.grad_clip, 0, open_ends=True)
        one_of("optimizer", self.optimizer, ("adam", "adamw"))
        one_of("bad_files", self.bad_files, ("stop", "skip"))
        one_of("precision", self.precision, ("float32", "bf16"))
        one_of("time_sampler", self.time_sampler, ("uniform", "loss_aware"))
        one_of("on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        one_of("predicts", self.predicts, KINDS)
        one_of("objective", self.objective, OBJECTIVES)
        one_of("variance", self.variance, ("beta", "beta_tilde", "learned", "learned_range"))
        lookup("schedule", self.schedule, schedules.NAMES)
        for name in ("mults", "attention"):
            if (value := getattr(self, name)) is not None:
                sizes = [as_int(name, k, 1, 2**16) for k in as_list(name, value, empty=name == "attention")]
                object.__setattr__(self, name, tuple(sizes))
        if self.device is not None and not isinstance(self.device, str):
            raise TypeError(f"device must be a name, got {type(self.device).__name__}")
        for name in ("flip", "classes", "compile", "verify_first", "resume"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.learned and self.objective == "simple":
            raise ValueError(f"objective: 'simple' does not train a variance={self.variance!r}; 'hybrid' does")
        self.diffusion()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The config with these fields; an unknown one is a `LookupError`."""
        known = tuple(field.name for field in dataclasses.fields(cls))
        for name in as_instance("config", values, dict):
            one_of("config", name, known)
        return cls(**values)

    @property
    def learned(self) -> bool:
        """Whether the network emits the variance too."""
        return self.variance in ("learned", "learned_range")

    def diffusion(self) -> Diffusion:
        """The process that the run trains for."""
        schedule = schedules.NAMES[self.schedule]
        given = {"T": self.T, "beta_1": min(0.1 / self.T, 0.5), "beta_T": min(20 / self.T, 0.999)}
        parameters = inspect.signature(schedule).parameters.values()
        for parameter in parameters:
            if parameter.default is parameter.empty and parameter.name not in given:
                raise ValueError(f"schedule: {self.schedule!r} needs {parameter.name}, which a run does not set")
        return Diffusion(schedule(**{p.name: given[p.name] for p in parameters if p.name in given}))

    def denoiser(self, net: Any) -> Denoiser:
        """How the run's network is read: it counts steps from 0, as the paper's does."""
        return Denoiser(net, predicts=self.predicts, variance=self.variance, first_t=0)  # type: ignore[arg-type]

    def images(self) -> Images:
        """The run's data, those that it holds out included."""
        from tinyddpm.training.data.images import load

        size = self.image_size
        side = size if size is None or isinstance(size, int) else (size[0], size[1])
        return load(self.data, image_size=side, bad_files=self.bad_files, workers=self.workers)

    def unet(self, images: Images) -> UNet:
        """A new network for such images."""
        from tinyddpm.nn import UNet

        if self.classes and images.classes is None:
            raise ValueError(f"classes: {self.data} has no labels")
        channels, height, width = images.shape
        halvings = min((side & -side).bit_length() - 1 for side in (height, width))
        mults = self.mults
        if mults is None:
            if halvings < 2:
                raise ValueError(f"image_size: {height}x{width} cannot be halved twice; mults=(1,) does without")
            mults = (1, 2, 2, 2) if halvings > 2 and min(height, width) >= 32 else (1, 2, 2)
        attention = self.attention
        if attention is None:
            attention = tuple([height >> i for i in range(1, len(mults)) if max(height, width) >> i <= 16][:1])
        return UNet(
            height if height == width else (height, width),
            in_channels=channels,
            out_channels=2 * channels if self.learned else None,
            channels=self.channels,
            mults=mults,
            res_blocks=self.res_blocks,
            attention=attention,
            dropout=self.dropout,
            classes=images.classes if self.classes else None,
        )


def _sides(size: Any) -> tuple[int, int]:
    """(height, width) of a side, or of both."""
    sides = tuple(size) if isinstance(size, tuple | list) else (size,)
    if len(sides) not in (1, 2):
        raise ValueError(f"image_size must be a side or height and width, got {size!r}")
    height, width = (as_int("image_size", side, 1, 2**14) for side in (sides * 2)[:2])
    return height, width


DEMO = TrainConfig(
    out="demo", steps=1800, T=200, variance="beta_tilde", lr=2e-3, warmup=100, cooldown=540, mults=(1, 2), res_blocks=1,
    attention=(4,), checkpoint_every=250, samples=64,
)  # fmt: skip
"""0.7 million parameters on scikit-learn's digits, about 100 seconds of one core."""

HO2020 = TrainConfig(
    data="cifar10", out="cifar10", steps=800_000, batch_size=128, held_out=0.0, lr=2e-4, warmup=5000, ema=0.9999,
    channels=128, mults=(1, 2, 2, 2), attention=(16,), dropout=0.1, flip=True, checkpoint_every=5000,
)  # fmt: skip
"""Ho et al.'s CIFAR-10 run; `data` is a folder or file that you have."""
