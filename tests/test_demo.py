"""The demo with small settings, which take seconds: what it prints and the files that it writes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyddpm.cli import main

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")

SMALL: dict[str, Any] = {"steps": 4, "T": 12, "channels": 4, "batch_size": 8, "cooldown": 0, "warmup": 0}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """The demo's folder and the lines printed by two runs in it."""
    from contextlib import redirect_stdout
    from io import StringIO

    from tinyddpm._commands import demo

    out = tmp_path_factory.mktemp("demo") / "demo"
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "DEMO", dataclasses.replace(training.DEMO, **SMALL))
        for _ in range(2):
            text = StringIO()
            with redirect_stdout(text):
                assert main(["demo", "--out", str(out), "--quiet"]) == 0
            lines.append(text.getvalue().splitlines())
    return out, lines[0], lines[1]


def test_it_prints_the_documented_lines(shown: tuple[Path, list[str], list[str]]) -> None:
    out, first, _ = shown
    assert sum(bool(re.fullmatch(r"bits/dim: \d+\.\d+ \+- \d+\.\d+", line)) for line in first) == 1
    assert "levels: 17" in first
    assert any(line.startswith("images/s: ") for line in first)
    assert any(line.endswith(f" {out / 'samples.png'}") for line in first)
    assert f"sample --model {out}" in first[-1]


def test_a_second_run_does_not_train_and_prints_the_same(shown: tuple[Path, list[str], list[str]]) -> None:
    out, first, second = shown

    def timeless(lines: list[str]) -> list[str]:
        return [line for line in lines if not line.startswith("images/s")]

    assert timeless(first) == timeless(second)
    assert len((out / "log.jsonl").read_text().splitlines()) == SMALL["steps"]


def test_samples_are_whole_pixels_in_eight_columns(shown: tuple[Path, list[str], list[str]]) -> None:
    from tinyddpm._commands.demo import GAP, SAMPLES, SCALE

    out, *_ = shown
    picture = np.asarray(Image.open(out / "samples.png"))
    side, gap = 8 * SCALE, GAP
    rows = SAMPLES // 8
    assert picture.shape == (rows * (side + gap) + gap, 8 * (side + gap) + gap)
    run = training.load_run(out)
    drawn = training.to_uint8(run.diffusion.sample(run.denoiser, (SAMPLES, 1, 8, 8), backend="torch").numpy())
    inside = np.zeros(picture.shape, bool)
    for k, image in enumerate(drawn):
        top, left = (gap + n * (side + gap) for n in divmod(k, 8))
        tile = picture[top : top + side, left : left + side]
        # The demo computes on one thread: sums in the network may round another way.
        np.testing.assert_allclose(tile[::SCALE, ::SCALE].astype(int), image[0], atol=1)
        np.testing.assert_array_equal(tile, tile[::SCALE, ::SCALE].repeat(SCALE, 0).repeat(SCALE, 1))
        inside[top : top + side, left : left + side] = True
    assert np.all(picture[~inside] == 255)


@pytest.mark.parametrize("name", ["denoising", "forward", "loss"])
def test_every_picture_is_written(shown: tuple[Path, list[str], list[str]], name: str) -> None:
    with Image.open(shown[0] / f"{name}.png") as picture:
        assert min(picture.size) > 300


def test_json_has_the_printed_values(
    shown: tuple[Path, list[str], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinyddpm._commands import demo

    out, lines, _ = shown
    monkeypatch.setattr(demo, "DEMO", dataclasses.replace(training.DEMO, **SMALL))
    assert main(["demo", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert "ddpm: 12/12" in printed.err  # progress goes to standard error
    bits = told["bits_per_dim"]
    assert f"bits/dim: {bits['mean']:.3f} +- {bits['error']:.3f}" in lines
    assert (told["levels"], told["samples"], told["model"]) == (17, str(out / "samples.png"), str(out))
    assert all(Path(picture).exists() for picture in told["pictures"])
    assert set(told["images_per_s"]) == {"trained", "drawn"}


def test_the_printed_command_runs(shown: tuple[Path, list[str], list[str]]) -> None:
    out, first, _ = shown
    words = first[-1].partition("-m tinyddpm ")[2].split()
    assert main([*words, "-n", "4", "--quiet"]) == 0
    assert (out / "more.png").exists()


def test_it_runs_on_one_thread_and_restores_the_number() -> None:
    import torch

    from tinyddpm._commands.demo import _one_thread

    own = torch.get_num_threads()
    torch.set_num_threads(2)
    with _one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(own)


def test_nearest_neighbours(script: Callable[[str], Any]) -> None:
    nearest = script("demo_quality").nearest
    points, others = np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 1], [3, 4], [9, 9]])
    np.testing.assert_allclose(nearest(points, others), [1, 0])
    np.testing.assert_allclose(nearest(points, points, same=True), [5, 5])
