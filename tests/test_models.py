"""Where a command asks for a model, a run, a saved network with its chain and a diffusers pipeline will do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from networks import small  # noqa: E402

from tinyddpm import Denoiser, Diffusion, likelihood, schedules  # noqa: E402
from tinyddpm.cli import main  # noqa: E402
from tinyddpm.nn import UNet, load_model, save_diffusers  # noqa: E402

CHAIN = Diffusion(schedules.cosine(8))


def made(kind: str, folder: Path, **options: Any) -> tuple[UNet, Denoiser]:
    net = small(**options)
    denoiser = Denoiser(net, first_t=0)
    if kind == "pipeline":
        save_diffusers(folder, net, CHAIN, denoiser)
    else:
        net.save(folder, CHAIN, denoiser)
    return net, denoiser


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(params=["pipeline", "saved"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made(request.param, tmp_path / "model")
    return tmp_path / "model"


def test_sample_draws_the_models_own_samples(model: Path, tmp_path: Path) -> None:
    assert run("sample", "--model", model, "--out", tmp_path / "x.npz", "-n", 3, "--seed", 5, "-q") == 0
    net, denoiser = load_model(model)[0], load_model(model)[2]
    own = CHAIN.sample(denoiser, (3, 1, 8, 8), seed=5).numpy()
    drawn = np.load(tmp_path / "x.npz")["images"]
    np.testing.assert_allclose(drawn, np.rint((own.clip(-1, 1) + 1) * 127.5), atol=1)
    assert net.config["image_size"] == 8


def test_evaluate_scores_all_images_since_none_are_its_own(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", "--model", model, "--data", "digits", "--limit", 5, "--json", "-q") == 0
    stated = json.loads(capsys.readouterr().out)
    from tinyddpm.training import load

    _, d, denoiser = load_model(model)
    bound = likelihood.vlb(d, denoiser, torch.from_numpy(load("digits").scaled(slice(5))), levels=17)
    assert stated["images"] == 5
    np.testing.assert_allclose(stated["bits_per_dim"]["mean"], bound.bits_per_dim.mean(), rtol=1e-5)  # float32 sums


def test_calibrate_and_plot_take_it_too(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run("calibrate", "--model", model, "--data", "digits", "--limit", 8, "-q") == 0
    for words in (("sample", "--out", tmp_path / "x.npz", "-n", 2, "--steps", 3, "--plan", "best"),
                  ("evaluate", "--data", "digits", "--limit", 4, "--steps", 3)):  # fmt: skip
        assert run(*words, "--model", model, "-q") == 0
    assert run("plot", "denoising", tmp_path / "a.png", "--model", model, "-q") == 0
    capsys.readouterr()
    others: tuple[tuple[Any, ...], ...] = (("calibrate",), *(("plot", what, tmp_path / "b.png") for what in ("bound", "forward")))
    for more in others:
        assert run(*more, "--model", model, "-q") == 2
        assert "data must be given, as the model does not say what it was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("null_class", [True, False])
@pytest.mark.parametrize("kind", ["pipeline", "saved"])
def test_classes(tmp_path: Path, kind: str, null_class: bool, capsys: pytest.CaptureFixture[str]) -> None:
    made(kind, tmp_path / "m", classes=3, null_class=null_class)
    words = ("sample", "--model", tmp_path / "m", "-n", 2, "-q", "--steps", 2, "--out")
    assert run(*words, tmp_path / "a.npz", "--label", "0,2") == 0
    for more, said in (
        ((), "label must be one of 0..2"),
        (("--label", "1", "--guidance", "2"), "scale must be 1, as the network"),
    ):
        assert run(*words, tmp_path / "b.npz", *more) == (0 if null_class else 2)
        (tmp_path / "b.npz").unlink(missing_ok=True)
        assert null_class or said in capsys.readouterr().err
    assert run(*words, tmp_path / "c.npz", "--label", "3") == 2
    assert "label must be" in capsys.readouterr().err


def test_what_a_model_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small().save(tmp_path / "bare")
    made("pipeline", tmp_path / "sizeless")
    config = tmp_path / "sizeless/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": None}))
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("bare", "chain.json: no such file: the network was saved without its chain"), ("sizeless", "sample_size must be given"),
        ("empty", "is not a run"), ("absent", "there is no such folder"),
    ):  # fmt: skip
        assert run("sample", "--model", tmp_path / name, "--out", tmp_path / "x.png", "-q") == 2
        assert said in capsys.readouterr().err
    made("saved", tmp_path / "m")
    words = ("evaluate", "--model", tmp_path / "m", "--data", "digits", "--limit", "5", "-q", "--distances", "500")
    assert run(*words) == 2
    assert "does not say on which images" in capsys.readouterr().err


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "table"])
@pytest.mark.parametrize("clip_x0", [True, False, (-2.0, 3.0)])
def test_the_chain_comes_back_bit_for_bit(tmp_path: Path, variance: str, clip_x0: Any) -> None:
    net = small().double()
    table = np.array([np.nan, *np.linspace(0.1, 0.2, 8)])
    spread: Any = table if variance == "table" else variance
    denoiser = Denoiser(net, "v", spread, clip_x0)
    net.save(tmp_path / "m", CHAIN, denoiser)
    again, d, read = load_model(tmp_path / "m")
    assert d == CHAIN
    assert (read.predicts, read.clip_x0, read.first_t) == ("v", clip_x0, 1)
    np.testing.assert_array_equal(read.variance, denoiser.variance)
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(read.p(d, x, 3).mean, denoiser.p(CHAIN, x, 3).mean)
    assert not again.training


def test_a_damaged_chain_is_named(tmp_path: Path) -> None:
    made("saved", tmp_path / "m")
    file = tmp_path / "m/chain.json"
    stored = json.loads(file.read_text())
    for key, value in (("beta", [2.0]), ("beta", "linear"), ("predicts", "flow"), ("variance", [1.0]), ("variance", {}),
                       ("clip_x0", [1, 0]), ("clip_x0", "yes"), ("first_t", 0.5), ("more", 1)):  # fmt: skip
        file.write_text(json.dumps({**stored, key: value}))
        with pytest.raises(ValueError, match=r"chain\.json: "):
            load_model(tmp_path / "m")
    net = small()
    given: list[dict[str, Any]] = [{"diffusion": CHAIN}, {"denoiser": Denoiser(net)}, {"diffusion": 3, "denoiser": Denoiser(net)}]
    for options in given:
        with pytest.raises(TypeError, match=r"^(diffusion|denoiser) must be"):
            net.save(tmp_path / "n", **options)
    for wrong in (Denoiser(small()), Denoiser(net, variance=np.ones((9, 1, 8, 8)))):
        with pytest.raises(ValueError, match=r"^denoiser must"):
            net.save(tmp_path / "n", CHAIN, wrong)
