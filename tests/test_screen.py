"""What a run shows while it goes: a bar from the true start, pictures early and cheap, an answer to Ctrl-C, other loggers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from runs import config, log, trainer  # noqa: E402

from tinyddpm.training import Interrupted, TrainConfig, load_run, train  # noqa: E402
from tinyddpm.training.grids import Grids  # noqa: E402
from tinyddpm.training.screen import Screen  # noqa: E402
from tinyddpm.training.trainer import CALLS, Trainer  # noqa: E402


def test_a_resumed_bar_counts_from_the_true_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path, steps=5), progress=False)
    assert capsys.readouterr().err == ""
    train(config(tmp_path, steps=12, resume=True))
    images, first, *_, last = capsys.readouterr().err.splitlines()
    assert images == "images: 1617 of 1x8x8, values 0..16 on 17 levels (180 more held out), 10 classes (not used)"
    assert first.startswith("network: ")
    assert "device cpu" in first
    assert "steps 6 to 12 of 8 images each" in first
    assert last.startswith("train: 12/12, loss ")
    assert last.endswith(" images/s")


def test_the_bars_loss_is_a_mean_that_forgets() -> None:
    screen = Screen(0, True)
    assert screen.note == ""
    screen.update(3.0, 10.0)
    assert screen.note == "loss 3, 10 images/s"  # one value is its own mean
    screen.update(1.0, 20.0)
    assert screen.loss == pytest.approx((0.98 * 3 + 1) / 1.98)
    for _ in range(1000):
        screen.update(1.0, 20.0)
    assert screen.loss == pytest.approx(1, abs=1e-7)


def test_the_time_is_told_once_after_the_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(0, True)
    screen.time(999, 40.0)  # of the first step, which compiles and allocates
    for left in range(998, 970, -1):
        screen.time(left, 0.5 if left != 996 else 1.0)
    assert capsys.readouterr().err == "time: about 8 min for the 996 steps left, at 0.5 s each\n"
    short = Screen(0, True)
    for left in range(100, 0, -1):
        short.time(left, 0.5)
    assert capsys.readouterr().err == ""


# ---- pictures


def grids(steps: int = 1000, **options: Any) -> Grids:
    made = Grids(trainer(steps=steps, **options), Screen(0, False))
    made._began = 0.0
    return made


def test_grids_come_early_and_at_the_end() -> None:
    made = grids(1000)
    assert [k for k in range(1, 1001) if made.due(k)] == [10, 20, 50, 100, 200, 500, 1000]
    assert [k for k in range(1, 13) if grids(12).due(k)] == [1, 2, 6, 12]
    assert [k for k in range(1, 13) if grids(12, sample_every=5).due(k)] == [5, 10]
    assert not any(grids(12, sample_every=0).due(k) for k in range(1, 13))


@pytest.mark.parametrize("step_seconds", [0.01, 0.1, 0.5, 1.0, 10.0])
def test_grids_take_two_percent_of_the_run_at_most(step_seconds: float) -> None:
    """With costs as foreseen: 15 calls of a third of a step for each image, and a second for each loss figure."""
    made, counts = grids(1000, samples=64, batch_size=8), list[int]()
    for step in (10, 20, 50, 100, 200, 500, 1000):
        counts.append(made.count(step, step * step_seconds + made._spent))
        made._spent += 1.0 + counts[-1] * CALLS / 3 * step_seconds / 8 if counts[-1] else 0.0
    assert made._spent <= 0.02 * 1000 * step_seconds
    assert all(count % 8 == 0 for count in counts)
    assert counts == sorted(counts)
    assert (counts[-1] == 0) == (step_seconds < 0.1)


def test_what_is_asked_for_is_drawn_whatever_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    train(config(tmp_path, steps=4, sample_every=2, samples=3))
    said = capsys.readouterr().err
    for step in (2, 4):
        assert f"samples: {tmp_path / 'samples' / f'step-0000000{step}.png'} (3 images, " in said
    assert (tmp_path / "samples" / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_grids_that_are_too_dear_are_skipped_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path, steps=4))
    assert capsys.readouterr().err.count("samples: none at step 1, as they would take more than 2 % of the run") == 1
    assert not (tmp_path / "samples").exists()


def test_without_matplotlib_there_are_grids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyddpm.training.grids.find_spec", lambda name: None)
    train(config(tmp_path, steps=2, sample_every=1, samples=2))
    assert capsys.readouterr().err.count("loss.png: not drawn, as matplotlib is not installed") == 1
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_grids_are_drawn_in_few_calls_of_the_averaged_network(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = trainer(), list[Any]()

    def net(x: Any, t: Any, y: Any = None) -> Any:
        calls.append(t)
        return torch.zeros_like(x)

    monkeypatch.setattr(made, "ema", net)
    made.samples(3)
    assert len(calls) == CALLS == 15


def test_a_grid_that_can_not_be_drawn_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        raise ValueError("denoiser must return finite values")

    monkeypatch.setattr(Trainer, "samples", fails)
    train(config(tmp_path, steps=3, sample_every=2))
    assert "samples: none at step 2: denoiser must return finite values" in capsys.readouterr().err
    assert load_run(tmp_path).step == 3


# ---- Ctrl-C


@pytest.mark.parametrize("where", ["step", "samples"])
def test_ctrl_c_is_answered_at_once(
    where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a step is made, and while a grid is drawn: the answer is there before that ends."""
    work = getattr(Trainer, where)

    def interrupted(made: Trainer, *given: Any) -> Any:
        if where == "samples" or given == (2,):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # Python calls the handler at the next instruction
            said.append(capfd.readouterr().err)
        return work(made, *given)

    said: list[str] = []
    monkeypatch.setattr(Trainer, where, interrupted)
    with pytest.raises(Interrupted):
        train(config(tmp_path, sample_every=2, samples=2), progress=False)
    assert said == ["finishing step 2, then saving; again to stop now\n"]
    assert load_run(tmp_path).step == 2


# ---- other loggers


class WandB(ModuleType):
    """In the place of the package: `init` gives a run with `log` and `finish`; `Image` wraps an array."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.ended = 0

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        return SimpleNamespace(log=lambda values, step: self.logged.append((values, step)), finish=self.finish)

    def finish(self) -> None:
        self.ended += 1

    def Image(self, picture: Any) -> Any:
        return ("picture", picture.shape)


@pytest.mark.parametrize("chosen", [{"log_to": ("wandb",)}, {}], ids=["named", "set up"])
def test_weights_and_biases_get_what_the_log_gets(
    chosen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = WandB()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("tinyddpm.training.log.find_spec", lambda name: name == "wandb" or None)
    if not chosen:
        train(config(tmp_path / "unset", steps=1), progress=False)
        assert not wandb.begun
        monkeypatch.setenv("WANDB_MODE", "offline")
    for stop in (2, 4):
        train(config(tmp_path / "run", steps=stop, sample_every=4, samples=8, resume=True, **chosen), progress=False)
    one, two = wandb.begun
    assert one["id"] == two["id"]
    assert (one["name"], one["resume"], two["resume"], wandb.ended) == ("run", None, "allow", 2)
    assert json.loads(json.dumps(two["config"]))["steps"] == 4
    losses = [(values["loss"], step) for values, step in wandb.logged if "loss" in values]
    assert losses == [(line["loss"], line["step"]) for line in log(tmp_path / "run")]
    assert [(values["samples"], step) for values, step in wandb.logged if "samples" in values] == [(("picture", (68, 530)), 4)]


def test_loggers_that_are_not_there_are_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyddpm.training.log.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^log_to must name installed packages, got 'wandb'; pip install wandb brings it"):
        train(config(tmp_path / "run", log_to=("wandb",)), progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(LookupError, match=r"^log_to must be one of tensorboard, wandb, got 'paper'"):
        TrainConfig(log_to=("paper",))
