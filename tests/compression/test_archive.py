"""Archives: exact denoisers say what an image costs in closed form; files come back to the bit or not at all."""

import json
import math
import tracemalloc
import zlib
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.compression import archive_command, archive_format
from ancestral.compression.archive_command import _natural, archive, open_coder
from ancestral.compression.archive_format import Archive, Setting, rows_of
from ancestral.compression.bits_back import BYTES, Chain, OutOfReach, Stack
from ancestral.compression.block_coder import Coder, canary, threads
from ancestral.compression.errors import CodecError
from ancestral.data.decode import BadImage
from ancestral.data.load import load
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams, stream
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.errors import UserError
from ancestral.evaluation.agree_command import MEASURES, rows
from ancestral.runs import checkpoint
from ancestral.runtime import verified_folder
from ancestral.runtime.distributed import Processes
from conftest import run_command
from oracles import dataset

F64 = torch.float64
NOISY = partial(schedules.linear_log_snr, log_snr_max=9.0)  # at t = 1 the noise is 1.4 times the step between two bytes


class Flat:
    """An exact denoiser of vectors as one of images (B, 1, H, W); `shift` makes it another model."""

    def __init__(self, oracle, shift=0.0):
        self.oracle, self.schedule, self.shift = oracle, oracle.schedule, shift

    def __call__(self, x_t, t):
        said = self.oracle(x_t.flatten(1), t)
        parts = (None if part is None else part.reshape(x_t.shape) for part in said)
        said = said._make(parts)
        return said._replace(x0=said.x0 + self.shift)


def stack(words=4000):
    return Stack(stream(0, "bits", 0).integers(1, 2**32, words, dtype=np.uint32))


def normal_bytes(count, dimensions, std, seed=0):
    """Bytes of N(0, std^2), rounded, and their true cost in nats: the Gaussian's mass in each bin."""
    x = std * torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=F64)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).long()
    mass = Normal(torch.zeros_like(x), torch.full_like(x, std**2)).log_prob_byte(pixels / 127.5 - 1)
    return pixels, -mass.sum(1)


def setting(oracle, shape, steps=6, **other):
    times = tuple(grids.log_snr(oracle.schedule, steps))
    return Setting(b"model-id", times, oracle.schedule.T, shape, torch.get_num_threads(), **other)


@pytest.mark.parametrize("std", [1e-3, 0.023, 0.15, 1.3, 40.0])
def test_a_coder_pays_for_bytes_what_the_bound_says(std):
    """Bytes near the mean and far from it, some 3,000 of each: to a part in 10,000, also at the cap of 24 bits."""
    for offset in (0, 1, 3, 60):
        mean, spread = np.full(3000, 100.0), np.full(3000, std)
        symbols, bits = np.full(3000, 100 + offset, np.int32), Stack(np.ones(1, np.uint32))
        bits.push(symbols, BYTES, mean, spread)
        p = Normal(torch.tensor(100 / 127.5 - 1, dtype=F64), torch.tensor((std / 127.5) ** 2, dtype=F64))
        ideal = float(-p.log_prob_coded(torch.tensor((100 + offset) / 127.5 - 1, dtype=F64))) / math.log(2)
        assert 32 * (len(bits) - 1) == pytest.approx(3000 * ideal, rel=2e-3, abs=64)


@pytest.mark.parametrize("grid", [[50, 33, 20, 11, 4, 1, 0], [50, 25, 1, 0], list(range(50, -1, -1))], ids=len)
@pytest.mark.parametrize("bins", [1.0, 3.0])
def test_images_cost_their_negative_log_likelihood(grid, bins):
    """Gaussian data: the exact reverse process is Gaussian, so that the bound is tight and the cost is the NLL.

    What may be over: a byte is a point, not its bin, for q (its variance is missing at t = 1), and the lattice.
    """
    std = 0.3
    oracle = gaussian(NOISY(50), torch.zeros(64, dtype=F64), std**2)
    pixels, nats = normal_bytes(40, 64, std)
    bits, chain = stack(), Chain(oracle, grid, Ancestral(optimal), bins)
    before = len(bits)
    ideal = chain.push(bits, pixels)
    spent = 32 * (len(bits) - before) / pixels.numel()
    truth = float(nats.sum()) / math.log(2) / pixels.numel()
    word = 32 / pixels.numel()
    assert spent == pytest.approx(truth, abs=word + 0.02 / bins)
    assert float(ideal.sum()) / math.log(2) / pixels.numel() == pytest.approx(truth, abs=0.005)


def test_the_exact_cost_is_the_entropy_of_a_finite_set():
    """Two images of 32 values, equally likely: one bit an image on average, and not less."""
    points = torch.stack([torch.full((32,), -0.6), torch.full((32,), 0.6)]).double()
    points = ((points + 1) * 127.5).round() / 127.5 - 1
    oracle = dataset(schedules.cosine(1000), points)
    pixels = ((points + 1) * 127.5).round().long()[torch.arange(80) % 2]
    bits, chain = stack(10000), Chain(oracle, grids.uniform(oracle.schedule, 100), Ancestral(optimal), bins=2)
    before = len(bits)
    chain.push(bits, pixels)
    word = 32 / len(pixels)
    assert 1 - word <= 32 * (len(bits) - before) / len(pixels) <= 1.1 + word
    assert torch.equal(chain.pop(bits, pixels.shape), pixels)


@pytest.mark.parametrize("bins", [0.5, 1.0, 4.0])
def test_the_stack_is_as_it_was_after_decoding(bins):
    oracle = gaussian(schedules.cosine(30), torch.zeros(16, dtype=F64), 0.1)
    pixels = torch.randint(0, 256, (5, 16), generator=torch.Generator().manual_seed(0))
    bits, chain = stack(), Chain(oracle, [30, 12, 5, 1, 0], Ancestral(optimal), bins)
    before = bits.words()
    chain.push(bits, pixels)
    assert torch.equal(chain.pop(bits, pixels.shape), pixels)
    assert np.array_equal(bits.words(), before)


def test_the_chain_that_is_drawn_is_a_chain_of_the_forward_process():
    """Moments of x_t given x0 are those of q(x_t | x0), with the lattice's own variance over it and no wild values.

    The bits drawn from are those pushed before: random as long as the images are what the model expects.
    """
    oracle = gaussian(NOISY(40), torch.zeros(400, dtype=F64), 0.09)
    drawn = {}

    class Watching:
        schedule = oracle.schedule

        def __call__(self, x_t, t):
            drawn[t] = x_t
            return oracle(x_t, t)

    pixels, _ = normal_bytes(20, 400, 0.3)
    Chain(Watching(), [40, 20, 10, 2, 0], Ancestral(optimal)).push(stack(40000), pixels)
    assert list(drawn) == [2, 10, 20, 40]
    for t, x_t in drawn.items():
        q = oracle.schedule.marginal(pixels / 127.5 - 1, t)
        z = (x_t - q.mean) / q.var.sqrt()
        assert abs(float(z.mean())) < 5 / 8000**0.5
        assert 1 - 0.08 < float(z.var()) < 1 + 4 / 12 + 0.08
        assert float(z.abs().max()) < 7


def test_blocks_come_back_and_only_the_first_image_pays_for_its_latents():
    oracle = Flat(gaussian(NOISY(50), torch.zeros(64, dtype=F64), 0.09))
    pixels = normal_bytes(150, 64, 0.3)[0].reshape(150, 1, 8, 8)
    coder = Coder(oracle, setting(oracle, (1, 8, 8)))
    one, single = coder.encode(pixels[:1])
    block, cost = coder.encode(pixels)
    assert torch.equal(coder.decode(block, 150), pixels)
    assert torch.equal(coder.decode(one, 1), pixels[:1])
    assert cost.one_off <= 1.5 * single.one_off + 16
    net = len(block.payload) - cost.one_off
    assert net == pytest.approx(float(cost.nats.sum()) / math.log(2) / 8, rel=0.03)


def test_values_far_from_what_the_model_expects_are_coded_all_the_same():
    oracle = Flat(gaussian(schedules.cosine(50), torch.zeros(16, dtype=F64), 1e-6))
    pixels = torch.tensor([0, 255]).repeat(2, 8).reshape(2, 1, 4, 4)
    coder = Coder(oracle, setting(oracle, (1, 4, 4)))
    assert torch.equal(coder.decode(coder.encode(pixels)[0], 2), pixels)
    shifted = Flat(oracle.oracle, shift=9.0)  # a prediction of x0 that is off by more than images are wide
    coder = Coder(shifted, setting(shifted, (1, 4, 4)))
    assert torch.equal(coder.decode(coder.encode(pixels)[0], 2), pixels)
    with pytest.raises(OutOfReach):
        Chain(shifted, coder.setting.times, Ancestral(optimal)).push(stack(), pixels)
    nowhere = Flat(oracle.oracle, shift=float("nan"))
    with pytest.raises(CodecError, match="finite mean"):
        Chain(nowhere, coder.setting.times, Ancestral(optimal)).push(stack(), pixels)


@pytest.fixture(scope="module")
def made():
    """A small archive of three blocks: (its coder, the pixels, the file's bytes)."""
    oracle = Flat(gaussian(NOISY(20), torch.zeros(16, dtype=F64), 0.09))
    pixels = normal_bytes(8, 16, 0.3)[0].reshape(8, 1, 4, 4)
    coder = Coder(oracle, setting(oracle, (1, 4, 4), steps=4))
    blocks = tuple(coder.encode(pixels[start : start + 3])[0] for start in (0, 3, 6))
    names = tuple(f"a/é{n}.png" for n in range(8))
    return coder, pixels, Archive(coder.setting, 8, 3, names, blocks).to_bytes()


def decoded(coder, content):
    held = Archive.of_bytes(content)
    rows = [min(held.block, held.count - start) for start in range(0, held.count, held.block)]
    return torch.cat([coder.decode(block, count) for block, count in zip(held.blocks, rows, strict=True)])


def test_a_file_holds_all_that_was_put_in(made):
    coder, pixels, content = made
    held = Archive.of_bytes(content)
    assert held.setting == coder.setting
    assert held.names[7] == "a/é7.png"
    assert held.to_bytes() == content
    assert torch.equal(decoded(coder, content), pixels)
    assert [(n, list(rows)) for n, rows in rows_of(held, range(2, 7))] == [(0, [2]), (1, [3, 4, 5]), (2, [6])]


def test_a_file_cut_off_anywhere_is_refused(made):
    content = made[2]
    for length in range(len(content)):
        with pytest.raises(CodecError):
            Archive.of_bytes(content[:length])
    with pytest.raises(CodecError, match="1 bytes too many"):
        Archive.of_bytes(content + b"\0")


def test_every_flipped_bit_is_found(made):
    _, _, content = made
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        with pytest.raises(CodecError):
            Archive.of_bytes(bytes(changed))


def test_a_block_that_was_changed_with_its_checksum_never_gives_wrong_images(made):
    """Hostile: the payload is changed and its CRC is right again. The pixels' CRC stands, or the block is refused."""
    coder, pixels, content = made
    held = Archive.of_bytes(content)
    draw = stream(0, "damage", 0)
    for _ in range(60):
        payload = bytearray(held.blocks[0].payload)
        for _ in range(int(draw.integers(1, 5))):
            payload[int(draw.integers(len(payload)))] = int(draw.integers(256))
        cut = bytes(payload[: int(draw.integers(len(payload) + 1))] if draw.random() < 0.3 else payload)
        try:
            assert torch.equal(coder.decode(held.blocks[0]._replace(payload=cut), 3), pixels[:3])
        except CodecError:
            continue


def test_more_images_than_the_bytes_can_hold_are_refused_at_once(made):
    """Hostile headers with checksums that are right: nothing is made of a number before the bytes are there for it."""
    coder, _, content = made
    held = Archive.of_bytes(content)
    for count, block in ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**31), (10**6, 400_000)):
        with pytest.raises(CodecError, match=f"{count} images in"):
            Archive.of_bytes(
                replace(held, count=count, block=block, blocks=held.blocks[: -(-count // block)]).to_bytes()
            )
    with pytest.raises(CodecError, match="do not agree"):
        Archive.of_bytes(replace(held, names=("",) * 10**6).to_bytes())
    with pytest.raises(CodecError, match="no images"):
        Archive.of_bytes(replace(held, count=0, names=(), blocks=()).to_bytes())
    for threads_asked in (0, 513, 65535):
        asked = replace(held, setting=replace(coder.setting, threads=threads_asked))
        with pytest.raises(CodecError, match=f"made with {threads_asked} threads"):
            Archive.of_bytes(asked.to_bytes())


@pytest.mark.parametrize(
    ("claimed", "words"),
    [
        ({"count": 10**6, "block": 1, "index": 12 * 10**6}, "1000000 images in"),
        ({"count": 10**6, "names": 10**6 - 1}, "do not agree"),
        ({"steps": 10**6}, "do not agree"),
    ],
    ids=["blocks", "names", "times"],
)
def test_a_hostile_header_takes_no_more_memory_than_its_bytes(made, claimed, words):
    """All zeros but for what is claimed, which deflates to next to nothing."""
    one, filled = made[0].setting, {"count": 8, "block": 10**6, "steps": 2, "index": 12, "names": 0} | claimed
    body = archive_format._FIXED.pack(
        one.model, one.canary, 1, one.T, 1.0, *one.shape, filled["count"], filled["block"], filled["steps"]
    )
    times = bytes(4 * filled["steps"]) if filled["steps"] > 2 else np.array([one.T, 0], "<u4").tobytes()
    body += times + bytes(filled["index"] + filled["names"])
    deflated = zlib.compress(body)
    prefix = archive_format._PREFIX.pack(
        archive_format.MAGIC, archive_format.VERSION, len(deflated), zlib.crc32(deflated)
    )
    content = prefix + deflated + bytes(20_000)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match=words):
            Archive.of_bytes(content)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


def test_another_version_is_refused(made):
    content = bytearray(made[2])
    content[4] = 9
    with pytest.raises(CodecError, match="version 9"):
        Archive.of_bytes(bytes(content))


def test_an_environment_that_computes_otherwise_is_refused(made):
    coder, *_ = made
    other = Flat(coder.denoiser.oracle, shift=1e-12)
    with pytest.raises(CodecError, match="computes other bits here"):
        Coder(other, coder.setting)
    assert canary(other, coder.setting) != canary(coder.denoiser, coder.setting)


def test_the_number_of_threads_is_restored():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

    @threads(before + 1)
    def fails():
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert torch.get_num_threads() == before


def test_differences_are_taken_image_by_image():
    spread = torch.arange(100.0).double()
    found = rows({"a": spread, "b": spread + 2})
    assert (found["b"].difference, found["b"].difference_error) == (2, 0)
    assert found["a"].error > 2
    assert sorted(["x[10]", "x[9]", "b.png", "x[1]"], key=_natural) == ["b.png", "x[1]", "x[9]", "x[10]"]


def test_the_commands(any_run, tmp_path):
    settings = checkpoint.open_newest(any_run).config
    images = load(settings.source, settings.data).test.images[:7]
    np.savez(tmp_path / "seven.npz", images=images)
    file, back = tmp_path / "seven.archive", tmp_path / "back.npz"
    result = run_command("archive", any_run, tmp_path / "seven.npz", "--out", file, "--steps", 4, "--block", 3)
    assert result.exit_code == 0, result.output
    assert f"{file.stat().st_size} bytes" in result.output
    assert run_command("unarchive", any_run, file, "--out", back).exit_code == 0
    with np.load(back) as held:
        assert np.array_equal(held["images"], images)
    assert run_command("unarchive", any_run, file, "--out", tmp_path / "back.NPZ").exit_code == 0
    assert (tmp_path / "back.NPZ").read_bytes() == back.read_bytes()
    folder = tmp_path / "pictures"
    assert run_command("unarchive", any_run, file, "--out", folder, "--only", "2:5").exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["000002.png", "000003.png", "000004.png"]
    beside = tmp_path / "beside"  # what an archive lies in may take its images
    beside.mkdir()
    (beside / file.name).write_bytes(file.read_bytes())
    assert run_command("unarchive", any_run, beside / file.name, "--out", beside, "--only", "2:5").exit_code == 0
    assert sorted(path.name for path in beside.iterdir() if path.is_file()) == [
        *sorted(path.name for path in folder.iterdir()),
        file.name,
    ]
    again = tmp_path / "again.archive"
    assert run_command("archive", any_run, folder, "--out", again, "--steps", 4).exit_code == 0
    assert run_command("unarchive", any_run, again, "--out", tmp_path / "twice").exit_code == 0
    for path in folder.iterdir():
        assert (tmp_path / "twice" / path.name).read_bytes() == path.read_bytes()
    result = run_command("unarchive", any_run, file, "--out", back, "--only", "2:9")
    assert result.exit_code == 2
    assert "holds 7 images" in result.output
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    result = run_command("unarchive", any_run, file, "--out", back)
    assert (result.exit_code, "1 bytes short" in result.output) == (2, True)
    held = Archive.of_bytes(content)
    file.write_bytes(
        Archive(Setting(**{**vars(held.setting), "model": b"another!"}), *list(vars(held).values())[1:]).to_bytes()
    )
    result = run_command("unarchive", any_run, file, "--out", back)
    assert (result.exit_code, "this run's is" in result.output) == (2, True)


def test_a_folder_whose_files_hold_more_than_is_kept_is_refused(trained_run, tmp_path):
    for number in range(3):
        Image.new("LA", (8, 8), (number, 255 - number)).save(tmp_path / f"{number}.png")
    with pytest.raises(BadImage, match=r"1\.png: has transparency"):
        archive(trained_run, tmp_path, out=tmp_path / "x.archive", steps=4, grid="quadratic", block=3)
    for number in range(3):
        Image.fromarray(np.full((8, 8), 40000 + number, np.uint16)).save(tmp_path / f"{number}.png")
    with pytest.raises(BadImage, match="8 bits"):
        archive(trained_run, tmp_path, out=tmp_path / "x.archive", steps=4, grid="quadratic", block=3)
    assert not (tmp_path / "x.archive").exists()


def test_grey_pixels_are_colours_to_a_model_of_these(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", grey)
    np.savez(tmp_path / "x.npz", grey)
    for name in ("x.npy", "x.npz"):
        found = archive_command.everything(tmp_path / name, (3, 8, 8))
        assert np.array_equal(found.images[:], np.repeat(grey[..., None], 3, -1))
    with pytest.raises(UserError, match="the model's are"):
        archive_command.everything(tmp_path / "x.npy", (3, 8, 9))


def test_shards_whose_images_would_be_rounded_are_refused(trained_run, tmp_path):
    shard = tmp_path / "images.tar"
    shard.touch()
    with pytest.raises(UserError, match="unpack it first"):
        archive(trained_run, shard, out=tmp_path / "x.archive", steps=4, grid="quadratic", block=3)
    assert not (tmp_path / "x.archive").exists()


def test_several_processes_are_refused(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_command, "process_group", lambda device: nullcontext(Processes(1, 2)))
    np.save(tmp_path / "x.npy", np.zeros((10, 8, 8), np.uint8))
    with pytest.raises(UserError, match="one process"):
        archive(trained_run, tmp_path / "x.npy", out=tmp_path / "x.archive", steps=4, grid="quadratic", block=3)


def test_what_was_coded_is_kept_until_the_archive_is_written(trained_run, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8))
    file, encoded, encode = tmp_path / "x.archive", [], Coder.encode
    monkeypatch.setattr(Coder, "encode", lambda self, *given: encoded.append(1) or encode(self, *given))

    def archived(out):
        return run_command("archive", trained_run, tmp_path / "x.npy", "--out", out, "--steps", 3, "--block", 2)

    result = archived(tmp_path)
    assert (result.exit_code, f"{tmp_path}: cannot be written" in result.output) == (2, True), result.output
    assert not encoded
    with monkeypatch.context() as patch:

        def full(*given):
            raise verified_folder.Unwritable("no space left")

        patch.setattr(verified_folder, "write_file", full)
        assert archived(file).exit_code == 2
    assert len(encoded) == 2
    assert archived(file).exit_code == 0
    assert len(encoded) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.archive", "x.npy"]
    monkeypatch.setattr(Coder, "decode", lambda *given: pytest.fail("worked before it looked"))
    (tmp_path / "back.npz").mkdir()
    result = run_command("unarchive", trained_run, file, "--out", tmp_path / "back.npz")
    assert (result.exit_code, "back.npz: cannot be written" in result.output) == (2, True), result.output


def test_the_ways_to_measure_agree_on_a_trained_model(any_run):
    result = run_command("agree", any_run, "--num-images", 24, "--steps", 5)
    assert result.exit_code == 0, result.output
    document = json.loads((any_run / "agreement-5.json").read_text())
    ways = document["bits_per_dim"]
    assert len(ways) == 4
    # The flow is what ever more steps approach: with 5 it is another model, see test_flow.py.
    for way in (way for name, way in ways.items() if name != "probability flow"):
        assert abs(way["difference"]) <= 5 * way["difference_error"] + 0.03
    held = document["archive"]
    net = held["on_disk"] - held["of_which_header"] - held["of_which_begin_blocks"]
    assert net < 1.03 * ways["bound, along the archive's chains"]["mean"]


@pytest.mark.parametrize("way", MEASURES)
def test_every_way_to_measure_is_the_entropy_of_normal_bytes(way):
    oracle = gaussian(NOISY(100), torch.zeros(16, dtype=F64), 0.09)
    pixels, nats = normal_bytes(400, 16, 0.3)
    found = MEASURES[way](oracle, pixels / 127.5 - 1, grids.full(oracle.schedule), Streams(2, way, range(400)))
    difference = found - nats / 16 / math.log(2)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / 20 + 0.02


def test_models_that_cannot_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such run"):
        open_coder(tmp_path / "nothing")


def test_the_bound_along_a_chain_is_what_a_chain_costs():
    """`push` returns Eq. 3 for the chain that it draws; `Chains.monte_carlo` is the same sum, over its own chains."""
    oracle = gaussian(NOISY(50), torch.full((16,), 0.1, dtype=F64), 0.09)
    pixels, _ = normal_bytes(300, 16, 0.3)
    times = [50, 30, 15, 6, 2, 0]
    chain = Chain(oracle, times, Ancestral(optimal), bins=4)
    own = chain.push(stack(40000), pixels)
    noise = Streams(0, "x", range(300))
    theirs = along_chains(oracle, pixels / 127.5 - 1, times, Ancestral(optimal), noise).monte_carlo.nats
    difference = own - theirs
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / 300**0.5 + 16 * 0.002
