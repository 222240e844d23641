"""What fails while a store is opened or closed keeps nobody from opening it next."""

from __future__ import annotations

import threading

import pytest

from casckpt.errors import OperationFailed
from casckpt.store import Repository, environment, opening, sharing
from casckpt.store.index_writer import IndexWriter
from casckpt.store.own_packs import OwnPacks
from casckpt.store.packs import PackFiles


def no_memory(*arguments, **named):
    raise MemoryError


@pytest.fixture
def place(tmp_path, monkeypatch):
    # A lock that this process still holds would be waited for.
    monkeypatch.setattr(opening, "_LOCK_WAIT_S", 0.0)
    Repository.init(tmp_path / "store")
    return tmp_path / "store"


def write(store: Repository) -> None:
    with store.saver():
        pass
    store._shared(write=True).writer.run(lambda tx: tx.put("meta", b"test", b"1"), facts=False)


OPENING = (
    (sharing, "PackFiles"),
    (sharing.SharedStore, "_prepare_to_write"),
    (sharing.creation, "check_index"),
    (environment.layout, "TABLES"),
)
CLOSING = (
    (OwnPacks, "close"),
    (PackFiles, "close"),
    (environment.Environment, "last_transaction"),
    (opening, "write_stamp"),
)


@pytest.mark.parametrize(("owner", "name"), OPENING)
def test_a_store_that_could_not_be_opened_can_be_opened_next(place, monkeypatch, owner, name):
    if name == "TABLES":
        monkeypatch.setattr(environment.layout, "TABLES", _Short(environment.layout.TABLES))
    else:
        monkeypatch.setattr(owner, name, no_memory)
    with pytest.raises(MemoryError) as kept:  # as a notebook keeps it, with all its frames
        Repository.open(place)
    monkeypatch.undo()
    monkeypatch.setattr(opening, "_LOCK_WAIT_S", 0.0)
    with Repository.open(place) as store:
        write(store)
    assert kept.value.__traceback__ is not None


class _Short(tuple):
    """The tables of an index, for which memory fails in the middle."""

    def __iter__(self):
        yield self[0]
        raise MemoryError


@pytest.mark.parametrize(("owner", "name"), CLOSING)
def test_a_store_that_could_not_be_closed_in_order_can_be_opened_next(
    place, monkeypatch, owner, name
):
    store = Repository.open(place)
    write(store)
    monkeypatch.setattr(owner, name, no_memory)
    with pytest.raises(MemoryError):
        store.close()
    monkeypatch.undo()
    monkeypatch.setattr(opening, "_LOCK_WAIT_S", 0.0)
    assert place.resolve() not in {shared.path for shared in sharing._open.values()}
    with Repository.open(place) as store:
        write(store)


def test_the_thread_of_the_index_has_ended_when_its_writer_is_closed_without_memory(
    place, monkeypatch
):
    store = Repository.open(place)
    write(store)
    writer: IndexWriter = store._shared(write=True).writer
    thread = writer._thread
    joins, join = [], thread.join

    def fail_first(timeout=None):
        joins.append(timeout)
        if len(joins) == 1:
            raise MemoryError
        join(timeout)

    monkeypatch.setattr(thread, "join", fail_first)
    store.close()
    assert len(joins) > 1
    assert not thread.is_alive()


def test_who_reads_while_the_store_is_opened_for_writing_goes_on(place):
    """Between taking the environment and reading, the process gate may be another's for long."""
    reads, errors = [], []
    for _ in range(10):
        reader, stop = Repository.open(place, "r"), threading.Event()

        def look(reader=reader, stop=stop):
            while not stop.is_set():
                try:
                    reads.append(reader.checkpoint_rows())
                except Exception as exc:
                    errors.append(exc)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        with Repository.open(place, "a"):
            stop.set()
            for thread in threads:
                thread.join()
        reader.close()
    assert reads
    assert errors == []


def test_where_no_index_opens_again_readers_are_told(place, monkeypatch):
    with Repository.open(place, "r") as reader:
        before = reader._shared().environment

        def no_index(*arguments, **named):
            raise OSError("no index")

        with monkeypatch.context() as patched:
            patched.setattr(sharing, "Environment", no_index)
            with pytest.raises(OSError, match="no index"):
                reader._shared().reopen_writable()
        with pytest.raises(OperationFailed, match="the store is closed"), before.read():
            pass
