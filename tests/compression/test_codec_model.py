"""The codec's model side: rates against the bound, the best walk against all walks, exact pixels under drift."""

import contextlib
import itertools
import json
import math
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ancestral.compression import calibration, codebook, residual_coder, residual_tables, tiles
from ancestral.compression.compress_command import codebook_of, codec_of
from ancestral.compression.errors import CodecError
from ancestral.compression.quantiser_cells import Grids, to_grey
from ancestral.compression.step_planning import Costs, Errors, channel_bits, move_costs, plan
from ancestral.data.load import load
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.denoisers.calibrated import BUCKETS, Calibrated, bucket_sums
from ancestral.diffusion.denoisers.denoiser import Watched, images_per_call
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.grids import log_snr
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, config
from ancestral.runs.open import open_model
from ancestral.runtime import verified_folder
from oracles import cost_bits, rate

F64 = torch.float64
WALKS = [(50, 20, 8, 3), (50, 40, 30, 22, 15, 10, 6, 3, 1), (7,)]


def normal_data(variance=0.09):
    return gaussian(schedules.cosine(50), torch.zeros(48, dtype=F64), variance)


@pytest.mark.parametrize("times", WALKS, ids=len)
def test_the_rate_is_the_bound(times):
    oracle = normal_data()
    x0 = (oracle.sample(torch.Generator().manual_seed(0), 1500) * 127.5).round() / 127.5
    measured = rate(oracle, x0, times, Streams(1, "rate", range(len(x0))))
    known = elbo(oracle, x0, [*times, 0], Ancestral(optimal), Streams(2, "bound", range(len(x0))))
    assert float(measured.bits_per_dim.mean()) == pytest.approx(float(known.bits_per_dim.mean()), rel=0.003)
    steps, end = known.parts["L_1:T-1"].mean(), known.parts["L_0"].mean()
    assert float(measured.steps.sum(1).mean()) / 48 == pytest.approx(float(steps), rel=0.01, abs=1e-9)
    assert float(measured.residual.mean()) / 48 == pytest.approx(float(end), rel=0.005)


@pytest.mark.parametrize("times", WALKS[:2], ids=len)
def test_the_rate_of_normal_data_in_closed_form(times):
    variance = 0.09
    oracle = normal_data(variance)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 3)
    steps = rate(oracle, x0, times, Streams(0, "rate", range(3))).steps
    # x_t leaves x0 the precision 1/variance + SNR; a step costs what that grows by, so every walk costs the same.
    precision = 1 / variance + oracle.schedule.snr(torch.tensor(times))
    assert torch.allclose(steps, (24 * precision.log2().diff()).expand(3, -1), rtol=1e-9)
    assert torch.allclose(steps.sum(1), 24 * (precision[-1] / precision[0]).log2())


def measured_errors(oracle, times):
    x0_var = torch.tensor([float(oracle(torch.zeros(1, 48, dtype=F64), t).x0_var[0, 0]) for t in times], dtype=F64)
    return Errors(tuple(times), x0_var[:, None], torch.ones(len(times), 1, dtype=F64))


def test_the_plan_is_the_best_of_all_walks():
    times, draw = (50, 41, 33, 25, 18, 12, 7, 4, 2), np.random.default_rng(0)
    x0_var = torch.from_numpy(draw.uniform(0.01, 0.1, (9, 3)))  # no exact predictor's: with one all walks cost the same
    errors = Errors(times, x0_var, torch.tensor([[0.5, 0.3, 0.2]], dtype=F64).expand(9, 3))
    moves = move_costs(schedules.cosine(50), errors, 1.15)
    end = np.where(np.arange(9) > 4, draw.uniform(1, 2, 9), np.inf)
    costs = Costs(draw.uniform(0, 0.5, 9), moves, end)
    plans = plan(times, costs, 9)
    for walk, total in plans:
        every = {
            path: costs.start[path[0]] + sum(moves[a, b] for a, b in itertools.pairwise(path)) + end[path[-1]]
            for path in itertools.combinations(range(9), len(walk))
        }
        best = min(every, key=every.__getitem__)
        assert walk == tuple(times[place] for place in best)
        assert total == pytest.approx(every[best], abs=1e-12)
    assert [len(walk) for walk, _ in plans] == list(range(1, 10))


def test_channel_bits_are_the_kl_of_scaled_errors():
    oracle, times = normal_data(), (50, 25, 8)
    counts = channel_bits(oracle.schedule, measured_errors(oracle, times), times, 48, 0.5)
    steps = rate(oracle, torch.zeros(1, 48, dtype=F64), times, Streams(0, "x", [0])).steps[0]
    assert [row[8] for row in counts] == [max(1, round(float(bits) / 0.5)) for bits in steps]
    assert all(list(row) == sorted(row) and row[0] >= 1 for row in counts)
    tiny = channel_bits(oracle.schedule, measured_errors(oracle, (50, 49)), (50, 49), 1, 1.0)
    assert tiny == ((1,) * 16,)


def drawings(count, shape=(12, 12, 1), seed=0):
    """Flat black and white ground with smooth grey shapes: pixels, and what a model sees at a noise of `std` greys."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    images = []
    for _ in range(count):
        wave = 128 + 300 * np.sin(x / draw.uniform(1, 4) + draw.uniform(0, 6)) * np.cos(y / draw.uniform(1, 4))
        images.append(np.repeat(wave[..., None], shape[2], 2) + draw.normal(0, 2, shape))
    true = np.stack(images)
    return np.clip(true, 0, 255).round().astype(np.uint8), true


def seen(true, std, seed=1):
    return (true + np.random.default_rng(seed).normal(0, std, true.shape)) / 127.5 - 1


@pytest.fixture(scope="module")
def table():
    pixels, true = drawings(300)
    return residual_tables.fit(pixels, [seen(true, std) for std in (0.7, 3.0)])


@pytest.mark.parametrize("guard", [0.0, 1e-6, 1e-3, 0.05])
def test_no_drift_within_the_guard_changes_a_pixel(table, guard):
    pixels, true = drawings(200, seed=5)
    x0_hat, draw = seen(true, 1.0, seed=6), np.random.default_rng(0)
    # Values where a cell ends are the ones in danger, so many are put there.
    near = draw.random(x0_hat.shape) < 0.3
    x0_hat = np.where(near, np.round(to_grey(x0_hat) * 8) / 8 / 127.5 - 1 + draw.uniform(-1, 1) * guard / 127.5, x0_hat)
    for image, mine in zip(pixels, x0_hat, strict=True):
        payload = residual_coder.encode(image, mine, table, guard)
        for drift in (draw.uniform(-guard, guard, mine.shape), draw.choice([-guard, guard], mine.shape)):
            assert (residual_coder.decode(payload, mine + drift / 127.5, table, guard, image.shape) == image).all()


def test_drift_beyond_the_guard_does_change_pixels(table):
    pixels, true = drawings(20, seed=5)
    wrong = 0
    for image, mine in zip(pixels, seen(true, 1.0), strict=True):
        payload = residual_coder.encode(image, mine, table, 1e-6)
        try:
            wrong += (residual_coder.decode(payload, mine + 0.3 / 127.5, table, 1e-6, image.shape) != image).any()
        except CodecError:
            wrong += 1
    assert wrong > 15


@pytest.mark.parametrize("shape", [(12, 12, 1), (9, 14, 3), (1, 1, 1), (1, 5, 3)])
@pytest.mark.parametrize("guard", [1e-6, 1e-2])
def test_bytes_are_the_ideal_code_length(table, shape, guard):
    pixels, true = drawings(20, shape, seed=8)
    for image, mine in zip(pixels, seen(true, 0.7), strict=True):
        ideal = cost_bits(image, mine, table, guard) / 8
        payload = residual_coder.encode(image, mine, table, guard)
        assert len(payload) <= ideal * 1.01 + 4
        assert (residual_coder.decode(payload, mine, table, guard, shape) == image).all()


def test_any_pixels_can_be_coded_whatever_was_predicted(table):
    draw = np.random.default_rng(0)
    for _ in range(20):
        image, mine = draw.integers(0, 256, (6, 7, 3), np.uint8), draw.uniform(-3, 3, (6, 7, 3))
        payload = residual_coder.encode(image, mine, table, 1e-3)
        assert (residual_coder.decode(payload, mine, table, 1e-3, image.shape) == image).all()


@pytest.mark.parametrize("level", [0, 255])
def test_a_flat_image_costs_next_to_nothing(table, level):
    image = np.full((28, 28, 1), level, np.uint8)
    assert len(residual_coder.encode(image, image / 127.5 - 1, table, 1e-6)) <= 4
    assert cost_bits(image, image / 127.5 - 1, table, 1e-6) < 32


def test_what_is_sent_takes_little_memory_a_value():
    pixels, true = drawings(1, (128, 128, 3), seed=2)
    fitted = residual_tables.fit(pixels, [seen(true, std) for std in (0.7, 1, 1.5, 2, 3, 4)])
    mine = seen(true, 1.0)[0]
    residual_coder.encode(pixels[0], mine, fitted, 1e-6)  # which keeps the lengths of the table's codes
    tracemalloc.start()
    try:
        payload = residual_coder.encode(pixels[0], mine, fitted, 1e-6)
        assert tracemalloc.get_traced_memory()[1] < 110 * pixels.size
    finally:
        tracemalloc.stop()
    assert (residual_coder.decode(payload, mine, fitted, 1e-6, pixels[0].shape) == pixels[0]).all()


def test_tables_of_a_model_that_is_always_far_off_escape():
    pixels, x0_hat = np.zeros((4, 8, 8, 1), np.uint8), np.full((4, 8, 8, 1), 0.3)
    fitted = residual_tables.fit(pixels, [x0_hat])
    payload = residual_coder.encode(pixels[0], x0_hat[0], fitted, 1e-6)
    assert (residual_coder.decode(payload, x0_hat[0], fitted, 1e-6, (8, 8, 1)) == pixels[0]).all()
    assert len(payload) < 64 * 1.2


def test_tables_are_distributions_and_beat_a_normal_of_the_right_width():
    from scipy.stats import norm

    pixels, true = drawings(300)
    fitted = residual_tables.fit(pixels, [seen(true, 2.0)])
    assert fitted.frequencies.min() >= 1
    assert (fitted.frequencies.sum(2) == residual_tables.TOTAL).all()
    others, unseen = drawings(100, seed=3)
    x0_hat = seen(unseen, 2.0, seed=4)
    own = residual_tables.unguarded_bits(others, x0_hat, fitted)[0].mean() / 144
    error = others - to_grey(x0_hat)
    upper = np.where(others == 255, np.inf, error + 0.5) / error.std()
    lower = np.where(others == 0, -np.inf, error - 0.5) / error.std()
    assert own < -np.log2(norm.cdf(upper) - norm.cdf(lower) + 1e-12).mean()


def test_pixels_before_tell_of_those_after_where_errors_go_together():
    draw = np.random.default_rng(0)
    pixels = draw.integers(90, 160, (300, 8, 8, 3), np.uint8)
    shared = draw.normal(0, 4, (300, 8, 8, 1))  # of all colours
    x0_hat = (pixels + shared + draw.normal(0, 0.5, pixels.shape)) / 127.5 - 1
    fitted = residual_tables.fit(pixels[:200], [x0_hat[:200]])
    alone = replace(fitted, weights=np.zeros_like(fitted.weights))
    per_dim = [residual_tables.unguarded_bits(pixels[200:], x0_hat[200:], one).mean() / 192 for one in (fitted, alone)]
    # Two colours of three are known to within sqrt(2) 0.5 of the colour before: log2(4 / 0.7) bits less each, at most.
    assert per_dim[1] - per_dim[0] > 0.8 * 2 / 3 * math.log2(4 / 0.5**0.5)
    for image, mine in zip(pixels[200:220], x0_hat[200:220], strict=True):
        payload = residual_coder.encode(image, mine, fitted, 1e-3)
        assert (residual_coder.decode(payload, mine + 1e-3 / 127.5, fitted, 1e-3, image.shape) == image).all()
        assert len(payload) < len(residual_coder.encode(image, mine, alone, 1e-3))
    with pytest.raises(CodecError, match="weights"):
        replace(fitted, weights=np.full((1, len(residual_tables.BEFORE)), 300))


@given(st.floats(0, 255), st.floats(1e-7, 0.1), st.floats(-1, 1))
def test_a_cell_holds_every_value_within_the_guard(grey, guard, shift):
    grids = Grids.of(guard)
    value, moved = np.array([grey]), np.array([min(max(grey + shift * guard, 0), 255)])
    helper = grids.helpers(value)
    cell = grids.cells(value, helper)
    assert cell == grids.cells(moved, helper)
    assert abs(cell[0] / 8 - grey) <= 0.5 / grids.n + 1e-9


@settings(max_examples=150)
@given(st.binary(max_size=80), st.integers(0, 3))
def test_garbage_is_an_image_or_a_codec_error(table, payload, seed):
    mine = np.random.default_rng(seed).uniform(-1.2, 1.2, (5, 6, 3))
    with contextlib.suppress(CodecError):
        assert residual_coder.decode(payload, mine, table, 1e-3, (5, 6, 3)).shape == (5, 6, 3)


def test_every_truncation_and_flipped_bit_is_an_image_or_a_codec_error(table):
    pixels, true = drawings(1)
    mine = seen(true, 1.0)[0]
    payload = residual_coder.encode(pixels[0], mine, table, 1e-3)
    flipped = [bytes([*payload[:k], payload[k] ^ 1 << k % 8, *payload[k + 1 :]]) for k in range(len(payload))]
    for content in [payload[:k] for k in range(len(payload))] + flipped:
        with contextlib.suppress(CodecError):
            assert residual_coder.decode(content, mine, table, 1e-3, (12, 12, 1)).dtype == np.uint8


def test_nonsense_is_refused_before_the_coder_sees_it(table):
    image, mine = np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 1))
    for wrong in (mine + math.nan, mine + math.inf, mine[:3], mine[..., 0]):
        with pytest.raises(CodecError):
            residual_coder.encode(image, wrong, table, 1e-3)
        with pytest.raises(CodecError):
            residual_coder.decode(b"", wrong, table, 1e-3, (4, 4, 1))
    for guard in (-1.0, 1.0, math.nan):
        with pytest.raises(CodecError):
            residual_coder.encode(image, mine, table, guard)
    broken = table.frequencies.copy()
    broken[0, 0, 0] += 1
    with pytest.raises(CodecError):
        residual_tables.ResidualTable(broken, table.leaving, table.weights)


def digits(saved):
    return load("digits", saved.config.data)


@pytest.fixture(scope="module")
def measured(trained_run, tmp_path_factory):
    """A codebook of few nodes and images, as it is when it is first made: of a run that has none yet."""
    run = tmp_path_factory.mktemp("measured") / "digits"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("codec"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"NODES": 12, "IMAGES": 64, "AT_THE_END": 96, "HELD_OUT": 16}.items():
            patch.setattr(calibration, name, value)
        saved, model = open_model(run, "cpu", None)
        yield run, saved, model, codebook_of(run, saved, model, images=lambda: digits(saved))


def test_a_codebook_is_measured_once_and_is_the_same_again(measured):
    run, saved, model, book = measured
    again = codebook_of(run, saved, model, images=lambda: pytest.fail("measured twice"))
    assert again.model_id == book.model_id
    assert len(book.model_id) == 8
    assert again.profiles == book.profiles
    assert torch.equal(again.x0_var, book.x0_var)
    assert (again.residual.frequencies == book.residual.frequencies).all()
    fresh = calibration.measure(model, saved, digits(saved))
    assert fresh.model_id == book.model_id
    for profile in book.profiles.values():
        assert all(t > s for t, s in itertools.pairwise(profile.times))
        assert profile.times[-1] >= 1
        assert len(profile.counts) == len(profile.times) - 1


def test_the_canary_knows_another_network(measured):
    _, _, model, book = measured
    profile = book.profiles[calibration.DEFAULT]
    codebook.check(codebook.widened(model), book, profile)
    assert codebook.drift(codebook.widened(model), book.canary) <= 1e-9
    assert codebook.drift(model, book.canary) > 1e-9  # float32: why it is widened
    other = codebook.widened(model)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(UserError, match="grey levels"):
        codebook.check(other, book, profile)


def test_the_canary_goes_where_the_network_is(measured):
    """A device without numbers stands for one that is not the CPU."""
    _, _, model, book = measured
    elsewhere, seen = codebook.widened(model).to("meta"), []

    def look(network, arguments):
        seen.extend(one.device.type for one in arguments)
        raise InterruptedError

    elsewhere.network.register_forward_pre_hook(look)
    with pytest.raises(InterruptedError):
        codebook.drift(elsewhere, book.canary)
    assert seen == ["meta", "meta"]


def test_the_model_id_sees_weights_and_tables(measured):
    _, saved, _, book = measured
    rest = book.x0_var, book.profiles, book.residual
    name = next(iter(saved.weights))
    changed = replace(saved, weights={**saved.weights, name: saved.weights[name] + 1e-6})
    assert codebook.identity(saved, *rest) == book.model_id != codebook.identity(changed, *rest)
    assert codebook.identity(saved, book.x0_var + 1e-9, *rest[1:]) != book.model_id


def test_a_damaged_codebook_is_named(measured, tmp_path: Path):
    _, saved, _, book = measured
    folder = codebook.save(tmp_path, saved, book)
    assert folder.name == checkpoint.digest(saved)[:16]
    (folder / "codebook.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"codebook\.json"):
        codebook.load(tmp_path, saved)


def test_a_codebook_of_other_fields_or_shapes_is_named_by_its_file(measured, tmp_path: Path):
    """Under a manifest that agrees with it, as a program would write it."""
    _, saved, _, book = measured
    folder = codebook.save(tmp_path, saved, book)
    files = verified_folder.read(folder)
    document, tensors = json.loads(files["codebook.json"]), safetensors.torch.load(files["codebook.safetensors"])

    def refused(name, content):
        verified_folder.write(folder, {**files, name: content})
        with pytest.raises(UserError, match=rf"{re.escape(name)}.*from a copy of the run.*delete .* measured again"):
            codebook.load(tmp_path, saved)

    for field in document:
        rest = {name: value for name, value in document.items() if name != field}
        for changed in (rest, {**rest, field: True}, {**rest, field: [[1]]}):
            refused("codebook.json", json.dumps(changed).encode())
    for name, tensor in tensors.items():
        rest = {other: value for other, value in tensors.items() if other != name}
        longer = torch.cat([tensor.flatten(), tensor.new_zeros(1)])
        for changed in (rest, {**rest, name: longer}, {**rest, name: tensor[None].contiguous()}):
            refused("codebook.safetensors", safetensors.torch.save(changed))
    verified_folder.write(folder, files)
    assert codebook.load(tmp_path, saved).model_id == book.model_id


def test_the_rate_of_a_network_is_its_bound(measured):
    _, saved, model, _ = measured
    x0, grid = to_unit(digits(saved).train.spread(400).images).double(), log_snr(model.schedule, 8)
    x0_var = torch.zeros(model.schedule.T + 1, BUCKETS, dtype=F64)
    for t in grid[:-1]:
        x_t = model.schedule.marginal(x0, t).sample(Streams(t, "table", range(400)).normal(x0.shape[1:]))
        sums, counts = bucket_sums(model(x_t, t).x0, x0)
        x0_var[t] = (sums + 1e-6) / (counts + 1e-3)
    known = Calibrated(model, x0_var)
    mine = rate(known, x0, grid[:-1], Streams(1, "rate", range(400)))
    theirs = elbo(known, x0, grid, Ancestral(optimal), Streams(2, "rate", range(400)))
    assert float(mine.bits_per_dim.mean()) == pytest.approx(float(theirs.bits_per_dim.mean()), rel=0.01)
    steps = theirs.parts["L_1:T-1"].mean()
    assert float(mine.steps.sum(1).mean()) / 64 == pytest.approx(float(steps), rel=0.01)


def test_tiles_meet_the_network_in_parts_that_fit_and_give_the_same_file(measured, monkeypatch):
    _, saved, model, book = measured
    originals = [np.random.default_rng(0).integers(0, 255, (20, 30, 1), np.uint8), digits(saved).test.images[0]]

    def files():
        seen = []
        watched = Watched(codebook.widened(model), seen.append)
        codec = codec_of(watched, model, saved, book)
        made = codec.encode(originals, 0)
        assert watched.calls == codec.encoding_calls(originals, 0, ["a", "b"])
        assert all((one.pixels == true).all() for one, true in zip(codec.decode(made), originals, strict=True))
        return made, max(seen)

    assert [images_per_call(tiles.MOST_TILES, side, side) for side in (8, 64, 128, 256, 4096)] == [
        *(256, 256, 64, 16, 1)
    ]
    whole, most = files()
    assert most == 12
    for module in ("codec", "compress_command"):
        monkeypatch.setattr(f"ancestral.compression.{module}.images_per_call", lambda most, height, width: 5)
    parts, most = files()
    assert (parts, most) == (whole, 5)


def test_a_model_of_one_image_has_a_codebook(trained_run, monkeypatch):
    saved, model = open_model(trained_run, "cpu", None)
    for name, value in {"NODES": 6, "IMAGES": 64, "AT_THE_END": 96, "HELD_OUT": 16}.items():
        monkeypatch.setattr(calibration, name, value)
    splits = digits(saved)
    one = replace(splits, train=splits.train.spread(1), test=splits.test.spread(1))
    assert calibration.measure(model, saved, one).profiles


def test_a_model_trained_at_some_times_is_measured_at_these():
    chosen = config.resolve("x", "tiny", {"diffusion.train_steps": 100})
    times = build.spread_times(chosen, 40)
    assert set(times) <= set(build.training_grid(chosen))
    assert 20 < len(times) <= 40
    assert times[0] == 1000
    few = config.resolve("x", "tiny", {"diffusion.train_steps": 4})
    assert build.spread_times(few, 40) == [1000, 750, 500, 250]
    every = build.spread_times(config.resolve("x", "tiny", {}), 40)
    assert every == log_snr(build.schedule(chosen), 40)[:-1]
