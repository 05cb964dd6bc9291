"""The baselines of benchmarks/generators.py compute what they say, and what the report needs is in the package."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.processes.levels import value_of
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams

FOLDER = Path(__file__).parent.parent / "benchmarks" / "baselines"
SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def baselines():
    spec = importlib.util.spec_from_file_location(
        "baselines", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["baselines"] = module
    spec.loader.exec_module(module)
    return module


def shaken(network):
    """In float64 and with no weight at its start, where layers are zero and maps the identity."""
    torch.manual_seed(0)
    network.double().eval().requires_grad_(False)
    for value in network.parameters():
        value.add_(0.2 * torch.randn_like(value))
    return network


@pytest.fixture(scope="module")
def flow(baselines):
    return shaken(baselines.Flow(SHAPE, steps=(2, 3), width=8))


@pytest.fixture(scope="module")
def vae(baselines):
    return shaken(baselines.Vae(SHAPE, latent=1, width=16))


def test_the_flow_is_invertible(flow):
    y = torch.randn(5, *SHAPE).double()
    z, _ = flow.encode(y)
    assert not torch.allclose(z, y.flatten(1), atol=0.1)
    assert torch.allclose(flow.decode(z), y, atol=1e-9)


def test_the_flows_determinant_is_that_of_its_jacobian(flow):
    y = torch.randn(3, *SHAPE).double()
    _, found = flow.encode(y)
    for one, determinant in zip(y, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: flow.encode(v.reshape(1, *SHAPE))[0][0], one.flatten())
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], determinant, atol=1e-9)


def test_the_flows_density_is_of_values_on_the_unit_cube(baselines, flow):
    edge = sys.modules["baselines.flow"].EDGE

    def normal(share):
        return flow.encode((edge + (1 - 2 * edge) * share).logit().reshape(1, *SHAPE))[0][0]

    share = torch.rand(2, *SHAPE).double()
    for one, nats in zip(share, flow.density(share), strict=True):
        z, jacobian = normal(one.flatten()), torch.autograd.functional.jacobian(normal, one.flatten())
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum() + torch.linalg.slogdet(jacobian)[1]
        assert torch.allclose(-nats, expected, atol=1e-8)


def test_a_uniform_density_costs_eight_bits(baselines, flow, monkeypatch):
    monkeypatch.setattr(flow, "density", lambda share: torch.zeros(len(share)).double(), raising=False)
    x = to_unit(np.zeros((2, 4, 4, 1), np.uint8)).double()
    assert torch.allclose(flow.nats(x, Streams(0, "u", range(2))) / math.log(2) / 16, torch.tensor(8.0).double())


def test_a_dequantised_value_stays_in_its_bin(baselines, flow, monkeypatch):
    images = np.arange(256, dtype=np.uint8).reshape(16, 4, 4, 1)
    seen = []
    monkeypatch.setattr(flow, "density", lambda share: seen.append(share) or share.flatten(1).sum(1), raising=False)
    flow.nats(to_unit(images), Streams(0, "u", range(16)))
    bins = (seen[0] * 256).floor().permute(0, 2, 3, 1)
    assert torch.equal(bins, torch.from_numpy(images).to(bins))


def test_the_probabilities_of_256_levels_sum_to_one(vae):
    values = vae.values(torch.randn(3, 1).double())
    every = [values.log_prob(value_of(torch.full((3, *SHAPE), k), 256, torch.ones(1).double())) for k in range(256)]
    assert torch.allclose(torch.stack(every).logsumexp(0), torch.zeros(3, *SHAPE).double(), atol=1e-9)


def test_the_elbo_is_below_the_log_likelihood_by_the_kl_to_the_true_posterior(vae):
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 1), dtype=np.uint8)
    x = to_unit(image).double()
    z = torch.linspace(-15, 15, 4001, dtype=torch.float64)[:, None]
    width = float(z[1] - z[0])
    given = vae.values(z).log_prob(x.expand(len(z), *SHAPE)).flatten(1).sum(1)
    joint = given + Normal(torch.zeros(1), torch.ones(1)).log_prob(z)[:, 0]
    log_likelihood = joint.logsumexp(0) + math.log(width)
    q = vae.posterior(x).log_prob(z)[:, 0]
    mass = q.exp() * width
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
    gap = (mass * (q - (joint - log_likelihood))).sum()  # KL(q || p(z | x))
    assert gap > 0.01
    nats = vae.nats(x.expand(4000, *SHAPE), Streams(0, "elbo", range(4000)))
    error = float(nats.std() / 4000**0.5)
    assert error < 0.2 * float(gap)
    assert float(nats.mean()) == pytest.approx(float(gap - log_likelihood), abs=5 * error)


def test_the_vae_draws_what_its_likelihood_says(vae):
    """A pixel's levels, given no choice of z, come as often as their probability says."""
    count, z = 4000, torch.zeros(1, 1).double()
    p = torch.stack([vae.values(z).log_prob(value_of(torch.full((1, *SHAPE), k), 256, z)) for k in range(256)]).exp()

    class Still(Streams):
        def normal(self, shape):
            return torch.zeros(count, *shape).double()

    drawn = vae.float().draw(Still(0, "draw", range(count))).double()
    vae.double()
    levels = value_of(torch.arange(256), 256, z)
    mean = torch.einsum("kbchw,k->bchw", p, levels)
    spread = torch.einsum("kbchw,k->bchw", p, levels.square()) - mean.square()
    assert torch.all((drawn.mean(0, keepdim=True) - mean).abs() < 5 * (spread / count).sqrt())


@pytest.fixture(scope="module")
def few():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    return ImageSet(images, None, (), tuple(map(str, range(20))))


@pytest.mark.parametrize("name", ["gan", "vae", "flow"])
def test_weights_are_a_function_of_the_seed(baselines, few, name, tmp_path):
    method = replace(baselines.METHODS[name], batch=8)
    before = torch.get_rng_state()
    first = baselines.train(method, few, 32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again, other = baselines.train(method, few, 32), baselines.train(method, few, 32, seed=1)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two, _ in pairs)
    assert not all(torch.allclose(one, three) for one, _, three in pairs)
    untrained = method.make((1, 8, 8))
    assert untrained.network.state_dict().keys() == first.state_dict().keys()
    baselines.save(first, tmp_path, {})
    drawn = first.draw(Streams(0, "draw", range(4)))
    loaded = baselines.load(method, (1, 8, 8), tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), loaded.parameters(), strict=True))
    assert torch.allclose(loaded.draw(Streams(0, "draw", range(4))), drawn, atol=1e-4)
    alone = first.draw(Streams(0, "draw", [2]))
    assert torch.allclose(alone[0], drawn[2], atol=1e-4)
    assert drawn.shape == (4, 1, 8, 8)
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize("name", ["vae", "flow"])
def test_training_lowers_the_bound(baselines, few, name):
    """Images that are all alike need few bits: after some updates well below the eight of any byte."""
    alike = replace(few, images=np.full((20, 8, 8, 1), 100, np.uint8))
    method = replace(baselines.METHODS[name], batch=8)
    x = to_unit(alike.images[:4])
    before, after = (
        baselines.train(method, alike, total).nats(x, Streams(0, "b", range(4))).mean() for total in (8, 240)
    )
    assert after < before - 0.1 * 64 * 8 * math.log(2)


def test_the_critic_learns_to_tell_and_the_generator_to_please(baselines, few):
    dark = replace(few, images=np.full((20, 8, 8, 1), 30, np.uint8))
    drawn = baselines.train(replace(baselines.METHODS["gan"], batch=8), dark, 640).draw(Streams(0, "draw", range(8)))
    assert abs(float(to_bytes(drawn).mean()) - 30) < 30


REPORT = resources.files("ancestral.apps.report") / "generators"


@pytest.fixture(scope="module")
def documents():
    return json.loads((REPORT / "generators.json").read_text())


def test_the_numbers_for_the_report_are_whole(documents):
    assert {document["data"] for document in documents} >= {"fashion-mnist"}
    for document in documents:
        assert document["threads"] == 1
        assert "changes" not in document["commit"]
        assert all(document[key] for key in ("minutes", "machine", "date", "command", "units"))
        names = [model["name"] for model in document["models"]]
        assert {"gan", "vae", "flow", "absorbing", "diffusion"} <= set(names)
        for found in (document["floor"], *document["models"]):
            assert all(math.isfinite(found[metric]["value"]) and found[metric]["error"] > 0 for metric in ("fd", "kid"))
            assert all(0 <= found[metric] <= 1 and found[f"{metric}_error"] >= 0 for metric in ("precision", "recall"))
        for model in document["models"]:
            bits = model["bits_per_dim"]
            assert (bits["kind"] is None) == (model["model"] == "gan") == (bits["value"] is None)
            assert bits["value"] is None or 0 < bits["value"] < 8
            assert model["fd"]["value"] > document["floor"]["fd"]["value"] - 5 * document["floor"]["fd"]["error"]
            assert model["parameters"] >= model["parameters_to_draw"] > 0
            assert min(model["images_seen"], model["seconds_64"], model["calls"]) > 0
        taken = [model["training_seconds"] for model in document["models"]]
        assert max(taken) < 1.2 * min(taken)  # a run is planned from a few seconds of its speed
        assert max(taken) == pytest.approx(60 * document["minutes"], rel=0.2)


def test_the_samples_for_the_report_are_there_at_their_own_size(documents):
    for document in documents:
        for model in document["models"]:
            file = REPORT / model["grid"]
            assert len(file.read_bytes()) < 30_000
            with file.open("rb") as opened:
                assert Image.open(opened).size == (6 * 29 + 1, 6 * 29 + 1)
