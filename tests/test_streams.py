"""Images that are not loaded whole: the same as in memory, whatever is asked for, in bounded memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from runs import encoded, folder, idx, noise  # noqa: E402

from tinyddpm.training import load  # noqa: E402
from tinyddpm.training.data import arrays, shards, sources  # noqa: E402


def write_tar(file: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), mtime
            archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every set were too large for memory."""
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    monkeypatch.setattr(arrays, "IN_MEMORY", 0)


# ---- every source: streamed is in memory


def sets(path: Path, pixels: np.ndarray) -> dict[str, Path]:
    """The same images (N, H, W, 3) in each form that can stay on the disk."""
    path.mkdir()
    np.save(path / "a.npy", pixels)
    np.save(path / "wide.npy", pixels.astype(np.int64).transpose(0, 3, 1, 2))
    (path / "a.idx").write_bytes(idx(pixels))
    write_tar(path / "a.tar", {f"{i:03d}.png": encoded(p) for i, p in enumerate(pixels)})
    folder(path / "folder", pixels)
    return {name: path / name for name in ("a.npy", "wide.npy", "a.idx", "a.tar", "folder")}


@pytest.mark.parametrize("name", ["a.npy", "wide.npy", "a.idx", "a.tar", "folder"])
@pytest.mark.parametrize("size", [None, 4, (7, 5)])
def test_streamed_is_in_memory(tmp_path: Path, name: str, size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sets(tmp_path / "sets", noise(23, 8, 6, 3))[name]
    whole = load(source, image_size=size, workers=3)
    assert isinstance(whole.pixels, np.ndarray)
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    monkeypatch.setattr(arrays, "IN_MEMORY", 0)
    streamed = load(source, image_size=size, workers=3)
    assert not isinstance(streamed.pixels, np.ndarray)
    assert (len(streamed), streamed.shape) == (len(whole), whole.shape)
    for rows in (np.array([5, 0, 22, 5]), slice(3, 9), slice(None), np.arange(23) % 3 == 1, np.empty(0, np.int64)):
        np.testing.assert_array_equal(streamed.scaled(rows), whole.scaled(rows))
        np.testing.assert_array_equal(streamed.rows(rows).scaled(), whole.rows(rows).scaled())
    assert streamed.pixels[4].shape == whole.shape
    for part, own in zip(streamed.split(0.3), whole.split(0.3), strict=True):
        assert not isinstance(part.pixels, np.ndarray)
        np.testing.assert_array_equal(part.scaled(), own.scaled())


@pytest.mark.usefixtures("on_disk")
def test_the_number_of_threads_changes_nothing_and_none_is_left(tmp_path: Path) -> None:
    source = folder(tmp_path / "set", noise(40, 8, 6, 3))
    before = threading.active_count()
    batches = [load(source, workers=workers).scaled() for workers in (0, 1, 2, 16)]
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch, batches[0])
    assert threading.active_count() == before


# ---- reading ahead


def test_the_reader_gives_each_batch_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "set", noise(20, 4, 4, 3))
    orders = [np.random.RandomState(k).randint(0, 20, 6) for k in range(9)]
    for limit in (2**28, 0):
        monkeypatch.setattr(sources, "IN_MEMORY", limit)
        images = load(source)
        with images.reader(iter(orders)) as read:
            for rows in orders:
                np.testing.assert_array_equal(next(read), images.scaled(rows))
            assert next(read, None) is None


@pytest.mark.usefixtures("on_disk")
def test_the_reader_is_ahead_by_as_many_as_it_says_and_stops_when_left(tmp_path: Path) -> None:
    images = load(folder(tmp_path / "set", noise(20, 4, 4, 3)))
    asked: list[int] = []

    def orders() -> Any:
        for k in range(1000):
            asked.append(k)
            yield np.array([k % 20])

    before = threading.active_count()
    with images.reader(orders(), ahead=3) as read:
        next(read)
        assert asked == [0, 1, 2, 3]
        next(read)
        assert asked == [0, 1, 2, 3, 4]
    assert threading.active_count() == before


@pytest.mark.usefixtures("on_disk")
def test_damage_met_ahead_is_told_at_its_own_batch(tmp_path: Path) -> None:
    source = folder(tmp_path / "set", noise(4, 32, 32, 3))
    file = source / "002.png"
    file.write_bytes(file.read_bytes()[:2000])
    with load(source).reader(np.array([k]) for k in range(4)) as read:
        next(read)
        next(read)
        with pytest.raises(ValueError, match=r"^data: .*002\.png: "):
            next(read)


# ---- memory


def test_a_large_folder_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """1200 pictures of 768 KiB, 0.9 GiB in all: links to a few files. A batch and the threads' pictures are 40 MiB."""
    few = folder(tmp_path / "few", noise(4, 64, 64, 3).repeat(8, axis=1).repeat(8, axis=2))
    (tmp_path / "many").mkdir()
    for i in range(1200):
        os.link(few / f"{i % 4:03d}.png", tmp_path / "many" / f"{i:04d}.png")
    code = f"""
        import resource
        import numpy as np
        from tinyddpm.training import load
        load({str(few)!r}).scaled()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        train, out = load({str(tmp_path / "many")!r}, workers=2).split()
        assert train.shape == (3, 512, 512) and len(train) + len(out) == 1200
        with train.reader(np.random.RandomState(k).randint(0, len(train), 8) for k in range(6)) as read:
            for x in read:
                assert x.shape == (8, 3, 512, 512)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400, "MiB; float64 and float32 batches of 8 on their way, three of them"


def test_a_large_array_stays_on_the_disk(tmp_path: Path) -> None:
    """1 GiB that a sparse file promises, of which a few rows are read."""
    file = tmp_path / "a.npy"
    with open(file, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**14, 256, 256)})
        stream.truncate(stream.tell() + 2**30)
        stream.seek(-256 * 256, os.SEEK_END)
        stream.write(b"\xff" * 256 * 256)
    images = load(file)
    assert (len(images), images.shape) == (2**14, (1, 256, 256))
    assert images.scaled(np.array([0, 2**14 - 1])).mean(axis=(1, 2, 3)).tolist() == [-1, 1]
    os.truncate(file, 2**20)
    with pytest.raises(ValueError, match=r"^data: .*a\.npy: became shorter while"):
        images.scaled(slice(100, 102))


# ---- tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_every_kind_with_labels_and_long_names(tmp_path: Path, form: int) -> None:
    pixels = noise(5, 4, 6, 3)
    deep = "d" * 60 + "/" + "e" * 60 + "/" * (form != tarfile.USTAR_FORMAT) * 1
    deep = deep if form == tarfile.USTAR_FORMAT else deep + "f" * 90
    members: dict[str, bytes] = {}
    for i, picture in enumerate(pixels):
        members |= {f"{deep}/{i}.png": encoded(picture), f"{deep}/{i}.cls": str(i % 3).encode(), f"{deep}/{i}.json": b"{}"}
    images = load(write_tar(tmp_path / "a.tar", members, form, mtime=1.5))
    np.testing.assert_array_equal(images.pixels, pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images.labels, [0, 1, 2, 0, 1])
    assert images.classes == 3


def test_archives_by_pattern_and_by_folder(tmp_path: Path) -> None:
    pixels = noise(6, 4, 4, 3)
    for k in range(3):
        write_tar(tmp_path / "set" / f"t-{k:02d}.tar", {f"{i}.png": encoded(pixels[2 * k + i]) for i in range(2)})
    for source in ("set", "set/t-{00..02}.tar", "set/t-0{0,1,2}.tar", "set/*.tar", "set/t-0[0-2].tar"):
        np.testing.assert_array_equal(load(tmp_path / source).pixels, pixels.transpose(0, 3, 1, 2))
    assert len(load(tmp_path / "set" / "t-01.tar")) == 2
    for source, name in (("set/t-{00..03}.tar", r"t-03\.tar"), ("set/x*.tar", r"x\*\.tar")):
        with pytest.raises(FileNotFoundError, match=rf"^data: .*{name}"):
            load(tmp_path / source)
    with pytest.raises(ValueError, match="at most"):
        load(tmp_path / "t-{000000..999999}.tar")
    assert [p.name for p in shards.expand("{0..2}{a,b}")] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    (tmp_path / "set" / "a.png").write_bytes(encoded(pixels[0]))
    with pytest.raises(ValueError, match="got both"):
        load(tmp_path / "set")


def test_a_label_is_there_for_every_image_or_none(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    write_tar(file, {"1.png": encoded(noise(4, 4)), "1.cls": b"0", "2.png": encoded(noise(4, 4))})
    with pytest.raises(ValueError, match=r"a\.tar: 2\.png must have a \.cls"):
        load(file)
    write_tar(file, {"1.png": encoded(noise(4, 4)), "1.cls": b"cat"})
    with pytest.raises(ValueError, match=r"a\.tar: 1\.cls must be a class number"):
        load(file)


# ---- labels


def test_labels_beside_an_idx_file(tmp_path: Path) -> None:
    def write(name: str, array: np.ndarray) -> Path:
        (tmp_path / name).write_bytes(idx(array.astype(np.uint8)))
        return tmp_path / name

    file = write("train-images-idx3-ubyte", noise(5, 4, 4))
    assert load(file).labels is None
    assert load(file).classes is None
    beside = write("train-labels-idx1-ubyte", np.array([3, 1, 4, 1, 5]))
    images = load(file)
    np.testing.assert_array_equal(images.labels, [3, 1, 4, 1, 5])
    assert images.classes == 6
    assert images.rows(slice(2)).classes == 6
    for wrong in (np.arange(4), np.arange(10).reshape(5, 2)):
        write(beside.name, wrong)
        with pytest.raises(ValueError, match=r"^data: .*train-labels-idx1-ubyte: "):
            load(file)


def test_fashion_mnist_as_debian_has_it() -> None:
    file = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
    if not file.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    images = load(file, image_size=14)
    assert (len(images), images.shape, images.classes) == (10_000, (1, 14, 14), 10)
    assert images.labels is not None
    assert np.bincount(images.labels).tolist() == [1000] * 10


@pytest.mark.usefixtures("on_disk")
def test_folders_number_the_labels_of_a_stream(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        folder(tmp_path / name, noise(3, 4, 4, 3))
    images = load(tmp_path)
    np.testing.assert_array_equal(images.labels, [0, 0, 0, 1, 1, 1])
    assert images.rows(np.array([4])).labels == [1]
    assert images.rows(slice(2)).classes == 2
