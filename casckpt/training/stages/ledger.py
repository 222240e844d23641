"""What of a stage is done, failed, or waits to be written: the book that a Stage keeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from casckpt.errors import BadLeaf, BadRequest
from casckpt.logs import logger
from casckpt.training import results
from casckpt.training.fingerprints.files import FileHashes
from casckpt.training.stages import rows as stage_rows
from casckpt.training.stages.items import Items, Unit, key_text
from casckpt.training.stages.lazy_results import Results
from casckpt.training.stages.rows import Shelf
from casckpt.training.stages.sums import Sums

if TYPE_CHECKING:
    from casckpt.training.results import Number, Pending
    from casckpt.training.run import Run

_HELD_BYTES: Final = 16 * 1024 * 1024
"""Results that wait for their group are written early when they take this much memory."""

_NEW, _WAITING, _FAILING, _FAILED, _DONE = range(5)
"""How a unit stands. Waiting: said to be done, and failing: to have failed; not yet written."""


_Waiting = tuple[int, "Pending", "Mapping[str, Number] | None"]
"""Number of a unit, its row, and the numbers beside its result; None for a failure."""


class Ledger:
    """The units of a stage and how each stands. Thread safe.

    Args:
        run: the run.
        name: name of the stage.
        items: its items, looked at when the ledger is first used.
        uses: what results depend on besides.
        version: the user's number for it.
        save_every: units whose rows are written together.
        shared: whether results belong to the store instead of the run's line.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        items: Items,
        *,
        uses: Any,
        version: str,
        save_every: int,
        shared: bool,
    ) -> None:
        self.name = name
        self.run = run
        self.save_every = save_every
        self._items = items
        self._uses, self._version = uses, version
        self._shared = shared
        repository = run.repository
        self._own = (
            stage_rows.shared_shelf(repository, name)
            if shared
            else stage_rows.own_shelf(repository, run.name, run.line, name)
        )
        self._lock = threading.RLock()
        self._planned = False
        self._units: list[Unit] = []
        self._places: list[int] = []
        self._of_name: dict[str, int] = {}
        self._states = bytearray()
        self._shelves: dict[int, Shelf] = {}
        self._done_count = 0
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._sums: Sums | None = None

    @property
    def done_count(self) -> int:
        """Units with a durable result."""
        self.plan()
        return self._done_count

    # ---- work

    def flush(self) -> None:
        """Write what waits; durable when this returns.

        Raises:
            NoSpace, OperationFailed: as the disk says; what was not written waits again.
        """
        with self._lock:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self.run._holding.discard(self)
        if not waiting:
            return
        written = 0
        try:
            rows = [row for _, row, _ in waiting]
            for taken in results.write(self._own.repository, rows):
                self._settled(waiting[written : written + len(taken)], taken)
                written += len(taken)
        finally:
            if written < len(waiting):
                with self._lock:
                    # Not a failure after which the item was done while this was written.
                    self._waiting[:0] = [
                        one
                        for one in waiting[written:]
                        if one[2] is not None or self._states[one[0]] == _FAILING
                    ]
                    self.run._holding.add(self)
            self.run.note_progress(self.name, self._done_count, len(self._units))

    def flush_if_due(self) -> None:
        """Write what waits if it is a whole group."""
        if len(self._waiting) >= self.save_every or self._waiting_bytes >= _HELD_BYTES:
            self.flush()

    def begin(self) -> None:
        """Lock the run: work begins."""
        self.run._begin(None)
        self.run._part_done = False
        self.run.note_progress(self.name, self._done_count, len(self._units))

    def ended(self) -> None:
        """Take note that the stage was gone through."""
        self.flush()
        if not self.pending():
            self.run._part_done = True

    def must_end(self) -> bool:
        """Return whether `run.stop()` was called; leave by Stopped if somebody else asked."""
        run = self.run
        if not run.stopping:
            return False
        self.flush()
        run.check_stop()
        return True

    def pending(self) -> list[int]:
        """Return the numbers of the units without a result."""
        self.plan()
        return [number for number, state in enumerate(self._states) if state in (_NEW, _FAILED)]

    def is_taken(self, number: int) -> bool:
        """Return whether a unit was done since the stage was looked at, by whomever."""
        if self._states[number] in (_WAITING, _FAILING, _DONE):
            return True
        if not self._shared:
            return False
        key = self._own.done_key(self._units[number].identity)
        row = self._own.repository.row(self._own.table, key)
        if row is None:
            return False
        with self._lock:
            self._mark_done(number, self._own)
            if self._sums is not None:
                self._sums.add(results.parse(row)[1][1])
        return True

    def unit(self, number: int) -> tuple[Unit, Any]:
        """Return a unit and its item."""
        unit = self._units[number]
        return unit, self._items[unit.index]

    def put(self, number: int, result: Any, numbers: Mapping[str, Number]) -> None:
        """Take a result, to be written with its group."""
        unit = self._units[number]
        shelf = self._own
        try:
            row = results.pending(
                shelf.table, shelf.done_key(unit.identity), unit.name, result, numbers
            )
        except BadLeaf as exc:
            raise results.unfit(exc, f"{unit.name:.80} of stage {self.name}") from exc
        if self._states[number] in (_FAILING, _FAILED):
            row.remove = shelf.failed_key(unit.identity)
        self._queue(number, row, numbers)

    def put_failure(self, number: int, error: BaseException | str) -> None:
        """Take the failure of a unit, to be written with its group."""
        unit = self._units[number]
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        key = self._own.failed_key(unit.identity)
        self._queue(number, results.failure(self._own.table, key, unit.name, text), None)

    def note_code(self, digest: str) -> None:
        """Note which code makes the results, and warn if it is not the same any more."""
        noted = self._read_note()
        before = noted.get("code")
        if before is not None and before != digest and self._done_count:
            logger.warning(
                "stage %s: its function has changed since; %d results are kept. "
                "Pass uses=FUNCTION or another version= to make them anew",
                self.name,
                self._done_count,
            )
        if before != digest:
            self._write_note({**noted, "code": digest})

    # ---- afterwards

    def results(self, *, whole: bool = True) -> Results:
        """Return the results, if `whole` only with one for each item; see `Stage.results`."""
        self.plan()
        self.flush()
        left = len(self._units) - self._done_count - sum(state == _FAILED for state in self._states)
        if left and whole:
            raise BadRequest(
                f"{left} of {len(self._units)} items of stage {self.name} are not done",
                "results() gives one for each item",
                "work through the stage first",
                stage=self.name,
                left=left,
            )
        return Results(self.name, self._units, self._places, dict(self._shelves))

    def errors(self) -> dict[Any, str]:
        """Return why units failed; see `Stage.errors`."""
        self.plan()
        self.flush()
        numbers = {
            self._units[number].identity: number
            for number, state in enumerate(self._states)
            if state == _FAILED
        }
        found = {}
        for identity, row in self._own.failed(numbers):
            found[numbers[identity]] = str(results.parse(row)[1][2])
        return {self._units[number].key: found[number] for number in sorted(found)}

    def clear(self) -> None:
        """Forget everything; see `Stage.clear`."""
        self.run._begin(None)
        with self._lock:
            self._waiting, self._waiting_bytes = [], 0
            self._own.clear()
            if not self._shared and any(self._inherited()):
                self._write_note({"alone": True})
            self._planned, self._sums = False, None

    # ---- inside

    def plan(self) -> Sequence[Unit]:
        """Look at the items and at what is done, once."""
        if self._planned:
            return self._units
        with self._lock:
            if not self._planned:
                files = FileHashes(self.run.repository)
                try:
                    self._units, self._places = self._items.units(
                        files, self.name, self._uses, self._version
                    )
                finally:
                    files.save()
                self._of_name = {unit.name: at for at, unit in enumerate(self._units)}
                self._states = bytearray(len(self._units))
                self._shelves.clear()
                self._done_count = 0
                self._look()
                self._planned = True
                if self._done_count:
                    logger.info(
                        "%s: stage %s: %d of %d are done",
                        self.run.name, self.name, self._done_count, len(self._units),
                    )  # fmt: skip
            return self._units

    def _look(self) -> None:
        numbers = {unit.identity: at for at, unit in enumerate(self._units)}
        for shelf in self._all_shelves():
            for identity, _ in shelf.done(numbers):
                if self._states[numbers[identity]] != _DONE:
                    self._mark_done(numbers[identity], shelf)
        for identity, _ in self._own.failed(numbers):
            if self._states[numbers[identity]] == _NEW:
                self._states[numbers[identity]] = _FAILED

    def _all_shelves(self) -> Iterator[Shelf]:
        yield self._own
        if not self._shared and not self._read_note().get("alone"):
            yield from self._inherited()

    def _inherited(self) -> Iterator[Shelf]:
        run = self.run
        return stage_rows.inherited(run.store, run.name, run.line, self.name)

    def number(self, key: Any) -> int:
        """Return the number of the unit of a key.

        Raises:
            BadRequest: there is none.
        """
        self.plan()
        name = key_text(key)
        number = None if name is None else self._of_name.get(name)
        if number is None:
            found = [at for at, unit in enumerate(self._units) if unit.key is key]
            if not found:
                raise BadRequest(
                    f"stage {self.name} has no item with the key {key!r:.80}",
                    "done() and failed() take a key that the stage has yielded",
                )
            number = found[0]
        return number

    def _queue(self, number: int, row: Pending, numbers: Mapping[str, Number] | None) -> None:
        with self._lock:
            if self._states[number] in (_WAITING, _DONE):
                raise BadRequest(
                    f"{self._units[number].name:.80} of stage {self.name} is done already",
                    "an item has one result",
                    "clear the stage, or give it another version, to do it again",
                )
            if not self.run._session.is_begun:
                self.run._begin(None)
            if self._states[number] == _FAILING:
                self._take_back(number)
            self._states[number] = _FAILING if numbers is None else _WAITING
            self._waiting.append((number, row, numbers))
            self._waiting_bytes += len(row.payload) + row.size
            self.run._holding.add(self)

    def _take_back(self, number: int) -> None:
        """Take a failure back that waits: the item was tried again. One being written stays."""
        for at, (other, row, _) in enumerate(self._waiting):
            if other == number:
                self._waiting_bytes -= len(row.payload) + row.size
                del self._waiting[at]
                return

    def _settled(self, group: Sequence[_Waiting], taken: Sequence[bool]) -> None:
        """Take note that rows are durable, and which of them others had written before."""
        with self._lock:
            for (number, row, numbers), is_mine in zip(group, taken, strict=True):
                if numbers is None:
                    if self._states[number] == _FAILING:
                        self._states[number] = _FAILED
                    continue
                self._mark_done(number, self._own)
                if not is_mine:
                    logger.info("%s: %s was done elsewhere", self.name, self._units[number].name)
                    found = self._own.repository.row(row.table, row.key)
                    numbers = {} if found is None else results.parse(found)[1][1]
                if self._sums is not None:
                    self._sums.add(numbers)

    def _mark_done(self, number: int, shelf: Shelf) -> None:
        if self._states[number] != _DONE:
            self._states[number] = _DONE
            self._done_count += 1
        self._shelves[number] = shelf

    def sums(self) -> Sums:
        """Return the sums over everything done, read from the rows at the first call."""
        self.plan()
        self.flush()
        with self._lock:
            if self._sums is None:
                sums = Sums()
                wanted = {self._units[number].identity: number for number in self._shelves}
                for shelf in set(self._shelves.values()):
                    for identity, row in shelf.done(wanted):
                        if self._shelves[wanted[identity]] is shelf:
                            sums.add(results.parse(row)[1][1])
                self._sums = sums
            return self._sums

    def _read_note(self) -> dict[str, Any]:
        row = self._own.repository.row(self._own.table, self._own.note_key)
        if row is None:
            return {}
        try:
            found = json.loads(row.payload)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_note(self, note: Mapping[str, Any]) -> None:
        from casckpt.store.commits import RowWrite

        payload = json.dumps({"version": 1, **note}).encode()
        self._own.repository.write_rows([RowWrite(self._own.table, self._own.note_key, payload)])
