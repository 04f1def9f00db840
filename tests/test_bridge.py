"""A Torch network as a function of every library's arrays: the same numbers, shared memory, unchanged inputs."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from networks import small

from tinyddpm import Denoiser, Diffusion, backends, schedules
from tinyddpm.nn import to_backend


def batch(dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    return np.random.RandomState(0).randn(3, 1, 8, 8).astype(dtype), np.array([0, 5, 9])


class Probe(torch.nn.Module):
    """A network that keeps its inputs, and writes to them if `write` is set."""

    def __init__(self, write: bool = False) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Any, t: Any) -> Any:
        self.x, self.t, self.grad = x, t, torch.is_grad_enabled()
        self.out = x.mul_(2) if self.write else x * 2
        if self.write:
            t.mul_(2)
        return self.out


def test_outputs_are_the_networks_in_every_library(library: Any) -> None:
    net, (x, t) = small(), batch()
    with torch.no_grad():
        expected = net(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    bridged = to_backend(net, library.name)
    for steps in (library.array(t), t):
        out = bridged(library.array(x), steps)
        assert type(out) is type(library.array(x))
        assert out.dtype == library.array(x).dtype
        # The library's alignment of memory may choose another kernel.
        np.testing.assert_allclose(library.host(out), expected, rtol=1e-5, atol=1e-6)
    again = pickle.loads(pickle.dumps(bridged))
    np.testing.assert_array_equal(library.host(again(library.array(x), library.array(t))), library.host(out))


def test_sampling_with_every_library(library: Any) -> None:
    net, d = small(), Diffusion(schedules.linear(5, 0.1, 0.5))
    sample = d.sample(Denoiser(to_backend(net, library.name), first_t=0), (3, 1, 8, 8), backend=library.name)
    reference = d.sample(Denoiser(net, first_t=0), (3, 1, 8, 8), backend="torch")
    assert backends.of(sample).name == library.name
    np.testing.assert_allclose(library.host(sample), reference.numpy(), atol=1e-4)  # float32 through five steps


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_result_has_the_dtype_of_x(native: Any, dtype: str) -> None:
    net, (x, t) = small(), batch()
    expected = to_backend(net, "numpy")(x, t)
    out = to_backend(net, native.name)(native.array(x, dtype), native.array(t))
    assert out.dtype == native.array(x, dtype).dtype
    np.testing.assert_allclose(native.host(out), expected, atol=2e-2 if dtype == "float16" else 1e-5)
    wide = to_backend(small().double(), native.name)(native.array(x, dtype), native.array(t))
    assert wide.dtype == out.dtype


def test_bfloat16_of_jax() -> None:
    jnp = pytest.importorskip("jax").numpy
    x, t = batch()
    out = to_backend(small(), "jax")(jnp.asarray(x, dtype=jnp.bfloat16), jnp.asarray(t))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, dtype=np.float32), to_backend(small(), "numpy")(x, t), atol=0.1)


def test_classes_are_passed_on(native: Any) -> None:
    net, (x, t), y = small(classes=4), batch(), np.array([0, 3, 4])
    with torch.no_grad():
        expected = net(*map(torch.from_numpy, (x, t, y))).numpy()
    out = to_backend(net, native.name)(native.array(x), native.array(t), native.array(y))
    np.testing.assert_allclose(native.host(out), expected, rtol=1e-5, atol=1e-6)


def test_there_is_no_gradient(library: Any) -> None:
    probe, (x, t) = Probe(), batch()
    to_backend(probe, library.name)(library.array(x), library.array(t))
    assert probe.grad is False
    assert torch.is_grad_enabled()
    leaf = torch.from_numpy(x).requires_grad_()
    assert not to_backend(small(), "torch")(leaf, torch.from_numpy(t)).requires_grad


def test_memory_is_shared_with_numpy_in_both_directions() -> None:
    probe, (x, t) = Probe(), batch()
    out = to_backend(probe, "numpy")(x, t)
    assert np.shares_memory(probe.x.numpy(), x)
    assert np.shares_memory(probe.t.numpy(), t)
    assert np.shares_memory(probe.out.numpy(), out)


def test_jax_gets_the_result_without_a_copy() -> None:
    jax, probe, (x, t) = pytest.importorskip("jax"), Probe(), batch()
    out = to_backend(probe, "jax")(jax.numpy.asarray(x), jax.numpy.asarray(t))
    assert out.unsafe_buffer_pointer() == probe.out.data_ptr()


@pytest.mark.parametrize("name", ["jax", "strict"])
def test_an_immutable_array_is_never_written_to(name: str) -> None:
    if name == "jax":
        pytest.importorskip("jax")
    backend, (x, t) = backends.get(name), batch()
    given, steps = backend.from_numpy(x), backend.from_numpy(t)
    out = to_backend(Probe(write=True), name)(given, steps)
    np.testing.assert_array_equal(backend.to_numpy(given), x)
    np.testing.assert_array_equal(backend.to_numpy(steps), t)
    np.testing.assert_array_equal(backend.to_numpy(out), 2 * x)


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "reversed": lambda x: x[::-1, :, ::-1],
    "read-only": read_only,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "transposed": lambda x: x.transpose(0, 1, 3, 2),
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "masked": np.ma.asarray,
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_any_view_gives_the_numbers_of_its_copy(view: str) -> None:
    x, t = batch()
    seen = VIEWS[view](x)
    before = np.array(seen)
    out = to_backend(small(), "numpy")(seen, read_only(t))
    plain = np.array(seen, dtype="float32", order="C")
    np.testing.assert_allclose(out, to_backend(small(), "numpy")(plain, t), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen, before)


def test_reversed_arrays_of_other_libraries_do_not_reach_torch() -> None:
    """Torch aborts the process if DLPack gives it a negative stride."""
    xp = backends.get("strict").namespace()
    x, t = batch()
    out = to_backend(small(), "strict")(xp.asarray(x)[:, :, ::-1, :], xp.asarray(t)[::-1])
    expected = to_backend(small(), "numpy")(x[:, :, ::-1].copy(), t[::-1].copy())
    np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-6)


def test_a_device_that_torch_lacks_is_reached_through_the_host() -> None:
    backend, (x, t) = backends.get("strict"), batch()
    xp = backend.namespace()
    device = xp.Device("device1")
    out = to_backend(small(), "strict")(xp.asarray(x, device=device), xp.asarray(t, device=device))
    assert out.device == device
    np.testing.assert_allclose(backend.to_numpy(out), to_backend(small(), "numpy")(x, t), rtol=1e-5, atol=1e-6)


def test_threads_share_a_network() -> None:
    bridged, (x, t), results = to_backend(small(), "numpy"), batch(), dict[int, Any]()

    def run(i: int) -> None:
        results[i] = bridged(x + i, t)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], bridged(x + i, t))


def test_equal_and_hashed_by_content() -> None:
    net = small()
    assert to_backend(net, "numpy") == to_backend(net, "numpy")
    assert hash(to_backend(net, "numpy")) == hash(to_backend(net, "numpy"))
    assert to_backend(net, "numpy") != to_backend(net, "torch")


@pytest.mark.gpu
def test_arrays_on_a_device(cuda: Any) -> None:
    net, (x, t) = small().cuda(), batch()
    out = to_backend(net, cuda.name)(cuda.array(x), cuda.array(t))
    assert type(out) is type(cuda.array(x))
    np.testing.assert_allclose(cuda.host(out), to_backend(small(), "numpy")(x, t), rtol=1e-3, atol=1e-3)  # TF32
    backward = cuda.xp.flip(cuda.array(x), axis=0) if cuda.name == "torch" else cuda.array(x)[::-1]
    np.testing.assert_allclose(
        cuda.host(to_backend(net, cuda.name)(backward, cuda.array(t[::-1].copy()))), cuda.host(out)[::-1], atol=1e-3
    )
