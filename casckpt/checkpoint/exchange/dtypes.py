"""Names of element types: ours (as torch and ml_dtypes spell them), numpy's and safetensors'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from casckpt.errors import BadRequest

if TYPE_CHECKING:
    import numpy as np

ITEM_BYTES: Final[dict[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "complex32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes an element takes, for every dtype that a tensor file can name."""

EXTENSION_DTYPES: Final = frozenset(
    name for name in ITEM_BYTES if name == "bfloat16" or name.startswith("float8_")
)
"""Dtypes that numpy gets from ml_dtypes."""

# FORMAT: the names of the safetensors header.
SAFETENSORS_NAMES: Final[dict[str, str]] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
}
SAFETENSORS_DTYPES: Final = {theirs: ours for ours, theirs in SAFETENSORS_NAMES.items()}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of that name, little-endian.

    Raises:
        MissingExtra: if numpy has it only with ml_dtypes, which is not installed.
        BadRequest: if numpy has none.
    """
    from casckpt.checkpoint.arrays_dtypes import TORCH_TO_NUMPY, parse_dtype

    text = TORCH_TO_NUMPY.get(name)
    if text is None:
        raise BadRequest(
            f"numpy has no dtype {name}", "only torch has it", "pip install 'casckpt[torch]'"
        )
    return parse_dtype(text)


def swap_bytes(data: bytearray, dtype: str) -> bytearray:
    """Return `data` with the bytes of each number reversed; complex numbers part by part."""
    width = ITEM_BYTES[dtype]
    if dtype.startswith("complex"):
        width //= 2
    if width == 1:
        return data
    swapped = bytearray(len(data))
    for place in range(width):
        swapped[place::width] = data[width - 1 - place :: width]
    return swapped
