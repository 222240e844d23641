"""Restoring: from a REF to a state tree, and what to say when bytes are damaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, Final

from casckpt.checkpoint.extents import blob_lengths
from casckpt.checkpoint.handle import StoreHandle
from casckpt.checkpoint.manifest import beside_of
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import ALL_LINES
from casckpt.errors import (
    BadRequest,
    CasckptError,
    Corrupt,
    Deleted,
    MissingExtra,
    NewerFormat,
    NotFound,
    PickleRefused,
    TreeMismatch,
)
from casckpt.logs import logger

MiB: Final = 1024 * 1024

_PIECE_BYTES: Final = 16 * MiB
"""How much of a blob is read at once to see whether it is whole: 16 chunks, for all workers."""

_NAMES_SHOWN: Final = 5

_MISFITS: Final = (NotFound, TreeMismatch, PickleRefused, MissingExtra, NewerFormat)
"""What a whole checkpoint may raise that cannot stand in for what was asked of another."""


class Restores(StoreHandle):
    """The calls that restore. Thread safe."""

    def restore(
        self,
        ref: str | Checkpoint,
        *,
        into: Any = None,
        only: str | Iterable[str] | None = None,
        strict: bool = True,
        fallback: bool = False,
        verify: bool = True,
        device: Any = None,
        as_numpy: bool = False,
        allow_pickle: bool = False,
    ) -> Any:
        """Return the state of a checkpoint, every byte checked against its id.

        Args:
            ref: a REF or a Checkpoint.
            into: a tree of the same structure, whose arrays, tensors and objects with
                `load_state_dict()` take the values in place. It is checked whole before
                anything in it is touched; dtypes are never cast.
            only: globs over dotted paths (`*` crosses dots); only what matches is read, and the
                result is the tree pruned to it.
            strict: with `into`: refuse unless both have the same leaves. False takes what both
                have, and logs the rest.
            fallback: if the checkpoint is damaged, take the next older whole one of its line, or
                where there is none the newest whole one of the run, and say so. One that does not
                fit `into` or `only`, or may not be read, is passed over, and that is said too.
            verify: False trusts the disk and saves the hashing.
            device: where tensors go; None is the CPU.
            as_numpy: numpy arrays in place of tensors; needs no torch.
            allow_pickle: load what was saved as `Pickled`, which can run any code.

        Returns:
            A new tree, or `into`.

        Raises:
            NotFound: there is no such checkpoint, or a glob matches nothing.
            TreeMismatch: `into` does not fit; it lists what is missing, extra and different.
            Corrupt: bytes are damaged. It names the tensors, the checkpoints that share them,
                and the newest whole one (attributes `paths`, `shared_by`, `newest_whole`). What
                was given as `into` may hold anything then.
            PickleRefused: the checkpoint holds pickled objects.
            MissingExtra: a library that it needs is not installed.
        """
        from casckpt.checkpoint.decode import restore_tree
        from casckpt.checkpoint.leaves import RestoreOptions

        store, checkpoint = self._find(ref)
        self._background.tell(checkpoint.run)
        only = None if only is None else _globs(only)

        def attempt(candidate: Checkpoint) -> Any:
            manifest, refs = store._catalog.manifest_and_refs(candidate)
            return restore_tree(
                store._repository,
                manifest,
                refs,
                into=into,
                only=only,
                strict=strict,
                verify=verify,
                options=RestoreOptions(device=device, as_numpy=as_numpy, allow_pickle=allow_pickle),
            )

        try:
            return attempt(checkpoint)
        except (Corrupt, Deleted) as exc:
            if fallback:
                return store._fall_back(checkpoint, exc, attempt)
            raise store._explained(checkpoint, exc) from exc

    def _fall_back(self, damaged: Checkpoint, error: Corrupt | Deleted, attempt: Any) -> Any:
        """Return the state of the first whole checkpoint that may stand in, saying which."""
        misfits = []
        for candidate in self._stand_ins(damaged):
            try:
                state = attempt(candidate)
            except (Corrupt, Deleted):
                logger.warning("%s is damaged too", candidate.ref)
                continue
            except _MISFITS as exc:
                logger.warning("%s cannot stand in: %s", candidate.ref, exc.what)
                misfits.append(candidate.ref)
                continue
            logger.warning(
                "%s is damaged (%s); restored %s instead", damaged.ref, error.what, candidate.ref
            )
            return state
        raise self._explained(damaged, error, misfits) from error.__cause__

    def _stand_ins(self, damaged: Checkpoint) -> Iterator[Checkpoint]:
        """Yield what comes before a checkpoint on its line, then the rest; newest first."""
        line = self._catalog.of_line(damaged.run, damaged.line)
        older = [ck for ck in reversed(line) if ck.position < damaged.position]
        yield from older
        yield from (ck for ck in self._newest_first(damaged.run) if ck not in {damaged, *older})

    def _newest_first(self, run: str) -> list[Checkpoint]:
        of_run = self._catalog.of_line(run, ALL_LINES)
        return sorted(of_run, key=lambda ck: (ck.line, ck.position), reverse=True)

    def _explained(
        self, damaged: Checkpoint, error: Corrupt | Deleted, misfits: Sequence[str] = ()
    ) -> CasckptError:
        """Return the error with who shares the damage and where a whole checkpoint is.

        Args:
            damaged: the checkpoint.
            error: what its bytes raised.
            misfits: REFs of those that were tried instead and do not fit what was asked.
        """
        if isinstance(error, Deleted):
            row = self._repository.checkpoint_row(damaged.run, damaged.seq)
            if row is None or row.state != "live":
                return error
            error = Corrupt(error.what, "no pack holds it")
        blob_ids = set(getattr(error, "blob_ids", ()))
        shared_by = self._sharing(damaged, blob_ids) if blob_ids else []
        excluded = {damaged, *shared_by}
        whole = self._first_whole(self._newest_first(damaged.run), excluded)
        stand_in = self._first_whole(self._stand_ins(damaged), excluded)
        paths = list(getattr(error, "paths", ()))
        named = error.what == f"{damaged.ref} is damaged"
        what = error.what if named else f"{damaged.ref} is damaged: {_names(paths) or error.what}"
        why = (
            f"the same bytes are in {_names([ck.ref for ck in shared_by])}"
            if shared_by
            else error.why or "no other checkpoint shares the damaged bytes"
        )
        if whole is None or stand_in is None:
            hint = "no other checkpoint of the run is whole; `casckpt verify` shows what is"
        elif misfits:
            hint = f"the newest whole one is {whole.ref}; not fit for this: {_names(misfits)}"
        elif whole == stand_in:
            hint = f"take {whole.ref}, the newest whole checkpoint, or pass fallback=True"
        else:
            hint = f"the newest whole one is {whole.ref}; fallback=True takes {stand_in.ref}"
        return Corrupt(
            what,
            why,
            hint,
            ref=damaged.ref,
            paths=paths,
            blob_ids=sorted(blob_ids),
            shared_by=[ck.ref for ck in shared_by],
            newest_whole=None if whole is None else whole.ref,
        )

    def _sharing(self, damaged: Checkpoint, blob_ids: set[bytes]) -> list[Checkpoint]:
        """Return the other live checkpoints that name one of the blobs."""
        sharing = []
        for other in self._catalog.matching():
            if other == damaged:
                continue
            try:
                refs, _ = self._repository.read_manifest(bytes.fromhex(other.id))
            except (Corrupt, Deleted):
                continue
            if not blob_ids.isdisjoint(refs):
                sharing.append(other)
        return sharing

    def _first_whole(
        self, candidates: Iterable[Checkpoint], excluded: Set[Checkpoint]
    ) -> Checkpoint | None:
        """Return the first whole checkpoint; each candidate is read to the end."""
        return next((ck for ck in candidates if ck not in excluded and self._is_whole(ck)), None)

    def _beside(self, checkpoint: Checkpoint) -> bytes | None:
        """Return what a run keeps in a checkpoint beside the state; None for nothing.

        Raises:
            Corrupt, Deleted: it cannot be read.
        """
        from casckpt.store import BlobRead

        manifest, refs = self._catalog.manifest_and_refs(checkpoint)
        place = beside_of(manifest, len(refs))
        if place is None:
            return None
        found = bytearray(place[1])
        self._repository.read_blobs([BlobRead(refs[place[0]], place[1], 0, found)])
        return bytes(found)

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        """Return whether every byte of a checkpoint reads back as its id says."""
        from casckpt.store import BlobRead

        try:
            manifest, refs = self._catalog.manifest_and_refs(checkpoint)
            lengths = blob_lengths(manifest, len(refs))
            scratch = memoryview(bytearray(min(_PIECE_BYTES, max(lengths, default=0))))
            for blob_id, length in zip(refs, lengths, strict=True):
                for offset in range(0, length, _PIECE_BYTES):
                    dest = scratch[: min(_PIECE_BYTES, length - offset)]
                    self._repository.read_blobs([BlobRead(blob_id, length, offset, dest)])
        except (Corrupt, Deleted):
            return False
        return True


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _globs(only: str | Iterable[str]) -> tuple[str, ...]:
    """Return the globs of one or several.

    Raises:
        BadRequest: there is none, or something else.
    """
    globs = (only,) if isinstance(only, str) else tuple(only) if isinstance(only, Iterable) else ()
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise BadRequest("only= selects nothing", f"it is {only!r}", "pass only='model.*'")
    return globs
