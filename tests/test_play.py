"""The page to play with: its functions give the library's numbers, and it needs nothing from outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tinyddpm import Denoiser, Diffusion, gaussian, likelihood, schedules
from tinyddpm.analytic import MixtureData
from tinyddpm.cli import main

PAGE = Path(__file__).parents[1] / "tinyddpm/_commands/play.html"
T = 40
SCHEDULES = {
    "linear": schedules.linear(T, 0.1 / T, 20 / T),
    "quadratic": schedules.quadratic(T, 0.1 / T, 20 / T),
    "cosine": schedules.cosine(T),
    "jsd": schedules.jsd(T),
}
LEVEL = np.linspace(-1, 1, 16)


def page(expression: str) -> Any:
    """The value of an expression in the page's functions, by Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    source = re.search('<script id="maths">(.*?)</script>', PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert source is not None
    done = subprocess.run(
        [node, "-"], input=f"{source[1]};console.log(JSON.stringify({expression}))", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_page_needs_nothing_from_outside() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not re.search(r"(src|href|url|import)\s*[=(]\s*[\"']?(https?:)?//", text)
    for control in re.findall(r"<(?:select|input)[^>]*>", text):  # each has a label around it
        assert re.search(rf"<label[^>]*>(?:(?!</label>).)*{re.escape(control)}", text, re.DOTALL), control


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "play.html"]) == 0
    assert (tmp_path / "play.html").read_bytes() == PAGE.read_bytes()
    assert main(["plot", "play", "play.png"]) == 2
    assert "path must be one of .html, got '.png'" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEDULES)
def test_its_tables_and_weights_are_the_librarys(name: str) -> None:
    d = Diffusion(SCHEDULES[name])
    c = f"chain(SCHEDULES.{name}({T}))"
    found = page(f"{{ab: {c}.alphaBar, rest: {c}.rest, one: weights({c}, 7), long: weights({c}, {T}, 11)}}")
    np.testing.assert_allclose(found["ab"], d.alpha_bar, rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(found["rest"], d.one_minus_alpha_bar, rtol=1e-11)
    for key, (t, s) in {"one": (7, 6), "long": (T, 11)}.items():
        expected = (*d.posterior_weights(t, s), d.between_weights(t, s)[1])
        np.testing.assert_allclose([found[key][k] for k in ("x0", "xt", "betaTilde", "beta")], expected, rtol=1e-10)


def test_its_guess_is_that_of_the_exact_network() -> None:
    """The levels as a mixture of narrow Gaussians: 1e-9 wide, which moves the guess by as little."""
    d, x = Diffusion(SCHEDULES["linear"]), np.linspace(-2, 2, 9)[:, None]
    found = page(f"[3, 20, 40].map((t) => {x[:, 0].tolist()}.map((x) => guess(chain(SCHEDULES.linear({T})), "
                 'probabilities(DATA["three peaks"]), t, x).mean))')  # fmt: skip
    p = np.array(page('probabilities(DATA["three peaks"])'))
    net = MixtureData(p / p.sum(), LEVEL[:, None], np.full(16, 1e-18)).net(d)
    for t, values in zip((3, 20, 40), found, strict=True):
        np.testing.assert_allclose(Denoiser(net, clip_x0=False).x0(d, x, t)[:, 0], values, rtol=0, atol=1e-7)


def test_its_bins_are_the_decoders() -> None:
    cases = [(k, mean, std) for k in (0, 3, 8, 15) for mean in (-1.2, -0.4, 0.31, 0.9) for std in (0.02, 0.15, 2.0)]
    found = np.array(page(f"{json.dumps(cases)}.map((c) => binMass(...c))"))
    k, mean, std = map(np.array, zip(*cases, strict=True))
    expected = np.exp(gaussian.discretized_log_likelihood(LEVEL[k], mean, np.log(std), levels=16))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-300)  # exp(-x^2) loses x^2 units in the last place


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("kind", ["beta", "beta_tilde", "best"])
def test_its_bound_is_the_mean_of_the_librarys(name: str, kind: str) -> None:
    d = Diffusion(SCHEDULES[name])
    found = page(f'bound(chain(SCHEDULES.{name}({T})), probabilities(DATA["two peaks"]), "{kind}")')
    p = np.array(page('probabilities(DATA["two peaks"])'))
    x0 = LEVEL[np.random.default_rng(0).choice(16, 4000, p=p / p.sum())][:, None]
    net = MixtureData(p / p.sum(), LEVEL[:, None], np.full(16, 1e-18)).net(d)
    variance = np.array([np.nan, *found["variances"][1:]])
    bound = likelihood.vlb(d, Denoiser(net, clip_x0=False, variance=variance), x0, levels=16)
    for mine, theirs in ((bound.kl.sum(1), sum(found["terms"][2:])), (bound.decoder, found["terms"][1])):
        bits = mine / np.log(2)
        assert abs(bits.mean() - theirs) < 5 * bits.std() / np.sqrt(len(bits)) + 1e-12
    assert found["entropy"] == pytest.approx(-(p * np.log2(p)).sum())
    assert found["total"] > found["entropy"]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_its_step_is_the_samplers(sampler: Literal["ddpm", "ddim"]) -> None:
    """One step of each from the same state, prediction and noise."""
    d, x0, x, z = Diffusion(SCHEDULES["cosine"]), 0.3, 0.7, -1.1
    found = page(f'reverseStep(chain(SCHEDULES.cosine({T})), {x}, {x0}, 30, 10, "{sampler}", {z})')
    denoiser = Denoiser(lambda x_t, t: np.full_like(x_t, x0), predicts="x0", variance="beta_tilde")
    noise = (lambda t, index, shape: np.full((1, 1), z)) if sampler == "ddpm" else None
    start = np.full((1, 1), x)
    _, after, _ = d.trajectory(denoiser, (1, 1), sampler=sampler, timesteps=(30, 10, 0), x_T=start, noise=noise)
    assert after.x.item() == pytest.approx(found, abs=1e-12)


def test_its_samples_have_the_datas_distribution() -> None:
    """2 000 samples on 16 levels: total variation sums 16 errors of sqrt(p / 2000); 0.1 is three times what chance gives."""
    for sampler in ("ddpm", "ddim"):
        found, p = page(f'(() => {{ const c = chain(SCHEDULES.cosine(200)), p = probabilities(DATA["two peaks"]); '
                        f'return [paths(c, p, "{sampler}", 200, 2000, 3).states[200], p]; }})()')  # fmt: skip
        shares = np.bincount(np.clip(np.rint((np.array(found) + 1) * 7.5), 0, 15).astype(int), minlength=16) / 2000
        assert abs(shares - p).sum() / 2 < 0.1
