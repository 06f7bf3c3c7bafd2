"""The CUDA kernels: each source once, compiled by CuPy when it is first launched.

A RawKernel sees no strides and no dtypes: its arrays are contiguous and its numbers of exactly the
types of its parameters.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ddpm_core_cupy._cupy import cupy

THREADS = 256  #: a block, of the RawKernels; a power of 2

C_TYPES = {"float32": "float", "float64": "double"}

GROUP_NORM = r"""
#define THREADS 256

// The sum of every thread's part, in each of them. As a tree: its rounding errors grow as log n.
__device__ real block_sum(real part)
{
    __shared__ real parts[THREADS];
    parts[threadIdx.x] = part;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    __syncthreads();
    real sum = parts[0];
    __syncthreads();  // parts is free again
    return sum;
}

// One block for each sample and group of channels. h, out: (B, pixels, channels).
// The mean first, then the squares about it: their difference in one pass would cancel.
extern "C" __global__ void group_norm(
    const real* h, const real* weight, const real* bias, real* out,
    int pixels, int channels, int groups, real eps, int silu)
{
    int each = channels / groups, count = pixels * each;
    int group = blockIdx.x % groups;
    size_t first = (size_t)(blockIdx.x / groups) * pixels * channels + group * each;

    real sum = 0;
    for (int i = threadIdx.x; i < count; i += THREADS)
        sum += h[first + (size_t)(i / each) * channels + i % each];
    real mean = block_sum(sum) / count;

    real squares = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        real d = h[first + (size_t)(i / each) * channels + i % each] - mean;
        squares += d * d;
    }
    real scale = 1 / sqrt(block_sum(squares) / count + eps);

    for (int i = threadIdx.x; i < count; i += THREADS) {
        size_t at = first + (size_t)(i / each) * channels + i % each;
        int channel = group * each + i % each;
        real y = (h[at] - mean) * scale * weight[channel] + bias[channel];
        out[at] = silu ? y / (1 + exp(-y)) : y;
    }
}
"""

PORTABLE_NOISE = r"""
__device__ unsigned rotated(unsigned x, int r) { return (x << r) | (x >> (32 - r)); }

// Threefry-2x32 with 20 rounds (Salmon et al. 2011).
__device__ void threefry(unsigned k0, unsigned k1, unsigned& x0, unsigned& x1)
{
    const int rotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
    unsigned keys[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
    x0 += k0;
    x1 += k1;
    #pragma unroll
    for (int i = 0; i < 20; ++i) {
        x0 += x1;
        x1 = rotated(x1, rotations[i % 8]) ^ x0;
        if (i % 4 == 3) {
            int j = i / 4 + 1;
            x0 += keys[j % 3];
            x1 += keys[(j + 1) % 3] + j;
        }
    }
}

// z: (batch, elements). One thread for each two elements, which share a count.
// ids, steps: (batch,), or null for 0 .. batch - 1 and for `step`.
extern "C" __global__ void portable_noise(
    float* z, const float* first, const float* second, const int* ids, const int* steps,
    unsigned seed_low, unsigned seed_high, int step, long long batch, long long elements)
{
    long long half = (elements + 1) / 2;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= batch * half) return;
    long long sample = i / half, count = i % half;
    unsigned k0 = ids ? ids[sample] : (unsigned)sample, k1 = 0;
    threefry(seed_low, seed_high, k0, k1);
    unsigned word0 = (unsigned)count, word1 = steps ? steps[sample] : step;
    threefry(k0, k1, word0, word1);
    float* pair = z + sample * elements + 2 * count;
    pair[0] = first[word0 & 0xFFFF] + second[word0 >> 16];
    if (2 * count + 1 < elements) pair[1] = first[word1 & 0xFFFF] + second[word1 >> 16];
}
"""


@cache
def group_norm(dtype: str) -> Any:
    """(h, weight, bias, out, pixels, channels, groups, eps, silu), all int32 or of this dtype."""
    return cupy.RawKernel(f"typedef {C_TYPES[dtype]} real;\n{GROUP_NORM}", "group_norm")


@cache
def portable_noise() -> Any:
    """The noise of `ddpm_core.portable_noise`, bit for bit; see the source."""
    return cupy.RawKernel(PORTABLE_NOISE, "portable_noise")


@cache
def silu(dtype: str) -> Any:
    """x to x sigmoid(x). Where exp(-x) is inf, x / inf = -0 is right."""
    return cupy.ElementwiseKernel(f"{dtype} x", f"{dtype} y", "y = x / (1 + exp(-x))", "silu")


@cache
def lincomb(terms: int, dtype: str) -> Any:
    """(c0, x0, c1, x1, ...) to Σ c x: a number stays an argument, and nothing is uploaded."""
    parameters = ", ".join(f"{dtype} c{i}, {dtype} x{i}" for i in range(terms))
    total = " + ".join(f"c{i} * x{i}" for i in range(terms))
    return cupy.ElementwiseKernel(parameters, f"{dtype} y", f"y = {total}", f"lincomb_{terms}")
