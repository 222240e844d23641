"""Compact of bytes that are no numbers: who stands on whom, and that it wins or writes nothing."""

from __future__ import annotations

import random

import numpy as np
import pytest

from casckpt.ids import ID_BYTES
from casckpt.store import Repository, columns, recoding
from tests.unit.store import stores
from tests.unit.store.test_dictionaries import chains

COUNT = 9


def threads(*versions: str) -> list[str]:
    """Return the threads of versions in which each letter is a chunk."""
    joined = [b"".join(letter.encode() * ID_BYTES for letter in version) for version in versions]
    return ["".join(chr(one[0]) for one in thread) for thread in columns._threads(joined)]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (["abc"], ["a", "b", "c"]),
        (["abc", "adc", "aec"], ["a", "bde", "c"]),
        # What was appended to the newer one took no place of the older.
        (["abc", "ab", "ad"], ["a", "bd", "c"]),
        # Two where one is now: both may resemble it, and not each other.
        (["a", "cd"], ["ac", "ad"]),
        (["ab", "cdb"], ["ac", "bd"]),
        (["abab", "abcb"], ["ac", "b"]),
        # What was gone for a version is where it was.
        (["ab", "ac", "ab"], ["a", "bc"]),
        (["", "a"], ["a"]),
    ],
)
def test_chunks_follow_those_that_took_their_place(versions, expected):
    assert threads(*versions) == expected


def test_every_chunk_is_in_a_thread_of_its_own_or_after_another():
    source = random.Random(7)
    for _ in range(200):
        versions = [
            "".join(source.choices("abcdefghijkl", k=source.randrange(9)))
            for _ in range(source.randrange(1, 6))
        ]
        found = threads(*versions)
        owned = [thread[0] for thread in found] + [one for thread in found for one in thread[1:]]
        assert set(owned) == set("".join(versions))
        after = [one for thread in found for one in thread[1:]]
        assert len(after) == len(set(after))


def saved_versions(repository: Repository, versions: list[bytes], *, opaque: bool):
    saved: list[stores.Saved] = []
    for step, data in enumerate(versions, 1):
        # Of arrays every fourth is whole, as a save has it.
        bases = [saved[-1].infos[0].id] if saved and (opaque or step % 4) else []
        saved.append(
            stores.save(repository, [data], step=step, item_size=1, opaque=opaque, bases=bases)
        )
    return saved


def lineage(saved: list[stores.Saved]) -> list[columns.Lineage]:
    blobs = tuple(one.infos[0].id for one in reversed(saved))
    return [columns.Lineage(blobs, saved[-1].infos[0].length, 1)]


def text_versions() -> list[bytes]:
    """Return a text of which some lines change, and that grows in its middle."""
    source = random.Random(1)
    lines = [b"%060d\n" % source.randrange(10**60) for _ in range(4000)]
    found = []
    for _ in range(COUNT):
        for _ in range(15):
            lines[source.randrange(len(lines))] = b"%060d\n" % source.randrange(10**60)
        lines.insert(source.randrange(len(lines)), b"another line\n")
        found.append(b"".join(lines))
    return found


def table_versions() -> list[bytes]:
    """Return a table of int8 of which a few rows change."""
    source = np.random.default_rng(0)
    table = source.integers(-128, 127, (3000, 512), np.int8)
    found = []
    for _ in range(COUNT):
        rows = source.integers(0, 3000, 10)
        table[rows] = source.integers(-128, 127, (10, 512), np.int8)
        found.append(table.tobytes())
    return found


@pytest.mark.parametrize(
    ("versions", "opaque", "left"), [(text_versions, True, 0.92), (table_versions, False, 0.5)]
)
def test_the_newest_is_whole_and_older_ones_take_less(repository, versions, opaque, left):
    saved = saved_versions(repository, versions(), opaque=opaque)
    before = repository.sizes().pack_bytes
    assert max(chains(repository, saved[-1])) > 1
    done = recoding.compact(repository, lineage(saved), "small")
    assert done.after_bytes < left * done.before_bytes
    assert repository.sizes().pack_bytes < before
    of_newest = chains(repository, saved[-1])
    assert sum(length > 1 for length in of_newest) <= len(of_newest) // 4
    for one in saved:
        stores.check(repository, one)
    assert not repository.verify("bytes").damaged
    assert recoding.compact(repository, lineage(saved), "small").recoded_count == 0


def test_what_does_not_win_is_not_written(repository):
    source = random.Random(2)
    versions = [source.randbytes(200_000) for _ in range(4)]
    saved = saved_versions(repository, versions, opaque=True)
    before = repository.sizes().pack_bytes
    done = recoding.compact(repository, lineage(saved), "small")
    assert done.recoded_count == 0
    assert done.looked_count > 0
    # Facts of the collection's own transactions, and no record that none needs.
    assert repository.sizes().pack_bytes < before + 20_000
    for one in saved:
        stores.check(repository, one)


def test_a_branch_stands_on_where_it_began(repository):
    versions = text_versions()
    trunk = saved_versions(repository, versions[:5], opaque=True)
    branch = stores.save(repository, [versions[5]], step=9, item_size=1, opaque=True)
    blobs = (trunk[2].infos[0].id, branch.infos[0].id)
    plan = [*lineage(trunk), columns.Lineage(blobs, branch.infos[0].length, 1)]
    recoding.compact(repository, plan, "small")
    assert max(chains(repository, branch)) > max(chains(repository, trunk[2])) - 1 > 0
    for one in (*trunk, branch):
        stores.check(repository, one)
