"""The figures of docs/learn show what their titles say."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from tinyddpm import Denoiser, Diffusion, losses, schedules
from tinyddpm.cli import main

pytest.importorskip("matplotlib")
lessons = pytest.importorskip("tinyddpm._commands.lessons")


def test_the_areas_are_the_divergences() -> None:
    """By the textbook's formula, for standard deviations 0.6 and sqrt(1.2) and means 1.1 apart."""
    figure = lessons.kl_divergence()
    found = [float(re.findall(r"[\d.]+$", ax.get_title())[0]) for ax in figure.axes[1:]]
    expected = [np.log(b / a) / 2 + (a + 1.1**2) / (2 * b) - 1 / 2 for a, b in ((0.36, 1.2), (1.2, 0.36))]
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_bins_have_the_gaussians_mass() -> None:
    ax = lessons.decoder_bins(levels=4, mean=0.2, std=0.5).axes[0]
    cdf = [0.0, *(NormalDist(0.2, 0.5).cdf(edge) for edge in (-2 / 3, 0.0, 2 / 3)), 1.0]
    assert [float(text.get_text()) for text in ax.texts] == pytest.approx(np.diff(cdf), abs=5e-4)


@pytest.mark.parametrize(("last", "ends"), [(60, lambda beta: beta), (59, schedules.zero_terminal_snr)])
def test_the_weights_are_those_of_the_losses(last: int, ends: Any) -> None:
    """Each curve is proportional to the loss of a network that is wrong by the same amount at every step.

    At alpha_bar = 0, where x_0 does not follow from eps, there is none.
    """
    d = Diffusion(ends(schedules.linear(60, 1e-3, 0.3)))
    t, x0, eps = np.arange(2, last + 1), np.zeros((last - 1, 3)), np.ones((last - 1, 3))
    denoiser = Denoiser(lambda x, t: 0 * x, variance="beta_tilde", clip_x0=False)
    expected = [
        losses.simple(d, denoiser, x0, t, eps),
        losses.vlb(d, denoiser, x0, t, eps),
        losses.weighted(d, denoiser, x0, t, eps, weighting="min_snr"),
        losses.weighted(d, denoiser, x0, t, eps, weighting="p2"),
    ]
    for line, loss in zip(lessons.objectives(d).axes[0].lines, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), loss / loss.mean(), rtol=1e-9)
    with pytest.raises(ValueError, match=r"^model must have a chain with a step t >= 2 of alpha_bar > 0, got Diffusion\(T=2, "):
        lessons.objectives(Diffusion(schedules.jsd(2)))


def test_one_jump_stands_between_the_state_and_the_end() -> None:
    rng = np.random.default_rng(0)
    x, x0 = rng.uniform(-1, 1, (2, 2, 1, 1, 4, 4))
    figure = lessons.one_jump(list(x), list(x0), (9, 4), x[0])
    shown = [np.asarray(ax.get_images()[0].get_array()) * 2 - 1 for ax in figure.axes]
    np.testing.assert_allclose(shown, [x[0, 0, 0], x[1, 0, 0], x0[0, 0, 0], x0[1, 0, 0], x[0, 0, 0], x[0, 0, 0]], atol=1e-12)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["$t = 9$", "$t = 4$"]


@pytest.mark.parametrize("what", ["kl", "decoder", "objectives"])
def test_each_is_a_command(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", f"{what}.svg", "-q"]) == 0
    assert (tmp_path / f"{what}.svg").read_text().rstrip().endswith("</svg>")
