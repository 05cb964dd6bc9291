"""Files: exact pixels, every prefix a picture, and nothing but a picture or a CodecError from damaged ones."""

import functools
import math
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ancestral.compression import compress_command, exact_pixels, tiles
from ancestral.compression.bit_io import Reader, Writer, read_varint, varint
from ancestral.compression.completion import FINISHES, down
from ancestral.compression.errors import CodecError
from ancestral.compression.file_header import VERSION, Exact, Header, parse
from ancestral.compression.prefix_quality import prefixes
from ancestral.compression.progressive import Row, _moved, send, skip
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.samplers.loop import Move
from ancestral.errors import UserError
from codec_toy import GOLDEN, TIMES, VARIANCE, Toy, codebook, codec, golden, image


@functools.cache
def files(profile=1, count=6, channels=1):
    """Some images and their files."""
    images = [image(100 + number, channels=channels) for number in range(count)]
    return images, codec(channels=channels).encode(images, profile)


def psnr(pixels, original):
    return -10 * math.log10(max(np.square(pixels.astype(float) - original).mean(), 0.01) / 255**2)


@pytest.mark.parametrize("name", golden())
def test_the_format_is_what_it_was(name):
    coder, pixels, profile = golden()[name]
    content = (GOLDEN / name).read_bytes()
    assert np.array_equal(coder.decode([content])[0].pixels, pixels)
    assert coder.encode([pixels], profile)[0] == content


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("profile", [0, 1])
def test_the_exact_pixels_come_back(profile, channels):
    images, contents = files(profile, channels=channels)
    for one, original in zip(codec(channels=channels).decode(contents), images, strict=True):
        assert one.lossless
        assert one.steps == len(TIMES) - 1
        assert np.array_equal(one.pixels, original)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_images(channels):
    images, contents = files(channels=channels)
    coder = codec(channels=channels)
    assert [coder.encode([one], 1)[0] for one in images] == contents
    alone = [coder.decode([one])[0].pixels for one in contents]
    assert all(map(np.array_equal, alone, images))


@pytest.mark.parametrize(
    "original", [np.zeros((8, 8, 1), np.uint8), np.full((8, 8, 1), 255, np.uint8), image(0) // 64 * 85]
)
def test_images_of_another_kind_are_only_larger(original):
    (content,) = codec().encode([original], 1)
    assert np.array_equal(codec().decode([content])[0].pixels, original)


@pytest.mark.parametrize("size", [(1, 1), (8, 9), (5, 30), (17, 8), (20, 26)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size(size, channels, monkeypatch):
    monkeypatch.setattr(tiles, "MOST_TILES", 7)  # several bands
    coder, original = codec(8, channels), image(5, *size, channels)
    (content,) = coder.encode([original], 1)
    (one,) = coder.decode([content])
    assert one.lossless
    assert np.array_equal(one.pixels, original)
    part = coder.decode([content[: len(content) // 2]])[0]
    assert part.pixels.shape == original.shape
    assert not part.lossless


def test_tiles_cover_an_image_once():
    whole = image(1, 21, 30)
    copy = np.zeros_like(whole)
    for band in tiles.bands((21, 30), (8, 8)):
        for tile in band:
            part = tiles.cut(whole, tile, (8, 8))
            assert part.shape == (8, 8, 1)
            tiles.paste(copy, tile, part)
    assert np.array_equal(copy, whole)
    assert [tile.number for band in tiles.bands((21, 30), (8, 8)) for tile in band] == list(range(12))


def test_every_prefix_is_a_picture_and_more_bytes_a_better_one():
    images, contents = files(count=3)
    coder, header, curves = codec(), len(Header(1, bytes(8), Exact.GUARDED, None).content()), []
    for original, content in zip(images, contents, strict=True):
        decoded = [coder.decode([content[:end]])[0] for end in range(header, len(content) + 1)]
        assert [one.lossless for one in decoded] == [False] * (len(decoded) - 1) + [True]
        picture = len(coder.picture(content)) - header
        curves.append([psnr(one.pixels, original) for one in decoded[: min(picture + 1, 40)]])
        assert len({one.pixels.tobytes() for one in decoded[picture:-1]}) == 1
    curve = np.mean([curve[: min(map(len, curves))] for curve in curves], 0)
    assert (np.maximum.accumulate(curve) - curve).max() < 0.5
    assert curve[-1] > curve[0] + 8


def test_the_picture_of_a_lossless_file_is_the_lossy_file():
    images, contents = files()
    writers = [Writer() for _ in images]
    x0 = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() / 127.5 - 1
    send(Toy(), codebook().profiles[1], x0.float().double(), [Row(writer) for writer in writers])
    for content, writer in zip(contents, writers, strict=True):
        assert codec().picture(content)[9:] == writer.content()


def test_bytes_are_the_sum_of_their_parts_and_near_the_bound():
    """Header, side information, checks, channel, pixels; the channel within its usual 1.4 of the KL, closed form."""
    coder = codec(16)
    images = [image(300 + number, 16, 16) for number in range(8)]
    profile, channel, kl = coder.codebook.profiles[1], 0.0, 0.0
    for content in coder.encode(images, 1):
        reader, counted = Reader(content[9:]), 0
        for index, counts in enumerate(profile.counts):
            counted += counts[reader.number(4)]
            reader.bits(counted - reader.position + 4 * (index + 1) + 8 * (index >= 8))
            if index in (7, len(TIMES) - 2):
                reader.check()
        bits = 4 * len(profile.counts) + 8 * 2 + counted
        assert reader.position == bits
        rest = content[9 + -(-bits // 8) :]
        length, begin = read_varint(rest, 0, 10**6)
        assert begin + length + 4 == len(rest)
        channel += counted
        kl += 256 * sum(math.log2(1 + error(t) * gain(t, s)) / 2 for t, s in pairwise(TIMES))
    assert 1.05 < channel / kl < 1.4


def error(t):
    schedule = Toy().schedule
    return float(VARIANCE * schedule.noise_var(t) / (schedule.signal(t) ** 2 * VARIANCE + schedule.noise_var(t)))


def gain(t, s):
    return float(Toy().schedule.snr(s) - Toy().schedule.snr(t))


@pytest.mark.parametrize("cut", [11, 14])
def test_finishes_are_what_they_say(cut):
    """The mean's error is the least; a sample of the exact posterior has twice that; the flow is between."""
    images = [image(500 + number) for number in range(40)]
    coder = codec()
    contents = [content[:cut] for content in coder.encode(images, 1)]
    errors = {}
    for name, finish in FINISHES.items():
        decoded = coder.decode(contents, finish)
        errors[name] = np.mean(
            [np.square(d.pixels.astype(float) - i).mean() for d, i in zip(decoded, images, strict=True)]
        )
    assert errors["sample"] == pytest.approx(2 * errors["mean"], rel=0.2)
    assert errors["mean"] < errors["ode"] < errors["sample"]


@pytest.mark.parametrize(("side", "cut"), [(8, 11), (20, 40)])
@pytest.mark.parametrize("name", FINISHES)
def test_a_file_is_one_picture_whatever_is_decoded_with_it(name, side, cut):
    coder = codec()
    contents = [content[:cut] for content in coder.encode([image(number, side, side) for number in range(3)], 1)]
    together = coder.decode(contents, FINISHES[name])
    alone = [coder.decode([content], FINISHES[name])[0] for content in contents]
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("T", [2, 5, 100])
def test_the_times_of_a_finish_are_spread_at_zero_terminal_snr_too(T):
    schedule = schedules.linear(T).zero_terminal_snr()
    times = down(schedule, range(1, T + 1))
    assert times[0] == T
    assert times[-1] == 0
    assert len(times) == len(set(times)) == min(T, 12) + 1


@pytest.mark.parametrize("name", FINISHES)
def test_a_finish_asks_only_at_times_that_were_trained_at(name):
    asked = []

    class Asked(Toy):
        def __call__(self, x_t, t):
            asked.append(int(t))
            return super().__call__(x_t, t)

    trained = [*TIMES, 100, 0]
    content = codec().encode([image(0)], 1)[0][:11]
    coder = replace(codec(predictor=Asked()), trained=trained)
    coder.decode([content], FINISHES[name])
    assert set(asked) <= set(trained)
    assert down(coder.predictor.schedule, [2, 4, 7]) == [7, 4, 2, 0]


def drifting(size):
    """Off by at most `size` grey levels, otherwise in every pixel and every call."""
    generator = torch.Generator().manual_seed(0)
    return lambda x0: (torch.rand(x0.shape, generator=generator, dtype=x0.dtype) * 2 - 1) * size / 127.5


@given(st.integers(1, 2**32), st.floats(0, 1))
def test_other_machines_pixels_are_the_same(seed, share):
    images, contents = files()
    other = codec(predictor=Toy(drifting(share * 1e-4)))
    assert all(map(np.array_equal, [one.pixels for one in other.decode(contents)], images))


def test_a_width_off_by_its_last_bits_moves_the_state_by_as_much():
    """Whatever the width: also where float32 would round the two to different numbers."""
    toy, profile = Toy(), codebook().profiles[1]
    t, s = TIMES[:2]
    x_t = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    mean = predict(x_t, x_t, toy.schedule, t)
    move = Move(t, s, x_t, mean, Normal(x_t, 2 * toy.schedule.posterior(x_t, x_t, t, s).var.expand_as(x_t)))
    ends = 1 + 2**-24 - 1e-12, 1 + 2**-24 + 1e-12
    one, other = (
        _moved(toy.schedule, move, [Row(Writer())], profile, lambda row, r, key, w=w: (w, np.full(64, 4.0)))
        for w in ends
    )
    assert 0 < float((one - other).abs().max()) < 1e-11


def test_beyond_the_guard_the_picture_is_right_and_the_loss_is_said():
    _, contents = files()
    other = codec(predictor=Toy(drifting(0.3)))
    with pytest.raises(CodecError, match=r"file \d+: the exact pixels .* --lossy"):
        other.decode(contents)
    cut = [other.picture(content) for content in contents]
    here, there = codec().decode(cut), other.decode(cut)
    assert all(psnr(one.pixels, same.pixels) > 45 for one, same in zip(there, here, strict=True))


def test_lossless_never_fails():
    """A network that never says the same twice: the guard is widened, in the end the pixels are stored."""
    originals = [image(number) for number in range(10)]
    for size, kinds in ((3e-2, {Exact.WIDER, Exact.WIDEST}), (5.0, {Exact.STORED})):
        contents = codec(predictor=Toy(drifting(size))).encode(originals, 1)
        assert {parse(content)[0].exact for content in contents} & kinds
        stored = [number for number, content in enumerate(contents) if parse(content)[0].exact is Exact.STORED]
        back = codec().decode([contents[number] for number in stored])
        assert all(np.array_equal(one.pixels, originals[number]) for one, number in zip(back, stored, strict=True))


def allowed(coder, content):
    """Decode: an image or a CodecError, and nothing else."""
    try:
        (one,) = coder.decode([content])
    except CodecError:
        return None
    assert one.pixels.dtype == np.uint8
    return one


@given(st.data())
def test_flipped_bits(data):
    images, contents = files()
    number = data.draw(st.integers(0, len(images) - 1))
    content = bytearray(contents[number])
    for index in data.draw(st.sets(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3)):
        content[index // 8] ^= 1 << index % 8
    one = allowed(codec(), bytes(content))
    assert one is None or not one.lossless or np.array_equal(one.pixels, images[number])


@given(st.binary(max_size=300), st.integers(0, 3))
def test_random_bytes(content, kind):
    header = Header(1, codec().codebook.model_id, Exact(kind), None).content()
    assert allowed(codec(), content) is None
    one = allowed(codec(), header + content)
    assert one is None or not one.lossless


@given(st.binary(max_size=12), st.integers(0, 300))
def test_random_headers(tail, cut):
    """Of images with sizes, whatever the sizes."""
    import zlib

    start = b"\xa1c" + bytes([VERSION << 4 | 8, 1]) + codec().codebook.model_id + tail
    allowed(codec(), start[:cut])
    allowed(codec(), start + zlib.crc32(start).to_bytes(4, "little"))


def test_fields_of_the_header():
    for size in (None, (1, 1), (300, 7000)):
        for kind in Exact:
            header = Header(7, bytes(range(8)), kind, size)
            content = header.content()
            found, end = parse(content + b"more")
            assert end == len(content)
            assert (found.profile, found.exact, found.size) == (7, kind, size)
            assert bytes(range(8)).startswith(found.model)
            for index in range(len(content)):
                with pytest.raises(CodecError):
                    parse(content[:index])
                for value in {content[index] ^ 1 << bit for bit in range(8)}:
                    with pytest.raises(CodecError):
                        parse(content[:index] + bytes([value]) + content[index + 1 :])
    assert len(Header(7, bytes(8), Exact.GUARDED, None).content()) == 9


def test_a_size_that_is_too_large_is_refused_before_any_work():
    content = Header(1, codec().codebook.model_id, Exact.GUARDED, (2**20, 2**20)).content()
    coder = codec(predictor=Toy())
    with pytest.raises(CodecError, match="1048576x1048576"):
        coder.decode([content])
    assert coder.predictor.calls == 0
    with pytest.raises(CodecError, match="pixels"):
        coder.encode([np.broadcast_to(np.uint8(0), (2**13, 2**13, 1))], 1)


def test_another_model_or_profile_is_named():
    _, contents = files()
    header, begin = parse(contents[0])
    other = Header(1, bytes.fromhex("fedcba9876543210"), header.exact, None).content() + contents[0][begin:]
    with pytest.raises(CodecError, match=r"fedcba98.*01234567"):
        codec().decode([other])
    unknown = Header(9, codec().codebook.model_id, header.exact, None).content() + contents[0][begin:]
    with pytest.raises(CodecError, match=r"profile 9 .* 0, 1"):
        codec().decode([unknown])
    with pytest.raises(CodecError, match="profile 9"):
        codec().encode([image(0)], 9)
    with pytest.raises(CodecError, match="too many"):
        codec().decode([contents[0] + b"x"])
    newer = bytearray(contents[0])
    newer[2] += 16
    with pytest.raises(CodecError, match=f"version {VERSION + 1}.* reads version {VERSION}"):
        codec().decode([bytes(newer)])


def test_damage_in_a_cut_file_is_seen_by_its_checks():
    """A flipped bit of the picture passes unseen about once in 256."""
    _, contents = files(count=2)
    seen = total = 0
    for content in contents:
        picture = codec().picture(content)
        for index in range(8 * 9, 8 * len(picture) - 8):
            damaged = bytearray(picture)
            damaged[index // 8] ^= 1 << index % 8
            try:
                reader = Reader(bytes(damaged[9:]))
                skip(reader, codebook().profiles[1], 1)
                reader.align()
                total += 1
            except CodecError:
                seen += 1
    assert seen > 0.9 * (seen + total)


@given(st.integers(0, 2**30))
def test_varints(value):
    content = varint(value)
    assert read_varint(content + b"\xff", 0, 2**30) == (value, len(content))
    assert all(read_varint(content[:cut], 0, 2**30) is None for cut in range(len(content)))


def test_stored_pixels_are_bounded():
    import zlib

    bomb = zlib.compress(bytes(10**6))
    content = varint(len(bomb)) + bomb + bytes(4)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            exact_pixels.unpack(content, np.zeros((8, 8, 1)), None, 1e-3, Exact.STORED)
        assert tracemalloc.get_traced_memory()[1] < 10**5
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("profile", [0, 1])
def test_the_measured_prefixes_are_what_prefixes_give(profile):
    """One decoding of whole files, against a decoding of each prefix by itself."""
    images, contents = files(profile, 2)
    found = prefixes(codec(), images, profile, contents)
    assert found.size[:, 0].tolist() == [9] * len(images)
    assert (np.diff(found.size, axis=1) >= 0).all()
    assert found.whole.tolist() == list(map(len, contents))
    for index in range(found.size.shape[1]):
        for row, (original, content) in enumerate(zip(images, contents, strict=True)):
            cut = codec().decode([content[: found.size[row, index]]])[0]
            mse = np.square(cut.pixels.astype(float) - original).mean()
            # The last byte may hold the first bits of the next step as well.
            assert cut.steps in (index, index + 1)
            assert cut.steps == index + 1 or mse == found.mse[row, index]
    last = [np.square(codec().decode([codec().picture(c)])[0].pixels.astype(float) - i).mean()
            for c, i in zip(contents, images, strict=True)]  # fmt: skip
    assert found.mse[:, -1].tolist() == last
    with pytest.raises(CodecError, match="profile"):
        prefixes(codec(), images, 1 - profile, contents)


def test_the_number_of_calls_is_known_beforehand():
    originals = [image(number) for number in range(3)] + [image(8, 11, 17)]
    encoder, decoder = Toy(), Toy()
    coder = codec(predictor=encoder)
    contents = coder.encode(originals, 1)
    assert encoder.calls == coder.encoding_calls(originals, 1, list("abcd"))
    contents += coder.encode(originals[:1], 0)
    codec(predictor=decoder).decode(contents)
    assert decoder.calls == codec().decoding_calls(contents, list("abcde"))


def test_mps_is_refused_before_the_run_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match="float64, which mps does not have; use --device cpu"):
        compress_command.opened(tmp_path / "none", "mps")
