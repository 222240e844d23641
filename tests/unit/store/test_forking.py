from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import traceback

import pytest

from casckpt.store import Repository, layout
from tests.unit.store.stores import MIB, check, read, save

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")


def in_child(work, timeout_s: float = 20.0) -> None:
    """Run `work` in a forked child; assert that it ends well and in time."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            watchdog = threading.Timer(timeout_s, lambda: os._exit(7))
            watchdog.daemon = True
            watchdog.start()
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_child_saves_and_reads_and_so_does_the_parent(repository):
    before = save(repository, [os.urandom(2 * MIB)], run="before")
    reader = repository.checkpoint_rows

    def child() -> None:
        assert [row.run for row in reader()] == ["before"]
        check(repository, before)
        check(repository, save(repository, [os.urandom(MIB)], run="child"))
        repository.close()

    in_child(child)
    assert [row.run for row in repository.checkpoint_rows()] == ["before", "child"]
    check(repository, before)
    check(repository, save(repository, [os.urandom(MIB)], run="parent"))
    assert repository.verify("bytes").damaged == ()


def test_children_in_a_row_and_children_of_children(repository):
    def child(depth: int = 0) -> None:
        save(repository, [b"%d" % depth], run=f"depth{depth}-{os.getpid()}")
        if depth < 2:
            in_child(lambda: child(depth + 1))

    for _ in range(2):
        in_child(child)
    save(repository, [b"parent"])
    assert len(repository.checkpoint_rows()) == 7


def test_a_fork_in_the_midst_of_a_save_leaves_the_save_to_the_parent(repository):
    from casckpt.store import BlobSource, CommitRequest

    data = os.urandom(3 * MIB)
    with repository.saver() as saver:
        infos = saver.put_blobs([BlobSource([data], 4)])

        def child() -> None:
            # What a child inherits of a save is not its own: leaving it touches nothing.
            saver.__exit__(None, None, None)
            gc.collect()
            save(repository, [b"child"], run="child")

        in_child(child)
        manifest = saver.put_manifest([infos[0].id], b"m")
        saver.commit(CommitRequest("run", 0, 1, 0, manifest.id, b"", None))
    assert read(repository, infos[0]) == data
    assert len(repository.checkpoint_rows()) == 2


def test_a_fork_while_other_threads_save_and_read(repository):
    kept = save(repository, [os.urandom(2 * MIB)], run="kept")
    stop = threading.Event()
    errors: list[BaseException] = []

    def busy(number: int) -> None:
        step = 0
        try:
            while not stop.is_set():
                save(repository, [os.urandom(50_000)], run=f"busy{number}", step=step)
                check(repository, kept)
                step += 1
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()

    def child() -> None:
        check(repository, kept)
        save(repository, [os.urandom(1000)], run=f"child{os.getpid()}")

    for _ in range(4):
        in_child(child)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    names = [row.run for row in repository.checkpoint_rows()]
    assert sum(name.startswith("child") for name in names) == 4
    assert repository.verify("bytes").damaged == ()


@pytest.mark.parametrize("lock", ["packs", "repository", "session", "own"])
def test_a_lock_that_a_thread_held_at_the_fork_does_not_stop_the_child(repository, lock):
    saved = save(repository, [os.urandom(1000)])
    shared = repository._shared()
    held = {
        "packs": lambda: shared.packs._lock,
        "repository": lambda: repository._lock,
        "session": lambda: shared.session()._lock,
        "own": lambda: shared.own._lock,
    }[lock]()
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with held:
            inside.set()
            go_on.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(5)
    try:
        in_child(lambda: check(repository, saved), timeout_s=5)
    finally:
        go_on.set()
        thread.join()


def test_a_child_that_ends_in_order_does_not_end_the_parents_session(repository):
    from casckpt.store.sessions import list_sessions

    save(repository, [b"x"])
    in_child(lambda: None)
    in_child(repository.close)
    (info,) = list_sessions(repository.path)
    assert info.alive
    save(repository, [b"y"], step=2)


def test_a_child_outliving_the_parents_handle_harms_nobody(path):
    with Repository.open(path) as repository:
        first = save(repository, [os.urandom(1000)])
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"x")
            os.read(go_on[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
    try:
        # The child has let go of every lock: the parent may even rebuild.
        Repository.rebuild_index(path)
        with Repository.open(path) as repository:
            check(repository, first)
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)


# ---- multiprocessing


def _work(path: str, number: int) -> bytes:
    with Repository.open(path) as repository:
        save(repository, [b"from %d" % number], run=f"worker{number}")
        return repository.uuid


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_multiprocessing(repository, method):
    save(repository, [b"parent"])
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        uuids = pool.starmap(_work, [(str(repository.path), number) for number in range(3)])
        pool.close()
        pool.join()
    assert set(uuids) == {repository.uuid}
    assert len(repository.checkpoint_rows()) == 4


class Samples:
    """As a data set that a loader hands to its workers: an open store, used in the child."""

    def __init__(self, repository, infos) -> None:
        self.repository = repository
        self.infos = infos

    def __getitem__(self, number: int) -> bytes:
        return read(self.repository, self.infos[number])


def _load(samples: Samples, numbers: list[int], results) -> None:
    for number in numbers:
        results.put((number, samples[number]))


def test_a_loader_whose_workers_read_from_the_parents_store(repository):
    data = [os.urandom(10_000) for _ in range(8)]
    saved = save(repository, data)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    samples = Samples(repository, saved.infos)
    workers = [
        context.Process(target=_load, args=(samples, list(range(start, 8, 2)), results))
        for start in range(2)
    ]
    for worker in workers:
        worker.start()
    save(repository, [b"meanwhile"], run="meanwhile")
    found = dict(results.get(timeout=20) for _ in data)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [found[number] for number in range(8)] == data
    save(repository, [b"after"], run="after")


def test_a_child_closes_no_file_that_has_the_number_of_a_sealed_pack(repository, monkeypatch):
    monkeypatch.setattr(layout, "PACK_SEAL_BYTES", 64 * 1024)
    for number in range(3):
        save(repository, [os.urandom(200_000)], run=f"r{number}")
    sealed = [pack._descriptor for pack in repository._shared().own._all.values() if pack._closed]
    assert sealed
    pipes = [os.pipe() for _ in range(20)]
    ends = {end for pipe in pipes for end in pipe}
    assert ends & {*sealed}  # numbers are given again

    def child() -> None:
        for end in ends:
            os.fstat(end)

    try:
        in_child(child)
    finally:
        for end in ends:
            os.close(end)
