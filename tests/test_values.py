"""Data of every kind: their range and axes, arrays in memory, signals, grey and colour, lists of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from runs import config, encoded, idx, noise  # noqa: E402

from tinyddpm._commands.runs import held_out, images_for, trained_on  # noqa: E402
from tinyddpm.cli import main  # noqa: E402
from tinyddpm.nn import UNet  # noqa: E402
from tinyddpm.training import load, load_run, train  # noqa: E402
from tinyddpm.training.data import sources  # noqa: E402

TINY: dict[str, Any] = {"steps": 1, "T": 20, "batch_size": 4, "sample_every": 0, "mults": (1,)}


def normal(*shape: int) -> Any:
    return np.random.RandomState(0).standard_normal(shape)


# ---- the range


@pytest.mark.parametrize(
    ("values", "ends", "levels"),
    [
        (np.array([0, 200]), (0, 255), 256),
        (np.array([3, 256]), (0, 65_535), 65_536),
        (np.array([-1, 100]), (-128, 127), 256),
        (np.array([-129, 100]), (-32_768, 32_767), 65_536),
        (np.array([-5, 40_000]), (-5, 40_000), 40_006),
        (np.array([0, 10**12]), (0, 10**12), 65_536),
        (np.array([False, True]), (0, 1), 2),
        (np.array([0.0, 0.5]), (0, 1), 65_536),
        (np.array([-0.5, 0.5]), (-1, 1), 65_536),
        (np.array([-0.5, 1.5]), (-0.5, 1.5), 65_536),
        (np.array([0.0, 1.0]), (0, 1), 65_536),
        (np.array([3.0, 250.0]), (0, 255), 256),
        (np.array([3.0, 250.5]), (3, 250.5), 65_536),
        (np.array([-1.0, 100.0]), (-128, 127), 256),
    ],
)  # fmt: skip
def test_the_rule_for_the_range(values: Any, ends: tuple[float, float], levels: int) -> None:
    images = load(values.reshape(2, 1, 1, 1))
    assert (images.value_range or (0, images.levels - 1), images.levels) == (ends, levels)
    exact = (values - float(ends[0])) / (float(ends[1]) - float(ends[0])) * 2 - 1
    np.testing.assert_allclose(images.scaled().ravel(), exact, atol=1 / (levels - 1) + 1e-6)


@given(arrays.arrays(np.int64, (6, 1, 2, 2), elements=st.integers(-40_000, 25_000)))
def test_integers_are_exact(values: Any) -> None:
    images = load(values, value_range=(-40_000, 25_000))
    assert images.levels == 65_001
    np.testing.assert_array_equal(images.pixels, values + 40_000)


def test_ends_and_levels_that_are_given() -> None:
    floats = np.linspace(0, 1, 16).reshape(4, 1, 2, 2)
    assert load(floats, levels=16).pixels[:].ravel().tolist() == list(range(16))
    assert load(floats, value_range=(-1, 1)).scaled().min() == pytest.approx(0, abs=2e-5)
    for wrong, name in (
        ({"value_range": (0, 0.5)}, r"data: the array: must hold values in 0\.\.0\.5, by --value-range or .*, got 0\.\.1"),
        ({"value_range": (1, 0)}, "value_range must be LOW,HIGH with LOW < HIGH"),
        ({"value_range": 3}, "value_range must be two numbers"),
        ({"levels": 1}, "levels must be in"),
    ):
        with pytest.raises(ValueError, match=f"^{name}"):
            load(floats, **wrong)
    with pytest.raises(ValueError, match="levels must be more than the largest value"):
        load(noise(4, 2, 2), levels=16)
    with pytest.raises(ValueError, match="must hold values that differ"):
        load(np.full((4, 2, 2), 7.5))
    others: dict[str, Any] = {"levels": 17, "value_range": (0, 2), "labels": np.arange(4)}
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"^{name} must be left out for Images"):
            load(load(floats), **{name: value})
    assert load(load(floats), levels=65_536).levels == 65_536
    with pytest.raises(ValueError, match=r"^value_range must be left out"):
        load("digits", value_range=(0, 16))


def test_twelve_bits_draw_a_warning_that_names_the_levels() -> None:
    assert "--levels 4096" in load(np.arange(4096).reshape(256, 4, 4)).notes[0]
    assert load(np.arange(4096).reshape(256, 4, 4), levels=4096).notes == ()


@pytest.mark.parametrize("dtype", ["<i2", ">f8", "f2"])
def test_a_large_array_on_the_disk_is_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    values = (100 * normal(50, 4, 4, 2)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    from tinyddpm.training.data import arrays as module

    monkeypatch.setattr(module, "IN_MEMORY", 0)
    monkeypatch.setattr(module, "_ROWS", 7)
    disk, memory = load(tmp_path / "a.npy", image_size=2), load(values, image_size=2)
    assert not isinstance(disk.pixels, np.ndarray)
    assert (disk.value_range, disk.levels) == (memory.value_range, memory.levels)
    np.testing.assert_array_equal(disk.pixels[:], memory.pixels)


@pytest.mark.parametrize(("code", "dtype"), [(9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_idx_files_of_other_numbers(tmp_path: Path, code: int, dtype: str) -> None:
    values = (40 * normal(6, 4, 4)).astype(dtype)
    (tmp_path / "a.idx").write_bytes(idx(values, code))
    np.testing.assert_array_equal(load(tmp_path / "a.idx").pixels, load(values).pixels)


# ---- the axes


@pytest.mark.parametrize(
    ("shape", "one"),
    [((4, 6), (1, 6, 1)), ((4, 6, 8), (1, 6, 8)), ((4, 5, 8, 8), (5, 8, 8)), ((4, 8, 8, 5), (5, 8, 8)), ((4, 3, 3, 3), (3, 3, 3)),
     ((4, 4, 4, 2), (2, 4, 4)), ((4, 2, 1, 16), (2, 1, 16)), ((4, 13, 16, 16), (13, 16, 16))],
)  # fmt: skip
def test_channels_are_the_shorter_of_the_second_and_the_last_axis(shape: tuple[int, ...], one: tuple[int, int, int]) -> None:
    values = noise(*shape)
    images = load(values)
    assert images.shape == one
    moved = values.transpose(0, 3, 1, 2) if one[0] != shape[1] and len(shape) == 4 else values
    np.testing.assert_array_equal(images.pixels, moved.reshape(4, *one))


# ---- arrays in memory


@pytest.mark.parametrize("kind", ["numpy", "torch", "bfloat16"])
def test_a_run_on_an_array_holds_out_the_same_rows_when_it_is_resumed_and_scored(tmp_path: Path, kind: str) -> None:
    values: Any = normal(20, 8, 8, 5).astype(np.float32)
    values = values if kind == "numpy" else torch.from_numpy(values).requires_grad_()
    values = values.bfloat16() if kind == "bfloat16" else values
    options = {**TINY, "held_out": 0.2, "classes": True, "resume": True}
    train(config(tmp_path / "run", **options), data=values, labels=np.arange(20) % 2, progress=False)
    before = load_run(tmp_path / "run")
    assert (before.shape, before.levels, before.classes) == ((5, 8, 8), 65_536, 2)
    train(config(tmp_path / "run", **{**options, "steps": 2}), data=values, labels=np.arange(20) % 2, progress=False)
    run = load_run(tmp_path / "run")
    assert before.record is not None
    assert run.record is not None
    np.testing.assert_array_equal(run.record.held_out, before.record.held_out)
    host = np.asarray(torch.as_tensor(values).detach().float())
    np.save(tmp_path / "same.npy", host)
    np.testing.assert_array_equal(held_out(run, str(tmp_path / "same.npy")).pixels, load(host).split(0.2)[1].pixels)
    half = {**options, "steps": 3}
    train(config(tmp_path / "run", **half), data=values / 2, labels=np.arange(20) % 2, progress=False)
    assert load_run(tmp_path / "run").config.value_range == run.config.value_range
    np.save(tmp_path / "part.npy", host[:7])  # whose smallest and largest values are others
    assert len(trained_on(run, str(tmp_path / "part.npy"), 99)) == 6


def test_grey_data_go_on_with_a_colour_run_by_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = noise(20, 8, 8, 3)
    np.save(tmp_path / "grey.npy", load(colour, channels=1).pixels[:])
    train(config(tmp_path / "run", **TINY), data=load(colour), progress=False)
    resume = ["train", "--out", str(tmp_path / "run"), "--resume", "--steps", "2", "--data", str(tmp_path / "grey.npy"), "-q"]
    assert main(resume) == 2
    assert "got [1, 8, 8]; --rgb makes grey images colour" in capsys.readouterr().err
    assert main([*resume, "--rgb"]) == 0


def test_the_ends_are_given_as_two_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", normal(20, 8, 8))
    run = f"train --data {tmp_path}/a.npy --out {tmp_path}/run --steps 1 --T 20 --channels 8".split()
    assert main([*run, "--value-range", "-3.5", "4", "--mults", "1", "--batch-size", "2", "-q"]) == 0
    assert load_run(tmp_path / "run").config.value_range == (-3.5, 4)


def test_distances_of_a_run_on_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier learns from the images that the run was trained on, as the data that are named hold them."""
    from tinyddpm._commands import quality
    from tinyddpm.cli import parser

    monkeypatch.setattr(quality, "train_classifier", lambda images, **_: images)
    values, labels = noise(60, 8, 8), np.arange(60) % 3
    train(config(tmp_path / "run", **{**TINY, "held_out": 0.4}), data=values, labels=labels, progress=False)
    np.savez(tmp_path / "a.npz", images=values, labels=labels)
    words = ["--model", str(tmp_path / "run"), "--data", str(tmp_path / "a.npz"), "--distances", "20", "--sampler-steps", "2"]
    found = quality.Quality.prepared(parser("evaluate").parse_args(words), load_run(tmp_path / "run"))
    assert found is not None
    assert found.training is not None
    np.testing.assert_array_equal(found.training.pixels[:], load(values).split(0.4)[0].pixels)


def test_what_a_run_on_an_array_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path / "run", **TINY), data=normal(20, 8), progress=True)
    assert "images: 19 of 1x8x1, values -2.55299..2.38314 on 65536 levels (1 more held out)" in capsys.readouterr().err
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(encoded(noise(8, 1)))
    assert images_for(load_run(tmp_path / "run"), str(tmp_path / "pictures")).levels == 256  # the range is of arrays only
    assert main(["calibrate", "--model", str(tmp_path / "run")]) == 2
    assert "data must be given again: the run was trained on an array in memory" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path / "run"), "--resume", "--steps", "2"]) == 2
    assert "data must be given again" in capsys.readouterr().err
    for wrong, error in (([[1, 2]], TypeError), (np.ma.array([[1, 2]]), TypeError), (np.zeros((2, 2), "U1"), ValueError)):
        with pytest.raises(error, match=r"^data"):
            train(config(tmp_path / "other", **TINY), data=wrong, progress=False)
    with pytest.raises(ValueError, match=r"labels must be 20 integers, got float64 of shape \(20,\); labels\.astype\(int\)"):
        load(normal(20, 8), labels=np.ones(20))
    assert not (tmp_path / "other").exists()


def test_samples_of_a_run_are_in_the_values_of_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, values, dtype, levels in (
        ("f", 7 + normal(20, 4, 4, 5), "<f4", None), ("u", noise(20, 4, 4).astype("u2") * 257, "<u2", None),
        ("b", noise(20, 4, 4) // 64, "u1", 4),
    ):  # fmt: skip
        train(config(tmp_path / name, **TINY, levels=levels), data=values, progress=False)
        out, command = tmp_path / f"{name}.npz", ["sample", "--model", str(tmp_path / name), "-n", "5", "--batch-size", "3", "-q"]
        assert main([*command, "--out", str(out)]) == 0
        drawn = np.load(out)["images"]
        assert (drawn.dtype, len(drawn)) == (np.dtype(dtype), 5)
        low, high = load_run(tmp_path / name).config.value_range or (0, (levels or 65_536) - 1)
        assert low - 1e-4 <= drawn.min() < (low + high) / 2 < drawn.max() <= high + 1e-4
        assert main(["evaluate", "--model", str(tmp_path / name), "--data", str(out), "-q"]) == 0
        assert f"levels: {levels or 65_536}" in capsys.readouterr().out


def test_a_run_on_measured_pictures_reads_others_in_its_range(tmp_path: Path) -> None:
    from PIL import Image

    values = normal(20, 8, 8).astype(np.float32)
    for k, value in enumerate(values):
        file = tmp_path / ("part" if k < 5 else "all") / f"{k}.tif"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(value).save(file)
    train(config(tmp_path / "run", data=str(tmp_path / "all"), **TINY), progress=False)
    run = load_run(tmp_path / "run")
    low, high = run.config.value_range or (0, 0)
    assert (low, high) == (values[5:].min(), values[5:].max())
    seen = load(np.clip(values[:5], low, high), value_range=(low, high)).pixels
    for k, value in enumerate(np.clip(values[:5], low, high)):
        Image.fromarray(value).save(tmp_path / "part" / f"{k}.tif")
    np.testing.assert_array_equal(images_for(run, str(tmp_path / "part")).pixels, seen)


# ---- signals


@pytest.mark.parametrize("by_blocks", [False, True])
@pytest.mark.parametrize("size", [(16, 1), (1, 16)])
def test_a_side_of_one_is_not_halved(size: tuple[int, int], by_blocks: bool) -> None:
    net = UNet(size, 2, channels=8, mults=(1, 2, 2), res_blocks=1, attention=(), dropout=0, resblock_updown=by_blocks)
    x = torch.randn(3, 2, *size)
    assert net(x, torch.tensor([1, 2, 3])).shape == x.shape
    assert levels_of(net, x) == [16, 8, 4]
    with pytest.raises(ValueError, match="x must have shape"):
        net(torch.randn(3, 2, 16, 16), torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="image_size must be divisible by 4"):
        UNet((1, 6), mults=(1, 2, 2), channels=8)


def levels_of(net: UNet, x: Any) -> list[int]:
    """The numbers of pixels on the way down."""
    found: list[int] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: found.append(out.shape[2:].numel())) for layer in net.down]
    net(x, torch.ones(len(x), dtype=torch.long))
    for hook in hooks:
        hook.remove()
    return sorted(set(found), reverse=True)


def test_signals_are_trained_with_the_default_network(tmp_path: Path) -> None:
    waves = np.sin(np.arange(32) * np.linspace(0.2, 0.6, 12)[:, None])
    train(config(tmp_path / "run", **{**TINY, "mults": None, "attention": None}), data=waves, progress=False)
    run = load_run(tmp_path / "run")
    assert (run.shape, run.net.config["mults"], run.net.config["attention"]) == ((1, 32, 1), [1, 2, 2, 2], [16])
    from tinyddpm.nn import save_diffusers

    with pytest.raises(ValueError, match="net must have no side of 1"):
        save_diffusers(tmp_path / "pipeline", run.net, run.diffusion, run.denoiser)


# ---- grey and colour


def test_grey_and_rgb_are_what_pillow_makes(tmp_path: Path) -> None:
    from PIL import Image

    pixels = noise(6, 8, 8, 3)
    for i, picture in enumerate(pixels):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture))
    expected = np.stack([np.asarray(Image.fromarray(picture).convert("L")) for picture in pixels])[:, None]
    for data in (tmp_path, pixels):
        np.testing.assert_array_equal(load(data, channels=1).pixels, expected)
    grey = load(expected, channels=3).pixels
    np.testing.assert_array_equal(grey, expected.repeat(3, axis=1))
    with pytest.raises(ValueError, match=r"^grey must be of images with 1 or 3 channels, got 2"):
        load(noise(6, 8, 8, 2), channels=1)
    with pytest.raises(ValueError, match=r"^grey must not be given with rgb"):
        config(grey=True, rgb=True)


def test_grey_data_for_a_colour_model_and_the_reverse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = noise(20, 8, 8, 3)
    np.save(tmp_path / "colour.npy", colour)
    np.save(tmp_path / "grey.npy", load(colour, channels=1).pixels[:])
    options = {**TINY, "held_out": 0.2}
    train(config(tmp_path / "g", data=str(tmp_path / "colour.npy"), grey=True, **options), progress=False)
    train(config(tmp_path / "c", data=str(tmp_path / "colour.npy"), **options), progress=False)
    for name, data, told, count in (
        ("g", "colour", "", 3), ("g", "grey", "", 3), ("c", "grey", "grey images, in three equal channels", 20),
    ):  # fmt: skip
        run = load_run(tmp_path / name)
        capsys.readouterr()
        assert len(held_out(run, str(tmp_path / f"{data}.npy"), tell=True)) == count
        assert told in capsys.readouterr().err
        assert images_for(run, str(tmp_path / f"{data}.npy")).shape == run.shape
    assert main(["calibrate", "--model", str(tmp_path / "g"), "--data", str(tmp_path / "colour.npy")]) == 0
    assert "data: colour images, made grey, as the run's are\n" not in capsys.readouterr().err  # so the run reads them itself
    assert main(["calibrate", "--model", str(tmp_path / "c"), "--data", str(tmp_path / "grey.npy")]) == 0
    assert "data: grey images, in three equal channels, as the run's are\n" in capsys.readouterr().err


# ---- classes from a list


LISTS = {
    "plain.csv": "a/0.png,cat\na/1.png,dog\nb/2.png,cat\n",
    "head.csv": "label,file_name\ncat,0.png\ndog,1.png\ncat,2.png\nbird,9.png\n",
    "map.json": json.dumps({"a/0.png": "cat", "a/1.png": "dog", "b/2.png": "cat"}),
    "pairs.json": json.dumps({"labels": [["a/0.png", "cat"], ["./a/1.png", "dog"], ["b/2.png", "cat"]]}),
    "rows.json": json.dumps([{"file_name": f"{k}.png", "label": label} for k, label in enumerate(("cat", "dog", "cat"))]),
}


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    for k, name in enumerate(("a/0", "a/1", "b/2")):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(noise(8, 8) + np.uint8(k)))
    return tmp_path


@pytest.mark.parametrize("name", LISTS)
def test_labels_from_a_list_are_as_from_folders(listed: Path, name: str) -> None:
    (listed / name).write_text(LISTS[name])
    images = load(listed / "photos", labels=listed / name)
    assert images.labels is not None
    assert (images.labels.tolist(), images.class_names, images.classes) == ([0, 1, 0], ("cat", "dog"), 2)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.csv", "a/0.png,cat\na/1.png,dog\n", r"must have a class for b/2\.png"),
        ("a.csv", "0.png,1.5\n1.png,2\n2.png,1\n", r"a class must be an integer or a name, got '1\.5'"),
        ("a.csv", "0.png\n", "row 1 must have a name and a class"),
        ("a.csv", "0.png,a\n./0.png,b\n1.png,a\n2.png,a", "0.png must have one class, got 'a' and 'b'"),
        ("a.json", '{"a/0.png": 1.5, "a/1.png": 1, "b/2.png": 1}', "a class must be an integer or a name, got 1.5"),
        ("a.json", '[["a/0.png"]]', "must hold names and classes"),
        ("a.json", "[" * 10_000, "."),
        ("a.json", "{", "."),
        ("a.json", '[["a/0.png", ' + "9" * 10_000 + "]]", "."),
        ("a.csv", "a/0.png,\0", "."),
        ("a.csv", "../../0.png,a\n1.png,a\n", r"must have a class for b/2\.png"),
    ],
)
def test_wrong_lists_are_named(listed: Path, name: str, text: str, error: str) -> None:
    (listed / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^labels: .*{name}: .*{error}"):
        load(listed / "photos", labels=listed / name)


def test_numbers_in_a_list_are_the_classes(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = listed / "photos/labels.csv"
    file.write_text("file,label\n0.png,3\n1.png,0\n2.png,2\n")
    assert "--labels FILE" in load(listed / "photos").notes[0]
    data = ["--data", str(listed / "photos"), "--labels", str(file), "--out", str(listed / "run"), "--steps", "1", "--T", "20"]
    assert main(["train", *data, "--classes", "--held-out", "0", "--channels", "8", "--batch-size", "2", "-q"]) == 0
    run = load_run(listed / "run")
    assert (run.classes, run.class_names) == (4, ())
    assert len(images_for(run, str(listed / "photos"))) == 3
    with pytest.raises(FileNotFoundError, match=r"^labels: .*none\.csv"):
        load(listed / "photos", labels=listed / "none.csv")
    with pytest.raises(ValueError, match=r"^labels must be left out"):
        load("digits", labels=file)
