"""Images from every source, and pictures back: rounding, grids, and errors that name the file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from runs import folder, idx, noise  # noqa: E402

from tinyddpm.training import Images, image_grid, load, save_png, to_levels, to_uint8  # noqa: E402

# ---- scaling and splitting


@given(st.integers(2, 65_536).flatmap(lambda levels: st.tuples(st.just(levels), st.integers(0, levels - 1))))
def test_scaling_spans_minus_one_to_one_and_rounds_back(case: tuple[int, int]) -> None:
    levels, k = case
    images = Images(np.array([0, k, levels - 1], np.int64).reshape(3, 1, 1, 1), levels)
    x = images.scaled()
    assert x.dtype == np.float32
    assert x[0, 0, 0, 0] == -1
    assert x[2, 0, 0, 0] == 1
    assert x[1, 0, 0, 0] == np.float32(2 * k / (levels - 1) - 1)
    assert to_levels(x, levels).ravel().tolist() == [0, k, levels - 1]


@given(st.floats(-3, 3))
def test_uint8_is_the_nearest_level_not_the_one_below(value: float) -> None:
    pixel = int(to_uint8(np.array([value]))[0])
    wanted = 127.5 * (min(max(value, -1), 1) + 1)
    assert abs(pixel - wanted) <= 0.5 + 1e-9


@given(st.integers(0, 300), st.floats(0, 0.9))
def test_split_is_a_partition_that_growth_does_not_change(n: int, share: float) -> None:
    images = Images(np.arange(n).reshape(n, 1, 1, 1), 2**16, np.arange(n))
    train, out = images.split(share)
    assert sorted(np.concatenate([train.pixels[:], out.pixels[:]]).ravel().tolist()) == list(range(n))
    assert abs(len(out) - share * n) <= 3  # the golden ratio spreads this evenly
    fewer = images.rows(slice(n // 2)).split(share)[1]
    assert fewer.pixels[:].ravel().tolist() == [i for i in out.pixels[:].ravel() if i < n // 2]
    np.testing.assert_array_equal(out.labels, out.pixels[:].ravel().tolist())


def test_digits_are_scikit_learns_and_every_digit_is_held_out() -> None:
    digits = load("digits")
    assert (len(digits), digits.shape, digits.levels) == (1797, (1, 8, 8), 17)
    assert digits.pixels[:].max() == 16
    train, out = digits.split()
    assert len(train) + len(out) == 1797
    assert 175 <= len(out) <= 185
    assert out.labels is not None
    assert np.bincount(out.labels, minlength=10).min() >= 10


# ---- folders


def test_a_folder_is_read_in_the_order_of_names_with_its_folders_as_labels(tmp_path: Path) -> None:
    red, green, blue = noise(3, 4, 6, 3)
    images = load(folder(tmp_path, {"b/1.png": blue, "a/2.png": green, "a/1.png": red}))
    assert images.shape == (3, 4, 6)
    np.testing.assert_array_equal(images.pixels, np.stack([red, green, blue]).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images.labels, [0, 0, 1])


def test_grey_alone_has_one_channel_and_joins_colour_as_three(tmp_path: Path) -> None:
    grey, colour = noise(4, 4), noise(4, 4, 3)
    assert load(folder(tmp_path / "grey", {"a.png": grey})).pixels[:].tolist() == [[grey.tolist()]]
    mixed = load(folder(tmp_path / "mixed", {"a.png": grey, "b.png": colour})).pixels
    np.testing.assert_array_equal(mixed[0], np.stack([grey] * 3))
    np.testing.assert_array_equal(mixed[1], colour.transpose(2, 0, 1))


def test_mixed_sizes_name_the_file_and_both_sizes(tmp_path: Path) -> None:
    folder(tmp_path, {"a.png": noise(4, 6, 3), "b.png": noise(4, 8, 3)})
    with pytest.raises(ValueError, match=r"^data: .*b\.png: is 8x4, but a\.png is 6x4"):
        load(tmp_path)


def test_an_empty_folder_and_a_missing_path(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"^data: .*must hold images"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^data: .*nowhere"):
        load(tmp_path / "nowhere")


# ---- arrays


@pytest.mark.parametrize("shape", [(5, 8, 6), (5, 8, 6, 1), (5, 8, 6, 3), (5, 3, 8, 6), (5, 1, 8, 6)])
def test_arrays_of_every_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", images=pixels.astype(np.int64), labels=np.arange(5))
    np.savez_compressed(tmp_path / "c.npz", whatever=pixels)
    first, second, third = (load(tmp_path / name) for name in ("a.npy", "b.npz", "c.npz"))
    channels = 3 if 3 in shape else 1
    assert first.shape == (channels, 8, 6)
    last = len(shape) == 4 and shape[3] == channels
    expected = (pixels.transpose(0, 3, 1, 2) if last else pixels).reshape(5, channels, 8, 6)
    for images in (first, second, third):
        np.testing.assert_array_equal(images.pixels, expected)
    assert first.labels is None
    np.testing.assert_array_equal(second.labels, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(("labels", "name"), [(np.arange(4), "labels"), (np.arange(5) - 1, "labels"), (np.ones(5), "labels")])
def test_wrong_labels_are_refused(tmp_path: Path, labels: Any, name: str) -> None:
    np.savez(tmp_path / "a.npz", images=noise(5, 4, 4), labels=labels)
    with pytest.raises(ValueError, match=name):
        load(tmp_path / "a.npz")


def test_an_archive_may_name_its_classes(tmp_path: Path) -> None:
    given: dict[str, Any] = {"images": noise(4, 4, 4), "labels": np.array([0, 2, 1, 0])}
    np.savez(tmp_path / "a.npz", **given, class_names=np.array(["cat", "dog", "owl", "éléphant"]))
    images = load(tmp_path / "a.npz")
    assert (images.classes, images.class_names) == (4, ("cat", "dog", "owl", "éléphant"))
    np.savez(tmp_path / "a.npz", images=given["images"], class_names=np.array(["cat"]))
    assert load(tmp_path / "a.npz").class_names == ()
    for wrong in (["cat", "dog"], ["cat", "dog", "dog"], [["cat", "dog", "owl"]], ["cat", "", "owl"], [1, 2, 3]):
        np.savez(tmp_path / "a.npz", **given, class_names=np.array(wrong))
        with pytest.raises(ValueError, match=r"^data: .*a\.npz: (class_names must be 3 or more names|must hold names)"):
            load(tmp_path / "a.npz")


def test_an_archive_of_many_arrays_must_name_its_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=noise(5, 4, 4), two=noise(5, 4, 4))
    with pytest.raises(ValueError, match=r"one, two"):
        load(tmp_path / "a.npz")


# ---- idx


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "zipped-without-suffix.gz"])
def test_idx_files(tmp_path: Path, name: str) -> None:
    pixels = noise(7, 5, 4)
    (tmp_path / name).write_bytes(gzip.compress(idx(pixels)) if name.endswith(".gz") else idx(pixels))
    images = load(tmp_path / name)
    np.testing.assert_array_equal(images.pixels[:, 0], pixels)
    assert images.levels == 256


# ---- grids


@given(
    n=st.integers(1, 12), columns=st.integers(1, 5), scale=st.integers(1, 4), gap=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_grid_has_whole_pixels_and_equal_gaps(n: int, columns: int, scale: int, gap: int, channels: int) -> None:
    images = noise(n, channels, 3, 2)
    grid = image_grid(images, columns, scale, gap, fill=7)
    rows = -(-n // columns)
    assert grid.shape == (rows * (3 * scale + gap) + gap, columns * (2 * scale + gap) + gap, channels)
    covered = np.zeros(grid.shape[:2], bool)
    for k in range(n):
        i, j = divmod(k, columns)
        area = np.s_[gap + i * (3 * scale + gap) :, gap + j * (2 * scale + gap) :]
        tile = grid[area][: 3 * scale, : 2 * scale]
        np.testing.assert_array_equal(tile, np.kron(images[k].transpose(1, 2, 0), np.ones((scale, scale, 1), np.uint8)))
        covered[area][: 3 * scale, : 2 * scale] = True
    assert (grid[~covered] == 7).all()


def test_a_png_holds_the_grid(tmp_path: Path) -> None:
    for channels in (1, 3):
        grid = image_grid(noise(4, channels, 5, 5))
        save_png(grid, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as stored:
            np.testing.assert_array_equal(np.asarray(stored).reshape(grid.shape), grid)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
