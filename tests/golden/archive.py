"""How a golden store is kept: the archive of its folder, and what is expected of it, as JSON."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from casckpt.store import layout

_STORE, _EXPECTED = "store.tar.xz", "expected.json"


def versions(pattern: str) -> list[Path]:
    """Return the folders of golden stores that a glob matches."""
    return sorted(path for path in Path(__file__).parent.glob(pattern) if path.is_dir())


def pack(store: Path, expected: Any, folder: Path) -> None:
    """Keep a store, but for its ballast, and what is expected of it in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _EXPECTED).write_text(json.dumps(expected, indent=1) + "\n")
    with tarfile.open(folder / _STORE, "w:xz") as archive:
        for file in sorted(store.rglob("*")):
            if file.name != layout.BALLAST_FILE:
                archive.add(file, file.relative_to(store), recursive=False)


def unpack(folder: Path, store: Path) -> Any:
    """Put the store that a folder keeps at a place; return what is expected of it."""
    with tarfile.open(folder / _STORE) as archive:
        archive.extractall(store, filter="data")
    return json.loads((folder / _EXPECTED).read_text())
