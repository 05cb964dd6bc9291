"""A release is one version everywhere, and what it hands out is whole."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import ancestral

ROOT = Path(__file__).parents[1]


def test_the_version_stands_in_one_place_and_what_repeats_it_agrees():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ancestral.__version__"}
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == ancestral.__version__
    assert re.search(r"^## (\d\S*?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == ancestral.__version__


def test_documents_that_machines_read_can_be_read():
    yaml = pytest.importorskip("yaml")
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
    assert {"test", "release", "docs"} <= set(workflows)
    for workflow in workflows.values():
        for job in workflow["jobs"].values():
            for run in (step["run"] for step in job["steps"] if "run" in step):
                for script in re.findall(r"\bscripts/\S+", run):
                    assert (ROOT / script).exists(), script
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["cff-version"] == "1.2.0"
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository here")
def test_nothing_big_is_kept_that_a_command_makes():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    kept = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(kept) > 500
    assert [path.name for path in kept if path.exists() and path.stat().st_size > 400_000] == []


def test_links_of_the_package_index_are_absolute():
    spec = importlib.util.spec_from_file_location("absolute_links", ROOT / "scripts/absolute_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.absolute("[a](docs/a.md#b) ![p](docs/p.png) [w](https://w.org) [h](#here)", "https://r/x", "v1")
    assert made == (
        "[a](https://r/x/blob/v1/docs/a.md#b) ![p](https://r/x/raw/v1/docs/p.png) [w](https://w.org) [h](#here)"
    )
    readme = module.absolute((ROOT / "README.md").read_text(), "https://r/x", "v1")
    assert not re.search(r"\]\((?!https://)", readme)
