"""Defaults that fit the machine and the size, steps that fit the clock, and runs that start from trained weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from conftest import TINY  # noqa: E402
from runs import config, pictures, tensors, trainer  # noqa: E402

from tinyddpm import cli, nn  # noqa: E402
from tinyddpm.nn import UNet  # noqa: E402
from tinyddpm.training import HO2020, TrainConfig, load_run, precision, preset, train  # noqa: E402
from tinyddpm.training import presets as module  # noqa: E402

SMALL = ["--T", "6", "--channels", "4", "--mults", "1,2", "--batch-size", "8", "--device", "cpu"]


def test_the_cpu_preset_is_the_recipe_that_was_seen_to_work() -> None:
    """0.9 to 1.5 million parameters for pictures of 32x32, attention at 8x8, 8000 steps."""
    made = preset("cpu")
    expected = {
        "channels": 32, "res_blocks": 1, "batch_size": 32, "precision": "auto", "lr": 1e-3, "warmup": 200, "cooldown": 2400,
        "ema": 0.999, "steps": 8000,
    }  # fmt: skip
    assert {name: getattr(made, name) for name in expected} == expected
    net = made.unet(pictures(1, (3, 32, 32)))
    assert net.config["attention"] == [8]
    assert 0.9e6 < sum(p.numel() for p in net.parameters()) < 1.6e6


def test_the_papers_preset_is_the_papers() -> None:
    assert preset("ho2020", data=HO2020.data, out=HO2020.out) == HO2020


@pytest.mark.parametrize(("given", "name"), [({}, "cpu"), ({"device": "cuda:1"}, "gpu"), ({"device": "cpu"}, "cpu")])
def test_the_device_decides(given: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert module.chosen(None, given) == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert module.chosen(None, {}) == "gpu"
    with pytest.raises(LookupError, match=r"^preset must be one of cpu, gpu, ho2020, got 'tpu'"):
        module.chosen("tpu", {})


@pytest.mark.parametrize("steps", [1, 20, 1000, 10**6])
@pytest.mark.parametrize("channels", [1, 32, 128, 512])
def test_what_follows_from_the_size(steps: int, channels: int) -> None:
    """Adam's updates have one size whatever the gradient's: what a layer's output moves by grows with its width."""
    made = preset("cpu", steps=steps, channels=channels)
    assert made.lr == pytest.approx(min(1e-3, 0.032 / channels))
    assert made.warmup + made.cooldown < steps
    assert made.warmup <= 200
    assert 0.9 <= made.ema <= 0.9999
    given = {"lr": 0.5, "warmup": 7, "cooldown": 0, "ema": 0.1, "precision": "float32"}
    made = preset("gpu", steps=steps, channels=channels, **given)
    assert {name: getattr(made, name) for name in given} == given


@pytest.mark.parametrize(("computes", "seconds", "chosen"), [
    (True, {"float32": 1.25, "bf16": 1.0}, "bf16"), (True, {"float32": 1.15, "bf16": 1.0}, "float32"),
    (True, {"float32": 1.0, "bf16": 9.0}, "float32"), (False, {}, "float32"),
])  # fmt: skip
def test_precision_auto_is_the_faster_one_and_stays(
    computes: bool, seconds: dict[str, float], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """bf16 has to be a fifth faster; a run that is resumed keeps its precision whatever is measured then."""
    monkeypatch.setattr(precision, "computes_bf16", lambda kind: computes)
    monkeypatch.setattr(precision, "_fastest", lambda trainer: seconds[trainer.config.precision])
    given = {"precision": "auto", "T": 6, "channels": 4, "mults": (1, 2), "batch_size": 40, "device": "cpu"}
    settings = TrainConfig(**given, steps=1, out=str(tmp_path / "run"))  # type: ignore[arg-type]
    train(settings)
    said = capsys.readouterr().err
    assert load_run(tmp_path / "run").config.precision == chosen
    assert f"precision: {chosen}, as " in said
    assert "of 32 images" in said or not computes
    seconds |= {"float32": 1.0, "bf16": 5.0} if chosen == "bf16" else {"float32": 5.0, "bf16": 1.0}
    train(dataclasses.replace(settings, steps=2, resume=True))
    assert load_run(tmp_path / "run").config.precision == chosen
    assert f"precision: {chosen}, as before" in capsys.readouterr().err


def test_minutes_count_steps_in_the_precision_that_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda kind: True)
    words = ["train", "--data", "digits", *SMALL, "--out", str(tmp_path / "run"), "--minutes", "0.0001", "--quiet"]
    assert cli.main(words) == 0
    monkeypatch.setattr(precision, "_GAIN", 0.0)  # whatever the times, bf16 is chosen
    assert load_run(tmp_path / "run").config.precision in ("float32", "bf16")
    assert cli.main([*words[:-4], str(tmp_path / "half"), *words[-3:-1]]) == 0
    said = capsys.readouterr().out
    assert "# precision: bf16, as a step of 8 images takes " in said
    assert 'precision = "bf16"' in said


def test_python_keeps_its_defaults() -> None:
    """Runs of before go on: their settings lack what came later."""
    made = TrainConfig()
    assert (made.lr, made.warmup, made.batch_size, made.precision, made.attention_side) == (1e-3, 0, 64, "float32", 16)


def test_the_command_line_says_what_the_preset_decided_and_flags_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file.toml").write_text("warmup = 2\nres_blocks = 2\n")
    words = ["train", "--data", "digits", *SMALL, "--steps", "3", "--config", str(tmp_path / "file.toml"), "--res-blocks", "1"]
    assert cli.main([*words, "--lr", "0.002", "--preset", "cpu", "--out", str(tmp_path / "run")]) == 0
    line, _, rest = capsys.readouterr().out.partition("\n")
    assert line.startswith("# preset cpu, as asked: attention_side 8, checkpoint_every 500, cooldown 0,")
    assert not any(f" {name} " in line for name in ("lr", "warmup", "res_blocks", "channels"))
    settings = tomllib.loads(rest.partition("checkpoint:")[0])
    assert (settings["lr"], settings["warmup"], settings["res_blocks"]) == (0.002, 2, 1)
    assert cli.main(["train", "--out", str(tmp_path / "run"), "--resume", "--preset", "gpu"]) == 2
    assert "preset must not be given to a run that goes on" in capsys.readouterr().err


def test_a_file_of_settings_brings_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier version printed trains the same network with the same steps."""
    (tmp_path / "file.toml").write_text("steps = 1\nmults = [1, 2]\n")
    words = ["train", "--data", "digits", *SMALL, "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--config", str(tmp_path / "file.toml")]) == 0
    assert "# preset" not in capsys.readouterr().out
    made = load_run(tmp_path / "run").config
    assert (made.res_blocks, made.attention_side, made.precision) == (2, 16, "float32")
    assert cli.main([*words[:-1], str(tmp_path / "other"), "--steps", "1"]) == 0
    assert capsys.readouterr().out.startswith("# preset cpu, for a CPU: ")


# ---- the clock


def test_minutes_fit_the_steps_and_the_cooldown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 0.05 s a step 0.02 minutes hold 22 steps, as 5 % are for grids and checkpoints; a resumed run keeps the number."""
    monkeypatch.setattr(module, "_seconds_a_step", lambda made: 0.05)
    words = ["train", "--data", "digits", *SMALL, "--res-blocks", "1", "--checkpoint-every", "5", "--precision", "float32"]
    assert cli.main([*words, "--minutes", "0.02", "--out", str(tmp_path / "a")]) == 0
    assert "# steps 22: as many as fit into 0.02 minutes at 0.05 s each" in capsys.readouterr().out
    run = load_run(tmp_path / "a")
    assert (run.step, run.config.cooldown, run.config.warmup) == (22, 6, 2)
    assert cli.main([*words, "--steps", "22", "--out", str(tmp_path / "b"), "-q"]) == 0
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")
    for step in (20, 22):  # as if it had been killed
        shutil.rmtree(tmp_path / "a" / "checkpoints" / f"step-000000{step}")
        (tmp_path / "a" / "last").unlink(missing_ok=True)
        assert cli.main(["train", "--out", str(tmp_path / "a"), "--resume", "-q"]) == 0
        assert tensors(tmp_path / "a") == tensors(tmp_path / "b")
        assert load_run(tmp_path / "a").step == 22
    assert cli.main([*words, "--minutes", "0", "--out", str(tmp_path / "c")]) == 2
    assert "minutes must" in capsys.readouterr().err
    assert cli.main([*words, "--minutes", "1", "--steps", "5", "--out", str(tmp_path / "c")]) == 2
    assert "minutes must be left out if --steps is given, got 1" in capsys.readouterr().err


def test_the_time_of_a_step_is_that_of_the_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step makes what is made once."""
    made, clock = trainer(), [0.0]

    def step(number: int) -> Any:
        clock[0] += 100.0 if number == 1 else 0.01
        return torch.zeros(3)

    monkeypatch.setattr(made, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert module._seconds_a_step(made) == pytest.approx(0.01)


# ---- from trained weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, the same network saved alone, and a pipeline with it."""
    out = tmp_path_factory.mktemp("source")
    train(config(out / "run", steps=2, channels=8, dropout=0.0), progress=False)
    run = load_run(out / "run")
    run.net.save(out / "net")
    nn.save_diffusers(out / "pipe", run.net, run.diffusion, run.denoiser)
    return out


@pytest.mark.parametrize("kind", ["run", "net", "pipe"])
def test_a_run_starts_from_trained_weights(kind: str, source: Path, tmp_path: Path) -> None:
    made = trainer(init_from=str(source / kind), channels=16, out=str(tmp_path / "none"))
    made.begin()
    for p, q in zip(made.net.parameters(), load_run(source / "run").net.parameters(), strict=True):
        assert torch.equal(p, q)
    for p, q in zip(made.averages, made.parameters, strict=True):
        assert torch.equal(p, q)
    assert any("166 of 166" in note or "tensors are those of" in note for note in made.notes)


def test_it_goes_on_without_its_source(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source / "run", tmp_path / "gone", symlinks=True)
    options = {"init_from": str(tmp_path / "gone"), "dropout": 0.0}
    train(config(tmp_path / "a", steps=4, **options), progress=False)
    train(config(tmp_path / "b", steps=2, **options), progress=False)
    shutil.rmtree(tmp_path / "gone")
    train(config(tmp_path / "b", steps=4, resume=True, **options), progress=False)
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")


def test_other_classes_and_sizes_take_what_fits_and_say_what_not(source: Path, tmp_path: Path) -> None:
    """The same convolutions serve another size; the first and the last of them know the channels, the labels are new."""
    made = trainer(pictures(20, (3, 16, 16)), init_from=str(source / "run"), classes=True, out=str(tmp_path / "none"))
    made.begin()
    taken, fresh = (note for note in made.notes)
    count = len(made.net.state_dict())
    assert taken == f"init_from: {count - 4} of {count} tensors are those of {source / 'run'}"
    assert fresh.endswith(": label.weight, conv_in.weight, conv_out.weight, conv_out.bias")
    assert made.net.config["attention"] == [8]  # the level that had it at half the size
    assert bool(made.step(1).isfinite().all())


def test_the_command_line_takes_the_width_and_the_chain_from_the_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", "digits", "--steps", "1", "--batch-size", "8", "--init-from", str(source / "run")]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "--predicts", "v"]) == 0
    shown = capsys.readouterr()
    made = load_run(tmp_path / "run")
    assert (made.config.T, made.config.channels, made.config.predicts) == (50, 8, "v")
    assert made.net.config == {**load_run(source / "run").net.config}
    assert "init_from: the weights predict eps, this run v" in shown.err
    assert json.loads((tmp_path / "run" / "last" / "state.json").read_text())["config"]["init_from"] == str(source / "run")


def test_wrong_sources_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, message in ((tmp_path / "empty", "holds neither a run nor"), (tmp_path / "nowhere", "nowhere")):
        with pytest.raises(FileNotFoundError, match=rf"^init_from: .*{message}"):
            train(config(tmp_path / "run", init_from=str(place)), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_model_with_other_parts_keeps_them(tmp_path: Path) -> None:
    """What a run has no setting for comes with the weights."""
    net = UNet(8, 1, channels=8, mults=(1, 2), res_blocks=1, attention=(4,), heads=2, norm_eps=1e-5, scale_shift=True)
    net.save(tmp_path / "net")
    made = trainer(init_from=str(tmp_path / "net"), out=str(tmp_path / "none"))
    made.begin()
    x, t = torch.from_numpy(np.ones((2, 1, 8, 8), np.float32)), torch.tensor([1, 2])
    assert torch.allclose(made.ema(x, t), net.eval()(x, t), atol=1e-6)


def test_the_commands_at_the_end_are_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *TINY, "--T", "50", "--out", str(tmp_path / "run")]) == 0
    assert "--sampler dpm++2m --steps 20" in capsys.readouterr().out
