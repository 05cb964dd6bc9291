"""Edits against what is known: conditionals, ends of interpolations, orders of convergence; and the commands."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from ancestral.diffusion.denoisers.analytic import Correlated, Mixture, gaussian
from ancestral.diffusion.denoisers.denoiser import Watched
from ancestral.diffusion.editing.edits import Resampled, below, inverted, known_region, mix, slerp
from ancestral.diffusion.editing.inverse_problems import METHODS
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import from_model, from_model_to_the_end, walk
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, fixedsmall, optimal
from ancestral.runs.open import open_model
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling import edit_command
from ancestral.sampling.editor import Editor, FileEditor, Sources
from conftest import TINY, run_command

F64 = torch.float64


class Noise:
    """Streams for many rows at once."""

    def __init__(self, rows, seed=0):
        self.rows, self.generator = rows, torch.Generator().manual_seed(seed)

    def normal(self, shape):
        return torch.randn(self.rows, *shape, dtype=F64, generator=self.generator)


SHARES = 0.9
PAIR = Correlated(
    schedules.cosine(200), torch.zeros(2, dtype=F64), torch.tensor([[0.5, 0.5 * SHARES], [0.5 * SHARES, 0.5]]).double()
)


def inpainted(method, count=4000, value=0.8):
    """The second of two correlated values, drawn where the first is known."""
    x0, known = torch.tensor([[value, math.nan]], dtype=F64).expand(count, -1), torch.tensor([True, False])
    draw = known_region(PAIR.schedule, x0, known, Noise(count, 1), from_model(Noise(count, 2)))
    start = Noise(count, 3).normal([2])
    return finish(walk(PAIR, start, grids.trailing(PAIR.schedule, 50), method, draw))


def test_repaint_comes_to_the_conditional_as_resamples_grow():
    """x2 | x1 = a is N(rho a, (1 - rho^2) 0.5): the plain composite misses it, with more resamples by less."""
    mean, variance = SHARES * 0.8, (1 - SHARES**2) * 0.5
    errors = []
    for resamples in (1, 4, 16):
        x0 = inpainted(Resampled(Ancestral(fixedsmall), jump=5, resamples=resamples))
        assert bool((x0[:, 0] == 0.8).all())
        errors.append(abs(float(x0[:, 1].mean()) - mean))
    standard_error = (variance / 4000) ** 0.5
    assert errors[0] > 10 * standard_error
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def published_path(steps, jump, resamples):
    """RePaint's own schedule as levels of the walk (its appendix B, Algorithm 1 with jumps)."""
    left = dict.fromkeys(range(0, steps - jump, jump), resamples - 1)
    level, path = steps, [steps]
    while level >= 1:
        level -= 1
        path.append(level)
        if left.get(level, 0) > 0:
            left[level] -= 1
            for _ in range(jump):
                level += 1
                path.append(level)
    return path


@pytest.mark.parametrize(("jump", "resamples"), [(1, 3), (3, 2), (5, 4), (10, 1)])
def test_the_walk_is_the_published_one_with_its_way_up_in_one_step(jump, resamples):
    grid = grids.trailing(PAIR.schedule, 12)
    _, visits = Resampled(DDIM(), jump, resamples).begin(PAIR.schedule, grid)
    path = published_path(12, jump, resamples)
    # A network is called where the published walk goes down from.
    calls = [grid[12 - one] for one, after in itertools.pairwise(path) if after < one]
    assert list(visits) == [*calls, 0]


def test_a_jump_keeps_the_law_of_the_walk():
    """With exact variances every step keeps q(x_s), and so does the forward process: resampling changes nothing."""
    oracle = gaussian(schedules.cosine(50), torch.tensor([0.3], dtype=F64), 0.25)
    method = Resampled(Ancestral(optimal), jump=4, resamples=3)
    step, visits = method.begin(oracle.schedule, grids.trailing(oracle.schedule, 17))
    signal, noise_var = oracle.schedule.signal(visits[0]), oracle.schedule.noise_var(visits[0])
    mean, variance = signal * 0.3, signal**2 * 0.25 + noise_var
    probes, rises = torch.tensor([[0.0], [1.0]], dtype=F64), 0
    for t, s in itertools.pairwise(visits):
        p = step(oracle.schedule, probes, oracle(probes, t), t, s)
        slope = p.mean[1, 0] - p.mean[0, 0]
        mean, variance = p.mean[0, 0] + slope * mean, slope**2 * variance + p.var[0, 0]
        rises += s > t
    assert rises > 5
    assert float(mean) == pytest.approx(0.3, abs=1e-9)
    assert float(variance) == pytest.approx(0.25, abs=1e-9)


@pytest.mark.parametrize(("jump", "resamples"), [(0, 2), (-1, 2), (2, 0)])
def test_what_would_have_no_end_is_refused(jump, resamples):
    with pytest.raises(ValueError, match="both are 1 or more"):
        Resampled(Ancestral(fixedsmall), jump, resamples).begin(schedules.linear(10), list(range(10, -1, -1)))


def test_a_jump_longer_than_the_walk_is_refused():
    with pytest.raises(ValueError, match="jump of 10"):
        Resampled(DDIM(), jump=10, resamples=2).begin(PAIR.schedule, grids.trailing(PAIR.schedule, 10))


@pytest.mark.parametrize("solver", ["euler-ancestral", "unipc3", "heun"])
def test_sdedit_from_the_top_is_sampling_and_from_the_bottom_the_image(solver):
    grid = grids.trailing(PAIR.schedule, 20)
    assert below(PAIR.schedule, grid, 200) == grid
    x0 = torch.tensor([[0.5, 0.4], [-0.3, -0.6]], dtype=F64)
    eps = latents([2], 0, range(2))
    moved = []
    for t in (1, 20, 150):
        start = PAIR.schedule.marginal(x0, t).sample(eps)
        back = finish(trajectory(PAIR, start, below(PAIR.schedule, grid, t), SOLVERS[solver]))
        moved.append(float((back - x0).norm()))
    assert moved[0] < 3 * float(PAIR.schedule.noise(1)) * float(eps.norm())
    assert moved[0] < moved[1] < moved[2]
    for t in (0, 201):
        with pytest.raises(ValueError, match="between 1 and T"):
            below(PAIR.schedule, grid, t)


def test_sdedit_keeps_the_law_of_the_data():
    """Data noised to any t and taken back by exact steps are data again."""
    oracle = gaussian(schedules.cosine(100), torch.tensor([0.3], dtype=F64), 0.25)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 4000)
    times = below(oracle.schedule, grids.trailing(oracle.schedule, 25), 60)
    start = oracle.schedule.marginal(x0, 60).sample(Noise(4000, 1).normal([1]))
    back = finish(walk(oracle, start, times, Ancestral(optimal), from_model_to_the_end(Noise(4000, 2))))
    assert float(back.mean()) == pytest.approx(0.3, abs=5 * 0.5 / 4000**0.5)
    assert float(back.var()) == pytest.approx(0.25, abs=5 * 0.25 * (2 / 4000) ** 0.5)


MODES = Mixture(
    schedules.linear_log_snr(2048, 10, -8),
    torch.tensor([[-0.7, 0.2], [0.6, -0.5]], dtype=F64),
    torch.tensor([0.05, 0.1], dtype=F64),
)


def test_inversion_comes_back_at_order_one():
    x0 = MODES.sample(torch.Generator().manual_seed(0), 20)
    errors = []
    for steps in (64, 128, 256, 512):
        grid = grids.log_snr(MODES.schedule, steps)
        back = finish(walk(MODES, inverted(MODES, x0, grid), grid, DDIM(0.0), lambda move: move.p.mean))
        errors.append(float((back - x0).square().mean().sqrt()))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(1, abs=0.2), (errors, orders)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_inversion_is_finite_for_every_schedule_and_near_a_normal_latent(name):
    oracle = gaussian(schedules.SCHEDULES[name](200), torch.tensor([0.3, -0.2], dtype=F64), 0.25)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 500)
    z = inverted(oracle, x0, grids.full(oracle.schedule))
    assert torch.isfinite(z).all()
    assert float(z.var()) == pytest.approx(1, abs=0.3)


def test_the_ends_of_a_mixture_are_the_images():
    a, b = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    for way in (mix, slerp):
        assert torch.allclose(way(a, b, 0.0), a)
        assert torch.allclose(way(a, b, 1.0), b)
        assert torch.allclose(way(a, a, 0.3), a)
    shares = torch.tensor([0.0, 1.0, 0.5, 0.5]).double().reshape(4, 1, 1)
    assert torch.allclose(mix(a, b, shares)[:2], torch.stack([a[0], b[1]]))


def test_a_great_circle_keeps_the_length():
    a, b = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0)).double()
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    whole = (a * b).sum(1).acos()
    for share in (0.2, 0.5, 0.9):
        between = slerp(a, b, share)
        assert torch.allclose(between.norm(dim=1), torch.ones(4).double())
        assert torch.allclose((a * between).sum(1).acos(), share * whole)
    assert torch.isfinite(slerp(a, a, 0.5)).all()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two images of 8x8, one of another size, one halved, masks."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:7] = 255
    made = {
        "a": random.integers(0, 256, (8, 8), dtype=np.uint8),
        "b": random.integers(0, 256, (8, 8), dtype=np.uint8),
        "wide": random.integers(0, 256, (8, 12), dtype=np.uint8),
        "half": random.integers(0, 256, (4, 4), dtype=np.uint8),
        "mask": mask,
        "black": mask * 0,
        "white": mask * 0 + 255,
        "small-mask": mask[:4],
    }
    for name, pixels in made.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def edit(trained_run, command, pictures, tmp_path):
    """Run `ancestral edit VERB RUN ...`, names ending in .png among the pictures."""

    def run(verb, *arguments, out="sheet.png"):
        named = [pictures / one if str(one).endswith(".png") else one for one in arguments]
        return command("edit", verb, trained_run, *named, "--out", tmp_path / out, "--device", "cpu")

    return run


def read(path):
    return np.asarray(Image.open(path)).astype(int)


def test_inpainting_keeps_what_is_known_to_the_byte(edit, pictures, tmp_path):
    result = edit("inpaint", "a.png", "b.png", "--mask", "mask.png", "--steps", 8, "--jump", 2, "--num-images", 2)
    assert result.exit_code == 0, result.output
    drawn = read(pictures / "mask.png") > 0
    results = [read(tmp_path / "sheet" / f"{row:03d}-{variant:03d}.png") for row in (0, 1) for variant in (0, 1)]
    for image, name in zip(results, ("a", "a", "b", "b"), strict=True):
        assert np.array_equal(image[~drawn], read(pictures / f"{name}.png")[~drawn])
        assert not np.array_equal(image[drawn], read(pictures / f"{name}.png")[drawn])
    assert not np.array_equal(results[0], results[1])
    assert str(tmp_path / "sheet.png") in result.output.replace("\n", "")


def test_an_edit_does_not_depend_on_the_batch_or_on_how_many(edit, tmp_path):
    for out, more in (("one.png", ("--num-images", 1)), ("two.png", ("--num-images", 3, "--batch-size", 2))):
        assert edit("vary", "a.png", "b.png", "--steps", 6, "--at", 30, *more, out=out).exit_code == 0
    for row in (0, 1):
        alone, among = (read(tmp_path / name / f"00{row}-000.png") for name in ("one", "two"))
        assert np.abs(alone - among).max() <= 1


@pytest.mark.parametrize("encoder", ["noise", "shared", "inversion"])
def test_interpolation_goes_from_one_image_to_the_other(edit, pictures, tmp_path, encoder):
    result = edit("interpolate", "a.png", "b.png", "--frames", 3, "--encoder", encoder, "--at", 1, "--steps", 1000)
    assert result.exit_code == 0, result.output
    first, last = (read(tmp_path / "sheet" / f"000-00{frame}.png") for frame in (0, 2))
    for image, name in ((first, "a"), (last, "b")):
        assert np.abs(image - read(pictures / f"{name}.png")).mean() < 12


@pytest.fixture
def starts(monkeypatch):
    """(x_t, times) from which images are drawn."""
    found, drawn = [], Editor.trajectory

    def recorded(editor, predictor, start, times, numbers):
        found.append((start, list(times)))
        return drawn(editor, predictor, start, times, numbers)

    monkeypatch.setattr(Editor, "trajectory", recorded)
    return found


@pytest.mark.parametrize("encoder", ["noise", "shared", "inversion"])
def test_the_states_between_two_images_are_mixed_as_the_encoder_says(edit, starts, pictures, trained_run, encoder):
    """x_t = (1 - share) x_t^A + share x_t^B, of own noise or both of one; by inversion along a great circle."""
    frames, at = 5, 400
    result = edit("interpolate", "a.png", "b.png", "--frames", frames, "--encoder", encoder, "--at", at, "--steps", 20)
    assert result.exit_code == 0, result.output
    ((states, times),) = starts
    assert times[0] == at
    first, last, shares = states[0], states[-1], torch.linspace(0, 1, frames, dtype=F64).reshape(-1, 1, 1, 1)
    if encoder == "inversion":
        angle = torch.nn.functional.cosine_similarity(first.flatten(), last.flatten(), dim=0).acos()
        expected = (((1 - shares) * angle).sin() * first + (shares * angle).sin() * last) / angle.sin()
        assert float(angle) > 0.3
    else:
        expected = (1 - shares) * first + shares * last
        schedule = open_model(trained_run, "cpu", None)[1].schedule
        noise = [
            (state - schedule.signal(at) * unit(pictures / f"{name}.png")[0]) / schedule.noise(at)
            for state, name in ((first, "a"), (last, "b"))
        ]
        assert torch.allclose(*noise, atol=1e-6) == (encoder == "shared")
        for one in noise:
            assert float(one.std()) == pytest.approx(1, abs=4 / 128**0.5)
    assert torch.allclose(states, expected, atol=1e-5)


@pytest.mark.parametrize(("resamples", "jump", "calls"), [(1, 2, 8), (3, 2, 8 + 3 * 2 * 2), (2, 4, 8 + 4)])
def test_a_stretch_is_walked_as_often_as_asked_for(edit, monkeypatch, resamples, jump, calls):
    """Each time up again costs as many calls as it has steps; of 8 steps the first `jump` are not gone up again."""
    asked, whole = [], Editor.predictor

    def counted(editor, count):
        return Watched(whole(editor, count), asked.append)

    monkeypatch.setattr(Editor, "predictor", counted)
    options = ("--mask", "mask.png", "--steps", 8, "--jump", jump, "--resamples", resamples)
    result = edit("inpaint", "a.png", *options)
    assert result.exit_code == 0, result.output
    assert len(asked) == calls


METHOD_NAMES = ["ddrm", "ddnm", "pigdm", "mmps", "dps"]
A_BYTE = (1 / 255) ** 2 / 3  # the variance of rounding to one, on [-1, 1]


@pytest.fixture
def observations(monkeypatch):
    """What each method is given to undo, by its name; all draw what they would."""
    found = {}
    for name, method in METHODS.items():

        def recorded(predictor, seen, noise, clip, name=name, guide=method.guide):
            found[name] = seen
            return guide(predictor, seen, noise, clip)

        monkeypatch.setitem(METHODS, name, method._replace(guide=recorded))
    return found


def unit(path):
    return torch.from_numpy(read(path) / 127.5 - 1)[None, None]


@pytest.mark.parametrize(
    ("options", "damaged"),
    [
        (("deblur",), lambda x: ndimage.gaussian_filter(x, 1.5, axes=(2, 3), mode="reflect", truncate=4)),
        (("deblur", "--blur", 0.7), lambda x: ndimage.gaussian_filter(x, 0.7, axes=(2, 3), mode="reflect", truncate=4)),
        (("super-resolution",), lambda x: x.reshape(1, 1, 4, 2, 4, 2).mean((3, 5))),
        (("super-resolution", "--factor", 4), lambda x: x.reshape(1, 1, 2, 4, 2, 4).mean((3, 5))),
    ],
    ids=["deblur", "deblur 0.7", "half", "a quarter"],
)
def test_an_image_is_damaged_as_the_options_say(edit, observations, pictures, options, damaged):
    result = edit("restore", "a.png", "--task", *options, "--method", "ddnm", "--steps", 2)
    assert result.exit_code == 0, result.output
    (seen,) = observations.values()
    expected = torch.as_tensor(damaged(unit(pictures / "a.png").numpy()))
    assert torch.allclose(seen.y, expected, atol=1 / 255 + 1e-9)
    assert seen.y_var == pytest.approx(A_BYTE)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_method_named_is_told_of_the_noise(edit, observations, pictures, method):
    """Values near the ends are rounded to a byte there, as in a file: the noise of the others has its law."""
    options = ("--task", "missing", "--missing", 0, "--noise", 0.2, "--method", method, "--steps", 2)
    result = edit("restore", "a.png", "b.png", *options)
    assert result.exit_code == 0, result.output
    assert list(observations) == [method]
    seen, x0 = observations[method], torch.cat([unit(pictures / f"{name}.png") for name in "ab"])
    assert seen.y_var == pytest.approx(0.04 + A_BYTE)
    away = (seen.y - x0)[x0.abs() < 0.4]
    assert float(away.std()) == pytest.approx(0.2, rel=4 / (2 * len(away)) ** 0.5)
    assert abs(float(away.mean())) < 4 * 0.2 / len(away) ** 0.5


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_the_share_that_is_missing_is_missing(edit, observations, share):
    options = ("--task", "missing", "--missing", share, "--method", "ddnm", "--steps", 2)
    assert edit("restore", "a.png", *options).exit_code == 0
    seen = observations["ddnm"].operator(torch.ones(1, 1, 8, 8))
    assert float((seen == 0).float().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 64) ** 0.5)


def test_a_psnr_is_the_mean_of_its_images(edit, pictures, tmp_path):
    """10 log10(2^2 / mse) dB of each image on [-1, 1], whose mean is not the PSNR of the mean error."""
    options = ("--task", "missing", "--mask", "mask.png", "--steps", 4, "--clip", "static", "--num-images", 2)
    result = edit("restore", "a.png", "b.png", *options)
    assert result.exit_code == 0, result.output

    def decibels(error):
        return 10 * math.log10(4 / float(error.square().mean()))

    found, of_mean, damaged = [], [], []
    for row, name in enumerate("ab"):
        x0 = unit(pictures / f"{name}.png")
        drawn = [unit(tmp_path / "sheet" / f"00{row}-00{variant}.png") for variant in (0, 1)]
        found += [decibels(one - x0) for one in drawn]
        of_mean.append(decibels(sum(drawn) / 2 - x0))
        damaged.append(decibels(torch.where(torch.from_numpy(read(pictures / "mask.png") > 0), x0, 0.0)))
    line = next(line for line in result.output.splitlines() if line.startswith("PSNR"))
    shown = [float(value) for value in re.findall(r"([\d.]+) dB", line)]
    assert shown == pytest.approx([sum(one) / len(one) for one in (found, of_mean, damaged)], abs=0.02)


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.png", "--task", "super-resolution", "--factor", 4),
        ("half.png", "--task", "super-resolution", "--degraded"),
        ("a.png", "--task", "deblur", "--noise", 0.1),
        ("wide.png", "--task", "deblur", "--degraded", "--fit"),
        ("a.png", "b.png", "--task", "missing", "--mask", "mask.png", "--degraded"),
    ],
)
def test_every_restoration_from_the_command(edit, tmp_path, arguments):
    result = edit("restore", *arguments, "--steps", 4, "--num-images", 2)
    assert result.exit_code == 0, result.output
    assert ("PSNR" in result.output) == ("--degraded" not in arguments)
    assert read(tmp_path / "sheet" / "000-001.png").shape == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("inpaint", "wide.png", "--mask", "mask.png"), "wide.png: 8x12 pixels, here they must be 8x8; give --fit"),
        (("inpaint", "a.png", "--mask", "small-mask.png"), "small-mask.png: 4x8 pixels"),
        (("inpaint", "a.png", "--mask", "black.png"), "nothing is white"),
        (("inpaint", "a.png", "--mask", "white.png"), "nothing is kept"),
        (("inpaint", "a.png", "--mask", "no.png"), "no.png: cannot be read"),
        (("inpaint", "a.png", "--mask", "mask.png", "--solver", "unipc3"), "--solver"),
        (("inpaint", "a.png", "--mask", "mask.png", "--jump", 9, "--steps", 5), "--jump"),
        (("interpolate", "a.png", "b.png", "--encoder", "vae"), "--encoder"),
        (("interpolate", "a.png", "b.png", "--at", 5000), "--at: t must be between 1 and T"),
        (("vary", "a.png", "--at", 5, "--strength", 0.5), "--at and --strength exclude each other"),
        (("vary", "a.png", "--label", "3"), "--label"),
        (("vary", "a.png", "--steps", 5, "--num-images", 0), "--num-images"),
        (("restore", "a.png", "--task", "enlarge"), "--task"),
        (("restore", "a.png", "--task", "deblur", "--method", "dip"), "--method"),
        (("restore", "a.png", "--task", "colour"), "3 channels"),
        (("restore", "a.png", "--task", "super-resolution", "--factor", 3), "does not divide 8x8"),
        (("restore", "a.png", "--task", "super-resolution", "--degraded"), "must be 4x4"),
        (("restore", "a.png", "--task", "missing", "--degraded"), "--mask"),
        (("restore", "a.png", "--task", "deblur", "--mask", "mask.png"), "--task is deblur"),
        (("restore", "a.png", "--task", "deblur", "--solver", "heun"), "steps of its own"),
    ],
)
def test_a_mistake_is_one_line(edit, arguments, says):
    result = edit(*arguments)
    assert result.exit_code == 2
    message = result.output.splitlines()[-1]
    assert says in message
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("inpaint", "a.png", "--mask", "mask.png"),
        ("interpolate", "a.png", "b.png", "--frames", 2, "--encoder", "inversion"),
        ("vary", "a.png"),
        ("restore", "a.png", "--task", "deblur"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_cannot_be_written_is_refused_before_it_is_drawn(edit, tmp_path, monkeypatch, arguments):
    for work in ("draw_variants", "predictor"):
        monkeypatch.setattr(Editor, work, lambda *given: pytest.fail("worked before it looked"))
    (tmp_path / "sheet").mkdir()
    (tmp_path / "sheet" / "000-000.png").write_bytes(b"another's")
    result = edit(*arguments)
    assert (result.exit_code, "is there already" in result.output) == (2, True), result.output
    (tmp_path / "folder.png").mkdir()
    result = edit(*arguments, out="folder.png")
    assert (result.exit_code, "folder.png: cannot be written" in result.output) == (2, True), result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "sheet"]


def test_an_edit_begins_where_the_model_was_trained(command, pictures, tmp_path):
    run = tmp_path / "run"
    few = ("--set", "diffusion.train_steps=10", "--steps", 1, "--out", run, *TINY)
    assert command("train", "digits", "--preset", "tiny", *few).exit_code == 0
    vary = ("edit", "vary", run, pictures / "a.png", "--device", "cpu", "--out", tmp_path / "sheet.png")
    result = command(*vary, "--at", 130)
    message = "--at: the model was trained at 10 times only, not at 130; the nearest is 100"
    assert (result.exit_code, message in " ".join(result.output.split())) == (2, True), result.output
    for begin in (("--at", 100), ("--strength", 0.13)):
        result = command(*vary, *begin)
        assert result.exit_code == 0, result.output
    sources = Sources([pictures / "a.png"], False, tmp_path / "sheet.png", 1, "cpu")
    editor = FileEditor(run, SamplingOptions(), sources, 10)
    assert edit_command._below(editor, None, 0.13) == [100, 0]
    assert edit_command._below(editor, None, 0.0) == [100, 0]


def test_the_sheet_is_a_png(edit):
    result = edit("vary", "a.png", out="sheet.jpg")
    assert result.exit_code == 2
    assert "does not end with .png" in result.output


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory):
    """A run of two updates on random colours of two classes."""
    folder = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 8)):
        for number in range(count):
            path = folder / "data" / split / ("red", "blue")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    run = folder / "run"
    data = folder / "data" / "train"
    options = ("--preset", "tiny", "--steps", 2, "--set", "model.labels=true", "--out", run)
    result = run_command("train", data, *options, *TINY)
    assert result.exit_code == 0, result.output
    return run, next((folder / "data" / "test" / "red").iterdir())


def test_colours_come_back_to_the_grey_that_was_seen(colour_run, command, tmp_path):
    run, image = colour_run
    rest = (
        "--task",
        "colour",
        "--method",
        "ddnm",
        "--label",
        "red",
        "--steps",
        5,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out.png",
    )
    result = command("edit", "restore", run, image, *rest)
    assert result.exit_code == 0, result.output
    drawn, seen = Image.open(tmp_path / "out" / "000-000.png"), Image.open(image)
    assert drawn.mode == "RGB"
    assert np.abs(np.asarray(drawn).astype(int) - np.asarray(seen)).mean() > 10
    assert np.abs(np.asarray(drawn.convert("L")).astype(int) - np.asarray(seen.convert("L"))).mean() < 4
    seen.convert("L").save(tmp_path / "grey.png")
    result = command("edit", "restore", run, tmp_path / "grey.png", "--degraded", *rest)
    assert result.exit_code == 0, result.output


def test_a_model_of_classes_asks_for_one(colour_run, command, tmp_path):
    run, image = colour_run
    asked = {(): "name the one of the images: blue, red", ("--label", "green"): "--label: no class 'green'"}
    for label, answer in asked.items():
        result = command("edit", "vary", run, image, *label, "--device", "cpu", "--out", tmp_path / "out.png")
        assert result.exit_code == 2
        assert answer in result.output


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_what_is_painted_where_nothing_was_seen_changes_nothing(edit, pictures, tmp_path, method):
    mask, image = np.zeros((8, 8), np.uint8), read(pictures / "a.png").astype(np.uint8)
    mask[2:5, 2:5] = 255
    Image.fromarray(mask).save(pictures / "unseen.png")
    found = []
    for name, colour in (("black", 0), ("white", 255)):
        Image.fromarray(np.where(mask > 0, colour, image).astype(np.uint8)).save(pictures / f"{name}-box.png")
        options = ("--task", "missing", "--mask", "unseen.png", "--degraded", "--method", method, "--steps", 4)
        result = edit("restore", f"{name}-box.png", *options, out=f"{name}.png")
        assert result.exit_code == 0, result.output
        found.append(read(tmp_path / name / "000-000.png"))
    assert np.array_equal(*found)
