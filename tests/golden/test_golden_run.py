"""Runs that older versions left inside an epoch are gone on with by this one, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

import casckpt
from tests.golden import archive, runs


@pytest.mark.parametrize("folder", archive.versions("run-*"), ids=lambda path: path.name)
def test_it_ends_as_if_nobody_had_killed_it(folder: Path, tmp_path: Path) -> None:
    expected = archive.unpack(folder, tmp_path / "store")
    with casckpt.open(tmp_path / "store", mode="r") as store:
        latest = store.latest(runs.RUN)
        assert (latest.step, latest.batch) == (1, 4)  # inside the second epoch
    assert runs.train(tmp_path / "store") == expected
