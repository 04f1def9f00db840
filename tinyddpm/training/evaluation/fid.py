"""The features of Inception-v3, in which FID and KID are measured, by torch-fidelity if it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyddpm.training.data.images import Images
from tinyddpm.training.data.pixels import to_uint8

__all__ = ["features", "inception"]

_BATCH = 64


def inception(device: str) -> Callable[[torch.Tensor], Any]:
    """Inception-v3 with the weights of the FID's authors, which torch-fidelity downloads once.

    Parameters
    ----------
    device : str
        Torch's name of the device.

    Returns
    -------
    callable
        From images, uint8 (B, 3, height, width), to a tuple of features (B, 2048).

    Raises
    ------
    ValueError
        If torch-fidelity is not installed or the weights cannot be had.
    """
    try:
        from torch_fidelity.utils import create_feature_extractor
    except ImportError as error:
        raise ValueError(f"fid: torch-fidelity is needed; pip install 'tinyddpm[fidelity]' brings it ({error})") from None
    try:
        made: Any = create_feature_extractor("inception-v3-compat", ["2048"], cuda=False, verbose=False)
    except OSError as error:
        raise ValueError(f"fid: the weights of Inception-v3 can't be had: {error}") from None
    return made.to(device)  # type: ignore[no-any-return]


def features(network: Callable[[torch.Tensor], Any], images: Images, device: str) -> NDArray[np.float64]:
    """The features of images, which the network gets as 8-bit RGB; grey ones are repeated over the channels.

    Parameters
    ----------
    network : callable
        As `inception` returns it.
    images : Images
        Images of 1 or 3 channels.
    device : str
        Torch's name of the device.

    Returns
    -------
    float64 array (N, D)
        The features.

    Raises
    ------
    ValueError
        If the images have other channels.
    """
    if (channels := images.shape[0]) not in (1, 3):
        raise ValueError(f"fid must be of images with 1 or 3 channels, got {channels}")
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            pixels = to_uint8(images.scaled(slice(start, start + _BATCH))).repeat(3 // channels, axis=1)
            parts.append(network(torch.from_numpy(pixels).to(device))[0].double().cpu().numpy())
    return np.concatenate(parts)
