"""Settings of a user, and those that only imported networks have."""

import json

import pytest

from ancestral.errors import UserError
from ancestral.runs import config
from ancestral.runs.facts import Facts
from conftest import run_command

IMPORTED = {"norm_eps": 1e-5, "head_width": 8, "cosine_first": True, "frequency_shift": 0}


@pytest.mark.parametrize("name", IMPORTED)
def test_what_only_imported_networks_have_is_no_setting_of_a_user(name, tmp_path):
    key, value = f"model.{name}", json.dumps(IMPORTED[name])
    assert key not in config.known_keys()
    result = run_command("train", "digits", "--out", tmp_path / "run", "--dry-run", "--set", f"{key}={value}")
    assert result.exit_code == 2
    assert f"--set {key}: describes models imported from diffusers" in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_configurations_keep_what_only_imported_networks_have():
    kept = config.Config("x", model=config.ModelOptions(**IMPORTED)), Facts((3, 8, 8))
    document = json.loads(json.dumps(config.to_json(*kept)))
    assert document["config"]["model"].items() >= IMPORTED.items()
    assert config.from_json(document, "config.json") == kept
    document["config"]["model"]["frequency_shift"] = 2
    with pytest.raises(UserError, match=r"model\.frequency_shift.*choose from: 0, 1"):
        config.from_json(document, "config.json")
