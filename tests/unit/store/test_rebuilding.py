from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from casckpt.errors import Corrupt, NoSpace, NoStore, StoreBusy
from casckpt.store import (
    Repository,
    codec,
    facts,
    files,
    layout,
    opening,
    records,
    rows,
)
from casckpt.store.environment import Environment
from casckpt.store.marking import check_roots
from tests.unit.store.stores import MIB, check, find, flip, lose_index, pack_files, save

ALL_STATES = ("live", "trash", "tombstone")


def open_rebuilt(path) -> Repository:
    """Open a store without the walk, which takes a tenth of a second."""
    opening.write_stamp(opening.current_index(path), 0)
    return Repository.open(path)


def contents(path) -> dict[str, list[tuple[bytes, bytes]]]:
    """Return the rows of all tables that facts carry."""
    environment = Environment(opening.current_index(path), readonly=True)
    with environment.read() as tx:
        found = {table: list(tx.scan(table)) for table in facts.FACT_TABLES}
        check_roots(tx)
    environment.close()
    return found


def history(path, *, checkpoints: int = 6):
    """Make a store with a bit of everything, and return what was saved and is still live."""
    with Repository.open(path) as repository:
        saved = []
        for step in range(checkpoints):
            data = [os.urandom(1000), bytes(300_000), os.urandom(MIB + 9)]
            saved.append(save(repository, data, run=f"run{step % 2}", step=step))
        repository.edit_checkpoint("run0", saved[0].seq, lambda old: old + b" tagged")
        repository.edit_run("run0", lambda _: b"a run")
        repository.trash([("run1", saved[1].seq), ("run1", saved[3].seq)])
        repository.untrash([("run1", saved[3].seq)])
        row = rows.Row("live", (), b"line")
        repository._shared().writer.run(lambda tx: tx.put("history", b"h", row.encode()))
        repository._shared().writer.run(lambda tx: tx.put("history", b"i", row.encode()))
        repository._shared().writer.run(lambda tx: tx.delete("history", b"i"))
    return saved


def test_packs_alone_give_everything_back(path):
    saved = history(path)
    before = contents(path)
    lose_index(path)
    seen: list[tuple[int, int]] = []
    report = Repository.rebuild_index(path, lambda done, total: seen.append((done, total)))
    assert contents(path) == before
    assert (report.index, report.checkpoints, report.packs) == ("index.0", 6, 1)
    assert (report.recovered, report.gaps, report.unreadable) == ((), (), ())
    assert seen[-1][0] == seen[-1][1] == sum(file.stat().st_size for file in pack_files(path))
    with open_rebuilt(path) as repository:
        for one in saved:
            check(repository, one)
        assert repository.verify("bytes").damaged == ()
        assert repository.run_rows() == [("run0", b"a run")]
        check(repository, save(repository, [b"goes on"], run="run0", step=99))


def test_a_step_whose_row_was_forgotten_is_found_again(path):
    with Repository.open(path) as repository:
        saved = [save(repository, [bytes([step])], step=step) for step in range(3)]
        place = rows.step_key("run", 0, 2, 0)
        repository._shared().writer.run(lambda tx: tx.delete("steps", place))
        assert repository.head("run", None) == saved[1].seq
    lose_index(path)
    Repository.rebuild_index(path)
    with Repository.open(path) as repository:
        assert repository.head("run", None) == saved[2].seq


def test_the_old_index_stays_beside_the_new_one(path):
    history(path, checkpoints=4)
    data = (path / "index.0" / "data.mdb").read_bytes()
    assert Repository.rebuild_index(path).index == "index.1"
    assert (path / "CURRENT").read_text() == "index.1\n"
    assert (path / "index.0" / "data.mdb").read_bytes() == data
    assert Repository.rebuild_index(path).index == "index.2"
    assert contents(path)["checkpoints"]


@pytest.mark.parametrize("damage", ["no CURRENT", "empty data", "no data", "noise"])
def test_a_rebuild_needs_nothing_of_the_old_index(path, damage):
    saved = history(path, checkpoints=4)
    data = path / "index.0" / "data.mdb"
    if damage == "no CURRENT":
        (path / "CURRENT").unlink()
    elif damage == "no data":
        data.unlink()
    else:
        data.write_bytes(b"" if damage == "empty data" else os.urandom(40_000))
    with pytest.raises(Corrupt):
        Repository.open(path)
    Repository.rebuild_index(path)
    with open_rebuilt(path) as repository:
        check(repository, saved[0])


def test_what_is_removed_stays_removed(path):
    with Repository.open(path) as repository:
        kept = save(repository, [os.urandom(1000)], run="kept")
        gone = save(repository, [os.urandom(1000)], run="gone")
        repository.trash([("gone", gone.seq)])
        # The pack is open, so its bytes stay; only the row becomes a tombstone.
        key = rows.checkpoint_key("gone", gone.seq)

        def bury(tx):
            row = replace(rows.Row.decode(tx.get("checkpoints", key)), state="tombstone")
            tx.put("checkpoints", key, row.encode())

        repository._shared().writer.run(bury)
    lose_index(path)
    report = Repository.rebuild_index(path)
    assert (report.checkpoints, report.recovered) == (1, ())
    with open_rebuilt(path) as repository:
        assert [row.run for row in repository.checkpoint_rows(states=ALL_STATES)] == [
            "gone",
            "kept",
        ]
        assert [row.run for row in repository.checkpoint_rows()] == ["kept"]
        check(repository, kept)


def test_after_a_collection_with_snapshots_and_copied_facts(path):
    saved = history(path)
    with Repository.open(path) as repository:
        from casckpt.store import snapshots

        repository.gc(now=True)
        snapshots.write_snapshot(repository._shared())
        save(repository, [b"after the snapshot"], run="late")
    before = contents(path)
    lose_index(path)
    report = Repository.rebuild_index(path)
    assert contents(path) == before
    assert report.gaps == ()
    with open_rebuilt(path) as repository:
        check(repository, saved[0])
        with repository._shared().environment.read() as tx:
            assert tx.number("snapshot_seq") > 0
            assert snapshots.snapshot_packs(tx)
        assert repository.verify().damaged == ()


def test_half_a_snapshot_is_not_used(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x"])
        shared = repository._shared()
        (body,) = facts.encode_snapshot(1, 5, [])
        part = bytearray(body)
        part[20] = 0  # not the last part
        identity = records.object_id(layout.TYPE_SNAPSHOT, (), bytes(part))
        pack, _ = shared.own.append(
            layout.TYPE_SNAPSHOT, layout.ENCODING_RAW, identity, len(part), (), bytes(part)
        )
        shared.own.sync([pack])
    lose_index(path)
    assert Repository.rebuild_index(path).checkpoints == 1
    with open_rebuilt(path) as repository:
        check(repository, saved)


# ---- bases


def test_copies_of_chunks_never_form_a_cycle(path):
    """Two chunks, each stored whole and as a delta on the other: the newest of each is a trap."""
    a = os.urandom(40_000)
    b = bytearray(a)
    b[::1000] = bytes(len(b[::1000]))
    b = bytes(b)
    ids = {data: records.object_id(layout.TYPE_CHUNK, (), data) for data in (a, b)}
    with Repository.open(path) as repository:
        first = save(repository, [a], run="a")
        own = repository._shared().own
        for data, base in ((b, a), (a, b)):
            encoded = codec.encode_chunk(data, 4, "balanced", base)
            assert encoded.uses_base
            pack, _ = own.append(
                layout.TYPE_CHUNK, encoded.encoding, ids[data], len(data), (ids[base],),
                encoded.payload,
            )  # fmt: skip
            own.sync([pack])
    lose_index(path)
    Repository.rebuild_index(path)
    with open_rebuilt(path) as repository:
        with repository._shared().environment.read() as tx:
            assert len(tx.chain(ids[a])) == 1
            assert len(tx.chain(ids[b])) == 2
            assert tx.object(ids[b]).depth == 1
        second = save(repository, [b], run="b")
        assert second.infos[0].new_bytes == 0
        check(repository, first)
        check(repository, second)


def test_a_delta_whose_base_is_nowhere_is_not_indexed(path):
    with Repository.open(path) as repository:
        own = repository._shared().own
        pack, _ = own.append(
            layout.TYPE_CHUNK, layout.ENCODING_PLANES, b"d" * 32, 10, (b"n" * 32,), b"payload"
        )
        pack, _ = own.append(
            layout.TYPE_CHUNK, layout.ENCODING_PLANES, b"s" * 32, 10, (b"s" * 32,), b"payload"
        )
        own.sync([pack])
    lose_index(path)
    assert Repository.rebuild_index(path).objects == 0


# ---- damage


def test_gaps_in_the_facts_are_reported(path):
    with Repository.open(path) as repository:
        for step in range(1, 6):
            save(repository, [b"%d" % step], step=step, payload=b"payload %d" % step)
    for step in (2, 3):
        file, at = find(path, b"payload %d" % step)
        flip(file, at)
    report = Repository.rebuild_index(path)
    assert report.gaps == ((2, 3),)
    assert len(report.unreadable) == 2
    # The manifests are whole: the checkpoints come back, their rows' payloads do not.
    assert len(report.recovered) == 2
    assert report.checkpoints == 5


def test_damaged_chunks_are_left_out_and_verify_names_who_needs_them(path):
    saved = history(path)
    file, at = find(path, saved[2].data[0])
    flip(file, at)
    Repository.rebuild_index(path)
    with open_rebuilt(path) as repository:
        report = repository.verify("bytes")
        assert set(report.damaged_manifests) == {saved[2].manifest_id}
        assert len(report.whole) == 5


def test_a_torn_tail_is_left_out(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"whole"], step=1)
        save(repository, [os.urandom(1000)], step=2)
    file, at = find(path, b"run 2")
    os.truncate(file, at + 2)
    report = Repository.rebuild_index(path)
    assert (report.checkpoints, report.unreadable) == (1, ())
    with open_rebuilt(path) as repository:
        check(repository, saved)
        report = repository.verify("bytes")
        assert report.damaged == ()
        assert report.garbage_bytes > 0


def test_packs_of_other_stores_are_reported_and_left_alone(path):
    history(path, checkpoints=4)
    other = path.with_name("other")
    Repository.init(other)
    with Repository.open(other) as repository:
        save(repository, [b"foreign"])
    (foreign,) = pack_files(other)
    place = path / "packs" / foreign.parent.name
    place.mkdir(exist_ok=True)
    shutil.copy(foreign, place)
    own = pack_files(path)[-1]
    shutil.copy(own, place / ("ff" * 16 + ".pack"))  # under another name
    (place / "README.pack").write_text("not a pack")
    report = Repository.rebuild_index(path)
    assert report.packs == 1
    assert report.checkpoints == 4
    assert len(report.unreadable) == 3
    assert (place / foreign.name).exists()


def test_unregistered_packs_are_adopted(path):
    """As after an index was put back from a backup: what it did not know is whole again."""
    with Repository.open(path) as repository:
        save(repository, [b"one"], step=1)
    backup = (path / "index.0" / "data.mdb").read_bytes()
    with Repository.open(path) as repository:
        second = save(repository, [b"two"], step=2)
    (path / "index.0" / "data.mdb").write_bytes(backup)
    with pytest.raises(Corrupt, match="older"):
        Repository.open(path)
    report = Repository.rebuild_index(path)
    assert (report.packs, report.checkpoints, report.gaps) == (2, 2, ())
    with open_rebuilt(path) as repository:
        check(repository, second)


def test_what_is_no_store_or_open_is_refused(path, tmp_path):
    with pytest.raises(NoStore):
        Repository.rebuild_index(tmp_path)
    with Repository.open(path), pytest.raises(StoreBusy, match="open"):
        Repository.rebuild_index(path)
    with Repository.open(path, mode="r"), pytest.raises(StoreBusy):
        Repository.rebuild_index(path)
    (path / "packs").rename(tmp_path / "packs")
    with pytest.raises(Corrupt, match="packs"):
        Repository.rebuild_index(path)
    assert (path / "CURRENT").read_text() == "index.0\n"
    (path / "format.json").write_text("{}")
    with pytest.raises(NoStore):
        Repository.rebuild_index(path)


@pytest.mark.parametrize("left", [None, b"", b"{}", b"\xff" * 90])
def test_a_lost_format_file_is_made_anew_from_the_packs(path, left):
    with Repository.open(path) as repository:
        saved, uuid = save(repository, [os.urandom(MIB)]), repository.uuid
    (path / "format.json").unlink()
    if left is not None:
        (path / "format.json").write_bytes(left)
    assert Repository.rebuild_index(path).described
    with Repository.open(path) as repository:
        assert repository.uuid == uuid
        check(repository, saved)
        repository.accept_rebuild()
    assert not Repository.rebuild_index(path).described


def test_packs_of_two_stores_do_not_say_whose_a_lost_format_file_was(path, tmp_path):
    other = tmp_path / "other"
    for store in (path, other):
        if store is other:
            Repository.init(other)
        with Repository.open(store) as repository:
            save(repository, [os.urandom(MIB)])
    for pack in other.glob("packs/*/*.pack"):
        pack.rename(min((path / "packs").iterdir()) / pack.name)
    (path / "format.json").unlink()
    before = sorted(path.rglob("*"))
    with pytest.raises(Corrupt, match="packs of 2 stores"):
        Repository.rebuild_index(path)
    assert sorted(path.rglob("*")) == before


def test_a_store_in_use_by_another_process_is_refused(path):
    code = (
        "import sys; from casckpt.store import Repository;"
        "r = Repository.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(StoreBusy):
            Repository.rebuild_index(path)
    finally:
        child.communicate()
    Repository.rebuild_index(path)


def test_nothing_is_collected_until_a_person_accepts(path):
    with Repository.open(path) as repository:
        gone = save(repository, [os.urandom(MIB)], run="gone")
    lose_index(path)
    Repository.rebuild_index(path)
    with open_rebuilt(path) as repository:
        repository.trash([("gone", gone.seq)])
        repository.gc(now=True)
        assert len(pack_files(path)) >= 1
        repository.untrash([("gone", gone.seq)])
        check(repository, gone)
        repository.trash([("gone", gone.seq)])
        repository.accept_rebuild()
        assert repository.gc(now=True).freed_bytes > MIB


# ---- kills


class Killed(BaseException):
    """Ends a rebuild as a kill would: nothing of it catches this."""


@pytest.mark.parametrize("index_is_there", [True, False])
def test_a_kill_at_any_operation_leaves_the_old_store_or_the_new_one(path, index_is_there):
    saved = history(path, checkpoints=4)
    before = contents(path)
    if not index_is_there:
        lose_index(path)
    operations: list[str] = []
    copy = path.with_name("copy")
    shutil.copytree(path, copy)
    files.set_crash_hook(lambda name, where: operations.append(name))
    Repository.rebuild_index(copy)
    assert operations.count("rebuild") >= 3
    # The reads of one pack are all alike: the first and the last stand for them.
    reads = [number for number, name in enumerate(operations) if name == "read"]
    chosen = set(range(len(operations))) - set(reads[2:-2])
    finished = 0
    for fatal in sorted(chosen):
        counter = iter(range(10_000))

        def kill(name, where, fatal=fatal, counter=counter):
            if next(counter) == fatal:
                raise Killed

        files.set_crash_hook(kill)
        with pytest.raises(Killed):
            Repository.rebuild_index(path)
        files.set_crash_hook(None)
        if index_is_there or (path / "CURRENT").exists():
            assert contents(path) == before
            finished += opening.current_index(path).name != "index.0"
        else:
            with pytest.raises(Corrupt):
                opening.current_index(path)
    Repository.rebuild_index(path)
    assert contents(path) == before
    with open_rebuilt(path) as repository:
        check(repository, saved[0])
        assert repository.verify("bytes").damaged == ()


def test_a_full_disk_leaves_the_store_as_it_was(path):
    import errno

    history(path, checkpoints=4)
    before = contents(path)

    def full(name: str, where: str) -> None:
        if name == "write":
            raise OSError(errno.ENOSPC, "full")

    files.set_crash_hook(full)
    with pytest.raises(NoSpace):
        Repository.rebuild_index(path)
    files.set_crash_hook(None)
    assert contents(path) == before
    with Repository.open(path) as repository:
        save(repository, [b"x"], step=50, run="new")
