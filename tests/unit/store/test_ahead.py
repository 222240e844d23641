"""Records are asked of the disk before their turn comes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casckpt.store import BlobRead, Repository, StoreOptions, ahead, files, layout, reading, records
from tests.unit.store.stores import MIB, check, pack_files, read, save

Asked = dict[int, set[range]]


@pytest.fixture
def asked(monkeypatch) -> Asked:
    """Return which bytes of which file the kernel has been asked to fetch."""
    found: Asked = {}
    whole = files.read_ahead

    def noted(descriptor: int, offset: int, length: int) -> None:
        found.setdefault(os.fstat(descriptor).st_ino, set()).add(range(offset, offset + length))
        whole(descriptor, offset, length)

    monkeypatch.setattr(files, "read_ahead", noted)
    return found


def is_asked(asked: Asked, repository: Repository, row, pack) -> bool:
    """Tell whether all bytes of a record have been asked for."""
    path = next(path for path in pack_files(repository.path) if path.stem == pack.uuid.hex())
    end = row.offset + records.OVERHEAD_BYTES + 32 * row.ref_count + row.stored
    spans = asked.get(path.stat().st_ino, set())
    return any(row.offset in span and end - 1 in span for span in spans)


def test_each_record_is_asked_for_and_what_it_stands_on(repository, asked):
    numbers = np.random.default_rng(1).normal(0, 0.02, MIB // 2).astype(np.float32)
    before = save(repository, [numbers.tobytes()])
    near = (numbers * np.float32(1 + 2**-20)).astype(np.float32).tobytes()
    after = save(repository, [near], step=2, bases=[before.infos[0].id])
    check(repository, after)
    with repository._shared().environment.read() as tx:
        chains = [tx.chain(id) for id, _ in chunks_of(repository, after.infos[0].id)]
    assert [len(chain) for chain in chains] == [2, 2]
    assert all(is_asked(asked, repository, row, pack) for chain in chains for _, row, pack in chain)


def chunks_of(repository: Repository, blob: bytes) -> list[tuple[bytes, int]]:
    with ThreadPoolExecutor(1) as pool:
        return reading.Reader(repository._shared(), pool).chunks_of(blob)


def test_records_side_by_side_are_asked_for_at_once(repository, asked):
    saved = save(repository, [os.urandom(3 * MIB)])
    check(repository, saved)
    (spans,) = asked.values()
    assert max(map(len, spans)) > 3 * MIB


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1))
def test_joined_ranges_hold_the_same_bytes_and_do_not_touch(pieces):
    ranges = [(start, start + length) for start, length in pieces]
    found = list(ahead.joined(ranges))
    assert {at for low, high in found for at in range(low, high)} == {
        at for low, high in ranges for at in range(low, high)
    }
    assert all(before[1] < after[0] for before, after in pairwise(found))


def test_what_cannot_be_asked_for_is_left_to_the_reader(repository, asked):
    saved = save(repository, [os.urandom(1000)])
    with repository._shared().environment.read() as tx:
        ((identity, row, pack),) = tx.chain(saved.infos[0].id)
    far = (identity, replace(row, offset=2**64 - 10, stored=2**63), pack)
    gone = (identity, row, replace(pack, uuid=bytes(16)))
    here = (identity, row, pack)
    ahead.fetch(repository._shared().packs, [None, [far], [gone], [here]])
    assert is_asked(asked, repository, row, pack)


@pytest.mark.parametrize("place", [(0, 2**70), (2**63, 1), (2**64, 2**64), (-1, -1)])
def test_any_numbers_may_be_asked_for(path: Path, place):
    with (path / "format.json").open("rb") as file:
        files.read_ahead(file.fileno(), *place)


def test_no_more_than_a_few_units_are_asked_for(path, monkeypatch):
    """A state larger than memory must not push its own pages out before they are used."""
    begun, ended, ahead_by = [], [], []
    read_parts, fetch = reading.Reader._read_parts, ahead.fetch

    def noted(self, unit, chains, verify):
        yield from read_parts(self, unit, chains, verify)
        ended.append(unit)

    def counted(packs, chains):
        begun.append(chains)
        ahead_by.append(len(begun) - len(ended))
        fetch(packs, chains)

    monkeypatch.setattr(reading, "_UNIT_BYTES", layout.KIB)
    monkeypatch.setattr(reading.Reader, "_read_parts", noted)
    monkeypatch.setattr(ahead, "fetch", counted)
    with Repository.open(path, options=StoreOptions(level="fast", workers=1)) as repository:
        saved = save(repository, [os.urandom(2000) for _ in range(60)])
        wishes = [BlobRead(info.id, 2000, 0, bytearray(2000)) for info in saved.infos]
        repository.read_blobs(wishes)
    assert [wish.dest for wish in wishes] == saved.data
    assert len(begun) == 60
    assert 1 < max(ahead_by) <= reading._UNITS_AHEAD


def test_many_readers_share_one_worker(path):
    with Repository.open(path, options=StoreOptions(workers=1)) as repository:
        (info,) = save(repository, [os.urandom(50 * MIB)]).infos
        with ThreadPoolExecutor(3) as pool:
            assert len({*pool.map(lambda _: read(repository, info), range(3))}) == 1
