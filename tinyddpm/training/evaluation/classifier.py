"""A small classifier, whose features are compared by `distances`."""

from __future__ import annotations

import json
import os

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyddpm._arrays.check import as_int, as_positive_int
from tinyddpm._io.progress import progress_bar
from tinyddpm.nn import weights
from tinyddpm.training.data.images import Images
from tinyddpm.training.evaluation.distances import Estimate

__all__ = ["Classifier", "train_classifier"]

CONFIG, WEIGHTS = "classifier.json", "classifier.safetensors"
FEATURES = 64
_BATCH, _LR = 128, 2e-3


class Classifier(nn.Module):
    """Convolutions that halve the image down to at most 4 pixels a side, then 64 features, then the logits.

    Parameters
    ----------
    shape : (int, int, int)
        One image's (channels, height, width).
    classes : int
        The number of classes.

    Raises
    ------
    TypeError, ValueError
        If an argument is not such a number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = (as_int("shape", n, 1, 2**12) for n in shape)
        self.shape, self.classes = (channels, height, width), as_int("classes", classes, 2, 2**16)
        layers = _layer(channels, 32, 1)
        channels = 32
        while max(height, width) > 4:
            layers += _layer(channels, 64, 2)
            channels, height, width = 64, -(-height // 2), -(-width // 2)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, self.classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("std", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in [-1, 1]."""
        logits: Tensor = self.head(self.body(x))
        return logits

    def features(self, images: Images) -> NDArray[np.float64]:
        """The features (N, 64) of images, standardised by the mean and variance over the training images.

        Parameters
        ----------
        images : Images
            Images of the classifier's shape.

        Returns
        -------
        float64 array (N, 64)
            The features.

        Raises
        ------
        ValueError
            If the images have another shape.
        """
        mean, std = (a.cpu().numpy().astype(np.float64) for a in (self.mean, self.std))
        standard: NDArray[np.float64] = (self._map(self.body, images) - mean) / std
        return standard

    def accuracy(self, images: Images) -> Estimate:
        """The share of labelled images that are classified correctly, with its standard error.

        Parameters
        ----------
        images : Images
            Images of the classifier's shape.

        Returns
        -------
        Estimate
            The share and its error.

        Raises
        ------
        ValueError
            If the images have another shape or no labels.
        """
        labels = _labels(images)
        share = float(np.mean(self._map(self, images).argmax(axis=1) == labels))
        return Estimate(share, float(np.sqrt(share * (1 - share) / len(labels))))

    def save(self, dir: str | os.PathLike[str]) -> None:
        """Write the classifier to the folder `dir`, whole or not at all; an earlier one there is replaced.

        Parameters
        ----------
        dir : str or path
            The folder to write.

        Raises
        ------
        OSError, ValueError
            If the folder cannot be written or holds other files.
        """
        with weights.new_folder(weights.as_path("dir", dir), replaces=frozenset({CONFIG, WEIGHTS})) as folder:
            digest = weights.write_tensors(folder / WEIGHTS, self.state_dict())
            weights.write_json(folder / CONFIG, {"shape": self.shape, "classes": self.classes, "sha256": digest})

    @classmethod
    def load(cls, dir: str | os.PathLike[str]) -> Classifier:
        """Load the classifier that `save` wrote.

        Parameters
        ----------
        dir : str or path
            The folder of `save`.

        Returns
        -------
        Classifier
            In eval mode.

        Raises
        ------
        FileNotFoundError, ValueError
            If a file is missing or damaged.
        """
        folder = weights.as_path("dir", dir)
        stored = weights.read_json(folder / CONFIG)
        digest = stored.pop("sha256", None)
        shape = stored.get("shape")
        if stored.keys() != {"shape", "classes"} or not isinstance(shape, list) or len(shape) != 3:
            raise ValueError(f"{folder / CONFIG}: must have the keys shape, classes and sha256, got {json.dumps(stored)}")
        try:
            with torch.device("meta"):
                net = cls((shape[0], shape[1], shape[2]), stored["classes"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG}: {error}") from None
        tensors, _ = weights.read_tensors(folder / WEIGHTS, net.state_dict(), str(digest))
        net.load_state_dict(tensors, assign=True)
        return net.eval().requires_grad_(False)

    def _map(self, function: nn.Module, images: Images) -> NDArray[np.float32]:
        if images.shape != self.shape:
            raise ValueError(f"images must have the classifier's shape {self.shape}, got {images.shape}")
        device = self.mean.device
        with torch.no_grad():
            parts = [
                function(torch.from_numpy(images.scaled(slice(k, k + 500))).to(device)).cpu() for k in range(0, len(images), 500)
            ]
        return torch.cat(parts).numpy()


def train_classifier(
    images: Images, *, epochs: int = 3, seed: int = 0, device: str | None = None, progress: bool = False
) -> Classifier:
    """Train a classifier by Adam with a learning rate that falls linearly to zero; a seed repeats it on the same machine.

    Parameters
    ----------
    images : Images
        Labelled images.
    epochs : int
        Passes over the images. Default: 3.
    seed : int
        Seed of the weights and the order. Default: 0.
    device : str, optional
        Torch's name of the device. Default: "cpu".
    progress : bool
        Whether to show a progress bar. Default: False.

    Returns
    -------
    Classifier
        In eval mode.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong or there are no labels.
    """
    labels = _labels(images)
    rng = np.random.default_rng(as_int("seed", seed, 0, 2**64 - 1))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        net = Classifier(images.shape, int(labels.max()) + 1).to(device or "cpu")
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
    order = np.concatenate([rng.permutation(len(images)) for _ in range(as_positive_int("epochs", epochs))])
    starts = range(0, len(order), _BATCH)
    for start in progress_bar(starts, len(starts), enabled=progress, label="classifier"):
        rows = order[start : start + _BATCH]
        x, y = (torch.from_numpy(a).to(net.mean.device) for a in (images.scaled(rows), labels[rows]))
        optimizer.param_groups[0]["lr"] = _LR * (1 - start / len(order))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    features = torch.from_numpy(net.features(images))
    std = features.std(dim=0)
    net.mean.copy_(features.mean(dim=0))
    net.std.copy_(torch.where(std > 1e-3, std, 1))  # 1 for a unit that is always off
    return net.eval().requires_grad_(False)


def _layer(width_in: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width, 3, stride, padding=1), nn.GroupNorm(8, width), nn.ReLU()]


def _labels(images: Images) -> NDArray[np.int64]:
    if images.labels is None or not len(images):
        raise ValueError("data must have labels to train a classifier on; evaluate --fid compares without one")
    return images.labels
