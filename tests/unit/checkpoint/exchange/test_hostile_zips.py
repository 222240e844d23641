"""Zip files that lie about themselves, and bombs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from casckpt.checkpoint.exchange import archive, read_file, refusals
from casckpt.errors import BadRequest, Corrupt


def put(tmp_path: Path, data: bytes, name: str = "file.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "EXPANSION_FREE_BYTES", 1 << 20)
    bomb = zipped({"x.npy": npy(np.zeros(1 << 21, np.uint8))}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    with pytest.raises(Corrupt, match="the limit is 1048576"):
        read_file(put(tmp_path, bomb))


def test_a_record_that_inflates_beyond_its_size_is_corrupt(tmp_path):
    data = bytearray(zipped({"x.npy": npy(np.zeros(5000))}, zipfile.ZIP_DEFLATED))
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, bytes(data)))


def test_overlapping_records_are_corrupt(tmp_path):
    data = bytearray(zipped({"a.npy": npy(np.zeros(3)), "b.npy": npy(np.zeros(3))}))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    with pytest.raises(Corrupt, match="overlaps"):
        read_file(put(tmp_path, bytes(data)))


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "..\\x.npy"])
def test_names_that_leave_the_archive_are_corrupt(tmp_path, name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("x.npy")
        info.filename = name
        archive.writestr(info, npy(np.zeros(3)))
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, file.getvalue()))


def test_two_records_of_one_name_are_corrupt(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(np.ones(3)))
    with pytest.raises(Corrupt, match="same name"):
        read_file(put(tmp_path, file.getvalue()))


def test_a_flipped_bit_in_a_record_is_found(tmp_path):
    data = bytearray(zipped({"a.npy": npy(np.ones(100))}))
    data[400] ^= 1
    with pytest.raises(Corrupt, match="checksum"):
        read_file(put(tmp_path, bytes(data)))


def test_an_encrypted_record_is_corrupt(tmp_path):
    data = bytearray(zipped({"a.npy": npy(np.ones(3))}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(Corrupt, match="encrypted"):
        read_file(put(tmp_path, bytes(data)))


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (20, 100, "is stored with two different sizes"),
        (10, 12, "compressed in a way casckpt does not read"),
    ],
)
def test_a_directory_that_contradicts_itself_is_corrupt(tmp_path, place, value, why):
    data = bytearray(zipped({"a.npy": npy(np.ones(3))}))
    data[data.index(b"PK\x01\x02") + place] = value
    with pytest.raises(Corrupt, match=why):
        read_file(put(tmp_path, bytes(data)))


def test_a_record_beyond_the_end_is_corrupt(tmp_path):
    data = bytearray(zipped({"a.npy": npy(np.ones(3))}))
    sizes = data.index(b"PK\x01\x02") + 20
    data[sizes : sizes + 8] = (1 << 20).to_bytes(4, "little") * 2
    with pytest.raises(Corrupt, match="lies beyond the end of the file"):
        read_file(put(tmp_path, bytes(data)))


def test_a_record_that_does_not_inflate_is_corrupt(tmp_path):
    data = bytearray(zipped({"a.npy": npy(np.arange(500))}, zipfile.ZIP_DEFLATED))
    data[60:120] = b"\xff" * 60
    with pytest.raises(Corrupt, match="does not decompress"):
        read_file(put(tmp_path, bytes(data)))


def test_more_records_than_anyone_has_are_corrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "RECORDS_MAX", 2)
    records = {f"{name}.npy": npy(np.ones(1)) for name in "abc"}
    with pytest.raises(Corrupt, match="it has 3 records; the limit is 2"):
        read_file(put(tmp_path, zipped(records)))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_becomes_shorter_meanwhile_is_corrupt(method):
    whole = zipped({"a.npy": npy(np.random.default_rng(0).random(500))}, method)
    file = io.BytesIO(whole)
    opened = archive.Archive(file, len(whole), "x.npz")
    file.truncate(200)
    with pytest.raises(Corrupt, match="ends too early"):
        opened.read("a.npy")


def test_other_zip_files_are_refused_by_name(tmp_path):
    with pytest.raises(BadRequest, match="zip file of another kind"):
        read_file(put(tmp_path, zipped({"readme.txt": b"hello"}), "x.zip"))
