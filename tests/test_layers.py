"""The layer rule, and habits that can be read off the source."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "ancestral"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
    for path in sorted(SOURCE.rglob("*.py"))
    if not path.stem.startswith("__")
}
LAYERS = [
    {"errors", "gaussian", "rng", "text", "versions"},
    {"schedule"},
    {"target"},
    {"denoiser", "form", "discrete", "operators"},
    {"unet", "analytic", "reverse", "grids", "absorbing"},
    {"walk", "multistep", "revealing", "langevin"},
    {"solvers"},
    {"objective", "times", "guidance"},
    {"bound", "calibration", "flow", "sample", "tuning", "metrics", "inverse", "energy"},
    {"derivation", "orders", "anomaly", "rate_distortion", "edits", "composition", "mcmc"},
    {"disk"},
    {"tensors", "arrays", "history"},
    {"reading", "duplicates", "deep", "facts", "places"},
    {"owner", "beside"},
    {"images", "imageset", "ema", "sealed", "baselines", "parallel", "guard", "signals", "lite0", "muon"},
    {"codec.errors", "codec.randomness", "codec.tiles", "codec.planning", "codec.finish"},
    {"codec.bits_back", "codec.archive", "codec.cells", "codec.channel", "codec.bits"},
    {"codec.blocks", "codec.tables", "codec.container"},
    {"codec.residual"},
    {"codec.exact"},
    {"jobs", "launch", "results", "names"},
    {"store", "features", "labels", "files"},
    {"folders"},
    {"shards", "hub_data"},
    {"data"},
    {"config"},
    {"checkpoint", "engine", "trackers", "diffusers_config", "chains", "conditions"},
    {"build", "codec.codebook"},
    {"feed", "codec.single", "probing", "gate"},
    {"train", "monitor", "codec.image"},
    {"figures", "estimate", "interop", "codec.calibration", "fitting", "codec.prefixes"},
    {"runner", "card", "opening"},
    {"console", "hub"},
    {"guiding"},
    {"drawing", "surprise"},
    {"desk"},
    {"commands", "editing", "evaluation", "likelihood", "sampling", "measuring", "archiving", "compressing"},
    {"agreement", "rating"},
    {"report.parts", "report.mathematics"},
    {"report.subject", "report.plots"},
    {"report.chain", "report.distance", "report.posterior", "report.identities", "report.walks", "report.toy"},
    {"report.predictions"},
    {"report.effort"},
    {"report.plane", "report.wandering", "report.spectrum", "report.progressive", "report.training"},
    {"report.likeness", "report.advice"},
    {"report.models", "report.forward", "report.reverse", "report.bound", "report.spread"},
    {"report.onestep", "report.connections", "report.quality"},
    {"report.page"},
    {"report.explain"},
    {"web.record", "web.uploads", "web.doors"},
    {"web.shared", "web.bodies"},
    {"web.work", "web.studio"},
    {"web.actions", "web.stream", "web.likeness"},
    {"web.coding"},
    {"web.app"},
    {"web.serving"},
    {"verbs.options"},
    {
        "verbs.training",
        "verbs.drawing",
        "verbs.measuring",
        "verbs.models",
        "verbs.archive",
        "verbs.rate",
        "verbs.score",
        "verbs.edit",
        "verbs.explain",
        "verbs.codec",
        "verbs.serve",
    },
    {"cli"},
]
MATHEMATICS = set().union(*LAYERS[:10]) - {"errors"}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@functools.cache
def imports(path):
    return tuple(_imports(path))


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"{module}.{name.name}" for name in node.names)


def ours(path):
    for name in imports(path):
        parts = name.split(".")
        yield from ({".".join(parts[1:end]) for end in (2, 3)} & set(MODULES) if parts[0] == "ancestral" else ())


def test_every_module_has_its_layer():
    assert set(LEVEL) == set(MODULES)


def test_imports_go_down():
    """One item for all modules, which are read once: 361 items cost more to collect than to run."""
    for name in MODULES:
        for other in set(ours(MODULES[name])):
            assert LEVEL[other] < LEVEL[name], f"{name} imports {other}"


def test_mathematics_does_no_input_or_output():
    allowed = {
        "__future__",
        "ancestral",
        "collections",
        "contextlib",
        "dataclasses",
        "functools",
        "hashlib",
        "itertools",
    }
    allowed |= {"math", "numpy", "scipy", "torch", "typing"}
    for name in sorted(MATHEMATICS):
        assert {module.partition(".")[0] for module in imports(MODULES[name])} <= allowed, name


def test_no_pickle_no_global_randomness_no_giants():
    for name, path in MODULES.items():
        text = path.read_text()
        if (
            name == "lite0"
        ):  # the one file of others' that is a pickle: its digest is known, and it is read as tensors only
            read = 'torch.load(path, map_location="cpu", weights_only=True)'
            assert text.count("torch.load(") == text.count(read) == 1
            text = text.replace(read, "")
        plain = text.replace(".eval()", "").replace("allow_pickle=False", "")
        plain = plain.replace("pickled", "").replace("No pickle", "")
        for word in ("pickle", " torch.save", " torch.load(", "np.random.seed", "np.random.rand", "eval(", "exec("):
            assert word not in plain, f"{name}: {word}"
        seeds = text.count("manual_seed")
        assert seeds == (1 if name == "train" else 0), name  # inside fork_rng, see train._torch_draws
        assert len(text.splitlines()) <= 300, f"{name}: what is its second job?"


def test_importing_costs_nothing_before_torch():
    probe = "import sys, ancestral, ancestral.cli; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
