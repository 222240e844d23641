"""Restoring into modules, optimizers and tensors: filled in place, or refused untouched."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from casckpt.errors import BadRequest, TreeMismatch  # noqa: E402
from tests.suites.memory_repository import Saved  # noqa: E402


def trained():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "epoch": 3,
        "best": None,
    }


def test_a_training_state_restores_into_new_objects():
    state = trained()
    saved = Saved(state)
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(fresh.parameters(), lr=9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    into = {"model": fresh, "optimizer": optimizer, "scheduler": scheduler, "epoch": 0, "best": 1.0}
    places = [parameter.data_ptr() for parameter in fresh.parameters()]
    back = saved.restore(into=into)
    assert back["model"] is fresh
    assert places == [parameter.data_ptr() for parameter in fresh.parameters()]
    for name, tensor in state["model"].state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
    assert optimizer.state_dict()["param_groups"] == state["optimizer"].state_dict()["param_groups"]
    mine, theirs = optimizer.state_dict()["state"], state["optimizer"].state_dict()["state"]
    assert all(torch.equal(mine[0][name], theirs[0][name]) for name in theirs[0])
    assert scheduler.milestones == state["scheduler"].milestones
    assert back["epoch"] == 3
    assert back["best"] is None


def test_plain_state_dict_of_a_module_keeps_its_metadata():
    back = Saved(torch.nn.BatchNorm1d(2)).restore()
    assert back._metadata == torch.nn.BatchNorm1d(2).state_dict()._metadata


def test_a_module_of_another_shape_is_refused_and_untouched():
    saved = Saved(trained())
    other = torch.nn.Sequential(
        torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(1, 1)
    )
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(TreeMismatch) as caught:
        saved.restore(into={"model": other}, only="model*")
    assert "model.2.weight" in caught.value.missing
    assert any("model.0.weight: shape" in text for text in caught.value.shape)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in before.items())


def test_a_module_takes_the_intersection_when_not_strict():
    saved = Saved({"model": trained()["model"]})
    other = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(1, 1)
    )
    saved.restore(into={"model": other}, strict=False)
    assert torch.equal(other[0].weight, trained()["model"][0].weight)


def test_an_optimizer_of_other_parameters_is_refused_before_the_model_is_touched():
    saved = Saved(trained())
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    before = fresh[0].weight.clone()
    into = {
        "model": fresh,
        "optimizer": torch.optim.Adam([fresh[0].weight]),
        "scheduler": None,
        "epoch": 0,
        "best": 0,
    }
    with pytest.raises(TreeMismatch, match="optimizer: group 0"):
        saved.restore(into=into)
    assert torch.equal(fresh[0].weight, before)


def _settings_of(cls, **options):
    model = torch.nn.Linear(3, 2)
    optimizer = cls(model.parameters(), **options)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam])
def test_the_state_of_an_optimizer_of_another_class_is_refused(other):
    model, optimizer = _settings_of(torch.optim.AdamW)
    saved = Saved({"model": model, "optimizer": optimizer})
    fresh, wrong = _settings_of(other)
    before = fresh.weight.clone()
    with pytest.raises(TreeMismatch, match=f"of another optimizer than {other.__name__}"):
        saved.restore(into={"model": fresh, "optimizer": wrong})
    assert torch.equal(fresh.weight, before)


def test_settings_of_a_newer_torch_and_of_schedulers_may_be_missing_or_too_many():
    model, optimizer = _settings_of(torch.optim.AdamW)
    for group in optimizer.param_groups:
        del group["decoupled_weight_decay"], group["fused"], group["maximize"]
        group["note"] = "mine"
    saved = Saved({"model": model, "optimizer": optimizer})
    fresh, right = _settings_of(torch.optim.AdamW)
    torch.optim.lr_scheduler.StepLR(right, 1)
    saved.restore(into={"model": fresh, "optimizer": right})
    right.step()
    assert right.param_groups[0]["note"] == "mine"


class Counting(torch.optim.SGD):
    """Keeps state of many dtypes beside each parameter."""

    def fill(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.tensor(3),
                    "seen": torch.tensor(2**24 + 1),
                    "mask": torch.ones(2, dtype=torch.bool),
                    "master": parameter.detach().double() / 3,
                    "momentum_buffer": parameter.detach() / 3,
                    "past": [(torch.tensor(2**24 + 1),), {"factor": torch.rand(2).double()}],
                }
        return self


class Casting(Counting):
    def load_state_dict(self, state):
        super().load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_of_an_optimizer_is_not_cast_to_the_dtype_of_its_parameters(dtype):
    def make():
        return Counting([torch.nn.Parameter(torch.ones(2, dtype=dtype)) for _ in range(2)], lr=0.1)

    saved, fresh = make().fill(), make()
    Saved({"o": saved}).restore(into={"o": fresh})
    assert repr(fresh.state_dict()) == repr(saved.state_dict())
    moments = fresh.state_dict()["state"][1]
    assert moments["seen"] == moments["past"][0][0] == 2**24 + 1
    assert moments["master"].dtype == moments["past"][1]["factor"].dtype == torch.float64
    assert torch.equal(moments["master"], saved.state_dict()["state"][1]["master"])


def test_a_model_made_narrower_after_its_optimizer_goes_on_with_the_same_moments():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(1, 3)).sum().backward()
    optimizer.step()
    model.bfloat16()
    fresh = torch.nn.Linear(3, 2).bfloat16()
    other = torch.optim.Adam(fresh.parameters())
    Saved({"m": model, "o": optimizer}).restore(into={"m": fresh, "o": other})
    mine = other.state[fresh.weight]["exp_avg"]
    assert mine.dtype == torch.float32
    assert torch.equal(mine, optimizer.state[model.weight]["exp_avg"])


def test_an_optimizer_that_loads_its_state_itself_is_left_to_do_so():
    parameter = torch.nn.Parameter(torch.ones(2))
    saved, fresh = (Casting([parameter], lr=0.1) for _ in range(2))
    Saved({"o": saved.fill()}).restore(into={"o": fresh})
    assert fresh.state[parameter]["master"].dtype == torch.float32


def test_into_tensors_get_values_without_casts():
    saved = Saved({"a": torch.arange(6.0).reshape(2, 3)})
    with pytest.raises(TreeMismatch, match="dtype"):
        saved.restore(into={"a": torch.zeros(2, 3, dtype=torch.float64)})
    turned = torch.zeros(3, 2).t()
    assert saved.restore(into={"a": turned})["a"] is turned
    assert torch.equal(turned, torch.arange(6.0).reshape(2, 3))
    leaf = torch.zeros(2, 3, requires_grad=True)
    saved.restore(into={"a": leaf})
    assert leaf.requires_grad
    assert leaf.detach().sum() == 15
    array = np.zeros((2, 3), np.float32)
    saved.restore(into={"a": array})
    assert array.sum() == 15


@pytest.mark.parametrize("size", [torch.Size([2, 3]), torch.Size([])])
def test_a_size_takes_the_place_of_a_size(size):
    saved = Saved({"s": size, "l": [size], "w": torch.ones(2)})
    into = {"s": torch.Size([4, 5, 6]), "l": [torch.Size([1])], "w": torch.zeros(2)}
    back = saved.restore(into=into)
    assert back is into
    assert type(back["s"]) is type(back["l"][0]) is torch.Size
    assert back["s"] == back["l"][0] == size
    assert saved.restore(into=back)["s"] == size


@pytest.mark.parametrize(
    ("saved", "target", "why"),
    [
        ((2, 3), torch.Size([2, 4]), "a tuple in the checkpoint, torch.Size in into"),
        (torch.Size([2, 3]), [2, 4], "a plain value in the checkpoint, list in into"),
        (torch.Size([2]), torch.zeros(2), "a plain value in the checkpoint, torch.Tensor in into"),
    ],
)
def test_a_size_and_another_sequence_are_of_two_kinds(saved, target, why):
    weights = torch.zeros(2)
    with pytest.raises(TreeMismatch) as caught:
        Saved({"s": saved, "w": torch.ones(2)}).restore(into={"s": target, "w": weights})
    assert caught.value.wrong == [f"s: {why}"]
    assert weights.tolist() == [0, 0]


def test_an_array_restores_into_a_tensor_of_the_same_bytes():
    tensor = torch.zeros(3)
    Saved({"a": np.arange(3, dtype=np.float32)}).restore(into={"a": tensor})
    assert tensor.tolist() == [0, 1, 2]


def test_tied_saved_into_untied_and_back():
    tensor = torch.arange(3.0)
    tied = Saved({"a": tensor, "b": tensor.view(3), "c": tensor[1:]})
    into = {"a": torch.zeros(3), "b": torch.zeros(3), "c": torch.zeros(2)}
    tied.restore(into=into)
    assert into["a"].tolist() == into["b"].tolist() == [0, 1, 2]
    assert into["c"].tolist() == [1, 2]
    shared = torch.zeros(3)
    into = {"a": shared, "b": shared.view(3), "c": shared[1:]}
    tied.restore(into=into)
    assert into["c"].tolist() == [1, 2]
    assert into["b"].data_ptr() == shared.data_ptr()


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", ["direct", "copied", "tied", "part", "coo", "csr"])
def test_a_backward_through_values_that_a_restore_replaced_fails(kind):
    make = {
        "copied": lambda values: values.repeat(1, 2)[:, ::2],
        "coo": torch.Tensor.to_sparse,
        "csr": torch.Tensor.to_sparse_csr,
    }.get(kind, torch.Tensor.clone)
    saved, weight = make(torch.eye(3) * 5), make(torch.eye(3)).requires_grad_()
    loss = (weight @ torch.eye(3, requires_grad=True)).sum()  # backward needs the weight
    state = {"first": saved if kind == "tied" else torch.ones(3), "w": saved}
    first = torch.zeros_like(state["first"])
    Saved(state).restore(into={"first": first, "w": weight[0:] if kind == "part" else weight})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_tensor_of_inference_mode_is_filled():
    with torch.inference_mode():
        target = torch.zeros(3)
        Saved({"w": torch.ones(3)}).restore(into={"w": target})
    assert target.tolist() == [1, 1, 1]


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize("taken", ["grad", "bfloat16", "conj"])
@pytest.mark.parametrize("base", [None, torch.Tensor, np.ndarray])
def test_what_is_tied_is_taken_by_arrays_and_tensors_alike(base, taken, as_numpy):
    pytest.importorskip("ml_dtypes")
    memory = {
        "grad": torch.arange(6.0).requires_grad_(),
        "bfloat16": torch.arange(6).bfloat16(),
        "conj": (torch.arange(6) * 1j).conj(),
    }[taken]
    state = {"a": memory, "same": memory, "part": memory.detach()[2:]}
    values = Saved({"v": memory.detach()}).restore(as_numpy=True)["v"]

    def empty(kind, count):
        zeros = torch.zeros(count, dtype=memory.dtype)
        return kind and (zeros if kind is torch.Tensor else np.zeros(count, values.dtype))

    for kind in (torch.Tensor, np.ndarray):
        into = {"a": empty(base, 6), "same": empty(kind, 6), "part": empty(kind, 4)}
        same, part = into["same"], into["part"]
        back = Saved(state).restore(into=into, as_numpy=as_numpy)
        assert back["same"] is same
        assert back["part"] is part
        assert isinstance(back["a"], base or (np.ndarray if as_numpy else torch.Tensor))
        for name, wanted in (("a", values), ("same", values), ("part", values[2:])):
            assert Saved([back[name]]).restore(as_numpy=True)[0].tobytes() == wanted.tobytes()


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize("count", [0, 10, 40_000])
def test_one_memory_of_two_libraries_is_taken_at_each_place_by_its_own(count, as_numpy):
    array = np.arange(count, dtype=np.float32)
    tensor = torch.from_numpy(array)
    of = {"array": array, "tensor": tensor, "part": tensor[1:5]}

    def filled(value, like):
        numbers = np.full(tuple(value.shape), -1, np.float32)
        return None if like is None else like(numbers)

    kinds = (None, np.asarray, torch.from_numpy)
    for order in itertools.permutations(of):
        state = {name: of[name] for name in order}
        for likes in itertools.product(kinds, repeat=len(state)):
            pairs = zip(state.items(), likes, strict=True)
            into = {name: filled(value, like) for (name, value), like in pairs}
            back = Saved(state).restore(into=dict(into), as_numpy=as_numpy)
            for name, value in state.items():
                assert np.array_equal(np.asarray(back[name]), np.asarray(value))
                is_array = name == "array" or as_numpy
                own = np.ndarray if is_array else torch.Tensor
                assert (
                    isinstance(back[name], own) if into[name] is None else back[name] is into[name]
                )


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", ["optimizer", "coo", "csr"])
def test_what_takes_tensors_is_refused_arrays_before_anything_is_touched(name):
    dense = torch.eye(3)
    fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    saved, target = {
        "optimizer": (trained()["optimizer"], torch.optim.Adam(fresh.parameters())),
        "coo": (dense.to_sparse(), torch.zeros(3, 3).to_sparse()),
        "csr": (dense.to_sparse_csr(), (dense * 2).to_sparse_csr()),
    }[name]
    weights = torch.zeros(2)
    into = {"w": weights, name: target}
    both = Saved({"w": torch.ones(2), name: saved})
    with pytest.raises(BadRequest, match=rf"^{name}: as_numpy=True") as caught:
        both.restore(into=into, as_numpy=True)
    assert "as_numpy" in caught.value.hint
    assert weights.tolist() == [0, 0]
    both.restore(into=into)
    assert weights.tolist() == [1, 1]


def test_as_numpy_asks_nothing_of_objects_without_tensors_and_of_modules():
    state = trained()
    saved = Saved({"model": state["model"], "scheduler": state["scheduler"]})
    other = trained()
    into = {"model": other["model"], "scheduler": other["scheduler"]}
    with torch.no_grad():
        other["model"][0].weight.zero_()
    saved.restore(into=into, as_numpy=True)
    assert torch.equal(other["model"][0].weight, state["model"][0].weight)
