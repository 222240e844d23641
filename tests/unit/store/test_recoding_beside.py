"""Compact beside what it cannot use: removed, lost, forged and moved chunks, and its own end."""

from __future__ import annotations

import threading
import time

import pytest

from casckpt.errors import Corrupt
from casckpt.store import (
    CommitRequest,
    Repository,
    StoreOptions,
    codec,
    collection,
    columns,
    files,
    layout,
    lists,
    marking,
    recoding,
)
from casckpt.store.chains import Chains
from casckpt.store.codings import UNKNOWN, codings_of
from casckpt.store.packs import pack_path
from casckpt.store.reading import Reader
from tests.unit.store import stores
from tests.unit.store.test_recoding import depths, drifting, lineage, save_all, save_on


@pytest.fixture(scope="module")
def data() -> list[bytes]:
    return drifting(6)


def lose_chunk(path, repository: Repository, blob: bytes) -> bytes:
    """Damage the first chunk of a blob and let repair find no copy; return its id."""
    shared = repository._shared()
    chunk = Reader(shared, repository._workers()).chunks_of(blob)[0][0]
    with shared.environment.read() as tx:
        row = tx.object(chunk)
        pack = pack_path(path, tx.pack(row.pack).uuid)
    shared.own.seal_all()
    stores.flip(pack, row.offset + 500)
    assert repository.repair().lost == (chunk,)
    return chunk


def test_a_lineage_that_was_removed_since_the_plan_is_not_looked_at(repository, data):
    kept = save_all(repository, data[:2])
    gone = stores.save(repository, [drifting(1, 400_000)[0][::-1]], run="gone")
    blob = gone.infos[0]
    plan = [columns.Lineage((blob.id,), blob.length, 4), *lineage(kept)]
    repository.bury([("gone", gone.seq, b"\x01payload")])
    done = recoding.compact(repository, plan, "small")
    assert done.looked_count == 4
    assert done.looked_bytes == 2 * kept[0].infos[0].length
    for one in kept:
        stores.check(repository, one)


def test_others_stand_on_the_next_one_where_a_version_is_lost(path, data):
    with Repository.open(path) as repository:
        # All whole: a lost one takes no other with it.
        saved = [save_on(repository, piece, step, None) for step, piece in enumerate(data)]
        lost = lose_chunk(path, repository, saved[4].infos[0].id)
        done = recoding.compact(repository, lineage(saved), "small")
        assert done.after_bytes < done.before_bytes
        # The fifth is lost: the fourth, which would stand on it, is left as it is.
        found = []
        shared = repository._shared()
        with shared.environment.read() as tx:
            assert tx.object(lost).pack == layout.LOST
            for one in (*saved[:4], saved[5]):
                chunk = Reader(shared, repository._workers()).chunks_of(one.infos[0].id)[0][0]
                found.append(len(tx.chain(chunk)) - 1)
        assert found == [3, 2, 1, 0, 0]
        for one in (*saved[:4], saved[5]):
            stores.check(repository, one)
        # The bytes bring it back, and the next run goes on.
        stores.save(repository, [data[4]], run="again")
        stores.check(repository, saved[4])
        recoding.compact(repository, lineage(saved), "small")
        for one in saved:
            stores.check(repository, one)
        assert repository.verify("bytes").damaged == ()


def test_a_lost_chunk_has_no_coding(path, data):
    with Repository.open(path) as repository:
        saved = save_on(repository, data[0], 1, None)
        blob = saved.infos[0].id
        lost = lose_chunk(path, repository, blob)
        first, second = codings_of(repository._shared(), repository._workers(), blob)
    assert (first.id, first.stored_bytes, first.depth) == (lost, 0, 0)
    assert (first.logical_bytes, second.logical_bytes) == (stores.MIB, len(data[0]) - stores.MIB)
    assert (first.predictor, first.coders) == (UNKNOWN, (UNKNOWN,))
    assert second.predictor == "plain"
    assert UNKNOWN not in second.coders


def test_a_list_that_stands_where_a_chunk_should_is_passed_over(repository, data):
    saved = save_all(repository, data[:2])
    inner = saved[0].infos[0]
    with repository.saver() as saver:
        body = lists.encode_list(1, [inner.length])
        forged = saver._objects.put_object(layout.TYPE_LIST, (inner.id,), body)
        manifest = saver.put_manifest([forged], b"a list for a chunk")
        saver.commit(CommitRequest("evil", 0, 1, 0, manifest.id, b"\x01", None))
    plan = [columns.Lineage((forged,), inner.length, 1), *lineage(saved)]
    done = recoding.compact(repository, plan, "small")
    assert done.looked_count == 4
    for one in saved:
        stores.check(repository, one)
    assert repository.read_manifest(manifest.id)[0] == [forged]
    with repository._shared().environment.read() as tx:
        assert tx.object(forged).kind == layout.TYPE_LIST


@pytest.mark.parametrize("what", ["another length", "cut by content"])
def test_a_blob_that_is_no_version_of_the_others_is_left_out(repository, data, what):
    saved = save_all(repository, data[:3])
    if what == "another length":
        other = stores.save(repository, [data[3][:-4]], run="other")
    else:
        # As many bytes, in chunks that are not those of the grid.
        other = stores.save(repository, [data[3]], run="other", item_size=1, opaque=True)
        assert other.infos[0].length == saved[0].infos[0].length
    blobs = [other.infos[0].id, *(one.infos[0].id for one in reversed(saved))]
    reader = Reader(repository._shared(), repository._workers())
    length = saved[0].infos[0].length
    plan = columns.Plan(reader, [columns.Lineage(tuple(blobs), length, 4)])
    strangers = {identity for identity, _ in reader.chunks_of(other.infos[0].id)}
    found = list(plan.columns())
    assert [len(column.ids) for column in found] == [3, 3]
    assert not strangers & {identity for column in found for identity in column.ids}
    assert plan.total_bytes == 3 * length


def test_what_does_not_decode_again_is_not_stored(repository, data, monkeypatch):
    """A compressor that loses a byte: compact ends, and nothing names what it made."""
    saved = save_all(repository, data[:3])
    before = depths(repository, saved)

    def faulty(chunk, *_: object) -> codec.Encoded:
        wrong = bytearray(chunk)
        wrong[len(wrong) // 2] ^= 1
        return codec.Encoded(layout.ENCODING_RAW, bytes(wrong))

    with monkeypatch.context() as patch:
        patch.setattr(codec, "encode_chunk", faulty)
        with pytest.raises(Corrupt, match="does not decode to what was encoded"):
            recoding.compact(repository, lineage(saved), "small")
    assert depths(repository, saved) == before
    for one in saved:
        stores.check(repository, one)
    assert recoding.compact(repository, lineage(saved), "small").recoded_count > 0
    assert repository.verify("bytes").damaged == ()


def test_a_base_that_another_column_has_moved_is_left(repository, data, monkeypatch):
    """After the choice of a base another worker lets that base stand on the chunk."""
    saved = save_all(repository, data[:2])
    shared, pool = repository._shared(), repository._workers()
    reader = Reader(shared, pool)
    (new, _), (old, _) = (reader.chunks_of(one.infos[0].id)[0] for one in reversed(saved))
    recoder = recoding.Recoder(shared, pool, columns.Plan(reader, lineage(saved)), "small")
    real, read = codec.delta_pays, Chains.read
    met, made = [], []

    def read_chains(shared, longest: int) -> Chains:
        made.append(read(shared, longest))
        return made[-1]

    def delta_pays(chunk, base, item_size: int) -> bool:
        if base == data[1][: len(base)] and not met:
            met.append(made[0].move(new, old))
        return real(chunk, base, item_size)

    monkeypatch.setattr(codec, "delta_pays", delta_pays)
    monkeypatch.setattr(Chains, "read", read_chains)
    collection.collect(shared, recode=recoder)
    assert met == [True]
    with shared.environment.read() as tx:
        assert tx.object(old).base == b""
    for one in saved:
        stores.check(repository, one)
    assert repository.verify("bytes").damaged == ()


def little_changed(count: int) -> list[bytes]:
    """Return versions of which each differs from the one before in a few bytes."""
    first = drifting(1)[0]
    return [bytes([number]) * 64 + first[64:] for number in range(count)]


def compact_and_die(repository, saved, monkeypatch) -> None:
    """Compact, and die when the moves are published and nothing is condemned yet."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(collection._Collector, "_condemn", die)
        with pytest.raises(KeyboardInterrupt):
            recoding.compact(repository, lineage(saved), "small")


def test_gc_goes_on_after_a_compact_that_died_before_it_freed(repository, monkeypatch):
    saved = [save_on(repository, piece, step, None) for step, piece in enumerate(little_changed(6))]
    before = repository.gc().live_bytes
    compact_and_die(repository, saved, monkeypatch)
    # What it saved is known: a mark that misses what is needed is still refused.
    with monkeypatch.context() as patched:
        patched.setattr(marking, "roots", lambda *_: iter(()))
        with pytest.raises(Corrupt, match="refused to free more than half"):
            repository.gc()
    assert repository.gc().live_bytes < before / 2
    for one in saved:
        stores.check(repository, one)


def test_gc_goes_on_after_a_compact_that_died_when_bases_were_left(repository, monkeypatch):
    pieces, saved = little_changed(8), []
    for step in range(0, 8, 2):
        base = save_on(repository, pieces[step], step, None, "base")
        saved.append(save_on(repository, pieces[step + 1], step, base.infos[0].id))
        repository.bury([("base", base.seq, b"\x01payload")])
    before = repository.gc().live_bytes
    compact_and_die(repository, saved, monkeypatch)
    assert repository.gc().live_bytes < before / 2
    with repository._shared().environment.read() as tx:
        assert tx.number("removed_roots") == 0
    for one in saved:
        stores.check(repository, one)


def test_a_ctrl_c_waits_for_workers_and_leaves_all_as_it_was(path, monkeypatch):
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", 2)
    with Repository.open(path, options=StoreOptions(workers=1)) as repository:
        saved = save_all(repository, drifting(3, 5 * stores.MIB // 4))
        before = depths(repository, saved)
        shared, pool = repository._shared(), repository._workers()
        plan = columns.Plan(Reader(shared, pool), lineage(saved))
        recoder = recoding.Recoder(shared, pool, plan, "small", ahead=4)
        wrote, reading, stopped = threading.Event(), threading.Event(), threading.Event()
        late = []

        def hook(name: str, where: str) -> None:
            on_worker = threading.current_thread().name.startswith("casckpt-work")
            if name == "compacted records durable":
                # The first column is written; the second is being read, two more wait.
                assert reading.wait(60)
                raise KeyboardInterrupt
            if on_worker and name == "write":
                if recoder._stop.is_set():
                    late.append(where)
                wrote.set()
            if on_worker and name == "read" and wrote.is_set() and not reading.is_set():
                reading.set()
                assert recoder._stop.wait(60)
                time.sleep(0.2)
                stopped.set()

        real, coded = codec.encode_chunk, []

        def encode_chunk(*arguments: object) -> codec.Encoded:
            coded.append(recoder._stop.is_set())
            return real(*arguments)

        monkeypatch.setattr(codec, "encode_chunk", encode_chunk)
        files.set_crash_hook(hook)
        with pytest.raises(KeyboardInterrupt):
            collection.collect(shared, recode=recoder)
        assert stopped.is_set()
        # The chunk at hand is finished, and no other is begun.
        assert sum(coded) <= 1 < len(coded)
        files.set_crash_hook(None)
        assert late == []
        assert recoder.done.recoded_count == 0
        assert depths(repository, saved) == before
        for one in saved:
            stores.check(repository, one)
        recoding.compact(repository, lineage(saved), "small")
        assert depths(repository, saved)[-1] == 0
        assert all(depths(repository, saved)[:-1])
        for one in saved:
            stores.check(repository, one)
        assert repository.verify("bytes").damaged == ()


def test_a_ctrl_c_does_not_wait_for_columns_that_have_not_begun(path, monkeypatch):
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", 4)
    with Repository.open(path, options=StoreOptions(workers=1)) as repository:
        saved = save_all(repository, drifting(3, 3 * stores.MIB // 4))
        before = depths(repository, saved)[0]
        shared, pool = repository._shared(), repository._workers()
        plan = columns.Plan(Reader(shared, pool), lineage(saved))
        recoder = recoding.Recoder(shared, pool, plan, "small", ahead=2)
        release, others = threading.Event(), []

        def hook(name: str, where: str) -> None:
            if name == "compacted records durable":
                if others:
                    raise KeyboardInterrupt
                # What another thread asks of the only worker comes before the third column.
                others.append(pool.submit(release.wait, 60))

        files.set_crash_hook(hook)
        try:
            with pytest.raises(KeyboardInterrupt):
                collection.collect(shared, recode=recoder)
            assert others[0].running()
        finally:
            files.set_crash_hook(None)
            release.set()
        # What the first column moved holds.
        assert depths(repository, saved)[0] != before
        for one in saved:
            stores.check(repository, one)
        recoding.compact(repository, lineage(saved), "small")
        for one in saved:
            stores.check(repository, one)
        assert repository.verify("bytes").damaged == ()
