"""LMDB behind the gate: its errors in casckpt's words, and chains that lead nowhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import lmdb
import pytest

from casckpt.errors import Corrupt, NoSpace, OperationFailed, PermissionRefused, StoreBusy
from casckpt.store import Repository, files, layout, rows
from casckpt.store.environment import translate
from tests.unit.store.stores import check, save


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lmdb.MapFullError("mdb_put: MDB_MAP_FULL"), NoSpace),
        (lmdb.Error("write: No space left on device"), NoSpace),
        (lmdb.Error("Disk quota exceeded"), NoSpace),
        (lmdb.ReadonlyError("mdb_txn_begin: Read-only file system"), PermissionRefused),
        (lmdb.Error("open: Permission denied"), PermissionRefused),
        (lmdb.CorruptedError("MDB_CORRUPTED"), Corrupt),
        (lmdb.ReadersFullError("MDB_READERS_FULL"), StoreBusy),
        (lmdb.Error("mdb_txn_commit: Input/output error"), OperationFailed),
    ],
)
def test_an_error_of_lmdb_says_what_to_do(error, expected):
    found = translate(error, "cannot write")
    assert type(found) is expected
    assert (found.what, found.why) == ("cannot write", str(error))
    assert found.hint


@pytest.mark.parametrize(
    ("free", "expected"), [(0, NoSpace), (1 << 40, OperationFailed)], ids=["full", "not full"]
)
def test_a_short_write_of_lmdb_is_a_full_disk_only_where_the_disk_is_full(
    repository, monkeypatch, free, expected
):
    shared = repository._shared()

    def fail(tx):
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    monkeypatch.setattr(files, "free_bytes", lambda path: free)
    with pytest.raises(expected, match="nothing was saved"):
        shared.environment.write(fail)
    monkeypatch.undo()
    save(repository, [b"goes on"])


def test_an_environment_that_was_closed_says_so(repository):
    environment = repository._shared().environment
    environment.close()
    with pytest.raises(OperationFailed, match="the store is closed"), environment.read():
        pass
    assert environment.last_transaction() == 0
    environment._open()


def test_a_chain_that_meets_itself_or_never_ends_is_not_usable(repository):
    """What a forged index may hold: a read of it ends."""
    saved = save(repository, [b"x" * 5000])
    shared = repository._shared()
    with shared.environment.read() as tx:
        row = tx.object(saved.infos[0].id)

    def forge(tx):
        one, other = bytes([1]) * 32, bytes([2]) * 32
        for key, base in ((one, other), (other, one)):
            tx.put("objects", key, _on(row, base).encode())
        links = [number.to_bytes(32, "big") for number in range(1, layout.CHAIN_MAX_LINKS + 3)]
        for key, base in zip(links, [*links[1:], b""], strict=True):
            tx.put("objects", key, _on(row, base).encode())

    shared.writer.run(forge, facts=False)
    with shared.environment.read() as tx:
        assert tx.chain(bytes([1]) * 32) is None
        assert not tx.is_lost(bytes([1]) * 32)
        assert tx.chain((1).to_bytes(32, "big")) is None
        assert len(tx.chain((4).to_bytes(32, "big"))) == layout.CHAIN_MAX_LINKS - 1


def _on(row: rows.ObjectRow, base: bytes) -> rows.ObjectRow:
    from dataclasses import replace

    return replace(row, base=base, depth=1 if base else 0)


# ---- readers that died


@pytest.fixture
def dead_reader(path, repository) -> str:
    """Kill a process in the midst of a read transaction; return its process id."""
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from casckpt.store.environment import Environment\n"
        "with Environment(Path(sys.argv[1]), readonly=True).read():\n"
        "    print(flush=True)\n    time.sleep(100)\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, str(path / "index.0")], stdout=subprocess.PIPE
    )
    assert reader.stdout.readline()
    reader.kill()
    reader.wait()
    reader.stdout.close()
    return str(reader.pid)


def readers(repository) -> list[str]:
    """Return the process ids in the table of readers."""
    text = repository._shared().environment._handle.readers()
    return [line.split()[0] for line in text.splitlines()[1:]]


def test_a_reader_that_died_is_forgotten_with_the_heartbeat(repository, dead_reader, monkeypatch):
    monkeypatch.setattr(layout, "HEARTBEAT_S", 0.05)
    assert dead_reader in readers(repository)
    save(repository, [b"x"])
    deadline = time.monotonic() + 20
    while dead_reader in readers(repository):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_reader_that_died_is_forgotten_by_a_collection(repository, dead_reader):
    save(repository, [b"x"])
    assert dead_reader in readers(repository)
    repository.gc()
    assert dead_reader not in readers(repository)


def test_forgetting_dead_readers_of_a_closed_environment_is_harmless(repository):
    environment = repository._shared().environment
    environment.close()
    environment.forget_dead_readers()
    assert environment._handle is None
    environment._open()


# ---- an index that was replaced while it was open


def replace(path, other) -> None:
    """Put another store in the place of one; the folder itself stays."""
    for entry in list(path.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(other, path, dirs_exist_ok=True)


def test_a_store_that_was_made_anew_is_not_taken_for_the_one_that_is_open(path, make_store):
    empty = make_store("empty")
    with Repository.open(path) as old:
        save(old, [b"x"])
        replace(path, empty)
        with pytest.raises(StoreBusy, match="another put in its place") as error:
            save(old, [b"y"])
        assert "open it again" in error.value.hint
        for mode in ("a", "r"):
            with pytest.raises(StoreBusy, match="cannot open the store"):
                Repository.open(path, mode)
        stamp = (path / "index.0" / "clean").read_bytes()
    assert (path / "index.0" / "clean").read_bytes() == stamp  # it is not ours to say
    with Repository.open(path) as new:
        saved = save(new, [b"z"])
        check(new, saved)
        assert len(new.checkpoint_rows()) == 1


def test_an_old_handle_leaves_no_stamp_on_the_index_of_a_new_store(path, make_store):
    with Repository.open(path) as old:
        save(old, [b"x"])
        replace(path, make_store("empty"))
        (path / "index.0" / "clean").unlink()
    assert not (path / "index.0" / "clean").exists()


def test_an_index_that_was_replaced_stays_replaced_after_an_error(path, make_store):
    """After an error LMDB is opened anew: whatever is there then."""
    with Repository.open(path) as old:
        save(old, [b"x"])
        replace(path, make_store("empty"))
        with pytest.raises(OperationFailed):
            old._shared().environment.write(fail_in_lmdb)
        with pytest.raises(StoreBusy, match="another put in its place"):
            save(old, [b"y"])


@pytest.mark.parametrize("then", ["read", "write"])
def test_an_index_that_could_not_be_opened_again_is_tried_again(repository, monkeypatch, then):
    """For want of descriptors, say: the process that trains goes on once there are some."""
    environment = repository._shared().environment
    saved = save(repository, [b"x"])
    real = lmdb.open
    monkeypatch.setattr(lmdb, "open", refuse)
    for _ in range(3):
        with pytest.raises(OperationFailed, match="the index"):
            environment.write(fail_in_lmdb)
    with pytest.raises(OperationFailed, match="Too many open files"), environment.read():
        pass
    monkeypatch.setattr(lmdb, "open", real)
    if then == "read":
        check(repository, saved)
    else:
        repository._shared().writer.run(lambda tx: tx.set_number("anything", 1), facts=False)
    check(repository, save(repository, [b"y"], step=2))


def test_an_index_that_could_not_be_opened_again_is_not_stamped(path, monkeypatch):
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        monkeypatch.setattr(lmdb, "open", refuse)
        with pytest.raises(OperationFailed):
            repository._shared().environment.write(fail_in_lmdb)
    assert not (path / "index.0" / "clean").exists()


def refuse(*_, **__):
    raise lmdb.Error("open: Too many open files")


def fail_in_lmdb(tx):
    raise lmdb.Error("mdb_txn_commit: Input/output error")
