"""Opaque bytes stored against those of the save before: chains, gc, rebuild, damage."""

from __future__ import annotations

import random

import pytest

from casckpt.store import Repository, layout
from casckpt.store.copies import Copies
from casckpt.store.reading import Reader
from casckpt.store.repository import StoreOptions
from tests.unit.store.stores import check, find, flip, save
from tests.unit.store.test_cutting import Booster


def chains(repository, saved) -> list[int]:
    """Return the length of the chain of every chunk of a save's blobs."""
    shared = repository._shared()
    reader = Reader(shared, repository._workers())
    with shared.environment.read() as tx:
        return [
            len(tx.chain(identity))
            for info in saved.infos
            for identity, _ in reader.chunks_of(info.id)
        ]


def grow(repository, count: int, *, seed: int = 0):
    """Save a text that grows in its middle, as a header does, and at its end."""
    source = random.Random(seed)
    saves, lines, bases = [], [], []
    for step in range(1, count + 1):
        lines += [b"%d:%d\n" % (step, source.randrange(1 << 60)) for _ in range(40)]
        data = b"".join(lines) + b"".join(reversed(lines))
        saves.append(save(repository, [data], step=step, item_size=1, opaque=True, bases=bases))
        bases = [saves[-1].infos[0].id]
    return saves


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_chains_are_as_long_as_allowed_and_every_save_comes_back(path, depth):
    with Repository.open(path, options=StoreOptions(max_delta_depth=depth)) as repository:
        saves = grow(repository, 12)
        longest = max(max(chains(repository, saved)) for saved in saves)
        assert longest == depth + 1
        for saved in saves:
            check(repository, saved)
        assert repository.verify("bytes").damaged == ()


def test_a_save_costs_what_is_new_in_it(path):
    booster, bases, stored, new = Booster(3), [], [], []
    with Repository.open(path) as repository:
        for step in range(1, 31):
            data, edges = booster.grow(10)
            saved = save(
                repository, [data], step=step, item_size=1, opaque=True, bases=bases, edges=edges
            )
            bases = [saved.infos[0].id]
            stored.append(saved.infos[0].stored_bytes)
            new.append(sum(map(len, booster.parts[-10:])))
            check(repository, saved)
    # Its parts are noise, and the head is: what is above them are records and lists.
    assert all(
        size < fresh + 8 * 10 * step + 300 + 2500
        for step, (size, fresh) in enumerate(zip(stored, new, strict=True), 1)
    )


def test_a_base_outlives_the_save_that_wrote_it(path):
    with Repository.open(path) as repository:
        saves = grow(repository, 4)
        repository.trash([("run", saved.seq) for saved in saves[:-1]])
        repository.gc(now=True)
        check(repository, saves[-1])
        assert repository.verify("bytes").damaged == ()


def test_packs_alone_give_chains_of_dictionaries_back(path):
    with Repository.open(path) as repository:
        saves = grow(repository, 5)
        assert max(max(chains(repository, saved)) for saved in saves) > 1
    (path / "CURRENT").unlink()
    Repository.rebuild_index(path)
    with Repository.open(path) as repository:
        for saved in saves:
            check(repository, saved)
        assert repository.verify("bytes").damaged == ()


def test_a_damaged_base_is_the_damage_of_all_that_need_it_and_of_no_new_save(path):
    noise = random.Random(5).randbytes(5000)
    with Repository.open(path) as repository:
        first = save(repository, [noise], step=1, item_size=1, opaque=True)
        bases = [first.infos[0].id]
        longer = noise + b"and more"
        second = save(repository, [longer], step=2, item_size=1, opaque=True, bases=bases)
        other = save(repository, [b"other"], run="other", item_size=1, opaque=True)
        file, at = find(path, noise[:100])
        flip(file, at + 50)
        damaged = repository.verify("bytes").damaged_manifests
        assert damaged.keys() == {first.manifest_id, second.manifest_id}
        check(repository, other)
        third = save(repository, [longer + b"yet"], step=3, item_size=1, opaque=True, bases=bases)
        assert chains(repository, third) == [1]
        check(repository, third)


def test_numbers_without_planes_take_a_dictionary(path):
    table = bytearray(random.Random(6).randbytes(3 * layout.MIB))
    with Repository.open(path) as repository:
        first = save(repository, [bytes(table)], step=1, item_size=1)
        table[5000:5100] = bytes(100)
        bases = [first.infos[0].id]
        second = save(repository, [bytes(table)], step=2, item_size=1, bases=bases)
        assert second.infos[0].stored_bytes < 5000
        check(repository, second)


def test_a_copy_of_a_chunk_against_a_base_of_another_length_is_found(path):
    with Repository.open(path) as repository:
        saves = grow(repository, 3)
        shared = repository._shared()
        copies = Copies(shared, repository._workers(), None)
        chunks = [
            one
            for saved in saves
            for one in Reader(shared, repository._workers()).chunks_of(saved.infos[0].id)
        ]
        copies.look_for([identity for identity, _ in chunks])
        with shared.environment.read() as tx:
            assert any(
                row.base and tx.object(row.base).logical != row.logical
                for row in (tx.object(identity) for identity, _ in chunks)
            )
        for identity, length in chunks:
            copy = copies.find(identity)
            assert copy is not None
            assert (copy.logical, copy.refs) == (length, ())
