"""A stage: work through many items, each done once, whatever ends the process in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from casckpt import native
from casckpt.errors import BadRequest
from casckpt.logs import logger
from casckpt.training import results, stage_rows
from casckpt.training.fingerprint_files import FileHashes
from casckpt.training.stage_items import Items, Unit, key_text
from casckpt.training.stage_results import Results
from casckpt.training.stage_rows import Shelf
from casckpt.training.stage_sums import Sums

if TYPE_CHECKING:
    from casckpt.training.results import Number, Pending
    from casckpt.training.run import Run

_HELD_BYTES: Final = 16 * 1024 * 1024
"""Results that wait for their group are written early when they take this much memory."""

_NEW, _WAITING, _FAILED, _DONE = range(4)
"""How a unit stands. Waiting: said to be done or failed, and not yet written."""


class Stage:
    """Work over items, made by `run.stage`; iterate over it, or call `map`.

    Thread safe, but one thread iterates. `done` may be called from any.

    Attributes:
        name: its name.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        items: Any,
        *,
        key: Callable[[Any], Any] | None = None,
        uses: Any = None,
        version: str = "1",
        save_every: int = 1,
        shared: bool = False,
    ) -> None:
        """Prepare; see `Run.stage`. Items are looked at when the stage is first used."""
        self.name = stage_rows.check_name(name)
        if isinstance(save_every, bool) or not isinstance(save_every, int) or save_every < 1:
            raise BadRequest(f"save_every={save_every!r}", "it is a number of items from 1 on")
        self.save_every = save_every
        self._run = run
        self._items = Items(items, key, f"stage {name}")
        self._uses, self._version = uses, str(version)
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
        self._waiting: list[tuple[int, Pending, Mapping[str, Number]]] = []
        self._waiting_bytes = 0
        self._sums: Sums | None = None

    # ---- what there is

    @property
    def total(self) -> int:
        """How many units of work there are: items, equal ones counted once."""
        return len(self._plan())

    @property
    def done_count(self) -> int:
        """How many of them have a durable result, from all sessions."""
        self._plan()
        return self._done_count

    @property
    def totals(self) -> dict[str, Number]:
        """Sums of the numbers given to `done`, from all sessions, exact in any order."""
        return self._all_sums().totals()

    @property
    def means(self) -> dict[str, float]:
        """Means of the numbers given to `done`, over the results that have them."""
        return self._all_sums().means()

    def __len__(self) -> int:
        """Return `total`."""
        return self.total

    def __repr__(self) -> str:
        """Return the name."""
        return f"<casckpt.Stage {self.name} of {self._run.name}>"

    def seed(self, key: Any, base: int = 0) -> int:
        """Return a seed for an item: always the same, and another one for another key.

        Args:
            key: the item's key.
            base: the experiment's seed, if it is to count.

        Returns:
            A number from 0 to 2**32 - 1, what every generator takes.
        """
        name = key_text(key)
        name = repr(key) if name is None else name
        text = f"seed\0{self.name}\0{int(base)}\0{name}".encode("utf-8", "surrogatepass")
        return int.from_bytes(native.blake3(text)[:4], "little")

    # ---- work

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Yield (key, item) of the items that are not done, failed ones of before included.

        Between items it looks for a request to stop. What was said to be done is written when
        the loop ends, is left, or stops.

        Raises:
            BadRequest: an item has no fingerprint, or two different ones have the same key.
            RunBusy: another live process trains the run.
            Stopped: after a request to stop.
        """
        waiting = self.pending()
        if not waiting:
            self.ended()
            return
        self.begin()
        try:
            for number in waiting:
                if self.must_end():
                    return
                if not self.is_taken(number):
                    unit = self._units[number]
                    yield unit.key, self._items[unit.index]
        finally:
            self.flush()
        self.ended()

    def done(self, key: Any, result: Any = None, **numbers: Number) -> None:
        """Keep the result of an item; durable when this returns, with `save_every` in groups.

        If another process has done a shared item meanwhile, its result stays.

        Args:
            key: the key that was yielded.
            result: what a state may be: arrays, tensors, numbers, text, containers.
            numbers: add up in `totals` and `means`, such as tokens=31.

        Raises:
            BadRequest: there is no such key, or it is done already.
            BadLeaf: the result cannot be stored; the item is not done.
            NoSpace: the disk is full; nothing that was durable is lost.
        """
        self.put(self._number(key), result, results.check_numbers(numbers, f"{self.name}, {key}"))
        self.flush_if(self.save_every)

    def failed(self, key: Any, error: BaseException | str) -> None:
        """Note that an item failed; the next session tries it again.

        Args:
            key: the key that was yielded.
            error: why, for `errors`.

        Raises:
            BadRequest: there is no such key, or it is done already.
        """
        self.put_failure(self._number(key), error)
        self.flush_if(self.save_every)

    def map(
        self,
        fn: Callable[..., Any],
        *,
        batch_size: int | None = None,
        pass_key: bool = False,
        workers: int = 1,
        retry: Mapping[type[BaseException], int] | None = None,
        per_second: float | None = None,
        on_error: Literal["raise", "keep"] = "raise",
    ) -> Results:
        """Call a function for every item that is not done, and return all results in order.

        A kill at any moment repeats at most max(workers, save_every) calls: those that were
        begun and whose results were not durable. A change of `fn` alone redoes nothing, and is
        warned of; name it in `uses` if it should.

        Args:
            fn: takes an item; with batch_size a list of items, and returns as many results. It
                may return `Result(value, tokens=3)`, in a batch for each or around the list.
            batch_size: items per call; may change between sessions.
            pass_key: call fn(key, item), or fn(keys, items).
            workers: threads that call; 1 calls in this one.
            retry: exception to how often it is tried again, with growing pauses; a Retry-After
                that the exception or its response carries is obeyed, by all workers.
            per_second: calls per second at most, retries included.
            on_error: "raise" works through the rest, then raises; "keep" returns, with None for
                items that failed. Either way they are in `errors` and tried again next time.

        Raises:
            StageFailed: items failed and on_error is "raise"; the results of the others are kept.
            BadLeaf: fn returned what cannot be stored.
            BadRequest: options that make no sense, or another number of results than items.
            RunBusy, Stopped: as the loop over the stage.
        """
        from casckpt.training.mapping import MapOptions, run_map

        options = MapOptions(batch_size, pass_key, workers, retry, per_second, on_error)
        return run_map(self, fn, options)

    # ---- afterwards

    def results(self) -> Results:
        """Return the results in the order of the items, read one by one when asked for.

        Items that failed give None; equal items the same result.

        Raises:
            BadRequest: items are neither done nor failed.
        """
        self._plan()
        self.flush()
        left = self.total - self._done_count - sum(state == _FAILED for state in self._states)
        if left:
            raise BadRequest(
                f"{left} of {self.total} items of stage {self.name} are not done",
                "results() gives one for each item",
                "work through the stage first",
                stage=self.name,
                left=left,
            )
        return Results(self.name, self._units, self._places, dict(self._shelves))

    def errors(self) -> dict[Any, str]:
        """Return why items failed: key to text, without those that were done since."""
        self._plan()
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
        """Forget all results of the stage, old versions too; of a shared one for everybody.

        What other lines have done stays theirs, and is not seen here any more.

        Raises:
            RunBusy: another live process trains the run.
        """
        self._run._begin(None)
        with self._lock:
            self._waiting, self._waiting_bytes = [], 0
            self._own.clear()
            if not self._shared and any(self._inherited()):
                self._write_note({"alone": True})
            self._planned, self._sums = False, None

    # ---- for map, and for the run

    def flush(self) -> None:
        """Write what waits; durable when this returns.

        Raises:
            NoSpace, OperationFailed: as the disk says; what was not written waits again.
        """
        with self._lock:
            waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._run._holding.discard(self)
        if not waiting:
            return
        written = 0
        try:
            rows = [row for _, row, _ in waiting]
            for _, taken in results.write(self._own.repository, rows):
                self._settled(*waiting[written], taken=taken)
                written += 1
        finally:
            if written < len(waiting):
                with self._lock:
                    self._waiting[:0] = waiting[written:]
                    self._run._holding.add(self)
            self._run.note_progress(self.name, self._done_count, len(self._units))

    def flush_if(self, count: int) -> None:
        """Write what waits if it is a whole group."""
        if len(self._waiting) >= count or self._waiting_bytes >= _HELD_BYTES:
            self.flush()

    def begin(self) -> None:
        """Lock the run: work begins."""
        self._run._begin(None)
        self._run._part_done = False
        self._run.note_progress(self.name, self._done_count, len(self._units))

    def ended(self) -> None:
        """Take note that the stage was gone through."""
        self.flush()
        if not self.pending():
            self._run._part_done = True

    def must_end(self) -> bool:
        """Return whether `run.stop()` was called; leave by Stopped if somebody else asked."""
        run = self._run
        if not run.stopping:
            return False
        self.flush()
        run.check_stop()
        return True

    def pending(self) -> list[int]:
        """Return the numbers of the units without a result."""
        self._plan()
        return [number for number, state in enumerate(self._states) if state in (_NEW, _FAILED)]

    def is_taken(self, number: int) -> bool:
        """Return whether a unit was done since the stage was looked at, by whomever."""
        if self._states[number] in (_WAITING, _DONE):
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
        row = results.pending(
            shelf.table, shelf.done_key(unit.identity), unit.name, result, numbers
        )
        if self._states[number] == _FAILED:
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

    # ---- inside

    def _plan(self) -> Sequence[Unit]:
        """Look at the items and at what is done, once."""
        with self._lock:
            if not self._planned:
                files = FileHashes(self._run.repository)
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
                        self._run.name, self.name, self._done_count, len(self._units),
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
        run = self._run
        return stage_rows.inherited(run.store, run.name, run.line, self.name)

    def _number(self, key: Any) -> int:
        self._plan()
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
            if not self._run._session.is_begun:
                self._run._begin(None)
            self._states[number] = _WAITING
            self._waiting.append((number, row, cast("Mapping[str, Number]", numbers)))
            self._waiting_bytes += len(row.payload) + row.size
            self._run._holding.add(self)

    def _settled(
        self, number: int, row: Pending, numbers: Mapping[str, Number] | None, *, taken: bool
    ) -> None:
        """Take note that a row is durable."""
        with self._lock:
            if numbers is None:
                self._states[number] = _FAILED
                return
            self._mark_done(number, self._own)
            if not taken:
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

    def _all_sums(self) -> Sums:
        """Return the sums over everything done, read from the rows at the first call."""
        self._plan()
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
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write_note(self, note: Mapping[str, Any]) -> None:
        from casckpt.store.commits import RowWrite

        payload = json.dumps({"version": 1, **note}).encode()
        self._own.repository.write_rows([RowWrite(self._own.table, self._own.note_key, payload)])
