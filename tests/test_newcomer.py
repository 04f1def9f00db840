"""A newcomer's way: docs/tutorials/train.md prints what it shows, and all commands follow each other on a folder."""

from __future__ import annotations

import doctest
import json
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest

from tinyddpm.cli import main

PAGE = pages.ROOT / "docs/tutorials/train.md"


def transcript(text: str) -> Iterator[tuple[str, str]]:
    """Each command after a prompt, and what it prints, with "..." for what differs between machines."""
    command, printed = "", ""
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:].strip(), ""
        else:
            printed += line
    if command:
        yield command, printed


def test_the_page_is_a_transcript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for library in ("torch", "diffusers", "PIL", "matplotlib"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tinyddpm"])
    matches = doctest.OutputChecker().check_output
    namespace: dict[str, object] = {}
    walked = []
    for block in pages.blocks(PAGE.read_text(encoding="utf-8"), "console", "python"):
        if block.language == "python":
            pages.run(block, PAGE, namespace)
            continue
        for command, expected in transcript(block.text):
            walked.append(command)
            capfd.readouterr()
            assert main(shlex.split(command)[1:]) == 0, capfd.readouterr().err
            printed = capfd.readouterr().out
            assert matches(expected, printed, doctest.ELLIPSIS), f"{PAGE}:{block.line}: {command}\n{printed}"
    assert [command.split()[1] for command in walked] == ["train", "train", "evaluate", "sample", "sample", "plot"]
    assert len(list(tmp_path.glob("samples/*.png"))) == 8
    assert all((tmp_path / made).stat().st_size > 0 for made in ("grid.png", "loss.png", "pipeline/model_index.json"))


def test_a_person_with_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Train, look at a picture, press Ctrl-C, go on, score, calibrate, draw, edit: each command as the one before proposed it."""
    for library in ("torch", "PIL"):
        pytest.importorskip(library)
    from PIL import Image

    from tinyddpm.training.trainer import Trainer

    step = Trainer.step

    def pressed(self: Any, number: int) -> Any:
        if number == 5 and self.start == 0:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    def tinyddpm(command: str, expected: int = 0) -> tuple[str, str]:
        assert main(shlex.split(command)) == expected, capfd.readouterr().err
        return capfd.readouterr()

    monkeypatch.setattr(Trainer, "step", pressed)
    monkeypatch.setattr(sys, "argv", ["tinyddpm"])
    monkeypatch.chdir(tmp_path)
    for k, pixels in enumerate(np.random.RandomState(0).randint(0, 256, (30, 8, 8, 3), np.uint8)):
        file = Path("photos", ("cat", "dog")[k % 2], f"{k}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    Path("photos/notes.txt").touch()
    _, said = tinyddpm(
        "train --data photos --classes --out run --steps 8 --T 20 --channels 8 --mults 1 --batch-size 4 --sample-every 3 "
        "--samples 16",
        130,
    )
    for line in (
        "images: 27 of 3x8x8, values 0..255 on 256 levels (3 more held out), 2 classes: cat, dog",
        "images: ignored 1 .txt",
        "samples: run/samples/step-00000003.png (16 images, ",
        "finishing step 5, then saving; again to stop now",
        "step 5 is saved; go on with: ",
    ):
        assert line in said
    with Image.open("run/samples/step-00000003.png") as grid:
        assert grid.size == (8 * 66 + 2, 2 * 66 + 2)
    proposed = said.rpartition("go on with: ")[2].strip()
    out, said = tinyddpm(proposed.partition("tinyddpm ")[2])
    assert "steps 6 to 8" in said
    assert [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()] == list(range(1, 9))
    draw = next(line for line in out.splitlines() if line.startswith("samples:")).partition("tinyddpm ")[2]
    tinyddpm(draw)
    assert Path("run/samples.png").exists()
    out, said = tinyddpm("evaluate --model run --data photos/")
    assert "images: 3\n" in out
    assert "3 images of photos/ that the run held out; 27 that it was trained on are left out" in said
    out, _ = tinyddpm("calibrate --model run")
    assert "27 images of photos, none held out" in out
    assert "calls: 5\n" in tinyddpm("evaluate --model run --data photos --steps 5")[0]
    tinyddpm("sample --model run --out cats.png --label cat --steps 5 --plan best -n 4")
    tinyddpm("edit image-to-image photos/cat/0.png --model run --out other.png --strength 0.5 --steps 4")
    with Image.open("other.png") as edited:
        assert edited.size == (8, 8)
