"""The Frechet Inception distance (FID), computed by torch-fidelity if it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tinyddpm.training.data.pixels import to_uint8

if TYPE_CHECKING:
    from tinyddpm.training.data.images import Images

__all__ = ["fid", "measure"]


def measure() -> Any:
    """torch-fidelity's ``calculate_metrics``; `ValueError` if it is not installed."""
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        raise ValueError(f"fid: torch-fidelity is needed; pip install 'tinyddpm[fidelity]' brings it ({error})") from None
    return calculate_metrics


def fid(samples: Images, real: Images, device: str) -> float:
    """The Frechet distance of two sets in the features of Inception-v3 [Heusel et al. 2017].

    torch-fidelity gets the images as 8-bit RGB; grey images are repeated over the channels. It downloads its weights once.

    Parameters
    ----------
    samples, real : Images
        The two sets, of 1 or 3 channels.
    device : str
        Torch's name of the device.

    Returns
    -------
    float
        The distance.

    Raises
    ------
    ValueError
        If torch-fidelity is not installed, or the images have other channels.
    """
    pair = {"input1": _Pictures(samples), "input2": _Pictures(real)}
    found = measure()(**pair, fid=True, cuda=torch.device(device).type == "cuda", verbose=False)
    return float(found["frechet_inception_distance"])


class _Pictures(Dataset[Tensor]):
    """Images as uint8 tensors (3, height, width)."""

    def __init__(self, images: Images) -> None:
        if images.shape[0] not in (1, 3):
            raise ValueError(f"fid must be images of 1 or 3 channels, got {images.shape[0]}")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> Tensor:
        pixels = to_uint8(self.images.scaled(slice(k, k + 1))[0])
        return torch.from_numpy(np.repeat(pixels, 3 // len(pixels), axis=0))
