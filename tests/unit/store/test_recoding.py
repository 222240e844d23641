"""Compact: chunks stored anew on newer ones, beside others, and after it was broken off."""

from __future__ import annotations

import numpy as np
import pytest

from casckpt.errors import StoreBusy
from casckpt.store import (
    BlobSource,
    CommitRequest,
    Repository,
    StoreOptions,
    collectors,
    columns,
    files,
    recoding,
)
from tests.unit.store import stores

COUNT = 13


def drifting(count: int = COUNT, items: int = 300_000) -> list[bytes]:
    """Return the bytes of weights that change a little from one to the next."""
    random = np.random.default_rng(3)
    weights = random.standard_normal(items).astype(np.float32)
    found = []
    for _ in range(count):
        found.append(weights.tobytes())
        weights = weights + random.standard_normal(items).astype(np.float32) * np.float32(1e-5)
    return found


@pytest.fixture(scope="module")
def data() -> list[bytes]:
    return drifting()


def save_on(
    repository: Repository, data: bytes, step: int, base: bytes | None, run: str = "run"
) -> stores.Saved:
    """Commit a checkpoint with one blob, coded against another."""
    with repository.saver() as saver:
        infos = saver.put_blobs([BlobSource([data], 4, False, base)])
        manifest = saver.put_manifest([infos[0].id], f"{run} {step}".encode())
        head = repository.head(run, 0)
        seq = saver.commit(CommitRequest(run, 0, step, 0, manifest.id, b"\x01payload", head))
    return stores.Saved(manifest.id, seq, infos, [data])


def save_all(repository: Repository, data: list[bytes]) -> list[stores.Saved]:
    saved: list[stores.Saved] = []
    for step, piece in enumerate(data):
        base = saved[-1].infos[0].id if saved and step % 4 else None
        saved.append(save_on(repository, piece, step, base))
    return saved


def lineage(saved: list[stores.Saved]) -> list[columns.Lineage]:
    blobs = tuple(one.infos[0].id for one in reversed(saved))
    return [columns.Lineage(blobs, saved[0].infos[0].length, 4)]


def depths(repository: Repository, saved: list[stores.Saved]) -> list[int]:
    """Return how many links lie below the first chunk of each checkpoint."""
    shared = repository._shared()
    reader = recoding.Reader(shared, repository._workers())
    found = []
    for one in saved:
        info = one.infos[0]
        identity = reader.chunks_of(info.id)[0][0]
        with shared.environment.read() as tx:
            chain = tx.chain(identity)
        assert chain is not None
        found.append(len(chain) - 1)
    return found


def needed_bytes(repository: Repository, saved: list[stores.Saved]) -> int:
    """Return what the records take that checkpoints need."""
    closure = repository.closure([one.manifest_id for one in saved])
    return sum(stored for _, stored in closure.values())


def test_the_newest_is_whole_and_the_others_stand_on_newer_ones(repository, data):
    saved = save_all(repository, data)
    assert depths(repository, saved) == [0, 1, 2, 3] * 3 + [0]
    before = repository.sizes().pack_bytes
    done = recoding.compact(repository, lineage(saved), "small")
    assert depths(repository, saved)[-1] == 0
    assert all(depths(repository, saved)[:-1])
    assert max(depths(repository, saved)) < COUNT - 1
    assert done.recoded_count == done.looked_count - 2  # the newest is whole already: two chunks
    assert done.after_bytes < done.before_bytes
    assert repository.sizes().pack_bytes < 0.9 * before
    for one in saved:
        stores.check(repository, one)
    assert not repository.verify("bytes").damaged
    assert recoding.compact(repository, lineage(saved), "small").recoded_count == 0


def test_the_next_saves_and_the_next_run_go_on_from_there(repository, data):
    saved = save_all(repository, data[:5])
    recoding.compact(repository, lineage(saved), "balanced")
    for step in range(5, 9):
        saved.append(save_on(repository, data[step], step, saved[-1].infos[0].id))
    assert depths(repository, saved)[5:] == [1, 2, 3, 0]
    done = recoding.compact(repository, lineage(saved), "balanced")
    assert 0 < done.recoded_count < done.looked_count
    assert depths(repository, saved)[-1] == 0
    for one in saved:
        stores.check(repository, one)


def test_a_base_that_no_checkpoint_needs_goes(repository, data):
    saved = save_all(repository, data[:4])
    shared, info = repository._shared(), saved[1].infos[0]
    gone = recoding.Reader(shared, repository._workers()).chunks_of(info.id)
    repository.trash([("run", saved[1].seq)])
    repository.gc(now=True)
    left = [saved[0], *saved[2:]]
    with shared.environment.read() as tx:
        assert all(tx.object(identity) for identity, _ in gone)
    recoding.compact(repository, lineage(left), "small")
    with shared.environment.read() as tx:
        assert not any(tx.object(identity) for identity, _ in gone)
    for one in left:
        stores.check(repository, one)


@pytest.mark.parametrize("alike", [False, True])
def test_a_base_that_other_lines_stand_on_is_not_counted_as_freed(repository, data, alike):
    """Each of them whole would take more than all of them on it, which nobody needs itself."""
    first = save_on(repository, data[0], 0, None)
    random = np.random.default_rng(9)
    runs = [f"run-{number}" for number in range(3)]
    tuned = []
    for run in runs:
        other = np.frombuffer(data[0], np.float32).copy()
        if not alike:
            other[::9] += random.standard_normal(len(other[::9])).astype(np.float32) * 1e-5
        other[len(run) :: 700] += np.float32(1e-5)
        tuned.append(save_on(repository, other.tobytes(), 0, first.infos[0].id, run))
    repository.trash([("run", first.seq)])
    repository.gc(now=True)
    before = needed_bytes(repository, tuned)
    plan = [one for saved in tuned for one in lineage([saved])]
    recoding.compact(repository, plan, "small")
    assert needed_bytes(repository, tuned) <= before * 1.01
    for one in tuned:
        stores.check(repository, one)
    # The last one on it may take its place.
    repository.trash([(run, one.seq) for run, one in zip(runs[:-1], tuned[:-1], strict=True)])
    repository.gc(now=True)
    recoding.compact(repository, lineage(tuned[-1:]), "small")
    assert depths(repository, tuned[-1:]) == [0]
    stores.check(repository, tuned[-1])


def test_a_base_is_freed_once_though_two_columns_were_on_it(repository, data):
    """The second one's chain in the index still has it: the first one's moves are not there yet."""
    first = save_on(repository, data[0], 0, None)
    shared = save_on(repository, data[1], 1, first.infos[0].id)
    last = save_on(repository, data[2], 0, shared.infos[0].id, "other")
    repository.trash([("run", first.seq)])
    repository.gc(now=True)
    left = [shared, last]
    before = needed_bytes(repository, left)
    recoding.compact(repository, [*lineage([shared]), *lineage([shared, last])], "small")
    assert depths(repository, left) == [0, 1]
    assert needed_bytes(repository, left) <= before * 1.01


def test_what_was_removed_since_the_plan_is_left_out(repository, data):
    saved = save_all(repository, data[:4])
    plan = lineage(saved)
    repository.bury([("run", saved[3].seq, b"\x01payload")])
    recoding.compact(repository, plan, "small")
    assert depths(repository, saved[:3]) == [2, 1, 0]
    for one in saved[:3]:
        stores.check(repository, one)


def test_raw_and_lone_chunks_are_stored_anew_where_that_wins(repository, data):
    fast = stores.save(repository, [data[0]], level="fast")
    text = stores.save(repository, [b"some text, " * 40_000], step=2, opaque=True, item_size=1)
    before = fast.infos[0].stored_bytes
    plan = [
        columns.Lineage((fast.infos[0].id,), fast.infos[0].length, 4),
        columns.Lineage((text.infos[0].id,), text.infos[0].length, 1),
    ]
    done = recoding.compact(repository, plan, "small")
    assert done.recoded_count >= 2
    assert done.after_bytes < 0.95 * before
    stores.check(repository, fast)
    stores.check(repository, text)
    assert recoding.compact(repository, plan, "small").recoded_count == 0


def test_others_save_on_what_is_being_moved(repository, data):
    saved = save_all(repository, data[:6])
    met = []

    def hook(name: str, path: str) -> None:
        if name == "compacted records durable" and not met:
            met.append(name)
            # On the old newest, and one that is about to go the other way.
            met.append(save_on(repository, data[6], 6, saved[-1].infos[0].id))
            met.append(save_on(repository, data[7], 7, saved[2].infos[0].id, run="other"))

    files.set_crash_hook(hook)
    try:
        recoding.compact(repository, lineage(saved), "small")
    finally:
        files.set_crash_hook(None)
    assert len(met) == 3
    for one in (*saved, *met[1:]):
        stores.check(repository, one)
    repository.gc(now=True)
    for one in (*saved, *met[1:]):
        stores.check(repository, one)
    assert not repository.verify("bytes").damaged


def test_a_run_that_is_broken_off_leaves_all_as_it_was_or_moved(repository, data, monkeypatch):
    saved = save_all(repository, data[:5])
    before = depths(repository, saved)
    real = recoding.publish

    def interrupted(*args: object, **how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recoding, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recoding.compact(repository, lineage(saved), "small")
    monkeypatch.setattr(recoding, "publish", real)
    assert depths(repository, saved) == before
    for one in saved:
        stores.check(repository, one)
    recoding.compact(repository, lineage(saved), "small")
    assert depths(repository, saved)[-1] == 0
    assert depths(repository, saved)[0] > 0
    for one in saved:
        stores.check(repository, one)


def test_damage_is_not_handed_on_and_hurts_nobody_else(repository, data):
    saved = save_all(repository, data[:5])
    shared = repository._shared()
    chunk = recoding.Reader(shared, repository._workers()).chunks_of(saved[2].infos[0].id)[0][0]
    with shared.environment.read() as tx:
        row = tx.object(chunk)
        uuid = tx.pack(row.pack).uuid
    shared.own.seal_all()
    file = next(path for path in stores.pack_files(shared.path) if uuid.hex() in path.name)
    stores.flip(file, row.offset + 3000)
    hurt = {2, 3}  # the third stands on it
    recoding.compact(repository, lineage(saved), "small")
    for index, one in enumerate(saved):
        if index not in hurt:
            stores.check(repository, one)
    assert repository.verify("bytes").damaged


def test_only_one_collector_at_a_time(repository, data):
    saved = save_all(repository, data[:2])
    with collectors.gc_lock(repository._shared()), pytest.raises(StoreBusy):
        recoding.compact(repository, lineage(saved), "small")


def test_a_sample_says_what_would_be_won_and_changes_nothing(repository, data):
    saved = save_all(repository, data)
    packs = stores.pack_files(repository.path)
    found, _ = recoding.estimate(repository, {"run": lineage(saved)}, "small", 1)
    done = found["run"]
    assert done.share == 2.0
    assert 0 < done.after_bytes < done.before_bytes
    assert stores.pack_files(repository.path) == packs
    assert depths(repository, saved) == [0, 1, 2, 3] * 3 + [0]


def test_a_full_store_is_compacted_in_portions(tmp_path, repository, data, monkeypatch):
    saved = save_all(repository, data)
    rounds = []
    real = recoding.Recoder.__call__

    def counted(self: recoding.Recoder, run: bytes, mark: object) -> bool:
        rounds.append(run)
        return real(self, run, mark)

    monkeypatch.setattr(recoding.Recoder, "__call__", counted)
    monkeypatch.setattr(recoding, "_ROOM_BYTES", 1)
    monkeypatch.setattr(recoding.files, "free_bytes", lambda path: 2)
    recoding.compact(repository, lineage(saved), "small")
    assert len(rounds) > 1
    for one in saved:
        stores.check(repository, one)


def test_options_know_no_other_depth(repository):
    assert StoreOptions().max_delta_depth < recoding.LONGEST
