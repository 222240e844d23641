"""How parts of a value are written one after the other: a tag, a length, and the bytes."""

from __future__ import annotations


def put(out: bytearray, tag: bytes, data: bytes | bytearray | memoryview | str) -> None:
    """Append a part; no two lists of parts give the same bytes."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    out += tag
    out += len(data).to_bytes(8, "little")
    out += data
