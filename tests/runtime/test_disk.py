"""The openers and readers of files that may be damaged or hostile."""

import io
import json
import math
import os
import zipfile

import numpy as np
import pytest
import torch

from ancestral.errors import UserError
from ancestral.runtime import array_files, disk, tensor_files, verified_folder


@pytest.fixture
def places(tmp_path):
    """One of each thing that is no file to read."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    (tmp_path / "piped").symlink_to(tmp_path / "pipe")
    return tmp_path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("name", ["folder", "pipe", "nowhere", "loop", "zeros", "piped", "absent", "\0", "\ud800"])
def test_only_regular_files_are_opened_and_the_others_named(places, name):
    with pytest.raises(disk.Damaged, match=repr(name)[1:-1].replace("\\", r"\\") if name in ("\0", "\ud800") else name):
        disk.read(places / name)


def test_a_link_to_a_file_is_read_and_a_file_over_the_limit_is_not(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert disk.read(tmp_path / "b", 5) == b"12345"
    with pytest.raises(disk.Damaged, match="larger than 4"):
        disk.read(tmp_path / "b", 4)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)  # a hole
    with pytest.raises(disk.Damaged, match="larger than"):
        disk.read(tmp_path / "huge")


BAD = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "just too deep": b"[" * 65 + b"]" * 65,
    "torn": b'{"a": 1',
    "twice": b'{"a": 1, "a": 2}',
    "not a number": b"[NaN]",
    "infinite": b"[-Infinity]",
    "overflowing": b"[1e999]",
    "huge": b"[" + b"9" * 5000 + b"]",
    "over 64 bits": b"[18446744073709551616]",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "not text": b'{"a": "\xff"}',
    "lone surrogate": b'["\\ud800"]',
    "empty": b"",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_json_is_named_in_one_line(name):
    with pytest.raises(disk.Damaged, match=r"^x\.json: ") as refused:
        disk.parsed(BAD[name], "x.json")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_json_is_read_as_it_was_written():
    document = {"a": [1, 2.5, -(2**63), 2**64 - 1, None, True, "é\N{GRINNING FACE}"], "b": {"": []}}
    for content in (json.dumps(document), json.dumps(document, ensure_ascii=False).encode("utf-8-sig")):
        assert disk.parsed(content, "x") == document
    assert disk.parsed(b"[" * 64 + b"]" * 64, "x")
    found = disk.parsed(b"[NaN, Infinity, -1e999]", "x", float)
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf]


def test_damaged_lines_are_named_and_a_torn_end_is_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[]\n\xff\n{"a": NaN}\n{"a"')
    found, problems = disk.records(path)
    assert found[0] == {"a": 1}
    assert math.isnan(found[1]["a"])
    assert [line.partition(": ")[0] for line in problems] == [f"{path}:{number}" for number in (2, 3, 4)]


def test_tensors_that_are_not_finite_or_do_not_fit_are_named():
    good = {"a": torch.ones(2, 3), "n": torch.arange(3)}
    assert tensor_files.finite(good, "x") is good
    for value in (math.nan, math.inf, -math.inf):
        for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            bad = {**good, "b": torch.tensor([1, value], dtype=kind)}
            with pytest.raises(disk.Damaged, match=r"x: b is not finite \(1 of "):
                tensor_files.finite(bad, "x")
    assert tensor_files.fitting(good, good, "x") is good
    for other, name in (
        ({"a": torch.ones(3, 2), "n": good["n"]}, "a has shape"),
        ({"a": good["a"]}, "no tensor n"),
        ({**good, "z": good["a"]}, "unknown tensor z"),
        ({**good, "n": torch.ones(3)}, "n holds"),
    ):
        with pytest.raises(disk.Damaged, match=f"x: .*{name}"):
            tensor_files.fitting(other, good, "x")


def npy(header):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def test_arrays_that_would_unpack_to_gigabytes_are_refused_from_their_headers(tmp_path):
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**40,)}
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("images.npy", npy(header) + bytes(10))
    with pytest.raises(UserError, match=r"lie\.npz: images: damaged"):
        array_files.unpacked(tmp_path / "lie.npz", ["images"])
    (tmp_path / "lie.npy").write_bytes(npy(header) + bytes(10))
    with pytest.raises(UserError, match=r"lie\.npy: damaged"):
        array_files.mapped(tmp_path / "lie.npy")
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros(2_000_000, np.uint8), note=np.arange(3))
    with pytest.raises(UserError, match=r"unpacks to 2,000,128 bytes.*\.npy"):
        array_files.unpacked(tmp_path / "zeros.npz", ["images"], 1_000_000)
    found, names = array_files.unpacked(tmp_path / "zeros.npz", ["note"], 1_000_000)
    assert names == ["images", "note"]
    assert found["note"].tolist() == [0, 1, 2]


def test_objects_in_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="pickled"):
        array_files.mapped(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b'{"a": 1}', b'{"../a": {"sha256": "", "bytes": 1}}', b"[" * 10_000, b'{"a": {"bytes": 1}}'],
)
def test_a_damaged_manifest_is_damage_of_its_folder(tmp_path, manifest):
    verified_folder.write(tmp_path / "x", {"a": b"1"})
    (tmp_path / "x" / verified_folder.MANIFEST).write_bytes(manifest)
    with pytest.raises(verified_folder.Damaged, match=r"manifest\.json"):
        verified_folder.read(tmp_path / "x")
