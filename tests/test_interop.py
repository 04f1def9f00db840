"""diffusers' folders both ways, and the network behind other libraries' arrays."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tinyddpm import Denoiser, Diffusion, backends, schedules  # noqa: E402
from tinyddpm.nn import UNet, load_diffusers, save_diffusers, to_backend  # noqa: E402


def small(**options: Any) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(**{"image_size": 8, "in_channels": 1, "channels": 8, "mults": (1, 2), "attention": (4,)} | options)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


def saved(folder: Path, d: Diffusion | None = None, net: UNet | None = None, **denoiser: Any) -> Path:
    net, d = net or small(), d or Diffusion(schedules.linear(30, 1e-3, 0.3))
    save_diffusers(folder, net, d, Denoiser(net, **{"first_t": 0} | denoiser))
    return folder


# ---- against diffusers itself

PUBLISHED = {
    "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "norm_eps": 1e-6,
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "flip_sin_to_cos": False, "freq_shift": 1,
    "downsample_padding": 0, "attention_head_dim": None,
}  # fmt: skip
DEFAULTS = {"block_out_channels": (32, 64, 96, 128)}
CASES = [
    (PUBLISHED, {"variance_type": "fixed_large"}, ("eps", "beta", True)),
    (DEFAULTS, {}, ("eps", "beta_tilde", True)),
    (
        {**PUBLISHED, "in_channels": 1, "out_channels": 2},
        {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction",
         "clip_sample": False},
        ("v", "learned_range", False),
    ),
    (
        {**PUBLISHED, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "attention_head_dim": 4},
        {"variance_type": "fixed_small_log", "trained_betas": [1e-3, 2e-3, 0.1, 0.2, 0.3], "num_train_timesteps": 5,
         "prediction_type": "sample"},
        ("x0", "beta_tilde", True),
    ),
    (PUBLISHED, {"beta_schedule": "scaled_linear", "num_train_timesteps": 100}, ("eps", "beta_tilde", True)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("unet", "scheduler", "read_as"), CASES)
def test_diffusers_pipelines_both_ways(
    tmp_path: Path, unet: dict[str, Any], scheduler: dict[str, Any], read_as: tuple[Any, ...]
) -> None:
    diffusers = pytest.importorskip("diffusers")
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(sample_size=16, **unet).eval()
    pipeline = diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler(**scheduler))
    pipeline.save_pretrained(tmp_path / "theirs")
    net, d, denoiser = load_diffusers(tmp_path / "theirs")
    assert (denoiser.predicts, denoiser.variance, denoiser.clip_x0) == read_as
    assert (denoiser.net, denoiser.first_t) == (net, 0)
    # diffusers' betas are float32
    np.testing.assert_allclose(d.beta[1:], pipeline.scheduler.betas.double().numpy(), rtol=2e-6)
    save_diffusers(tmp_path / "ours", net, d, denoiser)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    x, t = torch.randn(2, net.config["in_channels"], 16, 16), torch.tensor([0, 4])
    with torch.no_grad():
        for other in (theirs, again.unet):
            expected = other(x, t).sample
            assert float((net(x, t) - expected).abs().max() / expected.abs().max()) < 1e-5
        expected = theirs.double()(x.double(), t).sample
        assert float((net.double()(x.double(), t) - expected).abs().max() / expected.abs().max()) < 1e-10
    torch.testing.assert_close(again.scheduler.betas, pipeline.scheduler.betas, rtol=1e-6, atol=0)


# ---- round trips without it


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine", "geometric"])
def test_round_trip(tmp_path: Path, schedule: str) -> None:
    d = Diffusion(schedules.NAMES[schedule](40))
    net, again, denoiser = load_diffusers(saved(tmp_path / "a", d, predicts="v", variance="beta_tilde", clip_x0=False))
    np.testing.assert_allclose(again.beta, d.beta, rtol=1e-13)
    assert (denoiser.predicts, denoiser.variance, denoiser.clip_x0) == ("v", "beta_tilde", False)
    for (name, p), q in zip(net.named_parameters(), small().parameters(), strict=True):
        assert torch.equal(p, q), name
    config = json.loads((tmp_path / "a" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["trained_betas"] is None) == (schedule != "geometric")


def test_old_attention_names_shards_and_links_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    folder = saved(tmp_path / "a")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = library.load_file(file)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {k.replace(f"attentions.0.{new}", f"attentions.0.{name}"): v for k, v in tensors.items()}
    assert any("proj_attn" in k for k in tensors)
    file.unlink()
    half = len(tensors) // 2
    place = {}
    for shard, names in (("x-1.safetensors", list(tensors)[:half]), ("x-2.safetensors", list(tensors)[half:])):
        library.save_file({n: tensors[n] for n in names}, tmp_path / shard)
        (folder / "unet" / shard).symlink_to(tmp_path / shard)
        place |= dict.fromkeys(names, shard)
    index = Path(f"{file}.index.json")
    index.write_text(json.dumps({"weight_map": place}))
    net, _, _ = load_diffusers(folder)
    for (name, p), q in zip(net.named_parameters(), small().parameters(), strict=True):
        assert torch.equal(p, q), name
    for wrong in ("../x-1.safetensors", "/etc/passwd", "x-1.bin", "sub/x-1.safetensors"):
        index.write_text(json.dumps({"weight_map": place | {"conv_in.weight": wrong}}))
        with pytest.raises(ValueError, match=r"index\.json.*no safetensors file of this folder"):
            load_diffusers(folder)


# ---- refusals


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "act_fn", "gelu"), ("unet/config.json", "resnet_time_scale_shift", "scale_shift"),
        ("unet/config.json", "time_embedding_type", "fourier"), ("unet/config.json", "class_embed_type", "timestep"),
        ("unet/config.json", "up_block_types", ["UpBlock2D", "UpBlock2D"]), ("unet/config.json", "sample_size", None),
        ("unet/config.json", "down_block_types", ["DownBlock2D", "SkipDownBlock2D"]),
        ("unet/config.json", "block_out_channels", [8, 12]), ("unet/config.json", "sample_size", 7),
        ("unet/config.json", "norm_num_groups", 3), ("unet/config.json", "mystery", 1),
        ("scheduler/scheduler_config.json", "thresholding", True),
        ("scheduler/scheduler_config.json", "clip_sample_range", 2.0),
        ("scheduler/scheduler_config.json", "variance_type", "learned"),
        ("scheduler/scheduler_config.json", "variance_type", "learned_range"),
        ("scheduler/scheduler_config.json", "beta_schedule", "laplace"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1]),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("scheduler/scheduler_config.json", "beta_start", 2.0),
        ("model_index.json", "scheduler", ["diffusers", "PNDMScheduler"]),
    ],
)  # fmt: skip
def test_what_has_no_equal_is_refused_by_name(tmp_path: Path, file: str, key: str, value: Any) -> None:
    folder = saved(tmp_path / "a")
    stored = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(stored | {key: value}))
    with pytest.raises(ValueError, match=Path(file).name.replace(".", r"\.")) as caught:
        load_diffusers(folder)
    named = {
        "sample_size": "size",
        "norm_num_groups": "norm_groups",
        "num_train_timesteps": "T",
        "beta_start": "beta_1",
    }
    assert named.get(key, key) in str(caught.value)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.move(file, file.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"safetensors"):
        load_diffusers(folder)


@pytest.mark.parametrize(
    ("options", "denoiser"),
    [
        ({}, {"first_t": 1}), ({}, {"predicts": "mu"}), ({}, {"variance": "learned"}), ({"classes": 3}, {}),
        ({}, {"variance": np.ones(31)}),
    ],
)  # fmt: skip
def test_what_diffusers_cannot_say_is_refused(
    tmp_path: Path, options: dict[str, Any], denoiser: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"^(denoiser|net): "):
        saved(tmp_path / "a", net=small(**options), **denoiser)
    assert not (tmp_path / "a").exists()


# ---- other libraries' arrays


def test_the_network_runs_behind_every_library(library: Any) -> None:
    net = small()
    x, t = np.random.RandomState(0).randn(3, 1, 8, 8).astype(np.float32), np.array([0, 5, 9])
    with torch.no_grad():
        expected = net(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    bridged = to_backend(net, library.name)
    out = bridged(library.array(x), library.array(t))
    assert backends.of(out).name == library.name
    np.testing.assert_allclose(library.host(out), expected, rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(bridged))
    np.testing.assert_array_equal(library.host(again(library.array(x), library.array(t))), library.host(out))
    d = Diffusion(schedules.linear(5, 0.1, 0.5))
    sample = d.sample(Denoiser(bridged, first_t=0), (3, 1, 8, 8), backend=library.name)
    reference = d.sample(Denoiser(net, first_t=0), (3, 1, 8, 8), backend="torch")
    np.testing.assert_allclose(library.host(sample), reference.numpy(), atol=1e-4)


def test_reversed_and_read_only_arrays_are_copied() -> None:
    bridged = to_backend(small(), "numpy")
    x = np.random.RandomState(0).randn(3, 1, 8, 8).astype(np.float32)
    backward = x[:, :, ::-1, ::-1]
    frozen = x.copy()
    frozen.flags.writeable = False
    t = np.array([1, 2, 3])
    np.testing.assert_array_equal(bridged(backward, t), bridged(backward.copy(), t))
    np.testing.assert_array_equal(bridged(frozen, t), bridged(x, t))


def test_bridging_refuses_what_it_cannot_bridge() -> None:
    with pytest.raises(TypeError, match=r"^net:"):
        to_backend(lambda x, t: x, "numpy")  # type: ignore[arg-type]
    with pytest.raises(LookupError, match=r"^backend:"):
        to_backend(small(), "tensorflow")
