from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from casckpt.errors import CasckptError, Corrupt, NoSpace, OperationFailed
from casckpt.store import files, layout, pack_writer, packs, records
from casckpt.store.pack_writer import PackFailed, PackWriter
from casckpt.store.packs import PackFiles
from tests.unit.store.stores import append, flip, scan

STORE, SESSION, UUID = b"s" * 16, b"e" * 16, b"p" * 16


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "packs").mkdir()
    return tmp_path


@pytest.fixture
def pack(folder):
    return PackWriter(folder, UUID, 1, STORE, SESSION)


def test_records_come_back_by_place_and_by_scan(pack, folder):
    written = [append(pack, os.urandom(n), (b"r" * 32,) * (n % 2)) for n in (0, 1, 500, 3 << 20)]
    assert scan(pack) == written
    assert pack.sync() == pack.end == sum(r.total_bytes for r in written) + 80
    pack.seal()
    problems = []
    assert scan(pack, problems) == written
    assert problems == []
    with PackFiles(folder, STORE).borrow(UUID) as file:
        for record in written:
            found = packs.read_header(file.descriptor, file.path, UUID, record.offset)
            assert found == record
            assert len(packs.read_payload(file.descriptor, file.path, found)) == record.stored


def test_a_scan_passes_over_holes_and_finds_what_stands_behind_them(pack, folder):
    first, second = append(pack, b"before"), append(pack, b"behind")
    pack.sync()
    behind = pack.path.read_bytes()[second.offset :]
    with pack.path.open("r+b") as file:
        file.truncate(second.offset)
        file.truncate(1 << 40)  # a tebibyte of nothing, which nobody waits for
        file.seek((1 << 40) - 12345)
        file.write(behind)
    problems = []
    assert scan(pack, problems) == [first]  # the header of the other names another place
    assert [offset for offset, _ in problems] == [second.offset, (1 << 40) - 12345]


def test_a_scan_that_has_an_end_looks_for_nothing_behind_it(pack):
    written = [append(pack, os.urandom(n)) for n in (100, 200, 300)]
    pack.sync()
    descriptor = os.open(pack.path, os.O_RDONLY)
    for end in (written[1].offset + 1, written[2].offset):
        found = packs.scan_pack(descriptor, pack.path, pack.uuid, end=end)
        assert list(found) == written[:2]
    with pack.path.open("r+b") as file:  # all that the first magic is found by
        file.seek(written[0].offset)
        file.write(b"x")
    problems: list[tuple[int, str]] = []
    for end, count in ((written[1].offset, 0), (written[1].offset + 1, 1)):
        found = packs.scan_pack(descriptor, pack.path, pack.uuid, end=end, problems=problems)
        assert list(found) == written[1 : 1 + count]
    assert [offset for offset, _ in problems] == [written[0].offset] * 2
    os.close(descriptor)


def test_where_no_hole_can_be_asked_for_a_scan_reads_them(pack, monkeypatch):
    first = append(pack, b"before")
    pack.sync()
    with pack.path.open("r+b") as file:
        file.truncate(pack.end + 9_000_000)

    def seek(descriptor: int, offset: int, how: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", seek)
    problems: list[tuple[int, str]] = []
    assert scan(pack, problems) == [first]
    assert [offset for offset, _ in problems] == [pack.end]


def test_records_of_several_threads_do_not_mix(pack):
    def work(seed: int) -> None:
        for number in range(30):
            append(pack, bytes([seed]) * (number * 37))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pack.seal()
    found = scan(pack)
    assert len(found) == 180
    assert pack.path.stat().st_size == pack.end + records.FOOTER_BYTES


@pytest.mark.parametrize("operation", ["write", "fdatasync"])
def test_a_failed_write_or_flush_ends_the_pack_for_good(pack, operation):
    append(pack, b"before")
    synced = pack.sync()
    calls: list[str] = []

    def fail(name: str, where: str) -> None:
        calls.append(name)
        if name == operation:
            raise OSError(errno.EIO, "injected")

    files.set_crash_hook(fail)

    def append_and_sync() -> None:
        append(pack, b"after")
        pack.sync()

    with pytest.raises(OperationFailed):
        append_and_sync()
    files.set_crash_hook(None)
    # The kernel would now say that all is well; the pack knows better.
    with pytest.raises(PackFailed):
        append(pack, b"more")
    with pytest.raises(PackFailed):
        pack.sync()
    assert pack.synced == synced
    assert pack.full
    calls.clear()
    files.set_crash_hook(lambda name, _: calls.append(name))
    pack.seal()
    assert calls == []
    assert pack.synced == synced


def test_a_full_disk_at_the_reservation_leaves_the_pack_good(pack):
    def full(name: str, where: str) -> None:
        if name == "reserve":
            raise OSError(errno.ENOSPC, "injected")

    files.set_crash_hook(full)
    with pytest.raises(NoSpace):
        append(pack, bytes(1 << 20))
    files.set_crash_hook(None)
    assert not pack.failed
    append(pack, b"small")
    pack.sync()
    assert len(scan(pack)) == 1


def test_reserved_space_is_given_back(pack):
    append(pack, b"x" * 1000)
    pack.sync()
    pack.release_reserved()
    assert files.allocated_bytes(pack.path) <= 64 << 10
    append(pack, b"y" * 1000)
    assert len(scan(pack)) == 2


def test_a_fact_after_a_large_save_reserves_little(pack):
    append(pack, bytes(4 << 20))
    pack.release_reserved()
    append(pack, b"fact" * 100)
    pack.sync()
    assert files.allocated_bytes(pack.path) <= (4 << 20) + (256 << 10)


def test_a_sealed_pack_takes_nothing_and_a_full_one_says_so(pack):
    pack.seal_bytes = 1000
    assert not pack.full
    append(pack, bytes(2000))
    assert pack.full
    pack.seal()
    assert pack.seal() == pack.synced
    with pytest.raises(PackFailed):
        append(pack, b"x")


def test_a_pack_is_never_written_over(pack, folder):
    with pytest.raises(FileExistsError):
        PackWriter(folder, UUID, 2, STORE, SESSION)


@pytest.mark.parametrize("at", [0, 8, 90, 130, 170])
def test_a_scan_goes_on_behind_damage_and_says_where_it_was(pack, at):
    written = [append(pack, os.urandom(300)) for _ in range(5)]
    pack.seal()
    flip(pack.path, written[2].offset + at)
    problems: list[tuple[int, str]] = []
    found = scan(pack, problems)
    if at < records.OVERHEAD_BYTES:
        assert found == written[:2] + written[3:]
        assert [offset for offset, _ in problems] == [written[2].offset]
    else:
        assert len(found) == 5  # payloads are the reader's to check
        descriptor = os.open(pack.path, os.O_RDONLY)
        with pytest.raises(Corrupt):
            packs.read_payload(descriptor, pack.path, found[2])
        os.close(descriptor)


def test_half_a_record_at_the_end_is_no_record(pack):
    written = [append(pack, os.urandom(300)) for _ in range(3)]
    pack.sync()
    for length in range(written[2].offset, pack.end, 37):
        os.truncate(pack.path, length)
        assert scan(pack) == written[:2]


def test_a_pack_inside_a_record_is_not_scanned_for_records(pack, folder):
    other = PackWriter(folder, b"o" * 16, 2, STORE, SESSION)
    append(other, b"inner record, whole in its own pack")
    other.seal()
    inner = append(pack, other.path.read_bytes() * 2)
    last = append(pack, b"last")
    pack.seal()
    assert scan(pack) == [inner, last]
    # Nor when the header around it is damaged, and the scan has to look for the next magic.
    flip(pack.path, inner.offset + 20)
    assert scan(pack) == [last]


def test_a_magic_across_two_windows_is_found(pack, monkeypatch):
    written = [append(pack, os.urandom(300)) for _ in range(4)]
    pack.seal()
    flip(pack.path, written[0].offset)
    for window in range(16, 60):
        monkeypatch.setattr(packs, "_SCAN_BYTES", window)
        assert scan(pack) == written[1:]


def test_open_packs_are_limited_and_those_in_use_stay_open(folder, monkeypatch):
    monkeypatch.setattr(packs, "_OPEN_PACKS", 4)
    uuids = [bytes([number]) * 16 for number in range(10)]
    for number, uuid in enumerate(uuids):
        PackWriter(folder, uuid, number, STORE, SESSION).seal()
    before = open_files()
    opened = PackFiles(folder, STORE)
    with opened.borrow(uuids[0]) as held:
        for uuid in uuids:
            with opened.borrow(uuid):
                assert open_files() <= before + 6
        assert files.read_at(held.descriptor, 8, 0, held.path) == layout.PACK_MAGIC
        opened.close()
        assert files.read_at(held.descriptor, 8, 0, held.path) == layout.PACK_MAGIC
    assert open_files() == before


def test_another_pack_under_the_name_is_refused(folder, pack):
    pack.seal()
    opened = PackFiles(folder, b"another store...")
    with pytest.raises(Corrupt, match="another"):
        opened.borrow(UUID)
    wrong = packs.pack_path(folder, b"q" * 16)
    wrong.parent.mkdir(exist_ok=True)
    pack.path.rename(wrong)
    with pytest.raises(Corrupt):
        PackFiles(folder, STORE).borrow(b"q" * 16)
    with pytest.raises(FileNotFoundError):
        PackFiles(folder, STORE).borrow(UUID)


def test_a_header_that_cannot_be_written_leaves_no_open_file(folder):
    before = open_files()

    def fail(name: str, where: str) -> None:
        if name == "fsync":
            raise OSError(errno.EIO, "injected")

    files.set_crash_hook(fail)
    with pytest.raises(CasckptError):
        PackWriter(folder, UUID, 1, STORE, SESSION)
    assert open_files() == before


class Outcome(threading.Thread):
    """A thread that remembers what its call returned or raised."""

    def __init__(self, call) -> None:
        super().__init__()
        self.call, self.result, self.error = call, None, None

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as exc:
            self.error = exc


def test_a_seal_waits_for_the_flush_of_another_thread(pack):
    append(pack, b"x" * 1000)
    inside, go_on = threading.Event(), threading.Event()
    flusher, sealer = Outcome(pack.sync), Outcome(pack.seal)

    def hook(name: str, where: str) -> None:
        if name == "fdatasync" and threading.current_thread() is flusher:
            inside.set()
            assert go_on.wait(5)

    files.set_crash_hook(hook)
    flusher.start()
    assert inside.wait(5)
    sealer.start()
    sealer.join(0.05)  # were it not to wait, it would close the file under the flush
    go_on.set()
    for thread in (flusher, sealer):
        thread.join()
        assert thread.error is None
        assert thread.result == pack.end
    assert not pack.failed


@pytest.mark.parametrize("flush_fails", [False, True])
def test_a_flush_waits_for_the_seal_of_another_thread(pack, flush_fails):
    """A save must not take a pack for durable while another thread is still flushing it."""
    append(pack, b"x" * 1000)
    inside, go_on = threading.Event(), threading.Event()
    flusher, sealer = Outcome(pack.sync), Outcome(pack.seal)

    def hook(name: str, where: str) -> None:
        if name == "fdatasync" and threading.current_thread() is sealer:
            inside.set()
            assert go_on.wait(5)
            if flush_fails:
                raise OSError(errno.EIO, "injected")

    files.set_crash_hook(hook)
    sealer.start()
    assert inside.wait(5)
    flusher.start()
    flusher.join(0.05)
    assert flusher.is_alive()
    go_on.set()
    sealer.join()
    flusher.join()
    if flush_fails:
        assert isinstance(flusher.error, PackFailed)
    else:
        assert (flusher.error, flusher.result) == (None, pack.end)


def test_a_pack_takes_no_record_beyond_its_cap(pack, monkeypatch):
    first = append(pack, os.urandom(400))
    monkeypatch.setattr(layout, "PACK_CAP_BYTES", 1000)
    monkeypatch.setattr(layout, "PACK_SEAL_BYTES", 100)
    with pytest.raises(OperationFailed, match="the pack is full"):
        append(pack, os.urandom(700))
    assert scan(pack) == [first]
    append(pack, os.urandom(100))


def test_where_inodes_are_short_a_new_pack_goes_to_a_folder_that_is_there(folder, monkeypatch):
    monkeypatch.setattr(files, "free_inodes", lambda path: 0)
    assert len(pack_writer.new_uuid(folder)) == 16  # no folder yet: it is made after all
    for name in ("0a", "f3"):
        (folder / "packs" / name).mkdir()
    drawn = {pack_writer.new_uuid(folder) for _ in range(40)}
    assert {uuid[0] for uuid in drawn} == {0x0A, 0xF3}
    assert len(drawn) == 40


def test_two_threads_that_open_a_pack_at_once_share_one_descriptor(pack, folder, monkeypatch):
    append(pack, b"x" * 100)
    pack.sync()
    opened = PackFiles(folder, STORE)
    whole = records.decode_pack_header

    def meanwhile(head):
        monkeypatch.setattr(records, "decode_pack_header", whole)
        inner.append(opened.borrow(UUID))
        return whole(head)

    inner: list = []
    before = open_files()
    monkeypatch.setattr(records, "decode_pack_header", meanwhile)
    outer = opened.borrow(UUID)
    assert outer is inner[0]
    assert open_files() == before + 1
