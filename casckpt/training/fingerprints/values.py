"""What a value is, as a hash: the same content gives the same fingerprint, in every process.

Values are written in one possible spelling, tagged and with their lengths, and hashed. Large
parts (arrays, files) go in as hashes of their own. A `Path` stands for what it names, a `str` for
its text, a function for its source and what it calls in its package.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import enum
import functools
import pathlib
import re
import struct
import types
from collections.abc import Callable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, Final

from casckpt import native
from casckpt.checkpoint.leaves import root_of
from casckpt.checkpoint.manifest import canonical
from casckpt.errors import BadLeaf, BadRequest
from casckpt.training.fingerprints import arrays, settings
from casckpt.training.fingerprints.objects import BY_REPR
from casckpt.training.fingerprints.spelling import put

if TYPE_CHECKING:
    from casckpt.training.fingerprints.code import CodeWriter
    from casckpt.training.fingerprints.files import FileHashes

_LENGTH: Final = struct.Struct("<Q")
_FLOAT: Final = struct.Struct("<d")
_COMPLEX: Final = struct.Struct("<dd")

_CODE: Final = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    functools.partial,
    staticmethod,
    classmethod,
    type,
)


class Fingerprinter:
    """Takes fingerprints. Not thread safe.

    Args:
        files: what knows the hashes of files; None for one that remembers for this process.
        lenient: let what has no fingerprint stand for its type; for notices, and for what was
            not passed but is held by what was.
    """

    def __init__(self, files: FileHashes | None = None, *, lenient: bool = False) -> None:
        self._files = files
        self._code: CodeWriter | None = None
        self.lenient = lenient

    def of(self, value: Any, where: str = "the value") -> bytes:
        """Return the fingerprint of one value: 32 bytes.

        Args:
            value: the value.
            where: what errors call it.

        Raises:
            BadRequest: as `casckpt.fingerprint`.
        """
        out = bytearray()
        try:
            self.write(value, out, where)
        except RecursionError:
            raise BadRequest(
                f"{where} has no fingerprint", "it is nested too deeply, or contains itself"
            ) from None
        return native.blake3(out)

    def write(self, value: Any, out: bytearray, where: str) -> None:
        """Append the one spelling of a value."""
        writer = _WRITERS.get(type(value))
        if writer is not None:
            writer(self, value, out, where)
        else:
            self._write_special(value, out, where)

    @contextlib.contextmanager
    def leniently(self) -> Iterator[None]:
        """Let what has no fingerprint stand for its type until the end of the block."""
        before, self.lenient = self.lenient, True
        try:
            yield
        finally:
            self.lenient = before

    # ---- exact types

    def _none(self, value: None, out: bytearray, where: str) -> None:
        out += b"N"

    def _bool(self, value: bool, out: bytearray, where: str) -> None:
        out += b"T" if value else b"F"

    def _int(self, value: int, out: bytearray, where: str) -> None:
        put(out, b"i", b"%x" % value if value >= 0 else b"-%x" % -value)

    def _float(self, value: float, out: bytearray, where: str) -> None:
        out += b"f"
        out += _FLOAT.pack(value)

    def _complex(self, value: complex, out: bytearray, where: str) -> None:
        out += b"c"
        out += _COMPLEX.pack(value.real, value.imag)

    def _str(self, value: str, out: bytearray, where: str) -> None:
        put(out, b"s", value.encode("utf-8", "surrogatepass"))

    def _bytes(self, value: bytes | bytearray | memoryview, out: bytearray, where: str) -> None:
        self.put_bytes(out, b"b", value)

    def _list(self, value: Any, out: bytearray, where: str) -> None:
        self._sequence(b"l", value, out, where)

    def _tuple(self, value: Any, out: bytearray, where: str) -> None:
        self._sequence(b"t", value, out, where)

    def _sequence(self, tag: bytes, value: Any, out: bytearray, where: str) -> None:
        out += tag
        out += _LENGTH.pack(len(value))
        for index, item in enumerate(value):
            writer = _WRITERS.get(type(item))
            if writer is not None and type(item) not in _CONTAINERS:
                writer(self, item, out, where)
            else:
                self.write(item, out, f"{where}[{index}]")

    def _dict(self, value: Mapping[Any, Any], out: bytearray, where: str) -> None:
        parts = []
        for key, item in value.items():
            part = bytearray()
            self.write(key, part, where)
            self.write(item, part, f"{where}[{key!r:.40}]")
            parts.append(bytes(part))
        self._unordered(b"d", parts, out)

    def _set(self, value: Set[Any], out: bytearray, where: str) -> None:
        parts = []
        for item in value:
            part = bytearray()
            self.write(item, part, where)
            parts.append(bytes(part))
        self._unordered(b"S", parts, out)

    @staticmethod
    def _unordered(tag: bytes, parts: list[bytes], out: bytearray) -> None:
        out += tag
        out += _LENGTH.pack(len(parts))
        for part in sorted(parts):
            out += _LENGTH.pack(len(part))
            out += part

    # ---- everything else

    def _write_special(self, value: Any, out: bytearray, where: str) -> None:
        if isinstance(value, pathlib.PurePath):
            self._path(value, out, where)
        elif isinstance(value, enum.Enum):
            put(out, b"E", f"{type(value).__qualname__}.{value.name}".encode())
            with self.leniently():
                self.write(value.value, out, where)
        elif isinstance(value, _CODE) or hasattr(value, "__wrapped__"):
            self.code_writer().write(value, out, where)
        elif isinstance(value, types.ModuleType):
            self.code_writer().write_module(value, out)
        elif isinstance(value, BY_REPR):
            self._by_repr(value, out, where)
        elif isinstance(value, types.SimpleNamespace | argparse.Namespace):
            self._named(b"N", value, vars(value), out, where)
        elif dataclasses.is_dataclass(value):
            fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
            self._named(b"D", value, fields, out, where)
            others = settings.settings_of(value)
            self._more({name: others[name] for name in others.keys() - fields}, out, where)
            if callable(value):
                self.code_writer().write_class_of(value, out, where)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            self._named(b"n", value, dict(zip(value._fields, value, strict=True)), out, where)
        else:
            self._write_foreign(value, out, where)

    def _write_foreign(self, value: Any, out: bytearray, where: str) -> None:
        root = type(value).__module__.partition(".")[0]
        if root == "numpy" and hasattr(value, "tobytes"):
            arrays.write_array(self, value, out, where)
        elif root == "numpy" and type(value).__name__ == "ufunc":
            self._ufunc(value, out, where)
        elif root == "pandas" and hasattr(value, "index"):
            arrays.write_frame(self, value, out, where)
        elif callable(getattr(value, "state_dict", None)):
            self._tree(value, out, where)
            settings.write_settings(self, value, out, where)
        elif root_of(value) is not None:
            self._tree(value, out, where)
        else:
            for cls, writer in _BASES:
                if isinstance(value, cls):
                    # A class of its own with the content of a built-in: a config's DictConfig.
                    put(out, b"u", type(value).__qualname__.encode())
                    writer(self, value, out, where)
                    if issubclass(cls, _BUILT_IN) or isinstance(value, dict):
                        self._besides(value, out, where)
                    return
            self.refuse(value, out, where)

    def _besides(self, value: Any, out: bytearray, where: str) -> None:
        """Write what an object of a subclass of a built-in is besides its content."""
        if isinstance(value, collections.OrderedDict) and len(value) > 1:
            out += b"o"
            self._list(list(value), out, where)
        if isinstance(value, collections.defaultdict):
            out += b"z"
            with self.leniently():
                self.write(value.default_factory, out, where)
        self._more(settings.settings_of(value), out, where)

    def _more(self, held: Mapping[str, Any], out: bytearray, where: str) -> None:
        """Write attributes beside what an object is made of."""
        if held:
            out += b"."
            with self.leniently():
                self._dict(held, out, where)

    def _by_repr(self, value: Any, out: bytearray, where: str) -> None:
        text = repr(value)
        if " object at 0x" in text:  # a time zone of a class that does not say what it is
            self.refuse(value, out, where)
            return
        put(out, b"r", f"{type(value).__qualname__}:{text}".encode())
        if isinstance(value, re.Pattern) and len(repr(value.pattern)) > _PATTERN_SHOWN:
            self.write((value.pattern, value.flags), out, where)
        elif isinstance(value, slice):
            ends = (value.start, value.stop, value.step)
            if not all(one is None or type(one) is int for one in ends):
                self.write(ends, out, where)

    def _ufunc(self, value: Any, out: bytearray, where: str) -> None:
        if value.__name__.endswith(" (vectorized)"):  # of a function that cannot be seen
            self.refuse(value, out, where)
            return
        put(out, b"r", f"ufunc:{value.__name__}".encode())

    def refuse(self, value: Any, out: bytearray, where: str) -> None:
        """Raise for a value without a fingerprint; if lenient, write its type."""
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if self.lenient:
            put(out, b"?", name.encode())
            return
        raise BadRequest(
            f"{where} has no fingerprint: it is a {name}",
            "what it holds cannot be looked at, so a change of it would go unnoticed",
            "pass what it is made from instead: settings, a path, a version",
            where=where,
        )

    def _path(self, value: pathlib.PurePath, out: bytearray, where: str) -> None:
        if not isinstance(value, pathlib.Path):
            put(out, b"P", str(value).encode("utf-8", "surrogateescape"))
            return
        if self._files is None:
            from casckpt.training.fingerprints.files import FileHashes

            self._files = FileHashes()
        try:
            digest = self._files.of(value)
        except BadRequest:
            if not self.lenient:
                raise
            digest = bytes(32)
        out += b"p"
        out += digest

    def _named(
        self, tag: bytes, value: Any, fields: Mapping[str, Any], out: bytearray, where: str
    ) -> None:
        # Not the module: a class of a script is of `__main__` or not as the script is run.
        put(out, tag, type(value).__qualname__.encode())
        out += _LENGTH.pack(len(fields))
        for name, item in fields.items():
            put(out, b"k", name.encode())
            self.write(item, out, f"{where}.{name}")

    def _tree(self, value: Any, out: bytearray, where: str) -> None:
        """Write what a checkpoint would keep of a tensor, a booster, a module."""
        from casckpt.checkpoint.tree import flatten

        try:
            flat = flatten(value)
        except BadLeaf as exc:
            if not self.lenient:
                raise BadRequest(
                    f"{where} has no fingerprint: {exc.what}",
                    exc.why,
                    "pass plain values, arrays or a path instead",
                ) from exc
            self.refuse(value, out, where)
            return
        put(out, b"x", canonical(flat.tree))
        for leaf in flat.leaves:
            about = [leaf.path, leaf.kind, leaf.dtype, list(leaf.shape), leaf.order, leaf.alias]
            put(out, b"e", canonical([*about, list(leaf.flags), leaf.offset]))
            if leaf.source is not None:
                self.put_bytes(out, b"b", leaf.source.view())

    def put_bytes(self, out: bytearray, tag: bytes, data: bytes | bytearray | memoryview) -> None:
        """Append bytes, large ones by their hash."""
        view = memoryview(data).cast("B")
        if len(view) > _INLINE_BYTES:
            put(out, tag + b"#", _LENGTH.pack(len(view)) + native.blake3(view))
        else:
            put(out, tag, view)

    def code_writer(self) -> CodeWriter:
        """Return what writes functions and classes."""
        if self._code is None:
            from casckpt.training.fingerprints.code import CodeWriter

            self._code = CodeWriter(self)
        return self._code


_PATTERN_SHOWN: Final = 200
"""Characters of the repr of its pattern that the repr of a `re.Pattern` shows."""

_INLINE_BYTES: Final = 4096
"""Larger ones are hashed where they lie, instead of being copied first."""

_Writer = Callable[[Fingerprinter, Any, bytearray, str], None]

_WRITERS: Final[dict[type, _Writer]] = {
    type(None): Fingerprinter._none,
    bool: Fingerprinter._bool,
    int: Fingerprinter._int,
    float: Fingerprinter._float,
    complex: Fingerprinter._complex,
    str: Fingerprinter._str,
    bytes: Fingerprinter._bytes,
    bytearray: Fingerprinter._bytes,
    memoryview: Fingerprinter._bytes,
    list: Fingerprinter._list,
    tuple: Fingerprinter._tuple,
    dict: Fingerprinter._dict,
    set: Fingerprinter._set,
    frozenset: Fingerprinter._set,
}

_BUILT_IN: Final = (str, int, float, bytes, list, tuple)

_CONTAINERS: Final = frozenset({list, tuple, dict, set, frozenset})

_BASES: Final[tuple[tuple[type, _Writer], ...]] = (
    (str, Fingerprinter._str),
    (int, Fingerprinter._int),
    (float, Fingerprinter._float),
    (bytes, Fingerprinter._bytes),
    (list, Fingerprinter._list),
    (tuple, Fingerprinter._tuple),
    (Mapping, Fingerprinter._dict),
    (Set, Fingerprinter._set),
)
