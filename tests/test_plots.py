"""Figures show the numbers that they are given, and files are written completely or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pytest

from tinyddpm import Denoiser, Diffusion, likelihood, noise
from tinyddpm import schedules as betas
from tinyddpm.samplers import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

pytest.importorskip("matplotlib")
plots = pytest.importorskip("tinyddpm.plots")

D = Diffusion(betas.linear(20, 0.005, 0.5))
X0 = np.random.default_rng(0).uniform(-1, 1, (3, 1, 4, 4))


@pytest.fixture(scope="module")
def bound() -> likelihood.VLB:
    return likelihood.vlb(D, Denoiser(lambda x, t: 0 * x), X0, levels=17)


def shown(ax: Axes) -> np.ndarray:
    (image,) = ax.get_images()
    assert image.get_interpolation() == "nearest"
    assert image.get_clim() == (0, 1)
    return np.asarray(image.get_array()) * 2 - 1


def test_schedules_show_the_tables() -> None:
    figure = plots.schedules(["linear", "cosine"], T=50)
    for ax, table in zip(figure.axes, ("beta", "alpha_bar", "log_snr"), strict=True):
        for line, name in zip(ax.lines, ("linear", "cosine"), strict=True):
            t, y = line.get_data()
            np.testing.assert_array_equal(t, np.arange(1, 51))
            np.testing.assert_array_equal(y, getattr(Diffusion(betas.NAMES[name](50)), table)[1:])
            assert line.get_label() == name


def test_curves_differ_without_colour() -> None:
    lines = plots.schedules(["linear", "quadratic", "geometric", "cosine", "jsd"], T=9).axes[0].lines
    assert len({str(line._unscaled_dash_pattern) for line in lines}) == len(lines)
    assert len({line.get_color() for line in lines}) == len(lines)


def test_forward_shows_the_noisy_images() -> None:
    figure = plots.forward(D, X0, t=(0, 5, 20), seed=7)
    eps = noise.normal(7, range(3), 0, (1, 4, 4), stream=3, dtype="float64")
    axes = np.reshape(figure.axes, (3, 3))
    assert [ax.get_title() for ax in axes[0]] == ["$t = 0$", "$t = 5$", "$t = 20$"]
    for row, x0, e in zip(axes, X0, eps, strict=True):
        for ax, t in zip(row, (0, 5, 20), strict=True):
            x_t = np.sqrt(D.alpha_bar[t]) * x0[0] + np.sqrt(1 - D.alpha_bar[t]) * e[0]
            np.testing.assert_allclose(shown(ax), np.clip(x_t, -1, 1), atol=1e-12)  # to and from [0, 1], in float64


def test_columns_run_from_the_data_to_noise() -> None:
    assert plots.columns(D, 21) == tuple(range(21))
    few = plots.columns(Diffusion(), 9)
    assert (few[0], few[-1], len(few)) == (0, 1000, 9)
    assert np.all(np.diff(few, 2) > -2)
    assert plots.columns(Diffusion(betas.linear(2)), 9) == (0, 1, 2)


def test_trajectory_shows_each_state_in_colour() -> None:
    states = [np.random.default_rng(t).uniform(-1, 1, (2, 3, 4, 4)) for t in (9, 4, 0)]
    figure = plots.trajectory([Step(t, x, None) for t, x in zip((9, 4, 0), states, strict=True)])
    axes = np.reshape(figure.axes, (2, 3))
    for k, x in enumerate(states):
        for row in range(2):
            np.testing.assert_allclose(shown(axes[row, k]), x[row].transpose(1, 2, 0), atol=1e-12)


def test_loss_shows_the_log_and_its_running_mean() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=200))
    figure = plots.loss([{"step": k + 1, "loss": v} for k, v in enumerate(values)])
    raw, mean = figure.axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), values)
    step, smooth = mean.get_data()
    for k in (0, 77, 196):  # windows of 200 / 50 steps that end at their step
        assert step[k] == k + 4
        assert smooth[k] == pytest.approx(values[k : k + 4].mean())


def test_loss_leaves_out_skipped_steps() -> None:
    figure = plots.loss([{"step": k, "loss": None if k == 3 else 1.0} for k in range(1, 7)])
    for line in figure.axes[0].lines:
        assert list(line.get_xdata()) == [1, 2, 4, 5, 6]


def test_bound_adds_up_to_bits_per_dim(bound: likelihood.VLB) -> None:
    (ax,) = plots.bound(bound).axes
    terms, prior = ax.lines
    np.testing.assert_array_equal(terms.get_xdata(), np.arange(1, D.T + 1))
    total = np.sum(terms.get_ydata()) + prior.get_ydata()[0]
    assert total == pytest.approx(bound.bits_per_dim.mean())
    assert terms.get_ydata()[0] == pytest.approx(bound.distortion.mean())


def test_rate_distortion_is_the_curve(bound: likelihood.VLB) -> None:
    (ax,) = plots.rate_distortion(bound).axes
    rate, rmse = ax.lines[0].get_data()
    np.testing.assert_array_equal((rate, rmse), bound.curve())


def test_sampler_error_distinguishes_samplers() -> None:
    errors = {"ddim": {20: 0.1, 10: 0.2}, "heun": {9: 0.05, 19: 0.0125, 21: 0.01}}
    (ax,) = plots.sampler_error(errors).axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    for line, (name, of) in zip(ax.lines, errors.items(), strict=True):
        assert line.get_label() == name
        np.testing.assert_array_equal(line.get_xydata(), sorted(of.items()))
    assert len({line.get_marker() for line in ax.lines}) == 2
    assert len({str(line._unscaled_dash_pattern) for line in ax.lines}) == 2
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "21"]  # labels that would touch are omitted


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_the_suffix_is_the_format(tmp_path: Path, suffix: str, magic: bytes) -> None:
    file = tmp_path / "new" / f"figure{suffix}"
    plots.save(plots.schedules(T=5), file)
    assert file.read_bytes().startswith(magic)
    assert list(file.parent.iterdir()) == [file]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "figure.png"
    file.write_text("old")

    def fails(stream: BinaryIO, **options: Any) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        plots.save(SimpleNamespace(savefig=fails), file)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_no_global_state_changes() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    had = "matplotlib.pyplot" in sys.modules
    plots.forward(D, X0)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had
