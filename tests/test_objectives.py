"""The objectives' benchmark: its data, its table, what it finishes and what it keeps, and its verdicts."""

from __future__ import annotations

import gzip
import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinyddpm.cli import main

pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")

from runs import idx  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, list[str]]:
    """The benchmark at a size of seconds, on digits enlarged to 14x14."""
    module = script("objectives")
    digits = training.load("digits")
    pixels = np.pad(digits.pixels[:, 0] * 15, ((0, 0), (3, 3), (3, 3)))
    (tmp_path / "data").mkdir()
    for name, part in (("train", slice(0, 400)), ("test", slice(400, 500))):
        np.savez(tmp_path / "data" / f"{name}.npz", images=pixels[part], labels=digits.labels[part])
    settings = {**module.SIZES["smoke"].settings, "steps": 3, "T": 4, "channels": 4}
    monkeypatch.setitem(module.SIZES, "smoke", module.Size(settings, 6, 24))
    folders = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs")]
    return module, ["--smoke", "-q", "--device", "cpu", *folders]


def test_the_table_the_claims_and_the_picture(
    tiny: tuple[Any, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    module, argv = tiny
    files = [word for kind in ("json", "md", "png") for word in (f"--{kind}", str(tmp_path / f"o.{kind}"))]
    files = [{"--md": "--markdown", "--png": "--plot"}.get(word, word) for word in files]
    only = ["eps, L_simple", "mu, L, learned variance", "eps, L_hybrid, learned range"]
    module.main([*argv, "--only", *only, *files])
    found = json.loads((tmp_path / "o.json").read_text())
    assert [row["name"] for row in found["rows"]] == [
        "eps, L_simple", "eps, L_hybrid, learned range", "mu, L, learned variance", "(training images)"
    ]  # fmt: skip
    for row in found["rows"][:-1]:
        assert set(module.LABELS) < set(row)
        assert all(row[name]["error"] >= 0 for name in module.LABELS)
    claimed = {(c["measure"], c["less"], c["more"]) for c in found["claims"]}
    assert ("frechet", "eps, L_simple", "mu, L, learned variance") in claimed
    assert ("bits", "eps, L_hybrid, learned range", "eps, L_simple") in claimed
    assert (tmp_path / "o.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "| 3.17 " in shown
    assert "| 23.69 " in shown
    assert (tmp_path / "o.md").read_text().endswith(shown.rstrip("\n") + "\n")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("done already")

    for name in ("train", "train_classifier", "score", "draw"):
        monkeypatch.setattr(module, name, refuse)
    module.main([*argv, "--only", *only, "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_digits_are_scored_on_those_held_out(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row with a schedule of its own; 180 of the 1797 digits are never trained on, and no Fashion-MNIST is needed."""
    module = script("objectives")
    monkeypatch.setattr(script("fashion"), "SOURCE", tmp_path / "missing")
    settings = {**module.SIZES["digits"].settings, "steps": 3, "T": 4, "channels": 4}
    monkeypatch.setitem(module.SIZES, "digits", module.Size(settings, 500, 24, 8))
    argv = ["--data", "digits", "--runs", str(tmp_path), "-q", "--device", "cpu", "--only", "eps, L_simple, cosine"]
    module.main(argv)
    assert "8x8 pixels, 180 images scored, 24 samples beside 1797 images" in capsys.readouterr().out
    state = json.loads((tmp_path / "eps-L_simple-cosine/last/state.json").read_text())
    assert (state["config"]["schedule"], state["config"]["held_out"]) == ("cosine", 0.1)
    assert len(np.load(tmp_path / "eps-L_simple-cosine/bits-500.npy")) == 180
    images = training.Images(np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1), levels=17)
    assert module.shown(images)[:, 0, 0, 0].tolist() == [round(255 * k / 16) for k in range(14)]  # levels of the digits
    with pytest.raises(ValueError, match="--smoke is a size for Fashion-MNIST"):
        module.main([*argv, "--smoke"])


def test_a_training_that_fails_is_a_row(
    tiny: tuple[Any, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, argv = tiny

    def train(config: Any, progress: bool) -> None:
        raise ValueError("loss: nan at step 2; a smaller lr may help")

    monkeypatch.setattr(module, "train", train)
    module.main([*argv, "--only", "mu, L_simple", "--json", str(tmp_path / "o.json")])
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "mu, L_simple: loss: nan at step 2" in shown
    assert json.loads((tmp_path / "o.json").read_text())["rows"][0]["failed"].startswith("loss: nan")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--only", "score, L"], "score, L"), (["--smoke", "--full"], "not allowed"), (["--smoke"], "dataset-fashion-mnist")],
)
def test_bad_input_is_one_line(
    script: Callable[[str], Any],
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    module = script("objectives")
    monkeypatch.setattr(script("fashion"), "SOURCE", tmp_path / "missing")
    assert script("_report").run(module.main, ["-q", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_verdict_needs_twice_the_error(script: Callable[[str], Any]) -> None:
    """Bits image by image, so that what the images have in common falls out; distances by their own errors."""
    module = script("objectives")
    each = np.random.default_rng(0).normal(3, 2, 100)

    def row(name: str, bits: Any, frechet: float = 0.0) -> Any:
        return module.Row(name, {"frechet": module.Estimate(frechet, 0.3)}, bits, np.zeros((0, 1, 1, 1), np.uint8))

    less, more = row("a", each, 1.0), row("b", each + 0.1 + 0.01 * each[::-1], 2.0)
    assert module.verdict("bits", less, more)["verdict"] == "holds"
    assert module.verdict("bits", more, less)["verdict"] == "does not hold"
    assert module.verdict("bits", less, more)["difference"] == pytest.approx(0.13, abs=0.01)
    assert module.verdict("frechet", less, more) == {
        "measure": "frechet", "less": "a", "more": "b", "difference": 1.0, "error": pytest.approx(0.3 * 2**0.5),
        "verdict": "holds",
    }  # fmt: skip
    assert module.verdict("frechet", less, row("c", each, 1.5))["verdict"] == "undecided"
    failed = module.Row("d", {}, np.zeros(0), np.zeros((0, 1, 1, 1), np.uint8), "loss: nan")
    assert "failed" in module.verdict("bits", less, failed)["verdict"]


def test_every_claim_is_of_rows_that_are_there(script: Callable[[str], Any]) -> None:
    module = script("objectives")
    names = [objective.name for objective in module.OBJECTIVES]
    assert len({objective.folder for objective in module.OBJECTIVES}) == len(names)
    assert {name for _, *pair in module.CLAIMS for name in pair} <= set(names)
    assert {measure for measure, *_ in module.CLAIMS} <= set(module.LABELS)
    for objective in module.OBJECTIVES:  # each is a run that a config accepts
        for size in module.SIZES.values():
            training.TrainConfig(
                predicts=objective.predicts,
                objective=objective.objective,
                variance=objective.variance,
                schedule=objective.schedule,
                **size.settings,
            )


# The data.


def test_halving_rounds_each_mean_to_the_nearest(script: Callable[[str], Any]) -> None:
    """Truncation would darken a set by 3/8 of a level on average; rounding .5 up would brighten it by 1/8."""
    images = np.random.default_rng(0).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    found = script("fashion").halved(images)
    assert found.dtype == np.uint8
    means = images.reshape(400, 14, 2, 14, 2).mean(axis=(2, 4))
    assert found.ravel().tolist() == [round(mean) for mean in means.ravel().tolist()]  # Python's round: ties to even
    assert abs(found.mean() - images.mean()) < 0.01  # the rounding of 78 400 pixels: 0.28 / 280 = 0.001


@pytest.mark.parametrize("side", [14, 28])
def test_the_files_are_made_from_idx_and_kept(
    script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], side: int
) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8), np.array([0, 9, 4], np.uint8)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    fashion, out = script("fashion"), tmp_path / "out"
    fashion.main(["--source", str(tmp_path), "--out", str(out), "--side", str(side)])
    loaded = training.load(out / "train.npz")
    np.testing.assert_array_equal(loaded.pixels[:, 0], images if side == 28 else fashion.halved(images))
    np.testing.assert_array_equal(loaded.labels, labels)
    assert (loaded.classes, loaded.class_names[8:]) == (10, ("bag", "ankle boot"))
    assert capsys.readouterr().out.split() == [str(out / "train.npz"), str(out / "test.npz")]
    before = (out / "test.npz").stat().st_mtime_ns
    fashion.main(["--source", str(tmp_path / "nowhere"), "--out", str(out)])
    assert (out / "test.npz").stat().st_mtime_ns == before


def test_a_bag_is_drawn_by_its_name(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fashion-MNIST at 28x28 from its idx files to `sample --label bag`, with images of noise."""
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        for name, values in (("images-idx3", rng.integers(0, 256, (30, 28, 28))), ("labels-idx1", np.arange(30) % 10)):
            (tmp_path / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(values.astype(np.uint8))))
    monkeypatch.chdir(tmp_path)
    script("fashion").main(["--source", str(tmp_path), "--side", "28"])
    small = "--steps 1 --T 20 --channels 8 --batch-size 4 --res-blocks 1 --attention 7"
    assert main(f"train --data data/fashion28/train.npz --out run --classes --held-out 0 {small}".split()) == 0
    assert (
        "10 classes: t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot" in capsys.readouterr().err
    )
    draw = "sample --model run -n 2 --steps 2 --guidance 2 -q --out"
    assert main([*draw.split(), "a.npz", "--label", "bag,ankle boot"]) == 0
    assert main([*draw.split(), "b.npz", "--label", "8,9"]) == 0
    one, two = (np.load(f"{name}.npz") for name in "ab")
    np.testing.assert_array_equal(one["images"], two["images"])
    assert one["labels"].tolist() == [8, 9]
    assert main(["evaluate", "--model", "run", "--data", "data/fashion28/test.npz", "--limit", "2", "-q"]) == 0
    assert "images: 2" in capsys.readouterr().out
    assert main([*draw.split(), "c.npz", "--label", "hat"]) == 2
    assert "label must be one or several of t-shirt, trouser" in capsys.readouterr().err


def test_emoji_lie_on_a_white_square(script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glyph twice as wide as high, half of it clear: red beside white, between white bands. A missing font is named."""
    fonts, image = pytest.importorskip("fontTools.ttLib"), pytest.importorskip("PIL.Image")
    glyph = image.new("RGBA", (64, 32), (255, 0, 0, 255))
    glyph.paste((0, 0, 0, 0), (32, 0, 64, 32))
    glyph.save(stream := io.BytesIO(), "PNG")
    table = SimpleNamespace(strikeData=[{"one": SimpleNamespace(imageData=stream.getvalue())}])
    monkeypatch.setattr(fonts, "TTFont", lambda source: {"CBDT": table})
    (tmp_path / "font.ttf").touch()
    script("emoji").main(["--source", str(tmp_path / "font.ttf"), "--out", str(tmp_path / "out"), "--side", "32"])
    found = np.asarray(image.open(tmp_path / "out" / "one.png"))
    assert found.shape == (32, 32, 3)
    assert found[16, 8].tolist() == [255, 0, 0]
    assert (found[[2, 16, 30], [8, 24, 8]] == 255).all()
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        script("emoji").prepare(tmp_path / "out", source=tmp_path / "missing.ttf")


@pytest.mark.parametrize("name", ["fashion14", "emoji"])
def test_the_example_config_is_one(name: str) -> None:
    """The models' settings are accepted, and name the files that the scripts write."""
    given = tomllib.loads((ROOT / "examples" / f"{name}.toml").read_text())
    config = training.TrainConfig.from_dict(given)
    assert config.data == {"fashion14": "data/fashion14/train.npz", "emoji": "data/emoji"}[name]
    assert config.held_out == {"fashion14": 0.0, "emoji": 0.1}[name]
