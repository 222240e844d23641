"""Arrays and tensors as JSON objects with readable elements."""

from __future__ import annotations

import base64
import math
from typing import Any, Final

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint.arrays_dtypes import TORCH_TO_NUMPY, parse_dtype
from casckpt.checkpoint.leaves import RestoreOptions, axes_of
from casckpt.checkpoint.manifest import Entry
from casckpt.strictjson import FLOAT_OF_TEXT, plain

_TAGS: Final = {"$array": "array", "$tensor": "tensor", "$scalar": "array"}
_EXTENSION_PREFIXES: Final = ("bfloat16", "float8_")


def array_document(
    tag: str,
    dtype: str,
    shape: tuple[int, ...],
    order: str,
    data: bytes | memoryview,
    flags: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the JSON object of an array, tensor or numpy scalar.

    Args:
        tag: "$array", "$tensor" or "$scalar".
        dtype: as the leaf has it.
        shape: lengths of the axes.
        order: how `data` runs over them.
        data: the leaf's bytes.
        flags: the leaf's.
    """
    import numpy as np

    document: dict[str, Any] = {tag: dtype, "shape": list(shape)}
    if flags:
        document["flags"] = list(flags)
    numpy_dtype = _dtype_of(tag, dtype)
    readable = numpy_dtype is not None and not {"conj", "neg"} & set(flags)
    if numpy_dtype is None:
        numpy_dtype = np.dtype(f"V{len(data) // max(1, math.prod(shape))}")
    axes = axes_of(order, len(shape)) or []
    lying: Any = np.ndarray([shape[axis] for axis in axes], numpy_dtype, data or None)
    standing = lying.transpose(np.argsort(axes)) if axes else lying
    if readable and _is_number(numpy_dtype):
        document["data"] = _elements(standing)
    else:
        raw = np.ascontiguousarray(standing).tobytes()
        document["base64"] = base64.b64encode(raw).decode("ascii")
    return document


def array_value(document: dict[str, Any], options: RestoreOptions) -> Any:
    """Return the array, tensor or numpy scalar of a JSON object; it may be hostile.

    Raises:
        ValueError, TypeError, KeyError: if it is malformed.
        Corrupt: if dtype, shape and elements do not fit each other.
    """
    tag = next(tag for tag in _TAGS if tag in document)
    dtype, shape = document[tag], tuple(document["shape"])
    if any(type(size) is not int or size < 0 for size in shape) or len(shape) > 64:
        raise ValueError("an impossible shape")
    numpy_dtype = _dtype_of(tag, dtype)
    if "data" in document:
        if numpy_dtype is None or not _is_number(numpy_dtype):
            raise ValueError(f"numbers for the dtype {dtype}")
        raw = _raw(_flat(document["data"]), numpy_dtype)
    else:
        raw = base64.b64decode(document["base64"], validate=True)
    if numpy_dtype is not None and math.prod(shape) * numpy_dtype.itemsize != len(raw):
        raise ValueError("an array whose shape does not fit its elements")
    flags = tuple(document.get("flags", ()))
    entry = Entry("json", _TAGS[tag], dtype, shape, "C", flags, 0, 0, len(raw))
    root = "torch" if tag == "$tensor" and not options.as_numpy else "numpy"
    slot = leaf_module.handler(root).allocate(entry, options, None)
    slot.dest.cast("B")[:] = raw
    slot.finish()
    return slot.value()[()] if tag == "$scalar" else slot.value()


def _dtype_of(tag: str, text: str) -> Any:
    if tag != "$tensor":
        return parse_dtype(text)
    known = TORCH_TO_NUMPY.get(text)
    return None if known is None else parse_dtype(known)


def _is_number(dtype: Any) -> bool:
    if dtype.kind in "biu" or dtype.name.startswith(_EXTENSION_PREFIXES):
        return True
    # Python's float, hence JSON's, ends at 8 bytes.
    return bool(dtype.kind in "fc" and dtype.itemsize <= (8 if dtype.kind == "f" else 16))


def _elements(array: Any) -> Any:
    import numpy as np

    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    if array.dtype.name.startswith(_EXTENSION_PREFIXES):
        array = array.astype(np.float32)
    values = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return plain(values)
    return values


def _raw(values: list[Any], dtype: Any) -> bytes:
    import numpy as np

    allowed: tuple[type, ...] = {"b": (bool,), "i": (int,), "u": (int,)}.get(
        dtype.kind, (int, float, str)
    )
    if any(type(item) not in allowed for item in values):
        raise ValueError(f"elements that are no {dtype}")
    numbers = [FLOAT_OF_TEXT[item] if type(item) is str else item for item in values]
    if dtype.kind == "c":
        part = np.dtype(f"{dtype.str[0]}f{dtype.itemsize // 2}")
        return np.asarray(numbers, part).tobytes()
    return np.asarray(numbers, dtype).tobytes()


def _flat(value: Any) -> list[Any]:
    if type(value) is not list:
        return [value]
    if not any(type(item) is list for item in value):
        return value
    return [item for part in value for item in _flat(part)]
