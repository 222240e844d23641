from __future__ import annotations

import random
import struct

import lmdb
import pytest

from casckpt.errors import Corrupt
from casckpt.store.pages import check_pages

PAGE = 4096


def make(folder, rounds, *, values=100):
    """An index in which pages were freed and used again, with long values and nested writes."""
    draw = random.Random(rounds)
    env = lmdb.open(str(folder), map_size=1 << 30, max_dbs=4, lib_version=0, max_spare_txns=0)
    tables = [env.open_db(name) for name in (b"objects", b"packs")]
    for turn in range(rounds):
        with env.begin(write=True) as tx:
            for _ in range(values):
                key = draw.randbytes(4)
                tx.put(key, draw.randbytes(draw.choice([40, 60, 9000])), db=draw.choice(tables))
            with env.begin(write=True, parent=tx, db=tables[0]) as inner:
                for key, _ in list(inner.cursor())[: values // 2]:
                    inner.delete(key)
                if turn % 3 == 0:
                    inner.abort()
    env.close()
    return folder / "data.mdb"


@pytest.mark.parametrize("rounds", [0, 1, 5, 40])
def test_a_file_that_lmdb_wrote_passes(tmp_path, rounds):
    check_pages(make(tmp_path, rounds))


def newest(data):
    """Return (roots of free list and tables) of the newest head."""
    heads = []
    for offset in (0, PAGE):
        at = offset + 16 + 24
        (free,) = struct.unpack_from("<Q", data, at + 40)
        (main,) = struct.unpack_from("<Q", data, at + 88)
        (transaction,) = struct.unpack_from("<Q", data, at + 104)
        heads.append((transaction, free, main))
    return max(heads)[1:]


def first_free_list(data):
    """Return the offset of the first value on the root page of the free list."""
    start = newest(data)[0] * PAGE
    (node,) = struct.unpack_from("<H", data, start + 16)
    return start + node + 16


def test_a_used_page_on_the_free_list_is_found(tmp_path):
    file = make(tmp_path, 3, values=8)
    data = bytearray(file.read_bytes())
    at = first_free_list(data)
    struct.pack_into("<Q", data, at + 8, newest(data)[1])
    file.write_bytes(data)
    with pytest.raises(Corrupt):
        check_pages(file)


@pytest.mark.parametrize("value", [2**40, 2**63])
def test_an_impossible_free_list_is_found(tmp_path, value):
    file = make(tmp_path, 3, values=8)
    data = bytearray(file.read_bytes())
    struct.pack_into("<Q", data, first_free_list(data), value)
    file.write_bytes(data)
    with pytest.raises(Corrupt):
        check_pages(file)


def test_a_cut_file_is_found(tmp_path):
    file = make(tmp_path, 5)
    data = file.read_bytes()
    for length in (100, PAGE, 3 * PAGE, len(data) // 2):
        file.write_bytes(data[:length])
        with pytest.raises(Corrupt):
            check_pages(file)


def test_damage_never_raises_anything_else(tmp_path):
    file = make(tmp_path, 5, values=20)
    whole = file.read_bytes()
    draw = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 8])):
            data[draw.randrange(len(data)) & ~0xF80] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        try:
            check_pages(file)
        except Corrupt:
            continue


def tables_of(data):
    """Yield the offset of the record of each table, on the root page of the tables."""
    start = newest(data)[1] * PAGE
    lower = struct.unpack_from("<H", data, start + 12)[0]
    for node in struct.unpack_from(f"<{(lower - 16) // 2}H", data, start + 16):
        length = struct.unpack_from("<H", data, start + node + 6)[0]
        yield start + node + 8 + length


@pytest.mark.parametrize("rounds", [1, 40])
def test_keys_out_of_order_are_found(tmp_path, rounds):
    """A look-up would miss what reading all rows still finds; 40 rounds make branch pages."""
    file = make(tmp_path, rounds)
    data = bytearray(file.read_bytes())
    root = struct.unpack_from("<Q", data, next(tables_of(data)) + 40)[0] * PAGE
    # What each two entries begin with changes places, as after a flipped bit in one of them.
    data[root + 16 : root + 18], data[root + 18 : root + 20] = (
        data[root + 18 : root + 20],
        data[root + 16 : root + 18],
    )
    file.write_bytes(data)
    with pytest.raises(Corrupt):
        check_pages(file)


@pytest.mark.parametrize("flag", [2, 4, 8])
def test_a_table_that_claims_another_order_is_found(tmp_path, flag):
    file = make(tmp_path, 1)
    data = bytearray(file.read_bytes())
    data[next(tables_of(data)) + 4] ^= flag
    file.write_bytes(data)
    with pytest.raises(Corrupt, match="order"):
        check_pages(file)


def head_of(data):
    """Return the offset of the newest head's records of tables."""
    heads = [offset + 16 + 24 for offset in (0, PAGE)]
    return max(heads, key=lambda at: struct.unpack_from("<Q", data, at + 104))


def branch_of(data):
    """Return the offset of a branch page below a table."""
    root = struct.unpack_from("<Q", data, next(tables_of(data)) + 40)[0] * PAGE
    assert struct.unpack_from("<H", data, root + 10)[0] & 1
    return root


def no_page_size(data):
    for at in (16 + 24, PAGE + 16 + 24):
        struct.pack_into("<I", data, at, 4097)


def too_many_pages(data):
    struct.pack_into("<Q", data, head_of(data) + 96, 2**40)


def bounds(data):
    struct.pack_into("<H", data, branch_of(data) + 12, PAGE + 2)


def no_entries(data):
    struct.pack_into("<H", data, branch_of(data) + 12, 16)


def unsorted_lists(data):
    start = newest(data)[0] * PAGE
    (node,) = struct.unpack_from("<H", data, start + 16)
    struct.pack_into("<Q", data, start + node + 8, 2**50)


def unsorted_list(data):
    at = first_free_list(data)
    (count,) = struct.unpack_from("<Q", data, at)
    assert count > 1
    first = data[at + 8 : at + 16]
    data[at + 8 : at + 16], data[at + 16 : at + 24] = data[at + 16 : at + 24], first


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (no_page_size, "pages of 4097 bytes"),
        (too_many_pages, "is cut off"),
        (bounds, "has impossible bounds"),
        (no_entries, "leads nowhere"),
        (unsorted_lists, "lists of free pages are out of order"),
        (unsorted_list, "a free list is out of order"),
    ],
)
def test_what_is_wrong_with_a_page_is_said(tmp_path, forge, why):
    file = make(tmp_path, 40)
    data = bytearray(file.read_bytes())
    forge(data)
    file.write_bytes(data)
    with pytest.raises(Corrupt, match=why):
        check_pages(file)


def test_a_free_list_longer_than_a_page_passes_and_is_looked_into(tmp_path):
    env = lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=2, lib_version=0, max_spare_txns=0)
    table = env.open_db(b"objects")
    keys = [number.to_bytes(4, "big") for number in range(700)]
    with env.begin(write=True, db=table) as tx:
        for key in keys:
            tx.put(key, bytes(9000))
    with env.begin(write=True, db=table) as tx:
        for key in keys:
            tx.delete(key)
    env.close()
    file = tmp_path / "data.mdb"
    check_pages(file)
    data = bytearray(file.read_bytes())
    start = newest(data)[0] * PAGE
    lower = struct.unpack_from("<H", data, start + 12)[0]
    for node in struct.unpack_from(f"<{(lower - 16) // 2}H", data, start + 16):
        low, high, flags, key = struct.unpack_from("<4H", data, start + node)
        if flags & 1:
            (first,) = struct.unpack_from("<Q", data, start + node + 8 + key)
            struct.pack_into("<Q", data, first * PAGE + 16, low | high << 16)
            break
    else:
        raise AssertionError("no list has pages of its own")
    file.write_bytes(data)
    with pytest.raises(Corrupt, match="a free list of"):
        check_pages(file)
