"""Files made to do harm: each is refused by name, within seconds and in bounded memory, and nothing in it is run.

There is one table for each kind of file. Networks and checkpoints are also tried with forged hashes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import re
import resource
import shutil
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL.Image")
pytest.importorskip("sklearn")

from tinyddpm import Denoiser, Diffusion, schedules  # noqa: E402
from tinyddpm.nn import UNet, load_diffusers, save_diffusers  # noqa: E402
from tinyddpm.training import TrainConfig, load, load_run, train  # noqa: E402

SECONDS = 5.0
MEMORY = 256  # MiB beyond the most that was in use before
REFUSED = (ValueError, FileNotFoundError, LookupError)
Damage = Callable[[Path], None]

ran: list[str] = []


def bait(*args: str) -> None:
    """What a hostile pickle calls, if anything unpickles it."""
    ran.append(" ".join(args))


class Evil:
    def __reduce__(self) -> Any:
        return bait, ("unpickled",)


def refuses(read: Callable[[], Any], *names: str) -> None:
    """Check that `read` raises an error of one line that names one of these, within the bounds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.process_time()
    with pytest.raises(REFUSED) as caught:
        read()
    assert time.process_time() - since < SECONDS  # CPU time, which does not depend on other processes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY * 1024
    message = str(caught.value)
    assert any(name in message for name in names), message
    assert "\n" not in message
    assert len(message) < 2000
    assert not ran


def content(change: Callable[[bytes], bytes]) -> Damage:
    """Change the file's content."""

    def damage(file: Path) -> None:
        file.write_bytes(change(file.read_bytes()))

    return damage


def bind(change: Callable[..., Any], *values: Any) -> Callable[[Any], Any]:
    """A function of one argument, from one of several."""
    return lambda data: change(data, *values)


def cuts(*lengths: int) -> dict[str, Damage]:
    """Cut the file to these lengths."""
    return {f"cut at {n}": content(bind(lambda data, n: data[:n], n)) for n in lengths}


def sparse(size: int, start: bytes = b"") -> Damage:
    def make(file: Path) -> None:
        file.write_bytes(start)
        os.truncate(file, size)

    return make


def link(target: str) -> Damage:
    def make(file: Path) -> None:
        shutil.move(file, file.parent.parent / f"moved-{file.name}")
        file.symlink_to(target.format(file.parent.parent / f"moved-{file.name}"))

    return make


def special(make: Callable[[Path], Any]) -> Damage:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


NO_FILE: dict[str, Damage] = {
    "a link": link("{}"),
    "a link to nowhere": link("/nonexistent/file"),
    "a link to itself": special(lambda file: file.symlink_to(file.name)),
    "a device": link("/dev/zero"),
    "a pipe": special(os.mkfifo),
    "a folder": special(Path.mkdir),
}


# ---- safetensors


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the header, and the length in front of it."""

    def damage(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        new = change(entries)
        text = new if isinstance(new, bytes) else json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return content(damage)


def entry(change: Callable[[dict[str, Any]], Any], which: int = 0) -> Damage:
    """Change the entry of one tensor."""
    return header(lambda entries: change(entries[sorted(entries.keys() - {"__metadata__"})[which]]))


def shift(by: int) -> Damage:
    """Shift the offsets of one tensor."""
    return entry(lambda e: e.update(data_offsets=[offset + by for offset in e["data_offsets"]]), 1)


def _torch_zip() -> bytes:
    stream = io.BytesIO()
    torch.save({"conv_in.weight": torch.zeros(3)}, stream)
    return stream.getvalue()


ENTRIES: dict[str, list[Any]] = {
    "dtype": ["I32", "F128", {"F32": 1}, "F16"],
    "shape": [[2**60], [10**300], 7],
    "data_offsets": [[0], [0.0, 4.0], [False, True]],
}
TENSORS: dict[str, Damage] = {
    **cuts(0, 7, 8, 99, -1),
    "cut in a tensor": content(lambda data: data[: len(data) // 2]),
    **{f"{n} bytes more": content(bind(lambda data, n: data + bytes(n), n)) for n in (1, 1024)},
    "8 GiB more": lambda file: os.truncate(file, 2**33),
    **{f"header of {n}": content(bind(lambda data, n: n.to_bytes(8, "little") + data[8:], n))
       for n in (0, 1, 2**20, 2**63, 2**64 - 1)},
    **{f"header of {n} that are there": sparse(8 + n, n.to_bytes(8, "little") + b"{") for n in (2**32, 10**8)},
    "header of 900 kB of lists": header(lambda h: b'{"a":[' + b"[]," * 3 * 10**5 + b"[]]}"),
    "a header too deep": header(lambda h: b"[" * 30_000),
    "objects too deep": header(lambda h: b'{"a":' * 10_000),
    "not JSON": header(lambda h: b"\x80\x04" + b"x" * 100),
    "not UTF-8": header(lambda h: b'{"\xff\xfe": 1}'),
    "a list": header(lambda h: b"[]  "),
    "a number of 5000 digits": header(lambda h: b'{"a": ' + b"9" * 5000 + b"}"),
    "a key twice": header(lambda h: b'{"__metadata__": {}, "__metadata__": {}}'),
    "no tensors": header(lambda h: h.clear()),
    "a tensor less": header(lambda h: h.pop(sorted(h)[3])),
    "a tensor more": header(lambda h: h.update(evil={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
    "a tensor by a path": header(lambda h: h.update({"../../etc/passwd": h.pop("conv_in.bias")})),
    **{f"metadata {str(value)[:20]}": header(bind(lambda h, value: h.update(__metadata__=value), value))
       for value in ({"a": 1}, [1, 2], {"a": "x" * 9 * 10**5}, {"unet": "{}"})},
    **{f"an entry {value}": header(bind(lambda h, value: h.update({sorted(h)[1]: value}), value)) for value in ([1, 2], None)},
    **{f"{key} {value}": entry(bind(lambda e, key, value: e.update({key: value}), key, value))
       for key, values in ENTRIES.items() for value in values},
    **{f"no {key}": entry(bind(lambda e, key: e.pop(key), key)) for key in ENTRIES},
    "another shape": entry(lambda e: e.update(shape=[*reversed(e["shape"]), 2])),
    "a negative shape": entry(lambda e: e.update(shape=[-n for n in e["shape"]])),
    "a shape of floats": entry(lambda e: e.update(shape=[n + 0.5 for n in e["shape"]])),
    "a shape of strings": entry(lambda e: e.update(shape=[str(n) for n in e["shape"]])),
    "offsets backwards": entry(lambda e: e["data_offsets"].reverse()),
    **{f"offsets shifted by {by}": shift(by) for by in (-4, 4, -(2**20), 2**40, 10**300)},
    "two tensors in one place": header(lambda h: h["conv_in.weight"].update(data_offsets=[0, 144])),
    **{bad: content(bind(lambda data, bad: data[:-4] + struct.pack("<f", float(bad)), bad)) for bad in ("nan", "inf")},
    "a pickle": content(lambda data: pickle.dumps(Evil())),
    "a pickle behind a length": content(lambda data: (len(p := pickle.dumps(Evil()))).to_bytes(8, "little") + p),
    "a torch file": content(lambda data: _torch_zip()),
    **NO_FILE,
}  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return UNet(8, in_channels=1, channels=4, mults=(1,), res_blocks=1, attention=())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, net: Any) -> Path:
    """A saved network, a diffusers folder, and a run."""
    made = tmp_path_factory.mktemp("made")
    net.save(made / "unet")
    pipeline_net = UNet(8, in_channels=1, channels=32, mults=(1,), res_blocks=1, attention=())
    save_diffusers(made / "pipeline", pipeline_net, Diffusion(schedules.linear(20)), Denoiser(pipeline_net, first_t=0))
    config = TrainConfig(out=str(made / "run"), device="cpu", steps=2, batch_size=4, channels=4, mults=(1,), res_blocks=1, T=20)
    train(config, progress=False)
    return made


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "files", symlinks=True)
    return tmp_path / "files"


def forge(folder: Path) -> None:
    """Make the recorded hashes match what is there."""

    def digest(name: str) -> str | None:
        file = folder / name
        small = file.is_file() and not file.is_symlink() and file.stat().st_size < 2**24
        return hashlib.sha256(file.read_bytes()).hexdigest() if small else None

    if (state := folder / "state.json").is_file():
        about = json.loads(state.read_text())
        about["files"] = {name: digest(name) or old for name, old in about["files"].items()}
        del about["sha256"]
        about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        state.write_text(json.dumps(about))
    name = next(n for n in ("ema.safetensors", "model.safetensors") if os.path.lexists(folder / n))
    about = json.loads((folder / "unet.json").read_text())
    (folder / "unet.json").write_text(json.dumps(about | {"sha256": digest(name) or about["sha256"]}))


OF_ONE_TENSOR = re.compile("an entry|dtype|shape|data_offsets|no |another|a negative|a shape|offsets|two|a tensor|nan|inf")


@pytest.mark.parametrize("case", TENSORS)
def test_networks(files: Path, case: str) -> None:
    """With the recorded hash, and with a forged one: then the tensor is named."""
    TENSORS[case](files / "unet" / "model.safetensors")
    refuses(lambda: UNet.load(files / "unet"), "model.safetensors", "unet.json")
    forge(files / "unet")
    named = ("model.safetensors: tensor '", "key 'conv_in") if OF_ONE_TENSOR.match(case) else ("model.safetensors", "unet.json")
    refuses(lambda: UNet.load(files / "unet"), *named)


@pytest.mark.parametrize("case", sorted(TENSORS.keys() - {"a link", "metadata {'unet': '{}'}"}))
def test_pipelines(files: Path, case: str) -> None:
    file = files / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    damage = header(lambda h: h.update({"../../etc/passwd": h.pop("conv_in.bias")})) if "path" in case else TENSORS[case]
    damage(file)
    refuses(lambda: load_diffusers(files / "pipeline"), file.name)


CHECKPOINTS = ["cut in a tensor", f"header of {2**32} that are there", "a tensor less", f"shape {[2**60]}",
               "offsets shifted by -4", "nan", "a pickle", "a torch file", *NO_FILE, "not there"]  # fmt: skip


@pytest.mark.parametrize("name", ["ema.safetensors", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(files: Path, case: str, name: str) -> None:
    last, log = (files / "run" / "last").resolve(), (files / "run" / "log.jsonl").read_bytes()
    if case == "a tensor less" and name == "optimizer.safetensors":
        header(lambda h: h.pop(sorted(h)[0]))(last / name)
    else:
        {**TENSORS, "not there": Path.unlink}[case](last / name)
    named = ("json", "safetensors", "out") if case == "not there" else (name,)
    config = TrainConfig.from_dict(json.loads((last / "state.json").read_text())["config"])
    resumed = TrainConfig(**{**vars(config), "out": str(files / "run"), "resume": True, "steps": 3})
    for forged in (False,) if case == "not there" else (False, True):
        if forged:
            forge(last)
        refuses(lambda: train(resumed, progress=False), *named)
        if name.startswith("ema"):
            refuses(lambda: load_run(files / "run"), *named, "unet.json")
    assert (files / "run" / "log.jsonl").read_bytes() == log


# ---- JSON


def keys(**changes: Any) -> Damage:
    return content(lambda data: json.dumps({**json.loads(data), **changes}).encode())


def without(key: str) -> Damage:
    return content(lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != key}).encode())


JSON: dict[str, Damage] = {
    **cuts(0, -9),
    "a pickle": content(lambda data: pickle.dumps(Evil())),
    "a list": content(lambda data: b"[" + data + b"]"),
    "a number": content(lambda data: b"3"),
    "too deep": content(lambda data: b"[" * 10**5),
    "too deep within": content(lambda data: b'{"a":' * 10**5),
    "5000 digits": content(lambda data: data.rstrip()[:-1] + b', "T": ' + b"9" * 5000 + b"}"),
    "a key twice": content(lambda data: data.rstrip()[:-1] + b', "sha256": "0", "sha256": "1"}'),
    "not UTF-8": content(lambda data: b'{"\xff": 1}'),
    "20 MiB": sparse(20 * 2**20, b"{"),
    "1 TiB": sparse(2**40, b"{"),
    "an unknown key": keys(evil=1),
    **NO_FILE,
}
UNET_CHANGES: list[dict[str, Any]] = [
    {"sha256": 0}, {"sha256": "A" * 64}, {"channels": 8}, {"channels": 12}, {"mults": 3}, {"image_size": 7},
    {"dropout": 0.5}, {"channels": 2**14, "mults": [64]}, {"channels": 10**300},
    {"res_blocks": 64, "image_size": 2**11, "mults": [64] * 12, "channels": 2**14},
    {"image_size": 2**16, "attention": list(range(1, 2**14))}, {"attention": [1] * 10**6}, {"classes": 2**24},
    {"res_blocks": -1}, {"in_channels": "__import__('os').system('true')"}, {"channels": [4]}, {"mults": None},
    {"dropout": math.nan}, {"dropout": math.inf},
]  # fmt: skip
UNET_JSON: dict[str, Damage] = {
    **JSON,
    **{f"no {key}": without(key) for key in ("sha256", "channels")},
    **{f"{str(change)[:50]} {k}": keys(**change) for k, change in enumerate(UNET_CHANGES)},
}


@pytest.mark.parametrize("case", UNET_JSON)
def test_arguments_of_networks(files: Path, case: str) -> None:
    """The argument is named, or the tensor that does not fit it."""
    UNET_JSON[case](files / "unet" / "unet.json")
    key = re.match(r"(?:no |\{')(\w+)", case)
    refuses(lambda: UNet.load(files / "unet"), *((key[1], "tensor", "differs") if key else ("unet.json", "model.safetensors")))


def state(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change a run's state and forge the hash."""

    def damage(data: bytes) -> bytes:
        about = json.loads(data)
        change(about)
        del about["sha256"]
        return json.dumps({**about, "sha256": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()}).encode()

    return content(damage)


SETTINGS: list[dict[str, Any]] = [
    *({"T": T} for T in (100_001, 10**7, 10**9, 2**31, 10**300)),
    {"evil": "x"}, {"schedule": "__import__"}, {"lr": [1]}, {"lr": 1e999},
]  # fmt: skip
OTHER_KINDS = {"step": "3", "config": None, "levels": True}
STATE_JSON: dict[str, Damage] = {
    **JSON,
    **{key: state(bind(lambda about, key: about.update({key: OTHER_KINDS[key]}), key)) for key in OTHER_KINDS},
    "a flipped bit": content(lambda data: data.replace(b'"T": 20', b'"T": 21')),
    "no hash": without("sha256"),
    "a hash that is a list": keys(sha256=[]),
    **{str(change)[:50]: state(bind(lambda about, change: about["config"].update(change), change)) for change in SETTINGS},
}


@pytest.mark.parametrize("case", STATE_JSON)
def test_states_of_runs(files: Path, case: str) -> None:
    file = (files / "run" / "last").resolve() / "state.json"
    STATE_JSON[case](file)
    named = (case,) if case in OTHER_KINDS else ("state.json", "T ", "T: ", "evil", "schedule", "lr")
    refuses(lambda: load_run(files / "run"), *named)


def redirected(name: str, to: str) -> Damage:
    """Put a link to `to` in the place of a run's link or folder; ../elsewhere is a copy of the folder or a checkpoint."""

    def make(run: Path) -> None:
        shutil.copytree((run / name).resolve(), run.parent / "elsewhere")
        if (run / name).is_symlink():
            (run / name).unlink()
        else:
            shutil.rmtree(run / name)
        (run / name).symlink_to(to)

    return make


LAST = ("../elsewhere", "/etc", "last", "checkpoints/step-99999999", "log.jsonl")
ESCAPES = {f"last: {to}": redirected("last", to) for to in LAST}


@pytest.mark.parametrize("case", ESCAPES)
def test_runs_that_lead_out_of_their_folder(files: Path, case: str) -> None:
    ESCAPES[case](files / "run")
    refuses(lambda: load_run(files / "run"), "last", "state.json", "step-99999999", "log.jsonl")


def shards(name: str) -> Damage:
    def make(folder: Path) -> None:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        shutil.copy(file, folder / "elsewhere.safetensors")
        file.unlink()
        file.with_name(file.name + ".index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))

    return make


def within(part: str, damage: Damage) -> Damage:
    return lambda folder: damage(folder / part)


def pickled(suffix: str) -> Damage:
    def make(folder: Path) -> None:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        file.unlink()
        file.with_suffix(suffix).write_bytes(pickle.dumps(Evil()))

    return make


CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
DEEPEST: dict[str, Any] = {
    "sample_size": 2**11, "layers_per_block": 64, "block_out_channels": [2**14] * 12,
    "down_block_types": ["DownBlock2D"] * 12, "up_block_types": ["UpBlock2D"] * 12,
}  # fmt: skip
PARTS: list[dict[str, Any]] = [
    {"unet": ["evil.module", "UNet2DModel"]}, {"unet": ["diffusers", "Evil"]}, {"safety_checker": ["transformers", "Evil"]}
]  # fmt: skip
PIPELINES: dict[str, Damage] = {
    **{str(change): within(CONFIGS[0], keys(**change)) for change in PARTS},
    "a missing part": within(CONFIGS[0], without("unet")),
    **{f"a pickle in {suffix}": pickled(suffix) for suffix in (".bin", ".pt")},
    **{f"shards {name}": shards(name)
       for name in ("../elsewhere.safetensors", "/etc/passwd", "..\\elsewhere.safetensors", "evil.bin")},
    **{f"{T} steps": within(CONFIGS[2], keys(num_train_timesteps=T)) for T in (100_001, 10**9, 10**300)},
    "the deepest": within(CONFIGS[1], keys(**DEEPEST)),
    **{f"{part}: {case}": within(part, JSON[case]) for part in CONFIGS
       for case in ("cut at 0", "cut at -9", "a pickle", "too deep", "1 TiB", *NO_FILE) if case != "a link"},
}  # fmt: skip


@pytest.mark.parametrize("case", PIPELINES)
def test_configs_of_pipelines(files: Path, case: str) -> None:
    PIPELINES[case](files / "pipeline")
    refuses(lambda: load_diffusers(files / "pipeline"), case.partition(" in ")[2] or str(files / "pipeline"))


# ---- arrays


def npy(shape: Any, descr: str = "|u1", body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + body


def saved(array: Any) -> bytes:
    np.save(stream := io.BytesIO(), array, allow_pickle=True)
    return stream.getvalue()


SHAPES: dict[tuple[Any, ...], int] = {
    (2**60, 8, 8): 0, (2**40, 8, 8): 64, (10**300, 8, 8): 0, (-1, 8, 8): 64, (-1, -8, 8): 64, (1.0, 8.0, 8.0): 64,
    (0, 8, 8): 0, (): 1, (1,) * 64: 1,
}  # fmt: skip
ARRAYS: dict[str, bytes] = {
    "objects": saved(np.array([Evil()], object)),
    "NaN": saved(np.full((3, 4, 4), np.nan)),
    "one value": saved(np.full((3, 4, 4), 2.5)),
    **{f"{n} axes": saved(np.zeros((3,) * n, np.uint8)) for n in (1, 5)},
    **{f"cut at {n}": saved(np.ones((4, 8, 8), np.uint8))[:n] for n in (0, 1, 3, 9, -1)},
    "a pickle": pickle.dumps(Evil()),
    **{f"shape {str(shape)[:30]}": npy(shape, body=bytes(size)) for shape, size in SHAPES.items()},
    "code in the header": npy((), "|u1").replace(b"'|u1'", b"__import__('os')"),
    "a header too deep": b"\x93NUMPY\1\0" + (9000).to_bytes(2, "little") + b"(" * 9000,
    "a header of 64 kB": b"\x93NUMPY\1\0\xff\xff" + b" " * 65535,
    "a header of 4 GiB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"{",
    "an unknown version": npy((1, 8, 8), body=bytes(64), version=(9, 0)),
    **{f"dtype {descr}": npy((1, 8, 8), descr, bytes(512)) for descr in ("<c8", "|V8", "<M8[s]", "<U2")},
    **{f"{n} bytes for 256": npy((4, 8, 8), body=bytes(n)) for n in (255, 257)},
}  # fmt: skip


def zipped(name: str, body: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as packed:
        packed.writestr(name, body)
    return stream.getvalue()


def locked() -> bytes:
    data = bytearray(zipped("a.npy", npy((1, 8, 8), body=bytes(64))))
    data[6] |= 1
    data[data.rindex(b"PK\1\2") + 8] |= 1
    return bytes(data)


ARCHIVES: dict[str, bytes] = {
    **{case: zipped("images.npy", body) for case, body in ARRAYS.items()},
    "no archive": b"PK\3\4" + bytes(200),
    "cut archive": zipped("a.npy", npy((1, 8, 8), body=bytes(64)))[:-30],
    "locked": locked(),
    "another packing": zipped("a.npy", npy((1, 8, 8), body=bytes(64)), zipfile.ZIP_BZIP2),
    "flipped": zipped("a.npy", npy((1, 8, 8), body=bytes(64)), zipfile.ZIP_STORED).replace(b"\0" * 8, b"\0" * 7 + b"\1", 1),
    "a bomb": zipped("images.npy", npy((1, 8, 8), body=bytes(2**28))),
    "nothing": zipped("a.txt", b"")[-22:],
    "above": zipped("../../a.npy", saved(np.array([Evil()], object))),
}


def idx_file(*shape: int, body: bytes = b"", kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + body


def gz(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, 1)


IDX: dict[str, bytes] = {
    "all sides 2^32 - 1": idx_file(*[2**32 - 1] * 4),
    **{f"{n} axes": idx_file(*[1] * n) for n in (0, 255)},
    **{f"cut at {n}": idx_file(1, 8, 8)[:n] for n in (0, 1, 3, 10)},
    "no type of numbers": idx_file(1, 8, 8, body=bytes(256), kind=10),
    **{f"{n} bytes for 64": idx_file(1, 8, 8, body=bytes(n)) for n in (63, 65)},
    "no images": idx_file(0, 8, 8),
    "packed: all sides 2^32 - 1": gz(idx_file(*[2**32 - 1] * 4)),
    "packed: 3 GiB that are not there": gz(idx_file(3 * 2**14, 2**8, 2**8, body=bytes(100))),
    **{f"packed: cut at {n}": gz(idx_file(1, 8, 8, body=bytes(64)))[:n] for n in (1, 3, 9, -12, -1)},
    "packed: flipped": gz(idx_file(4, 8, 8, body=os.urandom(256)))[:-9] + b"\1" * 9,
    "packed: a bomb": gz(idx_file(1, 8, 8, body=bytes(2**28))),
    "packed twice": gz(gz(idx_file(1, 8, 8, body=bytes(64)))),
    "a pickle": pickle.dumps(Evil()),
    "a program": b"#!/bin/sh\ntouch hacked\n",
}


# ---- tar


def tar(*members: tuple[str, bytes, bytes], size: int | None = None, cut: int | None = None) -> bytes:
    """An archive of (name, type, content); `size` replaces the size in each header."""
    data = b""
    for name, kind, body in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(body) if size is None else size
        data += info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)
    return (data + bytes(1024))[:cut]


def negative() -> bytes:
    """A size of -512, with which a trusting reader would loop forever."""
    data = bytearray(tar(("a.png", tarfile.REGTYPE, b"x" * 512)))
    data[124:136] = b"\xff" * 10 + b"\xfe\x00"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def png(kind: bytes = tarfile.REGTYPE, body: bytes = b"x", name: str = "a.png") -> tuple[str, bytes, bytes]:
    return name, kind, body


KINDS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
TARS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(10240),
    "a pickle": pickle.dumps(Evil()),
    "no checksum": tar(png()).replace(b"a.png", b"b.png"),
    "a negative size": negative(),
    **{f"{size} bytes that are not there": tar(png(), size=size) for size in (2**62, 2**33 - 1)},
    "cut": tar(png(body=b"x" * 5000), cut=3000),
    "no image": tar(png(name="a.txt")),
    **{f"type {kind.decode()}": tar(png(kind, b"")) for kind in KINDS},
    "a sparse file": tar(png(tarfile.GNUTYPE_SPARSE)),
    "a name of 100 kB": tar(("x", tarfile.GNUTYPE_LONGNAME, b"x" * 10**5), png()),
    "records of 100 kB": tar(("x", tarfile.XHDTYPE, b"9" * 10**5), png()),
    "records that give a size": tar(("x", tarfile.XHDTYPE, b"20 size=99999999999\n"), png()),
    "not a picture": tar(png(body=b"x" * 100, name="../../a.png")),
    "a pickle for a picture": tar(png(body=pickle.dumps(Evil()))),
    "a pickle for a label": tar(png(), ("a.cls", tarfile.REGTYPE, pickle.dumps(Evil()))),
    "a label of 5000 digits": tar(png(), ("a.cls", tarfile.REGTYPE, b"9" * 5000)),
}


DATA = {"a.npy": ARRAYS, "a.npz": ARCHIVES, "images-idx3-ubyte": IDX, "a.tar": TARS}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in DATA.items() for case in cases])
def test_data(tmp_path: Path, name: str, case: str) -> None:
    (tmp_path / name).write_bytes(DATA[name][case])
    refuses(lambda: load(tmp_path / name), name)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tar", "a-idx3-ubyte", "images/a.png"])
@pytest.mark.parametrize("case", ["a link to itself", "a device", "a pipe", "1 TiB"])
def test_data_that_is_not_a_regular_file(tmp_path: Path, name: str, case: str) -> None:
    file = tmp_path / "sets" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    (sparse(2**40) if case == "1 TiB" else NO_FILE[case])(file)
    refuses(lambda: load(file.parent if name.endswith("png") else file), "a.", "a-idx3")


def test_the_tables_are_as_large_as_the_documentation_says() -> None:
    """Networks and checkpoints count twice, as they are also tried with forged hashes."""
    tables = {
        "networks": 2 * len(TENSORS) + len(UNET_JSON),
        "pipelines": len(TENSORS) - 2 + len(PIPELINES),
        "runs": 2 * 3 * len(CHECKPOINTS) + len(STATE_JSON) + len(ESCAPES),
        "arrays": len(ARRAYS) + len(ARCHIVES) + len(IDX),
        "archives of images": len(TARS) + 5 * 4,
    }
    print(f"hostile files refused: {sum(tables.values())} ({tables})")
    assert sum(tables.values()) >= 400
