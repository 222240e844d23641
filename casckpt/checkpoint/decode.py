"""From a manifest back to a state tree: what to read, where to, and putting it together.

Bytes go straight from the store into the memory of the new arrays. Small arrays that share a group
blob are read as one piece and handed out; what needs a place in between (a GPU, a group) is read
in batches, so that never more than a batch exists twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint.into import IntoPlan
from casckpt.checkpoint.leaves import VALUE_KINDS, RestoreOptions, Slot, ValueSlot
from casckpt.checkpoint.manifest import Entry, Manifest
from casckpt.checkpoint.tree_build import Builder, selected_entries
from casckpt.checkpoint.tree_paths import Selection
from casckpt.errors import CasckptError, Corrupt, NotFound, OperationFailed, PickleRefused

if TYPE_CHECKING:
    from casckpt.store import Repository

MiB: Final = 1 << 20
BATCH_BYTES: Final = 64 * MiB
"""Bytes that exist twice at most: a quarter of what a restore may take above the state."""

_GROUP_SPAN_MAX: Final = 8 * MiB
"""Longest piece of one blob read for several entries at once; groups are at most 1 MiB."""


@dataclass(slots=True)
class Job:
    """One entry to be read.

    Attributes:
        entry: which.
        open: makes its slot, when its turn comes.
        done: is called with the filled slot.
        temporary: whether the slot's memory is freed by then.
    """

    entry: Entry
    open: Callable[[], Slot]
    done: Callable[[Slot], None]
    temporary: bool = False


def restore_tree(
    repo: Repository,
    manifest: Manifest,
    refs: Sequence[bytes],
    *,
    into: Any = None,
    only: str | Iterable[str] | None = None,
    strict: bool = True,
    verify: bool = True,
    options: RestoreOptions | None = None,
) -> Any:
    """Return the state of a checkpoint.

    Args:
        repo: where the blobs are.
        manifest: what to restore.
        refs: ids of its blobs.
        into: a tree whose arrays, tensors and objects take the values; None makes new ones.
        only: globs over dotted paths; nothing else is read.
        strict: with `into`: refuse unless both have the same leaves; else take what both have.
        verify: check every byte against its id.
        options: device, as_numpy, allow_pickle.

    Raises:
        NotFound: if a glob matches nothing.
        TreeMismatch: if `into` does not fit; nothing was touched.
        BadRequest: if an object of `into` takes tensors, with as_numpy; nothing was touched.
        PickleRefused: if what is asked for holds pickles; nothing was read.
        MissingExtra: if a library is needed that is not installed.
        Corrupt: naming the paths, if bytes are damaged or the manifest contradicts itself.
        OperationFailed: if there is no memory for it.
    """
    options = options or RestoreOptions()
    selection = Selection.of(only)
    restore = _Restore(repo, manifest, refs, options, verify)
    wanted = selected_entries(manifest.tree, len(manifest.entries), selection)
    if selection is not None and selection.unused:
        raise NotFound(
            f"no path of the checkpoint matches {', '.join(map(repr, selection.unused))}",
            "globs are matched against dotted paths such as model.layer.weight",
            "`casckpt show REF` shows the paths",
            globs=selection.unused,
        )
    restore.refuse_pickles(wanted)
    if into is None:
        restore.read(wanted)
        builder = Builder(restore.leaf, len(manifest.entries), options, selection)
        return builder.build(manifest.tree)
    plan = IntoPlan(manifest, options, selection, strict)
    finish = plan.match(into)
    plan.refuse()
    restore.read_into(plan)
    return finish(restore.leaf)


class _Restore:
    """One restore in progress: slots by entry."""

    def __init__(
        self,
        repo: Repository,
        manifest: Manifest,
        refs: Sequence[bytes],
        options: RestoreOptions,
        verify: bool,
    ) -> None:
        self._repo = repo
        self._entries = manifest.entries
        self._refs = refs
        self._options = options
        self._verify = verify
        self._slots: dict[int, Slot] = {}
        self._views: dict[int, Any] = {}
        self._blob_lengths = [0] * len(refs)
        for entry in manifest.entries:
            if entry.blob is not None:
                end = entry.offset + entry.length
                self._blob_lengths[entry.blob] = max(self._blob_lengths[entry.blob], end)

    def refuse_pickles(self, wanted: Iterable[int]) -> None:
        """Raise PickleRefused if a wanted entry is a pickle and pickles are not allowed."""
        paths = [self._entries[i].path for i in wanted if self._entries[i].kind == "pickle"]
        if paths and not self._options.allow_pickle:
            raise PickleRefused(
                f"the checkpoint holds pickled objects: {', '.join(paths[:5])}",
                "unpickling runs whatever code the bytes ask for",
                paths=paths,
            )

    def leaf(self, index: int) -> Any:
        """Return the value of an entry that was read."""
        entry = self._entries[index]
        if entry.alias is None:
            return self._slots[index].value()
        if entry.stride is None:
            return self.leaf(entry.alias)
        if index not in self._views:
            self._views[index] = self._slots[entry.alias].view(entry)
        return self._views[index]

    def memory_of(self, index: int) -> int:
        """Return the entry that holds the bytes of an entry."""
        entry = self._entries[index]
        while entry.alias is not None:
            index = entry.alias
            entry = self._entries[index]
        return index

    def read(self, wanted: Iterable[int]) -> None:
        """Read entries into new memory."""
        jobs = [self._new_job(index) for index in dict.fromkeys(map(self.memory_of, wanted))]
        self._run(jobs)

    def read_into(self, plan: IntoPlan) -> None:
        """Read entries into the memory of `into` where it can be, else copy them there."""
        kept = {self.memory_of(index) for index in plan.fresh}
        aliased = {
            self.memory_of(index): bound.handler
            for index, bound in plan.targets.items()
            if self._entries[index].alias is not None
        }
        jobs = []
        for index, bound in plan.targets.items():
            if self._entries[index].alias is None:
                keep = index in kept or index in aliased
                direct = None if index in kept else plan.direct_memory(index)
                jobs.append(self._into_job(index, bound, direct, keep, index in kept))
        for index in sorted((kept | aliased.keys()) - plan.targets.keys()):
            jobs.append(self._new_job(index, None if index in kept else aliased[index]))
        self._run(jobs)
        for index, bound in plan.targets.items():
            if self._entries[index].alias is not None:
                bound.target.assign(self._leaf_of(bound.handler, index))

    def _leaf_of(self, handler: leaf_module.Handler, index: int) -> Any:
        """Return an alias as a leaf of a handler: other aliases may be of another library."""
        slot = self._slots[self.memory_of(index)]
        base = self._entries[self.memory_of(index)]
        if base.length and not len(slot.dest):  # it has left for a device
            return self.leaf(index)
        entry = self._entries[index]
        while entry.alias is not None and entry.stride is None:
            entry = self._entries[entry.alias]
        slot = handler.allocate(base, RestoreOptions(), slot.dest if base.length else None)
        return slot.value() if entry.alias is None else slot.view(entry)

    def _new_job(self, index: int, handler: leaf_module.Handler | None = None) -> Job:
        """Return the job of an entry in new memory: for a handler's array, or as was asked for."""
        entry = self._entries[index]
        options = self._options if handler is None else RestoreOptions()

        def open_slot() -> Slot:
            if entry.kind in VALUE_KINDS:
                return ValueSlot.of(entry)
            return (handler or self._own_handler(entry)).allocate(entry, options, None)

        def done(slot: Slot) -> None:
            self._slots[index] = slot

        elsewhere = options.device is not None and str(options.device) != "cpu"
        return Job(entry, open_slot, done, elsewhere and entry.kind in ("tensor", "storage"))

    def _own_handler(self, entry: Entry) -> leaf_module.Handler:
        """Return the handler that makes the leaf of an entry, as was asked for."""
        as_numpy = entry.kind == "array" or self._options.as_numpy
        return leaf_module.handler("numpy" if as_numpy else "torch")

    def _into_job(
        self, index: int, bound: Any, direct: memoryview | None, keep: bool, is_fresh: bool
    ) -> Job:
        """Return the job of an entry that goes into a target; its memory is kept for aliases.

        What is fresh is a leaf of the result at another place as well, of its own library.
        """
        entry = self._entries[index]
        here = RestoreOptions()

        def open_slot() -> Slot:
            slot: Slot = bound.handler.allocate(entry, here, direct)
            if direct is not None:
                bound.target.overwrite()
            return slot

        def done(slot: Slot) -> None:
            if direct is None:
                bound.target.assign(slot.value())
            if keep:
                self._slots[index] = slot
            if is_fresh and (own := self._own_handler(entry)) is not bound.handler:
                self._slots[index] = own.allocate(entry, here, slot.dest if entry.length else None)

        return Job(entry, open_slot, done, direct is None and not keep)

    def _run(self, jobs: list[Job]) -> None:
        by_blob: dict[int, list[Job]] = {}
        for job in jobs:
            if job.entry.blob is None:
                slot = _open(job)
                slot.finish()
                job.done(slot)
            else:
                by_blob.setdefault(job.entry.blob, []).append(job)
        batch = _Batch(self)
        for blob, shared in by_blob.items():
            batch.add(blob, shared)
            if batch.bytes_twice >= BATCH_BYTES:
                batch.flush()
        batch.flush()

    def read_blobs(self, pieces: list[tuple[int, int, memoryview]]) -> None:
        """Fill (blob, offset, dest) pieces; on damage, raise Corrupt naming the paths."""
        from casckpt.store import BlobRead

        reads = [
            BlobRead(self._refs[blob], self._blob_lengths[blob], offset, dest)
            for blob, offset, dest in pieces
        ]
        try:
            self._repo.read_blobs(reads, verify=self._verify)
        except Corrupt as exc:
            damaged = set(getattr(exc, "blob_ids", ()))
            numbers = {i for i, blob_id in enumerate(self._refs) if blob_id in damaged}
            paths = [entry.path for entry in self._entries if entry.blob in numbers]
            if not paths:
                raise
            more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
            raise Corrupt(
                f"damaged on disk: {', '.join(paths[:5])}{more}",
                exc.what,
                exc.hint,
                **(exc.details | {"paths": paths, "blob_ids": sorted(damaged)}),
            ) from exc


class _Batch:
    """Reads that are done together."""

    def __init__(self, restore: _Restore) -> None:
        self._restore = restore
        self._pieces: list[tuple[int, int, memoryview]] = []
        self._slots: list[tuple[Job, Slot]] = []
        self._groups: list[tuple[memoryview, int, list[tuple[Job, Slot]]]] = []
        self.bytes_twice = 0

    def add(self, blob: int, jobs: list[Job]) -> None:
        """Add the jobs of one blob."""
        opened = [(job, _open(job)) for job in jobs]
        self._slots += opened
        self.bytes_twice += sum(job.entry.length for job in jobs if job.temporary)
        start = min(job.entry.offset for job in jobs)
        span = max(job.entry.offset + job.entry.length for job in jobs) - start
        if len(jobs) > 1 and span <= _GROUP_SPAN_MAX:
            piece = memoryview(bytearray(span))
            self._pieces.append((blob, start, piece))
            self._groups.append((piece, start, opened))
            self.bytes_twice += span
        else:
            self._pieces += [(blob, job.entry.offset, slot.dest) for job, slot in opened]

    def flush(self) -> None:
        """Read, hand out, and let go."""
        if self._pieces:
            self._restore.read_blobs(self._pieces)
        for piece, start, opened in self._groups:
            for job, slot in opened:
                offset = job.entry.offset - start
                slot.dest[:] = piece[offset : offset + job.entry.length]
        self._pieces, self._groups = [], []
        for job, slot in self._slots:
            slot.finish()
            job.done(slot)
        self._slots, self.bytes_twice = [], 0


def _open(job: Job) -> Slot:
    try:
        return job.open()
    except CasckptError:
        raise
    except (MemoryError, RuntimeError, ValueError, OverflowError) as exc:
        raise OperationFailed(
            f"{job.entry.path}: no memory for {job.entry.length} bytes",
            str(exc)[:200],
            "free memory, or restore part of the checkpoint with only=",
            path=job.entry.path,
        ) from exc
