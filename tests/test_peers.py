"""The others of benchmarks/peers.py train, go on from what was kept, and draw; EDM's formulas are the paper's."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))
try:
    import peers
finally:
    sys.path.remove(str(FOLDER))


def has(package):
    try:
        peers.imported(package)
    except ImportError:
        return False
    return True


needs_smalldiffusion = pytest.mark.skipif(not has("smalldiffusion"), reason="smalldiffusion is in .venv-peers only")


@needs_smalldiffusion
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [peers.Small, peers.Edm])
def test_twenty_updates_go_on_from_the_middle_and_draw(kind, channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, channels), dtype=np.uint8)
    torch.manual_seed(0)
    training = kind(images, 32, batch_size=4)
    begun = [value.clone() for value in training.network.parameters()]
    for _ in range(10):
        training.step()
    torch.save(training.state(), tmp_path / "state")
    torch.manual_seed(1)
    again = kind(images, 32, batch_size=4)
    again.load(torch.load(tmp_path / "state", weights_only=True))
    for one, other in zip(training.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for _ in range(10):
        again.step()
    assert again.images == 80
    assert any(not torch.equal(a, b) for a, b in zip(begun, again.network.parameters(), strict=True))
    assert all(value.isfinite().all() for value in again.average.parameters())
    again.save_model(tmp_path / "model")
    drawn = kind.draw(tmp_path / "model", 3, 4)
    assert drawn.shape == (3, channels, 8, 8)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    for one, other in zip(kind.opened(tmp_path / "model").parameters(), again.average.parameters(), strict=True):
        assert torch.equal(one, other)


def test_heuns_steps_are_those_of_a_gaussian():
    """Data N(0, s^2): the ideal denoiser is x s^2 / (s^2 + sigma^2), and x(sigma) goes as (s^2 + sigma^2)^1/2."""
    s, sigmas = 0.5, peers.edm_sigmas(400).double()
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-2] == pytest.approx(0.002, rel=1e-4)
    assert sigmas[-1] == 0
    # Between its ends the seventh root of sigma falls evenly.
    roots = sigmas[:-1] ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff().mean(), rtol=1e-3)
    x = torch.full((1,), 80.0, dtype=torch.float64)
    for now, after in pairwise(sigmas):
        x = peers.heun_step(lambda x, sigma: x * s**2 / (s**2 + sigma**2), x, now, after)
    assert float(x) == pytest.approx(80 * s / (s**2 + 80**2) ** 0.5, rel=1e-3)


def test_edms_preconditioning_is_table_1(monkeypatch):
    """At sigma = sigma_data: c_skip 1/2, c_out sigma / 2^1/2, c_in 1 / (2^1/2 sigma); for little noise D(x) is x."""

    class Network(nn.Module):
        def forward(self, x, sigma):
            return x + 1

    monkeypatch.setattr(peers, "imported", lambda _: type("", (), {"Unet": lambda *a, **k: Network()}))
    made, x = peers.Preconditioned(1, 4, 32), torch.full((1, 1, 1, 1), 0.6)
    half = torch.full((1, 1, 1, 1), 0.5)
    expected = 0.6 / 2 + 0.5 / 2**0.5 * (0.6 / (2**0.5 * 0.5) + 1)
    assert float(made(x, half)) == pytest.approx(expected)
    assert float(made(x, torch.full_like(half, 1e-6))) == pytest.approx(0.6, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_script_goes_on_from_what_was_kept(channels, tmp_path):
    from diffusers import UNet2DModel

    def made():
        network = UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
        return peers.Script(network, images, batch_size=4)

    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, channels), dtype=np.uint8)
    training = made()
    for _ in range(10):
        training.step()
    torch.save(training.state(), tmp_path / "state")
    again = made()
    again.load(torch.load(tmp_path / "state", weights_only=True))
    for one, other in zip(training.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.rates.get_last_lr() == training.rates.get_last_lr()
    for _ in range(10):
        again.step()
    assert again.images == 80
    again.save_model(tmp_path / "model")
    assert peers.Script.draw(tmp_path / "model", 2, 3).shape == (2, 3, 8, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of workers, on one core
@pytest.mark.skipif(not has("denoising_diffusion_pytorch"), reason="lucidrains' package is in .venv-peers only")
def test_lucidrains_trainer_goes_on_from_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SIDE", 8)
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1), dtype=np.uint8)
    peers.write_pngs(images, tmp_path / "images")
    training = peers.Lucid(tmp_path, 1, multipliers=(1,))
    for _ in range(10):
        training.step()
    torch.save(training.state(), tmp_path / "state")
    again = peers.Lucid(tmp_path, 1, multipliers=(1,))
    again.load(torch.load(tmp_path / "state", weights_only=True))
    parts = [one.trainer.model.state_dict().values() for one in (training, again)]
    assert all(torch.equal(*pair) for pair in zip(*parts, strict=True))
    for _ in range(10):
        again.step()
    assert again.images == 20 * training.trainer.batch_size
