"""numpy dtypes as text and back, without evaluating anything.

A plain dtype is numpy's own code (`<f4`, `>i8`, `<U12`, `<M8[ns]`); one of ml_dtypes is its name
(`bfloat16`), because its code says only how wide it is; a structured one is JSON.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, Final

import numpy as np

from casckpt.checkpoint.scalars import malformed
from casckpt.errors import MissingExtra

ML_DTYPES: Final = frozenset(
    {
        "bfloat16",
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float6_e2m3fn",
        "float6_e3m2fn",
        "float4_e2m1fn",
        "int1",
        "int2",
        "int4",
        "uint1",
        "uint2",
        "uint4",
    }
)
"""Names this project accepts from ml_dtypes; the list is fixed so that text cannot name more."""

_CODE = re.compile(
    r"[<>|](?:[biufcSUV]\d{1,9}|[mM]8(?:\[(?:\d{1,9})?[A-Za-zμ]{1,2}(?:/\d{1,9})?\])?)\Z"
)
_DEPTH_MAX: Final = 16
_REGISTERED: Final = 2  # numpy's `isbuiltin` of a dtype that another library has made
_FIELD_COUNT_MAX: Final = 10_000


def dtype_text(dtype: np.dtype[Any]) -> str | None:
    """Return the text of a dtype, None if arrays of it cannot be stored."""
    if dtype.names is None and dtype.subdtype is None:
        return _plain_text(dtype)
    document = _document(dtype, 0)
    return json.dumps(document, separators=(",", ":")) if isinstance(document, dict) else document


@lru_cache(maxsize=256)
def _plain_text(dtype: np.dtype[Any]) -> str | None:
    text: str | None = _document(dtype, 0)
    return text


def _document(dtype: np.dtype[Any], depth: int) -> Any:
    if dtype.hasobject or depth > _DEPTH_MAX:
        return None
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        inner = _document(base, depth + 1)
        return None if inner is None else {"base": inner, "shape": list(shape)}
    if dtype.names is not None and dtype.fields is not None:
        if dtype.type is not np.void:
            # As numpy.record, whose items have attributes: what would come back has none.
            return None
        fields = []
        for name in dtype.names:
            described: tuple[Any, ...] = dtype.fields[name]
            field, offset = described[:2]
            title = described[2] if len(described) > 2 else None
            inner = _document(field, depth + 1)
            if inner is None or not (title is None or type(title) is str):
                return None
            fields.append([name, inner, offset] + ([title] if title is not None else []))
        return {"fields": fields, "size": dtype.itemsize, "aligned": dtype.isalignedstruct}
    if dtype.name in ML_DTYPES:
        return dtype.name
    if dtype.isbuiltin == _REGISTERED:
        # Of a library: its code says how wide an item is, not what it means.
        return None
    return dtype.str if _CODE.match(dtype.str) else None


@lru_cache(maxsize=256)
def parse_dtype(text: str) -> np.dtype[Any]:
    """Return the dtype that `dtype_text` wrote.

    Raises:
        Corrupt: if it is no such text.
        MissingExtra: if it needs ml_dtypes, which is not installed.
    """
    if not text.startswith("{"):
        return _parse(text, 0)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise malformed("a structured dtype that is not JSON") from exc
    return _parse(document, 0)


def _parse(document: Any, depth: int) -> np.dtype[Any]:
    if depth > _DEPTH_MAX:
        raise malformed("a dtype that is nested too deeply")
    if type(document) is str:
        if document in ML_DTYPES:
            return ml_dtype(document)
        if not _CODE.match(document):
            raise malformed(f"an array of the unknown dtype {document[:40]!r}")
        try:
            return np.dtype(document)
        except (TypeError, ValueError) as exc:
            raise malformed(f"an array of the unknown dtype {document[:40]!r}") from exc
    if type(document) is dict:
        try:
            if set(document) == {"base", "shape"}:
                shape = tuple(_size(number) for number in document["shape"])
                return np.dtype((_parse(document["base"], depth + 1), shape))
            if set(document) == {"fields", "size", "aligned"}:
                return _parse_struct(document, depth)
        except (TypeError, ValueError, KeyError) as exc:
            raise malformed("a structured dtype that numpy refuses") from exc
    raise malformed("a dtype of an unknown form")


def _parse_struct(document: dict[str, Any], depth: int) -> np.dtype[Any]:
    fields = document["fields"]
    if type(fields) is not list or len(fields) > _FIELD_COUNT_MAX:
        raise malformed("a structured dtype without a list of fields")
    for field in fields:
        if type(field) is not list or len(field) not in (3, 4) or type(field[0]) is not str:
            raise malformed("a structured dtype with a malformed field")
    spec: dict[str, Any] = {
        "names": [field[0] for field in fields],
        "formats": [_parse(field[1], depth + 1) for field in fields],
        "offsets": [_size(field[2]) for field in fields],
        "itemsize": _size(document["size"]),
    }
    if any(len(field) == 4 for field in fields):
        spec["titles"] = [field[3] if len(field) == 4 else None for field in fields]
    make: Any = np.dtype
    dtype: np.dtype[Any] = make(spec, align=document["aligned"] is True)
    return dtype


def _size(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**31:
        raise malformed("a dtype with a size out of bounds")
    return number


def ml_dtype(name: str) -> np.dtype[Any]:
    """Return a dtype of ml_dtypes by name.

    Raises:
        MissingExtra: if it is not installed, or too old for that dtype.
    """
    try:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
    except (ImportError, AttributeError) as exc:
        raise MissingExtra(
            f"numpy has no {name} of its own",
            "the package ml_dtypes, which adds it, is not installed or too old",
            "pip install 'casckpt[ml-dtypes]'",
        ) from exc


def number_width(dtype: np.dtype[Any]) -> int:
    """Return the width in bytes of the numbers inside, for the codec: 1, 2, 4, 8 or 16."""
    if dtype.subdtype is not None:
        return number_width(dtype.subdtype[0])
    if dtype.kind == "c":
        width = dtype.itemsize // 2
    elif dtype.kind == "U":
        width = 4
    elif dtype.names is not None or (dtype.kind in "SV" and dtype.name not in ML_DTYPES):
        width = 1
    else:
        width = dtype.itemsize
    return width if width in (1, 2, 4, 8, 16) else 1


TORCH_TO_NUMPY: Final = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2": "float8_e5m2",
    "float8_e5m2fnuz": "float8_e5m2fnuz",
    "float8_e8m0fnu": "float8_e8m0fnu",
}
"""Names of torch's dtypes → the text of numpy's with the same bytes."""
