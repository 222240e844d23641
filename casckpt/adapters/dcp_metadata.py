"""What torch.distributed.checkpoint needs to know of a checkpoint, as JSON instead of a pickle.

{"format": 1, "items": {NAME: ITEM, ...}, "paths": {NAME: [key, ...]} or null}

ITEM    {"dtype", "size", "requires_grad", "parts": [[offsets, sizes], ...]}    a tensor
{"bytes": true}                                                         an object
"""

from __future__ import annotations

import json
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)

from casckpt.errors import Corrupt, NewerFormat

FORMAT: Final = 1
"""FORMAT: of the JSON; a reader refuses a larger one."""


def encoded(metadata: Metadata) -> str:
    """Return the JSON text of a description."""
    items: dict[str, Any] = {}
    for name, about in metadata.state_dict_metadata.items():
        if isinstance(about, BytesStorageMetadata):
            items[name] = {"bytes": True}
            continue
        items[name] = {
            "dtype": str(about.properties.dtype).removeprefix("torch."),
            "size": list(about.size),
            "requires_grad": about.properties.requires_grad,
            "parts": [[list(part.offsets), list(part.sizes)] for part in about.chunks],
        }
    paths = metadata.planner_data
    if paths is not None:
        paths = {name: list(path) for name, path in paths.items()}
    return json.dumps({"format": FORMAT, "items": items, "paths": paths}, separators=(",", ":"))


def decoded(text: str) -> Metadata:
    """Return the description of a JSON text.

    Raises:
        Corrupt: it is none.
        NewerFormat: a newer casckpt wrote it.
    """
    try:
        document = json.loads(text)
        if document["format"] > FORMAT:
            raise NewerFormat(
                f"a distributed checkpoint of format {document['format']}",
                f"this casckpt reads formats up to {FORMAT}",
            )
        items: dict[str, Any] = {}
        for name, about in document["items"].items():
            if "bytes" in about:
                items[name] = BytesStorageMetadata()
                continue
            dtype = getattr(torch, about["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise ValueError(about["dtype"])
            items[name] = TensorStorageMetadata(
                TensorProperties(dtype=dtype, requires_grad=bool(about["requires_grad"])),
                torch.Size(about["size"]),
                [
                    ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                    for offsets, sizes in about["parts"]
                ],
            )
        paths = document["paths"]
        if paths is not None:
            paths = {name: tuple(path) for name, path in paths.items()}
        return Metadata(state_dict_metadata=items, planner_data=paths)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Corrupt(
            "the description of a distributed checkpoint does not decode", str(exc)
        ) from exc
