"""The random numbers of the format, and sending a Gaussian sample with them."""

import importlib.util
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri

from ancestral.compression import portable_random
from ancestral.compression.progressive import best_level, width_of
from ancestral.compression.trellis import BEST_OF, CHANNELS, TRELLIS, Channel

ROOT = Path(__file__).parents[2]


def philox(counter, key):
    """Philox4x64-10 by Python's integers, from the paper (Salmon et al. 2011)."""
    word = 2**64 - 1
    a, b, c, d = (counter >> 64 * place & word for place in range(4))
    low, high = key
    for _ in range(10):
        one, two = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = two >> 64 ^ b ^ low, two & word, one >> 64 ^ d ^ high, one & word
        low, high = low + 0x9E3779B97F4A7C15 & word, high + 0xBB67AE8584CAA73B & word
    return [a, b, c, d]


def test_the_words_are_philox():
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]  # of its authors
    assert philox(0, (0, 0)) == known
    key = (portable_random.key("codec", "a", 7), 0)
    assert portable_random.raw(8, "a", 7).tolist() == [*philox(1, key), *philox(2, key)]


def test_the_table_is_of_normal_quantiles():
    exact = ndtri((np.arange(65536) + 0.5) / 65536) * portable_random.ONE
    assert np.abs(portable_random.normal_table() - exact).max() <= 0.5 + 1e-9
    spec = importlib.util.spec_from_file_location("normal_table", ROOT / "scripts/normal_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.table() == script.PATH.read_bytes()


def test_a_damaged_table_is_noticed(monkeypatch):
    monkeypatch.setattr(portable_random, "_DIGEST", "0" * 64)
    with pytest.raises(RuntimeError, match=r"normal.bin: damaged"):
        portable_random.normal_table.__wrapped__()


def test_every_order_and_sign_is_as_likely():
    orders = Counter(tuple(portable_random.permutation(3, "test", k)) for k in range(3000))
    assert len(orders) == 6
    assert all(abs(count - 500) < 5 * math.sqrt(500) for count in orders.values())
    assert abs(int(portable_random.signs(100_000, "test").astype(int).sum())) < 5 * math.sqrt(100_000)
    assert portable_random.permutation(1, "x").tolist() == [0]
    assert portable_random.permutation(0, "x").tolist() == []


def problem(dimensions, bits, seed, uneven):
    """(m, r, KL in bits) of a pair q, p whose expected KL is `bits`; the r of the dimensions differ if uneven."""
    generator = np.random.default_rng(seed)
    r = np.exp(2 * generator.standard_normal(dimensions)) if uneven else np.ones(dimensions)
    r = r * width_of(r, 1, Channel(1, 1, bits))
    assert np.log2(1 + r).sum() / 2 == pytest.approx(bits, rel=1e-6)
    m = generator.standard_normal(dimensions) * np.sqrt(r / (1 + r))
    return m, r, float((np.log1p(r) + m**2 + 1 / (1 + r) - 1).sum() / 2 / math.log(2))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("channel", "least", "most"), [(BEST_OF, 1.2, 1.4), (TRELLIS, 1.05, 1.25)])
def test_bits_for_a_bit_of_kl(channel, least, most, uneven):
    """With as many bits as the KL takes, what comes out is as likely and as noisy as a sample of q."""
    spent = np.zeros(4)
    for seed in range(6):
        m, r, kl = problem(512, 160, seed, uneven)
        bits = round(kl / channel.efficiency)
        path = channel.encode(m, r, bits, ("test", seed))
        z = channel.decode(path, bits, 512, ("test", seed))
        ratio = (np.log1p(r) - (1 + r) * (z - m) ** 2 + z**2).sum() / 2 / math.log(2)  # log2 q - log2 p
        noise = ((1 + r) * (z - m) ** 2).mean()
        spent += [bits, kl, ratio, noise]
    bits, kl, ratio, noise = spent / 6
    assert least < bits / ratio < most
    assert ratio == pytest.approx(kl, rel=0.1)
    assert 0.9 < noise < 1.1


def test_no_path_is_better():
    """The search is exact: of all 2^n paths none has a larger log q - log p."""
    m, r, _ = problem(12, 8, 0, True)
    for channel in (Channel(3, 1, 1), Channel(4, 2, 1), Channel(3, 3, 1)):
        paths = (np.arange(2**8)[:, None] >> np.arange(7, -1, -1) & 1).astype(np.uint8)
        vectors = np.stack([channel.decode(path, 8, 12, ("x",)) for path in paths])
        gains = ((1 + r) * vectors * m - r * vectors**2 / 2).sum(1)
        best = channel.decode(channel.encode(m, r, 8, ("x",)), 8, 12, ("x",))
        assert ((1 + r) * best * m - r * best**2 / 2).sum() == pytest.approx(gains.max(), rel=1e-5)


@given(st.integers(0, 60), st.integers(1, 20), st.sampled_from(sorted(CHANNELS)), st.integers(0, 60))
def test_any_number_of_bits_in_any_number_of_dimensions(bits, dimensions, number, kept):
    if bits > 8 * dimensions:
        return
    channel, m = CHANNELS[number], np.linspace(-1, 1, dimensions)
    path = channel.encode(m, np.ones(dimensions), bits, ("x",))
    assert path.shape == (bits,)
    assert set(path.tolist()) <= {0, 1}
    z = channel.decode(path, bits, dimensions, ("x",))
    part = channel.decode(path[:kept], bits, dimensions, ("x",))
    assert np.array_equal(part[part != 0], z[part != 0])


def test_without_bits_a_sample_of_p_is_shared():
    one, other = (TRELLIS.decode(np.empty(0, np.uint8), 0, 500, ("x", k)) for k in range(2))
    assert one.var() == pytest.approx(1, abs=4 * math.sqrt(2 / 500))
    assert abs((one * other).mean()) < 4 / math.sqrt(500)
    assert np.array_equal(TRELLIS.encode(np.ones(500), np.ones(500), 0, ("x",)), [])


def test_the_number_of_bits_is_what_the_error_takes():
    """With errors k times as large in variance, the number for k times as large is chosen."""
    r, generator = np.full(4096, 0.05), np.random.default_rng(0)
    counts = [round(np.log2(1 + r * 2 ** ((q - 8) / 2)).sum() / 2 / 0.9) for q in range(16)]
    for q in range(1, 15):
        shift = generator.standard_normal(4096) * np.sqrt(r * 2 ** ((q - 8) / 2))
        assert abs(best_level(shift, r, counts, TRELLIS) - q) <= 1
        assert width_of(r, counts[q], TRELLIS) == pytest.approx(2 ** ((q - 8) / 2), rel=0.1)
