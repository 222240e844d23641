"""Tensors in state trees: every kind comes back as it was, tied as it was, or is refused."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from casckpt.checkpoint import leaves  # noqa: E402
from casckpt.checkpoint.staging import StagingPool  # noqa: E402
from casckpt.checkpoint.tree import flatten  # noqa: E402
from casckpt.errors import BadLeaf, BadRequest, CasckptError, MissingExtra, TreeMismatch  # noqa: E402
from tests.suites.memory_repository import Saved  # noqa: E402

DTYPES = [
    dtype
    for name, dtype in sorted(vars(torch).items())
    if isinstance(dtype, torch.dtype)
    and str(dtype) == f"torch.{name}"
    and not name.startswith(("q", "bits"))
    and dtype.itemsize in (1, 2, 4, 8, 16)
]


def raw(tensor):
    # As integers: some dtypes have no kernel that copies them.
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().view(width.get(tensor.element_size(), torch.complex128))
    return bits.contiguous().reshape(-1).view(torch.uint8).tolist()


def filled(dtype, *shape):
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.arange(count).to(torch.uint8).view(dtype).reshape(shape)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("stage", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_for_bit(dtype, stage):
    first, other, third, empty = (filled(dtype, 3, 4) for _ in range(4))
    state = {"c": first, "t": other.t(), "s": third[:, 1], "e": empty[:0]}
    back = Saved(state, stage=stage).restore()
    for name, saved in state.items():
        assert back[name].dtype == dtype
        assert back[name].shape == saved.shape
        assert raw(back[name]) == raw(saved)
    assert back["t"].stride() == state["t"].stride()
    assert back["s"].untyped_storage().nbytes() == 3 * dtype.itemsize


def test_a_compressed_sparse_tensor_of_another_count_does_not_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved, other = torch.eye(3).to_sparse_csr(), torch.ones(3, 3).to_sparse_csr()
    with pytest.raises(TreeMismatch, match="values"):
        Saved([saved]).restore(into=[other])


def test_zero_d_channels_last_and_expanded():
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = Saved([torch.tensor(3.0), image, torch.ones(3, 1).expand(3, 4)]).restore()
    assert back[0].shape == ()
    assert back[1].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back[1], image)
    assert torch.equal(back[2], torch.ones(3, 4))


def test_an_axis_of_length_one_may_have_any_stride():
    odd = torch.zeros(4, dtype=torch.int16).as_strided((1, 1), (7, 2))
    assert torch.equal(Saved([odd]).restore()[0], odd)
    Saved([odd + 1]).restore(into=[odd])
    assert odd.item() == 1


def test_parameters_and_requires_grad_are_kept():
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    wanted = torch.ones(2, requires_grad=True)
    state = [torch.nn.Parameter(torch.ones(2)), frozen, wanted, wanted * 2, torch.ones(2)]
    back = Saved(state).restore()
    assert [type(one) for one in back[:2]] == [torch.nn.Parameter] * 2
    assert [one.requires_grad for one in back] == [True, False, True, True, False]
    assert all(one.is_leaf for one in back)
    (back[0] * 3).sum().backward()
    assert back[0].grad.tolist() == [3, 3]


def test_what_frameworks_mark_parameters_with_is_no_reason_to_refuse_and_does_not_come_back():
    marked = torch.nn.Parameter(torch.ones(2))
    marked._is_hf_initialized = marked.tensor_model_parallel = True
    marked.register_hook(lambda grad: grad)
    buffers = [torch.ones(2)]
    if hasattr(torch.nn, "Buffer"):  # from torch 2.5
        buffers.append(torch.nn.Buffer(torch.ones(2)))
    back = Saved({"w": marked, "b": buffers}).restore()
    assert type(back["w"]) is torch.nn.Parameter
    assert not any(vars(tensor) for tensor in (back["w"], *back["b"]))
    assert torch.equal(back["b"][-1], torch.ones(2))


def test_lazy_bits_are_kept():
    base = torch.randn(4, dtype=torch.complex64)
    back = Saved(
        {"c": base.clone().conj(), "n": base.clone().conj().imag, "b": base.conj()}
    ).restore()
    assert back["c"].is_conj()
    assert torch.equal(back["c"], base.conj())
    assert back["n"].is_neg()
    assert torch.equal(back["n"], base.conj().imag)
    plain = Saved({"c": base.conj(), "n": base.clone().conj().imag}).restore(as_numpy=True)
    assert np.array_equal(plain["c"], base.numpy().conj())
    assert np.array_equal(plain["n"], -base.numpy().imag)


@pytest.mark.parametrize("layout", ["coo", "uncoalesced", "csr", "csc", "bsr", "bsc"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_tensors_come_back_by_their_parts(layout):
    dense = torch.tensor([[0.0, 1, 0, 0], [2, 0, 0, 3]])
    if layout == "uncoalesced":
        sparse = torch.sparse_coo_tensor(
            [[0, 0], [1, 1]], [1.0, 2.0], (2, 4), check_invariants=True
        )
    elif layout == "coo":
        sparse = dense.to_sparse()
    elif layout in ("csr", "csc"):
        sparse = getattr(dense, f"to_sparse_{layout}")()
    else:
        sparse = getattr(dense, f"to_sparse_{layout}")((1, 2))
    saved = Saved({"s": sparse})
    back = saved.restore()["s"]
    assert back.layout == sparse.layout
    assert torch.equal(back.to_dense(), sparse.to_dense())
    if sparse.layout == torch.sparse_coo:
        assert back.is_coalesced() == sparse.is_coalesced()
        assert back._nnz() == sparse._nnz()
    into = {"s": sparse.clone() * 0}
    kept = into["s"]
    assert saved.restore(into=into)["s"] is kept
    assert torch.equal(kept.to_dense(), sparse.to_dense())
    assert saved.restore(as_numpy=True)["s"]["shape"] == [2, 4]


def test_a_view_saves_what_it_shows():
    saved = Saved(torch.arange(1_000_000)[10:20])
    assert saved.manifest.logical_bytes == 80
    assert saved.restore().untyped_storage().nbytes() == 80


def test_one_tensor_twice_is_one_again():
    tensor = torch.randn(5)
    saved = Saved({"a": tensor, "b": tensor})
    back = saved.restore()
    assert back["a"] is back["b"]
    assert saved.manifest.logical_bytes == 20


def test_tied_weights_are_stored_once_and_tied_again():
    model = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(30, 30, bias=False), "b": torch.nn.Linear(30, 30, bias=False)}
    )
    model["b"].weight = model["a"].weight
    saved = Saved(model)
    assert saved.manifest.logical_bytes == 3600
    back = saved.restore()
    assert back["a.weight"].data_ptr() == back["b.weight"].data_ptr()
    assert Saved(model, stage=True).body == saved.body


def test_overlapping_views_stay_tied():
    whole = torch.arange(24.0).reshape(4, 6)
    state = {"t": whole.t(), "row": whole[1], "whole": whole, "bits": whole.view(torch.int32)}
    back = Saved(state).restore()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor)
        assert back[name].stride() == tensor.stride()
    back["whole"][1, 2] = -5
    assert back["t"][2, 1] == back["row"][2] == -5


def test_views_that_only_together_show_a_memory_stay_tied():
    line = torch.arange(1000.0)
    saved = Saved({"a": line[100:106], "b": line[103:110], "c": line[100::5][:2]})
    assert saved.manifest.logical_bytes < 100
    back = saved.restore()
    assert back["b"].tolist() == line[103:110].tolist()
    back["a"][3] = -1
    assert back["b"][0] == -1
    only = saved.restore(only="b")
    assert only["b"].tolist() == line[103:110].tolist()


def test_neighbours_in_one_memory_are_not_tied():
    line = torch.arange(10.0)
    back = Saved([line[:5], line[5:]]).restore()
    assert back[0].untyped_storage().data_ptr() != back[1].untyped_storage().data_ptr()


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_stored_is_refused():
    class Mine(torch.Tensor):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    bad = [
        quantized,
        torch.empty(2, device="meta"),
        torch.ones(2).as_subclass(Mine),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.ones(2, 2).to_mkldnn(),
        torch.Generator(),
        torch.ones(2).untyped_storage(),
    ]
    for value in bad:
        with pytest.raises(BadLeaf) as caught:
            flatten({"model": {"w": value}})
        assert caught.value.path == "model.w"


def test_sizes_dtypes_and_devices():
    state = [torch.Size([1, 2]), torch.bfloat16, torch.device("cuda:1")]
    back = Saved(state).restore()
    assert back == state
    assert type(back[0]) is torch.Size
    assert Saved(state).restore(as_numpy=True) == [(1, 2), "bfloat16", "cuda:1"]


def test_as_numpy_gives_arrays_of_the_same_bits():
    pytest.importorskip("ml_dtypes")
    state = {"f": torch.randn(3), "b": torch.randn(3).bfloat16(), "t": torch.randn(2, 3).t()}
    back = Saved(state).restore(as_numpy=True)
    assert back["b"].dtype.name == "bfloat16"
    assert back["b"].tobytes() == bytes(raw(state["b"]))
    assert np.array_equal(back["t"], state["t"].numpy())


def test_as_numpy_of_what_numpy_lacks_is_an_error(monkeypatch):
    from casckpt.checkpoint import arrays_dtypes

    with pytest.raises(CasckptError, match="complex32"):
        Saved([filled(torch.complex32, 2)]).restore(as_numpy=True)
    saved = Saved([torch.ones(2).bfloat16()])
    arrays_dtypes.parse_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtra, match="ml-dtypes"):
        saved.restore(as_numpy=True)


def test_without_torch_tensors_are_an_error_unless_as_numpy(monkeypatch):
    saved = Saved([torch.ones(2)])
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "casckpt.adapters.torch")
    monkeypatch.setattr(leaves, "_handlers", {})
    with pytest.raises(MissingExtra, match="torch"):
        saved.restore()
    assert saved.restore(as_numpy=True)[0].tolist() == [1, 1]


def test_staged_tensors_do_not_see_later_changes():
    tensor = torch.zeros(4)
    staged = StagingPool().stage(flatten({"a": tensor, "b": tensor[::2]}))
    tensor.fill_(9)
    assert bytes(staged.state.leaves[0].source.view()) == bytes(16)


def test_device_is_honoured():
    back = Saved({"a": torch.ones(2), "b": torch.ones(100_000)}).restore(device="cpu")
    assert back["b"].device.type == "cpu"


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta:x"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device):
    saved = Saved({"a": torch.ones(2)})
    with pytest.raises(BadRequest, match="device"):
        saved.restore(device=device)
    assert saved.repo.bytes_read == 0


@pytest.mark.filterwarnings("ignore:Sparse")
def test_another_default_device_changes_nothing():
    base, dense = torch.ones(3, 4), torch.eye(4)
    state = {
        "a": torch.arange(6.0), "large": torch.ones(100_000), "empty": torch.ones(0, 2),
        "tied": [base, base[:, 1]], "parts": [base.new_ones(9)[:6], base.new_ones(9)[3:]],
        "module": torch.nn.Linear(2, 2), "coo": dense.to_sparse(), "csr": dense.to_sparse_csr(),
        "conj": torch.tensor([1 + 2j]).conj(),
    }  # fmt: skip
    apart = {name: state[name] for name in ("a", "large", "coo", "csr")}
    into = {name: value.clone() for name, value in apart.items()}
    into["a"] = torch.zeros(2, 6).t()[:, 0]  # takes no direct read, as all of a GPU
    for stage in (False, True):
        with torch.device("meta"):
            back = Saved(state, stage=stage).restore()
            explicit = Saved(state).restore(device="cpu")
            Saved(apart).restore(into=into)
        for name in ("a", "large", "empty", "conj"):
            assert torch.equal(back[name], state[name])
            assert torch.equal(explicit[name], state[name])
        for name in ("coo", "csr"):
            assert torch.equal(back[name].to_dense(), dense)
            assert torch.equal(into[name].to_dense(), dense)
        assert torch.equal(into["a"], state["a"])
        assert back["tied"][1].data_ptr() == back["tied"][0].data_ptr() + 4
        assert torch.equal(back["module"]["weight"], state["module"].weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_round_trip():
    weight = torch.randn(300, 300, device="cuda")
    state = {
        "w": weight,
        "t": weight.t(),
        "small": torch.ones(3, device="cuda", dtype=torch.bfloat16),
    }
    for stage in (False, True):
        saved = Saved(state, stage=stage)
        back = saved.restore(device="cuda")
        assert back["w"].is_cuda
        assert torch.equal(back["t"], state["t"])
        assert back["t"].data_ptr() == back["w"].data_ptr()
        assert torch.equal(saved.restore()["small"], state["small"].cpu())
        into = {
            "w": torch.zeros_like(weight),
            "t": torch.zeros_like(weight),
            "small": torch.zeros_like(state["small"]),
        }
        saved.restore(into=into)
        assert torch.equal(into["w"], weight)
        assert torch.equal(into["t"], weight.t())
