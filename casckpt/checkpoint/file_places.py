"""Files by their names: a run seen as a folder whose files are put, replaced and removed singly.

Every file that is put is a checkpoint of its own. The newest one that has a name is the file; those
before it go to the trash, unless they are tagged or pinned. Folders saved with `save_files` are
seen too, as if all their files had been put at once.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.curation import Curation
from casckpt.checkpoint.file_reading import FileTree, StoredFile, file_tree, holds_files
from casckpt.checkpoint.file_saves import FileSaves
from casckpt.checkpoint.filetrees import Files
from casckpt.checkpoint.guards import unmarked, unpinned
from casckpt.checkpoint.questions import Questions
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import parse_ref
from casckpt.errors import BadRequest, NotFound, RunMoved, StepExists

if TYPE_CHECKING:
    from casckpt.store import RowsView

_ATTEMPTS: Final = 50
"""A save gives way to another process's about once per rank that writes at the same moment."""

_TREES_MAX: Final = 4096
"""Manifests whose files are remembered; they never change."""


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file of a run.

    Attributes:
        file: what to read.
        checkpoint: the one it is in.
    """

    file: StoredFile
    checkpoint: Checkpoint


class FilePlaces(FileSaves, Questions, Curation):
    """A store with the calls for files by name. Thread safe."""

    _trees: dict[str, FileTree | None] | None = None

    def files_of(self, ref: str) -> dict[str, PlacedFile]:
        """Return the files of a run, a line or one checkpoint, by name.

        Raises:
            NotFound: there is no such run or checkpoint.
            BadRef: it is no REF.
        """
        self._ready()
        parsed = parse_ref(ref)
        if parsed.selector is not None or parsed.id_prefix:
            found = [self._find(ref)[1]]
        else:
            found = self._catalog.of_line(parsed.run, parsed.line)
        files: dict[str, PlacedFile] = {}
        for checkpoint in found:
            tree = self._tree_of(checkpoint)
            if tree is not None:
                for name, file in _with_links(tree).items():
                    files[name] = PlacedFile(file, checkpoint)
        return files

    def put_file(self, run: str, name: str, path: str | os.PathLike[str]) -> Checkpoint:
        """Save a file under a name, in the place of the one that has it; durable on return.

        A kill at any moment leaves the old file or the new one.

        Raises:
            BadRequest: the run is one that training keeps.
            NoSpace, OperationFailed: see `save_files`; the old file is still there.
        """
        self._refuse_training(run)
        files = Files(path, name=name)
        attempt = 0
        while True:
            attempt += 1
            request = self._request(run, None, None, (), False, None)
            try:
                made = self._save_now(request, files)
                break
            except RunMoved:
                if attempt == _ATTEMPTS:
                    raise
                # Ranks begin at the same moment; they must not go on in step.
                time.sleep(random.SystemRandom().uniform(0, 0.02 * attempt))
        older = []
        for checkpoint in self._catalog.of_line(run, None):
            if checkpoint.seq < made.seq and not checkpoint.pinned and not checkpoint.tags:
                tree = self._tree_of(checkpoint)
                if tree is not None and tree.single and name in tree.files:
                    older.append(checkpoint)
        self._discard(older, unmarked)
        return made

    def remove_file(self, run: str, name: str) -> None:
        """Move a file to the trash, with what it replaced.

        Raises:
            NotFound: there is none of that name.
            BadRequest: it is part of a folder that was saved as one, or its checkpoint is pinned.
        """
        holding: list[Checkpoint] = []
        newest: tuple[Checkpoint, FileTree] | None = None
        for checkpoint in self._catalog.of_line(run, None):
            tree = self._tree_of(checkpoint)
            if tree is not None and name in _with_links(tree):
                newest = (checkpoint, tree)
                if tree.single:
                    holding.append(checkpoint)
        if newest is None:
            raise NotFound(f"{run} has no file {name}", "none of its checkpoints has one so named")
        if not newest[1].single:
            raise BadRequest(
                f"{name} cannot be removed alone",
                f"it is part of the folder saved as {newest[0].ref}",
                f"`casckpt rm {newest[0].ref}` removes the folder",
            )
        pinned = [checkpoint for checkpoint in holding if checkpoint.pinned]
        if pinned:
            raise BadRequest(
                f"{name} cannot be removed",
                f"{pinned[0].ref} is pinned",
                f"`casckpt unpin {pinned[0].ref}` first",
            )
        self._discard(holding, unpinned)

    def _discard(
        self,
        checkpoints: list[Checkpoint],
        guard: Callable[[Iterable[tuple[str, int]]], Callable[[RowsView], None]],
    ) -> None:
        """Move checkpoints to the trash, but those that others have removed or marked meanwhile."""
        try:
            if checkpoints:
                self._remove(checkpoints, guard((ck.run, ck.seq) for ck in checkpoints))
        except (NotFound, StepExists):
            # All are still there but the one that another process was first with.
            for checkpoint in checkpoints:
                if len(checkpoints) > 1:
                    self._discard([checkpoint], guard)

    def _refuse_training(self, run: str) -> None:
        if self._catalog.view(run).current is not None:
            raise BadRequest(
                f"files cannot be put into {run}",
                "a training run keeps its own checkpoints there",
                "put them into a run of their own",
            )

    def _tree_of(self, checkpoint: Checkpoint) -> FileTree | None:
        """Return the files of a checkpoint, None if it holds a state."""
        if self._trees is None or len(self._trees) >= _TREES_MAX:
            self._trees = {}
        try:
            return self._trees[checkpoint.id]
        except KeyError:
            manifest, refs = self._catalog.manifest_and_refs(checkpoint)
            tree = None
            if holds_files(manifest.tree):
                tree = file_tree(self._repository, manifest, refs)
            self._trees[checkpoint.id] = tree
            return tree


def _with_links(tree: FileTree) -> Mapping[str, StoredFile]:
    """Return the files of a tree, and under the name of a link to one that file too."""
    if not tree.links:
        return tree.files
    found = dict(tree.files)
    for name, target in tree.links.items():
        file = tree.files.get(os.path.normpath(PurePosixPath(name).parent / target))
        if file is not None:
            found[name] = file
    return found


def open_files(path: Path) -> FilePlaces:
    """Open a store for its files: for reading only where it cannot be written."""
    writable = os.access(path, os.W_OK) or not path.exists()
    return FilePlaces(path, "a" if writable else "r")
