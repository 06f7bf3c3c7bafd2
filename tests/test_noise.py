"""Portable noise: Random123's vectors, the exact law of the tables, and what it depends on."""

from __future__ import annotations

import copy
import math
import pickle
import re

import array_api_strict
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from ddpm_core import portable_noise
from ddpm_core.noise import normal_tables, tables_digest, threefry

words = st.integers(0, 2**32 - 1)
seeds = st.integers(0, 2**64 - 1)
FLOAT32 = np.finfo(np.float32).eps


def int32(*values):
    return [np.asarray([v], np.uint32).view(np.int32) for v in values]


def unsigned(*values):
    return tuple(int(v.view(np.uint32)[0]) for v in values)


# Random123 1.14, tests/kat_vectors: "threefry2x32 20 ctr0 ctr1 key0 key1 out0 out1".
VECTORS = [
    "00000000 00000000 00000000 00000000 6b200159 99ba4efe",
    "ffffffff ffffffff ffffffff ffffffff 1cb996fc bb002be7",
    "243f6a88 85a308d3 13198a2e 03707344 c4923a9c 483df7a0",
]


@pytest.mark.parametrize("vector", VECTORS)
def test_threefry_is_of_random123(vector):
    """Threefry-2x32-20 gives the known answers of its authors, for keys of both kinds."""
    c0, c1, k0, k1, *wanted = (int(word, 16) for word in vector.split())
    assert unsigned(*threefry(k0, k1, *int32(c0, c1))) == tuple(wanted)
    assert unsigned(*threefry(*int32(k0, k1), *int32(c0, c1))) == tuple(wanted)


def threefry_unsigned(key, counter):
    """Threefry-2x32-20 in integers modulo 2^32, after Salmon et al. 2011, section 4.2."""
    mask = 2**32 - 1
    k = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    a, b = ((c + key[i]) & mask for i, c in enumerate(counter))
    for i in range(20):
        r = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        a = (a + b) & mask
        b = ((b << r | b >> (32 - r)) & mask) ^ a
        if i % 4 == 3:
            n = i // 4 + 1
            a, b = (a + k[n % 3]) & mask, (b + k[(n + 1) % 3] + n) & mask
    return a, b


@given(words, words, words, words)
def test_signed_arithmetic_is_unsigned(k0, k1, c0, c1):
    """int32 in two's complement is arithmetic modulo 2^32: signs change no bit."""
    wanted = threefry_unsigned((k0, k1), (c0, c1))
    assert unsigned(*threefry(k0, k1, *int32(c0, c1))) == wanted
    assert unsigned(*threefry(*int32(k0, k1), *int32(c0, c1))) == wanted


@given(seeds, st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.integers(1, 9))
def test_values_are_of_seed_id_and_step(seed, sample, step, elements):
    """The key is threefry(seed; id), the counter (element, step), each word one value."""
    key = threefry_unsigned((seed & 0xFFFFFFFF, seed >> 32), (sample, 0))
    half = (elements + 1) // 2
    pairs = [threefry_unsigned(key, (i, step)) for i in range(half)]
    drawn = [word for pair in pairs for word in pair]
    first, second = normal_tables()
    wanted = [first[w & 0xFFFF] + second[w >> 16] for w in drawn[:elements]]
    got = portable_noise(seed)(step, (1, elements), ids=np.asarray([sample]))
    np.testing.assert_array_equal(got[0], wanted)


def test_tables_are_means_of_equal_bins():
    """Entry i is the mean of N(0, 1) over bin i of 65536, n ∫ z φ(z) dz, scaled (by SciPy)."""
    n = 1 << 16
    edges = stats.norm.ppf(np.arange(n + 1) / n)
    means = -np.diff(stats.norm.pdf(edges)) * n
    means /= math.sqrt(np.mean(means**2))
    for table, share in zip(normal_tables(), (0.72, math.sqrt(1 - 0.72**2)), strict=True):
        # Differences of neighbouring densities cancel n-fold: 1e-16 * 65536, below float32's own.
        np.testing.assert_allclose(table, share * means, rtol=2 * FLOAT32, atol=2e-11)


def test_tables_never_change():
    """The tables are these bits in every release: the noise of a seed is a promise."""
    digest = "a9a874374324b41746d04616bcd33656c89ec4e9228fdfbe03e012e0edab4529"
    assert tables_digest() == digest
    assert all(t.dtype == np.float32 and t.shape == (65536,) for t in normal_tables())
    with pytest.raises(ValueError, match="read-only"):
        normal_tables()[0][0] = 0


def test_moments_are_exact():
    """Over all 2^32 words the mean is 0, the skewness 0, the variance 1, and |z| at most 6.21."""
    first, second = (t.astype(np.float64) for t in normal_tables())
    for table in (first, second):
        np.testing.assert_array_equal(table, -table[::-1])  # odd moments vanish
        assert np.all(np.diff(table) > 0)
    variance = math.fsum(first**2) / 65536 + math.fsum(second**2) / 65536
    assert abs(variance - 1) <= FLOAT32  # each entry is rounded to float32
    assert first[-1] + second[-1] <= 6.21


def test_distribution_is_normal():
    """P(z <= x) is within 2.2e-7 of Φ(x), as documented, over all 2^32 words."""
    first, second = (t.astype(np.float64) for t in normal_tables())
    x = np.concatenate([np.linspace(-5.5, 5.5, 89), np.linspace(-0.02, 0.02, 21)])
    below = [np.searchsorted(second, a - first, side="right").mean() / 65536 for a in x]
    above = [np.searchsorted(second, a - first, side="left").mean() / 65536 for a in x]
    for share in (below, above):
        assert np.max(np.abs(share - stats.norm.cdf(x))) <= 2.2e-7


def test_samples_are_normal():
    """A million values have normal moments, |z| < 5, and pass Kolmogorov-Smirnov at that level."""
    z = portable_noise(2**63 + 5)(7, (100, 10_000)).ravel().astype(np.float64)
    # E z^k and Var z^k of N(0, 1): (k - 1)!! and (2 k - 1)!! - its square.
    for k, mean, var in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**k) - mean) < 5 * math.sqrt(var / z.size), k
    # P(D sqrt(n) > 2.75) = 2 exp(-2 · 2.75²) = 5.4e-7, that of |z| > 5.
    assert stats.kstest(z, stats.norm.cdf).statistic * math.sqrt(z.size) < 2.75


def test_neighbours_are_independent():
    """Elements, samples, steps and seeds next to each other are uncorrelated, |z| < 5."""
    noise = portable_noise(0)
    z = noise(0, (64, 4096))
    others = [
        (z[:, 1:], z[:, :-1]),
        (z[:, 2048:], z[:, :2048]),  # the two words of one counter
        (z[1:], z[:-1]),
        (noise(1, z.shape), z),
        (portable_noise(1)(0, z.shape), z),
        (portable_noise(1 << 32)(0, z.shape), z),
    ]
    for a, b in others:
        for f in (lambda x: x, lambda x: x**2 - 1):  # of values, and of their sizes
            a_, b_ = f(a.astype(np.float64)), f(b.astype(np.float64))
            scale = math.sqrt(np.mean(a_**2) * np.mean(b_**2) / a_.size)
            assert abs(np.mean(a_ * b_)) < 5 * scale


@given(seeds, st.integers(0, 2**31 - 1), st.integers(1, 6), st.data())
def test_batches_split_anywhere(seed, step, batch, data):
    """Sample i of a batch is sample i alone: splitting a batch changes no bit."""
    cut = data.draw(st.integers(0, batch))
    noise = portable_noise(seed)
    whole = noise(step, (batch, 3, 2))
    parts = [
        noise(step, (len(ids), 3, 2), ids=ids) for ids in (np.arange(cut), np.arange(cut, batch))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = np.asarray(data.draw(st.permutations(range(batch))))
    np.testing.assert_array_equal(noise(step, (batch, 3, 2), ids=order), whole[order])


@given(seeds, st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5))
def test_a_step_per_sample(seed, steps):
    """Steps (B,) draw for each sample what its own step does."""
    noise = portable_noise(seed)
    together = noise(np.asarray(steps), (len(steps), 5))
    for i, step in enumerate(steps):
        np.testing.assert_array_equal(together[i], noise(step, (len(steps), 5))[i])


@given(
    st.tuples(seeds, words.map(lambda w: w >> 1), words.map(lambda w: w >> 1)),
    st.tuples(seeds, words.map(lambda w: w >> 1), words.map(lambda w: w >> 1)),
    st.integers(0, 2),
)
def test_different_coordinates_differ(one, other, which):
    """Another seed, sample or step is other noise, though the other two are the same."""
    assume(one[which] != other[which])
    mixed = tuple(other[i] if i == which else one[i] for i in range(3))
    draw = lambda c: portable_noise(c[0])(c[2], (1, 4), ids=np.asarray([c[1]]))
    assert np.any(draw(one) != draw(mixed))  # four words agree by chance once in 2^128


@given(st.integers(0, 63), st.integers(0, 2**64 - 1))
def test_every_bit_of_the_seed_counts(bit, seed):
    """Seeds that differ in one of 64 bits are different noise."""
    a, b = (portable_noise(s)(0, (1, 8)) for s in (seed, seed ^ (1 << bit)))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("elements", [1, 3, 7])
def test_odd_counts_drop_one(elements):
    """A value does not depend on how many elements there are, odd or even."""
    noise = portable_noise(3)
    np.testing.assert_array_equal(
        noise(1, (2, elements)), noise(1, (2, elements + 1))[:, :elements]
    )


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
def test_shapes_do_not_matter(shape):
    """The data's shape only arranges its elements; (B,) is one element a sample."""
    noise = portable_noise(3)
    np.testing.assert_array_equal(noise(1, shape).ravel(), noise(1, (3, 1)).ravel())
    assert noise(1, shape).shape == shape
    assert noise(1, (0, *shape)).shape == (0, *shape)


def test_values_are_those_of_float32():
    """Another dtype casts the same float32 values, and float32 is the default."""
    z = portable_noise(5)(2, (3, 4))
    assert z.dtype == np.float32
    for dtype in (np.float16, np.float64):
        got = portable_noise(5, dtype=dtype)(2, (3, 4))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, z.astype(dtype))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_outside_are_named(seed):
    """A seed is an integer of 64 bits."""
    with pytest.raises(ValueError, match=rf"seed must lie within \[0, 2\^64\), but is {seed}"):
        portable_noise(seed)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("seed", [3, 2**63 + 5, 2**32 - 1])
def test_copies_and_pickles(lib, seed, dtype):
    """A noise that was copied or pickled, as for another process, is the same noise."""
    if lib.name in ("strict-device1", "mlx") or not hasattr(lib.xp, dtype or "float32"):
        pytest.skip("its devices or dtypes do not pickle, or it has no float16")
    noise = portable_noise(seed, lib.xp, lib.device, dtype and getattr(lib.xp, dtype))
    for again in (copy.deepcopy(noise), pickle.loads(pickle.dumps(noise))):
        got, wanted = again(1, (2, 3)), noise(1, (2, 3))
        assert got.dtype == wanted.dtype
        if lib.has_values:
            np.testing.assert_array_equal(lib.to_numpy(got), lib.to_numpy(wanted))


@pytest.mark.lanes("numpy", "strict-device1", "torch-meta", "jax")
@pytest.mark.parametrize("bad", [-1, 2**31, 2**32, 2**64, np.int64(2**32)])
def test_steps_and_ids_outside_are_named(lib, bad):
    """2^32 would be 0 in 32 bits: a step or an id on the host that does not fit is refused."""
    noise = portable_noise(0, lib.xp, lib.device)
    with pytest.raises(ValueError, match=rf"step must lie within \[0, 2\^31\), but is {bad}"):
        noise(bad, (2, 3))
    for ids in ([0, bad], np.asarray([0, bad])):
        with pytest.raises(ValueError, match=rf"ids must lie within \[0, 2\^31\), but is {bad}"):
            noise(0, (2, 3), ids)
        with pytest.raises(ValueError, match=rf"step must lie within \[0, 2\^31\), but is {bad}"):
            noise(ids, (2, 3))


def test_steps_and_ids_are_integers(lib):
    """A step 1.5 is not step 1: what is not an integer is refused, on the host and the device."""
    noise = portable_noise(0, lib.xp, lib.device)
    for bad in (
        1.5,
        1.0,
        np.float32(1),
        [1.5, 2.0],
        np.ones(2),
        lib.asarray(np.ones(2, "float32")),
    ):
        with pytest.raises(TypeError, match="step must be integers, but "):
            noise(bad, (2, 3))
        with pytest.raises(TypeError, match="ids must be integers, but "):
            noise(0, (2, 3), bad)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.asarray, lambda step: [step]])
def test_steps_of_any_kind_of_integer(kind):
    """NumPy's integers and arrays () are integers; a list of one is a step for all samples."""
    noise = portable_noise(0)
    np.testing.assert_array_equal(noise(kind(7), (2, 3)), noise(7, (2, 3)))


def test_counts_of_ids_and_steps_are_named():
    """As many ids as samples, and one step or as many."""
    noise = portable_noise(0)
    with pytest.raises(ValueError, match=r"3 ids do not fit shape \(2, 3\): pass one per sample"):
        noise(0, (2, 3), [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"3 steps do not fit shape \(2, 3\): pass one, or one per"
    ):
        noise([0, 1, 2], (2, 3))


@pytest.mark.parametrize("shape", [3, 0, ()])
def test_a_shape_without_a_batch_is_named(shape):
    """A shape is a tuple that begins with the batch."""
    with pytest.raises(
        TypeError, match=rf"shape must be a tuple .*, but is {re.escape(str(shape))}"
    ):
        portable_noise(0)(0, shape)


def test_steps_and_ids_of_the_device():
    """Integers of the device are those of the host, and the noise is on it."""
    xp = array_api_strict
    device = xp.Device("device1")
    step, ids = xp.asarray([5], device=device), xp.asarray([3, 4], device=device)
    actual = portable_noise(0, xp, device)(step, (2, 3), ids)
    assert actual.device == device
    expected = portable_noise(0)(5, (2, 3), [3, 4])
    np.testing.assert_array_equal(actual.to_device(xp.Device("CPU_DEVICE")), expected)


@pytest.mark.needs("torch")
def test_a_plain_library():
    """torch itself, without the functions that array-api-compat adds, draws the same."""
    import torch

    np.testing.assert_array_equal(
        portable_noise(0, torch)([1], (2, 3)), portable_noise(0)(1, (2, 3))
    )


@pytest.mark.parametrize("seed", [1.0, "3", None])
def test_seeds_are_integers(seed):
    """What is no integer is refused."""
    with pytest.raises(TypeError, match="seed must be an integer, but is a Python"):
        portable_noise(seed)


@pytest.mark.lanes("jax")
def test_a_traced_seed_is_refused_with_a_hint(lib):
    """Mapping over seeds is an error that says to map over ids, which draws what each id draws."""
    import jax

    noise = portable_noise(3, lib.xp)
    with pytest.raises(TypeError, match=r"seed must be an integer, .* pass ids or steps"):
        jax.vmap(lambda seed: portable_noise(seed, lib.xp)(0, (2, 3)))(lib.xp.arange(4))
    mapped = jax.vmap(lambda i: noise(0, (1, 3), i[None])[0])(lib.xp.arange(4))
    np.testing.assert_array_equal(mapped, noise(0, (4, 3)))


def test_tails_are_as_documented():
    """P(|z| > 5) is 10 % too small, P(|z| > 6) 76 %, and |z| is at most 6.204."""
    first, second = (t.astype(np.float64) for t in normal_tables())
    for size, missing in ((5, 0.10), (6, 0.76)):
        beyond = 2 * (1 - np.searchsorted(second, size - first, side="right").mean() / 65536)
        assert 1 - beyond / (2 * stats.norm.sf(size)) == pytest.approx(missing, abs=0.005)
    assert first[-1] + second[-1] == pytest.approx(6.204, abs=5e-4)
