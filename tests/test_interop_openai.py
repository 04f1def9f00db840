"""OpenAI's checkpoints, against a network in their layout, written here from the published description."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from torch import nn  # noqa: E402

from tinyddpm.nn import UNet, load_openai  # noqa: E402

# ---- the reference, with the module names that make the checkpoints' keys


class ResBlock(nn.Module):
    def __init__(self, wide_in: int, wide: int, embedded: int, scale_shift: bool, resize: Any = None) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize or nn.Identity()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, wide_in), nn.SiLU(), nn.Conv2d(wide_in, wide, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * wide if scale_shift else wide))
        last = nn.Conv2d(wide, wide, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, wide), nn.SiLU(), nn.Dropout(0.3), last)
        self.skip_connection = nn.Conv2d(wide_in, wide, 1) if wide_in != wide else nn.Identity()

    def forward(self, x: Any, emb: Any) -> Any:
        norm, swish, conv = self.in_layers
        h, e = conv(self.resize(swish(norm(x)))), self.emb_layers(emb)[..., None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.scale_shift:
            scale, shift = torch.chunk(e, 2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = rest(norm(h + e))
        return self.skip_connection(self.resize(x)) + h


class AttentionBlock(nn.Module):
    def __init__(self, wide: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = nn.GroupNorm(32, wide), nn.Conv1d(wide, 3 * wide, 1)
        self.proj_out = nn.Conv1d(wide, wide, 1)

    def forward(self, x: Any, emb: Any) -> Any:
        b, c, *size = x.shape
        x = x.reshape(b, c, -1)
        qkv, n = self.qkv(self.norm(x)), x.shape[-1]
        if self.new_order:
            q, k, v = (part.reshape(b * self.heads, -1, n) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(b * self.heads, -1, n).chunk(3, dim=1)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1]), dim=-1)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(b, c, n)
        return (x + self.proj_out(h)).reshape(b, c, *size)


class Down(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(wide, wide, 3, stride=2, padding=1)

    def forward(self, x: Any, emb: Any) -> Any:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Any, emb: Any) -> Any:
        return self.conv(doubled(x))


def halved(x: Any) -> Any:
    return x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).mean((-3, -1))


def doubled(x: Any) -> Any:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class Chain(nn.Sequential):
    def forward(self, x: Any, emb: Any) -> Any:  # type: ignore[override]
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
        return x


class Resize(nn.Module):
    """nn.Identity with a function, so that a residual block holds no more tensors."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Reference(nn.Module):
    """`UNetModel`; `attention` lists the factors of downsampling, and all defaults are those of the flags."""

    def __init__(
        self, heads: int = 4, head_dim: int | None = None, heads_up: int | None = None, scale_shift: bool = True,
        new_order: bool = False, colours: int = 3, out: int = 3, mults: tuple[float, ...] = (1, 2),
        attention: tuple[int, ...] = (2,), blocks: int = 2, classes: int | None = None, updown: bool = False, base: int = 32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base, widths = base, [int(base * mult) for mult in mults]

        def res(wide_in: int, wide: int, resize: Any = None) -> nn.Module:
            return ResBlock(wide_in, wide, 4 * base, scale_shift, resize)

        def attend(wide: int, heads: int = heads) -> nn.Module:
            return AttentionBlock(wide, wide // head_dim if head_dim else heads, new_order)

        self.time_embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        if classes:
            self.label_emb = nn.Embedding(classes, 4 * base)
        wide = first = widths[0]
        self.input_blocks = nn.ModuleList([Chain(nn.Conv2d(colours, wide, 3, padding=1))])
        skips = [wide]
        for level, out_wide in enumerate(widths):
            for _ in range(blocks):
                more = [attend(out_wide)] if 2**level in attention else []
                self.input_blocks.append(Chain(res(wide, out_wide), *more))
                wide = out_wide
                skips.append(wide)
            if level < len(mults) - 1:
                self.input_blocks.append(Chain(res(wide, wide, Resize(halved)) if updown else Down(wide)))
                skips.append(wide)
        self.middle_block = Chain(res(wide, wide), attend(wide), res(wide, wide))
        self.output_blocks = nn.ModuleList()
        for level, out_wide in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                more = [attend(out_wide, heads_up or heads)] if 2**level in attention else []
                chain = [res(wide + skips.pop(), out_wide), *more]
                wide = out_wide
                if level and i == blocks:
                    chain.append(res(wide, wide, Resize(doubled)) if updown else Up(wide))
                self.output_blocks.append(Chain(*chain))
        self.out = nn.Sequential(nn.GroupNorm(32, wide), nn.SiLU(), nn.Conv2d(first, out, 3, padding=1))
        for p in self.parameters():
            nn.init.normal_(p, std=0.1 if p.ndim < 2 else p[0].numel() ** -0.5)
        self.eval()

    def forward(self, x: Any, t: Any, y: Any = None) -> Any:
        half = self.base // 2
        angle = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half).float() / half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=-1).to(x.dtype))
        emb = emb if y is None else emb + self.label_emb(y)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


# What each published model's flags say, a fourth to an eighth as wide (heads of 16 for 64), with fewer pixels and mostly one
# block a level in place of two or three. The models for LSUN, 256x256 without classes, and 128 to 512 have layouts of these.
GUIDED = {"updown": True, "out": 6, "attention": (8, 16, 32), "blocks": 1}
PUBLISHED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {  # image size, theirs, what weights can't tell
    "improved cifar10": (8, {"mults": (1, 2, 2, 2), "blocks": 3, "out": 6, "attention": (2, 4)}, {}),
    "improved imagenet64": (8, {"mults": (1, 2, 3, 4), "blocks": 1, "out": 6, "attention": (4, 8), "classes": 7}, {}),
    "improved lsun": (
        32, {"mults": (1, 1, 2, 2, 4, 4), "attention": (16, 32), "blocks": 1, "scale_shift": False}, {"heads": 4},
    ),
    "improved heads_upsample": (8, {"heads": 2, "heads_up": 8}, {"heads": 2, "heads_upsample": 8}),
    "guided 64": (
        8, {**GUIDED, "mults": (1, 2, 3, 4), "attention": (2, 4, 8), "classes": 10, "head_dim": 16, "new_order": True},
        {"head_dim": 16, "new_attention_order": True},
    ),
    "guided 128": (16, {**GUIDED, "mults": (1, 1, 2, 3, 4), "attention": (4, 8, 16), "classes": 10}, {}),
    "guided 256": (32, {**GUIDED, "mults": (1, 1, 2, 2, 4, 4), "classes": 10, "head_dim": 16}, {"head_dim": 16}),
    "guided 512": (
        64, {**GUIDED, "mults": (0.5, 1, 1, 2, 2, 4, 4), "attention": (16, 32, 64), "classes": 10, "head_dim": 16, "base": 64},
        {"head_dim": 16},
    ),
    "upsampler 64 to 256": (32, {**GUIDED, "mults": (1, 1, 2, 2, 4, 4), "classes": 10, "colours": 6}, {}),
    "one level": (8, {"mults": (2,), "attention": (1,), "blocks": 1}, {}),
    "attention everywhere": (
        8, {"mults": (1, 2, 3), "attention": (1, 2, 4), "blocks": 1, "new_order": True}, {"new_attention_order": True},
    ),
}  # fmt: skip
OURS: dict[str, Any] = {"image_size": 8, "channels": 32, "mults": (1, 2), "attention": (4,), "res_blocks": 2}


def checkpoint(file: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    reference = Reference(**options)
    safetensors.save_file(reference.state_dict(), file)
    return reference


@pytest.mark.parametrize("case", PUBLISHED)
def test_every_published_models_layout_loads_with_the_same_numbers(tmp_path: Path, case: str) -> None:
    size, theirs, ours = PUBLISHED[case]
    reference = checkpoint(tmp_path / "m.safetensors", **theirs)
    net = load_openai(tmp_path, size, **ours)
    assert not net.training
    x, t = torch.randn(1, theirs.get("colours", 3), size, size), torch.tensor([7])
    y = [torch.tensor([theirs["classes"] - 1])] if "classes" in theirs else []
    with torch.no_grad():
        expected = reference(x, t, *y)
        assert float((net(x, t, *y) - expected).abs().max() / expected.abs().max()) < 3e-6  # some fifty layers in float32
        expected = reference.double()(x.double(), t, *y)
        assert float((net.double()(x.double(), t, *y) - expected).abs().max() / expected.abs().max()) < 1e-13
    net.save(tmp_path / "ours")
    again, tensors = UNet.load(tmp_path / "ours"), net.state_dict()
    assert again.config == net.config
    assert all(torch.equal(value, tensors[name]) for name, value in again.state_dict().items())
    if y:
        with pytest.raises(ValueError, match=r"^y must be given"):
            net(x.double(), t)
        with pytest.raises(ValueError, match=r"^y must hold classes in 0"):
            net(x.double(), t, y[0] + 1)


def test_what_the_caller_says_agrees_or_is_refused(tmp_path: Path) -> None:
    reference = checkpoint(tmp_path / "m.safetensors", heads=2, updown=True, classes=5, attention=(1, 2))
    x, t, y = torch.randn(2, 3, 8, 16), torch.tensor([7, 999]), torch.tensor([0, 4])
    with torch.no_grad():
        net = load_openai(
            tmp_path, (8, 16), channels=32, mults=(1, 2), attention=(8, 4), res_blocks=2, heads=2, classes=5,
            resblock_updown=True, scale_shift=True, out_channels=3, dropout=0.3,
        )  # fmt: skip
        torch.testing.assert_close(net(x, t, y), reference(x, t, y), rtol=1e-5, atol=1e-5)
    assert net.config["dropout"] == 0.3
    with pytest.raises(ValueError, match=r"tensor 'label_emb\.weight' must have shape"):
        load_openai(tmp_path, 8, heads=2, classes=6)
    with pytest.raises(ValueError, match="tensor"):
        load_openai(tmp_path, 8, heads=2, resblock_updown=False)


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    checkpoint(tmp_path / "blob")
    (tmp_path / "m.safetensors").symlink_to("blob")
    load_openai(tmp_path / "m.safetensors", **OURS)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scale_shift": False}, "emb_layers"), ({"channels": 64}, "must have shape"), ({"mults": (1, 1)}, "tensor"),
        ({"attention": ()}, "missing"), ({"res_blocks": 1}, "tensor"), ({"out_channels": 6}, "tensor 'out.2"),
        ({"channels": 24}, "norm_groups"), ({"heads": 3}, "heads"), ({"heads": 2, "head_dim": 2}, "heads"),
        ({"image_size": 7}, "image_size"), ({"mults": (1, 2, 2), "image_size": 16}, "missing"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=named):
        load_openai(tmp_path / "m.safetensors", **{**OURS, **options})


def test_classifiers_and_damaged_layouts_are_named(tmp_path: Path) -> None:
    tensors, file = Reference().state_dict(), tmp_path / "m.safetensors"

    def refuses(match: str, changed: dict[str, Any]) -> None:
        safetensors.save_file(changed, file)
        with pytest.raises(ValueError, match=match):
            load_openai(file, 8)

    refuses("tensor 'more' is unknown", {**tensors, "more": torch.ones(3)})
    refuses("is a classifier", {k: v for k, v in tensors.items() if not k.startswith("output_blocks")})
    refuses(r"tensor 'time_embed\.0\.weight' is missing", {k: v for k, v in tensors.items() if not k.startswith("time")})
    refuses(r"time_embed\.0\.weight' must have more than 1 dim", {**tensors, "time_embed.0.weight": torch.ones(3)})
    refuses("mults|channels", {**tensors, "time_embed.0.weight": torch.ones(0, 0)})
    refuses("tensor|mults", {**tensors, "output_blocks.99999.0.in_layers.0.weight": torch.ones(1)})
    refuses("tensor", {**tensors, "output_blocks.0.1.conv.weight": torch.ones(1)})


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(TypeError, match=r"^new_attention_order\b"):
        load_openai(tmp_path / "m.safetensors", **OURS, new_attention_order=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mystery"):
        load_openai(tmp_path / "m.safetensors", **OURS, mystery=1)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_pickles_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.pt", "disguised.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match="safetensors"):
            load_openai(tmp_path / name, **OURS)
    (tmp_path / "disguised.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file; pickles \(\.pt\) are never read"):
        load_openai(tmp_path, **OURS)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_openai(tmp_path / "absent.safetensors", **OURS)
    for name in ("a", "b"):
        checkpoint(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"holds \d \.safetensors files"):
        load_openai(tmp_path, **OURS)
    assert not (tmp_path / "exploded").exists()
