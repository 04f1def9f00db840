"""The U-Net: published numbers of parameters, a second implementation, and files as untrusted input."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import networks  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from tinyddpm.nn import UNet, layers  # noqa: E402
from tinyddpm.nn.layers import time_embedding  # noqa: E402


def small(**options: Any) -> UNet:
    return networks.small(**{"std": 0.2, "res_blocks": 1} | options)


def batch(net: UNet, n: int = 3, dtype: Any = None) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    size = net.config["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    x = torch.randn((n, net.config["in_channels"], height, width), generator=generator, dtype=dtype or torch.float32)
    return x, torch.arange(n) * 311


def count(net: UNet) -> int:
    return sum(p.numel() for p in net.parameters())


# ---- the architecture


def test_cifar10_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count(UNet.cifar10()) == 35_746_307


def test_learned_variance_and_classes_add_their_parameters_only() -> None:
    plain = count(small())
    assert count(small(out_channels=2)) - plain == 9 * 8 + 1
    assert count(small(classes=3)) - plain == 4 * 4 * 8


def by_hand(w: dict[str, Any], x: Any, t: Any, groups: int) -> Any:
    """Return the output of `small`, computed from a dict of weights by Ho et al.'s description."""

    def lin(name: str, h: Any) -> Any:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def conv(name: str, h: Any, stride: int = 1) -> Any:
        k = w[f"{name}.weight"].shape[-1]
        pad = (0, 0, 0, 0) if k == 1 else (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
        return F.conv2d(F.pad(h, pad), w[f"{name}.weight"], w[f"{name}.bias"], stride=stride)

    def norm(name: str, h: Any) -> Any:
        parts = h.unflatten(1, (groups, -1))
        dims = tuple(range(2, parts.ndim))
        var, mean = torch.var_mean(parts, dims, correction=0, keepdim=True)
        parts = ((parts - mean) / torch.sqrt(var + 1e-6)).flatten(1, 2)
        return parts * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def swish(h: Any) -> Any:
        return h / (1 + torch.exp(-h))

    def block(name: str, h: Any) -> Any:
        inner = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", h))) + lin(f"{name}.time", swish(emb))[..., None, None]
        inner = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", inner)))
        h = inner + (conv(f"{name}.skip", h) if f"{name}.skip.weight" in w else h)
        if f"{name}.attention.qkv.weight" not in w:
            return h
        tokens = norm(f"{name}.attention.norm", h).flatten(2).mT
        q, k, v = lin(f"{name}.attention.qkv", tokens).chunk(3, -1)
        mixed = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v
        return h + lin(f"{name}.attention.out", mixed).mT.reshape(h.shape)

    frequency = 1e-4 ** (torch.arange(4, dtype=x.dtype) / 3)
    angle = t[:, None] * frequency
    emb = lin("time.2", swish(lin("time.0", torch.cat([angle.sin(), angle.cos()], -1))))
    top = conv("conv_in", x)
    one = block("down.0", top)
    two = conv("down.1.conv", one, stride=2)
    three = block("down.2", two)
    h = block("mid.1", block("mid.0", three))
    h = block("up.1", torch.cat([block("up.0", torch.cat([h, three], 1)), two], 1))
    h = conv("up.2.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    h = block("up.4", torch.cat([block("up.3", torch.cat([h, one], 1)), top], 1))
    return conv("conv_out", swish(norm("norm_out", h)))


def test_equals_a_second_implementation() -> None:
    net = small().double()
    x, t = batch(net, dtype=torch.float64)
    expected = by_hand(dict(net.named_parameters()), x, t, groups=2)
    # the embedding is float32 by design: 311 * 2 * 6e-8 in its angle
    torch.testing.assert_close(net(x, t), expected, rtol=1e-4, atol=1e-4)
    zero = torch.zeros_like(t)
    torch.testing.assert_close(net(x, zero), by_hand(dict(net.named_parameters()), x, zero, 2), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("cos_first", "freq_shift"), [(False, 1.0), (True, 0.0), (True, 1.0)])
def test_time_embedding_is_sines_and_cosines_of_geometric_frequencies(cos_first: bool, freq_shift: float) -> None:
    t = torch.tensor([0, 1, 7, 999])
    got = time_embedding(t, 16, cos_first, freq_shift).double()
    angle = t[:, None].double() * 10_000.0 ** (-torch.arange(8.0, dtype=torch.float64) / (8 - freq_shift))
    sines, cosines = (got[:, 8:], got[:, :8]) if cos_first else (got[:, :8], got[:, 8:])
    torch.testing.assert_close(sines, angle.sin(), rtol=0, atol=1e-4)  # float32 angles up to 999
    torch.testing.assert_close(cosines, angle.cos(), rtol=0, atol=1e-4)


def test_initial_weights_are_ho_et_als() -> None:
    torch.manual_seed(0)
    net = UNet(8, in_channels=1, channels=64, mults=(1, 2), attention=(4,))
    for name, p in net.state_dict().items():
        if name.endswith("bias") or "norm" in name:
            assert torch.equal(p, torch.full_like(p, 0.0 if name.endswith("bias") else 1.0)), name
            continue
        last = name.startswith("conv_out") or ".conv2." in name or ".attention.out." in name
        fan_out = p.shape[0] // 3 if ".qkv." in name else p.shape[0]
        variance = (1e-10 if last else 1.0) / ((p.shape[1] + fan_out) * p[0, 0].numel() / 2)
        # the variance of n uniform draws is off by about 0.9 / sqrt(n): five of these
        assert float(p.square().mean()) == pytest.approx(variance, rel=4.5 / math.sqrt(p.numel())), name
        assert float(p.abs().max()) <= math.sqrt(3 * variance) * (1 + 1e-6), name


@pytest.mark.parametrize("channels", [4, 6, 10, 12, 26, 32, 48, 64, 96, 128, 192, 224])
def test_norm_groups_rule(channels: int) -> None:
    with torch.device("meta"):
        groups = UNet(4, channels=channels, mults=(1,)).norm_out.num_groups
    assert channels % groups == 0
    assert groups <= 32
    assert groups == 1 or channels // groups >= 4
    assert groups == 32 or channels not in (128, 192, 224)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": (4, 8)},
        {"in_channels": 3, "out_channels": 6},
        {"in_channels": 5},
        {"mults": (1,), "image_size": 7},
        {"mults": (1, 1, 2, 2), "image_size": 16, "attention": ()},
        {"head_dim": 4, "downsample_padding": 1, "cos_first": True, "freq_shift": 0.0, "norm_groups": 4},
    ],
)
def test_shapes(options: dict[str, Any]) -> None:
    net = small(**options)
    x, t = batch(net)
    out = net(x, t)
    assert out.shape == (3, options.get("out_channels", x.shape[1]), *x.shape[2:])
    assert bool(torch.isfinite(out).all())
    torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last), t), out, rtol=1e-4, atol=1e-4)


def test_no_label_is_the_null_class() -> None:
    net = small(classes=3)
    x, t = batch(net)
    assert torch.equal(net(x, t), net(x, t, torch.full((3,), 3)))
    assert not torch.equal(net(x, t), net(x, t, torch.tensor([0, 1, 2])))


# ---- dropout


def test_dropout_is_a_function_of_seed_and_row() -> None:
    net = small(dropout=0.5).train()
    x, t = batch(net, 6)

    def run(seed: int, first: int, stop: int) -> Any:
        net.drop_by.set(seed, first, 6, x.device)
        return net(x[first:stop], t[first:stop])

    whole = run(7, 0, 6)
    # the batch size may change a convolution's order of summation, the masks do not change
    torch.testing.assert_close(torch.cat([run(7, 0, 2), run(7, 2, 6)]), whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(run(7, 0, 6), whole)
    assert not torch.allclose(run(8, 0, 6), whole, atol=1e-2)
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    net = small(dropout=0.25)
    net.drop_by.set(3, 0, 64, torch.device("cpu"))
    x = torch.ones(64, 8, 16, 16)
    out = net.drop_by(x, 0.25)
    kept = out != 0
    n = out.numel()
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / 0.75))
    assert float(kept.double().mean()) == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / n))
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept, net.drop_by(x, 0.25) != 0)  # the next layer has other masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pixels", [16, 256, 1089])
def test_attention_is_the_weighted_mean_of_the_values(dtype: Any, pixels: int) -> None:
    """Compare with the formula in float64. A score and its weight are each rounded twice: (2 |score| + 2) units in all."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, pixels, 8).to(dtype)
    score = torch.einsum("bhic,bhjc->bhij", q.double(), k.double()) / math.sqrt(8)
    mean = torch.einsum("bhij,bhjc->bhic", score.exp() / score.exp().sum(-1, keepdim=True), v.double())
    unit = torch.finfo(dtype).eps / 2
    bound = (2 * float(score.abs().max()) + 2) * unit * float(v.abs().max())
    assert float((layers._attended(q, k, v).double() - mean).abs().max()) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_for_autocast_equals_autocast(dtype: Any) -> None:
    """The outputs are equal bit for bit, and the other parameters are shared."""
    net = small(classes=3, head_dim=4, dropout=0.5)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    (x, t), y = batch(net), torch.tensor([0, 2, 3])
    narrow = net.cast_for_autocast(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        assert torch.equal(narrow(x, t, y), net(x, t, y))
    calls: list[Any] = []
    net.conv_in.register_forward_hook(lambda module, *_: calls.append(module))
    net.lock = threading.Lock()  # type: ignore[assignment]  # a lock can't be copied
    again = net.cast_for_autocast(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        again(x, t, y)
    assert calls == [again.conv_in]
    assert narrow.norm_out.weight is net.norm_out.weight
    assert narrow.drop_by is net.drop_by
    assert {p.dtype for m in narrow.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters()} == {dtype}
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_autocast_leaves_the_norm_in_float32() -> None:
    """On a CPU as on a GPU, where Torch's autocast does so itself."""
    torch.manual_seed(0)
    norm = layers.GroupNorm(4, 8)
    for x in (
        torch.randn(2, 8, 6, 6).bfloat16(),
        torch.randn(2, 8, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(norm(x), torch.nn.functional.group_norm(x.float(), 4, norm.weight, norm.bias))
        assert copy.deepcopy(norm).bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")  # Torch 2.4, of its own pickles
def test_copies_and_pickles() -> None:
    net = small()
    x, t = batch(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x, t), net(x, t))
        assert other.drop_by is not net.drop_by
        assert other.down[0].drop is other.drop_by


# ---- files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small(classes=2).save(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_save_and_load(tmp_path: Path, dtype: str) -> None:
    net = small(image_size=(8, 4), dropout=0.3, head_dim=4).to(getattr(torch, dtype))
    net.save(tmp_path / "a" / "net")
    loaded = UNet.load(tmp_path / "a" / "net")
    assert loaded.config == net.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    for (name, p), (other, q) in zip(net.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert p.dtype == q.dtype
        assert torch.equal(p, q)


def test_the_safetensors_library_reads_it(saved: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    tensors = library.load_file(saved / "model.safetensors")
    for name, p in UNet.load(saved).named_parameters():
        assert torch.equal(tensors[name], p)
    library.save_file(tensors, saved / "model.safetensors")
    stored = json.loads((saved / "unet.json").read_text())
    stored["sha256"] = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    (saved / "unet.json").write_text(json.dumps(stored))
    assert UNet.load(saved).label is not None


def test_json_holds_the_arguments_and_the_hash(saved: Path) -> None:
    import inspect

    stored = json.loads((saved / "unet.json").read_text())
    assert stored.pop("sha256") == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert set(stored) == set(inspect.signature(UNet).parameters)


def test_files_of_version_0_1_are_read(saved: Path) -> None:
    """They lack the arguments that came later, in both places where arguments stand."""
    library = pytest.importorskip("safetensors.torch")
    stored, file = json.loads((saved / "unet.json").read_text()), saved / "model.safetensors"
    for key in ("heads_upsample", "first_channels", "resblock_updown", "mid_norm_groups", "null_class"):
        del stored[key]
    noted = {"unet": json.dumps({k: v for k, v in stored.items() if k != "sha256"})}
    library.save_file(library.load_file(file), file, noted)
    stored["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (saved / "unet.json").write_text(json.dumps(stored))
    assert UNet.load(saved).config["null_class"] is True
    stored["dropout"] = 0.5
    (saved / "unet.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"unet\.json: differs from the arguments that were saved with model\.safetensors"):
        UNet.load(saved)


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"unet\.json"):
        UNet.load(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        UNet.load(saved)


def _json_or_none(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_flipped_bit_and_any_cut_is_noticed(place: float, bit: int, cut: bool, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage" / "net"  # made once, and made good after each damage
    if not folder.exists():
        small().save(folder)
    for name in ("model.safetensors", "unet.json"):
        whole = (folder / name).read_bytes()
        i = int(place * len(whole))
        damaged = whole[:i] if cut else whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
        (folder / name).write_bytes(damaged)
        json_reads_the_same = name == "unet.json" and _json_or_none(damaged) == json.loads(whole)
        if json_reads_the_same:  # white space between its tokens
            assert UNet.load(folder).config == small().config
        else:
            with pytest.raises(ValueError, match=r"unet\.json|model\.safetensors"):
                UNet.load(folder)
        (folder / name).write_bytes(whole)
