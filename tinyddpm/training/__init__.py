"""Train a `tinyddpm.nn.UNet`: `train` runs a `TrainConfig`, `load_run` loads the result, `load` loads images."""

from tinyddpm.training.checkpoint import CheckpointError
from tinyddpm.training.config import DEMO, HO2020, TrainConfig
from tinyddpm.training.data.images import Images
from tinyddpm.training.data.pixels import image_grid, save_png, to_levels, to_uint8
from tinyddpm.training.data.reading import load
from tinyddpm.training.presets import preset
from tinyddpm.training.run import Run, load_run
from tinyddpm.training.train import Interrupted, train

__all__ = [
    "DEMO",
    "HO2020",
    "CheckpointError",
    "Images",
    "Interrupted",
    "Run",
    "TrainConfig",
    "image_grid",
    "load",
    "load_run",
    "preset",
    "save_png",
    "to_levels",
    "to_uint8",
    "train",
]
