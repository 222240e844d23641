"""Reading a store that may not be written: from a copy of its index (docs/format.md, section 11).

LMDB writes to its lock file even to read. Where that cannot be (a read-only mount, a store of
another user) a child process copies `data.mdb` into a folder of its own, walks the copy, and this
process opens that. What is committed later is not in it.

Run as the child: `python -m casckpt.store.aside INDEX COPY walk|trust`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

from casckpt.errors import CasckptError, Corrupt, PermissionRefused, StoreBusy
from casckpt.programs import command_of, environment_of
from casckpt.store import files
from casckpt.store.environment import Environment

# Both heads of the file, whatever the size of its pages
_HEADS_BYTES: Final = 2 * 65536
_COPY_STEP: Final = 1 << 20
_COPY_LIMIT_S: Final = 600.0
# A head that changes meanwhile says that pages of the copy may be of two transactions.
_ATTEMPTS: Final = 50
_WAIT_S: Final = 0.05


def may_write(index: Path) -> bool:
    """Tell whether LMDB can take its place in the lock file, which readers write to as well."""
    lock = index / "lock.mdb"
    return os.access(lock if lock.exists() else index, os.W_OK, effective_ids=True)


def open_copy(index: Path, *, walk: bool) -> Environment:
    """Return a copy of an index, open to read; nothing of it is left in the file system.

    Args:
        index: folder of the index.
        walk: whether the copy is to be walked first; not needed where the clean stamp fits.

    Raises:
        Corrupt: the index is damaged.
        StoreBusy: it is written all the time.
        PermissionRefused: it may not even be read.
    """
    # Not at the top: every `ls` imports this module, and few need it.
    import shutil
    import subprocess
    import tempfile

    try:
        folder = Path(tempfile.mkdtemp(prefix="casckpt-index-"))
    except OSError as exc:
        raise files.translate(exc, f"cannot read {index} from a copy") from exc
    try:
        command = command_of(
            "casckpt.store.aside", str(index), str(folder), "walk" if walk else "trust"
        )
        try:
            outcome = subprocess.run(
                command,
                env=environment_of(),
                capture_output=True,
                timeout=_COPY_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise StoreBusy(f"cannot read {index}", "copying its index took too long") from exc
        except OSError as exc:
            raise files.translate(exc, f"cannot start {sys.executable} to read {index}") from exc
        if outcome.returncode != 0:
            raise _failure(index, outcome.returncode, outcome.stderr)
        return Environment(folder, readonly=True, lock=False)
    finally:
        # The open file outlives its name; so a process that is killed leaves nothing.
        shutil.rmtree(folder, ignore_errors=True)


def _failure(index: Path, status: int, stderr: bytes) -> CasckptError:
    said = stderr.decode("utf-8", "replace").strip().splitlines()
    why = said[-1] if said else f"reading it ended with status {status}"
    if status == StoreBusy.exit_code:
        return StoreBusy(f"cannot read {index}", why)
    if status == PermissionRefused.exit_code:
        return PermissionRefused(
            f"cannot read {index}", why, "ask its owner for permission to read"
        )
    return Corrupt(
        f"the index {index.name} is damaged",
        why,
        "its owner can run `casckpt repair --rebuild-index`; the packs still hold everything",
    )


def copy_index(index: Path, folder: Path) -> None:
    """Copy `data.mdb` into `folder` as one transaction left it.

    LMDB writes a commit's pages where no page of the last two commits is, and its head after
    them: while neither head changes, what was copied is what the newer one describes.
    """
    source, target = index / "data.mdb", folder / "data.mdb"
    for _ in range(_ATTEMPTS):
        descriptor = files.open_file(source, os.O_RDONLY)
        try:
            heads = _heads(files.read_at(descriptor, _HEADS_BYTES, 0, source))
            with target.open("wb") as file:
                at = 0
                while piece := files.read_at(descriptor, _COPY_STEP, at, source):
                    file.write(piece)
                    at += len(piece)
            if _heads(files.read_at(descriptor, _HEADS_BYTES, 0, source)) == heads:
                return
        finally:
            files.close_file(descriptor)
        time.sleep(_WAIT_S)
    raise StoreBusy("cannot copy the index", "it is written all the time")


def _heads(data: bytes) -> list[bytes]:
    """Return the bytes where the two heads are, for every size that a page may have.

    With other sizes some of these places are in pages; that those change costs another attempt.
    """
    return [data[at : at + 160] for at in (0, 4096, 8192, 16384, 32768, 65536)]


def main(index: Path, folder: Path, *, walk: bool) -> None:
    """Copy, and walk the copy if asked."""
    from casckpt.store import walk as walking

    copy_index(index, folder)
    if walk:
        walking.walk(folder)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), walk=sys.argv[3] == "walk")
    except CasckptError as exc:
        sys.stderr.write(f"{exc.why or exc.what}\n")
        sys.exit(exc.exit_code)
    except FileNotFoundError as exc:
        sys.stderr.write(f"{exc.filename} is missing\n")
        sys.exit(Corrupt.exit_code)
