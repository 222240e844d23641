"""restore through the public Store, and what damage looks like from there."""

from __future__ import annotations

import logging

import pytest

import casckpt
from casckpt.checkpoint.refs import Ref
from casckpt.errors import Ambiguous, BadRef, BadRequest, Corrupt, NoStore, NotFound, TreeMismatch

np = pytest.importorskip("numpy")


def weights(seed, count=300_000):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def damage(store, checkpoint, path):
    """Flip bytes of one tensor where they lie in a pack."""
    catalog = store._catalog
    manifest, refs = catalog.manifest_and_refs(checkpoint)
    entry = next(entry for entry in manifest.entries if entry.path == path)
    blob = refs[entry.blob]
    chunks = [
        id_
        for id_, (logical, _) in store._repository.closure([blob]).items()
        if logical > 100_000 and id_ != blob
    ] or [blob]
    for pack in store.path.glob("packs/*/*.pack"):
        data = bytearray(pack.read_bytes())
        at = data.find(chunks[0])
        if at >= 0:
            # The id stands in the header of its record; well behind it is the payload.
            data[at + 4000 : at + 4064] = bytes(64)
            pack.write_bytes(data)


def test_a_tree_comes_back_exactly(store):
    tree = {"w": weights(1), "list": [1, 2.5, None, (True, b"x")], 3: {"deep": weights(2, 7)}}
    store.save("r", tree)
    back = store.restore("r")
    assert np.array_equal(back["w"], tree["w"])
    assert back["list"] == tree["list"]
    assert np.array_equal(back[3]["deep"], tree[3]["deep"])


def test_only_reads_what_matches(store):
    store.save("r", {"model": {"a": weights(1), "b": weights(2)}, "epoch": 3})
    assert list(store.restore("r", only="model.a")["model"]) == ["a"]
    assert store.restore("r", only=["epoch"]) == {"epoch": 3}
    with pytest.raises(NotFound, match="nothing"):
        store.restore("r", only="nothing*")


def test_only_nothing_is_a_mistake(store):
    store.save("r", {"a": 1})
    with pytest.raises(BadRequest, match="only= selects nothing"):
        store.restore("r", only=[])


def test_into_is_checked_whole_first(store):
    store.save("r", {"a": weights(1), "b": weights(2)})
    target = {"a": np.zeros(300_000, np.float32), "b": np.zeros(3, np.float32)}
    with pytest.raises(TreeMismatch):
        store.restore("r", into=target)
    assert not target["a"].any()
    memory = target["a"]
    target["b"] = np.zeros(300_000, np.float32)
    back = store.restore("r", into=target)
    assert back["a"] is memory
    assert np.array_equal(memory, weights(1))


def test_every_kind_of_ref(store):
    first = store.save("bpm/nn", {"v": 1}, 10, metrics={"loss": 2.0}, tags="first")
    store.save("bpm/nn", {"v": 2}, 20, metrics={"loss": 1.0})
    for ref, value in {
        "bpm/nn": 2,
        "bpm/nn@latest": 2,
        "bpm/nn@10": 1,
        "bpm/nn@first": 1,
        "bpm/nn@best:loss:min": 2,
        "bpm/nn@best:loss:max": 1,
        "bpm/nn~0@10": 1,
        f"id:{first.id[:10]}": 1,
        f"{store.path}::bpm/nn@10": 1,
    }.items():
        assert store.restore(ref) == {"v": value}, ref
    assert store.restore(first) == {"v": 1}
    with pytest.raises(BadRef, match="smallest or the largest"):
        store.restore("bpm/nn@best:loss")
    with pytest.raises(NotFound, match="no run bpm/n"):
        store.restore("bpm/n")
    with pytest.raises(NotFound, match="no such id"):
        store.restore("id:00000000")


def test_an_ambiguous_id_is_refused(store):
    for value in range(17):  # one more than there are first digits
        store.save("r", {"v": value})
    first_digits = [ck.id[0] for ck in store.checkpoints()]
    shared = next(digit for digit in first_digits if first_digits.count(digit) > 1)
    with pytest.raises(Ambiguous, match=rf"fits {first_digits.count(shared)} checkpoints"):
        store._catalog.resolve(Ref(f"id:{shared}", id_prefix=shared))


def test_a_ref_into_another_store(store, tmp_path):
    with casckpt.open(tmp_path / "other") as other:
        saved = other.save("x", {"v": 7})
    assert store.restore(f"{tmp_path}/other::x") == {"v": 7}
    assert store.get(f"{tmp_path}/other::id:{saved.id}") == saved
    with pytest.raises(NoStore):
        store.restore(f"{tmp_path}/nowhere::x")
    store.save("x", {"v": 1})
    for pattern in ("x", "*", "x~*"):
        assert store.checkpoints(f"{tmp_path}/other::{pattern}") == [saved]
    with pytest.raises(NoStore):
        store.checkpoints(f"{tmp_path}/nowhere::x")
    assert not (tmp_path / "nowhere").exists()
    store.tag(f"{tmp_path}/other::x", "seen")
    assert store.get(f"{tmp_path}/other::x").tags == ("seen",)


def test_a_folder_is_a_ref(store, tmp_path):
    experiment = tmp_path / "exp7"
    experiment.mkdir()
    with casckpt.open(experiment / "checkpoints") as other:
        other.save("only", {"v": 1})
        other.save("only/fold-1", {"v": 2})
    assert store.restore(str(experiment)) == {"v": 1}
    assert store.restore(f"{experiment}@0") == {"v": 1}
    with casckpt.open(experiment / "checkpoints") as other:
        other.save("more", {"v": 3})
    with casckpt.open(tmp_path / "store") as fresh:
        with pytest.raises(Ambiguous, match="2 runs"):
            fresh.restore(str(experiment))
        with casckpt.open(experiment / "checkpoints") as other:
            other.save("exp7", {"v": 4})
        assert fresh.restore(str(experiment)) == {"v": 4}


def test_a_run_of_that_name_wins_over_a_folder(store, tmp_path, monkeypatch):
    with casckpt.open(tmp_path / "exp") as other:
        other.save("exp", {"v": "folder"})
    monkeypatch.chdir(tmp_path)
    assert store.restore("exp") == {"v": "folder"}
    store.save("exp", {"v": "run"})
    assert store.restore("exp") == {"v": "run"}


def test_nothing_is_changed_in_a_folder_that_is_called_like_a_run(store, tmp_path, monkeypatch):
    with casckpt.open(tmp_path / "exp") as other:
        other.save("only", {"v": 1})
    monkeypatch.chdir(tmp_path)
    for change in (store.delete, store.pin, lambda ref: store.tag(ref, "t")):
        with pytest.raises(NotFound, match="no run exp"):
            change("exp@0")
    store.pin("exp::only@0")
    with casckpt.open(tmp_path / "exp") as other:
        (kept,) = other.checkpoints()
        assert kept.pinned
        assert not kept.tags


def test_a_file_is_no_ref(store, tmp_path, monkeypatch):
    (tmp_path / "old.pt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRef, match=r"old\.pt is a file") as caught:
        store.get("./old.pt")
    assert caught.value.hint == "`casckpt import ./old.pt --run RUN` makes it one"
    with pytest.raises(BadRef, match="bad run name"):
        store.get("./older.pt")


def test_a_folder_with_an_empty_store_is_no_checkpoint(store, tmp_path, monkeypatch):
    casckpt.open(tmp_path / "fresh").close()
    monkeypatch.chdir(tmp_path)
    assert store.latest("fresh") is None
    with pytest.raises(NotFound, match="no run fresh"):
        store.get("fresh")


def test_damage_names_tensors_sharers_and_the_newest_whole_one(store):
    shared = weights(1)
    for step in range(3):
        store.save("r", {"w": shared, "n": weights(10 + step)}, step)
    other = weights(99)
    store.save("r", {"w": other, "n": weights(20)}, 3)
    store.save("r", {"w": shared, "n": weights(21)}, 4)
    damage(store, store.get("r@4"), "w")
    with pytest.raises(Corrupt) as caught:
        store.restore("r")
    error = caught.value
    assert error.exit_code == 13
    assert error.paths == ["w"]
    assert error.shared_by == ["r@0", "r@1", "r@2"]
    assert error.newest_whole == "r@3"
    assert "r@4 is damaged: w" in str(error)
    assert "r@3" in error.hint
    assert np.array_equal(store.restore("r@4", only="n")["n"], weights(21))


def test_fallback_takes_the_next_older_whole_one_and_says_so(store, caplog):
    store.save("r", {"w": weights(1)}, 1)
    store.save("r", {"w": weights(2)}, 2)
    store.save("r", {"w": weights(2), "extra": 1}, 3)
    damage(store, store.get("r@3"), "w")
    with caplog.at_level(logging.WARNING, logger="casckpt"):
        back = store.restore("r", fallback=True)
    assert np.array_equal(back["w"], weights(1))
    assert "r@2 is damaged too" in caplog.text
    assert "restored r@1 instead" in caplog.text


@pytest.mark.parametrize(
    "asked", [{"only": "w"}, {"into": {"w": np.zeros(300_000, np.float32)}}], ids=["only", "into"]
)
def test_fallback_passes_over_what_does_not_fit(store, caplog, asked):
    store.save("r", {"w": weights(1)}, 1)
    store.save("r", {"other": weights(2)}, 2)
    store.save("r", {"w": weights(3)}, 3)
    damage(store, store.get("r@3"), "w")
    with caplog.at_level(logging.WARNING, logger="casckpt"):
        back = store.restore("r", fallback=True, **asked)
    assert np.array_equal(back["w"], weights(1))
    assert "r@2 cannot stand in" in caplog.text
    assert "restored r@1 instead" in caplog.text


def test_where_nothing_whole_fits_fallback_tells_of_the_damage(store):
    store.save("r", {"other": weights(2)}, 2)
    store.save("r", {"w": weights(3)}, 3)
    damage(store, store.get("r@3"), "w")
    with pytest.raises(Corrupt, match="r@3 is damaged: w") as caught:
        store.restore("r", fallback=True, only="w")
    assert caught.value.hint == "the newest whole one is r@2; not fit for this: r@2"
    assert caught.value.newest_whole == "r@2"


def test_without_an_older_whole_one_fallback_is_an_error(store):
    store.save("r", {"w": weights(1)}, 1)
    damage(store, store.get("r@1"), "w")
    with pytest.raises(Corrupt, match="r@1 is damaged") as caught:
        store.restore("r", fallback=True)
    assert caught.value.newest_whole is None


def test_without_an_older_whole_one_fallback_takes_the_newest(store, caplog):
    for step in range(3):
        store.save("r", {"w": weights(step)}, step)
    damage(store, store.get("r@0"), "w")
    with pytest.raises(Corrupt) as caught:
        store.restore("r@0")
    assert caught.value.hint == "take r@2, the newest whole checkpoint, or pass fallback=True"
    with caplog.at_level(logging.WARNING, logger="casckpt"):
        back = store.restore("r@0", fallback=True)
    assert np.array_equal(back["w"], weights(2))
    assert "restored r@2 instead" in caplog.text


def test_the_error_names_the_one_that_fallback_takes(store):
    for step in range(3):
        store.save("r", {"w": weights(step)}, step)
    damage(store, store.get("r@1"), "w")
    with pytest.raises(Corrupt, match="r@2; fallback=True takes r@0"):
        store.restore("r@1")
    assert np.array_equal(store.restore("r@1", fallback=True)["w"], weights(0))


def test_one_call_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CASCKPT_STORE", raising=False)
    saved = casckpt.save("ckpts::bpm/nn", {"v": 1}, step=60, metrics={"val_loss": 1.31})
    assert saved.step == 60
    assert casckpt.restore("ckpts::bpm/nn@best:val_loss:min") == {"v": 1}
    assert casckpt.restore("ckpts") == {"v": 1}
    with pytest.raises(NoStore):
        casckpt.restore("bpm/nn")
    assert not (tmp_path / ".casckpt").exists()
    casckpt.save("here", {"v": 2})
    assert (tmp_path / ".casckpt" / "format.json").exists()
    deeper = tmp_path / "a" / "b"
    deeper.mkdir(parents=True)
    monkeypatch.chdir(deeper)
    assert casckpt.restore("here") == {"v": 2}
    monkeypatch.setenv("CASCKPT_STORE", str(tmp_path / "ckpts"))
    assert casckpt.restore("bpm/nn") == {"v": 1}
    with pytest.raises(BadRef, match="cannot save to"):
        casckpt.save("bpm/nn@70", {"v": 1})


def test_opening_what_is_no_store(tmp_path):
    with pytest.raises(NoStore):
        casckpt.open(tmp_path / "missing", mode="r")
    assert not (tmp_path / "missing").exists()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.py").write_text("x")
    with pytest.raises(NoStore):
        casckpt.open(tmp_path / "folder")
    with pytest.raises(NoStore):
        casckpt.open(tmp_path / "folder", mode="r")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoStore):
        casckpt.open(tmp_path / "file")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["train.py"]
