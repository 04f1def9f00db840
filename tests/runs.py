"""Training runs so small that tests can afford dozens of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyddpm.training import Images, TrainConfig
from tinyddpm.training.trainer import Trainer
from tinyddpm.training.world import World

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "steps": 12, "batch_size": 8, "channels": 4, "mults": (1, 2), "res_blocks": 1, "attention": (4,), "dropout": 0.2,
    "T": 50, "lr": 1e-3, "warmup": 5, "checkpoint_every": 5, "device": "cpu",
}  # fmt: skip


def config(out: Path | str = "unused", **options: Any) -> TrainConfig:
    return TrainConfig.from_dict({**SETTINGS, "out": str(out), **options})


def pictures(n: int = 20, shape: tuple[int, int, int] = (1, 8, 8)) -> Images:
    """Random ones, with labels 0, 1, 2, 0, 1, ..."""
    return Images(np.random.RandomState(0).randint(0, 17, (n, *shape)).astype(np.uint8), 17, np.arange(n) % 3)


def noise(*shape: int) -> Any:
    """Random pixels."""
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


def encoded(picture: Any, form: str = "PNG", **options: Any) -> bytes:
    """The content of an image file, of an array or a Pillow image."""
    from PIL import Image

    stream = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(stream, form, **options)
    return stream.getvalue()


def idx(values: Any, code: int = 8) -> bytes:
    """The content of an idx file; `code` is the type of its numbers."""
    array = np.asarray(values)
    return bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def folder(path: Path, pictures: Any) -> Path:
    """A folder of PNGs: of a dict by their names, of an array as 000.png, 001.png, ..."""
    for name, picture in (
        pictures if isinstance(pictures, dict) else {f"{i:03d}.png": p for i, p in enumerate(pictures)}
    ).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encoded(picture))
    return path


class Part(World):
    """One of several processes, of which the others are not there."""

    def sum(self, values: Any) -> Any:
        return values


def trainer(images: Images | None = None, rank: int = 0, size: int = 1, **options: Any) -> Trainer:
    made = Trainer(config(**options), images or pictures(), World(0, 1, CPU))
    made.world = made.batches.world = Part(rank, size, CPU)
    return made


def log(out: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    clock = ("time", "second", "per_s")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not any(word in k for word in clock)} for line in lines]


def tensors(out: Path) -> dict[str, bytes]:
    """The last checkpoint's tensors, as their files hold them."""
    return {file.name: file.read_bytes() for file in (out / "last").glob("*.safetensors")}


def same(one: Path, two: Path) -> bool:
    """Whether two runs ended with the same bits."""
    return tensors(one) == tensors(two) and log(one) == log(two)
