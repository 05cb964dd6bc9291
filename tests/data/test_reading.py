"""What is understood of a source, and that nothing is lost without a word. Each on grey and on colour."""

import io
import json
import os
import struct
import tarfile
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ancestral
from ancestral.apps.server import session
from ancestral.data.bit_depth import WIDEST, is_read_at_8, scaled, white_for
from ancestral.data.dataset import DataOptions
from ancestral.data.decode import SUFFIXES, BadImage, decode, look
from ancestral.data.inventory import BAD
from ancestral.data.load import load
from ancestral.data.pixels import to_bytes
from ancestral.errors import UserError
from ancestral.runs import checkpoint, conditions, config
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime.encode import data_uri
from ancestral.sampling import export
from ancestral.sampling.editor import FileEditor, Sources
from ancestral.sampling.sampler import Sampler
from ancestral.sampling.table import TableSampler
from ancestral.training.run import Run
from conftest import pixels, png16, run_command, save

grey_and_colour = pytest.mark.parametrize("channels", [1, 3])


def many(folder, names, channels, count=6, first=0):
    for place, name in enumerate(names):
        for n in range(count):
            save(folder / name / f"{name}{n}.png", first + 100 * place + n, channels)


def tiff16(path, values, order, compression, grey=1):
    height, width, channels = values.shape
    data = values.astype(order + "u2").tobytes()
    data = zlib.compress(data) if compression == 8 else data
    end = 8 + 2 + 9 * 12 + 4
    tags = [(256, 1, width), (257, 1, height), (258, channels, end if channels > 2 else 16), (259, 1, compression)]
    tags += [(262, 1, 2 if channels > 2 else grey), (273, 1, end + 2 * channels), (277, 1, channels), (278, 1, height)]
    tags += [(279, 1, len(data))]
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(tags))
    for tag, count, value in tags:
        short = tag not in (273, 279) and count == 1
        out += struct.pack(order + "HHI", tag, 3 if tag not in (273, 279) else 4, count)
        out += struct.pack(order + "HH", value, 0) if short else struct.pack(order + "I", value)
    path.write_bytes(out + struct.pack(order + "I", 0) + struct.pack(order + f"{channels}H", *[16] * channels) + data)


def test_a_negative_is_turned_at_16_bits_as_at_8(tmp_path):
    """TIFF's WhiteIsZero; of the other order of bytes Pillow reads none."""
    values = np.array([[0, 1000, 65535]], np.uint16)[..., None]
    tiff16(tmp_path / "deep.tif", values, "<", 1, grey=0)
    Image.fromarray(nearest(65535 - values, 65535)[..., 0].astype(np.uint8)).save(tmp_path / "flat.png")
    deep, flat = (decode(tmp_path / name, 1, None, "white", 100, white=WIDEST) for name in ("deep.tif", "flat.png"))
    assert np.array_equal(deep, flat)


def test_what_is_read_at_8_bits_of_more_is_known():
    """The configuration of AV1 in a file says it."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "AVIF")
    flat = file.getvalue()
    deep = bytearray(flat)
    deep[flat.index(b"av1C") + 6] |= 0x40
    for content, more in ((flat, False), (bytes(deep), True)):
        image = SimpleNamespace(format="AVIF", info={}, fp=io.BytesIO(content))
        assert is_read_at_8(image) == more
    assert ".fits" not in SUFFIXES  # Pillow takes their signed values for unsigned


def nearest(values, white):
    return np.round(values.astype(float) * 255 / white)


@pytest.mark.parametrize(("largest", "white"), [(0, 255), (255, 255), (256, 511), (3825, 4095), (65535, 65535)])
def test_white_is_the_smallest_that_covers(largest, white):
    assert white_for(largest) == white
    values = np.arange(white + 1, dtype=np.uint16)
    assert np.abs(scaled(values, white) - values * 255.0 / white).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("filtered", [False, True])
def test_every_bit_of_a_deep_png_is_read(tmp_path, channels, filtered):
    values = pixels(channels, channels, 4096)
    if channels in (2, 4):
        values[..., -1] = 65535 - values[..., -1]
    png16(tmp_path / "a.png", values, filtered)
    colour = values[..., : 1 if channels < 3 else 3]
    assert look(tmp_path / "a.png", 10**6).largest == colour.max()
    found = decode(tmp_path / "a.png", 4, None, "white", 10**6, white=4095)
    assert (found[..., :3] == nearest(colour, 4095)).all()
    assert (found[..., 3] == (nearest(values[..., -1], 65535) if channels in (2, 4) else 255)).all()


@grey_and_colour
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
def test_every_bit_of_a_deep_tiff_is_read(tmp_path, channels, order, compression):
    values = pixels(1, channels, 4096)
    tiff16(tmp_path / "a.tif", values, order, compression)
    assert look(tmp_path / "a.tif", 10**6).largest == values.max()
    assert (decode(tmp_path / "a.tif", channels, None, "white", 10**6, white=4095) == nearest(values, 4095)).all()


def deep(root, channels):
    """Twelve files of 12 bits; the values of each, by name."""
    made = {f"{n}.png": pixels(n, channels, 3826) for n in range(12)}
    made["0.png"][0, 0] = 3825
    for name, values in made.items():
        png16(root / name, values)
    return made


@grey_and_colour
def test_the_largest_value_of_a_set_decides_what_is_white(tmp_path, channels):
    made = deep(tmp_path, channels)
    for options, white in ((DataOptions(), 4095), (DataOptions(white=65535), 65535)):
        splits = load(str(tmp_path), options)
        assert splits.reading.white == white
        assert any("more than 8 bits" in note and str(white) in note for note in splits.reading.notes)
        for part in (splits.train, splits.test):
            for name, image in zip(part.names, part.images[:], strict=True):
                assert (image == nearest(made[name], white)).all()
    with pytest.raises(UserError, match=r"has the value 3825, above data\.white=2000"):
        load(str(tmp_path), DataOptions(white=2000))
    plain, cache = load(str(tmp_path), DataOptions()), str(tmp_path.with_name(f"{tmp_path.name}-cache"))
    for _ in range(2):  # decoded, then from the cache
        assert load(str(tmp_path), DataOptions(cache=cache)).reading == plain.reading


@grey_and_colour
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_arrays_of_sixteen_bits(tmp_path, channels, suffix):
    values = np.stack([pixels(n, channels, 3826) for n in range(20)])
    values[3, 0, 0] = 3825
    path = tmp_path / f"x.{suffix}"
    np.savez(path, images=values) if suffix == "npz" else np.save(path, values)
    for options in (DataOptions(), DataOptions(cache=str(tmp_path / "cache"))):
        splits = load(str(path), options)
        whole = {one.tobytes() for one in nearest(values, 4095).astype(np.uint8)}
        assert {one.tobytes() for part in (splits.train, splits.test) for one in part.images[:]} == whole
        assert splits.reading.white == 4095
    with pytest.raises(UserError, match=r"data\.white=1000"):
        load(str(path), DataOptions(white=1000))


@pytest.mark.parametrize("kind", [np.int16, np.int64, np.float32, np.uint32])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_other_kinds_of_numbers_are_refused_with_the_mend(tmp_path, kind, suffix):
    path, values = tmp_path / f"x.{suffix}", np.zeros((9, 4, 4, 3), kind)
    np.savez(path, images=values) if suffix == "npz" else np.save(path, values)
    with pytest.raises(UserError, match=r"uint8 .* or uint16"):
        load(str(path), DataOptions())


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_two_channels_are_refused_at_the_door(tmp_path, name):
    values = np.zeros((9, 4, 4, 2), np.uint8)
    np.savez(tmp_path / name, images=values) if name.endswith("z") else np.save(tmp_path / name, values)
    with pytest.raises(UserError, match="C 1, 3 or 4"):
        load(str(tmp_path / name), DataOptions())


@grey_and_colour
@pytest.mark.parametrize("suffix", ["gif", "tif", "png"])
def test_files_of_several_frames_are_counted(tmp_path, channels, suffix):
    for n in range(5):
        save(tmp_path / f"{n}.png", n, channels)
    frames = [Image.fromarray(pixels(90 + n, channels).astype(np.uint8).squeeze()) for n in range(2)]
    frames[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=frames[1:])
    (note,) = [note for note in load(str(tmp_path), DataOptions()).reading.notes if "several frames" in note]
    assert note == f"1 file with several frames, of which the first is used: many.{suffix}"


@grey_and_colour
@pytest.mark.parametrize("test", ["valid", "Val", "VALIDATION", "test", "Testing", "eval"])
@pytest.mark.parametrize("inside", ["", "dataset"])
def test_splits_however_spelled_or_nested(tmp_path, channels, test, inside):
    train = "Train" if test[0].isupper() else "train"
    many(tmp_path / inside / train, ("disc", "box"), channels)
    many(tmp_path / inside / test, ("disc", "box"), channels, 2, 500)
    splits = load(str(tmp_path), DataOptions())
    assert (len(splits.train), len(splits.test)) == (12, 4)
    assert splits.train.class_names == ("box", "disc")
    assert train in splits.reading.split
    assert test in splits.reading.split


@grey_and_colour
def test_what_a_split_leaves_out_is_said(tmp_path, channels):
    many(tmp_path / "train", ("disc",), channels)
    many(tmp_path / "test", ("disc",), channels, 2, 500)
    many(tmp_path / "val", ("disc",), channels, 3, 700)
    save(tmp_path / "cover.png", 900, channels)
    reading = load(str(tmp_path), DataOptions()).reading
    assert reading.left_out["in val, while test is what is held out"] == tuple(
        f"val/disc/disc{n}.png" for n in range(3)
    )
    assert reading.left_out["beside train and test"] == ("cover.png",)
    assert (reading.found, reading.used) == (12, 8)
    alone = load(str(tmp_path / "train" / ".."), DataOptions(limit=4)).reading
    assert (alone.found, alone.used) == (12, 6)


@grey_and_colour
def test_one_part_alone_is_the_set(tmp_path, channels):
    many(tmp_path / "valid", ("disc", "box"), channels)
    (tmp_path / "README.md").write_text("about")
    splits = load(str(tmp_path), DataOptions())
    assert len(splits.train) + len(splits.test) == 12
    assert splits.train.class_names == ("box", "disc")
    assert splits.reading.left_out == {".md is no image format that is read": ("README.md",)}


@grey_and_colour
def test_labels_of_dataset_json(tmp_path, channels):
    pairs = []
    for n in range(24):
        name = f"{n // 12:05d}/img{n:08d}.png"
        save(tmp_path / name, n, channels)
        pairs.append([name, n % 12])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": pairs}))
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.class_names == tuple(map(str, range(12)))
    assert splits.reading.classes == "dataset.json"
    for part in (splits.train, splits.test):
        assert part.labels.tolist() == [dict(pairs)[name] for name in part.names]
    (tmp_path / "dataset.json").write_text('{"labels": null}')
    assert load(str(tmp_path), DataOptions()).train.labels is None  # the folders are pieces, not classes
    for wrong in ('{"labels": 3}', '{"labels": [["a.png", 0.5]]}', '{"labels": [["a.png", -1]]}', "{", "[" * 9999):
        (tmp_path / "dataset.json").write_text(wrong)
        with pytest.raises(UserError, match=r"dataset\.json"):
            load(str(tmp_path), DataOptions())


@grey_and_colour
def test_parts_whose_classes_are_numbers_in_one_and_names_in_another(tmp_path, channels):
    for part, kind in (("train", "00000"), ("test", "cat")):
        save(tmp_path / part / kind / "1.png", 1, channels)
    (tmp_path / "train" / "dataset.json").write_text('{"labels": [["00000/1.png", 3]]}')
    with pytest.raises(UserError, match=r"from dataset\.json, as numbers, another from the folders"):
        load(str(tmp_path), DataOptions())
    (tmp_path / "test" / "dataset.json").write_text('{"labels": [["cat/1.png", 12]]}')
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.class_names == ("3", "12")
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([0], [1])


@grey_and_colour
def test_a_class_that_comes_to_another_part_moves_no_cached_label(tmp_path, channels):
    """Labels are numbers that count the classes of all parts."""
    for part in ("train", "test"):
        for kind in ("cat", "dog"):
            save(tmp_path / "set" / part / kind / "1.png", 1, channels)
    options = DataOptions(cache=str(tmp_path / "cache"))
    assert load(str(tmp_path / "set"), options).train.labels.tolist() == [0, 1]
    save(tmp_path / "set" / "test" / "ant" / "1.png", 1, channels)
    splits = load(str(tmp_path / "set"), options)
    assert splits.train.class_names == ("ant", "cat", "dog")
    assert splits.train.labels.tolist() == [1, 2]


@grey_and_colour
def test_all_that_pillow_reads_and_the_rest_by_kind(tmp_path, channels):
    suffixes = ("png", "ppm", "jp2", "jfif", "tga", "avif", "pcx", "qoi", "sgi", "ico")
    used = [suffix for suffix in suffixes if f".{suffix}" in SUFFIXES]
    if channels == 1:
        used = [suffix for suffix in used if suffix != "qoi"]
    for n, suffix in enumerate(used):
        options = {"format": "JPEG"} if suffix == "jfif" else {}
        save(tmp_path / f"{n}.{suffix}", n, 3 if suffix in ("qoi", "avif") else channels, **options)
    for name in ("a.txt", "b.txt", "c.eps", "d"):
        (tmp_path / name).write_text("%!PS-Adobe")
    reading = load(str(tmp_path), DataOptions(size=8)).reading
    assert reading.used == len(used) >= 8
    assert reading.found == len(used) + 4
    assert reading.left_out[".txt is no image format that is read"] == ("a.txt", "b.txt")
    assert reading.left_out["without a suffix"] == ("d",)


def test_no_program_and_no_rare_parser_is_reached_by_a_false_name(tmp_path):
    assert not SUFFIXES & {".eps", ".ps", ".pdf", ".wmf", ".emf", ".mpg", ".mpeg", ".h5", ".grib", ".bufr"}
    save(tmp_path / "a.pcx", 0, 3)
    (tmp_path / "a.pcx").rename(tmp_path / "a.png")
    with pytest.raises(BadImage, match="not an image"):
        decode(tmp_path / "a.png", 3, None, "white", 10**6)
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(BadImage, match="not an image"):
        decode(tmp_path / "b.png", 3, None, "white", 10**6)


@grey_and_colour
def test_linked_folders_are_followed_once(tmp_path, channels):
    many(tmp_path / "set", ("disc",), channels)
    many(tmp_path / "away", ("box",), channels, first=500)
    (tmp_path / "set" / "box").symlink_to(tmp_path / "away" / "box")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "away" / "box" / "back").symlink_to(tmp_path / "set" / "disc")
    splits = load(str(tmp_path / "set"), DataOptions())
    assert splits.train.class_names == ("box", "disc")
    assert splits.reading.used == 12
    assert splits.reading.left_out["a link to a folder that is read already"] == ("box/back", "loop")


@grey_and_colour
def test_a_stray_picture_is_named_with_the_mend(tmp_path, channels):
    many(tmp_path, ("disc", "box"), channels)
    save(tmp_path / "cover.png", 900, channels)
    splits = load(str(tmp_path), DataOptions())
    assert splits.train.labels is None
    assert "cover.png lies beside the folders box, disc" in splits.reading.classes
    assert "move it" in splits.reading.classes


@grey_and_colour
def test_every_bad_file_is_named_at_once(tmp_path, channels):
    many(tmp_path, ("disc",), channels)
    (tmp_path / "disc" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "disc" / "text.png").write_text("no image")
    save(tmp_path / "disc" / "cut.png", 800, channels)
    whole = (tmp_path / "disc" / "cut.png").read_bytes()
    (tmp_path / "disc" / "cut.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "disc" / "pipe.png")
    with pytest.raises(UserError, match="4 bad images") as refused:
        load(str(tmp_path), DataOptions())
    assert all(
        name in str(refused.value) for name in ("gone.png", "text.png", "cut.png", "pipe.png", "bad_images=skip")
    )
    splits = load(str(tmp_path), DataOptions(bad_images="skip"))
    assert splits.reading.used == 6
    assert len(splits.reading.left_out[BAD]) == 4
    assert splits.reading.found == 10


@grey_and_colour
def test_a_pipe_named_like_shards_is_never_opened(tmp_path, channels):
    many(tmp_path, ("disc",), channels)
    os.mkfifo(tmp_path / "a.tar")
    os.mkfifo(tmp_path / "metadata.csv")
    reading = load(str(tmp_path), DataOptions()).reading
    assert reading.left_out == {"not a regular file": ("a.tar",)}
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 3), np.uint8))
    os.mkfifo(tmp_path / "x.labels.npy")
    with pytest.raises(UserError, match=r"x\.labels\.npy"):
        load(str(tmp_path / "x.npy"), DataOptions())


@grey_and_colour
def test_names_are_only_names(tmp_path, channels):
    names = ("exp[red]1.png", "line\nleft out: nothing.png", "esc\x1b[31m.png", "rtl\u202egnp.png", "plain.png")
    for n, name in enumerate(names):
        save(tmp_path / name, n, channels)
    splits = load(str(tmp_path), DataOptions())
    assert sorted(splits.train.names + splits.test.names) == sorted(names)
    json.dumps(splits.reading.to_json())


@grey_and_colour
def test_sizes_before_scaling_are_said(tmp_path, channels):
    save(tmp_path / "a.png", 0, channels)
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(tmp_path / "b.png")
    assert load(str(tmp_path), DataOptions(size=8)).reading.sizes == "from 8x8 to 30x20"


@grey_and_colour
def test_a_class_without_training_images_is_said_and_not_drawn(tmp_path, channels, command):
    many(tmp_path / "set" / "train", ("disc", "star"), channels, 10)
    many(tmp_path / "set" / "test", ("disc", "box"), channels, 4, 500)
    small = ("--device", "cpu", "--set", "model.width=8", "--set", "train.batch_size=4", "--set", "model.labels=true")
    trained = command("train", tmp_path / "set", "--preset", "tiny", "--steps", 2, "--out", tmp_path / "run", *small)
    assert trained.exit_code == 0, trained.output
    assert "no training image of the class box" in " ".join(trained.output.split())
    how = (tmp_path / "run", "--device", "cpu", "--num-images", 4, "--steps", 2)
    refused = command("sample", *how, "--label", "box")
    assert refused.exit_code == 2
    assert "no image of the class 'box' was trained on" in " ".join(refused.output.split())
    assert command("sample", *how, "--label", "star").exit_code == 0
    saved, _ = checkpoint.latest(tmp_path / "run")
    assert saved.facts.class_names == ("box", "disc", "star")
    assert conditions.in_turn(saved.facts, range(5)).tolist() == [1, 2, 1, 2, 1]
    sampler = Sampler(tmp_path / "run", SamplingOptions(steps=2), "cpu", export.opened)
    exported = export.facts(sampler, TableSampler(sampler.model.network, sampler))
    assert exported["classes"] == {"disc": 1, "star": 2}  # of files that draw without this package
    before = config.to_json(saved.config, replace(saved.facts, untrained=()))
    assert "untrained" not in before["facts"]
    assert config.from_json(before, "")[1].trained == ("box", "disc", "star")


@grey_and_colour
def test_a_run_reads_what_it_is_given_later_in_the_range_of_its_images(tmp_path, channels, command):
    """Of 12 bits: in `edit` and on the page a value means what it meant in training; a mask's white is its own."""
    made = deep(tmp_path / "set", channels)
    small = ("--device", "cpu", "--set", "model.width=8", "--set", "train.batch_size=4")
    job = ("train", tmp_path / "set", "--preset", "tiny", "--steps", 2, "--out", tmp_path / "run", *small)
    trained = command(*job)
    assert trained.exit_code == 0, trained.output
    assert "is complete" in command(*job).output
    file, mask = tmp_path / "set" / "0.png", tmp_path / "mask.png"
    png16(mask, np.repeat([[[0], [65535]]], 4, 1).repeat(8, 0).astype(np.uint16))
    expected = nearest(made["0.png"], 4095)
    sources = Sources([file], fit=False, out=tmp_path / "x.png", num_images=1, device="cpu")
    editor = FileEditor(tmp_path / "run", SamplingOptions(batch_size=4), sources, calls=1)
    assert (to_bytes(editor.read_all())[0] == expected).all()
    assert editor.read_mask(mask).float().mean() == 0.5
    model = ancestral.load(tmp_path / "run", "cpu")
    assert (model.edit.inpaint(file, mask, steps=6).array[0][:, :4] == expected[:, :4]).all()
    served = session.open_served_run(tmp_path / "run", "cpu", None)
    assert (served.decoded(data_uri(file.read_bytes()), "image") == expected).all()
    assert served.mask(data_uri(mask.read_bytes()), "mask").mean() == 127.5


@grey_and_colour
def test_a_run_from_before_white_was_kept_goes_on(tmp_path, channels):
    deep(tmp_path / "set", channels)
    chosen = {"model.width": 8, "train.batch_size": 4}
    before, now = (
        config.resolve(str(tmp_path / "set"), "tiny", chosen | extra) for extra in ({}, {"data.white": 4095})
    )
    first, again = (
        Run(tmp_path / "run", one, load(one.source, one.data), torch.device("cpu"), "--steps 4")
        for one in (before, now)
    )
    first.begin(16)
    assert list(first.train(lambda: first.training.images >= 8))
    again.resume()
    assert again.training.images == 8


def test_a_deep_file_alone_is_refused_where_nothing_says_what_is_white(any_run, tmp_path):
    """Twelve bits in sixteen would come out black; a file that fills sixteen, or a run that knows white, is read."""
    channels = 1 if any_run.name == "digits" else 3
    for name, white in (("twelve", 4095), ("sixteen", 65535)):
        values = np.linspace(0, white, 8 * 8 * channels).round().astype(np.uint16).reshape(8, 8, channels)
        png16(tmp_path / f"{name}.png", values)
    edit = ("edit", "vary", any_run, "--at", 1, "--steps", 1, "--device", "cpu", "--out")
    refused = run_command(*edit, tmp_path / "a.png", tmp_path / "twelve.png")
    assert refused.exit_code == 2
    assert "twelve.png: more than 8 bits a value, up to 4095, and nothing says what is white" in refused.output
    taken = run_command(*edit, tmp_path / "b.png", tmp_path / "sixteen.png")
    assert taken.exit_code == 0, taken.output


def test_folders_that_only_wrap_the_classes_are_no_classes(tmp_path):
    for name in ("disc", "box"):
        for number in range(6):
            save(tmp_path / "set" / "data" / "more" / name / f"{number}.png", number, 3)
            save(tmp_path / "one" / "data" / f"{name}{number}.png", number, 3)
            for part in ("train", "valid"):
                save(tmp_path / "split" / "a" / "b" / part / name / f"{number}.png", number + 7 * (part == "valid"), 3)
    assert load(str(tmp_path / "set"), DataOptions()).train.class_names == ("box", "disc")
    assert load(str(tmp_path / "one"), DataOptions()).train.class_names == ("data",)
    for inner, outer in ((tmp_path / "set", "data/more/"), (tmp_path / "one", "data/")):  # held out by the same names
        names = load(str(inner), DataOptions())
        assert all(name.startswith(outer) for name in (*names.train.names, *names.test.names))
    classes = tmp_path / "set" / "data" / "more"
    files = sorted(one.relative_to(classes).as_posix() for one in classes.rglob("*.png"))
    labels = [[file, number % 2] for number, file in enumerate(files)]
    (classes / "dataset.json").write_text(json.dumps({"labels": labels}))
    listed = load(str(tmp_path / "set"), DataOptions())
    assert listed.train.class_names == ("0", "1")
    assert "dataset.json" in listed.reading.classes
    split = load(str(tmp_path / "split"), DataOptions())
    assert (len(split.train), len(split.test), split.train.class_names) == (12, 12, ("box", "disc"))


def test_a_tar_without_an_image_that_can_be_read_says_why(tmp_path):
    png16(tmp_path / "0.png", np.full((8, 8, 1), 3000, np.uint16))
    with tarfile.open(tmp_path / "set.tar", "w") as shard:
        for number in range(4):
            shard.add(tmp_path / "0.png", f"{number}.png")
    with pytest.raises(UserError, match=r"no image can be read; the first: .*say it: --set data.white=4095"):
        load(str(tmp_path / "set.tar"), DataOptions())


def test_a_setting_is_said_to_be_one_of_train_where_the_command_has_none(any_run, tmp_path):
    for number in range(3):
        save(tmp_path / "set" / f"{number}.png", number, 3)
    (tmp_path / "set" / "bad.png").write_bytes(b"no image")
    said = run_command("metrics", tmp_path / "set", tmp_path / "set", "--network", "pixels").output
    assert "--set data.bad_images=skip (of ancestral train)" in said
    guided = run_command("sample", any_run, "--guidance", 2, "--device", "cpu").output
    assert "train with --set model.labels=true --set model.condition_dropout=0.1, or" in guided
    said = run_command("train", tmp_path / "set", "--out", tmp_path / "run", "--steps", 1).output
    assert said.rstrip().endswith("--set data.bad_images=skip")
