"""Making stores, saving to them and reading back, in as few words as a test wants to spend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from casckpt.store import (
    BlobInfo,
    BlobRead,
    BlobSource,
    CommitRequest,
    Repository,
    layout,
    opening,
    packs,
    records,
)
from casckpt.store.pack_writer import PackWriter

MIB = 1 << 20


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was committed, and what it holds."""

    manifest_id: bytes
    seq: int
    infos: list[BlobInfo]
    data: list[bytes]


def copy_store(template: Path, path: Path) -> Path:
    """Copy an empty store, as if it had just been made and closed in order."""
    shutil.copytree(template, path, ignore=shutil.ignore_patterns("ballast"))
    descriptor = os.open(path / "ballast", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 4 * MIB)
    os.close(descriptor)
    opening.write_stamp(path / "index.0", 0)
    return path


def save(
    repository: Repository,
    data: Sequence[bytes],
    *,
    run: str = "run",
    line: int = 0,
    step: int = 1,
    item_size: int = 4,
    opaque: bool = False,
    level: str | None = None,
    body: bytes | None = None,
    payload: bytes = b"\x01payload",
    bases: Sequence[bytes] = (),
    edges: Sequence[int] = (),
) -> Saved:
    """Commit a checkpoint of these blobs at the head of the line."""
    head = repository.head(run, line)
    with repository.saver(level) as saver:
        infos = saver.put_blobs(
            BlobSource([piece], item_size, opaque, base, edges)
            for piece, base in zip_longest(data, bases)
        )
        refs = list(dict.fromkeys(info.id for info in infos))
        manifest = saver.put_manifest(refs, body or f"{run} {step}".encode())
        seq = saver.commit(CommitRequest(run, line, step, 0, manifest.id, payload, head))
    return Saved(manifest.id, seq, infos, list(data))


def request(manifest_id: bytes, head: int | None, step: int = 1, **more: Any) -> CommitRequest:
    """Return what to commit a manifest with, if this is the head of its line."""
    return CommitRequest("run", 0, step, 0, manifest_id, b"p", head, **more)


def lose_index(path: Path) -> None:
    """Leave only the packs of a store."""
    for folder in path.glob("index.*"):
        shutil.rmtree(folder)
    (path / "CURRENT").unlink(missing_ok=True)


def read(
    repository: Repository, info: BlobInfo, offset: int = 0, length: int | None = None
) -> bytes:
    """Return bytes of a blob."""
    dest = bytearray(info.length - offset if length is None else length)
    repository.read_blobs([BlobRead(info.id, info.length, offset, dest)])
    return bytes(dest)


def check(repository: Repository, saved: Saved) -> None:
    """Assert that a checkpoint comes back bit for bit, through its manifest."""
    refs, _ = repository.read_manifest(saved.manifest_id)
    assert refs == list(dict.fromkeys(info.id for info in saved.infos))
    for info, data in zip(saved.infos, saved.data, strict=True):
        assert read(repository, info) == data


def pack_files(path: Path) -> list[Path]:
    """Return the packs of a store, largest last."""
    return sorted(path.glob("packs/*/*.pack"), key=lambda file: file.stat().st_size)


def flip(file: Path, offset: int, mask: int = 1) -> None:
    """Flip bits of one byte of a file."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        old = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([old ^ mask]))


def find(path: Path, needle: bytes) -> tuple[Path, int]:
    """Return the pack that holds these bytes, and where."""
    for file in pack_files(path):
        at = file.read_bytes().find(needle)
        if at >= 0:
            return file, at
    raise AssertionError("no pack holds these bytes as they are")


def append(pack: PackWriter, payload: bytes, refs: tuple[bytes, ...] = ()) -> records.Record:
    """Append a raw chunk to a pack."""
    identity = records.chunk_context().hash(payload)
    return pack.append(
        layout.TYPE_CHUNK, layout.ENCODING_RAW, identity, len(payload), refs, payload
    )


def scan(pack: PackWriter, problems=None, start=layout.PACK_HEADER_BYTES) -> list[records.Record]:
    """Return the records that a scan of the pack's file finds."""
    descriptor = os.open(pack.path, os.O_RDONLY)
    try:
        return list(packs.scan_pack(descriptor, pack.path, pack.uuid, start, problems=problems))
    finally:
        os.close(descriptor)
