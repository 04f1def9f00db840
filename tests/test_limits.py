"""Limits of every file that is opened: what it is, its bytes, its depth, its digits, its parts; a refusal is one line on it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from runs import encoded
from test_hostile import NO_FILE, Damage, content, net, npy, refuses, sparse
from test_images import chunk

from tinyddpm import Denoiser, Diffusion, schedules
from tinyddpm._commands import train as command
from tinyddpm.calibration import Calibration
from tinyddpm.cli import main
from tinyddpm.nn import UNet, load_diffusers, load_model, save_diffusers
from tinyddpm.training import TrainConfig, load, load_run, train

__all__ = ["net"]  # a fixture
VALUES = {
    "400 digits": "9" * 400, "-400 digits": "-" + "9" * 400, "5000 digits": "9" * 5000, "1e999": "1e999",
    "deep": "[" * 50 + "]" * 50, "deeper": "[" * 2000 + "]" * 2000,
}  # fmt: skip
FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]


def configured(settings: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.from_dict(settings)
    except TypeError as error:
        raise ValueError(str(error)) from error


@pytest.mark.parametrize("value", VALUES)
def test_every_key_of_a_config(tmp_path: Path, value: str) -> None:
    file = tmp_path / "a.toml"
    for key in FIELDS:
        file.write_text(f"{key} = {VALUES[value]}\n")
        refuses(lambda: configured(command._read(str(file))), key, "a.toml")


def test_every_field_in_python() -> None:
    for key in FIELDS:
        for value in (10**400, -(10**5000), float("nan"), [[[[0]]]]):
            refuses(partial(configured, {key: value}), key)


# ---- every file, one after the other, is no file at all


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, net: UNet) -> Path:
    """A run with a calibration and samples, a network with its chain, a pipeline, a picture."""
    made = tmp_path_factory.mktemp("made")
    config = TrainConfig(out=str(made / "run"), device="cpu", steps=2, batch_size=4, channels=4, mults=(1,), res_blocks=1, T=4,
                         samples=2, checkpoint_every=1, time_sampler="loss_aware")  # fmt: skip
    train(config, progress=False)
    run = str(made / "run")
    assert main(["calibrate", "--model", run, "--limit", "4", "--quiet"]) == 0
    assert main(["sample", "--model", run, "--out", str(made / "drawn"), "-n", "2", "--quiet"]) == 0
    chain = Diffusion(schedules.linear(4))
    net.save(made / "net", chain, Denoiser(net))
    wide = UNet(8, in_channels=1, channels=32, mults=(1,), res_blocks=1, attention=())
    save_diffusers(made / "pipe", wide, chain, Denoiser(wide, first_t=0))
    (made / "a.toml").write_text(command._as_toml(dataclasses.replace(config, out=str(made / "other"))))
    (made / "a.png").write_bytes(encoded(np.zeros((8, 8), np.uint8)))
    return made


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "files", symlinks=True)
    return tmp_path / "files"


def resumed(files: Path) -> None:
    state = json.loads((files / "run" / "last" / "state.json").read_text())
    settings = {**state["config"], "out": str(files / "run"), "resume": True, "steps": 3}
    train(TrainConfig.from_dict(settings), progress=False)


def commanded(*words: str) -> Callable[[Path], None]:
    """A command; its one line of error as a ValueError."""

    def run(files: Path) -> None:
        import contextlib

        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            code = main([word.replace("FILES", str(files)) for word in (*words, "--quiet")])
        if code == 2:
            raise ValueError(told.getvalue().rstrip("\n"))

    return run


SAMPLE = ("sample", "--model", "FILES/run", "-n", "2", "--out")
EDIT = ("edit", "image-to-image", "FILES/a.png", "--model", "FILES/run", "--out", "FILES/edited.png", "--steps", "2")
READ: dict[str, Callable[[Path], Any]] = {
    "run/log.jsonl": resumed,
    "run/.lock": resumed,
    "run/last/unet.json": lambda files: load_run(files / "run"),
    "run/last/sampler.safetensors": resumed,
    "run/calibration.json": lambda files: Calibration.load(files / "run" / "calibration.json"),
    "net/chain.json": lambda files: load_model(files / "net"),
    "pipe/model_index.json": lambda files: load_diffusers(files / "pipe"),
    "a.toml": commanded("train", "--config", "FILES/a.toml"),
    "a.png": commanded(*EDIT),
    "drawn/samples.json": commanded(*SAMPLE, "FILES/drawn"),
    "drawn/000001.png": commanded(*SAMPLE, "FILES/drawn"),
    "drawn.npz.part": commanded(*SAMPLE, "FILES/drawn.npz"),
}


def writes(what: bytes) -> Damage:
    return content(lambda _: what)


WRONG: dict[str, Damage] = {
    **{name: NO_FILE[name] for name in ("a link to itself", "a device", "a pipe", "a folder")},
    "1 TiB": sparse(2**40, b"{"),
    "binary": writes(b"\xff\xfe\x00\x80" * 300),
    "deep": writes(b'{"a":' * 3000 + b"1" + b"}" * 3000),
    "digits": writes(b'{"step": ' + b"9" * 400 + b"}\n"),
}
HARMLESS = {  # damaged lines of a log go; a lock and a note that is cut are written anew
    ("run/log.jsonl", "binary"), ("run/log.jsonl", "deep"), ("run/log.jsonl", "digits"),
    ("run/log.jsonl", "a link to itself"), ("run/.lock", "binary"),
    ("run/.lock", "deep"), ("run/.lock", "digits"), ("run/.lock", "1 TiB"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name in READ for wrong in WRONG])
def test_every_file(files: Path, name: str, wrong: str) -> None:
    file = files / name
    if name.startswith("run/last"):
        file = file.resolve()
    if not file.exists():
        file.write_bytes(b"")
    WRONG[wrong](file)
    if (name, wrong) in HARMLESS:
        READ[name](files)
    else:
        refuses(lambda: READ[name](files), file.name, "holds pictures that this command did not draw")


def test_chains_are_no_longer_than_those_whose_tables_are_tested(files: Path) -> None:
    file = files / "net" / "chain.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "beta": [1e-4] * 100_001}))
    refuses(lambda: load_model(files / "net"), "chain.json: the number of betas must be in 1..100000, got 100001")


@pytest.mark.parametrize("form", [".webp", ".gif", ".png", ".jpg", ".tiff", ".bmp", ".ppm", ".avif", ".tga"])
def test_pictures_are_no_larger_than_256_mib(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"a{form}"
    sparse(2**40, encoded(np.zeros((8, 8), np.uint8), "PNG"))(file)
    refuses(lambda: load(tmp_path), file.name)


# ---- pictures and arrays that cost more than they show


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + min(width, 64)) * min(height, 64))))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def scans(count: int) -> bytes:
    once = encoded(np.zeros((1024, 1024), np.uint8), "JPEG", progressive=True)
    last = once[once.rindex(b"\xff\xda") : -2]
    return once[:-2] + last * count + once[-2:]


PICTURES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "one pixel wide": ("a.png", lambda: png(1, 80_000_000)),
    "one pixel high": ("a.png", lambda: png(80_000_000, 1)),
    "empty chunks": ("a.png", lambda: png(8, 8, *[chunk(b"teSt", b"")] * 10**5)),
    "empty chunks behind the pixels": ("a.png", lambda: png(8, 8)[:-12] + chunk(b"teSt", b"") * 10**5 + chunk(b"IEND", b"")),
    "repeated scans": ("a.jpg", lambda: scans(2000)),
    "a long comment": ("a.ppm", lambda: b"P6\n#" + b"x" * 10**6 + b"\n8 8 255\n" + bytes(192)),
    "many comments": ("a.pgm", lambda: b"P5\n" + b"#\n" * 10**5 + b"8 8 255\n" + bytes(64)),
    "comments in a GIF": ("a.gif", lambda: b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xfe\x01x\x00" * 10**5),
}
SPARSE: dict[str, tuple[bytes, int]] = {
    "4 GiB in Fortran's order": (npy((2**16, 256, 256)).replace(b"False", b" True"), 2**32),
    "2**28 tiny images": (npy((2**28, 1, 1)), 2**28),
    "2**40 of no pixels": (npy((2**40, 0, 1)), 0),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_of_much_work(tmp_path: Path, case: str) -> None:
    name, make = PICTURES[case]
    (tmp_path / name).write_bytes(make())

    def read() -> None:
        load(tmp_path).scaled(slice(1))

    refuses(read, name)


@pytest.mark.parametrize("case", SPARSE)
def test_arrays_of_much_work(tmp_path: Path, case: str) -> None:
    start, size = SPARSE[case]
    (tmp_path / "a.npy").write_bytes(start)
    os.truncate(tmp_path / "a.npy", len(start) + size)
    refuses(lambda: load(tmp_path / "a.npy"), "a.npy")
