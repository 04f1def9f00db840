"""CUDA sources compiled for the host, where each thread of a kernel runs in turn."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinyddpm_backends import _cupy_kernels

from tinyddpm.backends import counters, depth, table

SHIM = """
#include <cmath>
#define __device__ static
#define __global__
static struct { unsigned long long x; } blockIdx, threadIdx, blockDim = {128};
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{ return (unsigned __int128)a * b >> 64; }
#define FOR_EACH_THREAD \\
    for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x) \\
        for (threadIdx.x = 0; threadIdx.x < 128; ++threadIdx.x)
"""
GRIDS = """
extern "C" void grid_float32(word grid, float *out, word *low, word *high, word a, word b, word c, word d, word e, word f)
{ FOR_EACH_THREAD normal_float32(out, low, high, a, b, c, d, e, f); }

extern "C" void grid_float64(word grid, double *out, word *low, word *high, word a, word b, word c, word d, word e, word f)
{ FOR_EACH_THREAD normal_float64(out, low, high, a, b, c, d, e, f); }

extern "C" void grid_step(word grid, double *state, double *base, double *x0, double *before, double *earlier, double *value,
                          double *std, double *z, double *row, double lowest, double highest, word drawn, word *low,
                          word *high, word a, word b, word c, word d, word e, word f)
{
    FOR_EACH_THREAD step_float64(state, base, x0, before, earlier, value, std, z, row, lowest, highest, drawn, low, high,
                                 a, b, c, d, e, f);
}
"""


def compiled(folder: Path, source: str) -> Any:
    """The library that g++ makes of a source."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the CUDA source for the host")
    (folder / "source.cpp").write_text(source)
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", "-o", "source.so", "source.cpp"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "source.so"))


def kernels(folder: Path) -> Any:
    """CuPy's noise and step kernels: ``grid_float32``, ``grid_float64`` and ``grid_step``."""
    return compiled(folder, SHIM + _cupy_kernels.NOISE_AND_STEP + GRIDS)


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def words(*values: int) -> list[ctypes.c_uint64]:
    return [ctypes.c_uint64(value) for value in values]


def draw(library: Any, seed: int, index: Any, step: int, shape: Any, stream: int, dtype: str) -> np.ndarray:
    """The noise kernel's draw."""
    n, count = math.prod(shape), len(index)
    blocks = -(-n // 8)
    out = np.full((count, *shape), np.nan, dtype)
    arrays = (out, *counters(index, blocks))
    grid, *rest = words(-(-count * ((blocks + 1) // 2) // 128), seed, stream, step, blocks, n, count)
    getattr(library, f"grid_{dtype}")(grid, *map(pointer, arrays), *rest)
    return out


class KernelStepper:
    """CuPy's stepper with the launch of its kernel replaced; float64."""

    def __init__(self, library: Any, rows: Any, x: np.ndarray, *, seed: int, index: Any, clip: Any, keep_x0: bool) -> None:
        self.kernel, self.rows, self.seed, self.n = library.grid_step, rows, seed, math.prod(x.shape[1:])
        self.range = [ctypes.c_double(end) for end in clip or (-math.inf, math.inf)]
        self.state = x.copy()
        self.base = x.copy() if any(row.base is not None for row in rows) else self.state
        self.history = [np.zeros_like(x) for _ in range(depth(rows))]
        self.table, self.counters = table(rows, 3), counters(index, -(-self.n // 8))

    @property
    def x0(self) -> np.ndarray:
        return self.history[0]

    def step(self, k: int, value: np.ndarray, std: Any = None, z: Any = None) -> None:
        self.history = self.history[-1:] + self.history[:-1]
        blocks, count, drawn = -(-self.n // 8), len(value), z is None and self.rows[k].std != 0
        older = [*self.history, None, None][:3]
        arrays = [self.state, self.base, *older, np.ascontiguousarray(value), std, z, self.table[k]]
        grid, drawn_word, *rest = words(
            -(-count * ((blocks + 1) // 2) // 128), drawn, self.seed, 0, self.rows[k].t, blocks, self.n, count
        )
        self.kernel(grid, *map(pointer, arrays), *self.range, drawn_word, *map(pointer, self.counters), *rest)
