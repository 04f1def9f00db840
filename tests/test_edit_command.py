"""``tinyddpm edit``: pictures in, pictures out, and the results of `tinyddpm.edit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from networks import small  # noqa: E402

from tinyddpm import Denoiser, Diffusion, edit, schedules  # noqa: E402
from tinyddpm.cli import main  # noqa: E402
from tinyddpm.nn import load_model  # noqa: E402

D = Diffusion(schedules.cosine(8))
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey 8x8 model, a colour 8x16 one with classes, and pictures of several kinds."""
    folder = tmp_path_factory.mktemp("edit")
    models: dict[str, dict[str, Any]] = {"grey": {}, "colour": {"in_channels": 3, "image_size": (8, 16), "classes": 3}}
    for name, options in models.items():
        net = small(**options)
        net.save(folder / name, D, Denoiser(net, first_t=0))
    for name, shape in (("a", (8, 8)), ("b", (8, 8)), ("wide", (20, 40, 3)), ("tall", (40, 20, 3))):
        Image.fromarray(RANDOM.integers(0, 256, shape, np.uint8)).save(folder / f"{name}.png")
    hole = np.zeros((8, 8), np.uint8)
    hole[2:5, 3:7] = 255
    Image.fromarray(hole).save(folder / "hole.png")
    Image.fromarray(hole.repeat(5, 0)[:, :4].repeat(5, 1)).save(folder / "tallhole.png")
    Image.fromarray(0 * hole).save(folder / "black.png")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def run(words: str) -> int:
    return main(["edit", *words.split()])


def pixels(file: Path) -> Any:
    return np.asarray(Image.open(file))


def scaled(place: Path, name: str) -> Any:
    return torch.from_numpy((pixels(place / name) / 127.5 - 1).astype(np.float32))[None, None]


def levels(x: Any) -> Any:
    return np.rint((x.numpy().clip(-1, 1) + 1) * 127.5).astype(int)


def denoiser(place: Path) -> Denoiser:
    return load_model(place / "grey")[2]


def test_inpaint_keeps_what_is_black_and_fills_what_is_white(place: Path, tmp_path: Path) -> None:
    words = f"inpaint --model grey --image a.png --mask hole.png --steps 4 -q --seed 3 --out {tmp_path}"
    assert run(f"{words}/x.png") == 0
    filled, hole = pixels(tmp_path / "x.png"), pixels(place / "hole.png") > 0
    assert filled.shape == (8, 8)
    np.testing.assert_array_equal(filled[~hole], pixels(place / "a.png")[~hole])
    keep = torch.from_numpy(~hole)[None, None]
    own = levels(edit.inpaint(D, denoiser(place), scaled(place, "a.png"), keep, steps=4, seed=3))
    np.testing.assert_allclose(filled, own[0, 0], atol=1)
    # A folder has a picture for each noise, whatever the batches.
    for size in (2, 8):
        assert run(f"{words}/f{size} -n 3 --batch-size {size}") == 0
    names = [f"{k:06d}.png" for k in range(3)]
    assert sorted(p.name for p in (tmp_path / "f2").iterdir()) == names
    for name in names:
        np.testing.assert_allclose(pixels(tmp_path / "f2" / name).astype(int), pixels(tmp_path / "f8" / name), atol=1)
    np.testing.assert_array_equal(pixels(tmp_path / "f8" / names[0]), filled)


@pytest.mark.parametrize(("strength", "first", "later"), [(0.5, 4, (2, 0)), (1.0, 8, (5, 2, 0)), (0.01, 1, (0,))])
def test_the_others_are_the_librarys(
    place: Path, tmp_path: Path, strength: float, first: int, later: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Three even steps of eight are 8, 5, 2 or so, 0; the part below strength * T is used."""
    words = f"--model grey --steps 3 --strength {strength} --sampler ddpm --seed 1 -n 2 --json -q --out {tmp_path}"
    whole = D.timesteps(3, "even")
    plan = (first, *(s for s in whole if s < first))
    assert len(plan) == 1 + len(later)
    assert run(f"image-to-image a.png {words}/r") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "r"), "what": "image-to-image", "images": 2, "seed": 1}
    x0 = scaled(place, "a.png").repeat(2, 1, 1, 1)
    options: dict[str, Any] = {"timesteps": plan, "sampler": "ddpm", "seed": 1}
    own = levels(edit.image_to_image(D, denoiser(place), x0, first, **options))
    for k in range(2):
        np.testing.assert_allclose(pixels(tmp_path / "r" / f"{k:06d}.png"), own[k, 0], atol=1)
    assert run(f"interpolate a.png b.png --count 3 {words}/i.png") == 0
    b = scaled(place, "b.png").repeat(2, 1, 1, 1)
    own = levels(edit.interpolate(D, denoiser(place), x0, b, [0.0, 0.5, 1.0], **options))
    grid = pixels(tmp_path / "i.png")
    assert grid.shape == (2 * 10 + 2, 3 * 10 + 2)
    for row in range(2):
        for column in range(3):
            tile = grid[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column]
            np.testing.assert_allclose(tile, own[column, row, 0], atol=1)


def test_any_size_and_colour_is_fitted_and_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.png"
    for picture, model, said in (
        ("wide.png", "colour", "image: wide.png: resized from 40x20 to 16x8"),
        ("tall.png", "colour", "image: tall.png: cropped and resized from 20x40 to 16x8"),
        ("tall.png", "grey", "image: tall.png: made grey, cropped and resized from 20x40 to 8x8"),
        ("a.png", "colour", "image: a.png: grey, in three equal channels, cropped and resized from 8x8 to 16x8"),
    ):
        label = "--label 1" if model == "colour" else ""
        assert run(f"image-to-image --model {model} --steps 2 --image {picture} --out {out} {label}") == 0
        captured = capsys.readouterr()
        assert said in captured.err.splitlines()
        assert captured.out == f"{out}\n"
        assert pixels(out).shape == ((8, 16, 3) if model == "colour" else (8, 8))
    assert run(f"inpaint tall.png --mask tallhole.png --model grey --steps 1 --out {out} -q") == 0
    assert capsys.readouterr().err == ""
    assert run(f"image-to-image a.png --model grey --steps 1 --out {out}") == 0
    assert "image:" not in capsys.readouterr().err  # nothing was changed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("paint a.png", "what must be one of inpaint, interpolate, image-to-image"),
        ("interpolate a.png", "interpolate must have two pictures, A and B, got 1"),
        ("image-to-image", "image-to-image must have one picture, X or --image X, got 0"),
        ("image-to-image a.png --image b.png", "must have one picture"),
        ("inpaint a.png", "mask must be given: --mask Y"),
        ("image-to-image a.png --mask hole.png", "mask must be left out for image-to-image"),
        ("inpaint a.png --mask hole.png --strength 0.5", "strength must be left out for inpaint"),
        ("inpaint a.png --mask hole.png --sampler ddim", "sampler must be left out for inpaint"),
        ("inpaint a.png --mask hole.png --count 3", "count must be left out for inpaint, got 3"),
        ("interpolate a.png b.png --resamplings 2", "resamplings must be left out for interpolate, got 2"),
        ("image-to-image a.png --guidance 2", "guidance must be 1 without --label, got 2.0"),
        ("image-to-image a.png --columns 0", "columns must be in 1.."),
        ("inpaint a.png --mask black.png", "mask must have white parts"),
        ("inpaint tall.png --mask hole.png", "mask must have the size of the image, 20x40, got 8x8"),
        ("inpaint a.png --mask gone.png", "mask: gone.png: no such file"),
        ("inpaint a.png --mask hole.png --resamplings 0", "resamplings"),
        ("image-to-image gone.png", "image: gone.png: no such file"),
        ("image-to-image grey/unet.json", "image: grey/unet.json: must be a PNG"),
        ("image-to-image .", "image: .: is not a regular file"),
        ("interpolate a.png gone.png", "B: gone.png: no such file"),
        ("interpolate a.png b.png --count 1", "count must be in 2..1000, got 1"),
        ("image-to-image a.png --strength 1.5", "strength"),
        ("image-to-image a.png --sampler euler", "sampler must be one of"),
        ("image-to-image a.png --steps 9", "steps must be in 1..8, got 9"),
        ("image-to-image a.png --label 0", "label must be None"),
        ("image-to-image a.png -n 0", "n must be"),
        ("image-to-image a.png --columns -1", "columns must be"),
        ("image-to-image a.png --scale 0", "scale must be"),
        ("image-to-image a.png --out x.gif", "out must be a folder or end in .png, got x.gif"),
        ("image-to-image a.png --model nowhere", "there is no such folder"),
        ("image-to-image a.png --size 3", "--size is not an option"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(place: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    first, _, rest = words.partition(" ")
    assert run(f"{first} --model grey --out new.png -q {rest}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinyddpm edit: ")
    assert said in line
    assert sorted(place.rglob("*")) == before
