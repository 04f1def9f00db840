"""Threads and processes that share the same objects get the results of serial use."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

from tinyddpm import Denoiser, Diffusion, likelihood, samplers, schedules
from tinyddpm.analytic import MixtureData

CHAIN = Diffusion(schedules.linear(40, 1e-3, 0.4))
DATA = MixtureData([0.4, 0.6], [[-0.5, 0.1], [0.5, -0.2]], [0.02, 0.05])
DENOISER = Denoiser(DATA.net(CHAIN))


def drawn(job: tuple[Diffusion, Denoiser, str, range]) -> bytes:
    """One worker's result: the samples of its index and their bound."""
    d, denoiser, sampler, index = job
    x = d.sample(denoiser, (len(index), 2), sampler=sampler, index=index, seed=5, dtype="float64")
    bound = likelihood.vlb(d, denoiser, np.clip(x, -1, 1), index=index, seed=5)
    return b"".join(np.asarray(a).tobytes() for a in (x, bound.total))


def jobs() -> list[tuple[Diffusion, Denoiser, str, range]]:
    """Every sampler, with indices of different lengths."""
    names = (*samplers.NAMES,)
    return [(CHAIN, DENOISER, names[k % len(names)], range(k, 3 * k + 1)) for k in range(15)]


def test_threads_agree_with_serial_use() -> None:
    serial = [drawn(job) for job in jobs()]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert list(pool.map(drawn, jobs())) == serial


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning", "ignore:.*fork.*:DeprecationWarning")
def test_processes_agree_with_serial_use(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    serial = [drawn(job) for job in jobs()]
    pool: Executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))
    with pool:
        assert list(pool.map(drawn, jobs())) == serial
