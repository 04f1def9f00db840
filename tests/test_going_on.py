"""Going on with a run: never with something else, from copies and archives too, with settings that may change."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from runs import config, folder, log, noise, same, tensors  # noqa: E402

from tinyddpm import cli  # noqa: E402
from tinyddpm.training import CheckpointError, TrainConfig, load_run, train  # noqa: E402
from tinyddpm.training.checkpoint import find  # noqa: E402

FAST = ["--T", "20", "--channels", "8", "--batch-size", "4", "--mults", "1", "--res-blocks", "1", "--attention", "8", "-q"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 10 steps, with checkpoints at 5 and 10."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(config(out, steps=10), progress=False)
    return out


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    shutil.copytree(begun, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def go_on(out: Path, **options: Any) -> None:
    train(config(out, resume=True, **options), progress=False)


# ---- never something else


def test_resume_starts_nothing_unless_data_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "TYPO"
    assert cli.main(["train", "--out", str(out), "--resume", "--steps", "2"]) == 2
    assert capsys.readouterr().err == (
        f"tinyddpm train: resume: {out} holds no run to go on with; name --data to start one there\n"
    )
    assert not out.exists()
    assert cli.main(["train", "--out", str(out), "--resume", "--steps", "2", "--data", "digits", *FAST]) == 0
    assert "one starts there" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_starts_with_its_own_settings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one that was killed before its first checkpoint."""
    shutil.rmtree(run / "checkpoints")
    (run / "last").unlink()
    assert cli.main(["train", "--out", str(run), "--resume", "--steps", "2", "-q"]) == 0
    assert "no checkpoint yet" in capsys.readouterr().err
    assert (load_run(run).config.channels, load_run(run).step) == (4, 2)


@pytest.mark.parametrize("options", [{"predicts": "eps"}, {"predicts": "score"}, {"predicts": "score", "objective": "vlb"}])
def test_a_prediction_that_leaves_x0_open_is_refused_before_the_first_step(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=rf"^predicts must be 'v', 'x0' or 'mu' with .*'jsd'.* got '{options['predicts']}'"):
        TrainConfig(schedule="jsd", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("predicts", ["v", "x0", "mu"])
def test_what_that_message_proposes_trains_and_samples(predicts: str, tmp_path: Path) -> None:
    options = {"schedule": "jsd", "predicts": predicts, "objective": "vlb", "T": 5, "sample_every": 1, "samples": 2}
    train(config(tmp_path, steps=1, **options), progress=False)
    run = load_run(tmp_path)
    assert bool(run.diffusion.sample(run.denoiser, (2, 1, 8, 8), backend="torch").isfinite().all())


# ---- from wherever the run has been


def copied(run: Path, place: Path) -> Path:
    """By ``cp -rL``, which follows links."""
    shutil.copytree(run, place)
    assert not (place / "last").is_symlink()
    return place


def zipped(run: Path, place: Path) -> Path:
    """Through an archive: links come back as files with the link's text."""
    with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
        for file in (*(run / "checkpoints").rglob("*"), run / "log.jsonl", run / "config.json"):
            archive.write(file, file.relative_to(run))
        archive.writestr("last", os.readlink(run / "last"))
    with zipfile.ZipFile(place.with_suffix(".zip")) as archive:
        archive.extractall(place)
    return place


def unlinked(run: Path, place: Path) -> Path:
    """Without ``last``; the newest checkpoint was not copied to its end."""
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("last"))
    cut = place / "checkpoints" / "step-00000011"
    shutil.copytree(place / "checkpoints" / "step-00000010", cut)
    (cut / "optimizer.safetensors").write_bytes((cut / "optimizer.safetensors").read_bytes()[:-1])
    return place


def linked(run: Path, place: Path) -> Path:
    """With the checkpoints on another disk."""
    shutil.copytree(run, place, symlinks=True)
    shutil.move(place / "checkpoints", place.with_name("elsewhere"))
    (place / "checkpoints").symlink_to(place.with_name("elsewhere"))
    return place


@pytest.mark.parametrize("way", [copied, zipped, unlinked, linked])
def test_a_run_goes_on_from_a_copy(way: Any, run: Path, tmp_path: Path) -> None:
    place = way(run, tmp_path / "place")
    assert load_run(place).step == 10
    go_on(run, steps=12)
    go_on(place, steps=12)
    assert same(run, place)
    assert load_run(place).step == 12
    assert not [p for p in place.rglob(".*") if p.name != ".lock"]


def test_a_file_system_without_links_gets_a_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refused)
    for steps in (11, 12):
        go_on(run, steps=steps)
        assert (run / "last").is_symlink() is False
        assert load_run(run).step == steps


def test_last_may_not_lead_out_of_the_run(run: Path, begun: Path) -> None:
    (run / "last").unlink()
    (run / "last").symlink_to(begun / "checkpoints" / "step-00000010")
    with pytest.raises(ValueError, match="points outside the run folder"):
        find(run)


def test_a_finished_run_without_last_gets_it_again(run: Path) -> None:
    (run / "last").unlink()
    go_on(run, steps=10)
    assert os.readlink(run / "last") == "checkpoints/step-00000010"


# ---- with settings that change


CHANGES: dict[str, Any] = {"lr": 5e-4, "batch_size": 4, "ema": 0.9, "dropout": 0.0, "flip": True, "precision": "bf16"}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_may_change_are_recorded(name: str, run: Path) -> None:
    before = getattr(load_run(run).config, name)
    go_on(run, steps=11, **{name: CHANGES[name]})
    assert log(run)[10]["changed"] == {name: [before, CHANGES[name]]}
    assert json.loads((run / "last/state.json").read_text())["changes"] == [{"after": 10, name: [before, CHANGES[name]]}]
    go_on(run, steps=12, **{name: CHANGES[name]})
    assert len(json.loads((run / "last/state.json").read_text())["changes"]) == 1
    assert "changed" not in log(run)[11]


def test_the_steps_after_a_change_follow_from_the_settings(run: Path, tmp_path: Path) -> None:
    """Killed or not, the changed run ends with the same bits; a smaller lr makes smaller steps."""
    shutil.copytree(run, tmp_path / "b", symlinks=True)
    go_on(run, steps=12, lr=1e-6)
    for steps in (11, 12):
        go_on(tmp_path / "b", steps=steps, lr=1e-6)
    assert tensors(run) == tensors(tmp_path / "b")
    assert [line["lr"] for line in log(run)[9:]] == [1e-3, 1e-6, 1e-6]


def test_other_settings_stay_and_the_message_names_the_flag(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--out", str(run), "--resume", "--steps", "12", "--mults", "1", "-q"]) == 2
    shown = capsys.readouterr().err
    assert f"mults must stay 1,2, as in the run in {run}, got 1; without --mults the run goes on" in shown
    assert cli.main(["train", "--out", str(run), "--resume", "--steps", "12", "--held-out", "0.2", "-q"]) == 2
    shown = capsys.readouterr().err
    assert f"held_out must stay 0.1, as in the run in {run}, got 0.2; without --held-out the run goes on" in shown


def test_a_rising_lr_after_the_cooldown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path, steps=10, cooldown=4), progress=False)
    capsys.readouterr()
    train(config(tmp_path, steps=20, cooldown=4, resume=True))
    assert "lr: rises from 0.0002 at step 10 to 0.001, as --cooldown counts from the end, now step 20" in capsys.readouterr().err


# ---- a file that breaks


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes, dict[str, Any]]:
    """One of 24 images, which has its turn in the fifth step; it is truncated once a whole run has been made."""
    from tinyddpm.training.data import sources

    folder(tmp_path / "data", {f"{i:02d}.png": pixels for i, pixels in enumerate(noise(24, 8, 8))})
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    options = {"data": str(tmp_path / "data"), "checkpoint_every": 100, "batch_size": 4, "held_out": 0.0}
    train(config(tmp_path / "whole", steps=8, **options), progress=False)
    file = tmp_path / "data" / "05.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:60])
    message = r"05\.png.*; step 4 is saved, and --resume --bad-files skip goes on without it"
    with pytest.raises(ValueError, match=message) as caught:
        train(config(tmp_path / "run", steps=8, **options), progress=False)
    assert not isinstance(caught.value, CheckpointError)
    assert load_run(tmp_path / "run").step == 4
    return file, whole, options


def test_steps_before_a_broken_file_are_saved(broken: tuple[Path, bytes, dict[str, Any]], tmp_path: Path) -> None:
    file, whole, options = broken
    file.write_bytes(whole)
    go_on(tmp_path / "run", steps=8, **options)
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_broken_file_is_skipped_and_the_others_keep_their_turns(
    broken: tuple[Path, bytes, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next image stands in: from the second epoch on a run goes as one whose broken file is a copy of the next."""
    file, _, options = broken
    shutil.copytree(tmp_path / "run", tmp_path / "twin", symlinks=True)
    for steps in (6, 8):  # resumed twice: the numbering is the run's still
        train(config(tmp_path / "run", steps=steps, resume=True, **options, bad_files="skip"))
    assert capsys.readouterr().err.count("bad_files: 1 images are left out; others keep their turns") == 2
    shutil.copy(file.with_name("06.png"), file)
    go_on(tmp_path / "twin", steps=8, **options)
    assert tensors(tmp_path / "run") == tensors(tmp_path / "twin")


def test_what_is_held_out_stays_held_out_when_files_break(tmp_path: Path) -> None:
    from tinyddpm.training import load

    folder(tmp_path, {f"{i:02d}.png": np.full((8, 8), i, np.uint8) for i in range(40)})
    before = [part.pixels[:, 0, 0, 0].tolist() for part in load(tmp_path).split(0.2)]
    for broken in (0, 3, 17, 39):
        (tmp_path / f"{broken:02d}.png").write_bytes(b"no picture")
    after = [part.pixels[:, 0, 0, 0].tolist() for part in load(tmp_path, bad_files="skip").split(0.2)]
    assert after == [[k for k in part if k not in (0, 3, 17, 39)] for part in before]
