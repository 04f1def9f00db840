"""Targets for fuzzing: each reads bytes and may raise only the errors that its documentation names."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tinyddpm._commands import train as command
from tinyddpm.nn import UNet, weights
from tinyddpm.training import TrainConfig, load
from tinyddpm.training.checkpoint import read_state
from tinyddpm.training.data.pictures import decode, read_header, refusing_oversized

__all__ = ["TARGETS", "Target", "inputs"]

CORPUS = Path(__file__).parent / "corpus"
_FOLDER = Path(tempfile.mkdtemp(prefix="tinyddpm-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


@dataclass(frozen=True)
class Target:
    """`read` accepts bytes or raises one of `errors`; it accepts the `seeds`."""

    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], list[bytes]]

    def __call__(self, data: bytes) -> bool:
        """Return whether the bytes were accepted; errors that are not documented are raised."""
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                self.read(data)
            except self.errors as error:
                if "\n" in str(error):
                    raise AssertionError(f"an error of several lines: {error!r}") from error
                return False
        return True


@contextmanager
def _stored(name: str, data: bytes) -> Iterator[Path]:
    file = _FOLDER / name
    file.write_bytes(data)
    try:
        yield file
    finally:
        file.unlink()


def _config(data: bytes) -> None:
    with _stored("config.toml", data) as file:
        TrainConfig.from_dict(command._read(str(file)))


def _state(data: bytes) -> None:
    with _stored("state.json", data) as file:
        TrainConfig.from_dict(read_state(file.parent)["config"])


_net = UNet(4, in_channels=1, channels=4, mults=(1,), res_blocks=1, attention=())
_EXPECTED = {name: tensor for name, tensor in _net.state_dict().items() if name.startswith("conv_in")}


def _tensors(data: bytes) -> None:
    with _stored("model.safetensors", data) as file:
        for name, tensor in weights.read_tensors(file, _EXPECTED)[0].items():
            if tensor.shape != _EXPECTED[name].shape or not torch.isfinite(tensor).all():
                raise AssertionError(f"{name}: the tensor was not checked")


def _picture(data: bytes) -> None:
    with refusing_oversized():
        header = read_header(io.BytesIO(data), "it")
    if header.height * header.width > 2**20:
        return
    pixels = decode(io.BytesIO(data), "it")
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise AssertionError(f"{pixels.dtype} of {pixels.shape}")


def _data(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with _stored(name, data) as file:
            images = load(file, workers=0)
            if len(images) * np.prod(images.shape) < 2**20 and images.scaled().shape != (len(images), *images.shape):
                raise AssertionError("the pixels do not have the stated shape")

    return read


def _configs() -> list[bytes]:
    return [b'data = "digits"\nsteps = 10\nmults = [1, 2]\nlr = 1e-3\n', b'T = 20\nschedule = "cosine"\nflip = true\n']


def _states() -> list[bytes]:
    state = {"step": 1, "config": {"T": 20}, "files": {}, "shape": [1, 8, 8], "levels": 17}
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    return [json.dumps({**state, "sha256": digest}).encode()]


def _safetensors() -> list[bytes]:
    with _stored("seed", b"") as file:
        file.unlink()
        weights.write_tensors(file, _EXPECTED, {"format": "pt"})
        return [file.read_bytes()]


def _picture_files() -> list[bytes]:
    seeds = []
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        options = {"exif": exif} if form in ("PNG", "JPEG", "TIFF") else {}
        for picture in (grey, grey.convert("RGB"), *([grey.convert("RGBA")] if form in ("PNG", "WEBP") else [])):
            stream = io.BytesIO()
            picture.save(stream, form, **options)
            seeds.append(stream.getvalue())
    return seeds


def _npy() -> list[bytes]:
    stream = io.BytesIO()
    np.save(stream, np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
    return [stream.getvalue()]


def _npz() -> list[bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("images.npy", _npy()[0])
    return [stream.getvalue()]


def _idx() -> list[bytes]:
    plain = b"\0\0\x08\3" + np.array([2, 4, 4], ">u4").tobytes() + bytes(range(32))
    return [plain, gzip.compress(plain, mtime=0)]


def _tar() -> list[bytes]:
    seeds = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            folder = "" if form == tarfile.USTAR_FORMAT else "d" * 101 + "/"  # too long for a member's own header
            for name, content in (("a.png", _picture_files()[0]), ("a.cls", b"3")):
                info = tarfile.TarInfo(folder + name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        seeds.append(stream.getvalue())
    return seeds


TARGETS = {
    "config": Target(_config, (ValueError, TypeError, LookupError), _configs),
    "state": Target(_state, (ValueError, TypeError, LookupError), _states),
    "safetensors": Target(_tensors, (ValueError,), _safetensors),
    "picture": Target(_picture, (ValueError,), _picture_files),
    "npy": Target(_data("a.npy"), (ValueError,), _npy),
    "npz": Target(_data("a.npz"), (ValueError,), _npz),
    "idx": Target(_data("a.idx"), (ValueError,), _idx),
    "tar": Target(_data("a.tar"), (ValueError,), _tar),
}


def inputs(name: str) -> list[bytes]:
    """A target's seeds and the inputs that once reached new code."""
    kept = sorted((CORPUS / name).iterdir()) if (CORPUS / name).is_dir() else []
    return [*TARGETS[name].seeds(), *(file.read_bytes() for file in kept)]
