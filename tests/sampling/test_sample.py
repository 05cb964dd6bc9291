"""Sampling: keyed images, films, starts, and the chain of q seen backwards."""

import itertools
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.data import load, pictures
from ancestral.data.dataset import DataOptions
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.denoisers.denoiser import CLIPS, Denoiser, clip_dynamic, clip_static, unclipped, within
from ancestral.diffusion.denoisers.targets import TARGETS, V
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes import streams as rng
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import Move, from_model, from_model_to_the_end, from_posterior, walk
from ancestral.diffusion.samplers.sample import film, finish, latents, sample, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, beta, fixedlarge, fixedsmall, optimal
from ancestral.errors import UserError
from ancestral.networks.unet import UNet
from ancestral.runs import build, checkpoint, compute_format, config, open
from ancestral.runs.compute_format import ComputeFormat, Lowered
from ancestral.runs.facts import Facts
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling.editor import Editor
from ancestral.sampling.sampler import Sampler

F64 = torch.float64
ORACLE = gaussian(schedules.cosine(30), torch.tensor([0.3, -0.2, 0.0], dtype=F64), 0.5)
GRID = grids.trailing(ORACLE.schedule, 10)


@pytest.mark.parametrize("transition", [Ancestral(beta), DDIM(0.0), DDIM(0.7)])
def test_an_image_does_not_depend_on_its_batch(transition):
    whole = sample(ORACLE, [3], 11, GRID, transition, seed=5, batch_size=11)
    parts = sample(ORACLE, [3], 11, GRID, transition, seed=5, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-12, rtol=0)
    one = finish(trajectory(ORACLE, latents([3], 5, [7]), GRID, transition, 5, [7]))
    assert torch.allclose(one[0], whole[7], atol=1e-12, rtol=0)
    assert not torch.allclose(whole, sample(ORACLE, [3], 11, GRID, transition, seed=6))


def test_ddim_is_a_function_of_the_latent_alone():
    start = latents([3], 0, range(4))
    a = finish(trajectory(ORACLE, start, GRID, DDIM(0.0), seed=1))
    assert torch.equal(a, finish(trajectory(ORACLE, start, GRID, DDIM(0.0), seed=2)))


def test_a_walk_can_be_cut_and_taken_up():
    start = latents([3], 0, range(4))
    steps = list(trajectory(ORACLE, start, GRID, DDIM(0.0)))
    middle = steps[4]
    rest = finish(trajectory(ORACLE, middle.x_s, GRID[5:], DDIM(0.0)))
    assert torch.equal(rest, steps[-1].x_s)
    assert torch.equal(steps[0].x_t, start)
    assert [step.t for step in steps] == GRID[:-1]
    assert [step.s for step in steps] == GRID[1:]


def test_ddim_with_eta_1_is_ancestral_with_the_small_variance():
    x, t, s = latents([3], 0, range(4)), 20, 11
    a = DDIM(1.0)(ORACLE.schedule, x, ORACLE(x, t), t, s)
    b = Ancestral(fixedsmall)(ORACLE.schedule, x, ORACLE(x, t), t, s)
    assert torch.allclose(a.mean, b.mean)
    assert torch.allclose(a.var, b.var)


def counted(predictor):
    """The predictor, and a list that grows by the time of each call."""
    calls = []

    def counting(x_t, t):
        calls.append(t)
        return predictor(x_t, t)

    counting.schedule = predictor.schedule
    return counting, calls


def test_the_consumer_decides_how_far_to_walk():
    counting, calls = counted(ORACLE)
    for step in trajectory(counting, latents([3], 0, [0]), GRID, DDIM()):
        if step.t <= 15:
            break
    assert calls == [t for t in GRID if t >= 15]


def test_a_film_holds_what_was_asked_for():
    frames = film(trajectory(ORACLE, latents([3], 0, range(2)), GRID, DDIM()), keep={GRID[0], GRID[4]})
    assert frames.t == [GRID[0], GRID[4]]
    whole = film(trajectory(ORACLE, latents([3], 0, range(2)), GRID, DDIM()))
    assert torch.equal(whole.x_t[4], frames.x_t[1])
    assert torch.equal(whole.x0[4], frames.x0[1])
    assert torch.equal(whole.final, frames.final)
    # Without noise at the last step the final image is the last predicted x0.
    assert torch.allclose(whole.final, whole.x0[-1])


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="no steps"):
        finish([])


def test_a_chain_of_q_seen_backwards_has_its_marginals():
    x0 = torch.tensor([[0.8]], dtype=F64).expand(4000, 1)
    noise = Streams(0, "q", range(4000))
    start = ORACLE.schedule.marginal(x0, 30).sample(noise.normal([1]))
    oracle = gaussian(ORACLE.schedule, torch.zeros(1, dtype=F64), 1.0)
    for step in walk(oracle, start, GRID, Ancestral(beta), from_posterior(ORACLE.schedule, x0, noise)):
        q = ORACLE.schedule.marginal(x0[:1], step.s)
        assert float(step.x_s.mean()) == pytest.approx(float(q.mean), abs=5 * float(q.var.sqrt()) / 4000**0.5 + 1e-12)
        assert float(step.x_s.var()) == pytest.approx(float(q.var), rel=0.12, abs=1e-12)


def test_streams_are_their_keys():
    a = rng.stream(0, "x", 5).standard_normal(1000)
    assert np.array_equal(a, rng.stream(0, "x", 5).standard_normal(1000))
    for other in (rng.stream(1, "x", 5), rng.stream(0, "y", 5), rng.stream(0, "x", 6)):
        assert abs(np.corrcoef(a, other.standard_normal(1000))[0, 1]) < 5 / 1000**0.5
    assert sorted(rng.permutation(50, 0, "order", 1)) == list(range(50))


def test_clips():
    x0 = torch.tensor([[0.5, -3.0, 2.0, 0.1]])
    assert clip_static(x0).tolist() == [[0.5, -1.0, 1.0, pytest.approx(0.1)]]
    big = torch.randn(3, 3, 1400, 1400, generator=torch.Generator().manual_seed(0)) * 2  # 2^24 values and more
    assert torch.equal(clip_dynamic(big)[1], clip_dynamic(big[1:2])[0])
    assert clip_dynamic(x0, quantile=1.0)[0].tolist() == pytest.approx([0.5 / 3, -1, 2 / 3, 0.1 / 3])
    calm = torch.tensor([[0.5, -0.3]])
    assert torch.equal(clip_dynamic(calm), calm)


TRANSITIONS = {"small": Ancestral(fixedsmall), "large": Ancestral(beta), "DDIM": DDIM(1)}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_no_batch_size_changes_any_image(name):
    alone = sample(ORACLE, [3], 9, GRID, TRANSITIONS[name], seed=2, batch_size=9)
    for size in (1, 2, 4, 8, 100):
        again = sample(ORACLE, [3], 9, GRID, TRANSITIONS[name], seed=2, batch_size=size)
        assert torch.allclose(again, alone, atol=1e-12, rtol=0)
    # Fewer images are the first of many, and any choice of numbers are those of the whole.
    assert torch.allclose(sample(ORACLE, [3], 4, GRID, TRANSITIONS[name], seed=2), alone[:4], atol=1e-12, rtol=0)
    chosen = [8, 1, 5]
    picked = finish(trajectory(ORACLE, latents([3], 2, chosen), GRID, TRANSITIONS[name], 2, chosen))
    assert torch.allclose(picked, alone[chosen], atol=1e-12, rtol=0)
    assert len({tuple(row) for row in alone.tolist()}) == 9


def test_a_network_in_float32_does_not_mix_images_either():
    torch.manual_seed(0)
    network = UNet(1, 1, width=8, multipliers=(1, 2), blocks=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    denoiser, grid = Denoiser(network, ORACLE.schedule, V), grids.trailing(ORACLE.schedule, 5)
    together = sample(denoiser, [1, 8, 8], 5, grid, Ancestral(beta), seed=0)
    alone = sample(denoiser, [1, 8, 8], 5, grid, Ancestral(beta), seed=0, batch_size=1)
    assert together.shape == (5, 1, 8, 8)
    assert torch.allclose(together, alone, atol=1e-4, rtol=0)


def test_a_lower_precision_is_near_and_its_output_is_float32():
    torch.manual_seed(0)
    network = UNet(1, 1, 16, (1, 2), 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model = Denoiser(network, schedules.cosine(30), V).eval().requires_grad_(requires_grad=False)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 20])
    exact = model(x, t).x0
    plain, half = (Lowered(model, ComputeFormat(one, channels_last=False), last=2) for one in ("float32", "bfloat16"))
    assert torch.equal(plain(x, t).x0, exact)
    lowered = half(x, t).x0
    assert lowered.dtype == torch.float32
    error = (lowered - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.03  # eight bits of mantissa: neither none nor much
    for late in (2, torch.tensor([2, 20])):
        assert torch.equal(half(x, late).x0, model(x, late).x0)


def low_calls(model):
    """Whether each call of the network that follows is made under autocast, as a list that grows."""
    low: list[bool] = []
    model.network.register_forward_pre_hook(lambda *_: low.append(torch.is_autocast_enabled("cpu")))
    return low


@pytest.mark.parametrize(
    ("solver", "steps", "exact"),
    [
        *((None, steps, exact) for steps, exact in ((2, 1), (4, 1), (10, 2), (20, 3))),
        *((one, steps, None) for one in ("heun", "heun-churn", "langevin", "pc") for steps in (4, 8, 10)),
    ],
)
def test_the_last_calls_of_a_walk_are_in_float32(trained_run, solver, steps, exact):
    """The others are in the precision asked for, whatever the solver; where it goes back and forth, fewer are."""
    options = SamplingOptions(steps=steps, solver=solver, precision="bfloat16")
    sampler = Sampler(trained_run, options, "cpu")
    low = low_calls(sampler.model)
    for _ in sampler.walk(range(2), {}, lambda _: None):
        pass
    assert len(low) == sampler.steps
    late = low.count(False)
    assert late >= sampler.steps // 10 + 1 if exact is None else late == exact
    assert not any(low[-(sampler.steps // 10 + 1) :])
    assert any(low)
    assert (
        sampler.notes[-1] == f"--precision bfloat16: {sampler.format}, the last {late} of {len(low)} steps in float32"
    )


def test_one_step_is_in_float32_and_says_so(trained_run):
    sampler = Sampler(trained_run, SamplingOptions(steps=1, precision="bfloat16"), "cpu")
    assert (sampler.format.precision, sampler.notes) == ("float32", [])


def test_an_edit_is_computed_in_the_precision_asked_for(trained_run):
    editor = Editor(trained_run, SamplingOptions(steps=10, precision="bfloat16"), "cpu")
    low, predictor, x = low_calls(editor.model), editor.predictor(1), editor.latents(range(1))
    for t in editor.sampler.visits[:-1]:
        predictor(x, t)
    assert low == [True] * 8 + [False] * 2


def drawing(folder, precision):
    return Sampler(folder, SamplingOptions(steps=2, precision=precision), "cpu")


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def kept(request, tmp_path):
    """A run folder; `state` of its checkpoint as given."""
    options = {"model.width": 8, "model.multipliers": [1], "model.attention": [], "train.precision": "auto"}
    configuration, facts = config.resolve("x", "tiny", options), Facts((request.param, 8, 8))
    weights = build.network(configuration, facts).state_dict()
    begun = {"total": 1, "length": "", "data": "", "seconds": 0.0, "held_out_bits": None, "complete": False}

    def keep(**state):
        document = config.to_json(configuration, facts)
        checkpoint.save(tmp_path, 1, document, weights, {}, {**begun, **state})
        return tmp_path

    return keep


def test_a_guide_whose_newest_checkpoint_is_damaged_says_which_one_guides(trained_run, command, tmp_path):
    shutil.copytree(trained_run, tmp_path / "guide")
    (tmp_path / "guide" / "checkpoints" / "999999999").mkdir()
    options = ("--num-images", 1, "--steps", 2, "--guidance", 2, "--guide", tmp_path / "guide", "--out", tmp_path / "o")
    result = command("sample", trained_run, *options)
    assert result.exit_code == 0, result.output
    said = "".join(result.output.split())
    assert "999999999" in said
    assert "thecheckpointbeforeitisused" in said


@pytest.mark.parametrize("found", compute_format.FORMATS[:4], ids=str)
def test_automatic_precision_is_what_the_runs_training_found_on_such_a_processor(kept, monkeypatch, found):
    monkeypatch.setattr(compute_format, "time_formats", lambda *_: pytest.fail("measured"))
    folder = kept(**found._asdict(), fastest_on=compute_format.processor())
    made = drawing(folder, "auto")
    assert made.format == found
    assert {key: made.settings.get(key) for key in found._fields} == {
        "precision": found.precision,
        "channels_last": found.channels_last or None,
    }
    assert drawing(folder, "float32").format == ("float32", False)


@pytest.mark.parametrize("state", [{}, {"precision": "bfloat16", "channels_last": False, "fastest_on": "another"}])
def test_automatic_precision_is_measured_where_the_run_says_nothing_of_this_processor(kept, monkeypatch, state):
    """On the run's own layers, forward only; of several processes none measures, since they choose before they meet."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    compute_format._measured_for_drawing.cache_clear()
    for found in compute_format.FORMATS[:4]:
        compute_format._measured_for_drawing.cache_clear()
        clock = lambda one, found=found: 0.1 if one == found else 0.2  # noqa: E731
        monkeypatch.setattr(compute_format, "layers_of", lambda *_, training, clock=clock: clock)
        assert drawing(kept(**state), "auto").format == found
    monkeypatch.setattr(compute_format, "layers_of", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert drawing(kept(**state), "auto").format == ("bfloat16", True)
    compute_format._measured_for_drawing.cache_clear()


@pytest.mark.parametrize("wrong", [{"precision": "load"}, {"channels_last": "no"}, {"fastest_on": 3}], ids=str)
def test_a_checkpoint_that_names_no_format_is_damaged(kept, wrong):
    with pytest.raises(UserError, match=r"state\.json: damaged"):
        drawing(kept(**wrong), "auto")


def test_latents_are_the_start_and_the_global_generators_are_left_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()
    start = latents([3], 4, range(5))
    steps = list(trajectory(ORACLE, start, GRID, Ancestral(beta), 4))
    assert torch.equal(steps[0].x_t, start)
    assert torch.equal(steps[-1].x_s, sample(ORACLE, [3], 5, GRID, Ancestral(beta), seed=4))
    assert all(torch.equal(a.x_s, b.x_t) for a, b in itertools.pairwise(steps))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)


@pytest.mark.parametrize("grid", [[17, 16, 9, 3, 0], [4, 2, 1, 0], [9, 0]], ids=str)
def test_a_walk_may_start_from_any_x_t(grid):
    """From x_t with the distribution of q(x_t), with the exact variance to the end: the data's moments, at any t."""
    count = 4000
    mean, variance = ORACLE.means[0], 0.5
    x0 = ORACLE.sample(torch.Generator().manual_seed(0), count)
    start = ORACLE.schedule.marginal(x0, grid[0]).sample(Streams(0, "noise", range(count)).normal([3]))
    draw = from_model_to_the_end(Streams(0, "reverse", range(count)))
    made = finish(walk(ORACLE, start, grid, Ancestral(optimal), draw))
    assert torch.allclose(made.mean(0), mean, atol=5 * (variance / count) ** 0.5)
    assert torch.allclose(made.var(0), torch.full((3,), variance, dtype=F64), rtol=5 * (2 / count) ** 0.5)
    # It remembers x0 as much as x_t does: Cov[x0, x0'] = signal^2 v^2 / (signal^2 v + noise^2).
    signal2, noise2 = ORACLE.schedule.alpha_bar(grid[0]), ORACLE.schedule.noise_var(grid[0])
    covariance = ((made - mean) * (x0 - mean)).mean()
    expected = signal2 * variance**2 / (signal2 * variance + noise2)
    assert float(covariance) == pytest.approx(float(expected), abs=5 * variance * (2 / (3 * count)) ** 0.5)


def test_a_walk_is_lazy():
    """Nothing is computed before it is asked for, and each step calls the predictor once at the times of the grid."""
    counting, calls = counted(ORACLE)
    steps = trajectory(counting, latents([3], 0, [0]), GRID, Ancestral(beta))
    assert calls == []
    next(steps)
    assert calls == GRID[:1]
    next(steps)
    assert calls == GRID[:2]
    steps.close()
    for name in grids.GRIDS:
        calls.clear()
        finish(trajectory(counting, latents([3], 0, [0]), grids.GRIDS[name](ORACLE.schedule, 7), DDIM()))
        assert len(calls) == len(set(calls)) == 7


@pytest.mark.parametrize("solver", ["heun", "langevin", "pc", "euler-churn", "heun-churn"])
def test_the_film_of_a_method_with_visits_of_its_own_has_a_frame_a_time(any_run, command, tmp_path, solver):
    options = ("--num-images", 1, "--steps", 6, "--film", "--out", tmp_path, "--device", "cpu", "--solver", solver)
    assert command("sample", any_run, *options).exit_code == 0
    with Image.open(tmp_path / "film.png") as shown:
        columns = (shown.width - 2) // 64
    assert 7 <= columns <= 13  # times, and the image


@pytest.mark.parametrize(
    ("options", "clip", "move"),
    [
        *((("--clip", name), clip, SOLVERS["unipc3"]) for name, clip in {**CLIPS, "own": clip_static}.items()),
        ((), unclipped, SOLVERS["unipc3"]),  # the target is v, which bounds x0
        (("--solver", "dpm++2m"), unclipped, SOLVERS["dpm++2m"]),
        (("--eta", 0.5), unclipped, DDIM(0.5)),
        (("--eta", 1), unclipped, DDIM(1.0)),
        (("--variance", "fixedsmall"), clip_static, Ancestral(fixedsmall)),
        (("--variance", "fixedlarge"), clip_static, Ancestral(fixedlarge)),
        (("--variance", "fixedlarge", "--clip", "none"), unclipped, Ancestral(fixedlarge)),
    ],
)
def test_what_is_done_to_each_predicted_image(any_run, command, tmp_path, options, clip, move):
    result = command("sample", any_run, "--num-images", 4, "--steps", 5, *options, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    saved, model = open.open_model(any_run, "cpu", None)
    model.clip = clip
    times, predictor = grids.trailing(model.schedule, 5), build.predictor(model, saved.calibration)
    images = to_bytes(sample(predictor, saved.facts.shape, 4, times, move))
    for number, image in enumerate(images):
        assert np.array_equal(np.atleast_3d(np.asarray(Image.open(tmp_path / f"{number:06d}.png"))), image)


def test_only_the_static_clip_has_a_range():
    """What stands for none and for dynamic is known by itself, as by the exports."""
    assert [within(CLIPS[name], 3.0) is CLIPS[name] for name in ("none", "static", "dynamic")] == [True, False, True]
    assert within(clip_static, 3.0)(torch.tensor([-4.0, 2.0])).tolist() == [-3, 2]


def test_a_model_of_noise_is_clipped_in_every_step(trained_run):
    saved, model = open.open_model(trained_run, "cpu", None)
    config = replace(saved.config, diffusion=replace(saved.config.diffusion, target="eps"))
    noisy = Denoiser(model.network, model.schedule, TARGETS["eps"], clip_static)
    for move in (*SOLVERS.values(), Ancestral()):
        assert build.drawing(noisy, config, move).clip is clip_static
        wanted = clip_static if isinstance(move, Ancestral) else unclipped
        assert build.drawing(model, saved.config, move).clip is wanted


def test_a_clipping_that_is_none_is_named(trained_run, command, tmp_path):
    result = command("sample", trained_run, "--steps", 5, "--clip", "hard", "--out", tmp_path)
    assert result.exit_code == 2
    assert "--clip" in result.output
    assert "static" in result.output


def test_a_film_holds_nothing_else():
    """The states of a walk are let go one by one: no more than the last few are alive while a film is made."""
    alive, most = [], 0

    def watched():
        nonlocal most
        for step in trajectory(ORACLE, latents([3], 0, range(2)), grids.full(ORACLE.schedule), DDIM()):
            alive.append(weakref.ref(step.x_s))
            most = max(most, sum(ref() is not None for ref in alive))
            yield step
            del step

    frames = film(watched(), keep=())
    assert frames.t == frames.x_t == frames.x0 == []
    assert frames.final.shape == (2, 3)
    assert len(alive) == 30
    assert most <= 4


def test_film_frames_agree_with_their_times():
    oracle_frames = film(trajectory(ORACLE, latents([3], 0, range(2)), GRID, Ancestral(beta)))
    assert oracle_frames.t == GRID[:-1]
    for t, x_t, x0 in zip(oracle_frames.t, oracle_frames.x_t, oracle_frames.x0, strict=True):
        assert torch.equal(ORACLE(x_t, t).x0, x0)
    nowhere = film(trajectory(ORACLE, latents([3], 0, range(2)), GRID, Ancestral(beta)), keep={-1})
    assert torch.equal(nowhere.final, oracle_frames.final)


def test_the_chain_of_q_has_the_joint_moments_of_the_forward_process():
    """Cov[x_t, x_s | x0] = signal_t / signal_s noise_s^2, between neighbours and from one end to the other."""
    count = 20_000
    x0 = torch.tensor([[0.8]], dtype=F64).expand(count, 1)
    noise, made, grid = Streams(3, "q", range(count)), ORACLE.schedule, [28, 19, 8, 2]
    start = made.marginal(x0, 28).sample(noise.normal([1]))
    oracle = gaussian(made, torch.zeros(1, dtype=F64), 1.0)
    states = {28: start}
    fresh = Streams(3, "q", range(count))
    fresh.normal([1])  # the start's
    for step in walk(oracle, start, grid, Ancestral(beta), from_posterior(made, x0, noise)):
        states[step.s] = step.x_s
        # A step is Eq. 7 and its own noise, exactly: beta~ and mu~ for a stride, in the paper's symbols.
        ab, before = made.alpha_bar(step.t), made.alpha_bar(step.s)
        stride = 1 - ab / before
        mu = before.sqrt() * stride / (1 - ab) * x0 + (1 - stride).sqrt() * (1 - before) / (1 - ab) * step.x_t
        assert torch.allclose(step.x_s, mu + (stride * (1 - before) / (1 - ab)).sqrt() * fresh.normal([1]))
    for t, s in itertools.combinations(grid, 2):
        scale_t, scale_s = made.noise(t), made.noise(s)
        z_t, z_s = (states[t] - made.signal(t) * 0.8) / scale_t, (states[s] - made.signal(s) * 0.8) / scale_s
        expected = made.signal(t) / made.signal(s) * scale_s / scale_t
        assert float((z_t * z_s).mean()) == pytest.approx(float(expected), abs=5 * (2 / count) ** 0.5)


def test_large_keys_keep_their_low_bits(monkeypatch):
    def first(of):
        monkeypatch.setattr(rng, "key", lambda *parts: of)
        return rng.stream(0, "a", 3).random()

    assert first(2**64 - 2) != first(2**64 - 1)


def test_numbers_across_streams_are_standard_normal():
    """One number from each of many keys: mean, variance, and the Kolmogorov distance to the normal's CDF."""
    count = 20_000
    z = Streams(0, "latent", range(count)).normal([]).sort().values
    assert abs(float(z.mean())) < 4 / count**0.5
    assert float(z.var()) == pytest.approx(1, abs=4 * (2 / count) ** 0.5)
    rank = torch.arange(count, dtype=F64)
    cdf = torch.special.ndtr(z)
    assert float(torch.maximum(cdf - rank / count, (rank + 1) / count - cdf).max()) < 1.95 / count**0.5


def test_streams_of_other_keys_are_uncorrelated():
    """Number n against n + 1, a purpose against another, a seed against another: over many keys, not within one."""
    count = 20_000
    z = Streams(0, "latent", range(count)).normal([])
    others = {
        "next number": Streams(0, "latent", range(1, count + 1)).normal([]),
        "purpose": Streams(0, "reverse", range(count)).normal([]),
        "seed": Streams(1, "latent", range(count)).normal([]),
        "swapped": Streams(0, "0", range(count)).normal([]),
    }
    for name, other in others.items():
        assert abs(float((z * other).mean())) < 4 / count**0.5, name
        assert abs(float((z.square() * other.square()).mean()) - 1) < 4 * 8**0.5 / count**0.5, name


def test_a_stream_goes_on_where_it_was():
    whole = Streams(0, "x", [3, 4]).normal([5])
    parts = Streams(0, "x", [3, 4])
    assert torch.equal(torch.cat([parts.normal([2]), parts.normal([3])], 1), whole)
    assert torch.equal(Streams(0, "x", [4, 3]).normal([5]), whole.flip(0))
    u = Streams(0, "u", range(1000)).uniform()
    assert bool(((u >= 0) & (u < 1)).all())


def test_permutations_are_their_keys_and_fair():
    assert np.array_equal(rng.permutation(50, 0, "order", 1), rng.permutation(50, 0, "order", 1))
    for other in (rng.permutation(50, 0, "order", 2), rng.permutation(50, 1, "order", 1)):
        assert not np.array_equal(rng.permutation(50, 0, "order", 1), other)
    first = np.bincount([rng.permutation(4, 0, "order", n)[0] for n in range(4000)])
    assert abs(first - 1000).max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_the_last_draw():
    """Algorithm 2 adds no noise at the last step; the bound's chain does, and a variance of 0 draws nothing."""
    x, numbers = torch.ones(4, 3, dtype=F64), range(4)
    quiet, noisy = from_model(Streams(0, "a", numbers)), from_model_to_the_end(Streams(0, "a", numbers))
    for t, s in ((5, 3), (3, 0)):
        p = Ancestral(beta)(ORACLE.schedule, x, ORACLE(x, t), t, s)
        move = Move(t, s, x, ORACLE(x, t), p)
        expected = p.mean + p.var.sqrt() * Streams(0, "a", numbers).normal([6])[:, (0 if s else 3) : (3 if s else 6)]
        assert torch.allclose(noisy(move), expected)
        assert torch.allclose(quiet(move), expected if s else p.mean)
    streams = Streams(0, "b", numbers)
    p = DDIM(0.0)(ORACLE.schedule, x, ORACLE(x, 5), 5, 3)
    assert torch.equal(from_model(streams)(Move(5, 3, x, ORACLE(x, 5), p)), p.mean)
    assert torch.equal(streams.normal([1]), Streams(0, "b", numbers).normal([1]))


@pytest.mark.parametrize("name", grids.GRIDS)
@pytest.mark.parametrize("steps", [0, -1, 11])
def test_a_grid_of_no_or_too_many_steps_is_one_line(name, steps):
    with pytest.raises(ValueError, match=f"steps must be between 1 and T = 10, got {steps}"):
        grids.GRIDS[name](schedules.linear(10), steps)


def test_an_array_holds_the_images_of_the_files_and_is_read_as_data(any_run, command, tmp_path):
    def drawn(folder, *more, seed=0):
        options = ("--steps", 3, "--seed", seed, "--batch-size", 2, "--out", tmp_path / folder, "--device", "cpu")
        result = command("sample", any_run, "--num-images", 5, *options, *more)
        assert result.exit_code == 0, result.output

    drawn("files")
    files = np.stack([pictures.read_png(tmp_path / "files" / f"{number:06d}.png") for number in range(5)])
    drawn("array", "--array")
    found = np.load(tmp_path / "array" / "images.npy")
    assert found.dtype == np.uint8
    assert np.array_equal(found, files)
    assert sorted(path.name for path in (tmp_path / "array").iterdir() if path.name[0] != ".") == [
        "grid.png",
        *(["images.labels.npy"] if checkpoint.open_run(any_run)[0].config.model.labels else []),
        "images.npy",
    ]
    assert (tmp_path / "array" / "grid.png").read_bytes() == (tmp_path / "files" / "grid.png").read_bytes()
    for name in ("array/images.npy", "files"):
        read = load.load(str(tmp_path / name), DataOptions())
        assert len(read.train) + len(read.test) == 5
    shutil.rmtree(next((tmp_path / "array" / ".job").glob("00000002-*")))
    drawn("array", "--array")  # the piece that is missing is drawn again
    assert np.array_equal(np.load(tmp_path / "array" / "images.npy"), files)
    kept = np.load(tmp_path / "array" / "images.npy", mmap_mode="r")
    drawn("array", "--array", seed=1)
    assert not np.array_equal(np.load(tmp_path / "array" / "images.npy"), files)
    assert np.array_equal(kept, files)  # another file took its name
