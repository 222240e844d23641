"""Files of joblib: arrays between the opcodes, compressions, and what is refused."""

from __future__ import annotations

import io
import pickle
import zlib

import numpy as np
import pytest

from casckpt.checkpoint.exchange import compressed, is_known, read_file
from casckpt.errors import BadRequest, CasckptError, Corrupt, PickleRefused

joblib = pytest.importorskip("joblib")
NumpyArrayWrapper = joblib.numpy_pickle.NumpyArrayWrapper


def dumped(state, **options) -> bytes:
    file = io.BytesIO()
    joblib.dump(state, file, **options)
    return file.getvalue()


def read(tmp_path, data: bytes, name: str = "x.joblib"):
    path = tmp_path / name
    path.write_bytes(data)
    assert is_known(path)
    return read_file(path)


def state():
    weights = np.random.default_rng(0).normal(size=(30, 7))
    return {
        "weights": weights, "fortran": np.asfortranarray(weights[:4]), "big": weights.astype(">f4"),
        "empty": np.zeros((0, 3)), "one": np.array(5.0), "text": np.array(["a", "bcd"]),
        "row": np.array([(1, 2.0)], dtype=[("n", "i4"), ("x", "f8")]), "scalar": np.float32(1.5),
        "again": weights, "epoch": 4, "names": ["a", {"b": None}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.joblib", {}), ("x.pkl", {"protocol": 2}), ("x.pkl", {"protocol": 0}),
        ("x.joblib", {"compress": 3}), ("x.pkl.gz", {"compress": ("gzip", 3)}),
        ("x.pkl.bz2", {"compress": ("bz2", 3)}), ("x.joblib", {"compress": ("xz", 3)}),
        ("x.joblib.lzma", {"compress": ("lzma", 3)}),
    ],
)  # fmt: skip
def test_values_come_back_as_joblib_wrote_them(tmp_path, assert_same, name, options):
    if "compress" in options:
        joblib.dump(state(), tmp_path / name, **options)
        data = (tmp_path / name).read_bytes()
    else:
        data = dumped(state(), **options)
    assert_same(read(tmp_path, data, name), state())


def test_a_pickle_that_gzip_compressed_is_read_too(tmp_path):
    import gzip

    assert read(tmp_path, gzip.compress(pickle.dumps([1, 2])), "x.pkl.gz") == [1, 2]


def test_files_of_before_the_padding_are_read(tmp_path):
    array = np.arange(5.0)
    about = NumpyArrayWrapper(np.ndarray, array.shape, "C", array.dtype)
    del about.numpy_array_alignment_bytes
    head = pickle.dumps(about, 2)
    assert (read(tmp_path, head[:-1] + array.tobytes() + b".") == array).all()


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("touch RAN",))


class OwnArray(np.ndarray):
    pass


@pytest.mark.parametrize(
    "value",
    [
        {"x": Evil()},
        {"x": np.array([1, Evil()], dtype=object)},
        {"x": np.zeros(3).view(OwnArray)},
        {"x": np.array([{"a": 1}], dtype=object)},
    ],
    ids=["call", "call in objects", "subclass", "objects"],
)
def test_what_could_run_code_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"compress": 1}):
        file = tmp_path / "evil.joblib"
        joblib.dump(value, file, **options)
        with pytest.raises(PickleRefused):
            read_file(file)
    assert not (tmp_path / "RAN").exists()


def test_every_cut_of_a_file_is_damage(tmp_path):
    for options in ({}, {"compress": 3}):
        file = tmp_path / "whole.joblib"
        joblib.dump({"w": np.arange(40), "n": 3}, file, **options)
        whole = file.read_bytes()
        for end in range(8, len(whole), 3):
            with pytest.raises((Corrupt, BadRequest)):
                read(tmp_path, whole[:end])


def test_forged_files_are_typed_errors(tmp_path):
    whole = dumped({"w": np.arange(40), "n": 3})
    rng = np.random.default_rng(1)
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(2, len(data), 3):
            data[place] = rng.integers(256)
        try:
            read(tmp_path, bytes(data))
        except CasckptError:
            continue


def test_what_claims_or_expands_to_too_much_is_damage(tmp_path, monkeypatch):
    huge = dumped(np.zeros(3)).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85")
    assert huge != dumped(np.zeros(3))
    with pytest.raises(Corrupt, match="beyond the end"):
        read(tmp_path, huge)
    monkeypatch.setattr(compressed, "allowed_bytes", lambda size: 1 << 20)
    bomb = zlib.compress(bytes(2 << 20))
    with pytest.raises(Corrupt, match="expands beyond"):
        read(tmp_path, bomb)


@pytest.mark.parametrize("start", [b"x\x9c", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"])
def test_what_is_not_compressed_as_it_says_is_damage(tmp_path, start):
    with pytest.raises(Corrupt, match="it cannot be unpacked"):
        read(tmp_path, start + b"\xff" * 40)


def test_an_array_inside_an_array_of_objects_is_not_followed(tmp_path):
    head = pickle.dumps(NumpyArrayWrapper(np.ndarray, (1,), "C", np.dtype(object)), 2)[:-1]
    with pytest.raises(Corrupt, match="nested too deep"):
        read(tmp_path, head + head + b"N...")
    with pytest.raises(Corrupt, match="an object kept outside the pickle"):
        read(tmp_path, head + b"NQ..")


def test_what_is_not_read_says_what_to_do(tmp_path):
    with pytest.raises(BadRequest, match="lz4 -d"):
        read(tmp_path, b"\x04\x22\x4d\x18" + bytes(40))
    old = b"\x80\x02cjoblib.numpy_pickle\nNDArrayWrapper\n)\x81."
    with pytest.raises(BadRequest, match=r"before 0\.10"):
        read(tmp_path, old)
    (tmp_path / "train.log.gz").write_bytes(b"\x1f\x8b\x08" + bytes(40))
    assert not is_known(tmp_path / "train.log.gz")
