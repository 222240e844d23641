"""docs/format.md is enough: a reader made from it alone, and its byte tables against the code."""

from __future__ import annotations

import functools
import json
import os
import re
import struct
from pathlib import Path

import blake3
import pytest
import zstandard

from casckpt.checkpoint import payloads
from casckpt.native.reference_entropy import entropy_decode
from casckpt.store import Repository, codec, facts, layout, lists, packs, records, rows, sessions
from tests.unit.store.stores import MIB, save

DOCUMENT = Path(__file__).parents[3] / "docs" / "format.md"


# ---- a reader that knows the document only: no import of casckpt below this line is used in it


def derive(context: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context=context).digest()


def records_of(pack: Path, store_uuid: bytes):
    """Yield (type, encoding, id, refs, logical length, payload) of a pack, every check made."""
    data = pack.read_bytes()
    magic, version, _, uuid, store, _ = struct.unpack_from("<8sII16s16s16s", data)
    assert magic == b"\x89CASPACK"
    assert version == 1
    assert data[64:80] == blake3.blake3(data[:64]).digest(16)
    assert (uuid.hex() + ".pack", store) == (pack.name, store_uuid)
    at = 80
    while data[at : at + 8] == bytes.fromhex("ca 53 52 45 43 0d 0a 1a"):
        fixed = struct.unpack_from("<8sBBBBI32sQQ16s", data, at)
        _, version, kind, encoding, _, count, identity, logical, stored, check = fixed
        assert version == 1
        body = at + 80 + 32 * count
        key = uuid + struct.pack("<QQ", at, 0)
        assert data[body : body + 16] == blake3.blake3(data[at:body], key=key).digest(16)
        payload = data[body + 16 : body + 16 + stored]
        if (kind, encoding) == (1, 0):
            assert check == identity[:16] == derive("casckpt chunk v1", payload)[:16]
        else:
            assert check == blake3.blake3(payload).digest(16)
        refs = [data[i : i + 32] for i in range(at + 80, body, 32)]
        yield kind, encoding, identity, refs, logical, payload
        at = body + 16 + stored
    footer = data[at:]
    if footer:
        magic, end, _, check = struct.unpack("<8sQQ16s", footer)
        assert magic == bytes.fromhex("ca 53 45 4e 44 0d 0a 1a")
        assert end == at
        assert check == blake3.blake3(footer[:24]).digest(16)


def unzstd(frame: bytes, length: int) -> bytes:
    assert zstandard.frame_content_size(frame) == length
    return zstandard.ZstdDecompressor().decompress(frame)


def unzstd_with(frame: bytes, length: int, base: bytes) -> bytes:
    assert zstandard.frame_content_size(frame) == length
    raw = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return zstandard.ZstdDecompressor(dict_data=raw).decompress(frame)


def unplane(payload: bytes, length: int, base: bytes | None) -> bytes:
    predictor, shape = payload[0], payload[1]
    width = shape - 0x80
    count, bits = length // width, 8 * width
    at, planes = 2, []
    for _ in range(width):
        method, stored = struct.unpack_from("<BI", payload, at)
        body = payload[at + 5 : at + 5 + stored]
        at += 5 + stored
        planes.append(
            {
                0: lambda b: b,
                1: lambda b: b * count,
                2: lambda b: unzstd(b, count),
                # The slow reference is the document's stream in Python, and knows no more than it.
                3: lambda b: entropy_decode(b, count),
            }[method](body)
        )
    out = bytearray()
    mask = 2**bits - 1
    for number in range(count):
        item = int.from_bytes(bytes(plane[number] for plane in planes), "big")
        if predictor:
            other = int.from_bytes(base[number * width : (number + 1) * width], "little")
            other = (other << 1 | other >> (bits - 1)) & mask
            item = (other + ((item >> 1) ^ -(item & 1))) & mask if predictor == 1 else item ^ other
        out += ((item >> 1) | (item & 1) << (bits - 1)).to_bytes(width, "little")
    return bytes(out) + payload[at:]


class Stranger:
    """Reads a store from its packs."""

    def __init__(self, store: Path) -> None:
        described = json.loads((store / "format.json").read_text())
        assert described["version"] == 1
        assert set(described["read"]) <= {"packs-1", "planes-1", "entropy-1", "dictionary-1"}
        self.objects = {}
        self.facts = {}
        for pack in store.glob("packs/*/*.pack"):
            for kind, encoding, identity, refs, logical, payload in records_of(
                pack, bytes.fromhex(described["uuid"])
            ):
                if kind == 4:
                    body = self.decode(encoding, payload, logical)
                    assert identity == derive("casckpt fact v1", bytes(4) + body)
                    self.facts[struct.unpack_from("<Q", body)[0]] = body
                elif kind != 5:
                    self.objects[identity] = (kind, encoding, refs, logical, payload)

    def decode(
        self, encoding: int, payload: bytes, logical: int, base: bytes | None = None
    ) -> bytes:
        if encoding == 0:
            return payload
        if encoding == 1:
            return unzstd(payload, logical)
        return {2: unplane, 3: unzstd_with}[encoding](payload, logical, base)

    @functools.cache  # noqa: B019  (lives as long as a test)
    def object(self, identity: bytes) -> tuple[int, list[bytes], bytes]:
        kind, encoding, refs, logical, payload = self.objects[identity]
        base = self.object(refs[0])[2] if kind == 1 and refs else None
        body = self.decode(encoding, payload, logical, base)
        assert len(body) == logical
        if kind == 1:
            assert derive("casckpt chunk v1", body) == identity
        else:
            context = {2: "casckpt list v1", 3: "casckpt manifest v1"}[kind]
            assert derive(context, struct.pack("<I", len(refs)) + b"".join(refs) + body) == identity
        return kind, refs, body

    def blob(self, identity: bytes) -> bytes:
        kind, refs, body = self.object(identity)
        if kind == 1:
            return body
        _, count = struct.unpack_from("<BI", body)
        lengths = struct.unpack_from(f"<{count}Q", body, 5)
        members = [self.blob(ref) for ref in refs]
        assert [len(member) for member in members] == list(lengths)
        return b"".join(members)

    def checkpoints(self) -> dict[tuple[str, int, int], tuple[bytes, bytes]]:
        """Return run, line and step of live checkpoints, with manifest id and payload."""
        table: dict[bytes, bytes] = {}
        for seq in sorted(self.facts):
            body = self.facts[seq]
            (count,) = struct.unpack_from("<I", body, 16)
            at = 20
            for _ in range(count):
                number, key_length, present, length = struct.unpack_from("<BHBI", body, at)
                key = body[at + 8 : at + 8 + key_length]
                value = body[at + 8 + key_length : at + 8 + key_length + length]
                at += 8 + key_length + length
                if number == 0:
                    table.pop(key, None)
                    if present:
                        table[key] = value
        found = {}
        for value in table.values():
            version, state, _, count = struct.unpack_from("<BBHI", value)
            if (version, state, count) == (1, 0, 1):
                line, length, step, _ = struct.unpack_from("<IIQQ", value, 40)
                run = value[64 : 64 + length].decode()
                found[run, line, step] = (value[8:40], value[64 + length :])
        return found


# ---- the tests


def test_a_reader_made_from_the_document_reads_a_store(path):
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
    stranger = Stranger(path)
    found = stranger.checkpoints()
    assert found.keys() == {("a/run", 0, 7), ("text", 0, 1), ("edited", 0, 1), ("edited", 0, 2)}
    manifest_id, payload = found["a/run", 0, 7]
    assert (manifest_id, payload) == (saved.manifest_id, b"\x01payload")
    kind, refs, body = stranger.object(manifest_id)
    assert (kind, body) == (3, b'{"found":"by a stranger"}')
    assert [stranger.blob(ref) for ref in refs] == saved.data
    assert stranger.blob(opaque.infos[0].id) == text
    assert stranger.blob(edit.infos[0].id) == edited[1]
    # Everything the document describes was met: planes, lists of lists, a body and a chunk in zstd.
    kinds = {(kind, encoding) for kind, encoding, *_ in stranger.objects.values()}
    assert {(1, 0), (1, 1), (1, 2), (1, 3), (2, 1), (3, 0)} <= kinds
    assert any(
        kind == 2 and stranger.object(identity)[2][0] == 2
        for identity, (kind, *_) in stranger.objects.items()
    )


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
    assert unplane(payload, length, base) == chunk
    out = bytearray(length)
    codec.decode_chunk(layout.ENCODING_PLANES, payload, memoryview(out), base)
    assert out == chunk


def test_deltas_of_the_codec_decode_as_the_document_says():
    import numpy as np

    base = np.random.default_rng(1).normal(0, 0.02, 3000).astype("<f4")
    chunk = (base * 1.0001).astype("<f4").tobytes()
    encoded = codec.encode_chunk(chunk, 4, "balanced", base.tobytes())
    assert encoded.uses_base
    assert unplane(bytes(encoded.payload), len(chunk), base.tobytes()) == chunk


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
