"""What children do to a store while faults strike.

A workload is a `prepare`, run without faults once and copied for every point, and a `run`. Each
call on the store is announced to the ack log before it begins and after it returned.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import casckpt
from casckpt.api import repair_store
from tests.crash.acks import AckLog

ONE_WORKER = casckpt.Options(workers=1)
EXPORTED = "exported.npz"
HEALTHY = "healthy"
ITEMS = range(4)
EPOCHS = 2


@functools.cache
def state(seed: int) -> dict[str, Any]:
    """Return the state of a seed, not to be changed; ten seeds in a row share two parts of five.

    From seed 500 on their weights are near one another too, so that differences pay.
    """
    family = np.random.default_rng(seed // 10)
    own = np.random.default_rng(seed + 1000)
    frozen = family.standard_normal(20_000, dtype=np.float32)
    weight = own.standard_normal(20_000, dtype=np.float32)
    return {
        "frozen": frozen,
        "weight": weight if seed < 500 else frozen[::-1] + weight * np.float32(1e-5),
        "bias": own.integers(0, 100, 500),
        "text": family.bytes(3000),
        "log": b"".join(
            b"%d %d\n" % (line, line * line) for line in range(500 + 50 * (seed % 500))
        ),
        "seed": seed,
    }


def same(a: Any, b: Any) -> bool:
    """Tell whether two states are equal to the last bit."""
    if a.keys() != b.keys():
        return False
    for name, left in a.items():
        right = b[name]
        if isinstance(left, np.ndarray):
            if left.dtype != right.dtype or left.tobytes() != right.tobytes():
                return False
        elif type(left) is not type(right) or left != right:
            return False
    return True


def open_store(place: Path, mode: Any = "a") -> casckpt.Store:
    """Open a store with one worker, so that operations come in one order."""
    return casckpt.open(place, mode=mode, options=ONE_WORKER)


class User:
    """The public calls, each announced."""

    def __init__(self, place: Path, log: AckLog) -> None:
        self.place, self.log = place, log
        self.store: casckpt.Store | None = None

    def open(self) -> bool:
        with self.log.call("open"):
            self.store = open_store(self.place)
            return True
        return False

    def close(self) -> None:
        if self.store is not None:
            with self.log.call("close"):
                self.store.close()

    def save(self, step: int, seed: int, run: str = "run", **how: Any) -> None:
        assert self.store is not None
        with self.log.call("save", run=run, step=step, seed=seed):
            self.store.save(run, state(seed), step, **how)

    def save_async(self, step: int, seed: int, run: str = "run") -> None:
        assert self.store is not None
        with self.log.call("save", run=run, step=step, seed=seed):
            self.store.save_async(run, state(seed), step).result()

    def delete(self, step: int, run: str = "run") -> None:
        assert self.store is not None
        with self.log.call("delete", run=run, step=step):
            self.store.delete(f"{run}@{step}")

    def undelete(self, step: int, run: str = "run") -> None:
        assert self.store is not None
        with self.log.call("undelete", run=run, step=step):
            self.store.undelete(f"{run}@{step}")

    def gc(self, **how: Any) -> None:
        assert self.store is not None
        with self.log.call("gc"):
            self.store.gc(**how)

    def compact(self) -> None:
        assert self.store is not None
        with self.log.call("compact"):
            self.store.compact()


Session = Callable[[User], None]
Repair = Callable[[Path], None]


def _session(place: Path, log: AckLog, body: Session) -> None:
    user = User(place, log)
    if user.open():
        body(user)
        user.close()


def _sessions(*bodies: Session) -> Callable[[Path, AckLog], None]:
    def run(place: Path, log: AckLog) -> None:
        for body in bodies:
            _session(place, log, body)

    return run


@dataclass(frozen=True)
class Workload:
    """Operations to be interrupted; `repair` is what a person would run before opening again.

    `harmed` packs may be those that would give a lost index back: it is not taken from them too.
    """

    prepare: Callable[[Path, AckLog], None]
    run: Callable[[Path, AckLog], None]
    repair: Repair | None = None
    harmed: bool = False


def _nothing(place: Path, log: AckLog) -> None:
    """There is no store yet."""


def _dedup(user: User) -> None:
    user.save(1, 11)
    user.save(2, 11)
    user.save(2, 12, replace=True)


def _delete(user: User) -> None:
    user.delete(0)
    user.undelete(0)
    user.delete(1)


def _attach(user: User) -> None:
    assert user.store is not None
    here = {"run": "run", "step": 0}
    with user.log.call("tag", **here, tag="good"):
        user.store.tag("run@0", "good")
    with user.log.call("metric", **here, metric="loss", value=0.5):
        user.store.attach_metrics("run@0", {"loss": 0.5})
    with user.log.call("untag", **here, tag="old"):
        user.store.untag("run@0", "old")
    with user.log.call("pin"):
        user.store.pin("run@0")


def _exchange(user: User) -> None:
    assert user.store is not None
    outside = user.place.with_name(f"{user.place.name}-{EXPORTED}")
    with user.log.call("export"):
        user.store.export("arrays@0", outside)
    with user.log.call("import"):
        user.store.import_files("imported", outside, step=3)


def _arrays(user: User) -> None:
    assert user.store is not None
    user.store.save("arrays", {"a": np.arange(30_000, dtype=np.int32)}, 0)
    user.save(0, 10)


def _async(user: User) -> None:
    user.save_async(1, 11)
    user.save_async(2, 20)


def _save_and_gc(user: User) -> None:
    user.save(5, 14)
    user.delete(3)
    user.gc(now=True)
    user.save(6, 30)


def _compact_and_go_on(user: User) -> None:
    user.compact()
    user.save(5, 505)
    user.delete(1)
    user.compact()


def _rebuild(place: Path, log: AckLog) -> None:
    with log.call("rebuild"):
        repair_store(place, rebuild_index=True)


def _lose_index(place: Path, log: AckLog) -> None:
    _three(place, log)
    with log.call("rebuild"):  # the index is gone: only a rebuild opens this store again
        shutil.rmtree(place / "index.0")


def _damage_packs(place: Path, log: AckLog) -> None:
    """Keep a whole copy beside the store, then harm every pack."""
    _three(place, log)
    shutil.copytree(place, place.with_name(HEALTHY))
    for number, pack in enumerate(sorted(place.glob("packs/*/*.pack"))):
        data = bytearray(pack.read_bytes())
        data[len(data) // 3 + 40 * number] ^= 4
        pack.write_bytes(data)


def _repair(place: Path, log: AckLog) -> None:
    with log.call("repair"):
        repair(place)


def rebuild(place: Path) -> None:
    """Make the index anew."""
    repair_store(place, rebuild_index=True)


def repair(place: Path) -> None:
    """Put back what is damaged from the whole copy."""
    repair_store(place, source=place.with_name(HEALTHY))


def result_of(item: int) -> Any:
    """Return the result of an item: some lie in a row, some have a manifest."""
    return np.full(4000 * item, item, dtype=np.int32) if item % 2 else item * 7


def _stage(user: User) -> None:
    assert user.store is not None
    with user.log.call("run"), user.store.run("job") as run:
        stage = run.stage("items", ITEMS)
        for key, item in stage:
            with user.log.call("result", key=key):
                stage.done(key, result_of(item))


def _train(user: User) -> None:
    assert user.store is not None
    kept = {"epochs": []}
    with user.log.call("train"), user.store.run("job") as run:
        for epoch in run.epochs(EPOCHS, kept, save_every=1):
            kept["epochs"].append(epoch)
            run.log(loss=epoch / 2)
            run.log(step=epoch * 10, rate=epoch)


def _saving(*seeds: int) -> Session:
    def body(user: User) -> None:
        for step, seed in enumerate(seeds):
            user.save(step, seed)

    return body


def _tag_old(user: User) -> None:
    assert user.store is not None
    with user.log.call("tag", run="run", step=0, tag="old"):
        user.store.tag("run@0", "old")


def _step(step: int, seed: int) -> Session:
    return lambda user: user.save(step, seed)


def _drop(*steps: int) -> Session:
    def body(user: User) -> None:
        for step in steps:
            user.delete(step)

    return body


_three = _sessions(_saving(10, 20, 21), _tag_old, _drop(1))
_whole_packs = _sessions(
    _step(0, 10), _tag_old, _step(1, 20), _step(2, 30), _step(3, 11), _drop(1, 2)
)
_mixed_packs = _sessions(_saving(10, 20, 11, 30, 12, 40), _drop(1, 3, 5))
_one = _sessions(_step(0, 10))

WORKLOADS: dict[str, Workload] = {
    "init": Workload(_nothing, _sessions(lambda user: None)),
    "first_save": Workload(_sessions(lambda user: None), _sessions(_step(0, 10))),
    "new_store_save": Workload(_nothing, _sessions(_step(0, 10))),
    "dedup_save": Workload(_one, _sessions(_dedup)),
    "save_async": Workload(_one, _sessions(_async)),
    "delete": Workload(_sessions(_saving(10, 20)), _sessions(_delete)),
    "attach": Workload(_sessions(_step(0, 10), _tag_old), _sessions(_attach)),
    "gc": Workload(_whole_packs, _sessions(lambda user: user.gc(now=True))),
    "compact": Workload(_mixed_packs, _sessions(lambda user: user.gc(now=True))),
    "turn_chains": Workload(
        _sessions(_saving(500, 501, 502, 503, 504)), _sessions(_compact_and_go_on)
    ),
    "save_and_gc": Workload(_whole_packs, _sessions(_save_and_gc)),
    "rebuild": Workload(_three, _rebuild),
    "rebuild_lost": Workload(_lose_index, _rebuild, repair=rebuild),
    "repair": Workload(_damage_packs, _repair, repair=repair, harmed=True),
    "delta_save": Workload(_sessions(_step(0, 500)), _sessions(_saving(500, 501, 502))),
    "stage": Workload(_one, _sessions(_stage)),
    "train": Workload(_one, _sessions(_train)),
    "exchange": Workload(_sessions(_arrays), _sessions(_exchange)),
    "reopen": Workload(_one, _sessions(_step(1, 11), lambda user: None, _step(2, 20))),
}
