"""The public face, from outside: the names, the command's bytes, data in every form, and errors.

`python tests/apps/test_python.py` writes the stored names and signatures anew.
"""

import importlib.util
import inspect
import io
import json
import math
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

import ancestral
from ancestral.data.pixels import to_unit
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.transitions import Ancestral, fixedlarge
from ancestral.runs import build
from ancestral.runs.open import open_model

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "public_api.txt"
TINY = {"preset": "tiny", "device": "cpu", "width": 8, "batch_size": 8, "snapshots": 2}


def public():
    """A line for each public name, with its signature; those of a class of `apps.python` with their methods."""

    def signature(name, thing):
        try:
            found = inspect.signature(thing)
        except (TypeError, ValueError):
            return name
        plain = (int, float, str, tuple, type(None), type(inspect.Parameter.empty))
        shown = [
            one if isinstance(one.default, plain) else one.replace(default=...) for one in found.parameters.values()
        ]
        text = re.sub(r"ForwardRef\('(\w+)'\)", r"\1", str(found.replace(parameters=shown)))
        return name + text.replace("'", "").replace("Ellipsis", "...")

    for name in sorted(ancestral.__all__):
        thing = getattr(ancestral, name)
        yield signature(name, thing) if callable(thing) else name
        if inspect.isclass(thing) and thing.__module__.startswith("ancestral.apps.python"):
            for method, value in sorted(vars(thing).items()):
                if not method.startswith("_"):
                    yield "  " + (signature(method, value) if callable(value) else method)
    yield "Editing"
    yield signature("  inpaint", type(ancestral.Model.edit.fget(None)).inpaint)


def test_the_names_and_signatures_are_the_stored_ones():
    assert STORED.read_text().splitlines() == list(public())
    assert set(ancestral.__all__) <= set(dir(ancestral))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ancestral.nothing


def colours(count=24, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, channels), np.uint8)


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def run(request, tmp_path_factory):
    images = colours(channels=request.param)
    return ancestral.train(images, tmp_path_factory.mktemp("runs") / "run", steps=6, **TINY), images


def test_images_are_the_commands_to_the_byte(run, command, tmp_path):
    """Also in another number of batches."""
    run, _ = run
    options = ("--num-images", 5, "--steps", 3, "--seed", 7, "--film", "--device", "cpu", "--out", tmp_path / "theirs")
    assert command("sample", run.folder, *options).exit_code == 0
    model = ancestral.load(run.folder, "cpu")
    images, film = model.sample(5, steps=3, seed=7), model.film(5, steps=3, seed=7)
    assert np.array_equal(film.images, images)
    images.save(tmp_path / "ours")
    images.save(tmp_path / "ours" / "grid.png")
    film.save(tmp_path / "ours" / "film.png")
    film.save(tmp_path / "ours" / "film.gif")
    ours = {path.name: path.read_bytes() for path in (tmp_path / "ours").iterdir() if path.is_file()}
    assert len(ours) == 8
    assert all((tmp_path / "theirs" / name).read_bytes() == content for name, content in ours.items())
    assert images._repr_png_() == ours["grid.png"]
    assert [np.asarray(one).tolist() for one in images.pil()] == np.asarray(images).squeeze().tolist()
    assert np.array_equal(model.sample(5, steps=3, seed=7, batch_size=5), images)
    assert len(images) == 5
    assert np.array_equal(np.asarray(images[2]).reshape(images.array[2].shape), images.array[2])


def test_the_bound_is_the_commands(run, command, tmp_path):
    run, images = run
    np.savez(tmp_path / "images.npz", train_images=images, test_images=images[:9])
    options = ("--terms", 4, "--device", "cpu", "--out", tmp_path)
    result = command("evaluate", run.folder, tmp_path / "images.npz", *options)
    assert result.exit_code == 0, result.output
    theirs = json.loads((tmp_path / "evaluation.json").read_text())["bits_per_dim"]["bound, bits/dim"]
    model = run.model("cpu")
    for data in (str(tmp_path / "images.npz"), images[:9]):
        found = model.bits_per_dim(data, terms=4)
        assert found == (theirs["mean"], theirs["standard_error"])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_term_a_variance_and_a_seed_reach_the_bound(command, tmp_path, channels):
    images = colours(channels=channels)
    run = ancestral.train(images, tmp_path / "run", steps=6, T=50, **TINY)
    saved, model = open_model(run.folder, "cpu", None)
    x0 = to_unit(images[:2]).double()
    predictor, T = build.predictor(model, saved.calibration), model.schedule.T
    noise = Streams(5, "evaluate", range(2))
    measured = elbo(predictor, x0, range(T, -1, -1), Ancestral(fixedlarge), noise)
    assert measured.terms.shape == (2, T)
    expected = float(measured.nats.mean()) / x0[0].numel() / math.log(2)
    np.savez(tmp_path / "images.npz", train_images=images, test_images=images[:2])
    options = ("--exact", "--variance", "fixedlarge", "--seed", 5, "--device", "cpu", "--out", tmp_path)
    result = command("evaluate", run.folder, tmp_path / "images.npz", *options)
    assert result.exit_code == 0, result.output
    theirs = json.loads((tmp_path / "evaluation.json").read_text())["bits_per_dim"]["bound, bits/dim"]["mean"]
    assert theirs == pytest.approx(expected, rel=1e-9)
    found = run.model("cpu").bits_per_dim(images[:2], exact=True, variance="fixedlarge", seed=5)
    assert found[0] == pytest.approx(expected, rel=1e-9)


def test_a_film_is_its_states_as_arrays_and_pictures(run):
    model = run[0].model("cpu")
    film = model.film(3, steps=4, seed=1)
    states = np.asarray(film)
    assert states.shape == (5, *film.images.array.shape)  # a state before each step, and the images
    assert np.array_equal(states[-1], film.images)
    noise = np.asarray(ancestral.latents(model.saved.facts.shape, 1, range(3)))  # x_T, at the grey levels of [-1, 1]
    assert np.abs(states[0] - ((noise.clip(-1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)).max() <= 0.51
    assert len(film.pil()) == 5
    assert np.array_equal(film.images[1:], states[-1][1:])


def test_metrics_of_data_in_any_form_are_those_of_its_file(run, tmp_path):
    """Which has the training and the held-out part that `train` takes of images in memory."""
    from PIL import Image

    from ancestral.data.dataset import DataOptions
    from ancestral.data.load import of_any

    model, images = run[0].model("cpu"), colours(300, run[1].shape[3])
    pil = [Image.fromarray(image.squeeze()) for image in images]
    splits = of_any(images, DataOptions())
    np.savez(tmp_path / "images.npz", train_images=splits.train.images, test_images=splits.test.images)
    options = {"num_images": 20, "network": "pixels", "steps": 2}
    first, *others = (model.metrics(form, **options) for form in (str(tmp_path / "images.npz"), images, pil, Data(pil)))
    assert all(found == first for found in others)
    assert first["fd-pixels"]["test"].value > 0


def test_a_set_of_photos_is_scaled_one_by_one_and_grey_stays_grey():
    from PIL import Image

    from ancestral.data.dataset import DataOptions
    from ancestral.data.load import of_any
    from ancestral.errors import UserError

    class Photos:
        """Of which no more than one is held at a time."""

        def __init__(self, mode):
            self.mode, self.held = mode, []

        def __len__(self):
            return 12

        def __getitem__(self, row):
            assert all(one() is None for one in self.held[:-1])
            image = Image.new(self.mode, (400, 300), row * 5)
            self.held.append(weakref.ref(image))
            return image

    for mode, channels in (("L", 1), ("RGB", 3)):
        splits = of_any(Photos(mode), DataOptions(size=8))
        assert splits.train.shape == (8, 8, channels)
    with pytest.raises(UserError, match="the label 100000000 is no class number"):
        of_any([(np.zeros((8, 8), np.uint8), 10**8)] * 4, DataOptions())


def test_a_model_without_a_measured_variance_takes_it_from_the_training_part(run, tmp_path):
    """As an imported model: data in memory are those of the file that holds both parts."""
    from dataclasses import replace

    from ancestral.data.dataset import DataOptions
    from ancestral.data.load import of_any

    saved, images = run[0].model("cpu").saved, colours(40, run[1].shape[3])
    splits = of_any(images, DataOptions())
    np.savez(tmp_path / "images.npz", train_images=splits.train.images, test_images=splits.test.images)
    model = ancestral.Model(replace(saved, calibration=None), run[0].folder, "cpu")
    assert model.bits_per_dim(images, terms=4) == model.bits_per_dim(str(tmp_path / "images.npz"), terms=4)


def test_all_images_in_memory_are_measured_of_a_chain_without_a_variance(run, tmp_path):
    images = run[1][:3]
    model = ancestral.train(images, tmp_path / "run", steps=1, **{**TINY, "preset": "absorbing"}).model("cpu")
    assert model.bits_per_dim(images, exact=True).value > 0
    one = [model.bits_per_dim(images[row : row + 1], terms=4) for row in range(3)]  # a tenth of one is none
    assert all(found.value > 0 for found in one)


def test_of_a_short_chain_inpainting_takes_all_steps(run, tmp_path):
    images = run[1]
    model = ancestral.train(images, tmp_path / "run", steps=1, T=12, **TINY).model("cpu")
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    assert np.array_equal(model.edit.inpaint(images[0], mask, resamples=1).array[0, 4:], images[0, 4:])


def test_compressing_gives_the_pixels_back(run, tmp_path):
    """Of a model trained on images in memory, which it is measured on once."""
    run, images = run
    model = run.model("cpu")
    with pytest.raises(ancestral.UserError, match="give data"):
        model.compress(images[0])
    content = model.compress(images[0], profile="quick", data=images)
    assert np.array_equal(model.decompress(content), images[0])
    start = model.compress(images[0], profile="quick", size=len(content) - 40)
    assert content.startswith(start)
    assert model.decompress(start, lossy=True).shape == images[0].shape
    with pytest.raises(ancestral.UserError, match=r"^content: was cut after \d+ bytes; lossy=True gives"):
        model.decompress(start)
    elsewhere = ancestral.Model(model.saved, tmp_path, "cpu")  # as one that was loaded and is no run of its own
    for call in (lambda: elsewhere.compress(images[0], data=images), lambda: elsewhere.decompress(content)):
        with pytest.raises(ancestral.UserError, match=r"is no run.* make one: ancestral import .* --out RUN$"):
            call()


def test_a_model_stays_what_was_loaded_where_its_run_is_trained_on(run, tmp_path):
    images = colours(300, run[1].shape[3])
    model = ancestral.train(images, tmp_path / "run", steps=4, **TINY | {"snapshots": 1}).model("cpu")
    options = {"num_images": 20, "network": "pixels", "steps": 2}
    drawn, measured = model.sample(2, steps=2).array, model.metrics(images, **options)
    for further in range(2):  # its checkpoint is there after the first, and not after the second
        ancestral.train(images, tmp_path / "run", steps="+3", **TINY | {"snapshots": 1})
        assert model.saved.folder.is_dir() == (further == 0)
        assert np.array_equal(model.sample(2, steps=2).array, drawn)
        assert model.metrics(images, **options) == measured
    assert ancestral.load(tmp_path / "run", "cpu").metrics(images, **options) != measured
    with pytest.raises(ancestral.UserError, match=r"was trained on since this model was loaded; load it again$"):
        model.compress(images[0], data=images)


def test_a_model_trained_on_images_in_memory_is_distilled_on_them(run, tmp_path):
    made = ancestral.distill(run[0].folder, tmp_path / "few", data=run[1], calls=2, steps=1, device="cpu")
    assert made.complete
    assert made.model("cpu").sample(2).array.shape == (2, *run[1].shape[1:])


def test_saved_images_take_the_place_of_saved_ones_and_of_no_others(tmp_path):
    from PIL import Image

    images, mine = ancestral.Images(colours(3)), tmp_path / "mine"
    images.save(tmp_path / "set")
    images[[2]].save(tmp_path / "set")
    assert [path.name for path in sorted((tmp_path / "set").glob("*.png"))] == ["000000.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "set" / "000000.png")), images.array[2])
    mine.mkdir()
    (mine / "000001.png").write_bytes(b"mine")
    with pytest.raises(
        ancestral.UserError, match=r"000001\.png: is there already; move it away or choose another path$"
    ):
        images.save(mine)
    assert (mine / "000001.png").read_bytes() == b"mine"
    with pytest.raises(ancestral.UserError, match=r"photo\.jpg: a contact sheet is a \.png file"):
        images.save(tmp_path / "photo.jpg")
    for two in (np.array([True, False, True]), [0, 2], (0, 2)):
        assert np.array_equal(images[two].array, images.array[[0, 2]])
    for one in (1, np.int64(1), np.array(1)):
        assert np.array_equal(np.asarray(images[one]), images.array[1])
    for few in (images[3:], images[:1]):  # a notebook shows none as well
        assert Image.open(io.BytesIO(few._repr_png_())).size[0] > 0


def test_an_image_in_memory_is_the_file_that_it_was_read_from(tmp_path):
    from PIL import Image

    from ancestral.apps.python.model import _file
    from ancestral.data import decode

    turned, folder = Image.Exif(), tmp_path / "made"
    turned[0x0112] = 6  # to be turned by 90 degrees
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=turned)
    upright = decode.exact(tmp_path / "photo.png", 3, 1000)
    assert np.array_equal(upright, np.rot90(pixels, -1))
    assert np.array_equal(decode.exact(_file(Image.open(tmp_path / "photo.png"), folder), 3, 1000), upright)
    with pytest.raises(ancestral.UserError, match="convert it to RGB"):
        _file(Image.new("CMYK", (8, 8)), folder)


def test_inpainting_keeps_the_rest_and_is_the_commands(run, command, tmp_path):
    from PIL import Image

    run, images = run
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    Image.fromarray(images[0].squeeze()).save(tmp_path / "image.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    drawn = run.model("cpu").edit.inpaint(images[0], mask, count=2, steps=8)
    assert np.array_equal(drawn.array[:, 4:], np.stack([images[0, 4:]] * 2))
    assert not np.array_equal(drawn.array[:, :4], np.stack([images[0, :4]] * 2))
    files = (tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out.png")
    result = command("edit", "inpaint", run.folder, *files, "--steps", 8, "--num-images", 2, "--device", "cpu")
    assert result.exit_code == 0, result.output
    theirs = [np.asarray(Image.open(tmp_path / "out" / f"000-00{number}.png")) for number in range(2)]
    assert np.array_equal(np.stack(theirs).reshape(drawn.array.shape), drawn)


class Data:
    """As a data set of torchvision: images with labels, and the names of the classes."""

    classes = ("even", "odd")

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row], row % 2


@pytest.mark.parametrize("channels", [1, 3])
def test_data_in_every_form_are_the_same(channels):
    import torch
    from PIL import Image

    from ancestral.data.dataset import DataOptions
    from ancestral.data.load import of_any

    images = colours(channels=channels)
    pil = [Image.fromarray(image.squeeze()) for image in images]
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2)
    forms = [images, pil, list(images), Data(pil), Data(tensors), Data(tensors.float() / 255)]
    forms += [torch.utils.data.TensorDataset(tensors, torch.arange(24) % 2)]
    splits = [of_any(form, DataOptions()) for form in forms]
    assert len({one.train.images.tobytes() + one.test.images.tobytes() for one in splits}) == 1
    assert len(splits[0].train) + len(splits[0].test) == 24
    labelled = splits[3:]
    assert len({one.train.labels.tobytes() for one in labelled}) == 1
    assert [one.train.class_names for one in labelled] == [("even", "odd")] * 3 + [("0", "1")]
    assert of_any(pil, DataOptions(size=4)).train.shape == (4, 4, channels)
    assert of_any(images, DataOptions(size=4, channels=3, limit=5)).train.images.shape == (5, 4, 4, 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((4, 8, 8)), "float64"),
        (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
        (7, "int is not understood"),
        ([], "there are none"),
        ([np.zeros((8, 8), np.uint8), "x"], r"images\[1\]: str"),
        ([np.zeros((8, 8), np.uint8), np.zeros((4, 8), np.uint8)], "4x8 pixels, the first has 8x8; give a size"),
        ("no/such/folder", "no such file or folder"),
    ],
)
def test_what_is_no_data_is_one_clear_error(data, said, tmp_path):
    with pytest.raises(ancestral.UserError, match=said) as error:
        ancestral.train(data, tmp_path / "run", steps=1, **TINY)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_user_errors(run, tmp_path):
    run, images = run
    model = run.model("cpu")
    for call, said in (
        (lambda: model.sample(0), "1 or more"),
        (lambda: model.sample(1, steps=0), "steps"),
        (lambda: model.sample(1, eta=0, solver="heun"), "exclude each other"),
        (lambda: model.sample(1, stpes=3), "stpes"),
        (lambda: model.sample(1, label="cat"), "^label: .*without labels; train with labels=True$"),
        (lambda: model.sample(1, guidance=2), '^guidance: .* condition_dropout=0.1, or .* with guide="early"$'),
        (lambda: model.sample(1, guidance_rescale=0.5), "^guidance_rescale: says how to guide; add guidance SCALE$"),
        (lambda: model.sample(1, grid="tuned", steps=2), "^grid tuned: .* ancestral tune-steps .* --steps 2$"),
        (lambda: model.sample(1, steps=10**6), "^steps: "),
        (lambda: model.sample(1, grid=3), "^grid: must be a text, got 3$"),
        (lambda: model.sample(1, solver="huen"), "^solver: unknown name 'huen'; did you mean 'heun'"),
        (lambda: model.sample(1, seed=-1), "seed"),
        (lambda: model.sample(1, seed="x"), "seed: must be a whole number between"),
        (lambda: model.sample(1, guidance="x"), "guidance: must be a number between"),
        (lambda: model.sample(2.5), "count: must be"),
        (lambda: model.bits_per_dim(images, seed=-1), "seed: must be a whole number between"),
        (lambda: model.bits_per_dim(images, variance=5), "must be a name, got 5"),
        (lambda: model.edit.inpaint(images[0], images[0], resamples=0), "^resamples: must be"),
        (lambda: model.edit.inpaint(images[0], images[0], jump="a"), "^jump: must be"),
        (lambda: ancestral.load(run.folder, device=None), "^device: must be a text"),
        (lambda: model.decompress("x"), "content: bytes"),
        (lambda: model.compress(images[0], size=-1), "size: must be"),
        (lambda: model.metrics(num_images=0), "num_images: must be"),
        (lambda: model.metrics(), "give data"),
        (lambda: model.bits_per_dim(images, terms="x"), "terms: must be"),
        (lambda: model.bits_per_dim(images, terms=4, exact=True), "terms: `exact` measures every term"),
        (lambda: model.bits_per_dim(images, batch_size=0), "batch_size: must be"),
        (lambda: ancestral.train(images, None, steps=1), "out: the path"),
        (lambda: ancestral.train(images, tmp_path / "x", steps="1"), "steps: must be a whole number"),
        (lambda: ancestral.train(images, tmp_path / "x", steps=2.5), "steps: must be a whole number"),
        (lambda: ancestral.train(images, tmp_path / "x", budget=float("inf")), "budget: .* below 1e\\+08, got inf"),
        (lambda: ancestral.train(images, tmp_path / "x", budget=1e20), "budget: .* below 1e\\+08, got 1e\\+20"),
        (lambda: ancestral.train(images, tmp_path / "x", steps=10**17), "steps: .* below 1e\\+13"),
        (lambda: ancestral.train(images, tmp_path / "x", begin_with=model), "begin_with: a folder"),
        (lambda: ancestral.distill(model, tmp_path / "x"), "model: a folder or a name"),
        (lambda: ancestral.distill(run.folder, tmp_path / "x"), "are not there; name those to tune on with data$"),
        (lambda: ancestral.distill(run.folder, tmp_path / "x", data=3), "^int is not understood as images"),
        (lambda: ancestral.distill(run.folder, "x", data=images, objective="consistency", calls=2), "^calls: "),
        (lambda: ancestral.load(""), "^source: a folder"),
        (lambda: ancestral.load(None), "^source: a folder"),
        (lambda: ancestral.load("a" * 300), "^no such folder, nor on the hub"),
        (lambda: model.compress(np.zeros((0, 8), np.uint8)), "^image: ndarray uint8 .* is no image"),
        (lambda: model.compress(images[0], profile=None), "^profile: unknown None; choose from"),
        (lambda: ancestral.train(images, tmp_path / "x", preset=None), "preset: unknown"),
        (lambda: ancestral.train(images, tmp_path / "x", budget=[3]), "budget: must be a number"),
        (lambda: model.film(1, steps=2).save("film.avi"), "film.avi"),
        (lambda: model.bits_per_dim(), "images in memory"),
        (lambda: model.bits_per_dim(images[:, :4]), "the model's are"),
        (lambda: model.edit.inpaint(images[0, :4], images[0]), "4x8"),
        (lambda: model.edit.inpaint(images[0], np.zeros((8, 8), bool)), "nothing is white"),
        (lambda: ancestral.load(tmp_path), str(tmp_path)),
        (lambda: ancestral.load(run.folder, "gpu"), "^device: 'gpu'"),
        (
            lambda: ancestral.train(images, run.folder, steps=9, **TINY),
            'another length .*; budget="\\+10m" trains .* fresh=',
        ),
        (lambda: ancestral.train(images, run.folder, budget="10 parsecs"), "10 parsecs"),
        (lambda: ancestral.train(images, run.folder, wdith=3), "width"),
        (lambda: ancestral.train(images, run.folder, width=-3), "^width: "),
        (lambda: ancestral.train(images, run.folder, preset="tyni"), "^preset: "),
    ):
        with pytest.raises(ancestral.UserError, match=said) as error:
            call()
        assert "--" not in str(error.value).partition("ancestral ")[0]  # no option of the command, but in one quoted


NOTEBOOKS = {  # with how many pictures each shows
    "first_model": 3,
    "bound": 2,
    "edit_and_compress": 2,
}


def test_the_notebooks_run(tmp_path, monkeypatch):
    """All of their cells, on other data for less time; what they store is of the same kinds."""
    pytest.importorskip("sklearn")
    pytest.importorskip("constriction")
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(NOTEBOOKS)
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "scripts" / "notebook.py")
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    monkeypatch.chdir(tmp_path)

    def kinds(of):
        return [[kind for one in cell.get("outputs", ()) for kind in one.get("data", ["text"])] for cell in of["cells"]]

    for name, pictures in NOTEBOOKS.items():
        stored = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text())
        made = notebook.run(stored, DATA="digits", BUDGET="2s")
        assert kinds(made) == kinds(stored)
        assert sum(kind == "image/png" for cell in kinds(stored) for kind in cell) == pictures
    assert {path.name for path in (tmp_path / "runs" / "first").iterdir()} >= {"digits.png", "film.gif"}


def test_the_command_goes_on_with_a_run_of_ours(tmp_path, command):
    """Of a data set that has a name: the same settings, length and seed are the same run."""
    pytest.importorskip("sklearn")
    run = ancestral.train("digits", tmp_path / "run", steps=3, **TINY)
    options = ("--preset", "tiny", "--steps", 3, "--device", "cpu", "--batch-size", 8, "--set", "model.width=8")
    result = command("train", "digits", "--out", run.folder, *options, "--set", "train.snapshots=2")
    assert result.exit_code == 0, result.output
    assert "is complete" in result.output


if __name__ == "__main__":
    STORED.write_text("\n".join(public()) + "\n")
