"""Runs that older versions left inside an epoch are gone on with by this one, to the last bit."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import casckpt
from tests.golden import runs

VERSIONS = sorted(path for path in Path(__file__).parent.glob("run-*") if path.is_dir())


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_it_ends_as_if_nobody_had_killed_it(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(folder / "store.tar.xz") as archive:
        archive.extractall(tmp_path / "store", filter="data")
    with casckpt.open(tmp_path / "store", mode="r") as store:
        latest = store.latest(runs.RUN)
        assert (latest.step, latest.batch) == (1, 4)  # inside the second epoch
    assert runs.train(tmp_path / "store") == json.loads((folder / "expected.json").read_text())
