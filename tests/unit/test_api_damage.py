"""Saves after damage was found: what a process could not read it does not rely on."""

from __future__ import annotations

import os
import shutil

import pytest

import casckpt
from casckpt.api import repair_store
from casckpt.errors import CasckptError, Corrupt, NoStore, StepExists, StoreBusy
from casckpt.store import records, verification
from casckpt.store.collectors import begin_run, check_run
from casckpt.store.objects import ObjectWriter
from casckpt.store.packs import pack_path
from tests.unit.test_api_restores import damage, weights

np = pytest.importorskip("numpy")


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def restored(store, ref):
    with pytest.raises(CasckptError):
        store.restore(ref)


def verified(store, ref):
    assert store.verify("bytes").damaged


def repacked(store, kind):
    """Damage the newest record of a kind."""
    (path,) = store.path.glob("packs/*/*.pack")
    data = bytearray(path.read_bytes())
    with store._repository._shared().environment.read() as tx:
        found = [
            row
            for key, _ in tx.scan("objects")
            if (row := tx.object(key)) is not None and row.kind == kind
        ]
    newest = max(found, key=lambda row: row.offset)
    data[newest.offset + records.OVERHEAD_BYTES + 32 * newest.ref_count] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("find", "seed"), [(restored, 11), (verified, 12)])
def test_a_save_does_not_rely_on_what_was_found_damaged(store, find, seed):
    state = {"frozen": weights(seed), "n": weights(2)}
    store.save("r", state, 1)
    damage(store, store.get("r@1"), "frozen")
    find(store, "r@1")
    store.save("r", state | {"n": weights(3)}, 2)
    for step, n in ((1, 2), (2, 3)):
        back = store.restore(f"r@{step}")
        assert np.array_equal(back["frozen"], weights(seed))
        assert np.array_equal(back["n"], weights(n))
    found = store.verify("bytes")
    assert {one.ref for one in store.checkpoints("r")} <= set(found.whole)


def test_what_rests_on_a_damaged_base_is_stored_whole(store):
    near = weights(31)
    for step in range(3):
        near = near.copy()
        near[::50] += 1
        store.save("r", {"w": near}, step)
    first, second = store.restore("r@0")["w"], store.restore("r@1")["w"]
    damage(store, store.get("r@0"), "w")
    restored(store, "r@2")
    # The base of the next save is at hand in memory, and wrong where it stands.
    store.save("r", {"w": near + np.float32(1)}, 3)
    store.save("r", {"w": near}, 4)
    store.save("s", {"w": second}, 0)
    assert np.array_equal(store.restore("r@3")["w"], near + np.float32(1))
    assert np.array_equal(store.restore("r@4")["w"], near)
    assert np.array_equal(store.restore("s@0")["w"], second)
    restored(store, "r@0")
    store.save("s", {"w": first}, 1)
    assert np.array_equal(store.restore("r@0")["w"], first)


@pytest.mark.parametrize("cut_to", [None, 0, 500_000])
def test_a_save_sees_that_a_pack_is_lost_or_cut(store, cut_to):
    state = {"frozen": weights(15), "k": 0}
    store.save("r", state, 0)
    with casckpt.open(store.path) as other:
        other.save("r", state | {"k": 1}, 1)
    place = store.path
    store.close()
    for pack in sorted(place.glob("packs/*/*.pack")):
        if pack.stat().st_size > 500_000:
            pack.unlink() if cut_to is None else os.truncate(pack, cut_to)
    with casckpt.open(place) as again:
        near = weights(15)
        near[::50] += 1
        again.save("r", state | {"k": 2}, 2)
        again.save("s", {"frozen": near}, 0, parent="r@2")
    with casckpt.open(place, mode="r") as again:
        assert np.array_equal(again.restore("r@2")["frozen"], weights(15))
        assert np.array_equal(again.restore("s@0")["frozen"], near)


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_the_same_state_at_the_same_step_puts_back_what_was_damaged(store, repaired, replace):
    state = {"w": weights(16), "k": 0}
    for step in range(3):
        store.save("r", state | {"k": step}, step)
    damage(store, store.get("r@2"), "w")
    restored(store, "r@2")
    if repaired:
        assert not store.repair().verified.ok
    store.save("r", state | {"k": 2}, 2, replace=replace)
    for step in range(3):
        assert np.array_equal(store.restore(f"r@{step}")["w"], weights(16))


@pytest.mark.parametrize("repaired", [False, True])
def test_a_checkpoint_whose_manifest_is_damaged_can_be_replaced(store, repaired):
    state = {"w": weights(17)}
    store.save("r", state, 1)
    repacked(store, 3)
    if repaired:
        assert not store.repair().verified.ok
    with pytest.raises(StepExists, match="r@1 is there already, and damaged"):
        store.save("r", state, 1)
    store.save("r", state, 1, replace=True)
    assert np.array_equal(store.restore("r@1")["w"], weights(17))


def test_a_pack_that_was_moved_away_is_not_relied_on_because_it_is_open_to_read(store, tmp_path):
    state = {"w": weights(18)}
    store.save("r", state, 1)
    place = store.path
    store.close()
    with casckpt.open(place) as again:
        again.restore("r@1")  # its pack is open to read now
        (pack,) = place.glob("packs/*/*.pack")
        pack.rename(tmp_path / pack.name)
        with pytest.raises(StepExists, match="and damaged"):
            again.save("r", state, 1)
        again.save("r", state, 1, replace=True)
    with casckpt.open(place, mode="r") as again:
        assert np.array_equal(again.restore("r@1")["w"], weights(18))


def test_a_collection_that_saw_the_damaged_place_ends(store):
    """It counts the pack with the new copy as dead (found by the model of the protocol)."""
    state = {"w": weights(91)}
    store.save("r", state, 1)
    shared = store._repository._shared()
    run = begin_run(shared)
    store.save("r", state | {"x": 1}, 2)
    with shared.environment.read() as tx:
        check_run(tx, run)
    damage(store, store.get("r@1"), "w")
    restored(store, "r@1")
    store.save("r", state | {"x": 2}, 3)
    with shared.environment.read() as tx, pytest.raises(StoreBusy):
        check_run(tx, run)


def test_a_damaged_list_is_written_anew(store):
    state = {"w": weights(51, 6_000_000)}
    store.save("r", state, 1)
    repacked(store, 2)
    restored(store, "r@1")
    store.save("r", state, 2)
    assert np.array_equal(store.restore("r@2")["w"], state["w"])
    assert np.array_equal(store.restore("r@1")["w"], state["w"])


@pytest.mark.parametrize("offset", [20, 150])
def test_a_damaged_manifest_is_told_by_the_name_of_its_checkpoint_and_hides_no_other(store, offset):
    for step in range(3):
        store.save("r", {"w": weights(step)}, step)
    shared = store._repository._shared()
    with shared.environment.read() as tx:
        row = tx.object(bytes.fromhex(store.get("r@1").id))
        path = pack_path(store.path, tx.pack(row.pack).uuid)
    data = bytearray(path.read_bytes())
    data[row.offset + offset] ^= 1
    path.write_bytes(data)
    for asked in (lambda: store.restore("r@1"), lambda: store.entries("r@1")):
        with pytest.raises(Corrupt, match="r@1 is damaged\nits list of tensors cannot be read"):
            asked()
    assert store.get("r@2").unique_bytes > 900_000
    assert store.stats().logical_bytes > 0
    if offset == 20:  # of the header, which a collection reads
        with pytest.raises(Corrupt) as caught:
            store.gc(now=True)
        assert len(str(caught.value).splitlines()) == 3


def test_what_a_rebuild_could_not_read_is_damage_and_not_removed(store, tmp_path):
    """Its checkpoint is live: nobody has removed anything."""
    for step in range(2):
        store.save("r", {"w": weights(20 + step)}, step)
    damage(store, store.get("r@1"), "w")
    store.close()
    shutil.rmtree(store.path / "index.0")
    done = repair_store(store.path, rebuild_index=True)
    assert done.found_damage
    with casckpt.open(store.path) as again:
        with pytest.raises(Corrupt, match=r"r@1 is damaged.*\nno pack holds it"):
            again.restore("r@1")
        assert np.array_equal(again.restore("r@1", fallback=True)["w"], weights(20))
        again.save("r", {"w": weights(21)}, 2)
        assert np.array_equal(again.restore("r@1")["w"], weights(21))


def test_a_training_that_begins_anew_over_damage_makes_whole_checkpoints(store):
    frozen = weights(71)

    def train(total):
        with store.run("lora") as run:
            state = casckpt.State(frozen=frozen.copy(), adapter=np.zeros(20_000, np.float32))
            for epoch in run.epochs(total, state, save_every=1):
                state.adapter = state.adapter + np.float32(epoch)
            return run.resumed

    train(2)
    damage(store, store.get("lora@2"), "frozen")
    assert train(4) is None
    assert train(6).step == 4
    assert [store.restore(one) is not None for one in store.checkpoints("lora~*")] == [True] * 8


@pytest.mark.parametrize("how", ["removed", "replaced", "cut"])
def test_a_save_whose_pack_was_taken_away_while_the_store_is_open_is_there(store, how):
    state = {"a": weights(21), "n": weights(22)}
    store.save("r", state, 1)
    (path,) = store.path.glob("packs/*/*.pack")
    if how == "removed":
        path.unlink()
    elif how == "replaced":
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[:1000])
    else:
        os.truncate(path, 1000)
    stored = [store.save("r", state, step).stored_bytes for step in (2, 3, 4)]
    assert stored[0] > 100 * stored[1]
    assert stored[1:] == pytest.approx([stored[1]] * 2, abs=100)
    with casckpt.open(store.path, mode="r") as other:
        for step in (2, 3, 4):
            assert np.array_equal(other.restore(f"r@{step}")["a"], state["a"])


def test_what_was_cut_from_the_open_pack_is_no_hole_that_a_longer_save_fills(store):
    state = {"a": weights(23)}
    store.save("r", state, 1)
    (path,) = store.path.glob("packs/*/*.pack")
    os.truncate(path, 5000)
    store.save("other", {"b": np.tile(weights(24), 3)}, 1)
    store.save("r", state, 2)
    assert np.array_equal(store.restore("r@2")["a"], state["a"])


def test_a_save_whose_pack_is_taken_away_under_it_is_made_again(store, monkeypatch):
    state = {"a": weights(25)}
    store.save("r", {"n": 1}, 1)
    taken = []
    real = ObjectWriter.store_unit

    def take(self, unit):
        done = real(self, unit)
        if not taken:
            (path,) = store.path.glob("packs/*/*.pack")
            taken.append(path)
            path.rename(path.with_suffix(".elsewhere"))
        return done

    monkeypatch.setattr(ObjectWriter, "store_unit", take)
    store.save("r", state, 2)
    assert taken
    assert np.array_equal(store.restore("r@2")["a"], state["a"])


def test_what_collections_take_from_under_a_verify_is_not_taken_for_damage(store, monkeypatch):
    store.save("r", {"a": weights(26)}, 1)
    store.close()
    with casckpt.open(store.path) as store:
        real = verification.ClosureCheck.run

        def late(self, *roots):
            with casckpt.open(store.path) as other:
                other.delete("r")
                other.gc(now=True)
            self._found.record(1, 80, "pack", b"", "gone")
            return real(self, *roots)

        monkeypatch.setattr(verification.ClosureCheck, "run", late)
        assert store.verify("bytes").ok
        assert store._repository._shared().damaged == set()


def test_damage_is_forgotten_with_the_pack_that_it_is_in(store):
    shared = store._repository._shared()
    store.save("r", {"a": weights(27)}, 1)
    shared.damaged |= {(1, -1), (77, 80)}
    store.save("r", {"a": weights(27)}, 2)
    assert shared.damaged == {(1, -1)}
    assert np.array_equal(store.restore("r@2")["a"], weights(27))


def test_what_writes_into_a_store_that_was_moved_away_says_so(store, tmp_path):
    store.save("r", {"a": 1}, 1)
    store.path.rename(tmp_path / "elsewhere")
    for write in (lambda: store.save("r", {"a": 1}, 2), lambda: store.tag("r@1", "x"), store.gc):
        with pytest.raises(CasckptError) as caught:
            write()
        assert str(store.path) in str(caught.value)
    with pytest.raises(NoStore, match="is gone"), store.run("q") as run:
        list(run.epochs(2, {"n": 1}))
    (tmp_path / "elsewhere").rename(store.path)
    store.save("r", {"a": 2}, 2)
    assert store.restore("r") == {"a": 2}
