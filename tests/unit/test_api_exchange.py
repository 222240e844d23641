"""Export, import and repair through the public Store."""

from __future__ import annotations

import os
import shutil
import stat
import sys

import pytest

import casckpt
from casckpt.api import repair_store
from casckpt.errors import BadRequest, Corrupt, MissingExtra, NoStore, NotFound, PickleRefused

np = pytest.importorskip("numpy")

STATE = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(3), "epoch": 7}


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.json"])
def test_what_is_exported_can_be_imported_exactly(store, tmp_path, name):
    store.save("r", STATE, 3, metrics={"loss": 1.0})
    assert store.export("r", tmp_path / name) == [tmp_path / name]
    (back,) = store.import_files("copy", tmp_path / name, step=9)
    assert back.step == 9
    assert store.diff("r", "copy").same_state


def test_a_tree_is_a_folder(store, tmp_path):
    store.save("r", STATE)
    written = store.export("r", tmp_path / "out", format="tree")
    assert [path.name for path in written] == ["state.safetensors", "tree.json"]
    store.import_files("copy", tmp_path / "out", step=0)
    assert store.diff("r", "copy").same_state


def test_torch_files_go_both_ways(store, tmp_path):
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    store.save("r", {"model": {"w": tensor}, "step": 3})
    store.export("r", tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt", weights_only=True)
    assert torch.equal(loaded["model"]["w"], tensor)
    torch.save({"model": {"w": torch.ones(3)}}, tmp_path / "epoch_12.pt")
    (imported,) = store.import_files("old", tmp_path / "epoch_12.pt")
    assert imported.step == 12
    assert torch.equal(store.restore("old")["model"]["w"], torch.ones(3))


def test_steps_come_from_the_names(store, tmp_path):
    for number in (20, 3, 100):
        np.savez(tmp_path / f"v2_epoch{number}.npz", a=np.full(3, number))
    files = sorted(tmp_path.glob("*.npz"))
    assert [ck.step for ck in store.import_files("old", *files)] == [3, 20, 100]
    assert store.restore("old@20")["a"][0] == 20
    assert [ck.step for ck in store.import_files("again", *files, step=5)] == [5, 6, 7]
    np.savez(tmp_path / "best.npz", a=np.zeros(1))
    made = store.import_files("mixed", files[0], tmp_path / "best.npz")
    assert [ck.step for ck in made] == [0, 1]


def test_bad_files_are_refused_and_nothing_is_saved(store, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x01\x02 no such format")
    with pytest.raises(BadRequest):
        store.import_files("r", tmp_path / "x.pt")
    with pytest.raises(BadRequest):
        store.import_files("r")
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(PickleRefused):
        store.import_files("r", tmp_path / "evil.pkl")
    assert store.runs() == []


def test_a_format_is_needed(store, tmp_path):
    store.save("r", STATE)
    with pytest.raises(BadRequest, match="format"):
        store.export("r", tmp_path / "x.unknown")
    with pytest.raises(NotFound):
        store.export("nothing", tmp_path / "x.npz")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_is_never_replaced(store, tmp_path):
    store.save("r", STATE)
    path = tmp_path / "out.npz"
    os.mkfifo(tmp_path / "fifo")
    for target in (tmp_path / "fifo", "/dev/null", tmp_path / "missing"):
        path.symlink_to(target)
        with pytest.raises(BadRequest, match="cannot write") as caught:
            store.export("r", path)
        assert caught.value.why
        assert path.is_symlink()
        path.unlink()
    with pytest.raises(BadRequest, match="cannot write"):
        store.export("r", tmp_path / "fifo", format="npz")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert [one.name for one in tmp_path.iterdir() if one != store.path] == ["fifo"]


def test_a_link_to_a_file_stays_and_the_file_is_replaced(store, tmp_path):
    store.save("r", STATE)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old.npz").write_text("old")
    (tmp_path / "out.npz").symlink_to("elsewhere/old.npz")
    store.export("r", tmp_path / "out.npz")
    assert (tmp_path / "out.npz").is_symlink()
    with np.load(tmp_path / "elsewhere" / "old.npz") as arrays:
        assert np.array_equal(arrays["w"], STATE["w"])


def test_without_torch_torch_files_name_the_extra(store, tmp_path, monkeypatch):
    store.save("r", STATE)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "casckpt.adapters.torch", raising=False)
    monkeypatch.setattr("casckpt.checkpoint.leaves._handlers", {})
    with pytest.raises(MissingExtra, match=r"torch is not installed\n.*pip install .casckpt.torch"):
        store.export("r", tmp_path / "x.pt")


def test_a_lost_index_is_rebuilt(tmp_path):
    place = tmp_path / "s"
    with casckpt.open(place) as store:
        store.save("r", STATE, 1, metrics={"loss": 2.0})
        store.save("r", {**STATE, "epoch": 8}, 2, tags="keep")
        store.pin("r@1")
    shutil.rmtree(place / "index.0")
    with pytest.raises(Corrupt):
        casckpt.open(place)
    done = repair_store(place, rebuild_index=True)
    assert done.rebuilt
    assert done.checkpoint_count == 2
    with casckpt.open(place) as store:
        assert store.get("r@1").pinned
        assert store.get("r@keep").step == 2
        assert store.get("r@1").metrics == {"loss": 2.0}
        assert store.restore("r@2")["epoch"] == 8
        result = store.repair(accept=True)
        assert result.accepted
        assert store.save("r", STATE).step == 3
        store.gc(now=True)


def test_repair_needs_a_store_and_another_one_to_take_from(tmp_path):
    with pytest.raises(NoStore):
        repair_store(tmp_path, accept=True)
    casckpt.open(tmp_path / "s").close()
    with pytest.raises(NoStore):
        repair_store(tmp_path / "s", source=tmp_path / "none")
    with pytest.raises(BadRequest, match="no source for itself"):
        repair_store(tmp_path / "s", source=tmp_path / "s")


def hurt(store, ref, path):
    """Overwrite part of a tensor's bytes in its pack."""
    manifest, refs = store._catalog.manifest_and_refs(store.get(ref))
    blob = next(refs[entry.blob] for entry in manifest.entries if entry.path == path)
    for pack in store.path.glob("packs/*/*.pack"):
        data = bytearray(pack.read_bytes())
        at = data.find(blob)
        if at >= 0:
            data[at + 4000 : at + 4064] = bytes(64)
            pack.write_bytes(data)
            return
    raise AssertionError(f"no pack holds {path}")


def test_repair_tells_what_is_lost_and_takes_it_from_another_store(tmp_path):
    states = [
        {"a": np.random.default_rng(at).random(100_000), "b": np.full(100_000, at)}
        for at in range(3)
    ]
    with casckpt.open(tmp_path / "other") as other:
        for state in states:
            other.save("copy", state)
    with casckpt.open(tmp_path / "s") as store:
        for step, state in enumerate(states):
            store.save("r", state, step)
        hurt(store, "r@1", "a")
        seen = []
        done = store.repair(progress=lambda at, total: seen.append((at, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        assert done.refilled_count == 0
        assert len(done.quarantined) == 1
        aside = next((tmp_path / "s" / "quarantine").iterdir())
        assert store.stats().quarantine_bytes == aside.stat().st_blocks * 512
        assert done.verified.lost == ("r@1",)
        assert done.verified.tensors == {"r@1": ("a",)}
        assert done.verified.whole == ("r@2", "r@0")
        with pytest.raises(Corrupt) as caught:
            store.restore("r@1")
        assert "r@2" in str(caught.value)
        assert np.array_equal(store.restore("r@1", only="b")["b"], states[1]["b"])
        store.gc(now=True)
        done = store.repair(source=tmp_path / "other")
        assert done.refilled_count == 1
        assert done.verified.ok
        assert store.verify().ok
        for step, state in enumerate(states):
            assert np.array_equal(store.restore(f"r@{step}")["a"], state["a"])
