"""``tinyddpm sample`` writes the sampler's samples, and the same files however the work was cut, shared or killed."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from tinyddpm.cli import main

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")

from tinyddpm._commands.drawing import Drawing  # noqa: E402


def images(file: Path) -> np.ndarray:
    with np.load(file) as stored:
        assert stored.files in (["images"], ["images", "labels"])
        return np.asarray(stored["images"])


def test_samples_are_those_of_the_sampler_for_any_batch_size(model: str, tmp_path: Path) -> None:
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


def test_a_folder_is_completed_and_not_drawn_again(model: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    draw = ["sample", "--model", model, "-q", "--batch-size", "4", "--out"]
    assert main([*draw, str(whole), "-n", "10"]) == 0
    names = [f"{k:06d}.png" for k in range(10)]
    assert sorted(p.name for p in whole.iterdir()) == [*names, "samples.json"]
    assert main([*draw, str(parts), "-n", "10"]) == 0
    for name in ("000002.png", "000005.png"):
        (parts / name).unlink()
    (parts / ".000002.png.0123abcd.new").write_bytes(b"half")  # as a kill in the middle of a write leaves it
    kept = (parts / "000006.png").stat().st_mtime_ns
    assert main([*draw, str(parts), "-n", "10"]) == 0
    assert (parts / "000006.png").stat().st_mtime_ns == kept
    assert files(parts) == files(whole)
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
    assert "seed must be 0" in capsys.readouterr().err
    assert not (tmp_path / "folder" / "000002.png").exists()


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "text": lambda file: file.write_text("a diary\n"),
    "a list": lambda file: file.write_text("[]\n"),
    "a long line": lambda file: file.write_bytes(b"[" * 10**6),
    "a link": lambda file: file.symlink_to("precious"),
    "a link to nowhere": lambda file: file.symlink_to("nowhere"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda file: file.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("out", ["array.npz", "folder"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_in_the_place_of_ours_is_refused_and_kept(
    name: str, out: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    file = {"array.npz": tmp_path / "array.npz.part", "folder": tmp_path / "folder" / "samples.json"}[out]
    (file.parent / "precious").write_text("kept")
    FOREIGN[name](file)
    before = files(tmp_path)
    assert main(draw(model, tmp_path / out, "-n", "2")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line
    assert files(tmp_path) == before


@pytest.mark.parametrize(("sampler", "spacing"), [("ddpm", "even"), ("ddim", "quadratic"), ("dpm++2m-sde", "log_snr")])
def test_fewer_steps_are_spaced_as_is_best_for_the_sampler(model: str, tmp_path: Path, sampler: str, spacing: str) -> None:
    file = tmp_path / "samples.npz"
    draw = ["sample", "--model", model, "--out", str(file), "-n", "4", "-q", "--steps", "3", "--sampler", sampler]
    assert main(draw) == 0
    noted = json.loads(zipfile.ZipFile(file).comment)
    assert (noted["spacing"], noted["eta"]) == (spacing, 1.0 if sampler == "dpm++2m-sde" else 0.0)
    run = training.load_run(model)
    own = run.diffusion.sample(run.denoiser, (4, 1, 8, 8), sampler=sampler, steps=3, spacing=spacing, backend="torch")
    assert np.allclose(images(file).astype(int), training.to_uint8(own.numpy()), atol=1)


def test_samples_get_the_labels_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = str(tmp_path / "run"), tmp_path / "samples.npz"
    assert main(["train", *TINY, "--classes", "--out", model, "--quiet"]) == 0
    draw = ["sample", "--model", model, "--out", str(file), "-q", "--batch-size", "2"]
    assert main([*draw, "--index", "3:8", "--label", "7,0,2", "--guidance", "3"]) == 0
    run = training.load_run(model)
    denoiser = run.denoiser_for([7, 0, 2, 7, 0], 3.0)
    own = run.diffusion.sample(denoiser, (5, 1, 8, 8), index=range(3, 8), backend="torch").numpy()
    np.testing.assert_allclose(images(file).astype(int), training.to_uint8(own), atol=1)
    with np.load(file) as stored:
        assert stored["labels"].tolist() == [7, 0, 2, 7, 0]  # of the samples 3 to 7
    capsys.readouterr()
    for words, named in ((["--label", "10"], "10"), (["--label", "-1"], "-1"), (["--guidance", "2"], "got 2.0")):
        assert main([*draw, *words]) == 2
        assert named in capsys.readouterr().err


# An animation.


def test_an_animation_shows_the_states_up_to_the_grid(model: str, tmp_path: Path) -> None:
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


# Samples that were stopped are completed, and foreign files are refused.


def draw(model: str, out: Path, *options: str) -> list[str]:
    return ["sample", "--model", model, "-q", "--steps", "2", "--batch-size", "2", "--out", str(out), *options]


def commands(*lines: list[str]) -> list[str]:
    """A command that runs these command lines in a new process, with a pause before each batch."""
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


def part_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.part")


def test_a_run_that_was_killed_and_resumed_gives_the_same_array(model: str, whole: Path, tmp_path: Path) -> None:
    """Of a folder, `test_kill` has this."""
    command, part = draw(model, tmp_path / "array.npz", "-n", "24"), part_of(tmp_path / "array.npz")
    with subprocess.Popen(commands(command), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not part.exists() or part.stat().st_size < 600:  # a batch and its note take 132 or more
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
    assert not (tmp_path / "array.npz").exists()
    assert main(command) == 0
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}


def counted(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[range]:
    """The batches that are drawn from now on, of which the one after `stop` is interrupted."""
    batch, drawn = Drawing.batch, list[range]()

    def counts(self: Drawing, index: range, progress: bool) -> Any:
        if len(drawn) == stop:
            raise KeyboardInterrupt
        drawn.append(index)
        return batch(self, index, progress)

    monkeypatch.setattr(Drawing, "batch", counts)
    return drawn


@pytest.fixture
def stopped(model: str, tmp_path: Path) -> list[str]:
    """A command whose array was stopped after 5 of 12 batches."""
    command = draw(model, tmp_path / "array.npz", "-n", "24")
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, 5)
        assert main(command) == 130
    return command


def test_batches_that_are_there_are_not_drawn_again(
    stopped: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = counted(monkeypatch)
    assert main(stopped) == 0
    assert drawn == [range(k, k + 2) for k in range(10, 24, 2)]
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}
    drawn.clear()
    assert main(stopped) == 0  # a complete array is kept
    assert drawn == []


def test_the_same_command_twice_at_once(model: str, whole: Path, tmp_path: Path) -> None:
    """Both succeed: the second waits for the first one's array and finds it complete."""
    lines = [draw(model, tmp_path / name, "-n", "24") for name in ("array.npz", "folder")]
    pair = [subprocess.Popen(commands(*lines), stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(600) for process in pair] == [0, 0]
    assert files(tmp_path) == files(whole)


def test_a_command_says_that_it_waits(model: str, whole: Path, tmp_path: Path) -> None:
    from tinyddpm._commands.saving import _locked

    line = [word for word in draw(model, tmp_path / "array.npz", "-n", "24") if word != "-q"]
    with _locked(part_of(tmp_path / "array.npz"), announce=False):
        process = subprocess.Popen(commands(line), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == f"waiting for the process that writes {part_of(tmp_path / 'array.npz')}\n"
        assert process.poll() is None
    process.communicate(timeout=600)
    assert process.returncode == 0
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}


@pytest.mark.parametrize("moment", ["before the lock", "before the removal"])
def test_an_array_that_another_process_completes_is_kept(
    moment: str, stopped: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if moment == "before the lock":
        saving: Any = importlib.import_module("tinyddpm._commands.saving")
        locked = saving._locked

        def late(*args: Any, **options: Any) -> Any:
            monkeypatch.setattr(saving, "_locked", locked)
            assert main(stopped) == 0
            return locked(*args, **options)

        monkeypatch.setattr(saving, "_locked", late)
    else:  # a kill after the array was written
        (tmp_path / "array.npz").write_bytes((whole / "array.npz").read_bytes())
    drawn = counted(monkeypatch)
    assert main(stopped) == 0
    assert len(drawn) == (7 if moment == "before the lock" else 0)
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in a batch": lambda content: content[:-70],
    "cut behind the note": lambda content: content[: content.index(b"\n") + 1],
    "cut in the note": lambda content: content[:9],
    "empty": lambda content: b"",
    "a flipped bit in the second batch": lambda content: (
        content[: (k := content.index(b"\n") + 200)] + bytes([content[k] ^ 1]) + content[k + 1 :]
    ),
    "zeros at the end": lambda content: content[:-100] + bytes(100),
    "bytes behind the end": lambda content: content + bytes(10_000),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_batches_are_drawn_again(name: str, stopped: list[str], whole: Path, tmp_path: Path) -> None:
    part = part_of(tmp_path / "array.npz")
    part.write_bytes(DAMAGE[name](part.read_bytes()))
    assert main(stopped) == 0
    assert files(tmp_path) == {"array.npz": (whole / "array.npz").read_bytes()}


def test_batches_of_other_samples_are_refused_by_name(
    stopped: list[str], model: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, part = tmp_path / "array.npz", part_of(tmp_path / "array.npz")
    capsys.readouterr()
    for command, named in (
        ([*stopped, "--seed", "1"], "seed must be 0, as in "),
        ([*stopped, "--batch-size", "4"], "batch_size must be 2, as in "),
        (draw(model, out, "-n", "13"), "index must be 0:24, as in "),
    ):
        before = files(tmp_path)
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"sample: {named}{part}, got" in line
        assert files(tmp_path) == before
    out.write_bytes((whole / "array.npz").read_bytes())
    part.write_bytes(part.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    before = files(tmp_path)
    assert main(stopped) == 0  # the array is complete, and the other samples are left alone
    assert files(tmp_path) == before


def png(size: tuple[int, int], mode: str) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "other size", "other mode"])
def test_a_damaged_or_foreign_picture_is_refused_by_name(
    kind: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder"
    assert main(draw(model, out, "-n", "4")) == 0
    picture = out / "000002.png"
    content = picture.read_bytes()
    flipped = content[:-30] + bytes([content[-30] ^ 1]) + content[-29:]
    damaged = {"cut": content[:50], "empty": b"", "flipped": flipped, "other size": png((9, 8), "L")}
    picture.write_bytes(damaged.get(kind, png((8, 8), "RGB")))
    assert main(draw(model, out, "-n", "6")) == 2
    assert str(picture) in capsys.readouterr().err
    picture.unlink()  # as the message says
    assert main(draw(model, out, "-n", "6")) == 0
    assert picture.read_bytes() == content


def test_the_first_command_in_a_folder_keeps_it(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two commands with different options start at once: one draws, the other is refused."""
    out, link, raced = tmp_path / "folder", os.link, list[bool]()

    def late(*args: Any) -> None:
        if not raced:
            raced.append(True)
            assert main(draw(model, out, "-n", "4")) == 0
        link(*args)

    monkeypatch.setattr(os, "link", late)
    assert main(draw(model, out, "-n", "4", "--seed", "1")) == 2
    assert "seed must be 0, as in " in capsys.readouterr().err
    assert json.loads((out / "samples.json").read_text())["seed"] == 0
    assert sorted(files(out)) == [*(f"{k:06d}.png" for k in range(4)), "samples.json"]


def test_several_processes_share_nothing_but_a_folder(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("grid.png", "way.gif", "array.npz"):
        assert main(draw(model, tmp_path / name)) == 2
        assert "out must be a folder, which 2 processes can share, got" in capsys.readouterr().err
    for rank, message in (("2", "RANK must be in 0..1, got 2"), ("one", "RANK must be a number, got 'one'")):
        monkeypatch.setenv("RANK", rank)
        assert main(draw(model, tmp_path / "folder")) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_array_says_what_it_holds(model: str, whole: Path) -> None:
    with zipfile.ZipFile(whole / "array.npz") as archive:
        about = json.loads(archive.comment)
        assert archive.namelist() == ["images.npy"]
        assert archive.testzip() is None
    assert {"sampler": "ddpm", "steps": 2, "seed": 0, "index": "0:24"}.items() <= about.items()
    assert len(about["weights"]) == 64


def test_an_array_is_written_with_one_batch_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    from tinyddpm._commands.saving import save_array

    class Stripes(Drawing):
        """Constant pictures of a size at which memory shows."""

        about: Any = MappingProxyType({})

        def batch(self, index: range, progress: bool) -> Any:
            return np.full((len(index), 3, 32, 32), index.start % 251, np.uint8)

        def values(self, x: Any) -> Any:
            return x

    run: Any = SimpleNamespace(shape=(3, 32, 32), levels=256, config=SimpleNamespace(value_range=None))
    tracemalloc.start()
    save_array(Stripes(run, range(2048), 64, {}), tmp_path / "all.npz")
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
    subprocess.run([*torchrun, *draw(model, tmp_path / "folder", "-n", "24")], check=True, capture_output=True, timeout=200)
    assert files(tmp_path / "folder") == files(whole / "folder")


def test_a_file_system_without_links_is_enough(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError("not supported")))
    assert main(draw(model, tmp_path / "folder", "-n", "2")) == 0
    assert sorted(files(tmp_path / "folder")) == ["000000.png", "000001.png", "samples.json"]
