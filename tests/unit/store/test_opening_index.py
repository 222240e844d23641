"""What is opened of an index, what is refused, and when it is walked first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from casckpt.errors import Corrupt, OperationFailed
from casckpt.store import Repository, opening, rows
from casckpt.store.environment import Environment
from tests.unit.store.stores import check, save


def counts_walks(monkeypatch) -> list[str]:
    walked: list[str] = []
    whole = opening.walk_index
    monkeypatch.setattr(
        opening, "walk_index", lambda index: (walked.append(index.name), whole(index))
    )
    return walked


# ---- the index


@pytest.mark.parametrize("mode", ["a", "r"])
def test_a_missing_or_empty_index_is_never_taken_for_an_empty_store(path, mode):
    with Repository.open(path) as repository:
        save(repository, [b"x"])
    data = path / "index.0" / "data.mdb"
    data.write_bytes(b"")
    with pytest.raises(Corrupt, match="cut off") as caught:
        Repository.open(path, mode=mode)
    assert "--rebuild-index" in caught.value.hint
    data.unlink()
    with pytest.raises(Corrupt):
        Repository.open(path, mode=mode)
    assert not data.exists()
    shutil.rmtree(path / "index.0")
    with pytest.raises(Corrupt):
        Repository.open(path, mode=mode)
    assert not (path / "index.0").exists()


@pytest.mark.parametrize("text", [None, "", "index.x\n", "../elsewhere\n", "index.5\n"])
def test_a_damaged_current_is_corrupt(path, text):
    if text is None:
        (path / "CURRENT").unlink()
    else:
        (path / "CURRENT").write_text(text)
    with pytest.raises(Corrupt) as caught:
        Repository.open(path)
    assert "--rebuild-index" in caught.value.hint


def test_the_index_of_another_store_is_refused(path, tmp_path):
    Repository.init(tmp_path / "other")
    shutil.rmtree(path / "index.0")
    shutil.copytree(tmp_path / "other" / "index.0", path / "index.0")
    with pytest.raises(Corrupt, match="does not belong"):
        Repository.open(path)


def test_an_lmdb_file_of_something_else_is_refused(path):
    import lmdb

    for file in (path / "index.0").iterdir():
        file.unlink()
    lmdb.open(str(path / "index.0"), lib_version=0).close()
    with pytest.raises(Corrupt):
        Repository.open(path)


@pytest.mark.parametrize("keep_times", [False, True])
def test_an_index_put_back_from_a_backup_is_refused(path, tmp_path, keep_times):
    with Repository.open(path) as repository:
        first = save(repository, [b"one"], step=1)
    shutil.copytree(path / "index.0", tmp_path / "backup")
    with Repository.open(path) as repository:
        save(repository, [b"two"], step=2)
    for file in ("data.mdb", "clean"):
        copy = shutil.copy2 if keep_times else shutil.copyfile
        copy(tmp_path / "backup" / file, path / "index.0" / file)
    with pytest.raises(Corrupt, match="older than its packs"):
        Repository.open(path)
    # Reading what the old index knows does no harm.
    with Repository.open(path, mode="r") as repository:
        check(repository, first)


def test_an_old_index_is_refused_to_writers_although_a_reader_is_in(path):
    with Repository.open(path) as repository:
        save(repository, [b"one"], step=1)
    backup = (path / "index.0" / "data.mdb").read_bytes()
    with Repository.open(path) as repository:
        save(repository, [b"two"], step=2)
    (path / "index.0" / "data.mdb").write_bytes(backup)
    code = (
        "import sys; from casckpt.store import Repository;"
        "r = Repository.open(sys.argv[1], mode='r'); print('open', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(Corrupt, match="older than its packs"):
            Repository.open(path)
    finally:
        reader.communicate()


def test_a_damaged_index_is_found_by_the_walk_not_by_the_user(path):
    with Repository.open(path) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    environment = Environment(path / "index.0", readonly=False)

    def lose_a_row(tx):
        key, _ = next(tx.scan("checkpoints"))
        tx.delete("checkpoints", key)

    environment.write(lose_a_row)
    environment.close()
    with pytest.raises(Corrupt, match="damaged"):
        Repository.open(path)


def test_an_index_cut_short_is_found_where_the_lock_is_missing_too(path):
    with Repository.open(path) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    (path / "lock").unlink()
    data = path / "index.0" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2 + 1)
    # In a process of its own: whoever reads such an index is killed by SIGBUS.
    code = "import sys; from casckpt.store import Repository; Repository.open(sys.argv[1], 'r')"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "casckpt.errors.Corrupt" in done.stderr


@pytest.mark.parametrize("where", ["roots", "row", "pages"])
def test_the_walk_survives_damage_of_every_kind(path, where):
    with Repository.open(path) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    if where == "pages":
        data = path / "index.0" / "data.mdb"
        with data.open("r+b") as stream:
            stream.seek(2 * 4096)
            stream.write(os.urandom(data.stat().st_size - 2 * 4096))
    else:
        environment = Environment(path / "index.0", readonly=False)
        if where == "row":
            environment.write(lambda tx: tx.put("objects", b"x" * 32, b"short"))
        else:
            environment.write(lambda tx: tx.put("meta", b"roots", rows.u64(1) + bytes(16)))
        environment.close()
    with pytest.raises(Corrupt) as caught:
        opening.walk_index(path / "index.0")
    assert "--rebuild-index" in caught.value.hint


# ---- the clean stamp


def test_an_index_closed_in_order_is_not_walked_again(path, monkeypatch):
    walked = counts_walks(monkeypatch)
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        assert not (path / "index.0" / "clean").exists()
    assert (path / "index.0" / "clean").exists()
    Repository.open(path).close()
    assert walked == []


def test_a_killed_process_leaves_no_stamp_and_the_next_walks(path, monkeypatch):
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd());"
        "from casckpt.store import Repository; from tests.unit.store.stores import save;"
        "r = Repository.open(sys.argv[1]); save(r, [b'x']); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert not (path / "index.0" / "clean").exists()
    walked = counts_walks(monkeypatch)
    with Repository.open(path) as repository:
        assert len(repository.checkpoint_rows()) == 1
        # Others trust those who are in already.
        code = (
            "import sys; from casckpt.store import Repository; Repository.open(sys.argv[1]).close()"
        )
        subprocess.run([sys.executable, "-c", code, path], check=True)
    assert walked == ["index.0"]


def test_a_stamp_of_another_boot_or_file_does_not_fit(path):
    index = path / "index.0"
    assert opening.stamp_fits(index)
    stamp = json.loads((index / "clean").read_text())
    for key in ("boot", "inode", "size", "mtime_ns", "ctime_ns"):
        (index / "clean").write_text(json.dumps(stamp | {key: 0}))
        assert not opening.stamp_fits(index)
    for text in ("", "[]", "{", "\udcff"):
        (index / "clean").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert not opening.stamp_fits(index)


def test_an_index_that_a_child_cannot_look_at_for_want_of_packages_is_not_called_damaged(
    path, monkeypatch
):
    wrong = [sys.executable, "-c", "import casckpt_has_no_such_package"]
    monkeypatch.setattr(opening, "command_of", lambda *words: wrong)
    with pytest.raises(OperationFailed, match="finds other packages than this process"):
        opening.walk_index(path / "index.0")


def test_a_walk_that_does_not_end_is_given_up_and_the_store_opens(path, monkeypatch):
    """A slow disk is no damage: what is read later is checked as it is read."""
    wrong = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(opening, "command_of", lambda *words: wrong)
    monkeypatch.setattr(opening, "_WALK_LIMIT_S", 0.1)
    assert opening.walk_index(path / "index.0") is False


def test_packs_of_others_and_files_that_are_none_do_not_make_an_index_old(path, make_store):
    """Only a pack of this store, under its own name, can hold commits that the index lacks."""
    with Repository.open(path) as repository:
        saved = save(repository, [b"mine"])
    other = make_store("other")
    with Repository.open(other) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    folder = path / "packs" / "00"
    folder.mkdir(exist_ok=True)
    for number, pack in enumerate(other.glob("packs/*/*.pack")):
        shutil.copy(pack, folder / pack.name)
        shutil.copy(pack, folder / f"{number:032x}.pack")
    (folder / "no-uuid.pack").write_bytes(b"x" * 5000)
    with Repository.open(path) as repository:
        check(repository, saved)


def test_the_walk_refuses_an_object_under_a_key_that_is_no_id(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x" * 3000])
        shared = repository._shared()

        def forge(tx):
            value = tx.get("objects", saved.infos[0].id)
            tx._handle.put(b"short", value, db=tx._tables["objects"])

        shared.writer.run(forge, facts=False)
    with pytest.raises(Corrupt, match="an objects key of another length"):
        opening.walk_index(path / "index.0")
