"""What a user is told of images that were read: what was ignored, and what may be a mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyddpm.training.data.sources import Rows

__all__ = ["check_colour", "dark", "of_folder"]

_DARK = 8  # the part of the levels beyond which a set is not nearly black
_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


def check_colour(background: str) -> None:
    """Raise unless Pillow knows the colour."""
    if not isinstance(background, str):
        raise TypeError(f"background must be a colour's name, got {type(background).__name__}")
    if background != "black":
        from PIL import ImageColor

        try:
            ImageColor.getrgb(background)
        except ValueError:
            raise ValueError(f"background must be a colour such as white or #ff8000, got {background!r}") from None


def dark(pixels: NDArray[Any] | Rows, levels: int) -> list[str]:
    """A warning if the images are nearly black."""
    if not isinstance(pixels, np.ndarray) or (top := int(pixels.max(initial=0))) >= levels // _DARK:
        return []
    remedy = f"--levels {top + 1} spreads 0..{top} from black to white, " if top else ""
    black = f"the largest value is {top}, where {levels - 1} is white"
    return [f"{black}: {remedy}--background white is for drawings on transparent ground"]


def of_folder(ignored: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """What was not read of a folder, and what may not be meant."""
    listing = "; --labels FILE reads classes from it" if any(word in (".csv", ".json") for word in ignored.split(" ")) else ""
    told = [f"ignored {ignored}{listing}"] if ignored else []
    if len(names) > 1 and {name.lower() for name in names} <= _PARTS:
        told.append(f"the folders {', '.join(names)} are taken for classes; to read one of them, name it as the data")
    return tuple(told)
