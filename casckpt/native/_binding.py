"""Shared by the modules of this package: buffers in, C status out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casckpt.native._core import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["check", "ffi", "lib", "readable", "words", "writable"]

# `check` turns these into ValueError; the wording is the caller's mistake, not ours.
_MEANINGS: dict[int, str] = {
    lib.CAS_ERR_NULL: "a buffer is missing",
    lib.CAS_ERR_SIZE: "buffer sizes do not fit each other",
    lib.CAS_ERR_PARAMETER: "a parameter is out of range",
    lib.CAS_ERR_OVERLAP: "source and destination share memory",
    lib.CAS_ERR_CAPACITY: "the destination has no room",
    lib.CAS_ERR_KERNEL: "this processor or build has no such kernel",
    lib.CAS_ERR_DATA: "the bytes do not decode to the length asked for",
    lib.CAS_ERR_NEWER: "a layout or method of a newer version",
}


def check(status: int, what: str) -> None:
    """Raise ValueError when a C call refused its arguments."""
    if status != lib.CAS_OK:
        raise ValueError(f"{what}: {_MEANINGS.get(status, f'status {status}')}")


def readable(data: Buffer) -> Any:
    """Return a C view of `data` without copying; it keeps `data` alive.

    Raises:
        TypeError: when `data` has no buffer.
        BufferError or ValueError: when the buffer is not contiguous.
    """
    return ffi.from_buffer("uint8_t[]", data)


def writable(out: Buffer) -> Any:
    """Return a C view of `out` to write to; a read-only buffer raises BufferError or ValueError."""
    return ffi.from_buffer("uint8_t[]", out, require_writable=True)


def words(data: Buffer) -> Any:
    """Return a C view of `data` as 64-bit words; its size must be a multiple of 8 bytes."""
    if memoryview(data).nbytes % 8:
        raise ValueError("the buffer is not a whole number of 64-bit words")
    return ffi.from_buffer("uint64_t[]", data)
