"""Content-defined chunking: cut bytes where their content says so.

Equal stretches of two streams get equal chunks even when they stand at other offsets. Gear hash
over a window of 64 bytes, FastCDC's normalised chunking at level 2. The Gear table is
derive_key("casckpt gear v1", b"") as 256 little-endian 64-bit words, so anyone can rebuild it.

Source: Xia et al., "FastCDC", USENIX ATC 2016, sections 3.2 to 3.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casckpt.native._binding import check, ffi, lib, readable

if TYPE_CHECKING:
    from typing_extensions import Buffer

GEAR_CONTEXT: Final = "casckpt gear v1"
"""FORMAT: the label the Gear table is derived from."""

GEAR_TABLE_BYTES: Final = 2048


def gear_table() -> list[int]:
    """Return the 256 words of the Gear table."""
    out = ffi.new("uint8_t[]", GEAR_TABLE_BYTES)
    check(lib.cas_gear_table(out, GEAR_TABLE_BYTES), "gear_table")
    raw = bytes(ffi.buffer(out))
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]


class Chunker:
    """Find the chunk ends of a stream that arrives in pieces.

    The cuts depend on the stream alone, never on how it was split into `feed` calls. Not safe for
    use by two threads.

    Args:
        min_bytes: no chunk but the last is shorter; at least 64, the hash's window.
        avg_bytes: where the test gets easier, near the mean; a power of two, at least 256.
        max_bytes: no chunk is longer.

    Raises:
        ValueError: unless 64 <= min <= avg <= max and avg is a power of two.
    """

    def __init__(self, min_bytes: int, avg_bytes: int, max_bytes: int) -> None:
        self._min_bytes = min_bytes
        self._state = ffi.new("cas_chunker *")
        ordered = 64 <= min_bytes <= avg_bytes <= max_bytes < 2**62
        status = lib.CAS_ERR_PARAMETER
        if ordered:
            status = lib.cas_chunker_init(self._state, min_bytes, avg_bytes, max_bytes)
        check(status, f"chunk sizes {min_bytes}/{avg_bytes}/{max_bytes}")

    def feed(self, data: Buffer) -> list[int]:
        """Add `data`; return the stream offsets at which chunks ended in it."""
        view = readable(data)
        capacity = len(view) // self._min_bytes + 1
        ends = ffi.new("uint64_t[]", capacity)
        count = ffi.new("size_t *")
        check(lib.cas_chunker_feed(self._state, view, len(view), ends, capacity, count), "feed")
        return list(ffi.unpack(ends, count[0])) if count[0] else []

    def finish(self) -> list[int]:
        """End the stream: its length if bytes were left after the last cut, else nothing."""
        end = ffi.new("uint64_t *")
        has_end = ffi.new("int32_t *")
        check(lib.cas_chunker_finish(self._state, end, has_end), "finish")
        return [end[0]] if has_end[0] else []


def cut_points(data: Buffer, *, min_bytes: int, avg_bytes: int, max_bytes: int) -> list[int]:
    """Return where the chunks of `data` end, ascending; the last is len(data).

    No data has no chunks: []. Arguments and errors as for `Chunker`.
    """
    chunker = Chunker(min_bytes, avg_bytes, max_bytes)
    return chunker.feed(data) + chunker.finish()
