"""Booster: what does it take to keep a training of 1,000 rounds, saved 100 times?

A booster grows by ten rounds from save to save; all saves are kept. It is given to casckpt in every
way there is: by `casckpt.xgboost.train` and `casckpt.lightgbm.train` as checkpoints of a run, and
by a plain `store.save` as the bytes or text that the frameworks write. What is stored is compared
with zstd of the final model alone, as saved and after `compact`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bench.harness import Context, Goal, Result, disk_bytes

EVERY = 10
GOAL = 1.5
Make = Callable[[Any, Any, int], bytes]


def run(context: Context) -> Result:
    """Train each booster in each way into a store of its own; one row each."""
    result = Result("booster", context.quick)
    rounds = 200 if context.quick else 1000
    ways: dict[str, dict[str, Make]] = {
        "xgboost": {
            "casckpt.xgboost.train": _xgboost_adapter,
            "bytes, ubj": lambda store, data, rounds: _xgboost_raw(store, data, rounds, "ubj"),
            "bytes, json": lambda store, data, rounds: _xgboost_raw(store, data, rounds, "json"),
        },
        "lightgbm": {
            "casckpt.lightgbm.train": _lightgbm_adapter,
            "text": _lightgbm_raw,
        },
    }
    for library, makers in ways.items():
        if importlib.util.find_spec(library) is None:
            result.missing[library] = "the Python package is not installed"
            continue
        for name, data in _inputs():
            for way, make in makers.items():
                row = _measure(context, data, rounds, make)
                result.rows.append({"input": name, "name": way, "rounds": rounds, **row})
    worst = max((row["ratio"] for row in result.rows), default=float("nan"))
    result.goals.append(Goal("stored / zstd of the final model, worst way", GOAL, worst, "", True))
    result.notes.append(
        "stored_bytes: all records of the packs, facts included; disk_bytes also the index, by "
        "blocks, above an empty store: some 100 KB of it are pages that LMDB keeps free"
    )
    return result


def _inputs() -> Iterator[tuple[str, tuple[Any, Any]]]:
    from sklearn.datasets import load_digits

    yield "digits", load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 20)).astype(np.float32)
    noise = rng.normal(size=20_000) * 0.3
    yield "synthetic", (features, features[:, 0] * features[:, 1] + np.sin(features[:, 2]) + noise)


def _measure(context: Context, data: Any, rounds: int, make: Make) -> dict[str, Any]:
    import casckpt

    with context.folder("booster") as base:
        casckpt.open(base / "store").close()
        empty = disk_bytes(base)
        with casckpt.open(base / "store") as store:
            final = make(store, data, rounds)
            saves = len(store.checkpoints("booster"))
        parts = _parts(base / "store")
        disk = disk_bytes(base) - empty
        with casckpt.open(base / "store") as store:
            store.compact()
        compacted = sum(_parts(base / "store").values())
    packed = len(zstandard.compress(final, 3))
    stored = sum(parts.values())
    return {
        "saves": saves,
        "final_bytes": len(final),
        "final_zstd_bytes": packed,
        "stored_bytes": stored,
        "disk_bytes": disk,
        "ratio": stored / packed,
        "disk_ratio": disk / packed,
        "compacted_ratio": compacted / packed,
        "parts": dict(parts),
    }


def _parts(store: Path) -> Counter[str]:
    """Return the bytes of records by type, chunks also by encoding, headers included."""
    from casckpt.store import layout, records

    encodings = {0: "raw", 1: "zstd", 2: "planes", 3: "dictionary"}
    found: Counter[str] = Counter()
    for path in store.glob("packs/*/*.pack"):
        data = path.read_bytes()
        pack, _, _ = records.decode_pack_header(data)
        at = layout.PACK_HEADER_BYTES
        while data[at : at + 8] == layout.RECORD_MAGIC:
            head = records.header_length(data[at : at + records.FIXED_BYTES])
            record = records.decode_header(data[at : at + head], pack, at)
            name = layout.TYPE_NAMES[record.kind]
            if record.kind == layout.TYPE_CHUNK:
                name += f", {encodings[record.encoding]}"
            found[name] += record.total_bytes
            at += record.total_bytes
    return found


def _xgboost_parameters() -> dict[str, Any]:
    return {"max_depth": 6, "eta": 0.05, "nthread": 1, "seed": 0, "subsample": 0.8}


def _xgboost_adapter(store: Any, data: Any, rounds: int) -> bytes:
    import xgboost

    import casckpt.xgboost

    matrix = xgboost.DMatrix(*data)
    with store.run("booster") as opened:
        booster = casckpt.xgboost.train(opened, _xgboost_parameters(), matrix, rounds, every=EVERY)
    return bytes(booster.save_raw("ubj"))


def _xgboost_raw(store: Any, data: Any, rounds: int, form: str) -> bytes:
    import xgboost

    matrix = xgboost.DMatrix(*data)
    booster, raw = None, b""
    for step in range(EVERY, rounds + 1, EVERY):
        parameters = {**_xgboost_parameters(), "seed": step}
        booster = xgboost.train(parameters, matrix, EVERY, xgb_model=booster)
        raw = bytes(booster.save_raw(form))
        store.save("booster", {"booster": raw}, step)
    assert store.restore("booster") == {"booster": raw}
    return raw


def _lightgbm_parameters() -> dict[str, Any]:
    return {"objective": "l2", "verbose": -1, "num_threads": 1, "seed": 0, "learning_rate": 0.05}


def _lightgbm_adapter(store: Any, data: Any, rounds: int) -> bytes:
    import lightgbm

    import casckpt.lightgbm

    with store.run("booster") as opened:
        booster = casckpt.lightgbm.train(
            opened, _lightgbm_parameters(), lightgbm.Dataset(*data), rounds, every=EVERY
        )
    return booster.model_to_string(num_iteration=-1).encode()


def _lightgbm_raw(store: Any, data: Any, rounds: int) -> bytes:
    import lightgbm

    booster, text = None, ""
    for step in range(EVERY, rounds + 1, EVERY):
        features, target = data
        train_set = lightgbm.Dataset(features, target, free_raw_data=False)
        booster = lightgbm.train(_lightgbm_parameters(), train_set, EVERY, init_model=booster)
        text = booster.model_to_string(num_iteration=-1)
        store.save("booster", {"booster": text}, step)
    assert store.restore("booster") == {"booster": text}
    return text.encode()
