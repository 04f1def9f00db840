"""Accumulation, classes, loss-aware t, bf16, compiling, reading ahead, and what happens to numbers that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from runs import CPU, config, folder, log, noise, pictures, same, trainer  # noqa: E402

from tinyddpm import verify  # noqa: E402
from tinyddpm.losses import LossAwareT  # noqa: E402
from tinyddpm.training import Images, TrainConfig, load_run, optimizer, train  # noqa: E402
from tinyddpm.training.batches import resident_reader  # noqa: E402


def steps(made: Any, count: int = 3) -> Any:
    return torch.stack([made.step(k) for k in range(1, count + 1)])


# ---- how the work is done does not change the run


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_equals_the_whole_batch(parts: int) -> None:
    whole, split = (trainer(accumulate=n, flip=True, classes=True) for n in (1, parts))
    # float32 sums in another order
    torch.testing.assert_close(steps(split), steps(whole), rtol=1e-5, atol=1e-5)


def test_accumulation_needs_equal_parts() -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be a multiple of 1 x 3"):
        train(config(accumulate=3), progress=False)


@pytest.mark.filterwarnings("ignore")  # Torch's own
@pytest.mark.parametrize("options", [{"dropout": 0.0}, pytest.param({"classes": True}, marks=pytest.mark.slow)])
def test_a_compiled_network_makes_the_same_run(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile(net: Any) -> Any:
        compiled.append(net)
        return torch._dynamo.optimize("eager")(net)  # traced as ever, but without a compiler's minutes

    plain = steps(trainer(**options))
    monkeypatch.setattr(torch, "compile", compile)
    made = trainer(compile=True, **options)
    torch.testing.assert_close(steps(made), plain, rtol=1e-5, atol=1e-5)
    assert compiled == [made.net]


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_packing_parameters_changes_no_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All packed, some, and none: the same weights, averages and moments by name, to rounding."""
    options: dict[str, Any] = {"optimizer": kind, "weight_decay": 0.1, "grad_clip": 0.05}
    made = {}
    for small in (2**17, 100, 0):
        monkeypatch.setattr(optimizer, "SMALL", small)
        made[small] = one = trainer(**options)
        sizes = [p.numel() for p in one.parameters]
        alone, pack = sum(n >= small for n in sizes), any(n < small for n in sizes)
        assert len({p.untyped_storage().data_ptr() for p in one.parameters}) == alone + pack
        steps(one)
    whole, *others = [{**one.tensors(), "average": dict(one.ema.state_dict())} for one in made.values()]
    for other in others:
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-7)  # the norm is summed in another order


def test_bf16_is_the_networks_alone() -> None:
    half, whole = (steps(trainer(precision=p), 4) for p in ("bf16", "float32"))
    assert not torch.equal(half, whole)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0.01)  # 8 bits of mantissa


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_images_kept_on_a_device_have_the_hosts_bits(levels: int) -> None:
    images = Images(np.random.RandomState(0).randint(0, levels, (9, 3, 4, 5)).astype(np.uint8), levels)
    chosen = np.array([8, 0, 3, 3])
    read = resident_reader(images.pixels[:], levels, CPU)
    assert torch.equal(read(chosen), torch.from_numpy(images.scaled(chosen)))


class Ahead(Images):
    """Images that are read ahead of their turn."""

    asked: ClassVar[list[Any]] = []

    def reader(self, orders: Iterable[Any], ahead: int = 2) -> closing[Generator[NDArray[np.float32], None, None]]:
        chosen = [np.array(rows) for rows, _ in zip(orders, range(100), strict=False)]
        self.asked.extend(chosen)
        return closing(self.scaled(rows) for rows in chosen)


def test_reading_ahead_changes_nothing() -> None:
    plain = steps(trainer(accumulate=2))
    own = pictures()
    made = trainer(Ahead(own.pixels, own.levels), accumulate=2)
    with made.batches.reading_ahead(1):
        assert torch.equal(steps(made), plain)
    assert len(Ahead.asked) == 2 * 12
    assert torch.equal(made.step(4), trainer_at(4))


def trainer_at(step: int) -> Any:
    made = trainer(accumulate=2)
    return steps(made, step)[-1]


# ---- classes


def test_the_network_is_told_the_images_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    own, told = pictures(300), list[Any]()
    made = trainer(own, classes=True, batch_size=300, label_dropout=0.2)
    assert made.net.config["classes"] == 3

    def network(x: Any, t: Any, y: Any) -> Any:
        told.append(y)
        return made.net(x, t, y)

    monkeypatch.setattr(made, "_network", network)
    made.step(1)
    (batch,) = made.batches(1)
    assert own.labels is not None
    assert batch.y is not None
    labels = own.labels[made.batches.order(1)]
    hidden = batch.y.numpy() == 3
    assert torch.equal(told[0], batch.y)
    assert (batch.y.numpy() == labels)[~hidden].all()
    assert 30 <= hidden.sum() <= 90  # 60 +- 7 expected
    assert torch.equal(batch.x0, torch.from_numpy(own.scaled(made.batches.order(1))))
    (other,) = made.batches(2)
    assert other.y is not None
    assert (other.y.numpy() == 3).tolist() != hidden.tolist()


def test_labels_change_no_other_draw() -> None:
    (plain,), (labelled,) = (list(trainer(flip=True, classes=c).batches(3)) for c in (False, True))
    assert plain.y is None
    assert torch.equal(plain.x0, labelled.x0)
    assert torch.equal(plain.eps, labelled.eps)
    assert plain.t.tolist() == labelled.t.tolist()


def test_classes_need_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((30, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"^classes must be false, as .*plain\.npy has no labels"):
        train(config(tmp_path / "run", data=str(tmp_path / "plain.npy"), classes=True), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "run"
    options = {"classes": True, "time_sampler": "loss_aware", "T": 3, "sample_every": 12, "samples": 3, "lr": 0.01}
    train(config(out, steps=24, ema=0.0, **options), progress=False)
    return out


def test_a_run_draws_chosen_classes(labelled: Path) -> None:
    run = load_run(labelled)
    assert run.classes == 10
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 2)

    def out(*given: Any) -> Any:
        return run.denoiser_for(*given).net(x, t)

    three, none = run.net(x, t, torch.full((4,), 3)), run.net(x, t)
    assert not torch.allclose(three, none)
    assert torch.equal(out(3), three)
    assert torch.equal(out(), none)
    assert torch.equal(out(3, 0.0), none)
    assert torch.equal(out([3, 3, 3, 3]), three)
    assert torch.equal(out(np.array([1, 2, 3, 4])), run.net(x, t, torch.tensor([1, 2, 3, 4])))
    torch.testing.assert_close(out(3, 2.5), none + 2.5 * (three - none))
    drawn = run.diffusion.sample(run.denoiser_for(3, 2.0), (2, 1, 8, 8), backend="torch")
    assert bool(torch.isfinite(drawn).all())
    assert (run.denoiser_for(3).first_t, run.denoiser_for(3).predicts) == (0, "eps")


# ---- loss-aware t


def test_loss_aware_t_learns_each_rows_loss() -> None:
    made, twin = trainer(time_sampler="loss_aware", T=2, dropout=0.0), LossAwareT(2)
    d, net = made.diffusion, made.net
    for step in range(1, 5):
        (batch,) = made.batches(step)
        t = torch.from_numpy(batch.t)
        bar = torch.tensor(d.alpha_bar[batch.t]).float()[:, None, None, None]
        with torch.no_grad():
            out = net(bar.sqrt() * batch.x0 + (1 - bar).sqrt() * batch.eps, t - 1)
        loss = (batch.eps - out).square().mean((1, 2, 3))
        torch.testing.assert_close(batch.weight, torch.tensor(1 / (2 * twin.prob[batch.t - 1])).float(), rtol=1e-4, atol=0)
        record = made.step(step)
        torch.testing.assert_close(record[1], (loss * batch.weight).mean(), rtol=1e-4, atol=0)
        twin.update(batch.t, loss.numpy())
        np.testing.assert_allclose(made.batches.sampler.state_dict()["history"], twin.state_dict()["history"], rtol=1e-4)
    assert not np.allclose(twin.prob, 0.5)


@pytest.mark.parametrize("stops", [(1, 13), (23,)])
def test_a_resumed_run_remembers_the_losses(labelled: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    made = load_run(labelled).config
    for stop in (*stops, 24):
        train(TrainConfig.from_dict({**vars(made), "out": str(tmp_path), "steps": stop, "resume": True}), progress=False)
    assert same(labelled, tmp_path)
    assert (tmp_path / "last" / "sampler.safetensors").exists()


# ---- numbers that are none


class Poisoned:
    """A loss that is not finite, or has no finite gradient, in a step."""

    def __init__(self, made: Any, what: str, step: int) -> None:
        self.loss, self.what, self.step, self.calls = made.loss, what, step, 0

    def __call__(self, d: Any, denoiser: Any, x0: Any, t: Any, eps: Any) -> Any:
        self.calls += 1
        if self.calls != self.step:
            return self.loss(d, denoiser, x0, t, eps)
        if self.what == "batch":
            x0[0, 0, 0, 0] = float("nan")
        loss = self.loss(d, denoiser, x0, t, eps)
        return {"batch": loss, "loss": loss * float("inf"), "gradient": torch.sqrt(loss - loss.detach()) + 1}[self.what]


@pytest.fixture(params=["batch", "loss", "gradient"])
def poison(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """From here on every run meets this in its seventh step."""
    from tinyddpm.training import trainer as module

    class Made(module.Trainer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.loss = Poisoned(self, request.param, 7)

    monkeypatch.setattr(sys.modules["tinyddpm.training.train"], "Trainer", Made)
    return str(request.param)


def test_a_number_that_is_none_stops_the_run(poison: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{poison}\b"):
        train(config(tmp_path), progress=False)
    assert load_run(tmp_path).step == 5
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_or_skips_the_update(poison: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"on_nonfinite": "skip", "time_sampler": "loss_aware", "T": 2, "dropout": 0.0}
    train(config(tmp_path / "a", **options), progress=False)
    lines = log(tmp_path / "a")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in lines if "skipped" in line] == [7]
    assert lines[6]["skipped"].startswith(f"{poison}: ")
    assert (lines[6]["loss"] is None) == (poison != "gradient")
    assert lines[6]["grad_norm"] is None
    state = json.loads((tmp_path / "a" / "last" / "state.json").read_text())
    assert (state["step"], state["updates"]) == (12, 11)
    json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[6], parse_constant=pytest.fail)
    # a run that stands behind the skipped step goes on as the whole one does
    train(config(tmp_path / "b", **options, steps=9), progress=False)
    monkeypatch.undo()
    train(config(tmp_path / "b", **options, resume=True), progress=False)
    assert same(tmp_path / "a", tmp_path / "b")


def test_a_skipped_update_leaves_the_weights_alone() -> None:
    made = trainer()
    made.step(1)
    before = [p.detach().clone() for p in (*made.parameters, *made.tensors()["optimizer.safetensors"].values())]
    made.loss = Poisoned(made, "loss", 1)
    made.step(2)
    after = (*made.parameters, *made.tensors()["optimizer.safetensors"].values())
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


# ---- before and beside the run


def test_verify_first_refuses_a_machine_that_errs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = verify.Result("one", 1.0, 2.0, "ulp", "")
    for bad, message in (
        (verify.Result("two", 3.0, 2.0, "ulp", ""), "'two' fails: 3 ulp off, the bound is 2"),
        (verify.Result("two", float("nan"), 2.0, "ulp", "", "ValueError: x"), "'two' fails: ValueError: x"),
    ):
        monkeypatch.setattr(verify, "identities", lambda *given, bad=bad: iter([good, bad]))
        with pytest.raises(ValueError, match=rf"^verify_first: on cpu the identity {message}"):
            train(config(tmp_path / "run", verify_first=True), progress=False)
    assert not (tmp_path / "run").exists()
    asked = []

    def passing(*given: str) -> Iterator[verify.Result]:
        asked.append(given)
        return iter([good])

    monkeypatch.setattr(verify, "identities", passing)
    train(config(tmp_path / "run", verify_first=True, steps=1), progress=False)
    assert asked == [("torch", "cpu", "float32")]


def test_the_run_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import shutil

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    train(config("plain", steps=1), progress=False)
    assert json.loads(Path("plain/config.json").read_text())["commit"] is None
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a"}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *command], check=True, env={**os.environ, **who})
    made = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    train(config("run", steps=1), progress=False)
    about = json.loads(Path("run/config.json").read_text())
    assert about["commit"] == made
    assert about["versions"].keys() == {"python", "tinyddpm", "torch", "numpy"}
    assert about["config"] == json.loads(json.dumps(vars(config("run", steps=1))))


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's writer, of which this takes the place, has these methods."""
    made: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.folder, self.purge_step, self.closed = folder, purge_step, False
            self.scalars: list[tuple[str, float, int]] = []
            self.images: list[tuple[str, Any, int, str]] = []
            made.append(self)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars.append((name, value, step))

        def add_image(self, name: str, picture: Any, step: int, dataformats: str) -> None:
            self.images.append((name, picture.shape, step, dataformats))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            self.closed = True

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("tinyddpm.training.log.find_spec", lambda name: name == "tensorboard" or None)
    for stop in (2, 4):
        train(config(tmp_path, steps=stop, sample_every=4, samples=8, resume=True), progress=False)
    assert [(w.folder, w.purge_step, w.closed) for w in made] == [(str(tmp_path / "tensorboard"), k, True) for k in (1, 3)]
    losses = [(value, step) for w in made for name, value, step in w.scalars if name == "loss"]
    assert losses == [(line["loss"], line["step"]) for line in log(tmp_path)]
    assert [w.images for w in made] == [[], [("samples", (68, 8 * 66 + 2, 1), 4, "HWC")]]


# ---- the data's own options


def test_images_are_fitted_and_bad_ones_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tinyddpm import cli
    from tinyddpm._commands.runs import held_out

    folder(tmp_path / "data", {f"class{i % 2}/{i:02d}.png": noise(20, 10 + i) for i in range(30)})
    (tmp_path / "data" / "class0" / "04.png").write_bytes(b"no picture")
    (tmp_path / "run.toml").write_text("channels = 4\nmults = [1]\nres_blocks = 1\nT = 10\nbatch_size = 4\nimage_size = 8\n")
    words = ["train", "--config", str(tmp_path / "run.toml"), "--data", str(tmp_path / "data"), "--steps", "3", "--quiet"]
    words += ["--out", str(tmp_path / "run"), "--classes", "--device", "cpu"]
    assert cli.main(words) == 2
    assert "04.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main([*words, "--bad-files", "skip", "--workers", "2"]) == 0
    assert "skipped:    1 files" in capsys.readouterr().out
    assert "04.png" in json.loads((tmp_path / "run" / "config.json").read_text())["skipped"][0]
    run = load_run(tmp_path / "run")
    assert (run.shape, run.classes) == ((1, 8, 8), 2)
    assert held_out(run, str(tmp_path / "data")).shape == (1, 8, 8)
    assert len(held_out(run, str(tmp_path / "data"))) + json.loads((tmp_path / "run" / "config.json").read_text())["images"] == 29
    assert cli.main([*words, "--bad-files", "skip", "--resume", "--steps", "4", "--image-size", "8,8"]) == 0
    assert load_run(tmp_path / "run").step == 4


def test_streamed_images_make_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyddpm.training.data import sources

    options = {"data": str(folder(tmp_path / "data", noise(20, 8, 8))), "steps": 6, "accumulate": 2, "flip": True}
    train(config(tmp_path / "a", **options), progress=False)
    monkeypatch.setattr(sources, "IN_MEMORY", 0)
    train(config(tmp_path / "b", **options, workers=2), progress=False)
    assert same(tmp_path / "a", tmp_path / "b")
