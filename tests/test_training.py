"""Training: the loss is the paper's, a killed run ends as if nothing had happened, and the world size does not matter."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from runs import SETTINGS, config, log, pictures, same, trainer  # noqa: E402

from tinyddpm import cli, noise  # noqa: E402
from tinyddpm.nn import UNet  # noqa: E402
from tinyddpm.training import DEMO, Interrupted, TrainConfig, load_run, train  # noqa: E402
from tinyddpm.training.batches import Order  # noqa: E402
from tinyddpm.training.evaluation.classifier import train_classifier  # noqa: E402


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train(config(out), progress=False) == out / "last"
    return out


# ---- one step


def test_step_is_adam_on_the_papers_loss() -> None:
    """Two steps, written out: L_simple with t, eps and rows from their streams, clipping, warm-up, Adam, EMA."""
    made = trainer(dropout=0.0, grad_clip=0.05)
    d, images, lr = made.diffusion, pictures(), [1e-3 / 5, 2e-3 / 5]
    weights = {n: p.detach().clone() for n, p in made.net.named_parameters()}
    average = {n: p.clone() for n, p in weights.items()}
    first = {n: torch.zeros_like(p) for n, p in weights.items()}
    second = {n: torch.zeros_like(p) for n, p in weights.items()}
    for step in (1, 2):
        net = UNet(**made.net.config)
        net.load_state_dict(weights)
        rng = np.random.Generator(np.random.Philox(key=[0, 2], counter=[0, 0, step, 1]))
        t = rng.integers(1, 51, 8)
        eps = torch.from_numpy(noise.normal(0, range(8), step, (1, 8, 8), stream=2))
        order = np.random.Generator(np.random.Philox(key=[0, 2], counter=[0, 0, 0, 2])).permutation(20)
        x0 = torch.from_numpy(images.pixels[order[8 * step - 8 : 8 * step]] / 8 - 1).float()
        bar = torch.tensor(d.alpha_bar[t]).float()[:, None, None, None]
        loss = (eps - net(bar.sqrt() * x0 + (1 - bar).sqrt() * eps, torch.from_numpy(t - 1))).square().mean()
        loss.backward()
        grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        assert float(norm) > 0.05
        got = made.step(step)
        # float32 sums of the network in another memory layout: 1e-4 with a wide margin
        assert float(got[1]) == pytest.approx(float(loss.detach()), rel=1e-4)
        assert float(got[2]) == pytest.approx(float(norm), rel=1e-3)
        assert grads.keys() == weights.keys()
        for name, grad in grads.items():
            g = grad * 0.05 / norm
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            weights[name] = weights[name] - lr[step - 1] * m / (v.sqrt() + 1e-8)
            decay = (1 + step) / (10 + step)
            average[name] = decay * average[name] + (1 - decay) * weights[name]
        # Adam turns a gradient of rounding size into a full step: compare in the mean
        for mine, theirs in ((made.parameters, weights), (made.averages, average)):
            off = torch.cat([(p.detach() - q).abs().flatten() for p, q in zip(mine, theirs.values(), strict=True)])
            assert float(off.mean()) < 0.02 * lr[step - 1]


def test_log_has_one_line_per_step(whole: Path) -> None:
    lines = log(whole)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["lr"] for line in lines] == pytest.approx([1e-3 * min(k / 5, 1) for k in range(1, 13)])
    assert sum(line["loss"] for line in lines[-3:]) < sum(line["loss"] for line in lines[:3])
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)


def test_flips_mirror_about_half_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for flip in (False, True):
        made = trainer(batch_size=64, flip=flip)

        def loss(d: Any, net: Any, x0: Any, t: Any, eps: Any, own: Callable[..., Any] = made.loss) -> Any:
            seen.append(x0)
            return own(d, net, x0, t, eps)

        monkeypatch.setattr(made, "loss", loss)
        made.step(1)
    same, mirrored = ((seen[1] == other).all((1, 2, 3)) for other in (seen[0], seen[0].flip(3)))
    assert bool((same ^ mirrored).all())
    assert 16 <= int(mirrored.sum()) <= 48


def test_cooldown_ends_near_zero() -> None:
    made = trainer(cooldown=4)
    assert [made.lr(k) for k in (8, 9, 10, 12)] == pytest.approx([1e-3, 0.8e-3, 0.6e-3, 0.2e-3])


@given(count=st.integers(1, 40), size=st.integers(1, 50), first=st.integers(1, 9))
def test_order_is_one_permutation_after_another(count: int, size: int, first: int) -> None:
    order = Order(0, count, size)
    steps = -(-3 * count // size)
    seen = np.concatenate([order(k) for k in range(1, steps + 1)])
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    np.testing.assert_array_equal(Order(0, count, size)(first), order(first))


# ---- the same run, however it goes


def test_runs_repeat_and_seeds_matter(whole: Path, tmp_path: Path) -> None:
    train(config(tmp_path / "a"), progress=False)
    assert same(whole, tmp_path / "a")
    torch.manual_seed(99)
    train(config(tmp_path / "b", seed=1), progress=False)
    assert not same(whole, tmp_path / "b")


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(config(tmp_path, steps=2, sample_every=2, samples=2), progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stops", [(5,), (3, 7), (1, 2, 11)])
def test_resumed_runs_end_with_the_same_bits(whole: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    for stop in (*stops, 12):
        train(config(tmp_path, steps=stop, resume=True), progress=False)
    assert same(whole, tmp_path)


def test_sample_grids_change_nothing(whole: Path, tmp_path: Path) -> None:
    from PIL import Image

    train(config(tmp_path, sample_every=4, samples=3), progress=False)
    assert same(whole, tmp_path)
    files = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert files == ["loss.png", "step-00000004.png", "step-00000008.png", "step-00000012.png"]
    with Image.open(tmp_path / "samples" / files[1]) as grid:
        assert grid.size == (8 * (64 + 2) + 2, 64 + 4)


SCRIPT = """
import sys
from tinyddpm.training import TrainConfig, train, Interrupted
try:
    train(TrainConfig.from_dict(eval(sys.argv[1])))
except Interrupted as interrupt:
    print(interrupt)
    raise SystemExit(128 + interrupt.signum)
"""


def start(out: Path, **options: Any) -> subprocess.Popen[str]:
    settings = repr({**SETTINGS, "out": str(out), "resume": True, **options})
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, settings], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip


def wait_for_lines(out: Path, lines: int, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if process.poll() is not None:
            raise AssertionError(process.communicate())
        if (out / "log.jsonl").exists() and (out / "log.jsonl").read_text().count("\n") >= lines:
            return
        time.sleep(0.01)
    raise AssertionError("the run makes no steps")


LONG = {"steps": 100, "checkpoint_every": 7, "T": 51}


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("long") / "run"
    train(config(out, **LONG), progress=False)
    return out


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_finish_the_step_and_save(long: Path, tmp_path: Path, signum: signal.Signals) -> None:
    process = start(tmp_path, **LONG)
    wait_for_lines(tmp_path, 10, process)
    process.send_signal(signum)
    said, bar = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    step = load_run(tmp_path).step
    assert f"step {step} is saved" in said
    assert "Traceback" not in bar
    assert [line["step"] for line in log(tmp_path)] == list(range(1, step + 1))
    assert 10 <= step < 100
    train(config(tmp_path, **LONG, resume=True), progress=False)
    assert same(long, tmp_path)


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted) as caught:
        train(config(tmp_path, steps=100_000), progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert caught.value.signum == signal.SIGINT
    assert load_run(tmp_path).step == caught.value.step


# ---- many processes


def test_a_row_does_not_depend_on_the_world_size() -> None:
    """Gradients of two halves of a batch, each made by its own rank, average to the gradient of the whole."""

    def gradient(rank: int, size: int) -> list[Any]:
        made = trainer(rank=rank, size=size, grad_clip=1e9)
        made.step(1)
        return [p.grad for p in made.parameters]

    halves = zip(gradient(0, 2), gradient(1, 2), strict=True)
    for whole, (one, two) in zip(gradient(0, 1), halves, strict=True):
        torch.testing.assert_close((one + two) / 2, whole, rtol=1e-3, atol=1e-5)  # float32 sums in another order


def _worker(rank: int, size: int, folder: str, options: dict[str, Any]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    train(config(Path(folder) / "run", **options), progress=False)
    dist.destroy_process_group()


EVERYTHING = {"classes": True, "time_sampler": "loss_aware", "T": 3, "accumulate": 2, "flip": True}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"steps": 50, "checkpoint_every": 20, **options}
    train(config(tmp_path / "one", **options), progress=False)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, 2, str(tmp_path), options)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode == 0
    one, two = log(tmp_path / "one"), log(tmp_path / "run")
    assert [line["step"] for line in two] == list(range(1, 51))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=2e-4)
    # one process goes on with what two have made, t's history with it
    train(config(tmp_path / "run", **{**options, "steps": 52}, resume=True), progress=False)
    assert load_run(tmp_path / "run").step == 52


# ---- configs


@pytest.mark.parametrize(
    ("size", "mults", "attention"),
    [((32, 32), [1, 2, 2, 2], [16]), ((28, 28), [1, 2, 2], [14]), ((8, 8), [1, 2, 2], [4]), ((64, 64), [1, 2, 2, 2], [16]),
     ((16, 48), [1, 2, 2], [4]), ((36, 36), [1, 2, 2], [9])],
)  # fmt: skip
def test_default_levels(size: tuple[int, int], mults: list[int], attention: list[int]) -> None:
    net = config(mults=None, attention=None).unet(pictures(1, (1, *size)))
    assert (net.config["mults"], net.config["attention"]) == (mults, attention)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic", "geometric", "constant"])
def test_every_schedule_and_prediction_trains(predicts: str, schedule: str) -> None:
    made = trainer(predicts=predicts, schedule=schedule)
    assert bool(made.step(1).isfinite().all())


def test_schedules_keep_the_papers_ends() -> None:
    beta = config(T=1000).diffusion().beta
    assert (beta[1], beta[1000]) == (1e-4, 0.02)
    # the same process in fewer steps: the signal left at the end is of the same size
    assert math.log(config(T=100).diffusion().alpha_bar[100]) == pytest.approx(-10, abs=1.5)


def test_resume_refuses_another_runs_settings(whole: Path, tmp_path: Path) -> None:
    train(config(tmp_path, steps=2), progress=False)
    for options, name in (({"T": 51}, "T"), ({"channels": 8}, "channels"), ({"steps": 1}, "steps")):
        with pytest.raises(ValueError, match=rf"^{name}\b"):
            train(config(tmp_path, resume=True, **{"steps": 3, **options}), progress=False)
    np.save(tmp_path / "other.npy", np.zeros((30, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"^data\b"):
        train(config(tmp_path, resume=True, data=str(tmp_path / "other.npy")), progress=False)


def test_settings_are_documented_and_hold_pythons_own_numbers() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert f"\n    {field.name} : " in str(TrainConfig.__doc__)
        assert field.metadata["help"]
    values = {
        "steps": np.int64(2),
        "seed": np.uint64(2**64 - 1),
        "lr": np.float32(0.5),
        "mults": np.array([1, 2]),
        "flip": np.True_,
    }
    given = TrainConfig.from_dict(values)
    assert json.loads(json.dumps(dataclasses.asdict(given)))["seed"] == 2**64 - 1
    assert given == TrainConfig(steps=2, seed=2**64 - 1, lr=0.5, mults=(1, 2), flip=True)


def test_an_unknown_setting_is_named_with_the_nearest_and_the_known() -> None:
    with pytest.raises(LookupError, match=r"^config: a setting must be one of data, .*, got 'stepz'; did you mean 'steps'\?"):
        TrainConfig.from_dict({"stepz": 3})
    with pytest.raises(
        ValueError, match=r"^--stepz is not an option of tinyddpm train; did you mean '--steps'\?; known are .*--data"
    ):
        cli.parser("train").parse_args(["--stepz", "3"])


def test_the_demo_is_a_valid_run() -> None:
    assert DEMO.data == "digits"
    assert TrainConfig.from_dict({}) == TrainConfig()


def test_torchs_default_device_decides_nothing(tmp_path: Path) -> None:
    """Nothing of a network or a run is made on a device that is not named, be it for a step, saving or loading."""
    with torch.device("meta"):
        made = trainer(steps=1)
        made.step(1)
        made.net.save(tmp_path / "net")
        loaded = UNet.load(tmp_path / "net")
        classes = train_classifier(pictures(), epochs=1)
    for net in (made.net, made.ema, loaded, classes):
        assert {x.device.type for x in (*net.parameters(), *net.buffers())} == {"cpu"}
