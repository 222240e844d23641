"""`casckpt.dcp`: tensors of one or many processes in one checkpoint, and back into any number."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import casckpt
from casckpt.errors import BadRequest
from tests.adapters.kills import PACKAGE_HOME, check

torch = pytest.importorskip("torch")
dcp = pytest.importorskip("torch.distributed.checkpoint")

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("torch.distributed.checkpoint").setLevel(logging.CRITICAL)

SCRIPT = Path(__file__).with_name("train_dcp.py")


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def save(state, store, run="r", step=None, **options):
    writer = casckpt.dcp.Writer(store, run, step, **options)
    dcp.save(state, storage_writer=writer, no_dist=True)
    return writer.checkpoint


def load(state, store, ref="r", **options):
    reader = casckpt.dcp.Reader(store, ref, **options)
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def test_values_of_every_kind_come_back(store):
    state = {
        "a": torch.randn(40, 50), "b": {"c": torch.ones(3, dtype=torch.bfloat16), "n": 5},
        "list": [torch.tensor(2), "text"], "odd [*]": torch.zeros(0), "turned": torch.ones(2, 3).T,
    }  # fmt: skip
    saved = save(state, store, step=4, metrics={"loss": 2.0}, tags="first")
    assert (saved.ref, saved.metrics, saved.tags) == ("r@4", {"loss": 2.0}, ("first",))
    empty = {
        "a": torch.zeros(40, 50), "b": {"c": torch.zeros(3, dtype=torch.bfloat16), "n": 0},
        "list": [torch.tensor(0), ""], "odd [*]": torch.zeros(0), "turned": torch.zeros(3, 2),
    }  # fmt: skip
    load(empty, store)
    assert torch.equal(empty["a"], state["a"])
    assert torch.equal(empty["b"]["c"], state["b"]["c"])
    assert (empty["b"]["n"], empty["list"][0].item(), empty["list"][1]) == (5, 2, "text")
    assert torch.equal(empty["turned"], state["turned"])


def test_tensors_that_stay_are_stored_once(store):
    frozen, live = torch.randn(300, 400), torch.randn(10)
    save({"frozen": frozen, "live": live}, store)
    second = save({"frozen": frozen, "live": live + 1}, store)
    assert second.new_bytes < 10_000 < second.logical_bytes
    # The same tensor in a plain save is the same bytes too.
    assert store.save("plain", {"frozen": frozen}).new_bytes < 1000


def test_it_is_an_ordinary_checkpoint_that_nothing_needs_pickle_for(store):
    save({"w": torch.ones(3), "n": {"x": 1}}, store)
    state = store.restore("r", only="data.w", as_numpy=True)
    assert state["data"]["w"].tolist() == [1, 1, 1]
    assert not {entry.kind for entry in store.entries("r")} & {"pickle"}
    assert '"paths":{"w":["w"],"n.x":["n","x"]}' in store.restore("r", only="dcp")["dcp"]


class Evil:
    def __reduce__(self):
        return (exec, ("raise RuntimeError('ran')",))


def test_code_in_a_checkpoint_is_not_run(store):
    save({"w": torch.ones(3), "evil": Evil()}, store)
    with pytest.raises(BaseException, match="evil in r@0 is no plain value") as caught:
        load({"w": torch.zeros(3), "evil": None}, store)
    assert "PickleRefused" in str(caught.value)
    with pytest.raises(BaseException, match="ran"):
        load({"w": torch.zeros(3), "evil": None}, store, allow_pickle=True)


def test_nothing_is_cast_and_ids_are_ours(store):
    save({"w": torch.ones(3)}, store)
    with pytest.raises(BaseException, match="a load does not cast"):
        load({"w": torch.zeros(3, dtype=torch.float64)}, store)
    writer = casckpt.dcp.Writer(store, "r")
    with pytest.raises(BadRequest, match="checkpoint_id"):
        dcp.save({"w": torch.ones(1)}, checkpoint_id="x", storage_writer=writer, no_dist=True)
    store.save("other", {"x": 1})
    with pytest.raises(BaseException, match="was not saved by torch"):
        load({"w": torch.zeros(3)}, store, "other")


def test_another_default_device_changes_nothing(store):
    tensor, into = torch.arange(6.0), torch.zeros(6)
    with torch.device("meta"):
        save({"w": tensor, "step": 3}, store)
        state = load({"w": into, "step": 0}, store)
    assert torch.equal(into, tensor)
    assert state["step"] == 3


class OtherWriter(casckpt.dcp.Writer):
    """Brings its items as a process does that does not commit."""

    def set_up_storage_writer(self, is_coordinator, *args, **kwargs):
        super().set_up_storage_writer(False, *args, **kwargs)


def refs(store):
    return sorted(one.ref for one in store.checkpoints())


def test_what_others_have_in_runs_below_is_not_taken_for_parts(store):
    mine = {"data": {"w": torch.zeros(4)}}
    for name in ("dcp-ablation", "dcp-0", "dcp-7/deeper", "dcp-", "dcp-1x"):
        store.save(f"r/{name}", mine)
    store.save("r/dcp-tagged", mine, tags="paper")
    store.pin("r/dcp-tagged")
    store.save("r/dcp-8", {"part_of": "other", "data": {}})
    before = refs(store)
    for step in range(2):
        dcp.save({"w": torch.ones(9)}, storage_writer=OtherWriter(store, "r", step), no_dist=True)
    assert refs(store) == sorted(["r@0", "r@1", *before])
    assert store.checkpoints(trash=True) == []
    assert load({"w": torch.zeros(9)}, store)["w"].sum() == 9
    assert torch.equal(store.restore("r/dcp-0")["data"]["w"], torch.zeros(4))


def test_parts_of_a_save_that_failed_go_with_the_next_one_unless_marked(store, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the first process is gone")

    with monkeypatch.context() as patch:
        patch.setattr(casckpt.dcp.Writer, "finish", fail)
        for step in range(3):
            with pytest.raises(BaseException, match="is gone"):
                dcp.save(
                    {"w": torch.ones(9)}, storage_writer=OtherWriter(store, "r", 0), no_dist=True
                )
            if step == 0:
                store.pin("r/dcp-0")
            elif step == 1:
                store.tag("r/dcp-0", "look")
    assert refs(store) == ["r/dcp-0@0", "r/dcp-0@1", "r/dcp-0@2"]
    save({"w": torch.ones(9)}, store)
    assert refs(store) == ["r/dcp-0@0", "r/dcp-0@1", "r@0"]


def test_async_save_is_isolated_from_what_follows(store):
    tensor = torch.ones(1000)
    writer = casckpt.dcp.Writer(store, "r")
    pending = dcp.async_save({"w": tensor}, storage_writer=writer, no_dist=True)
    tensor.zero_()
    pending.result()
    assert load({"w": torch.zeros(1000)}, store)["w"].sum() == 1000


@pytest.mark.slow
def test_two_processes_save_one_loads_the_whole(tmp_path):
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", str(SCRIPT), str(tmp_path / "store"), str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_HOME), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = torch.arange(40400.0).reshape(101, 400) + 2
    rows[51:] += 1000000
    with casckpt.open(tmp_path / "store") as store:
        assert sorted(one.ref for one in store.checkpoints("big*")) == ["big@0", "big@7"]
        assert store.get("big@0").metrics == {"loss": 1.0}
        state = {
            "sharded": torch.zeros(101, 400), "replicated": torch.zeros(30, 3),
            "nested": {"half": torch.zeros(4, dtype=torch.bfloat16), "count": 0},
            "rng/0": torch.zeros(2, dtype=torch.int64), "rng/1": torch.zeros(2, dtype=torch.int64),
        }  # fmt: skip
        load(state, store, "big@7")
        assert torch.equal(state["sharded"], rows)
        assert state["replicated"].unique().tolist() == [2.0]
        assert state["nested"]["count"] == 2
        assert (state["rng/0"].tolist(), state["rng/1"].tolist()) == ([0, 2], [1, 2])
        assert store.verify("bytes").damaged == ()


PROGRAM = textwrap.dedent("""
    import hashlib, sys, time
    import torch, casckpt, casckpt.dcp
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 300), torch.nn.Dropout(0.3), torch.nn.Linear(300, 1)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def everything(step):
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments, "rng": torch.get_rng_state(), "step": step}

    step = 0
    with casckpt.open(sys.argv[1]) as store:
        if store.latest("llm"):
            state = everything(0)
            dcp.load(state, storage_reader=casckpt.dcp.Reader(store, "llm"), no_dist=True)
            set_state_dict(model, optimizer, model_state_dict=state["model"],
                           optim_state_dict=state["optimizer"])
            torch.set_rng_state(state["rng"])
            step = state["step"]
        print("begin", flush=True)
        while step < 30:
            x = torch.randn(16, 8)
            loss = (model(x) - x[:, :1].sin()).square().mean()
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            step += 1
            dcp.save(everything(step), storage_writer=casckpt.dcp.Writer(store, "llm", step),
                     no_dist=True)
            time.sleep(0.02)
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    open(sys.argv[2], "w").write(digest.hexdigest())
""")


@pytest.mark.crash
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    program = tmp_path / "dcp_loop.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="torch.distributed.checkpoint")
