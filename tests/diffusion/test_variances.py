"""The fixed reverse variances against the code that was published: the paper's, its successor's and diffusers'.

Each is written out here from its own tables, in numpy, without a line of the package.
"""

import json

import numpy as np
import pytest
import torch

from ancestral.diffusion.denoisers.denoiser import Prediction
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers.transitions import VARIANCES
from ancestral.errors import UserError
from ancestral.runs import config
from ancestral.runs.facts import Facts
from ancestral.runs.hub import diffusers_config

TABLES = {"linear": np.linspace(1e-4, 0.02, 1000), "short": np.linspace(1e-3, 0.2, 50)}


def tables(betas):
    """(beta~ with 0 at the first place, the same with its second value there): index 0 is t = 1."""
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    posterior = betas * (1 - before) / (1 - alpha_bar)
    return posterior, np.append(posterior[1], posterior[1:])


def of_the_paper(name, betas):
    """`GaussianDiffusion2` of the paper's code, and `gaussian_diffusion.py` of Nichol and Dhariwal's after it."""
    posterior, clipped = tables(betas)
    return {"fixedsmall": clipped, "fixedlarge": np.append(posterior[1], betas[1:])}[name]


def of_diffusers(name, betas):
    """`_get_variance` of `DDPMScheduler`, where no noise is added at the last step."""
    posterior, _ = tables(betas)
    return {"fixed_small": np.maximum(posterior, 1e-20), "fixed_large": betas}[name]


def ours(name, betas, t):
    made = schedules.from_betas(torch.from_numpy(betas))
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    return float(VARIANCES[name](made, Prediction(x, x), t, t - 1).flatten()[0])


@pytest.mark.parametrize("betas", TABLES.values(), ids=list(TABLES))
@pytest.mark.parametrize("name", ["fixedsmall", "fixedlarge"])
def test_at_every_end_it_is_the_papers(name, betas):
    expected = of_the_paper(name, betas)
    for t in (1, 2, 3, len(betas) // 2, len(betas)):
        assert ours(name, betas, t) == pytest.approx(expected[t - 1], rel=1e-9)


def test_the_papers_decoder_has_beta_tilde_2():
    """5.45e-5, where beta_1 is 1e-4."""
    assert ours("fixedlarge", TABLES["linear"], 1) == ours("fixedsmall", TABLES["linear"], 1)
    assert ours("fixedlarge", TABLES["linear"], 1) == pytest.approx(5.45e-5, rel=1e-3)
    assert ours("beta", TABLES["linear"], 1) == pytest.approx(1e-4, rel=1e-9)


@pytest.mark.parametrize("betas", TABLES.values(), ids=list(TABLES))
@pytest.mark.parametrize(("name", "theirs"), [("fixedsmall", "fixed_small"), ("fixedlarge", "fixed_large")])
def test_it_is_diffusers_wherever_that_adds_noise(name, theirs, betas):
    for t in (2, 3, len(betas)):
        assert ours(name, betas, t) == pytest.approx(of_diffusers(theirs, betas)[t - 1], rel=1e-9)
    assert ours(name, betas, 1) != pytest.approx(of_diffusers(theirs, betas)[0], rel=0.1)
    for t in (1, 2, len(betas)):
        assert ours("beta", betas, t) == pytest.approx(of_diffusers("fixed_large", betas)[t - 1], rel=1e-9)


@pytest.mark.parametrize("theirs", ["fixed_small", "fixed_large"])
def test_the_transcription_is_what_diffusers_computes(theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(variance_type=theirs)
    for t in (1, 2, 1000):
        expected = of_diffusers(theirs, TABLES["linear"])[t - 1]
        assert float(scheduler._get_variance(t - 1)) == pytest.approx(expected, rel=1e-3, abs=1e-19)


@pytest.mark.parametrize(
    ("preset", "variance"),
    [("cifar10", "fixedlarge"), ("paper-256", "fixedsmall"), ("images", "optimal"), ("tiny", "optimal")],
)
def test_presets_have_the_papers_names(preset, variance):
    assert config.resolve("x", preset, {}).diffusion.variance == variance


@pytest.mark.parametrize(
    ("theirs", "name"),
    [("fixed_small", "fixedsmall"), ("fixed_large", "fixedlarge"), ("learned_range", "learned"), (None, "fixedsmall")],
)
def test_imported_models_have_them_and_give_them_back(tmp_path, theirs, name):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({"num_train_timesteps": 1000} | ({"variance_type": theirs} if theirs else {})))
    found = diffusers_config.diffusion(diffusers_config.Fields(path), learned=name == "learned")
    assert found.variance == name
    assert diffusers_config.scheduler_document(found, "trailing")["variance_type"] == theirs or theirs is None


def test_the_literal_beta_is_exported_as_the_same_chain():
    options = config.resolve("x", "cifar10", {"diffusion.variance": "beta"}).diffusion
    assert diffusers_config.scheduler_document(options, "trailing")["variance_type"] == "fixed_large"


@pytest.mark.parametrize(
    ("chain", "old", "new"),
    [
        ("gaussian", "large", "beta"),
        ("gaussian", "small", "fixedsmall"),
        ("gaussian", "learned", "learned"),
        ("gaussian", "optimal", "optimal"),
        ("absorbing", "large", "fixedlarge"),
    ],
)
def test_runs_of_before_keep_their_numbers(chain, old, new):
    resolved = config.resolve("x", "cifar10", {"diffusion.chain": chain})
    document = json.loads(json.dumps(config.to_json(resolved, Facts((1, 8, 8)))))
    document["config"]["schema"] = 1
    document["config"]["diffusion"]["variance"] = old
    found, _ = config.from_json(document, "config.json")
    assert (found.diffusion.variance, found.schema) == (new, config.SCHEMA)
    assert document["config"]["schema"] == 1  # what was read is as it was


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(UserError, match="schema"):
        config.from_json({"config": {"schema": 0, "source": "x"}, "facts": {"shape": [1, 8, 8]}}, "config.json")
