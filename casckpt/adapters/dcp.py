"""torch.distributed.checkpoint: a writer and a reader over a run, tensor by tensor.

A checkpoint is a plain tree: what DCP needs to know of it as JSON text, and each tensor, or part of
one, under its name. The first process commits it, and until then there is none. What the other
processes bring is saved in runs of their own below (`RUN/dcp-RANK`), which the commit reads from
the store, one tensor at a time and without writing a byte again, and then removes.

    {"dcp": JSON, "data": {NAME: tensor or bytes, NAME@OFFSETS: part of a tensor}}
    {"part_of": RUN, "data": ...}                                       in RUN/dcp-RANK

The JSON is described in `dcp_metadata.py`.
"""

from __future__ import annotations

import dataclasses
import glob
import io
import pickle
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from casckpt.adapters import missing_extra
from casckpt.checkpoint.leaves import Leaf, Walker
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.scalars import Node
from casckpt.errors import (
    BadRequest,
    CasckptError,
    NotFound,
    OperationFailed,
    PickleRefused,
    TreeMismatch,
)
from casckpt.training.runbase import RunBase

try:
    import torch
    from torch import distributed
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
    from torch.distributed.checkpoint.planner import LoadItemType, WriteItemType
    from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
    from torch.futures import Future

    from casckpt.adapters.dcp_metadata import decoded, encoded
except ModuleNotFoundError as exc:
    raise missing_extra("dcp", extra="torch") from exc

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner

    from casckpt.api import Store

T = TypeVar("T")

_TOGETHER_BYTES: Final = 64 << 20
"""So much is read from the store at once: enough for all workers, little beside a model."""


class Writer(StorageWriter):
    """Saves what `torch.distributed.checkpoint.save` is given as one checkpoint of a run.

        writer = casckpt.dcp.Writer(store, "llm", step)
        dcp.save(state, storage_writer=writer)

    Every process makes the same calls; all of them are on one machine, with one store. Usable for
    one save after the other: give `step` anew with `at`.

    Args:
        store: the store, open for writing.
        run: name of the run.
        step: where in the run; None for the last step + 1.
        metrics: see `Store.save`.
        tags: see `Store.save`.

    Attributes:
        checkpoint: what was saved last; in the process that commits, else None.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
    ) -> None:
        super().__init__()
        if isinstance(store, RunBase):
            raise BadRequest("a Writer over a Run", "it saves to a store", "pass run.store")
        self.checkpoint: Checkpoint | None = None
        self._store, self._run, self._step = store, run, step
        self._metrics, self._tags = metrics, tags
        self._commits = True
        self._data: dict[str, Any] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin a save.

        Raises:
            BadRequest: `checkpoint_id` was given: run and step are the writer's own.
        """
        if checkpoint_id is not None:
            raise BadRequest(
                f"checkpoint_id={checkpoint_id!r} with a Writer of casckpt",
                "its run and step say where it saves",
                "leave checkpoint_id out",
            )
        self._data = {}

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take note of who commits."""
        self._commits = is_coordinator
        self._data = {}

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return the plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Bring this process's items; durable on return where another process commits them.

        Raises:
            BadLeaf: a tensor cannot be stored.
            NoSpace: the disk is full.
        """
        results = []
        for item in plan.items:
            name = _name(item.index)
            value: Any = planner.resolve_data(item)
            if item.type == WriteItemType.BYTE_IO:
                value = bytes(value.getbuffer())
                size = len(value)
            else:
                value = value.detach()
                size = value.numel() * value.element_size()
            self._data[name] = value
            results.append(WriteResult(item.index, size, [name, ""]))
        if not self._commits and self._data:
            # What the commit will hold is written here, so it is coded against the one before.
            part = self._store.save(
                f"{self._run}/dcp-{_rank()}",
                {"part_of": self._run, "data": self._data},
                parent=self._store.latest(self._run),
            )
            results = [
                dataclasses.replace(one, storage_data=[one.storage_data[0], part.id])
                for one in results
            ]
            self._data = {}
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint; DCP calls it in one process, when all have brought theirs.

        Raises:
            StepExists, BadLeaf, RunMoved, NoSpace: see `Store.save`.
            OperationFailed: another process brought its items to another store.
        """
        brought: dict[str, str] = {}
        for result in (one for rank in results for one in rank):
            name, part = result.storage_data
            brought[name] = part
        data = dict(self._data)
        for part in sorted({part for part in brought.values() if part}):
            names = [name for name, home in brought.items() if home == part]
            data.update(self._stored(part, names))
        state = {"dcp": encoded(metadata), "data": {name: data[name] for name in sorted(data)}}
        self.checkpoint = self._store.save(
            self._run, state, self._step, metrics=self._metrics, tags=self._tags
        )
        self._data = {}
        self._remove_parts(set(brought.values()))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return False: a path does not mean a Writer, only the caller does."""
        return False

    def _stored(self, part: str, names: Sequence[str]) -> dict[str, _Stored]:
        checkpoint = next((one for one in self._parts() if one.id == part), None)
        if checkpoint is None:
            raise OperationFailed(
                f"{len(names)} items of {self._run} are not in this store",
                f"{self._store.path} lacks the part {part[:10]} that another process has saved",
                "open the same store, on the same machine, in all processes",
            )
        entries = {entry.path: entry for entry in self._store.entries(checkpoint)}
        return {
            name: _Stored(self._store, checkpoint, name, entries.get(f"data.{name}"))
            for name in names
        }

    def _parts(self) -> list[Checkpoint]:
        """Return what is in runs named as those of parts are; others below the run are not ours."""
        name = re.compile(rf"{re.escape(self._run)}/dcp-[0-9]+")
        found = self._store.checkpoints(f"{self._run}/dcp-*")
        return [one for one in found if name.fullmatch(one.run)]

    def _remove_parts(self, brought: Collection[str]) -> None:
        """Remove the parts of this save and of saves that failed, but not what somebody marked."""
        repository = self._store._repository
        # Rows before marks: whoever tags or pins from here on changes the row, and it stays.
        rows = [
            row
            for run in {one.run for one in self._parts()}
            for row in repository.checkpoint_rows(run)
        ]
        payloads = {(row.run, row.seq): row.payload for row in rows}
        for one in self._parts():
            payload = payloads.get((one.run, one.seq))
            if payload is None or one.pinned or one.tags:
                continue
            if one.id in brought or self._is_part(one):
                repository.bury([(one.run, one.seq, payload)])

    def _is_part(self, checkpoint: Checkpoint) -> bool:
        """Return whether a Writer has saved it; what cannot be read is left alone."""
        try:
            found = self._store.restore(checkpoint, only="part_of")
        except CasckptError:
            return False
        return bool(found == {"part_of": self._run})


class Reader(StorageReader):
    """Loads a checkpoint of a `Writer` with `torch.distributed.checkpoint.load`.

        dcp.load(state, storage_reader=casckpt.dcp.Reader(store, "llm"))

    Any number of processes may load what any number has saved. Only the tensors that a process
    asks for are read, and every byte is checked. Nothing is unpickled but what torch's own
    restricted loader takes; dtypes are never cast.

    Args:
        store: the store.
        ref: which checkpoint.
        allow_pickle: load other objects too, which can run any code.
    """

    def __init__(self, store: Store, ref: str | Checkpoint, *, allow_pickle: bool = False) -> None:
        super().__init__()
        self.checkpoint = store.get(ref) if isinstance(ref, str) else ref
        self._store = store
        self._allow_pickle = allow_pickle
        self._metadata: Metadata | None = None

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin a load.

        Raises:
            BadRequest: `checkpoint_id` was given: the REF is the reader's own.
        """
        if checkpoint_id is not None:
            raise BadRequest(
                f"checkpoint_id={checkpoint_id!r} with a Reader of casckpt",
                "its REF says what it loads",
                "leave checkpoint_id out",
            )

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what DCP needs to know of the checkpoint.

        Raises:
            BadRequest: it was not saved with a Writer.
            Corrupt: it is damaged.
        """
        try:
            text = self._store.restore(self.checkpoint, only="dcp")["dcp"]
        except NotFound:
            raise BadRequest(
                f"{self.checkpoint.ref} was not saved by torch.distributed.checkpoint",
                "it holds a state of another kind",
                "load it with store.restore",
            ) from None
        return decoded(text)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Take the metadata."""
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill what this process asks for.

        Raises:
            TreeMismatch: a tensor has another dtype than the one saved.
            PickleRefused: an object could run code.
            Corrupt: bytes are damaged.
        """
        for group in self._groups(plan.items):
            names = {_name(item.storage_index) for item in group}
            only = [glob.escape(f"data.{name}") for name in sorted(names)]
            data = self._store.restore(self.checkpoint, only=only)["data"]
            for item in group:
                value = data[_name(item.storage_index)]
                if item.type == LoadItemType.BYTE_IO:
                    planner.load_bytes(item, self._checked(item, value))
                else:
                    _fill(planner, item, value)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return False: a path does not mean a Reader, only the caller does."""
        return False

    def _groups(self, items: Sequence[Any]) -> Iterator[list[Any]]:
        """Yield items that are read together, each with the others of its tensor."""
        lengths = {entry.path: entry.length for entry in self._store.entries(self.checkpoint)}
        group: list[Any] = []
        seen: set[str] = set()
        total = 0
        for item in sorted(items, key=lambda item: _name(item.storage_index)):
            name = _name(item.storage_index)
            if name not in seen and total >= _TOGETHER_BYTES:
                yield group
                group, seen, total = [], set(), 0
            total += 0 if name in seen else lengths.get(f"data.{name}", 0)
            seen.add(name)
            group.append(item)
        if group:
            yield group

    def _checked(self, item: Any, value: bytes) -> io.BytesIO:
        """Return bytes that torch.save wrote, if loading them runs nothing."""
        if not self._allow_pickle:
            try:
                torch.load(io.BytesIO(value), weights_only=True)
            except (pickle.UnpicklingError, RuntimeError) as exc:
                raise PickleRefused(
                    f"{item.storage_index.fqn} in {self.checkpoint.ref} is no plain value",
                    str(exc).partition("\n")[0][:200],
                    "Reader(..., allow_pickle=True), if you trust whoever saved it",
                ) from exc
        return io.BytesIO(value)


class _Stored:
    """A value of a part that is in the store already; its bytes are read when they are needed."""

    def __init__(self, store: Store, part: Checkpoint, name: str, entry: Any) -> None:
        self._store, self._part, self._name, self._entry = store, part, name, entry

    def casckpt_flatten(self, path: str, walker: Walker) -> Node:
        """Return the node of the tensor, or of the bytes."""
        entry = self._entry
        if entry is None or entry.kind != "tensor" or entry.alias is not None:
            return walker.walk(self.value(), path)
        size = getattr(torch, entry.dtype).itemsize
        return walker.add(
            Leaf(
                path, "tensor", entry.dtype, entry.shape, entry.order, entry.flags,
                size // 2 if "complex" in entry.dtype else size, entry.length, self, value=self,
            )
        )  # fmt: skip

    def value(self) -> Any:
        """Return what the part holds under the name."""
        found = self._store.restore(self._part, only=glob.escape(f"data.{self._name}"))
        return found["data"][self._name]

    def view(self) -> memoryview:
        """Return the bytes, in the order in which they are stored."""
        tensor = self.value()
        axes = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
        raw = tensor.detach().permute(axes).contiguous().reshape(-1).view(torch.uint8)
        array: np.ndarray[Any, Any] = raw.numpy()
        return array.data.cast("B")

    def copy_to(self, dest: memoryview) -> None:
        """Copy the bytes."""
        dest[:] = self.view()

    @property
    def memory_maker(self) -> None:
        """Return None: any memory will do."""


def _fill(planner: LoadPlanner, item: Any, value: torch.Tensor) -> None:
    for axis, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        value = value.narrow(axis, offset, length)
    target = planner.resolve_tensor(item).detach()
    if target.dtype != value.dtype or target.shape != value.shape:
        raise TreeMismatch(
            f"{item.dest_index.fqn}: {value.dtype} {tuple(value.shape)} in the checkpoint,"
            f" {target.dtype} {tuple(target.shape)} in the state",
            "a load does not cast",
            "load into a tensor of the dtype that was saved",
        )
    target.copy_(value)
    planner.commit_tensor(item, target)


def _name(index: MetadataIndex) -> str:
    """Return the name of an item in the tree."""
    if not index.offset or not any(index.offset):
        return index.fqn
    return f"{index.fqn}@{','.join(map(str, index.offset))}"


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
