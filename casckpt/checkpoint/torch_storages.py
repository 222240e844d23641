"""The dtypes of the storages in a torch archive, read off its pickle without running any of it.

torch names each storage by a persistent id, the tuple ("storage", torch.FloatStorage, key, device,
count). The opcodes that build it are followed; all others are passed over. A pickle that builds
the tuple in another way gives no dtype, and its storages are taken as bytes.
"""

from __future__ import annotations

import pickletools
from typing import Any, Final

_STORAGES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""Classes of torch that stand for dtypes in its files; newer dtypes go as UntypedStorage."""

_ID_LENGTH: Final = 5


def storage_dtypes(data: bytes) -> dict[str, str]:
    """Return dtype by key, for every storage whose id could be followed."""
    found: dict[str, str] = {}
    memo: dict[Any, Any] = {}
    recent: list[Any] = []
    last: tuple[Any, ...] = ()
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name == "BINPERSID":
            if len(last) >= _ID_LENGTH:
                word, storage, key = last[-_ID_LENGTH:][:3]
                if word == "storage" and storage in _STORAGES and isinstance(key, str):
                    found[key] = _STORAGES[storage]
            recent.clear()
        elif name == "MARK":
            recent.clear()
        elif name == "GLOBAL":
            module, _, symbol = str(argument).partition(" ")
            recent.append(symbol if module == "torch" else None)
        elif name in ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"):
            recent.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = recent[-1] if recent else None
        elif name == "MEMOIZE":
            memo[len(memo)] = recent[-1] if recent else None
        elif name in ("BINGET", "LONG_BINGET"):
            recent.append(memo.get(argument))
        elif name == "TUPLE":
            last = tuple(recent)
            # The tuple itself; it may be put into the memo.
            recent[:] = [None]
    return found
