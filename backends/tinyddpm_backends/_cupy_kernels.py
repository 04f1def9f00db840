"""The CUDA sources of CuPy's kernels: the normal CDF, the noise, and the reverse step with its noise inside.

NOT YET RUN ON A DEVICE. The tests compile them for the host and run them there thread by thread.
"""

from __future__ import annotations

__all__ = ["LOG_NDTR", "NOISE_AND_STEP"]

LOG_NDTR = """
if (x > 0.0) {
    double near = round(fmin(x, 40.0) * 16.0) / 16.0, rest = fmin(x, 40.0) - near;
    double density = exp(near * near * -0.5) * exp(rest * (fmin(x, 40.0) + near) * -0.5);
    y = log1p(density * erfcx(fmin(x, 40.0) * 0.70710678118654752) * -0.5);
} else {
    y = isinf(x) ? x : log(erfcx(x * -0.70710678118654752) * 0.5) - x * x * 0.5;
}
"""
"""The body of an elementwise kernel from x to y, both double. x*x is split into an exact square and a small rest, which keeps
the digits of tiny results on the right."""

_TEMPLATES = r"""
typedef unsigned long long word;

__device__ void philox(word a, word b, word c, word key0, word key1, unsigned int *out)
{
    word d = 0;
    for (int turn = 0; turn < 10; ++turn) {
        word high0 = __umul64hi(a, 0xD2E7470EE14C6C93ULL), low0 = a * 0xD2E7470EE14C6C93ULL;
        word high1 = __umul64hi(c, 0xCA5A826395121157ULL), low1 = c * 0xCA5A826395121157ULL;
        a = high1 ^ b ^ key0;
        b = low1;
        c = high0 ^ d ^ key1;
        d = low0;
        key0 += 0x9E3779B97F4A7C15ULL;
        key1 += 0xBB67AE8584CAA73BULL;
    }
    const word words[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = (unsigned int)words[i];
        out[2 * i + 1] = (unsigned int)(words[i] >> 32);
    }
}

__device__ void box_muller(unsigned int b, unsigned int c, float *x, float *y)
{
    float r = sqrtf(logf(((float)b + 0.5f) * 2.3283064365386963e-10f) * -2.0f), s, t;
    sincosf((float)(int)c * 1.4629180792671596e-09f, &s, &t);
    *x = r * t;
    *y = r * s;
}

__device__ void box_muller(unsigned int b, unsigned int c, double *x, double *y)
{
    double r = sqrt(log(((double)b + 0.5) * 2.3283064365386963e-10) * -2.0), s, t;
    sincos((double)(int)c * 1.4629180792671596e-09, &s, &t);
    *x = r * t;
    *y = r * s;
}

template <typename real>
struct Store { real *out; };

template <typename real>
__device__ void put(const Store<real> &to, word i, real z)
{
    to.out[i] = z;
}

template <typename real>
struct Step {
    real *state, *base, *x0;
    const real *before, *earlier, *value, *std, *z;
    const double *row;
    real lowest, highest;
};

template <typename real>
__device__ void put(const Step<real> &to, word i, real z)
{
    const double *w = to.row;
    real base = to.base[i], before = to.before ? to.before[i] : (real)0, earlier = to.earlier ? to.earlier[i] : (real)0;
    real x0 = (real)w[0] * to.value[i] + (real)w[1] * to.state[i];
    x0 = x0 < to.lowest ? to.lowest : x0 > to.highest ? to.highest : x0;
    real noise = (to.std ? to.std[i] : (real)w[2]) * (to.z ? to.z[i] : z);
    real state = (real)w[3] * base + (real)w[4] * x0 + (real)w[5] * before + (real)w[6] * earlier + noise;
    to.state[i] = state;
    if (to.x0)
        to.x0[i] = x0;
    if (to.base != to.state)
        to.base[i] = (real)w[7] * state + (real)w[8] * base + (real)w[9] * x0 + (real)w[10] * before + (real)w[11] * earlier;
}

template <typename real, typename Target>
__device__ void normal(Target out, bool drawn, const word *low, const word *high, word seed, word stream, word step,
                       word blocks, word n, word count)
{
    word threads = (blocks + 1) / 2, thread = (word)blockIdx.x * blockDim.x + threadIdx.x;
    word sample = thread / threads, part = thread % threads, half = 4 * blocks;
    if (sample >= count)
        return;
    word first = low[sample], carried = high[sample];
    unsigned int radii[8] = {0}, angles[8] = {0};
    if (drawn)
        philox(first + part, carried + (first + part < first), step, seed, stream, radii);
    word held = ~0ULL;
    #pragma unroll
    for (int side = 0; side < 2; ++side) {
        word four = 2 * part + side, block = (blocks + four) / 2;
        bool odd = (blocks + four) % 2;
        if (four >= blocks)
            return;
        if (drawn && block != held)
            philox(first + block, carried + (first + block < first), step, seed, stream, angles);
        held = block;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            word place = 4 * four + i;
            real x = 0, y = 0;
            if (drawn)
                box_muller(radii[4 * side + i], odd ? angles[4 + i] : angles[i], &x, &y);
            if (place < n)
                put(out, sample * n + place, x);
            if (half + place < n)
                put(out, sample * n + half + place, y);
        }
    }
}
"""

_ENTRIES = """
extern "C" __global__ void normal_DTYPE(REAL *out, const word *low, const word *high, word seed, word stream,
                                          word step, word blocks, word n, word count)
{
    normal<REAL>(Store<REAL>{out}, true, low, high, seed, stream, step, blocks, n, count);
}

extern "C" __global__ void step_DTYPE(REAL *state, REAL *base, REAL *x0, const REAL *before, const REAL *earlier,
                                        const REAL *value, const REAL *std, const REAL *z, const double *row,
                                        double lowest, double highest, word drawn, const word *low, const word *high,
                                        word seed, word stream, word step, word blocks, word n, word count)
{
    Step<REAL> target = {state, base, x0, before, earlier, value, std, z, row, (REAL)lowest, (REAL)highest};
    normal<REAL>(target, drawn != 0, low, high, seed, stream, step, blocks, n, count);
}
"""

NOISE_AND_STEP = _TEMPLATES + "".join(
    _ENTRIES.replace("DTYPE", dtype).replace("REAL", real) for real, dtype in (("float", "float32"), ("double", "float64"))
)
"""The kernels ``normal_float32`` and ``step_float32``, and the same for float64.

A thread makes 8 pairs of normals of one sample: those of one Philox block of radii and of the angles half a sample further on.
The latter come from two blocks if a sample has an odd number of them.
"""
