"""The order of the rooms, and habits that can be read off the source."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ancestral"
MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in sorted(SOURCE.rglob("*.py"))}
# A room imports from itself and from the rooms of earlier lines, never from one beside it or below.
ORDER = """
errors
diffusion.processes
diffusion.denoisers
diffusion.samplers
diffusion.objectives diffusion.editing
networks runtime
data
runs
training sampling compression
evaluation
apps.report apps.server apps.python
apps.cli
"""
LEVEL = {room: level for level, line in enumerate(ORDER.strip().splitlines()) for room in line.split()}
FACES = {"__init__", "__main__", "apps.__init__", "diffusion.__init__"}  # above all rooms, or empty


@functools.cache
def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def room(module):
    return next((known for known in LEVEL if f"{module}.".startswith(f"{known}.")), None)


def test_every_module_is_in_a_room():
    assert {name for name in MODULES if room(name) is None} == FACES
    entries = {path.name for path in SOURCE.iterdir()} - {"__pycache__", "__init__.py", "__main__.py", "py.typed"}
    assert entries == {f"{room}.py" if room == "errors" else room.partition(".")[0] for room in LEVEL}


def test_rooms_import_from_lower_rooms_only():
    for name in MODULES.keys() - FACES:
        for other in (one.removeprefix("ancestral.") for one in imports(MODULES[name]) if one.startswith("ancestral.")):
            theirs, mine = room(other), room(name)
            assert theirs in (None, mine) or LEVEL[theirs] < LEVEL[mine], f"{name} imports {other}"


def test_mathematics_does_no_input_or_output():
    allowed = {"__future__", "ancestral", "collections", "contextlib", "copy", "dataclasses", "functools", "hashlib"}
    allowed |= {"itertools", "math", "numpy", "scipy", "torch", "typing"}
    for name, path in MODULES.items():
        if name.startswith("diffusion."):
            assert {module.partition(".")[0] for module in imports(path)} <= allowed, name


def test_no_pickle_and_no_global_randomness():
    for name, path in MODULES.items():
        text = path.read_text()
        if name == "networks.efficientnet_lite0":
            # The one file of others' that is a pickle: its digest is known, and it is read as tensors only.
            read = 'torch.load(path, map_location="cpu", weights_only=True)'
            assert text.count("torch.load(") == text.count(read) == 1
            text = text.replace(read, "")
        plain = text.replace(".eval()", "").replace("allow_pickle=False", "")
        plain = plain.replace("pickled", "").replace("No pickle", "")
        for word in ("pickle", " torch.save", " torch.load(", "np.random.seed", "np.random.rand", "eval(", "exec("):
            assert word not in plain, f"{name}: {word}"
        seeds = text.count("manual_seed(")
        assert seeds == 2 * (name == "diffusion.processes.torch_generators"), name  # in a fork: CPU and accelerator


def test_importing_costs_nothing_before_torch():
    probe = "import sys, ancestral.apps.cli.main; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
