"""Files that somebody made to do harm: each is refused by name, soon, in bounded memory, and runs nothing.

One table for each kind of file. A case that a forger would go on with (a recorded hash that matches) is forged too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
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
    """`read` ends in one line that names one of these, within the bounds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = time.process_time()
    with pytest.raises(REFUSED) as caught:
        read()
    assert time.process_time() - since < SECONDS  # of this process: a busy machine is no damage
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY * 1024
    message = str(caught.value)
    assert any(name in message for name in names), message
    assert "\n" not in message
    assert len(message) < 2000
    assert not ran


def content(change: Callable[[bytes], bytes]) -> Damage:
    """A damage to what the file holds."""
    return lambda file: file.unlink() if (new := change(file.read_bytes())) is None else _write(file, new)


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


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
    """A damage to the header, the rest staying in step with its length."""

    def damage(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + length])
        new = change(entries)
        text = new if isinstance(new, bytes) else json.dumps(entries if new is None else new).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return content(damage)


def entry(change: Callable[[dict[str, Any]], Any], which: int = 0) -> Damage:
    """A damage to one tensor's entry."""
    return header(lambda entries: change(entries[sorted(entries.keys() - {"__metadata__"})[which]]))


def shift(by: int, which: int = 1) -> Damage:
    return entry(lambda e: e.update(data_offsets=[offset + by for offset in e["data_offsets"]]), which)


def _torch_zip() -> bytes:
    stream = io.BytesIO()
    torch.save({"conv_in.weight": torch.zeros(3)}, stream)
    return stream.getvalue()


def _hide_nan(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<f", float("nan"))


TENSORS: dict[str, Damage] = {
    "empty": content(lambda data: b""),
    "seven bytes": content(lambda data: data[:7]),
    "eight bytes": content(lambda data: data[:8]),
    "cut in the header": content(lambda data: data[:99]),
    "cut in a tensor": content(lambda data: data[: len(data) // 2]),
    "cut by a byte": content(lambda data: data[:-1]),
    "a byte more": content(lambda data: data + b"\0"),
    "a kilobyte more": content(lambda data: data + bytes(1024)),
    "8 GiB more": lambda file: os.truncate(file, 2**33),
    "header of 0": content(lambda data: bytes(8) + data[8:]),
    "header of 2^64 - 1": content(lambda data: b"\xff" * 8 + data[8:]),
    "header of 2^63": content(lambda data: (2**63).to_bytes(8, "little") + data[8:]),
    "header of 4 GiB that are there": sparse(2**33, (2**32).to_bytes(8, "little") + b"{"),
    "header of 100 MB that are there": sparse(10**8 + 8, (10**8).to_bytes(8, "little") + b"{"),
    "header of 900 kB of lists": header(lambda h: b'{"a":[' + b"[]," * 3 * 10**5 + b"[]]}"),
    "a header too deep": header(lambda h: b"[" * 30_000),
    "objects too deep": header(lambda h: b'{"a":' * 10_000),
    "no JSON": header(lambda h: b"\x80\x04" + b"x" * 100),
    "no UTF-8": header(lambda h: b'{"\xff\xfe": 1}'),
    "a list": header(lambda h: b"[]  "),
    "a number of 5000 digits": header(lambda h: b'{"a": ' + b"9" * 5000 + b"}"),
    "a key twice": header(lambda h: b'{"__metadata__": {}, "__metadata__": {}}'),
    "no tensors": header(lambda h: h.clear()),
    "a tensor less": header(lambda h: h.pop(sorted(h)[3])),
    "a tensor more": header(lambda h: h.update(evil={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
    "a tensor by a path": header(lambda h: h.update({"../../etc/passwd": h.pop("conv_in.bias")})),
    "metadata of numbers": header(lambda h: h.update(__metadata__={"a": 1})),
    "metadata no object": header(lambda h: h.update(__metadata__=[1, 2])),
    "metadata of 900 kB": header(lambda h: h.update(__metadata__={"a": "x" * 9 * 10**5})),
    "another network": header(lambda h: h.update(__metadata__={"unet": "{}"})),
    "an entry that is a list": header(lambda h: h.update({sorted(h)[1]: [1, 2]})),
    "an entry that is null": header(lambda h: h.update({sorted(h)[1]: None})),
    "dtype of integers": entry(lambda e: e.update(dtype="I32")),
    "dtype unknown": entry(lambda e: e.update(dtype="F128")),
    "dtype no string": entry(lambda e: e.update(dtype={"F32": 1})),
    "two dtypes": entry(lambda e: e.update(dtype="F16")),
    "no dtype": entry(lambda e: e.pop("dtype")),
    "another shape": entry(lambda e: e.update(shape=[*reversed(e["shape"]), 2])),
    "a shape of 2^60": entry(lambda e: e.update(shape=[2**60])),
    "a shape of 10^300": entry(lambda e: e.update(shape=[10**300])),
    "a negative shape": entry(lambda e: e.update(shape=[-n for n in e["shape"]])),
    "a shape of floats": entry(lambda e: e.update(shape=[n + 0.5 for n in e["shape"]])),
    "a shape of strings": entry(lambda e: e.update(shape=[str(n) for n in e["shape"]])),
    "a shape that is a number": entry(lambda e: e.update(shape=7)),
    "no shape": entry(lambda e: e.pop("shape")),
    "no offsets": entry(lambda e: e.pop("data_offsets")),
    "one offset": entry(lambda e: e.update(data_offsets=[0])),
    "offsets backwards": entry(lambda e: e["data_offsets"].reverse()),
    "offsets that are floats": entry(lambda e: e.update(data_offsets=[0.0, 4.0])),
    "offsets that are bools": entry(lambda e: e.update(data_offsets=[False, True])),
    "offsets overlapping": shift(-4),
    "offsets with a gap": shift(4),
    "offsets below zero": shift(-(2**20)),
    "offsets behind the end": shift(2**40),
    "offsets of 10^300": shift(10**300),
    "two tensors in one place": header(lambda h: h["conv_in.weight"].update(data_offsets=[0, 144])),
    "NaN": content(_hide_nan),
    "infinity": content(lambda data: data[:-4] + struct.pack("<f", float("inf"))),
    "a pickle": content(lambda data: pickle.dumps(Evil())),
    "a pickle behind a length": content(lambda data: (len(p := pickle.dumps(Evil()))).to_bytes(8, "little") + p),
    "a torch file": content(lambda data: _torch_zip()),
    **NO_FILE,
}


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


@pytest.mark.parametrize("case", TENSORS)
def test_networks(files: Path, case: str) -> None:
    for forged in (False, True):
        TENSORS[case](files / "unet" / "model.safetensors") if not forged else forge(files / "unet")
        refuses(lambda: UNet.load(files / "unet"), "model.safetensors", "unet.json")


@pytest.mark.parametrize("case", sorted(TENSORS.keys() - {"a link", "another network"}))
def test_pipelines(files: Path, case: str) -> None:
    file = files / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    damage = header(lambda h: h.update({"../../etc/passwd": h.pop("conv_in.bias")})) if "path" in case else TENSORS[case]
    damage(file)
    refuses(lambda: load_diffusers(files / "pipeline"), file.name)


@pytest.mark.parametrize("name", ["ema.safetensors", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("case", ["cut in a tensor", "header of 4 GiB that are there", "a tensor less", "a shape of 2^60",
                                  "offsets overlapping", "NaN", "a pickle", "a torch file", *NO_FILE])  # fmt: skip
def test_checkpoints(files: Path, case: str, name: str) -> None:
    last = (files / "run" / "last").resolve()
    if case == "a tensor less" and name == "optimizer.safetensors":
        header(lambda h: h.pop(sorted(h)[0]))(last / name)
    else:
        TENSORS[case](last / name)
    config = TrainConfig.from_dict(json.loads((last / "state.json").read_text())["config"])
    resumed = TrainConfig(**{**vars(config), "out": str(files / "run"), "resume": True, "steps": 3})
    for forged in (False, True):
        if forged:
            forge(last)
        refuses(lambda: train(resumed, progress=False), name)
        if name.startswith("ema"):
            refuses(lambda: load_run(files / "run"), name, "unet.json")


# ---- JSON


def keys(**changes: Any) -> Damage:
    return content(lambda data: json.dumps({**json.loads(data), **changes}).encode())


def without(key: str) -> Damage:
    return content(lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != key}).encode())


JSON: dict[str, Damage] = {
    "empty": content(lambda data: b""),
    "cut": content(lambda data: data[:-9]),
    "a pickle": content(lambda data: pickle.dumps(Evil())),
    "a list": content(lambda data: b"[" + data + b"]"),
    "too deep": content(lambda data: b"[" * 10**5),
    "too deep within": content(lambda data: b'{"a":' * 10**5),
    "5000 digits": content(lambda data: data.rstrip()[:-1] + b', "T": ' + b"9" * 5000 + b"}"),
    "a key twice": content(lambda data: data.rstrip()[:-1] + b', "sha256": "0", "sha256": "1"}'),
    "no UTF-8": content(lambda data: b'{"\xff": 1}'),
    "20 MiB": sparse(20 * 2**20, b"{"),
    "1 TiB": sparse(2**40, b"{"),
    "an unknown key": keys(evil=1),
    **NO_FILE,
}
UNET_JSON: dict[str, Damage] = {
    **JSON,
    "no hash": without("sha256"),
    "a hash that is a number": keys(sha256=0),
    "a hash in capitals": content(lambda data: json.dumps({**json.loads(data), "sha256": "A" * 64}).encode()),
    "a missing key": without("channels"),
    "another width": keys(channels=8),
    "the widest": keys(channels=2**14, mults=[64]),
    "a width of 10^300": keys(channels=10**300),
    "the deepest": keys(image_size=2**11, mults=[64] * 12, res_blocks=64, channels=2**14),
    "the largest": keys(image_size=2**16, attention=list(range(1, 2**14))),
    "10^6 attentions": keys(attention=[1] * 10**6),
    "all classes": keys(classes=2**24),
    "a negative number": keys(res_blocks=-1),
    "NaN": content(lambda data: data.replace(b'"dropout": 0.1', b'"dropout": NaN')),
    "infinity": content(lambda data: data.replace(b'"dropout": 0.1', b'"dropout": Infinity')),
    "a string for a number": keys(in_channels="__import__('os').system('true')"),
    "a list for a number": keys(channels=[4]),
    "null": keys(mults=None),
}


@pytest.mark.parametrize("case", UNET_JSON)
def test_a_networks_arguments(files: Path, case: str) -> None:
    UNET_JSON[case](files / "unet" / "unet.json")
    refuses(lambda: UNet.load(files / "unet"), "unet.json", "model.safetensors")


def config(**changes: Any) -> Damage:
    """A forged change to a run's settings."""

    def damage(data: bytes) -> bytes:
        state = json.loads(data)
        state["config"] = {**state["config"], **changes}
        del state["sha256"]
        return json.dumps({**state, "sha256": hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}).encode()

    return content(damage)


STATE_JSON: dict[str, Damage] = {
    **JSON,
    "a flipped bit": content(lambda data: data.replace(b'"T": 20', b'"T": 21')),
    "no hash": without("sha256"),
    "a hash that is a list": keys(sha256=[]),
    "10^9 steps": config(T=10**9),
    "2^31 steps": config(T=2**31),
    "10^300 steps": config(T=10**300),
    "an unknown setting": config(evil="x"),
    "an unknown schedule": config(schedule="__import__"),
    "a setting that is a list": config(lr=[1]),
    "an infinite rate": config(lr=1e999),
}


@pytest.mark.parametrize("case", STATE_JSON)
def test_a_runs_state(files: Path, case: str) -> None:
    file = (files / "run" / "last").resolve() / "state.json"
    STATE_JSON[case](file)
    names = ("state.json", "T: ", "evil", "schedule", "lr")
    refuses(lambda: load_run(files / "run"), *names)


def _last(to: str) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        shutil.copytree((run / "last").resolve(), run.parent / "elsewhere")
        (run / "last").unlink()
        (run / "last").symlink_to(to)

    return make


def _redirect(run: Path) -> None:
    shutil.move(run / "checkpoints", run.parent / "elsewhere")
    (run / "checkpoints").symlink_to("../elsewhere")


ESCAPES: dict[str, Callable[[Path], None]] = {
    "up": _last("../elsewhere"),
    "absolute": _last("/etc"),
    "in a circle": _last("last"),
    "to nowhere": _last("checkpoints/step-99999999"),
    "to a file": _last("log.jsonl"),
    "by the folder of checkpoints": _redirect,
}


@pytest.mark.parametrize("case", ESCAPES)
def test_a_run_that_leads_out_of_its_folder(files: Path, case: str) -> None:
    ESCAPES[case](files / "run")
    refuses(lambda: load_run(files / "run"), "last", "state.json", "step-99999999", "log.jsonl")


def index(change: dict[str, Any]) -> Damage:
    return lambda folder: keys(**change)(folder / "model_index.json")


def shards(name: str) -> Damage:
    def make(folder: Path) -> None:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        shutil.copy(file, folder / "elsewhere.safetensors")
        file.unlink()
        file.with_name(file.name + ".index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))

    return make


def within(part: str, damage: Damage) -> Damage:
    return lambda folder: damage(folder / part)


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


PIPELINES: dict[str, Damage] = {
    "a module of its own": index({"unet": ["evil.module", "UNet2DModel"]}),
    "another class": index({"unet": ["diffusers", "Evil"]}),
    "another part": index({"safety_checker": ["transformers", "Evil"]}),
    "a missing part": lambda folder: without("unet")(folder / "model_index.json"),
    "a pickle": pickled,
    "shards above": shards("../elsewhere.safetensors"),
    "shards at the root": shards("/etc/passwd"),
    "shards by another separator": shards("..\\elsewhere.safetensors"),
    "shards that are pickles": shards("evil.bin"),
    "10^9 steps": lambda folder: keys(num_train_timesteps=10**9)(folder / "scheduler" / "scheduler_config.json"),
    "10^300 steps": lambda folder: keys(num_train_timesteps=10**300)(folder / "scheduler" / "scheduler_config.json"),
    "the deepest": lambda folder: keys(
        sample_size=2**11, layers_per_block=64, block_out_channels=[2**14] * 12,
        down_block_types=["DownBlock2D"] * 12, up_block_types=["UpBlock2D"] * 12,
    )(folder / "unet" / "config.json"),
    **{f"{part}: {case}": within(part, JSON[case])
       for part in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
       for case in ("empty", "cut", "a pickle", "too deep", "1 TiB", "a device", "a pipe", "a folder")},
}  # fmt: skip


@pytest.mark.parametrize("case", PIPELINES)
def test_a_pipelines_configs(files: Path, case: str) -> None:
    PIPELINES[case](files / "pipeline")
    refuses(lambda: load_diffusers(files / "pipeline"), str(files / "pipeline"))


# ---- arrays


def npy(shape: Any, descr: str = "|u1", body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + text + body


def _objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Evil()], object), allow_pickle=True)
    return stream.getvalue()


ARRAYS: dict[str, bytes] = {
    "objects": _objects(),
    "a pickle": pickle.dumps(Evil()),
    "2^60 images": npy((2**60, 8, 8)),
    "2^40 images": npy((2**40, 8, 8), body=bytes(64)),
    "10^300 images": npy((10**300, 8, 8)),
    "a negative shape": npy((-1, 8, 8), body=bytes(64)),
    "two negative sides": npy((-1, -8, 8), body=bytes(64)),
    "a shape of floats": npy((1.0, 8.0, 8.0), body=bytes(64)),
    "code in the header": npy((), "|u1").replace(b"'|u1'", b"__import__('os')"),
    "a header too deep": b"\x93NUMPY\1\0" + (9000).to_bytes(2, "little") + b"(" * 9000,
    "a header of 64 kB": b"\x93NUMPY\1\0\xff\xff" + b" " * 65535,
    "a header of 4 GiB": b"\x93NUMPY\2\0\xff\xff\xff\xff" + b"{",
    "an unknown version": npy((1, 8, 8), body=bytes(64), version=(9, 0)),
    "floats": npy((1, 8, 8), "<f8", bytes(512)),
    "records": npy((1, 8, 8), "|V8", bytes(512)),
    "dates": npy((1, 8, 8), "<M8[s]", bytes(512)),
    "cut": npy((4, 8, 8), body=bytes(255)),
    "more": npy((4, 8, 8), body=bytes(257)),
    "no images": npy((0, 8, 8)),
    "no axes": npy((), body=b"\0"),
    "64 axes": npy((1,) * 64, body=b"\0"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.npy").write_bytes(ARRAYS[case])
    refuses(lambda: load(tmp_path / "a.npy"), "a.npy")


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
    "above": zipped("../../a.npy", _objects()),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.npz").write_bytes(ARCHIVES[case])
    refuses(lambda: load(tmp_path / "a.npz"), "a.npz")


def idx_file(*shape: int, body: bytes = b"", kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + body


def gz(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, 1)


IDX: dict[str, bytes] = {
    "all sides 2^32 - 1": idx_file(*[2**32 - 1] * 4),
    "255 axes": idx_file(*[1] * 255),
    "no axes": idx_file(),
    "cut header": idx_file(1, 8, 8)[:10],
    "floats": idx_file(1, 8, 8, body=bytes(256), kind=13),
    "cut": idx_file(1, 8, 8, body=bytes(63)),
    "more": idx_file(1, 8, 8, body=bytes(65)),
    "no images": idx_file(0, 8, 8),
    "packed: all sides 2^32 - 1": gz(idx_file(*[2**32 - 1] * 4)),
    "packed: 3 GiB that are not there": gz(idx_file(3 * 2**14, 2**8, 2**8, body=bytes(100))),
    "packed: cut": gz(idx_file(1, 8, 8, body=bytes(64)))[:-12],
    "packed: flipped": gz(idx_file(4, 8, 8, body=os.urandom(256)))[:-9] + b"\1" * 9,
    "packed: a bomb": gz(idx_file(1, 8, 8, body=bytes(2**28))),
    "packed twice": gz(gz(idx_file(1, 8, 8, body=bytes(64)))),
    "a pickle": pickle.dumps(Evil()),
    "a program": b"#!/bin/sh\ntouch hacked\n",
}


@pytest.mark.parametrize("case", IDX)
def test_idx(tmp_path: Path, case: str) -> None:
    (tmp_path / "images-idx3-ubyte").write_bytes(IDX[case])
    refuses(lambda: load(tmp_path / "images-idx3-ubyte"), "images-idx3-ubyte")


# ---- tar


def tar(*members: tuple[str, bytes, bytes], size: int | None = None, cut: int | None = None) -> bytes:
    """An archive of (name, type, content), each telling its size, or `size`."""
    data = b""
    for name, kind, body in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(body) if size is None else size
        data += info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)
    return (data + bytes(1024))[:cut]


def negative() -> bytes:
    """A size of -512: round in circles, for one who believes it."""
    data = bytearray(tar(("a.png", tarfile.REGTYPE, b"x" * 512)))
    data[124:136] = b"\xff" * 10 + b"\xfe\x00"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


TARS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(10240),
    "a pickle": pickle.dumps(Evil()),
    "no checksum": tar(("a.png", tarfile.REGTYPE, b"x")).replace(b"a.png", b"b.png"),
    "a negative size": negative(),
    "2^62 bytes": tar(("a.png", tarfile.REGTYPE, b"x"), size=2**62),
    "8 GiB that are not there": tar(("a.png", tarfile.REGTYPE, b"x"), size=2**33 - 1),
    "cut": tar(("a.png", tarfile.REGTYPE, b"x" * 5000), cut=3000),
    "no image": tar(("a.txt", tarfile.REGTYPE, b"x")),
    "a link to a file": tar(("a.png", tarfile.SYMTYPE, b"")),
    "a hard link": tar(("a.png", tarfile.LNKTYPE, b"")),
    "a device": tar(("a.png", tarfile.CHRTYPE, b"")),
    "a folder": tar(("a.png", tarfile.DIRTYPE, b"")),
    "a sparse file": tar(("a.png", tarfile.GNUTYPE_SPARSE, b"x")),
    "a name of 100 kB": tar(("x", tarfile.GNUTYPE_LONGNAME, b"x" * 10**5), ("a.png", tarfile.REGTYPE, b"x")),
    "records of 100 kB": tar(("x", tarfile.XHDTYPE, b"9" * 10**5), ("a.png", tarfile.REGTYPE, b"x")),
    "records that give a size": tar(("x", tarfile.XHDTYPE, b"20 size=99999999999\n"), ("a.png", tarfile.REGTYPE, b"x")),
    "no picture": tar(("../../a.png", tarfile.REGTYPE, b"x" * 100)),
    "a pickle for a picture": tar(("a.png", tarfile.REGTYPE, pickle.dumps(Evil()))),
    "a pickle for a label": tar(("a.png", tarfile.REGTYPE, b"x"), ("a.cls", tarfile.REGTYPE, pickle.dumps(Evil()))),
    "a label of 5000 digits": tar(("a.png", tarfile.REGTYPE, b"x"), ("a.cls", tarfile.REGTYPE, b"9" * 5000)),
}


@pytest.mark.parametrize("case", TARS)
def test_tars(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.tar").write_bytes(TARS[case])
    refuses(lambda: load(tmp_path / "a.tar"), "a.tar")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tar", "a-idx3-ubyte", "images/a.png"])
@pytest.mark.parametrize("case", ["a link to itself", "a device", "a pipe", "1 TiB"])
def test_data_that_is_no_file(tmp_path: Path, name: str, case: str) -> None:
    file = tmp_path / "sets" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    (sparse(2**40) if case == "1 TiB" else NO_FILE[case])(file)
    refuses(lambda: load(file.parent if name.endswith("png") else file), "a.", "a-idx3")


def test_the_tables_are_as_large_as_the_documentation_says() -> None:
    """Files made to do harm, each tried as it is; networks' and checkpoints' with forged hashes besides."""
    tables = {
        "networks": 2 * len(TENSORS) + len(UNET_JSON),
        "pipelines": len(TENSORS) - 2 + len(PIPELINES),
        "runs": 2 * 3 * (9 + len(NO_FILE)) + len(STATE_JSON) + len(ESCAPES),
        "arrays": len(ARRAYS) + len(ARCHIVES) + len(IDX),
        "archives of images": len(TARS) + 5 * 4,
    }
    print(f"hostile files refused: {sum(tables.values())} ({tables})")
    assert sum(tables.values()) >= 400
