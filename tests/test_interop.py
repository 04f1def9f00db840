"""diffusers' folders, read and written: the same numbers on both sides, and errors for everything else."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks import small  # noqa: E402

from tinyddpm import Denoiser, Diffusion, schedules  # noqa: E402
from tinyddpm.nn import UNet, load_diffusers, save_diffusers  # noqa: E402
from tinyddpm.nn.interop import _scheduler, _unet  # noqa: E402

INDEX, CONFIG, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def saved(folder: Path, d: Diffusion | None = None, net: UNet | None = None, **denoiser: Any) -> Path:
    net, d = net or small(), d or Diffusion(schedules.linear(30, 1e-3, 0.3))
    save_diffusers(folder, net, d, Denoiser(net, **{"first_t": 0} | denoiser))
    return folder


def rewrite(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def assert_same_weights(net: UNet, other: UNet) -> None:
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


# ---- against diffusers itself

library = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' and its dependencies' own imports
BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
PUBLISHED = {
    "block_out_channels": (32, 64), **BLOCKS, "norm_eps": 1e-6, "flip_sin_to_cos": False, "freq_shift": 1,
    "downsample_padding": 0, "attention_head_dim": None,
}  # fmt: skip
CIFAR10 = {
    **PUBLISHED, "sample_size": 32, "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
ONE_CHANNEL = {"in_channels": 1, "out_channels": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Any, ...]]] = {
    "cifar10": (CIFAR10, {"variance_type": "fixed_large"}, ("eps", "beta", True)),
    "defaults": ({"block_out_channels": (32, 64, 96, 128)}, {}, ("eps", "beta_tilde", True)),
    "one channel": (
        {**PUBLISHED, **ONE_CHANNEL, "layers_per_block": 1, "attention_head_dim": 4},
        {"variance_type": "fixed_small_log", "trained_betas": [1e-3, 2e-3, 0.1, 0.2, 0.3], "num_train_timesteps": 5,
         "prediction_type": "sample"},
        ("x0", "beta_tilde", True),
    ),
    "learned range": (
        {**PUBLISHED, "in_channels": 1, "out_channels": 2, "dropout": 0.1},
        {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction",
         "clip_sample": False, "clip_sample_range": 3.0},
        ("v", "learned_range", False),
    ),
    "not square": (
        {**PUBLISHED, **ONE_CHANNEL, "sample_size": (16, 24)},
        {"beta_schedule": "scaled_linear", "num_train_timesteps": 100, "beta_end": 0.1},
        ("eps", "beta_tilde", True),
    ),
    "scale and shift": (
        {**PUBLISHED, **ONE_CHANNEL, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        ("v", "beta_tilde", True),
    ),
    "scale and shift as its users write it, no norm in the middle": (
        {**PUBLISHED, **ONE_CHANNEL, "resnet_time_scale_shift": "scale_shift"}, {}, ("eps", "beta_tilde", True),
    ),
    "another norm in the middle": ({**PUBLISHED, **ONE_CHANNEL, "attn_norm_num_groups": 16}, {}, ("eps", "beta_tilde", True)),
    "heads of 64 where there is attention": (
        {"block_out_channels": (32, 64), **BLOCKS, "attention_head_dim": 64}, {"beta_schedule": "sigmoid"},
        ("eps", "beta_tilde", True),
    ),
    "classes, widths that are no multiples": (
        {**BLOCKS, **ONE_CHANNEL, "block_out_channels": (64, 96), "num_class_embeds": 5, "layers_per_block": 1,
         "attention_head_dim": 16},
        {"beta_schedule": "sigmoid", "beta_start": 1e-3, "num_train_timesteps": 40}, ("eps", "beta_tilde", True),
    ),
}  # fmt: skip


@library
@pytest.mark.parametrize("case", CASES)
def test_pipelines_give_the_same_numbers_both_ways(tmp_path: Path, case: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    unet, scheduler, read_as = CASES[case]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**{"sample_size": 16, **unet}).eval()
    pipeline = diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler(**scheduler))
    pipeline.save_pretrained(tmp_path / "theirs")
    net, d, denoiser = load_diffusers(tmp_path / "theirs")
    assert (denoiser.predicts, denoiser.variance, denoiser.clip_x0) == read_as
    assert (denoiser.net, denoiser.first_t, net.training) == (net, 0, False)
    # Their betas are float32; rescaled ones are small differences of such numbers (1.1e-3 was measured).
    loose = 2e-3 if scheduler.get("rescale_betas_zero_snr") else 6e-7
    np.testing.assert_allclose(d.beta[1:], pipeline.scheduler.betas.double().numpy(), rtol=loose)
    if given := scheduler.get("trained_betas"):
        np.testing.assert_array_equal(d.beta[1:], given)
    save_diffusers(tmp_path / "ours", net, d, denoiser)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    if not scheduler.get("rescale_betas_zero_snr"):
        torch.testing.assert_close(again.scheduler.betas, pipeline.scheduler.betas, rtol=1e-6, atol=0)
    size = unet.get("sample_size", 16)
    x = torch.randn(1, theirs.config.in_channels, *((size, size) if isinstance(size, int) else size))
    t = torch.tensor([4])
    y = [torch.tensor([3])] if "num_class_embeds" in unet else []
    with torch.no_grad():
        for other in (theirs, again.unet):
            expected = other(x, t, *y).sample
            assert float((net(x, t, *y) - expected).abs().max() / expected.abs().max()) < 1e-5
        expected = theirs.double()(x.double(), t, *y).sample
        assert float((net.double()(x.double(), t, *y) - expected).abs().max() / expected.abs().max()) < 1e-12
    if y:
        with pytest.raises(ValueError, match=r"^y must be given"):
            denoiser.eps(d, x.double(), 1)


@library
@pytest.mark.parametrize("null_class", [True, False])
def test_a_network_with_classes_is_exported(tmp_path: Path, null_class: bool) -> None:
    """diffusers knows no class for no class: ours is its last one."""
    diffusers = pytest.importorskip("diffusers")
    net = small(classes=3, null_class=null_class).double()
    theirs = diffusers.UNet2DModel.from_pretrained(saved(tmp_path / "a", net=net) / "unet", torch_dtype=torch.float64)
    again, _, _ = load_diffusers(tmp_path / "a")
    x, t, y = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, t, y).sample, net(x, t, y), rtol=1e-12, atol=1e-12)
        assert torch.equal(again(x, t, y), net(x, t, y))
        if null_class:
            torch.testing.assert_close(theirs(x, t, 0 * y + 3).sample, net(x, t), rtol=1e-12, atol=1e-12)
            assert torch.equal(again(x, t), net(x, t))
    assert {**again.config, "norm_groups": None, "out_channels": None} == net.config


def test_ema_configs_are_read_and_variants_are_named(tmp_path: Path) -> None:
    """`EMAModel.save_pretrained` writes its settings into the network's config."""
    folder = saved(tmp_path / "a")
    rewrite(folder / CONFIG, decay=0.999, min_decay=0.0, optimization_step=5, update_after_step=0, use_ema_warmup=False,
            inv_gamma=1.0, power=0.75)  # fmt: skip
    assert_same_weights(load_diffusers(folder)[0], small())
    (folder / WEIGHTS).rename(folder / WEIGHTS.replace(".safe", ".fp16.safe"))
    with pytest.raises(FileNotFoundError, match=r"model\.fp16\.safetensors is the variant 'fp16': rename it"):
        load_diffusers(folder)


@library
def test_a_network_without_a_size_is_read_as_the_smallest(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel(**{**PUBLISHED, **ONE_CHANNEL}).eval()
    diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "a")
    net, _, _ = load_diffusers(tmp_path / "a")
    assert net.config["image_size"] == 2
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 999])
    with torch.no_grad():
        torch.testing.assert_close(net(x, t), theirs(x, t).sample, rtol=1e-5, atol=1e-5)


@library
def test_defaults_are_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    for kind, ours in ((diffusers.UNet2DModel, _unet.DEFAULTS), (diffusers.DDPMScheduler, _scheduler.DEFAULTS)):
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
        theirs = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters}
        assert ours == theirs


@library
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [True, False])
def test_one_reverse_step_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variance: str, predicts: str, clip: bool
) -> None:
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    beta = [0.05, 0.1, 0.2, 0.3, 0.5]
    options = {"variance_type": variance, "prediction_type": predicts, "clip_sample": clip}
    theirs = module.DDPMScheduler(num_train_timesteps=5, trained_betas=beta, **options)
    folder = saved(tmp_path / "a", net=small(out_channels=2 if variance == "learned_range" else 1),
                   variance="learned_range" if variance == "learned_range" else "beta")  # fmt: skip
    theirs.save_config(folder / "scheduler")
    net, d, denoiser = load_diffusers(folder)
    x, z = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: z)
    net.double()
    for t in range(1, 6):
        with torch.no_grad():
            output = net(x, torch.full((3,), t - 1))
            p = denoiser.p(d, x, t)
        expected = theirs.step(output, t - 1, x).prev_sample
        ours = p.sample(z) if t > 1 else p.mean
        # Their tables are float32; x0 is divided by sqrt(alpha_bar) >= 0.49.
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


# ---- round trips without it


@pytest.mark.parametrize(
    "schedule", ["linear", "quadratic", "cosine", "geometric", "nearly linear", "zero_terminal_snr", "one step"]
)
def test_a_round_trip_changes_no_bit(tmp_path: Path, schedule: str) -> None:
    beta = {
        "nearly linear": np.nextafter(schedules.linear(40), 1),
        "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear(40)),
        "one step": np.ones(1),
    }
    d = Diffusion(beta[schedule] if schedule in beta else schedules.NAMES[schedule](40))
    net, again, denoiser = load_diffusers(saved(tmp_path / "a", d, predicts="v", variance="beta_tilde", clip_x0=False))
    assert again == d
    assert (denoiser.predicts, denoiser.variance, denoiser.clip_x0) == ("v", "beta_tilde", False)
    assert_same_weights(net, small())
    assert net.config == {**small().config, "out_channels": 1, "norm_groups": 2, "head_dim": None}
    config = json.loads((tmp_path / "a" / SCHEDULER).read_text())
    assert (config["trained_betas"] is None) == (schedule in ("linear", "quadratic", "cosine", "one step"))


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes_are_kept(tmp_path: Path, dtype: str) -> None:
    net, _, _ = load_diffusers(saved(tmp_path / "a", net=small().to(getattr(torch, dtype))))
    assert {p.dtype for p in net.parameters()} == {getattr(torch, dtype)}


def test_saving_again_replaces_and_leaves_other_files_alone(tmp_path: Path) -> None:
    folder = saved(saved(tmp_path / "a"), predicts="x0")
    assert load_diffusers(folder)[2].predicts == "x0"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        saved(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


# ---- other layouts


def old_names(folder: Path, shard: int | None = None) -> dict[str, Any]:
    """Return the tensors under their names in the oldest versions of diffusers."""
    tensors: dict[str, Any] = pytest.importorskip("safetensors.torch").load_file(folder / WEIGHTS)
    for new, name in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        tensors = {k.replace(f"attentions.0.{new}", f"attentions.0.{name}"): v for k, v in tensors.items()}
    assert any("proj_attn" in k for k in tensors)
    return tensors


def test_the_oldest_layout_is_read(tmp_path: Path) -> None:
    """The layout of google/ddpm-cifar10-32: all files in one folder, old names, few keys."""
    tensors, folder = old_names(saved(tmp_path / "new")), tmp_path / "old"
    folder.mkdir()
    pytest.importorskip("safetensors.torch").save_file(tensors, folder / Path(WEIGHTS).name)
    for file in (INDEX, CONFIG, SCHEDULER):
        shutil.copy(tmp_path / "new" / file, folder / Path(file).name)
    scheduler = {"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_start": 1e-4, "clip_sample": True,
                 "num_train_timesteps": 1000, "tensor_format": "pt", "variance_type": "fixed_large"}  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    net, d, denoiser = load_diffusers(folder)
    assert_same_weights(net, small())
    assert d == Diffusion()
    assert denoiser.variance == "beta"


def test_shards_and_the_links_of_the_hubs_cache_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    folder, blobs = saved(tmp_path / "snapshots" / "a"), tmp_path / "blobs"
    tensors, file, place = old_names(folder), folder / WEIGHTS, dict[str, str]()
    file.unlink()
    blobs.mkdir()
    half = len(tensors) // 2
    for shard, names in (("x-1.safetensors", list(tensors)[:half]), ("x-2.safetensors", list(tensors)[half:])):
        safetensors.save_file({n: tensors[n] for n in names}, folder / "unet" / shard)
        place |= dict.fromkeys(names, shard)
    index = Path(f"{file}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    for i, entry in enumerate([p for p in folder.rglob("*") if p.is_file()]):
        shutil.move(entry, blobs / str(i))
        entry.symlink_to(os.path.relpath(blobs / str(i), entry.parent))
    net, _, _ = load_diffusers(folder)
    assert_same_weights(net, small())
    index.unlink()
    for wrong in ("../x-1.safetensors", "/etc/passwd", "x-1.bin", "sub/x-1.safetensors", "..\\x-1.safetensors", ""):
        index.write_text(json.dumps({"weight_map": place | {"conv_in.weight": wrong}}))
        with pytest.raises(ValueError, match=r"index\.json.*not a safetensors file in this folder"):
            load_diffusers(folder)
    for malformed in ("{}", '{"weight_map": []}', '{"weight_map": {"conv_in.weight": 1}}', '{"weight_map": {}}'):
        index.write_text(malformed)
        with pytest.raises(ValueError, match=r"index\.json.*weight_map"):
            load_diffusers(folder)
    index.write_text(json.dumps({"weight_map": place | {"more": "x-3.safetensors"}}))
    safetensors.save_file({"conv_in.weight": tensors["conv_in.weight"]}, folder / "unet" / "x-3.safetensors")
    with pytest.raises(ValueError, match=r"x-3\.safetensors: tensor 'conv_in\.weight' occurs twice"):
        load_diffusers(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "x-2.safetensors"}}))
    with pytest.raises(ValueError, match=r"tensor '[^']*' is missing"):
        load_diffusers(folder)


# ---- refusals


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        (CONFIG, "act_fn", "gelu"), (CONFIG, "resnet_time_scale_shift", "spatial"), (CONFIG, "add_attention", False),
        (CONFIG, "num_class_embeds", "ten"), (CONFIG, "num_class_embeds", 0), (CONFIG, "center_input_sample", True),
        (CONFIG, "time_embedding_type", "fourier"), (CONFIG, "time_embedding_dim", 64), (CONFIG, "dropout", "much"),
        (CONFIG, "class_embed_type", "timestep"), (CONFIG, "mid_block_type", None), (CONFIG, "attn_norm_num_groups", 0),
        (CONFIG, "mid_block_scale_factor", 1.414), (CONFIG, "downsample_type", "resnet"), (CONFIG, "freq_shift", "1"),
        (CONFIG, "upsample_type", "resnet"), (CONFIG, "attn_norm_num_groups", 3), (CONFIG, "norm_num_groups", None),
        (CONFIG, "up_block_types", ["UpBlock2D", "UpBlock2D"]), (CONFIG, "down_block_types", "DownBlock2D"),
        (CONFIG, "down_block_types", ["DownBlock2D", "SkipDownBlock2D"]), (CONFIG, "down_block_types", [{}, []]),
        (CONFIG, "block_out_channels", [8, "12"]), (CONFIG, "block_out_channels", [8, True]),
        (CONFIG, "block_out_channels", [8, 10**30]), (CONFIG, "layers_per_block", 10**9), (CONFIG, "norm_eps", -1.0),
        (CONFIG, "sample_size", 7), (CONFIG, "sample_size", ["8", 8]), (CONFIG, "sample_size", True),
        (CONFIG, "attention_head_dim", 5), (CONFIG, "norm_num_groups", 3), (CONFIG, "flip_sin_to_cos", "no"),
        (CONFIG, "downsample_padding", 2), (CONFIG, "mystery", 1), (CONFIG, "_class_name", "UNet2DConditionModel"),
        (SCHEDULER, "thresholding", True), (SCHEDULER, "clip_sample_range", 2.0), (SCHEDULER, "clip_sample", "yes"),
        (SCHEDULER, "variance_type", "learned"), (SCHEDULER, "variance_type", "learned_range"),
        (SCHEDULER, "variance_type", ["fixed_small"]), (SCHEDULER, "beta_schedule", "laplace"),
        (SCHEDULER, "beta_schedule", ["linear"]), (SCHEDULER, "prediction_type", "flow"),
        (SCHEDULER, "trained_betas", [0.1]), (SCHEDULER, "trained_betas", ["0.1"] * 30),
        (SCHEDULER, "trained_betas", [2.0] * 30), (SCHEDULER, "trained_betas", [10**400] * 30),
        (SCHEDULER, "num_train_timesteps", 0), (SCHEDULER, "num_train_timesteps", 3 * 10**6),
        (SCHEDULER, "num_train_timesteps", 30.0), (SCHEDULER, "beta_start", 2.0), (SCHEDULER, "beta_end", float("nan")),
        (SCHEDULER, "rescale_betas_zero_snr", "no"), (SCHEDULER, "timestep_spacing", "karras"),
        (SCHEDULER, "predict_epsilon", False), (SCHEDULER, "_class_name", "PNDMScheduler"),
        (INDEX, "scheduler", ["diffusers", "PNDMScheduler"]), (INDEX, "unet", ["../evil", "UNet2DModel"]),
        (INDEX, "vae", ["diffusers", "AutoencoderKL"]), (INDEX, "../evil", ["diffusers", "UNet2DModel"]),
    ],
)  # fmt: skip
def test_an_unknown_option_is_named(tmp_path: Path, file: str, key: str, value: Any) -> None:
    folder = saved(tmp_path / "a")
    rewrite(folder / file, **{key: value})
    start = time.perf_counter()
    with pytest.raises(ValueError, match=Path(file).name.replace(".", r"\.")) as caught:
        load_diffusers(folder)
    assert time.perf_counter() - start < 5
    assert key in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    rewrite(folder / CONFIG, in_channels=2, out_channels=2)
    with pytest.raises(ValueError, match=r"tensor 'conv_(in\.weight|out\.weight|out\.bias)' must have shape"):
        load_diffusers(folder)


@pytest.mark.parametrize("file", [CONFIG, SCHEDULER, WEIGHTS])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    folder = saved(tmp_path / "a")
    (folder / INDEX).unlink()
    load_diffusers(folder)  # the index is not needed
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.replace(".", r"\.")):
        load_diffusers(folder)


@pytest.mark.parametrize(
    ("options", "denoiser"),
    [
        ({}, {"first_t": 1}), ({}, {"predicts": "mu"}), ({}, {"predicts": "score"}), ({}, {"variance": "learned"}),
        ({"heads": 2, "attention": (8, 4)}, {}), ({"heads": 2, "heads_upsample": 4}, {}), ({"mults": (2, 2)}, {}),
        ({"first_channels": 16}, {}), ({"resblock_updown": True}, {}), ({"mid_norm_groups": 0}, {}),
        ({}, {"variance": np.ones(31)}), ({}, {"variance": "learned_range"}), ({"out_channels": 2}, {}),
        ({}, {"net": lambda x, t: x}),
    ],
)  # fmt: skip
def test_options_unknown_to_diffusers_are_refused(tmp_path: Path, options: dict[str, Any], denoiser: dict[str, Any]) -> None:
    net = small(**options)
    with pytest.raises(ValueError, match=r"^(denoiser|net)\b"):
        save_diffusers(tmp_path / "a", net, Diffusion(), Denoiser(**{"net": net, "first_t": 0, **denoiser}))
    assert not (tmp_path / "a").exists()
