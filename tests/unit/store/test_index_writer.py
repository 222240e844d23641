from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from casckpt.errors import NotFound, OperationFailed, StoreBusy
from casckpt.store import files, layout, rows
from casckpt.store.commits import RowWrite, add_rows
from casckpt.store.environment import Environment
from casckpt.store.index_writer import IndexWriter, read_roots
from casckpt.store.marking import check_roots


class Sink:
    """Takes facts as the packs of a session would."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, int, list]] = []
        self.synced = threading.Event()
        self.number = 1
        self.gone = 0

    def fact_pack(self) -> int:
        return self.number

    def pack_gone(self) -> None:
        self.gone += 1
        self.number += 1

    def append_fact(self, pack, seq, changes) -> None:
        self.facts.append((pack, seq, changes))

    def sync_facts(self) -> None:
        self.synced.set()

    def beat(self) -> None:
        pass


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def writer(path, sink):
    environment = Environment(path / "index.0", readonly=False)
    writer = IndexWriter(environment, path, sink)

    def register(tx):
        for number in (1, 2):
            row = rows.PackRow(bytes([number]) * 16, bytes(16), size=80)
            tx.put("packs", rows.pack_key(number), row.encode())

    writer.run(register, facts=False)
    yield writer
    writer.close()
    environment.close()


def put(key: bytes, table: str = "history"):
    return lambda tx: tx.put(table, key, rows.Row("live", (), key).encode())


@contextmanager
def held(writer):
    """Keep the writer busy, so that what is submitted meanwhile is joined."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(tx) -> None:
        inside.set()
        assert go_on.wait(10)

    blocker = threading.Thread(target=lambda: writer.run(wait, facts=False))
    blocker.start()
    assert inside.wait(10)
    yield
    go_on.set()
    blocker.join()


def submit(writer, jobs, **options) -> tuple[list, list[threading.Thread]]:
    """Run jobs from a thread each; return their outcomes once the threads are joined."""
    outcomes: list = [None] * len(jobs)

    def run(number: int) -> None:
        try:
            outcomes[number] = writer.run(jobs[number], **options)
        except BaseException as exc:
            outcomes[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    while len(writer._jobs) < len(jobs):
        pass
    return outcomes, threads


def keys(writer, table: str = "history") -> list[bytes]:
    with writer.environment.read() as tx:
        return [key for key, _ in tx.scan(table)]


def test_a_job_is_durable_numbered_and_becomes_a_fact(writer, sink):
    assert writer.run(lambda tx: put(b"k")(tx) or "result") == "result"
    value = rows.Row("live", (), b"k").encode()
    assert sink.facts == [(1, 1, [("history", b"k", value)])]
    with writer.environment.read() as tx:
        assert tx.number("seq") == 1
        assert tx.pack(1).highest_fact == 1
        assert tx.number("root_seq") == 0
    assert sink.synced.wait(5)


def test_jobs_that_wait_are_joined_into_one_transaction(writer, sink):
    with held(writer):
        _, threads = submit(writer, [put(b"%d" % number) for number in range(50)])
    for thread in threads:
        thread.join()
    assert len(keys(writer)) == 50
    assert [seq for _, seq, _ in sink.facts] == [1]
    assert len(sink.facts[0][2]) == 50


def test_joined_jobs_stay_below_the_limit_of_rows(writer, sink):
    with held(writer):
        _, threads = submit(writer, [put(b"%d" % number) for number in range(5)], row_count=900)
    for thread in threads:
        thread.join()
    assert [len(changes) for _, _, changes in sink.facts] == [2, 2, 1]
    assert layout.TRANSACTION_MAX_ROWS == 2000


@pytest.mark.parametrize(
    "error",
    [NotFound("gone"), ValueError("a bug"), KeyError("another")],
    ids=lambda e: type(e).__name__,
)
def test_an_error_in_one_job_undoes_that_job_only(writer, sink, error):
    def fail(tx):
        put(b"half")(tx)
        put(b"half", "checkpoints")(tx)
        raise error

    with held(writer):
        outcomes, threads = submit(writer, [put(b"a"), fail, put(b"b")])
    for thread in threads:
        thread.join()
    assert outcomes == [None, error, None]
    assert keys(writer) == [b"a", b"b"]
    assert keys(writer, "checkpoints") == []
    assert sorted(change[1] for change in sink.facts[0][2]) == [b"a", b"b"]
    with writer.environment.read() as tx:
        assert read_roots(tx) == (0, 0)


def test_a_row_that_lmdb_refuses_fails_its_own_job_only(writer):
    with held(writer):
        outcomes, threads = submit(writer, [put(b"a"), put(b"k" * 600), put(b"b")])
    for thread in threads:
        thread.join()
    assert outcomes[0] is None
    assert isinstance(outcomes[1], OperationFailed)
    assert outcomes[2] is None
    assert keys(writer) == [b"a", b"b"]


def test_an_error_alone_leaves_nothing(writer, sink):
    def fail(tx):
        put(b"half")(tx)
        raise NotFound("gone")

    with pytest.raises(NotFound):
        writer.run(fail)
    assert keys(writer) == []
    assert sink.facts == []
    writer.run(put(b"next"))
    assert sink.facts[0][1] == 1


def test_a_pack_that_was_dropped_takes_no_fact(writer, sink):
    row = rows.PackRow(b"\1" * 16, bytes(16), state=rows.DROPPED, size=80)
    writer.run(lambda tx: tx.put("packs", rows.pack_key(1), row.encode()), facts=False)
    writer.run(put(b"k"))
    assert sink.gone == 1
    assert sink.facts[0][0] == 2


def test_a_condemned_pack_that_takes_a_fact_is_live_again(writer):
    row = rows.PackRow(b"\1" * 16, bytes(16), state=rows.CONDEMNED, epoch=3, size=80)
    writer.run(lambda tx: tx.put("packs", rows.pack_key(1), row.encode()), facts=False)
    writer.run(put(b"k"))
    with writer.environment.read() as tx:
        assert tx.pack(1).state == rows.LIVE


def test_the_roots_checksum_follows_every_change(writer):
    def row(state: str, payload: bytes) -> bytes:
        return rows.Row(state, (bytes(32),), payload).encode()

    def checked() -> int:
        with writer.environment.read() as tx:
            check_roots(tx)
            return tx.number("root_seq")

    steps = [
        lambda tx: tx.put("checkpoints", b"a" + rows.u64(1), row("live", b"")),
        lambda tx: tx.put("cache", b"c", row("live", b"")),
        lambda tx: tx.put("checkpoints", b"a" + rows.u64(1), row("trash", b"x")),
        lambda tx: tx.put("checkpoints", b"a" + rows.u64(1), row("tombstone", b"")),
        lambda tx: tx.delete("cache", b"c"),
    ]
    for count, step in enumerate(steps, 1):
        writer.run(step)
        assert checked() == count
    writer.run(lambda tx: tx.put("history", b"h", row("live", b"")))
    assert checked() == len(steps)


def test_rows_are_added_where_there_are_none(writer, sink):
    """In the order of the call, whatever order they are put in, also with the same value again."""

    def add(*names):
        writes = [RowWrite("progress", name, name * 3) for name in names]
        return writer.run(lambda tx: add_rows(tx, writes))

    assert add(b"m", b"c") == [True, True]
    first = sink.facts[-1][2]
    assert sorted(key for _, key, _ in first) == [b"c", b"m"]
    assert add(b"z", b"m", b"a", b"c") == [True, False, True, False]
    assert sorted(key for _, key, _ in sink.facts[-1][2]) == [b"a", b"z"]
    assert add(b"a", b"m") == [False, False]
    assert len(sink.facts) == 2

    def swap(tx):
        writes = [RowWrite("progress", b"m", None), RowWrite("cache", b"m", b"", (bytes(32),))]
        return add_rows(tx, writes)

    assert writer.run(swap) == [True, True]
    with writer.environment.read() as tx:
        check_roots(tx)
        assert [key for key, _ in tx.scan("progress")] == [b"a", b"c", b"z"]
        assert rows.Row.decode(tx.get("progress", b"z")) == rows.Row("live", (), b"zzz")
        assert rows.Row.decode(tx.get("cache", b"m")) == rows.Row("live", (bytes(32),), b"")


def test_who_holds_the_index_too_long_is_named(writer, path, monkeypatch):
    from casckpt.store import writer_lock

    monkeypatch.setattr(writer_lock, "WRITE_WAIT_S", 0.05)
    import os

    other = files.open_file(path / "writer", os.O_RDWR)
    files.write_at(other, b"4242\n".ljust(24), 0, path)
    assert files.try_lock(other, exclusive=True)
    with pytest.raises(StoreBusy, match="process 4242"):
        writer.run(put(b"k"))
    files.close_file(other)
    writer.run(put(b"k"))


def test_a_replaced_index_is_not_written(writer, path):
    (path / "CURRENT").write_text("index.7\n")
    with pytest.raises(StoreBusy, match="rebuilt"):
        writer.run(put(b"k"))


def test_a_closed_writer_says_so(writer):
    writer.run(put(b"k"))
    writer.close()
    with pytest.raises(OperationFailed, match="closed"):
        writer.run(put(b"k"))


def test_a_long_wait_for_the_index_is_told_while_it_lasts(writer, path, monkeypatch, caplog):
    import os

    from casckpt.store import writer_lock

    monkeypatch.setattr(writer_lock, "_REPORT_AFTER_S", 0.02)
    monkeypatch.setattr(writer_lock, "WRITE_WAIT_S", 0.3)
    other = files.open_file(path / "writer", os.O_RDWR)
    files.write_at(other, b"4242\n".ljust(24), 0, path)
    assert files.try_lock(other, exclusive=True)
    with pytest.raises(StoreBusy):
        writer.run(put(b"k"))
    told = [
        record.message for record in caplog.records if "waiting for the index" in record.message
    ]
    assert len(told) == 1
    assert "4242" in told[0]


def test_the_thread_outlives_a_want_of_memory(writer, sink, monkeypatch, caplog):
    """Whoever writes the index would wait for it for ever."""

    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(sink, "beat", fail)
    monkeypatch.setattr(sink, "sync_facts", fail)
    monkeypatch.setattr(layout, "HEARTBEAT_S", 0.0)
    writer.run(put(b"a"))
    with monkeypatch.context() as patched:
        patched.setattr(layout, "TRANSACTION_MAX_ROWS", None)  # raises where a batch is made
        with held(writer):
            outcomes, threads = submit(writer, [put(b"b"), put(b"c")])
        for thread in threads:
            thread.join(20)
    # The first was in the batch that came to nothing; the second waited for its turn.
    assert {type(one) for one in outcomes} == {TypeError, type(None)}
    writer.run(put(b"d"))
    assert len(keys(writer)) == 3
    assert "goes on after an error" in caplog.text


def test_who_waits_sees_that_a_job_is_over_though_nobody_says_so(writer, monkeypatch):
    told = threading.Event.set

    def fail(event):
        if threading.current_thread() is writer._thread:
            raise MemoryError
        told(event)

    monkeypatch.setattr(threading.Event, "set", fail)
    writer.run(put(b"a"))
    assert keys(writer) == [b"a"]


def test_once_the_interpreter_begins_no_thread_the_caller_writes(path, sink, monkeypatch):
    def start(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    environment = Environment(path / "index.0", readonly=False)
    writer = IndexWriter(environment, path, sink)
    row = rows.PackRow(bytes(16), bytes(16), size=80).encode()
    writer.run(lambda tx: tx.put("packs", rows.pack_key(1), row), facts=False)
    with pytest.raises(NotFound):
        writer.run(_missing)
    writer.run(lambda tx: tx.put("history", b"h", rows.Row("live", (), b"x").encode()))
    with environment.read() as tx:
        assert rows.Row.decode(tx.get("history", b"h")).payload == b"x"
    writer.close()
    environment.close()


def test_where_the_caller_writes_no_memory_for_what_comes_after_fails_no_commit(
    path, sink, monkeypatch
):
    def start(self):
        raise RuntimeError("can't start new thread")

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(sink, "sync_facts", fail)
    environment = Environment(path / "index.0", readonly=False)
    writer = IndexWriter(environment, path, sink)
    row = rows.PackRow(bytes(16), bytes(16), size=80).encode()
    writer.run(lambda tx: tx.put("packs", rows.pack_key(1), row), facts=False)
    writer.run(put(b"a"))
    assert keys(writer) == [b"a"]
    writer.close()
    environment.close()


def test_at_a_limit_of_threads_the_caller_writes_and_the_next_write_tries_again(
    path, sink, monkeypatch
):
    environment = Environment(path / "index.0", readonly=False)
    writer = IndexWriter(environment, path, sink)
    with monkeypatch.context() as patched:

        def start(self):
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", start)
        assert writer.run(lambda tx: threading.current_thread(), facts=False) is (
            threading.current_thread()
        )
    assert writer.run(lambda tx: threading.current_thread(), facts=False) is writer._thread
    writer.close()
    environment.close()


def test_a_job_that_needs_another_is_done_though_a_thread_begins_in_between(
    path, sink, monkeypatch
):
    environment = Environment(path / "index.0", readonly=False)
    writer = IndexWriter(environment, path, sink)
    real, failed = threading.Thread.start, []

    def start(thread):
        if thread.name == "casckpt-index" and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    def register() -> int:
        row = rows.PackRow(bytes(16), bytes(16), size=80).encode()
        writer.run(lambda tx: tx.put("packs", rows.pack_key(1), row), facts=False)
        return 1

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(sink, "fact_pack", register)
    thread = threading.Thread(target=writer.run, args=(put(b"h"),), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for a thread that waits for it"
    assert keys(writer) == [b"h"]
    assert sink.synced.is_set()  # nobody would come by later
    writer.close()
    environment.close()


def _missing(tx):
    raise NotFound("nothing there")
