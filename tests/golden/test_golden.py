"""Stores that older versions wrote are read, verified, collected and rebuilt by this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import casckpt
from tests.golden import archive
from tests.golden.states import STEPS, grown, state


@pytest.fixture(params=archive.versions("v*"), ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    document = archive.unpack(request.param, tmp_path / "store")
    return tmp_path / "store", document["checkpoints"]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes("A") == b.tobytes("A")
    if isinstance(a, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def _check(store: casckpt.Store, expected: dict[str, str]) -> None:
    for ref, identity in expected.items():
        checkpoint = store.get(ref)
        assert checkpoint.id == identity
        assert _same(store.restore(ref), state(checkpoint.step))
        assert checkpoint.metrics["loss"] == 1 / (checkpoint.step + 1)
        assert np.isnan(checkpoint.metrics["nan"])
        assert checkpoint.pinned == (checkpoint.step == 2)
        assert checkpoint.tags == (("t1",) if checkpoint.step == 1 else ())
    for checkpoint in store.checkpoints("golden/grown"):
        assert _same(store.restore(checkpoint), grown(checkpoint.step))
    assert np.array_equal(
        store.restore("golden/big")["blob"], np.arange(3_000_000, dtype=np.int32) % 7
    )


def test_every_checkpoint_is_read(golden: tuple[Path, dict[str, str]]) -> None:
    path, expected = golden
    with casckpt.open(path, mode="r") as store:
        _check(store, expected)
        assert not store.verify().damaged


def test_each_holds_what_it_was_made_for(golden: tuple[Path, dict[str, str]]) -> None:
    path, _ = golden
    with casckpt.open(path, mode="r") as store:
        coders = {one.coder for one in store.stats(codings=True).codings}
        predictors = {one.predictor for one in store.stats(codings=True).codings}
        grown_steps = [checkpoint.step for checkpoint in store.checkpoints("golden/grown")]
    features = set(json.loads((path / "format.json").read_text())["read"])
    assert "sub" in predictors
    assert any("entropy" in coder for coder in coders) == ("entropy-1" in features)
    assert ("dictionary" in predictors) == ("dictionary-1" in features) == bool(grown_steps)


def test_it_is_written_and_collected(golden: tuple[Path, dict[str, str]]) -> None:
    path, expected = golden
    with casckpt.open(path) as store:
        checkpoint = store.save("golden/balanced", state(STEPS - 1), step=STEPS)
        assert checkpoint.new_bytes == 0
        store.undelete("golden/trash")
        store.gc(now=True)
        assert np.array_equal(store.restore("golden/trash")["gone"], np.arange(9))
        _check(store, expected)
        assert not store.verify().damaged


@pytest.mark.parametrize("level", ["balanced", "small"])
def test_it_is_compacted_and_rebuilt(golden: tuple[Path, dict[str, str]], level: str) -> None:
    path, expected = golden
    with casckpt.open(path) as store:
        for run in store.compact(level=level).runs:
            assert run.after_bytes <= run.before_bytes
        _check(store, expected)
        assert not store.verify().damaged
    for index in path.glob("index.*/data.mdb"):
        index.unlink()
    casckpt.api.repair_store(path, rebuild_index=True)
    with casckpt.open(path) as store:
        _check(store, expected)


def test_its_index_is_rebuilt(golden: tuple[Path, dict[str, str]]) -> None:
    path, expected = golden
    for index in path.glob("index.*/data.mdb"):
        index.unlink()
    casckpt.api.repair_store(path, rebuild_index=True)
    with casckpt.open(path) as store:
        _check(store, expected)


def test_the_same_state_has_the_same_id_today(
    golden: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    _, expected = golden
    with casckpt.open(tmp_path / "new") as store:
        # Ids name logical bytes, so chunks of today and of then are one.
        store.save("golden/balanced", state(0))
        refs = store._catalog.manifest_and_refs(store.get("golden/balanced"))[1]
    with casckpt.open(golden[0], mode="r") as old:
        then = old._catalog.manifest_and_refs(old.get("golden/balanced@0"))[1]
    assert refs == then
    assert expected
