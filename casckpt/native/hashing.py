"""BLAKE3: the id of everything casckpt stores.

One-shot functions, a streaming `Hasher`, and `IdContext` for many ids of one kind. All accept any
contiguous buffer and run without the GIL.

Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere" (2020).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, Self, cast

from casckpt.native._binding import check, ffi, lib, readable, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

ID_SIZE: Final = 32
"""Bytes in an id: 256 bits, so that accidental and deliberate collisions are out of reach."""

_NO_KEY: Final = (ffi.NULL, 0)


def _hash(mode: int, key: tuple[Any, int], data: Buffer, out_len: int) -> bytes:
    if out_len < 0:
        raise ValueError(f"out_len must not be negative, got {out_len}")
    view = readable(data)
    out = ffi.new("uint8_t[]", out_len)
    check(lib.cas_hash(mode, *key, view, len(view), out, out_len), "hash")
    return bytes(ffi.buffer(out))


def _key(key: Buffer) -> tuple[Any, int]:
    view = readable(key)
    if len(view) != ID_SIZE:
        raise ValueError(f"a key has {ID_SIZE} bytes, got {len(view)}")
    return view, ID_SIZE


def _context_key(context: str) -> bytes:
    return _hash(lib.CAS_MODE_DERIVE_CONTEXT, _NO_KEY, context.encode("utf-8"), ID_SIZE)


def blake3(data: Buffer, *, out_len: int = ID_SIZE) -> bytes:
    """Return the first `out_len` bytes of the BLAKE3 hash of `data`."""
    return _hash(lib.CAS_MODE_HASH, _NO_KEY, data, out_len)


def keyed(key: Buffer, data: Buffer, out_len: int = ID_SIZE) -> bytes:
    """Return the keyed hash of `data`; ValueError unless `key` has 32 bytes."""
    return _hash(lib.CAS_MODE_KEYED, _key(key), data, out_len)


def derive_key(context: str, data: Buffer, out_len: int = ID_SIZE) -> bytes:
    """Return key material derived from `data` for `context`, a fixed string naming the purpose."""
    key = readable(_context_key(context))
    return _hash(lib.CAS_MODE_DERIVE_MATERIAL, (key, ID_SIZE), data, out_len)


class Hasher:
    """A hash fed piece by piece; plain, keyed (`key`) or derived (`context`).

    Not safe for use by two threads at once.

    Raises:
        ValueError: when both `key` and `context` are given, or the key is not 32 bytes.
    """

    def __init__(self, key: Buffer | None = None, context: str | None = None) -> None:
        if key is not None and context is not None:
            raise ValueError("give a key or a context, not both")
        mode, raw = lib.CAS_MODE_HASH, _NO_KEY
        if key is not None:
            mode, raw = lib.CAS_MODE_KEYED, _key(key)
        elif context is not None:
            mode, raw = lib.CAS_MODE_DERIVE_MATERIAL, _key(_context_key(context))
        self._state = ffi.new("cas_hasher *")
        check(lib.cas_hasher_init(self._state, mode, *raw), "hasher")

    def update(self, data: Buffer) -> Self:
        """Add `data`; pieces of 64 KiB and more run at full speed."""
        view = readable(data)
        check(lib.cas_hasher_update(self._state, view, len(view)), "update")
        return self

    def digest(self, length: int = ID_SIZE) -> bytes:
        """Return `length` bytes of the hash of everything so far; more may be added after."""
        if length < 0:
            raise ValueError(f"length must not be negative, got {length}")
        out = ffi.new("uint8_t[]", length)
        check(lib.cas_hasher_finish(self._state, out, length), "digest")
        return bytes(ffi.buffer(out))


class IdContext:
    """Ids of one kind of object: BLAKE3 derive-key with the context key computed once.

    Immutable, so threads may share one. Every method equals `derive_key(context, piece)`.
    """

    def __init__(self, context: str) -> None:
        self.context: Final = context
        self._key_bytes = _context_key(context)
        self._key = (readable(self._key_bytes), ID_SIZE)

    def __repr__(self) -> str:
        """Show the context string."""
        return f"IdContext({self.context!r})"

    def __reduce__(self) -> tuple[type[IdContext], tuple[str]]:
        """Pickle by context, since C views cannot be sent to another process."""
        return IdContext, (self.context,)

    @property
    def mode_and_key(self) -> tuple[int, Any, int]:
        """Return the first three arguments of the C functions that take a mode and a key."""
        return (lib.CAS_MODE_DERIVE_MATERIAL, *self._key)

    def hash(self, data: Buffer) -> bytes:
        """Return the 32-byte id of `data`."""
        view = readable(data)
        out = ffi.new("uint8_t[32]")
        check(lib.cas_hash(*self.mode_and_key, view, len(view), out, ID_SIZE), "hash")
        return bytes(ffi.buffer(out))

    def hash_parts(self, *parts: Buffer) -> bytes:
        """Return the id of the concatenation of `parts`, without concatenating them."""
        state = ffi.new("cas_hasher *")
        check(lib.cas_hasher_init(state, *self.mode_and_key), "hash_parts")
        for part in parts:
            view = readable(part)
            check(lib.cas_hasher_update(state, view, len(view)), "hash_parts")
        out = ffi.new("uint8_t[32]")
        check(lib.cas_hasher_finish(state, out, ID_SIZE), "hash_parts")
        return bytes(ffi.buffer(out))

    def hash_grid(self, data: Buffer, chunk_bytes: int) -> bytes:
        """Return the ids of the consecutive pieces of `chunk_bytes`, the last one maybe short.

        Returns:
            32 * ceil(len(data) / chunk_bytes) bytes, ids one after the other.

        Raises:
            ValueError: when `chunk_bytes` is not positive.
        """
        if chunk_bytes <= 0:
            raise ValueError(f"chunk_bytes must be positive, got {chunk_bytes}")
        view = readable(data)
        out = ffi.new("uint8_t[]", -(-len(view) // chunk_bytes) * ID_SIZE)
        call = lib.cas_hash_grid
        status = call(*self.mode_and_key, view, len(view), chunk_bytes, out, len(out))
        check(status, "hash_grid")
        return bytes(ffi.buffer(out))

    def hash_pieces(self, data: Buffer, ends: Sequence[int] | Buffer) -> bytes:
        """Return the ids of the pieces of `data` that end at `ends`.

        Args:
            data: the bytes.
            ends: where pieces end, ascending and at most len(data): a sequence of int or a
                buffer of native 64-bit unsigned words. The first piece starts at 0.

        Raises:
            ValueError: when `ends` descends or leaves `data`.
        """
        view = readable(data)
        if isinstance(ends, (list, tuple, range)):
            ends = array("Q", ends)
        cuts = words(cast("Buffer", ends))
        out = ffi.new("uint8_t[]", len(cuts) * ID_SIZE)
        call = lib.cas_hash_pieces
        status = call(*self.mode_and_key, view, len(view), cuts, len(cuts), out, len(out))
        check(status, "hash_pieces")
        return bytes(ffi.buffer(out))

    def hash_many(self, buffers: Iterable[Buffer]) -> list[bytes]:
        """Return the id of each buffer; one call into C for all of them."""
        views = [readable(buffer) for buffer in buffers]
        inputs = ffi.new("uint8_t *[]", views)
        lens = ffi.new("size_t[]", [len(view) for view in views])
        out = ffi.new("uint8_t[]", len(views) * ID_SIZE)
        call = lib.cas_hash_many
        status = call(*self.mode_and_key, inputs, lens, len(views), out, len(out))
        check(status, "hash_many")
        ids = bytes(ffi.buffer(out))
        return [ids[at : at + ID_SIZE] for at in range(0, len(ids), ID_SIZE)]
