"""Data beyond memory: mapped arrays, the cache of decoded images, tar shards, data sets, batches prepared ahead."""

import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from ancestral.data import cache, huggingface, image_folder
from ancestral.data.dataset import Item, Rows
from ancestral.data.decode import BadImage
from ancestral.data.load import DataOptions, is_local, is_there, load, of_any, settled
from ancestral.errors import UserError
from ancestral.training import prefetch
from conftest import png16

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def same(a, b):
    return all(
        (one.images[:] == other.images[:]).all() and one.names == other.names and list(one.labels) == list(other.labels)
        for one, other in ((a.train, b.train), (a.test, b.test))
    )


def folder(root):
    for n, pixels in enumerate(PIXELS):
        (root / f"class{n % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"class{n % 2}" / f"{n:02d}.png").write_bytes(encoded(pixels))
    return root


# Mapped arrays ------------------------------------------------------------------------------------------------------


def test_an_array_file_is_mapped_not_read(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    np.save(tmp_path / "x.labels.npy", np.arange(40) % 5)
    splits = load(str(tmp_path / "x.npy"), DataOptions())
    for part in (splits.train, splits.test, splits.train.take(range(3)), splits.train.spread(4)):
        assert isinstance(part.images, Rows)
        assert isinstance(part.images.source, np.memmap)
    whole = {one.tobytes(): label for one, label in zip(PIXELS, np.arange(40) % 5, strict=True)}
    for part in (splits.train, splits.test):
        assert [whole[one.tobytes()] for one in part.images[:]] == part.labels.tolist()
    np.savez(tmp_path / "x.npz", train_images=splits.train.images[:], test_images=PIXELS[:2])
    plain = load(str(tmp_path / "x.npz"), DataOptions()).train
    rows = [3, 1, 3]
    assert (prefetch.batch(splits.train, 0, rows, True).x0() == prefetch.batch(plain, 0, rows, True).x0()).all()


def test_reading_a_sparse_giant_costs_what_is_looked_at(tmp_path):
    """39 GB of images on a disk that has a few blocks of them."""
    header = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (200_000, 256, 256, 3))
    header[7] = 255
    del header
    part = cache.array(tmp_path / "x.npy")
    assert part.images[[7]].min() == 255
    assert len(part.spread(16)) == 16


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path: np.save(path, PIXELS.astype(np.float32)), "must be uint8"),
        (lambda path: np.save(path, PIXELS[0, 0]), "C 1, 3 or 4"),
        (lambda path: np.save(path, np.array([{}], dtype=object)), "pickled objects"),
        (lambda path: path.write_bytes(b"nothing"), "without"),
    ],
)
def test_array_errors(tmp_path, write, problem):
    write(tmp_path / "x.npy")
    with pytest.raises(UserError, match=problem):
        load(str(tmp_path / "x.npy"), DataOptions())


def test_array_labels_must_fit(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    for labels in (np.arange(39), -np.arange(40), np.arange(40.0), np.full(40, 10**6)):
        np.save(tmp_path / "x.labels.npy", labels)
        with pytest.raises(UserError, match=r"x\.labels\.npy"):
            load(str(tmp_path / "x.npy"), DataOptions())
    np.save(tmp_path / "x.labels.npy", np.zeros(40, np.uint8))
    with pytest.raises(UserError, match="leave data"):
        load(str(tmp_path / "x.npy"), DataOptions(size=8))


# The cache ----------------------------------------------------------------------------------------------------------


def test_a_cached_folder_is_decoded_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    root = folder(tmp_path / "images")
    options = DataOptions(cache=str(tmp_path / "cache"), bad_images="skip")
    (root / "class0" / "bad.png").write_bytes(b"not an image")
    plain = load(str(root), DataOptions(bad_images="skip"))
    first = load(str(root), options)
    assert isinstance(first.train.images, Rows)
    monkeypatch.setattr("ancestral.data.image_folder.decode", lambda *args: pytest.fail("decoded again"))
    again = load(str(root), options)
    assert same(first, again)
    assert same(first, plain)
    assert first.skipped == again.skipped == plain.skipped != ()
    monkeypatch.undo()
    (root / "class1" / "01.png").write_bytes(encoded(255 - PIXELS[1]))
    assert load(str(root), options).train.digest() != first.train.digest()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "npy"])
def test_what_is_white_is_looked_for_once(tmp_path, channels, kind, monkeypatch):
    """The largest value is found by decoding all; it is kept with the cache until a file changes."""
    values = RNG.integers(0, 3826, (12, 4, 4, channels), dtype=np.uint16)
    values[3, 0, 0] = 3825
    source, options = tmp_path / "x.npy", DataOptions(cache=str(tmp_path / "cache"), bad_images="skip")
    if kind == "npy":
        np.save(source, values)
    else:
        source = tmp_path / "set"
        for number, one in enumerate(values):
            png16(source / f"{number}.png", one)
    first = load(str(source), options)
    assert first.reading.white == 4095
    with monkeypatch.context() as patch:
        patch.setattr("ancestral.data.image_folder.look", lambda *_: pytest.fail("looked again"))
        patch.setattr("ancestral.data.image_folder.decode", lambda *_: pytest.fail("decoded again"))
        patch.setattr("ancestral.data.load.scaled", lambda *_: pytest.fail("decoded again"))
        for known in (options, replace(options, white=4095)):  # as found, and as the run then says
            again = load(str(source), known)
            assert again.train.digest() == first.train.digest()
            assert again.reading.left_out == first.reading.left_out
    if kind == "npy":
        np.save(source, values + 1000)
    else:
        png16(source / "3.png", values[3] + 1000)
    assert load(str(source), options).reading.white == 8191


def test_what_made_a_file_bad_may_have_passed(tmp_path, monkeypatch):
    """Permissions, a disk or another Pillow change neither its name nor its size or time."""
    root, options = folder(tmp_path / "images"), DataOptions(cache=str(tmp_path / "cache"), bad_images="skip")
    own = image_folder.look

    def refuse(path, most):
        if path.name == "05.png":
            raise BadImage(f"{path}: cannot be read (Permission denied)")
        return own(path, most)

    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "look", refuse)
        assert len(load(str(root), options).skipped) == 1
    assert not load(str(root), options).skipped


@pytest.mark.parametrize("damage", ["truncate", "index", "remove"])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    root, options = folder(tmp_path / "images"), DataOptions(cache=str(tmp_path / "cache"))
    first = load(str(root), options)
    digest = first.train.digest()
    (kept,) = (path.parent for path in (tmp_path / "cache").glob("*/images.bin"))
    if damage == "truncate":
        (kept / "images.bin").write_bytes((kept / "images.bin").read_bytes()[:-1])
    elif damage == "index":
        (kept / "index.json").write_text("{}")
    else:
        (kept / "images.bin").unlink()
    assert load(str(root), options).train.digest() == digest


def test_the_cache_is_written_image_by_image(tmp_path):
    held = []

    def read(skipped):
        for n in range(1000):
            item = Item(np.full((64, 64, 3), n % 256, np.uint8), n % 3, str(n))
            held.append(item.pixels)
            assert len(held) <= 1000
            yield item
            held.pop()

    made = cache.gather(read, None, "here", str(tmp_path), "key", [])
    assert not held
    assert made.class_names == ("0", "1", "2")
    assert made.images[[999]][0, 0, 0, 0] == 999 % 256


# Tar shards ---------------------------------------------------------------------------------------------------------


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)


def samples(first, last):
    for n in range(first, last):
        yield f"a/{n:04d}.png", encoded(PIXELS[n])
        yield f"a/{n:04d}.cls", str(n % 3).encode()


def test_shards_are_read_in_order_with_labels(tmp_path):
    shard(tmp_path / "x-000.tar", samples(0, 20))
    shard(
        tmp_path / "x-001.tar",
        [*samples(20, 39), ("a/0039.png", encoded(PIXELS[39])), ("a/0039.json", b'{"label": 0}')],
    )
    by_range = load(f"{tmp_path}/x-{{000..001}}.tar", DataOptions())
    by_folder = load(str(tmp_path), DataOptions(cache=str(tmp_path / "cache")))
    assert same(by_range, by_folder)
    assert by_range.train.class_names == ("0", "1", "2")
    number = {f"x-{n // 20:03d}.tar/a/{n:04d}": n for n in range(40)}
    for part in (by_range.train, by_range.test):
        rows = [number[name] for name in part.names]
        assert rows == sorted(rows)
        assert (part.images[:] == PIXELS[rows]).all()
        assert part.labels.tolist() == [row % 3 for row in rows]


def test_labels_of_some_images_are_said_to_be_none(tmp_path):
    shard(tmp_path / "in" / "x.tar", [*samples(0, 20), ("a/0020.png", encoded(PIXELS[20]))])
    pairs = [(Image.fromarray(PIXELS[n]), n % 3 if n < 20 else -1) for n in range(21)]
    cached = DataOptions(cache=str(tmp_path / "cache"))
    for source, options in ((str(tmp_path / "in"), cached), (str(tmp_path / "in"), cached), (pairs, DataOptions())):
        splits = of_any(source, options)
        assert (splits.train.labels, splits.test.labels, splits.train.class_names) == (None, None, ())
        assert splits.reading.classes == "none, since 1 of 21 have no label"
    assert of_any([image for image, _ in pairs], DataOptions()).reading.classes == "none"


def special(kind, name="a.png", target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return [(info, b"")]


PICTURE = encoded(PIXELS[0])
HOSTILE = {
    "a pickle": [("0.png", PICTURE), ("0.pkl", b"cos\nsystem\n")],
    "a tensor": [("0.png", PICTURE), ("0.pth", b"x")],
    "python": [("0.pyd", b"x")],
    "an array": [("0.npy", b"x")],
    "no suffix": [("0", PICTURE)],
    "two suffixes": [("0.png.pkl", PICTURE)],
    "a pipe": special(tarfile.FIFOTYPE),
    "a symbolic link": special(tarfile.SYMTYPE),
    "a hard link": special(tarfile.LNKTYPE),
    "a device": special(tarfile.CHRTYPE),
    "a block device": special(tarfile.BLKTYPE),
    "above": [("../0.png", PICTURE)],
    "far above": [("a/../../0.png", PICTURE)],
    "absolute": [("/0.png", PICTURE)],
    "twice": [("0.png", PICTURE), ("0.png", PICTURE)],
    "apart": [("0.png", PICTURE), ("1.png", PICTURE), ("0.cls", b"1")],
    "no image": [("0.cls", b"1")],
    "two images": [("0.png", PICTURE), ("0.jpg", PICTURE)],
    "label text": [("0.png", PICTURE), ("0.cls", b"cat")],
    "label below zero": [("0.png", PICTURE), ("0.cls", b"-1")],
    "label huge": [("0.png", PICTURE), ("0.cls", b"1" + b"0" * 30)],
    "label endless": [("0.png", PICTURE), ("0.cls", b"1" * 5000)],
    "label float": [("0.png", PICTURE), ("0.json", b'{"label": 1.5}')],
    "json list": [("0.png", PICTURE), ("0.json", b"[" * 50_000)],
    "json broken": [("0.png", PICTURE), ("0.json", b"{")],
    "text too long": [("0.png", PICTURE), ("0.txt", b"x" * 100_001)],
    "broken image": [("0.png", PICTURE[:40]), ("1.png", PICTURE)],
    "other size": [("0.png", PICTURE), ("1.png", encoded(PIXELS[0][:2]))],
    "one image": [("0.png", PICTURE)],
    "nothing": [],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_shards_are_refused_by_name(tmp_path, name):
    shard(tmp_path / "in" / "x.tar", HOSTILE[name])
    with pytest.raises(UserError, match=r"x\.tar|in"):
        load(str(tmp_path / "in" / "x.tar"), DataOptions())
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "x.tar"]  # nothing came out


@pytest.mark.parametrize("source", ["pipe:cat x.tar", "http://127.0.0.1/x.tar", "x-{0..1}.tar", "x-{0..999999}.tar"])
def test_only_local_files_are_shards(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file|more than"):
        load(source, DataOptions())


def test_cut_and_random_shards(tmp_path):
    shard(tmp_path / "x.tar", samples(0, 6))
    whole = (tmp_path / "x.tar").read_bytes()
    for length in [*range(0, 12_000, 700), 513, 1025]:
        (tmp_path / "x.tar").write_bytes(whole[:length])
        try:
            load(str(tmp_path / "x.tar"), DataOptions())
        except UserError:
            continue
    for seed in range(20):
        (tmp_path / "x.tar").write_bytes(np.random.default_rng(seed).bytes(4096))
        with pytest.raises(UserError):
            load(str(tmp_path / "x.tar"), DataOptions())


def test_a_shard_without_its_end_is_not_taken_for_a_whole_one(tmp_path):
    shard(tmp_path / "x.tar", samples(0, 6))
    whole = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        starts = [member.offset for member in archive]
    for length in (*starts[1:], starts[-1] + 100, starts[3] + 511):  # between two members, and within a header
        (tmp_path / "x.tar").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"x\.tar: has no end|x\.tar: cannot be read"):
            load(str(tmp_path / "x.tar"), DataOptions())


def test_a_shard_is_grey_where_its_first_hundred_images_are(tmp_path):
    shard(tmp_path / "x.tar", [("0.png", encoded(PIXELS[0][..., 0])), *samples(0, 6)])
    assert load(str(tmp_path / "x.tar"), DataOptions()).train.shape[2] == 3
    shard(tmp_path / "y.tar", [(f"{n:04d}.png", encoded(PIXELS[n % 40][..., 0] + n % 7)) for n in range(150)])
    grey = load(str(tmp_path / "y.tar"), DataOptions())
    assert grey.train.shape[2] == 1
    assert "grey, as the first 100 images are (in colour: --set data.channels=3)" in grey.reading.notes


# Hugging Face datasets ----------------------------------------------------------------------------------------------


def test_what_a_hub_has_changed_is_read_again(tmp_path, monkeypatch):
    datasets, options = pytest.importorskip("datasets"), DataOptions(cache=str(tmp_path / "cache"))

    class Set:
        def __init__(self, grey, commit):
            self.grey, self.hash = grey, commit

        def as_streaming_dataset(self):
            rows = {"image": [Image.new("L", (4, 4), self.grey) for _ in range(20)]}
            made = datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image()))
            return datasets.IterableDatasetDict(train=made.to_iterable_dataset())

    found = []
    for grey, commit in ((10, "a"), (99, "a"), (200, "b")):
        made = Set(grey, commit)
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, made=made: made)
        found.append(int(load("hf:somebody/photos", options).train.images[:].max()))
    assert found == [10, 10, 200]


def test_parquet_and_imagefolder(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["class0", "class1"])})
    rows = {
        "picture": [{"bytes": encoded(pixels), "path": None} for pixels in PIXELS],
        "kind": [n % 2 for n in range(len(PIXELS))],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(str(tmp_path / "x.parquet"))
    parquet = load(f"hf:{tmp_path}/x.parquet", DataOptions(cache=str(tmp_path / "cache")))
    files = load(f"hf:{folder(tmp_path / 'images')}", DataOptions())
    assert parquet.train.class_names == files.train.class_names == ("class0", "class1")
    whole = {pixels.tobytes(): n % 2 for n, pixels in enumerate(PIXELS)}
    for splits in (parquet, files):
        found = [
            (one.tobytes(), label)
            for part in (splits.train, splits.test)
            for one, label in zip(part.images[:], part.labels, strict=True)
        ]
        assert dict(found) == whole
        assert len(found) == len(PIXELS)


def test_cells_that_are_empty_or_damaged(tmp_path):
    """No image in a cell is a bad image, no number in one of labels no class; the first that can be read is grey."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])})
    whole = [{"bytes": encoded(pixels[..., 0]), "path": None} for pixels in PIXELS]
    rows = {"picture": [{"bytes": b"none", "path": None}, None, *whole], "kind": [0, 1, *[1] * len(PIXELS)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match=r"2 bad images: .*x\.parquet/train\[0\].*train\[1\]"):
        load(f"hf:{tmp_path}/x.parquet", DataOptions())
    read = load(f"hf:{tmp_path}/x.parquet", DataOptions(bad_images="skip"))
    assert len(read.train) + len(read.test) == len(PIXELS)
    assert read.train.shape == (4, 4, 1)
    made = datasets.Dataset.from_dict({"picture": whole, "kind": [None, *[1] * 39]}, features=features)
    made.to_parquet(str(tmp_path / "y.parquet"))
    assert load(f"hf:{tmp_path}/y.parquet", DataOptions()).train.labels is None  # as not every image has one
    whole[3] = {"bytes": encoded(np.zeros((5, 4), np.uint8)), "path": None}
    made = datasets.Dataset.from_dict({"picture": whole}, features=datasets.Features({"picture": datasets.Image()}))
    made.to_parquet(str(tmp_path / "z.parquet"))
    with pytest.raises(UserError, match=rf"^hf:{tmp_path}/z\.parquet/train\[3\]: 5x4"):
        load(f"hf:{tmp_path}/z.parquet", DataOptions())


def test_cells_that_name_a_file(tmp_path, monkeypatch):
    """Streamed from image files they have no bytes; what is no file is not opened."""
    datasets = pytest.importorskip("datasets")
    write = [(tmp_path / f"{n}.png").write_bytes(encoded(pixels)) for n, pixels in enumerate(PIXELS)]
    os.mkfifo(tmp_path / "pipe")
    cells = [{"bytes": None, "path": str(tmp_path / f"{n}.png")} for n in range(len(write))]
    features = datasets.Features({"mask": datasets.Image(), "image": datasets.Image()})
    rows = {"mask": [{"bytes": None, "path": str(tmp_path / "pipe")}, *cells[1:]], "image": cells}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    read = load(f"hf:{tmp_path}/x.parquet", DataOptions(bad_images="skip"))
    assert len(read.train) + len(read.test) == len(PIXELS) - 1
    assert "the images are of the column mask, not of image" in read.reading.notes
    remote = {"bytes": None, "path": f"zip://a.png::{tmp_path}/a.zip"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"content")
    assert huggingface._bytes(remote, "hf:x") == b"content"
    with pytest.raises(UserError, match="hf:x: cannot be read"):
        huggingface._bytes({"bytes": None, "path": f"zip://b.png::{tmp_path}/a.zip"}, "hf:x")
    monkeypatch.chdir(tmp_path)
    assert settled("hf:x.parquet") == f"hf:{tmp_path}/x.parquet"
    assert settled("hf:*.parquet") == f"hf:{tmp_path}/*.parquet"
    assert settled("hf:somebody/photos") == "hf:somebody/photos"
    known = [is_local(source) for source in ("hf:x.parquet", "hf:somebody/photos", f"hf:{tmp_path}/absent.parquet")]
    assert known == [True, False, False]
    assert not is_there(f"hf:{tmp_path}/absent.parquet")


def test_parts_of_a_data_set_agree(tmp_path):
    pytest.importorskip("datasets")

    def write(name, pixels):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(pixels))

    for n in range(6):
        write(f"one/train/{n}.png", PIXELS[n] if n else PIXELS[n][..., 0])  # the first is grey
        write(f"one/test/{n}.png", PIXELS[n + 6])
        write(f"two/train/{n}.png", PIXELS[n])
        write(f"two/test/{n}.png", np.tile(PIXELS[n], (2, 2, 1)))
    assert load(f"hf:{tmp_path}/one", DataOptions()).train.shape[2] == 3
    with pytest.raises(UserError, match="two: images differ in size between the splits"):
        load(f"hf:{tmp_path}/two", DataOptions())


def test_what_a_data_set_trips_over_on_its_way_is_one_line(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"picture": [{"bytes": encoded(pixels), "path": None} for pixels in PIXELS]}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features({"picture": datasets.Image()}))
    made.to_parquet(str(tmp_path / "x.parquet"))
    whole = bytearray((tmp_path / "x.parquet").read_bytes())
    whole[20:400] = bytes(380)
    (tmp_path / "x.parquet").write_bytes(bytes(whole))
    with pytest.raises(UserError, match=r"x\.parquet.*cannot be"):
        load(f"hf:{tmp_path}/x.parquet", DataOptions())


def test_data_set_errors(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match="no column of images; it has text"):
        load(f"hf:{tmp_path}/x.parquet", DataOptions())
    with pytest.raises(UserError, match="cannot be opened"):
        load(f"hf:{tmp_path}/absent.parquet", DataOptions())
    with pytest.raises(UserError, match="cannot be opened"):
        load("hf:nobody/nothing", DataOptions())


# Batches prepared ahead ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(tmp_path, workers):
    images = load(str(folder(tmp_path / "images")), DataOptions()).train
    make = partial(prefetch.batch, seed=3, flip=True)
    plain, ahead = prefetch.Prefetcher(make, 0), prefetch.Prefetcher(make, workers)
    for start in [*range(0, 400, 8), 48]:  # and back, as after an interruption
        numbers = range(start, start + 8)
        one, two = (each(images, numbers, 8) for each in (plain, ahead))
        assert one.rows == two.rows
        assert (one.x0() == two.x0()).all()
        assert (one.eps() == two.eps()).all()
        assert (one.cond["labels"] == two.cond["labels"]).all()
        assert len(ahead._ahead) <= workers + 1


def test_json_index_is_plain(tmp_path):
    load(str(folder(tmp_path / "images")), DataOptions(cache=str(tmp_path / "cache")))
    (kept,) = (path.parent for path in (tmp_path / "cache").glob("*/images.bin"))
    assert json.loads((kept / "index.json").read_text())["shape"] == [4, 4, 3]
