"""What a checkpoint of a run keeps beside its state: a blob of its own, shared where it can be."""

from __future__ import annotations

import random

import pytest

import casckpt
from casckpt.checkpoint import manifest as manifests
from casckpt.errors import Corrupt
from casckpt.training import extras
from casckpt.training.resume import Extra, read_extra


def test_generators_that_did_not_move_are_stored_once(store, name):
    random.seed()  # other tests of this store leave known generators behind
    random.random()  # the first draw after it makes all words anew
    stored = []
    with store.run(name) as run:
        for step in range(1, 6):
            stored.append(run.save({"weight": step}, step).stored_bytes)
        random.random()
        moved = run.save({"weight": 6}, 6).stored_bytes
        words = random.getstate()
        for _ in range(700):
            random.random()
        twisted = run.save({"weight": 7}, 7).stored_bytes
    # 625 words are 2.5 KB, which nothing makes smaller; numpy's may be in the store already.
    assert stored[0] > 2500
    assert max(*stored[1:], moved) < 1500
    # At a full chain all of it is stored anew, numpy's words too.
    assert 2500 < twisted < 9000
    extra = read_extra(store, store.get(f"{name}@6"))
    version, captured, gauss = extra.streams["python"]
    assert (version, tuple(captured), gauss) == words


def test_the_manifest_names_its_blob_and_restore_does_not_show_it(store, name):
    with store.run(name) as run:
        checkpoint = run.save({"weight": 1}, 1)
    manifest, refs = store._catalog.manifest_and_refs(checkpoint)
    blob, length = manifests.beside_of(manifest, len(refs))
    assert len(store._beside(checkpoint)) == length
    assert blob == len(refs) - 1
    assert store.restore(checkpoint) == {"weight": 1}


def test_what_older_stores_keep_in_the_manifest_is_read(store, name, monkeypatch):
    known = Extra(loop={"epoch": 3}, log=7)
    monkeypatch.setattr(
        manifests, "config_beside", lambda *_: {"resume": extras.pack(dict(known.__dict__))}
    )
    with store.run(name) as run:
        checkpoint = run.save({"weight": 1}, 1)
    assert read_extra(store, checkpoint) == known


@pytest.mark.parametrize(
    "config",
    [
        {"beside": None},
        {"beside": {"blob": 5, "length": 1}},
        {"beside": {"blob": -1, "length": 1}},
        {"beside": {"blob": True, "length": 1}},
        {"beside": {"blob": 0, "length": 1 << 40}},
    ],
)
def test_a_hostile_place_is_corrupt(config):
    manifest = manifests.Manifest("run", 0, 1, 0, "", {}, (), config=config)
    with pytest.raises(Corrupt, match="beside"):
        manifests.beside_of(manifest, 2)


def test_text_that_is_no_packed_value_is_corrupt():
    for text in (b"", b"{", b"[]", b'{"body": "", "blobs": []}', b"[" * 100_000):
        with pytest.raises(Corrupt):
            extras.unpack_text(text)


def test_a_checkpoint_whose_extra_is_damaged_is_not_whole(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        with store.run("run") as run:
            first = run.save({"weight": 1}, 1)
        assert store._is_whole(first)
        manifest, refs = store._catalog.manifest_and_refs(first)
        blob, _ = manifests.beside_of(manifest, len(refs))
        repository = store._repository
        with repository._shared().environment.read() as tx:
            place = tx.object(refs[blob])
    pack = max(tmp_path.glob("store/packs/*/*.pack"), key=lambda file: file.stat().st_size)
    data = bytearray(pack.read_bytes())
    at = place.offset + 96 + 32 * place.ref_count + place.stored // 2
    data[at] ^= 1
    pack.write_bytes(data)
    with casckpt.open(tmp_path / "store") as store:
        assert not store._is_whole(store.get("run@1"))
