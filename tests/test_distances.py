"""Distances between sets of images: closed forms, brute force, invariances, honest errors; the classifier; the command."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinyddpm.cli import main

torch = pytest.importorskip("torch")
training = pytest.importorskip("tinyddpm.training")

from tinyddpm.training import Images  # noqa: E402
from tinyddpm.training.evaluation import distances as D  # noqa: E402
from tinyddpm.training.evaluation.classifier import Classifier, train_classifier  # noqa: E402

seeds = st.integers(0, 2**32)


def normal(seed: int, *shape: Any) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(seed: int, dims: int) -> NDArray[np.float64]:
    a = normal(seed, dims, dims)
    return a @ a.T


# Frechet distance.


@given(seeds, st.integers(1, 12), st.floats(0.01, 100))
def test_frechet_of_commuting_gaussians_is_the_distance_of_their_moments(seed: int, dims: int, scale: float) -> None:
    """With common axes it is |m1 - m2|^2 plus that of the standard deviations."""
    rng = np.random.default_rng(seed)
    mean1, mean2, std1, std2 = scale * rng.random((4, dims))
    axes = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    cov1, cov2 = (axes * std**2 @ axes.T for std in (std1, std2))
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((std1 - std2) ** 2)
    total = np.sum(std1**2 + std2**2)  # what cancels
    assert D.frechet_gaussian(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9, abs=1e-12 * total)


@given(seeds, st.integers(1, 8))
def test_frechet_of_any_gaussians_has_the_matrix_root_of_the_definition(seed: int, dims: int) -> None:
    from scipy.linalg import sqrtm

    cov1, cov2 = covariance(seed, dims), covariance(seed + 1, dims)
    root = sqrtm(cov1)
    expected = np.trace(cov1 + cov2 - 2 * sqrtm(root @ cov2 @ root)).real
    zero = np.zeros(dims)
    # The reference squares and roots again, which leaves half the digits where an eigenvalue is small.
    assert D.frechet_gaussian(zero, cov1, zero, cov2) == pytest.approx(expected, abs=1e-6 * np.trace(cov1 + cov2))


@given(seeds, st.integers(2, 40), st.integers(1, 60))
def test_a_set_is_at_zero_from_itself(seed: int, count: int, dims: int) -> None:
    """Also where there are fewer points than dimensions, so that the covariances have no inverse."""
    x = normal(seed, count, dims)
    assert D.frechet(x, x) == pytest.approx(0, abs=1e-12 * np.sum(x**2))


@given(seeds)
def test_frechet_is_symmetric_and_knows_no_axes(seed: int) -> None:
    x, y = normal(seed, 30, 5), 2 * normal(seed + 1, 40, 5) + 1
    axes = np.linalg.qr(normal(seed + 2, 5, 5))[0]
    moved = D.frechet(x @ axes + 3, y @ axes + 3)
    assert moved == pytest.approx(D.frechet(x, y), rel=1e-10)
    assert D.frechet(y, x) == pytest.approx(D.frechet(x, y), rel=1e-10)
    assert D.frechet(3 * x, 3 * y) == pytest.approx(9 * D.frechet(x, y), rel=1e-10)


def test_frechet_of_a_singular_covariance_keeps_its_digits() -> None:
    """Points on a line against the same line stretched: (2 - 1)^2, with every other direction empty."""
    cov = np.zeros((50, 50))
    cov[0, 0] = 1
    axes = np.linalg.qr(normal(0, 50, 50))[0]
    one, four = (axes @ (s * cov) @ axes.T for s in (1.0, 4.0))
    assert D.frechet_gaussian(np.zeros(50), one, np.zeros(50), four) == pytest.approx(1, abs=1e-12)


def test_frechet_of_sets_is_that_of_their_unbiased_moments() -> None:
    x, y = normal(0, 9, 3), 2 * normal(1, 7, 3)
    expected = D.frechet_gaussian(x.mean(axis=0), np.cov(x.T), y.mean(axis=0), np.cov(y.T))
    assert D.frechet(x, y) == pytest.approx(expected, rel=1e-12)


# Kernel distance.


@given(seeds, st.integers(2, 6), st.integers(2, 6), st.integers(1, 4))
def test_kernel_is_the_sum_over_pairs(seed: int, n: int, m: int, dims: int) -> None:
    x, y = normal(seed, n, dims), normal(seed + 1, m, dims) + 0.5

    def k(a: Any, b: Any) -> Any:
        return (a @ b / dims + 1) ** 3

    def same(a: Any) -> Any:
        return np.mean([k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j])

    mixed = np.mean([k(a, b) for a in x for b in y])
    assert D.kernel(x, y) == pytest.approx(same(x) + same(y) - 2 * mixed, rel=1e-9, abs=1e-9)


def test_kernel_does_not_depend_on_how_the_pairs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 37, 3), normal(1, 23, 3)
    whole = D.kernel(x, y)
    monkeypatch.setattr(D, "_ROWS", 5)
    assert D.kernel(x, y) == pytest.approx(whole, rel=1e-12)


def test_kernel_is_unbiased() -> None:
    """Its mean over small sets of one law is 0 within four standard errors; with the diagonal it would be far off."""
    values = np.array([D.kernel(normal(2 * k, 8, 4), normal(2 * k + 1, 12, 4)) for k in range(2000)])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    x = normal(0, 8, 4)
    biased = np.mean((x @ x.T / 4 + 1) ** 3) - D._kernel_sum(x, x, distinct=True)
    assert biased > 20 * error  # what the test would not miss


# Precision and recall.


def test_precision_and_recall_of_known_manifolds() -> None:
    """A set that covers half of the data: all of it lies there, and half of the data is found; then the other way."""
    rng = np.random.default_rng(0)
    real = rng.random((1000, 1)) * 2
    half = rng.random((1000, 1))
    # A ball reaches over few points: gaps stay between them, and at the ends; beyond the middle about k points are hit.
    assert D.precision(half, real) > 0.95
    assert D.recall(half, real) == pytest.approx(0.5, abs=0.05)
    assert D.precision(real, half) == pytest.approx(0.5, abs=0.05)
    assert (D.precision(real + 10, real), D.recall(real + 10, real)) == (0, 0)
    assert (D.precision(real, real), D.recall(real, real)) == (1, 1)


@given(seeds, st.integers(1, 4))
def test_precision_is_its_definition(seed: int, k: int) -> None:
    x, y = normal(seed, 9, 2), normal(seed + 1, 8, 2)
    radius = [sorted(np.linalg.norm(y - p, axis=1))[k] for p in y]  # entry 0 is the point itself
    inside = [any(np.linalg.norm(p - q) <= r for q, r in zip(y, radius, strict=True)) for p in x]
    assert D.precision(x, y, k) == np.mean(inside)


# Errors.


@pytest.mark.parametrize("name", ["frechet", "kernel"])
def test_the_standard_error_is_the_spread_over_fresh_sets(name: str) -> None:
    """Over 60 independent pairs the values spread by what the jackknife says, on average within a quarter."""
    pairs = [(normal(3 * k, 200, 4), 1.3 * normal(3 * k + 1, 300, 4) + 0.5) for k in range(60)]
    estimates = [D.jackknife(D.MEASURES[name], *pair) for pair in pairs]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert math.sqrt(np.mean([e.error**2 for e in estimates])) == pytest.approx(spread, rel=0.25)


def test_the_jackknife_of_a_mean_is_the_textbooks() -> None:
    """For a difference of means with one row a group it is the root of the two sample variances over n."""
    x, y = normal(0, 10, 1), normal(1, 10, 1)
    found = D.jackknife(lambda a, b: float(a.mean() - b.mean()), np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0), 10)
    assert found.value == pytest.approx(x.mean() - y.mean())
    repeated = D.jackknife(lambda a, b: float((a - b).mean()), np.tile(x, (2, 1)), np.tile(y, (2, 1)), 10)
    assert repeated.error == pytest.approx((x - y).std(ddof=1) / math.sqrt(10))


def test_compare_gives_each_measure_and_equal_sets_to_precision() -> None:
    x, y = normal(0, 60, 3), normal(1, 100, 3)
    found = D.compare(x, y)
    assert set(found) == set(D.MEASURES)
    for name in ("precision", "recall"):
        assert found[name] == D.jackknife(D.MEASURES[name], x, y[:60])
    assert found["frechet"] == D.jackknife(D.frechet, x, y)


# The classifier.


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    images: Images = training.load("digits")
    return images.split(0.2)


@pytest.fixture(scope="module")
def classifier(digits: tuple[Images, Images]) -> Classifier:
    return train_classifier(digits[0], epochs=6)


def test_the_classifier_learns_and_its_features_are_standard(classifier: Classifier, digits: tuple[Images, Images]) -> None:
    accuracy = classifier.accuracy(digits[1])
    assert accuracy.value > 0.9  # 0.1 by chance
    assert accuracy.error == pytest.approx(math.sqrt(accuracy.value * (1 - accuracy.value) / len(digits[1])))
    features = classifier.features(digits[0])
    assert features.shape == (len(digits[0]), 64)
    assert np.abs(features.mean(axis=0)).max() < 1e-4
    on = features.std(axis=0) > 0
    np.testing.assert_allclose(features.std(axis=0)[on], 1, atol=1e-2)


def test_the_classifier_is_a_function_of_the_seed(classifier: Classifier, digits: tuple[Images, Images]) -> None:
    few = digits[0].rows(slice(200))
    first, again, other = (train_classifier(few, epochs=1, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_worse_images_are_farther(classifier: Classifier, digits: tuple[Images, Images]) -> None:
    """Frechet and kernel distance rise, precision falls with the noise on the images."""
    real = classifier.features(digits[1])
    rng, found = np.random.default_rng(0), []
    for noise in (0, 6, 14):
        pixels = digits[0].pixels[:300].astype(float)
        noisy = np.clip(np.rint(pixels + noise * rng.standard_normal(pixels.shape)), 0, 16).astype(np.uint8)
        found.append(D.compare(classifier.features(training.Images(noisy, 17)), real))
    for better, worse in zip(found, found[1:], strict=False):
        for name in ("frechet", "kernel"):
            assert worse[name].value - better[name].value > 3 * math.hypot(worse[name].error, better[name].error), name
        assert worse["precision"].value < better["precision"].value


def test_the_classifier_comes_back_as_it_was(classifier: Classifier, digits: tuple[Images, Images], tmp_path: Path) -> None:
    classifier.save(tmp_path / "c")
    again = Classifier.load(tmp_path / "c")
    np.testing.assert_array_equal(again.features(digits[1]), classifier.features(digits[1]))
    classifier.save(tmp_path / "c")  # replaces its own


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("classifier.json", lambda text: text.replace(b'"classes": 10', b'"classes": 11'), "head"),
        ("classifier.json", lambda text: text.replace(b'"classes": 10', b'"classes": "ten"'), "classes"),
        ("classifier.json", lambda text: text.replace(b"shape", b"shade"), "shape"),
        ("classifier.json", lambda text: text.replace(b'"sha256": "', b'"sha256": "0'), "SHA-256"),
        ("classifier.safetensors", lambda data: data[:-4] + b"\0\0\0\1", "SHA-256"),
        ("classifier.safetensors", lambda data: data[:-4], "bytes"),
    ],
)
def test_a_damaged_classifier_is_named(
    classifier: Classifier, tmp_path: Path, file: str, change: Callable[[bytes], bytes], named: str
) -> None:
    classifier.save(tmp_path)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=named) as caught:
        Classifier.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_classifier_needs_labels_and_its_own_shape(classifier: Classifier, digits: tuple[Images, Images]) -> None:
    bare = training.Images(digits[0].pixels, 17)
    with pytest.raises(ValueError, match="labels"):
        train_classifier(bare)
    with pytest.raises(ValueError, match="shape"):
        classifier.features(training.Images(np.zeros((2, 1, 16, 16), np.uint8)))


# The command.


EVALUATE = ("--data", "digits", "--limit", "5", "--quiet")


def test_evaluate_measures_the_samples(
    model: str, classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as by hand: samples at the data's levels against the held-out images, all of them whatever the limit."""
    classifier.save(tmp_path / "c")
    argv = ["evaluate", "--model", model, *EVALUATE, "--distances", "40", "--classifier", str(tmp_path / "c")]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["distances"]
    run = training.load_run(model)
    x = run.diffusion.sample(run.denoiser, (40, *run.shape), backend="torch").numpy()
    train, real = training.load("digits").split(0.1)
    own = classifier.features(training.Images(training.to_levels(x, 17), 17))
    expected = D.compare(own, classifier.features(real))
    beside = D.compare(classifier.features(train.rows(slice(40))), classifier.features(real))
    for name in D.MEASURES:
        entry = {"mean": expected[name].value, "error": expected[name].error}
        entry |= {"training_mean": beside[name].value, "training_error": beside[name].error}
        assert found[name] == pytest.approx(entry, rel=1e-6, abs=1e-9)
    assert found["samples"] == 40
    assert found["accuracy"]["mean"] == classifier.accuracy(real).value
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert f"classifier Frechet distance: {expected['frechet'].value:.4f} +- " in shown
    assert "FID" not in shown


def test_evaluate_trains_a_classifier_and_keeps_it(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "kept"
    argv = ["evaluate", "--model", model, *EVALUATE, "--distances", "20", "--json"]
    assert main([*argv, "--classifier", str(folder)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert Classifier.load(folder)
    assert main([*argv, "--classifier", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_evaluate_gives_the_terms(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They add up to the bound but for L_T."""
    assert main(["evaluate", "--model", model, *EVALUATE, "--curve", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    curve = found["curve"]
    assert curve["t"] == [1, 2, 3, 4, 5, 6]
    total = sum(curve["bits_per_dim"]) + found["prior"]["mean"]
    assert total == pytest.approx(found["bits_per_dim"]["mean"])
    assert curve["bits_per_dim"][0] == pytest.approx(found["decoder"]["mean"])
    assert curve["error"][0] == pytest.approx(found["decoder"]["error"])
    assert main(["evaluate", "--model", model, *EVALUATE, "--curve"]) == 0
    assert capsys.readouterr().out.count("t = ") == 7  # six, and the label of the sum over t
    assert main(["evaluate", "--model", model, "--data", "digits", "--limit", "1", "-q", "--curve", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curve"]["error"] == [None] * 6


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """In place of Inception's, the mean and the spread of each channel; the list gets what the network was given."""
    given: list[Any] = []

    class Net(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            given.append(x)
            return (torch.cat([x.double().mean(dim=(2, 3)), x.double().std(dim=(2, 3))], dim=1),)

    def create_feature_extractor(name: str, features: list[str], **options: Any) -> Any:
        assert (name, features, options) == ("inception-v3-compat", ["2048"], {"cuda": False, "verbose": False})
        return Net()

    utils = types.SimpleNamespace(create_feature_extractor=create_feature_extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "torch_fidelity.utils", utils)
    return given


def described(pixels: Any) -> Any:
    """The network's features of uint8 (N, C, H, W), by NumPy."""
    pixels = pixels.astype(float).repeat(3 // pixels.shape[1], axis=1)
    return np.concatenate([pixels.mean(axis=(2, 3)), pixels.std(axis=(2, 3), ddof=1)], axis=1)


def test_fid_and_kid_need_no_labels_and_no_classifier(
    network: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runs import config, noise

    from tinyddpm._commands import quality

    np.save(tmp_path / "photos.npy", noise(60, 4, 4, 3))
    data = str(tmp_path / "photos.npy")
    options = {"steps": 1, "T": 6, "mults": (1,), "sample_every": 0, "held_out": 0.4}
    training.train(config(tmp_path / "run", data=data, **options), progress=False)
    argv = ["evaluate", "--model", str(tmp_path / "run"), "--data", data, "--limit", "2", "-q", "--distances", "30"]
    assert main(argv) == 2
    assert "data must have labels to train a classifier on; evaluate --fid compares without one" in capsys.readouterr().err
    monkeypatch.setattr(quality, "train_classifier", None)
    assert main([*argv, "--fid", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["distances"]
    run = training.load_run(tmp_path / "run")
    x = run.diffusion.sample(run.denoiser, (30, *run.shape), backend="torch").numpy()
    own, real = described(training.to_uint8(x)), described(training.load(data).split(0.4)[1].pixels[:])
    kid = D.jackknife(D.kernel, own, real)
    assert found.keys() == {"samples", "fid", "kid"}
    assert found["fid"] == pytest.approx(D.frechet(own, real), rel=1e-6)
    assert (found["kid"]["mean"], found["kid"]["error"]) == pytest.approx(kid, rel=1e-6)
    assert {(part.dtype, part.shape[1:]) for part in network} == {(torch.uint8, (3, 4, 4))}
    run.net.save(tmp_path / "saved", run.diffusion, run.denoiser)
    argv[argv.index("--model") + 1] = str(tmp_path / "saved")
    assert main([*argv, "--fid"]) == 0
    assert "KID: " in capsys.readouterr().out
    assert main(argv) == 2
    assert "distances need a run, unless --fid is given" in capsys.readouterr().err


def test_fid_stands_beside_the_distances_of_a_classifier_that_is_named(
    model: str, classifier: Classifier, network: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier.save(tmp_path / "c")
    argv = ["evaluate", "--model", model, *EVALUATE, "--distances", "20", "--classifier", str(tmp_path / "c")]
    assert main([*argv, "--fid"]) == 0
    shown = capsys.readouterr().out
    assert "classifier Frechet distance: " in shown
    assert "\nFID: " in shown
    real = training.load("digits").split(0.1)[1]
    np.testing.assert_array_equal(network[1][3][1].numpy(), np.rint(real.pixels[3, 0] * (255 / 16)))  # grey, over three channels


def test_fid_takes_grey_and_rgb_only_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyddpm.training.evaluation import fid

    images = training.Images(np.zeros((2, 2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"^fid\b"):
        fid.features(lambda x: (x,), images, "cpu")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"^fid: torch-fidelity is needed"):
        fid.inception("cpu")
