"""Read images: folders, archives and arrays; decode and resize them."""

from tinyddpm.training.data.images import Images
from tinyddpm.training.data.pixels import image_grid, save_png, to_levels, to_uint8
from tinyddpm.training.data.reading import load

__all__ = ["Images", "image_grid", "load", "save_png", "to_levels", "to_uint8"]
