"""The settings of a training run, checked as a whole before anything is written."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyddpm import schedules
from tinyddpm._arrays.check import MOST_STEPS, as_instance, one_of
from tinyddpm.conversions import KINDS
from tinyddpm.denoiser import Denoiser
from tinyddpm.diffusion import Diffusion
from tinyddpm.training.data.values import MOST_LEVELS
from tinyddpm.training.fields import check, choice, documented, ends, integer, name, names, path, real, sides, sizes, switch
from tinyddpm.training.sizes import network

if TYPE_CHECKING:
    from tinyddpm.nn import UNet
    from tinyddpm.training.data.images import Images

__all__ = ["DEMO", "FREE", "HO2020", "LIVE", "OBJECTIVES", "TrainConfig"]

OBJECTIVES = ("simple", "vlb", "hybrid")
DECODERS = ("exact", "density")
OPTIMIZERS = ("adam", "adamw")
PRECISIONS = ("float32", "bf16", "auto")
LOGS = ("tensorboard", "wandb")
SKIP = ("stop", "skip")
TIMES = ("uniform", "loss_aware")
VARIANCES = ("beta", "beta_tilde", "learned", "learned_range")
FREE = frozenset({
    "data", "labels", "grey", "rgb", "out", "steps", "checkpoint_every", "keep", "sample_every", "samples", "log_to", "resume",
    "device", "accumulate", "compile", "on_nonfinite", "verify_first", "bad_files", "workers",
})  # fmt: skip
"""The fields that may change when a run is resumed, as they do not decide what a step does."""
LIVE = frozenset({
    "lr", "warmup", "cooldown", "weight_decay", "grad_clip", "ema", "batch_size", "dropout", "label_dropout", "flip", "precision",
})  # fmt: skip
"""The fields that may change too, and decide the steps from then on; a run records such changes."""


@documented
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run. The defaults suit small pictures and a CPU; `HO2020` has the paper's settings.

    Raises
    ------
    TypeError, ValueError, LookupError
        If a field has the wrong type, is out of range or is not a known name; the message names the field.
    """

    data: str = path(
        "digits", "images", "scikit-learn's digits, a folder of images or of .tar files, or a .zip, .tar, .npy, .npz or idx file",
        metavar="digits|FOLDER|FILE",
    )  # fmt: skip
    image_size: int | tuple[int, ...] | None = sides(
        "images", "a side, or height and width, that images are cut and resized to; by default they stay as they are"
    )
    bad_files: str = choice("stop", "images", "whether an image that cannot be read stops the run or is left out", SKIP)
    background: str | None = name("images", "colour behind transparent parts, such as white or #ff8000; black by default")
    levels: int | None = integer(
        None, "images", "levels of the images; integers are 0..levels-1; by default 256, 65536 for 16 bits and floats, 17 for "
        "the digits", 2, MOST_LEVELS,
    )  # fmt: skip
    value_range: tuple[float, float] | None = ends(
        "images", "values in an array that become black and white; by default the first that holds all of 0..255, 0..65535, "
        "-128..127, -32768..32767, of floats 0..1, -1..1, else the smallest and the largest",
    )  # fmt: skip
    grey: bool = switch("images", "make colour images grey")
    rgb: bool = switch("images", "make grey images colour, with three equal channels")
    labels: str | None = name("images", "a CSV or JSON file with the class of each image file, instead of folders")
    workers: int | None = integer(
        None, "images", "threads that read images; by default as many as there are CPUs, up to 8", 0, 256
    )

    out: str = path("run", "run", "the run folder", metavar="DIR")
    steps: int = integer(1000, "run", "optimiser steps in all")
    batch_size: int = integer(64, "run", "images in a step, over all processes together")
    accumulate: int = integer(1, "run", "parts of a batch that are computed in turn, which takes less memory")
    held_out: float = real(0.1, "run", "share of the images that training never sees", 0.0, 0.999)
    seed: int = integer(0, "run", "seed of the weights, the data's order, steps t, noise and dropout", 0, 2**64 - 1)

    optimizer: str = choice("adam", "optimiser", "the optimiser", OPTIMIZERS)
    lr: float = real(1e-3, "optimiser", "the learning rate", 0.0, 10.0)
    warmup: int = integer(0, "optimiser", "steps in which the learning rate rises linearly from zero", 0)
    cooldown: int = integer(0, "optimiser", "last steps, in which the learning rate falls linearly to zero", 0)
    weight_decay: float = real(0.0, "optimiser", "weight decay", 0.0, 10.0)
    grad_clip: float = real(1.0, "optimiser", "largest global norm of the gradient", 0.0, math.inf, open_ends=True)
    ema: float = real(0.999, "optimiser", "decay of the averaged weights; after k steps at most (1 + k) / (10 + k)", 0.0, 1.0)

    T: int = integer(1000, "diffusion", "steps of the diffusion", 1, MOST_STEPS)
    schedule: str = choice(
        "linear", "diffusion", "the betas; if it takes beta_1 and beta_T, these are 0.1 / T and 20 / T", schedules.NAMES
    )
    predicts: str = choice("eps", "diffusion", "what the network returns", KINDS)
    objective: str = choice("simple", "diffusion", "the loss", OBJECTIVES)
    variance: str = choice("beta", "diffusion", "variance of the reverse process", VARIANCES)
    decoder: str = choice(
        "exact", "diffusion", "L_0 of the losses vlb and hybrid and of evaluate: the mass of a level, or a density, for "
        "continuous data", DECODERS,
    )  # fmt: skip
    time_sampler: str = choice("uniform", "diffusion", "how t is drawn; loss_aware draws a t of large loss more often", TIMES)

    classes: bool = switch("classes", "give the network the data's labels, so that it can draw a chosen class")
    label_dropout: float = real(0.1, "classes", "share of labels hidden from the network, which guidance needs", 0.0, 1.0)

    init_from: str | None = name(
        "network",
        "a run, a saved network or a diffusers pipeline whose weights a new run starts with, as far as they fit; its widths, "
        "blocks and levels replace those given here",
    )
    channels: int = integer(32, "network", "width of the network", 1, 2**14)
    mults: tuple[int, ...] | None = sizes(
        "network", "width of each level in units of channels; by default 1,2,2,2, or 1,2,2 for images that are small or odd"
    )
    res_blocks: int = integer(2, "network", "residual blocks in each level", 1, 2**14)
    attention: tuple[int, ...] | None = sizes(
        "network", "heights of the levels with attention; by default the first below the top of at most attention_side pixels",
        empty=True,
    )  # fmt: skip
    attention_side: int = integer(16, "network", "largest side of the level that has attention by default")
    dropout: float = real(0.0, "network", "dropout in each block", 0.0, 0.999)

    flip: bool = switch("images", "mirror every other image, on average")
    precision: str = choice(
        "float32", "machine", "precision of the network's forward pass; auto: the one whose steps are faster here",
        PRECISIONS,
    )  # fmt: skip
    compile: bool = switch("machine", "compile the network with torch.compile, which takes a minute or so")
    on_nonfinite: str = choice(
        "stop", "machine", "whether NaN or infinity in a batch, loss or gradient stops the run or skips the update", SKIP
    )
    verify_first: bool = switch("machine", "measure the identities of `tinyddpm verify` first; do not start if one fails")

    checkpoint_every: int = integer(1000, "files", "steps between checkpoints")
    keep: int = integer(2, "files", "checkpoints to keep, the last ones")
    sample_every: int | None = integer(
        None, "files",
        "steps between grids of samples; 0: none; by default they follow 1, 2, 5, 10, 20, 50 and 100 % of the steps, in at most "
        "2 % of the time", 0,
    )  # fmt: skip
    log_to: tuple[str, ...] | None = names(
        "files",
        "where the log and the grids go besides the run folder; by default to TensorBoard, if it is installed, and to Weights & "
        "Biases, if it is and WANDB_API_KEY or WANDB_MODE is set", LOGS,
    )  # fmt: skip
    samples: int = integer(64, "files", "images in a grid")
    resume: bool = switch("files", "go on from the last checkpoint in the run folder, if there is one")
    device: str | None = name("machine", "Torch's name of a device; by default the first CUDA device, else the CPU")

    def __post_init__(self) -> None:
        check(self)
        if self.grey and self.rgb:
            raise ValueError("grey must not be given with rgb")
        if self.learned and self.objective == "simple":
            raise ValueError(f"objective must be 'hybrid' or 'vlb' to train variance={self.variance!r}, got 'simple'")
        if self.diffusion().alpha_bar[-1] == 0 and self.predicts in ("eps", "score"):
            raise ValueError(
                f"predicts must be 'v', 'x0' or 'mu' with schedule={self.schedule!r}, which ends at alpha_bar = 0, where x_0 "
                f"does not follow from {self.predicts}, got {self.predicts!r}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The config with these fields, e.g. of a TOML or JSON file.

        Parameters
        ----------
        values : dict
            Fields by name; those that are left out have their defaults.

        Returns
        -------
        TrainConfig
            The checked settings.

        Raises
        ------
        TypeError, ValueError, LookupError
            As the class does; `LookupError` also for an unknown name, with the nearest and the known ones.
        """
        refuse_unknown("config", as_instance("config", values, dict))
        return cls(**values)

    @property
    def learned(self) -> bool:
        """Whether the network returns the variance too."""
        return self.variance in ("learned", "learned_range")

    def diffusion(self) -> Diffusion:
        """The process that the network is trained for.

        Returns
        -------
        Diffusion
            The process of `schedule` and `T`.
        """
        schedule = schedules.NAMES[self.schedule]
        given = {"T": self.T, "beta_1": min(0.1 / self.T, 0.5), "beta_T": min(20 / self.T, 0.999)}
        parameters = inspect.signature(schedule).parameters.values()
        for parameter in parameters:
            if parameter.default is parameter.empty and parameter.name not in given:
                raise ValueError(f"schedule must not need {parameter.name}, which a run does not set, got {self.schedule!r}")
        return Diffusion(schedule(**{p.name: given[p.name] for p in parameters if p.name in given}))

    def denoiser(self, net: Any) -> Denoiser:
        """The denoiser of a network of this run, which counts steps from 0 as the paper's does.

        Parameters
        ----------
        net : callable
            The network ``(x_t, t) -> array``.

        Returns
        -------
        Denoiser
            It reads the network's output as `predicts` and `variance` say.

        Raises
        ------
        TypeError
            If `net` is not callable.
        """
        return Denoiser(net, predicts=self.predicts, variance=self.variance, first_t=0)  # type: ignore[arg-type]

    def images(self, data: Any = None, labels: Any = None) -> Images:
        """The run's data, including those that are held out.

        Parameters
        ----------
        data, labels : array, optional
            An array in memory instead of what the field `data` names, and its labels.

        Returns
        -------
        Images
            All images.

        Raises
        ------
        FileNotFoundError, TypeError, ValueError
            If the data are missing or damaged.
        """
        from tinyddpm.training.data.reading import load

        size: Any = self.image_size
        return load(
            self.data if data is None else data, image_size=size, bad_files=self.bad_files, workers=self.workers,
            background=self.background or "black", levels=self.levels, value_range=self.value_range,
            channels=1 if self.grey else 3 if self.rgb else None, labels=self.labels if data is None else labels,
        )  # fmt: skip

    def unet(self, images: Images) -> UNet:
        """A new network for such images.

        Parameters
        ----------
        images : Images
            The images, whose shape and classes it has.

        Returns
        -------
        UNet
            With random weights.

        Raises
        ------
        ValueError
            If the settings do not fit the images.
        """
        return network(self, images)


def refuse_unknown(where: str, names: Iterable[str]) -> None:
    """Raise `LookupError` for a name that is not a setting; its message starts with `where`."""
    known = tuple(field.name for field in dataclasses.fields(TrainConfig))
    for key in names:
        one_of(f"{where}: a setting", key, known)


DEMO = TrainConfig(
    out="demo", steps=1800, T=200, variance="beta_tilde", lr=2e-3, warmup=100, cooldown=540, mults=(1, 2), res_blocks=1,
    attention=(4,), checkpoint_every=250, sample_every=0,
)  # fmt: skip
"""0.7 million parameters on scikit-learn's digits, about 100 seconds on one core."""

HO2020 = TrainConfig(
    data="cifar10", out="cifar10", steps=800_000, batch_size=128, held_out=0.0, lr=2e-4, warmup=5000, ema=0.9999,
    channels=128, mults=(1, 2, 2, 2), attention=(16,), dropout=0.1, flip=True, checkpoint_every=5000,
)  # fmt: skip
"""Ho et al.'s CIFAR-10 run; set `data` to your folder or file."""
