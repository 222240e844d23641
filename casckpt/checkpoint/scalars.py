"""Python scalars as JSON-able nodes of a state tree, exact to the bit.

Nodes use no JSON float: a float is its IEEE 754 bits in hex, so NaN payloads and -0.0 survive.
`None`, `bool`, small integers and well-formed strings are themselves; everything else is an object
with one tag:

    {"i": "-ff"}      an integer outside 53 bits, signed hex
    {"f": 16 hex}     a float, big-endian IEEE 754 binary64
    {"c": 32 hex}     a complex, real part first
    {"s": hex}        a string with lone surrogates, as UTF-8 with surrogates let through
    {"b": hex}        bytes          {"B": hex}   bytearray
    {"p": [kind, node]}  a path: kind is posix, windows, pure-posix or pure-windows
    {"t": [node, ...]}   a tuple (also inside keys)
"""

from __future__ import annotations

import pathlib
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

from casckpt.errors import Corrupt

Node = Any
"""A JSON value: what json.loads can return, floats excepted."""

JSON_INT_MAX: Final = 2**53 - 1
"""Largest integer written as a JSON number: what every JSON reader keeps exactly."""

TEXT_MAX_BYTES: Final = 1024
"""Strings and bytes above this are blobs of their own (the tree is read by every `show`)."""

KEY_DEPTH_MAX: Final = 16
"""Deepest nesting of tuples in a dict key."""

_HEX = re.compile(r"(?:[0-9a-f]{2})*\Z")
_SIGNED_HEX = re.compile(r"-?[1-9a-f][0-9a-f]*\Z")
_BIG_INT_MAX_CHARS: Final = 1 << 20

INT_MAX_BITS: Final = 4 * (_BIG_INT_MAX_CHARS - 1)
"""Longest integer that is saved: its hex and a sign are what a reader takes."""

KEY_INT_MAX_BITS: Final = 2048
"""Longest integer in a dict key: below 640 digits, which every Python writes into a path."""

_PATH_KINDS: Final[dict[str, type[pathlib.PurePath]]] = {
    "posix": pathlib.PosixPath,
    "windows": pathlib.WindowsPath,
    "pure-posix": pathlib.PurePosixPath,
    "pure-windows": pathlib.PureWindowsPath,
}
_KIND_OF_PATH: Final = {cls: kind for kind, cls in _PATH_KINDS.items()}


def malformed(what: str) -> Corrupt:
    """Return the error for a manifest whose bytes are not what any casckpt writes."""
    return Corrupt("the manifest is malformed", what)


def encode_int(value: int) -> Node:
    """Return the node of an integer; above `INT_MAX_BITS` no reader takes it."""
    if -JSON_INT_MAX <= value <= JSON_INT_MAX:
        return value
    return {"i": f"{value:x}"}


def encode_float(value: float) -> Node:
    """Return the node of a float: its 64 bits, whatever they are."""
    return {"f": struct.pack(">d", value).hex()}


def encode_complex(value: complex) -> Node:
    """Return the node of a complex number."""
    return {"c": struct.pack(">dd", value.real, value.imag).hex()}


def encode_str(value: str) -> Node:
    """Return the node of a string of any code points, lone surrogates included."""
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"s": value.encode("utf-8", "surrogatepass").hex()}
    return value


def encode_bytes(value: bytes) -> Node:
    """Return the node of bytes."""
    return {"b": value.hex()}


def encode_bytearray(value: bytearray) -> Node:
    """Return the node of a bytearray."""
    return {"B": value.hex()}


def encode_path(value: pathlib.PurePath) -> Node | None:
    """Return the node of a path, or None if it is of a class of its own."""
    kind = _KIND_OF_PATH.get(type(value))
    return None if kind is None else {"p": [kind, encode_str(str(value))]}


_ENCODERS: Final[dict[type, Callable[[Any], Node]]] = {
    int: encode_int,
    float: encode_float,
    complex: encode_complex,
    str: encode_str,
    bytes: encode_bytes,
    bytearray: encode_bytearray,
}


def encode_scalar(value: object) -> tuple[bool, Node]:
    """Return (True, node) if `value` is a scalar of exactly a built-in type or a path."""
    if value is None or value is True or value is False:
        return True, value
    encoder = _ENCODERS.get(type(value))
    if encoder is not None:
        return True, encoder(value)
    if isinstance(value, pathlib.PurePath):
        node = encode_path(value)
        return node is not None, node
    return False, None


def encode_key(key: object, depth: int = 0) -> Node:
    """Return the node of a dict key.

    Raises:
        TypeError: if it is none of str, int, float, bool, bytes, None and tuples of them.
    """
    if type(key) is str:
        return encode_str(key)
    if type(key) is tuple and depth < KEY_DEPTH_MAX:
        return {"t": [encode_key(part, depth + 1) for part in key]}
    if key is None or type(key) in (bool, int, float, bytes):
        return encode_scalar(key)[1]
    raise TypeError(type(key).__name__)


def decode_key(node: Node, depth: int = 0) -> Any:
    """Return the key that `encode_key` made `node` from.

    Raises:
        Corrupt: if the node is no key.
    """
    if node is None or type(node) in (str, int, bool):
        return node
    if type(node) is dict and len(node) == 1:
        ((tag, body),) = node.items()
        if tag == "t" and type(body) is list and depth < KEY_DEPTH_MAX:
            return tuple(decode_key(part, depth + 1) for part in body)
        if tag in ("i", "f", "s", "b"):
            return SCALAR_TAGS[tag](body)
    raise malformed("a dict key of a kind that cannot be one")


def from_hex(body: Node, what: str, length: int | None = None) -> bytes:
    """Return the bytes of lower-case hex, of exactly `length` if given, else raise Corrupt."""
    if type(body) is not str or not _HEX.match(body):
        raise malformed(f"{what} that is not lower-case hex")
    if length is not None and len(body) != 2 * length:
        raise malformed(f"{what} of the wrong length")
    return bytes.fromhex(body)


def _decode_int(body: Node) -> int:
    if type(body) is not str or len(body) > _BIG_INT_MAX_CHARS or not _SIGNED_HEX.match(body):
        raise malformed("a big integer that is not signed hex")
    value = int(body, 16)
    if -JSON_INT_MAX <= value <= JSON_INT_MAX:
        raise malformed("a small integer written as a big one")
    return value


def _decode_float(body: Node) -> float:
    (value,) = struct.unpack(">d", from_hex(body, "a float", 8))
    return float(value)


def _decode_complex(body: Node) -> complex:
    return complex(*struct.unpack(">dd", from_hex(body, "a complex", 16)))


def _decode_str(body: Node) -> str:
    try:
        return from_hex(body, "a string").decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as exc:
        raise malformed("a string that is not UTF-8") from exc


def _decode_bytearray(body: Node) -> bytearray:
    return bytearray(from_hex(body, "a bytearray"))


def _decode_path(body: Node) -> pathlib.PurePath:
    if type(body) is not list or len(body) != 2:
        raise malformed("a path that is not a kind and a text")
    kind, text = body
    if type(kind) is not str or kind not in _PATH_KINDS:
        raise malformed("a path of an unknown kind")
    if type(text) is dict and set(text) == {"s"}:
        text = _decode_str(text["s"])
    if type(text) is not str:
        raise malformed("a path that is no string")
    # A concrete path of the other system cannot be made here; its text in the native class can.
    foreign = "posix" if sys.platform == "win32" else "windows"
    return pathlib.Path(text) if kind == foreign else _PATH_KINDS[kind](text)


SCALAR_TAGS: Final[dict[str, Callable[[Node], Any]]] = {
    "i": _decode_int,
    "f": _decode_float,
    "c": _decode_complex,
    "s": _decode_str,
    "b": lambda body: from_hex(body, "bytes"),
    "B": _decode_bytearray,
    "p": _decode_path,
}
"""Tag of a scalar node → its decoder, which raises Corrupt on what no encoder writes."""
