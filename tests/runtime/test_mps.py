"""That a Mac can train, preview and evaluate: every operator met has a kernel on MPS, by torch's own table.

No Apple processor was there: what the kernels compute is not tested, only that they are.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ancestral.data import load
from ancestral.runs import calibration, config
from ancestral.training import preview
from ancestral.training import run as training_run

torchgen = pytest.importorskip("torchgen")
yaml = pytest.importorskip("yaml")


class Met(TorchDispatchMode):
    """The operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func)
        return func(*args, **(kwargs or {}))


@cache
def kernels():
    """{operator: the dispatch keys that it has kernels for}, those of its structured form included."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = {entry["func"].partition("(")[0]: entry for entry in yaml.safe_load(table.read_text())}

    def keys(entry):
        delegate = entry.get("structured_delegate")
        own = {key.strip() for names in entry.get("dispatch", {}) for key in names.split(",")}
        return own | (keys(entries[delegate]) if delegate else set())

    return {name: keys(entry) for name, entry in entries.items()}


def without_mps(operators):
    """Of these operators, those with a kernel on the CPU and none that MPS can use."""
    table = kernels()
    names = {f"{one._schema.name}.{one._schema.overload_name}".removeprefix("aten::").rstrip(".") for one in operators}
    found = {name: table.get(name, set()) for name in names}
    everywhere = {"CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd"}
    return {name for name, keys in found.items() if keys and not keys & {"MPS", *everywhere}}


def test_the_table_knows_what_is_missing():
    with Met() as met:
        torch.special.log_ndtr(torch.zeros(1))
        torch.zeros(1) + torch.ones(1)
    assert without_mps(met.names) == {"special_log_ndtr"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", ["images", "absorbing"])
def test_training_preview_and_bound_have_kernels(tmp_path, preset, channels):
    settings = {"model.width": 8, "train.batch_size": 4, "train.micro_batch": 4, "train.precision": "float32"}
    random = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=random.integers(0, 256, (40, 8, 8, channels), dtype=np.uint8))
    images = load.load(str(tmp_path / "data.npz"), load.DataOptions())
    run = training_run.Run(
        tmp_path, config.resolve(str(tmp_path / "data.npz"), preset, settings), images, torch.device("cpu")
    )
    with Met() as met:
        run.training.step(images.train)
        model = run._model(run.training.whole_averages())
        preview.preview(run.config, run.facts, model, images.test, torch.device("cpu"))
        calibration.calibration(run.config, model, images.train, torch.device("cpu"))
    assert without_mps(met.names) == set()
    assert len(met.names) > 50
