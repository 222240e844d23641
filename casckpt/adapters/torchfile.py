"""torch's part of reading and writing tensor files: leaves as tensors, and torch.save."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePath
from typing import IO, Any

import torch

from casckpt.checkpoint.exchange.tensors import StridedView
from casckpt.errors import BadRequest, MissingExtra


class TorchTensors:
    """Makes torch tensors on the CPU; those over one storage share its memory."""

    def storage(self, data: bytearray) -> Any:
        """Return an untyped storage over `data`, without a copy."""
        if not data:
            return torch.empty(0, dtype=torch.uint8, device="cpu").untyped_storage()
        return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()

    def strided(self, storage: Any, view: StridedView) -> torch.Tensor:
        """Return a tensor over `storage`."""
        dtype = _dtype(view.dtype)
        if 0 in view.shape:
            tensor = torch.empty_strided(view.shape, view.strides, dtype=dtype, device="cpu")
        else:
            offset, rest = divmod(view.offset_bytes, dtype.itemsize)
            if rest:
                raise ValueError("a tensor that starts between two elements")
            tensor = torch.empty(0, dtype=dtype, device="cpu")
            tensor.set_(storage, offset, view.shape, view.strides)
        if view.conjugated:
            tensor = torch.conj(tensor)
        if view.negated:
            tensor = torch._neg_view(tensor)
        return tensor.requires_grad_() if view.requires_grad else tensor

    def parameter(self, tensor: Any, requires_grad: bool) -> torch.nn.Parameter:
        """Return `tensor` as a parameter."""
        return torch.nn.Parameter(tensor.detach(), requires_grad)

    def sparse(
        self, layout: str, parts: Sequence[Any], shape: tuple[int, ...], coalesced: bool | None
    ) -> torch.Tensor:
        """Return a sparse tensor, its indices checked against its shape.

        Raises:
            ValueError: if the parts do not fit each other.
        """
        if not all(isinstance(part, torch.Tensor) for part in parts):
            raise ValueError("a sparse tensor of something else than tensors")
        try:
            if layout == "torch.sparse_coo":
                # torch claims nothing when it must check; so check first, then claim.
                indices, values = parts
                torch.sparse_coo_tensor(
                    indices, values, shape, device=values.device, check_invariants=True
                )
                return torch.sparse_coo_tensor(
                    indices,
                    values,
                    shape,
                    device=values.device,
                    is_coalesced=coalesced,
                    check_invariants=bool(coalesced),
                )
            compressed, plain, values = parts
            return torch.sparse_compressed_tensor(
                compressed,
                plain,
                values,
                shape,
                layout=getattr(torch, layout.removeprefix("torch.")),
                device=values.device,
                check_invariants=True,
            )
        except (RuntimeError, TypeError, IndexError) as exc:
            raise ValueError(str(exc).partition("\n")[0]) from exc

    def save(self, state: Any, file: IO[bytes]) -> None:
        """Write `state` as torch.save does, in classes that every reader has.

        Namedtuples become tuples, dataclasses dicts, paths text and objects with state_dict()
        their plain state, so that the file names no code. Numpy values stay; torch.load takes
        those only with `weights_only=False`.
        """
        try:
            torch.save(_plain(state), file)
        except KeyError as exc:
            # What torch itself says of a dtype that its files have no storage for.
            raise BadRequest(
                "torch files cannot hold this state",
                str(exc.args[0] if exc.args else exc),
                "--format tree holds every dtype",
            ) from exc


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise MissingExtra(
            f"this torch has no dtype {name}", f"it is version {torch.__version__}", "upgrade torch"
        )
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) or value is None:
        return value
    if isinstance(value, PurePath):
        return str(value)
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        return _plain(value.state_dict())
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items()}
        return _like(value, items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value


def _like(original: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    if not isinstance(original, OrderedDict):
        return items
    ordered = OrderedDict(items)
    metadata = getattr(original, "_metadata", None)
    if metadata is not None:
        ordered._metadata = metadata  # type: ignore[attr-defined]
    return ordered
