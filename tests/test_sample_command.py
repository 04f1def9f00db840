"""``tinyddpm sample``: the sampler's own samples, whole and the same, however the work was cut, shared or killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from tinyddpm.cli import main

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")


def images(file: Path) -> np.ndarray:
    with np.load(file) as stored:
        (name,) = stored.files
        return np.asarray(stored[name])


def test_samples_are_the_samplers_own_whatever_the_batch(model: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "samples.npz"
    assert main(["sample", "--model", model, "--out", str(file), "-n", "5", "--batch-size", "2", "-q"]) == 0
    run = training.load_run(model)
    own = run.diffusion.sample(run.denoiser, (5, 1, 8, 8), backend="torch").numpy()
    drawn = images(file)
    assert drawn.dtype == np.uint8
    # A batch of another size may round another way in the network: by far less than one level of 255.
    np.testing.assert_allclose(drawn, training.to_uint8(own), atol=1)
    part = tmp_path / "part.npz"
    assert main(["sample", "--model", model, "--out", str(part), "--index", "2:5", "-q"]) == 0
    np.testing.assert_allclose(images(part).astype(int), drawn[2:5], atol=1)


@pytest.mark.parametrize("options", [["--sampler", "ddim", "--steps", "3", "--eta", "1", "--spacing", "even"], ["--seed", "1"]])
def test_sampling_options_reach_the_sampler(model: str, tmp_path: Path, options: list[str]) -> None:
    file = tmp_path / "samples.npz"
    assert main(["sample", "--model", model, "--out", str(file), "-n", "4", "-q", *options]) == 0
    run = training.load_run(model)
    kinds = {"steps": int, "eta": float, "seed": int}
    given = {k[2:]: kinds.get(k[2:], str)(v) for k, v in zip(options[::2], options[1::2], strict=True)}
    own = run.diffusion.sample(run.denoiser, (4, 1, 8, 8), backend="torch", **given).numpy()
    np.testing.assert_allclose(images(file).astype(int), training.to_uint8(own), atol=1)


def test_a_grid_shows_the_samples(model: str, tmp_path: Path) -> None:
    grid, array = tmp_path / "grid.png", tmp_path / "samples.npz"
    for out in (grid, array):
        assert main(["sample", "--model", model, "--out", str(out), "-n", "6", "-q", "--columns", "3"]) == 0
    drawn = np.asarray(Image.open(grid))
    scale = 8  # 64 // 8 pixels
    assert drawn.shape == (2 * 64 + 3 * 2, 3 * 64 + 4 * 2)
    np.testing.assert_array_equal(drawn[2:66:scale, 2:66:scale], images(array)[0, 0])
    np.testing.assert_array_equal(drawn[68:132:scale, 134:198:scale], images(array)[5, 0])


def test_a_folder_is_completed_not_redrawn(model: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    draw = ["sample", "--model", model, "-q", "--batch-size", "4", "--out"]
    assert main([*draw, str(whole), "-n", "10"]) == 0
    names = [f"{k:06d}.png" for k in range(10)]
    assert sorted(p.name for p in whole.iterdir()) == [*names, "samples.json"]
    assert main([*draw, str(parts), "-n", "10"]) == 0
    for name in ("000002.png", "000005.png"):
        (parts / name).unlink()
    kept = (parts / "000006.png").stat().st_mtime_ns
    assert main([*draw, str(parts), "-n", "10"]) == 0
    assert (parts / "000006.png").stat().st_mtime_ns == kept
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in names)
    array = tmp_path / "samples.npz"
    assert main([*draw, str(array), "-n", "10"]) == 0
    for k, name in enumerate(names):
        np.testing.assert_array_equal(np.asarray(Image.open(whole / name)), images(array)[k, 0])


def test_batches_end_at_multiples_of_their_size() -> None:
    from tinyddpm._commands.runs import batches

    parts = [part for part, _ in batches(range(3, 13), 4, False)]
    assert parts == [range(3, 4), range(4, 8), range(8, 12), range(12, 13)]


def test_processes_share_a_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = ["sample", "--model", model, "-q", "--batch-size", "2", "-n", "7", "--out"]
    assert main([*draw, str(tmp_path / "one")]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main([*draw, str(tmp_path / "two")]) == 0
        counts.append(len(list((tmp_path / "two").glob("*.png"))))
    assert counts == [3, 7]
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_folder_of_other_samples_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "folder")
    assert main(["sample", "--model", model, "-q", "-n", "2", "--out", out]) == 0
    assert main(["sample", "--model", model, "-q", "-n", "3", "--out", out, "--seed", "5"]) == 2
    assert "seed: 5" in capsys.readouterr().err
    assert not (tmp_path / "folder" / "000002.png").exists()
    (tmp_path / "folder" / "samples.json").write_text("{")
    assert main(["sample", "--model", model, "-q", "-n", "3", "--out", out]) == 2
    assert "samples.json" in capsys.readouterr().err


@pytest.mark.parametrize(("sampler", "spacing"), [("ddpm", "even"), ("ddim", "quadratic"), ("dpm++2m", "quadratic")])
def test_fewer_moves_are_spaced_as_suits_the_sampler(model: str, tmp_path: Path, sampler: str, spacing: str) -> None:
    file = tmp_path / "samples.npz"
    draw = ["sample", "--model", model, "--out", str(file), "-n", "4", "-q", "--steps", "3", "--sampler", sampler]
    assert main(draw) == 0
    assert json.loads(zipfile.ZipFile(file).comment)["spacing"] == spacing
    run = training.load_run(model)
    own = run.diffusion.sample(run.denoiser, (4, 1, 8, 8), sampler=sampler, steps=3, spacing=spacing, backend="torch")
    assert np.allclose(images(file).astype(int), training.to_uint8(own.numpy()), atol=1)


def test_labels_are_given_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = str(tmp_path / "run"), tmp_path / "samples.npz"
    assert main(["train", *TINY, "--classes", "--out", model, "--quiet"]) == 0
    draw = ["sample", "--model", model, "--out", str(file), "-q", "--batch-size", "2"]
    assert main([*draw, "--index", "3:8", "--label", "7,0,2", "--guidance", "3"]) == 0
    run = training.load_run(model)
    denoiser = run.denoiser_for([7, 0, 2, 7, 0], 3.0)
    own = run.diffusion.sample(denoiser, (5, 1, 8, 8), index=range(3, 8), backend="torch").numpy()
    np.testing.assert_allclose(images(file).astype(int), training.to_uint8(own), atol=1)
    capsys.readouterr()
    for words, named in ((["--label", "10"], "label: 10"), (["--label", "-1"], "-1"), (["--guidance", "2"], "guidance: 2.0")):
        assert main([*draw, *words]) == 2
        assert named in capsys.readouterr().err


# An animation.


def test_an_animation_is_the_way_to_the_grid(model: str, tmp_path: Path) -> None:
    shared = ["sample", "--model", model, "-q", "-n", "6", "--columns", "3", "--batch-size", "4", "--out"]
    assert main([*shared, str(tmp_path / "way.gif")]) == 0
    assert main([*shared, str(tmp_path / "grid.png")]) == 0
    run = training.load_run(model)
    states = [s.x.numpy() for s in run.diffusion.trajectory(run.denoiser, (6, 1, 8, 8), backend="torch")]
    with Image.open(tmp_path / "way.gif") as film:
        assert film.n_frames == len(states) == 7
        assert film.info["loop"] == 0
        durations = []
        for k, state in enumerate(states):
            film.seek(k)
            durations.append(film.info["duration"])
            frame = np.asarray(film.convert("L")).astype(int)
            np.testing.assert_allclose(frame, training.image_grid(training.to_uint8(state), 3, 8)[..., 0], atol=1)
        np.testing.assert_array_equal(frame, np.asarray(Image.open(tmp_path / "grid.png")))
        assert durations[-1] >= 2000 > 10 * max(durations[:-1])
    assert main([*shared, str(tmp_path / "way.gif"), "--frames", "3"]) == 0
    with Image.open(tmp_path / "way.gif") as film:
        assert film.n_frames == 3


def test_frames_are_denser_near_the_data() -> None:
    from tinyddpm._commands.sample import _positions

    for moves, frames in ((1, 2), (6, 40), (200, 40), (1000, 2), (1000, 999)):
        positions = sorted(_positions(moves, frames))
        assert (positions[0], positions[-1]) == (0, moves)
        assert len(positions) <= min(frames, moves + 1)
    gaps = np.diff(sorted(_positions(1000, 40)))
    assert np.all(np.diff(gaps) <= 1)
    assert len(gaps) == 39


# What was stopped is completed; what is shared is joined; what is foreign is refused.


def draw(model: str, out: Path, *options: str) -> list[str]:
    return ["sample", "--model", model, "-q", "--steps", "2", "--batch-size", "2", "--out", str(out), *options]


def commands(*lines: list[str]) -> list[str]:
    """The command lines in a process of their own, which takes its time over each batch."""
    code = f"""
import sys, time
from tinyddpm._commands.drawing import Drawing
from tinyddpm.cli import main
batch = Drawing.batch
Drawing.batch = lambda *args: time.sleep(0.05) or batch(*args)
sys.exit(max(main(line) for line in {list(lines)!r}))
"""
    return [sys.executable, "-c", code]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples, drawn by one process in one go, as a folder and as an array."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("folder", "array.npz"):
        assert main(draw(model, root / name, "-n", "24")) == 0
    return root


@pytest.mark.parametrize("name", ["folder", "array.npz"])
def test_a_run_killed_halfway_and_resumed_gives_the_same_files(name: str, model: str, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    at = out if name == "folder" else tmp_path / "array.npz.parts"
    command = draw(model, out, "-n", "24")
    with subprocess.Popen(commands(command), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not at.is_dir() or len(list(at.glob("[0-9]*"))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    kept = {p: p.stat().st_mtime_ns for p in at.glob("[0-9]*")}
    assert len(kept) < (24 if name == "folder" else 12)
    assert not out.is_file()
    if name == "folder":
        (out / ".000023.png.12345.new").write_bytes(b"half")  # as a kill in the middle of a write leaves it
        assert main(command) == 0
        assert {p: p.stat().st_mtime_ns for p in kept} == kept
    else:
        assert main(command) == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    out.rename(alone / name)
    assert not list(tmp_path.glob("*.parts"))
    expected = {k: v for k, v in files(whole).items() if k.startswith(name)}
    assert files(alone) == expected


def test_parts_that_are_there_are_not_drawn_again(
    model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyddpm._commands.drawing import Drawing

    batch, drawn = Drawing.batch, list[range]()

    def stops(self: Drawing, index: range, progress: bool) -> Any:
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(index)
        return batch(self, index, progress)

    monkeypatch.setattr(Drawing, "batch", stops)
    command = draw(model, tmp_path / "array.npz", "-n", "24")
    assert main(command) == 130
    assert len(list((tmp_path / "array.npz.parts").glob("*.npz"))) == 5

    def told(self: Drawing, index: range, progress: bool) -> Any:
        drawn.append(index)
        return batch(self, index, progress)

    monkeypatch.setattr(Drawing, "batch", told)
    assert main(command) == 0
    assert drawn == [range(k, k + 2) for k in range(0, 24, 2)]
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}
    drawn.clear()
    assert main(command) == 0  # a complete array is kept
    assert drawn == []


def test_two_processes_at_once_make_what_one_makes(model: str, whole: Path, tmp_path: Path) -> None:
    lines = [draw(model, tmp_path / name, "-n", "24") for name in ("folder", "array.npz")]
    pair = [
        subprocess.Popen(commands(*lines), env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}, stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    said = b"".join(process.communicate(timeout=600)[0] for process in pair)
    assert [process.returncode for process in pair] == [0, 0]
    assert files(tmp_path) == files(whole)
    assert b"array.npz" in said


def test_the_same_command_twice_at_once(model: str, whole: Path, tmp_path: Path) -> None:
    """Neither is in the other's way: work is done twice at worst, and the files are whole and the same."""
    lines = [draw(model, tmp_path / name, "-n", "24") for name in ("array.npz", "folder")]
    pair = [subprocess.Popen(commands(*lines), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(600) for process in pair] == [0, 0]
    assert files(tmp_path) == files(whole)


def test_shares_concatenate_to_the_whole(model: str, whole: Path, tmp_path: Path) -> None:
    for index in ("0:11", "11:24"):
        assert main(draw(model, tmp_path / f"{index[:2]}.npz", "--index", index)) == 0
    parts = np.concatenate([images(file) for file in sorted(tmp_path.glob("*.npz"))])
    # The cut at 11 splits a batch, in which the network may round another way.
    np.testing.assert_allclose(parts.astype(int), images(whole / "array.npz"), atol=1)


@pytest.mark.parametrize("when", range(4))
def test_another_process_may_end_the_work_at_any_moment(
    model: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """While a batch is drawn, before the parts are joined, while they are, and before they are removed."""
    from tinyddpm._commands import drawing

    command, done = draw(model, tmp_path / "array.npz", "-n", "24"), list[bool]()

    def first(own: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any) -> Any:
            if not done:
                done.append(True)
                monkeypatch.setattr(where, name, own)
                assert main(command) == 0
            return own(*args)

        return instead

    where, name = ((drawing.Drawing, "batch"), (drawing, "_join"), (drawing, "_read"), (drawing, "_remove"))[when]
    monkeypatch.setattr(where, name, first(getattr(where, name)))
    assert main(command) == 0
    assert done
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}


@pytest.fixture
def stopped(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command whose array was stopped with parts 0..7 drawn."""
    from tinyddpm._commands.drawing import Drawing

    batch, command = Drawing.batch, draw(model, tmp_path / "array.npz", "-n", "12")

    def stops(self: Drawing, index: range, progress: bool) -> Any:
        if index.start == 8:
            raise KeyboardInterrupt
        return batch(self, index, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Drawing, "batch", stops)
        assert main(command) == 130
    return command


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:80] + bytes([content[80] ^ 1]) + content[81:],
        lambda content: b"no archive",
        lambda content: zipped(np.zeros((2, 1, 9, 9), np.uint8)),
        lambda content: zipped(np.zeros((2, 1, 8, 8))),
        lambda content: zipped(np.zeros((2, 1, 8, 8), np.uint8), "pictures"),
        lambda content: bare(np.zeros((2, 1, 8, 8), np.uint8)),
    ],
)
def test_a_damaged_or_foreign_part_is_refused_by_name(
    damage: Callable[[bytes], bytes], stopped: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "array.npz.parts" / "000002-000004.npz"
    part.write_bytes(damage(part.read_bytes()))
    capsys.readouterr()
    assert main(stopped) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(part) in line
    assert not (tmp_path / "array.npz").exists()
    part.unlink()
    assert main(stopped) == 0  # as the message says
    assert main(draw(model, tmp_path / "again.npz", "-n", "12")) == 0
    assert (tmp_path / "array.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def zipped(array: np.ndarray, name: str = "images") -> bytes:
    import io

    stream = io.BytesIO()
    arrays: dict[str, Any] = {name: array}
    np.savez(stream, **arrays)
    return stream.getvalue()


def bare(array: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_parts_of_other_samples_are_refused_by_name(
    stopped: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out, parts = tmp_path / "array.npz", tmp_path / "array.npz.parts"
    before = files(tmp_path)
    for command, named in (
        ([*stopped, "--seed", "1"], "seed: 1 "),
        ([*stopped, "--batch-size", "4"], "batch_size: 4 "),
        (draw(model, out, "-n", "13"), "index: 0:13 "),
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"sample: {named}" in line
        assert str(parts) in line
        assert files(tmp_path) == before
    (parts / "000002-000005.npz").write_bytes(b"")
    assert main(stopped) == 2
    assert "000002-000005.npz is no part" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:50],
        lambda content: b"",
        lambda content: content[:-30] + bytes([content[-30] ^ 1]) + content[-29:],
        lambda content: png((9, 8), "L"),
        lambda content: png((8, 8), "RGB"),
    ],
)
def test_a_damaged_or_foreign_picture_is_refused_by_name(
    damage: Callable[[bytes], bytes], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder"
    assert main(draw(model, out, "-n", "4")) == 0
    picture = out / "000002.png"
    content = picture.read_bytes()
    picture.write_bytes(damage(content))
    assert main(draw(model, out, "-n", "6")) == 2
    assert str(picture) in capsys.readouterr().err
    picture.unlink()
    assert main(draw(model, out, "-n", "6")) == 0
    assert picture.read_bytes() == content


def png(size: tuple[int, int], mode: str) -> bytes:
    import io

    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format="PNG")
    return stream.getvalue()


def test_whoever_claims_a_folder_first_keeps_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two commands with other options start at once: one draws, the other is told whose folder it is."""
    out, link, raced = tmp_path / "folder", os.link, list[bool]()

    def late(*args: Any) -> None:
        if not raced:
            raced.append(True)
            assert main(draw(model, out, "-n", "4")) == 0
        link(*args)

    monkeypatch.setattr(os, "link", late)
    assert main(draw(model, out, "-n", "4", "--seed", "1")) == 2
    assert "seed: 1 differs from the 0" in capsys.readouterr().err
    assert json.loads((out / "samples.json").read_text())["seed"] == 0
    assert sorted(files(out)) == [*(f"{k:06d}.png" for k in range(4)), "samples.json"]


def test_several_processes_do_not_share_one_picture(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("grid.png", "way.gif"):
        assert main(draw(model, tmp_path / name)) == 2
        assert "out: 2 processes share" in capsys.readouterr().err
    for rank in ("2", "one"):
        monkeypatch.setenv("RANK", rank)
        assert main(draw(model, tmp_path / "folder")) == 2
        assert f"RANK: {rank}" in capsys.readouterr().err.replace("'", "")
    assert not list(tmp_path.iterdir())


def test_an_array_says_what_it_holds(model: str, whole: Path) -> None:
    with zipfile.ZipFile(whole / "array.npz") as archive:
        about = json.loads(archive.comment)
        assert archive.namelist() == ["images.npy"]
        assert archive.testzip() is None
    assert {"sampler": "ddpm", "steps": 2, "seed": 0, "index": "0:24"}.items() <= about.items()
    assert len(about["weights"]) == 64


def test_parts_are_joined_one_at_a_time(tmp_path: Path) -> None:
    """Memory while joining is that of a part, not of the whole."""
    import tracemalloc

    from tinyddpm._commands.drawing import _join

    parts = {range(k, k + 64): tmp_path / f"{k}.npz" for k in range(0, 2048, 64)}
    for part, file in parts.items():
        np.savez_compressed(file, images=np.full((64, 3, 32, 32), part.start % 251, np.uint8))
    tracemalloc.start()
    _join(parts, (3, 32, 32), tmp_path / "all.npz", {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = 64 * 3 * 32 * 32
    assert peak < 8 * size < 32 * size / 2
    joined = images(tmp_path / "all.npz")
    assert joined.shape == (2048, 3, 32, 32)
    np.testing.assert_array_equal(joined[:, 0, 0, 0], np.arange(2048) // 64 * 64 % 251)


@pytest.mark.slow
def test_under_torchrun(model: str, whole: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "tinyddpm"]
    for name in ("folder", "array.npz"):
        with contextlib.suppress(KeyError):
            subprocess.run([*torchrun, *draw(model, tmp_path / name, "-n", "24")], check=True, capture_output=True, timeout=200)
    assert files(tmp_path) == files(whole)


def test_a_file_system_without_links_will_do(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError("not supported")))
    assert main(draw(model, tmp_path / "folder", "-n", "2")) == 0
    assert sorted(files(tmp_path / "folder")) == ["000000.png", "000001.png", "samples.json"]
