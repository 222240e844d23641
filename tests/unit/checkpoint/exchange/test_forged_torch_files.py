"""torch's names in pickles that do not mean what torch writes, and files that are rare."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from casckpt.checkpoint.exchange import NumpyTensors, read_file
from casckpt.checkpoint.exchange.torchfile import LEGACY_MAGIC, PickleReader
from casckpt.errors import BadRequest, Corrupt, PickleRefused

torch = pytest.importorskip("torch")

UTILS = torch._utils
LOADED = torch.storage._load_from_bytes
FROM_TYPE = torch._tensor._rebuild_from_type_v2
LAYOUT = torch.serialization._get_layout


class Made:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.made = function, args

    def __reduce__(self):
        return self.made


class Stored:
    """Pickles as a persistent id."""

    def __init__(self, *identifier):
        self.identifier = identifier


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identifier if isinstance(value, Stored) else None


def dumped(value) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def storage(count=4, kind=torch.FloatStorage, key="0", *view):
    return Stored("storage", kind, key, "cpu", count, *view)


def tensor(source=None, offset=0, shape=(4,), strides=(1,), *rest):
    parts = (storage() if source is None else source, offset, shape, strides)
    return Made(UTILS._rebuild_tensor_v2, *parts, *(rest or (False, {})))


def as_zip(value, order: bytes | None = None, **storages: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", dumped(value))
        if order is not None:
            archive.writestr("archive/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key.lstrip('_')}", data)
    return file.getvalue()


def legacy(tree, storages=(), *, protocol=1001, system=None, keys=None) -> bytes:
    system = {"little_endian": True} if system is None else system
    keys = [key for key, _, _ in storages] if keys is None else keys
    parts = [LEGACY_MAGIC, protocol, system, tree, keys]
    data = [struct.pack("<q", count) + raw for _, count, raw in storages]
    return b"".join([*map(dumped, parts), *data])


def read(tmp_path, data: bytes, **options):
    (tmp_path / "x.pt").write_bytes(data)
    return read_file(tmp_path / "x.pt", **options)


FOUR = struct.pack("<4f", 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (storage(), "a storage as a value; only tensors are leaves"),
        (tensor(5), "a tensor of something else than a storage"),
        (tensor(None, 0, (4,), (1,), False, {}, {"magic": 1}), "unknown properties"),
        (tensor(None, 0, (4,), (1,), False, {}, [1]), "unknown properties"),
        (
            Made(UTILS._rebuild_tensor_v3, storage(), 0, (4,), (1,), False, {}, 5),
            "a tensor of an unknown dtype",
        ),
        (Made(UTILS._rebuild_parameter, 5, True, {}), "a parameter of something else"),
        (Made(UTILS._rebuild_parameter, tensor(), True), "a parameter of something else"),
        (Made(UTILS._rebuild_sparse_tensor, 5, ()), "a sparse tensor of an unknown layout"),
        (
            Made(UTILS._rebuild_sparse_tensor, "torch.sparse_coo", (1,)),
            "a sparse tensor of an unknown layout",
        ),
        (Made(LAYOUT, "torch.magic"), "an unknown layout"),
        (Made(LOADED, 5), "a storage that is no bytes"),
        (Made(torch.device, 5), "a device of an unknown kind"),
        (Made(torch.device, "cuda", 1, 2), "a device of an unknown kind"),
        (Stored("storage", torch.FloatStorage, "0"), "outside the pickle that is no storage"),
        (Stored("other", torch.FloatStorage, "0", "cpu", 4), "that is no storage"),
    ],
)
def test_names_of_torch_with_other_arguments_are_corrupt(tmp_path, value, why):
    with pytest.raises(Corrupt, match=why):
        read(tmp_path, as_zip([value], _0=FOUR))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Made(FROM_TYPE, 5, torch.Tensor, (), None), "by something else than torch"),
        (Made(FROM_TYPE, torch.Tensor, torch.Tensor, (), None), "by something else than torch"),
        (
            Made(FROM_TYPE, UTILS._rebuild_tensor_v2, torch.Size, (), None),
            "a subclass of torch.Tensor",
        ),
        (Made(FROM_TYPE, torch.device, torch.Tensor, ("cpu",), None), "torch.device"),
        (Made(FROM_TYPE, UTILS._rebuild_tensor_v2, torch.Tensor, [], None), "_rebuild_tensor_v2"),
    ],
)
def test_tensors_rebuilt_by_something_else_are_refused(tmp_path, value, name):
    with pytest.raises(PickleRefused, match=name):
        read(tmp_path, as_zip(value))


@pytest.mark.parametrize(
    ("value", "why", "hint"),
    [
        (Made(UTILS._rebuild_qtensor), "a quantized tensor", "dequantize"),
        ({"a": torch.empty(2, device="meta")}, "on the meta device", "where it has values"),
    ],
)
def test_tensors_that_are_not_imported_say_what_to_do(tmp_path, value, why, hint):
    with pytest.raises(BadRequest, match=why) as caught:
        read(tmp_path, as_zip(value))
    assert hint in caught.value.hint


def test_a_tensor_rebuilt_from_its_type_without_attributes_is_read(tmp_path):
    inner = (storage(), 0, (4,), (1,), False, {})
    value = Made(FROM_TYPE, UTILS._rebuild_tensor_v2, torch.Tensor, inner, {})
    assert read(tmp_path, as_zip(value, _0=FOUR)).tolist() == [0, 1, 2, 3]


def test_attributes_of_tensors_are_left_out_with_a_note(tmp_path, assert_same, tensors, caplog):
    noted, plain = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    noted.origin = plain.origin = "here"
    torch.save([noted, plain], tmp_path / "x.pt")
    with caplog.at_level("INFO"):
        found = read_file(tmp_path / "x.pt", tensors=tensors)
    assert_same(found, [torch.arange(3.0), torch.nn.Parameter(torch.ones(2))])
    assert "attributes set on a tensor were left out" in caplog.text


def test_a_negated_view_is_read_without_torch(tmp_path):
    torch.save({"n": torch.tensor([1 + 2j, 3 - 4j]).conj().imag}, tmp_path / "x.pt")
    assert read_file(tmp_path / "x.pt")["n"].tolist() == [-2, 4]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (torch.FloatStorage, np.array([1.5, -2], "<f4")),
        (torch.ShortStorage, np.array([1, -300], "<i2")),
        (torch.ComplexFloatStorage, np.array([1 + 2j, -3j], "<c8")),
        (torch.ByteStorage, np.array([1, 200], "u1")),
    ],
)
def test_files_of_big_endian_machines_are_read(tmp_path, assert_same, kind, values):
    value = tensor(storage(2, kind), 0, (2,))
    swapped = values.astype(values.dtype.newbyteorder(">")).tobytes()
    assert_same(read(tmp_path, as_zip(value, b"big", _0=swapped)), values)
    assert_same(read(tmp_path, as_zip(value, b"little", _0=values.tobytes())), values)
    with pytest.raises(Corrupt, match="neither little nor big"):
        read(tmp_path, as_zip(value, b"middle", _0=swapped))


def test_an_archive_has_one_tree(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data.pkl", dumped(1))
        archive.writestr("b/data.pkl", dumped(2))
    with pytest.raises(Corrupt, match=r"2 records data\.pkl instead of one"):
        read_file(tmp_path / "x.pt")


def test_a_storage_outside_of_a_plain_pickle_is_corrupt(tmp_path):
    with pytest.raises(Corrupt, match="whose bytes are not in the file"):
        read(tmp_path, dumped(tensor()))


def test_torch_files_in_torch_files_end_somewhere(tmp_path):
    value: object = 5
    for _ in range(3):
        assert read(tmp_path, dumped(value)) == 5
        value = Made(LOADED, dumped(value))
    with pytest.raises(Corrupt, match="nested too deep, or too often"):
        read(tmp_path, dumped(value))


# ---- torch before 1.6


def viewed(offset, size, count=4, kind=torch.FloatStorage):
    """Return a tensor of a view of storage 0, as torch before 0.4 shared memory."""
    return tensor(storage(count, kind, "0", ("v", offset, size)), 0, (max(size, 0),))


def test_views_of_storages_are_read(tmp_path):
    data = legacy(
        [tensor(storage(4, torch.FloatStorage, "0", None)), viewed(1, 2)], [("0", 4, FOUR)]
    )
    whole, part = read(tmp_path, data)
    assert (whole.tolist(), part.tolist()) == ([0, 1, 2, 3], [1, 2])
    whole[1] = 7
    assert part.tolist() == [7, 2]


@pytest.mark.parametrize(
    ("tree", "options", "why"),
    [
        (None, {"protocol": 1000}, "an unknown version of torch's old format"),
        (None, {"keys": 5}, "it has no list of storages"),
        (None, {"keys": ["0"]}, "does not fit what it holds"),
        (viewed("a", 2), {}, "a view of a storage without numbers"),
        (viewed(-1, 2), {}, "starts or ends before its memory"),
        (viewed(0, -1), {}, "starts or ends before its memory"),
        (viewed(3, 2), {}, "a storage beyond its memory"),
        ([viewed(0, 1), viewed(0, 1, 2, torch.DoubleStorage)], {}, "a storage with two dtypes"),
    ],
)
def test_old_files_that_contradict_themselves_are_corrupt(tmp_path, tree, options, why):
    with pytest.raises(Corrupt, match=why):
        read(tmp_path, legacy(tree, **options))


def test_an_old_file_of_a_big_endian_machine_says_what_to_do(tmp_path):
    with pytest.raises(BadRequest, match="big-endian") as caught:
        read(tmp_path, legacy(None, system={"little_endian": False}))
    assert "with torch" in caught.value.hint


def test_an_old_file_that_becomes_shorter_meanwhile_is_corrupt():
    whole = legacy(tensor(), [("0", 4, FOUR)])
    reader = PickleReader("x.pt", len(whole), NumpyTensors())
    with pytest.raises(Corrupt, match="a storage that ends too early"):
        reader.read_pickle(io.BytesIO(whole[:-1]), len(whole))
