"""The calls that save files as they are, and bring them back byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.restores import Restores
from casckpt.checkpoint.saves import Saves
from casckpt.errors import Corrupt

if TYPE_CHECKING:
    import os

    from casckpt.checkpoint.file_reading import FileTree


class FileSaves(Saves, Restores):
    """The calls for files. Thread safe."""

    def save_files(
        self,
        run: str,
        path: str | os.PathLike[str],
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
        parent: str | Checkpoint | None = None,
    ) -> Checkpoint:
        """Save a file or a folder of any content; when this returns, it is durable.

        torch files, safetensors, npz and npy (and HDF5 if h5py is installed) are cut at their
        tensors: these share their bytes with state trees and other files, and are coded like
        tensors. Everything comes back byte for byte all the same.

        Permissions are kept, times are not. Links that stay inside the folder come back as
        links; other links to files as what they point to.

        Args:
            run: name of the run; made if it is new.
            path: a file or a folder. Nothing may write to it meanwhile.
            step: where in the run, from 0; None for the last step + 1.
            metrics: see `save`, like all others.
            tags: see `save`.
            replace: see `save`.
            level: see `save`.
            parent: see `save`.

        Returns:
            The new checkpoint; or the one that was there, if it holds the same files at the
            same step.

        Raises:
            BadRequest: there is nothing at `path`; or something in it that is neither file,
                folder nor link, or a link to a folder outside.
            OperationFailed: a file cannot be read, or changed while it was.
            StepExists: the step holds something else, or is smaller than the last one.
            RunMoved: another process saved to the run meanwhile; nothing was committed.
            NoSpace: the disk is full; nothing that was committed is lost.
        """
        from casckpt.checkpoint.filetrees import Files

        request = self._request(run, step, metrics, tags, replace, level, parent=parent)
        return self._save_now(request, Files(path))

    def restore_files(
        self,
        ref: str | Checkpoint,
        dest: str | os.PathLike[str],
        *,
        into_folder: bool = False,
    ) -> list[Path]:
        """Write the files of a checkpoint, every byte checked; all of them or none.

        Args:
            ref: a REF or a Checkpoint that `save_files` made.
            dest: for a folder, a new or empty one. For a file, its new place; or a folder that
                is there, where it gets its name. A file that is there is replaced.
            into_folder: `dest` is a new or empty folder for a single file too.

        Returns:
            The files that were written.

        Raises:
            NotFound: there is no such checkpoint.
            BadRequest: it holds a state; `dest` is taken, or its parent is not there.
            Corrupt: bytes are damaged. It names the checkpoints that share them, and the newest
                whole one (attributes `shared_by`, `newest_whole`).
            NoSpace, OperationFailed: the system refuses. What was at `dest` is untouched.
        """
        store, checkpoint = self._find(ref)
        self._background.tell(checkpoint.run)
        tree = store._file_tree(checkpoint)
        place = Path(dest)
        try:
            return tree.write_into(place) if into_folder else tree.write(place)
        except Corrupt as exc:
            raise store._explained(checkpoint, exc) from exc

    def holds_files(self, ref: str | Checkpoint) -> bool:
        """Return whether a checkpoint holds files, not a state.

        Raises:
            NotFound: there is no such checkpoint.
        """
        from casckpt.checkpoint.file_reading import holds_files

        store, checkpoint = self._find(ref)
        return holds_files(store._catalog.manifest(checkpoint).tree)

    def _file_tree(self, checkpoint: Checkpoint) -> FileTree:
        from casckpt.checkpoint.file_reading import file_tree

        manifest, refs = self._catalog.manifest_and_refs(checkpoint)
        return file_tree(self._repository, manifest, refs)
