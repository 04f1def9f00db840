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
    def __init__(self, wide_in: int, wide: int, embedded: int, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(32, wide_in), nn.SiLU(), nn.Conv2d(wide_in, wide, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedded, 2 * wide if scale_shift else wide))
        last = nn.Conv2d(wide, wide, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, wide), nn.SiLU(), nn.Dropout(0.3), last)
        self.skip_connection = nn.Conv2d(wide_in, wide, 1) if wide_in != wide else nn.Identity()

    def forward(self, x: Any, emb: Any) -> Any:
        h, e = self.in_layers(x), self.emb_layers(emb)[..., None, None]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.scale_shift:
            scale, shift = torch.chunk(e, 2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = rest(norm(h + e))
        return self.skip_connection(x) + h


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
        return self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))


class Chain(nn.Sequential):
    def forward(self, x: Any, emb: Any) -> Any:  # type: ignore[override]
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
        return x


class Reference(nn.Module):
    def __init__(
        self, heads: int = 1, head_dim: int | None = None, scale_shift: bool = True, new_order: bool = False,
        out: int = 3, mults: tuple[int, ...] = (1, 2), attention_ds: tuple[int, ...] = (2,), blocks: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        base = wide = 32

        def res(wide_in: int, wide: int) -> nn.Module:
            return ResBlock(wide_in, wide, 4 * base, scale_shift)

        def layers(wide_in: int, wide: int, ds: int) -> list[nn.Module]:
            result: list[nn.Module] = [res(wide_in, wide)]
            if ds in attention_ds:
                result.append(attend(wide))
            return result

        def attend(wide: int) -> nn.Module:
            return AttentionBlock(wide, wide // head_dim if head_dim else heads, new_order)

        self.time_embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.input_blocks = nn.ModuleList([Chain(nn.Conv2d(3, base, 3, padding=1))])
        skips, ds = [base], 1
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                self.input_blocks.append(Chain(*layers(wide, base * mult, ds)))
                wide = base * mult
                skips.append(wide)
            if level < len(mults) - 1:
                self.input_blocks.append(Chain(Down(wide)))
                skips.append(wide)
                ds *= 2
        self.middle_block = Chain(res(wide, wide), attend(wide), res(wide, wide))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(mults))):
            for i in range(blocks + 1):
                chain = layers(wide + skips.pop(), base * mult, ds)
                wide = base * mult
                if level and i == blocks:
                    chain.append(Up(wide))
                    ds //= 2
                self.output_blocks.append(Chain(*chain))
        self.out = nn.Sequential(nn.GroupNorm(32, wide), nn.SiLU(), nn.Conv2d(wide, out, 3, padding=1))
        for p in self.parameters():
            nn.init.normal_(p, std=0.1)
        self.eval()

    def forward(self, x: Any, t: Any) -> Any:
        angle = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(16).float() / 16)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=-1).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


OURS: dict[str, Any] = {"image_size": 8, "channels": 32, "mults": (1, 2), "attention": (4,), "res_blocks": 2}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"heads": 4}, {"heads": 4}),
    ({"head_dim": 16}, {"head_dim": 16}),
    ({"heads": 4, "new_order": True}, {"heads": 4, "new_attention_order": True}),
    ({"scale_shift": False, "out": 6}, {"scale_shift": False, "out_channels": 6}),
    ({"heads": 2, "attention_ds": (1, 2, 4), "mults": (1, 2, 3), "blocks": 1},
     {"heads": 2, "attention": (8, 4, 2), "mults": (1, 2, 3), "res_blocks": 1}),
]  # fmt: skip


def checkpoint(file: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    reference = Reference(**options)
    safetensors.save_file(reference.state_dict(), file)
    return reference


@pytest.mark.parametrize(("theirs", "ours"), CASES)
def test_the_same_numbers(tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    reference = checkpoint(tmp_path / "m.safetensors", **theirs)
    for path in (tmp_path / "m.safetensors", tmp_path):
        net = load_openai(path, **{**OURS, **ours})
        assert not net.training
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([7, 999])
    with torch.no_grad():
        expected = reference(x, t)
        assert float((net(x, t) - expected).abs().max() / expected.abs().max()) < 1e-5
        expected = reference.double()(x.double(), t)
        assert float((net.double()(x.double(), t) - expected).abs().max() / expected.abs().max()) < 1e-10


def test_it_saves_as_ours(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m.safetensors", heads=4)
    net = load_openai(tmp_path / "m.safetensors", **OURS, heads=4)
    net.save(tmp_path / "ours")
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7])
    with torch.no_grad():
        assert torch.equal(UNet.load(tmp_path / "ours")(x, t), net(x, t))


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


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("label_emb.weight", "class-conditional"), ("input_blocks.3.0.in_layers.0.weight", "resblock_updown"),
        ("more", "tensor 'more' is unknown"),
    ],
)  # fmt: skip
def test_variants_that_can_not_be_read_are_named(tmp_path: Path, extra: str, named: str) -> None:
    safetensors.save_file({**Reference().state_dict(), extra: torch.ones(3)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=named):
        load_openai(tmp_path / "m.safetensors", **OURS)


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
