"""docs/format.md against the code: its byte tables, its names and numbers, its encodings."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import blake3
import pytest

from casckpt.checkpoint import payloads
from casckpt.store import Repository, codec, facts, layout, lists, packs, records, rows, sessions
from tests.reader import codec as reader
from tests.reader.store import Row, open_index, open_packs
from tests.unit.store.stores import MIB, save

DOCUMENT = Path(__file__).parents[3] / "docs" / "format.md"


def test_a_store_reads_as_the_document_says(path):
    import numpy as np

    weights = np.random.default_rng(0).normal(0, 0.02, 70_000).astype("<f4").tobytes()
    text = b"opaque bytes, cut by content " * 4000
    with Repository.open(path) as repository:
        saved = save(
            repository,
            [weights, b"", bytes(70 * MIB), os.urandom(MIB + 3)],
            run="a/run",
            step=7,
            body=b'{"found":"by a stranger"}',
            payload=b"\x01payload",
        )
        opaque = save(repository, [text], run="text", step=1, item_size=1, opaque=True)
        random = os.urandom(2000)
        edited = [random, random[:1000] + b"two more words" + random[1000:]]
        bases = [save(repository, edited[:1], run="edited", item_size=1, opaque=True).infos[0].id]
        edit = save(
            repository, edited[1:], run="edited", step=2, item_size=1, opaque=True, bases=bases
        )
        gone = save(repository, [b"gone"], run="gone")
        repository.trash([("gone", gone.seq)])
    for opened in (open_index(path), open_packs(path)):
        rows_found = [Row.parse(value) for value in opened.rows["checkpoints"].values()]
        assert sorted(row.state for row in rows_found) == [0, 0, 0, 0, 1]
        (row,) = (row for row in rows_found if row.ids == [saved.manifest_id])
        assert row.payload == struct.pack("<IIQQ", 0, 5, 7, 0) + b"a/run" + b"\x01payload"
        refs, body = opened.body(saved.manifest_id, reader.MANIFEST)
        assert body == b'{"found":"by a stranger"}'
        assert [opened.blob(ref) for ref in refs] == saved.data
        assert opened.blob(opaque.infos[0].id, len(text)) == text
        assert opened.blob(edit.infos[0].id) == edited[1]
        # Lists of lists were met, and chunks that have another as their dictionary.
        assert opened.body(saved.infos[2].id, reader.LIST)[1][0] == 2
        assert opened.find(edit.infos[0].id).encoding == reader.DICTIONARY


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("predictor", ["none", "sub", "xor"])
def test_planes_decode_as_the_document_says(width, predictor):
    from casckpt import native

    length = 5000 + width // 2
    base = os.urandom(length)
    chunk = bytearray(base)
    chunk[::7] = os.urandom(len(chunk[::7]))
    planes = bytearray(length)
    if predictor == "none":
        native.split_planes(chunk, planes, width, True)
    else:
        {"sub": native.sub_split, "xor": native.xor_split}[predictor](
            chunk, base, planes, width, True
        )
    count = length // width
    payload = bytes([["none", "sub", "xor"].index(predictor), 0x80 + width])
    for number in range(width):
        payload += struct.pack("<BI", 0, count) + planes[number * count : (number + 1) * count]
    payload += planes[width * count :]
    assert reader.decode(reader.PLANES, bytes(payload), length, base) == chunk
    out = bytearray(length)
    codec.decode_chunk(layout.ENCODING_PLANES, payload, memoryview(out), base)
    assert out == chunk


def test_deltas_of_the_codec_decode_as_the_document_says():
    import numpy as np

    base = np.random.default_rng(1).normal(0, 0.02, 3000).astype("<f4")
    chunk = (base * 1.0001).astype("<f4").tobytes()
    encoded = codec.encode_chunk(chunk, 4, "balanced", base.tobytes())
    assert encoded.uses_base
    payload = bytes(encoded.payload)
    assert reader.decode(encoded.encoding, payload, len(chunk), base.tobytes()) == chunk


def test_the_gear_table_and_cut_rule_are_those_of_the_document():
    from casckpt import native

    raw = blake3.blake3(b"", derive_key_context="casckpt gear v1").digest(2048)
    gear = struct.unpack("<256Q", raw)
    data = os.urandom(60_000)
    least, average, most = 2048, 8192, 32_768
    ends, start = [], 0
    while start < len(data):
        end = min(start + most, len(data))
        for cut in range(min(start + least, end), end):
            k = 13 + (2 if cut - start < average else -2)
            window = data[cut - 64 : cut]
            h = sum(gear[byte] << (63 - i) for i, byte in enumerate(window)) % 2**64
            if h >> (64 - k) == 0:
                end = cut
                break
        ends.append(end)
        start = end
    assert native.cut_points(data, min_bytes=least, avg_bytes=average, max_bytes=most) == ends


def tables() -> dict[str, tuple[int, list[tuple[int, int]]]]:
    """Return the byte tables of the document: caption -> (bytes, [(offset, size), ...])."""
    found: dict[str, tuple[int, list[tuple[int, int]]]] = {}
    current: list[tuple[int, int]] | None = None
    for line in DOCUMENT.read_text().splitlines():
        caption = re.match(r"Table: (.*) \((\d+) bytes", line)
        if caption:
            current = []
            found[caption[1]] = (int(caption[2]), current)
        row = re.match(r"\| (\d+) \| (\d+) \|", line)
        if row and current is not None:
            current.append((int(row[1]), int(row[2])))
        elif line.startswith("#"):
            current = None
    return found


STRUCTURES = {
    "pack header": records._HEADER.format + "16s",
    "record fixed part": records._FIXED.format,
    "footer": "<8sQQ16s",
    "list body": lists._HEAD.format,
    "objects row": rows._OBJECT.format,
    "packs row": rows._PACK.format,
    "row head": rows._ROW.format,
    "trash": rows._TRASH.format,
    "place": rows._PLACE.format,
    "checkpoint payload": payloads._HEAD.format,
    "session": sessions._SESSION.format + "16s",
    "fact body": facts._FACT.format,
    "snapshot body": facts._SNAPSHOT.format,
    "change": facts._CHANGE.format,
}


@pytest.mark.parametrize("caption", sorted(tables()))
def test_every_byte_table_is_that_of_the_code(caption):
    total, fields = tables()[caption]
    sizes = [
        struct.calcsize("<" + code) for code in re.findall(r"\d*[a-zA-Z]", STRUCTURES[caption])
    ]
    offsets = [sum(sizes[:number]) for number in range(len(sizes))]
    assert fields == list(zip(offsets, sizes, strict=True))
    assert total == sum(sizes) == struct.calcsize(STRUCTURES[caption])


def test_every_structure_has_a_table():
    assert tables().keys() == STRUCTURES.keys()
    assert records.FOOTER_BYTES == 40
    assert packs.records.OVERHEAD_BYTES == 96


def test_names_and_numbers_of_the_code_stand_in_the_document():
    text = DOCUMENT.read_text()
    for name in (*layout.READ_FEATURES, *layout.WRITE_FEATURES, *layout.COLLECT_FEATURES):
        assert f"`{name}`" in text
    for context in ("CHUNK", "LIST", "MANIFEST", "FACT", "SNAPSHOT", "ROW"):
        assert f'"{getattr(layout, context + "_CONTEXT")}"' in text
    for table in layout.TABLES:
        assert f"`{table}`" in text
    for magic in (layout.PACK_MAGIC, layout.RECORD_MAGIC, layout.FOOTER_MAGIC):
        assert magic.hex(" ") in text
    for number in (layout.REFS_MAX, layout.CHUNK_MAX_BYTES):
        assert f"{number:,}" in text
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(facts.FACT_TABLES))
    assert numbered in text


def test_every_number_of_meta_is_in_the_document(repository):
    save(repository, [b"x"], run="a")
    saved = save(repository, [os.urandom(MIB)], run="b")
    repository.trash([("b", saved.seq)])
    repository.gc(now=True)
    text = DOCUMENT.read_text()
    with repository._shared().environment.read() as tx:
        for key, _ in tx.scan("meta"):
            assert f"| `{key.decode()}` |" in text
