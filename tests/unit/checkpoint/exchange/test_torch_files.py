"""Files of torch, old and new, with torch and without."""

from __future__ import annotations

import pickle
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest

from casckpt.checkpoint.exchange import read_file, read_tree, write_file, write_tree
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.errors import BadRequest, Corrupt

torch = pytest.importorskip("torch")

Pair = namedtuple("Pair", ["a", "b"])


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LSTM(3, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model[1](model[0](torch.ones(2, 4)))[0].sum().backward()
    optimizer.step()
    weight = torch.randn(3, 4)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "tied": [weight, weight.view(4, 3), weight, weight[1:, ::2]],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "leaf": torch.ones(2, requires_grad=True),
        "bfloat16": torch.randn(3).bfloat16(),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
        "uint16": torch.ones(2, dtype=torch.uint16),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "transposed": torch.arange(6).reshape(2, 3).t(),
        "expanded": torch.ones(1).expand(5),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "zero_dim": torch.tensor(3.5),
        "array": np.arange(3),
        "size": (2, 3),
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_torch_save_is_read(tmp_path, state, assert_same, tensors, new):
    sparse = {"coo": torch.eye(3).to_sparse()}
    path = tmp_path / "x.pt"
    torch.save(state | sparse, path, _use_new_zipfile_serialization=new)
    found = read_file(path, tensors=tensors)
    assert_same(state | sparse, found)
    assert found["coo"].is_coalesced()
    tied = found["tied"]
    assert tied[0] is tied[2]
    tied[0].zero_()
    assert tied[1].abs().sum() == tied[3].abs().sum() == 0


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_torch_save_is_read_as_numpy(tmp_path, state, new):
    pytest.importorskip("ml_dtypes")
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
    found = read_file(tmp_path / "x.pt")
    assert type(found["model"]) is OrderedDict
    np.testing.assert_array_equal(found["transposed"], state["transposed"].numpy())
    np.testing.assert_array_equal(found["tied"][3], state["tied"][3].numpy())
    assert found["bfloat16"].dtype.name == "bfloat16"
    assert found["conjugated"].tolist() == [1 - 2j]


@pytest.mark.parametrize("layout", ["to_sparse_csr", "to_sparse_csc"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_compressed_sparse_tensors_are_read(tmp_path, assert_same, tensors, layout):
    state = {"s": getattr(torch.eye(3), layout)()}
    torch.save(state, tmp_path / "x.pt")
    assert_same(state, read_file(tmp_path / "x.pt", tensors=tensors))


def test_sparse_indices_beyond_the_shape_are_corrupt(tmp_path, tensors):
    bad = torch.sparse_coo_tensor([[7]], [1.0], (3,), check_invariants=False)
    torch.save(bad, tmp_path / "x.pt")
    with pytest.raises(Corrupt):
        read_file(tmp_path / "x.pt", tensors=tensors)
    with pytest.raises(BadRequest, match="sparse"):
        read_file(tmp_path / "x.pt")


def test_tensors_in_plain_pickles_are_read(tmp_path, assert_same, tensors):
    state = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).bfloat16()}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(state))
    assert_same(state, read_file(tmp_path / "x.pkl", tensors=tensors))


@pytest.mark.parametrize("format", ["pt", "safetensors"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_another_default_device_changes_nothing(tmp_path, state, assert_same, tensors, format):
    if format == "pt":
        state = state | {"coo": torch.eye(3).to_sparse(), "csr": torch.eye(3).to_sparse_csr()}
    path = tmp_path / f"x.{format}"
    with torch.device("meta"):
        write_file(state, path, tensors=tensors)
        found = read_file(path, tensors=tensors)
    assert_same(state, found)


def test_a_file_without_checksums_is_read(tmp_path, assert_same, tensors):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_same({"w": torch.ones(3)}, read_file(tmp_path / "x.pt", tensors=tensors))


def test_dtypes_and_devices_become_text(tmp_path):
    torch.save({"dtype": torch.bfloat16, "device": torch.device("cuda", 1)}, tmp_path / "x.pt")
    assert read_file(tmp_path / "x.pt") == {"dtype": "torch.bfloat16", "device": "cuda:1"}


def test_an_optimizer_keyed_by_tensors_is_refused_with_a_way_out(tmp_path):
    torch.save({torch.ones(1): 5}, tmp_path / "x.pt")
    with pytest.raises(BadRequest) as caught:
        read_file(tmp_path / "x.pt")
    assert "state_dict" in caught.value.hint


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_truncation_is_corrupt(tmp_path, state, tensors, new):
    path = tmp_path / "x.pt"
    torch.save(state, path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    for part in range(1, 40):
        path.write_bytes(whole[: len(whole) * part // 40])
        with pytest.raises(Corrupt):
            read_file(path, tensors=tensors)


@pytest.mark.parametrize("format", ["safetensors", "npz", "json"])
def test_tensors_come_back_from_every_format(tmp_path, state, assert_same, tensors, format):
    pytest.importorskip("ml_dtypes")
    write_file(state, tmp_path / f"x.{format}")
    found = read_file(tmp_path / f"x.{format}", tensors=tensors)
    assert_same(state, found)
    if format != "json":
        assert found["tied"][0] is found["tied"][2]
        assert found["tied"][0].data_ptr() == found["tied"][1].data_ptr()


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_a_view_in_two_places_is_one_object(tmp_path, tensors, format):
    weight = torch.randn(10)
    view = weight[3:]
    write_file([weight, view, view], tmp_path / f"x.{format}")
    found = read_file(tmp_path / f"x.{format}", tensors=tensors)
    assert found[1] is found[2]
    found[0].zero_()
    assert found[1].tolist() == [0] * 7


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_dtype_that_only_torch_has_needs_torch(tmp_path, assert_same, tensors):
    state = {"c": torch.tensor([1 + 2j, -3j]).to(torch.complex32)}
    torch.save(state, tmp_path / "x.pt")
    assert_same(state, read_file(tmp_path / "x.pt", tensors=tensors))
    with pytest.raises(BadRequest, match="numpy has no dtype complex32"):
        read_file(tmp_path / "x.pt")
    write_file(state, tmp_path / "x.json")
    assert_same(state, read_file(tmp_path / "x.json", tensors=tensors))


def test_a_folder_keeps_ties_and_writes_them_once(tmp_path, assert_same, tensors):
    weight = torch.randn(1000)
    write_tree({"a": weight, "b": weight.view(10, 100)}, tmp_path / "out")
    assert (tmp_path / "out" / "state.safetensors").stat().st_size < 5000
    found = read_tree(tmp_path / "out", RestoreOptions())
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert_same({"a": weight, "b": weight.view(10, 100)}, found)


def test_safetensors_itself_finds_every_name(tmp_path, state, tensors):
    safetensors = pytest.importorskip("safetensors.torch")
    write_file(state, tmp_path / "x.safetensors")
    found = safetensors.load_file(tmp_path / "x.safetensors")
    for index, tensor in enumerate(state["tied"]):
        assert torch.equal(found[f"tied.{index}"], tensor)
    assert torch.equal(found["transposed"], state["transposed"])
    assert torch.equal(found["bfloat16"], state["bfloat16"])


def test_safetensors_of_the_reference_writer_is_read(tmp_path, assert_same, tensors):
    safetensors = pytest.importorskip("safetensors.torch")
    plain = {"a": torch.randn(3).bfloat16(), "b": torch.ones(2, 3), "c": torch.empty(0, 2)}
    safetensors.save_file(plain, tmp_path / "x.safetensors")
    assert_same(plain, read_file(tmp_path / "x.safetensors", tensors=tensors))


def test_torch_loads_an_export_without_unpickling_code(tmp_path, state, assert_same, tensors):
    exported = {key: value for key, value in state.items() if key != "array"}
    extra = {"path": Path("a"), "pair": Pair(1, torch.ones(1))}
    assert write_file(exported | extra, tmp_path / "x.pt", tensors=tensors) == "torch"
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert_same(exported | {"path": "a", "pair": (1, torch.ones(1))}, found)
    assert_same(found, read_file(tmp_path / "x.pt", tensors=tensors))
