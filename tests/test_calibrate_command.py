"""`tinyddpm calibrate`, and what the other commands do with its file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY

from tinyddpm.cli import main

pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")
likelihood = pytest.importorskip("tinyddpm.likelihood")


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of the trained run, with a calibration."""
    folder = str(shutil.copytree(model, tmp_path_factory.mktemp("calibrated") / "run", symlinks=True))
    assert main(["calibrate", "--model", folder, "--limit", "40", "--quiet"]) == 0
    return folder


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_measures_images_that_were_not_held_out(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is that of `likelihood.calibrate` on every so-many-th training image."""
    known, loaded = likelihood.Calibration.load(Path(run, "calibration.json")), training.load_run(run)
    train, _ = loaded.config.images().split(loaded.config.held_out)
    x0 = train.scaled(slice(None))[np.arange(40) * len(train) // 40]
    found = likelihood.calibrate(loaded.diffusion, loaded.denoiser, __import__("torch").from_numpy(x0), levels=17)
    assert dataclasses.replace(known, network="") == found
    told = answer(capsys, "calibrate", "--model", run, "--limit", "40", "--data", "digits")
    assert told["images"] == 40
    bits = [row["bits_per_dim"] for row in told["chains"]]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] == found.bits_per_dim(found.timesteps())


def test_evaluate_scores_the_chain(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    full = answer(capsys, "evaluate", "--model", run, "--data", "digits", "--limit", "20")
    few = answer(capsys, "evaluate", "--model", run, "--data", "digits", "--limit", "20", "--steps", "3")
    assert (full["calls"], few["calls"]) == (6, 3)
    known, loaded = likelihood.Calibration.load(Path(run, "calibration.json")), training.load_run(run)
    d, denoiser = known.chain(loaded.diffusion, loaded.denoiser, 3)
    held = loaded.config.images().split(loaded.config.held_out)[1].rows(slice(20))
    bound = likelihood.vlb(d, denoiser, __import__("torch").from_numpy(held.scaled(slice(None))), levels=17)
    assert few["bits_per_dim"]["mean"] == pytest.approx(bound.bits_per_dim.mean(), rel=1e-6)


def test_sample_draws_by_the_chain(run: str, tmp_path: Path) -> None:
    options = ("--plan", "best", "--steps", "3", "-n", "4", "--quiet")
    for kind in (".npz", ".png", ".gif"):
        assert main(["sample", "--model", run, "--out", str(tmp_path / f"a{kind}"), *options]) == 0
    known, loaded = likelihood.Calibration.load(Path(run, "calibration.json")), training.load_run(run)
    d, denoiser = known.chain(loaded.diffusion, loaded.denoiser, 3)
    expected = training.to_uint8(d.sample(denoiser, (4, 1, 8, 8), backend="torch").numpy())
    np.testing.assert_allclose(np.load(tmp_path / "a.npz")["images"].astype(int), expected, atol=1)


def test_a_calibration_of_other_weights_is_refused(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(run, tmp_path / "run", symlinks=True)
    assert main(["train", "--out", str(other), "--resume", "--steps", "5", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--model", str(other), "--data", "digits", "--steps", "3", "--quiet"]) == 2
    assert "was made of other weights than the run has now; tinyddpm calibrate --model" in capsys.readouterr().err


def test_training_ends_with_it_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--out", str(tmp_path / "run"), "--calibrate", "--quiet"]) == 0
    assert "calibration: " in capsys.readouterr().out
    assert likelihood.Calibration.load(tmp_path / "run" / "calibration.json").rows == 512


def test_a_run_on_continuous_data_has_the_bound_of_their_density(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In training, evaluation and calibration alike: 64 dimensions of density are not those of 17 levels, log2 8 bits apart."""
    run = str(tmp_path / "run")
    options = ("--objective", "vlb", "--decoder", "density")
    assert main(["train", *TINY, *options, "--out", run, "--quiet"]) == 0
    assert main(["calibrate", "--model", run, "--limit", "20", "--quiet"]) == 0
    loaded = training.load_run(run)
    held = loaded.config.images().split(loaded.config.held_out)[1].rows(slice(20))
    x0 = __import__("torch").from_numpy(held.scaled(slice(None)))
    bound = likelihood.vlb(loaded.diffusion, loaded.denoiser, x0, decoder="density")
    found = answer(capsys, "evaluate", "--model", run, "--data", "digits", "--limit", "20")
    assert found["bits_per_dim"]["mean"] == pytest.approx(bound.bits_per_dim.mean(), rel=1e-6)
    assert found["bound_of"] == "density"
    assert likelihood.Calibration.load(Path(run, "calibration.json")).decoder == "density"
    log = [json.loads(line)["loss"] for line in Path(run, "log.jsonl").read_text().splitlines()]
    exact = str(tmp_path / "exact")
    assert main(["train", *TINY, "--objective", "vlb", "--out", exact, "--quiet"]) == 0
    assert log != [json.loads(line)["loss"] for line in Path(exact, "log.jsonl").read_text().splitlines()]


def test_plot_plan_draws_every_way(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve for each plan with each variance, at the bounds that `evaluate` would print."""
    pytest.importorskip("matplotlib")
    from tinyddpm._commands import planning

    seen: list[Any] = []
    draw = planning.figure

    def kept(table: Any) -> Any:
        seen.append(table)
        return draw(table)

    monkeypatch.setattr(planning, "figure", kept)
    assert main(["plot", "plan", str(tmp_path / "plan.png"), "--model", run, "--limit", "4", "-q"]) == 0
    (table,) = seen
    assert len(table) == 3 * 3 + 1
    assert {name: sorted(bounds) for name, bounds in table.items()}["even, beta"] == [5, 6]
    lines = draw(table).axes[0].lines
    for line, bounds in zip(lines, table.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), [bounds[n][0] for n in sorted(bounds)])


def test_the_benchmark_measures_and_writes(run: str, tmp_path: Path, script: Callable[[str], Any]) -> None:
    words = ["--model", run, "--calibrate", "20", "--limit", "5", "--calls", "2,3", "--out", str(tmp_path)]
    script("tightest_bound").main([*words, "--name", "tightest_bound_digits"])
    found = json.loads((tmp_path / "tightest_bound_digits.json").read_text())
    assert set(found["table"]["best plan, a variance for each dimension"]) == {"2", "3"}
    assert "even, Analytic-DPM" in found["table"]
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_the_samples_benchmark_measures_every_sampler(run: str, tmp_path: Path, script: Callable[[str], Any]) -> None:
    pytest.importorskip("diffusers")
    script("few_calls").main(["--model", run, "--samples", "30", "--calls", "3", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "few_calls.json").read_text())["table"]
    assert len(found) == 12
    assert all(row["3"][0] > 0 for row in found.values())
