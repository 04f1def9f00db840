"""The benchmarks run, say what they promise to say, and compare what they say they compare."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ["--steps", "3", "--batch", "2", "--repeats", "1"]


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_sample_speed_measures_each_backend(
    script: Callable[[str], Any], backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(backend)
    script("sample_speed").main(["--backend", backend, *SMALL, "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["sampler"] for row in rows] == ["ddpm", "ddim"]
    for row in rows:
        assert (row["backend"], row["device"], row["batch"], row["steps"], row["calls"]) == (backend, "cpu", 2, 3, 3)
        assert row["seconds"] > 0
        assert row["images_per_s"] == pytest.approx(2 / row["seconds"])
        assert 0 < row["outside_share"] < 1
        assert row["hardware"]["cores"]
        assert row["versions"]["numpy"] == np.__version__
    assert capsys.readouterr().out.count(f"| {backend}") == 2


def test_sample_speed_times_the_network_apart(script: Callable[[str], Any]) -> None:
    """A network that sleeps is where the time goes; outside it is what is left."""
    import time

    from tinyddpm import backends

    def net(x: Any, t: Any) -> Any:
        time.sleep(0.05)
        return x

    def run(timed: Callable[..., Any] | None) -> Any:
        called = timed or net
        return called(called(np.zeros((2, 3)), 1), 1)

    figures = script("sample_speed").measured({"ours": run}, {"ours": net}, backends.get("numpy"), 1)["ours"]
    assert figures["seconds"] >= 0.1
    assert figures["calls"] == 2
    assert figures["outside_share"] < 0.3


@pytest.mark.parametrize("model", ["unet", "analytic"])
def test_sample_speed_beside_diffusers(script: Callable[[str], Any], model: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    argv = ["--backend", "torch", "--model", model, "--peer", "diffusers", *SMALL, "--json", str(tmp_path / "rows.json")]
    script("sample_speed").main(argv)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["library"], row["sampler"]) for row in rows] == [
        ("tinyddpm", "ddpm"), ("diffusers", "ddpm"), ("tinyddpm", "ddim"), ("diffusers", "ddim")
    ]  # fmt: skip
    assert all(row["calls"] == 3 for row in rows)


def test_sample_speed_reaches_a_torch_network_from_numpy(script: Callable[[str], Any], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    script("sample_speed").main(["--model", "unet", "--sampler", "heun", *SMALL, "--json", str(tmp_path / "rows.json")])
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["backend"], row["shape"], row["calls"]) == ("numpy", [1, 8, 8], 5)


BAD = {
    "sample_speed": {
        "--backend tpu": "tpu", "--backend numpy --device cuda:7": "cuda:7", "--backend torch --device cuda:7": "cuda:7",
        "--steps many": "many", "--batch 0": "--batch must be in 1", "--sampler euler": "euler", "--model gan": "gan",
        "--peer diffusers": "--peer", "--dtype int8": "int8", "--compile": "--compile: is Torch's",
        "--backend torch --dtype bfloat16 --peer diffusers": "use --peer diffusers-fast",
    },
    "likelihood_speed": {"--backend jax": "jax", "--steps 1": "--steps: 1", "--rounds 0": "--rounds must be in 1"},
    "import_time": {"--rounds 0": "--rounds must be in 1"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [(name, words) for name, cases in BAD.items() for words in cases])
def test_bad_input_is_one_line_and_exit_code_2(
    script: Callable[[str], Any], name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "torch" in words or "gan" in words:
        pytest.importorskip("torch")
    assert script("_report").run(script(name).main, words.split()) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    assert BAD[name][words] in out.err


def test_as_a_command() -> None:
    """As it is called: one line and exit 2 where the device is missing."""
    command = [sys.executable, str(BENCHMARKS / "sample_speed.py"), "--backend", "numpy", "--device", "cuda:0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("sample_speed.py: device must be 'cpu' for NumPy, got 'cuda:0'")
    assert ended.stderr.count("\n") == 1


def test_sampler_error_compares_equals(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On one grid the two libraries are one method, to their float32 tables; everything that is promised is written."""
    pytest.importorskip("diffusers")
    pytest.importorskip("matplotlib")
    module = script("sampler_error")
    files = {name: tmp_path / name for name in ("e.json", "e.md", "e.png")}
    module.main(["--calls", "5", "20", "--samples", "16", "--json", str(files["e.json"]), "--markdown", str(files["e.md"]),
                 "--plot", str(files["e.png"])])  # fmt: skip
    result = json.loads(files["e.json"].read_text())
    same = [e for e in result["comparisons"] if e["comparison"] == "same grid"]
    assert {e["sampler"] for e in same} == {"ddim", "dpm++2m", "dpm++3m", "unipc", "heun"}
    for entry in same:
        assert entry["ratio"] == pytest.approx(1, abs=2e-3), entry
    best = [e for e in result["comparisons"] if e["comparison"] in ("default", "best")]
    assert all(e["ratio"] < (1.05 if e["sampler"] == "dpm++3m" else 1) for e in best)  # theirs has that spacing too, not rounded
    noise = {(e["sampler"], e["spacing"], e["calls"]): e["error"] for e in result["noise"]}
    assert noise["dpm++2m-sde", "log_snr", 20] < noise["ddpm", "even", 20] / 5
    assert result["versions"]["diffusers"]
    assert files["e.md"].read_text().startswith("# How far")
    assert files["e.png"].read_bytes()[:4] == b"\x89PNG"
    assert "same grid" in capsys.readouterr().out


def test_diffusers_ddim_leaves_its_plan_where_steps_do_not_divide_T(script: Callable[[str], Any]) -> None:
    """It moves to t - 1000 // steps; those pairs give its result, and its own plan's pairs don't."""
    pytest.importorskip("diffusers")
    module = script("sampler_error")
    x_T = np.random.default_rng(0).standard_normal((8, 2))
    denoiser = module.Denoiser(module.DATA.net(module.D), clip_x0=False)
    plan, result = module.theirs("ddim", 80, x_T, timestep_spacing="trailing")
    x = x_T
    for t in plan:
        s = max(t - 1000 // 80, 0)
        x = module.D.q_sample(denoiser.x0(module.D, x, t), s, denoiser.eps(module.D, x, t))
    np.testing.assert_allclose(result, x, atol=2e-5)  # their float32 tables
    assert np.abs(result - module.ours("ddim", (*plan, 0), x_T)).max() > 1e-3


def test_the_solution_is_the_flows_end(script: Callable[[str], Any]) -> None:
    """The reference against a thousand Heun moves: apart by no more than the last move's own error."""
    module = script("sampler_error")
    x_T = np.random.default_rng(1).standard_normal((16, 2))
    assert module.rms(module.ours("heun", module.D.timesteps(1000), x_T), module.solution(x_T)) < 2 * module.last_move(x_T)


def test_inversion(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, files = script("inversion"), {name: tmp_path / name for name in ("i.json", "i.md")}
    module.main(["--schedules", "jsd", "--json", str(files["i.json"]), "--markdown", str(files["i.md"])])
    rows = json.loads(files["i.json"].read_text())["rows"]
    assert [(row["schedule"], row["dimensions"]) for row in rows] == [("jsd", 1), ("jsd", 64)]
    for row in rows:
        assert row["errors"]["50 steps"] < 1e-6 < 1e-2 < row["errors"]["usual, 50"]
    assert [row["errors"]["float32 eps, 50"] for row in rows] == [None, None]  # it does not follow at alpha_bar = 0
    assert files["i.md"].read_text().startswith("# How far")
    assert "| jsd" in capsys.readouterr().out


def test_one_jump(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One move lands on the data's mean whatever the start; the distance falls as the chain grows."""
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / name for name in ("j.json", "j.md", "j.png")}
    script("one_jump").main(["-n", "200", "--runs", "2", "--moves", "1", "20", "--json", str(files["j.json"]),
                             "--markdown", str(files["j.md"]), "--plot", str(files["j.png"])])  # fmt: skip
    rows = json.loads(files["j.json"].read_text())["rows"]
    of = {(row["sampler"], row["moves"]): row for row in rows}
    for sampler in ("ddpm", "ddim", "dpm++2m"):
        assert of[sampler, 1]["std"] < 0.01
        assert of[sampler, 20]["distance"] < of[sampler, 1]["distance"] / 4
        assert of[sampler, 1]["error"] >= 0
    assert files["j.png"].read_bytes()[:4] == b"\x89PNG"
    assert "(target)" in capsys.readouterr().out


def test_the_distances(script: Callable[[str], Any]) -> None:
    """Shifted points are apart by the shift in one dimension; a set is at 0 from itself; E|X - Y| in closed form."""
    module = script("one_jump")
    x = np.random.default_rng(0).standard_normal((2000, 1))
    assert module.sliced_distance(x, x + 0.3) == pytest.approx(0.3, rel=1e-12)
    assert module.energy_distance(x, x) == pytest.approx(0, abs=1e-6)
    point, other = np.zeros((5, 1)), np.full((7, 1), 2.0)
    assert module.energy_distance(point, other) == pytest.approx(math.sqrt(2 * 2.0))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_published_loop_has_our_terms(script: Callable[[str], Any], backend: str) -> None:
    """On the same noise both find the same: their KLs and errors to float32 tables, their decoder's to its approximation."""
    pytest.importorskip(backend)
    from tinyddpm import Denoiser, Diffusion, backends, likelihood, noise, schedules

    module, own = script("likelihood_speed"), backends.get(backend)
    xp = np if backend == "numpy" else __import__(backend)
    d = Diffusion(schedules.linear(20, 1e-3, 0.4))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32))
    x0 = own.from_numpy(pixels / 127.5 - 1, dtype="float32")

    def net(x_t: Any, t: Any) -> Any:
        return x_t / 2

    theirs = module.Published(d, xp)(net, x0, noise.like(x0, 0, None, stream=1))
    terms, x0_mse, eps_mse = (own.to_numpy(a)[:, ::-1] for a in theirs)
    ours = likelihood.vlb(d, Denoiser(net), x0, decoder="ho2020")
    np.testing.assert_allclose(terms[:, 1:], ours.kl / ours.dims, rtol=1e-4)
    np.testing.assert_allclose(terms[:, 0], ours.decoder / ours.dims, rtol=1e-4)
    np.testing.assert_allclose(x0_mse, ours.x0_mse, rtol=1e-5)
    np.testing.assert_allclose(eps_mse, ours.eps_mse, rtol=1e-4)


def test_likelihood_speed(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two estimates of one bound by different noise: they agree within a hundredth; every figure is there."""
    pytest.importorskip("torch")
    files = {name: tmp_path / name for name in ("l.json", "l.md")}
    script("likelihood_speed").main(["--batch", "8", "--steps", "20", "--rounds", "1", "--json", str(files["l.json"]),
                                     "--markdown", str(files["l.md"])])  # fmt: skip
    found = json.loads(files["l.json"].read_text())
    assert [row["backend"] for row in found["rows"]] == ["numpy", "torch"]
    for row in found["rows"]:
        assert (row["batch"], row["steps"]) == (8, 20)
        assert row["ratio"] == pytest.approx(row["published_seconds"] / row["ours_seconds"])
        assert row["limit"] * row["noise_share"] == pytest.approx(row["ratio"])
        assert row["bits_per_dim"] == pytest.approx(row["published_bits_per_dim"], rel=0.01)
    assert found["versions"]["torch"]
    assert files["l.md"].read_text().startswith("# How fast")
    assert capsys.readouterr().out.count("\n| torch") == 1


def test_where_time_goes(
    script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part has a time; what follows a network costs more than what is repeated."""
    pytest.importorskip("diffusers")
    monkeypatch.setattr("torch.compile", lambda net, **options: net)  # takes half a minute
    files = {name: tmp_path / name for name in ("w.json", "w.md")}
    script("where_time_goes").main(["--rounds", "2", "--json", str(files["w.json"]), "--markdown", str(files["w.md"])])
    found = json.loads(files["w.json"].read_text())
    assert all(row["ns"] > 0 for row in found["passes"])
    assert [sum(row["in_ddim"] for row in found["passes"] if row["library"] == name) for name in ("numpy", "torch")] == [7, 5]
    of = {row["call"]: row for row in found["after_network"]}
    assert of["all"]["after_us"] > of["all"]["repeated_us"]
    kinds = {row["kind"]: row for row in found["network"]}
    assert kinds["convolution"]["ours"] > kinds["sums"]["ours"]
    assert [row["us"] > 0 for row in found["noise_for_the_bound"]] == [True] * 3
    assert files["w.md"].read_text().startswith("# Where the time")
    assert "## After network" in capsys.readouterr().out


def test_the_page_of_aims(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is that of the table it names; a tick stands where every machine reaches the aim."""
    pytest.importorskip("matplotlib")
    module = script("speed")
    found = module.machines(module.RESULTS)
    for aim in module.AIMS:
        folders = [machine.folder for machine in found if machine.value(aim)]
        assert all((folder / f"{aim.table}.md").read_text().startswith("# ") for folder in folders)
        assert folders
    shutil.copytree(module.RESULTS, tmp_path / "results")
    other = tmp_path / "results" / "other"
    shutil.rmtree(other, ignore_errors=True)
    other.mkdir()
    steps = json.loads((module.RESULTS / "step_speed.json").read_text())
    steps["hardware"]["cpu"] = "Another CPU"
    for row in steps["rows"]:
        row["diffusers_ratio"] /= 100
    (other / "step_speed.json").write_text(json.dumps(steps))
    files = ["--markdown", str(tmp_path / "s.md"), "--plot", str(tmp_path / "s.png")]
    module.main(["--results", str(tmp_path / "results"), *files])
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "s.md").read_text()
    assert "![" in page
    assert page.count("Another CPU") == 3  # its column, its limits, its hardware
    shown = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    least = {
        a.what: min(filter(None, (m.value(a) for m in module.machines(tmp_path / "results")))) - a.least for a in module.AIMS
    }
    assert all(("✓" in shown[what]) == (room >= 0) for what, room in least.items())
    assert min(least.values()) < 0 < max(least.values())
    with pytest.raises(FileNotFoundError, match="--results"):
        module.main(["--results", str(BENCHMARKS.parent / "docs")])


def test_import_time(
    script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement is timed in an interpreter of its own; what fails to import is named."""
    module = script("import_time")
    monkeypatch.setitem(module.IMPORTS, "diffusers", "import time; time.sleep(0.3)")
    module.main(["--rounds", "1", "--json", str(tmp_path / "i.json"), "--markdown", str(tmp_path / "i.md")])
    found = json.loads((tmp_path / "i.json").read_text())["milliseconds"]
    assert found["diffusers"] >= 300
    assert found["ratio"] == pytest.approx(found["diffusers"] / found["tinyddpm"])
    assert found["beyond_numpy_ms"] == pytest.approx(found["tinyddpm"] - found["numpy"], rel=1e-9)
    assert (tmp_path / "i.md").read_text().startswith("# How long")
    assert "beyond NumPy" in capsys.readouterr().out
    with pytest.raises(ImportError, match=r"import nothing_such: .*No module"):
        module.seconds("import nothing_such")


def test_before_and_after(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The work is done in both trees; what is no commit is named."""
    pytest.importorskip("torch")
    if not (BENCHMARKS.parent / ".git").exists():
        pytest.skip("no git checkout")
    words = ["--only", "bound, 16x3x32x32, numpy", "--pairs", "2", "--rounds", "1"]
    words += ["--json", str(tmp_path / "b.json")]
    script("before_after").main(["--before", "HEAD", *words, "--markdown", str(tmp_path / "b.md")])
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert row["work"] == "bound, 16x3x32x32, numpy"
    assert min(row["before"], row["after"], row["error"]) > 0
    assert (tmp_path / "b.md").read_text().startswith("# What a change")
    assert script("_report").run(script("before_after").main, ["--before", "nothing-such"]) == 2
    assert "--before: " in capsys.readouterr().err


def test_first_grid(script: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parts make up the time from the command to the grid of 1 % of the steps."""
    pytest.importorskip("sklearn")
    tiny = ["--T", "6", "--channels", "4", "--mults", "1,2", "--batch-size", "8", "--precision", "bf16"]
    files = ["--json", str(tmp_path / "g.json"), "--markdown", str(tmp_path / "g.md")]
    script("first_grid").main(["--threads", "1", *files, "--", "--sample-every", "3", *tiny])
    found = json.loads((tmp_path / "g.json").read_text())
    assert (found["step"], found["precision"], found["batch"]) == (3, "bf16", 8)
    assert list(found["seconds"]) == ["start", "data", "precision", "network", "steps", "grid"]
    assert all(seconds > 0 for part, seconds in found["seconds"].items() if part != "precision")
    assert f" {sum(found['seconds'].values()):.4g} |" in capsys.readouterr().out
    assert script("_report").run(script("first_grid").main, ["--", "--T", "0"]) == 2
    assert "train: " in capsys.readouterr().err


def test_medians_of_alternating_runs(script: Callable[[str], Any]) -> None:
    """A task that sleeps takes that long; the first round does not count; each runs once a round."""
    import time

    calls = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.4 if len(calls) < 2 else 0.02)

    seconds = script("_report").alternating({"slow": slow, "fast": lambda: calls.append("fast")}, 3)
    assert calls == ["slow", "fast"] * 4
    assert 0.02 <= seconds["slow"] < 0.4
    assert seconds["fast"] < seconds["slow"]
