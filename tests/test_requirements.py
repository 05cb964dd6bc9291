"""What the tests import is what `pip install ancestral[test]` brings, and the locked environment has it."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(requirement):
    """The name of a requirement as package indexes compare them (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def required(extra):
    """The packages of an extra, those of the extras that it names among them."""
    for requirement in PROJECT["optional-dependencies"][extra]:
        if named := re.fullmatch(r"ancestral\[(.+)\]", requirement):
            for other in named[1].split(","):
                yield from required(other)
        else:
            yield plain(requirement)


def imported(path):
    """Top-level modules that a file imports, or skips a test without."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
            yield node.args[0].value.partition(".")[0]


def test_what_the_tests_import_stands_in_the_test_extra_and_in_the_lock():
    stated = {plain(requirement) for requirement in PROJECT["dependencies"]} | set(required("test"))
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {plain(line) for line in lines if line and not line.startswith("#")}
    owners = packages_distributions()
    files = sorted(TESTS.rglob("*.py"))
    known = (
        {path.stem for path in [*files, *(ROOT / "benchmarks").glob("*.py")]}
        | {path.parent.name for path in files if path.stem == "__init__"}
        | set(sys.stdlib_module_names)
        | {"ancestral"}
    )
    for path in files:
        for module in set(imported(path)) - known:
            packages = {plain(name) for name in owners.get(module, [module])}
            assert packages & stated, f"{path.name} imports {module}: not in the test extra"
            assert packages & stated & locked, f"{path.name} imports {module}: not in requirements.lock"


@pytest.mark.parametrize(
    ("hidden", "command", "extra"),
    [
        ("constriction", "compress . pyproject.toml --out nothing.anc", "compress"),
        ("constriction", "decompress . pyproject.toml --out nothing.png", "compress"),
        ("constriction", "serve .", "serve"),
        ("constriction", "explain --out nothing.html", "compress"),
        ("onnxscript", "export . --out nothing --format onnx", "onnx"),
        ("onnxruntime", "export . --out nothing --format onnx --precision int8", "onnx"),
        ("latex2mathml", "explain --out nothing.html", "explain"),
    ],
)
def test_a_command_whose_extra_is_not_installed_names_it_in_one_line(hidden, command, extra):
    probe = f"import sys; sys.modules['{hidden}'] = None; from importlib import util; find = util.find_spec; "
    probe += f"util.find_spec = lambda name: None if name == '{hidden}' else find(name); "
    probe += f"sys.argv[1:] = {command.split()}; from ancestral.apps.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    _, command = line.split(f"needs {hidden}; pip install ")
    packages = re.findall('"([^"]+)"', command)
    assert " ".join(f'"{one}"' for one in packages) == command
    stated = PROJECT["optional-dependencies"]
    assert packages == [each for one in stated[extra] for each in (stated["compress"] if "[" in one else [one])]
    assert hidden in " ".join(packages)


def test_drawing_needs_neither_the_coder_nor_the_mathematics():
    probe = "import sys; sys.modules.update(constriction=None, latex2mathml=None); import ancestral; "
    probe += "[getattr(ancestral, name) for name in ancestral.__all__]"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=120)


def test_the_quickstart_and_the_images_of_docker_have_the_same_extras():
    files = ("scripts/environment", "Dockerfile", "Dockerfile.cuda")
    taken = {name: re.findall(r"\[((?:\w+,)+\w+)\]", (ROOT / name).read_text()) for name in files}
    assert len(set(map(tuple, taken.values()))) == 1
    ((extras,),) = set(map(tuple, taken.values()))
    assert set(extras.split(",")) == {"builtin", "compress", "explain", "metrics", "serve"}
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_images_of_docker_have_the_torch_of_the_lock():
    locked = re.search("^torch==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    for name in ("Dockerfile", "Dockerfile.cuda"):
        assert re.search("^ARG TORCH=(.+)$", (ROOT / name).read_text(), re.MULTILINE)[1] == locked[1]
