"""Streams that are drawn on a device: the words of Random123, and numbers that depend on nothing but their key."""

import pytest
import torch
from scipy import stats

from ancestral.diffusion.processes import philox
from ancestral.diffusion.processes.philox import PhiloxStreams, words
from ancestral.diffusion.processes.streams import key

MASK = 2**32 - 1
# Counter, key and block of Philox4x32-10 (Random123 1.14, kat_vectors).
PUBLISHED = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def block(counter, keyed):
    """Four words by Python's whole numbers, as the paper writes them."""
    (a, b, c, d), (k, m) = counter, keyed
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right & MASK, (left >> 32) ^ d ^ m, left & MASK
        k, m = (k + 0x9E3779B9) & MASK, (m + 0xBB67AE85) & MASK
    return [a, b, c, d]


def block_of(purpose, number, index):
    keyed = key(5, purpose)
    return block([index & MASK, index >> 32, number & MASK, number >> 32], [keyed & MASK, keyed >> 32])


@pytest.mark.parametrize(("counter", "keyed", "expected"), PUBLISHED)
def test_the_words_are_those_of_random123(counter, keyed, expected):
    c, k, known = ([int(word, 16) for word in text.split()] for text in (counter, keyed, expected))
    assert block(c, k) == known
    even, odd = words(k[0] + (k[1] << 32), *(torch.tensor(c[i::2]).reshape(2, 1, 1) for i in (0, 1)))
    assert [int(one) for pair in zip(even, odd, strict=True) for one in pair] == known


def test_uniform_numbers_are_53_bits_of_their_blocks():
    numbers = [3, 2**32 + 7, 2**62]
    streams = PhiloxStreams(5, "u", numbers)
    assert streams.uniform().shape == (3,)
    drawn = streams.uniform((3,))
    for row, number in zip(drawn.tolist(), numbers, strict=True):
        found = [block_of("u", number, index) for index in (1, 2)]  # the first block was the single number's
        pairs = (found[0][:2], found[0][2:], found[1][:2])
        assert row == [((high << 32) + low >> 11) / 2**53 for high, low in pairs]


def test_where_there_is_no_float64_they_are_the_first_24_of_these_bits(monkeypatch):
    whole = PhiloxStreams(5, "u", range(50)).uniform((3,))
    monkeypatch.setattr(philox, "widest", lambda device: torch.float32)
    found = PhiloxStreams(5, "u", range(50)).uniform((3,))
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), (whole * 2**24).floor() / 2**24)


@pytest.mark.parametrize("shape", [(), (5,), (1, 8, 8), (3, 31, 33)])
def test_an_image_meets_the_same_bits_alone_and_in_any_batch(shape):
    whole = PhiloxStreams(0, "noise", range(2**32 - 20, 2**32 + 20))
    first, second, third = whole.normal(shape), whole.uniform(shape), whole.normal(shape)
    for number in (0, 19, 20, 39):
        alone = PhiloxStreams(0, "noise", [2**32 - 20 + number])
        for together in (first, second, third):
            mine = alone.uniform(shape) if together is second else alone.normal(shape)
            assert torch.equal(mine[0], together[number])
    assert not torch.equal(first, third)


def test_normal_numbers_are_the_exact_ones_to_rounding():
    """In float64 from the same float32 words: off by 8 units in the last place of the pair's radius at the most."""
    found = PhiloxStreams(5, "z", range(40)).normal((4000,)).double().reshape(-1, 2)
    pairs = torch.tensor([block_of("z", number, index) for number in range(40) for index in range(1000)])
    first, second = pairs.double().reshape(-1, 2).T
    radius = (-2 * ((first + 1).float().double() / 2**32).log()).sqrt()
    angle = (second / 2**31 - 1) * torch.pi
    exact = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    spacing = torch.exp2(radius.log2().floor() - 23)
    assert float(((found - exact).abs() / spacing[:, None]).max()) < 8
    assert float(found.abs().max()) > 4


def test_numbers_are_normal_and_uniform_and_independent_of_each_other():
    count = 100_000
    streams = PhiloxStreams(0, "latent", range(count))
    z, later = streams.normal((2,)), streams.uniform()
    u = PhiloxStreams(0, "time", range(count)).uniform()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-3
    others = {
        "pair": z[:, 1],
        "next image": z[:, 0].roll(1),
        "purpose": PhiloxStreams(0, "reverse", range(count)).normal(()),
        "seed": PhiloxStreams(1, "latent", range(count)).normal(()),
        "later": later * 12**0.5 - 3**0.5,
    }
    for name, other in others.items():
        for power in (1, 2):
            correlation = torch.corrcoef(torch.stack([z[:, 0].double() ** power, other.double() ** power]))[0, 1]
            assert abs(float(correlation)) < 4.5 / count**0.5, (name, power)


def test_rows_that_are_drawn_later_are_those_of_the_whole():
    streams = PhiloxStreams(3, "noise", range(8))
    before, rows, after = streams.normal((5,)), streams.soon((5,)), streams.normal((5,))
    whole = PhiloxStreams(3, "noise", range(8)).normal((24,)).reshape(8, 3, 8)[:, :, :5]  # each begins with a block
    assert torch.equal(torch.stack([before, rows(slice(None)), after], 1), whole)
    assert torch.equal(rows(slice(2, 5)), rows(slice(None))[2:5])


def test_each_draw_begins_with_the_block_after_the_one_before():
    streams = PhiloxStreams(3, "noise", range(5))
    drawn = [streams.normal((4,)) for _ in range(3)]
    assert torch.equal(torch.cat(drawn, 1), PhiloxStreams(3, "noise", range(5)).normal((12,)))


def test_images_may_be_of_any_numbers():
    whole = PhiloxStreams(3, "noise", range(40)).normal((5,))
    for numbers in (range(2, 40, 7), [3, 1, 2], (39,), [], range(0)):
        rows = torch.tensor(list(numbers), dtype=torch.int64)
        assert torch.equal(PhiloxStreams(3, "noise", numbers).normal((5,)), whole[rows])


@pytest.mark.parametrize("numbers", [range(3), [4, 2]], ids=str)
def test_they_are_drawn_on_the_device(numbers):
    streams = PhiloxStreams(3, "noise", numbers, "meta")  # where a number from elsewhere is refused
    for drawn in (streams.normal((5,)), streams.uniform(), streams.soon((5,))(slice(None))):
        assert (drawn.device.type, len(drawn)) == ("meta", len(numbers))
