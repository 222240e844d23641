"""Questions about the rows of a store: which checkpoints, which runs, what does a REF mean.

Everything here reads rows of the index and no manifest, so `ls` needs neither numpy nor the
bytes of any checkpoint. `Catalog` is also where a Checkpoint looks up what its row lacks.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.lines import PLAIN, LineView, read_view, visible, with_inherited
from casckpt.checkpoint.payloads import decode_row
from casckpt.checkpoint.records import Checkpoint, RunInfo, trash_order
from casckpt.checkpoint.refs import (
    ALL_LINES,
    Ref,
    Selector,
    check_mode,
    is_glob,
    names_glob,
    parse_ref,
    rank,
    select,
    selects_run,
)
from casckpt.errors import Ambiguous, BadRef, Corrupt, NotFound

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Manifest
    from casckpt.store import CheckpointRow, Repository
    from casckpt.store.rows import RowState

_LATEST: Final = Selector()
_LIVE: Final[tuple[RowState, ...]] = ("live",)
_TRASH: Final[tuple[RowState, ...]] = ("trash",)


class Catalog:
    """Reads the rows of one open store.

    Holds no state but the store; every call sees what is committed at that moment. Safe to
    use from many threads.
    """

    def __init__(self, repository: Repository) -> None:
        """Read the rows of `repository`."""
        self._repository = repository

    @property
    def path(self) -> Path:
        """The folder of the store."""
        return self._repository.path

    def checkpoints(self, run: str = "*", *, trash: bool = False) -> list[Checkpoint]:
        """Return checkpoints, by run and then oldest first.

        Args:
            run: a run, with `~LINE` or `~*` if wanted, or a glob over names of runs (`*`
                crosses `/`). The bare name of a run means its newest line with what that
                inherited; a glob means all lines.
            trash: those in the trash instead of the live ones.

        Raises:
            NotFound: if a run was named and it has none.
            BadRef: if a checkpoint was named.
        """
        if not names_glob(run):
            ref = parse_ref(run)
            if not selects_run(ref):
                raise BadRef(
                    f"{run} names a checkpoint",
                    "a list is of a run, a line of it, or a pattern",
                    f"`casckpt show {run}` shows it alone",
                )
            line = ALL_LINES if trash and ref.line is None else ref.line
            return self.of_line(ref.run, line, trash=trash)
        return self.matching(run.removesuffix("~*"), trash=trash)

    def of_line(self, run: str, line: int | None, *, trash: bool = False) -> list[Checkpoint]:
        """Return the checkpoints of a run that a line sees, oldest first; see `visible`.

        Raises:
            NotFound: if the run, or the line, has none.
        """
        everything = self._of_run(run, trash=trash)
        view = self.view(run)
        found = visible(everything, line, view)
        if not found:
            lines = sorted({ck.line for ck in everything}, reverse=True)
            there = ", ".join(f"{run}~{number}" for number in lines[:5])
            raise NotFound(
                f"nothing is saved on the current line of {run}, {run}~{view.current}"
                if line is None
                else f"no line {run}~{line} with checkpoints",
                f"there are checkpoints on {there}",
                f"`casckpt ls '{run}~*'{' --trash' if trash else ''}` shows them",
                run=run,
            )
        return found

    def matching(self, pattern: str = "*", *, trash: bool = False) -> list[Checkpoint]:
        """Return checkpoints on all lines of the runs whose names match a glob or are equal."""
        rows = self._repository.checkpoint_rows(
            None if is_glob(pattern) else pattern,
            states=_TRASH if trash else _LIVE,
        )
        if pattern != "*" and is_glob(pattern):
            rows = [row for row in rows if fnmatchcase(row.run, pattern)]
        found: list[Checkpoint] = []
        for members in _grouped(self._decode(rows)):
            found += visible(members, ALL_LINES)
        return found

    def runs(self, pattern: str = "*") -> list[RunInfo]:
        """Return the runs with live checkpoints whose names match a glob, by name."""
        return [_run_info(members) for members in _grouped(self.matching(pattern))]

    def resolve(self, ref: Ref) -> Checkpoint:
        """Return the live checkpoint that a REF means.

        Raises:
            NotFound: if there is none.
            Ambiguous: if an id has more than one checkpoint.
            BadRef: if `best` lacks its metric or mode.
        """
        if ref.id_prefix:
            return self._by_id(ref)
        view = self.view(ref.run)
        selector = ref.selector or _LATEST
        if selector.kind in ("latest", "step") and not ref.line:
            found = self._of_one_line(ref.run, view, selector)
            if found is not None:
                return found
        return select(with_monitor(ref, view), self.of_line(ref.run, ref.line))

    def resolve_trash(self, ref: Ref) -> Checkpoint:
        """Return the checkpoint in the trash that a REF means; of equals the one put there last.

        Raises:
            NotFound: if there is none; the message says so if it is live.
        """
        if ref.id_prefix:
            return self._by_id(ref, trash=True)
        line = ALL_LINES if ref.line is None else ref.line
        members = self.of_line(ref.run, line, trash=True)
        return select(ref, sorted(members, key=trash_order))

    def last_trashed(self, run: str, line: int) -> list[Checkpoint]:
        """Return what a line has in the trash, the newest last; of equals the one put there last.

        Raises:
            NotFound: if it has none.
        """
        found = self.of_line(run, line, trash=True)
        found.sort(key=lambda ck: (ck.line, *trash_order(ck)))
        return list({(ck.line, ck.position): ck for ck in found}.values())

    def newest(self, run: str, line: int | None = None) -> Checkpoint | None:
        """Return the last checkpoint that a run's name sees, or None."""
        view = self.view(run)
        if not line:
            found = self._of_one_line(run, view)
            if found is not None:
                return found
        members = visible(self._decode(self._repository.checkpoint_rows(run)), line, view)
        return members[-1] if members else None

    def view(self, run: str) -> LineView:
        """Return what the row of a run says of its lines."""
        return read_view(run, self._repository.run_row(run))

    def inherited(self, run: str, line: int) -> list[Checkpoint]:
        """Return the live checkpoints of a line with what it inherited, oldest first."""
        members = self._decode(self._repository.checkpoint_rows(run))
        return with_inherited(members, line, self.view(run))

    def declared(self, checkpoints: Iterable[Checkpoint]) -> dict[Checkpoint, tuple[str, ...]]:
        """Return what must stay by the rows of runs, with reasons.

        That is the best of each line whose loop has declared what is best, and what a line has
        begun from that has not saved yet.

        Args:
            checkpoints: all live ones of each run that is looked at.

        Raises:
            Corrupt: if the row of a run does not decode.
        """
        views = {run: read_view(run, payload) for run, payload in self._repository.run_rows()}
        begun = frozenset().union(*(view.begun_from for view in views.values()))
        found: dict[Checkpoint, tuple[str, ...]] = {}
        for members in _grouped(checkpoints):
            view = views.get(members[0].run, PLAIN)
            for checkpoint in members:
                if checkpoint.id in begun:
                    found[checkpoint] = ("branch point",)
            for line, (metric, mode) in view.monitors.items():
                seen = with_inherited(members, line, view)
                for _, checkpoint in rank(seen, metric, check_mode(mode, metric))[:1]:
                    found[checkpoint] = (f"best {metric}", *found.get(checkpoint, ()))
        return found

    def around(
        self, run: str, line: int, step: int | None, batch: int = 0
    ) -> tuple[Checkpoint | None, Checkpoint | None, Checkpoint | None]:
        """Return (the last checkpoint of a line, the one at a step, the one before that step).

        Args:
            run: name of the run.
            line: number of the line.
            step: the step; None for the one after the last.
            batch: position inside the step; 0 for its boundary.
        """
        rows = [row for row in self._repository.checkpoint_rows(run) if row.line == line]
        # Only what is returned gets decoded: every save asks, and a run can be long.
        last = max(rows, key=_place_of, default=None)
        at = [row for row in rows if step is not None and (row.step, row.batch) == (step, batch)]
        before = last
        if step is not None:
            earlier = (row for row in rows if (row.step, row.batch) < (step, batch))
            before = max(earlier, key=_place_of, default=None)
        existing = max(at, key=_place_of, default=None)
        return self._maybe(last), self._maybe(existing), self._maybe(before)

    def newest_line(self, run: str) -> int:
        """Return the line that the bare name means; 0 for a run that is not there."""
        current = self.view(run).current
        if current is not None:
            return current
        return max((row.line for row in self._repository.checkpoint_rows(run)), default=0)

    def has_run(self, run: str) -> bool:
        """Return whether a run has live checkpoints."""
        found = self._of_one_line(run, PLAIN)
        return found is not None or bool(self._repository.checkpoint_rows(run))

    def check_tags_free(self, run: str, tags: Sequence[str], holder: Checkpoint | None) -> None:
        """Raise BadRequest if another checkpoint of a run than `holder` has one of the tags."""
        if tags:
            from casckpt.checkpoint.guards import check_tags_free

            rows = self._repository.checkpoint_rows(run)
            check_tags_free(rows, tags, None if holder is None else holder.seq)

    def one(self, run: str, seq: int) -> Checkpoint:
        """Return the live checkpoint of one commit, as it is now.

        Raises:
            NotFound: if it is not live any more.
        """
        rows = self._repository.checkpoint_rows(run)
        many_lines = any(row.line for row in rows)
        for row in rows:
            if row.seq == seq:
                return decode_row(row, many_lines=many_lines, source=self)
        raise NotFound(f"the checkpoint of {run} is gone", "it was removed meanwhile", run=run)

    def manifest(self, checkpoint: Checkpoint) -> Manifest:
        """Return a checkpoint's manifest.

        Raises:
            Deleted: if it is gone.
            Corrupt: if its bytes are damaged.
            NewerFormat: if a newer casckpt wrote it.
        """
        return self.manifest_and_refs(checkpoint)[0]

    def manifest_and_refs(self, checkpoint: Checkpoint) -> tuple[Manifest, list[bytes]]:
        """Return a checkpoint's manifest and the ids of the blobs that its entries index."""
        # Not at the top: `ls` reads no manifest and starts faster without the parser.
        from casckpt.checkpoint import manifest

        try:
            refs, body = self._repository.read_manifest(bytes.fromhex(checkpoint.id))
        except Corrupt as exc:
            raise manifest.unreadable(checkpoint.ref, exc) from exc
        return manifest.decode(body, len(refs)), list(refs)

    def unique_bytes(self, checkpoint: Checkpoint) -> int:
        """Return the stored bytes that no other, trash included, reaches; reads every manifest."""
        own = self._repository.closure([bytes.fromhex(checkpoint.id)])
        rows = self._repository.checkpoint_rows(states=_LIVE + _TRASH)
        others = {row.manifest_id for row in rows if row.seq != checkpoint.seq}
        shared = self._repository.closure(sorted(others))
        return sum(stored for id_, (_, stored) in own.items() if id_ not in shared)

    def _of_run(self, run: str, *, trash: bool = False) -> list[Checkpoint]:
        rows = self._repository.checkpoint_rows(run, states=_TRASH if trash else _LIVE)
        if not rows:
            raise self.no_run(run, trash=trash)
        return self._decode(rows)

    def _of_one_line(
        self, run: str, view: LineView, selector: Selector = _LATEST
    ) -> Checkpoint | None:
        """Return the newest of a run, or the one at a step, without reading thousands of rows.

        None where that is not enough: a run with more lines than one, or whose last commit there is
        not live any more.
        """
        seq = None if view.current else self._repository.head(run, None)
        row = None if seq is None else self._repository.checkpoint_row(run, seq)
        if row is None or row.line:
            return None
        if selector.kind == "step":
            seq = self._repository.commit_at(run, 0, selector.step, selector.batch)
            row = None if seq is None else self._repository.checkpoint_row(run, seq)
        return None if row is None or row.state != "live" else decode_row(row, source=self)

    def _maybe(self, row: CheckpointRow | None) -> Checkpoint | None:
        return None if row is None else decode_row(row, source=self)

    def _by_id(self, ref: Ref, *, trash: bool = False) -> Checkpoint:
        rows = [
            row
            for row in self._repository.checkpoint_rows(states=_LIVE + _TRASH)
            if row.manifest_id.hex().startswith(ref.id_prefix)
        ]
        found = self._decode([row for row in rows if (row.state == "trash") == trash])
        if len({checkpoint.id for checkpoint in found}) > 1:
            names = ", ".join(f"{ck.id[:12]} ({ck.ref})" for ck in found[:4])
            raise Ambiguous(
                f"{ref.text} fits {len(found)} checkpoints", names, ref=ref.text, found=found
            )
        if found:
            return found[-1]
        elsewhere = "no id in the store begins so"
        if rows:
            elsewhere = "it is live" if trash else "it is in the trash"
        hint = "`casckpt undelete` brings it back" if rows and not trash else ""
        raise NotFound(f"{ref.text}: no such id", elsewhere, hint, ref=ref.text)

    def _decode(self, rows: Iterable[CheckpointRow]) -> list[Checkpoint]:
        rows = list(rows)
        # Rows come ordered by run, so the runs with a second line are known from one pass.
        branched = {row.run for row in rows if row.line}
        with _collector_paused():
            return [decode_row(row, many_lines=row.run in branched, source=self) for row in rows]

    def no_run(self, run: str, *, trash: bool = False) -> NotFound:
        """Return the error for a run, or a glob, that no checkpoint is of."""
        if trash:
            return NotFound(
                f"nothing of {run} is in the trash",
                "it was never removed, or a collection has freed it since",
                "`casckpt ls --trash` shows what can come back",
                run=run,
            )
        trashed = self._repository.checkpoint_rows(run, states=_TRASH)
        if trashed:
            them = "checkpoint is" if len(trashed) == 1 else "checkpoints are"
            return NotFound(
                f"no run {run}",
                f"its {len(trashed)} {them} in the trash",
                f"`casckpt undelete {run}` brings all of it back, `{run}@STEP` one",
                run=run,
            )
        if self._repository.run_row(run):
            return NotFound(
                f"no checkpoint of {run}",
                "nothing has been saved to it, or all of it was removed",
                f"`casckpt status {run}` shows how it stands",
                run=run,
            )
        rows = self._repository.checkpoint_rows()
        names = sorted({row.run for row in rows})
        runs = f"{len(names)} run{'' if len(names) == 1 else 's'}"
        why = f"the store {self._repository.path} has {runs}"
        if is_glob(run):
            return NotFound(f"no run matches {run}", why, run=run)
        # As `ls` shows them, ids lack the mark that they have in a REF.
        is_id = len(run) > 5 and any(row.manifest_id.hex().startswith(run) for row in rows)
        near = [f"id:{run}"] if is_id else _near(run, names)
        hint = f"did you mean {', '.join(near)}?" if near else ""
        return NotFound(f"no run {run}", why, hint, run=run, near=near)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep the garbage collector from scanning what a long list is being made of.

    None of it is garbage, and of ten thousand rows the scans are a quarter of the time.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def with_monitor(ref: Ref, view: LineView) -> Ref:
    """Return a REF whose `best` says what is best: by the monitor of the line, where it lacks it.

    Args:
        ref: any REF with a run.
        view: what the row of the run says.
    """
    selector = ref.selector
    if selector is None or selector.kind != "best" or selector.mode is not None:
        return ref
    line = view.current if ref.line in (None, ALL_LINES) else ref.line
    metric, mode = view.monitors.get(line or 0, ("", ""))
    if mode not in ("min", "max") or selector.metric not in (None, metric):
        return ref
    return replace(ref, selector=replace(selector, metric=metric, mode=check_mode(mode, metric)))


def _place_of(row: CheckpointRow) -> tuple[int, int, int]:
    return (row.step, row.batch, row.seq)


def _grouped(checkpoints: Iterable[Checkpoint]) -> list[list[Checkpoint]]:
    grouped: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        grouped.setdefault(checkpoint.run, []).append(checkpoint)
    return [grouped[name] for name in sorted(grouped)]


def _run_info(members: Sequence[Checkpoint]) -> RunInfo:
    newest = max(ck.line for ck in members)
    last = visible(members, newest)[-1]
    return RunInfo(
        name=last.run,
        line=newest,
        lines=newest + 1,
        checkpoint_count=len(members),
        last=last,
        metrics=last.metrics,
        created=min(ck.created for ck in members),
        updated=max(ck.created for ck in members),
        logical_bytes=sum(ck.logical_bytes for ck in members),
        new_bytes=sum(ck.new_bytes for ck in members),
        stored_bytes=sum(ck.stored_bytes for ck in members),
    )


def _near(name: str, names: Sequence[str]) -> list[str]:
    from difflib import get_close_matches

    inside = [other for other in names if other.startswith(f"{name}/")]
    return inside[:4] or get_close_matches(name, names, n=3, cutoff=0.6)
