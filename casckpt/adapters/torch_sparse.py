"""Sparse torch tensors: stored by their parts, each a dense tensor of its own."""

from __future__ import annotations

from typing import Any, Final

import torch

from casckpt.checkpoint.arrays import sparse_part_names
from casckpt.checkpoint.leaves import Walker, refused
from casckpt.checkpoint.scalars import Node
from casckpt.checkpoint.tree_paths import join

LAYOUTS: Final = {
    torch.sparse_coo: "coo",
    torch.sparse_csr: "csr",
    torch.sparse_csc: "csc",
    torch.sparse_bsr: "bsr",
    torch.sparse_bsc: "bsc",
}
_LAYOUT_OF: Final = {name: layout for layout, name in LAYOUTS.items()}


def flatten_sparse(tensor: torch.Tensor, path: str, walker: Walker) -> Node:
    """Return the node of a sparse tensor, its parts walked as leaves; BadLeaf if it has none."""
    layout = LAYOUTS.get(tensor.layout)
    if layout is None:
        raise refused(tensor, path, f"its layout is {tensor.layout}")
    if tensor.device.type == "meta":
        raise refused(tensor, path, "it is on the meta device, so it has no values")
    flags = ["parameter"] if type(tensor) is torch.nn.Parameter else []
    if tensor.requires_grad:
        flags.append("requires_grad")
    plain = tensor.detach()
    if layout == "coo":
        if plain.is_coalesced():
            flags.append("coalesced")
        parts = [plain._indices(), plain._values()]
    else:
        parts = compressed_parts(plain)
    attributes: dict[str, Any] = {
        "layout": layout,
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "flags": sorted(flags),
    }
    if layout != "coo":
        attributes["count"] = parts[2].shape[0]
    names = sparse_part_names(layout)
    nodes = [
        walker.walk(part.detach(), join(path, name))
        for name, part in zip(names, parts, strict=True)
    ]
    return {"x": ["torch", "sparse"], "a": attributes, "v": nodes}


def compressed_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the compressed indices, plain indices and values of a CSR-like tensor."""
    plain = tensor.detach()
    if plain.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [plain.crow_indices(), plain.col_indices(), plain.values()]
    return [plain.ccol_indices(), plain.row_indices(), plain.values()]


def build_sparse(attributes: Node, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the sparse tensor of a node; torch checks that the parts make one."""
    layout, shape, flags = attributes["layout"], attributes["shape"], attributes["flags"]
    if layout == "coo":
        indices, values = parts
        tensor = torch.sparse_coo_tensor(
            indices,
            values,
            shape,
            device=values.device,
            check_invariants=True,
            is_coalesced="coalesced" in flags,
        )
    else:
        compressed, plain, values = parts
        tensor = torch.sparse_compressed_tensor(
            compressed,
            plain,
            values,
            shape,
            layout=_LAYOUT_OF[layout],
            device=values.device,
            check_invariants=True,
        )
    if "parameter" in flags:
        return torch.nn.Parameter(tensor, "requires_grad" in flags)
    return tensor.requires_grad_() if "requires_grad" in flags else tensor
