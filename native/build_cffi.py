"""Describe the cffi API-mode extension `casckpt.native._core` and emit its C source.

The declarations are taken from the public header as it stands, between its two `cffi` marks, so
that header and binding cannot drift apart. API mode (not ABI mode): the compiler checks every call,
and the GIL is released around each.
"""

from __future__ import annotations

from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
HEADER = HERE / "include" / "casckpt.h"
GENERATED = HERE / "_core.c"


def declarations() -> str:
    """Return the part of the public header that cffi parses."""
    text = HEADER.read_text(encoding="utf-8")
    return text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]


def builder() -> cffi.FFI:
    """Return the configured builder; sources and flags are in pyproject.toml."""
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    ffi.set_source("casckpt.native._core", '#include "casckpt.h"\n')
    return ffi


def emit() -> Path:
    """Write the extension's C source beside this file if it changed, and return its path."""
    fresh = GENERATED.with_suffix(".c.new")
    builder().emit_c_code(str(fresh))
    if GENERATED.exists() and GENERATED.read_bytes() == fresh.read_bytes():
        fresh.unlink()
    else:
        fresh.replace(GENERATED)
    return GENERATED


if __name__ == "__main__":
    emit()
