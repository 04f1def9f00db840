"""A run knows its images by content: no name of a folder makes it score what it was trained on."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("PIL")

import runs
from runs import config, encoded

from tinyddpm._commands.runs import class_numbers, held_out, trained_on
from tinyddpm.cli import main, parser
from tinyddpm.training import load, load_run, train
from tinyddpm.training.data import record, sources
from tinyddpm.training.data.record import Record, digests

ONE_STEP: dict[str, Any] = {"steps": 1, "T": 20, "batch_size": 4, "mults": (1,), "sample_every": 0}


def folder(path: Path, count: int = 40, seed: int = 0, names: str = "{:02d}.png") -> Path:
    pixels = np.random.RandomState(seed).randint(0, 256, (count, 8, 8, 3), np.uint8)
    return runs.folder(path, {names.format(i): picture for i, picture in enumerate(pixels)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos and a run on them that holds out a fifth."""
    place = tmp_path_factory.mktemp("own")
    folder(place / "photos")
    train(config(place / "run", data=f"{place}/photos/", held_out=0.2, **ONE_STEP), progress=False)
    return place


def spellings(place: Path, work: Path) -> dict[str, str]:
    """The same forty images, by other names and in other containers."""
    photos = place / "photos"
    shutil.copytree(photos, work / "moved")
    (work / "linked").symlink_to(photos)
    (work / "links").mkdir()
    for file in photos.iterdir():
        (work / "links" / file.name).symlink_to(file)
    with tarfile.open(work / "photos.tar", "w") as packed:
        packed.add(photos, "photos")
    np.save(work / "photos.npy", load(photos).pixels[::-1])
    shutil.make_archive(str(work / "photos"), "zip", place, "photos")
    again = {name: str(work / name) for name in ("moved", "linked", "links", "photos.tar", "photos.npy", "photos.zip")}
    return {**again, "plain": str(photos), "dots": f"{photos}/../photos/.", "relative": os.path.relpath(photos)}


def test_the_held_out_images_are_scored_however_the_folder_is_spelled(place: Path, tmp_path: Path) -> None:
    run = load_run(place / "run")
    expected = load(place / "photos").split(0.2)[1].pixels
    assert len(expected) == 7
    for name, data in spellings(place, tmp_path).items():
        np.testing.assert_array_equal(held_out(run, data).pixels[:], expected, err_msg=name)
        used = set(digests(trained_on(run, data, 100)).tolist())
        assert len(used) == 33, name
        assert not used & set(digests(held_out(run, data)).tolist()), name


def test_evaluate_says_what_it_scores(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", str(place / "run"), "--data", str(place / "photos"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["images"] == 7
    assert "7 images of " in shown.err
    assert "that the run held out; 33 that it was trained on are left out" in shown.err


def test_another_folder_of_that_name_is_scored_whole(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    run = load_run(tmp_path / "run")
    shutil.rmtree(shutil.copytree(place / "photos", tmp_path / "photos"))
    folder(tmp_path / "photos", seed=1)
    monkeypatch.chdir(tmp_path)
    assert len(held_out(run, "photos")) == 40
    folder(tmp_path / "mixed", 40)
    folder(tmp_path / "mixed", 5, seed=2, names="new{}.png")
    assert len(held_out(run, "mixed")) == 7 + 5
    folder(tmp_path / "part", 3)  # trained on, all of them but one
    seen = load(place / "photos").split(0.2)[0]
    np.save(tmp_path / "seen.npy", seen.pixels[:])
    with pytest.raises(ValueError, match=r"^data must have images that the run held out"):
        held_out(run, "seen.npy")


def test_a_large_set_is_known_by_a_part_of_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    monkeypatch.setattr(record, "_MOST_ON_DISK", 7)
    images = load(place / "photos")
    found = Record.of(images, 0.2)
    assert (len(found.held_out), len(found.trained_on), found.complete) == (7, 7, False)
    held, trained = Record.from_json(found.as_json()).parts(images)
    assert (held >= 0).sum() == 7
    assert trained.sum() == 33


def test_of_images_that_are_alike_as_many_are_held_out_as_were(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.repeat(np.arange(4, dtype=np.uint8), 10)[:, None, None] * np.ones((1, 8, 8), np.uint8))
    images = load(tmp_path / "a.npy")
    held, trained = Record.of(images, 0.2).parts(images)
    assert ((held >= 0).sum(), trained.sum()) == (7, 33)


def test_a_run_of_before_goes_by_the_name_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    run = replace(load_run(place / "run"), record=None)
    assert len(held_out(run, f"{place}/photos/", tell=True)) == 7
    assert "by its name, as it records no images" in capsys.readouterr().err
    assert len(held_out(run, f"{place}/photos", tell=True)) == 40
    assert "does not record on which it was trained" in capsys.readouterr().err


def test_images_that_came_in_later_count_as_trained_on(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(place / "photos", tmp_path / "data")
    options = {"data": str(data), "held_out": 0.2, **ONE_STEP}
    train(config(tmp_path / "run", **options), progress=False)
    before = load_run(tmp_path / "run").record
    for file in data.iterdir():
        file.rename(data / f"x{99 - int(file.stem)}.png")  # the same images in another order
    train(config(tmp_path / "run", **{**options, "steps": 2, "resume": True}))
    after = load_run(tmp_path / "run").record
    assert before is not None
    assert after is not None
    assert not set(after.held_out.tolist()) & set(before.trained_on.tolist())
    folder(data, 40, seed=3, names="x{:02d}.png")
    for i in range(40):
        (data / f"x{60 + i}.png").unlink()
    train(config(tmp_path / "run", **{**options, "steps": 3, "resume": True}))
    assert "data: 40 of 40 images are not those that the run began with" in capsys.readouterr().err


# ---- classes go by name


@pytest.fixture(scope="module")
def fruit(place: Path) -> Path:
    """A class-conditional run on the folders apple, ball and cat."""
    for i, name in enumerate(("apple", "ball", "cat")):
        folder(place / "fruit", 8, i, name + "/{}.png")
    train(config(place / "named", data=str(place / "fruit"), classes=True, **ONE_STEP), progress=False)
    return place / "named"


def test_a_class_is_drawn_by_its_name(fruit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--model", str(fruit), "-n", "2", "--steps", "2", "--quiet"]
    for name, label in (("a", "cat,apple"), ("b", "2,0")):
        assert main([*words, "--out", str(tmp_path / f"{name}.npz"), "--label", label]) == 0
    one, two = (np.load(tmp_path / f"{name}.npz")["images"] for name in "ab")
    np.testing.assert_array_equal(one, two)
    assert load(tmp_path / "a.npz").labels.tolist() == [2, 0]  # type: ignore[union-attr]
    assert main([*words, "--out", str(tmp_path / "c.npz"), "--label", "pear"]) == 2
    assert "label must be one or several of apple, ball, cat, with commas between, got 'pear'" in capsys.readouterr().err


def test_labels_of_other_folders_are_those_of_the_run(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ball and cat are 1 and 2 there too, where they would be 0 and 1 by themselves."""
    from tinyddpm._commands import quality

    monkeypatch.setattr(quality, "train_classifier", lambda images, **_: images)
    for name in ("cat", "ball"):
        folder(tmp_path / "test", 30, 7 if name == "cat" else 8, name + "/{}.png")
    model, options = str(fruit), ["--distances", "1000", "--sampler", "ddim", "--sampler-steps", "2"]
    args = parser("evaluate").parse_args(["--model", model, "--data", str(tmp_path / "test"), *options])
    found = quality.Quality.prepared(args, load_run(fruit))
    assert found is not None
    assert found.real.labels is not None
    assert found.real.labels.tolist() == [1] * 30 + [2] * 30
    folder(tmp_path / "test", 2, names="dog/{}.png")
    with pytest.raises(ValueError, match=r"^data: class 'dog' is none of the run's, which are apple, ball, cat"):
        quality.Quality.prepared(args, load_run(fruit))


def test_a_class_whose_name_is_a_number_goes_by_its_name() -> None:
    from types import SimpleNamespace as Some

    ten: Any = Some(class_names=("1", "10", "2"))
    assert class_numbers(ten, "10,2") == (1, 2)
    with pytest.raises(ValueError, match="label must be"):
        class_numbers(ten, "0")
    assert class_numbers(Some(class_names=("red, green", "blue")), "red, green") == (0,)  # type: ignore[arg-type]


# ---- what a folder holds besides


def test_what_is_no_data_is_ignored_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("apple", "ball", ".ipynb_checkpoints", "__MACOSX", "ball/.thumbnails", "run"):
        folder(tmp_path / "data" / name, 4)
    (tmp_path / "data/run/log.jsonl").touch()
    for name in ("a.heic", "b.heic", "notes.txt", "._0.png", ".DS_Store"):
        (tmp_path / "data/apple" / name).write_bytes(b"no picture")
    folder(tmp_path / "outside", 4)
    (tmp_path / "data/cat").symlink_to(tmp_path / "data/ball")
    (tmp_path / "data/dog").symlink_to(tmp_path / "outside")
    (tmp_path / "data/ball/loop").symlink_to(tmp_path / "data")
    images = load(tmp_path / "data")
    assert (len(images), images.class_names) == (12, ("apple", "ball", "cat"))
    told = "ignored 4 hidden folders, 3 linked folders, 2 .heic, 2 hidden files, 1 .txt, 1 run folder"
    assert images.notes == (told,)
    train(config(tmp_path / "data/run2", data=str(tmp_path / "data"), **ONE_STEP))
    shown = capsys.readouterr().err
    assert f"images: {told}" in shown
    assert "3 classes (not used): apple, ball, cat" in shown
    assert len(load(tmp_path / "data")) == 12
    with pytest.raises(ValueError, match=r"^out must not be the folder of the data"):
        train(config(tmp_path / "data", data=str(tmp_path / "data"), **ONE_STEP), progress=False)


def test_no_run_is_within_a_run_and_no_sample_among_the_data(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last", "last/new", "checkpoints", "checkpoints/step-00000001/a/b", "checkpoints/new"):
        with pytest.raises(ValueError, match=r"^out must be a run folder, got .*, which is (a checkpoint|within the run .*run)$"):
            train(config(place / "run" / name, data="digits", **ONE_STEP), progress=False)
    assert sorted(p.name for p in (place / "run/checkpoints").iterdir()) == ["step-00000001"]
    with pytest.raises(ValueError, match=r"^data: .*run: must not be a run, whose pictures are samples"):
        load(place / "run")
    data = folder(tmp_path / "photos")
    monkeypatch.chdir(data)
    train(config("run", data=".", **{**ONE_STEP, "sample_every": 1}), progress=False)
    assert len(load(".")) == 40
    sample = ["sample", "--model", "run", "--steps", "2", "-n", "1", "-q", "--out"]
    for out in ("grid.png", "new/grid.gif", str(data / "grid.png")):
        assert main([*sample, out]) == 2
        assert "out must not be in the folder of the run's data, where it would be trained on" in capsys.readouterr().err
    assert main(["edit", "image-to-image", "00.png", "--model", "run", "--steps", "2", "-q", "--out", "edited"]) == 2
    assert "out must not be in the folder of the run's data" in capsys.readouterr().err
    for out in ("run/grid.png", "../grid.png", "drawn"):
        assert main([*sample, out]) == 0, capsys.readouterr().err
    assert load(".").notes == ("ignored 1 folder of samples, 1 run folder",)
    assert len(load("drawn")) == 1


def test_a_tar_of_macos_holds_its_images_only(tmp_path: Path) -> None:
    folder(tmp_path / "in", 3)
    for name in ("._0.png", "__MACOSX/1.png", ".hidden/2.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"no picture")
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.add(tmp_path / "in", "in")
    images = load(tmp_path / "a.tar")
    assert (len(images), images.notes) == (3, ("ignored 3 hidden files",))


def test_the_same_formats_under_other_suffixes_are_read(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3), np.uint8)
    forms = {"a.JPG": "JPEG", "b.jfif": "JPEG", "c.jpe": "JPEG", "d.pnm": "PPM", "e.tga": "TGA", "f.apng": "PNG"}
    for name, form in forms.items():
        (tmp_path / name).write_bytes(encoded(pixels, form))
    images = load(tmp_path)
    assert len(images) == 6
    for i in (3, 4, 5):
        np.testing.assert_array_equal(images.pixels[i].transpose(1, 2, 0), pixels)


def test_nearly_black_images_and_parts_taken_for_classes_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(8, dtype=np.uint8)[None].repeat(3, 0))
    assert load(tmp_path / "a.npy").notes[0].startswith("the largest value is 1, where 255 is white")
    for name in ("train", "test"):
        folder(tmp_path / "data" / name, 2)
    assert load(tmp_path / "data").notes == (
        "the folders test, train are taken for classes; to read one of them, name it as the data",
    )


# ---- what values stand for


def test_levels_and_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.eye(8, dtype=np.uint8)[None].repeat(3, 0))
    images = load(tmp_path / "a.npy", levels=2)
    assert (sorted(set(images.scaled().ravel().tolist())), images.notes) == ([-1, 1], ())
    with pytest.raises(ValueError, match=r"^levels must be more than the largest value in .*photos, which is 255, got 2"):
        load(folder(tmp_path / "photos", 2), levels=2)
    with monkeypatch.context() as within:
        within.setattr(sources, "IN_MEMORY", 0)
        with pytest.raises(ValueError, match=r"^data: .*0.\.png: levels must be more than its largest value, 25\d, got 2"):
            load(tmp_path / "photos", levels=2).scaled()
    drawing = np.zeros((8, 8, 4), np.uint8)
    drawing[2:4, :, 3] = 255  # black lines on nothing
    (tmp_path / "drawing").mkdir()
    (tmp_path / "drawing/a.png").write_bytes(encoded(drawing))
    assert "--background white" in load(tmp_path / "drawing").notes[0]
    seen = load(tmp_path / "drawing", background="white")
    assert (seen.pixels[0, 0] == np.where(drawing[..., 3] == 255, 0, 255)).all()
    options = {"data": str(tmp_path / "drawing"), "background": "white", "held_out": 0.0, **ONE_STEP}
    train(config(tmp_path / "run", **options), progress=False)
    assert trained_on(load_run(tmp_path / "run"), str(tmp_path / "drawing"), 9).pixels[:].max() == 255


def test_exif_behind_a_pngs_pixels_turns_it(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.RandomState(0).randint(0, 256, (4, 8, 3), np.uint8)
    first = encoded(pixels, exif=exif)
    at = first.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(first[at : at + 4], "big")
    late = first[:at] + first[end:-12] + first[at:end] + first[-12:]
    for i, content in enumerate((first, late)):
        (tmp_path / f"{i}.png").write_bytes(content)
    images = load(tmp_path)
    assert images.shape == (3, 8, 4)
    for turned in images.pixels[:]:
        np.testing.assert_array_equal(turned.transpose(1, 2, 0), np.rot90(pixels, -1))


def test_an_archive_as_guided_diffusion_writes_it(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.arange(5))
    images = load(tmp_path / "a.npz")
    np.testing.assert_array_equal(images.pixels[:], pixels.transpose(0, 3, 1, 2))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 3, 4]


def test_a_zip_is_the_folder_that_was_packed(tmp_path: Path) -> None:
    for i, name in enumerate(("apple", "ball", "__MACOSX", ".hidden")):
        folder(tmp_path / "fruit" / name, 3, i)
    file = Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path, "fruit"))
    packed, plain = load(file), load(tmp_path / "fruit")
    np.testing.assert_array_equal(packed.pixels[:], plain.pixels[:])
    assert (packed.class_names, packed.notes) == (("apple", "ball"), ("ignored 6 hidden files",))
    content = file.read_bytes()
    for end in (0, 10, len(content) // 2, len(content) - 5):
        file.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"^data: .*a\.zip: "):
            load(file)
